//! One group on this node: its consensus, its rows, and the two workers that let many callers share one round.
//!
//! The proposer merges what callers propose while an entry is in flight into the next entry; the reader confirms
//! leadership once for all reads that arrived before the confirmation began (Raft's ReadIndex).

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use holdfast_proto::error::Fault;
use holdfast_proto::hlc::Hlc;
use holdfast_proto::id::{GroupId, NodeId, ZoneId};
use holdfast_proto::limits::{DEDUP_WINDOW_MS, REQUEST_AGE_MS_MAX};
use holdfast_proto::meta::{Answer, Command, CommandBatch, Outcome, Query, query};
use holdfast_proto::v1::FaultKind;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::errors::{ClientWriteError, LinearizableReadError, RaftError};
use openraft::{LinearizerOption, ReadPolicy, ServerState};
use prost::Message;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::clock::StampClock;
use super::raft::{Commands, Raft, TypeConfig};
use super::state::GroupState;
use super::storage::GroupLog;

/// Proposals or reads of one group waiting for their round, at most.
const QUEUE_MAX: usize = 4096;
/// Commands in one entry, at most.
const ENTRY_COMMANDS_MAX: usize = 512;
/// Commands of one entry, encoded, bytes: reached by whole proposals.
const ENTRY_BYTES_MAX: usize = 512 << 10;
/// How long a caller waits for its round and its outcome.
const CALL_DEADLINE: Duration = Duration::from_secs(10);
/// How long one entry may take before the proposer goes on to the next: without a quorum none commits.
const ENTRY_DEADLINE: Duration = Duration::from_secs(10);
const CONFIRM_DEADLINE: Duration = Duration::from_secs(5);

/// "Try again in" of a full queue, milliseconds.
const RETRY_AFTER_MS: u32 = 50;

pub(super) struct Proposal {
    commands: Vec<Command>,
    bytes: usize,
    reply: oneshot::Sender<Result<Vec<Outcome>, Fault>>,
}

/// A read waits for the index that a confirmation began after it arrived allows.
pub(super) type ReadWaiter = oneshot::Sender<Result<(), Fault>>;

/// One group on this node.
pub(crate) struct Group {
    id: GroupId,
    node: NodeId,
    raft: Raft,
    log: GroupLog,
    state: Arc<GroupState>,
    server: openraft::type_config::alias::WatchReceiverOf<
        TypeConfig,
        openraft::metrics::RaftServerMetrics<TypeConfig>,
    >,
    clock: Arc<StampClock>,
    proposals: mpsc::Sender<Proposal>,
    reads: mpsc::Sender<ReadWaiter>,
    receiving: Arc<Semaphore>,
    sending: Arc<Semaphore>,
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group").field("id", &self.id).finish_non_exhaustive()
    }
}

fn overloaded() -> Fault {
    let fault = Fault::new(FaultKind::Overloaded, "too many requests of this group are waiting");
    Fault { retry_after_ms: RETRY_AFTER_MS, ..fault }
}

fn unavailable(why: impl fmt::Display) -> Fault {
    Fault::new(FaultKind::FaultUnavailable, why.to_string())
}

/// Queries that read a few rows are answered in place; the others may scan, off the async threads.
fn is_scan(query: &Query) -> bool {
    use query::Of;
    match &query.of {
        Some(
            Of::GetObject(_)
            | Of::GetBucketRow(_)
            | Of::OwnerOfWrite(_)
            | Of::GetUpload(_)
            | Of::GetBucket(_)
            | Of::GetAccessKey(_)
            | Of::GetAccount(_),
        )
        | None => false,
        Some(_) => true,
    }
}

impl Group {
    /// Starts the workers of a group; they end with `cancel` and are in `tasks`.
    #[allow(clippy::too_many_arguments, reason = "every part of a group meets here once")]
    pub(super) fn start(
        node: NodeId,
        zone: ZoneId,
        raft: Raft,
        log: GroupLog,
        state: Arc<GroupState>,
        clock: Arc<StampClock>,
        tasks: &TaskTracker,
        cancel: &CancellationToken,
    ) -> Arc<Self> {
        let (proposals, proposed) = mpsc::channel(QUEUE_MAX);
        let (reads, waiting) = mpsc::channel(QUEUE_MAX);
        let proposer = Proposer { raft: raft.clone(), node, zone, clock: Arc::clone(&clock), held: None };
        tasks.spawn(until(cancel.clone(), proposer.run(proposed)));
        tasks.spawn(until(cancel.clone(), confirm_reads(raft.clone(), Arc::clone(&state), node, waiting)));
        let server = raft.server_metrics();
        let (receiving, sending) = (Arc::new(Semaphore::new(1)), Arc::new(Semaphore::new(1)));
        Arc::new(Self {
            id: state.group(),
            node,
            raft,
            log,
            state,
            server,
            clock,
            proposals,
            reads,
            receiving,
            sending,
        })
    }

