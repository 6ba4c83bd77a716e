//! Meta nodes come, go and are replaced while the zone serves; and all nodes of a zone are restarted one after the other.

#![allow(clippy::unwrap_used, reason = "in a test it is an assertion")]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use bytes::Bytes;
use holdfast_chaos::cluster::{Node, Options, Zone};
use holdfast_chaos::s3::{Call, S3};
use holdfast_chaos::wait;
use tokio::sync::Mutex;
use tokio::task::{JoinSet, block_in_place};

/// Votes move within seconds, leads once the zone has been calm.
const MOVED: Duration = Duration::from_secs(120);

/// Two zones at once would measure the machine.
static ONE_ZONE: Mutex<()> = Mutex::const_new(());

/// As the command line names it.
fn name(node: &Node) -> String {
    format!("{}.{}", node.id >> 48, node.id & ((1 << 48) - 1))
}

/// Voters of every group, as `status` shows them.
fn voters(zone: &Zone) -> Option<Vec<BTreeSet<u64>>> {
    let status = zone.status().ok()?;
    let groups = status["groups"].as_array()?.iter();
    groups.map(|group| group["voters"].as_array()?.iter().map(serde_json::Value::as_u64).collect()).collect()
}

fn may_stop(zone: &Zone, node: &Node) -> bool {
    zone.cli(&["node", "ok-to-stop", &name(node)]).status.success()
}

/// Waits until a node may be stopped.
fn until_may_stop(zone: &Zone, node: &Node) {
    wait::until("a node that may be stopped", MOVED, || may_stop(zone, node).then_some(()));
}

/// What an operator says of a node, which must be done.
fn say(zone: &Zone, what: &str, node: &Node) {
    let output = zone.cli(&["node", what, &name(node)]);
    assert!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stderr));
}

