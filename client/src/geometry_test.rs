use holdfast_proto::id::WriteId;
use proptest::prelude::*;

use super::*;

fn rs(data: u32, parity: u32) -> Scheme {
    Scheme { codec: Codec::RsGf8.into(), data, parity }
}

fn copies(number: u32) -> Scheme {
    Scheme { codec: Codec::Copies.into(), data: 1, parity: number - 1 }
}

fn schemes() -> impl Strategy<Value = Scheme> {
    prop_oneof![
        (1u32..=10, 1u32..=4).prop_map(|(data, parity)| rs(data, parity)),
        (1u32..=4).prop_map(copies),
    ]
}

const MIB: u64 = 1 << 20;

proptest! {
    #[test]
    fn stripes_tile_the_write(scheme in schemes(), length in 0..80 * MIB) {
        let geometry = Geometry::new(&scheme, length).unwrap();
        let mut offset = 0;
        for stripe in 0..geometry.stripes() {
            prop_assert_eq!(geometry.stripe_offset(stripe), offset);
            let (bytes, shard) = (geometry.stripe_bytes(stripe), u64::from(geometry.shard_bytes(stripe)));
            prop_assert!(bytes > 0 && shard > 0 && shard <= MIB);
            prop_assert!(shard * u64::from(scheme.data) >= bytes, "the shards hold the stripe");
            prop_assert!(shard * u64::from(scheme.data) - bytes < u64::from(scheme.data), "less than one byte of filling each");
            if stripe + 1 < geometry.stripes() {
                prop_assert_eq!(shard, MIB, "only the last stripe is short");
            }
            offset += bytes;
        }
        prop_assert_eq!(offset, length);
        prop_assert_eq!(geometry.shard_bytes(geometry.stripes()), 0);
    }

    #[test]
    fn a_range_is_cut_without_gap_or_overlap(scheme in schemes(), length in 1..20 * MIB, a in any::<u64>(), b in any::<u64>()) {
        let geometry = Geometry::new(&scheme, length).unwrap();
        let (a, b) = (a % (length + 1), b % (length + 1));
        let range = a.min(b)..a.max(b);
        let mut at = range.start;
        for (stripe, bytes) in geometry.stripes_of(range.clone()) {
            for shard in geometry.shards_of(stripe, bytes.clone()) {
                prop_assert!(shard.index < geometry.data());
                prop_assert!(shard.bytes.start < shard.bytes.end && shard.bytes.end <= geometry.shard_bytes(stripe));
                let offset = geometry.stripe_offset(stripe)
                    + shard.index as u64 * u64::from(geometry.shard_bytes(stripe)) + u64::from(shard.bytes.start);
                prop_assert_eq!(offset, at);
                at += u64::from(shard.bytes.end - shard.bytes.start);
                let blocks = whole_blocks(&shard.bytes, geometry.shard_bytes(stripe));
                prop_assert!(blocks.start <= shard.bytes.start && blocks.end >= shard.bytes.end);
                prop_assert_eq!(blocks.start as usize % BLOCK_BYTES, 0);
            }
        }
        prop_assert_eq!(at, range.end.max(range.start));
    }

    #[test]
    fn copies_are_on_different_members(write in any::<[u8; 16]>(), members in 3usize..12) {
        let geometry = Geometry::new(&copies(3), 100).unwrap();
        let mut places: Vec<usize> = (0..3).map(|at| geometry.member(&WriteId::from_bytes(write), at, members)).collect();
        places.sort_unstable();
        places.dedup();
        prop_assert_eq!(places.len(), 3);
        prop_assert!(places.iter().all(|place| *place < members));
    }
}

#[test]
fn acknowledgement_numbers_are_the_designs() {
    let of = |scheme: Scheme| Geometry::new(&scheme, 1).unwrap().acknowledge();
    assert_eq!(of(rs(4, 2)), 5);
    assert_eq!(of(rs(2, 1)), 3);
    assert_eq!(of(rs(8, 4)), 11);
    assert_eq!(of(copies(3)), 2);
    assert_eq!(of(copies(2)), 2);
    assert_eq!(of(copies(4)), 3);
    assert_eq!(of(copies(1)), 1);
}

/// These places are where bytes are on disk: they never change.
#[test]
fn golden_places() {
    let geometry = Geometry::new(&rs(4, 2), 9_000_001).unwrap();
    assert_eq!(geometry.stripes(), 3);
    assert_eq!(geometry.stripe_offset(2), 8 << 20);
    assert_eq!((geometry.stripe_bytes(2), geometry.shard_bytes(2)), (611_393, 152_849));
    let write = WriteId::from_bytes(*b"0123456789abcdef");
    let copies = Geometry::new(&copies(3), 4096).unwrap();
    assert_eq!((0..3).map(|at| copies.member(&write, at, 6)).collect::<Vec<_>>(), [1, 2, 3]);
}

#[test]
fn too_many_stripes_are_refused() {
    assert!(Geometry::new(&copies(3), (STRIPES_MAX + 1) * MIB).is_err());
    assert!(Geometry::new(&rs(0, 1), 1).is_err());
}
