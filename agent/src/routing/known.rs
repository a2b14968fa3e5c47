//! What the API said of nodes, peers, filters and the configuration, as it was last heard. Kept on disk, so that a restart
//! without the API server changes nothing.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use calico::{AsNumber, BgpConfigurationSpec, BgpFilterSpec, BgpPassword, BgpPeerSpec};
use ipnetwork::IpNetwork;
use k8s_openapi::api::core::v1::Node;
use proxy::Advertisement;
use serde::{Deserialize, Serialize};

use super::standing::Standing;

const AS_NUMBER: &str = "projectcalico.org/ASNumber";
const CLUSTER_ID: &str = "projectcalico.org/RouteReflectorClusterID";
/// The BGPConfiguration of all nodes.
const DEFAULT: &str = "default";

/// The objects, by name.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Known {
    pub nodes: BTreeMap<String, NodeFacts>,
    pub configurations: BTreeMap<String, BgpConfigurationSpec>,
    pub peers: BTreeMap<String, BgpPeerSpec>,
    pub filters: BTreeMap<String, BgpFilterSpec>,
    /// The annotation `seaway.dev/bfd` of those that have it.
    pub bfd_by_configuration: BTreeMap<String, String>,
    pub bfd_by_peer: BTreeMap<String, String>,
}

/// What routing depends on of a node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeFacts {
    pub addresses: Vec<IpAddr>,
    pub labels: BTreeMap<String, String>,
    pub as_number: Option<AsNumber>,
    /// The node is a route reflector of this cluster (RFC 4456).
    pub cluster_id: Option<Ipv4Addr>,
    pub standing: Standing,
}

impl NodeFacts {
    pub fn of(node: &Node) -> (String, NodeFacts) {
        let addresses = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
        let internal = addresses.filter(|address| address.type_ == "InternalIP");
        let name = node.metadata.name.clone().unwrap_or_default();
        let facts = NodeFacts {
            addresses: internal.filter_map(|address| address.address.parse().ok()).collect(),
            labels: node.metadata.labels.clone().unwrap_or_default(),
            as_number: annotation(node, &name, AS_NUMBER),
            cluster_id: annotation(node, &name, CLUSTER_ID),
            standing: Standing::of(node),
        };
        (name, facts)
    }

    /// Whether the node announces nothing of Services.
    fn is_excluded(&self) -> bool {
        self.labels.contains_key(proxy::EXCLUDE) || self.standing == Standing::OutOfService
    }

    /// The address of the family that nodes peer over.
    pub fn address(&self, v4: bool) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|address| address.is_ipv4() == v4)
    }
}

fn annotation<T: std::str::FromStr>(node: &Node, name: &str, key: &str) -> Option<T>
where
    T::Err: std::fmt::Display,
{
    let text = node.metadata.annotations.as_ref()?.get(key)?;
    match text.parse() {
        Ok(value) => Some(value),
        Err(error) => {
            tracing::warn!(node = name, annotation = key, text, %error, "ignoring an annotation");
            None
        }
    }
}

impl Known {
    fn global(&self) -> Option<&BgpConfigurationSpec> {
        self.configurations.get(DEFAULT)
    }

    fn of_node(&self, node: &str) -> Option<&BgpConfigurationSpec> {
        self.configurations.get(&format!("node.{node}"))
    }

    /// The AS of a node; `None` where nothing is said of it.
    pub fn as_number(&self, node: &str) -> Option<u32> {
        let own = self.nodes.get(node).and_then(|facts| facts.as_number);
        own.or_else(|| self.global()?.as_number).map(|number| number.0).filter(|number| *number != 0)
    }

    /// The TCP port that a node speaks BGP at; `None` where nothing is said of it.
    pub fn listen_port(&self, node: &str) -> Option<u16> {
        let port = |of: Option<&BgpConfigurationSpec>| of.and_then(|spec| spec.listen_port);
        port(self.of_node(node)).or_else(|| port(self.global())).filter(|port| *port != 0)
    }

    pub fn is_mesh(&self) -> bool {
        self.global().and_then(|spec| spec.node_to_node_mesh_enabled).unwrap_or(true)
    }

    pub fn mesh_password(&self) -> Option<&BgpPassword> {
        self.global()?.node_mesh_password.as_ref()
    }

    /// What is said of BFD for the mesh of nodes.
    pub fn mesh_bfd(&self) -> Option<&str> {
        self.bfd_by_configuration.get(DEFAULT).map(String::as_str)
    }

    pub fn mesh_restart_time(&self) -> Option<&str> {
        self.global()?.node_mesh_max_restart_time.as_deref()
    }

    /// What a node may announce of Services.
    pub fn advertisement(&self, node: &str) -> Advertisement {
        let Some(spec) = self.global() else { return Advertisement::default() };
        let ranges = |blocks: &[calico::CidrBlock]| blocks.iter().filter_map(|block| block.cidr).collect();
        Advertisement {
            load_balancer: ranges(&spec.service_load_balancer_ips),
            external: ranges(&spec.service_external_ips),
            cluster: ranges(&spec.service_cluster_ips),
            load_balancers_one_by_one: spec.service_load_balancer_aggregation.as_deref() == Some("Disabled"),
            is_excluded: self.nodes.get(node).is_some_and(NodeFacts::is_excluded),
        }
    }

    pub fn is_leaving(&self, node: &str) -> bool {
        self.nodes.get(node).is_some_and(|facts| facts.standing == Standing::Leaving)
    }

    /// Whether other nodes stay that announce Services.
    pub fn has_successor(&self, node: &str) -> bool {
        let stays = |facts: &NodeFacts| facts.standing == Standing::InService && !facts.is_excluded();
        self.nodes.iter().any(|(name, facts)| name != node && stays(facts))
    }

    /// Communities by the range of the prefixes that carry them: values, with names resolved. The second are problems.
    pub fn communities(&self, node: &str) -> (Vec<(IpNetwork, Vec<String>)>, Vec<String>) {
        let own = self.of_node(node).filter(|spec| !spec.prefix_advertisements.is_empty());
        let Some(spec) = own.or_else(|| self.global()) else { return Default::default() };
        let named =
            spec.communities.iter().chain(self.global().into_iter().flat_map(|spec| &spec.communities));
        let value_by_name: BTreeMap<&str, &str> =
            named.map(|community| (community.name.as_str(), community.value.as_str())).collect();
        let mut problems = Vec::new();
        let mut communities = Vec::new();
        for advertisement in &spec.prefix_advertisements {
            let Some(range) = advertisement.cidr else { continue };
            let mut values = Vec::new();
            for text in &advertisement.communities {
                let value = value_by_name.get(text.as_str()).copied().unwrap_or(text);
                if super::filters::community(value).is_some() {
                    values.push(value.to_owned());
                } else {
                    problems.push(format!(
                        "prefixAdvertisements of {range}: {text:?} is no community and no name of one"
                    ));
                }
            }
            communities.push((range, values));
        }
        (communities, problems)
    }
}
