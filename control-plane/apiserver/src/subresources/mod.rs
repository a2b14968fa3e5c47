//! Paths below an object (`/status`, `/scale`, `/log`, ...) and resources that nothing is stored of (reviews, bindings).

use api::status::Status;
use http::{Method, Response};
use serde_json::{Value, json};

use crate::{
    admission::{Operation, Options, Request},
    handlers::{self, Call, Target},
    query::{Query, WriteOptions},
    server::body::Body,
};

mod access_review;
pub mod binding;
pub mod eviction;
pub mod node_ports;
pub mod pod_streams;
pub mod proxy;
pub mod reviews;
mod rewrite;
pub mod scale;
pub mod service;
pub mod token;
pub mod upstream;

/// Asks admission about a body that is answered or acted on but never stored: CREATE of a review, a binding, an eviction,
/// a token.
pub async fn admit(
    call: &mut Call,
    target: &Target,
    options: &WriteOptions,
    body: &mut Value,
) -> Result<(), Status> {
    ask(call, target, Operation::Create, Options::Write(options), body).await
}

async fn ask(
    call: &mut Call,
    target: &Target,
    operation: Operation,
    options: Options<'_>,
    object: &mut Value,
) -> Result<(), Status> {
    let mut warnings = std::mem::take(&mut call.warnings);
    let request = Request {
        operation,
        kinds: &call.state.kinds,
        target,
        subresource: &call.info.subresource,
        namespace: target.scope(&call.info.namespace),
        name: &call.info.name,
        user: &call.user,
        old: None,
        dry_run: matches!(options, Options::Write(options) if options.dry_run),
        options,
    };
    let verdict = call.state.admission.admit(&request, object, &mut warnings).await;
    call.warnings = warnings;
    verdict
}

/// Asks admission whether a stream may begin: CONNECT, with the options of the stream as its object. The stream begins
/// with what admission made of them.
pub async fn admit_stream(call: &mut Call, target: &Target, kind: &str) -> Result<(), Status> {
    let asked = stream_options(kind, &call.query, &call.info.rest);
    let mut object = asked.clone();
    ask(call, target, Operation::Connect, Options::None, &mut object).await?;
    if object != asked {
        take_stream_options(call, &object);
    }
    Ok(())
}

const STREAM_FLAGS: [&str; 4] = ["stdin", "stdout", "stderr", "tty"];

/// The reverse of [`stream_options`].
fn take_stream_options(call: &mut Call, options: &Value) {
    if options["kind"].as_str().is_some_and(|kind| kind.ends_with("ProxyOptions")) {
        let path = options["path"].as_str().unwrap_or_default();
        path.trim_start_matches('/').clone_into(&mut call.info.rest);
        return;
    }
    for flag in STREAM_FLAGS {
        let is_set = options[flag] == true;
        call.query.set(flag, is_set.then(|| "true".to_owned()));
    }
    call.query.set("container", options["container"].as_str().map(str::to_owned));
    for list in ["command", "ports"] {
        let text = |item: &Value| item.as_str().map_or_else(|| item.to_string(), str::to_owned);
        call.query.set(list, options[list].as_array().into_iter().flatten().map(text));
    }
}

/// `PodExecOptions` and its like, from the query.
fn stream_options(kind: &str, query: &Query, path: &str) -> Value {
    let mut options = json!({"kind": kind, "apiVersion": "v1"});
    for flag in STREAM_FLAGS {
        if query.flag(flag) {
            options[flag] = json!(true);
        }
    }
    if let Some(container) = query.get("container").filter(|container| !container.is_empty()) {
        options["container"] = json!(container);
    }
    let command = query.all("command");
    if !command.is_empty() {
        options["command"] = json!(command);
    }
    let ports: Vec<i64> = query.all("ports").iter().filter_map(|port| port.parse().ok()).collect();
    if !ports.is_empty() {
        options["ports"] = json!(ports);
    }
    if kind.ends_with("ProxyOptions") && !path.is_empty() {
        options["path"] = json!(path);
    }
    options
}

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
        ("nodes" | "pods" | "services", "proxy") => {
            admit_stream(call, target, &subresource.kind).await?;
            return proxy::handle(call, target).await;
        }
        ("pods", "log") if call.method == Method::GET => return pod_streams::log(call, target).await,
        ("pods", "exec" | "attach" | "portforward") if matches!(call.method, Method::GET | Method::POST) => {
            admit_stream(call, target, &subresource.kind).await?;
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
