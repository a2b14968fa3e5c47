use std::net::IpAddr;

use ebpf_common::{
    Address, FrontendKey, Port, Protocol,
    desired::{Clients, Endpoint, Services},
};
use k8s_openapi::{
    api::{core::v1::Service, discovery::v1::EndpointSlice},
    serde::de::DeserializeOwned,
};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::{Changes, NodeView, ObjectName, Proxy, desired};

mod advertise;
mod balancing;
mod external;
mod health;
mod topology;

fn node() -> NodeView {
    NodeView { name: "node1".into(), zone: "zone-a".into(), api_servers: [].into() }
}

fn object<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("an object of the API")
}

fn service(name: &str, spec: Value) -> Service {
    object(json!({"metadata": {"namespace": "default", "name": name}, "spec": spec}))
}

fn slice(name: &str, service: &str, ports: Value, endpoints: Value) -> EndpointSlice {
    object(json!({
        "addressType": "IPv4",
        "metadata": {
            "namespace": "default", "name": name, "labels": {"kubernetes.io/service-name": service},
        },
        "ports": ports,
        "endpoints": endpoints,
    }))
}

fn web() -> Service {
    service(
        "web",
        json!({"clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"], "ports": [{"port": 80, "targetPort": "http"}]}),
    )
}

fn tcp(port: u16) -> Value {
    json!([{"port": port, "protocol": "TCP"}])
}

fn ready(address: &str, node: &str) -> Value {
    json!({"addresses": [address], "nodeName": node, "conditions": {"ready": true}})
}

fn key(ip: &str, port: u16, protocol: Protocol) -> FrontendKey {
    let ip: IpAddr = ip.parse().expect("an address");
    FrontendKey::new(Address::from(ip), Port::new(port), protocol)
}

/// The endpoints of 10.96.0.7:80, as text, those of this node marked.
fn of_web(services: &Services) -> Vec<String> {
    endpoints(services, &key("10.96.0.7", 80, Protocol::TCP))
}

fn endpoints(services: &Services, key: &FrontendKey) -> Vec<String> {
    let show = |endpoint: &Endpoint| {
        let local = if endpoint.local { " here" } else { "" };
        let clients = match endpoint.clients {
            Clients::All => "",
            Clients::Beyond => " for those beyond",
            Clients::Node => " for the node",
            Clients::Present => " for who has it",
        };
        format!("{}:{}{local}{clients}", endpoint.address.to_ip(), endpoint.port.get())
    };
    services.get(key).expect("the frontend").endpoints.iter().map(show).collect()
}

#[test]
fn a_service_leads_to_the_ready_endpoints_of_its_slices() {
    let slices = [
        slice("web-a", "web", tcp(8080), json!([ready("10.244.0.2", "node1"), ready("10.244.1.2", "node2")])),
        slice("web-b", "web", tcp(8080), json!([ready("10.244.2.2", "node3")])),
        slice("other", "other", tcp(8080), json!([ready("10.244.9.9", "node1")])),
    ];
    let services = desired([&web()], &slices, &node());
    assert_eq!(of_web(&services), ["10.244.0.2:8080 here", "10.244.1.2:8080", "10.244.2.2:8080"]);
    assert_eq!(services.len(), 1);
    assert_eq!(services.values().next().expect("one").name, "default/web");
}

#[test]
fn a_service_without_endpoints_is_there_and_leads_nowhere() {
    let services = desired([&web()], &[], &node());
    assert!(of_web(&services).is_empty());
}

#[test]
fn an_endpoint_that_is_not_ready_gets_nothing_and_an_unknown_one_counts_as_ready() {
    let slices = [slice(
        "web-a",
        "web",
        tcp(8080),
        json!([
            {"addresses": ["10.244.0.2"], "conditions": {"ready": false}},
            {"addresses": ["10.244.0.3"], "conditions": {}},
            {"addresses": ["10.244.0.4"]},
        ]),
    )];
    let services = desired([&web()], &slices, &node());
    assert_eq!(of_web(&services), ["10.244.0.3:8080", "10.244.0.4:8080"]);
}

