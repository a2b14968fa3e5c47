//! The decision of the kubelet: a pod, what the runtime shows of it and what is remembered about it become the next
//! actions. Pure: no IO, and the clock is an argument.
//!
//! ```text
//!   volumes -> sandbox -> init and sidecars, in order -> app containers, together
//!                                    | exit: restart policy and backoff
//!   end: app containers -> sidecars, in reverse -> sandbox -> teardown
//! ```
//!
//! The plan is level-triggered: the same inputs give the same actions, and an action under way (`Memory::busy`,
//! `Memory::killing`) is not given again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::PodSpec;

use crate::actual::{Actual, Container, State};
use crate::pod::{self, Entry, Role};

pub const BACKOFF_FIRST: Duration = Duration::from_secs(10);
pub const BACKOFF_MAX: Duration = Duration::from_secs(300);
/// A container that lived this long since its last restart starts over with the first delay.
const BACKOFF_RESET: Duration = Duration::from_secs(600);

/// Delay before the next life of a container that keeps ending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    pub delay: Duration,
    pub updated_at: Timestamp,
}

impl Backoff {
    /// Time left until a container that ended at `finished_at` may start again.
    pub fn remaining(&self, finished_at: Timestamp, now: Timestamp) -> Option<Duration> {
        if since(self.updated_at, finished_at) > BACKOFF_RESET {
            return None;
        }
        self.delay.checked_sub(since(finished_at, now)).filter(|left| !left.is_zero())
    }

    /// The delay to note when a container that ended at `finished_at` is started again.
    pub fn next(previous: Option<Self>, finished_at: Timestamp, now: Timestamp) -> Self {
        let delay = match previous {
            Some(last) if since(last.updated_at, finished_at) <= BACKOFF_RESET => {
                (last.delay * 2).min(BACKOFF_MAX)
            }
            _ => BACKOFF_FIRST,
        };
        Self { delay, updated_at: now }
    }
}

/// Time from `earlier` to `later`, zero if it is the other way round.
pub fn since(earlier: Timestamp, later: Timestamp) -> Duration {
    Duration::try_from(later.duration_since(earlier)).unwrap_or_default()
}

/// Work of which one at a time may be under way per pod (and container).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Op {
    Volumes,
    Sandbox,
    Start(String),
    Remove(String),
    Teardown,
}

/// Why a pod comes to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ending {
    /// When the last process is killed.
    pub deadline: Timestamp,
    /// Whether the pod also leaves the node: its object is being deleted or is gone.
    pub deleted: bool,
}

/// Why a running container must be stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KillReason {
    PodEnding,
    SandboxChanged,
    DefinitionChanged,
    LivenessProbe,
    StartupProbe,
    Unknown,
}

/// What the kubelet remembers about a pod besides what the runtime shows.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    pub volumes_ready: bool,
    pub network_ready: bool,
    /// The phase is Failed or Succeeded and stays so.
    pub terminal: bool,
    /// Once the pod has ended, its containers and sandboxes are not kept for whoever asks for logs.
    pub reclaim: bool,
    pub ending: Option<Ending>,
    pub torn_down: bool,
    pub busy: BTreeSet<Op>,
    /// Containers being stopped, and when they will be killed, by id.
    pub killing: BTreeMap<String, Timestamp>,
    pub stopped_sandboxes: BTreeSet<String>,
    pub backoff_by_container: BTreeMap<String, Backoff>,
    /// Not before this time, after a failure.
    pub retry_at: BTreeMap<Op, Timestamp>,
    /// Ids of containers past their startup probe (or without one) and post-start hook.
    pub started: BTreeSet<String>,
    /// Ids of containers whose readiness probe (or lack of one) says ready.
    pub ready: BTreeSet<String>,
    /// Ids of containers that a liveness or startup probe condemned.
    pub unhealthy: BTreeMap<String, KillReason>,
    /// Lives that the API's status counts of containers that the runtime no longer knows.
    pub restarts_before: BTreeMap<String, u32>,
}

