//! Every fixed bound, in one place, with proofs of how they relate. S3's own limits are from the AWS user guide
//! ("Amazon S3 multipart upload limits", "Object key naming guidelines", "Bucket quotas, limitations, and restrictions").

/// Longest object key, bytes of UTF-8.
pub const KEY_BYTES_MAX: usize = 1024;
/// Largest user metadata of an object, names and values together, bytes.
pub const USER_METADATA_BYTES_MAX: usize = 2048;
/// Highest part number.
pub const PARTS_MAX: u32 = 10_000;
/// Smallest part, except the last, bytes.
pub const PART_BYTES_MIN: u64 = 5 << 20;
/// Largest part and largest single PUT or copy, bytes.
pub const PUT_BYTES_MAX: u64 = 5 << 30;
/// Largest object, bytes: 50 TB, as AWS documents since December 2025.
pub const OBJECT_BYTES_MAX: u64 = 50_000_000_000_000;
/// Keys, versions, uploads or parts in a page of a listing, at most.
pub const LIST_PAGE_MAX: usize = 1000;
/// Keys in one batch delete, at most.
pub const DELETE_KEYS_MAX: usize = 1000;
/// Buckets of an account, by default.
pub const BUCKETS_PER_ACCOUNT_MAX: usize = 10_000;
/// Shortest and longest bucket name, bytes.
pub const BUCKET_NAME_BYTES: std::ops::RangeInclusive<usize> = 3..=63;
/// Longest life of a presigned URL, seconds.
pub const PRESIGN_SECONDS_MAX: u64 = 7 * 24 * 3600;
/// How far a signed request's time may be from ours, seconds.
pub const CLOCK_SKEW_SECONDS_MAX: u64 = 15 * 60;

/// Bodies up to this size live in their metadata row, bytes.
pub const INLINE_BYTES_MAX: usize = 2 << 10;
/// Longest shard, bytes; a stripe of k data shards holds k times this.
pub const SHARD_BYTES_MAX: usize = 1 << 20;
/// Below this many bytes a shard would cost more in requests than copies cost in space.
pub const EC_SHARD_BYTES_MIN: usize = 64 << 10;
/// Bytes under one blake3 checksum of a shard.
pub const BLOCK_BYTES: usize = 64 << 10;
/// Data shards plus parity shards, at most; GF(2^8) bears 256, rows and maps are sized for this.
pub const STRIPE_WIDTH_MAX: usize = 32;
/// Stripes of one write: the u32 of a shard id, far above what an object needs.
pub const STRIPES_MAX: u64 = 1 << 24;

/// Slots of a bucket, fixed at its creation.
pub const SLOTS_DEFAULT: u16 = 8;
/// Entries of a zone's slot table, fixed at the zone's creation; slots of all buckets hash onto them.
pub const SLOT_TABLE_LEN: usize = 1024;
/// Partitions of a zone, by default and at most.
pub const PARTITIONS_DEFAULT: u32 = 8;
/// See [`PARTITIONS_DEFAULT`].
pub const PARTITIONS_MAX: u32 = 1024;

/// Low bits of a map's generation that count changes; those above count recoveries of the zone: its lives.
pub const MAP_LIFE_SHIFT: u32 = 32;

/// A backup of the metadata keeps what it owns from being freed this long, milliseconds of HLC.
pub const BACKUP_HOLD_MS_MAX: u64 = 7 * 24 * 3600 * 1000;

/// A mutation's outcome is remembered this long for its repeats, milliseconds of HLC.
pub const DEDUP_WINDOW_MS: u64 = 15 * 60 * 1000;
/// A mutation first attempted longer ago than this is refused, milliseconds of HLC.
pub const REQUEST_AGE_MS_MAX: u64 = 10 * 60 * 1000;
/// A write begun longer ago than this and not renewed is refused at commit, milliseconds of HLC.
pub const WRITE_AGE_MS_MAX: u64 = 12 * 3600 * 1000;
/// A timestamp from outside further ahead than this is never merged into the clock, milliseconds.
pub const CLOCK_AHEAD_MS_MAX: u64 = 5_000;
/// A leader whose clock is further off its peers' median than this does not propose, milliseconds.
pub const CLOCK_OFF_MS_MAX: u64 = 500;

/// Largest message between nodes, bytes: one shard and its envelope.
pub const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// HTTP/2 frame size on the data service, bytes.
pub const H2_FRAME_BYTES: u32 = 1 << 20;
/// HTTP/2 window on the data service, bytes.
pub const H2_WINDOW_BYTES: u32 = 8 << 20;

const _: () = assert!(SHARD_BYTES_MAX.is_multiple_of(BLOCK_BYTES), "a full shard is whole blocks");
const _: () = assert!(
    EC_SHARD_BYTES_MIN.is_multiple_of(BLOCK_BYTES),
    "the smallest erasure-coded shard is whole blocks"
);
const _: () =
    assert!(SHARD_BYTES_MAX + (64 << 10) < MESSAGE_BYTES_MAX, "a shard and its envelope fit a message");
const _: () =
    assert!(REQUEST_AGE_MS_MAX < DEDUP_WINDOW_MS, "what apply still accepts, the table still remembers");
const _: () = assert!(PARTS_MAX <= u16::MAX as u32, "part numbers fit a u16");
const _: () = assert!(INLINE_BYTES_MAX < EC_SHARD_BYTES_MIN, "inline bodies are below the copies");
const _: () =
    assert!(OBJECT_BYTES_MAX / (SHARD_BYTES_MAX as u64) < u32::MAX as u64, "stripes of an object fit a u32");

/// Events that a zone remembers.
pub const EVENTS_MAX: u64 = 10_000;
