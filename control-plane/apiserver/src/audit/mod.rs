//! The audit log: who asked for what, when, and what came of it, as `audit.k8s.io/v1` says.

mod event;

pub use self::event::{Level, Recorder};
