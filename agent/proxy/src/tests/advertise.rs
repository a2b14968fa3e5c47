//! What of Services a node announces.

use ipnetwork::IpNetwork;

use super::*;
use crate::Advertisement;

const CLUSTER_IP: &str = "10.96.0.7/32";
const EXTERNAL_IP: &str = "198.51.100.7/32";
const BALANCER_IP: &str = "203.0.113.7/32";

fn networks(texts: &[&str]) -> Vec<IpNetwork> {
    texts.iter().map(|text| text.parse().expect("a range")).collect()
}

/// Whole ranges of all kinds.
fn whole() -> Advertisement {
    Advertisement {
        load_balancer: networks(&["203.0.113.0/24"]),
        external: networks(&["198.51.100.0/24"]),
        cluster: networks(&["10.96.0.0/16"]),
        ..Advertisement::default()
    }
}

/// A Service with an address of each kind.
fn outside(policy: &str) -> Service {
    object(json!({
        "metadata": {"namespace": "default", "name": "web"},
        "spec": {"type": "LoadBalancer", "externalTrafficPolicy": policy, "clusterIP": "10.96.0.7",
            "clusterIPs": ["10.96.0.7"], "externalIPs": ["198.51.100.7"], "ports": [{"port": 80}]},
        "status": {"loadBalancer": {"ingress": [
            {"ip": "203.0.113.7", "ipMode": "VIP"}, {"ip": "203.0.113.8", "ipMode": "Proxy"}]}},
    }))
}

fn endpoint(node: &str, state: &str) -> Value {
    let conditions = match state {
        "ready" => json!({"ready": true}),
        "unknown" => json!({}),
        "unready" => json!({"ready": false}),
        "ending" => json!({"ready": false, "serving": true, "terminating": true}),
        other => panic!("{other}"),
    };
    json!({"addresses": ["10.244.0.2"], "nodeName": node, "conditions": conditions})
}

fn announced(
    service: &Service,
    endpoints: Value,
    advertisement: &Advertisement,
) -> (Vec<String>, Vec<String>) {
    let mut proxy = Proxy::new(node());
    proxy.set_advertisement(advertisement.clone());
    proxy.insert_service(service);
    proxy.insert_slice(&slice("web-a", "web", tcp(8080), endpoints));
    proxy.update();
    let announced = proxy.take_announced().expect("it is new");
    let is_local =
        service.spec.as_ref().and_then(|spec| spec.external_traffic_policy.as_deref()) == Some("Local");
    let bound = if is_local { announced.addresses.clone() } else { Default::default() };
    assert_eq!(announced.bound, bound, "what only endpoints of this node serve");
    let text =
        |ranges: &std::collections::BTreeSet<IpNetwork>| ranges.iter().map(ToString::to_string).collect();
    (text(&announced.ranges), text(&announced.addresses))
}

#[test]
fn the_traffic_policy_the_place_and_the_state_of_endpoints_decide_together() {
    let all = [CLUSTER_IP, EXTERNAL_IP, BALANCER_IP];
    let one_by_one = Advertisement { load_balancers_one_by_one: true, ..whole() };
    for policy in ["Cluster", "Local"] {
        for place in ["node1", "node2", ""] {
            for state in ["ready", "unknown", "unready", "ending"] {
                let endpoints = if place.is_empty() { json!([]) } else { json!([endpoint(place, state)]) };
                let is_ready = !place.is_empty() && matches!(state, "ready" | "unknown");
                let case = format!("{policy}, an endpoint on {place:?}, {state}");

                let (ranges, addresses) = announced(&outside(policy), endpoints.clone(), &whole());
                assert_eq!(ranges, ["10.96.0.0/16", "198.51.100.0/24", "203.0.113.0/24"], "{case}");
                let local: &[&str] =
                    if policy == "Local" && is_ready && place == "node1" { &all } else { &[] };
                assert_eq!(addresses, local, "{case}");

                let (ranges, addresses) = announced(&outside(policy), endpoints.clone(), &one_by_one);
                assert_eq!(ranges, ["10.96.0.0/16", "198.51.100.0/24"], "{case}");
                let cluster: &[&str] = if policy == "Cluster" && is_ready { &[BALANCER_IP] } else { &[] };
                assert_eq!(addresses, if policy == "Local" { local } else { cluster }, "{case}, one by one");

                // A node without an endpoint would be a hole in a range of one address.
                let single = Advertisement {
                    load_balancer: networks(&[BALANCER_IP]),
                    external: networks(&[EXTERNAL_IP]),
                    ..Advertisement::default()
                };
                let (ranges, addresses) = announced(&outside(policy), endpoints, &single);
                assert!(ranges.is_empty(), "{case}: {ranges:?}");
                let is_announced = is_ready && (policy == "Cluster" || place == "node1");
                let expected: &[&str] = if is_announced { &all[1..] } else { &[] };
                assert_eq!(addresses, expected, "{case}, ranges of one address");
            }
        }
    }
}

