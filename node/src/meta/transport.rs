//! The consensus library's network on [`super::peer`]: appends of a group are pipelined on the peer's stream and answered
//! in order, votes and transfers are single messages, a snapshot is a stream of its own on the same channel.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::FuturesOrdered;
use futures::{Stream, StreamExt, stream};
use holdfast_proto::id::{GroupId, NodeId};
use holdfast_proto::raft::{TransferRequest as WireTransferRequest, peer_reply, peer_request};
use openraft::base::{BoxFuture, BoxStream};
use openraft::entry::RaftEntry;
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::RPCOption;
use openraft::raft::{
    SnapshotResponse, StreamAppendError, StreamAppendResult, TransferLeaderError, TransferLeaderRequest,
    TransferLeaderResponse,
};
use openraft::{EmptyNode, OptionalSend, RaftNetworkFactory, RaftNetworkV2};

use super::peer::{Peer, PeerError, Peers, Pending};
use super::raft::{AppendRequest, AppendResponse, LogId, TypeConfig, Vote, VoteRequest, VoteResponse};
use super::state::SnapshotRows;
use super::wire::{self as convert, WireError};

/// Appends of one group in flight to one peer, at most.
const APPENDS_IN_FLIGHT_MAX: usize = 16;
/// An append waits for the peer's fsync, which a busy disk may delay.
const APPEND_DEADLINE: Duration = Duration::from_secs(3);
const TRANSFER_DEADLINE: Duration = Duration::from_secs(3);

type RpcError = RPCError<TypeConfig>;
type AppendResult = Result<StreamAppendResult<TypeConfig>, RpcError>;

/// One group's way to the other nodes.
#[derive(Debug, Clone)]
pub(super) struct Network {
    group: GroupId,
    peers: Arc<Peers>,
}

impl Network {
    pub(super) fn new(group: GroupId, peers: Arc<Peers>) -> Self {
        Self { group, peers }
    }
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = GroupPeer;

    async fn new_client(&mut self, target: u64, _node: &EmptyNode) -> GroupPeer {
        GroupPeer { group: self.group, peer: self.peers.get(NodeId::new(target)) }
    }
}

/// One group's way to one node.
pub(super) struct GroupPeer {
    group: GroupId,
    peer: Arc<Peer>,
}

fn rpc_error(error: PeerError) -> RpcError {
    match error {
        PeerError::Unreachable { .. } | PeerError::Refused { .. } => Unreachable::new(&error).into(),
        PeerError::Late { .. } => NetworkError::new(&error).into(),
    }
}

fn malformed(error: WireError) -> RpcError {
    NetworkError::new(&error).into()
}

const UNEXPECTED: WireError = WireError("a reply of another kind");

fn last_of(request: &AppendRequest) -> Option<LogId> {
    request.entries.last().map(RaftEntry::log_id).or(request.prev_log_id)
}

async fn append_reply(pending: Pending) -> Result<AppendResponse, RpcError> {
    match pending.reply(APPEND_DEADLINE).await.map_err(rpc_error)? {
        peer_reply::Message::Append(reply) => convert::append_reply_in(&reply).map_err(malformed),
        _ => Err(malformed(UNEXPECTED)),
    }
}

fn append_result(response: AppendResponse, prev: Option<LogId>, last: Option<LogId>) -> AppendResult {
    match response {
        AppendResponse::Success => Ok(Ok(last)),
        AppendResponse::PartialSuccess(log_id) => Ok(Ok(log_id)),
        AppendResponse::Conflict => {
            let prev = prev.ok_or(malformed(WireError("a conflict before the first entry")))?;
            Ok(Err(StreamAppendError::Conflict(prev)))
        }
        AppendResponse::HigherVote(vote) => Ok(Err(StreamAppendError::HigherVote(vote))),
    }
}

impl GroupPeer {
    async fn call(
        &self,
        message: peer_request::Message,
        deadline: Duration,
    ) -> Result<peer_reply::Message, RpcError> {
        let pending = self.peer.send(self.group.get(), message).await.map_err(rpc_error)?;
        pending.reply(deadline).await.map_err(rpc_error)
    }

    async fn send_append(&self, request: &AppendRequest) -> Result<Pending, RpcError> {
        let message = peer_request::Message::Append(convert::append_out(request));
        self.peer.send(self.group.get(), message).await.map_err(rpc_error)
    }

