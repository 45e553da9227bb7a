//! AdmissionReviews: any bytes are answered or refused.
#![no_main]
use libfuzzer_sys::fuzz_target;
use undermesh_admission::webhook::review::{decide, read};
use undermesh_control::Settings;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(request) = read(bytes) {
        let _ = decide(request, &Settings::default());
    }
});
