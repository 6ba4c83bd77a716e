//! `holdfast dev`: a whole zone on loopback, made of the same nodes and the same code as production.
//!
//! The directory holds `dev.json` (credentials, ports, the list of nodes; mode 0600), with `--tls` a CA, and one
//! directory for each node with its `node.toml`. Everything is decided and written before the first node starts, so a
//! crash at any point leaves a directory that the same command goes on from. Ports are chosen once: a restart serves at
//! the same addresses, or says which one is taken.

mod certs;
mod layout;
mod ready;
mod report;
pub(crate) mod spawn;
pub(crate) mod state;

use std::path::{Path, PathBuf};

use clap::Args;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use crate::cli::UsageError;
use crate::cli::serve::stop_signals;
use crate::config::{self, LogConfig};
use crate::env::Env;
use crate::formation::init::{RootKey, zone_init};
use crate::node::NodeRuntime;
use crate::node::directory::NodeDirectory;
use crate::telemetry;
use spawn::Children;
use state::DevState;

/// Where `dev` keeps its zone unless told otherwise.
pub(crate) const DATA_DIR: &str = "./holdfast-data";
const PORT: u16 = 9000;
const NODES: u32 = 6;
const NODES_MAX: u32 = 64;

/// Options of `dev`.
#[derive(Debug, Args)]
pub(crate) struct DevArgs {
    /// Zones to run; only one so far
    #[arg(long, default_value_t = 1)]
    zones: u32,
    /// Data nodes, of one target each, on hosts of their own [default: 6, or as many as the directory has]
    #[arg(long)]
    nodes: Option<u32>,
    /// Where the zone is kept
    #[arg(long, default_value = DATA_DIR)]
    data_dir: PathBuf,
    /// Port of the S3 endpoint; 0: any [default: 9000]
    #[arg(long)]
    port: Option<u16>,
    /// Serve S3 over TLS; writes a CA beside the data
    #[arg(long)]
    tls: bool,
    /// One process per node
    #[arg(long)]
    spawn: bool,
    /// One line of JSON on standard output when ready
    #[arg(long)]
    json: bool,
}

impl DevArgs {
    fn check(&self) -> Result<(), UsageError> {
        if self.zones != 1 {
            return Err(UsageError(format!(
                "--zones {}: one zone only; zones that replicate to each other are not there yet",
                self.zones
            )));
        }
        if let Some(nodes) = self.nodes
            && !(1..=NODES_MAX).contains(&nodes)
        {
            return Err(UsageError(format!("--nodes {nodes}: between 1 and {NODES_MAX}")));
        }
        Ok(())
    }
}

/// Runs the zone until Ctrl-C or SIGTERM.
///
/// # Errors
/// One clear line: bad options, a directory or port in use, a node that could not go on.
pub(crate) async fn run(args: DevArgs) -> anyhow::Result<()> {
    args.check()?;
    // Ten nodes in one terminal: only what somebody should act on, unless asked for more.
    telemetry::start_logs(&LogConfig::default(), "warn");
    let cancel = stop_signals()?;
    std::fs::create_dir_all(&args.data_dir)
        .map_err(|error| anyhow::anyhow!("{}: {error}", args.data_dir.display()))?;
    let dir = args.data_dir.canonicalize()?;
    let _lock = NodeDirectory::open(&dir)?;
    let env = Env::real();
    let root = RootKey::from_env().map_err(|error| UsageError(error.to_string()))?;
    let state = prepare(&dir, &args, root, &env)?;
    let result = if args.spawn {
        run_processes(&state, &args, cancel).await
    } else {
        run_in_process(&state, &args, &env, cancel).await
    };
    if result.is_ok() && !args.json {
        report::stopped(&state)?;
    }
    result
}

/// Makes or continues the directory: state, certificates, configurations, the first node's identity.
fn prepare(dir: &Path, args: &DevArgs, root: Option<RootKey>, env: &Env) -> anyhow::Result<DevState> {
    let state = match DevState::read(dir)? {
        Some(known) => layout::continued(dir, known, args, root.as_ref())?,
        None => {
            let nodes = args.nodes.unwrap_or(NODES);
            let root = root.unwrap_or_else(|| RootKey::random(env));
            layout::new(dir, nodes, args.port.unwrap_or(PORT), args.tls, root, env)?
        }
    };
    if args.tls {
        certs::ensure(dir, env)?;
    }
    layout::write_configs(dir, &state)?;
    state.save(dir)?;
    let first = state.first_meta()?;
    if !first.data_dir.join("identity.json").exists() {
        let config = config::load(&first.config)?;
        let root = RootKey {
            access_key: state.access_key.clone(),
            secret_key: Zeroizing::new(state.secret_key.clone()),
        };
        zone_init(&config, env, Some(root), state.meta_addresses()[1..].to_vec(), None)?;
    }
    Ok(state)
}

async fn run_in_process(
    state: &DevState,
    args: &DevArgs,
    env: &Env,
    cancel: CancellationToken,
) -> anyhow::Result<()> {
    // Stopped in an order that lets each find what it needs: gateway, then data, then meta.
    let stages = [CancellationToken::new(), CancellationToken::new(), CancellationToken::new()];
    let ended = CancellationToken::new();
    let mut nodes = JoinSet::new();
    for node in &state.nodes {
        let config = config::load(&node.config)?;
        let (stop, ended, env) = (stages[stage(&node.roles)].clone(), ended.clone(), env.clone());
        nodes.spawn(async move {
            let result =
                async { NodeRuntime::start(config, env, stop.clone()).await?.run(stop.clone()).await }.await;
            // A node that ends on its own ends the zone; one that was stopped while it waited did as told.
            let told = stop.is_cancelled();
            ended.cancel();
            if told && result.is_err() { Ok(()) } else { result }
        });
    }
    let mut result = tokio::select! {
        () = cancel.cancelled() => Ok(()),
        () = ended.cancelled() => Ok(()),
        ready = async {
            let ids = ready::wait(state).await?;
            report::ready(state, args, &|_| std::process::id(), &ids)?;
            std::future::pending().await
        } => ready,
    };
    for (place, token) in stages.iter().enumerate() {
        token.cancel();
        let members = state.nodes.iter().filter(|node| stage(&node.roles) <= place).count();
        while state.nodes.len() - nodes.len() < members {
            match nodes.join_next().await {
                Some(Ok(ended)) => result = result.and(ended),
                Some(Err(panic)) => result = result.and(Err(panic.into())),
                None => break,
            }
        }
    }
    result
}

/// When a node is stopped: gateways first, meta nodes last.
fn stage(roles: &[String]) -> usize {
    let has = |wanted: &str| roles.iter().any(|role| role == wanted);
    if has("meta") {
        2
    } else if has("data") {
        1
    } else {
        0
    }
}

async fn run_processes(state: &DevState, args: &DevArgs, cancel: CancellationToken) -> anyhow::Result<()> {
    let mut children = Children::start(state)?;
    let result = tokio::select! {
        () = cancel.cancelled() => Ok(()),
        failed = children.watch_start() => failed,
        ready = async {
            let ids = ready::wait(state).await?;
            Ok::<_, anyhow::Error>(ids)
        } => match ready {
            Ok(ids) => {
                report::ready(state, args, &|name| children.pid(name), &ids)?;
                // One that is killed stays down; the zone goes on without it.
                tokio::select! {
                    () = cancel.cancelled() => {}
                    () = children.watch() => {}
                }
                Ok(())
            }
            Err(error) => Err(error),
        },
    };
    children.stop().await;
    result
}
