//! What the gateway hands to a write: where the bytes come from, and what the write is for.

use std::future::Future;

use bytes::Bytes;
use holdfast_proto::hlc::Hlc;
use holdfast_proto::id::{BucketId, PartNumber, UploadId};
use holdfast_proto::meta::{Body, MissedShard, ObjectHeaders};

/// Where a body's bytes come from, in order.
///
/// Laws: the chunks before `None` add up to the declared length of the write exactly, else `next` gives an error; a
/// digest that does not match is an error too. Either comes before `None`, and nothing of the last stripe is written
/// before `None`. After `None` or an error `next` is not called again.
pub trait BodySource: Send {
    /// The source's own error, handed back as it is.
    type Error: Send;

    /// The next bytes, `None` at the end. Need not be cancel-safe.
    fn next(&mut self) -> impl Future<Output = Option<Result<Bytes, Self::Error>>> + Send;

    /// After `None`: the MD5 of all bytes, where the source computes one. It is stored with the last stripe.
    fn md5(&mut self) -> Option<[u8; 16]>;
}

/// A body that is already in memory, without an MD5.
impl BodySource for Option<Bytes> {
    type Error = std::convert::Infallible;

    async fn next(&mut self) -> Option<Result<Bytes, Self::Error>> {
        self.take().map(Ok)
    }

    fn md5(&mut self) -> Option<[u8; 16]> {
        None
    }
}

/// What a write is for. It travels into every shard's header, so that metadata can be rebuilt from shards.
#[derive(Debug, Clone)]
pub struct WriteIntent {
    /// The bucket it is written to.
    pub bucket: BucketId,
    /// The object's key.
    pub key: Bytes,
    /// The upload and part it is, when it is one.
    pub upload: Option<(UploadId, PartNumber)>,
    /// Exact number of bytes.
    pub length: u64,
    /// The storage class; empty is STANDARD.
    pub storage_class: String,
    /// The S3 headers, stored with stripe 0.
    pub headers: Option<ObjectHeaders>,
}

/// A body that is stored durably and owned by nobody yet: commit it, or discard it.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredBody {
    /// Where it is: goes into the version or part row.
    pub body: Body,
    /// Shards that had not landed: goes into the same commit.
    pub missed: Vec<MissedShard>,
    /// When the write began.
    pub begin: Hlc,
}
