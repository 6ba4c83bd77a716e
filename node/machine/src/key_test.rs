use super::*;
use proptest::prelude::*;

const BUCKET: BucketId = BucketId::from_bytes([0xb0; 16]);
const WRITE: WriteId = WriteId::from_bytes([0xd0; 16]);
const SLOT: Slot = Slot::new(0x0102);
const HLC: Hlc = Hlc::from_u64(0x0192_3456_789a_0001);
const UPLOAD: UploadId = UploadId { hlc: HLC, random: 0x1122_3344_5566_7788 };

fn spot(key: &[u8]) -> Spot<'_> {
    Spot { bucket: BUCKET, slot: SLOT, key }
}

/// Letters as text, then hex.
fn show(key: &[u8]) -> String {
    let bar = key.iter().position(|&byte| byte == b'|').unwrap() + 1;
    let letters = std::str::from_utf8(&key[..bar]).unwrap();
    format!("{letters}{}", data_encoding::HEXLOWER.encode(&key[bar..]))
}

/// Row keys are on disk (day 1): these never change.
#[test]
fn golden_keys() {
    let b = "b0".repeat(16);
    let d = "d0".repeat(16);
    let version = VersionId::new(HLC, ZoneId::new(3));
    let account = AccountId::from_bytes([0xac; 16]);
    let cases = [
        (of_bucket(BKT, BUCKET), format!("bkt|{b}")),
        (of_key(CUR, spot(b"a\0b")), format!("cur|{b}01026100ff620001")),
        (self::version(spot(b"a"), version), format!("ver|{b}0102610001fe6dcba98765fffe0003")),
        (
            upload(spot(b"a"), UPLOAD),
            format!("upl|{b}0102610001{}", "0192345678 9a00011122334455667788".replace(' ', "")),
        ),
        (
            part_attempt(BUCKET, SLOT, UPLOAD, 7, HLC),
            format!("prt|{b}01020192345678{}1122334455667788{}{}", "9a0001", "0007", "01923456789a0001"),
        ),
        (of_write(WRT, BUCKET, SLOT, WRITE), format!("wrt|{b}0102{d}")),
        (of_write(MIS, BUCKET, SLOT, WRITE), format!("mis|{b}0102{d}")),
        (garbage(BUCKET, SLOT, HLC, WRITE), format!("gc|{b}010201923456789a0001{d}")),
        (request(HLC, RequestId::from_bytes([0xee; 16])), format!("req|01923456789a0001{}", "ee".repeat(16))),
        (of_slot(CNT, BUCKET, SLOT), format!("cnt|{b}0102")),
        (of_text(BKN, "photos"), "bkn|70686f746f730001".to_owned()),
        (of_id(BKI, BUCKET.as_bytes()), format!("bki|{b}")),
        (bucket_of_owner(account, "b"), format!("bko|{}620001", "ac".repeat(16))),
        (of_id(ACC, account.as_bytes()), format!("acc|{}", "ac".repeat(16))),
        (of_text(KEY, "AK"), "key|414b0001".to_owned()),
        (of_id(NOD, &0x0001_0000_0000_0002_u64.to_be_bytes()), "nod|0001000000000002".to_owned()),
        (of_id(TGT, &7_u32.to_be_bytes()), "tgt|00000007".to_owned()),
    ];
    for (key, golden) in cases {
        assert_eq!(show(&key), golden);
    }
}

/// Keys full of the bytes that the escape is about.
fn keys() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(prop::sample::select(vec![0, 1, 2, b'/', b'a', 0xfe, 0xff]), 0..6)
}

proptest! {
    #[test]
    fn rows_sort_as_keys_do(a in keys(), b in keys()) {
        prop_assert_eq!(of_key(CUR, spot(&a)).cmp(&of_key(CUR, spot(&b))), a.cmp(&b));
    }

    #[test]
    fn keys_come_back_with_what_follows(key in keys(), rest in prop::collection::vec(any::<u8>(), 0..20)) {
        let mut row = Vec::new();
        escape_key(&mut row, &key);
        row.extend_from_slice(&rest);
        prop_assert_eq!(unescape_key(&row), Some((key, rest.as_slice())));
    }

    #[test]
    fn the_rows_of_a_prefix_are_a_range(key in keys(), prefix in keys()) {
        let row = version(spot(&key), VersionId::new(HLC, ZoneId::new(1)));
        let mut start = of_slot(VER, BUCKET, SLOT);
        escape(&mut start, &prefix);
        let inside = row >= start && row < prefix_end(&start);
        prop_assert_eq!(inside, key.starts_with(&prefix));
    }

    #[test]
    fn newer_versions_sort_first(a in any::<(u64, u16)>(), b in any::<(u64, u16)>()) {
        let of = |(hlc, zone)| VersionId::new(Hlc::from_u64(hlc), ZoneId::new(zone));
        prop_assert_eq!(version_suffix(of(a)).cmp(&version_suffix(of(b))), of(b).cmp(&of(a)));
        prop_assert_eq!(parse_version_suffix(&version_suffix(of(a))), Some(of(a)));
    }
}

#[test]
fn malformed_keys_are_none() {
    for bytes in [&b""[..], b"a", b"a\0", b"a\0\x02", b"a\0\xff"] {
        assert_eq!(unescape_key(bytes), None);
    }
}

#[test]
fn a_prefix_of_ff_ends_above_it() {
    assert_eq!(prefix_end(b"cur|\xff\xff"), b"cur}");
    assert_eq!(prefix_end(b"a\0\xff"), b"a\x01");
}
