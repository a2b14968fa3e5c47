//! Actions of the plan, each in a task of its own, and what their ends mean.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{LifecycleHandler, Pod, PodStatus};
use tokio::task::JoinError;
use tokio_util::sync::CancellationToken;

use super::Worker;
use crate::context::Context;
use crate::dial;
use crate::env;
use crate::images::{self, Progress};
use crate::objects::Kind;
use crate::plan::{Action, KillReason, Op, since};
use crate::pod::{self, Entry};
use crate::probes;
use crate::recorder::Type;
use crate::runtime_config::{self, Parts};
use crate::status::Waiting;
use crate::volumes::{HostPaths, Prepared};

/// A container that is killed gets at least this long to end by itself.
const GRACE_MIN: Duration = Duration::from_secs(2);
const CONFIG_RETRY: Duration = Duration::from_secs(10);
const HOOK_AGENT: &str = "kube-lifecycle/1.36";
const HOOK_LIMIT: Duration = Duration::from_secs(3600);

/// The end of an action.
pub enum Done {
    Volumes(Result<Prepared, String>),
    SandboxCreated(Result<(), String>),
    SandboxStopped(String, Result<(), String>),
    Started(String, Result<(), StartError>),
    Killed(String, Result<(), String>),
    Removed(String, Result<(), String>),
    TornDown(Result<(), String>),
    Published(Box<PodStatus>, Result<(), kube::Error>),
    Deleted(Result<(), String>),
}

/// Why a container could not be started, as its waiting state says it.
pub struct StartError {
    reason: String,
    message: String,
    retry_after: Duration,
}

impl StartError {
    fn config(message: String) -> Self {
        Self { reason: "CreateContainerConfigError".to_owned(), message, retry_after: CONFIG_RETRY }
    }
}

/// Everything that starting a container takes.
struct Start {
    context: Arc<Context>,
    pod: Arc<Pod>,
    entry: Entry,
    attempt: u32,
    sandbox_id: String,
    sandbox_attempt: u32,
    volumes: HostPaths,
    pod_ips: Vec<String>,
    target: Option<String>,
    ending: CancellationToken,
}

impl Worker {
    /// Starts the work of `action`. A kill ordered `again` runs no hook a second time.
    pub(super) fn spawn(&mut self, action: Action, again: bool) {
        let (context, pod) = (self.context.clone(), self.pod.clone());
        match action {
            Action::PrepareVolumes => {
                let (held, facts) = (self.held.clone(), self.context.facts(&self.pod_ips()));
                self.ops
                    .spawn(async move { Done::Volumes(context.volumes.prepare(&pod, &facts, held).await) });
            }
            Action::CreateSandbox { attempt } => {
                self.ops.spawn(
                    async move { Done::SandboxCreated(create_sandbox(&context, &pod, attempt).await) },
                );
            }
            Action::StopSandbox { id } => {
                self.ops.spawn(async move {
                    let result =
                        context.runtime.stop_pod_sandbox(&id).await.map_err(|error| error.to_string());
                    Done::SandboxStopped(id, result)
                });
            }
            Action::RemoveSandbox { id } => {
                self.ops.spawn(async move {
                    let result =
                        context.runtime.remove_pod_sandbox(&id).await.map_err(|error| error.to_string());
                    Done::Removed(id, result)
                });
            }
            Action::RemoveContainer { id } => {
                self.ops.spawn(async move {
                    let result =
                        context.runtime.remove_container(&id).await.map_err(|error| error.to_string());
                    Done::Removed(id, result)
                });
            }
            Action::Start { name, attempt, sandbox_id } => self.spawn_start(name, attempt, sandbox_id),
            Action::Kill { id, name, reason, deadline } => {
                let (entry, pod_ips) = (self.entry(&name), self.pod_ips());
                self.ops.spawn(async move {
                    let kill =
                        Kill { context, pod, entry, id: id.clone(), name, reason, deadline, pod_ips, again };
                    Done::Killed(id, kill.run().await)
                });
            }
            Action::Teardown => {
                self.ops.spawn(async move { Done::TornDown(teardown(&context, &pod).await) });
            }
        }
    }