#[test]
fn terminating_endpoints_that_serve_are_used_only_where_none_is_ready() {
    let ending = |address: &str, serving: bool| json!({"addresses": [address], "conditions": {"ready": false, "serving": serving, "terminating": true}});
    let endpoints = json!([ending("10.244.0.2", true), ending("10.244.0.3", false)]);
    let alone = [slice("web-a", "web", tcp(8080), endpoints)];
    assert_eq!(of_web(&desired([&web()], &alone, &node())), ["10.244.0.2:8080"]);

    let endpoints = json!([ending("10.244.0.2", true), ready("10.244.0.4", "node1")]);
    let beside = [slice("web-a", "web", tcp(8080), endpoints)];
    assert_eq!(of_web(&desired([&web()], &beside, &node())), ["10.244.0.4:8080 here"]);
}

#[test]
fn a_datagram_endpoint_that_serves_without_being_chosen_is_for_who_has_it() {
    let dns = |local: bool| {
        let policy = if local { "Local" } else { "Cluster" };
        service(
            "dns",
            json!({"clusterIP": "10.96.0.10", "internalTrafficPolicy": policy, "ports": [
                {"name": "udp", "port": 53, "protocol": "UDP"}, {"name": "tcp", "port": 53},
            ]}),
        )
    };
    let ports = json!([{"name": "udp", "port": 53, "protocol": "UDP"}, {"name": "tcp", "port": 53}]);
    let ending = |address: &str, serving: bool| {
        json!({"addresses": [address], "nodeName": "node1",
            "conditions": {"ready": false, "serving": serving, "terminating": true}})
    };
    let list = json!([
        ready("10.244.0.2", "node1"),
        ready("10.244.1.2", "node2"),
        ending("10.244.0.3", true),
        ending("10.244.0.4", false),
        {"addresses": ["10.244.0.5"], "conditions": {"ready": false, "serving": false}},
    ]);
    let slices = [slice("dns-a", "dns", ports, list)];
    let of = |local, protocol| {
        endpoints(&desired([&dns(local)], &slices, &node()), &key("10.96.0.10", 53, protocol))
    };
    assert_eq!(
        of(false, Protocol::UDP),
        ["10.244.0.2:53 here", "10.244.1.2:53", "10.244.0.3:53 here for who has it"]
    );
    assert_eq!(
        of(true, Protocol::UDP),
        ["10.244.0.2:53 here", "10.244.0.3:53 here for who has it", "10.244.1.2:53 for who has it"]
    );
    assert_eq!(of(false, Protocol::TCP), ["10.244.0.2:53 here", "10.244.1.2:53"]);
}

#[test]
fn local_traffic_policy_leaves_only_this_nodes_endpoints() {
    let mut service = web();
    service.spec.as_mut().expect("a spec").internal_traffic_policy = Some("Local".into());
    let slices =
        [slice("web-a", "web", tcp(53), json!([ready("10.89.0.11", "node1"), ready("10.89.0.12", "node2")]))];
    assert_eq!(of_web(&desired([&service], &slices, &node())), ["10.89.0.11:53 here"]);
    let elsewhere = NodeView { name: "node3".into(), ..node() };
    assert!(of_web(&desired([&service], &slices, &elsewhere)).is_empty());
}

#[test]
fn local_traffic_policy_falls_back_to_this_nodes_terminating_endpoint_and_not_to_another_node() {
    let mut service = web();
    service.spec.as_mut().expect("a spec").internal_traffic_policy = Some("Local".into());
    let ending = json!({
        "addresses": ["10.244.0.2"], "nodeName": "node1",
        "conditions": {"ready": false, "serving": true, "terminating": true},
    });
    let slices = [slice("web-a", "web", tcp(8080), json!([ending, ready("10.244.1.2", "node2")]))];
    assert_eq!(of_web(&desired([&service], &slices, &node())), ["10.244.0.2:8080 here"]);
}

#[test]
fn ports_meet_by_name_and_protocol() {
    let dns = service(
        "dns",
        json!({"clusterIP": "10.96.0.10", "ports": [
            {"name": "dns", "port": 53, "protocol": "UDP"},
            {"name": "dns-tcp", "port": 53, "protocol": "TCP"},
            {"name": "metrics", "port": 9153},
        ]}),
    );
    let ports = json!([
        {"name": "dns", "port": 5353, "protocol": "UDP"},
        {"name": "dns-tcp", "port": 5354, "protocol": "TCP"},
        {"name": "metrics", "port": 9999, "protocol": "UDP"},
    ]);
    let services =
        desired([&dns], &[slice("dns-a", "dns", ports, json!([ready("10.244.0.2", "node1")]))], &node());
    assert_eq!(endpoints(&services, &key("10.96.0.10", 53, Protocol::UDP)), ["10.244.0.2:5353 here"]);
    assert_eq!(endpoints(&services, &key("10.96.0.10", 53, Protocol::TCP)), ["10.244.0.2:5354 here"]);
    assert!(endpoints(&services, &key("10.96.0.10", 9153, Protocol::TCP)).is_empty());
    assert_eq!(services[&key("10.96.0.10", 53, Protocol::UDP)].name, "default/dns:dns");
}

