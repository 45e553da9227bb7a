//! The file system that a kernel starts with: the tests, what they run, and a script that starts them.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::package::{Kernel, copy, empty, failed};
use crate::command::{self, TaskError, command};
use crate::setup;

/// Where the tests are in the image.
const TESTS: &str = "kernel-tests";
/// Programs that the tests run.
const PROGRAMS: [&str; 3] = ["bash", "cat", "ip"];
/// Modules that the tests need, where they are not part of the kernel.
const MODULES: [&str; 2] = ["veth", "tcp_diag"];
/// Folders on which file systems are mounted.
const MOUNTS: [&str; 5] = ["dev", "proc", "run", "sys", "tmp"];

/// A packed file system.
#[derive(Debug)]
pub struct Image {
    /// Its file, in the form that the kernel's initramfs takes.
    pub file: PathBuf,
}

impl Image {
    /// Packs `tests` in a new `folder`, to be run with a word that their names contain.
    ///
    /// # Errors
    /// When a file cannot be found or copied.
    pub fn pack(
        kernel: &Kernel,
        tests: &Path,
        filter: Option<&str>,
        folder: &Path,
    ) -> Result<Self, TaskError> {
        let root = folder.join("root");
        empty(&root)?;
        for name in MOUNTS {
            let mount = root.join(name);
            fs::create_dir(&mount).map_err(failed(&mount))?;
        }
        strip(tests, &root.join(TESTS))?;
        copy(&setup::program("busybox")?, &root.join("bin/busybox"))?;
        let mut libraries = libraries(tests)?;
        for name in PROGRAMS {
            let program = setup::program(name)?;
            libraries.extend(self::libraries(&program)?);
            copy(&program, &root.join("bin").join(name))?;
        }
        for library in &libraries {
            copy(library, &inside(&root, library))?;
        }
        kernel.copy_modules(&MODULES, &root)?;
        write_script(&root.join("init"), filter)?;
        let file = folder.join("initramfs");
        command::run(
            command("sh", &["-c", ARCHIVE])
                .current_dir(&root)
                .env("ARCHIVE", &file),
        )?;
        Ok(Self { file })
    }
}

/// Packs the current folder in the form that the kernel takes (kernel documentation, driver-api/early-userspace/buffer-format).
const ARCHIVE: &str = r#"find . | cpio --quiet --create --format=newc > "$ARCHIVE""#;

fn strip(from: &Path, to: &Path) -> Result<(), TaskError> {
    let mut strip = command("strip", &["-o"]);
    command::run(strip.arg(to).arg(from))
}

/// The shared libraries of a program, with the loader, by ldd(1).
fn libraries(program: &Path) -> Result<BTreeSet<PathBuf>, TaskError> {
    let mut libraries = BTreeSet::new();
    let mut ldd = command("ldd", &[]);
    command::read_lines(ldd.arg(program), |line| {
        let path = line.split_whitespace().find(|word| word.starts_with('/'));
        libraries.extend(path.map(PathBuf::from));
    })?;
    Ok(libraries)
}

fn inside(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// What runs as the first process.
fn write_script(file: &Path, filter: Option<&str>) -> Result<(), TaskError> {
    let script = format!(
        "#!/bin/busybox sh\n\
         export PATH=/bin\n\
         busybox mount -t devtmpfs dev /dev\n\
         busybox mount -t proc proc /proc\n\
         busybox mount -t sysfs sys /sys\n\
         busybox mount -t cgroup2 cgroup /sys/fs/cgroup\n\
         busybox mount -t tmpfs tmp /tmp\n\
         for module in {modules}; do busybox modprobe $module 2>/dev/null; done\n\
         /{TESTS} '{filter}' 2>&1\n\
         busybox poweroff -f\n",
        modules = MODULES.join(" "),
        filter = filter.unwrap_or_default().replace('\'', ""),
    );
    fs::write(file, script).map_err(failed(file))?;
    fs::set_permissions(file, fs::Permissions::from_mode(0o755)).map_err(failed(file))
}
