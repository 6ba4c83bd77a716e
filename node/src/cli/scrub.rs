//! `holdfast scrub ...`: whether what is stored still reads back. What `--meta` asks for is in [`super::scrub_meta`].

use clap::{Args, Subcommand};
use holdfast_proto::admin::StartScrubRequest;
use holdfast_proto::meta::{ScrubReport, TargetReport};
use serde_json::json;

use super::inspect;
use super::output;
use super::scrub_meta;
use super::target_zone::ZoneArgs;

#[derive(Debug, Subcommand)]
pub(super) enum ScrubCommand {
    /// Read everything through now, at data.scrub_bytes_per_second
    Start(StartArgs),
    /// How far each target is, and what was found
    Status(StatusArgs),
}

#[derive(Debug, Args)]
pub(super) struct StartArgs {
    /// Only this target; may be repeated
    #[arg(long = "target")]
    targets: Vec<u32>,
    /// Instead: have every group of the metadata compare its replicas
    #[arg(long, conflicts_with = "targets")]
    meta: bool,
    #[command(flatten)]
    zone: ZoneArgs,
}

#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    /// Instead: the groups of the metadata
    #[arg(long)]
    meta: bool,
    #[command(flatten)]
    zone: ZoneArgs,
}

pub(super) async fn run(command: ScrubCommand) -> anyhow::Result<()> {
    match command {
        ScrubCommand::Start(args) => start(args).await,
        ScrubCommand::Status(args) if args.meta => scrub_meta::status(&args.zone).await,
        ScrubCommand::Status(args) => status(&args.zone).await,
    }
}

async fn start(args: StartArgs) -> anyhow::Result<()> {
    let request = StartScrubRequest { targets: args.targets, meta: args.meta };
    let asked = args.zone.contact()?.start_scrub(request).await;
    let answer = asked.map_err(|fault| anyhow::anyhow!("{}", fault.message))?;
    if args.meta {
        scrub_meta::started(&answer, args.zone.json)?;
    } else if args.zone.json {
        output::json(&json!({ "started": answer.started, "failed": answer.failed }))?;
    } else {
        output::line(&format!("{} target(s) are being read through", answer.started.len()))?;
    }
    match answer.failed.as_slice() {
        [] => Ok(()),
        failed => Err(anyhow::anyhow!("{}", failed.join("; "))),
    }
}

async fn status(zone: &ZoneArgs) -> anyhow::Result<()> {
    let (status, map) = inspect::ask(zone).await?;
    let mut ids: Vec<u32> = map.targets.iter().map(|target| target.id).collect();
    ids.sort_unstable();
    let reports = inspect::reports(&status);
    if zone.json {
        let rows: Vec<_> = ids.iter().map(|id| as_json(*id, reports.get(id).copied())).collect();
        return output::json(&json!(rows));
    }
    let rows: Vec<Vec<String>> = ids.iter().map(|id| as_row(*id, reports.get(id).copied())).collect();
    output::line(&output::table(
        &["TARGET", "LAST PASS", "NOW", "READ", "PACE", "LEFT", "FOUND", "BAD NOW"],
        &rows,
    ))
}

/// Seconds until the pass is over, by its pace.
fn seconds_left(report: &TargetReport, scrub: &ScrubReport) -> Option<u64> {
    let left = report.used_bytes.saturating_sub(scrub.bytes);
    (scrub.running && scrub.bytes_per_second > 0).then(|| left / scrub.bytes_per_second)
}

fn as_json(id: u32, report: Option<&TargetReport>) -> serde_json::Value {
    let Some((report, scrub)) = report.and_then(|report| Some((report, report.scrub.as_ref()?))) else {
        return json!({ "target": id, "known": false });
    };
    json!({
        "target": id,
        "known": true,
        "running": scrub.running,
        "began_ms": scrub.began_ms,
        "finished_ms": scrub.finished_ms,
        "shards": scrub.shards,
        "shards_total": report.shards,
        "bytes": scrub.bytes,
        "bytes_total": report.used_bytes,
        "bytes_per_second": scrub.bytes_per_second,
        "seconds_left": seconds_left(report, scrub),
        "found": scrub.found,
        "bad_now": report.bad_shards,
        "overdue": scrub.overdue,
    })
}

fn as_row(id: u32, report: Option<&TargetReport>) -> Vec<String> {
    let Some((report, scrub)) = report.and_then(|report| Some((report, report.scrub.as_ref()?))) else {
        let mut row = vec![id.to_string(), "unknown: its node is silent".to_owned()];
        row.resize(8, String::new());
        return row;
    };
    let left = seconds_left(report, scrub)
        .map(|seconds| humantime::format_duration(std::time::Duration::from_secs(seconds)).to_string());
    vec![
        id.to_string(),
        output::when(scrub.finished_ms),
        if scrub.running { "running" } else { "resting" }.to_owned(),
        format!("{} of {}", output::bytes(scrub.bytes), output::bytes(report.used_bytes.max(scrub.bytes))),
        format!("{}/s", output::bytes(scrub.bytes_per_second)),
        left.unwrap_or_else(|| "-".to_owned()),
        scrub.found.to_string(),
        report.bad_shards.to_string(),
    ]
}
