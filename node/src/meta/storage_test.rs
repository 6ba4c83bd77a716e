//! The consensus library's own suite for storage, on ours.

use std::sync::Arc;

use bytes::Bytes;
use holdfast_proto::id::GroupId;
use openraft::StorageError;
use openraft::storage::{IOFlushed, RaftLogReader, RaftLogStorage};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::type_config::TypeConfigExt;

use super::clock::StampClock;
use super::kv::Store;
use super::log::LogWriter;
use super::log_engine::RaftEngineLog;
use super::raft::{Commands, Entry, LogId, Payload, TypeConfig, Vote};
use super::state::{Failure, GroupState, StateMachine};
use super::storage::GroupLog;
use crate::env::Env;

struct Builder;

impl StoreBuilder<TypeConfig, GroupLog, StateMachine, tempfile::TempDir> for Builder {
    async fn build(&self) -> Result<(tempfile::TempDir, GroupLog, StateMachine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let engine = Arc::new(RaftEngineLog::open(&dir.path().join("log")).unwrap());
        let writer = Arc::new(LogWriter::start(engine).unwrap());
        let log = GroupLog::open(GroupId::REALM.get(), writer, None).unwrap();
        let store = Store::open(&dir.path().join("state"), 1 << 20).unwrap();
        let clock = Arc::new(StampClock::new(Env::real()));
        let state = GroupState::open(GroupId::REALM, store, clock, Failure::new()).unwrap();
        Ok((dir, log, StateMachine::new(state)))
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
    let engine = Arc::new(RaftEngineLog::open(dir).unwrap());
    GroupLog::open(GroupId::REALM.get(), Arc::new(LogWriter::start(engine).unwrap()), None).unwrap()
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
    log.purge(LogId::new_term_index(1, half)).await.unwrap();
    assert_eq!(log.purgeable(ENTRIES - 1, all / 2), None);
    assert_eq!(log.try_get_log_entries(0..).await.unwrap().len() as u64, ENTRIES - half - 1);
}
