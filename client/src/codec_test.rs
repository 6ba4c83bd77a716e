use proptest::prelude::*;
use proptest::sample::subsequence;

use super::*;

fn rs(data: u32, parity: u32) -> Scheme {
    Scheme { codec: v1::Codec::RsGf8.into(), data, parity }
}

fn copies(parity: u32) -> Scheme {
    Scheme { codec: v1::Codec::Copies.into(), data: 1, parity }
}

/// Bytes that look random and are the same for ever (SplitMix64, Steele et al. 2014).
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed;
    let mut next = move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) as u8
    };
    (0..length).map(|_| next()).collect()
}

fn stripe(scheme: &Scheme, seed: u64, length: usize) -> Vec<Vec<u8>> {
    let codec = codec_for(scheme).unwrap();
    let mut shards: Vec<Vec<u8>> = (0..codec.data()).map(|at| noise(seed + at as u64, length)).collect();
    let mut parity = vec![vec![0; length]; codec.parity()];
    let data: Vec<&[u8]> = shards.iter().map(Vec::as_slice).collect();
    codec.encode(&data, &mut parity.iter_mut().map(Vec::as_mut_slice).collect::<Vec<_>>()).unwrap();
    shards.append(&mut parity);
    shards
}

fn schemes() -> impl Strategy<Value = Scheme> {
    prop_oneof![
        (1u32..=12, 1u32..=6).prop_map(|(data, parity)| rs(data, parity)),
        (0u32..=4).prop_map(copies),
        Just(rs(16, 16)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn any_k_shards_give_back_all_others(
        (scheme, kept) in schemes().prop_flat_map(|scheme| {
            let width = (scheme.data + scheme.parity) as usize;
            let kept = subsequence((0..width).collect::<Vec<_>>(), scheme.data as usize).prop_shuffle();
            (Just(scheme), kept)
        }),
        seed in any::<u64>(),
        length in prop_oneof![0usize..300, Just(70_000usize)],
    ) {
        let shards = stripe(&scheme, seed >> 8, length);
        let present: Vec<(usize, &[u8])> = kept.iter().map(|at| (*at, shards[*at].as_slice())).collect();
        let wanted: Vec<usize> = (0..shards.len()).filter(|at| !kept.contains(at)).collect();
        let rebuilt = codec_for(&scheme).unwrap().reconstruct(&present, &wanted).unwrap();
        for (at, bytes) in wanted.iter().zip(rebuilt) {
            prop_assert_eq!(&bytes, &shards[*at], "shard {}", at);
        }
    }

    #[test]
    fn a_range_of_a_shard_needs_only_that_range(from in 0usize..5000, length in 0usize..5000, lost in 0usize..6) {
        let shards = stripe(&rs(4, 2), 5, 10_000);
        let range = from..from + length;
        let present: Vec<(usize, &[u8])> = (0..6).filter(|at| *at != lost).map(|at| (at, &shards[at][range.clone()])).collect();
        let rebuilt = codec_for(&rs(4, 2)).unwrap().reconstruct(&present, &[lost]).unwrap();
        prop_assert_eq!(&rebuilt[0], &shards[lost][range]);
    }
}

#[test]
fn what_does_not_fit_is_an_error() {
    let codec = codec_for(&rs(4, 2)).unwrap();
    let shard = [0u8; 8];
    let three: Vec<(usize, &[u8])> = (0..3).map(|at| (at, &shard[..])).collect();
    assert_eq!(codec.reconstruct(&three, &[5]), Err(CodecError::Shards("too few")));
    let twice: Vec<(usize, &[u8])> = [0, 1, 2, 2].into_iter().map(|at| (at, &shard[..])).collect();
    assert_eq!(codec.reconstruct(&twice, &[5]), Err(CodecError::Shards("one shard twice")));
    let uneven: Vec<(usize, &[u8])> = (0..4).map(|at| (at, &shard[..8 - at])).collect();
    assert_eq!(codec.reconstruct(&uneven, &[5]), Err(CodecError::Shards("unequal lengths")));
    let four: Vec<(usize, &[u8])> = (0..4).map(|at| (at, &shard[..])).collect();
    assert!(codec.reconstruct(&four, &[6]).is_err());
    assert!(codec.encode(&[&shard[..]; 3], &mut []).is_err());
}

#[test]
fn schemes_that_cannot_be_are_refused() {
    for scheme in
        [rs(0, 2), rs(4, 0), rs(30, 3), rs(u32::MAX, u32::MAX), Scheme { codec: 9, data: 4, parity: 2 }]
    {
        assert!(codec_for(&scheme).is_err(), "{scheme:?}");
    }
    assert!(codec_for(&Scheme { codec: v1::Codec::Copies.into(), data: 2, parity: 1 }).is_err());
    assert!(codec_for(&copies(0)).is_ok(), "one copy is an explicit choice");
}

/// Line per scheme: name, blake3 of every shard of a stripe of 100,000-byte noise shards, and the parity rows of the
/// matrix (the parity of the identity). These bytes are on disk: the file never changes, it only grows.
#[test]
fn golden_vectors() {
    let mut lines = String::new();
    for (name, scheme) in [
        ("copies-3", copies(2)),
        ("rs-2+1", rs(2, 1)),
        ("rs-3+2", rs(3, 2)),
        ("rs-4+2", rs(4, 2)),
        ("rs-6+3", rs(6, 3)),
        ("rs-8+3", rs(8, 3)),
        ("rs-8+4", rs(8, 4)),
        ("rs-10+4", rs(10, 4)),
        ("rs-16+4", rs(16, 4)),
    ] {
        for (at, shard) in stripe(&scheme, 1000, 100_000).iter().enumerate() {
            lines += &format!("{name} shard {at} blake3 {}\n", blake3::hash(shard).to_hex());
        }
        if scheme.codec() == v1::Codec::RsGf8 {
            let code = RsGf8::new(scheme.data as usize, scheme.parity as usize).unwrap();
            for (at, row) in code.parity_rows.iter().enumerate() {
                lines += &format!("{name} row {at} {}\n", hex::encode(row));
            }
        }
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/codec.txt");
    let golden = std::fs::read_to_string(path).unwrap_or_default();
    assert_eq!(
        golden, lines,
        "the code gives other bytes than those on disk; if schemes were added, here is the file:\n{lines}"
    );
}

/// The field and the matrix written down in docs/formats/codec.md, computed from their definition.
#[test]
fn the_matrix_is_the_documented_one() {
    fn mul(mut a: u8, mut b: u8) -> u8 {
        let mut product = 0;
        while b != 0 {
            if b & 1 != 0 {
                product ^= a;
            }
            // x^8 = x^4 + x^3 + x^2 + 1
            a = if a & 0x80 != 0 { (a << 1) ^ 0x1d } else { a << 1 };
            b >>= 1;
        }
        product
    }
    let (data, parity) = (4, 2);
    let power = |base: u8, exponent: usize| (0..exponent).fold(1, |value, _| mul(value, base));
    let vandermonde: Vec<Vec<u8>> =
        (0..data + parity).map(|row| (0..data).map(|column| power(row as u8, column)).collect()).collect();
    let top = invert(vandermonde[..data].to_vec()).unwrap();
    let code = RsGf8::new(data, parity).unwrap();
    for at in 0..parity {
        assert_eq!(times(&vandermonde[data + at], &top), code.parity_rows[at], "row {at}");
    }
}
