use super::*;
use proptest::prelude::*;

proptest! {
    #[test]
    fn displays_parse_back(zone in any::<u16>(), number in 0..(1u64 << 48), raw in any::<[u8; 16]>(), hlc in any::<u64>(), random in any::<u64>()) {
        let zone = ZoneId::new(zone);
        let node = NodeId::in_zone(zone, number).unwrap();
        prop_assert_eq!((node.zone(), node.number()), (zone, number));
        prop_assert_eq!(node.to_string().parse::<NodeId>().unwrap(), node);
        let write = WriteId::from_bytes(raw);
        prop_assert_eq!(write.to_string().parse::<WriteId>().unwrap(), write);
        let version = VersionId::new(Hlc::from_u64(hlc), zone);
        prop_assert_eq!(version.to_string().parse::<VersionId>().unwrap(), version);
        let upload = UploadId { hlc: Hlc::from_u64(hlc), random };
        prop_assert_eq!(upload.to_string().parse::<UploadId>().unwrap(), upload);
        let group = GroupId::partition(zone, (number & 0xffff_ffff) as u32);
        prop_assert_eq!(group.to_string().parse::<GroupId>().unwrap(), group);
        prop_assert_eq!(GroupId::from_u64(group.get()).unwrap(), group);
    }

    #[test]
    fn text_of_a_version_sorts_like_its_time(a in any::<u64>(), b in any::<u64>()) {
        let of = |raw| VersionId::new(Hlc::from_u64(raw), ZoneId::new(1));
        prop_assert_eq!(of(a).cmp(&of(b)), of(a).to_string().cmp(&of(b).to_string()));
    }

    #[test]
    fn shard_ids_round_trip_and_sort(write in any::<[u8; 16]>(), stripe in any::<u32>(), index in any::<u8>()) {
        let shard = ShardId { write: WriteId::from_bytes(write), stripe, index };
        prop_assert_eq!(ShardId::from_slice(&shard.to_bytes()).unwrap(), shard);
        let next = ShardId { stripe: stripe.wrapping_add(1), ..shard };
        prop_assert_eq!(shard.cmp(&next), shard.to_bytes().cmp(&next.to_bytes()));
    }
}

#[test]
fn the_lower_zone_wins_a_tie() {
    let at = |zone| VersionId::new(Hlc::from_u64(7), ZoneId::new(zone));
    assert!(at(1) > at(2));
}

#[test]
fn ids_refuse_what_is_not_theirs() {
    assert!("1".parse::<NodeId>().is_err());
    assert!("zz".parse::<WriteId>().is_err());
    assert!("partition-1".parse::<GroupId>().is_err());
    assert!("00".parse::<VersionId>().is_err());
    assert!(GroupId::from_u64(0).is_err());
    assert_eq!(PartNumber::new(0), None);
    assert_eq!(PartNumber::new(10_001), None);
    assert_eq!(NodeId::in_zone(ZoneId::new(1), 1 << 48), None);
}

/// Slots and byte forms are on disk: these values never change.
#[test]
fn golden_forms() {
    // The empty string is a published XXH3 vector: 0x2d06800538d394c2.
    assert_eq!(slot_of(b"", 8), Slot::new(2));
    assert_eq!(slot_of(b"photos/2026/cat.jpg", 8), Slot::new(5));
    let version = VersionId::new(Hlc::from_u64(0x0192_3456_789a_0001), ZoneId::new(1));
    assert_eq!(version.to_string(), "06938LJOJ8002001");
    assert_eq!(NodeId::in_zone(ZoneId::new(1), 2).unwrap().get(), 0x0001_0000_0000_0002);
    assert_eq!(GroupId::partition(ZoneId::new(1), 2).get(), 0x0300_0100_0000_0002);
}
