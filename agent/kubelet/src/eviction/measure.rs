//! What is free on the node and what its pods use, read from the kernel, the runtime and the pods' directories.
//!
//! Directories are walked off the runtime's threads. One that took long is walked again later, so that walking costs a tenth
//! of one processor at most; the others wait for no more than one such walk.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_cri::v1 as cri;
use k8s_openapi::api::core::v1::Pod;

use super::pods::{ContainerUsage, PodUsage};
use super::signals::{Observation, Observations, Signal};
use crate::context::Context;
use crate::cri::{LABEL_CONTAINER_NAME, LABEL_POD_UID};
use crate::node;
use crate::pod;
use crate::runtime_config;
use crate::volumes::usage::{self, Usage};

/// A walk is repeated after this many times what it took.
const PAUSE_FACTOR: u32 = 10;
/// Walks of one look, in all; what is left comes first at the next look.
const WALKS_MAX: Duration = Duration::from_secs(1);
/// How long an answer about the images' file system holds.
const IMAGEFS_AGE_MAX: Duration = Duration::from_secs(600);

/// Where images are.
#[derive(Clone, Debug)]
struct Imagefs {
    path: PathBuf,
    dedicated: bool,
    asked: Instant,
}

#[derive(Clone, Copy, Debug)]
struct Walk {
    usage: Usage,
    at: Instant,
    took: Duration,
}

/// A directory whose size counts.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Tree {
    path: PathBuf,
    /// A file system of its own, which is asked instead of walked.
    own: bool,
}

/// Measures, and remembers what is dear to measure.
#[derive(Default)]
pub struct Meter {
    imagefs: Option<Imagefs>,
    walks: HashMap<PathBuf, Walk>,
}

impl Meter {
    /// Whether images and writable layers have a file system of their own.
    pub fn has_dedicated_imagefs(&self) -> bool {
        self.imagefs.as_ref().is_some_and(|imagefs| imagefs.dedicated)
    }

    /// What is free on the node. What cannot be read is missing.
    pub async fn node(&mut self, context: &Arc<Context>) -> Observations {
        self.find_imagefs(context).await;
        let nodefs = context.config.state_dir.clone();
        let imagefs = self.imagefs.as_ref().map_or_else(|| nodefs.clone(), |imagefs| imagefs.path.clone());
        let observed = tokio::task::spawn_blocking(move || observe(&nodefs, &imagefs));
        observed.await.unwrap_or_default()
    }

    async fn find_imagefs(&mut self, context: &Arc<Context>) {
        if self.imagefs.as_ref().is_some_and(|known| known.asked.elapsed() < IMAGEFS_AGE_MAX) {
            return;
        }
        let found = match context.runtime.image_fs_info().await {
            Ok(found) => found,
            Err(error) => return tracing::debug!(%error, "the images' file system is not known"),
        };
        let Some(path) = found.into_iter().find_map(|usage| Some(usage.fs_id?.mountpoint)) else { return };
        let path = PathBuf::from(path);
        let device = |path: &Path| {
            use std::os::unix::fs::MetadataExt;
            std::fs::metadata(path).ok().map(|metadata| metadata.dev())
        };
        let Some(image_device) = device(&path) else { return };
        let dedicated = device(&context.config.state_dir).is_some_and(|node| node != image_device);
        self.imagefs = Some(Imagefs { path, dedicated, asked: Instant::now() });
    }

    /// What `pods` use, by UID: at least, where a volume has not been measured yet.
    ///
    /// # Errors
    /// The runtime does not answer.
    pub async fn pods(
        &mut self,
        context: &Arc<Context>,
        pods: &[Arc<Pod>],
    ) -> crate::cri::Result<HashMap<String, PodUsage>> {
        let stats = latest(context.runtime.list_container_stats().await?);
        let trees: Vec<Vec<(Part, Tree)>> = pods.iter().map(|pod| trees(context, pod)).collect();
        self.walk(trees.iter().flatten().map(|(_, tree)| tree.clone()).collect()).await;
        let mut usages = HashMap::new();
        for (pod, trees) in pods.iter().zip(trees) {
            let uid = pod::uid(pod).to_owned();
            let mut usage = PodUsage::default();
            if let Some(containers) = stats.get(&uid) {
                usage.containers.extend(containers.values().map(container));
            }
            for (part, tree) in trees {
                let Some(walk) = self.walks.get(&tree.path) else { continue };
                match part {
                    Part::Volume(name) => drop(usage.volumes.insert(name, walk.usage)),
                    Part::Logs(name) => add_logs(&mut usage.containers, name, walk.usage),
                }
            }
            if let Some(spec) = &pod.spec {
                usage.processes = context.cgroups.processes(spec, &uid);
            }
            usages.insert(uid, usage);
        }
        Ok(usages)
    }

