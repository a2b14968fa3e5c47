//! How the server's seats are shared out among priority levels: nominally by their shares, and every ten seconds anew by
//! what they need, within what each may lend and borrow. Pure.

/// What a level's object says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Share {
    pub(super) shares: u32,
    /// Of its nominal seats, 0 to 100.
    pub(super) lendable_percent: u32,
    /// Of its nominal seats; `None`: as many as others lend.
    pub(super) borrowing_limit_percent: Option<u32>,
}

/// Seats of a level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    pub(super) nominal: u32,
    /// What is left when all that may be lent is.
    pub(super) min: u32,
    pub(super) max: u32,
}

/// The limits of each level, where the server has `total` seats.
pub(super) fn limits(total: u32, shares: &[Share]) -> Vec<Limits> {
    let sum: u64 = shares.iter().map(|share| u64::from(share.shares)).sum();
    let of = |share: &Share| {
        let nominal = (u64::from(total) * u64::from(share.shares)).div_ceil(sum.max(1));
        let nominal = u32::try_from(nominal).unwrap_or(u32::MAX);
        let part = |percent: u32| (f64::from(nominal) * f64::from(percent) / 100.0).round() as u32;
        let max = share
            .borrowing_limit_percent
            .map_or(nominal.max(total), |percent| nominal.saturating_add(part(percent)));
        Limits { nominal, min: nominal - part(share.lendable_percent).min(nominal), max }
    };
    shares.iter().map(of).collect()
}

/// Seats for each level so that all together have `total`: in proportion to `targets`, within the limits.
pub(super) fn allocate(total: u32, limits: &[Limits], targets: &[f64]) -> Vec<u32> {
    let at = |fraction: f64| -> Vec<f64> {
        let of = |(limit, target): (&Limits, &f64)| {
            (fraction * target).clamp(f64::from(limit.min), f64::from(limit.max.max(limit.min)))
        };
        limits.iter().zip(targets).map(of).collect()
    };
    let sum = |fraction: f64| at(fraction).iter().sum::<f64>();
    // The sum grows with the fraction: halve the interval that holds the total.
    let (mut low, mut high) = (0.0, 1.0);
    for _ in 0..40 {
        if sum(high) >= f64::from(total) {
            break;
        }
        high *= 2.0;
    }
    for _ in 0..60 {
        let middle = (low + high) / 2.0;
        if sum(middle) < f64::from(total) { low = middle } else { high = middle }
    }
    at(high).iter().map(|seats| seats.round().max(1.0) as u32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(shares: u32, lendable_percent: u32) -> Share {
        Share { shares, lendable_percent, borrowing_limit_percent: None }
    }

    #[test]
    fn seats_follow_shares() {
        let all = [
            share(30, 33),
            share(40, 25),
            share(5, 0),
            Share { borrowing_limit_percent: Some(50), ..share(25, 90) },
        ];
        let limits = limits(600, &all);
        assert_eq!(limits.iter().map(|limit| limit.nominal).collect::<Vec<_>>(), [180, 240, 30, 150]);
        assert_eq!(limits.iter().map(|limit| limit.min).collect::<Vec<_>>(), [121, 180, 30, 15]);
        assert_eq!(limits.iter().map(|limit| limit.max).collect::<Vec<_>>(), [600, 600, 600, 225]);
        assert_eq!(super::limits(600, &[share(0, 0)])[0].nominal, 0);
    }

    #[test]
    fn who_needs_more_borrows_from_who_needs_less() {
        let limits = limits(100, &[share(50, 50), share(50, 50)]);
        assert_eq!(allocate(100, &limits, &[50.0, 50.0]), [50, 50]);
        let lent = allocate(100, &limits, &[25.0, 500.0]);
        assert_eq!(lent, [25, 75], "no level lends more than it may");
        let capped =
            super::limits(100, &[share(50, 50), Share { borrowing_limit_percent: Some(10), ..share(50, 0) }]);
        assert_eq!(allocate(100, &capped, &[1.0, 500.0])[1], 55, "and none borrows more than it may");
    }
}
