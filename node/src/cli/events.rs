//! `holdfast events`: what happened in the zone, and why.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use holdfast_proto::admin::EventsRequest;
use holdfast_proto::hlc::Hlc;
use holdfast_proto::meta::{Event, EventSeverity};
use serde_json::json;

use super::output;
use super::target_zone::ZoneArgs;

const FOLLOW_EVERY: Duration = Duration::from_secs(1);
const PAGE: u32 = 1000;

#[derive(Debug, Args)]
pub(super) struct EventsArgs {
    /// The newest so many
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
    /// Only what happened in this time, such as 2h
    #[arg(long, value_parser = humantime::parse_duration)]
    since: Option<Duration>,
    /// Go on with what happens from now on
    #[arg(long)]
    follow: bool,
    #[command(flatten)]
    zone: ZoneArgs,
}

/// Prints events, oldest first; with `--json` an object on each line.
pub(super) async fn run(args: EventsArgs) -> anyhow::Result<()> {
    let oldest_ms = args.since.map_or(0, |since| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(now.saturating_sub(since).as_millis()).unwrap_or(0)
    });
    let contact = args.zone.contact()?;
    let ask = async |from: u64, limit: u32, newest: bool| {
        let asked = contact.events(EventsRequest { from, limit, newest }).await;
        asked
            .map(|answer| answer.page.unwrap_or_default())
            .map_err(|fault| anyhow::anyhow!("{}", fault.message))
    };
    // The first number that is asked for; pages follow from there.
    let first = ask(0, 1, true).await?.next.saturating_sub(u64::from(args.limit));
    let mut page = ask(first, PAGE, false).await?;
    loop {
        for event in page.events.iter().filter(|event| Hlc::from_u64(event.hlc).ms() >= oldest_ms) {
            output::line(&shown(event, args.zone.json))?;
        }
        if !page.more {
            if !args.follow {
                return Ok(());
            }
            tokio::time::sleep(FOLLOW_EVERY).await;
        }
        page = ask(page.next, PAGE, false).await?;
    }
}

fn shown(event: &Event, as_json: bool) -> String {
    let at = UNIX_EPOCH + Duration::from_millis(Hlc::from_u64(event.hlc).ms());
    let at = humantime::format_rfc3339_millis(at).to_string();
    let severity = match event.severity() {
        EventSeverity::EventInfo => "info",
        EventSeverity::EventWarning => "warning",
        EventSeverity::EventError => "error",
    };
    if as_json {
        let row = json!({
            "seq": event.seq,
            "at": at,
            "severity": severity,
            "code": event.code,
            "subject": event.subject,
            "text": event.text,
            "why": event.why,
        });
        return row.to_string();
    }
    let why = if event.why.is_empty() { String::new() } else { format!(" ({})", event.why) };
    format!("{at} {severity:7} {:20} {}: {}{why}", event.code, event.subject, event.text)
}
