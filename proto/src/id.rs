//! Identities. Every id is a newtype with a private field, a fixed big-endian byte form and a `Display` that parses back.
//!
//! Byte forms are on disk and in row keys (day 1): they never change.

use std::fmt;
use std::str::FromStr;

use crate::hlc::Hlc;

/// An id, a version or a number that does not parse.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a valid {what}")]
pub struct ParseIdError {
    /// What was expected, in words.
    pub what: &'static str,
    /// What was given, shortened.
    pub text: String,
}

fn bad(what: &'static str, text: &str) -> ParseIdError {
    ParseIdError { what, text: text.chars().take(80).collect() }
}

macro_rules! small_id {
    ($(#[$doc:meta])* $name:ident, $int:ty, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name($int);

        impl $name {
            /// From the number.
            pub const fn new(value: $int) -> Self {
                Self(value)
            }
            /// The number.
            pub const fn get(self) -> $int {
                self.0
            }
            /// The big-endian bytes, as in row keys.
            pub const fn to_be_bytes(self) -> [u8; size_of::<$int>()] {
                self.0.to_be_bytes()
            }
            /// From big-endian bytes.
            pub const fn from_be_bytes(bytes: [u8; size_of::<$int>()]) -> Self {
                Self(<$int>::from_be_bytes(bytes))
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
        impl FromStr for $name {
            type Err = ParseIdError;
            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                text.parse().map(Self).map_err(|_| bad($what, text))
            }
        }
    };
}

/// A 128-bit id: sixteen bytes in order, 32 lower-case hex digits in text. On the wire it is a `bytes` field of 16.
macro_rules! wide_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name([u8; 16]);

        impl $name {
            /// From its sixteen bytes.
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(bytes)
            }
            /// Its sixteen bytes.
            pub const fn as_bytes(&self) -> &[u8; 16] {
                &self.0
            }
            /// As a wire field.
            pub fn to_wire(self) -> bytes::Bytes {
                bytes::Bytes::copy_from_slice(&self.0)
            }
            /// From a wire field or a row key.
            ///
            /// # Errors
            /// When it is not sixteen bytes.
            pub fn from_wire(bytes: &[u8]) -> Result<Self, ParseIdError> {
                <[u8; 16]>::try_from(bytes).map(Self).map_err(|_| bad($what, &format!("{} bytes", bytes.len())))
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }
        impl FromStr for $name {
            type Err = ParseIdError;
            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                let raw = data_encoding::HEXLOWER_PERMISSIVE.decode(text.as_bytes()).map_err(|_| bad($what, text))?;
                <[u8; 16]>::try_from(raw.as_slice()).map(Self).map_err(|_| bad($what, text))
            }
        }
    };
}

small_id!(
    /// A zone of a realm, from 1. Zero is no zone.
    ZoneId, u16, "zone id"
);
small_id!(
    /// A target: one disk directory of a data node. Given by the zone group, never reused.
    TargetId, u32, "target id"
);
small_id!(
    /// A placement group of a zone.
    PgId, u32, "placement group id"
);
small_id!(
    /// A slot of a bucket: `XXH3-64(key) mod slots`.
    Slot, u16, "slot"
);
small_id!(
    /// The number of a realm's epoch, a placement group's epoch or a node's incarnation.
    Epoch, u64, "epoch"
);
wide_id!(
    /// One stored body: a PUT, a part, a copy, a rewrite. Random.
    WriteId, "write id"
);
wide_id!(
    /// A bucket, for ever; never its name. Random.
    BucketId, "bucket id"
);
wide_id!(
    /// One request of a caller, the unit of deduplication. Random.
    RequestId, "request id"
);
wide_id!(
    /// One realm. Random, made by `zone init`; a directory of another realm is refused by it.
    RealmId, "realm id"
);
wide_id!(
    /// An account that owns buckets. Random.
    AccountId, "account id"
);

/// A node: 16 bits of zone, 48 bits of number within the zone. Never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct NodeId(u64);

impl NodeId {
    const NUMBER_BITS: u32 = 48;

    /// The node `number` (from 1) of `zone`. `None` when the number does not fit 48 bits.
    pub const fn in_zone(zone: ZoneId, number: u64) -> Option<Self> {
        if number >> Self::NUMBER_BITS != 0 {
            return None;
        }
        Some(Self((zone.get() as u64) << Self::NUMBER_BITS | number))
    }
    /// From its 64-bit form.
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }
    /// Its 64-bit form.
    pub const fn get(self) -> u64 {
        self.0
    }
    /// The zone it belongs to.
    pub const fn zone(self) -> ZoneId {
        ZoneId::new((self.0 >> Self::NUMBER_BITS) as u16)
    }
    /// Its number within the zone.
    pub const fn number(self) -> u64 {
        self.0 & ((1 << Self::NUMBER_BITS) - 1)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.zone(), self.number())
    }
}

