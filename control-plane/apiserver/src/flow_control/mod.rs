//! Priority and fairness: which requests may run when there are more than the server should serve at a time.
//!
//! ```text
//! request -> FlowSchema (classify) -> priority level (level) -> seats now | a queue | 429
//! objects of flowcontrol.apiserver.k8s.io -> sync -> schemas and limits (shares)
//! ```
//!
//! A request takes as many seats as its work is wide: a list one for each hundred objects. A watch gives its seats back
//! once it has begun. Deliberately absent: seats for the events of a write, which cost next to nothing here.

mod classify;
mod level;
pub(crate) mod objects;
mod report;
mod shares;
pub(crate) mod sync;

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use api::meta;
use arc_swap::ArcSwap;
use http::HeaderValue;
use serde_json::Value;

use self::{
    classify::{Counters, Schema},
    level::{Level, Refusal, Response, Seats},
    shares::{Share, allocate, limits},
};
use crate::{registry::fields::*, request::RequestInfo, security::Identity};

/// A list of so many objects takes one seat.
const OBJECTS_PER_SEAT: usize = 100;
/// No list takes more seats.
const SEATS_MAX: u32 = 10;

/// What is in force: schemas by precedence, levels by name.
#[derive(Default)]
struct Rules {
    schemas: Vec<Arc<Schema>>,
    levels: Vec<Arc<Level>>,
}

/// Admits requests by the schemas and levels that are in force.
pub struct FlowControl {
    rules: ArcSwap<Rules>,
    /// Seats of the whole server.
    total: u32,
    /// What a request waits at most.
    patience: Duration,
}

/// A request that runs.
pub struct Permit {
    _seats: Seats,
    schema: Arc<Schema>,
}

/// A request that does not run.
pub struct Rejected {
    pub schema: Arc<Schema>,
    pub refusal: Refusal,
}

impl Permit {
    /// The UIDs of the FlowSchema and of the priority level, for headers.
    pub fn uids(&self) -> (HeaderValue, HeaderValue) {
        uids(&self.schema)
    }
}

impl Rejected {
    /// As [`Permit::uids`].
    pub fn uids(&self) -> (HeaderValue, HeaderValue) {
        uids(&self.schema)
    }
}

fn uids(schema: &Schema) -> (HeaderValue, HeaderValue) {
    (schema.uid.clone(), schema.level_uid.clone())
}

impl FlowControl {
    /// `total` seats; a request waits for its turn at most a quarter of what it may take.
    pub fn new(total: usize, request_timeout: Duration) -> Self {
        Self {
            rules: ArcSwap::default(),
            total: u32::try_from(total).unwrap_or(u32::MAX).max(1),
            patience: request_timeout / 4,
        }
    }

    /// Lets a request in, at once or when it is its turn; `None` while no schema matches, which is only so before the
    /// bootstrap objects are there. `width` says how many seats it takes, given the most that it may.
    ///
    /// # Errors
    /// When it does not get in.
    pub async fn admit(
        &self,
        user: &Identity,
        info: &RequestInfo,
        width: impl FnOnce(u32) -> u32,
    ) -> Option<Result<Permit, Rejected>> {
        let schema = {
            let rules = self.rules.load();
            rules.schemas.iter().find(|schema| schema.matches(user, info)).cloned()?
        };
        let level = &schema.level;
        let seats = if level.exempt { 0 } else { width(level.seats_max().min(SEATS_MAX)) };
        let flow = schema.distinguisher(user, info);
        Some(match level.take(seats, &schema.name, flow, self.patience).await {
            Ok(seats) => {
                schema.counters.dispatched.fetch_add(1, Ordering::Relaxed);
                Ok(Permit { _seats: seats, schema })
            }
            Err(refusal) => {
                let counters = &schema.counters;
                let counter = match refusal {
                    Refusal::QueueFull => &counters.queue_full,
                    Refusal::TimedOut => &counters.timed_out,
                    Refusal::ConcurrencyLimit => &counters.concurrency_limit,
                };
                counter.fetch_add(1, Ordering::Relaxed);
                Err(Rejected { schema, refusal })
            }
        })
    }

