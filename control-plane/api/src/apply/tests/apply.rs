use super::*;

fn apply(kind: Kind, manager: &str, live: Option<&Value>, config: &Value) -> Value {
    kind.by(manager, NOW).apply(live, config, false).unwrap()
}

fn conflict(kind: Kind, manager: &str, live: &Value, config: &Value) -> String {
    match kind.by(manager, NOW).apply(Some(live), config, false) {
        Err(ApplyError::Conflict(conflicts)) => conflicts.to_string(),
        other => panic!("no conflict: {other:?}"),
    }
}

#[test]
fn an_applier_owns_what_it_applies() {
    let object = apply(CONFIG_MAP, "a", None, &CONFIG_MAP.object(json!({"data": {"k": "v"}})));
    assert_eq!(managers(&object), ["a Apply"]);
    assert_eq!(owned(&object, "a"), r#"{"f:data":{"f:k":{}}}"#);
    assert_eq!(object["data"], json!({"k": "v"}));
}

#[test]
fn applying_again_changes_nothing_and_keeps_the_time() {
    let config = deployment(3, "nginx");
    let object = apply(DEPLOYMENT, "a", None, &config);
    let again = DEPLOYMENT.by("a", LATER).apply(Some(&object), &config, false).unwrap();
    assert_eq!(again, object);
}

#[test]
fn a_field_of_another_manager_is_a_conflict_unless_forced() {
    let mut live = deployment(1, "nginx");
    DEPLOYMENT.by("kubectl-create", NOW).record(None, &mut live);
    let config = DEPLOYMENT.object(json!({"spec": {"replicas": 5}}));
    assert_eq!(
        conflict(DEPLOYMENT, "a", &live, &config),
        r#"Apply failed with 1 conflict: conflict with "kubectl-create" using apps/v1: .spec.replicas"#
    );
    let forced = DEPLOYMENT.by("a", LATER).apply(Some(&live), &config, true).unwrap();
    assert_eq!(forced["spec"]["replicas"], 5);
    assert_eq!(owned(&forced, "a"), r#"{"f:spec":{"f:replicas":{}}}"#);
    assert!(!owned(&forced, "kubectl-create").contains("replicas"));
}

#[test]
fn the_same_value_is_shared_without_conflict() {
    let config = CONFIG_MAP.object(json!({"data": {"k": "v"}}));
    let object = apply(CONFIG_MAP, "a", None, &config);
    let shared = apply(CONFIG_MAP, "b", Some(&object), &config);
    assert_eq!(managers(&shared), ["b Apply", "a Apply"]);
    let only_b = apply(CONFIG_MAP, "a", Some(&shared), &CONFIG_MAP.object(json!({})));
    assert_eq!(only_b["data"], json!({"k": "v"}), "b still applies it");
    assert_eq!(managers(&only_b), ["b Apply"]);
}

#[test]
fn conflicts_with_several_managers_are_listed_by_manager() {
    let object = apply(CONFIG_MAP, "a", None, &CONFIG_MAP.object(json!({"data": {"x": "1", "y": "1"}})));
    let object = apply(CONFIG_MAP, "b", Some(&object), &CONFIG_MAP.object(json!({"data": {"z": "1"}})));
    let config = CONFIG_MAP.object(json!({"data": {"x": "2", "y": "2", "z": "2"}}));
    assert_eq!(
        conflict(CONFIG_MAP, "c", &object, &config),
        "Apply failed with 3 conflicts: conflicts with \"a\":\n- .data.x\n- .data.y\nconflicts with \"b\":\n- .data.z"
    );
}

#[test]
fn what_is_left_out_goes_unless_another_owns_it() {
    let both = CONFIG_MAP.object(json!({"data": {"x": "1", "y": "1"}}));
    let object = apply(CONFIG_MAP, "a", None, &both);
    let one = CONFIG_MAP.object(json!({"data": {"x": "1"}}));
    assert_eq!(apply(CONFIG_MAP, "a", Some(&object), &one)["data"], json!({"x": "1"}));
    let mut touched = object.clone();
    touched["data"]["y"] = json!("2");
    CONFIG_MAP.by("updater", LATER).record(Some(&object), &mut touched);
    assert_eq!(apply(CONFIG_MAP, "a", Some(&touched), &one)["data"], json!({"x": "1", "y": "2"}));
    let mut emptied = apply(CONFIG_MAP, "a", Some(&object), &CONFIG_MAP.object(json!({})));
    let _data = emptied.as_object_mut().unwrap().remove("data");
    assert_eq!(managers(&emptied), [""; 0]);
}

#[test]
fn list_items_are_merged_by_key_and_removed_by_their_only_owner() {
    let object = apply(DEPLOYMENT, "a", None, &deployment(1, "nginx"));
    let sidecar = DEPLOYMENT
        .object(json!({"spec": {"template": {"spec": {"containers": [{"name": "s", "image": "x"}]}}}}));
    let with_sidecar = apply(DEPLOYMENT, "b", Some(&object), &sidecar);
    let names = |object: &Value| -> Vec<String> {
        let containers = object["spec"]["template"]["spec"]["containers"].as_array().unwrap();
        containers.iter().map(|container| container["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&with_sidecar), ["c", "s"]);
    let gone = apply(DEPLOYMENT, "b", Some(&with_sidecar), &DEPLOYMENT.object(json!({})));
    assert_eq!(names(&gone), ["c"]);
    assert_eq!(gone["spec"], object["spec"]);
}

#[test]
fn ports_with_and_without_the_default_protocol_are_one() {
    let mut live = POD.object(json!({"spec": {"containers": [
        {"name": "c", "image": "i", "ports": [{"containerPort": 80, "protocol": "TCP", "name": "http"}]},
    ]}}));
    POD.by("creator", NOW).record(None, &mut live);
    let config = POD.object(json!({"spec": {"containers": [
        {"name": "c", "ports": [{"containerPort": 80}, {"containerPort": 80, "protocol": "UDP"}]},
    ]}}));
    let object = apply(POD, "a", Some(&live), &config);
    assert_eq!(
        object["spec"]["containers"][0]["ports"],
        json!([
            {"containerPort": 80, "protocol": "TCP", "name": "http"},
            {"containerPort": 80, "protocol": "UDP"},
        ])
    );
}

#[test]
fn service_ports_are_keyed_by_port_and_protocol() {
    let config = SERVICE.object(json!({"spec": {"ports": [
        {"name": "tcp", "port": 53}, {"name": "udp", "port": 53, "protocol": "UDP"},
    ]}}));
    let object = apply(SERVICE, "a", None, &config);
    let one = SERVICE.object(json!({"spec": {"ports": [{"name": "udp", "port": 53, "protocol": "UDP"}]}}));
    let object = apply(SERVICE, "a", Some(&object), &one);
    assert_eq!(object["spec"]["ports"], json!([{"name": "udp", "port": 53, "protocol": "UDP"}]));
}

#[test]
fn what_is_owned_whole_is_replaced_whole() {
    let object = apply(DEPLOYMENT, "a", None, &deployment(1, "nginx"));
    let config = DEPLOYMENT.object(json!({"spec": {"selector": {"matchLabels": {"other": "x"}}}}));
    assert_eq!(
        conflict(DEPLOYMENT, "b", &object, &config),
        "Apply failed with 1 conflict: conflict with \"a\": .spec.selector"
    );
    let forced = DEPLOYMENT.by("b", LATER).apply(Some(&object), &config, true).unwrap();
    assert_eq!(forced["spec"]["selector"], json!({"matchLabels": {"other": "x"}}));
}

#[test]
fn finalizers_are_a_set() {
    let with = |finalizers: Value| {
        let mut object = CONFIG_MAP.object(json!({}));
        object["metadata"]["finalizers"] = finalizers;
        object
    };
    let object = apply(CONFIG_MAP, "a", None, &with(json!(["x/a", "x/b"])));
    let object = apply(CONFIG_MAP, "b", Some(&object), &with(json!(["x/b", "x/c"])));
    assert_eq!(object["metadata"]["finalizers"], json!(["x/a", "x/b", "x/c"]));
    assert_eq!(owned(&object, "b"), r#"{"f:metadata":{"f:finalizers":{"v:\"x/b\"":{},"v:\"x/c\"":{}}}}"#);
    let object = apply(CONFIG_MAP, "a", Some(&object), &with(json!([])));
    assert_eq!(object["metadata"]["finalizers"], json!(["x/b", "x/c"]));
}

#[test]
fn the_first_apply_finds_the_fields_of_those_before_owned() {
    let live = deployment(1, "nginx");
    let config = DEPLOYMENT.object(json!({"spec": {"replicas": 2}}));
    assert_eq!(
        conflict(DEPLOYMENT, "a", &live, &config),
        r#"Apply failed with 1 conflict: conflict with "before-first-apply" using apps/v1: .spec.replicas"#
    );
    let object = DEPLOYMENT.by("a", NOW).apply(Some(&live), &config, true).unwrap();
    assert_eq!(managers(&object), ["a Apply", "before-first-apply Update"]);
}

#[test]
fn kubectl_takes_over_what_it_applied_from_the_clients_side() {
    let config = deployment(1, "nginx");
    let mut live = config.clone();
    crate::meta::set_annotation(
        &mut live,
        "kubectl.kubernetes.io/last-applied-configuration",
        &config.to_string(),
    );
    DEPLOYMENT.by("kubectl-client-side-apply", NOW).record(None, &mut live);
    let new = deployment(2, "nginx:2");
    assert!(matches!(
        DEPLOYMENT.by("other", NOW).apply(Some(&live), &new, false),
        Err(ApplyError::Conflict(_))
    ));
    let object = apply(DEPLOYMENT, "kubectl", Some(&live), &new);
    assert_eq!(object["spec"]["replicas"], 2);
    let annotation =
        crate::meta::annotation(&object, "kubectl.kubernetes.io/last-applied-configuration").unwrap();
    assert_eq!(serde_json::from_str::<Value>(annotation).unwrap(), new);
    assert!(annotation.ends_with('\n'));

    let mut scaled = live.clone();
    scaled["spec"]["replicas"] = json!(9);
    DEPLOYMENT.by("scaler", LATER).record(Some(&live), &mut scaled);
    assert_eq!(
        conflict(DEPLOYMENT, "kubectl", &scaled, &new),
        r#"Apply failed with 1 conflict: conflict with "scaler" using apps/v1: .spec.replicas"#
    );
}

#[test]
fn patches_that_are_none_are_refused() {
    let live = deployment(1, "a");
    let refuse = |config: Value| DEPLOYMENT.by("a", NOW).apply(Some(&live), &config, true).unwrap_err();
    assert_eq!(
        refuse(json!({"apiVersion": "v1", "kind": "Pod"})),
        ApplyError::BadRequest("invalid object type: /v1, Kind=Pod".to_owned())
    );
    assert_eq!(refuse(json!({})), ApplyError::BadRequest("invalid object type: /, Kind=".to_owned()));
    let mut with_owners = DEPLOYMENT.object(json!({}));
    with_owners["metadata"]["managedFields"] = json!([]);
    assert_eq!(refuse(with_owners), ApplyError::BadRequest("metadata.managedFields must be nil".to_owned()));
    let typed = |rest: Value| refuse(DEPLOYMENT.object(rest)).to_string();
    let start = "failed to create typed patch object (default/web; apps/v1, Kind=Deployment): ";
    assert_eq!(typed(json!({"spec": {"foo": 1}})), format!("{start}.spec.foo: field not declared in schema"));
    assert_eq!(
        typed(json!({"spec": {"replicas": "x", "paused": 1}})),
        format!(
            "{start}errors:\n  .spec.paused: expected boolean, got &{{1}}\n  .spec.replicas: expected numeric (int or \
             float), got string"
        )
    );
    let twice = json!({"spec": {"template": {"spec": {"containers": [{"name": "c"}, {"name": "c"}]}}}});
    assert_eq!(
        typed(twice),
        format!("{start}.spec.template.spec.containers: duplicate entries for key [name=\"c\"]")
    );
}

#[test]
fn repeated_items_that_are_there_already_are_tolerated() {
    let mut live = POD.object(json!({"spec": {"containers": [{"name": "c", "image": "i", "env": [
        {"name": "A", "value": "1"}, {"name": "A", "value": "2"},
    ]}]}}));
    POD.by("creator", NOW).record(None, &mut live);
    let config =
        POD.object(json!({"spec": {"containers": [{"name": "c", "env": [{"name": "B", "value": "3"}]}]}}));
    let object = apply(POD, "a", Some(&live), &config);
    let names: Vec<&str> = object["spec"]["containers"][0]["env"]
        .as_array()
        .unwrap()
        .iter()
        .map(|variable| variable["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["A", "A", "B"]);
}

#[test]
fn what_an_applier_applied_can_be_extracted_and_applied_again() {
    let config = deployment(3, "nginx");
    let mut live = apply(DEPLOYMENT, "a", None, &config);
    live["spec"]["paused"] = json!(true);
    let taken = extract(DEPLOYMENT.schema(), DEPLOYMENT.ty(), &live, "a", "").unwrap().unwrap();
    assert_eq!(taken["spec"], config["spec"]);
    assert_eq!(taken["kind"], "Deployment");
    assert_eq!(extract(DEPLOYMENT.schema(), DEPLOYMENT.ty(), &live, "b", "").unwrap(), None);
}

#[test]
fn the_count_of_a_scale_goes_to_its_owner_and_back() {
    let replicas =
        |version: &str| (version == "apps/v1").then(|| vec!["spec".to_owned(), "replicas".to_owned()]);
    let object = apply(DEPLOYMENT, "a", None, &deployment(3, "nginx"));
    let parent = &object["metadata"]["managedFields"];
    let fields = ScaleFields { parent, api_version: "apps/v1", replicas: &replicas };
    let scale = fields.to_scale().unwrap().unwrap();
    assert_eq!(scale[0]["apiVersion"], "autoscaling/v1");
    assert_eq!(scale[0]["fieldsV1"], json!({"f:spec": {"f:replicas": {}}}));
    assert_eq!(fields.to_parent(&scale).unwrap().unwrap(), *parent);

    let stolen = json!([{
        "manager": "hpa", "operation": "Update", "apiVersion": "autoscaling/v1", "subresource": "scale",
        "time": LATER, "fieldsType": "FieldsV1", "fieldsV1": {"f:spec": {"f:replicas": {}}},
    }]);
    let merged = json!({"metadata": {"managedFields": fields.to_parent(&stolen).unwrap()}});
    assert!(!owned(&merged, "a").contains("replicas"));
    assert_eq!(owned(&merged, "hpa"), r#"{"f:spec":{"f:replicas":{}}}"#);
    let entry = &merged["metadata"]["managedFields"][1];
    assert_eq!((&entry["apiVersion"], &entry["subresource"]), (&json!("apps/v1"), &json!("scale")));
}
