//! Addresses for clients outside the cluster, and who gets which endpoint there.

use std::collections::BTreeSet;

use ebpf_common::desired::{self, SourceRange};

use super::*;

/// A Service of type LoadBalancer with all kinds of addresses in both families.
fn balanced() -> Service {
    let mut service = service(
        "web",
        json!({
            "type": "LoadBalancer",
            "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7", "fd00:96::7"],
            "externalIPs": ["198.51.100.1"],
            "ports": [{"name": "http", "port": 80, "nodePort": 30080}, {"name": "dns", "port": 53, "protocol": "UDP"}],
        }),
    );
    service.status = Some(object(json!({"loadBalancer": {"ingress": [
        {"ip": "192.0.2.1"},
        {"ip": "2001:db8::1", "ipMode": "VIP"},
        {"ip": "192.0.2.2", "ipMode": "Proxy"},
        {"hostname": "lb.example.com"},
    ]}})));
    service
}

fn keys(services: &Services) -> Vec<String> {
    let name = |protocol| if protocol == Protocol::TCP { "tcp" } else { "udp" };
    services
        .keys()
        .map(|key| format!("{} {} {}", key.address.to_ip(), key.port.get(), name(key.protocol)))
        .collect()
}

fn terminating(address: &str, node: &str) -> Value {
    json!({"addresses": [address], "nodeName": node,
        "conditions": {"ready": false, "serving": true, "terminating": true}})
}

/// The endpoints of node port 30080 of a web Service with these policies.
fn by_policies(external: &str, internal: &str, list: Value) -> (Services, Vec<String>) {
    let service = changed(web(), |spec| {
        spec.type_ = Some("NodePort".into());
        spec.external_traffic_policy = Some(external.into());
        spec.internal_traffic_policy = Some(internal.into());
        spec.ports.as_mut().expect("ports")[0].node_port = Some(30080);
    });
    let services = desired([&service], &[slice("web-a", "web", tcp(8080), list)], &node());
    let found = endpoints(&services, &key("0.0.0.0", 30080, Protocol::TCP));
    (services, found)
}

#[test]
fn a_load_balancer_has_a_frontend_for_each_address_and_a_node_port_for_each_family() {
    assert_eq!(
        keys(&desired([&balanced()], &[], &node())),
        [
            ":: 30080 tcp",
            "0.0.0.0 30080 tcp",
            "10.96.0.7 53 udp",
            "10.96.0.7 80 tcp",
            "192.0.2.1 53 udp",
            "192.0.2.1 80 tcp",
            "198.51.100.1 53 udp",
            "198.51.100.1 80 tcp",
            "2001:db8::1 53 udp",
            "2001:db8::1 80 tcp",
            "fd00:96::7 53 udp",
            "fd00:96::7 80 tcp",
        ]
    );
}

#[test]
fn a_family_that_the_service_has_not_gets_nothing() {
    let service = changed(balanced(), |spec| spec.cluster_ips = Some(vec!["10.96.0.7".into()]));
    let services = desired([&service], &[], &node());
    assert!(services.keys().all(|key| key.address.is_v4()), "{:?}", keys(&services));
    assert_eq!(services.len(), 7);
}

#[test]
fn addresses_of_a_balancer_that_is_no_longer_wanted_are_not_served() {
    let service = changed(balanced(), |spec| {
        spec.type_ = Some("ClusterIP".into());
        spec.ports.as_mut().expect("ports")[0].node_port = None;
    });
    let services = desired([&service], &[], &node());
    let served: BTreeSet<String> = services.keys().map(|key| key.address.to_ip().to_string()).collect();
    assert_eq!(served, ["10.96.0.7", "fd00:96::7", "198.51.100.1"].map(str::to_owned).into());
}

