//! Files that others read at any moment: whole, or not there.
use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufReader, Read, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

/// Permissions of the plugin: anyone may run it, root may replace it.
const PROGRAM_MODE: u32 = 0o755;
/// What is read at a time to compare or copy.
const PIECE: usize = 64 * 1024;

/// Reads a file of at most `longest` bytes.
pub fn read(path: &Path, longest: u64) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    File::open(path)?.take(longest + 1).read_to_end(&mut text)?;
    if text.len() as u64 > longest {
        let error = format!("it is longer than {longest} bytes");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, error));
    }
    Ok(text)
}

/// The permissions of a file.
pub fn mode(path: &Path) -> Result<u32, super::ChainError> {
    let metadata = fs::metadata(path).map_err(super::at(path))?;
    Ok(metadata.permissions().mode() & 0o777)
}

/// Writes a file, in one step.
pub fn write(path: &Path, text: &[u8], mode: u32) -> io::Result<()> {
    replace(path, mode, |file| file.write_all(text))
}

/// Copies a program, in one step; one that runs goes on from its old file.
pub fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let mut source = File::open(from)?;
    replace(to, PROGRAM_MODE, |file| {
        io::copy(&mut source, file).map(drop)
    })
}

/// Removes a file; one that is gone already is as good.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Whether `copy` is there, may be run, and holds the same as `original`.
pub fn same(original: &Path, copy: &Path) -> io::Result<bool> {
    let original = File::open(original)?;
    let Ok(copy) = File::open(copy) else {
        return Ok(false);
    };
    let (one, other) = (original.metadata()?, copy.metadata()?);
    let runs = other.permissions().mode() & 0o777 == PROGRAM_MODE;
    if !runs || !other.is_file() || one.len() != other.len() {
        return Ok(false);
    }
    let mut one = BufReader::with_capacity(PIECE, original);
    let mut other = BufReader::with_capacity(PIECE, copy);
    let (mut a, mut b) = (vec![0; PIECE], vec![0; PIECE]);
    loop {
        let (length, other_length) = (fill(&mut one, &mut a)?, fill(&mut other, &mut b)?);
        if a[..length] != b[..other_length] {
            return Ok(false);
        }
        if length == 0 {
            return Ok(true);
        }
    }
}

/// Reads until the buffer is full or the file ends.
fn fill(file: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match file.read(&mut buffer[length..])? {
            0 => break,
            more => length += more,
        }
    }
    Ok(length)
}

/// Writes beside the place, flushes, and renames.
fn replace(
    path: &Path,
    mode: u32,
    write: impl FnOnce(&mut File) -> io::Result<()>,
) -> io::Result<()> {
    let new = beside(path);
    let written = write_new(&new, mode, write).and_then(|()| fs::rename(&new, path));
    if written.is_err() {
        // The first error is the one to tell.
        let _ = remove(&new);
    }
    written?;
    // The rename itself is to survive a crash of the node.
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

fn write_new(
    new: &Path,
    mode: u32,
    write: impl FnOnce(&mut File) -> io::Result<()>,
) -> io::Result<()> {
    // What an agent that was killed has left is in the way.
    remove(new)?;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(new)?;
    // The process's mask may have taken some of the permissions.
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    write(&mut file)?;
    file.sync_all()
}

/// A name in the same folder that no container runtime reads.
fn beside(path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".undermesh-new");
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_nothing_is_left_beside() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.conflist");
        fs::write(beside(&path), "left by an agent that was killed").unwrap();
        write(&path, b"one", 0o600).unwrap();
        write(&path, b"two", 0o644).unwrap();
        assert_eq!(read(&path, 3).unwrap(), b"two");
        assert_eq!(mode(&path).unwrap(), 0o644);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        assert!(read(&path, 2).is_err());
    }

    #[test]
    fn a_write_that_fails_leaves_the_old_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.conflist");
        write(&path, b"one", 0o600).unwrap();
        let full = replace(&path, 0o600, |file| {
            file.write_all(b"tw")?;
            Err(io::ErrorKind::StorageFull.into())
        });
        assert!(full.is_err());
        assert_eq!(read(&path, 3).unwrap(), b"one");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn programs_are_compared_by_what_they_hold() {
        let folder = tempfile::tempdir().unwrap();
        let (one, other) = (folder.path().join("one"), folder.path().join("other"));
        let mut text = vec![7; PIECE + 1];
        fs::write(&one, &text).unwrap();
        assert!(!same(&one, &other).unwrap());
        copy(&one, &other).unwrap();
        assert!(same(&one, &other).unwrap());
        text[PIECE] = 8;
        fs::write(&one, &text).unwrap();
        assert!(!same(&one, &other).unwrap());
        copy(&one, &other).unwrap();
        fs::set_permissions(&other, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(!same(&one, &other).unwrap());
    }
}
