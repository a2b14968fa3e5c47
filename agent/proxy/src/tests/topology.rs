//! Hints: which of the ready endpoints the policy Cluster leads to.

use super::*;

/// A ready endpoint, hinted for zones and nodes.
fn hinted(address: &str, node: &str, zones: &[&str], nodes: &[&str]) -> Value {
    let named = |names: &[&str]| names.iter().map(|name| json!({"name": name})).collect::<Vec<_>>();
    let mut endpoint = ready(address, node);
    endpoint["hints"] = json!({"forZones": named(zones), "forNodes": named(nodes)});
    endpoint
}

fn seen_from(zone: &str, list: Value) -> Vec<String> {
    let view = NodeView { zone: zone.into(), ..node() };
    of_web(&desired([&web()], &[slice("web-a", "web", tcp(8080), list)], &view))
}

fn two_zones() -> Value {
    json!([
        hinted("10.244.0.2", "node1", &["zone-a"], &[]),
        hinted("10.244.1.2", "node2", &["zone-b"], &[]),
        hinted("10.244.2.2", "node3", &["zone-b", "zone-a"], &[]),
    ])
}

#[test]
fn hints_for_the_nodes_zone_are_followed() {
    assert_eq!(seen_from("zone-a", two_zones()), ["10.244.0.2:8080 here", "10.244.2.2:8080"]);
    assert_eq!(seen_from("zone-b", two_zones()), ["10.244.1.2:8080", "10.244.2.2:8080"]);
}

#[test]
fn hints_that_leave_the_nodes_zone_out_are_not_followed() {
    for zone in ["", "zone-c"] {
        assert_eq!(seen_from(zone, two_zones()).len(), 3, "{zone}");
    }
}

#[test]
fn one_endpoint_without_a_hint_ends_all_hints_and_one_that_is_not_ready_does_not_count() {
    let mut list = two_zones();
    list[1]["hints"] = Value::Null;
    assert_eq!(seen_from("zone-a", list.clone()).len(), 3);
    list[1]["conditions"] = json!({"ready": false});
    assert_eq!(seen_from("zone-a", list), ["10.244.0.2:8080 here", "10.244.2.2:8080"]);
}

#[test]
fn a_zone_whose_endpoints_are_not_ready_is_as_good_as_none() {
    let mut list = two_zones();
    list[0]["conditions"] = json!({"ready": false});
    list[2]["conditions"] = json!({"ready": false});
    assert_eq!(seen_from("zone-a", list), ["10.244.1.2:8080"]);
}

#[test]
fn hints_for_the_node_go_before_those_for_its_zone() {
    let list = json!([
        hinted("10.244.0.2", "node1", &["zone-a"], &["node1"]),
        hinted("10.244.1.2", "node2", &["zone-a"], &["node2"]),
        hinted("10.244.2.2", "node3", &["zone-b"], &["node3"]),
    ]);
    assert_eq!(seen_from("zone-a", list.clone()), ["10.244.0.2:8080 here"]);

    let mut some_unhinted = list.clone();
    some_unhinted[2]["hints"] = json!({"forZones": [{"name": "zone-b"}]});
    assert_eq!(seen_from("zone-a", some_unhinted), ["10.244.0.2:8080 here", "10.244.1.2:8080"]);

    let mut none_for_this_node = list;
    none_for_this_node[0]["hints"]["forNodes"] = json!([{"name": "node4"}]);
    assert_eq!(seen_from("zone-a", none_for_this_node), ["10.244.0.2:8080 here", "10.244.1.2:8080"]);
}

#[test]
fn hints_do_not_matter_where_the_policy_is_local() {
    let list = json!([
        hinted("10.244.0.2", "node1", &["zone-b"], &[]),
        hinted("10.244.1.2", "node2", &["zone-a"], &[]),
    ]);
    let service = changed(web(), |spec| {
        spec.type_ = Some("NodePort".into());
        spec.external_traffic_policy = Some("Local".into());
        spec.ports.as_mut().expect("ports")[0].node_port = Some(30080);
    });
    let services = desired([&service], &[slice("web-a", "web", tcp(8080), list)], &node());
    assert_eq!(
        endpoints(&services, &key("0.0.0.0", 30080, Protocol::TCP)),
        ["10.244.0.2:8080 here for those beyond", "10.244.1.2:8080 for the node"]
    );
    assert_eq!(of_web(&services), ["10.244.1.2:8080"]);
}

#[test]
fn a_node_that_moves_to_another_zone_gets_the_endpoints_of_that() {
    let mut proxy = Proxy::new(NodeView { zone: String::new(), ..node() });
    proxy.insert_service(&web());
    proxy.insert_slice(&slice("web-a", "web", tcp(8080), two_zones()));
    proxy.update();
    assert_eq!(of_web(&proxy.desired()).len(), 3);
    proxy.set_zone("zone-b".into());
    assert_eq!(proxy.update().len(), 1);
    assert_eq!(of_web(&proxy.desired()), ["10.244.1.2:8080", "10.244.2.2:8080"]);
}
