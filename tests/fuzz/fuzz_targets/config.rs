#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| relabel_fuzz::config::TARGET.check(input));
