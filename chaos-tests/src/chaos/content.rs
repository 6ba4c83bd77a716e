//! Bodies that say which value they are, every byte of them.

use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};

use super::history::Value;

/// Bytes of the value at the front of its body.
const HEAD: usize = 8;
/// The least that a part of a multipart upload may have, but for the last one.
pub const PART: usize = 5 << 20;

/// The body of a value: inline in the metadata, in copies, coded, or of several stripes, as the value has it.
pub fn body(value: Value) -> Bytes {
    let mut rng = SmallRng::seed_from_u64(value);
    let size = match rng.random_range(0..100) {
        0..35 => rng.random_range(HEAD..2_000),
        35..75 => rng.random_range(3_000..200_000),
        75..97 => rng.random_range(300_000..1_000_000),
        _ => rng.random_range(PART..PART + 3_000_000),
    };
    filled(value, size, rng)
}

/// A body that is long enough for two parts.
pub fn long_body(value: Value) -> Bytes {
    let mut rng = SmallRng::seed_from_u64(value);
    let size = rng.random_range(PART + 1_000..PART + 400_000);
    filled(value, size, rng)
}

fn filled(value: Value, size: usize, mut rng: SmallRng) -> Bytes {
    let mut body = vec![0; size];
    rng.fill_bytes(&mut body);
    body[..HEAD].copy_from_slice(&value.to_le_bytes());
    body.into()
}

/// The value of a body, when it is that of a value, byte for byte. `long` says which values have a [`long_body`].
pub fn value(read: &[u8], long: impl Fn(Value) -> bool) -> Option<Value> {
    let head = read.get(..HEAD).and_then(|head| head.try_into().ok())?;
    let value = Value::from_le_bytes(head);
    let whole = if long(value) { long_body(value) } else { body(value) };
    (whole == read).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_says_its_value_and_nothing_else_does() {
        for number in [1, 2, 77, 1 << 40] {
            let mut whole = body(number).to_vec();
            assert_eq!(value(&whole, |_| false), Some(number));
            assert_eq!(value(&whole, |_| true), None, "it is the other kind");
            let last = whole.len() - 1;
            assert_eq!(value(&whole[..last], |_| false), None);
            whole[last] ^= 1;
            assert_eq!(value(&whole, |_| false), None);
        }
        assert_eq!(value(&long_body(5), |_| true), Some(5));
        assert_eq!(value(b"short", |_| false), None);
    }
}
