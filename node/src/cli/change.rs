//! `holdfast node ...` and `holdfast target ...`: who takes part.

use clap::{Args, Subcommand, ValueEnum};
use holdfast_proto::admin::{ChangeRequest, MayIRequest, change_request, may_i_request};
use holdfast_proto::id::NodeId;
use serde_json::json;

use super::inspect;
use super::output;
use super::target_zone::ZoneArgs;

#[derive(Debug, Subcommand)]
pub(super) enum NodeCommand {
    /// List them
    List(ZoneArgs),
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
    /// Bring everything that a target holds elsewhere
    Drain(TargetArgs),
    /// End draining; what was not moved yet stays
    Undrain(TargetArgs),
    /// Whether nothing is left on a target: exit code 0 for yes
    SafeToRemove(TargetArgs),
    /// Take a target that is drained, or lost, out of the zone, for good
    Remove(TargetArgs),
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

pub(super) async fn node(command: NodeCommand) -> anyhow::Result<()> {
    use change_request::What;
    match command {
        NodeCommand::List(zone) => inspect::nodes(&zone).await,
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
        TargetCommand::Drain(args) => change(&args.zone, What::DrainTarget(args.id)).await,
        TargetCommand::Undrain(args) => change(&args.zone, What::UndrainTarget(args.id)).await,
        TargetCommand::SafeToRemove(args) => {
            may_i(&args.zone, may_i_request::What::RemoveTarget(args.id)).await
        }
        TargetCommand::Remove(args) => change(&args.zone, What::RemoveTarget(args.id)).await,
    }
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
