//! The cgroups above containers: one per QoS class and one per pod, in every v1 controller and in the v2 tree.
//!
//! ```text
//!   PARENT/podUID                 Guaranteed
//!   PARENT/burstable/podUID
//!   PARENT/besteffort/podUID      containers are made below by the runtime
//! ```
//! On a hybrid host both trees get the directories, since cgroup programs of the network attach to v2. What the
//! kernel does not permit is logged and left: a container runs without the pod's limit rather than not at all.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::PodSpec;

use crate::pod::{self, Bound};

pub const CPU_PERIOD_MICROSECONDS: i64 = 100_000;
const SHARES_MIN: i64 = 2;
const SHARES_MAX: i64 = 262_144;
const QUOTA_MIN_MICROSECONDS: i64 = 1_000;
const V2_CONTROLLERS: [&str; 6] = ["cpuset", "cpu", "io", "memory", "hugetlb", "pids"];

#[derive(Clone, Debug, PartialEq, Eq)]
enum Version {
    V1 { controllers: Vec<String> },
    V2,
}

#[derive(Clone, Debug)]
struct Hierarchy {
    version: Version,
    mount: PathBuf,
}

/// The cgroup trees of this host, below one parent.
#[derive(Clone, Debug)]
pub struct Cgroups {
    parent: String,
    hierarchies: Vec<Hierarchy>,
}

/// Relative weight of CPU time from a request in thousandths of a CPU.
pub fn cpu_shares(request_milli: i128) -> i64 {
    let shares = i64::try_from(request_milli * 1024 / 1000).unwrap_or(SHARES_MAX);
    shares.clamp(SHARES_MIN, SHARES_MAX)
}

/// Microseconds per period from a limit in thousandths of a CPU; 0 means no limit.
pub fn cpu_quota(limit_milli: i128) -> i64 {
    if limit_milli <= 0 {
        return 0;
    }
    let quota = i64::try_from(limit_milli * i128::from(CPU_PERIOD_MICROSECONDS) / 1000).unwrap_or(i64::MAX);
    quota.max(QUOTA_MIN_MICROSECONDS)
}

fn v2_weight(shares: i64) -> i64 {
    1 + ((shares - SHARES_MIN) * 9999) / (SHARES_MAX - SHARES_MIN)
}

impl Cgroups {
    /// Reads the mount table for cgroup trees.
    pub fn new(parent: &str) -> Self {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        Self { parent: format!("/{}", parent.trim_matches('/')), hierarchies: hierarchies(&table) }
    }

    /// The parent that the runtime is given for the containers of a pod.
    pub fn pod_path(&self, spec: &PodSpec, uid: &str) -> String {
        match pod::qos_class(spec) {
            "Guaranteed" => format!("{}/pod{uid}", self.parent),
            class => format!("{}/{}/pod{uid}", self.parent, class.to_lowercase()),
        }
    }

    /// Makes the parent and the classes.
    pub fn prepare_node(&self) {
        for hierarchy in &self.hierarchies {
            for path in [self.parent.clone(), self.class("burstable"), self.class("besteffort")] {
                hierarchy.make(&path);
            }
            hierarchy.set_cpu_shares(&self.class("besteffort"), SHARES_MIN);
        }
    }

    fn class(&self, name: &str) -> String {
        format!("{}/{name}", self.parent)
    }

    /// Makes the pod's cgroup and sets its limits.
    pub fn prepare_pod(&self, spec: &PodSpec, uid: &str) {
        let path = self.pod_path(spec, uid);
        let request = pod::pod_resource(spec, Bound::Request, "cpu").unwrap_or(0);
        let cpu = pod::pod_resource(spec, Bound::Limit, "cpu").map_or(0, cpu_quota);
        let memory = pod::pod_resource(spec, Bound::Limit, "memory").map(|milli| milli / 1000);
        for hierarchy in &self.hierarchies {
            hierarchy.make(&path);
            hierarchy.set_cpu_shares(&path, cpu_shares(request));
            hierarchy.set_cpu_quota(&path, cpu);
            hierarchy.set_memory(&path, memory.filter(|bytes| *bytes > 0));
        }
    }

