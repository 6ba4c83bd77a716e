//! What a target says that it holds: from the index alone, right after everything that makes or unmakes an index.

use std::collections::BTreeMap;

use bytes::Bytes;
use holdfast_proto::data::{ShardMeta, StoredShard};
use holdfast_proto::id::ShardId;
use holdfast_proto::v1::{Codec, FaultKind, Scheme};

use super::target::{Target, TargetConfig};
use super::testing::{Machine, REALM, open_real, shard, shard_id, until, wire};

fn length(number: u32) -> usize {
    [30_000, 10, 0, 4096][number as usize % 4]
}

/// Every shard of another group, coded in one of three ways.
fn described(number: u32) -> (ShardMeta, Bytes) {
    let (meta, data) = shard(number, length(number));
    let (codec, data_shards, parity) =
        [(Codec::Copies, 1, 2), (Codec::RsGf8, 4, 2), (Codec::RsGf8, 17, 3)][number as usize % 3];
    let scheme = Scheme { codec: codec.into(), data: data_shards, parity };
    (ShardMeta { pg: 0xF000_0000 + number, scheme: Some(scheme), ..meta }, data)
}

fn row(number: u32) -> StoredShard {
    let (meta, _) = described(number);
    StoredShard { shard: meta.shard, pg: meta.pg, scheme: meta.scheme, length: meta.length, bad: false }
}

async fn put_all(target: &Target, numbers: impl Iterator<Item = u32>) {
    for number in numbers {
        let (meta, data) = described(number);
        target.put(meta, data).await.unwrap();
    }
}

/// All that the target lists, in pages of each size.
async fn check(target: &Target, numbers: impl Iterator<Item = u32>, context: &str) {
    let expected: BTreeMap<ShardId, StoredShard> =
        numbers.map(|number| (shard_id(number), row(number))).collect();
    let expected: Vec<_> = expected.into_values().collect();
    for limit in [1, 7, 4000] {
        let (mut listed, mut after) = (Vec::new(), None);
        loop {
            let page = target.list(after, limit).await.unwrap();
            assert!(page.shards.len() <= limit);
            listed.extend(page.shards);
            if !page.more {
                break;
            }
            assert!(page.last > after, "a page that is not the last goes further: {context}");
            after = page.last;
        }
        assert_eq!(listed, expected, "pages of {limit}: {context}");
    }
}

fn is_left(number: &u32) -> bool {
    !(5..25).contains(number)
}

#[tokio::test]
async fn a_listing_names_group_and_scheme_through_everything_that_happens_to_an_index() {
    let machine = Machine::new();
    let target = machine.open().await;
    put_all(&target, 0..60).await;
    check(&target, 0..60, "stored").await;
    until("the index has them", || target.report().shards == 60).await;
    check(&target, 0..60, "in the index").await;
    target.delete(&(5..25).map(wire).collect::<Vec<_>>()).await.unwrap();
    check(&target, (0..60).filter(is_left), "deleted").await;
    put_all(&target, 60..70).await;
    let all = || (0..70).filter(is_left);
    check(&target, all(), "stored more").await;
    assert!(machine.segments().len() > 2, "some are sealed");
    target.shutdown().await;
    drop(target);
    machine.disk.kill();
    check(&*machine.open().await, all(), "opened again").await;
    for keep in [0, 300, 990] {
        machine.disk.kill();
        machine.index.crash(keep);
        check(&*machine.open().await, all(), "killed").await;
    }
    machine.disk.power_cut(1);
    check(&*machine.open().await, all(), "rebuilt from footers").await;
    for segment in machine.segments() {
        machine.disk.damage(&segment, |content| {
            let trailer = content.len() - 64;
            content[trailer] ^= 1;
        });
    }
    machine.disk.power_cut(2);
    check(&*machine.open().await, all(), "rebuilt from records").await;
}

#[tokio::test]
async fn a_listing_reads_no_segment() {
    let machine = Machine::new();
    let target = machine.open().await;
    put_all(&target, 0..40).await;
    until("the index has them", || target.report().shards == 40).await;
    let reads = machine.disk.reads();
    check(&target, 0..40, "").await;
    assert_eq!(machine.disk.reads(), reads);
}

#[tokio::test]
async fn a_page_of_deleted_shards_is_empty_and_says_that_there_is_more() {
    let machine = Machine::new();
    let target = machine.open().await;
    put_all(&target, 0..30).await;
    until("the index has them", || target.report().shards == 30).await;
    let moving = machine.index.pause(|call| matches!(call, super::mem_index::Call::Set(None)));
    target.delete(&(0..29).map(wire).collect::<Vec<_>>()).await.unwrap();
    moving.wait();
    let page = target.list(None, 4).await.unwrap();
    assert!(page.shards.is_empty() && page.more && page.last.is_some(), "{page:?}");
    check(&target, 29..30, "").await;
}

#[tokio::test]
async fn a_scheme_that_a_row_cannot_hold_is_refused() {
    let target = Machine::new().open().await;
    let (meta, data) = described(1);
    let scheme = Scheme { data: 256, ..meta.scheme.unwrap() };
    for scheme in [Some(scheme), Some(Scheme { data: 0, ..scheme }), None] {
        let meta = ShardMeta { scheme, ..meta.clone() };
        assert_eq!(target.put(meta, data.clone()).await.unwrap_err().kind, FaultKind::Invalid);
    }
}

#[tokio::test]
async fn an_index_with_rows_of_another_form_is_rebuilt() {
    for old_checkpoint in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let config =
            TargetConfig { segment_bytes: 256 << 10, index_batch: 4, ..TargetConfig::new(dir.path(), REALM) };
        let target = open_real(&config).await;
        put_all(&target, 0..40).await;
        target.shutdown().await;
        drop(target);
        // Without what was added to rows since.
        let index = sled::open(dir.path().join("index")).unwrap();
        for (key, value) in index.iter().map(Result::unwrap) {
            let is_row = key.len() == ShardId::LEN;
            if is_row || old_checkpoint {
                index.insert(key, &value[..if is_row { 24 } else { 32 }]).unwrap();
            }
        }
        index.flush().unwrap();
        drop(index);
        let target = open_real(&config).await;
        if !old_checkpoint {
            // Only whoever asks finds out.
            assert_eq!(target.list(None, 10).await.unwrap_err().kind, FaultKind::ShardUnknown);
            super::testing::recovered(&target).await;
        }
        check(&target, 0..40, "rebuilt").await;
        target.shutdown().await;
        drop(target);
        std::fs::remove_dir_all(dir.path().join("index")).unwrap();
        let target = open_real(&config).await;
        check(&target, 0..40, "without an index").await;
        target.shutdown().await;
    }
}
