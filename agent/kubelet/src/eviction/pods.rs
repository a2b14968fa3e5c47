//! Which pod has to go, and what it is told. Pure.
//!
//! A pod goes for what it uses beyond its own limits (local storage), or, one at a time, since the node is short of
//! something: those first that use more than they asked for, then by priority, then by what they use beyond it.
//! Static pods and those of system priority stay. Rules and messages are upstream's (pkg/kubelet/eviction).

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::signals::{Observations, Settings, Signal, Threshold};
use crate::pod::{self, Bound};
use crate::quantity;
use crate::volumes::usage::Usage;

pub const STORAGE: &str = "ephemeral-storage";
/// Priorities from here on are the system's: `2 * HighestUserDefinablePriority`.
const SYSTEM_CRITICAL: i32 = 2_000_000_000;
/// What a pod gets to end where it must go at once.
const GRACE: Duration = Duration::from_secs(1);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerUsage {
    pub name: String,
    pub memory_bytes: Option<u64>,
    /// The writable layer, if the runtime has measured it.
    pub rootfs: Option<Usage>,
    pub logs: Usage,
}

/// What a pod uses, as far as it was measured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodUsage {
    pub containers: Vec<ContainerUsage>,
    /// emptyDirs, by name; those in memory too.
    pub volumes: BTreeMap<String, Usage>,
    pub processes: u64,
}

/// A pod that runs or will run here; `usage` is missing where nothing could be measured.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    pub pod: &'a Pod,
    pub usage: Option<&'a PodUsage>,
}

/// An eviction to carry out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    pub uid: String,
    pub message: String,
    /// What its containers get to end by themselves; upstream never gives less than 2 s.
    pub grace: Duration,
    /// Whether the node is the cause and not the pod: a Job need not count it then (`DisruptionTarget`).
    pub disrupts: bool,
}

/// Whether the pod stays whatever happens.
pub fn is_critical(pod: &Pod) -> bool {
    let priority = pod.spec.as_ref().and_then(|spec| spec.priority);
    pod::is_static(pod) || pod::is_mirror(pod) || priority.is_some_and(|priority| priority >= SYSTEM_CRITICAL)
}

/// Whether the pod may be evicted for the local storage that it uses, so that this has to be measured.
pub fn has_storage_limits(pod: &Pod) -> bool {
    let Some(spec) = pod.spec.as_ref().filter(|_| !is_critical(pod)) else { return false };
    let volumes = spec.volumes.iter().flatten().filter_map(|volume| volume.empty_dir.as_ref());
    volumes
        .into_iter()
        .any(|source| source.size_limit.as_ref().is_some_and(|limit| quantity::units(limit) > 0))
        || pod_limit(spec).is_some()
}

/// The pods that use more local storage than their limits allow.
pub fn over_their_limits(pods: &[Candidate<'_>], dedicated_imagefs: bool) -> Vec<Order> {
    let over = pods.iter().filter(|candidate| !is_critical(candidate.pod)).filter_map(|candidate| {
        let (spec, usage) = (candidate.pod.spec.as_ref()?, candidate.usage?);
        let message = empty_dir_over(spec, usage)
            .or_else(|| pod_over(spec, usage))
            .or_else(|| container_over(spec, usage, dedicated_imagefs))?;
        Some(Order { uid: pod::uid(candidate.pod).to_owned(), message, grace: GRACE, disrupts: false })
    });
    over.collect()
}

fn exceeds(bytes: u64, limit: &Quantity) -> bool {
    i128::from(bytes) * 1000 > quantity::milli(limit)
}

fn empty_dir_over(spec: &PodSpec, usage: &PodUsage) -> Option<String> {
    spec.volumes.iter().flatten().find_map(|volume| {
        let limit = volume.empty_dir.as_ref()?.size_limit.as_ref()?;
        let used = usage.volumes.get(&volume.name)?;
        let over = quantity::milli(limit) > 0 && exceeds(used.bytes, limit);
        over.then(|| {
            format!("Usage of EmptyDir volume \"{}\" exceeds the limit \"{}\". ", volume.name, limit.0)
        })
    })
}

/// Volumes on disk, which count as local storage; those in memory count as memory.
fn is_on_disk(spec: &PodSpec, name: &str) -> bool {
    let volume = spec.volumes.iter().flatten().find(|volume| volume.name == name);
    let source = volume.and_then(|volume| volume.empty_dir.as_ref());
    source.is_some_and(|source| source.medium.as_deref().unwrap_or_default().is_empty())
}

/// Of the parts of a pod's local storage, which are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Parts {
    rootfs: bool,
    logs_and_volumes: bool,
}

