#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| properties::check("node_list", data));
