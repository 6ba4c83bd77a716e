//! A bucket's copy in a partition from its first push to its end, and how long requests are remembered.

#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use std::collections::BTreeSet;

use bytes::Bytes;
use holdfast_machine::{FEATURE_LEVEL, Halt, admit, apply, kv::Overlay, query};
use holdfast_proto::hlc::Hlc;
use holdfast_proto::id::{GroupId, slot_of};
use holdfast_proto::limits::{DEDUP_WINDOW_MS, REQUEST_AGE_MS_MAX, WRITE_AGE_MS_MAX};
use holdfast_proto::meta::{
    Bucket, BucketState, ClearMissed, Command, CountBucket, CreateUpload, DeleteObject, DropBucketRow,
    DueGarbage, FreeGarbage, ListMissed, ListUploads, MissedRows, MissedShard, OwnerOfWrite, PutPart, Query,
    Refusal, Upload, Versioning, WriteOwner, answer, command::Op, outcome, query::Of, write_owner::Owner,
};
use support::{Machine, PARTITION, bucket, bucket_id, id, part, put, put_bucket};

fn state(state: BucketState, generation: u64) -> Bucket {
    Bucket { state: state.into(), ..bucket(1, generation, Versioning::Off) }
}

fn put_op(machine: &mut Machine, key: &str, size: u64) -> Op {
    let write = machine.number();
    Op::PutObject(put(machine.now_ms, write, key.as_bytes(), size))
}

fn drop_row(generation: u64) -> Op {
    Op::DropBucketRow(DropBucketRow { bucket: bucket_id(), generation })
}

#[test]
fn a_copy_only_goes_forward() {
    let mut machine = Machine::new(PARTITION);
    let put_one = put_op(&mut machine, "k", 3);
    assert_eq!(machine.refusal(put_one), Refusal::NoSuchBucket);
    machine.done(put_bucket(state(BucketState::BucketCreating, 1)));
    machine.done(put_bucket(state(BucketState::BucketActive, 1)));
    machine.done(put_bucket(state(BucketState::BucketCreating, 1)));
    machine.done(put_bucket(bucket(1, 2, Versioning::Enabled)));
    machine.done(put_bucket(bucket(1, 2, Versioning::Enabled)));
    assert_eq!(machine.refusal(put_bucket(state(BucketState::BucketActive, 1))), Refusal::StaleBucket);
    let same_generation = put_bucket(bucket(1, 2, Versioning::Suspended));
    assert_eq!(machine.refusal(same_generation), Refusal::StaleBucket);
    let other_slots = put_bucket(bucket(2, 3, Versioning::Enabled));
    assert_eq!(machine.refusal(other_slots), Refusal::StaleBucket);
    assert_eq!(machine.refusal(put_bucket(bucket(0, 1, Versioning::Off))), Refusal::Malformed);
}

#[test]
fn a_request_that_knows_more_than_the_copy_is_sent_back() {
    let mut machine = Machine::new(PARTITION);
    machine.done(put_bucket(bucket(1, 2, Versioning::Off)));
    let mut op = put(machine.now_ms, 1, b"k", 3);
    op.conditions.get_or_insert_default().bucket_generation = 3;
    assert_eq!(machine.refusal(Op::PutObject(op.clone())), Refusal::StaleBucket);
    op.conditions.get_or_insert_default().bucket_generation = 2;
    machine.done(Op::PutObject(op));
}