    async fn walk(&mut self, trees: Vec<Tree>) {
        let wanted: HashSet<&PathBuf> = trees.iter().map(|tree| &tree.path).collect();
        self.walks.retain(|path, _| wanted.contains(path));
        let now = Instant::now();
        let due = |walk: &Walk| now.saturating_duration_since(walk.at) >= walk.took * PAUSE_FACTOR;
        let mut due: Vec<Tree> =
            trees.into_iter().filter(|tree| self.walks.get(&tree.path).is_none_or(due)).collect();
        due.sort_by_key(|tree| self.walks.get(&tree.path).map(|walk| walk.at));
        let walked = tokio::task::spawn_blocking(move || walk(due)).await.unwrap_or_default();
        self.walks.extend(walked);
    }
}

fn walk(trees: Vec<Tree>) -> Vec<(PathBuf, Walk)> {
    let begun = Instant::now();
    let mut walks = Vec::new();
    for tree in trees {
        if begun.elapsed() > WALKS_MAX {
            break;
        }
        let at = Instant::now();
        let measured = if tree.own { usage::file_system(&tree.path) } else { usage::tree(&tree.path) };
        // What is not there yet takes nothing.
        let usage = measured.unwrap_or_default();
        walks.push((tree.path, Walk { usage, at, took: at.elapsed() }));
    }
    walks
}

/// What of a pod a directory is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Volume(String),
    /// Of the container of that name.
    Logs(String),
}

fn trees(context: &Context, pod: &Pod) -> Vec<(Part, Tree)> {
    let Some(spec) = &pod.spec else { return vec![] };
    let volumes = spec.volumes.iter().flatten().filter_map(|volume| {
        let own = volume.empty_dir.as_ref()?.medium.as_deref() == Some("Memory");
        let path = context.volumes.empty_dir(pod::uid(pod), &volume.name);
        Some((Part::Volume(volume.name.clone()), Tree { path, own }))
    });
    let logs = runtime_config::log_dir(&context.config, pod);
    let logs = pod::entries(spec).into_iter().map(|entry| {
        let path = logs.join(entry.name());
        (Part::Logs(entry.name().to_owned()), Tree { path, own: false })
    });
    volumes.chain(logs).collect()
}

fn add_logs(containers: &mut Vec<ContainerUsage>, name: String, logs: Usage) {
    match containers.iter_mut().find(|container| container.name == name) {
        Some(container) => container.logs = logs,
        None => containers.push(ContainerUsage { name, logs, ..ContainerUsage::default() }),
    }
}

type Stats = HashMap<String, BTreeMap<String, cri::ContainerStats>>;

/// The stats of each container's newest life, by pod and name.
fn latest(stats: Vec<cri::ContainerStats>) -> Stats {
    let mut latest = Stats::new();
    for stats in stats {
        let Some(attributes) = &stats.attributes else { continue };
        let label = |name: &str| attributes.labels.get(name).cloned();
        let (Some(uid), Some(name)) = (label(LABEL_POD_UID), label(LABEL_CONTAINER_NAME)) else { continue };
        let attempt = |stats: &cri::ContainerStats| {
            let metadata = stats.attributes.as_ref().and_then(|attributes| attributes.metadata.as_ref());
            metadata.map_or(0, |metadata| metadata.attempt)
        };
        let of_pod = latest.entry(uid).or_default();
        if of_pod.get(&name).is_none_or(|known| attempt(known) < attempt(&stats)) {
            of_pod.insert(name, stats);
        }
    }
    latest
}

fn container(stats: &cri::ContainerStats) -> ContainerUsage {
    let value = |number: &Option<cri::UInt64Value>| number.as_ref().map(|number| number.value);
    let labels = stats.attributes.as_ref().map(|attributes| &attributes.labels);
    let name = labels.and_then(|labels| labels.get(LABEL_CONTAINER_NAME)).cloned().unwrap_or_default();
    let memory_bytes = stats.memory.as_ref().and_then(|memory| value(&memory.working_set_bytes));
    let rootfs = stats.writable_layer.as_ref().map(|layer| Usage {
        bytes: value(&layer.used_bytes).unwrap_or(0),
        inodes: value(&layer.inodes_used).unwrap_or(0),
    });
    ContainerUsage { name, memory_bytes, rootfs, logs: Usage::default() }
}

