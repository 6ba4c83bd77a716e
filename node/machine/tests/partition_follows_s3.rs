//! Random interleavings of all commands of a partition, with replays and a replica that starts from a snapshot, against a
//! plain model of S3.

mod support;

use std::collections::BTreeMap;

use bytes::Bytes;
use holdfast_proto::hlc::Hlc;
use holdfast_proto::limits::REQUEST_AGE_MS_MAX;
use holdfast_proto::meta::{
    AbortUpload, Command, CompletePart, CompleteUpload, CountBucket, CreateUpload, DeleteObject, DueGarbage,
    FenceWrite, FreeGarbage, GetObject, ListObjects, ListParts, ListUploads, ListVersions, Outcome,
    Preconditions, PutPart, Refusal, RenewWrite, Upload, Versioning, answer, command::Op, outcome, query::Of,
};
use proptest::prelude::*;
use support::model::{Condition, Gone, Model, ModelUpload, Which};
use support::{Machine, PARTITION, body, bucket, bucket_id, etag, id, part, put, put_bucket};

const SLOTS: u32 = 3;

fn keys() -> Vec<Vec<u8>> {
    let mut long = "é/".repeat(341).into_bytes();
    long.push(b'x');
    let plain: [&[u8]; 15] = [
        b"a",
        b"a/",
        b"a/b",
        b"a/b/c",
        b"a//",
        b"b",
        b"b/1",
        b"b/2",
        b"\0",
        b"a\0",
        b"a\0/x",
        b"\x01",
        b"..",
        b"\x7f",
        b"\xc3\xa9",
    ];
    plain.iter().map(|key| key.to_vec()).chain([long]).collect()
}

#[derive(Debug, Clone)]
enum Cond {
    None,
    NoneMatchAny,
    MatchAny,
    MatchCurrent,
    MatchOther,
    Size(u64),
}

#[derive(Debug, Clone)]
enum Step {
    Put { key: usize, big: bool, cond: Cond },
    Delete { key: usize, which: Option<usize>, cond: Cond },
    CreateUpload { key: usize },
    PutPart { upload: usize, part: u32, big: bool },
    Complete { upload: usize, parts: Vec<u32>, lie: bool, cond: Cond },
    Abort { upload: usize },
    Versioning { enabled: bool },
    Replay { which: usize },
    Collect,
    Fence,
    Renew,
    Advance { ms: u64 },
    Reload,
}

