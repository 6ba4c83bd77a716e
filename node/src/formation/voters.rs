//! Which meta nodes vote in which group. Pure: nodes and groups in, groups out.
//!
//! Three voters, five where there are five meta hosts, one below three; in distinct hosts; a voter stays one for as long
//! as its node is in the zone and is not drained, but for votes of partitions that move to nodes with fewer, one at a
//! time, while all are well. One that is drained keeps its vote until another can have it. The groups of realm and zone
//! have all other meta nodes as learners, so that every meta node knows the map and the keys; partitions have learners
//! only until there are three voters.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_proto::id::{GroupId, GroupKind};
use holdfast_proto::meta::{Group, GroupMembers};

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

/// Whether a group has the members that it is to have.
pub(crate) fn is_settled(group: &Group, actual: &GroupMembers) -> bool {
    let set = |ids: &[u64]| ids.iter().copied().collect::<BTreeSet<u64>>();
    set(&group.voters) == set(&actual.voters) && set(&group.learners) == set(&actual.learners)
}

/// One vote that moves from the node with most votes to one with two less or fewer: the group as it is to be. `None` when votes are
/// spread evenly, or while somebody is silent or leaves: then the zone has other things to do.
pub(crate) fn spread(nodes: &[MetaNode], groups: &[Group]) -> Option<Group> {
    if nodes.iter().any(|node| !node.alive || node.leaving) {
        return None;
    }
    let hosts: BTreeMap<u64, &str> = nodes.iter().map(|node| (node.id, node.host.as_str())).collect();
    let mut votes: BTreeMap<u64, usize> = hosts.keys().map(|id| (*id, 0)).collect();
    for voter in groups.iter().flat_map(|group| &group.voters) {
        *votes.get_mut(voter)? += 1;
    }
    let mut best: Option<(usize, Group)> = None;
    let partitions = groups
        .iter()
        .filter(|group| GroupId::from_u64(group.id).is_ok_and(|id| id.kind() == GroupKind::Partition));
    for group in partitions.filter(|group| group.voters.len() >= 3) {
        for from in &group.voters {
            let others: Vec<u64> = group.voters.iter().copied().filter(|id| id != from).collect();
            let fits = |id: &&u64| {
                !group.voters.contains(id) && others.iter().all(|other| hosts.get(other) != hosts.get(*id))
            };
            let Some(to) = votes.keys().filter(fits).min_by_key(|id| (votes[*id], **id)) else { continue };
            let gain = votes[from].saturating_sub(votes[to]);
            if gain >= 2 && best.as_ref().is_none_or(|(best, _)| gain > *best) {
                let mut voters: Vec<u64> = others.into_iter().chain([*to]).collect();
                voters.sort_unstable();
                best = Some((gain, Group { voters, generation: group.generation + 1, ..group.clone() }));
            }
        }
    }
    best.map(|(_, group)| group)
}

