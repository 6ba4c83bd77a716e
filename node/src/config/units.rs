//! Sizes and durations as operators write them: `"1GiB"`, `"15s"`. Both print in the form they parse from.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

/// Bytes. Text takes B, KiB, MiB, GiB, TiB, or no unit for plain bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Size(pub(crate) u64);

const UNITS: [(&str, u32); 5] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10), ("B", 0)];

impl Size {
    pub(crate) const fn mib(count: u64) -> Self {
        Self(count << 20)
    }
    pub(crate) const fn gib(count: u64) -> Self {
        Self(count << 30)
    }
    pub(crate) const fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fault = || format!("{text:?} is not a size such as \"512KiB\", \"64MiB\" or \"1GiB\"");
        let (digits, shift) = UNITS
            .iter()
            .find_map(|(unit, shift)| text.strip_suffix(unit).map(|digits| (digits, *shift)))
            .unwrap_or((text, 0));
        let count: u64 = digits.trim_end().parse().map_err(|_| fault())?;
        count.checked_mul(1 << shift).map(Self).ok_or_else(fault)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = UNITS.iter().find(|(_, shift)| self.0 != 0 && self.0.trailing_zeros() >= *shift);
        let (unit, shift) = whole.copied().unwrap_or(("B", 0));
        write!(f, "{}{unit}", self.0 >> shift)
    }
}

/// A length of time. Text is humantime's: `"300ms"`, `"15s"`, `"10min"`, `"1h 30min"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Span(pub(crate) Duration);

impl Span {
    pub(crate) const fn secs(count: u64) -> Self {
        Self(Duration::from_secs(count))
    }
    pub(crate) const fn millis(count: u64) -> Self {
        Self(Duration::from_millis(count))
    }
    pub(crate) const fn get(self) -> Duration {
        self.0
    }
}

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        humantime::parse_duration(text)
            .map(Self)
            .map_err(|_| format!("{text:?} is not a duration such as \"300ms\", \"15s\" or \"10min\""))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", humantime::format_duration(self.0))
    }
}

struct Text<T>(&'static str, std::marker::PhantomData<T>);

impl<T: FromStr<Err = String>> Visitor<'_> for Text<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }
    // A bare number from an environment override: bytes for a size, refused for a duration.
    fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
        number.to_string().parse().map_err(E::custom)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Text("a size such as \"1GiB\"", std::marker::PhantomData))
    }
}
impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Text("a duration such as \"15s\"", std::marker::PhantomData))
    }
}
impl Serialize for Size {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}
impl Serialize for Span {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_print_as_they_parse() {
        for (text, bytes) in [
            ("1GiB", 1 << 30),
            ("64MiB", 64 << 20),
            ("3KiB", 3 << 10),
            ("17B", 17),
            ("0B", 0),
            ("2TiB", 2 << 40),
        ] {
            let size: Size = text.parse().unwrap();
            assert_eq!(size.bytes(), bytes);
            assert_eq!(size.to_string(), text);
        }
        assert_eq!("12".parse::<Size>().unwrap(), Size(12));
        assert!("1GB".parse::<Size>().is_err());
        assert!("99999999TiB".parse::<Size>().is_err());
    }

    #[test]
    fn durations_need_a_unit() {
        assert_eq!("15s".parse::<Span>().unwrap(), Span::secs(15));
        assert_eq!("300ms".parse::<Span>().unwrap().to_string(), "300ms");
        assert!("15".parse::<Span>().is_err());
    }
}
