//! Stores one stripe: codes it, sends its shards to a placement group, acknowledges at the design's number, and goes to
//! another group when that number is not reached.
//!
//! A shard's id does not name its group, and groups share targets: what one attempt left on a target is what another finds
//! there and counts as stored. So nothing of a stripe is deleted while it is being tried. Once it is stored, what other
//! attempts sent is deleted where the group that took it has no use for it; when the write is given up, all of it.
//!
//! What a crash leaves: shards that nobody owns; the reconciler finds them.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use holdfast_proto::data::{ObjectRef, ShardMeta};
use holdfast_proto::id::{PgId, ShardId, TargetId, WriteId};
use holdfast_proto::limits::BLOCK_BYTES;
use holdfast_proto::v1::Scheme;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::cluster::Inner;
use crate::codec::codec_for;
use crate::error::Error;
use crate::geometry::Geometry;
use crate::map::Pg;
use crate::place::{choose, members};
use crate::shard;

/// A stripe that has not reached its acknowledgement number after this long is tried elsewhere.
const ATTEMPT_MAX: Duration = Duration::from_secs(5);
/// Bounds of the wait for the last shards after the acknowledgement; within them, twice as
/// long again as that took. What is not waited for is repaired, which costs far more than a wait.
const GRACE_MIN: Duration = Duration::from_millis(50);
const GRACE_MAX: Duration = Duration::from_secs(1);

/// What all stripes of one write share.
#[derive(Debug)]
pub(crate) struct Writing {
    pub(crate) write: WriteId,
    pub(crate) geometry: Geometry,
    pub(crate) scheme: Scheme,
    pub(crate) class: String,
    /// The group that the next stripe goes to, and those that failed.
    pub(crate) groups: Mutex<Groups>,
    /// Shards under way, over all stripes and attempts.
    pub(crate) puts: TaskTracker,
}

#[derive(Debug, Default)]
pub(crate) struct Groups {
    pub(crate) current: Option<PgId>,
    pub(crate) failed: HashSet<PgId>,
    /// What was sent of each stripe, by all its attempts: what has to be deleted when the write is given up.
    pub(crate) sent: HashMap<u32, HashSet<Place>>,
}

/// A shard of a stripe on a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    pub(crate) index: u8,
    pub(crate) target: TargetId,
}

/// The places of a whole stripe in a group; none when the group is too narrow.
fn places(writing: &Writing, pg: &Pg) -> Option<Vec<Place>> {
    let targets = members(&writing.geometry, &writing.write, pg)?;
    Some((0u8..).zip(targets).map(|(index, target)| Place { index, target }).collect())
}

/// A stripe's bytes.
#[derive(Debug)]
pub(crate) struct Stripe {
    pub(crate) number: u32,
    /// Data shards one after another, zero-filled.
    pub(crate) data: Bytes,
    pub(crate) object: ObjectRef,
}

/// A coded shard and the blake3 of its blocks.
#[derive(Debug, Clone)]
struct Coded {
    data: Bytes,
    block_hashes: Bytes,
}

/// A stripe that is acknowledged. Its last shards may still be under way, and go on when this is dropped.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) number: u32,
    pub(crate) pg: PgId,
    flight: Flight,
    grace_until: Instant,
}

/// Shards under way to one placement group.
#[derive(Debug)]
struct Flight {
    landed: Arc<AtomicU32>,
    all: u32,
    results: mpsc::UnboundedReceiver<bool>,
    tasks: Vec<AbortHandle>,
    /// All places of the stripe in the group.
    places: Vec<Place>,
    /// Where shards were sent.
    sent: Vec<Place>,
    under_way: usize,
}

impl Stored {
    /// Waits for the last shards, as long as is worth it. Cancel-safe.
    pub(crate) async fn settle(&mut self) {
        let flight = &mut self.flight;
        while flight.under_way > 0 {
            match tokio::time::timeout_at(self.grace_until, flight.results.recv()).await {
                Ok(Some(_)) => flight.under_way -= 1,
                Ok(None) | Err(_) => return,
            }
        }
    }

    /// Gives up what is under way, and the memory that it holds.
    pub(crate) fn give_up(&self) {
        self.flight.tasks.iter().for_each(AbortHandle::abort);
    }

    /// Waits for the last shards for `limit` more. Cancel-safe.
    pub(crate) async fn settle_within(&mut self, limit: Duration) {
        self.grace_until = Instant::now() + limit;
        self.settle().await;
    }

    /// The targets whose shards were sent and have not landed.
    pub(crate) fn targets_under_way(&self) -> Vec<TargetId> {
        let landed = self.flight.landed.load(Ordering::Acquire);
        self.flight
            .sent
            .iter()
            .filter(|place| landed >> place.index & 1 == 0)
            .map(|place| place.target)
            .collect()
    }