impl Memory {
    fn blocked(&self, op: &Op, now: Timestamp, plan: &mut Plan) -> bool {
        if self.busy.contains(op) {
            return true;
        }
        match self.retry_at.get(op) {
            Some(at) if *at > now => {
                plan.wake(*at);
                true
            }
            _ => false,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    PrepareVolumes,
    CreateSandbox {
        attempt: u32,
    },
    StopSandbox {
        id: String,
    },
    RemoveSandbox {
        id: String,
    },
    /// Pull, create and start the container of that name in the sandbox.
    Start {
        name: String,
        attempt: u32,
        sandbox_id: String,
    },
    Kill {
        id: String,
        name: String,
        reason: KillReason,
        deadline: Timestamp,
    },
    RemoveContainer {
        id: String,
    },
    /// Unmount volumes, remove the pod's directory and cgroups.
    Teardown,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub actions: Vec<Action>,
    /// Containers that wait for a restart, with the whole delay.
    pub backing_off: BTreeMap<String, Duration>,
    /// Nothing else changing, plan again at this time.
    pub wake_at: Option<Timestamp>,
    /// Nothing of the pod runs, and nothing will: its processes and mounts are gone.
    pub ended: bool,
}

impl Plan {
    fn wake(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |current| current.min(at)));
    }
}

/// Plans the next actions for a pod.
pub fn plan(spec: &PodSpec, actual: &Actual, memory: &Memory, now: Timestamp) -> Plan {
    let entries = pod::entries(spec);
    let mut plan = Plan::default();
    if let Some(ending) = &memory.ending {
        let remove = ending.deleted || memory.reclaim;
        wind_down(&entries, actual, memory, ending.deadline, remove, &mut plan, now);
    } else if memory.terminal || is_finished(spec, &entries, actual, memory) {
        let grace = spec.termination_grace_period_seconds.unwrap_or(30).max(1);
        wind_down(&entries, actual, memory, after(now, seconds(grace)), memory.reclaim, &mut plan, now);
    } else {
        live(spec, &entries, actual, memory, &mut plan, now);
    }
    plan
}

/// Whether the pod has run to its end: all app containers are done for good, or an init container failed for good.
pub fn is_finished(spec: &PodSpec, entries: &[Entry], actual: &Actual, memory: &Memory) -> bool {
    let done = |entry: &Entry| match actual.newest(entry.name()) {
        Some(container) => {
            container.state == State::Exited
                && !memory.busy.contains(&Op::Start(entry.name().to_owned()))
                && !restarts(spec, entry, container, memory)
        }
        None => false,
    };
    let init_failed = entries
        .iter()
        .filter(|entry| entry.role == Role::Init)
        .any(|entry| done(entry) && actual.newest(entry.name()).is_some_and(|c| c.exit_code != 0));
    let mut apps = entries.iter().filter(|entry| entry.role == Role::App).peekable();
    init_failed || (apps.peek().is_some() && apps.all(done))
}

fn restarts(spec: &PodSpec, entry: &Entry, container: &Container, memory: &Memory) -> bool {
    let condemned = memory.unhealthy.contains_key(&container.id) && pod::restart_policy(spec) != "Never";
    condemned || entry.restarts_after(spec, container.exit_code)
}

fn seconds(count: i64) -> Duration {
    Duration::from_secs(u64::try_from(count).unwrap_or(0))
}

fn after(now: Timestamp, delay: Duration) -> Timestamp {
    now.checked_add(delay).unwrap_or(Timestamp::MAX)
}

fn kill(container: &Container, reason: KillReason, deadline: Timestamp, memory: &Memory, plan: &mut Plan) {
    // A later order counts only where it shortens the time that is left.
    let slack = Duration::from_secs(1);
    if memory.killing.get(&container.id).is_some_and(|current| *current <= after(deadline, slack)) {
        return;
    }
    let (id, name) = (container.id.clone(), container.name.clone());
    plan.actions.push(Action::Kill { id, name, reason, deadline });
}

fn wind_down(
    entries: &[Entry],
    actual: &Actual,
    memory: &Memory,
    deadline: Timestamp,
    remove_all: bool,
    plan: &mut Plan,
    now: Timestamp,
) {
    let role = |name: &str| entries.iter().find(|e| e.name() == name).map_or(Role::App, |e| e.role);
    let alive = || actual.containers.iter().filter(|c| matches!(c.state, State::Running | State::Unknown));
    let mains: Vec<_> = alive().filter(|c| role(&c.name) != Role::Sidecar).collect();
    for container in &mains {
        kill(container, KillReason::PodEnding, deadline, memory, plan);
    }
    if !mains.is_empty() {
        return;
    }
    let last_sidecar = entries.iter().rev().find_map(|entry| alive().find(|c| c.name == entry.name()));
    if let Some(container) = last_sidecar {
        kill(container, KillReason::PodEnding, deadline, memory, plan);
        return;
    }
    if memory.busy.iter().any(|op| !matches!(op, Op::Remove(_) | Op::Teardown)) {
        return;
    }
    stop_sandboxes(actual, memory, plan, now);
    if !plan.actions.is_empty() || memory.busy.contains(&Op::Teardown) {
        return;
    }
    if actual.sandboxes.iter().any(|sandbox| !memory.stopped_sandboxes.contains(&sandbox.id)) {
        return;
    }
    if !memory.torn_down {
        if !memory.blocked(&Op::Teardown, now, plan) {
            plan.actions.push(Action::Teardown);
        }
        return;
    }
    if remove_all {
        for sandbox in &actual.sandboxes {
            remove(Action::RemoveSandbox { id: sandbox.id.clone() }, &sandbox.id, memory, plan, now);
        }
    }
    plan.ended = true;
}

