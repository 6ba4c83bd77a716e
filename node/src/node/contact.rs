//! How a node, or the command line, reaches the zone: any meta node that answers, the last good one first.

use std::collections::HashMap;
use std::future::Future;
use std::time::Duration;

use holdfast_proto::admin::admin_client::AdminClient;
use holdfast_proto::admin::{
    AcceptLossRequest, AcceptLossResponse, AdminListBucketsRequest, AdminListBucketsResponse, ChangeRequest,
    ChangeResponse, EventsRequest, EventsResponse, FsckEvent, FsckRequest, MayIRequest, MayIResponse,
    RebuildIndexEvent, RebuildIndexRequest, StartScrubRequest, StartScrubResponse, StatObjectRequest,
    StatObjectResponse, StatusRequest, StatusResponse,
};
use holdfast_proto::error::Fault;
use holdfast_proto::limits::{H2_WINDOW_BYTES, MAP_LIFE_SHIFT, MESSAGE_BYTES_MAX};
use holdfast_proto::meta::membership_client::MembershipClient;
use holdfast_proto::meta::{
    ClusterMap, HeartbeatRequest, HeartbeatResponse, JoinRequest, JoinResponse, NodeState,
};
use holdfast_proto::v1::FaultKind;
use parking_lot::Mutex;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};

/// Set on a request that one meta node sent on to the leader: it is not sent on again.
pub(crate) const FORWARDED: &str = "holdfast-forwarded";

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const KEEP_ALIVE: Duration = Duration::from_secs(5);
const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(2);
const JOIN_TIMEOUT: Duration = Duration::from_secs(5);
const STATUS_TIMEOUT: Duration = Duration::from_secs(15);
/// A map of a large zone is larger than a shard.
pub(crate) const MAP_BYTES_MAX: usize = 16 * MESSAGE_BYTES_MAX;

/// Connections to the zone's meta nodes. Shared by reference; every call is cancel-safe.
#[derive(Debug)]
pub(crate) struct Contact {
    seeds: Vec<String>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Meta nodes of the newest map.
    known: Vec<String>,
    good: Option<String>,
    /// Of the newest map: who has not heard of it was given up when the zone was recovered.
    life: u64,
    channels: HashMap<String, Channel>,
}

impl Contact {
    pub(crate) fn new(seeds: Vec<String>) -> Self {
        Self { seeds, state: Mutex::default() }
    }

    /// One more address to ask, before any map is known.
    pub(crate) fn add_seed(&self, address: String) {
        self.state.lock().known.push(address);
    }

    /// Takes the meta nodes' addresses from a map.
    pub(crate) fn learn(&self, map: &ClusterMap) {
        let (known, life) = (meta_addresses(map), map.generation >> MAP_LIFE_SHIFT);
        let mut state = self.state.lock();
        if !known.is_empty() && life >= state.life {
            state.known = known;
            state.life = life;
        }
    }

    /// Whether a node that has this map may be listened to.
    fn check_life(&self, generation: u64) -> Result<(), Status> {
        if generation == 0 || generation >> MAP_LIFE_SHIFT >= self.state.lock().life {
            return Ok(());
        }
        let fault = Fault::new(FaultKind::FaultUnavailable, "it was given up when the zone was recovered");
        Err(fault.into())
    }

    /// Addresses in the order of asking.
    pub(crate) fn addresses(&self) -> Vec<String> {
        let state = self.state.lock();
        let mut addresses: Vec<String> = Vec::new();
        for address in state.good.iter().chain(&state.known).chain(&self.seeds) {
            if !addresses.contains(address) {
                addresses.push(address.clone());
            }
        }
        addresses
    }

    pub(crate) async fn join(&self, request: JoinRequest) -> Result<JoinResponse, Fault> {
        self.ask(JOIN_TIMEOUT, |channel| {
            let request = request.clone();
            async move {
                let mut client = MembershipClient::new(channel).max_decoding_message_size(MAP_BYTES_MAX);
                let answer = client.join(request).await?;
                self.check_life(answer.get_ref().map.as_ref().map_or(0, |map| map.generation))?;
                Ok(answer)
            }
        })
        .await
    }

    pub(crate) async fn heartbeat(&self, request: HeartbeatRequest) -> Result<HeartbeatResponse, Fault> {
        self.ask(HEARTBEAT_TIMEOUT, |channel| {
            let request = request.clone();
            async move {
                let answer = MembershipClient::new(channel).heartbeat(request).await?;
                self.check_life(answer.get_ref().map_generation)?;
                Ok(answer)
            }
        })
        .await
    }

    pub(crate) async fn status(&self) -> Result<StatusResponse, Fault> {
        self.ask(STATUS_TIMEOUT, |channel| async move {
            AdminClient::new(channel).max_decoding_message_size(MAP_BYTES_MAX).status(StatusRequest {}).await
        })
        .await
    }

    pub(crate) async fn buckets(&self) -> Result<AdminListBucketsResponse, Fault> {
        self.ask(STATUS_TIMEOUT, |channel| async move {
            AdminClient::new(channel)
                .max_decoding_message_size(MAP_BYTES_MAX)
                .list_buckets(AdminListBucketsRequest {})
                .await
        })
        .await
    }

