//! The rows of all groups of a node: one fjall database, one keyspace for each generation of each group.
//!
//! Invariant: a group's rows and how far they are applied change in one batch, so that any state found after a crash is
//! that of some applied index. Batches are not fsynced: [`Store::persist`] makes everything before it durable, and what
//! is lost is applied again from the log, which is kept behind the last durable point.
//!
//! A group's live generation is named by one durably written row. A new generation is filled beside the live one and then
//! named; a crash before that leaves rows nobody names, which the next open removes. A number is never given twice in the
//! life of a process, and the live generation is never removed: fjall removes by name, whoever holds the handle.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, OwnedWriteBatch, PersistMode, Readable, Snapshot};
use holdfast_machine::kv::{KvError, KvRead, Rows};
use holdfast_proto::id::{GroupId, NodeId};
use holdfast_proto::raft as wire;
use parking_lot::{Mutex, RwLock};
use prost::Message;

/// Memory for rows of one group that are not in tables yet, bytes.
const MEMTABLE_BYTES: u64 = 8 << 20;
/// Journals together, bytes: fjall makes tables of what the oldest one holds before it grows beyond this.
const JOURNAL_BYTES: u64 = 128 << 20;
/// Version of the rows this module writes.
const SCHEMA: u32 = 1;

const SYSTEM: &str = "system";
const HOSTED: u8 = b'g';
const PEER: u8 = b'p';

fn failed(error: impl fmt::Display) -> KvError {
    KvError(error.to_string())
}

/// The database. Clones share it.
#[derive(Clone)]
pub(crate) struct Store {
    db: Database,
    system: Keyspace,
    /// The highest number given to a generation of each group. Held while a generation is made, named or removed.
    numbers: Arc<Mutex<HashMap<GroupId, u64>>>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").finish_non_exhaustive()
    }
}

/// One generation of one group's rows.
#[derive(Clone)]
pub(crate) struct Generation {
    group: GroupId,
    /// Counts from 1; every installed snapshot is a new one.
    pub(crate) number: u64,
    keyspace: Keyspace,
}

impl fmt::Debug for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Generation").field("number", &self.number).finish_non_exhaustive()
    }
}

/// A consistent view of one generation's rows. While one is held, replaced rows are not freed.
#[derive(Clone)]
pub(crate) struct View {
    snapshot: Snapshot,
    keyspace: Keyspace,
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("View").finish_non_exhaustive()
    }
}

fn name_of(group: GroupId, generation: u64) -> String {
    format!("{:016x}.{generation}", group.get())
}

/// The number in a name of [`name_of`], when it is one of the group's.
fn number_in(name: &str, group: GroupId) -> Option<u64> {
    let (id, number) = name.split_once('.')?;
    (id == format!("{:016x}", group.get())).then(|| number.parse().ok())?
}

fn options() -> KeyspaceCreateOptions {
    KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_BYTES).manual_journal_persist(true)
}

fn system_key(kind: u8, id: u64) -> [u8; 9] {
    let mut key = [kind; 9];
    key[1..].copy_from_slice(&id.to_be_bytes());
    key
}

fn decode<M: Message + Default>(what: &str, bytes: &[u8]) -> Result<M, KvError> {
    M::decode(bytes).map_err(|error| KvError(format!("{what} does not decode: {error}")))
}

impl Store {
    /// Opens or creates the database in `dir` with `cache_bytes` for all groups together, and removes generations that
    /// nothing names. Blocks.
    ///
    /// # Errors
    /// When the directory cannot be used, is in use, or is corrupt; when a live generation is not there.
    pub(crate) fn open(dir: &Path, cache_bytes: u64) -> Result<Self, KvError> {
        let db = Database::builder(dir)
            .cache_size(cache_bytes)
            .manual_journal_persist(true)
            .max_journaling_size(JOURNAL_BYTES)
            .worker_threads(2)
            .open()
            .map_err(failed)?;
        let system = db.keyspace(SYSTEM, options).map_err(failed)?;
        let store = Self { db, system, numbers: Arc::default() };
        let mut live = vec![SYSTEM.to_string()];
        for (group, hosted) in store.hosted()? {
            store.check_exists(group, hosted)?;
            live.push(name_of(group, hosted));
        }
        for name in store.db.list_keyspace_names() {
            if !live.iter().any(|live| live.as_str() == &*name) {
                let stale = store.db.keyspace(&name, options).map_err(failed)?;
                store.db.delete_keyspace(stale).map_err(failed)?;
            }
        }
        Ok(store)
    }

