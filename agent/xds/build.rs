//! Compiles the wire's schemas.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["discovery.proto", "workload.proto", "authorization.proto"];
    for file in files {
        println!("cargo::rerun-if-changed=proto/{file}");
    }
    let descriptors = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure()
        .bytes(".")
        .compile_fds(descriptors)?;
    Ok(())
}
