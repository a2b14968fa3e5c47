//! One pod from first sight to the end: observe, plan, act, publish; then wait for something to happen.
//!
//! Long work (pulls, starts, kills) runs in tasks of its own, so that a worker always answers; what a task was for
//! stays in `Memory::busy` until it is done. Only this task changes the memory.

mod adopt;
mod evict;
mod ops;
mod publish;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodSpec, PodStatus};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::actual::{Actual, State};
use crate::context::Context;
use crate::observe::Observer;
use crate::plan::{self, Action, Backoff, Ending, KillReason, Memory, Op, Plan, since};
use crate::pod::{self, Entry};
use crate::probes::{self, Kind, Report};
use crate::recorder::Type;
use crate::status::{self, Failure, Waiting};
use crate::volumes::{Held, HostPaths};
use ops::Done;

/// A look at the runtime without any event, against events that were lost.
const RESYNC: Duration = Duration::from_secs(60);
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// The runtime's own state follows its events by a few milliseconds.
const EXIT_RECHECK_FIRST: Duration = Duration::from_millis(5);
const EXIT_RECHECK_MAX: Duration = Duration::from_secs(2);

/// What a worker is told.
#[derive(Clone, Debug)]
pub enum Message {
    /// The pod's object is now this.
    Pod(Arc<Pod>),
    /// The object is gone from the apiserver, last seen as this.
    Removed(Arc<Pod>),
    /// Something happened to a container or sandbox of the pod; `exited` is the id, if it ended.
    Runtime {
        exited: Option<String>,
    },
    /// A ConfigMap or Secret of the pod changed.
    Objects,
    Network(bool),
    /// The pod has to go.
    Evict(Eviction),
    /// What is left here of a pod that has ended is not to be kept; told when it is gone.
    Reclaim(CancellationToken),
}

/// Why a pod has to go, and how soon.
#[derive(Clone, Debug)]
pub struct Eviction {
    pub failure: Failure,
    pub grace: Duration,
    /// Told when the pod's containers, volumes and logs are gone.
    pub done: CancellationToken,
}

pub struct Worker {
    context: Arc<Context>,
    pod: Arc<Pod>,
    spec: PodSpec,
    memory: Memory,
    actual: Actual,
    observer: Observer,
    waiting: BTreeMap<String, Waiting>,
    failure: Option<Failure>,
    retries: BTreeMap<Op, u32>,
    volumes: HostPaths,
    held: Held,
    refresh_volumes_at: Option<Timestamp>,
    /// Containers said to have ended, until the runtime's state agrees.
    exits: BTreeSet<String>,
    exit_recheck: Duration,
    backed_off: BTreeMap<String, u32>,
    probes: HashMap<String, CancellationToken>,
    probe_reports: mpsc::UnboundedSender<probes::Message>,
    adopted: BTreeSet<String>,
    /// Set when the pod begins to end: pulls are broken off, liveness no longer counts.
    ending: CancellationToken,
    ops: JoinSet<Done>,
    publisher: publish::Publisher,
    status: PodStatus,
    object_gone: bool,
    /// Who waits until nothing of the pod is left here.
    await_removal: Vec<CancellationToken>,
    logs_removed: bool,
    wake_at: Option<Timestamp>,
    finished: bool,
}

/// Where a worker listens.
pub struct Inbox {
    pub messages: mpsc::UnboundedReceiver<Message>,
    probe_reports: mpsc::UnboundedReceiver<probes::Message>,
}

