//! Who owns a stored body (`wrt`), which bodies wait to be freed (`gc`), and which shards are still missing (`mis`).
//!
//! Every write has at most one owner: a version, a part, the queue of garbage, or a fence that says "nobody, ever". A body
//! that loses its version or part goes to the queue in the same apply. A body inline in its row has nothing to free: its
//! write is fenced at once. A fence left by a body that is gone keeps the commit's answer for repeats and is forgotten
//! with them.

use holdfast_proto::hlc::Hlc;
use holdfast_proto::id::{BucketId, Slot, WriteId};
use holdfast_proto::limits::{DEDUP_WINDOW_MS, WRITE_AGE_MS_MAX};
use holdfast_proto::meta::{
    Body, ClearMissed, FenceWrite, FreeGarbage, Garbage, GarbageKey, Missed, MissedShard, Outcome, Refusal,
    RenewWrite, WriteKey, WriteOwner, write_owner::Owner,
};

use crate::Halt;
use crate::key;
use crate::kv::Kv;
use crate::row::{self, Step, Stop, refuse};
use crate::session::Session;
use crate::wire;

/// A slot of a bucket: where a write's rows live.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) bucket: BucketId,
    pub(crate) slot: Slot,
}

/// What is known of a write when its commit arrives.
#[derive(Debug)]
pub(crate) enum Claim {
    /// Nobody owns it: it may be committed.
    Free,
    /// It was committed, and what became of it had this answer.
    Answered(Outcome),
    /// It is owned; the owner's row has the answer.
    Owned(WriteOwner),
}

