//! The node itself: its Node object, status every 10 s (on change, else every 5 min) and its Lease.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeStatus,
    NodeSystemInfo,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::context::{Capacity, Context};
use crate::eviction::signals::{Condition, Settings, Signal};
use crate::recorder::Type;
use crate::status::time;

/// The API level this kubelet speaks.
pub const VERSION: &str = "v1.36.0";
const INTERVAL: Duration = Duration::from_secs(10);
const REPORT_INTERVAL: Duration = Duration::from_secs(300);
const LEASE_SECONDS: i32 = 40;
const LEASE_NAMESPACE: &str = "kube-node-lease";
const IMAGES_MAX: usize = 50;
/// Measures what the node has. What hard eviction thresholds keep free is not for pods.
pub fn capacity(config: &Config, eviction: &Settings) -> Capacity {
    let cpus = cpus();
    let memory_bytes = meminfo("MemTotal");
    let storage = i128::from(disk(&config.state_dir).map_or(0, |disk| disk.total_bytes));
    let pods = i128::from(config.max_pods);
    let allocatable_milli = BTreeMap::from([
        ("cpu".to_owned(), cpus * 1000),
        ("memory".to_owned(), allocatable(eviction, Signal::MemoryAvailable, memory_bytes) * 1000),
        ("ephemeral-storage".to_owned(), allocatable(eviction, Signal::NodefsAvailable, storage) * 1000),
        ("pods".to_owned(), pods * 1000),
    ]);
    Capacity { memory_bytes, allocatable_milli }
}

fn allocatable(eviction: &Settings, signal: Signal, capacity: i128) -> i128 {
    let reserved = eviction.reserved(signal, u64::try_from(capacity).unwrap_or(0));
    (capacity - i128::from(reserved)).max(0)
}

fn cpus() -> i128 {
    let count = nix::unistd::sysconf(nix::unistd::SysconfVar::_NPROCESSORS_ONLN).ok().flatten();
    i128::from(count.unwrap_or(1).max(1))
}

/// A line of /proc/meminfo, in bytes.
pub fn meminfo(name: &str) -> i128 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let kilobytes: i128 = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0);
    kilobytes * 1024
}

/// A file system. Inodes are 0 where it makes them as it needs them.
pub struct Disk {
    pub total_bytes: u64,
    /// Free for others than root.
    pub available_bytes: u64,
    pub inodes: u64,
    pub inodes_free: u64,
}

pub fn disk(path: &Path) -> Option<Disk> {
    let stat = nix::sys::statvfs::statvfs(path).ok()?;
    let unit = stat.fragment_size();
    Some(Disk {
        total_bytes: stat.blocks() * unit,
        available_bytes: stat.blocks_available() * unit,
        inodes: stat.files(),
        inodes_free: stat.files_free(),
    })
}

/// Process ids that are taken, by threads too, and how many there may be.
pub fn processes() -> Option<(u64, u64)> {
    let limit = |path| first_line(path).parse::<u64>().ok();
    let most = [limit("/proc/sys/kernel/pid_max"), limit("/proc/sys/kernel/threads-max")];
    let load = first_line("/proc/loadavg");
    let taken = load.split(' ').nth(3)?.split('/').nth(1)?.parse().ok()?;
    Some((taken, most.into_iter().flatten().min()?))
}

fn quantities(config: &Config, memory: i128, storage: i128, cpus: i128) -> BTreeMap<String, Quantity> {
    BTreeMap::from([
        ("cpu".to_owned(), Quantity(cpus.to_string())),
        ("memory".to_owned(), Quantity(format!("{}Ki", memory / 1024))),
        ("ephemeral-storage".to_owned(), Quantity(format!("{}Ki", storage / 1024))),
        ("pods".to_owned(), Quantity(config.max_pods.to_string())),
    ])
}

/// Words of Go for this machine's architecture.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

fn labels(config: &Config) -> BTreeMap<String, String> {
    let mut labels = config.node_labels.clone();
    for prefix in ["kubernetes.io", "beta.kubernetes.io"] {
        labels.insert(format!("{prefix}/os"), "linux".to_owned());
        labels.insert(format!("{prefix}/arch"), architecture().to_owned());
    }
    labels.insert("kubernetes.io/hostname".to_owned(), config.node_name.clone());
    labels
}

fn first_line(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().lines().next().unwrap_or_default().trim().to_owned()
}

fn os_image() -> String {
    let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.unwrap_or("Linux").trim_matches('"').to_owned()
}