#[test]
fn a_named_target_port_may_differ_between_slices() {
    let slices = [
        slice("old", "web", tcp(8080), json!([ready("10.244.0.2", "node1")])),
        slice("new", "web", tcp(9090), json!([ready("10.244.0.3", "node1")])),
    ];
    let services = desired([&web()], &slices, &node());
    assert_eq!(of_web(&services), ["10.244.0.2:8080 here", "10.244.0.3:9090 here"]);
}

#[test]
fn each_family_has_its_own_endpoints() {
    let both = service("web", json!({"clusterIPs": ["10.96.0.7", "fd00:96::7"], "ports": [{"port": 80}]}));
    let v4 = slice("v4", "web", tcp(8080), json!([ready("10.244.0.2", "node1")]));
    let mut v6 = slice("v6", "web", tcp(8080), json!([ready("fd00:244::2", "node1")]));
    v6.address_type = "IPv6".into();
    let services = desired([&both], &[v4, v6], &node());
    assert_eq!(of_web(&services), ["10.244.0.2:8080 here"]);
    assert_eq!(endpoints(&services, &key("fd00:96::7", 80, Protocol::TCP)), ["fd00:244::2:8080 here"]);
}

#[test]
fn services_that_nobody_or_somebody_else_balances_are_left_alone() {
    let headless = service("headless", json!({"clusterIP": "None", "ports": [{"port": 80}]}));
    let pending = service("pending", json!({"ports": [{"port": 80}]}));
    let external = service("external", json!({"type": "ExternalName", "externalName": "example.com"}));
    let mut foreign = web();
    foreign.metadata.labels =
        Some([("service.kubernetes.io/service-proxy-name".to_owned(), "other".to_owned())].into());
    assert!(desired([&headless, &pending, &external, &foreign], &[], &node()).is_empty());
}

#[test]
fn a_service_without_selector_uses_the_slices_that_name_it() {
    let slices = [slice("by-hand", "web", tcp(5432), json!([{"addresses": ["192.0.2.10"]}]))];
    assert_eq!(of_web(&desired([&web()], &slices, &node())), ["192.0.2.10:5432"]);
}

#[test]
fn what_cannot_be_an_endpoint_is_left_out() {
    let slices = [slice(
        "web-a",
        "web",
        tcp(8080),
        json!([
            ready("127.0.0.1", "node1"),
            ready("0.0.0.0", "node1"),
            ready("not-an-ip", "node1"),
            ready("10.244.0.2", "node1")
        ]),
    )];
    assert_eq!(of_web(&desired([&web()], &slices, &node())), ["10.244.0.2:8080 here"]);
}

#[test]
fn an_endpoint_in_two_slices_counts_once_and_is_ready_if_either_says_so() {
    let slices = [
        slice("a", "web", tcp(8080), json!([{"addresses": ["10.244.0.2"], "conditions": {"ready": false}}])),
        slice("b", "web", tcp(8080), json!([ready("10.244.0.2", "node1")])),
    ];
    assert_eq!(of_web(&desired([&web()], &slices, &node())), ["10.244.0.2:8080 here"]);
}

#[test]
fn session_affinity_has_the_apis_default_timeout_or_its_own() {
    let mut service = web();
    let spec = service.spec.as_mut().expect("a spec");
    spec.session_affinity = Some("ClientIP".into());
    let seconds = |service: &Service| {
        desired([service], &[], &node())[&key("10.96.0.7", 80, Protocol::TCP)].affinity_seconds
    };
    assert_eq!(seconds(&service), 10_800);
    let spec = service.spec.as_mut().expect("a spec");
    spec.session_affinity_config = Some(object(json!({"clientIP": {"timeoutSeconds": 60}})));
    assert_eq!(seconds(&service), 60);
    assert_eq!(seconds(&web()), 0);
}

#[test]
fn a_protocol_that_is_not_balanced_has_no_frontend() {
    let dccp = service("s", json!({"clusterIP": "10.96.0.9", "ports": [{"port": 80, "protocol": "DCCP"}]}));
    assert!(desired([&dccp], &[], &node()).is_empty());
}

