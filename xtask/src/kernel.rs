//! Runs the tests of capture under another kernel, in QEMU: the kernel comes from packages of Debian's or Ubuntu's.
mod image;
mod package;

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::command::{self, TaskError, cargo, command, run_reading, target};
use crate::setup;
use crate::tally::Tally;
use image::Image;
use package::Kernel;

/// What this needs, and the Debian package that has each.
const PROGRAMS: [(&str, &str); 4] = [
    ("busybox", "busybox-static"),
    ("cpio", "cpio"),
    ("depmod", "kmod"),
    ("qemu-system-x86_64", "qemu-system-x86"),
];
/// The tests that are run.
const TESTS: &str = "kernel";
/// Longest run of one kernel, in seconds: emulation without KVM is twenty times slower.
const LIMIT: &str = "1800";

/// Which kernel, and which of the tests.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// A package with a kernel and its modules, or several that make up one kernel
    /// (`apt-get download linux-image-6.1.0-56-cloud-amd64-unsigned`).
    #[arg(long = "package", value_name = "FILE.deb", required = true)]
    packages: Vec<PathBuf>,
    /// Run only the tests whose names contain this word.
    filter: Option<String>,
}

/// Starts the kernel with the tests as its only program.
///
/// # Errors
/// When a package holds no kernel, something does not build, or a test fails there.
pub fn run(options: &Options) -> Result<(), TaskError> {
    setup::run()?;
    setup::install(&PROGRAMS)?;
    let folder = target().join("kernel");
    let kernel = Kernel::unpack(&options.packages, &folder.join("package"))?;
    let tests = build()?;
    let image = Image::pack(
        &kernel,
        &tests,
        options.filter.as_deref(),
        &folder.join("image"),
    )?;
    println!("\n==> kernel {}", kernel.release);
    let tally = start(&kernel, &image)?;
    println!("\nkernel {}: {tally}", kernel.release);
    if tally.failed == 0 && tally.passed > 0 {
        return Ok(());
    }
    Err(TaskError::Kernel {
        release: kernel.release,
    })
}

/// Builds the tests; where their program is.
fn build() -> Result<PathBuf, TaskError> {
    let mut messages = String::new();
    let mut build = cargo(&[
        "test",
        "--package",
        "undermesh-capture",
        "--test",
        TESTS,
        "--no-run",
        "--message-format=json-render-diagnostics",
    ]);
    command::read_lines(&mut build, |line| {
        messages.push_str(line);
        messages.push('\n');
    })?;
    command::executable(TESTS, &messages).ok_or(TaskError::NoProgram { name: TESTS })
}

fn start(kernel: &Kernel, image: &Image) -> Result<Tally, TaskError> {
    let mut tally = Tally::default();
    run_reading(&mut machine(&kernel.file, &image.file), |line| {
        tally += Tally::of_line(line).unwrap_or_default();
    })?;
    Ok(tally)
}

/// Two processors, since the tests share listeners between two workers; the console is what is printed. QEMU before
/// 8.0 spoils the flags after `cmpxchg16b` at times, so the processor has none.
fn machine(kernel: &Path, image: &Path) -> Command {
    let mut qemu = command("timeout", &[LIMIT, "qemu-system-x86_64"]);
    qemu.args([
        "-accel",
        "tcg",
        "-cpu",
        "max,-cx16",
        "-smp",
        "2",
        "-m",
        "2G",
    ])
    .args(["-nographic", "-nic", "none", "-no-reboot"])
    .args([
        "-append",
        "console=ttyS0 quiet loglevel=1 panic=-1 rdinit=/init",
    ])
    .arg("-kernel")
    .arg(kernel)
    .arg("-initrd")
    .arg(image);
    qemu
}
