//! Calls to Raft groups: to the leader, again after a failure with the same request ids, and many small ones in one RPC.
//!
//! Each group has a lane for proposals and one for reads. A call that finds its lane idle goes out at once; those that
//! come while an RPC is in flight wait for it and go out together. A batch belongs to a task of its own, so a caller that
//! is dropped takes nobody's call with it, and what it proposed still has one outcome.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use holdfast_proto::error::Fault;
use holdfast_proto::id::{GroupId, NodeId};
use holdfast_proto::limits::MESSAGE_BYTES_MAX;
use holdfast_proto::meta::meta_client::MetaClient;
use holdfast_proto::meta::{Answer, Command, Outcome, ProposeRequest, Query, ReadRequest};
use holdfast_proto::v1::FaultKind;
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tonic::Status;
use tonic::transport::Channel;

use crate::channel::Traffic;
use crate::cluster::Inner;
use crate::error::Error;
use crate::retry::Backoff;

/// One attempt at one node; an election fits between two of them.
const ATTEMPT_MAX: Duration = Duration::from_secs(3);
/// A page of parts of a 10,000-part object is the largest answer.
const ANSWER_BYTES_MAX: usize = 8 * MESSAGE_BYTES_MAX;
/// Of one coalesced RPC.
const BATCH_ITEMS_MAX: usize = 256;
const BATCH_BYTES_MAX: usize = MESSAGE_BYTES_MAX / 4;
/// RPCs of one lane at the same time; another starts when this many calls wait for each that is in flight.
const LANE_RPCS_MAX: usize = 4;
const LANE_WAITING_PER_RPC: usize = 8;
/// Calls that wait in one lane.
const LANE_WAITING_MAX: usize = 4096;

/// Proposals or reads: what differs between their lanes.
pub(crate) trait Call: Send + Sync + 'static {
    type Item: Message + Clone + std::fmt::Debug + 'static;
    type Reply: Send + std::fmt::Debug + 'static;
    /// A failed attempt may have been done.
    const MUTATES: bool;

    fn send(
        inner: &Inner,
        client: MetaClient<Channel>,
        group: GroupId,
        items: Vec<Self::Item>,
    ) -> impl Future<Output = Result<Vec<Self::Reply>, Status>> + Send;
}

#[derive(Debug)]
pub(crate) struct Proposals;
#[derive(Debug)]
pub(crate) struct Reads;

impl Call for Proposals {
    type Item = Command;
    type Reply = Outcome;
    const MUTATES: bool = true;

    async fn send(
        inner: &Inner,
        mut client: MetaClient<Channel>,
        group: GroupId,
        commands: Vec<Command>,
    ) -> Result<Vec<Outcome>, Status> {
        let response = client.propose(ProposeRequest { group: group.get(), commands }).await?.into_inner();
        inner.view.saw(response.hlc);
        Ok(response.outcomes)
    }
}

impl Call for Reads {
    type Item = Query;
    type Reply = Answer;
    const MUTATES: bool = false;

    async fn send(
        inner: &Inner,
        mut client: MetaClient<Channel>,
        group: GroupId,
        queries: Vec<Query>,
    ) -> Result<Vec<Answer>, Status> {
        let response = client.read(ReadRequest { group: group.get(), queries }).await?.into_inner();
        for answer in &response.answers {
            inner.view.saw(answer.hlc);
            inner.view.saw_group_hlc(group, answer.hlc);
        }
        Ok(response.answers)
    }
}

/// The lanes of one kind of call, by group.
#[derive(Debug)]
pub(crate) struct Lanes<C: Call> {
    lanes: Mutex<HashMap<GroupId, Arc<Lane<C>>>>,
}

#[derive(Debug)]
struct Lane<C: Call> {
    group: GroupId,
    state: Mutex<LaneState<C>>,
}

#[derive(Debug)]
struct LaneState<C: Call> {
    waiting: VecDeque<Waiting<C>>,
    rpcs: usize,
}

#[derive(Debug)]
struct Waiting<C: Call> {
    items: Vec<C::Item>,
    bytes: usize,
    deadline: Instant,
    /// An attempt whose outcome is not known was made already, in a batch that was then refused.
    unknown: bool,
    reply: oneshot::Sender<Result<Replied<C::Reply>, Error>>,
}

/// What a call was answered.
#[derive(Debug)]
pub(crate) struct Replied<R> {
    /// One for each item, in order.
    pub(crate) replies: Vec<R>,
    /// An attempt before the one that was answered may have been done, too.
    pub(crate) unknown: bool,
}

impl<C: Call> Default for Lanes<C> {
    fn default() -> Self {
        Self { lanes: Mutex::default() }
    }
}

