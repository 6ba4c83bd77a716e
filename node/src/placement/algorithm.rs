//! Spreads placement groups over targets.
//!
//! Laws: every group has `width` distinct targets, in distinct domains unless domains may be shared; targets carry
//! groups in proportion to their weight, as far as distinct domains allow; so do the places within a group; groups that
//! exist keep their targets, except those that left; the same input gives the same output.
//!
//! Greedy by deficit: each new group takes the domains that are furthest below their share, and in each the target that
//! is. Ties are broken by hash of (group, domain), so that groups do not repeat the same sets.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_proto::meta::PlacementGroup;

/// Placement groups that each target is a member of.
pub(crate) const GROUPS_PER_TARGET: usize = 100;

/// A target that may carry placement groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) id: u32,
    /// Falls as one.
    pub(crate) domain: String,
    /// Relative capacity, at least 1.
    pub(crate) weight: u64,
}

/// What is asked of a plan.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted<'a> {
    pub(crate) class: &'a str,
    pub(crate) width: usize,
    pub(crate) shared_domains: bool,
}

/// How many groups of `width` there should be on so many targets.
pub(crate) fn group_count(targets: usize, width: usize) -> usize {
    (GROUPS_PER_TARGET * targets).div_ceil(width.max(1))
}

/// The groups of `wanted.class`: those in `existing` with departed targets replaced and their epoch raised, and new ones
/// up to [`group_count`]. `next_id` numbers new ones. `None` when the targets cannot bear even one group.
pub(crate) fn plan(
    existing: &[PlacementGroup],
    targets: &[Candidate],
    wanted: Wanted<'_>,
    next_id: u32,
) -> Option<Vec<PlacementGroup>> {
    let mut planner = Planner::new(targets, wanted)?;
    let mut groups: Vec<PlacementGroup> = existing.to_vec();
    for group in &groups {
        planner.count(group);
    }
    for group in &mut groups {
        planner.repair(group)?;
    }
    let count = group_count(targets.len(), wanted.width).max(groups.len());
    for id in (next_id..).take(count - groups.len()) {
        let members = planner.members(id)?;
        let group = PlacementGroup {
            id,
            epoch: 1,
            targets: planner.in_order(id, members),
            class: wanted.class.to_owned(),
        };
        planner.count(&group);
        groups.push(group);
    }
    Some(groups)
}

struct Planner<'a> {
    wanted: Wanted<'a>,
    /// Domain to its targets. With shared domains each target is a domain of its own, its host breaking ties.
    domains: BTreeMap<String, Vec<Candidate>>,
    domain_of: BTreeMap<u32, String>,
    share: BTreeMap<String, f64>,
    load: BTreeMap<u32, u64>,
    domain_load: BTreeMap<String, u64>,
    /// (target, place in the group) to how often.
    places: BTreeMap<(u32, usize), u64>,
    hosts: BTreeMap<String, String>,
}

impl<'a> Planner<'a> {
    fn new(targets: &[Candidate], wanted: Wanted<'a>) -> Option<Self> {
        let mut domains: BTreeMap<String, Vec<Candidate>> = BTreeMap::new();
        let mut domain_of = BTreeMap::new();
        let mut hosts = BTreeMap::new();
        for target in targets {
            let domain =
                if wanted.shared_domains { format!("{:010}", target.id) } else { target.domain.clone() };
            hosts.insert(domain.clone(), target.domain.clone());
            domain_of.insert(target.id, domain.clone());
            domains.entry(domain).or_default().push(target.clone());
        }
        if wanted.width == 0 || domains.len() < wanted.width {
            return None;
        }
        let share = shares(&domains, wanted.width);
        Some(Self {
            wanted,
            domains,
            domain_of,
            share,
            load: BTreeMap::new(),
            domain_load: BTreeMap::new(),
            places: BTreeMap::new(),
            hosts,
        })
    }

    fn count(&mut self, group: &PlacementGroup) {
        for (place, target) in group.targets.iter().enumerate() {
            self.count_one(*target, place);
        }
    }

    fn count_one(&mut self, target: u32, place: usize) {
        if let Some(domain) = self.domain_of.get(&target) {
            *self.load.entry(target).or_default() += 1;
            *self.domain_load.entry(domain.clone()).or_default() += 1;
            *self.places.entry((target, place)).or_default() += 1;
        }
    }