impl FromStr for NodeId {
    type Err = ParseIdError;
    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let fault = || bad("node id", text);
        let (zone, number) = text.split_once('.').ok_or_else(fault)?;
        let zone = zone.parse().map_err(|_| fault())?;
        Self::in_zone(zone, number.parse().map_err(|_| fault())?).ok_or_else(fault)
    }
}

/// What a Raft group holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum GroupKind {
    /// Users, buckets, zones: one group for the whole realm.
    Realm = 1,
    /// Nodes, targets, placement groups: one group for each zone.
    Zone = 2,
    /// Objects: many groups for each zone.
    Partition = 3,
}

/// A Raft group: 8 bits of kind, 16 bits of zone (0 for the realm), 40 bits of number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(u64);

impl GroupId {
    /// The realm group.
    pub const REALM: Self = Self((GroupKind::Realm as u64) << 56);

    /// The zone group of `zone`.
    pub const fn zone_group(zone: ZoneId) -> Self {
        Self((GroupKind::Zone as u64) << 56 | (zone.get() as u64) << 40)
    }
    /// The partition `number` (from 0) of `zone`.
    pub const fn partition(zone: ZoneId, number: u32) -> Self {
        Self((GroupKind::Partition as u64) << 56 | (zone.get() as u64) << 40 | number as u64)
    }
    /// Its 64-bit form.
    pub const fn get(self) -> u64 {
        self.0
    }
    /// From its 64-bit form.
    ///
    /// # Errors
    /// When the kind is none of [`GroupKind`].
    pub fn from_u64(raw: u64) -> Result<Self, ParseIdError> {
        match raw >> 56 {
            1..=3 => Ok(Self(raw)),
            _ => Err(bad("group id", &raw.to_string())),
        }
    }
    /// What the group holds.
    pub fn kind(self) -> GroupKind {
        match self.0 >> 56 {
            1 => GroupKind::Realm,
            2 => GroupKind::Zone,
            _ => GroupKind::Partition,
        }
    }
    /// The zone whose group it is; zero for the realm.
    pub const fn zone(self) -> ZoneId {
        ZoneId::new((self.0 >> 40) as u16)
    }
    /// The number among the groups of its kind and zone.
    pub const fn number(self) -> u64 {
        self.0 & ((1 << 40) - 1)
    }
}

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind() {
            GroupKind::Realm => write!(f, "realm"),
            GroupKind::Zone => write!(f, "zone-{}", self.zone()),
            GroupKind::Partition => write!(f, "partition-{}-{}", self.zone(), self.number()),
        }
    }
}

impl FromStr for GroupId {
    type Err = ParseIdError;
    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let fault = || bad("group id", text);
        let mut words = text.split('-');
        let group = match (words.next(), words.next(), words.next(), words.next()) {
            (Some("realm"), None, None, None) => Self::REALM,
            (Some("zone"), Some(zone), None, None) => Self::zone_group(zone.parse().map_err(|_| fault())?),
            (Some("partition"), Some(zone), Some(number), None) => {
                Self::partition(zone.parse().map_err(|_| fault())?, number.parse().map_err(|_| fault())?)
            }
            _ => return Err(fault()),
        };
        Ok(group)
    }
}

/// A version of an object: the HLC of its commit and the zone that committed it. Newest is greatest, except that the
/// lower zone wins a tie. In text: 16 characters of unpadded base32hex, which sort like the pair; S3's `null` is a flag
/// of the row, not an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct VersionId {
    /// When it was committed.
    pub hlc: Hlc,
    /// The zone that committed it.
    pub zone: ZoneId,
}

impl VersionId {
    /// From its parts.
    pub const fn new(hlc: Hlc, zone: ZoneId) -> Self {
        Self { hlc, zone }
    }

    /// The ten bytes (HLC, zone), big-endian.
    pub fn to_bytes(self) -> [u8; 10] {
        let mut out = [0; 10];
        out[..8].copy_from_slice(&self.hlc.to_be_bytes());
        out[8..].copy_from_slice(&self.zone.to_be_bytes());
        out
    }

    /// From the ten bytes of [`Self::to_bytes`].
    pub fn from_bytes(bytes: [u8; 10]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j] = bytes;
        Self::new(Hlc::from_be_bytes([a, b, c, d, e, f, g, h]), ZoneId::from_be_bytes([i, j]))
    }
}

impl PartialOrd for VersionId {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for VersionId {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.hlc.cmp(&other.hlc).then(other.zone.cmp(&self.zone))
    }
}

impl fmt::Display for VersionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::BASE32HEX_NOPAD.encode(&self.to_bytes()))
    }
}

impl FromStr for VersionId {
    type Err = ParseIdError;
    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let raw =
            data_encoding::BASE32HEX_NOPAD.decode(text.as_bytes()).map_err(|_| bad("version id", text))?;
        <[u8; 10]>::try_from(raw.as_slice()).map(Self::from_bytes).map_err(|_| bad("version id", text))
    }
}

