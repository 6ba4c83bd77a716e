//! Named conditions of the zone, each with a sentence and a next step. Pure: status in, codes out.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_proto::admin::{GroupStatus, HealthCode, NodeStatus};
use holdfast_proto::hlc::Hlc;
use holdfast_proto::id::{GroupId, NodeId};
use holdfast_proto::limits::BACKUP_HOLD_MS_MAX;
use holdfast_proto::meta::{ClusterMap, Node, NodeState, TargetState};

use crate::formation::voters::voter_count;
use crate::node::contact::is_meta;
use crate::placement::class::width;

const DAY_MS: u64 = 24 * 3600 * 1000;

/// What the codes are derived from.
#[derive(Debug)]
pub(crate) struct Facts<'a> {
    pub(crate) map: &'a ClusterMap,
    pub(crate) nodes: &'a [NodeStatus],
    pub(crate) groups: &'a [GroupStatus],
    /// Whether the one who looks leads the zone: only it hears the nodes.
    pub(crate) leads: bool,
    pub(crate) placement_wait: Option<&'a str>,
    pub(crate) missed_writes: u64,
    /// Stripes that are beyond repair as things are.
    pub(crate) lost_stripes: usize,
    /// Why targets that are down for long stay so.
    pub(crate) out_held_back: Option<&'a str>,
    /// Which node keeps the feature level from rising, in words.
    pub(crate) level_held: Option<&'a str>,
    /// Meta nodes that `zone init` named.
    pub(crate) meta_named: usize,
    /// Now, as the zone tells time.
    pub(crate) hlc: Hlc,
}

fn code(severity: &str, code: &str, summary: String, next_step: &str) -> HealthCode {
    HealthCode {
        code: code.to_owned(),
        severity: severity.to_owned(),
        summary,
        next_step: next_step.to_owned(),
    }
}

/// All conditions, errors first.
pub(crate) fn codes(facts: &Facts<'_>) -> Vec<HealthCode> {
    let mut codes = Vec::new();
    leaders(facts, &mut codes);
    meta_nodes(facts, &mut codes);
    replicas(facts, &mut codes);
    placement(facts, &mut codes);
    repair(facts, &mut codes);
    targets(facts, &mut codes);
    level(facts, &mut codes);
    history(facts, &mut codes);
    codes.sort_by_key(|code| code.severity != "error");
    codes
}

fn level(facts: &Facts<'_>, codes: &mut Vec<HealthCode>) {
    if let Some(held) = facts.level_held {
        codes.push(code(
            "warning",
            "FEATURE_LEVEL_HELD",
            format!("the zone stays at feature level {}: {held}", facts.map.feature_level),
            "upgrade that node, or take its node.feature_level_max away; until then nothing is rebuilt elsewhere",
        ));
    }
}

fn history(facts: &Facts<'_>, codes: &mut Vec<HealthCode>) {
    let hold = BACKUP_HOLD_MS_MAX;
    let begun = Hlc::from_u64(facts.map.backup_begun);
    if begun != Hlc::ZERO && begun < facts.hlc.minus_ms(hold) {
        codes.push(code(
            "warning",
            "BACKUP_OLD",
            format!(
                "the newest backup of the metadata is {} days old: what it owns is not kept any more",
                facts.hlc.ms().saturating_sub(begun.ms()) / DAY_MS
            ),
            "make one every day: `holdfast meta backup`",
        ));
    }
    if facts.map.orphans_held != 0 {
        codes.push(code(
            "warning",
            "ORPHANS_HELD",
            "the zone was recovered: shards of writes that nobody owns are kept".to_owned(),
            "look with `holdfast fsck` at what is missed; then `holdfast zone release-orphans`",
        ));
    }
}

