//! Figures that decide which rules a CustomResourceDefinition may have: they must be upstream's, to the unit.

use serde_json::{Value as Json, json};

use crate::{CALL_COST_MAX, rules::costs_of_rule};

fn schema() -> Json {
    let text = json!({"type": "string"});
    let int = json!({"type": "integer"});
    let pair = json!({"type": "object", "properties": {"f1": text, "f2": text}});
    let keyed = json!({"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
        "items": {"type": "object", "properties": {"k": text, "v": text, "v2": text}}});
    let set = json!({"type": "array", "x-kubernetes-list-type": "set", "items": text});
    json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "i1": int, "i2": int,
        "n1": {"type": "number"}, "n2": {"type": "number"},
        "s1": text, "s2": text, "digits": text,
        "bytes": {"type": "string", "format": "byte"},
        "d1": {"type": "string", "format": "duration"}, "d2": {"type": "string", "format": "duration"},
        "day": {"type": "string", "format": "date"},
        "at": {"type": "string", "format": "date-time"}, "atText": text,
        "phase": {"type": "string", "enum": ["Pending", "Available", "Bound", "Released", "Failed"]},
        "l1": {"type": "array", "items": int}, "l2": {"type": "array", "items": int},
        "set1": set, "set2": set,
        "pairs": {"type": "array", "items": pair},
        "keyed": keyed,
        "m1": {"type": "object", "additionalProperties": text}, "m2": {"type": "object", "additionalProperties": text},
        "counts": {"type": "object", "additionalProperties": int},
        "a": {"type": "object", "properties": {"b": int, "c": int}},
        "a1": {"type": "object", "properties": {"d2": {"type": "object", "properties": {"e2": int}}}}
    }}}})
}

fn object() -> Json {
    json!({
        "i1": 10, "i2": 10, "n1": 10.0, "n2": 10.5,
        "s1": "Rook takes 👑", "s2": "Rook takes 👑", "digits": "10",
        "bytes": "MTA=", "d1": "1h2m3s4ms", "d2": "1h2m3s4ms",
        "day": "1997-07-16", "at": "2011-08-18T19:03:37.01+01:00", "atText": "2011-08-18T18:03:37.01Z",
        "phase": "Pending", "l1": [1, 2, 3], "l2": [1, 2, 3],
        "set1": ["a", "b", "c"], "set2": ["a", "c", "b"],
        "pairs": [{"f1": "a", "f2": "b"}, {"f1": "a", "f2": "b"}],
        "keyed": [{"k": "a1", "v": "b1"}, {"k": "a2", "v": "b2"}, {"k": "a3", "v": "b3", "v2": "z"}],
        "m1": {"k1": "a", "k2": "b"}, "m2": {"k2": "b", "k1": "a"},
        "counts": {"b": 1, "d": 2},
        "a": {"b": 1}, "a1": {}
    })
}

