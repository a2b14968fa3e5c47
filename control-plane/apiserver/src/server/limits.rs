//! What bounds requests before their handlers: how many run at a time, and for how long.

use std::{sync::Arc, time::Duration};

use api::status::Status;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::body::Body;
use crate::{
    config,
    flow_control::{Permit, list_seats},
    query::Query,
    request::RequestInfo,
    respond,
    security::{GROUP_MASTERS, Identity},
    state::State,
};

const FLOW_SCHEMA_UID: HeaderName = HeaderName::from_static("x-kubernetes-pf-flowschema-uid");
const PRIORITY_LEVEL_UID: HeaderName = HeaderName::from_static("x-kubernetes-pf-prioritylevel-uid");
/// Seconds after which a client that was turned away is to come back.
const RETRY_AFTER: u16 = 1;

/// The bounds without priority and fairness, and what every answer says.
pub struct Limits {
    reading: Option<Arc<Semaphore>>,
    mutating: Option<Arc<Semaphore>>,
    is_fair: bool,
    request_timeout: Duration,
    transport_security: Option<HeaderValue>,
}

impl Limits {
    /// # Errors
    /// When a directive cannot be in a header.
    pub fn new(config: &config::Security) -> anyhow::Result<Self> {
        let semaphore = |count: usize| {
            let count = count.min(Semaphore::MAX_PERMITS);
            (count > 0).then(|| Arc::new(Semaphore::new(count)))
        };
        let directives = config.strict_transport_security.join("; ");
        Ok(Self {
            reading: semaphore(config.max_requests_inflight),
            mutating: semaphore(config.max_mutating_requests_inflight),
            is_fair: config.priority_and_fairness,
            request_timeout: config.request_timeout,
            transport_security: if directives.is_empty() {
                None
            } else {
                Some(HeaderValue::from_str(&directives)?)
            },
        })
    }

    /// Seats of priority and fairness.
    pub fn seats(config: &config::Security) -> usize {
        config.max_requests_inflight + config.max_mutating_requests_inflight
    }

    /// Adds what every answer says.
    pub(super) fn decorate(&self, headers: &mut HeaderMap) {
        if let Some(value) = &self.transport_security {
            headers.insert(header::STRICT_TRANSPORT_SECURITY, value.clone());
        }
        if !headers.contains_key(header::CACHE_CONTROL) {
            headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
        }
    }

    /// How long a request may run; `None` for those that are long by nature.
    ///
    /// # Errors
    /// When the client asks for a time that is none.
    pub(super) fn time(&self, info: &RequestInfo, query: &Query) -> Result<Option<Duration>, Status> {
        if is_long_running(info) {
            return Ok(None);
        }
        let asked = match query.get("timeout").filter(|text| !text.is_empty()) {
            None => return Ok(Some(self.request_timeout)),
            Some(text) => parse_duration(text).ok_or_else(|| {
                Status::bad_request(format!(
                    "invalid timeout specified in the request URL - time: invalid duration {}",
                    api::field::quote(text)
                ))
            })?,
        };
        Ok(Some(if asked.is_zero() { self.request_timeout } else { asked.min(self.request_timeout) }))
    }
}

/// The answer to a request that took too long.
pub(super) fn timed_out() -> Status {
    Status::timeout("request did not complete within the allotted timeout", 0)
}

/// Watches and streams last as long as their clients like.
fn is_long_running(info: &RequestInfo) -> bool {
    matches!(info.verb.as_str(), "watch" | "proxy")
        || matches!(info.subresource.as_str(), "attach" | "exec" | "proxy" | "log" | "portforward")
}

/// Leave to run, until dropped.
pub(super) enum Leave {
    Free,
    InFlight { _permit: OwnedSemaphorePermit },
    Fair { _permit: Permit },
}

/// Whether a request may run, and the headers that say how it was classified.
pub(super) struct Entry {
    pub(super) leave: Result<Leave, Box<Response<Body>>>,
    pub(super) uids: Option<(HeaderValue, HeaderValue)>,
}

impl Entry {
    fn of(leave: Leave) -> Self {
        Self { leave: Ok(leave), uids: None }
    }
}

/// Lets a request in, after a wait where others are first, or turns it away.
pub(super) async fn enter(state: &State, user: &Identity, info: &RequestInfo, query: &Query) -> Entry {
    let is_watch = info.verb == "watch";
    if is_long_running(info) && !is_watch {
        return Entry::of(Leave::Free);
    }
    if !state.limits.is_fair {
        return if is_watch { Entry::of(Leave::Free) } else { in_flight(&state.limits, user, info) };
    }
    let width = |seats_max| width(state, info, query, seats_max);
    match state.flow_control.admit(user, info, width).await {
        None => Entry::of(Leave::Free),
        Some(Ok(permit)) => {
            let uids = Some(permit.uids());
            Entry { leave: Ok(Leave::Fair { _permit: permit }), uids }
        }
        Some(Err(rejected)) => {
            tracing::debug!(user = user.name, reason = ?rejected.refusal, "too many requests");
            Entry { leave: Err(Box::new(too_many_requests())), uids: Some(rejected.uids()) }
        }
    }
}

fn in_flight(limits: &Limits, user: &Identity, info: &RequestInfo) -> Entry {
    let reads = matches!(info.verb.as_str(), "get" | "list");
    let Some(semaphore) = (if reads { &limits.reading } else { &limits.mutating }) else {
        return Entry::of(Leave::Free);
    };
    match Arc::clone(semaphore).try_acquire_owned() {
        Ok(permit) => Entry::of(Leave::InFlight { _permit: permit }),
        // Who may do everything always gets an answer.
        Err(_) if user.is_in(GROUP_MASTERS) => Entry::of(Leave::Free),
        Err(_) => Entry { leave: Err(Box::new(too_many_requests())), uids: None },
    }
}

