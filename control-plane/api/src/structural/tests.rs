use proptest::prelude::*;
use serde_json::{Value, json};

use super::{Definition, Structural, blocks_rules};
use crate::schema::Shape;

fn structural(schema: Value) -> Structural {
    Structural::parse(&schema).unwrap()
}

fn object_of(properties: Value) -> Structural {
    structural(json!({"type": "object", "properties": properties}))
}

fn texts(schema: &Structural, value: &Value) -> Vec<String> {
    schema.validate("", value, None).iter().map(ToString::to_string).collect()
}

#[test]
fn unknown_fields_are_dropped_and_named_with_their_paths() {
    let schema = object_of(json!({
        "spec": {"type": "object", "properties": {
            "list": {"type": "array", "items": {"type": "object", "properties": {"a": {"type": "string"}}}},
            "open": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {
                "closed": {"type": "object", "properties": {"a": {"type": "string"}}}}},
            "map": {"type": "object", "additionalProperties": {"type": "object", "properties": {"a": {"type": "string"}}}},
        }},
    }));
    let mut value = json!({
        "apiVersion": "a/v1", "kind": "A", "metadata": {"anything": 1}, "extra": 1,
        "spec": {
            "list": [{"a": "x", "b": 1}],
            "open": {"free": {"deep": 1}, "closed": {"a": "x", "b": 2}},
            "map": {"k": {"a": "x", "c": 3}}, "typo": true,
        },
    });
    let dropped = schema.prune(&mut value);
    assert_eq!(dropped, ["extra", "spec.list[0].b", "spec.map.k.c", "spec.open.closed.b", "spec.typo"]);
    assert_eq!(
        value,
        json!({
            "apiVersion": "a/v1", "kind": "A", "metadata": {"anything": 1},
            "spec": {
                "list": [{"a": "x"}], "open": {"free": {"deep": 1}, "closed": {"a": "x"}}, "map": {"k": {"a": "x"}},
            },
        })
    );
}

#[test]
fn embedded_objects_keep_their_kind_and_metadata() {
    let schema = object_of(json!({
        "template": {"type": "object", "x-kubernetes-embedded-resource": true, "properties": {"spec": {"type": "object"}}},
    }));
    let mut value =
        json!({"template": {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "x": 1}});
    assert_eq!(schema.prune(&mut value), ["template.x"]);
    assert_eq!(value["template"]["metadata"]["name"], "a");
    let errors = schema.validate_embedded(&json!({"template": {"kind": "", "metadata": {"name": "a/b"}}}));
    let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
    assert_eq!(texts[0], "template.apiVersion: Required value");
    assert_eq!(texts[1], "template.kind: Invalid value: \"\": must not be empty");
    assert!(texts[2].starts_with("template.metadata.name: Invalid value: \"a/b\""), "{texts:?}");
}

#[test]
fn defaults_fill_absent_fields_and_replace_nulls_that_are_not_allowed() {
    let schema = object_of(json!({
        "a": {"type": "string", "default": "A"},
        "n": {"type": "string", "nullable": true, "default": "N"},
        "o": {"type": "object", "default": {}, "properties": {"x": {"type": "integer", "default": 3}}},
        "l": {"type": "array", "items": {"type": "object", "properties": {"y": {"type": "boolean", "default": true}}}},
        "gone": {"type": "string"},
    }));
    let mut value = json!({"a": null, "n": null, "l": [{}, {"y": false}], "gone": null});
    schema.drop_nulls(&mut value);
    schema.default(&mut value);
    assert_eq!(value, json!({"a": "A", "n": null, "o": {"x": 3}, "l": [{"y": true}, {"y": false}]}));
}

