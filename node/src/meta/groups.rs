//! All Raft groups a node hosts, and everything they share: the log engine and its writer, the store, the connections to
//! the other nodes, the clock that stamps.
//!
//! A group is hosted from the moment its first voter is made here or a leader first reaches it, durably, before anything
//! of it is acknowledged. Faults that a group cannot live with end the node: [`Groups::failure`].

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use holdfast_machine::kv::KvError;
use holdfast_proto::error::Fault;
use holdfast_proto::hlc::Hlc;
use holdfast_proto::id::{GroupId, NodeId};
use holdfast_proto::meta::{Answer, Command, Outcome, Query};
use holdfast_proto::raft::PeerHello;
use holdfast_proto::raft::raft_server::RaftServer;
use holdfast_proto::v1::FaultKind;
use openraft::Config;
use openraft::errors::{InitializeError, RaftError};
use parking_lot::RwLock;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::MetaError;
use super::address::AddressBook;
use super::clock::StampClock;
use super::config::GroupsConfig;
use super::group::Group;
use super::kv::Store;
use super::lives::{Identity, Lives};
use super::log::{LogEngine, LogWriter};
use super::log_engine::RaftEngineLog;
use super::peer::Peers;
use super::raft::Raft;
use super::rebuild::{Parts, Rebuilds};
use super::scrub::Scrubs;
use super::service::RaftService;
use super::state::{Failure, GroupState, StateMachine};
use super::status::{GroupStatus, status_of};
use super::storage::GroupLog;
use super::transport::Network;
use super::upkeep;
use super::wire::voted_for;
use crate::env::Env;

const BOOTSTRAP_DEADLINE: Duration = Duration::from_secs(10);
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(10);

/// All Raft groups of a node.
#[derive(Debug)]
pub(crate) struct Groups {
    config: GroupsConfig,
    raft_config: Arc<Config>,
    env: Env,
    groups: RwLock<HashMap<GroupId, Arc<Group>>>,
    /// Held while a group becomes hosted.
    adding: tokio::sync::Mutex<()>,
    store: Store,
    writer: Arc<LogWriter>,
    peers: Arc<Peers>,
    clock: Arc<StampClock>,
    failure: Failure,
    lives: Arc<Lives>,
    rebuilds: Rebuilds,
    scrubs: Scrubs,
    /// Whose turn it is to sum up rows: one group at a time.
    summing: Arc<Semaphore>,
    tasks: TaskTracker,
    cancel: CancellationToken,
}

impl Groups {
    /// Opens the directory and every group it hosts. `cancel` stops everything at once, without handing over the lead;
    /// see [`Self::shutdown`].
    ///
    /// # Errors
    /// When the directory cannot be used, or what is in it does not fit together.
    pub(crate) async fn open(
        config: GroupsConfig,
        env: Env,
        addresses: Arc<AddressBook>,
        cancel: CancellationToken,
    ) -> Result<Arc<Self>, MetaError> {
        let raft_config = Arc::new(config.raft()?);
        let (dir, cache_bytes) = (config.dir.clone(), config.cache_bytes);
        let disk = Arc::clone(env.disk());
        let (store, engine) = blocking(move || {
            std::fs::create_dir_all(&dir)
                .map_err(|error| MetaError::Directory { dir: dir.clone(), reason: error.to_string() })?;
            // The store holds the lock of the directory: it comes first.
            let store = Store::open(&dir.join("state"), cache_bytes)?;
            let engine: Arc<dyn LogEngine> = Arc::new(RaftEngineLog::open(&dir.join("log"), disk.as_ref())?);
            Ok((store, engine))
        })
        .await?;
        let writer = Arc::new(LogWriter::start(engine)?);
        let identity = Identity {
            realm: config.realm,
            node: config.node,
            incarnation: config.incarnation,
            life: config.life,
        };
        let (tasks, cancel) = (TaskTracker::new(), cancel.child_token());
        let clock = Arc::new(StampClock::new(env.clone()));
        let lives = Arc::new(Lives::open(identity, store.clone())?);
        let peers = Peers::new(
            Arc::clone(&lives),
            addresses,
            env.clone(),
            Arc::clone(&clock),
            tasks.clone(),
            cancel.clone(),
        );
        let hosted = store.hosted()?;
        let groups = Arc::new(Self {
            raft_config,
            clock,
            env,
            groups: RwLock::default(),
            adding: tokio::sync::Mutex::default(),
            lives,
            store,
            writer,
            peers: Arc::new(peers),
            failure: Failure::new(),
            rebuilds: Rebuilds::default(),
            scrubs: Scrubs::default(),
            summing: Arc::new(Semaphore::new(1)),
            tasks,
            cancel,
            config,
        });
        groups.tasks.spawn(log_failure(Arc::clone(&groups)));
        for (group, _) in hosted {
            if let Err(error) = groups.add(group).await
                && !groups.rebuilds.is_unopened(group)
            {
                return Err(error);
            }
        }
        groups.tasks.spawn(upkeep::run(Arc::clone(&groups), groups.config.upkeep));
        Ok(groups)
    }

