//! Manifests: any text is split, parsed and decoded without a panic, and every diagnostic names a line of it.
#![no_main]
use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use undermesh_control::{
    manifest::split,
    path::Path,
    resources::{decode, metadata::Origin, strings::Strings},
};

fuzz_target!(|text: &str| {
    // A carriage return alone ends a line, too (YAML 1.2, section 5.4).
    let lines = 1 + text.replace("\r\n", "\n").matches(['\n', '\r']).count();
    let strings = Strings::default();
    for document in split(&Arc::from("fuzz.yaml"), text) {
        let document = Arc::new(document);
        let Ok(value) = document.parse() else {
            continue;
        };
        let origin = Origin::Document {
            document: Arc::clone(&document),
            place: Path::root(),
        };
        for diagnostic in decode(&value, &origin, &strings).diagnostics() {
            assert!(diagnostic.line <= lines, "{diagnostic} of {lines}");
        }
    }
});
