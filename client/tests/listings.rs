//! Pages of a listing over two fake partitions, against one sorted set of all keys.
#![allow(clippy::unwrap_used, reason = "helpers of tests, too")]

mod fake;

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use fake::{FakeZone, copies, rs};
use holdfast_proto::id::{BucketId, GroupId, Slot, slot_entry, slot_of};
use holdfast_proto::meta::{
    Answer, Bucket, BucketState, ListObjects, ListObjectsPage, ListUploads, ListUploadsPage, ListedKey,
    ListedUpload, Query, answer, query,
};
use rand::Rng;
use rand::seq::IndexedRandom;

const SLOTS: u16 = 8;

fn bucket() -> Bucket {
    Bucket {
        id: Bytes::from_static(&[7; 16]),
        name: "b".into(),
        state: BucketState::BucketActive.into(),
        generation: 1,
        slots: SLOTS.into(),
        ..Default::default()
    }
}

/// A key, or the common prefix that it rolls up into.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    name: Vec<u8>,
    is_prefix: bool,
}

fn roll_up(key: &[u8], prefix: &[u8], delimiter: &[u8]) -> Entry {
    let rest = &key[prefix.len()..];
    let at = (!delimiter.is_empty())
        .then(|| rest.windows(delimiter.len()).position(|window| window == delimiter))
        .flatten();
    match at {
        Some(at) => Entry { name: key[..prefix.len() + at + delimiter.len()].to_vec(), is_prefix: true },
        None => Entry { name: key.to_vec(), is_prefix: false },
    }
}

/// What S3 shows of `keys`: entries after `after`, at most `limit`, and whether there are more.
fn listed<'k>(
    keys: impl Iterator<Item = &'k Vec<u8>>,
    prefix: &[u8],
    delimiter: &[u8],
    after: &[u8],
    limit: usize,
) -> (Vec<Entry>, bool) {
    let all: BTreeSet<Entry> = keys
        .filter(|key| key.starts_with(prefix) && key.as_slice() > after)
        .map(|key| roll_up(key, prefix, delimiter))
        // A marker inside a common prefix does not bring that prefix back.
        .filter(|entry| !(entry.is_prefix && after.starts_with(&entry.name)))
        .collect();
    let more = limit > 0 && all.len() > limit;
    (all.into_iter().take(limit).collect(), more)
}

fn page_of(entries: Vec<Entry>, more: bool) -> ListObjectsPage {
    let mut page = ListObjectsPage { more, ..Default::default() };
    for entry in entries {
        page.last = entry.name.clone().into();
        match entry.is_prefix {
            true => page.common_prefixes.push(entry.name.into()),
            false => page.keys.push(ListedKey { key: entry.name.into(), row: None }),
        }
    }
    page
}

/// The partition that owns a slot in the fake zone.
fn owner(slot: u32) -> u64 {
    (slot_entry(BucketId::from_bytes([7; 16]), Slot::new(slot as u16)) % 2) as u64
}

fn partition_page(keys: &BTreeSet<Vec<u8>>, group: GroupId, list: &ListObjects) -> ListObjectsPage {
    assert!(!list.slots.is_empty(), "slots are named");
    assert!(
        list.slots.iter().all(|slot| owner(*slot) == group.number()),
        "{group} is asked for its own slots"
    );
    let mine = keys.iter().filter(|key| list.slots.contains(&u32::from(slot_of(key, SLOTS).get())));
    let (entries, more) = listed(mine, &list.prefix, &list.delimiter, &list.after, list.limit as usize);
    page_of(entries, more)
}

