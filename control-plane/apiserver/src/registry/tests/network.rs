use std::collections::HashSet;

use serde_json::{Value, json};

use super::{
    super::service_ip::{Allocator, NODE_PORTS, Reservation},
    Kind, metadata, with,
};

fn services() -> Kind {
    Kind::new("", "services")
}

fn service(spec: Value) -> Value {
    let base = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata("web"),
        "spec": { "selector": { "app": "web" }, "ports": [{ "port": 80 }] },
    });
    with(&base, json!({ "spec": spec }))
}

/// Takes what the Service needs and stores it.
fn store(addresses: &mut Allocator, object: &mut Value) -> Vec<Reservation> {
    let taken = addresses.allocate(object, None, false).unwrap();
    addresses.stored(object);
    addresses.release(&taken);
    taken
}

fn allocator() -> Allocator {
    Allocator::new(vec!["10.96.0.0/16".parse().unwrap()])
}

#[test]
fn a_service_gets_upstreams_defaults() {
    let created = services().accepted(service(json!({})));
    assert_eq!(
        created["spec"],
        json!({
            "internalTrafficPolicy": "Cluster",
            "ports": [{ "port": 80, "protocol": "TCP", "targetPort": 80 }],
            "selector": { "app": "web" },
            "sessionAffinity": "None",
            "type": "ClusterIP",
        })
    );
    assert_eq!(created["status"], json!({ "loadBalancer": {} }));
    let balanced =
        services().accepted(service(json!({ "type": "LoadBalancer", "sessionAffinity": "ClientIP" })));
    assert_eq!(balanced["spec"]["externalTrafficPolicy"], "Cluster");
    assert_eq!(balanced["spec"]["allocateLoadBalancerNodePorts"], true);
    assert_eq!(balanced["spec"]["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"], 10800);
}

#[test]
fn each_fault_of_a_service_is_named_with_its_field() {
    let two = json!([{ "name": "a", "port": 80 }, { "name": "a", "port": 81 }]);
    let cases = [
        (json!({ "ports": [] }), "spec.ports: Required value"),
        (
            json!({ "ports": [{ "port": 0, "targetPort": 80 }] }),
            "spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
        ),
        (json!({ "ports": two }), "spec.ports[1].name: Duplicate value: \"a\""),
        (
            json!({ "ports": [{ "port": 80, "protocol": "ICMP" }] }),
            "spec.ports[0].protocol: Unsupported value: \"ICMP\": supported values: \"SCTP\", \"TCP\", \"UDP\"",
        ),
        (
            json!({ "ports": [{ "port": 80, "nodePort": 30080 }] }),
            "spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'",
        ),
        (
            json!({ "type": "Wild" }),
            "spec.type: Unsupported value: \"Wild\": supported values: \"ClusterIP\", \"ExternalName\", \
             \"LoadBalancer\", \"NodePort\"",
        ),
        (
            json!({ "type": "NodePort", "clusterIP": "None" }),
            "spec.clusterIPs[0]: Invalid value: \"None\": may not be set to 'None' for NodePort services",
        ),
        (json!({ "type": "ExternalName" }), "spec.externalName: Required value"),
        (
            json!({ "clusterIP": "10.0.0" }),
            "spec.clusterIPs[0]: Invalid value: \"10.0.0\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
        ),
        (
            json!({ "externalTrafficPolicy": "Local" }),
            "spec.externalTrafficPolicy: Invalid value: \"Local\": may only be set for externally-accessible services",
        ),
        (
            json!({ "sessionAffinity": "ClientIP", "sessionAffinityConfig": { "clientIP": { "timeoutSeconds": 90000 } } }),
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds: Invalid value: 90000: must be greater than 0 and less \
             than 86400",
        ),
    ];
    for (spec, expected) in cases {
        assert_eq!(services().create_errors(service(spec.clone())), [expected], "{spec}");
    }
}