/// The source ranges of each frontend that has any.
fn restricted(services: &Services) -> Vec<(String, Vec<String>)> {
    let show = |range: &SourceRange| format!("{}/{}", range.address().to_ip(), range.bits());
    let ranges = |service: &desired::Service| service.source_ranges.iter().map(show).collect::<Vec<_>>();
    let all = services
        .iter()
        .map(|(key, service)| (format!("{} {}", key.address.to_ip(), key.port.get()), ranges(service)));
    all.filter(|(_, ranges)| !ranges.is_empty()).collect()
}

fn for_clients_in(ranges: &[&str]) -> Service {
    changed(balanced(), |spec| {
        spec.load_balancer_source_ranges = Some(ranges.iter().map(|range| (*range).to_owned()).collect());
    })
}

fn restricted_to(ranges: &[&str]) -> Vec<(String, Vec<String>)> {
    restricted(&desired([&for_clients_in(ranges)], &[], &node()))
}

#[test]
fn source_ranges_are_for_the_balancers_addresses_of_their_family_only() {
    let of_v4 = |at: &str| (at.to_owned(), vec!["10.0.0.0/104".to_owned(), "198.51.100.7/128".to_owned()]);
    let of_v6 = |at: &str| (at.to_owned(), vec!["2001:db8::/32".to_owned()]);
    assert_eq!(
        restricted_to(&["10.1.2.3/8", " 198.51.100.7/32 ", "2001:db8::/32", "010.0.0.0/8"]),
        [of_v4("192.0.2.1 53"), of_v4("192.0.2.1 80"), of_v6("2001:db8::1 53"), of_v6("2001:db8::1 80")]
    );
}

#[test]
fn a_family_without_a_range_or_with_one_that_is_everything_is_open() {
    let of = |ranges: &[&str]| restricted_to(ranges).into_iter().map(|(at, _)| at).collect::<Vec<_>>();
    assert_eq!(of(&["2001:db8::/32"]), ["2001:db8::1 53", "2001:db8::1 80"]);
    assert_eq!(of(&["10.0.0.0/8", "0.0.0.0/0", "::/1"]), ["2001:db8::1 53", "2001:db8::1 80"]);
    assert!(restricted_to(&["::/0", "2001:db8::/32"]).is_empty());
}

#[test]
fn invalid_source_ranges_are_named_and_ignored() {
    let texts =
        ["", " ", "10.0.0.0", "10.0.0.0/33", "300.0.0.0/8", "10.0.0.0/+8", "10.0.0/8", "web/8", "::/129"];
    let service = for_clients_in(&texts);
    assert!(restricted(&desired([&service], &[], &node())).is_empty());
    assert!(crate::invalid_source_ranges(&service).eq(texts[2..].iter().copied()));
    let mixed = for_clients_in(&[" 10.0.0.0/33 ", "10.0.0.0/8"]);
    assert!(crate::invalid_source_ranges(&mixed).eq(["10.0.0.0/33"]));
    assert_eq!(restricted(&desired([&mixed], &[], &node())).len(), 2);
}

#[test]
fn an_address_that_is_external_and_the_balancers_is_restricted() {
    let service = changed(for_clients_in(&["10.0.0.0/8"]), |spec| {
        spec.external_ips = Some(vec!["192.0.2.1".into()]);
    });
    assert_eq!(restricted(&desired([&service], &[], &node())).len(), 2);
}

#[test]
fn source_ranges_of_what_is_no_load_balancer_matter_to_nobody() {
    let service = changed(for_clients_in(&["10.0.0.0/8"]), |spec| spec.type_ = Some("NodePort".into()));
    assert!(restricted(&desired([&service], &[], &node())).is_empty());
}

#[test]
fn other_source_ranges_change_the_frontends_that_have_them() {
    let mut proxy = Proxy::new(node());
    proxy.insert_service(&for_clients_in(&["10.0.0.0/8"]));
    proxy.update();
    proxy.insert_service(&for_clients_in(&["10.0.0.0/9"]));
    let changes: Services = proxy.update().into_iter().filter_map(|(key, now)| Some((key, now?))).collect();
    let ranges: Vec<Vec<String>> = restricted(&changes).into_iter().map(|(_, ranges)| ranges).collect();
    assert_eq!(ranges, [["10.0.0.0/105"], ["10.0.0.0/105"]]);
    proxy.insert_service(&for_clients_in(&[" 10.0.0.0/9"]));
    assert!(proxy.update().is_empty(), "the same in other words");
}

