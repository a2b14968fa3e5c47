use std::collections::BTreeSet;

use super::*;

#[test]
fn custom_kinds_are_published_with_what_each_dialect_can_say() {
    let mut resource = builtin().resource("apps", "v1", "deployments").unwrap().clone();
    (resource.group, resource.version) = ("stable.example.com".to_owned(), "v1".to_owned());
    (resource.kind, resource.list_kind) = ("Widget".to_owned(), "WidgetList".to_owned());
    resource.plural = "widgets".to_owned();
    let schema = json!({"type": "object", "description": "A widget.", "properties": {
        "spec": {"type": "object", "required": ["a", "b"], "properties": {
            "a": {"type": "string", "nullable": true}, "b": {"type": "string", "oneOf": [{"pattern": "x"}]},
            "open": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {"x": {"type": "string"}}},
            "pod": {"type": "object", "x-kubernetes-embedded-resource": true, "properties": {"spec": {"type": "object"}}},
        }},
    }});
    let kind = Published { resource: resource.into(), schema, selectable: vec!["spec.a".to_owned()] };
    let custom = [kind];
    let v2 = v2(&custom);
    let definition = &v2["definitions"]["com.example.stable.v1.Widget"];
    let spec = &definition["properties"]["spec"];
    assert_eq!(spec["required"], json!(["b"]), "what may be null is not required");
    assert_eq!(spec["properties"]["a"], json!({}));
    assert_eq!(spec["properties"]["b"], json!({"type": "string"}));
    assert_eq!(spec["properties"]["open"], json!({"x-kubernetes-preserve-unknown-fields": true}));
    assert_eq!(spec["properties"]["pod"]["required"], json!(["kind", "apiVersion"]));
    assert_eq!(definition["x-kubernetes-selectable-fields"], json!([{"fieldPath": "spec.a"}]));
    assert!(definition["properties"]["metadata"]["$ref"].as_str().unwrap().ends_with("ObjectMeta"));
    assert!(!definition["properties"]["kind"]["description"].as_str().unwrap().is_empty());

    let v3 = v3("stable.example.com", "v1", &custom).unwrap();
    let spec = &v3["components"]["schemas"]["com.example.stable.v1.Widget"]["properties"]["spec"];
    assert_eq!(spec["properties"]["b"]["oneOf"], json!([{"pattern": "x"}]));
    assert_eq!(spec["properties"]["open"]["properties"]["x"], json!({"type": "string"}));
    let list = &v3["components"]["schemas"]["com.example.stable.v1.WidgetList"];
    assert_eq!(list["required"], json!(["items"]));
    for path in ["", "/{name}", "/{name}/status", "/{name}/scale"] {
        let path = format!("/apis/stable.example.com/v1/namespaces/{{namespace}}/widgets{path}");
        assert!(v3["paths"][&path].is_object(), "{path}");
    }
}

#[test]
fn the_index_leads_to_a_document_for_every_group_and_version() {
    let index = v3_index(&BTreeMap::new());
    let paths = index["paths"].as_object().unwrap();
    assert_eq!(paths.len(), 22);
    for (path, entry) in paths {
        let url = entry["serverRelativeURL"].as_str().unwrap();
        assert!(url.starts_with(&format!("/openapi/v3/{path}?hash=")), "{url}");
        let (group, version) = match path.split('/').collect::<Vec<_>>().as_slice() {
            ["api", version] => ("", version.to_string()),
            ["apis", group, version] => (*group, version.to_string()),
            other => panic!("{other:?}"),
        };
        let document = v3(group, &version, &[]).unwrap_or_else(|| panic!("{path} has no document"));
        assert!(!document["paths"].as_object().unwrap().is_empty());
    }
    assert!(v3("apps", "v9", &[]).is_none());
}

#[test]
fn every_reference_of_a_document_leads_to_a_schema() {
    let mut documents: Vec<(Value, Value)> = ["v1"]
        .map(|version| v3("", version, &[]).unwrap())
        .map(|document| {
            let schemas = document["components"]["schemas"].clone();
            (document, schemas)
        })
        .into();
    let document = v2(&[]);
    let definitions = document["definitions"].clone();
    documents.push((document, definitions));
    for (document, schemas) in documents {
        let mut names = BTreeSet::new();
        references(&document, &mut names);
        assert!(names.len() > 100);
        for name in names {
            assert!(schemas.get(format!("io.k8s.{name}")).is_some(), "{name}");
        }
    }
}

