//! `holdfast scrub ... --meta`: whether the replicas of each group have the same rows.

use std::collections::BTreeMap;

use holdfast_proto::admin::StartScrubResponse;
use holdfast_proto::id::NodeId;
use holdfast_proto::meta::GroupScrubReport;
use serde_json::json;

use super::inspect;
use super::output;
use super::target_zone::ZoneArgs;

/// What was begun.
pub(super) fn started(answer: &StartScrubResponse, as_json: bool) -> anyhow::Result<()> {
    if as_json {
        let groups: Vec<_> = answer.groups.iter().map(|group| inspect::group_name(*group)).collect();
        return output::json(&json!({ "started": groups, "failed": answer.failed }));
    }
    output::line(&format!("{} group(s) compare their replicas", answer.groups.len()))
}

/// `holdfast scrub status --meta`
pub(super) async fn status(zone: &ZoneArgs) -> anyhow::Result<()> {
    let (status, map) = inspect::ask(zone).await?;
    let mut reports: BTreeMap<u64, Vec<(u64, &GroupScrubReport)>> =
        map.groups.iter().map(|group| (group.id, Vec::new())).collect();
    for node in &status.nodes {
        for report in &node.group_scrubs {
            reports.entry(report.group).or_default().push((node.node, report));
        }
    }
    let groups: Vec<Group> = reports.iter().map(|(group, told)| Group::new(*group, told)).collect();
    if zone.json {
        return output::json(&json!(groups.iter().map(Group::json).collect::<Vec<_>>()));
    }
    let rows: Vec<Vec<String>> = groups.iter().map(Group::row).collect();
    let head = ["GROUP", "LAST", "NOW", "INDEX", "ROWS", "TOOK", "AGREE", "WRONG", "SILENT"];
    output::line(&output::table(&head, &rows))
}

/// One group, by its leader and by who rebuilds its rows.
struct Group<'a> {
    id: u64,
    leader: Option<&'a GroupScrubReport>,
    rebuilding: Vec<u64>,
}

impl<'a> Group<'a> {
    fn new(id: u64, told: &[(u64, &'a GroupScrubReport)]) -> Self {
        let rebuilds = |report: &GroupScrubReport| !report.rebuilding.is_empty();
        Self {
            id,
            leader: told.iter().map(|(_, report)| *report).find(|report| !rebuilds(report)),
            rebuilding: told.iter().filter(|(_, report)| rebuilds(report)).map(|(node, _)| *node).collect(),
        }
    }

    fn state(&self) -> &'static str {
        match self.leader {
            _ if !self.rebuilding.is_empty() => "rebuilding",
            None => "unknown",
            Some(report) if report.running => "comparing",
            Some(report) if report.no_majority => "no majority",
            Some(report) if !report.trouble.is_empty() => "failed",
            Some(report) if !report.diverged.is_empty() => "diverged",
            Some(report) if report.finished_ms == 0 => "waiting",
            Some(_) => "equal",
        }
    }

    fn json(&self) -> serde_json::Value {
        let names = |ids: &[u64]| ids.iter().map(|id| NodeId::new(*id).to_string()).collect::<Vec<_>>();
        let report = self.leader.cloned().unwrap_or_default();
        json!({
            "group": inspect::group_name(self.id),
            "known": self.leader.is_some(),
            "state": self.state(),
            "finished_ms": report.finished_ms,
            "index": report.index,
            "rows": report.rows,
            "took_ms": report.took_ms,
            "agree": names(&report.agree),
            "diverged": names(&report.diverged),
            "silent": names(&report.silent),
            "rebuilding": names(&self.rebuilding),
            "no_majority": report.no_majority,
            "trouble": report.trouble,
        })
    }

    fn row(&self) -> Vec<String> {
        let names = |ids: &[u64]| match ids {
            [] => "-".to_owned(),
            ids => ids.iter().map(|id| NodeId::new(*id).to_string()).collect::<Vec<_>>().join(" "),
        };
        let report = self.leader.cloned().unwrap_or_default();
        let wrong: Vec<u64> = report.diverged.iter().chain(&self.rebuilding).copied().collect();
        vec![
            inspect::group_name(self.id),
            output::when(report.finished_ms),
            self.state().to_owned(),
            report.index.to_string(),
            report.rows.to_string(),
            format!("{} ms", report.took_ms),
            names(&report.agree),
            names(&wrong),
            names(&report.silent),
        ]
    }
}