    /// Makes this node the first and only voter of a group that exists nowhere yet, and waits until it leads. A group that
    /// is hosted and has members stays as it is.
    ///
    /// # Errors
    /// When the log or the store fails, or no leader appears.
    pub(crate) async fn bootstrap(&self, group: GroupId) -> Result<(), MetaError> {
        let group = self.add(group).await?;
        match group.raft().initialize(BTreeSet::from([self.config.node.get()])).await {
            Ok(()) => {}
            Err(RaftError::APIError(InitializeError::NotAllowed(_))) => return Ok(()),
            Err(error) => return Err(MetaError::Group(group.id(), error.to_string())),
        }
        let leads = |metrics: &openraft::RaftMetrics<_>| {
            // Its first membership is committed too: from here on it can be changed.
            metrics.current_leader == Some(self.config.node.get())
                && metrics.committed_membership_config.log_id().is_some()
        };
        let led = group.raft().wait(Some(BOOTSTRAP_DEADLINE)).metrics(leads, "the first voter leads").await;
        led.map(drop).map_err(|error| MetaError::Group(group.id(), error.to_string()))
    }

    /// The groups of this node, in order.
    pub(crate) fn hosted(&self) -> Vec<GroupId> {
        let mut hosted: Vec<GroupId> = self.groups.read().keys().copied().collect();
        hosted.sort_unstable();
        hosted
    }

    /// Commits commands of `group`, all in one entry, and answers their outcomes in order once they are applied here.
    /// Not cancel-safe in effect: a dropped call's commands may still be applied; repeat them with the same request ids.
    ///
    /// # Errors
    /// `NotLeader` with the leader, as far as known; `NotHere`; `Overloaded`; `Invalid`, for a command that the group does
    /// not know; `ClockOff`, when the clock here must not stamp or the caller's time is ahead; `FaultUnavailable`, when the
    /// outcome is not known.
    pub(crate) async fn propose(
        &self,
        group: GroupId,
        commands: Vec<Command>,
    ) -> Result<Vec<Outcome>, Fault> {
        self.group(group)?.propose(commands).await
    }

    /// Answers queries of `group` at one index, no older than anything acknowledged before the call. Cancel-safe.
    ///
    /// # Errors
    /// As [`Self::propose`].
    pub(crate) async fn read(&self, group: GroupId, queries: Vec<Query>) -> Result<Vec<Answer>, Fault> {
        self.group(group)?.read(queries).await
    }

    /// Answers a query from what is applied here, which may be old. Blocks for a read of the store.
    ///
    /// # Errors
    /// `NotHere`, or `FaultUnavailable` when the store fails.
    pub(crate) fn read_local(&self, group: GroupId, query: &Query) -> Result<Answer, Fault> {
        let unavailable = |why: String| Fault::new(FaultKind::FaultUnavailable, why);
        let answers = self
            .group(group)?
            .state()
            .query(std::slice::from_ref(query))
            .map_err(|halt| unavailable(halt.to_string()))?;
        answers.into_iter().next().ok_or_else(|| unavailable("a query without an answer".into()))
    }

