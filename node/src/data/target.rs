//! A target: one disk directory that stores shards.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use bytes::Bytes;
use holdfast_proto::data::{ShardMeta, StoredShard};
use holdfast_proto::error::Fault;
use holdfast_proto::id::{RealmId, ShardId};
use holdfast_proto::limits::{BLOCK_BYTES, SHARD_BYTES_MAX};
use holdfast_proto::meta::TargetReport;
use holdfast_proto::v1::FaultKind;
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::index::IndexHome;
use super::read::bad_blocks;
use super::record::{Layout, META_BYTES_MAX};
use super::scrub::Board;
use super::shared::{Lookup, Place, Shared};
use super::sled_index::SledHome;
pub(crate) use super::space::Thresholds;
use super::writer::{Job, Put, Queued, Removal, Writer};
use super::{indexer, open};
use crate::env::Env;

/// Jobs in a target's queue, at most.
const QUEUE_JOBS: usize = 1024;
/// Shards in one delete, at most.
const REMOVALS_MAX: usize = 10_000;
/// Up to this, hashing and copying out of the page cache cost less than another thread does, bytes.
const INLINE_BYTES: u32 = 128 << 10;

/// Whether segments are written past the page cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum DirectIo {
    /// Where the file system has it.
    #[default]
    Auto,
    /// Never.
    Off,
}

/// How a target is run.
#[derive(Debug, Clone)]
pub(crate) struct TargetConfig {
    /// The target's directory; nothing else may live in it.
    pub(crate) dir: PathBuf,
    /// The realm it belongs to, or will from its first opening on.
    pub(crate) realm: RealmId,
    /// A segment is sealed before it grows beyond this, bytes.
    pub(crate) segment_bytes: u64,
    /// See [`DirectIo`].
    pub(crate) direct_io: DirectIo,
    /// Memory for index pages, bytes.
    pub(crate) index_cache_bytes: u64,
    /// Acknowledged changes move from memory into the index once there are so many, or a second later.
    pub(crate) index_batch: usize,
    /// Writing waits when so many acknowledged changes have not been moved into the index. The default bounds their
    /// memory to a few tens of MiB.
    pub(crate) index_lag_max: usize,
    /// Longest batch, bytes; at least one full shard fits whatever is said here.
    pub(crate) batch_bytes: usize,
    /// Bodies waiting to be written, at most, bytes.
    pub(crate) queue_bytes: usize,
    /// When writing stops.
    pub(crate) thresholds: Thresholds,
}

impl TargetConfig {
    /// The defaults.
    pub(crate) fn new(dir: impl Into<PathBuf>, realm: RealmId) -> Self {
        Self {
            dir: dir.into(),
            realm,
            segment_bytes: 1 << 30,
            direct_io: DirectIo::Auto,
            index_cache_bytes: 16 << 20,
            index_batch: 4096,
            index_lag_max: 1 << 17,
            batch_bytes: 4 << 20,
            queue_bytes: 32 << 20,
            thresholds: Thresholds::default(),
        }
    }
}

/// Why a target could not be opened. Each is one clear line.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TargetError {
    /// Another process, or another target of this one, has it.
    #[error("target directory {} is in use by another process", dir.display())]
    InUse {
        /// The directory.
        dir: PathBuf,
    },
    /// It belongs to another realm.
    #[error("target directory {} belongs to another realm ({realm})", dir.display())]
    Foreign {
        /// The directory.
        dir: PathBuf,
        /// Its realm.
        realm: RealmId,
    },
    /// Its files are not what this version writes.
    #[error("target directory {} is damaged: {what}", dir.display())]
    Damaged {
        /// The directory.
        dir: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The disk or the system refused.
    #[error("target directory {}: {what} failed: {source}", dir.display())]
    Io {
        /// The directory.
        dir: PathBuf,
        /// What was tried.
        what: &'static str,
        /// What was said.
        source: std::io::Error,
    },
}

impl TargetError {
    pub(super) fn io(what: &'static str, dir: &Path, source: std::io::Error) -> Self {
        Self::Io { dir: dir.to_owned(), what, source }
    }