#[test]
fn what_is_in_no_range_or_on_an_excluded_node_is_not_announced() {
    let here = json!([endpoint("node1", "ready")]);
    let none = (Vec::new(), Vec::new());
    assert_eq!(announced(&outside("Local"), here.clone(), &Advertisement::default()), none);
    let excluded = Advertisement { is_excluded: true, ..whole() };
    assert_eq!(announced(&outside("Local"), here.clone(), &excluded), none);
    // Each kind of address has ranges of its own.
    let other =
        Advertisement { external: networks(&["203.0.113.0/24", "10.96.0.0/16"]), ..Advertisement::default() };
    assert_eq!(announced(&outside("Local"), here, &other).1, Vec::<String>::new());
}

#[test]
fn families_are_judged_apart() {
    let service: Service = object(json!({
        "metadata": {"namespace": "default", "name": "web"},
        "spec": {"type": "LoadBalancer", "externalTrafficPolicy": "Local", "clusterIPs": ["10.96.0.7", "fd00:96::7"],
            "ports": [{"port": 80}]},
        "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.7"}, {"ip": "2001:db8::7"}]}},
    }));
    let both = Advertisement {
        load_balancer: networks(&["203.0.113.0/24", "2001:db8::/64"]),
        ..Advertisement::default()
    };
    let (ranges, addresses) = announced(&service, json!([endpoint("node1", "ready")]), &both);
    assert_eq!(ranges, ["203.0.113.0/24", "2001:db8::/64"]);
    assert_eq!(addresses, [BALANCER_IP], "no endpoint of IPv6 is ready");
}

#[test]
fn a_change_is_told_once_and_nothing_else_is() {
    let mut proxy = Proxy::new(node());
    proxy.set_advertisement(whole());
    proxy.insert_service(&outside("Local"));
    proxy.insert_slice(&slice("web-a", "web", tcp(8080), json!([endpoint("node1", "ready")])));
    proxy.update();
    assert_eq!(proxy.take_announced().expect("it is new").addresses.len(), 3);
    assert_eq!(proxy.take_announced(), None);
    proxy.insert_slice(&slice("web-a", "web", tcp(9090), json!([endpoint("node1", "ready")])));
    proxy.update();
    assert_eq!(proxy.take_announced(), None, "a port is nothing to peers");
    proxy.insert_slice(&slice("web-a", "web", tcp(9090), json!([endpoint("node1", "ending")])));
    proxy.update();
    assert!(proxy.take_announced().expect("it ends").addresses.is_empty());
    proxy.set_advertisement(Advertisement { is_excluded: true, ..whole() });
    assert!(proxy.take_announced().expect("the node is excluded").ranges.is_empty());
    proxy.set_advertisement(Advertisement { is_excluded: true, ..whole() });
    assert_eq!(proxy.take_announced(), None);
    proxy.set_advertisement(whole());
    proxy.remove_service(&ObjectName { namespace: "default".into(), name: "web".into() });
    proxy.update();
    assert!(proxy.take_announced().expect("ranges are back").addresses.is_empty());
}
