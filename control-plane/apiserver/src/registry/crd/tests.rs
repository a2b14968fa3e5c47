use base64::Engine as _;
use serde_json::{Value, json};

use super::{APPROVED, CLEANUP_FINALIZER, CustomResourceDefinitions, bundle_problem, is_true, set_approval};
use crate::registry::{Context, Strategy, prepare_create, prepare_update};

fn definition(schema: Value) -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced", "names": {"plural": "widgets", "kind": "Widget"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}],
        },
    })
}

fn context(subresource: &'static str) -> Context<'static> {
    let schema = api::schema::builtin();
    let resource = schema.resource("apiextensions.k8s.io", "v1", "customresourcedefinitions").unwrap();
    Context { resource, subresource, now: "2026-01-01T00:00:00Z", user: "somebody" }
}

fn prepared(mut object: Value) -> Value {
    CustomResourceDefinitions.default(&mut object);
    prepare_create(&CustomResourceDefinitions, &context(""), &mut object);
    object
}

fn errors(object: Value) -> Vec<String> {
    let object = prepared(object);
    CustomResourceDefinitions.validate(&context(""), &object).iter().map(ToString::to_string).collect()
}

fn errors_of_schema(schema: Value) -> Vec<String> {
    errors(definition(schema))
}

fn of_spec(spec: Value) -> Value {
    json!({"type": "object", "properties": {"spec": spec}})
}

#[test]
fn names_and_status_are_filled_in() {
    let object = prepared(definition(json!({"type": "object"})));
    assert_eq!(object["spec"]["names"]["singular"], "widget");
    assert_eq!(object["spec"]["names"]["listKind"], "WidgetList");
    assert_eq!(object["spec"]["conversion"], json!({"strategy": "None"}));
    assert_eq!(object["status"]["storedVersions"], json!(["v1"]));
    assert_eq!(object["metadata"]["generation"], 1);
    assert_eq!(errors(object), Vec::<String>::new());
}

#[test]
fn a_schema_must_be_structural() {
    let cases = [
        (json!({}), "spec.validation.openAPIV3Schema.type: Required value: must not be empty at the root"),
        (
            of_spec(json!({})),
            "spec.validation.openAPIV3Schema.properties[spec].type: Required value: must not be empty for specified \
             object fields",
        ),
        (
            of_spec(json!({"type": "array"})),
            "spec.validation.openAPIV3Schema.properties[spec].items: Required value: must be specified",
        ),
        (
            of_spec(json!({"type": "object", "anyOf": [{"type": "object"}]})),
            "spec.validation.openAPIV3Schema.properties[spec].anyOf[0].type: Forbidden: must be empty to be structural",
        ),
        (
            json!({"type": "object", "oneOf": [{"properties": {"a": {"pattern": "x"}}}]}),
            "spec.validation.openAPIV3Schema.properties[a]: Required value: because it is defined in \
             spec.validation.openAPIV3Schema.oneOf[0].properties[a]",
        ),
        (
            json!({"type": "object", "properties": {"metadata": {"type": "object", "properties": {"labels": {"type": "object"}}}}}),
            "spec.validation.openAPIV3Schema.properties[metadata]: Forbidden: must not specify anything other than name \
             and generateName, but metadata is implicitly specified",
        ),
        (
            of_spec(json!({"type": "string", "pattern": "("})),
            "spec.validation.openAPIV3Schema.properties[spec].pattern: Invalid value: \"(\": must be a valid regular \
             expression, but isn't: unclosed group",
        ),
    ];
    for (schema, expected) in cases {
        let found = errors_of_schema(schema.clone());
        assert!(found.iter().any(|error| error == expected), "{schema}: {found:#?}");
    }
    let fine = of_spec(json!({"type": "object", "properties": {
        "port": {"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]},
        "any": {"x-kubernetes-preserve-unknown-fields": true},
        "pod": {"type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true},
    }}));
    assert_eq!(errors_of_schema(fine), Vec::<String>::new());
}

#[test]
fn extensions_must_agree() {
    let cases = [
        (json!({"type": "string", "uniqueItems": true}), "uniqueItems cannot be set to true"),
        (
            json!({"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": {"type": "string"}}),
            "additionalProperties and properties are mutual exclusive",
        ),
        (
            json!({"type": "string", "x-kubernetes-list-type": "set"}),
            "must be array if x-kubernetes-list-type",
        ),
        (
            json!({"type": "array", "items": {"type": "object"}, "x-kubernetes-list-type": "map"}),
            "must not be empty if x-kubernetes-list-type is map",
        ),
        (
            json!({"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
                "items": {"type": "object", "properties": {"k": {"type": "string"}}}}),
            "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property",
        ),
        (
            json!({"type": "array", "items": {"type": "object"}, "x-kubernetes-list-type": "set"}),
            "must be atomic as item of a list with x-kubernetes-list-type=set",
        ),
        (json!({"type": "string", "$ref": "x"}), "$ref is not supported"),
        (json!({"type": "money"}), "supported values: \"array\", \"boolean\""),
        (
            json!({"type": "object", "x-kubernetes-preserve-unknown-fields": false}),
            "must be true or undefined",
        ),
        (
            json!({"type": "string", "x-kubernetes-validations": [{"rule": " "}]}),
            "x-kubernetes-validations[0].rule: Required value: rule is not specified",
        ),
    ];
    for (spec, expected) in cases {
        let found = errors_of_schema(of_spec(spec.clone()));
        assert!(found.iter().any(|error| error.contains(expected)), "{spec}: {found:#?}");
    }
}

#[test]
fn defaults_must_fit_their_schema() {
    let wrong = of_spec(json!({"type": "object", "properties": {
        "n": {"type": "integer", "default": "x"},
        "o": {"type": "object", "default": {"typo": 1}, "properties": {"a": {"type": "string"}}},
    }}));
    let found = errors_of_schema(wrong);
    assert_eq!(
        found,
        [
            "spec.validation.openAPIV3Schema.properties[spec].properties[n].default: Invalid value: \"string\": \
             spec.validation.openAPIV3Schema.properties[spec].properties[n].default in body must be of type integer: \
             \"string\"",
            "spec.validation.openAPIV3Schema.properties[spec].properties[o].default: Invalid value: {\"typo\":1}: must \
             not have unknown fields",
        ]
    );
}

#[test]
fn the_rest_of_the_spec_is_checked_too() {
    let mut object = definition(json!({"type": "object"}));
    object["metadata"]["name"] = json!("other.example.com");
    object["spec"]["group"] = json!("example");
    object["spec"]["scope"] = json!("Everywhere");
    object["spec"]["names"] = json!({"plural": "Widgets", "kind": "Widget", "listKind": "Widget"});
    object["spec"]["preserveUnknownFields"] = json!(true);
    object["spec"]["conversion"] = json!({"strategy": "Webhook"});
    let version = &mut object["spec"]["versions"][0];
    version["storage"] = json!(false);
    version["deprecationWarning"] = json!("x");
    version["subresources"] =
        json!({"status": {}, "scale": {"specReplicasPath": ".x", "statusReplicasPath": ".status.n"}});
    version["additionalPrinterColumns"] = json!([{"name": "A", "type": "money", "jsonPath": "spec"}]);
    version["selectableFields"] = json!([{"jsonPath": ".spec.missing"}]);
    let found = errors(object);
    for expected in [
        "metadata.name: Invalid value: \"other.example.com\": must be spec.names.plural+\".\"+spec.group",
        "spec.group: Invalid value: \"example\": should be a domain with at least one dot",
        "spec.scope: Unsupported value: \"Everywhere\": supported values: \"Cluster\", \"Namespaced\"",
        "spec.names.listKind: Invalid value: \"Widget\": kind and listKind may not be the same",
        "spec.preserveUnknownFields: Invalid value: true: cannot set to true, set \
         x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead",
        "spec.conversion.webhookClientConfig: Required value: required when strategy is set to Webhook",
        "spec.conversion.conversionReviewVersions: Required value",
        "spec.versions[0].deprecationWarning: Invalid value: \"x\": can only be set for deprecated versions",
        "spec.subresources.scale.specReplicasPath: Invalid value: \".x\": should be a json path under .spec",
        "spec.additionalPrinterColumns[0].type: Invalid value: \"money\": must be one of \
         boolean,date,integer,number,string",
        "spec.additionalPrinterColumns[0].JSONPath: Invalid value: \"spec\": must be a simple json path starting with .",
        "spec.selectableFields[0].jsonPath: Invalid value: \".spec.missing\": is an invalid path: does not refer to a \
         valid field: spec",
    ] {
        assert!(found.iter().any(|error| error == expected), "{expected}: {found:#?}");
    }
    assert!(
        found.iter().any(|error| error.contains("must have exactly one version marked as storage version"))
    );
    assert!(found.iter().any(|error| error.starts_with("spec.names.plural: Invalid value: \"Widgets\"")));
}

#[test]
fn an_established_kind_keeps_its_scope_and_names() {
    let mut old = prepared(definition(json!({"type": "object"})));
    old["status"]["conditions"] = json!([{"type": "Established", "status": "True"}]);
    let mut new = old.clone();
    new["spec"]["scope"] = json!("Cluster");
    new["spec"]["versions"][0]["name"] = json!("v2");
    prepare_update(&CustomResourceDefinitions, &context(""), &mut new, &old);
    assert_eq!(new["status"]["storedVersions"], json!(["v1", "v2"]));
    assert_eq!(new["metadata"]["generation"], 2);
    let found: Vec<String> = CustomResourceDefinitions
        .validate_update(&context(""), &new, &old)
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(found[0], "spec.scope: Invalid value: \"Cluster\": field is immutable");
    assert!(
        found[1].starts_with("status.storedVersions[0]: Invalid value: \"v1\": missing from spec.versions;")
    );
}

#[test]
fn protected_groups_need_an_approval() {
    let mut object = definition(json!({"type": "object"}));
    object["metadata"]["name"] = json!("widgets.x.k8s.io");
    object["spec"]["group"] = json!("x.k8s.io");
    let found = errors(object.clone());
    assert!(
        found[0].starts_with("metadata.annotations[api-approved.kubernetes.io]: Required value"),
        "{found:?}"
    );
    object["metadata"]["annotations"] = json!({"api-approved.kubernetes.io": "unapproved, a test"});
    assert_eq!(errors(object), Vec::<String>::new());
}

#[test]
fn deletion_waits_for_the_objects_of_the_kind() {
    let mut object = prepared(definition(json!({"type": "object"})));
    CustomResourceDefinitions.begin_deletion(&mut object, "2026-01-01T00:00:00Z");
    assert_eq!(object["metadata"]["finalizers"], json!([CLEANUP_FINALIZER]));
    assert!(is_true(&object, "Terminating"));
}

#[test]
fn conditions_of_other_writers_stay() {
    let mut status = json!({"conditions": [{"type": "Own", "status": "True"}, {"type": "Established", "status": "False"}]});
    let from = json!({"conditions": [{"type": "Established", "status": "True"}, {"type": "Gone"}]});
    super::copy_conditions(&mut status, &from, &["Established", "NamesAccepted"]);
    assert_eq!(
        status["conditions"],
        json!([{"type": "Own", "status": "True"}, {"type": "Established", "status": "True"}])
    );
}

#[test]
fn unknown_formats_are_warned_of() {
    let schema = of_spec(json!({"type": "object", "properties": {
        "a": {"type": "string", "format": "uuid"}, "b": {"type": "string", "format": "money"}}}));
    assert_eq!(CustomResourceDefinitions.warnings(&definition(schema)), ["unrecognized format \"money\""]);
}

#[test]
fn approval_is_told_in_the_status() {
    let told = |annotation: &str| {
        let mut object = definition(json!({"type": "object"}));
        object["spec"]["group"] = json!("x.k8s.io");
        object["metadata"]["annotations"] = json!({APPROVED: annotation});
        let mut status = json!({});
        set_approval(&object, &mut status, "2026-01-01T00:00:00Z");
        let condition = status["conditions"][0].clone();
        assert_eq!(condition["type"], "KubernetesAPIApprovalPolicyConformant");
        let text = |field: &str| condition[field].as_str().unwrap().to_owned();
        [text("status"), text("reason"), text("message")].join(" ")
    };
    assert!(told("").starts_with("False MissingAnnotation protected groups must have approval annotation"));
    assert_eq!(told("unapproved, a test"), "False UnapprovedAnnotation not approved: \"unapproved, a test\"");
    assert_eq!(told("https://a.b/c"), "True ApprovedAnnotation approved in https://a.b/c");
    assert!(told("soon").starts_with("False InvalidAnnotation protected groups must have"));
    let mut status = json!({});
    set_approval(&definition(json!({"type": "object"})), &mut status, "");
    assert_eq!(status, json!({}), "other groups need none");
}

/// A definition with a converter whose `caBundle` is this text.
fn converted(bundle: &str) -> Value {
    let mut object = prepared(definition(json!({"type": "object"})));
    let bundle = base64::engine::general_purpose::STANDARD.encode(bundle);
    object["spec"]["conversion"] = json!({"strategy": "Webhook", "webhook": {
        "conversionReviewVersions": ["v1"], "clientConfig": {"url": "https://a", "caBundle": bundle}}});
    object
}

#[test]
fn a_bundle_that_trusts_nobody_keeps_a_kind_from_being_served_and_cannot_come_later() {
    let good = crate::security::pki::Ca::generate("ca").unwrap().certificate_pem;
    assert_eq!(bundle_problem(&converted(&good)), None);
    assert_eq!(bundle_problem(&converted("")), None);
    let why = |bundle: &str| bundle_problem(&converted(bundle)).unwrap();
    assert_eq!(why("x"), "unable to load root certificates: unable to parse bytes as PEM block");
    let key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    assert_eq!(why(key), "unable to load root certificates: no valid certificate authority data seen");
    assert!(why(&key.replace("PRIVATE KEY", "CERTIFICATE")).contains("failed to parse certificate: "));

    let errors = |new: &Value, old: &Value| -> Vec<String> {
        CustomResourceDefinitions
            .validate_update(&context(""), new, old)
            .iter()
            .map(ToString::to_string)
            .collect()
    };
    let mut old = converted(&good);
    assert_eq!(errors(&converted("x"), &old), Vec::<String>::new(), "it is not served yet");
    old["status"]["conditions"] = json!([{"type": "Established", "status": "True"}]);
    let bad = old["status"].clone();
    let mut new = converted("x");
    new["status"] = bad;
    let found = errors(&new, &old);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(
        found[0].starts_with("spec.conversion.webhookClientConfig.caBundle: Invalid value: "),
        "{found:?}"
    );
    assert_eq!(errors(&new, &new), Vec::<String>::new(), "it was bad before");
}
