//! Every row that the machine writes, byte for byte, for ever (day 1). `golden/*.txt` hold the rows of one history of each
//! kind of group: a line with the key (letters, then hex), a line with the value in hex.
//!
//! Rows once written must stay readable: when a schema version is added, the files of the older one stay and are read.

#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use bytes::Bytes;
use data_encoding::HEXLOWER;
use holdfast_machine::check::check;
use holdfast_proto::hlc::Hlc;
use holdfast_proto::id::{GroupId, NodeId, slot_of};
use holdfast_proto::limits::SLOT_TABLE_LEN;
use holdfast_proto::meta::{
    AccessKey, Account, BeginBackup, Bucket, BucketState, Checksum, ChecksumAlgorithm, ChecksumType,
    CompletePart, CompleteUpload, CreateBucket, CreateUpload, DeleteObject, DropBucketRow, FenceWrite,
    FinishBackup, Group, InitRealm, InitZone, MissedShard, MovingPlace, Node, ObjectHeaders, Pair,
    PlacementGroup, PutBucketRow, PutNode, PutObject, PutPart, PutPlacement, PutTarget, RaiseFeatureLevel,
    RecoverZone, RenewWrite, SetTargetStates, StorageClass, Target, TargetState, TargetStateChange, Upload,
    Versioning, command::Op, outcome,
};
use holdfast_proto::v1::{Codec, Scheme};
use support::{Machine, PARTITION, ZONE, bucket, bucket_id, etag, id, part, put, put_bucket};

const ZONE_GROUP: GroupId = GroupId::zone_group(ZONE);
/// A file's name, its text, and the history that makes its rows.
type Golden = (&'static str, &'static str, fn() -> Machine);

const GOLDEN: [Golden; 6] = [
    ("partition.txt", include_str!("golden/partition.txt"), partition),
    ("realm.txt", include_str!("golden/realm.txt"), realm),
    ("zone.txt", include_str!("golden/zone.txt"), zone),
    ("zone_joined.txt", include_str!("golden/zone_joined.txt"), zone_joined),
    ("zone_level_2.txt", include_str!("golden/zone_level_2.txt"), zone_level_2),
    ("zone_recovered.txt", include_str!("golden/zone_recovered.txt"), zone_recovered),
];

fn headers() -> ObjectHeaders {
    let pair = |name: &str, value: &str| Pair { name: name.into(), value: value.into() };
    ObjectHeaders {
        content_type: "image/jpeg".into(),
        content_encoding: "gzip".into(),
        content_language: "en".into(),
        content_disposition: "inline".into(),
        cache_control: "no-cache".into(),
        expires: "Thu, 01 Jan 2026 00:00:00 GMT".into(),
        website_redirect: "/other".into(),
        storage_class: "STANDARD_IA".into(),
        user: vec![pair("who", "me")],
        tags: vec![pair("t", "v")],
    }
}

fn put_headed(machine: &Machine, write: u64, key: &[u8], size: u64) -> PutObject {
    let mut op = put(machine.now_ms, write, key, size);
    let version = op.version.as_mut().unwrap();
    version.headers = Some(headers());
    version.checksums = vec![Checksum {
        algorithm: ChecksumAlgorithm::Crc64nvme.into(),
        r#type: ChecksumType::FullObject.into(),
        value: Bytes::from_static(b"12345678"),
        parts: 0,
    }];
    op.missed = if size > 2048 { vec![MissedShard { stripe: 2, index: 5 }] } else { vec![] };
    op
}

fn upload(machine: &mut Machine, key: &'static str) -> Bytes {
    let upload = Upload { headers: Some(headers()), owner: id(0xac, 0), ..Upload::default() };
    let op = CreateUpload { bucket: bucket_id(), key: key.into(), random: 9, upload: Some(upload) };
    let Some(outcome::Ok::Upload(upload)) = machine.done(Op::CreateUpload(op)).ok else { panic!() };
    upload
}

fn put_part(machine: &mut Machine, key: &'static str, upload: &Bytes, number: u32, write: u64) {
    let op = PutPart {
        bucket: bucket_id(),
        key: key.into(),
        upload: upload.clone(),
        part: number,
        row: Some(part(write, 5 << 20)),
        begin_hlc: Hlc::from_ms(machine.now_ms).get(),
        missed: vec![],
    };
    machine.done(Op::PutPart(op));
}

