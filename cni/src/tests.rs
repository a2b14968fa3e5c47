use cni::call::{Added, Address};
use serde_json::json;

use super::*;
use cni::error::{DECODE_FAILURE, INCOMPATIBLE_VERSION, INVALID_ENVIRONMENT};

fn good() -> Value {
    json!({ "cniVersion": "1.1.0", "name": "seaway", "type": "seaway-cni", "socket": "/nowhere/cni.sock" })
}

fn call_with(config: &[u8], variables: &[(&str, &str)]) -> Result<Option<Value>, Error> {
    let variable = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
    run(config, &Environment { variable: &variable })
}

const ADD: [(&str, &str); 4] = [
    ("CNI_COMMAND", "ADD"),
    ("CNI_CONTAINERID", "abc123"),
    ("CNI_IFNAME", "eth0"),
    ("CNI_NETNS", "/proc/self/ns/net"),
];

#[test]
fn garbage_is_a_decode_failure_and_says_where() {
    let error = call_with(b"{\"cniVersion\": \"1.0.0\", ", &ADD).unwrap_err();
    assert_eq!(error.code, DECODE_FAILURE);
    assert!(error.details.contains("line 1"), "{error:?}");
    assert_eq!(call_with(b"[1, 2]", &ADD).unwrap_err().code, DECODE_FAILURE);
    assert_eq!(call_with(b"", &ADD).unwrap_err().code, DECODE_FAILURE);
}

#[test]
fn each_bad_field_is_named() {
    for (field, value) in [
        ("name", json!("-bad")),
        ("name", Value::Null),
        ("name", json!(7)),
        ("type", json!("bridge")),
        ("socket", json!("relative.sock")),
        ("socket", json!(["x"])),
        ("cniVersion", Value::Null),
        ("cni.dev/valid-attachments", json!("x")),
    ] {
        let mut config = good();
        config[field] = value;
        let error = call_with(config.to_string().as_bytes(), &ADD).unwrap_err();
        assert_eq!(error.code, INVALID_CONFIG, "{field}");
        assert!(error.message.contains(field), "{error:?}");
    }
}

#[test]
fn port_mappings_are_read_and_each_bad_field_of_them_is_named() {
    let with = |mappings: Value| {
        let mut config = good();
        config["runtimeConfig"] = json!({ "portMappings": mappings });
        NetworkConfig::parse(config.to_string().as_bytes()).and_then(|config| config.port_mappings())
    };
    let mappings = json!([
        { "hostPort": 8080, "containerPort": 80, "protocol": "TCP", "hostIP": "" },
        { "HostPort": 53, "ContainerPort": 5353, "Protocol": "udp", "HostIP": "192.0.2.1" },
        { "hostPort": 1, "containerPort": 65535 },
    ]);
    let read = with(mappings).unwrap();
    let of =
        |at: usize| (read[at].host_port, read[at].container_port, &*read[at].protocol, &*read[at].host_ip);
    assert_eq!(of(0), (8080, 80, "tcp", ""));
    assert_eq!(of(1), (53, 5353, "udp", "192.0.2.1"));
    assert_eq!(of(2), (1, 65535, "tcp", ""));
    assert!(with(Value::Null).unwrap().is_empty());
    for (field, mapping) in [
        ("portMappings", json!("x")),
        ("portMappings[0].hostPort", json!([{ "hostPort": 65536, "containerPort": 80 }])),
        ("portMappings[0].containerPort", json!([{ "hostPort": 80 }])),
        ("portMappings[0].protocol", json!([{ "hostPort": 80, "containerPort": 80, "protocol": "icmp" }])),
        ("portMappings[0].hostIP", json!([{ "hostPort": 80, "containerPort": 80, "hostIP": "all" }])),
    ] {
        let error = with(mapping).unwrap_err();
        assert!(error.message.contains(field), "{error:?}");
    }
}

