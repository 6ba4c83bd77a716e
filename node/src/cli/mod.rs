//! The command line (DESIGN.md section 11): a contract that tools and tests rely on.
//!
//! Exit codes: 0 success, 1 failure, 2 bad usage or configuration. Standard output carries answers only; logs and
//! progress go to standard error.

mod add;
mod change;
mod events;
mod fsck;
mod inspect;
mod meta;
mod object;
mod output;
mod recover;
mod scrub;
mod scrub_meta;
pub(crate) mod serve;
mod target_zone;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::{self, ConfigFaults};
use crate::dev::DevArgs;
use crate::env::Env;
use crate::formation::init::{NewZone, RootKey, zone_init};
use target_zone::ZoneArgs;

/// Holdfast: S3-compatible object storage.
#[derive(Debug, Parser)]
#[command(name = "holdfast", version, about, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a whole zone on loopback, for development and tests
    Dev(DevArgs),
    /// Run one node
    Server(ServerArgs),
    /// Make a zone, or what is left of one
    #[command(subcommand)]
    Zone(ZoneCommand),
    /// The state of the zone on one screen
    Status(ZoneArgs),
    /// Nodes of the zone
    #[command(subcommand)]
    Node(change::NodeCommand),
    /// Targets (disks) of the zone
    #[command(subcommand)]
    Target(change::TargetCommand),
    /// Placement groups of the zone
    #[command(subcommand)]
    Pg(ListCommand),
    /// Buckets of the realm
    #[command(subcommand)]
    Bucket(ListCommand),
    /// Objects, as the zone stores them
    #[command(subcommand)]
    Object(object::ObjectCommand),
    /// Compare the zone's metadata with its shards, both ways
    Fsck(fsck::FsckArgs),
    /// What happened in the zone, and why
    Events(events::EventsArgs),
    /// Whether what is stored still reads back
    #[command(subcommand)]
    Scrub(scrub::ScrubCommand),
    /// Metadata: backup and restore
    #[command(subcommand)]
    Meta(meta::MetaCommand),
    /// Configuration files
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Measure an S3 endpoint
    Bench(Box<crate::bench::BenchArgs>),
}

#[derive(Debug, Args)]
struct ServerArgs {
    /// The node's configuration
    #[arg(short, long)]
    config: PathBuf,
    /// End when this process does
    #[arg(long, hide = true)]
    parent: Option<u32>,
}

#[derive(Debug, Subcommand)]
enum ZoneCommand {
    /// Mark this node as the first of a new realm and zone; prints the root key and the join token, once
    Init(InitArgs),
    /// Go on from the one meta node that is left when the others are lost for good, or from data nodes alone
    Recover(recover::RecoverArgs),
    /// Delete again what nobody owns: after a recovery, when nothing is missed
    ReleaseOrphans(ZoneArgs),
}

#[derive(Debug, Args)]
struct InitArgs {
    /// The first node's configuration
    #[arg(short, long)]
    config: PathBuf,
    /// gRPC addresses of the other meta nodes that are going to join
    #[arg(long, value_delimiter = ',', value_name = "HOST:PORT", value_parser = address)]
    meta: Vec<String>,
    /// One JSON object on standard output
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum ListCommand {
    /// List them
    List(ZoneArgs),
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Check a configuration and list every fault
    Check {
        /// The configuration
        #[arg(short, long)]
        config: PathBuf,
    },
}

/// A usage or configuration fault: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct UsageError(pub(crate) String);

/// Parses the command line and does what it says.
pub(crate) fn main() -> ExitCode {
    // clap itself ends with 2 for bad usage and 0 for --help.
    let cli = Cli::parse();
    match dispatch(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let usage = error.is::<UsageError>() || error.is::<ConfigFaults>();
            output::complain(&format!("{error:#}"));
            ExitCode::from(if usage { 2 } else { 1 })
        }
    }
}

fn dispatch(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Dev(args) => serve::runtime()?.block_on(crate::dev::run(args)),
        Command::Server(args) => serve::server(&args.config, args.parent),
        Command::Zone(ZoneCommand::Init(args)) => init(&args),
        Command::Zone(ZoneCommand::Recover(args)) => recover::run(&args),
        Command::Zone(ZoneCommand::ReleaseOrphans(zone)) => block_on(change::release_orphans(&zone)),
        Command::Meta(command) => serve::runtime()?.block_on(meta::run(command)),
        Command::Status(zone) => block_on(inspect::status(&zone)),
        Command::Node(command) => block_on(change::node(command)),
        Command::Target(command) => block_on(change::target(command)),
        Command::Pg(ListCommand::List(zone)) => block_on(inspect::pgs(&zone)),
        Command::Bucket(ListCommand::List(zone)) => block_on(inspect::buckets(&zone)),
        Command::Object(object::ObjectCommand::Stat(args)) => block_on(object::stat(&args)),
        Command::Object(object::ObjectCommand::AcceptLoss(args)) => block_on(object::accept_loss(&args)),
        Command::Fsck(args) => block_on(fsck::run(args)),
        Command::Events(args) => block_on(events::run(args)),
        Command::Scrub(command) => block_on(scrub::run(command)),
        Command::Config(ConfigCommand::Check { config }) => {
            let checked = config::load(&config)?;
            output::line(&format!("{}: good; roles: {}", config.display(), checked.roles().join(", ")))
        }
        Command::Bench(args) => serve::runtime()?.block_on(crate::bench::run(*args)),
    }
}

/// Questions need one thread.
fn block_on<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future)
}

fn address(text: &str) -> Result<String, String> {
    match config::host_port(text) {
        Some(_) => Ok(text.to_owned()),
        None => Err("not host:port".to_owned()),
    }
}

fn new_zone_json(config: &config::Config, zone: &NewZone) -> serde_json::Value {
    serde_json::json!({
        "realm": zone.realm.to_string(),
        "zone": config.node.zone,
        "node": zone.node.to_string(),
        "access_key": zone.access_key,
        "secret_key": *zone.secret_key,
        "join_token": *zone.join_token,
    })
}

fn init(args: &InitArgs) -> anyhow::Result<()> {
    let config = config::load(&args.config)?;
    let root = RootKey::from_env().map_err(|error| UsageError(error.to_string()))?;
    let zone = zone_init(&config, &Env::real(), root, args.meta.clone(), None)?;
    if args.json {
        return output::json(&new_zone_json(&config, &zone));
    }
    output::line(&format!(
        "Zone {} of realm {} begins with node {}. This is shown once:\n\n  \
         root access key  {}\n  root secret key  {}\n  join token       {}\n\n\
         Start this node:    holdfast server -c {}\n\
         On the others, set node.join_token to the token and node.seeds to [\"{}\"], then start them.",
        config.node.zone,
        zone.realm,
        zone.node,
        zone.access_key,
        *zone.secret_key,
        *zone.join_token,
        args.config.display(),
        if config.node.advertise.is_empty() { &config.node.listen } else { &config.node.advertise },
    ))
}