#[test]
fn a_put_that_leaves_out_addresses_keeps_them() {
    let (kind, mut addresses) = (services(), allocator());
    let mut old = kind.accepted(service(json!({ "type": "NodePort" })));
    addresses.allocate(&mut old, None, false).unwrap();
    let bare = service(json!({ "type": "NodePort" }));
    let new = kind.updated("", bare, &old);
    assert_eq!(new["spec"], old["spec"]);
    let moved = with(&old, json!({ "spec": { "clusterIP": "10.96.0.77", "clusterIPs": ["10.96.0.77"] } }));
    let errors = kind.update_errors("", moved, &old);
    assert_eq!(errors, ["spec.clusterIPs[0]: Invalid value: [\"10.96.0.77\"]: may not change once set"]);
}

#[test]
fn a_change_of_type_drops_what_the_new_type_has_not() {
    let (kind, mut addresses) = (services(), allocator());
    let mut old = kind.accepted(service(json!({ "type": "NodePort" })));
    store(&mut addresses, &mut old);
    let inside = with(&old, json!({ "spec": { "type": "ClusterIP" } }));
    assert!(kind.update_errors("", inside.clone(), &old).is_empty());
    let mut stored = kind.updated("", inside, &old);
    assert_eq!(stored["spec"]["ports"][0]["nodePort"], Value::Null);
    assert_eq!(stored["spec"]["externalTrafficPolicy"], Value::Null);
    addresses.allocate(&mut stored, Some(&old), false).unwrap();
    addresses.updated(&stored, &old);
    let taken = old["spec"]["ports"][0]["nodePort"].clone();
    let mut other =
        kind.accepted(service(json!({ "type": "NodePort", "ports": [{ "port": 1, "nodePort": taken }] })));
    other["metadata"]["name"] = json!("other");
    addresses.allocate(&mut other, None, false).expect("the port is free again");
    let outside = with(
        &stored,
        json!({ "spec": { "type": "ExternalName", "externalName": "example.com", "ports": null } }),
    );
    let stored = kind.updated("", outside, &stored);
    assert_eq!((&stored["spec"]["clusterIP"], &stored["spec"]["clusterIPs"]), (&Value::Null, &Value::Null));
}

#[test]
fn addresses_come_from_the_upper_part_of_the_range() {
    let mut addresses = allocator();
    for i in 0..50 {
        let mut object = services().accepted(service(json!({ "type": "NodePort" })));
        object["metadata"]["name"] = json!(format!("web-{i}"));
        addresses.allocate(&mut object, None, false).unwrap();
        let ip: std::net::Ipv4Addr = object["spec"]["clusterIP"].as_str().unwrap().parse().unwrap();
        assert!(ip > "10.96.1.0".parse::<std::net::Ipv4Addr>().unwrap(), "{ip} is in the static band");
        assert_eq!(object["spec"]["ipFamilies"], json!(["IPv4"]));
        assert_eq!(object["spec"]["ipFamilyPolicy"], "SingleStack");
        let port = object["spec"]["ports"][0]["nodePort"].as_u64().unwrap() as u16;
        assert!(NODE_PORTS.contains(&port) && port >= NODE_PORTS.start() + 86);
    }
}

#[test]
fn what_is_taken_or_out_of_range_is_refused_and_nothing_stays_taken() {
    let mut addresses = allocator();
    let named = |name: &str, spec: Value| {
        with(&services().accepted(service(spec)), json!({ "metadata": { "name": name } }))
    };
    let fixed = json!({ "type": "NodePort", "clusterIP": "10.96.0.10", "ports": [{ "port": 80, "nodePort": 30080 }] });
    addresses.allocate(&mut named("first", fixed.clone()), None, false).unwrap();
    let refusal = |addresses: &mut Allocator, spec: Value| {
        addresses.allocate(&mut named("second", spec), None, false).unwrap_err().to_string()
    };
    assert_eq!(
        refusal(&mut addresses, json!({ "clusterIP": "10.96.0.10" })),
        "spec.clusterIPs: Invalid value: [\"10.96.0.10\"]: failed to allocate IP 10.96.0.10: provided IP is already allocated"
    );
    assert_eq!(
        refusal(&mut addresses, json!({ "clusterIP": "10.1.0.1" })),
        "spec.clusterIPs: Invalid value: [\"10.1.0.1\"]: failed to allocate IP 10.1.0.1: the provided network \
         does not match the current range"
    );
    let own_ip = json!({ "type": "NodePort", "clusterIP": "10.96.0.11", "ports": [{ "port": 80, "nodePort": 30080 }] });
    assert_eq!(
        refusal(&mut addresses, own_ip),
        "spec.ports[0].nodePort: Invalid value: 30080: provided port is already allocated"
    );
    let far = json!({ "type": "NodePort", "ports": [{ "port": 80, "nodePort": 80 }] });
    assert_eq!(
        refusal(&mut addresses, far),
        "spec.ports[0].nodePort: Invalid value: 80: provided port is not in the valid range. The range of valid ports is \
         30000-32767"
    );
    let mut third = named("third", json!({ "clusterIP": "10.96.0.11" }));
    assert!(addresses.allocate(&mut third, None, false).is_ok(), "the refused request gave its address back");
}

