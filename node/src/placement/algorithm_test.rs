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

fn ids(targets: &[Candidate]) -> BTreeSet<u32> {
    targets.iter().map(|target| target.id).collect()
}

/// All moves have ended: nothing remembers where it was.
fn settle(groups: &mut [PlacementGroup]) {
    groups.iter_mut().for_each(|group| group.moving.clear());
}

/// Plans until nothing changes, every move ending before the next plan. How many places moved.
fn converge(groups: &mut Vec<PlacementGroup>, targets: &[Candidate], width: usize) -> usize {
    let mut moved = 0;
    for _ in 0..50 {
        let next = plan(groups, targets, &ids(targets), wanted(width), 1_000_000).unwrap();
        moved += changes(groups, &next);
        if next == *groups {
            return moved;
        }
        *groups = next;
        settle(groups);
    }
    panic!("it does not come to rest");
}

fn changes(before: &[PlacementGroup], after: &[PlacementGroup]) -> usize {
    let changed = |(a, b): (&PlacementGroup, &PlacementGroup)| {
        a.targets.iter().zip(&b.targets).filter(|(a, b)| a != b).count()
    };
    before.iter().zip(after).map(changed).sum()
}

fn is_sound(groups: &[PlacementGroup], targets: &[Candidate]) -> bool {
    groups.iter().all(|group| {
        let domains: BTreeSet<&str> = group.targets.iter().map(|id| domain(targets, *id)).collect();
        domains.len() == group.targets.len()
    })
}

/// The furthest that any target is from its share, as a part of it.
fn unevenness(groups: &[PlacementGroup], targets: &[Candidate], width: usize) -> f64 {
    let mut planner = Planner::new(targets, wanted(width)).unwrap();
    planner.groups = groups.len() as f64;
    groups.iter().for_each(|group| planner.count(group));
    let off = |target: &Candidate| (planner.excess(target.id).abs() - 1.5).max(0.0) / planner.fair(target.id);
    targets.iter().map(off).fold(0.0, f64::max)
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
        let Some(groups) = plan(&[], &targets, &ids(&targets), wanted(width), 1) else {
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
        let groups = plan(&[], &targets, &ids(&targets), wanted(3), 1).unwrap();
        let planner = Planner::new(&targets, wanted(3)).unwrap();
        let loads = loads(&groups);
        for target in &targets {
            let fair = planner.share[&target.domain] * groups.len() as f64;
            let load = loads.get(&target.id).copied().unwrap_or(0) as f64;
            prop_assert!((load - fair).abs() <= (fair * 0.1).max(1.5), "target {} has {load}, fair is {fair}", target.id);
        }
    }

    #[test]
    fn a_target_that_is_added_gets_its_share_and_little_else_moves(before in 6usize..14, width in 2usize..7) {
        let all = zone(&vec![vec![1]; before + 1]);
        let mut groups = plan(&[], &all[..before], &ids(&all), wanted(width), 1).unwrap();
        let moved = converge(&mut groups, &all, width);
        let share = groups.len() * width / (before + 1);
        prop_assert!(moved <= share + share / 10 + 2, "{moved} places moved for a share of {share}");
        prop_assert!(is_sound(&groups, &all));
        prop_assert!(unevenness(&groups, &all, width) <= 0.1);
    }

    #[test]
    fn a_target_that_is_lost_moves_what_it_held_and_takes_it_back(hosts in 7usize..12, lost in 0usize..7) {
        let all = zone(&vec![vec![1]; hosts]);
        let old = plan(&[], &all, &ids(&all), wanted(6), 1).unwrap();
        let gone = all[lost].id;
        let left: Vec<Candidate> = all.iter().filter(|target| target.id != gone).cloned().collect();
        let new = plan(&old, &left, &ids(&all), wanted(6), 1_000_000).unwrap();
        for (before, after) in old.iter().zip(&new) {
            let held = before.targets.iter().position(|target| *target == gone);
            let moved = before.targets.iter().zip(&after.targets).filter(|(a, b)| a != b).count();
            // One that never had it may move as well, to even loads out.
            prop_assert!(moved <= 1 && (held.is_none() || moved == 1));
            prop_assert_eq!(after.epoch, before.epoch + u64::from(moved > 0));
            if let Some(place) = held {
                prop_assert_eq!(&after.moving, &[MovingPlace { place: place as u32, from: vec![gone] }]);
            }
        }
        prop_assert!(is_sound(&new, &left));
        prop_assert!(unevenness(&new, &left, 6) <= 0.1);
        // It comes back before anything was rebuilt: what is moving still goes back.
        let back = plan(&new, &all, &ids(&all), wanted(6), 1_000_000).unwrap();
        let held = |groups: &[PlacementGroup]| {
            groups.iter().filter(|group| group.targets.contains(&gone)).count()
        };
        prop_assert!(held(&back) * 10 >= held(&old) * 9, "{} of {}", held(&back), held(&old));
        prop_assert!(is_sound(&back, &all));
    }

    #[test]
    fn whatever_comes_and_goes_it_comes_to_rest(
        steps in prop::collection::vec((0usize..12, any::<bool>()), 1..12), hosts in prop::collection::vec(1usize..3, 8..12),
    ) {
        let all = zone(&hosts.iter().map(|count| vec![1; *count]).collect::<Vec<_>>());
        let mut here: Vec<bool> = all.iter().map(|target| target.id % 3 != 0).collect();
        let of = |here: &[bool]| -> Vec<Candidate> {
            all.iter().zip(here).filter(|(_, here)| **here).map(|(target, _)| target.clone()).collect()
        };
        let Some(mut groups) = plan(&[], &of(&here), &ids(&all), wanted(4), 1) else { return Ok(()) };
        for (which, ends) in steps {
            let at = which % all.len();
            here[at] = !here[at];
            let targets = of(&here);
            let next_id = groups.len() as u32 + 1;
            let Some(next) = plan(&groups, &targets, &ids(&all), wanted(4), next_id) else { return Ok(()) };
            prop_assert!(is_sound(&next, &targets));
            for group in &next {
                for moving in &group.moving {
                    let member = group.targets[moving.place as usize];
                    prop_assert!(!moving.from.contains(&member) && moving.from.len() <= FROM_MAX);
                }
            }
            groups = next;
            if ends {
                settle(&mut groups);
            }
        }
        let targets = of(&here);
        settle(&mut groups);
        converge(&mut groups, &targets, 4);
        prop_assert!(unevenness(&groups, &targets, 4) <= 0.1, "{}", unevenness(&groups, &targets, 4));
    }
}

