//! `admissionregistration.k8s.io` webhook configurations: defaults and validation. The rules about rules, client configurations
//! and selectors also hold for admission policies and conversion webhooks.

use std::collections::BTreeSet;

use api::field::FieldError;
use serde_json::{Value, json};

use super::{
    Column, Context, Strategy,
    admission_policy::match_conditions,
    fields::*,
    rules::Errors,
    table::{AGE, NAME},
};

pub(super) static MUTATING: Webhooks = Webhooks { mutates: true };
pub(super) static VALIDATING: Webhooks = Webhooks { mutates: false };

const COLUMNS: &[Column] =
    &[NAME, Column::new("Webhooks", "integer", |o, _| items(o, "/webhooks").len().into()), AGE];

const REVIEW_VERSIONS: [&str; 2] = ["v1", "v1beta1"];
const SIDE_EFFECTS: [&str; 2] = ["None", "NoneOnDryRun"];
const URL_FORM: &str = "; desired format: https://host[/path]";

/// MutatingWebhookConfiguration and ValidatingWebhookConfiguration.
pub(super) struct Webhooks {
    mutates: bool,
}

impl Strategy for Webhooks {
    fn default(&self, configuration: &mut Value) {
        for webhook in each(configuration, "webhooks") {
            set_default(webhook, "failurePolicy", "Fail");
            default_match(webhook);
            set_default(webhook, "timeoutSeconds", 10);
            if self.mutates {
                set_default(webhook, "reinvocationPolicy", "Never");
            }
            for rule in each(webhook, "rules") {
                set_default(rule, "scope", "*");
            }
            let service = existing(webhook, "clientConfig").and_then(|config| existing(config, "service"));
            if let Some(service) = service {
                set_default(service, "port", 443);
            }
        }
    }

    fn validate(&self, _context: &Context<'_>, object: &Value) -> Vec<FieldError> {
        self.check(object, None)
    }

    fn validate_update(&self, _context: &Context<'_>, new: &Value, old: &Value) -> Vec<FieldError> {
        self.check(new, Some(old))
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }

    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }
}

pub(super) fn default_match(resources: &mut Value) {
    set_default(resources, "matchPolicy", "Equivalent");
    set_default(resources, "namespaceSelector", json!({}));
    set_default(resources, "objectSelector", json!({}));
}

impl Webhooks {
    /// What an old configuration already had wrong may stay, as upstream has it.
    fn check(&self, configuration: &Value, old: Option<&Value>) -> Vec<FieldError> {
        let mut errors = Errors::default();
        let needs_known_version =
            old.is_none_or(|old| items(old, "/webhooks").iter().all(speaks_known_version));
        let needs_unique_names = old.is_none_or(has_unique_names);
        let needs_no_side_effects = old.is_none_or(|old| {
            items(old, "/webhooks").iter().all(|hook| SIDE_EFFECTS.contains(&text(hook, "/sideEffects")))
        });
        let mut names = BTreeSet::new();
        for (index, webhook) in items(configuration, "/webhooks").iter().enumerate() {
            let path = format!("webhooks[{index}]");
            self.check_webhook(&mut errors, &path, webhook, needs_no_side_effects);
            check_versions(
                &mut errors,
                &format!("{path}.admissionReviewVersions"),
                webhook,
                needs_known_version,
            );
            let name = text(webhook, "/name");
            if needs_unique_names && !name.is_empty() && !names.insert(name) {
                errors.duplicate(format!("{path}.name"), at(webhook, "/name"));
            }
        }
        errors.into_vec()
    }

