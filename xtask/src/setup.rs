//! Installs what building and testing need: programs by apt, the kernel programs' toolchain by rustup
//! or apt, bpf-linker by cargo. What is there already is left alone.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;
use undermesh_ebpf_build::{NIGHTLY, Part, probe};

use crate::command::{self, TaskError, cargo, command};

/// Programs and the Debian package that has each.
const PROGRAMS: &[(&str, &str)] = &[
    ("cc", "gcc"),
    ("containerd", "containerd"),
    ("curl", "curl"),
    ("initdb", "postgresql"),
    ("ip", "iproute2"),
    ("iperf3", "iperf3"),
    ("nginx", "nginx-light"),
    ("openssl", "openssl"),
    ("postgres", "postgresql"),
    ("psql", "postgresql-client"),
    ("redis-cli", "redis-tools"),
    ("redis-server", "redis-server"),
    ("runc", "runc"),
    ("setpriv", "util-linux"),
    ("tcpdump", "tcpdump"),
    ("wrk", "wrk"),
    ("zstd", "zstd"),
];

/// Files of packages that put no program on the PATH: the C library's headers, and the CNI plugins.
const FILES: [(&str, &str); 2] = [
    ("/usr/include/stdio.h", "libc6-dev"),
    ("/usr/lib/cni/bridge", "containernetworking-plugins"),
];

/// Debian's compiler with the source of `core`, for machines where rustup has no nightly.
const DEBIAN_COMPILER: [&str; 4] = ["cargo-web", DEBIAN_LLVM, "rust-web-src", "rustc-web"];

/// Debian's LLVM, which bpf-linker is linked with where its own binary cannot be fetched.
const DEBIAN_LLVM: &str = "llvm-22-dev";

/// Where the package puts it.
const DEBIAN_LLVM_PREFIX: &str = "/usr/lib/llvm-22";

/// The version of bpf-linker that the kernel programs are built with.
const LINKER_VERSION: &str = "0.13.0";

/// Tells Debian's packages whether to start their services on installation (invoke-rc.d(8)).
const SERVICE_POLICY: &str = "/usr/sbin/policy-rc.d";

/// Installs what is missing.
///
/// # Errors
/// When something is missing and cannot be installed here.
pub fn run() -> Result<(), TaskError> {
    let mut missing = missing_programs();
    let compiler_missing = lacks(Part::Compiler) && !install_nightly();
    if compiler_missing {
        missing.extend(DEBIAN_COMPILER);
    }
    install_packages(&missing)?;
    if lacks(Part::Linker) && !fetch_linker() {
        install_packages(&missing_llvm())?;
        build_linker()?;
    }
    let toolchain = probe()?;
    println!("everything is installed; the kernel programs are built with {toolchain}");
    Ok(())
}

