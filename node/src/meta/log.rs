//! The Raft logs of all groups of a node: one engine, one writer thread, one fsync for whatever all groups queued.
//!
//! Invariant: writes reach the engine in the order they were submitted, and a completion is called only after its write,
//! and all earlier ones, are on disk. Commit points are the exception: they need no fsync, ride on the next write, and
//! may be lost by a power cut (never by a kill), which costs a restart some re-learning and no promise.
//!
//! A crash leaves a prefix of the submitted writes. A failed write ends the log: nothing is retried, nothing later is
//! written, and [`LogWriter::failure`] makes the process end.

use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use holdfast_proto::raft as wire;
use parking_lot::{Condvar, Mutex};
use tokio::sync::watch;

use super::log_record::LogRecord;

/// How long a commit point may wait for a write to ride on.
const COMMIT_POINT_DELAY: Duration = Duration::from_millis(20);

/// The log engine failed: the process ends, and what was not acknowledged is not known to be written.
#[derive(Debug, Clone, thiserror::Error)]
#[error("raft log: {0}")]
pub(crate) struct LogError(pub(crate) String);

/// One change to one group's log.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    /// Adds entries. The first one's index follows the last entry, or replaces it and all after it.
    Append(Vec<LogRecord>),
    /// Removes the entry at `next` and all after it.
    Truncate { next: u64 },
    /// Removes entries up to and with this one, which may be beyond the last.
    Purge { upto: wire::LogId },
    /// Sets the vote.
    Vote(wire::Vote),
    /// Sets the commit point.
    Committed(wire::LogId),
}

/// A change and the group it is for.
#[derive(Debug, Clone)]
pub(crate) struct LogWrite {
    /// `GroupId` in its 64-bit form.
    pub(crate) group: u64,
    /// What happens.
    pub(crate) change: Change,
}

/// What an engine remembers of a group besides its entries.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct LogFacts {
    /// The last saved vote.
    pub(crate) vote: Option<wire::Vote>,
    /// The last saved commit point.
    pub(crate) committed: Option<wire::LogId>,
    /// The last purged entry.
    pub(crate) purged: Option<wire::LogId>,
    /// Index of the first entry that is there; `None` when there is none.
    pub(crate) first: Option<u64>,
    /// Index of the last entry that is there; `None` when there is none.
    pub(crate) last: Option<u64>,
}

/// A store of many groups' logs. Laws, which `log_contract` holds every implementation to:
/// - `write` applies all its changes in order, and with `sync` they survive a power cut once it returned;
/// - after a crash at any point the state is that of a prefix of the writes;
/// - groups are independent, and a group's vote survives the purge of all its entries;
/// - between the purged entry and the last one there is no hole;
/// - `read` gives entries as they were appended, and never one that was truncated or purged.
pub(crate) trait LogEngine: Send + Sync + fmt::Debug + 'static {
    /// Applies changes, durably when `sync`.
    ///
    /// # Errors
    /// When the engine fails; it may also panic. Either way it is not used again.
    fn write(&self, writes: Vec<LogWrite>, sync: bool) -> Result<(), LogError>;

    /// Votes and bounds of a group; empty for one never written.
    ///
    /// # Errors
    /// When a stored row does not decode.
    fn facts(&self, group: u64) -> Result<LogFacts, LogError>;

    /// Entries from `from` to before `to`, all of which are there: at least the first, then while they stay within
    /// `bytes_max`.
    ///
    /// # Errors
    /// When an entry is missing or does not decode.
    fn read(&self, group: u64, from: u64, to: u64, bytes_max: u64) -> Result<Vec<LogRecord>, LogError>;

    /// Frees the space of purged entries. May take seconds.
    ///
    /// # Errors
    /// When the engine fails.
    fn reclaim(&self) -> Result<(), LogError>;
}

/// Called once, when a write is on disk or the log failed.
pub(crate) type Done = Box<dyn FnOnce(Result<(), LogError>) + Send>;

#[derive(Default)]
struct Queue {
    pending: Vec<(LogWrite, Done)>,
    /// Commit points by group, waiting for a write to ride on.
    committed: BTreeMap<u64, wire::LogId>,
    stopping: bool,
    failed: Option<LogError>,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
}

/// The one thread that writes to a [`LogEngine`].
pub(crate) struct LogWriter {
    shared: Arc<Shared>,
    engine: Arc<dyn LogEngine>,
    thread: Mutex<Option<JoinHandle<()>>>,
    failure: watch::Receiver<Option<String>>,
}

impl fmt::Debug for LogWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogWriter").field("engine", &self.engine).finish_non_exhaustive()
    }
}

impl LogWriter {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub(crate) fn start(engine: Arc<dyn LogEngine>) -> Result<Self, LogError> {
        let shared = Arc::new(Shared::default());
        let (failed, failure) = watch::channel(None);
        let thread = {
            let (shared, engine) = (Arc::clone(&shared), Arc::clone(&engine));
            std::thread::Builder::new()
                .name("raft-log".into())
                .spawn(move || run(&shared, engine.as_ref(), &failed))
                .map_err(|error| LogError(format!("no thread: {error}")))?
        };
        Ok(Self { shared, engine, thread: Mutex::new(Some(thread)), failure })
    }

