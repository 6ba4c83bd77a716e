//! The gRPC service other nodes speak to. Every stream begins with who speaks: another realm is refused as foreign, an
//! incarnation lower than one seen before as stale, also when the higher one appears while the stream is open.
//!
//! Requests of one stream are taken up in order and answered as they are done, so that appends of one group queue behind
//! each other's fsync together, and groups do not wait for each other.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use futures::stream::{BoxStream, FuturesUnordered};
use futures::{StreamExt, stream};
use holdfast_proto::error::Fault;
use holdfast_proto::id::{GroupId, NodeId};
use holdfast_proto::limits::MESSAGE_BYTES_MAX;
use holdfast_proto::raft::raft_server::{Raft as RaftRpc, RaftServer};
use holdfast_proto::raft::{
    AppendRequest, DigestRequest, FetchRequest, PeerReply, PeerRequest, RebuildReply, ScrubReply,
    SnapshotPart, SnapshotReply, TransferReply, TransferRequest, VoteRequest, peer_reply, peer_request,
    snapshot_part,
};
use holdfast_proto::v1::{FaultKind, WireFault};
use openraft::errors::RaftError;
use openraft::raft::{TransferLeaderError, TransferLeaderRequest};
use openraft::storage::Snapshot;
use prost::Message as _;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataValue;
use tonic::{Request, Response, Status, Streaming};

use super::group::Group;
use super::groups::Groups;
use super::lives::HELLO;
use super::raft::{LogId, TypeConfig, Vote};
use super::snapshot;
use super::state::{Applied, SnapshotRows};
use super::wire::{self as convert, WireError};

/// Requests of one stream in work, at most.
const IN_WORK_MAX: usize = 256;
const HELLO_DEADLINE: Duration = Duration::from_secs(5);
/// How long who fetches rows waits until they are as new as asked for.
const REACH_DEADLINE: Duration = Duration::from_secs(10);

/// The service of one node's groups.
#[derive(Debug, Clone)]
pub(crate) struct RaftService {
    groups: Arc<Groups>,
}

impl RaftService {
    pub(super) fn server(groups: Arc<Groups>) -> RaftServer<Self> {
        RaftServer::new(Self { groups })
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }
}

fn malformed(error: WireError) -> Fault {
    Fault::new(FaultKind::Invalid, error.to_string())
}

fn stopped(error: impl std::fmt::Display) -> Fault {
    Fault::new(FaultKind::FaultUnavailable, error.to_string())
}

fn wire_fault(fault: Fault) -> peer_reply::Message {
    peer_reply::Message::Fault(WireFault {
        kind: fault.kind.into(),
        message: fault.message,
        leader: fault.leader,
        retry_after_ms: fault.retry_after_ms,
    })
}

type Work = Pin<Box<dyn Future<Output = PeerReply> + Send>>;

struct Exchange {
    groups: Arc<Groups>,
    requests: Option<Streaming<PeerRequest>>,
    in_work: FuturesUnordered<Work>,
    sender: NodeId,
    incarnation: u64,
    /// The highest incarnation seen of the sender.
    highest: Arc<AtomicU64>,
    cancel: CancellationToken,
}

impl Exchange {
    async fn next(mut self) -> Option<(Result<PeerReply, Status>, Self)> {
        loop {
            let room = self.in_work.len() < IN_WORK_MAX;
            let requests = &mut self.requests;
            let request = async {
                match requests {
                    Some(requests) if room => requests.message().await,
                    _ => std::future::pending().await,
                }
            };
            let request = tokio::select! {
                biased;
                () = self.cancel.cancelled() => return None,
                Some(reply) = self.in_work.next(), if !self.in_work.is_empty() => return Some((Ok(reply), self)),
                request = request => request,
            };
            match request {
                Ok(Some(_)) if self.highest.load(Ordering::Acquire) > self.incarnation => {
                    let fault =
                        Fault::new(FaultKind::StaleEpoch, "a later incarnation of the sender is known here");
                    self.requests = None;
                    return Some((Err(fault.into_status()), self));
                }
                Ok(Some(request)) => {
                    self.groups.clock().peers().told(self.sender, request.clock_ms);
                    let mut work = take_up(&self.groups, request).await;
                    // The first poll hands the request to its group: later requests of the stream come after it.
                    match std::future::poll_fn(|cx| Poll::Ready(work.as_mut().poll(cx))).await {
                        Poll::Ready(reply) => return Some((Ok(reply), self)),
                        Poll::Pending => self.in_work.push(work),
                    }
                }
                Ok(None) | Err(_) => {
                    // Nobody is left to answer.
                    return None;
                }
            }
        }
    }
}