fn leaders(facts: &Facts<'_>, codes: &mut Vec<HealthCode>) {
    if !facts.leads {
        codes.push(code(
            "error",
            "NO_ZONE_LEADER",
            "the zone group has no leader that this node can reach: what is shown may be old".to_owned(),
            "start the meta nodes that are down; a majority of the voters is needed",
        ));
    }
    for group in facts.groups.iter().filter(|group| group.leader == 0) {
        let name =
            GroupId::from_u64(group.group).map_or_else(|_| group.group.to_string(), |id| id.to_string());
        codes.push(code(
            "error",
            "GROUP_NO_LEADER",
            format!("group {name} has no leader"),
            "start the meta nodes that are down; a majority of the voters is needed",
        ));
    }
}

fn meta_nodes(facts: &Facts<'_>, codes: &mut Vec<HealthCode>) {
    let is_here = |node: &&Node| is_meta(node) && node.state() != NodeState::NodeRemoved;
    let meta: Vec<_> = facts.map.nodes.iter().filter(is_here).collect();
    let hosts: BTreeSet<&str> = meta.iter().map(|node| node.host.as_str()).collect();
    if meta.len() < facts.meta_named {
        codes.push(code(
            "warning",
            "META_NODES_MISSING",
            format!("{} of the {} meta nodes named at zone init have joined", meta.len(), facts.meta_named),
            "start the missing ones with their seeds and join token",
        ));
    } else if voter_count(hosts.len()) < 3 {
        codes.push(code(
            "warning",
            "META_NOT_REPLICATED",
            format!("metadata has one voter: there are meta nodes on {} host(s)", hosts.len()),
            "add meta nodes until there are three hosts",
        ));
    }
    for node in facts.nodes.iter().filter(|node| !node.alive) {
        let id = NodeId::new(node.node);
        codes.push(code(
            "error",
            "NODE_SILENT",
            format!("node {id} has been silent for {} s", node.silent_ms / 1000),
            "start it, or look at its log",
        ));
    }
}

fn replicas(facts: &Facts<'_>, codes: &mut Vec<HealthCode>) {
    let name = |group| GroupId::from_u64(group).map_or_else(|_| group.to_string(), |id| id.to_string());
    for (node, report) in
        facts.nodes.iter().flat_map(|node| node.group_scrubs.iter().map(move |report| (node.node, report)))
    {
        let group = name(report.group);
        if report.no_majority {
            codes.push(code(
                "error",
                "META_NO_MAJORITY",
                format!("the replicas of group {group} have different rows, and no more than half of them the same"),
                "nothing is rebuilt: start the meta nodes that are down, then `holdfast scrub start --meta`; if all are up, stop writes and look for the cause",
            ));
            continue;
        }
        let odd = report.diverged.iter().copied().chain((!report.rebuilding.is_empty()).then_some(node));
        let odd: BTreeSet<u64> = odd.collect();
        for node in odd {
            let id = NodeId::new(node);
            let why = match report.rebuilding.as_str() {
                "" => "they differ from the other members'",
                why => why,
            };
            codes.push(code(
                "error",
                "META_DIVERGED",
                format!("the rows of group {group} on node {id} are wrong: {why}"),
                "they are replaced by another member's; look at the node's disk and memory",
            ));
        }
    }
}