/// Installs programs that only some tasks need, each with the Debian package that has it.
///
/// # Errors
/// When one is missing and cannot be installed here.
pub fn install(programs: &[(&str, &'static str)]) -> Result<(), TaskError> {
    install_packages(&missing(programs))
}

/// Where a program is.
///
/// # Errors
/// When it is not installed.
pub fn program(name: &str) -> Result<PathBuf, TaskError> {
    find(name).ok_or_else(|| TaskError::NoSuchProgram {
        program: name.to_owned(),
    })
}

fn lacks(part: Part) -> bool {
    probe().is_err_and(|missing| missing.parts().contains(&part))
}

fn missing_programs() -> BTreeSet<&'static str> {
    let mut missing = missing(PROGRAMS);
    let files = FILES.iter().filter(|(file, _)| !Path::new(file).exists());
    missing.extend(files.map(|(_, package)| *package));
    missing
}

/// The packages of those programs that are not installed.
fn missing(programs: &[(&str, &'static str)]) -> BTreeSet<&'static str> {
    programs
        .iter()
        .filter(|(program, _)| find(program).is_none())
        .map(|(_, package)| *package)
        .collect()
}

/// Looks for a program on the PATH, and where Debian puts programs for root and PostgreSQL's own.
fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let postgres = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .map(|version| version.path().join("bin"));
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .chain(postgres)
        .map(|folder| folder.join(program))
        .find(|path| path.is_file())
}

/// Asks rustup for a nightly with the library's source; whether it had one.
fn install_nightly() -> bool {
    let mut rustup = command(
        "rustup",
        &[
            "toolchain",
            "install",
            NIGHTLY,
            "--profile",
            "minimal",
            "--component",
            "rust-src",
            "--no-self-update",
        ],
    );
    command::run(&mut rustup).is_ok() && !lacks(Part::Compiler)
}

fn install_packages(packages: &BTreeSet<&str>) -> Result<(), TaskError> {
    if packages.is_empty() {
        return Ok(());
    }
    let list: Vec<_> = packages.iter().copied().collect();
    if find("apt-get").is_none() {
        return Err(TaskError::NoPackages {
            programs: list.join(", "),
        });
    }
    let install = ["install", "-y", "--no-install-recommends"];
    if !geteuid().is_root() {
        return Err(TaskError::NeedsRoot {
            command: format!("sudo apt-get {} {}", install.join(" "), list.join(" ")),
        });
    }
    let _no_services = ServicePolicy::deny()?;
    command::run(&mut command("apt-get", &["update"]))?;
    command::run(
        command("apt-get", &[&install[..], &list].concat())
            .env("DEBIAN_FRONTEND", "noninteractive"),
    )
}

/// Takes bpf-linker's own binary, unless Debian's LLVM is here to build it with; whether it is there now.
fn fetch_linker() -> bool {
    if missing_llvm().is_empty() {
        return false;
    }
    let fetched = fetch_archive();
    if let Err(error) = &fetched {
        eprintln!("bpf-linker's binary cannot be fetched, so it will be built: {error}");
    }
    fetched.is_ok() && !lacks(Part::Linker)
}

fn fetch_archive() -> Result<(), TaskError> {
    let folder = cargo_home().join("bin");
    let archive = folder.join("bpf-linker.tar.zst");
    let url = format!(
        "https://github.com/aya-rs/bpf-linker/releases/download/v{LINKER_VERSION}/\
         bpf-linker-{}-unknown-linux-musl.tar.zst",
        std::env::consts::ARCH
    );
    let mut fetch = command("curl", &["--proto", "=https", "--fail", "--location", &url]);
    command::run(fetch.arg("--output").arg(&archive))?;
    let mut unpack = command("tar", &["--zstd", "--extract", "--file"]);
    command::run(unpack.arg(&archive).arg("--directory").arg(&folder))?;
    fs::remove_file(&archive).map_err(|source| TaskError::File {
        path: archive,
        source,
    })
}

fn missing_llvm() -> BTreeSet<&'static str> {
    let present = Path::new(DEBIAN_LLVM_PREFIX).exists();
    (!present).then_some(DEBIAN_LLVM).into_iter().collect()
}

/// Builds bpf-linker with Debian's LLVM, which is not older than that of either compiler.
fn build_linker() -> Result<(), TaskError> {
    let mut build = cargo(&["install", "bpf-linker", "--version", LINKER_VERSION]);
    build
        .args(["--no-default-features", "--features", "llvm-22"])
        .env("LLVM_PREFIX", DEBIAN_LLVM_PREFIX);
    command::run(&mut build)
}

fn cargo_home() -> PathBuf {
    std::env::var_os("CARGO_HOME").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cargo"),
        PathBuf::from,
    )
}

/// Keeps packages from starting their services, for as long as it lives.
#[derive(Debug)]
struct ServicePolicy {
    ours: bool,
}

impl ServicePolicy {
    /// Denies the start of services, unless the machine has a policy of its own.
    fn deny() -> Result<Self, TaskError> {
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o755)
            .open(SERVICE_POLICY);
        let written = match file {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                return Ok(Self { ours: false });
            }
            Err(error) => Err(error),
            // 101 is "action forbidden by policy".
            Ok(mut file) => file.write_all(b"#!/bin/sh\nexit 101\n"),
        };
        written
            .map(|()| Self { ours: true })
            .map_err(|source| TaskError::File {
                path: SERVICE_POLICY.into(),
                source,
            })
    }
}

impl Drop for ServicePolicy {
    fn drop(&mut self) {
        if self.ours
            && let Err(error) = fs::remove_file(SERVICE_POLICY)
        {
            eprintln!("warning: remove {SERVICE_POLICY} yourself: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_is_built_with_the_same_toolchain() {
        let dockerfile = include_str!("../../deploy/Dockerfile");
        for word in [NIGHTLY, &format!("/v{LINKER_VERSION}/bpf-linker-")] {
            assert!(
                dockerfile.contains(word),
                "{word} is not in deploy/Dockerfile"
            );
        }
    }
}
