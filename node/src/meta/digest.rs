//! A replica's digest of its rows at an index that the leader chose.
//!
//! The leader commits an entry that carries a mark. Whoever applies it keeps a view of the rows as of exactly that entry,
//! which costs nothing, and one task of the group sums the view up later, off the apply path; all groups of a node take
//! turns. Only the newest mark counts: an older view is dropped, and with it what it kept from being freed. A crash forgets
//! marks; applied again, an entry is summed up again, and who no longer asks has lost nothing.

use std::sync::Arc;

use bytes::Bytes;
use holdfast_machine::kv::{KvError, KvRead, Rows};
use holdfast_proto::id::GroupId;
use holdfast_proto::meta::{GetDigest, Query, answer, query};
use holdfast_proto::raft::{DigestReply, RowsDigest, digest_reply};
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;

use super::kv::View;

/// The newest mark of a group, and what became of it.
#[derive(Debug, Default)]
pub(super) struct Marks {
    newest: Mutex<Newest>,
    taken: Notify,
}

#[derive(Debug, Default)]
struct Newest {
    mark: u64,
    /// Until it is summed up.
    view: Option<View>,
    result: Option<digest_reply::Result>,
}

impl Marks {
    /// The rows at the entry with `mark` are these.
    pub(super) fn take(&self, mark: u64, view: View) {
        *self.newest.lock() = Newest { mark, view: Some(view), result: None };
        self.taken.notify_one();
    }

    /// What the rows were at the entry `index` with `mark`, asked of a replica that has applied up to `applied`.
    pub(super) fn reply(&self, mark: u64, index: u64, applied: u64) -> DigestReply {
        use digest_reply::Result::{Pending, Unknown};
        let newest = self.newest.lock();
        let result = match &newest.result {
            _ if applied < index => Pending(true),
            Some(result) if newest.mark == mark => result.clone(),
            None if newest.mark == mark => Pending(true),
            _ => Unknown(true),
        };
        DigestReply { result: Some(result) }
    }

    /// Sums up views as they come, until `stop`. `turn` is what all groups of the node share.
    pub(super) async fn sum_up(
        self: Arc<Self>,
        group: GroupId,
        turn: Arc<Semaphore>,
        stop: CancellationToken,
    ) {
        loop {
            tokio::select! {
                () = self.taken.notified() => {}
                () = stop.cancelled() => return,
            }
            let Ok(_turn) = turn.acquire().await else { return };
            let (mark, view) = {
                let mut newest = self.newest.lock();
                let Some(view) = newest.view.take() else { continue };
                (newest.mark, view)
            };
            let stoppable = Stoppable { view, stop: stop.clone() };
            let summed = tokio::task::spawn_blocking(move || sum(&stoppable, group)).await;
            let result = match summed {
                Ok(Ok(rows)) => digest_reply::Result::Rows(rows),
                Ok(Err(fault)) => digest_reply::Result::Fault(fault),
                Err(error) => digest_reply::Result::Fault(error.to_string()),
            };
            if stop.is_cancelled() {
                return;
            }
            let mut newest = self.newest.lock();
            if newest.mark == mark && newest.view.is_none() {
                newest.result = Some(result);
            }
        }
    }
}

/// Reads every row. Blocks.
fn sum(rows: &impl KvRead, group: GroupId) -> Result<RowsDigest, String> {
    let ask = Query { of: Some(query::Of::GetDigest(GetDigest {})) };
    match holdfast_machine::query(rows, group, &ask).map_err(|halt| halt.to_string())?.ok {
        Some(answer::Ok::Digest(digest)) => Ok(RowsDigest { blake3: digest.blake3, rows: digest.rows }),
        _ => Err("the machine gave no digest".to_owned()),
    }
}

/// A view whose scans end with an error once the node stops: nothing waits for millions of rows then.
struct Stoppable {
    view: View,
    stop: CancellationToken,
}

impl KvRead for Stoppable {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        self.view.get(key)
    }

    fn scan(&self, start: &[u8], end: &[u8]) -> Rows<'_> {
        let rows = self.view.scan(start, end);
        Box::new(rows.map(|row| match self.stop.is_cancelled() {
            false => row,
            true => Err(KvError("the node is stopping".to_owned())),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::kv::Store;
    use holdfast_proto::meta::CommandBatch;
    use prost::Message;

    /// These bytes are in logs on disk: they never change.
    #[test]
    fn golden_mark() {
        let batch = CommandBatch { commands: Vec::new(), take_digest: 0x0102_0304_0506_0708 };
        assert_eq!(hex::encode(batch.encode_to_vec()), "110807060504030201");
    }

    #[tokio::test]
    async fn the_newest_mark_is_summed_up_and_no_other_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), 1 << 20).unwrap();
        let live = store.generation(GroupId::REALM).unwrap();
        let marks = Arc::new(Marks::default());
        let stop = CancellationToken::new();
        let reply = |mark, applied| marks.reply(mark, 5, applied).result.unwrap();
        assert_eq!(reply(7, 4), digest_reply::Result::Pending(true), "not applied yet");
        assert_eq!(reply(7, 5), digest_reply::Result::Unknown(true));
        marks.take(6, store.view(&live));
        marks.take(7, store.view(&live));
        assert_eq!(reply(7, 5), digest_reply::Result::Pending(true));
        let turn = Arc::new(Semaphore::new(1));
        let task = tokio::spawn(Arc::clone(&marks).sum_up(GroupId::REALM, turn, stop.clone()));
        while reply(7, 5) == digest_reply::Result::Pending(true) {
            tokio::task::yield_now().await;
        }
        assert!(matches!(reply(7, 5), digest_reply::Result::Rows(RowsDigest { rows: 0, .. })));
        assert_eq!(reply(6, 5), digest_reply::Result::Unknown(true));
        stop.cancel();
        task.await.unwrap();
    }
}