#[test]
fn a_dry_run_takes_nothing_and_a_deleted_service_gives_all_back() {
    let mut addresses = allocator();
    let mut object = services().accepted(service(json!({ "clusterIP": "10.96.0.10" })));
    assert_eq!(addresses.allocate(&mut object, None, true).unwrap(), []);
    let taken = store(&mut addresses, &mut object);
    assert_eq!(taken, [Reservation::Ip("10.96.0.10".parse().unwrap())]);
    let mut other = with(&object, json!({ "metadata": { "name": "other" } }));
    assert!(addresses.allocate(&mut other, None, false).is_err());
    addresses.deleted(&object);
    assert!(addresses.allocate(&mut other, None, false).is_ok());
}

#[test]
fn a_rebuilt_allocator_knows_what_is_stored() {
    let mut addresses = allocator();
    let mut stored = services().accepted(service(json!({ "type": "NodePort" })));
    addresses.allocate(&mut stored, None, false).unwrap();
    let mut fresh = allocator();
    fresh.rebuild([&stored]);
    let ip = stored["spec"]["clusterIP"].clone();
    let mut thief = with(
        &services().accepted(service(json!({ "clusterIP": ip }))),
        json!({ "metadata": { "name": "thief" } }),
    );
    assert!(fresh.allocate(&mut thief, None, false).is_err());
    let before = stored.clone();
    assert_eq!(fresh.allocate(&mut stored, Some(&before), false).unwrap(), [], "its own are no news");
    assert_eq!(stored, before);
}

#[test]
fn a_small_range_is_used_to_its_last_address_and_then_full() {
    let mut addresses = Allocator::new(vec!["10.96.0.0/29".parse().unwrap()]);
    let mut seen = HashSet::new();
    for i in 0..6 {
        let mut object = with(
            &services().accepted(service(json!({}))),
            json!({ "metadata": { "name": format!("s{i}") } }),
        );
        addresses.allocate(&mut object, None, false).unwrap();
        assert!(seen.insert(object["spec"]["clusterIP"].to_string()));
    }
    let mut last = with(&services().accepted(service(json!({}))), json!({ "metadata": { "name": "last" } }));
    let refused = addresses.allocate(&mut last, None, false).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "spec.clusterIPs: Internal error: failed to allocate a serviceIP: range is full"
    );
}

#[test]
fn ranges_that_are_ready_are_used_at_once_and_those_that_end_no_more() {
    let mut addresses = Allocator::new(vec!["10.96.0.0/30".parse().unwrap()]);
    let range = |cidr: &str, more: Value| {
        let ready = json!({ "status": { "conditions": [{ "type": "Ready", "status": "True" }] } });
        with(&with(&json!({ "metadata": {}, "spec": { "cidrs": [cidr] } }), ready), more)
    };
    let (own, extra) = (range("10.96.0.0/30", json!({})), range("203.0.113.0/24", json!({})));
    let asked = |name: &str, spec: Value| {
        with(&services().accepted(service(spec)), json!({ "metadata": { "name": name } }))
    };
    let fixed = json!({ "clusterIP": "203.0.113.10" });
    addresses.set_ranges([&own]);
    assert!(addresses.allocate(&mut asked("a", fixed.clone()), None, true).is_err());
    addresses.set_ranges([&extra, &own]);
    let mut object = asked("a", fixed);
    store(&mut addresses, &mut object);
    for name in ["b", "c", "d"] {
        let mut object = asked(name, json!({}));
        addresses.allocate(&mut object, None, false).unwrap();
        let is_own = object["spec"]["clusterIP"].as_str().unwrap().starts_with("10.96.0.");
        assert_eq!(is_own, name != "d", "the configured range is used up first");
    }
    let ending =
        range("203.0.113.0/24", json!({ "metadata": { "deletionTimestamp": "2026-01-01T00:00:00Z" } }));
    addresses.set_ranges([&own, &ending]);
    assert!(addresses.allocate(&mut asked("e", json!({})), None, true).is_err());
    let before = object.clone();
    assert_eq!(addresses.allocate(&mut object, Some(&before), false).unwrap(), [], "what it has it keeps");
}

