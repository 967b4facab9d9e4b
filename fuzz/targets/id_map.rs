#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| properties::check("id_map", data));