    /// Who leads `group`, as this node believes.
    pub(crate) fn leader(&self, group: GroupId) -> Option<NodeId> {
        self.groups.read().get(&group)?.leader()
    }

    /// Whether this node leads `group`, as it believes.
    pub(crate) fn is_leader(&self, group: GroupId) -> bool {
        self.groups.read().get(&group).is_some_and(|group| group.is_leader())
    }

    /// The index of the last entry of `group` applied here, as it moves.
    pub(crate) fn applied(&self, group: GroupId) -> Option<watch::Receiver<u64>> {
        Some(self.groups.read().get(&group)?.state().watch_applied())
    }

    /// Makes the members of `group` exactly these: adds learners, waits until the new voters have caught up, promotes
    /// them, removes the rest. On the leader. Steps done stay done when a later one fails; repeat the call.
    ///
    /// # Errors
    /// `NotLeader`, `NotHere`, or `FaultUnavailable` when a step was not committed in time.
    pub(crate) async fn set_members(
        &self,
        group: GroupId,
        voters: BTreeSet<NodeId>,
        learners: BTreeSet<NodeId>,
    ) -> Result<(), Fault> {
        self.group(group)?.set_members(&voters, &learners).await
    }

    /// Voters and learners of `group`, as this node knows.
    pub(crate) fn members(&self, group: GroupId) -> Option<(BTreeSet<NodeId>, BTreeSet<NodeId>)> {
        let group = self.groups.read().get(&group).cloned()?;
        Some(group.members())
    }

    /// Hands the lead of `group` to another voter and waits until it leads.
    ///
    /// # Errors
    /// `NotLeader`, `NotHere`, `Invalid` when `to` is no voter, or `FaultUnavailable` when it did not take over in time.
    pub(crate) async fn transfer_leader(&self, group: GroupId, to: NodeId) -> Result<(), Fault> {
        self.group(group)?.transfer_leader(to).await
    }

    /// How all groups stand, in order.
    pub(crate) fn status(&self) -> Vec<GroupStatus> {
        let mut all: Vec<GroupStatus> = self.all().iter().map(|group| status_of(group)).collect();
        all.sort_unstable_by_key(|status| status.group);
        all
    }

    /// The hybrid clock now, as callers may be told it: a machine clock that is off is not believed.
    pub(crate) fn hlc(&self) -> Hlc {
        self.clock.now()
    }

    /// Whether a node's clock is known to be off, so that it must not lead.
    pub(crate) fn is_clock_off(&self, node: NodeId) -> bool {
        self.clock.peers().is_off(node)
    }

    /// What other nodes speak to.
    pub(crate) fn service(self: &Arc<Self>) -> RaftServer<RaftService> {
        RaftService::server(Arc::clone(self))
    }

    /// Set when the node cannot go on: a group halted, or the log or the store failed. The process ends.
    pub(crate) fn failure(&self) -> watch::Receiver<Option<String>> {
        self.failure.watch()
    }

    /// Hands the lead of every group to a voter that is up to date, stops the groups and makes their rows durable.
    pub(crate) async fn shutdown(&self) {
        let handed_over = futures::future::join_all(self.all().into_iter().map(|group| async move {
            if let Some(to) = group.successor(|_| true)
                && let Err(fault) = group.transfer_leader(to).await
            {
                // Most often `to` is stopping too; where it is not, the group elects.
                tracing::debug!(group = %group.id(), %to, %fault, "the lead was not handed over");
            }
        }));
        if tokio::time::timeout(SHUTDOWN_DEADLINE, handed_over).await.is_err() {
            tracing::debug!("not every group's lead was handed over in time");
        }
        self.cancel.cancel();
        for group in self.all() {
            if let Err(error) = group.raft().shutdown().await {
                tracing::warn!(group = %group.id(), %error, "the group did not stop cleanly");
            }
        }
        self.tasks.close();
        if tokio::time::timeout(SHUTDOWN_DEADLINE, self.tasks.wait()).await.is_err() {
            tracing::warn!("tasks of the groups did not end in time");
        }
        if let Err(error) = self.persist().await {
            tracing::error!(%error, "rows were not made durable; they will be applied again");
        }
        self.groups.write().clear();
        let writer = Arc::clone(&self.writer);
        if let Err(error) = tokio::task::spawn_blocking(move || writer.stop()).await {
            tracing::error!(%error, "the log's writer did not stop cleanly");
        }
    }

