//! Stores bodies: source -> stripes -> codec -> shards, several stripes at a time in bounded memory.
//!
//! A body that is returned is durable and owned by nobody: the commit of a version or part makes it owned. A write that is
//! given up, or whose future is dropped, deletes what it has stored in the background; what a crash leaves is the
//! reconciler's.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use holdfast_proto::data::ObjectRef;
use holdfast_proto::hlc::Hlc;
use holdfast_proto::id::{PgId, WriteId};
use holdfast_proto::limits::{INLINE_BYTES_MAX, PUT_BYTES_MAX};
use holdfast_proto::meta::{Body, MissedShard};
use prost::Message;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinSet;
use tokio_util::task::TaskTracker;

use crate::cluster::{Cluster, Inner, random_bytes};
use crate::error::{Error, PutError};
use crate::geometry::Geometry;
use crate::layout::extents;
use crate::renew;
use crate::shard::PUT_MAX;
use crate::source::{BodySource, StoredBody, WriteIntent};
use crate::stripe::{self, Groups, Stored, Stripe, Writing};

/// Stripes of one body in flight.
const STRIPES_IN_FLIGHT_MAX: usize = 4;
/// Acknowledged stripes of one body whose last shards are still under way.
const STRIPES_LAGGING_MAX: usize = 3;

impl Cluster {
    /// Stores a body durably, under a fresh write id. Not cancel-safe: dropping the future gives the write up.
    ///
    /// # Errors
    /// [`PutError::Source`] with the source's error; [`PutError::Cluster`] with [`Error::Unavailable`] when too few
    /// healthy targets take it, [`Error::Invalid`] when the source breaks its law. Nothing is owned after an error.
    pub async fn put_body<S: BodySource>(
        &self,
        intent: WriteIntent,
        source: &mut S,
    ) -> Result<StoredBody, PutError<S::Error>> {
        let write = WriteId::from_bytes(random_bytes());
        let begin = self.now();
        if intent.length > PUT_BYTES_MAX {
            return Err(Error::invalid(format!("a body of {} bytes", intent.length)).into());
        }
        if intent.length <= INLINE_BYTES_MAX as u64 {
            let mut buffer = BytesMut::with_capacity(intent.length as usize);
            let mut rest = Bytes::new();
            fill(source, &mut rest, &mut buffer, intent.length as usize).await?;
            finish(source, &rest).await?;
            let body = Body {
                write: write.to_wire(),
                length: intent.length,
                inline: Some(buffer.freeze()),
                extents: vec![],
            };
            return Ok(StoredBody { body, missed: vec![], begin });
        }
        let mut pipeline = Pipeline::new(self.inner.clone(), &intent, write, begin)?;
        let _under_way = renew::Writing::begin(&self.inner, &intent, write);
        let stripes = pipeline.writing.geometry.stripes();
        let mut rest = Bytes::new();
        for number in 0..stripes {
            let permit = pipeline.make_room().await?;
            let geometry = pipeline.writing.geometry;
            let held = geometry.shard_bytes(number) as usize * geometry.data();
            let mut buffer = BytesMut::with_capacity(held);
            fill(source, &mut rest, &mut buffer, geometry.stripe_bytes(number) as usize).await?;
            buffer.resize(held, 0);
            let mut md5 = None;
            if number + 1 == stripes {
                finish(source, &rest).await?;
                md5 = source.md5();
            }
            pipeline.send(&intent, number, buffer.freeze(), md5, permit);
        }
        Ok(pipeline.complete().await?)
    }
}

/// Moves `wanted` bytes from the source into the buffer; `rest` is what was left of its last chunk.
async fn fill<S: BodySource>(
    source: &mut S,
    rest: &mut Bytes,
    buffer: &mut BytesMut,
    wanted: usize,
) -> Result<(), PutError<S::Error>> {
    while buffer.len() < wanted {
        if rest.is_empty() {
            match source.next().await {
                Some(Ok(chunk)) => *rest = chunk,
                Some(Err(error)) => return Err(PutError::Source(error)),
                None => return Err(Error::invalid("the body ended before its declared length").into()),
            }
        }
        let take = rest.split_to(rest.len().min(wanted - buffer.len()));
        buffer.extend_from_slice(&take);
    }
    Ok(())
}

