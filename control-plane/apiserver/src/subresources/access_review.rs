//! SubjectAccessReview and its kin: what a review asks, whether it asks well, and the answer.

use api::{
    field::FieldError,
    selector::{FieldSelector, LabelSelector},
    status::Status,
};
use serde_json::{Value, json};

use super::token::strings;
use crate::{
    registry::fields::*,
    security::{Attributes, Authorizer, Identity},
};

const SUBJECT: &str = "SubjectAccessReview";
const LOCAL: &str = "LocalSubjectAccessReview";
const PARSE_ERROR: &str = "ignored due to parse error";

/// Answers a review of one of the three kinds; `user` is who sent it, `namespace` the path's. Returns its status.
pub(super) fn answer(
    authorizer: &Authorizer,
    kind: &str,
    review: &Value,
    user: &Identity,
    namespace: &str,
) -> Result<Value, Status> {
    let errors = validate(kind, review);
    if !errors.is_empty() {
        return Err(Status::invalid("authorization.k8s.io", kind, "", errors));
    }
    if kind == LOCAL && text(review, "/metadata/namespace") != namespace {
        return Err(Status::bad_request(format!(
            "spec.resourceAttributes.namespace must match namespace: {namespace}"
        )));
    }
    let subject;
    let user = if kind == SUBJECT || kind == LOCAL {
        subject = subject_of(at(review, "/spec"));
        &subject
    } else {
        user
    };
    let (attributes, evaluation_errors) = attributes_of(at(review, "/spec"));
    let decision = authorizer.authorize(user, &attributes);
    let mut status = json!({"allowed": decision.allowed});
    if !decision.reason.is_empty() {
        status["reason"] = json!(decision.reason);
    }
    if !evaluation_errors.is_empty() {
        status["evaluationError"] = json!(evaluation_errors.join("; "));
    }
    Ok(status)
}

fn subject_of(spec: &Value) -> Identity {
    Identity {
        name: text(spec, "/user").to_owned(),
        uid: text(spec, "/uid").to_owned(),
        groups: strings(at(spec, "/groups")),
        extra: entries(spec, "/extra").iter().map(|(key, values)| (key.clone(), strings(values))).collect(),
    }
}

fn validate(kind: &str, review: &Value) -> Vec<FieldError> {
    let spec = at(review, "/spec");
    let (object, path) = (at(spec, "/resourceAttributes"), at(spec, "/nonResourceAttributes"));
    let mut errors = Vec::new();
    if !object.is_null() && !path.is_null() {
        let why = "cannot be specified in combination with resourceAttributes";
        errors.push(FieldError::invalid("spec.nonResourceAttributes", path.clone(), why));
    }
    if object.is_null() && path.is_null() {
        let why = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
        errors.push(FieldError::invalid("spec.resourceAttributes", Value::Null, why));
    }
    let names_somebody = kind == SUBJECT || kind == LOCAL;
    if names_somebody && text(spec, "/user").is_empty() && items(spec, "/groups").is_empty() {
        errors.push(FieldError::invalid("spec.user", "", "at least one of user or group must be specified"));
    }
    for selector in ["fieldSelector", "labelSelector"] {
        check_selector(object, selector, &mut errors);
    }
    let is_set = |(field, value): (&String, &Value)| {
        let may_be = field == "managedFields" || (kind == LOCAL && field == "namespace");
        !may_be && !is_zero(value)
    };
    if entries(review, "/metadata").iter().any(is_set) {
        let why = if kind == LOCAL { "must be empty except for namespace" } else { "must be empty" };
        errors.push(FieldError::invalid("metadata", at(review, "/metadata").clone(), why));
    }
    if kind == LOCAL {
        let namespace = at(object, "/namespace");
        if !object.is_null() && text(object, "/namespace") != text(review, "/metadata/namespace") {
            let path = "spec.resourceAttributes.namespace";
            let value = namespace.as_str().unwrap_or_default();
            errors.push(FieldError::invalid(path, value, "must match metadata.namespace"));
        }
        if !path.is_null() {
            let why = "disallowed on this kind of request";
            errors.push(FieldError::invalid("spec.nonResourceAttributes", path.clone(), why));
        }
    }
    errors
}

