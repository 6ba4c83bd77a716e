//! One run: a zone, clients, faults, and at the end what everybody was promised against what is there.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde::Serialize;
use serde_json::Value as Json;
use tokio::task::JoinSet;

use super::clients::{self, Plant, World};
use super::history::{Event, Set, Told};
use super::linear::{self, Verdict};
use super::members;
use super::nemesis::Nemesis;
use crate::cluster::{Options, Zone};

/// Between two faults, milliseconds.
const CALM: std::ops::Range<u64> = 2_000..8_000;
/// Until everything is in its place again, and garbage and orphans are gone.
const WHOLE: Duration = Duration::from_secs(420);
/// Violations told of one invariant.
const TOLD_MAX: usize = 20;
/// Events shown before one that cannot be explained.
const SHOWN: usize = 12;

/// What to run.
#[derive(Clone, Debug)]
pub struct Plan {
    pub nemeses: Vec<Nemesis>,
    pub lasts: Duration,
    pub clients: usize,
    pub seed: u64,
    pub plant: Option<Plant>,
    pub data_nodes: u32,
    /// Where the zone keeps its data, when it is to be kept.
    pub data_dir: Option<PathBuf>,
}

/// A fault, as it went.
#[derive(Clone, Debug, Serialize)]
pub struct Fault {
    pub nemesis: &'static str,
    pub begin_s: f64,
    pub end_s: f64,
    pub what: String,
}

/// What clients saw in one second.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Second {
    pub answered: u64,
    pub open: u64,
    pub slowest_ms: f64,
}

/// What came of an invariant.
#[derive(Clone, Debug, Serialize)]
pub struct Invariant {
    pub name: &'static str,
    pub checked: u64,
    /// Parts of it that could not be judged.
    pub unjudged: u64,
    /// In words; none: it holds.
    pub violations: Vec<String>,
}

/// All that is told of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub seed: u64,
    pub clients: usize,
    pub seconds: f64,
    pub plant: Option<Plant>,
    pub repeat: String,
    pub attempts: u64,
    pub open: u64,
    pub faults: Vec<Fault>,
    pub timeline: Vec<Second>,
    pub invariants: Vec<Invariant>,
}

impl Report {
    pub fn holds(&self) -> bool {
        self.invariants.iter().all(|invariant| invariant.violations.is_empty())
    }
}

/// Starts the zone of a plan.
///
/// # Errors
/// When it does not start.
pub async fn start(plan: &Plan) -> anyhow::Result<Zone> {
    // Short times: what takes a zone ten minutes has to happen within a run.
    let env = vec![
        ("HOLDFAST_META_DOWN_AFTER", "5s"),
        ("HOLDFAST_META_OUT_AFTER", "20s"),
        ("HOLDFAST_META_GARBAGE_GRACE", "2s"),
        ("HOLDFAST_META_ORPHAN_AFTER", "30s"),
        ("HOLDFAST_GATEWAY_RENEW_EVERY", "5s"),
    ];
    let options =
        Options { nodes: Some(plan.data_nodes), env, data_dir: plan.data_dir.clone(), ..Options::default() };
    Ok(tokio::task::spawn_blocking(move || Zone::start(options)).await?)
}

/// Clients that lie as a store with this mistake would, on a zone that is well; what the checkers of histories say.
///
/// # Errors
/// When a client panics.
pub async fn lies(
    zone: &Zone,
    plant: Plant,
    clients: usize,
    lasts: Duration,
) -> anyhow::Result<Vec<Invariant>> {
    let s3 = zone.s3();
    let bucket = s3.bucket("plant").await;
    let world = Arc::new(World::new(s3, bucket, Some(plant)));
    let working = set_to_work(&world, clients, 1);
    tokio::time::sleep(lasts).await;
    stop(&world, working).await?;
    Ok(judged(&world))
}

fn set_to_work(world: &Arc<World>, clients: usize, seed: u64) -> JoinSet<()> {
    let mut working = JoinSet::new();
    for number in 0..clients {
        let (world, seed) = (Arc::clone(world), seed.wrapping_mul(1_000_003).wrapping_add(number as u64));
        working.spawn(async move { clients::work(&world, number, seed).await });
    }
    working
}

async fn stop(world: &World, mut working: JoinSet<()>) -> anyhow::Result<()> {
    world.stop.store(true, Ordering::Relaxed);
    while let Some(worked) = working.join_next().await {
        worked?;
    }
    Ok(())
}

