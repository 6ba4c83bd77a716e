//! The groups of a directory without a node that runs: what they know, and how one node goes on with them alone.
//!
//! Going on alone is one synced write to the log, for all groups together: after the last entry a membership of this node and
//! nobody else, what the machine must know of it, and a vote for this node in a later term. A crash leaves the groups as they
//! were or leaves all of them changed. The rows are not touched: the next start applies what the log has. The other members
//! are refused from before that write on, whatever they say they are.
//!
//! The same makes groups from the rows of a backup: rows and an empty log that ends where the rows do.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use holdfast_machine::kv::KvError;
use holdfast_proto::hlc::Hlc;
use holdfast_proto::id::{GroupId, NodeId};
use holdfast_proto::meta::{Command, CommandBatch, command};
use holdfast_proto::raft as wire;
use prost::Message as _;

use super::MetaError;
use super::kv::{Generation, Store};
use super::lives::GIVEN_UP;
use super::log::{Change, LogEngine, LogFacts, LogWrite};
use super::log_engine::RaftEngineLog;
use super::log_record::{LogRecord, RecordKind};
use super::members::voters_and_learners;
use super::raft::{LogId, Membership, StoredMembership};
use super::state::Applied;
use super::wire as convert;
use crate::env::Disk;

const CACHE_BYTES: u64 = 64 << 20;
/// Bytes of entries read at a time.
const READ_BYTES: u64 = 8 << 20;
/// Where the log of restored rows begins: beyond any term and entry that a lost member may know.
const RESTORED: u64 = 1 << 40;

/// A group as it lies in a directory.
#[derive(Debug, Clone)]
pub(crate) struct GroupEnd {
    pub(crate) group: GroupId,
    /// Term and index of the last entry, committed or not.
    pub(crate) last: (u64, u64),
    /// The last entry whose effects are in the rows.
    pub(crate) applied: u64,
    /// When the newest command in the rows was stamped.
    pub(crate) hlc: Hlc,
    pub(crate) voters: BTreeSet<NodeId>,
    pub(crate) learners: BTreeSet<NodeId>,
}

/// A directory of groups, locked.
#[derive(Debug)]
pub(crate) struct Alone {
    store: Store,
    engine: RaftEngineLog,
}

impl Alone {
    /// Opens or makes the directory. Blocks.
    ///
    /// # Errors
    /// When it is in use, or what is in it cannot be read.
    pub(crate) fn open(dir: &Path, disk: &Arc<dyn Disk>) -> Result<Self, MetaError> {
        std::fs::create_dir_all(dir)
            .map_err(|error| MetaError::Directory { dir: dir.to_owned(), reason: error.to_string() })?;
        let store = Store::open(&dir.join("state"), CACHE_BYTES)?;
        let engine = RaftEngineLog::open(&dir.join("log"), disk.as_ref())?;
        Ok(Self { store, engine })
    }

    /// How the groups stand, in order. Blocks.
    ///
    /// # Errors
    /// When the store or the log cannot be read.
    pub(crate) fn ends(&self) -> Result<Vec<GroupEnd>, MetaError> {
        let mut ends = Vec::new();
        for (group, _) in self.store.hosted()? {
            let applied = Applied::read(&self.store.generation(group)?)?;
            let facts = self.engine.facts(group.get())?;
            let (last, membership) = self.tail(group, &facts, &applied)?;
            let (voters, learners) = voters_and_learners(&membership);
            let last = (last.term, last.index);
            ends.push(GroupEnd { group, last, applied: applied.index(), hlc: applied.hlc, voters, learners });
        }
        ends.sort_unstable_by_key(|end| end.group);
        Ok(ends)
    }

    /// The last entry, and the membership in force at it.
    fn tail(
        &self,
        group: GroupId,
        facts: &LogFacts,
        applied: &Applied,
    ) -> Result<(wire::LogId, StoredMembership), MetaError> {
        let corrupt = |error: String| MetaError::Group(group, error);
        let mut last = facts.purged.or_else(|| applied.log_id.as_ref().map(convert::log_id_out));
        let mut membership = (*applied.membership).clone();
        let (Some(first), Some(end)) = (facts.first, facts.last) else {
            return Ok((last.unwrap_or_default(), membership));
        };
        let mut next = first;
        while next <= end {
            let records = self.engine.read(group.get(), next, end + 1, READ_BYTES)?;
            for record in records {
                next = record.index + 1;
                last = Some(wire::LogId { term: record.term, node: 0, index: record.index });
                if record.kind == RecordKind::Membership {
                    let stored = wire::Membership::decode(record.payload)
                        .map_err(|error| corrupt(error.to_string()))?;
                    let stored =
                        convert::membership_in(&stored).map_err(|error| corrupt(error.to_string()))?;
                    let at = LogId::new_term_index(record.term, record.index);
                    membership = StoredMembership::new(Some(at), stored);
                }
            }
        }
        Ok((last.unwrap_or_default(), membership))
    }

