//! [`LogEngine`] over raft-engine: an append-only queue of files shared by all groups, with an index in memory.
//!
//! A group has two regions. One holds its entries; the other its vote, commit point and bounds, because purging a region
//! to nothing takes its rows with it. raft-engine cannot cut a suffix: a truncation is a row with the first index that is
//! gone, which counts until the next append, whose overlap makes the engine drop the suffix itself, in the same batch that
//! removes the row.

use std::collections::HashMap;
use std::path::Path;

use holdfast_proto::raft as wire;
use parking_lot::Mutex;
use prost::Message as _;
use raft_engine::{Command, Config, Engine, LogBatch, ReadableSize};

use super::log::{Change, LogEngine, LogError, LogFacts, LogWrite};
use super::log_record::{LogRecord, LogRecords};
use crate::env::{Access, Disk};

const VOTE: &[u8] = b"vote";
const COMMITTED: &[u8] = b"committed";
const PURGED: &[u8] = b"purged";
const TRUNCATED: &[u8] = b"truncated";

/// Live log beyond this is moved out of old files so that they can be deleted, bytes.
const PURGE_THRESHOLD: ReadableSize = ReadableSize::mb(512);
const FILE_BYTES: ReadableSize = ReadableSize::mb(64);

/// raft-engine with all groups of a node.
pub(crate) struct RaftEngineLog {
    engine: Engine,
    /// First index that is gone, for groups that were truncated and not appended to since.
    truncated: Mutex<HashMap<u64, u64>>,
}

impl std::fmt::Debug for RaftEngineLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RaftEngineLog").field("dir", &self.engine.path()).finish_non_exhaustive()
    }
}

/// The region of a group's rows. A group id's highest bit is never set.
fn rows_of(group: u64) -> u64 {
    group | 1 << 63
}

fn failed(error: raft_engine::Error) -> LogError {
    LogError(error.to_string())
}

impl RaftEngineLog {
    /// Opens or creates the log in `dir`. Blocks while it syncs and reads the files.
    ///
    /// # Errors
    /// When what is there cannot be synced; when the directory cannot be used or a file other than the last one's tail is corrupt.
    pub(crate) fn open(dir: &Path, disk: &dyn Disk) -> Result<Self, LogError> {
        settle(dir, disk).map_err(|error| LogError(format!("syncing the log: {error}")))?;
        let dir = dir.to_str().ok_or_else(|| LogError("the directory's name is not UTF-8".into()))?;
        let engine = Engine::open(Config {
            dir: dir.into(),
            purge_threshold: PURGE_THRESHOLD,
            target_file_size: FILE_BYTES,
            // Commands are small and bodies are not here: compression would cost more CPU than it saves writes.
            batch_compression_threshold: ReadableSize(0),
            recovery_threads: 1,
            ..Config::default()
        })
        .map_err(failed)?;
        let mut truncated = HashMap::new();
        for region in engine.raft_groups() {
            if let Some(next) = engine.get(region, TRUNCATED) {
                truncated.insert(region & !(1 << 63), index(&next)?);
            }
        }
        Ok(Self { engine, truncated: Mutex::new(truncated) })
    }

    fn row<M: prost::Message + Default>(&self, group: u64, key: &[u8]) -> Result<Option<M>, LogError> {
        let Some(bytes) = self.engine.get(rows_of(group), key) else { return Ok(None) };
        M::decode(bytes.as_slice())
            .map(Some)
            .map_err(|error| LogError(format!("a row does not decode: {error}")))
    }
}

/// Makes what is about to be read of the log be what is on disk. After a failed sync the kernel may hold pages that it
/// calls clean and that never reached the disk: a process that starts again must not take them for written.
///
/// Only files that a write or a rewrite can have been going to when a process died: of either queue the last two, since a
/// file is synced before the one after it is begun.
fn settle(dir: &Path, disk: &dyn Disk) -> std::io::Result<()> {
    let mut names = match disk.list(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        names => names?,
    };
    // A name begins with its number, in a fixed width.
    names.sort_unstable();
    for queue in [".raftlog", ".rewrite"] {
        for name in names.iter().filter(|name| name.ends_with(queue)).rev().take(2) {
            let file = disk.open(&dir.join(name), Access::Buffered)?;
            file.sync()?;
            file.drop_cache(0..u64::MAX)?;
        }
    }
    disk.sync_dir(dir)
}

fn index(bytes: &[u8]) -> Result<u64, LogError> {
    bytes.try_into().map(u64::from_be_bytes).map_err(|_| LogError("an index of a wrong length".into()))
}

impl LogEngine for RaftEngineLog {
    fn write(&self, writes: Vec<LogWrite>, sync: bool) -> Result<(), LogError> {
        let mut batch = LogBatch::with_capacity(writes.len() * 2);
        let mut truncated = self.truncated.lock();
        for LogWrite { group, change } in writes {
            let rows = rows_of(group);
            match change {
                Change::Append(records) => {
                    batch.add_entries::<LogRecords>(group, &records).map_err(failed)?;
                    if !records.is_empty() && truncated.remove(&group).is_some() {
                        batch.delete(rows, TRUNCATED.to_vec());
                    }
                }
                Change::Truncate { next } => {
                    truncated.insert(group, next);
                    batch.put(rows, TRUNCATED.to_vec(), next.to_be_bytes().to_vec()).map_err(failed)?;
                }
                Change::Purge { upto } => {
                    let next = upto.index + 1;
                    batch.put(rows, PURGED.to_vec(), upto.encode_to_vec()).map_err(failed)?;
                    if let Some(gone) = truncated.get_mut(&group)
                        && *gone < next
                    {
                        *gone = next;
                        batch.put(rows, TRUNCATED.to_vec(), next.to_be_bytes().to_vec()).map_err(failed)?;
                    }
                    batch.add_command(group, Command::Compact { index: next });
                }
                Change::Vote(vote) => batch.put(rows, VOTE.to_vec(), vote.encode_to_vec()).map_err(failed)?,
                Change::Committed(log_id) => {
                    batch.put(rows, COMMITTED.to_vec(), log_id.encode_to_vec()).map_err(failed)?;
                }
            }
        }
        self.engine.write(&mut batch, sync).map(drop).map_err(failed)
    }

    fn facts(&self, group: u64) -> Result<LogFacts, LogError> {
        let purged: Option<wire::LogId> = self.row(group, PURGED)?;
        let mut last = self.engine.last_index(group);
        if let Some(next) = self.truncated.lock().get(&group) {
            last = last.and_then(|last| next.checked_sub(1).map(|kept| last.min(kept)));
        }
        // What is kept of a truncated suffix may lie below the purged entry: then there is none.
        if let (Some(index), Some(purged)) = (last, &purged)
            && index <= purged.index
        {
            last = None;
        }
        let first = last.and_then(|_| self.engine.first_index(group));
        Ok(LogFacts {
            vote: self.row(group, VOTE)?,
            committed: self.row(group, COMMITTED)?,
            purged,
            first,
            last,
        })
    }

    fn read(&self, group: u64, from: u64, to: u64, bytes_max: u64) -> Result<Vec<LogRecord>, LogError> {
        let mut records = Vec::with_capacity((to - from).min(1024) as usize);
        let bytes_max = usize::try_from(bytes_max).unwrap_or(usize::MAX);
        self.engine
            .fetch_entries_to::<LogRecords>(group, from, to, Some(bytes_max), &mut records)
            .map_err(failed)?;
        Ok(records)
    }

    fn reclaim(&self) -> Result<(), LogError> {
        self.engine.purge_expired_files().map(drop).map_err(failed)
    }
}