#[test]
fn an_address_object_of_somebody_else_holds_its_address() {
    let mut addresses = allocator();
    let parent = |name: &str| json!({ "resource": "services", "namespace": "ns", "name": name });
    let stored =
        |name: &str| json!({ "metadata": { "name": "10.96.0.10" }, "spec": { "parentRef": parent(name) } });
    let mut object = services().accepted(service(json!({ "clusterIP": "10.96.0.10" })));
    addresses.address_stored(&stored("other"));
    let refused = addresses.allocate(&mut object, None, false).unwrap_err().to_string();
    assert!(refused.ends_with("provided IP is already allocated"), "{refused}");
    addresses.address_deleted(&stored("other"));
    assert!(addresses.allocate(&mut object, None, true).is_ok());
}

#[test]
fn headless_services_have_families_but_no_address() {
    let mut addresses = allocator();
    let mut object = services().accepted(service(json!({ "clusterIP": "None" })));
    assert_eq!(addresses.allocate(&mut object, None, false).unwrap(), []);
    assert_eq!(object["spec"]["clusterIPs"], json!(["None"]));
    assert_eq!(object["spec"]["ipFamilies"], json!(["IPv4"]));
    let mut dual = services().accepted(service(json!({ "ipFamilyPolicy": "RequireDualStack" })));
    assert_eq!(
        addresses.allocate(&mut dual, None, false).unwrap_err().to_string(),
        "spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": this cluster is not configured for dual-stack services"
    );
}

#[test]
fn dual_stack_services_get_an_address_of_each_family() {
    let mut addresses =
        Allocator::new(vec!["10.96.0.0/16".parse().unwrap(), "fd00:96::/112".parse().unwrap()]);
    let mut object = services().accepted(service(json!({ "ipFamilyPolicy": "PreferDualStack" })));
    addresses.allocate(&mut object, None, false).unwrap();
    assert_eq!(object["spec"]["ipFamilies"], json!(["IPv4", "IPv6"]));
    let ips = object["spec"]["clusterIPs"].as_array().unwrap();
    assert_eq!(ips.len(), 2);
    assert!(ips[1].as_str().unwrap().starts_with("fd00:96::"));
    assert_eq!(object["spec"]["clusterIP"], ips[0]);
}

#[test]
fn tcp_and_udp_on_one_port_share_a_node_port() {
    let ports = json!([{ "name": "a", "port": 53, "protocol": "UDP" }, { "name": "b", "port": 53, "protocol": "TCP" }]);
    let mut object = services().accepted(service(json!({ "type": "NodePort", "ports": ports })));
    allocator().allocate(&mut object, None, false).unwrap();
    assert_eq!(object["spec"]["ports"][0]["nodePort"], object["spec"]["ports"][1]["nodePort"]);
}

