//! Validation of FlowSchemas and PriorityLevelConfigurations.

use api::{field::FieldError, names};
use serde_json::Value;

use super::{fields::*, rules::Errors};
use crate::flow_control::objects::{EXEMPT, mandatory_level, mandatory_schema};

const ALL: &str = "*";
const PRECEDENCE_MAX: i64 = 10_000;
const QUEUES_MAX: i64 = 10_000_000;
const VERBS: [&str; 9] =
    ["create", "delete", "deletecollection", "get", "list", "patch", "proxy", "update", "watch"];
const NAMESPACE_INTRO: &str = "each member of this list must be '*' or a DNS-1123 label; ";

/// What is wrong with a FlowSchema.
pub(super) fn schema(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let name = text(object, "/metadata/name");
    let spec = at(object, "/spec");
    let precedence = at(spec, "/matchingPrecedence");
    let number = int(spec, "/matchingPrecedence");
    if number <= 0 {
        errors.invalid("spec.matchingPrecedence", precedence, "must be a positive value");
    }
    if number > PRECEDENCE_MAX {
        let why = format!("must not be greater than {PRECEDENCE_MAX}");
        errors.invalid("spec.matchingPrecedence", precedence, why);
    }
    if number == 1 && name != EXEMPT {
        let why = "only the schema named 'exempt' may have matchingPrecedence 1";
        errors.invalid("spec.matchingPrecedence", precedence, why);
    }
    if let method = at(spec, "/distinguisherMethod")
        && !method.is_null()
        && !matches!(text(method, "/type"), "ByNamespace" | "ByUser")
    {
        errors.not_supported("spec.distinguisherMethod.type", method, &["ByNamespace", "ByUser"]);
    }
    let level = "spec.priorityLevelConfiguration.name";
    match text(spec, "/priorityLevelConfiguration/name") {
        "" => errors.required(level, "must reference a priority level"),
        name => errors.all_invalid(level, &name.into(), names::dns1123_subdomain(name, false)),
    }
    for (i, rule) in items(spec, "/rules").iter().enumerate() {
        rules(&mut errors, rule, &format!("spec.rules[{i}]"));
    }
    if mandatory_schema(name).is_some_and(|wanted| !same(&wanted, spec)) {
        errors.invalid("spec", spec, format!("spec of '{name}' must equal the fixed value"));
    }
    conditions(&mut errors, object);
    errors.into_vec()
}

fn conditions(errors: &mut Errors, object: &Value) {
    let mut seen: Vec<&str> = Vec::new();
    for (i, condition) in items(object, "/status/conditions").iter().enumerate() {
        let path = format!("status.conditions[{i}].type");
        let kind = text(condition, "/type");
        if seen.contains(&kind) {
            errors.duplicate(&path, &kind.into());
        }
        seen.push(kind);
        if kind.is_empty() {
            errors.required(path, "");
        }
    }
}

fn rules(errors: &mut Errors, rule: &Value, path: &str) {
    let subjects = items(rule, "/subjects");
    if subjects.is_empty() {
        errors.required(format!("{path}.subjects"), "subjects must contain at least one value");
    }
    for (i, subject) in subjects.iter().enumerate() {
        self::subject(errors, subject, &format!("{path}.subjects[{i}]"));
    }
    let (resources, paths) = (items(rule, "/resourceRules"), items(rule, "/nonResourceRules"));
    if resources.is_empty() && paths.is_empty() {
        errors.required(path, "at least one of resourceRules and nonResourceRules has to be non-empty");
    }
    for (i, rule) in resources.iter().enumerate() {
        resource_rule(errors, rule, &format!("{path}.resourceRules[{i}]"));
    }
    for (i, rule) in paths.iter().enumerate() {
        path_rule(errors, rule, &format!("{path}.nonResourceRules[{i}]"));
    }
}