#[test]
fn places_are_shared_fairly() {
    let targets = zone(&vec![vec![1]; 6]);
    let groups = plan(&[], &targets, &ids(&targets), wanted(6), 1).unwrap();
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
    let groups = plan(&[], &targets, &ids(&targets), wanted(6), 1).unwrap();
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
    let groups = plan(&[], &targets, &ids(&targets), shared, 1).unwrap();
    for group in &groups {
        let hosts: BTreeSet<&str> = group.targets.iter().map(|id| domain(&targets, *id)).collect();
        let distinct: BTreeSet<u32> = group.targets.iter().copied().collect();
        assert_eq!((hosts.len(), distinct.len()), (2, 3));
    }
    assert!(plan(&[], &targets, &ids(&targets), wanted(3), 1).is_none());
}

#[test]
fn the_same_targets_give_the_same_groups() {
    let targets = zone(&vec![vec![1, 2]; 7]);
    assert_eq!(
        plan(&[], &targets, &ids(&targets), wanted(6), 1),
        plan(&[], &targets, &ids(&targets), wanted(6), 1)
    );
}

#[test]
fn what_is_even_stays_as_it_is() {
    let targets = zone(&vec![vec![1, 1]; 8]);
    let mut groups = plan(&[], &targets, &ids(&targets), wanted(6), 1).unwrap();
    assert_eq!(converge(&mut groups, &targets, 6), 0);
}

#[test]
fn a_zone_of_twice_the_size_gets_groups() {
    let targets = zone(&vec![vec![1]; 20]);
    let mut groups = plan(&[], &targets[..7], &ids(&targets), wanted(6), 1).unwrap();
    let was = groups.len();
    groups = plan(&groups, &targets, &ids(&targets), wanted(6), was as u32 + 1).unwrap();
    assert_eq!((was, groups.len()), (group_count(7, 6), group_count(20, 6)));
}

#[test]
fn targets_that_left_the_zone_are_forgotten() {
    let targets = zone(&vec![vec![1]; 8]);
    let groups = plan(&[], &targets, &ids(&targets), wanted(6), 1).unwrap();
    let left: Vec<Candidate> = targets[1..].to_vec();
    let moving = plan(&groups, &left, &ids(&targets), wanted(6), 1000).unwrap();
    let from = |groups: &[PlacementGroup]| {
        groups.iter().flat_map(|group| &group.moving).filter(|moving| moving.from.contains(&1)).count()
    };
    assert!(from(&moving) > 0);
    let removed = plan(&moving, &left, &ids(&left), wanted(6), 1000).unwrap();
    assert_eq!(from(&removed), 0);
    assert_eq!(
        removed.iter().map(|group| group.moving.len()).sum::<usize>(),
        moving.iter().map(|group| group.moving.len()).sum::<usize>()
    );
}