/// What the history of a world says.
fn judged(world: &World) -> Vec<Invariant> {
    let history = world.history();
    vec![
        registers(&history.events, world.registers()),
        listings(&history.sets),
        Invariant {
            name: "bodies are those that were stored",
            checked: history.events.len() as u64,
            unjudged: 0,
            violations: history.wrong_bytes.into_iter().take(TOLD_MAX).collect(),
        },
    ]
}

/// Runs the plan.
///
/// # Errors
/// When the run itself could not be made; what the zone does wrong is in the report.
pub async fn run(plan: &Plan, told: impl Fn(&str)) -> anyhow::Result<Report> {
    let zone = start(plan).await?;
    let s3 = zone.s3();
    let bucket = s3.bucket("chaos").await;
    let world = Arc::new(World::new(s3, bucket, plan.plant));
    let begun = Instant::now();
    let working = set_to_work(&world, plan.clients, plan.seed);
    let (nemeses, lasts, seed) = (plan.nemeses.clone(), plan.lasts, plan.seed);
    let (said, mut says) = tokio::sync::mpsc::unbounded_channel();
    let striking = tokio::task::spawn_blocking(move || strike(zone, &nemeses, lasts, seed, begun, &said));
    while let Some(text) = says.recv().await {
        told(&text);
    }
    let struck = striking.await;
    stop(&world, working).await?;
    let seconds = begun.elapsed().as_secs_f64();
    told("the clients have stopped: now what is there");
    let mut invariants = Vec::new();
    let faults = match struck {
        Ok((zone, faults)) => {
            let looked = look(zone, &world).await;
            invariants.extend(looked);
            faults
        }
        // A harness that waits in vain says so by a panic.
        Err(error) => {
            let why = panic_text(error);
            invariants.push(Invariant {
                name: "the zone comes back after a fault",
                checked: 1,
                unjudged: 0,
                violations: vec![why],
            });
            Vec::new()
        }
    };
    invariants.extend(judged(&world));
    let names: Vec<&str> = plan.nemeses.iter().map(|nemesis| nemesis.name()).collect();
    let nemesis = if names.is_empty() { "none".to_owned() } else { names.join(",") };
    Ok(Report {
        seed: plan.seed,
        clients: plan.clients,
        seconds,
        plant: plan.plant,
        repeat: format!(
            "cargo run --release -p holdfast-chaos -- run --seed {} --clients {} --seconds {} --nemesis {nemesis}",
            plan.seed,
            plan.clients,
            plan.lasts.as_secs()
        ),
        attempts: world.answered.load(Ordering::Relaxed) + world.open.load(Ordering::Relaxed),
        open: world.open.load(Ordering::Relaxed),
        faults,
        timeline: timeline(&world.history().events),
        invariants,
    })
}

fn panic_text(error: tokio::task::JoinError) -> String {
    match error.try_into_panic() {
        Ok(panic) => match (panic.downcast_ref::<String>(), panic.downcast_ref::<&str>()) {
            (Some(text), _) => text.clone(),
            (_, Some(text)) => (*text).to_owned(),
            _ => "a panic without words".to_owned(),
        },
        Err(error) => error.to_string(),
    }
}

/// Strikes until the time is over, every nemesis as often as the others; hands the zone back whole, as far as nodes go.
fn strike(
    mut zone: Zone,
    nemeses: &[Nemesis],
    lasts: Duration,
    seed: u64,
    begun: Instant,
    said: &tokio::sync::mpsc::UnboundedSender<String>,
) -> (Zone, Vec<Fault>) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut faults = Vec::new();
    let mut left: Vec<Nemesis> = Vec::new();
    while begun.elapsed() < lasts {
        let calm = Duration::from_millis(rng.random_range(CALM));
        std::thread::sleep(calm.min(lasts.saturating_sub(begun.elapsed())));
        if nemeses.is_empty() || begun.elapsed() >= lasts {
            continue;
        }
        if left.is_empty() {
            left = nemeses.to_vec();
        }
        let nemesis = left.swap_remove(rng.random_range(0..left.len()));
        let begin_s = begun.elapsed().as_secs_f64();
        let what = match nemesis.strike(&mut zone, &mut rng) {
            Ok(what) => what,
            Err(error) => format!("not done: {error:#}"),
        };
        let end_s = begun.elapsed().as_secs_f64();
        // Who listens may be gone.
        let _ = said.send(format!("{begin_s:7.1} s  {:14} {what}", nemesis.name()));
        faults.push(Fault { nemesis: nemesis.name(), begin_s, end_s, what });
    }
    (zone, faults)
}

