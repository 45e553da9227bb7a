//! Release builds, which are what is measured.

use std::env;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use undermesh_tests::agent::BINARY_VARIABLE;
use undermesh_tests::{Context, Error, Result};

use crate::command::{self, cargo};

/// Returns when the environment names the agent's binary. Without that it builds one and replaces the
/// calling process by the same command with the binary named in its environment.
///
/// # Errors
/// When the build fails.
pub fn require_agent() -> Result<()> {
    if let Some(binary) = env::var_os(BINARY_VARIABLE) {
        return require_file(Path::new(&binary));
    }
    let binary = build("undermesh")?;
    // Not its path: a build in between may have replaced the file.
    let cause = Command::new("/proc/self/exe")
        .args(env::args_os().skip(1))
        .env(BINARY_VARIABLE, binary)
        .exec();
    Err(Error::step(
        "start the bench with the agent it built",
        cause,
    ))
}

fn require_file(binary: &Path) -> Result<()> {
    if binary.is_file() {
        return Ok(());
    }
    Err(Error::step(
        format!("find the agent at {}", binary.display()),
        format!("there is no such file; correct {BINARY_VARIABLE}, or unset it to build one"),
    ))
}

/// Builds the release of a package and returns its executable, which has the package's name.
///
/// # Errors
/// When the build fails.
pub fn build(package: &str) -> Result<PathBuf> {
    let output = cargo(&["build", "--release", "--package", package])
        .args(["--message-format", "json-render-diagnostics"])
        .stderr(Stdio::inherit())
        .output()
        .context(|| "run cargo")?;
    if !output.status.success() {
        return Err(Error::step(format!("build {package}"), output.status));
    }
    let messages = String::from_utf8_lossy(&output.stdout);
    let binary = command::executable(package, &messages)
        .context(|| format!("find {package} among what cargo built"))?;
    require_file(&binary)?;
    Ok(binary)
}
