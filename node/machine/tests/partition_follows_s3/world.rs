//! A leader, a replica and the model, driven step by step.

use std::collections::BTreeMap;

use bytes::Bytes;
use holdfast_proto::hlc::Hlc;
use holdfast_proto::limits::REQUEST_AGE_MS_MAX;
use holdfast_proto::meta::{
    AbortUpload, Command, CompletePart, CompleteUpload, CreateUpload, DeleteObject, DueGarbage, FenceWrite,
    FreeGarbage, Outcome, Preconditions, PutPart, Refusal, RenewWrite, Upload, Versioning, answer,
    command::Op, outcome, query::Of,
};

use crate::steps::{Cond, SLOTS, Step, keys};
use crate::support::model::{Condition, Gone, Model, ModelUpload, Which};
use crate::support::{
    Machine, PARTITION, bucket, bucket_id, etag, id, is_final, is_once, part, put, put_bucket,
};

/// Whether a late copy of a command is to find its answer. Others may be repeated as often as one likes.
fn is_remembered(command: &Command) -> bool {
    is_once(command) || matches!(command.op, Some(Op::PutObject(_) | Op::PutPart(_)))
}

pub(crate) struct World {
    pub(crate) leader: Machine,
    pub(crate) replica: Machine,
    pub(crate) model: Model,
    generation: u64,
    /// Commands with what they answered: those that did something, found nothing to do, or were refused.
    history: Vec<(Command, Outcome)>,
    uploads: Vec<(Bytes, Vec<u8>)>,
}

impl World {
    pub(crate) fn new() -> Self {
        let mut leader = Machine::new(PARTITION);
        let replica = Machine::new(PARTITION);
        let command = leader.command(put_bucket(bucket(SLOTS, 1, Versioning::Off)));
        let mut world = Self {
            leader,
            replica,
            model: Model::default(),
            generation: 1,
            history: vec![],
            uploads: vec![],
        };
        world.apply(&command);
        world
    }

    fn apply(&mut self, command: &Command) -> Outcome {
        self.replica.now_ms = self.leader.now_ms;
        let outcome = self.leader.apply(command);
        assert_eq!(self.replica.apply(command), outcome, "replicas answer alike");
        outcome
    }

    fn run(&mut self, op: Op) -> Outcome {
        self.leader.now_ms += 10;
        let command = self.leader.command(op);
        let outcome = self.apply(&command);
        if is_remembered(&command) {
            self.history.push((command, outcome.clone()));
        }
        outcome
    }

    fn condition(&self, key: &[u8], cond: &Cond) -> (Condition, Preconditions) {
        let current = self.model.current(key).map_or("nothing".to_owned(), |stored| stored.etag.clone());
        let condition = match cond {
            Cond::None => Condition::None,
            Cond::NoneMatchAny => Condition::IfNoneMatch(vec!["*".into()]),
            Cond::MatchAny => Condition::IfMatch(vec!["*".into()]),
            Cond::MatchCurrent => Condition::IfMatch(vec!["other".into(), current]),
            Cond::MatchOther => Condition::IfMatch(vec!["other".into()]),
            Cond::Size(size) => Condition::IfSize(*size),
        };
        let mut wire = Preconditions::default();
        match condition.clone() {
            Condition::None => {}
            Condition::IfMatch(etags) => wire.if_match = etags,
            Condition::IfNoneMatch(etags) => wire.if_none_match = etags,
            Condition::IfSize(size) => wire.if_match_size = Some(size),
        }
        (condition, wire)
    }

