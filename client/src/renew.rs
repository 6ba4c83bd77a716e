//! A write that takes long tells its partition so, and is not taken for one whose writer died.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use holdfast_proto::id::{BucketId, WriteId, slot_of};
use holdfast_proto::meta::{Command, Refusal, RenewWrite, command};
use parking_lot::Mutex;

use crate::cluster::{Cluster, Inner};
use crate::error::Error;
use crate::source::WriteIntent;

/// Writes under way.
#[derive(Debug, Default)]
pub(crate) struct Renewals(Mutex<HashMap<WriteId, UnderWay>>);

#[derive(Debug, Clone)]
struct UnderWay {
    bucket: BucketId,
    key: Bytes,
    /// It was there when writes were last renewed.
    is_long: bool,
}

/// A write is under way until this is dropped.
pub(crate) struct Writing {
    inner: Arc<Inner>,
    write: WriteId,
}

impl Writing {
    pub(crate) fn begin(inner: &Arc<Inner>, intent: &WriteIntent, write: WriteId) -> Self {
        let under_way = UnderWay { bucket: intent.bucket, key: intent.key.clone(), is_long: false };
        inner.renewals.0.lock().insert(write, under_way);
        Self { inner: inner.clone(), write }
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        self.inner.renewals.0.lock().remove(&self.write);
    }
}

/// Renews long writes until the client ends.
pub(crate) async fn run(cluster: Cluster) {
    loop {
        tokio::select! {
            () = cluster.inner.cancel.cancelled() => return,
            () = tokio::time::sleep(cluster.inner.config.renew_every / 2) => {}
        }
        let mut long = Vec::new();
        for (write, under_way) in cluster.inner.renewals.0.lock().iter_mut() {
            if std::mem::replace(&mut under_way.is_long, true) {
                long.push((*write, under_way.clone()));
            }
        }
        for (write, under_way) in long {
            // Whoever commits a write that was given up is told so then.
            if let Err(error) = renew(&cluster, &under_way, write).await {
                tracing::warn!(%write, %error, "a long write was not renewed");
            }
        }
    }
}

async fn renew(cluster: &Cluster, under_way: &UnderWay, write: WriteId) -> Result<(), Error> {
    let UnderWay { bucket, key, .. } = under_way;
    let Some(slots) = cluster.bucket_slots(bucket.to_wire()).await? else { return Ok(()) };
    let slot = slot_of(key, slots);
    let group = cluster.map().partition_of_slot(*bucket, slot)?;
    let renew = RenewWrite { bucket: bucket.to_wire(), slot: slot.get().into(), write: write.to_wire() };
    let command = Command { op: Some(command::Op::RenewWrite(renew)), ..Command::default() };
    match cluster.propose(group, vec![command]).await?.into_iter().next() {
        Some(outcome) if outcome.refusal() == Refusal::None => Ok(()),
        Some(outcome) => Err(Error::refused(outcome.refusal(), outcome.detail)),
        None => Err(Error::internal("no outcome of a renewal")),
    }
}