    /// The groups this node hosts, and the live generation of each.
    ///
    /// # Errors
    /// When the store fails or a row does not decode.
    pub(crate) fn hosted(&self) -> Result<Vec<(GroupId, u64)>, KvError> {
        let mut hosted = Vec::new();
        for guard in self.system.prefix([HOSTED]) {
            let (key, value) = guard.into_inner().map_err(failed)?;
            let id = key.get(1..).and_then(|id| id.try_into().ok()).map(u64::from_be_bytes);
            let group = id
                .and_then(|id| GroupId::from_u64(id).ok())
                .ok_or_else(|| failed("a hosted group without id"))?;
            hosted.push((group, decode::<wire::HostedGroup>("a hosted group", &value)?.generation));
        }
        Ok(hosted)
    }

    /// Rows that were named live and are gone are lost: nothing empty takes their place.
    fn check_exists(&self, group: GroupId, number: u64) -> Result<(), KvError> {
        if self.db.keyspace_exists(&name_of(group, number)) {
            return Ok(());
        }
        Err(KvError(format!(
            "the rows of {group} are gone: generation {number} is named live and is not there"
        )))
    }

    fn live_number(&self, group: GroupId) -> Result<Option<u64>, KvError> {
        let row = self.system.get(system_key(HOSTED, group.get())).map_err(failed)?;
        row.map(|row| Ok(decode::<wire::HostedGroup>("a hosted group", &row)?.generation)).transpose()
    }

    /// The live generation of a group, made and durably named when the group is new here. Blocks.
    ///
    /// # Errors
    /// When the store fails, or the generation named live is not there.
    pub(crate) fn generation(&self, group: GroupId) -> Result<Generation, KvError> {
        match self.live_number(group)? {
            Some(number) => {
                self.check_exists(group, number)?;
                let keyspace = self.db.keyspace(&name_of(group, number), options).map_err(failed)?;
                Ok(Generation { group, number, keyspace })
            }
            None => {
                let first = self.new_generation(group)?;
                self.switch(&first)?;
                Ok(first)
            }
        }
    }

    /// An empty generation that nothing names yet, under a number no other has or had. Blocks.
    ///
    /// # Errors
    /// When the store fails.
    pub(crate) fn new_generation(&self, group: GroupId) -> Result<Generation, KvError> {
        let mut numbers = self.numbers.lock();
        let names = self.db.list_keyspace_names();
        let existing = names.iter().filter_map(|name| number_in(name, group)).max();
        let given = numbers.entry(group).or_default();
        *given = existing.unwrap_or(0).max(*given) + 1;
        let number = *given;
        let keyspace = self.db.keyspace(&name_of(group, number), options).map_err(failed)?;
        Ok(Generation { group, number, keyspace })
    }

    /// Durably names a generation the live one of its group. Blocks.
    ///
    /// # Errors
    /// When the store fails.
    pub(crate) fn switch(&self, to: &Generation) -> Result<(), KvError> {
        let _numbers = self.numbers.lock();
        self.check_exists(to.group, to.number)?;
        let row = wire::HostedGroup { schema: SCHEMA, generation: to.number };
        self.system.insert(system_key(HOSTED, to.group.get()), row.encode_to_vec()).map_err(failed)?;
        self.persist()
    }

    /// Removes a generation that is not live; views of it stay readable. One that is live stays, one that is gone is
    /// gone. Blocks.
    ///
    /// # Errors
    /// When the store fails.
    pub(crate) fn remove_unless_live(&self, generation: Generation) -> Result<(), KvError> {
        let _numbers = self.numbers.lock();
        let live = self.live_number(generation.group)? == Some(generation.number);
        if live || !self.db.keyspace_exists(&name_of(generation.group, generation.number)) {
            return Ok(());
        }
        self.db.delete_keyspace(generation.keyspace).map_err(failed)
    }

    /// Makes every committed batch durable. Blocks for an fsync.
    ///
    /// # Errors
    /// When the disk failed: nothing is known to be durable, and the store takes no more writes.
    pub(crate) fn persist(&self) -> Result<(), KvError> {
        self.db.persist(PersistMode::SyncAll).map_err(failed)
    }

    /// A batch of `rows` writes or so.
    pub(crate) fn batch(&self, rows: usize) -> Batch {
        Batch(OwnedWriteBatch::with_capacity(self.db.clone(), rows).durability(None))
    }

    /// A view of a generation as it is now.
    pub(crate) fn view(&self, generation: &Generation) -> View {
        View { snapshot: self.db.snapshot(), keyspace: generation.keyspace.clone() }
    }

