//! Tier kernel.
