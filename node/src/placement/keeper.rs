//! The zone leader's duties: who is down, which placement groups there are, who votes where. Runs on every meta node and
//! acts only on the one that leads the zone group; whatever it proposes, the next leader would propose too.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use holdfast_machine::LEVEL_MOVES;
use holdfast_proto::meta::{
    ClusterMap, NodeState, Outcome, PutGroups, PutPlacement, Refusal, SetTargetStates, StorageClass,
    TargetState, command, outcome,
};

use super::algorithm::{Candidate, Wanted, plan};
use super::class::{choose, width};
use super::liveness::OutRules;
use crate::formation::voters::{self, MetaNode};
use crate::node::contact::is_meta;
use crate::service::zone_head::ZoneHead;
use crate::supervisor::Progress;

const TICK: Duration = Duration::from_millis(250);
/// A meta node that has not beaten for this long does not become a voter now.
const ALIVE: Duration = Duration::from_secs(5);

/// Runs until the node stops.
pub(crate) async fn run(head: Arc<ZoneHead>, progress: Progress) -> anyhow::Result<()> {
    // The map's generation for which placement was last found to be right.
    let mut placed = 0;
    loop {
        tokio::time::sleep(TICK).await;
        let leads = head.leads();
        head.liveness.lock().lead(leads, head.now());
        if !leads {
            continue;
        }
        match step(&head, &mut placed).await {
            Ok(changes) => {
                progress.done(changes);
                progress.well();
            }
            Err(error) => progress.trouble(format!("{error:#}")),
        }
    }
}

/// One look at everything. Returns how many commands were committed.
async fn step(head: &ZoneHead, placed: &mut u64) -> anyhow::Result<u64> {
    let Some(map) = head.feed.current().filter(|map| map.generation > 0) else { return Ok(0) };
    let mut commands = Vec::new();
    let changes = {
        let mut liveness = head.liveness.lock();
        let mut changes = liveness.changes(&map, head.config.down_after.get(), head.now());
        if may_move(&map) {
            let out = liveness.out(&map, &out_rules(head, &map), head.now());
            changes.extend(out.change);
            *head.out_held_back.lock() = out.held_back;
        }
        changes
    };
    for change in &changes {
        match change.state() {
            TargetState::TargetOut => {
                tracing::warn!(target_id = change.target, "target is out: what it held is brought to others")
            }
            TargetState::TargetDown => {
                tracing::warn!(target_id = change.target, "target is down: writes go elsewhere")
            }
            state => tracing::info!(target_id = change.target, ?state, "target is back"),
        }
    }
    if !changes.is_empty() {
        commands.push(command::Op::SetTargetStates(SetTargetStates { changes }));
    }
    let nodes = meta_nodes(head, &map);
    let mut groups = voters::plan(&nodes, &map.groups);
    if groups.is_empty() && members_settled(head, &map) {
        groups.extend(voters::spread(&nodes, &map.groups));
    }
    if !groups.is_empty() {
        commands.push(command::Op::PutGroups(PutGroups { groups }));
    }
    match placement(head, &map, *placed) {
        Ok(change) => {
            *head.placement_wait.lock() = None;
            if change.is_none() && !map.pgs.is_empty() {
                *placed = map.generation;
            }
            commands.extend(change.map(command::Op::PutPlacement));
        }
        Err(reason) => *head.placement_wait.lock() = Some(reason),
    }
    let count = commands.len() as u64;
    for op in commands {
        let outcome = head.propose(head.request_id(), op).await?;
        accept(&outcome)?;
        settle(head, &outcome).await;
    }
    Ok(count)
}

/// Whether every reader knows where else to ask for a place that moves.
pub(crate) fn may_move(map: &ClusterMap) -> bool {
    map.feature_level >= LEVEL_MOVES
}

fn out_rules(head: &ZoneHead, map: &ClusterMap) -> OutRules {
    OutRules {
        after: head.config.out_after.get(),
        width: map.classes.iter().map(width).max().unwrap_or(1),
        shared_hosts: map.classes.iter().any(|class| width(class) > all_hosts(map, &class.media)),
    }
}

fn accept(outcome: &Outcome) -> anyhow::Result<()> {
    match outcome.refusal() {
        // Somebody else changed the map first: the next look starts from that.
        Refusal::None | Refusal::StaleGeneration => Ok(()),
        refusal => anyhow::bail!("the zone refused: {refusal:?} {}", outcome.detail),
    }
}

/// Waits until this node's own map has what was just committed, so that the next look does not propose it again.
async fn settle(head: &ZoneHead, outcome: &Outcome) {
    if let Some(outcome::Ok::Generation(generation)) = outcome.ok {
        let mut maps = head.feed.subscribe();
        let seen = maps.wait_for(|map| map.as_ref().is_some_and(|map| map.generation >= generation));
        // A slow replica only means that the same is proposed twice.
        drop(tokio::time::timeout(Duration::from_secs(2), seen).await);
    }
}

