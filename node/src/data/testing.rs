//! What the tests of this folder share: simulated machines, shards, and opening targets on them.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use holdfast_proto::data::{ObjectRef, ShardMeta};
use holdfast_proto::error::Fault;
use holdfast_proto::id::{RealmId, ShardId, WriteId};
use holdfast_proto::limits::BLOCK_BYTES;
use holdfast_proto::v1::{Codec, Scheme};
use tokio_util::sync::CancellationToken;

use super::mem_index::MemHome;
use super::sim_disk::SimDisk;
use super::target::{Target, TargetConfig, TargetError};
use crate::env::{Clock, Env, Random};

pub(super) const REALM: RealmId = RealmId::from_bytes([0x11; 16]);

#[derive(Debug, Default)]
struct SimClock(AtomicU64);

impl Clock for SimClock {
    fn now_ms(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed)
    }

    /// Leaps, so that nothing that is cached for a while stays fresh.
    fn monotonic(&self) -> Duration {
        Duration::from_secs(10 * self.0.fetch_add(1, Ordering::Relaxed))
    }
}

#[derive(Debug)]
struct SimRandom;

impl Random for SimRandom {
    fn fill(&self, out: &mut [u8]) {
        out.iter_mut().zip(0xA0..).for_each(|(byte, value)| *byte = value);
    }
}

/// A simulated machine: its disk and the index that lives on it.
#[derive(Debug, Clone)]
pub(super) struct Machine {
    pub(super) disk: SimDisk,
    pub(super) index: MemHome,
    pub(super) config: TargetConfig,
}

impl Machine {
    pub(super) fn new() -> Self {
        let config =
            TargetConfig { segment_bytes: 256 << 10, index_batch: 8, ..TargetConfig::new("/target", REALM) };
        Self { disk: SimDisk::new(), index: MemHome::default(), config }
    }

    pub(super) async fn try_open(&self) -> Result<Arc<Target>, TargetError> {
        let env = Env::new(Arc::new(SimClock::default()), Arc::new(SimRandom), Arc::new(self.disk.clone()));
        Target::open_with(self.config.clone(), env, CancellationToken::new(), Arc::new(self.index.clone()))
            .await
    }

    /// Paths of the segments, in order.
    pub(super) fn segments(&self) -> Vec<PathBuf> {
        let paths = self.disk.paths().into_iter();
        paths.filter(|path| path.extension().is_some_and(|end| end == "seg")).collect()
    }

    pub(super) async fn open(&self) -> Arc<Target> {
        let target = self.try_open().await.unwrap();
        recovered(&target).await;
        target
    }
}

/// A target on the real disk, with the real index.
pub(super) async fn open_real(config: &TargetConfig) -> Arc<Target> {
    let target = Target::open(config.clone(), Env::real(), CancellationToken::new()).await.unwrap();
    recovered(&target).await;
    target
}

/// Polls `condition` for up to half a minute.
pub(super) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(30), "waited too long until {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Runs what queues without waiting, while the disk does nothing: so all but the first job is one batch.
pub(super) async fn all_at_once<F: Future>(
    machine: &Machine,
    jobs: impl IntoIterator<Item = F>,
) -> Vec<F::Output> {
    let mut jobs = futures::future::join_all(jobs);
    {
        let _held = machine.disk.hold_syncs();
        assert!((&mut jobs).now_or_never().is_none(), "they were done without the disk");
    }
    jobs.await
}

/// Queues jobs as they come, most of them into one batch; some may need no disk, and some may have failed before.
pub(super) async fn queued_together<F: Future>(
    machine: &Machine,
    jobs: impl IntoIterator<Item = F>,
) -> Vec<F::Output> {
    let mut jobs = futures::future::join_all(jobs);
    let early = {
        let _held = machine.disk.hold_syncs();
        (&mut jobs).now_or_never()
    };
    match early {
        Some(outcomes) => outcomes,
        None => jobs.await,
    }
}

/// A put or a delete.
pub(super) type Job<'a> = BoxFuture<'a, Result<(), Fault>>;

pub(super) fn put(target: &Target, number: u32, length: usize) -> Job<'_> {
    let (meta, data) = shard(number, length);
    Box::pin(target.put(meta, data))
}

pub(super) fn delete(target: &Target, number: u32) -> Job<'_> {
    Box::pin(async move { target.delete(&[wire(number)]).await })
}

pub(super) async fn recovered(target: &Target) {
    until("the index is recovered", || !target.report().recovering).await;
}

pub(super) fn shard_id(number: u32) -> ShardId {
    let mut write = [0x22; 16];
    write[..4].copy_from_slice(&number.to_be_bytes());
    ShardId { write: WriteId::from_bytes(write), stripe: number % 3, index: (number % 6) as u8 }
}

pub(super) fn wire(number: u32) -> Bytes {
    Bytes::copy_from_slice(&shard_id(number).to_bytes())
}

/// A shard of `length` bytes that depend on its number.
pub(super) fn shard(number: u32, length: usize) -> (ShardMeta, Bytes) {
    let data: Vec<u8> =
        (0..length).map(|at| ((at as u32 / 7).wrapping_mul(31) ^ number ^ at as u32) as u8).collect();
    (describe(number, &data), data.into())
}

pub(super) fn describe(number: u32, data: &[u8]) -> ShardMeta {
    let hashes: Vec<u8> =
        data.chunks(BLOCK_BYTES).flat_map(|block| *blake3::hash(block).as_bytes()).collect();
    ShardMeta {
        shard: wire(number),
        pg: 7,
        scheme: Some(Scheme { codec: Codec::Copies.into(), data: 1, parity: 2 }),
        length: data.len() as u32,
        object: Some(ObjectRef {
            bucket: Bytes::from_static(&[0x33; 16]),
            key: Bytes::from(format!("photos/{number}.jpg")),
            begin_hlc: 1 << 20,
            declared_length: data.len() as u64,
            ..ObjectRef::default()
        }),
        block_hashes: hashes.into(),
    }
}
