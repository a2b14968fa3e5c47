//! Reading a Pod: its containers by role, QoS class, resources and other facts that follow from the spec alone.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, EphemeralContainer, Pod, PodSpec, Probe};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use sha2::{Digest, Sha256};

use crate::quantity;

/// Annotation that marks a pod read from a file, and the mirror of it in the apiserver.
pub const ANNOTATION_CONFIG_SOURCE: &str = "kubernetes.io/config.source";
pub const ANNOTATION_CONFIG_MIRROR: &str = "kubernetes.io/config.mirror";
pub const ANNOTATION_CONFIG_HASH: &str = "kubernetes.io/config.hash";

const GRACE_SECONDS_DEFAULT: i64 = 30;

/// What a container is to its pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Runs to completion before the next one starts.
    Init,
    /// An init container with `restartPolicy: Always`: starts in order, then stays.
    Sidecar,
    App,
    Ephemeral,
}

/// One container of a pod, whatever list of the spec it stands in.
#[derive(Clone, Debug)]
pub struct Entry {
    pub role: Role,
    pub container: Container,
    /// `targetContainerName` of an ephemeral container.
    pub target: Option<String>,
}

impl Entry {
    pub fn name(&self) -> &str {
        &self.container.name
    }

    /// Whether the container starts a new life after it exited with `exit_code`.
    pub fn restarts_after(&self, spec: &PodSpec, exit_code: i32) -> bool {
        if self.role == Role::Ephemeral {
            return false;
        }
        if self.role == Role::Sidecar {
            return true;
        }
        if let Some(rules) = &self.container.restart_policy_rules {
            for rule in rules {
                let Some(codes) = &rule.exit_codes else { continue };
                let listed = codes.values.as_ref().is_some_and(|values| values.contains(&exit_code));
                let hit = if codes.operator == "NotIn" { !listed } else { listed };
                if hit {
                    return rule.action == "Restart";
                }
            }
        }
        match self.container.restart_policy.as_deref().unwrap_or(restart_policy(spec)) {
            "Never" => false,
            "OnFailure" => exit_code != 0,
            // An init container that succeeded is done, whatever the pod's policy.
            _ => !(self.role == Role::Init && exit_code == 0),
        }
    }

    /// What must stay the same for a running container to be left alone: its name and image, as upstream hashes them.
    pub fn hash(&self) -> String {
        let mut hasher = Sha256::new();
        hasher.update(self.container.name.as_bytes());
        hasher.update([0]);
        hasher.update(self.container.image.as_deref().unwrap_or_default().as_bytes());
        hasher.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }

    pub fn has_startup_probe(&self) -> bool {
        self.container.startup_probe.is_some()
    }

    pub fn readiness_probe(&self) -> Option<&Probe> {
        self.container.readiness_probe.as_ref()
    }
}

/// All containers of the pod in starting order: init and sidecars, then app, then ephemeral.
pub fn entries(spec: &PodSpec) -> Vec<Entry> {
    let init = spec.init_containers.iter().flatten().map(|container| Entry {
        role: if container.restart_policy.as_deref() == Some("Always") { Role::Sidecar } else { Role::Init },
        container: container.clone(),
        target: None,
    });
    let app = spec.containers.iter().map(|c| Entry { role: Role::App, container: c.clone(), target: None });
    let ephemeral = spec.ephemeral_containers.iter().flatten().map(|container| Entry {
        role: Role::Ephemeral,
        container: from_ephemeral(container),
        target: container.target_container_name.clone(),
    });
    init.chain(app).chain(ephemeral).collect()
}