fn partition() -> Machine {
    let mut machine = Machine::new(PARTITION);
    machine.done(put_bucket(bucket(2, 1, Versioning::Off)));
    machine.done(Op::PutObject(put_headed(&machine, 1, b"a\0b", 5)));
    machine.done(Op::PutObject(put_headed(&machine, 2, b"stored", 9000)));
    machine.done(Op::PutObject(put(machine.now_ms, 3, b"stored", 10)));
    machine.done(put_bucket(bucket(2, 2, Versioning::Enabled)));
    machine.done(Op::PutObject(put_headed(&machine, 4, b"stored", 9000)));
    let delete =
        DeleteObject { bucket: bucket_id(), key: "a\0b".into(), owner: id(0xac, 0), ..Default::default() };
    machine.done(Op::DeleteObject(delete));
    let whole = upload(&mut machine, "whole");
    put_part(&mut machine, "whole", &whole, 1, 11);
    put_part(&mut machine, "whole", &whole, 2, 12);
    let parts = [(1, 11), (2, 12)].map(|(number, write)| CompletePart {
        part: number,
        etag: etag(write),
        checksums: vec![],
    });
    let complete = CompleteUpload {
        bucket: bucket_id(),
        key: "whole".into(),
        upload: whole,
        parts: parts.to_vec(),
        ..CompleteUpload::default()
    };
    machine.done(Op::CompleteUpload(complete));
    let open = upload(&mut machine, "open");
    put_part(&mut machine, "open", &open, 7, 13);
    let slot = slot_of(b"stored", 2).get().into();
    machine.done(Op::FenceWrite(FenceWrite { bucket: bucket_id(), slot, write: id(0xd0, 90), begin_hlc: 0 }));
    machine.done(Op::RenewWrite(RenewWrite { bucket: bucket_id(), slot, write: id(0xd0, 91) }));
    for (state, generation) in [(BucketState::BucketActive, 1), (BucketState::BucketDeleting, 2)] {
        let other =
            Bucket { id: id(0xb1, 0), state: state.into(), generation, ..bucket(2, 1, Versioning::Off) };
        machine.done(Op::PutBucketRow(PutBucketRow { bucket: Some(other) }));
    }
    machine.done(Op::DropBucketRow(DropBucketRow { bucket: id(0xb1, 0), generation: 2 }));
    machine
}

fn realm() -> Machine {
    let mut machine = Machine::new(GroupId::REALM);
    let root = Account { id: id(0xac, 1), name: "root".into(), ..Account::default() };
    let root_key = AccessKey { id: "ROOT".into(), sealed_secret: "sealed".into(), ..AccessKey::default() };
    let init = InitRealm { realm: id(0xaa, 1), root: Some(root), root_key: Some(root_key) };
    machine.done(Op::InitRealm(init));
    let mut bucket = bucket(8, 0, Versioning::Off);
    bucket.location = "eu-north-1".into();
    machine.done(Op::CreateBucket(CreateBucket { bucket: Some(bucket) }));
    machine
}

fn zone() -> Machine {
    let mut machine = Machine::new(ZONE_GROUP);
    let node = NodeId::in_zone(ZONE, 1).unwrap().get();
    let first_node = Node {
        addr: "10.0.0.1:7000".into(),
        roles: vec!["meta".into(), "data".into()],
        host: "h1".into(),
        rack: "r1".into(),
        incarnation: 1,
        s3_addr: "10.0.0.1:9000".into(),
        admin_addr: "10.0.0.1:7001".into(),
        ..Node::default()
    };
    let group = Group { id: PARTITION.get(), voters: vec![node], learners: vec![], generation: 1 };
    machine.done(Op::InitZone(InitZone {
        realm: id(0xaa, 1),
        zone: 1,
        name: "north".into(),
        partitions: 2,
        slot_table: vec![1; SLOT_TABLE_LEN],
        groups: vec![group],
        first_node: Some(first_node),
        ..InitZone::default()
    }));
    for uuid in [1, 2] {
        let target = Target { node, uuid: id(0x77, uuid), capacity_bytes: 1 << 40, ..Target::default() };
        machine.done(Op::PutTarget(PutTarget { target: Some(target) }));
    }
    let scheme = |parity| Some(Scheme { codec: Codec::Copies.into(), data: 1, parity });
    let class = StorageClass {
        name: "STANDARD".into(),
        scheme: scheme(1),
        small: scheme(1),
        media: "default".into(),
    };
    let pg = PlacementGroup {
        id: 1,
        epoch: 1,
        targets: vec![2, 1],
        class: "STANDARD".into(),
        ..PlacementGroup::default()
    };
    machine.done(Op::PutPlacement(PutPlacement {
        expected_generation: 3,
        classes: vec![class],
        pgs: vec![pg],
    }));
    machine
}

