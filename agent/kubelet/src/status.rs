//! Pod status from the pod, the runtime's state and what is remembered: phase, conditions, container statuses.
//! Pure: the clock is an argument. The previous status is an input, since a final phase, a known address and the time
//! of a condition's last change must not be lost.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
    HostIP, Pod, PodCondition, PodIP, PodSpec, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};

use crate::actual::{Actual, Container, State};
use crate::plan::Memory;
use crate::pod::{self, Entry, Role};

const READY_TO_START: &str = "PodReadyToStartContainers";
const INITIALIZED: &str = "Initialized";
const READY: &str = "Ready";
const CONTAINERS_READY: &str = "ContainersReady";
const SCHEDULED: &str = "PodScheduled";
const OWNED: [&str; 5] = [READY_TO_START, INITIALIZED, READY, CONTAINERS_READY, SCHEDULED];
const DISRUPTION_TARGET: &str = "DisruptionTarget";
/// Why the kubelet sets it; other writers have other reasons.
const TERMINATION_BY_KUBELET: &str = "TerminationByKubelet";
const EXIT_CODE_LOST: i32 = 137;

/// Why a container does not run, in the words of `containerStatuses[].state.waiting`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    pub reason: String,
    pub message: String,
}

/// Why the kubelet failed a whole pod: refused it, evicted it or ran out of its deadline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub reason: String,
    pub message: String,
    /// The node is the cause, and not the pod: it gets the condition `DisruptionTarget`.
    pub disrupts: bool,
}

impl Failure {
    /// One that the pod itself is the cause of.
    pub fn new(reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self { reason: reason.into(), message: message.into(), disrupts: false }
    }
}

/// Everything beside pod and previous status that the status is made from.
#[derive(Clone, Copy)]
pub struct View<'a> {
    pub actual: &'a Actual,
    pub memory: &'a Memory,
    /// Reasons by container name, of containers that are not running.
    pub waiting: &'a BTreeMap<String, Waiting>,
    pub failure: Option<&'a Failure>,
    /// Addresses of the node, primary first.
    pub host_ips: &'a [String],
    /// The pod has ended: nothing of it runs or will run.
    pub ended: bool,
}

/// Computes the status of `pod`.
pub fn compute(pod: &Pod, previous: &PodStatus, view: &View<'_>, now: Timestamp) -> PodStatus {
    let default_spec = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&default_spec);
    let entries = pod::entries(spec);
    let statuses = |wanted: fn(Role) -> bool, old: &Option<Vec<ContainerStatus>>| -> Vec<ContainerStatus> {
        let chosen = entries.iter().filter(|entry| wanted(entry.role));
        chosen.map(|entry| container_status(spec, entry, find(old, entry.name()), view)).collect()
    };
    let init = statuses(|r| matches!(r, Role::Init | Role::Sidecar), &previous.init_container_statuses);
    let mut app = statuses(|r| r == Role::App, &previous.container_statuses);
    let ephemeral = statuses(|r| r == Role::Ephemeral, &previous.ephemeral_container_statuses);
    app.sort_by(|a, b| a.name.cmp(&b.name));
    let initialized_before = previous
        .conditions
        .iter()
        .flatten()
        .any(|condition| condition.type_ == INITIALIZED && condition.status == "True");
    let phase = phase(spec, &entries, &init, &app, previous, view, initialized_before);
    let mut status = PodStatus {
        phase: Some(phase.to_owned()),
        observed_generation: pod.metadata.generation,
        qos_class: previous.qos_class.clone().or_else(|| Some(pod::qos_class(spec).to_owned())),
        start_time: previous.start_time.clone().or_else(|| Some(time(now))),
        init_container_statuses: (!init.is_empty()).then_some(init),
        container_statuses: Some(app),
        ephemeral_container_statuses: (!ephemeral.is_empty()).then_some(ephemeral),
        nominated_node_name: previous.nominated_node_name.clone(),
        resource_claim_statuses: previous.resource_claim_statuses.clone(),
        reason: previous.reason.clone(),
        message: previous.message.clone(),
        ..PodStatus::default()
    };
    if let Some(failure) = view.failure {
        status.reason = Some(failure.reason.clone());
        status.message = Some(failure.message.clone());
    }
    let was_refused = phase == "Failed"
        && previous.phase.as_deref() == Some("Failed")
        && previous.container_statuses.is_none();
    if view.actual.containers.is_empty()
        && previous.pod_ip.is_none()
        && (view.failure.is_some() || was_refused)
    {
        // Nothing of a refused pod ever waits to run.
        status.container_statuses = None;
        status.init_container_statuses = None;
        status.ephemeral_container_statuses = None;
    }
    addresses(&mut status, spec, previous, view);
    conditions(pod, &mut status, previous, view, initialized_before, now);
    status
}