/// Reads the source's end: its checks come before the last stripe is written.
async fn finish<S: BodySource>(source: &mut S, rest: &Bytes) -> Result<(), PutError<S::Error>> {
    let mut longer = !rest.is_empty();
    while !longer {
        match source.next().await {
            None => return Ok(()),
            Some(Ok(chunk)) => longer = !chunk.is_empty(),
            Some(Err(error)) => return Err(PutError::Source(error)),
        }
    }
    Err(Error::invalid("the body is longer than declared").into())
}

/// One body under way.
struct Pipeline {
    inner: Arc<Inner>,
    writing: Arc<Writing>,
    begin: Hlc,
    in_flight: JoinSet<Result<Stored, Error>>,
    groups: Vec<Option<PgId>>,
    lagging: VecDeque<Stored>,
    missed: Vec<MissedShard>,
    done: bool,
}

impl Pipeline {
    fn new(inner: Arc<Inner>, intent: &WriteIntent, write: WriteId, begin: Hlc) -> Result<Self, Error> {
        let map = inner.map();
        let class = map
            .class(&intent.storage_class)
            .or_else(|| map.class(crate::map::CLASS_DEFAULT))
            .ok_or_else(|| Error::unavailable("the zone has no storage class yet"))?;
        let scheme = map.scheme_for(class, intent.length)?;
        let geometry = Geometry::new(&scheme, intent.length)?;
        let class = class.name.clone();
        let writing = Writing {
            write,
            geometry,
            scheme,
            class,
            groups: parking_lot::Mutex::new(Groups::default()),
            puts: TaskTracker::new(),
        };
        Ok(Self {
            inner,
            writing: Arc::new(writing),
            begin,
            in_flight: JoinSet::new(),
            groups: vec![None; geometry.stripes() as usize],
            lagging: VecDeque::new(),
            missed: Vec::new(),
            done: false,
        })
    }

    /// Waits until another stripe may be in flight. The first of a body always may; others need a share of the memory
    /// that all bodies have together.
    async fn make_room(&mut self) -> Result<Option<OwnedSemaphorePermit>, Error> {
        while let Some(joined) = self.in_flight.try_join_next() {
            self.take(joined).await?;
        }
        let kib = (self.writing.geometry.width() * holdfast_proto::limits::SHARD_BYTES_MAX) >> 10;
        loop {
            if self.in_flight.is_empty() {
                return Ok(None);
            }
            if self.in_flight.len() < STRIPES_IN_FLIGHT_MAX
                && let Ok(permit) = self.inner.write_ahead.clone().try_acquire_many_owned(kib as u32)
            {
                return Ok(Some(permit));
            }
            if let Some(joined) = self.in_flight.join_next().await {
                self.take(joined).await?;
            }
        }
    }

    fn send(
        &mut self,
        intent: &WriteIntent,
        number: u32,
        data: Bytes,
        md5: Option<[u8; 16]>,
        permit: Option<OwnedSemaphorePermit>,
    ) {
        let headers = match (&intent.headers, number) {
            (Some(headers), 0) => Bytes::from(headers.encode_to_vec()),
            _ => Bytes::new(),
        };
        let object = ObjectRef {
            bucket: intent.bucket.to_wire(),
            key: intent.key.clone(),
            begin_hlc: self.begin.get(),
            upload: intent.upload.map(|(upload, _)| upload.to_wire()).unwrap_or_default(),
            part: intent.upload.map_or(0, |(_, part)| u32::from(part.get())),
            offset: self.writing.geometry.stripe_offset(number),
            declared_length: intent.length,
            headers,
            md5: md5.map(|md5| Bytes::copy_from_slice(&md5)).unwrap_or_default(),
        };
        let (inner, writing) = (self.inner.clone(), self.writing.clone());
        self.in_flight.spawn(async move {
            let stored = stripe::store(&inner, &writing, Stripe { number, data, object }).await;
            drop(permit);
            stored
        });
    }

