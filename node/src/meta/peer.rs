//! Connections to the other nodes: one channel to each, and on it one long-lived stream that carries the small messages
//! of all groups. A message costs a frame, not a request.
//!
//! Requests go out in the order they are sent; replies are matched by id and may come in any order. A broken stream fails
//! all that wait on it, and the next request makes a new one, at most every [`RETRY_DELAY`]. Whether a request whose reply
//! never came was carried out is not known; Raft's messages bear repetition.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use holdfast_proto::error::Fault;
use holdfast_proto::id::NodeId;
use holdfast_proto::limits::{H2_WINDOW_BYTES, MESSAGE_BYTES_MAX};
use holdfast_proto::raft::raft_client::RaftClient;
use holdfast_proto::raft::{PeerHello, PeerReply, PeerRequest, peer_reply, peer_request};
use holdfast_proto::v1::FaultKind;
use parking_lot::Mutex;
use prost::Message as _;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Streaming;
use tonic::metadata::BinaryMetadataValue;
use tonic::transport::{Channel, Endpoint};

use super::address::AddressBook;
use super::clock::StampClock;
use super::lives::{HELLO, Identity, Lives};
use crate::env::Env;

/// Between two attempts to reach a node.
const RETRY_DELAY: Duration = Duration::from_millis(200);
const CONNECT_DEADLINE: Duration = Duration::from_secs(1);
/// A connection that answers no ping for this long is dead.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(2);
const KEEP_ALIVE_DEADLINE: Duration = Duration::from_secs(3);
/// Requests queued to one node, at most.
const QUEUE_MAX: usize = 1024;

/// Why no reply came.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum PeerError {
    /// The node cannot be reached, or the connection broke.
    #[error("node {node} is not reachable: {reason}")]
    Unreachable { node: NodeId, reason: String },
    /// No reply in time.
    #[error("node {node} did not answer within {deadline:?}")]
    Late { node: NodeId, deadline: Duration },
    /// The node refused.
    #[error("node {node} refused: {fault}")]
    Refused { node: NodeId, fault: Fault },
}

/// By id of the request: who waits, and since when, on the monotonic clock.
type Waiting = HashMap<u64, (Duration, oneshot::Sender<PeerReply>)>;

struct Connection {
    channel: Channel,
    requests: mpsc::Sender<PeerRequest>,
    /// `None` once the stream broke.
    waiting: Mutex<Option<Waiting>>,
    next_id: AtomicU64,
}

/// Fails whoever waits on a stream, whatever ended it.
struct Breaker(Arc<Connection>);

impl Drop for Breaker {
    fn drop(&mut self) {
        self.0.waiting.lock().take();
    }
}

#[derive(Default)]
struct Attempts {
    connection: Option<Arc<Connection>>,
    failed: Option<(Duration, String)>,
}

/// One other node.
pub(super) struct Peer {
    node: NodeId,
    shared: Arc<Shared>,
    attempts: tokio::sync::Mutex<Attempts>,
}

struct Shared {
    lives: Arc<Lives>,
    addresses: Arc<AddressBook>,
    env: Env,
    clock: Arc<StampClock>,
    tasks: TaskTracker,
    cancel: CancellationToken,
}

/// All other nodes.
pub(super) struct Peers {
    shared: Arc<Shared>,
    peers: Mutex<HashMap<NodeId, Arc<Peer>>>,
}

impl fmt::Debug for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peers").field("identity", self.shared.lives.own()).finish_non_exhaustive()
    }
}

impl Peers {
    /// Connects when first asked; every task ends with `cancel` and is in `tasks`.
    pub(super) fn new(
        lives: Arc<Lives>,
        addresses: Arc<AddressBook>,
        env: Env,
        clock: Arc<StampClock>,
        tasks: TaskTracker,
        cancel: CancellationToken,
    ) -> Self {
        let shared = Arc::new(Shared { lives, addresses, env, clock, tasks, cancel });
        Self { shared, peers: Mutex::default() }
    }