fn check_selector(attributes: &Value, name: &str, errors: &mut Vec<FieldError>) {
    let Some(selector) = attributes.get(name).filter(|selector| !selector.is_null()) else { return };
    let path = format!("spec.resourceAttributes.{name}");
    let (raw, requirements) = (text(selector, "/rawSelector"), items(selector, "/requirements"));
    if !raw.is_empty() && !requirements.is_empty() {
        let why = "may not specified at the same time as requirements";
        errors.push(FieldError::invalid(format!("{path}.rawSelector"), raw, why));
    }
    if raw.is_empty() && requirements.is_empty() {
        let why = format!("when {path} is specified, requirements or rawSelector is required");
        errors.push(FieldError::required(format!("{path}.requirements"), why));
    }
    for (i, requirement) in requirements.iter().enumerate() {
        let path = format!("{path}.requirements[{i}]");
        if text(requirement, "/key").is_empty() && name == "fieldSelector" {
            errors.push(FieldError::required(format!("{path}.key"), "must be specified"));
        }
        let has_values = !items(requirement, "/values").is_empty();
        match text(requirement, "/operator") {
            "In" | "NotIn" if !has_values => {
                let why = "must be specified when `operator` is 'In' or 'NotIn'";
                errors.push(FieldError::required(format!("{path}.values"), why));
            }
            "Exists" | "DoesNotExist" if has_values => {
                let why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                errors.push(FieldError::forbidden(format!("{path}.values"), why));
            }
            _ => {}
        }
    }
}

/// What is asked, and what of it could not be read.
fn attributes_of(spec: &Value) -> (Attributes, Vec<String>) {
    let (object, path) = (at(spec, "/resourceAttributes"), at(spec, "/nonResourceAttributes"));
    let said = |from: &Value, pointer: &str| text(from, pointer).to_owned();
    if object.is_null() {
        let attributes =
            Attributes { verb: said(path, "/verb"), path: said(path, "/path"), ..Attributes::default() };
        return (attributes, Vec::new());
    }
    let mut errors = Vec::new();
    let mut selector = |name: &str, read: fn(&Value) -> (String, bool)| {
        let Some(selector) = object.get(name).filter(|selector| !selector.is_null()) else {
            return String::new();
        };
        let (text, is_whole) = read(selector);
        if !is_whole {
            let partially = if text.is_empty() { "" } else { "partially " };
            errors.push(format!("spec.resourceAttributes.{name} {partially}{PARSE_ERROR}"));
        }
        text
    };
    let field_selector = selector("fieldSelector", read_field_selector);
    let label_selector = selector("labelSelector", read_label_selector);
    let version = text(object, "/version");
    let attributes = Attributes {
        verb: said(object, "/verb"),
        group: said(object, "/group"),
        version: if version.is_empty() { "*" } else { version }.to_owned(),
        resource: said(object, "/resource"),
        subresource: said(object, "/subresource"),
        namespace: said(object, "/namespace"),
        name: said(object, "/name"),
        path: String::new(),
        is_resource: true,
        field_selector,
        label_selector,
    };
    (attributes, errors)
}

/// The selector in the form of the query, and whether all of it could be read. What cannot be read is left out: fewer
/// requirements ask for more.
fn read_field_selector(selector: &Value) -> (String, bool) {
    let raw = text(selector, "/rawSelector");
    if !raw.is_empty() {
        return match FieldSelector::parse(raw) {
            Ok(parsed) => (parsed.to_string(), true),
            Err(_) => (String::new(), false),
        };
    }
    let mut terms = Vec::new();
    let requirements = items(selector, "/requirements");
    for requirement in requirements {
        let operator = match text(requirement, "/operator") {
            "In" => "=",
            "NotIn" => "!=",
            _ => continue,
        };
        if let [value] = items(requirement, "/values") {
            let value = value.as_str().unwrap_or_default();
            let escaped = value.replace('\\', "\\\\").replace(',', "\\,").replace('=', "\\=");
            terms.push(format!("{}{operator}{escaped}", text(requirement, "/key")));
        }
    }
    (terms.join(","), terms.len() == requirements.len())
}