    pub(crate) fn step(&mut self, step: &Step) {
        match step {
            Step::Put { key, big, cond } => self.put(&keys()[*key], *big, cond),
            Step::Delete { key, which, cond } => self.delete(&keys()[*key], *which, cond),
            Step::CreateUpload { key } => {
                let key = keys()[*key].clone();
                let random = self.leader.number();
                let op = CreateUpload {
                    bucket: bucket_id(),
                    key: key.clone().into(),
                    random,
                    upload: Some(Upload::default()),
                };
                let outcome = self.run(Op::CreateUpload(op));
                let Some(outcome::Ok::Upload(upload)) = outcome.ok.clone() else { panic!("{outcome:?}") };
                self.model
                    .uploads
                    .insert(upload.to_vec(), ModelUpload { key: key.clone(), parts: BTreeMap::new() });
                self.uploads.push((upload, key));
            }
            Step::PutPart { upload, part, big } => self.put_part(*upload, *part, *big),
            Step::Complete { upload, parts, lie, cond } => self.complete(*upload, parts, *lie, cond),
            Step::Abort { upload } => {
                let Some((upload, key)) = self.pick(*upload) else { return };
                let op = AbortUpload {
                    bucket: bucket_id(),
                    key: key.into(),
                    upload: upload.clone(),
                    ..Default::default()
                };
                let refusal = self.run(Op::AbortUpload(op)).refusal();
                let known = self.model.uploads.remove(upload.as_ref()).is_some();
                assert_eq!(refusal, if known { Refusal::None } else { Refusal::NoSuchUpload });
            }
            Step::Versioning { enabled } => {
                let versioning = if *enabled { Versioning::Enabled } else { Versioning::Suspended };
                if self.model.versioning == i32::from(Versioning::Off) && !enabled {
                    return;
                }
                self.generation += 1;
                let outcome = self.run(put_bucket(bucket(SLOTS, self.generation, versioning)));
                assert_eq!(outcome.refusal(), Refusal::None);
                self.model.versioning = versioning.into();
                let outcome = self.run(put_bucket(bucket(SLOTS, self.generation - 1, Versioning::Off)));
                assert_eq!(outcome.refusal(), Refusal::StaleBucket, "an older generation");
            }
            Step::Replay { which } => self.replay(*which),
            Step::Collect => self.collect(),
            Step::Fence => {
                let write = self.leader.number();
                let key = &keys()[0];
                let slot = holdfast_proto::id::slot_of(key, SLOTS as u16).get().into();
                let op = FenceWrite { bucket: bucket_id(), slot, write: id(0xd0, write), begin_hlc: 0 };
                assert_eq!(self.run(Op::FenceWrite(op)).refusal(), Refusal::None);
                let op = put(self.leader.now_ms, write, key, 5000);
                assert_eq!(self.run(Op::PutObject(op)).refusal(), Refusal::WriteFenced);
            }
            Step::Renew => self.renew(),
            Step::Advance { ms } => self.leader.now_ms += ms,
            Step::Reload => self.replica = self.leader.reloaded(),
        }
    }

    fn pick(&self, which: usize) -> Option<(Bytes, Vec<u8>)> {
        // Mostly the newer ones: they may still be in progress.
        let recent = self.uploads.len().saturating_sub(3);
        let choice = &self.uploads[recent..];
        (!choice.is_empty()).then(|| choice[which % choice.len()].clone())
    }

    fn put(&mut self, key: &[u8], big: bool, cond: &Cond) {
        let write = self.leader.number();
        let size = if big { 5000 } else { 10 };
        let (condition, wire) = self.condition(key, cond);
        let mut op = put(self.leader.now_ms, write, key, size);
        op.conditions = Some(wire);
        if big && write.is_multiple_of(2) {
            op.missed = vec![Default::default()];
        }
        let expected = self.model.may_put(key, &condition);
        let outcome = self.run(Op::PutObject(op));
        assert_eq!(outcome.refusal(), expected.err().unwrap_or(Refusal::None), "{}", outcome.detail);
        if let Some(outcome::Ok::Committed(committed)) = &outcome.ok {
            assert_eq!((&committed.etag, committed.size), (&etag(write), size));
            self.model.commit(key, &committed.version, size, etag(write));
        }
    }

    fn delete(&mut self, key: &[u8], which: Option<usize>, cond: &Cond) {
        let versions = self.model.keys.get(key).cloned().unwrap_or_default();
        let asked = match which {
            None => Which::Current,
            Some(0) => Which::Null,
            Some(nth) => Which::Id(versions.get(nth - 1).map_or(vec![1; 10], |stored| stored.id.clone())),
        };
        let (condition, wire) = self.condition(key, cond);
        let op = DeleteObject {
            bucket: bucket_id(),
            key: Bytes::copy_from_slice(key),
            version: if let Which::Id(id) = &asked { id.clone().into() } else { Bytes::new() },
            version_null: asked == Which::Null,
            conditions: Some(wire),
            owner: id(0xac, 0),
        };
        let expected = self.model.delete(key, &asked, &condition);
        let outcome = self.run(Op::DeleteObject(op));
        let gone = match expected {
            Err(refusal) => return assert_eq!(outcome.refusal(), refusal, "{}", outcome.detail),
            Ok(gone) => gone,
        };
        let Some(outcome::Ok::Deleted(deleted)) = outcome.ok.clone() else { panic!("{outcome:?}") };
        match gone {
            Gone::Nothing => {}
            Gone::Marker { null } => {
                assert!(deleted.marker && deleted.null == null);
                self.model.mark(key, &deleted.version);
            }
            Gone::Removed(stored) if asked == Which::Current => {
                assert!(!deleted.marker && deleted.version.is_empty() && !stored.marker);
            }
            Gone::Removed(stored) => {
                let got = (deleted.marker, deleted.null, deleted.version.to_vec());
                assert_eq!(got, (stored.marker, stored.null, stored.id));
            }
        }
    }

    fn put_part(&mut self, upload: usize, number: u32, big: bool) {
        let Some((upload, key)) = self.pick(upload) else { return };
        let write = self.leader.number();
        let size = if big { 5 << 20 } else { 100 };
        let op = PutPart {
            bucket: bucket_id(),
            key: key.into(),
            upload: upload.clone(),
            part: number,
            row: Some(part(write, size)),
            begin_hlc: Hlc::from_ms(self.leader.now_ms).get(),
            missed: vec![],
        };
        let outcome = self.run(Op::PutPart(op));
        match self.model.uploads.get_mut(upload.as_ref()) {
            Some(found) => {
                assert_eq!(outcome.refusal(), Refusal::None);
                found.parts.insert(number, (size, etag(write)));
            }
            None => assert_eq!(outcome.refusal(), Refusal::NoSuchUpload),
        }
    }

