//! Writes shards again that are missing or bad: rebuilt from any k others, stored where they belong, read back.
//!
//! Idempotent and safe to stop at any point: chunks are immutable, and a target that holds a good shard keeps it.

use std::sync::Arc;

use bytes::Bytes;
use holdfast_proto::data::ShardMeta;
use holdfast_proto::id::ShardId;
use holdfast_proto::meta::{Body, MissedShard};

use crate::cluster::{Cluster, Inner};
use crate::error::Error;
use crate::geometry::ShardRange;
use crate::layout::{Coded, Layout};
use crate::place::members;
use crate::read::StripeRead;
use crate::shard;
use crate::stripe::block_hashes;
use crate::verify::{Expected, verified};

impl Cluster {
    /// Makes these shards of a stored body exist on their targets, whole. For what a commit recorded as missed, and for
    /// what was found bad. The caller makes sure that the body is still owned.
    ///
    /// # Errors
    /// The first that a stripe met; others were tried all the same. [`Error::Lost`] when too few shards are left,
    /// [`Error::Unavailable`] when a target does not take its shard.
    pub async fn restore_shards(&self, body: &Body, shards: &[MissedShard]) -> Result<(), Error> {
        let Layout::Coded(coded) = Layout::of(body)? else { return Ok(()) };
        let coded: Arc<Coded> = Arc::from(coded);
        let mut stripes: std::collections::BTreeMap<u32, Vec<usize>> = std::collections::BTreeMap::new();
        for shard in shards {
            if shard.index as usize >= coded.geometry.width() || shard.stripe >= coded.geometry.stripes() {
                return Err(Error::invalid(format!(
                    "the write has no shard {}/{}",
                    shard.stripe, shard.index
                )));
            }
            stripes.entry(shard.stripe).or_default().push(shard.index as usize);
        }
        let mut result = Ok(());
        for (stripe, indexes) in stripes {
            let restored = restore(&self.inner, &coded, stripe, &indexes).await;
            result = result.and(restored);
        }
        result
    }
}

/// Has shards that a reader found bad written again, when not too much of that goes on already.
pub(crate) fn in_background(inner: &Arc<Inner>, coded: &Arc<Coded>, stripe: u32, indexes: Vec<usize>) {
    let Ok(permit) = inner.mending.clone().try_acquire_owned() else { return };
    let (inner, coded) = (inner.clone(), coded.clone());
    inner.tasks.clone().spawn(async move {
        let restored = tokio::select! {
            () = inner.cancel.cancelled() => return,
            restored = restore(&inner, &coded, stripe, &indexes) => restored,
        };
        match restored {
            Ok(()) => tracing::info!(write = %coded.write, stripe, ?indexes, "bad shards were written again"),
            Err(error) => {
                tracing::warn!(write = %coded.write, stripe, ?indexes, %error, "bad shards stay for repair")
            }
        }
        drop(permit);
    });
}

async fn restore(
    inner: &Arc<Inner>,
    coded: &Arc<Coded>,
    stripe: u32,
    indexes: &[usize],
) -> Result<(), Error> {
    let mut read = StripeRead::new(inner.clone(), coded.clone(), stripe)?;
    let length = coded.geometry.shard_bytes(stripe);
    let wanted: Vec<ShardRange> =
        indexes.iter().map(|index| ShardRange { index: *index, bytes: 0..length }).collect();
    indexes.iter().for_each(|index| read.leave_out(*index));
    let rebuilt = read.gather(&wanted).await?;
    let object = read.object.take().ok_or_else(|| Error::internal("no header was read"))?;
    for (index, data) in indexes.iter().zip(rebuilt) {
        let meta = ShardMeta {
            shard: Bytes::copy_from_slice(&id(coded, stripe, *index).to_bytes()),
            pg: 0,
            scheme: Some(coded.scheme),
            length,
            object: Some(object.clone()),
            block_hashes: block_hashes(&data),
        };
        store(inner, coded, stripe, *index, meta, data).await?;
        metrics::counter!("holdfast_client_shards_restored_total").increment(1);
    }
    Ok(())
}

fn id(coded: &Coded, stripe: u32, index: usize) -> ShardId {
    ShardId { write: coded.write, stripe, index: index as u8 }
}

/// Stores a shard and reads it back.
async fn store(
    inner: &Inner,
    coded: &Coded,
    stripe: u32,
    index: usize,
    mut meta: ShardMeta,
    data: Bytes,
) -> Result<(), Error> {
    let map = inner.map();
    let pg = coded
        .pg(stripe)
        .and_then(|pg| map.pg(pg))
        .ok_or_else(|| Error::unavailable("its group is not in the map"))?;
    let targets = members(&coded.geometry, &coded.write, pg)
        .ok_or_else(|| Error::unavailable("its group is too narrow"))?;
    meta.pg = pg.id.get();
    let target = targets[index];
    let refused = |what: String| {
        Error::unavailable(format!("shard {} on target {target}: {what}", id(coded, stripe, index)))
    };
    let length = meta.length;
    shard::put(inner, &map, target, pg.epoch, meta, data)
        .await
        .map_err(|fault| refused(fault.to_string()))?;
    let answer = shard::get(inner, &map, target, id(coded, stripe, index), 0, length).await;
    let answer = answer.map_err(|fault| refused(fault.to_string()))?;
    let expected = Expected {
        id: id(coded, stripe, index),
        scheme: coded.scheme,
        shard_bytes: length,
        stripe_offset: coded.geometry.stripe_offset(stripe),
        declared_length: coded.geometry.length(),
        blocks: 0..length,
    };
    verified(&expected, answer).map(|_| ()).map_err(|disbelief| refused(disbelief.to_string()))
}
