//! Whether remote APIServices answer: their Service, its port, its endpoints, then a request for their group and version.
//! The condition `Available` says what was found, with upstream's reasons; what an available one serves goes to discovery.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use api::status::Status;
use futures::{StreamExt as _, future::join_all};
use serde_json::{Value, json};
use tokio::time::Instant;
use tracing::{debug, info};

use super::{Aggregation, GROUP, PLURAL, Remote, discover::Served};
use crate::{
    admission::Lookup,
    discovery::remote::RemoteVersion,
    handlers::{Target, now, own::OwnUpdate},
    registry::fields::*,
    security::{GROUP_MASTERS, Identity},
    state::State,
    storage::keys,
    subresources::binding::set_condition,
};

/// Between two checks of what did not change.
const INTERVAL: Duration = Duration::from_secs(30);
/// The same while one is not available.
const INTERVAL_FAILED: Duration = Duration::from_secs(2);
/// How often Services and endpoints are looked at for changes, while there are remote APIServices at all.
const LOOK: Duration = Duration::from_millis(250);
const ATTEMPTS: usize = 2;

/// The condition that a check came to.
#[derive(Debug, PartialEq, Eq)]
struct Verdict {
    status: &'static str,
    reason: &'static str,
    message: String,
}

impl Verdict {
    fn not(reason: &'static str, message: String) -> Self {
        Self { status: "False", reason, message }
    }
}

/// Watches until the server stops.
pub(crate) async fn run(state: Arc<State>) {
    let prefix = keys::resource_prefix(GROUP, PLURAL);
    let mut known: HashMap<(String, String), Vec<Value>> = HashMap::new();
    let mut shows_remotes = false;
    let mut last_answering = BTreeSet::new();
    while let Ok(mut events) = state.cache.watch(&prefix, None) {
        loop {
            let remotes: Vec<Arc<Remote>> = state.aggregation.remotes().values().cloned().collect();
            let verdicts =
                join_all(remotes.iter().map(|remote| check(&state.aggregation, &*state.cache, remote))).await;
            let mut all_good = true;
            for (remote, (verdict, served)) in remotes.iter().zip(verdicts) {
                all_good &= verdict.status == "True";
                if let Some(served) = served {
                    known.insert((remote.group.clone(), remote.version.clone()), served);
                }
                if let Err(status) = write(&state, &remote.name, &verdict).await {
                    debug!(name = remote.name, message = status.message, "no condition was written");
                }
            }
            if shows_remotes || !remotes.is_empty() {
                show(&state, &remotes, &mut known);
                let now_answering = answering(&state);
                if now_answering != last_answering {
                    state.aggregation.documents.look();
                    last_answering = now_answering;
                }
                shows_remotes = !remotes.is_empty();
            }
            let again = if all_good { INTERVAL } else { INTERVAL_FAILED };
            let ended = tokio::select! {
                () = state.stop.cancelled() => return,
                event = events.next() => !matches!(event, Some(Ok(_))),
                () = changed(&state, again), if !remotes.is_empty() => false,
            };
            if ended {
                break;
            }
            while let Ok(Some(_)) = events.try_next() {}
        }
    }
}

/// The names of the available ones.
fn answering(state: &State) -> BTreeSet<String> {
    let remotes = state.aggregation.remotes();
    remotes.values().filter(|remote| remote.available).map(|remote| remote.name.clone()).collect()
}

/// Ends when Services or endpoints changed, and at the latest after `time`.
async fn changed(state: &State, time: Duration) {
    let newest = || {
        let of = |group: &str, plural: &str| state.cache.newest(&keys::resource_prefix(group, plural));
        (of("", "services"), of("discovery.k8s.io", "endpointslices"))
    };
    let (before, deadline) = (newest(), Instant::now() + time);
    while newest() == before && Instant::now() < deadline {
        tokio::time::sleep(LOOK).await;
    }
}

/// What one APIService is, and what it serves where it answers.
async fn check(
    aggregation: &Aggregation,
    lookup: &dyn Lookup,
    remote: &Remote,
) -> (Verdict, Option<Vec<Value>>) {
    if let Err(verdict) = check_service(lookup, remote) {
        return (verdict, None);
    }
    let mut failed = String::new();
    for _ in 0..ATTEMPTS {
        match aggregation.discover(remote).await {
            Ok(Served { resources }) => {
                let message = "all checks passed".to_owned();
                return (Verdict { status: "True", reason: "Passed", message }, Some(resources));
            }
            Err(why) => failed = why,
        }
    }
    (Verdict::not("FailedDiscoveryCheck", failed), None)
}

