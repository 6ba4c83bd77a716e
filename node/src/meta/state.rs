//! One group's state machine: committed entries go through `machine::apply` on an overlay and into the store as one batch,
//! off the async threads, in log order.
//!
//! Raft's own rows of a group start with byte 0x00, which no row of the machine does: how far the rows are applied, and
//! the membership. They change in the same batch as the rows.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use holdfast_machine::Halt;
use holdfast_machine::kv::{KvError, KvRead, Overlay};
use holdfast_proto::hlc::Hlc;
use holdfast_proto::id::{GroupId, NodeId};
use holdfast_proto::meta::{Answer, CommandBatch, Outcome, Query, answer};
use holdfast_proto::raft as wire;
use openraft::OptionalSend;
use openraft::entry::RaftEntry;
use openraft::storage::{ApplyResponder, EntryResponder, RaftSnapshotBuilder, RaftStateMachine, Snapshot};
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::watch;

use super::clock::StampClock;
use super::digest::Marks;
use super::kv::{Generation, Live, Store, View};
use super::raft::{Commands, Entry, LogId, Outcomes, Payload, SnapshotMeta, StoredMembership, TypeConfig};
use super::wire as convert;

const APPLIED: &[u8] = b"\0applied";
const MEMBERSHIP: &[u8] = b"\0membership";
/// After every row of Raft's own, before every row of the machine.
pub(super) const MACHINE_ROWS: &[u8] = b"\x01";
/// After every row.
pub(super) const ROWS_END: &[u8] = b"\xff";
const SCHEMA: u32 = 1;
/// Entries and bytes of commands committed to the store as one batch, at most.
const APPLY_ENTRIES_MAX: usize = 512;
const APPLY_BYTES_MAX: usize = 2 << 20;

/// How far a group's rows are applied.
#[derive(Debug, Clone, Default)]
pub(super) struct Applied {
    /// The last applied entry.
    pub(super) log_id: Option<LogId>,
    /// The last applied membership.
    pub(super) membership: Arc<StoredMembership>,
    /// The highest stamp applied.
    pub(super) hlc: Hlc,
}

impl Applied {
    pub(super) fn index(&self) -> u64 {
        self.log_id.map_or(0, |log_id| log_id.index())
    }

    /// From the rows of a view.
    ///
    /// # Errors
    /// When the store fails or a row does not decode.
    pub(super) fn read(rows: &impl KvRead) -> Result<Self, KvError> {
        let corrupt =
            |error: &dyn fmt::Display| KvError(format!("a row of the log's own does not decode: {error}"));
        let mut applied = Self::default();
        if let Some(row) = rows.get(APPLIED)? {
            let row = wire::AppliedRow::decode(row).map_err(|error| corrupt(&error))?;
            applied.log_id = row.log_id.as_ref().map(convert::log_id_in);
            applied.hlc = Hlc::from_u64(row.hlc);
        }
        if let Some(row) = rows.get(MEMBERSHIP)? {
            let row = wire::MembershipRow::decode(row).map_err(|error| corrupt(&error))?;
            let stored = row.membership.unwrap_or_default();
            applied.membership =
                Arc::new(convert::stored_membership_in(&stored).map_err(|error| corrupt(&error))?);
        }
        Ok(applied)
    }

    fn applied_row(&self) -> (Bytes, Bytes) {
        let log_id = self.log_id.as_ref().map(convert::log_id_out);
        let row = wire::AppliedRow { schema: SCHEMA, log_id, hlc: self.hlc.get() };
        (Bytes::from_static(APPLIED), row.encode_to_vec().into())
    }

    fn membership_row(&self) -> (Bytes, Bytes) {
        let membership = Some(convert::stored_membership_out(&self.membership));
        let row = wire::MembershipRow { schema: SCHEMA, membership };
        (Bytes::from_static(MEMBERSHIP), row.encode_to_vec().into())
    }

    /// The rows that say this, in key order.
    pub(super) fn rows(&self) -> [(Bytes, Bytes); 2] {
        [self.applied_row(), self.membership_row()]
    }

