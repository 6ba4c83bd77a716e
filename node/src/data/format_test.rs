//! The bytes of a segment never change: a golden segment is written again byte by byte, and read in every way there is.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::footer::{LogEntry, Seal, read_footer};
use super::record::{Layout, Position, RecordKey, Tombstone, is_segment_header};
use super::scan::scan;
use super::segment::{ActiveSegment, Batch, SegmentHome, segment_path};
use super::sim_disk::SimDisk;
use super::testing::{Machine, REALM, shard, shard_id, wire};
use crate::env::{Access, Disk};

const UUID: [u8; 16] = [0xA5; 16];
const NUMBER: u64 = 7;

fn home(disk: &SimDisk) -> SegmentHome {
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    let key = RecordKey::of_target(&UUID);
    SegmentHome { dir: PathBuf::from("/segments"), disk, uuid: UUID, realm: REALM, key, direct: false }
}

/// Two shards in one batch, then a tombstone and an empty shard in a second, then the footer.
fn write() -> (SimDisk, SegmentHome, Vec<LogEntry>) {
    let disk = SimDisk::new();
    let home = home(&disk);
    let mut segment = ActiveSegment::create(&home, NUMBER).unwrap();
    let mut batch = Batch::new(1 << 20);
    let mut entries = Vec::new();
    let put = |batch: &mut Batch, number: u32, length: usize| {
        let (meta, data) = shard(number, length);
        let bytes = prost::Message::encode_to_vec(&meta);
        batch.push_shard(&home.key, shard_id(number), Layout::of_stored(&meta), &bytes, &data);
    };
    batch.restart(segment.end());
    put(&mut batch, 1, 300);
    put(&mut batch, 2, 5000);
    entries.extend_from_slice(batch.entries());
    segment.commit(&mut batch, &home.key).unwrap();
    batch.restart(segment.end());
    batch.push_tombstones(&home.key, &[shard_id(1), shard_id(9)]);
    put(&mut batch, 3, 0);
    entries.extend_from_slice(batch.entries());
    segment.commit(&mut batch, &home.key).unwrap();
    segment.roll(&home).unwrap();
    (disk, home, entries)
}

fn golden(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/data/golden").join(name);
    std::fs::read(path).unwrap_or_default()
}

#[test]
fn a_segment_of_version_1_has_these_bytes() {
    let (disk, home, _) = write();
    let written = disk.read(&segment_path(&home.dir, NUMBER)).unwrap();
    let golden = golden("segment_v1_footer_4.seg");
    if written != golden {
        let actual = std::env::temp_dir().join("segment_v1_footer_4.seg");
        std::fs::write(&actual, &written).unwrap();
        let at = written.iter().zip(&golden).position(|(a, b)| a != b);
        panic!("the format changed at byte {at:?}; what is written now is in {}", actual.display());
    }
}

#[test]
fn a_segment_reads_back_from_its_footer_and_by_scanning() {
    let (disk, home, entries) = write();
    let path = segment_path(&home.dir, NUMBER);
    let file = disk.open(&path, Access::Buffered).unwrap();
    let before = Position::new(NUMBER, 12_288);
    assert_eq!(entries[2], LogEntry::Dead(Tombstone { shard: shard_id(1), before }));
    assert_eq!(read_footer(&*file, NUMBER, &home.key).unwrap(), Seal::Listed(entries.clone()));
    let scanned = scan(&*file, NUMBER, &home.key, 0).unwrap();
    assert_eq!((scanned.entries, scanned.sealed, scanned.damaged), (entries, true, 0));
    let mut block = Vec::new();
    file.read_at(&mut block, 4096, 0).unwrap();
    assert!(is_segment_header(&home.key, NUMBER, &block));
    assert!(!is_segment_header(&home.key, NUMBER + 1, &block));
}

#[test]
fn every_byte_that_is_hashed_counts() {
    let (disk, home, entries) = write();
    let path = segment_path(&home.dir, NUMBER);
    let good = disk.read(&path).unwrap();
    let file = disk.open(&path, Access::Buffered).unwrap();
    // Headers and metas of the second batch, which holds no payload.
    let second = 12_288..12_288 + 72 + 2 * 37;
    for at in second {
        disk.damage(&path, |content| content[at] ^= 1);
        let scanned = scan(&*file, NUMBER, &home.key, 0).unwrap();
        assert!(scanned.damaged == 1 && !scanned.entries.contains(&entries[2]), "byte {at}");
        disk.damage(&path, |content| content.clone_from(&good));
    }
    // Another target's records are none.
    let other = RecordKey::of_target(&[1; 16]);
    assert!(scan(&*file, NUMBER, &other, u64::MAX).unwrap().entries.is_empty());
    assert_eq!(read_footer(&*file, NUMBER, &other).unwrap(), Seal::Unproven);
    assert!(scan(&*file, NUMBER + 1, &home.key, u64::MAX).unwrap().entries.is_empty());
}

#[test]
fn a_segment_with_a_footer_of_kind_3_is_sealed_and_scanned() {
    let (disk, home, entries) = write();
    let path = segment_path(&home.dir, NUMBER);
    let bare = golden("segment_v1.seg");
    // Nothing but the footer's batch differs.
    let footer = 16_384;
    assert_eq!(bare[..footer], disk.read(&path).unwrap()[..footer]);
    assert_eq!((&bare[footer..footer + 4], bare[footer + 5]), (&b"HFRC"[..], 3));
    disk.damage(&path, |content| content.clone_from(&bare));
    let file = disk.open(&path, Access::Buffered).unwrap();
    assert_eq!(read_footer(&*file, NUMBER, &home.key).unwrap(), Seal::Bare);
    let scanned = scan(&*file, NUMBER, &home.key, 0).unwrap();
    assert_eq!((scanned.entries, scanned.sealed, scanned.damaged), (entries, true, 0));
}

#[tokio::test]
async fn a_target_of_golden_segments_gives_all_their_shards() {
    for name in ["segment_v1.seg", "segment_v1_footer_4.seg"] {
        let machine = Machine::new();
        let root = machine.config.dir.clone();
        let identity = format!(r#"{{"format":1,"uuid":"{}","realm":"{REALM}"}}"#, hex::encode(UUID));
        machine.disk.replace(&root.join("target.json"), identity.as_bytes()).unwrap();
        let segment = segment_path(&root.join("segments"), NUMBER);
        machine.disk.replace(&segment, &golden(name)).unwrap();
        for round in 0..3 {
            let target = machine.open().await;
            for (number, length) in [(2, 5000), (3, 0)] {
                let found = target.get(&wire(number), 0, 0).await.unwrap();
                assert_eq!((found.meta, found.data), shard(number, length), "{name}");
            }
            assert!(!target.stat(&[wire(1)]).unwrap()[0], "{name}");
            let page = target.list(None, 10).await.unwrap();
            let listed: Vec<_> = page.shards.iter().map(|row| (row.pg, row.scheme, row.length)).collect();
            let scheme = shard(2, 0).0.scheme;
            assert_eq!(listed, [(7, scheme, 5000), (7, scheme, 0)], "{name}");
            assert_eq!(target.report().corrupt_blocks, 0, "{name}");
            drop(target);
            machine.disk.power_cut(round);
        }
    }
}
