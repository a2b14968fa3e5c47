//! Reads the runtime's state of one pod. What cannot change any more (an exited container, a sandbox's addresses) is
//! asked once.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use k8s_cri::v1 as api;
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use crate::actual::{
    ANNOTATION_TERMINATION_PATH, ANNOTATION_TERMINATION_POLICY, Actual, Container, Sandbox, State,
    container_from_cri, state_from_cri, timestamp,
};
use crate::context::Context;
use crate::cri;
use crate::logs;

/// The longest termination message, of a file and of the end of a log.
const MESSAGE_BYTES_MAX: u64 = 4096;
const LOG_MESSAGE_BYTES_MAX: usize = 2048;
const LOG_MESSAGE_LINES_MAX: usize = 80;

#[derive(Default)]
pub struct Observer {
    containers: HashMap<String, Container>,
    sandboxes: HashMap<String, Sandbox>,
}

impl Observer {
    /// The state now. Containers and sandboxes found are entered as the pod's.
    pub async fn observe(&mut self, context: &Context, uid: &str) -> cri::Result<Actual> {
        let runtime = &context.runtime;
        let (sandboxes, containers) =
            tokio::try_join!(runtime.list_pod_sandboxes(Some(uid)), runtime.list_containers(Some(uid)))?;
        let mut actual = Actual::default();
        for listed in sandboxes {
            context.owners.add(&listed.id, uid);
            match self.sandbox(context, &listed).await {
                Ok(sandbox) => actual.sandboxes.push(sandbox),
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        for listed in containers {
            context.owners.add(&listed.id, uid);
            match self.container(context, &listed).await {
                Ok(container) => actual.containers.push(container),
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        self.containers.retain(|id, _| actual.containers.iter().any(|c| &c.id == id));
        self.sandboxes.retain(|id, _| actual.sandboxes.iter().any(|s| &s.id == id));
        actual.sort();
        Ok(actual)
    }

    async fn sandbox(&mut self, context: &Context, listed: &api::PodSandbox) -> cri::Result<Sandbox> {
        let ready = listed.state == api::PodSandboxState::SandboxReady as i32;
        if let Some(known) = self.sandboxes.get_mut(&listed.id) {
            known.ready = ready;
            return Ok(known.clone());
        }
        let mut ips = Vec::new();
        if ready {
            let status =
                context.runtime.pod_sandbox_status(&listed.id, false).await?.status.unwrap_or_default();
            if let Some(network) = status.network {
                let more = network.additional_ips.into_iter().map(|additional| additional.ip);
                ips.extend(std::iter::once(network.ip).chain(more).filter(|ip| !ip.is_empty()));
            }
        }
        let sandbox = Sandbox {
            id: listed.id.clone(),
            attempt: listed.metadata.as_ref().map_or(0, |metadata| metadata.attempt),
            ready,
            created_at: timestamp(listed.created_at),
            ips,
        };
        self.sandboxes.insert(sandbox.id.clone(), sandbox.clone());
        Ok(sandbox)
    }

    async fn container(&mut self, context: &Context, listed: &api::Container) -> cri::Result<Container> {
        let state = state_from_cri(listed.state);
        if let Some(known) = self.containers.get(&listed.id)
            && known.state == state
        {
            return Ok(known.clone());
        }
        let status = context.runtime.container_status(&listed.id).await?;
        let mut container = container_from_cri(&status, &listed.pod_sandbox_id);
        if container.state == State::Exited {
            let told = termination_message(&status).await;
            if !told.is_empty() {
                let before = std::mem::take(&mut container.message);
                container.message = if before.is_empty() { told } else { format!("{before}: {told}") };
            }
        }
        self.containers.insert(container.id.clone(), container.clone());
        Ok(container)
    }
}

/// What the container left in its termination log, or at the end of its log if it failed and asked for that.
async fn termination_message(status: &api::ContainerStatus) -> String {
    let path = status.annotations.get(ANNOTATION_TERMINATION_PATH);
    let mount = status.mounts.iter().find(|mount| Some(&mount.container_path) == path);
    let mut message = String::new();
    if let Some(mount) = mount {
        message = read_start(Path::new(&mount.host_path)).await.unwrap_or_default();
    }
    let policy = status.annotations.get(ANNOTATION_TERMINATION_POLICY).map(String::as_str);
    if message.is_empty() && policy == Some("FallbackToLogsOnError") && status.exit_code != 0 {
        message = end_of_log(PathBuf::from(&status.log_path)).await;
    }
    message
}

async fn read_start(path: &Path) -> std::io::Result<String> {
    let file = tokio::fs::File::open(path).await?;
    let mut bytes = Vec::new();
    file.take(MESSAGE_BYTES_MAX).read_to_end(&mut bytes).await?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

async fn end_of_log(path: PathBuf) -> String {
    const READ_BYTES_MAX: u64 = 64 << 10;
    let read = async {
        let mut file = tokio::fs::File::open(&path).await?;
        let length = file.metadata().await?.len();
        file.seek(std::io::SeekFrom::Start(length.saturating_sub(READ_BYTES_MAX))).await?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).await?;
        Ok::<_, std::io::Error>(bytes)
    };
    let Ok(bytes) = read.await else { return String::new() };
    let mut texts: Vec<u8> = Vec::new();
    let mut lines: Vec<_> = bytes.split_inclusive(|b| *b == b'\n').filter_map(logs::parse).collect();
    let skip = lines.len().saturating_sub(LOG_MESSAGE_LINES_MAX);
    for line in lines.drain(skip..) {
        texts.extend_from_slice(line.text);
        if !line.partial {
            texts.push(b'\n');
        }
    }
    let from = texts.len().saturating_sub(LOG_MESSAGE_BYTES_MAX);
    String::from_utf8_lossy(&texts[from..]).into_owned()
}