    fn snapshot_meta(&self) -> SnapshotMeta {
        SnapshotMeta { last_log_id: self.log_id, last_membership: (*self.membership).clone() }
    }
}

/// Rows of a newer version are not to be touched: their commands would not be known either.
fn known_level(rows: &impl KvRead) -> Result<(), KvError> {
    let level = holdfast_machine::feature_level(rows).map_err(|halt| KvError(halt.to_string()))?;
    if level > holdfast_machine::FEATURE_LEVEL {
        let known = holdfast_machine::FEATURE_LEVEL;
        return Err(KvError(format!(
            "the zone is at feature level {level} and this version knows {known}: install the newer version again"
        )));
    }
    Ok(())
}

/// Where a fault that ends the node is reported; the first one stays.
#[derive(Debug, Clone)]
pub(super) struct Failure(Arc<watch::Sender<Option<String>>>);

impl Failure {
    pub(super) fn new() -> Self {
        Self(Arc::new(watch::channel(None).0))
    }
    pub(super) fn report(&self, fault: String) {
        self.0.send_if_modified(|first| {
            let is_first = first.is_none();
            if is_first {
                tracing::error!(%fault, "the node cannot go on");
                *first = Some(fault);
            }
            is_first
        });
    }
    pub(super) fn watch(&self) -> watch::Receiver<Option<String>> {
        self.0.subscribe()
    }
}

/// One group's rows and how far they are applied, shared by who applies and who reads.
#[derive(Debug)]
pub(crate) struct GroupState {
    group: GroupId,
    store: Store,
    live: Live,
    applied: Mutex<Applied>,
    applied_index: watch::Sender<u64>,
    /// Index up to which the rows are durable.
    durable: Arc<AtomicU64>,
    clock: Arc<StampClock>,
    failure: Failure,
    /// Rises when the rows are replaced by another member's: who applied to the old ones applies no more. Held while rows
    /// change.
    life: Mutex<u64>,
    marks: Arc<Marks>,
    /// Why the rows are not to be trusted, once one did not decode or the store failed.
    suspicion: Mutex<Option<String>>,
}

impl GroupState {
    /// Opens a group's rows, making the group hosted here when it is not yet. Blocks.
    ///
    /// # Errors
    /// When the store fails or a row does not decode.
    pub(super) fn open(
        group: GroupId,
        store: Store,
        clock: Arc<StampClock>,
        failure: Failure,
    ) -> Result<Arc<Self>, KvError> {
        let generation = store.generation(group)?;
        let applied = Applied::read(&generation)?;
        known_level(&generation)?;
        clock.saw(applied.hlc);
        let durable = Arc::new(AtomicU64::new(applied.index()));
        Ok(Arc::new(Self {
            group,
            store,
            live: Live::new(generation),
            applied_index: watch::channel(applied.index()).0,
            applied: Mutex::new(applied),
            durable,
            clock,
            failure,
            life: Mutex::default(),
            marks: Arc::default(),
            suspicion: Mutex::default(),
        }))
    }

    /// The group.
    pub(super) fn group(&self) -> GroupId {
        self.group
    }

    /// The store below.
    pub(super) fn store(&self) -> &Store {
        &self.store
    }

    /// Number of the live generation.
    #[cfg(test)]
    pub(super) fn live_number(&self) -> u64 {
        self.live.get().number
    }

    /// The index of the last applied entry, as it moves; 0 before the first.
    pub(super) fn watch_applied(&self) -> watch::Receiver<u64> {
        self.applied_index.subscribe()
    }

    /// The index of the last applied entry.
    pub(super) fn applied_index(&self) -> u64 {
        *self.applied_index.borrow()
    }

    /// The highest stamp applied.
    pub(super) fn hlc(&self) -> Hlc {
        self.applied.lock().hlc
    }

    /// The voters of the applied membership besides this node.
    pub(super) fn other_voters(&self, node: NodeId) -> BTreeSet<NodeId> {
        let membership = Arc::clone(&self.applied.lock().membership);
        let voters = membership.membership().voter_ids().filter(|voter| *voter != node.get());
        voters.map(NodeId::new).collect()
    }

