//! The Holdfast daemon and its command line. ARCHITECTURE.md says what is where.

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
mod service;
mod supervisor;
mod telemetry;
mod worker;

fn main() -> std::process::ExitCode {
    cli::main()
}
