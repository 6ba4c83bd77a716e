//! The consensus library's own suite for storage, on ours.

use std::sync::Arc;

use holdfast_proto::id::GroupId;
use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};

use super::clock::StampClock;
use super::kv::Store;
use super::log::LogWriter;
use super::log_engine::RaftEngineLog;
use super::raft::TypeConfig;
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