    fn spawn_start(&mut self, name: String, attempt: u32, sandbox_id: String) {
        let Some(entry) = self.entry(&name) else {
            self.memory.busy.remove(&Op::Start(name));
            return;
        };
        let target =
            entry.target.as_ref().and_then(|target| self.actual.newest(target)).map(|c| c.id.clone());
        let start = Start {
            context: self.context.clone(),
            pod: self.pod.clone(),
            entry,
            attempt,
            sandbox_attempt: self.actual.sandboxes.first().map_or(0, |sandbox| sandbox.attempt),
            sandbox_id,
            volumes: self.volumes.clone(),
            pod_ips: self.pod_ips(),
            target,
            ending: self.ending.clone(),
        };
        self.ops.spawn(async move { Done::Started(name, start.run().await) });
    }

    pub(super) fn handle_done(&mut self, done: Result<Done, JoinError>) {
        let done = match done {
            Ok(done) => done,
            Err(error) => {
                tracing::error!(pod = pod::display(&self.pod), %error, "an action of the pod broke down");
                // Which one it was is not known: all may be tried again.
                self.memory.busy.clear();
                self.memory.killing.clear();
                return;
            }
        };
        match done {
            Done::Volumes(result) => self.handle_volumes(result),
            Done::SandboxCreated(result) => self.handle_sandbox(result),
            Done::SandboxStopped(id, result) => {
                self.memory.busy.remove(&Op::Sandbox);
                match result {
                    Ok(()) => {
                        self.memory.stopped_sandboxes.insert(id);
                        self.succeeded(&Op::Sandbox);
                    }
                    Err(error) => {
                        self.complain(Op::Sandbox, "FailedKillPod", &format!("error killing pod: {error}"))
                    }
                }
            }
            Done::Started(name, result) => self.handle_started(name, result),
            Done::Killed(id, result) => {
                if let Err(error) = result {
                    tracing::warn!(pod = pod::display(&self.pod), id, error, "container not stopped");
                    self.wake_at = Some(Timestamp::now() + super::RETRY_FIRST);
                }
                self.memory.killing.remove(&id);
                self.exits.insert(id);
            }
            Done::Removed(id, result) => {
                let op = Op::Remove(id);
                self.memory.busy.remove(&op);
                match result {
                    Ok(()) => self.succeeded(&op),
                    Err(error) => {
                        tracing::warn!(pod = pod::display(&self.pod), error, "not removed");
                        self.retry_later(op, None);
                    }
                }
            }
            Done::TornDown(result) => {
                self.memory.busy.remove(&Op::Teardown);
                match result {
                    Ok(()) => {
                        self.memory.torn_down = true;
                        self.memory.volumes_ready = false;
                        self.succeeded(&Op::Teardown);
                    }
                    Err(error) => {
                        self.complain(Op::Teardown, "FailedKillPod", &format!("error killing pod: {error}"))
                    }
                }
            }
            Done::Published(sent, result) => self.handle_published(*sent, result),
            Done::Deleted(result) => self.handle_deleted(result),
        }
    }

    fn complain(&mut self, op: Op, reason: &str, message: &str) {
        self.context.recorder.pod(&self.pod, Type::Warning, reason, message);
        tracing::warn!(pod = pod::display(&self.pod), reason, message);
        self.retry_later(op, None);
    }

    fn handle_volumes(&mut self, result: Result<Prepared, String>) {
        self.memory.busy.remove(&Op::Volumes);
        match result {
            Ok(prepared) => {
                self.volumes = prepared.paths;
                self.held = prepared.held;
                self.refresh_volumes_at =
                    [self.refresh_volumes_at, prepared.refresh_at].into_iter().flatten().min();
                // Directories made while the pod was being ended go with the next teardown.
                if self.memory.ending.is_none() && !self.memory.terminal {
                    self.memory.volumes_ready = true;
                } else {
                    self.memory.torn_down = false;
                }
                self.succeeded(&Op::Volumes);
            }
            Err(error) if self.memory.volumes_ready => {
                tracing::warn!(pod = pod::display(&self.pod), error, "volumes not refreshed");
                self.refresh_volumes_at = Some(Timestamp::now() + super::RETRY_MAX);
            }
            Err(error) => self.complain(Op::Volumes, "FailedMount", &error),
        }
    }

    fn handle_sandbox(&mut self, result: Result<(), String>) {
        self.memory.busy.remove(&Op::Sandbox);
        match result {
            Ok(()) => self.succeeded(&Op::Sandbox),
            Err(error) => {
                let text = format!("Failed to create pod sandbox: {error}");
                self.complain(Op::Sandbox, "FailedCreatePodSandBox", &text);
            }
        }
    }

