//! Tier cluster.
