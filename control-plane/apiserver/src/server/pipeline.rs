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

use super::{body::Body, gzip, health, limits};
use crate::{
    aggregation,
    audit::{self, Arrival, Recorder, Stage, Subject},
    context::{self, RequestContext},
    handlers::{self, Call},
    negotiate::{self, Accepted},
    query::Query,
    request::RequestInfo,
    respond,
    security::{
        Attributes, GROUP_MASTERS, Identity,
        impersonation::{ImpersonationError, impersonate},
        tokens::Notes,
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
    let error_form = negotiate::for_error(request.headers());
    let takes_gzip = method == http::Method::GET && gzip::is_asked_for(request.headers());
    let _gauge = state.metrics.enter();
    let mut seen = Seen { audit_id: audit_id(request.headers()), ..Seen::default() };
    let handled = handle(Arc::clone(&state), &peer, info.clone(), query, request, &mut seen).boxed();
    let mut response = match AssertUnwindSafe(handled).catch_unwind().await {
        Ok(Ok(response)) => response,
        Ok(Err(status)) => respond::status(error_form, &status),
        Err(panic) => {
            let text = panic
                .downcast_ref::<&str>()
                .map(|text| (*text).to_owned())
                .or_else(|| panic.downcast_ref::<String>().cloned())
                .unwrap_or_default();
            error!(%method, %uri, panic = text, "a handler panicked");
            if let Some(audit) = &seen.audit {
                audit.write(Stage::Panic);
            }
            let status =
                Status::internal("this request caused apiserver to panic. Look in the logs for details");
            respond::status(error_form, &status)
        }
    };
    respond::add_warnings(&mut response, &seen.warnings);
    if let Some(audit) = seen.audit.take() {
        response = audit::finish(audit, seen.lasts, response).await;
    }
    response.headers_mut().insert(AUDIT_ID, seen.audit_id);
    if let Some(uids) = seen.uids {
        limits::add_uids(response.headers_mut(), uids);
    }
    state.limits.decorate(response.headers_mut());
    if takes_gzip {
        response = gzip::compress(response);
    }
    let took = began.elapsed();
    let code = response.status().as_u16();
    state.metrics.observe(&info, code, took);
    let agent = agent.as_ref().and_then(|value| value.to_str().ok()).unwrap_or_default();
    let address = match &*peer {
        Peer::Network { address, .. } => address.to_string(),
        Peer::Local(_) => "local".to_owned(),
    };
    let (milliseconds, user) = (took.as_millis(), seen.user);
    if code >= 500 || milliseconds >= SLOW_MILLISECONDS {
        info!(%method, %uri, code, milliseconds, user, address, agent, "request");
    } else {
        tracing::debug!(%method, %uri, code, milliseconds, user, address, agent, "request");
    }
    response
}

const AUDIT_ID: HeaderName = HeaderName::from_static("audit-id");
/// Bytes of the longest that a client may give.
const AUDIT_ID_MAX: usize = 64;
/// Begins the headers of [`impersonate`].
const IMPERSONATE_PREFIX: &str = "impersonate-";

/// What is known about a request besides its answer.
struct Seen {
    audit_id: HeaderValue,
    audit: Option<Arc<Recorder>>,
    /// Whether it is a watch or a stream.
    lasts: bool,
    user: String,
    /// About the credentials.
    warnings: Vec<String>,
    /// Of its FlowSchema and priority level.
    uids: Option<(HeaderValue, HeaderValue)>,
}

impl Default for Seen {
    fn default() -> Self {
        Self {
            audit_id: HeaderValue::from_static(""),
            audit: None,
            lasts: false,
            user: String::new(),
            warnings: Vec::new(),
            uids: None,
        }
    }
}

/// The client's, or a new one.
fn audit_id(headers: &HeaderMap) -> HeaderValue {
    let given = headers.get(AUDIT_ID).filter(|id| !id.is_empty() && id.len() <= AUDIT_ID_MAX);
    given.cloned().unwrap_or_else(|| {
        HeaderValue::from_str(&uuid::Uuid::new_v4().to_string())
            .expect("a UUID is of letters, digits and dashes")
    })
}

/// Begins to record a request where the policy says so.
fn begin_audit(
    state: &State,
    peer: &Peer,
    user: Option<&Identity>,
    info: &RequestInfo,
    request: &Request<Body>,
    seen: &mut Seen,
) {
    let Some(recorder) = state.audit.as_ref().and_then(|audit| audit.recorder(&Subject { user, info }))
    else {
        return;
    };
    let text = |name: HeaderName| request.headers().get(name).and_then(|value| value.to_str().ok());
    let forwarded = text(HeaderName::from_static("x-forwarded-for")).unwrap_or_default();
    let mut source: Vec<String> =
        forwarded.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect();
    if let Peer::Network { address, .. } = peer {
        source.push(address.ip().to_string());
    }
    recorder.received(&Arrival {
        id: seen.audit_id.to_str().unwrap_or_default(),
        at: jiff::Timestamp::now(),
        uri: request.uri().path_and_query().map_or("/", |path| path.as_str()),
        agent: text(http::header::USER_AGENT).unwrap_or_default(),
        source,
        user,
        info,
    });
    seen.audit = Some(recorder);
}

/// Nothing behind this point needs to know them, and nothing that requests are passed on to may.
fn strip_credentials(headers: &mut HeaderMap) {
    headers.remove(http::header::AUTHORIZATION);
    let impersonation: Vec<HeaderName> =
        headers.keys().filter(|name| name.as_str().starts_with(IMPERSONATE_PREFIX)).cloned().collect();
    for name in impersonation {
        headers.remove(name);
    }
}

async fn handle(
    state: Arc<State>,
    peer: &Peer,
    info: RequestInfo,
    query: Query,
    request: Request<Body>,
    seen: &mut Seen,
) -> Result<Response<Body>, Status> {
    let mut notes = Notes::default();
    let user = authenticate(&state, peer, request.headers(), &info.path, &mut notes);
    begin_audit(&state, peer, user.as_ref().ok(), &info, &request, seen);
    seen.warnings = notes.warnings;
    for (key, value) in notes.annotations {
        if let Some(audit) = &seen.audit {
            audit.annotate(key, value);
        }
    }
    let who = user?;
    let user = act_as(&state, who.clone(), request.headers(), &info, &query)?;
    if let Some(audit) = seen.audit.as_ref().filter(|_| user != who) {
        audit.impersonates(&user);
    }
    seen.user.clone_from(&user.name);
    let time = state.limits.time(&info, &query)?;
    seen.lasts = time.is_none();
    let entry = limits::enter(&state, &user, &info, &query).await;
    seen.uids = entry.uids;
    let _leave = match entry.leave {
        Ok(leave) => leave,
        Err(refused) => return Ok(*refused),
    };
    authorize(&state, &user, &info, &query, seen.audit.as_deref())?;
    let (mut parts, body) = request.into_parts();
    strip_credentials(&mut parts.headers);
    if let Some(remote) = state.aggregation.route(&info.path) {
        let forward = state.aggregation.forward(&remote, &user, parts, body);
        return match time {
            Some(time) => tokio::time::timeout(time, forward).await.map_err(|_| limits::timed_out())?,
            None => forward.await,
        };
    }
    if !info.is_resource {
        return plain_or_merged(&state, &info, &query, &mut parts).await;
    }
    let mut call = Call::new(state, info, user, query, parts, body);
    let context = RequestContext::new(time, seen.audit.clone());
    let handled = context::within(context, handlers::dispatch(&mut call));
    let answer = match time {
        Some(time) => tokio::time::timeout(time, handled).await.unwrap_or_else(|_| Err(limits::timed_out())),
        None => handled.await,
    };
    let mut response =
        answer.unwrap_or_else(|status| respond::status(negotiate::for_error(&call.headers), &status));
    respond::add_warnings(&mut response, &call.warnings);
    Ok(response)
}

fn authenticate(
    state: &State,
    peer: &Peer,
    headers: &HeaderMap,
    path: &str,
    notes: &mut Notes,
) -> Result<Identity, Status> {
    match peer {
        Peer::Local(identity) => Ok(identity.clone()),
        Peer::Network { peer, address } => {
            state.authenticator.authenticate(peer, headers, path, notes).map_err(|refused| {
                warn!(%address, reason = %refused, "not authenticated");
                Status::unauthorized()
            })
        }
    }
}

fn act_as(
    state: &State,
    user: Identity,
    headers: &HeaderMap,
    info: &RequestInfo,
    query: &Query,
) -> Result<Identity, Status> {
    if !headers.keys().any(|name| name.as_str().starts_with(IMPERSONATE_PREFIX)) {
        return Ok(user);
    }
    match impersonate(&user, headers, &attributes_of(info, query), &state.authorizer) {
        Ok(None) => Ok(user),
        Ok(Some(other)) => Ok(other),
        Err(ImpersonationError::BadRequest(text)) => Err(Status::bad_request(text)),
        Err(ImpersonationError::Forbidden { attributes, reason }) => {
            let info = RequestInfo {
                is_resource: attributes.is_resource,
                path: attributes.path.clone(),
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

/// What a request asks of the authorizer.
fn attributes_of(info: &RequestInfo, query: &Query) -> Attributes {
    let selects = matches!(info.verb.as_str(), "list" | "watch" | "deletecollection");
    let selector = |name| query.get(name).filter(|_| selects).unwrap_or_default().to_owned();
    Attributes {
        verb: info.verb.clone(),
        group: info.group.clone(),
        version: info.version.clone(),
        resource: info.resource.clone(),
        subresource: info.subresource.clone(),
        namespace: info.namespace.clone(),
        name: info.name.clone(),
        path: info.path.clone(),
        is_resource: info.is_resource,
        field_selector: selector("fieldSelector"),
        label_selector: selector("labelSelector"),
    }
}

fn with_reason(mut text: String, reason: &str) -> String {
    if !reason.is_empty() {
        text.push_str(": ");
        text.push_str(reason);
    }
    text
}

fn authorize(
    state: &State,
    user: &Identity,
    info: &RequestInfo,
    query: &Query,
    audit: Option<&Recorder>,
) -> Result<(), Status> {
    let annotate = |decision: &str, reason: &str| {
        if let Some(audit) = audit {
            audit.annotate("authorization.k8s.io/decision", decision.to_owned());
            audit.annotate("authorization.k8s.io/reason", reason.to_owned());
        }
    };
    if user.is_in(GROUP_MASTERS) {
        annotate("allow", "");
        return Ok(());
    }
    let attributes = attributes_of(info, query);
    let decision = state.authorizer.authorize(user, &attributes);
    annotate(if decision.allowed { "allow" } else { "forbid" }, &decision.reason);
    if decision.allowed {
        return Ok(());
    }
    let why = with_reason(info.forbidden_text(&user.name), &decision.reason);
    let (resource, name) =
        if info.is_resource { (info.resource.as_str(), info.name.as_str()) } else { ("", "") };
    Err(Status::forbidden(&info.group, resource, name, why))
}

/// As [`plain`]; aggregated servers have their place in the index of OpenAPI.
async fn plain_or_merged(
    state: &State,
    info: &RequestInfo,
    query: &Query,
    parts: &mut http::request::Parts,
) -> Result<Response<Body>, Status> {
    if info.path.trim_end_matches('/') != "/openapi/v3" {
        return plain(state, info, query, parts);
    }
    if state.aggregation.remotes().is_empty() {
        return plain(state, info, query, parts);
    }
    parts.headers.remove(http::header::IF_NONE_MATCH);
    let own = plain(state, info, query, parts)?;
    Ok(aggregation::merge_openapi_index(own, &state.aggregation).await)
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
        [name @ ("healthz" | "livez" | "readyz"), rest @ ..] => {
            let is_stopping = state.stop.is_cancelled();
            Ok(health::answer(name, rest, query, state.ready.load(Ordering::Acquire), is_stopping))
        }
        ["version"] => Ok(respond::value(StatusCode::OK, Accepted::JSON, &version::info())),
        ["metrics"] => {
            Ok(respond::text(StatusCode::OK, state.metrics.text() + &state.flow_control.metrics()))
        }
        ["debug", "api_priority_and_fairness", dump] => state
            .flow_control
            .dump(dump)
            .map(|text| respond::text(StatusCode::OK, text))
            .ok_or_else(Status::resource_not_found),
        ["openid", "v1", "jwks"] => Ok(public_json("application/jwk-set+json", &state.tokens.jwks())),
        [".well-known", "openid-configuration"] => {
            let address = format!("https://{}", state.config.address());
            Ok(public_json("application/json", &state.tokens.discovery(&address)))
        }
        ["openapi", "v2"] => state.openapi.v2(state, &parts.headers),
        ["openapi", "v3", rest @ ..] => state.openapi.v3(state, rest, &parts.headers),
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

/// What whoever verifies tokens may keep for an hour.
fn public_json(content_type: &'static str, value: &serde_json::Value) -> Response<Body> {
    let mut response = respond::bytes(StatusCode::OK, content_type, value.to_string());
    let kept = HeaderValue::from_static("public, max-age=3600");
    response.headers_mut().insert(http::header::CACHE_CONTROL, kept);
    response
}