    pub(super) fn id(&self) -> GroupId {
        self.id
    }
    pub(super) fn raft(&self) -> &Raft {
        &self.raft
    }
    pub(super) fn log(&self) -> &GroupLog {
        &self.log
    }
    pub(super) fn state(&self) -> &Arc<GroupState> {
        &self.state
    }

    /// The right to receive a snapshot: one at a time.
    pub(super) fn begin_receiving(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.receiving).try_acquire_owned().ok()
    }

    /// The right to send rows that were asked for: one at a time.
    pub(super) fn begin_sending(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.sending).try_acquire_owned().ok()
    }

    /// Why the library no longer drives the group; `None` while it does.
    pub(super) fn stopped(&self) -> Option<String> {
        let mut metrics = self.raft.metrics();
        if let Err(error) = metrics.borrow_and_update().running_state.clone() {
            return Some(error.to_string());
        }
        // A panic says nothing: who would change the metrics is gone with its task.
        let gone = metrics.changed().now_or_never().is_some_and(|changed| changed.is_err());
        gone.then(|| "its task is gone".to_owned())
    }

    pub(super) fn leader(&self) -> Option<NodeId> {
        self.server.borrow_watched().current_leader.map(NodeId::new)
    }

    pub(super) fn is_leader(&self) -> bool {
        let server = self.server.borrow_watched();
        server.state == ServerState::Leader && server.current_leader == Some(self.node.get())
    }

    fn check_leader(&self) -> Result<(), Fault> {
        if self.is_leader() {
            return Ok(());
        }
        // A node that still names itself has lost the lead and does not know the next one.
        let other = self.leader().filter(|leader| *leader != self.node);
        Err(Fault::not_leader(other.map_or(0, NodeId::get)))
    }

    /// Proposes commands, all in one entry, and waits until they are applied here. Dropped or late, they may still be
    /// applied. A command that this group's machine does not know fails its call and nothing else.
    pub(super) async fn propose(&self, mut commands: Vec<Command>) -> Result<Vec<Outcome>, Fault> {
        if commands.is_empty() {
            return Ok(Vec::new());
        }
        self.check_leader()?;
        let level = self.level_for(&commands)?;
        for command in &mut commands {
            // Once in the log it would halt every replica, for ever.
            command.feature_level = holdfast_machine::admit(self.id, level, command).map_err(|why| {
                Fault::new(FaultKind::Invalid, format!("a command that cannot be taken: {why}"))
            })?;
        }
        self.check_first_attempts(&commands)?;
        let bytes = commands.iter().map(Message::encoded_len).sum();
        let (reply, outcomes) = oneshot::channel();
        self.proposals.try_send(Proposal { commands, bytes, reply }).map_err(|_| overloaded())?;
        match tokio::time::timeout(CALL_DEADLINE, outcomes).await {
            Ok(Ok(outcomes)) => outcomes,
            Ok(Err(_)) => Err(unavailable("the group stopped; the outcome is not known")),
            Err(_) => Err(unavailable("no outcome in time; it is not known")),
        }
    }

    /// The group's feature level, which is only read for commands that not everybody knows.
    fn level_for(&self, commands: &[Command]) -> Result<u32, Fault> {
        let first = holdfast_machine::FEATURE_LEVEL_FIRST;
        let mut ops = commands.iter().filter_map(|command| command.op.as_ref());
        if ops.all(|op| holdfast_machine::level_of(op) == first) {
            return Ok(first);
        }
        holdfast_machine::feature_level(&self.state.view()).map_err(unavailable)
    }

    /// A first attempt that is ahead of the group's time would be refused for good; here it may be tried again.
    fn check_first_attempts(&self, commands: &[Command]) -> Result<(), Fault> {
        let now = self.clock.now().max(self.state.hlc());
        let ahead = |first: &Hlc| first.minus_ms(DEDUP_WINDOW_MS - REQUEST_AGE_MS_MAX) > now;
        match commands.iter().map(|command| Hlc::from_u64(command.first_attempt_hlc)).find(ahead) {
            None => Ok(()),
            Some(first) => Err(Fault::new(
                FaultKind::ClockOff,
                format!("first attempted at {first}, which is ahead of {now}"),
            )),
        }
    }

    /// Answers queries at an index at which this node surely led.
    pub(super) async fn read(&self, queries: Vec<Query>) -> Result<Vec<Answer>, Fault> {
        self.check_leader()?;
        let (reply, confirmed) = oneshot::channel();
        self.reads.try_send(reply).map_err(|_| overloaded())?;
        match tokio::time::timeout(CALL_DEADLINE, confirmed).await {
            Ok(Ok(confirmed)) => confirmed?,
            Ok(Err(_)) => return Err(unavailable("the group stopped")),
            Err(_) => return Err(unavailable("leadership was not confirmed in time")),
        }
        if !queries.iter().any(is_scan) {
            return self.state.query(&queries).map_err(unavailable);
        }
        let state = Arc::clone(&self.state);
        let answers = tokio::task::spawn_blocking(move || state.query(&queries)).await;
        answers.map_err(unavailable)?.map_err(unavailable)
    }
}

