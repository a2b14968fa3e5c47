//! What the language's specification says, as expressions that are true, and errors with their words.

use super::eval;
use crate::Val;

/// Expressions that are true.
const TRUE: &[&str] = &[
    // Literals
    "0x55555555 == 1431655765 && -0x55 == -85 && 1e3 == 1000.0 && .5 == 0.5 && 12u == 0xCu",
    "'\\u00ff' == 'ÿ' && '\\x41' == 'A' && '\\101' == 'A' && r'\\n' == '\\\\n' && '\\U0001F431' == '🐱'",
    "'''a\nb''' == 'a\\nb' && \"\"\"it's\"\"\" == 'it\\'s'",
    "b'ÿ' == b'\\303\\277' && b'\\xff'.size() == 1 && b'abc' == b'\\x61bc' && br'\\n'.size() == 2",
    "[1, 2,] == [1, 2] && {'a': 1,} == {'a': 1} && null == null",
    // Arithmetic
    "1 + 2 * 3 == 7 && (1 + 2) * 3 == 9 && 7 / 2 == 3 && -7 / 2 == -3 && 7 % 3 == 1 && -7 % 3 == -1",
    "7u / 2u == 3u && 7u % 4u == 3u && 1.0 / 0.0 > 1e300 && -(-5) == 5 && --5 == 5 && !!true",
    "42.5 + 0.5 == 43.0 && 'a' + 'b' == 'ab' && b'a' + b'b' == b'ab' && [1] + [2] == [1, 2]",
    "-9223372036854775808 + 1 < 0 && 18446744073709551615u > 1u",
    // Comparisons across numeric types
    "dyn(1) == 1u && dyn(1) == 1.0 && dyn(1u) == 1.0 && dyn(1) != 1.1 && 1 < 1u + 1u && 1 < 1.5 && 2u > 1.5 && 1.0 <= 1",
    "9223372036854775807 < 9223372036854775808u && 9007199254740993 > 9007199254740992.0",
    "dyn(1) == 1u && dyn(1) != 'a' && [1] == [dyn(1.0)] && dyn({1: 'a'}) == {1u: 'a'} && {1: 'a'}[dyn(1u)] == 'a'",
    "double('NaN') != double('NaN') && dyn(null) != 0 && 'a' < 'b' && b'a' < b'ab' && false < true",
    "timestamp('2020-01-01T00:00:00Z') < timestamp('2020-01-01T00:00:00.000000001Z')",
    // Logic absorbs errors
    "true || 1 / 0 == 1",
    "1 / 0 == 1 || true",
    "!(false && 1 / 0 == 1)",
    "!(1 / 0 == 1 && false)",
    "true ? true : 1 / 0 == 1",
    "false ? 1 / 0 == 1 : true",
    // Macros
    "[1, 2, 3].all(x, x > 0) && ![1, 2].all(x, x > 1) && [].all(x, x > 0)",
    "[1, 2, 3].exists(x, x == 2) && ![].exists(x, true) && {'a': 1}.exists(k, k == 'a')",
    "[1, 2, 2].exists_one(x, x == 1) && ![1, 2, 2].exists_one(x, x == 2) && [1].existsOne(x, true)",
    "[1, 2].map(x, x * 2) == [2, 4] && [1, 2, 3].map(x, x > 1, x * 2) == [4, 6] && [1, 2, 3].filter(x, x > 1) == [2, 3]",
    "{'a': 1, 'b': 2}.map(k, k) == ['a', 'b'] && [[1], [2]].map(x, x.map(y, y + 1)) == [[2], [3]]",
    "[1, 0].exists(x, 1 / x == 1) && ![0, 2].all(x, 4 / x == 3)",
    "has({'a': 1}.a) && !has({'a': 1}.b) && has(dyn({'a': {'b': null}}).a.b)",
    "[1, 2].all(i, v, i < v) && {'a': 'b'}.exists(k, v, k < v) && [5, 6].transformList(i, v, i + v) == [5, 7]",
    "[1, 2].transformMap(i, v, v > 1, v * 2) == {1: 4} && {'a': 'x'}.transformMapEntry(k, v, {v: k}) == {'x': 'a'}",
    // Lists and maps
    "1 in [1, 2] && !(3 in [1, 2]) && 'a' in {'a': 1} && [1, 2][0] == 1 && [1, 2][dyn(1u)] == 2 && {'a': 1}['a'] == 1",
    "{'a': 1}.a == 1 && {true: 1}[true] == 1 && size([1, 2]) == 2 && {'a': 1}.size() == 1 && size('四') == 1 && size(b'四') == 3",
    // Conversions
    "int('42') == 42 && int(3.9) == 3 && int(-3.9) == -3 && int(5u) == 5 && int(timestamp('1970-01-01T00:00:05Z')) == 5",
    "uint('42') == 42u && uint(3.9) == 3u && double('1.5') == 1.5 && double(2) == 2.0 && string(1.5) == '1.5' && string(1e21) == '1e+21'",
    "string(b'abc') == 'abc' && bytes('abc') == b'abc' && bool('true') && !bool('F') && string(true) == 'true' && string(123u) == '123'",
    "string(duration('1h30m')) == '5400s' && string(duration('1500ms')) == '1.5s' && duration('-1.5h') == duration('-90m')",
    "string(timestamp('2009-02-13T23:31:30.5Z')) == '2009-02-13T23:31:30.5Z' && timestamp(0) == timestamp('1970-01-01T00:00:00Z')",
    "type(1) == int && type('a') == string && type([]) == list && type({}) == map && type(null) == null_type && type(type(1)) == type",
    "type(timestamp(0)) == google.protobuf.Timestamp && type(optional.none()) == optional_type && type(1u) != int",
    // Time
    "timestamp('2009-02-13T23:31:30Z') + duration('1h') == timestamp('2009-02-14T00:31:30Z')",
    "timestamp('2009-02-14T00:31:30Z') - timestamp('2009-02-13T23:31:30Z') == duration('1h')",
    "timestamp('2009-02-13T23:31:20Z').getDayOfWeek() == 5 && timestamp('2009-02-13T23:31:20Z').getFullYear() == 2009",
    "timestamp('2009-02-13T23:31:20Z').getMonth() == 1 && timestamp('2009-02-13T23:31:20Z').getDayOfYear() == 43",
    "timestamp('2009-02-13T23:31:20Z').getDayOfMonth() == 12 && timestamp('2009-02-13T23:31:20Z').getDate() == 13",
    "timestamp('2009-02-13T23:31:20Z').getHours('02:00') == 1 && timestamp('2009-02-13T23:31:20Z').getHours('-02:30') == 21",
    "timestamp('2009-02-13T23:31:20.123456789Z').getMilliseconds() == 123 && duration('10h5m').getMinutes() == 605",
    // Optionals
    "optional.of(1).hasValue() && !optional.none().hasValue() && optional.of(1).value() == 1 && optional.none().orValue(2) == 2",
    "optional.of(1).or(optional.of(2)) == optional.of(1) && optional.none().or(optional.of(2)).value() == 2",
    "{'a': {'b': 1}}.?a.?b == optional.of(1) && {'a': 1}.?c == optional.none() && [1][?0].value() == 1 && ![1][?3].hasValue()",
    "[1, ?optional.none(), ?optional.of(2)] == [1, 2] && {?'a': optional.none(), 'b': 1} == {'b': 1}",
    "optional.of(2).optMap(x, x * 2).value() == 4 && !optional.none().optMap(x, x).hasValue()",
    "optional.of(2).optFlatMap(x, optional.of(x)).value() == 2 && !optional.ofNonZeroValue('').hasValue()",
    // Strings
    "'hello'.charAt(1) == 'e' && 'hello'.charAt(5) == '' && 'hello'.indexOf('l') == 2 && 'hello'.indexOf('l', 3) == 3 && 'hello'.lastIndexOf('l') == 3",
    "'hello'.indexOf('') == 0 && 'hello'.lastIndexOf('') == 5 && 'hello'.indexOf('z') == -1 && 'TacoCat'.lowerAscii() == 'tacocat'",
    "'a,b,c'.split(',') == ['a', 'b', 'c'] && 'a,b,c'.split(',', 2) == ['a', 'b,c'] && 'abc'.split('') == ['a', 'b', 'c'] && 'a'.split(',', 0) == []",
    "'hello hello'.replace('he', 'we') == 'wello wello' && 'hello hello'.replace('he', 'we', 1) == 'wello hello' && 'ab'.replace('', '_') == '_a_b_'",
    "'tacocat'.substring(4) == 'cat' && 'tacocat'.substring(0, 4) == 'taco' && ' \\ttrim\\n '.trim() == 'trim' && ['a', 'b'].join('-') == 'a-b' && ['a', 'b'].join() == 'ab'",
    "strings.quote('a\"b\\n') == '\"a\\\\\"b\\\\n\"' && 'abc'.matches('^a.c$') && matches('abc', 'b') && 'abc'.contains('bc') && 'abc'.startsWith('ab') && 'abc'.endsWith('c')",
    "'%s %d %.2f %b %x %X %o %%'.format(['a', 5, 1.005, 5, 255, 'hi', 8]) == 'a 5 1.00 101 ff 6869 10 %'",
    "'%s'.format([[1, 'a', {'k': 1.5}]]) == '[1, \"a\", {\"k\":1.500000}]' && '%s %s'.format([null, true]) == 'null true'",
    "'abc 123'.find('[0-9]+') == '123' && 'x'.find('y') == '' && '1 2 3'.findAll('[0-9]') == ['1', '2', '3'] && '1 2 3'.findAll('[0-9]', 2) == ['1', '2']",
    // Lists of Kubernetes, sets
    "[1, 2, 2].isSorted() && !['b', 'a'].isSorted() && [1, 2].sum() == 3 && [1.5].sum() == 1.5 && ['b', 'a'].min() == 'a' && [1, 3].max() == 3",
    "[1, 2, 2].indexOf(2) == 1 && [1, 2, 2].lastIndexOf(2) == 2 && ['a'].indexOf('b') == -1 && [duration('1s'), duration('2s')].sum() == duration('3s')",
    "[3, 1, 2].sort() == [1, 2, 3] && ['b', 'a'].sortBy(x, x) == ['a', 'b'] && [1, 2].reverse() == [2, 1] && [1, 1].distinct() == [1] && lists.range(3) == [0, 1, 2]",
    "[1, 2, 3].slice(1, 2) == [2] && [[1], [2]].flatten() == [1, 2] && [[1], [2, 3]].flatten(1) == [1, 2, 3]",
    "sets.contains([1, 2], [2]) && sets.equivalent([1, 2], [2, 1, 1]) && sets.intersects([1], [1, 2]) && !sets.intersects([1], [])",
    // Kubernetes' types
    "quantity('1Gi').isGreaterThan(quantity('1G')) && quantity('50k').add(20) == quantity('50020') && quantity('1.5').isInteger() == false && sign(quantity('-1')) == -1",
    "isQuantity('1Mi') && !isQuantity('1 Mi') && quantity('100m').asApproximateFloat() == 0.1 && quantity('2k').asInteger() == 2000 && quantity('1').compareTo(quantity('1000m')) == 0",
    "ip('192.168.0.1').family() == 4 && ip('::1').isLoopback() && isIP('::1') && !isIP('::ffff:1.2.3.4') && ip.isCanonical('2001:db8::abcd') && !ip.isCanonical('2001:DB8::ABCD')",
    "ip('169.254.1.1').isLinkLocalUnicast() && ip('8.8.8.8').isGlobalUnicast() && ip('0.0.0.0').isUnspecified() && string(ip('::1')) == '::1' && ip('224.0.0.1').isLinkLocalMulticast()",
    "cidr('192.168.0.0/24').containsIP('192.168.0.1') && !cidr('192.168.0.0/24').containsIP(ip('192.168.1.1')) && cidr('10.0.0.0/8').containsCIDR('10.1.0.0/16') && isCIDR('::/0') && !isCIDR('1.2.3.4/33')",
    "cidr('192.168.0.5/24').masked() == cidr('192.168.0.0/24') && cidr('192.168.0.5/24').ip() == ip('192.168.0.5') && cidr('::1/128').prefixLength() == 128",
    "url('https://user:pw@[::1]:80/path%20x?k=a&k=b#f').getHostname() == '::1' && url('https://example.com:8080/p').getPort() == '8080' && url('/path').getHost() == ''",
    "url('https://h/p?k=a&k=b&c=d').getQuery() == {'k': ['a', 'b'], 'c': ['d']} && url('HTTPS://h/a b').getEscapedPath() == '/a%20b' && isURL('http://h') && !isURL('h') && url('HTTPS://h').getScheme() == 'https'",
    "semver('1.2.3').major() == 1 && semver('1.2.3-alpha').isLessThan(semver('1.2.3')) && isSemver('1.2.3+b1') && !isSemver('v1.0') && semver('v1.0', true) == semver('1.0.0') && semver('1.0.0-rc.2').compareTo(semver('1.0.0-rc.10')) == -1",
    "!format.dns1123Label().validate('my-label').hasValue() && format.dns1123Label().validate('No').hasValue() && format.named('uuid').value().validate('x').value() == ['does not match the UUID format'] && !format.named('nope').hasValue()",
    "!format.date().validate('2021-01-01').hasValue() && format.datetime().validate('2021-01-01').hasValue() && !format.uri().validate('http://a/b').hasValue() && format.byte().validate('?').hasValue()",
];

