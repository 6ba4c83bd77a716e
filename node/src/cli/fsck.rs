//! `holdfast fsck`: the zone's metadata against its shards, both ways.

use std::time::Duration;

use clap::Args;
use holdfast_proto::admin::fsck_event::What;
use holdfast_proto::admin::{FsckFault, FsckRequest, FsckSummary};
use holdfast_proto::error::Fault;
use holdfast_proto::v1::FaultKind;
use serde_json::json;

use super::output;
use super::target_zone::ZoneArgs;
use crate::node::contact::Contact;

const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_secs(2);

#[derive(Debug, Args)]
pub(super) struct FsckArgs {
    /// Only this bucket; shards that nobody owns are then not looked for
    #[arg(long, default_value = "")]
    bucket: String,
    /// Have the zone's repair make a pass first, then look whether all is well
    #[arg(long)]
    repair: bool,
    #[command(flatten)]
    zone: ZoneArgs,
}

/// Exit code 0 only when everything was looked at and nothing is wrong.
pub(super) async fn run(args: FsckArgs) -> anyhow::Result<()> {
    let contact = args.zone.contact()?;
    let fail = |message: &str| anyhow::anyhow!("{message}");
    let mut tries = 1;
    let (summary, faults) = loop {
        match once(&args, &contact).await {
            Ok(found) => break found,
            // The lead changes hands now and then, and a check takes long.
            Err(fault) if fault.is_retryable() && tries < TRIES => {
                eprintln!("fsck begins again: {}", fault.message);
                tries += 1;
                tokio::time::sleep(PAUSE).await;
            }
            Err(fault) => return Err(fail(&fault.message)),
        }
    };
    for fault in faults.iter().filter(|_| !args.zone.json) {
        output::line(&fault_text(fault))?;
    }
    if args.zone.json {
        output::json(&as_json(&summary, &faults))?;
    } else {
        output::line(&summary_text(&summary))?;
    }
    match (is_clean(&summary), summary.silent.is_empty()) {
        (true, true) => Ok(()),
        (true, false) => Err(fail("targets did not answer: what they hold was not looked at")),
        (false, _) => Err(fail("not all is well")),
    }
}

async fn once(args: &FsckArgs, contact: &Contact) -> Result<(FsckSummary, Vec<FsckFault>), Fault> {
    let request = FsckRequest { bucket: args.bucket.clone(), repair: args.repair };
    let mut events = contact.fsck(request).await?;
    let mut faults = Vec::new();
    let mut phase = String::new();
    while let Some(event) = events.message().await.map_err(|status| Fault::from_status(&status))? {
        match event.what {
            Some(What::Progress(progress)) if progress.phase != phase => {
                eprintln!("fsck: {}, {} objects so far", progress.phase, progress.objects);
                phase = progress.phase;
            }
            Some(What::Fault(fault)) => faults.push(fault),
            Some(What::Summary(summary)) => return Ok((summary, faults)),
            Some(What::Progress(_)) | None => {}
        }
    }
    Err(Fault::new(FaultKind::FaultUnavailable, "the check broke off"))
}

fn is_clean(summary: &FsckSummary) -> bool {
    let FsckSummary { lost, missing, misplaced, surplus, orphans, .. } = summary;
    lost + missing + misplaced + surplus + orphans == 0
}

fn fault_text(fault: &FsckFault) -> String {
    let FsckFault { kind, bucket, key, write, stripe, detail } = fault;
    let write = hex::encode(write);
    if key.is_empty() {
        return format!("{kind}: write {write}: {detail}");
    }
    format!("{kind}: {bucket}/{}, stripe {stripe} of write {write}: {detail}", key.escape_ascii())
}

fn summary_text(summary: &FsckSummary) -> String {
    let mut text = format!(
        "{} objects, {} bodies, {} shards; {} writes on targets\nlost stripes {}, missing shards {}, misplaced {}, \
         surplus {}, orphan writes {}",
        summary.objects,
        summary.bodies,
        summary.shards,
        summary.writes,
        summary.lost,
        summary.missing,
        summary.misplaced,
        summary.surplus,
        summary.orphans,
    );
    if !summary.silent.is_empty() {
        let silent: Vec<String> = summary.silent.iter().map(u32::to_string).collect();
        text += &format!("\ntargets that did not answer: {}", silent.join(" "));
    }
    text
}

fn as_json(summary: &FsckSummary, faults: &[FsckFault]) -> serde_json::Value {
    let fault = |fault: &FsckFault| {
        json!({
            "kind": fault.kind,
            "bucket": fault.bucket,
            "key": String::from_utf8_lossy(&fault.key),
            "write": hex::encode(&fault.write),
            "stripe": fault.stripe,
            "detail": fault.detail,
        })
    };
    json!({
        "clean": is_clean(summary) && summary.silent.is_empty(),
        "objects": summary.objects,
        "bodies": summary.bodies,
        "shards": summary.shards,
        "writes": summary.writes,
        "lost": summary.lost,
        "missing": summary.missing,
        "misplaced": summary.misplaced,
        "surplus": summary.surplus,
        "orphans": summary.orphans,
        "silent": summary.silent,
        "faults": faults.iter().map(fault).collect::<Vec<_>>(),
    })
}
