#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    for target in causeway_fuzz::TARGETS.iter().filter(|target| target.name == "protocol") {
        (target.run)(bytes);
    }
});
