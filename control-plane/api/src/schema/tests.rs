use std::{collections::BTreeSet, fs, io::Write, path::PathBuf};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

/// A document of Kubernetes' own, to compare with; not part of the project. `SEAWAY_KUBERNETES_DATA` says where they are.
fn published(name: &str) -> Option<Value> {
    let folder = std::env::var_os("SEAWAY_KUBERNETES_DATA").map(PathBuf::from).or_else(|| {
        let beside = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/kubernetes-1.36");
        beside.is_dir().then_some(beside)
    });
    let Some(path) = folder.map(|folder| folder.join(name)) else {
        // Not eprintln!, which the test harness would swallow.
        let text =
            format!("NOT RUN: {name} is not here; set SEAWAY_KUBERNETES_DATA to a folder that has it\n");
        std::io::stderr().write_all(text.as_bytes()).unwrap();
        return None;
    };
    let text =
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("reading {}: {error}", path.display()));
    Some(serde_json::from_str(&text).unwrap())
}

fn is_stable(name: &str) -> bool {
    !name.split('.').any(|part| part.starts_with('v') && (part.contains("alpha") || part.contains("beta")))
}

fn names(value: &Value) -> BTreeSet<String> {
    value.as_array().into_iter().flatten().map(|name| name.as_str().unwrap().to_owned()).collect()
}

#[test]
fn types_are_those_of_the_published_definitions() {
    let Some(document) = published("openapi-v2.json") else { return };
    let definitions = document["definitions"].as_object().unwrap();
    let schema = builtin();
    let ours: BTreeSet<String> = schema.types().iter().map(Type::definition).collect();
    let theirs: BTreeSet<String> = definitions.keys().filter(|name| is_stable(name)).cloned().collect();
    assert_eq!(ours, theirs);
    let mut compared = 0;
    for ty in schema.types().iter().filter(|ty| ty.leaf.is_none()) {
        let definition = &definitions[&ty.definition()];
        let no_properties = serde_json::Map::new();
        let properties = definition["properties"].as_object().unwrap_or(&no_properties);
        let ours: BTreeSet<&str> = ty.fields.iter().map(|field| field.name.as_ref()).collect();
        let theirs: BTreeSet<&str> = properties.keys().map(String::as_str).collect();
        assert_eq!(ours, theirs, "fields of {}", ty.name);
        let required = ty.fields.iter().filter(|field| field.required).map(|field| field.name.to_string());
        assert_eq!(
            required.collect::<BTreeSet<_>>(),
            names(&definition["required"]),
            "required by {}",
            ty.name
        );
        assert_eq!(ty.atomic, definition["x-kubernetes-map-type"] == "atomic", "map type of {}", ty.name);
        for field in &ty.fields {
            assert_field(schema, ty, field, &properties[field.name.as_ref()]);
            compared += 1;
        }
    }
    assert!(compared > 2000, "{compared} fields compared");
}

fn assert_field(schema: &Schema, ty: &Type, field: &Field, published: &Value) {
    let place = format!("{}.{}", ty.name, field.name);
    assert_shape(schema, &field.shape, published, &place);
    let (list, keys) = match &field.list {
        ListType::Unset => (Value::Null, BTreeSet::new()),
        ListType::Atomic => (json!("atomic"), BTreeSet::new()),
        ListType::Set => (json!("set"), BTreeSet::new()),
        ListType::Map(keys) => (json!("map"), keys.iter().map(|key| key.to_string()).collect()),
    };
    assert_eq!(list, published["x-kubernetes-list-type"], "list type of {place}");
    assert_eq!(keys, names(&published["x-kubernetes-list-map-keys"]), "list keys of {place}");
    let map = field.map.map(|map| if map == MapType::Atomic { "atomic" } else { "granular" });
    assert_eq!(json!(map), published["x-kubernetes-map-type"], "map type of {place}");
    assert_eq!(json!(field.merge_key), published["x-kubernetes-patch-merge-key"], "merge key of {place}");
    let strategy = published["x-kubernetes-patch-strategy"].as_str().unwrap_or("");
    let has = |wanted: &str| strategy.split(',').any(|part| part == wanted);
    let theirs =
        PatchStrategy { merge: has("merge"), replace: has("replace"), retain_keys: has("retainKeys") };
    assert_eq!(field.patch, theirs, "patch strategy of {place}");
    // v2 leaves defaults of scalars out; where it has one, so have we.
    if let Some(default) = published.get("default") {
        assert_eq!(field.default.as_deref(), Some(default.to_string().as_str()), "default of {place}");
    }
}

