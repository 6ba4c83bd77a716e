//! What accompanies one request from the guard to the operation and back: its id, its operation's name, its body while
//! nobody reads it, and what is counted for the access log.

use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use hyper::body::Incoming;
use parking_lot::Mutex;

/// Sixteen upper-case hex digits, like those of AWS.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct RequestTag([u8; 16]);

impl RequestTag {
    pub(crate) fn random() -> Self {
        let mut text = [0; 16];
        let mut value: u64 = rand::random();
        for digit in &mut text {
            *digit = b"0123456789ABCDEF"[(value & 15) as usize];
            value >>= 4;
        }
        Self(text)
    }

    pub(crate) fn as_str(&self) -> &str {
        str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Display for RequestTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Where a request's body is while no operation reads it.
#[derive(Default)]
enum Held {
    #[default]
    Nothing,
    /// An object's data, kept away from the protocol library.
    Data(Incoming),
    /// An XML document as it went by.
    Xml(Vec<Bytes>),
}

/// See the module.
pub(crate) struct Ticket {
    pub(crate) tag: RequestTag,
    operation: OnceLock<&'static str>,
    bytes_in: AtomicU64,
    held: Mutex<Held>,
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket").field("tag", &self.tag.as_str()).finish_non_exhaustive()
    }
}

impl Ticket {
    pub(crate) fn new() -> Self {
        Self {
            tag: RequestTag::random(),
            operation: OnceLock::new(),
            bytes_in: AtomicU64::new(0),
            held: Mutex::default(),
        }
    }

    /// Names the operation, once it is known.
    pub(crate) fn set_operation(&self, name: &'static str) {
        let _ = self.operation.set(name);
    }

    /// S3's name of the operation; "Unknown" for what was refused before it had one.
    pub(crate) fn operation(&self) -> &'static str {
        self.operation.get().copied().unwrap_or("Unknown")
    }

    pub(crate) fn add_bytes_in(&self, bytes: u64) {
        self.bytes_in.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn bytes_in(&self) -> u64 {
        self.bytes_in.load(Ordering::Relaxed)
    }

    /// Gives the operation's data back, or brings it the first time.
    pub(crate) fn return_body(&self, body: Incoming) {
        *self.held.lock() = Held::Data(body);
    }

    /// The object's data; `None` when it was taken.
    pub(crate) fn take_body(&self) -> Option<Incoming> {
        let mut held = self.held.lock();
        match std::mem::take(&mut *held) {
            Held::Data(body) => Some(body),
            other => {
                *held = other;
                None
            }
        }
    }

    /// Keeps a piece of an XML document.
    pub(crate) fn push_xml(&self, piece: Bytes) {
        let mut held = self.held.lock();
        match &mut *held {
            Held::Xml(pieces) => pieces.push(piece),
            _ => *held = Held::Xml(vec![piece]),
        }
    }

    /// The XML document as it came.
    pub(crate) fn take_xml(&self) -> Vec<Bytes> {
        let mut held = self.held.lock();
        match std::mem::take(&mut *held) {
            Held::Xml(pieces) => pieces,
            other => {
                *held = other;
                Vec::new()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_sixteen_hex_digits() {
        let tag = RequestTag::random();
        assert_eq!(tag.as_str().len(), 16);
        assert!(tag.as_str().bytes().all(|byte| byte.is_ascii_digit() || byte.is_ascii_uppercase()));
        assert_ne!(tag.as_str(), RequestTag::random().as_str());
    }

    #[test]
    fn an_operation_is_named_once() {
        let ticket = Ticket::new();
        assert_eq!(ticket.operation(), "Unknown");
        ticket.set_operation("GetObject");
        ticket.set_operation("PutObject");
        assert_eq!(ticket.operation(), "GetObject");
    }

    #[test]
    fn xml_is_kept_in_order() {
        let ticket = Ticket::new();
        ticket.push_xml(Bytes::from_static(b"<a>"));
        ticket.push_xml(Bytes::from_static(b"</a>"));
        assert!(ticket.take_body().is_none());
        assert_eq!(ticket.take_xml().concat(), b"<a></a>");
        assert!(ticket.take_xml().is_empty());
    }
}
