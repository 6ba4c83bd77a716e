use super::*;
use crate::supervisor::Supervisor;
use crate::worker::small_zone::{DEADLINE, SmallZone, ZONE, body, bucket, copies, progress};
use holdfast_client::{StoredBody, WriteIntent};
use holdfast_proto::id::{BucketId, TargetId};
use holdfast_proto::meta::{Extent, Missed, PlacementGroup};

const GROUP: GroupId = GroupId::partition(ZONE, 0);

/// A zone of three targets and three copies, its client, and a mender with what it tells.
struct Tested {
    zone: SmallZone,
    cluster: Cluster,
    mender: Mender,
    progress: Progress,
    supervisor: Supervisor,
}

impl Tested {
    async fn start(unserved: &[u32]) -> Self {
        let zone = SmallZone::without(unserved, 3, copies(3), &[&[1, 2, 3]]).await;
        let cluster = zone.cluster().await;
        let (progress, supervisor) = progress().await;
        Self { mender: Mender::new(zone.head.clone(), cluster.clone()), zone, cluster, progress, supervisor }
    }

    async fn round(&mut self) {
        tokio::time::timeout(DEADLINE, self.mender.round(&self.progress)).await.expect("a round ends");
    }

    /// As if the pauses were over.
    async fn later(&mut self) {
        self.mender.quiet = Quiet::default();
        self.mender.queues.values_mut().for_each(|queue| queue.rest = Rest::default());
        self.round().await;
    }

    /// (rows waiting, rows done)
    fn told(&self) -> (u64, u64) {
        let state = self.supervisor.workers().remove(0);
        (state.backlog, state.done)
    }

    async fn store(&self) -> StoredBody {
        let intent = WriteIntent {
            bucket: BucketId::from_wire(&bucket().id).unwrap(),
            key: "k".into(),
            upload: None,
            length: 5000,
            storage_class: String::new(),
            headers: None,
        };
        self.cluster.put_body(intent, &mut Some(Bytes::from(vec![5; 5000]))).await.unwrap()
    }

    fn has(&self, target: u32, shard: &Shard) -> bool {
        self.zone.targets[target as usize - 1].stat(std::slice::from_ref(&shard.id)).unwrap()[0]
    }

    fn place(&self, body: &Body, missed: MissedShard) -> Shard {
        place(&self.zone.head.feed.current().unwrap(), body, missed).unwrap()
    }

    async fn missed(&self) -> Vec<MissedRow> {
        self.mender.page(GROUP, Bytes::new()).await.unwrap().rows
    }

    async fn stop(self) {
        self.cluster.shutdown().await;
        self.supervisor.shutdown(DEADLINE).await;
        self.zone.stop().await;
    }
}

fn shard_of(target: u32, tested: &Tested, body: &Body) -> MissedShard {
    let all = (0..3).map(|index| MissedShard { stripe: 0, index });
    all.into_iter().find(|missed| tested.place(body, *missed).target == target).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missed_shard_is_written_once_its_target_answers() {
    let mut tested = Tested::start(&[2]).await;
    let stored = tested.store().await;
    let [missed] = stored.missed[..] else { panic!("{:?}", stored.missed) };
    let shard = tested.place(&stored.body, missed);
    assert_eq!(shard.target, 2);
    tested.zone.put(GROUP, "k", stored.body, stored.missed).await;

    tested.round().await;
    assert_eq!(tested.told(), (1, 0), "a straggler has its time");
    assert!(tested.mender.quiet.0.is_empty(), "nobody was asked");
    tested.round().await;
    assert_eq!(tested.told(), (1, 0), "the target is not there");
    assert!(tested.mender.quiet.is(&2, Instant::now()));

    tested.zone.set_state(2, TargetState::TargetDown).await;
    tested.zone.shards.add(TargetId::new(2), tested.zone.targets[1].clone());
    tested.later().await;
    assert_eq!(tested.told(), (1, 0), "the zone says that the target is down");
    assert!(tested.mender.quiet.0.is_empty() && !tested.has(2, &shard));

    tested.zone.set_state(2, TargetState::TargetUp).await;
    tested.later().await;
    assert!(tested.has(2, &shard));
    assert_eq!((tested.told(), tested.missed().await.len()), ((0, 1), 0));
    tested.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_landed_is_gone_or_makes_no_sense_holds_up_nothing() {
    let mut tested = Tested::start(&[]).await;
    // The only copy is the one that was said to be missed: to write it again would fail.
    let landed = tested.store().await.body;
    let there = shard_of(2, &tested, &landed);
    for target in [1, 3] {
        let shard = tested.place(&landed, shard_of(target, &tested, &landed));
        tested.zone.targets[target as usize - 1].delete(&[shard.id]).await.unwrap();
    }
    tested.zone.put(GROUP, "landed", landed.clone(), vec![there]).await;
    // Deleted before the mender came.
    let gone = tested.store().await.body;
    let absent = shard_of(2, &tested, &gone);
    let absent_shard = tested.place(&gone, absent);
    tested.zone.targets[1].delete(std::slice::from_ref(&absent_shard.id)).await.unwrap();
    tested.zone.put(GROUP, "gone", gone, vec![absent]).await;
    tested.zone.delete(GROUP, "gone").await;
    // No scheme; and no copy left to rebuild one from.
    tested.zone.put(GROUP, "bad", body(9, 1, None), vec![MissedShard { stripe: 0, index: 0 }]).await;
    let lost = body(8, 1, Some(copies(3)));
    tested.zone.put(GROUP, "lost", lost, vec![MissedShard { stripe: 0, index: 0 }]).await;

    tested.round().await;
    assert_eq!(tested.told(), (4, 0));
    tested.round().await;
    let left: Vec<u8> = tested.missed().await.iter().map(|row| row.write[0]).collect();
    assert_eq!((left, tested.told()), (vec![8, 9], (2, 2)));
    assert!(tested.has(2, &tested.place(&landed, there)));
    assert!(!tested.has(2, &absent_shard), "nothing is written for nobody");
    let state = tested.supervisor.workers().remove(0);
    assert_eq!(state.last_error.as_deref(), Some("2 writes cannot be completed: the log says why"));
    tested.stop().await;
}

/// The collector had been here between the first look at the owner and the writing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_written_for_a_freed_write_is_taken_back() {
    let mut tested = Tested::start(&[]).await;
    let body = tested.store().await.body;
    let missed = shard_of(2, &tested, &body);
    let row = MissedRow {
        row: Some(Missed { shards: vec![missed], body: Some(body.clone()) }),
        ..MissedRow::default()
    };
    let map = tested.zone.head.feed.current().unwrap();
    let mut job = Job::of(&map, row).unwrap();
    let written = vec![tested.place(&body, missed)];
    assert!(tested.has(2, &written[0]));
    tested.mender.settle(&map, &mut job, &written, Mended::Gone { written: true }).await.unwrap();
    assert!(job.is_clear() && !tested.has(2, &written[0]));
    tested.stop().await;
}

/// Its other shards cannot be read, or its target takes none: the rows behind it do not wait for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_cannot_be_mended_yet_holds_up_no_other() {
    let mut tested = Tested::start(&[]).await;
    let map = tested.zone.head.feed.current().unwrap();
    let mut stuck = |write: u8| {
        let body = body(write, 1, Some(copies(3)));
        let missed = shard_of(2, &tested, &body);
        let row = Missed { shards: vec![missed], body: Some(body.clone()) };
        Job::of(&map, MissedRow { row: Some(row), write: body.write, ..MissedRow::default() }).unwrap()
    };
    let mut jobs: Vec<Job> = (1..=9).map(&mut stuck).collect();
    let mut last = jobs.pop().unwrap();
    for (at, job) in jobs.iter_mut().enumerate() {
        let absent = tested.mender.absent(&map, job);
        assert_eq!(absent.len(), 1, "write {at} has its turn");
        let error = Error::Unavailable { retry_after_ms: 0, unknown: false, detail: "no".into() };
        tested.mender.settle(&map, job, &absent, Mended::Failed(error)).await.unwrap();
        assert!(tested.mender.absent(&map, job).is_empty(), "and then waits");
    }
    assert!(tested.mender.absent(&map, &last).is_empty(), "it is the target, by the look of it");
    tested.mender.quiet = Quiet::default();
    let absent = tested.mender.absent(&map, &last);
    tested.mender.settle(&map, &mut last, &absent, Mended::Written).await.unwrap();
    assert!(last.is_clear() && tested.mender.failures.is_empty());
    tested.stop().await;
}

