//! Fields of commands and queries into ids: what does not parse is refused as malformed, never a panic.

use bytes::Bytes;
use holdfast_proto::id::{
    AccountId, BucketId, PartNumber, RealmId, RequestId, Slot, UploadId, VersionId, WriteId, slot_of,
};
use holdfast_proto::limits::KEY_BYTES_MAX;
use holdfast_proto::meta::{Bucket, Refusal, WriteKey};

use crate::key::{self, Family, Spot};
use crate::row::{Step, Stop, refuse};

/// An id with a fixed wire form.
pub(crate) trait WireId: Sized {
    fn parse(bytes: &[u8]) -> Option<Self>;
    const WHAT: &'static str;
}

macro_rules! wire_ids {
    ($($name:ident $what:literal),*) => { $(
        impl WireId for $name {
            fn parse(bytes: &[u8]) -> Option<Self> {
                Self::from_wire(bytes).ok()
            }
            const WHAT: &'static str = $what;
        }
    )* };
}
wire_ids!(
    WriteId "write id", BucketId "bucket id", RequestId "request id", RealmId "realm id", AccountId "account id",
    UploadId "upload id"
);

impl WireId for VersionId {
    fn parse(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self::from_bytes)
    }
    const WHAT: &'static str = "version id";
}

/// The id in a wire field.
pub(crate) fn id<T: WireId>(bytes: &[u8]) -> Step<T> {
    T::parse(bytes).ok_or_else(|| {
        Stop::Refused(Refusal::Malformed, format!("{} bytes are not a {}", bytes.len(), T::WHAT))
    })
}

pub(crate) fn malformed<T>(detail: impl Into<String>) -> Step<T> {
    refuse(Refusal::Malformed, detail)
}

pub(crate) fn slot(raw: u32) -> Step<Slot> {
    u16::try_from(raw).map(Slot::new).or_else(|_| malformed(format!("slot {raw}")))
}

/// Slots of a bucket: its row was checked when it was stored.
pub(crate) fn slots(bucket: &Bucket) -> Step<u16> {
    match u16::try_from(bucket.slots) {
        Ok(slots) if slots > 0 => Ok(slots),
        _ => malformed(format!("a bucket of {} slots", bucket.slots)),
    }
}

/// Where `key` lives in `bucket`.
pub(crate) fn spot<'a>(id: BucketId, bucket: &Bucket, key: &'a Bytes) -> Step<Spot<'a>> {
    if key.is_empty() || key.len() > KEY_BYTES_MAX {
        return malformed(format!("a key of {} bytes", key.len()));
    }
    Ok(Spot { bucket: id, slot: slot_of(key, slots(bucket)?), key })
}

pub(crate) fn part_number(raw: u32) -> Step<u16> {
    match PartNumber::new(raw) {
        Some(part) => Ok(part.get()),
        None => malformed(format!("part number {raw}")),
    }
}

/// The row of a write in `family`.
pub(crate) fn write_row(family: Family, write: &WriteKey) -> Option<Vec<u8>> {
    let bucket = BucketId::parse(&write.bucket)?;
    let slot = u16::try_from(write.slot).ok()?;
    Some(key::of_write(family, bucket, Slot::new(slot), WriteId::parse(&write.write)?))
}
