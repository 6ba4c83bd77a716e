//! The laws of [`LogEngine`], held against the real one; reopening without a shutdown stands for a killed process.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use holdfast_proto::raft as wire;
use parking_lot::Mutex;

use super::log::{Change, LogEngine, LogError, LogFacts, LogWrite, LogWriter};
use super::log_engine::RaftEngineLog;
use super::log_record::{LogRecord, RecordKind};
use crate::env::{Access, Disk, DiskFile, DiskLock, Env, Space};

const GROUP: u64 = 3 << 56 | 7;
const OTHER: u64 = 3 << 56 | 8;

fn opened(dir: &Path) -> RaftEngineLog {
    RaftEngineLog::open(dir, Env::real().disk().as_ref()).unwrap()
}

fn record(index: u64, term: u64) -> LogRecord {
    LogRecord::new(index, term, RecordKind::Commands, Bytes::from(format!("{index}@{term}")))
}

fn records(range: std::ops::Range<u64>, term: u64) -> Vec<LogRecord> {
    range.map(|index| record(index, term)).collect()
}

fn log_id(term: u64, index: u64) -> wire::LogId {
    wire::LogId { term, node: 0, index }
}

fn write(engine: &dyn LogEngine, group: u64, changes: impl IntoIterator<Item = Change>) {
    engine.write(changes.into_iter().map(|change| LogWrite { group, change }).collect(), true).unwrap();
}

fn read_all(engine: &dyn LogEngine, group: u64) -> Vec<LogRecord> {
    let facts = engine.facts(group).unwrap();
    let first = facts.purged.map_or(0, |purged| purged.index + 1);
    facts.last.map_or_else(Vec::new, |last| engine.read(group, first, last + 1, u64::MAX).unwrap())
}

/// Runs `check` on an engine after `changes`, and again on what a process finds that starts after this one was killed.
fn check_after(changes: Vec<(u64, Change)>, check: impl Fn(&dyn LogEngine)) {
    let dir = tempfile::tempdir().unwrap();
    {
        let engine = opened(dir.path());
        for (group, change) in changes {
            write(&engine, group, [change]);
        }
        check(&engine);
    }
    check(&opened(dir.path()));
    check(&opened(dir.path()));
}

#[test]
fn what_was_appended_is_read_back() {
    check_after(
        vec![(GROUP, Change::Append(records(0..5, 1))), (GROUP, Change::Append(records(5..9, 2)))],
        |engine| {
            let mut all = records(0..5, 1);
            all.extend(records(5..9, 2));
            assert_eq!(read_all(engine, GROUP), all);
            assert_eq!(
                engine.facts(GROUP).unwrap(),
                LogFacts { first: Some(0), last: Some(8), ..LogFacts::default() }
            );
            assert_eq!(engine.read(GROUP, 3, 9, 1).unwrap(), records(3..4, 1));
            assert!(engine.read(GROUP, 3, 10, u64::MAX).is_err());
            assert_eq!(engine.facts(OTHER).unwrap(), LogFacts::default());
        },
    );
}

#[test]
fn an_append_replaces_what_overlaps() {
    check_after(
        vec![(GROUP, Change::Append(records(0..9, 1))), (GROUP, Change::Append(records(4..6, 2)))],
        |engine| {
            let mut all = records(0..4, 1);
            all.extend(records(4..6, 2));
            assert_eq!(read_all(engine, GROUP), all);
        },
    );
}

#[test]
fn a_truncated_suffix_stays_gone() {
    check_after(
        vec![(GROUP, Change::Append(records(0..9, 1))), (GROUP, Change::Truncate { next: 4 })],
        |engine| {
            assert_eq!(read_all(engine, GROUP), records(0..4, 1));
        },
    );
    let all = vec![(GROUP, Change::Append(records(0..9, 1))), (GROUP, Change::Truncate { next: 0 })];
    check_after(all, |engine| assert_eq!(engine.facts(GROUP).unwrap().last, None));
    let again = vec![
        (GROUP, Change::Append(records(0..9, 1))),
        (GROUP, Change::Truncate { next: 4 }),
        (GROUP, Change::Append(records(4..6, 2))),
        (GROUP, Change::Append(records(6..12, 3))),
    ];
    check_after(again, |engine| {
        assert_eq!(engine.facts(GROUP).unwrap().last, Some(11));
        assert_eq!(engine.read(GROUP, 4, 7, u64::MAX).unwrap(), [record(4, 2), record(5, 2), record(6, 3)]);
    });
}