#[test]
fn sctp_is_balanced_by_its_own_ports_and_endpoints_at_every_kind_of_address() {
    let sctp = service(
        "s",
        json!({
            "type": "LoadBalancer", "clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"],
            "externalIPs": ["192.0.2.9"],
            "ports": [
                {"name": "sctp", "port": 80, "protocol": "SCTP", "nodePort": 30080},
                {"name": "tcp", "port": 80, "nodePort": 30080},
            ],
        }),
    );
    let slice = slice(
        "s-1",
        "s",
        json!([{"name": "sctp", "port": 3868, "protocol": "SCTP"}, {"name": "tcp", "port": 8080}]),
        json!([{"addresses": ["10.244.0.2"], "nodeName": "node1"}]),
    );
    let services = desired([&sctp], &[slice], &node());
    for (address, port) in [("10.96.0.9", 80), ("192.0.2.9", 80), ("0.0.0.0", 30080)] {
        assert_eq!(endpoints(&services, &key(address, port, Protocol::SCTP)), ["10.244.0.2:3868 here"]);
        assert_eq!(endpoints(&services, &key(address, port, Protocol::TCP)), ["10.244.0.2:8080 here"]);
    }
    // A connection is bound to its endpoint, as with TCP.
    assert_eq!(services.len(), 6);
}

#[test]
fn an_address_of_two_services_is_the_firsts_by_name_until_that_goes() {
    let (mut first, mut second) = (web(), web());
    first.metadata.name = Some("a".into());
    second.metadata.name = Some("b".into());
    let mut proxy = Proxy::new(node());
    proxy.insert_service(&second);
    proxy.update();
    proxy.insert_service(&first);
    assert_eq!(proxy.update().len(), 1);
    assert_eq!(proxy.desired()[&key("10.96.0.7", 80, Protocol::TCP)].name, "default/a");
    proxy.remove_service(&ObjectName::of(&first.metadata));
    proxy.update();
    assert_eq!(proxy.desired()[&key("10.96.0.7", 80, Protocol::TCP)].name, "default/b");
}

#[test]
fn an_event_that_changes_nothing_touches_nothing() {
    let mut proxy = Proxy::new(node());
    proxy.insert_service(&web());
    assert!(proxy.update().into_keys().eq([key("10.96.0.7", 80, Protocol::TCP)]));
    proxy.insert_service(&web());
    assert!(proxy.update().is_empty());
    let mut relabelled = web();
    relabelled.metadata.resource_version = Some("2".into());
    proxy.insert_service(&relabelled);
    assert!(proxy.update().is_empty());
}

#[derive(Clone, Debug)]
enum Event {
    Service(Box<Service>),
    NoService(ObjectName),
    Slice(Box<EndpointSlice>),
    NoSlice(ObjectName),
    Update,
}

fn any_service() -> impl Strategy<Value = Service> {
    let name = prop::sample::select(vec!["a", "b", "c"]);
    let ip = prop::sample::select(vec!["10.96.0.1", "10.96.0.2", "10.96.0.3", "None"]);
    let policy = prop::sample::select(vec!["Cluster", "Local"]);
    let port = prop::sample::select(vec![80, 443]);
    let node_port = prop::sample::select(vec![0, 30080, 30081]);
    let policies = (policy.clone(), policy);
    (name, ip, policies, port, node_port, any::<bool>()).prop_map(
        |(name, ip, policies, port, node_port, foreign)| {
            let spec = json!({
                "clusterIP": ip, "internalTrafficPolicy": policies.0, "externalTrafficPolicy": policies.1,
                "ports": [{"port": port, "nodePort": node_port}], "externalIPs": ["192.0.2.1"],
            });
            let mut service = service(name, spec);
            if foreign {
                service.metadata.labels =
                    Some([("service.kubernetes.io/service-proxy-name".to_owned(), "x".to_owned())].into());
            }
            service
        },
    )
}

fn any_slice() -> impl Strategy<Value = EndpointSlice> {
    let name = prop::sample::select(vec!["s1", "s2", "s3", "s4"]);
    let owner = prop::sample::select(vec!["a", "b", "c", ""]);
    let endpoint = (1u8..6, any::<bool>(), any::<bool>(), prop::sample::select(vec!["node1", "node2"]));
    (name, owner, prop::collection::vec(endpoint, 0..4)).prop_map(|(name, owner, endpoints)| {
        let endpoints: Vec<Value> = endpoints
            .into_iter()
            .map(|(host, ready, terminating, node)| {
                json!({
                    "addresses": [format!("10.244.0.{host}")], "nodeName": node,
                    "conditions": {"ready": ready, "serving": true, "terminating": terminating},
                })
            })
            .collect();
        slice(name, owner, tcp(8080), json!(endpoints))
    })
}