    async fn vote_call(
        &self,
        message: peer_request::Message,
        option: RPCOption,
    ) -> Result<VoteResponse, RpcError> {
        match self.call(message, option.soft_ttl()).await? {
            peer_reply::Message::Vote(reply) => convert::vote_reply_in(&reply).map_err(malformed),
            _ => Err(malformed(UNEXPECTED)),
        }
    }
}

type AppendFuture = Pin<Box<dyn Future<Output = AppendResult> + Send>>;

/// Appends on their way to one peer.
struct Pipeline<'s, S> {
    to: &'s GroupPeer,
    /// `None` when the input ended or an append failed: what is in flight is still awaited.
    input: Option<S>,
    in_flight: FuturesOrdered<AppendFuture>,
}

impl<S: Stream<Item = AppendRequest> + Unpin> Pipeline<'_, S> {
    async fn next(mut self) -> Option<(AppendResult, Self)> {
        loop {
            let take_more = self.input.is_some() && self.in_flight.len() < APPENDS_IN_FLIGHT_MAX;
            let input = async {
                match &mut self.input {
                    Some(input) => input.next().await,
                    None => None,
                }
            };
            tokio::select! {
                biased;
                Some(result) = self.in_flight.next(), if !self.in_flight.is_empty() => {
                    if !matches!(result, Ok(Ok(_))) {
                        // The library starts over; replies to what was sent after the failed one mean nothing.
                        self.input = None;
                        self.in_flight = FuturesOrdered::new();
                    }
                    return Some((result, self));
                }
                request = input, if take_more => match request {
                    None => self.input = None,
                    Some(request) => {
                        let (prev, last) = (request.prev_log_id, last_of(&request));
                        let pending = self.to.send_append(&request).await;
                        self.in_flight.push_back(Box::pin(async move {
                            append_result(append_reply(pending?).await?, prev, last)
                        }));
                    }
                },
                else => return None,
            }
        }
    }
}

impl RaftNetworkV2<TypeConfig> for GroupPeer {
    type SnapshotData = SnapshotRows;

    async fn append_entries(
        &mut self,
        rpc: AppendRequest,
        _option: RPCOption,
    ) -> Result<AppendResponse, RpcError> {
        append_reply(self.send_append(&rpc).await?).await
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        _option: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, AppendResult>, RpcError>>
    where
        S: Stream<Item = AppendRequest> + OptionalSend + Unpin + 'static,
    {
        let pipeline = Pipeline { to: self, input: Some(input), in_flight: FuturesOrdered::new() };
        let results: BoxStream<'s, AppendResult> = Box::pin(stream::unfold(pipeline, Pipeline::next));
        Box::pin(std::future::ready(Ok(results)))
    }

    async fn vote(&mut self, rpc: VoteRequest, option: RPCOption) -> Result<VoteResponse, RpcError> {
        self.vote_call(peer_request::Message::Vote(convert::vote_request_out(&rpc)), option).await
    }

    async fn pre_vote(&mut self, rpc: VoteRequest, option: RPCOption) -> Result<VoteResponse, RpcError> {
        self.vote_call(peer_request::Message::PreVote(convert::vote_request_out(&rpc)), option).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: openraft::type_config::alias::SnapshotOf<TypeConfig, SnapshotRows>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let send = super::snapshot::send(&self.peer, self.group, &vote, snapshot.snapshot);
        tokio::select! {
            sent = send => {
                let vote = sent.map_err(|error| StreamingError::from(Unreachable::new(&error)))?;
                Ok(SnapshotResponse::new(vote))
            }
            closed = cancel => Err(closed.into()),
        }
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RpcError> {
        let message = peer_request::Message::Transfer(WireTransferRequest {
            from_leader: Some(convert::vote_out(req.from_leader())),
            to: *req.to_node_id(),
            last_log_id: req.last_log_id().map(convert::log_id_out),
        });
        let reply = match self.call(message, TRANSFER_DEADLINE).await? {
            peer_reply::Message::Transfer(reply) => reply,
            _ => return Err(malformed(UNEXPECTED)),
        };
        Ok(match (reply.accepted, reply.vote) {
            (true, _) => Ok(()),
            (false, Some(actual)) => Err(TransferLeaderError::VoteChanged {
                expected: *req.from_leader(),
                actual: convert::vote_in(&actual),
            }),
            (false, None) => Err(TransferLeaderError::LogNotFlushed {
                expected: req.last_log_id().copied(),
                actual: reply.last_log_id.as_ref().map(convert::log_id_in),
            }),
        })
    }
}