fn assert_shape(schema: &Schema, shape: &Shape, published: &Value, place: &str) {
    let format = published["format"].as_str();
    match shape {
        Shape::Ref(id) => {
            let reference = format!("#/definitions/{}", schema.get(*id).definition());
            assert_eq!(published["$ref"], reference, "{place}");
        }
        Shape::List(item) => assert_shape(schema, item, &published["items"], place),
        Shape::Map(value) => assert_shape(schema, value, &published["additionalProperties"], place),
        Shape::String => assert_eq!((published["type"].as_str(), format), (Some("string"), None), "{place}"),
        Shape::Bytes => assert_eq!(format, Some("byte"), "{place}"),
        Shape::Boolean => assert_eq!(published["type"], "boolean", "{place}"),
        Shape::Int32 => assert_eq!(format, Some("int32"), "{place}"),
        Shape::Int64 => assert_eq!(format, Some("int64"), "{place}"),
        Shape::Double => assert_eq!(format, Some("double"), "{place}"),
        other => panic!("{place} has the form {other:?} outside a named type"),
    }
}

#[test]
fn resources_are_those_of_the_published_discovery() {
    let Some(document) = published("aggregated_v2.json") else { return };
    let mut theirs = BTreeSet::new();
    for group in document["items"].as_array().unwrap() {
        let name = group["metadata"]["name"].as_str().unwrap_or("");
        for version in group["versions"].as_array().unwrap() {
            let version_name = version["version"].as_str().unwrap();
            if version_name.contains("alpha") || version_name.contains("beta") {
                continue;
            }
            for published in version["resources"].as_array().unwrap() {
                let plural = published["resource"].as_str().unwrap();
                theirs.insert(format!("{name}/{version_name}/{plural}"));
                let ours = builtin().resource(name, version_name, plural);
                assert_resource(
                    ours.unwrap_or_else(|| panic!("{name}/{version_name} {plural} is missing")),
                    published,
                );
            }
        }
    }
    let ours = builtin().resources().iter().filter(|resource| !resource.group.is_empty());
    let ours = ours.map(|found| format!("{}/{}/{}", found.group, found.version, found.plural));
    assert_eq!(ours.collect::<BTreeSet<_>>(), theirs);
}

fn assert_resource(ours: &Resource, published: &Value) {
    let list = |value: &Value| json!(names(value));
    let place = &ours.plural;
    assert_eq!(ours.kind, published["responseKind"]["kind"], "{place}");
    assert_eq!(ours.singular, published["singularResource"], "{place}");
    assert_eq!(ours.namespaced, published["scope"] == "Namespaced", "{place}");
    assert_eq!(json!(ours.short_names), list(&published["shortNames"]), "{place}");
    assert_eq!(json!(ours.categories), list(&published["categories"]), "{place}");
    assert_eq!(json!(ours.verbs), published["verbs"], "{place}");
    let subresources = published["subresources"].as_array().cloned().unwrap_or_default();
    assert_eq!(ours.subresources.len(), subresources.len(), "{place}");
    for (ours, published) in ours.subresources.iter().zip(&subresources) {
        assert_eq!(ours.name, published["subresource"], "{place}");
        assert_eq!(json!(ours.verbs), published["verbs"], "{place}/{}", ours.name);
        let kind = &published["responseKind"];
        assert_eq!(
            json!([ours.group, ours.version, ours.kind]),
            json!([kind["group"], kind["version"], kind["kind"]])
        );
    }
}

