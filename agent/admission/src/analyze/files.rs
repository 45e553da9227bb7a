//! Manifests in files, directories and standard input.
use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path as FilePath, PathBuf},
    sync::Arc,
};

use undermesh_control::{
    Diagnostic, Severity,
    directory::{MAX_DIRECTORY_BYTES, MAX_FILE_BYTES},
    manifest::{self, Document},
    path::Path,
    resources::{self, metadata::Origin, strings::Strings},
    value::Value,
};

use crate::{examine::Examination, network::NetworkPolicy};

/// Most files that are read.
const MAX_FILES: usize = 10_000;
/// Deepest nesting of directories.
const MAX_DEPTH: usize = 32;
/// Names of files in a directory that count as manifests; a file that is named itself always counts.
const EXTENSIONS: &[&str] = &["yaml", "yml", "json"];
/// The path that stands for standard input.
const STANDARD_INPUT: &str = "-";

/// Reads what the paths name. What cannot be read is noted as an error.
pub(super) fn read(paths: &[PathBuf], input: &mut impl Read, examination: &mut Examination) {
    let mut reader = Reader {
        examination,
        strings: Strings::default(),
        files: 0,
        bytes: 0,
    };
    for path in paths {
        if path.as_os_str() == STANDARD_INPUT {
            reader.text("standard input", input);
        } else {
            reader.path(path);
        }
    }
}

struct Reader<'a> {
    examination: &'a mut Examination,
    strings: Strings,
    files: usize,
    bytes: u64,
}

impl Reader<'_> {
    /// A path that was named by the user.
    fn path(&mut self, path: &FilePath) {
        match fs::metadata(path) {
            Ok(found) if found.is_dir() => self.directory(path, MAX_DEPTH),
            Ok(_) => self.file(path),
            Err(error) => self.unreadable(path, &error),
        }
    }

    fn directory(&mut self, path: &FilePath, depth: usize) {
        let entries = fs::read_dir(path).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let mut entries = match entries {
            Ok(entries) => entries,
            Err(error) => return self.unreadable(path, &error),
        };
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let inner = entry.path();
            match entry.file_type() {
                Ok(kind) if kind.is_dir() && depth > 0 => self.directory(&inner, depth - 1),
                Ok(kind) if kind.is_dir() => {
                    self.refuse(&inner, "is nested too deep", "name it itself");
                }
                Ok(_) if is_manifest(&inner) => self.file(&inner),
                Ok(_) => {}
                Err(error) => self.unreadable(&inner, &error),
            }
        }
    }

    fn file(&mut self, path: &FilePath) {
        self.files += 1;
        if self.files > MAX_FILES {
            if self.files == MAX_FILES + 1 {
                let message = format!("not read, nor any after it: more than {MAX_FILES} files");
                self.refuse(path, &message, "name fewer");
            }
            return;
        }
        match File::open(path) {
            Ok(mut file) => self.text(&path.display().to_string(), &mut file),
            Err(error) => self.unreadable(path, &error),
        }
    }

    fn text(&mut self, name: &str, source: &mut impl Read) {
        let mut bytes = Vec::new();
        let path = FilePath::new(name);
        if let Err(error) = source.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes) {
            return self.unreadable(path, &error);
        }
        let size = bytes.len() as u64;
        self.bytes += size;
        if size > MAX_FILE_BYTES {
            let message = format!("not read: larger than {} MiB", MAX_FILE_BYTES >> 20);
            return self.refuse(path, &message, "split it into several files");
        }
        if self.bytes > MAX_DIRECTORY_BYTES {
            let message = format!(
                "not read: all files are larger than {} MiB",
                MAX_DIRECTORY_BYTES >> 20
            );
            return self.refuse(path, &message, "name fewer");
        }
        match String::from_utf8(bytes) {
            Ok(text) => self.documents(&Arc::from(name), &text),
            Err(_) => self.refuse(path, "is not text", "save the file as UTF-8"),
        }
    }

    fn documents(&mut self, name: &Arc<str>, text: &str) {
        for document in manifest::split(name, text) {
            let document = Arc::new(document);
            match document.parse() {
                Ok(value) => self.document(&document, &value),
                Err(error) => self.examination.note(Diagnostic {
                    severity: Severity::Error,
                    file: name.clone(),
                    line: error.line,
                    resource: None,
                    field: Path::root(),
                    message: format!("not YAML: {}", error.message),
                    remedy: "correct the syntax".to_owned(),
                }),
            }
        }
    }

    fn document(&mut self, document: &Arc<Document>, value: &Value) {
        let kind = value.get("kind").and_then(Value::as_text);
        match value.get("items") {
            Some(Value::List(items)) if kind.is_some_and(|kind| kind.ends_with("List")) => {
                for (position, item) in items.iter().enumerate() {
                    self.object(document, item, Path::root().key("items").index(position));
                }
            }
            _ if *value == Value::Null => {}
            _ => self.object(document, value, Path::root()),
        }
    }

    fn object(&mut self, document: &Arc<Document>, value: &Value, place: Path) {
        let origin = Origin::Document {
            document: document.clone(),
            place,
        };
        if self.examination.is_full() {
            return;
        }
        if NetworkPolicy::is_named_by(value) {
            self.examination.add_network_policy(value, &origin);
        }
        self.examination
            .add(resources::decode(value, &origin, &self.strings));
        if self.examination.is_full() {
            let path = FilePath::new(&*document.file);
            self.refuse(
                path,
                "not read any further: too many objects",
                "name fewer files",
            );
        }
    }

    fn unreadable(&mut self, path: &FilePath, error: &io::Error) {
        let message = format!("cannot be read: {error}");
        self.refuse(path, &message, "check the path and its permissions");
    }

    fn refuse(&mut self, path: &FilePath, message: &str, remedy: &str) {
        self.examination.note(Diagnostic {
            severity: Severity::Error,
            file: path.display().to_string().into(),
            line: 0,
            resource: None,
            field: Path::root(),
            message: message.to_owned(),
            remedy: remedy.to_owned(),
        });
    }
}

fn is_manifest(path: &FilePath) -> bool {
    let extension = path.extension().and_then(|it| it.to_str());
    extension.is_some_and(|extension| EXTENSIONS.contains(&extension)) && path.is_file()
}
