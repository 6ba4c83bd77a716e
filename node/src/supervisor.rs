//! Owner of every task of a node.
//!
//! A *task* is essential: when it ends before the node is told to stop, the node ends. A *worker* may fail: an error is
//! recorded and logged once, a panic is counted, and both start it again with backoff; a worker that fails
//! [`FAILURES_MAX`] times in [`FAILURE_WINDOW`] ends the node. Nothing is detached: [`Supervisor::shutdown`] returns
//! after everything returned.

use std::any::Any;
use std::collections::VecDeque;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const FAILURES_MAX: usize = 20;
const FAILURE_WINDOW: Duration = Duration::from_secs(600);
const BACKOFF_MIN: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// How a worker tells what it is doing. Cheap to clone; one per worker.
#[derive(Debug, Clone)]
pub(crate) struct Progress {
    state: Arc<Mutex<WorkerState>>,
}

/// What an operator sees of a worker.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub(crate) struct WorkerState {
    pub(crate) name: String,
    /// Things waiting to be done.
    pub(crate) backlog: u64,
    /// Things done since the node started.
    pub(crate) done: u64,
    pub(crate) last_error: Option<String>,
    pub(crate) failures: u64,
    pub(crate) panics: u64,
}

impl Progress {
    fn new(name: &str) -> Self {
        Self { state: Arc::new(Mutex::new(WorkerState { name: name.to_owned(), ..WorkerState::default() })) }
    }
    /// Sets how much is waiting.
    pub(crate) fn backlog(&self, count: u64) {
        self.state.lock().backlog = count;
    }
    /// Counts what was done.
    pub(crate) fn done(&self, count: u64) {
        self.state.lock().done += count;
    }
    /// Records an error that the worker goes on from. Logged when it differs from the last one.
    pub(crate) fn trouble(&self, error: impl std::fmt::Display) {
        let text = error.to_string();
        let mut state = self.state.lock();
        if state.last_error.as_deref() != Some(text.as_str()) {
            tracing::warn!(worker = state.name, error = text, "worker goes on after an error");
            state.last_error = Some(text);
        }
    }
    /// Forgets the last error: what failed has succeeded since.
    pub(crate) fn well(&self) {
        self.state.lock().last_error = None;
    }
    fn snapshot(&self) -> WorkerState {
        self.state.lock().clone()
    }
}

/// Owns a node's tasks. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Supervisor {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    cancel: CancellationToken,
    tasks: Mutex<JoinSet<()>>,
    workers: Mutex<Vec<Progress>>,
    failure: Mutex<Option<String>>,
}

impl Supervisor {
    /// A supervisor whose tasks stop when `cancel` is cancelled, or when one of them ends the node.
    pub(crate) fn new(cancel: CancellationToken) -> Self {
        Self {
            inner: Arc::new(Inner {
                cancel,
                tasks: Mutex::new(JoinSet::new()),
                workers: Mutex::new(Vec::new()),
                failure: Mutex::new(None),
            }),
        }
    }

    /// Cancelled when the node stops, for whatever reason.
    pub(crate) fn cancel(&self) -> &CancellationToken {
        &self.inner.cancel
    }

    /// States of all workers.
    pub(crate) fn workers(&self) -> Vec<WorkerState> {
        self.inner.workers.lock().iter().map(Progress::snapshot).collect()
    }

    /// Why the node ended, when it did not end because it was told to.
    pub(crate) fn failure(&self) -> Option<String> {
        self.inner.failure.lock().clone()
    }

    /// Ends the node. The first reason is kept.
    pub(crate) fn fail(&self, reason: String) {
        let mut failure = self.inner.failure.lock();
        if failure.is_none() && !self.inner.cancel.is_cancelled() {
            tracing::error!(reason, "the node ends");
            *failure = Some(reason);
        }
        drop(failure);
        self.inner.cancel.cancel();
    }

    /// Runs an essential task: it may end only after the node was told to stop.
    pub(crate) fn task<F, E>(&self, name: &'static str, future: F)
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: std::fmt::Display + Send + 'static,
    {
        let this = self.clone();
        self.inner.tasks.lock().spawn(async move {
            let ended = AssertUnwindSafe(future).catch_unwind().await;
            if this.inner.cancel.is_cancelled() && matches!(ended, Ok(Ok(()))) {
                return;
            }
            this.fail(match ended {
                Ok(Ok(())) => format!("{name} stopped by itself"),
                Ok(Err(error)) => format!("{name}: {error:#}"),
                Err(panic) => {
                    metrics::counter!("holdfast_node_task_panics_total").increment(1);
                    format!("{name} panicked: {}", panic_text(panic.as_ref()))
                }
            });
        });
    }

    /// Runs a worker until the node stops; `make` is called again after each failure. A worker that returns `Ok` is
    /// done for good.
    pub(crate) fn worker<M, F>(&self, name: &str, mut make: M)
    where
        M: FnMut(Progress) -> F + Send + 'static,
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let progress = Progress::new(name);
        self.inner.workers.lock().push(progress.clone());
        let this = self.clone();
        self.inner.tasks.lock().spawn(async move {
            let cancel = this.inner.cancel.clone();
            let mut failures = Failures::default();
            loop {
                let run = AssertUnwindSafe(make(progress.clone())).catch_unwind();
                let ended = tokio::select! {
                    ended = run => ended,
                    () = cancel.cancelled() => return,
                };
                let error = match ended {
                    Ok(Ok(())) => return,
                    Ok(Err(error)) => format!("{error:#}"),
                    Err(panic) => {
                        metrics::counter!("holdfast_node_task_panics_total").increment(1);
                        progress.state.lock().panics += 1;
                        format!("panicked: {}", panic_text(panic.as_ref()))
                    }
                };
                let name = progress.state.lock().name.clone();
                let Some(backoff) = failures.add(Instant::now()) else {
                    this.fail(format!("worker {name} keeps failing: {error}"));
                    return;
                };
                tracing::warn!(
                    worker = name,
                    error,
                    backoff_ms = backoff.as_millis() as u64,
                    "worker starts again"
                );
                {
                    let mut state = progress.state.lock();
                    state.failures += 1;
                    state.last_error = Some(error);
                }
                tokio::select! {
                    () = tokio::time::sleep(backoff) => {}
                    () = cancel.cancelled() => return,
                }
            }
        });
    }

    /// Tells everything to stop and waits until it has; what still runs after `patience` is aborted.
    pub(crate) async fn shutdown(&self, patience: Duration) {
        self.inner.cancel.cancel();
        let mut tasks = std::mem::take(&mut *self.inner.tasks.lock());
        let drained =
            tokio::time::timeout(patience, async { while tasks.join_next().await.is_some() {} }).await;
        if drained.is_err() {
            tracing::warn!(tasks = tasks.len(), "tasks did not stop in time and are aborted");
            tasks.shutdown().await;
        }
    }
}

#[derive(Debug, Default)]
struct Failures {
    at: VecDeque<Instant>,
}

impl Failures {
    /// Records a failure; the pause before the next try, or `None` when there were too many.
    fn add(&mut self, now: Instant) -> Option<Duration> {
        while self.at.front().is_some_and(|first| now.duration_since(*first) > FAILURE_WINDOW) {
            self.at.pop_front();
        }
        self.at.push_back(now);
        let shift = (self.at.len() - 1).min(16) as u32;
        (self.at.len() <= FAILURES_MAX).then(|| (BACKOFF_MIN * 2u32.pow(shift)).min(BACKOFF_MAX))
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

#[cfg(test)]
#[path = "supervisor_test.rs"]
mod tests;