/// Whole seconds, as the API prints them.
pub fn time(at: Timestamp) -> Time {
    Time(Timestamp::from_second(at.as_second()).unwrap_or(at))
}

fn find<'a>(statuses: &'a Option<Vec<ContainerStatus>>, name: &str) -> Option<&'a ContainerStatus> {
    statuses.iter().flatten().find(|status| status.name == name)
}

fn container_status(
    spec: &PodSpec,
    entry: &Entry,
    previous: Option<&ContainerStatus>,
    view: &View<'_>,
) -> ContainerStatus {
    let mut lives = view.actual.by_name(entry.name());
    let mut status = match lives.next() {
        Some(current) => from_container(entry, current, previous, view),
        None => without_container(spec, entry, previous),
    };
    if let Some(last) = lives.next() {
        status.last_state =
            Some(ContainerState { terminated: terminated(last), ..ContainerState::default() });
    }
    status.resources = entry.container.resources.clone().filter(|_| entry.role != Role::Ephemeral);
    status.allocated_resources = status.resources.as_ref().and_then(|resources| resources.requests.clone());
    let stays = status.state.as_ref().and_then(|s| s.terminated.as_ref());
    let stays = stays.is_some_and(|t| !entry.restarts_after(spec, t.exit_code));
    let condemned = status.container_id.as_ref().is_some_and(|id| {
        view.memory.unhealthy.contains_key(id.rsplit('/').next().unwrap_or(id))
            && pod::restart_policy(spec) != "Never"
    });
    let running = status.state.as_ref().is_some_and(|state| state.running.is_some());
    if let Some(waiting) = view.waiting.get(entry.name())
        && !running
        && (!stays || condemned)
        && !(view.ended || view.memory.terminal)
    {
        let state = status.state.take();
        if state.as_ref().is_some_and(|state| state.terminated.is_some()) {
            status.last_state = state;
        }
        status.state = Some(waiting_state(&waiting.reason, &waiting.message));
    }
    status
}

fn waiting_state(reason: &str, message: &str) -> ContainerState {
    let waiting = ContainerStateWaiting {
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()).filter(|m| !m.is_empty()),
    };
    ContainerState { waiting: Some(waiting), ..ContainerState::default() }
}

fn from_container(
    entry: &Entry,
    current: &Container,
    previous: Option<&ContainerStatus>,
    view: &View<'_>,
) -> ContainerStatus {
    let running = current.is_running();
    let started = running && view.memory.started.contains(&current.id);
    let ready = match entry.role {
        Role::Init => current.state == State::Exited && current.exit_code == 0,
        Role::Sidecar | Role::App => running && view.memory.ready.contains(&current.id),
        Role::Ephemeral => false,
    };
    let state = match current.state {
        State::Running => {
            let running = ContainerStateRunning { started_at: Some(time(current.started_at)) };
            ContainerState { running: Some(running), ..ContainerState::default() }
        }
        State::Exited => ContainerState { terminated: terminated(current), ..ContainerState::default() },
        State::Created | State::Unknown => waiting_state("ContainerCreating", ""),
    };
    let restart_count = i32::try_from(current.attempt).unwrap_or(i32::MAX);
    ContainerStatus {
        name: entry.name().to_owned(),
        container_id: Some(format!("containerd://{}", current.id)),
        image: current.image.clone(),
        image_id: current.image_ref.clone(),
        ready,
        started: Some(started),
        restart_count: previous.map_or(restart_count, |old| old.restart_count.max(restart_count)),
        last_state: previous.and_then(|old| old.last_state.clone()),
        state: Some(state),
        volume_mounts: previous.and_then(|old| old.volume_mounts.clone()),
        ..ContainerStatus::default()
    }
}