    /// Rows of a group as they are applied. Blocks.
    ///
    /// # Errors
    /// When the group is not here.
    pub(crate) fn rows(&self, group: GroupId) -> Result<Generation, MetaError> {
        Ok(self.store.generation(group)?)
    }

    /// Makes the rows of a group, in key order, beside those that are here. Durable, not live. Blocks.
    ///
    /// # Errors
    /// When a row is an error or out of order, or the store fails.
    pub(crate) fn ingest(
        &self,
        group: GroupId,
        node: NodeId,
        hlc: Hlc,
        rows: impl Iterator<Item = Result<(Bytes, Bytes), KvError>>,
    ) -> Result<Generation, MetaError> {
        let at = LogId::new_term_index(RESTORED, RESTORED);
        let applied = Applied {
            log_id: Some(at),
            membership: Arc::new(StoredMembership::new(Some(at), only(node))),
            hlc,
        };
        let generation = self.store.new_generation(group)?;
        generation.ingest(applied.rows().into_iter().map(Ok).chain(rows))?;
        Ok(generation)
    }

    /// Names ingested rows live, with logs that end where they do. Blocks.
    ///
    /// # Errors
    /// When the store or the log fails: the directory is of no use then.
    pub(crate) fn install(&self, generations: &BTreeMap<GroupId, Generation>) -> Result<(), MetaError> {
        for generation in generations.values() {
            self.store.switch(generation)?;
        }
        let upto = wire::LogId { term: RESTORED, node: 0, index: RESTORED };
        let purge = |group: &GroupId| LogWrite { group: group.get(), change: Change::Purge { upto } };
        Ok(self.engine.write(generations.keys().map(purge).collect(), true)?)
    }

    /// Makes `node` the only member of every group, and has each group apply its commands of `say` first of all. Blocks.
    ///
    /// # Errors
    /// When the store or the log fails; saying it again is right then.
    pub(crate) fn go_on(
        &self,
        node: NodeId,
        now: Hlc,
        mut say: BTreeMap<GroupId, Vec<command::Op>>,
    ) -> Result<(), MetaError> {
        let ends = self.ends()?;
        let others: BTreeSet<NodeId> = ends
            .iter()
            .flat_map(|end| end.voters.union(&end.learners).copied())
            .filter(|member| *member != node)
            .collect();
        for other in others {
            self.store.saw_incarnation(other, GIVEN_UP, 0)?;
        }
        let mut writes = Vec::new();
        for end in &ends {
            let facts = self.engine.facts(end.group.get())?;
            let term = facts.vote.map_or(0, |vote| vote.term).max(end.last.0) + 1;
            let mut record = {
                let mut index = end.last.1;
                move |kind, payload: Vec<u8>| {
                    index += 1;
                    LogRecord::new(index, term, kind, payload.into())
                }
            };
            let membership = convert::membership_out(&only(node)).encode_to_vec();
            let mut records = vec![record(RecordKind::Membership, membership)];
            for op in say.remove(&end.group).unwrap_or_default() {
                let command = Command {
                    stamp: now.get(),
                    first_attempt_hlc: now.get(),
                    zone: node.zone().get().into(),
                    feature_level: holdfast_machine::level_of(&op),
                    op: Some(op),
                    ..Command::default()
                };
                let batch = CommandBatch { commands: vec![command], take_digest: 0 };
                records.push(record(RecordKind::Commands, batch.encode_to_vec()));
            }
            let group = end.group.get();
            let vote = wire::Vote { term, node: node.get(), committed: true };
            writes.push(LogWrite { group, change: Change::Append(records) });
            writes.push(LogWrite { group, change: Change::Vote(vote) });
        }
        Ok(self.engine.write(writes, true)?)
    }
}

fn only(node: NodeId) -> Membership {
    Membership::new_with_defaults(vec![BTreeSet::from([node.get()])], [node.get()])
}
