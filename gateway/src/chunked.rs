//! The aws-chunked framing: `size[;chunk-signature=...]CRLF data CRLF ... 0[;...]CRLF trailers`.
//!
//! Chunks may be of any size: data is handed on as it arrives and hashed on the way, so memory does not depend on what a
//! client frames. A signature is therefore known to be wrong only after its chunk was handed on; the error comes before
//! the end of the body, and nothing is committed before that.

use bytes::{Buf as _, Bytes};

use crate::body::BodyError;
use crate::sigv4::ChunkSigner;

/// Longest line before a chunk, bytes.
const CHUNK_LINE_BYTES_MAX: usize = 1024;
/// Longest trailer block, bytes.
const TRAILER_BYTES_MAX: usize = 16 << 10;
const TRAILER_SIGNATURE: &str = "x-amz-trailer-signature";

/// Takes frames apart.
#[derive(Debug)]
pub(crate) struct Decoder {
    state: State,
    /// With signed chunks.
    signer: Option<ChunkSigner>,
    /// Of the chunk being read, with signed chunks.
    signature: String,
    /// A line or the trailer block, as far as it arrived.
    held: Vec<u8>,
    /// Whether trailers may follow.
    takes_trailers: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Line,
    Data(u64),
    /// How much of the CRLF behind the data was seen.
    DataEnd(u8),
    Trailers,
}

impl Decoder {
    /// For chunks signed with `signer`, or unsigned ones.
    pub(crate) fn new(signer: Option<ChunkSigner>, takes_trailers: bool) -> Self {
        Self { state: State::Line, signer, signature: String::new(), held: Vec::new(), takes_trailers }
    }

    /// The next piece of data in `input`, which is advanced; `None` when `input` is used up.
    ///
    /// # Errors
    /// When the framing is broken or a chunk's signature is wrong.
    pub(crate) fn next(&mut self, input: &mut Bytes) -> Result<Option<Bytes>, BodyError> {
        while !input.is_empty() {
            match self.state {
                State::Line => self.read_line(input)?,
                State::Data(left) => {
                    let take = usize::try_from(left).unwrap_or(usize::MAX).min(input.len());
                    let data = input.split_to(take);
                    if let Some(signer) = &mut self.signer {
                        signer.update(&data);
                    }
                    let left = left - take as u64;
                    self.state = if left == 0 { State::DataEnd(0) } else { State::Data(left) };
                    return Ok(Some(data));
                }
                State::DataEnd(seen) => {
                    if input.get_u8() != b"\r\n"[usize::from(seen)] {
                        return Err(BodyError::Framing("a chunk is longer than its declared size"));
                    }
                    if seen == 0 {
                        self.state = State::DataEnd(1);
                    } else {
                        self.end_chunk()?;
                        self.state = State::Line;
                    }
                }
                State::Trailers => {
                    if self.held.len() + input.len() > TRAILER_BYTES_MAX {
                        return Err(BodyError::Framing("the trailers are too long"));
                    }
                    self.held.extend_from_slice(input);
                    input.clear();
                }
            }
        }
        Ok(None)
    }

    /// At the end of the request's body: the trailers, names in lower case.
    ///
    /// # Errors
    /// When the final chunk is missing, or the trailers are malformed, unsigned where they must be, or not expected.
    pub(crate) fn finish(self) -> Result<Vec<(String, String)>, BodyError> {
        if self.state != State::Trailers {
            return Err(BodyError::Short);
        }
        let malformed = BodyError::Trailer("the trailing headers are malformed");
        let text = str::from_utf8(&self.held).map_err(|_| malformed.clone())?;
        let mut trailers = Vec::new();
        let mut signature = None;
        for line in text.split('\n').map(|line| line.trim_end_matches('\r')).filter(|line| !line.is_empty()) {
            let (name, value) = line.split_once(':').ok_or_else(|| malformed.clone())?;
            let (name, value) = (name.trim().to_ascii_lowercase(), value.trim());
            if name == TRAILER_SIGNATURE {
                signature = Some(value);
            } else {
                trailers.push((name, value.to_owned()));
            }
        }
        if !self.takes_trailers && (!trailers.is_empty() || signature.is_some()) {
            return Err(BodyError::Trailer(
                "trailing headers were sent that x-amz-content-sha256 did not announce",
            ));
        }
        if let Some(signer) = &self.signer
            && self.takes_trailers
        {
            trailers.sort();
            let canonical: String =
                trailers.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
            match signature {
                Some(signature) if signer.verify_trailers(&canonical, signature) => {}
                Some(_) => return Err(BodyError::ChunkSignature),
                None => return Err(BodyError::Trailer("the trailing headers are missing or not signed")),
            }
        }
        Ok(trailers)
    }

    fn read_line(&mut self, input: &mut Bytes) -> Result<(), BodyError> {
        let (piece, complete) = match input.iter().position(|byte| *byte == b'\n') {
            Some(at) => (input.split_to(at + 1), true),
            None => (input.split_to(input.len()), false),
        };
        if self.held.len() + piece.len() > CHUNK_LINE_BYTES_MAX {
            return Err(BodyError::Framing("a chunk's size line is too long"));
        }
        self.held.extend_from_slice(&piece);
        if !complete {
            return Ok(());
        }
        let line = std::mem::take(&mut self.held);
        let (size, signature) =
            parse_line(&line).ok_or(BodyError::Framing("a chunk's size line is malformed"))?;
        match (&self.signer, signature) {
            (Some(_), Some(signature)) => {
                self.signature.clear();
                self.signature.push_str(signature);
            }
            (None, None) => {}
            (Some(_), None) => return Err(BodyError::ChunkSignature),
            (None, Some(_)) => {
                return Err(BodyError::Framing(
                    "a chunk is signed although the payload is declared unsigned",
                ));
            }
        }
        if size == 0 {
            self.end_chunk()?;
            self.state = State::Trailers;
        } else {
            self.state = State::Data(size);
        }
        Ok(())
    }

    fn end_chunk(&mut self) -> Result<(), BodyError> {
        let right = self.signer.as_mut().is_none_or(|signer| signer.end_chunk(&self.signature));
        if right { Ok(()) } else { Err(BodyError::ChunkSignature) }
    }
}

fn parse_line(line: &[u8]) -> Option<(u64, Option<&str>)> {
    let line = str::from_utf8(line.strip_suffix(b"\r\n")?).ok()?;
    let (size, signature) = match line.split_once(';') {
        None => (line, None),
        Some((size, extension)) => (size, Some(extension.strip_prefix("chunk-signature=")?)),
    };
    if !(1..=15).contains(&size.len()) || !size.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    Some((u64::from_str_radix(size, 16).ok()?, signature))
}

#[cfg(test)]
#[path = "chunked_test.rs"]
mod tests;
