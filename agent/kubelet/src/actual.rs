//! What the runtime says about one pod, in plain data: the input of [`crate::plan`] and [`crate::status`].

use jiff::Timestamp;
use k8s_cri::v1 as cri;

/// Annotations on containers, read back after a restart of the kubelet.
pub const ANNOTATION_HASH: &str = "io.kubernetes.container.hash";
pub const ANNOTATION_RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
pub const ANNOTATION_GRACE: &str = "io.kubernetes.pod.terminationGracePeriod";
pub const ANNOTATION_TERMINATION_PATH: &str = "io.kubernetes.container.terminationMessagePath";
pub const ANNOTATION_TERMINATION_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Created,
    Running,
    Exited,
    Unknown,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sandbox {
    pub id: String,
    pub attempt: u32,
    pub ready: bool,
    pub created_at: Timestamp,
    /// Addresses in the order the runtime gives them; empty for a pod in the host's network.
    pub ips: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    pub id: String,
    pub name: String,
    pub sandbox_id: String,
    /// Lives before this one.
    pub attempt: u32,
    pub state: State,
    pub created_at: Timestamp,
    pub started_at: Timestamp,
    pub finished_at: Timestamp,
    pub exit_code: i32,
    pub reason: String,
    pub message: String,
    pub image: String,
    pub image_ref: String,
    pub hash: String,
}

impl Container {
    pub fn is_running(&self) -> bool {
        self.state == State::Running
    }
}

/// Sandboxes and containers of one pod, newest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Actual {
    pub sandboxes: Vec<Sandbox>,
    pub containers: Vec<Container>,
}

impl Actual {
    pub fn sort(&mut self) {
        self.sandboxes.sort_by_key(|s| std::cmp::Reverse((s.attempt, s.created_at)));
        self.containers.sort_by_key(|c| std::cmp::Reverse((c.created_at, c.attempt)));
    }

    /// The sandbox that pods live in now, if it is up.
    pub fn ready_sandbox(&self) -> Option<&Sandbox> {
        self.sandboxes.first().filter(|sandbox| sandbox.ready)
    }

    /// The newest container of that name.
    pub fn newest(&self, name: &str) -> Option<&Container> {
        self.containers.iter().find(|container| container.name == name)
    }

    pub fn by_name<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Container> {
        self.containers.iter().filter(move |container| container.name == name)
    }

    pub fn any_running(&self) -> bool {
        self.containers.iter().any(Container::is_running)
    }
}

/// Nanoseconds since 1970, as CRI gives them; 0 means never.
pub fn timestamp(nanoseconds: i64) -> Timestamp {
    Timestamp::from_nanosecond(i128::from(nanoseconds)).unwrap_or(Timestamp::UNIX_EPOCH)
}

pub fn state_from_cri(state: i32) -> State {
    match cri::ContainerState::try_from(state) {
        Ok(cri::ContainerState::ContainerCreated) => State::Created,
        Ok(cri::ContainerState::ContainerRunning) => State::Running,
        Ok(cri::ContainerState::ContainerExited) => State::Exited,
        Ok(cri::ContainerState::ContainerUnknown) | Err(_) => State::Unknown,
    }
}

/// A container from the runtime's full status.
pub fn container_from_cri(status: &cri::ContainerStatus, sandbox_id: &str) -> Container {
    let metadata = status.metadata.clone().unwrap_or_default();
    Container {
        id: status.id.clone(),
        name: metadata.name,
        sandbox_id: sandbox_id.to_owned(),
        attempt: metadata.attempt,
        state: state_from_cri(status.state),
        created_at: timestamp(status.created_at),
        started_at: timestamp(status.started_at),
        finished_at: timestamp(status.finished_at),
        exit_code: status.exit_code,
        reason: status.reason.clone(),
        message: status.message.clone(),
        image: status.image.as_ref().map(|image| image.image.clone()).unwrap_or_default(),
        image_ref: status.image_ref.clone(),
        hash: status.annotations.get(ANNOTATION_HASH).cloned().unwrap_or_default(),
    }
}