    pub(super) fn damaged(dir: &Path, what: impl Into<String>) -> Self {
        Self::Damaged { dir: dir.to_owned(), what: what.into() }
    }
}

/// Blocks of a shard whose checksums matched.
#[derive(Debug)]
pub(crate) struct FoundBlocks {
    /// The shard, all its block hashes included.
    pub(crate) meta: ShardMeta,
    /// Offset of `data` in the shard: a multiple of the block size.
    pub(crate) offset: u32,
    /// Whole blocks; the shard's last may be short.
    pub(crate) data: Bytes,
}

/// One page of shards.
#[derive(Debug)]
pub(crate) struct ShardPage {
    /// In id order.
    pub(crate) shards: Vec<StoredShard>,
    /// There may be more after `last`, even when `shards` is empty.
    pub(crate) more: bool,
    /// Go on after this one, which may be further than the last of `shards`. `None` only when there is no more.
    pub(crate) last: Option<ShardId>,
}

/// An open target. Dropping it without [`Target::shutdown`] leaves what a killed process leaves.
#[derive(Debug)]
pub(crate) struct Target {
    shared: Arc<Shared>,
    /// None once it stops.
    queue: Mutex<Option<mpsc::Sender<Queued>>>,
    queue_kib: Arc<Semaphore>,
    queue_kib_max: u32,
    threads: Mutex<Option<Threads>>,
    env: Env,
    cancel: CancellationToken,
}

#[derive(Debug)]
struct Threads {
    writer: JoinHandle<()>,
    indexer: JoinHandle<()>,
}

impl Target {
    /// Opens a target, or makes one of an empty directory. Returns when everything acknowledged before is readable or,
    /// where the index must be rebuilt, known not to be known yet ([`TargetReport::recovering`]).
    /// `cancel` stops new work; [`Self::shutdown`] is still to be called.
    ///
    /// # Errors
    /// See [`TargetError`].
    ///
    /// Not cancel-safe: a dropped call goes on opening in the background, and holds the directory until it is done.
    pub(crate) async fn open(
        config: TargetConfig,
        env: Env,
        cancel: CancellationToken,
    ) -> Result<Arc<Self>, TargetError> {
        let index = SledHome { dir: config.dir.join("index"), cache_bytes: config.index_cache_bytes };
        Self::open_with(config, env, cancel, Arc::new(index)).await
    }

    /// The same over another kind of index.
    pub(super) async fn open_with(
        config: TargetConfig,
        env: Env,
        cancel: CancellationToken,
        index: Arc<dyn IndexHome>,
    ) -> Result<Arc<Self>, TargetError> {
        let dir = config.dir.clone();
        let opened =
            tokio::task::spawn_blocking(move || Self::open_blocking(config, env, cancel, index)).await;
        opened
            .unwrap_or_else(|error| Err(TargetError::damaged(&dir, format!("opening it panicked: {error}"))))
    }

    fn open_blocking(
        config: TargetConfig,
        env: Env,
        cancel: CancellationToken,
        index: Arc<dyn IndexHome>,
    ) -> Result<Arc<Self>, TargetError> {
        let opened = open::open(&config, env.clone(), index)?;
        let shared = Arc::new(opened.shared);
        Board::load(&shared);
        let (sender, receiver) = mpsc::channel(QUEUE_JOBS);
        // A full shard, its meta and the padding always fit.
        let batch_bytes = config.batch_bytes.max(SHARD_BYTES_MAX + META_BYTES_MAX + (64 << 10));
        let writer =
            Writer::new(Arc::clone(&shared), receiver, opened.segment, batch_bytes, config.segment_bytes);
        let writer = spawn(&config.dir, "shard-writer", move || writer.run())?;
        let indexer = spawn(&config.dir, "shard-indexer", {
            let (shared, cancel) = (Arc::clone(&shared), cancel.clone());
            move || indexer::run(&shared, &cancel, opened.recount)
        })?;
        let queue_kib_max =
            u32::try_from(config.queue_bytes >> 10).unwrap_or(u32::MAX).clamp(4 << 10, 1 << 24);
        Ok(Arc::new(Self {
            shared,
            queue: Mutex::new(Some(sender)),
            queue_kib: Arc::new(Semaphore::new(queue_kib_max as usize)),
            queue_kib_max,
            threads: Mutex::new(Some(Threads { writer, indexer })),
            env,
            cancel,
        }))
    }

