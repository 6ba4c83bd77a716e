//! Row values: one byte of schema version, then a message. A value that does not decode stops the group.

use bytes::Bytes;
use holdfast_proto::meta::{Answer, Outcome, Refusal, answer};
use prost::Message;

use crate::Halt;
use crate::kv::{Kv, KvError, KvRead};

/// Schema of every value written today. Readers keep all earlier ones for ever.
pub(crate) const SCHEMA: u8 = 1;

/// Why a step ended early.
#[derive(Debug)]
pub(crate) enum Stop {
    /// The answer is no. What was written before a refusal would stay, so handlers decide first and write then.
    Refused(Refusal, String),
    /// The group cannot go on.
    Halt(Halt),
}

pub(crate) type Step<T> = Result<T, Stop>;

impl From<Halt> for Stop {
    fn from(halt: Halt) -> Self {
        Self::Halt(halt)
    }
}

impl From<KvError> for Stop {
    fn from(error: KvError) -> Self {
        Self::Halt(Halt::Kv(error))
    }
}

/// Ends a step with a refusal.
pub(crate) fn refuse<T>(refusal: Refusal, detail: impl Into<String>) -> Step<T> {
    Err(Stop::Refused(refusal, detail.into()))
}

/// A refused command's outcome.
pub(crate) fn refused_outcome(refusal: Refusal, detail: String) -> Outcome {
    Outcome { refusal: refusal.into(), detail, ok: None }
}

/// An answer without its HLC.
pub(crate) fn answer(result: Step<Option<answer::Ok>>) -> Result<Answer, Halt> {
    match result {
        Ok(ok) => Ok(Answer { ok, ..Answer::default() }),
        Err(Stop::Refused(refusal, detail)) => {
            Ok(Answer { refusal: refusal.into(), detail, ..Answer::default() })
        }
        Err(Stop::Halt(halt)) => Err(halt),
    }
}

/// Rows contradict each other.
pub(crate) fn corrupt(key: &[u8], reason: impl Into<String>) -> Halt {
    Halt::Corrupt { key: key.escape_ascii().to_string(), reason: reason.into() }
}

/// A stored value.
pub(crate) fn encode(message: &impl Message) -> Vec<u8> {
    let mut out = Vec::with_capacity(1 + message.encoded_len());
    out.push(SCHEMA);
    message.encode_raw(&mut out);
    out
}

/// The message of a stored value.
pub(crate) fn decode<M: Message + Default>(key: &[u8], mut value: Bytes) -> Result<M, Halt> {
    match value.first() {
        Some(&SCHEMA) => {
            let body = value.split_off(1);
            M::decode(body).map_err(|error| corrupt(key, error.to_string()))
        }
        Some(other) => Err(corrupt(key, format!("schema version {other} is not known"))),
        None => Err(corrupt(key, "empty value")),
    }
}

/// Reads a row.
pub(crate) fn read<M: Message + Default>(kv: &impl KvRead, key: &[u8]) -> Result<Option<M>, Halt> {
    match kv.get(key)? {
        Some(value) => decode(key, value).map(Some),
        None => Ok(None),
    }
}

/// Reads a row that another row says is there.
pub(crate) fn read_sure<M: Message + Default>(kv: &impl KvRead, key: &[u8], why: &str) -> Result<M, Halt> {
    read(kv, key)?.ok_or_else(|| corrupt(key, format!("absent, but {why}")))
}

/// Writes a row.
pub(crate) fn write(kv: &mut impl Kv, key: Vec<u8>, message: &impl Message) {
    kv.put(key, encode(message));
}

/// All rows that start with `prefix`, decoded, with their keys.
pub(crate) fn read_prefix<M: Message + Default>(
    kv: &impl KvRead,
    prefix: &[u8],
) -> Result<Vec<(Bytes, M)>, Halt> {
    kv.scan(prefix, &crate::key::prefix_end(prefix))
        .map(|row| {
            let (key, value) = row?;
            let message = decode(&key, value)?;
            Ok((key, message))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_proto::meta::BucketName;

    #[test]
    fn a_value_is_its_schema_version_and_a_message() {
        let value = encode(&BucketName { name: "a".into() });
        assert_eq!(value, [1, 0x0a, 1, b'a']);
        assert_eq!(decode::<BucketName>(b"k", value.into()).unwrap().name, "a");
    }

    #[test]
    fn an_unknown_schema_or_a_torn_value_halts() {
        for value in [&b""[..], b"\x02", b"\x01\x0a\x05a"] {
            assert!(decode::<BucketName>(b"k", Bytes::copy_from_slice(value)).is_err());
        }
    }
}
