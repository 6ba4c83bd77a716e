//! Who owns a write: asked of the partition that its key is in.

use std::collections::HashMap;

use bytes::Bytes;
use holdfast_client::{Cluster, Error};
use holdfast_proto::data::ObjectRef;
use holdfast_proto::id::{BucketId, GroupId, Slot, WriteId, slot_of};
use holdfast_proto::meta::{OwnerOfWrite, Query, WriteOwner, answer, query};
use parking_lot::Mutex;

/// Remembers how many slots buckets have, which never changes; a bucket that is gone has none.
#[derive(Debug, Default)]
pub(super) struct Owners {
    slots: Mutex<HashMap<Bytes, Option<u16>>>,
}

impl Owners {
    /// Forgets: buckets may have come or gone.
    pub(super) fn forget(&self) {
        self.slots.lock().clear();
    }

    /// The slot of an object; `None` when its bucket is gone.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub(super) async fn slot(&self, cluster: &Cluster, object: &ObjectRef) -> Result<Option<Slot>, Error> {
        let known = self.slots.lock().get(&object.bucket).copied();
        let slots = match known {
            Some(slots) => slots,
            None => {
                let slots = cluster.bucket_slots(object.bucket.clone()).await?;
                self.slots.lock().insert(object.bucket.clone(), slots);
                slots
            }
        };
        Ok(slots.map(|slots| slot_of(&object.key, slots)))
    }

    /// The owner of a write, linearizably, and the partition that says so; `None` when the bucket is gone.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Internal`].
    pub(super) async fn of(
        &self,
        cluster: &Cluster,
        write: WriteId,
        object: &ObjectRef,
    ) -> Result<Option<(GroupId, WriteOwner)>, Error> {
        let Some(slot) = self.slot(cluster, object).await? else { return Ok(None) };
        let bucket = BucketId::from_wire(&object.bucket);
        let bucket = bucket.map_err(|error| Error::Internal { detail: error.to_string() })?;
        let group = cluster.map().partition_of_slot(bucket, slot)?;
        let of =
            OwnerOfWrite { bucket: object.bucket.clone(), slot: slot.get().into(), write: write.to_wire() };
        let answer = cluster.query(group, Query { of: Some(query::Of::OwnerOfWrite(of)) }).await?;
        match answer.ok {
            Some(answer::Ok::Owner(owner)) => Ok(Some((group, owner))),
            _ => Err(Error::Internal { detail: format!("no owner was told: {}", answer.detail) }),
        }
    }
}
