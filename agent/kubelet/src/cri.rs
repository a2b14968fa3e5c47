//! The CRI v1 client, over the runtime's unix socket.
//!
//! A thin layer: one method per call that the kubelet makes, with the time limit that the call deserves. Image pulls
//! and pod sandboxes may take long; queries may not.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_cri::v1 as api;
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use tonic::transport::{Channel, Endpoint};

/// CRI labels that tie a sandbox or container to its pod; the same words upstream writes.
pub const LABEL_POD_NAME: &str = "io.kubernetes.pod.name";
pub const LABEL_POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
pub const LABEL_POD_UID: &str = "io.kubernetes.pod.uid";
pub const LABEL_CONTAINER_NAME: &str = "io.kubernetes.container.name";

const QUERY: Duration = Duration::from_secs(30);
const CHANGE: Duration = Duration::from_secs(240);
const PULL: Duration = Duration::from_secs(3600);
/// Messages of the largest nodes (lists of containers, exec output) pass.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// Why a CRI call failed, in the runtime's words.
#[derive(Clone, Debug, thiserror::Error)]
#[error("rpc error: code = {code:?} desc = {message}")]
pub struct Error {
    pub code: tonic::Code,
    pub message: String,
}

impl Error {
    /// Whether the runtime does not know the object: for a removal that is success.
    pub fn is_not_found(&self) -> bool {
        self.code == tonic::Code::NotFound
    }
}

impl From<tonic::Status> for Error {
    fn from(status: tonic::Status) -> Self {
        Self { code: status.code(), message: status.message().to_owned() }
    }
}

pub type Result<T> = std::result::Result<T, Error>;

/// Opens a lazily connected channel to a unix socket; it reconnects by itself when the runtime restarts.
pub fn channel(socket: &Path) -> Channel {
    let path: PathBuf = socket.to_path_buf();
    Endpoint::from_static("http://containerd").connect_with_connector_lazy(tower::service_fn(move |_| {
        let path = path.clone();
        async move {
            let stream = tokio::net::UnixStream::connect(path).await?;
            Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(stream))
        }
    }))
}

/// A CRI runtime and image service behind one channel. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Runtime {
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
}

fn timed<T>(limit: Duration, message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(limit);
    request
}

