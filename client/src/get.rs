//! Reads bodies.

use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::Stream;
use holdfast_proto::meta::{Body, ObjectFound};

use crate::cluster::Cluster;
use crate::error::Error;

/// Bytes of a body, in order.
#[derive(Debug)]
pub struct BodyReader {}

impl BodyReader {
    /// Waits until the first bytes are there (at once for an empty range): what comes after is likely to be there too.
    /// Cancel-safe.
    ///
    /// # Errors
    /// [`Error::Lost`], [`Error::Unavailable`].
    pub async fn first(&mut self) -> Result<(), Error> {
        Err(Error::unavailable("being written"))
    }
}

impl Stream for BodyReader {
    type Item = Result<Bytes, Error>;

    fn poll_next(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Poll::Ready(None)
    }
}

impl Cluster {
    /// Reads bytes of a body.
    pub fn read_body(&self, _body: &Body, _range: Range<u64>) -> BodyReader {
        BodyReader {}
    }

    /// Reads bytes of an object.
    pub fn read_object(&self, _found: &ObjectFound, _range: Range<u64>) -> BodyReader {
        BodyReader {}
    }
}