#[test]
fn a_purged_prefix_stays_gone_and_the_vote_stays() {
    let vote = wire::Vote { term: 3, node: 9, committed: true };
    let changes = vec![
        (GROUP, Change::Vote(vote)),
        (GROUP, Change::Append(records(0..9, 1))),
        (GROUP, Change::Committed(log_id(1, 8))),
        (OTHER, Change::Append(records(0..3, 1))),
        (GROUP, Change::Purge { upto: log_id(1, 4) }),
    ];
    check_after(changes.clone(), |engine| {
        assert_eq!(read_all(engine, GROUP), records(5..9, 1));
        assert!(engine.read(GROUP, 4, 6, u64::MAX).is_err());
        assert_eq!(read_all(engine, OTHER), records(0..3, 1));
    });
    // A snapshot purges beyond the last entry; the log goes on after it.
    let mut beyond = changes;
    beyond.push((GROUP, Change::Purge { upto: log_id(4, 99) }));
    check_after(beyond.clone(), |engine| {
        let purged = Some(log_id(4, 99));
        let committed = Some(log_id(1, 8));
        assert_eq!(
            engine.facts(GROUP).unwrap(),
            LogFacts { vote: Some(vote), committed, purged, first: None, last: None }
        );
    });
    beyond.push((GROUP, Change::Append(records(100..103, 5))));
    check_after(beyond, |engine| {
        assert_eq!(read_all(engine, GROUP), records(100..103, 5));
        assert_eq!(engine.facts(GROUP).unwrap().vote, Some(vote));
    });
}

#[test]
fn a_purge_after_a_truncation_leaves_no_hole() {
    let changes = vec![
        (GROUP, Change::Append(records(0..9, 1))),
        (GROUP, Change::Truncate { next: 3 }),
        (GROUP, Change::Purge { upto: log_id(2, 5) }),
    ];
    check_after(changes.clone(), |engine| assert_eq!(engine.facts(GROUP).unwrap().last, None));
    let mut on = changes;
    on.push((GROUP, Change::Append(records(6..8, 2))));
    check_after(on, |engine| assert_eq!(read_all(engine, GROUP), records(6..8, 2)));
}

#[test]
fn reclaiming_keeps_what_lives() {
    let dir = tempfile::tempdir().unwrap();
    {
        let engine = opened(dir.path());
        write(&engine, GROUP, [Change::Append(records(0..100, 1)), Change::Purge { upto: log_id(1, 90) }]);
        engine.reclaim().unwrap();
    }
    assert_eq!(read_all(&opened(dir.path()), GROUP), records(91..100, 1));
}

#[test]
fn one_write_makes_many_groups_durable_and_completions_keep_their_order() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Arc::new(Counted { inner: opened(dir.path()), writes: AtomicUsize::new(0) });
    let writer = LogWriter::start(engine.clone()).unwrap();
    let order = Arc::new(Mutex::new(Vec::new()));
    for index in 0..200 {
        for group in [GROUP, OTHER] {
            let order = Arc::clone(&order);
            let change = Change::Append(vec![record(index, 1)]);
            writer.submit(
                LogWrite { group, change },
                Box::new(move |result| {
                    result.unwrap();
                    order.lock().push((index, group));
                }),
            );
        }
    }
    writer.committed(GROUP, log_id(1, 199));
    writer.stop();
    let expected: Vec<_> = (0..200).flat_map(|index| [(index, GROUP), (index, OTHER)]).collect();
    assert_eq!(*order.lock(), expected);
    assert!(engine.writes.load(Ordering::Relaxed) < 400, "writes were not grouped");
    assert_eq!(engine.facts(GROUP).unwrap().committed, Some(log_id(1, 199)));
    assert_eq!(read_all(&engine.inner, OTHER), records(0..200, 1));
    let (tx, rx) = std::sync::mpsc::channel();
    let late = LogWrite { group: GROUP, change: Change::Truncate { next: 0 } };
    writer.submit(late, Box::new(move |result| tx.send(result).unwrap()));
    assert!(rx.recv().unwrap().is_err(), "a stopped log takes no writes");
}

#[test]
fn a_failed_write_ends_the_log() {
    for panics in [false, true] {
        let writer = LogWriter::start(Arc::new(Broken { panics })).unwrap();
        let failure = writer.failure();
        let (tx, rx) = std::sync::mpsc::channel();
        for _ in 0..2 {
            let tx = tx.clone();
            let write = LogWrite { group: GROUP, change: Change::Append(records(0..1, 1)) };
            writer.submit(write, Box::new(move |result| tx.send(result).unwrap()));
            assert!(rx.recv().unwrap().is_err());
        }
        assert!(failure.borrow().as_ref().is_some_and(|fault| fault.contains("no disk")));
    }
}

/// The machine's disk, where some file's sync fails.
#[derive(Debug)]
struct Syncs {
    real: Env,
    done: Arc<Mutex<Vec<String>>>,
    failing: Option<&'static str>,
}

