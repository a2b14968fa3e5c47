//! The wire by hand, the golden objects of Kubernetes, and what hostile bytes come to.

use serde_json::{Value, json};

use super::*;
use crate::meta;
use crate::schema::builtin;

fn varint(mut number: u64, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn bytes(tag: u32, content: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    varint(u64::from(tag) << 3 | 2, &mut out);
    varint(content.len() as u64, &mut out);
    out.extend_from_slice(content);
    out
}

fn number(tag: u32, value: i64) -> Vec<u8> {
    let mut out = Vec::new();
    varint(u64::from(tag) << 3, &mut out);
    varint(value.cast_unsigned(), &mut out);
    out
}

fn envelope(version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let meta = [bytes(1, version.as_bytes()), bytes(2, kind.as_bytes())].concat();
    [MAGIC.to_vec(), bytes(1, &meta), bytes(2, raw), bytes(3, b""), bytes(4, b"")].concat()
}

fn read(group: &str, version: &str, kind: &str, body: &[u8]) -> Result<Value, ProtobufError> {
    decode(builtin(), builtin().type_of(group, version, kind).unwrap(), body)
}

#[test]
fn a_config_map_is_read_with_its_maps() {
    let metadata = [bytes(1, b"a"), bytes(2, b""), number(7, 0), bytes(8, b"")].concat();
    let entry = |key: &[u8], value: &[u8]| [bytes(1, key), bytes(2, value)].concat();
    let raw = [
        bytes(1, &metadata),
        bytes(2, &entry(b"x", b"y")),
        bytes(2, &entry(b"empty", b"")),
        bytes(3, &entry(b"bin", &[0, 255])),
    ]
    .concat();
    assert_eq!(
        read("", "v1", "ConfigMap", &envelope("v1", "ConfigMap", &raw)).unwrap(),
        json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"},
            "data": {"x": "y", "empty": ""}, "binaryData": {"bin": "AP8="},
        })
    );
}

#[test]
fn embedded_structs_zeros_and_leaves_read_as_json_has_them() {
    let host_path = bytes(1, &bytes(1, b"/data"));
    let volume = [bytes(1, b"v"), bytes(2, &host_path)].concat();
    let port = [bytes(1, b"http"), number(2, 0), number(3, 80)].concat();
    let container = [bytes(1, b"c"), bytes(2, b"nginx"), bytes(6, &port), number(16, 0)].concat();
    let spec = [bytes(1, &volume), bytes(2, &container), number(4, 0), number(11, 0)].concat();
    let pod = read("", "v1", "Pod", &envelope("v1", "Pod", &bytes(2, &spec))).unwrap();
    assert_eq!(
        pod["spec"],
        json!({
            "volumes": [{"name": "v", "hostPath": {"path": "/data"}}],
            "containers": [{"name": "c", "image": "nginx", "ports": [{"name": "http", "containerPort": 80}],
                "resources": {}}],
            "terminationGracePeriodSeconds": 0,
        })
    );
}

#[test]
fn broken_bytes_are_errors_that_say_where() {
    assert_eq!(read("", "v1", "Pod", b"{}"), Err(ProtobufError::NoMagic));
    let body = envelope("v1", "Pod", &bytes(2, &[0x0a, 0x7f]));
    assert_eq!(read("", "v1", "Pod", &body), Err(ProtobufError::Truncated("spec".to_owned())));
    let body = envelope("v1", "ConfigMap", &bytes(1, &bytes(1, &[0xff])));
    let error = read("", "v1", "ConfigMap", &body).unwrap_err();
    assert_eq!(error.to_string(), "metadata.name: the text is not UTF-8");
    for length in 0..body.len() {
        let _ = read("", "v1", "ConfigMap", &body[..length]);
    }
}

/// A golden object of Kubernetes' own tests: file name without ending, JSON, protobuf.
fn golden() -> Vec<(String, Value, Vec<u8>)> {
    let folder =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/kubernetes-1.36/golden");
    let Ok(entries) = std::fs::read_dir(&folder) else {
        eprintln!("SKIPPED: no golden objects in {}", folder.display());
        return Vec::new();
    };
    let mut found = Vec::new();
    for path in entries.map(|entry| entry.unwrap().path()) {
        if path.extension().is_some_and(|ending| ending == "pb") {
            let json = serde_json::from_slice(&std::fs::read(path.with_extension("json")).unwrap()).unwrap();
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            found.push((name, json, std::fs::read(&path).unwrap()));
        }
    }
    assert!(found.len() > 150, "only {} golden objects", found.len());
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}

/// Stable kinds of the golden data that no path of the API takes or gives.
const NOT_SERVED: [&str; 17] = [
    "admission.k8s.io.v1.AdmissionReview",
    "apidiscovery.k8s.io.v2.APIGroupDiscovery",
    "core.v1.CreateOptions",
    "core.v1.GetOptions",
    "core.v1.ListOptions",
    "core.v1.NodeProxyOptions",
    "core.v1.PatchOptions",
    "core.v1.PodAttachOptions",
    "core.v1.PodExecOptions",
    "core.v1.PodLogOptions",
    "core.v1.PodPortForwardOptions",
    "core.v1.PodProxyOptions",
    "core.v1.PodStatusResult",
    "core.v1.RangeAllocation",
    "core.v1.SerializedReference",
    "core.v1.ServiceProxyOptions",
    "core.v1.UpdateOptions",
];