#[test]
fn resources_of_the_core_group_have_the_published_paths_and_verbs() {
    let Some(document) = published("openapi-v2.json") else { return };
    for resource in builtin().resources().iter().filter(|resource| resource.group.is_empty()) {
        let scope = if resource.namespaced { "namespaces/{namespace}/" } else { "" };
        let collection = format!("/api/v1/{scope}{}", resource.plural);
        let object = format!("{collection}/{{name}}");
        let has = |path: &str, method: &str| document["paths"][path].get(method).is_some();
        for (verb, path, method) in [
            ("create", &collection, "post"),
            ("list", &collection, "get"),
            ("deletecollection", &collection, "delete"),
            ("get", &object, "get"),
            ("update", &object, "put"),
            ("patch", &object, "patch"),
            ("delete", &object, "delete"),
        ] {
            assert_eq!(resource.has_verb(verb), has(path, method), "{verb} {path}");
        }
        for subresource in &resource.subresources {
            let path = format!("{object}/{}", subresource.name);
            for (verb, method) in [("get", "get"), ("create", "post"), ("update", "put"), ("patch", "patch")]
            {
                let ours = subresource.verbs.iter().any(|has| has == verb);
                assert_eq!(ours, has(&path, method), "{verb} {path}");
            }
        }
    }
}

#[test]
fn golden_objects_decode_without_complaint() {
    let Some(_present) = published("aggregated_v2.json") else { return };
    let mut decoded = 0;
    // The golden objects are those of k8s.io/api, where these two groups are not.
    let elsewhere = ["apiregistration.k8s.io", "apiextensions.k8s.io"];
    for resource in builtin().resources().iter().filter(|found| !elsewhere.contains(&found.group.as_str())) {
        let group = if resource.group.is_empty() { "core" } else { &resource.group };
        let name = format!("golden/{group}.{}.{}.json", resource.version, resource.kind);
        let Some(golden) = published(&name) else { return };
        let mut value = golden.clone();
        let outcome = builtin().decode(resource.ty, &mut value);
        assert_eq!(outcome, Decoded::default(), "{name}");
        assert_eq!(value, golden, "{name}");
        decoded += 1;
    }
    assert!(decoded > 60, "{decoded} golden objects decoded");
}

fn decode(kind: (&str, &str, &str), mut value: Value) -> (Value, Decoded) {
    let ty = builtin().type_of(kind.0, kind.1, kind.2).unwrap();
    let outcome = builtin().decode(ty, &mut value);
    (value, outcome)
}

const DEPLOYMENT: (&str, &str, &str) = ("apps", "v1", "Deployment");
const POD: (&str, &str, &str) = ("", "v1", "Pod");

#[test]
fn unknown_fields_are_dropped_and_named_with_their_path() {
    let (value, outcome) = decode(
        DEPLOYMENT,
        json!({"spec": {"foo": 1, "template": {"spec": {"containers": [{"name": "a"}, {"name": "b", "imagee": "x"}]}}}}),
    );
    assert_eq!(
        outcome.unknown,
        ["unknown field \"spec.foo\"", "unknown field \"spec.template.spec.containers[1].imagee\""]
    );
    assert!(outcome.errors.is_empty());
    assert_eq!(
        value,
        json!({
            "metadata": {},
            "spec": {
                "strategy": {},
                "template": {
                    "metadata": {},
                    "spec": {"containers": [{"name": "a", "resources": {}}, {"name": "b", "resources": {}}]},
                },
            },
            "status": {},
        }),
        "structs that are no pointers in Go are always there"
    );
}

