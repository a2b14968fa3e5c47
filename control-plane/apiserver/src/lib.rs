//! The API server as a library; `seaway-server` runs it.

pub mod storage;
