use serde_json::json;

use super::*;
use crate::Str;

#[test]
fn variables_are_computed_once_and_only_when_named() {
    let mut scope = Scope { params: true, ..Scope::default() };
    let sources = [
        ("replicas", "object.spec.replicas"),
        ("twice", "variables.replicas * 2"),
        ("broken", "object.nothing.at.all"),
    ];
    let variables = compile_variables(&mut scope, sources.into_iter());
    let environment = scope.environment();
    let object = json!({"spec": {"replicas": 4}});
    let bindings = Bindings::new().with("object", Val::json(&object)).with("params", Val::Null);
    let inputs = Inputs::new(&bindings, &variables);
    let mut budget = Budget::default();
    let good = Compiled::new(
        &environment,
        "variables.twice == 8 && variables.replicas == 4 && params == null",
        Returns::Bool,
    );
    assert_eq!(good.evaluate(&inputs, &mut budget), Ok(Val::Bool(true)));
    let bad = Compiled::new(&environment, "variables.broken == 1", Returns::Bool);
    let expected = "expression 'variables.broken == 1' resulted in error: composited variable \"broken\" fails to evaluate: no such key: nothing";
    assert_eq!(bad.evaluate(&inputs, &mut budget), Err(Failure::Expression(expected.to_owned())));
    let unknown = Compiled::new(&environment, "variables.missing", Returns::Any);
    assert!(unknown.program.expect_err("there is no such variable").contains("undefined field 'missing'"));
}

#[test]
fn results_must_have_the_wanted_type() {
    let environment = Scope { patches: true, ..Scope::default() }.environment();
    let error = |source: &str, returns| compile(&environment, source, returns).expect_err(source);
    assert_eq!(error("'a'", Returns::Bool), "must evaluate to bool but got string");
    assert_eq!(error("1", Returns::StringOrNull), "must evaluate to one of [string null] but got int");
    assert_eq!(
        error("{'a': 1}", Returns::ApplyConfiguration),
        "must evaluate to Object but got map(string, int)"
    );
    assert_eq!(error("[1]", Returns::JsonPatch), "must evaluate to list(JSONPatch) but got list(int)");
    let apply = "Object{metadata: Object.metadata{labels: {'a': 'b'}}, spec: Object.spec{replicas: 1}}";
    let program = compile(&environment, apply, Returns::ApplyConfiguration).expect("it compiles");
    let bindings = Bindings::new();
    let inputs = Inputs::new(&bindings, &[]);
    let value = program.evaluate(&inputs, &mut Budget::default()).expect("it evaluates");
    assert_eq!(value.to_json(), Some(json!({"metadata": {"labels": {"a": "b"}}, "spec": {"replicas": 1}})));
    let patch = "[JSONPatch{op: 'add', path: '/a/' + jsonpatch.escapeKey('x/y'), value: 'b'}]";
    let program = compile(&environment, patch, Returns::JsonPatch).expect("it compiles");
    let value = program.evaluate(&inputs, &mut Budget::default()).expect("it evaluates");
    assert_eq!(value.to_json(), Some(json!([{"op": "add", "path": "/a/x~1y", "value": "b"}])));
    assert!(error("JSONPatch{nope: 1}", Returns::Any).contains("undefined field 'nope'"));
}

#[test]
fn the_request_and_the_namespace_have_types() {
    let environment = Scope { authorizer: true, ..Scope::default() }.environment();
    for source in [
        "request.userInfo.groups.exists(g, g == 'system:masters')",
        "request.kind.kind == 'Pod' && request.operation == 'CREATE'",
        "namespaceObject.metadata.labels['env'] == 'prod'",
        "authorizer.group('apps').resource('deployments').namespace('d').name('n').check('get').allowed()",
        "authorizer.requestResource.check('delete').allowed()",
        "authorizer.path('/healthz').check('get').reason() == ''",
    ] {
        assert!(compile(&environment, source, Returns::Bool).is_ok(), "{source}");
    }
    let error = compile(&environment, "request.nope", Returns::Any).err().unwrap_or_default();
    assert!(error.contains("undefined field 'nope'"), "{error}");
}

#[test]
fn types_of_matched_kinds_are_checked() {
    let policy = json!({"spec": {
    "variables": [{"name": "spec", "expression": "object.spec"}],
    "validations": [
        {"expression": "object.spec.replicas > '1'"},
        {"expression": "variables.spec.replicas > 1", "messageExpression": "'a' + object.metadata.name"},
        {"expression": "object.spec.template.spec.containers.all(c, c.nope == '')"},
    ]}});
    let kind = |group: &str, kind: &str, schema| TypeSource {
        group: group.into(),
        version: "v1".into(),
        kind: kind.into(),
        schema,
    };
    let warnings = check_types(&policy, &[kind("apps", "Deployment", None)], None);
    assert_eq!(
        warnings,
        [
            json!({"fieldRef": "spec.validations[0].expression",
                "warning": "apps/v1, Kind=Deployment: compilation failed: ERROR: <input>:1:22: found no matching overload for '_>_' applied to '(int, string)'\n | object.spec.replicas > '1'\n | .....................^\n"}),
            json!({"fieldRef": "spec.validations[2].expression",
                "warning": "apps/v1, Kind=Deployment: compilation failed: ERROR: <input>:1:46: undefined field 'nope'\n | object.spec.template.spec.containers.all(c, c.nope == '')\n | .............................................^\n"}),
        ]
    );
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {"foo": {"type": "integer"}}}}});
    let custom = json!({"spec": {"validations": [{"expression": "object.spec.foo < object.spec.bar"}]}});
    let warnings = check_types(&custom, &[kind("example.com", "Foo", Some(schema))], None);
    assert!(
        warnings[0]["warning"].as_str().unwrap_or_default().contains("undefined field 'bar'"),
        "{warnings:?}"
    );
    assert_eq!(Val::String(Str::Borrowed("x")), Val::text("x"));
}