#[test]
fn an_unknown_version_is_incompatible() {
    let mut config = good();
    config["cniVersion"] = json!("9.9.9");
    let error = call_with(config.to_string().as_bytes(), &ADD).unwrap_err();
    assert_eq!(error.code, INCOMPATIBLE_VERSION);
    assert_eq!(error.to_json("9.9.9")["code"], 1);
}

#[test]
fn each_bad_variable_is_named() {
    for (name, value) in [
        ("CNI_COMMAND", "EXPLODE"),
        ("CNI_COMMAND", ""),
        ("CNI_CONTAINERID", "../etc"),
        ("CNI_CONTAINERID", ""),
        ("CNI_IFNAME", "much-too-long-a-name"),
        ("CNI_IFNAME", "a/b"),
        ("CNI_NETNS", "/does/not/exist"),
    ] {
        let mut variables = ADD;
        variables.iter_mut().find(|(n, _)| *n == name).unwrap().1 = value;
        let error = call_with(good().to_string().as_bytes(), &variables).unwrap_err();
        assert_eq!(error.code, INVALID_ENVIRONMENT, "{name}={value}");
        assert!(error.message.contains(name), "{error:?}");
    }
}

#[test]
fn without_an_agent_add_says_try_again_and_status_says_not_available() {
    let config = good().to_string();
    let error = call_with(config.as_bytes(), &ADD).unwrap_err();
    assert_eq!(error.code, TRY_AGAIN_LATER);
    assert!(error.details.contains("/nowhere/cni.sock"), "{error:?}");
    let error = call_with(config.as_bytes(), &[("CNI_COMMAND", "STATUS")]).unwrap_err();
    assert_eq!(error.code, NOT_AVAILABLE);
}

#[test]
fn version_needs_no_agent_and_no_other_variable() {
    let result = call_with(br#"{"cniVersion": "1.0.0"}"#, &[("CNI_COMMAND", "VERSION")]).unwrap().unwrap();
    let expected = json!({
        "cniVersion": "1.0.0",
        "supportedVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"],
    });
    assert_eq!(result, expected);
}

#[test]
fn check_needs_the_previous_result_and_gc_the_valid_attachments() {
    let config = good().to_string();
    for (command, field) in [("CHECK", "prevResult"), ("GC", "cni.dev/valid-attachments")] {
        let mut variables = ADD;
        variables[0].1 = command;
        let error = call_with(config.as_bytes(), &variables).unwrap_err();
        assert_eq!(error.code, INVALID_CONFIG);
        assert!(error.message.contains(field), "{error:?}");
    }
}

#[test]
fn the_result_has_the_shape_of_its_version() {
    let response = Added {
        host_interface: "swp0123456789ab".to_owned(),
        host_mac: "ee:ee:ee:ee:ee:ee".to_owned(),
        pod_mac: "02:fe:0a:f4:00:42".to_owned(),
        mtu: 1500,
        addresses: vec![Address { address: "10.244.0.66/32".to_owned(), gateway: "169.254.1.1".to_owned() }],
    };
    let newest = result::added("1.1.0", "eth0", "/run/netns/x", &response);
    let expected = json!({
        "cniVersion": "1.1.0",
        "interfaces": [
            { "name": "swp0123456789ab", "mac": "ee:ee:ee:ee:ee:ee", "mtu": 1500 },
            { "name": "eth0", "mac": "02:fe:0a:f4:00:42", "sandbox": "/run/netns/x", "mtu": 1500 },
        ],
        "ips": [{ "address": "10.244.0.66/32", "gateway": "169.254.1.1", "interface": 1 }],
        "routes": [{ "dst": "0.0.0.0/0", "gw": "169.254.1.1" }],
        "dns": {},
    });
    assert_eq!(newest, expected);
    let old = result::added("0.4.0", "eth0", "/run/netns/x", &response);
    assert_eq!(old["ips"][0]["version"], "4");
    assert_eq!(old["interfaces"][1].get("mtu"), None);
}
