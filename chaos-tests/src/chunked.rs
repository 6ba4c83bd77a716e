//! aws-chunked bodies: signed or unsigned, with or without a checksum trailer, and broken in every way a client or a
//! middlebox can break them.

use bytes::Bytes;

use crate::sigv4::Signer;

/// How a body is framed, and what is wrong with it.
#[derive(Clone, Debug)]
pub struct Chunked {
    /// Bytes of data in a chunk; the last one may be shorter.
    pub chunk_bytes: usize,
    /// Whether every chunk carries a signature chained to the one before.
    pub signed: bool,
    /// A trailing header, `x-amz-checksum-crc32` and its value.
    pub trailer: Option<(String, String)>,
    /// The decoded length to declare, where it is not the true one.
    pub declared: Option<usize>,
    pub fault: Option<Fault>,
}

/// What a broken body gets wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The second chunk's signature has one wrong digit.
    ChunkSignature,
    /// The signature over the trailer has one wrong digit.
    TrailerSignature,
    /// The body ends after the last full chunk: no final chunk, no trailer.
    NoFinalChunk,
    /// The trailer that the headers announce never comes.
    NoTrailer,
    /// A chunk's length is no hexadecimal number.
    ChunkLength,
}

impl Chunked {
    pub fn signed() -> Self {
        Self { chunk_bytes: 64 << 10, signed: true, trailer: None, declared: None, fault: None }
    }

    pub fn unsigned(name: &str, value: impl Into<String>) -> Self {
        Self { signed: false, ..Self::signed() }.trailer(name, value)
    }

    pub fn trailer(mut self, name: &str, value: impl Into<String>) -> Self {
        self.trailer = Some((name.to_owned(), value.into()));
        self
    }

    pub fn chunk_bytes(mut self, bytes: usize) -> Self {
        self.chunk_bytes = bytes;
        self
    }

    pub fn declared(mut self, bytes: usize) -> Self {
        self.declared = Some(bytes);
        self
    }

    pub fn fault(mut self, fault: Fault) -> Self {
        self.fault = Some(fault);
        self
    }

    /// The value of `x-amz-content-sha256`.
    pub fn payload_hash(&self) -> &'static str {
        match (self.signed, self.trailer.is_some()) {
            (true, false) => "STREAMING-AWS4-HMAC-SHA256-PAYLOAD",
            (true, true) => "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER",
            (false, _) => "STREAMING-UNSIGNED-PAYLOAD-TRAILER",
        }
    }

    /// The framed body. `seed` is the signature of the request's headers.
    pub fn frame(&self, data: &[u8], signer: &Signer, seed: &str) -> Bytes {
        let mut out = Vec::with_capacity(data.len() + 4096);
        let mut previous = seed.to_owned();
        for (index, chunk) in data.chunks(self.chunk_bytes).enumerate() {
            self.chunk(&mut out, chunk, index, signer, &mut previous);
            out.extend_from_slice(chunk);
            out.extend_from_slice(b"\r\n");
        }
        if self.fault == Some(Fault::NoFinalChunk) {
            return out.into();
        }
        self.chunk(&mut out, b"", usize::MAX, signer, &mut previous);
        if let Some((name, value)) = self.trailer.as_ref().filter(|_| self.fault != Some(Fault::NoTrailer)) {
            out.extend_from_slice(format!("{name}:{value}\r\n").as_bytes());
            if self.signed {
                let mut signature = signer.sign_trailer(&previous, &format!("{name}:{value}\n"));
                if self.fault == Some(Fault::TrailerSignature) {
                    signature = one_digit_off(&signature);
                }
                out.extend_from_slice(format!("x-amz-trailer-signature:{signature}\r\n").as_bytes());
            }
        }
        out.extend_from_slice(b"\r\n");
        out.into()
    }

    fn chunk(&self, out: &mut Vec<u8>, chunk: &[u8], index: usize, signer: &Signer, previous: &mut String) {
        let length = match self.fault {
            Some(Fault::ChunkLength) if index == 1 => "zz".to_owned(),
            _ => format!("{:x}", chunk.len()),
        };
        out.extend_from_slice(length.as_bytes());
        if self.signed {
            *previous = signer.sign_chunk(previous, chunk);
            let sent = match self.fault {
                Some(Fault::ChunkSignature) if index == 1 => one_digit_off(previous),
                _ => previous.clone(),
            };
            out.extend_from_slice(format!(";chunk-signature={sent}").as_bytes());
        }
        out.extend_from_slice(b"\r\n");
    }
}

/// A signature that differs from a good one in its last digit.
pub fn one_digit_off(signature: &str) -> String {
    let (head, last) = signature.split_at(signature.len() - 1);
    format!("{head}{}", if last == "0" { "1" } else { "0" })
}