#[test]
fn errors_have_the_texts_that_clients_know() {
    let schema = object_of(json!({
        "spec": {"type": "object", "required": ["name"], "maxProperties": 20, "properties": {
            "name": {"type": "string"},
            "replicas": {"type": "integer", "minimum": 1, "maximum": 5, "format": "int32"},
            "size": {"type": "string", "enum": ["small", "large"]},
            "code": {"type": "string", "pattern": "^[a-z]+$", "maxLength": 3, "minLength": 2},
            "ratio": {"type": "number", "multipleOf": 0.5},
            "list": {"type": "array", "minItems": 1, "maxItems": 2, "items": {"type": "integer"}},
            "port": {"x-kubernetes-int-or-string": true},
            "when": {"type": "string", "format": "date-time"},
        }},
    }));
    let value = json!({"spec": {
        "replicas": 9, "size": "huge", "code": "ABC", "ratio": 0.3, "list": [1, "x", 3], "port": true, "when": "now",
    }});
    let expected = [
        "spec.name: Required value",
        "spec.code: Invalid value: \"ABC\": spec.code in body should match '^[a-z]+$'",
        "spec.list[1]: Invalid value: \"string\": spec.list[1] in body must be of type integer: \"string\"",
        "spec.list: Too many: 3: must have at most 2 items",
        "spec.port: Invalid value: \"boolean\": spec.port in body must be of type integer,string: \"boolean\"",
        "spec.ratio: Invalid value: 0.3: spec.ratio in body should be a multiple of 0.5",
        "spec.replicas: Invalid value: 9: spec.replicas in body should be less than or equal to 5",
        "spec.size: Unsupported value: \"huge\": supported values: \"small\", \"large\"",
        "spec.when: Invalid value: \"now\": spec.when in body must be of type date-time: \"now\"",
    ];
    assert_eq!(texts(&schema, &value), expected);
    let short = texts(&schema, &json!({"spec": {"name": "a", "code": "a", "list": []}}));
    assert_eq!(
        short,
        [
            "spec.code: Invalid value: \"a\": spec.code in body should be at least 2 chars long",
            "spec.list: Invalid value: 0: spec.list in body should have at least 1 items",
        ]
    );
    let long = texts(&schema, &json!({"spec": {"name": "a", "code": "abcd"}}));
    assert_eq!(long, ["spec.code: Too long: may not be more than 3 bytes"]);
}

#[test]
fn alternatives_tell_which_rule_failed() {
    let schema = object_of(json!({
        "v": {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "string"}},
              "oneOf": [{"required": ["a"]}, {"required": ["b"]}], "not": {"required": ["c"]}},
    }));
    assert_eq!(
        texts(&schema, &json!({"v": {}})),
        [
            "<nil>: Invalid value: \"\": \"v\" must validate one and only one schema (oneOf). Found none valid",
            "v.a: Required value",
        ]
    );
    assert_eq!(
        texts(&schema, &json!({"v": {"a": "", "b": ""}})),
        [
            "<nil>: Invalid value: \"\": \"v\" must validate one and only one schema (oneOf). Found 2 valid alternatives"
        ]
    );
    assert_eq!(
        texts(&schema, &json!({"v": {"a": "", "c": ""}})),
        ["<nil>: Invalid value: \"\": \"v\" must not validate the schema (not)"]
    );
}

#[test]
fn what_was_wrong_before_may_stay_as_it_is() {
    let schema = object_of(json!({
        "spec": {"type": "object", "properties": {
            "size": {"type": "string", "maxLength": 2},
            "other": {"type": "string", "maxLength": 2},
            "items": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
                "items": {"type": "object", "properties": {"k": {"type": "string"}, "v": {"type": "integer", "maximum": 1}}}},
            "plain": {"type": "array", "items": {"type": "integer", "maximum": 1}},
        }},
    }));
    let old = json!({"spec": {"size": "long", "items": [{"k": "a", "v": 5}], "plain": [5]}});
    let new = json!({"spec": {"size": "long", "other": "long", "items": [{"k": "b", "v": 9}, {"k": "a", "v": 5}], "plain": [5, 1]}});
    let errors: Vec<String> =
        schema.validate("", &new, Some(&old)).iter().map(|error| error.path.clone()).collect();
    assert_eq!(errors, ["spec.items[0].v", "spec.other", "spec.plain[0]"]);
    assert_eq!(schema.validate("", &old, Some(&old)), []);
}

#[test]
fn sets_and_maps_have_no_duplicates() {
    let schema = object_of(json!({
        "set": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "integer"}},
        "map": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["a", "b"],
            "items": {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "integer"}}}},
    }));
    let value =
        json!({"set": [1, 2, 1, 1], "map": [{"a": "x", "b": 1}, {"a": "x"}, {"a": "x", "b": 1, "c": 2}]});
    let errors: Vec<String> = schema.duplicates(&value).iter().map(ToString::to_string).collect();
    assert_eq!(errors, ["map[2]: Duplicate value: {\"a\":\"x\",\"b\":1}", "set[2]: Duplicate value: 1"]);
}