    /// The engine below, to read from.
    pub(crate) fn engine(&self) -> &Arc<dyn LogEngine> {
        &self.engine
    }

    /// Queues a durable write. `done` is called from the writer thread, in the order of submission, and must not block.
    /// The queue is bounded by its users: each group has a few writes in flight.
    pub(crate) fn submit(&self, write: LogWrite, done: Done) {
        let refused = {
            let mut queue = self.shared.queue.lock();
            match &queue.failed {
                Some(error) => error.clone(),
                None if queue.stopping => LogError("stopped".into()),
                None => {
                    queue.pending.push((write, done));
                    self.shared.wake.notify_one();
                    return;
                }
            }
        };
        done(Err(refused));
    }

    /// Writes durably and waits. Not cancel-safe in effect: a dropped call's write may still happen.
    ///
    /// # Errors
    /// When the log failed or stopped.
    pub(crate) async fn write(&self, write: LogWrite) -> Result<(), LogError> {
        let (tx, rx) = tokio::sync::oneshot::channel();
        self.submit(
            write,
            Box::new(move |result| {
                // The waiter may be gone: the write happened all the same.
                let _ = tx.send(result);
            }),
        );
        rx.await.unwrap_or_else(|_| Err(LogError("the writer thread ended".into())))
    }

    /// Remembers a commit point; the latest of a group rides on the next write, or is written without fsync soon.
    pub(crate) fn committed(&self, group: u64, log_id: wire::LogId) {
        let mut queue = self.shared.queue.lock();
        if queue.failed.is_none() && !queue.stopping {
            let idle = queue.pending.is_empty() && queue.committed.is_empty();
            queue.committed.insert(group, log_id);
            if idle {
                self.shared.wake.notify_one();
            }
        }
    }

    /// Set when a write failed: the process must end.
    pub(crate) fn failure(&self) -> watch::Receiver<Option<String>> {
        self.failure.clone()
    }

    /// Writes what is queued and ends the thread. Blocks for one write; later submissions are refused.
    pub(crate) fn stop(&self) {
        self.shared.queue.lock().stopping = true;
        self.shared.wake.notify_one();
        if let Some(thread) = self.thread.lock().take()
            && thread.thread().id() != std::thread::current().id()
        {
            // A panic of the thread was reported as a failure already.
            let _ = thread.join();
        }
    }
}

impl Drop for LogWriter {
    fn drop(&mut self) {
        self.stop();
    }
}

fn run(shared: &Shared, engine: &dyn LogEngine, failed: &watch::Sender<Option<String>>) {
    loop {
        let (pending, committed, last) = {
            let mut queue = shared.queue.lock();
            while queue.pending.is_empty() && !queue.stopping {
                if queue.committed.is_empty() {
                    shared.wake.wait(&mut queue);
                } else if shared.wake.wait_for(&mut queue, COMMIT_POINT_DELAY).timed_out() {
                    break;
                }
            }
            (std::mem::take(&mut queue.pending), std::mem::take(&mut queue.committed), queue.stopping)
        };
        let sync = !pending.is_empty();
        let (mut writes, done): (Vec<LogWrite>, Vec<Done>) = pending.into_iter().unzip();
        // After the appends: a commit point never names an entry that is written later than itself.
        writes.extend(
            committed
                .into_iter()
                .map(|(group, log_id)| LogWrite { group, change: Change::Committed(log_id) }),
        );
        let result = if writes.is_empty() { Ok(()) } else { write(engine, writes, sync) };
        if let Err(error) = &result {
            let mut queue = shared.queue.lock();
            queue.failed = Some(error.clone());
            let refused = std::mem::take(&mut queue.pending);
            drop(queue);
            tracing::error!(%error, "raft log failed");
            failed.send_replace(Some(error.to_string()));
            for done in done.into_iter().chain(refused.into_iter().map(|(_, done)| done)) {
                done(Err(error.clone()));
            }
            return;
        }
        if sync {
            metrics::counter!("holdfast_meta_log_syncs_total").increment(1);
        }
        for done in done {
            done(Ok(()));
        }
        if last && shared.queue.lock().pending.is_empty() {
            return;
        }
    }
}

/// raft-engine panics when an fsync fails: that, too, is a failed write.
fn write(engine: &dyn LogEngine, writes: Vec<LogWrite>, sync: bool) -> Result<(), LogError> {
    catch_unwind(AssertUnwindSafe(|| engine.write(writes, sync))).unwrap_or_else(|panic| {
        let what = panic.downcast_ref::<&str>().map(ToString::to_string);
        let what = what.or_else(|| panic.downcast_ref::<String>().cloned());
        Err(LogError(format!("panicked: {}", what.unwrap_or_else(|| "without a message".into()))))
    })
}
