use super::*;

#[test]
fn a_created_object_belongs_to_its_creator_field_by_field() {
    let mut object = deployment(3, "nginx");
    DEPLOYMENT.by("kubectl-create", NOW).record(None, &mut object);
    assert_eq!(
        owned(&object, "kubectl-create"),
        concat!(
            r#"{"f:spec":{"f:replicas":{},"f:selector":{},"f:template":{"f:metadata":{"f:labels":{".":{},"f:app":{}}},"#,
            r#""f:spec":{"f:containers":{"k:{\"name\":\"c\"}":{".":{},"f:image":{},"f:name":{},"f:ports":{".":{},"#,
            r#""k:{\"containerPort\":80,\"protocol\":\"TCP\"}":{".":{},"f:containerPort":{},"f:protocol":{}}}}}}}}}"#
        )
    );
    let entry = &object["metadata"]["managedFields"][0];
    assert_eq!(entry["operation"], "Update");
    assert_eq!(entry["apiVersion"], "apps/v1");
    assert_eq!(entry["time"], NOW);
    assert_eq!(entry["fieldsType"], "FieldsV1");
    assert_eq!(entry.get("subresource"), None);
}

#[test]
fn a_status_given_on_create_is_not_owned() {
    let mut object = deployment(1, "a");
    object["status"] = json!({"replicas": 3});
    DEPLOYMENT.by("x", NOW).record(None, &mut object);
    assert!(!owned(&object, "x").contains("status"));
}

