//! A zone whose metadata was lost, in whole or in its newest part: what it must not forget that it may have done.
//!
//! Rows of a backup, or of one replica of several, may be older than what was acknowledged. Numbers that may have been given to
//! nodes and targets since are left out, and whoever has one of them is taken in again; shards that nobody owns are kept until
//! an operator says otherwise; other meta nodes, which may know another history, are removed.
//!
//! A backup in turn holds garbage: what its rows own stays on the targets until a newer one is finished.

use holdfast_proto::hlc::Hlc;
use holdfast_proto::id::{BucketId, NodeId};
use holdfast_proto::limits::MAP_LIFE_SHIFT;
use holdfast_proto::meta::EventSeverity::{EventInfo, EventWarning};
use holdfast_proto::meta::{
    BackupMark, Bucket, DroppedBucket, FinishBackup, Group, InitZone, LostNumbers, Node, NodeState, Outcome,
    RecoverZone, Refusal, Zone,
};

use crate::Halt;
use crate::bucket::generation;
use crate::key;
use crate::kv::{Kv, KvRead};
use crate::row::{self, Step, refuse};
use crate::session::{self, Session};
use crate::wire;
use crate::zone::{node_key, rows, target_key};

/// Numbers of nodes that a recovery leaves out: more than were given out since any backup.
pub const NODES_SKIPPED: u64 = 1 << 20;
/// Numbers of targets likewise; 65,535 recoveries use them up.
pub const TARGETS_SKIPPED: u32 = 1 << 16;
/// Generations of the map likewise: clients keep the highest they have seen.
pub const GENERATIONS_SKIPPED: u64 = 1 << MAP_LIFE_SHIFT;
/// Backups that were begun and not finished are remembered, so many.
const BACKUPS_MAX: usize = 8;

/// The newest backup that was finished.
pub(crate) fn newest_finished(backups: &[BackupMark]) -> Option<&BackupMark> {
    backups.iter().filter(|mark| mark.finished != 0).max_by_key(|mark| mark.begun)
}

/// From which instant on garbage is kept: that of the newest finished backup, or of the first one that is being made.
pub(crate) fn garbage_held(backups: &[BackupMark]) -> u64 {
    let first = || backups.iter().min_by_key(|mark| mark.begun);
    newest_finished(backups).or_else(first).map_or(0, |mark| mark.begun)
}

/// The numbers that a zone founded for old data leaves out.
pub(crate) fn numbers_below(op: &InitZone) -> Option<LostNumbers> {
    (op.first_node_number > 1).then(|| LostNumbers {
        first_node: 1,
        end_node: op.first_node_number,
        first_target: 1,
        end_target: op.first_target_number.max(1),
        gone_targets: Vec::new(),
    })
}

/// The number that the zone gives its next node.
///
/// # Errors
/// [`Halt`], as for [`crate::apply`].
pub fn next_node(kv: &impl KvRead) -> Result<u64, Halt> {
    Ok(session::state(kv)?.next_node)
}

/// The groups of a zone, by the rows of its own.
///
/// # Errors
/// [`Halt`], as for [`crate::apply`].
pub fn group_ids(kv: &impl KvRead) -> Result<Vec<u64>, Halt> {
    Ok(rows::<Group>(kv, key::GRP)?.into_iter().map(|group| group.id).collect())
}

/// The buckets of a realm, by name.
///
/// # Errors
/// [`Halt`], as for [`crate::apply`].
pub fn realm_buckets(kv: &impl KvRead) -> Result<Vec<Bucket>, Halt> {
    rows(kv, key::BKN)
}

/// What a partition knows of buckets.
#[derive(Debug, Default)]
pub struct BucketCopies {
    /// Copies of those that have a slot there.
    pub here: Vec<Bucket>,
    /// Those it has dropped, each with the generation of the drop.
    pub dropped: Vec<(BucketId, u64)>,
}

/// The buckets that a partition knows.
///
/// # Errors
/// [`Halt`], as for [`crate::apply`].
pub fn bucket_copies(kv: &impl KvRead) -> Result<BucketCopies, Halt> {
    let mut dropped = Vec::new();
    for (key, row) in row::read_prefix::<DroppedBucket>(kv, key::DRP)? {
        let id = key.get(key::DRP.len()..).and_then(|raw| <[u8; 16]>::try_from(raw).ok());
        let id = id.ok_or_else(|| row::corrupt(&key, "no bucket id"))?;
        dropped.push((BucketId::from_bytes(id), row.generation));
    }
    Ok(BucketCopies { here: rows(kv, key::BKT)?, dropped })
}

