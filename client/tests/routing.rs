//! Calls to groups of fake meta nodes: leaders, hints, repeats, batches, deadlines, caches.

mod fake;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fake::{FakeZone, copies, eventually, rs};
use futures::future::join_all;
use holdfast_client::{ClientConfig, Cluster, Error};
use holdfast_proto::error::Fault;
use holdfast_proto::hlc::Hlc;
use holdfast_proto::id::{AccountId, GroupId, ZoneId};
use holdfast_proto::limits::{DEDUP_WINDOW_MS, REQUEST_AGE_MS_MAX};
use holdfast_proto::meta::{
    Answer, Bucket, BucketState, Command, Committed, DeleteObject, Deleted, GetBucket, Outcome,
    Preconditions, Query, Refusal, Version, answer, command, outcome, query,
};
use holdfast_proto::v1::FaultKind;
use tokio_util::sync::CancellationToken;

async fn zone() -> FakeZone {
    FakeZone::start(3, 3, rs(2, 1), copies(3)).await
}

async fn quick_zone() -> FakeZone {
    FakeZone::start_with(3, 3, rs(2, 1), copies(3), |config| {
        config.call_deadline = Duration::from_millis(700)
    })
    .await
}

fn partition(number: u32) -> GroupId {
    GroupId::partition(ZoneId::new(fake::ZONE), number)
}

fn bucket() -> Bucket {
    Bucket {
        id: Bytes::from_static(&[7; 16]),
        name: "b".into(),
        state: BucketState::BucketActive.into(),
        generation: 3,
        slots: 8,
        ..Default::default()
    }
}

fn delete_command(key: &str) -> Command {
    let delete = DeleteObject { key: Bytes::copy_from_slice(key.as_bytes()), ..Default::default() };
    Command { op: Some(command::Op::DeleteObject(delete)), ..Default::default() }
}

