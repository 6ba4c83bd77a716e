//! The load: workers, each with a connection of its own, that repeat one operation until a phase is over.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use tokio::task::JoinSet;

use super::args::{LoadArgs, Op, show_size};
use super::body::Source;
use super::operation::{Objects, Worker};
use super::process;
use super::report::{Cost, Phase, Report, Tally};
use crate::s3::{Connection, Endpoint};

/// Keys that a LIST phase pages over, at least.
const LIST_KEYS: usize = 1000;
/// What GET, HEAD and DELETE find stored at least, bytes, between `concurrency` and [`LIST_KEYS`] objects.
const FILL_BYTES: u64 = 256 << 20;
/// A failing endpoint is asked again after this, so that a phase of errors is not a busy loop.
const ERROR_PAUSE: Duration = Duration::from_millis(20);

/// Measures the endpoint that the arguments name.
pub(super) async fn run(args: &LoadArgs) -> anyhow::Result<Report> {
    let name = format!("bench-{:016x}", rand::random::<u64>());
    let load = Load::new(args, &args.endpoint, &name)?;
    load.bucket("PUT", 200).await.context("creating the benchmark's bucket")?;
    let measured = load.measure(true).await;
    // What was stored goes even after a failure, as far as the endpoint still answers.
    let removed = load.bucket("DELETE", 204).await;
    let report = measured?;
    removed.context("removing the benchmark's bucket")?;
    Ok(report)
}

/// Measures a server that keeps nothing, so that there is nothing to create and to remove.
pub(super) async fn run_sink(args: &LoadArgs, target: &str) -> anyhow::Result<Report> {
    Load::new(args, target, "sink")?.measure(false).await
}

/// A load on one bucket.
pub(super) struct Load {
    args: LoadArgs,
    /// How the report names what was measured.
    target: String,
    bucket: String,
    endpoint: Arc<Endpoint>,
    source: Source,
}

/// When a phase ends.
#[derive(Clone)]
pub(super) enum End {
    At(Instant),
    /// When somebody says so.
    When(Arc<AtomicBool>),
    /// When this many objects are stored.
    Stored(usize),
    /// When none is stored any more.
    Empty,
}

impl Load {
    pub(super) fn new(args: &LoadArgs, target: &str, bucket: &str) -> anyhow::Result<Self> {
        ensure!(!args.sizes.is_empty() && !args.ops.is_empty(), "nothing to measure");
        let largest = args.sizes.iter().copied().max().unwrap_or(0).min(args.part_size);
        Ok(Self {
            args: args.clone(),
            target: target.to_owned(),
            bucket: bucket.to_owned(),
            endpoint: Arc::new(Endpoint::new(&args.s3())?),
            source: Source::new(largest)?,
        })
    }

    /// The same load, other processes watched.
    pub(super) fn watching(&self, args: LoadArgs) -> Self {
        let (target, bucket) = (self.target.clone(), self.bucket.clone());
        Self { args, target, bucket, endpoint: self.endpoint.clone(), source: self.source.clone() }
    }

    pub(super) async fn bucket(&self, method: &str, status: u16) -> anyhow::Result<()> {
        let path = format!("/{}", self.bucket);
        let answer =
            Connection::new(self.endpoint.clone()).send(method, &path, "", Default::default(), true).await?;
        let body = String::from_utf8_lossy(&answer.body);
        ensure!(answer.status == status, "{method} {path}: {} {body}", answer.status);
        Ok(())
    }

    async fn measure(&self, keeps: bool) -> anyhow::Result<Report> {
        process::read(&self.args.pids)?;
        let mut sizes = self.args.sizes.clone();
        sizes.sort_unstable();
        sizes.dedup();
        let mut ops = self.args.ops.clone();
        ops.sort_unstable();
        ops.dedup();

        let mut report = Report::new(&self.args);
        for (index, bytes) in sizes.iter().enumerate() {
            let objects =
                Arc::new(Objects::new(&self.bucket, &show_size(*bytes), *bytes, self.args.part_size));
            let measured = self.size(&ops, index == 0, &objects, keeps, &mut report).await;
            if keeps {
                self.phase(Op::Delete, &objects, End::Empty).await?;
            }
            measured?;
        }
        Ok(report)
    }

    async fn size(
        &self,
        ops: &[Op],
        smallest: bool,
        objects: &Arc<Objects>,
        keeps: bool,
        report: &mut Report,
    ) -> anyhow::Result<()> {
        for op in ops {
            // A page of keys is the same at every size.
            if *op == Op::List && !smallest {
                continue;
            }
            if *op != Op::Put && objects.stored() < self.enough(*op, objects.bytes) {
                if keeps {
                    self.phase(Op::Put, objects, End::Stored(self.enough(*op, objects.bytes))).await?;
                    ensure!(objects.stored() > 0, "nothing could be stored for {}", op.name());
                } else {
                    objects.pretend(LIST_KEYS);
                }
            }
            let size = show_size(objects.bytes);
            tracing::info!(target: "holdfast::bench", op = op.name(), size, on = self.target, "measuring");
            let end = End::At(Instant::now() + self.args.duration);
            report.phases.push(self.phase(*op, objects, end).await?);
        }
        Ok(())
    }

    fn enough(&self, op: Op, bytes: u64) -> usize {
        match op {
            Op::List => LIST_KEYS,
            _ => {
                let by_bytes = usize::try_from(FILL_BYTES / bytes.max(1)).unwrap_or(usize::MAX);
                by_bytes.clamp(self.args.concurrency as usize, LIST_KEYS.max(self.args.concurrency as usize))
            }
        }
    }

    pub(super) async fn phase(&self, op: Op, objects: &Arc<Objects>, end: End) -> anyhow::Result<Phase> {
        let own = [std::process::id()];
        let (servers_before, own_before) = (process::read(&self.args.pids)?, process::read(&own)?);
        let begun = Instant::now();
        let mut workers = JoinSet::new();
        for _ in 0..self.args.concurrency {
            let connection = Connection::new(self.endpoint.clone());
            let worker = Worker::new(connection, objects.clone(), self.source.clone());
            workers.spawn(repeat(worker, op, objects.clone(), end.clone()));
        }
        let mut tally = Tally::default();
        while let Some(part) = workers.join_next().await {
            tally.merge(part.context("a worker")?);
        }
        let elapsed = begun.elapsed();
        let cost = Cost {
            servers: (!self.args.pids.is_empty())
                .then(|| process::read(&self.args.pids))
                .transpose()?
                .map(|after| (servers_before, after)),
            generator: (own_before, process::read(&own)?),
        };
        Ok(Phase::new(&self.target, op.name(), objects.bytes, elapsed, tally, cost))
    }
}

async fn repeat(mut worker: Worker, op: Op, objects: Arc<Objects>, end: End) -> Tally {
    let mut tally = Tally::default();
    loop {
        let over = match &end {
            End::At(instant) => Instant::now() >= *instant,
            End::When(said) => said.load(Ordering::SeqCst),
            End::Stored(count) => objects.stored() >= *count || tally.errors > 100,
            End::Empty => objects.stored() == 0 || tally.errors > 100,
        };
        if over {
            return tally;
        }
        let begun = Instant::now();
        match worker.once(op).await {
            Ok(Some(bytes)) => tally.done(bytes, begun.elapsed()),
            // Nothing is left to delete.
            Ok(None) => return tally,
            Err(error) => {
                tally.failed(&error);
                tokio::time::sleep(ERROR_PAUSE).await;
            }
        }
    }
}