    /// The other node `node`.
    pub(super) fn get(&self, node: NodeId) -> Arc<Peer> {
        let mut peers = self.peers.lock();
        let new = || {
            Arc::new(Peer { node, shared: Arc::clone(&self.shared), attempts: tokio::sync::Mutex::default() })
        };
        Arc::clone(peers.entry(node).or_insert_with(new))
    }
}

/// A request that was sent and not answered yet.
pub(super) struct Pending {
    node: NodeId,
    id: u64,
    connection: Arc<Connection>,
    reply: oneshot::Receiver<PeerReply>,
}

impl Pending {
    /// Waits for the reply. Not repeatable: a late reply is dropped.
    pub(super) async fn reply(self, deadline: Duration) -> Result<peer_reply::Message, PeerError> {
        let node = self.node;
        match tokio::time::timeout(deadline, self.reply).await {
            Ok(Ok(reply)) => match reply.message {
                Some(peer_reply::Message::Fault(fault)) => {
                    let fault = Fault { leader: fault.leader, ..Fault::new(fault.kind(), fault.message) };
                    Err(PeerError::Refused { node, fault })
                }
                Some(message) => Ok(message),
                None => Err(PeerError::Unreachable { node, reason: "a reply of an unknown kind".into() }),
            },
            Ok(Err(_)) => Err(PeerError::Unreachable { node, reason: "the stream broke".into() }),
            Err(_) => {
                if let Some(waiting) = self.connection.waiting.lock().as_mut() {
                    waiting.remove(&self.id);
                }
                Err(PeerError::Late { node, deadline })
            }
        }
    }
}

impl Peer {
    pub(super) fn node(&self) -> NodeId {
        self.node
    }

    pub(super) fn identity(&self) -> &Identity {
        self.shared.lives.own()
    }

    pub(super) fn env(&self) -> &Env {
        &self.shared.env
    }

    fn unreachable(&self, reason: impl fmt::Display) -> PeerError {
        PeerError::Unreachable { node: self.node, reason: reason.to_string() }
    }

    /// Sends a request of `group`, connecting first where needed; requests of sequential calls go out in that order.
    pub(super) async fn send(
        &self,
        group: u64,
        message: peer_request::Message,
    ) -> Result<Pending, PeerError> {
        let connection = self.connection().await?;
        let id = connection.next_id.fetch_add(1, Ordering::Relaxed);
        let (tx, reply) = oneshot::channel();
        match connection.waiting.lock().as_mut() {
            Some(waiting) => waiting.insert(id, (self.shared.env.monotonic(), tx)),
            None => return Err(self.unreachable("the stream broke")),
        };
        let clock_ms = self.shared.env.now_ms();
        let request = PeerRequest { id, group, message: Some(message), clock_ms };
        if let Err(error) = connection.requests.try_send(request) {
            if let Some(waiting) = connection.waiting.lock().as_mut() {
                waiting.remove(&id);
            }
            return Err(self.unreachable(error));
        }
        Ok(Pending { node: self.node, id, connection, reply })
    }

    /// A client on the same channel, for what does not fit the stream.
    pub(super) async fn client(&self) -> Result<RaftClient<Channel>, PeerError> {
        Ok(client(self.connection().await?.channel.clone()))
    }

    async fn connection(&self) -> Result<Arc<Connection>, PeerError> {
        let mut attempts = self.attempts.lock().await;
        if let Some(connection) = &attempts.connection {
            if connection.waiting.lock().is_some() {
                return Ok(Arc::clone(connection));
            }
            attempts.connection = None;
        }
        let now = self.shared.env.monotonic();
        if let Some((at, reason)) = &attempts.failed
            && now < *at + RETRY_DELAY
        {
            return Err(self.unreachable(reason));
        }
        let made = tokio::time::timeout(CONNECT_DEADLINE, self.connect()).await;
        match made.unwrap_or_else(|_| Err("no connection in time".into())) {
            Ok(connection) => {
                attempts.failed = None;
                attempts.connection = Some(Arc::clone(&connection));
                Ok(connection)
            }
            Err(reason) => {
                tracing::debug!(peer = %self.node, %reason, "peer not reachable");
                attempts.failed = Some((self.shared.env.monotonic(), reason.clone()));
                Err(self.unreachable(reason))
            }
        }
    }

