//! Accounts, access keys and buckets by name.

#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use holdfast_proto::id::GroupId;
use holdfast_proto::meta::{
    AccessKey, Account, Bucket, BucketState, BucketsPage, CreateAccount, CreateBucket, DropBucket,
    GetAccessKey, GetAccount, GetBucket, InitRealm, ListAccessKeys, ListBuckets, Outcome, Pair, PutAccessKey,
    Refusal, SetBucketConfig, SetBucketState, Versioning, answer, command::Op, outcome, query::Of,
};
use support::{Machine, id};

fn realm() -> Machine {
    let mut machine = Machine::new(GroupId::REALM);
    let init = init(1);
    machine.done(init.clone());
    machine.done(init);
    machine
}

fn init(realm: u64) -> Op {
    Op::InitRealm(InitRealm {
        realm: id(0xaa, realm),
        root: Some(Account { id: id(0xac, 1), name: "root".into(), ..Account::default() }),
        root_key: Some(AccessKey {
            id: "ROOT".into(),
            sealed_secret: "sealed".into(),
            ..AccessKey::default()
        }),
    })
}

fn create(number: u64, name: &str, owner: u64) -> Op {
    let bucket = Bucket {
        id: id(0xb0, number),
        name: name.into(),
        owner: id(0xac, owner),
        slots: 8,
        ..Bucket::default()
    };
    Op::CreateBucket(CreateBucket { bucket: Some(bucket) })
}

fn set(number: u64, from: BucketState, to: BucketState) -> Op {
    Op::SetBucketState(SetBucketState { bucket: id(0xb0, number), from: from.into(), to: to.into() })
}

fn bucket_of(outcome: Outcome) -> Bucket {
    match outcome.ok {
        Some(outcome::Ok::Bucket(bucket)) => bucket,
        other => panic!("{other:?}: {}", outcome.detail),
    }
}

const CREATING: BucketState = BucketState::BucketCreating;
const ACTIVE: BucketState = BucketState::BucketActive;
const DELETING: BucketState = BucketState::BucketDeleting;

#[test]
fn a_realm_starts_once_with_its_root() {
    let mut machine = realm();
    assert_eq!(machine.refusal(init(2)), Refusal::AlreadyExists);
    let answer::Ok::Account(root) = machine.answer(Of::GetAccount(GetAccount { id: id(0xac, 1) })) else {
        panic!()
    };
    assert!(root.root && root.created_ms == support::START_MS);
    let answer::Ok::AccessKey(key) = machine.answer(Of::GetAccessKey(GetAccessKey { id: "ROOT".into() }))
    else {
        panic!()
    };
    assert_eq!((key.account, key.sealed_secret), (id(0xac, 1), "sealed".into()));
    assert_eq!(machine.ask(Of::GetAccessKey(GetAccessKey { id: "NO".into() })).refusal(), Refusal::NotFound);
}

#[test]
fn keys_belong_to_accounts() {
    let mut machine = realm();
    let key = |id_: &str, account| {
        let key = AccessKey { id: id_.into(), account: id(0xac, account), ..AccessKey::default() };
        Op::PutAccessKey(PutAccessKey { key: Some(key) })
    };
    assert_eq!(machine.refusal(key("A", 2)), Refusal::NotFound);
    let account = Account { id: id(0xac, 2), name: "two".into(), ..Account::default() };
    let create = Op::CreateAccount(CreateAccount { account: Some(account) });
    let command = machine.command(create.clone());
    let first = machine.apply(&command);
    assert_eq!(machine.apply(&command), first);
    assert_eq!(machine.refusal(create), Refusal::AlreadyExists);
    machine.done(key("A", 2));
    machine.done(key("B", 2));
    assert_eq!(machine.refusal(key("ROOT", 2)), Refusal::AlreadyExists, "another account's");
    let answer::Ok::AccessKeys(keys) =
        machine.answer(Of::ListAccessKeys(ListAccessKeys { account: id(0xac, 2) }))
    else {
        panic!()
    };
    assert_eq!(keys.keys.iter().map(|key| key.id.as_str()).collect::<Vec<_>>(), ["A", "B"]);
}

#[test]
fn a_bucket_is_created_once() {
    let mut machine = realm();
    let made = bucket_of(machine.done(create(1, "photos", 1)));
    assert_eq!((made.state(), made.generation), (CREATING, 1));
    let again = bucket_of(machine.done(create(2, "photos", 1)));
    assert_eq!(again, made, "whoever repeats it goes on with the same bucket");
    assert_eq!(machine.refusal(create(3, "photos", 2)), Refusal::BucketExists);
    let active = bucket_of(machine.done(set(1, CREATING, ACTIVE)));
    assert_eq!(active.generation, 1, "copies were written before this");
    assert_eq!(machine.refusal(create(2, "photos", 1)), Refusal::BucketExistsOwned);
    assert_eq!(machine.refusal(create(1, "other", 1)), Refusal::AlreadyExists, "its id is taken");
    assert_eq!(machine.refusal(create(4, "ab", 1)), Refusal::Malformed);
}

