//! A command can be in the log twice, the second time far behind the first: its answer was lost with a leader and it was
//! sent again. Whatever the first answered, the late copy answers the same and changes nothing.

#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use holdfast_proto::id::GroupId;
use holdfast_proto::limits::{DEDUP_WINDOW_MS, REQUEST_AGE_MS_MAX};
use holdfast_proto::meta::{
    Account, Bucket, BucketState, Command, CreateBucket, DeleteObject, GetBucket, GetObject, InitRealm,
    Preconditions, Refusal, SetBucketState, Versioning, answer, command::Op, query::Of,
};
use support::{Machine, PARTITION, bucket, bucket_id, etag, id, put, put_bucket, request_row};

fn partition(generation: u64) -> Machine {
    let mut machine = Machine::new(PARTITION);
    machine.done(put_bucket(bucket(1, generation, Versioning::Off)));
    machine
}

fn put_key(machine: &mut Machine, write: u64) {
    machine.done(Op::PutObject(put(machine.now_ms, write, b"k", 5000)));
}

fn delete(machine: &mut Machine, conditions: Preconditions) -> Command {
    machine.command(Op::DeleteObject(DeleteObject {
        bucket: bucket_id(),
        key: "k".into(),
        conditions: Some(conditions),
        ..DeleteObject::default()
    }))
}

fn is_there(machine: &Machine) -> bool {
    let of = GetObject { bucket: bucket_id(), key: "k".into(), ..GetObject::default() };
    machine.ask(Of::GetObject(of)).refusal() == Refusal::None
}

#[test]
fn a_delete_that_found_nothing_does_not_take_what_came_later() {
    let mut machine = partition(1);
    let delete = delete(&mut machine, Preconditions::default());
    let first = machine.apply(&delete);
    assert_eq!(first.refusal(), Refusal::None);
    put_key(&mut machine, 1);
    machine.now_ms += REQUEST_AGE_MS_MAX + 1_000;
    assert_eq!(machine.apply(&delete), first);
    assert!(is_there(&machine));
    machine.now_ms += DEDUP_WINDOW_MS;
    put_key(&mut machine, 2);
    assert_eq!(machine.apply(&delete).refusal(), Refusal::RequestTooOld);
    assert!(
        is_there(&machine) && !machine.rows.contains_key(&request_row(&delete)),
        "and is forgotten in time"
    );
}

#[test]
fn a_delete_of_a_version_that_was_not_there_neither() {
    let mut machine = partition(1);
    let op = DeleteObject { bucket: bucket_id(), key: "k".into(), version_null: true, ..Default::default() };
    let delete = machine.command(Op::DeleteObject(op));
    let first = machine.apply(&delete);
    put_key(&mut machine, 1);
    assert_eq!(machine.apply(&delete), first);
    assert!(is_there(&machine));
}

#[test]
fn a_condition_that_failed_stays_failed() {
    let mut machine = partition(1);
    put_key(&mut machine, 1);
    let only_second = Preconditions { if_match: vec![etag(2)], ..Preconditions::default() };
    let delete = delete(&mut machine, only_second);
    assert_eq!(machine.apply(&delete).refusal(), Refusal::PreconditionFailed);
    put_key(&mut machine, 2);
    assert_eq!(machine.apply(&delete).refusal(), Refusal::PreconditionFailed);
    assert!(is_there(&machine));
}

/// Those refusals ask the sender to refresh and come again with the same request.
#[test]
fn who_is_told_to_come_again_may() {
    let mut machine = Machine::new(PARTITION);
    let knows_two = Preconditions { bucket_generation: 2, ..Preconditions::default() };
    let delete = delete(&mut machine, knows_two);
    assert_eq!(machine.apply(&delete).refusal(), Refusal::NoSuchBucket);
    machine.done(put_bucket(bucket(1, 1, Versioning::Off)));
    put_key(&mut machine, 1);
    assert_eq!(machine.apply(&delete).refusal(), Refusal::StaleBucket);
    machine.done(put_bucket(bucket(1, 2, Versioning::Off)));
    assert_eq!(machine.apply(&delete).refusal(), Refusal::None);
    assert!(!is_there(&machine));
}

#[test]
fn a_bucket_is_not_deleted_by_a_late_copy() {
    let mut machine = Machine::new(GroupId::REALM);
    let root = Account { id: id(0xac, 0), name: "root".into(), ..Account::default() };
    let root_key = holdfast_proto::meta::AccessKey { id: "ROOT".into(), ..Default::default() };
    let init = InitRealm { realm: id(0xaa, 1), root: Some(root), root_key: Some(root_key) };
    machine.done(Op::InitRealm(init));
    let create = Op::CreateBucket(CreateBucket { bucket: Some(bucket(8, 0, Versioning::Off)) });
    machine.done(create);
    let set = |machine: &mut Machine, from: BucketState, to: BucketState| {
        let op = SetBucketState { bucket: bucket_id(), from: from.into(), to: to.into() };
        machine.command(Op::SetBucketState(op))
    };
    let state = |machine: &Machine| -> BucketState {
        let of = GetBucket { name: "photos".into(), ..GetBucket::default() };
        match machine.answer(Of::GetBucket(of)) {
            answer::Ok::Bucket(bucket) => Bucket::state(&bucket),
            other => panic!("{other:?}"),
        }
    };
    // Refused: the bucket is not active yet. And one that found it done already.
    let early = set(&mut machine, BucketState::BucketActive, BucketState::BucketDeleting);
    assert_eq!(machine.apply(&early).refusal(), Refusal::BucketBusy);
    let delete = set(&mut machine, BucketState::BucketCreating, BucketState::BucketDeleting);
    machine.apply(&delete);
    let again = set(&mut machine, BucketState::BucketActive, BucketState::BucketDeleting);
    let idle = machine.apply(&again);
    assert_eq!((idle.refusal(), state(&machine)), (Refusal::None, BucketState::BucketDeleting));
    let restore = set(&mut machine, BucketState::BucketDeleting, BucketState::BucketActive);
    machine.apply(&restore);
    assert_eq!(machine.apply(&early).refusal(), Refusal::BucketBusy);
    assert_eq!(machine.apply(&again), idle);
    assert_eq!(state(&machine), BucketState::BucketActive);
}
