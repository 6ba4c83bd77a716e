//! `holdfast node ...` and `holdfast target ...`: who takes part.

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use holdfast_proto::admin::{ChangeRequest, MayIRequest, change_request, may_i_request};
use holdfast_proto::id::NodeId;
use holdfast_proto::meta::{Target, TargetState};
use serde_json::json;

use super::add::{self, NodeAddArgs, TargetAddArgs};
use super::inspect;
use super::output;
use super::target_zone::ZoneArgs;

const REPLACE_POLL: Duration = Duration::from_secs(1);

#[derive(Debug, Subcommand)]
pub(super) enum NodeCommand {
    /// List them
    List(ZoneArgs),
    /// Let a new node in, on its machine; it serves once it is started
    Add(NodeAddArgs),
    /// Bring everything that a node holds elsewhere, its votes included
    Drain(NodeArgs),
    /// End draining; what was not moved yet stays
    Undrain(NodeArgs),
    /// Say that a node is away on purpose: its targets do not go out by themselves
    Maintenance(MaintenanceArgs),
    /// Whether a node can be stopped without anybody noticing: exit code 0 for yes
    OkToStop(NodeArgs),
    /// Take a node that is drained out of the zone, for good
    Remove(NodeArgs),
}

#[derive(Debug, Subcommand)]
pub(super) enum TargetCommand {
    /// List them
    List(ZoneArgs),
    /// Write a new disk into a data node's configuration, on its machine
    Add(TargetAddArgs),
    /// Bring everything that a target holds elsewhere
    Drain(TargetArgs),
    /// End draining; what was not moved yet stays
    Undrain(TargetArgs),
    /// Whether nothing is left on a target: exit code 0 for yes
    SafeToRemove(TargetArgs),
    /// Take a target that is drained, or lost, out of the zone, for good
    Remove(TargetArgs),
    /// Drain a target, wait until nothing is left on it, and remove it: after its successor has joined
    Replace(ReplaceArgs),
}

#[derive(Debug, Args)]
pub(super) struct NodeArgs {
    /// As `node list` shows it, such as 1.4
    id: NodeId,
    #[command(flatten)]
    zone: ZoneArgs,
}

#[derive(Debug, Args)]
pub(super) struct MaintenanceArgs {
    switch: Switch,
    #[command(flatten)]
    node: NodeArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Switch {
    On,
    Off,
}

#[derive(Debug, Args)]
pub(super) struct TargetArgs {
    /// As `target list` shows it
    id: u32,
    #[command(flatten)]
    zone: ZoneArgs,
}

#[derive(Debug, Args)]
pub(super) struct ReplaceArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// How long to wait; the drain goes on without
    #[arg(long, default_value = "7days", value_parser = humantime::parse_duration)]
    patience: Duration,
}

/// Drains, waits, removes. Broken off, it can be said again: each step finds what was done.
async fn replace(args: &ReplaceArgs) -> anyhow::Result<()> {
    use change_request::What;
    let TargetArgs { id, zone } = &args.target;
    let contact = zone.contact()?;
    let fail = |message: &str| anyhow::anyhow!("{message}");
    let (_, map) = inspect::ask(zone).await?;
    let row = map.targets.iter().find(|row| row.id == *id).ok_or_else(|| fail(&format!("no target {id}")))?;
    let takes_over = |other: &&Target| {
        other.id != *id && other.media == row.media && other.state() == TargetState::TargetUp
    };
    if map.targets.iter().filter(takes_over).count() == 0 {
        anyhow::bail!("no other target of media {:?} is up: nothing could take its place", row.media);
    }
    if row.state() != TargetState::TargetOut {
        let drain = ChangeRequest { what: Some(What::DrainTarget(*id)) };
        contact.change(drain).await.map_err(|fault| fail(&fault.message))?;
    }
    let deadline = tokio::time::Instant::now() + args.patience;
    let mut said = String::new();
    loop {
        let asked = MayIRequest { what: Some(may_i_request::What::RemoveTarget(*id)) };
        let waits = match contact.may_i(asked).await {
            Ok(answer) if answer.yes => break,
            Ok(answer) => answer.reasons.join("; "),
            // A zone between two leaders answers again soon.
            Err(fault) => fault.message,
        };
        if waits != said {
            eprintln!("waiting: {waits}");
            said = waits;
        }
        anyhow::ensure!(tokio::time::Instant::now() < deadline, "not empty in {:?}: {said}", args.patience);
        tokio::time::sleep(REPLACE_POLL).await;
    }
    change(zone, What::RemoveTarget(*id)).await
}

pub(super) async fn node(command: NodeCommand) -> anyhow::Result<()> {
    use change_request::What;
    match command {
        NodeCommand::List(zone) => inspect::nodes(&zone).await,
        NodeCommand::Add(args) => add::node(&args).await,
        NodeCommand::Drain(args) => change(&args.zone, What::DrainNode(args.id.get())).await,
        NodeCommand::Undrain(args) => change(&args.zone, What::UndrainNode(args.id.get())).await,
        NodeCommand::Maintenance(MaintenanceArgs { switch, node }) => {
            let what = match switch {
                Switch::On => What::BeginMaintenance(node.id.get()),
                Switch::Off => What::EndMaintenance(node.id.get()),
            };
            change(&node.zone, what).await
        }
        NodeCommand::OkToStop(args) => may_i(&args.zone, may_i_request::What::StopNode(args.id.get())).await,
        NodeCommand::Remove(args) => change(&args.zone, What::RemoveNode(args.id.get())).await,
    }
}

pub(super) async fn target(command: TargetCommand) -> anyhow::Result<()> {
    use change_request::What;
    match command {
        TargetCommand::List(zone) => inspect::targets(&zone).await,
        TargetCommand::Add(args) => add::target(&args),
        TargetCommand::Drain(args) => change(&args.zone, What::DrainTarget(args.id)).await,
        TargetCommand::Undrain(args) => change(&args.zone, What::UndrainTarget(args.id)).await,
        TargetCommand::SafeToRemove(args) => {
            may_i(&args.zone, may_i_request::What::RemoveTarget(args.id)).await
        }
        TargetCommand::Remove(args) => change(&args.zone, What::RemoveTarget(args.id)).await,
        TargetCommand::Replace(args) => replace(&args).await,
    }
}

pub(super) async fn release_orphans(zone: &ZoneArgs) -> anyhow::Result<()> {
    change(zone, change_request::What::ReleaseOrphans(true)).await
}

async fn change(zone: &ZoneArgs, what: change_request::What) -> anyhow::Result<()> {
    let changed = zone.contact()?.change(ChangeRequest { what: Some(what) }).await;
    let said = changed.map_err(|fault| anyhow::anyhow!("{}", fault.message))?.said;
    if zone.json { output::json(&json!({ "said": said })) } else { output::line(&said) }
}

async fn may_i(zone: &ZoneArgs, what: may_i_request::What) -> anyhow::Result<()> {
    let answer = zone.contact()?.may_i(MayIRequest { what: Some(what) }).await;
    let answer = answer.map_err(|fault| anyhow::anyhow!("{}", fault.message))?;
    if zone.json {
        output::json(&json!({ "yes": answer.yes, "reasons": answer.reasons }))?;
    } else if answer.yes {
        output::line("yes")?;
    }
    if answer.yes { Ok(()) } else { Err(anyhow::anyhow!("no: {}", answer.reasons.join("; "))) }
}
