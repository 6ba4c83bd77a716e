//! The digests S3 speaks of, in the base64 and hex that travel in its headers.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use crc_fast::CrcAlgorithm;
use md5::{Digest, Md5};
use sha1::Sha1;
use sha2::Sha256;

/// One of the checksum algorithms of S3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sum {
    Crc32,
    Crc32c,
    Crc64nvme,
    Sha1,
    Sha256,
}

impl Sum {
    pub const ALL: [Self; 5] = [Self::Crc32, Self::Crc32c, Self::Crc64nvme, Self::Sha1, Self::Sha256];

    /// As in `x-amz-checksum-algorithm`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Crc32 => "CRC32",
            Self::Crc32c => "CRC32C",
            Self::Crc64nvme => "CRC64NVME",
            Self::Sha1 => "SHA1",
            Self::Sha256 => "SHA256",
        }
    }

    /// As in the header and the trailer: `x-amz-checksum-crc32`.
    pub fn header(self) -> String {
        format!("x-amz-checksum-{}", self.name().to_ascii_lowercase())
    }

    /// As in XML: `ChecksumCRC32`.
    pub fn element(self) -> String {
        format!("Checksum{}", self.name())
    }

    pub fn raw(self, data: &[u8]) -> Vec<u8> {
        let crc32 = |algorithm| {
            let crc = crc_fast::checksum(algorithm, data);
            crc.to_be_bytes()[4..].to_vec()
        };
        match self {
            Self::Crc32 => crc32(CrcAlgorithm::Crc32IsoHdlc),
            Self::Crc32c => crc32(CrcAlgorithm::Crc32Iscsi),
            Self::Crc64nvme => crc_fast::checksum(CrcAlgorithm::Crc64Nvme, data).to_be_bytes().to_vec(),
            Self::Sha1 => Sha1::digest(data).to_vec(),
            Self::Sha256 => Sha256::digest(data).to_vec(),
        }
    }

    /// As it travels.
    pub fn of(self, data: &[u8]) -> String {
        STANDARD.encode(self.raw(data))
    }

    /// The checksum of the parts' checksums, `-N`.
    pub fn composite(self, parts: &[&[u8]]) -> String {
        let joined: Vec<u8> = parts.iter().flat_map(|part| self.raw(part)).collect();
        format!("{}-{}", self.of(&joined), parts.len())
    }
}

/// A plain object's ETag, quotes included.
pub fn etag(data: &[u8]) -> String {
    format!("\"{}\"", hex::encode(Md5::digest(data)))
}

/// A multipart object's ETag, quotes included.
pub fn multipart_etag(parts: &[&[u8]]) -> String {
    let joined: Vec<u8> = parts.iter().flat_map(|part| Md5::digest(part).to_vec()).collect();
    format!("\"{}-{}\"", hex::encode(Md5::digest(&joined)), parts.len())
}

/// `Content-MD5`.
pub fn content_md5(data: &[u8]) -> String {
    STANDARD.encode(Md5::digest(data))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The check values of the CRC catalogue and of FIPS 180.
    #[test]
    fn published_vectors() {
        let hex_of = |sum: Sum, data: &[u8]| hex::encode(sum.raw(data));
        assert_eq!(hex_of(Sum::Crc32, b"123456789"), "cbf43926");
        assert_eq!(hex_of(Sum::Crc32c, b"123456789"), "e3069283");
        assert_eq!(hex_of(Sum::Crc64nvme, b"123456789"), "ae8b14860a799888");
        assert_eq!(hex_of(Sum::Sha1, b"abc"), "a9993e364706816aba3e25717850c26c9cd0d89d");
        assert_eq!(etag(b""), "\"d41d8cd98f00b204e9800998ecf8427e\"");
    }
}
