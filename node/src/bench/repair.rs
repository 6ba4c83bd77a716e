//! `bench repair`: what rebuilding a lost data node costs, and what readers notice of it, in one run.
//!
//! Objects are stored, read for a while with nothing else going on, then one data node is killed; the zone takes it out and
//! rebuilds what it held, while the same readers go on until everything is in its place. It needs a zone with a host to spare and a
//! short `meta.out_after`. The node stays dead: `holdfast server -c` on its configuration brings it back.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use holdfast_proto::admin::RepairStatus;
use holdfast_proto::meta::TargetState;
use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;

use super::args::{LoadArgs, Op, RepairArgs, show_size};
use super::load::{End, Load};
use super::operation::Objects;
use super::process;
use super::report::Phase;
use crate::node::contact::Contact;

const POLL: Duration = Duration::from_millis(100);
const GIB: f64 = (1_u64 << 30) as f64;

/// What was measured. The JSON field names are a contract.
#[derive(Debug, Serialize)]
pub(crate) struct RepairReport {
    stored_bytes: u64,
    object_bytes: u64,
    /// From the kill until the first shard was brought: silence, `meta.out_after`, and a pass.
    until_begun_s: f64,
    rebuild_s: f64,
    rebuilt_shards: u64,
    rebuilt_bytes: u64,
    rebuilt_mb_per_s: f64,
    /// Of all named processes while it was rebuilt, readers included, and without what the readers cost before.
    cpu_s: f64,
    cpu_s_per_gib: f64,
    cpu_s_per_gib_without_readers: f64,
    written_per_rebuilt_byte: f64,
    rss_bytes_largest_process: u64,
    readers: Vec<Phase>,
}

/// Runs it.
pub(super) async fn run(args: &RepairArgs) -> anyhow::Result<RepairReport> {
    let size = *args.load.sizes.first().context("--sizes names the size of the objects")?;
    let name = format!("bench-{:016x}", rand::random::<u64>());
    let load = Load::new(&args.load, &args.load.endpoint, &name)?;
    load.bucket("PUT", 200).await.context("creating the benchmark's bucket")?;
    let objects = Arc::new(Objects::new(&name, &show_size(size), size, args.load.part_size));
    let measured = measure(args, &load, &objects).await;
    // What was stored goes even after a failure, as far as the endpoint still answers.
    let unwatched = load.watching(LoadArgs { pids: Vec::new(), ..args.load.clone() });
    unwatched.phase(Op::Delete, &objects, End::Empty).await?;
    let removed = load.bucket("DELETE", 204).await;
    let report = measured?;
    removed.context("removing the benchmark's bucket")?;
    Ok(report)
}

async fn measure(args: &RepairArgs, load: &Load, objects: &Arc<Objects>) -> anyhow::Result<RepairReport> {
    let contact = Contact::new(vec![args.zone.clone()]);
    let before = repair(&contact).await?;
    let count = usize::try_from(args.fill.div_ceil(objects.bytes.max(1)))?;
    tracing::info!(target: "holdfast::bench", count, "storing");
    load.phase(Op::Put, objects, End::Stored(count)).await?;
    ensure!(objects.stored() >= count, "only {} of {count} objects could be stored", objects.stored());
    let idle = load.phase(Op::Get, objects, End::At(Instant::now() + args.load.duration)).await?;

    let left: Vec<u32> = args.load.pids.iter().copied().filter(|pid| *pid != args.kill).collect();
    let load = load.watching(LoadArgs { pids: left.clone(), ..args.load.clone() });
    kill(args.kill)?;
    let killed = Instant::now();
    until("the node's target to go out and its rebuild to begin", args.patience, async || {
        let status = contact.status().await.map_err(|fault| anyhow::anyhow!("{}", fault.message))?;
        let out =
            status.map.unwrap_or_default().targets.iter().any(|row| row.state() == TargetState::TargetOut);
        Ok(out && status.repair.unwrap_or_default().brought_shards > before.brought_shards)
    })
    .await?;
    let (begun, usage) = (Instant::now(), process::read(&left)?);
    let is_over = Arc::new(AtomicBool::new(false));
    let readers = load.phase(Op::Get, objects, End::When(is_over.clone()));
    let watching = async {
        let ended = until("everything to be in its place", args.patience, async || {
            Ok(repair(&contact).await?.settled)
        });
        let ended = ended.await;
        is_over.store(true, Ordering::SeqCst);
        ended.map(|()| begun.elapsed())
    };
    let (readers, rebuild) = tokio::join!(readers, watching);
    let (readers, rebuild) = (readers?, rebuild?.as_secs_f64());
    let (after, used) = (repair(&contact).await?, process::read(&left)?);
    let bytes = after.brought_bytes.saturating_sub(before.brought_bytes);
    let gib = (bytes as f64 / GIB).max(1e-9);
    let cpu_s = used.cpu_s - usage.cpu_s;
    Ok(RepairReport {
        stored_bytes: objects.bytes * count as u64,
        object_bytes: objects.bytes,
        until_begun_s: (begun - killed).as_secs_f64(),
        rebuild_s: rebuild,
        rebuilt_shards: after.brought_shards.saturating_sub(before.brought_shards),
        rebuilt_bytes: bytes,
        rebuilt_mb_per_s: bytes as f64 / 1e6 / rebuild.max(1e-9),
        cpu_s,
        cpu_s_per_gib: cpu_s / gib,
        cpu_s_per_gib_without_readers: (cpu_s - idle.servers_cpu_per_op() * readers.ops() as f64).max(0.0)
            / gib,
        written_per_rebuilt_byte: used.written_bytes.saturating_sub(usage.written_bytes) as f64
            / bytes.max(1) as f64,
        rss_bytes_largest_process: used.rss_max_bytes,
        readers: vec![idle.named("idle"), readers.named("repair")],
    })
}

async fn repair(contact: &Contact) -> anyhow::Result<RepairStatus> {
    let status = contact.status().await.map_err(|fault| anyhow::anyhow!("{}", fault.message))?;
    status.repair.context("the zone has no leader at the moment")
}

fn kill(pid: u32) -> anyhow::Result<()> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).context("--kill names no process")?;
    Ok(kill_process(pid, Signal::KILL)?)
}

async fn until(
    what: &str,
    patience: Duration,
    condition: impl AsyncFn() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let begun = Instant::now();
    loop {
        // A zone between two leaders answers again soon.
        if condition().await.unwrap_or(false) {
            return Ok(());
        }
        ensure!(begun.elapsed() < patience, "waited {patience:?} for {what}");
        tokio::time::sleep(POLL).await;
    }
}

impl fmt::Display for RepairReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} stored in objects of {}; one data node killed, its rebuild began after {:.1} s",
            show_size(self.stored_bytes),
            show_size(self.object_bytes),
            self.until_begun_s
        )?;
        writeln!(
            f,
            "rebuilt {} shards, {:.1} MB in {:.1} s: {:.1} MB/s; {:.2} CPU s/GiB with readers, {:.2} without; {:.2} bytes \
             written per byte",
            self.rebuilt_shards,
            self.rebuilt_bytes as f64 / 1e6,
            self.rebuild_s,
            self.rebuilt_mb_per_s,
            self.cpu_s_per_gib,
            self.cpu_s_per_gib_without_readers,
            self.written_per_rebuilt_byte,
        )?;
        for phase in &self.readers {
            write!(f, "readers, {:>6}: {phase}", phase.target)?;
        }
        Ok(())
    }
}
