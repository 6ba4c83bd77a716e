//! Spreads placement groups over targets.
//!
//! Laws: every group has `width` distinct targets, in distinct domains unless domains may be shared; targets carry
//! groups in proportion to their weight, as far as distinct domains allow; so do the places within a group; a place
//! changes its member only when that left or came back, or to even out loads, and then it says who had it before; the
//! same input gives the same output.
//!
//! Greedy by deficit: each new group takes the domains that are furthest below their share, and in each the target that
//! is. Ties are broken by hash of (group, domain), so that groups do not repeat the same sets.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_proto::meta::{MovingPlace, PlacementGroup};

/// Placement groups that each target is a member of.
pub(crate) const GROUPS_PER_TARGET: usize = 100;
/// Targets that a place remembers to have been at.
const FROM_MAX: usize = 4;
/// Loads are evened out when one is further than this from its share, as a part of it and in groups...
const UNEVEN_PART: f64 = 0.05;
const UNEVEN_GROUPS: f64 = 1.5;
/// ...and then until all are as close as this, in groups.
const EVEN_GROUPS: f64 = 1.0;

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

/// The groups of `wanted.class`: those in `existing`, with members that are no candidates replaced, loads evened out, and
/// epochs raised where something changed; and new ones, up to [`group_count`], when targets carry less than half of what
/// they should. (An empty group beside full ones evens nothing out: a target that is added is given places of groups that
/// exist.) `next_id` numbers new ones, `known` are all targets of the zone: a place forgets that it was at any other.
/// `None` when the targets cannot bear even one group.
pub(crate) fn plan(
    existing: &[PlacementGroup],
    targets: &[Candidate],
    known: &BTreeSet<u32>,
    wanted: Wanted<'_>,
    next_id: u32,
) -> Option<Vec<PlacementGroup>> {
    let mut planner = Planner::new(targets, wanted)?;
    let mut groups: Vec<PlacementGroup> = existing.to_vec();
    for group in &mut groups {
        group.moving.iter_mut().for_each(|moving| moving.from.retain(|target| known.contains(target)));
        planner.count(group);
    }
    let enough = group_count(targets.len(), wanted.width);
    let count = if groups.len() * 2 < enough { enough } else { groups.len() };
    planner.groups = count as f64;
    for group in &mut groups {
        planner.give_back(group);
        planner.replace(group)?;
    }
    for id in (next_id..).take(count - groups.len()) {
        let members = planner.members(id)?;
        let group = PlacementGroup {
            id,
            epoch: 1,
            targets: planner.in_order(id, members),
            class: wanted.class.to_owned(),
            moving: Vec::new(),
        };
        planner.count(&group);
        groups.push(group);
    }
    planner.even_out(&mut groups);
    for (group, before) in groups.iter_mut().zip(existing) {
        if group != before {
            group.epoch = before.epoch + 1;
        }
    }
    Some(groups)
}