#[test]
fn deleting_refuses_writes_and_can_be_taken_back() {
    let mut machine = Machine::new(PARTITION);
    machine.done(put_bucket(state(BucketState::BucketActive, 1)));
    let first = put_op(&mut machine, "k", 3);
    machine.done(first);
    assert_eq!(machine.refusal(drop_row(1)), Refusal::BucketBusy, "not deleting");
    machine.done(put_bucket(state(BucketState::BucketDeleting, 2)));
    let second = put_op(&mut machine, "j", 3);
    assert_eq!(machine.refusal(second), Refusal::BucketBusy);
    assert_eq!(machine.refusal(drop_row(1)), Refusal::StaleBucket);
    assert_eq!(machine.refusal(drop_row(2)), Refusal::BucketNotEmpty);
    machine.done(put_bucket(state(BucketState::BucketActive, 3)));
    assert_eq!(machine.refusal(drop_row(2)), Refusal::StaleBucket, "taken back");
    let delete = DeleteObject { bucket: bucket_id(), key: "k".into(), ..DeleteObject::default() };
    machine.done(Op::DeleteObject(delete));
}

/// The sender of a refused commit deletes the body: a copy of it that comes late must not commit what is gone.
#[test]
fn a_refused_commit_is_refused_for_ever() {
    let mut machine = Machine::new(PARTITION);
    machine.done(put_bucket(bucket(1, 1, Versioning::Off)));
    let first = put_op(&mut machine, "k", 5000);
    machine.done(first);
    let write = machine.number();
    let mut op = put(machine.now_ms, write, b"k", 5000);
    op.conditions.get_or_insert_default().if_none_match = vec!["*".into()];
    let refused = machine.command(Op::PutObject(op));
    assert_eq!(machine.apply(&refused).refusal(), Refusal::PreconditionFailed);
    machine.done(Op::DeleteObject(DeleteObject {
        bucket: bucket_id(),
        key: "k".into(),
        ..Default::default()
    }));
    assert_eq!(machine.apply(&refused).refusal(), Refusal::PreconditionFailed, "a late copy");
    machine.now_ms += DEDUP_WINDOW_MS + 2_000;
    let again = put_op(&mut machine, "k", 5000);
    machine.done(again);
    assert_eq!(
        machine.apply(&refused).refusal(),
        Refusal::RequestTooOld,
        "the fence is forgotten after that"
    );
}

#[test]
fn dropping_frees_uploads_and_late_pushers_do_not_bring_it_back() {
    let mut machine = Machine::new(PARTITION);
    machine.done(put_bucket(state(BucketState::BucketActive, 1)));
    let upload =
        CreateUpload { bucket: bucket_id(), key: "k".into(), random: 1, upload: Some(Upload::default()) };
    let Some(outcome::Ok::Upload(upload)) = machine.done(Op::CreateUpload(upload)).ok else { panic!() };
    let op = PutPart {
        bucket: bucket_id(),
        key: "k".into(),
        upload,
        part: 1,
        row: Some(part(900, 5000)),
        begin_hlc: Hlc::from_ms(machine.now_ms).get(),
        missed: vec![],
    };
    machine.done(Op::PutPart(op));
    let late = machine.command(put_bucket(state(BucketState::BucketActive, 1)));
    machine.done(put_bucket(state(BucketState::BucketDeleting, 2)));
    machine.done(drop_row(2));
    machine.done(drop_row(2));
    assert_eq!(machine.apply(&late).refusal(), Refusal::NoSuchBucket);
    machine.now_ms += DEDUP_WINDOW_MS + 2_000;
    assert_eq!(machine.apply(&late).refusal(), Refusal::RequestTooOld);
    let garbage = DueGarbage { due_before: u64::MAX, limit: 9, after: Bytes::new() };
    let answer::Ok::Garbage(page) = machine.answer(Of::DueGarbage(garbage)) else { panic!() };
    assert_eq!(page.keys.len(), 1);
    machine.done(Op::FreeGarbage(FreeGarbage { rows: page.keys }));
    let families: BTreeSet<&[u8]> = machine.rows.keys().map(|key| &key[..4]).collect();
    assert!(families.iter().all(|family| matches!(*family, b"sys|" | b"req|")), "{families:?}");
}