impl Worker {
    /// A worker for `pod`. With a `failure` the pod is refused: it only gets its status.
    pub fn new(
        context: Arc<Context>,
        pod: Arc<Pod>,
        failure: Option<Failure>,
        messages: mpsc::UnboundedReceiver<Message>,
    ) -> (Self, Inbox) {
        let (probe_reports, reports) = mpsc::unbounded_channel();
        let status = pod.status.clone().unwrap_or_default();
        let network_ready = *context.config.network_ready.borrow();
        let memory = Memory {
            network_ready,
            terminal: pod::is_terminal_phase(status.phase.as_deref()) || failure.is_some(),
            reclaim: evict::is_evicted(&status),
            restarts_before: adopt::restarts_before(&status),
            ..Memory::default()
        };
        let worker = Self {
            spec: pod.spec.clone().unwrap_or_default(),
            context,
            memory,
            failure,
            publisher: publish::Publisher::new(status.clone()),
            status,
            pod,
            actual: Actual::default(),
            observer: Observer::default(),
            waiting: BTreeMap::new(),
            retries: BTreeMap::new(),
            volumes: HostPaths::new(),
            held: Held::default(),
            refresh_volumes_at: None,
            exits: BTreeSet::new(),
            exit_recheck: EXIT_RECHECK_FIRST,
            backed_off: BTreeMap::new(),
            probes: HashMap::new(),
            probe_reports,
            adopted: BTreeSet::new(),
            ending: CancellationToken::new(),
            ops: JoinSet::new(),
            object_gone: false,
            await_removal: Vec::new(),
            logs_removed: false,
            wake_at: None,
            finished: false,
        };
        (worker, Inbox { messages, probe_reports: reports })
    }

    /// Runs until the pod has left the node, or `cancel`: then everything is left as it is.
    pub async fn run(mut self, mut inbox: Inbox, cancel: CancellationToken) {
        self.adopt().await;
        loop {
            self.turn().await;
            if self.finished {
                return;
            }
            let wait = self.time_to_wait();
            tokio::select! {
                () = cancel.cancelled() => return,
                message = inbox.messages.recv() => match message {
                    Some(message) => self.handle(message),
                    None => return,
                },
                Some(report) = inbox.probe_reports.recv() => self.handle_probe(report),
                Some(done) = self.ops.join_next() => self.handle_done(done),
                () = tokio::time::sleep(wait) => {}
            }
            // Everything that has already happened goes into one turn.
            while let Ok(message) = inbox.messages.try_recv() {
                self.handle(message);
            }
            while let Ok(report) = inbox.probe_reports.try_recv() {
                self.handle_probe(report);
            }
            while let Some(done) = self.ops.try_join_next() {
                self.handle_done(done);
            }
        }
    }

    fn time_to_wait(&mut self) -> Duration {
        let now = Timestamp::now();
        let mut wait = RESYNC;
        for at in [self.wake_at, self.refresh_volumes_at, self.publisher.retry_at].into_iter().flatten() {
            wait = wait.min(since(now, at).max(Duration::from_millis(1)));
        }
        if self.exits.is_empty() {
            self.exit_recheck = EXIT_RECHECK_FIRST;
        } else {
            wait = wait.min(self.exit_recheck);
            self.exit_recheck = (self.exit_recheck * 2).min(EXIT_RECHECK_MAX);
        }
        wait
    }

    fn handle(&mut self, message: Message) {
        match message {
            Message::Pod(pod) => self.take_pod(pod),
            Message::Removed(pod) => {
                self.take_pod(pod);
                self.object_gone = true;
            }
            Message::Runtime { exited } => self.exits.extend(exited),
            Message::Objects => {
                self.memory.retry_at.retain(|op, _| !matches!(op, Op::Volumes | Op::Start(_)));
                self.refresh_volumes_at = Some(Timestamp::now());
            }
            Message::Network(ready) => {
                self.memory.network_ready = ready;
                self.memory.retry_at.remove(&Op::Sandbox);
            }
            Message::Evict(eviction) => self.evict(eviction),
            Message::Reclaim(done) => self.reclaim(done),
        }
    }

