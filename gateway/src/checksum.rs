//! S3's additional checksums: their names, headers, values and how a client claims one.
//!
//! Values travel as base64 of the big-endian bytes; a composite one has `-N` behind it ("Checking object integrity",
//! S3 user guide). A request may claim one value in one header, or name one trailer that will carry it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use holdfast_proto::meta;
use http::HeaderMap;
use sha2::Digest as _;

use crate::error::{S3Error, S3Result, invalid_request};

/// One of S3's algorithms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Algorithm {
    Crc32,
    Crc32c,
    Crc64Nvme,
    Sha1,
    Sha256,
}

impl Algorithm {
    pub(crate) const ALL: [Self; 5] = [Self::Crc32, Self::Crc32c, Self::Crc64Nvme, Self::Sha1, Self::Sha256];

    /// As in `x-amz-checksum-algorithm`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Crc32 => "CRC32",
            Self::Crc32c => "CRC32C",
            Self::Crc64Nvme => "CRC64NVME",
            Self::Sha1 => "SHA1",
            Self::Sha256 => "SHA256",
        }
    }

    /// The header or trailer that carries a value.
    pub(crate) fn header(self) -> &'static str {
        match self {
            Self::Crc32 => "x-amz-checksum-crc32",
            Self::Crc32c => "x-amz-checksum-crc32c",
            Self::Crc64Nvme => "x-amz-checksum-crc64nvme",
            Self::Sha1 => "x-amz-checksum-sha1",
            Self::Sha256 => "x-amz-checksum-sha256",
        }
    }

    /// Bytes of a value.
    pub(crate) fn value_bytes(self) -> usize {
        match self {
            Self::Crc32 | Self::Crc32c => 4,
            Self::Crc64Nvme => 8,
            Self::Sha1 => 20,
            Self::Sha256 => 32,
        }
    }

    /// From its name; S3 takes any case.
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.name().eq_ignore_ascii_case(name))
    }

    /// From the header or trailer that carries it.
    pub(crate) fn from_header(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.header().eq_ignore_ascii_case(name))
    }

    /// The stored form.
    pub(crate) fn to_stored(self) -> meta::ChecksumAlgorithm {
        match self {
            Self::Crc32 => meta::ChecksumAlgorithm::Crc32,
            Self::Crc32c => meta::ChecksumAlgorithm::Crc32c,
            Self::Crc64Nvme => meta::ChecksumAlgorithm::Crc64nvme,
            Self::Sha1 => meta::ChecksumAlgorithm::Sha1,
            Self::Sha256 => meta::ChecksumAlgorithm::Sha256,
        }
    }

    /// From the stored form; `None` for "none".
    pub(crate) fn from_stored(stored: meta::ChecksumAlgorithm) -> Option<Self> {
        match stored {
            meta::ChecksumAlgorithm::ChecksumNone => None,
            meta::ChecksumAlgorithm::Crc32 => Some(Self::Crc32),
            meta::ChecksumAlgorithm::Crc32c => Some(Self::Crc32c),
            meta::ChecksumAlgorithm::Crc64nvme => Some(Self::Crc64Nvme),
            meta::ChecksumAlgorithm::Sha1 => Some(Self::Sha1),
            meta::ChecksumAlgorithm::Sha256 => Some(Self::Sha256),
        }
    }

    /// The type of a multipart object's checksum when the client does not choose.
    pub(crate) fn multipart_type(self) -> meta::ChecksumType {
        match self {
            Self::Crc64Nvme => meta::ChecksumType::FullObject,
            _ => meta::ChecksumType::Composite,
        }
    }

    /// Whether a multipart object may carry this algorithm with that type.
    pub(crate) fn allows(self, kind: meta::ChecksumType) -> bool {
        match self {
            Self::Crc32 | Self::Crc32c => true,
            Self::Crc64Nvme => kind == meta::ChecksumType::FullObject,
            Self::Sha1 | Self::Sha256 => kind == meta::ChecksumType::Composite,
        }
    }
}

/// A running checksum.
#[derive(Debug)]
pub(crate) enum Hasher {
    Crc(Algorithm, crc_fast::Digest),
    Sha1(sha1::Sha1),
    Sha256(sha2::Sha256),
}