    fn check_webhook(&self, errors: &mut Errors, path: &str, webhook: &Value, needs_no_side_effects: bool) {
        check_name(errors, &format!("{path}.name"), at(webhook, "/name"));
        for (index, rule) in items(webhook, "/rules").iter().enumerate() {
            check_rule(errors, &format!("{path}.rules[{index}]"), rule, true);
        }
        errors.optional_one_of(
            format!("{path}.failurePolicy"),
            at(webhook, "/failurePolicy"),
            &["Fail", "Ignore"],
        );
        errors.optional_one_of(
            format!("{path}.matchPolicy"),
            at(webhook, "/matchPolicy"),
            &["Equivalent", "Exact"],
        );
        let side_effects = at(webhook, "/sideEffects");
        let allowed: &[&str] =
            if needs_no_side_effects { &SIDE_EFFECTS } else { &["None", "NoneOnDryRun", "Some", "Unknown"] };
        let place = format!("{path}.sideEffects");
        match side_effects.as_str() {
            None => errors.required(place, &format!("must specify one of {}", allowed.join(", "))),
            Some(value) if allowed.contains(&value) => {}
            Some(_) => errors.not_supported(place, side_effects, allowed),
        }
        let timeout = at(webhook, "/timeoutSeconds");
        if timeout.as_i64().is_some_and(|seconds| !(1..=30).contains(&seconds)) {
            let why = "the timeout value must be between 1 and 30 seconds";
            errors.invalid(format!("{path}.timeoutSeconds"), timeout, why);
        }
        for selector in ["namespaceSelector", "objectSelector"] {
            errors.label_selector(&format!("{path}.{selector}"), at(webhook, &format!("/{selector}")));
        }
        let conditions = items(webhook, "/matchConditions");
        match_conditions(&format!("{path}.matchConditions"), conditions, false, errors);
        if self.mutates {
            errors.optional_one_of(
                format!("{path}.reinvocationPolicy"),
                at(webhook, "/reinvocationPolicy"),
                &["IfNeeded", "Never"],
            );
        }
        check_client_config(errors, &format!("{path}.clientConfig"), at(webhook, "/clientConfig"));
    }
}

fn speaks_known_version(webhook: &Value) -> bool {
    let versions = items(webhook, "/admissionReviewVersions");
    versions.is_empty()
        || versions.iter().any(|version| version.as_str().is_some_and(|text| REVIEW_VERSIONS.contains(&text)))
}

fn has_unique_names(configuration: &Value) -> bool {
    let mut names = BTreeSet::new();
    items(configuration, "/webhooks").iter().all(|webhook| names.insert(text(webhook, "/name")))
}

/// At least three labels: a domain of one's own.
fn check_name(errors: &mut Errors, path: &str, value: &Value) {
    let name = value.as_str().unwrap_or_default();
    if name.is_empty() {
        errors.required(path, "");
        return;
    }
    let wrong = api::names::dns1123_subdomain(name, false);
    if !wrong.is_empty() {
        errors.all_invalid(path, value, wrong);
    } else if name.split('.').count() < 3 {
        errors.invalid(path, value, "should be a domain with at least three segments separated by dots");
    }
}

fn check_versions(errors: &mut Errors, path: &str, webhook: &Value, needs_known: bool) {
    let versions = items(webhook, "/admissionReviewVersions");
    let known = REVIEW_VERSIONS.join(", ");
    if versions.is_empty() {
        errors.required(path, &format!("must specify one of {known}"));
        return;
    }
    let mut seen = BTreeSet::new();
    for (index, version) in versions.iter().enumerate() {
        let (place, name) = (format!("{path}[{index}]"), version.as_str().unwrap_or_default());
        if !seen.insert(name) {
            errors.invalid(place, version, "duplicate version");
            continue;
        }
        errors.all_invalid(&place, version, api::names::dns1035_label(name, false));
    }
    if needs_known && !REVIEW_VERSIONS.iter().any(|version| seen.contains(version)) {
        errors.invalid(path, &json!(versions), format!("must include at least one of {known}"));
    }
}

fn is_wild(list: &[Value]) -> bool {
    list.len() > 1 && list.iter().any(|item| item == "*")
}

