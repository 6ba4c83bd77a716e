//! The consensus library's own suite for storage, on ours.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use holdfast_proto::id::GroupId;
use openraft::entry::RaftEntry;
use openraft::storage::{EntryResponder, IOFlushed, RaftLogReader, RaftLogStorage, RaftStateMachine};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::type_config::TypeConfigExt;
use openraft::{OptionalSend, StorageError};

use super::clock::StampClock;
use super::kv::Store;
use super::log::LogWriter;
use super::log_engine::RaftEngineLog;
use super::raft::{Commands, Entry, LogId, Payload, SnapshotMeta, StoredMembership, TypeConfig, Vote};
use super::state::{Failure, GroupState, SnapshotRows, StateMachine};
use super::storage::GroupLog;
use crate::env::Env;

struct Builder;

/// The suite applies entries with gaps between them, which no group does.
struct Gapped(StateMachine);

type SnapshotOfRows = openraft::type_config::alias::SnapshotOf<TypeConfig, SnapshotRows>;

impl RaftStateMachine<TypeConfig> for Gapped {
    type SnapshotData = SnapshotRows;
    type SnapshotBuilder = StateMachine;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        self.0.applied_state().await
    }
    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some(item) = entries.next().await {
            let (entry, responder) = item?;
            if let Some(before) = entry.index().checked_sub(1) {
                self.0.state().skip_to(LogId::new_term_index(0, before));
            }
            self.0.apply(futures::stream::iter([Ok((entry, responder))])).await?;
        }
        Ok(())
    }
    async fn get_snapshot_builder(&mut self) -> StateMachine {
        self.0.get_snapshot_builder().await
    }
    async fn install_snapshot(&mut self, meta: &SnapshotMeta, rows: SnapshotRows) -> Result<(), io::Error> {
        self.0.install_snapshot(meta, rows).await
    }
    async fn get_current_snapshot(&mut self) -> Result<Option<SnapshotOfRows>, io::Error> {
        self.0.get_current_snapshot().await
    }
}

