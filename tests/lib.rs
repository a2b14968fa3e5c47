//! The tests of this package are its test binaries: sim, kernel and cluster.
