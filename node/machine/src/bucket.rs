//! Buckets as a partition knows them: a copy of the configuration, and the counters of the slots that live here.
//!
//! A copy is only ever replaced by a newer generation, so pushers may repeat themselves in any order. Deleting: the copy
//! first says DELETING and refuses writes, then the slots are counted, then the copy goes or is put back.
//!
//! A copy that goes leaves the mark of its generation: late pushers of that and of older ones are refused. Newer ones are
//! taken, for a deleter may be late too, and drop a copy here while another has put the bucket back in the realm.

use holdfast_proto::id::{BucketId, Slot};
use holdfast_proto::meta::{
    Bucket, BucketState, Command, Counters, DropBucketRow, DroppedBucket, Outcome, PutBucketRow, Refusal,
    outcome,
};

use crate::Halt;
use crate::key;
use crate::kv::{Kv, KvRead};
use crate::row::{self, Step, refuse};
use crate::session::Session;
use crate::wire;

/// Parts and uploads freed by one DropBucketRow, at most.
const DROP_PARTS_MAX: usize = 10_000;

/// The copy of a bucket, or NO_SUCH_BUCKET.
pub(crate) fn find(kv: &impl KvRead, id: BucketId) -> Step<Bucket> {
    match row::read::<Bucket>(kv, &key::of_bucket(key::BKT, id))? {
        Some(bucket) => Ok(bucket),
        None => refuse(Refusal::NoSuchBucket, format!("bucket {id} is not here")),
    }
}

/// Refuses a request that knows a newer configuration than this copy. Zero asks for no check.
pub(crate) fn check_generation(bucket: &Bucket, known: u64) -> Step<()> {
    if known > bucket.generation {
        let detail = format!("the request knows generation {known}, this copy is {}", bucket.generation);
        return refuse(Refusal::StaleBucket, detail);
    }
    Ok(())
}

/// Refuses writes while the bucket's emptiness is checked. A copy may be written before its realm row turned active: the
/// realm decides who is told of the bucket.
pub(crate) fn check_writable(bucket: &Bucket) -> Step<()> {
    match bucket.state() {
        BucketState::BucketDeleting => refuse(Refusal::BucketBusy, "the bucket is being deleted"),
        BucketState::BucketActive | BucketState::BucketCreating | BucketState::Unspecified => Ok(()),
    }
}

/// What a bucket holds in this group.
pub(crate) fn count(kv: &impl KvRead, id: BucketId) -> Result<Counters, Halt> {
    let mut sum = Counters::default();
    for (_, slot) in row::read_prefix::<Counters>(kv, &key::of_bucket(key::CNT, id))? {
        sum.objects += slot.objects;
        sum.versions += slot.versions;
        sum.markers += slot.markers;
        sum.bytes += slot.bytes;
        sum.uploads += slot.uploads;
        sum.part_bytes += slot.part_bytes;
    }
    Ok(sum)
}