#[test]
fn rules_wait_until_the_form_is_right() {
    let schema = object_of(json!({"a": {"type": "string"}, "b": {"type": "integer", "maximum": 1}}));
    assert!(schema.validate("", &json!({"a": 1}), None).iter().any(blocks_rules));
    assert!(!schema.validate("", &json!({"b": 2}), None).iter().any(blocks_rules));
}

#[test]
fn a_definition_is_decoded_and_defaulted_like_any_type() {
    let schema = object_of(json!({"spec": {"type": "object", "properties": {
        "n": {"type": "integer"}, "d": {"type": "string", "default": "x"}}}}));
    let (schema, ty) = Definition { group: "example.com", version: "v1", kind: "Widget" }.schema(schema);
    let mut value = json!({
        "apiVersion": "example.com/v1", "kind": "Widget",
        "metadata": {"name": "a", "creationTimestamp": null, "bogus": 1, "labels": {"a": "b"}},
        "spec": {"n": 3.0, "typo": 1},
    });
    let decoded = schema.decode(ty, &mut value);
    assert_eq!(decoded.unknown, ["unknown field \"metadata.bogus\"", "unknown field \"spec.typo\""]);
    assert_eq!(decoded.errors, Vec::<String>::new());
    schema.default(ty, &mut value);
    assert_eq!(value["metadata"], json!({"name": "a", "labels": {"a": "b"}}));
    assert_eq!(value["spec"].to_string(), r#"{"d":"x","n":3}"#);
    let mut wrong = json!({"metadata": {"labels": "x"}});
    assert!(schema.decode(ty, &mut wrong).errors[0].contains("cannot unmarshal string"));
}

#[test]
fn types_are_open_where_the_schema_keeps_unknown_fields() {
    let schema = object_of(json!({
        "closed": {"type": "object", "properties": {"a": {"type": "string"}}},
        "open": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {"a": {"type": "string"}}},
        "nothing": {"type": "object"},
        "map": {"type": "object", "additionalProperties": true},
    }));
    let (schema, ty) = Definition { group: "example.com", version: "v1", kind: "Widget" }.schema(schema);
    let shape = |name: &str| schema.get(ty).field(name).unwrap().shape.clone();
    let is_open = |name: &str| match shape(name) {
        Shape::Ref(id) => schema.get(id).open,
        other => panic!("{name} is {other:?}"),
    };
    assert!(!schema.get(ty).open && !is_open("closed") && !is_open("nothing") && is_open("open"));
    assert_eq!(shape("map"), Shape::Map(Box::new(Shape::Any)));
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "[a-d]{0,2}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-d]", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// A schema over the field names that [`any_json`] makes.
fn any_schema() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(json!({"type": "string", "default": "x"})),
        Just(json!({"type": "integer", "nullable": true, "default": 1})),
        Just(json!({"type": "boolean"})),
        Just(json!({"x-kubernetes-preserve-unknown-fields": true})),
        Just(json!({"x-kubernetes-int-or-string": true})),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            inner.clone().prop_map(|items| json!({"type": "array", "items": items})),
            inner.clone().prop_map(|values| json!({"type": "object", "additionalProperties": values})),
            (prop::collection::btree_map("[a-d]", inner, 0..4), any::<bool>()).prop_map(|(properties, open)| {
                json!({"type": "object", "properties": properties, "x-kubernetes-preserve-unknown-fields": open})
            }),
        ]
    })
}

proptest! {
    #[test]
    fn pruning_twice_is_as_once(schema in any_schema(), value in any_json()) {
        let schema = structural(schema);
        let mut once = value;
        schema.prune(&mut once);
        let mut twice = once.clone();
        prop_assert_eq!(schema.prune(&mut twice), Vec::<String>::new());
        prop_assert_eq!(once, twice);
    }

    #[test]
    fn defaulting_twice_is_as_once(schema in any_schema(), value in any_json()) {
        let schema = structural(schema);
        let mut once = value;
        schema.drop_nulls(&mut once);
        schema.default(&mut once);
        let mut twice = once.clone();
        schema.default(&mut twice);
        prop_assert_eq!(once, twice);
    }

    #[test]
    fn an_unchanged_object_is_always_valid(schema in any_schema(), value in any_json()) {
        let schema = structural(schema);
        prop_assert_eq!(schema.validate("", &value, Some(&value)), Vec::new());
        schema.validate("", &value, None);
        schema.duplicates(&value);
        schema.validate_embedded(&value);
    }
}
