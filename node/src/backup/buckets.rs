//! Buckets that were created or deleted while the backup was made: the realm's rows are older than the partitions'.
//!
//! One that partitions know and the realm does not was created after the realm's rows were read: the realm is told. One that the
//! realm knows and a partition does not was deleted after: it comes back, with what the other partitions still have of it. Its
//! copies come with a generation that the mark of its drop does not refuse.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_client::Map;
use holdfast_machine::BucketCopies;
use holdfast_proto::id::GroupId;
use holdfast_proto::meta::{
    Bucket, BucketState, CreateBucket, PutBucketRow, SetBucketConfig, SetBucketState, command::Op,
};

/// Generations of a bucket that are caught up with, at most: each is a command.
const GENERATIONS_MAX: u64 = 1000;

/// What makes groups agree.
#[derive(Debug, Default)]
pub(super) struct Settled {
    /// What each is told.
    pub(super) say: BTreeMap<GroupId, Vec<Op>>,
    /// Buckets for whom nothing can be done, by name.
    pub(super) left: Vec<String>,
}

/// What the groups are told so that they agree.
///
/// # Errors
/// When the map does not say where slots are.
pub(super) fn settle(
    map: &Map,
    realm: &[Bucket],
    partitions: &BTreeMap<GroupId, BucketCopies>,
) -> anyhow::Result<Settled> {
    let Settled { mut say, mut left } = Settled::default();
    let known: BTreeSet<&[u8]> = realm.iter().map(|bucket| &bucket.id[..]).collect();
    let mut names: BTreeSet<&str> = realm.iter().map(|bucket| bucket.name.as_str()).collect();
    let dropped = |id: &[u8]| {
        let all = partitions.values().flat_map(|copies| &copies.dropped);
        all.filter(|(dropped, _)| &dropped.as_bytes()[..] == id).map(|(_, generation)| *generation).max()
    };

    // Being created or deleted, its worker takes it to its end.
    for bucket in realm.iter().filter(|bucket| bucket.state() == BucketState::BucketActive) {
        let owners = map.partitions_of_bucket(bucket)?;
        let has = |group: &GroupId| {
            partitions.get(group).is_some_and(|copies| copies.here.iter().any(|copy| copy.id == bucket.id))
        };
        if owners.iter().all(|(group, _)| has(group)) {
            continue;
        }
        let generation = dropped(&bucket.id).map_or(bucket.generation, |at| (at + 1).max(bucket.generation));
        raise(bucket, generation, say.entry(GroupId::REALM).or_default());
        let put = Bucket { generation, ..bucket.clone() };
        for (group, _) in owners {
            say.entry(group).or_default().push(Op::PutBucketRow(PutBucketRow { bucket: Some(put.clone()) }));
        }
    }

    let mut newer: BTreeMap<&[u8], &Bucket> = BTreeMap::new();
    for copy in partitions.values().flat_map(|copies| &copies.here) {
        let is_new = !known.contains(&copy.id[..]) && dropped(&copy.id).is_none();
        if is_new && newer.get(&copy.id[..]).is_none_or(|other| other.generation < copy.generation) {
            newer.insert(&copy.id, copy);
        }
    }
    for bucket in newer.into_values() {
        if bucket.state() == BucketState::BucketDeleting || !names.insert(&bucket.name) {
            left.push(bucket.name.clone());
            continue;
        }
        let realm = say.entry(GroupId::REALM).or_default();
        realm.push(Op::CreateBucket(CreateBucket { bucket: Some(bucket.clone()) }));
        realm.push(Op::SetBucketState(SetBucketState {
            bucket: bucket.id.clone(),
            from: BucketState::BucketCreating.into(),
            to: BucketState::BucketActive.into(),
        }));
        raise(&Bucket { generation: 1, ..bucket.clone() }, bucket.generation, realm);
    }
    Ok(Settled { say, left })
}

/// Takes a bucket of the realm to a generation.
fn raise(bucket: &Bucket, to: u64, realm: &mut Vec<Op>) {
    for expected_generation in (bucket.generation..to).take(GENERATIONS_MAX as usize) {
        let config = SetBucketConfig { bucket: Some(bucket.clone()), expected_generation };
        realm.push(Op::SetBucketConfig(config));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use holdfast_proto::id::{BucketId, ZoneId};
    use holdfast_proto::limits::SLOT_TABLE_LEN;
    use holdfast_proto::meta::ClusterMap;

    const ZONE: ZoneId = ZoneId::new(1);

    fn map() -> Map {
        Map::parse(ClusterMap {
            realm: Bytes::from_static(&[7; 16]),
            zone: 1,
            slot_table: (0..SLOT_TABLE_LEN as u32).map(|entry| entry % 2).collect(),
            ..ClusterMap::default()
        })
        .unwrap()
    }

    fn bucket(number: u8, name: &str, generation: u64) -> Bucket {
        let id = Bytes::copy_from_slice(&[number; 16]);
        let state = BucketState::BucketActive.into();
        Bucket { id, name: name.into(), state, generation, slots: 8, ..Bucket::default() }
    }

    fn partitions(first: BucketCopies, second: BucketCopies) -> BTreeMap<GroupId, BucketCopies> {
        [(GroupId::partition(ZONE, 0), first), (GroupId::partition(ZONE, 1), second)].into()
    }

    #[test]
    fn what_agrees_is_left_alone() {
        let all = || BucketCopies { here: vec![bucket(1, "a", 3)], dropped: Vec::new() };
        let Settled { say, left } = settle(&map(), &[bucket(1, "a", 3)], &partitions(all(), all())).unwrap();
        assert!(say.is_empty() && left.is_empty());
    }

    #[test]
    fn a_bucket_that_was_deleted_meanwhile_comes_back_to_where_it_was_dropped() {
        let first = BucketCopies { here: vec![bucket(1, "a", 1)], dropped: Vec::new() };
        let second = BucketCopies { here: Vec::new(), dropped: vec![(BucketId::from_bytes([1; 16]), 2)] };
        let Settled { say, .. } = settle(&map(), &[bucket(1, "a", 1)], &partitions(first, second)).unwrap();
        assert_eq!(say[&GroupId::REALM].len(), 2, "from generation 1 to 3");
        for number in [0, 1] {
            let [Op::PutBucketRow(put)] = &say[&GroupId::partition(ZONE, number)][..] else { panic!() };
            assert_eq!(put.bucket.as_ref().unwrap().generation, 3);
        }
    }

    #[test]
    fn a_bucket_that_was_created_meanwhile_is_told_to_the_realm() {
        let copies = |generation| BucketCopies {
            here: vec![bucket(1, "a", 1), bucket(2, "b", generation), bucket(3, "a", 1)],
            dropped: Vec::new(),
        };
        let Settled { say, left } =
            settle(&map(), &[bucket(1, "a", 1)], &partitions(copies(1), copies(2))).unwrap();
        assert_eq!(say.len(), 1);
        assert!(matches!(
            say[&GroupId::REALM][..],
            [Op::CreateBucket(_), Op::SetBucketState(_), Op::SetBucketConfig(_)]
        ));
        assert_eq!(left, ["a"], "its name is taken");
    }

    #[test]
    fn one_that_was_created_and_deleted_meanwhile_is_gone() {
        let first = BucketCopies { here: vec![bucket(2, "b", 2)], dropped: Vec::new() };
        let second = BucketCopies { here: Vec::new(), dropped: vec![(BucketId::from_bytes([2; 16]), 2)] };
        let Settled { say, left } = settle(&map(), &[], &partitions(first, second)).unwrap();
        assert!(say.is_empty() && left.is_empty());
    }
}
