use super::*;
use crate::supervisor::Supervisor;
use crate::worker::small_zone::{DEADLINE, SmallZone, ZONE, bucket, copies, eventually, progress};
use futures::StreamExt;
use holdfast_client::{StoredBody, WriteIntent};
use holdfast_proto::hlc::Hlc;
use holdfast_proto::id::{BucketId, GroupId, TargetId};
use holdfast_proto::meta::{Body, Command, MovingPlace, PutObject, RenewWrite, Version};
use holdfast_proto::v1::{Codec, Scheme};

const GROUP: GroupId = GroupId::partition(ZONE, 0);
const CODED: Scheme = Scheme { codec: Codec::RsGf8 as i32, data: 2, parity: 1 };

/// A zone of four targets with one placement group over the first three, a client, and a repairer.
struct Tested {
    zone: SmallZone,
    cluster: Cluster,
    repair: Repair,
    progress: Progress,
    supervisor: Supervisor,
}

impl Tested {
    async fn start(scheme: Scheme) -> Self {
        let zone = SmallZone::start(4, scheme, &[&[1, 2, 3]]).await;
        let cluster = zone.cluster().await;
        let (progress, supervisor) = progress().await;
        Self { repair: Repair::new(zone.head.clone(), cluster.clone()), zone, cluster, progress, supervisor }
    }

    async fn pass(&mut self) -> Pass {
        let map = self.zone.head.feed.current().unwrap();
        let pass = self.repair.pass(&map, &self.progress);
        tokio::time::timeout(DEADLINE, pass).await.expect("a pass ends").unwrap()
    }

    async fn store(&self, length: usize) -> Body {
        let intent = WriteIntent {
            bucket: BucketId::from_wire(&bucket().id).unwrap(),
            key: "k".into(),
            upload: None,
            length: length as u64,
            storage_class: String::new(),
            headers: None,
        };
        let StoredBody { body, missed, .. } =
            self.cluster.put_body(intent, &mut Some(bytes_of(length))).await.unwrap();
        assert!(missed.is_empty(), "{missed:?}");
        body
    }

    /// Owned by an object each, of one stripe and of several.
    async fn store_owned(&self) -> Vec<Body> {
        let mut bodies = Vec::new();
        for length in [5000, 70_000, 1 << 20, 5 << 20, (4 << 20) + 1] {
            let body = self.store(length).await;
            self.zone.put(GROUP, &format!("k{length}"), body.clone(), vec![]).await;
            bodies.push(body);
        }
        bodies
    }

    /// All shards that a target has.
    async fn held(&self, target: u32) -> u64 {
        let mut inventory = Inventory::over([target]);
        let map = self.zone.head.feed.current().unwrap();
        let (mut reach, mut count) = (Reach::default(), 0);
        while let Some(stripe) = inventory.next(&mut reach, &map).await {
            count += stripe.shards.len() as u64;
        }
        assert!(inventory.broken.is_empty());
        count
    }

    async fn reads_back(&self, bodies: &[Body]) {
        for body in bodies {
            let mut reader = self.cluster.read_body(body, 0..body.length);
            let mut all = Vec::new();
            while let Some(chunk) = reader.next().await {
                all.extend_from_slice(&chunk.unwrap());
            }
            assert!(all == bytes_of(body.length as usize), "a body of {} bytes", body.length);
        }
    }

    /// Waits until clients know the newest map.
    async fn known(&self) {
        let generation = self.zone.head.feed.current().unwrap().generation;
        eventually("the client has the map", async || self.cluster.map().generation() >= generation).await;
    }

    async fn replace(&self, place: u32, old: u32, new: u32) {
        self.zone
            .move_pg(1, |pg| {
                pg.targets[place as usize] = new;
                pg.moving = vec![MovingPlace { place, from: vec![old] }];
            })
            .await;
        self.known().await;
    }

    fn moving(&self) -> usize {
        self.zone.head.feed.current().unwrap().pgs.iter().map(|pg| pg.moving.len()).sum()
    }

    async fn settled(&self) {
        eventually("nothing moves", async || self.moving() == 0).await;
        self.known().await;
    }

    async fn stop(self) {
        self.cluster.shutdown().await;
        self.supervisor.shutdown(DEADLINE).await;
        self.zone.stop().await;
    }
}

