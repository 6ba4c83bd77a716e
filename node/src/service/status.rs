//! The whole state of the zone, gathered where the zone group is led.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use holdfast_client::Cluster;
use holdfast_proto::admin::{GroupStatus, LostStripe, NodeStatus, RepairStatus, StatusResponse};
use holdfast_proto::error::Fault;
use holdfast_proto::hlc::Hlc;
use holdfast_proto::id::{GroupId, GroupKind, NodeId};
use holdfast_proto::meta::{ClusterMap, DueGarbage, Group, ListMissed, NodeState, Query, answer, query};
use holdfast_proto::v1::FaultKind;

use super::health::{Facts, codes};
use super::zone_head::ZoneHead;

/// A node is shown as silent after this; its targets go down later.
const SILENT: Duration = Duration::from_secs(5);
/// Garbage is counted up to this per partition.
const GARBAGE_COUNTED: u32 = 1000;
/// A partition that gives no answer must not hold the whole status up.
const COUNT_TIMEOUT: Duration = Duration::from_secs(3);

/// Gathers the status.
///
/// # Errors
/// While the zone has not been made.
pub(crate) async fn status(head: &ZoneHead, cluster: Option<&Cluster>) -> Result<StatusResponse, Fault> {
    let map = head
        .feed
        .current()
        .ok_or_else(|| Fault::new(FaultKind::FaultUnavailable, "the zone is still being made"))?;
    let leads = head.leads();
    let nodes = if leads { nodes(head, &map) } else { Vec::new() };
    let mut groups = groups(head, &map);
    tell_members(head, &nodes, &mut groups);
    let (missed_writes, garbage_writes) = match cluster {
        Some(cluster) => count(cluster, &map).await,
        None => (0, 0),
    };
    let wait = head.placement_wait.lock().clone();
    let held_back = head.out_held_back.lock().clone().filter(|_| leads);
    let level_held = head.level_held.lock().clone();
    let facts = Facts {
        map: &map,
        nodes: &nodes,
        groups: &groups,
        leads,
        placement_wait: wait.as_deref(),
        missed_writes,
        lost_stripes: head.repair.lock().lost.len(),
        out_held_back: held_back.as_deref(),
        level_held: level_held.as_deref(),
        meta_named: head.identity.founding.as_ref().map_or(0, |founding| founding.meta.len() + 1),
        hlc: head.groups.hlc(),
    };
    let health = codes(&facts);
    let repair = match leads {
        true => Some(repair(head, &map, cluster).await),
        false => None,
    };
    Ok(StatusResponse {
        map: Some((*map).clone()),
        nodes,
        groups,
        health,
        missed_writes,
        garbage_writes,
        repair,
    })
}

async fn repair(head: &ZoneHead, map: &ClusterMap, cluster: Option<&Cluster>) -> RepairStatus {
    let state = head.repair.lock().clone();
    let settled = state.is_settled(map);
    let seconds_left = state.left().map(|left| left.as_secs());
    let mut names: HashMap<Bytes, String> = HashMap::new();
    for lost in &state.lost {
        if let (false, Some(cluster)) = (names.contains_key(&lost.bucket), cluster) {
            let name = tokio::time::timeout(COUNT_TIMEOUT, cluster.bucket_name(lost.bucket.clone())).await;
            names.insert(lost.bucket.clone(), name.ok().and_then(Result::ok).unwrap_or_default());
        }
    }
    let lost = state.lost.into_iter().map(|lost| LostStripe {
        bucket: names.get(&lost.bucket).cloned().unwrap_or_default(),
        key: lost.key,
        write: lost.write,
        stripe: lost.stripe,
        alive: lost.alive as u32,
        needed: lost.needed as u32,
    });
    RepairStatus {
        running: state.running,
        seconds_left,
        settled,
        shards_seen: state.shards_seen,
        shards_total: state.shards_total,
        brought_shards: state.brought_shards,
        brought_bytes: state.brought_bytes,
        waiting_stripes: state.waiting_stripes,
        trouble: state.trouble,
        lost: lost.collect(),
    }
}

