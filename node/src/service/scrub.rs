//! `scrub start`: asks targets to read themselves through.

use futures::future::join_all;
use holdfast_proto::admin::StartScrubResponse;
use holdfast_proto::error::Fault;
use holdfast_proto::meta::ClusterMap;
use holdfast_proto::v1::FaultKind;

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

async fn one(map: &ClusterMap, id: u32) -> anyhow::Result<()> {
    Reach::default().scrub(map, id).await
}
