//! Reads bodies and objects as a stream of proven bytes, a stripe or two ahead of the reader.
//!
//! Stripes are read by tasks of their own, which take what targets send whether or not the reader is slow: a slow reader
//! holds memory (bounded), never a connection that others share.

use std::collections::VecDeque;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::Stream;
use holdfast_proto::hlc::Hlc;
use holdfast_proto::limits::SHARD_BYTES_MAX;
use holdfast_proto::meta::{Body, ObjectFound};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_util::task::AbortOnDropHandle;

use crate::cluster::{Cluster, Inner};
use crate::error::Error;
use crate::layout::{Coded, Layout};
use crate::read::read_stripe;
use crate::reads::OpenRead;

/// Stripes of one body that are read at the same time.
const STRIPES_AHEAD_MAX: usize = 2;

/// Bytes of a body, in order. Dropping it stops the reads.
pub struct BodyReader {
    inner: Arc<Inner>,
    segments: VecDeque<Segment>,
    running: VecDeque<Running>,
    peeked: Option<Result<Bytes, Error>>,
    ended: bool,
    /// What is read is kept until then.
    _open: OpenRead,
}

impl std::fmt::Debug for BodyReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BodyReader").field("segments", &self.segments.len()).finish_non_exhaustive()
    }
}

/// A piece of what is still to be read.
#[derive(Debug)]
enum Segment {
    Bytes(Bytes),
    /// Bytes of a coded body.
    Coded(Arc<Coded>, Range<u64>),
    Bad(Error),
}

/// A stripe being read.
struct Running {
    chunks: mpsc::UnboundedReceiver<Result<Bytes, Error>>,
    left: u64,
    _task: AbortOnDropHandle<()>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Cluster {
    /// Reads bytes `range` of a stored body.
    pub fn read_body(&self, body: &Body, range: Range<u64>) -> BodyReader {
        let mut reader = self.reader();
        reader.push(body, range);
        reader
    }

    /// Reads bytes `range` of an object, plain or multipart; `found` has all parts that the range touches.
    pub fn read_object(&self, found: &ObjectFound, range: Range<u64>) -> BodyReader {
        let mut reader = self.reader();
        let Some(version) = &found.version else {
            reader.segments.push_back(Segment::Bad(Error::internal("an object without a version row")));
            return reader;
        };
        if let Some(body) = &version.body {
            reader.push(body, range);
            return reader;
        }
        let mut at = range.start;
        for part in &found.parts {
            let Some(row) = &part.row else { continue };
            let (start, end) = (range.start.max(part.offset), range.end.min(part.offset + row.size));
            if start >= end {
                continue;
            }
            match &row.body {
                Some(body) if start == at => reader.push(body, start - part.offset..end - part.offset),
                _ => break,
            }
            at = end;
        }
        if at < range.end {
            let missing = format!("byte {at} is in none of the parts");
            reader.segments.push_back(Segment::Bad(Error::internal(missing)));
        }
        reader
    }

    fn reader(&self) -> BodyReader {
        BodyReader {
            inner: self.inner.clone(),
            segments: VecDeque::new(),
            running: VecDeque::new(),
            peeked: None,
            ended: false,
            _open: self.inner.open_reads.begin(self.now()),
        }
    }

    /// When the oldest read of a body that is under way began; now, when none is.
    pub fn oldest_read(&self) -> Hlc {
        // Before it is looked: a read that begins in between began later.
        let now = self.now();
        self.inner.open_reads.oldest().map_or(now, |oldest| oldest.min(now))
    }
}

impl BodyReader {
    fn push(&mut self, body: &Body, range: Range<u64>) {
        let segment = if range.start > range.end || range.end > body.length {
            Segment::Bad(Error::invalid(format!("bytes {range:?} of a body of {}", body.length)))
        } else {
            match Layout::of(body) {
                Ok(Layout::Inline(bytes)) => {
                    Segment::Bytes(bytes.slice(range.start as usize..range.end as usize))
                }
                Ok(Layout::Coded(coded)) => Segment::Coded(Arc::from(coded), range),
                Err(error) => Segment::Bad(error),
            }
        };
        self.segments.push_back(segment);
    }

