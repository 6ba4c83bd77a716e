//! Who has been heard of, in the memory of the zone group's leader: nothing here is replicated, and a new leader starts
//! from "everybody was heard of just now", so that a change of leader takes no target down.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use holdfast_machine::FEATURE_LEVEL_FIRST;
use holdfast_proto::hlc::Hlc;
use holdfast_proto::meta::{
    ClusterMap, GroupMembers, GroupScrubReport, Node, NodeState, Target, TargetReport, TargetState,
    TargetStateChange,
};

/// Faults of a target that answers reads as ever: writers are refused by the target itself.
const STILL_READS: [&str; 3] = ["", "full", "stopping"];

/// Times are [`crate::env::Env::monotonic`].
#[derive(Debug, Default)]
pub(crate) struct Liveness {
    /// When this node began to lead; `None` while it does not.
    since: Option<Duration>,
    heard: HashMap<u64, Heard>,
    /// Since when a target has been down, as far as this leader knows.
    down: HashMap<u32, Duration>,
}

/// When a target that is down goes out: what it held is then rebuilt elsewhere, for hours perhaps.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OutRules {
    pub(crate) after: Duration,
    /// Members of the widest placement group.
    pub(crate) width: usize,
    /// Groups have several members on one host, for want of hosts: what counts then is targets.
    pub(crate) shared_hosts: bool,
}

/// What became of targets that have been down for long.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Out {
    pub(crate) change: Vec<TargetStateChange>,
    /// Why some stay, in words.
    pub(crate) held_back: Option<String>,
}

/// Gateways that have not beaten for so long since this node leads are not waited for.
const READERS_HEARD: Duration = Duration::from_secs(15);
/// One that has been silent for longer is taken for dead, and its reads with it: garbage is not kept for them.
const READER_SILENT_MAX: Duration = Duration::from_secs(15 * 60);
/// Targets go out by themselves only while the others would not be fuller than this.
const OUT_FULL_MAX: f64 = 0.85;

#[derive(Debug, Clone)]
struct Heard {
    at: Duration,
    incarnation: u64,
    level: u32,
    reports: Vec<TargetReport>,
    group_scrubs: Vec<GroupScrubReport>,
    /// It has stopped, and said so.
    left: bool,
    /// Of a gateway; zero: not told.
    oldest_read: Hlc,
}

