//! Starts the tasks of the kubelet and waits for the end.

use anyhow::Context;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::cri;

/// Runs the kubelet until `cancel`. Running pods are left alone at the end, so that a restart finds them.
pub async fn run(client: kube::Client, config: Config, cancel: CancellationToken) -> anyhow::Result<()> {
    let _client = client;
    let runtime = cri::Runtime::new(cri::channel(&config.containerd_socket));
    let version = runtime.version().await.with_context(|| {
        format!("cannot reach the container runtime at {}", config.containerd_socket.display())
    })?;
    tracing::info!(
        runtime = version.runtime_name,
        version = version.runtime_version,
        "container runtime found"
    );
    cancel.cancelled().await;
    Ok(())
}