    fn handle_started(&mut self, name: String, result: Result<(), StartError>) {
        let op = Op::Start(name.clone());
        self.memory.busy.remove(&op);
        match result {
            Ok(()) => {
                self.waiting.remove(&name);
                self.succeeded(&op);
            }
            Err(error) => {
                self.retry_later(op, Some(error.retry_after));
                self.waiting.insert(name, Waiting { reason: error.reason, message: error.message });
            }
        }
    }
}

async fn create_sandbox(context: &Context, pod: &Pod, attempt: u32) -> Result<(), String> {
    let spec = pod.spec.clone().unwrap_or_default();
    let uid = pod::uid(pod);
    context.cgroups.prepare_pod(&spec, uid);
    let logs = runtime_config::log_dir(&context.config, pod);
    tokio::fs::create_dir_all(&logs).await.map_err(|error| format!("{}: {error}", logs.display()))?;
    let config = sandbox_config(context, pod, attempt).await;
    let handler = match &spec.runtime_class_name {
        Some(name) => runtime_handler(context, name).await?,
        None => String::new(),
    };
    let id = context.runtime.run_pod_sandbox(config, &handler).await.map_err(|error| error.to_string())?;
    context.owners.add(&id, uid);
    Ok(())
}

async fn runtime_handler(context: &Context, name: &str) -> Result<String, String> {
    let api = kube::Api::<k8s_openapi::api::node::v1::RuntimeClass>::all(context.client.clone());
    match api.get_opt(name).await {
        Ok(Some(class)) => Ok(class.handler),
        Ok(None) => Err(format!("RuntimeClass \"{name}\" not found")),
        Err(error) => Err(error.to_string()),
    }
}

async fn sandbox_config(context: &Context, pod: &Pod, attempt: u32) -> k8s_cri::v1::PodSandboxConfig {
    let spec = pod.spec.clone().unwrap_or_default();
    let cgroup = context.cgroups.pod_path(&spec, pod::uid(pod));
    let dns = context.host_dns().await;
    runtime_config::sandbox(pod, &context.config, &cgroup, &dns, attempt)
}

async fn teardown(context: &Context, pod: &Pod) -> Result<(), String> {
    let uid = pod::uid(pod);
    context.volumes.unmount(uid).await?;
    context.cgroups.remove_pod(uid).map_err(|error| format!("cgroup of the pod: {error}"))
}

impl Start {
    fn event(&self, kind: Type, reason: &str, message: impl Into<String>) {
        self.context.recorder.container(&self.pod, &self.entry, kind, reason, message);
    }