    fn take_pod(&mut self, pod: Arc<Pod>) {
        let (old, new) = (&self.pod.metadata, &pod.metadata);
        if old.labels != new.labels || old.annotations != new.annotations {
            // The downward API shows them, and subPathExpr may be waiting for them.
            self.refresh_volumes_at = Some(Timestamp::now());
            self.memory.retry_at.retain(|op, _| !matches!(op, Op::Start(_)));
        }
        if self
            .spec
            .containers
            .iter()
            .zip(pod.spec.iter().flat_map(|s| &s.containers))
            .any(|(a, b)| a.image != b.image)
        {
            self.memory.retry_at.retain(|op, _| !matches!(op, Op::Start(_)));
        }
        self.publisher.see(pod.status.as_ref());
        self.spec = pod.spec.clone().unwrap_or_default();
        self.pod = pod;
    }

    fn handle_probe(&mut self, message: probes::Message) {
        let probes::Message { container_id: id, kind, report } = message;
        let Some(container) = self.actual.containers.iter().find(|c| c.id == id && c.is_running()) else {
            return;
        };
        let Some(entry) = self.entry(&container.name.clone()) else { return };
        match report {
            Report::Attempt(why) => {
                let text = format!("{} probe failed: {why}", kind.as_str());
                self.context.recorder.container(&self.pod, &entry, Type::Warning, "Unhealthy", text);
            }
            Report::Verdict(true) => match kind {
                Kind::Startup => drop(self.memory.started.insert(id)),
                Kind::Readiness => drop(self.memory.ready.insert(id)),
                Kind::Liveness => {}
            },
            Report::Verdict(false) => match kind {
                Kind::Readiness => drop(self.memory.ready.remove(&id)),
                Kind::Startup => drop(self.memory.unhealthy.insert(id, KillReason::StartupProbe)),
                Kind::Liveness => drop(self.memory.unhealthy.insert(id, KillReason::LivenessProbe)),
            },
        }
    }

    fn entry(&self, name: &str) -> Option<Entry> {
        pod::entries(&self.spec).into_iter().find(|entry| entry.name() == name)
    }

    async fn turn(&mut self) {
        match self.observer.observe(&self.context, pod::uid(&self.pod)).await {
            Ok(actual) => self.actual = actual,
            Err(error) => {
                tracing::warn!(pod = pod::display(&self.pod), %error, "cannot read the pod's state");
                self.wake_at = Some(Timestamp::now() + RETRY_FIRST);
                return;
            }
        }
        let now = Timestamp::now();
        self.settle_exits();
        self.begin_ending(now);
        self.update_health();
        let plan = plan::plan(&self.spec, &self.actual, &self.memory, now);
        self.wake_at = [plan.wake_at, self.deadline_at()].into_iter().flatten().min();
        self.note_backoff(&plan);
        for action in &plan.actions {
            self.act(action.clone(), now);
        }
        self.refresh_volumes(now);
        self.publish(&plan, now);
        self.end_reclaim(&plan);
        self.finish(&plan);
    }

    fn settle_exits(&mut self) {
        let running = |id: &String| self.actual.containers.iter().any(|c| &c.id == id && c.is_running());
        let up = |id: &String| self.actual.sandboxes.iter().any(|s| &s.id == id && s.ready);
        // The end of a container may be told before the runtime shows its start.
        let made =
            |id: &String| self.actual.containers.iter().any(|c| &c.id == id && c.state == State::Created);
        self.exits.retain(|id| running(id) || made(id) || up(id));
        self.memory.killing.retain(|id, _| running(id));
    }

