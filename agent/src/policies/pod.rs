//! A Pod with what policies depend on, and nothing more: that of 100,000 others need not be read.

use std::borrow::Cow;
use std::net::IpAddr;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Resource, ResourceExt};
use policy::{NamedPort, Pod};
use serde::Deserialize;

#[derive(Clone, Debug, Deserialize)]
pub struct PodObject {
    metadata: ObjectMeta,
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    host_network: bool,
    containers: Vec<Container>,
    init_containers: Vec<Container>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Container {
    ports: Vec<Port>,
    restart_policy: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Port {
    name: String,
    container_port: u16,
    protocol: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    phase: String,
    #[serde(rename = "podIP")]
    pod_ip: String,
    #[serde(rename = "podIPs")]
    pod_ips: Vec<Address>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct Address {
    #[serde(default)]
    ip: String,
}

impl PodObject {
    pub fn facts(&self) -> Pod {
        let sidecars = self.spec.init_containers.iter().filter(|it| it.restart_policy == "Always");
        let ports = self.spec.containers.iter().chain(sidecars).flat_map(|container| &container.ports);
        let named = ports.filter(|port| !port.name.is_empty()).filter_map(|port| {
            let protocol = policy::protocol(port.protocol.as_deref().unwrap_or("TCP"))?;
            Some(NamedPort { name: port.name.as_str().into(), protocol, number: port.container_port })
        });
        Pod {
            uid: self.metadata.uid.clone().unwrap_or_default(),
            labels: self.labels().clone(),
            addresses: self.addresses(),
            ports: named.collect(),
            is_of_host_network: self.spec.host_network,
        }
    }

    /// What has ended keeps its addresses in its status, and others may have them.
    fn addresses(&self) -> Vec<IpAddr> {
        if matches!(self.status.phase.as_str(), "Succeeded" | "Failed") {
            return Vec::new();
        }
        let all = self.status.pod_ips.iter().filter_map(|address| address.ip.parse().ok());
        let mut addresses: Vec<IpAddr> = all.collect();
        if addresses.is_empty() {
            addresses.extend(self.status.pod_ip.parse::<IpAddr>().ok());
        }
        addresses
    }
}

impl Resource for PodObject {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind(_: &()) -> Cow<'_, str> {
        "Pod".into()
    }

    fn group(_: &()) -> Cow<'_, str> {
        "".into()
    }

    fn version(_: &()) -> Cow<'_, str> {
        "v1".into()
    }

    fn plural(_: &()) -> Cow<'_, str> {
        "pods".into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}
