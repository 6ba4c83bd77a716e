//! What a pass finds, what it does not, and what a restart remembers.

use std::time::Duration;

use super::super::testing::{Machine, shard, until, wire};
use super::*;
use crate::env::{Clock, Random};
use crate::supervisor::Supervisor;
use tokio_util::sync::CancellationToken;

#[derive(Debug)]
struct Fixed(AtomicU64);

impl Clock for Fixed {
    fn now_ms(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
    fn monotonic(&self) -> Duration {
        Duration::from_millis(self.now_ms())
    }
}

impl Random for Fixed {
    fn fill(&self, out: &mut [u8]) {
        out.fill(7);
    }
}

/// A worker over a target, at a wall clock that the test sets.
struct Scrubbing {
    supervisor: Supervisor,
    clock: Arc<Fixed>,
}

impl Scrubbing {
    fn start(machine: &Machine, target: &Arc<Target>, config: ScrubConfig, now_ms: u64) -> Self {
        let clock = Arc::new(Fixed(AtomicU64::new(now_ms)));
        let env = Env::new(clock.clone(), Arc::new(Fixed(AtomicU64::new(0))), Arc::new(machine.disk.clone()));
        let supervisor = Supervisor::new(CancellationToken::new());
        let target = Arc::clone(target);
        supervisor.worker("scrub", move |progress| run(target.clone(), config, env.clone(), progress));
        Self { supervisor, clock }
    }

    async fn stop(self) {
        self.supervisor.shutdown(Duration::from_secs(5)).await;
    }
}

const FAST: ScrubConfig = ScrubConfig { every: Duration::from_secs(1000), bytes_per_second: 1 << 40 };

fn scrub(target: &Target) -> ScrubReport {
    target.report().scrub.unwrap()
}

/// Where the bytes of a shard begin in the segments.
fn place(machine: &Machine, number: u32, length: usize) -> (PathBuf, u64) {
    let (_, data) = shard(number, length);
    for path in machine.segments() {
        let mut at = None;
        machine.disk.damage(&path, |content| {
            at = content.windows(512).position(|window| *window == data[..512]);
        });
        if let Some(at) = at {
            return (path, at as u64);
        }
    }
    panic!("shard {number} is in no segment");
}

fn flip(machine: &Machine, path: &std::path::Path, at: u64) {
    machine.disk.damage(path, |content| content[at as usize] ^= 4);
}

async fn stored(machine: &Machine) -> Arc<Target> {
    let target = machine.open().await;
    for number in 0..40 {
        // Over several segments of 256 KiB, the last one still written to.
        let (meta, data) = shard(number, 20_000);
        target.put(meta, data).await.unwrap();
    }
    assert!(machine.segments().len() > 2);
    target
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pass_finds_what_went_bad_and_a_new_copy_ends_it() {
    let machine = Machine::new();
    let target = stored(&machine).await;
    // In a sealed segment and in the one that is written; a payload and a header.
    for (number, offset) in [(1, 5000_i64), (20, -40), (39, 19_999)] {
        let (path, at) = place(&machine, number, 20_000);
        flip(&machine, &path, at.checked_add_signed(offset).unwrap());
    }
    let scrubbing = Scrubbing::start(&machine, &target, FAST, 1_000_000);
    until("a pass is over", || scrub(&target).finished_ms > 0).await;
    let report = target.report();
    assert_eq!((scrub(&target).shards, scrub(&target).found, report.bad_shards), (40, 3, 3));
    assert!(report.corrupt_blocks >= 3);

    // Told to whoever asks what is here, and not taken for stored when it comes again.
    let bad = [1, 20, 39];
    let ids: Vec<_> = (0..40).map(wire).collect();
    let present = target.stat(&ids).unwrap();
    let listed = target.list(None, 100).await.unwrap().shards;
    for number in 0..40_u32 {
        let is_bad = bad.contains(&number);
        assert_eq!(present[number as usize], !is_bad, "shard {number}");
        assert!(listed.iter().any(|row| row.shard == wire(number) && row.bad == is_bad), "shard {number}");
    }
    for number in bad {
        let (meta, data) = shard(number, 20_000);
        target.put(meta, data.clone()).await.unwrap();
        assert_eq!(target.get(&wire(number), 0, 0).await.unwrap().data, data);
    }
    assert_eq!(target.report().bad_shards, 0);
    target.ask_scrub();
    let before = scrub(&target).finished_ms;
    scrubbing.clock.0.fetch_add(5, Ordering::Relaxed);
    until("another pass is over", || scrub(&target).finished_ms > before).await;
    assert_eq!((scrub(&target).found, target.report().bad_shards), (3, 0), "nothing new");
    scrubbing.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_goes_on_with_what_was_known() {
    let machine = Machine::new();
    let target = stored(&machine).await;
    let (path, at) = place(&machine, 3, 20_000);
    flip(&machine, &path, at);
    let scrubbing = Scrubbing::start(&machine, &target, FAST, 1_000_000);
    until("a pass is over", || scrub(&target).finished_ms > 0).await;
    scrubbing.stop().await;
    drop(target);

    let target = machine.open().await;
    assert_eq!((target.report().bad_shards, scrub(&target).found), (1, 1), "before anybody reads it again");
    assert_eq!(target.stat(&[wire(3), wire(4)]).unwrap(), [false, true]);
    // Not due: nothing is read.
    let scrubbing = Scrubbing::start(&machine, &target, FAST, 1_900_000);
    target.ask_scrub();
    until("a pass that was asked for is over", || scrub(&target).finished_ms == 1_900_000).await;
    assert_eq!(scrub(&target).found, 1, "found once");
    assert!(!scrub(&target).overdue);
    scrubbing.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pass_is_due_after_its_time_and_overdue_after_twice_that() {
    let machine = Machine::new();
    let target = stored(&machine).await;
    let scrubbing = Scrubbing::start(&machine, &target, FAST, 10_000_000);
    until("a pass is over", || scrub(&target).finished_ms > 0).await;
    let board = &target.shared().scrub;
    assert!(!board.report(11_999_000).overdue && board.report(12_001_000).overdue);
    // Woken without being asked, it looks at the clock.
    board.wake.notify_one();
    scrubbing.clock.0.store(11_000_000, Ordering::Relaxed);
    board.wake.notify_one();
    until("the next pass is over", || scrub(&target).finished_ms == 11_000_000).await;
    scrubbing.stop().await;
}

#[test]
fn the_pace_lets_a_pass_end_in_time() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let machine = Machine::new();
    let target = runtime.block_on(machine.open());
    let pace = |bytes, config| {
        target.shared().totals.lock().bytes = bytes;
        rate(&target, config)
    };
    let config = ScrubConfig { every: Duration::from_secs(1_000_000), bytes_per_second: 50 << 20 };
    assert_eq!(pace(0, config), RATE_MIN);
    assert_eq!(pace(8_000_000 << 20, config), 10 << 20);
    assert_eq!(pace(1 << 60, config), 50 << 20);
}
