//! The way of every request: who, acting as whom, whether they may, then the handler. One place counts, logs and catches.
//!
//! ```text
//! request info -> authentication -> impersonation -> authorization -> health | discovery | handlers
//! ```

use std::{
    panic::AssertUnwindSafe,
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use api::status::Status;
use futures::FutureExt;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use serde_json::json;
use tracing::{error, info, warn};

use super::body::Body;
use crate::{
    handlers::{self, Call},
    negotiate::Accepted,
    query::Query,
    request::RequestInfo,
    respond,
    security::{
        Attributes, GROUP_MASTERS, Identity,
        impersonation::{ImpersonationError, impersonate},
        tokens::JWKS_PATH,
    },
    state::{Peer, State},
    subresources::upstream::is_upgrade,
    version,
};

/// A slower request is logged at INFO, all others at DEBUG.
const SLOW_MILLISECONDS: u128 = 500;

/// Answers a request; never fails and never panics.
pub(crate) async fn respond(
    state: Arc<State>,
    peer: Arc<Peer>,
    mut request: Request<Body>,
) -> Response<Body> {
    let began = Instant::now();
    if is_upgrade(request.headers()) {
        let upgrade = hyper::upgrade::on(&mut request);
        request.extensions_mut().insert(upgrade);
    }
    let query = Query::parse(request.uri().query().unwrap_or_default());
    let info =
        RequestInfo::parse(request.method(), request.uri().path(), &query, is_upgrade(request.headers()));
    let method = request.method().clone();
    let uri = request.uri().clone();
    let agent = request.headers().get(http::header::USER_AGENT).cloned();
    let _gauge = state.metrics.enter();
    let mut user = String::new();
    let handled = handle(Arc::clone(&state), &peer, info.clone(), query, request, &mut user).boxed();
    let mut response = match AssertUnwindSafe(handled).catch_unwind().await {
        Ok(Ok(response)) => response,
        Ok(Err(status)) => respond::status(&status),
        Err(panic) => {
            let text = panic
                .downcast_ref::<&str>()
                .map(|text| (*text).to_owned())
                .or_else(|| panic.downcast_ref::<String>().cloned())
                .unwrap_or_default();
            error!(%method, %uri, panic = text, "a handler panicked");
            respond::status(&Status::internal(
                "this request caused apiserver to panic. Look in the logs for details",
            ))
        }
    };
    if let Ok(id) = HeaderValue::from_str(&uuid::Uuid::new_v4().to_string()) {
        response.headers_mut().insert(HeaderName::from_static("audit-id"), id);
    }
    let took = began.elapsed();
    let code = response.status().as_u16();
    state.metrics.observe(&info, code, took);
    let agent = agent.as_ref().and_then(|value| value.to_str().ok()).unwrap_or_default();
    let address = match &*peer {
        Peer::Network { address, .. } => address.to_string(),
        Peer::Local(_) => "local".to_owned(),
    };
    let milliseconds = took.as_millis();
    if code >= 500 || milliseconds >= SLOW_MILLISECONDS {
        info!(%method, %uri, code, milliseconds, user, address, agent, "request");
    } else {
        tracing::debug!(%method, %uri, code, milliseconds, user, address, agent, "request");
    }
    response
}

async fn handle(
    state: Arc<State>,
    peer: &Peer,
    info: RequestInfo,
    query: Query,
    request: Request<Body>,
    user_name: &mut String,
) -> Result<Response<Body>, Status> {
    let user = authenticate(&state, peer, request.headers())?;
    let user = act_as(&state, user, request.headers())?;
    user_name.clone_from(&user.name);
    authorize(&state, &user, &info)?;
    let (parts, body) = request.into_parts();
    if !info.is_resource {
        return plain(&state, &info, &query, &parts);
    }
    let mut call = Call::new(state, info, user, query, parts, body);
    let mut response = handlers::dispatch(&mut call).await?;
    respond::add_warnings(&mut response, &call.warnings);
    Ok(response)
}

fn authenticate(state: &State, peer: &Peer, headers: &HeaderMap) -> Result<Identity, Status> {
    match peer {
        Peer::Local(identity) => Ok(identity.clone()),
        Peer::Network { peer, address } => {
            state.authenticator.authenticate(peer, headers).map_err(|refused| {
                warn!(%address, reason = %refused, "not authenticated");
                Status::unauthorized()
            })
        }
    }
}

fn act_as(state: &State, user: Identity, headers: &HeaderMap) -> Result<Identity, Status> {
    match impersonate(&user, headers, &state.authorizer) {
        Ok(None) => Ok(user),
        Ok(Some(other)) => Ok(other),
        Err(ImpersonationError::BadRequest(text)) => Err(Status::bad_request(text)),
        Err(ImpersonationError::Forbidden { attributes, reason }) => {
            let info = RequestInfo {
                is_resource: true,
                verb: attributes.verb.clone(),
                group: attributes.group.clone(),
                namespace: attributes.namespace.clone(),
                resource: attributes.resource.clone(),
                subresource: attributes.subresource.clone(),
                ..RequestInfo::default()
            };
            let why = with_reason(info.forbidden_text(&user.name), &reason);
            Err(Status::forbidden(&attributes.group, &attributes.resource, &attributes.name, why))
        }
    }
}

fn with_reason(mut text: String, reason: &str) -> String {
    if !reason.is_empty() {
        text.push_str(": ");
        text.push_str(reason);
    }
    text
}

fn authorize(state: &State, user: &Identity, info: &RequestInfo) -> Result<(), Status> {
    if user.is_in(GROUP_MASTERS) {
        return Ok(());
    }
    let attributes = Attributes {
        verb: info.verb.clone(),
        group: info.group.clone(),
        version: info.version.clone(),
        resource: info.resource.clone(),
        subresource: info.subresource.clone(),
        namespace: info.namespace.clone(),
        name: info.name.clone(),
        path: info.path.clone(),
        is_resource: info.is_resource,
    };
    let decision = state.authorizer.authorize(user, &attributes);
    if decision.allowed {
        return Ok(());
    }
    let why = with_reason(info.forbidden_text(&user.name), &decision.reason);
    let (resource, name) =
        if info.is_resource { (info.resource.as_str(), info.name.as_str()) } else { ("", "") };
    Err(Status::forbidden(&info.group, resource, name, why))
}

/// Paths that are no resources.
fn plain(
    state: &State,
    info: &RequestInfo,
    query: &Query,
    parts: &http::request::Parts,
) -> Result<Response<Body>, Status> {
    let path = info.path.trim_end_matches('/');
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    if parts.method != http::Method::GET && parts.method != http::Method::HEAD {
        return Err(if state.discovery.find(path, &parts.headers).is_some() {
            Status::method_not_allowed()
        } else {
            Status::resource_not_found()
        });
    }
    match segments.as_slice() {
        ["healthz" | "livez", rest @ ..] => Ok(health("ping", rest, query, true)),
        ["readyz", rest @ ..] => Ok(health("bootstrap", rest, query, state.ready.load(Ordering::Acquire))),
        ["version"] => Ok(respond::value(StatusCode::OK, Accepted::JSON, &version::info())),
        ["metrics"] => Ok(respond::text(StatusCode::OK, state.metrics.text())),
        ["openid", "v1", "jwks"] => {
            debug_assert_eq!(path, JWKS_PATH, "the path of the key set");
            Ok(respond::value(StatusCode::OK, Accepted::JSON, &state.tokens.jwks()))
        }
        [".well-known", "openid-configuration"] => {
            let address = format!("https://{}", state.config.address());
            Ok(respond::value(StatusCode::OK, Accepted::JSON, &state.tokens.discovery(&address)))
        }
        ["openapi", "v2"] => state.openapi.v2(&parts.headers),
        ["openapi", "v3", rest @ ..] => state.openapi.v3(rest, &parts.headers),
        [] | [""] => {
            let mut paths: Vec<String> = state.discovery.paths();
            let fixed =
                ["/healthz", "/livez", "/metrics", "/openapi/v2", "/openapi/v3", "/readyz", "/version"];
            paths.extend(fixed.map(str::to_owned));
            paths.sort_unstable();
            Ok(respond::value(StatusCode::OK, Accepted::JSON, &json!({"paths": paths})))
        }
        _ => match state.discovery.find(path, &parts.headers) {
            Some(document) => Ok(document.respond(&parts.headers)),
            None => Err(Status::resource_not_found()),
        },
    }
}

/// A health check: `ok`, or each check on a line with `?verbose` or when one fails.
fn health(check: &str, rest: &[&str], query: &Query, is_good: bool) -> Response<Body> {
    if rest.first().is_some_and(|name| !matches!(*name, "" | "ping") && *name != check) {
        return respond::text(StatusCode::NOT_FOUND, "404 page not found\n");
    }
    if is_good && !query.flag("verbose") {
        return respond::text(StatusCode::OK, "ok");
    }
    let sign = if is_good { '+' } else { '-' };
    let word = if is_good { "ok" } else { "failed: the bootstrap objects are not there yet" };
    let mut text = format!("[+]ping ok\n[{sign}]{check} {word}\n");
    if check == "ping" {
        text = "[+]ping ok\n".to_owned();
    }
    text.push_str(if is_good { "check passed\n" } else { "check failed\n" });
    respond::text(if is_good { StatusCode::OK } else { StatusCode::INTERNAL_SERVER_ERROR }, text)
}
