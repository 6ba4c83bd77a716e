//! Tells the zone's event log what no command says: who leads, what repair did, what is lost, what scrub found, and why
//! targets stay that might go out.
//!
//! On the node that leads the zone; it looks at what the other workers show to `status`. What it told is remembered here, and by
//! the log itself: a new leader that tells the same is not written down.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use holdfast_proto::id::{GroupId, NodeId};
use holdfast_proto::meta::EventSeverity::{self, EventError, EventInfo, EventWarning};
use holdfast_proto::meta::{GroupScrubReport, TargetReport};

use super::repair::RepairState;
use crate::service::zone_head::ZoneHead;
use crate::supervisor::Progress;

const TICK: Duration = Duration::from_secs(1);

/// What has been told since this node began to lead.
#[derive(Debug, Default)]
struct Told {
    leads: bool,
    held_back: Option<String>,
    brought_shards: u64,
    lost: usize,
    found: HashMap<u32, u64>,
    /// Replicas that were wrong when their group's leader last compared.
    wrong: HashMap<u64, Vec<u64>>,
}

/// An event to be.
type Telling = (EventSeverity, &'static str, String, String, String);

/// Runs until the node stops.
pub(crate) async fn run(head: Arc<ZoneHead>, progress: Progress) -> anyhow::Result<()> {
    let mut told = Told::default();
    loop {
        tokio::time::sleep(TICK).await;
        if !head.leads() {
            told = Told::default();
            continue;
        }
        let held_back = head.out_held_back.lock().clone();
        let repair = head.repair.lock().clone();
        let found: Vec<(u32, u64)> = {
            let liveness = head.liveness.lock();
            let reports = liveness.all_reports();
            let found = |report: &TargetReport| Some((report.target, report.scrub.as_ref()?.found));
            reports.filter_map(found).filter(|(_, found)| *found > 0).collect()
        };
        let scrubs: Vec<GroupScrubReport> = head.liveness.lock().all_group_scrubs().cloned().collect();
        for (severity, code, subject, text, why) in told
            .news(&head.me().to_string(), held_back, &repair, &found)
            .into_iter()
            .chain(told.replicas(&scrubs))
        {
            head.tell(severity, code, &subject, text, why).await;
            progress.done(1);
        }
    }
}

impl Told {
    fn news(
        &mut self,
        me: &str,
        held_back: Option<String>,
        repair: &RepairState,
        found: &[(u32, u64)],
    ) -> Vec<Telling> {
        let mut news: Vec<Telling> = Vec::new();
        let zone = || "zone".to_owned();
        if !std::mem::replace(&mut self.leads, true) {
            news.push((EventInfo, "ZONE_LEADER", zone(), format!("node {me} leads the zone"), String::new()));
        }
        if held_back != self.held_back {
            if let Some(why) = &held_back {
                let text = "a target that has been down for long does not go out".to_owned();
                news.push((EventWarning, "OUT_HELD_BACK", zone(), format!("{text}: {why}"), String::new()));
            }
            self.held_back = held_back;
        }
        // At the end of a pass: what it brought, in one event.
        if !repair.running && repair.brought_shards > self.brought_shards {
            let shards = repair.brought_shards - self.brought_shards;
            let text = format!("{shards} shard(s) were brought to where they belong, and read back");
            let why = "targets came, went, missed writes, or held what had gone bad".to_owned();
            news.push((EventInfo, "REPAIRED", zone(), text, why));
            self.brought_shards = repair.brought_shards;
        }
        if !repair.running && repair.lost.len() != self.lost {
            let count = repair.lost.len();
            news.push(match repair.lost.first() {
                Some(one) => {
                    let key = one.key.escape_ascii();
                    let text = format!("{count} stripe(s) are beyond repair, one of them of key {key}");
                    (EventError, "STRIPES_LOST", zone(), text, "too few of their shards are left".to_owned())
                }
                None => {
                    let text = "no stripe is beyond repair any more".to_owned();
                    (EventInfo, "STRIPES_FOUND", zone(), text, "their shards are back".to_owned())
                }
            });
            self.lost = count;
        }
        for (target, found) in found {
            if self.found.insert(*target, *found) != Some(*found) {
                let text = format!("scrub has found {found} bad shard(s) so far");
                let why = "they do not match their checksums; they are stored again".to_owned();
                news.push((EventWarning, "SCRUB_FOUND", format!("target {target}"), text, why));
            }
        }
        news
    }
}

impl Told {
    /// Which replicas' rows are wrong, and that they are right again.
    fn replicas(&mut self, reports: &[GroupScrubReport]) -> Vec<Telling> {
        let mut news: Vec<Telling> = Vec::new();
        let compared = |report: &&GroupScrubReport| report.finished_ms > 0 && !report.running;
        for report in reports.iter().filter(compared) {
            let before = self.wrong.insert(report.group, report.diverged.clone()).unwrap_or_default();
            if before == report.diverged {
                continue;
            }
            let group = GroupId::from_u64(report.group)
                .map_or_else(|_| report.group.to_string(), |id| id.to_string());
            let nodes: Vec<String> =
                report.diverged.iter().map(|node| NodeId::new(*node).to_string()).collect();
            let (nodes, index) = (nodes.join(" "), report.index);
            news.push(match (report.diverged.is_empty(), report.no_majority) {
                (true, _) => {
                    let text = format!("all replicas that were asked have the same rows at index {index}");
                    (EventInfo, "META_EQUAL", format!("group {group}"), text, String::new())
                }
                (false, true) => {
                    let text =
                        format!("the replicas have different rows at index {index}: nothing is rebuilt");
                    let why = "no digest is that of more than half of the members".to_owned();
                    (EventError, "META_NO_MAJORITY", format!("group {group}"), text, why)
                }
                (false, false) => {
                    let text =
                        format!("the rows on node(s) {nodes} are wrong at index {index} and are replaced");
                    let why = "more than half of the members have the same other rows".to_owned();
                    (EventError, "META_DIVERGED", format!("group {group}"), text, why)
                }
            });
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn codes(news: &[Telling]) -> Vec<&'static str> {
        news.iter().map(|telling| telling.1).collect()
    }

    #[test]
    fn each_thing_is_told_once() {
        let mut told = Told::default();
        let mut repair = RepairState::default();
        (repair.running, repair.brought_shards) = (true, 3);
        assert_eq!(codes(&told.news("1.1", None, &repair, &[])), ["ZONE_LEADER"]);
        assert_eq!(
            codes(&told.news("1.1", Some("x".into()), &repair, &[(4, 2)])),
            ["OUT_HELD_BACK", "SCRUB_FOUND"]
        );
        repair.running = false;
        let news = told.news("1.1", Some("x".into()), &repair, &[(4, 2)]);
        assert_eq!(codes(&news), ["REPAIRED"], "when the pass is over");
        assert!(news[0].3.starts_with("3 shard"));
        assert!(told.news("1.1", Some("x".into()), &repair, &[(4, 2)]).is_empty());
        let lost = super::super::repair::LostStripe {
            bucket: Default::default(),
            key: "k".into(),
            write: Default::default(),
            stripe: 0,
            alive: 3,
            needed: 4,
        };
        repair.lost = vec![lost];
        assert_eq!(codes(&told.news("1.1", None, &repair, &[(4, 3)])), ["STRIPES_LOST", "SCRUB_FOUND"]);
        repair.lost.clear();
        assert_eq!(codes(&told.news("1.1", None, &repair, &[(4, 3)])), ["STRIPES_FOUND"]);
    }
}