fn terminated(container: &Container) -> Option<ContainerStateTerminated> {
    let reason = match (container.reason.as_str(), container.exit_code) {
        ("", 0) => "Completed",
        ("", _) => "Error",
        (reason, _) => reason,
    };
    // A container that never got to run has no start time; the API wants one anyway.
    let never_started = container.started_at == Timestamp::UNIX_EPOCH;
    let started_at = if never_started { container.created_at } else { container.started_at };
    Some(ContainerStateTerminated {
        container_id: Some(format!("containerd://{}", container.id)),
        exit_code: container.exit_code,
        reason: Some(reason.to_owned()),
        message: Some(container.message.clone()).filter(|message| !message.is_empty()),
        started_at: Some(time(started_at)),
        finished_at: Some(time(container.finished_at)),
        signal: None,
    })
}

/// A container that the runtime does not have: not made yet, or lost.
fn without_container(spec: &PodSpec, entry: &Entry, previous: Option<&ContainerStatus>) -> ContainerStatus {
    let has_init = spec.init_containers.as_ref().is_some_and(|list| !list.is_empty());
    let reason = if has_init { "PodInitializing" } else { "ContainerCreating" };
    let mut status = ContainerStatus {
        name: entry.name().to_owned(),
        image: entry.container.image.clone().unwrap_or_default(),
        started: Some(false),
        state: Some(waiting_state(reason, "")),
        ..ContainerStatus::default()
    };
    let Some(old) = previous else { return status };
    let old_state = old.state.clone().unwrap_or_default();
    status.restart_count = old.restart_count;
    status.last_state = old.last_state.clone();
    if old_state.terminated.is_some() {
        status.state = Some(old_state);
        status.container_id = old.container_id.clone();
        status.image_id = old.image_id.clone();
        status.ready = old.ready && entry.role == Role::Init;
    } else if let Some(running) = old_state.running {
        let lost = ContainerStateTerminated {
            exit_code: EXIT_CODE_LOST,
            reason: Some("ContainerStatusUnknown".to_owned()),
            message: Some("The container could not be located when the pod was terminated".to_owned()),
            container_id: old.container_id.clone(),
            started_at: running.started_at,
            ..ContainerStateTerminated::default()
        };
        status.state = Some(ContainerState { terminated: Some(lost), ..ContainerState::default() });
        status.container_id = old.container_id.clone();
    }
    status
}

/// Counts of containers by what they mean for the phase.
#[derive(Default)]
struct Tally {
    pending_init: usize,
    pending_sidecar: usize,
    init_failed: bool,
    running: usize,
    waiting: usize,
    stopped: usize,
    succeeded: usize,
    restarting: usize,
}

fn exit_code_of(status: &ContainerStatus) -> Option<i32> {
    let of = |state: &Option<ContainerState>| {
        state.as_ref().and_then(|s| s.terminated.as_ref()).map(|terminated| terminated.exit_code)
    };
    match status.state.as_ref() {
        Some(state) if state.waiting.is_some() => of(&status.last_state),
        _ => of(&status.state),
    }
}

fn is_running(status: &ContainerStatus) -> bool {
    status.state.as_ref().is_some_and(|state| state.running.is_some())
}