    /// When `activeDeadlineSeconds` is over.
    fn deadline_at(&self) -> Option<Timestamp> {
        let seconds = self.spec.active_deadline_seconds?;
        if self.memory.ending.is_some() || self.memory.terminal {
            return None;
        }
        let start = self.status.start_time.as_ref()?.0;
        Some(start + Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
    }

    fn begin_ending(&mut self, now: Timestamp) {
        let deleted = self.object_gone || self.pod.metadata.deletion_timestamp.is_some();
        if deleted {
            let grace = u64::try_from(pod::grace_seconds(&self.pod)).unwrap_or(1);
            let deadline = now + Duration::from_secs(grace);
            let deadline =
                self.memory.ending.as_ref().map_or(deadline, |ending| ending.deadline.min(deadline));
            self.memory.ending = Some(Ending { deadline, deleted: true });
        } else if self.memory.ending.is_none() && self.deadline_at().is_some_and(|at| at <= now) {
            let grace = u64::try_from(pod::grace_seconds(&self.pod)).unwrap_or(1);
            self.memory.ending = Some(Ending { deadline: now + Duration::from_secs(grace), deleted: false });
            let message = "Pod was active on the node longer than the specified deadline";
            self.context.recorder.pod(&self.pod, Type::Normal, "DeadlineExceeded", message);
            self.failure = Some(Failure::new("DeadlineExceeded", message));
        }
        if self.memory.ending.is_some() {
            self.ending.cancel();
        }
    }

    /// Brings probes and what needs no probe in line with the containers that run.
    fn update_health(&mut self) {
        let running: BTreeMap<String, crate::actual::Container> = self
            .actual
            .containers
            .iter()
            .filter(|c| c.is_running())
            .map(|c| (c.id.clone(), c.clone()))
            .collect();
        self.probes.retain(|id, cancel| {
            let kept = running.contains_key(id);
            if !kept {
                cancel.cancel();
            }
            kept
        });
        self.memory.ready.retain(|id| running.contains_key(id));
        self.memory.started.retain(|id| running.contains_key(id));
        let known = |id: &String| self.actual.containers.iter().any(|c| &c.id == id);
        self.memory.unhealthy.retain(|id, _| known(id));
        for (id, container) in running {
            let Some(entry) = self.entry(&container.name) else { continue };
            // While a post-start hook runs the container does not count as started.
            if self.memory.busy.contains(&Op::Start(container.name.clone())) && !self.adopted.contains(&id) {
                continue;
            }
            if !entry.has_startup_probe() {
                self.memory.started.insert(id.clone());
            }
            if entry.readiness_probe().is_none() && self.memory.started.contains(&id) {
                self.memory.ready.insert(id.clone());
            }
            self.probe(id, entry, &container);
        }
    }

    fn probe(&mut self, id: String, entry: Entry, container: &crate::actual::Container) {
        let c = &entry.container;
        let any = c.startup_probe.is_some() || c.readiness_probe.is_some() || c.liveness_probe.is_some();
        if !any || self.probes.contains_key(&id) {
            return;
        }
        let cancel = CancellationToken::new();
        let target = probes::Target {
            runtime: self.context.runtime.clone(),
            entry,
            container_id: id.clone(),
            started_at: container.started_at,
            pod_ip: self.pod_ips().first().cloned().unwrap_or_else(|| "127.0.0.1".to_owned()),
            adopted: self.adopted.contains(&id),
            already_started: self.memory.started.contains(&id),
            reports: self.probe_reports.clone(),
            ending: self.ending.clone(),
            cancel: cancel.clone(),
        };
        tokio::spawn(probes::watch(target));
        self.probes.insert(id, cancel);
    }

    /// The pod's addresses, those of the node for a pod in its network.
    fn pod_ips(&self) -> Vec<String> {
        if pod::is_host_network(&self.spec) {
            return self.context.host_ips.clone();
        }
        let mut ips = self.actual.ready_sandbox().map(|sandbox| sandbox.ips.clone()).unwrap_or_default();
        let v6_first = self.context.host_ips.first().is_some_and(|ip| ip.contains(':'));
        ips.sort_by_key(|ip| ip.contains(':') != v6_first);
        ips
    }

    fn note_backoff(&mut self, plan: &Plan) {
        for (name, delay) in &plan.backing_off {
            let attempt = self.actual.newest(name).map_or(0, |container| container.attempt);
            let display = pod::display(&self.pod);
            let message =
                format!("back-off {} restarting failed container={name} pod={display}", go_duration(*delay));
            self.waiting.insert(name.clone(), Waiting { reason: "CrashLoopBackOff".into(), message });
            if self.backed_off.insert(name.clone(), attempt) != Some(attempt)
                && let Some(entry) = self.entry(name)
            {
                let text = format!("Back-off restarting failed container {name} in pod {display}");
                self.context.recorder.container(&self.pod, &entry, Type::Warning, "BackOff", text);
            }
        }
    }

    fn note_restart(&mut self, name: &str, now: Timestamp) {
        if let Some(dead) = self.actual.newest(name) {
            let previous = self.memory.backoff_by_container.get(name).copied();
            let next = Backoff::next(previous, dead.finished_at, now);
            self.memory.backoff_by_container.insert(name.to_owned(), next);
        }
    }

    fn act(&mut self, action: Action, now: Timestamp) {
        tracing::debug!(pod = pod::display(&self.pod), ?action, "action");
        let mut again = false;
        match &action {
            Action::Start { name, .. } => {
                self.note_restart(name, now);
                self.memory.busy.insert(Op::Start(name.clone()));
            }
            Action::Kill { id, deadline, .. } => {
                again = self.memory.killing.insert(id.clone(), *deadline).is_some();
            }
            Action::PrepareVolumes => drop(self.memory.busy.insert(Op::Volumes)),
            Action::CreateSandbox { .. } | Action::StopSandbox { .. } => {
                self.memory.busy.insert(Op::Sandbox);
            }
            Action::RemoveSandbox { id } | Action::RemoveContainer { id } => {
                self.memory.busy.insert(Op::Remove(id.clone()));
            }
            Action::Teardown => drop(self.memory.busy.insert(Op::Teardown)),
        }
        self.spawn(action, again);
    }

    fn refresh_volumes(&mut self, now: Timestamp) {
        let due = self.refresh_volumes_at.is_some_and(|at| at <= now);
        let alive = self.memory.volumes_ready && self.memory.ending.is_none() && !self.memory.terminal;
        if due && alive && !self.memory.busy.contains(&Op::Volumes) {
            self.refresh_volumes_at = None;
            self.memory.busy.insert(Op::Volumes);
            self.spawn(Action::PrepareVolumes, false);
        } else if due && !alive {
            self.refresh_volumes_at = None;
        }
    }

    /// Notes a failure of `op`: the next try waits, longer each time.
    fn retry_later(&mut self, op: Op, at_least: Option<Duration>) {
        let count = self.retries.entry(op.clone()).or_insert(0);
        let delay = at_least.unwrap_or_else(|| (RETRY_FIRST * 2u32.saturating_pow(*count)).min(RETRY_MAX));
        *count = count.saturating_add(1).min(16);
        self.memory.retry_at.insert(op, Timestamp::now() + delay);
    }

    fn succeeded(&mut self, op: &Op) {
        self.retries.remove(op);
        self.memory.retry_at.remove(op);
    }

    fn view_status(&self, plan: &Plan, now: Timestamp) -> PodStatus {
        let still = self.actual.any_running();
        let view = status::View {
            actual: &self.actual,
            memory: &self.memory,
            waiting: &self.waiting,
            failure: self.failure.as_ref().filter(|_| !still),
            host_ips: &self.context.host_ips,
            ended: plan.ended,
        };
        status::compute(&self.pod, &self.status, &view, now)
    }
}

/// A duration as Go prints it: `10s`, `2m40s`.
fn go_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match (seconds / 60, seconds % 60) {
        (0, seconds) => format!("{seconds}s"),
        (minutes, seconds) => format!("{minutes}m{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_print_as_in_go() {
        let printed = [10, 60, 160, 300].map(|seconds| go_duration(Duration::from_secs(seconds)));
        assert_eq!(printed, ["10s", "1m0s", "2m40s", "5m0s"]);
    }
}