impl StoreBuilder<TypeConfig, GroupLog, Gapped, tempfile::TempDir> for Builder {
    async fn build(&self) -> Result<(tempfile::TempDir, GroupLog, Gapped), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let engine =
            Arc::new(RaftEngineLog::open(&dir.path().join("log"), Env::real().disk().as_ref()).unwrap());
        let writer = Arc::new(LogWriter::start(engine).unwrap());
        let log = GroupLog::open(GroupId::REALM.get(), writer, None).unwrap();
        let store = Store::open(&dir.path().join("state"), 1 << 20).unwrap();
        let clock = Arc::new(StampClock::new(Env::real()));
        let state = GroupState::open(GroupId::REALM, store, clock, Failure::new()).unwrap();
        Ok((dir, log, Gapped(StateMachine::new(state))))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_librarys_own_suite_passes() {
    Suite::test_all(Builder).await.unwrap();
}

fn entry(index: u64) -> Entry {
    let payload = Payload::Normal(Commands(Bytes::from(vec![index as u8; 16 << 10])));
    Entry { log_id: LogId::new_term_index(1, index), payload }
}

fn open(dir: &std::path::Path) -> GroupLog {
    let engine = Arc::new(RaftEngineLog::open(dir, Env::real().disk().as_ref()).unwrap());
    GroupLog::open(GroupId::REALM.get(), Arc::new(LogWriter::start(engine).unwrap()), None).unwrap()
}

/// As a group opens it, with a state that is durable up to `durable`.
fn open_whole(dir: &std::path::Path, durable: u64) -> GroupLog {
    let engine = Arc::new(RaftEngineLog::open(dir, Env::real().disk().as_ref()).unwrap());
    let writer = Arc::new(LogWriter::start(engine).unwrap());
    GroupLog::open(GroupId::REALM.get(), writer, Some(Arc::new(AtomicU64::new(durable)))).unwrap()
}

fn indexes(entries: &[Entry]) -> Vec<u64> {
    entries.iter().map(RaftEntry::index).collect()
}

async fn append(log: &mut GroupLog, range: std::ops::Range<u64>) {
    let (tx, rx) = TypeConfig::oneshot();
    log.append(range.map(entry), IOFlushed::signal(tx)).await.unwrap();
    rx.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reopened_log_knows_its_entries_its_vote_and_about_how_long_it_is() {
    const ENTRIES: u64 = 320;
    let dir = tempfile::tempdir().unwrap();
    {
        let mut log = open(dir.path());
        // More than the tail holds: the front is read from the engine.
        for start in (0..ENTRIES).step_by(10) {
            append(&mut log, start..start + 10).await;
        }
        let vote = Vote::new_committed(1, 7);
        log.save_vote(&vote).await.unwrap();
        log.save_committed(Some(LogId::new_term_index(1, ENTRIES + 5))).await.unwrap();
        assert_eq!(
            log.try_get_log_entries(0..ENTRIES).await.unwrap(),
            (0..ENTRIES).map(entry).collect::<Vec<_>>()
        );
        assert!(log.append([entry(ENTRIES + 1)], IOFlushed::noop()).await.is_err(), "a hole");
    }
    let mut log = open(dir.path());
    assert_eq!(log.vote(), Some(Vote::new_committed(1, 7)));
    // A commit point beyond the entries that survived counts only up to them.
    assert_eq!(log.read_committed().await.unwrap(), Some(LogId::new_term_index(1, ENTRIES - 1)));
    assert_eq!(log.try_get_log_entries(0..).await.unwrap(), (0..ENTRIES).map(entry).collect::<Vec<_>>());
    let all = ENTRIES * (16 << 10);
    assert!(log.written().abs_diff(all) < all / 50, "{} of {all}", log.written());
    // Keeping half leaves about half to purge.
    let half = log.purgeable(ENTRIES - 1, all / 2).unwrap();
    assert!((ENTRIES * 2 / 5..=ENTRIES / 2).contains(&half), "{half}");
    assert_eq!(log.purgeable(ENTRIES - 1, all * 2), None);
    assert_eq!(log.retained(), log.written());
    log.purge(LogId::new_term_index(1, half)).await.unwrap();
    assert!(log.retained().abs_diff(all / 2) < all / 5, "{} of {all}", log.retained());
    assert_eq!(log.purgeable(ENTRIES - 1, all / 2), None);
    assert_eq!(log.try_get_log_entries(0..).await.unwrap().len() as u64, ENTRIES - half - 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn less_log_than_was_asked_for_is_an_error_to_who_applies_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open_whole(dir.path(), 4);
    append(&mut log, 0..10).await;
    let streamed = async |log: &mut GroupLog, range: std::ops::Range<u64>| {
        let items: Vec<_> = log.entries_stream(range).await.collect().await;
        let failed = items.last().is_some_and(Result::is_err);
        (
            items.into_iter().filter_map(|item| item.ok().map(|entry| entry.index())).collect::<Vec<_>>(),
            failed,
        )
    };
    assert_eq!(streamed(&mut log, 3..10).await, ((3..10).collect(), false));
    assert_eq!(streamed(&mut log, 3..12).await, ((3..10).collect(), true));
    log.purge(LogId::new_term_index(1, 4)).await.unwrap();
    assert_eq!(streamed(&mut log, 5..10).await, ((5..10).collect(), false));
    assert_eq!(streamed(&mut log, 3..10).await, (vec![], true));
    // What is to be sent after a purged entry is a snapshot.
    assert_eq!(log.limited_get_log_entries(3, 10).await.unwrap(), []);
    assert_eq!(indexes(&log.limited_get_log_entries(5, 8).await.unwrap()), [5, 6, 7]);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_fit_a_log_that_has_their_entry_or_ends_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path());
    assert!(log.agrees(LogId::new_term_index(1, 3)).await.unwrap(), "an empty one");
    append(&mut log, 0..10).await;
    log.purge(LogId::new_term_index(1, 4)).await.unwrap();
    for (term, index, agrees) in
        [(1, 3, false), (1, 4, true), (2, 4, false), (1, 9, true), (2, 9, false), (2, 10, true)]
    {
        assert_eq!(log.agrees(LogId::new_term_index(term, index)).await.unwrap(), agrees, "{term} {index}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_out_of_its_order_ends_the_node() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), 1 << 20).unwrap();
    let failure = Failure::new();
    let clock = Arc::new(StampClock::new(Env::real()));
    let state = GroupState::open(GroupId::REALM, store, clock, failure.clone()).unwrap();
    let mut machine = StateMachine::new(Arc::clone(&state));
    let blank = |index| {
        let entry = Entry { log_id: LogId::new_term_index(1, index), payload: Payload::Blank };
        futures::stream::iter([Ok((entry, None))])
    };
    machine.apply(blank(0)).await.unwrap();
    machine.apply(blank(1)).await.unwrap();
    assert!(machine.apply(blank(3)).await.is_err(), "2 was left out");
    assert!(machine.apply(blank(1)).await.is_err(), "1 was there");
    assert_eq!(state.applied_index(), 1);
    assert!(failure.watch().borrow().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn purging_an_entry_of_a_later_term_keeps_those_behind_it() {
    let dir = tempfile::tempdir().unwrap();
    {
        let mut log = open(dir.path());
        append(&mut log, 0..10).await;
        log.purge(LogId::new_term_index(2, 5)).await.unwrap();
        assert_eq!(log.get_log_state().await.unwrap().last_log_id, Some(LogId::new_term_index(1, 9)));
        assert_eq!(indexes(&log.try_get_log_entries(0..).await.unwrap()), [6, 7, 8, 9]);
        // An older one does not take its place.
        log.purge(LogId::new_term_index(3, 4)).await.unwrap();
        assert_eq!(log.purged_index(), 5);
    }
    assert_eq!(indexes(&open(dir.path()).try_get_log_entries(0..).await.unwrap()), [6, 7, 8, 9]);
}
