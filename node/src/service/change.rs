//! What an operator changes, mostly about who takes part, and asks before: on the node that leads the zone.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use holdfast_client::geometry::Geometry;
use holdfast_proto::admin::{ChangeResponse, MayIResponse, change_request, may_i_request};
use holdfast_proto::error::Fault;
use holdfast_proto::id::{GroupId, NodeId};
use holdfast_proto::meta::{
    BeginBackup, ClusterMap, FinishBackup, Group, GroupMembers, NodeState, PlacementGroup, Refusal,
    ReleaseOrphans, RemoveTarget, SetNodeState, SetTargetStates, TargetState, TargetStateChange, command,
    outcome,
};
use holdfast_proto::v1::FaultKind;

use super::zone_head::ZoneHead;
use crate::formation::voters;
use crate::placement::keeper::may_move;

/// A voter that has not beaten for this long does not count.
const ALIVE: Duration = Duration::from_secs(5);
/// Reasons of one kind that are told.
const REASONS_MAX: usize = 3;

fn refused(detail: impl Into<String>) -> Fault {
    Fault::new(FaultKind::Invalid, detail)
}

/// Makes a change. Repeating it does no harm.
///
/// # Errors
/// `INVALID` in words for an operator; a fault of the zone group.
pub(super) async fn change(head: &ZoneHead, what: change_request::What) -> Result<ChangeResponse, Fault> {
    use change_request::What;
    let map = head.read_map().await?;
    let is_old_enough = matches!(what, What::BeginMaintenance(_) | What::EndMaintenance(_));
    if !is_old_enough && !may_move(&map) {
        return Err(refused(format!(
            "the zone is at feature level {}: nothing moves or leaves before every node runs the newer version",
            map.feature_level
        )));
    }
    let mut generation = 0;
    let said = match what {
        What::BeginBackup(_) => {
            generation = propose(head, command::Op::BeginBackup(BeginBackup {})).await?;
            format!("backup {generation} is begun: garbage is kept from now on")
        }
        What::FinishBackup(id) => {
            propose(head, command::Op::FinishBackup(FinishBackup { id })).await?;
            format!("backup {id} is finished: garbage is kept for it")
        }
        What::ReleaseOrphans(_) => {
            propose(head, command::Op::ReleaseOrphans(ReleaseOrphans {})).await?;
            "shards of writes that nobody owns are deleted again, as they get older than meta.orphan_after"
                .to_owned()
        }
        What::DrainTarget(target) => {
            let state = target_state(&map, target)?;
            if state == TargetState::TargetOut {
                return Err(refused(format!(
                    "target {target} is out: its shards are brought elsewhere already"
                )));
            }
            set_targets(head, vec![(target, TargetState::TargetDraining)]).await?;
            format!(
                "target {target} is drained: `holdfast target safe-to-remove {target}` says when nothing is left"
            )
        }
        What::UndrainTarget(target) => {
            undrain(head, &map, &[target]).await?;
            format!("target {target} takes part again")
        }
        What::RemoveTarget(target) => {
            propose(head, command::Op::RemoveTarget(RemoveTarget { target })).await?;
            format!("target {target} has left the zone")
        }
        What::DrainNode(node) => {
            let name = node_name(&map, node)?;
            let stays = |state| !matches!(state, TargetState::TargetOut | TargetState::TargetDraining);
            let targets: Vec<_> =
                map.targets.iter().filter(|row| row.node == node && stays(row.state())).collect();
            let changes = targets.iter().map(|row| (row.id, TargetState::TargetDraining)).collect();
            set_node(head, node, NodeState::NodeDraining).await?;
            set_targets(head, changes).await?;
            format!("node {name} is drained: {} target(s) and its votes go elsewhere", targets.len())
        }
        What::UndrainNode(node) => {
            let name = node_name(&map, node)?;
            set_node(head, node, NodeState::NodeActive).await?;
            let targets: Vec<u32> =
                map.targets.iter().filter(|row| row.node == node).map(|row| row.id).collect();
            undrain(head, &map, &targets).await?;
            format!("node {name} takes part again")
        }
        What::BeginMaintenance(node) => {
            let name = node_name(&map, node)?;
            set_node(head, node, NodeState::NodeMaintenance).await?;
            format!("node {name} is under maintenance: its targets do not go out by themselves")
        }
        What::EndMaintenance(node) => {
            let name = node_name(&map, node)?;
            set_node(head, node, NodeState::NodeActive).await?;
            format!("the maintenance of node {name} is over")
        }
        What::RemoveNode(node) => {
            let name = node_name(&map, node)?;
            // The map says at once who is to vote; the group's log, when that is so.
            let members = head.liveness.lock().group_members(ALIVE, head.now());
            let votes =
                |group: &&Group| members.get(&group.id).is_some_and(|actual| actual.voters.contains(&node));
            if let Some(group) = map.groups.iter().find(votes) {
                return Err(refused(format!("node {name} still votes in group {}", name_of(group))));
            }
            set_node(head, node, NodeState::NodeRemoved).await?;
            format!("node {name} has left the zone; its id is not used again")
        }
    };
    tracing::info!(said, "an operator made a change");
    Ok(ChangeResponse { said, generation })
}