/// Keeps Node and Lease up to date until `cancel`; the latest Node object goes to `current`.
pub async fn run(
    context: Arc<Context>,
    current: watch::Sender<Option<Arc<Node>>>,
    cancel: CancellationToken,
) {
    let mut reporter =
        Reporter { context, current, last_sent: None, was_ready: None, runtime: String::new() };
    let mut network = reporter.context.config.network_ready.clone();
    let mut pressure = reporter.context.pressure.subscribe();
    let lease = tokio::spawn(renew_lease(reporter.context.clone(), reporter.current.subscribe()));
    loop {
        let mut wait = INTERVAL;
        if let Err(error) = reporter.report().await {
            tracing::warn!(%error, "node status not written, will be retried");
            wait = Duration::from_secs(1);
        }
        tokio::select! {
            () = cancel.cancelled() => break,
            () = tokio::time::sleep(wait) => {}
            Ok(()) = network.changed() => {}
            Ok(()) = pressure.changed() => {}
        }
    }
    lease.abort();
}

struct Reporter {
    context: Arc<Context>,
    current: watch::Sender<Option<Arc<Node>>>,
    last_sent: Option<(NodeStatus, Instant)>,
    was_ready: Option<bool>,
    runtime: String,
}

impl Reporter {
    async fn report(&mut self) -> Result<(), kube::Error> {
        let context = self.context.clone();
        let config = &context.config;
        let api = Api::<Node>::all(context.client.clone());
        let node = match api.get_opt(&config.node_name).await? {
            Some(node) => self.label(&api, node).await?,
            None => {
                let metadata = ObjectMeta {
                    name: Some(config.node_name.clone()),
                    labels: Some(labels(config)),
                    ..ObjectMeta::default()
                };
                let node = Node { metadata, ..Node::default() };
                tracing::info!(node = config.node_name, "registering the node");
                self.last_sent = None;
                api.create(&PostParams::default(), &node).await?
            }
        };
        let status = self.status(&node).await;
        let stale = self
            .last_sent
            .as_ref()
            .is_none_or(|(sent, at)| !same(sent, &status) || at.elapsed() >= REPORT_INTERVAL)
            || overruled(&node, &status);
        if !stale {
            self.current.send_replace(Some(Arc::new(node)));
            return Ok(());
        }
        let body = patch(&status);
        let node =
            api.patch_status(&config.node_name, &PatchParams::default(), &Patch::Strategic(body)).await?;
        self.announce(&status);
        self.last_sent = Some((status, Instant::now()));
        self.current.send_replace(Some(Arc::new(node)));
        Ok(())
    }

    /// Puts missing or wrong labels right on a Node that exists.
    async fn label(&self, api: &Api<Node>, node: Node) -> Result<Node, kube::Error> {
        let wanted = labels(&self.context.config);
        let present = node.metadata.labels.clone().unwrap_or_default();
        let missing: BTreeMap<_, _> =
            wanted.into_iter().filter(|(key, value)| present.get(key) != Some(value)).collect();
        if missing.is_empty() {
            return Ok(node);
        }
        let body = json!({"metadata": {"labels": missing}});
        api.patch(&self.context.config.node_name, &PatchParams::default(), &Patch::Merge(&body)).await
    }

    fn announce(&mut self, status: &NodeStatus) {
        let ready = status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
        let name = self.context.config.node_name.clone();
        if self.was_ready.is_none() {
            self.context.recorder.node(&name, Type::Normal, "Starting", "Starting kubelet.");
        }
        if self.was_ready != Some(ready) {
            let reason = if ready { "NodeReady" } else { "NodeNotReady" };
            let message = format!("Node {name} status is now: {reason}");
            self.context.recorder.node(&name, Type::Normal, reason, message);
            tracing::info!(node = name, ready, "node status");
        }
        self.was_ready = Some(ready);
    }

    async fn status(&mut self, node: &Node) -> NodeStatus {
        let context = self.context.clone();
        let config = &context.config;
        let storage = i128::from(disk(&config.state_dir).map_or(0, |disk| disk.total_bytes));
        let memory = context.capacity.memory_bytes;
        let eviction = &context.configuration.eviction;
        let memory_kept = allocatable(eviction, Signal::MemoryAvailable, memory);
        let storage_kept = allocatable(eviction, Signal::NodefsAvailable, storage);
        let mut addresses: Vec<NodeAddress> = context
            .host_ips
            .iter()
            .map(|ip| NodeAddress { type_: "InternalIP".to_owned(), address: ip.clone() })
            .collect();
        addresses.push(NodeAddress { type_: "Hostname".to_owned(), address: config.node_name.clone() });
        NodeStatus {
            addresses: Some(addresses),
            capacity: Some(quantities(config, memory, storage, cpus())),
            allocatable: Some(quantities(config, memory_kept, storage_kept, cpus())),
            conditions: Some(self.conditions(node).await),
            daemon_endpoints: Some(NodeDaemonEndpoints {
                kubelet_endpoint: Some(DaemonEndpoint { port: i32::from(config.port) }),
            }),
            images: Some(self.images().await),
            node_info: Some(self.info()),
            ..NodeStatus::default()
        }
    }