fn is_waiting(status: &ContainerStatus) -> bool {
    status.state.as_ref().is_some_and(|state| state.waiting.is_some())
}

fn tally(spec: &PodSpec, entries: &[Entry], init: &[ContainerStatus], app: &[ContainerStatus]) -> Tally {
    let mut tally = Tally::default();
    for entry in entries {
        let status = init.iter().chain(app).find(|status| status.name == entry.name());
        let Some(status) = status else { continue };
        let exit_code = exit_code_of(status);
        match entry.role {
            Role::Init => match exit_code {
                Some(0) if !is_waiting(status) => {}
                Some(code) if code != 0 => tally.init_failed |= !entry.restarts_after(spec, code),
                _ => tally.pending_init += 1,
            },
            Role::Sidecar => {
                let unstarted = is_running(status) && status.started != Some(true);
                let unborn = is_waiting(status) && exit_code.is_none();
                tally.pending_sidecar += usize::from(unstarted || unborn);
                tally.running += usize::from(is_running(status));
                tally.waiting += usize::from(unborn);
            }
            Role::App if is_running(status) => tally.running += 1,
            Role::App => match exit_code {
                Some(code) => {
                    tally.stopped += 1;
                    tally.succeeded += usize::from(code == 0);
                    tally.restarting += usize::from(is_waiting(status) || entry.restarts_after(spec, code));
                }
                None => tally.waiting += 1,
            },
            Role::Ephemeral => {}
        }
    }
    tally
}

fn phase(
    spec: &PodSpec,
    entries: &[Entry],
    init: &[ContainerStatus],
    app: &[ContainerStatus],
    previous: &PodStatus,
    view: &View<'_>,
    initialized: bool,
) -> &'static str {
    match previous.phase.as_deref() {
        Some("Failed") => return "Failed",
        Some("Succeeded") => return "Succeeded",
        _ if view.failure.is_some() => return "Failed",
        _ => {}
    }
    let tally = tally(spec, entries, init, app);
    if view.ended {
        let all_succeeded = tally.stopped == app.len() && tally.succeeded == app.len() && !app.is_empty();
        return if all_succeeded && !tally.init_failed { "Succeeded" } else { "Failed" };
    }
    if tally.init_failed {
        return "Failed";
    }
    let pending = tally.pending_init > 0 || (tally.pending_sidecar > 0 && !initialized);
    if pending || tally.waiting > 0 {
        return "Pending";
    }
    if tally.running > 0 || tally.restarting > 0 {
        return "Running";
    }
    match (tally.stopped, tally.succeeded) {
        (0, _) => "Pending",
        (stopped, succeeded) if stopped == succeeded => "Succeeded",
        _ => "Failed",
    }
}

fn addresses(status: &mut PodStatus, spec: &PodSpec, previous: &PodStatus, view: &View<'_>) {
    if let Some(primary) = view.host_ips.first() {
        status.host_ip = Some(primary.clone());
        status.host_ips = Some(view.host_ips.iter().map(|ip| HostIP { ip: ip.clone() }).collect());
    }
    let ready = view.actual.ready_sandbox();
    let mut ips: Vec<String> = if pod::is_host_network(spec) && ready.is_some() {
        view.host_ips.to_vec()
    } else {
        ready.map(|sandbox| sandbox.ips.clone()).unwrap_or_default()
    };
    if ips.is_empty() {
        status.pod_ip = previous.pod_ip.clone();
        status.pod_ips = previous.pod_ips.clone();
        return;
    }
    // The family of the node's primary address comes first.
    let v6_first = view.host_ips.first().is_some_and(|ip| ip.contains(':'));
    ips.sort_by_key(|ip| ip.contains(':') != v6_first);
    status.pod_ip = ips.first().cloned();
    status.pod_ips = Some(ips.into_iter().map(|ip| PodIP { ip }).collect());
}

