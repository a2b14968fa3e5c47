//! The API server as a library; `seaway-server` runs it.
//!
//! ```text
//! server (sockets, TLS, pipeline) -> handlers (one file per verb) -> registry (rules of a kind), admission
//!                                                                 -> storage (cache, embedded | etcd)
//! ```
//!
//! Kinds are data: a row of `api::schema` and a strategy of `registry`. Handlers never know kinds.

pub mod admission;
pub mod aggregation;
pub mod audit;
pub mod callout;
pub mod config;
pub mod context;
pub mod conversion;
pub mod custom;
pub mod decode;
pub mod discovery;
pub mod flow_control;
pub mod handlers;
pub mod kinds;
pub mod negotiate;
pub mod ownership;
pub mod protobuf;
pub mod query;
pub mod registry;
pub mod request;
pub mod respond;
pub mod security;
pub mod server;
pub mod state;
pub mod storage;
pub mod subresources;
pub mod table;
pub mod version;

pub use config::{Config, Store};
pub use security::Identity;
pub use server::Server;
