//! Reads one stripe: the data shards that are wanted, in order; others of the stripe where these are late, bad or gone.
//!
//! Every fetch has a hedge time, the running p95 of its target. A wanted shard whose fetch is past it, or failed, is
//! rebuilt from the same blocks of any k others, whichever come first; fetches that were late may still win. Blocks that were
//! fetched for one shard serve the rebuilding of another.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use holdfast_proto::data::{ObjectRef, ShardBlocks};
use holdfast_proto::error::Fault;
use holdfast_proto::id::{ShardId, TargetId};
use holdfast_proto::v1::FaultKind;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::cluster::Inner;
use crate::codec::codec_for;
use crate::error::Error;
use crate::geometry::{ShardRange, whole_blocks};
use crate::layout::Coded;
use crate::map::Map;
use crate::place::members;
use crate::shard;
use crate::verify::{Expected, verified};

/// Between rounds when too few shards could be read and some may come back.
const ROUND_PAUSE: Duration = Duration::from_millis(100);

/// When everything is late the zone is busy, and hedging would make it busier: see [`crate::health::Health::may_hedge`].
const HEDGE_AGAIN: Duration = Duration::from_millis(50);

/// Targets asked at a time for what is not where it belongs.
const SEARCH_AT_ONCE: usize = 16;

/// Blocks of one shard.
#[derive(Debug, Clone)]
struct Piece {
    start: u32,
    data: Bytes,
}

impl Piece {
    fn of(&self, range: &Range<u32>) -> Option<Bytes> {
        let end = self.start + self.data.len() as u32;
        (self.start <= range.start && range.end <= end)
            .then(|| self.data.slice((range.start - self.start) as usize..(range.end - self.start) as usize))
    }
}

/// Why a shard could not be read.
#[derive(Debug, Clone)]
enum Failure {
    /// It is not there: asking again changes nothing.
    Definite(String),
    /// It is there and its bytes are wrong.
    Bad(String),
    /// The target could not say.
    Passing(String),
}

#[derive(Debug)]
struct InFlight {
    index: usize,
    blocks: Range<u32>,
    hedge_at: Instant,
    late: bool,
}

struct Fetched {
    index: usize,
    blocks: Range<u32>,
    result: Result<(Bytes, ObjectRef), Failure>,
}

/// One stripe being read.
pub(crate) struct StripeRead {
    inner: Arc<Inner>,
    map: Arc<Map>,
    coded: Arc<Coded>,
    stripe: u32,
    /// By shard: the target that is asked, and those to be asked when it does not have it.
    targets: Vec<TargetId>,
    elsewhere: Vec<Vec<TargetId>>,
    /// The targets were given, not found in the map.
    pinned: bool,
    searched: bool,
    have: Vec<Vec<Piece>>,
    failures: Vec<Option<Failure>>,
    fetches: FuturesUnordered<BoxFuture<'static, Fetched>>,
    in_flight: Vec<InFlight>,
    /// What the headers of this stripe's shards say of the object.
    pub(crate) object: Option<ObjectRef>,
}

/// Sends the bytes of `range` (in stripe `stripe`) in order, once all of them are here and proven: a stripe that cannot be
/// read fails before its first byte. Cancel-safe.
///
/// # Errors
/// [`Error::Lost`] when fewer than k shards exist and all others have said so; [`Error::Unavailable`] when the read
/// deadline passes.
pub(crate) async fn read_stripe(
    inner: Arc<Inner>,
    coded: Arc<Coded>,
    stripe: u32,
    range: Range<u64>,
    send: &mpsc::UnboundedSender<Result<Bytes, Error>>,
) -> Result<(), Error> {
    let wanted = coded.geometry.shards_of(stripe, range);
    let mut read = StripeRead::new(inner, coded, stripe)?;
    for chunk in read.gather(&wanted).await? {
        // Nobody listening means that the reader was dropped.
        let _ = send.send(Ok(chunk));
    }
    read.mend();
    Ok(())
}

impl StripeRead {
    /// Of a stripe that is where the newest map says.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when its placement group is not in the map.
    pub(crate) fn new(inner: Arc<Inner>, coded: Arc<Coded>, stripe: u32) -> Result<Self, Error> {
        let mut read = Self::empty(inner, coded, stripe);
        read.locate()?;
        Ok(read)
    }