#[test]
fn wrong_types_are_named_as_go_names_them() {
    let cases = [
        (
            json!({"spec": {"replicas": "three"}}),
            "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32",
        ),
        (
            json!({"spec": {"replicas": 1.5}}),
            "json: cannot unmarshal number 1.5 into Go struct field DeploymentSpec.spec.replicas of type int32",
        ),
        (
            json!({"spec": {"template": {"spec": {"containers": {"name": "a"}}}}}),
            "json: cannot unmarshal object into Go struct field PodSpec.spec.template.spec.containers of type \
             []v1.Container",
        ),
        (
            json!({"spec": {"template": {"spec": {"containers": [{"ports": [{"containerPort": "x"}]}]}}}}),
            "json: cannot unmarshal string into Go struct field \
             ContainerPort.spec.template.spec.containers.ports.containerPort of type int32",
        ),
        (
            json!({"metadata": {"labels": {"a": 1}}}),
            "json: cannot unmarshal number into Go struct field ObjectMeta.metadata.labels of type string",
        ),
        (
            json!({"metadata": {"creationTimestamp": "yesterday"}}),
            r#"parsing time "yesterday" as "2006-01-02T15:04:05Z07:00": cannot parse "yesterday" as "2006""#,
        ),
    ];
    for (value, text) in cases {
        let (_, outcome) = decode(DEPLOYMENT, value);
        assert_eq!(outcome.errors, [text]);
    }
    let (_, outcome) = decode(POD, json!([1]));
    assert_eq!(outcome.errors, ["json: cannot unmarshal array into Go value of type v1.Pod"]);
}

#[test]
fn values_take_their_canonical_form() {
    let (value, outcome) = decode(
        POD,
        json!({
            "metadata": {"name": "p", "labels": {}, "finalizers": null, "annotations": {"a": null},
                         "creationTimestamp": "2026-11-21T12:00:00.5+02:00"},
            "spec": {"containers": [{"name": "c", "resources": {"limits": {"cpu": 0.5, "memory": "1024Ki"}}}],
                     "volumes": [{"name": "v", "emptyDir": {}}], "tolerations": []},
        }),
    );
    assert_eq!(outcome, Decoded::default());
    assert_eq!(
        value,
        json!({
            "metadata": {"name": "p", "annotations": {"a": ""}, "creationTimestamp": "2026-11-21T10:00:00Z"},
            "spec": {"containers": [{"name": "c", "resources": {"limits": {"cpu": "500m", "memory": "1Mi"}}}],
                     "volumes": [{"name": "v", "emptyDir": {}}]},
            "status": {},
        })
    );
}

#[test]
fn required_lists_stay_when_they_are_empty() {
    let (value, _) = decode(POD, json!({"spec": {"containers": []}}));
    assert_eq!(value, json!({"metadata": {}, "spec": {"containers": []}, "status": {}}));
}

#[test]
fn what_rules_took_out_or_emptied_is_put_back_into_the_form_of_decoding() {
    let (decoded, _) = decode(DEPLOYMENT, json!({"spec": {"replicas": 0, "template": {"spec": {}}}}));
    let mut changed = decoded.clone();
    changed["spec"]["paused"] = json!(false);
    changed["spec"].as_object_mut().unwrap().remove("strategy");
    changed.as_object_mut().unwrap().remove("status");
    builtin().canonicalize(builtin().type_of("apps", "v1", "Deployment").unwrap(), &mut changed);
    assert_eq!(changed, decoded);
}

#[test]
fn scalars_that_must_be_there_are_stored_as_zero() {
    let node = builtin().type_of("", "v1", "Node").unwrap();
    let (mut bare, _) = decode(("", "v1", "Node"), json!({"status": {"images": [{"names": ["a"]}]}}));
    assert_eq!(bare["status"]["nodeInfo"], json!({}));
    builtin().canonicalize(node, &mut bare);
    assert_eq!(bare["status"]["daemonEndpoints"], json!({"kubeletEndpoint": {"Port": 0}}));
    let info = bare["status"]["nodeInfo"].as_object().unwrap();
    assert!(info.len() == 10 && info.values().all(|value| value == ""), "{info:?}");
    assert_eq!(bare["status"]["images"], json!([{"names": ["a"]}]), "what is optional is not made up");
    let once = bare.clone();
    builtin().canonicalize(node, &mut bare);
    assert_eq!(bare, once);
}

