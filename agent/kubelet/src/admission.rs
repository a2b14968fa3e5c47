//! The kubelet's own check of a pod before it runs: the scheduler may have been late, or absent. Pure.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Pod, PodSpec};

use crate::eviction::signals::Condition;
use crate::eviction::{self, pods};
use crate::pod::{self, Bound};
use crate::status::Failure;

const MEMORY_PRESSURE: &str = "node.kubernetes.io/memory-pressure";

/// Whether a node under `pressure` takes `pod`. Short of memory alone, it takes all that asked for some, and others that
/// tolerate it; critical pods are always taken.
pub fn under_pressure(pod: &Pod, pressure: &BTreeSet<Condition>) -> Result<(), Failure> {
    let default_spec = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&default_spec);
    let only_memory = pressure.iter().all(|condition| *condition == Condition::Memory);
    let admitted = || pod::qos_class(spec) != "BestEffort" || tolerates_memory_pressure(spec);
    if pressure.is_empty() || pods::is_critical(pod) || (only_memory && admitted()) {
        return Ok(());
    }
    let conditions = eviction::list(pressure);
    let message = format!("Pod was rejected: The node had condition: {conditions}. ");
    Err(Failure::new(eviction::REASON, message))
}

fn tolerates_memory_pressure(spec: &PodSpec) -> bool {
    spec.tolerations.iter().flatten().any(|toleration| {
        let matches = |given: &Option<String>, wanted: &str| {
            given.as_deref().is_none_or(|g| g.is_empty() || g == wanted)
        };
        // The taint has no value.
        let operator = match toleration.operator.as_deref() {
            Some("Exists") => true,
            None | Some("" | "Equal") => {
                toleration.key.is_some() && toleration.value.as_deref().unwrap_or_default().is_empty()
            }
            Some(_) => false,
        };
        matches(&toleration.effect, "NoSchedule") && matches(&toleration.key, MEMORY_PRESSURE) && operator
    })
}

/// Whether `pod` fits the node beside `others`, pods that are here already.
pub fn check<'a>(
    pod: &Pod,
    others: impl Iterator<Item = &'a Pod> + Clone,
    labels: &BTreeMap<String, String>,
    allocatable_milli: &BTreeMap<String, i128>,
) -> Result<(), Failure> {
    let default_spec = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&default_spec);
    let fail =
        |reason: &str, message: String| Err(Failure::new(reason, format!("Pod was rejected: {message}")));
    let selects = |(key, value): (&String, &String)| labels.get(key) == Some(value);
    if !spec.node_selector.iter().flatten().all(selects) {
        let message = "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector";
        return fail("NodeAffinity", message.to_owned());
    }
    let others = others.filter(|other| {
        pod::uid(other) != pod::uid(pod)
            && !pod::is_terminal_phase(other.status.as_ref().and_then(|status| status.phase.as_deref()))
    });
    if let Some(pods) = allocatable_milli.get("pods") {
        let used = i128::try_from(others.clone().count()).unwrap_or(i128::MAX);
        if (used + 1) * 1000 > *pods {
            let capacity = pods / 1000;
            let text = format!(
                "Node didn't have enough resource: pods, requested: 1, used: {used}, capacity: {capacity}"
            );
            return fail("OutOfpods", text);
        }
    }
    for name in ["cpu", "memory", "ephemeral-storage"] {
        let wanted = pod::pod_resource(spec, Bound::Request, name).unwrap_or(0);
        let Some(capacity) = allocatable_milli.get(name).filter(|_| wanted > 0) else { continue };
        let specs = others.clone().filter_map(|other| other.spec.as_ref());
        let used: i128 = specs.map(|spec| pod::pod_resource(spec, Bound::Request, name).unwrap_or(0)).sum();
        if used + wanted > *capacity {
            // CPU is told in thousandths, as upstream does.
            let unit = if name == "cpu" { 1 } else { 1000 };
            let (wanted, used, capacity) = (wanted / unit, used / unit, capacity / unit);
            let text = format!(
                "Node didn't have enough resource: {name}, requested: {wanted}, used: {used}, capacity: {capacity}"
            );
            return fail(&format!("OutOf{name}"), text);
        }
    }
    let taken: Vec<_> = others.filter_map(|other| other.spec.as_ref()).flat_map(pod::host_ports).collect();
    if pod::host_ports(spec).iter().any(|port| taken.iter().any(|other| collide(port, other))) {
        let message =
            "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports";
        return fail("NodePorts", message.to_owned());
    }
    Ok(())
}