async fn writes_and_reads(s3: &S3, bucket: &str, keys: &mut Vec<String>, when: &str) {
    let key = format!("key {}", keys.len());
    let body = vec![keys.len() as u8; 200 << 10];
    wait::until_async(when, MOVED, async || {
        let answer = s3.put(bucket, &key, body.clone()).send().await.ok()?;
        (answer.status == 200).then_some(())
    })
    .await;
    keys.push(key);
    for (number, key) in keys.iter().enumerate() {
        let body = wait::until_async(when, MOVED, async || {
            let answer = s3.get(bucket, key).send().await.ok()?;
            (answer.status == 200).then_some(answer.body)
        });
        assert!(body.await == vec![number as u8; 200 << 10], "{key}: other bytes, {when}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voter_that_is_gone_is_replaced_by_a_fourth_meta_node() {
    let _one = ONE_ZONE.lock().await;
    let mut zone = block_in_place(|| Zone::start(Options::default()));
    let s3 = zone.s3();
    let bucket = s3.bucket("meta").await;
    let mut keys = Vec::new();
    writes_and_reads(&s3, &bucket, &mut keys, "with three meta nodes").await;

    let old = zone.nodes("meta");
    let fourth = block_in_place(|| zone.add_ready_node("meta").unwrap());
    block_in_place(|| {
        // It learns the zone and takes votes of partitions from those that have more.
        wait::until("votes to be spread", MOVED, || {
            let voters = voters(&zone)?;
            let count = |node: &Node| voters.iter().filter(|voters| voters.contains(&node.id)).count();
            let counts: Vec<usize> = old.iter().chain([&fourth]).map(count).collect();
            (counts[3] > 0 && counts.iter().max()? - counts[3] <= 2).then_some(())
        });
        until_may_stop(&zone, &old[0]);
    });
    writes_and_reads(&s3, &bucket, &mut keys, "with four meta nodes").await;

    let gone = block_in_place(|| zone.leader());
    let left: Vec<Node> = zone.nodes("meta").into_iter().filter(|node| node.id != gone.id).collect();
    block_in_place(|| {
        zone.kill(&gone);
        wait::until("the others to lead", MOVED, || {
            zone.cli(&["node", "drain", &name(&gone)]).status.success().then_some(())
        });
        wait::until("its votes to have moved", MOVED, || {
            let voters = voters(&zone)?;
            let moved = voters.iter().all(|voters| voters.len() == 3 && !voters.contains(&gone.id));
            (moved && may_stop(&zone, &left[0])).then_some(())
        });
        say(&zone, "remove", &gone);
        assert!(!zone.health().unwrap().contains("NODE_SILENT"), "nobody waits for it");
    });
    writes_and_reads(&s3, &bucket, &mut keys, "after the dead voter was replaced").await;

    // The three that are left bear the loss of one.
    let next = left[0].clone();
    block_in_place(|| zone.kill(&next));
    writes_and_reads(&s3, &bucket, &mut keys, "after another voter died").await;
    block_in_place(|| zone.revive(&next).unwrap());

    // And their rows are the same.
    block_in_place(|| until_compared(&zone));
}

/// Has every group compared until one round finds all of them equal. A group that is asked again is comparing again, so
/// nobody asks before a round is over or its leader is gone.
fn until_compared(zone: &Zone) {
    const ROUND: Duration = Duration::from_secs(30);
    let mut asked: Option<SystemTime> = None;
    wait::until("every group to be compared", MOVED, || {
        let since = match asked {
            Some(at) if at.elapsed().is_ok_and(|passed| passed < ROUND) => at,
            _ => {
                let now = SystemTime::now();
                zone.json(&["scrub", "start", "--meta"]).ok()?;
                *asked.insert(now)
            }
        };
        let status = zone.json(&["scrub", "status", "--meta"]).ok()?;
        let since_ms = since.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_millis() as u64;
        let is_over = |group: &serde_json::Value| {
            group["state"] != "comparing" && group["finished_ms"].as_u64().is_some_and(|at| at >= since_ms)
        };
        let is_equal = |group: &serde_json::Value| {
            group["state"] == "equal" && group["silent"].as_array().is_some_and(Vec::is_empty)
        };
        let groups = status.as_array()?;
        if !groups.iter().all(is_over) {
            return None;
        }
        asked = None;
        let equal = groups.iter().all(is_equal);
        if !equal {
            eprintln!("not equal: {status}");
        }
        equal.then_some(())
    });
}

/// A client as SDKs are: it goes on to the next gateway and repeats what was answered 503 or not at all, four times.
struct Client {
    gateways: Vec<S3>,
    bucket: String,
    retries: AtomicUsize,
    requests: AtomicUsize,
    /// Of the slowest request since it was last looked at, its retries included.
    slowest_ms: AtomicU64,
    stop: AtomicBool,
}

const ATTEMPTS: usize = 4;

impl Client {
    async fn call(&self, what: &str, request: impl Fn(&S3) -> Call) -> anyhow::Result<Bytes> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let (mut last, begun) = (String::new(), Instant::now());
        for attempt in 0..ATTEMPTS {
            if attempt > 0 {
                self.retries.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(500 << (attempt - 1))).await;
            }
            let turn = self.requests.load(Ordering::Relaxed) + attempt;
            let call = request(&self.gateways[turn % self.gateways.len()]);
            match call.send().await {
                Ok(answer) if answer.status == 200 => {
                    self.slowest_ms.fetch_max(begun.elapsed().as_millis() as u64, Ordering::Relaxed);
                    return Ok(answer.body);
                }
                Ok(answer) if answer.status == 503 => last = format!("{answer:?}"),
                Ok(answer) => anyhow::bail!("{what}: {answer:?}"),
                Err(error) => last = format!("{error:#}"),
            }
        }
        anyhow::bail!("{what}: {ATTEMPTS} attempts: {last}")
    }

    /// Puts and gets back until it is told to stop. The first request that an SDK would give up on is an error.
    async fn run(self: Arc<Self>, worker: usize) -> anyhow::Result<usize> {
        let mut done = 0;
        while !self.stop.load(Ordering::Relaxed) {
            let key = format!("{worker}/{done}");
            let size = if done % 4 == 0 { 300 << 10 } else { 2 << 10 };
            let body = vec![(worker * 31 + done) as u8; size];
            self.call(&format!("put {key}"), |s3| s3.put(&self.bucket, &key, body.clone())).await?;
            let back = self.call(&format!("get {key}"), |s3| s3.get(&self.bucket, &key)).await?;
            anyhow::ensure!(back == body, "{key}: other bytes");
            done += 1;
        }
        Ok(done)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_of_every_node_loses_no_request() {
    let _one = ONE_ZONE.lock().await;
    let mut zone = block_in_place(|| Zone::start(Options { nodes: Some(7), ..Options::default() }));
    let second = block_in_place(|| zone.add_ready_node("gateway").unwrap());
    let gateways = vec![zone.s3(), zone.s3_of(&second).unwrap()];
    let bucket = gateways[0].bucket("rolling").await;
    let client = Arc::new(Client {
        gateways,
        bucket,
        retries: AtomicUsize::default(),
        requests: AtomicUsize::default(),
        slowest_ms: AtomicU64::default(),
        stop: AtomicBool::default(),
    });
    let mut load = JoinSet::new();
    for worker in 0..4 {
        load.spawn(client.clone().run(worker));
    }
    for node in zone.zone().nodes.clone() {
        let begun = Instant::now();
        block_in_place(|| {
            until_may_stop(&zone, &node);
            zone.end(&node);
            zone.revive(&node).unwrap();
        });
        if let Some(ended) = load.try_join_next() {
            ended
                .unwrap()
                .with_context(|| format!("while {:?} {} was restarted", node.roles, name(&node)))
                .unwrap();
        }
        eprintln!(
            "{:?} {} is back after {:?}: {} requests and {} retries so far, the slowest since the last took {} ms",
            node.roles,
            name(&node),
            begun.elapsed(),
            client.requests.load(Ordering::Relaxed),
            client.retries.load(Ordering::Relaxed),
            client.slowest_ms.swap(0, Ordering::Relaxed),
        );
    }
    client.stop.store(true, Ordering::Relaxed);
    let mut done = 0;
    while let Some(ended) = load.join_next().await {
        done += ended.unwrap().unwrap();
    }
    assert!(done > 0);
}
