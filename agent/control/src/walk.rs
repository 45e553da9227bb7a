//! Finds the manifests below a directory, and every directory whose change can change them.
//!
//! A mounted ConfigMap is a directory of links through `..data`, itself a link that is replaced at every update;
//! so a directory that holds a link on the way to a file is watched like the one that holds the file.
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ffi::{OsStr, OsString},
    fs, io,
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use crate::watch::Concern;

/// Most files in one directory.
pub const MAX_FILES: usize = 10_000;
/// Most directories that are read.
pub const MAX_DIRECTORIES: usize = 1_000;
/// Most links on the way to one file, as in the kernel (path_resolution(7)).
const MAX_LINKS: usize = 40;

const EXTENSIONS: &[&str] = &["yaml", "yml", "json"];

/// What is below a directory.
#[derive(Debug, Default)]
pub struct Found {
    /// Manifests: name relative to the directory, and path.
    pub files: BTreeMap<Arc<str>, PathBuf>,
    /// Directories and files that cannot be looked into, and why.
    pub unreadable: Vec<(Arc<str>, String)>,
    /// Every directory that was watched, and for what.
    pub watched: BTreeMap<PathBuf, Concern>,
}

/// Why nothing was found.
#[derive(Debug)]
pub enum Failure {
    /// The directory cannot be read.
    Read(io::Error),
    /// The directory cannot be watched.
    Watch(io::Error),
}

/// Finds the manifests below `root`. Each directory is given to `watch` before it is read, so that no change
/// falls between the two.
pub fn walk(
    root: &Path,
    watch: impl Fn(PathBuf, Concern) -> io::Result<()>,
) -> Result<Found, Failure> {
    let mut walk = Walk {
        found: Found::default(),
        seen: BTreeSet::new(),
        watch,
    };
    walk.watch_way_to(root);
    let mut queue = VecDeque::from([(String::new(), root.to_owned())]);
    while let Some((name, path)) = queue.pop_front() {
        let is_root = name.is_empty();
        match walk.read_directory(&name, &path, &mut queue) {
            Ok(()) => {}
            Err(failure) if is_root => return Err(failure),
            Err(Failure::Read(error)) if error.kind() == io::ErrorKind::NotFound => {}
            Err(Failure::Read(error)) => walk.refuse(&name, format!("cannot be read: {error}")),
            Err(Failure::Watch(error)) => return Err(Failure::Watch(error)),
        }
    }
    Ok(walk.found)
}

struct Walk<W> {
    found: Found,
    /// Directories by their true path; a link back up is not followed twice.
    seen: BTreeSet<PathBuf>,
    watch: W,
}

impl<W: Fn(PathBuf, Concern) -> io::Result<()>> Walk<W> {
    fn read_directory(
        &mut self,
        name: &str,
        path: &Path,
        queue: &mut VecDeque<(String, PathBuf)>,
    ) -> Result<(), Failure> {
        let true_path = fs::canonicalize(path).map_err(Failure::Read)?;
        if self.seen.contains(&true_path) {
            return Ok(());
        }
        if self.seen.len() >= MAX_DIRECTORIES {
            self.refuse(
                name,
                format!("not read: there are more than {MAX_DIRECTORIES} directories"),
            );
            return Ok(());
        }
        self.seen.insert(true_path);
        self.watch(path.to_owned(), Concern::All)
            .map_err(|error| match error.kind() {
                io::ErrorKind::NotFound
                | io::ErrorKind::PermissionDenied
                | io::ErrorKind::NotADirectory => Failure::Read(error),
                _ => Failure::Watch(error),
            })?;
        for entry in fs::read_dir(path).map_err(Failure::Read)? {
            let entry = entry.map_err(Failure::Read)?;
            self.add_entry(name, &entry.path(), queue);
        }
        Ok(())
    }

    fn add_entry(&mut self, parent: &str, path: &Path, queue: &mut VecDeque<(String, PathBuf)>) {
        let Some(file_name) = path.file_name().map(OsStr::to_string_lossy) else {
            return;
        };
        // Hidden names are of version control, of editors at work, and of the parts of a mounted ConfigMap.
        if file_name.starts_with('.') {
            return;
        }
        let name = if parent.is_empty() {
            file_name.into_owned()
        } else {
            format!("{parent}/{file_name}")
        };
        let is_link = path.is_symlink();
        if is_link {
            self.watch_way_to(path);
        }
        match fs::metadata(path) {
            Ok(metadata) if metadata.is_dir() => queue.push_back((name, path.to_owned())),
            Ok(metadata) if metadata.is_file() && has_extension(path) => self.add_file(name, path),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if has_extension(path) => {
                self.refuse(&name, format!("cannot be read: {error}"))
            }
            Err(_) => {}
        }
    }

    fn add_file(&mut self, name: String, path: &Path) {
        if self.found.files.len() < MAX_FILES {
            self.found.files.insert(Arc::from(name), path.to_owned());
        } else {
            self.refuse(
                &name,
                format!("not read: there are more than {MAX_FILES} files"),
            );
        }
    }

    /// Watches for `path` itself being replaced, and for the links on the way to what it means.
    fn watch_way_to(&mut self, path: &Path) {
        let itself = path
            .parent()
            .zip(path.file_name())
            .map(|(above, name)| (above.to_owned(), name.to_owned()));
        for (directory, name) in itself.into_iter().chain(links_and_end_of(path)) {
            // One that cannot be watched only makes its changes late; what it leads to is still read.
            if let Err(error) = self.watch(directory.clone(), Concern::name(name)) {
                tracing::warn!(directory = %directory.display(), %error, "changes of a link to a manifest go unnoticed");
            }
        }
    }

    fn watch(&mut self, directory: PathBuf, concern: Concern) -> io::Result<()> {
        (self.watch)(directory.clone(), concern.clone())?;
        self.found
            .watched
            .entry(directory)
            .or_insert_with(|| concern.clone())
            .join(concern);
        Ok(())
    }

    fn refuse(&mut self, name: &str, message: String) {
        self.found.unreadable.push((Arc::from(name), message));
    }
}

fn has_extension(path: &Path) -> bool {
    path.extension()
        .and_then(OsStr::to_str)
        .is_some_and(|extension| EXTENSIONS.contains(&extension))
}

/// The symbolic links on the way to what the absolute `path` means, and that itself: directory and name of each.
fn links_and_end_of(path: &Path) -> Vec<(PathBuf, OsString)> {
    let mut links = Vec::new();
    let mut rest = components(path);
    let mut resolved = PathBuf::new();
    while let Some(component) = rest.pop_front() {
        if component == ".." {
            resolved.pop();
            continue;
        }
        let directory = resolved.clone();
        resolved.push(&component);
        let Ok(target) = fs::read_link(&resolved) else {
            continue;
        };
        if links.len() >= MAX_LINKS {
            break;
        }
        links.push((directory.clone(), component));
        resolved = directory;
        for component in components(&target).into_iter().rev() {
            rest.push_front(component);
        }
    }
    let end = resolved.parent().zip(resolved.file_name());
    links.extend(end.map(|(above, name)| (above.to_owned(), name.to_owned())));
    links
}

fn components(path: &Path) -> VecDeque<OsString> {
    let relevant = path
        .components()
        .filter(|component| *component != Component::CurDir);
    relevant
        .map(|component| component.as_os_str().to_owned())
        .collect()
}
