//! Who has been heard of, in the memory of the zone group's leader: nothing here is replicated, and a new leader starts
//! from "everybody was heard of just now", so that a change of leader takes no target down.

use std::collections::HashMap;
use std::time::Duration;

use holdfast_proto::meta::{ClusterMap, Target, TargetReport, TargetState, TargetStateChange};

/// Faults of a target that answers reads as ever: writers are refused by the target itself.
const STILL_READS: [&str; 3] = ["", "full", "stopping"];

/// Times are [`crate::env::Env::monotonic`].
#[derive(Debug, Default)]
pub(crate) struct Liveness {
    /// When this node began to lead; `None` while it does not.
    since: Option<Duration>,
    heard: HashMap<u64, Heard>,
}

#[derive(Debug, Clone)]
struct Heard {
    at: Duration,
    incarnation: u64,
    reports: Vec<TargetReport>,
}

impl Liveness {
    /// This node leads, or does not. A gain forgets what an earlier time of leading heard.
    pub(crate) fn lead(&mut self, leads: bool, now: Duration) {
        if leads != self.since.is_some() {
            self.heard.clear();
            self.since = leads.then_some(now);
        }
    }

    /// A node's beat. `false`: a younger incarnation of it has been heard.
    pub(crate) fn beat(
        &mut self,
        node: u64,
        incarnation: u64,
        reports: Vec<TargetReport>,
        now: Duration,
    ) -> bool {
        if self.heard.get(&node).is_some_and(|heard| heard.incarnation > incarnation) {
            return false;
        }
        self.heard.insert(node, Heard { at: now, incarnation, reports });
        true
    }

    /// How long a node has been silent, as far as this leader can know.
    pub(crate) fn silent(&self, node: u64, now: Duration) -> Duration {
        let last = self.heard.get(&node).map(|heard| heard.at).max(self.since);
        last.map_or(Duration::ZERO, |last| now.saturating_sub(last))
    }

    /// Whether the node itself has beaten within `limit`.
    pub(crate) fn beats(&self, node: u64, limit: Duration, now: Duration) -> bool {
        self.heard.get(&node).is_some_and(|heard| now.saturating_sub(heard.at) <= limit)
    }

    /// What a node last said of its targets.
    pub(crate) fn reports(&self, node: u64) -> &[TargetReport] {
        self.heard.get(&node).map_or(&[], |heard| &heard.reports)
    }

    /// All targets' reports.
    pub(crate) fn all_reports(&self) -> impl Iterator<Item = &TargetReport> {
        self.heard.values().flat_map(|heard| &heard.reports)
    }

    /// Targets whose state has to change: down when their node is silent or their disk failed, up when both are over.
    pub(crate) fn changes(
        &self,
        map: &ClusterMap,
        down_after: Duration,
        now: Duration,
    ) -> Vec<TargetStateChange> {
        if self.since.is_none() {
            return Vec::new();
        }
        map.targets.iter().filter_map(|target| self.change(target, down_after, now)).collect()
    }

    fn change(&self, target: &Target, down_after: Duration, now: Duration) -> Option<TargetStateChange> {
        let report = self.reports(target.node).iter().find(|report| report.target == target.id);
        let failed =
            report.is_some_and(|report| !report.writable && !STILL_READS.contains(&report.fault.as_str()));
        let state = match target.state() {
            TargetState::TargetUp if failed || self.silent(target.node, now) > down_after => {
                TargetState::TargetDown
            }
            TargetState::TargetDown
                if !failed && report.is_some() && self.beats(target.node, down_after, now) =>
            {
                TargetState::TargetUp
            }
            _ => return None,
        };
        Some(TargetStateChange { target: target.id, state: state.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(15);

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn map(state: TargetState) -> ClusterMap {
        ClusterMap {
            targets: vec![Target { id: 7, node: 1, state: state.into(), ..Target::default() }],
            ..ClusterMap::default()
        }
    }

    fn report(fault: &str) -> Vec<TargetReport> {
        vec![TargetReport {
            target: 7,
            writable: fault.is_empty(),
            fault: fault.to_owned(),
            ..TargetReport::default()
        }]
    }

    fn next(liveness: &Liveness, state: TargetState, now: Duration) -> Option<TargetState> {
        liveness.changes(&map(state), LIMIT, now).first().map(TargetStateChange::state)
    }

    #[test]
    fn silence_takes_a_target_down_and_a_beat_brings_it_up() {
        let mut liveness = Liveness::default();
        liveness.lead(true, at(100));
        assert_eq!(next(&liveness, TargetState::TargetUp, at(114)), None);
        assert_eq!(next(&liveness, TargetState::TargetUp, at(116)), Some(TargetState::TargetDown));
        assert_eq!(next(&liveness, TargetState::TargetDown, at(116)), None);
        assert!(liveness.beat(1, 3, report(""), at(117)));
        assert_eq!(next(&liveness, TargetState::TargetDown, at(117)), Some(TargetState::TargetUp));
        assert_eq!(next(&liveness, TargetState::TargetOut, at(117)), None);
    }

    #[test]
    fn a_failed_disk_is_down_though_its_node_beats() {
        let mut liveness = Liveness::default();
        liveness.lead(true, at(0));
        liveness.beat(1, 1, report("full"), at(0));
        assert_eq!(next(&liveness, TargetState::TargetUp, at(1)), None);
        liveness.beat(1, 1, report("fsync failed"), at(1));
        assert_eq!(next(&liveness, TargetState::TargetUp, at(1)), Some(TargetState::TargetDown));
        assert_eq!(next(&liveness, TargetState::TargetDown, at(1)), None);
    }

    #[test]
    fn a_new_leader_waits_before_it_judges() {
        let mut liveness = Liveness::default();
        assert_eq!(next(&liveness, TargetState::TargetUp, at(1000)), None);
        liveness.lead(true, at(1000));
        liveness.beat(1, 1, report(""), at(1001));
        liveness.lead(false, at(1002));
        liveness.lead(true, at(2000));
        assert_eq!(next(&liveness, TargetState::TargetUp, at(2010)), None);
        assert_eq!(next(&liveness, TargetState::TargetUp, at(2016)), Some(TargetState::TargetDown));
    }

    #[test]
    fn an_older_incarnation_is_not_heard() {
        let mut liveness = Liveness::default();
        assert!(liveness.beat(1, 5, report(""), at(1)));
        assert!(!liveness.beat(1, 4, report(""), at(2)));
        assert_eq!(liveness.silent(1, at(3)), at(2));
    }
}
