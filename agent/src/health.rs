//! The health of this node as a service proxy, in kube-proxy's words: `/healthz` and `/livez` for supervisors and load
//! balancers in front of node ports, and the `healthCheckNodePort` of Services with `externalTrafficPolicy: Local`.
//!
//! A node that is about to be removed says so at `/healthz` only (KEP-3836): its connections go on.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use http::header::{CONTENT_TYPE, HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use http::{Response, StatusCode};
use http_body_util::Full;
use hyper::body::Bytes;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use proxy::ObjectName;
use serde::Serialize;

/// A change that is not in the datapath after this time makes the node unhealthy: twice kube-proxy's sync period.
const PENDING_MAX: Duration = Duration::from_secs(60);
/// The cluster autoscaler's mark on a node that it is about to delete.
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";
const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

/// Shared between the event loop, which tells it, and the servers, which ask it.
#[derive(Debug, Default)]
pub struct Health {
    families: Vec<Family>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    last_updated: Option<Timestamp>,
    /// Since when there is something that the datapath has not got.
    pending_since: Option<Instant>,
    eligible: bool,
    endpoints: BTreeMap<(ObjectName, Family), usize>,
}

/// `ProxyHealth` of kube-proxy.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ProxyHealth {
    last_updated: String,
    current_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
    healthy: bool,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    status: BTreeMap<&'static str, ProxierHealth>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ProxierHealth {
    last_updated: String,
    healthy: bool,
}

impl Health {
    /// Of a node with addresses of these families.
    pub fn new(families: Vec<Family>) -> Health {
        Health { families, state: Mutex::default() }
    }

    /// There is something to be written to the datapath.
    pub fn queued(&self, now: Instant) {
        self.state().pending_since.get_or_insert(now);
    }

    /// The datapath has everything.
    pub fn updated(&self, now: Timestamp) {
        let mut state = self.state();
        state.pending_since = None;
        state.last_updated = Some(now);
    }

    /// The node's own object, as it is now; `None` where there is none.
    pub fn set_node(&self, node: Option<&Node>) {
        self.state().eligible = node.is_some_and(is_eligible);
    }

    /// Ready endpoints on this node of the Services that are asked for.
    pub fn set_endpoints(&self, endpoints: BTreeMap<(ObjectName, Family), usize>) {
        self.state().endpoints = endpoints;
    }

    /// What the node's own port answers.
    pub fn of_node(&self, path: &str, now: Instant, time: Timestamp) -> Response<Full<Bytes>> {
        match path {
            "/healthz" => self.proxy_health(true, now, time),
            "/livez" => self.proxy_health(false, now, time),
            _ => not_found(),
        }
    }

    fn proxy_health(&self, with_node: bool, now: Instant, time: Timestamp) -> Response<Full<Bytes>> {
        let state = self.state();
        let live = state.is_healthy(now);
        let healthy = live && (state.eligible || !with_node);
        // Until the first update there is nothing to be late with.
        let updated =
            state.last_updated.map_or_else(|| "0001-01-01T00:00:00Z".to_owned(), |at| at.to_string());
        let proxier = || ProxierHealth { last_updated: updated.clone(), healthy: live };
        let families = self.families.iter().filter(|_| state.last_updated.is_some());
        let health = ProxyHealth {
            last_updated: if healthy { time.to_string() } else { updated.clone() },
            current_time: time.to_string(),
            node_eligible: with_node.then_some(state.eligible),
            healthy: live,
            status: families.map(|family| (family.name(), proxier())).collect(),
        };
        let body = serde_json::to_string(&health).unwrap_or_default();
        json(if healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, body)
    }