fn random_keys(count: usize) -> BTreeSet<Vec<u8>> {
    let mut rng = rand::rng();
    let words: [&[u8]; 7] = [b"a", b"b", b"/", b"//", b"\xff", b"\x00", b"photo"];
    (0..count)
        .map(|_| {
            (0..rng.random_range(1..6))
                .flat_map(|_| words.choose(&mut rand::rng()).unwrap().to_vec())
                .collect()
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_over_partitions_are_the_listing_of_one_set() {
    let zone = FakeZone::start(3, 3, rs(2, 1), copies(3)).await;
    for round in 0..30 {
        let keys = Arc::new(random_keys(if round % 3 == 0 { 30 } else { 600 }));
        let theirs = keys.clone();
        *zone.meta.asked.lock() = Some(Box::new(move |group, query: &Query| {
            let Some(query::Of::ListObjects(list)) = &query.of else { panic!("{query:?}") };
            let page = partition_page(&theirs, group, list);
            Answer { ok: Some(answer::Ok::Objects(page)), ..Default::default() }
        }));
        for (prefix, delimiter) in
            [("", ""), ("", "/"), ("a", "/"), ("photo", ""), ("/", "/"), ("a", "//"), ("nothing", "/")]
        {
            for limit in [1, 7, 100, 1000] {
                let mut after = Vec::new();
                let mut pages = 0;
                loop {
                    let request = ListObjects {
                        prefix: prefix.into(),
                        delimiter: delimiter.into(),
                        after: after.clone().into(),
                        limit,
                        ..Default::default()
                    };
                    let page = zone.cluster.list_objects(&bucket(), request).await.unwrap();
                    let (entries, more) =
                        listed(keys.iter(), prefix.as_bytes(), delimiter.as_bytes(), &after, limit as usize);
                    let expected = page_of(entries, more);
                    assert_eq!(page, expected, "{prefix:?} {delimiter:?} after {after:?} limit {limit}");
                    pages += 1;
                    // Small pages of a large bucket: the first few tell all.
                    if !page.more || pages == 12 {
                        break;
                    }
                    after = page.last.to_vec();
                }
            }
        }
    }
    let none = zone.cluster.list_objects(&bucket(), ListObjects::default()).await.unwrap();
    assert_eq!(none, ListObjectsPage::default(), "a limit of zero");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_of_one_key_go_on_within_the_key() {
    let zone = FakeZone::start(3, 3, rs(2, 1), copies(3)).await;
    let all: Arc<BTreeSet<(Vec<u8>, [u8; 16])>> = Arc::new(
        random_keys(60).into_iter().flat_map(|key| (0..3u8).map(move |n| (key.clone(), [n; 16]))).collect(),
    );
    let theirs = all.clone();
    *zone.meta.asked.lock() = Some(Box::new(move |_, query: &Query| {
        let Some(query::Of::ListUploads(list)) = &query.of else { panic!("{query:?}") };
        let is_after = |key: &[u8], upload: &[u8; 16]| match list.upload_marker.is_empty() {
            true => key > list.key_marker.as_ref(),
            false => (key, &upload[..]) > (list.key_marker.as_ref(), list.upload_marker.as_ref()),
        };
        let mine = theirs.iter().filter(|(key, upload)| {
            list.slots.contains(&u32::from(slot_of(key, SLOTS).get())) && is_after(key, upload)
        });
        let mut rows: Vec<ListedUpload> = mine
            .take(list.limit as usize + 1)
            .map(|(key, upload)| ListedUpload {
                key: key.clone().into(),
                upload: Bytes::copy_from_slice(upload),
                row: None,
            })
            .collect();
        let more = rows.len() > list.limit as usize;
        rows.truncate(list.limit as usize);
        let page = ListUploadsPage { uploads: rows, more, ..Default::default() };
        Answer { ok: Some(answer::Ok::Uploads(page)), ..Default::default() }
    }));
    let (mut seen, mut request) = (Vec::new(), ListUploads { limit: 7, ..Default::default() });
    loop {
        let page = zone.cluster.list_uploads(&bucket(), request.clone()).await.unwrap();
        let Some(last) = page.uploads.last().cloned() else { break };
        seen.extend(
            page.uploads
                .into_iter()
                .map(|row| (row.key.to_vec(), <[u8; 16]>::try_from(row.upload.as_ref()).unwrap())),
        );
        if !page.more {
            break;
        }
        (request.key_marker, request.upload_marker) = (last.key, last.upload);
    }
    assert_eq!(seen, all.iter().cloned().collect::<Vec<_>>());
}
