//! What completing an upload checks and what it makes.

#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use bytes::Bytes;
use holdfast_proto::hlc::Hlc;
use holdfast_proto::meta::{
    Checksum, ChecksumAlgorithm, ChecksumType, Command, Committed, CompletePart, CompleteUpload,
    CreateUpload, DeleteObject, DueGarbage, GetObject, ObjectFound, Outcome, PutPart, Refusal, Upload,
    Versioning, answer, command::Op, outcome, query::Of,
};
use support::{Machine, PARTITION, bucket, bucket_id, etag, part, put_bucket};

const MIB5: u64 = 5 << 20;

struct World {
    machine: Machine,
    upload: Bytes,
}

impl World {
    fn new(upload: Upload) -> Self {
        let mut machine = Machine::new(PARTITION);
        machine.done(put_bucket(bucket(2, 1, Versioning::Off)));
        let create = CreateUpload { bucket: bucket_id(), key: "k".into(), random: 7, upload: Some(upload) };
        let Some(outcome::Ok::Upload(upload)) = machine.done(Op::CreateUpload(create)).ok else { panic!() };
        Self { machine, upload }
    }

    fn put(&mut self, number: u32, write: u64, size: u64, checksums: Vec<Checksum>) -> Refusal {
        let mut row = part(write, size);
        row.checksums = checksums;
        let op = PutPart {
            bucket: bucket_id(),
            key: "k".into(),
            upload: self.upload.clone(),
            part: number,
            row: Some(row),
            begin_hlc: Hlc::from_ms(self.machine.now_ms).get(),
            missed: vec![],
        };
        self.machine.refusal(Op::PutPart(op))
    }

    fn complete_op(&self, parts: &[(u32, u64)]) -> CompleteUpload {
        CompleteUpload {
            bucket: bucket_id(),
            key: "k".into(),
            upload: self.upload.clone(),
            parts: parts
                .iter()
                .map(|(number, write)| CompletePart { part: *number, etag: etag(*write), checksums: vec![] })
                .collect(),
            ..CompleteUpload::default()
        }
    }

    fn complete(&mut self, parts: &[(u32, u64)]) -> Outcome {
        let op = self.complete_op(parts);
        self.machine.run(Op::CompleteUpload(op))
    }

    fn get(&self, of: GetObject) -> ObjectFound {
        let of = GetObject { bucket: bucket_id(), key: "k".into(), ..of };
        match self.machine.answer(Of::GetObject(of)) {
            answer::Ok::Object(found) => found,
            other => panic!("{other:?}"),
        }
    }

    fn garbage(&self) -> usize {
        let of = DueGarbage { due_before: u64::MAX, limit: 1000, after: Bytes::new() };
        match self.machine.answer(Of::DueGarbage(of)) {
            answer::Ok::Garbage(page) => page.keys.len(),
            other => panic!("{other:?}"),
        }
    }
}

fn committed(outcome: Outcome) -> Committed {
    match outcome.ok {
        Some(outcome::Ok::Committed(committed)) => committed,
        other => panic!("{other:?}: {}", outcome.detail),
    }
}

fn crc(algorithm: ChecksumAlgorithm, value: &[u8]) -> Checksum {
    Checksum { algorithm: algorithm.into(), value: Bytes::copy_from_slice(value), ..Checksum::default() }
}

#[test]
fn the_etag_is_the_md5_of_md5s_and_the_count() {
    let mut world = World::new(Upload::default());
    world.put(2, 20, MIB5, vec![]);
    world.put(9, 90, 1, vec![]);
    let made = committed(world.complete(&[(2, 20), (9, 90)]));
    // md5 over two MD5s of fifteen zero bytes and 0x14, 0x5a.
    assert_eq!((made.etag.as_str(), made.size), ("a8b941af71d8981c168be45efb81064a-2", MIB5 + 1));
    let found = world.get(GetObject::default());
    let placed: Vec<_> = found.parts.iter().map(|part| (part.part, part.ordinal, part.offset)).collect();
    assert_eq!(placed, [(2, 1, 0), (9, 2, MIB5)]);
    let upload_ms = Hlc::from_be_bytes(world.upload[..8].try_into().unwrap()).ms();
    assert_eq!(made.modified_ms, upload_ms, "dated by the start of the upload");
}

