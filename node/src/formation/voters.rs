//! Which meta nodes vote in which group. Pure: nodes and groups in, groups out.
//!
//! Three voters, five where there are five meta hosts, one below three; in distinct hosts; a voter stays one for as long
//! as its node is in the zone and is not drained. One that is drained keeps its vote until another can have it. The groups of realm and zone have all other meta nodes as learners, so that every meta
//! node knows the map and the keys; partitions have learners only until there are three voters.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_proto::id::{GroupId, GroupKind};
use holdfast_proto::meta::Group;

/// A meta node that may take part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MetaNode {
    pub(crate) id: u64,
    pub(crate) host: String,
    /// It has been heard of lately: only such a one becomes a voter.
    pub(crate) alive: bool,
    /// It is being drained.
    pub(crate) leaving: bool,
}

/// How many voters a group has with meta nodes on so many hosts.
pub(crate) fn voter_count(hosts: usize) -> usize {
    match hosts {
        0..=2 => 1,
        3 | 4 => 3,
        _ => 5,
    }
}

/// The groups whose members have to change, with their next generation.
pub(crate) fn plan(nodes: &[MetaNode], groups: &[Group]) -> Vec<Group> {
    let known: BTreeMap<u64, &MetaNode> = nodes.iter().map(|node| (node.id, node)).collect();
    let hosts_alive: BTreeSet<&str> =
        nodes.iter().filter(|node| node.alive && !node.leaving).map(|node| node.host.as_str()).collect();
    let count = voter_count(hosts_alive.len());
    let mut roles: BTreeMap<u64, usize> = BTreeMap::new();
    for voter in groups.iter().flat_map(|group| &group.voters) {
        *roles.entry(*voter).or_default() += 1;
    }
    let mut changed = Vec::new();
    for group in groups {
        let had: Vec<u64> = group.voters.iter().copied().filter(|id| known.contains_key(id)).collect();
        let mut voters: Vec<u64> = had.iter().copied().filter(|id| !known[id].leaving).collect();
        let mut hosts: BTreeSet<&str> = voters.iter().map(|id| known[id].host.as_str()).collect();
        while voters.len() < count {
            let free = nodes
                .iter()
                .filter(|node| {
                    node.alive
                        && !node.leaving
                        && !voters.contains(&node.id)
                        && !hosts.contains(node.host.as_str())
                })
                .min_by_key(|node| (roles.get(&node.id).copied().unwrap_or(0), node.id));
            let Some(node) = free else { break };
            voters.push(node.id);
            hosts.insert(&node.host);
            *roles.entry(node.id).or_default() += 1;
        }
        if voters.len() < had.len() && voters.len() < 3 {
            // Nobody can have the votes of those that leave.
            voters = had;
        }
        // An even number bears no more failures than one less.
        if voters.len().is_multiple_of(2) && voters.len() > group.voters.len() {
            voters.pop();
        }
        voters.sort_unstable();
        let everywhere = GroupId::from_u64(group.id).is_ok_and(|id| id.kind() != GroupKind::Partition);
        let learners: Vec<u64> = if everywhere || voters.len() < 3 {
            known
                .values()
                .filter(|node| !node.leaving && !voters.contains(&node.id))
                .map(|node| node.id)
                .collect()
        } else {
            Vec::new()
        };
        let sorted = |ids: &[u64]| ids.iter().copied().collect::<BTreeSet<u64>>();
        if sorted(&group.voters) != sorted(&voters) || sorted(&group.learners) != sorted(&learners) {
            changed.push(Group { id: group.id, voters, learners, generation: group.generation + 1 });
        }
    }
    changed
}

/// Who should lead a group when everybody is well: groups take turns over their voters.
pub(crate) fn preferred_leader(group: &Group, groups: &[Group]) -> Option<u64> {
    let mut voters = group.voters.clone();
    voters.sort_unstable();
    let place = groups.iter().filter(|other| other.id < group.id).count();
    (!voters.is_empty()).then(|| voters[place % voters.len()])
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_proto::id::ZoneId;

    fn node(id: u64) -> MetaNode {
        MetaNode { id, host: format!("h{id}"), alive: true, leaving: false }
    }

    fn groups(voters: &[u64]) -> Vec<Group> {
        let zone = ZoneId::new(1);
        let mut ids = vec![GroupId::REALM, GroupId::zone_group(zone)];
        ids.extend((0..4).map(|number| GroupId::partition(zone, number)));
        ids.into_iter()
            .map(|id| Group { id: id.get(), voters: voters.to_vec(), learners: Vec::new(), generation: 1 })
            .collect()
    }

    #[test]
    fn two_meta_nodes_are_a_voter_and_a_learner() {
        for group in plan(&[node(1), node(2)], &groups(&[1])) {
            assert_eq!((group.voters, group.learners, group.generation), (vec![1], vec![2], 2));
        }
    }

    #[test]
    fn three_vote_and_five_on_five_hosts() {
        let three: Vec<MetaNode> = (1..=3).map(node).collect();
        assert!(plan(&three, &groups(&[1])).iter().all(|group| group.voters == [1, 2, 3]));
        let five: Vec<MetaNode> = (1..=5).map(node).collect();
        assert!(plan(&five, &groups(&[1, 2, 3])).iter().all(|group| group.voters == [1, 2, 3, 4, 5]));
        assert!(plan(&three, &groups(&[1, 2, 3])).is_empty());
    }

    #[test]
    fn voters_are_on_distinct_hosts_and_spread() {
        let mut nodes: Vec<MetaNode> = (1..=4).map(node).collect();
        nodes[1].host = "h1".to_owned();
        for group in plan(&nodes, &groups(&[1])) {
            assert_eq!(group.voters, [1, 3, 4]);
        }
        let seven: Vec<MetaNode> = (1..=7).map(node).collect();
        let mut roles: BTreeMap<u64, usize> = BTreeMap::new();
        for voter in plan(&seven, &groups(&[1])).iter().flat_map(|group| group.voters.clone()) {
            *roles.entry(voter).or_default() += 1;
        }
        assert!(roles.iter().all(|(id, count)| *id == 1 || (3..=5).contains(count)), "{roles:?}");
    }

    #[test]
    fn a_silent_node_stays_a_voter_and_does_not_become_one() {
        let mut nodes: Vec<MetaNode> = (1..=3).map(node).collect();
        nodes[2].alive = false;
        assert!(plan(&nodes, &groups(&[1, 2, 3])).is_empty());
        assert!(
            plan(&nodes, &groups(&[1])).iter().all(|group| group.voters == [1] && group.learners == [2, 3])
        );
    }

    #[test]
    fn leaders_take_turns() {
        let groups = groups(&[3, 1, 2]);
        let leaders: Vec<u64> = groups.iter().filter_map(|group| preferred_leader(group, &groups)).collect();
        assert_eq!(leaders, [1, 2, 3, 1, 2, 3]);
    }
}
