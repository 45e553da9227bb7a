//! Manifests: any text is split, parsed and decoded without a panic, and every diagnostic names a line of it.
#![no_main]
use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use undermesh_control::{
    manifest::split,
    path::Path,
    resources::{decode, metadata::Origin},
};

fuzz_target!(|text: &str| {
    let lines = text.lines().count().max(1);
    for document in split(&Arc::from("fuzz.yaml"), text) {
        let document = Arc::new(document);
        let Ok(value) = document.parse() else {
            continue;
        };
        let origin = Origin {
            document: Arc::clone(&document),
            place: Path::root(),
        };
        for problem in decode(&value, &origin).problems {
            let line = document.line_of(&problem.path);
            assert!(line >= 1 && line <= lines, "line {line} of {lines}");
        }
    }
});