fn target_state(map: &ClusterMap, target: u32) -> Result<TargetState, Fault> {
    let row = map.targets.iter().find(|row| row.id == target);
    row.map(|row| row.state()).ok_or_else(|| refused(format!("no target {target}")))
}

fn node_name(map: &ClusterMap, node: u64) -> Result<NodeId, Fault> {
    let id = NodeId::new(node);
    let row = map.nodes.iter().find(|row| row.id == node && row.state() != NodeState::NodeRemoved);
    row.map(|_| id).ok_or_else(|| refused(format!("no node {id}")))
}

/// The generation that the outcome says, 0 when it says none.
async fn propose(head: &ZoneHead, op: command::Op) -> Result<u64, Fault> {
    let outcome = head.propose(head.request_id(), op).await?;
    match (outcome.refusal(), outcome.ok) {
        (Refusal::None, Some(outcome::Ok::Generation(generation))) => Ok(generation),
        (Refusal::None, _) => Ok(0),
        _ => Err(refused(outcome.detail)),
    }
}

async fn set_node(head: &ZoneHead, node: u64, state: NodeState) -> Result<(), Fault> {
    propose(head, command::Op::SetNodeState(SetNodeState { node, state: state.into() })).await.map(drop)
}

async fn set_targets(head: &ZoneHead, states: Vec<(u32, TargetState)>) -> Result<(), Fault> {
    let change = |(target, state): (u32, TargetState)| TargetStateChange {
        target,
        state: state.into(),
        why: "an operator said so".to_owned(),
    };
    let changes = states.into_iter().map(change).collect();
    propose(head, command::Op::SetTargetStates(SetTargetStates { changes })).await.map(drop)
}

/// Those that are drained are down until they are heard of, which is a second for one that is well.
async fn undrain(head: &ZoneHead, map: &ClusterMap, targets: &[u32]) -> Result<(), Fault> {
    let mut changes = Vec::new();
    for target in targets {
        if target_state(map, *target)? == TargetState::TargetDraining {
            changes.push((*target, TargetState::TargetDown));
        }
    }
    set_targets(head, changes).await
}

