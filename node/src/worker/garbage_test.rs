use super::*;
use crate::worker::small_zone::{DEADLINE, SmallZone, ZONE, body, copies, eventually, progress};
use holdfast_proto::meta::{Extent, PlacementGroup};
use holdfast_proto::v1::{Codec, Scheme};

#[test]
fn every_shard_of_every_stripe_is_named_once() {
    let map = ClusterMap {
        pgs: vec![PlacementGroup {
            id: 3,
            targets: vec![11, 12, 13, 14, 15, 16],
            ..PlacementGroup::default()
        }],
        ..ClusterMap::default()
    };
    let body = Body {
        length: 9 << 20,
        extents: vec![Extent {
            write: WriteId::from_bytes([5; 16]).to_wire(),
            pg: 3,
            scheme: Some(Scheme { codec: Codec::RsGf8.into(), data: 4, parity: 2 }),
            first_stripe: 0,
            stripes: 3,
            offset: 0,
            length: 9 << 20,
        }],
        ..Body::default()
    };
    let doomed = shards_of(&map, &body).unwrap();
    assert_eq!(doomed.keys().copied().collect::<Vec<_>>(), [11, 12, 13, 14, 15, 16]);
    assert!(doomed.values().all(|shards| shards.len() == 3));
    assert!(shards_of(&ClusterMap::default(), &body).is_err());
}

#[test]
fn what_a_backup_owns_is_kept_for_a_week() {
    let day = 24 * 3600 * 1000;
    let now = Hlc::from_ms(100 * day);
    let before = |held| due_before(now, 1000, None, held);
    assert_eq!(before(Hlc::ZERO), now.minus_ms(1000));
    let yesterday = now.minus_ms(day);
    assert_eq!(before(yesterday), yesterday.minus_ms(BACKUP_MARGIN_MS));
    assert_eq!(before(now.minus_ms(500)), now.minus_ms(500 + BACKUP_MARGIN_MS));
    assert_eq!(before(now.minus_ms(8 * day)), now.minus_ms(1000), "the backup is too old to count");
}

#[test]
fn what_is_being_read_is_kept_for_a_day() {
    let day = 24 * 3600 * 1000;
    let now = Hlc::from_ms(100 * day);
    let before = |read: Hlc| due_before(now, 1000, Some(read), Hlc::ZERO);
    let hour = now.minus_ms(3600 * 1000);
    assert_eq!(before(hour), hour.minus_ms(READ_MARGIN_MS));
    assert_eq!(before(now), now.minus_ms(READ_MARGIN_MS));
    assert_eq!(before(now.minus_ms(2 * day)), now.minus_ms(1000), "it hangs");
}

const SCHEME: Scheme = copies(2);

/// Puts and deletes an object, so that its body is garbage.
async fn free_later(zone: &SmallZone, group: GroupId, write: u8, body: Body) {
    let key = format!("k{write}");
    zone.put(group, &key, body, vec![]).await;
    zone.delete(group, &key).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_target_or_a_bad_row_holds_up_nothing_else() {
    let zone = SmallZone::start(3, SCHEME, &[&[1, 2], &[2, 3]]).await;
    let groups = [0, 1].map(|number| GroupId::partition(ZONE, number));
    // On the target that is down; on others; and one whose extent has no scheme.
    free_later(&zone, groups[0], 1, body(1, 1, Some(SCHEME))).await;
    free_later(&zone, groups[0], 2, body(2, 2, Some(SCHEME))).await;
    free_later(&zone, groups[0], 3, body(3, 2, None)).await;
    free_later(&zone, groups[1], 4, body(4, 2, Some(SCHEME))).await;
    eventually("all are due", async || {
        zone.garbage(groups[0]).await.len() == 3 && zone.garbage(groups[1]).await.len() == 1
    })
    .await;
    zone.set_state(1, TargetState::TargetDown).await;
    let (progress, supervisor) = progress().await;
    let state = || supervisor.workers().remove(0);
    let mut collector = Collector::new(zone.head.clone());
    for _ in 0..2 {
        let round = collector.round(&progress);
        tokio::time::timeout(DEADLINE, round).await.expect("a round ends, whatever has to stay");
    }
    let left: Vec<u8> = zone.garbage(groups[0]).await.iter().map(|key| key.write[0]).collect();
    assert_eq!((left, zone.garbage(groups[1]).await.len()), (vec![1, 3], 0));
    assert_eq!((state().backlog, state().done), (2, 2));
    assert_eq!(state().last_error.as_deref(), Some("1 writes cannot be freed: the log says why"));

    zone.set_state(1, TargetState::TargetUp).await;
    collector.round(&progress).await;
    let left: Vec<u8> = zone.garbage(groups[0]).await.iter().map(|key| key.write[0]).collect();
    assert_eq!((left, state().backlog), (vec![3], 1));
    zone.stop().await;
}