fn from_ephemeral(from: &EphemeralContainer) -> Container {
    Container {
        name: from.name.clone(),
        image: from.image.clone(),
        command: from.command.clone(),
        args: from.args.clone(),
        working_dir: from.working_dir.clone(),
        env: from.env.clone(),
        env_from: from.env_from.clone(),
        image_pull_policy: from.image_pull_policy.clone(),
        security_context: from.security_context.clone(),
        stdin: from.stdin,
        stdin_once: from.stdin_once,
        tty: from.tty,
        termination_message_path: from.termination_message_path.clone(),
        termination_message_policy: from.termination_message_policy.clone(),
        volume_mounts: from.volume_mounts.clone(),
        ..Container::default()
    }
}

pub fn restart_policy(spec: &PodSpec) -> &str {
    spec.restart_policy.as_deref().unwrap_or("Always")
}

/// A pod that a kubelet can run always has these; an empty word otherwise.
pub fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

pub fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

pub fn namespace(pod: &Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap_or("default")
}

/// `NAME_NAMESPACE(UID)`, the form of upstream's messages.
pub fn display(pod: &Pod) -> String {
    format!("{}_{}({})", name(pod), namespace(pod), uid(pod))
}

pub fn is_static(pod: &Pod) -> bool {
    pod.metadata
        .annotations
        .as_ref()
        .is_some_and(|a| a.get(ANNOTATION_CONFIG_SOURCE).is_some_and(|s| s == "file"))
}

pub fn is_mirror(pod: &Pod) -> bool {
    pod.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(ANNOTATION_CONFIG_MIRROR))
}

pub fn is_host_network(spec: &PodSpec) -> bool {
    spec.host_network.unwrap_or(false)
}

/// Seconds between the stop signal and the kill: of the deletion, else of the spec. Never below 1.
pub fn grace_seconds(pod: &Pod) -> i64 {
    let spec_grace = pod.spec.as_ref().and_then(|s| s.termination_grace_period_seconds);
    let of_deletion =
        pod.metadata.deletion_timestamp.as_ref().and(pod.metadata.deletion_grace_period_seconds);
    of_deletion.or(spec_grace).unwrap_or(GRACE_SECONDS_DEFAULT).max(1)
}

pub fn is_terminal_phase(phase: Option<&str>) -> bool {
    matches!(phase, Some("Failed" | "Succeeded"))
}