async fn until(cancel: CancellationToken, work: impl Future<Output = ()>) {
    tokio::select! {
        () = work => {}
        () = cancel.cancelled() => {}
    }
}

struct Proposer {
    raft: Raft,
    node: NodeId,
    zone: ZoneId,
    clock: Arc<StampClock>,
    /// A proposal that did not fit the last entry.
    held: Option<Proposal>,
}

impl Proposer {
    async fn run(mut self, mut proposed: mpsc::Receiver<Proposal>) {
        while let Some(entry) = gather(&mut self.held, &mut proposed).await {
            self.commit(entry).await;
        }
    }

    async fn commit(&self, entry: Vec<Proposal>) {
        if let Err(off) = self.clock.peers().check() {
            let fault = Fault::new(FaultKind::ClockOff, format!("the leader's clock is off: {off}"));
            for proposal in entry {
                // Who asked may have given up.
                let _ = proposal.reply.send(Err(fault.clone()));
            }
            return;
        }
        let mut batch = CommandBatch {
            commands: Vec::with_capacity(entry.iter().map(|of| of.commands.len()).sum()),
            take_digest: 0,
        };
        let mut replies = Vec::with_capacity(entry.len());
        for proposal in entry {
            replies.push((proposal.commands.len(), proposal.reply));
            batch.commands.extend(proposal.commands);
        }
        for command in &mut batch.commands {
            command.stamp = self.clock.stamp().get();
            command.zone = self.zone.get().into();
        }
        metrics::counter!("holdfast_meta_commands_total").increment(batch.commands.len() as u64);
        metrics::counter!("holdfast_meta_entries_total").increment(1);
        let encoded = Commands(Bytes::from(batch.encode_to_vec()));
        drop(batch);
        let written = tokio::time::timeout(ENTRY_DEADLINE, self.raft.client_write(encoded)).await;
        let mut outcomes = match written {
            Ok(Ok(written)) => Ok(written.data.0.into_iter()),
            Ok(Err(error)) => Err(self.write_fault(error)),
            Err(_) => Err(unavailable("no quorum; the outcome is not known")),
        };
        for (count, reply) in replies {
            let of_one = match &mut outcomes {
                Ok(outcomes) => Ok(outcomes.by_ref().take(count).collect()),
                Err(fault) => Err(fault.clone()),
            };
            // Who asked may have given up.
            let _ = reply.send(of_one);
        }
    }

    fn write_fault(&self, error: RaftError<TypeConfig, ClientWriteError<TypeConfig>>) -> Fault {
        match error {
            RaftError::APIError(ClientWriteError::ForwardToLeader(to)) => {
                let other = to.leader_id.filter(|leader| *leader != self.node.get());
                Fault::not_leader(other.unwrap_or(0))
            }
            other => unavailable(other),
        }
    }
}

