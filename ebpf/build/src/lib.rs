//! Finds an eBPF toolchain and builds the kernel programs.
//!
//! Used by the build script that embeds the programs and by `cargo xtask`. The programs need a compiler
//! that takes unstable options, the standard library's source (for `-Z build-std=core`) and bpf-linker.
#![forbid(unsafe_code)]

mod toolchain;

use std::{
    io,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
};

pub use toolchain::{Missing, NIGHTLY, Part, Toolchain, probe};

/// The compilation target of programs for a little-endian kernel.
const TARGET: &str = "bpfel-unknown-none";

/// Compiler flags of the programs: type information for the verifier and the loader, and the layout
/// of the kernel's register structures. The separator is that of `CARGO_ENCODED_RUSTFLAGS`.
const RUST_FLAGS: [&str; 2] = ["-Cdebuginfo=2", "-Clink-arg=--btf"];

/// Paths of the built objects (ELF files for the BPF machine).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Objects {
    /// The programs attached once a node.
    pub node: PathBuf,
    /// The program attached once a pod.
    pub pod: PathBuf,
}

/// Why the programs were not built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The compiler could not be started.
    #[error("cannot start {program}: {source}; run `cargo xtask setup`")]
    Start {
        /// The program that was to run.
        program: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The compiler ran and refused.
    #[error("the kernel programs in {programs} do not build ({status}):\n{output}")]
    Compile {
        /// The folder of the programs.
        programs: PathBuf,
        /// How the compiler ended.
        status: ExitStatus,
        /// What it wrote.
        output: String,
    },
    /// A built object could not be put in place.
    #[error("cannot copy {from} to {to}: {source}; check that the folder exists and has room")]
    Copy {
        /// The object.
        from: PathBuf,
        /// Its destination.
        to: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Builds the programs of `programs_dir` with intermediate files in `target_dir` and puts the objects into `out_dir`.
///
/// # Errors
/// When the compiler cannot be started, refuses the source, or an object cannot be copied.
pub fn build(
    toolchain: &Toolchain,
    programs_dir: &Path,
    target_dir: &Path,
    out_dir: &Path,
) -> Result<Objects, BuildError> {
    compile(toolchain, programs_dir, target_dir)?;
    let built = target_dir.join(TARGET).join("release");
    Ok(Objects {
        node: put(&built.join("node"), &out_dir.join("node.o"))?,
        pod: put(&built.join("pod"), &out_dir.join("pod.o"))?,
    })
}

fn compile(toolchain: &Toolchain, programs: &Path, target_dir: &Path) -> Result<(), BuildError> {
    let mut command = toolchain.cargo();
    scrub(&mut command);
    toolchain.prepare(&mut command);
    command
        .current_dir(programs)
        .args([
            "build",
            "--release",
            "--locked",
            "--bins",
            "-Z",
            "build-std=core",
        ])
        .args(["--target", TARGET])
        .arg("--target-dir")
        .arg(target_dir)
        .env("CARGO_ENCODED_RUSTFLAGS", rust_flags())
        .stdin(Stdio::null());
    let output = command.output().map_err(|source| BuildError::Start {
        program: PathBuf::from(command.get_program()),
        source,
    })?;
    if output.status.success() {
        return Ok(());
    }
    Err(BuildError::Compile {
        programs: programs.to_owned(),
        status: output.status,
        output: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

fn rust_flags() -> String {
    let architecture = format!("--cfg=bpf_target_arch=\"{}\"", std::env::consts::ARCH);
    let mut flags = vec![architecture.as_str()];
    flags.extend(RUST_FLAGS);
    flags.join("\u{1f}")
}

/// Takes away what an outer cargo sets for its own build: with it the inner one would run the wrong
/// compiler, wrappers or flags.
fn scrub(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(is_of_outer_build) {
            command.env_remove(name);
        }
    }
}

/// Whether a variable steers a cargo build; where cargo keeps its downloads stays.
fn is_of_outer_build(name: &str) -> bool {
    const KEPT: [&str; 2] = ["CARGO_HOME", "CARGO_NET_OFFLINE"];
    const STEERING: [&str; 11] = [
        "CARGO",
        "RUSTC",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTC_LINKER",
        "RUSTC_BOOTSTRAP",
        "RUSTDOC",
        "RUSTFLAGS",
        "RUSTUP_TOOLCHAIN",
        "LD_LIBRARY_PATH",
        "CLIPPY_ARGS",
    ];
    !KEPT.contains(&name) && (STEERING.contains(&name) || name.starts_with("CARGO_"))
}

fn put(from: &Path, to: &Path) -> Result<PathBuf, BuildError> {
    match std::fs::copy(from, to) {
        Ok(_) => Ok(to.to_owned()),
        Err(source) => Err(BuildError::Copy {
            from: from.to_owned(),
            to: to.to_owned(),
            source,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outer_builds_settings_are_taken_away() {
        for name in [
            "RUSTC",
            "CARGO_ENCODED_RUSTFLAGS",
            "RUSTUP_TOOLCHAIN",
            "CARGO_MANIFEST_DIR",
        ] {
            assert!(is_of_outer_build(name), "{name}");
        }
        for name in ["PATH", "HOME", "CARGO_HOME", "RUST_BACKTRACE"] {
            assert!(!is_of_outer_build(name), "{name}");
        }
    }

    #[test]
    fn flags_are_separated_as_cargo_wants_them() {
        let flags = rust_flags();
        assert_eq!(flags.split('\u{1f}').count(), 3);
        assert!(flags.ends_with("-Clink-arg=--btf"));
    }
}
