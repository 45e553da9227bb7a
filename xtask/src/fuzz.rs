//! Runs the fuzz targets in `tests/fuzz` with libFuzzer, guided by coverage, on the stable toolchain.

use std::fs;
use std::path::PathBuf;

use clap::ValueEnum;

use crate::command::{self, TaskError, cargo, command, target};

/// What makes the compiler count the edges that a run takes, for libFuzzer.
const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 --cfg fuzzing";

/// What to fuzz, and for how long.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The parser.
    target: FuzzTarget,
    /// How long, in seconds.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
}

/// A parser of what others wrote.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum FuzzTarget {
    /// Manifests in YAML.
    Manifest,
    /// Certificates in DER and PEM.
    Certificate,
    /// Baggage headers and identities.
    Baggage,
    /// Discovery resources in their wire form.
    Discovery,
    /// Requests of the API server to check a resource.
    Review,
}

/// Builds the target and runs it; what it learns is kept in the folder of build results.
///
/// # Errors
/// When it does not build, or an input breaks it; libFuzzer then names the file with that input.
pub fn run(options: &Options) -> Result<(), TaskError> {
    let name = options
        .target
        .to_possible_value()
        .map(|value| value.get_name().to_owned())
        .unwrap_or_default();
    let folder = target().join("fuzz");
    let corpus = folder.join("corpus").join(&name);
    fs::create_dir_all(&corpus).map_err(|source| TaskError::File {
        path: corpus.clone(),
        source,
    })?;
    // With a target named, the flags reach the code that is fuzzed and not the build scripts.
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let mut build = cargo(&[
        "build",
        "--release",
        "--manifest-path",
        "tests/fuzz/Cargo.toml",
        "--target",
        &triple,
        "--bin",
        &name,
    ]);
    build
        .env("RUSTFLAGS", COVERAGE)
        .env("CARGO_TARGET_DIR", &folder);
    command::run(&mut build)?;
    let program: PathBuf = folder.join(&triple).join("release").join(&name);
    let limits = [
        format!("-max_total_time={}", options.seconds),
        "-timeout=10".to_owned(),
        "-rss_limit_mb=2048".to_owned(),
        format!("-artifact_prefix={}/", folder.display()),
        corpus.display().to_string(),
    ];
    let limits: Vec<&str> = limits.iter().map(String::as_str).collect();
    command::run(&mut command(&program.to_string_lossy(), &limits))
}