async fn take_up(groups: &Arc<Groups>, request: PeerRequest) -> Work {
    let id = request.id;
    let env = groups.env().clone();
    let answer = move |message| PeerReply { id, message: Some(message), clock_ms: env.now_ms() };
    let group = match group_of(groups, &request).await {
        Ok(group) => group,
        Err(fault) => return Box::pin(std::future::ready(answer(wire_fault(fault)))),
    };
    let groups = Arc::clone(groups);
    Box::pin(async move {
        let done = match request.message {
            Some(peer_request::Message::Append(request)) => append(&group, request).await,
            Some(peer_request::Message::Vote(request)) => vote(&group, &request, false).await,
            Some(peer_request::Message::PreVote(request)) => vote(&group, &request, true).await,
            Some(peer_request::Message::Transfer(request)) => transfer(&group, &request).await,
            Some(peer_request::Message::Digest(request)) => {
                let (state, DigestRequest { mark, index }) = (group.state(), request);
                let reply = state.marks().reply(mark, index, state.applied_index());
                Ok(peer_reply::Message::Digest(reply))
            }
            Some(peer_request::Message::Rebuild(request)) => {
                let from = request.from.into_iter().map(NodeId::new).collect();
                groups.begin_rebuild(group.id(), from, "the leader says so".to_owned());
                Ok(peer_reply::Message::Rebuild(RebuildReply {}))
            }
            Some(peer_request::Message::Scrub(_)) => {
                groups.start_scrub_here(group.id()).map(|()| peer_reply::Message::Scrub(ScrubReply {}))
            }
            Some(peer_request::Message::Hello(_)) | None => {
                Err(Fault::new(FaultKind::Invalid, "a request of an unknown kind"))
            }
        };
        answer(done.unwrap_or_else(wire_fault))
    })
}

/// The group of a request; a leader's append makes it hosted here.
async fn group_of(groups: &Groups, request: &PeerRequest) -> Result<Arc<Group>, Fault> {
    let id = GroupId::from_u64(request.group)
        .map_err(|error| Fault::new(FaultKind::Invalid, error.to_string()))?;
    match &request.message {
        Some(peer_request::Message::Append(_)) => groups.ensure(id).await,
        _ => groups.group(id),
    }
}

async fn append(group: &Group, request: AppendRequest) -> Result<peer_reply::Message, Fault> {
    let request = convert::append_in(request).map_err(malformed)?;
    let response = group.raft().append_entries(request).await.map_err(stopped)?;
    Ok(peer_reply::Message::Append(convert::append_reply_out(&response)))
}

async fn vote(group: &Group, request: &VoteRequest, pre: bool) -> Result<peer_reply::Message, Fault> {
    let request = convert::vote_request_in(request).map_err(malformed)?;
    let response = if pre { group.raft().pre_vote(request).await } else { group.raft().vote(request).await };
    let response = response.map_err(|error: RaftError<TypeConfig>| stopped(error))?;
    Ok(peer_reply::Message::Vote(convert::vote_reply_out(&response)))
}

