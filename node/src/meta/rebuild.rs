//! A replica whose rows are wrong replaces them by another member's and goes on from its own log. Its vote and its log stay
//! as they are, so that to the other voters nothing happened; see `docs/decisions/replica-rebuild.md`.
//!
//! Two things lead here: the leader of the group, which has compared digests ([`super::scrub`]), and rows that could not be
//! read when they were applied to or asked for. Who leads hands the lead over first.
//!
//! The order: another member's rows as of an entry that is applied there are brought into a generation that nothing names;
//! the group's consensus in this process stops; the generation is named live, durably; the group is opened again, which
//! applies what its log has after that entry. A crash before the name leaves the old rows and is found again by the next
//! comparison or the next read; a crash after it leaves the new rows and the log behind them.

use std::collections::HashMap;
use std::collections::btree_map::{BTreeMap, Entry};
use std::sync::Arc;
use std::time::Duration;

use holdfast_proto::error::Fault;
use holdfast_proto::id::{GroupId, NodeId};
use holdfast_proto::v1::FaultKind;
use parking_lot::Mutex;

use super::MetaError;
use super::group::Group;
use super::groups::Groups;
use super::kv::Generation;
use super::snapshot::{self, SnapshotError};
use super::state::{Applied, GroupState};
use super::storage::GroupLog;

/// Until a consensus that is told to stop has stopped.
const STOP_DEADLINE: Duration = Duration::from_secs(10);
/// Between two attempts for rows that cannot be read.
const RETRY_PAUSE: Duration = Duration::from_secs(5);
/// Rows that cannot be read again so soon after they were replaced are not the disk's fault: another copy would not help.
const TRUST: Duration = Duration::from_secs(600);
/// How long the log here may take to reach the entry that the new rows are as of.
const CATCH_UP_DEADLINE: Duration = Duration::from_secs(10);