#[test]
fn network_policies_default_their_types_and_protocols() {
    let policy = |spec: Value| {
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata("deny"), "spec": spec,
        })
    };
    let kind = Kind::new("networking.k8s.io", "networkpolicies");
    let ingress =
        kind.accepted(policy(json!({ "podSelector": {}, "ingress": [{ "ports": [{ "port": 80 }] }] })));
    assert_eq!(ingress["spec"]["policyTypes"], json!(["Ingress"]));
    assert_eq!(ingress["spec"]["ingress"][0]["ports"][0]["protocol"], "TCP");
    let both = kind.accepted(policy(json!({ "podSelector": {}, "egress": [{}] })));
    assert_eq!(both["spec"]["policyTypes"], json!(["Ingress", "Egress"]));
    let block = json!({ "cidr": "10.0.0.0/8", "except": ["11.0.0.0/16"] });
    assert_eq!(
        kind.create_errors(policy(
            json!({ "podSelector": {}, "ingress": [{ "from": [{ "ipBlock": block }] }] })
        )),
        [
            "spec.ingress[0].from[0].ipBlock.except[0]: Invalid value: \"11.0.0.0/16\": must be a strict subset of `cidr`"
        ]
    );
    assert_eq!(
        kind.create_errors(policy(json!({ "podSelector": {}, "policyTypes": ["Sideways"] }))),
        ["spec.policyTypes[0]: Unsupported value: \"Sideways\": supported values: \"Egress\", \"Ingress\""]
    );
}

#[test]
fn ingresses_need_a_backend_and_a_path_type() {
    let kind = Kind::new("networking.k8s.io", "ingresses");
    let ingress = |spec: Value| json!({ "apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": metadata("web"), "spec": spec });
    assert_eq!(
        kind.create_errors(ingress(json!({}))),
        ["spec: Invalid value: null: either `defaultBackend` or `rules` must be specified"]
    );
    let path =
        json!([{ "path": "/", "backend": { "service": { "name": "web", "port": { "number": 80 } } } }]);
    assert_eq!(
        kind.create_errors(ingress(json!({ "rules": [{ "http": { "paths": path } }] }))),
        ["spec.rules[0].http.paths[0].pathType: Required value: pathType must be specified"]
    );
}

#[test]
fn endpoint_slices_keep_their_address_type() {
    let kind = Kind::new("discovery.k8s.io", "endpointslices");
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": metadata("web-1"),
        "addressType": "IPv4", "endpoints": [{ "addresses": ["10.244.0.5"] }], "ports": [{ "port": 80 }],
    });
    let old = kind.accepted(slice.clone());
    assert_eq!(old["ports"], json!([{ "name": "", "port": 80, "protocol": "TCP" }]));
    let wrong = with(&slice, json!({ "endpoints": [{ "addresses": ["fd00::1"] }] }));
    assert_eq!(
        kind.create_errors(wrong),
        ["endpoints[0].addresses[0]: Invalid value: \"fd00::1\": must be a valid IPv4 address"]
    );
    // As long as a Service's port name may be, which is longer than a container's.
    let named = |name: &str| with(&slice, json!({ "ports": [{ "name": name, "port": 80 }] }));
    kind.accepted(named("a-name-of-more-than-15-characters"));
    let errors = kind.create_errors(named("Http"));
    assert!(errors.len() == 1 && errors[0].starts_with("ports[0].name: Invalid value"), "{errors:?}");
    let moved = with(&old, json!({ "addressType": "IPv6", "endpoints": [] }));
    assert_eq!(
        kind.update_errors("", moved, &old),
        ["addressType: Invalid value: \"IPv6\": field is immutable"]
    );
}

#[test]
fn bootstrap_objects_pass_their_own_rules() {
    let config = super::super::bootstrap::BootstrapConfig {
        advertise_address: "10.89.0.10".parse().unwrap(),
        secure_port: 6443,
        service_cidr: "10.96.0.0/16".parse().unwrap(),
        cluster_dns: "10.96.0.10".parse().unwrap(),
    };
    let mut addresses = allocator();
    let objects = super::super::bootstrap::objects(&config);
    assert_eq!(objects.len(), 10);
    for object in objects {
        let (group, version) = api::meta::group_and_version(api::meta::api_version(&object));
        let resource =
            api::schema::builtin().kind(group, version, api::meta::kind(&object)).expect("a known kind");
        let mut stored = Kind::new(group, &resource.plural).accepted(object);
        if resource.plural == "services" {
            addresses.allocate(&mut stored, None, false).unwrap();
        }
    }
}
