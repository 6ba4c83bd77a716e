//! Bodies written to and read from a zone of fake targets with faults.
#![allow(clippy::unwrap_used, reason = "helpers of tests, too")]

mod fake;

use std::time::{Duration, Instant};

use bytes::Bytes;
use fake::{Chunks, FakeZone, body, copies, eventually, intent, put, rs};
use futures::StreamExt;
use holdfast_client::{BodyReader, Error, PutError, StoredBody};
use holdfast_proto::v1::FaultKind;

const MIB: usize = 1 << 20;

async fn collect(mut reader: BodyReader) -> Result<Vec<u8>, Error> {
    reader.first().await?;
    let mut all = Vec::new();
    while let Some(chunk) = reader.next().await {
        all.extend_from_slice(&chunk?);
    }
    Ok(all)
}

async fn read(zone: &FakeZone, stored: &StoredBody, range: std::ops::Range<u64>) -> Result<Vec<u8>, Error> {
    collect(zone.cluster.read_body(&stored.body, range)).await
}

/// Reads the whole body and ranges at and around every boundary.
async fn assert_readable(zone: &FakeZone, stored: &StoredBody, bytes: &Bytes) {
    let length = bytes.len() as u64;
    assert!(read(zone, stored, 0..length).await.unwrap() == *bytes, "the whole body");
    let edges = [
        0,
        1,
        65_535,
        65_536,
        65_537,
        MIB as u64 - 1,
        MIB as u64 + 1,
        (4 * MIB) as u64,
        length / 2,
        length - 1,
    ];
    for start in edges.into_iter().filter(|start| *start < length) {
        for size in [1, 70_000, 3 * MIB as u64] {
            let end = (start + size).min(length);
            let got = read(zone, stored, start..end).await.unwrap();
            assert!(got == bytes[start as usize..end as usize], "bytes {start}..{end}");
        }
    }
}

