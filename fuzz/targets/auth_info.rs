#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| properties::check("auth_info", data));
