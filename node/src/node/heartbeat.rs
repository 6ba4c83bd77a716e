//! Every node's beat to the zone's leader: that it is there, and how its targets are.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use holdfast_proto::meta::{HeartbeatRequest, TargetReport};
use tokio::sync::Notify;

use super::contact::Contact;
use crate::data::Target;
use crate::meta::Groups;
use crate::supervisor::Progress;

const BEAT: Duration = Duration::from_secs(1);

/// The targets of this node that have an id.
pub(crate) type OpenTargets = Arc<parking_lot::RwLock<BTreeMap<u32, Arc<Target>>>>;

/// Beats until the node stops. `unknown` is told when the zone does not know this node.
pub(crate) async fn run(
    contact: Arc<Contact>,
    node: u64,
    incarnation: u64,
    feature_level: u32,
    targets: OpenTargets,
    groups: Option<Arc<Groups>>,
    unknown: Arc<Notify>,
    progress: Progress,
) -> anyhow::Result<()> {
    let mut ticks = tokio::time::interval(BEAT);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // A zone that is between two leaders misses a beat or two: that is no trouble.
    let mut missed = 0u32;
    loop {
        ticks.tick().await;
        let request = HeartbeatRequest {
            node,
            incarnation,
            feature_level,
            targets: reports(&targets),
            map_generation: 0,
            group_scrubs: groups.as_ref().map(|groups| groups.scrub_reports()).unwrap_or_default(),
        };
        match contact.heartbeat(request).await {
            Ok(answer) => {
                if answer.unknown {
                    unknown.notify_one();
                }
                missed = 0;
                progress.done(1);
                progress.well();
            }
            Err(fault) => {
                missed += 1;
                if missed == 5 {
                    progress.trouble(format!("the zone does not hear this node: {}", fault.message));
                }
            }
        }
    }
}

fn reports(targets: &OpenTargets) -> Vec<TargetReport> {
    targets.read().iter().map(|(id, target)| TargetReport { target: *id, ..target.report() }).collect()
}
