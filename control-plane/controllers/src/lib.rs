//! The controllers, one file each: every one a level-triggered `reconcile(key)`.

use tokio_util::sync::CancellationToken;

/// What the controllers need to know beyond the API.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// PEM of the cluster's CA, published as ConfigMap `kube-root-ca.crt`; empty publishes nothing.
    pub root_ca_pem: String,
}

/// Runs every controller with the default configuration until `cancel` is cancelled.
pub async fn run(client: kube::Client, cancel: CancellationToken) -> anyhow::Result<()> {
    run_with(client, Config::default(), cancel).await
}

/// Runs every controller until `cancel` is cancelled.
pub async fn run_with(client: kube::Client, config: Config, cancel: CancellationToken) -> anyhow::Result<()> {
    let _ = (client, config);
    cancel.cancelled().await;
    Ok(())
}