/// RuleWithOperations; `subresources` says whether resources may name them.
pub(crate) fn check_rule(errors: &mut Errors, path: &str, rule: &Value, subresources: bool) {
    let operations = items(rule, "/operations");
    let place = format!("{path}.operations");
    if operations.is_empty() {
        errors.required(&place, "");
    }
    if is_wild(operations) {
        errors.invalid(
            &place,
            at(rule, "/operations"),
            "if '*' is present, must not specify other operations",
        );
    }
    for (index, operation) in operations.iter().enumerate() {
        let supported = ["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
        if operation.as_str().is_none_or(|word| !supported.contains(&word)) {
            errors.not_supported(format!("{place}[{index}]"), operation, &supported);
        }
    }
    for (list, what) in [("apiGroups", "API groups"), ("apiVersions", "API versions")] {
        let (place, values) = (format!("{path}.{list}"), items(rule, &format!("/{list}")));
        if values.is_empty() {
            errors.required(&place, "");
        }
        if is_wild(values) {
            let why = format!("if '*' is present, must not specify other {what}");
            errors.invalid(&place, &json!(values), why);
        }
        for (index, _) in values.iter().enumerate().filter(|(_, value)| list == "apiVersions" && *value == "")
        {
            errors.required(format!("{place}[{index}]"), "");
        }
    }
    check_resources(errors, &format!("{path}.resources"), items(rule, "/resources"), subresources);
    errors.optional_one_of(format!("{path}.scope"), at(rule, "/scope"), &["*", "Cluster", "Namespaced"]);
}

fn check_resources(errors: &mut Errors, path: &str, resources: &[Value], subresources: bool) {
    if resources.is_empty() {
        errors.required(path, "");
    }
    let (mut all_of, mut in_all) = (BTreeSet::new(), BTreeSet::new());
    let mut names_plain = false;
    for (index, value) in resources.iter().enumerate() {
        let (place, name) = (format!("{path}[{index}]"), value.as_str().unwrap_or_default());
        if name.is_empty() {
            errors.required(place, "");
            continue;
        }
        let Some((resource, subresource)) = name.split_once('/') else {
            names_plain = name != "*";
            continue;
        };
        if !subresources {
            errors.invalid(place, value, "must not specify subresources");
            continue;
        }
        if all_of.contains(resource) {
            let why = format!("if '{resource}/*' is present, must not specify {name}");
            errors.invalid(&place, value, why);
        }
        if in_all.contains(subresource) {
            let why = format!("if '*/{subresource}' is present, must not specify {name}");
            errors.invalid(&place, value, why);
        }
        if subresource == "*" {
            all_of.insert(resource);
        }
        if resource == "*" {
            in_all.insert(subresource);
        }
    }
    let has = |name: &str| resources.iter().any(|resource| resource == name);
    if resources.len() > 1 && has("*/*") {
        errors.invalid(path, &json!(resources), "if '*/*' is present, must not specify other resources");
    }
    if has("*") && names_plain {
        let why = "if '*' is present, must not specify other resources without subresources";
        errors.invalid(path, &json!(resources), why);
    }
}

/// WebhookClientConfig, of admission webhooks and of conversion webhooks.
pub(crate) fn check_client_config(errors: &mut Errors, path: &str, config: &Value) {
    let (url, service) = (at(config, "/url"), at(config, "/service"));
    match (url.as_str(), service.is_object()) {
        (Some(url), false) => check_url(errors, &format!("{path}.url"), url),
        (None, true) => check_service(errors, &format!("{path}.service"), service),
        _ => errors.required(path, "exactly one of url or service is required"),
    }
}

fn check_url(errors: &mut Errors, path: &str, url: &str) {
    let Some((scheme, rest)) = url.split_once("://") else {
        errors.invalid(path, &json!(""), format!("'https' is the only allowed URL scheme{URL_FORM}"));
        errors.invalid(path, &json!(""), format!("host must be specified{URL_FORM}"));
        return;
    };
    if scheme != "https" {
        errors.invalid(path, &json!(scheme), format!("'https' is the only allowed URL scheme{URL_FORM}"));
    }
    let (rest, fragment) = rest.split_once('#').unwrap_or((rest, ""));
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let authority = rest.split('/').next().unwrap_or_default();
    let (user, host) =
        authority.rsplit_once('@').map_or((None, authority), |(user, host)| (Some(user), host));
    if host.is_empty() {
        errors.invalid(path, &json!(""), format!("host must be specified{URL_FORM}"));
    } else if url.split(['#', '?']).next().is_none_or(|plain| plain.parse::<http::Uri>().is_err()) {
        errors
            .required(path, &format!("url must be a valid URL: parse {url:?}: invalid character{URL_FORM}"));
    }
    if let Some(user) = user {
        errors.invalid(path, &json!(user), "user information is not permitted in the URL");
    }
    if !fragment.is_empty() {
        errors.invalid(path, &json!(fragment), "fragments are not permitted in the URL");
    }
    if !query.is_empty() {
        errors.invalid(path, &json!(query), "query parameters are not permitted in the URL");
    }
}

fn check_service(errors: &mut Errors, path: &str, service: &Value) {
    for field in ["name", "namespace"] {
        if text(service, &format!("/{field}")).is_empty() {
            errors.required(format!("{path}.{field}"), "");
        }
    }
    let port = at(service, "/port");
    if let Some(number) = port.as_i64() {
        let wrong = api::names::port_number(number);
        if !wrong.is_empty() {
            errors.invalid(format!("{path}.port"), port, format!("port is not valid: {}", wrong.join(", ")));
        }
    }
    let value = at(service, "/path");
    let (path, text) = (format!("{path}.path"), value.as_str().unwrap_or_default());
    if matches!(text, "" | "/") {
        return;
    }
    if text == "//" {
        errors.invalid(path, value, "segment[0] may not be empty");
        return;
    }
    let Some(steps) = text.strip_prefix('/') else {
        errors.invalid(path, value, "must start with a '/'");
        return;
    };
    for (index, step) in steps.strip_suffix('/').unwrap_or(steps).split('/').enumerate() {
        if step.is_empty() {
            errors.invalid(&path, value, format!("segment[{index}] may not be empty"));
        }
        for wrong in api::names::dns1123_subdomain(step, false).into_iter().filter(|_| !step.is_empty()) {
            errors.invalid(&path, value, format!("segment[{index}]: {wrong}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn webhook() -> Value {
        json!({
            "name": "a.example.com", "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "clientConfig": {"url": "https://127.0.0.1:8443/check"},
            "rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods", "pods/status"]}],
        })
    }

    fn errors(change: impl FnOnce(&mut Value)) -> Vec<String> {
        let mut hook = webhook();
        change(&mut hook);
        let configuration = json!({"webhooks": [hook]});
        MUTATING
            .check(&configuration, None)
            .iter()
            .map(|error| format!("{}: {}", error.path, error.body()))
            .collect()
    }

    #[test]
    fn a_good_webhook_is_taken_and_its_defaults_are_upstreams() {
        assert_eq!(errors(|_| {}), Vec::<String>::new());
        let mut configuration = json!({"webhooks": [webhook()]});
        MUTATING.default(&mut configuration);
        let hook = &configuration["webhooks"][0];
        assert_eq!((&hook["timeoutSeconds"], &hook["matchPolicy"]), (&json!(10), &json!("Equivalent")));
        assert_eq!(hook["rules"][0]["scope"], "*");
    }

    #[test]
    fn what_is_wrong_is_told_in_upstreams_words() {
        let wrong = |change: fn(&mut Value), expected: &str| {
            let found = errors(change);
            assert!(found.len() == 1 && found[0].contains(expected), "{expected}: {found:?}");
        };
        wrong(
            |hook| hook["name"] = json!("short"),
            "should be a domain with at least three segments separated by dots",
        );
        wrong(
            |hook| hook["sideEffects"] = json!("Some"),
            "webhooks[0].sideEffects: Unsupported value: \"Some\"",
        );
        wrong(
            |hook| remove(hook, "sideEffects"),
            "webhooks[0].sideEffects: Required value: must specify one of None, NoneOnDryRun",
        );
        wrong(
            |hook| hook["timeoutSeconds"] = json!(31),
            "the timeout value must be between 1 and 30 seconds",
        );
        wrong(|hook| hook["clientConfig"] = json!({}), "exactly one of url or service is required");
        wrong(
            |hook| hook["clientConfig"]["url"] = json!("http://a/b"),
            "'https' is the only allowed URL scheme",
        );
        wrong(
            |hook| hook["clientConfig"]["url"] = json!("https://a/b?c=d"),
            "query parameters are not permitted",
        );
        wrong(
            |hook| hook["admissionReviewVersions"] = json!(["v2"]),
            "must include at least one of v1, v1beta1",
        );
        wrong(
            |hook| hook["rules"][0]["operations"] = json!(["*", "CREATE"]),
            "if '*' is present, must not specify other operations",
        );
        wrong(
            |hook| hook["rules"][0]["resources"] = json!(["pods/*", "pods/status"]),
            "if 'pods/*' is present, must not specify pods/status",
        );
        wrong(
            |hook| {
                hook["clientConfig"] =
                    json!({"service": {"name": "a", "namespace": "b", "path": "x", "port": 443}})
            },
            "must start with a '/'",
        );
    }
}
