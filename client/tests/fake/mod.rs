//! A zone of fakes on loopback: meta nodes that answer from a script, targets that keep shards in memory, and faults.
#![allow(dead_code, unreachable_pub, reason = "each test file uses a part")]

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use holdfast_client::bulk::BulkShards;
use holdfast_client::{BodySource, ClientConfig, Cluster, PutError, StoredBody, WriteIntent};
use holdfast_proto::data::shards_server::{Shards, ShardsServer};
use holdfast_proto::data::{
    DeleteShards, DeleteShardsDone, GetShard, ListShards, ListShardsDone, PutShard, PutShardDone,
    ScrubTarget, ScrubTargetDone, ShardBlocks, StatShards, StatShardsDone,
};
use holdfast_proto::error::Fault;
use holdfast_proto::id::{BucketId, GroupId, RealmId, ShardId, ZoneId};
use holdfast_proto::limits::{BLOCK_BYTES, MESSAGE_BYTES_MAX, SLOT_TABLE_LEN};
use holdfast_proto::meta::meta_server::{Meta, MetaServer};
use holdfast_proto::meta::{
    Answer, ClusterMap, Command, Group, GroupLeader, Node, NodeState, ObjectHeaders, Outcome, PlacementGroup,
    ProposeRequest, ProposeResponse, Query, ReadRequest, ReadResponse, Refusal, StorageClass, Target,
    TargetState, WatchEvent, WatchRequest, query,
};
use holdfast_proto::v1::{Codec, FaultKind, Scheme};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

pub(crate) const ZONE: u16 = 1;
pub(crate) const REALM: [u8; 16] = [9; 16];

/// What a target does wrong.
#[derive(Debug, Default, Clone)]
pub(crate) struct Faults {
    pub put_delay: Duration,
    pub get_delay: Duration,
    pub put_fault: Option<FaultKind>,
    pub get_fault: Option<FaultKind>,
    /// Every byte that is read is wrong at this offset of the shard.
    pub flip_at: Option<u32>,
}

#[derive(Debug, Default)]
pub(crate) struct FakeTarget {
    pub shards: Mutex<BTreeMap<Vec<u8>, PutShard>>,
    pub faults: Mutex<Faults>,
    /// This many puts are refused, at once.
    pub refuse_puts: AtomicUsize,
    /// Shards that were stored, again or for the first time.
    pub puts: AtomicUsize,
    pub gets: AtomicUsize,
    pub bytes_sent: AtomicU64,
}

struct Served(Arc<FakeTarget>);

/// Counts down; `false` at zero.
fn take_one(left: &AtomicUsize) -> bool {
    left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
}

#[tonic::async_trait]
impl Shards for Served {
    async fn put(&self, request: Request<PutShard>) -> Result<Response<PutShardDone>, Status> {
        let put = request.into_inner();
        if take_one(&self.0.refuse_puts) {
            return Err(Fault::new(FaultKind::FaultUnavailable, "as the test wants").into_status());
        }
        let faults = self.0.faults.lock().clone();
        tokio::time::sleep(faults.put_delay).await;
        if let Some(kind) = faults.put_fault {
            return Err(Fault::new(kind, "as the test wants").into_status());
        }
        let id = put.meta.as_ref().expect("a header").shard.to_vec();
        self.0.shards.lock().insert(id, put);
        self.0.puts.fetch_add(1, Ordering::SeqCst);
        Ok(Response::new(PutShardDone {}))
    }