/// A multipart upload: the HLC of its start and 64 random bits. 26 characters of unpadded base32hex in text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct UploadId {
    /// When it was started; uploads of a key list in this order.
    pub hlc: Hlc,
    /// Tells apart uploads of one instant, and makes the id hard to guess.
    pub random: u64,
}

impl UploadId {
    /// The sixteen bytes (HLC, random), big-endian.
    pub fn to_bytes(self) -> [u8; 16] {
        let mut out = [0; 16];
        out[..8].copy_from_slice(&self.hlc.to_be_bytes());
        out[8..].copy_from_slice(&self.random.to_be_bytes());
        out
    }
    /// From the sixteen bytes of [`Self::to_bytes`].
    ///
    /// # Errors
    /// When it is not sixteen bytes.
    pub fn from_wire(bytes: &[u8]) -> Result<Self, ParseIdError> {
        let raw =
            <[u8; 16]>::try_from(bytes).map_err(|_| bad("upload id", &format!("{} bytes", bytes.len())))?;
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = raw;
        Ok(Self {
            hlc: Hlc::from_be_bytes([a, b, c, d, e, f, g, h]),
            random: u64::from_be_bytes([i, j, k, l, m, n, o, p]),
        })
    }
    /// As a wire field.
    pub fn to_wire(self) -> bytes::Bytes {
        bytes::Bytes::copy_from_slice(&self.to_bytes())
    }
}

impl fmt::Display for UploadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::BASE32HEX_NOPAD.encode(&self.to_bytes()))
    }
}

impl FromStr for UploadId {
    type Err = ParseIdError;
    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let raw =
            data_encoding::BASE32HEX_NOPAD.decode(text.as_bytes()).map_err(|_| bad("upload id", text))?;
        Self::from_wire(&raw).map_err(|_| bad("upload id", text))
    }
}

/// A part's number, 1 to 10,000.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartNumber(u16);

impl PartNumber {
    /// `None` outside 1 to 10,000.
    pub const fn new(value: u32) -> Option<Self> {
        if value >= 1 && value <= crate::limits::PARTS_MAX { Some(Self(value as u16)) } else { None }
    }
    /// The number.
    pub const fn get(self) -> u16 {
        self.0
    }
}

impl fmt::Display for PartNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A shard: one piece of a stripe of a write on one target. `index` counts data shards first, then parity; for copies
/// it is the copy's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardId {
    /// The write it belongs to.
    pub write: WriteId,
    /// The stripe of the write, from 0.
    pub stripe: u32,
    /// The index in the stripe, from 0.
    pub index: u8,
}

impl ShardId {
    /// Bytes of [`Self::to_bytes`].
    pub const LEN: usize = 21;

    /// (write id, stripe, index), big-endian: sorts by write, then stripe, then index.
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        out[..16].copy_from_slice(self.write.as_bytes());
        out[16..20].copy_from_slice(&self.stripe.to_be_bytes());
        out[20] = self.index;
        out
    }
    /// From the bytes of [`Self::to_bytes`].
    ///
    /// # Errors
    /// When it is not 21 bytes.
    pub fn from_slice(bytes: &[u8]) -> Result<Self, ParseIdError> {
        let fault = || bad("shard id", &format!("{} bytes", bytes.len()));
        let (write, rest) = bytes.split_at_checked(16).ok_or_else(fault)?;
        let [a, b, c, d, index] = <[u8; 5]>::try_from(rest).map_err(|_| fault())?;
        Ok(Self { write: WriteId::from_wire(write)?, stripe: u32::from_be_bytes([a, b, c, d]), index })
    }
}

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.write, self.stripe, self.index)
    }
}

/// The slot of `key` in a bucket of `slots` slots (day 1): `XXH3-64(key) mod slots`.
///
/// # Panics
/// When `slots` is zero, which no bucket row allows.
pub fn slot_of(key: &[u8], slots: u16) -> Slot {
    assert!(slots > 0, "a bucket has at least one slot");
    Slot::new((xxhash_rust::xxh3::xxh3_64(key) % u64::from(slots)) as u16)
}

/// The entry of a zone's slot table that holds the partition of `slot` of `bucket` (day 1):
/// `XXH3-64(bucket id ‖ slot, big-endian) mod SLOT_TABLE_LEN`.
pub fn slot_entry(bucket: BucketId, slot: Slot) -> usize {
    let mut bytes = [0; 18];
    bytes[..16].copy_from_slice(bucket.as_bytes());
    bytes[16..].copy_from_slice(&slot.to_be_bytes());
    (xxhash_rust::xxh3::xxh3_64(&bytes) % crate::limits::SLOT_TABLE_LEN as u64) as usize
}

#[cfg(test)]
#[path = "id_test.rs"]
mod tests;