impl<K: Kv> Session<'_, K> {
    fn owner(&self, place: Place, write: WriteId) -> Result<Option<WriteOwner>, Halt> {
        row::read(self.kv, &key::of_write(key::WRT, place.bucket, place.slot, write))
    }

    /// Whether a commit of `write`, begun at `begin`, may proceed. Refuses fenced and expired writes.
    pub(crate) fn claim(&self, place: Place, write: WriteId, begin: Hlc) -> Step<Claim> {
        let oldest = self.hlc.minus_ms(WRITE_AGE_MS_MAX);
        let Some(row) = self.owner(place, write)? else {
            if begin < oldest {
                return refuse(Refusal::WriteTooOld, format!("begun at {begin}, now {}", self.hlc));
            }
            return Ok(Claim::Free);
        };
        match &row.owner {
            Some(Owner::Key(_) | Owner::Part(_)) => Ok(Claim::Owned(row)),
            Some(Owner::Fenced(_) | Owner::Garbage(_)) => match row.outcome {
                Some(outcome) => Ok(Claim::Answered(outcome)),
                None => refuse(Refusal::WriteFenced, "the write was given up"),
            },
            Some(Owner::Renewed(at)) => {
                let at = Hlc::from_u64(*at);
                if begin.max(at) < oldest {
                    return refuse(Refusal::WriteTooOld, format!("renewed at {at}, now {}", self.hlc));
                }
                Ok(Claim::Free)
            }
            None => {
                let key = key::of_write(key::WRT, place.bucket, place.slot, write);
                Err(row::corrupt(&key, "no owner").into())
            }
        }
    }

    /// A commit was refused, so its sender deletes the body: fences the write, or a copy of the same command that comes
    /// late could find its conditions met and commit a body that is gone. A repeat gets the same refusal. Not after
    /// STALE_BUCKET, which asks the sender to refresh and come again.
    pub(crate) fn give_up(&mut self, place: Place, write: WriteId, stop: Stop) -> Step<Outcome> {
        match stop {
            Stop::Refused(refusal, detail) if refusal != Refusal::StaleBucket => {
                let outcome = row::refused_outcome(refusal, detail);
                self.retire(place, write, Some(outcome.clone()))?;
                Ok(outcome)
            }
            stop => Err(stop),
        }
    }

    /// Records the owner of a committed body and the shards it still misses.
    pub(crate) fn own(
        &mut self,
        place: Place,
        write: WriteId,
        owner: &WriteOwner,
        body: &Body,
        missed: &[MissedShard],
    ) {
        row::write(self.kv, key::of_write(key::WRT, place.bucket, place.slot, write), owner);
        if !missed.is_empty() {
            let row = Missed { shards: missed.to_vec(), body: Some(without_inline(body)) };
            row::write(self.kv, key::of_write(key::MIS, place.bucket, place.slot, write), &row);
            self.state.missed += 1;
        }
    }

    /// A body lost its owner: its shards are queued for collection. `outcome` is what its commit answered.
    pub(crate) fn release(&mut self, place: Place, body: &Body, outcome: Outcome) -> Step<()> {
        let write: WriteId = wire::id(&body.write)?;
        if body.extents.is_empty() {
            return self.retire(place, write, Some(outcome));
        }
        let owner =
            WriteOwner { owner: Some(Owner::Garbage(true)), outcome: Some(outcome), ..WriteOwner::default() };
        row::write(self.kv, key::of_write(key::WRT, place.bucket, place.slot, write), &owner);
        let garbage = Garbage { body: Some(without_inline(body)) };
        row::write(self.kv, key::garbage(place.bucket, place.slot, self.hlc, write), &garbage);
        Ok(())
    }

    /// Nothing is stored of a write any more, but a repeat of its commit may still come.
    fn retire(&mut self, place: Place, write: WriteId, outcome: Option<Outcome>) -> Step<()> {
        let owner = WriteOwner { owner: Some(Owner::Fenced(true)), outcome, ..WriteOwner::default() };
        row::write(self.kv, key::of_write(key::WRT, place.bucket, place.slot, write), &owner);
        self.drop_missed(place, write)?;
        self.forget_later(WriteKey {
            bucket: place.bucket.to_wire(),
            slot: place.slot.get().into(),
            write: write.to_wire(),
        })
    }

    fn drop_missed(&mut self, place: Place, write: WriteId) -> Result<(), Halt> {
        let key = key::of_write(key::MIS, place.bucket, place.slot, write);
        if self.state.missed > 0 && self.kv.get(&key)?.is_some() {
            self.kv.delete(&key);
            self.state.missed -= 1;
        }
        Ok(())
    }

    pub(crate) fn fence_write(&mut self, op: &FenceWrite) -> Step<Outcome> {
        let place = Place { bucket: wire::id(&op.bucket)?, slot: wire::slot(op.slot)? };
        let write: WriteId = wire::id(&op.write)?;
        match self.owner(place, write)?.and_then(|row| row.owner) {
            Some(Owner::Key(_) | Owner::Part(_) | Owner::Garbage(_)) => {
                return refuse(Refusal::AlreadyExists, "the write is owned");
            }
            Some(Owner::Renewed(at)) if Hlc::from_u64(at) >= self.hlc.minus_ms(WRITE_AGE_MS_MAX) => {
                return refuse(Refusal::AlreadyExists, "its writer is still at it");
            }
            Some(Owner::Fenced(_)) => return Ok(Outcome::default()),
            Some(Owner::Renewed(_)) | None => {}
        }
        if op.begin_hlc != 0 && Hlc::from_u64(op.begin_hlc) < self.hlc.minus_ms(WRITE_AGE_MS_MAX) {
            // Without the fence its commit is refused as too old.
            self.retire(place, write, None)?;
            return Ok(Outcome::default());
        }
        let owner = WriteOwner { owner: Some(Owner::Fenced(true)), ..WriteOwner::default() };
        row::write(self.kv, key::of_write(key::WRT, place.bucket, place.slot, write), &owner);
        Ok(Outcome::default())
    }

    pub(crate) fn renew_write(&mut self, op: &RenewWrite) -> Step<Outcome> {
        let place = Place { bucket: wire::id(&op.bucket)?, slot: wire::slot(op.slot)? };
        let write: WriteId = wire::id(&op.write)?;
        match self.owner(place, write)?.and_then(|row| row.owner) {
            Some(Owner::Fenced(_)) => return refuse(Refusal::WriteFenced, "the write was given up"),
            Some(Owner::Key(_) | Owner::Part(_) | Owner::Garbage(_)) => return Ok(Outcome::default()),
            Some(Owner::Renewed(_)) | None => {}
        }
        let owner = WriteOwner { owner: Some(Owner::Renewed(self.hlc.get())), ..WriteOwner::default() };
        row::write(self.kv, key::of_write(key::WRT, place.bucket, place.slot, write), &owner);
        Ok(Outcome::default())
    }

    /// The collector deleted the shards of these.
    pub(crate) fn free_garbage(&mut self, op: &FreeGarbage) -> Step<Outcome> {
        let rows: Vec<(Place, Hlc, WriteId)> = op.rows.iter().map(garbage_key).collect::<Step<_>>()?;
        for (place, due, write) in rows {
            let key = key::garbage(place.bucket, place.slot, due, write);
            if self.kv.get(&key)?.is_none() {
                continue;
            }
            let owner = self.owner(place, write)?;
            if !matches!(owner.as_ref().and_then(|row| row.owner.as_ref()), Some(Owner::Garbage(true))) {
                return Err(row::corrupt(&key, "queued for collection, but its write is not garbage").into());
            }
            self.kv.delete(&key);
            if due < self.hlc.minus_ms(DEDUP_WINDOW_MS) {
                // Its commit was first attempted before that: no repeat is accepted any more.
                self.kv.delete(&key::of_write(key::WRT, place.bucket, place.slot, write));
                self.drop_missed(place, write)?;
            } else {
                self.retire(place, write, owner.and_then(|row| row.outcome))?;
            }
        }
        Ok(Outcome::default())
    }

    /// Repair wrote these shards.
    pub(crate) fn clear_missed(&mut self, op: &ClearMissed) -> Step<Outcome> {
        let key = key::of_write(key::MIS, wire::id(&op.bucket)?, wire::slot(op.slot)?, wire::id(&op.write)?);
        let Some(mut row) = row::read::<Missed>(self.kv, &key)? else { return Ok(Outcome::default()) };
        row.shards.retain(|shard| !op.shards.contains(shard));
        if row.shards.is_empty() {
            self.kv.delete(&key);
            self.state.missed = self.state.missed.saturating_sub(1);
        } else {
            row::write(self.kv, key, &row);
        }
        Ok(Outcome::default())
    }
}

fn garbage_key(row: &GarbageKey) -> Step<(Place, Hlc, WriteId)> {
    let place = Place { bucket: wire::id(&row.bucket)?, slot: wire::slot(row.slot)? };
    Ok((place, Hlc::from_u64(row.due), wire::id(&row.write)?))
}

fn without_inline(body: &Body) -> Body {
    Body { inline: None, ..body.clone() }
}