fn stop_sandboxes(actual: &Actual, memory: &Memory, plan: &mut Plan, now: Timestamp) {
    if memory.blocked(&Op::Sandbox, now, plan) {
        return;
    }
    for sandbox in &actual.sandboxes {
        if !memory.stopped_sandboxes.contains(&sandbox.id) {
            plan.actions.push(Action::StopSandbox { id: sandbox.id.clone() });
        }
    }
}

fn remove(action: Action, id: &str, memory: &Memory, plan: &mut Plan, now: Timestamp) {
    if !memory.blocked(&Op::Remove(id.to_owned()), now, plan) {
        plan.actions.push(action);
    }
}

fn live(
    spec: &PodSpec,
    entries: &[Entry],
    actual: &Actual,
    memory: &Memory,
    plan: &mut Plan,
    now: Timestamp,
) {
    if !memory.volumes_ready {
        if !memory.blocked(&Op::Volumes, now, plan) {
            plan.actions.push(Action::PrepareVolumes);
        }
        return;
    }
    let Some(sandbox) = actual.ready_sandbox() else {
        renew_sandbox(spec, actual, memory, plan, now);
        return;
    };
    // Containers of an older sandbox have lost their namespaces.
    for container in actual.containers.iter().filter(|c| c.is_running() && c.sandbox_id != sandbox.id) {
        kill(container, KillReason::SandboxChanged, after(now, grace(spec)), memory, plan);
    }
    let mut step = Step { spec, actual, memory, sandbox_id: &sandbox.id, plan, now };
    if step.initialize(entries) {
        for entry in entries.iter().filter(|e| matches!(e.role, Role::App | Role::Ephemeral)) {
            step.keep(entry);
        }
    }
    collect_dead(entries, actual, memory, plan, now);
}

fn grace(spec: &PodSpec) -> Duration {
    seconds(spec.termination_grace_period_seconds.unwrap_or(30).max(1))
}

fn renew_sandbox(spec: &PodSpec, actual: &Actual, memory: &Memory, plan: &mut Plan, now: Timestamp) {
    for container in actual.containers.iter().filter(|c| c.is_running()) {
        kill(container, KillReason::SandboxChanged, after(now, grace(spec)), memory, plan);
    }
    let busy = memory.busy.iter().any(|op| matches!(op, Op::Start(_)));
    if actual.any_running() || busy || memory.blocked(&Op::Sandbox, now, plan) {
        return;
    }
    if let Some(dead) = actual.sandboxes.first().filter(|s| !memory.stopped_sandboxes.contains(&s.id)) {
        plan.actions.push(Action::StopSandbox { id: dead.id.clone() });
        return;
    }
    if !pod::is_host_network(spec) && !memory.network_ready {
        return;
    }
    let attempt = actual.sandboxes.first().map_or(0, |newest| newest.attempt + 1);
    plan.actions.push(Action::CreateSandbox { attempt });
}

/// Containers that died before the last death, and sandboxes that nothing refers to any more.
fn collect_dead(entries: &[Entry], actual: &Actual, memory: &Memory, plan: &mut Plan, now: Timestamp) {
    for entry in entries {
        let running = actual.newest(entry.name()).is_some_and(|c| c.state != State::Exited);
        let kept = if running { 2 } else { 1 };
        for dead in actual.by_name(entry.name()).skip(kept).filter(|c| c.state != State::Running) {
            remove(Action::RemoveContainer { id: dead.id.clone() }, &dead.id, memory, plan, now);
        }
    }
    for old in actual.sandboxes.iter().skip(1) {
        if !actual.containers.iter().any(|container| container.sandbox_id == old.id) {
            remove(Action::RemoveSandbox { id: old.id.clone() }, &old.id, memory, plan, now);
        }
    }
}

