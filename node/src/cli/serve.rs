//! `holdfast server`: one node until it is told to stop.

use std::path::Path;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::config;
use crate::env::Env;
use crate::node::NodeRuntime;
use crate::telemetry;

/// The threads that everything runs on.
///
/// # Errors
/// When the system gives none.
pub(super) fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}

/// Runs the node of `path`. With `parent`, it is killed when that process ends.
///
/// # Errors
/// Why it could not start or go on.
pub(super) fn server(path: &Path, parent: Option<u32>) -> anyhow::Result<()> {
    if let Some(parent) = parent {
        crate::dev::spawn::die_with_parent(parent)?;
    }
    let config = config::load(path)?;
    telemetry::start_logs(&config.log, "info");
    runtime()?.block_on(async {
        let cancel = stop_signals()?;
        let node = match NodeRuntime::start(config, Env::real(), cancel.clone()).await {
            Err(_) if cancel.is_cancelled() => return Ok(()),
            started => started?,
        };
        node.run(cancel).await
    })
}

/// Cancelled by SIGTERM or Ctrl-C. A second one ends the process at once.
///
/// # Errors
/// When signals cannot be waited for.
pub(crate) fn stop_signals() -> anyhow::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let cancel = CancellationToken::new();
    let cancelled = cancel.clone();
    // Lives as long as the process: the runtime ends it.
    tokio::spawn(async move {
        for _ in 0..2 {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if cancelled.is_cancelled() {
                std::process::exit(130);
            }
            cancelled.cancel();
        }
    });
    Ok(cancel)
}