/// Answers whether something could be done now without harm.
///
/// # Errors
/// As [`change`].
pub(super) async fn may_i(head: &ZoneHead, what: may_i_request::What) -> Result<MayIResponse, Fault> {
    let map = head.read_map().await?;
    let reasons = match what {
        may_i_request::What::StopNode(node) => {
            node_name(&map, node)?;
            let liveness = head.liveness.lock();
            let now = head.now();
            let is_alive = |id: u64| id == head.me().get() || liveness.beats(id, ALIVE, now);
            let alive = map.nodes.iter().map(|row| row.id).filter(|id| is_alive(*id)).collect();
            let members = liveness.group_members(ALIVE, now);
            against_stopping(&map, node, &alive, &members)
        }
        may_i_request::What::RemoveTarget(target) => {
            let state = target_state(&map, target)?;
            let mut reasons = against_removing(&map, target);
            let liveness = head.liveness.lock();
            let held = liveness
                .all_reports()
                .find(|report| report.target == target)
                .map_or(0, |report| report.shards);
            // What one holds that is gone for good holds up nobody.
            if held > 0 && reasons.is_empty() && state != TargetState::TargetOut {
                reasons.push(format!(
                    "{held} shard(s) are left on it: of what was deleted, perhaps; they go within meta.garbage_grace"
                ));
            }
            reasons
        }
    };
    Ok(MayIResponse { yes: reasons.is_empty(), reasons })
}

/// Why a node should not be stopped: placement groups that could not be written any more, groups without a majority.
/// `members` are those by the groups' own logs, where their leaders have said so.
fn against_stopping(
    map: &ClusterMap,
    node: u64,
    alive: &BTreeSet<u64>,
    members: &BTreeMap<u64, GroupMembers>,
) -> Vec<String> {
    let up: BTreeSet<u32> = map
        .targets
        .iter()
        .filter(|row| row.state() == TargetState::TargetUp && row.node != node)
        .map(|row| row.id)
        .collect();
    let own: BTreeSet<u32> = map.targets.iter().filter(|row| row.node == node).map(|row| row.id).collect();
    let stays_writable = |pg: &PlacementGroup| {
        let class = map.classes.iter().find(|class| class.name == pg.class);
        let scheme = class.and_then(|class| class.scheme);
        let least = scheme.and_then(|scheme| Geometry::new(&scheme, 1).ok()).map(|one| one.acknowledge());
        // A member to which its place is still being brought does not count.
        let is_there = |(place, target): &(usize, &u32)| {
            up.contains(target) && !pg.moving.iter().any(|moving| moving.place as usize == *place)
        };
        let there = pg.targets.iter().enumerate().filter(is_there).count();
        least.is_none_or(|least| there >= least)
    };
    let short: Vec<u32> = map
        .pgs
        .iter()
        .filter(|pg| pg.targets.iter().any(|target| own.contains(target)) && !stays_writable(pg))
        .map(|pg| pg.id)
        .collect();
    let mut reasons = Vec::new();
    if let Some(first) = short.first() {
        reasons.push(format!(
            "{} placement group(s), {first} for one, would have too few members to be written",
            short.len()
        ));
    }
    let no_majority = |group: &&Group| {
        let left = group.voters.iter().filter(|voter| **voter != node && alive.contains(voter)).count();
        group.voters.contains(&node) && left * 2 <= group.voters.len()
    };
    for group in map.groups.iter().filter(no_majority).take(REASONS_MAX) {
        reasons.push(format!("group {} would have no majority of its voters", name_of(group)));
    }
    // While voters change, a majority of the old ones and one of the new ones are needed.
    let changing = |group: &&Group| {
        let settled = |actual: &GroupMembers| voters::is_settled(group, actual);
        let has_part = |actual: &GroupMembers| group.voters.contains(&node) || actual.voters.contains(&node);
        members.get(&group.id).is_some_and(|actual| !settled(actual) && has_part(actual))
    };
    for group in map.groups.iter().filter(changing).take(REASONS_MAX) {
        reasons.push(format!("group {} is changing its members", name_of(group)));
    }
    reasons
}

fn name_of(group: &Group) -> String {
    GroupId::from_u64(group.id).map_or_else(|_| group.id.to_string(), |id| id.to_string())
}

