//! Metadata that is lost: a zone goes on from one replica, or from a backup.

#![allow(clippy::unwrap_used, reason = "in a test it is an assertion")]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use holdfast_chaos::cluster::{Node, Options, Zone};
use holdfast_chaos::multipart::Upload;
use holdfast_chaos::process::{self, binary};
use holdfast_chaos::s3::S3;
use holdfast_chaos::wait;
use tokio::sync::Mutex;
use tokio::task::block_in_place;

const SOON: Duration = Duration::from_secs(120);

/// Two zones at once would measure the machine.
static ONE_ZONE: Mutex<()> = Mutex::const_new(());

/// What a client was told is stored, by key.
type Promised = BTreeMap<String, Bytes>;

fn content(key: &str, size: usize) -> Bytes {
    let seed: u8 = key.bytes().fold(7, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte));
    (0..size).map(|at| seed.wrapping_add((at % 251) as u8)).collect::<Vec<u8>>().into()
}

/// Objects inline, copied and coded.
async fn put(s3: &S3, bucket: &str, stem: &str, promised: &mut Promised) {
    for (number, size) in [0, 900, 40_000, 700_000, 5 << 20].into_iter().enumerate() {
        let key = format!("{stem}/{number}");
        put_one(s3, bucket, &key, content(&key, size)).await;
        promised.insert(key.clone(), content(&key, size));
    }
}

async fn put_one(s3: &S3, bucket: &str, key: &str, body: Bytes) {
    wait::until_async("an object to be stored", SOON, async || {
        let answer = s3.put(bucket, key, body.clone()).send().await.ok()?;
        (answer.status == 200).then_some(())
    })
    .await;
}

async fn status_of(s3: &S3, bucket: &str, key: &str) -> u16 {
    wait::until_async("an answer", SOON, async || {
        let answer = s3.get(bucket, key).send().await.ok()?;
        (answer.status < 500).then_some(answer.status)
    })
    .await
}

/// Everything that was promised is there, and nothing else is listed.
async fn all_is_there(s3: &S3, bucket: &str, promised: &Promised, when: &str) {
    for (key, body) in promised {
        let read = wait::until_async(when, SOON, async || {
            let answer = s3.get(bucket, key).send().await.ok()?;
            (answer.status < 500).then_some(answer)
        })
        .await;
        assert_eq!(read.status, 200, "{key}, {when}");
        assert!(read.body == *body, "{key}: other bytes, {when}");
    }
    let listed = wait::until_async(when, SOON, async || s3.keys(bucket, 1000).await.ok()).await;
    assert_eq!(listed, promised.keys().cloned().collect::<Vec<_>>(), "{when}");
}

struct Ran {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

fn run(args: &[&str], env: &[(&str, &str)]) -> Ran {
    let output = Command::new(binary()).args(args).envs(env.iter().copied()).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ran { code: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr) }
}