/// A rule of `spec`, the most that it is estimated to cost, and what it costs on the object.
const COSTS: &[(&str, u64, u64)] = &[
    ("self.i1 == 10 && 10 == self.i1 && self.i1 == self.i2", 8, 11),
    ("self.i1 == self.i2", 4, 5),
    ("type(self.i1) == int", 4, 4),
    ("self.i1 + 1 == 10 + 1", 5, 5),
    ("double(self.i1) < self.n2", 6, 6),
    ("double(5) < 10.0", 2, 1),
    ("self.n1 == 10.0", 2, 3),
    ("self.s1.startsWith('Rook')", 3, 4),
    ("!self.s1.startsWith('knight')", 4, 5),
    ("self.s1.matches('^[^0-9]*$')", 943_721, 8),
    ("size(self.s1) == 12", 4, 4),
    ("self.s1.charAt(3) == 'k'", 4, 4),
    ("self.s1.indexOf('o') == 1", 314_576, 4),
    ("self.s1.replace(' ', 'x') == 'Rookxtakesx👑'", 629_150, 7),
    ("self.s1.split(' ') == ['Rook', 'takes', '👑']", 629_159, 6),
    ("self.s1.split(' ', 2) == ['Rook', 'takes 👑']", 629_159, 6),
    ("self.s1.substring(5) == 'takes 👑'", 314_576, 5),
    ("self.s1.substring(4, 10).trim() == 'takes'", 629_149, 6),
    ("self.d1 == duration('1h2m') + duration('3s4ms')", 6, 4),
    ("self.d1.getHours() == 1", 4, 4),
    ("self.day.getDate() == 16", 4, 4),
    ("self.at == timestamp('2011-08-18T00:00:00.000+01:00') + duration('19h3m37s10ms')", 6, 4),
    ("self.at.getDate('01:00') == 18", 4, 4),
    ("type(self.at) == google.protobuf.Timestamp", 4, 4),
    ("self.phase == 'Pending'", 3, 3),
    ("self.phase in ['Pending', 'Available']", 14, 2),
    ("int(self.n1) == self.i1", 5, 6),
    ("bytes(self.digits) == self.bytes", 629_150, 6),
    ("string(self.i1) == self.digits", 314_578, 6),
    ("string(self.n2) == '10.5'", 4, 4),
    ("string(self.bytes) == self.digits", 629_150, 6),
    ("timestamp(self.atText) == self.at", 6, 6),
    ("self.l1 == [1, 2, 3] && [1, 2, 3] == self.l1 && self.l1 == self.l2", 157_317, 11),
    ("1 in self.l1", 1_572_865, 5),
    ("self.l2[0] in self.l1", 1_572_868, 8),
    ("!(0 in self.l1)", 1_572_866, 6),
    ("self.l1 + self.l2 == [1, 2, 3, 1, 2, 3]", 16, 6),
    ("self.l1 + [4, 5] == [1, 2, 3, 4, 5]", 24, 4),
    ("has(self.l1) && has(self.l2)", 2, 2),
    ("self.l1.all(k, size(self.l1) > 0)", 11_010_044, 24),
    ("size(self.l1.filter(k, size(self.l1) > 1)) == 3", 26_738_686, 56),
    ("self.set1 == ['c', 'b', 'a']", 13, 3),
    ("self.set1 == self.set2", 104_862, 5),
    ("'a' in self.set1", 1_048_577, 5),
    ("self.set1 + self.set2 == ['a', 'b', 'c']", 16, 6),
    ("self.pairs[0] == self.pairs[1]", 6, 7),
    ("self.m1 == self.m2", 39_326, 5),
    ("'k1' in self.m1", 3, 3),
    ("self.m1 == {'k1': 'a', 'k2': 'b'}", 33, 3),
    ("self.m1.all(k, size(self.m1) > 0)", 2_752_508, 17),
    ("has(self.a.b)", 2, 2),
    ("!(has(self.a1.d2) && has(self.a1.d2.e2))", 6, 3),
    ("self.counts.all(k, self.counts[k] > 0)", 3_595_115, 17),
    ("!self.counts.exists(k, self.counts[k] == 3)", 3_595_116, 20),
    ("self.counts.exists_one(k, self.counts[k] == 2)", 2_696_338, 14),
    ("size(self.counts.filter(k, self.counts[k] > 1)) == 1", 8_089_017, 26),
    ("has(self.keyed[0].v)", 3, 3),
    ("self.keyed.all(m, m.k.startsWith('a'))", 6_291_453, 21),
    ("self.keyed.all(m, !has(m.v2) || m.v2 == 'z')", 8_388_603, 21),
    ("self.keyed.exists(m, m.k.endsWith('1'))", 7_340_028, 13),
    ("self.keyed.exists_one(m, m.k == 'a3')", 5_242_879, 15),
    ("size(self.keyed.filter(m, m.k == 'a1')) == 1", 16_777_215, 27),
    ("self.keyed.map(m, m.v).exists(v, v == 'b1')", 19_922_939, 55),
    ("self.keyed.exists(m, has(m.v2) && m.v2 == 'z')", 8_388_603, 21),
    ("self.l1.map(e, e * 20).filter(e, e > 30).exists(e, e == 60)", 53_477_367, 91),
    ("self.s1 == self.s2 && isQuantity(self.digits)", 629_152, 9),
    ("quantity(self.digits).isLessThan(quantity(self.digits)) || true", 629_151, 7),
    ("quantity('50k').sub(20) == quantity('49980')", 4, 4),
    ("optional.of('a').or(optional.of('a')).hasValue()", 4, 2),
    ("!optional.of('a').optMap(v, v == 'value').value()", 19, 9),
    ("optional.of([1, 2, 3, 4, 5]).optMap(v, v.size()).hasValue()", 38, 8),
    ("self.m1[?'k1'].orValue('v') == 'a'", 5, 4),
];

