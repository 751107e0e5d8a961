//! Compiles the .proto files with protox, so that no protoc has to be installed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = ["relabel/v1/session.proto", "relabel/v1/admin.proto", "relabel/v1/leases.proto"];
    let files = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure().compile_fds(files)?;
    Ok(())
}