impl Liveness {
    /// This node leads, or does not. A gain forgets what an earlier time of leading heard.
    pub(crate) fn lead(&mut self, leads: bool, now: Duration) {
        if leads != self.since.is_some() {
            self.heard.clear();
            self.down.clear();
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
        let level = self.heard.get(&node).map_or(FEATURE_LEVEL_FIRST, |heard| heard.level);
        let heard = Heard {
            at: now,
            incarnation,
            level,
            reports,
            group_scrubs: Vec::new(),
            oldest_read: Hlc::ZERO,
            left: false,
        };
        self.heard.insert(node, heard);
        true
    }

    /// What a node said in its last beat of the feature level it knows.
    pub(crate) fn knows(&mut self, node: u64, level: u32) {
        if let Some(heard) = self.heard.get_mut(&node) {
            heard.level = level.max(FEATURE_LEVEL_FIRST);
        }
    }

    /// What a node said in its last beat of the groups that it leads or rebuilds.
    pub(crate) fn scrubbed(&mut self, node: u64, group_scrubs: Vec<GroupScrubReport>) {
        if let Some(heard) = self.heard.get_mut(&node) {
            heard.group_scrubs = group_scrubs;
        }
    }

    /// A node says that this was its last beat.
    pub(crate) fn left(&mut self, node: u64) {
        if let Some(heard) = self.heard.get_mut(&node) {
            heard.left = true;
        }
    }

    /// When the oldest read began that is under way through a gateway, as it said in its last beat; zero: it did not say.
    pub(crate) fn reading(&mut self, node: u64, oldest: Hlc) {
        if let Some(heard) = self.heard.get_mut(&node) {
            heard.oldest_read = oldest;
        }
    }

    /// When the oldest read began that is under way through any gateway of the zone; `None` while one that may be there has
    /// not said. One that is silent counts for a while by what it said last.
    pub(crate) fn oldest_read(&self, map: &ClusterMap, now: Duration) -> Option<Hlc> {
        let since = self.since?;
        let is_gateway = |node: &&Node| {
            node.state() != NodeState::NodeRemoved && node.roles.iter().any(|role| role == "gateway")
        };
        let mut oldest = None;
        for node in map.nodes.iter().filter(is_gateway) {
            let reads = |heard: &&Heard| {
                !heard.left
                    && heard.oldest_read != Hlc::ZERO
                    && now.saturating_sub(heard.at) <= READER_SILENT_MAX
            };
            match self.heard.get(&node.id).filter(reads).map(|heard| heard.oldest_read) {
                Some(at) => oldest = Some(oldest.map_or(at, |other: Hlc| other.min(at))),
                None if now.saturating_sub(since) < READERS_HEARD => return None,
                None => {}
            }
        }
        oldest
    }

    /// What a node last said of the groups that it leads or rebuilds.
    pub(crate) fn group_scrubs(&self, node: u64) -> &[GroupScrubReport] {
        self.heard.get(&node).map_or(&[], |heard| &heard.group_scrubs)
    }

    /// Who is in each group, as its leader said in its last beat within `limit`. A group without a leader that says so is
    /// absent.
    pub(crate) fn group_members(&self, limit: Duration, now: Duration) -> BTreeMap<u64, GroupMembers> {
        let fresh = self.heard.values().filter(|heard| now.saturating_sub(heard.at) <= limit);
        let reports = fresh.flat_map(|heard| &heard.group_scrubs);
        reports.filter_map(|report| Some((report.group, report.members.clone()?))).collect()
    }

    /// What all nodes last said of them.
    pub(crate) fn all_group_scrubs(&self) -> impl Iterator<Item = &GroupScrubReport> {
        self.heard.values().flat_map(|heard| &heard.group_scrubs)
    }

    /// The feature level that a node knows; `None` when it has not been heard of.
    pub(crate) fn level(&self, node: u64) -> Option<u32> {
        self.heard.get(&node).map(|heard| heard.level)
    }

    /// How long a node has been silent, as far as this leader can know.
    pub(crate) fn silent(&self, node: u64, now: Duration) -> Duration {
        let last = self.heard.get(&node).map(|heard| heard.at).max(self.since);
        last.map_or(Duration::ZERO, |last| now.saturating_sub(last))
    }

    /// Whether the node itself has beaten within `limit`.
    pub(crate) fn beats(&self, node: u64, limit: Duration, now: Duration) -> bool {
        self.heard.get(&node).is_some_and(|heard| !heard.left && now.saturating_sub(heard.at) <= limit)
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

    /// Targets that have been down for so long that they go out, unless one of the rules of caution holds them back: one
    /// domain at a time, never before most of the zone has been heard of, never under maintenance, never into a full zone,
    /// never below the width of placement groups.
    pub(crate) fn out(&mut self, map: &ClusterMap, rules: &OutRules, now: Duration) -> Out {
        let Some(since) = self.since else { return Out::default() };
        // One that is drained stays that while it is silent, until it is out.
        let is_down = |target: &Target| match target.state() {
            TargetState::TargetDown => true,
            TargetState::TargetDraining => self.silent(target.node, now) > rules.after,
            _ => false,
        };
        let seen = |target: &Target| self.heard.get(&target.node).map_or(since, |heard| heard.at);
        let down: HashMap<u32, Duration> = map
            .targets
            .iter()
            .filter(|target| is_down(target))
            .map(|target| (target.id, self.down.get(&target.id).copied().unwrap_or_else(|| seen(target))))
            .collect();
        self.down = down;
        let long = |target: &&Target| {
            self.down.get(&target.id).is_some_and(|down| now.saturating_sub(*down) > rules.after)
        };
        let mut late: Vec<&Target> = map.targets.iter().filter(long).collect();
        late.sort_by_key(|target| target.id);
        let mut out = Out::default();
        for target in late {
            match self.may_go_out(map, rules, &out.change, target) {
                Ok(()) => out.change.push(TargetStateChange {
                    target: target.id,
                    state: TargetState::TargetOut.into(),
                    why: format!("it has been down for {} s", rules.after.as_secs()),
                }),
                Err(why) => {
                    out.held_back.get_or_insert(format!("target {} stays: {why}", target.id));
                }
            }
        }
        out
    }

    fn may_go_out(
        &self,
        map: &ClusterMap,
        rules: &OutRules,
        going: &[TargetStateChange],
        target: &Target,
    ) -> Result<(), String> {
        let nodes: HashMap<u64, &Node> = map.nodes.iter().map(|node| (node.id, node)).collect();
        let host = |target: &Target| nodes.get(&target.node).map_or("", |node| node.host.as_str());
        let is_out = |other: &&Target| {
            other.state() == TargetState::TargetOut || going.iter().any(|change| change.target == other.id)
        };
        if nodes.get(&target.node).is_some_and(|node| node.state() == NodeState::NodeMaintenance) {
            return Err("its node is under maintenance".to_owned());
        }
        let others = || map.targets.iter().filter(|other| other.id != target.id);
        if let Some(other) = others().filter(is_out).find(|other| host(other) != host(target)) {
            return Err(format!(
                "target {} of another host is out already, and only one goes by itself",
                other.id
            ));
        }
        let heard = map.targets.iter().filter(|other| self.heard.contains_key(&other.node)).count();
        if heard * 2 <= map.targets.len() {
            return Err(format!("of {} targets {heard} have been heard of", map.targets.len()));
        }
        let stay: Vec<&Target> =
            others().filter(|other| !is_out(other)).filter(|other| other.media == target.media).collect();
        let domains: BTreeSet<String> = stay
            .iter()
            .filter(|other| matches!(other.state(), TargetState::TargetUp | TargetState::TargetDown))
            .map(|other| if rules.shared_hosts { other.id.to_string() } else { host(other).to_owned() })
            .collect();
        if domains.len() < rules.width {
            return Err(format!("placement groups need {} of {} other domains", rules.width, domains.len()));
        }
        let full = self.fullness_without(target, &stay);
        if full > OUT_FULL_MAX {
            return Err(format!("the others would be {:.0} % full", full * 100.0));
        }
        Ok(())
    }

    /// How full the targets that stay would be with what `target` holds. What it holds is not known to a leader that never
    /// heard of it; then it counts as the fullest of the others.
    fn fullness_without(&self, target: &Target, stay: &[&Target]) -> f64 {
        let report =
            |target: &Target| self.reports(target.node).iter().find(|report| report.target == target.id);
        let (mut capacity, mut used, mut most) = (0, 0, 0);
        for report in stay.iter().filter_map(|other| report(other)) {
            let holds = report.capacity_bytes.saturating_sub(report.free_bytes);
            capacity += report.capacity_bytes;
            used += holds;
            most = most.max(report.used_bytes);
        }
        let moves = report(target).map_or(most, |report| report.used_bytes);
        if capacity == 0 { 0.0 } else { (used + moves) as f64 / capacity as f64 }
    }

    fn change(&self, target: &Target, down_after: Duration, now: Duration) -> Option<TargetStateChange> {
        let report = self.reports(target.node).iter().find(|report| report.target == target.id);
        let failed =
            report.is_some_and(|report| !report.writable && !STILL_READS.contains(&report.fault.as_str()));
        let fault = report.map_or("", |report| report.fault.as_str());
        let (state, why) = match target.state() {
            TargetState::TargetUp if failed => (TargetState::TargetDown, format!("its disk failed: {fault}")),
            TargetState::TargetUp if self.silent(target.node, now) > down_after => {
                let silent = self.silent(target.node, now).as_secs();
                (TargetState::TargetDown, format!("its node has been silent for {silent} s"))
            }
            TargetState::TargetDown | TargetState::TargetOut
                if !failed && report.is_some() && self.beats(target.node, down_after, now) =>
            {
                (TargetState::TargetUp, "its node is heard again".to_owned())
            }
            _ => return None,
        };
        Some(TargetStateChange { target: target.id, state: state.into(), why })
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
    fn who_says_that_it_stops_is_not_counted_on() {
        let mut liveness = Liveness::default();
        liveness.lead(true, at(100));
        assert!(liveness.beat(1, 3, report(""), at(101)));
        assert!(liveness.beats(1, LIMIT, at(102)));
        liveness.left(1);
        assert!(!liveness.beats(1, LIMIT, at(102)));
        assert_eq!(
            next(&liveness, TargetState::TargetUp, at(110)),
            None,
            "its targets are not down before their time"
        );
        assert!(liveness.beat(1, 4, report(""), at(111)));
        assert!(liveness.beats(1, LIMIT, at(112)));
    }

    #[test]
    fn the_oldest_read_is_known_when_every_gateway_has_said() {
        let gateway = |id| Node { id, roles: vec!["gateway".into()], ..Node::default() };
        let map = ClusterMap { nodes: vec![gateway(1), gateway(2)], ..ClusterMap::default() };
        let mut liveness = Liveness::default();
        assert_eq!(liveness.oldest_read(&map, at(100)), None, "it does not lead");
        liveness.lead(true, at(100));
        let mut read = |node, ms, now| {
            assert!(liveness.beat(node, 1, Vec::new(), now));
            liveness.reading(node, Hlc::from_ms(ms));
            liveness.oldest_read(&map, now)
        };
        assert_eq!(read(1, 50, at(101)), None, "the other may read something older");
        assert_eq!(read(2, 40, at(101)), Some(Hlc::from_ms(40)));
        assert_eq!(read(1, 90, at(200)), Some(Hlc::from_ms(40)), "silent, it counts by what it said last");
        assert_eq!(read(2, 95, at(201)), Some(Hlc::from_ms(90)));
        assert_eq!(read(2, 99, at(1200)), Some(Hlc::from_ms(99)), "the other is dead by now");
        let mut other = Liveness::default();
        other.lead(true, at(300));
        assert!(other.beat(1, 1, Vec::new(), at(301)));
        other.reading(1, Hlc::from_ms(90));
        assert_eq!(other.oldest_read(&map, at(316)), Some(Hlc::from_ms(90)), "the other is not waited for");
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
        assert_eq!(next(&liveness, TargetState::TargetOut, at(117)), Some(TargetState::TargetUp));
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

    /// A zone of one target on each of these hosts; target and node have one number.
    fn zone(hosts: u32) -> ClusterMap {
        let up = TargetState::TargetUp.into();
        ClusterMap {
            nodes: (1..=hosts)
                .map(|id| Node { id: id.into(), host: format!("h{id}"), ..Node::default() })
                .collect(),
            targets: (1..=hosts)
                .map(|id| Target {
                    id,
                    node: id.into(),
                    state: up,
                    media: "default".into(),
                    ..Target::default()
                })
                .collect(),
            ..ClusterMap::default()
        }
    }

    fn set(map: &mut ClusterMap, target: u32, state: TargetState) {
        map.targets[target as usize - 1].set_state(state);
    }

    const RULES: OutRules = OutRules { after: Duration::from_secs(600), width: 6, shared_hosts: false };

    /// A leader since 0 that hears of all targets but these at 1000 s.
    fn leader(map: &ClusterMap, silent: &[u32], used: u64) -> Liveness {
        let mut liveness = Liveness::default();
        liveness.lead(true, at(0));
        for target in map.targets.iter().filter(|target| !silent.contains(&target.id)) {
            let report = TargetReport {
                target: target.id,
                writable: true,
                capacity_bytes: 100,
                used_bytes: used,
                free_bytes: 100 - used,
                ..TargetReport::default()
            };
            liveness.beat(target.node, 1, vec![report], at(1000));
        }
        liveness
    }

    #[test]
    fn a_target_goes_out_after_its_time_and_a_second_host_does_not() {
        let mut map = zone(8);
        set(&mut map, 3, TargetState::TargetDown);
        let mut liveness = leader(&map, &[3], 10);
        assert_eq!(liveness.out(&map, &RULES, at(600)), Out::default());
        let out = liveness.out(&map, &RULES, at(601));
        assert_eq!((out.change.len(), out.change[0].target, out.held_back), (1, 3, None));
        set(&mut map, 3, TargetState::TargetOut);
        set(&mut map, 5, TargetState::TargetDown);
        assert_eq!(liveness.out(&map, &RULES, at(1601)).change.len(), 0, "it was heard of at 1000 s");
        let out = liveness.out(&map, &RULES, at(1602));
        assert!(out.change.is_empty() && out.held_back.is_some_and(|why| why.contains("only one")));
    }

    #[test]
    fn caution_holds_targets_back() {
        let mut map = zone(8);
        set(&mut map, 3, TargetState::TargetDown);
        let held = |liveness: &mut Liveness, map: &ClusterMap| {
            let out = liveness.out(map, &RULES, at(1001));
            assert!(out.change.is_empty());
            out.held_back.unwrap_or_default()
        };
        assert!(held(&mut leader(&map, &[1, 2, 3, 4], 10), &map).contains("heard of"), "a cold start");
        assert!(held(&mut leader(&map, &[3], 80), &map).contains("% full"));
        map.nodes[2].set_state(NodeState::NodeMaintenance);
        assert!(held(&mut leader(&map, &[3], 10), &map).contains("maintenance"));
        let mut six = zone(6);
        set(&mut six, 3, TargetState::TargetDown);
        assert!(held(&mut leader(&six, &[3], 10), &six).contains("other domains"));
    }

    #[test]
    fn both_disks_of_one_host_go_out() {
        let mut map = zone(8);
        map.targets.push(Target { id: 9, node: 3, media: "default".into(), ..map.targets[2].clone() });
        set(&mut map, 3, TargetState::TargetDown);
        map.targets[8].set_state(TargetState::TargetDown);
        let out = leader(&map, &[3, 9], 10).out(&map, &RULES, at(601));
        assert_eq!((out.change.len(), out.held_back), (2, None));
    }
}
