//! A zone of one node in this process, for the tests of workers: real groups, real targets, real sockets.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use holdfast_client::{ClientConfig, Cluster};
use holdfast_proto::id::{AccountId, BucketId, GroupId, NodeId, RealmId, TargetId, WriteId, ZoneId};
use holdfast_proto::meta::meta_server::MetaServer;
use holdfast_proto::meta::{
    Answer, Body, Bucket, BucketState, Command, CreateBucket, DeleteObject, Extent, GarbageKey, MissedShard,
    Node, Outcome, PlacementGroup, PutBucketRow, PutObject, PutPlacement, PutTarget, Query, Refusal,
    SetTargetStates, StorageClass, Target as TargetRow, TargetState, TargetStateChange, Version, command,
    query,
};
use holdfast_proto::v1::{Codec, Scheme};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::config::{MetaConfig, Span};
use crate::data::{ShardService, Target, TargetConfig};
use crate::env::Env;
use crate::formation::found::found;
use crate::meta::{AddressBook, Groups, GroupsConfig};
use crate::node::contact::Contact;
use crate::node::directory::{Founding, Identity, Secret};
use crate::node::map_feed::MapFeed;
use crate::service::meta::MetaService;
use crate::service::zone_head::ZoneHead;
use crate::supervisor::{Progress, Supervisor};

pub(crate) const DEADLINE: Duration = Duration::from_secs(60);
pub(crate) const ZONE: ZoneId = ZoneId::new(1);
const REALM: RealmId = RealmId::from_bytes([7; 16]);
const PARTITIONS: u32 = 2;

pub(crate) struct SmallZone {
    pub(crate) head: Arc<ZoneHead>,
    pub(crate) targets: Vec<Arc<Target>>,
    pub(crate) shards: ShardService,
    cancel: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
    _dir: TempDir,
}

pub(crate) const fn copies(count: u32) -> Scheme {
    Scheme { codec: Codec::Copies as i32, data: 1, parity: count - 1 }
}

pub(crate) fn bucket() -> Bucket {
    Bucket {
        id: BucketId::from_bytes([0xb0; 16]).to_wire(),
        name: "photos".into(),
        owner: AccountId::from_bytes([0xac; 16]).to_wire(),
        state: BucketState::BucketActive.into(),
        generation: 1,
        slots: 1,
        ..Bucket::default()
    }
}

/// A body of one stripe in `pg`, whose shards nobody has written.
pub(crate) fn body(write: u8, pg: u32, scheme: Option<Scheme>) -> Body {
    let (write, length) = (WriteId::from_bytes([write; 16]).to_wire(), 5000);
    let extent = Extent { write: write.clone(), pg, scheme, stripes: 1, length, ..Extent::default() };
    Body { write, length, inline: None, extents: vec![extent] }
}