#[derive(Debug)]
struct SyncedFile {
    name: String,
    real: Arc<dyn DiskFile>,
    done: Arc<Mutex<Vec<String>>>,
    fails: bool,
}

impl DiskFile for SyncedFile {
    fn sync(&self) -> io::Result<()> {
        self.done.lock().push(format!("sync {}", self.name));
        if self.fails { Err(io::Error::other("no disk")) } else { self.real.sync() }
    }
    fn allocated(&self) -> io::Result<u64> {
        self.real.allocated()
    }
    fn drop_cache(&self, range: std::ops::Range<u64>) -> io::Result<()> {
        self.done.lock().push(format!("drop {}", self.name));
        self.real.drop_cache(range)
    }
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.real.write_at(data, offset)
    }
    fn read_at(&self, out: &mut Vec<u8>, len: usize, offset: u64) -> io::Result<usize> {
        self.real.read_at(out, len, offset)
    }
    fn read_cached(&self, out: &mut Vec<u8>, len: usize, offset: u64) -> io::Result<Option<usize>> {
        self.real.read_cached(out, len, offset)
    }
    fn len(&self) -> io::Result<u64> {
        self.real.len()
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.real.set_len(len)
    }
    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        self.real.punch(offset, len)
    }
}

impl Disk for Syncs {
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn DiskFile>> {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let fails = self.failing.is_some_and(|failing| name.ends_with(failing));
        let real = self.real.disk().open(path, access)?;
        Ok(Arc::new(SyncedFile { name, real, done: Arc::clone(&self.done), fails }))
    }
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.real.disk().create_dir_all(dir)
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.real.disk().list(dir)
    }
    fn create(&self, path: &Path, access: Access) -> io::Result<Arc<dyn DiskFile>> {
        self.real.disk().create(path, access)
    }
    fn replace(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        self.real.disk().replace(path, content)
    }
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.real.disk().read(path)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.real.disk().remove(path)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.done.lock().push("sync dir".into());
        self.real.disk().sync_dir(dir)
    }
    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn DiskLock>>> {
        self.real.disk().lock(path)
    }
    fn space(&self, dir: &Path) -> io::Result<Space> {
        self.real.disk().space(dir)
    }
    fn boot_id(&self) -> io::Result<String> {
        self.real.disk().boot_id()
    }
}

/// After a failed fsync the kernel calls pages clean that never reached the disk.
#[test]
fn what_was_not_synced_is_not_believed_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    {
        let engine = opened(dir.path());
        write(&engine, GROUP, [Change::Append(records(0..5, 1))]);
    }
    let done = Arc::new(Mutex::new(Vec::new()));
    let disk = |failing| Syncs { real: Env::real(), done: Arc::clone(&done), failing };
    {
        let engine = RaftEngineLog::open(dir.path(), &disk(None)).unwrap();
        assert_eq!(read_all(&engine, GROUP), records(0..5, 1));
    }
    let expected = [
        "sync 0000000000000001.raftlog",
        "drop 0000000000000001.raftlog",
        "sync 0000000000000001.rewrite",
        "drop 0000000000000001.rewrite",
        "sync dir",
    ];
    assert_eq!(*done.lock(), expected);
    let error = RaftEngineLog::open(dir.path(), &disk(Some(".raftlog"))).unwrap_err();
    assert!(error.0.contains("no disk"), "{error}");
}

#[derive(Debug)]
struct Counted {
    inner: RaftEngineLog,
    writes: AtomicUsize,
}

impl LogEngine for Counted {
    fn write(&self, writes: Vec<LogWrite>, sync: bool) -> Result<(), LogError> {
        self.writes.fetch_add(1, Ordering::Relaxed);
        self.inner.write(writes, sync)
    }
    fn facts(&self, group: u64) -> Result<LogFacts, LogError> {
        self.inner.facts(group)
    }
    fn read(&self, group: u64, from: u64, to: u64, bytes_max: u64) -> Result<Vec<LogRecord>, LogError> {
        self.inner.read(group, from, to, bytes_max)
    }
    fn reclaim(&self) -> Result<(), LogError> {
        self.inner.reclaim()
    }
}

#[derive(Debug)]
struct Broken {
    panics: bool,
}

impl LogEngine for Broken {
    fn write(&self, _writes: Vec<LogWrite>, _sync: bool) -> Result<(), LogError> {
        assert!(!self.panics, "no disk");
        Err(LogError("no disk".into()))
    }
    fn facts(&self, _group: u64) -> Result<LogFacts, LogError> {
        Ok(LogFacts::default())
    }
    fn read(&self, _group: u64, _from: u64, _to: u64, _bytes_max: u64) -> Result<Vec<LogRecord>, LogError> {
        Ok(Vec::new())
    }
    fn reclaim(&self) -> Result<(), LogError> {
        Ok(())
    }
}