    /// Puts objects in force. Levels and counters of the same name go on.
    pub fn apply(&self, schemas: &[Value], levels: &[Value]) {
        let before = self.rules.load();
        let known: HashMap<&str, &Arc<Level>> =
            before.levels.iter().map(|level| (level.name.as_str(), level)).collect();
        let counters: HashMap<&str, &Arc<Counters>> =
            before.schemas.iter().map(|schema| (schema.name.as_str(), &schema.counters)).collect();
        let mut now: Vec<Arc<Level>> = Vec::new();
        let mut uids = HashMap::new();
        for object in levels {
            let name = meta::name(object);
            let exempt = text(object, "/spec/type") == "Exempt";
            let kept = known.get(name).filter(|level| level.exempt == exempt);
            let level = kept.map_or_else(|| Arc::new(Level::new(name, exempt)), |level| Arc::clone(level));
            level.configure(
                share_of(at(object, "/spec")),
                response_of(at(object, "/spec/limited/limitResponse")),
            );
            uids.insert(name, HeaderValue::from_str(meta::uid(object)).ok());
            now.push(level);
        }
        self.set_limits(&now);
        let mut compiled: Vec<Arc<Schema>> = schemas
            .iter()
            .filter_map(|object| {
                let level_name = text(object, "/spec/priorityLevelConfiguration/name");
                let level = now.iter().find(|level| level.name == level_name)?;
                let uid = uids.get(level_name).cloned().flatten();
                let counters = counters.get(meta::name(object)).map(|counters| Arc::clone(counters));
                Some(Arc::new(Schema::parse(
                    object,
                    Arc::clone(level),
                    uid.unwrap_or_else(|| HeaderValue::from_static("")),
                    counters.unwrap_or_default(),
                )))
            })
            .collect();
        compiled.sort_by(|a, b| (a.precedence, &a.name).cmp(&(b.precedence, &b.name)));
        drop(before);
        self.rules.store(Arc::new(Rules { schemas: compiled, levels: now }));
    }

    fn set_limits(&self, levels: &[Arc<Level>]) {
        let shares: Vec<Share> = levels.iter().map(|level| level.share()).collect();
        for (level, limits) in levels.iter().zip(limits(self.total, &shares)) {
            level.set_limits(limits);
        }
    }

    /// Shares the seats out anew by what each level needed since the last time.
    pub fn lend(&self) {
        let rules = self.rules.load();
        let limited: Vec<&Arc<Level>> = rules.levels.iter().filter(|level| !level.exempt).collect();
        let limits: Vec<_> = limited
            .iter()
            .map(|level| {
                let numbers = level.numbers();
                shares::Limits { nominal: numbers.nominal, min: numbers.min, max: numbers.max }
            })
            .collect();
        let targets: Vec<f64> = limited.iter().map(|level| level.target()).collect();
        for (level, seats) in limited.iter().zip(allocate(self.total, &limits, &targets)) {
            level.set_current(seats);
        }
    }
}

fn share_of(spec: &Value) -> Share {
    let part = if text(spec, "/type") == "Exempt" { at(spec, "/exempt") } else { at(spec, "/limited") };
    let number = |pointer| at(part, pointer).as_u64().and_then(|number| u32::try_from(number).ok());
    Share {
        shares: number("/nominalConcurrencyShares").unwrap_or(0),
        lendable_percent: number("/lendablePercent").unwrap_or(0).min(100),
        borrowing_limit_percent: number("/borrowingLimitPercent"),
    }
}

/// More queues than this are not made, whatever an object says: each is some memory.
const QUEUES_MAX: u32 = 4096;

fn response_of(value: &Value) -> Response {
    let queuing = at(value, "/queuing");
    if text(value, "/type") != "Queue" || queuing.is_null() {
        return Response::Reject;
    }
    let number = |pointer| u32::try_from(int(queuing, pointer)).unwrap_or(0);
    Response::Queue {
        queues: number("/queues").clamp(1, QUEUES_MAX),
        hand: number("/handSize").max(1),
        length: number("/queueLengthLimit").max(1),
    }
}

/// Seats of a request that lists, or begins with a list of, so many objects.
pub fn list_seats(objects: usize, seats_max: u32) -> u32 {
    u32::try_from(objects.div_ceil(OBJECTS_PER_SEAT)).unwrap_or(u32::MAX).clamp(1, seats_max.max(1))
}

