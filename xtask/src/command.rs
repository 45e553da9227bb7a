//! Runs other programs from the root of the repository.

use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use serde_json::Value;

/// Why a task failed.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// A program could not be started.
    #[error("cannot start {program}: {source}; is it installed and on the PATH?")]
    Start {
        /// The program.
        program: String,
        /// What the system said.
        source: io::Error,
    },
    /// A program ended with a failure, which it has described itself.
    #[error("`{command}` failed ({status}); see its messages above")]
    Failed {
        /// The command line.
        command: String,
        /// How it ended.
        status: ExitStatus,
    },
    /// Packages are missing and only root may install them.
    #[error("packages are missing, and only root may install them; run:\n\n    {command}\n")]
    NeedsRoot {
        /// The command that installs them.
        command: String,
    },
    /// The system has no `apt-get`.
    #[error(
        "programs are missing: {programs}; this is no Debian or Ubuntu, so install them by hand"
    )]
    NoPackages {
        /// What is missing.
        programs: String,
    },
    /// A program is neither on the PATH nor where Debian puts programs for root.
    #[error("{program} is not installed; install it, or put its folder on the PATH")]
    NoSuchProgram {
        /// The program.
        program: String,
    },
    /// Cargo did not say where a program is that it built.
    #[error("cargo did not say where it built {name}; report this as a bug")]
    NoProgram {
        /// The program.
        name: &'static str,
    },
    /// The packages hold no kernel.
    #[error(
        "there is no boot/vmlinuz-* in the packages; give the one with the kernel's image, such as linux-image-…-unsigned_….deb"
    )]
    NoKernel,
    /// Tests failed, or none ran, under another kernel.
    #[error("the tests did not pass under kernel {release}; see their messages above")]
    Kernel {
        /// The kernel.
        release: String,
    },
    /// The kernel programs' toolchain is incomplete.
    #[error(transparent)]
    Toolchain(#[from] undermesh_ebpf_build::Missing),
    /// The kernel programs do not build.
    #[error(transparent)]
    Programs(#[from] undermesh_ebpf_build::BuildError),
    /// A file of the build cannot be handled.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The root of the repository.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

/// The folder of build results.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| root().join("target"), |folder| root().join(folder))
}

/// A command at the root of the repository.
pub fn command(program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .current_dir(root())
        .stdin(Stdio::null());
    command
}

/// The cargo that runs this task.
pub fn cargo(arguments: &[&str]) -> Command {
    command(
        &std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned()),
        arguments,
    )
}

/// Runs a command to its end.
///
/// # Errors
/// When it cannot be started or fails.
pub fn run(command: &mut Command) -> Result<(), TaskError> {
    let status = command
        .status()
        .map_err(|source| not_started(command, source))?;
    ended_well(command, status)
}

/// Runs a command to its end and passes on what it prints, while `each` sees every line.
///
/// # Errors
/// When it cannot be started or fails.
pub fn run_reading(command: &mut Command, mut each: impl FnMut(&str)) -> Result<(), TaskError> {
    read_lines(command, |line| {
        println!("{line}");
        each(line);
    })
}

/// Runs a command to its end, while `each` sees every line that it prints.
///
/// # Errors
/// When it cannot be started or fails.
pub fn read_lines(command: &mut Command, mut each: impl FnMut(&str)) -> Result<(), TaskError> {
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|source| not_started(command, source))?;
    if let Some(output) = child.stdout.take() {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            each(String::from_utf8_lossy(&line).trim_end_matches('\r'));
        }
    }
    let status = child
        .wait()
        .map_err(|source| not_started(command, source))?;
    ended_well(command, status)
}

fn not_started(command: &Command, source: io::Error) -> TaskError {
    TaskError::Start {
        program: command.get_program().to_string_lossy().into_owned(),
        source,
    }
}

fn ended_well(command: &Command, status: ExitStatus) -> Result<(), TaskError> {
    if status.success() {
        return Ok(());
    }
    let words: Vec<_> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .collect();
    Err(TaskError::Failed {
        command: words.join(" "),
        status,
    })
}

/// The executable of the artifact `name` in cargo's messages, one JSON object a line (The Cargo Book,
/// "External tools").
pub fn executable(name: &str, messages: &str) -> Option<PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["reason"] == "compiler-artifact")
        .filter(|message| message["target"]["name"] == name)
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_executable_is_found_among_libraries_and_build_scripts() {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","target":{"name":"bytes","kind":["lib"]},"executable":null}"#,
            "\n",
            r#"{"reason":"build-script-executed","package_id":"libc"}"#,
            "\n",
            r#"{"reason":"compiler-artifact","target":{"name":"undermesh","kind":["bin"]},"executable":"/src/target/release/undermesh"}"#,
            "\n",
            r#"{"reason":"build-finished","success":true}"#,
            "\n",
        );
        assert_eq!(
            executable("undermesh", messages),
            Some(PathBuf::from("/src/target/release/undermesh"))
        );
        assert_eq!(executable("undermesh", "not json\n"), None);
    }
}
