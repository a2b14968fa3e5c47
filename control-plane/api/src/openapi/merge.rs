//! The v2 document of another server laid beside ours: its paths below one root, and the definitions that they need. A
//! definition that has the name of another one gets a name of its own, as upstream's aggregator does.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

const DEFINITIONS: &str = "#/definitions/";
/// The kinds that a definition is of: of shared ones (`DeleteOptions`) every server names its own.
const KINDS: &str = "x-kubernetes-group-version-kind";

/// Adds to `document` the paths of `other` that are `root` or below it, where it has none of that name.
pub fn merge_v2(document: &mut Value, other: &Value, root: &str) {
    let is_below =
        |path: &str| path.strip_prefix(root).is_some_and(|rest| matches!(rest.as_bytes(), [] | [b'/', ..]));
    let mut paths: Map<String, Value> = entries(other, "paths")
        .filter(|(path, _)| is_below(path) && document["paths"].get(path).is_none())
        .map(|(path, item)| (path.clone(), item.clone()))
        .collect();
    let needed = needed(&paths, other);
    let names = names(document, other, &needed);
    paths.values_mut().for_each(|item| rename(item, &names));
    let definitions: Vec<(String, Value)> = needed
        .iter()
        .map(|name| {
            let mut definition = other["definitions"][name].clone();
            rename(&mut definition, &names);
            (names.get(name).unwrap_or(name).clone(), definition)
        })
        .collect();
    let Some(own) = object_mut(document, "definitions") else { return };
    for (name, definition) in definitions {
        match own.get_mut(&name) {
            Some(known) => add_kinds(known, &definition),
            None => _ = own.insert(name, definition),
        }
    }
    let Some(own) = object_mut(document, "paths") else { return };
    own.extend(paths);
}

fn entries<'a>(document: &'a Value, field: &str) -> impl Iterator<Item = (&'a String, &'a Value)> {
    document[field].as_object().into_iter().flatten()
}

fn object_mut<'a>(document: &'a mut Value, field: &str) -> Option<&'a mut Map<String, Value>> {
    document.get_mut(field).and_then(Value::as_object_mut)
}

