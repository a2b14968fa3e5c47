//! The API server, by way of which agents of other nodes are asked.

use std::path::Path;

use anyhow::Context;
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client, Config,
    api::ListParams,
    config::{KubeConfigOptions, Kubeconfig},
};

/// As kubectl finds it: the file that is named, or KUBECONFIG, or ~/.kube/config, or the service account of a pod.
///
/// # Errors
/// Names what of these could not be read.
pub async fn client(kubeconfig: Option<&Path>) -> anyhow::Result<Client> {
    // Fails only where a provider is installed already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let config = match kubeconfig {
        Some(path) => {
            let named = || format!("reading {}", path.display());
            let read = Kubeconfig::read_from(path).with_context(named)?;
            Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await.with_context(named)?
        }
        None => Config::infer().await.context("no API server is known (--kubeconfig, KUBECONFIG)")?,
    };
    Client::try_from(config).context("talking to the API server")
}

/// The names of all nodes, in order.
pub async fn nodes(client: &Client) -> anyhow::Result<Vec<String>> {
    let api = Api::<Node>::all(client.clone());
    let nodes = api.list_metadata(&ListParams::default()).await.context("listing the nodes")?;
    let mut names: Vec<String> = nodes.items.into_iter().filter_map(|node| node.metadata.name).collect();
    names.sort_unstable();
    Ok(names)
}
