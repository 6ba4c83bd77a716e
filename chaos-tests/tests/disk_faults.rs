//! Disks that are full, for real: nothing acknowledged is lost, reads and deletes go on, and writes come back with the space.

#![allow(clippy::unwrap_used, reason = "in a test it is an assertion")]

use std::time::Duration;

use bytes::Bytes;
use holdfast_chaos::cluster::{Options, Zone};
use holdfast_chaos::mount::Mount;
use holdfast_chaos::wait;
use holdfast_chaos::workload::{Sync, Tree, files};
use rand::RngCore;
use tokio::task::block_in_place;

const MIB: usize = 1 << 20;

fn random(bytes: usize) -> Bytes {
    let mut content = vec![0; bytes];
    rand::rng().fill_bytes(&mut content);
    content.into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_zone_refuses_writes_reads_and_deletes_and_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let Some(mount) = Mount::tmpfs(dir.path(), 700) else { return };
    let env = vec![("HOLDFAST_META_GARBAGE_GRACE", "1s"), ("HOLDFAST_META_DOWN_AFTER", "5s")];
    let zone = block_in_place(|| {
        Zone::start(Options { env, data_dir: Some(dir.path().join("zone")), ..Options::default() })
    });
    let s3 = zone.s3();
    let bucket = s3.bucket("full").await;
    let mut stored = Vec::new();
    let refused = loop {
        let content = random(4 * MIB);
        let key = format!("object {}", stored.len());
        let answer = s3.put(&bucket, key.clone(), content.clone()).unsigned_payload().send().await.unwrap();
        if answer.status != 200 {
            break answer;
        }
        stored.push((key, content));
        assert!(stored.len() * 4 < 700, "it is never full");
    };
    assert_eq!((refused.status, refused.code()), (507, "InsufficientStorage".to_owned()));
    assert!(stored.len() > 20, "{} objects fit", stored.len());
    block_in_place(|| {
        wait::until("status to say that it is full", Duration::from_secs(60), || {
            zone.health().ok().filter(|codes| codes.contains("SPACE_NEARLY_FULL"))
        });
    });
    for (key, content) in &stored {
        assert!(s3.get(&bucket, key).expect(200).await.body == *content, "{key}");
    }
    let (used, _) = mount.space();
    let (gone, kept) = stored.split_at(stored.len() / 2);
    for (key, _) in gone {
        s3.delete(&bucket, key).expect(204).await;
    }
    block_in_place(|| {
        wait::until("the space of what was deleted to come back", Duration::from_secs(120), || {
            let given_back = used.saturating_sub(mount.space().0);
            // Of the bodies and their parity; less what logs of the metadata grew by on the same disk meanwhile.
            (given_back as usize > gone.len() * 4 * MIB * 3 / 2 * 6 / 10).then_some(())
        });
    });
    let content = random(4 * MIB);
    wait::until_async("writes to be taken again", Duration::from_secs(60), async || {
        let again = s3.put(&bucket, "again", content.clone()).unsigned_payload().send().await.ok()?;
        (again.status == 200).then_some(())
    })
    .await;
    for (key, content) in kept {
        assert!(s3.get(&bucket, key).expect(200).await.body == *content, "{key}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_runs_out_of_space_under_load_is_left_alone_and_missed_by_nobody() {
    let env = vec![("HOLDFAST_META_DOWN_AFTER", "3s")];
    let mut zone = block_in_place(|| Zone::start(Options { nodes: Some(8), env, ..Options::default() }));
    let s3 = zone.s3();
    let victim = zone.nodes("data").remove(4);
    // Its directory goes on a file system of its own, as it is.
    let mount = block_in_place(|| {
        zone.kill(&victim);
        zone.until_missed(&victim);
        let aside = zone.scratch().join("aside");
        std::fs::rename(&victim.data_dir, &aside).unwrap();
        std::fs::create_dir(&victim.data_dir).unwrap();
        let mount = Mount::tmpfs(&victim.data_dir, 96)?;
        let copied =
            std::process::Command::new("cp").arg("-a").arg(aside.join(".")).arg(&victim.data_dir).status();
        assert!(copied.unwrap().success());
        zone.revive(&victim).unwrap();
        Some(mount)
    });
    let Some(mount) = mount else { return };

    let own = |status: &serde_json::Value| {
        let mut targets = status["targets"].as_array()?.iter();
        targets.find(|target| target["node"] == victim.id).cloned()
    };
    let (first, second) = (Tree::new(files(60), 1), Tree::new(files(160), 2));
    let before = Sync::new(&s3, &s3.bucket("before").await, &first);
    before.clone().upload(8).await.unwrap();
    // Writers come back to a disk that was away bit by bit.
    let others = s3.bucket("others").await;
    wait::until_async("the disk to hold something", Duration::from_secs(120), async || {
        let more = Sync::new(&s3, &others, &Tree::new(files(20), rand::random()));
        more.upload(8).await.unwrap();
        (own(&block_in_place(|| zone.status()).ok()?)?["shards"].as_u64()? > 0).then_some(())
    })
    .await;
    let during = Sync::new(&s3, &s3.bucket("during").await, &second);
    let load = tokio::spawn(during.clone().upload(8));
    mount.fill();
    load.await.unwrap().unwrap_or_else(|error| panic!("somebody noticed: {error:#}"));
    block_in_place(|| {
        wait::until("status to say that it takes no writes", Duration::from_secs(60), || {
            (own(&zone.status().ok()?)?["writable"] == false).then_some(())
        });
    });
    before.verify(8).await.unwrap();
    during.verify(8).await.unwrap();

    // Room again, and a start: whatever it missed is brought.
    mount.make_room();
    block_in_place(|| {
        // Its process is another one by now.
        let victim = zone.nodes("data").into_iter().find(|node| node.id == victim.id).unwrap();
        zone.kill(&victim);
        zone.revive(&victim).unwrap();
        zone.until_whole();
        zone.until_settled();
    });
    before.verify(8).await.unwrap();
    during.verify(8).await.unwrap();
}