/// The proposals of the next entry, `held` first; waits for the first whose caller still waits.
async fn gather(
    held: &mut Option<Proposal>,
    proposed: &mut mpsc::Receiver<Proposal>,
) -> Option<Vec<Proposal>> {
    let first = loop {
        let next = match held.take() {
            Some(waited) => waited,
            None => proposed.recv().await?,
        };
        // Who asked may have given up and tried elsewhere: this copy would come late.
        if !next.reply.is_closed() {
            break next;
        }
    };
    let (mut commands, mut bytes) = (first.commands.len(), first.bytes);
    let mut entry = vec![first];
    while let Ok(next) = proposed.try_recv() {
        if next.reply.is_closed() {
            continue;
        }
        commands += next.commands.len();
        bytes += next.bytes;
        if commands > ENTRY_COMMANDS_MAX || bytes > ENTRY_BYTES_MAX {
            *held = Some(next);
            break;
        }
        entry.push(next);
    }
    Some(entry)
}

async fn confirm_reads(
    raft: Raft,
    state: Arc<GroupState>,
    node: NodeId,
    mut waiting: mpsc::Receiver<ReadWaiter>,
) {
    let mut round = Vec::new();
    while waiting.recv_many(&mut round, QUEUE_MAX).await > 0 {
        metrics::counter!("holdfast_meta_reads_total").increment(round.len() as u64);
        metrics::counter!("holdfast_meta_read_rounds_total").increment(1);
        let confirmed = tokio::time::timeout(CONFIRM_DEADLINE, confirm(&raft, &state, node)).await;
        let confirmed =
            confirmed.unwrap_or_else(|_| Err(unavailable("leadership was not confirmed in time")));
        for waiter in round.drain(..) {
            // Who asked may have given up.
            let _ = waiter.send(confirmed.clone());
        }
    }
}

async fn confirm(raft: &Raft, state: &GroupState, node: NodeId) -> Result<(), Fault> {
    let option = LinearizerOption::from(ReadPolicy::ReadIndex).with_wait_timeout(CONFIRM_DEADLINE);
    let linearizer = raft.get_read_linearizer(option).await.map_err(|error| match error {
        RaftError::APIError(LinearizableReadError::ForwardToLeader(to)) => {
            let other = to.leader_id.filter(|leader| *leader != node.get());
            Fault::not_leader(other.unwrap_or(0))
        }
        other => unavailable(other),
    })?;
    let index = linearizer.read_log_id().index();
    let mut applied = state.watch_applied();
    applied
        .wait_for(|applied| *applied >= index)
        .await
        .map(drop)
        .map_err(|_| unavailable("the group stopped"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proposal(bytes: usize) -> (Proposal, oneshot::Receiver<Result<Vec<Outcome>, Fault>>) {
        let (reply, outcomes) = oneshot::channel();
        (Proposal { commands: vec![Command::default()], bytes, reply }, outcomes)
    }

    #[tokio::test]
    async fn what_nobody_waits_for_any_more_is_not_proposed() {
        let (queue, mut proposed) = mpsc::channel(8);
        let (gone_while_held, _) = proposal(1);
        let mut held = Some(gone_while_held);
        let (gone_in_front, _) = proposal(2);
        let (first, _first) = proposal(3);
        let (gone_behind, _) = proposal(4);
        let (second, _second) = proposal(5);
        for proposal in [gone_in_front, first, gone_behind, second] {
            queue.try_send(proposal).unwrap_or_else(|_| panic!("there is room"));
        }
        let entry = gather(&mut held, &mut proposed).await.unwrap();
        assert_eq!(entry.iter().map(|of| of.bytes).collect::<Vec<_>>(), [3, 5]);
    }

    #[tokio::test]
    async fn what_does_not_fit_comes_first_the_next_time() {
        let (queue, mut proposed) = mpsc::channel(8);
        let (small, _small) = proposal(1);
        let (large, _large) = proposal(ENTRY_BYTES_MAX);
        let (last, _last) = proposal(2);
        for proposal in [small, large, last] {
            queue.try_send(proposal).unwrap_or_else(|_| panic!("there is room"));
        }
        let mut held = None;
        for expected in [1, ENTRY_BYTES_MAX, 2] {
            let entry = gather(&mut held, &mut proposed).await.unwrap();
            assert_eq!(entry.iter().map(|of| of.bytes).collect::<Vec<_>>(), [expected]);
        }
    }
}