#[test]
fn each_fault_has_its_refusal_and_changes_nothing() {
    let mut world = World::new(Upload::default());
    world.put(1, 10, MIB5 - 1, vec![]);
    world.put(2, 20, MIB5, vec![]);
    world.put(3, 30, 5, vec![]);
    assert_eq!(world.complete(&[]).refusal(), Refusal::Malformed);
    assert_eq!(world.complete(&[(2, 20), (1, 10)]).refusal(), Refusal::InvalidPartOrder);
    assert_eq!(world.complete(&[(2, 20), (2, 20)]).refusal(), Refusal::InvalidPartOrder);
    assert_eq!(world.complete(&[(2, 20), (4, 40)]).refusal(), Refusal::InvalidPart);
    assert_eq!(world.complete(&[(2, 20), (70_000, 40)]).refusal(), Refusal::InvalidPart);
    assert_eq!(world.complete(&[(2, 21)]).refusal(), Refusal::InvalidPart);
    assert_eq!(world.complete(&[(1, 10), (2, 20)]).refusal(), Refusal::PartTooSmall);
    let sized = CompleteUpload { object_size: Some(4), ..world.complete_op(&[(2, 20), (3, 30)]) };
    assert_eq!(world.machine.refusal(Op::CompleteUpload(sized)), Refusal::SizeMismatch);
    let other_key = CompleteUpload { key: "j".into(), ..world.complete_op(&[(2, 20)]) };
    assert_eq!(world.machine.refusal(Op::CompleteUpload(other_key)), Refusal::NoSuchUpload);
    let parts: Vec<(u32, u64)> = (1..=10_001).map(|number| (number, 1)).collect();
    assert_eq!(world.complete(&parts).refusal(), Refusal::TooMany);
    assert_eq!(world.garbage(), 0);
    let sized = CompleteUpload { object_size: Some(MIB5 + 5), ..world.complete_op(&[(2, 20), (3, 30)]) };
    world.machine.done(Op::CompleteUpload(sized));
    assert_eq!(world.garbage(), 1, "the part that was not listed");
    assert_eq!(world.put(1, 11, 5, vec![]), Refusal::NoSuchUpload, "a part that is late");
}

#[test]
fn part_numbers_and_sizes_have_bounds() {
    let mut world = World::new(Upload::default());
    assert_eq!(world.put(0, 1, 5, vec![]), Refusal::Malformed);
    assert_eq!(world.put(10_001, 1, 5, vec![]), Refusal::Malformed);
    assert_eq!(world.put(1, 1, (5 << 30) + 1, vec![]), Refusal::ObjectTooLarge);
}

#[test]
fn a_repeated_completion_answers_the_same() {
    let mut world = World::new(Upload::default());
    world.put(1, 10, 3000, vec![]);
    let op = Op::CompleteUpload(world.complete_op(&[(1, 10)]));
    let command: Command = world.machine.command(op.clone());
    let first = world.machine.apply(&command);
    assert_eq!(world.machine.apply(&command), first);
    assert_eq!(world.machine.refusal(op), Refusal::NoSuchUpload, "another request");
}