    async fn get(&self, request: Request<GetShard>) -> Result<Response<ShardBlocks>, Status> {
        let get = request.into_inner();
        self.0.gets.fetch_add(1, Ordering::Relaxed);
        let faults = self.0.faults.lock().clone();
        tokio::time::sleep(faults.get_delay).await;
        if let Some(kind) = faults.get_fault {
            return Err(Fault::new(kind, "as the test wants").into_status());
        }
        let Some(put) = self.0.shards.lock().get(get.shard.as_ref()).cloned() else {
            return Err(Fault::new(FaultKind::ShardAbsent, "not here").into_status());
        };
        assert_eq!(get.offset as usize % BLOCK_BYTES, 0, "whole blocks are asked for");
        let end = if get.length == 0 { put.data.len() } else { (get.offset + get.length) as usize };
        let mut data = put.data.slice(get.offset as usize..end.min(put.data.len()));
        if let Some(at) = faults.flip_at.filter(|at| (get.offset..end as u32).contains(at)) {
            let mut bytes = data.to_vec();
            if let Some(byte) = bytes.get_mut((at - get.offset) as usize) {
                *byte ^= 0x55;
            }
            data = bytes.into();
        }
        self.0.bytes_sent.fetch_add(data.len() as u64, Ordering::Relaxed);
        Ok(Response::new(ShardBlocks { meta: put.meta, offset: get.offset, data }))
    }

    async fn delete(&self, request: Request<DeleteShards>) -> Result<Response<DeleteShardsDone>, Status> {
        let mut shards = self.0.shards.lock();
        for id in request.into_inner().shards {
            shards.remove(id.as_ref());
        }
        Ok(Response::new(DeleteShardsDone {}))
    }

    async fn stat(&self, request: Request<StatShards>) -> Result<Response<StatShardsDone>, Status> {
        let shards = self.0.shards.lock();
        let present = request.into_inner().shards.iter().map(|id| shards.contains_key(id.as_ref())).collect();
        Ok(Response::new(StatShardsDone { present }))
    }

    async fn scrub(&self, _: Request<ScrubTarget>) -> Result<Response<ScrubTargetDone>, Status> {
        Ok(Response::new(ScrubTargetDone {}))
    }
    async fn list(&self, _: Request<ListShards>) -> Result<Response<ListShardsDone>, Status> {
        Ok(Response::new(ListShardsDone::default()))
    }
}

/// What a meta node answers to queries.
pub type Asked = Box<dyn Fn(GroupId, &Query) -> Answer + Send + Sync>;

/// What a meta node answers to commands.
pub(crate) type Script = Box<dyn Fn(GroupId, &Command) -> Result<Outcome, Fault> + Send + Sync>;

#[derive(Default)]
pub(crate) struct FakeMeta {
    pub map: Mutex<ClusterMap>,
    /// Who leads every group, as all fakes believe.
    pub leader: AtomicU64,
    /// What watchers are told, when that is something else.
    pub told_leader: AtomicU64,
    pub commands: Mutex<Vec<Command>>,
    pub proposals: AtomicUsize,
    pub reads: AtomicUsize,
    pub propose_delay: Mutex<Duration>,
    pub outcome: Mutex<Option<Script>>,
    /// This many proposals are done and then not answered.
    pub drop_answers: AtomicUsize,
    pub answers: Mutex<HashMap<String, Answer>>,
    /// Answers every query, when set.
    pub asked: Mutex<Option<Asked>>,
    pub realm_applied: AtomicU64,
    /// What each group has applied, where it is not [`GROUP_HLC`].
    pub group_hlcs: Mutex<HashMap<GroupId, u64>>,
    /// How far the clock of the nodes is ahead of [`NODE_HLC`].
    pub ahead: AtomicU64,
}

/// The clock of every node, and what groups have applied.
pub(crate) const NODE_HLC: u64 = 1_000_000 << 16;
pub(crate) const GROUP_HLC: u64 = 900_000 << 16;

impl FakeMeta {
    pub(crate) fn group_hlc(&self, group: GroupId) -> u64 {
        self.group_hlcs.lock().get(&group).copied().unwrap_or(GROUP_HLC)
    }

    fn node_hlc(&self) -> u64 {
        NODE_HLC + self.ahead.load(Ordering::SeqCst)
    }
}

struct MetaNode(Arc<FakeMeta>, u64);

impl MetaNode {
    fn check_leader(&self) -> Result<(), Status> {
        let leader = self.0.leader.load(Ordering::SeqCst);
        if leader == self.1 { Ok(()) } else { Err(Fault::not_leader(leader).into_status()) }
    }
}

