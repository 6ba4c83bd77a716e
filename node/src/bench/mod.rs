//! `holdfast bench`: what a zone, or any S3 endpoint, does per second and what it costs per operation.
//!
//! Each size goes through its operations in one order: PUT, GET, mixed, HEAD, LIST, DELETE, each for a chosen time with
//! a chosen number of requests in flight. Processes named by pid are read from `/proc` around every phase, so the CPU
//! in the table is the servers' and never the generator's. `bench ceiling` puts the same load on a bare hyper server
//! and on plain files with fdatasync: what this machine could do at all, in the same run.
//!
//! A run creates a bucket of its own and removes it at the end; an interrupted run leaves that bucket behind.

mod args;
mod body;
mod ceiling;
mod load;
mod operation;
mod process;
mod repair;
mod report;

use std::io::Write;

pub(crate) use args::BenchArgs;
use args::{BenchCommand, CeilingCommand, LoadArgs};
use report::Report;

/// Runs the benchmark and prints its table or JSON to standard output. Progress goes to standard error.
///
/// An error is a setup that does not work (endpoint, credentials, no such process). Operations that fail are counted.
pub(crate) async fn run(args: BenchArgs) -> anyhow::Result<()> {
    match args.command {
        None => {
            let mut report = load::run(&args.load).await?;
            if args.load.with_ceiling {
                report.phases.extend(ceiling::run(&args.load).await?.phases);
            }
            print(&report, &args.load)
        }
        Some(BenchCommand::Repair(args)) => {
            let report = repair::run(&args).await?;
            let mut out = std::io::stdout().lock();
            if args.load.json {
                serde_json::to_writer_pretty(&mut out, &report)?;
                writeln!(out)?;
            } else {
                write!(out, "{report}")?;
            }
            Ok(())
        }
        Some(BenchCommand::Ceiling(ceiling)) => match ceiling.command {
            Some(CeilingCommand::Serve) => ceiling::serve().await,
            None => print(&ceiling::run(&ceiling.load).await?, &ceiling.load),
        },
    }
}

fn print(report: &Report, args: &LoadArgs) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut out, report)?;
        writeln!(out)?;
    } else {
        write!(out, "{report}")?;
    }
    Ok(())
}
