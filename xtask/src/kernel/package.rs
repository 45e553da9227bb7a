//! A kernel and its modules, unpacked from Debian packages.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::command::{self, TaskError, command};

/// A kernel that can be started.
#[derive(Debug)]
pub struct Kernel {
    /// Its release, as uname(2) tells it.
    pub release: String,
    /// Its image.
    pub file: PathBuf,
    /// The folder above `lib/modules`.
    root: PathBuf,
}

impl Kernel {
    /// Unpacks the packages into an empty `root` and finds the one kernel among their files.
    ///
    /// # Errors
    /// When a package cannot be unpacked, or there is no kernel in them.
    pub fn unpack(packages: &[PathBuf], root: &Path) -> Result<Self, TaskError> {
        empty(root)?;
        for package in packages {
            let mut unpack = command("dpkg-deb", &["--extract"]);
            let package = std::path::absolute(package).map_err(failed(package))?;
            command::run(unpack.arg(package).arg(root))?;
        }
        // Some distributions have the modules below /usr, where /lib leads on an installed system.
        let usual = root.join("lib");
        if !usual.exists() {
            symlink("usr/lib", &usual).map_err(failed(&usual))?;
        }
        let boot = root.join("boot");
        let images = fs::read_dir(&boot).map_err(failed(&boot))?;
        let mut releases = images.flatten().filter_map(|file| {
            let name = file.file_name().into_string().ok()?;
            Some(name.strip_prefix("vmlinuz-")?.to_owned())
        });
        let release = releases.next().ok_or(TaskError::NoKernel)?;
        let mut index = command("depmod", &["--basedir"]);
        command::run(index.arg(root).arg(&release))?;
        Ok(Self {
            file: boot.join(format!("vmlinuz-{release}")),
            root: root.to_owned(),
            release,
        })
    }

    /// Copies the named modules, and all that these need, to where `modprobe` finds them below `root`. Names that are no modules
    /// are built into the kernel.
    ///
    /// # Errors
    /// When a file cannot be read or written.
    pub fn copy_modules(&self, names: &[&str], root: &Path) -> Result<(), TaskError> {
        let folder = Path::new("lib/modules").join(&self.release);
        let (from, to) = (self.root.join(&folder), root.join(&folder));
        let index = from.join("modules.dep");
        let text = fs::read_to_string(&index).map_err(failed(&index))?;
        for file in needed(&text, names) {
            copy(&from.join(file), &to.join(file))?;
        }
        copy(&index, &to.join("modules.dep"))
    }
}

/// The files of the named modules and of all that these need, by an index as depmod(8) writes it.
fn needed<'a>(index: &'a str, names: &[&str]) -> BTreeSet<&'a str> {
    let modules: BTreeMap<&str, &str> = index
        .lines()
        .filter_map(|line| line.split_once(':'))
        .collect();
    let named = |file: &&str| name(file).is_some_and(|name| names.contains(&name));
    let mut open: VecDeque<&str> = modules.keys().copied().filter(named).collect();
    let mut found = BTreeSet::new();
    while let Some(file) = open.pop_front() {
        if found.insert(file) {
            let needs = modules.get(file).copied().unwrap_or_default();
            open.extend(needs.split_whitespace());
        }
    }
    found
}

/// The name of a module's file, without the endings of its form and compression.
fn name(file: &str) -> Option<&str> {
    Path::new(file)
        .file_name()
        .and_then(OsStr::to_str)?
        .split('.')
        .next()
}

/// Makes a folder anew.
pub fn empty(folder: &Path) -> Result<(), TaskError> {
    if folder.exists() {
        fs::remove_dir_all(folder).map_err(failed(folder))?;
    }
    fs::create_dir_all(folder).map_err(failed(folder))
}

/// Copies a file, and makes the folders that it needs.
pub fn copy(from: &Path, to: &Path) -> Result<(), TaskError> {
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder).map_err(failed(folder))?;
    }
    fs::copy(from, to).map_err(failed(from))?;
    Ok(())
}

/// Names the file of a failure.
pub fn failed(path: &Path) -> impl FnOnce(std::io::Error) -> TaskError {
    let path = path.to_owned();
    |source| TaskError::File { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_come_with_what_they_need() {
        let index = "kernel/net/ipv4/tcp_diag.ko: kernel/net/ipv4/inet_diag.ko\n\
                     kernel/net/ipv4/inet_diag.ko:\n\
                     kernel/drivers/net/veth.ko.xz:\n\
                     kernel/drivers/net/dummy.ko:\n";
        let files = needed(index, &["veth", "tcp_diag", "built-in"]);
        let expected = [
            "kernel/drivers/net/veth.ko.xz",
            "kernel/net/ipv4/inet_diag.ko",
            "kernel/net/ipv4/tcp_diag.ko",
        ];
        assert_eq!(files, expected.into());
    }
}
