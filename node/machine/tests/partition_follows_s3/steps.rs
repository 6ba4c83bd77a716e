//! What may happen in a history, and what a listing asks for after each step.

use proptest::prelude::*;

pub(crate) const SLOTS: u32 = 3;

pub(crate) fn keys() -> Vec<Vec<u8>> {
    let mut long = "é/".repeat(341).into_bytes();
    long.push(b'x');
    let plain: [&[u8]; 15] = [
        b"a",
        b"a/",
        b"a/b",
        b"a/b/c",
        b"a//",
        b"b",
        b"b/1",
        b"b/2",
        b"\0",
        b"a\0",
        b"a\0/x",
        b"\x01",
        b"..",
        b"\x7f",
        b"\xc3\xa9",
    ];
    plain.iter().map(|key| key.to_vec()).chain([long]).collect()
}

#[derive(Debug, Clone)]
pub(crate) enum Cond {
    None,
    NoneMatchAny,
    MatchAny,
    MatchCurrent,
    MatchOther,
    Size(u64),
}

#[derive(Debug, Clone)]
pub(crate) enum Step {
    Put { key: usize, big: bool, cond: Cond },
    Delete { key: usize, which: Option<usize>, cond: Cond },
    CreateUpload { key: usize },
    PutPart { upload: usize, part: u32, big: bool },
    Complete { upload: usize, parts: Vec<u32>, lie: bool, cond: Cond },
    Abort { upload: usize },
    Versioning { enabled: bool },
    Replay { which: usize },
    Collect,
    Fence,
    Renew,
    Advance { ms: u64 },
    Reload,
}

pub(crate) fn cond() -> impl Strategy<Value = Cond> {
    prop_oneof![
        6 => Just(Cond::None),
        1 => Just(Cond::NoneMatchAny),
        1 => Just(Cond::MatchAny),
        1 => Just(Cond::MatchCurrent),
        1 => Just(Cond::MatchOther),
        1 => prop_oneof![Just(10u64), Just(5000)].prop_map(Cond::Size),
    ]
}

pub(crate) fn step() -> impl Strategy<Value = Step> {
    let key = || 0..keys().len();
    // Few keys get most of the writes, so that they are overwritten.
    let hot = || prop_oneof![3 => 0..4usize, 1 => key()];
    prop_oneof![
        8 => (hot(), any::<bool>(), cond()).prop_map(|(key, big, cond)| Step::Put { key, big, cond }),
        5 => (hot(), prop::option::of(0..4usize), cond())
            .prop_map(|(key, which, cond)| Step::Delete { key, which, cond }),
        3 => hot().prop_map(|key| Step::CreateUpload { key }),
        6 => (any::<usize>(), 1..5u32, any::<bool>())
            .prop_map(|(upload, part, big)| Step::PutPart { upload, part, big }),
        4 => (any::<usize>(), prop::collection::vec(1..5u32, 0..4), prop::bool::weighted(0.1), cond())
            .prop_map(|(upload, parts, lie, cond)| Step::Complete { upload, parts, lie, cond }),
        1 => any::<usize>().prop_map(|upload| Step::Abort { upload }),
        1 => any::<bool>().prop_map(|enabled| Step::Versioning { enabled }),
        4 => any::<usize>().prop_map(|which| Step::Replay { which }),
        2 => Just(Step::Collect),
        1 => Just(Step::Fence),
        1 => Just(Step::Renew),
        3 => prop_oneof![Just(1u64), Just(60_000), Just(11 * 60_000), Just(16 * 60_000), Just(13 * 3_600_000)]
            .prop_map(|ms| Step::Advance { ms }),
        1 => Just(Step::Reload),
    ]
}

/// What a listing asks for in a step.
#[derive(Debug, Clone)]
pub(crate) struct Probe {
    pub(crate) prefix: Vec<u8>,
    pub(crate) delimiter: Vec<u8>,
    pub(crate) after: Vec<u8>,
    pub(crate) limit: u32,
}

pub(crate) fn probe() -> impl Strategy<Value = Probe> {
    let some =
        |texts: &[&[u8]]| prop::sample::select(texts.iter().map(|text| text.to_vec()).collect::<Vec<_>>());
    let prefix = some(&[b"", b"a", b"a/", b"a\0", b"b/", b"zz", b"\xc3"]);
    let delimiter = some(&[b"", b"/", b"/", b"b/", b"\0"]);
    let after = some(&[b"", b"", b"a", b"a/", b"a/a", b"a/b", b"b/1", b"\0", b"\xff"]);
    (prefix, delimiter, after, 1..5u32).prop_map(|(prefix, delimiter, after, limit)| Probe {
        prefix,
        delimiter,
        after,
        limit,
    })
}