    async fn connect(&self) -> Result<Arc<Connection>, String> {
        let address = self.shared.addresses.get(self.node).ok_or("its address is not known")?;
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|error| error.to_string())?
            .connect_timeout(CONNECT_DEADLINE)
            .tcp_nodelay(true)
            .initial_stream_window_size(H2_WINDOW_BYTES)
            .initial_connection_window_size(H2_WINDOW_BYTES)
            .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_DEADLINE)
            .keep_alive_while_idle(true);
        let channel = endpoint.connect().await.map_err(|error| format!("{address}: {error}"))?;
        let (requests, outbound) = mpsc::channel(QUEUE_MAX);
        let hello = peer_request::Message::Hello(self.shared.lives.own().hello(self.node));
        let hello = PeerRequest { message: Some(hello), ..PeerRequest::default() };
        requests.try_send(hello).map_err(|error| error.to_string())?;
        let replies =
            client(channel.clone()).exchange(ReceiverStream::new(outbound)).await.map_err(|status| {
                let fault = Fault::from_status(&status);
                if matches!(fault.kind, FaultKind::Foreign | FaultKind::StaleEpoch) {
                    tracing::error!(peer = %self.node, %fault, "a peer refuses this node");
                }
                fault.to_string()
            })?;
        if let Some(hello) = replies.metadata().get_bin(HELLO) {
            self.check(hello).await.map_err(|fault| {
                tracing::error!(peer = %self.node, %fault, "a peer is not who it should be: nothing is taken from it");
                fault.to_string()
            })?;
        }
        let replies = replies.into_inner();
        let connection = Arc::new(Connection {
            channel,
            requests,
            waiting: Mutex::new(Some(HashMap::new())),
            next_id: AtomicU64::new(1),
        });
        let breaker = Breaker(Arc::clone(&connection));
        self.shared.tasks.spawn(receive(replies, breaker, self.node, Arc::clone(&self.shared)));
        Ok(connection)
    }
}

impl Peer {
    /// Checks who answers at the peer's address.
    async fn check(&self, hello: &BinaryMetadataValue) -> Result<(), Fault> {
        let invalid = |why: String| Fault::new(FaultKind::Invalid, why);
        let hello = hello.to_bytes().map_err(|error| invalid(error.to_string()))?;
        let hello = PeerHello::decode(hello).map_err(|error| invalid(error.to_string()))?;
        if hello.sender != self.node.get() {
            let other = NodeId::new(hello.sender);
            return Err(Fault::new(FaultKind::NotHere, format!("node {other} answers at its address")));
        }
        self.shared.lives.admit(&hello).await.map(drop)
    }
}

fn client(channel: Channel) -> RaftClient<Channel> {
    RaftClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

async fn receive(mut replies: Streaming<PeerReply>, breaker: Breaker, node: NodeId, shared: Arc<Shared>) {
    loop {
        let reply = tokio::select! {
            reply = replies.message() => reply,
            () = shared.cancel.cancelled() => return,
        };
        match reply {
            Ok(Some(reply)) => {
                let waiter = breaker.0.waiting.lock().as_mut().and_then(|waiting| waiting.remove(&reply.id));
                if let Some((sent, waiter)) = waiter {
                    shared.clock.peers().answered(node, reply.clock_ms, sent);
                    // Who asked may have given up.
                    let _ = waiter.send(reply);
                }
            }
            Ok(None) => return,
            Err(status) => {
                tracing::debug!(peer = %node, %status, "stream to peer broke");
                return;
            }
        }
    }
}
