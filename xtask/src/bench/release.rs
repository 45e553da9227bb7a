//! The agent's release build, which is what is measured.

use std::env;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use undermesh_tests::agent::BINARY_VARIABLE;
use undermesh_tests::{Context, Error, Result};

use crate::command::cargo;

/// Returns when the environment names the agent's binary. Without that it builds one and replaces the
/// calling process by the same command with the binary named in its environment.
///
/// # Errors
/// When the build fails.
pub fn require_agent() -> Result<()> {
    if let Some(binary) = env::var_os(BINARY_VARIABLE) {
        return require_file(Path::new(&binary));
    }
    let binary = build()?;
    require_file(&binary)?;
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

fn build() -> Result<PathBuf> {
    let output = cargo(&["build", "--release", "--package", "undermesh"])
        .args(["--message-format", "json-render-diagnostics"])
        .stderr(Stdio::inherit())
        .output()
        .context(|| "run cargo")?;
    if !output.status.success() {
        return Err(Error::step("build the agent", output.status));
    }
    executable(&String::from_utf8_lossy(&output.stdout))
        .context(|| "find the agent among what cargo built")
}

/// The executable of the artifact `undermesh` in cargo's messages, one JSON object a line (The Cargo
/// Book, "External tools").
fn executable(messages: &str) -> Option<PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["reason"] == "compiler-artifact")
        .filter(|message| message["target"]["name"] == "undermesh")
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
            executable(messages),
            Some(PathBuf::from("/src/target/release/undermesh"))
        );
        assert_eq!(executable("not json\n"), None);
    }
}