    /// Removes the pod's cgroups, whatever class it had. Processes in them make it fail.
    pub fn remove_pod(&self, uid: &str) -> io::Result<()> {
        for hierarchy in &self.hierarchies {
            for parent in [self.parent.clone(), self.class("burstable"), self.class("besteffort")] {
                remove_tree(&hierarchy.at(&format!("{parent}/pod{uid}")))?;
            }
        }
        Ok(())
    }

    /// Processes and threads of the pod; 0 where the kernel does not count them.
    pub fn processes(&self, spec: &PodSpec, uid: &str) -> u64 {
        let file = format!("{}/pids.current", self.pod_path(spec, uid));
        let counted = self
            .hierarchies
            .iter()
            .filter_map(|hierarchy| fs::read_to_string(hierarchy.at(&file)).ok()?.trim().parse::<u64>().ok());
        counted.max().unwrap_or(0)
    }

    /// UIDs of pods that have a cgroup.
    pub fn known_uids(&self) -> Vec<String> {
        let mut uids = Vec::new();
        for hierarchy in &self.hierarchies {
            for parent in [self.parent.clone(), self.class("burstable"), self.class("besteffort")] {
                let entries = fs::read_dir(hierarchy.at(&parent)).into_iter().flatten().flatten();
                let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
                uids.extend(names.filter_map(|name| Some(name.strip_prefix("pod")?.to_owned())));
            }
        }
        uids.sort_unstable();
        uids.dedup();
        uids
    }
}

impl Hierarchy {
    fn at(&self, path: &str) -> PathBuf {
        self.mount.join(path.trim_start_matches('/'))
    }

    fn has(&self, controller: &str) -> bool {
        match &self.version {
            Version::V1 { controllers } => controllers.iter().any(|name| name == controller),
            Version::V2 => false,
        }
    }

    fn make(&self, path: &str) {
        let mut at = self.mount.clone();
        for part in path.split('/').filter(|part| !part.is_empty()) {
            if self.version == Version::V2 {
                enable_controllers(&at);
            }
            let above = at.clone();
            at.push(part);
            if let Err(error) = fs::create_dir(&at)
                && error.kind() != io::ErrorKind::AlreadyExists
            {
                tracing::warn!(path = %at.display(), %error, "cannot make a cgroup");
                return;
            }
            if self.has("cpuset") {
                inherit_cpuset(&above, &at);
            }
        }
    }

    fn set_cpu_shares(&self, path: &str, shares: i64) {
        if self.has("cpu") {
            set(&self.at(path).join("cpu.shares"), &shares.to_string());
        } else if self.version == Version::V2 {
            set(&self.at(path).join("cpu.weight"), &v2_weight(shares).to_string());
        }
    }

    fn set_cpu_quota(&self, path: &str, quota: i64) {
        let at = self.at(path);
        if self.has("cpu") {
            set(&at.join("cpu.cfs_period_us"), &CPU_PERIOD_MICROSECONDS.to_string());
            set(&at.join("cpu.cfs_quota_us"), &if quota > 0 { quota } else { -1 }.to_string());
        } else if self.version == Version::V2 {
            let quota = if quota > 0 { quota.to_string() } else { "max".to_owned() };
            set(&at.join("cpu.max"), &format!("{quota} {CPU_PERIOD_MICROSECONDS}"));
        }
    }

    fn set_memory(&self, path: &str, bytes: Option<i128>) {
        let at = self.at(path);
        if self.has("memory") {
            set(&at.join("memory.limit_in_bytes"), &bytes.unwrap_or(-1).to_string());
        } else if self.version == Version::V2 {
            set(&at.join("memory.max"), &bytes.map_or_else(|| "max".to_owned(), |bytes| bytes.to_string()));
        }
    }
}

/// Writes a value if the file exists (on a hybrid host v2 has no controllers) and does not hold it yet.
fn set(file: &Path, value: &str) {
    let Ok(current) = fs::read_to_string(file) else { return };
    if current.trim() == value {
        return;
    }
    if let Err(error) = fs::write(file, value) {
        tracing::debug!(file = %file.display(), value, %error, "cgroup value not set");
    }
}