fn check_service(lookup: &dyn Lookup, remote: &Remote) -> Result<(), Verdict> {
    let (name, namespace, port) = (&remote.service.name, &remote.service.namespace, remote.service.port);
    let subject = format!("service/{name} in {namespace:?}");
    let Some(service) = lookup.get("", "services", namespace, name) else {
        return Err(Verdict::not("ServiceNotFound", format!("{subject} is not present")));
    };
    if !matches!(text(&service, "/spec/type"), "" | "ClusterIP") {
        return Ok(());
    }
    let ports = items(&service, "/spec/ports");
    let Some(port) = ports.iter().find(|found| int(found, "/port") == i64::from(port)) else {
        return Err(Verdict::not("ServicePortError", format!("{subject} is not listening on port {port}")));
    };
    let slices = lookup.list("discovery.k8s.io", "endpointslices", namespace);
    let of_service: Vec<&Value> = slices
        .iter()
        .filter(|slice| {
            entries(slice, "/metadata/labels").get("kubernetes.io/service-name").and_then(Value::as_str)
                == Some(name)
        })
        .collect();
    if of_service.is_empty() {
        let message = format!("cannot find endpointslices for {subject}");
        return Err(Verdict::not("EndpointsNotFound", message));
    }
    let port_name = text(port, "/name");
    let has_endpoint = of_service.iter().any(|slice| {
        items(slice, "/ports").iter().any(|port| text(port, "/name") == port_name)
            && items(slice, "/endpoints").iter().any(|endpoint| {
                endpoint["conditions"]["ready"] != false && !items(endpoint, "/addresses").is_empty()
            })
    });
    if has_endpoint {
        return Ok(());
    }
    let message = format!("endpointslices for {subject} have no addresses with port name {port_name:?}");
    Err(Verdict::not("MissingEndpoints", message))
}

/// Writes the condition where it is another one.
async fn write(state: &State, name: &str, verdict: &Verdict) -> Result<(), Status> {
    let Some(resource) = state.schema.resource(GROUP, "v1", PLURAL) else { return Ok(()) };
    let target = Target::new(resource);
    let Some(stored) = state.cache.get(&target.key("", name)) else { return Ok(()) };
    let value = stored.value();
    let condition = json!({
        "type": "Available", "status": verdict.status, "reason": verdict.reason, "message": verdict.message,
    });
    let is_same = items(&value, "/status/conditions").iter().any(|known| {
        ["type", "status", "reason", "message"].iter().all(|field| known[field] == condition[field])
    });
    if is_same {
        return Ok(());
    }
    info!(name, status = verdict.status, reason = verdict.reason, "availability of an aggregated API");
    let user = Identity::internal("system:kube-aggregator", &[GROUP_MASTERS]);
    let update = OwnUpdate {
        state,
        user: &user,
        target: &target,
        subresource: "status",
        namespace: "",
        name,
        admits: false,
    };
    let at = now();
    update.run(&mut |service| set_condition(service, condition.clone(), &at)).await.map(drop)
}

fn show(state: &State, remotes: &[Arc<Remote>], known: &mut HashMap<(String, String), Vec<Value>>) {
    let current = state.aggregation.remotes();
    known.retain(|key, _| current.contains_key(key));
    let versions = remotes
        .iter()
        .filter_map(|remote| current.get(&(remote.group.clone(), remote.version.clone())))
        .map(|remote| RemoteVersion {
            group: remote.group.clone(),
            version: remote.version.clone(),
            group_priority: remote.group_priority,
            version_priority: remote.version_priority,
            is_current: remote.available,
            resources: known
                .get(&(remote.group.clone(), remote.version.clone()))
                .cloned()
                .unwrap_or_default(),
        })
        .collect();
    state.discovery.set_remote(versions, || state.kinds.resources());
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Cluster {
        service: Option<Value>,
        slices: Vec<Value>,
    }

    impl Lookup for Cluster {
        fn get(&self, _group: &str, _plural: &str, _namespace: &str, _name: &str) -> Option<Value> {
            self.service.clone()
        }

        fn list(&self, _group: &str, _plural: &str, _namespace: &str) -> Vec<Value> {
            self.slices.clone()
        }
    }

    #[test]
    fn what_is_missing_behind_an_api_service_is_told_in_upstreams_words() {
        let object = json!({
            "metadata": {"name": "v1.w"},
            "spec": {"group": "w", "version": "v1", "service": {"name": "api", "namespace": "n", "port": 443}},
        });
        let remote = Remote::parse(&object).unwrap();
        let verdict = |service: Option<Value>, slices: Vec<Value>| {
            check_service(&Cluster { service, slices }, &remote)
                .map_err(|verdict| (verdict.reason, verdict.message))
        };
        let service = |port: i64| Some(json!({"spec": {"type": "ClusterIP", "ports": [{"port": port}]}}));
        let slice = |ready: bool| {
            json!({
                "metadata": {"labels": {"kubernetes.io/service-name": "api"}}, "ports": [{"name": "", "port": 1}],
                "endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": ready}}],
            })
        };
        let says = |reason: &'static str, message: &str| Err((reason, message.to_owned()));
        assert_eq!(verdict(None, vec![]), says("ServiceNotFound", "service/api in \"n\" is not present"));
        assert_eq!(
            verdict(service(80), vec![]),
            says("ServicePortError", "service/api in \"n\" is not listening on port 443")
        );
        assert_eq!(
            verdict(service(443), vec![]),
            says("EndpointsNotFound", "cannot find endpointslices for service/api in \"n\"")
        );
        assert_eq!(
            verdict(service(443), vec![slice(false)]),
            says(
                "MissingEndpoints",
                "endpointslices for service/api in \"n\" have no addresses with port name \"\""
            )
        );
        assert_eq!(verdict(service(443), vec![slice(true)]), Ok(()));
    }
}