fn kind(of: query::Of) -> String {
    format!("{:?}", Some(std::mem::discriminant(&of)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_leader_is_found_by_the_hint() {
    let zone = zone().await;
    zone.cluster.propose(partition(0), vec![delete_command("a")]).await.unwrap();
    // Watchers are still told the old one.
    zone.meta.told_leader.store(1, Ordering::SeqCst);
    zone.meta.leader.store(3, Ordering::SeqCst);
    let begin = Instant::now();
    for _ in 0..20 {
        zone.cluster.propose(partition(0), vec![delete_command("a")]).await.unwrap();
    }
    assert!(begin.elapsed() < Duration::from_secs(1), "one hop, then straight there: {:?}", begin.elapsed());
    assert_eq!(zone.meta.proposals.load(Ordering::SeqCst), 21);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_leader_it_waits_for_one() {
    let zone = zone().await;
    zone.meta.leader.store(0, Ordering::SeqCst);
    let meta = zone.meta.clone();
    let elected = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        meta.leader.store(2, Ordering::SeqCst);
    };
    let (outcome, ()) = tokio::join!(zone.cluster.propose(partition(1), vec![delete_command("a")]), elected);
    assert_eq!(outcome.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_answer_is_asked_for_again_under_the_same_request_id() {
    let zone = zone().await;
    zone.meta.drop_answers.store(2, Ordering::SeqCst);
    zone.cluster.propose(partition(0), vec![delete_command("a")]).await.unwrap();
    let commands = zone.meta.commands.lock().clone();
    assert_eq!(commands.len(), 3);
    let ids: HashSet<_> =
        commands.iter().map(|command| (&command.request, command.first_attempt_hlc)).collect();
    assert_eq!(ids.len(), 1, "one request id and one first attempt");
    assert_eq!(commands[0].request.len(), 16);
    assert_eq!(commands[0].first_attempt_hlc, fake::GROUP_HLC);
}

const HOUR: u64 = 3_600_000 << 16;

/// Applies commands as a group does whose clock shows `now`: first attempts from long ago or from ahead are refused, and
/// every command moves what the group has applied on.
fn aging(zone: &FakeZone, now: u64) -> fake::Script {
    let meta = Arc::downgrade(&zone.meta);
    Box::new(move |group, command| {
        let first = Hlc::from_u64(command.first_attempt_hlc);
        let hlc = Hlc::from_u64(now);
        let refusal = if first < hlc.minus_ms(REQUEST_AGE_MS_MAX) {
            Refusal::RequestTooOld
        } else if first.minus_ms(DEDUP_WINDOW_MS - REQUEST_AGE_MS_MAX) > hlc {
            Refusal::Malformed
        } else {
            Refusal::None
        };
        meta.upgrade().expect("the zone is up").group_hlcs.lock().insert(group, now);
        Ok(Outcome { refusal: refusal.into(), ..Default::default() })
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_ahead_of_the_group_spoils_no_command() {
    let zone = zone().await;
    *zone.meta.outcome.lock() = Some(aging(&zone, fake::GROUP_HLC));
    // The watched node is an hour ahead, and a group elsewhere went along.
    zone.meta.ahead.store(HOUR, Ordering::SeqCst);
    zone.meta.group_hlcs.lock().insert(GroupId::REALM, fake::GROUP_HLC + HOUR);
    let cluster = zone.cluster.clone();
    eventually("the clock that is ahead was heard", || cluster.now().get() >= HOUR).await;
    zone.cluster
        .query(GroupId::REALM, Query { of: Some(query::Of::GetBucket(GetBucket::default())) })
        .await
        .unwrap();
    let reads = zone.meta.reads.load(Ordering::SeqCst);
    for _ in 0..10 {
        let outcomes = zone.cluster.propose(partition(0), vec![delete_command("a")]).await.unwrap();
        assert_eq!(outcomes[0].refusal(), Refusal::None);
    }
    for command in &*zone.meta.commands.lock() {
        assert_eq!(command.first_attempt_hlc, fake::GROUP_HLC, "what the group itself has applied");
    }
    assert_eq!(zone.meta.reads.load(Ordering::SeqCst), reads + 1, "the group's time is asked for once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_that_was_idle_for_an_hour_takes_the_command_all_the_same() {
    let zone = zone().await;
    *zone.meta.outcome.lock() = Some(aging(&zone, fake::GROUP_HLC + HOUR));
    let commands = vec![delete_command("a"), delete_command("b")];
    let outcomes = zone.cluster.propose(partition(0), commands).await.unwrap();
    assert!(outcomes.iter().all(|outcome| outcome.refusal() == Refusal::None), "{outcomes:?}");
    let commands = zone.meta.commands.lock().clone();
    let firsts: Vec<u64> = commands.iter().map(|command| command.first_attempt_hlc).collect();
    let (old, new) = (fake::GROUP_HLC, fake::GROUP_HLC + HOUR);
    assert_eq!(firsts, [old, old, new, new]);
    assert_eq!(commands[0].request, commands[2].request, "it is the same request");
    // The next finds the time known.
    zone.cluster.propose(partition(0), vec![delete_command("c")]).await.unwrap();
    assert_eq!(zone.meta.commands.lock().len(), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_attempt_of_what_may_have_been_done_is_not_moved() {
    let zone = zone().await;
    *zone.meta.outcome.lock() = Some(aging(&zone, fake::GROUP_HLC + HOUR));
    zone.meta.drop_answers.store(1, Ordering::SeqCst);
    let outcomes = zone.cluster.propose(partition(0), vec![delete_command("a")]).await.unwrap();
    assert_eq!(outcomes[0].refusal(), Refusal::RequestTooOld);
    // Nor that of a caller who attempted it before.
    let known = Command { first_attempt_hlc: 1, ..delete_command("b") };
    let outcomes = zone.cluster.propose(partition(0), vec![known]).await.unwrap();
    assert_eq!(outcomes[0].refusal(), Refusal::RequestTooOld);
    let firsts: Vec<u64> = zone.meta.commands.lock().iter().map(|c| c.first_attempt_hlc).collect();
    assert_eq!(firsts, [fake::GROUP_HLC, fake::GROUP_HLC, 1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_deadline_says_whether_it_may_have_been_done() {
    let zone = quick_zone().await;
    let begin = Instant::now();
    zone.meta.drop_answers.store(usize::MAX, Ordering::SeqCst);
    let error = zone.cluster.propose(partition(0), vec![delete_command("a")]).await.unwrap_err();
    assert!(error.is_unknown(), "{error:?}");
    assert!(begin.elapsed() < Duration::from_secs(3));
    zone.meta.drop_answers.store(0, Ordering::SeqCst);
    // No leader at all: nothing can have been done.
    zone.meta.leader.store(0, Ordering::SeqCst);
    let error = zone.cluster.propose(partition(1), vec![delete_command("a")]).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { unknown: false, .. }), "{error:?}");
    let query = Query { of: Some(query::Of::GetBucket(GetBucket::default())) };
    let error = zone.cluster.query(GroupId::REALM, query).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { unknown: false, .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_of_many_travel_together() {
    let zone = zone().await;
    *zone.meta.propose_delay.lock() = Duration::from_millis(20);
    let echo = |_: GroupId, command: &Command| {
        let Some(command::Op::DeleteObject(delete)) = &command.op else { panic!("{command:?}") };
        let deleted = Deleted { version: delete.key.clone(), ..Default::default() };
        Ok(Outcome { ok: Some(outcome::Ok::Deleted(deleted)), ..Default::default() })
    };
    *zone.meta.outcome.lock() = Some(Box::new(echo));
    let calls = (0..200).map(|number| {
        let cluster = zone.cluster.clone();
        async move {
            let key = format!("key-{number}");
            let outcomes = cluster.propose(partition(0), vec![delete_command(&key)]).await.unwrap();
            let Some(outcome::Ok::Deleted(deleted)) = &outcomes[0].ok else { panic!("{outcomes:?}") };
            assert_eq!(deleted.version, key, "everyone gets its own outcome");
        }
    });
    join_all(calls).await;
    let proposals = zone.meta.proposals.load(Ordering::SeqCst);
    assert!(proposals < 30, "{proposals} proposals for 200 calls");
    assert_eq!(zone.meta.commands.lock().len(), 200);
    let queries = (0..200).map(|_| {
        zone.cluster.query(GroupId::REALM, Query { of: Some(query::Of::GetBucket(GetBucket::default())) })
    });
    join_all(queries).await.into_iter().for_each(|answer| assert!(answer.is_ok()));
    assert!(zone.meta.reads.load(Ordering::SeqCst) < 100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_bad_command_does_not_fail_its_fellows() {
    let zone = zone().await;
    *zone.meta.propose_delay.lock() = Duration::from_millis(20);
    let picky = |_: GroupId, command: &Command| match &command.op {
        Some(command::Op::DeleteObject(delete)) if delete.key == "bad" => {
            Err(Fault::new(FaultKind::Invalid, "a bad command"))
        }
        _ => Ok(Outcome::default()),
    };
    *zone.meta.outcome.lock() = Some(Box::new(picky));
    let calls = (0..50).map(|number| {
        let key = if number == 25 { "bad".to_owned() } else { number.to_string() };
        let cluster = zone.cluster.clone();
        async move { cluster.propose(partition(0), vec![delete_command(&key)]).await }
    });
    for (number, result) in join_all(calls).await.into_iter().enumerate() {
        match result {
            Ok(_) => assert_ne!(number, 25),
            Err(error) => {
                assert!(number == 25 && matches!(error, Error::Internal { .. }), "{number}: {error:?}")
            }
        }
    }
}

// On one thread both calls wait in their lane before it is drained: they are one batch.
#[tokio::test]
async fn what_a_batch_may_have_done_is_not_forgotten_when_its_calls_go_alone() {
    let zone = quick_zone().await;
    let (meta, tries) = (Arc::downgrade(&zone.meta), std::sync::atomic::AtomicUsize::new(0));
    *zone.meta.outcome.lock() = Some(Box::new(move |_, command| match &command.op {
        Some(command::Op::DeleteObject(delete)) if delete.key == "bad" => {
            if tries.fetch_add(1, Ordering::SeqCst) == 0 {
                return Err(Fault::new(FaultKind::FaultUnavailable, "done, but not answered"));
            }
            // The calls that go alone now find nobody.
            meta.upgrade().unwrap().leader.store(0, Ordering::SeqCst);
            Err(Fault::new(FaultKind::Invalid, "a bad command"))
        }
        _ => Ok(Outcome::default()),
    }));
    let propose = |key: &'static str| {
        let cluster = zone.cluster.clone();
        async move { cluster.propose(partition(0), vec![delete_command(key)]).await }
    };
    propose("first").await.unwrap();
    let (good, bad) = tokio::join!(propose("good"), propose("bad"));
    for error in [good.unwrap_err(), bad.unwrap_err()] {
        assert!(error.is_unknown(), "{error:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_caller_takes_nobody_with_it() {
    let zone = zone().await;
    // The group's time is known: the first poll sends.
    zone.cluster.propose(partition(0), vec![delete_command("before")]).await.unwrap();
    *zone.meta.propose_delay.lock() = Duration::from_millis(100);
    let first = zone.cluster.propose(partition(0), vec![delete_command("first")]);
    let others = join_all((0..5).map(|number| {
        let cluster = zone.cluster.clone();
        async move { cluster.propose(partition(0), vec![delete_command(&number.to_string())]).await }
    }));
    tokio::select! {
        biased;
        _ = tokio::time::timeout(Duration::from_millis(30), first) => {}
        _ = std::future::pending::<()>() => {}
    }
    others.await.into_iter().for_each(|result| assert!(result.is_ok()));
    assert_eq!(zone.meta.commands.lock().len(), 7);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batch_deletes_go_once_to_each_partition_and_keep_their_order() {
    let zone = zone().await;
    let echo = |_: GroupId, command: &Command| {
        let Some(command::Op::DeleteObject(delete)) = &command.op else { panic!("{command:?}") };
        assert_eq!(delete.conditions.as_ref().map(|conditions| conditions.bucket_generation), Some(3));
        if delete.key == "7" {
            return Ok(Outcome { refusal: Refusal::PreconditionFailed.into(), ..Default::default() });
        }
        let deleted = Deleted { version: delete.key.clone(), ..Default::default() };
        Ok(Outcome { ok: Some(outcome::Ok::Deleted(deleted)), ..Default::default() })
    };
    *zone.meta.outcome.lock() = Some(Box::new(echo));
    let requests =
        (0..100).map(|n| DeleteObject { key: n.to_string().into(), ..Default::default() }).collect();
    let results = zone.cluster.delete_objects(&bucket(), requests).await;
    assert_eq!(results.len(), 100);
    for (number, result) in results.into_iter().enumerate() {
        match result {
            Ok(deleted) => assert_eq!(deleted.version, number.to_string()),
            Err(error) => assert_eq!((number, error.refusal()), (7, Some(Refusal::PreconditionFailed))),
        }
    }
    assert_eq!(zone.meta.proposals.load(Ordering::SeqCst), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_copy_of_a_bucket_is_healed() {
    let zone = zone().await;
    let pushed = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let seen = pushed.clone();
    *zone.meta.outcome.lock() = Some(Box::new(move |_, command| match &command.op {
        Some(command::Op::PutBucketRow(put)) => {
            assert_eq!(put.bucket.as_ref().map(|bucket| bucket.generation), Some(3));
            seen.store(true, Ordering::SeqCst);
            Ok(Outcome::default())
        }
        Some(command::Op::PutObject(_)) if !seen.load(Ordering::SeqCst) => {
            Ok(Outcome { refusal: Refusal::StaleBucket.into(), ..Default::default() })
        }
        Some(command::Op::PutObject(_)) => {
            let committed = Committed { etag: "e".into(), ..Default::default() };
            Ok(Outcome { ok: Some(outcome::Ok::Committed(committed)), ..Default::default() })
        }
        other => panic!("{other:?}"),
    }));
    let active = Answer { ok: Some(answer::Ok::Bucket(bucket())), ..Default::default() };
    zone.meta.answers.lock().insert(kind(query::Of::GetBucket(GetBucket::default())), active);
    let committed = zone
        .cluster
        .put_object(&bucket(), b"key", Version::default(), Preconditions::default(), vec![])
        .await
        .unwrap();
    assert_eq!(committed.etag, "e");
    let commands = zone.meta.commands.lock();
    let puts = commands.iter().filter(|command| matches!(command.op, Some(command::Op::PutObject(_))));
    let requests: HashSet<_> = puts.map(|put| (&put.request, put.first_attempt_hlc)).collect();
    assert_eq!(requests.len(), 1, "one request, first attempted once");
    assert!(pushed.load(Ordering::SeqCst));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_put_that_could_not_be_healed_may_have_been_done() {
    // The group loses its leader after the refusal, or when the bucket's row was pushed.
    for gone_after_push in [false, true] {
        let zone = quick_zone().await;
        let meta = Arc::downgrade(&zone.meta);
        *zone.meta.outcome.lock() = Some(Box::new(move |_, command| {
            let pushed = matches!(command.op, Some(command::Op::PutBucketRow(_)));
            if pushed == gone_after_push {
                meta.upgrade().unwrap().leader.store(0, Ordering::SeqCst);
            }
            let refusal = if pushed { Refusal::None } else { Refusal::StaleBucket };
            Ok(Outcome { refusal: refusal.into(), ..Default::default() })
        }));
        let active = Answer { ok: Some(answer::Ok::Bucket(bucket())), ..Default::default() };
        zone.meta.answers.lock().insert(kind(query::Of::GetBucket(GetBucket::default())), active);
        let (bucket, none) = (bucket(), Preconditions::default());
        let put = zone.cluster.put_object(&bucket, b"key", Version::default(), none, vec![]);
        let error = put.await.unwrap_err();
        assert!(error.is_unknown(), "a late copy of it may be applied: {error:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn buckets_are_cached_until_the_realm_changes() {
    let zone = zone().await;
    let get = kind(query::Of::GetBucket(GetBucket::default()));
    let reads = || zone.meta.reads.load(Ordering::SeqCst);
    zone.meta
        .answers
        .lock()
        .insert(get.clone(), Answer { refusal: Refusal::NoSuchBucket.into(), ..Default::default() });
    for n in 1..=3 {
        let error = zone.cluster.bucket("b").await.unwrap_err();
        assert_eq!(error.refusal(), Some(Refusal::NoSuchBucket));
        assert_eq!(reads(), n, "what is unknown is always asked for");
    }
    let active = Answer { ok: Some(answer::Ok::Bucket(bucket())), ..Default::default() };
    zone.meta.answers.lock().insert(get, active);
    let before = reads();
    for _ in 0..10 {
        assert_eq!(zone.cluster.bucket("b").await.unwrap().generation, 3);
    }
    assert_eq!(reads(), before + 1);
    zone.meta.realm_applied.fetch_add(1, Ordering::SeqCst);
    let cluster = zone.cluster.clone();
    let begin = Instant::now();
    while reads() == before + 1 {
        assert!(begin.elapsed() < Duration::from_secs(5), "never asked again");
        cluster.bucket("b").await.unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn creating_a_bucket_follows_its_protocol() {
    let zone = zone().await;
    *zone.meta.outcome.lock() = Some(Box::new(|group, command| {
        let mut bucket = bucket();
        match &command.op {
            Some(command::Op::CreateBucket(_)) => bucket.set_state(BucketState::BucketCreating),
            Some(command::Op::SetBucketState(set)) => bucket.set_state(set.to()),
            Some(command::Op::PutBucketRow(_)) => {
                assert_ne!(group, GroupId::REALM);
                return Ok(Outcome::default());
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(group, GroupId::REALM);
        Ok(Outcome { ok: Some(outcome::Ok::Bucket(bucket)), ..Default::default() })
    }));
    let created = zone.cluster.create_bucket("b", AccountId::from_bytes([2; 16]), "").await.unwrap();
    assert_eq!(created.state(), BucketState::BucketActive);
    let steps: Vec<&str> = zone
        .meta
        .commands
        .lock()
        .iter()
        .map(|command| match &command.op {
            Some(command::Op::CreateBucket(_)) => "create",
            Some(command::Op::PutBucketRow(_)) => "push",
            Some(command::Op::SetBucketState(_)) => "activate",
            _ => "?",
        })
        .collect();
    assert_eq!(steps, ["create", "push", "push", "activate"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_map_is_followed_even_when_the_watched_node_dies() {
    let mut zone = zone().await;
    for node in &mut zone.meta_nodes[..2] {
        node.kill().await;
    }
    zone.meta.map.lock().generation = 2;
    let cluster = zone.cluster.clone();
    eventually("the third node tells of the new map", || cluster.map().generation() == 2).await;
    assert!(zone.cluster.now().get() >= fake::NODE_HLC);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_realm_is_refused() {
    let zone = zone().await;
    let mut config = ClientConfig::new(vec![zone.meta_nodes[0].addr.to_string()]);
    config.realm = Some(holdfast_proto::id::RealmId::from_bytes([1; 16]));
    config.connect_deadline = Duration::from_millis(300);
    let error = Cluster::connect(config, CancellationToken::new()).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    let none = Cluster::connect(ClientConfig::new(vec![]), CancellationToken::new()).await.unwrap_err();
    assert!(matches!(none, Error::Invalid { .. }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shut_down_client_ends_its_tasks() {
    let zone = zone().await;
    tokio::time::timeout(Duration::from_secs(5), zone.cluster.shutdown()).await.expect("it ends");
    let error = zone.cluster.propose(partition(0), vec![delete_command("a")]).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
}