fn cond() -> impl Strategy<Value = Cond> {
    prop_oneof![
        6 => Just(Cond::None),
        1 => Just(Cond::NoneMatchAny),
        1 => Just(Cond::MatchAny),
        1 => Just(Cond::MatchCurrent),
        1 => Just(Cond::MatchOther),
        1 => prop_oneof![Just(10u64), Just(5000)].prop_map(Cond::Size),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let key = || 0..keys().len();
    // Few keys get most of the writes, so that they are overwritten.
    let hot = || prop_oneof![3 => 0..4usize, 1 => key()];
    prop_oneof![
        8 => (hot(), any::<bool>(), cond()).prop_map(|(key, big, cond)| Step::Put { key, big, cond }),
        5 => (hot(), prop::option::of(0..4usize), cond())
            .prop_map(|(key, which, cond)| Step::Delete { key, which, cond }),
        3 => hot().prop_map(|key| Step::CreateUpload { key }),
        6 => (any::<usize>(), 1..5u32, any::<bool>())
            .prop_map(|(upload, part, big)| Step::PutPart { upload, part, big }),
        4 => (any::<usize>(), prop::collection::vec(1..5u32, 0..4), prop::bool::weighted(0.1), cond())
            .prop_map(|(upload, parts, lie, cond)| Step::Complete { upload, parts, lie, cond }),
        1 => any::<usize>().prop_map(|upload| Step::Abort { upload }),
        1 => any::<bool>().prop_map(|enabled| Step::Versioning { enabled }),
        4 => any::<usize>().prop_map(|which| Step::Replay { which }),
        2 => Just(Step::Collect),
        1 => Just(Step::Fence),
        1 => Just(Step::Renew),
        3 => prop_oneof![Just(1u64), Just(60_000), Just(11 * 60_000), Just(16 * 60_000), Just(13 * 3_600_000)]
            .prop_map(|ms| Step::Advance { ms }),
        1 => Just(Step::Reload),
    ]
}

/// What a listing asks for in a step.
#[derive(Debug, Clone)]
struct Probe {
    prefix: Vec<u8>,
    delimiter: Vec<u8>,
    after: Vec<u8>,
    limit: u32,
}

fn probe() -> impl Strategy<Value = Probe> {
    let some =
        |texts: &[&[u8]]| prop::sample::select(texts.iter().map(|text| text.to_vec()).collect::<Vec<_>>());
    let prefix = some(&[b"", b"a", b"a/", b"a\0", b"b/", b"zz", b"\xc3"]);
    let delimiter = some(&[b"", b"/", b"/", b"b/", b"\0"]);
    let after = some(&[b"", b"", b"a", b"a/", b"a/a", b"a/b", b"b/1", b"\0", b"\xff"]);
    (prefix, delimiter, after, 1..5u32).prop_map(|(prefix, delimiter, after, limit)| Probe {
        prefix,
        delimiter,
        after,
        limit,
    })
}

struct World {
    leader: Machine,
    replica: Machine,
    model: Model,
    generation: u64,
    /// Commands that did something, with what they answered.
    history: Vec<(Command, Outcome)>,
    uploads: Vec<(Bytes, Vec<u8>)>,
}

impl World {
    fn new() -> Self {
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

    fn run(&mut self, op: Op) -> (Command, Outcome) {
        self.leader.now_ms += 10;
        let command = self.leader.command(op);
        let outcome = self.apply(&command);
        (command, outcome)
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

    fn step(&mut self, step: &Step) {
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
                let (command, outcome) = self.run(Op::CreateUpload(op));
                let Some(outcome::Ok::Upload(upload)) = outcome.ok.clone() else { panic!("{outcome:?}") };
                self.model
                    .uploads
                    .insert(upload.to_vec(), ModelUpload { key: key.clone(), parts: BTreeMap::new() });
                self.uploads.push((upload, key));
                self.history.push((command, outcome));
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
                let (command, outcome) = self.run(Op::AbortUpload(op));
                if self.model.uploads.remove(upload.as_ref()).is_some() {
                    assert_eq!(outcome.refusal(), Refusal::None);
                    self.history.push((command, outcome));
                } else {
                    assert_eq!(outcome.refusal(), Refusal::NoSuchUpload);
                }
            }
            Step::Versioning { enabled } => {
                let versioning = if *enabled { Versioning::Enabled } else { Versioning::Suspended };
                if self.model.versioning == i32::from(Versioning::Off) && !enabled {
                    return;
                }
                self.generation += 1;
                let (_, outcome) = self.run(put_bucket(bucket(SLOTS, self.generation, versioning)));
                assert_eq!(outcome.refusal(), Refusal::None);
                self.model.versioning = versioning.into();
                let (_, outcome) = self.run(put_bucket(bucket(SLOTS, self.generation - 1, Versioning::Off)));
                assert_eq!(outcome.refusal(), Refusal::StaleBucket, "an older generation");
            }
            Step::Replay { which } => self.replay(*which),
            Step::Collect => self.collect(),
            Step::Fence => {
                let write = self.leader.number();
                let key = &keys()[0];
                let slot = holdfast_proto::id::slot_of(key, SLOTS as u16).get().into();
                let op = FenceWrite { bucket: bucket_id(), slot, write: id(0xd0, write) };
                assert_eq!(self.run(Op::FenceWrite(op)).1.refusal(), Refusal::None);
                let op = put(self.leader.now_ms, write, key, 5000);
                assert_eq!(self.run(Op::PutObject(op)).1.refusal(), Refusal::WriteFenced);
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
        if big && write % 2 == 0 {
            op.missed = vec![Default::default()];
        }
        let expected = self.model.may_put(key, &condition);
        let (command, outcome) = self.run(Op::PutObject(op));
        assert_eq!(outcome.refusal(), expected.err().unwrap_or(Refusal::None), "{}", outcome.detail);
        if let Some(outcome::Ok::Committed(committed)) = &outcome.ok {
            assert_eq!((&committed.etag, committed.size), (&etag(write), size));
            self.model.commit(key, &committed.version, size, etag(write));
            self.history.push((command, outcome));
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
        let (command, outcome) = self.run(Op::DeleteObject(op));
        let gone = match expected {
            Err(refusal) => return assert_eq!(outcome.refusal(), refusal, "{}", outcome.detail),
            Ok(gone) => gone,
        };
        let Some(outcome::Ok::Deleted(deleted)) = outcome.ok.clone() else { panic!("{outcome:?}") };
        match gone {
            Gone::Nothing => return,
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
        self.history.push((command, outcome));
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
        let (command, outcome) = self.run(Op::PutPart(op));
        match self.model.uploads.get_mut(upload.as_ref()) {
            Some(found) => {
                assert_eq!(outcome.refusal(), Refusal::None);
                found.parts.insert(number, (size, etag(write)));
                self.history.push((command, outcome));
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
        let (command, outcome) = self.run(Op::CompleteUpload(op));
        let size = match expected {
            Err(refusal) => return assert_eq!(outcome.refusal(), refusal, "{}", outcome.detail),
            Ok(size) => size,
        };
        let Some(outcome::Ok::Committed(committed)) = outcome.ok.clone() else { panic!("{outcome:?}") };
        assert_eq!(committed.size, size);
        assert!(committed.etag.ends_with(&format!("-{}", listed.len())));
        self.model.commit(&key, &committed.version, size, committed.etag);
        self.model.uploads.remove(upload.as_ref());
        self.history.push((command, outcome));
    }

    /// A command that was done is applied again: it answers the same and changes nothing, or is too old.
    fn replay(&mut self, which: usize) {
        let Some((command, outcome)) = self.history.get(which % self.history.len().max(1)).cloned() else {
            return;
        };
        let again = self.apply(&command);
        let age = self.leader.now_ms - Hlc::from_u64(command.first_attempt_hlc).ms();
        let too_old = matches!(again.refusal(), Refusal::RequestTooOld | Refusal::WriteTooOld);
        if age < REQUEST_AGE_MS_MAX || !too_old {
            assert_eq!(again, outcome, "at age {age}");
        }
    }

    fn collect(&mut self) {
        let of = DueGarbage { due_before: u64::MAX, limit: 3, after: Bytes::new() };
        let answer::Ok::Garbage(page) = self.leader.answer(Of::DueGarbage(of)) else { panic!() };
        assert!(
            page.rows.iter().zip(&page.keys).all(|(row, key)| row.body.as_ref().unwrap().write == key.write)
        );
        let (_, outcome) = self.run(Op::FreeGarbage(FreeGarbage { rows: page.keys }));
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
            assert_eq!(self.run(Op::RenewWrite(op)).1.refusal(), Refusal::None);
            let op = FenceWrite { bucket: bucket_id(), slot, write: id(0xd0, write) };
            assert_eq!(self.run(Op::FenceWrite(op)).1.refusal(), Refusal::AlreadyExists);
        }
        let unrenewed = put(self.leader.now_ms - 16 * 3_600_000, write + 1_000_000, key, 5000);
        assert_eq!(self.run(Op::PutObject(unrenewed)).1.refusal(), Refusal::WriteTooOld);
        let (command, outcome) = self.run(Op::PutObject(op));
        let Some(outcome::Ok::Committed(committed)) = &outcome.ok else { panic!("{outcome:?}") };
        self.model.commit(key, &committed.version, 5000, etag(write));
        self.history.push((command, outcome));
    }

    fn compare(&self, probe: &Probe) {
        let answer::Ok::Counters(count) =
            self.leader.answer(Of::CountBucket(CountBucket { bucket: bucket_id() }))
        else {
            panic!()
        };
        let got =
            [count.objects, count.versions, count.markers, count.bytes, count.uploads, count.part_bytes];
        assert_eq!(got, self.model.count());
        for key in keys() {
            let of = GetObject { bucket: bucket_id(), key: key.clone().into(), ..GetObject::default() };
            let answer = self.leader.ask(Of::GetObject(of));
            match self.model.current(&key) {
                None => assert_eq!(answer.refusal(), Refusal::NoSuchKey),
                Some(stored) => {
                    let Some(answer::Ok::Object(found)) = answer.ok else { panic!() };
                    assert_eq!(found.version_id.to_vec(), stored.id);
                    assert_eq!(found.version.unwrap().etag, stored.etag);
                    let parts: u64 = found.parts.iter().map(|part| part.row.as_ref().unwrap().size).sum();
                    assert!(found.parts.is_empty() || parts == stored.size);
                }
            }
        }
        self.compare_objects(probe);
        self.compare_versions(probe);
        self.compare_uploads(probe);
    }

    fn compare_objects(&self, probe: &Probe) {
        let visible: Vec<&Vec<u8>> =
            self.model.keys.keys().filter(|key| self.model.current(key).is_some()).collect();
        let (keys, common) =
            Model::roll_up(visible.into_iter(), &probe.prefix, &probe.delimiter, &probe.after);
        let (mut got_keys, mut got_common) = (vec![], vec![]);
        let mut after = Bytes::from(probe.after.clone());
        loop {
            let of = ListObjects {
                bucket: bucket_id(),
                slots: vec![],
                prefix: probe.prefix.clone().into(),
                delimiter: probe.delimiter.clone().into(),
                after: after.clone(),
                limit: probe.limit,
            };
            let answer::Ok::Objects(page) = self.leader.answer(Of::ListObjects(of)) else { panic!() };
            let count = page.keys.len() + page.common_prefixes.len();
            assert!(count == probe.limit as usize || (!page.more && count < probe.limit as usize));
            for listed in &page.keys {
                let row = listed.row.as_ref().unwrap();
                assert_eq!(row.version.to_vec(), self.model.current(&listed.key).unwrap().id);
            }
            got_keys.extend(page.keys.into_iter().map(|listed| listed.key.to_vec()));
            got_common.extend(page.common_prefixes.into_iter().map(|prefix| prefix.to_vec()));
            if !page.more {
                break;
            }
            after = page.last;
        }
        assert_eq!(got_keys, keys, "{probe:?}");
        assert_eq!(got_common, common.into_iter().collect::<Vec<_>>(), "{probe:?}");
    }

    fn compare_versions(&self, probe: &Probe) {
        let (keys, common) = Model::roll_up(self.model.keys.keys(), &probe.prefix, &probe.delimiter, b"");
        let expected: Vec<_> = keys
            .iter()
            .flat_map(|key| {
                let versions = self.model.keys[key].iter().enumerate();
                versions
                    .map(|(at, stored)| (key.clone(), stored.id.clone(), stored.marker, stored.null, at == 0))
            })
            .collect();
        let (mut got, mut got_common) = (vec![], vec![]);
        let mut of = ListVersions {
            bucket: bucket_id(),
            prefix: probe.prefix.clone().into(),
            delimiter: probe.delimiter.clone().into(),
            limit: probe.limit,
            ..ListVersions::default()
        };
        loop {
            let answer::Ok::Versions(page) = self.leader.answer(Of::ListVersions(of.clone())) else {
                panic!()
            };
            let last = page.versions.last().map(|listed| (listed.key.clone(), listed.row.clone().unwrap()));
            let last_common = page.common_prefixes.last().cloned();
            for listed in page.versions {
                let row = listed.row.unwrap();
                got.push((
                    listed.key.to_vec(),
                    row.version.to_vec(),
                    listed.delete_marker,
                    row.null,
                    listed.latest,
                ));
            }
            got_common.extend(page.common_prefixes.into_iter().map(|prefix| prefix.to_vec()));
            if !page.more {
                break;
            }
            match (last, last_common) {
                (Some((key, row)), common) if common.as_ref().is_none_or(|common| *common < key) => {
                    of.key_marker = key;
                    of.version_marker_null = row.null;
                    of.version_marker = if row.null { Bytes::new() } else { row.version };
                }
                (_, Some(common)) => {
                    of.key_marker = common;
                    (of.version_marker, of.version_marker_null) = (Bytes::new(), false);
                }
                (_, None) => panic!("an empty page says there is more"),
            }
        }
        assert_eq!(got, expected, "{probe:?}");
        assert_eq!(got_common, common.into_iter().collect::<Vec<_>>(), "{probe:?}");
    }

    fn compare_uploads(&self, probe: &Probe) {
        let mut expected: Vec<_> =
            self.model.uploads.iter().map(|(id, up)| (up.key.clone(), id.clone())).collect();
        expected.sort();
        let mut got = vec![];
        let mut of = ListUploads { bucket: bucket_id(), limit: probe.limit, ..ListUploads::default() };
        loop {
            let answer::Ok::Uploads(page) = self.leader.answer(Of::ListUploads(of.clone())) else { panic!() };
            if let Some(last) = page.uploads.last() {
                (of.key_marker, of.upload_marker) = (last.key.clone(), last.upload.clone());
            }
            got.extend(page.uploads.into_iter().map(|listed| (listed.key.to_vec(), listed.upload.to_vec())));
            if !page.more {
                break;
            }
        }
        assert_eq!(got, expected);
        for (upload, row) in &self.model.uploads {
            let mut of = ListParts {
                bucket: bucket_id(),
                key: row.key.clone().into(),
                upload: upload.clone().into(),
                after: 0,
                limit: probe.limit,
            };
            let mut parts = vec![];
            loop {
                let answer::Ok::Parts(page) = self.leader.answer(Of::ListParts(of.clone())) else { panic!() };
                of.after = page.parts.last().map_or(0, |last| last.part);
                parts.extend(page.parts.into_iter().map(|listed| (listed.part, listed.row.unwrap().size)));
                if !page.more {
                    break;
                }
            }
            let expected: Vec<_> = row.parts.iter().map(|(number, (size, _))| (*number, *size)).collect();
            assert_eq!(parts, expected);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 4000, ..ProptestConfig::default() })]

    #[test]
    fn any_history_reads_as_s3_would(steps in prop::collection::vec((step(), probe()), 1..60)) {
        let mut world = World::new();
        for (step, probe) in &steps {
            world.step(step);
            world.compare(probe);
        }
        assert_eq!(world.leader.digest(), world.replica.digest());
        assert_eq!(world.leader.rows, world.leader.reloaded().rows);
    }
}

/// The helpers make what gateways make.
#[test]
fn bodies_are_inline_or_stored() {
    assert!(body(1, 10).extents.is_empty() && body(1, 5000).inline.is_none());
}