/// `Guaranteed`, `Burstable` or `BestEffort`.
pub fn qos_class(spec: &PodSpec) -> &'static str {
    let mut any = false;
    let mut guaranteed = true;
    for container in spec.init_containers.iter().flatten().chain(&spec.containers) {
        let resources = container.resources.as_ref();
        let requests = resources.and_then(|r| r.requests.as_ref());
        let limits = resources.and_then(|r| r.limits.as_ref());
        for name in ["cpu", "memory"] {
            let request = requests.and_then(|r| r.get(name)).map(quantity::milli).filter(|v| *v > 0);
            let limit = limits.and_then(|l| l.get(name)).map(quantity::milli).filter(|v| *v > 0);
            any |= request.is_some() || limit.is_some();
            guaranteed &= limit.is_some() && (request.is_none() || request == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

/// Which of a container's two resource lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    Request,
    Limit,
}

/// A container's request or limit of `resource`, in thousandths of its unit. A request not given is the limit.
pub fn container_resource(container: &Container, bound: Bound, resource: &str) -> Option<i128> {
    let resources = container.resources.as_ref()?;
    let get = |list: &Option<BTreeMap<String, Quantity>>| list.as_ref()?.get(resource).map(quantity::milli);
    match bound {
        Bound::Limit => get(&resources.limits),
        Bound::Request => get(&resources.requests).or_else(|| get(&resources.limits)),
    }
}

/// What the pod as a whole asks for, in thousandths: the sum of app containers and sidecars, or the largest init
/// container with the sidecars before it, plus overhead. `None` for a limit when a container has none.
pub fn pod_resource(spec: &PodSpec, bound: Bound, resource: &str) -> Option<i128> {
    let mut sidecars = Some(0i128);
    let mut init_max = Some(0i128);
    let add = |a: Option<i128>, b: Option<i128>| match bound {
        Bound::Request => Some(a.unwrap_or(0) + b.unwrap_or(0)),
        Bound::Limit => Some(a? + b?),
    };
    for container in spec.init_containers.iter().flatten() {
        let own = container_resource(container, bound, resource);
        if container.restart_policy.as_deref() == Some("Always") {
            sidecars = add(sidecars, own);
            init_max = init_max.zip(sidecars).map(|(a, b)| a.max(b));
        } else {
            init_max = init_max.zip(add(sidecars, own)).map(|(a, b)| a.max(b));
        }
    }
    let apps =
        spec.containers.iter().fold(sidecars, |sum, c| add(sum, container_resource(c, bound, resource)));
    let total = apps.zip(init_max).map(|(a, b)| a.max(b))?;
    let overhead = spec.overhead.as_ref().and_then(|o| o.get(resource)).map_or(0, quantity::milli);
    Some(total + overhead)
}

/// Ports that the pod claims on the node: (protocol, host IP, port).
pub fn host_ports(spec: &PodSpec) -> Vec<(String, String, i32)> {
    let host_network = is_host_network(spec);
    let containers = spec.init_containers.iter().flatten().filter(|c| c.restart_policy.is_some());
    containers
        .chain(&spec.containers)
        .flat_map(|container| container.ports.iter().flatten())
        .filter_map(|port| {
            let number = port.host_port.filter(|p| *p > 0).or(host_network.then_some(port.container_port))?;
            let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
            Some((protocol, port.host_ip.clone().unwrap_or_default(), number))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(name: &str, resources: &str) -> Container {
        let resources = serde_json::from_str(resources).unwrap();
        Container { name: name.into(), resources: Some(resources), ..Container::default() }
    }

    fn spec(containers: Vec<Container>) -> PodSpec {
        PodSpec { containers, ..PodSpec::default() }
    }

    #[test]
    fn qos_follows_requests_and_limits() {
        assert_eq!(qos_class(&spec(vec![container("a", "{}")])), "BestEffort");
        let both = r#"{"limits":{"cpu":"1","memory":"1Gi"},"requests":{"cpu":"1000m","memory":"1024Mi"}}"#;
        assert_eq!(qos_class(&spec(vec![container("a", both)])), "Guaranteed");
        let limits = r#"{"limits":{"cpu":"1","memory":"1Gi"}}"#;
        assert_eq!(qos_class(&spec(vec![container("a", limits)])), "Guaranteed");
        assert_eq!(qos_class(&spec(vec![container("a", limits), container("b", "{}")])), "Burstable");
        assert_eq!(qos_class(&spec(vec![container("a", r#"{"requests":{"cpu":"1m"}}"#)])), "Burstable");
    }

    #[test]
    fn pod_requests_are_the_larger_of_apps_and_any_init_with_sidecars_before_it() {
        let mut spec = spec(vec![container("a", r#"{"requests":{"cpu":"100m"}}"#)]);
        let mut sidecar = container("s", r#"{"requests":{"cpu":"50m"}}"#);
        sidecar.restart_policy = Some("Always".into());
        spec.init_containers = Some(vec![sidecar, container("i", r#"{"requests":{"cpu":"200m"}}"#)]);
        assert_eq!(pod_resource(&spec, Bound::Request, "cpu"), Some(250));
        assert_eq!(pod_resource(&spec, Bound::Limit, "cpu"), None);
    }

    #[test]
    fn an_init_container_that_succeeded_never_restarts_and_a_sidecar_always_does() {
        let spec = spec(vec![]);
        let entry = |role| Entry { role, container: Container::default(), target: None };
        assert!(!entry(Role::Init).restarts_after(&spec, 0));
        assert!(entry(Role::Init).restarts_after(&spec, 1));
        assert!(entry(Role::Sidecar).restarts_after(&spec, 0));
        assert!(entry(Role::App).restarts_after(&spec, 0));
        assert!(!entry(Role::Ephemeral).restarts_after(&spec, 1));
    }
}