/// CRC32 of "a", of "b", of "ab"; the composite of the first two.
#[test]
fn full_object_and_composite_checksums() {
    let (a, b, whole) = ([0xe8, 0xb7, 0xbe, 0x43], [0x71, 0xbe, 0xef, 0xf9], [0x9e, 0x83, 0x48, 0x6d]);
    let make = |kind: ChecksumType| {
        let mut world = World::new(Upload {
            checksum_algorithm: ChecksumAlgorithm::Crc32.into(),
            checksum_type: kind.into(),
            ..Upload::default()
        });
        world.put(1, 10, MIB5, vec![crc(ChecksumAlgorithm::Crc32, &a)]);
        world.put(2, 20, 1, vec![crc(ChecksumAlgorithm::Crc32, &b)]);
        world
    };
    let mut composite = make(ChecksumType::Composite);
    let made = committed(composite.complete(&[(1, 10), (2, 20)]));
    assert_eq!((made.checksums[0].r#type(), made.checksums[0].parts), (ChecksumType::Composite, 2));

    let mut full = make(ChecksumType::FullObject);
    let mut claim = crc(ChecksumAlgorithm::Crc32, &a);
    claim.set_type(ChecksumType::FullObject);
    let claimed = |claim: &Checksum, world: &World| {
        let op = CompleteUpload { checksum: Some(claim.clone()), ..world.complete_op(&[(1, 10), (2, 20)]) };
        Op::CompleteUpload(op)
    };
    let lie = claimed(&claim, &full);
    assert_eq!(full.machine.refusal(lie), Refusal::ChecksumMismatch);
    // How a CRC is combined depends on the length of what follows alone: this is the CRC of "ab".
    claim.value = Bytes::copy_from_slice(&whole);
    let truth = claimed(&claim, &full);
    assert_eq!(committed(full.machine.done(truth)).checksums, [claim]);
}

#[test]
fn checksums_repeated_by_the_client_are_compared() {
    let mut world =
        World::new(Upload { checksum_algorithm: ChecksumAlgorithm::Crc32.into(), ..Upload::default() });
    world.put(1, 10, 3, vec![crc(ChecksumAlgorithm::Crc32, &[1, 2, 3, 4])]);
    world.put(2, 20, 3, vec![]);
    let mut op = world.complete_op(&[(1, 10)]);
    op.parts[0].checksums = vec![crc(ChecksumAlgorithm::Crc32, &[1, 2, 3, 5])];
    assert_eq!(world.machine.refusal(Op::CompleteUpload(op.clone())), Refusal::InvalidPart);
    assert_eq!(
        world.complete(&[(2, 20)]).refusal(),
        Refusal::InvalidPart,
        "the upload wants CRC32 of every part"
    );
    op.parts[0].checksums = vec![crc(ChecksumAlgorithm::Crc32, &[1, 2, 3, 4])];
    world.machine.done(Op::CompleteUpload(op));
}

#[test]
fn ranges_and_part_numbers_bring_only_their_parts() {
    let mut world = World::new(Upload::default());
    for number in 1..=4 {
        world.put(number * 3, u64::from(number), MIB5, vec![]);
    }
    world.complete(&[(3, 1), (6, 2), (9, 3), (12, 4)]);
    let parts = |of| world.get(of).parts.iter().map(|part| part.ordinal).collect::<Vec<_>>();
    let range =
        |start, end| GetObject { range_start: Some(start), range_end: Some(end), ..GetObject::default() };
    assert_eq!(parts(range(0, 1)), [1]);
    assert_eq!(parts(range(MIB5 - 1, MIB5 + 1)), [1, 2]);
    assert_eq!(parts(range(2 * MIB5, 3 * MIB5)), [3]);
    assert_eq!(parts(GetObject { part: 2, ..GetObject::default() }), [2]);
    assert!(parts(GetObject { part: 5, ..GetObject::default() }).is_empty());
    assert!(parts(GetObject { no_parts: true, ..GetObject::default() }).is_empty());
}

#[test]
fn deleting_a_multipart_object_frees_every_part() {
    let mut world = World::new(Upload::default());
    for number in 1..=20 {
        world.put(number, u64::from(number), MIB5, vec![]);
    }
    let parts: Vec<_> = (1..=20).map(|number| (number, u64::from(number))).collect();
    committed(world.complete(&parts));
    let delete = DeleteObject { bucket: bucket_id(), key: "k".into(), ..DeleteObject::default() };
    world.machine.done(Op::DeleteObject(delete));
    assert_eq!(world.garbage(), 20);
}