#[tonic::async_trait]
impl Meta for MetaNode {
    async fn propose(&self, request: Request<ProposeRequest>) -> Result<Response<ProposeResponse>, Status> {
        self.check_leader()?;
        let delay = *self.0.propose_delay.lock();
        tokio::time::sleep(delay).await;
        let request = request.into_inner();
        let group = GroupId::from_u64(request.group).expect("a group");
        self.0.proposals.fetch_add(1, Ordering::SeqCst);
        self.0.commands.lock().extend(request.commands.iter().cloned());
        if take_one(&self.0.drop_answers) {
            return Err(Status::unavailable("the answer was lost"));
        }
        let script = self.0.outcome.lock();
        let outcomes = request.commands.iter().map(|command| match &*script {
            Some(script) => script(group, command),
            None => Ok(Outcome::default()),
        });
        let outcomes = outcomes.collect::<Result<_, _>>().map_err(Fault::into_status)?;
        Ok(Response::new(ProposeResponse { outcomes, hlc: self.0.node_hlc() }))
    }

    async fn read(&self, request: Request<ReadRequest>) -> Result<Response<ReadResponse>, Status> {
        self.check_leader()?;
        self.0.reads.fetch_add(1, Ordering::SeqCst);
        let ReadRequest { group, queries } = request.into_inner();
        let group = GroupId::from_u64(group).expect("a group");
        let hlc = self.0.group_hlc(group);
        let asked = self.0.asked.lock();
        let scripted = self.0.answers.lock();
        let answers = queries.iter().map(|query| {
            // How a client asks for the time alone.
            if matches!(&query.of, Some(query::Of::GetBucketRow(get)) if get.bucket.as_ref() == [0; 16]) {
                return Answer { refusal: Refusal::NoSuchBucket.into(), hlc, ..Default::default() };
            }
            let name = format!("{:?}", query.of.as_ref().map(std::mem::discriminant));
            let answer = match &*asked {
                Some(asked) => asked(group, query),
                None => scripted.get(&name).cloned().unwrap_or_default(),
            };
            Answer { hlc, ..answer }
        });
        Ok(Response::new(ReadResponse { answers: answers.collect() }))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<WatchEvent, Status>> + Send>>;

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let have = request.into_inner().have_generation;
        let meta = self.0.clone();
        let events = futures::stream::unfold(have, move |have| {
            let meta = meta.clone();
            async move {
                if have != 0 {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                let map = meta.map.lock().clone();
                let leader = match meta.told_leader.load(Ordering::SeqCst) {
                    0 => meta.leader.load(Ordering::SeqCst),
                    told => told,
                };
                let leaders =
                    map.groups.iter().map(|group| GroupLeader { group: group.id, leader }).collect();
                let generation = map.generation;
                let event = WatchEvent {
                    generation,
                    map: (generation > have).then_some(map),
                    hlc: meta.node_hlc(),
                    realm_applied: meta.realm_applied.load(Ordering::SeqCst),
                    leaders,
                    free: vec![],
                };
                Some((Ok(event), generation))
            }
        });
        Ok(Response::new(Box::pin(events)))
    }
}

/// A running fake server; it stops when dropped.
pub(crate) struct Running {
    pub addr: SocketAddr,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Running {
    /// Closes its port.
    pub(crate) async fn kill(&mut self) {
        self.stop.cancel();
        self.task.abort();
        let _ = (&mut self.task).await;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn serve(router: tonic::transport::server::Router, incoming: TcpIncoming) -> Running {
    let stop = CancellationToken::new();
    let addr = incoming.local_addr().expect("a bound socket");
    let stopped = stop.clone();
    let task = tokio::spawn(async move {
        let serving = router.serve_with_incoming(incoming);
        tokio::select! {
            () = stopped.cancelled() => {}
            done = serving => done.expect("a fake serves until it is stopped"),
        }
    });
    Running { addr, stop, task }
}

fn incoming() -> TcpIncoming {
    TcpIncoming::bind(([127, 0, 0, 1], 0).into()).expect("a free port").with_nodelay(Some(true))
}

/// A zone with its client.
pub(crate) struct FakeZone {
    pub meta: Arc<FakeMeta>,
    pub targets: Vec<Arc<FakeTarget>>,
    pub meta_nodes: Vec<Running>,
    pub data_nodes: Vec<Running>,
    pub cluster: Cluster,
}

pub(crate) fn rs(data: u32, parity: u32) -> Scheme {
    Scheme { codec: Codec::RsGf8.into(), data, parity }
}

pub(crate) fn copies(number: u32) -> Scheme {
    Scheme { codec: Codec::Copies.into(), data: 1, parity: number - 1 }
}

impl FakeZone {
    /// A zone of `targets` targets on as many nodes, every group of `width` of them in turn, and three meta nodes.
    pub(crate) async fn start(targets: u32, width: u32, scheme: Scheme, small: Scheme) -> Self {
        Self::start_with(targets, width, scheme, small, |_| {}).await
    }

    pub(crate) async fn start_with(
        targets: u32,
        width: u32,
        scheme: Scheme,
        small: Scheme,
        configure: impl FnOnce(&mut ClientConfig),
    ) -> Self {
        Self::start_shaped(targets, width, scheme, small, |_| {}, configure).await
    }

    /// A zone whose map is changed by `shape` before anyone sees it.
    pub(crate) async fn start_shaped(
        targets: u32,
        width: u32,
        scheme: Scheme,
        small: Scheme,
        shape: impl FnOnce(&mut ClusterMap),
        configure: impl FnOnce(&mut ClientConfig),
    ) -> Self {
        let meta = Arc::new(FakeMeta::default());
        let mut map = ClusterMap {
            realm: RealmId::from_bytes(REALM).to_wire(),
            zone: ZONE.into(),
            generation: 1,
            slot_table: (0..SLOT_TABLE_LEN as u32).map(|entry| entry % 2).collect(),
            classes: vec![StorageClass {
                name: "STANDARD".into(),
                scheme: Some(scheme),
                small: Some(small),
                media: "default".into(),
            }],
            ..Default::default()
        };
        let mut fakes = Vec::new();
        let mut data_nodes = Vec::new();
        for number in 0..targets {
            let fake = Arc::new(FakeTarget::default());
            // Half of them as tonic serves: the wire is the same.
            let mut server = Server::builder();
            let router = if number % 2 == 0 {
                server.add_service(BulkShards::new(Served(fake.clone())))
            } else {
                let service = ShardsServer::new(Served(fake.clone()));
                server.add_service(service.max_decoding_message_size(MESSAGE_BYTES_MAX))
            };
            let running = serve(router, incoming());
            map.nodes.push(node(100 + u64::from(number), running.addr, "data"));
            map.targets.push(Target {
                id: number,
                node: 100 + u64::from(number),
                capacity_bytes: 1 << 40,
                state: TargetState::TargetUp.into(),
                ..Default::default()
            });
            fakes.push(fake);
            data_nodes.push(running);
        }
        for pg in 0..targets {
            map.pgs.push(PlacementGroup {
                id: pg,
                epoch: 1,
                targets: (0..width).map(|at| (pg + at) % targets).collect(),
                class: "STANDARD".into(),
                moving: Vec::new(),
            });
        }
        let mut meta_nodes = Vec::new();
        for id in 1..=3 {
            let service = MetaServer::new(MetaNode(meta.clone(), id));
            let running = serve(Server::builder().add_service(service), incoming());
            map.nodes.push(node(id, running.addr, "meta"));
            meta_nodes.push(running);
        }
        let zone = ZoneId::new(ZONE);
        let groups = [
            GroupId::REALM,
            GroupId::zone_group(zone),
            GroupId::partition(zone, 0),
            GroupId::partition(zone, 1),
        ];
        map.groups = groups
            .iter()
            .map(|id| Group { id: id.get(), voters: vec![1, 2, 3], ..Default::default() })
            .collect();
        meta.leader.store(1, Ordering::SeqCst);
        shape(&mut map);
        *meta.map.lock() = map;
        let mut config = ClientConfig::new(meta_nodes.iter().map(|node| node.addr.to_string()).collect());
        configure(&mut config);
        let cluster = Cluster::connect(config, CancellationToken::new()).await.expect("the zone is up");
        Self { meta, targets: fakes, meta_nodes, data_nodes, cluster }
    }

    /// Another client of the zone.
    pub(crate) async fn connect(&self) -> Cluster {
        let seeds = self.meta_nodes.iter().map(|node| node.addr.to_string()).collect();
        Cluster::connect(ClientConfig::new(seeds), CancellationToken::new()).await.expect("the zone is up")
    }

    pub(crate) fn faults(&self, target: usize, change: impl FnOnce(&mut Faults)) {
        change(&mut self.targets[target].faults.lock());
    }

    /// Shards over all targets.
    pub(crate) fn shards(&self) -> usize {
        self.targets.iter().map(|target| target.shards.lock().len()).sum()
    }

    /// (stripe, index) of every shard of the only write, sorted.
    pub(crate) fn stored(&self) -> Vec<(u32, u32)> {
        let mut stored = Vec::new();
        for target in &self.targets {
            for id in target.shards.lock().keys() {
                let id = ShardId::from_slice(id).expect("a shard id");
                stored.push((id.stripe, u32::from(id.index)));
            }
        }
        stored.sort_unstable();
        stored
    }

    /// (stripe, index, target) of every shard, sorted.
    pub(crate) fn placed(&self) -> Vec<(u32, u32, usize)> {
        let mut placed = Vec::new();
        for (number, target) in self.targets.iter().enumerate() {
            for id in target.shards.lock().keys() {
                let id = ShardId::from_slice(id).expect("a shard id");
                placed.push((id.stripe, u32::from(id.index), number));
            }
        }
        placed.sort_unstable();
        placed
    }

    /// Closes a target's port. Connections that are open live on in this process: they fail every call.
    pub(crate) async fn kill_target(&mut self, target: usize) {
        self.faults(target, |faults| {
            faults.put_fault = Some(FaultKind::FaultUnavailable);
            faults.get_fault = Some(FaultKind::FaultUnavailable);
        });
        self.data_nodes[target].kill().await;
    }
}

fn node(id: u64, addr: SocketAddr, role: &str) -> Node {
    Node {
        id,
        addr: addr.to_string(),
        roles: vec![role.into()],
        host: format!("host-{id}"),
        state: NodeState::NodeActive.into(),
        ..Default::default()
    }
}

/// A body that comes in chunks, and may fail before its end.
pub(crate) struct Chunks {
    pub chunks: std::collections::VecDeque<Bytes>,
    pub fail: bool,
}

impl Chunks {
    pub(crate) fn of(body: &Bytes, each: usize) -> Self {
        let chunks =
            (0..body.len()).step_by(each).map(|at| body.slice(at..body.len().min(at + each))).collect();
        Self { chunks, fail: false }
    }
}

impl BodySource for Chunks {
    type Error = String;

    async fn next(&mut self) -> Option<Result<Bytes, String>> {
        match self.chunks.pop_front() {
            Some(chunk) => Some(Ok(chunk)),
            None if std::mem::take(&mut self.fail) => Some(Err("bad digest".into())),
            None => None,
        }
    }

    fn md5(&mut self) -> Option<[u8; 16]> {
        Some([5; 16])
    }
}

/// Bytes without a pattern that a shifted or swapped shard would repeat.
pub(crate) fn body(length: usize) -> Bytes {
    let mut state = 0x1234_5678_9abc_def0u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes.into()
}

pub(crate) fn intent(length: usize) -> WriteIntent {
    WriteIntent {
        bucket: BucketId::from_bytes([1; 16]),
        key: Bytes::from_static(b"photos/cat.jpg"),
        upload: None,
        length: length as u64,
        storage_class: String::new(),
        headers: Some(ObjectHeaders { content_type: "image/jpeg".into(), ..Default::default() }),
    }
}

/// Stores a body as a gateway would.
pub(crate) async fn put(zone: &FakeZone, bytes: &Bytes) -> Result<StoredBody, PutError<String>> {
    zone.cluster.put_body(intent(bytes.len()), &mut Chunks::of(bytes, 100_000)).await
}

/// Polls until `condition` holds; fails after ten seconds.
pub(crate) async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(std::time::Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
