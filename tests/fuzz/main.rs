//! The fuzz targets: one for each decoder that reads what a client sends.
//!
//! | target | what it reads |
//! |---|---|
//! | json, yaml | request bodies, with the schema's decoding and strict reading |
//! | protobuf | request bodies, and back |
//! | patches | JSON Patch, JSON Merge Patch, strategic merge |
//! | applies | configurations of server-side apply, managedFields |
//! | selectors | labelSelector, fieldSelector |
//! | scalars | quantities and times |
//! | cel | expressions of policies and CustomResourceDefinitions, with their cost limit |
//! | bgp-messages, bgp-conversations | what a BGP peer sends: messages, and streams of them to a speaker |
//! | bfd-packets | what a BFD peer sends, and when |
//! | cni-calls | what a container runtime gives the plugin: network configuration and variables |
//!
//! A new decoder gets a test here: a corpus, a dictionary, and a function from bytes to an outcome.

mod paths;
mod plugin;
mod routing;

use std::path::PathBuf;

use api::{
    apply::{ApplyError, FieldSet, OneVersion, Ownership, Reset},
    patch::{json_patch, merge_patch, strategic_merge},
    protobuf,
    quantity::Quantity,
    schema::{Schema, TypeId, builtin},
    selector::{FieldSelector, LabelSelector},
};
use fuzz::{Counting, Fuzz, outcome, outcome_of_text};
use serde_json::{Value, json};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const JSON_WORDS: [&[u8]; 22] = [
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"null",
    b"true",
    b"\"\"",
    b"-0",
    b"1e999",
    b"9223372036854775808",
    b"\"\\ud800\"",
    b"\"metadata\"",
    b"\"spec\"",
    b"\"containers\":[{}]",
    b"\"template\"",
    b"\"labels\"",
    b"\"$patch\":\"delete\"",
    b"\"$setElementOrder/containers\"",
    b"\"$retainKeys\":[\"name\"]",
    b"{\"a\":",
];

/// Kubernetes' golden objects where they are, beside a few of our own.
fn bodies(ending: &str) -> Vec<Vec<u8>> {
    let folder =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/kubernetes-1.36/golden");
    let mut found: Vec<Vec<u8>> = Vec::new();
    match std::fs::read_dir(&folder) {
        Ok(entries) => {
            let mut paths: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
            paths.sort();
            let named = |path: &&PathBuf| path.extension().is_some_and(|found| found == ending);
            found.extend(paths.iter().filter(named).filter_map(|path| std::fs::read(path).ok()));
        }
        Err(error) => eprintln!("golden objects are missing in {}: {error}", folder.display()),
    }
    let own = pod();
    found.push(match ending {
        "pb" => protobuf::encode_any(builtin(), &own).unwrap_or_default(),
        _ => own.to_string().into(),
    });
    found
}

fn pod() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "labels": {"a": "b"}},
        "spec": {"containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 80}],
            "resources": {"limits": {"cpu": "1500m"}}}], "tolerations": [{"key": "k"}]},
        "status": {"startTime": "2026-01-01T00:00:00Z"},
    })
}

/// The type that an object says it is, else one by chance of its bytes.
fn type_of(schema: &Schema, value: &Value, input: &[u8]) -> TypeId {
    let (group, version) = api::meta::group_and_version(api::meta::api_version(value));
    schema.type_of(group, version, api::meta::kind(value)).unwrap_or_else(|| {
        let resources = schema.resources();
        resources[usize::from(input.first().copied().unwrap_or(0)) % resources.len()].ty
    })
}

/// Decodes and takes every way that a decoded object goes.
fn decode(value: &mut Value, input: &[u8]) -> u64 {
    let schema = builtin();
    let ty = type_of(schema, value, input);
    let decoded = schema.decode(ty, value);
    if let Some(error) = decoded.errors.first() {
        return outcome_of_text(error);
    }
    let again = schema.decode(ty, &mut value.clone());
    assert!(again.errors.is_empty() && again.unknown.is_empty(), "a decoded object decodes");
    schema.default(ty, value);
    schema.canonicalize(ty, value);
    let required = schema.required(ty, value).len();
    let message = protobuf::encode_message(schema, ty, value);
    outcome(&(decoded.unknown.len().min(3), required.min(3), (message.len() + 1).ilog2()))
}

