use std::sync::atomic::{AtomicU32, Ordering};

use super::*;

#[tokio::test(start_paused = true)]
async fn a_panicking_worker_starts_again() {
    let supervisor = Supervisor::new(CancellationToken::new());
    let runs = Arc::new(AtomicU32::new(0));
    let counted = runs.clone();
    let (done, finished) = tokio::sync::oneshot::channel();
    let mut done = Some(done);
    supervisor.worker("w", move |progress| {
        let run = counted.fetch_add(1, Ordering::Relaxed);
        let done = if run == 2 { done.take() } else { None };
        async move {
            match run {
                0 => panic!("first"),
                1 => anyhow::bail!("second"),
                _ => {
                    progress.done(5);
                    progress.well();
                    done.map(|done| done.send(()));
                    Ok(())
                }
            }
        }
    });
    finished.await.unwrap();
    let state = supervisor.workers().remove(0);
    assert_eq!((state.panics, state.failures, state.done, state.last_error), (1, 2, 5, None));
    assert!(supervisor.failure().is_none());
    supervisor.shutdown(Duration::from_secs(1)).await;
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_keeps_failing_ends_the_node() {
    let supervisor = Supervisor::new(CancellationToken::new());
    supervisor.worker("bad", |_| async { anyhow::bail!("no") });
    supervisor.cancel().cancelled().await;
    assert_eq!(supervisor.failure().unwrap(), "worker bad keeps failing: no");
}

#[tokio::test]
async fn a_task_that_ends_early_ends_the_node() {
    for (ending, reason) in [(0, "t stopped by itself"), (1, "t: broken"), (2, "t panicked: oh")] {
        let supervisor = Supervisor::new(CancellationToken::new());
        supervisor.task("t", async move {
            match ending {
                0 => Ok(()),
                1 => Err("broken"),
                _ => panic!("oh"),
            }
        });
        supervisor.cancel().cancelled().await;
        supervisor.shutdown(Duration::from_secs(1)).await;
        assert_eq!(supervisor.failure().unwrap(), reason);
    }
}

#[tokio::test]
async fn shutdown_waits_for_what_runs() {
    let supervisor = Supervisor::new(CancellationToken::new());
    let cancel = supervisor.cancel().clone();
    let stopped = Arc::new(AtomicU32::new(0));
    let seen = stopped.clone();
    supervisor.task("t", async move {
        cancel.cancelled().await;
        tokio::task::yield_now().await;
        seen.store(1, Ordering::Relaxed);
        Ok::<(), String>(())
    });
    supervisor.shutdown(Duration::from_secs(5)).await;
    assert_eq!(stopped.load(Ordering::Relaxed), 1);
    assert!(supervisor.failure().is_none());
}