#[test]
fn golden_objects_of_the_stable_api_come_back_to_the_byte() {
    let (mut same, mut unstable, mut not_served, mut wrong) = (0, Vec::new(), Vec::new(), Vec::new());
    for (name, json, bytes) in golden() {
        let (group, version) = meta::group_and_version(meta::api_version(&json));
        // A WatchEvent states no kind.
        let kind = if name == "core.v1.WatchEvent" { "WatchEvent" } else { meta::kind(&json) };
        let Some(ty) = builtin().type_of(group, version, kind) else {
            if version.contains("alpha") || version.contains("beta") {
                unstable.push(name);
            } else {
                not_served.push(name);
            }
            continue;
        };
        let read = decode(builtin(), ty, &bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
        if encode(builtin(), ty, &read) != bytes {
            wrong.push(format!("{name}: protobuf to protobuf"));
        }
        let mut from_json = json.clone();
        let decoded = builtin().decode(ty, &mut from_json);
        assert_eq!(decoded.errors, Vec::<String>::new(), "{name}");
        assert_eq!(decoded.unknown, Vec::<String>::new(), "{name}");
        if from_json != read {
            wrong.push(format!("{name}: JSON and protobuf differ\n{from_json}\n{read}"));
        }
        if encode(builtin(), ty, &from_json) != bytes {
            wrong.push(format!("{name}: JSON to protobuf"));
        }
        same += 1;
    }
    eprintln!("{same} golden objects are the same in both forms");
    eprintln!("{} of versions that are not served: {}", unstable.len(), unstable.join(", "));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(not_served, NOT_SERVED);
}

/// An object through JSON's decoding, protobuf and back.
fn round_trip(mut object: Value) -> (Value, Value) {
    let (group, version) = meta::group_and_version(meta::api_version(&object));
    let ty = builtin().type_of(group, version, meta::kind(&object)).unwrap();
    builtin().decode(ty, &mut object);
    let read = decode(builtin(), ty, &encode(builtin(), ty, &object)).unwrap();
    (object, read)
}

#[test]
fn pointers_keep_their_zero_and_of_all_else_structs_alone_are_read() {
    let (json, protobuf) = round_trip(json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d", "creationTimestamp": null},
        "spec": {
            "replicas": 0, "paused": false, "minReadySeconds": 0, "strategy": {}, "selector": {},
            "template": {
                "metadata": {"creationTimestamp": null},
                "spec": {"containers": [{"name": "c", "resources": {}, "securityContext": {"privileged": false}}]},
            },
        },
        "status": {},
    }));
    assert_eq!(json, protobuf);
    assert_eq!(
        json["spec"],
        json!({"replicas": 0, "selector": {}, "strategy": {}, "template": {"metadata": {}, "spec": {
            "containers": [{"name": "c", "resources": {}, "securityContext": {"privileged": false}}]}}})
    );
}

#[test]
fn schemas_and_what_may_stand_in_their_place_survive() {
    let (json, protobuf) = round_trip(json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "a.b"},
        "spec": {
            "group": "b", "scope": "Namespaced", "names": {"plural": "a", "kind": "A"},
            "versions": [{"name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "additionalProperties": false, "properties": {
                    "any": {"x-kubernetes-preserve-unknown-fields": true, "default": {"a": [1, null]}},
                    "map": {"additionalProperties": {"type": "string", "enum": ["x", 1]}},
                    "list": {"items": {"type": "integer", "maximum": 1.5}},
                    "depends": {"dependencies": {"a": ["b"], "c": {"type": "string"}}},
                }}}}],
        },
    }));
    assert_eq!(json["spec"], protobuf["spec"]);
}

#[test]
fn a_frame_of_a_watch_is_a_length_and_an_event_around_the_object() {
    let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}});
    let whole = encode_any(builtin(), &object).unwrap();
    let ty = builtin().type_of("", "v1", "ConfigMap").unwrap();
    let message = encode_message(builtin(), ty, &object);
    let head = envelope_head("v1", "ConfigMap", message.len());
    let frame = watch_frame("ADDED", &head, &message);
    assert_eq!(frame, watch_frame_of("ADDED", &whole));
    let event = [bytes(1, b"ADDED"), bytes(2, &bytes(1, &whole))].concat();
    assert_eq!(frame, [&(event.len() as u32).to_be_bytes()[..], &event].concat());
    let metadata = metadata_of(&message).unwrap();
    assert_eq!(metadata, encode_partial(builtin(), &object["metadata"]));
    assert_eq!(identity(&whole).unwrap(), ("v1".to_owned(), "ConfigMap".to_owned()));
}

#[test]
fn small_messages_do_not_become_objects_without_bound() {
    let containers = [0x12, 0].repeat(500_000);
    let body = envelope("v1", "Pod", &bytes(2, &containers));
    assert!(matches!(read("", "v1", "Pod", &body), Err(ProtobufError::TooMany(_))));
}