fn subject(errors: &mut Errors, subject: &Value, path: &str) {
    const KINDS: [(&str, &str); 3] =
        [("serviceAccount", "ServiceAccount"), ("user", "User"), ("group", "Group")];
    let kind = text(subject, "/kind");
    let Some((own, _)) = KINDS.iter().find(|(_, known)| *known == kind) else {
        errors.not_supported(
            format!("{path}.kind"),
            at(subject, "/kind"),
            &["Group", "ServiceAccount", "User"],
        );
        return;
    };
    let part = at(subject, &format!("/{own}"));
    if part.is_null() {
        errors.required(format!("{path}.{own}"), &format!("{own} is required when subject kind is '{kind}'"));
    } else {
        let name = text(part, "/name");
        if name.is_empty() {
            errors.required(format!("{path}.{own}.name"), "");
        } else if kind == "ServiceAccount" && name != ALL {
            errors.dns1123_subdomain(&format!("{path}.{own}.name"), &name.into());
        }
        if kind == "ServiceAccount" {
            match text(part, "/namespace") {
                "" => errors.required(
                    format!("{path}.{own}.namespace"),
                    "must specify namespace for service account",
                ),
                namespace => errors.dns1123_label(&format!("{path}.{own}.namespace"), &namespace.into()),
            }
        }
    }
    for (field, of) in KINDS.iter().filter(|(field, _)| field != own) {
        if present(subject, &format!("/{field}")) {
            let why = format!("{field} is forbidden when subject kind is not '{of}'");
            errors.forbidden(format!("{path}.{field}"), why);
        }
    }
}

fn has_all(value: &Value) -> bool {
    value.as_array().is_some_and(|items| items.iter().any(|item| item == ALL))
}

/// `*` stands alone. Whether the list is one of names.
fn wildcard_alone(errors: &mut Errors, value: &Value, path: &str, what: &str) -> bool {
    if !has_all(value) {
        return true;
    }
    if value.as_array().is_some_and(|items| items.len() > 1) {
        errors.invalid(path, value, format!("if '*' is present, must not specify other {what}"));
    }
    false
}

fn verbs(errors: &mut Errors, rule: &Value, path: &str) {
    let value = at(rule, "/verbs");
    let path = format!("{path}.verbs");
    if items(rule, "/verbs").is_empty() {
        errors.required(path, "verbs must contain at least one value");
    } else if wildcard_alone(errors, value, &path, "verbs") {
        let known = |verb: &Value| verb.as_str().is_some_and(|verb| VERBS.contains(&verb));
        if !items(rule, "/verbs").iter().all(known) {
            errors.not_supported(path, value, &VERBS);
        }
    }
}

fn resource_rule(errors: &mut Errors, rule: &Value, path: &str) {
    verbs(errors, rule, path);
    for (field, one, others) in
        [("apiGroups", "api group", "api groups"), ("resources", "resource", "resources")]
    {
        let path = format!("{path}.{field}");
        let value = at(rule, &format!("/{field}"));
        if is_zero(value) {
            errors.required(path, &format!("resource rules must supply at least one {one}"));
        } else {
            wildcard_alone(errors, value, &path, others);
        }
    }
    let path = format!("{path}.namespaces");
    let namespaces = at(rule, "/namespaces");
    if is_zero(namespaces) && !flag(rule, "/clusterScope") {
        let why = "resource rules that are not cluster scoped must supply at least one namespace";
        errors.required(path, why);
    } else if wildcard_alone(errors, namespaces, &path, "namespaces") {
        for (i, namespace) in items(rule, "/namespaces").iter().enumerate() {
            for message in names::dns1123_label(namespace.as_str().unwrap_or(""), false) {
                errors.invalid(format!("{path}[{i}]"), namespace, format!("{NAMESPACE_INTRO}{message}"));
            }
        }
    }
}

fn path_rule(errors: &mut Errors, rule: &Value, path: &str) {
    verbs(errors, rule, path);
    let path = format!("{path}.nonResourceURLs");
    let value = at(rule, "/nonResourceURLs");
    if is_zero(value) {
        errors.required(path, "nonResourceURLs must contain at least one value");
    } else if wildcard_alone(errors, value, &path, "non-resource URLs") {
        for (i, url) in items(rule, "/nonResourceURLs").iter().enumerate() {
            let why = match url.as_str().unwrap_or("") {
                "" => "must not be empty",
                "/" => continue,
                text if !text.starts_with('/') => "must start with slash",
                text if text.contains(' ') => "must not contain white-space",
                text if text.contains("//") => "must not contain double slash",
                text if text.trim_end_matches("/*").contains('*') => "wildcard can only do suffix matching",
                _ => continue,
            };
            errors.invalid(format!("{path}[{i}]"), url, why);
        }
    }
}

