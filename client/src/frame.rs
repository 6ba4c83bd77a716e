//! gRPC messages on the wire without copying bulk: what tonic's codec does for messages, done for shards.
//!
//! A message is sent as the two buffers that it comes in, and decoded from the HTTP/2 frames as they arrived: a field of
//! `Bytes` that lies in one frame is a slice of it. The wire is plain gRPC ("gRPC over HTTP2", grpc.io): five bytes of header
//! (not compressed, length), then the message.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::header::{HeaderMap, HeaderValue};
use prost::Message;
use tonic::Status;

/// The content type.
pub(crate) const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
/// gRPC's header of a message.
const HEADER_BYTES: usize = 5;
/// A tail up to this size is joined to its head: one frame is cheaper than two.
const JOIN_BYTES_MAX: usize = 16 << 10;

/// One message on its way out: at most two frames, then trailers when it is an answer.
#[derive(Debug)]
pub(crate) struct Framed {
    parts: [Bytes; 2],
    trailers: Option<HeaderMap>,
}

impl Framed {
    /// A message of `head` then `tail`.
    ///
    /// # Errors
    /// When it is longer than gRPC can say.
    pub(crate) fn new(head: BytesMut, tail: Bytes) -> Result<Self, Status> {
        let length = u32::try_from(head.len() + tail.len())
            .map_err(|_| Status::out_of_range("a message of more than 4 GiB"))?;
        let joined = if tail.len() <= JOIN_BYTES_MAX { tail.len() } else { 0 };
        let mut first = BytesMut::with_capacity(HEADER_BYTES + head.len() + joined);
        first.put_u8(0);
        first.put_u32(length);
        first.put(head);
        if joined > 0 {
            first.extend_from_slice(&tail);
        }
        Ok(Self { parts: [first.freeze(), if joined > 0 { Bytes::new() } else { tail }], trailers: None })
    }

    /// The same as an answer that went well.
    pub(crate) fn with_status_ok(mut self) -> Self {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        self.trailers = Some(trailers);
        self
    }
}

impl http_body::Body for Framed {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Infallible>>> {
        let part = self.parts.iter_mut().find(|part| !part.is_empty()).map(std::mem::take);
        let frame = part.map(http_body::Frame::data);
        Poll::Ready(frame.or_else(|| self.trailers.take().map(http_body::Frame::trailers)).map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.trailers.is_none() && self.parts.iter().all(Bytes::is_empty)
    }

    fn size_hint(&self) -> http_body::SizeHint {
        http_body::SizeHint::with_exact(self.parts.iter().map(|part| part.len() as u64).sum())
    }
}

/// Buffers one after another, read as one.
#[derive(Debug, Default)]
pub(crate) struct Rope {
    chunks: VecDeque<Bytes>,
    bytes: usize,
}

impl Rope {
    /// Bytes so far.
    pub(crate) fn len(&self) -> usize {
        self.bytes
    }

    pub(crate) fn push(&mut self, chunk: Bytes) {
        if !chunk.is_empty() {
            self.bytes += chunk.len();
            self.chunks.push_back(chunk);
        }
    }

    /// The one message that this is, with its header.
    ///
    /// # Errors
    /// When it is no message, or not the only one.
    pub(crate) fn decode<M: Message + Default>(mut self) -> Result<M, Status> {
        if self.bytes < HEADER_BYTES || self.get_u8() != 0 {
            return Err(Status::internal("no message, or a compressed one"));
        }
        if self.get_u32() as usize != self.bytes {
            return Err(Status::internal("a message of another length than it says"));
        }
        M::decode(&mut self).map_err(|bad| Status::internal(bad.to_string()))
    }
}

impl Buf for Rope {
    fn remaining(&self) -> usize {
        self.bytes
    }

    fn chunk(&self) -> &[u8] {
        self.chunks.front().map_or(&[], |chunk| chunk.as_ref())
    }

    fn advance(&mut self, mut count: usize) {
        assert!(count <= self.bytes, "advanced beyond the end");
        self.bytes -= count;
        while count > 0 {
            let Some(front) = self.chunks.front_mut() else { return };
            let step = count.min(front.len());
            front.advance(step);
            count -= step;
            if front.is_empty() {
                self.chunks.pop_front();
            }
        }
    }

