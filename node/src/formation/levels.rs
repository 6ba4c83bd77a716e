//! Raises the zone's feature level once every node knows the next one.
//!
//! A level says which commands and rows every replica and every reader understands, so it rises only when all nodes have said
//! that they know it, and never falls. The zone's own group is raised last: what the map says of the level is then true of all
//! groups. A crash in between leaves groups that are ahead of the map, which the next leader's worker finds and completes.
//!
//! With `node.feature_level_max` a node holds the zone back, and the way to the version before stays open.

use std::sync::Arc;
use std::time::Duration;

use holdfast_client::Cluster;
use holdfast_machine::FEATURE_LEVEL;
use holdfast_proto::id::{GroupId, NodeId};
use holdfast_proto::meta::{ClusterMap, Command, NodeState, RaiseFeatureLevel, Refusal, command};

use crate::node::contact::is_meta;
use crate::placement::liveness::Liveness;
use crate::service::zone_head::ZoneHead;
use crate::supervisor::Progress;

const TICK: Duration = Duration::from_secs(1);

/// Runs until the node stops.
pub(crate) async fn run(head: Arc<ZoneHead>, cluster: Cluster, progress: Progress) -> anyhow::Result<()> {
    loop {
        tokio::time::sleep(TICK).await;
        let map = head.feed.current().filter(|map| head.leads() && map.generation > 0);
        let Some(map) = map else {
            *head.level_held.lock() = None;
            continue;
        };
        let silence = head.config.down_after.get();
        let next = next(&map, &head.liveness.lock(), silence, head.now());
        *head.level_held.lock() = next.as_ref().err().cloned();
        let Ok(Some(level)) = next else {
            progress.well();
            continue;
        };
        match raise(&cluster, &map, level).await {
            Ok(()) => {
                tracing::info!(level, "every node knows this feature level: the zone is at it now");
                progress.done(1);
                progress.well();
            }
            Err(error) => progress.trouble(format!("raising the feature level: {error:#}")),
        }
    }
}

/// The level that the zone can have now, if that is more than it has.
///
/// A meta node has to have said what it knows, for it would halt. Any other that is silent for long is not waited for: it is
/// let in again only when it knows enough.
///
/// # Errors
/// Which node holds the zone back, in words.
fn next(
    map: &ClusterMap,
    liveness: &Liveness,
    silence: Duration,
    now: Duration,
) -> Result<Option<u32>, String> {
    if map.feature_level >= FEATURE_LEVEL {
        return Ok(None);
    }
    let mut level = FEATURE_LEVEL;
    for node in map.nodes.iter().filter(|node| node.state() != NodeState::NodeRemoved) {
        let id = NodeId::new(node.id);
        let is_gone = !is_meta(node) && liveness.silent(node.id, now) > silence;
        match liveness.level(node.id) {
            _ if is_gone => {}
            Some(known) if known > map.feature_level => level = level.min(known),
            Some(known) => return Err(format!("node {id} knows level {known}, or is held at it")),
            None => return Err(format!("node {id} has not been heard of")),
        }
    }
    Ok(Some(level))
}

async fn raise(cluster: &Cluster, map: &ClusterMap, level: u32) -> anyhow::Result<()> {
    let mut groups =
        map.groups.iter().map(|group| GroupId::from_u64(group.id)).collect::<Result<Vec<_>, _>>()?;
    groups.sort_by_key(|id| id.kind() == holdfast_proto::id::GroupKind::Zone);
    for group in groups {
        let op = command::Op::RaiseFeatureLevel(RaiseFeatureLevel { level });
        let outcomes = cluster.propose(group, vec![Command { op: Some(op), ..Command::default() }]).await?;
        let refused = outcomes.iter().find(|outcome| outcome.refusal() != Refusal::None);
        if let Some(refused) = refused {
            anyhow::bail!("group {group} refused: {:?} {}", refused.refusal(), refused.detail);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_proto::meta::Node;

    const SILENCE: Duration = Duration::from_secs(15);

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// A meta node 1 and a data node 2, at level 1; those named have said at 10 s that they know these levels.
    fn zone(said: &[(u64, u32)]) -> (ClusterMap, Liveness) {
        let node = |id: u64, role: &str| Node { id, roles: vec![role.to_owned()], ..Node::default() };
        let map = ClusterMap {
            generation: 1,
            feature_level: 1,
            nodes: vec![node(1, "meta"), node(2, "data")],
            ..ClusterMap::default()
        };
        let mut liveness = Liveness::default();
        liveness.lead(true, at(0));
        for (node, level) in said {
            liveness.beat(*node, 1, vec![], at(10));
            liveness.knows(*node, *level);
        }
        (map, liveness)
    }

    #[test]
    fn it_rises_when_every_node_knows_more() {
        let (mut map, liveness) = zone(&[(1, FEATURE_LEVEL), (2, FEATURE_LEVEL + 1)]);
        assert_eq!(next(&map, &liveness, SILENCE, at(11)), Ok(Some(FEATURE_LEVEL)));
        map.feature_level = FEATURE_LEVEL;
        assert_eq!(next(&map, &liveness, SILENCE, at(11)), Ok(None));
    }

    #[test]
    fn one_of_the_version_before_holds_it_back() {
        // Who says nothing of levels is of the first version that had them.
        for said in [&[(1, FEATURE_LEVEL), (2, 0)][..], &[(1, 1), (2, FEATURE_LEVEL)], &[(1, FEATURE_LEVEL)]]
        {
            let (map, liveness) = zone(said);
            assert!(next(&map, &liveness, SILENCE, at(11)).is_err(), "{said:?}");
        }
    }

    #[test]
    fn a_data_node_that_is_gone_is_not_waited_for_and_a_meta_node_is() {
        let (mut map, liveness) = zone(&[(1, FEATURE_LEVEL)]);
        assert_eq!(next(&map, &liveness, SILENCE, at(16)), Ok(Some(FEATURE_LEVEL)));
        let (_, mut liveness) = zone(&[(2, FEATURE_LEVEL)]);
        assert!(next(&map, &liveness, SILENCE, at(1000)).is_err());
        map.nodes[0].set_state(NodeState::NodeRemoved);
        liveness.beat(2, 1, vec![], at(1000));
        assert_eq!(next(&map, &liveness, SILENCE, at(1000)), Ok(Some(FEATURE_LEVEL)));
    }
}