    /// All other members of the applied membership.
    pub(super) fn other_members(&self, node: NodeId) -> BTreeSet<NodeId> {
        let membership = Arc::clone(&self.applied.lock().membership);
        let members = membership.membership().nodes().map(|(id, _)| NodeId::new(*id));
        members.filter(|member| *member != node).collect()
    }

    /// The index up to which rows survive a power cut.
    pub(super) fn durable(&self) -> &Arc<AtomicU64> {
        &self.durable
    }

    /// Raises the durable index after a persist that began when `index` was applied.
    pub(super) fn persisted(&self, index: u64) {
        self.durable.fetch_max(index, Ordering::AcqRel);
    }

    /// A view of the live rows.
    pub(super) fn view(&self) -> View {
        self.store.view(&self.live.get())
    }

    /// Answers queries at one applied index.
    ///
    /// # Errors
    /// A halt ends the node: it was reported.
    pub(super) fn query(&self, queries: &[Query]) -> Result<Vec<Answer>, Halt> {
        let view = self.view();
        queries
            .iter()
            .map(|query| self.query_view(&view, query))
            .collect::<Result<_, _>>()
            .inspect_err(|halt| self.halted(halt))
    }

    /// Rows that cannot be read may be right elsewhere; a command that is not known here is not.
    fn halted(&self, halt: &Halt) {
        let why = format!("{}: {halt}", self.group);
        match halt {
            Halt::UnknownCommand(_) => self.failure.report(why),
            Halt::Kv(_) | Halt::Corrupt { .. } => {
                let mut suspicion = self.suspicion.lock();
                if suspicion.is_none() {
                    tracing::error!(group = %self.group, %halt, "rows of a group cannot be read");
                    *suspicion = Some(why);
                }
            }
        }
    }

    /// Why the rows are not to be trusted.
    pub(super) fn suspicion(&self) -> Option<String> {
        self.suspicion.lock().clone()
    }

    /// What was marked of the rows, for the leader to compare.
    pub(super) fn marks(&self) -> &Arc<Marks> {
        &self.marks
    }

    fn query_view(&self, view: &View, query: &Query) -> Result<Answer, Halt> {
        let mut answer = holdfast_machine::query(view, self.group, query)?;
        if let Some(answer::Ok::Digest(digest)) = &mut answer.ok {
            // The machine does not know the log: the index comes from the same view.
            digest.applied = Applied::read(view)?.index();
        }
        Ok(answer)
    }

    /// Applies entries in order and answers their outcomes. Blocks.
    fn apply(&self, entries: &[Entry]) -> Result<Vec<Outcomes>, Halt> {
        let mut outcomes = Vec::with_capacity(entries.len());
        while outcomes.len() < entries.len() {
            self.apply_batch(&entries[outcomes.len()..], &mut outcomes)?;
        }
        Ok(outcomes)
    }

    /// Applies entries up to the first that carries a mark, all or none of them.
    fn apply_batch(&self, entries: &[Entry], outcomes: &mut Vec<Outcomes>) -> Result<(), Halt> {
        let generation = self.live.get();
        let mut applied = self.applied.lock().clone();
        let mut membership_changed = false;
        let mut overlay = Overlay::new(&generation);
        let mut mark = 0;
        for entry in entries {
            let next = applied.log_id.map_or(0, |log_id| log_id.index() + 1);
            assert!(entry.index() == next, "entry {} is to be applied where {next} is next", entry.index());
            outcomes.push(Outcomes(match &entry.payload {
                Payload::Blank => Vec::new(),
                Payload::Normal(Commands(bytes)) => {
                    let batch = CommandBatch::decode(bytes.clone()).map_err(|error| {
                        Halt::UnknownCommand(format!("entry {} does not decode: {error}", entry.index()))
                    })?;
                    let apply = |command: &_| holdfast_machine::apply(&mut overlay, self.group, command);
                    let outcomes =
                        batch.commands.iter().map(apply).collect::<Result<Vec<Outcome>, Halt>>()?;
                    let stamps = batch.commands.iter().map(|command| Hlc::from_u64(command.stamp));
                    applied.hlc = stamps.fold(applied.hlc, Hlc::max);
                    mark = batch.take_digest;
                    outcomes
                }
                Payload::Membership(membership) => {
                    applied.membership =
                        Arc::new(StoredMembership::new(Some(entry.log_id), membership.clone()));
                    membership_changed = true;
                    Vec::new()
                }
            }));
            applied.log_id = Some(entry.log_id);
            if mark != 0 {
                break;
            }
        }
        self.commit(&generation, overlay.into_writes(), &applied, membership_changed)?;
        self.clock.saw(applied.hlc);
        let index = applied.index();
        *self.applied.lock() = applied;
        if mark != 0 {
            // Nobody else applies: these are the rows as of this entry.
            self.marks.take(mark, self.view());
        }
        self.applied_index.send_replace(index);
        Ok(())
    }

