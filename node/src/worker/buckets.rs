//! Finishes buckets whose creator or deleter died half-way: the node that leads the realm looks for buckets that have
//! been `creating` or `deleting` for a while, and takes them to their end. Idempotent.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use holdfast_client::Cluster;
use holdfast_proto::id::GroupId;
use holdfast_proto::meta::{Bucket, BucketState, ListBuckets, Query, answer, query};
use tokio::time::Instant;

use crate::meta::Groups;
use crate::supervisor::Progress;

const TICK: Duration = Duration::from_secs(5);
/// Whoever is at it alive needs less than this.
const STUCK: Duration = Duration::from_secs(20);
const PAGE: u32 = 1000;

/// Runs until the node stops.
pub(crate) async fn run(groups: Arc<Groups>, cluster: Cluster, progress: Progress) -> anyhow::Result<()> {
    let mut seen: HashMap<(Bytes, i32), Instant> = HashMap::new();
    loop {
        tokio::time::sleep(TICK).await;
        if !groups.is_leader(GroupId::REALM) {
            seen.clear();
            continue;
        }
        let mut unfinished = Vec::new();
        for state in [BucketState::BucketCreating, BucketState::BucketDeleting] {
            match list(&groups, state).await {
                Ok(buckets) => unfinished.extend(buckets),
                Err(error) => progress.trouble(error),
            }
        }
        progress.backlog(unfinished.len() as u64);
        let now = Instant::now();
        seen.retain(|known, _| unfinished.iter().any(|bucket| key(bucket) == *known));
        for bucket in &unfinished {
            let first = *seen.entry(key(bucket)).or_insert(now);
            if now.duration_since(first) < STUCK {
                continue;
            }
            match cluster.settle_bucket(bucket).await {
                Ok(()) => {
                    tracing::info!(bucket = bucket.name, state = ?bucket.state(), "finished a bucket left half-way");
                    progress.done(1);
                    progress.well();
                }
                Err(error) => progress.trouble(format!("bucket {}: {error}", bucket.name)),
            }
        }
    }
}

fn key(bucket: &Bucket) -> (Bytes, i32) {
    (bucket.id.clone(), bucket.state)
}

async fn list(groups: &Groups, state: BucketState) -> anyhow::Result<Vec<Bucket>> {
    let ask = ListBuckets { state: state.into(), limit: PAGE, ..ListBuckets::default() };
    let answers = groups.read(GroupId::REALM, vec![Query { of: Some(query::Of::ListBuckets(ask)) }]).await?;
    Ok(match answers.into_iter().next().and_then(|answer| answer.ok) {
        Some(answer::Ok::Buckets(page)) => page.buckets,
        _ => Vec::new(),
    })
}