/// Why a target cannot be removed yet.
fn against_removing(map: &ClusterMap, target: u32) -> Vec<String> {
    let mut reasons = Vec::new();
    let member = map.pgs.iter().filter(|pg| pg.targets.contains(&target)).count();
    if member > 0 {
        reasons.push(format!("target {target} is a member of {member} placement group(s): drain it first"));
    }
    let was = |pg: &&PlacementGroup| pg.moving.iter().any(|moving| moving.from.contains(&target));
    let moving = map.pgs.iter().filter(was).count();
    if moving > 0 {
        reasons.push(format!("shards of {moving} placement group(s) are still being brought elsewhere"));
    }
    reasons
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_proto::meta::{MovingPlace, Node, StorageClass, Target};

    fn against_stopping(map: &ClusterMap, node: u64, alive: &BTreeSet<u64>) -> Vec<String> {
        super::against_stopping(map, node, alive, &BTreeMap::new())
    }

    /// Seven hosts of one target each (node and target have one number), 4+2, one group over the first six.
    fn zone() -> ClusterMap {
        let scheme = crate::config::SchemeText { data: 4, parity: 2 }.scheme();
        ClusterMap {
            nodes: (1..=7).map(|id| Node { id, ..Node::default() }).collect(),
            targets: (1..=7)
                .map(|id| Target {
                    id,
                    node: id.into(),
                    state: TargetState::TargetUp.into(),
                    ..Target::default()
                })
                .collect(),
            pgs: vec![PlacementGroup {
                id: 1,
                targets: vec![1, 2, 3, 4, 5, 6],
                class: "STANDARD".into(),
                ..PlacementGroup::default()
            }],
            classes: vec![StorageClass {
                name: "STANDARD".into(),
                scheme: Some(scheme),
                ..StorageClass::default()
            }],
            groups: vec![Group { id: 1, voters: vec![1, 2, 3], ..Group::default() }],
            ..ClusterMap::default()
        }
    }

    #[test]
    fn one_node_may_stop_and_then_no_other() {
        let mut map = zone();
        let all: BTreeSet<u64> = (1..=7).collect();
        assert!((1..=7).all(|node| against_stopping(&map, node, &all).is_empty()));
        map.targets[5].set_state(TargetState::TargetDown);
        assert_eq!(against_stopping(&map, 1, &all).len(), 1);
        assert!(against_stopping(&map, 7, &all).is_empty(), "it is in no group");
        map.targets[5].set_state(TargetState::TargetUp);
        let without: BTreeSet<u64> = (2..=7).collect();
        assert_eq!(against_stopping(&map, 2, &without).len(), 1, "two of three voters are needed");
        assert!(against_stopping(&map, 5, &without).is_empty());
        map.pgs[0].moving = vec![MovingPlace { place: 3, from: vec![7] }];
        assert_eq!(against_stopping(&map, 1, &all).len(), 1, "its shards are not all there yet");
    }

    #[test]
    fn nobody_may_stop_while_votes_move() {
        let mut map = zone();
        map.groups[0].voters = vec![2, 3, 4];
        let all: BTreeSet<u64> = (2..=7).collect();
        let members = |voters: &[u64]| {
            BTreeMap::from([(1, GroupMembers { voters: voters.to_vec(), ..GroupMembers::default() })])
        };
        assert_eq!(super::against_stopping(&map, 2, &all, &members(&[1, 2, 3])).len(), 1);
        assert_eq!(super::against_stopping(&map, 2, &all, &members(&[1, 2, 3, 4])).len(), 1, "both count");
        assert!(super::against_stopping(&map, 5, &all, &members(&[1, 2, 3])).is_empty(), "it has no vote");
        assert!(super::against_stopping(&map, 2, &all, &members(&[2, 3, 4])).is_empty());
        assert!(super::against_stopping(&map, 2, &all, &BTreeMap::new()).is_empty(), "nobody said");
    }

    #[test]
    fn a_target_is_safe_to_remove_when_nothing_names_it() {
        let mut map = zone();
        assert_eq!(against_removing(&map, 1).len(), 1);
        assert!(against_removing(&map, 7).is_empty());
        map.pgs[0].moving = vec![MovingPlace { place: 3, from: vec![7] }];
        assert_eq!(against_removing(&map, 7).len(), 1);
    }
}
