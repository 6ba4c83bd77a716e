//! Snapshots between nodes: the rows of one read view in key order, in parts, with a digest over the whole stream.
//!
//! The receiver fills a generation that nothing names while the rows arrive, and hands it to the state machine only when
//! the tail agrees on the number of rows and the digest. A stream that breaks leaves a nameless generation, which who
//! fills it removes; one that a crash leaves goes with the next start. An interrupted snapshot starts over.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use holdfast_machine::kv::{KvError, KvRead};
use holdfast_proto::hlc::Hlc;
use holdfast_proto::id::GroupId;
use holdfast_proto::raft as wire;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::kv::{Generation, View};
use super::peer::Peer;
use super::raft::Vote;
use super::state::{Applied, GroupState, MACHINE_ROWS, ROWS_END, SnapshotRows};
use super::wire as convert;
use crate::env::Env;

/// Rows in one part, bytes, nearly.
const PART_BYTES: usize = 256 << 10;
/// Parts queued between the store and the network.
pub(super) const PARTS_QUEUED: usize = 4;
/// A transfer that moved nothing for this long is given up.
const STALL_DEADLINE: Duration = Duration::from_secs(30);

/// Why a snapshot was not sent or not taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum SnapshotError {
    #[error("a snapshot that was received cannot be sent")]
    NotAView,
    #[error("nothing moved for {STALL_DEADLINE:?}")]
    Stalled,
    #[error("the node is stopping")]
    Stopping,
    #[error("the peer: {0}")]
    Peer(String),
    #[error(transparent)]
    Store(#[from] KvError),
    #[error("malformed snapshot: {0}")]
    Malformed(&'static str),
}

/// The digest and count of the rows of a snapshot.
#[derive(Default)]
struct RowSum {
    rows: u64,
    hasher: blake3::Hasher,
}

impl RowSum {
    fn add(&mut self, key: &[u8], value: &[u8]) {
        // A row is at most a message long, which is far below 4 GiB.
        self.hasher.update(&(key.len() as u32).to_le_bytes());
        self.hasher.update(&(value.len() as u32).to_le_bytes());
        self.hasher.update(key);
        self.hasher.update(value);
        self.rows += 1;
    }

    fn tail(&self) -> wire::SnapshotTail {
        let digest = self.hasher.finalize();
        wire::SnapshotTail { rows: self.rows, blake3: Bytes::copy_from_slice(digest.as_bytes()) }
    }
}

fn part(part: wire::snapshot_part::Part) -> wire::SnapshotPart {
    wire::SnapshotPart { part: Some(part) }
}

/// What comes before the rows, without a vote.
fn head_of(group: GroupId, hello: wire::PeerHello, applied: &Applied, env: &Env) -> wire::SnapshotHead {
    let mut id = [0; 16];
    env.fill_random(&mut id);
    wire::SnapshotHead {
        hello: Some(hello),
        group: group.get(),
        vote: None,
        last_log_id: applied.log_id.as_ref().map(convert::log_id_out),
        membership: Some(convert::stored_membership_out(&applied.membership)),
        hlc: applied.hlc.get(),
        snapshot: Bytes::copy_from_slice(&id),
    }
}

/// Reads the rows of a group as they are now into `parts`, for a peer that asked. Blocks; ends early when nobody takes
/// the parts any more. A fault of the store ends them without their tail.
pub(super) fn serve(
    state: &GroupState,
    hello: wire::PeerHello,
    env: &Env,
    parts: &mpsc::Sender<wire::SnapshotPart>,
) {
    let group = state.group();
    let view = state.view();
    let read = Applied::read(&view).and_then(|applied| {
        tracing::info!(%group, index = applied.index(), "a member fetches the rows of a group");
        read_parts(&view, head_of(group, hello, &applied, env), parts, &AtomicU64::new(0))
    });
    if let Err(error) = read {
        tracing::error!(%group, %error, "rows that a member fetches cannot be read");
    }
}

/// Brings the rows of a group from a peer into a generation that is not live: no older than `min_index`. Not cancel-safe:
/// dropped, it leaves the filling behind. `stop` ends it in order.
///
/// # Errors
/// When the peer cannot be reached or refuses, nothing moves, or what comes does not add up.
pub(super) async fn fetch(
    peer: &Peer,
    state: &Arc<GroupState>,
    min_index: u64,
    stop: &CancellationToken,
) -> Result<(Generation, Applied), SnapshotError> {
    let mut client = peer.client().await.map_err(|error| SnapshotError::Peer(error.to_string()))?;
    let hello = Some(peer.identity().hello(peer.node()));
    let ask = wire::FetchRequest { hello, group: state.group().get(), min_index };
    let from_peer = |status: Status| SnapshotError::Peer(status.to_string());
    let begun = async {
        let mut parts = client.fetch_snapshot(ask).await.map_err(from_peer)?.into_inner();
        let first = parts.message().await.map_err(from_peer)?;
        Ok::<_, SnapshotError>((parts, first))
    };
    let begun = tokio::time::timeout(STALL_DEADLINE, begun).await.map_err(|_| SnapshotError::Stalled)?;
    let (mut parts, first) = begun?;
    let Some(wire::snapshot_part::Part::Head(head)) = first.and_then(|part| part.part) else {
        return Err(SnapshotError::Malformed("no head"));
    };
    let applied = applied_of(&head)?;
    if head.group != state.group().get() || applied.index() < min_index {
        return Err(SnapshotError::Malformed("rows that were not asked for"));
    }
    receive(state, applied, &mut parts, stop).await
}

/// Sends a snapshot and answers the vote of the peer, which tells whether it still follows. Cancel-safe: a dropped call
/// breaks the stream, and the peer forgets what came.
///
/// # Errors
/// When the peer cannot be reached, refuses, or nothing moves.
pub(super) async fn send(
    peer: &Peer,
    group: GroupId,
    vote: &Vote,
    snapshot: SnapshotRows,
) -> Result<Vote, SnapshotError> {
    let SnapshotRows::View { view, applied } = snapshot else { return Err(SnapshotError::NotAView) };
    let mut client = peer.client().await.map_err(|error| SnapshotError::Peer(error.to_string()))?;
    let head = wire::SnapshotHead {
        vote: Some(convert::vote_out(vote)),
        ..head_of(group, peer.identity().hello(peer.node()), &applied, peer.env())
    };
    tracing::info!(%group, to = %peer.node(), index = applied.log_id.map(|id| id.index()), "sending a snapshot");
    let (parts, outbound) = mpsc::channel(PARTS_QUEUED);
    let moved = Arc::new(AtomicU64::new(0));
    let reading = {
        let moved = Arc::clone(&moved);
        tokio::task::spawn_blocking(move || read_parts(&view, head, &parts, &moved))
    };
    let mut call = std::pin::pin!(client.install_snapshot(ReceiverStream::new(outbound)));
    let mut last = 0;
    let answer = loop {
        tokio::select! {
            answer = &mut call => break answer,
            () = tokio::time::sleep(STALL_DEADLINE) => {
                let now = moved.load(Ordering::Relaxed);
                if now == last {
                    return Err(SnapshotError::Stalled);
                }
                last = now;
            }
        }
    };
    let reply = answer.map_err(|status| SnapshotError::Peer(status.to_string()))?.into_inner();
    // The peer answered for a whole stream, or refused early: either way the reader has nothing left to say but a fault.
    if let Ok(Err(error)) = reading.await {
        return Err(error.into());
    }
    metrics::counter!("holdfast_meta_snapshots_sent_total").increment(1);
    reply.vote.as_ref().map(convert::vote_in).ok_or(SnapshotError::Malformed("a reply without a vote"))
}

/// Blocks on the store and on the queue; ends early, without a tail, when the receiver of `parts` is gone.
fn read_parts(
    view: &View,
    head: wire::SnapshotHead,
    parts: &mpsc::Sender<wire::SnapshotPart>,
    moved: &AtomicU64,
) -> Result<(), KvError> {
    let queue = |part: wire::SnapshotPart| {
        moved.fetch_add(1, Ordering::Relaxed);
        parts.blocking_send(part).is_ok()
    };
    if !queue(part(wire::snapshot_part::Part::Head(head))) {
        return Ok(());
    }
    let mut sum = RowSum::default();
    let (mut rows, mut bytes) = (Vec::new(), 0);
    for row in view.scan(MACHINE_ROWS, ROWS_END) {
        let (key, value) = row?;
        sum.add(&key, &value);
        bytes += key.len() + value.len();
        rows.push(wire::SnapshotRow { key, value });
        if bytes >= PART_BYTES {
            let full = wire::SnapshotRows { rows: std::mem::take(&mut rows) };
            bytes = 0;
            if !queue(part(wire::snapshot_part::Part::Rows(full))) {
                return Ok(());
            }
        }
    }
    if rows.is_empty() || queue(part(wire::snapshot_part::Part::Rows(wire::SnapshotRows { rows }))) {
        queue(part(wire::snapshot_part::Part::Tail(sum.tail())));
    }
    Ok(())
}

/// What a snapshot's head says is applied.
///
/// # Errors
/// When a field is missing or malformed.
pub(super) fn applied_of(head: &wire::SnapshotHead) -> Result<Applied, SnapshotError> {
    let membership = head.membership.as_ref().ok_or(SnapshotError::Malformed("a head without membership"))?;
    Ok(Applied {
        log_id: head.last_log_id.as_ref().map(convert::log_id_in),
        membership: Arc::new(
            convert::stored_membership_in(membership)
                .map_err(|_| SnapshotError::Malformed("a head with a malformed membership"))?,
        ),
        hlc: Hlc::from_u64(head.hlc),
    })
}

/// Takes the parts after the head into a new generation. The generation is durable and complete, but not live, when this
/// returns. Not cancel-safe: dropped, it leaves the filling behind. `stop` ends it in order.
///
/// # Errors
/// When the stream stalls or ends early, the rows are out of order or do not add up, or the store fails.
pub(super) async fn receive(
    state: &Arc<GroupState>,
    applied: Applied,
    parts: &mut tonic::Streaming<wire::SnapshotPart>,
    stop: &CancellationToken,
) -> Result<(Generation, Applied), SnapshotError> {
    let (queue, arrived) = mpsc::channel(PARTS_QUEUED);
    let filling = {
        let state = Arc::clone(state);
        let own = applied.rows();
        tokio::task::spawn_blocking(move || fill(&state, own, arrived))
    };
    let fed = tokio::select! {
        fed = feed(parts, queue) => fed,
        () = stop.cancelled() => Err(SnapshotError::Stopping),
    };
    let filled = filling.await.map_err(|error| SnapshotError::Store(KvError(error.to_string())))?;
    // A stream that broke also broke the filling: its own fault says more.
    fed?;
    Ok((filled?, applied))
}

async fn feed(
    parts: &mut tonic::Streaming<wire::SnapshotPart>,
    queue: mpsc::Sender<wire::snapshot_part::Part>,
) -> Result<(), SnapshotError> {
    loop {
        let next = tokio::time::timeout(STALL_DEADLINE, parts.message())
            .await
            .map_err(|_| SnapshotError::Stalled)?;
        let next = next.map_err(|status| SnapshotError::Peer(status.to_string()))?;
        let Some(next) = next else {
            return Err(SnapshotError::Malformed("the stream ended without its tail"));
        };
        let next = next.part.ok_or(SnapshotError::Malformed("a part of an unknown kind"))?;
        let last = matches!(next, wire::snapshot_part::Part::Tail(_));
        if queue.send(next).await.is_err() || last {
            return Ok(());
        }
    }
}

fn fill(
    state: &GroupState,
    own: [(Bytes, Bytes); 2],
    mut arrived: mpsc::Receiver<wire::snapshot_part::Part>,
) -> Result<Generation, KvError> {
    let generation = state.store().new_generation(state.group())?;
    let mut sum = RowSum::default();
    let mut part = Vec::new().into_iter();
    let mut ended = false;
    let received = std::iter::from_fn(|| {
        loop {
            if ended {
                return None;
            }
            if let Some(wire::SnapshotRow { key, value }) = part.next() {
                sum.add(&key, &value);
                return Some(Ok((key, value)));
            }
            match arrived.blocking_recv() {
                Some(wire::snapshot_part::Part::Rows(rows)) => part = rows.rows.into_iter(),
                Some(wire::snapshot_part::Part::Tail(tail)) if tail == sum.tail() => ended = true,
                Some(wire::snapshot_part::Part::Tail(_)) => {
                    ended = true;
                    return Some(Err(KvError("a snapshot's rows do not match its digest".into())));
                }
                Some(wire::snapshot_part::Part::Head(_)) | None => {
                    ended = true;
                    return Some(Err(KvError("a snapshot ended without its tail".into())));
                }
            }
        }
    });
    let filled = generation.ingest(own.into_iter().map(Ok).chain(received));
    if let Err(error) = filled {
        state.store().remove_unless_live(generation)?;
        return Err(error);
    }
    Ok(generation)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::clock::StampClock;
    use crate::meta::kv::Store;
    use crate::meta::raft::LogId;
    use crate::meta::state::Failure;
    use wire::snapshot_part::Part;

    fn row(key: &'static str) -> wire::SnapshotRow {
        wire::SnapshotRow { key: Bytes::from(key), value: Bytes::from("value") }
    }

    fn tail(rows: &[wire::SnapshotRow]) -> Part {
        let mut sum = RowSum::default();
        rows.iter().for_each(|row| sum.add(&row.key, &row.value));
        Part::Tail(sum.tail())
    }

    /// Fills a generation from `parts`, after which the stream ends.
    fn filled(parts: Vec<Part>) -> (tempfile::TempDir, Arc<GroupState>, Result<Generation, KvError>) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), 1 << 20).unwrap();
        let clock = Arc::new(StampClock::new(Env::real()));
        let state = GroupState::open(GroupId::REALM, store, clock, Failure::new()).unwrap();
        let (queue, arrived) = mpsc::channel(16);
        for part in parts {
            queue.try_send(part).unwrap();
        }
        drop(queue);
        let applied = Applied { log_id: Some(LogId::new_term_index(2, 9)), ..Applied::default() };
        let generation = fill(&state, applied.rows(), arrived);
        (dir, state, generation)
    }

    #[test]
    fn whole_snapshots_are_taken() {
        let rows = vec![row("acc|a"), row("acc|b")];
        let parts = vec![Part::Rows(wire::SnapshotRows { rows: rows.clone() }), tail(&rows)];
        let (_dir, state, generation) = filled(parts);
        let generation = generation.unwrap();
        assert!(generation.number > state.live_number(), "it is not live yet");
        assert_eq!(generation.scan(MACHINE_ROWS, ROWS_END).count(), 2);
        assert_eq!(Applied::read(&generation).unwrap().log_id, Some(LogId::new_term_index(2, 9)));
    }

    /// A stream that broke may be noticed after the next one was taken and installed.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_broken_snapshot_takes_nothing_of_the_next_one_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let open = || {
            let store = Store::open(dir.path(), 1 << 20).unwrap();
            let clock = Arc::new(StampClock::new(Env::real()));
            GroupState::open(GroupId::REALM, store, clock, Failure::new()).unwrap()
        };
        let applied = Applied { log_id: Some(LogId::new_term_index(2, 9)), ..Applied::default() };
        let rows = vec![row("acc|a"), row("acc|b")];
        {
            let state = open();
            let (broken, arrived) = mpsc::channel(16);
            let breaking = {
                let (state, own) = (Arc::clone(&state), applied.rows());
                tokio::task::spawn_blocking(move || fill(&state, own, arrived))
            };
            broken.send(Part::Rows(wire::SnapshotRows { rows: rows[..1].to_vec() })).await.unwrap();
            // Taken up by who fills, whose generation is there from now on.
            broken.reserve_many(broken.max_capacity()).await.unwrap();
            let (queue, arrived) = mpsc::channel(16);
            queue.try_send(Part::Rows(wire::SnapshotRows { rows: rows.clone() })).unwrap();
            queue.try_send(tail(&rows)).unwrap();
            let filling = Arc::clone(&state);
            let next = tokio::task::spawn_blocking(move || {
                let generation = fill(&filling, applied.rows(), arrived).unwrap();
                filling.install(generation, applied).unwrap();
            });
            next.await.unwrap();
            drop(broken);
            assert!(breaking.await.unwrap().is_err());
            assert_eq!(state.view().scan(MACHINE_ROWS, ROWS_END).count(), 2);
        }
        let state = open();
        assert_eq!(state.applied_index(), 9);
        assert_eq!(state.view().scan(MACHINE_ROWS, ROWS_END).count(), 2);
    }

    #[test]
    fn damaged_snapshots_are_refused_and_leave_nothing_live() {
        let rows = vec![row("acc|a"), row("acc|b")];
        let sent = |rows: &[wire::SnapshotRow]| Part::Rows(wire::SnapshotRows { rows: rows.to_vec() });
        let flipped = wire::SnapshotRow { value: Bytes::from("walue"), ..row("acc|b") };
        let swapped = [row("acc|b"), row("acc|a")];
        for parts in [
            vec![sent(&rows)],
            vec![sent(&rows[..1]), tail(&rows)],
            vec![sent(&[row("acc|a"), flipped]), tail(&rows)],
            vec![sent(&swapped), tail(&swapped)],
            vec![sent(&[row("acc|a"), row("acc|a")]), tail(&[row("acc|a"), row("acc|a")])],
            vec![Part::Head(wire::SnapshotHead::default())],
        ] {
            let (_dir, state, generation) = filled(parts);
            assert!(generation.is_err());
            assert_eq!(state.live_number(), 1);
            assert_eq!(state.view().scan(MACHINE_ROWS, ROWS_END).count(), 0);
        }
    }
}
