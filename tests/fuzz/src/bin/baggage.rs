//! Baggage and identities: any text is read or refused; what was read is written as it was read.
#![no_main]
use libfuzzer_sys::fuzz_target;
use undermesh_model::{Baggage, Identity};

fuzz_target!(|text: &str| {
    if let Ok(baggage) = Baggage::parse(text) {
        let again = Baggage::parse(&baggage.to_string());
        assert_eq!(again.ok().as_ref(), Some(&baggage));
    }
    if let Ok(identity) = text.parse::<Identity>() {
        assert_eq!(identity.to_string(), text);
    }
});