async fn transfer(group: &Group, request: &TransferRequest) -> Result<peer_reply::Message, Fault> {
    let from = request.from_leader.as_ref().ok_or(malformed(WireError("a transfer without its leader")))?;
    let last: Option<LogId> = request.last_log_id.as_ref().map(convert::log_id_in);
    let request = TransferLeaderRequest::new(convert::vote_in(from), request.to, last);
    let reply = match group.raft().handle_transfer_leader(request).await.map_err(stopped)? {
        Ok(()) => TransferReply { accepted: true, ..TransferReply::default() },
        Err(TransferLeaderError::VoteChanged { actual, .. }) => {
            TransferReply { vote: Some(convert::vote_out(&actual)), ..TransferReply::default() }
        }
        Err(TransferLeaderError::LogNotFlushed { actual, .. }) => TransferReply {
            last_log_id: actual.as_ref().map(convert::log_id_out),
            ..TransferReply::default()
        },
    };
    Ok(peer_reply::Message::Transfer(reply))
}

fn begin_sending(group: &Group) -> Result<OwnedSemaphorePermit, Fault> {
    let busy = || Fault::new(FaultKind::Overloaded, "the rows of the group are being sent");
    group.begin_sending().ok_or_else(busy)
}

/// The rows of a group as they are now, until the node stops.
fn send_rows(
    groups: &Arc<Groups>,
    group: Arc<Group>,
    sending: OwnedSemaphorePermit,
    to: NodeId,
) -> BoxStream<'static, SnapshotPart> {
    let (parts, outbound) = mpsc::channel(snapshot::PARTS_QUEUED);
    let own = Arc::clone(groups);
    groups.tasks().spawn_blocking(move || {
        snapshot::serve(group.state(), own.hello(to), own.env(), &parts);
        drop(sending);
    });
    let stop = groups.cancel().clone().cancelled_owned();
    ReceiverStream::new(outbound).take_until(stop).boxed()
}

impl Groups {
    /// The rows of a group that this node leads, with everything that was acknowledged before the call: head, rows, tail.
    ///
    /// # Errors
    /// `NotLeader`, `NotHere`, `Overloaded` while they are being sent already, or `FaultUnavailable`.
    pub(crate) async fn read_rows(
        self: &Arc<Self>,
        id: GroupId,
    ) -> Result<BoxStream<'static, SnapshotPart>, Fault> {
        let group = self.group(id)?;
        let sending = begin_sending(&group)?;
        group.read(Vec::new()).await?;
        Ok(send_rows(self, group, sending, self.node()))
    }
}

#[tonic::async_trait]
impl RaftRpc for RaftService {
    type ExchangeStream = BoxStream<'static, Result<PeerReply, Status>>;