impl<C: Call> Lanes<C> {
    fn lane(&self, group: GroupId) -> Arc<Lane<C>> {
        let mut lanes = self.lanes.lock();
        let fresh =
            || Arc::new(Lane { group, state: Mutex::new(LaneState { waiting: VecDeque::new(), rpcs: 0 }) });
        lanes.entry(group).or_insert_with(fresh).clone()
    }

    /// Sends `items` with others of the group; one reply each, in order. Dropping the future does not stop the call.
    pub(crate) async fn call(
        &self,
        inner: &Arc<Inner>,
        group: GroupId,
        items: Vec<C::Item>,
        deadline: Instant,
    ) -> Result<Replied<C::Reply>, Error> {
        let (reply, answer) = oneshot::channel();
        let bytes = items.iter().map(Message::encoded_len).sum();
        let lane = self.lane(group);
        let start = {
            let mut state = lane.state.lock();
            if state.waiting.len() >= LANE_WAITING_MAX {
                return Err(Error::unavailable(format!("too many calls wait for {group}")));
            }
            state.waiting.push_back(Waiting { items, bytes, deadline, unknown: false, reply });
            let start = state.rpcs == 0
                || (state.rpcs < LANE_RPCS_MAX && state.waiting.len() >= LANE_WAITING_PER_RPC * state.rpcs);
            state.rpcs += usize::from(start);
            start
        };
        if start {
            let inner = inner.clone();
            inner.tasks.clone().spawn(async move { lane.drain(&inner).await });
        }
        match tokio::time::timeout_at(deadline, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(gone(C::MUTATES, "the client is shutting down")),
            Err(_) => Err(gone(C::MUTATES, "no answer before the deadline")),
        }
    }
}

fn gone(unknown: bool, detail: &str) -> Error {
    Error::Unavailable { retry_after_ms: 0, unknown, detail: detail.to_owned() }
}

impl<C: Call> Lane<C> {
    /// Sends batches until nothing waits.
    async fn drain(&self, inner: &Inner) {
        loop {
            let batch = self.next_batch();
            if batch.is_empty() {
                return;
            }
            let sent = tokio::select! {
                () = inner.cancel.cancelled() => {
                    let mut state = self.state.lock();
                    state.rpcs -= 1;
                    state.waiting.clear();
                    return;
                }
                sent = self.send(inner, batch) => sent,
            };
            // One bad command must not fail the calls it travelled with.
            for alone in sent.into_iter().flatten() {
                self.send(inner, vec![alone]).await;
            }
        }
    }

    /// Takes what goes into one RPC; when that is nothing, the caller's place among the RPCs is given up.
    fn next_batch(&self) -> Vec<Waiting<C>> {
        let mut state = self.state.lock();
        let mut batch: Vec<Waiting<C>> = Vec::new();
        let (mut items, mut bytes) = (0, 0);
        while let Some(next) = state.waiting.front() {
            let fits = items + next.items.len() <= BATCH_ITEMS_MAX && bytes + next.bytes <= BATCH_BYTES_MAX;
            if !batch.is_empty() && !fits {
                break;
            }
            if let Some(next) = state.waiting.pop_front() {
                // A caller that has gone before its call was sent is not missed.
                if next.reply.is_closed() {
                    continue;
                }
                items += next.items.len();
                bytes += next.bytes;
                batch.push(next);
            }
        }
        if batch.is_empty() {
            state.rpcs -= 1;
        }
        batch
    }

    /// Sends a batch and hands out the replies. Gives the batch back when one of several calls in it was refused as
    /// malformed: then each goes alone.
    async fn send(&self, inner: &Inner, mut batch: Vec<Waiting<C>>) -> Option<Vec<Waiting<C>>> {
        let counts: Vec<usize> = batch.iter().map(|waiting| waiting.items.len()).collect();
        let items: Vec<C::Item> =
            batch.iter_mut().flat_map(|waiting| std::mem::take(&mut waiting.items)).collect();
        let deadline = batch.iter().map(|waiting| waiting.deadline).max().unwrap_or_else(Instant::now);
        let mut unknown = batch.iter().any(|waiting| waiting.unknown);
        match attempt_until::<C>(inner, self.group, &items, deadline, &mut unknown).await {
            Ok(replies) => {
                let mut replies = replies.into_iter();
                for (waiting, count) in batch.into_iter().zip(counts) {
                    let mine = replies.by_ref().take(count).collect();
                    // The caller may have gone: its deadline is its own.
                    let _ = waiting.reply.send(Ok(Replied { replies: mine, unknown }));
                }
                None
            }
            Err(Error::Internal { .. }) if batch.len() > 1 => {
                let mut items = items.into_iter();
                for (waiting, count) in batch.iter_mut().zip(counts) {
                    waiting.items = items.by_ref().take(count).collect();
                    waiting.unknown = unknown;
                }
                Some(batch)
            }
            Err(error) => {
                for waiting in batch {
                    let _ = waiting.reply.send(Err(error.clone()));
                }
                None
            }
        }
    }
}

