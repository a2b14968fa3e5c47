//! Small helpers of the tests beside, and the cases that need no file of their own.

mod conformance;
mod hostile;

use serde_json::json;

use crate::*;

/// Evaluates without variables.
pub(crate) fn eval(source: &str) -> Result<Val<'static>, String> {
    let environment = Environment::builder().build();
    let program = environment.compile(source).map_err(|issues| issues.to_string())?;
    program.evaluate(&Bindings::new(), &mut Budget::default()).map_err(|error| error.to_string())
}

#[test]
fn documents_are_seen_in_place() {
    let document = json!({"spec": {"replicas": 3, "ratio": 0.5, "names": ["a", "b"], "labels": {"x-y": "z"}}, "nothing": null});
    let environment = Environment::builder().variable("object", Type::Dyn).variable("old", Type::Dyn).build();
    let bindings = Bindings::new().with("object", Val::json(&document)).with("old", Val::Null);
    let cases = [
        ("object.spec.replicas == 3 && type(object.spec.replicas) == int", true),
        ("object.spec.ratio < 1", true),
        ("object.spec.names.exists(n, n == 'b')", true),
        ("object.spec.labels['x-y'] == 'z' && 'x-y' in object.spec.labels", true),
        ("has(object.spec.missing)", false),
        ("has(object.nothing)", true),
        ("object.nothing == null", true),
        ("object.spec.?missing.orValue('d') == 'd'", true),
        ("object.?spec.?names[?5].hasValue()", false),
        ("old == null || old.spec.replicas < object.spec.replicas", true),
        ("object.spec.all(k, k in ['replicas', 'ratio', 'names', 'labels'])", true),
    ];
    for (source, expected) in cases {
        let program = environment.compile(source).unwrap_or_else(|issues| panic!("{source}: {issues}"));
        assert_eq!(program.evaluate(&bindings, &mut Budget::default()), Ok(Val::Bool(expected)), "{source}");
    }
    let missing = environment.compile("object.spec.missing == 1").expect("it compiles");
    let error = missing.evaluate(&bindings, &mut Budget::default()).expect_err("the key is not there");
    assert_eq!(error.to_string(), "no such key: missing");
}

#[test]
fn errors_print_as_upstream_prints_them() {
    let cases = [
        (
            "1 +",
            "ERROR: <input>:1:4: Syntax error: mismatched input '<EOF>' expecting {'[', '{', '(', '.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER}\n | 1 +\n | ...^",
        ),
        ("x > 1", "ERROR: <input>:1:1: undeclared reference to 'x' (in container '')\n | x > 1\n | ^"),
        (
            "1 + 'a'",
            "ERROR: <input>:1:3: found no matching overload for '_+_' applied to '(int, string)'\n | 1 + 'a'\n | ..^",
        ),
        (
            "'a'.size(1)",
            "ERROR: <input>:1:9: found no matching overload for 'size' applied to 'string.(int)'\n | 'a'.size(1)\n | ........^",
        ),
        ("[1, 'a']", "ERROR: <input>:1:5: expected type 'int' but found 'string'\n | [1, 'a']\n | ....^"),
        ("1 && true", "ERROR: <input>:1:1: expected type 'bool' but found 'int'\n | 1 && true\n | ^"),
        ("has(1)", "ERROR: <input>:1:5: invalid argument to has() macro\n | has(1)\n | ....^"),
        ("if", "ERROR: <input>:1:1: reserved identifier: if\n | if\n | ^"),
        ("a b", "ERROR: <input>:1:3: Syntax error: extraneous input 'b' expecting <EOF>\n | a b\n | ..^"),
        (
            "'a'.matches('(')",
            "ERROR: <input>:1:13: invalid matches argument\n | 'a'.matches('(')\n | ............^",
        ),
        ("duration('x')", "ERROR: <input>:1:10: invalid duration argument\n | duration('x')\n | .........^"),
        ("1.x", "ERROR: <input>:1:2: type 'int' does not support field selection\n | 1.x\n | .^"),
    ];
    for (source, expected) in cases {
        assert_eq!(eval(source), Err(expected.to_owned()), "{source}");
    }
}
