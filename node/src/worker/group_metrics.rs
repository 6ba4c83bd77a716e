//! How each group stands on this node, as gauges: what an operator watches to see a replica fall behind.

use std::sync::Arc;
use std::time::Duration;

use metrics::gauge;

use crate::meta::Groups;

const EVERY: Duration = Duration::from_secs(5);

/// Runs until the node stops.
pub(crate) async fn run(groups: Arc<Groups>) -> anyhow::Result<()> {
    loop {
        for status in groups.status() {
            let name = status.group.to_string();
            let at =
                |metric: &'static str, value: u64| gauge!(metric, "group" => name.clone()).set(value as f64);
            at("holdfast_meta_group_term_number", status.term);
            at("holdfast_meta_group_last_log_index", status.last_log);
            at("holdfast_meta_group_committed_index", status.committed);
            at("holdfast_meta_group_applied_index", status.applied);
            at("holdfast_meta_group_durable_index", status.durable);
            at("holdfast_meta_group_purged_index", status.purged);
            at("holdfast_meta_group_leads_bool", u64::from(status.is_leader));
            // On the leader: the member that is furthest behind. Elsewhere nobody is known to be.
            let behind =
                status.matched.values().map(|at| status.last_log.saturating_sub(*at)).max().unwrap_or(0);
            at("holdfast_meta_group_behind_entries", behind);
        }
        tokio::time::sleep(EVERY).await;
    }
}