fn read_label_selector(selector: &Value) -> (String, bool) {
    let raw = text(selector, "/rawSelector");
    if !raw.is_empty() {
        return match LabelSelector::parse(raw) {
            Ok(parsed) => (parsed.to_string(), true),
            Err(_) => (String::new(), false),
        };
    }
    let requirements = items(selector, "/requirements");
    let terms: Vec<String> = requirements
        .iter()
        .filter_map(|requirement| {
            let parsed = LabelSelector::from_value(&json!({"matchExpressions": [requirement]})).ok()?;
            Some(parsed.to_string())
        })
        .collect();
    (terms.join(","), terms.len() == requirements.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(kind: &str, review: &Value) -> Vec<String> {
        validate(kind, review).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_review_asks_one_thing_of_somebody() {
        let good = json!({"spec": {"user": "a", "resourceAttributes": {"verb": "get"}}});
        assert!(errors(SUBJECT, &good).is_empty());
        assert_eq!(
            errors(SUBJECT, &json!({"metadata": {"name": "x"}, "spec": {}})),
            [
                "spec.resourceAttributes: Invalid value: null: exactly one of nonResourceAttributes or \
                 resourceAttributes must be specified",
                "spec.user: Invalid value: \"\": at least one of user or group must be specified",
                "metadata: Invalid value: {\"name\":\"x\"}: must be empty",
            ]
        );
        let local = json!({"metadata": {"namespace": "ns"}, "spec": {"groups": ["g"],
            "resourceAttributes": {"namespace": "other"}, "nonResourceAttributes": {"path": "/"}}});
        let errors = errors(LOCAL, &local);
        assert!(errors.iter().any(|error| error.ends_with("must match metadata.namespace")), "{errors:?}");
        assert!(
            errors.iter().any(|error| error.ends_with("disallowed on this kind of request")),
            "{errors:?}"
        );
    }

    #[test]
    fn selectors_are_read_as_far_as_they_can_be() {
        let attributes =
            |selector: Value| attributes_of(&json!({"resourceAttributes": {"fieldSelector": selector}}));
        let (read, errors) = attributes(json!({"requirements": [
            {"key": "spec.nodeName", "operator": "In", "values": ["n,1"]},
            {"key": "x", "operator": "Exists"}]}));
        assert_eq!(read.field_selector, "spec.nodeName=n\\,1");
        assert_eq!(errors, ["spec.resourceAttributes.fieldSelector partially ignored due to parse error"]);
        let (read, errors) = attributes(json!({"rawSelector": "nonsense"}));
        assert_eq!(read.field_selector, "");
        assert_eq!(errors, ["spec.resourceAttributes.fieldSelector ignored due to parse error"]);
        let (read, errors) = attributes(json!({"rawSelector": "a=b"}));
        assert_eq!((read.field_selector.as_str(), errors.len()), ("a=b", 0));
        let both = json!({"spec": {"user": "u", "resourceAttributes": {"labelSelector": {"rawSelector": "a",
            "requirements": [{"key": "a", "operator": "In"}]}}}});
        assert_eq!(
            self::errors(SUBJECT, &both),
            [
                "spec.resourceAttributes.labelSelector.rawSelector: Invalid value: \"a\": may not specified at the \
                 same time as requirements",
                "spec.resourceAttributes.labelSelector.requirements[0].values: Required value: must be specified when \
                 `operator` is 'In' or 'NotIn'",
            ]
        );
    }
}