    /// Indexes of the shards that have not landed.
    pub(crate) fn missed(&self) -> Vec<u32> {
        let missing = self.flight.all & !self.flight.landed.load(Ordering::Acquire);
        (0..32).filter(|index| missing >> index & 1 == 1).collect()
    }

    /// Whether shards are still under way.
    pub(crate) fn is_under_way(&mut self) -> bool {
        while self.flight.results.try_recv().is_ok() {
            self.flight.under_way -= 1;
        }
        self.flight.under_way > 0
    }
}

/// Codes and hashes a stripe. CPU work: about a millisecond for 4 MiB.
fn encode(writing: &Writing, stripe: &Stripe) -> Result<Vec<Coded>, Error> {
    let geometry = &writing.geometry;
    let each = geometry.shard_bytes(stripe.number) as usize;
    let mut shards: Vec<Bytes> =
        (0..geometry.data()).map(|index| stripe.data.slice(index * each..(index + 1) * each)).collect();
    if geometry.is_copies() {
        let copy = Coded { block_hashes: block_hashes(&shards[0]), data: shards[0].clone() };
        return Ok(vec![copy; geometry.width()]);
    }
    let codec = codec_for(&writing.scheme).map_err(|bad| Error::internal(bad.to_string()))?;
    let mut parity: Vec<BytesMut> =
        (geometry.data()..geometry.width()).map(|_| BytesMut::zeroed(each)).collect();
    {
        let data: Vec<&[u8]> = shards.iter().map(AsRef::as_ref).collect();
        let mut coded: Vec<&mut [u8]> = parity.iter_mut().map(AsMut::as_mut).collect();
        codec.encode(&data, &mut coded).map_err(|bad| Error::internal(bad.to_string()))?;
    }
    shards.extend(parity.into_iter().map(BytesMut::freeze));
    Ok(shards.into_iter().map(|data| Coded { block_hashes: block_hashes(&data), data }).collect())
}

/// The blake3 of each block of a shard, as its header holds them.
pub(crate) fn block_hashes(data: &[u8]) -> Bytes {
    let mut hashes = BytesMut::with_capacity(data.len().div_ceil(BLOCK_BYTES) * 32);
    for block in data.chunks(BLOCK_BYTES) {
        hashes.extend_from_slice(blake3::hash(block).as_bytes());
    }
    hashes.freeze()
}

/// Stores a stripe durably. What attempts that failed have left over is deleted in the background once it is stored; the
/// caller deletes what is in [`Groups::sent`] when it gives the write up.
///
/// # Errors
/// [`Error::Unavailable`] when no group took it before the stripe deadline; [`Error::Full`] when none has room.
pub(crate) async fn store(
    inner: &Arc<Inner>,
    writing: &Arc<Writing>,
    stripe: Stripe,
) -> Result<Stored, Error> {
    let deadline = Instant::now() + inner.config.stripe_deadline;
    let shards = encode(writing, &stripe)?;
    let mut failed: Vec<TaskTracker> = Vec::new();
    loop {
        let map = inner.map();
        let pg = {
            let mut groups = writing.groups.lock();
            let pg = match groups.current {
                Some(pg) => pg,
                None => {
                    choose(inner, &map, &writing.class, &writing.geometry, &writing.write, &groups.failed)?
                }
            };
            groups.current = Some(pg);
            pg
        };
        let limit = deadline.min(Instant::now() + ATTEMPT_MAX);
        let puts = TaskTracker::new();
        let fault = match attempt(inner, writing, &stripe, &shards, pg, &puts, limit).await {
            Ok(stored) => {
                if !failed.is_empty() {
                    let left_over = delete_left_over(inner.clone(), writing.clone(), &stored, failed);
                    inner.tasks.spawn(left_over);
                }
                return Ok(stored);
            }
            Err(fault) => fault,
        };
        failed.push(puts);
        metrics::counter!("holdfast_client_stripe_attempts_failed_total").increment(1);
        tracing::info!(write = %writing.write, stripe = stripe.number, %pg, %fault, "stripe goes to another placement group");
        {
            let mut groups = writing.groups.lock();
            groups.failed.insert(pg);
            if groups.current == Some(pg) {
                groups.current = None;
            }
        }
        // Every group of a small zone may have failed once: a short pause, then they are tried again.
        let pause = Duration::from_millis(rand::random_range(20..120));
        if Instant::now() + pause >= deadline {
            return Err(Error::unavailable(format!(
                "stripe {} was not stored in time: {fault}",
                stripe.number
            )));
        }
        tokio::time::sleep(pause).await;
    }
}

/// Waits until no shard is under way: a shard that lands after its deletion would stay. Each has a deadline of its own.
pub(crate) async fn settled(puts: &TaskTracker) {
    puts.close();
    puts.wait().await;
}

