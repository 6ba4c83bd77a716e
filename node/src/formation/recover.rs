//! A zone whose meta nodes are lost but one goes on from that one: what an operator does when nothing else is left.
//!
//! The directory of the node that is left is changed while no process runs on it. What the lost nodes had acknowledged and
//! had not brought to this one is gone; the shards of it stay until an operator releases them.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_proto::hlc::Hlc;
use holdfast_proto::id::{GroupId, NodeId};
use holdfast_proto::meta::{Node, RecoverZone, command};

use crate::config::Config;
use crate::env::Env;
use crate::meta::{Alone, GroupEnd};
use crate::node::directory::NodeDirectory;

/// What a directory has of its zone.
#[derive(Debug)]
pub(crate) struct Replica {
    pub(crate) zone_name: String,
    pub(crate) node: NodeId,
    pub(crate) groups: Vec<GroupEnd>,
    /// Members of its groups besides this node.
    pub(crate) others: BTreeSet<NodeId>,
    alone: Alone,
    _directory: NodeDirectory,
}

/// Looks at the configured directory, and holds it.
///
/// # Errors
/// When it is in use, is no meta node's, or lacks a group of its zone.
pub(crate) fn look(config: &Config, env: &Env) -> anyhow::Result<Replica> {
    let directory = NodeDirectory::open(&config.node.data_dir)?;
    let dir = config.node.data_dir.display();
    let identity = directory.identity_in(&config.node.zone)?;
    let identity = identity.ok_or_else(|| anyhow::anyhow!("{dir} belongs to no zone"))?;
    if !identity.meta_opened {
        anyhow::bail!("{dir} holds no metadata: recover on the meta node that is left");
    }
    directory.check_meta(&identity)?;
    let alone = Alone::open(&directory.meta_path(), env.disk())?;
    let groups = alone.ends()?;
    let zone = identity.zone_id();
    let here: BTreeSet<GroupId> = groups.iter().map(|end| end.group).collect();
    let wanted = wanted(&alone, zone, &here)?;
    let missing: Vec<String> = wanted.difference(&here).map(ToString::to_string).collect();
    if !missing.is_empty() {
        anyhow::bail!(
            "{} of {} groups are not on this node ({}): recover on another one, or restore a backup",
            missing.len(),
            wanted.len(),
            missing.join(", ")
        );
    }
    let others = groups.iter().flat_map(|end| end.voters.union(&end.learners).copied());
    let others = others.filter(|member| *member != identity.node).collect();
    Ok(Replica {
        zone_name: identity.zone_name,
        node: identity.node,
        groups,
        others,
        alone,
        _directory: directory,
    })
}

/// The groups of the zone, by the rows of its own group.
fn wanted(
    alone: &Alone,
    zone: holdfast_proto::id::ZoneId,
    here: &BTreeSet<GroupId>,
) -> anyhow::Result<BTreeSet<GroupId>> {
    let zone_group = GroupId::zone_group(zone);
    let mut wanted = BTreeSet::from([GroupId::REALM, zone_group]);
    if here.contains(&zone_group) {
        let ids = holdfast_machine::group_ids(&alone.rows(zone_group)?)?;
        wanted.extend(ids.into_iter().filter_map(|id| GroupId::from_u64(id).ok()));
    }
    Ok(wanted)
}

impl Replica {
    /// Makes the node the only meta node of its zone.
    ///
    /// # Errors
    /// When the directory cannot be written; saying it again is right then.
    pub(crate) fn go_on(&self, env: &Env) -> anyhow::Result<()> {
        let zone_group = GroupId::zone_group(self.node.zone());
        let at = self.groups.iter().find(|end| end.group == zone_group).map_or((0, 0), |end| end.last);
        let from = format!("the replica of node {}, as of entry {} of term {}", self.node, at.1, at.0);
        let node = Node { id: self.node.get(), ..Node::default() };
        let recover = command::Op::RecoverZone(RecoverZone { node: Some(node), from });
        let say = BTreeMap::from([(zone_group, vec![recover])]);
        Ok(self.alone.go_on(self.node, Hlc::from_ms(env.now_ms()), say)?)
    }
}