/// A deleter is late: it drops the copy here when the bucket has been put back in the realm.
#[test]
fn a_restored_bucket_comes_back_to_where_it_was_dropped() {
    let mut machine = Machine::new(PARTITION);
    machine.done(put_bucket(state(BucketState::BucketDeleting, 2)));
    machine.done(drop_row(2));
    assert_eq!(machine.refusal(put_bucket(state(BucketState::BucketDeleting, 2))), Refusal::NoSuchBucket);
    machine.done(put_bucket(state(BucketState::BucketActive, 3)));
    let put = put_op(&mut machine, "k", 3);
    machine.done(put);
    assert_eq!(machine.refusal(drop_row(2)), Refusal::StaleBucket, "the late deleter, once more");
    assert_eq!(machine.refusal(put_bucket(state(BucketState::BucketDeleting, 2))), Refusal::NoSuchBucket);
}

#[test]
fn each_drop_is_marked_as_long_as_its_late_pushers_may_come() {
    let mut machine = Machine::new(PARTITION);
    let minutes = |count: u64| count * 60_000;
    machine.done(put_bucket(state(BucketState::BucketDeleting, 2)));
    machine.done(drop_row(2));
    // Dropped again ten minutes later, and once more without having been back in between.
    machine.done(put_bucket(state(BucketState::BucketActive, 3)));
    machine.now_ms += minutes(10);
    machine.done(put_bucket(state(BucketState::BucketDeleting, 4)));
    machine.done(drop_row(4));
    machine.now_ms += minutes(6);
    assert_eq!(machine.refusal(put_bucket(state(BucketState::BucketActive, 3))), Refusal::NoSuchBucket);
    machine.done(drop_row(6));
    assert_eq!(machine.refusal(put_bucket(state(BucketState::BucketActive, 5))), Refusal::NoSuchBucket);
    machine.now_ms += minutes(10);
    assert_eq!(machine.refusal(put_bucket(state(BucketState::BucketActive, 5))), Refusal::NoSuchBucket);
    let marked = |machine: &Machine| machine.rows.keys().any(|key| key.starts_with(b"drp|"));
    machine.now_ms += minutes(6);
    // Any command prunes.
    machine.refusal(put_bucket(bucket(0, 1, Versioning::Off)));
    assert!(!marked(&machine), "forgotten in the end");
}

#[test]
fn uploads_do_not_keep_a_bucket() {
    let mut machine = Machine::new(PARTITION);
    machine.done(put_bucket(state(BucketState::BucketActive, 1)));
    let upload =
        CreateUpload { bucket: bucket_id(), key: "k".into(), random: 1, upload: Some(Upload::default()) };
    machine.done(Op::CreateUpload(upload));
    let answer::Ok::Counters(count) = machine.answer(Of::CountBucket(CountBucket { bucket: bucket_id() }))
    else {
        panic!()
    };
    assert_eq!((count.uploads, count.versions + count.markers), (1, 0));
    let of = ListUploads { bucket: bucket_id(), limit: 9, ..ListUploads::default() };
    let answer::Ok::Uploads(page) = machine.answer(Of::ListUploads(of)) else { panic!() };
    assert_eq!(page.uploads.len(), 1);
}

#[test]
fn requests_are_remembered_as_long_as_they_are_accepted() {
    let mut machine = Machine::new(PARTITION);
    machine.done(put_bucket(state(BucketState::BucketActive, 1)));
    let op = put_op(&mut machine, "k", 5000);
    machine.done(op);
    let delete = DeleteObject { bucket: bucket_id(), key: "k".into(), ..DeleteObject::default() };
    let delete = machine.command(Op::DeleteObject(delete));
    let first = machine.apply(&delete);
    machine.now_ms += REQUEST_AGE_MS_MAX + 1000;
    assert_eq!(machine.apply(&delete), first, "old, but still remembered");
    machine.now_ms += DEDUP_WINDOW_MS;
    let tick = put_op(&mut machine, "other", 1);
    machine.done(tick);
    assert_eq!(machine.apply(&delete).refusal(), Refusal::RequestTooOld);
    assert!(!machine.rows.keys().any(|key| key.starts_with(b"req|")), "pruned");
    let ahead = Command { first_attempt_hlc: Hlc::from_ms(machine.now_ms + DEDUP_WINDOW_MS).get(), ..delete };
    assert_eq!(machine.apply(&ahead).refusal(), Refusal::Malformed);
}