    /// The target's identity, random, for ever.
    pub(crate) fn uuid(&self) -> [u8; 16] {
        self.shared.directory.uuid
    }

    /// The target's state; the caller fills in its id. `used_bytes` counts the data of shards here, at most a second
    /// old; capacity and free bytes are the file system's.
    pub(crate) fn report(&self) -> TargetReport {
        let totals = *self.shared.totals.lock();
        let space = self.shared.space.now();
        let fault = match (self.shared.fault(), &space) {
            (Some(fault), _) => Some(fault.message),
            (None, Err(error)) => Some(format!("asking for free space failed: {error}")),
            (None, Ok(_)) if self.is_stopping() => Some("stopping".to_owned()),
            (None, Ok(_)) => match self.shared.space.allows_write(0) {
                Ok(true) => None,
                Ok(false) => Some("full".to_owned()),
                Err(error) => Some(format!("asking for free space failed: {error}")),
            },
        };
        let space = space.unwrap_or_default();
        TargetReport {
            target: 0,
            capacity_bytes: space.capacity,
            used_bytes: totals.bytes,
            free_bytes: space.free,
            writable: fault.is_none(),
            fault: fault.unwrap_or_default(),
            shards: totals.shards,
            corrupt_blocks: self.shared.corrupt_blocks(),
            recovering: self.shared.is_recovering(),
            bad_shards: self.shared.bad_count(),
            scrub: Some(self.shared.scrub.report(self.env.now_ms())),
        }
    }

    /// Stores a shard. Answers when it is durable. The same shard with the same content again is a success.
    ///
    /// # Errors
    /// `INVALID` when the content does not match its description or another is stored under the id, `FULL`,
    /// `DISK_FAILED`, `FAULT_UNAVAILABLE` while stopping.
    ///
    /// Cancel-safe in that nothing breaks: a dropped call may or may not have stored the shard.
    pub(crate) async fn put(&self, meta: ShardMeta, data: Bytes) -> Result<(), Fault> {
        let shard = parse_shard(&meta.shard)?;
        let layout = check_shape(&meta, &data)?;
        let (meta, data) = verify(meta, data).await?;
        let meta_bytes = meta.encode_to_vec();
        if meta_bytes.len() > META_BYTES_MAX {
            return Err(Fault::new(FaultKind::Invalid, "the description of the shard is too long"));
        }
        let mut meta = meta;
        self.check_writable()?;
        let before = self.shared.look(shard);
        if let Place::Here(entry) = before.place {
            let shared = Arc::clone(&self.shared);
            let held;
            (held, meta) = blocking(move || (shared.holds(shard, entry, &meta), meta)).await?;
            if held? {
                return Ok(());
            }
        }
        match self.shared.space.allows_write(data.len() as u64) {
            Ok(true) => {}
            Ok(false) => return Err(Fault::new(FaultKind::Full, "the target is full")),
            Err(error) => return Err(Fault::new(FaultKind::DiskFailed, error.to_string())),
        }
        self.submit(Job::Put(Box::new(Put { shard, layout, meta, meta_bytes, data, before }))).await
    }

    /// Removes shards. Answers when their tombstones are durable. Those that are not here are no error.
    ///
    /// # Errors
    /// As [`Self::put`].
    ///
    /// Cancel-safe as [`Self::put`].
    pub(crate) async fn delete(&self, shards: &[Bytes]) -> Result<(), Fault> {
        if shards.len() > REMOVALS_MAX {
            return Err(Fault::new(FaultKind::Invalid, "too many shards in one delete"));
        }
        self.check_writable()?;
        let mut found: Vec<(ShardId, Lookup)> = Vec::with_capacity(shards.len());
        for shard in shards {
            let shard = parse_shard(shard)?;
            let lookup = self.shared.look(shard);
            if lookup.place != Place::Absent {
                found.push((shard, lookup));
            }
        }
        if found.is_empty() {
            return Ok(());
        }
        match self.shared.space.allows_delete() {
            Ok(true) => {}
            Ok(false) => {
                return Err(Fault::new(FaultKind::Full, "the target is too full even for tombstones"));
            }
            Err(error) => return Err(Fault::new(FaultKind::DiskFailed, error.to_string())),
        }
        self.submit(Job::Remove(Removal { shards: found })).await
    }

