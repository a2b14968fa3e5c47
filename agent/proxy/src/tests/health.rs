//! What a load balancer is told of this node.

use super::*;
use crate::HealthCheck;

fn asked() -> Service {
    changed(web(), |spec| {
        spec.type_ = Some("LoadBalancer".into());
        spec.external_traffic_policy = Some("Local".into());
        spec.health_check_node_port = Some(31000);
    })
}

fn proxy(service: Service, slices: Vec<EndpointSlice>) -> Proxy {
    let mut proxy = Proxy::new(node());
    proxy.insert_service(&service);
    slices.into_iter().for_each(|slice| proxy.insert_slice(&slice));
    proxy.update();
    proxy
}

fn health(service: Service, slices: Vec<EndpointSlice>) -> Option<HealthCheck> {
    proxy(service, slices).health_checks().values().next().copied()
}

#[test]
fn ready_endpoints_of_this_node_are_counted_by_address() {
    let ending = json!({"addresses": ["10.244.0.9"], "nodeName": "node1",
        "conditions": {"ready": false, "serving": true, "terminating": true}});
    let list = json!([
        ready("10.244.0.2", "node1"),
        ready("10.244.0.3", "node1"),
        ready("10.244.1.2", "node2"),
        {"addresses": ["10.244.0.8"], "nodeName": "node1", "conditions": {"ready": false}},
        ending,
    ]);
    let ports = json!([{"name": "a", "port": 8080}, {"name": "b", "port": 9090}]);
    let again = json!([ready("10.244.0.2", "node1"), ready("10.244.0.4", "node1")]);
    let mut v6 = slice("web-v6", "web", tcp(8080), json!([ready("fd00:244::2", "node1")]));
    v6.address_type = "IPv6".into();
    let slices = vec![
        slice("web-a", "web", ports, list),
        slice("web-b", "web", tcp(8080), again),
        slice("web-c", "web", json!([]), json!([ready("10.244.0.7", "node1")])),
        v6,
    ];
    let wanted = HealthCheck { port: 31000, v4: Some(3), v6: None };
    assert_eq!(health(asked(), slices.clone()), Some(wanted), "the Service is of one family");
    let dual =
        changed(asked(), |spec| spec.cluster_ips = Some(vec!["10.96.0.7".into(), "fd00:96::7".into()]));
    assert_eq!(health(dual, slices), Some(HealthCheck { v6: Some(1), ..wanted }));
}

#[test]
fn only_a_balanced_service_with_the_policy_local_is_asked_for() {
    assert_eq!(health(asked(), vec![]), Some(HealthCheck { port: 31000, v4: Some(0), v6: None }));
    assert_eq!(health(changed(asked(), |spec| spec.type_ = Some("NodePort".into())), vec![]), None);
    let cluster = changed(asked(), |spec| spec.external_traffic_policy = Some("Cluster".into()));
    assert_eq!(health(cluster, vec![]), None);
    assert_eq!(health(changed(asked(), |spec| spec.health_check_node_port = None), vec![]), None);
}

#[test]
fn a_service_that_goes_is_no_longer_asked_for() {
    let list = json!([ready("10.244.0.2", "node1")]);
    let mut proxy = proxy(asked(), vec![slice("web-a", "web", tcp(8080), list)]);
    let here = |proxy: &Proxy| proxy.health_checks().values().next().and_then(|health| health.v4);
    assert_eq!(here(&proxy), Some(1));
    proxy.insert_slice(&slice("web-a", "web", tcp(8080), json!([ready("10.244.1.2", "node2")])));
    proxy.update();
    assert_eq!(here(&proxy), Some(0));
    proxy.remove_service(&ObjectName::of(&asked().metadata));
    proxy.update();
    assert_eq!(here(&proxy), None);
}