fn nodes(head: &ZoneHead, map: &ClusterMap) -> Vec<NodeStatus> {
    let liveness = head.liveness.lock();
    let now = head.now();
    map.nodes
        .iter()
        .filter(|node| node.state() != NodeState::NodeRemoved)
        .map(|node| {
            let silent = liveness.silent(node.id, now);
            NodeStatus {
                node: node.id,
                alive: liveness.beats(node.id, SILENT, now),
                silent_ms: silent.as_millis() as u64,
                targets: liveness.reports(node.id).to_vec(),
                group_scrubs: liveness.group_scrubs(node.id).to_vec(),
            }
        })
        .collect()
}

fn groups(head: &ZoneHead, map: &ClusterMap) -> Vec<GroupStatus> {
    let hosted = head.groups.status();
    map.groups
        .iter()
        .map(|row| {
            let known = hosted.iter().find(|status| status.group.get() == row.id);
            known.map_or_else(|| elsewhere(row), here)
        })
        .collect()
}

fn here(status: &crate::meta::GroupStatus) -> GroupStatus {
    let ids = |nodes: &std::collections::BTreeSet<NodeId>| nodes.iter().map(|node| node.get()).collect();
    GroupStatus {
        group: status.group.get(),
        leader: status.leader.map_or(0, NodeId::get),
        term: status.term,
        applied: status.applied,
        voters: ids(&status.voters),
        learners: ids(&status.learners),
    }
}

/// Who leads the groups that are not hosted here and who is in them, as their leaders say.
fn tell_members(head: &ZoneHead, nodes: &[NodeStatus], groups: &mut [GroupStatus]) {
    let led = nodes.iter().flat_map(|node| node.group_scrubs.iter().map(move |report| (node.node, report)));
    for (leader, report) in led {
        let Some(members) = &report.members else { continue };
        let is_hosted = GroupId::from_u64(report.group).is_ok_and(|id| head.groups.members(id).is_some());
        if let Some(status) = groups.iter_mut().find(|status| status.group == report.group && !is_hosted) {
            status.leader = leader;
            status.voters.clone_from(&members.voters);
            status.learners.clone_from(&members.learners);
        }
    }
}

/// A group that is not hosted here: its first voter stands for "somebody leads it".
fn elsewhere(row: &Group) -> GroupStatus {
    GroupStatus {
        group: row.id,
        voters: row.voters.clone(),
        learners: row.learners.clone(),
        leader: row.voters.first().copied().unwrap_or(0),
        ..GroupStatus::default()
    }
}

/// Writes with missed shards and writes waiting for collection, over all partitions that answer.
async fn count(cluster: &Cluster, map: &ClusterMap) -> (u64, u64) {
    let partitions = map
        .groups
        .iter()
        .filter_map(|group| GroupId::from_u64(group.id).ok())
        .filter(|id| id.kind() == GroupKind::Partition);
    let counts = partitions.map(|group| async move {
        let missed =
            Query { of: Some(query::Of::ListMissed(ListMissed { limit: 1, ..ListMissed::default() })) };
        let garbage =
            DueGarbage { due_before: Hlc::MAX.get(), limit: GARBAGE_COUNTED, ..DueGarbage::default() };
        let garbage = Query { of: Some(query::Of::DueGarbage(garbage)) };
        let (missed, garbage) = futures::join!(
            tokio::time::timeout(COUNT_TIMEOUT, cluster.query(group, missed)),
            tokio::time::timeout(COUNT_TIMEOUT, cluster.query(group, garbage)),
        );
        let missed = match missed {
            Ok(Ok(answer)) => match answer.ok {
                Some(answer::Ok::Missed(rows)) => rows.total,
                _ => 0,
            },
            _ => 0,
        };
        let garbage = match garbage {
            Ok(Ok(answer)) => match answer.ok {
                Some(answer::Ok::Garbage(rows)) => rows.keys.len() as u64,
                _ => 0,
            },
            _ => 0,
        };
        (missed, garbage)
    });
    let counts = futures::future::join_all(counts).await;
    counts.into_iter().fold((0, 0), |sum, next| (sum.0 + next.0, sum.1 + next.1))
}