    /// Of a stripe whose shards are at these targets and nowhere else, by index.
    pub(crate) fn at(
        inner: Arc<Inner>,
        coded: Arc<Coded>,
        stripe: u32,
        holders: impl IntoIterator<Item = Vec<TargetId>>,
    ) -> Self {
        let mut read = Self::empty(inner, coded, stripe);
        read.pinned = true;
        for (index, holders) in holders.into_iter().enumerate() {
            let mut holders = holders.into_iter();
            match holders.next() {
                Some(first) => read.targets.push(first),
                None => {
                    read.targets.push(TargetId::new(0));
                    read.failures[index] = Some(Failure::Definite("nowhere".to_owned()));
                }
            }
            read.elsewhere.push(holders.collect());
        }
        read
    }

    fn empty(inner: Arc<Inner>, coded: Arc<Coded>, stripe: u32) -> Self {
        let width = coded.geometry.width();
        Self {
            map: inner.map(),
            inner,
            coded,
            stripe,
            targets: Vec::new(),
            elsewhere: Vec::new(),
            pinned: false,
            searched: false,
            have: vec![Vec::new(); width],
            failures: vec![None; width],
            fetches: FuturesUnordered::new(),
            in_flight: Vec::new(),
            object: None,
        }
    }

    /// The bytes of all these ranges, proven, from wherever they can be had. Cancel-safe.
    ///
    /// # Errors
    /// [`Error::Lost`] when fewer than k shards exist and all others have said so; [`Error::Unavailable`] when the read
    /// deadline passes.
    pub(crate) async fn gather(&mut self, wanted: &[ShardRange]) -> Result<Vec<Bytes>, Error> {
        let deadline = Instant::now() + self.inner.config.read_deadline;
        self.start(wanted);
        loop {
            if let Some(chunks) = self.take_all(wanted) {
                return Ok(chunks);
            }
            if let Some(blocks) = self.needy_blocks(wanted) {
                if self.rebuild(wanted, &blocks)? {
                    continue;
                }
                if !self.ask_others(&blocks) {
                    self.next_round(deadline).await?;
                    self.start(wanted);
                    continue;
                }
            }
            if !self.wait(deadline).await {
                return Err(Error::unavailable(format!(
                    "{} was not read in time: {}",
                    self.name(),
                    self.why()
                )));
            }
        }
    }

    /// A shard that is not to be read where it belongs: it is about to be written there again.
    pub(crate) fn leave_out(&mut self, index: usize) {
        if !self.go_elsewhere(index) {
            self.failures[index] = Some(Failure::Definite("left out".to_owned()));
        }
    }

    /// Has a shard asked for where it was before, if that is known and was not asked.
    fn go_elsewhere(&mut self, index: usize) -> bool {
        if self.elsewhere[index].is_empty() {
            return false;
        }
        self.targets[index] = self.elsewhere[index].remove(0);
        true
    }

    /// Has the shards that were found bad written again, in the background.
    fn mend(&self) {
        let bad: Vec<usize> = (0..self.failures.len())
            .filter(|index| matches!(self.failures[*index], Some(Failure::Bad(_))))
            .collect();
        if !bad.is_empty() {
            crate::restore::in_background(&self.inner, &self.coded, self.stripe, bad);
        }
    }

    /// Finds the stripe's targets in the newest map: of each shard the member of its place, then those that had the place
    /// before. Where any of them answers reads, the others are not asked.
    fn locate(&mut self) -> Result<(), Error> {
        self.map = self.inner.map();
        if self.pinned {
            return Ok(());
        }
        let Coded { write, geometry, .. } = &*self.coded;
        let pg = self.coded.pg(self.stripe).and_then(|pg| self.map.pg(pg));
        let found = pg.and_then(|pg| members(geometry, write, pg).map(|targets| (pg, targets)));
        let Some((pg, targets)) = found else {
            return Err(Error::unavailable(format!(
                "{}: its placement group is not in the map",
                self.name()
            )));
        };
        self.elsewhere = vec![Vec::new(); targets.len()];
        self.targets = targets;
        if pg.from.is_empty() {
            return Ok(());
        }
        for index in 0..self.targets.len() {
            let place = geometry.member(write, index, pg.targets.len());
            let Some(from) = pg.from.get(&place) else { continue };
            let all = std::iter::once(&self.targets[index]).chain(from);
            let mut readable = all.copied().filter(|target| self.map.is_readable(*target));
            if let Some(first) = readable.next() {
                self.elsewhere[index] = readable.collect();
                self.targets[index] = first;
            }
        }
        Ok(())
    }

