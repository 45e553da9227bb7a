//! Compiles the wire's schemas.

/// Messages that hold private keys: they get no `Debug`, so that no key reaches a log.
const SECRET: [&str; 4] = [
    "spire.api.agent.delegatedidentity.v1.X509SVIDWithKey",
    "spire.api.agent.delegatedidentity.v1.SubscribeToX509SVIDsResponse",
    ".X509SVID",
    ".X509SVIDResponse",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "citadel.proto",
        "spire/delegatedidentity.proto",
        "spire/types.proto",
        "spire/workload.proto",
    ];
    for file in files {
        println!("cargo::rerun-if-changed=proto/{file}");
    }
    let descriptors = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure()
        .skip_debug(SECRET)
        .compile_fds(descriptors)?;
    Ok(())
}