    /// Puts the emptiest allowed target where a departed one was; the others keep their places.
    fn repair(&mut self, group: &mut PlacementGroup) -> Option<()> {
        let gone: Vec<usize> = (0..group.targets.len())
            .filter(|place| !self.domain_of.contains_key(&group.targets[*place]))
            .collect();
        for place in &gone {
            let taken: BTreeSet<String> =
                group.targets.iter().filter_map(|target| self.domain_of.get(target)).cloned().collect();
            let domain = self.ranked(group.id, &taken).into_iter().next()?;
            let target = self.target_in(&domain)?;
            group.targets[*place] = target;
            self.count_one(target, *place);
        }
        if !gone.is_empty() {
            group.epoch += 1;
        }
        Some(())
    }

    fn members(&self, id: u32) -> Option<Vec<u32>> {
        let mut members = Vec::with_capacity(self.wanted.width);
        if !self.wanted.shared_domains {
            for domain in self.ranked(id, &BTreeSet::new()).into_iter().take(self.wanted.width) {
                members.push(self.target_in(&domain)?);
            }
            return Some(members);
        }
        // Too few hosts: as many different ones as there are, before any is used again.
        let mut left = self.ranked(id, &BTreeSet::new());
        let mut used: BTreeMap<String, usize> = BTreeMap::new();
        while members.len() < self.wanted.width {
            let uses = |domain: &String| used.get(&self.hosts[domain]).copied().unwrap_or(0);
            let fewest = left.iter().map(uses).min()?;
            let at = left.iter().position(|domain| uses(domain) == fewest)?;
            let domain = left.remove(at);
            *used.entry(self.hosts[&domain].clone()).or_default() += 1;
            members.push(self.target_in(&domain)?);
        }
        Some(members)
    }

    /// Domains not in `taken`, those furthest below their share first.
    fn ranked(&self, id: u32, taken: &BTreeSet<String>) -> Vec<String> {
        let mut ranked: Vec<(f64, u64, &String)> = self
            .domains
            .keys()
            .filter(|domain| !taken.contains(*domain))
            .map(|domain| {
                let load = self.domain_load.get(domain).copied().unwrap_or(0) as f64;
                (load / self.share[domain], hash(id, domain.as_bytes()), domain)
            })
            .collect();
        ranked.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        ranked.into_iter().map(|(_, _, domain)| domain.clone()).collect()
    }

    fn target_in(&self, domain: &str) -> Option<u32> {
        let fill = |target: &&Candidate| {
            self.load.get(&target.id).copied().unwrap_or(0) as f64 / target.weight.max(1) as f64
        };
        self.domains[domain]
            .iter()
            .min_by(|a, b| fill(a).total_cmp(&fill(b)).then(a.id.cmp(&b.id)))
            .map(|t| t.id)
    }

    /// Gives each place to the member that had it least, so that nobody holds only parity.
    fn in_order(&self, id: u32, mut members: Vec<u32>) -> Vec<u32> {
        let mut ordered = Vec::with_capacity(members.len());
        for place in 0..members.len() {
            let had = |target: &u32| self.places.get(&(*target, place)).copied().unwrap_or(0);
            let best = (0..members.len())
                .min_by_key(|at| (had(&members[*at]), hash(id, &members[*at].to_be_bytes())))
                .unwrap_or_default();
            ordered.push(members.swap_remove(best));
        }
        ordered
    }
}

/// Each domain's part of all group memberships, in units of groups: its weight's part, but nobody can be in a group
/// twice, so what a domain cannot bear goes to the others.
fn shares(domains: &BTreeMap<String, Vec<Candidate>>, width: usize) -> BTreeMap<String, f64> {
    let weight =
        |domain: &String| domains[domain].iter().map(|target| target.weight.max(1) as f64).sum::<f64>();
    let mut open: Vec<&String> = domains.keys().collect();
    let mut shares = BTreeMap::new();
    let mut left = width as f64;
    loop {
        let total: f64 = open.iter().map(|domain| weight(domain)).sum();
        let (full, rest): (Vec<&String>, Vec<&String>) =
            open.iter().partition(|domain| weight(domain) * left >= total * (1.0 - 1e-9));
        if full.is_empty() {
            shares.extend(rest.into_iter().map(|domain| (domain.clone(), left * weight(domain) / total)));
            return shares;
        }
        left -= full.len() as f64;
        shares.extend(full.into_iter().map(|domain| (domain.clone(), 1.0)));
        open = rest;
        if open.is_empty() {
            return shares;
        }
    }
}

fn hash(id: u32, name: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64_with_seed(name, u64::from(id))
}

#[cfg(test)]
#[path = "algorithm_test.rs"]
mod tests;
