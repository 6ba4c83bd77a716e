//! The digest of a group's rows: equal on every replica at one log index.

use holdfast_proto::meta::Digest;

use crate::Halt;
use crate::kv::KvRead;

/// The machine's rows start with lower-case letters; what else the store holds is not the machine's.
pub(crate) const ROWS: (&[u8], &[u8]) = (b"a", b"{");

/// blake3 over every row as (length of key, key, length of value, value), lengths as little-endian u64, in key order.
pub(crate) fn digest(kv: &impl KvRead) -> Result<Digest, Halt> {
    let mut hasher = blake3::Hasher::new();
    let mut rows = 0;
    for row in kv.scan(ROWS.0, ROWS.1) {
        let (key, value) = row?;
        for bytes in [&key, &value] {
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        }
        rows += 1;
    }
    Ok(Digest { applied: 0, blake3: bytes::Bytes::copy_from_slice(hasher.finalize().as_bytes()), rows })
}