/// What the zone says of itself once it is left alone, and what clients read last of all.
async fn look(zone: Zone, world: &Arc<World>) -> Vec<Invariant> {
    let mut invariants = Vec::new();
    let reads = async {
        for register in 0..world.registers() {
            world.read_finally(register).await?;
        }
        world.list_finally().await
    };
    let unread: Vec<String> =
        reads.await.err().map(|error: anyhow::Error| format!("{error:#}")).into_iter().collect();
    invariants.push(Invariant {
        name: "everything can be read in the end",
        checked: world.registers() as u64,
        unjudged: 0,
        violations: unread,
    });
    let looked = tokio::task::spawn_blocking(move || {
        let mut invariants = Vec::new();
        let mut hold = |name: &'static str, check: &dyn Fn(&Zone) -> Result<u64, String>| {
            let waited = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| until(&zone, check)));
            let result = waited.unwrap_or_else(|_| Err("the zone gives no answer".to_owned()));
            let (checked, violations) = match result {
                Ok(checked) => (checked, Vec::new()),
                Err(why) => (1, vec![why]),
            };
            invariants.push(Invariant { name, checked, unjudged: 0, violations });
        };
        hold("every shard is in its place, and no shard is anybody's that owns nothing", &whole);
        hold("replicas of metadata are equal", &equal);
        hold("counters of buckets are those of a listing", &counters);
        drop(zone);
        invariants
    });
    invariants.extend(looked.await.unwrap_or_else(|error| {
        vec![Invariant {
            name: "the zone can be looked at",
            checked: 0,
            unjudged: 0,
            violations: vec![error.to_string()],
        }]
    }));
    invariants
}

/// Tries until it holds, as long as repair, garbage and orphans may take.
fn until(zone: &Zone, check: &dyn Fn(&Zone) -> Result<u64, String>) -> Result<u64, String> {
    let end = Instant::now() + WHOLE;
    loop {
        match check(zone) {
            Ok(checked) => return Ok(checked),
            Err(why) if Instant::now() > end => return Err(why),
            Err(_) => std::thread::sleep(Duration::from_secs(2)),
        }
    }
}

/// `fsck`'s last line.
fn whole(zone: &Zone) -> Result<u64, String> {
    let garbage = zone.status().map_err(|error| error.to_string())?["garbage_writes"].clone();
    if garbage != 0 {
        return Err(format!("{garbage} writes are garbage still"));
    }
    let output = zone.cli(&["fsck", "--json"]);
    let lines = String::from_utf8_lossy(&output.stdout).into_owned();
    let last = lines.lines().last().unwrap_or_default();
    let sum: Json = serde_json::from_str(last).map_err(|error| format!("fsck: {error}: {last}"))?;
    sound(&sum).map_err(|why| format!("{why}; {}", lines.lines().take(5).collect::<Vec<_>>().join(" ")))
}

/// Whether a summary of `fsck` is that of a zone that is whole: how many shards there are.
pub fn sound(sum: &Json) -> Result<u64, String> {
    for fault in ["lost", "missing", "misplaced", "surplus", "orphans"] {
        match sum[fault].as_u64() {
            Some(0) => {}
            Some(count) => return Err(format!("{count} {fault}")),
            None => return Err(format!("fsck says nothing of {fault}: {sum}")),
        }
    }
    if sum["silent"].as_array().is_none_or(|silent| !silent.is_empty()) {
        return Err(format!("targets did not answer: {}", sum["silent"]));
    }
    sum["shards"].as_u64().ok_or_else(|| format!("fsck counted nothing: {sum}"))
}

