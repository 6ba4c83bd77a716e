//! `holdfast zone recover`: a zone goes on from the one meta node that is left.

use std::path::PathBuf;

use clap::Args;
use holdfast_proto::id::NodeId;
use serde_json::json;

use super::{UsageError, output};
use crate::config;
use crate::env::Env;
use crate::formation::recover::{self, Replica};

#[derive(Debug, Args)]
pub(super) struct RecoverArgs {
    /// Configuration of the meta node that is left; it must not run
    #[arg(short, long)]
    config: PathBuf,
    /// Go on from this node's replica of every group
    #[arg(long, required = true)]
    from_replica: bool,
    /// Do it: the zone's name, typed again. Without, it only says what would be done
    #[arg(long, value_name = "ZONE")]
    yes: Option<String>,
    /// JSON on standard output
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &RecoverArgs) -> anyhow::Result<()> {
    let config = config::load(&args.config)?;
    let env = Env::real();
    let replica = recover::look(&config, &env)?;
    if let Some(name) = &args.yes {
        if *name != replica.zone_name {
            return Err(UsageError(format!("--yes {name}: the zone is {}", replica.zone_name)).into());
        }
        replica.go_on(&env)?;
    }
    let others: Vec<String> = replica.others.iter().map(ToString::to_string).collect();
    if args.json {
        return output::json(&told(&replica, &others, args.yes.is_some()));
    }
    let names = |ids: &std::collections::BTreeSet<NodeId>| {
        ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    };
    let table: Vec<Vec<String>> = replica
        .groups
        .iter()
        .map(|end| {
            vec![
                end.group.to_string(),
                end.last.0.to_string(),
                end.last.1.to_string(),
                output::when(end.hlc.ms()),
                names(&end.voters),
            ]
        })
        .collect();
    output::line(&output::table(&["GROUP", "TERM", "INDEX", "APPLIED TO", "VOTERS"], &table))?;
    let others = if others.is_empty() { "nobody".to_owned() } else { others.join(", ") };
    if args.yes.is_none() {
        return output::line(&format!(
            "\nNothing was changed. With --yes {} zone {} goes on with node {} alone, from these entries; what {others} \
             acknowledged after them is lost, and {others} must never run again on their directories. Where several meta \
             nodes are left, look at each and take the one with the highest term and index. Where a majority is left, \
             start it instead: nothing is lost then.",
            replica.zone_name, replica.zone_name, replica.node,
        ));
    }
    output::line(&format!(
        "\nZone {} goes on with node {} alone.\n\n\
         Start it:           holdfast server -c {}\n\
         Other meta nodes:   {others} are refused; give each a new data_dir and start it: it joins under a new id\n\
         Then:               holdfast fsck, and holdfast zone release-orphans when nothing is missed",
        replica.zone_name,
        replica.node,
        args.config.display(),
    ))
}

fn told(replica: &Replica, others: &[String], done: bool) -> serde_json::Value {
    let groups = replica.groups.iter().map(|end| {
        json!({
            "group": end.group.to_string(),
            "term": end.last.0,
            "index": end.last.1,
            "applied": end.applied,
            "applied_ms": end.hlc.ms(),
            "voters": end.voters.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "learners": end.learners.iter().map(ToString::to_string).collect::<Vec<_>>(),
        })
    });
    json!({
        "zone": replica.zone_name,
        "node": replica.node.to_string(),
        "groups": groups.collect::<Vec<_>>(),
        "given_up": others,
        "done": done,
    })
}
