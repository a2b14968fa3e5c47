//! Who has an address: pods of this node, nodes, and the nodes that packets to other pods are sent to.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use dataplane::routes::Target;
use ipnetwork::IpNetwork;

use crate::network::Network;

/// As of one moment.
#[derive(Debug, Default)]
pub struct Hosts {
    pod_by_address: HashMap<IpAddr, String>,
    pod_by_interface: HashMap<u32, String>,
    node_by_address: HashMap<IpAddr, String>,
    /// Destinations behind other nodes, the longest prefix first.
    node_by_destination: Vec<(IpNetwork, String)>,
}

impl Hosts {
    pub fn of(network: &Network, address_by_node: &BTreeMap<String, Vec<IpAddr>>) -> Hosts {
        let pods = network.pods();
        let named = |pod: &crate::network::PodStatus| {
            format!("{}/{}", pod.allocation.owner.pod_namespace, pod.allocation.owner.pod_name)
        };
        let nodes = address_by_node.iter();
        let node_by_address: HashMap<IpAddr, String> =
            nodes.flat_map(|(name, of)| of.iter().map(|address| (*address, name.clone()))).collect();
        let routes = network.routes();
        Hosts {
            pod_by_address: pods.iter().map(|pod| (pod.allocation.address, named(pod))).collect(),
            pod_by_interface: pods.iter().filter_map(|pod| Some((pod.host_index?, named(pod)))).collect(),
            node_by_destination: behind(&node_by_address, routes.iter().map(|(to, target, _)| (*to, target))),
            node_by_address,
        }
    }

    /// `pod NAMESPACE/NAME`, `node NAME`, or `pod on NAME` where only its node is known.
    pub fn name(&self, address: IpAddr) -> Option<String> {
        if let Some(pod) = self.pod_by_address.get(&address) {
            return Some(format!("pod {pod}"));
        }
        if let Some(node) = self.node_by_address.get(&address) {
            return Some(format!("node {node}"));
        }
        let behind = self.node_by_destination.iter().find(|(to, _)| to.contains(address));
        behind.map(|(_, node)| format!("pod on {node}"))
    }

    /// The pod, `NAMESPACE/NAME`, at the other end of a link of the node.
    pub fn pod_at(&self, interface_index: u32) -> Option<&str> {
        self.pod_by_interface.get(&interface_index).map(String::as_str)
    }

    /// The addresses of a pod of this node, `NAMESPACE/NAME`.
    pub fn addresses_of(&self, pod: &str) -> Vec<IpAddr> {
        let found = self.pod_by_address.iter().filter(|(_, name)| name.as_str() == pod);
        found.map(|(address, _)| *address).collect()
    }
}

fn behind<'a>(
    node_by_address: &HashMap<IpAddr, String>,
    routes: impl Iterator<Item = (IpNetwork, &'a Target)>,
) -> Vec<(IpNetwork, String)> {
    let node = |target: &Target| match target {
        Target::Via(gateways) => gateways.iter().find_map(|gateway| node_by_address.get(gateway)).cloned(),
        Target::Blackhole | Target::Unreachable | Target::Link(_) => None,
    };
    let mut found: Vec<(IpNetwork, String)> =
        routes.filter_map(|(to, target)| Some((to, node(target)?))).collect();
    found.sort_by_key(|(to, _)| std::cmp::Reverse(to.prefix()));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_pods_or_a_nodes_or_behind_a_node() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let node_by_address =
            HashMap::from([(ip("10.89.0.12"), "n2".to_owned()), (ip("10.89.0.13"), "n3".to_owned())]);
        let via = |gateway: &str| Target::Via(vec![ip(gateway)].into());
        let (wide, narrow) = (via("10.89.0.12"), via("10.89.0.13"));
        let routes = [
            ("10.244.0.0/16".parse().unwrap(), &wide),
            ("10.244.1.0/26".parse().unwrap(), &narrow),
            ("10.96.0.0/16".parse().unwrap(), &Target::Unreachable),
        ];
        let hosts = Hosts {
            pod_by_address: HashMap::from([(ip("10.244.0.2"), "default/web-1".to_owned())]),
            pod_by_interface: HashMap::from([(7, "default/web-1".to_owned())]),
            node_by_destination: behind(&node_by_address, routes.into_iter()),
            node_by_address,
        };
        let name = |address| hosts.name(ip(address));
        assert_eq!(name("10.244.0.2").as_deref(), Some("pod default/web-1"));
        assert_eq!(name("10.89.0.12").as_deref(), Some("node n2"));
        assert_eq!(name("10.244.1.5").as_deref(), Some("pod on n3"));
        assert_eq!(name("10.244.9.5").as_deref(), Some("pod on n2"));
        assert_eq!(name("10.96.0.1"), None);
        assert_eq!(hosts.pod_at(7), Some("default/web-1"));
        assert_eq!(hosts.addresses_of("default/web-1"), [ip("10.244.0.2")]);
        assert!(hosts.addresses_of("default/web").is_empty());
    }
}
