//! Writes shards again that are missing or bad: rebuilt from any k others, stored where they belong, read back.
//!
//! Idempotent and safe to stop at any point: chunks are immutable, a target that holds a good shard keeps it, and what is
//! there and whole is not written again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use holdfast_proto::data::{ObjectRef, ShardBlocks, ShardMeta};
use holdfast_proto::error::Fault;
use holdfast_proto::id::{Epoch, PgId, ShardId, TargetId};
use holdfast_proto::meta::{Body, MissedShard};
use holdfast_proto::v1::FaultKind;

use crate::cluster::{Cluster, Inner};
use crate::error::Error;
use crate::geometry::ShardRange;
use crate::layout::{Coded, Layout};
use crate::map::Map;
use crate::place::members;
use crate::read::StripeRead;
use crate::shard;
use crate::stripe::block_hashes;
use crate::verify::{Expected, verified};

impl Cluster {
    /// Makes these shards of a stored body exist on their targets, whole. For what a commit recorded as missed, and for
    /// what was found bad. Those that are whole are only read. The caller makes sure that the body is still owned.
    /// Cancel-safe: what was not restored is when it is called again.
    ///
    /// # Errors
    /// The first that a shard met; the others were restored all the same. [`Error::Lost`] when too few shards are left,
    /// [`Error::Unavailable`] when a target does not say what it holds or does not take its shard.
    pub async fn restore_shards(&self, body: &Body, shards: &[MissedShard]) -> Result<(), Error> {
        let Layout::Coded(coded) = Layout::of(body)? else { return Ok(()) };
        let coded: Arc<Coded> = Arc::from(coded);
        let mut stripes: BTreeMap<u32, BTreeSet<usize>> = BTreeMap::new();
        for shard in shards {
            if shard.index as usize >= coded.geometry.width() || shard.stripe >= coded.geometry.stripes() {
                return Err(Error::invalid(format!(
                    "the write has no shard {}/{}",
                    shard.stripe, shard.index
                )));
            }
            stripes.entry(shard.stripe).or_default().insert(shard.index as usize);
        }
        let mut result = Ok(());
        for (stripe, indexes) in stripes {
            let looks = indexes.iter().map(|index| is_whole(&self.inner, &coded, stripe, *index));
            let looks = futures::future::join_all(looks).await;
            let mut gone = Vec::new();
            for (index, whole) in indexes.into_iter().zip(looks) {
                match whole {
                    Ok(true) => {}
                    Ok(false) => gone.push(index),
                    // A target that cannot be asked takes no shard either.
                    Err(error) => result = result.and(Err(error)),
                }
            }
            if !gone.is_empty() {
                result = result.and(restore(&self.inner, &coded, stripe, &gone).await);
            }
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

/// Rebuilds shards that are not there or not whole, and stores them.
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
    let mut result = Ok(());
    for (index, data) in indexes.iter().zip(rebuilt) {
        let stored = match Home::of(inner, coded, stripe, *index) {
            Ok(home) => home.store(inner, coded, object.clone(), data).await,
            Err(error) => Err(error),
        };
        if stored.is_ok() {
            metrics::counter!("holdfast_client_shards_restored_total").increment(1);
        }
        result = result.and(stored);
    }
    result
}

/// Whether a shard is where it belongs, with every byte right.
async fn is_whole(inner: &Inner, coded: &Coded, stripe: u32, index: usize) -> Result<bool, Error> {
    let home = Home::of(inner, coded, stripe, index)?;
    match home.read(inner).await {
        Ok(answer) => match verified(&home.expected, answer) {
            Ok(_) => Ok(true),
            Err(disbelief) => {
                inner.bad_shards.report(home.target, home.expected.id, &disbelief.to_string());
                Ok(false)
            }
        },
        Err(fault) if matches!(fault.kind, FaultKind::ShardAbsent | FaultKind::Corrupt) => Ok(false),
        Err(fault) => Err(home.failed(fault)),
    }
}

/// Where a shard belongs, and what it must be.
pub(crate) struct Home {
    map: Arc<Map>,
    pg: PgId,
    epoch: Epoch,
    target: TargetId,
    expected: Expected,
}

impl Home {
    /// By the newest map.
    fn of(inner: &Inner, coded: &Coded, stripe: u32, index: usize) -> Result<Self, Error> {
        let map = inner.map();
        let targets = coded
            .pg(stripe)
            .and_then(|pg| map.pg(pg))
            .and_then(|pg| members(&coded.geometry, &coded.write, pg))
            .ok_or_else(|| Error::unavailable("its group is not in the map, or too narrow"))?;
        Self::at(inner, coded, stripe, index, targets[index])
    }

    /// On this target.
    pub(crate) fn at(
        inner: &Inner,
        coded: &Coded,
        stripe: u32,
        index: usize,
        target: TargetId,
    ) -> Result<Self, Error> {
        let map = inner.map();
        let pg = coded.pg(stripe).and_then(|pg| map.pg(pg));
        let pg = pg.ok_or_else(|| Error::unavailable("its group is not in the map"))?;
        let (pg, epoch) = (pg.id, pg.epoch);
        let length = coded.geometry.shard_bytes(stripe);
        let expected = Expected {
            id: ShardId { write: coded.write, stripe, index: index as u8 },
            scheme: coded.scheme,
            shard_bytes: length,
            stripe_offset: coded.geometry.stripe_offset(stripe),
            declared_length: coded.geometry.length(),
            blocks: 0..length,
        };
        Ok(Self { map, pg, epoch, target, expected })
    }

    async fn read(&self, inner: &Inner) -> Result<ShardBlocks, Fault> {
        shard::get(inner, &self.map, self.target, self.expected.id, 0, self.expected.shard_bytes).await
    }

    /// Stores the shard and reads it back.
    pub(crate) async fn store(
        &self,
        inner: &Inner,
        coded: &Coded,
        object: ObjectRef,
        data: Bytes,
    ) -> Result<(), Error> {
        let meta = ShardMeta {
            shard: Bytes::copy_from_slice(&self.expected.id.to_bytes()),
            pg: self.pg.get(),
            scheme: Some(coded.scheme),
            length: self.expected.shard_bytes,
            object: Some(object),
            block_hashes: block_hashes(&data),
        };
        shard::put(inner, &self.map, self.target, self.epoch, meta, data.clone())
            .await
            .map_err(|fault| self.failed(fault))?;
        let answer = self.read(inner).await.map_err(|fault| self.failed(fault))?;
        match verified(&self.expected, answer) {
            Ok((found, _)) if found == data => Ok(()),
            Ok(_) => Err(self.failed("it reads back as another")),
            Err(disbelief) => Err(self.failed(disbelief)),
        }
    }

    fn failed(&self, what: impl std::fmt::Display) -> Error {
        Error::unavailable(format!("shard {} on target {}: {what}", self.expected.id, self.target))
    }
}