fn meta_nodes(head: &ZoneHead, map: &ClusterMap) -> Vec<MetaNode> {
    let liveness = head.liveness.lock();
    let now = head.now();
    map.nodes
        .iter()
        .filter(|node| is_meta(node) && node.state() != NodeState::NodeRemoved)
        .map(|node| MetaNode {
            id: node.id,
            host: node.host.clone(),
            alive: node.id == head.me().get() || liveness.beats(node.id, ALIVE, now),
            leaving: node.state() == NodeState::NodeDraining,
        })
        .collect()
}

/// Whether every group has the members that the map names.
fn members_settled(head: &ZoneHead, map: &ClusterMap) -> bool {
    let actual = head.liveness.lock().group_members(ALIVE, head.now());
    map.groups
        .iter()
        .all(|group| actual.get(&group.id).is_some_and(|actual| voters::is_settled(group, actual)))
}

/// Targets of `media` that carry placement groups.
pub(crate) fn candidates(map: &ClusterMap, media: &str) -> Vec<Candidate> {
    let hosts: BTreeMap<u64, &str> = map.nodes.iter().map(|node| (node.id, node.host.as_str())).collect();
    map.targets
        .iter()
        .filter(|target| matches!(target.state(), TargetState::TargetUp | TargetState::TargetDown))
        .filter(|target| target.media == media)
        .filter_map(|target| {
            Some(Candidate {
                id: target.id,
                domain: (*hosts.get(&target.node)?).to_owned(),
                // By the GiB, so that disks of one make count as equal.
                weight: (target.capacity_bytes >> 30).max(1),
            })
        })
        .collect()
}

/// The placement that has to be proposed, if any. Nothing is looked at again before the map has changed since `placed`.
///
/// # Errors
/// What placement waits for, in words.
fn placement(head: &ZoneHead, map: &ClusterMap, placed: u64) -> Result<Option<PutPlacement>, String> {
    if map.generation == placed {
        return Ok(None);
    }
    let next_id = map.pgs.iter().map(|pg| pg.id).max().unwrap_or(0) + 1;
    if let Some(class) = map.classes.first().filter(|_| !map.pgs.is_empty()) {
        return Ok(renew(map, class, next_id).filter(|_| may_move(map)));
    }
    if map.lost.is_some() {
        return Err("targets hold the shards of a zone whose placement is lost: `holdfast meta rebuild` makes it of them"
            .to_owned());
    }
    let targets = candidates(map, "default");
    let initial = head.config.initial_targets as usize;
    if targets.len() < initial {
        return Err(format!(
            "{} of {initial} initial targets have joined (meta.initial_targets)",
            targets.len()
        ));
    }
    let choice = choose(&head.config, &targets)?;
    let wanted = Wanted {
        class: &choice.class.name,
        width: width(&choice.class),
        shared_domains: choice.shared_hosts,
    };
    let known = targets.iter().map(|target| target.id).collect();
    let pgs = plan(&[], &targets, &known, wanted, next_id)
        .ok_or_else(|| format!("{} targets cannot bear groups of {}", targets.len(), wanted.width))?;
    if let Some(warning) = &choice.warning {
        tracing::warn!(warning, "placement is weaker than three hosts would make it");
    }
    tracing::info!(groups = pgs.len(), width = wanted.width, targets = targets.len(), "placement made");
    Ok(Some(PutPlacement { expected_generation: map.generation, classes: vec![choice.class], pgs }))
}

/// What placement has to be by now: places of targets that went out or are drained are given to others, targets that came
/// get their share. `None` when that is how it is, or when too few domains are left for it.
fn renew(map: &ClusterMap, class: &StorageClass, next_id: u32) -> Option<PutPlacement> {
    let existing: Vec<_> = map.pgs.iter().filter(|pg| pg.class == class.name).cloned().collect();
    let mut targets = candidates(map, &class.media);
    let hosts = targets.iter().map(|target| target.domain.clone()).collect::<BTreeSet<_>>().len();
    let width = width(class);
    targets.sort_by_key(|target| target.id);
    let known = map.targets.iter().map(|target| target.id).collect();
    let was_shared = width > all_hosts(map, &class.media);
    let wanted = Wanted { class: &class.name, width, shared_domains: was_shared && width > hosts };
    let renewed = plan(&existing, &targets, &known, wanted, next_id).filter(|pgs| *pgs != existing)?;
    let changed = existing.iter().zip(&renewed).filter(|(a, b)| a != b).count();
    tracing::info!(groups = renewed.len(), was = existing.len(), changed, "placement changes");
    let others = map.pgs.iter().filter(|pg| pg.class != class.name).cloned();
    let pgs = renewed.into_iter().chain(others).collect();
    Some(PutPlacement { expected_generation: map.generation, classes: Vec::new(), pgs })
}

/// Hosts that have targets of `media`, whatever their state.
fn all_hosts(map: &ClusterMap, media: &str) -> usize {
    let nodes: BTreeSet<u64> =
        map.targets.iter().filter(|target| target.media == media).map(|target| target.node).collect();
    let hosts = map.nodes.iter().filter(|node| nodes.contains(&node.id)).map(|node| node.host.as_str());
    hosts.collect::<BTreeSet<_>>().len()
}