    pub(crate) async fn object(&self, request: StatObjectRequest) -> Result<StatObjectResponse, Fault> {
        self.ask(STATUS_TIMEOUT, |channel| {
            let request = request.clone();
            async move {
                AdminClient::new(channel).max_decoding_message_size(MAP_BYTES_MAX).stat_object(request).await
            }
        })
        .await
    }

    pub(crate) async fn change(&self, request: ChangeRequest) -> Result<ChangeResponse, Fault> {
        self.ask(STATUS_TIMEOUT, |channel| async move { AdminClient::new(channel).change(request).await })
            .await
    }

    pub(crate) async fn accept_loss(&self, request: AcceptLossRequest) -> Result<AcceptLossResponse, Fault> {
        self.ask(STATUS_TIMEOUT, |channel| {
            let request = request.clone();
            async move { AdminClient::new(channel).accept_loss(request).await }
        })
        .await
    }

    /// The events of a check, as they come.
    pub(crate) async fn fsck(&self, request: FsckRequest) -> Result<tonic::Streaming<FsckEvent>, Fault> {
        self.ask(STATUS_TIMEOUT, |channel| {
            let request = request.clone();
            async move { AdminClient::new(channel).fsck(request).await }
        })
        .await
    }

    /// What is made of shards that nobody owns, as it is made.
    pub(crate) async fn rebuild(
        &self,
        request: RebuildIndexRequest,
    ) -> Result<tonic::Streaming<RebuildIndexEvent>, Fault> {
        self.ask(STATUS_TIMEOUT, |channel| {
            let request = request.clone();
            async move { AdminClient::new(channel).rebuild(request).await }
        })
        .await
    }

    pub(crate) async fn events(&self, request: EventsRequest) -> Result<EventsResponse, Fault> {
        self.ask(STATUS_TIMEOUT, |channel| async move {
            AdminClient::new(channel).max_decoding_message_size(MAP_BYTES_MAX).events(request).await
        })
        .await
    }

    pub(crate) async fn start_scrub(&self, request: StartScrubRequest) -> Result<StartScrubResponse, Fault> {
        self.ask(STATUS_TIMEOUT, |channel| {
            let request = request.clone();
            async move { AdminClient::new(channel).start_scrub(request).await }
        })
        .await
    }

    pub(crate) async fn may_i(&self, request: MayIRequest) -> Result<MayIResponse, Fault> {
        self.ask(STATUS_TIMEOUT, |channel| async move { AdminClient::new(channel).may_i(request).await })
            .await
    }

    /// Asks one address after the other until one answers or refuses for good.
    async fn ask<T, F, Fut>(&self, limit: Duration, call: F) -> Result<T, Fault>
    where
        F: Fn(Channel) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        let mut last =
            Fault::new(FaultKind::FaultUnavailable, "no meta node is known: name one in node.seeds");
        for address in self.addresses() {
            let channel = match self.channel(&address) {
                Ok(channel) => channel,
                Err(fault) => {
                    last = fault;
                    continue;
                }
            };
            let fault = match tokio::time::timeout(limit, call(channel)).await {
                Ok(Ok(response)) => {
                    self.state.lock().good = Some(address);
                    return Ok(response.into_inner());
                }
                Ok(Err(status)) => Fault::from_status(&status),
                Err(_) => Fault::new(FaultKind::FaultUnavailable, format!("no answer in {limit:?}")),
            };
            let mut state = self.state.lock();
            if state.good.as_deref() == Some(address.as_str()) {
                state.good = None;
            }
            drop(state);
            last = Fault { message: format!("{address}: {}", fault.message), ..fault };
            if !last.is_retryable() {
                break;
            }
        }
        Err(last)
    }

    fn channel(&self, address: &str) -> Result<Channel, Fault> {
        let mut state = self.state.lock();
        if let Some(channel) = state.channels.get(address) {
            return Ok(channel.clone());
        }
        let channel = connect_lazy(address)?;
        state.channels.insert(address.to_owned(), channel.clone());
        Ok(channel)
    }
}

/// A connection that is made when it is first used.
pub(crate) fn connect_lazy(address: &str) -> Result<Channel, Fault> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|error| Fault::new(FaultKind::Invalid, format!("{address:?} is not host:port: {error}")))?;
    Ok(endpoint
        .tcp_nodelay(true)
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .initial_stream_window_size(H2_WINDOW_BYTES)
        .initial_connection_window_size(H2_WINDOW_BYTES)
        .connect_lazy())
}

/// A request marked as sent on.
pub(crate) fn forwarded<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(FORWARDED, tonic::metadata::MetadataValue::from_static("1"));
    request
}

/// gRPC addresses of the meta nodes of a map.
pub(crate) fn meta_addresses(map: &ClusterMap) -> Vec<String> {
    map.nodes
        .iter()
        .filter(|node| node.state() != NodeState::NodeRemoved && is_meta(node))
        .map(|node| node.addr.clone())
        .collect()
}

/// Whether a node of the map holds groups.
pub(crate) fn is_meta(node: &holdfast_proto::meta::Node) -> bool {
    node.roles.iter().any(|role| role == "meta")
}
