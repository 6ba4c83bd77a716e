//! Metadata and shards are compared both ways, and what does not agree is made good.

#![allow(clippy::unwrap_used, reason = "in a test it is an assertion")]

use std::time::Duration;

use holdfast_chaos::cluster::{Options, Zone};
use holdfast_chaos::multipart::Upload;
use holdfast_chaos::wait;
use holdfast_chaos::workload::{Sync, Tree, files};
use serde_json::Value;
use tokio::task::block_in_place;

const CONCURRENCY: usize = 8;

/// Whether all was well, and the report.
fn fsck(zone: &Zone, more: &[&str]) -> (bool, Value) {
    let output = zone.cli(&[&["fsck", "--json"], more].concat());
    let report: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    assert_eq!(output.status.success(), report["clean"] == true, "{report:#}");
    (output.status.success(), report)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_emptied_disk_is_told_shard_by_shard_and_filled_again() {
    let env = vec![
        ("HOLDFAST_META_DOWN_AFTER", "3s"),
        // So slow that what is missing can be seen.
        ("HOLDFAST_META_REPAIR_BYTES_PER_SECOND", "1MiB"),
    ];
    let mut zone = block_in_place(|| Zone::start(Options { env, ..Options::default() }));
    let s3 = zone.s3();
    let bucket = s3.bucket("tree").await;
    let tree = Tree::new(files(120), 7);
    let sync = Sync::new(&s3, &bucket, &tree);
    sync.clone().upload(CONCURRENCY).await.unwrap();
    // An upload in progress counts too.
    let upload = Upload::create(&s3, &bucket, "in progress").await;
    upload.put(1, vec![5; 400_000]).expect(200).await;
    let victim = zone.nodes("data").remove(2);
    block_in_place(|| {
        zone.until_settled();
        let (clean, report) = fsck(&zone, &[]);
        assert!(clean, "{report:#}");
        assert_eq!(report["objects"].as_u64().unwrap(), tree.files.len() as u64);
        assert!(report["bodies"].as_u64().unwrap() > 100 && report["writes"].as_u64().unwrap() > 0);

        zone.kill(&victim);
        zone.until_missed(&victim);
        let (clean, report) = fsck(&zone, &[]);
        assert!(!clean, "what a silent target holds is not known");
        assert_eq!((report["silent"].as_array().unwrap().len(), report["missing"].as_u64()), (1, Some(0)));

        // The disk forgets all that it held.
        for (name, file) in
            [("segments", false), ("index", false), ("index.json", true), ("scrub.json", true)]
        {
            for dir in std::fs::read_dir(&victim.data_dir).unwrap().flatten().map(|entry| entry.path()) {
                let path = dir.join(name);
                let removed = if file { std::fs::remove_file(&path) } else { std::fs::remove_dir_all(&path) };
                drop(removed);
            }
        }
        zone.revive(&victim).unwrap();
        let (clean, report) = fsck(&zone, &[]);
        let missing = report["missing"].as_u64().unwrap();
        assert!(!clean && missing > 0 && report["lost"] == 0, "{report:#}");
        let named = report["faults"].as_array().unwrap();
        assert!(named.iter().all(|fault| fault["kind"] == "MISSING" && fault["bucket"] == bucket.as_str()));
        assert!(named.iter().any(|fault| fault["key"] != ""));

        wait::until("fsck to make everything good", Duration::from_secs(240), || {
            fsck(&zone, &["--repair"]).0.then_some(())
        });
        let (clean, report) = fsck(&zone, &["--bucket", &bucket]);
        assert!(clean && report["writes"] == 0, "{report:#}");
        assert!(!zone.cli(&["fsck", "--bucket", "nobodys"]).status.success());
    });
    sync.verify(CONCURRENCY).await.unwrap();
}
