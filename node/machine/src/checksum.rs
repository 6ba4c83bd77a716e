//! Checksums of a whole multipart object from those of its parts.
//!
//! Composite: the algorithm over the concatenated binary checksums of the parts. Full object: only CRCs, combined
//! algebraically, since appending n bytes multiplies a CRC by x^8n modulo its polynomial (Adler's `crc32_combine`).
//! AWS: "Checking object integrity in Amazon S3", "Multipart upload checksums".

use bytes::Bytes;
use holdfast_proto::meta::{Checksum, ChecksumAlgorithm, ChecksumType};
use sha1::Sha1;
use sha2::{Digest, Sha256};

/// The type S3 gives a checksum when none is named: CRC64NVME is always of the full object.
pub(crate) fn type_of(algorithm: ChecksumAlgorithm, asked: ChecksumType) -> ChecksumType {
    match (algorithm, asked) {
        (ChecksumAlgorithm::ChecksumNone, _) => ChecksumType::None,
        (ChecksumAlgorithm::Crc64nvme, ChecksumType::None) => ChecksumType::FullObject,
        (_, ChecksumType::None) => ChecksumType::Composite,
        (_, asked) => asked,
    }
}

/// Bytes of a value of `algorithm`.
pub(crate) fn value_len(algorithm: ChecksumAlgorithm) -> usize {
    match algorithm {
        ChecksumAlgorithm::ChecksumNone => 0,
        ChecksumAlgorithm::Crc32 | ChecksumAlgorithm::Crc32c => 4,
        ChecksumAlgorithm::Crc64nvme => 8,
        ChecksumAlgorithm::Sha1 => 20,
        ChecksumAlgorithm::Sha256 => 32,
    }
}

