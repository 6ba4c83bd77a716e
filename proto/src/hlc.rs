//! Hybrid logical clock timestamps: 48 bits of milliseconds since the Unix epoch, 16 bits of counter.
//!
//! Kulkarni et al., "Logical Physical Clocks and Consistent Snapshots" (2014), with the logical part packed below the
//! physical one. The packed form is in row keys and version ids (day 1). This module reads no clock.

use std::fmt;

/// A point in hybrid logical time. Later is greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Hlc(u64);

impl Hlc {
    /// Bits below the milliseconds.
    pub const COUNTER_BITS: u32 = 16;
    /// Before everything.
    pub const ZERO: Self = Self(0);
    /// After everything.
    pub const MAX: Self = Self(u64::MAX);

    /// The first instant of the millisecond `ms` since the Unix epoch; saturates at 48 bits (the year 10889).
    pub const fn from_ms(ms: u64) -> Self {
        let ms_max = u64::MAX >> Self::COUNTER_BITS;
        Self((if ms > ms_max { ms_max } else { ms }) << Self::COUNTER_BITS)
    }
    /// From the packed form.
    pub const fn from_u64(raw: u64) -> Self {
        Self(raw)
    }
    /// The packed form.
    pub const fn get(self) -> u64 {
        self.0
    }
    /// Milliseconds since the Unix epoch.
    pub const fn ms(self) -> u64 {
        self.0 >> Self::COUNTER_BITS
    }
    /// The next instant; saturates.
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
    /// The reading that follows `last` when the wall clock shows `now`: `max(last + 1, now)`.
    pub fn tick(last: Self, now: Self) -> Self {
        last.next().max(now)
    }
    /// This instant moved back by `ms`; saturates at zero.
    pub const fn minus_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_sub(ms << Self::COUNTER_BITS))
    }
    /// Big-endian bytes, as in row keys.
    pub const fn to_be_bytes(self) -> [u8; 8] {
        self.0.to_be_bytes()
    }
    /// From big-endian bytes.
    pub const fn from_be_bytes(bytes: [u8; 8]) -> Self {
        Self(u64::from_be_bytes(bytes))
    }
}

impl fmt::Display for Hlc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.ms(), self.0 & 0xffff)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tick_never_goes_back() {
        let last = Hlc::from_ms(10);
        assert_eq!(Hlc::tick(last, Hlc::from_ms(5)), last.next());
        assert_eq!(Hlc::tick(last, Hlc::from_ms(11)), Hlc::from_ms(11));
        assert_eq!(Hlc::tick(Hlc::MAX, Hlc::ZERO), Hlc::MAX);
    }

    #[test]
    fn milliseconds_survive_packing() {
        assert_eq!(Hlc::from_ms(1_790_000_000_123).ms(), 1_790_000_000_123);
        assert_eq!(Hlc::from_ms(u64::MAX).ms(), u64::MAX >> 16);
        assert_eq!(Hlc::from_ms(3).minus_ms(5), Hlc::ZERO);
    }
}