/// Sends `items` to the group's leader until they are answered or the deadline has passed. `unknown`: an attempt may have
/// been done without an answer; true from before or from one of these. Cancel-safe for reads; a proposal that is dropped
/// may still be done.
pub(crate) async fn attempt_until<C: Call>(
    inner: &Inner,
    group: GroupId,
    items: &[C::Item],
    deadline: Instant,
    unknown: &mut bool,
) -> Result<Vec<C::Reply>, Error> {
    let mut backoff = Backoff::until(deadline);
    let mut turn: usize = rand::random::<u8>().into();
    let mut hops = 0;
    let mut last: Option<Fault> = None;
    let count = items.len();
    while let Some(limit) = backoff.attempt(ATTEMPT_MAX) {
        let fault = match next_node(inner, group, &mut turn) {
            None => Fault::new(FaultKind::FaultUnavailable, "the map names no voter of the group"),
            Some((node, addr)) => {
                let fault = match attempt::<C>(inner, group, node, &addr, items.to_vec(), limit).await {
                    Ok(replies) if replies.len() == count => {
                        inner.view.set_leader(group, Some(node));
                        return Ok(replies);
                    }
                    Ok(replies) => {
                        *unknown |= C::MUTATES;
                        return Err(Error::internal(format!("{} replies to {count} items", replies.len())));
                    }
                    Err(fault) => fault,
                };
                *unknown |= C::MUTATES && fault.kind == FaultKind::FaultUnavailable;
                if learn_leader(inner, group, node, &fault) && hops < 3 {
                    hops += 1;
                    continue;
                }
                fault
            }
        };
        if !fault.is_retryable() {
            return Err(Error::from_fault(&fault, *unknown));
        }
        hops = 0;
        let pause = fault.retry_after_ms;
        tracing::debug!(%group, %fault, "attempt failed");
        last = Some(fault);
        if !backoff.wait(pause).await {
            break;
        }
    }
    let detail = last.map_or_else(|| "no time was left for an attempt".to_owned(), |fault| fault.to_string());
    metrics::counter!("holdfast_client_group_calls_failed_total").increment(1);
    Err(Error::Unavailable { retry_after_ms: 0, unknown: *unknown, detail: format!("{group}: {detail}") })
}

/// The believed leader, else the voters in turn.
fn next_node(inner: &Inner, group: GroupId, turn: &mut usize) -> Option<(NodeId, String)> {
    let map = inner.view.map()?;
    if let Some(leader) = inner.view.leader(group).and_then(|id| map.node(id)) {
        return Some((NodeId::new(leader.id), leader.addr.clone()));
    }
    let voters = map.voters(group);
    for _ in 0..voters.len() {
        *turn = turn.wrapping_add(1);
        if let Some(node) = map.node(voters[*turn % voters.len()]) {
            return Some((NodeId::new(node.id), node.addr.clone()));
        }
    }
    None
}

async fn attempt<C: Call>(
    inner: &Inner,
    group: GroupId,
    node: NodeId,
    addr: &str,
    items: Vec<C::Item>,
    limit: Duration,
) -> Result<Vec<C::Reply>, Fault> {
    let unreachable = |error: Error| Fault::new(FaultKind::NotHere, error.to_string());
    let channel = inner.channels.to(node, addr, Traffic::Meta).map_err(unreachable)?;
    let client = MetaClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
    match tokio::time::timeout(limit, C::send(inner, client, group, items)).await {
        Ok(Ok(replies)) => Ok(replies),
        Ok(Err(status)) => Err(Fault::from_status(&status)),
        Err(_) => {
            Err(Fault::new(FaultKind::FaultUnavailable, format!("node {node} gave no answer in {limit:?}")))
        }
    }
}

/// Notes what a fault says about who leads. `true`: another node is worth asking at once.
fn learn_leader(inner: &Inner, group: GroupId, asked: NodeId, fault: &Fault) -> bool {
    match fault.kind {
        FaultKind::NotLeader if fault.leader != 0 && fault.leader != asked.get() => {
            inner.view.set_leader(group, Some(NodeId::new(fault.leader)));
            true
        }
        FaultKind::NotLeader | FaultKind::NotHere | FaultKind::FaultUnavailable | FaultKind::StaleEpoch => {
            if inner.view.leader(group) == Some(asked) {
                inner.view.set_leader(group, None);
            }
            false
        }
        _ => false,
    }
}
