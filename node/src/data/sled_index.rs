//! The index in sled, with a bounded cache.
//!
//! sled panics on what it does not understand and its flush is no fsync. So every call is caught, a caught panic is an
//! ordinary [`IndexError`] that costs the target a rebuild, and `persist` syncs sled's files itself. Rows are written
//! one by one: a sled batch takes a lock that is global to the process, and the checkpoint row that follows the rows in
//! sled's log already gives the order that is needed.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;

use holdfast_proto::id::ShardId;

use super::index::{
    Checkpoint, IndexError, IndexHome, ShardIndex, decode_checkpoint, decode_entry, encode_checkpoint,
    encode_entry,
};
use super::record::Entry;

/// Shorter than a shard id, so never one.
const CHECKPOINT_KEY: &[u8] = b"covered";

/// The directory of a sled index.
#[derive(Debug)]
pub(super) struct SledHome {
    pub(super) dir: PathBuf,
    pub(super) cache_bytes: u64,
}

impl IndexHome for SledHome {
    fn open(&self) -> Result<Arc<dyn ShardIndex>, IndexError> {
        let db = caught(|| {
            // Nothing waits for sled's flush, so its timer has nothing to do.
            sled::Config::new().path(&self.dir).cache_capacity(self.cache_bytes).flush_every_ms(None).open()
        })?;
        Ok(Arc::new(SledIndex { db, dir: self.dir.clone() }))
    }

    fn wipe(&self) -> io::Result<()> {
        match std::fs::remove_dir_all(&self.dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

#[derive(Debug)]
struct SledIndex {
    db: sled::Db,
    dir: PathBuf,
}

impl ShardIndex for SledIndex {
    fn get(&self, shard: ShardId) -> Result<Option<Entry>, IndexError> {
        caught(|| self.db.get(shard.to_bytes()))?.map(|value| decode_entry(&value)).transpose()
    }

    fn set(&self, shard: ShardId, entry: Option<Entry>) -> Result<Option<Entry>, IndexError> {
        let key = shard.to_bytes();
        let old = match entry {
            Some(entry) => caught(|| self.db.insert(key, &encode_entry(&entry)))?,
            None => caught(|| self.db.remove(key))?,
        };
        old.map(|value| decode_entry(&value)).transpose()
    }

    fn page(&self, after: Option<ShardId>, limit: usize) -> Result<Vec<(ShardId, Entry)>, IndexError> {
        let rows: Vec<_> = caught(|| {
            let start = match after {
                Some(shard) => std::ops::Bound::Excluded(shard.to_bytes().to_vec()),
                None => std::ops::Bound::Unbounded,
            };
            self.db
                .range((start, std::ops::Bound::Unbounded))
                .filter(|row| row.as_ref().map_or(true, |(key, _)| key.len() == ShardId::LEN))
                .take(limit)
                .collect::<Result<_, _>>()
        })?;
        rows.into_iter()
            .map(|(key, value)| {
                let shard = ShardId::from_slice(&key).map_err(|error| IndexError(error.to_string()))?;
                Ok((shard, decode_entry(&value)?))
            })
            .collect()
    }

    fn checkpoint(&self) -> Result<Option<Checkpoint>, IndexError> {
        caught(|| self.db.get(CHECKPOINT_KEY))?.map(|value| decode_checkpoint(&value)).transpose()
    }

    fn set_checkpoint(&self, checkpoint: Checkpoint) -> Result<(), IndexError> {
        caught(|| self.db.insert(CHECKPOINT_KEY, &encode_checkpoint(&checkpoint)[..]))?;
        Ok(())
    }

    fn persist(&self) -> Result<(), IndexError> {
        caught(|| self.db.flush())?;
        sync_tree(&self.dir).map_err(|error| IndexError(format!("syncing the index: {error}")))
    }
}

/// Runs `call`, turning sled's errors and panics into ours.
fn caught<T>(call: impl FnOnce() -> sled::Result<T>) -> Result<T, IndexError> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(outcome) => outcome.map_err(|error| IndexError(error.to_string())),
        Err(panic) => {
            let words = panic.downcast_ref::<String>().map(String::as_str);
            let words = words.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
            Err(IndexError(format!("panicked: {words}")))
        }
    }
}

fn sync_tree(dir: &std::path::Path) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            sync_tree(&path)?;
        } else {
            std::fs::File::open(path)?.sync_all()?;
        }
    }
    std::fs::File::open(dir)?.sync_all()
}
