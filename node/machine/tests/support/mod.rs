//! A group in memory, driven command by command, with every rule checked after each.

#![allow(dead_code, reason = "each test uses its part")]

pub(crate) mod model;

use std::collections::BTreeMap;

use bytes::Bytes;
use holdfast_machine::kv::{KvRead, Overlay};
use holdfast_machine::{apply, check, query};
use holdfast_proto::hlc::Hlc;
use holdfast_proto::id::{GroupId, ZoneId};
use holdfast_proto::meta::{
    Answer, Body, Bucket, BucketState, Command, Digest, Extent, GetDigest, Outcome, Part, PutBucketRow,
    PutObject, Query, Refusal, Version, Versioning, answer, command::Op, query::Of,
};

pub(crate) const ZONE: ZoneId = ZoneId::new(1);
pub(crate) const PARTITION: GroupId = GroupId::partition(ZONE, 0);
pub(crate) const START_MS: u64 = 1_790_000_000_000;

/// The rows of a group, its clock, and numbers for ids.
#[derive(Clone)]
pub(crate) struct Machine {
    pub(crate) group: GroupId,
    pub(crate) rows: BTreeMap<Vec<u8>, Bytes>,
    pub(crate) now_ms: u64,
    pub(crate) next: u64,
}

/// A 16-byte id of a kind, from a number.
pub(crate) fn id(kind: u8, number: u64) -> Bytes {
    let mut id = [kind; 16];
    id[8..].copy_from_slice(&number.to_be_bytes());
    Bytes::copy_from_slice(&id)
}

/// What a refused command leaves behind: its instant, what is pruned by the way, and its answer for a late copy of it.
/// That is with the fence of the write where it was the commit of a body, and with the request where it is one of those
/// that are remembered so, unless the refusal asks to come again or is about the command alone.
fn may_write(command: &Command, refusal: Refusal, key: &[u8], put: bool) -> bool {
    let of = |families: &[&[u8]]| families.iter().any(|family| key.starts_with(family));
    // A mark of several drops only loses one when it is pruned.
    let pruned = of(&[b"drp|"]) || (!put && of(&[b"req|", b"wrt|"]));
    if key == b"sys|state" || pruned {
        return true;
    }
    let fence = |write: &Bytes| put && of(&[b"req|", b"wrt|"]) && key.ends_with(write);
    match &command.op {
        // It frees a bounded number of uploads, then asks to be repeated.
        Some(Op::DropBucketRow(_)) => true,
        Some(Op::PutObject(op)) => {
            fence(&op.version.as_ref().and_then(|version| version.body.as_ref()).unwrap().write)
        }
        Some(Op::PutPart(op)) => fence(&op.row.as_ref().and_then(|row| row.body.as_ref()).unwrap().write),
        _ if is_once(command) && is_final(refusal) => put && key == request_row(command),
        _ => false,
    }
}

/// Whether a command is remembered by its request.
pub(crate) fn is_once(command: &Command) -> bool {
    matches!(
        command.op,
        Some(
            Op::DeleteObject(_)
                | Op::CreateUpload(_)
                | Op::CompleteUpload(_)
                | Op::AbortUpload(_)
                | Op::CreateAccount(_)
                | Op::CreateBucket(_)
                | Op::SetBucketState(_)
                | Op::SetBucketConfig(_)
                | Op::DropBucket(_)
                | Op::PutNode(_)
                | Op::RemoveTarget(_)
                | Op::PutPlacement(_)
        )
    )
}

/// Whether a refusal is remembered.
pub(crate) fn is_final(refusal: Refusal) -> bool {
    use Refusal::{Malformed, NoSuchBucket, RequestTooOld, StaleBucket};
    !matches!(refusal, StaleBucket | NoSuchBucket | RequestTooOld | Malformed)
}

/// The key under which a command's answer is remembered.
pub(crate) fn request_row(command: &Command) -> Vec<u8> {
    [b"req|", &command.first_attempt_hlc.to_be_bytes()[..], &command.request].concat()
}

impl Machine {
    pub(crate) fn new(group: GroupId) -> Self {
        Self { group, rows: BTreeMap::new(), now_ms: START_MS, next: 1 }
    }

    pub(crate) fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    pub(crate) fn command(&mut self, op: Op) -> Command {
        Command {
            request: id(0xee, self.number()),
            first_attempt_hlc: Hlc::from_ms(self.now_ms).get(),
            zone: ZONE.get().into(),
            op: Some(op),
            ..Command::default()
        }
    }