    /// Waits until the first bytes are here and proven (at once for an empty range), so that a body that cannot be read
    /// fails before anything of it was sent. Cancel-safe.
    ///
    /// # Errors
    /// [`Error::Lost`], [`Error::Unavailable`]; the stream then ends with the same error.
    pub async fn first(&mut self) -> Result<(), Error> {
        if self.peeked.is_none() {
            self.peeked = std::future::poll_fn(|cx| self.poll_chunk(cx)).await;
        }
        match &self.peeked {
            Some(Err(error)) => Err(error.clone()),
            Some(Ok(_)) | None => Ok(()),
        }
    }

    /// Starts reads: one always, more while there is memory for them.
    fn top_up(&mut self) {
        while self.running.len() < STRIPES_AHEAD_MAX {
            let Some(Segment::Coded(coded, range)) = self.segments.front_mut() else { return };
            let Some((stripe, in_stripe)) = coded.geometry.stripes_of(range.clone()).next() else {
                self.segments.pop_front();
                continue;
            };
            let mut permit = None;
            if !self.running.is_empty() {
                let kib = (coded.geometry.data() * SHARD_BYTES_MAX) >> 10;
                permit = self.inner.read_ahead.clone().try_acquire_many_owned(kib as u32).ok();
                if permit.is_none() {
                    return;
                }
            }
            let coded = coded.clone();
            range.start = coded.geometry.stripe_offset(stripe) + in_stripe.end;
            if range.start >= range.end {
                self.segments.pop_front();
            }
            self.running.push_back(start(&self.inner, coded, stripe, in_stripe, permit));
        }
    }

    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Error>>> {
        loop {
            if self.ended {
                return Poll::Ready(None);
            }
            self.top_up();
            let Some(running) = self.running.front_mut() else {
                match self.segments.pop_front() {
                    Some(Segment::Bytes(bytes)) if bytes.is_empty() => continue,
                    Some(Segment::Bytes(bytes)) => return Poll::Ready(Some(Ok(bytes))),
                    Some(Segment::Bad(error)) => return Poll::Ready(Some(self.end(error))),
                    Some(Segment::Coded(..)) => continue,
                    None => {
                        self.ended = true;
                        continue;
                    }
                }
            };
            match running.chunks.poll_recv(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Ok(bytes))) => {
                    running.left = running.left.saturating_sub(bytes.len() as u64);
                    return Poll::Ready(Some(Ok(bytes)));
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(self.end(error))),
                Poll::Ready(None) if running.left == 0 => {
                    self.running.pop_front();
                }
                Poll::Ready(None) => {
                    let error = Error::unavailable("the read was stopped");
                    return Poll::Ready(Some(self.end(error)));
                }
            }
        }
    }

    fn end(&mut self, error: Error) -> Result<Bytes, Error> {
        self.ended = true;
        self.running.clear();
        self.segments.clear();
        Err(error)
    }
}

fn start(
    inner: &Arc<Inner>,
    coded: Arc<Coded>,
    stripe: u32,
    range: Range<u64>,
    permit: Option<OwnedSemaphorePermit>,
) -> Running {
    let (send, chunks) = mpsc::unbounded_channel();
    let left = range.end - range.start;
    let (reader, cancel) = (inner.clone(), inner.cancel.clone());
    let task = inner.tasks.spawn(async move {
        let outcome = tokio::select! {
            () = cancel.cancelled() => Err(Error::unavailable("the client is shutting down")),
            outcome = read_stripe(reader, coded, stripe, range, &send) => outcome,
        };
        if let Err(error) = outcome {
            // A reader that was dropped does not need to know.
            let _ = send.send(Err(error));
        }
    });
    Running { chunks, left, _task: AbortOnDropHandle::new(task), _permit: permit }
}

impl Stream for BodyReader {
    type Item = Result<Bytes, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match self.peeked.take() {
            Some(chunk) => Poll::Ready(Some(chunk)),
            None => self.poll_chunk(cx),
        }
    }
}
