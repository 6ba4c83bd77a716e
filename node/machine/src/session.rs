//! One command being applied: its time, what the group knows about itself, and the deduplication of requests.
//!
//! Time: every command gets `max(last + 1, stamp)`, so the order of the log is the order of the HLC. The stamp is the
//! leader's; this crate reads no clock.
//!
//! Deduplication: commits of bodies are remembered by their write (`wrt`), other mutations by (HLC of the first attempt,
//! request id) in `req` rows, which are pruned here once a second of HLC. A first attempt older than REQUEST_AGE_MS_MAX is
//! refused, so everything that is accepted is still remembered.
//!
//! What found nothing to do and what was refused are remembered too: a copy of the same command can be in the log again,
//! behind commands that made its target exist or its condition true, and must not undo what was acknowledged between.
//! The price is a `req` row, some 70 bytes for a quarter of an hour, for each delete of a key that is not there and for
//! each refused mutation.

use holdfast_proto::hlc::Hlc;
use holdfast_proto::id::{BucketId, GroupId, RequestId, ZoneId};
use holdfast_proto::limits::{DEDUP_WINDOW_MS, REQUEST_AGE_MS_MAX};
use holdfast_proto::meta::{
    Command, EventSeverity, GroupState, Outcome, RaiseFeatureLevel, Refusal, Remembered, WriteKey,
    WriteOwner, write_owner,
};

use crate::Halt;
use crate::key;
use crate::kv::{Kv, KvRead};
use crate::row::{self, Step, Stop, refuse};
use crate::wire;

/// How often old `req` rows are looked for, milliseconds of HLC.
const PRUNE_EVERY_MS: u64 = 1_000;
/// `req` rows pruned in one apply, at most.
const PRUNE_ROWS_MAX: usize = 512;

/// The row of [`GroupState`].
pub(crate) const STATE_KEY: &[u8] = b"sys|state";

/// A command at its instant.
#[derive(Debug)]
pub(crate) struct Session<'k, K> {
    pub(crate) kv: &'k mut K,
    pub(crate) state: GroupState,
    pub(crate) hlc: Hlc,
    pub(crate) zone: ZoneId,
}

/// What the group knows about itself; a group that applied nothing knows nothing.
pub(crate) fn state(kv: &impl KvRead) -> Result<GroupState, Halt> {
    Ok(row::read(kv, STATE_KEY)?.unwrap_or_default())
}

/// Whether a refusal is the answer to its request for good. The others ask the sender to refresh and come again with the
/// same request, or say of the command itself that it will never do.
fn is_final(refusal: Refusal) -> bool {
    !matches!(
        refusal,
        Refusal::StaleBucket | Refusal::NoSuchBucket | Refusal::RequestTooOld | Refusal::Malformed
    )
}

impl<'k, K: Kv> Session<'k, K> {
    /// Advances the group's time to this command.
    pub(crate) fn open(kv: &'k mut K, group: GroupId, command: &Command) -> Result<Self, Halt> {
        let mut state = state(kv)?;
        let hlc = Hlc::tick(Hlc::from_u64(state.hlc), Hlc::from_u64(command.stamp));
        state.hlc = hlc.get();
        if state.feature_level == 0 {
            // The same whatever version applies it: only a command raises it.
            state.feature_level = crate::FEATURE_LEVEL_FIRST;
        }
        Ok(Self { kv, state, hlc, zone: group.zone() })
    }

    /// The map shows the level, so it is another one then.
    pub(crate) fn raise_feature_level(&mut self, op: &RaiseFeatureLevel) -> Outcome {
        if op.level > self.state.feature_level {
            self.state.feature_level = op.level;
            if self.state.map_generation > 0 {
                self.state.map_generation += 1;
                let text = format!("the zone is at feature level {}", op.level);
                let why = "every node knows it";
                self.tell(EventSeverity::EventInfo, "FEATURE_LEVEL_RAISED", "zone".to_owned(), text, why);
            }
        }
        Outcome::default()
    }

    /// Prunes and writes the group's state back: the last step of every command, refused ones included.
    pub(crate) fn close(mut self) -> Result<(), Halt> {
        self.prune()?;
        row::write(self.kv, STATE_KEY.to_vec(), &self.state);
        Ok(())
    }

