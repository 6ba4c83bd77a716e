//! Where a stripe goes: a placement group of the class whose members are well, the emptier of two.

use std::collections::HashSet;

use holdfast_proto::id::{PgId, TargetId, WriteId};
use rand::Rng;

use crate::cluster::Inner;
use crate::error::Error;
use crate::geometry::Geometry;
use crate::map::{Map, Pg};

/// Groups looked at before the best seen is taken; a zone of thousands of groups is not scanned for every write.
const LOOKS_MAX: usize = 256;
/// Two groups whose emptiest members differ by less are equally full.
const FREE_SAME: f64 = 0.02;

/// The targets of a stripe's shards, in shard order; `None` when the group is too narrow for the scheme.
pub(crate) fn members(geometry: &Geometry, write: &WriteId, pg: &Pg) -> Option<Vec<TargetId>> {
    if pg.targets.len() < geometry.width() {
        return None;
    }
    let width = pg.targets.len();
    Some((0..geometry.width()).map(|index| pg.targets[geometry.member(write, index, width)]).collect())
}

/// What a group offers to a write.
#[derive(Debug, Clone, Copy)]
struct Offer {
    pg: PgId,
    /// Members that take writes and are not suspected.
    well: usize,
    /// Members that take writes, as the zone believes.
    up: usize,
    /// Of these: members that did not just say that they are full.
    room: usize,
    /// Free share of the fullest member.
    free: f64,
    /// Writes of this client in flight to the busiest member.
    busy: u32,
}

fn offer(inner: &Inner, map: &Map, geometry: &Geometry, write: &WriteId, pg: &Pg) -> Option<Offer> {
    let targets = members(geometry, write, pg)?;
    let mut offer = Offer { pg: pg.id, well: 0, up: 0, room: 0, free: 1.0, busy: 0 };
    for target in targets {
        if !map.is_writable(target) {
            continue;
        }
        offer.up += 1;
        if !inner.health.is_full(target) {
            offer.room += 1;
            offer.well += usize::from(!inner.health.is_suspected(target));
        }
        offer.busy = offer.busy.max(inner.health.writes(target));
        let capacity = map.target(target).map_or(0, |target| target.capacity_bytes);
        if let (Some(free), true) = (inner.view.free_bytes(target), capacity > 0) {
            offer.free = offer.free.min(free as f64 / capacity as f64);
        }
    }
    Some(offer)
}

/// The better of two: more members that are well, then emptier, then less busy.
fn better(a: Offer, b: Offer) -> Offer {
    if a.well != b.well {
        return if a.well > b.well { a } else { b };
    }
    if (a.free - b.free).abs() > FREE_SAME {
        return if a.free > b.free { a } else { b };
    }
    if b.busy < a.busy { b } else { a }
}

/// Chooses a group for stripes of a write. Groups in `avoid` are taken only when there is no other.
///
/// # Errors
/// [`Error::Unavailable`] when no group has enough members that take writes; [`Error::Full`] when they had for want of room.
pub(crate) fn choose(
    inner: &Inner,
    map: &Map,
    class: &str,
    geometry: &Geometry,
    write: &WriteId,
    avoid: &HashSet<PgId>,
) -> Result<PgId, Error> {
    let pgs = map.pgs_of_class(class);
    if pgs.is_empty() {
        return Err(Error::unavailable("the zone has no placement groups for the storage class yet"));
    }
    let (mut best, mut wells, mut full) = (None, 0, false);
    let start = rand::rng().random_range(0..pgs.len());
    let step = stride(pgs.len());
    for look in 0..pgs.len().min(LOOKS_MAX) {
        let Some(pg) = map.pg(pgs[(start + look * step) % pgs.len()]) else { continue };
        let Some(offer) = offer(inner, map, geometry, write, pg) else { continue };
        if avoid.contains(&pg.id) || offer.up < geometry.acknowledge() {
            continue;
        }
        if offer.room < geometry.acknowledge() {
            full = true;
            continue;
        }
        best = Some(best.map_or(offer, |best| better(best, offer)));
        wells += usize::from(offer.well == geometry.width());
        // Two in full health: the second choice is made.
        if wells == 2 {
            break;
        }
    }
    match best {
        // Fewer than the acknowledgement number are well: all the same better tried than refused, when they are up.
        Some(best) => Ok(best.pg),
        None if !avoid.is_empty() => choose(inner, map, class, geometry, write, &HashSet::new()),
        None if full => Err(Error::full("too many targets of every placement group are full")),
        None => Err(Error::unavailable("too few healthy targets in every placement group")),
    }
}

/// A random step that visits all of `count` places.
fn stride(count: usize) -> usize {
    let gcd = |mut a: usize, mut b: usize| {
        while b != 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    let step = rand::rng().random_range(1..=count);
    if gcd(step, count) == 1 { step } else { 1 }
}