async fn coded_zone() -> FakeZone {
    FakeZone::start(6, 6, rs(4, 2), copies(3)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_size_comes_back_with_its_ranges() {
    let zone = coded_zone().await;
    for length in
        [0, 1, 2048, 2049, 65_536, 262_143, 262_144, 262_145, 4 * MIB - 1, 4 * MIB, 9 * MIB + 12_345]
    {
        let bytes = body(length);
        let stored = put(&zone, &bytes).await.unwrap();
        assert_eq!(stored.missed, [], "{length}");
        assert_eq!(stored.body.length, length as u64);
        let scheme = stored.body.extents.first().and_then(|extent| extent.scheme);
        let expected = match length {
            0..=2048 => None,
            // ceil(length / 4) below 64 KiB
            2049..=262_140 => Some(copies(3)),
            _ => Some(rs(4, 2)),
        };
        assert_eq!(scheme, expected, "{length}");
        if length > 0 {
            assert_readable(&zone, &stored, &bytes).await;
        }
        assert_eq!(read(&zone, &stored, 0..0).await.unwrap(), b"");
        assert!(matches!(read(&zone, &stored, 0..length as u64 + 1).await, Err(Error::Invalid { .. })));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shard_headers_say_what_is_known() {
    let zone = coded_zone().await;
    let bytes = body(9 * MIB);
    let stored = put(&zone, &bytes).await.unwrap();
    for target in &zone.targets {
        for put in target.shards.lock().values() {
            let meta = put.meta.as_ref().unwrap();
            let object = meta.object.as_ref().unwrap();
            let stripe = holdfast_proto::id::ShardId::from_slice(&meta.shard).unwrap().stripe;
            assert_eq!(object.key, "photos/cat.jpg");
            assert_eq!(object.declared_length, bytes.len() as u64);
            assert_eq!(object.offset, u64::from(stripe) * 4 * MIB as u64);
            assert_eq!(object.headers.is_empty(), stripe != 0);
            assert_eq!(object.md5.len(), if stripe == 2 { 16 } else { 0 });
            assert_eq!(object.begin_hlc, stored.begin.get());
            assert_eq!(meta.pg, stored.body.extents[0].pg);
            assert_eq!(put.pg_epoch, 1);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_target_is_missed_and_delays_nothing() {
    let mut zone = coded_zone().await;
    zone.kill_target(2).await;
    let bytes = body(9 * MIB);
    let begin = Instant::now();
    let stored = put(&zone, &bytes).await.unwrap();
    assert!(begin.elapsed() < Duration::from_secs(4), "{:?}", begin.elapsed());
    assert_eq!(stored.missed.len(), 3, "one shard of each stripe");
    assert_eq!(zone.shards(), 15);
    assert_readable(&zone, &stored, &bytes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_zone_says_so_at_once_and_takes_writes_when_space_comes() {
    let zone = coded_zone().await;
    let held = put(&zone, &body(MIB)).await.unwrap();
    let full = |number, full: bool| {
        zone.faults(number, |faults| faults.put_fault = full.then_some(FaultKind::Full));
    };
    // One alone is gone round.
    full(1, true);
    put(&zone, &body(MIB)).await.unwrap();
    full(2, true);
    let error = put(&zone, &body(MIB)).await.unwrap_err();
    assert!(matches!(error, PutError::Cluster(Error::Full { .. })), "{error:?}");
    assert_readable(&zone, &held, &body(MIB)).await;
    full(1, false);
    full(2, false);
    let begin = Instant::now();
    while put(&zone, &body(MIB)).await.is_err() {
        assert!(begin.elapsed() < Duration::from_secs(60), "space came long ago");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_plus_two_needs_five() {
    let mut zone = FakeZone::start_with(6, 6, rs(4, 2), copies(3), |config| {
        config.stripe_deadline = Duration::from_secs(2);
    })
    .await;
    zone.kill_target(2).await;
    zone.kill_target(3).await;
    let error = put(&zone, &body(MIB)).await.unwrap_err();
    assert!(matches!(error, PutError::Cluster(Error::Unavailable { unknown: false, .. })), "{error:?}");
    eventually("what had landed is deleted", || zone.shards() == 0).await;
    // A small body is two of three copies, which other members can hold.
    let small = body(5000);
    let stored = put(&zone, &small).await.unwrap();
    assert!(stored.missed.len() <= 1);
    assert_readable(&zone, &stored, &small).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_shard_is_waited_for_a_little_and_then_missed() {
    let zone = coded_zone().await;
    let bytes = body(MIB);
    zone.faults(1, |faults| faults.put_delay = Duration::from_secs(3));
    let begin = Instant::now();
    let stored = put(&zone, &bytes).await.unwrap();
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
    assert_eq!(stored.missed.len(), 1);
    eventually("the straggler lands all the same", || zone.shards() == 6).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_target_sends_the_stripe_to_another_group() {
    // Eight targets, groups of six: with two broken, some groups have all they need and some do not.
    let zone = FakeZone::start(8, 6, rs(4, 2), copies(3)).await;
    for broken in [0, 1] {
        zone.faults(broken, |faults| faults.put_fault = Some(FaultKind::DiskFailed));
    }
    for _ in 0..8 {
        let bytes = body(5 * MIB);
        let stored = put(&zone, &bytes).await.unwrap();
        for extent in &stored.body.extents {
            let missed = stored.missed.iter().filter(|shard| {
                (extent.first_stripe..extent.first_stripe + extent.stripes).contains(&shard.stripe)
            });
            assert!(missed.count() <= extent.stripes as usize, "at least five of six landed");
        }
        assert_readable(&zone, &stored, &bytes).await;
    }
}

/// Six targets and two groups of all of them, whose orders differ in two places.
const ORDERS: [[u32; 6]; 2] = [[0, 1, 2, 3, 4, 5], [0, 1, 3, 2, 4, 5]];

async fn zone_of_permutations(configure: impl FnOnce(&mut holdfast_client::ClientConfig)) -> FakeZone {
    let shape = |map: &mut holdfast_proto::meta::ClusterMap| {
        map.pgs.truncate(ORDERS.len());
        for (pg, order) in map.pgs.iter_mut().zip(ORDERS) {
            pg.targets = order.to_vec();
        }
    };
    FakeZone::start_shaped(6, 6, rs(4, 2), copies(3), shape, configure).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_attempt_takes_no_shard_from_the_one_that_was_acknowledged() {
    // Quick: all of the failed attempt has been answered before the next begins. Slow: a shard of it is still to land.
    for delay in [Duration::ZERO, Duration::from_millis(600)] {
        let zone = zone_of_permutations(|_| {}).await;
        for refusing in [4, 5] {
            zone.targets[refusing].refuse_puts.store(1, std::sync::atomic::Ordering::SeqCst);
        }
        zone.faults(2, |faults| faults.put_delay = delay);
        let bytes = body(3 * MIB);
        let stored = put(&zone, &bytes).await.unwrap();
        let order = ORDERS[stored.body.extents[0].pg as usize];
        let belongs: Vec<(u32, u32, usize)> =
            (0..).zip(order).map(|(index, target)| (0, index, target as usize)).collect();
        eventually("the stripe is whole, and nothing else is there", || zone.placed() == belongs).await;
        zone.cluster.shutdown().await;
        assert_eq!(zone.placed(), belongs, "nothing in the background undoes it");
        let again = zone.connect().await;
        assert!(collect(again.read_body(&stored.body, 0..bytes.len() as u64)).await.unwrap() == bytes);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_is_given_up_deletes_what_all_its_attempts_left() {
    let zone = zone_of_permutations(|config| config.stripe_deadline = Duration::from_millis(800)).await;
    for refusing in [4, 5] {
        zone.faults(refusing, |faults| faults.put_fault = Some(FaultKind::DiskFailed));
    }
    // Its shards land after the write was given up.
    zone.faults(2, |faults| faults.put_delay = Duration::from_millis(1200));
    put(&zone, &body(MIB)).await.unwrap_err();
    let both = || zone.placed().iter().filter(|(_, index, target)| *index as usize != *target).count();
    assert!(both() > 0, "both groups were tried: {:?}", zone.placed());
    eventually("a late shard lands", || !zone.targets[2].shards.lock().is_empty()).await;
    eventually("all is deleted", || zone.shards() == 0).await;
    zone.cluster.shutdown().await;
    assert_eq!(zone.placed(), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_target_is_left_out() {
    let zone = coded_zone().await;
    zone.faults(4, |faults| faults.put_fault = Some(FaultKind::Full));
    let stored = put(&zone, &body(5 * MIB)).await.unwrap();
    assert_eq!(stored.missed.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_two_lost_targets_are_rebuilt() {
    let zone = coded_zone().await;
    let bytes = body(5 * MIB + 777);
    let stored = put(&zone, &bytes).await.unwrap();
    for (a, b) in [(0, 1), (2, 5), (3, 4)] {
        for target in [a, b] {
            zone.faults(target, |faults| faults.get_fault = Some(FaultKind::ShardAbsent));
        }
        assert_readable(&zone, &stored, &bytes).await;
        for target in [a, b] {
            zone.faults(target, |faults| faults.get_fault = None);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_targets_are_read_around() {
    let mut zone = coded_zone().await;
    let bytes = body(5 * MIB + 777);
    let stored = put(&zone, &bytes).await.unwrap();
    zone.kill_target(0).await;
    zone.kill_target(3).await;
    assert_readable(&zone, &stored, &bytes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_lost_shards_are_lost_and_said_to_be_before_the_first_byte() {
    let zone = coded_zone().await;
    let stored = put(&zone, &body(MIB)).await.unwrap();
    for target in 0..3 {
        zone.targets[target].shards.lock().clear();
    }
    let mut reader = zone.cluster.read_body(&stored.body, 0..MIB as u64);
    let told = reader.first().await.unwrap_err();
    assert!(matches!(told, Error::Lost { .. }), "{told:?}");
    assert_eq!(reader.next().await, Some(Err(told)));
    assert_eq!(reader.next().await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_silent_targets_are_unavailable_not_lost() {
    let mut zone = FakeZone::start_with(6, 6, rs(4, 2), copies(3), |config| {
        config.read_deadline = Duration::from_secs(1);
    })
    .await;
    let stored = put(&zone, &body(MIB)).await.unwrap();
    for target in 0..3 {
        zone.kill_target(target).await;
    }
    let error = read(&zone, &stored, 0..MIB as u64).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flipped_byte_is_never_served() {
    let zone = coded_zone().await;
    let bytes = body(6 * MIB);
    let stored = put(&zone, &bytes).await.unwrap();
    for target in 0..2 {
        zone.faults(target, |faults| faults.flip_at = Some(70_000));
    }
    assert_readable(&zone, &stored, &bytes).await;
    // Copies too.
    let small = body(100_000);
    let stored = put(&zone, &small).await.unwrap();
    assert_readable(&zone, &stored, &small).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_shard_is_written_again_by_its_reader() {
    let zone = coded_zone().await;
    let bytes = body(4 * MIB);
    let stored = put(&zone, &bytes).await.unwrap();
    let spoil = |target: usize| {
        for put in zone.targets[target].shards.lock().values_mut() {
            let mut data = put.data.to_vec();
            data[5] ^= 1;
            put.data = data.into();
        }
    };
    let spoiled = |target: usize| {
        let shards = zone.targets[target].shards.lock();
        shards.values().any(|put| {
            let hashes = &put.meta.as_ref().unwrap().block_hashes;
            blake3::hash(&put.data[..65_536]).as_bytes()[..] != hashes[..32]
        })
    };
    let first = stored.body.extents[0].pg as usize;
    spoil(first);
    assert!(spoiled(first));
    assert!(read(&zone, &stored, 0..bytes.len() as u64).await.unwrap() == bytes);
    eventually("the bad shard is good again", || !spoiled(first)).await;
    assert!(read(&zone, &stored, 0..bytes.len() as u64).await.unwrap() == bytes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missed_shards_are_restored() {
    for scheme in [rs(4, 2), copies(6)] {
        let zone = FakeZone::start(6, 6, scheme, copies(3)).await;
        let bytes = body(5 * MIB + 77);
        zone.faults(1, |faults| faults.put_fault = Some(FaultKind::Full));
        let stored = put(&zone, &bytes).await.unwrap();
        assert!(!stored.missed.is_empty());
        assert!(zone.cluster.restore_shards(&stored.body, &stored.missed).await.is_err(), "it is still full");
        zone.faults(1, |faults| faults.put_fault = None);
        zone.cluster.restore_shards(&stored.body, &stored.missed).await.unwrap();
        let whole = zone.stored();
        assert_eq!(whole.len() % 6, 0, "{whole:?}");
        for other in [0, 2] {
            zone.targets[other].shards.lock().clear();
        }
        assert!(read(&zone, &stored, 0..bytes.len() as u64).await.unwrap() == bytes);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_target_is_hedged() {
    let zone = coded_zone().await;
    let bytes = body(2 * MIB);
    let stored = put(&zone, &bytes).await.unwrap();
    for _ in 0..5 {
        assert!(read(&zone, &stored, 0..bytes.len() as u64).await.unwrap() == bytes);
    }
    for slow in 0..2 {
        zone.faults(slow, |faults| faults.get_delay = Duration::from_secs(4));
    }
    let begin = Instant::now();
    assert_readable(&zone, &stored, &bytes).await;
    assert!(begin.elapsed() < Duration::from_secs(15), "thirty reads: {:?}", begin.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_small_range_moves_few_bytes() {
    let zone = coded_zone().await;
    let bytes = body(4 * MIB);
    let stored = put(&zone, &bytes).await.unwrap();
    let sent = || {
        zone.targets
            .iter()
            .map(|target| target.bytes_sent.load(std::sync::atomic::Ordering::Relaxed))
            .sum::<u64>()
    };
    let before = sent();
    assert_eq!(read(&zone, &stored, 1_500_000..1_500_100).await.unwrap(), bytes[1_500_000..1_500_100]);
    assert!(sent() - before <= 2 * 65_536, "a block, hedged at most once");
    // Shard 1 is gone: the same block of four others.
    let pg = stored.body.extents[0].pg as usize;
    zone.targets[(pg + 1) % 6].shards.lock().clear();
    let before = sent();
    assert_eq!(read(&zone, &stored, 1_500_000..1_500_100).await.unwrap(), bytes[1_500_000..1_500_100]);
    assert!(sent() - before <= 6 * 65_536, "{}", sent() - before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_fails_leaves_nothing() {
    let zone = coded_zone().await;
    let bytes = body(9 * MIB);
    let mut failing = Chunks { fail: true, ..Chunks::of(&bytes, MIB) };
    let error = zone.cluster.put_body(intent(bytes.len()), &mut failing).await.unwrap_err();
    assert_eq!(error, PutError::Source("bad digest".into()));
    let mut short = Chunks::of(&bytes, MIB);
    let error = zone.cluster.put_body(intent(bytes.len() + 1), &mut short).await.unwrap_err();
    assert!(matches!(error, PutError::Cluster(Error::Invalid { .. })), "{error:?}");
    let mut long = Chunks::of(&bytes, MIB);
    let error = zone.cluster.put_body(intent(bytes.len() - 1), &mut long).await.unwrap_err();
    assert!(matches!(error, PutError::Cluster(Error::Invalid { .. })), "{error:?}");
    eventually("shards of writes that failed are deleted", || zone.shards() == 0).await;
    for length in [1000, 2000] {
        let mut failing = Chunks { fail: true, ..Chunks::of(&body(length), 100) };
        let error = zone.cluster.put_body(intent(length), &mut failing).await.unwrap_err();
        assert_eq!(error, PutError::Source("bad digest".into()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_discarded_is_deleted() {
    let zone = coded_zone().await;
    let large = put(&zone, &body(9 * MIB)).await.unwrap();
    let small = put(&zone, &body(9000)).await.unwrap();
    assert_eq!(zone.shards(), 18 + 3);
    zone.cluster.discard(&large.body);
    eventually("the large one is deleted", || zone.shards() == 3).await;
    zone.cluster.discard(&small.body);
    eventually("the small one is deleted", || zone.shards() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_is_dropped_cleans_up() {
    let zone = coded_zone().await;
    let bytes = body(40 * MIB);
    let stuck = async {
        struct Stuck(Chunks);
        impl holdfast_client::BodySource for Stuck {
            type Error = String;
            async fn next(&mut self) -> Option<Result<Bytes, String>> {
                match self.0.chunks.pop_front() {
                    Some(chunk) => Some(Ok(chunk)),
                    None => std::future::pending().await,
                }
            }
            fn md5(&mut self) -> Option<[u8; 16]> {
                None
            }
        }
        zone.cluster.put_body(intent(bytes.len() + 1), &mut Stuck(Chunks::of(&bytes, MIB))).await
    };
    let stored = async { eventually("most stripes are stored", || zone.shards() >= 50).await };
    tokio::select! {
        _ = stuck => panic!("it has no end"),
        () = stored => {}
    }
    eventually("a dropped write's shards are deleted", || zone.shards() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_are_acknowledged_at_two_of_three() {
    let mut zone = FakeZone::start(3, 3, copies(3), copies(3)).await;
    let bytes = body(3 * MIB + 5);
    let stored = put(&zone, &bytes).await.unwrap();
    assert_eq!((stored.missed.len(), zone.shards()), (0, 12));
    assert_readable(&zone, &stored, &bytes).await;
    zone.kill_target(1).await;
    assert_readable(&zone, &stored, &bytes).await;
    let stored = put(&zone, &bytes).await.unwrap();
    assert_eq!(stored.missed.len(), 4, "one copy of each stripe");
    assert_readable(&zone, &stored, &bytes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_bodies_at_once_stay_within_the_memory_for_stripes() {
    let zone = FakeZone::start_with(6, 6, rs(4, 2), copies(3), |config| {
        // No stripe beyond the first of each body.
        config.write_ahead_bytes = 0;
        config.read_ahead_bytes = 0;
    })
    .await;
    let bytes = body(13 * MIB);
    let puts = futures::future::join_all((0..4).map(|_| put(&zone, &bytes))).await;
    for stored in puts {
        assert!(read(&zone, &stored.unwrap(), 0..bytes.len() as u64).await.unwrap() == bytes);
    }
}