#[test]
fn by_the_policy_cluster_everybody_gets_every_endpoint() {
    let list = json!([ready("10.244.0.2", "node1"), ready("10.244.1.2", "node2")]);
    let (services, external) = by_policies("Cluster", "Cluster", list);
    assert_eq!(external, ["10.244.0.2:8080 here", "10.244.1.2:8080"]);
    assert_eq!(of_web(&services), external);
}

#[test]
fn by_the_policy_local_clients_beyond_the_node_get_what_is_here_and_those_on_it_all() {
    let list = json!([ready("10.244.0.2", "node1"), ready("10.244.1.2", "node2")]);
    let (services, external) = by_policies("Local", "Cluster", list.clone());
    assert_eq!(external, ["10.244.0.2:8080 here", "10.244.1.2:8080 for the node"]);
    assert_eq!(of_web(&services), ["10.244.0.2:8080 here", "10.244.1.2:8080"]);

    let (services, external) = by_policies("Local", "Local", list.clone());
    assert_eq!(external, ["10.244.0.2:8080 here", "10.244.1.2:8080 for the node"]);
    assert_eq!(of_web(&services), ["10.244.0.2:8080 here"]);

    let (services, external) = by_policies("Cluster", "Local", list);
    assert_eq!(external, ["10.244.0.2:8080 here", "10.244.1.2:8080"]);
    assert_eq!(of_web(&services), ["10.244.0.2:8080 here"]);
}

#[test]
fn where_all_endpoints_are_elsewhere_local_clients_hear_nothing_and_are_not_refused() {
    for list in [json!([ready("10.244.1.2", "node2")]), json!([terminating("10.244.1.2", "node2")])] {
        let (services, external) = by_policies("Local", "Local", list);
        assert_eq!(external, ["10.244.1.2:8080 for the node"]);
        let internal = &services[&key("10.96.0.7", 80, Protocol::TCP)];
        assert!(internal.endpoints.is_empty() && internal.has_endpoints);
    }
    let (services, _) = by_policies("Local", "Local", json!([]));
    assert!(services.values().all(|service| !service.has_endpoints));
}

#[test]
fn the_two_policies_fall_back_to_terminating_endpoints_each_on_its_own() {
    let list = json!([terminating("10.244.0.2", "node1"), ready("10.244.1.2", "node2")]);
    let (services, external) = by_policies("Local", "Cluster", list);
    assert_eq!(external, ["10.244.0.2:8080 here for those beyond", "10.244.1.2:8080 for the node"]);
    assert_eq!(of_web(&services), ["10.244.1.2:8080"]);

    let list = json!([
        terminating("10.244.0.2", "node1"),
        ready("10.244.0.3", "node1"),
        terminating("10.244.1.2", "node2"),
    ]);
    let (_, external) = by_policies("Local", "Cluster", list);
    assert_eq!(external, ["10.244.0.3:8080 here"]);
}

#[test]
fn an_external_policy_without_an_external_address_changes_nothing() {
    let service = changed(web(), |spec| spec.external_traffic_policy = Some("Local".into()));
    let list = json!([ready("10.244.0.2", "node1"), ready("10.244.1.2", "node2")]);
    let services = desired([&service], &[slice("web-a", "web", tcp(8080), list)], &node());
    assert_eq!(of_web(&services), ["10.244.0.2:8080 here", "10.244.1.2:8080"]);
}