#[test]
fn an_update_takes_what_it_changes_and_leaves_the_rest() {
    let mut live = CONFIG_MAP.object(json!({"data": {"a": "1", "b": "1"}}));
    CONFIG_MAP.by("first", NOW).record(None, &mut live);
    let mut new = live.clone();
    new["data"] = json!({"a": "2", "b": "1", "c": "3"});
    CONFIG_MAP.by("second", LATER).record(Some(&live), &mut new);
    assert_eq!(owned(&new, "first"), r#"{"f:data":{".":{},"f:b":{}}}"#);
    assert_eq!(owned(&new, "second"), r#"{"f:data":{"f:a":{},"f:c":{}}}"#);
    assert_eq!(time(&new, "first").as_deref(), Some(NOW));
    assert_eq!(time(&new, "second").as_deref(), Some(LATER));
}

#[test]
fn removed_fields_belong_to_nobody_and_an_owner_of_nothing_goes() {
    let mut live = CONFIG_MAP.object(json!({"data": {"a": "1"}}));
    CONFIG_MAP.by("first", NOW).record(None, &mut live);
    let mut new = live.clone();
    new.as_object_mut().unwrap().remove("data");
    CONFIG_MAP.by("second", LATER).record(Some(&live), &mut new);
    assert_eq!(managers(&new), [""; 0]);
    assert_eq!(new["metadata"].get("managedFields"), None);
}

#[test]
fn a_write_that_changes_nothing_changes_no_owner_and_no_time() {
    let mut live = deployment(3, "nginx");
    DEPLOYMENT.by("first", NOW).record(None, &mut live);
    let mut new = live.clone();
    DEPLOYMENT.by("second", LATER).record(Some(&live), &mut new);
    assert_eq!(new, live);
    let mut without = live.clone();
    without["metadata"].as_object_mut().unwrap().remove("managedFields");
    DEPLOYMENT.by("second", LATER).record(Some(&live), &mut without);
    assert_eq!(without, live);
}

#[test]
fn a_manager_that_changes_its_own_field_again_only_gets_a_new_time() {
    let mut live = deployment(3, "nginx");
    DEPLOYMENT.by("first", NOW).record(None, &mut live);
    let mut new = live.clone();
    new["spec"]["replicas"] = json!(5);
    DEPLOYMENT.by("first", LATER).record(Some(&live), &mut new);
    assert_eq!(owned(&new, "first"), owned(&live, "first"));
    assert_eq!(time(&new, "first").as_deref(), Some(LATER));
}

#[test]
fn an_object_that_nobody_owned_is_not_owned_from_the_middle_of_its_life() {
    let live = deployment(1, "a");
    let mut new = deployment(2, "a");
    DEPLOYMENT.by("x", NOW).record(Some(&live), &mut new);
    assert_eq!(new, deployment(2, "a"));
}

#[test]
fn ownership_can_be_reset_with_an_empty_list_or_an_empty_entry() {
    let mut live = deployment(1, "a");
    DEPLOYMENT.by("x", NOW).record(None, &mut live);
    for reset in [json!([]), json!([{}])] {
        let mut new = live.clone();
        new["metadata"]["managedFields"] = reset;
        DEPLOYMENT.by("x", LATER).record(Some(&live), &mut new);
        assert_eq!(new["metadata"].get("managedFields"), None);
    }
    let mut object = json!({"metadata": {"managedFields": []}});
    spell_out_reset(&mut object);
    assert_eq!(object, json!({"metadata": {"managedFields": [{}]}}));
}

#[test]
fn entries_that_make_no_sense_are_ignored_for_those_that_are_stored() {
    let mut live = deployment(1, "a");
    DEPLOYMENT.by("x", NOW).record(None, &mut live);
    let good = live["metadata"]["managedFields"][0].clone();
    let with = |name: &str, value: Value| {
        let mut entry = good.clone();
        entry[name] = value;
        json!([entry])
    };
    for given in [
        with("operation", json!("Foo")),
        with("apiVersion", json!("")),
        with("fieldsType", json!("")),
        with("fieldsType", json!("FieldsV2")),
        with("fieldsV1", json!({"bad": {}})),
        Value::Null,
    ] {
        let mut new = live.clone();
        new["metadata"]["managedFields"] = given.clone();
        DEPLOYMENT.by("x", LATER).record(Some(&live), &mut new);
        assert_eq!(new, live, "{given}");
    }
    assert_eq!(
        validate_managed_fields(&with("fieldsType", json!("FieldsV2"))).unwrap_err(),
        "invalid fieldsType \"FieldsV2\" in managed fields entry 0"
    );
}

#[test]
fn a_request_may_edit_entries_but_not_through_a_subresource() {
    let mut live = deployment(1, "a");
    DEPLOYMENT.by("x", NOW).record(None, &mut live);
    let mut new = live.clone();
    new["metadata"]["managedFields"][0]["manager"] = json!("renamed");
    let edited = new.clone();
    DEPLOYMENT.by("x", LATER).record(Some(&live), &mut new);
    assert_eq!(managers(&new), ["renamed Update"]);
    let mut new = edited;
    let write =
        Ownership { subresource: "status", reset: Reset::Fields(&[&["spec"]]), ..DEPLOYMENT.by("x", LATER) };
    write.record(Some(&live), &mut new);
    assert_eq!(managers(&new), ["x Update"]);
}

#[test]
fn a_subresource_has_its_own_entry_and_owns_only_what_it_can_write() {
    let mut live = deployment(1, "a");
    DEPLOYMENT.by("x", NOW).record(None, &mut live);
    let mut new = live.clone();
    new["spec"]["replicas"] = json!(7);
    new["status"] = json!({"replicas": 1, "conditions": [{"type": "Available", "status": "True"}]});
    let write =
        Ownership { subresource: "status", reset: Reset::Fields(&[&["spec"]]), ..DEPLOYMENT.by("x", LATER) };
    write.record(Some(&live), &mut new);
    let entries = new["metadata"]["managedFields"].as_array().unwrap();
    assert_eq!(entries.len(), 2);
    assert_eq!(entries[1]["subresource"], "status");
    assert_eq!(
        FieldSet::decode(&entries[1]["fieldsV1"]).unwrap().to_json(),
        concat!(
            r#"{"f:status":{"f:conditions":{".":{},"k:{\"type\":\"Available\"}":{".":{},"f:status":{},"f:type":{}}},"#,
            r#""f:replicas":{}}}"#
        )
    );
    assert_eq!(owned(&new, "x"), owned(&live, "x"));
}

#[test]
fn more_than_ten_updaters_are_joined_oldest_first() {
    let mut live = CONFIG_MAP.object(json!({"data": {}}));
    for i in 0..14 {
        let mut new = live.clone();
        new["data"][format!("k{i:02}")] = json!("v");
        let now = format!("2026-11-21T10:00:{i:02}Z");
        let manager = format!("m{i:02}");
        let before = (i > 0).then_some(&live);
        CONFIG_MAP.by(&manager, &now).record(before, &mut new);
        live = new;
    }
    let names = managers(&live);
    assert_eq!(names.len(), 10);
    assert_eq!(names[0], "ancient-changes Update");
    assert_eq!(
        owned(&live, "ancient-changes"),
        r#"{"f:data":{".":{},"f:k00":{},"f:k01":{},"f:k02":{},"f:k03":{},"f:k04":{}}}"#
    );
    assert_eq!(time(&live, "ancient-changes").as_deref(), Some("2026-11-21T10:00:04Z"));
}

#[test]
fn times_alone_make_no_new_version() {
    let mut old = deployment(1, "a");
    DEPLOYMENT.by("x", NOW).record(None, &mut old);
    let mut new = old.clone();
    new["metadata"]["managedFields"][0]["time"] = json!(LATER);
    let touched = new.clone();
    keep_times(&mut new, &old);
    assert_eq!(new, old);
    let mut new = touched.clone();
    new["spec"]["replicas"] = json!(9);
    let changed = new.clone();
    keep_times(&mut new, &old);
    assert_eq!(new, changed);
    let mut new = touched;
    new["metadata"]["managedFields"][0]["fieldsV1"] = json!({"f:spec": {}});
    let changed = new.clone();
    keep_times(&mut new, &old);
    assert_eq!(new, changed);
}

#[test]
fn items_that_cannot_be_told_apart_leave_nobody_recorded() {
    let mut object = POD.object(json!({"spec": {"containers": [{"image": "a"}]}}));
    POD.by("x", NOW).record(None, &mut object);
    assert_eq!(object["metadata"].get("managedFields"), None);
}

/// A store of two versions in which the field `one` of the first is `two` in the second.
struct Renaming;

impl Versions for Renaming {
    fn versioned(&self, object: &Value, api_version: &str) -> Result<Option<Versioned>, String> {
        let (from, to) = match api_version {
            "v1" => ("two", "one"),
            "v2" => ("one", "two"),
            _ => return Ok(None),
        };
        let mut object = object.clone();
        object["apiVersion"] = json!(api_version);
        if let Some(value) = object["data"].as_object_mut().and_then(|data| data.remove(from)) {
            object["data"][to] = value;
        }
        Ok(Some(Versioned { object, schema: crate::schema::builtin().into(), ty: CONFIG_MAP.ty() }))
    }
}

#[test]
fn fields_are_compared_in_the_version_of_each_owner() {
    let v1 = Ownership { versions: &Renaming, ..CONFIG_MAP.by("first", NOW) };
    let mut live = CONFIG_MAP.object(json!({"data": {"one": "a", "other": "b"}}));
    v1.record(None, &mut live);
    let live = Renaming.versioned(&live, "v2").unwrap().unwrap().object;
    let mut new = live.clone();
    new["data"]["two"] = json!("changed");
    Ownership { api_version: "v2", manager: "second", ..v1 }.record(Some(&live), &mut new);
    assert_eq!(owned(&new, "first"), r#"{"f:data":{".":{},"f:other":{}}}"#);
    assert_eq!(owned(&new, "second"), r#"{"f:data":{"f:two":{}}}"#);
    let mut gone = live.clone();
    gone["metadata"]["managedFields"][0]["apiVersion"] = json!("v0");
    let mut new = gone.clone();
    new["data"]["two"] = json!("changed");
    Ownership { api_version: "v2", manager: "second", ..v1 }.record(Some(&gone), &mut new);
    assert_eq!(managers(&new), ["second Update"]);
}