    /// Applies a command at the clock's time and checks every rule.
    pub(crate) fn apply(&mut self, command: &Command) -> Outcome {
        let outcome = self.apply_unchecked(command);
        let broken = check::check(&self.rows, self.group).unwrap();
        assert_eq!(broken, Vec::<String>::new(), "after {command:?}");
        outcome
    }

    pub(crate) fn apply_unchecked(&mut self, command: &Command) -> Outcome {
        let command = Command { stamp: Hlc::from_ms(self.now_ms).get(), ..command.clone() };
        let mut overlay = Overlay::new(&self.rows);
        let outcome = apply(&mut overlay, self.group, &command).unwrap();
        let writes = overlay.into_writes();
        if outcome.refusal() != Refusal::None {
            for (key, value) in &writes {
                let allowed = may_write(&command, outcome.refusal(), key, value.is_some());
                assert!(allowed, "a refused command wrote {}", key.escape_ascii());
            }
        }
        for (key, value) in writes {
            match value {
                Some(value) => drop(self.rows.insert(key, value)),
                None => drop(self.rows.remove(&key)),
            }
        }
        outcome
    }

    /// A new request.
    pub(crate) fn run(&mut self, op: Op) -> Outcome {
        let command = self.command(op);
        self.apply(&command)
    }

    /// A new request that must succeed.
    pub(crate) fn done(&mut self, op: Op) -> Outcome {
        let outcome = self.run(op);
        assert_eq!(outcome.refusal(), Refusal::None, "{}", outcome.detail);
        outcome
    }

    pub(crate) fn refusal(&mut self, op: Op) -> Refusal {
        self.run(op).refusal()
    }

    pub(crate) fn ask(&self, of: Of) -> Answer {
        query(&self.rows, self.group, &Query { of: Some(of) }).unwrap()
    }

    pub(crate) fn answer(&self, of: Of) -> answer::Ok {
        let answer = self.ask(of);
        assert_eq!(answer.refusal(), Refusal::None, "{}", answer.detail);
        answer.ok.unwrap()
    }

    pub(crate) fn digest(&self) -> Digest {
        match self.answer(Of::GetDigest(GetDigest {})) {
            answer::Ok::Digest(digest) => digest,
            other => panic!("{other:?}"),
        }
    }

    /// The same group rebuilt from a scan of its rows, as a snapshot does.
    pub(crate) fn reloaded(&self) -> Self {
        let rows = self.rows.scan(b"", b"\xff").map(Result::unwrap).map(|(key, value)| (key.to_vec(), value));
        Self { rows: rows.collect(), ..self.clone() }
    }
}

pub(crate) fn bucket(slots: u32, generation: u64, versioning: Versioning) -> Bucket {
    Bucket {
        id: id(0xb0, 0),
        name: "photos".into(),
        owner: id(0xac, 0),
        state: BucketState::BucketActive.into(),
        generation,
        slots,
        versioning: versioning.into(),
        created_ms: START_MS,
        ..Bucket::default()
    }
}

pub(crate) fn put_bucket(bucket: Bucket) -> Op {
    Op::PutBucketRow(PutBucketRow { bucket: Some(bucket) })
}

pub(crate) fn bucket_id() -> Bytes {
    id(0xb0, 0)
}

/// A body of `size` bytes: inline when small, as gateways make them.
pub(crate) fn body(write: u64, size: u64) -> Body {
    let write = id(0xd0, write);
    if size <= 2048 {
        return Body { write, length: size, inline: Some(vec![7; size as usize].into()), extents: vec![] };
    }
    let extent = Extent { write: write.clone(), pg: 1, stripes: 1, length: size, ..Extent::default() };
    Body { write, length: size, inline: None, extents: vec![extent] }
}

pub(crate) fn etag(write: u64) -> String {
    format!("{write:032x}")
}

pub(crate) fn put(now_ms: u64, write: u64, key: &[u8], size: u64) -> PutObject {
    PutObject {
        bucket: bucket_id(),
        key: Bytes::copy_from_slice(key),
        version: Some(Version {
            size,
            etag: etag(write),
            body: Some(body(write, size)),
            begin_hlc: Hlc::from_ms(now_ms).get(),
            owner: id(0xac, 0),
            ..Version::default()
        }),
        conditions: None,
        missed: vec![],
    }
}

pub(crate) fn part(write: u64, size: u64) -> Part {
    let mut md5 = [0; 16];
    md5[8..].copy_from_slice(&write.to_be_bytes());
    Part { body: Some(body(write, size)), size, md5: Bytes::copy_from_slice(&md5), ..Part::default() }
}
