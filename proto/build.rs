//! Compiles the .proto files with protox, so that no protoc is needed.

use std::error::Error;

const FILES: [&str; 6] =
    ["common.proto", "data.proto", "machine.proto", "meta.proto", "admin.proto", "raft.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    // Shard bodies and ids stay `Bytes` end to end: no copy on decode.
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