#[test]
fn special_forms_are_checked() {
    let service = ("", "v1", "Service");
    assert!(
        decode(service, json!({"spec": {"ports": [{"port": 80, "targetPort": "http"}]}})).1.errors.is_empty()
    );
    assert!(
        decode(service, json!({"spec": {"ports": [{"port": 80, "targetPort": 8080}]}})).1.errors.is_empty()
    );
    assert_eq!(decode(service, json!({"spec": {"ports": [{"targetPort": true}]}})).1.errors.len(), 1);
    let secret = ("", "v1", "Secret");
    assert_eq!(
        decode(secret, json!({"data": {"a": "%%%"}})).1.errors,
        ["illegal base64 data at input byte 0"]
    );
    let (_, outcome) =
        decode(POD, json!({"spec": {"containers": [{"resources": {"limits": {"cpu": "lots"}}}]}}));
    assert!(outcome.errors[0].starts_with("quantities must match the regular expression"), "{outcome:?}");
    let crd = ("apiextensions.k8s.io", "v1", "CustomResourceDefinition");
    let properties = json!({"a": {"additionalProperties": false, "items": {"type": "string"}, "default": [1, null],
                                  "dependencies": {"b": ["c"]}, "enum": [1, "x"]}});
    let version = json!({"name": "v1", "schema": {"openAPIV3Schema": {"properties": properties}}});
    let (value, outcome) = decode(crd, json!({"spec": {"versions": [version.clone()]}}));
    assert_eq!(outcome, Decoded::default());
    assert_eq!(value["spec"]["versions"][0], version);
}

#[test]
fn defaults_of_the_table_are_filled_in_lists_too() {
    let schema = builtin();
    let ty = schema.type_of("", "v1", "Pod").unwrap();
    let mut value = json!({"spec": {"containers": [{"name": "a", "ports": [{"containerPort": 80}]}]}});
    schema.default(ty, &mut value);
    assert_eq!(value["spec"]["containers"][0]["ports"][0]["protocol"], "TCP");
}

#[test]
fn missing_required_fields_are_named() {
    let schema = builtin();
    let ty = schema.type_of("apps", "v1", "Deployment").unwrap();
    let errors =
        schema.required(ty, &json!({"spec": {"template": {"spec": {"containers": [{"image": "x"}]}}}}));
    let texts: Vec<String> = errors.iter().map(|error| error.to_string()).collect();
    assert_eq!(
        texts,
        ["spec.selector: Required value", "spec.template.spec.containers[0].name: Required value"]
    );
}

#[test]
fn kinds_without_storage_have_types() {
    let schema = builtin();
    for (group, version, kind) in [
        ("policy", "v1", "Eviction"),
        ("autoscaling", "v1", "Scale"),
        ("", "v1", "Binding"),
        ("authentication.k8s.io", "v1", "TokenRequest"),
        ("authorization.k8s.io", "v1", "SubjectAccessReview"),
        ("apps", "v1", "DeploymentList"),
        ("", "v1", "Status"),
        ("meta.k8s.io", "v1", "DeleteOptions"),
        ("apps", "v1", "DeleteOptions"),
    ] {
        assert!(schema.type_of(group, version, kind).is_some(), "{group}/{version} {kind}");
    }
    assert!(schema.type_of("apps", "v1", "Nothing").is_none());
}

/// Random JSON, with the names of real fields so that it reaches deep.
fn values() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,6}".prop_map(Value::from),
        Just(json!("10Gi")),
        Just(json!("2026-11-21T10:00:00Z")),
    ];
    let names = prop::sample::select(vec![
        "metadata",
        "spec",
        "status",
        "template",
        "containers",
        "name",
        "ports",
        "env",
        "resources",
        "limits",
        "labels",
        "volumes",
        "replicas",
        "conditions",
        "managedFields",
        "time",
        "foo",
        "targetPort",
        "data",
    ]);
    leaf.prop_recursive(6, 64, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(names.clone().prop_map(str::to_owned), inner, 0..6)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn decoding_never_panics_and_is_done_after_once(value in values(), which in any::<prop::sample::Index>()) {
        let resource = which.get(builtin().resources());
        let mut once = value;
        let outcome = builtin().decode(resource.ty, &mut once);
        if outcome.errors.is_empty() {
            let mut twice = once.clone();
            prop_assert_eq!(builtin().decode(resource.ty, &mut twice), Decoded::default());
            prop_assert_eq!(&twice, &once);
        }
        builtin().default(resource.ty, &mut once);
        let _errors = builtin().required(resource.ty, &once);
    }
}