struct Verdict {
    status: bool,
    reason: Option<&'static str>,
    message: Option<String>,
}

const TRUE: Verdict = Verdict { status: true, reason: None, message: None };

fn unready(reason: &'static str, message: Option<String>) -> Verdict {
    Verdict { status: false, reason: Some(reason), message }
}

fn list(names: &[&str]) -> String {
    format!("[{}]", names.join(" "))
}

fn initialized(status: &PodStatus, sidecars: &[&str], before: bool) -> Verdict {
    let app_started = status.container_statuses.iter().flatten().any(|s| {
        is_running(s)
            || s.state.as_ref().is_some_and(|state| state.terminated.is_some())
            || s.restart_count > 0
    });
    if app_started || before {
        let done = status.phase.as_deref() == Some("Succeeded");
        return Verdict { reason: done.then_some("PodCompleted"), ..TRUE };
    }
    let incomplete: Vec<&str> = status
        .init_container_statuses
        .iter()
        .flatten()
        .filter(|s| if sidecars.contains(&s.name.as_str()) { s.started != Some(true) } else { !s.ready })
        .map(|s| s.name.as_str())
        .collect();
    if incomplete.is_empty() {
        return TRUE;
    }
    let message = format!("containers with incomplete status: {}", list(&incomplete));
    unready("ContainersNotInitialized", Some(message))
}

fn containers_ready(status: &PodStatus, sidecars: &[&str]) -> Verdict {
    match status.phase.as_deref() {
        Some("Succeeded") => return unready("PodCompleted", None),
        Some("Failed") => return unready("PodFailed", None),
        _ => {}
    }
    let inits =
        status.init_container_statuses.iter().flatten().filter(|s| sidecars.contains(&s.name.as_str()));
    let all = inits.chain(status.container_statuses.iter().flatten());
    let waiting: Vec<&str> = all.filter(|s| !s.ready).map(|s| s.name.as_str()).collect();
    if waiting.is_empty() {
        return TRUE;
    }
    unready("ContainersNotReady", Some(format!("containers with unready status: {}", list(&waiting))))
}

fn ready(pod: &Pod, status: &PodStatus, sidecars: &[&str]) -> Verdict {
    let containers = containers_ready(status, sidecars);
    if !containers.status {
        return containers;
    }
    let gates = pod.spec.iter().flat_map(|spec| spec.readiness_gates.iter().flatten());
    let given: Vec<_> = pod.status.iter().flat_map(|s| s.conditions.iter().flatten()).collect();
    let unmet: Vec<String> = gates
        .filter_map(|gate| {
            let kind = &gate.condition_type;
            match given.iter().find(|condition| &condition.type_ == kind) {
                None => {
                    Some(format!("corresponding condition of pod readiness gate \"{kind}\" does not exist."))
                }
                Some(c) if c.status != "True" => {
                    let found = &c.status;
                    Some(format!("the status of pod readiness gate \"{kind}\" is not \"True\", but {found}"))
                }
                Some(_) => None,
            }
        })
        .collect();
    if unmet.is_empty() { TRUE } else { unready("ReadinessGatesNotReady", Some(unmet.join(", "))) }
}

