//! `holdfast-chaos run`: clients and faults against a zone of the real binary, and a report. `list`: what faults and plants there are.

#![allow(clippy::print_stdout, reason = "a command says what it found")]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use holdfast_chaos::chaos::clients::Plant;
use holdfast_chaos::chaos::nemesis::Nemesis;
use holdfast_chaos::chaos::report;
use holdfast_chaos::chaos::run::{self, Plan, Report};

/// What a suspicious operator runs before trusting Holdfast.
#[derive(Debug, Parser)]
#[command(name = "holdfast-chaos", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run clients and faults against a zone; exit code 0 only when every invariant holds
    Run(RunArgs),
    /// What faults and plants there are
    List,
}

#[derive(Debug, Args)]
struct RunArgs {
    /// Faults, comma-separated: names, `all` or `none`
    #[arg(long, default_value = "all")]
    nemesis: String,
    #[arg(long, conflicts_with = "seconds")]
    minutes: Option<u64>,
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Clients at a time
    #[arg(long, default_value_t = 16)]
    clients: usize,
    /// What is drawn by chance; without, by the clock
    #[arg(long)]
    seed: Option<u64>,
    #[arg(long, default_value_t = 8)]
    data_nodes: u32,
    /// Have clients lie as a store with this mistake would: the run has to end with a violation
    #[arg(long)]
    plant: Option<String>,
    /// Directory for report.json and report.html
    #[arg(long, default_value = "chaos-report")]
    report: PathBuf,
    /// Directory for the zone's data, which then stays
    #[arg(long)]
    data_dir: Option<PathBuf>,
}

fn main() -> ExitCode {
    match go() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("holdfast-chaos: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn go() -> anyhow::Result<bool> {
    let args = match Cli::parse().command {
        Command::List => {
            println!("faults: {}", names(&Nemesis::ALL));
            println!("plants: {}", names(&Plant::ALL));
            return Ok(true);
        }
        Command::Run(args) => args,
    };
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
    let plan = Plan {
        nemeses: nemeses(&args.nemesis)?,
        lasts: Duration::from_secs(args.minutes.map_or(args.seconds, |minutes| minutes * 60)),
        clients: args.clients,
        seed: args.seed.unwrap_or(clock),
        plant: args.plant.as_deref().map(|name| find(&Plant::ALL, name)).transpose()?,
        data_nodes: args.data_nodes,
        data_dir: args.data_dir,
    };
    println!("seed {}", plan.seed);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let told = runtime.block_on(run::run(&plan, |text| println!("{text}")))?;
    std::fs::create_dir_all(&args.report)?;
    let page = args.report.join("report.html");
    std::fs::write(args.report.join("report.json"), serde_json::to_vec_pretty(&told)?)?;
    std::fs::write(&page, report::html(&told))?;
    say(&told);
    println!("{}", page.display());
    Ok(told.holds())
}

fn say(report: &Report) {
    println!(
        "{} attempts, {} left open, {} faults, {:.0} s",
        report.attempts,
        report.open,
        report.faults.len(),
        report.seconds
    );
    for invariant in &report.invariants {
        let verdict = if invariant.violations.is_empty() { "holds" } else { "VIOLATED" };
        let unjudged = match invariant.unjudged {
            0 => String::new(),
            count => format!(", {count} not: too much was open at once"),
        };
        println!("{verdict:8}  {} ({} checked{unjudged})", invariant.name, invariant.checked);
        for violation in &invariant.violations {
            println!("          {violation}");
        }
    }
}

fn names<T>(all: &[(&str, T)]) -> String {
    all.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
}

fn find<T: Copy>(all: &[(&str, T)], name: &str) -> anyhow::Result<T> {
    let found = all.iter().find(|(own, _)| *own == name).map(|(_, it)| *it);
    found.with_context(|| format!("{name:?} is none of: {}", names(all)))
}

fn nemeses(text: &str) -> anyhow::Result<Vec<Nemesis>> {
    match text {
        "all" => Ok(Nemesis::ALL.iter().map(|(_, nemesis)| *nemesis).collect()),
        "none" => Ok(Vec::new()),
        some => some.split(',').map(|name| find(&Nemesis::ALL, name.trim())).collect(),
    }
}
