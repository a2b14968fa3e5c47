//! The scheduler: finds a node for each pending pod and binds it.

use tokio_util::sync::CancellationToken;

/// Runs the scheduler until `cancel` is cancelled.
pub async fn run(client: kube::Client, cancel: CancellationToken) -> anyhow::Result<()> {
    let _ = client;
    cancel.cancelled().await;
    Ok(())
}
