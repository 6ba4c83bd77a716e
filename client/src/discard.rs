//! Deletes shards of writes that nobody owns and nobody will: best effort. What stays behind is the reconciler's.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use holdfast_proto::id::{PgId, ShardId, TargetId, WriteId};
use holdfast_proto::meta::Body;

use crate::cluster::{Cluster, Inner};
use crate::geometry::Geometry;
use crate::layout::Layout;
use crate::place::members;
use crate::shard;

/// Shards named in one request.
const SHARDS_PER_REQUEST: usize = 1000;

impl Cluster {
    /// Deletes a body that was refused by its commit, in the background: best effort. Never after a commit whose outcome
    /// is unknown.
    pub fn discard(&self, body: &Body) {
        let layout = match Layout::of(body) {
            Ok(layout) => layout,
            Err(error) => {
                tracing::warn!(%error, "a body that does not parse was not discarded");
                return;
            }
        };
        let Some((write, geometry)) = layout.coded() else { return };
        let stripes: Vec<(u32, PgId)> = layout.stripes().collect();
        let inner = self.inner.clone();
        self.inner.tasks.spawn(async move { delete_stripes(&inner, &write, &geometry, stripes).await });
    }
}

/// Deletes all shards of some stripes from the targets of their groups.
pub(crate) async fn delete_stripes(
    inner: &Arc<Inner>,
    write: &WriteId,
    geometry: &Geometry,
    stripes: impl IntoIterator<Item = (u32, PgId)>,
) {
    let map = inner.map();
    let mut shards: HashMap<TargetId, Vec<Bytes>> = HashMap::new();
    for (stripe, pg) in stripes {
        let Some(targets) = map.pg(pg).and_then(|pg| members(geometry, write, pg)) else { continue };
        for (index, target) in targets.into_iter().enumerate() {
            let id = ShardId { write: *write, stripe, index: index as u8 };
            shards.entry(target).or_default().push(Bytes::copy_from_slice(&id.to_bytes()));
        }
    }
    let calls = shards.into_iter().map(|(target, shards)| {
        let map = map.clone();
        async move {
            for some in shards.chunks(SHARDS_PER_REQUEST) {
                if let Err(fault) = shard::delete(inner, &map, target, some.to_vec()).await {
                    tracing::debug!(%target, %fault, "shards of a write that was given up stay for the reconciler");
                    return;
                }
            }
        }
    });
    futures::future::join_all(calls).await;
}
