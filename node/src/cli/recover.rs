//! `holdfast zone recover`: a zone goes on from the one meta node that is left, or from none.

use std::path::{Path, PathBuf};

use clap::Args;
use holdfast_proto::id::NodeId;
use serde_json::json;

use super::{UsageError, output};
use crate::config;
use crate::env::Env;
use crate::formation::init::{RootKey, zone_init};
use crate::formation::recover::{self, Replica};
use crate::node::directory::Identity;

#[derive(Debug, Args)]
pub(super) struct RecoverArgs {
    /// Configuration of the meta node that is left; it must not run
    #[arg(short, long)]
    config: PathBuf,
    #[command(flatten)]
    source: Source,
    /// With --from-shards: the identity.json of any node of the zone
    #[arg(long, requires = "from_shards")]
    identity: Option<PathBuf>,
    /// Do it: the zone's name, typed again. Without, it only says what would be done
    #[arg(long, value_name = "ZONE")]
    yes: Option<String>,
    /// JSON on standard output
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Source {
    /// Go on from this node's replica of every group
    #[arg(long)]
    from_replica: bool,
    /// All metadata is gone: begin the zone anew for the data nodes that are left, with a new root key; then
    /// `holdfast meta rebuild`
    #[arg(long, requires = "identity")]
    from_shards: bool,
}

/// A zone without metadata, for data that is there.
fn begin_anew(args: &RecoverArgs, identity: &Path) -> anyhow::Result<()> {
    let config = config::load(&args.config)?;
    let root = RootKey::from_env().map_err(|error| UsageError(error.to_string()))?;
    let old = Identity::read(identity)?;
    if args.yes.as_ref() != Some(&old.zone_name) {
        let name = &old.zone_name;
        return Err(UsageError(format!(
            "zone {name} would begin anew: objects of up to 2 KiB, deletes, versions, accounts and the names of buckets are \
             lost. Restore a backup if there is one; else say --yes {name}"
        ))
        .into());
    }
    let zone = zone_init(&config, &Env::real(), root, Vec::new(), Some(old))?;
    if args.json {
        return output::json(&super::new_zone_json(&config, &zone));
    }
    output::line(&format!(
        "Zone {} of realm {} begins anew with node {}. This is shown once:\n\n  \
         root access key  {}\n  root secret key  {}\n\n\
         Start it:           holdfast server -c {}\n\
         Data, gateways:     start them; those whose node.seeds do not have this address need it\n\
         Then:               holdfast meta rebuild --dry-run, and without",
        config.node.zone,
        zone.realm,
        zone.node,
        zone.access_key,
        *zone.secret_key,
        args.config.display(),
    ))
}

pub(super) fn run(args: &RecoverArgs) -> anyhow::Result<()> {
    if let (true, Some(identity)) = (args.source.from_shards, &args.identity) {
        return begin_anew(args, identity);
    }
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
