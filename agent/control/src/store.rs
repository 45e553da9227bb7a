//! The objects in force: which document wins, and what stays when a document goes bad.
//!
//! An object that was good and is now unreadable stays as it was. When not even its name can be read, every
//! object that its file gave before and that is nowhere now stays.
use std::{collections::BTreeMap, sync::Arc};

use crate::{
    diagnostic::{Diagnostic, Severity},
    manifest::{self, Document},
    path::Path,
    resources::{
        self, Decoded, Key, Outcome, Resource, field::Problem, metadata::Origin, strings::Strings,
    },
    succession::{self, REMEDY, succeed},
    value::Value,
};

/// Most objects in one directory.
pub const MAX_OBJECTS: usize = 100_000;

/// A file as it was last read.
#[derive(Debug)]
pub enum File {
    /// Its text, and the objects in it.
    Read(Arc<Contents>),
    /// Why it could not be read.
    Unreadable {
        /// What is wrong.
        message: String,
        /// What to do about it.
        remedy: &'static str,
    },
}

impl File {
    /// Whether the file says the same as before.
    pub fn is_same(&self, before: &Self) -> bool {
        match (self, before) {
            (Self::Read(now), Self::Read(before)) => Arc::ptr_eq(now, before),
            (
                Self::Unreadable { message: now, .. },
                Self::Unreadable {
                    message: before, ..
                },
            ) => now == before,
            _ => false,
        }
    }
}

/// What is in a file.
#[derive(Debug)]
pub struct Contents {
    /// The whole text, to see whether it changed.
    pub text: String,
    objects: Vec<Object>,
}

#[derive(Debug)]
struct Object {
    decoded: Decoded,
    diagnostics: Vec<Diagnostic>,
}

impl Contents {
    /// Reads the objects of a file. `name` is the file, relative to its directory.
    pub fn read(name: &Arc<str>, text: String) -> Self {
        let mut objects = Vec::new();
        let strings = Strings::default();
        for document in manifest::split(name, &text) {
            let document = Arc::new(document);
            match document.parse() {
                Ok(value) => read_document(&document, &value, &strings, &mut objects),
                Err(error) => objects.push(unparsed(&document, error)),
            }
        }
        Self { text, objects }
    }
}

fn unparsed(document: &Arc<Document>, error: manifest::SyntaxError) -> Object {
    let diagnostic = Diagnostic {
        severity: Severity::Error,
        file: document.file.clone(),
        line: error.line,
        resource: None,
        field: Path::root(),
        message: format!("not YAML: {}", error.message),
        remedy: "correct the syntax".to_owned(),
    };
    Object {
        decoded: Decoded {
            key: None,
            outcome: Outcome::Bad(None),
            problems: Vec::new(),
            origin: Origin::Document {
                document: document.clone(),
                place: Path::root(),
            },
        },
        diagnostics: vec![diagnostic],
    }
}

fn read_document(
    document: &Arc<Document>,
    value: &Value,
    strings: &Strings,
    objects: &mut Vec<Object>,
) {
    let read = |value, place| read_object(document, value, place, strings);
    let is_list = value
        .get("kind")
        .and_then(Value::as_text)
        .is_some_and(|kind| kind.ends_with("List"));
    match value.get("items") {
        Some(Value::List(items)) if is_list => {
            for (position, item) in items.iter().enumerate() {
                objects.push(read(item, Path::root().key("items").index(position)));
            }
        }
        _ if *value == Value::Null => {}
        _ => objects.push(read(value, Path::root())),
    }
}

fn read_object(document: &Arc<Document>, value: &Value, place: Path, strings: &Strings) -> Object {
    let origin = Origin::Document {
        document: document.clone(),
        place,
    };
    let mut decoded = resources::decode(value, &origin, strings);
    let diagnostics = decoded.diagnostics();
    decoded.problems = Vec::new();
    Object {
        decoded,
        diagnostics,
    }
}

/// The objects that were in force after the last reading.
#[derive(Debug, Default)]
pub struct Store {
    objects: BTreeMap<Key, Held>,
}

#[derive(Clone, Debug)]
struct Held {
    held: succession::Held,
    /// The document that keeps it in force.
    origin: Origin,
}

impl Store {
    /// Takes the files as they are now, in the order of their names, and returns what is wrong.
    pub fn admit(&mut self, files: &BTreeMap<Arc<str>, File>) -> Vec<Diagnostic> {
        let mut admission = Admission {
            before: &self.objects,
            now: BTreeMap::new(),
            diagnostics: Vec::new(),
        };
        let mut spoilt = Vec::new();
        let mut count = 0;
        for (name, file) in files {
            let size = object_count(file);
            let fits = count + size <= MAX_OBJECTS;
            count += if fits { size } else { 0 };
            if !admission.admit_file(name, file, fits) {
                spoilt.push(name.clone());
            }
        }
        for name in spoilt {
            admission.keep_objects_of(&name);
        }
        let Admission {
            now, diagnostics, ..
        } = admission;
        self.objects = now;
        diagnostics
    }