/// The names of the definitions that a value refers to itself.
fn references(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(object) => {
            for (key, value) in object {
                match value.as_str().filter(|_| key == "$ref").and_then(|text| text.strip_prefix(DEFINITIONS))
                {
                    Some(name) => _ = found.insert(name.to_owned()),
                    None => references(value, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| references(item, found)),
        _ => {}
    }
}

/// What the paths refer to, and what that refers to in turn.
fn needed(paths: &Map<String, Value>, other: &Value) -> BTreeSet<String> {
    let mut open = BTreeSet::new();
    paths.values().for_each(|item| references(item, &mut open));
    let mut needed = BTreeSet::new();
    while let Some(name) = open.pop_first() {
        let Some(definition) = other["definitions"].get(&name) else { continue };
        if needed.insert(name) {
            references(definition, &mut open);
        }
    }
    needed
}

/// The new names of the definitions that are not what ours of that name are: in themselves, or in what they refer to.
fn names(document: &Value, other: &Value, needed: &BTreeSet<String>) -> BTreeMap<String, String> {
    let (ours, theirs) = (&document["definitions"], &other["definitions"]);
    let shared: Vec<&String> = needed.iter().filter(|name| ours.get(*name).is_some()).collect();
    let mut differing: BTreeSet<&String> =
        shared.iter().copied().filter(|name| !is_same(&ours[*name], &theirs[*name])).collect();
    loop {
        let before = differing.len();
        for name in &shared {
            let mut inside = BTreeSet::new();
            references(&theirs[*name], &mut inside);
            if inside.iter().any(|inner| differing.contains(inner)) {
                differing.insert(name);
            }
        }
        if differing.len() == before {
            break;
        }
    }
    let is_free = |name: &String| ours.get(name).is_none() && theirs.get(name).is_none();
    let free = |name: &String| (2_u32..).map(|number| format!("{name}_v{number}")).find(is_free);
    differing.into_iter().filter_map(|name| Some((name.clone(), free(name)?))).collect()
}

fn is_same(a: &Value, b: &Value) -> bool {
    let fields = |value: &'_ Value| value.as_object().cloned().unwrap_or_default();
    let (mut a, mut b) = (fields(a), fields(b));
    a.remove(KINDS);
    b.remove(KINDS);
    a == b
}

fn add_kinds(known: &mut Value, definition: &Value) {
    let Some(known) = known.get_mut(KINDS).and_then(Value::as_array_mut) else { return };
    for kind in definition[KINDS].as_array().into_iter().flatten() {
        if !known.contains(kind) {
            known.push(kind.clone());
        }
    }
}

fn rename(value: &mut Value, names: &BTreeMap<String, String>) {
    match value {
        Value::Object(object) => {
            for (key, value) in object {
                let name =
                    value.as_str().filter(|_| key == "$ref").and_then(|text| text.strip_prefix(DEFINITIONS));
                match name.map(|name| names.get(name)) {
                    Some(Some(new)) => *value = Value::from(format!("{DEFINITIONS}{new}")),
                    Some(None) => {}
                    None => rename(value, names),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| rename(item, names)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn reference(name: &str) -> Value {
        json!({"$ref": format!("{DEFINITIONS}{name}")})
    }

    #[test]
    fn another_servers_paths_come_with_their_definitions_under_free_names() {
        let kind = |group: &str| json!({"group": group, "version": "v1", "kind": "DeleteOptions"});
        let mut document = json!({
            "paths": {"/apis/apps/v1/": {"get": {"operationId": "ours"}}},
            "definitions": {
                "Meta": {"type": "object", "description": "ours"},
                "Holder": {"properties": {"metadata": reference("Meta")}},
                "Options": {"type": "object", KINDS: [kind("apps")]},
            },
        });
        let other = json!({
            "paths": {
                "/apis/w/v1/flunders": {"get": {"schema": reference("Flunder")}, "delete": {"schema": reference("Options")}},
                "/apis/w/v1beta1/flunders": {"get": {"schema": reference("Old")}},
                "/apis/apps/v1/": {"get": {"operationId": "theirs"}},
                "/version/": {},
            },
            "definitions": {
                "Flunder": {"properties": {"metadata": reference("Meta"), "holder": reference("Holder")}},
                "Meta": {"type": "object", "description": "theirs"},
                "Holder": {"properties": {"metadata": reference("Meta")}},
                "Options": {"type": "object", KINDS: [kind("w")]},
                "Old": {"type": "string"},
            },
        });
        merge_v2(&mut document, &other, "/apis/w/v1");
        let names =
            |field: &str| entries(&document, field).map(|(name, _)| name.as_str()).collect::<Vec<_>>();
        assert_eq!(names("paths"), ["/apis/apps/v1/", "/apis/w/v1/flunders"]);
        assert_eq!(names("definitions"), ["Flunder", "Holder", "Holder_v2", "Meta", "Meta_v2", "Options"]);
        assert_eq!(document["paths"]["/apis/apps/v1/"]["get"]["operationId"], "ours");
        let flunder = &document["definitions"]["Flunder"]["properties"];
        assert_eq!(
            (&flunder["metadata"], &flunder["holder"]),
            (&reference("Meta_v2"), &reference("Holder_v2"))
        );
        assert_eq!(document["definitions"]["Holder_v2"]["properties"]["metadata"], reference("Meta_v2"));
        assert_eq!(document["definitions"]["Holder"]["properties"]["metadata"], reference("Meta"));
        assert_eq!(document["definitions"]["Options"][KINDS], json!([kind("apps"), kind("w")]));
        let once = document.clone();
        merge_v2(&mut document, &other, "/apis/w/v1");
        assert_eq!(document, once);
    }

    #[test]
    fn what_is_no_document_adds_nothing() {
        let mut document = json!({"paths": {}, "definitions": {}});
        let before = document.clone();
        for other in [
            Value::Null,
            json!([1]),
            json!({"paths": 3}),
            json!({"paths": {"/apis/w/v1": 7}, "definitions": 1}),
        ] {
            merge_v2(&mut document, &other, "/apis/other/v1");
        }
        assert_eq!(document, before);
        merge_v2(&mut document, &json!({"paths": {"/apis/w/v1/": {"get": reference("Gone")}}}), "/apis/w/v1");
        assert_eq!(document["definitions"], json!({}));
    }
}