#[test]
fn kinds_are_found_by_group_version_and_kind_and_explained() {
    let document = v3("apps", "v1", &[]).unwrap();
    let schemas = &document["components"]["schemas"];
    let deployment = &schemas["io.k8s.api.apps.v1.Deployment"];
    assert_eq!(
        deployment["x-kubernetes-group-version-kind"],
        json!([{"group": "apps", "version": "v1", "kind": "Deployment"}])
    );
    let replicas = &schemas["io.k8s.api.apps.v1.DeploymentSpec"]["properties"]["replicas"];
    assert_eq!(replicas["type"], "integer");
    assert!(replicas["description"].as_str().unwrap().starts_with("Number of desired pods."));
    let containers = &schemas["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
    assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
    assert_eq!(containers["x-kubernetes-list-map-keys"], json!(["name"]));
    assert_eq!(containers["items"]["$ref"], "#/components/schemas/io.k8s.api.core.v1.Container");
    let metadata = &deployment["properties"]["metadata"]["allOf"];
    assert_eq!(
        *metadata,
        json!([{"$ref": "#/components/schemas/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"}])
    );
}

#[test]
fn kubectl_finds_field_validation_and_dry_run_on_patch() {
    let document = v3("apps", "v1", &[]).unwrap();
    let patch = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
    assert_eq!(patch["x-kubernetes-action"], "patch");
    assert_eq!(patch["operationId"], "patchAppsV1NamespacedDeployment");
    assert_eq!(patch["tags"], json!(["apps_v1"]));
    assert_eq!(
        patch["x-kubernetes-group-version-kind"],
        json!({"group": "apps", "version": "v1", "kind": "Deployment"})
    );
    let names: Vec<&str> =
        patch["parameters"].as_array().unwrap().iter().map(|found| found["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["dryRun", "fieldManager", "fieldValidation", "force"]);
    assert!(patch["requestBody"]["content"]["application/strategic-merge-patch+json"].is_object());
}

#[test]
fn subresources_name_the_kind_of_their_body() {
    let document = v3("", "v1", &[]).unwrap();
    let pod = "/api/v1/namespaces/{namespace}/pods/{name}";
    let eviction = &document["paths"][format!("{pod}/eviction")]["post"];
    assert_eq!(
        eviction["x-kubernetes-group-version-kind"],
        json!({"group": "policy", "version": "v1", "kind": "Eviction"})
    );
    assert_eq!(document["paths"][format!("{pod}/exec")]["get"]["x-kubernetes-action"], "connect");
    assert_eq!(document["paths"][format!("{pod}/log")]["get"]["operationId"], "readCoreV1NamespacedPodLog");
}

#[test]
fn every_line_of_the_table_has_its_description() {
    let fields: usize = builtin().types().iter().map(|ty| 1 + ty.fields.len()).sum();
    assert_eq!(Descriptions::unpack().lines(), fields);
}

/// Reads one protobuf message: its length-delimited fields.
fn fields(mut bytes: &[u8]) -> Vec<(u64, &[u8])> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let mut number = 0;
        for shift in (0..).step_by(7) {
            let (byte, rest) = bytes.split_first().unwrap();
            *bytes = rest;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                break;
            }
        }
        number
    }
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let value = varint(&mut bytes);
        if key & 7 == 2 {
            let (content, rest) = bytes.split_at(value as usize);
            found.push((key >> 3, content));
            bytes = rest;
        }
    }
    found
}

#[test]
fn the_protobuf_form_has_every_path_and_definition() {
    let json = v2(&[]);
    let bytes = proto::document(&json);
    let document = fields(&bytes);
    assert_eq!(document[0], (1, "2.0".as_bytes()));
    let of = |number: u64| document.iter().find(|(found, _)| *found == number).unwrap().1;
    let names = |bytes| {
        let entries: Vec<(u64, &[u8])> = fields(bytes);
        entries
            .iter()
            .map(|(_, entry)| String::from_utf8(fields(entry)[0].1.to_vec()).unwrap())
            .collect::<Vec<_>>()
    };
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(of(8)), keys(&json["paths"]));
    assert_eq!(names(of(9)), keys(&json["definitions"]));
}

#[test]
fn the_hash_is_upper_case_hex() {
    let hash = hash();
    assert_eq!(hash.len(), 64);
    assert!(hash.bytes().all(|byte| byte.is_ascii_digit() || (b'A'..=b'F').contains(&byte)));
}