fn enable_controllers(at: &Path) {
    let available = fs::read_to_string(at.join("cgroup.controllers")).unwrap_or_default();
    let enabled = fs::read_to_string(at.join("cgroup.subtree_control")).unwrap_or_default();
    for controller in V2_CONTROLLERS {
        let has = |list: &str| list.split_whitespace().any(|name| name == controller);
        if has(&available) && !has(&enabled) {
            set(&at.join("cgroup.subtree_control"), &format!("+{controller}"));
        }
    }
}

/// A new v1 cpuset is empty, and nothing may run in an empty one.
fn inherit_cpuset(above: &Path, at: &Path) {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let empty = fs::read_to_string(at.join(file)).is_ok_and(|text| text.trim().is_empty());
        if empty && let Ok(value) = fs::read_to_string(above.join(file)) {
            set(&at.join(file), value.trim());
        }
    }
}

fn remove_tree(path: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        remove_tree(&entry.path())?;
    }
    match fs::remove_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn hierarchies(table: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in table.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let Some(mount) = left.split(' ').nth(4) else { continue };
        let mut right = right.split(' ');
        let version = match right.next() {
            Some("cgroup2") => Version::V2,
            Some("cgroup") => {
                let options = right.nth(1).unwrap_or_default();
                Version::V1 { controllers: options.split(',').map(str::to_owned).collect() }
            }
            _ => continue,
        };
        // The same tree may be mounted in several places; the first is enough.
        if !found.iter().any(|hierarchy| hierarchy.version == version) {
            found.push(Hierarchy { version, mount: PathBuf::from(mount) });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_and_quota_have_upstreams_bounds() {
        assert_eq!(
            (cpu_shares(0), cpu_shares(1), cpu_shares(500), cpu_shares(1_000_000)),
            (2, 2, 512, 262_144)
        );
        assert_eq!((cpu_quota(0), cpu_quota(5), cpu_quota(500)), (0, 1000, 50_000));
        assert_eq!((v2_weight(2), v2_weight(262_144)), (1, 10_000));
    }

    #[test]
    fn both_trees_of_a_hybrid_host_are_found_once() {
        let table = "30 24 0:26 / /sys/fs/cgroup/unified rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n\
            31 24 0:27 / /sys/fs/cgroup/cpu,cpuacct rw shared:10 - cgroup cgroup rw,cpu,cpuacct\n\
            32 24 0:28 / /sys/fs/cgroup/memory rw shared:11 - cgroup cgroup rw,memory\n\
            33 24 0:28 / /elsewhere/memory rw shared:11 - cgroup cgroup rw,memory\n\
            34 24 0:29 / /proc rw - proc proc rw";
        let found = hierarchies(table);
        assert_eq!(found.len(), 3);
        assert_eq!(found[0].version, Version::V2);
        assert!(found[1].has("cpu") && found[1].has("cpuacct") && !found[1].has("memory"));
    }

    #[test]
    fn pods_lie_below_their_class() {
        let cgroups = Cgroups { parent: "/sw-node1/kubepods".into(), hierarchies: vec![] };
        let spec: PodSpec =
            serde_json::from_str(r#"{"containers":[{"name":"a","resources":{"requests":{"cpu":"1"}}}]}"#)
                .unwrap();
        assert_eq!(cgroups.pod_path(&spec, "u"), "/sw-node1/kubepods/burstable/podu");
        assert_eq!(cgroups.pod_path(&PodSpec::default(), "u"), "/sw-node1/kubepods/besteffort/podu");
    }

    #[test]
    fn making_and_removing_works_on_any_directory_tree() {
        let root = tempfile::tempdir().unwrap();
        let hierarchies = vec![Hierarchy { version: Version::V2, mount: root.path().to_owned() }];
        let cgroups = Cgroups { parent: "/n/kubepods".into(), hierarchies };
        cgroups.prepare_node();
        cgroups.prepare_pod(&PodSpec::default(), "u1");
        assert!(root.path().join("n/kubepods/besteffort/podu1").is_dir());
        assert_eq!(cgroups.known_uids(), ["u1"]);
        cgroups.remove_pod("u1").unwrap();
        cgroups.remove_pod("u1").unwrap();
        assert!(cgroups.known_uids().is_empty());
    }
}
