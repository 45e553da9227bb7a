//! The search for a compiler, the standard library's source and the linker.
use std::{
    env,
    ffi::OsString,
    fmt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// The toolchain of rustup's that builds the programs. It is pinned, because its LLVM (22) may not be newer than the
/// linker's.
pub const NIGHTLY: &str = "nightly-2026-05-01";
/// Debian's compiler, of the package `rustc-web`.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
/// Debian's cargo, of the package `cargo-web`.
const DEBIAN_CARGO: &str = "/usr/bin/cargo";
/// Where a compiler's sysroot has the source of `core`.
const CORE_SOURCE: &str = "lib/rustlib/src/rust/library/core/Cargo.toml";
/// The oldest stable release of Debian's compiler that builds the programs (edition 2024).
const OLDEST_MINOR: u32 = 85;
const LINKER: &str = "bpf-linker";

/// A complete set of tools for building the programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Toolchain {
    compiler: Compiler,
    /// The folder of bpf-linker.
    linker_dir: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compiler {
    /// rustup's [`NIGHTLY`] with the component `rust-src`.
    Nightly,
    /// Debian's `rustc-web`, `cargo-web` and `rust-web-src`.
    Debian,
}

/// A part of the toolchain that was not found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Neither rustup's nightly nor Debian's compiler with the library's source.
    Compiler,
    /// bpf-linker, neither on the PATH nor in cargo's folder.
    Linker,
}

/// What has to be installed before the programs can be built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    parts: Vec<Part>,
}

impl Missing {
    /// The parts that were not found; never empty.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }
}

impl std::error::Error for Missing {}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the kernel programs cannot be built; missing: ")?;
        for (index, part) in self.parts.iter().enumerate() {
            let joint = if index == 0 { "" } else { ", and " };
            write!(f, "{joint}{}", part.description())?;
        }
        f.write_str("; run `cargo xtask setup`, which installs what is missing")
    }
}

impl Part {
    fn description(self) -> &'static str {
        match self {
            Self::Compiler => {
                "a compiler with the standard library's source (rustup's nightly-2026-05-01 with \
                 rust-src, or Debian's rustc-web, cargo-web and rust-web-src)"
            }
            Self::Linker => "bpf-linker (on the PATH or in ~/.cargo/bin)",
        }
    }
}

impl Toolchain {
    /// The command that starts this toolchain's cargo, without arguments.
    pub(crate) fn cargo(&self) -> Command {
        match self.compiler {
            Compiler::Nightly => nightly("cargo"),
            Compiler::Debian => Command::new(DEBIAN_CARGO),
        }
    }

    /// Sets what the compiler needs in its environment.
    pub(crate) fn prepare(&self, command: &mut Command) {
        command.env("PATH", self.path());
        if self.compiler == Compiler::Debian {
            // The name of the compiler must be whole: rustup's shim may come first on the PATH.
            command
                .env("RUSTC", DEBIAN_RUSTC)
                .env("RUSTC_BOOTSTRAP", "1");
        }
    }

    fn path(&self) -> OsString {
        let mut path = OsString::from(&self.linker_dir);
        if let Some(inherited) = env::var_os("PATH") {
            path.push(":");
            path.push(inherited);
        }
        path
    }
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let compiler = match self.compiler {
            Compiler::Nightly => NIGHTLY,
            Compiler::Debian => "Debian's rustc-web",
        };
        write!(
            f,
            "{compiler} with {}",
            self.linker_dir.join(LINKER).display()
        )
    }
}

/// Finds a toolchain: rustup's nightly first, then Debian's packages.
///
/// # Errors
/// [`Missing`] names everything that was not found, and the command that installs it.
pub fn probe() -> Result<Toolchain, Missing> {
    match (compiler(), linker_dir()) {
        (Some(compiler), Some(linker_dir)) => Ok(Toolchain {
            compiler,
            linker_dir,
        }),
        (compiler, linker_dir) => {
            let mut parts = Vec::new();
            if compiler.is_none() {
                parts.push(Part::Compiler);
            }
            if linker_dir.is_none() {
                parts.push(Part::Linker);
            }
            Err(Missing { parts })
        }
    }
}

fn compiler() -> Option<Compiler> {
    if has_source(nightly("rustc")) {
        return Some(Compiler::Nightly);
    }
    let recent = answer(Command::new(DEBIAN_RUSTC).arg("--version"))
        .as_deref()
        .and_then(minor_version)
        .is_some_and(|minor| minor >= OLDEST_MINOR);
    let complete = Path::new(DEBIAN_CARGO).exists() && has_source(Command::new(DEBIAN_RUSTC));
    (recent && complete).then_some(Compiler::Debian)
}

fn nightly(program: &str) -> Command {
    let mut command = Command::new("rustup");
    // A missing toolchain is reported, never downloaded behind the user's back.
    command
        .args(["run", NIGHTLY, program])
        .env("RUSTUP_AUTO_INSTALL", "0");
    command
}

fn has_source(mut rustc: Command) -> bool {
    answer(rustc.args(["--print", "sysroot"]))
        .is_some_and(|sysroot| Path::new(&sysroot).join(CORE_SOURCE).exists())
}

/// The first line that a command prints, if it succeeds.
fn answer(command: &mut Command) -> Option<String> {
    let output = command
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTUP_TOOLCHAIN")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    if !output.status.success() {
        return None;
    }
    String::from_utf8(output.stdout)
        .ok()?
        .lines()
        .next()
        .map(str::to_owned)
}

/// The `96` of `rustc 1.96.0 (...)`.
fn minor_version(version: &str) -> Option<u32> {
    version
        .strip_prefix("rustc 1.")?
        .split('.')
        .next()?
        .parse()
        .ok()
}

fn linker_dir() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let cargo_home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let default_home = env::var_os("HOME").map(|home| Path::new(&home).join(".cargo"));
    env::split_paths(&path)
        .chain(
            [cargo_home, default_home]
                .into_iter()
                .flatten()
                .map(|home| home.join("bin")),
        )
        .find(|folder| folder.join(LINKER).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_minor_version_is_read() {
        assert_eq!(
            minor_version("rustc 1.96.0 (ac68faa20 2026-05-25)"),
            Some(96)
        );
        assert_eq!(minor_version("rustc 2.0.0"), None);
        assert_eq!(minor_version("gcc 12"), None);
    }

    #[test]
    fn what_is_missing_is_said_in_one_message_with_the_remedy() {
        let missing = Missing {
            parts: vec![Part::Compiler, Part::Linker],
        };
        let message = missing.to_string();
        for word in [
            NIGHTLY,
            "rust-src",
            "rustc-web",
            "bpf-linker",
            "cargo xtask setup",
        ] {
            assert!(message.contains(word), "{word} is not in {message}");
        }
    }
}