    async fn exchange(
        &self,
        request: Request<Streaming<PeerRequest>>,
    ) -> Result<Response<Self::ExchangeStream>, Status> {
        let mut requests = request.into_inner();
        let first = tokio::time::timeout(HELLO_DEADLINE, requests.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no hello"))??;
        let Some(peer_request::Message::Hello(hello)) = first.and_then(|request| request.message) else {
            return Err(Fault::new(FaultKind::Invalid, "a stream that does not begin with a hello").into());
        };
        let highest = self.groups.admit(&hello).await?;
        let exchange = Exchange {
            groups: Arc::clone(&self.groups),
            requests: Some(requests),
            in_work: FuturesUnordered::new(),
            sender: NodeId::new(hello.sender),
            incarnation: hello.incarnation,
            highest,
            cancel: self.groups.cancel().clone(),
        };
        let mut response = Response::new(stream::unfold(exchange, Exchange::next).boxed());
        let own = self.groups.hello(NodeId::new(hello.sender)).encode_to_vec();
        response.metadata_mut().insert_bin(HELLO, MetadataValue::from_bytes(&own));
        Ok(response)
    }

    type FetchSnapshotStream = BoxStream<'static, Result<SnapshotPart, Status>>;

    async fn fetch_snapshot(
        &self,
        request: Request<FetchRequest>,
    ) -> Result<Response<Self::FetchSnapshotStream>, Status> {
        let ask = request.into_inner();
        let hello = ask.hello.ok_or_else(|| malformed(WireError("a fetch without its hello")))?;
        self.groups.admit(&hello).await?;
        let id = GroupId::from_u64(ask.group)
            .map_err(|error| Fault::new(FaultKind::Invalid, error.to_string()))?;
        let group = self.groups.group(id)?;
        if let Some(why) = group.state().suspicion() {
            return Err(Fault::new(FaultKind::FaultUnavailable, why).into());
        }
        let sending = begin_sending(&group)?;
        let mut applied = group.state().watch_applied();
        let reached = applied.wait_for(|at| *at >= ask.min_index);
        tokio::time::timeout(REACH_DEADLINE, reached)
            .await
            .map_err(|_| Fault::new(FaultKind::FaultUnavailable, "that index is not applied here"))?
            .map_err(stopped)?;
        let parts = send_rows(&self.groups, group, sending, NodeId::new(hello.sender));
        Ok(Response::new(parts.map(Ok).boxed()))
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<SnapshotPart>>,
    ) -> Result<Response<SnapshotReply>, Status> {
        let mut parts = request.into_inner();
        let first = tokio::time::timeout(HELLO_DEADLINE, parts.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no head"))??;
        let Some(snapshot_part::Part::Head(head)) = first.and_then(|part| part.part) else {
            return Err(malformed(WireError("a snapshot that does not begin with its head")).into());
        };
        let hello = head.hello.as_ref().ok_or_else(|| malformed(WireError("a head without its hello")))?;
        self.groups.admit(hello).await?;
        let vote = head.vote.as_ref().ok_or_else(|| malformed(WireError("a head without its vote")))?;
        let vote = convert::vote_in(vote);
        let id = GroupId::from_u64(head.group)
            .map_err(|error| Fault::new(FaultKind::Invalid, error.to_string()))?;
        let group = self.groups.ensure(id).await?;
        let Some(receiving) = group.begin_receiving() else {
            return Err(Fault::new(FaultKind::Overloaded, "a snapshot of the group is being received").into());
        };
        let invalid = |error: snapshot::SnapshotError| Fault::new(FaultKind::Invalid, error.to_string());
        let applied = snapshot::applied_of(&head).map_err(invalid)?;
        // On its own: who is asked for the reply is dropped when the connection breaks, and what has begun must come to
        // its end, rows removed or installed, before the next snapshot of the group begins.
        let stop = self.groups.cancel().clone();
        let taking = async move {
            let taken = take_snapshot(&group, vote, applied, &mut parts, &stop).await;
            drop(receiving);
            taken
        };
        let taken = self.groups.tasks().spawn(taking).await;
        Ok(Response::new(taken.map_err(stopped)??))
    }
}

/// Receives and installs the snapshot after its head. Not cancel-safe.
async fn take_snapshot(
    group: &Group,
    vote: Vote,
    applied: Applied,
    parts: &mut Streaming<SnapshotPart>,
    stop: &CancellationToken,
) -> Result<SnapshotReply, Fault> {
    tracing::info!(group = %group.id(), index = applied.log_id.map(|id| id.index()), "receiving a snapshot");
    let meta = openraft::storage::SnapshotMeta {
        last_log_id: applied.log_id,
        last_membership: (*applied.membership).clone(),
    };
    let (generation, applied) =
        snapshot::receive(group.state(), applied, parts, stop).await.map_err(stopped)?;
    let rows = SnapshotRows::Received { generation: generation.clone(), applied };
    let installed = group.raft().install_full_snapshot(vote, Snapshot { meta, snapshot: rows }).await;
    // Not needed any more when the group had moved on meanwhile.
    let store = group.state().store().clone();
    match tokio::task::spawn_blocking(move || store.remove_unless_live(generation)).await.map_err(stopped)? {
        Ok(()) => {}
        Err(error) => {
            tracing::warn!(group = %group.id(), %error, "rows of a snapshot that was not needed stay");
        }
    }
    let response = installed.map_err(stopped)?;
    metrics::counter!("holdfast_meta_snapshots_installed_total").increment(1);
    Ok(SnapshotReply { vote: Some(convert::vote_out(&response.vote)) })
}
