//! A pod and its containers as the CRI configurations of a sandbox and of containers. Pure but for looking up
//! sub-paths of volumes.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use k8s_cri::v1 as cri;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, VolumeMount};

use crate::actual;
use crate::cgroups::{self, CPU_PERIOD_MICROSECONDS};
use crate::config::Config;
use crate::cri::{LABEL_CONTAINER_NAME, LABEL_POD_NAME, LABEL_POD_NAMESPACE, LABEL_POD_UID};
use crate::dns;
use crate::env::{self, Environment};
use crate::pod::{self, Bound, Entry};
use crate::security;
use crate::volumes::{HostPaths, subpath};

const HOSTS_PATH: &str = "/etc/hosts";
pub const TERMINATION_LOG_PATH: &str = "/dev/termination-log";

/// `NS_NAME_UID`: the directory of a pod's logs.
pub fn log_dir(config: &Config, pod: &Pod) -> PathBuf {
    let name = format!("{}_{}_{}", pod::namespace(pod), pod::name(pod), pod::uid(pod));
    config.log_dir.join("pods").join(name)
}

fn labels(pod: &Pod) -> HashMap<String, String> {
    HashMap::from([
        (LABEL_POD_NAME.to_owned(), pod::name(pod).to_owned()),
        (LABEL_POD_NAMESPACE.to_owned(), pod::namespace(pod).to_owned()),
        (LABEL_POD_UID.to_owned(), pod::uid(pod).to_owned()),
    ])
}

/// The sandbox of `pod`.
pub fn sandbox(
    pod: &Pod,
    config: &Config,
    cgroup_path: &str,
    host_dns: &cri::DnsConfig,
    attempt: u32,
) -> cri::PodSandboxConfig {
    let default_spec = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&default_spec);
    let host_network = pod::is_host_network(spec);
    let (hostname, _) = dns::hostname(pod, &config.cluster_domain);
    let mut labels = labels(pod);
    labels.extend(pod.metadata.labels.iter().flatten().map(|(k, v)| (k.clone(), v.clone())));
    labels.extend(self::labels(pod));
    let sysctls = spec.security_context.iter().flat_map(|context| context.sysctls.iter().flatten());
    cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: pod::name(pod).to_owned(),
            uid: pod::uid(pod).to_owned(),
            namespace: pod::namespace(pod).to_owned(),
            attempt,
        }),
        // A pod in the host's network shares its UTS namespace too, whose name is not the pod's to set.
        hostname: if host_network { String::new() } else { hostname },
        log_directory: log_dir(config, pod).display().to_string(),
        dns_config: Some(dns::resolv_conf(pod, config, host_dns)),
        port_mappings: port_mappings(spec),
        labels,
        annotations: pod.metadata.annotations.clone().unwrap_or_default().into_iter().collect(),
        linux: Some(cri::LinuxPodSandboxConfig {
            cgroup_parent: cgroup_path.to_owned(),
            security_context: Some(security::of_sandbox(spec)),
            sysctls: sysctls.map(|sysctl| (sysctl.name.clone(), sysctl.value.clone())).collect(),
            ..cri::LinuxPodSandboxConfig::default()
        }),
        windows: None,
    }
}

fn port_mappings(spec: &PodSpec) -> Vec<cri::PortMapping> {
    if pod::is_host_network(spec) {
        return vec![];
    }
    let ports = pod::entries(spec).into_iter().flat_map(|entry| entry.container.ports.unwrap_or_default());
    ports
        .filter_map(|port| {
            let protocol = match port.protocol.as_deref() {
                Some("UDP") => cri::Protocol::Udp,
                Some("SCTP") => cri::Protocol::Sctp,
                _ => cri::Protocol::Tcp,
            };
            Some(cri::PortMapping {
                protocol: protocol as i32,
                container_port: port.container_port,
                host_port: port.host_port.filter(|host_port| *host_port > 0)?,
                host_ip: port.host_ip.unwrap_or_default(),
            })
        })
        .collect()
}

/// Everything beside the pod that a container's configuration is made from.
pub struct Parts<'a> {
    pub pod: &'a Pod,
    pub spec: &'a PodSpec,
    pub entry: &'a Entry,
    pub attempt: u32,
    pub image: &'a cri::Image,
    pub environment: Environment,
    pub volumes: &'a HostPaths,
    /// The pod's `/etc/hosts` on the host.
    pub hosts_file: &'a Path,
    /// The file that receives the termination message, on the host.
    pub termination_log: &'a Path,
    /// Bytes of memory of the node.
    pub memory_capacity: i128,
    /// Container whose processes an ephemeral container sees.
    pub target: Option<&'a str>,
}

