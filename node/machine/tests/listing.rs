//! Listings of more keys than a merge reads over: seeks, pages, odd delimiters, slots asked for one by one.

#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use holdfast_machine::kv::{KvError, KvRead, Rows};
use holdfast_machine::query;
use holdfast_proto::id::slot_of;
use holdfast_proto::meta::{
    GetObject, ListObjects, ListObjectsPage, ListVersions, Query, Refusal, Versioning, answer, command::Op,
    query::Of,
};
use support::{Machine, PARTITION, bucket, bucket_id, put, put_bucket};

/// Counts the rows that scans give out.
struct Counted<'r> {
    rows: &'r BTreeMap<Vec<u8>, Bytes>,
    read: Cell<usize>,
}

impl KvRead for Counted<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        KvRead::get(self.rows, key)
    }
    fn scan(&self, start: &[u8], end: &[u8]) -> Rows<'_> {
        Box::new(self.rows.scan(start, end).inspect(|_| self.read.set(self.read.get() + 1)))
    }
}

fn filled(slots: u32, keys: &[Vec<u8>]) -> Machine {
    let mut machine = Machine::new(PARTITION);
    machine.done(put_bucket(bucket(slots, 1, Versioning::Off)));
    for key in keys {
        let write = machine.number();
        let now = machine.now_ms;
        // The rules are checked by other tests; here there are many keys.
        let command = machine.command(Op::PutObject(put(now, write, key, 10)));
        machine.apply_unchecked(&command);
    }
    machine
}

fn page(machine: &Machine, of: ListObjects) -> ListObjectsPage {
    match machine.answer(Of::ListObjects(of)) {
        answer::Ok::Objects(page) => page,
        other => panic!("{other:?}"),
    }
}

fn all(machine: &Machine, mut of: ListObjects) -> (Vec<Bytes>, Vec<Bytes>) {
    let (mut keys, mut common) = (vec![], vec![]);
    loop {
        let page = page(machine, of.clone());
        keys.extend(page.keys.into_iter().map(|listed| listed.key));
        common.extend(page.common_prefixes);
        if !page.more {
            return (keys, common);
        }
        of.after = page.last;
    }
}

fn tree() -> Vec<Vec<u8>> {
    let in_folders =
        (0..8).flat_map(|folder| (0..60).map(move |file| format!("d{folder}/f{file:03}").into_bytes()));
    in_folders.chain((0..5).map(|file| format!("top{file}").into_bytes())).collect()
}

#[test]
fn common_prefixes_are_skipped_by_seeking() {
    let machine = filled(4, &tree());
    let counted = Counted { rows: &machine.rows, read: Cell::new(0) };
    let of = ListObjects { bucket: bucket_id(), delimiter: "/".into(), limit: 1000, ..Default::default() };
    let answer = query(&counted, PARTITION, &Query { of: Some(Of::ListObjects(of)) }).unwrap();
    let Some(answer::Ok::Objects(page)) = answer.ok else { panic!() };
    assert_eq!(page.common_prefixes, (0..8).map(|folder| format!("d{folder}/")).collect::<Vec<_>>());
    assert_eq!(page.keys.len(), 5);
    assert!(!page.more);
    assert!(counted.read.get() < 250, "read {} rows of 485", counted.read.get());
}

#[test]
fn pages_of_any_size_give_the_whole() {
    let keys = tree();
    let machine = filled(5, &keys);
    let sorted: BTreeSet<Vec<u8>> = keys.into_iter().collect();
    for limit in [1, 7, 100, 1000] {
        let flat = ListObjects { bucket: bucket_id(), limit, ..Default::default() };
        let (got, common) = all(&machine, flat.clone());
        assert!(common.is_empty() && got.iter().map(AsRef::as_ref).eq(sorted.iter().map(Vec::as_slice)));
        let (top, folders) = all(&machine, ListObjects { delimiter: "/".into(), ..flat.clone() });
        assert_eq!((top.len(), folders.len()), (5, 8));
        let inside = ListObjects { prefix: "d3/".into(), delimiter: "/".into(), ..flat };
        assert_eq!(all(&machine, inside).0.len(), 60);
    }
}

#[test]
fn slots_are_listed_one_by_one() {
    let keys = tree();
    let machine = filled(4, &keys);
    for slot in 0..4u32 {
        let of =
            ListObjects { bucket: bucket_id(), slots: vec![slot, slot], limit: 1000, ..Default::default() };
        let mine = keys.iter().filter(|key| u32::from(slot_of(key, 4).get()) == slot).count();
        assert_eq!(page(&machine, of).keys.len(), mine);
    }
}

#[test]
fn a_marker_in_a_folder_does_not_bring_the_folder_back() {
    let machine = filled(4, &tree());
    let after = |after: &'static str| {
        let of = ListObjects {
            bucket: bucket_id(),
            delimiter: "/".into(),
            after: after.into(),
            limit: 1000,
            ..Default::default()
        };
        page(&machine, of).common_prefixes.first().cloned()
    };
    assert_eq!(after("d2"), Some("d2/".into()));
    assert_eq!(after("d2/"), Some("d3/".into()));
    assert_eq!(after("d2/f000"), Some("d3/".into()));
    assert_eq!(after("d7/x"), None);
}

#[test]
fn keys_of_ff_bytes_list_and_page() {
    let keys: Vec<Vec<u8>> = (1..=6).map(|length| vec![0xff; length]).collect();
    let machine = filled(2, &keys);
    let of = ListObjects { bucket: bucket_id(), limit: 2, ..Default::default() };
    assert_eq!(all(&machine, of.clone()).0.len(), 6);
    let delimited = ListObjects { delimiter: vec![0xff].into(), limit: 1, ..of };
    let (keys, common) = all(&machine, delimited.clone());
    assert_eq!((keys.len(), common), (0, vec![Bytes::from(vec![0xff])]));
    assert!(
        page(&machine, ListObjects { after: vec![0xff; 3].into(), ..delimited }).common_prefixes.is_empty()
    );
}

#[test]
fn a_limit_of_nothing_is_an_empty_last_page() {
    let machine = filled(2, &tree());
    let page = page(&machine, ListObjects { bucket: bucket_id(), limit: 0, ..Default::default() });
    assert!(page.keys.is_empty() && !page.more);
}

#[test]
fn no_bucket_no_listing() {
    let machine = Machine::new(PARTITION);
    let objects = ListObjects { bucket: bucket_id(), limit: 1, ..Default::default() };
    let versions = ListVersions { bucket: bucket_id(), limit: 1, ..Default::default() };
    let object = GetObject { bucket: bucket_id(), key: "a".into(), ..Default::default() };
    for of in [Of::ListObjects(objects), Of::ListVersions(versions), Of::GetObject(object)] {
        assert_eq!(machine.ask(of).refusal(), Refusal::NoSuchBucket);
    }
}
