//! Ranges of costs and sizes, with arithmetic that stops at the largest number.

/// From the least to the most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Estimate {
    pub min: u64,
    pub max: u64,
}

impl Estimate {
    pub(crate) const UNKNOWN: Self = Self { min: 0, max: u64::MAX };

    pub fn fixed(value: u64) -> Self {
        Self { min: value, max: value }
    }

    pub fn up_to(max: u64) -> Self {
        Self { min: 0, max }
    }

    #[must_use]
    pub(crate) fn plus(self, other: Self) -> Self {
        Self { min: self.min.saturating_add(other.min), max: self.max.saturating_add(other.max) }
    }

    #[must_use]
    pub(crate) fn times(self, other: Self) -> Self {
        Self { min: self.min.saturating_mul(other.min), max: self.max.saturating_mul(other.max) }
    }

    /// Times a factor, rounded up.
    #[must_use]
    pub(crate) fn scaled(self, factor: f64) -> Self {
        // A cast of a float stops at the largest number by itself.
        let scale = |value: u64| (value as f64 * factor).ceil() as u64;
        Self { min: scale(self.min), max: scale(self.max) }
    }

    /// The range that covers both.
    #[must_use]
    pub(crate) fn union(self, other: Self) -> Self {
        Self { min: self.min.min(other.min), max: self.max.max(other.max) }
    }
}
