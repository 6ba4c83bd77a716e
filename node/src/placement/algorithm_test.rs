use proptest::prelude::*;

use super::*;

fn zone(hosts: &[Vec<u64>]) -> Vec<Candidate> {
    let mut id = 0;
    let mut targets = Vec::new();
    for (host, weights) in hosts.iter().enumerate() {
        for weight in weights {
            id += 1;
            targets.push(Candidate { id, domain: format!("h{host}"), weight: *weight });
        }
    }
    targets
}

fn wanted(width: usize) -> Wanted<'static> {
    Wanted { class: "STANDARD", width, shared_domains: false }
}

fn domain(targets: &[Candidate], id: u32) -> &str {
    &targets.iter().find(|target| target.id == id).unwrap().domain
}

fn loads(groups: &[PlacementGroup]) -> BTreeMap<u32, usize> {
    let mut loads = BTreeMap::new();
    for target in groups.iter().flat_map(|group| &group.targets) {
        *loads.entry(*target).or_default() += 1;
    }
    loads
}

proptest! {
    #[test]
    fn groups_are_in_distinct_domains_and_targets_are_balanced(
        hosts in prop::collection::vec(1usize..5, 3..12), width in 1usize..7,
    ) {
        // Equal disks, uneven hosts.
        let targets = zone(&hosts.iter().map(|count| vec![1; *count]).collect::<Vec<_>>());
        let Some(groups) = plan(&[], &targets, wanted(width), 1) else {
            prop_assert!(hosts.len() < width);
            return Ok(());
        };
        prop_assert_eq!(groups.len(), group_count(targets.len(), width));
        for group in &groups {
            let domains: BTreeSet<&str> = group.targets.iter().map(|id| domain(&targets, *id)).collect();
            prop_assert_eq!(domains.len(), width);
        }
        // Within 10 % of the share that distinct domains allow.
        let planner = Planner::new(&targets, wanted(width)).unwrap();
        let loads = loads(&groups);
        for target in &targets {
            let in_host = planner.domains[&target.domain].len() as f64;
            let fair = planner.share[&target.domain] * groups.len() as f64 / in_host;
            let load = loads.get(&target.id).copied().unwrap_or(0) as f64;
            prop_assert!((load - fair).abs() <= (fair * 0.1).max(1.5), "target {} has {load}, fair is {fair}", target.id);
        }
    }

    #[test]
    fn capacity_is_followed(weights in prop::collection::vec(1u64..4, 8..14)) {
        let targets = zone(&weights.iter().map(|weight| vec![*weight]).collect::<Vec<_>>());
        let groups = plan(&[], &targets, wanted(3), 1).unwrap();
        let planner = Planner::new(&targets, wanted(3)).unwrap();
        let loads = loads(&groups);
        for target in &targets {
            let fair = planner.share[&target.domain] * groups.len() as f64;
            let load = loads.get(&target.id).copied().unwrap_or(0) as f64;
            prop_assert!((load - fair).abs() <= (fair * 0.1).max(1.5), "target {} has {load}, fair is {fair}", target.id);
        }
    }

    #[test]
    fn growth_moves_nothing(before in 6usize..10, more in 1usize..6) {
        let all = zone(&vec![vec![1]; before + more]);
        let old = plan(&[], &all[..before], wanted(6), 1).unwrap();
        let new = plan(&old, &all, wanted(6), old.len() as u32 + 1).unwrap();
        prop_assert_eq!(&new[..old.len()], &old[..]);
        prop_assert_eq!(new.len(), group_count(all.len(), 6));
        let ids: BTreeSet<u32> = new.iter().map(|group| group.id).collect();
        prop_assert_eq!(ids.len(), new.len());
    }

    #[test]
    fn a_lost_target_moves_only_what_it_held(hosts in 7usize..12, lost in 0usize..7) {
        let all = zone(&vec![vec![1]; hosts]);
        let old = plan(&[], &all, wanted(6), 1).unwrap();
        let gone = all[lost].id;
        let left: Vec<Candidate> = all.iter().filter(|target| target.id != gone).cloned().collect();
        let new = plan(&old, &left, wanted(6), 1_000_000).unwrap();
        for (before, after) in old.iter().zip(&new) {
            let moved = before.targets.iter().zip(&after.targets).filter(|(a, b)| a != b).count();
            prop_assert_eq!(moved, usize::from(before.targets.contains(&gone)));
            prop_assert_eq!(after.epoch, before.epoch + u64::from(moved > 0));
            let domains: BTreeSet<&str> = after.targets.iter().map(|id| domain(&left, *id)).collect();
            prop_assert_eq!(domains.len(), 6);
        }
    }
}

#[test]
fn places_are_shared_fairly() {
    let targets = zone(&vec![vec![1]; 6]);
    let groups = plan(&[], &targets, wanted(6), 1).unwrap();
    for place in 0..6 {
        let mut had: BTreeMap<u32, usize> = BTreeMap::new();
        for group in &groups {
            *had.entry(group.targets[place]).or_default() += 1;
        }
        let (least, most) = (had.values().min().unwrap(), had.values().max().unwrap());
        assert!(had.len() == 6 && most - least <= 6, "place {place}: {had:?}");
    }
}

#[test]
fn groups_differ_where_there_is_choice() {
    let targets = zone(&vec![vec![1]; 12]);
    let groups = plan(&[], &targets, wanted(6), 1).unwrap();
    let sets: BTreeSet<Vec<u32>> = groups
        .iter()
        .map(|group| {
            let mut set = group.targets.clone();
            set.sort_unstable();
            set
        })
        .collect();
    assert!(sets.len() > groups.len() / 3, "{} different sets of {}", sets.len(), groups.len());
}

#[test]
fn few_hosts_share_but_use_all_of_them() {
    let targets = zone(&[vec![1, 1], vec![1, 1]]);
    let shared = Wanted { shared_domains: true, ..wanted(3) };
    let groups = plan(&[], &targets, shared, 1).unwrap();
    for group in &groups {
        let hosts: BTreeSet<&str> = group.targets.iter().map(|id| domain(&targets, *id)).collect();
        let distinct: BTreeSet<u32> = group.targets.iter().copied().collect();
        assert_eq!((hosts.len(), distinct.len()), (2, 3));
    }
    assert!(plan(&[], &targets, wanted(3), 1).is_none());
}

#[test]
fn the_same_targets_give_the_same_groups() {
    let targets = zone(&vec![vec![1, 2]; 7]);
    assert_eq!(plan(&[], &targets, wanted(6), 1), plan(&[], &targets, wanted(6), 1));
}
