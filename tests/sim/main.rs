//! Tier sim.