    fn name(&self) -> String {
        format!("stripe {} of write {}", self.stripe, self.coded.write)
    }

    fn why(&self) -> String {
        let failures = self.failures.iter().enumerate().filter_map(|(index, failure)| match failure {
            Some(Failure::Definite(what) | Failure::Bad(what) | Failure::Passing(what)) => {
                Some(format!("shard {index}: {what}"))
            }
            None => None,
        });
        failures.collect::<Vec<_>>().join("; ")
    }

    fn shard_bytes(&self) -> u32 {
        self.coded.geometry.shard_bytes(self.stripe)
    }

    fn is_well(&self, index: usize) -> bool {
        self.map.is_readable(self.targets[index]) && !self.inner.health.is_suspected(self.targets[index])
    }

    /// Fetches what is wanted from where it is; of copies, from the quickest that is well.
    fn start(&mut self, wanted: &[ShardRange]) {
        if self.coded.geometry.is_copies() {
            if let Some(all) = union(wanted, self.shard_bytes()) {
                self.ask_others(&all);
            }
            return;
        }
        for wanted in wanted {
            let is_open = self.is_needy(wanted) && self.failures[wanted.index].is_none();
            if is_open && self.is_well(wanted.index) {
                self.fetch(wanted.index, whole_blocks(&wanted.bytes, self.shard_bytes()));
            }
        }
    }

    fn fetch(&mut self, index: usize, blocks: Range<u32>) {
        let target = self.targets[index];
        let bytes = blocks.end - blocks.start;
        let hedge_at = Instant::now() + self.inner.health.hedge_after(target, bytes as usize);
        self.inner.health.earn_hedge();
        self.in_flight.push(InFlight { index, blocks: blocks.clone(), hedge_at, late: false });
        let geometry = &self.coded.geometry;
        let expected = Expected {
            id: ShardId { write: self.coded.write, stripe: self.stripe, index: index as u8 },
            scheme: self.coded.scheme,
            shard_bytes: self.shard_bytes(),
            stripe_offset: geometry.stripe_offset(self.stripe),
            declared_length: geometry.length(),
            blocks: blocks.clone(),
        };
        let (inner, map) = (self.inner.clone(), self.map.clone());
        self.fetches.push(Box::pin(async move {
            let answer = shard::get(&inner, &map, target, expected.id, blocks.start, bytes).await;
            let result = judge(&inner, target, &expected, answer);
            Fetched { index, blocks, result }
        }));
    }

    /// The bytes of all wanted ranges, when they are here.
    fn take_all(&self, wanted: &[ShardRange]) -> Option<Vec<Bytes>> {
        wanted.iter().map(|wanted| self.held(wanted.index, &wanted.bytes)).collect()
    }

    /// A range of a shard. Of copies any will do.
    fn held(&self, index: usize, range: &Range<u32>) -> Option<Bytes> {
        let pieces = if self.coded.geometry.is_copies() { &self.have[..] } else { &self.have[index..=index] };
        pieces.iter().flatten().find_map(|piece| piece.of(range))
    }

    /// A fetch of a shard's range that is not late.
    fn is_expected(&self, index: usize, range: &Range<u32>) -> bool {
        self.in_flight
            .iter()
            .any(|fetch| fetch.index == index && !fetch.late && contains(&fetch.blocks, range))
    }

    fn is_needy(&self, wanted: &ShardRange) -> bool {
        if self.held(wanted.index, &wanted.bytes).is_some() {
            return false;
        }
        if self.coded.geometry.is_copies() {
            return !(0..self.targets.len()).any(|copy| self.is_expected(copy, &wanted.bytes));
        }
        !self.is_expected(wanted.index, &wanted.bytes)
    }

    /// The blocks that hold everything that is wanted, not here and not expected.
    fn needy_blocks(&self, wanted: &[ShardRange]) -> Option<Range<u32>> {
        let needy: Vec<ShardRange> = wanted.iter().filter(|wanted| self.is_needy(wanted)).cloned().collect();
        union(&needy, self.shard_bytes())
    }

