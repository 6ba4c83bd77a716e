//! The Holdfast daemon and its command line. ARCHITECTURE.md says what is where.

mod backup;
mod bench;
mod cli;
mod config;
mod data;
mod dev;
mod env;
mod formation;
mod meta;
mod node;
mod placement;
mod s3;
mod service;
mod supervisor;
mod telemetry;
mod worker;

fn main() -> std::process::ExitCode {
    cli::main()
}
