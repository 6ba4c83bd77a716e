//! Brings the members of each group that this node leads to what the zone's state names, and hands leadership to the
//! voter whose turn it is.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use holdfast_proto::id::{GroupId, NodeId};
use holdfast_proto::meta::{ClusterMap, Group};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::voters::preferred_leader;
use crate::meta::Groups;
use crate::node::map_feed::MapFeed;
use crate::supervisor::Progress;

const TICK: Duration = Duration::from_millis(500);
/// Leadership moves only while nothing else has for this long: after a failure the zone has other things to do.
const CALM: Duration = Duration::from_secs(10);
const RETRY_MIN: Duration = Duration::from_secs(15);
const RETRY_MAX: Duration = Duration::from_secs(600);
const PROBE: Duration = Duration::from_secs(1);

/// Runs until the node stops.
pub(crate) async fn run(
    groups: Arc<Groups>,
    feed: MapFeed,
    me: NodeId,
    progress: Progress,
) -> anyhow::Result<()> {
    let mut balance = Balance::default();
    loop {
        tokio::time::sleep(TICK).await;
        let Some(map) = feed.current() else { continue };
        let led: Vec<&Group> = map
            .groups
            .iter()
            .filter(|group| GroupId::from_u64(group.id).is_ok_and(|id| groups.is_leader(id)))
            .collect();
        let different: Vec<&Group> = led.iter().copied().filter(|group| differs(&groups, group)).collect();
        progress.backlog(different.len() as u64);
        if different.is_empty() {
            progress.well();
            balance.step(&groups, &map, &led, me).await;
            continue;
        }
        balance.disturbed();
        let changes = different.into_iter().map(|group| change(&groups, group));
        for outcome in futures::future::join_all(changes).await {
            match outcome {
                Ok(()) => progress.done(1),
                Err(error) => progress.trouble(error),
            }
        }
    }
}

fn sets(group: &Group) -> (BTreeSet<NodeId>, BTreeSet<NodeId>) {
    let of = |ids: &[u64]| ids.iter().copied().map(NodeId::new).collect();
    (of(&group.voters), of(&group.learners))
}

fn differs(groups: &Groups, group: &Group) -> bool {
    GroupId::from_u64(group.id)
        .is_ok_and(|id| groups.members(id).is_some_and(|members| members != sets(group)))
}

async fn change(groups: &Groups, group: &Group) -> anyhow::Result<()> {
    let id = GroupId::from_u64(group.id)?;
    let (voters, learners) = sets(group);
    let count = voters.len();
    groups
        .set_members(id, voters, learners)
        .await
        .map_err(|fault| anyhow::Error::new(fault).context(format!("members of group {id}")))?;
    tracing::debug!(group = %id, voters = count, "members changed");
    Ok(())
}

/// When to hand leadership over.
#[derive(Debug, Default)]
struct Balance {
    calm_since: Option<Instant>,
    leads: BTreeSet<u64>,
    tries: HashMap<u64, (Instant, Duration)>,
}

impl Balance {
    fn disturbed(&mut self) {
        self.calm_since = None;
    }

    async fn step(&mut self, groups: &Groups, map: &ClusterMap, led: &[&Group], me: NodeId) {
        let now = Instant::now();
        let leads: BTreeSet<u64> = led.iter().map(|group| group.id).collect();
        if leads != self.leads {
            self.leads = leads;
            self.calm_since = None;
        }
        if now.duration_since(*self.calm_since.get_or_insert(now)) < CALM {
            return;
        }
        for group in led {
            let Some(to) = preferred_leader(group, &map.groups).filter(|to| *to != me.get()) else {
                continue;
            };
            if groups.is_clock_off(NodeId::new(to)) {
                continue;
            }
            let (next, pause) = self.tries.get(&group.id).copied().unwrap_or((now, RETRY_MIN));
            if now < next {
                continue;
            }
            self.tries.insert(group.id, (now + pause, (pause * 2).min(RETRY_MAX)));
            let Some(address) = map.nodes.iter().find(|node| node.id == to).map(|node| node.addr.as_str())
            else {
                continue;
            };
            // Leadership given to a node that is not there is an outage of an election timeout.
            if !matches!(tokio::time::timeout(PROBE, TcpStream::connect(address)).await, Ok(Ok(_))) {
                continue;
            }
            if let Ok(id) = GroupId::from_u64(group.id) {
                match groups.transfer_leader(id, NodeId::new(to)).await {
                    Ok(()) => tracing::debug!(group = %id, to = %NodeId::new(to), "leadership handed over"),
                    Err(fault) => tracing::debug!(group = %id, error = %fault, "leadership stays"),
                }
                // One at a time; the next tick sees how it went.
                return;
            }
        }
    }
}