#[test]
fn no_service_takes_the_api_servers_address_from_the_node() {
    let thief = changed(web(), |spec| {
        spec.external_ips = Some(vec!["10.89.0.10".into()]);
        spec.ports.as_mut().expect("ports")[0].port = 6443;
    });
    let guarded = NodeView { api_servers: [key("10.89.0.10", 6443, Protocol::TCP)].into(), ..node() };
    assert_eq!(keys(&desired([&thief], &[], &guarded)), ["10.96.0.7 6443 tcp"]);
    assert_eq!(desired([&thief], &[], &node()).len(), 2);
}

#[test]
fn a_host_port_stands_where_no_service_does() {
    let pod_port = |pod: &str| {
        let endpoint = Endpoint {
            address: pod.parse::<std::net::IpAddr>().expect("an address").into(),
            port: Port::new(80),
            local: true,
            clients: Clients::All,
            weight: Endpoint::WEIGHT,
        };
        desired::Service { endpoints: vec![endpoint], has_endpoints: true, ..desired::Service::default() }
    };
    let (shared, own, guarded) = (
        key("0.0.0.0", 30080, Protocol::TCP),
        key("192.0.2.1", 8080, Protocol::TCP),
        key("10.89.0.10", 6443, Protocol::TCP),
    );
    let mut proxy = Proxy::new(NodeView { api_servers: [guarded].into(), ..node() });
    let ports = |pod: &str| [shared, own, guarded].map(|key| (key, pod_port(pod))).into();
    proxy.set_host_ports(ports("10.244.0.2"));
    assert!(proxy.update().into_keys().eq([shared, own]));
    proxy.set_host_ports(ports("10.244.0.2"));
    assert!(proxy.update().is_empty());

    let service = changed(web(), |spec| {
        spec.type_ = Some("NodePort".into());
        spec.ports.as_mut().expect("ports")[0].node_port = Some(30080);
    });
    proxy.insert_service(&service);
    assert_eq!(proxy.update()[&shared].as_ref().expect("a frontend").name, "default/web");
    proxy.set_host_ports(ports("10.244.0.3"));
    assert!(proxy.update().into_keys().eq([own]), "the Service keeps its port");
    proxy.remove_service(&ObjectName::of(&service.metadata));
    assert_eq!(proxy.update()[&shared], Some(pod_port("10.244.0.3")));
    proxy.set_host_ports(Services::new());
    let changes = proxy.update();
    assert!(changes.keys().eq([&shared, &own]) && changes.values().all(Option::is_none));
}

#[test]
fn the_api_servers_own_service_keeps_its_last_endpoints() {
    let kubernetes = service("kubernetes", json!({"clusterIP": "10.96.0.1", "ports": [{"port": 443}]}));
    let list = json!([{"addresses": ["10.89.0.10"], "conditions": {"ready": true}}]);
    let of = |proxy: &Proxy| endpoints(&proxy.desired(), &key("10.96.0.1", 443, Protocol::TCP));
    let guarded = NodeView { api_servers: [key("10.96.0.1", 443, Protocol::TCP)].into(), ..node() };
    let mut proxy = Proxy::new(guarded);
    proxy.insert_service(&kubernetes);
    proxy.insert_slice(&slice("k", "kubernetes", tcp(6443), list));
    proxy.update();
    assert_eq!(of(&proxy), ["10.89.0.10:6443"]);
    proxy.insert_slice(&slice("k", "kubernetes", tcp(6443), json!([])));
    proxy.update();
    assert_eq!(of(&proxy), ["10.89.0.10:6443"]);
    proxy.remove_slice(&ObjectName { namespace: "default".into(), name: "k".into() });
    proxy.update();
    assert_eq!(of(&proxy), ["10.89.0.10:6443"]);
    proxy.insert_slice(&slice("k", "kubernetes", tcp(6443), json!([ready("10.89.0.20", "x")])));
    proxy.update();
    assert_eq!(of(&proxy), ["10.89.0.20:6443"]);
    proxy.remove_service(&ObjectName::of(&kubernetes.metadata));
    proxy.update();
    assert!(proxy.desired().is_empty());
}