fn conditions(
    pod: &Pod,
    status: &mut PodStatus,
    previous: &PodStatus,
    view: &View<'_>,
    initialized_before: bool,
    now: Timestamp,
) {
    let init = pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
    let sidecars: Vec<&str> =
        init.filter(|c| c.restart_policy.as_deref() == Some("Always")).map(|c| c.name.as_str()).collect();
    let has_sandbox = Verdict { status: view.actual.ready_sandbox().is_some(), ..TRUE };
    let verdicts = [
        (READY_TO_START, has_sandbox),
        (INITIALIZED, initialized(status, &sidecars, initialized_before)),
        (READY, ready(pod, status, &sidecars)),
        (CONTAINERS_READY, containers_ready(status, &sidecars)),
        (SCHEDULED, TRUE),
    ];
    let mut conditions = Vec::new();
    for (kind, verdict) in verdicts {
        let old = previous.conditions.iter().flatten().find(|condition| condition.type_ == kind);
        let word = if verdict.status { "True" } else { "False" };
        let unchanged = old.filter(|old| old.status == word).and_then(|old| old.last_transition_time.clone());
        conditions.push(PodCondition {
            type_: kind.to_owned(),
            status: word.to_owned(),
            reason: verdict.reason.map(str::to_owned),
            message: verdict.message,
            last_transition_time: unchanged.or_else(|| Some(time(now))),
            observed_generation: pod.metadata.generation,
            ..PodCondition::default()
        });
    }
    // What others wrote stays as they wrote it.
    let others = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let disrupted = view.failure.filter(|failure| failure.disrupts);
    let others = others.filter(|condition| {
        let kind = condition.type_.as_str();
        !OWNED.contains(&kind) && (disrupted.is_none() || kind != DISRUPTION_TARGET)
    });
    conditions.extend(others.cloned());
    conditions.extend(disrupted.map(|failure| disruption(pod, previous, failure, now)));
    status.conditions = Some(conditions);
}

fn disruption(pod: &Pod, previous: &PodStatus, failure: &Failure, now: Timestamp) -> PodCondition {
    let old = previous.conditions.iter().flatten();
    let mut old = old.filter(|condition| condition.type_ == DISRUPTION_TARGET && condition.status == "True");
    PodCondition {
        type_: DISRUPTION_TARGET.to_owned(),
        status: "True".to_owned(),
        reason: Some(TERMINATION_BY_KUBELET.to_owned()),
        message: Some(failure.message.clone()),
        last_transition_time: old.next().map_or(Some(time(now)), |old| old.last_transition_time.clone()),
        observed_generation: pod.metadata.generation,
        ..PodCondition::default()
    }
}

/// The strategic merge patch that makes the API's status this one. `uid` makes it miss a pod of the same name that
/// came later.
pub fn patch(uid: &str, previous: &PodStatus, status: &PodStatus) -> Value {
    let mut body = serde_json::to_value(status).unwrap_or_default();
    let owned = [
        "reason",
        "message",
        "podIP",
        "containerStatuses",
        "initContainerStatuses",
        "ephemeralContainerStatuses",
    ];
    if let Some(fields) = body.as_object_mut() {
        for field in owned {
            fields.entry(field).or_insert(Value::Null);
        }
        if let Some(Value::Array(conditions)) = fields.get_mut("conditions") {
            conditions.retain(|c| {
                let kind = c["type"].as_str().unwrap_or_default();
                OWNED.contains(&kind) || (kind == DISRUPTION_TARGET && c["reason"] == TERMINATION_BY_KUBELET)
            });
            for condition in conditions.iter_mut().filter_map(Value::as_object_mut) {
                for field in ["reason", "message"] {
                    condition.entry(field).or_insert(Value::Null);
                }
            }
        }
        let moved = previous.pod_ips.as_ref().is_some_and(|old| Some(old) != status.pod_ips.as_ref());
        if moved && let Some(Value::Array(ips)) = fields.get_mut("podIPs") {
            ips.insert(0, json!({"$patch": "replace"}));
        }
    }
    json!({"metadata": {"uid": uid}, "status": body})
}

#[cfg(test)]
impl View<'_> {
    /// A view of nothing, to be filled in by tests.
    pub fn for_tests() -> View<'static> {
        use std::sync::LazyLock;
        static EMPTY: LazyLock<(Actual, Memory, BTreeMap<String, Waiting>)> = LazyLock::new(Default::default);
        View {
            actual: &EMPTY.0,
            memory: &EMPTY.1,
            waiting: &EMPTY.2,
            failure: None,
            host_ips: &[],
            ended: false,
        }
    }
}

#[cfg(test)]
mod tests;
