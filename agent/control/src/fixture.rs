//! Manifests in, meshes and messages out: what the tests share.
use std::{collections::BTreeMap, sync::Arc};

use crate::{
    diagnostic::Diagnostic,
    settings::Settings,
    store::{Contents, File, Store},
    translate::{Translation, translate},
};

/// Lets `store` read files, given as name and text.
pub(crate) fn admit(store: &mut Store, files: &[(&str, &str)]) -> Vec<Diagnostic> {
    let read = |(name, text): &(&str, &str)| {
        let name: Arc<str> = Arc::from(*name);
        (
            name.clone(),
            File::Read(Arc::new(Contents::read(&name, (*text).to_owned()))),
        )
    };
    let files: BTreeMap<Arc<str>, File> = files.iter().map(read).collect();
    store.admit(&files)
}

/// What reading one file says.
pub(crate) fn messages(text: &str) -> Vec<String> {
    written(&admit(&mut Store::default(), &[("f.yaml", text)]))
}

/// Diagnostics as they are printed.
pub(crate) fn written(diagnostics: &[Diagnostic]) -> Vec<String> {
    diagnostics
        .iter()
        .map(|diagnostic| format!("{:?} {diagnostic}", diagnostic.severity))
        .collect()
}

/// The mesh of one file that has nothing to complain of when it is read.
pub(crate) fn mesh(text: &str) -> Translation {
    let mut store = Store::default();
    let diagnostics = admit(&mut store, &[("f.yaml", text)]);
    assert_eq!(written(&diagnostics), Vec::<String>::new());
    translate(store.resources(), &Settings::default())
}