    fn info(&self) -> NodeSystemInfo {
        NodeSystemInfo {
            architecture: architecture().to_owned(),
            boot_id: first_line("/proc/sys/kernel/random/boot_id"),
            container_runtime_version: self.runtime.clone(),
            kernel_version: first_line("/proc/sys/kernel/osrelease"),
            kube_proxy_version: String::new(),
            kubelet_version: VERSION.to_owned(),
            machine_id: first_line("/etc/machine-id"),
            operating_system: "linux".to_owned(),
            os_image: os_image(),
            system_uuid: first_line("/sys/class/dmi/id/product_uuid"),
            swap: None,
        }
    }

    async fn images(&self) -> Vec<ContainerImage> {
        let mut images = self.context.runtime.list_images().await.unwrap_or_default();
        images.sort_by_key(|image| std::cmp::Reverse(image.size));
        images.truncate(IMAGES_MAX);
        images
            .into_iter()
            .map(|image| ContainerImage {
                names: Some(image.repo_digests.into_iter().chain(image.repo_tags).take(5).collect()),
                size_bytes: i64::try_from(image.size).ok(),
            })
            .collect()
    }

    /// Why pods cannot run here, if they cannot.
    async fn not_ready(&mut self) -> Option<String> {
        let runtime = &self.context.runtime;
        match runtime.version().await {
            Ok(version) => {
                self.runtime = format!("{}://{}", version.runtime_name, version.runtime_version);
            }
            Err(error) => return Some(format!("container runtime is down: {error}")),
        }
        let status = match runtime.status().await {
            Ok(status) => status,
            Err(error) => return Some(format!("container runtime status check failed: {error}")),
        };
        for (kind, words) in
            [("RuntimeReady", "container runtime"), ("NetworkReady", "container runtime network")]
        {
            let found = status.conditions.iter().find(|condition| condition.r#type == kind);
            if let Some(found) = found.filter(|condition| !condition.status) {
                let (reason, message) = (&found.reason, &found.message);
                return Some(format!("{words} not ready: {kind}=false reason:{reason} message:{message}"));
            }
        }
        if !*self.context.config.network_ready.borrow() {
            let text = "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady \
                message:the node's routes and policy are not programmed yet";
            return Some(text.to_owned());
        }
        None
    }

    async fn conditions(&mut self, node: &Node) -> Vec<NodeCondition> {
        let pressure = self.context.pressure.borrow().clone();
        let pick = |bad: bool, yes: (&'static str, &'static str), no: (&'static str, &'static str)| {
            let (reason, message) = if bad { yes } else { no };
            (bad, reason, message.to_owned())
        };
        let not_ready = self.not_ready().await;
        let verdicts = [
            (
                "MemoryPressure",
                pick(
                    pressure.contains(&Condition::Memory),
                    ("KubeletHasInsufficientMemory", "kubelet has insufficient memory available"),
                    ("KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
                ),
            ),
            (
                "DiskPressure",
                pick(
                    pressure.contains(&Condition::Disk),
                    ("KubeletHasDiskPressure", "kubelet has disk pressure"),
                    ("KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
                ),
            ),
            (
                "PIDPressure",
                pick(
                    pressure.contains(&Condition::Pid),
                    ("KubeletHasInsufficientPID", "kubelet has insufficient PID available"),
                    ("KubeletHasSufficientPID", "kubelet has sufficient PID available"),
                ),
            ),
            (
                "Ready",
                match not_ready {
                    Some(why) => (false, "KubeletNotReady", why),
                    None => (true, "KubeletReady", "kubelet is posting ready status".to_owned()),
                },
            ),
        ];
        let old = node.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
        let now = time(Timestamp::now());
        verdicts
            .into_iter()
            .map(|(kind, (holds, reason, message))| {
                let word = if holds { "True" } else { "False" };
                let same = old.iter().find(|condition| condition.type_ == kind && condition.status == word);
                NodeCondition {
                    type_: kind.to_owned(),
                    status: word.to_owned(),
                    reason: Some(reason.to_owned()),
                    message: Some(message),
                    last_heartbeat_time: Some(now.clone()),
                    last_transition_time: same
                        .and_then(|condition| condition.last_transition_time.clone())
                        .or_else(|| Some(now.clone())),
                }
            })
            .collect()
    }
}

/// Whether the stored Node shows another word than ours for one of our conditions: the node lifecycle controller sets
/// them to Unknown while it hears nothing, and only the kubelet sets them back.
fn overruled(node: &Node, ours: &NodeStatus) -> bool {
    let stored: Vec<_> = node.status.iter().flat_map(|status| status.conditions.iter().flatten()).collect();
    ours.conditions.iter().flatten().any(|condition| {
        let found = stored.iter().find(|stored| stored.type_ == condition.type_);
        found.is_none_or(|found| found.status != condition.status)
    })
}

/// Equal but for the heartbeat.
fn same(a: &NodeStatus, b: &NodeStatus) -> bool {
    let still = |status: &NodeStatus| {
        let mut status = status.clone();
        for condition in status.conditions.iter_mut().flatten() {
            condition.last_heartbeat_time = None;
            condition.last_transition_time = None;
        }
        status
    };
    still(a) == still(b)
}

fn patch(status: &NodeStatus) -> Value {
    let mut body = serde_json::to_value(status).unwrap_or_default();
    if let Some(Value::Array(addresses)) = body.get_mut("addresses") {
        // Two addresses of one type have the same merge key.
        addresses.insert(0, json!({"$patch": "replace"}));
    }
    json!({"status": body})
}

async fn renew_lease(context: Arc<Context>, mut node: watch::Receiver<Option<Arc<Node>>>) {
    loop {
        let current = node.borrow_and_update().clone();
        let mut wait = INTERVAL;
        match current {
            None => {
                let _ = node.changed().await;
                continue;
            }
            Some(current) => {
                if let Err(error) = renew_once(&context, &current).await {
                    tracing::warn!(%error, "lease not renewed, will be retried");
                    wait = Duration::from_secs(1);
                }
            }
        }
        tokio::time::sleep(wait).await;
    }
}

async fn renew_once(context: &Context, node: &Node) -> Result<(), kube::Error> {
    let name = &context.config.node_name;
    let api = Api::<Lease>::namespaced(context.client.clone(), LEASE_NAMESPACE);
    let spec = LeaseSpec {
        holder_identity: Some(name.clone()),
        lease_duration_seconds: Some(LEASE_SECONDS),
        renew_time: Some(MicroTime(Timestamp::now())),
        ..LeaseSpec::default()
    };
    let body = json!({"spec": spec});
    match api.patch(name, &PatchParams::default(), &Patch::Merge(&body)).await {
        Err(kube::Error::Api(status)) if status.code == 404 => {}
        other => return other.map(drop),
    }
    let owner = OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: name.clone(),
        uid: node.metadata.uid.clone().unwrap_or_default(),
        ..OwnerReference::default()
    };
    let lease = Lease {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            namespace: Some(LEASE_NAMESPACE.to_owned()),
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        spec: Some(spec),
    };
    api.create(&PostParams::default(), &lease).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_addresses_of_one_type_are_replaced_whole() {
        let address = |ip: &str| NodeAddress { type_: "InternalIP".into(), address: ip.into() };
        let status = NodeStatus {
            addresses: Some(vec![address("10.0.0.1"), address("fd00::1")]),
            ..NodeStatus::default()
        };
        let body = patch(&status);
        assert_eq!(body["status"]["addresses"][0]["$patch"], "replace");
        assert_eq!(body["status"]["addresses"].as_array().unwrap().len(), 3);
    }

    #[test]
    fn a_heartbeat_alone_is_no_change() {
        let of = |second, status: &str| NodeStatus {
            conditions: Some(vec![NodeCondition {
                type_: "Ready".into(),
                status: status.into(),
                last_heartbeat_time: Some(time(Timestamp::from_second(second).unwrap())),
                ..NodeCondition::default()
            }]),
            ..NodeStatus::default()
        };
        assert!(same(&of(1, "True"), &of(2, "True")));
        assert!(!same(&of(1, "True"), &of(1, "False")));
    }

    #[test]
    fn a_condition_that_the_controller_overruled_is_written_again() {
        let of = |word: &str| NodeStatus {
            conditions: Some(vec![NodeCondition {
                type_: "Ready".to_owned(),
                status: word.to_owned(),
                ..NodeCondition::default()
            }]),
            ..NodeStatus::default()
        };
        let stored = |word| Node { status: Some(of(word)), ..Node::default() };
        assert!(overruled(&stored("Unknown"), &of("True")));
        assert!(!overruled(&stored("True"), &of("True")));
    }

    #[test]
    fn this_machine_has_cpus_and_memory() {
        let (_, ready) = watch::channel(true);
        let mut config = Config::new("n", vec![], ready);
        config.state_dir = "/".into();
        let capacity = capacity(&config, &Settings::default());
        assert!(capacity.memory_bytes > 0 && capacity.allocatable_milli["cpu"] >= 1000);
        assert!(capacity.allocatable_milli["ephemeral-storage"] > 0);
    }
}