/// Puts `new` at a place, which remembers who had it.
fn put(group: &mut PlacementGroup, place: usize, new: u32) {
    let old = std::mem::replace(&mut group.targets[place], new);
    let at = match group.moving.iter().position(|moving| moving.place as usize == place) {
        Some(at) => at,
        None => {
            group.moving.push(MovingPlace { place: place as u32, from: Vec::new() });
            group.moving.len() - 1
        }
    };
    let from = &mut group.moving[at].from;
    from.retain(|target| *target != new && *target != old);
    from.insert(0, old);
    from.truncate(FROM_MAX);
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
    weights: BTreeMap<u32, u64>,
    /// How many groups there are going to be.
    groups: f64,
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
            weights: targets.iter().map(|target| (target.id, target.weight.max(1))).collect(),
            groups: 0.0,
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

    fn discount_one(&mut self, target: u32, place: usize) {
        if let Some(domain) = self.domain_of.get(&target) {
            let less = |count: Option<&mut u64>| {
                if let Some(count) = count {
                    *count = count.saturating_sub(1);
                }
            };
            less(self.load.get_mut(&target));
            less(self.domain_load.get_mut(domain));
            less(self.places.get_mut(&(target, place)));
        }
    }

    fn change(&mut self, group: &mut PlacementGroup, place: usize, new: u32) {
        self.discount_one(group.targets[place], place);
        put(group, place, new);
        self.count_one(new, place);
    }

    /// A target's fair number of groups.
    fn fair(&self, target: u32) -> f64 {
        let Some(domain) = self.domain_of.get(&target) else { return 0.0 };
        let weight = |id: &u32| self.weights.get(id).copied().unwrap_or(1) as f64;
        let all: f64 = self.domains[domain].iter().map(|target| weight(&target.id)).sum();
        self.share[domain] * self.groups * weight(&target) / all
    }

    /// How many groups a target carries beyond its fair number.
    fn excess(&self, target: u32) -> f64 {
        self.load.get(&target).copied().unwrap_or(0) as f64 - self.fair(target)
    }

    /// Whether a target may have a place beside the other members.
    fn fits(&self, group: &PlacementGroup, place: usize, target: u32) -> bool {
        let Some(domain) = self.domain_of.get(&target) else { return false };
        let others =
            || group.targets.iter().enumerate().filter(|(at, _)| *at != place).map(|(_, other)| other);
        let free = others().all(|other| self.domain_of.get(other) != Some(domain) && *other != target);
        if !free || !self.wanted.shared_domains {
            return free;
        }
        // With too few hosts: not a host twice where it was there once.
        let host = |target: &u32| self.domain_of.get(target).and_then(|domain| self.hosts.get(domain));
        let uses = |wanted: Option<&String>| others().filter(|other| host(other) == wanted).count();
        uses(host(&target)) <= uses(host(&group.targets[place]))
    }

    /// Gives places that are still being moved back to the target they came from, when that has come back: it has their
    /// shards already.
    fn give_back(&mut self, group: &mut PlacementGroup) {
        for at in 0..group.moving.len() {
            let place = group.moving[at].place as usize;
            let from = group.moving[at].from.clone();
            let back = from.into_iter().find(|target| {
                self.load.get(target).copied().unwrap_or(0) as f64 + 1.0 <= self.fair(*target).floor()
                    && self.fits(group, place, *target)
            });
            if let Some(back) = back {
                self.change(group, place, back);
            }
        }
    }

    /// Puts the emptiest allowed target where a departed one was; the others keep their places.
    fn replace(&mut self, group: &mut PlacementGroup) -> Option<()> {
        for place in 0..group.targets.len() {
            if self.domain_of.contains_key(&group.targets[place]) {
                continue;
            }
            let taken: BTreeSet<String> =
                group.targets.iter().filter_map(|target| self.domain_of.get(target)).cloned().collect();
            let domain = self.ranked(group.id, &taken).into_iter().next()?;
            let target = self.target_in(&domain)?;
            self.change(group, place, target);
        }
        Some(())
    }

    /// Moves places from targets that carry too much to those that carry too little: one place of a group at a time, so
    /// that each group has all its other members meanwhile.
    fn even_out(&mut self, groups: &mut [PlacementGroup]) {
        let targets: Vec<u32> = self.domain_of.keys().copied().collect();
        let is_uneven = |this: &Self, target: u32| {
            this.excess(target).abs() > (this.fair(target) * UNEVEN_PART).max(UNEVEN_GROUPS)
        };
        if !targets.iter().any(|target| is_uneven(self, *target)) {
            return;
        }
        // Places by the target that has them, of groups that may be changed.
        let mut places: BTreeMap<u32, Vec<(usize, usize)>> = BTreeMap::new();
        for (at, group) in groups.iter().enumerate().filter(|(_, group)| group.moving.is_empty()) {
            for (place, target) in group.targets.iter().enumerate() {
                places.entry(*target).or_default().push((at, place));
            }
        }
        let mut changed: BTreeSet<usize> = BTreeSet::new();
        while let Some((at, place, to)) = self.best_move(groups, &targets, &places, &changed) {
            self.change(&mut groups[at], place, to);
            changed.insert(at);
        }
    }

    /// The move that evens out most: to the emptiest target that can have a place of one that is too full.
    fn best_move(
        &self,
        groups: &[PlacementGroup],
        targets: &[u32],
        places: &BTreeMap<u32, Vec<(usize, usize)>>,
        changed: &BTreeSet<usize>,
    ) -> Option<(usize, usize, u32)> {
        let mut order: Vec<u32> = targets.to_vec();
        order.sort_by(|a, b| self.excess(*a).total_cmp(&self.excess(*b)).then(a.cmp(b)));
        for to in order.iter().filter(|target| self.excess(**target) < 0.0) {
            for from in order.iter().rev().filter(|target| self.excess(**target) > 0.0) {
                let (lack, excess) = (-self.excess(*to), self.excess(*from));
                if lack.max(excess) <= EVEN_GROUPS || lack + excess <= 1.0 {
                    break;
                }
                let best = places
                    .get(from)
                    .into_iter()
                    .flatten()
                    .filter(|(at, place)| !changed.contains(at) && self.fits(&groups[*at], *place, *to));
                let had = |place: usize| self.places.get(&(*to, place)).copied().unwrap_or(0);
                let key = |(at, place): &&(usize, usize)| {
                    (had(*place), hash(groups[*at].id, &to.to_be_bytes()), *at)
                };
                if let Some((at, place)) = best.min_by_key(key) {
                    return Some((*at, *place, *to));
                }
            }
        }
        None
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