fn placement(facts: &Facts<'_>, codes: &mut Vec<HealthCode>) {
    if let Some(reason) = facts.placement_wait {
        codes.push(code(
            "error",
            "NO_PLACEMENT",
            format!("nothing larger than a metadata row can be stored: {reason}"),
            "add data nodes, or change [meta] of the meta nodes",
        ));
    }
    let hosts: BTreeMap<u64, &str> =
        facts.map.nodes.iter().map(|node| (node.id, node.host.as_str())).collect();
    let used: BTreeSet<&str> =
        facts.map.targets.iter().filter_map(|target| hosts.get(&target.node).copied()).collect();
    for class in facts.map.classes.iter().filter(|_| !facts.map.pgs.is_empty()) {
        let width = width(class);
        if width == 1 {
            codes.push(code(
                "warning",
                "ONE_COPY",
                format!("class {} keeps one copy: a lost disk is lost data", class.name),
                "keep nothing here that cannot be lost",
            ));
        } else if used.len() < width {
            codes.push(code(
                "warning",
                "HOSTS_SHARED",
                format!("class {} spreads {width} shards over {} host(s)", class.name, used.len()),
                "add data nodes on other hosts",
            ));
        } else if used.len() == width {
            codes.push(code(
                "warning",
                "NO_SPARE_HOST",
                format!(
                    "class {} uses all {width} hosts: what a lost host held cannot be rebuilt elsewhere",
                    class.name
                ),
                "add a data node on one more host",
            ));
        }
    }
    if facts.missed_writes > 0 {
        codes.push(code(
            "warning",
            "SHARDS_MISSING",
            format!(
                "{} write(s) are stored with fewer shards than their class asks for",
                facts.missed_writes
            ),
            "they can be read; they are completed as soon as their targets are up: bring those back",
        ));
    }
}

/// A target this full is warned of; writes stop at 90 %.
const NEARLY_FULL: f64 = 0.8;

fn repair(facts: &Facts<'_>, codes: &mut Vec<HealthCode>) {
    if facts.lost_stripes > 0 {
        codes.push(code(
            "error",
            "OBJECTS_LOST",
            format!("{} stripe(s) have fewer shards left than can be read", facts.lost_stripes),
            "bring back the disks that are down or out; `status` names the keys, `holdfast object stat` their targets",
        ));
    }
    if let Some(why) = facts.out_held_back {
        codes.push(code(
            "warning",
            "OUT_HELD_BACK",
            format!("what is down for long is not rebuilt elsewhere: {why}"),
            "bring it back, or remove what is gone for good (`holdfast target remove`)",
        ));
    }
    let moving: usize = facts.map.pgs.iter().map(|pg| pg.moving.len()).sum();
    if moving > 0 {
        codes.push(code(
            "warning",
            "PLACEMENT_MOVING",
            format!("{moving} place(s) of placement groups are being brought to their members"),
            "wait; `status` shows what repair does",
        ));
    }
    for node in facts.map.nodes.iter().filter(|node| node.state() == NodeState::NodeMaintenance) {
        let id = NodeId::new(node.id);
        codes.push(code(
            "warning",
            "NODE_MAINTENANCE",
            format!("node {id} is under maintenance: its targets do not go out by themselves"),
            "say `holdfast node maintenance off` when it is over",
        ));
    }
}

/// What a target last said that it holds, in words.
fn shards_left(facts: &Facts<'_>, target: u32) -> String {
    let report = facts.nodes.iter().flat_map(|node| &node.targets).find(|report| report.target == target);
    report.map_or_else(|| "an unknown number of".to_owned(), |report| report.shards.to_string())
}

