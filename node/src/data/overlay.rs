//! What is acknowledged but not yet in the index, in memory, in front of it.
//!
//! Invariant: a reader that asks here first and the index second sees every acknowledged shard. Changes leave `moving`
//! only once the index holds all of them.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use holdfast_proto::id::ShardId;
use parking_lot::{Condvar, Mutex};

use super::record::{Entry, Position};

/// Changes move to the index when so much time has passed, however few they are.
const MOVE_AFTER: Duration = Duration::from_secs(1);

/// `None` is a deletion.
pub(super) type Changes = BTreeMap<ShardId, Option<Entry>>;

#[derive(Debug, Default)]
struct State {
    pending: Changes,
    moving: Arc<Changes>,
    /// Dead payloads whose space can be given back.
    freed: Vec<Entry>,
    /// Everything in the log before this has been published here.
    published: Position,
    /// Counts moves that finished: what was looked up under an older one may have changed in the index since.
    generation: u64,
    rebuild: bool,
    /// The index is to cover everything now, though there may be nothing to move.
    cover: bool,
    stop: bool,
    abandon: bool,
    /// Nobody waits for room any more: no room will come, or no more changes will.
    let_pass: bool,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Overlay {
    /// Changes move to the index once there are so many.
    move_at: usize,
    /// The writer waits when so many changes have not been moved.
    changes_max: usize,
    state: Mutex<State>,
    work: Condvar,
    room: Condvar,
    /// Ends a pause of the indexer.
    hurry: Condvar,
}

/// What the overlay knows of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    Here(Entry),
    Gone,
    /// Ask the index; valid while the generation is this.
    AskIndex(u64),
}

/// What the indexer is to do next.
#[derive(Debug)]
pub(super) enum Work {
    /// Give back `freed`, put `changes` into the index, then say that it covers the log up to `covered`.
    Move { changes: Arc<Changes>, freed: Vec<Entry>, covered: Position },
    /// The index failed: build a new one.
    Rebuild,
    /// Nothing is left to move: the index is whole.
    Stop,
    /// The target stops as it is; the index is not closed.
    Abandon,
}

impl Overlay {
    /// In front of an index that misses nothing before `published`.
    pub(super) fn new(published: Position, move_at: usize, changes_max: usize) -> Self {
        let state = Mutex::new(State { published, ..State::default() });
        Self {
            move_at,
            changes_max,
            state,
            work: Condvar::new(),
            room: Condvar::new(),
            hurry: Condvar::new(),
        }
    }

    pub(super) fn look(&self, shard: ShardId) -> Known {
        let state = self.state.lock();
        match state.pending.get(&shard).or_else(|| state.moving.get(&shard)) {
            Some(Some(entry)) => Known::Here(*entry),
            Some(None) => Known::Gone,
            None => Known::AskIndex(state.generation),
        }
    }

    /// Makes a durable batch visible. Waits while too many changes have not been moved, until [`Self::let_pass`].
    pub(super) fn publish(
        &self,
        changes: impl IntoIterator<Item = (ShardId, Option<Entry>)>,
        freed: &mut Vec<Entry>,
        published: Position,
    ) {
        let mut state = self.state.lock();
        while state.pending.len() >= self.changes_max && !state.stop && !state.let_pass {
            self.hurry.notify_all();
            self.room.wait(&mut state);
        }
        let was_idle = state.pending.is_empty() && state.freed.is_empty();
        state.pending.extend(changes);
        state.freed.append(freed);
        state.published = published;
        let wake = was_idle || state.pending.len() >= self.move_at;
        drop(state);
        if wake {
            self.work.notify_one();
        }
    }

    /// Whether the writer waits, or would.
    pub(super) fn is_full(&self) -> bool {
        self.state.lock().pending.len() >= self.changes_max
    }

    /// From now on nobody waits for room: the target takes no more writes, so what comes is bounded by its queue.
    pub(super) fn let_pass(&self) {
        self.state.lock().let_pass = true;
        self.room.notify_all();
    }

    /// Everything in the log before this has been published.
    pub(super) fn published(&self) -> Position {
        self.state.lock().published
    }

    /// Changes after `after`, in id order, the newest of each shard, about `limit` of them. They are complete up to the
    /// shard that is returned with them, or altogether when none is.
    pub(super) fn page(&self, after: Option<ShardId>, limit: usize) -> (Changes, Option<ShardId>) {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let state = self.state.lock();
        let mut page: Changes = BTreeMap::new();
        let mut upto: Option<ShardId> = None;
        for layer in [&*state.moving, &state.pending] {
            let mut rows = layer.range((start, Bound::Unbounded)).map(|(shard, change)| (*shard, *change));
            let mut last = None;
            page.extend(rows.by_ref().take(limit).inspect(|(shard, _)| last = Some(*shard)));
            if rows.next().is_some() {
                upto = upto.into_iter().chain(last).min();
            }
        }
        page.retain(|shard, _| upto.is_none_or(|upto| *shard <= upto));
        (page, upto)
    }

