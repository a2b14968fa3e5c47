//! GET of one object: straight from the cache, byte for byte.
//!
//! Without a resourceVersion the answer is the newest state; with one, any state that is not older.

use std::time::Duration;

use api::status::Status;
use http::{Response, StatusCode};

use super::{
    Call, Target,
    target::{read, storage_status},
};
use crate::{
    query::parse_version,
    server::body::Body,
    storage::{Revision, cache::FRESHNESS_TIMEOUT},
};

pub async fn handle(call: &mut Call, target: &Target) -> Result<Response<Body>, Status> {
    let accepted = call.accepted_object()?;
    let key = target.key(&call.info.namespace, &call.info.name);
    let cache = &call.state.cache;
    let fresh = match parse_version(call.query.get("resourceVersion").unwrap_or_default())? {
        None => true,
        Some(0) => false,
        Some(version) => {
            let timeout: Duration = FRESHNESS_TIMEOUT;
            cache.wait_for(Revision(version), timeout).await.map_err(|error| storage_status(&error))?;
            false
        }
    };
    let object = read(cache, &key, fresh).await?.ok_or_else(|| target.not_found(&call.info.name))?;
    target.prepare([&object]).await?;
    call.answer_cached(target, accepted, StatusCode::OK, &object)
}