const ALL: Parts = Parts { rootfs: true, logs_and_volumes: true };

fn disk(spec: &PodSpec, usage: &PodUsage, parts: Parts) -> Usage {
    let mut total = Usage::default();
    for container in &usage.containers {
        if parts.rootfs {
            total += container.rootfs.unwrap_or_default();
        }
        if parts.logs_and_volumes {
            total += container.logs;
        }
    }
    if parts.logs_and_volumes {
        for (_, used) in usage.volumes.iter().filter(|(name, _)| is_on_disk(spec, name)) {
            total += *used;
        }
    }
    total
}

fn storage_limit(container: &Container) -> Option<&Quantity> {
    container.resources.as_ref()?.limits.as_ref()?.get(STORAGE)
}

/// The sum of those limits that containers have: one without a limit adds nothing to it, as upstream counts.
/// In thousandths, with the text of it.
fn pod_limit(spec: &PodSpec) -> Option<(i128, String)> {
    let init = spec.init_containers.iter().flatten();
    let limits: Vec<&Quantity> = init.clone().chain(&spec.containers).filter_map(storage_limit).collect();
    let first = limits.first()?;
    let milli = |container: &Container| storage_limit(container).map_or(0, quantity::milli);
    let (mut sidecars, mut init_max) = (0, 0);
    for container in init {
        if container.restart_policy.as_deref() == Some("Always") {
            sidecars += milli(container);
            init_max = init_max.max(sidecars);
        } else {
            init_max = init_max.max(sidecars + milli(container));
        }
    }
    let sum = init_max.max(sidecars + spec.containers.iter().map(milli).sum::<i128>());
    let overhead = spec.overhead.as_ref().and_then(|list| list.get(STORAGE)).map_or(0, quantity::milli);
    let total = sum + overhead;
    let whole = u64::try_from(quantity::ceil_div(total, 1000)).unwrap_or(u64::MAX);
    let text = match limits.iter().find(|limit| quantity::milli(limit) == total) {
        Some(same) => same.0.clone(),
        None if quantity::is_binary(first) => quantity::bytes(whole),
        None => quantity::count(whole),
    };
    Some((total, text))
}

fn pod_over(spec: &PodSpec, usage: &PodUsage) -> Option<String> {
    let (limit, text) = pod_limit(spec)?;
    let over = i128::from(disk(spec, usage, ALL).bytes) * 1000 > limit;
    over.then(|| format!("Pod ephemeral local storage usage exceeds the total limit of containers {text}. "))
}

fn container_over(spec: &PodSpec, usage: &PodUsage, dedicated_imagefs: bool) -> Option<String> {
    usage.containers.iter().find_map(|used| {
        let container = spec.containers.iter().find(|container| container.name == used.name)?;
        let limit = storage_limit(container).filter(|limit| quantity::milli(limit) > 0)?;
        let rootfs = used.rootfs.filter(|_| !dedicated_imagefs).unwrap_or_default();
        let over = exceeds(used.logs.bytes.saturating_add(rootfs.bytes), limit);
        over.then(|| {
            format!("Container {} exceeded its local ephemeral storage limit \"{}\". ", used.name, limit.0)
        })
    })
}

/// What of a pod counts for a signal: its use and its request, in the signal's own unit.
fn weigh(signal: Signal, candidate: &Candidate<'_>, dedicated_imagefs: bool) -> Option<(i128, i128)> {
    let usage = candidate.usage?;
    let default_spec = PodSpec::default();
    let spec = candidate.pod.spec.as_ref().unwrap_or(&default_spec);
    let request = |name: &str| pod::pod_resource(spec, Bound::Request, name).unwrap_or(0) / 1000;
    let parts = match signal {
        Signal::MemoryAvailable => {
            let used = usage.containers.iter().filter_map(|container| container.memory_bytes);
            return Some((used.map(i128::from).sum(), request("memory")));
        }
        Signal::PidAvailable => return Some((usage.processes.into(), 0)),
        _ if !dedicated_imagefs => ALL,
        Signal::NodefsAvailable | Signal::NodefsInodesFree => Parts { rootfs: false, ..ALL },
        Signal::ImagefsAvailable | Signal::ImagefsInodesFree => Parts { logs_and_volumes: false, ..ALL },
    };
    let used = disk(spec, usage, parts);
    // Nobody can ask for inodes.
    Some(if signal.is_bytes() { (used.bytes.into(), request(STORAGE)) } else { (used.inodes.into(), 0) })
}