impl Hasher {
    pub(crate) fn new(algorithm: Algorithm) -> Self {
        let crc = |kind| Self::Crc(algorithm, crc_fast::Digest::new(kind));
        match algorithm {
            Algorithm::Crc32 => crc(crc_fast::CrcAlgorithm::Crc32IsoHdlc),
            Algorithm::Crc32c => crc(crc_fast::CrcAlgorithm::Crc32Iscsi),
            Algorithm::Crc64Nvme => crc(crc_fast::CrcAlgorithm::Crc64Nvme),
            Algorithm::Sha1 => Self::Sha1(sha1::Sha1::new()),
            Algorithm::Sha256 => Self::Sha256(sha2::Sha256::new()),
        }
    }

    pub(crate) fn algorithm(&self) -> Algorithm {
        match self {
            Self::Crc(algorithm, _) => *algorithm,
            Self::Sha1(_) => Algorithm::Sha1,
            Self::Sha256(_) => Algorithm::Sha256,
        }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Crc(_, digest) => digest.update(bytes),
            Self::Sha1(digest) => digest.update(bytes),
            Self::Sha256(digest) => digest.update(bytes),
        }
    }

    pub(crate) fn finish(self) -> Bytes {
        match self {
            Self::Crc(algorithm, digest) => {
                let value = digest.finalize().to_be_bytes();
                Bytes::copy_from_slice(&value[8 - algorithm.value_bytes()..])
            }
            Self::Sha1(digest) => Bytes::copy_from_slice(&digest.finalize()),
            Self::Sha256(digest) => Bytes::copy_from_slice(&digest.finalize()),
        }
    }
}

/// A checksum with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Value {
    pub algorithm: Algorithm,
    /// Raw, big-endian.
    pub value: Bytes,
}

impl Value {
    /// From base64 in a header, trailer or XML element. `None` unless it is a value of that algorithm.
    pub(crate) fn parse(algorithm: Algorithm, text: &str) -> Option<Self> {
        let value = STANDARD.decode(text.trim()).ok()?;
        (value.len() == algorithm.value_bytes()).then(|| Self { algorithm, value: value.into() })
    }

    /// As it is stored with a whole object or a part.
    pub(crate) fn to_stored(&self) -> meta::Checksum {
        meta::Checksum {
            algorithm: self.algorithm.to_stored().into(),
            r#type: meta::ChecksumType::FullObject.into(),
            value: self.value.clone(),
            parts: 0,
        }
    }
}

/// The one checksum that the headers claim for a body.
///
/// # Errors
/// InvalidRequest for more than one, or one that is not a value of its algorithm.
pub(crate) fn claimed(headers: &HeaderMap) -> S3Result<Option<Value>> {
    let mut found = None;
    for algorithm in Algorithm::ALL {
        let Some(header) = headers.get(algorithm.header()) else { continue };
        if found.is_some() {
            return Err(invalid_request(
                "Expecting a single x-amz-checksum- header. Multiple checksum Types are not allowed.",
            ));
        }
        let value = header.to_str().ok().and_then(|text| Value::parse(algorithm, text));
        found = Some(value.ok_or_else(|| bad_value(algorithm))?);
    }
    Ok(found)
}

/// The checksums of a part as the request's XML repeats them.
///
/// # Errors
/// InvalidRequest for one that is not a value of its algorithm.
pub(crate) fn repeated(values: [(Algorithm, Option<&str>); 5]) -> S3Result<Vec<meta::Checksum>> {
    values
        .into_iter()
        .filter_map(|(algorithm, text)| text.map(|text| (algorithm, text)))
        .map(|(algorithm, text)| {
            Value::parse(algorithm, text).map(|value| value.to_stored()).ok_or_else(|| bad_value(algorithm))
        })
        .collect()
}

fn bad_value(algorithm: Algorithm) -> S3Error {
    invalid_request(format!("Value for {} header is invalid.", algorithm.header()))
}

/// The algorithm that `x-amz-sdk-checksum-algorithm` or `x-amz-checksum-algorithm` names.
///
/// # Errors
/// InvalidRequest for an algorithm that is not S3's.
pub(crate) fn named(name: &str) -> S3Result<Algorithm> {
    Algorithm::from_name(name)
        .ok_or_else(|| invalid_request("Checksum algorithm provided is unsupported. Please try again with any of the valid types: [CRC32, CRC32C, CRC64NVME, SHA1, SHA256]"))
}