fn observe(nodefs: &Path, imagefs: &Path) -> Observations {
    let mut seen = Observations::new();
    let whole = |value: i128| u64::try_from(value).unwrap_or(0);
    let (available, capacity) = (whole(node::meminfo("MemAvailable")), whole(node::meminfo("MemTotal")));
    if capacity > 0 {
        seen.insert(Signal::MemoryAvailable, Observation { available, capacity });
    }
    let file_systems = [
        (nodefs, Signal::NodefsAvailable, Signal::NodefsInodesFree),
        (imagefs, Signal::ImagefsAvailable, Signal::ImagefsInodesFree),
    ];
    for (path, bytes, inodes) in file_systems {
        let Some(disk) = node::disk(path) else { continue };
        let (available, capacity) = (disk.available_bytes, disk.total_bytes);
        seen.insert(bytes, Observation { available, capacity });
        // File systems that make inodes as they need them say 0.
        if disk.inodes > 0 {
            seen.insert(inodes, Observation { available: disk.inodes_free, capacity: disk.inodes });
        }
    }
    if let Some((taken, capacity)) = node::processes() {
        seen.insert(
            Signal::PidAvailable,
            Observation { available: capacity.saturating_sub(taken), capacity },
        );
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_shows_all_signals() {
        let directory = tempfile::tempdir().unwrap();
        let seen = observe(directory.path(), directory.path());
        for signal in [Signal::MemoryAvailable, Signal::NodefsAvailable, Signal::PidAvailable] {
            let observed = seen[&signal];
            assert!(
                observed.available > 0 && observed.available <= observed.capacity,
                "{signal:?} {observed:?}"
            );
        }
        assert_eq!(seen[&Signal::NodefsAvailable].capacity, seen[&Signal::ImagefsAvailable].capacity);
    }

    #[test]
    fn of_a_container_that_was_started_again_only_the_newest_life_counts() {
        let stats = |attempt, bytes| cri::ContainerStats {
            attributes: Some(cri::ContainerAttributes {
                metadata: Some(cri::ContainerMetadata { name: "c".into(), attempt }),
                labels: [
                    (LABEL_POD_UID.to_owned(), "u".to_owned()),
                    (LABEL_CONTAINER_NAME.to_owned(), "c".into()),
                ]
                .into(),
                ..Default::default()
            }),
            writable_layer: Some(cri::FilesystemUsage {
                used_bytes: Some(cri::UInt64Value { value: bytes }),
                ..Default::default()
            }),
            ..Default::default()
        };
        let latest = latest(vec![stats(0, 10), stats(2, 30), stats(1, 20)]);
        let usage = container(&latest["u"]["c"]);
        assert_eq!((usage.name.as_str(), usage.rootfs.map(|rootfs| rootfs.bytes)), ("c", Some(30)));
        let mut containers = vec![usage];
        add_logs(&mut containers, "c".into(), Usage { bytes: 5, inodes: 1 });
        add_logs(&mut containers, "other".into(), Usage { bytes: 6, inodes: 1 });
        let logs: Vec<u64> = containers.iter().map(|container| container.logs.bytes).collect();
        assert_eq!(logs, [5, 6]);
    }

    #[tokio::test]
    async fn a_tree_is_walked_again_only_after_ten_times_what_it_took() {
        let directory = tempfile::tempdir().unwrap();
        let tree = Tree { path: directory.path().to_owned(), own: false };
        let mut meter = Meter::default();
        meter.walk(vec![tree.clone()]).await;
        std::fs::write(directory.path().join("new"), "x").unwrap();
        meter.walks.get_mut(&tree.path).unwrap().took = Duration::from_secs(3600);
        meter.walk(vec![tree.clone()]).await;
        assert_eq!(meter.walks[&tree.path].usage.inodes, 1);
        meter.walks.get_mut(&tree.path).unwrap().took = Duration::ZERO;
        meter.walk(vec![tree.clone()]).await;
        assert_eq!(meter.walks[&tree.path].usage.inodes, 2);
        meter.walk(vec![]).await;
        assert!(meter.walks.is_empty());
    }
}