    /// Reads the whole blocks that cover `length` bytes from `offset` (0: to the end), and verifies them.
    ///
    /// # Errors
    /// `SHARD_ABSENT`, `SHARD_UNKNOWN` while the index is rebuilt, `CORRUPT` when a checksum does not match or the
    /// device cannot read it; then it has been counted and logged.
    ///
    /// Cancel-safe.
    pub(crate) async fn get(&self, shard: &[u8], offset: u32, length: u32) -> Result<FoundBlocks, Fault> {
        let shard = parse_shard(shard)?;
        let end = if length == 0 { u32::MAX } else { offset.saturating_add(length) };
        let mut place = self.shared.look(shard).place;
        loop {
            let entry = match place {
                Place::Here(entry) | Place::Perhaps(entry) => entry,
                Place::Absent => return Err(Fault::new(FaultKind::ShardAbsent, format!("no shard {shard}"))),
                Place::Unknown => return Err(unknown()),
            };
            let cached = if entry.length.min(end).saturating_sub(offset) <= INLINE_BYTES {
                self.shared.reader.read_cached(shard, entry, offset..end).transpose()
            } else {
                None
            };
            let attempt = match cached {
                Some(outcome) => self.shared.check(outcome),
                None => {
                    let shared = Arc::clone(&self.shared);
                    blocking(move || shared.check(shared.reader.read(shard, entry, offset..end))).await?
                }
            };
            match attempt {
                Ok(blocks) => {
                    self.shared.meters.shards_read.increment(1);
                    self.shared.meters.read_bytes.increment(blocks.data.len() as u64);
                    return Ok(FoundBlocks { meta: blocks.meta, offset: blocks.offset, data: blocks.data });
                }
                Err(bad) => {
                    // It may have been deleted, or stored again, under our hands: then nothing is wrong.
                    let now = self.shared.look(shard).place;
                    if now == Place::Perhaps(entry) {
                        return Err(unknown());
                    }
                    if now == Place::Here(entry) {
                        self.shared.note_bad(shard, entry, bad.blocks);
                        return Err(Fault::new(FaultKind::Corrupt, bad.why));
                    }
                    place = now;
                }
            }
        }
    }

    /// Which of these shards are here, in order. One that is known to be bad is not.
    ///
    /// # Errors
    /// `SHARD_UNKNOWN` until the index is whole.
    pub(crate) fn stat(&self, shards: &[Bytes]) -> Result<Vec<bool>, Fault> {
        shards
            .iter()
            .map(|shard| {
                let shard = parse_shard(shard)?;
                match self.shared.look(shard).place {
                    _ if self.shared.is_recovering() => Err(unknown()),
                    Place::Here(_) => Ok(!self.shared.is_bad(shard)),
                    Place::Absent => Ok(false),
                    Place::Perhaps(_) | Place::Unknown => Err(unknown()),
                }
            })
            .collect()
    }