#[test]
fn a_shard_is_placed_as_writers_place_it() {
    let map = ClusterMap {
        pgs: [(3, vec![11, 12, 13]), (4, vec![21, 22, 23])]
            .map(|(id, targets)| PlacementGroup { id, targets, ..PlacementGroup::default() })
            .to_vec(),
        ..ClusterMap::default()
    };
    let write = WriteId::from_bytes([5; 16]).to_wire();
    let scheme =
        holdfast_proto::v1::Scheme { codec: holdfast_proto::v1::Codec::RsGf8.into(), data: 2, parity: 1 };
    let run = |pg, first_stripe, stripes| Extent {
        write: write.clone(),
        pg,
        scheme: Some(scheme),
        first_stripe,
        stripes,
        ..Extent::default()
    };
    let body = Body {
        write: write.clone(),
        length: 6 << 20,
        extents: vec![run(3, 0, 1), run(4, 1, 2)],
        ..Body::default()
    };
    let target = |stripe, index| place(&map, &body, MissedShard { stripe, index }).map(|shard| shard.target);
    assert_eq!((target(0, 0).unwrap(), target(1, 2).unwrap(), target(2, 1).unwrap()), (11, 23, 22));
    assert!(target(3, 0).is_err() && target(0, 3).is_err() && target(0, 300).is_err());
}

#[tokio::test(start_paused = true)]
async fn a_target_that_stays_down_is_asked_less_and_less() {
    let mut quiet = Quiet::default();
    let begin = Instant::now();
    let (mut now, mut pauses) = (begin, vec![]);
    for _ in 0..7 {
        quiet.failed(2, now);
        let asked_again = (1..).find(|seconds| !quiet.is(&2, now + Duration::from_secs(*seconds))).unwrap();
        pauses.push(asked_again);
        now += Duration::from_secs(asked_again);
    }
    assert_eq!(pauses, [10, 20, 40, 80, 160, 300, 300]);
    assert!(!quiet.is(&1, now));
    quiet.well(&2);
    quiet.failed(2, now);
    assert!(!quiet.is(&2, now + BACKOFF_MIN));
}

#[test]
fn an_idle_queue_rests_until_something_changes() {
    let mut rest = Rest::default();
    assert!(rest.is_due((1, 5)));
    let mut rounds = vec![];
    for _ in 0..5 {
        rest.after_walk(false, (1, 5));
        let rested = (0..).find(|_| rest.is_due((1, 5))).unwrap();
        rounds.push(rested);
    }
    assert_eq!(rounds, [1, 3, 7, 12, 12]);
    rest.after_walk(false, (1, 5));
    assert!(!rest.is_due((1, 5)) && rest.is_due((2, 5)) && rest.is_due((1, 6)));
    rest.after_walk(true, (1, 5));
    assert!(rest.is_due((1, 5)));
}
