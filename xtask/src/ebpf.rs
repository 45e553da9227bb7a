//! Builds the kernel programs, as the build script of the capture crate does.

use std::fs;

use crate::command::{TaskError, root, target};

/// Builds the kernel programs into `target/ebpf`.
///
/// # Errors
/// When a tool is missing or the programs do not build.
pub fn run() -> Result<(), TaskError> {
    let toolchain = undermesh_ebpf_build::probe()?;
    let out = target().join("ebpf");
    fs::create_dir_all(&out).map_err(|source| TaskError::File {
        path: out.clone(),
        source,
    })?;
    let programs = root().join("ebpf/programs");
    let objects = undermesh_ebpf_build::build(&toolchain, &programs, &out.join("build"), &out)?;
    println!("built with {toolchain}:");
    for object in [objects.node, objects.pod] {
        println!("  {}", object.display());
    }
    Ok(())
}
