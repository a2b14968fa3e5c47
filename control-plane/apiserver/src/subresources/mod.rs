//! Paths below an object (`/status`, `/scale`, `/log`, ...) and resources that nothing is stored of (reviews, bindings).

use api::status::Status;
use http::{Method, Response};

use crate::{
    handlers::{self, Call, Target},
    server::body::Body,
};

pub mod binding;
pub mod eviction;
pub mod pod_streams;
pub mod proxy;
pub mod reviews;
pub mod scale;
pub mod service;
pub mod token;
pub mod upstream;

/// Answers for resources without objects; `None` for all others.
pub async fn virtual_resource(call: &mut Call) -> Option<Result<Response<Body>, Status>> {
    let info = &call.info;
    if !info.subresource.is_empty() {
        return None;
    }
    let is_binding = info.group.is_empty() && info.resource == "bindings";
    if !is_binding && !reviews::is_review(&info.group, &info.resource) {
        return None;
    }
    let known = call.state.schema.resource(&info.group, &info.version, &info.resource);
    Some(match known {
        None => Err(Status::resource_not_found()),
        Some(resource) if info.verb != "create" || !info.name.is_empty() => {
            Err(Status::method_not_supported(&resource.group, &resource.plural, &info.verb))
        }
        Some(_) if is_binding => binding::handle(call).await,
        Some(resource) => reviews::handle(call, resource).await,
    })
}

/// Answers a request for a subresource of a stored object.
pub async fn dispatch(call: &mut Call, target: &Target) -> Result<Response<Body>, Status> {
    let resource = &*target.resource;
    let name = call.info.subresource.clone();
    let subresource = resource.subresource(&name).ok_or_else(Status::resource_not_found)?;
    let core_kind = if resource.group.is_empty() { resource.plural.as_str() } else { "" };
    match (core_kind, name.as_str()) {
        ("nodes" | "pods" | "services", "proxy") => return proxy::handle(call, target).await,
        ("pods", "log") if call.method == Method::GET => return pod_streams::log(call, target).await,
        ("pods", "exec" | "attach" | "portforward") if matches!(call.method, Method::GET | Method::POST) => {
            return pod_streams::stream(call, target).await;
        }
        _ => {}
    }
    let verb = call.info.verb.clone();
    if !subresource.verbs.contains(&verb) {
        return Err(Status::method_not_allowed());
    }
    match (core_kind, name.as_str(), verb.as_str()) {
        ("pods", "binding", "create") => binding::handle(call).await,
        ("pods", "eviction", "create") => eviction::handle(call, target).await,
        ("serviceaccounts", "token", "create") => token::handle(call, target).await,
        (_, "scale", "get") => scale::get(call, target).await,
        (_, "scale", "update" | "patch") => scale::update(call, target).await,
        (_, _, "get") => handlers::get::handle(call, target).await,
        (_, _, "update") => handlers::update::handle(call, target).await,
        (_, _, "patch") => handlers::patch::handle(call, target).await,
        _ => Err(Status::method_not_allowed()),
    }
}