#[test]
fn many_old_requests_are_pruned_a_bounded_number_at_a_time() {
    let mut machine = Machine::new(PARTITION);
    machine.done(put_bucket(bucket(1, 1, Versioning::Enabled)));
    for _ in 0..1300 {
        let delete = DeleteObject { bucket: bucket_id(), key: "k".into(), ..DeleteObject::default() };
        let command = machine.command(Op::DeleteObject(delete));
        machine.apply_unchecked(&command);
        machine.now_ms += 10;
    }
    let requests = |machine: &Machine| machine.rows.keys().filter(|key| key.starts_with(b"req|")).count();
    assert_eq!(requests(&machine), 1300);
    machine.now_ms += DEDUP_WINDOW_MS + 5_000;
    let mut left = vec![];
    for _ in 0..4 {
        let tick = put_op(&mut machine, "k", 1);
        machine.done(tick);
        left.push(requests(&machine));
    }
    assert!(left.is_sorted_by(|a, b| a >= b) && left[0] >= 700 && left[3] == 0, "{left:?}");
}

#[test]
fn writes_too_old_or_stamped_late_are_refused() {
    let mut machine = Machine::new(PARTITION);
    machine.done(put_bucket(state(BucketState::BucketActive, 1)));
    let begun_ms = machine.now_ms - WRITE_AGE_MS_MAX - 1;
    assert_eq!(machine.refusal(Op::PutObject(put(begun_ms, 1, b"k", 5000))), Refusal::WriteTooOld);
    let op = put(machine.now_ms, 2, b"k", 5000);
    let mut command = machine.command(Op::PutObject(op));
    command.first_attempt_hlc = Hlc::from_ms(machine.now_ms - REQUEST_AGE_MS_MAX - 1).get();
    assert_eq!(machine.apply(&command).refusal(), Refusal::RequestTooOld);
}

#[test]
fn one_write_cannot_be_two_objects() {
    let mut machine = Machine::new(PARTITION);
    machine.done(put_bucket(state(BucketState::BucketActive, 1)));
    let now = machine.now_ms;
    machine.done(Op::PutObject(put(now, 1, b"a", 5000)));
    assert_eq!(machine.refusal(Op::PutObject(put(now, 1, b"b", 5000))), Refusal::Malformed);
}