    /// Rebuilds what is needed when k others are here. `false` when they are not.
    fn rebuild(&mut self, wanted: &[ShardRange], blocks: &Range<u32>) -> Result<bool, Error> {
        let geometry = self.coded.geometry;
        if geometry.is_copies() {
            return Ok(false);
        }
        let present: Vec<(usize, Bytes)> =
            (0..geometry.width()).filter_map(|index| Some((index, self.held(index, blocks)?))).collect();
        if present.len() < geometry.data() {
            return Ok(false);
        }
        let missing: Vec<usize> =
            wanted.iter().filter(|wanted| self.is_needy(wanted)).map(|wanted| wanted.index).collect();
        let codec = codec_for(&self.coded.scheme).map_err(|bad| Error::internal(bad.to_string()))?;
        let present: Vec<(usize, &[u8])> =
            present.iter().map(|(index, bytes)| (*index, bytes.as_ref())).collect();
        let rebuilt =
            codec.reconstruct(&present, &missing).map_err(|bad| Error::internal(bad.to_string()))?;
        metrics::counter!("holdfast_client_shards_rebuilt_total").increment(missing.len() as u64);
        for (index, bytes) in missing.into_iter().zip(rebuilt) {
            self.have[index].push(Piece { start: blocks.start, data: bytes.into() });
        }
        Ok(true)
    }

    /// Fetches these blocks of as many other shards as are needed. `false`: not enough can be had in this round.
    fn ask_others(&mut self, blocks: &Range<u32>) -> bool {
        let needed = self.coded.geometry.data();
        let is_here = |read: &Self, index: usize| {
            !read.coded.geometry.is_copies() && read.held(index, blocks).is_some()
        };
        let under_way = |read: &Self, index: usize| {
            read.in_flight.iter().any(|fetch| fetch.index == index && contains(&fetch.blocks, blocks))
        };
        let width = self.targets.len();
        let mut coming =
            (0..width).filter(|index| is_here(self, *index) || self.is_expected(*index, blocks)).count();
        let mut hoped = (0..width).filter(|index| is_here(self, *index) || under_way(self, *index)).count();
        let mut candidates: Vec<usize> = (0..width)
            .filter(|index| {
                self.failures[*index].is_none() && !is_here(self, *index) && !under_way(self, *index)
            })
            .collect();
        let bytes = (blocks.end - blocks.start) as usize;
        candidates.sort_by_cached_key(|index| {
            let latency = self.inner.health.read_latency(self.targets[*index], bytes).unwrap_or_default();
            // Latencies within a factor of two are the same; chance spreads the load.
            let magnitude = 128 - latency.as_micros().leading_zeros();
            (
                !self.is_well(*index),
                !self.map.is_readable(self.targets[*index]),
                magnitude,
                rand::random::<u16>(),
            )
        });
        for index in candidates {
            if coming >= needed {
                break;
            }
            self.fetch(index, blocks.clone());
            (coming, hoped) = (coming + 1, hoped + 1);
        }
        hoped >= needed
    }

    /// Waits for a fetch or a hedge time. `false`: the deadline came first.
    async fn wait(&mut self, deadline: Instant) -> bool {
        let hedge_at = self.in_flight.iter().filter(|fetch| !fetch.late).map(|fetch| fetch.hedge_at).min();
        let until = hedge_at.unwrap_or(deadline).min(deadline);
        tokio::select! {
            biased;
            Some(fetched) = self.fetches.next() => self.absorb(fetched),
            () = tokio::time::sleep_until(until) => {
                let now = Instant::now();
                if now >= deadline {
                    return false;
                }
                for fetch in self.in_flight.iter_mut().filter(|fetch| !fetch.late && fetch.hedge_at <= now) {
                    self.inner.health.late(self.targets[fetch.index]);
                    if self.inner.health.may_hedge() {
                        fetch.late = true;
                        metrics::counter!("holdfast_client_reads_hedged_total").increment(1);
                    } else {
                        fetch.hedge_at = now + HEDGE_AGAIN;
                    }
                }
            }
        }
        true
    }

    fn absorb(&mut self, fetched: Fetched) {
        let same = |fetch: &InFlight| fetch.index == fetched.index && fetch.blocks == fetched.blocks;
        if let Some(at) = self.in_flight.iter().position(same) {
            self.in_flight.swap_remove(at);
        }
        match fetched.result {
            Ok((data, object)) => {
                self.have[fetched.index].push(Piece { start: fetched.blocks.start, data });
                self.object = Some(object);
            }
            Err(_) if self.go_elsewhere(fetched.index) => self.fetch(fetched.index, fetched.blocks),
            Err(failure) => self.failures[fetched.index] = Some(failure),
        }
    }