    /// Up to `limit` shards after `after`, in id order, as the index knows them: their records are not looked at.
    ///
    /// # Errors
    /// `SHARD_UNKNOWN` until the index is whole.
    pub(crate) async fn list(&self, after: Option<ShardId>, limit: usize) -> Result<ShardPage, Fault> {
        let shared = Arc::clone(&self.shared);
        blocking(move || shared.page(after, limit)).await?.ok_or_else(unknown)
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    fn is_stopping(&self) -> bool {
        self.cancel.is_cancelled() || self.queue.lock().is_none()
    }

    /// Also before answering that nothing needs to be done: after a failed batch it is not known what the device will
    /// turn out to hold.
    fn check_writable(&self) -> Result<(), Fault> {
        match self.shared.fault() {
            Some(fault) => Err(fault),
            None if self.is_stopping() => Err(stopping()),
            None => Ok(()),
        }
    }

    pub(super) async fn submit(&self, job: Job) -> Result<(), Fault> {
        let kib =
            u32::try_from(job.record_bytes().div_ceil(1024)).unwrap_or(u32::MAX).min(self.queue_kib_max);
        let permit = Arc::clone(&self.queue_kib).acquire_many_owned(kib).await.map_err(|_| stopping())?;
        let sender = self.queue.lock().clone().ok_or_else(stopping)?;
        let (done, outcome) = oneshot::channel();
        sender.send(Queued { job, done, _permit: permit }).await.map_err(|_| stopping())?;
        drop(sender);
        outcome.await.map_err(|_| self.shared.fault().unwrap_or_else(stopping))?
    }

    /// Finishes what is queued, moves everything into the index and closes it, so that the next opening trusts it.
    pub(crate) async fn shutdown(&self) {
        self.queue.lock().take();
        let Some(threads) = self.threads.lock().take() else { return };
        let shared = Arc::clone(&self.shared);
        let joined = tokio::task::spawn_blocking(move || {
            let writer = threads.writer.join();
            shared.overlay.stop();
            (writer, threads.indexer.join())
        });
        if !matches!(joined.await, Ok((Ok(()), Ok(())))) {
            tracing::error!(target_dir = %self.shared.directory.root.display(), "a thread of the target panicked");
        }
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        self.queue.lock().take();
        let Some(threads) = self.threads.lock().take() else { return };
        self.shared.overlay.abandon();
        // The directory's lock goes with the last thread; whoever opens it next must not find it held.
        let _ = (threads.writer.join(), threads.indexer.join());
    }
}

fn spawn(
    dir: &Path,
    name: &'static str,
    run: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, TargetError> {
    let spawned = std::thread::Builder::new().name(name.to_owned()).spawn(run);
    spawned.map_err(|source| TargetError::io("starting a thread", dir, source))
}

/// Runs `call` where it may wait for a disk.
async fn blocking<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> Result<T, Fault> {
    tokio::task::spawn_blocking(call)
        .await
        .map_err(|error| Fault::new(FaultKind::FaultUnavailable, format!("a read did not finish: {error}")))
}

fn parse_shard(bytes: &[u8]) -> Result<ShardId, Fault> {
    ShardId::from_slice(bytes).map_err(|error| Fault::new(FaultKind::Invalid, error.to_string()))
}

fn check_shape(meta: &ShardMeta, data: &Bytes) -> Result<Layout, Fault> {
    let hashes = data.len().div_ceil(BLOCK_BYTES) * 32;
    let fits = data.len() <= SHARD_BYTES_MAX
        && meta.length as usize == data.len()
        && meta.block_hashes.len() == hashes;
    let layout = Layout::of(meta).filter(|layout| fits && layout.scheme().is_some());
    layout.ok_or_else(|| Fault::new(FaultKind::Invalid, "the shard does not fit its description"))
}

async fn verify(meta: ShardMeta, data: Bytes) -> Result<(ShardMeta, Bytes), Fault> {
    let check = |meta: &ShardMeta, data: &[u8]| bad_blocks(&meta.block_hashes, 0, data);
    let (bad, meta, data) = if data.len() <= INLINE_BYTES as usize {
        (check(&meta, &data), meta, data)
    } else {
        blocking(move || (check(&meta, &data), meta, data)).await?
    };
    match bad {
        0 => Ok((meta, data)),
        bad => Err(Fault::new(FaultKind::Invalid, format!("blocks {bad:#x} do not match their checksums"))),
    }
}

fn unknown() -> Fault {
    Fault {
        retry_after_ms: 1000,
        ..Fault::new(FaultKind::ShardUnknown, "the target is recovering its index: absence is not known")
    }
}

fn stopping() -> Fault {
    Fault::new(FaultKind::FaultUnavailable, "the target is stopping")
}
