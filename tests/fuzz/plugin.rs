//! What a container runtime gives the CNI plugin: a network configuration on standard input, and variables.

use cni::config::{Environment, NetworkConfig, VERSIONS, version_hint};
use cni::error::Error;
use fuzz::{Fuzz, outcome};

/// Stands between the configuration and the values of [`VARIABLES`].
const SEPARATOR: u8 = 0;
const VARIABLES: [&str; 4] = ["CNI_COMMAND", "CNI_CONTAINERID", "CNI_IFNAME", "CNI_ARGS"];
const DICTIONARY: [&[u8]; 9] = [
    b"\"cniVersion\":\"0.3.1\"",
    b"\"type\":\"seaway-cni\"",
    b"\"prevResult\":{\"ips\":[{\"address\":\"10.0.0.1/32\"}]}",
    b"\"runtimeConfig\":{\"portMappings\":[",
    b"{\"hostPort\":80,\"containerPort\":65535,\"protocol\":\"udp\",\"hostIP\":\"::1\"}",
    b"\"cni.dev/valid-attachments\":[{\"containerID\":\"a\",\"ifname\":\"eth0\"}]",
    b"null",
    b"\0",
    b"K8S_POD_NAME=;",
];

fn seeds() -> Vec<Vec<u8>> {
    let plain = r#"{"cniVersion":"1.1.0","name":"seaway","type":"seaway-cni","socket":"/run/cni.sock"}"#;
    let full = r#"{"cniVersion":"1.0.0","name":"n","type":"seaway-cni","prevResult":{"ips":[{"address":"10.0.0.1/32"}]},
        "runtimeConfig":{"portMappings":[{"hostPort":80,"containerPort":8080,"protocol":"tcp","hostIP":"192.0.2.1"}]},
        "cni.dev/valid-attachments":[{"containerID":"a","ifname":"eth0"}]}"#;
    let call = |config: &str, variables: &str| format!("{config}\0{variables}").into_bytes();
    let good = "ADD\0abc\0eth0\0K8S_POD_NAMESPACE=default;K8S_POD_NAME=web";
    let edges = full.replace(":80,", ":0,").replace(":8080,", ":65536,");
    vec![
        call(plain, good),
        call(full, good),
        call(&edges, "DEL\0../abc\0sixteen-letters-\0"),
        plain.as_bytes().to_vec(),
    ]
}

/// What a runtime reads of an error must be whole, whatever the version.
fn code_of<T>(result: Result<T, Error>, version: &str) -> u32 {
    let Err(error) = result else { return 0 };
    let shown = error.to_json(version);
    assert_eq!(shown["code"], error.code);
    assert!(shown["msg"].as_str().is_some_and(|text| !text.is_empty()), "{shown}");
    error.code
}

#[test]
fn cni_calls() {
    Fuzz { name: "cni-calls", corpus: seeds(), dictionary: &DICTIONARY }.run(|input| {
        let mut parts = input.split(|byte| *byte == SEPARATOR);
        let config = parts.next().unwrap_or_default();
        let values: Vec<String> = parts.map(|part| String::from_utf8_lossy(part).into_owned()).collect();
        let variable = |name: &str| values.get(VARIABLES.iter().position(|known| *known == name)?).cloned();
        let environment = Environment { variable: &variable };
        let version = version_hint(config);
        let pod = environment.pod();
        let id = environment.container_id();
        assert!(id.iter().all(|id| !id.contains('/') && !id.starts_with('.')), "a path: {id:?}");
        let interface = environment.interface();
        assert!(interface.iter().all(|name| name.len() < 16 && !name.contains('/')), "{interface:?}");
        let seen = (
            code_of(environment.command(), &version),
            code_of(id, &version),
            code_of(interface, &version),
            (pod.0.is_empty(), pod.1.is_empty(), pod.2.is_empty()),
        );
        let parsed = match NetworkConfig::parse(config) {
            Err(error) => return outcome(&(seen, code_of(Err::<(), _>(error), &version), 0, 0, 0)),
            Ok(parsed) => parsed,
        };
        assert!(VERSIONS.contains(&parsed.version.as_str()) && parsed.socket.is_absolute());
        let ports = parsed.port_mappings();
        for port in ports.iter().flatten() {
            assert!((1..=65535).contains(&port.host_port) && (1..=65535).contains(&port.container_port));
        }
        outcome(&(
            seen,
            code_of(ports.clone(), &version),
            ports.map_or(0, |ports| ports.len().min(3)),
            parsed.previous_addresses.map_or(0, |addresses| 1 + addresses.len().min(3)),
            parsed.valid_attachments.map_or(0, |valid| 1 + valid.len().min(3)),
        ))
    });
}