/// Who should lead a group when everybody is well: groups take turns over their voters, and then give leads away as long
/// as one node has two more than another that votes there.
pub(crate) fn preferred_leader(group: &Group, groups: &[Group]) -> Option<u64> {
    let mut in_order: Vec<&Group> = groups.iter().filter(|group| !group.voters.is_empty()).collect();
    in_order.sort_by_key(|group| group.id);
    let mut counts: BTreeMap<u64, usize> = BTreeMap::new();
    let fewest = |group: &Group, counts: &BTreeMap<u64, usize>| {
        let count = |id: &u64| counts.get(id).copied().unwrap_or(0);
        group.voters.iter().copied().min_by_key(|id| (count(id), *id))
    };
    let mut leaders: BTreeMap<u64, u64> = BTreeMap::new();
    for group in &in_order {
        let leader = fewest(group, &counts)?;
        *counts.entry(leader).or_default() += 1;
        leaders.insert(group.id, leader);
    }
    loop {
        let given = in_order.iter().find_map(|group| {
            let (from, to) = (leaders[&group.id], fewest(group, &counts)?);
            (counts[&from] >= counts.get(&to).copied().unwrap_or(0) + 2).then_some((group.id, from, to))
        });
        let Some((id, from, to)) = given else { break };
        leaders.insert(id, to);
        *counts.entry(from).or_default() -= 1;
        *counts.entry(to).or_default() += 1;
    }
    leaders.get(&group.id).copied()
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

    fn most_and_least(counts: &BTreeMap<u64, usize>) -> (usize, usize) {
        (*counts.values().max().unwrap(), *counts.values().min().unwrap())
    }

    fn votes(groups: &[Group]) -> BTreeMap<u64, usize> {
        let mut votes = BTreeMap::new();
        for voter in groups.iter().flat_map(|group| &group.voters) {
            *votes.entry(*voter).or_default() += 1;
        }
        votes
    }

    #[test]
    fn votes_and_leads_spread_over_more_than_three_one_at_a_time() {
        for count in [4, 6, 7] {
            let nodes: Vec<MetaNode> = (1..=count).map(node).collect();
            let zone = ZoneId::new(1);
            let mut groups = groups(&[1, 2, 3]);
            groups.extend((4..16).map(|number| Group {
                id: GroupId::partition(zone, number).get(),
                voters: vec![1, 2, 3],
                learners: Vec::new(),
                generation: 1,
            }));
            // More hosts may want more voters first.
            for group in plan(&nodes, &groups) {
                let old = groups.iter_mut().find(|old| old.id == group.id).unwrap();
                *old = group;
            }
            let mut moves = 0;
            while let Some(moved) = spread(&nodes, &groups) {
                let old = groups.iter_mut().find(|old| old.id == moved.id).unwrap();
                assert_eq!(moved.voters.iter().filter(|id| !old.voters.contains(id)).count(), 1);
                assert_eq!((moved.voters.len(), moved.generation), (old.voters.len(), old.generation + 1));
                *old = moved;
                moves += 1;
                assert!(moves < 100, "it comes to an end");
            }
            let (most, least) = most_and_least(&votes(&groups));
            assert!(most - least <= 1, "{count} nodes: {:?}", votes(&groups));
            let mut leads: BTreeMap<u64, usize> = BTreeMap::new();
            for group in &groups {
                *leads.entry(preferred_leader(group, &groups).unwrap()).or_default() += 1;
            }
            let (most, least) = most_and_least(&leads);
            assert!(leads.len() as u64 == count && most - least <= 1, "{count} nodes: {leads:?}");
            assert!(plan(&nodes, &groups).is_empty(), "what is spread stays as it is");
        }
    }

    #[test]
    fn votes_do_not_spread_while_somebody_is_silent_or_leaves() {
        let mut nodes: Vec<MetaNode> = (1..=4).map(node).collect();
        assert!(spread(&nodes, &groups(&[1, 2, 3])).is_some());
        nodes[1].alive = false;
        assert!(spread(&nodes, &groups(&[1, 2, 3])).is_none());
        (nodes[1].alive, nodes[3].leaving) = (true, true);
        assert!(spread(&nodes, &groups(&[1, 2, 3])).is_none());
        nodes[3].leaving = false;
        nodes[3].host = "h1".to_owned();
        let moved = spread(&nodes, &groups(&[1, 2, 3])).unwrap();
        assert_eq!(moved.voters, [2, 3, 4], "only for the one on its own host");
    }

    #[test]
    fn the_votes_of_a_dead_node_that_is_drained_go_to_the_fourth() {
        let mut nodes: Vec<MetaNode> = (1..=4).map(node).collect();
        (nodes[0].alive, nodes[0].leaving) = (false, true);
        let moved = plan(&nodes, &groups(&[1, 2, 3]));
        assert!(moved.iter().all(|group| group.voters == [2, 3, 4]), "{moved:?}");
        assert_eq!(moved.len(), 6);
    }

    #[test]
    fn leaders_take_turns() {
        let groups = groups(&[3, 1, 2]);
        let leaders: Vec<u64> = groups.iter().filter_map(|group| preferred_leader(group, &groups)).collect();
        assert_eq!(leaders, [1, 2, 3, 1, 2, 3]);
    }
}