fn bytes_of(length: usize) -> Bytes {
    (0..length).map(|at| (at * 31 % 251) as u8).collect::<Vec<_>>().into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_target_is_rebuilt_on_another() {
    for scheme in [CODED, copies(3)] {
        let mut tested = Tested::start(scheme).await;
        let bodies = tested.store_owned().await;
        let whole = tested.held(1).await;
        assert_eq!((tested.held(3).await, tested.held(4).await), (whole, 0));

        tested.zone.shards.remove(TargetId::new(3));
        tested.zone.set_state(3, TargetState::TargetOut).await;
        tested.replace(2, 3, 4).await;
        tested.reads_back(&bodies).await;

        let pass = tested.pass().await;
        assert_eq!(
            (pass.brought, pass.waiting, pass.failed, pass.lost.len()),
            (whole, 0, 0, 0),
            "{}",
            pass.trouble
        );
        assert_eq!(tested.held(4).await, whole);
        tested.settled().await;

        // Now another can be lost too.
        tested.zone.shards.remove(TargetId::new(1));
        tested.zone.set_state(1, TargetState::TargetDown).await;
        tested.known().await;
        tested.reads_back(&bodies).await;
        let pass = tested.pass().await;
        assert_eq!((pass.brought, pass.failed), (0, 0), "{}", pass.trouble);
        assert!(pass.waiting > 0);
        tested.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_place_moves_by_copying_and_its_old_target_is_emptied() {
    let mut tested = Tested::start(CODED).await;
    let bodies = tested.store_owned().await;
    // Nobody's, and perhaps somebody's soon.
    let unowned = tested.store(100_000).await;
    let whole = tested.held(1).await;
    tested.zone.set_state(2, TargetState::TargetDraining).await;
    tested.replace(1, 2, 4).await;
    // Before anything has moved, what the member lacks is read where it was.
    tested.reads_back(&bodies).await;
    let new = tested.store(300_000).await;
    tested.zone.put(GROUP, "new", new.clone(), vec![]).await;

    let pass = tested.pass().await;
    assert_eq!((pass.brought, pass.failed), (whole, 0), "{}", pass.trouble);
    tested.settled().await;
    tested.pass().await;
    assert_eq!((tested.held(2).await, tested.held(4).await), (0, whole + 1));
    tested.reads_back(&bodies).await;
    tested.reads_back(&[unowned, new]).await;
    let pass = tested.pass().await;
    assert_eq!((pass.brought, pass.dropped, pass.failed), (0, 0, 0));
    tested.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_owns_is_not_rebuilt() {
    let mut tested = Tested::start(CODED).await;
    let unowned = tested.store(100_000).await;
    let deleted = tested.store(100_000).await;
    tested.zone.put(GROUP, "deleted", deleted.clone(), vec![]).await;
    tested.zone.delete(GROUP, "deleted").await;
    tested.zone.shards.remove(TargetId::new(3));
    tested.zone.set_state(3, TargetState::TargetOut).await;
    tested.replace(2, 3, 4).await;
    let pass = tested.pass().await;
    assert_eq!((pass.brought, pass.failed, pass.lost.len()), (0, 0, 0), "{}", pass.trouble);
    assert_eq!(tested.held(4).await, 0);
    tested.settled().await;
    // It is committed after all: what it has is enough.
    tested.reads_back(&[unowned]).await;
    tested.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beyond_repair_is_told_by_key_and_waits_for_its_disks() {
    let mut tested = Tested::start(CODED).await;
    let bodies = tested.store_owned().await;
    let (second, third) = (tested.zone.targets[1].clone(), tested.zone.targets[2].clone());
    for target in [2, 3] {
        tested.zone.shards.remove(TargetId::new(target));
        tested.zone.set_state(target, TargetState::TargetOut).await;
    }
    tested.replace(2, 3, 4).await;
    let pass = tested.pass().await;
    let keys: BTreeSet<&[u8]> = pass.lost.iter().map(|lost| lost.key.as_ref()).collect();
    assert_eq!(keys, [&b"k"[..]].into(), "the key that the headers name");
    assert!(pass.lost.iter().all(|lost| (lost.alive, lost.needed) == (1, 2)));
    assert_eq!(tested.held(4).await, 0);
    assert_eq!(tested.moving(), 1, "where it was is not forgotten");

    tested.zone.shards.add(TargetId::new(3), third);
    tested.zone.set_state(3, TargetState::TargetUp).await;
    tested.known().await;
    tested.reads_back(&bodies).await;
    let pass = tested.pass().await;
    assert_eq!((pass.lost.len(), pass.failed), (0, 0), "{}", pass.trouble);
    assert!(pass.brought > 0 && pass.waiting > 0);
    tested.zone.shards.add(TargetId::new(2), second);
    tested.zone.set_state(2, TargetState::TargetUp).await;
    tested.known().await;
    tested.pass().await;
    tested.pass().await;
    tested.settled().await;
    let whole = tested.held(1).await;
    assert_eq!((tested.held(2).await, tested.held(3).await, tested.held(4).await), (whole, 0, whole));
    tested.reads_back(&bodies).await;
    tested.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_that_does_not_list_completes_nothing() {
    let mut tested = Tested::start(CODED).await;
    let bodies = tested.store_owned().await;
    tested.zone.shards.remove(TargetId::new(4));
    tested.replace(2, 3, 4).await;
    let pass = tested.pass().await;
    assert!(pass.failed > 0 && pass.brought == 0);
    assert_eq!(tested.moving(), 1);
    tested.zone.shards.add(TargetId::new(4), tested.zone.targets[3].clone());
    let pass = tested.pass().await;
    assert_eq!(pass.failed, 0, "{}", pass.trouble);
    tested.settled().await;
    tested.reads_back(&bodies).await;
    tested.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shards_that_are_nowhere_near_their_place_are_read_and_brought_home() {
    let mut tested = Tested::start(CODED).await;
    let bodies = tested.store_owned().await;
    // As if a writer had had a very old map.
    tested.zone.move_pg(1, |pg| pg.targets = vec![4, 3, 1]).await;
    tested.known().await;
    tested.reads_back(&bodies).await;
    tested.pass().await;
    let pass = tested.pass().await;
    assert_eq!((pass.brought, pass.failed), (0, 0), "{}", pass.trouble);
    let whole = tested.held(4).await;
    assert_eq!((tested.held(1).await, tested.held(2).await, tested.held(3).await), (whole, 0, whole));
    tested.reads_back(&bodies).await;
    tested.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_owns_is_fenced_and_deleted_once_it_is_old() {
    let tested = Tested::start(CODED).await;
    let bodies = tested.store_owned().await;
    let whole = tested.held(1).await;
    let orphan = tested.store(5 << 20).await;
    let alive = tested.store(70_000).await;
    let renew = RenewWrite { bucket: bucket().id, slot: 0, write: alive.write.clone() };
    tested.zone.done(GROUP, command::Op::RenewWrite(renew)).await;
    let collect_held = async |age: Duration, held: Hlc, only_look: bool| {
        let map = tested.zone.head.feed.current().unwrap();
        let (cluster, owners) = (&tested.cluster, &Owners::default());
        let now = tested.zone.head.groups.hlc();
        let collector = Collector { cluster, owners, now, age, held, only_look };
        collector.walk(&mut Reach::default(), &map, || true).await
    };
    let collect = async |age: Duration, only_look: bool| collect_held(age, Hlc::ZERO, only_look).await;
    let collected = collect(Duration::from_secs(3600), false).await;
    assert_eq!((collected.writes, collected.orphans), (7, 0), "{}", collected.trouble);
    let looked = collect(Duration::ZERO, true).await;
    assert_eq!((looked.orphans, looked.found.len()), (1, 1), "{}", looked.trouble);
    assert_eq!(collect(Duration::ZERO, true).await, looked, "looking changes nothing");
    let kept = collect_held(Duration::ZERO, tested.zone.head.groups.hlc(), false).await;
    assert_eq!((kept.orphans, kept.failed), (0, 0), "its owner may be in metadata that was lost");
    let collected = collect(Duration::ZERO, false).await;
    assert_eq!((collected.orphans, collected.failed), (1, 0), "{}", collected.trouble);
    assert_eq!(tested.held(1).await, whole + 1, "of the orphan nothing is left, its three stripes included");
    tested.reads_back(&bodies).await;
    tested.reads_back(std::slice::from_ref(&alive)).await;

    // Whoever wrote it comes too late, and is told so; the one that was at it is not.
    let version = |body: Body| Version {
        size: body.length,
        begin_hlc: tested.zone.head.groups.hlc().get(),
        body: Some(body),
        ..Version::default()
    };
    for (body, refusal) in [(orphan, Refusal::WriteFenced), (alive, Refusal::None)] {
        let op = PutObject {
            bucket: bucket().id,
            key: "k".into(),
            version: Some(version(body)),
            ..PutObject::default()
        };
        let command = Command { op: Some(command::Op::PutObject(op)), ..Command::default() };
        let outcome = tested.cluster.propose(GROUP, vec![command]).await.unwrap().remove(0);
        assert_eq!(outcome.refusal(), refusal, "{}", outcome.detail);
    }
    tested.stop().await;
}