/// Expressions without variables: what they cost when they run.
const PLAIN_COSTS: &[(&str, u64)] = &[
    ("lists.range(4) == [0,1,2,3]", 16),
    ("[5,1,2,3].reverse() == [3,2,1,5]", 16),
    ("[].reverse() == []", 11),
    ("[false, true, true].reverse().reverse() == [false, true, true]", 29),
    ("[1,2,3,4].slice(1, 3) == [2, 3]", 14),
    ("dyn([1,2,3,4]).flatten() == [1,2,3,4]", 16),
    ("[4, 3, 2, 1].sort() == [1, 2, 3, 4]", 44),
    ("['d', 'a', 'b', 'c'].sort() == ['a', 'b', 'c', 'd']", 45),
    ("[].sortBy(e, e) == []", 14),
    ("['a'].sortBy(e, e) == ['a']", 30),
    ("[-3, 1, -5, -2, 4].sortBy(e, -(e * e)) == [-5, 4, -3, -2, 1]", 145),
    ("lists.range(3).sortBy(e, -e) == [2, 1, 0]", 89),
    ("['a', 'c', 'b', 'first'].sortBy(e, e == 'first' ? '' : e) == ['first', 'a', 'b', 'c']", 104),
    (
        "[{'name': 'foo'}, {'name': 'bar'}, {'name': 'baz'}].sortBy(e, e.name) == [{'name': 'bar'}, {'name': 'baz'}, {'name': 'foo'}]",
        75,
    ),
    ("['c', 'a', 'a', 'b', 'a', 'b', 'c', 'c'].distinct() == ['c', 'a', 'b']", 146),
    ("[[1], [1], [2]].distinct() == [[1], [2]]", 30),
    ("optional.of('a') != optional.of('b')", 3),
    ("optional.none().or(optional.of('a')).hasValue()", 3),
    ("{'hello': 'world'}['hello'] == 'world'", 3),
    ("'%e'.format([3.14]) == '3.140000×10⁰⁰'", 3),
];

#[test]
fn plain_expressions_cost_what_they_cost_upstream() {
    let environment = crate::Environment::builder().build();
    let mut wrong = Vec::new();
    for (source, expected) in PLAIN_COSTS {
        let program = environment.compile(source).unwrap_or_else(|issues| panic!("{source}: {issues}"));
        let found = program.evaluate_with_cost(&crate::Bindings::new(), CALL_COST_MAX);
        if found != (Ok(crate::Val::Bool(true)), *expected) {
            wrong.push(format!("{source}: expected {expected}, found {found:?}"));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn costs_are_upstreams_to_the_unit() {
    let mut wrong = Vec::new();
    for (rule, estimated, actual) in COSTS {
        let mut schema = schema();
        schema["properties"]["spec"]["x-kubernetes-validations"] = json!([{"rule": rule}]);
        let found = costs_of_rule(&schema["properties"]["spec"], &object(), CALL_COST_MAX);
        match found {
            Ok(found) if found == (*estimated, *actual) => {}
            found => wrong.push(format!("{rule}: expected {:?}, found {found:?}", (estimated, actual))),
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}