impl<K: Kv> Session<'_, K> {
    fn zone_row(&self) -> Step<Zone> {
        self.zone_exists()?;
        Ok(row::read_sure(self.kv, key::ZON, "the zone is initialised")?)
    }

    pub(crate) fn begin_backup(&mut self) -> Step<Outcome> {
        let mut zone = self.zone_row()?;
        let changed = self.changed();
        zone.backups.push(BackupMark { id: self.state.map_generation, begun: self.hlc.get(), finished: 0 });
        if zone.backups.len() > BACKUPS_MAX
            && let Some(at) = zone.backups.iter().position(|mark| mark.finished == 0)
        {
            zone.backups.remove(at);
        }
        row::write(self.kv, key::ZON.to_vec(), &zone);
        Ok(changed)
    }

    pub(crate) fn finish_backup(&mut self, op: &FinishBackup) -> Step<Outcome> {
        let mut zone = self.zone_row()?;
        let finished = self.hlc.get();
        let Some(mark) = zone.backups.iter_mut().find(|mark| mark.id == op.id) else {
            return refuse(Refusal::NotFound, format!("no backup {} is being made", op.id));
        };
        if mark.finished != 0 {
            return Ok(generation(self.state.map_generation));
        }
        mark.finished = finished;
        let begun = mark.begun;
        // Older ones hold nothing any more.
        zone.backups.retain(|mark| mark.begun >= begun);
        row::write(self.kv, key::ZON.to_vec(), &zone);
        let text = format!("the metadata was backed up as of {}", Hlc::from_u64(begun));
        self.tell(EventInfo, "BACKUP_FINISHED", "zone".to_owned(), text, "");
        Ok(self.changed())
    }

    pub(crate) fn release_orphans(&mut self) -> Step<Outcome> {
        let mut zone = self.zone_row()?;
        if zone.orphans_held == 0 {
            return Ok(generation(self.state.map_generation));
        }
        zone.orphans_held = 0;
        row::write(self.kv, key::ZON.to_vec(), &zone);
        let text = "shards of writes that nobody owns are deleted again".to_owned();
        self.tell(EventWarning, "ORPHANS_RELEASED", "zone".to_owned(), text, "an operator said so");
        Ok(self.changed())
    }

    pub(crate) fn recover_zone(&mut self, op: &RecoverZone) -> Step<Outcome> {
        let mut zone = self.zone_row()?;
        let Some(given) = &op.node else { return wire::malformed("no node") };
        let id = NodeId::new(given.id);
        let (first_node, first_target) = (self.state.next_node, self.state.next_target);
        let known = row::read::<Node>(self.kv, &node_key(given.id))?;
        if known.is_none() && (id.zone() != self.zone || id.number() < first_node) {
            return refuse(Refusal::NotFound, format!("node {id} is none of this zone's"));
        }
        let (end_node, next_node) = match &known {
            Some(_) => (first_node + NODES_SKIPPED, first_node + NODES_SKIPPED),
            None => (id.number(), id.number() + 1),
        };
        let Some(next_target) = first_target.checked_add(TARGETS_SKIPPED) else {
            return refuse(Refusal::TooMany, "target numbers are used up");
        };
        let end_target = next_target;
        let lost = LostNumbers { first_node, end_node, first_target, end_target, gone_targets: Vec::new() };
        let before = zone.lost.take().unwrap_or(lost);
        zone.lost = Some(LostNumbers { end_node, end_target: next_target, ..before });
        (self.state.next_node, self.state.next_target) = (next_node, next_target);
        zone.orphans_held = self.hlc.get();
        if known.is_none()
            && let Some(mark) =
                zone.backups.iter_mut().filter(|mark| mark.finished == 0).max_by_key(|mark| mark.begun)
        {
            // These rows are it: what it owns is held on.
            mark.finished = zone.orphans_held;
        }
        zone.backups.retain(|mark| mark.finished != 0);
        row::write(self.kv, key::ZON.to_vec(), &zone);

        for node in rows::<Node>(self.kv, key::NOD)? {
            let is_meta = node.roles.iter().any(|role| role == "meta");
            if is_meta && node.id != given.id && node.state() != NodeState::NodeRemoved {
                let node = Node { state: NodeState::NodeRemoved.into(), ..node };
                row::write(self.kv, node_key(node.id), &node);
            }
        }
        let node = known.unwrap_or_else(|| given.clone());
        row::write(self.kv, node_key(node.id), &Node { state: NodeState::NodeActive.into(), ..node });
        for group in rows::<Group>(self.kv, key::GRP)? {
            let group = Group {
                voters: vec![given.id],
                learners: Vec::new(),
                generation: group.generation + 1,
                ..group
            };
            row::write(self.kv, key::of_id(key::GRP, &group.id.to_be_bytes()), &group);
        }
        self.state.map_generation += GENERATIONS_SKIPPED;
        let text = format!("the zone goes on from {}", op.from);
        self.tell(EventWarning, "ZONE_RECOVERED", "zone".to_owned(), text, "an operator said so");
        Ok(self.changed())
    }

    /// Whether a node that is not known may come from history that is lost. A meta node may not: it may know another history.
    pub(crate) fn is_lost_node(&self, node: &Node) -> Step<bool> {
        let lost = self.zone_row()?.lost.unwrap_or_default();
        let id = NodeId::new(node.id);
        Ok((lost.first_node..lost.end_node).contains(&id.number())
            && id.zone() == self.zone
            && !node.roles.iter().any(|role| role == "meta")
            && self.kv.get(&node_key(node.id))?.is_none())
    }

    pub(crate) fn is_lost_target(&self, target: u32) -> Step<bool> {
        let lost = self.zone_row()?.lost.unwrap_or_default();
        Ok((lost.first_target..lost.end_target).contains(&target)
            && !lost.gone_targets.contains(&target)
            && self.kv.get(&target_key(target))?.is_none())
    }

    /// A target that was removed does not come back by itself.
    pub(crate) fn target_gone(&mut self, target: u32) -> Step<()> {
        let mut zone = self.zone_row()?;
        let Some(lost) = &mut zone.lost else { return Ok(()) };
        if (lost.first_target..lost.end_target).contains(&target) && !lost.gone_targets.contains(&target) {
            lost.gone_targets.push(target);
            row::write(self.kv, key::ZON.to_vec(), &zone);
        }
        Ok(())
    }

    pub(crate) fn tell_back(&mut self, subject: String, text: String) {
        self.tell(EventInfo, "KNOWN_AGAIN", subject, text, "it was let in by metadata that was lost");
    }
}