/// The checksum of an object made of parts with these (value, size in bytes), in order. `None` when the algorithm has no
/// such type (hashes do not combine, CRC64NVME has no composite form) or a value has the wrong length.
pub(crate) fn of_parts(
    algorithm: ChecksumAlgorithm,
    kind: ChecksumType,
    parts: &[(Bytes, u64)],
) -> Option<Checksum> {
    if parts.iter().any(|(value, _)| value.len() != value_len(algorithm)) {
        return None;
    }
    let (value, count) = match (kind, algorithm) {
        (ChecksumType::None, _)
        | (_, ChecksumAlgorithm::ChecksumNone)
        | (ChecksumType::Composite, ChecksumAlgorithm::Crc64nvme)
        | (ChecksumType::FullObject, ChecksumAlgorithm::Sha1 | ChecksumAlgorithm::Sha256) => return None,
        (ChecksumType::Composite, _) => (composite(algorithm, parts)?, u32::try_from(parts.len()).ok()?),
        (ChecksumType::FullObject, _) => (full_object(algorithm, parts)?, 0),
    };
    Some(Checksum { algorithm: algorithm.into(), r#type: kind.into(), value, parts: count })
}

fn composite(algorithm: ChecksumAlgorithm, parts: &[(Bytes, u64)]) -> Option<Bytes> {
    let joined: Vec<u8> = parts.iter().flat_map(|(value, _)| value.iter().copied()).collect();
    let value = match algorithm {
        ChecksumAlgorithm::Sha1 => Sha1::digest(&joined).to_vec(),
        ChecksumAlgorithm::Sha256 => Sha256::digest(&joined).to_vec(),
        _ => Crc::of(algorithm)?.bytes(Crc::of(algorithm)?.checksum(&joined)),
    };
    Some(value.into())
}

fn full_object(algorithm: ChecksumAlgorithm, parts: &[(Bytes, u64)]) -> Option<Bytes> {
    let crc = Crc::of(algorithm)?;
    // Parts are nearly always of one size: its power is worked out once.
    let mut last = None;
    let whole = parts.iter().fold(0, |whole, (value, size)| {
        let shift = match last {
            Some((of, shift)) if of == *size => shift,
            _ => crc.power(*size),
        };
        last = Some((*size, shift));
        crc.multiply(shift, whole) ^ crc.number(value)
    });
    Some(crc.bytes(whole).into())
}

/// A reflected CRC whose initial value and final XOR are both all ones, as S3's three are.
#[derive(Debug, Clone, Copy)]
struct Crc {
    /// Reflected polynomial.
    polynomial: u64,
    bits: u32,
    kind: crc_fast::CrcAlgorithm,
}

impl Crc {
    fn of(algorithm: ChecksumAlgorithm) -> Option<Self> {
        use crc_fast::CrcAlgorithm::{Crc32Iscsi, Crc32IsoHdlc, Crc64Nvme};
        match algorithm {
            ChecksumAlgorithm::Crc32 => Some(Self { polynomial: 0xedb8_8320, bits: 32, kind: Crc32IsoHdlc }),
            ChecksumAlgorithm::Crc32c => Some(Self { polynomial: 0x82f6_3b78, bits: 32, kind: Crc32Iscsi }),
            ChecksumAlgorithm::Crc64nvme => {
                Some(Self { polynomial: 0x9a6c_9329_ac4b_c9b5, bits: 64, kind: Crc64Nvme })
            }
            ChecksumAlgorithm::ChecksumNone | ChecksumAlgorithm::Sha1 | ChecksumAlgorithm::Sha256 => None,
        }
    }

    fn checksum(self, data: &[u8]) -> u64 {
        crc_fast::checksum(self.kind, data)
    }

    fn bytes(self, value: u64) -> Vec<u8> {
        value.to_be_bytes()[8 - self.bits as usize / 8..].to_vec()
    }

    fn number(self, value: &[u8]) -> u64 {
        value.iter().fold(0, |number, &byte| number << 8 | u64::from(byte))
    }

    /// a * b modulo the polynomial; the highest bit is x^0.
    fn multiply(self, a: u64, mut b: u64) -> u64 {
        let mut product = 0;
        for bit in (0..self.bits).rev() {
            if a >> bit & 1 == 1 {
                product ^= b;
            }
            b = if b & 1 == 1 { b >> 1 ^ self.polynomial } else { b >> 1 };
        }
        product
    }

    /// x^(8 * bytes) modulo the polynomial.
    fn power(self, mut bytes: u64) -> u64 {
        let mut square = 1 << (self.bits - 1 - 8);
        let mut power = 1 << (self.bits - 1);
        while bytes > 0 {
            if bytes & 1 == 1 {
                power = self.multiply(power, square);
            }
            square = self.multiply(square, square);
            bytes >>= 1;
        }
        power
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CRCS: [ChecksumAlgorithm; 3] =
        [ChecksumAlgorithm::Crc32, ChecksumAlgorithm::Crc32c, ChecksumAlgorithm::Crc64nvme];

    fn crc(algorithm: ChecksumAlgorithm, data: &[u8]) -> Bytes {
        let crc = Crc::of(algorithm).unwrap();
        crc.bytes(crc.checksum(data)).into()
    }

    proptest! {
        #[test]
        fn combined_crcs_equal_the_crc_of_the_whole(parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 1..8)) {
            for algorithm in CRCS {
                let sums: Vec<_> = parts.iter().map(|part| (crc(algorithm, part), part.len() as u64)).collect();
                let whole = of_parts(algorithm, ChecksumType::FullObject, &sums).unwrap();
                prop_assert_eq!(whole.value, crc(algorithm, &parts.concat()));
            }
        }
    }

    /// The catalogue's check values: CRC of "123456789".
    #[test]
    fn the_polynomials_are_s3s() {
        let hex = |algorithm| format!("{:x}", crc(algorithm, b"123456789"));
        assert_eq!(CRCS.map(hex), ["cbf43926", "e3069283", "ae8b14860a799888"]);
    }

    #[test]
    fn a_composite_is_the_hash_of_the_parts_hashes() {
        let parts = [
            (Bytes::from(Sha256::digest(b"a").to_vec()), 1),
            (Bytes::from(Sha256::digest(b"b").to_vec()), 1),
        ];
        let joined = [Sha256::digest(b"a").to_vec(), Sha256::digest(b"b").to_vec()].concat();
        let whole = of_parts(ChecksumAlgorithm::Sha256, ChecksumType::Composite, &parts).unwrap();
        assert_eq!((whole.value.to_vec(), whole.parts), (Sha256::digest(joined).to_vec(), 2));
    }

    #[test]
    fn what_s3_does_not_offer_is_none() {
        let sha = [(Bytes::from(vec![0; 32]), 1)];
        assert!(of_parts(ChecksumAlgorithm::Sha256, ChecksumType::FullObject, &sha).is_none());
        let crc = [(Bytes::from(vec![0; 8]), 1)];
        assert!(of_parts(ChecksumAlgorithm::Crc64nvme, ChecksumType::Composite, &crc).is_none());
        assert!(of_parts(ChecksumAlgorithm::Crc32, ChecksumType::Composite, &crc).is_none(), "wrong length");
    }
}
