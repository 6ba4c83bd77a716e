//! Every node's beat to the zone's leader: that it is there, and how its targets are.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use holdfast_client::Cluster;
use holdfast_proto::hlc::Hlc;
use holdfast_proto::meta::{HeartbeatRequest, TargetReport};
use tokio::sync::{Notify, watch};

use super::contact::Contact;
use crate::data::Target;
use crate::meta::Groups;
use crate::supervisor::Progress;

const BEAT: Duration = Duration::from_secs(1);
const LAST_DEADLINE: Duration = Duration::from_secs(1);

/// The targets of this node that have an id.
pub(crate) type OpenTargets = Arc<parking_lot::RwLock<BTreeMap<u32, Arc<Target>>>>;

/// What a beat says.
#[derive(Debug, Clone)]
pub(crate) struct Beat {
    pub(crate) contact: Arc<Contact>,
    pub(crate) node: u64,
    pub(crate) incarnation: u64,
    pub(crate) feature_level: u32,
    pub(crate) targets: OpenTargets,
    pub(crate) groups: Option<Arc<Groups>>,
    /// On gateways: whose reads are told.
    pub(crate) cluster: Option<watch::Receiver<Option<Cluster>>>,
    /// Told when the zone does not know this node.
    pub(crate) unknown: Arc<Notify>,
}

/// Beats until the node stops.
pub(crate) async fn run(beat: Beat, progress: Progress) -> anyhow::Result<()> {
    let mut ticks = tokio::time::interval(BEAT);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // A zone that is between two leaders misses a beat or two: that is no trouble.
    let mut missed = 0u32;
    loop {
        ticks.tick().await;
        match beat.contact.heartbeat(beat.request()).await {
            Ok(answer) => {
                if answer.unknown {
                    beat.unknown.notify_one();
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

impl Beat {
    fn request(&self) -> HeartbeatRequest {
        HeartbeatRequest {
            node: self.node,
            incarnation: self.incarnation,
            feature_level: self.feature_level,
            targets: reports(&self.targets),
            map_generation: 0,
            group_scrubs: self.groups.as_ref().map(|groups| groups.scrub_reports()).unwrap_or_default(),
            oldest_read: self.oldest_read().get(),
            leaving: false,
        }
    }

    /// Says that this node stops, so that nobody counts on it any more. Not heard, it is missed a little later.
    pub(crate) async fn last(&self) {
        let request = HeartbeatRequest { leaving: true, ..self.request() };
        match tokio::time::timeout(LAST_DEADLINE, self.contact.heartbeat(request)).await {
            Ok(Ok(_)) => {}
            Ok(Err(fault)) => tracing::debug!(%fault, "the zone did not hear that this node stops"),
            Err(_) => tracing::debug!("the zone did not hear in time that this node stops"),
        }
    }

    /// Zero where nothing is read, or it is not known.
    fn oldest_read(&self) -> Hlc {
        let cluster = self.cluster.as_ref().and_then(|cluster| cluster.borrow().clone());
        cluster.map_or(Hlc::ZERO, |cluster| cluster.oldest_read())
    }
}

fn reports(targets: &OpenTargets) -> Vec<TargetReport> {
    targets.read().iter().map(|(id, target)| TargetReport { target: *id, ..target.report() }).collect()
}