    /// The newest life seen of each peer.
    ///
    /// # Errors
    /// When the store fails or a row does not decode.
    pub(crate) fn incarnations(&self) -> Result<Vec<(NodeId, wire::PeerSeen)>, KvError> {
        let mut seen = Vec::new();
        for guard in self.system.prefix([PEER]) {
            let (key, value) = guard.into_inner().map_err(failed)?;
            let id = key.get(1..).and_then(|id| id.try_into().ok()).map(u64::from_be_bytes);
            let id = id.ok_or_else(|| failed("a peer without id"))?;
            seen.push((NodeId::new(id), decode("a peer", &value)?));
        }
        Ok(seen)
    }

    /// Durably remembers a peer's incarnation and the life it told, 0 for none. Blocks.
    ///
    /// # Errors
    /// When the store fails.
    pub(crate) fn saw_incarnation(&self, peer: NodeId, incarnation: u64, life: u64) -> Result<(), KvError> {
        let row = wire::PeerSeen { schema: SCHEMA, incarnation, life };
        self.system.insert(system_key(PEER, peer.get()), row.encode_to_vec()).map_err(failed)?;
        self.persist()
    }
}

/// Writes that are committed together.
pub(crate) struct Batch(OwnedWriteBatch);

impl Batch {
    /// Sets or, with `None`, removes a row.
    pub(crate) fn set(&mut self, generation: &Generation, key: Vec<u8>, value: Option<Bytes>) {
        match value {
            Some(value) => self.0.insert(&generation.keyspace, key, value),
            None => self.0.remove(&generation.keyspace, key),
        }
    }

    /// Applies the writes at once, visible to views opened from here on and durable after the next persist. May sleep
    /// when the store is behind with its tables.
    ///
    /// # Errors
    /// When the store fails.
    pub(crate) fn commit(self) -> Result<(), KvError> {
        self.0.commit().map_err(failed)
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch").field("rows", &self.0.len()).finish_non_exhaustive()
    }
}

impl Generation {
    /// Fills the empty generation with rows in strictly ascending key order, durably. Blocks; nothing may read or write
    /// the generation meanwhile.
    ///
    /// # Errors
    /// When a row fails, the order is broken, or the store fails: the generation is then not usable.
    pub(crate) fn ingest(
        &self,
        rows: impl Iterator<Item = Result<(Bytes, Bytes), KvError>>,
    ) -> Result<(), KvError> {
        let mut ingestion = self.keyspace.start_ingestion().map_err(failed)?;
        let mut last: Option<Bytes> = None;
        for row in rows {
            let (key, value) = row?;
            if last.as_ref().is_some_and(|last| *last >= key) {
                return Err(failed("rows of a snapshot are not in ascending order"));
            }
            last = Some(key.clone());
            ingestion.write(key, value).map_err(failed)?;
        }
        ingestion.finish().map_err(failed)
    }
}

fn rows_of(iter: fjall::Iter) -> Rows<'static> {
    Box::new(iter.map(|guard| {
        let (key, value) = guard.into_inner().map_err(failed)?;
        Ok((key.into(), value.into()))
    }))
}

/// The rows as of now: only for who is the only writer.
impl KvRead for Generation {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        Ok(self.keyspace.get(key).map_err(failed)?.map(Into::into))
    }

    fn scan(&self, start: &[u8], end: &[u8]) -> Rows<'_> {
        if start >= end {
            return Box::new(std::iter::empty());
        }
        rows_of(self.keyspace.range(start..end))
    }
}

impl KvRead for View {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        Ok(self.snapshot.get(&self.keyspace, key).map_err(failed)?.map(Into::into))
    }

    fn scan(&self, start: &[u8], end: &[u8]) -> Rows<'_> {
        if start >= end {
            return Box::new(std::iter::empty());
        }
        rows_of(self.snapshot.range(&self.keyspace, start..end))
    }
}

/// The live generation of a group, which an installed snapshot replaces.
#[derive(Debug, Clone)]
pub(crate) struct Live(Arc<RwLock<Generation>>);

