//! What EndpointSlice and Endpoints have in common: which pods stand behind a Service, and on which ports. No IO.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ContainerPort, ObjectReference, Pod, Service, ServicePort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::core::{Selector, SelectorExt};

use crate::cluster::Cluster;
use crate::pods;
use crate::queue::Queue;
use crate::store::{Key, Store};

/// Says when the newest change behind an object happened, so that propagation can be measured.
pub const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";
/// Marks what belongs to a Service without a cluster IP.
pub const HEADLESS: &str = "service.kubernetes.io/headless";

/// A port that a pod serves, resolved from the Service's port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port {
    /// Name of the Service's port; empty where it has none.
    pub name: String,
    /// TCP, UDP or SCTP.
    pub protocol: String,
    /// The pod's port.
    pub port: i32,
    /// The Service port's appProtocol.
    pub app_protocol: Option<String>,
}

/// Whether the controllers make endpoints for this Service at all.
pub fn is_selecting(service: &Service) -> bool {
    let spec = service.spec.as_ref();
    spec.is_some_and(|spec| spec.selector.is_some() && spec.type_.as_deref() != Some("ExternalName"))
}

/// Whether the Service has no cluster IP by wish.
pub fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()) == Some("None")
}

/// The pods that the Service selects and that have an address, ordered by name.
pub fn backends(service: &Service, pods: &Store<Pod>) -> Vec<Arc<Pod>> {
    let Some(selector) = service.spec.as_ref().and_then(|spec| spec.selector.clone()) else {
        return Vec::new();
    };
    let selector: Selector = selector.into_iter().collect();
    let mut backends = pods.in_namespace(&service.namespace().unwrap_or_default());
    backends.retain(|pod| {
        selector.matches(pod.labels()) && !pods::is_finished(pod) && !addresses(pod).is_empty()
    });
    backends
}

/// The pod's addresses.
pub fn addresses(pod: &Pod) -> Vec<IpAddr> {
    let Some(status) = &pod.status else { return Vec::new() };
    let listed: Vec<IpAddr> = status.pod_ips.iter().flatten().filter_map(|ip| ip.ip.parse().ok()).collect();
    if !listed.is_empty() {
        return listed;
    }
    status.pod_ip.iter().filter_map(|ip| ip.parse().ok()).collect()
}

/// The Service's ports on this pod; a named port that the pod does not have is left out.
pub fn ports(service: &Service, pod: &Pod) -> Vec<Port> {
    let ports = service.spec.as_ref().and_then(|spec| spec.ports.as_deref()).unwrap_or_default();
    let resolved = ports.iter().filter_map(|port| {
        Some(Port {
            name: port.name.clone().unwrap_or_default(),
            protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()),
            port: target(port, pod)?,
            app_protocol: port.app_protocol.clone(),
        })
    });
    let mut resolved: Vec<Port> = resolved.collect();
    resolved.sort();
    resolved
}

fn target(port: &ServicePort, pod: &Pod) -> Option<i32> {
    let name = match &port.target_port {
        None => return Some(port.port),
        Some(IntOrString::Int(0)) => return Some(port.port),
        Some(IntOrString::Int(number)) => return Some(*number),
        Some(IntOrString::String(name)) => name,
    };
    let protocol = port.protocol.as_deref().unwrap_or("TCP");
    let matches = |candidate: &&ContainerPort| {
        candidate.name.as_deref() == Some(name) && candidate.protocol.as_deref().unwrap_or("TCP") == protocol
    };
    let spec = pod.spec.as_ref()?;
    let sidecars = spec
        .init_containers
        .iter()
        .flatten()
        .filter(|container| container.restart_policy.as_deref() == Some("Always"));
    let ports = spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
    ports.into_iter().find(matches).map(|port| port.container_port)
}

/// The host name under which the pod is known in the Service's domain.
pub fn hostname(service: &Service, pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let hostname = spec.hostname.clone().filter(|hostname| !hostname.is_empty())?;
    (spec.subdomain == service.metadata.name && pod.namespace() == service.namespace()).then_some(hostname)
}

/// A reference to the pod.
pub fn target_reference(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".into()),
        namespace: pod.namespace(),
        name: pod.metadata.name.clone(),
        uid: pod.uid(),
        ..ObjectReference::default()
    }
}

/// The labels of the Service, marked where it is headless.
pub fn labels(service: &Service) -> BTreeMap<String, String> {
    let mut labels = service.labels().clone();
    labels.remove(HEADLESS);
    if is_headless(service) {
        labels.insert(HEADLESS.into(), String::new());
    }
    labels
}

/// The newest change among the Service and its pods.
pub fn triggered_at(service: &Service, backends: &[Arc<Pod>]) -> Option<Timestamp> {
    let readiness = |pod: &Arc<Pod>| {
        pods::condition(pod, "Ready").and_then(|c| c.last_transition_time.as_ref().map(|t| t.0))
    };
    let pods = backends.iter().filter_map(readiness);
    pods.chain(service.metadata.creation_timestamp.as_ref().map(|time| time.0)).max()
}

/// Marks the Services that changed, and those that a changed pod stood or stands behind.
pub fn enqueue_services(cluster: &Cluster, queue: &Arc<Queue>) {
    let dirty = queue.clone();
    cluster.services.subscribe(move |old, new| {
        if let Some(service) = new.or(old) {
            dirty.add(Key::of(&**service));
        }
    });
    let (queue, services) = (queue.clone(), cluster.services.clone());
    cluster.pods.subscribe(move |old, new| {
        if old.zip(new).is_some_and(|(old, new)| same_endpoint(old, new)) {
            return;
        }
        let Some(namespace) = new.or(old).and_then(|pod| pod.namespace()) else { return };
        for service in services.in_namespace(&namespace) {
            let Some(selector) = service.spec.as_ref().and_then(|spec| spec.selector.clone()) else {
                continue;
            };
            let selector: Selector = selector.into_iter().collect();
            if [old, new].into_iter().flatten().any(|pod| selector.matches(pod.labels())) {
                queue.add(Key::of(&*service));
            }
        }
    });
}

fn same_endpoint(old: &Pod, new: &Pod) -> bool {
    old.metadata.uid == new.metadata.uid
        && old.metadata.labels == new.metadata.labels
        && old.metadata.deletion_timestamp.is_some() == new.metadata.deletion_timestamp.is_some()
        && addresses(old) == addresses(new)
        && pods::is_ready(old) == pods::is_ready(new)
        && pods::is_finished(old) == pods::is_finished(new)
        && pods::node_name(old) == pods::node_name(new)
}
