//! What Kubernetes knows about its objects, as data and pure functions: no IO, no clock, no runtime.
//!
//! Objects are [`serde_json::Value`]. One schema engine ([`schema`]) serves every kind: decoding, defaulting, strategic
//! merge ([`patch`]), OpenAPI documents ([`openapi`]). Beside it the words of the API: [`status`], [`field`] errors,
//! [`names`], [`selector`]s, [`quantity`], [`quota`] usage, [`time`], and access to [`meta`]data.

pub mod apply;
pub mod field;
pub mod json;
pub mod meta;
pub mod names;
pub mod openapi;
pub mod patch;
pub mod protobuf;
pub mod quantity;
pub mod quota;
pub mod schema;
pub mod selector;
pub mod shared;
pub mod status;
pub mod structural;
pub mod time;
pub mod yaml;
