//! Input that wants to do harm: nothing panics, nothing runs for long, nothing grows without bound.

use proptest::prelude::*;
use serde_json::json;

use super::eval;
use crate::{Bindings, Budget, Environment, EvalError, Type, Val, policy::Scope, rules::Rules};

#[test]
fn deep_and_long_expressions_are_refused() {
    let nested = format!("{}1{}", "(".repeat(1000), ")".repeat(1000));
    assert!(eval(&nested).expect_err("too deep").contains("expression recursion limit exceeded: 250"));
    let chain = vec!["1"; 1000].join(" + ");
    assert!(eval(&chain).expect_err("too deep").contains("expression recursion limit exceeded: 250"));
    let selects = format!("{{'a': 1}}{}", ".a".repeat(1000));
    assert!(eval(&selects).is_err());
    let mixed = format!("{}[1]{}", "[".repeat(200), "]".repeat(200)).replace("[1]", &"[1]".repeat(200));
    assert!(eval(&mixed).is_err());
    let minus = "-".repeat(5001) + "1";
    assert!(eval(&minus).is_ok());
    let long = format!("'{}'", "a".repeat(100_001));
    assert!(
        eval(&long)
            .expect_err("too long")
            .contains("expression code point size exceeds limit: size: 100003, limit 100000")
    );
    let doubled = format!("optional.of(1){}", ".optMap(x, x)".repeat(60));
    assert!(eval(&doubled).expect_err("too large").contains("limit"));
    let flat = vec!["true"; 10_000].join(" && ");
    assert_eq!(eval(&flat), Ok(Val::Bool(true)));
}

#[test]
fn the_cost_limit_ends_what_takes_long() {
    let lists = "[1,2,3,4,5,6,7,8,9,10]";
    let mut source = "true".to_owned();
    for depth in 0..7 {
        source = format!("{lists}.all(x{depth}, {source})");
    }
    assert_eq!(eval(&source), Err(EvalError::CostLimit.to_string()));
    let mut free = "false".to_owned();
    for depth in 0..9 {
        free = format!("{lists}.exists_one(x{depth}, {free})");
    }
    assert_eq!(eval(&free), Err(EvalError::CostLimit.to_string()));
    let grows = format!(
        "{lists}.map(x, {lists}.map(y, {lists}.map(z, 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa'.replace('a', 'aaaaaaaaaaaaaaaaaaaa').replace('a', 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa'))))"
    );
    assert!(eval(&grows).is_ok() || eval(&grows) == Err(EvalError::CostLimit.to_string()));
    assert!(eval("lists.range(100000000)").is_err());
    let document = json!({"text": "a".repeat(200_000)});
    let environment = Environment::builder().variable("object", Type::Dyn).build();
    let program = environment.compile("object.text.matches('(a|aa|aaa)+b')").expect("it compiles");
    let bindings = Bindings::new().with("object", Val::json(&document));
    assert!(program.evaluate(&bindings, &mut Budget::default()).is_ok());
    let costly = environment.compile("object.text.matches(object.text)").expect("it compiles");
    assert_eq!(costly.evaluate(&bindings, &mut Budget::new(u64::MAX)), Err(EvalError::CostLimit));
    let mut budget = Budget::new(10);
    assert_eq!(program.evaluate(&bindings, &mut budget), Err(EvalError::Budget));
    assert_eq!(budget.remaining(), 0);
}

/// Pieces that expressions are made of, so that random ones often parse.
#[rustfmt::skip]
const PIECES: &[&str] = &[
    "object", "oldObject", "request", "1", "2u", "1.5", "'a'", "b'a'", "null", "true", "false", "[", "]", "{",
    "}", "(", ")", ".", ",", ":", "?", "?.", "[?", "+", "-", "*", "/", "%", "==", "!=", "<", ">=", "&&", "||",
    "!", "in", "size", "all", "map", "filter", "exists", "has", "x", "x.y", ".spec", ".size()", ".map(x, x)",
    "[0]", "duration('1h')", "timestamp(0)", "type(1)", "optional.of(1)", ".orValue(2)", "'%s'.format([1])",
    "{'a': 1}", "quantity('1')", "ip('1.2.3.4')", ".matches('a+')", "Object{a: 1}", "\\", "\"", "'", "四", "\n",
    "//x\n", ".transformList(i, v, v)", ".sortBy(x, x)", "lists.range(3)", "[1, 2].sum()",
    "9223372036854775807", "0x1f",
];

fn piece() -> impl Strategy<Value = String> {
    prop::sample::select(PIECES).prop_map(str::to_owned)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_text_is_compiled_or_refused(source in "\\PC{0,60}") {
        let _result = eval(&source);
    }

    #[test]
    fn any_bytes_of_the_grammar_are_compiled_or_refused(pieces in prop::collection::vec(piece(), 0..25), spaced in any::<bool>()) {
        let source = pieces.join(if spaced { " " } else { "" });
        let environment = Scope { authorizer: false, patches: true, params: true, variables: Some(Vec::new()) }.environment();
        let object = json!({"spec": {"a": [1, 2.5, "x", null, {"b": true}]}, "size": 3});
        if let Ok(expression) = environment.check(&source) {
            let _cost = expression.estimate(&crate::NoSizes);
            let bindings = Bindings::new().with("object", Val::json(&object)).with("oldObject", Val::Null)
                .with("request", Val::json(&object)).with("params", Val::json(&object));
            let (result, cost) = expression.program().evaluate_with_cost(&bindings, 100_000);
            if let Ok(value) = &result {
                let _shown = (format!("{value:?}"), value.to_json());
            }
            prop_assert!(cost <= 100_000 || result.is_err());
        }
    }

    #[test]
    fn any_schema_and_rule_are_judged(rule in "[a-z.()<>=&|!'0-9 ]{0,30}", bound in any::<i64>(), text in "\\PC{0,10}") {
        let schema = json!({"type": "object", "properties": {"a": {"type": "array", "maxItems": bound, "items": {"type": "string", "maxLength": bound}}},
            "x-kubernetes-validations": [{"rule": format!("self.a.all(x, x != {rule})"), "messageExpression": rule, "fieldPath": text}]});
        let rules = Rules::compile(&schema);
        let _problems = rules.problems("p");
        let _findings = rules.validate(&json!({"a": [text, 1]}), Some(&json!([])), &mut Budget::default());
    }

    #[test]
    fn numbers_compare_as_their_values_do(one in any::<i64>(), two in any::<u64>(), three in -1e18..1e18f64) {
        let exact = i128::from(one).cmp(&i128::from(two));
        let found = eval(&format!("[{one} < {two}u, dyn({one}) == {two}u, {one} > {two}u]"));
        prop_assert_eq!(found, Ok(Val::list([exact.is_lt(), exact.is_eq(), exact.is_gt()].map(Val::Bool).to_vec())));
        let found = eval(&format!("{one} < {three:?}"));
        prop_assert_eq!(found, Ok(Val::Bool((one as i128) < three.ceil() as i128)));
    }

    #[test]
    fn names_of_properties_survive_escaping(name in "[a-zA-Z_][a-zA-Z0-9_./-]{0,20}") {
        let escaped = crate::structural::escape(&name).expect("such names can be escaped");
        prop_assert!(escaped.bytes().all(|byte| byte == b'_' || byte.is_ascii_alphanumeric()));
    }
}