/// The container's configuration. The error is a sentence for `CreateContainerConfigError`.
pub fn container(parts: Parts<'_>) -> Result<cri::ContainerConfig, String> {
    let container = &parts.entry.container;
    let expanded = |list: &Option<Vec<String>>| -> Vec<String> {
        list.iter().flatten().map(|text| parts.environment.expand(text)).collect()
    };
    let security_context = security::of_container(parts.spec, parts.entry, parts.image, parts.target)?;
    let mounts = mounts(&parts, security_context.privileged)?;
    let (command, args) = (expanded(&container.command), expanded(&container.args));
    let mut labels = labels(parts.pod);
    labels.insert(LABEL_CONTAINER_NAME.to_owned(), container.name.clone());
    let image = cri::ImageSpec {
        image: parts.image.id.clone(),
        user_specified_image: container.image.clone().unwrap_or_default(),
        ..cri::ImageSpec::default()
    };
    let annotations = annotations(&parts);
    Ok(cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata { name: container.name.clone(), attempt: parts.attempt }),
        image: Some(image),
        command,
        args,
        working_dir: container.working_dir.clone().unwrap_or_default(),
        envs: parts
            .environment
            .into_pairs()
            .into_iter()
            .map(|(key, value)| cri::KeyValue { key, value })
            .collect(),
        mounts,
        labels,
        annotations,
        log_path: format!("{}/{}.log", container.name, parts.attempt),
        stdin: container.stdin.unwrap_or(false),
        stdin_once: container.stdin_once.unwrap_or(false),
        tty: container.tty.unwrap_or(false),
        linux: Some(cri::LinuxContainerConfig {
            resources: Some(resources(parts.spec, parts.entry, parts.memory_capacity)),
            security_context: Some(security_context),
        }),
        ..cri::ContainerConfig::default()
    })
}

fn annotations(parts: &Parts<'_>) -> HashMap<String, String> {
    let container = &parts.entry.container;
    let path = container.termination_message_path.as_deref().unwrap_or(TERMINATION_LOG_PATH);
    let policy = container.termination_message_policy.as_deref().unwrap_or("File");
    HashMap::from([
        (actual::ANNOTATION_HASH.to_owned(), parts.entry.hash()),
        (actual::ANNOTATION_RESTART_COUNT.to_owned(), parts.attempt.to_string()),
        (actual::ANNOTATION_GRACE.to_owned(), pod::grace_seconds(parts.pod).to_string()),
        (actual::ANNOTATION_TERMINATION_PATH.to_owned(), path.to_owned()),
        (actual::ANNOTATION_TERMINATION_POLICY.to_owned(), policy.to_owned()),
    ])
}

/// Limits and weights of a container.
pub fn resources(spec: &PodSpec, entry: &Entry, memory_capacity: i128) -> cri::LinuxContainerResources {
    let of = |bound, name| pod::container_resource(&entry.container, bound, name).unwrap_or(0);
    let quota = cgroups::cpu_quota(of(Bound::Limit, "cpu"));
    cri::LinuxContainerResources {
        cpu_shares: cgroups::cpu_shares(of(Bound::Request, "cpu")),
        cpu_period: CPU_PERIOD_MICROSECONDS,
        cpu_quota: quota,
        memory_limit_in_bytes: i64::try_from(of(Bound::Limit, "memory") / 1000).unwrap_or(i64::MAX),
        oom_score_adj: oom_score_adj(spec, &entry.container, memory_capacity),
        ..cri::LinuxContainerResources::default()
    }
}

fn oom_score_adj(spec: &PodSpec, container: &Container, memory_capacity: i128) -> i64 {
    const CRITICAL_PRIORITY: i32 = 2_000_000_000;
    if spec.priority.is_some_and(|priority| priority >= CRITICAL_PRIORITY) {
        return -997;
    }
    match pod::qos_class(spec) {
        "Guaranteed" => -997,
        "BestEffort" => 1000,
        _ => {
            let request = pod::container_resource(container, Bound::Request, "memory").unwrap_or(0) / 1000;
            let share = request * 1000 / memory_capacity.max(1);
            i64::try_from((1000 - share).clamp(3, 999)).unwrap_or(999)
        }
    }
}

fn mounts(parts: &Parts<'_>, privileged: bool) -> Result<Vec<cri::Mount>, String> {
    let container = &parts.entry.container;
    let mut mounts = Vec::new();
    for mount in container.volume_mounts.iter().flatten() {
        mounts.push(volume_mount(parts, mount, privileged)?);
    }
    let taken = |path: &str| container.volume_mounts.iter().flatten().any(|m| m.mount_path == path);
    let plain = |container_path: &str, host: &Path| cri::Mount {
        container_path: container_path.to_owned(),
        host_path: host.display().to_string(),
        ..cri::Mount::default()
    };
    if !taken(HOSTS_PATH) {
        mounts.push(plain(HOSTS_PATH, parts.hosts_file));
    }
    let message_path = container.termination_message_path.as_deref().unwrap_or(TERMINATION_LOG_PATH);
    if !message_path.is_empty() && !taken(message_path) {
        mounts.push(plain(message_path, parts.termination_log));
    }
    Ok(mounts)
}

