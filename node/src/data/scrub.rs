//! Reads everything that a target stores, over days, and finds what went bad before a second disk fails.
//!
//! A pass walks all shards in id order, reads each from the device (its pages are dropped from the page cache before and after)
//! and proves header and blocks. What is bad is noted as if a reader had met it: from then on the target says that it does not
//! have the shard whole, and the zone's repair stores it again. Nothing is deleted here.
//!
//! `scrub.json` in the target's directory says how far the pass is and which shards are known to be bad, replaced whole and
//! seldom. A crash costs what was read since: it is read again.
//!
//! The pace is what lets a pass end in `every`, never above `bytes_per_second`; a pass that was asked for has that rate.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use holdfast_proto::id::ShardId;
use holdfast_proto::meta::ScrubReport;
use holdfast_proto::v1::FaultKind;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::shared::{Place, Shared};
use super::target::Target;
use crate::env::{Disk, Env};
use crate::supervisor::Progress;

/// Shards between two looks at whether to go on.
const PAGE: usize = 128;
/// What a shard costs beyond its bytes: a disk with a head moves it.
const SEEK_BYTES: u64 = 64 << 10;
/// No slower than this, bytes per second: small targets are done within minutes.
const RATE_MIN: u64 = 1 << 20;
/// A pass is meant to take so much of its period, in per cent.
const PASS_PART: u64 = 80;
const SAVE_EVERY: Duration = Duration::from_secs(30);
/// Before asking again while the index is being rebuilt.
const PAUSE: Duration = Duration::from_secs(1);
const FORMAT: u32 = 1;

/// How a target is scrubbed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ScrubConfig {
    /// Everything is read once in this time.
    pub(crate) every: Duration,
    /// Reading is never faster, bytes per second.
    pub(crate) bytes_per_second: u64,
}

/// What `scrub.json` holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Saved {
    format: u32,
    /// When the pass that runs, or ran last, began, and when a whole pass last ended; 0: never. Milliseconds since 1970.
    began_ms: u64,
    finished_ms: u64,
    running: bool,
    /// The pass has proven all shards up to this one, as hex digits; empty at its start.
    after: String,
    /// Of the pass.
    shards: u64,
    bytes: u64,
    /// Ever found by a pass.
    found: u64,
    /// Known to be bad, as hex digits.
    bad: Vec<String>,
}

/// A target's scrub as its worker, its report and who asks for a pass see it.
#[derive(Debug, Default)]
pub(super) struct Board {
    saved: Mutex<Saved>,
    every_ms: AtomicU64,
    rate: AtomicU64,
    asked: AtomicBool,
    wake: Notify,
}

impl Board {
    /// What was saved before; what it calls bad is taken for bad again.
    pub(super) fn load(shared: &Shared) {
        let Ok(content) = shared.home.disk.read(&path(shared)) else { return };
        // A file that does not read costs a pass from the start.
        let Ok(saved) = serde_json::from_slice::<Saved>(&content) else { return };
        if saved.format != FORMAT {
            return;
        }
        saved.bad.iter().filter_map(|text| parse(text)).for_each(|shard| shared.remember_bad(shard));
        *shared.scrub.saved.lock() = saved;
    }

    fn ask(&self) {
        self.asked.store(true, Ordering::SeqCst);
        self.wake.notify_one();
    }

    pub(super) fn report(&self, now_ms: u64) -> ScrubReport {
        let saved = self.saved.lock();
        let every = self.every_ms.load(Ordering::Relaxed);
        let since = saved.finished_ms.max(if saved.finished_ms == 0 { saved.began_ms } else { 0 });
        ScrubReport {
            running: saved.running,
            began_ms: saved.began_ms,
            finished_ms: saved.finished_ms,
            shards: saved.shards,
            bytes: saved.bytes,
            bytes_per_second: if saved.running { self.rate.load(Ordering::Relaxed) } else { 0 },
            found: saved.found,
            overdue: every > 0 && since > 0 && now_ms.saturating_sub(since) > 2 * every,
        }
    }
}

fn path(shared: &Shared) -> PathBuf {
    shared.directory.root.join("scrub.json")
}

fn parse(text: &str) -> Option<ShardId> {
    ShardId::from_slice(&hex::decode(text).ok()?).ok()
}

/// What reading one shard showed.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Gone,
    Good(u64),
    Bad(u64),
}

impl Shared {
    /// Reads a shard from the device and proves it. Blocks.
    fn scrub_one(&self, shard: ShardId) -> Seen {
        let Place::Here(entry) = self.look(shard).place else { return Seen::Gone };
        let bytes = u64::from(entry.meta_len) + u64::from(entry.length);
        self.reader.drop_cache(entry);
        let outcome = self.check(self.reader.read(shard, entry, 0..u32::MAX));
        self.reader.drop_cache(entry);
        match outcome {
            Ok(_) => Seen::Good(bytes),
            // It may have been deleted, or stored again, under our hands.
            Err(_) if self.look(shard).place != Place::Here(entry) => Seen::Gone,
            Err(bad) => {
                self.note_bad(shard, entry, bad.blocks);
                Seen::Bad(bytes)
            }
        }
    }
}

impl Target {
    /// Has a pass begun now, from the start and at full rate.
    pub(crate) fn ask_scrub(&self) {
        self.shared().scrub.ask();
    }
}

