//! What there is to do about a stripe: a pure function of the map and of who holds what.

use std::collections::BTreeSet;

use holdfast_client::FoundStripe;
use holdfast_client::geometry::Geometry;
use holdfast_proto::id::{PgId, ShardId, TargetId};
use holdfast_proto::meta::{ClusterMap, PlacementGroup, TargetState};

use super::inventory::Stripe;

/// The map, arranged for many looks.
#[derive(Debug)]
pub(super) struct Places<'a> {
    pgs: std::collections::HashMap<u32, &'a PlacementGroup>,
    up: BTreeSet<u32>,
    /// Targets whose lists are part of the walk.
    listed: BTreeSet<u32>,
}

/// A shard that lies elsewhere too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Surplus {
    pub(super) target: u32,
    pub(super) shard: ShardId,
    /// Where it belongs, and was seen.
    pub(super) home: u32,
}

/// What is wrong with a stripe, and what can be done now.
#[derive(Debug, PartialEq)]
pub(super) struct Verdict {
    pub(super) found: FoundStripe,
    /// Shards that can be brought to their places now, and those of them that are nowhere: they have to be rebuilt.
    pub(super) bring: Vec<(usize, TargetId)>,
    pub(super) nowhere: usize,
    /// Places whose target cannot be written, or not be asked, at the moment.
    pub(super) waiting: usize,
    /// Indexes of which at least one shard was seen.
    pub(super) alive: usize,
    /// Shards beyond those that belong somewhere; only of a stripe that is whole.
    pub(super) surplus: Vec<Surplus>,
}

impl Verdict {
    /// All shards are where they belong, and nowhere else.
    pub(super) fn is_well(&self) -> bool {
        self.is_whole() && self.surplus.is_empty()
    }

    /// All shards are where they belong.
    pub(super) fn is_whole(&self) -> bool {
        self.bring.is_empty() && self.waiting == 0
    }

    /// How many more shards of it may be lost.
    pub(super) fn spare(&self) -> isize {
        self.alive as isize - self.found.scheme.data as isize
    }
}

impl<'a> Places<'a> {
    pub(super) fn new(map: &'a ClusterMap, listed: BTreeSet<u32>) -> Self {
        let up = |state| state == TargetState::TargetUp;
        Self {
            pgs: map.pgs.iter().map(|pg| (pg.id, pg)).collect(),
            up: map.targets.iter().filter(|row| up(row.state())).map(|row| row.id).collect(),
            listed,
        }
    }

    /// # Errors
    /// In words, why the stripe makes no sense.
    pub(super) fn judge(&self, stripe: &Stripe) -> Result<Verdict, String> {
        let first = stripe.shards.first().ok_or("a stripe of nothing")?;
        let scheme = first.stored.scheme.ok_or("a shard without a scheme")?;
        let pg = first.stored.pg;
        if let Some(other) =
            stripe.shards.iter().find(|held| (held.stored.pg, held.stored.scheme) != (pg, Some(scheme)))
        {
            return Err(format!("targets {} and {} disagree about it", first.target, other.target));
        }
        // Who has which place does not depend on the length.
        let geometry = Geometry::new(&scheme, 1).map_err(|error| error.to_string())?;
        let row = self.pgs.get(&pg).ok_or_else(|| format!("placement group {pg} is not in the map"))?;
        let width = geometry.width();
        if row.targets.len() < width {
            return Err(format!("placement group {pg} is too narrow for it"));
        }
        let mut holders: Vec<Vec<TargetId>> = vec![Vec::new(); width];
        // What is bad where it lies is as good as absent; it stays until it is stored again.
        for held in stripe.shards.iter().filter(|held| !held.stored.bad) {
            let at = holders.get_mut(usize::from(held.index)).ok_or("a shard beyond the scheme's width")?;
            at.push(TargetId::new(held.target));
        }
        let (mut bring, mut nowhere, mut waiting, mut surplus) = (Vec::new(), 0, 0, Vec::new());
        for (index, holders) in holders.iter_mut().enumerate() {
            let wanted = row.targets[geometry.member(&stripe.write, index, row.targets.len())];
            let home = TargetId::new(wanted);
            if holders.contains(&home) {
                let id = ShardId { write: stripe.write, stripe: stripe.number, index: index as u8 };
                let elsewhere = holders.iter().filter(|target| **target != home);
                surplus.extend(elsewhere.map(|target| Surplus {
                    target: target.get(),
                    shard: id,
                    home: wanted,
                }));
            } else if self.up.contains(&wanted) && self.listed.contains(&wanted) {
                bring.push((index, home));
                nowhere += usize::from(holders.is_empty());
            } else {
                waiting += 1;
            }
            // Read first where it belongs.
            holders.sort_by_key(|target| *target != home);
        }
        if !bring.is_empty() || waiting > 0 {
            surplus.clear();
        }
        let alive = holders.iter().filter(|holders| !holders.is_empty()).count();
        let found =
            FoundStripe { write: stripe.write, stripe: stripe.number, pg: PgId::new(pg), scheme, holders };
        Ok(Verdict { found, bring, nowhere, waiting, alive, surplus })
    }
}
