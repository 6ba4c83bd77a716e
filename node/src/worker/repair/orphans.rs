//! Deletes what nobody owns: shards of a write whose writer died before its commit.
//!
//! The partition's `wrt` table is the only truth about owners. A write that has none there and was begun long enough ago is
//! fenced, so that it can never be committed, and only then are its shards deleted. A writer that is still at it has renewed
//! its write, and the fence is refused. A crash in between leaves a fence, and shards for the next walk.

use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use holdfast_client::{Cluster, Error, FoundStripe};
use holdfast_proto::data::ObjectRef;
use holdfast_proto::hlc::Hlc;
use holdfast_proto::id::{GroupId, WriteId};
use holdfast_proto::meta::{Command, FenceWrite, Refusal, WriteOwner, command, write_owner::Owner};

use super::owners::Owners;
use super::verdict::Places;
use super::{Inventory, Reach, listable};

/// Writes looked at together.
const AT_ONCE: usize = 16;
/// Between two such looks: a write costs a read of a header and a question to its partition, and nobody waits for it.
const PAUSE: Duration = Duration::from_millis(10);
/// Orphans that are remembered by name.
const FOUND_MAX: usize = 10_000;

/// A write, as far as it was seen.
struct Seen {
    write: WriteId,
    first: FoundStripe,
    shards: Vec<(u32, Bytes)>,
}

/// What a walk did.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Collected {
    pub(super) writes: u64,
    pub(super) orphans: u64,
    pub(super) failed: u64,
    pub(super) trouble: String,
    /// Orphans by their writes, so many as are told.
    pub(super) found: Vec<Bytes>,
}

/// Looks at every write that any target has a shard of.
pub(super) struct Collector<'a> {
    pub(super) cluster: &'a Cluster,
    pub(super) owners: &'a Owners,
    /// Now, as the zone's metadata tells time, and the age from which on a write without an owner is an orphan.
    pub(super) now: Hlc,
    pub(super) age: Duration,
    /// Writes begun before this are kept: the metadata that owned them may be lost.
    pub(super) held: Hlc,
    /// Nothing is fenced or deleted.
    pub(super) only_look: bool,
}

impl Collector<'_> {
    pub(super) async fn walk(
        &self,
        reach: &mut Reach,
        map: &holdfast_proto::meta::ClusterMap,
        goes_on: impl Fn() -> bool,
    ) -> Collected {
        let listed = listable(map);
        let places = Places::new(map, listed.clone());
        let mut inventory = Inventory::over(listed);
        let mut collected = Collected::default();
        let mut batch: Vec<Seen> = Vec::with_capacity(AT_ONCE + 1);
        while goes_on() {
            let stripe = inventory.next(reach, map).await;
            let ended = stripe.is_none();
            if let Some(stripe) = stripe {
                let shards = stripe.shards.iter().map(|held| (held.target, held.stored.shard.clone()));
                match batch.last_mut().filter(|seen| seen.write == stripe.write) {
                    Some(seen) => seen.shards.extend(shards),
                    // What makes no sense is told by repair.
                    None => {
                        if let Ok(verdict) = places.judge(&stripe) {
                            let shards = shards.collect();
                            batch.push(Seen { write: stripe.write, first: verdict.found, shards });
                        }
                    }
                }
            }
            // The last one may go on in the next stripe.
            if batch.len() > AT_ONCE || ended {
                let rest = if ended { Vec::new() } else { batch.split_off(AT_ONCE) };
                let fates = join_all(batch.iter().map(|seen| self.judge(seen))).await;
                for (seen, fate) in std::mem::replace(&mut batch, rest).into_iter().zip(fates) {
                    collected.writes += 1;
                    let result = match fate {
                        Ok(false) => Ok(false),
                        Ok(true) if self.only_look => Ok(true),
                        Ok(true) => delete(reach, map, seen.shards).await.map(|()| true),
                        Err(error) => Err(error.into()),
                    };
                    match result {
                        Ok(false) => {}
                        Ok(true) => {
                            collected.orphans += 1;
                            if collected.found.len() < FOUND_MAX {
                                collected.found.push(seen.write.to_wire());
                            }
                            if self.only_look {
                                continue;
                            }
                            tracing::info!(write = %seen.write, "shards of a write that nobody owns were deleted");
                        }
                        Err(error) => {
                            collected.failed += 1;
                            collected.trouble = format!("write {}: {error:#}", seen.write);
                        }
                    }
                }
                tokio::time::sleep(PAUSE).await;
            }
            if ended {
                break;
            }
        }
        collected
    }

    /// Whether nobody owns a write, and nobody ever will.
    async fn judge(&self, seen: &Seen) -> Result<bool, Error> {
        let object = match self.cluster.describe_stripe(&seen.first).await {
            Ok(object) => object,
            // Deleted since it was listed, or its targets are gone for now.
            Err(Error::Unavailable { .. }) => return Ok(false),
            Err(error) => return Err(error),
        };
        let begun = Hlc::from_u64(object.begin_hlc);
        let is_held = begun < self.held && !self.only_look;
        let is_old = begun < self.now.minus_ms(self.age.as_millis() as u64) && !is_held;
        let Some((group, owner)) = self.owners.of(self.cluster, seen.write, &object).await? else {
            // Its bucket is gone, and was empty when it went.
            return Ok(is_old);
        };
        match owner.owner {
            Some(Owner::Fenced(_)) => Ok(true),
            None if is_old && self.only_look => Ok(true),
            Some(Owner::Renewed(_)) if self.only_look => Ok(false),
            None | Some(Owner::Renewed(_)) if is_old => self.fence(group, seen.write, &object).await,
            _ => Ok(false),
        }
    }

    /// Whether the write is fenced now.
    async fn fence(&self, group: GroupId, write: WriteId, object: &ObjectRef) -> Result<bool, Error> {
        let Some(slot) = self.owners.slot(self.cluster, object).await? else { return Ok(false) };
        let fence = FenceWrite {
            bucket: object.bucket.clone(),
            slot: slot.get().into(),
            write: write.to_wire(),
            begin_hlc: object.begin_hlc,
        };
        let command = Command { op: Some(command::Op::FenceWrite(fence)), ..Command::default() };
        match self.cluster.propose(group, vec![command]).await?.first().map(|outcome| outcome.refusal()) {
            Some(Refusal::None) => Ok(true),
            // It has an owner by now, or its writer is at it.
            Some(Refusal::AlreadyExists) => Ok(false),
            other => Err(Error::Internal { detail: format!("the fence was answered with {other:?}") }),
        }
    }
}

async fn delete(
    reach: &mut Reach,
    map: &holdfast_proto::meta::ClusterMap,
    shards: Vec<(u32, Bytes)>,
) -> anyhow::Result<()> {
    let mut by_target: std::collections::BTreeMap<u32, Vec<Bytes>> = std::collections::BTreeMap::new();
    for (target, shard) in shards {
        by_target.entry(target).or_default().push(shard);
    }
    for (target, shards) in by_target {
        reach.delete(map, target, &shards).await?;
    }
    Ok(())
}

/// Whether somebody has this write.
pub(super) fn is_owned(owner: &WriteOwner) -> bool {
    matches!(owner.owner, Some(Owner::Key(_) | Owner::Part(_)))
}