    /// The indexer's: waits for something to do.
    pub(super) fn next_work(&self) -> Work {
        let mut state = self.state.lock();
        loop {
            if state.abandon || state.rebuild && state.stop {
                return Work::Abandon;
            }
            if state.rebuild {
                state.rebuild = false;
                return Work::Rebuild;
            }
            let cover = std::mem::take(&mut state.cover);
            let idle = state.pending.is_empty() && state.freed.is_empty() && !cover;
            if idle && state.stop {
                return Work::Stop;
            }
            if idle {
                self.work.wait(&mut state);
                continue;
            }
            let due = state.stop || cover || state.pending.len() >= self.move_at;
            if due || self.work.wait_for(&mut state, MOVE_AFTER).timed_out() {
                state.moving = Arc::new(std::mem::take(&mut state.pending));
                self.room.notify_all();
                return Work::Move {
                    changes: Arc::clone(&state.moving),
                    freed: std::mem::take(&mut state.freed),
                    covered: state.published,
                };
            }
        }
    }

    /// The indexer's: what it was given is in the index.
    pub(super) fn moved(&self) {
        let mut state = self.state.lock();
        state.moving = Arc::default();
        state.generation += 1;
    }

    /// The indexer's: the index failed before it held all it was given.
    pub(super) fn move_failed(&self) {
        let mut state = self.state.lock();
        let mut merged = (*std::mem::take(&mut state.moving)).clone();
        merged.append(&mut state.pending);
        state.pending = merged;
        state.generation += 1;
    }

    /// Has everything published so far moved into the index without waiting for more.
    pub(super) fn ask_move(&self) {
        self.state.lock().cover = true;
        self.work.notify_one();
    }

    /// Asks the indexer for a rebuild.
    pub(super) fn ask_rebuild(&self) {
        self.state.lock().rebuild = true;
        self.work.notify_one();
    }

    /// Lets the indexer end once it has moved everything.
    pub(super) fn stop(&self) {
        self.state.lock().stop = true;
        self.work.notify_all();
        self.room.notify_all();
        self.hurry.notify_all();
    }

    /// Makes the indexer end at once, as if the process had been killed.
    pub(super) fn abandon(&self) {
        self.state.lock().abandon = true;
        self.stop();
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.state.lock().stop
    }

    /// Waits for `time`, or until the overlay stops or a writer begins to wait for room.
    pub(super) fn pause(&self, time: Duration) {
        let mut state = self.state.lock();
        let awaited = state.pending.len() >= self.changes_max && !state.let_pass;
        if !state.stop && !awaited {
            self.hurry.wait_for(&mut state, time);
        }
    }
}

#[cfg(test)]
mod tests {
    use holdfast_proto::id::WriteId;

    use super::super::record::Layout;
    use super::*;

    fn shard(index: u8) -> ShardId {
        ShardId { write: WriteId::default(), stripe: 0, index }
    }

    fn entry(offset: u64) -> Entry {
        Entry { at: Position::new(1, offset), meta_len: 1, length: 1, layout: Layout::default() }
    }

    #[test]
    fn changes_stay_visible_while_they_move_and_after_a_failed_move() {
        let overlay = Overlay::new(Position::new(1, 0), 4, 100);
        overlay.publish([(shard(1), Some(entry(1)))], &mut Vec::new(), Position::new(1, 10));
        overlay.stop();
        let Work::Move { covered, .. } = overlay.next_work() else { panic!("a change moves") };
        assert_eq!(covered, Position::new(1, 10));
        assert_eq!(overlay.look(shard(1)), Known::Here(entry(1)));
        overlay.publish([(shard(1), None)], &mut Vec::new(), Position::new(1, 20));
        overlay.move_failed();
        assert_eq!(overlay.look(shard(1)), Known::Gone);
        assert!(matches!(overlay.next_work(), Work::Move { .. }));
        overlay.moved();
        assert_eq!(overlay.look(shard(1)), Known::AskIndex(2));
        assert!(matches!(overlay.next_work(), Work::Stop));
    }

    #[test]
    fn a_writer_that_waits_for_room_is_let_pass_when_none_will_come() {
        let overlay = Arc::new(Overlay::new(Position::new(1, 0), 4, 2));
        let publish = |overlay: &Overlay, index| {
            overlay.publish([(shard(index), Some(entry(1)))], &mut Vec::new(), Position::new(1, 10));
        };
        publish(&overlay, 1);
        assert!(!overlay.is_full());
        publish(&overlay, 2);
        assert!(overlay.is_full());
        let (done, is_done) = std::sync::mpsc::channel();
        let waiting = std::thread::spawn({
            let overlay = Arc::clone(&overlay);
            move || {
                publish(&overlay, 3);
                let _ = done.send(());
            }
        });
        assert!(is_done.try_recv().is_err());
        overlay.let_pass();
        is_done.recv_timeout(Duration::from_secs(30)).expect("it waits for room that never comes");
        waiting.join().unwrap();
        assert_eq!(overlay.look(shard(3)), Known::Here(entry(1)));
    }

    #[test]
    fn a_page_holds_the_newest_of_each_shard() {
        let overlay = Overlay::new(Position::new(1, 0), 4, 100);
        overlay.publish(
            [(shard(1), Some(entry(1))), (shard(2), Some(entry(2)))],
            &mut Vec::new(),
            Position::default(),
        );
        overlay.stop();
        assert!(matches!(overlay.next_work(), Work::Move { .. }));
        overlay.publish([(shard(1), None), (shard(3), Some(entry(3)))], &mut Vec::new(), Position::default());
        let (page, upto) = overlay.page(None, 10);
        assert_eq!(
            page,
            Changes::from([(shard(1), None), (shard(2), Some(entry(2))), (shard(3), Some(entry(3)))])
        );
        assert_eq!(upto, None);
        assert_eq!(overlay.page(None, 1), (Changes::from([(shard(1), None)]), Some(shard(1))));
    }
}
