//! This node's EndpointSlice of the cluster's DNS Service: the agent answers DNS itself, and says so here.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};

use crate::watch;

const NAMESPACE: &str = "kube-system";
const SERVICE: &str = "kube-dns";
const RETRY: Duration = Duration::from_secs(2);
/// How often a slice that somebody deleted or changed is put back.
const CHECK: Duration = Duration::from_secs(60);

/// Keeps the slice as it should be. To be called once the server listens; never returns.
pub async fn run(client: Client, node: String, address: IpAddr) {
    let mut failing = false;
    loop {
        let pause = match ensure(&client, &node, address).await {
            Ok(changed) => {
                if changed {
                    tracing::info!("cluster DNS of this node announced");
                }
                failing = false;
                CHECK
            }
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(error = watch::chain(&error), "announcing cluster DNS of this node");
                }
                RETRY
            }
        };
        tokio::time::sleep(pause).await;
    }
}

/// Creates or repairs the slice; returns whether it had to.
async fn ensure(client: &Client, node: &str, address: IpAddr) -> kube::Result<bool> {
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), NAMESPACE);
    let nodes: Api<Node> = Api::all(client.clone());
    // Owned by the Node, the slice goes with it.
    let uid = nodes.get_opt(node).await?.and_then(|node| node.metadata.uid);
    let mut desired = slice(node, address, uid);
    let name = desired.metadata.name.clone().unwrap_or_default();
    let Some(present) = slices.get_opt(&name).await? else {
        slices.create(&PostParams::default(), &desired).await?;
        return Ok(true);
    };
    let same = present.endpoints == desired.endpoints
        && present.ports == desired.ports
        && present.metadata.labels == desired.metadata.labels
        && present.metadata.owner_references == desired.metadata.owner_references;
    if same {
        return Ok(false);
    }
    desired.metadata.resource_version = present.metadata.resource_version;
    slices.replace(&name, &PostParams::default(), &desired).await?;
    Ok(true)
}

fn slice(node: &str, address: IpAddr, uid: Option<String>) -> EndpointSlice {
    let labels = [
        ("kubernetes.io/service-name", SERVICE),
        ("endpointslice.kubernetes.io/managed-by", "seaway-agent.seaway.dev"),
    ];
    let port = |name: &str, protocol: &str| EndpointPort {
        name: Some(name.to_owned()),
        protocol: Some(protocol.to_owned()),
        port: Some(53),
        ..EndpointPort::default()
    };
    let owner = uid.map(|uid| OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: node.to_owned(),
        uid,
        ..OwnerReference::default()
    });
    EndpointSlice {
        metadata: ObjectMeta {
            name: Some(format!("{SERVICE}-{node}")),
            namespace: Some(NAMESPACE.to_owned()),
            labels: Some(
                labels
                    .map(|(key, value)| (key.to_owned(), value.to_owned()))
                    .into_iter()
                    .collect::<BTreeMap<_, _>>(),
            ),
            owner_references: owner.map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        address_type: if address.is_ipv4() { "IPv4".to_owned() } else { "IPv6".to_owned() },
        endpoints: Some(vec![Endpoint {
            addresses: vec![address.to_string()],
            conditions: Some(EndpointConditions {
                ready: Some(true),
                serving: Some(true),
                terminating: Some(false),
            }),
            node_name: Some(node.to_owned()),
            ..Endpoint::default()
        }]),
        ports: Some(vec![port("dns", "UDP"), port("dns-tcp", "TCP")]),
    }
}