impl<K: Kv> Session<'_, K> {
    pub(crate) fn put_bucket_row(&mut self, command: &Command, op: &PutBucketRow) -> Step<Outcome> {
        let Some(bucket) = &op.bucket else { return wire::malformed("no bucket") };
        let id: BucketId = wire::id(&bucket.id)?;
        wire::slots(bucket)?;
        // What is older than this may come after the bucket was dropped and forgotten.
        if !command.request.is_empty() {
            self.check_age(command)?;
        }
        if let Some(dropped) = self.dropped(id)?
            && bucket.generation <= dropped.generation
        {
            let detail = format!("bucket {id} was dropped at generation {}", dropped.generation);
            return refuse(Refusal::NoSuchBucket, detail);
        }
        let key = key::of_bucket(key::BKT, id);
        if let Some(here) = row::read::<Bucket>(self.kv, &key)? {
            let states = (here.state(), bucket.state());
            let same = bucket.generation == here.generation;
            if same && states == (BucketState::BucketActive, BucketState::BucketCreating) {
                // A pusher of the same generation that is late.
                return Ok(generation(here.generation));
            }
            let activates = same && states == (BucketState::BucketCreating, BucketState::BucketActive);
            let differs = same && *bucket != here && !activates;
            if bucket.generation < here.generation || differs || bucket.slots != here.slots {
                let detail = format!("generation {} is here, {} came", here.generation, bucket.generation);
                return refuse(Refusal::StaleBucket, detail);
            }
        }
        row::write(self.kv, key, bucket);
        Ok(generation(bucket.generation))
    }

    pub(crate) fn drop_bucket_row(&mut self, op: &DropBucketRow) -> Step<Outcome> {
        let id: BucketId = wire::id(&op.bucket)?;
        let key = key::of_bucket(key::BKT, id);
        let Some(bucket) = row::read::<Bucket>(self.kv, &key)? else {
            // It was dropped before, perhaps at an older generation whose mark would let a pusher of this one in.
            self.mark_dropped(id, op.generation)?;
            return Ok(generation(op.generation));
        };
        if bucket.generation > op.generation {
            return refuse(Refusal::StaleBucket, format!("generation {} is here", bucket.generation));
        }
        if bucket.state() != BucketState::BucketDeleting {
            return refuse(Refusal::BucketBusy, "the bucket is not being deleted");
        }
        let held = count(self.kv, id)?;
        if held.versions + held.markers > 0 {
            return refuse(Refusal::BucketNotEmpty, format!("{} versions", held.versions + held.markers));
        }
        if !self.drop_uploads(id, DROP_PARTS_MAX)? {
            return refuse(Refusal::BucketBusy, "more uploads are left to free");
        }
        for (counters, _) in row::read_prefix::<Counters>(self.kv, &key::of_bucket(key::CNT, id))? {
            self.kv.delete(&counters);
        }
        self.kv.delete(&key);
        self.mark_dropped(id, op.generation)?;
        Ok(generation(op.generation))
    }

    fn dropped(&self, id: BucketId) -> Result<Option<DroppedBucket>, Halt> {
        row::read(self.kv, &key::of_bucket(key::DRP, id))
    }

    /// Leaves the mark of a dropped bucket, unless there is one of this generation.
    fn mark_dropped(&mut self, id: BucketId, generation: u64) -> Result<(), Halt> {
        let before = self.dropped(id)?;
        if before.as_ref().is_some_and(|mark| mark.generation >= generation) {
            return Ok(());
        }
        let earlier = before.map_or(0, |mark| mark.earlier + 1);
        row::write(self.kv, key::of_bucket(key::DRP, id), &DroppedBucket { generation, earlier });
        self.forget_bucket_later(id);
        Ok(())
    }

    /// One drop of the bucket can be forgotten: the mark stays for those after it.
    pub(crate) fn forget_bucket(&mut self, id: &[u8]) -> Result<(), Halt> {
        let key = key::of_id(key::DRP, id);
        match row::read::<DroppedBucket>(self.kv, &key)? {
            Some(mark) if mark.earlier > 0 => {
                row::write(self.kv, key, &DroppedBucket { earlier: mark.earlier - 1, ..mark });
            }
            _ => self.kv.delete(&key),
        }
        Ok(())
    }

    pub(crate) fn counters(&self, bucket: BucketId, slot: Slot) -> Result<Counters, Halt> {
        Ok(row::read(self.kv, &key::of_slot(key::CNT, bucket, slot))?.unwrap_or_default())
    }

    pub(crate) fn put_counters(&mut self, bucket: BucketId, slot: Slot, counters: &Counters) {
        row::write(self.kv, key::of_slot(key::CNT, bucket, slot), counters);
    }
}

/// An outcome that says which generation holds.
pub(crate) fn generation(generation: u64) -> Outcome {
    Outcome { ok: Some(outcome::Ok::Generation(generation)), ..Outcome::default() }
}