    fn commit(
        &self,
        generation: &Generation,
        writes: BTreeMap<Vec<u8>, Option<Bytes>>,
        applied: &Applied,
        membership_changed: bool,
    ) -> Result<(), KvError> {
        let mut batch = self.store.batch(writes.len() + 2);
        for (key, value) in writes {
            assert!(
                key.first().is_some_and(|byte| *byte != 0),
                "a row of the machine among those of the log"
            );
            batch.set(generation, key, value);
        }
        let (key, value) = applied.applied_row();
        batch.set(generation, key.into(), Some(value));
        if membership_changed {
            let (key, value) = applied.membership_row();
            batch.set(generation, key.into(), Some(value));
        }
        batch.commit()
    }

    /// Changes a row behind the log's back, or removes it.
    #[cfg(test)]
    pub(super) fn plant(&self, key: &[u8], value: Option<Bytes>) {
        let mut batch = self.store.batch(1);
        batch.set(&self.live.get(), key.to_vec(), value);
        batch.commit().unwrap();
    }

    /// As if everything up to `log_id` had been applied, for a suite that leaves entries out.
    #[cfg(test)]
    pub(super) fn skip_to(&self, log_id: LogId) {
        self.applied.lock().log_id = Some(log_id);
    }

    /// Replaces rows that are wrong by another member's, as of an entry that is in the log here or beyond its end. Whoever
    /// still applies to the old ones does no more. Blocks.
    pub(super) fn replace(&self, generation: Generation, applied: Applied) -> Result<(), KvError> {
        let mut life = self.life.lock();
        *life += 1;
        // They may be as of an entry before the last one applied to the old ones.
        self.durable.store(applied.index(), Ordering::Release);
        self.install(generation, applied)?;
        *self.suspicion.lock() = None;
        Ok(())
    }

    /// Makes `generation`, filled with `applied` and its rows, the live one. Blocks.
    pub(super) fn install(&self, generation: Generation, applied: Applied) -> Result<(), KvError> {
        self.store.switch(&generation)?;
        let old = self.live.replace(generation);
        self.clock.saw(applied.hlc);
        let index = applied.index();
        *self.applied.lock() = applied;
        self.persisted(index);
        self.applied_index.send_replace(index);
        self.store.remove_unless_live(old)
    }
}

/// A snapshot on its way: to a peer, or from one.
#[derive(Debug)]
pub(crate) enum SnapshotRows {
    /// The rows here, as of one applied index.
    View { view: View, applied: Applied },
    /// Rows from a peer, checked and durable in a generation that is not live yet.
    Received { generation: Generation, applied: Applied },
}

/// The state machine the consensus library drives. Clones share the group's rows.
#[derive(Debug, Clone)]
pub(crate) struct StateMachine {
    state: Arc<GroupState>,
    /// Of the rows that it applies to.
    life: u64,
}

impl StateMachine {
    pub(super) fn new(state: Arc<GroupState>) -> Self {
        let life = *state.life.lock();
        Self { state, life }
    }