    /// What a Service's port answers, whatever the path.
    pub fn of_service(&self, name: &ObjectName, family: Family, now: Instant) -> Response<Full<Bytes>> {
        let state = self.state();
        let healthy = state.is_healthy(now);
        let count = state.endpoints.get(&(name.clone(), family)).copied().unwrap_or(0);
        let body = format!(
            "{{\n\t\"service\": {{\n\t\t\"namespace\": \"{}\",\n\t\t\"name\": \"{}\"\n\t}},\n\t\"localEndpoints\": \
             {count},\n\t\"serviceProxyHealthy\": {healthy}\n}}",
            name.namespace, name.name
        );
        let serves = count != 0 && healthy;
        let mut response = json(if serves { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, body);
        response.headers_mut().insert(WEIGHT, HeaderValue::from(count));
        response
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// As with kube-proxy, one that has never updated anything is still starting, and healthy.
    fn is_healthy(&self, now: Instant) -> bool {
        let late = self.pending_since.is_some_and(|since| now.duration_since(since) >= PENDING_MAX);
        self.last_updated.is_none() || !late
    }
}

fn is_eligible(node: &Node) -> bool {
    let mut taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    node.metadata.deletion_timestamp.is_none() && !taints.any(|taint| taint.key == TO_BE_DELETED)
}

fn json(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    answer(status, "application/json", body)
}

fn not_found() -> Response<Full<Bytes>> {
    answer(StatusCode::NOT_FOUND, "text/plain; charset=utf-8", "404 page not found\n".to_owned())
}

fn answer(status: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use k8s_openapi::serde_json::{Value, from_value, json};

    use super::*;

    fn health() -> Health {
        Health::new(vec![Family::V4, Family::V6])
    }

    fn node(value: Value) -> Node {
        from_value(value).expect("a node")
    }

    fn body(response: Response<Full<Bytes>>) -> (u16, String) {
        let status = response.status().as_u16();
        let collected = futures::executor::block_on(response.into_body().collect()).expect("a body");
        (status, String::from_utf8(collected.to_bytes().to_vec()).expect("text"))
    }

    fn ask(health: &Health, path: &str, at: Instant) -> (u16, Value) {
        let (status, text) = body(health.of_node(path, at, Timestamp::from_second(1000).expect("a time")));
        (status, serde_json::from_str(&text).unwrap_or(Value::Null))
    }

    #[test]
    fn a_node_is_healthy_while_no_change_is_late() {
        let (health, start) = (health(), Instant::now());
        health.set_node(Some(&node(json!({}))));
        assert_eq!(ask(&health, "/healthz", start).0, 200, "it is starting");
        health.updated(Timestamp::from_second(900).expect("a time"));
        let (status, answer) = ask(&health, "/healthz", start);
        let proxier = json!({"lastUpdated": "1970-01-01T00:15:00Z", "healthy": true});
        let wanted = json!({
            "lastUpdated": "1970-01-01T00:16:40Z", "currentTime": "1970-01-01T00:16:40Z",
            "nodeEligible": true, "healthy": true, "status": {"IPv4": proxier, "IPv6": proxier},
        });
        assert_eq!((status, answer), (200, wanted));

        health.queued(start);
        health.queued(start + Duration::from_secs(59));
        assert_eq!(ask(&health, "/healthz", start + Duration::from_secs(59)).0, 200);
        let (status, answer) = ask(&health, "/livez", start + Duration::from_secs(60));
        assert_eq!(
            (status, &answer["healthy"], &answer["lastUpdated"]),
            (503, &json!(false), &json!("1970-01-01T00:15:00Z"))
        );
        assert_eq!(answer["status"]["IPv6"]["healthy"], false);
        health.updated(Timestamp::from_second(950).expect("a time"));
        assert_eq!(ask(&health, "/livez", start + Duration::from_secs(90)).0, 200);
    }

    #[test]
    fn a_node_that_is_about_to_go_is_alive_and_takes_nothing_new() {
        let health = health();
        let taint = |key: &str| node(json!({"spec": {"taints": [{"key": key, "effect": "NoSchedule"}]}}));
        let deleted = node(json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}));
        for (object, status) in [
            (None, 503),
            (Some(node(json!({}))), 200),
            (Some(taint("ToBeDeletedByClusterAutoscaler")), 503),
            (Some(taint("node.kubernetes.io/not-ready")), 200),
            (Some(deleted), 503),
        ] {
            health.set_node(object.as_ref());
            let (found, answer) = ask(&health, "/healthz", Instant::now());
            assert_eq!((found, &answer["nodeEligible"]), (status, &json!(status == 200)), "{object:?}");
            // It says so and is healthy.
            assert_eq!(answer["healthy"], true);
            let (found, answer) = ask(&health, "/livez", Instant::now());
            assert_eq!((found, answer.get("nodeEligible")), (200, None));
        }
    }

    #[test]
    fn other_pages_are_not_found() {
        let health = health();
        let response = health.of_node("/metrics", Instant::now(), Timestamp::UNIX_EPOCH);
        assert_eq!(body(response), (404, "404 page not found\n".to_owned()));
    }

    #[test]
    fn a_service_is_answered_with_its_endpoints_on_this_node() {
        let (health, start) = (health(), Instant::now());
        let name = ObjectName { namespace: "default".into(), name: "web".into() };
        health.set_endpoints([((name.clone(), Family::V4), 2)].into());
        let response = health.of_service(&name, Family::V4, start);
        let header = |name: &str| {
            response.headers().get(name).map(|value| value.to_str().unwrap_or_default().to_owned())
        };
        assert_eq!(header("content-type").as_deref(), Some("application/json"));
        assert_eq!(header("x-content-type-options").as_deref(), Some("nosniff"));
        assert_eq!(header("x-load-balancing-endpoint-weight").as_deref(), Some("2"));
        let text = "{\n\t\"service\": {\n\t\t\"namespace\": \"default\",\n\t\t\"name\": \"web\"\n\t},\n\t\"localEndpoints\": 2,\n\t\"serviceProxyHealthy\": true\n}";
        assert_eq!(body(response), (200, text.to_owned()));

        let (status, text) = body(health.of_service(&name, Family::V6, start));
        assert_eq!(status, 503);
        assert_eq!(serde_json::from_str::<Value>(&text).expect("JSON")["localEndpoints"], 0);

        health.updated(Timestamp::UNIX_EPOCH);
        health.queued(start);
        let (status, text) = body(health.of_service(&name, Family::V4, start + PENDING_MAX));
        assert_eq!(status, 503);
        assert_eq!(serde_json::from_str::<Value>(&text).expect("JSON")["serviceProxyHealthy"], false);
    }
}