pub(crate) async fn eventually(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let polled = async {
        while !done().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(tokio::time::timeout(DEADLINE, polled).await.is_ok(), "{what}: not in time");
}

/// How a worker under test tells what it does, and where that is read.
pub(crate) async fn progress() -> (Progress, Supervisor) {
    let supervisor = Supervisor::new(CancellationToken::new());
    let (send, mut receive) = tokio::sync::mpsc::unbounded_channel();
    supervisor.worker("tested", move |progress| {
        send.send(progress).unwrap();
        std::future::pending()
    });
    (receive.recv().await.unwrap(), supervisor)
}

impl SmallZone {
    /// One meta node, `targets` targets (from id 1) and these placement groups (from id 1), all of `scheme`.
    pub(crate) async fn start(targets: u32, scheme: Scheme, pgs: &[&[u32]]) -> Self {
        Self::without(&[], targets, scheme, pgs).await
    }

    /// A zone some of whose targets are not served until they are added to `shards`.
    pub(crate) async fn without(unserved: &[u32], targets: u32, scheme: Scheme, pgs: &[&[u32]]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let cancel = CancellationToken::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let me = NodeId::in_zone(ZONE, 1).unwrap();
        let founding = Founding {
            root_account: AccountId::from_bytes([0xac; 16]),
            root_access_key: "ROOT".into(),
            root_sealed_secret: Secret::new(vec![1]),
            created_ms: 1,
            meta: vec![],
            done: false,
            of_old_data: false,
        };
        let identity = Identity {
            version: Identity::VERSION,
            realm: REALM,
            zone: ZONE.get(),
            zone_name: "north".into(),
            node: me,
            incarnation: 1,
            realm_key: Secret::new(vec![2; 32]),
            join_token: Secret::new(b"token".to_vec()),
            targets: Default::default(),
            founding: None,
            meta_opened: false,
        };
        let addresses = Arc::new(AddressBook::new());
        addresses.set(me, addr.clone());
        let mut config = GroupsConfig::new(dir.path().join("meta"), me, 1, REALM, ZONE);
        config.heartbeat = Duration::from_millis(100);
        config.election = (Duration::from_millis(300), Duration::from_millis(600));
        let groups = Groups::open(config, Env::real(), addresses.clone(), cancel.clone()).await.unwrap();
        let node = Node {
            id: me.get(),
            addr: addr.clone(),
            roles: vec!["meta".into(), "data".into()],
            host: "h1".into(),
            incarnation: 1,
            ..Node::default()
        };
        found(&groups, &identity, &founding, node, PARTITIONS, holdfast_machine::FEATURE_LEVEL)
            .await
            .unwrap();
        let feed = MapFeed::new(None);
        let config = MetaConfig { garbage_grace: Span::secs(0), ..MetaConfig::default() };
        let head = Arc::new(ZoneHead::new(groups.clone(), identity, config, feed.clone(), Env::real()));
        let (zone_group, stop) = (head.zone_group(), cancel.clone());
        let contact = Arc::new(Contact::new(vec![addr]));
        let (followed, following) = (feed.clone(), groups.clone());
        let mut tasks = vec![tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                followed = followed.follow(following, zone_group, addresses, contact) => followed.unwrap(),
            }
        })];
        let shards = ShardService::new();
        let served = tonic::transport::Server::builder()
            .add_service(shards.clone().into_server())
            .add_service(MetaServer::new(MetaService { head: head.clone(), cancel: cancel.clone() }))
            .serve_with_incoming_shutdown(
                tokio_stream::wrappers::TcpListenerStream::new(listener),
                cancel.clone().cancelled_owned(),
            );
        tasks.push(tokio::spawn(async move { served.await.unwrap() }));
        let mut zone = Self { head, targets: vec![], shards, cancel, tasks, _dir: dir };
        for number in 1..=targets {
            zone.add_target(number, !unserved.contains(&number)).await;
        }
        zone.place(scheme, pgs).await;
        let creating = Bucket { state: BucketState::BucketCreating.into(), ..bucket() };
        let op = command::Op::CreateBucket(CreateBucket { bucket: Some(creating) });
        zone.done(GroupId::REALM, op).await;
        for number in 0..PARTITIONS {
            let op = command::Op::PutBucketRow(PutBucketRow { bucket: Some(bucket()) });
            zone.done(GroupId::partition(ZONE, number), op).await;
        }
        zone
    }

    async fn add_target(&mut self, number: u32, served: bool) {
        let config = TargetConfig {
            segment_bytes: 4 << 20,
            ..TargetConfig::new(self._dir.path().join(format!("t{number}")), REALM)
        };
        let target = Target::open(config, Env::real(), self.cancel.clone()).await.unwrap();
        let row = TargetRow {
            node: self.head.me().get(),
            uuid: Bytes::copy_from_slice(&target.uuid()),
            media: "default".into(),
            capacity_bytes: 1 << 40,
            state: TargetState::TargetUp.into(),
            ..TargetRow::default()
        };
        self.done(self.head.zone_group(), command::Op::PutTarget(PutTarget { target: Some(row) })).await;
        if served {
            self.shards.add(TargetId::new(number), target.clone());
        }
        self.targets.push(target);
    }

    async fn place(&self, scheme: Scheme, pgs: &[&[u32]]) {
        let class = StorageClass {
            name: holdfast_client::CLASS_DEFAULT.into(),
            scheme: Some(scheme),
            small: Some(scheme),
            media: "default".into(),
        };
        let pgs = (1..).zip(pgs).map(|(id, targets)| PlacementGroup {
            id,
            epoch: 1,
            targets: targets.to_vec(),
            class: class.name.clone(),
            moving: Vec::new(),
        });
        let op = PutPlacement {
            expected_generation: self.head.read_map().await.unwrap().generation,
            pgs: pgs.collect(),
            classes: vec![class.clone()],
        };
        self.done(self.head.zone_group(), command::Op::PutPlacement(op)).await;
        eventually("the map is known", async || {
            self.head.feed.current().is_some_and(|map| !map.pgs.is_empty())
        })
        .await;
    }

    /// Changes one placement group, and waits until the map says so.
    pub(crate) async fn move_pg(&self, id: u32, change: impl FnOnce(&mut PlacementGroup)) {
        let map = self.head.read_map().await.unwrap();
        let mut pgs = map.pgs.clone();
        let pg = pgs.iter_mut().find(|pg| pg.id == id).unwrap();
        change(pg);
        pg.epoch += 1;
        let op = PutPlacement { expected_generation: map.generation, pgs, classes: vec![] };
        self.done(self.head.zone_group(), command::Op::PutPlacement(op)).await;
        eventually("the map is known", async || {
            self.head.feed.current().is_some_and(|known| known.generation > map.generation)
        })
        .await;
    }

    /// A client of the zone.
    pub(crate) async fn cluster(&self) -> Cluster {
        let addr = self.head.feed.current().unwrap().nodes[0].addr.clone();
        Cluster::connect(ClientConfig::new(vec![addr]), self.cancel.clone()).await.unwrap()
    }

    /// Commits what must succeed.
    pub(crate) async fn done(&self, group: GroupId, op: command::Op) -> Outcome {
        let command = Command {
            request: self.head.request_id(),
            first_attempt_hlc: self.head.groups.hlc().get(),
            op: Some(op),
            ..Command::default()
        };
        let outcome = self.head.groups.propose(group, vec![command]).await.unwrap().remove(0);
        assert_eq!(outcome.refusal(), Refusal::None, "{}", outcome.detail);
        outcome
    }

    pub(crate) async fn ask(&self, group: GroupId, of: query::Of) -> Answer {
        self.head.groups.read(group, vec![Query { of: Some(of) }]).await.unwrap().remove(0)
    }

    pub(crate) async fn put(&self, group: GroupId, key: &str, body: Body, missed: Vec<MissedShard>) {
        let version = Version {
            size: body.length,
            etag: "e".into(),
            body: Some(body),
            begin_hlc: self.head.groups.hlc().get(),
            ..Version::default()
        };
        let op = PutObject {
            bucket: bucket().id,
            key: Bytes::copy_from_slice(key.as_bytes()),
            version: Some(version),
            conditions: None,
            missed,
        };
        self.done(group, command::Op::PutObject(op)).await;
    }

    pub(crate) async fn delete(&self, group: GroupId, key: &str) {
        let op = DeleteObject {
            bucket: bucket().id,
            key: Bytes::copy_from_slice(key.as_bytes()),
            ..DeleteObject::default()
        };
        self.done(group, command::Op::DeleteObject(op)).await;
    }

    /// Garbage of a partition that is due now.
    pub(crate) async fn garbage(&self, group: GroupId) -> Vec<GarbageKey> {
        let due_before = self.head.groups.hlc().get();
        let of = holdfast_proto::meta::DueGarbage { due_before, limit: 1000, ..Default::default() };
        match self.ask(group, query::Of::DueGarbage(of)).await.ok {
            Some(holdfast_proto::meta::answer::Ok::Garbage(page)) => page.keys,
            other => panic!("{other:?}"),
        }
    }

    /// Tells the zone that a target is up or down, and waits until its map says so.
    pub(crate) async fn set_state(&self, target: u32, state: TargetState) {
        let changes = vec![TargetStateChange { target, state: state.into(), why: String::new() }];
        self.done(self.head.zone_group(), command::Op::SetTargetStates(SetTargetStates { changes })).await;
        eventually("the map says it", async || {
            let map = self.head.feed.current().unwrap();
            map.targets.iter().any(|row| row.id == target && row.state() == state)
        })
        .await;
    }

    pub(crate) async fn stop(self) {
        self.head.groups.shutdown().await;
        self.cancel.cancel();
        for task in self.tasks {
            task.await.unwrap();
        }
        for target in &self.targets {
            target.shutdown().await;
        }
    }
}