/// Scrubs a target for as long as the node runs.
pub(crate) async fn run(
    target: Arc<Target>,
    config: ScrubConfig,
    env: Env,
    progress: Progress,
) -> anyhow::Result<()> {
    let board = &target.shared().scrub;
    board.every_ms.store(millis(config.every), Ordering::Relaxed);
    loop {
        let asked = board.asked.swap(false, Ordering::SeqCst);
        let now = env.now_ms();
        let (is_running, due) = {
            let saved = board.saved.lock();
            (saved.running, saved.began_ms.saturating_add(millis(config.every)))
        };
        if !asked && !is_running && now < due {
            // Looked at again now and then: the wall clock may be set.
            let wait = Duration::from_millis(due - now).min(Duration::from_secs(3600));
            let _ = tokio::time::timeout(wait, board.wake.notified()).await;
            continue;
        }
        if asked || !is_running {
            begin(&target, now);
        }
        match pass(&target, config, asked, &env, &progress).await {
            Ok(()) => progress.well(),
            Err(error) => {
                progress.trouble(format!("scrub: {error:#}"));
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

fn begin(target: &Target, now_ms: u64) {
    let mut saved = target.shared().scrub.saved.lock();
    (saved.began_ms, saved.running) = (now_ms, true);
    (saved.after, saved.shards, saved.bytes) = (String::new(), 0, 0);
}

/// Goes on with the pass until it ends or another is asked for.
async fn pass(
    target: &Arc<Target>,
    config: ScrubConfig,
    in_haste: bool,
    env: &Env,
    progress: &Progress,
) -> anyhow::Result<()> {
    let board = &target.shared().scrub;
    let mut saved_at = Instant::now();
    loop {
        if board.asked.load(Ordering::SeqCst) {
            return Ok(());
        }
        let after = parse(&board.saved.lock().after);
        let page = match target.list(after, PAGE).await {
            Ok(page) => page,
            Err(fault) if fault.kind == FaultKind::ShardUnknown => {
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            Err(fault) => return Err(anyhow::Error::new(fault)),
        };
        let rate = if in_haste { config.bytes_per_second } else { rate(target, config) };
        board.rate.store(rate, Ordering::Relaxed);
        for stored in &page.shards {
            let shard = ShardId::from_slice(&stored.shard)?;
            let begun = Instant::now();
            let shared = Arc::clone(target.shared());
            let seen = tokio::task::spawn_blocking(move || shared.scrub_one(shard)).await?;
            let cost = note(target, shard, &seen, progress);
            let least = Duration::from_secs_f64((cost + SEEK_BYTES) as f64 / rate as f64);
            tokio::time::sleep(least.saturating_sub(begun.elapsed())).await;
        }
        if let Some(last) = page.last {
            board.saved.lock().after = hex::encode(last.to_bytes());
        }
        if !page.more {
            let mut saved = board.saved.lock();
            (saved.finished_ms, saved.running) = (env.now_ms(), false);
        }
        if !page.more || saved_at.elapsed() >= SAVE_EVERY {
            save(target).await?;
            saved_at = Instant::now();
        }
        if !page.more {
            return Ok(());
        }
    }
}

/// Bytes per second at which a pass ends in time.
fn rate(target: &Target, config: ScrubConfig) -> u64 {
    let totals = *target.shared().totals.lock();
    let all = totals.bytes + totals.shards * SEEK_BYTES;
    let seconds = (config.every.as_secs() * PASS_PART / 100).max(1);
    (all / seconds).clamp(RATE_MIN.min(config.bytes_per_second), config.bytes_per_second)
}

fn note(target: &Target, shard: ShardId, seen: &Seen, progress: &Progress) -> u64 {
    let (bytes, bad) = match seen {
        Seen::Gone => return 0,
        Seen::Good(bytes) => (*bytes, false),
        Seen::Bad(bytes) => (*bytes, true),
    };
    let mut saved = target.shared().scrub.saved.lock();
    saved.shards += 1;
    saved.bytes += bytes;
    if bad && !saved.bad.contains(&hex::encode(shard.to_bytes())) {
        saved.found += 1;
        saved.bad.push(hex::encode(shard.to_bytes()));
        metrics::counter!("holdfast_data_scrub_bad_shards_total").increment(1);
    }
    drop(saved);
    progress.done(1);
    metrics::counter!("holdfast_data_scrubbed_bytes_total").increment(bytes);
    bytes
}

/// Writes down how far it is. What is bad is asked anew: it may have been stored again since.
async fn save(target: &Arc<Target>) -> io::Result<()> {
    let shared = Arc::clone(target.shared());
    let saved = {
        let known: BTreeSet<ShardId> = shared.bad_shards().into_iter().collect();
        let mut saved = shared.scrub.saved.lock();
        saved.format = FORMAT;
        saved.bad = known.iter().map(|shard| hex::encode(shard.to_bytes())).collect();
        saved.clone()
    };
    let content = serde_json::to_vec_pretty(&saved)?;
    let written = tokio::task::spawn_blocking(move || {
        let disk: &Arc<dyn Disk> = &shared.home.disk;
        disk.replace(&path(&shared), &content)
    });
    written.await.map_err(io::Error::other)?
}

#[cfg(test)]
#[path = "scrub_test.rs"]
mod tests;
