//! A stripe as targets hold it, without its manifest: what the zone's repair works on.
//!
//! Repair finds shards by what targets list, so it knows where they are and not whose. Their headers say the rest: the
//! object, and the length from which the stripe's geometry follows.

use std::sync::Arc;

use futures::future::join_all;
use holdfast_proto::data::ObjectRef;
use holdfast_proto::error::Fault;
use holdfast_proto::id::{PgId, ShardId, TargetId, WriteId};
use holdfast_proto::meta::Body;
use holdfast_proto::v1::Scheme;

use crate::cluster::Cluster;
use crate::error::Error;
use crate::geometry::ShardRange;
use crate::layout::{Coded, Layout};
use crate::place::members;
use crate::read::StripeRead;
use crate::restore::Home;
use crate::shard;

/// Shards asked for in one call to a target, which takes 10,000.
const SHARDS_PER_CALL: usize = 8_000;

/// What is known of where a body's shards are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Located {
    /// Every stripe in order, each with the targets its shards belong on, by index.
    pub stripes: Vec<(FoundStripe, Vec<TargetId>)>,
    /// Targets that did not say what they hold.
    pub silent: Vec<TargetId>,
}

/// A stripe, and where its shards are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundStripe {
    /// The write it belongs to.
    pub write: WriteId,
    /// Its number in the write.
    pub stripe: u32,
    /// The placement group it was written to.
    pub pg: PgId,
    /// Its code.
    pub scheme: Scheme,
    /// By index: the targets that hold the shard, the one to read first in front.
    pub holders: Vec<Vec<TargetId>>,
}

impl Cluster {
    /// Asks every target for every shard of a body. For an operator's question, not for reading. Cancel-safe.
    ///
    /// # Errors
    /// As [`Self::locate_bodies`].
    pub async fn locate_body(&self, body: &Body) -> Result<Located, Error> {
        Ok(self.locate_bodies(&[body]).await?.pop().unwrap_or_default())
    }

    /// The same of several bodies, in their order, with a question or few to each target. Cancel-safe.
    ///
    /// # Errors
    /// [`Error::Internal`] for a manifest that contradicts itself; [`Error::Unavailable`] when the map lacks a group of it.
    pub async fn locate_bodies(&self, bodies: &[&Body]) -> Result<Vec<Located>, Error> {
        let map = self.inner.map();
        let mut located = vec![Located::default(); bodies.len()];
        // Every shard, and whose it is: body, stripe, index.
        let (mut ids, mut whose) = (Vec::new(), Vec::new());
        for (at, body) in bodies.iter().enumerate() {
            let Layout::Coded(coded) = Layout::of(body)? else { continue };
            let width = coded.geometry.width();
            for stripe in 0..coded.geometry.stripes() {
                let pg = coded.pg(stripe).and_then(|pg| map.pg(pg));
                let belongs =
                    pg.and_then(|pg| members(&coded.geometry, &coded.write, pg).map(|at| (pg.id, at)));
                let (pg, targets) =
                    belongs.ok_or_else(|| Error::unavailable("a placement group is not in the map"))?;
                let holders = vec![Vec::new(); width];
                let found = FoundStripe { write: coded.write, stripe, pg, scheme: coded.scheme, holders };
                located[at].stripes.push((found, targets));
                for index in 0..width {
                    ids.push(ShardId { write: coded.write, stripe, index: index as u8 });
                    whose.push((at, stripe as usize, index));
                }
            }
        }
        let targets = map.raw().targets.iter().map(|target| TargetId::new(target.id));
        let asked = targets.clone().map(|target| {
            let (map, ids) = (&map, &ids);
            async move {
                let mut present = Vec::with_capacity(ids.len());
                for some in ids.chunks(SHARDS_PER_CALL) {
                    present.extend(shard::stat(&self.inner, map, target, some).await?);
                }
                Ok::<_, Fault>(present)
            }
        });
        for (target, answer) in targets.zip(join_all(asked).await) {
            match answer {
                Ok(present) if present.len() == ids.len() => {
                    let held = present.iter().zip(&whose).filter(|(present, _)| **present);
                    for (_, (at, stripe, index)) in held {
                        located[*at].stripes[*stripe].0.holders[*index].push(target);
                    }
                }
                _ => located.iter_mut().for_each(|located| located.silent.push(target)),
            }
        }
        Ok(located)
    }

    /// What the header of any shard of the stripe says of the object. Cancel-safe.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when no holder answers with a header.
    pub async fn describe_stripe(&self, found: &FoundStripe) -> Result<ObjectRef, Error> {
        let map = self.inner.map();
        let mut why = String::from("nobody holds a shard");
        for (index, holders) in found.holders.iter().enumerate() {
            for target in holders {
                let id = ShardId { write: found.write, stripe: found.stripe, index: index as u8 };
                match shard::get(&self.inner, &map, *target, id, u32::MAX, 1).await.map(|answer| answer.meta)
                {
                    Ok(Some(meta)) if meta.shard.as_ref() == id.to_bytes() => {
                        if let Some(object) = meta.object {
                            return Ok(object);
                        }
                    }
                    Ok(_) => why = format!("target {target} answered with another shard than {id}"),
                    Err(fault) => why = format!("shard {id} on target {target}: {fault}"),
                }
            }
        }
        Err(Error::unavailable(why))
    }

    /// Makes shards of a stripe exist on targets, each given by its index: read from where they are, or rebuilt from any k
    /// others, stored, fsynced and read back. `object` is what the stripe's headers say. Returns bytes written.
    /// Idempotent. Cancel-safe: what was not brought is when it is called again.
    ///
    /// # Errors
    /// The first that a shard met; others were brought all the same. [`Error::Lost`] when too few shards can be read.
    pub async fn bring_shards(
        &self,
        found: &FoundStripe,
        object: &ObjectRef,
        to: &[(usize, TargetId)],
    ) -> Result<u64, Error> {
        let length = object.declared_length;
        let coded = Coded::stripe(found.write, found.scheme, length, found.stripe, found.pg)?;
        if to.iter().any(|(index, _)| *index >= coded.geometry.width()) {
            return Err(Error::invalid("the stripe has no such shard"));
        }
        let coded = Arc::new(coded);
        let bytes = coded.geometry.shard_bytes(found.stripe);
        let holders = (0..coded.geometry.width())
            .map(|index| found.holders.get(index).cloned().unwrap_or_default())
            .collect::<Vec<_>>();
        let mut read = StripeRead::at(self.inner.clone(), coded.clone(), found.stripe, holders);
        let wanted: Vec<ShardRange> =
            to.iter().map(|(index, _)| ShardRange { index: *index, bytes: 0..bytes }).collect();
        let shards = read.gather(&wanted).await?;
        let (mut result, mut written) = (Ok(()), 0);
        for ((index, target), data) in to.iter().zip(shards) {
            let stored = match Home::at(&self.inner, &coded, found.stripe, *index, *target) {
                Ok(home) => home.store(&self.inner, &coded, object.clone(), data).await,
                Err(error) => Err(error),
            };
            written += if stored.is_ok() { u64::from(bytes) } else { 0 };
            result = result.and(stored);
        }
        result.map(|()| written)
    }
}