async fn attempt(
    inner: &Arc<Inner>,
    writing: &Arc<Writing>,
    stripe: &Stripe,
    shards: &[Coded],
    pg: PgId,
    puts: &TaskTracker,
    limit: Instant,
) -> Result<Stored, Error> {
    let begin = Instant::now();
    let mut flight = launch(inner, writing, stripe, shards, pg, puts)?;
    let acknowledge = writing.geometry.acknowledge();
    let mut landed = 0;
    loop {
        if landed >= acknowledge {
            let now = Instant::now();
            let grace = (now.duration_since(begin) * 2).clamp(GRACE_MIN, GRACE_MAX);
            return Ok(Stored { number: stripe.number, pg, flight, grace_until: now + grace });
        }
        if landed + flight.under_way < acknowledge {
            return Err(Error::unavailable(format!("{landed} of {acknowledge} shards landed in group {pg}")));
        }
        match tokio::time::timeout_at(limit, flight.results.recv()).await {
            Ok(Some(ok)) => {
                flight.under_way -= 1;
                landed += usize::from(ok);
            }
            Ok(None) => return Err(Error::unavailable("the client is shutting down")),
            Err(_) => {
                return Err(Error::unavailable(format!(
                    "{landed} of {acknowledge} shards landed in group {pg} in time"
                )));
            }
        }
    }
}

/// Deletes what attempts that failed have sent of a stripe that is stored now, when it has landed or never will. What lies
/// where the stripe belongs stays: the attempt that stored it may have counted it.
fn delete_left_over(
    inner: Arc<Inner>,
    writing: Arc<Writing>,
    stored: &Stored,
    failed: Vec<TaskTracker>,
) -> impl Future<Output = ()> + use<> {
    let (number, pg) = (stored.number, stored.pg);
    let mut kept: HashSet<Place> = stored.flight.places.iter().copied().collect();
    async move {
        for puts in &failed {
            settled(puts).await;
        }
        if inner.cancel.is_cancelled() {
            return;
        }
        // The group may have new members since, and repair may have found there what an attempt had left.
        if let Some(moved) = inner.map().pg(pg).and_then(|pg| places(&writing, pg)) {
            kept.extend(moved);
        }
        let sent = writing.groups.lock().sent.get(&number).cloned().unwrap_or_default();
        let left_over = sent.difference(&kept).map(|place| (number, *place));
        crate::discard::delete_shards(&inner, &writing.write, left_over).await;
    }
}

/// Sends the shards. Members that are down or suspected are left out while enough others remain.
fn launch(
    inner: &Arc<Inner>,
    writing: &Arc<Writing>,
    stripe: &Stripe,
    shards: &[Coded],
    pg_id: PgId,
    puts: &TaskTracker,
) -> Result<Flight, Error> {
    let map = inner.map();
    let pg = map.pg(pg_id).ok_or_else(|| Error::unavailable(format!("group {pg_id} is not in the map")))?;
    let places =
        places(writing, pg).ok_or_else(|| Error::unavailable(format!("group {pg_id} is too narrow")))?;
    let up: Vec<Place> = places.iter().copied().filter(|place| map.is_writable(place.target)).collect();
    let well: Vec<Place> = up
        .iter()
        .copied()
        .filter(|place| !inner.health.is_suspected(place.target) && !inner.health.is_full(place.target))
        .collect();
    let sent = if well.len() >= writing.geometry.acknowledge() { well } else { up };
    writing.groups.lock().sent.entry(stripe.number).or_default().extend(&sent);

    let (send, results) = mpsc::unbounded_channel();
    let landed = Arc::new(AtomicU32::new(0));
    let all = ((1u64 << places.len()) - 1) as u32;
    let mut tasks = Vec::with_capacity(sent.len());
    let under_way = sent.len();
    for Place { index, target } in sent.iter().copied() {
        let id = ShardId { write: writing.write, stripe: stripe.number, index };
        let coded = &shards[usize::from(index)];
        let meta = ShardMeta {
            shard: Bytes::copy_from_slice(&id.to_bytes()),
            pg: pg_id.get(),
            scheme: Some(writing.scheme),
            length: coded.data.len() as u32,
            object: Some(stripe.object.clone()),
            block_hashes: coded.block_hashes.clone(),
        };
        let (inner, map, epoch, data) = (inner.clone(), map.clone(), pg.epoch, coded.data.clone());
        let (send, landed, cancel) = (send.clone(), landed.clone(), inner.cancel.clone());
        let task = inner.tasks.clone().spawn(writing.puts.track_future(puts.track_future(async move {
            let stored = tokio::select! {
                () = cancel.cancelled() => false,
                stored = shard::put(&inner, &map, target, epoch, meta, data) => match stored {
                    Ok(()) => true,
                    Err(fault) => {
                        tracing::debug!(shard = %id, %target, %fault, "shard was not stored");
                        false
                    }
                },
            };
            if stored {
                landed.fetch_or(1 << index, Ordering::AcqRel);
            }
            // Nobody listens any more once the write has been committed or given up.
            let _ = send.send(stored);
        })));
        tasks.push(task.abort_handle());
    }
    Ok(Flight { landed, all, results, tasks, places, sent, under_way })
}
