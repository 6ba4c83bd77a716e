//! Deletes shards of writes that nobody owns and nobody will: best effort. What stays behind is the reconciler's.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use holdfast_proto::id::{ShardId, TargetId, WriteId};
use holdfast_proto::meta::Body;

use crate::cluster::{Cluster, Inner};
use crate::error::Error;
use crate::layout::Layout;
use crate::place::members;
use crate::shard;
use crate::stripe::Place;

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
        let map = self.inner.map();
        let mut shards: Vec<(u32, Place)> = Vec::new();
        for (stripe, pg) in layout.stripes() {
            let targets = map.pg(pg).and_then(|pg| members(&geometry, &write, pg)).unwrap_or_default();
            shards.extend((0u8..).zip(targets).map(|(index, target)| (stripe, Place { index, target })));
        }
        let inner = self.inner.clone();
        self.inner.tasks.spawn(async move { delete_shards(&inner, &write, shards).await });
    }
}

impl Cluster {
    /// Deletes these shards of a target; those that are not there are no error. Answers when their tombstones are durable.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn delete_shards(&self, target: TargetId, shards: Vec<Bytes>) -> Result<(), Error> {
        let map = self.inner.map();
        let deleted = shard::delete(&self.inner, &map, target, shards).await;
        deleted.map_err(|fault| Error::unavailable(format!("target {target}: {fault}")))
    }
}

/// Deletes shards of a write, given by stripe and place.
pub(crate) async fn delete_shards(
    inner: &Arc<Inner>,
    write: &WriteId,
    shards: impl IntoIterator<Item = (u32, Place)>,
) {
    let map = inner.map();
    let mut by_target: HashMap<TargetId, Vec<Bytes>> = HashMap::new();
    for (stripe, Place { index, target }) in shards {
        let id = ShardId { write: *write, stripe, index };
        by_target.entry(target).or_default().push(Bytes::copy_from_slice(&id.to_bytes()));
    }
    let calls = by_target.into_iter().map(|(target, shards)| {
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
    tokio::select! {
        _ = futures::future::join_all(calls) => {}
        () = inner.cancel.cancelled() => {}
    }
}
