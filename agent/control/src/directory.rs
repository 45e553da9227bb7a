//! The configuration source that reads a directory of manifests and follows its changes.
use std::{
    collections::BTreeMap,
    fs, io,
    io::Read,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::task::{JoinError, JoinHandle, spawn_blocking};
use undermesh_model::MeshBuilder;

use crate::{
    diagnostic::Diagnostic,
    engine::Engine,
    resources::{Key, Resource},
    settings::Settings,
    store::{Contents, File, Store},
    walk,
    watch::Watch,
};

/// Largest file that is read, in bytes.
pub const MAX_FILE_BYTES: u64 = 8 << 20;
/// Most bytes that are read from one directory.
pub const MAX_DIRECTORY_BYTES: u64 = 256 << 20;
/// Why a directory cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The directory cannot be read at all.
    #[error("cannot read the configuration directory {}: {error}; check that it exists and may be read", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The system's watches are used up or not there.
    #[error("cannot watch the configuration directory {}: {error}; raise fs.inotify.max_user_instances and fs.inotify.max_user_watches", path.display())]
    Watch {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The task that reads the directory ended early.
    #[error("reading the configuration directory was broken off: {0}; restart the agent")]
    Task(#[from] JoinError),
}

/// What a directory says at one moment.
#[derive(Debug)]
pub struct Snapshot {
    /// The parts of the mesh.
    pub builder: MeshBuilder,
    /// What is wrong, by file.
    pub diagnostics: Vec<Diagnostic>,
    /// How many objects of each kind are in force.
    pub counts: BTreeMap<String, usize>,
}

/// A directory of manifests and what it said last.
#[derive(Debug)]
pub struct DirectorySource {
    watch: Arc<Watch>,
    path: PathBuf,
    reader: Arc<Mutex<Reader>>,
    /// Whether something changed that was not read yet.
    changed: bool,
    task: Option<JoinHandle<Result<Option<Snapshot>, SourceError>>>,
}

impl DirectorySource {
    /// Reads the directory and begins to watch it.
    ///
    /// # Errors
    /// When the directory cannot be read or watched; a bad file in it is no error.
    pub fn open(
        path: impl Into<PathBuf>,
        settings: Settings,
    ) -> Result<(Self, Snapshot), SourceError> {
        let path = path.into();
        let path =
            std::path::absolute(&path).map_err(|error| SourceError::Directory { path, error })?;
        let watch = Watch::new().map_err(|error| SourceError::Watch {
            path: path.clone(),
            error,
        })?;
        let watch = Arc::new(watch);
        let mut reader = Reader {
            path: path.clone(),
            engine: Engine::new(settings),
            filed: BTreeMap::new(),
            watch: watch.clone(),
            files: BTreeMap::new(),
            store: Store::default(),
        };
        reader.load()?;
        let snapshot = reader.snapshot();
        let reader = Arc::new(Mutex::new(reader));
        Ok((
            Self {
                watch,
                path,
                reader,
                changed: false,
                task: None,
            },
            snapshot,
        ))
    }

    /// Waits until the objects in the directory change, and reads them. Cancel safe.
    ///
    /// # Errors
    /// When the directory is gone or cannot be read or watched. What it said last stays valid, and the next call
    /// waits for it to come back.
    pub async fn next(&mut self) -> Result<Snapshot, SourceError> {
        loop {
            let task = match &mut self.task {
                Some(task) => task,
                None => {
                    self.wait().await.map_err(|error| SourceError::Watch {
                        path: self.path.clone(),
                        error,
                    })?;
                    self.changed = false;
                    let reader = self.reader.clone();
                    self.task
                        .insert(spawn_blocking(move || lock(&reader).reload()))
                }
            };
            let outcome = task.await;
            self.task = None;
            if let Some(snapshot) = outcome?? {
                return Ok(snapshot);
            }
        }
    }

    /// Waits for a change and until it is complete.
    async fn wait(&mut self) -> io::Result<()> {
        if !self.changed {
            self.watch.changed().await?;
            self.changed = true;
        }
        self.watch.settled().await
    }
}

fn lock(reader: &Mutex<Reader>) -> MutexGuard<'_, Reader> {
    reader.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads the directory, file by file, and keeps what it read.
#[derive(Debug)]
struct Reader {
    path: PathBuf,
    engine: Engine,
    /// What the engine holds.
    filed: BTreeMap<Key, Resource>,
    watch: Arc<Watch>,
    files: BTreeMap<Arc<str>, File>,
    store: Store,
}

impl Reader {
    /// Reads the directory again; nothing when no file differs.
    fn reload(&mut self) -> Result<Option<Snapshot>, SourceError> {
        Ok(self.load()?.then(|| self.snapshot()))
    }

    fn snapshot(&mut self) -> Snapshot {
        let mut diagnostics = self.store.admit(&self.files);
        self.file();
        self.engine.commit();
        diagnostics.extend(self.engine.diagnostics().cloned());
        diagnostics.sort_by(|a, b| (&a.file, a.line).cmp(&(&b.file, b.line)));
        Snapshot {
            builder: self.engine.builder(),
            diagnostics,
            counts: self.store.counts(),
        }
    }

    /// Tells the engine what is in force now.
    fn file(&mut self) {
        let mut gone = std::mem::take(&mut self.filed);
        for resource in self.store.resources() {
            let key = resource.metadata().key.clone();
            gone.remove(&key);
            self.engine.put(resource.clone());
            self.filed.insert(key, resource.clone());
        }
        gone.keys().for_each(|key| self.engine.remove(key));
    }

    /// Reads the files; says whether any differs from before.
    fn load(&mut self) -> Result<bool, SourceError> {
        let found = walk::walk(&self.path, |directory, concern| {
            self.watch.add(directory, concern)
        })
        .map_err(|failure| {
            let path = self.path.clone();
            match failure {
                walk::Failure::Read(error) => SourceError::Directory { path, error },
                walk::Failure::Watch(error) => SourceError::Watch { path, error },
            }
        })?;
        self.watch.keep(&found.watched);
        let files = self.read_files(&found);
        let changed = files.len() != self.files.len()
            || files
                .iter()
                .zip(&self.files)
                .any(|((name, file), (old_name, old))| name != old_name || !file.is_same(old));
        self.files = files;
        Ok(changed)
    }

    fn read_files(&self, found: &walk::Found) -> BTreeMap<Arc<str>, File> {
        let mut files = BTreeMap::new();
        let mut left = MAX_DIRECTORY_BYTES;
        for (name, path) in &found.files {
            if let Some(file) = self.read_file(name, path, &mut left) {
                files.insert(name.clone(), file);
            }
        }
        for (directory, message) in &found.unreadable {
            let unreadable = || File::Unreadable {
                message: message.clone(),
                remedy: READABLE,
            };
            // Its files may still be there, so what they said stays in force.
            let below = self.files.keys().filter(|name| is_below(name, directory));
            files.extend(below.map(|name| (name.clone(), unreadable())));
            files.insert(directory.clone(), unreadable());
        }
        files
    }

    /// Reads one file, unless it is gone.
    fn read_file(&self, name: &Arc<str>, path: &Path, left: &mut u64) -> Option<File> {
        let text = match read_text(path, *left) {
            Ok(text) => text,
            Err(Unread::Gone) => return None,
            Err(Unread::Because { message, remedy }) => {
                return Some(File::Unreadable { message, remedy });
            }
        };
        *left -= text.len() as u64;
        match self.files.get(name) {
            Some(File::Read(contents)) if contents.text == text => {
                Some(File::Read(contents.clone()))
            }
            _ => Some(File::Read(Arc::new(Contents::read(name, text)))),
        }
    }
}

fn is_below(name: &str, directory: &str) -> bool {
    name.strip_prefix(directory)
        .is_some_and(|rest| rest.starts_with('/'))
}

const READABLE: &str = "make it readable for the agent";

enum Unread {
    Gone,
    Because {
        message: String,
        remedy: &'static str,
    },
}

fn read_text(path: &Path, left: u64) -> Result<String, Unread> {
    let because = |message: String, remedy| Unread::Because { message, remedy };
    let mut bytes = Vec::new();
    let read =
        fs::File::open(path).and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes));
    match read {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Unread::Gone),
        Err(error) => return Err(because(format!("cannot be read: {error}"), READABLE)),
        Ok(size) if size as u64 > MAX_FILE_BYTES => {
            let message = format!("not read: larger than {} MiB", MAX_FILE_BYTES >> 20);
            return Err(because(message, "split it into several files"));
        }
        Ok(size) if size as u64 > left => {
            let message = format!(
                "not read: the directory holds more than {} MiB",
                MAX_DIRECTORY_BYTES >> 20
            );
            return Err(because(message, "remove some files"));
        }
        Ok(_) => {}
    }
    String::from_utf8(bytes).map_err(|error| {
        let position = error.utf8_error().valid_up_to();
        because(
            format!("not text: byte {position} is not UTF-8"),
            "save the file as UTF-8",
        )
    })
}

#[cfg(test)]
mod tests;