/// Why a replica was not rebuilt. Its old rows are still the live ones, unless the store failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum RebuildError {
    #[error("{0}")]
    Refused(Fault),
    #[error("{0}")]
    Fetch(#[from] SnapshotError),
    #[error("no other member has given its rows: {0}")]
    NoSource(String),
    #[error("the log here does not agree yet with the rows that were brought")]
    LogDiffers,
    #[error("the node is stopping")]
    Stopping,
    #[error(transparent)]
    Meta(#[from] MetaError),
}

/// A group without its consensus.
#[derive(Debug, Clone)]
pub(super) struct Parts {
    pub(super) state: Arc<GroupState>,
    pub(super) log: GroupLog,
}

/// Which groups of a node are being rebuilt.
#[derive(Debug, Default)]
pub(super) struct Rebuilds {
    /// Those under way, and why.
    running: Mutex<BTreeMap<GroupId, String>>,
    /// One at a time.
    turn: tokio::sync::Mutex<()>,
    /// Groups whose consensus does not run: their rows are being replaced, or must be before it can.
    unopened: Mutex<HashMap<GroupId, Parts>>,
    /// When a group was last rebuilt, and when rows that cannot be read are tried again, on the monotonic clock.
    rebuilt: Mutex<HashMap<GroupId, Duration>>,
    next_try: Mutex<HashMap<GroupId, Duration>>,
}

impl Rebuilds {
    /// Keeps a group that could not be opened because of its rows.
    pub(super) fn keep(&self, parts: Parts) {
        self.unopened.lock().insert(parts.state.group(), parts);
    }

    /// Whether the group is hosted here and not open.
    pub(super) fn is_unopened(&self, group: GroupId) -> bool {
        self.unopened.lock().contains_key(&group)
    }

    /// Whether the group's rows are being replaced: no log is purged meanwhile.
    pub(super) fn is_running(&self, group: GroupId) -> bool {
        self.running.lock().contains_key(&group)
    }

    /// What is under way, and why.
    pub(super) fn running(&self) -> BTreeMap<GroupId, String> {
        self.running.lock().clone()
    }
}

impl Groups {
    /// Rebuilds the rows of `id` from one of `from`, in the background; nothing when that is under way.
    pub(super) fn begin_rebuild(self: &Arc<Self>, id: GroupId, from: Vec<NodeId>, why: String) {
        if self.cancel().is_cancelled() {
            return;
        }
        match self.rebuilds().running.lock().entry(id) {
            Entry::Occupied(_) => return,
            Entry::Vacant(free) => free.insert(why.clone()),
        };
        tracing::error!(group = %id, why, "META_DIVERGED: the rows of a group are wrong here and are replaced");
        let groups = Arc::clone(self);
        self.tasks().spawn(async move {
            let done = groups.rebuild(id, &from).await;
            groups.rebuilds().running.lock().remove(&id);
            match done {
                Ok(index) => {
                    metrics::counter!("holdfast_meta_replicas_rebuilt_total").increment(1);
                    tracing::warn!(group = %id, index, "the rows of a group were replaced by another member's");
                    groups.scrub_again(id).await;
                }
                Err(RebuildError::Stopping) => {}
                Err(error) => tracing::error!(group = %id, %error, "the rows of a group were not replaced"),
            }
        });
    }

    /// Rebuilds groups whose rows could not be read. Where no other member is, or it does not help, the node ends.
    pub(super) fn rebuild_suspicious(self: &Arc<Self>) {
        let open = self.all().into_iter().map(|group| Arc::clone(group.state()));
        let unopened: Vec<_> =
            self.rebuilds().unopened.lock().values().map(|parts| Arc::clone(&parts.state)).collect();
        for state in open.chain(unopened) {
            let Some(why) = state.suspicion() else { continue };
            let (id, now) = (state.group(), self.env().monotonic());
            let rebuilt = self.rebuilds().rebuilt.lock().get(&id).copied();
            let from: Vec<NodeId> = state.other_members(self.node()).into_iter().collect();
            if from.is_empty() || rebuilt.is_some_and(|at| now < at + TRUST) {
                self.fail(why);
                continue;
            }
            let mut tries = self.rebuilds().next_try.lock();
            if tries.get(&id).is_some_and(|at| now < *at) || self.rebuilds().is_running(id) {
                continue;
            }
            tries.insert(id, now + RETRY_PAUSE);
            drop(tries);
            self.begin_rebuild(id, from, why);
        }
    }

    /// Replaces the rows of `id` by those of one of `from`, and answers the index they are as of. Not cancel-safe.
    ///
    /// # Errors
    /// When this node leads and nobody takes over, no member gives its rows, or they do not fit the log yet.
    pub(super) async fn rebuild(&self, id: GroupId, from: &[NodeId]) -> Result<u64, RebuildError> {
        let _turn = self.rebuilds().turn.lock().await;
        let unopened = self.rebuilds().unopened.lock().get(&id).cloned();
        let parts = match (unopened, self.group(id)) {
            (Some(parts), _) => parts,
            (None, Ok(group)) => {
                self.step_down(&group, from).await?;
                Parts { state: Arc::clone(group.state()), log: group.log().clone() }
            }
            (None, Err(fault)) => return Err(RebuildError::Refused(fault)),
        };
        let (generation, applied) = self.bring(&parts, from).await?;
        self.replace(&parts, generation, applied).await
    }

    /// Hands the lead to one of `to` when this node has it.
    async fn step_down(&self, group: &Group, to: &[NodeId]) -> Result<(), RebuildError> {
        if !group.is_leader() || group.stopped().is_some() {
            return Ok(());
        }
        let nobody = || Fault::new(FaultKind::FaultUnavailable, "no voter is there to take the lead");
        let successor = group.successor(|node| to.contains(&node)).ok_or_else(nobody);
        let to = successor.map_err(RebuildError::Refused)?;
        group.transfer_leader(to).await.map_err(RebuildError::Refused)
    }

    /// The rows of one of `from`, no older than those here, in a generation that nothing names.
    pub(super) async fn bring(
        &self,
        parts: &Parts,
        from: &[NodeId],
    ) -> Result<(Generation, Applied), RebuildError> {
        let at_least = parts.state.applied_index();
        let mut last = "there is none".to_owned();
        for node in from.iter().filter(|node| **node != self.node()) {
            if self.cancel().is_cancelled() {
                return Err(RebuildError::Stopping);
            }
            let peer = self.peers().get(*node);
            match snapshot::fetch(&peer, &parts.state, at_least, self.cancel()).await {
                Ok(brought) => return Ok(brought),
                Err(SnapshotError::Stopping) => return Err(RebuildError::Stopping),
                Err(error) => last = format!("node {node}: {error}"),
            }
        }
        Err(RebuildError::NoSource(last))
    }

    /// Makes what was brought the group's rows. Whatever comes of it, the group goes on, with old rows or new ones.
    async fn replace(
        &self,
        parts: &Parts,
        generation: Generation,
        applied: Applied,
    ) -> Result<u64, RebuildError> {
        let id = parts.state.group();
        if !self.rebuilds().is_unopened(id) {
            // Where the log here has the entry, it need not be cut.
            let mut reached = parts.state.watch_applied();
            let there = reached.wait_for(|at| *at >= applied.index());
            let _ = tokio::time::timeout(CATCH_UP_DEADLINE, there).await;
        }
        let _adding = self.adding().lock().await;
        self.rebuilds().keep(parts.clone());
        let replaced = match self.stop_group(id).await {
            Ok(()) => self.take_over(parts, generation, applied).await,
            Err(error) => Err(error),
        };
        let started = match self.cancel().is_cancelled() {
            false => self.start_group(parts).await,
            true => return replaced.and(Err(RebuildError::Stopping)),
        };
        if let Err(error) = started {
            // Rows that cannot be read are tried again; anything else cannot be mended here.
            if parts.state.suspicion().is_none() {
                self.fail(error.to_string());
            }
            return Err(error.into());
        }
        self.rebuilds().unopened.lock().remove(&id);
        replaced
    }

    /// Ends the group's consensus in this process.
    async fn stop_group(&self, id: GroupId) -> Result<(), RebuildError> {
        let Some(group) = self.take_out(id) else { return Ok(()) };
        let stopped = tokio::time::timeout(STOP_DEADLINE, group.raft().shutdown()).await;
        match stopped {
            // One that had ended by itself says so; it is ended all the same.
            Ok(_) => Ok(()),
            Err(_) => {
                let why = format!("{id} did not stop in {STOP_DEADLINE:?}");
                self.fail(why.clone());
                Err(MetaError::Group(id, why).into())
            }
        }
    }

    async fn take_over(
        &self,
        parts: &Parts,
        generation: Generation,
        applied: Applied,
    ) -> Result<u64, RebuildError> {
        let (id, index) = (parts.state.group(), applied.index());
        let agrees = match applied.log_id {
            Some(log_id) => parts.log.agrees(log_id).await,
            None => Ok(false),
        };
        let agrees = agrees.map_err(|error| MetaError::Group(id, error.to_string()))?;
        let state = Arc::clone(&parts.state);
        let switched = tokio::task::spawn_blocking(move || match agrees {
            true => state.replace(generation, applied),
            false => state.store().remove_unless_live(generation),
        });
        let switched = switched.await.map_err(|error| MetaError::Group(id, error.to_string()))?;
        if let Err(error) = switched {
            // What is live is what the durable row names: the next start knows.
            self.fail(format!("{id}: {error}"));
            return Err(MetaError::from(error).into());
        }
        if !agrees {
            return Err(RebuildError::LogDiffers);
        }
        self.rebuilds().rebuilt.lock().insert(id, self.env().monotonic());
        Ok(index)
    }
}