/// Puts the pod first that goes first.
pub fn rank(signal: Signal, pods: &mut [Candidate<'_>], dedicated_imagefs: bool) {
    pods.sort_by_cached_key(|candidate| {
        let weight = weigh(signal, candidate, dedicated_imagefs);
        let modest = match weight {
            _ if signal == Signal::PidAvailable => 0,
            // Of whom nothing is known goes before all.
            None => 0,
            Some((used, request)) if used > request => 1,
            Some(_) => 2,
        };
        let priority = candidate.pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0);
        (modest, priority, Reverse(weight.map_or(i128::MAX, |(used, request)| used - request)))
    });
}

/// The pod that has to go for the first of `starved`, which is not empty; `None` where all must stay.
pub fn relief(
    starved: &[Threshold],
    pods: &[Candidate<'_>],
    seen: &Observations,
    settings: &Settings,
    dedicated_imagefs: bool,
) -> Option<Order> {
    let first = starved.first()?;
    let mut ranked = pods.to_vec();
    rank(first.signal, &mut ranked, dedicated_imagefs);
    let chosen = ranked.into_iter().find(|candidate| !is_critical(candidate.pod))?;
    let grace = if first.is_hard() {
        GRACE
    } else {
        let spec = chosen.pod.spec.as_ref();
        let asked = spec.and_then(|spec| spec.termination_grace_period_seconds);
        let asked =
            asked.map_or(Duration::MAX, |asked| Duration::from_secs(u64::try_from(asked).unwrap_or(0)));
        settings.grace_max.min(asked)
    };
    let message = message(first.signal, &chosen, starved, seen);
    Some(Order { uid: pod::uid(chosen.pod).to_owned(), message, grace, disrupts: true })
}

fn amount(signal: Signal, value: u64) -> String {
    if signal.is_bytes() { quantity::bytes(value) } else { quantity::count(value) }
}

fn message(signal: Signal, chosen: &Candidate<'_>, starved: &[Threshold], seen: &Observations) -> String {
    let resource = signal.resource();
    let mut text = format!("The node was low on resource: {resource}. ");
    let same = starved.iter().find(|threshold| threshold.signal.resource() == resource);
    if let Some((threshold, observed)) = same.and_then(|t| Some((t, seen.get(&t.signal)?))) {
        let wanted = amount(signal, threshold.amount.of(observed.capacity));
        let available = amount(signal, observed.available);
        text.push_str(&format!("Threshold quantity: {wanted}, available: {available}. "));
    }
    let spec = chosen.pod.spec.as_ref();
    let containers =
        spec.iter().flat_map(|spec| spec.containers.iter().chain(spec.init_containers.iter().flatten()));
    let containers: Vec<&Container> = containers.collect();
    for used in chosen.usage.iter().flat_map(|usage| &usage.containers) {
        let Some(container) = containers.iter().find(|container| container.name == used.name) else {
            continue;
        };
        let bytes = match signal {
            Signal::MemoryAvailable => used.memory_bytes,
            _ if signal.is_bytes() => used.rootfs.map(|rootfs| rootfs.bytes.saturating_add(used.logs.bytes)),
            _ => None,
        };
        let requests = container.resources.as_ref().and_then(|resources| resources.requests.as_ref());
        let request = requests.and_then(|requests| requests.get(resource));
        let above = |bytes: u64| i128::from(bytes) * 1000 > request.map_or(0, quantity::milli);
        if let Some(bytes) = bytes.filter(|bytes| above(*bytes)) {
            let (name, used) = (&used.name, quantity::bytes(bytes));
            let request = request.map_or("0", |request| request.0.as_str());
            text.push_str(&format!(
                "Container {name} was using {used}, request is {request}, has larger consumption of {resource}. "
            ));
        }
    }
    text
}

#[cfg(test)]
mod tests;