    pub(super) fn env(&self) -> &Env {
        &self.env
    }

    /// Who this node is, as `target` is told.
    pub(super) fn hello(&self, target: NodeId) -> PeerHello {
        self.lives.own().hello(target)
    }

    pub(super) fn node(&self) -> NodeId {
        self.config.node
    }

    pub(super) fn peers(&self) -> &Peers {
        &self.peers
    }

    pub(super) fn rebuilds(&self) -> &Rebuilds {
        &self.rebuilds
    }

    pub(super) fn scrubs(&self) -> &Scrubs {
        &self.scrubs
    }

    pub(super) fn adding(&self) -> &tokio::sync::Mutex<()> {
        &self.adding
    }

    /// Whether this is the group that callers reach: one that is rebuilt is another before and after.
    pub(super) fn is_open(&self, group: &Arc<Group>) -> bool {
        self.groups.read().get(&group.id()).is_some_and(|open| Arc::ptr_eq(open, group))
    }

    /// Takes a group from callers' reach.
    pub(super) fn take_out(&self, group: GroupId) -> Option<Arc<Group>> {
        self.groups.write().remove(&group)
    }

    pub(super) fn clock(&self) -> &Arc<StampClock> {
        &self.clock
    }

    pub(super) fn cancel(&self) -> &CancellationToken {
        &self.cancel
    }

    pub(super) fn tasks(&self) -> &TaskTracker {
        &self.tasks
    }

    pub(super) fn engine(&self) -> &Arc<dyn LogEngine> {
        self.writer.engine()
    }

    pub(super) fn fail(&self, fault: String) {
        self.failure.report(fault);
    }

    pub(super) fn all(&self) -> Vec<Arc<Group>> {
        self.groups.read().values().cloned().collect()
    }

    pub(super) fn group(&self, group: GroupId) -> Result<Arc<Group>, Fault> {
        let found = self.groups.read().get(&group).cloned();
        found.ok_or_else(|| match self.rebuilds.is_unopened(group) {
            true => Fault::new(
                FaultKind::FaultUnavailable,
                format!("the rows of {group} are being replaced here"),
            ),
            false => Fault::new(FaultKind::NotHere, format!("{group} is not hosted here")),
        })
    }

    /// The group, hosted from now on when it was not.
    pub(super) async fn ensure(&self, group: GroupId) -> Result<Arc<Group>, Fault> {
        if let Ok(group) = self.group(group) {
            return Ok(group);
        }
        self.add(group).await.map_err(|error| Fault::new(FaultKind::FaultUnavailable, error.to_string()))
    }

    /// Checks who speaks, and answers where the highest incarnation seen of it is kept.
    pub(super) async fn admit(&self, hello: &PeerHello) -> Result<Arc<AtomicU64>, Fault> {
        self.lives.admit(hello).await
    }

    /// Makes every group's rows durable.
    pub(super) async fn persist(&self) -> Result<(), MetaError> {
        let marks: Vec<_> = self
            .all()
            .iter()
            .map(|group| (Arc::clone(group.state()), group.state().applied_index()))
            .collect();
        let store = self.store.clone();
        blocking(move || Ok(store.persist()?)).await?;
        for (state, index) in marks {
            state.persisted(index);
        }
        Ok(())
    }