fn targets(facts: &Facts<'_>, codes: &mut Vec<HealthCode>) {
    for target in &facts.map.targets {
        let state = target.state();
        if state == TargetState::TargetDown {
            codes.push(code(
                "error",
                "TARGET_DOWN",
                format!(
                    "target {} on node {} is down: writes go elsewhere",
                    target.id,
                    NodeId::new(target.node)
                ),
                "start its node, or replace its disk",
            ));
        }
        if state == TargetState::TargetOut {
            codes.push(code(
                "error",
                "TARGET_OUT",
                format!(
                    "target {} on node {} is out: what it held is rebuilt on others",
                    target.id,
                    NodeId::new(target.node)
                ),
                "start its node, and it takes part again; or `holdfast target remove` it",
            ));
        }
        if state == TargetState::TargetDraining {
            let has = |pg: &&holdfast_proto::meta::PlacementGroup| {
                let was = pg.moving.iter().any(|moving| moving.from.contains(&target.id));
                was || pg.targets.contains(&target.id)
            };
            let left = facts.map.pgs.iter().filter(has).count();
            codes.push(code(
                "warning",
                "TARGET_DRAINING",
                format!(
                    "target {} is being drained: {left} placement group(s) have shards on it, {} shard(s) are left",
                    target.id,
                    shards_left(facts, target.id)
                ),
                "wait; then `holdfast target remove`",
            ));
        }
    }
    for report in facts.nodes.iter().flat_map(|node| &node.targets) {
        if report.corrupt_blocks > 0 {
            codes.push(code(
                "warning",
                "CORRUPT_BLOCKS",
                format!(
                    "target {} found {} block(s) that do not match their checksum",
                    report.target, report.corrupt_blocks
                ),
                "what was read was right; look at the disk",
            ));
        }
        if report.bad_shards > 0 {
            codes.push(code(
                "error",
                "SHARDS_BAD",
                format!(
                    "target {} holds {} shard(s) that do not match their checksums",
                    report.target, report.bad_shards
                ),
                "wait: they are stored again from the others; if it stays, see what repair says",
            ));
        }
        if report.scrub.as_ref().is_some_and(|scrub| scrub.overdue) {
            codes.push(code(
                "warning",
                "SCRUB_OVERDUE",
                format!("target {} has not been read through for twice its data.scrub_every", report.target),
                "raise data.scrub_bytes_per_second, or look at its node's log",
            ));
        }
        let used = report.capacity_bytes.saturating_sub(report.free_bytes);
        if report.capacity_bytes > 0 && used as f64 / report.capacity_bytes as f64 >= NEARLY_FULL {
            codes.push(code(
                "warning",
                "SPACE_NEARLY_FULL",
                format!("target {} is {} % full", report.target, used * 100 / report.capacity_bytes),
                "delete, or add targets: at 90 % it takes no more writes",
            ));
        }
        if !report.writable {
            codes.push(code(
                "error",
                "TARGET_READ_ONLY",
                format!("target {} takes no writes: {}", report.target, report.fault),
                "free space or replace the disk",
            ));
        } else if report.recovering {
            codes.push(code(
                "warning",
                "TARGET_RECOVERING",
                format!("target {} is reading its segments after an unclean stop", report.target),
                "wait",
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_proto::meta::{GroupScrubReport, Node, PlacementGroup, StorageClass, Target, TargetReport};

    fn zone(hosts: u64) -> ClusterMap {
        let node = |id: u64, role: &str| Node {
            id,
            host: format!("h{id}"),
            roles: vec![role.to_owned()],
            ..Node::default()
        };
        ClusterMap {
            nodes: (1..=3)
                .map(|id| node(id, "meta"))
                .chain((4..4 + hosts).map(|id| node(id, "data")))
                .collect(),
            targets: (4..4 + hosts)
                .map(|id| Target {
                    id: id as u32,
                    node: id,
                    state: TargetState::TargetUp.into(),
                    ..Target::default()
                })
                .collect(),
            pgs: vec![PlacementGroup::default()],
            classes: vec![StorageClass {
                name: "STANDARD".to_owned(),
                scheme: Some(crate::placement::class::copies(3)),
                ..StorageClass::default()
            }],
            ..ClusterMap::default()
        }
    }

    fn names(facts: &Facts<'_>) -> Vec<String> {
        codes(facts).into_iter().map(|code| code.code).collect()
    }

    fn well(map: &ClusterMap) -> Facts<'_> {
        Facts {
            map,
            nodes: &[],
            groups: &[],
            leads: true,
            placement_wait: None,
            missed_writes: 0,
            lost_stripes: 0,
            out_held_back: None,
            level_held: None,
            meta_named: 3,
            hlc: Hlc::from_ms(30 * DAY_MS),
        }
    }

    #[test]
    fn a_zone_with_a_spare_host_is_well() {
        assert_eq!(names(&well(&zone(4))), Vec::<String>::new());
        assert_eq!(names(&well(&zone(3))), ["NO_SPARE_HOST"]);
        assert_eq!(names(&well(&zone(2))), ["HOSTS_SHARED"]);
    }

    #[test]
    fn replicas_that_differ_are_told_with_their_node() {
        let map = zone(4);
        let odd = GroupScrubReport { group: 1, diverged: vec![2], ..GroupScrubReport::default() };
        let torn = GroupScrubReport { no_majority: true, diverged: vec![3], ..odd.clone() };
        let rebuilt = GroupScrubReport { rebuilding: "x".into(), ..GroupScrubReport::default() };
        for (report, expected) in
            [(odd, "META_DIVERGED"), (torn, "META_NO_MAJORITY"), (rebuilt, "META_DIVERGED")]
        {
            let nodes =
                [NodeStatus { node: 1, alive: true, group_scrubs: vec![report], ..NodeStatus::default() }];
            assert_eq!(names(&Facts { nodes: &nodes, ..well(&map) }), [expected]);
        }
    }

    #[test]
    fn old_backups_and_recoveries_are_told() {
        let mut map = zone(4);
        map.backup_begun = Hlc::from_ms(24 * DAY_MS).get();
        assert_eq!(names(&well(&map)), Vec::<String>::new());
        map.backup_begun = Hlc::from_ms(22 * DAY_MS).get();
        map.orphans_held = 1;
        assert_eq!(names(&well(&map)), ["BACKUP_OLD", "ORPHANS_HELD"]);
    }

    #[test]
    fn errors_come_first() {
        let mut map = zone(4);
        map.targets[0].set_state(TargetState::TargetDown);
        let report = TargetReport { target: 5, writable: true, corrupt_blocks: 2, ..TargetReport::default() };
        let nodes = [NodeStatus {
            node: 4,
            alive: false,
            silent_ms: 20_000,
            targets: vec![report],
            group_scrubs: vec![],
        }];
        let facts = Facts { nodes: &nodes, missed_writes: 1, ..well(&map) };
        assert_eq!(names(&facts), ["NODE_SILENT", "TARGET_DOWN", "SHARDS_MISSING", "CORRUPT_BLOCKS"]);
    }

    /// Names that stand alone on a line of this file: the codes, each in the call that makes it.
    fn codes_made_here() -> BTreeSet<&'static str> {
        let name = |line: &'static str| line.trim().strip_prefix('"')?.strip_suffix("\",");
        let is_code = |name: &&str| name.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_');
        include_str!("health.rs").lines().filter_map(name).filter(is_code).collect()
    }

    #[test]
    fn every_code_is_in_the_table_for_operators() {
        let table = include_str!("../../../docs/health.md");
        let told: BTreeSet<&str> = table
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
            .map(|(code, _)| code)
            .collect();
        assert_eq!(told, codes_made_here());
    }

    #[test]
    fn what_moves_leaves_or_is_lost_is_told() {
        let mut map = zone(4);
        map.targets[0].set_state(TargetState::TargetOut);
        map.targets[1].set_state(TargetState::TargetDraining);
        map.nodes[5].set_state(NodeState::NodeMaintenance);
        map.pgs[0].moving = vec![holdfast_proto::meta::MovingPlace { place: 0, from: vec![5] }];
        let report = TargetReport {
            target: 6,
            writable: true,
            capacity_bytes: 100,
            free_bytes: 15,
            ..TargetReport::default()
        };
        let nodes =
            [NodeStatus { node: 6, alive: true, silent_ms: 0, targets: vec![report], group_scrubs: vec![] }];
        let facts = Facts {
            nodes: &nodes,
            lost_stripes: 1,
            out_held_back: Some("x"),
            level_held: Some("y"),
            ..well(&map)
        };
        let told = ["OBJECTS_LOST", "TARGET_OUT", "OUT_HELD_BACK", "PLACEMENT_MOVING", "NODE_MAINTENANCE"];
        assert_eq!(names(&facts)[..5], told);
        assert_eq!(names(&facts)[5..], ["TARGET_DRAINING", "SPACE_NEARLY_FULL", "FEATURE_LEVEL_HELD"]);
    }
}
