//! The API server as a library; `seaway-server` runs it.

pub mod registry;
pub mod security;
pub mod storage;