/// How long ago that was, for reports.
fn age(since: Instant) -> Duration {
    since.elapsed()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::query::Query;

    fn by_kind(kind: &str) -> Vec<Value> {
        objects::bootstrap().into_iter().filter(|object| meta::kind(object) == kind).collect()
    }

    fn control() -> FlowControl {
        let control = FlowControl::new(600, Duration::from_secs(60));
        control.apply(&by_kind("FlowSchema"), &by_kind("PriorityLevelConfiguration"));
        control
    }

    async fn schema_of(control: &FlowControl, user: &str, groups: &[&str], target: &str) -> String {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let info = RequestInfo::parse(&http::Method::GET, path, &Query::parse(query), false);
        let user = Identity::internal(user, groups);
        let permit = control.admit(&user, &info, |_| 1).await.expect("a schema matches");
        permit.ok().expect("there are seats").schema.name.clone()
    }

    #[tokio::test]
    async fn requests_are_classified_as_upstream_does() {
        let control = control();
        let cases = [
            ("root", &["system:masters"][..], "/api/v1/pods", "exempt"),
            ("x", &[], "/healthz", "probes"),
            ("x", &[], "/healthz/etcd", "global-default"),
            ("system:node:n1", &["system:nodes"], "/api/v1/nodes/n1", "system-node-high"),
            ("system:node:n1", &["system:nodes"], "/api/v1/pods", "system-nodes"),
            (
                "system:kube-scheduler",
                &[],
                "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/s",
                "system-leader-election",
            ),
            ("system:kube-scheduler", &[], "/api/v1/pods", "kube-scheduler"),
            (
                "system:serviceaccount:kube-system:dns",
                &["system:serviceaccounts"],
                "/api/v1/pods",
                "kube-system-service-accounts",
            ),
            (
                "system:serviceaccount:apps:web",
                &["system:serviceaccounts"],
                "/api/v1/pods",
                "service-accounts",
            ),
            ("alice", &[], "/api/v1/namespaces/a/pods", "global-default"),
        ];
        for (user, groups, path, wanted) in cases {
            assert_eq!(schema_of(&control, user, groups, path).await, wanted, "{user} {path}");
        }
    }

    #[tokio::test]
    async fn the_order_is_that_of_precedence_and_dangling_schemas_are_passed_over() {
        let control = control();
        let mut schemas = by_kind("FlowSchema");
        let rules = schemas[0]["spec"]["rules"].clone();
        let schema = |name: &str, level: &str, precedence: i64, user: &str| {
            let mut rules = rules.clone();
            rules[0]["subjects"] = json!([{"kind": "User", "user": {"name": user}}]);
            json!({"metadata": {"name": name, "uid": name}, "spec": {"rules": rules,
                "priorityLevelConfiguration": {"name": level}, "matchingPrecedence": precedence}})
        };
        schemas.push(schema("dangling", "nowhere", 3, "noxu"));
        schemas.push(schema("late", "system", 1000, "noxu"));
        schemas.push(schema("early", "system", 999, "noxu"));
        control.apply(&schemas, &by_kind("PriorityLevelConfiguration"));
        assert_eq!(schema_of(&control, "noxu", &[], "/version").await, "early");
        assert_eq!(schema_of(&control, "foo", &[], "/version").await, "global-default");
    }

    #[test]
    fn seats_are_shared_out_by_the_shares_and_lent() {
        let control = control();
        let level = |name: &str| {
            let rules = control.rules.load();
            rules.levels.iter().find(|level| level.name == name).unwrap().numbers()
        };
        // Upstream's table for 600 seats.
        for (name, nominal) in [("system", 74), ("node-high", 98), ("workload-low", 245), ("catch-all", 13)] {
            assert_eq!(level(name).nominal, nominal, "{name}");
            assert_eq!(level(name).current, nominal, "{name}");
        }
        control.lend();
        let total: u32 = control.rules.load().levels.iter().map(|level| level.numbers().current).sum();
        assert!((590..=620).contains(&total), "{total}");
        assert!(level("workload-low").min <= level("workload-low").current);
    }

    #[test]
    fn wide_lists_take_more_seats() {
        assert_eq!(list_seats(0, 10), 1);
        assert_eq!(list_seats(100, 10), 1);
        assert_eq!(list_seats(101, 10), 2);
        assert_eq!(list_seats(100_000, 10), 10);
    }
}