/// What is wrong with a PriorityLevelConfiguration.
pub(super) fn level(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let name = text(object, "/metadata/name");
    let spec = at(object, "/spec");
    let (kind, limited, exempt) = (text(spec, "/type"), at(spec, "/limited"), at(spec, "/exempt"));
    if (name == EXEMPT) != (kind == "Exempt") {
        let why = "must be 'Exempt' if and only if `name` is 'exempt'";
        errors.invalid("spec.type", at(spec, "/type"), why);
    }
    match kind {
        "Exempt" => {
            if !limited.is_null() {
                errors.forbidden("spec.limited", "must be nil if the type is not Limited");
            }
            shares(&mut errors, exempt, "spec.exempt");
        }
        "Limited" => {
            if !exempt.is_null() {
                errors.forbidden("spec.exempt", "must be nil if the type is Limited");
            }
            if limited.is_null() {
                errors.required("spec.limited", "must not be empty when type is Limited");
            } else {
                limited_level(&mut errors, limited);
            }
        }
        _ => errors.not_supported("spec.type", at(spec, "/type"), &["Exempt", "Limited"]),
    }
    if let Some(mut wanted) = mandatory_level(name) {
        let mut why = format!("spec of '{name}' must equal the fixed value");
        if name == EXEMPT {
            copy(&mut wanted, spec, "exempt");
            why = format!("spec of '{name}' except the 'spec.exempt' field must equal the fixed value");
        }
        if !same(&wanted, spec) {
            errors.invalid("spec", spec, why);
        }
    }
    conditions(&mut errors, object);
    errors.into_vec()
}

fn shares(errors: &mut Errors, part: &Value, path: &str) {
    if int(part, "/nominalConcurrencyShares") < 0 {
        let value = at(part, "/nominalConcurrencyShares");
        errors.invalid(format!("{path}.nominalConcurrencyShares"), value, "must be a non-negative integer");
    }
}

fn percents(errors: &mut Errors, part: &Value, path: &str) {
    let lendable = at(part, "/lendablePercent");
    if lendable.as_i64().is_some_and(|percent| !(0..=100).contains(&percent)) {
        let why = "must be between 0 and 100, inclusive";
        errors.invalid(format!("{path}.lendablePercent"), lendable, why);
    }
    let borrowing = at(part, "/borrowingLimitPercent");
    if borrowing.as_i64().is_some_and(|percent| percent < 0) {
        let why = "if specified, must be a non-negative integer";
        errors.invalid(format!("{path}.borrowingLimitPercent"), borrowing, why);
    }
}

fn limited_level(errors: &mut Errors, limited: &Value) {
    shares(errors, limited, "spec.limited");
    let queuing = at(limited, "/limitResponse/queuing");
    let path = "spec.limited.limitResponse.queuing";
    match text(limited, "/limitResponse/type") {
        "Reject" if !queuing.is_null() => {
            errors.forbidden(path, "must be nil if limited.limitResponse.type is not Limited");
        }
        "Reject" => {}
        "Queue" if queuing.is_null() => {
            errors.required(path, "must not be empty if limited.limitResponse.type is Limited");
        }
        "Queue" => self::queuing(errors, queuing, path),
        _ => errors.not_supported(
            "spec.limited.limitResponse.type",
            at(limited, "/limitResponse/type"),
            &["Queue", "Reject"],
        ),
    }
    percents(errors, limited, "spec.limited");
}

fn queuing(errors: &mut Errors, queuing: &Value, path: &str) {
    let (queues, hand) = (int(queuing, "/queues"), int(queuing, "/handSize"));
    if int(queuing, "/queueLengthLimit") <= 0 {
        let value = at(queuing, "/queueLengthLimit");
        errors.invalid(format!("{path}.queueLengthLimit"), value, "must be positive");
    }
    let value = at(queuing, "/queues");
    if queues <= 0 {
        errors.invalid(format!("{path}.queues"), value, "must be positive");
    } else if queues > QUEUES_MAX {
        errors.invalid(format!("{path}.queues"), value, format!("must not be greater than {QUEUES_MAX}"));
    }
    let value = at(queuing, "/handSize");
    let path = format!("{path}.handSize");
    if hand <= 0 {
        errors.invalid(path, value, "must be positive");
    } else if hand > queues {
        errors.invalid(path, value, format!("should not be greater than queues ({queues})"));
    } else if let entropy = bits_to_deal(queues, hand)
        && entropy > 60
    {
        let why = format!(
            "required entropy bits of deckSize {queues} and handSize {hand} should not be greater than 60"
        );
        errors.invalid(path, value, why);
    }
}