    #[cfg(test)]
    pub(super) fn state(&self) -> &Arc<GroupState> {
        &self.state
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&GroupState) -> Result<T, Halt> + Send + 'static,
    ) -> Result<T, io::Error> {
        let state = Arc::clone(&self.state);
        match tokio::task::spawn_blocking(move || work(&state)).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(halt)) => {
                self.state.halted(&halt);
                Err(io::Error::other(halt.to_string()))
            }
            Err(join) => {
                self.state.failure.report(format!("{}: {join}", self.state.group));
                Err(io::Error::other(join))
            }
        }
    }

    /// Changes the rows; an error when they have been replaced meanwhile.
    async fn changing<T: Send + 'static>(
        &self,
        work: impl FnOnce(&GroupState) -> Result<T, Halt> + Send + 'static,
    ) -> Result<T, io::Error> {
        let life = self.life;
        let changed = self.blocking(move |state| {
            let now = state.life.lock();
            if *now == life { work(state).map(Some) } else { Ok(None) }
        });
        changed.await?.ok_or_else(|| io::Error::other("the rows were replaced"))
    }

    async fn apply_piece(
        &self,
        entries: Vec<Entry>,
        responders: Vec<Option<ApplyResponder<TypeConfig>>>,
    ) -> Result<(), io::Error> {
        let outcomes = self.changing(move |state| state.apply(&entries)).await?;
        for (responder, outcomes) in responders.into_iter().zip(outcomes) {
            if let Some(responder) = responder {
                responder.send(outcomes);
            }
        }
        Ok(())
    }

    async fn snapshot(&self) -> Result<SnapshotOfRows, io::Error> {
        self.blocking(|state| {
            let view = state.view();
            let applied = Applied::read(&view)?;
            // What the snapshot says is applied must survive a power cut before anyone purges log because of it.
            state.store.persist()?;
            state.persisted(applied.index());
            Ok(Snapshot { meta: applied.snapshot_meta(), snapshot: SnapshotRows::View { view, applied } })
        })
        .await
    }
}

type SnapshotOfRows = openraft::type_config::alias::SnapshotOf<TypeConfig, SnapshotRows>;

impl RaftSnapshotBuilder<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotRows;

    async fn build_snapshot(&mut self) -> Result<SnapshotOfRows, io::Error> {
        self.snapshot().await
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotRows;
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        let applied = self.state.applied.lock();
        Ok((applied.log_id, (*applied.membership).clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        let (mut piece, mut responders, mut bytes) = (Vec::new(), Vec::new(), 0);
        while let Some(item) = entries.next().await {
            let (entry, responder) = item?;
            if let Payload::Normal(commands) = &entry.payload {
                bytes += commands.0.len();
            }
            piece.push(entry);
            responders.push(responder);
            if piece.len() >= APPLY_ENTRIES_MAX || bytes >= APPLY_BYTES_MAX {
                self.apply_piece(std::mem::take(&mut piece), std::mem::take(&mut responders)).await?;
                bytes = 0;
            }
        }
        if piece.is_empty() { Ok(()) } else { self.apply_piece(piece, responders).await }
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotRows,
    ) -> Result<(), io::Error> {
        let meta = meta.clone();
        self.changing(move |state| {
            let (generation, applied) = match snapshot {
                SnapshotRows::Received { generation, applied } => (generation, applied),
                SnapshotRows::View { view, applied } => {
                    let generation = state.store.new_generation(state.group)?;
                    let own = applied.rows().into_iter().map(Ok);
                    generation.ingest(own.chain(view.scan(MACHINE_ROWS, ROWS_END)))?;
                    (generation, applied)
                }
            };
            assert!(applied.log_id == meta.last_log_id, "a snapshot's rows are those of its last entry");
            known_level(&generation).map_err(|newer| Halt::UnknownCommand(newer.0))?;
            Ok(state.install(generation, applied)?)
        })
        .await
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<SnapshotOfRows>, io::Error> {
        // The rows as they are now: a view held since the last build would keep replaced rows from being freed.
        if self.state.applied.lock().log_id.is_none() {
            return Ok(None);
        }
        self.snapshot().await.map(Some)
    }
}