#[test]
fn json() {
    let fuzz = Fuzz { name: "json", corpus: bodies("json"), dictionary: &JSON_WORDS };
    fuzz.run(|input| match api::json::parse_strict(input) {
        Err(error) => outcome_of_text(&error.to_string()),
        Ok((mut value, duplicates)) => {
            let ty = type_of(builtin(), &value, input);
            let strict = api::json::strict_errors(builtin(), ty, input).len();
            outcome(&(decode(&mut value, input), duplicates.len().min(3), strict.min(3)))
        }
    });
}

#[test]
fn yaml() {
    let corpus = vec![
        b"apiVersion: v1\nkind: Pod\nmetadata: &m\n  name: a\nspec:\n- *m\n".to_vec(),
        b"a: |\n  x\n  y\nb: {c: [1, 2.5, ~, yes]}\n? k\n: v\n<<: {d: 1}\n".to_vec(),
        b"--- !!str a\n...\n".to_vec(),
    ];
    let dictionary: [&[u8]; 14] = [
        b"&a ", b"*a", b"<<: ", b"- ", b"? ", b": ", b"|\n", b">-\n", b"!!", b"{", b"[", b"\n  ", b"---\n",
        b"\t",
    ];
    let fuzz = Fuzz { name: "yaml", corpus, dictionary: &dictionary };
    fuzz.run(|input| {
        let Ok(text) = std::str::from_utf8(input) else { return 0 };
        match api::yaml::parse_strict(text) {
            Err(error) => outcome_of_text(&error),
            Ok((mut value, duplicates)) => outcome(&(decode(&mut value, input), duplicates.len().min(3))),
        }
    });
}

#[test]
fn protobuf_bodies() {
    let dictionary: [&[u8]; 8] = [
        protobuf::MAGIC,
        b"\x0a\x00",
        b"\x12\x00",
        b"\xff\xff\xff\xff\x0f",
        b"\x08\x00",
        b"\x1a\x02\x0a\x00",
        b"\x80",
        b"\x22",
    ];
    let fuzz = Fuzz { name: "protobuf", corpus: bodies("pb"), dictionary: &dictionary };
    fuzz.run(|input| {
        let schema = builtin();
        let (api_version, kind) = protobuf::identity(input).unwrap_or_default();
        let named = json!({"apiVersion": api_version, "kind": kind});
        let ty = type_of(schema, &named, &input[input.len().min(9)..]);
        match protobuf::decode(schema, ty, input) {
            Err(error) => outcome_of_text(&error.to_string()),
            Ok(mut value) => {
                let message = protobuf::encode_message(schema, ty, &value);
                let whole = protobuf::envelope(&api_version, &kind, &message);
                let again = protobuf::decode(schema, ty, &whole).expect("what was written can be read");
                assert!(
                    protobuf::encode_message(schema, ty, &again) == message,
                    "it is written the same again"
                );
                outcome(&(decode(&mut value, input), (message.len() + 1).ilog2()))
            }
        }
    });
}

#[test]
fn patches() {
    let corpus = vec![
        br#"[{"op":"add","path":"/spec/x","value":1},{"op":"copy","from":"","path":"/a"}]"#.to_vec(),
        br#"[{"op":"test","path":"/spec/containers/0/name","value":"c"},{"op":"remove","path":"/spec"}]"#.to_vec(),
        br#"{"spec":{"containers":[{"name":"c","$patch":"delete"},{"name":"d","image":"x"}]}}"#.to_vec(),
        br#"{"spec":{"$setElementOrder/containers":[{"name":"c"}],"containers":[{"name":"c"}]}}"#.to_vec(),
        br#"{"metadata":{"labels":{"a":null},"$deleteFromPrimitiveList/finalizers":["x"]},"$patch":"replace"}"#.to_vec(),
        br#"{"spec":{"volumes":[{"$retainKeys":["name","emptyDir"],"name":"v","emptyDir":{}}]}}"#.to_vec(),
    ];
    let fuzz = Fuzz { name: "patches", corpus, dictionary: &JSON_WORDS };
    let (schema, doc) = (builtin(), pod());
    let ty = type_of(schema, &doc, &[]);
    fuzz.run(|input| {
        let Ok((patch, _)) = api::json::parse_strict(input) else { return 0 };
        let results =
            [json_patch(&doc, &patch), merge_patch(&doc, &patch), strategic_merge(schema, ty, &doc, &patch)];
        let one = |result: Result<Value, api::patch::PatchError>| match result {
            Err(error) => outcome_of_text(&error.to_string()),
            Ok(mut value) => decode(&mut value, input),
        };
        outcome(&results.map(one))
    });
}