#[test]
fn missed_shards_are_listed_until_repaired_or_freed() {
    let mut machine = Machine::new(PARTITION);
    machine.done(put_bucket(state(BucketState::BucketActive, 1)));
    let shards = vec![MissedShard { stripe: 0, index: 5 }, MissedShard { stripe: 1, index: 5 }];
    for (write, key) in [(1, b"a"), (2, b"b"), (3, b"c")] {
        let mut op = put(machine.now_ms, write, key, 5000);
        op.missed = shards.clone();
        machine.done(Op::PutObject(op));
    }
    let list = |machine: &Machine, after: Bytes| -> MissedRows {
        match machine.answer(Of::ListMissed(ListMissed { limit: 2, after })) {
            answer::Ok::Missed(rows) => rows,
            other => panic!("{other:?}"),
        }
    };
    let page = list(&machine, Bytes::new());
    assert_eq!((page.rows.len(), page.total), (2, 3));
    assert_eq!(list(&machine, page.last).rows.len(), 1);
    let clear = |shards: &[MissedShard]| {
        let write = id(0xd0, 1);
        Op::ClearMissed(ClearMissed { bucket: bucket_id(), slot: 0, write, shards: shards.to_vec() })
    };
    machine.done(clear(&shards[..1]));
    assert_eq!(list(&machine, Bytes::new()).total, 3);
    machine.done(clear(&shards[1..]));
    machine.done(clear(&shards));
    assert_eq!(list(&machine, Bytes::new()).total, 2);
    let overwrite = put(machine.now_ms, 4, b"b", 10);
    machine.done(Op::PutObject(overwrite));
    let garbage = DueGarbage { due_before: u64::MAX, limit: 9, after: Bytes::new() };
    let answer::Ok::Garbage(page) = machine.answer(Of::DueGarbage(garbage)) else { panic!() };
    machine.done(Op::FreeGarbage(FreeGarbage { rows: page.keys.clone() }));
    machine.done(Op::FreeGarbage(FreeGarbage { rows: page.keys }));
    assert_eq!(list(&machine, Bytes::new()).total, 1);
    let owner = |write| -> WriteOwner {
        let slot = slot_of(b"b", 1).get().into();
        match machine.answer(Of::OwnerOfWrite(OwnerOfWrite {
            bucket: bucket_id(),
            slot,
            write: id(0xd0, write),
        })) {
            answer::Ok::Owner(owner) => owner,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(owner(4).owner, Some(Owner::Key("b".into())));
    assert_eq!(owner(2).owner, Some(Owner::Fenced(true)), "kept for repeats of its PUT");
    assert_eq!(owner(99).owner, None);
}

#[test]
fn garbage_is_due_slot_by_slot() {
    let mut machine = Machine::new(PARTITION);
    machine.done(put_bucket(bucket(4, 1, Versioning::Off)));
    for round in 0..3u64 {
        for key in ["a", "b", "c", "d", "e"] {
            let op = put_op(&mut machine, key, 5000);
            machine.done(op);
        }
        machine.now_ms = support::START_MS + (round + 1) * 1000;
    }
    let due = |ms: u64| {
        let mut of = DueGarbage { due_before: Hlc::from_ms(ms).get(), limit: 2, after: Bytes::new() };
        let mut found = 0;
        loop {
            let answer::Ok::Garbage(page) = machine.answer(Of::DueGarbage(of.clone())) else { panic!() };
            found += page.keys.len();
            if page.last.is_empty() {
                return found;
            }
            of.after = page.last;
        }
    };
    assert_eq!(due(support::START_MS), 0);
    assert_eq!(due(support::START_MS + 1999), 5);
    assert_eq!(due(support::START_MS + 2999), 10);
}

#[test]
fn what_is_not_known_halts_and_what_is_malformed_is_refused() {
    let rows = std::collections::BTreeMap::new();
    let future = Command { feature_level: FEATURE_LEVEL + 1, ..Command::default() };
    for command in [Command::default(), future] {
        assert!(admit(PARTITION, FEATURE_LEVEL, &command).is_err());
        let halt = apply(&mut Overlay::new(&rows), PARTITION, &command);
        assert!(matches!(halt, Err(Halt::UnknownCommand(_))));
    }
    let mut machine = Machine::new(PARTITION);
    let elsewhere = machine.command(put_bucket(bucket(1, 1, Versioning::Off)));
    assert!(admit(GroupId::REALM, FEATURE_LEVEL, &elsewhere).is_err());
    assert_eq!(admit(PARTITION, 1, &elsewhere), Ok(1));
    machine.group = GroupId::REALM;
    assert_eq!(machine.apply(&elsewhere).refusal(), Refusal::Malformed);
    machine.group = PARTITION;
    machine.done(put_bucket(bucket(1, 1, Versioning::Off)));
    let mut long = put(machine.now_ms, 1, &[b'a'; 1025], 3);
    assert_eq!(machine.refusal(Op::PutObject(long.clone())), Refusal::Malformed);
    long.key = Bytes::new();
    assert_eq!(machine.refusal(Op::PutObject(long.clone())), Refusal::Malformed);
    (long.key, long.bucket) = ("k".into(), "b".into());
    assert_eq!(machine.refusal(Op::PutObject(long)), Refusal::Malformed);
    let answer = query(&machine.rows, PARTITION, &Query { of: None }).unwrap();
    assert_eq!(answer.refusal(), Refusal::Malformed);
}