/// Brings the containers of a pod with a ready sandbox up.
struct Step<'a> {
    spec: &'a PodSpec,
    actual: &'a Actual,
    memory: &'a Memory,
    sandbox_id: &'a str,
    plan: &'a mut Plan,
    now: Timestamp,
}

impl Step<'_> {
    fn in_sandbox(&self, name: &str) -> Option<&Container> {
        self.actual.newest(name).filter(|container| container.sandbox_id == self.sandbox_id)
    }

    /// Runs init containers and sidecars in order; `true` when app containers may run.
    fn initialize(&mut self, entries: &[Entry]) -> bool {
        let app_exists = entries.iter().any(|e| e.role == Role::App && self.in_sandbox(e.name()).is_some());
        for entry in entries {
            match entry.role {
                Role::Init if app_exists => {}
                Role::Init => {
                    let done = self
                        .in_sandbox(entry.name())
                        .is_some_and(|c| c.state == State::Exited && c.exit_code == 0);
                    if !done {
                        self.keep(entry);
                        return false;
                    }
                }
                Role::Sidecar => {
                    self.keep(entry);
                    let started = self
                        .in_sandbox(entry.name())
                        .is_some_and(|c| c.is_running() && self.memory.started.contains(&c.id));
                    if !started && !app_exists {
                        return false;
                    }
                }
                Role::App | Role::Ephemeral => {}
            }
        }
        true
    }

    /// Starts the container, leaves it running, stops it or waits, as its state and policy say.
    fn keep(&mut self, entry: &Entry) {
        let Some(newest) = self.actual.newest(entry.name()).cloned() else {
            let attempt = self.memory.restarts_before.get(entry.name()).map_or(0, |before| before + 1);
            self.start(entry, attempt);
            return;
        };
        let attempt = newest.attempt + 1;
        let starting = self.memory.busy.contains(&Op::Start(entry.name().to_owned()));
        match newest.state {
            State::Running => self.check_running(entry, &newest),
            State::Unknown => {
                kill(&newest, KillReason::Unknown, self.deadline(), self.memory, self.plan);
            }
            State::Created if starting => {}
            State::Created if entry.role != Role::Ephemeral => self.start(entry, attempt),
            State::Created => {}
            State::Exited if starting => {}
            State::Exited => {
                let elsewhere = newest.sandbox_id != self.sandbox_id;
                // In a new sandbox an init container runs again even if it had succeeded in the old one.
                let again = elsewhere && entry.role == Role::Init;
                if again || restarts(self.spec, entry, &newest, self.memory) {
                    self.start_after(entry, &newest, attempt);
                }
            }
        }
    }

    fn deadline(&self) -> Timestamp {
        after(self.now, grace(self.spec))
    }

    fn check_running(&mut self, entry: &Entry, container: &Container) {
        let reason = match self.memory.unhealthy.get(&container.id) {
            Some(reason) => Some(*reason),
            None if entry.role != Role::Ephemeral && container.hash != entry.hash() => {
                Some(KillReason::DefinitionChanged)
            }
            None => None,
        };
        let Some(reason) = reason else { return };
        let own_grace = match reason {
            KillReason::LivenessProbe => entry.container.liveness_probe.as_ref(),
            KillReason::StartupProbe => entry.container.startup_probe.as_ref(),
            KillReason::PodEnding
            | KillReason::SandboxChanged
            | KillReason::DefinitionChanged
            | KillReason::Unknown => None,
        }
        .and_then(|probe| probe.termination_grace_period_seconds);
        let deadline = own_grace.map_or(self.deadline(), |grace| after(self.now, seconds(grace.max(1))));
        kill(container, reason, deadline, self.memory, self.plan);
    }

    fn start_after(&mut self, entry: &Entry, dead: &Container, attempt: u32) {
        let backoff = self.memory.backoff_by_container.get(entry.name());
        if let Some(backoff) = backoff
            && let Some(left) = backoff.remaining(dead.finished_at, self.now)
        {
            self.plan.backing_off.insert(entry.name().to_owned(), backoff.delay);
            self.plan.wake(after(self.now, left));
            return;
        }
        self.start(entry, attempt);
    }

    fn start(&mut self, entry: &Entry, attempt: u32) {
        if self.memory.blocked(&Op::Start(entry.name().to_owned()), self.now, self.plan) {
            return;
        }
        let (name, sandbox_id) = (entry.name().to_owned(), self.sandbox_id.to_owned());
        self.plan.actions.push(Action::Start { name, attempt, sandbox_id });
    }
}

#[cfg(test)]
mod tests;