const NOW: &str = "2026-01-01T00:00:00Z";

/// A write of the pod by one manager.
fn write(manager: &'static str) -> Ownership<'static> {
    let schema = builtin();
    Ownership {
        schema,
        ty: type_of(schema, &pod(), &[]),
        api_version: "v1",
        kind: "Pod",
        subresource: "",
        manager,
        now: NOW,
        reset: Reset::Fields(&[&["status"]]),
        versions: &OneVersion,
    }
}

/// One configuration on one object: what is applied twice changes nothing the second time.
fn applied(live: &Value, config: &Value) -> u64 {
    let mut config = config.clone();
    if let Some(object) = config.as_object_mut() {
        object.insert("apiVersion".to_owned(), json!("v1"));
        object.insert("kind".to_owned(), json!("Pod"));
    }
    match write("fuzz").apply(Some(live), &config, true) {
        Err(ApplyError::Untyped(text)) => outcome_of_text(&text.chars().take(80).collect::<String>()),
        Err(other) => outcome_of_text(&other.to_string()),
        Ok(object) => {
            let again = write("fuzz").apply(Some(&object), &config, false).map_err(|error| error.to_string());
            assert_eq!(again.as_ref(), Ok(&object), "what is applied twice");
            let owners = object["metadata"]["managedFields"].as_array().map_or(0, Vec::len);
            outcome(&(owners, object.to_string().len().ilog2()))
        }
    }
}

#[test]
fn applies() {
    let corpus = vec![
        br#"{"spec":{"containers":[{"name":"c","image":"x","ports":[{"containerPort":80}]}]}}"#.to_vec(),
        br#"{"metadata":{"finalizers":["a/b"],"labels":{"a":"c"}},"spec":{"nodeSelector":{"x":"y"}}}"#.to_vec(),
        br#"{"f:spec":{".":{},"f:containers":{"k:{\"name\":\"c\"}":{".":{},"f:image":{}}},"v:1":{},"i:0":{}}}"#
            .to_vec(),
        br#"[{"manager":"a","operation":"Update","apiVersion":"v1","fieldsType":"FieldsV1","fieldsV1":{"f:spec":{}}}]"#
            .to_vec(),
    ];
    let fuzz = Fuzz { name: "applies", corpus, dictionary: &JSON_WORDS };
    let mut live = pod();
    write("creator").record(None, &mut live);
    fuzz.run(|input| {
        let Ok((value, _)) = api::json::parse_strict(input) else { return 0 };
        let set = match FieldSet::decode(&value) {
            Err(error) => outcome_of_text(&error),
            Ok(set) => {
                assert_eq!(FieldSet::decode(&set.encode()).as_ref(), Ok(&set), "it is written as it is read");
                assert!(set.difference(&set).is_empty() && set.union(&set) == set);
                outcome(&(set.len().min(8), set.leaves().len().min(8)))
            }
        };
        let mut edited = live.clone();
        edited["metadata"]["managedFields"] = value.clone();
        edited["spec"]["priority"] = json!(1);
        write("editor").record(Some(&live), &mut edited);
        let owners = edited["metadata"]["managedFields"].as_array().map_or(0, Vec::len);
        outcome(&(set, owners, applied(&live, &value)))
    });
}

#[test]
fn selectors() {
    let corpus = [
        "a=b,c!=d",
        "x in (a,b),y notin (c)",
        "!a,b",
        "a>5,b<7",
        "metadata.name=x,spec.nodeName!=",
        r"metadata.name=a\,b\=c",
    ];
    let dictionary: [&[u8]; 10] =
        [b" in ", b" notin ", b"(", b")", b",", b"=", b"==", b"!=", b"\\", b"example.com/"];
    let corpus = corpus.map(|text| text.as_bytes().to_vec()).to_vec();
    let fuzz = Fuzz { name: "selectors", corpus, dictionary: &dictionary };
    let labels = json!({"a": "b", "x": "6", "example.com/k": ""});
    fuzz.run(|input| {
        let Ok(text) = std::str::from_utf8(input) else { return 0 };
        let by_label = match LabelSelector::parse(text) {
            Err(error) => outcome_of_text(&error),
            Ok(selector) => outcome(&(selector.requirements().len().min(4), selector.matches(&labels))),
        };
        let by_field = match FieldSelector::parse(text) {
            Err(error) => outcome_of_text(&error),
            Ok(selector) => {
                outcome(&(selector.requirements().len().min(4), selector.matches(|_| Some("b".to_owned()))))
            }
        };
        outcome(&(by_label, by_field))
    });
}

#[test]
fn scalars() {
    let corpus =
        ["1500m", "0.1Gi", "-1e3", "12E", "2026-01-01T00:00:00.123456Z", "2026-01-01T00:00:00+14:00"];
    let dictionary: [&[u8]; 10] =
        [b"Ki", b"Ei", b"e999999999", b"n", b"9999999999999999999", b".", b"-", b"T", b"Z", b"+23:59"];
    let corpus = corpus.map(|text| text.as_bytes().to_vec()).to_vec();
    let fuzz = Fuzz { name: "scalars", corpus, dictionary: &dictionary };
    fuzz.run(|input| {
        let Ok(text) = std::str::from_utf8(input) else { return 0 };
        let quantity = match Quantity::parse(text) {
            Err(error) => outcome_of_text(&error.to_string()),
            Ok(quantity) => {
                let canonical = quantity.to_string();
                let again = Quantity::parse(&canonical).map(|again| again.to_string());
                assert_eq!(again.as_deref().ok(), Some(canonical.as_str()), "the canonical form is one");
                let sum = quantity.add(&quantity).sub(&quantity);
                outcome(&(canonical.len(), sum.sign(), quantity.value() > 0))
            }
        };
        let time = api::time::parse(text).map(api::time::format_micros);
        outcome(&(quantity, time.map_err(|error| outcome_of_text(&error)).is_ok()))
    });
}

#[test]
fn cel_expressions() {
    let corpus = [
        "object.spec.containers.all(c, c.image.startsWith('x'))",
        "[1, 2].map(x, x * 2).exists(y, y > 3)",
        "{'a': 1u, 'b': 2.5}.a == 1 ? 'x' : \"y\" + b'z'.size()",
        "quantity('1Gi').isGreaterThan(quantity('1Mi'))",
        "'a,b'.split(',').join('').matches('a(b|c)*') && has(object.metadata.name)",
        "duration('1h') + timestamp('2026-01-01T00:00:00Z') > timestamp(0)",
        "!(-1 in [1]) || object.?a.orValue(1) == 1",
        "'%s %d'.format(['a', 1])",
        "cidr('10.0.0.0/8').containsIP('10.1.1.1')",
        "url('https://a/b').getHost()",
    ];
    let dictionary: [&[u8]; 20] = [
        b".all(x, ",
        b".map(x, ",
        b".filter(x, ",
        b"(",
        b")",
        b"[",
        b"]",
        b"{",
        b"}",
        b" ? ",
        b" : ",
        b" + ",
        b" in ",
        b"object",
        b".size()",
        b"'''",
        b"r'\\",
        b"9223372036854775807",
        b".matches('",
        b".format([",
    ];
    let corpus = corpus.map(|text| text.as_bytes().to_vec()).to_vec();
    let environment = cel::Environment::builder().variable("object", cel::Type::Dyn).build();
    let doc = pod();
    let fuzz = Fuzz { name: "cel", corpus, dictionary: &dictionary };
    fuzz.run(|input| {
        let Ok(text) = std::str::from_utf8(input) else { return 0 };
        let program = match environment.compile(text) {
            Err(issues) => return outcome_of_text(&issues.to_string()),
            Ok(program) => program,
        };
        let bindings = cel::Bindings::new().with("object", cel::Val::json(&doc));
        match program.evaluate(&bindings, &mut cel::Budget::default()) {
            Err(error) => outcome_of_text(&error.to_string()),
            Ok(value) => outcome_of_text(&format!("{value:?}")),
        }
    });
}