    /// Before a stripe is given up: asks every target of the zone for the shards that are not where they belong. Whether
    /// any was found. It is never needed while the map is right; a stripe is worth the question.
    async fn search(&mut self) -> bool {
        let absent: Vec<usize> = (0..self.failures.len())
            .filter(|index| matches!(self.failures[*index], Some(Failure::Definite(_))))
            .collect();
        let ids: Vec<ShardId> = absent
            .iter()
            .map(|index| ShardId { write: self.coded.write, stripe: self.stripe, index: *index as u8 })
            .collect();
        let targets: Vec<TargetId> = self.map.readable().collect();
        let mut asked = futures::stream::iter(targets)
            .map(|target| {
                let (inner, map, ids) = (self.inner.clone(), self.map.clone(), ids.clone());
                async move { (target, shard::stat(&inner, &map, target, &ids).await) }
            })
            .buffer_unordered(SEARCH_AT_ONCE);
        let mut found = vec![Vec::new(); absent.len()];
        while let Some((target, present)) = asked.next().await {
            for (at, present) in present.unwrap_or_default().into_iter().enumerate() {
                if present && let Some(found) = found.get_mut(at) {
                    found.push(target);
                }
            }
        }
        drop(asked);
        let mut any = false;
        for (index, found) in absent.into_iter().zip(found) {
            let mut found = found.into_iter();
            if let Some(first) = found.next() {
                (self.targets[index], self.elsewhere[index]) = (first, found.collect());
                self.failures[index] = None;
                any = true;
            }
        }
        if any {
            tracing::warn!(write = %self.coded.write, stripe = self.stripe, "shards were found where they do not belong");
        }
        any
    }

    /// After a round in which too few shards could be had: whether another makes sense.
    async fn next_round(&mut self, deadline: Instant) -> Result<(), Error> {
        let gone = self
            .failures
            .iter()
            .filter(|failure| matches!(failure, Some(Failure::Definite(_) | Failure::Bad(_))))
            .count();
        if gone + self.coded.geometry.data() > self.targets.len() {
            if !self.pinned && !std::mem::replace(&mut self.searched, true) && self.search().await {
                return Ok(());
            }
            metrics::counter!("holdfast_client_stripes_lost_total").increment(1);
            return Err(Error::lost(format!("{}: {}", self.name(), self.why())));
        }
        if Instant::now() + ROUND_PAUSE >= deadline {
            return Err(Error::unavailable(format!("{}: {}", self.name(), self.why())));
        }
        tokio::time::sleep(ROUND_PAUSE).await;
        self.locate()?;
        for failure in &mut self.failures {
            if matches!(failure, Some(Failure::Passing(_))) {
                *failure = None;
            }
        }
        Ok(())
    }
}

/// What an answer is worth.
fn judge(
    inner: &Inner,
    target: TargetId,
    expected: &Expected,
    answer: Result<ShardBlocks, Fault>,
) -> Result<(Bytes, ObjectRef), Failure> {
    match answer {
        Ok(answer) => verified(expected, answer).map_err(|disbelief| {
            inner.bad_shards.report(target, expected.id, &disbelief.to_string());
            Failure::Bad(disbelief.to_string())
        }),
        Err(fault) if fault.kind == FaultKind::Corrupt => {
            inner.bad_shards.report(target, expected.id, &fault.message);
            Err(Failure::Bad(fault.to_string()))
        }
        Err(fault) if fault.kind == FaultKind::ShardAbsent => Err(Failure::Definite(fault.to_string())),
        Err(fault) => Err(Failure::Passing(fault.to_string())),
    }
}

fn contains(outer: &Range<u32>, inner: &Range<u32>) -> bool {
    outer.start <= inner.start && inner.end <= outer.end
}

/// The whole blocks that hold all of these ranges, taken as ranges of one shard.
fn union(ranges: &[ShardRange], shard_bytes: u32) -> Option<Range<u32>> {
    let start = ranges.iter().map(|range| range.bytes.start).min()?;
    let end = ranges.iter().map(|range| range.bytes.end).max()?;
    Some(whole_blocks(&(start..end), shard_bytes))
}