fn any_event() -> impl Strategy<Value = Event> {
    let service_name = prop::sample::select(vec!["a", "b", "c"]);
    let slice_name = prop::sample::select(vec!["s1", "s2", "s3", "s4"]);
    let named = |name: &str| ObjectName { namespace: "default".into(), name: name.into() };
    prop_oneof![
        3 => any_service().prop_map(|service| Event::Service(Box::new(service))),
        1 => service_name.prop_map(move |name| Event::NoService(named(name))),
        4 => any_slice().prop_map(|slice| Event::Slice(Box::new(slice))),
        1 => slice_name.prop_map(move |name| Event::NoSlice(named(name))),
        2 => Just(Event::Update),
    ]
}

/// One who only hears of changes.
#[derive(Default)]
struct Follower(Services);

impl Follower {
    fn hear(&mut self, changes: Changes) {
        for (key, change) in changes {
            match change {
                Some(service) => drop(self.0.insert(key, service)),
                None => drop(self.0.remove(&key)),
            }
        }
    }
}

fn replay(events: &[Event]) -> (Proxy, Follower, Vec<Service>, Vec<EndpointSlice>) {
    let mut proxy = Proxy::new(node());
    let mut follower = Follower::default();
    let mut services = std::collections::BTreeMap::new();
    let mut slices = std::collections::BTreeMap::new();
    for event in events.iter().cloned() {
        match event {
            Event::Service(service) => {
                services.insert(ObjectName::of(&service.metadata), (*service).clone());
                proxy.insert_service(&service);
            }
            Event::NoService(name) => {
                services.remove(&name);
                proxy.remove_service(&name);
            }
            Event::Slice(slice) => {
                slices.insert(ObjectName::of(&slice.metadata), (*slice).clone());
                proxy.insert_slice(&slice);
            }
            Event::NoSlice(name) => {
                slices.remove(&name);
                proxy.remove_slice(&name);
            }
            Event::Update => follower.hear(proxy.update_part(1)),
        }
    }
    follower.hear(proxy.update());
    (proxy, follower, services.into_values().collect(), slices.into_values().collect())
}

proptest! {
    #[test]
    fn any_events_lead_where_a_fresh_computation_leads(events in prop::collection::vec(any_event(), 0..60)) {
        let (proxy, follower, services, slices) = replay(&events);
        let fresh = desired(&services, &slices, &node());
        prop_assert_eq!(&proxy.desired(), &fresh);
        prop_assert_eq!(&follower.0, &fresh);
        let balanced = services.iter().filter(|service| crate::facts::Service::of(service).is_some());
        prop_assert_eq!(proxy.service_count(), balanced.count());

        let doubled: Vec<Event> = events.iter().flat_map(|event| [event.clone(), event.clone()]).collect();
        let (again, _, _, _) = replay(&doubled);
        prop_assert_eq!(&again.desired(), &fresh);
        prop_assert_eq!(again.health_checks(), proxy.health_checks());

        let backwards = desired(services.iter().rev(), slices.iter().rev(), &node());
        prop_assert_eq!(&backwards, &fresh);
    }

    #[test]
    fn a_fresh_list_after_missed_events_leads_where_a_fresh_computation_leads(
        events in prop::collection::vec(any_event(), 0..30),
        missed in prop::collection::vec(any_event(), 0..30),
    ) {
        let (mut proxy, mut follower, _, _) = replay(&events);
        let (_, _, services, slices) = replay(&missed);
        services.iter().for_each(|service| proxy.insert_service(service));
        slices.iter().for_each(|slice| proxy.insert_slice(slice));
        proxy.retain_services(|name| services.iter().any(|service| ObjectName::of(&service.metadata) == *name));
        proxy.retain_slices(|name| slices.iter().any(|slice| ObjectName::of(&slice.metadata) == *name));
        follower.hear(proxy.update());
        let fresh = desired(&services, &slices, &node());
        prop_assert_eq!(&proxy.desired(), &fresh);
        prop_assert_eq!(&follower.0, &fresh);
    }
}

fn changed(
    mut service: Service,
    change: impl FnOnce(&mut k8s_openapi::api::core::v1::ServiceSpec),
) -> Service {
    change(service.spec.as_mut().expect("a spec"));
    service
}
