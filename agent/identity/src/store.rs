//! The CA's files: a root made once even if several nodes start together, keys that only the owner can read.
use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use zeroize::Zeroizing;

/// Largest key or certificate file that is read, in bytes.
pub const MAX_FILE_BYTES: u64 = 1024 * 1024;

const KEY_MODE: u32 = 0o600;
const CERTIFICATE_MODE: u32 = 0o644;
const DIRECTORY_MODE: u32 = 0o700;
const READABLE_BY_OTHERS: u32 = 0o077;
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// Why the CA's files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file system refused.
    #[error("cannot {action} {}: {error}", .path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        error: io::Error,
    },
    /// Others can read the key.
    #[error("the CA key {} has mode {mode:03o}, so others than its owner can use it; chmod 600 it (for a Kubernetes Secret volume set defaultMode: 0400)", .path.display())]
    ExposedKey {
        /// The key file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Others can replace the key.
    #[error("the CA directory {} has mode {mode:03o}, so others than its owner can replace the root; chmod 700 it", .path.display())]
    ExposedDirectory {
        /// The directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// No CA file is that large.
    #[error("{} is larger than {MAX_FILE_BYTES} bytes, which no key or certificate is; check the path", .0.display())]
    TooLarge(PathBuf),
}

impl StoreError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |error| Self::Io {
            action,
            path,
            error,
        }
    }
}

/// Who may read a file that is published.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Secrecy {
    /// Its owner.
    Key,
    /// Everybody.
    Certificate,
}

/// Makes the directory if it is missing; refuses one in which others can replace files.
pub(crate) fn prepare_directory(path: &Path) -> Result<(), StoreError> {
    DirBuilder::new()
        .recursive(true)
        .mode(DIRECTORY_MODE)
        .create(path)
        .map_err(StoreError::io("create the directory", path))?;
    let mode = fs::metadata(path)
        .map_err(StoreError::io("inspect", path))?
        .mode()
        & 0o777;
    if mode & WRITABLE_BY_OTHERS != 0 {
        return Err(StoreError::ExposedDirectory {
            path: path.to_owned(),
            mode,
        });
    }
    Ok(())
}

/// Reads a file with certificates; `None` if there is no such file.
pub(crate) fn read_certificates(path: &Path) -> Result<Option<Vec<u8>>, StoreError> {
    let Some(file) = open(path)? else {
        return Ok(None);
    };
    read_bounded(file, path).map(Some)
}

/// Reads a file with a private key; `None` if there is no such file.
pub(crate) fn read_key(path: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, StoreError> {
    let Some(file) = open(path)? else {
        return Ok(None);
    };
    // Asked of the open file: the path could name another one by now.
    let mode = file
        .metadata()
        .map_err(StoreError::io("inspect", path))?
        .mode()
        & 0o777;
    if mode & READABLE_BY_OTHERS != 0 {
        return Err(StoreError::ExposedKey {
            path: path.to_owned(),
            mode,
        });
    }
    read_bounded(file, path).map(|content| Some(Zeroizing::new(content)))
}

/// Puts a whole file at `path` unless there is one already: the first of several writers wins, and nobody ever sees
/// half a file. The caller reads the file afterwards to see whose it is.
pub(crate) fn publish(path: &Path, content: &[u8], secrecy: Secrecy) -> Result<(), StoreError> {
    let temporary = path.with_extension(format!("{:016x}.tmp", rand::random::<u64>()));
    let written =
        write_new(&temporary, content, secrecy).map_err(StoreError::io("write", &temporary));
    let linked = written.and_then(|()| match fs::hard_link(&temporary, path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other.map_err(StoreError::io("create", path)),
    });
    let removed = fs::remove_file(&temporary).map_err(StoreError::io("remove", &temporary));
    linked.and(removed)?;
    sync_directory(path)
}

fn write_new(path: &Path, content: &[u8], secrecy: Secrecy) -> io::Result<()> {
    let mode = match secrecy {
        Secrecy::Key => KEY_MODE,
        Secrecy::Certificate => CERTIFICATE_MODE,
    };
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

fn sync_directory(path: &Path) -> Result<(), StoreError> {
    let Some(directory) = path.parent() else {
        return Ok(());
    };
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(StoreError::io("sync", directory))
}

fn open(path: &Path) -> Result<Option<File>, StoreError> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(StoreError::io("open", path)(error)),
    }
}

fn read_bounded(file: File, path: &Path) -> Result<Vec<u8>, StoreError> {
    // Sized at once, so that a growing buffer leaves no copies of a key behind.
    let length = file
        .metadata()
        .map_err(StoreError::io("inspect", path))?
        .len();
    if length > MAX_FILE_BYTES {
        return Err(StoreError::TooLarge(path.to_owned()));
    }
    let mut content = Vec::with_capacity(usize::try_from(length).unwrap_or_default() + 1);
    file.take(MAX_FILE_BYTES + 1)
        .read_to_end(&mut content)
        .map_err(StoreError::io("read", path))?;
    if content.len() as u64 > MAX_FILE_BYTES {
        return Err(StoreError::TooLarge(path.to_owned()));
    }
    Ok(content)
}
