//! What the scheduler needs to know of a pod, parsed once. No IO.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{ContainerPort, Pod, PodAffinityTerm, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use kube::ResourceExt;
use kube::core::{Selector, SelectorExt};

use crate::resources::{Requests, requests};

/// A pod with what its spec means to the plugins.
#[derive(Debug)]
pub struct PodInfo {
    /// The pod itself.
    pub pod: Arc<Pod>,
    /// Its uid.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its priority; 0 where it has none.
    pub priority: i32,
    /// What it asks of a node.
    pub requests: Requests,
    /// Ports that it takes on the node itself.
    pub host_ports: Vec<HostPort>,
    /// Required and preferred affinity to other pods.
    pub affinity: Affinity,
    /// The same against other pods.
    pub anti_affinity: Affinity,
    /// The controller that owns it.
    pub controller: Option<String>,
}

/// A port on a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPort {
    /// The address; `0.0.0.0` for all.
    pub ip: String,
    /// TCP, UDP or SCTP.
    pub protocol: String,
    /// The port.
    pub port: i32,
}

impl HostPort {
    /// Whether both cannot exist on one node.
    pub fn conflicts(&self, other: &Self) -> bool {
        let any = |ip: &str| ip == "0.0.0.0" || ip == "::";
        self.port == other.port
            && self.protocol == other.protocol
            && (self.ip == other.ip || any(&self.ip) || any(&other.ip))
    }
}

/// Terms towards other pods.
#[derive(Debug, Default)]
pub struct Affinity {
    /// Must hold.
    pub required: Vec<Term>,
    /// Should hold, with a weight of 1 to 100.
    pub preferred: Vec<(i32, Term)>,
}

/// One term: which pods it speaks of, and the node label that defines "together".
#[derive(Debug)]
pub struct Term {
    selector: Option<Selector>,
    namespaces: Vec<String>,
    namespace_selector: Option<Selector>,
    /// The node label.
    pub topology_key: String,
}

impl Term {
    fn new(term: &PodAffinityTerm, pod: &Pod) -> Self {
        let selector = term.label_selector.as_ref().and_then(|selector| {
            let mut selector = selector.clone();
            extend_by_keys(&mut selector, term.match_label_keys.as_deref(), "In", pod);
            extend_by_keys(&mut selector, term.mismatch_label_keys.as_deref(), "NotIn", pod);
            Selector::try_from(selector).ok()
        });
        let mut namespaces = term.namespaces.clone().unwrap_or_default();
        if namespaces.is_empty() && term.namespace_selector.is_none() {
            namespaces.push(pod.namespace().unwrap_or_default());
        }
        let namespace_selector =
            term.namespace_selector.clone().and_then(|selector| Selector::try_from(selector).ok());
        Self { selector, namespaces, namespace_selector, topology_key: term.topology_key.clone() }
    }

    /// Whether the term speaks of `pod`; `labels_of` gives the labels of a namespace.
    pub fn matches<'a>(
        &self,
        pod: &PodInfo,
        labels_of: impl Fn(&str) -> &'a std::collections::BTreeMap<String, String>,
    ) -> bool {
        let in_scope = self.namespaces.contains(&pod.namespace)
            || self
                .namespace_selector
                .as_ref()
                .is_some_and(|selector| selector.matches(labels_of(&pod.namespace)));
        in_scope && self.selector.as_ref().is_some_and(|selector| selector.matches(pod.pod.labels()))
    }
}

/// Adds a requirement per key that the pod's own label of that key has (In) or has not (NotIn) the same value.
pub fn extend_by_keys(selector: &mut LabelSelector, keys: Option<&[String]>, operator: &str, pod: &Pod) {
    for key in keys.unwrap_or_default() {
        if let Some(value) = pod.labels().get(key) {
            selector.match_expressions.get_or_insert_default().push(LabelSelectorRequirement {
                key: key.clone(),
                operator: operator.into(),
                values: Some(vec![value.clone()]),
            });
        }
    }
}

impl PodInfo {
    /// Parses `pod`.
    pub fn new(pod: Arc<Pod>) -> Self {
        let affinity = pod.spec.as_ref().and_then(|spec| spec.affinity.as_ref());
        let mut towards = Affinity::default();
        if let Some(terms) = affinity.and_then(|affinity| affinity.pod_affinity.as_ref()) {
            let required = terms.required_during_scheduling_ignored_during_execution.iter().flatten();
            towards.required = required.map(|term| Term::new(term, &pod)).collect();
            let preferred = terms.preferred_during_scheduling_ignored_during_execution.iter().flatten();
            towards.preferred =
                preferred.map(|term| (term.weight, Term::new(&term.pod_affinity_term, &pod))).collect();
        }
        let mut against = Affinity::default();
        if let Some(terms) = affinity.and_then(|affinity| affinity.pod_anti_affinity.as_ref()) {
            let required = terms.required_during_scheduling_ignored_during_execution.iter().flatten();
            against.required = required.map(|term| Term::new(term, &pod)).collect();
            let preferred = terms.preferred_during_scheduling_ignored_during_execution.iter().flatten();
            against.preferred =
                preferred.map(|term| (term.weight, Term::new(&term.pod_affinity_term, &pod))).collect();
        }
        let controller = pod
            .owner_references()
            .iter()
            .find(|owner| owner.controller == Some(true))
            .map(|owner| owner.uid.clone());
        Self {
            uid: pod.uid().unwrap_or_default(),
            namespace: pod.namespace().unwrap_or_default(),
            priority: pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0),
            requests: requests(&pod),
            host_ports: host_ports(&pod),
            affinity: towards,
            anti_affinity: against,
            controller,
            pod,
        }
    }

    /// The pod's spec; an empty one where the API sent none.
    pub fn spec(&self) -> &PodSpec {
        static EMPTY: std::sync::LazyLock<PodSpec> = std::sync::LazyLock::new(PodSpec::default);
        self.pod.spec.as_ref().unwrap_or(&EMPTY)
    }

    /// `namespace/name`.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.pod.name_any())
    }
}

fn host_ports(pod: &Pod) -> Vec<HostPort> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let sidecars = spec
        .init_containers
        .iter()
        .flatten()
        .filter(|container| container.restart_policy.as_deref() == Some("Always"));
    let ports = spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
    let host_port = |port: &ContainerPort| {
        let number = port.host_port.filter(|number| *number > 0)?;
        let ip = port.host_ip.clone().filter(|ip| !ip.is_empty()).unwrap_or_else(|| "0.0.0.0".into());
        Some(HostPort { ip, protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()), port: number })
    };
    ports.filter_map(host_port).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_conflict_on_the_same_or_any_address() {
        let port = |ip: &str, protocol: &str| HostPort { ip: ip.into(), protocol: protocol.into(), port: 80 };
        assert!(port("0.0.0.0", "TCP").conflicts(&port("10.0.0.1", "TCP")));
        assert!(!port("10.0.0.2", "TCP").conflicts(&port("10.0.0.1", "TCP")));
        assert!(!port("0.0.0.0", "UDP").conflicts(&port("0.0.0.0", "TCP")));
    }
}