    fn copy_to_bytes(&mut self, length: usize) -> Bytes {
        assert!(length <= self.bytes, "copied beyond the end");
        if let Some(front) = self.chunks.front_mut().filter(|front| front.len() >= length) {
            let slice = front.slice(..length);
            self.advance(length);
            return slice;
        }
        let mut copy = BytesMut::with_capacity(length);
        while copy.len() < length {
            let take = self.chunk().len().min(length - copy.len());
            copy.extend_from_slice(&self.chunk()[..take]);
            self.advance(take);
        }
        copy.freeze()
    }
}

/// The key and length of a protobuf field of bytes, which are to follow as the message's tail.
pub(crate) fn put_bytes_key(head: &mut BytesMut, field: u32, length: usize) {
    prost::encoding::encode_key(field, prost::encoding::WireType::LengthDelimited, head);
    prost::encoding::encode_varint(length as u64, head);
}

#[cfg(test)]
mod tests {
    use holdfast_proto::data::{PutShard, ShardBlocks, ShardMeta};
    use proptest::prelude::*;

    use super::*;

    fn rope(message: &[u8], cuts: &[usize]) -> Rope {
        let mut framed = vec![0];
        framed.extend((message.len() as u32).to_be_bytes());
        framed.extend(message);
        let framed = Bytes::from(framed);
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (framed.len() + 1)).collect();
        cuts.extend([0, framed.len()]);
        cuts.sort_unstable();
        let mut rope = Rope::default();
        cuts.windows(2).for_each(|cut| rope.push(framed.slice(cut[0]..cut[1])));
        rope
    }

    proptest! {
        #[test]
        fn a_message_is_decoded_however_it_is_cut(data in prop::collection::vec(any::<u8>(), 0..300), cuts in prop::collection::vec(any::<usize>(), 0..6)) {
            let meta = ShardMeta { shard: Bytes::from_static(&[7; 21]), length: data.len() as u32, ..Default::default() };
            let message = ShardBlocks { meta: Some(meta), offset: 65_536, data: data.into() };
            prop_assert_eq!(rope(&message.encode_to_vec(), &cuts).decode::<ShardBlocks>().unwrap(), message);
        }
    }

    #[test]
    fn a_field_within_one_frame_is_not_copied() {
        let message = ShardBlocks { data: vec![1; 1000].into(), ..Default::default() };
        let rope = rope(&message.encode_to_vec(), &[]);
        let (start, end) = (rope.chunks[0].as_ptr() as usize, rope.chunks[0].as_ptr() as usize + rope.bytes);
        let decoded = rope.decode::<ShardBlocks>().unwrap();
        assert!((start..end).contains(&(decoded.data.as_ptr() as usize)));
    }

    #[test]
    fn a_request_in_two_parts_is_the_message() {
        for length in [1, 127, 128, JOIN_BYTES_MAX, JOIN_BYTES_MAX + 1, 1 << 20] {
            let data = Bytes::from(vec![3; length]);
            let whole =
                PutShard { target: 5, pg_epoch: 6, meta: Some(ShardMeta::default()), data: data.clone() };
            let mut head = BytesMut::new();
            PutShard { data: Bytes::new(), ..whole.clone() }.encode(&mut head).unwrap();
            put_bytes_key(&mut head, 4, data.len());
            let parts = Framed::new(head, data).unwrap().parts;
            let sent = parts.concat();
            assert_eq!(sent[..5], [&[0][..], &((sent.len() - 5) as u32).to_be_bytes()].concat());
            assert_eq!(PutShard::decode(&sent[5..]).unwrap(), whole);
        }
    }

    #[test]
    fn what_is_no_message_is_an_error() {
        assert!(Rope::default().decode::<ShardBlocks>().is_err());
        let mut longer = rope(b"", &[]);
        longer.push(Bytes::from_static(b"x"));
        assert!(longer.decode::<ShardBlocks>().is_err());
    }
}
