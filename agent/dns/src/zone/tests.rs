use hickory_proto::rr::{RData, RecordType};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::json;

use super::{Records, Zone};

fn service(value: serde_json::Value) -> Service {
    serde_json::from_value(value).expect("a Service")
}

fn slice(value: serde_json::Value) -> EndpointSlice {
    serde_json::from_value(value).expect("an EndpointSlice")
}

fn zone() -> Zone {
    let mut zone = Zone::new("cluster.local");
    zone.set_service(&service(json!({
        "metadata": {"namespace": "default", "name": "web"},
        "spec": {"clusterIP": "10.96.0.20", "clusterIPs": ["10.96.0.20"],
                 "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]}
    })));
    zone.set_service(&service(json!({
        "metadata": {"namespace": "db", "name": "mysql"},
        "spec": {"clusterIP": "None", "clusterIPs": ["None"], "ports": [{"name": "sql", "port": 3306}]}
    })));
    zone.set_slice(&slice(json!({
        "addressType": "IPv4",
        "metadata": {"namespace": "db", "name": "mysql-1", "labels": {"kubernetes.io/service-name": "mysql"}},
        "endpoints": [
            {"addresses": ["10.244.0.5"], "hostname": "mysql-0", "conditions": {"ready": true}},
            {"addresses": ["10.244.0.6"], "conditions": {"ready": true}},
            {"addresses": ["10.244.0.7"], "conditions": {"ready": false}}
        ],
        "ports": [{"name": "sql", "port": 3306, "protocol": "TCP"}]
    })));
    zone.set_service(&service(json!({
        "metadata": {"namespace": "default", "name": "outside"},
        "spec": {"type": "ExternalName", "externalName": "example.org"}
    })));
    zone
}

fn texts(records: Records) -> Vec<String> {
    let Records::Found(records) = records else { panic!("no records: {records:?}") };
    records.iter().map(RData::to_string).collect()
}

#[test]
fn a_cluster_ip_has_an_address_in_any_case_and_a_service_record() {
    let zone = zone();
    assert_eq!(texts(zone.lookup("WEB.default.svc.Cluster.Local.", RecordType::A)), ["10.96.0.20"]);
    let srv = texts(zone.lookup("_http._tcp.web.default.svc.cluster.local", RecordType::SRV));
    assert_eq!(srv, ["0 100 80 web.default.svc.cluster.local."]);
}

#[test]
fn a_headless_service_answers_with_its_ready_endpoints() {
    let zone = zone();
    assert_eq!(texts(zone.lookup("mysql.db.svc.cluster.local", RecordType::A)), ["10.244.0.5", "10.244.0.6"]);
    assert_eq!(texts(zone.lookup("mysql-0.mysql.db.svc.cluster.local", RecordType::A)), ["10.244.0.5"]);
    assert_eq!(texts(zone.lookup("10-244-0-6.mysql.db.svc.cluster.local", RecordType::A)), ["10.244.0.6"]);
    let srv = texts(zone.lookup("_sql._tcp.mysql.db.svc.cluster.local", RecordType::SRV));
    assert_eq!(
        srv,
        [
            "0 100 3306 mysql-0.mysql.db.svc.cluster.local.",
            "0 100 3306 10-244-0-6.mysql.db.svc.cluster.local."
        ]
    );
}

#[test]
fn endpoints_of_ipv6_and_of_two_slices_are_told_apart() {
    let mut zone = zone();
    zone.set_slice(&slice(json!({
        "addressType": "IPv6",
        "metadata": {"namespace": "db", "name": "mysql-2", "labels": {"kubernetes.io/service-name": "mysql"}},
        "endpoints": [
            {"addresses": ["fd00::7"], "conditions": {"ready": false}},
            {"addresses": ["fd00::5"], "hostname": "mysql-0"},
            {"addresses": ["fd00::6"]},
            {"addresses": ["fd00::8"], "hostname": "mysql-3"}
        ],
        "ports": [{"name": "sql", "port": 3307}]
    })));
    let of = |name: &str, kind| texts(zone.lookup(&format!("{name}mysql.db.svc.cluster.local"), kind));
    assert_eq!(of("", RecordType::A), ["10.244.0.5", "10.244.0.6"]);
    assert_eq!(of("", RecordType::AAAA), ["fd00::5", "fd00::6", "fd00::8"]);
    assert_eq!(of("mysql-0.", RecordType::A), ["10.244.0.5"]);
    assert_eq!(of("mysql-0.", RecordType::AAAA), ["fd00::5"]);
    assert_eq!(of("mysql-3.", RecordType::AAAA), ["fd00::8"]);
    assert_eq!(of("fd00--6.", RecordType::AAAA), ["fd00::6"]);
    assert!(
        of("_sql._tcp.", RecordType::SRV).contains(&"0 100 3307 mysql-3.mysql.db.svc.cluster.local.".into())
    );
    let slice = "mysql-2";
    zone.remove_slice("db", slice);
    assert_eq!(zone.lookup("mysql.db.svc.cluster.local", RecordType::AAAA), Records::NoData);
    assert!(zone.service_by_slice.values().all(|slices| !slices.contains_key(slice)));
}

#[test]
fn addresses_have_names() {
    let zone = zone();
    assert_eq!(
        texts(zone.lookup("20.0.96.10.in-addr.arpa", RecordType::PTR)),
        ["web.default.svc.cluster.local."]
    );
    assert_eq!(
        texts(zone.lookup("5.0.244.10.in-addr.arpa", RecordType::PTR)),
        ["mysql-0.mysql.db.svc.cluster.local."]
    );
    assert_eq!(zone.lookup("9.9.9.9.in-addr.arpa", RecordType::PTR), Records::Elsewhere);
}

#[test]
fn a_name_without_the_type_differs_from_no_name() {
    let zone = zone();
    assert_eq!(zone.lookup("web.default.svc.cluster.local", RecordType::AAAA), Records::NoData);
    assert_eq!(zone.lookup("absent.default.svc.cluster.local", RecordType::A), Records::NoName);
    assert_eq!(zone.lookup("web.absent.svc.cluster.local", RecordType::A), Records::NoName);
    assert_eq!(zone.lookup("default.svc.cluster.local", RecordType::A), Records::NoData);
    assert_eq!(zone.lookup("cluster.local", RecordType::A), Records::NoData);
    assert_eq!(zone.lookup("_tcp.web.default.svc.cluster.local", RecordType::SRV), Records::NoData);
    assert_eq!(zone.lookup("example.org", RecordType::A), Records::Elsewhere);
    assert_eq!(zone.lookup("notcluster.local", RecordType::A), Records::Elsewhere);
}

#[test]
fn an_external_name_is_an_alias_and_a_pod_name_is_its_address() {
    let zone = zone();
    assert_eq!(texts(zone.lookup("outside.default.svc.cluster.local", RecordType::A)), ["example.org."]);
    assert_eq!(texts(zone.lookup("10-244-3-4.default.pod.cluster.local", RecordType::A)), ["10.244.3.4"]);
    assert_eq!(zone.lookup("10-244-3-4.absent.pod.cluster.local", RecordType::A), Records::NoName);
    assert_eq!(texts(zone.lookup("dns-version.cluster.local", RecordType::TXT)), ["1.1.0"]);
}

#[test]
fn removal_leaves_nothing_and_order_does_not_matter() {
    let mut zone = zone();
    zone.remove_service("db", "mysql");
    assert_eq!(zone.lookup("mysql.db.svc.cluster.local", RecordType::A), Records::NoName);
    assert_eq!(zone.lookup("5.0.244.10.in-addr.arpa", RecordType::PTR), Records::Elsewhere);
    zone.remove_slice("db", "mysql-1");
    zone.remove_service("default", "web");
    zone.remove_service("default", "outside");
    assert!(zone.entries.is_empty() && zone.reverse.is_empty() && zone.namespaces.is_empty());
    assert!(zone.service_by_slice.is_empty());

    let mut late = Zone::new("cluster.local");
    late.set_slice(&slice(json!({
        "addressType": "IPv4",
        "metadata": {"namespace": "db", "name": "mysql-1", "labels": {"kubernetes.io/service-name": "mysql"}},
        "endpoints": [{"addresses": ["10.244.0.5"]}],
        "ports": []
    })));
    assert_eq!(late.lookup("mysql.db.svc.cluster.local", RecordType::A), Records::NoName);
    late.set_service(&service(json!({
        "metadata": {"namespace": "db", "name": "mysql"}, "spec": {"clusterIP": "None"}
    })));
    assert_eq!(texts(late.lookup("mysql.db.svc.cluster.local", RecordType::A)), ["10.244.0.5"]);
}

#[test]
fn a_fresh_list_forgets_what_it_does_not_name() {
    let mut zone = zone();
    zone.retain_services(|namespace, name| (namespace, name) != ("default", "web"));
    assert_eq!(zone.lookup("web.default.svc.cluster.local", RecordType::A), Records::NoName);
    assert_eq!(zone.lookup("20.0.96.10.in-addr.arpa", RecordType::PTR), Records::Elsewhere);
    assert_eq!(texts(zone.lookup("mysql.db.svc.cluster.local", RecordType::A)).len(), 2);
    zone.retain_slices(|_, _| false);
    assert_eq!(zone.lookup("mysql.db.svc.cluster.local", RecordType::A), Records::NoName);
}