/// What came with feature level 2: events, and places that move.
fn zone_level_2() -> Machine {
    let mut machine = zone();
    machine.done(Op::RaiseFeatureLevel(RaiseFeatureLevel { level: 2 }));
    let change =
        TargetStateChange { target: 1, state: TargetState::TargetDown.into(), why: "it is silent".into() };
    machine.done(Op::SetTargetStates(SetTargetStates { changes: vec![change] }));
    let pg = PlacementGroup {
        id: 1,
        epoch: 2,
        targets: vec![1, 2],
        class: "STANDARD".into(),
        moving: vec![MovingPlace { place: 0, from: vec![2] }, MovingPlace { place: 1, from: vec![1] }],
    };
    machine.done(Op::PutPlacement(PutPlacement { expected_generation: 6, classes: vec![], pgs: vec![pg] }));
    machine
}

/// A zone that was backed up and goes on from older rows.
fn zone_recovered() -> Machine {
    let mut machine = zone();
    machine.done(Op::RaiseFeatureLevel(RaiseFeatureLevel { level: 2 }));
    machine.done(Op::BeginBackup(BeginBackup {}));
    machine.done(Op::FinishBackup(FinishBackup { id: 6 }));
    let node = NodeId::in_zone(ZONE, 1 << 20).unwrap().get();
    let node = Node { id: node, addr: "10.0.0.9:7000".into(), roles: vec!["meta".into()], ..Node::default() };
    machine.done(Op::RecoverZone(RecoverZone { node: Some(node), from: "a backup".into() }));
    machine
}

/// A node that joined: its row has the nonce of that, which rows from before do not have.
fn zone_joined() -> Machine {
    let mut machine = Machine::new(ZONE_GROUP);
    let first_node = Some(Node { addr: "10.0.0.1:7000".into(), ..Node::default() });
    machine.done(Op::InitZone(InitZone {
        realm: id(0xaa, 1),
        zone: 1,
        partitions: 1,
        first_node,
        ..InitZone::default()
    }));
    let joined = Node { addr: "10.0.0.2:7000".into(), nonce: id(0x40, 1), ..Node::default() };
    machine.done(Op::PutNode(PutNode { node: Some(joined) }));
    machine
}

fn text(rows: &BTreeMap<Vec<u8>, Bytes>) -> String {
    rows.iter().fold(String::new(), |mut out, (key, value)| {
        let bar = key.iter().position(|&byte| byte == b'|').unwrap() + 1;
        let letters = std::str::from_utf8(&key[..bar]).unwrap();
        let (rest, value) = (HEXLOWER.encode(&key[bar..]), HEXLOWER.encode(value));
        writeln!(out, "{letters}{rest}\n  {value}").unwrap();
        out
    })
}

#[test]
fn rows_are_the_golden_ones() {
    for (name, golden, history) in GOLDEN {
        let ours = text(&history().rows);
        let differs = ours.lines().zip(golden.lines()).find(|(ours, golden)| ours != golden);
        assert_eq!(differs, None, "{name}");
        assert_eq!(ours.lines().count(), golden.lines().count(), "{name}");
    }
}

#[test]
fn every_kind_of_row_is_among_them() {
    let families: BTreeSet<&str> = GOLDEN
        .iter()
        .flat_map(|(_, golden, _)| golden.lines())
        .filter_map(|line| line.split_once('|').map(|(family, _)| family))
        .collect();
    let expected = [
        "acc", "bki", "bkn", "bko", "bkt", "cls", "cnt", "cur", "drp", "evt", "gc", "grp", "key", "mis",
        "nod", "pgs", "prt", "req", "rlm", "slt", "sys", "tgt", "upl", "ver", "wrt", "zon",
    ];
    assert_eq!(families, BTreeSet::from(expected));
}

fn parse(golden: &str) -> BTreeMap<Vec<u8>, Bytes> {
    let lines: Vec<&str> = golden.lines().collect();
    let hex = |text: &str| HEXLOWER.decode(text.trim().as_bytes()).unwrap();
    lines
        .chunks(2)
        .map(|row| {
            let (family, rest) = row[0].split_once('|').unwrap();
            ([family.as_bytes(), b"|", &hex(rest)].concat(), hex(row[1]).into())
        })
        .collect()
}

/// The files alone, without running any command.
#[test]
fn golden_rows_are_read() {
    for ((name, golden, _), group) in
        GOLDEN.into_iter().zip([PARTITION, GroupId::REALM, ZONE_GROUP, ZONE_GROUP, ZONE_GROUP, ZONE_GROUP])
    {
        assert_eq!(check(&parse(golden), group).unwrap(), Vec::<String>::new(), "{name}");
    }
}

/// Writes the files anew: for a new kind of row, never for one that exists.
#[test]
#[ignore = "writes golden files"]
#[allow(clippy::disallowed_methods, reason = "a tool, not the machine")]
fn write_golden_files() {
    for (name, _, history) in GOLDEN {
        let path = format!("{}/tests/golden/{name}", env!("CARGO_MANIFEST_DIR"));
        std::fs::write(path, text(&history().rows)).unwrap();
    }
}