#[test]
fn deletion_is_a_state_that_can_be_taken_back() {
    let mut machine = realm();
    machine.done(create(1, "photos", 1));
    assert_eq!(machine.refusal(set(1, ACTIVE, DELETING)), Refusal::BucketBusy);
    machine.done(set(1, CREATING, ACTIVE));
    let deleting = bucket_of(machine.done(set(1, ACTIVE, DELETING)));
    assert_eq!(deleting.generation, 2);
    assert_eq!(bucket_of(machine.done(set(1, ACTIVE, DELETING))), deleting, "already so: anyone may go on");
    assert_eq!(machine.refusal(create(2, "photos", 1)), Refusal::BucketBusy);
    let restored = bucket_of(machine.done(set(1, DELETING, ACTIVE)));
    assert_eq!((restored.state(), restored.generation), (ACTIVE, 3));
    let drop = |generation| Op::DropBucket(DropBucket { bucket: id(0xb0, 1), generation });
    assert_eq!(machine.refusal(drop(3)), Refusal::BucketBusy);
    machine.done(set(1, ACTIVE, DELETING));
    assert_eq!(machine.refusal(drop(3)), Refusal::StaleGeneration);
    let command = machine.command(drop(4));
    let first = machine.apply(&command);
    assert_eq!((first.refusal(), machine.apply(&command)), (Refusal::None, first));
    assert_eq!(machine.refusal(drop(4)), Refusal::NoSuchBucket);
    let by_name = GetBucket { name: "photos".into(), ..GetBucket::default() };
    assert_eq!(machine.ask(Of::GetBucket(by_name)).refusal(), Refusal::NoSuchBucket);
    machine.done(create(2, "photos", 2));
}

#[test]
fn configuration_is_compared_and_swapped() {
    let mut machine = realm();
    machine.done(create(1, "photos", 1));
    let config = |generation, versioning: Versioning| {
        let bucket = Bucket {
            id: id(0xb0, 1),
            name: "renamed".into(),
            versioning: versioning.into(),
            tags: vec![Pair { name: "a".into(), value: "b".into() }],
            ..Bucket::default()
        };
        Op::SetBucketConfig(SetBucketConfig { bucket: Some(bucket), expected_generation: generation })
    };
    assert_eq!(machine.refusal(config(1, Versioning::Enabled)), Refusal::BucketBusy);
    machine.done(set(1, CREATING, ACTIVE));
    let changed = bucket_of(machine.done(config(1, Versioning::Enabled)));
    assert_eq!((changed.generation, changed.name.as_str(), changed.tags.len()), (2, "photos", 1));
    assert_eq!(machine.refusal(config(1, Versioning::Suspended)), Refusal::StaleGeneration);
    assert_eq!(machine.refusal(config(2, Versioning::Off)), Refusal::Malformed);
    let by_id = GetBucket { id: id(0xb0, 1), ..GetBucket::default() };
    let answer::Ok::Bucket(found) = machine.answer(Of::GetBucket(by_id)) else { panic!() };
    assert_eq!(found, changed);
}

#[test]
fn buckets_list_by_owner_in_the_order_of_their_names() {
    let mut machine = realm();
    for (number, name, owner) in [(1, "bbb", 1), (2, "aaa", 1), (3, "abc", 2), (4, "ab-1", 1), (5, "ab.2", 1)]
    {
        machine.done(create(number, name, owner));
    }
    machine.done(set(1, CREATING, ACTIVE));
    let page = |of: ListBuckets| -> BucketsPage {
        match machine.answer(Of::ListBuckets(of)) {
            answer::Ok::Buckets(page) => page,
            other => panic!("{other:?}"),
        }
    };
    let names = |of: ListBuckets| page(of).buckets.into_iter().map(|bucket| bucket.name).collect::<Vec<_>>();
    let all = ListBuckets { limit: 10, ..ListBuckets::default() };
    let mine = ListBuckets { owner: id(0xac, 1), ..all.clone() };
    assert_eq!(names(all.clone()), ["aaa", "ab-1", "ab.2", "abc", "bbb"]);
    assert_eq!(names(mine.clone()), ["aaa", "ab-1", "ab.2", "bbb"]);
    assert_eq!(names(ListBuckets { prefix: "ab".into(), ..mine.clone() }), ["ab-1", "ab.2"]);
    assert_eq!(names(ListBuckets { after: "ab-1".into(), ..mine.clone() }), ["ab.2", "bbb"]);
    assert_eq!(names(ListBuckets { state: ACTIVE.into(), ..mine.clone() }), ["bbb"]);
    let first = page(ListBuckets { limit: 3, ..mine });
    assert!(first.more && first.buckets.len() == 3);
}