/// A stored checksum as S3 shows it: base64, `-N` behind a composite one.
pub(crate) fn text(stored: &meta::Checksum) -> String {
    let mut text = STANDARD.encode(&stored.value);
    if stored.r#type() == meta::ChecksumType::Composite && stored.parts > 0 {
        text.push('-');
        text.push_str(&stored.parts.to_string());
    }
    text
}

/// Texts of stored checksums, in the order in which S3's answers hold them.
#[derive(Debug, Default, Clone)]
pub(crate) struct Shown {
    pub crc32: Option<String>,
    pub crc32c: Option<String>,
    pub crc64nvme: Option<String>,
    pub sha1: Option<String>,
    pub sha256: Option<String>,
    /// The type of the last one, when it is known.
    pub kind: Option<&'static str>,
}

/// What S3 shows of stored checksums.
pub(crate) fn shown(stored: &[meta::Checksum]) -> Shown {
    let mut out = Shown::default();
    for checksum in stored {
        let Some(algorithm) = Algorithm::from_stored(checksum.algorithm()) else { continue };
        let field = match algorithm {
            Algorithm::Crc32 => &mut out.crc32,
            Algorithm::Crc32c => &mut out.crc32c,
            Algorithm::Crc64Nvme => &mut out.crc64nvme,
            Algorithm::Sha1 => &mut out.sha1,
            Algorithm::Sha256 => &mut out.sha256,
        };
        *field = Some(text(checksum));
        out.kind = kind_name(checksum.r#type());
    }
    out
}

/// As in `x-amz-checksum-type`.
pub(crate) fn kind_name(kind: meta::ChecksumType) -> Option<&'static str> {
    match kind {
        meta::ChecksumType::None => None,
        meta::ChecksumType::FullObject => Some("FULL_OBJECT"),
        meta::ChecksumType::Composite => Some("COMPOSITE"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check values of "123456789" from the CRC catalogue and the FIPS 180 examples' tools.
    #[test]
    fn values_are_those_of_the_standards() {
        let cases = [
            (Algorithm::Crc32, "cbf43926"),
            (Algorithm::Crc32c, "e3069283"),
            (Algorithm::Crc64Nvme, "ae8b14860a799888"),
            (Algorithm::Sha1, "f7c3bc1d808e04732adf679965ccc34ca7ae3441"),
            (Algorithm::Sha256, "15e2b0d3c33891ebb0f1ef609ec419420c20e320ce94c65fbc8c3312448eb225"),
        ];
        for (algorithm, expected) in cases {
            let mut hasher = Hasher::new(algorithm);
            hasher.update(b"12345");
            hasher.update(b"6789");
            assert_eq!(hex::encode(hasher.finish()), expected, "{algorithm:?}");
        }
    }

    #[test]
    fn claims_are_single_and_well_formed() {
        let mut headers = HeaderMap::new();
        assert_eq!(claimed(&headers).unwrap(), None);
        headers.insert("x-amz-checksum-crc32", "y/Q5Jg==".parse().unwrap());
        assert_eq!(claimed(&headers).unwrap().unwrap().value.as_ref(), [0xcb, 0xf4, 0x39, 0x26]);
        headers.insert("x-amz-checksum-sha1", "AAAA".parse().unwrap());
        assert!(claimed(&headers).is_err());
        headers.remove("x-amz-checksum-crc32");
        assert!(claimed(&headers).is_err(), "three bytes are no SHA-1");
    }

    #[test]
    fn composite_values_show_their_parts() {
        let mut checksum = Value::parse(Algorithm::Crc32, "y/Q5Jg==").unwrap().to_stored();
        assert_eq!(text(&checksum), "y/Q5Jg==");
        checksum.r#type = meta::ChecksumType::Composite.into();
        checksum.parts = 3;
        let shown = shown(&[checksum]);
        assert_eq!(shown.crc32.as_deref(), Some("y/Q5Jg==-3"));
        assert_eq!(shown.kind, Some("COMPOSITE"));
    }

    #[test]
    fn stored_algorithms_come_back() {
        for algorithm in Algorithm::ALL {
            assert_eq!(Algorithm::from_stored(algorithm.to_stored()), Some(algorithm));
            assert_eq!(Algorithm::from_name(&algorithm.name().to_lowercase()), Some(algorithm));
            assert_eq!(Algorithm::from_header(algorithm.header()), Some(algorithm));
        }
    }
}