/// The headers of [`Entry::uids`].
pub(super) fn add_uids(headers: &mut HeaderMap, (schema, level): (HeaderValue, HeaderValue)) {
    headers.insert(FLOW_SCHEMA_UID, schema);
    headers.insert(PRIORITY_LEVEL_UID, level);
}

fn too_many_requests() -> Response<Body> {
    let text = "Too many requests, please try again later.\n";
    let mut response = respond::text(StatusCode::TOO_MANY_REQUESTS, text);
    response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER.into());
    response
}

/// Seats of a request: as many as its list is wide.
fn width(state: &State, info: &RequestInfo, query: &Query, seats_max: u32) -> u32 {
    let begins_with_list =
        || query.flag("sendInitialEvents") || matches!(query.get("resourceVersion"), None | Some("" | "0"));
    let lists = match info.verb.as_str() {
        "list" => true,
        "watch" => begins_with_list(),
        _ => false,
    };
    if !lists || !info.name.is_empty() || !info.is_resource {
        return 1;
    }
    let Some(target) = state.kinds.find(&info.group, &info.version, &info.resource) else { return 1 };
    let objects = state.cache.list(&target.list_prefix(&info.namespace)).len();
    let limit = query.get("limit").and_then(|limit| limit.parse().ok()).filter(|limit| *limit > 0);
    list_seats(limit.map_or(objects, |limit: usize| limit.min(objects)), seats_max)
}

/// A duration as Go writes it: `1h2m3.5s`, `300ms`.
fn parse_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        seconds += number
            * match &rest[..unit] {
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 1e-3,
                "us" | "µs" | "μs" => 1e-6,
                "ns" => 1e-9,
                _ => return None,
            };
        rest = &rest[unit..];
    }
    Duration::try_from_secs_f64(seconds).ok().filter(|_| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;

    fn limits() -> Limits {
        let config = config::Security {
            strict_transport_security: vec!["max-age=1".into(), "preload".into()],
            ..config::Security::default()
        };
        Limits::new(&config).unwrap()
    }

    fn time(method: &str, target: &str) -> Result<Option<Duration>, Status> {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let query = Query::parse(query);
        let info = RequestInfo::parse(&Method::from_bytes(method.as_bytes()).unwrap(), path, &query, false);
        limits().time(&info, &query)
    }

    #[test]
    fn requests_have_a_minute_and_streams_as_long_as_they_like() {
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        assert_eq!(time("GET", "/api/v1/pods"), Ok(seconds(60)));
        assert_eq!(time("GET", "/api/v1/pods?watch=1"), Ok(None));
        assert_eq!(time("GET", "/api/v1/namespaces/a/pods/p/log"), Ok(None));
        assert_eq!(time("POST", "/api/v1/namespaces/a/pods/p/exec"), Ok(None));
        assert_eq!(time("POST", "/api/v1/namespaces/a/pods?timeout=10s"), Ok(seconds(10)));
        assert_eq!(time("GET", "/api/v1/pods?timeout=1h"), Ok(seconds(60)));
        assert_eq!(time("GET", "/api/v1/pods?timeout=0"), Ok(seconds(60)));
        let refused = time("GET", "/api/v1/pods?timeout=soon").unwrap_err();
        assert_eq!((refused.code, refused.reason.as_ref()), (400, "BadRequest"));
        assert!(refused.message.starts_with("invalid timeout specified in the request URL"));
    }

    #[test]
    fn durations_are_those_of_go() {
        let parse = |text| parse_duration(text).map(|duration: Duration| duration.as_secs_f64());
        assert_eq!(parse("1h2m3.5s"), Some(3723.5));
        assert_eq!(parse("300ms"), Some(0.3));
        for bad in ["", "5", "s", "-1s", "1 s", "1y", "1.2.3s", "1e400s"] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn answers_are_not_to_be_cached_and_say_how_strictly_tls_is_meant() {
        let mut headers = HeaderMap::new();
        limits().decorate(&mut headers);
        assert_eq!(headers["strict-transport-security"], "max-age=1; preload");
        assert_eq!(headers["cache-control"], "no-cache, private");
        let mut public = HeaderMap::new();
        public.insert(header::CACHE_CONTROL, HeaderValue::from_static("public"));
        limits().decorate(&mut public);
        assert_eq!(public["cache-control"], "public");
    }

    #[test]
    fn without_fairness_reads_and_writes_have_their_own_bounds() {
        let config = config::Security {
            max_requests_inflight: 1,
            max_mutating_requests_inflight: 0,
            ..config::Security::default()
        };
        let limits = Limits::new(&config).unwrap();
        let of = |verb: &str| RequestInfo { verb: verb.to_owned(), ..RequestInfo::default() };
        let alice = Identity::internal("alice", &[]);
        let held = in_flight(&limits, &alice, &of("get"));
        assert!(held.leave.is_ok());
        let refused = in_flight(&limits, &alice, &of("list")).leave.err().expect("one at a time");
        assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(refused.headers()[header::RETRY_AFTER], "1");
        let root = Identity::internal("root", &[GROUP_MASTERS]);
        assert!(in_flight(&limits, &root, &of("list")).leave.is_ok());
        assert!(in_flight(&limits, &alice, &of("create")).leave.is_ok(), "no bound");
        drop(held);
        assert!(in_flight(&limits, &alice, &of("list")).leave.is_ok());
    }
}
