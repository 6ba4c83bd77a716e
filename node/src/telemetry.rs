//! Logs to standard error and the process-wide metrics recorder.
//!
//! Both are per process: in `dev` without `--spawn` all nodes share them, and each admin endpoint shows all metrics.

use std::io::IsTerminal;
use std::time::Duration;

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use parking_lot::Mutex;
use tracing_subscriber::EnvFilter;

use crate::config::{LogConfig, LogFormat};

/// Libraries that say at `info` or `warn` what no operator can act on; s3s says at `error` what a client did wrong.
const QUIET: &str = "openraft=error,raft_engine=error,fjall=warn,lsm_tree=warn,sled=warn,s3s=off,h2=error,hyper=error,\
                     hyper_util=error,tower=error,tonic=error,rustls=error";

static METRICS: Mutex<Option<PrometheusHandle>> = Mutex::new(None);

/// Starts logging. `default_level` holds where neither the config nor `HOLDFAST_LOG` says more. Only the first call of a
/// process has an effect.
pub(crate) fn start_logs(config: &LogConfig, default_level: &str) {
    let wanted = std::env::var("HOLDFAST_LOG").ok().filter(|text| !text.is_empty());
    let directives = wanted.unwrap_or_else(|| config.filter.clone());
    let directives = if directives.is_empty() { default_level.to_owned() } else { directives };
    // Later directives win, so what the operator asks of a library goes last.
    let filter = EnvFilter::builder().parse_lossy(format!("{QUIET},{directives}"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match config.format {
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
        LogFormat::Human => builder.with_ansi(std::io::stderr().is_terminal()).try_init(),
    };
    // A second node of one process finds the logs started.
    drop(started);
}

/// Installs the recorder, once per process, and returns what renders it.
///
/// # Errors
/// When another recorder was installed by other code.
pub(crate) fn start_metrics() -> anyhow::Result<PrometheusHandle> {
    // Several nodes of one process start at once.
    let mut installed = METRICS.lock();
    if let Some(handle) = &*installed {
        return Ok(handle.clone());
    }
    let handle = PrometheusBuilder::new()
        // Seconds: from a tenth of a millisecond to a minute.
        .set_buckets(&[0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0])?
        .install_recorder()?;
    Ok(installed.insert(handle).clone())
}

/// How often [`PrometheusHandle::run_upkeep`] is due: histograms hold raw samples until then.
pub(crate) const METRICS_UPKEEP: Duration = Duration::from_secs(5);