fn volume_mount(parts: &Parts<'_>, mount: &VolumeMount, privileged: bool) -> Result<cri::Mount, String> {
    let volume = parts
        .volumes
        .get(&mount.name)
        .ok_or_else(|| format!("cannot find volume \"{}\" to mount into container", mount.name))?;
    let sub_path = match &mount.sub_path_expr {
        Some(expression) => env::expand_strict(expression, &parts.environment)
            .map_err(|why| format!("cannot expand subPathExpr of volume {}: {why}", mount.name))?,
        None => mount.sub_path.clone().unwrap_or_default(),
    };
    let host_path = if sub_path.is_empty() {
        volume.clone()
    } else {
        subpath::resolve(volume, &sub_path).map_err(|error| {
            let name = &mount.name;
            format!("failed to prepare subPath for volumeMount \"{name}\" of container: {error}")
        })?
    };
    let propagation = match mount.mount_propagation.as_deref() {
        Some("Bidirectional") if !privileged => {
            return Err(
                "Bidirectional mount propagation is available only to privileged containers".to_owned()
            );
        }
        Some("Bidirectional") => cri::MountPropagation::PropagationBidirectional,
        Some("HostToContainer") => cri::MountPropagation::PropagationHostToContainer,
        _ => cri::MountPropagation::PropagationPrivate,
    };
    let container_path = Path::new("/").join(&mount.mount_path);
    Ok(cri::Mount {
        container_path: container_path.display().to_string(),
        host_path: host_path.display().to_string(),
        readonly: mount.read_only.unwrap_or(false),
        propagation: propagation as i32,
        ..cri::Mount::default()
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod() -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"app": "x", LABEL_POD_UID: "forged"}},
            "spec": {"containers": [{"name": "c", "image": "i", "command": ["$(A)", "$(B)"], "args": ["$$(A)"],
                "volumeMounts": [{"name": "v", "mountPath": "data", "subPathExpr": "$(A)"}],
                "ports": [{"containerPort": 80, "hostPort": 8080, "protocol": "UDP"}],
                "resources": {"requests": {"cpu": "250m", "memory": "1Gi"}, "limits": {"cpu": "1", "memory": "2Gi"}}}]}
        }))
        .unwrap()
    }

    fn config() -> Config {
        let (_, ready) = tokio::sync::watch::channel(true);
        Config::new("node", vec![], ready)
    }

    fn build(volumes: &HostPaths, env: serde_json::Value) -> Result<cri::ContainerConfig, String> {
        let mut pod = pod();
        pod.spec.as_mut().unwrap().containers[0].env = serde_json::from_value(env).unwrap();
        let spec = pod.spec.clone().unwrap();
        let entry = &pod::entries(&spec)[0];
        let environment = env::build(
            &pod,
            &entry.container,
            &Default::default(),
            &Default::default(),
            &Default::default(),
        )?;
        container(Parts {
            pod: &pod,
            spec: &spec,
            entry,
            attempt: 2,
            image: &cri::Image { id: "sha256:1".into(), ..Default::default() },
            environment,
            volumes,
            hosts_file: Path::new("/h"),
            termination_log: Path::new("/t"),
            memory_capacity: 4 << 30,
            target: None,
        })
    }

    #[test]
    fn a_container_gets_command_mounts_and_limits() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().canonicalize().unwrap();
        let volumes = HostPaths::from([("v".to_owned(), root.clone())]);
        let config = build(&volumes, json!([{"name": "A", "value": "sub"}])).unwrap();
        assert_eq!((config.command, config.args), (vec!["sub".into(), "$(B)".into()], vec!["$(A)".into()]));
        assert_eq!(config.mounts[0].host_path, root.join("sub").display().to_string());
        assert_eq!(config.mounts[0].container_path, "/data");
        assert_eq!(config.mounts[1].container_path, "/etc/hosts");
        assert_eq!(config.mounts[2].container_path, "/dev/termination-log");
        assert_eq!(config.log_path, "c/2.log");
        let resources = config.linux.unwrap().resources.unwrap();
        assert_eq!((resources.cpu_shares, resources.cpu_quota), (256, 100_000));
        assert_eq!((resources.memory_limit_in_bytes, resources.oom_score_adj), (2 << 30, 750));
    }

    #[test]
    fn what_cannot_be_expanded_or_mounted_is_said() {
        let directory = tempfile::tempdir().unwrap();
        let volumes = HostPaths::from([("v".to_owned(), directory.path().to_owned())]);
        assert!(build(&volumes, json!([])).unwrap_err().contains("missing value for \"A\""));
        let escape = json!([{"name": "A", "value": "../x"}]);
        assert!(build(&volumes, escape).unwrap_err().contains("must not contain '..'"));
        let none = build(&HostPaths::new(), json!([])).unwrap_err();
        assert!(none.contains("cannot find volume \"v\""), "{none}");
    }

    #[test]
    fn a_sandbox_has_ports_and_labels_that_the_pod_cannot_forge() {
        let config = sandbox(&pod(), &config(), "/kubepods/podu", &cri::DnsConfig::default(), 0);
        assert_eq!(config.labels[LABEL_POD_UID], "u");
        assert_eq!(config.labels["app"], "x");
        let port = &config.port_mappings[0];
        assert_eq!(
            (port.container_port, port.host_port, port.protocol),
            (80, 8080, cri::Protocol::Udp as i32)
        );
        assert_eq!(config.log_directory, "/var/log/pods/n_p_u");
        assert_eq!(config.hostname, "p");
    }
}
