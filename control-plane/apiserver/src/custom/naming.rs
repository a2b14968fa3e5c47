//! Which names a definition gets: those that no other definition of its group has. Pure.

use serde_json::{Value, json};

use crate::registry::crd::{Condition, bundle_problem, is_true, set_approval};

/// The status that a definition should have; `None` where it has it. `others` are the accepted names of the other
/// definitions of its group.
pub(super) fn decide(object: &Value, others: &[&Value], now: &str) -> Option<Value> {
    let wanted = &object["spec"]["names"];
    let before = &object["status"]["acceptedNames"];
    let mut accepted = if before.is_object() { before.clone() } else { json!({}) };
    let mut conflict: Option<(&str, String)> = None;
    let taken = |fields: &[&str], lists: &[&str], name: &Value| {
        others.iter().any(|other| {
            fields.iter().any(|field| other[*field] == *name)
                || lists.iter().any(|list| other[*list].as_array().is_some_and(|names| names.contains(name)))
        })
    };
    let in_use = |name: &Value| format!("{name} is already in use");
    let resources = (&["plural", "singular"][..], &["shortNames"][..]);
    let kinds = (&["kind", "listKind"][..], &[][..]);
    for (field, reason, (fields, lists)) in [
        ("plural", "PluralConflict", resources),
        ("singular", "SingularConflict", resources),
        ("kind", "KindConflict", kinds),
        ("listKind", "ListKindConflict", kinds),
    ] {
        let name = &wanted[field];
        if *name != before[field] && taken(fields, lists, name) {
            conflict = Some((reason, in_use(name)));
        } else {
            accepted[field] = name.clone();
        }
    }
    let short_names = wanted["shortNames"].as_array().map(Vec::as_slice).unwrap_or_default();
    let had = before["shortNames"].as_array().map(Vec::as_slice).unwrap_or_default();
    let clashes: Vec<String> = short_names
        .iter()
        .filter(|name| !had.contains(name) && taken(resources.0, resources.1, name))
        .map(in_use)
        .collect();
    match clashes.as_slice() {
        [] => replace(&mut accepted, wanted, "shortNames"),
        [one] => conflict = Some(("ShortNamesConflict", one.clone())),
        several => conflict = Some(("ShortNamesConflict", format!("[{}]", several.join(", ")))),
    }
    replace(&mut accepted, wanted, "categories");
    let mut status = object["status"].clone();
    status["acceptedNames"] = accepted;
    conditions(object, &mut status, conflict.as_ref(), now);
    set_approval(object, &mut status, now);
    (status != object["status"]).then_some(status)
}

fn replace(accepted: &mut Value, wanted: &Value, list: &str) {
    let names = wanted[list].as_array().filter(|names| !names.is_empty());
    if let Some(accepted) = accepted.as_object_mut() {
        match names {
            Some(names) => accepted.insert(list.to_owned(), Value::from(names.clone())),
            None => accepted.remove(list),
        };
    }
}

fn conditions(object: &Value, status: &mut Value, conflict: Option<&(&str, String)>, now: &str) {
    let names = match conflict {
        None => Condition {
            kind: "NamesAccepted",
            is_true: true,
            reason: "NoConflicts",
            message: "no conflicts found",
        },
        Some((reason, message)) => Condition { kind: "NamesAccepted", is_true: false, reason, message },
    };
    names.set(status, now);
    if is_true(object, "Established") {
        return;
    }
    let established = if conflict.is_none() && bundle_problem(object).is_some() {
        Condition {
            kind: "Established",
            is_true: false,
            reason: "InvalidCABundle",
            message: "The conversion webhook CABundle is invalid",
        }
    } else if conflict.is_none() {
        Condition {
            kind: "Established",
            is_true: true,
            reason: "InitialNamesAccepted",
            message: "the initial names have been accepted",
        }
    } else {
        Condition {
            kind: "Established",
            is_true: false,
            reason: "NotAccepted",
            message: "not all names are accepted",
        }
    };
    established.set(status, now);
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2026-01-01T00:00:00Z";

    fn definition() -> Value {
        json!({
            "spec": {"names": {"plural": "widgets", "singular": "widget", "kind": "Widget", "listKind": "WidgetList",
                "shortNames": ["w"], "categories": ["all"]}},
            "status": {},
        })
    }

    fn condition<'a>(status: &'a Value, kind: &str) -> &'a Value {
        status["conditions"].as_array().unwrap().iter().find(|condition| condition["type"] == kind).unwrap()
    }

    #[test]
    fn free_names_are_accepted_and_the_kind_is_established() {
        let mut object = definition();
        let status = decide(&object, &[], NOW).unwrap();
        assert_eq!(status["acceptedNames"], object["spec"]["names"]);
        assert_eq!(condition(&status, "NamesAccepted")["reason"], "NoConflicts");
        assert_eq!(condition(&status, "Established")["status"], "True");
        object["status"] = status;
        assert_eq!(decide(&object, &[], "2027-01-01T00:00:00Z"), None, "what is decided stays");
    }

    #[test]
    fn a_kind_whose_converter_nobody_could_trust_is_not_served() {
        let mut object = definition();
        object["spec"]["conversion"] = json!({"webhook": {"clientConfig": {"caBundle": "eA=="}}});
        let status = decide(&object, &[], NOW).unwrap();
        assert_eq!(condition(&status, "NamesAccepted")["status"], "True");
        assert_eq!(condition(&status, "Established")["reason"], "InvalidCABundle");
    }

    #[test]
    fn names_that_another_definition_has_are_refused() {
        let other = json!({"plural": "widgets", "singular": "x", "kind": "X", "listKind": "XList", "shortNames": ["w"]});
        let status = decide(&definition(), &[&other], NOW).unwrap();
        assert_eq!(condition(&status, "NamesAccepted")["status"], "False");
        assert_eq!(condition(&status, "Established")["reason"], "NotAccepted");
        assert_eq!(condition(&status, "NamesAccepted")["message"], "\"w\" is already in use");
        assert_eq!(status["acceptedNames"].get("plural"), None);
        assert_eq!(status["acceptedNames"]["kind"], "Widget");
    }

    #[test]
    fn an_established_kind_keeps_its_names_when_a_new_one_is_taken() {
        let mut object = definition();
        object["status"] = decide(&object, &[], NOW).unwrap();
        object["spec"]["names"]["shortNames"] = json!(["w", "taken"]);
        let other = json!({"plural": "others", "shortNames": ["taken"]});
        let status = decide(&object, &[&other], NOW).unwrap();
        assert_eq!(status["acceptedNames"]["shortNames"], json!(["w"]));
        assert_eq!(condition(&status, "Established")["status"], "True");
        assert_eq!(condition(&status, "NamesAccepted")["reason"], "ShortNamesConflict");
    }
}