fn collide(a: &(String, String, i32), b: &(String, String, i32)) -> bool {
    let any = |ip: &str| matches!(ip, "" | "0.0.0.0" | "::");
    a.0 == b.0 && a.2 == b.2 && (a.1 == b.1 || any(&a.1) || any(&b.1))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(uid: &str, spec: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": uid, "uid": uid}, "spec": spec})).unwrap()
    }

    fn cpu(uid: &str, cpu: &str) -> Pod {
        pod(uid, json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}))
    }

    fn reason(new: &Pod, others: &[Pod]) -> Option<String> {
        let labels = BTreeMap::from([("zone".to_owned(), "a".to_owned())]);
        let allocatable = BTreeMap::from([("cpu".to_owned(), 2000), ("pods".to_owned(), 3000)]);
        check(new, others.iter(), &labels, &allocatable).err().map(|failure| failure.reason)
    }

    #[test]
    fn resources_are_summed_over_pods_that_are_not_done() {
        let mut done = cpu("b", "2");
        assert_eq!(reason(&cpu("a", "1"), &[done.clone()]).as_deref(), Some("OutOfcpu"));
        done.status = serde_json::from_value(json!({"phase": "Succeeded"})).unwrap();
        assert_eq!(reason(&cpu("a", "2"), &[done]), None);
        assert_eq!(reason(&cpu("a", "2"), &[cpu("a", "2")]), None, "the pod itself does not count");
        let many = [cpu("1", "0"), cpu("2", "0"), cpu("3", "0")];
        assert_eq!(reason(&cpu("a", "0"), &many).as_deref(), Some("OutOfpods"));
    }

    #[test]
    fn selectors_and_host_ports_are_checked() {
        let selector = |zone: &str| pod("a", json!({"containers": [], "nodeSelector": {"zone": zone}}));
        assert_eq!(reason(&selector("a"), &[]), None);
        assert_eq!(reason(&selector("b"), &[]).as_deref(), Some("NodeAffinity"));
        let port = |uid: &str, ip: &str, number: i32| {
            let ports = json!([{"containerPort": 1, "hostPort": number, "hostIP": ip}]);
            pod(uid, json!({"containers": [{"name": "c", "ports": ports}]}))
        };
        assert_eq!(reason(&port("a", "", 80), &[port("b", "10.0.0.1", 80)]).as_deref(), Some("NodePorts"));
        assert_eq!(reason(&port("a", "10.0.0.2", 80), &[port("b", "10.0.0.1", 80)]), None);
        assert_eq!(reason(&port("a", "", 81), &[port("b", "", 80)]), None);
    }

    #[test]
    fn a_node_under_pressure_takes_what_it_must_and_what_it_can() {
        let all = [Condition::Memory, Condition::Disk, Condition::Pid];
        let refused = |pod: &Pod, pressure: &[Condition]| {
            under_pressure(pod, &pressure.iter().copied().collect()).err().map(|failure| failure.message)
        };
        let best_effort = || json!({"containers": [{"name": "c"}]});
        let plain = pod("a", best_effort());
        assert_eq!(refused(&plain, &[]), None);
        let message = "Pod was rejected: The node had condition: [MemoryPressure]. ";
        assert_eq!(refused(&plain, &[Condition::Memory]).as_deref(), Some(message));
        let asking = cpu("a", "1");
        assert_eq!(refused(&asking, &[Condition::Memory]), None);
        for condition in [Condition::Disk, Condition::Pid] {
            assert!(
                refused(&asking, &[condition]).is_some()
                    && refused(&asking, &[condition, Condition::Memory]).is_some()
            );
        }
        let mut spec = best_effort();
        spec["priority"] = json!(2_000_000_000);
        assert_eq!(refused(&pod("a", spec), &all), None);
        for (toleration, taken) in [
            (json!({"key": MEMORY_PRESSURE, "operator": "Exists"}), true),
            (json!({"key": MEMORY_PRESSURE, "effect": "NoSchedule"}), true),
            (json!({"operator": "Exists"}), true),
            (json!({"key": MEMORY_PRESSURE, "operator": "Exists", "effect": "NoExecute"}), false),
            (json!({"key": MEMORY_PRESSURE, "value": "x"}), false),
            (json!({"key": "node.kubernetes.io/disk-pressure", "operator": "Exists"}), false),
        ] {
            let mut spec = best_effort();
            spec["tolerations"] = json!([toleration]);
            let tolerant = pod("a", spec);
            assert_eq!(refused(&tolerant, &[Condition::Memory]).is_none(), taken, "{toleration}");
            assert!(refused(&tolerant, &[Condition::Disk]).is_some());
        }
    }
}
