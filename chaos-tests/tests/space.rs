//! What is deleted gives its space back, also where it is too small to leave a hole.

#![allow(clippy::unwrap_used, reason = "in a test it is an assertion")]

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use holdfast_chaos::cluster::{Options, Zone};
use holdfast_chaos::wait;
use tokio::task::block_in_place;

const OBJECTS: u32 = 9000;
const CONCURRENCY: usize = 24;

fn content(number: u32) -> Bytes {
    number.to_be_bytes().repeat(1200).into()
}

/// As `du` counts: bytes that the files below take.
fn taken(dir: &Path) -> u64 {
    let below = std::fs::read_dir(dir).into_iter().flatten().flatten();
    below
        .map(|entry| match entry.metadata() {
            Ok(file) if file.is_dir() => taken(&entry.path()),
            Ok(file) => file.blocks() * 512,
            // Gone since it was listed.
            Err(_) => 0,
        })
        .sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_objects_that_were_deleted_give_their_space_back() {
    let env = vec![("HOLDFAST_META_GARBAGE_GRACE", "1s"), ("HOLDFAST_DATA_SEGMENT_BYTES", "16MiB")];
    let zone = block_in_place(|| Zone::start(Options { env, ..Options::default() }));
    let s3 = zone.s3();
    let bucket = s3.bucket("small").await;
    let key = |number: u32| format!("object {number:05}");
    let put = |number| s3.put(&bucket, key(number), content(number)).expect(200);
    stream::iter(0..OBJECTS).for_each_concurrent(CONCURRENCY, async |number| drop(put(number).await)).await;
    let segments = || -> u64 {
        zone.nodes("data").iter().map(|node| taken(&node.data_dir.join("target/segments"))).sum()
    };
    let before = block_in_place(segments);
    let gone = (0..OBJECTS).filter(|number| number % 20 != 0);
    let delete = |number| s3.delete(&bucket, key(number)).expect(204);
    stream::iter(gone).for_each_concurrent(CONCURRENCY, async |number| drop(delete(number).await)).await;
    let after = block_in_place(|| {
        wait::until("the space to come back", Duration::from_secs(180), || {
            let after = segments();
            // A twentieth is left, and of each target the segment that is written now.
            (after < before / 2).then_some(after)
        })
    });
    println!("segments took {} MiB, and take {} MiB", before >> 20, after >> 20);
    assert!(zone.metric("holdfast_data_compacted_segments_total").unwrap() > 0.0);
    for number in (0..OBJECTS).filter(|number| number % 20 == 0) {
        assert!(s3.get(&bucket, key(number)).expect(200).await.body == content(number), "{}", key(number));
    }
    let (clean, said) = block_in_place(|| {
        let output = zone.cli(&["fsck"]);
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    });
    assert!(clean, "{said}");
}