#[test]
fn the_specification_holds() {
    let wrong: Vec<String> = TRUE
        .iter()
        .filter_map(|source| match eval(source) {
            Ok(Val::Bool(true)) => None,
            other => Some(format!("{source}\n    {other:?}")),
        })
        .collect();
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// Expressions that compile and fail, and their words.
const FAILURES: &[(&str, &str)] = &[
    ("1 / 0", "division by zero"),
    ("1 % 0", "modulus by zero"),
    ("9223372036854775807 + 1", "integer overflow"),
    ("-9223372036854775808 - 1", "integer overflow"),
    ("-(-9223372036854775807 - 1)", "integer overflow"),
    ("9223372036854775807 * 2", "integer overflow"),
    ("(-9223372036854775807 - 1) / -1", "integer overflow"),
    ("0u - 1u", "unsigned integer overflow"),
    ("uint(-1)", "unsigned integer overflow"),
    ("int(1e99)", "integer overflow"),
    ("int(18446744073709551615u)", "integer overflow"),
    ("int('x')", "type conversion error from 'string' to 'int'"),
    ("[1][1]", "index out of bounds: 1"),
    ("{'a': 1}['b']", "no such key: b"),
    ("dyn({'a': 1}).b", "no such key: b"),
    ("{'a': 1, 'a': 2}", "Failed with repeated key: a"),
    ("dyn('a') + 1", "no such overload"),
    ("dyn(1) && true", "no such overload"),
    ("dyn(1) ? 1 : 2", "no such overload"),
    ("optional.none().value()", "optional.none() dereference"),
    ("[].min()", "min called on empty list"),
    ("'abc'.charAt(9)", "index out of range: 9"),
    ("'abc'.substring(2, 1)", "invalid substring range. start: 2, end: 1"),
    ("timestamp('9999-12-31T23:59:59Z') + duration('1s')", "timestamp overflow"),
    (
        "quantity('x')",
        "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
    ),
    (
        "ip('1.2.3')",
        "IP Address \"1.2.3\" parse error during conversion from string: ParseAddr(\"1.2.3\"): unable to parse IP",
    ),
    ("ip('fe80::1%eth0')", "IP address \"fe80::1%eth0\" with zone value is not allowed"),
    (
        "'%d'.format(['a'])",
        "error during formatting: decimal clause can only be used on integers, was given string",
    ),
    ("'%s'.format([])", "index 0 out of range"),
    ("[1, 2].slice(0, 5)", "cannot slice(0, 5), list is length 2"),
    ("[0].all(x, 1 / x == 1)", "division by zero"),
    ("string(b'\\xff')", "invalid UTF-8 in bytes, cannot convert to string"),
];

#[test]
fn failures_say_why_in_the_words_of_cel() {
    let wrong: Vec<String> = FAILURES
        .iter()
        .filter_map(|(source, expected)| match eval(source) {
            Err(found) if found == *expected => None,
            other => Some(format!("{source}\n    {other:?}")),
        })
        .collect();
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn what_does_not_compile_is_said_at_its_place() {
    let cases = [
        ("[1].map(1, x)", "ERROR: <input>:1:9: argument is not an identifier"),
        ("[1].all(1, x)", "ERROR: <input>:1:9: argument must be a simple name"),
        ("99999999999999999999", "ERROR: <input>:1:1: invalid int literal"),
        ("'\\z'", "ERROR: <input>:1:1: unable to unescape string"),
        ("a ^ b", "ERROR: <input>:1:3: Syntax error: token recognition error at: '^'"),
        ("f(1)", "ERROR: <input>:1:2: undeclared reference to 'f' (in container '')"),
        ("'a'.nope()", "ERROR: <input>:1:9: undeclared reference to 'nope' (in container '')"),
        ("cel.bind(x, 1, x)", "ERROR: <input>:1:1: undeclared reference to 'cel' (in container '')"),
        (
            "1.all(x, true)",
            "ERROR: <input>:1:1: expression of type 'int' cannot be range of a comprehension (must be list, map, or dynamic)",
        ),
        ("Foo{a: 1}", "ERROR: <input>:1:4: undeclared reference to 'Foo' (in container '')"),
        ("{'a': 1, 2: 2}", "ERROR: <input>:1:10: expected type 'string' but found 'int'"),
        (
            "'四四' + 1",
            "ERROR: <input>:1:6: found no matching overload for '_+_' applied to '(string, int)'\n | '四四' + 1\n | .．．..^",
        ),
        ("\n  x", "ERROR: <input>:2:3: undeclared reference to 'x' (in container '')\n |   x\n | ..^"),
    ];
    for (source, expected) in cases {
        let found = eval(source).expect_err(source);
        assert!(found.starts_with(expected), "{source}: {found}");
    }
}