    /// Refuses a first attempt that may already have been forgotten, or that comes from a clock so far ahead that its
    /// row would be.
    pub(crate) fn check_age(&self, command: &Command) -> Step<()> {
        let first = Hlc::from_u64(command.first_attempt_hlc);
        if first < self.hlc.minus_ms(REQUEST_AGE_MS_MAX) {
            return refuse(Refusal::RequestTooOld, format!("first attempted at {first}, now {}", self.hlc));
        }
        if first.minus_ms(DEDUP_WINDOW_MS - REQUEST_AGE_MS_MAX) > self.hlc {
            return refuse(
                Refusal::Malformed,
                format!("first attempted at {first}, which is ahead of {}", self.hlc),
            );
        }
        Ok(())
    }

    /// Runs `mutate` unless this request was already answered, and remembers what it answered, refusals included. A
    /// command without a request id is not remembered; it must be harmless to repeat.
    pub(crate) fn once(
        &mut self,
        command: &Command,
        mutate: impl FnOnce(&mut Self) -> Step<Outcome>,
    ) -> Step<Outcome> {
        if command.request.is_empty() {
            return mutate(self);
        }
        let request: RequestId = wire::id(&command.request)?;
        let key = key::request(Hlc::from_u64(command.first_attempt_hlc), request);
        if let Some(remembered) = row::read::<Remembered>(self.kv, &key)? {
            return Ok(remembered.outcome.unwrap_or_default());
        }
        self.check_age(command)?;
        let outcome = match mutate(self) {
            Ok(outcome) => outcome,
            Err(Stop::Refused(refusal, detail)) if is_final(refusal) => row::refused_outcome(refusal, detail),
            Err(stop) => return Err(stop),
        };
        row::write(self.kv, key, &Remembered { outcome: Some(outcome.clone()), ..Remembered::default() });
        Ok(outcome)
    }

    /// Keeps the fence of a write that is gone until no repeat of its commit can be accepted any more.
    pub(crate) fn forget_later(&mut self, write: WriteKey) -> Step<()> {
        let key = key::request(self.hlc, wire::id(&write.write)?);
        row::write(self.kv, key, &Remembered { forget: Some(write), ..Remembered::default() });
        Ok(())
    }

    /// Keeps the mark of a dropped bucket until no late pusher of its row can be accepted any more.
    pub(crate) fn forget_bucket_later(&mut self, bucket: BucketId) {
        // A bucket id is as random as a request id.
        let key = key::request(self.hlc, RequestId::from_bytes(*bucket.as_bytes()));
        let row = Remembered { forget_bucket: bucket.to_wire(), ..Remembered::default() };
        row::write(self.kv, key, &row);
    }

    fn prune(&mut self) -> Result<(), Halt> {
        let floor = self.hlc.minus_ms(DEDUP_WINDOW_MS);
        let pruned = Hlc::from_u64(self.state.pruned);
        if floor.ms() < pruned.ms() + PRUNE_EVERY_MS {
            return Ok(());
        }
        let rows: Vec<_> = self
            .kv
            // From where the last pruning ended: what was removed before is not scanned again.
            .scan(&key::request_floor(pruned), &key::request_floor(floor))
            .take(PRUNE_ROWS_MAX)
            .collect::<Result<_, _>>()?;
        let all = rows.len() < PRUNE_ROWS_MAX;
        let mut last = floor;
        for (key, value) in rows {
            let bytes = key.get(key::REQ.len()..key::REQ.len() + 8).and_then(|raw| raw.try_into().ok());
            last = bytes.map(Hlc::from_be_bytes).ok_or_else(|| row::corrupt(&key, "no HLC"))?;
            let remembered: Remembered = row::decode(&key, value)?;
            self.kv.delete(&key);
            if let Some(write) = remembered.forget {
                self.forget(&key, &write)?;
            }
            if !remembered.forget_bucket.is_empty() {
                self.forget_bucket(&remembered.forget_bucket)?;
            }
        }
        self.state.pruned = if all { floor.get() } else { last.get() };
        Ok(())
    }

    fn forget(&mut self, because: &[u8], write: &WriteKey) -> Result<(), Halt> {
        let key = wire::write_row(key::WRT, write)
            .ok_or_else(|| row::corrupt(because, "names a write that is none"))?;
        let owner = row::read::<WriteOwner>(self.kv, &key)?.and_then(|owner| owner.owner);
        if matches!(owner, Some(write_owner::Owner::Fenced(true))) {
            self.kv.delete(&key);
        }
        Ok(())
    }
}