    async fn run(&self) -> Result<(), StartError> {
        let image = tokio::select! {
            image = self.image() => image?,
            () = self.ending.cancelled() => return Err(StartError::config("the pod is ending".to_owned())),
        };
        let config = self.config(&image).await.map_err(|why| {
            self.event(Type::Warning, "Failed", format!("Error: {why}"));
            StartError::config(why)
        })?;
        let log_dir = runtime_config::log_dir(&self.context.config, &self.pod).join(self.entry.name());
        let _ = tokio::fs::create_dir_all(log_dir).await;
        let sandbox = sandbox_config(&self.context, &self.pod, self.sandbox_attempt).await;
        let failed = |reason: &str, why: String| {
            self.event(Type::Warning, "Failed", format!("Error: {why}"));
            StartError { reason: reason.to_owned(), message: why, retry_after: CONFIG_RETRY }
        };
        let runtime = &self.context.runtime;
        let id = runtime
            .create_container(&self.sandbox_id, config, sandbox)
            .await
            .map_err(|error| failed("CreateContainerError", error.message))?;
        self.context.owners.add(&id, pod::uid(&self.pod));
        self.event(Type::Normal, "Created", "Container created");
        runtime.start_container(&id).await.map_err(|error| failed("RunContainerError", error.message))?;
        self.event(Type::Normal, "Started", "Container started");
        let hook =
            self.entry.container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.post_start.as_ref());
        if let Some(hook) = hook
            && let Err(why) = self.hook(&id, hook).await
        {
            tracing::warn!(pod = pod::display(&self.pod), why, "post-start hook failed");
            self.event(Type::Warning, "FailedPostStartHook", "PostStartHook failed");
            let _ = runtime.stop_container(&id, GRACE_MIN).await;
            let reason = "PostStartHookError".to_owned();
            return Err(StartError {
                reason,
                message: "PostStartHook failed".into(),
                retry_after: Duration::ZERO,
            });
        }
        Ok(())
    }

    async fn image(&self) -> Result<k8s_cri::v1::Image, StartError> {
        let spec = self.pod.spec.clone().unwrap_or_default();
        let names = spec.image_pull_secrets.unwrap_or_default();
        let references = names.into_iter().map(|secret| (Kind::Secret, secret.name)).collect();
        let sources = self.context.volumes.sources(&self.pod, references).await.unwrap_or_default();
        let container = &self.entry.container;
        let request = images::Request {
            pod_uid: pod::uid(&self.pod),
            image: container.image.as_deref().unwrap_or_default(),
            policy: container.image_pull_policy.as_deref(),
            sandbox: sandbox_config(&self.context, &self.pod, self.sandbox_attempt).await,
            secrets: sources.into_values().flatten().collect(),
        };
        let found = self.context.images.ensure(request, |progress| self.image_progress(progress)).await;
        found.map_err(|error| {
            if error.reason != "ImagePullBackOff" || self.attempt == 0 {
                self.event(Type::Warning, "Failed", format!("Error: {}", error.reason));
            }
            StartError {
                reason: error.reason.to_owned(),
                message: error.message,
                retry_after: error.retry_after,
            }
        })
    }

    fn image_progress(&self, progress: Progress) {
        let image = self.entry.container.image.as_deref().unwrap_or_default();
        match progress {
            Progress::Present => {
                let text = format!(
                    "Container image \"{image}\" already present on machine and can be accessed by the pod"
                );
                self.event(Type::Normal, "Pulled", text);
            }
            Progress::Pulling => self.event(Type::Normal, "Pulling", format!("Pulling image \"{image}\"")),
            Progress::Pulled { took, size_bytes } => {
                let text = format!(
                    "Successfully pulled image \"{image}\" in {took:.3?} ({took:.3?} including waiting). \
                     Image size: {size_bytes} bytes."
                );
                self.event(Type::Normal, "Pulled", text);
            }
            Progress::Failed(message) => self.event(Type::Warning, "Failed", message),
            Progress::BackOff(message) => self.event(Type::Normal, "BackOff", message),
            Progress::NeverPulled(message) => self.event(Type::Warning, "ErrImageNeverPull", message),
            Progress::Invalid(message) => self.event(Type::Warning, "InspectFailed", message),
        }
    }

    async fn config(&self, image: &k8s_cri::v1::Image) -> Result<k8s_cri::v1::ContainerConfig, String> {
        let (context, pod, container) = (&self.context, &self.pod, &self.entry.container);
        let spec = pod.spec.clone().unwrap_or_default();
        let sources = context.volumes.sources(pod, env::references(container)).await?;
        let links = spec.enable_service_links.unwrap_or(true);
        let services = env::service_variables(pod::namespace(pod), links, &*context.services)
            .ok_or("services have not yet been read at least once, cannot construct envvars")?;
        let environment = env::build(pod, container, &context.facts(&self.pod_ips), &sources, &services)?;
        let hosts_file = self.write_hosts_file().await.map_err(|error| format!("hosts file: {error}"))?;
        let termination_log =
            self.make_termination_log().await.map_err(|error| format!("termination log: {error}"))?;
        runtime_config::container(Parts {
            pod,
            spec: &spec,
            entry: &self.entry,
            attempt: self.attempt,
            image,
            environment,
            volumes: &self.volumes,
            hosts_file: &hosts_file,
            termination_log: &termination_log,
            memory_capacity: context.capacity.memory_bytes,
            target: self.target.as_deref(),
        })
    }

    async fn write_hosts_file(&self) -> std::io::Result<PathBuf> {
        let path = self.context.hosts_file(&self.pod);
        let of_host = tokio::fs::read_to_string("/etc/hosts").await.unwrap_or_default();
        let domain = &self.context.config.cluster_domain;
        let text = crate::dns::hosts_file(&self.pod, &self.pod_ips, domain, &of_host);
        if let Some(parent) = path.parent() {
            tokio::fs::create_dir_all(parent).await?;
        }
        // In place, since running containers have this very file mounted.
        if tokio::fs::read_to_string(&path).await.is_ok_and(|current| current == text) {
            return Ok(path);
        }
        tokio::fs::write(&path, text).await?;
        Ok(path)
    }

    async fn make_termination_log(&self) -> std::io::Result<PathBuf> {
        use std::os::unix::fs::PermissionsExt;
        let pod_dir = self.context.volumes.pod_dir(pod::uid(&self.pod));
        let directory = pod_dir.join("containers").join(self.entry.name());
        tokio::fs::create_dir_all(&directory).await?;
        let path = directory.join(format!("{}.message", self.attempt));
        tokio::fs::write(&path, "").await?;
        // Any user of the container may leave a message.
        tokio::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).await?;
        Ok(path)
    }

    async fn hook(&self, id: &str, hook: &LifecycleHandler) -> Result<(), String> {
        run_hook(&self.context, &self.entry, id, hook, &self.pod_ips, HOOK_LIMIT).await
    }
}