    /// Takes in a stripe that is acknowledged. When too many of the body lag, the oldest gets what is left of its grace
    /// and is then given up.
    async fn take(
        &mut self,
        joined: Result<Result<Stored, Error>, tokio::task::JoinError>,
    ) -> Result<(), Error> {
        let stored = joined.map_err(|bad| Error::internal(format!("a stripe's task: {bad}")))??;
        self.groups[stored.number as usize] = Some(stored.pg);
        self.lagging.push_back(stored);
        for mut stored in std::mem::take(&mut self.lagging) {
            match stored.is_under_way() {
                true => self.lagging.push_back(stored),
                false => self.note_missed(&stored),
            }
        }
        if self.lagging.len() > STRIPES_LAGGING_MAX
            && let Some(mut oldest) = self.lagging.pop_front()
        {
            oldest.settle().await;
            self.note_missed(&oldest);
            if oldest.is_under_way() {
                self.note_late(&oldest);
                oldest.give_up();
            }
        }
        Ok(())
    }

    fn note_missed(&mut self, stored: &Stored) {
        self.missed
            .extend(stored.missed().into_iter().map(|index| MissedShard { stripe: stored.number, index }));
    }

    fn note_late(&self, stored: &Stored) {
        stored.targets_under_way().into_iter().for_each(|target| self.inner.health.late(target));
    }

    async fn complete(mut self) -> Result<StoredBody, Error> {
        while let Some(joined) = self.in_flight.join_next().await {
            self.take(joined).await?;
        }
        while let Some(mut stored) = self.lagging.pop_front() {
            stored.settle().await;
            self.note_missed(&stored);
            if stored.is_under_way() {
                self.leave_behind(stored);
            }
        }
        let groups: Vec<PgId> = self
            .groups
            .iter()
            .map(|pg| pg.ok_or_else(|| Error::internal("a stripe was never stored")))
            .collect::<Result<_, _>>()?;
        let Writing { write, geometry, scheme, .. } = &*self.writing;
        let body = Body {
            write: write.to_wire(),
            length: geometry.length(),
            inline: None,
            extents: extents(write, *scheme, geometry, &groups),
        };
        self.missed.sort_unstable_by_key(|shard| (shard.stripe, shard.index));
        if !self.missed.is_empty() {
            metrics::counter!("holdfast_client_missed_shards_total").increment(self.missed.len() as u64);
        }
        self.done = true;
        Ok(StoredBody { body, missed: std::mem::take(&mut self.missed), begin: self.begin })
    }

    /// Lets the last shards go on for a while without anyone waiting, as long as not too many do.
    fn leave_behind(&self, stored: Stored) {
        self.note_late(&stored);
        let Ok(permit) = self.inner.stragglers.clone().try_acquire_owned() else {
            stored.give_up();
            return;
        };
        let cancel = self.inner.cancel.clone();
        self.inner.tasks.spawn(async move {
            let mut stored = stored;
            tokio::select! {
                () = cancel.cancelled() => {}
                () = stored.settle_within(PUT_MAX) => {}
            }
            stored.give_up();
            drop(permit);
        });
    }
}

impl Drop for Pipeline {
    /// A write that is given up deletes what it has stored.
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let mut in_flight = std::mem::take(&mut self.in_flight);
        in_flight.abort_all();
        let (inner, writing) = (self.inner.clone(), self.writing.clone());
        inner.tasks.clone().spawn(async move {
            // A stripe that was being coded sends its shards before it sees that it was aborted.
            while in_flight.join_next().await.is_some() {}
            stripe::settled(&writing.puts).await;
            if inner.cancel.is_cancelled() {
                return;
            }
            let sent = std::mem::take(&mut writing.groups.lock().sent);
            let shards = sent
                .into_iter()
                .flat_map(|(stripe, places)| places.into_iter().map(move |place| (stripe, place)));
            crate::discard::delete_shards(&inner, &writing.write, shards).await;
        });
    }
}
