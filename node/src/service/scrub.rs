//! `scrub start`: asks targets to read themselves through, or groups to compare their replicas.

use futures::future::join_all;
use holdfast_proto::admin::StartScrubResponse;
use holdfast_proto::error::Fault;
use holdfast_proto::id::{GroupId, NodeId};
use holdfast_proto::meta::ClusterMap;
use holdfast_proto::v1::FaultKind;

use super::zone_head::ZoneHead;
use crate::worker::reach::Reach;

/// Targets asked at a time.
const AT_ONCE: usize = 16;

/// Asks these targets, or all of the zone.
///
/// # Errors
/// `INVALID` for a target that the zone does not have.
pub(super) async fn start(map: &ClusterMap, targets: Vec<u32>) -> Result<StartScrubResponse, Fault> {
    let known = |id: &u32| map.targets.iter().any(|row| row.id == *id);
    if let Some(id) = targets.iter().find(|id| !known(id)) {
        return Err(Fault::new(FaultKind::Invalid, format!("no target {id}")));
    }
    let all = map.targets.iter().map(|row| row.id).filter(|id| targets.is_empty() || targets.contains(id));
    let all: Vec<u32> = all.collect();
    let mut answer = StartScrubResponse::default();
    for some in all.chunks(AT_ONCE) {
        let asked = join_all(some.iter().map(|id| one(map, *id))).await;
        for (id, outcome) in some.iter().zip(asked) {
            match outcome {
                Ok(()) => answer.started.push(*id),
                Err(error) => answer.failed.push(format!("target {id}: {error:#}")),
            }
        }
    }
    Ok(answer)
}

/// Asks the leader of every group.
pub(super) async fn start_meta(head: &ZoneHead, map: &ClusterMap) -> StartScrubResponse {
    let asked = map.groups.iter().map(|group| async move {
        let id = GroupId::from_u64(group.id).map_err(|error| format!("group {}: {error}", group.id))?;
        let voters: Vec<NodeId> = group.voters.iter().copied().map(NodeId::new).collect();
        let started = head.groups.start_scrub(id, &voters).await;
        started.map(|()| group.id).map_err(|fault| format!("group {id}: {}", fault.message))
    });
    let (mut groups, mut failed) = (Vec::new(), Vec::new());
    for outcome in join_all(asked).await {
        match outcome {
            Ok(group) => groups.push(group),
            Err(why) => failed.push(why),
        }
    }
    StartScrubResponse { groups, failed, ..StartScrubResponse::default() }
}

async fn one(map: &ClusterMap, id: u32) -> anyhow::Result<()> {
    Reach::default().scrub(map, id).await
}
