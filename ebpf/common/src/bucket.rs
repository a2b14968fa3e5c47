//! How many packets the programs make by themselves: a token bucket for each CPU.

/// Holds time, of which each packet costs a piece. All zero is a bucket that fills up at once.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bucket {
    /// CLOCK_MONOTONIC when it was last asked.
    last_ns: u64,
    credit_ns: u64,
}

impl Bucket {
    pub const EMPTY: Self = Self { last_ns: 0, credit_ns: 0 };

    /// A thousand packets per second, as hosts limit their ICMP errors by default.
    pub const COST_NS: u64 = 1_000_000;
    /// So many of them at once.
    pub const BURST: u64 = 256;

    /// The packets that it held when it was last asked.
    pub const fn credit(&self) -> u64 {
        self.credit_ns / Self::COST_NS
    }

    /// Whether there is enough for one packet, which is then taken.
    #[inline(always)]
    pub const fn take(&mut self, now_ns: u64) -> bool {
        const FULL_NS: u64 = Bucket::COST_NS * Bucket::BURST;
        let elapsed_ns = now_ns.saturating_sub(self.last_ns);
        let credit_ns = if elapsed_ns > FULL_NS { FULL_NS } else { self.credit_ns + elapsed_ns };
        let credit_ns = if credit_ns > FULL_NS { FULL_NS } else { credit_ns };
        self.last_ns = now_ns;
        if credit_ns < Self::COST_NS {
            self.credit_ns = credit_ns;
            return false;
        }
        self.credit_ns = credit_ns - Self::COST_NS;
        true
    }
}

const _: () = assert!(size_of::<Bucket>() == 16);

crate::pod!(Bucket);
