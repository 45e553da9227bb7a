//! Builds the kernel programs, which the crate embeds.
use std::{env, error::Error, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let ebpf = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?)
        .join("../../ebpf")
        .canonicalize()?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    for watched in [
        "programs/src",
        "programs/Cargo.toml",
        "programs/Cargo.lock",
        "abi/src",
    ] {
        println!("cargo::rerun-if-changed={}", ebpf.join(watched).display());
    }
    let toolchain = undermesh_ebpf_build::probe()?;
    undermesh_ebpf_build::build(
        &toolchain,
        &ebpf.join("programs"),
        &out.join("target"),
        &out,
    )?;
    Ok(())
}