async fn run_hook(
    context: &Context,
    entry: &Entry,
    id: &str,
    hook: &LifecycleHandler,
    pod_ips: &[String],
    limit: Duration,
) -> Result<(), String> {
    if let Some(action) = &hook.exec {
        return probes::exec(&context.runtime, id, action.command.clone().unwrap_or_default(), limit).await;
    }
    if let Some(action) = &hook.http_get {
        let pod_ip = pod_ips.first().map_or("127.0.0.1", String::as_str);
        return dial::http_get(&entry.container, action, pod_ip, HOOK_AGENT, limit).await.map(drop);
    }
    if let Some(action) = &hook.sleep {
        let duration = Duration::from_secs(u64::try_from(action.seconds).unwrap_or(0));
        tokio::time::sleep(duration.min(limit)).await;
        return Ok(());
    }
    Err("invalid handler: no action".to_owned())
}

/// The end of one container: its pre-stop hook, the stop signal, the kill.
struct Kill {
    context: Arc<Context>,
    pod: Arc<Pod>,
    entry: Option<Entry>,
    id: String,
    name: String,
    reason: KillReason,
    deadline: Timestamp,
    pod_ips: Vec<String>,
    again: bool,
}

impl Kill {
    fn message(&self) -> String {
        let name = &self.name;
        match self.reason {
            KillReason::PodEnding | KillReason::SandboxChanged => format!("Stopping container {name}"),
            KillReason::DefinitionChanged => {
                format!("Container {name} definition changed, will be restarted")
            }
            KillReason::LivenessProbe => format!("Container {name} failed liveness probe, will be restarted"),
            KillReason::StartupProbe => format!("Container {name} failed startup probe, will be restarted"),
            KillReason::Unknown => {
                format!("Container {name} is in \"unknown\" state, try killing it before restart")
            }
        }
    }

    fn left(&self) -> Duration {
        since(Timestamp::now(), self.deadline)
    }

    async fn run(&self) -> Result<(), String> {
        if let Some(entry) = self.entry.as_ref().filter(|_| !self.again) {
            self.context.recorder.container(&self.pod, entry, Type::Normal, "Killing", self.message());
            let hook = entry.container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.pre_stop.as_ref());
            if let Some(hook) = hook
                && self.left() > Duration::ZERO
            {
                self.pre_stop(entry, hook).await;
            }
        }
        let grace = self.left().max(GRACE_MIN);
        // Whole seconds are what CRI knows; rounding up keeps the promise.
        let grace = Duration::from_secs(grace.as_secs_f64().ceil() as u64);
        self.context.runtime.stop_container(&self.id, grace).await.map_err(|error| error.to_string())
    }

    async fn pre_stop(&self, entry: &Entry, hook: &LifecycleHandler) {
        let limit = self.left();
        let work = run_hook(&self.context, entry, &self.id, hook, &self.pod_ips, limit);
        let failure = match tokio::time::timeout(limit, work).await {
            Ok(Ok(())) => return,
            Ok(Err(why)) => why,
            Err(_) => "it did not end within the grace period".to_owned(),
        };
        tracing::warn!(pod = pod::display(&self.pod), container = self.name, failure, "pre-stop hook failed");
        self.context.recorder.container(
            &self.pod,
            entry,
            Type::Warning,
            "FailedPreStopHook",
            "PreStopHook failed",
        );
    }
}
