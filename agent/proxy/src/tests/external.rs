//! Addresses for clients outside the cluster, and who gets which endpoint there.

use std::collections::BTreeSet;

use ebpf_common::desired;

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