impl Live {
    /// Starts with `generation`.
    pub(crate) fn new(generation: Generation) -> Self {
        Self(Arc::new(RwLock::new(generation)))
    }
    /// The live one.
    pub(crate) fn get(&self) -> Generation {
        self.0.read().clone()
    }
    /// Replaces it and gives back the old one.
    pub(crate) fn replace(&self, generation: Generation) -> Generation {
        std::mem::replace(&mut self.0.write(), generation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(read: &impl KvRead) -> Vec<(Vec<u8>, Vec<u8>)> {
        read.scan(b"", b"\xff").map(|row| row.map(|(k, v)| (k.to_vec(), v.to_vec())).unwrap()).collect()
    }

    fn put(store: &Store, generation: &Generation, key: &str, value: &'static str) {
        let mut batch = store.batch(1);
        batch.set(generation, key.into(), Some(Bytes::from_static(value.as_bytes())));
        batch.commit().unwrap();
    }

    #[test]
    fn a_view_does_not_move() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), 1 << 20).unwrap();
        let live = store.generation(GroupId::REALM).unwrap();
        put(&store, &live, "a", "1");
        let view = store.view(&live);
        put(&store, &live, "a", "2");
        put(&store, &live, "b", "1");
        assert_eq!(rows(&view), [(b"a".to_vec(), b"1".to_vec())]);
        assert_eq!(rows(&live).len(), 2);
        assert_eq!(rows(&store.view(&live)), rows(&live));
        assert_eq!(live.scan(b"b", b"a").count(), 0);
    }

    #[test]
    fn a_new_generation_counts_once_it_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let group = GroupId::REALM;
        {
            let store = Store::open(dir.path(), 1 << 20).unwrap();
            let first = store.generation(group).unwrap();
            put(&store, &first, "old", "1");
            store.persist().unwrap();
            let second = store.new_generation(group).unwrap();
            second.ingest([Ok((Bytes::from("new"), Bytes::from("1")))].into_iter()).unwrap();
        }
        {
            let store = Store::open(dir.path(), 1 << 20).unwrap();
            assert_eq!(store.hosted().unwrap(), [(group, 1)]);
            assert_eq!(rows(&store.generation(group).unwrap()), [(b"old".to_vec(), b"1".to_vec())]);
            assert!(!store.db.keyspace_exists(&name_of(group, 2)));
            let second = store.new_generation(group).unwrap();
            second.ingest([Ok((Bytes::from("new"), Bytes::from("1")))].into_iter()).unwrap();
            store.switch(&second).unwrap();
        }
        let store = Store::open(dir.path(), 1 << 20).unwrap();
        assert_eq!(store.hosted().unwrap(), [(group, 2)]);
        assert_eq!(rows(&store.generation(group).unwrap()), [(b"new".to_vec(), b"1".to_vec())]);
    }

    #[test]
    fn a_number_is_given_once_and_what_is_live_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let group = GroupId::REALM;
        {
            let store = Store::open(dir.path(), 1 << 20).unwrap();
            let first = store.generation(group).unwrap();
            let second = store.new_generation(group).unwrap();
            let third = store.new_generation(group).unwrap();
            assert_eq!((first.number, second.number, third.number), (1, 2, 3));
            third.ingest([Ok((Bytes::from("kept"), Bytes::from("1")))].into_iter()).unwrap();
            store.remove_unless_live(second.clone()).unwrap();
            store.remove_unless_live(second).unwrap();
            store.switch(&third).unwrap();
            store.remove_unless_live(first).unwrap();
            store.remove_unless_live(third).unwrap();
            let fourth = store.new_generation(group).unwrap();
            store.remove_unless_live(fourth).unwrap();
            assert_eq!(store.new_generation(group).unwrap().number, 5, "4 is gone, and not free");
        }
        let store = Store::open(dir.path(), 1 << 20).unwrap();
        assert_eq!(rows(&store.generation(group).unwrap()).len(), 1);
        assert_eq!(store.new_generation(group).unwrap().number, 4, "nobody is left who held it");
    }

    #[test]
    fn live_rows_that_are_gone_are_an_error_and_no_empty_group() {
        let dir = tempfile::tempdir().unwrap();
        let group = GroupId::REALM;
        {
            let store = Store::open(dir.path(), 1 << 20).unwrap();
            let live = store.generation(group).unwrap();
            put(&store, &live, "a", "1");
            store.persist().unwrap();
            store.db.delete_keyspace(live.keyspace).unwrap();
            assert!(store.generation(group).unwrap_err().0.contains("are gone"));
        }
        assert!(Store::open(dir.path(), 1 << 20).unwrap_err().0.contains("are gone"));
    }

    #[test]
    fn rows_out_of_order_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), 1 << 20).unwrap();
        let generation = store.new_generation(GroupId::REALM).unwrap();
        let row = |key: &'static str| Ok((Bytes::from(key), Bytes::new()));
        assert!(generation.ingest([row("b"), row("a")].into_iter()).is_err());
    }

    #[test]
    fn incarnations_are_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let peer = NodeId::new(7);
        Store::open(dir.path(), 1 << 20).unwrap().saw_incarnation(peer, 3, 9).unwrap();
        let seen = wire::PeerSeen { schema: SCHEMA, incarnation: 3, life: 9 };
        assert_eq!(Store::open(dir.path(), 1 << 20).unwrap().incarnations().unwrap(), [(peer, seen)]);
    }
}