/// The bits of hash that dealing a hand uses up.
fn bits_to_deal(queues: i64, hand: i64) -> u32 {
    let bits: f64 = (0..hand.min(60)).map(|card| ((queues - card).max(1) as f64).log2()).sum();
    bits.ceil() as u32
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::flow_control::objects::bootstrap;

    fn texts(errors: Vec<FieldError>) -> Vec<String> {
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_objects_of_every_cluster_are_valid() {
        for object in bootstrap() {
            let errors = if object["kind"] == "FlowSchema" { schema(&object) } else { level(&object) };
            assert!(errors.is_empty(), "{}: {:?}", object["metadata"]["name"], texts(errors));
        }
    }

    #[test]
    fn mandatory_objects_are_fixed() {
        let mut objects = bootstrap();
        let exempt = objects.iter_mut().find(|object| object["metadata"]["name"] == "exempt").unwrap();
        exempt["spec"]["exempt"]["lendablePercent"] = json!(50);
        assert!(level(exempt).is_empty(), "the exempt part may change");
        let catch_all = objects.iter_mut().find(|object| object["metadata"]["name"] == "catch-all").unwrap();
        catch_all["spec"]["limited"]["nominalConcurrencyShares"] = json!(6);
        let errors = texts(level(catch_all));
        assert!(errors[0].ends_with("spec of 'catch-all' must equal the fixed value"), "{errors:?}");
    }

    #[test]
    fn what_makes_no_sense_is_refused_in_upstreams_words() {
        let bad = json!({"metadata": {"name": "x"}, "spec": {"matchingPrecedence": 1, "rules": [{
            "subjects": [{"kind": "User", "group": {"name": "g"}}, {"kind": "Robot"}],
            "resourceRules": [{"verbs": ["*", "get"], "apiGroups": [], "resources": ["pods"], "namespaces": ["A"]}],
            "nonResourceRules": [{"verbs": ["fly"], "nonResourceURLs": ["healthz"]}]}]}});
        assert_eq!(
            texts(schema(&bad)),
            [
                "spec.matchingPrecedence: Invalid value: 1: only the schema named 'exempt' may have matchingPrecedence 1",
                "spec.priorityLevelConfiguration.name: Required value: must reference a priority level",
                "spec.rules[0].subjects[0].user: Required value: user is required when subject kind is 'User'",
                "spec.rules[0].subjects[0].group: Forbidden: group is forbidden when subject kind is not 'Group'",
                "spec.rules[0].subjects[1].kind: Unsupported value: \"Robot\": supported values: \"Group\", \
                 \"ServiceAccount\", \"User\"",
                "spec.rules[0].resourceRules[0].verbs: Invalid value: [\"*\",\"get\"]: if '*' is present, must not \
                 specify other verbs",
                "spec.rules[0].resourceRules[0].apiGroups: Required value: resource rules must supply at least one api \
                 group",
                "spec.rules[0].resourceRules[0].namespaces[0]: Invalid value: \"A\": each member of this list must be \
                 '*' or a DNS-1123 label; a lowercase RFC 1123 label must consist of lower case alphanumeric characters \
                 or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex \
                 used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')",
                "spec.rules[0].nonResourceRules[0].verbs: Unsupported value: [\"fly\"]: supported values: \"create\", \
                 \"delete\", \"deletecollection\", \"get\", \"list\", \"patch\", \"proxy\", \"update\", \"watch\"",
                "spec.rules[0].nonResourceRules[0].nonResourceURLs[0]: Invalid value: \"healthz\": must start with slash",
            ]
        );
        let level_of = |limited: Value| json!({"metadata": {"name": "x"}, "spec": {"type": "Limited", "limited": limited}});
        assert_eq!(
            texts(level(&level_of(json!({"lendablePercent": 101, "limitResponse": {"type": "Queue",
                "queuing": {"queues": 4, "handSize": 8, "queueLengthLimit": 0}}})))),
            [
                "spec.limited.limitResponse.queuing.queueLengthLimit: Invalid value: 0: must be positive",
                "spec.limited.limitResponse.queuing.handSize: Invalid value: 8: should not be greater than queues (4)",
                "spec.limited.lendablePercent: Invalid value: 101: must be between 0 and 100, inclusive",
            ]
        );
    }
}