    fn complete(&mut self, upload: usize, parts: &[u32], lie: bool, cond: &Cond) {
        let Some((upload, key)) = self.pick(upload) else { return };
        let known =
            self.model.uploads.get(upload.as_ref()).map(|found| found.parts.clone()).unwrap_or_default();
        let mut listed: Vec<(u32, String)> = parts
            .iter()
            .map(|number| (*number, known.get(number).map_or("none".into(), |(_, md5)| md5.clone())))
            .collect();
        if let Some(last) = listed.last_mut().filter(|_| lie) {
            last.1 = "0".repeat(32);
        }
        let (condition, wire) = self.condition(&key, cond);
        let expected = self.model.may_complete(&upload, &key, &listed, &condition);
        let op = CompleteUpload {
            bucket: bucket_id(),
            key: key.clone().into(),
            upload: upload.clone(),
            parts: listed
                .iter()
                .map(|(part, etag)| CompletePart { part: *part, etag: etag.clone(), ..Default::default() })
                .collect(),
            conditions: Some(wire),
            ..CompleteUpload::default()
        };
        let outcome = self.run(Op::CompleteUpload(op));
        let size = match expected {
            Err(refusal) => return assert_eq!(outcome.refusal(), refusal, "{}", outcome.detail),
            Ok(size) => size,
        };
        let Some(outcome::Ok::Committed(committed)) = outcome.ok.clone() else { panic!("{outcome:?}") };
        assert_eq!(committed.size, size);
        assert!(committed.etag.ends_with(&format!("-{}", listed.len())));
        self.model.commit(&key, &committed.version, size, committed.etag);
        self.model.uploads.remove(upload.as_ref());
    }

    /// A late copy of a command, mostly of a recent one: it answers the same or is too old, and in no case does it change
    /// anything, which the comparison with the model sees.
    fn replay(&mut self, which: usize) {
        let recent = if which.is_multiple_of(3) { 0 } else { self.history.len().saturating_sub(5) };
        let choice = &self.history[recent..];
        let Some((command, outcome)) = choice.get(which / 3 % choice.len().max(1)).cloned() else { return };
        let again = self.apply(&command);
        let age = self.leader.now_ms - Hlc::from_u64(command.first_attempt_hlc).ms();
        let too_old = matches!(again.refusal(), Refusal::RequestTooOld | Refusal::WriteTooOld);
        if age >= REQUEST_AGE_MS_MAX && too_old {
            return;
        }
        if is_final(outcome.refusal()) {
            // The words may tell the time.
            assert_eq!((again.refusal(), again.ok), (outcome.refusal(), outcome.ok), "at age {age}");
        } else {
            assert_ne!(again.refusal(), Refusal::None, "what was no good is no better now");
        }
    }

    fn collect(&mut self) {
        let of = DueGarbage { due_before: u64::MAX, limit: 3, after: Bytes::new() };
        let answer::Ok::Garbage(page) = self.leader.answer(Of::DueGarbage(of)) else { panic!() };
        assert!(
            page.rows.iter().zip(&page.keys).all(|(row, key)| row.body.as_ref().unwrap().write == key.write)
        );
        let outcome = self.run(Op::FreeGarbage(FreeGarbage { rows: page.keys }));
        assert_eq!(outcome.refusal(), Refusal::None);
    }

    /// A write may take long when its writer says so.
    fn renew(&mut self) {
        let write = self.leader.number();
        let key = &keys()[1];
        let slot = holdfast_proto::id::slot_of(key, SLOTS as u16).get().into();
        let op = put(self.leader.now_ms, write, key, 5000);
        for _ in 0..2 {
            self.leader.now_ms += 8 * 3_600_000;
            let op = RenewWrite { bucket: bucket_id(), slot, write: id(0xd0, write) };
            assert_eq!(self.run(Op::RenewWrite(op)).refusal(), Refusal::None);
            let op = FenceWrite { bucket: bucket_id(), slot, write: id(0xd0, write), begin_hlc: 0 };
            assert_eq!(self.run(Op::FenceWrite(op)).refusal(), Refusal::AlreadyExists);
        }
        let unrenewed = put(self.leader.now_ms - 16 * 3_600_000, write + 1_000_000, key, 5000);
        assert_eq!(self.run(Op::PutObject(unrenewed)).refusal(), Refusal::WriteTooOld);
        let outcome = self.run(Op::PutObject(op));
        let Some(outcome::Ok::Committed(committed)) = &outcome.ok else { panic!("{outcome:?}") };
        self.model.commit(key, &committed.version, 5000, etag(write));
    }
}