fn equal(zone: &Zone) -> Result<u64, String> {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_err(|error| error.to_string())?
        .as_millis() as u64;
    zone.json(&["scrub", "start", "--meta"]).map_err(|error| error.to_string())?;
    let compared = |groups: &Json| {
        let all = groups.as_array()?;
        let over = |group: &Json| {
            group["state"] != "comparing" && group["finished_ms"].as_u64().is_some_and(|at| at >= since)
        };
        all.iter().all(over).then_some(())
    };
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        let groups = zone.json(&["scrub", "status", "--meta"]).map_err(|error| error.to_string())?;
        if compared(&groups).is_some() {
            return same(&groups);
        }
        if Instant::now() > end {
            return Err(format!("groups are not compared: {groups}"));
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Whether every group's members have equal rows: how many groups there are.
pub fn same(groups: &Json) -> Result<u64, String> {
    let groups = groups.as_array().ok_or("no groups")?;
    let is_same =
        |group: &&Json| group["state"] == "equal" && group["silent"].as_array().is_some_and(Vec::is_empty);
    match groups.iter().find(|group| !is_same(group)) {
        None if groups.is_empty() => Err("no groups".to_owned()),
        None => Ok(groups.len() as u64),
        Some(odd) => Err(odd.to_string()),
    }
}

/// What a bucket says that it has is what a listing of it shows.
fn counters(zone: &Zone) -> Result<u64, String> {
    let buckets = zone.json(&["bucket", "list"]).map_err(|error| error.to_string())?;
    let mut checked = 0;
    for bucket in buckets.as_array().ok_or("no buckets")? {
        let name = bucket["name"].as_str().ok_or("a bucket without a name")?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| error.to_string())?;
        let keys = runtime.block_on(zone.s3().keys(name, 1000)).map_err(|error| error.to_string())?;
        if bucket["objects"] != keys.len() {
            return Err(format!("bucket {name} counts {}, and {} are listed", bucket["objects"], keys.len()));
        }
        checked += keys.len() as u64;
    }
    Ok(checked)
}

fn registers(events: &[Event], count: usize) -> Invariant {
    let (mut violations, mut unjudged) = (Vec::new(), 0);
    let mut of: BTreeMap<usize, Vec<Event>> = BTreeMap::new();
    for event in events {
        of.entry(event.register).or_default().push(event.clone());
    }
    for (register, events) in of.into_iter().take(count) {
        match linear::check(&events) {
            Verdict::Holds => {}
            Verdict::Broken(at) => violations.push(explain(register, &events, at)),
            Verdict::TooHard => unjudged += events.len() as u64,
        }
    }
    violations.truncate(TOLD_MAX);
    Invariant {
        name: "registers are linearizable",
        checked: events.len() as u64 - unjudged,
        unjudged,
        violations,
    }
}

/// What cannot be explained, and what was before it.
fn explain(register: usize, events: &[Event], at: usize) -> String {
    let odd = &events[at];
    let before = events.iter().filter(|event| event.begin <= odd.end);
    let mut shown: Vec<String> = before
        .map(|event| {
            let end = match event.told {
                Told::Unknown => "?".to_owned(),
                _ => format!("{:.4}", event.end as f64 / 1e9),
            };
            format!(
                "[{:.4} {end}] client {} {:?} -> {:?}",
                event.begin as f64 / 1e9,
                event.client,
                event.action,
                event.told
            )
        })
        .collect();
    let from = shown.len().saturating_sub(SHOWN);
    format!("register {register}: no order explains {odd:?}; before it: {}", shown.split_off(from).join("; "))
}

fn listings(sets: &[Set]) -> Invariant {
    let checked = sets.iter().map(|set| set.listings.len() as u64).sum();
    let wrong = sets.iter().flat_map(|set| members::check(&set.members, &set.listings));
    Invariant {
        name: "listings show what is there",
        checked,
        unjudged: 0,
        violations: wrong.take(TOLD_MAX).collect(),
    }
}

fn timeline(events: &[Event]) -> Vec<Second> {
    let mut seconds: Vec<Second> = Vec::new();
    for event in events {
        let at = (event.end / 1_000_000_000) as usize;
        if seconds.len() <= at {
            seconds.resize(at + 1, Second::default());
        }
        let second = &mut seconds[at];
        match event.told {
            Told::Unknown => second.open += 1,
            _ => second.answered += 1,
        }
        second.slowest_ms = second.slowest_ms.max((event.end - event.begin) as f64 / 1e6);
    }
    seconds
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_zone_that_is_not_whole_is_told() {
        let well = json!({"lost": 0, "missing": 0, "misplaced": 0, "surplus": 0, "orphans": 0, "silent": [], "shards": 9});
        assert_eq!(sound(&well), Ok(9));
        for fault in ["lost", "missing", "misplaced", "surplus", "orphans"] {
            let mut bad = well.clone();
            bad[fault] = json!(1);
            assert!(sound(&bad).is_err(), "{fault}");
        }
        let mut silent = well.clone();
        silent["silent"] = json!([3]);
        assert!(sound(&silent).is_err());
        assert!(sound(&json!({})).is_err());
    }

    #[test]
    fn replicas_that_differ_or_were_not_asked_are_told() {
        let group = |state: &str, silent: Json| json!({"state": state, "silent": silent});
        assert_eq!(same(&json!([group("equal", json!([]))])), Ok(1));
        assert!(same(&json!([])).is_err());
        for bad in
            [group("diverged", json!([])), group("no majority", json!([])), group("equal", json!(["1.2"]))]
        {
            assert!(same(&json!([group("equal", json!([])), bad])).is_err());
        }
    }
}