async fn bounded<T>(
    limit: Duration,
    call: impl Future<Output = std::result::Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T> {
    match tokio::time::timeout(limit, call).await {
        Ok(answer) => Ok(answer?.into_inner()),
        Err(_) => Err(Error {
            code: tonic::Code::DeadlineExceeded,
            message: format!("the container runtime did not answer within {limit:?}"),
        }),
    }
}

impl Runtime {
    pub fn new(channel: Channel) -> Self {
        Self {
            runtime: RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX),
            images: ImageServiceClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX),
        }
    }

    pub async fn version(&self) -> Result<api::VersionResponse> {
        bounded(
            QUERY,
            self.runtime.clone().version(timed(QUERY, api::VersionRequest { version: "v1".into() })),
        )
        .await
    }

    /// Conditions `RuntimeReady` and `NetworkReady`.
    pub async fn status(&self) -> Result<api::RuntimeStatus> {
        let request = timed(QUERY, api::StatusRequest { verbose: false });
        Ok(bounded(QUERY, self.runtime.clone().status(request)).await?.status.unwrap_or_default())
    }

    /// The image of sandboxes, if the runtime tells it, as containerd does.
    pub async fn sandbox_image(&self) -> Result<Option<String>> {
        let request = timed(QUERY, api::StatusRequest { verbose: true });
        let info = bounded(QUERY, self.runtime.clone().status(request)).await?.info;
        let config = info.get("config").and_then(|text| serde_json::from_str::<serde_json::Value>(text).ok());
        Ok(config.and_then(|config| Some(config["sandboxImage"].as_str()?.to_owned())))
    }

    pub async fn run_pod_sandbox(
        &self,
        config: api::PodSandboxConfig,
        runtime_handler: &str,
    ) -> Result<String> {
        let request =
            api::RunPodSandboxRequest { config: Some(config), runtime_handler: runtime_handler.to_owned() };
        Ok(bounded(CHANGE, self.runtime.clone().run_pod_sandbox(timed(CHANGE, request)))
            .await?
            .pod_sandbox_id)
    }

    /// Stops the sandbox and what still runs in it. A sandbox that is gone counts as stopped.
    pub async fn stop_pod_sandbox(&self, id: &str) -> Result<()> {
        let request = api::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        gone_is_done(bounded(CHANGE, self.runtime.clone().stop_pod_sandbox(timed(CHANGE, request))).await)
    }

    pub async fn remove_pod_sandbox(&self, id: &str) -> Result<()> {
        let request = api::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        gone_is_done(bounded(CHANGE, self.runtime.clone().remove_pod_sandbox(timed(CHANGE, request))).await)
    }

    /// Sandboxes of one pod, or of all pods that a kubelet made.
    pub async fn list_pod_sandboxes(&self, pod_uid: Option<&str>) -> Result<Vec<api::PodSandbox>> {
        let filter = api::PodSandboxFilter { label_selector: by_uid(pod_uid), ..Default::default() };
        let request = timed(QUERY, api::ListPodSandboxRequest { filter: Some(filter) });
        let mut items = bounded(QUERY, self.runtime.clone().list_pod_sandbox(request)).await?.items;
        items.retain(|sandbox| sandbox.labels.contains_key(LABEL_POD_UID));
        Ok(items)
    }

    pub async fn pod_sandbox_status(&self, id: &str, verbose: bool) -> Result<api::PodSandboxStatusResponse> {
        let request = api::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose };
        bounded(QUERY, self.runtime.clone().pod_sandbox_status(timed(QUERY, request))).await
    }

    pub async fn list_containers(&self, pod_uid: Option<&str>) -> Result<Vec<api::Container>> {
        let filter = api::ContainerFilter { label_selector: by_uid(pod_uid), ..Default::default() };
        let request = timed(QUERY, api::ListContainersRequest { filter: Some(filter) });
        let mut items = bounded(QUERY, self.runtime.clone().list_containers(request)).await?.containers;
        items.retain(|container| container.labels.contains_key(LABEL_POD_UID));
        Ok(items)
    }

    pub async fn container_status(&self, id: &str) -> Result<api::ContainerStatus> {
        let request = api::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        let answer = bounded(QUERY, self.runtime.clone().container_status(timed(QUERY, request))).await?;
        answer.status.ok_or_else(|| Error {
            code: tonic::Code::Internal,
            message: format!("the runtime answered without a status for container {id}"),
        })
    }

    pub async fn create_container(
        &self,
        sandbox_id: &str,
        config: api::ContainerConfig,
        sandbox_config: api::PodSandboxConfig,
    ) -> Result<String> {
        let request = api::CreateContainerRequest {
            pod_sandbox_id: sandbox_id.to_owned(),
            config: Some(config),
            sandbox_config: Some(sandbox_config),
        };
        Ok(bounded(CHANGE, self.runtime.clone().create_container(timed(CHANGE, request))).await?.container_id)
    }

    pub async fn start_container(&self, id: &str) -> Result<()> {
        let request = api::StartContainerRequest { container_id: id.to_owned() };
        bounded(CHANGE, self.runtime.clone().start_container(timed(CHANGE, request))).await.map(drop)
    }

    /// Sends the stop signal, waits for `grace`, then kills. Returns when the container has stopped.
    pub async fn stop_container(&self, id: &str, grace: Duration) -> Result<()> {
        let limit = CHANGE + grace;
        let timeout = i64::try_from(grace.as_secs()).unwrap_or(i64::MAX);
        let request = api::StopContainerRequest { container_id: id.to_owned(), timeout };
        gone_is_done(bounded(limit, self.runtime.clone().stop_container(timed(limit, request))).await)
    }

    pub async fn remove_container(&self, id: &str) -> Result<()> {
        let request = api::RemoveContainerRequest { container_id: id.to_owned() };
        gone_is_done(bounded(CHANGE, self.runtime.clone().remove_container(timed(CHANGE, request))).await)
    }

    pub async fn reopen_container_log(&self, id: &str) -> Result<()> {
        let request = api::ReopenContainerLogRequest { container_id: id.to_owned() };
        bounded(QUERY, self.runtime.clone().reopen_container_log(timed(QUERY, request))).await.map(drop)
    }

    pub async fn update_container_resources(
        &self,
        id: &str,
        linux: api::LinuxContainerResources,
    ) -> Result<()> {
        let request = api::UpdateContainerResourcesRequest {
            container_id: id.to_owned(),
            linux: Some(linux),
            ..Default::default()
        };
        bounded(QUERY, self.runtime.clone().update_container_resources(timed(QUERY, request))).await.map(drop)
    }

    /// Runs a command and collects what it prints; the runtime kills it after `limit`.
    pub async fn exec_sync(
        &self,
        id: &str,
        cmd: Vec<String>,
        limit: Duration,
    ) -> Result<api::ExecSyncResponse> {
        let timeout = i64::try_from(limit.as_secs().max(1)).unwrap_or(i64::MAX);
        let request = api::ExecSyncRequest { container_id: id.to_owned(), cmd, timeout };
        bounded(limit + QUERY, self.runtime.clone().exec_sync(timed(limit + QUERY, request))).await
    }

    /// Prepares a streaming exec; the answer is the URL of the runtime's streaming server.
    pub async fn exec(&self, request: api::ExecRequest) -> Result<String> {
        Ok(bounded(QUERY, self.runtime.clone().exec(timed(QUERY, request))).await?.url)
    }

    pub async fn attach(&self, request: api::AttachRequest) -> Result<String> {
        Ok(bounded(QUERY, self.runtime.clone().attach(timed(QUERY, request))).await?.url)
    }

    /// The runtime's stream of container events; `Unimplemented` before containerd 1.7.
    pub async fn container_events(&self) -> Result<tonic::Streaming<api::ContainerEventResponse>> {
        Ok(self.runtime.clone().get_container_events(api::GetEventsRequest {}).await?.into_inner())
    }

    pub async fn list_container_stats(&self) -> Result<Vec<api::ContainerStats>> {
        let request = timed(QUERY, api::ListContainerStatsRequest { filter: None });
        Ok(bounded(QUERY, self.runtime.clone().list_container_stats(request)).await?.stats)
    }

    /// The file systems that images are on.
    pub async fn image_fs_info(&self) -> Result<Vec<api::FilesystemUsage>> {
        let request = timed(QUERY, api::ImageFsInfoRequest {});
        Ok(bounded(QUERY, self.images.clone().image_fs_info(request)).await?.image_filesystems)
    }

    /// Removes an image with all its names. One that is gone counts as removed.
    pub async fn remove_image(&self, id: &str) -> Result<()> {
        let image = api::ImageSpec { image: id.to_owned(), ..Default::default() };
        let request = timed(CHANGE, api::RemoveImageRequest { image: Some(image) });
        gone_is_done(bounded(CHANGE, self.images.clone().remove_image(request)).await)
    }

    pub async fn list_images(&self) -> Result<Vec<api::Image>> {
        let request = timed(QUERY, api::ListImagesRequest { filter: None });
        Ok(bounded(QUERY, self.images.clone().list_images(request)).await?.images)
    }

    /// The image behind a name, digest or id, if it is present.
    pub async fn image_status(&self, image: api::ImageSpec) -> Result<Option<api::Image>> {
        let request = timed(QUERY, api::ImageStatusRequest { image: Some(image), verbose: false });
        Ok(bounded(QUERY, self.images.clone().image_status(request)).await?.image)
    }

    pub async fn pull_image(
        &self,
        image: api::ImageSpec,
        auth: Option<api::AuthConfig>,
        sandbox_config: Option<api::PodSandboxConfig>,
    ) -> Result<String> {
        let request = api::PullImageRequest { image: Some(image), auth, sandbox_config };
        Ok(bounded(PULL, self.images.clone().pull_image(timed(PULL, request))).await?.image_ref)
    }
}

fn gone_is_done<T>(answer: Result<T>) -> Result<()> {
    match answer {
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(()),
    }
}

fn by_uid(pod_uid: Option<&str>) -> HashMap<String, String> {
    pod_uid.map(|uid| (LABEL_POD_UID.to_owned(), uid.to_owned())).into_iter().collect()
}