fn must(args: &[&str], env: &[(&str, &str)]) -> serde_json::Value {
    let ran = run(&[args, &["--json"]].concat(), env);
    assert_eq!(ran.code, Some(0), "{args:?}: {}", ran.stderr);
    serde_json::from_str(&ran.stdout).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Nothing is wrong but, perhaps, writes that nobody owns.
fn only_orphans(zone: &Zone) -> u64 {
    let output = zone.cli(&["fsck", "--json"]);
    let lines = String::from_utf8_lossy(&output.stdout).into_owned();
    let summary: serde_json::Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
    for fault in ["lost", "missing", "misplaced", "surplus"] {
        assert_eq!(summary[fault], 0, "{fault}: {lines}");
    }
    summary["orphans"].as_u64().unwrap()
}

/// Two more meta nodes join on new directories; then the loss of the first one is borne.
async fn grows_to_three(zone: &mut Zone, s3: &S3, bucket: &str, promised: &Promised, places: &[Node; 3]) {
    let alone = places[0].clone();
    block_in_place(|| {
        for place in &places[1..] {
            let dir = zone.scratch().join(format!("new-{}", place.addr.port()));
            zone.start_meta(place, &dir).unwrap();
        }
        wait::until("three voters in every group", SOON, || {
            let status = zone.status().ok()?;
            let mut groups = status["groups"].as_array()?.iter();
            groups
                .all(|group| group["voters"].as_array().is_some_and(|voters| voters.len() == 3))
                .then_some(())
        });
        let name = format!("{}.{}", alone.id >> 48, alone.id & ((1 << 48) - 1));
        wait::until("its node may be stopped", SOON, || {
            zone.cli(&["node", "ok-to-stop", &name]).status.success().then_some(())
        });
        zone.kill(&alone);
    });
    all_is_there(s3, bucket, promised, "after the node that was alone has died").await;
    put_one(s3, bucket, "late", Bytes::from_static(b"late")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_zone_goes_on_from_one_replica() {
    let _one = ONE_ZONE.lock().await;
    let env = vec![("HOLDFAST_META_ORPHAN_AFTER", "2s"), ("HOLDFAST_META_GARBAGE_GRACE", "1s")];
    let mut zone = block_in_place(|| Zone::start(Options { env, ..Options::default() }));
    let s3 = zone.s3();
    let bucket = s3.bucket("replica").await;
    let mut promised = Promised::new();
    put(&s3, &bucket, "before", &mut promised).await;
    let metas = zone.nodes("meta");
    let [first, second, left] = <[Node; 3]>::try_from(metas).unwrap();
    let config = left.config.clone();
    let recover = ["zone", "recover", "--from-replica", "-c", text(&config)];

    // The one that will be left has everything so far; what comes now it does not hear of.
    block_in_place(|| {
        wait::until("another leader than the one that will be left", SOON, || {
            let status = zone.status().ok()?;
            let mut groups = status["groups"].as_array()?.iter();
            groups.all(|group| group["leader"] != left.id && group["leader"] != 0).then_some(())
        });
    });
    block_in_place(|| zone.stop(&left));
    let mut lost = Promised::new();
    put(&s3, &bucket, "lost", &mut lost).await;
    block_in_place(|| {
        zone.kill(&first);
        zone.kill(&second);
        let running = run(&recover, &[]);
        assert_eq!(running.code, Some(1), "it runs: {}", running.stderr);
        assert!(running.stderr.contains("in use"), "{}", running.stderr);
        zone.kill(&left);
        wait::until("its directory to be free", SOON, || (run(&recover, &[]).code == Some(0)).then_some(()));
    });

    let name = zone.zone().name.clone();
    let told = must(&recover, &[]);
    assert_eq!((&told["done"], told["given_up"].as_array().unwrap().len()), (&false.into(), 2));
    assert_eq!(run(&[&recover[..], &["--yes", "another"]].concat(), &[]).code, Some(2));
    assert_eq!(must(&[&recover[..], &["--yes", &name]].concat(), &[])["done"], true);
    // Said twice, as after a crash in between.
    assert_eq!(must(&[&recover[..], &["--yes", &name]].concat(), &[])["done"], true);
    let place = left.clone();
    let left = block_in_place(|| zone.start_meta(&place, &place.data_dir).unwrap());
    all_is_there(&s3, &bucket, &promised, "from one replica").await;
    put(&s3, &bucket, "after", &mut promised).await;
    all_is_there(&s3, &bucket, &promised, "from one replica").await;

    // Whoever was given up is told so when it comes back, and changes nothing.
    let back = block_in_place(|| zone.server(&first.config));
    let said = String::from_utf8_lossy(&back.stderr).into_owned();
    assert!(said.contains("was removed") || said.contains("was given up"), "{said}");
    block_in_place(|| {
        let health = zone.health().unwrap();
        assert!(health.contains("ORPHANS_HELD") && health.contains("META_NOT_REPLICATED"), "{health:?}");
        let events = zone.events("zone").unwrap();
        assert!(events.iter().any(|(code, _)| code == "ZONE_RECOVERED"), "{events:?}");
    });
    // Both at once are a majority of the old voters, and lead a zone of their own: nobody listens to them.
    let back = block_in_place(|| [&first, &second].map(|node| zone.start_again(node).unwrap()));
    tokio::time::sleep(Duration::from_secs(6)).await;
    put(&s3, &bucket, "meanwhile", &mut promised).await;
    all_is_there(&s3, &bucket, &promised, "with those that were given up back").await;
    block_in_place(|| {
        back.into_iter().for_each(process::kill);
        assert!(!zone.health().unwrap().contains("TARGET_DOWN"), "data nodes beat to the zone that goes on");
    });
    all_is_there(&s3, &bucket, &promised, "with those that were given up gone again").await;

    // What was lost with the metadata still has its shards, long after orphans are deleted.
    tokio::time::sleep(Duration::from_secs(6)).await;
    let coded = lost.values().filter(|body| body.len() > 2048).count() as u64;
    assert_eq!(block_in_place(|| only_orphans(&zone)), coded);
    // They are made of them again; bodies inline in the metadata were nowhere else.
    block_in_place(|| {
        let looked = rebuilt(&zone, &["--dry-run"]);
        let made = rebuilt(&zone, &[]);
        assert_eq!((&made["objects"], &made["objects"]), (&coded.into(), &looked["objects"]), "{made}");
        assert_eq!(rebuilt(&zone, &[])["objects"], 0, "each once");
    });
    promised.extend(lost.into_iter().filter(|(_, body)| body.len() > 2048));
    all_is_there(&s3, &bucket, &promised, "after the index was rebuilt").await;
    assert_eq!(block_in_place(|| only_orphans(&zone)), 0);
    let places = [left, first, second];
    grows_to_three(&mut zone, &s3, &bucket, &promised, &places).await;
    block_in_place(|| {
        wait::until("the others to lead", SOON, || {
            zone.cli(&["zone", "release-orphans"]).status.success().then_some(())
        });
        wait::until("orphans to be deleted", SOON, || (only_orphans(&zone) == 0).then_some(()));
        assert!(!zone.health().unwrap().contains("ORPHANS_HELD"));
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_zone_is_restored_from_a_backup() {
    let _one = ONE_ZONE.lock().await;
    let env = vec![("HOLDFAST_META_ORPHAN_AFTER", "2s"), ("HOLDFAST_META_GARBAGE_GRACE", "1s")];
    let mut zone = block_in_place(|| Zone::start(Options { env, ..Options::default() }));
    let s3 = zone.s3();
    let bucket = s3.bucket("backup").await;
    let mut promised = Promised::new();
    put(&s3, &bucket, "kept", &mut promised).await;
    put(&s3, &bucket, "overwritten", &mut promised).await;
    put(&s3, &bucket, "deleted", &mut promised).await;
    let upload = Upload::create(&s3, &bucket, "in parts").await;
    let part = content("part", 5 << 20);
    let etag = upload.part(1, part.clone()).await;

    // To a directory, and into a bucket.
    let keys = zone.credentials();
    let url = zone.zone().s3.clone();
    let aws = [
        ("AWS_ENDPOINT_URL", url.as_str()),
        ("AWS_ACCESS_KEY_ID", &keys.access_key),
        ("AWS_SECRET_ACCESS_KEY", &keys.secret_key),
    ];
    let meta_addr = zone.nodes("meta")[0].addr.to_string();
    let depots = s3.bucket("depots").await;
    let in_bucket = format!("s3://{depots}/{}/night 1", "zone");
    let dir = zone.scratch().join("backup");
    block_in_place(|| {
        for to in [in_bucket.as_str(), text(&dir)] {
            let made = must(&["meta", "backup", "--to", to, "--endpoint", &meta_addr], &aws);
            assert!(made["rows"].as_u64().unwrap() > 20, "{made}");
            let proven = must(&["meta", "verify", "--from", to], &aws);
            assert_eq!((&proven["rows"], &proven["bytes"]), (&made["rows"], &made["bytes"]));
        }
        let again = run(&["meta", "backup", "--to", text(&dir), "--endpoint", &meta_addr], &[]);
        assert_eq!(again.code, Some(1), "it would be overwritten");
        damaged_backups_are_refused(&dir);
    });

    // What happens after it is lost, and what it owns is not.
    for number in 0..5 {
        let key = format!("overwritten/{number}");
        put_one(&s3, &bucket, &key, Bytes::from_static(b"newer")).await;
        s3.delete(&bucket, format!("deleted/{number}")).expect(204).await;
    }
    put_one(&s3, &bucket, "newer", content("newer", 300_000)).await;
    let later = s3.bucket("later").await;
    let host = block_in_place(|| zone.add_data_node().unwrap());
    block_in_place(|| zone.until_settled());
    // Longer than garbage is kept without a backup.
    tokio::time::sleep(Duration::from_secs(6)).await;

    let places = <[Node; 3]>::try_from(zone.nodes("meta")).unwrap();
    let identity = zone.gateway().data_dir.join("identity.json");
    let restored = zone.scratch().join("restored");
    let config = places[0].config.clone();
    block_in_place(|| {
        for place in &places {
            zone.kill(place);
            // Its configuration goes with it: an operator has another one.
            let config = std::fs::read_to_string(&place.config).unwrap();
            std::fs::remove_dir_all(&place.data_dir).unwrap();
            std::fs::create_dir_all(place.config.parent().unwrap()).unwrap();
            std::fs::write(&place.config, config.replace(text(&place.data_dir), text(&restored))).unwrap();
        }
    });
    let restore =
        ["meta", "restore", "--from", text(&dir), "-c", text(&config), "--identity", text(&identity)];
    let made = block_in_place(|| must(&restore, &[]));
    assert_eq!(made["left"].as_array().unwrap().len(), 0);
    let again = block_in_place(|| run(&restore, &[]));
    assert_eq!(again.code, Some(1), "it is somebody's: {}", again.stderr);
    let alone = block_in_place(|| zone.start_meta(&places[0], &restored).unwrap());
    all_is_there(&s3, &bucket, &promised, "from a backup").await;
    assert_eq!(status_of(&s3, &later, "any").await, 404, "it was made after the backup");
    block_in_place(|| {
        let back = zone.events(&format!("node {}", host_id(&zone, &host))).unwrap();
        assert!(back.iter().any(|(code, _)| code == "KNOWN_AGAIN"), "{back:?}");
        zone.until_settled();
        assert!(only_orphans(&zone) > 0, "what was stored after the backup");
    });
    // An upload that was in progress goes on.
    upload.complete(&[(1, etag)]).expect(200).await;
    promised.insert("in parts".into(), part);
    put(&s3, &bucket, "after", &mut promised).await;
    all_is_there(&s3, &bucket, &promised, "after a restore").await;
    let places = [alone, places[1].clone(), places[2].clone()];
    grows_to_three(&mut zone, &s3, &bucket, &promised, &places).await;
}

/// What `meta rebuild` says at its end.
fn rebuilt(zone: &Zone, args: &[&str]) -> serde_json::Value {
    let output = zone.cli(&[&["meta", "rebuild", "--json"], args].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = String::from_utf8_lossy(&output.stdout).into_owned();
    serde_json::from_str(lines.lines().last().unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_zone_is_rebuilt_from_its_shards() {
    let _one = ONE_ZONE.lock().await;
    let env = vec![("HOLDFAST_META_ORPHAN_AFTER", "2s"), ("HOLDFAST_META_GARBAGE_GRACE", "1s")];
    let mut zone = block_in_place(|| Zone::start(Options { env, ..Options::default() }));
    let s3 = zone.s3();
    let (bucket, other) = (s3.bucket("shards").await, s3.bucket("other").await);
    let (mut promised, mut others, mut gone) = (Promised::new(), Promised::new(), Promised::new());
    put(&s3, &bucket, "kept", &mut promised).await;
    put(&s3, &bucket, "deleted", &mut gone).await;
    put(&s3, &other, "other", &mut others).await;
    for size in [50_000, 900_000] {
        put_one(&s3, &bucket, "written again", content("written again", size)).await;
        promised.insert("written again".into(), content("written again", size));
    }
    let upload = Upload::create(&s3, &bucket, "in parts").await;
    let parts = [content("part 1", 5 << 20), content("part 2", 700_000)];
    let etags = [upload.part(1, parts[0].clone()).await, upload.part(2, parts[1].clone()).await];
    let [one, two] = etags;
    upload.complete(&[(1, one), (2, two)]).expect(200).await;
    promised.insert("in parts".into(), parts.concat().into());
    for key in gone.keys() {
        s3.delete(&bucket, key).expect(204).await;
    }
    let id = block_in_place(|| {
        let buckets = zone.json(&["bucket", "list"]).unwrap();
        let row = buckets.as_array().unwrap().iter().find(|row| row["name"] == bucket.as_str()).unwrap();
        let id = row["id"].as_str().unwrap().to_owned();
        // What was deleted has gone from the targets.
        wait::until("garbage to be freed", SOON, || {
            (zone.status().ok()?["garbage_writes"] == 0).then_some(())
        });
        id
    });
    let etag = s3.head(&bucket, "in parts").send().await.unwrap().header("etag").to_owned();

    let places = <[Node; 3]>::try_from(zone.nodes("meta")).unwrap();
    let identity = zone.nodes("data")[0].data_dir.join("identity.json");
    let anew = zone.scratch().join("anew");
    let keys = zone.credentials();
    let name = zone.zone().name.clone();
    block_in_place(|| {
        for place in &places {
            zone.kill(place);
            let config = std::fs::read_to_string(&place.config).unwrap();
            std::fs::remove_dir_all(&place.data_dir).unwrap();
            std::fs::create_dir_all(place.config.parent().unwrap()).unwrap();
            std::fs::write(&place.config, config.replace(text(&place.data_dir), text(&anew))).unwrap();
        }
        let config = text(&places[0].config).to_owned();
        let recover = ["zone", "recover", "--from-shards", "-c", &config, "--identity", text(&identity)];
        assert_eq!(run(&recover, &[]).code, Some(2), "nobody said yes");
        let root = [
            ("HOLDFAST_ROOT_ACCESS_KEY", keys.access_key.as_str()),
            ("HOLDFAST_ROOT_SECRET_KEY", keys.secret_key.as_str()),
        ];
        must(&[&recover[..], &["--yes", &name]].concat(), &root);
    });
    let alone = block_in_place(|| zone.start_meta(&places[0], &anew).unwrap());
    let made = block_in_place(|| {
        wait::until("all targets to be back", SOON, || {
            let status = zone.status().ok()?;
            let up = status["targets"].as_array()?.iter().filter(|target| target["state"] == "up").count();
            (up == 6).then_some(())
        });
        assert!(zone.health().unwrap().contains("NO_PLACEMENT"));
        assert!(rebuilt(&zone, &["--dry-run"])["placement_groups"].as_u64().unwrap() > 0);
        rebuilt(&zone, &["--bucket", &format!("{id}={bucket}")])
    });
    promised.retain(|_, body| body.len() > 2048);
    others.retain(|_, body| body.len() > 2048);
    assert_eq!(made["objects"], promised.len() + others.len(), "{made}");
    assert_eq!((&made["buckets"], &made["refused"], &made["incomplete"]), (&2.into(), &0.into(), &0.into()));
    all_is_there(&s3, &bucket, &promised, "made of shards").await;
    let listed = block_in_place(|| zone.json(&["bucket", "list"]).unwrap());
    let names: Vec<&str> = listed.as_array().unwrap().iter().filter_map(|row| row["name"].as_str()).collect();
    let unnamed = names.iter().find(|name| name.starts_with("recovered-")).unwrap();
    all_is_there(&s3, unnamed, &others, "made of shards").await;
    let head = s3.head(&bucket, "in parts").send().await.unwrap();
    assert_eq!(head.header("etag"), etag);
    assert_eq!(head.header("x-amz-meta-holdfast-recovered"), "unproven");
    put(&s3, &bucket, "after", &mut promised).await;
    all_is_there(&s3, &bucket, &promised, "in a zone made of shards").await;
    block_in_place(|| {
        zone.until_settled();
        assert_eq!(only_orphans(&zone), 0);
    });
    let places = [alone, places[1].clone(), places[2].clone()];
    grows_to_three(&mut zone, &s3, &bucket, &promised, &places).await;
}

/// `node list` shows it.
fn host_id(zone: &Zone, host: &str) -> String {
    wait::until("a data node to be known again", SOON, || {
        let status = zone.status().ok()?;
        let node = status["nodes"].as_array()?.iter().find(|node| node["host"] == host)?;
        let id = node["id"].as_u64()?;
        Some(format!("{}.{}", id >> 48, id & ((1 << 48) - 1)))
    })
}

/// Flips a byte of each file in turn.
fn damaged_backups_are_refused(dir: &Path) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let whole = std::fs::read(&path).unwrap();
        let mut bad = whole.clone();
        bad[whole.len() / 2] ^= 1;
        std::fs::write(&path, bad).unwrap();
        let verified = run(&["meta", "verify", "--from", text(dir)], &[]);
        assert_eq!(verified.code, Some(1), "{}: {}", path.display(), verified.stdout);
        std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        assert_eq!(run(&["meta", "verify", "--from", text(dir)], &[]).code, Some(1), "{}", path.display());
        std::fs::write(&path, whole).unwrap();
    }
}