    /// Drops everything at once, as a kill would: nothing is handed over or made durable.
    #[cfg(test)]
    pub(super) async fn abandon(&self) {
        self.tasks.close();
        self.tasks.wait().await;
        self.groups.write().clear();
    }

    #[cfg(test)]
    pub(super) fn peer(&self, node: NodeId) -> Arc<super::peer::Peer> {
        self.peers.get(node)
    }

    async fn add(&self, id: GroupId) -> Result<Arc<Group>, MetaError> {
        let _adding = self.adding.lock().await;
        if let Some(group) = self.groups.read().get(&id) {
            return Ok(Arc::clone(group));
        }
        if self.cancel.is_cancelled() {
            return Err(MetaError::Group(id, "the node is stopping".into()));
        }
        if self.rebuilds.is_unopened(id) {
            return Err(MetaError::Group(id, "its rows are being replaced".into()));
        }
        let (store, clock, failure) = (self.store.clone(), Arc::clone(&self.clock), self.failure.clone());
        let writer = Arc::clone(&self.writer);
        let (state, log) = blocking(move || {
            let state = GroupState::open(id, store, clock, failure)?;
            let log = GroupLog::open(id.get(), writer, Some(Arc::clone(state.durable())))?;
            if log.purged_index() > state.applied_index() {
                let lost = format!(
                    "log up to {} is purged, rows are as of {}",
                    log.purged_index(),
                    state.applied_index()
                );
                return Err(MetaError::Group(id, lost));
            }
            Ok((state, log))
        })
        .await?;
        let parts = Parts { state, log };
        let started = self.start_group(&parts).await;
        if started.is_err() && parts.state.suspicion().is_some() {
            self.rebuilds.keep(parts);
        }
        started
    }

    /// Starts the consensus of a group whose parts are open, and lets callers reach it.
    pub(super) async fn start_group(&self, parts: &Parts) -> Result<Arc<Group>, MetaError> {
        let Parts { state, log } = parts.clone();
        let id = state.group();
        let voters = state.other_voters(self.config.node);
        if !voters.is_empty() {
            // Those of all groups follow with the first beat.
            self.clock.set_voters(voters);
        }
        let led = log.vote().is_some_and(|vote| vote.committed && voted_for(&vote) == self.config.node.get());
        let raft = Raft::new(
            self.config.node.get(),
            Arc::clone(&self.raft_config),
            Network::new(id, Arc::clone(&self.peers)),
            log.clone(),
            StateMachine::new(Arc::clone(&state)),
        )
        .await
        .map_err(|error| MetaError::Group(id, error.to_string()))?;
        if led {
            // It led before: after a restart of the whole zone nobody else is ahead of it, so it need not wait.
            raft.trigger().elect(true).await.map_err(|error| MetaError::Group(id, error.to_string()))?;
        }
        if self.cancel.is_cancelled() {
            // Who stops the groups may have passed already.
            let _ = raft.shutdown().await;
            return Err(MetaError::Group(id, "the node is stopping".into()));
        }
        let marks = Arc::clone(state.marks());
        self.tasks.spawn(marks.sum_up(id, Arc::clone(&self.summing), self.cancel.clone()));
        let clock = Arc::clone(&self.clock);
        let (node, zone) = (self.config.node, self.config.zone);
        let group = Group::start(node, zone, raft, log, state, clock, &self.tasks, &self.cancel);
        self.groups.write().insert(id, Arc::clone(&group));
        Ok(group)
    }
}

async fn log_failure(groups: Arc<Groups>) {
    let mut failed = groups.writer.failure();
    tokio::select! {
        fault = failed.wait_for(Option::is_some) => {
            if let Ok(Some(fault)) = fault.map(|fault| fault.clone()) {
                groups.fail(fault);
            }
        }
        () = groups.cancel.cancelled() => {}
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, MetaError> + Send + 'static,
) -> Result<T, MetaError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(MetaError::Store(KvError(error.to_string()))))
}