    /// The objects in force, by kind, namespace and name.
    pub fn resources(&self) -> impl Iterator<Item = &Resource> {
        self.objects.values().map(|it| &it.held.resource)
    }

    /// How many objects of each kind are in force.
    pub fn counts(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for key in self.objects.keys() {
            *counts.entry(key.kind.to_string()).or_default() += 1;
        }
        counts
    }
}

fn object_count(file: &File) -> usize {
    match file {
        File::Read(contents) => contents.objects.len(),
        File::Unreadable { .. } => 0,
    }
}

struct Admission<'a> {
    before: &'a BTreeMap<Key, Held>,
    now: BTreeMap<Key, Held>,
    diagnostics: Vec<Diagnostic>,
}

impl Admission<'_> {
    /// Takes one file; says whether all that it defines could be told.
    fn admit_file(&mut self, name: &Arc<str>, file: &File, fits: bool) -> bool {
        match file {
            File::Read(_) if !fits => {
                let message =
                    format!("not read: the directory holds more than {MAX_OBJECTS} objects");
                self.about_file(name, message, "remove some");
                false
            }
            File::Read(contents) => {
                let mut all_told = true;
                for object in &contents.objects {
                    all_told &= self.admit_object(object);
                }
                all_told
            }
            File::Unreadable { message, remedy } => {
                self.about_file(name, message.clone(), remedy);
                false
            }
        }
    }

    /// Takes one object; says whether its name could be told.
    fn admit_object(&mut self, object: &Object) -> bool {
        self.diagnostics.extend(object.diagnostics.iter().cloned());
        let Some(key) = &object.decoded.key else {
            return false;
        };
        if matches!(object.decoded.outcome, Outcome::Noted) {
            return true;
        }
        if let Some(first) = self.now.get(key) {
            let message = format!("is also in {}, which wins", first.origin.place());
            self.about(object, Severity::Error, message, "remove one of the two");
            return true;
        }
        if let Some(held) = self.choose(key, object) {
            self.now.insert(key.clone(), held);
        }
        true
    }

    fn choose(&mut self, key: &Key, object: &Object) -> Option<Held> {
        let before = self.before.get(key).map(|before| &before.held);
        let (held, message) = succeed(&object.decoded.outcome, before)?;
        if let Some(message) = message {
            self.about(object, Severity::Error, message, REMEDY);
        }
        Some(Held {
            held,
            origin: object.decoded.origin.clone(),
        })
    }

    /// Keeps what a file gave before, as its present text does not tell what it gives now.
    fn keep_objects_of(&mut self, name: &Arc<str>) {
        let kept: Vec<(&Key, &Held)> = self
            .before
            .iter()
            .filter(|(key, held)| {
                held.origin.file() == Some(name)
                    && held.held.is_good
                    && !self.now.contains_key(*key)
            })
            .collect();
        if kept.is_empty() {
            return;
        }
        let names: Vec<String> = kept
            .iter()
            .take(MAX_NAMED)
            .map(|(key, _)| key.to_string())
            .collect();
        let more = match kept.len() - names.len() {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        self.now.extend(
            kept.into_iter()
                .map(|(key, held)| (key.clone(), held.clone())),
        );
        let message = format!(
            "the last good version stays in force of {}{more}",
            names.join(", ")
        );
        self.about_file(name, message, "correct the errors in this file");
    }

    fn about(
        &mut self,
        object: &Object,
        severity: Severity,
        message: impl Into<String>,
        remedy: &str,
    ) {
        let (message, remedy) = (message.into(), remedy.to_owned());
        let problem = Problem {
            severity,
            path: Path::root(),
            message,
            remedy,
        };
        self.diagnostics.push(
            object
                .decoded
                .origin
                .diagnostic(object.decoded.key.clone(), problem),
        );
    }

    fn about_file(&mut self, name: &Arc<str>, message: String, remedy: &str) {
        self.diagnostics.push(Diagnostic {
            severity: Severity::Error,
            file: name.clone(),
            line: 0,
            resource: None,
            field: Path::root(),
            message,
            remedy: remedy.to_owned(),
        });
    }
}

/// Most objects that one message names.
const MAX_NAMED: usize = 5;

#[cfg(test)]
mod tests;
