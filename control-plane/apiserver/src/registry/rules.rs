//! The errors of one validation, and the rules that many kinds share, with upstream's messages. Paths are in
//! upstream's form: `spec.containers[0].name`, `metadata.annotations[key]`.

use std::net::IpAddr;

use api::{field::FieldError, names, selector::LabelSelector};
use serde_json::{Value, json};

use super::fields::{at, entries, int, items, quantity, same, text};

pub(crate) const NOT_NEGATIVE: &str = "must be greater than or equal to 0";
pub(crate) const IMMUTABLE: &str = "field is immutable";
const PORT_RANGE: &str = "must be between 1 and 65535, inclusive";

/// Collects field errors in the order in which they are found.
#[derive(Default)]
pub(crate) struct Errors(Vec<FieldError>);

impl Errors {
    pub(crate) fn into_vec(self) -> Vec<FieldError> {
        self.0
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn extend(&mut self, more: impl IntoIterator<Item = FieldError>) {
        self.0.extend(more);
    }

    pub(crate) fn required(&mut self, path: impl Into<String>, detail: &str) {
        self.0.push(FieldError::required(path.into(), detail.to_owned()));
    }

    pub(crate) fn invalid(&mut self, path: impl Into<String>, value: &Value, detail: impl Into<String>) {
        self.0.push(FieldError::invalid(path.into(), value.clone(), detail.into()));
    }

    pub(crate) fn not_supported(&mut self, path: impl Into<String>, value: &Value, supported: &[&str]) {
        self.0.push(FieldError::not_supported(path.into(), value.clone(), supported));
    }

    pub(crate) fn forbidden(&mut self, path: impl Into<String>, detail: impl Into<String>) {
        self.0.push(FieldError::forbidden(path.into(), detail.into()));
    }

    pub(crate) fn duplicate(&mut self, path: impl Into<String>, value: &Value) {
        self.0.push(FieldError::duplicate(path.into(), value.clone()));
    }

    pub(crate) fn not_found(&mut self, path: impl Into<String>, value: &Value) {
        self.0.push(FieldError::not_found(path.into(), value.clone()));
    }

    /// One `Invalid` for each message.
    pub(crate) fn all_invalid(&mut self, path: &str, value: &Value, messages: Vec<String>) {
        for message in messages {
            self.invalid(path, value, message);
        }
    }

    /// The value must be one of `supported`; empty is `Required`.
    pub(crate) fn one_of(&mut self, path: impl Into<String>, value: &Value, supported: &[&str]) {
        match value.as_str() {
            None | Some("") => self.required(path, ""),
            Some(text) if supported.contains(&text) => {}
            Some(_) => self.not_supported(path, value, supported),
        }
    }

    /// Like [`Errors::one_of`], but may be absent.
    pub(crate) fn optional_one_of(&mut self, path: impl Into<String>, value: &Value, supported: &[&str]) {
        if value.as_str().is_some_and(|text| !text.is_empty()) {
            self.one_of(path, value, supported);
        }
    }

    pub(crate) fn not_negative(&mut self, path: impl Into<String>, value: &Value) {
        if value.as_i64().is_some_and(|number| number < 0) {
            self.invalid(path, value, NOT_NEGATIVE);
        }
    }

    pub(crate) fn positive(&mut self, path: impl Into<String>, value: &Value) {
        if value.as_i64().unwrap_or(0) <= 0 {
            self.invalid(path, value, "must be greater than zero");
        }
    }

    pub(crate) fn immutable(&mut self, path: impl Into<String>, new: &Value, old: &Value) {
        if !same(new, old) {
            self.invalid(path, new, IMMUTABLE);
        }
    }

    pub(crate) fn dns1123_label(&mut self, path: &str, value: &Value) {
        self.all_invalid(path, value, names::dns1123_label(value.as_str().unwrap_or(""), false));
    }

    pub(crate) fn dns1123_subdomain(&mut self, path: &str, value: &Value) {
        self.all_invalid(path, value, names::dns1123_subdomain(value.as_str().unwrap_or(""), false));
    }

    pub(crate) fn port_number(&mut self, path: &str, value: &Value) {
        if !matches!(value.as_i64(), Some(1..=65535)) {
            let shown = if value.is_null() { json!(0) } else { value.clone() };
            self.invalid(path, &shown, PORT_RANGE);
        }
    }

    pub(crate) fn port_number_or_name(&mut self, path: &str, value: &Value) {
        match value.as_str() {
            Some(name) => self.all_invalid(path, value, names::port_name(name)),
            None => self.port_number(path, value),
        }
    }

    /// A label key: a qualified name.
    pub(crate) fn label_name(&mut self, path: &str, name: &str) {
        self.all_invalid(path, &name.into(), names::qualified_name(name));
    }

    pub(crate) fn labels(&mut self, path: &str, labels: &Value) {
        for (key, value) in entries(labels, "") {
            self.label_name(path, key);
            self.all_invalid(path, value, names::label_value(value.as_str().unwrap_or("")));
        }
    }

    pub(crate) fn label_selector(&mut self, path: &str, selector: &Value) {
        self.labels(&format!("{path}.matchLabels"), at(selector, "/matchLabels"));
        for (i, expression) in items(selector, "/matchExpressions").iter().enumerate() {
            self.selector_expression(&format!("{path}.matchExpressions[{i}]"), expression);
        }
    }

    fn selector_expression(&mut self, path: &str, expression: &Value) {
        let values = items(expression, "/values");
        match text(expression, "/operator") {
            "In" | "NotIn" if values.is_empty() => {
                self.required(
                    format!("{path}.values"),
                    "must be specified when `operator` is 'In' or 'NotIn'",
                );
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => self.forbidden(
                format!("{path}.values"),
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            ),
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            _ => self.invalid(
                format!("{path}.operator"),
                at(expression, "/operator"),
                "not a valid selector operator",
            ),
        }
        self.label_name(&format!("{path}.key"), text(expression, "/key"));
        for (i, value) in values.iter().enumerate() {
            let messages = names::label_value(value.as_str().unwrap_or(""));
            self.all_invalid(&format!("{path}.values[{i}]"), value, messages);
        }
    }

    /// An IP address as the older API fields take it: anything that parses.
    pub(crate) fn ip(&mut self, path: impl Into<String>, value: &Value) -> Option<IpAddr> {
        let parsed = value.as_str().and_then(|text| text.parse::<IpAddr>().ok());
        if parsed.is_none() {
            self.invalid(path, value, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)");
        }
        parsed
    }

    pub(crate) fn cidr(&mut self, path: impl Into<String>, value: &Value) {
        let parsed =
            value.as_str().filter(|t| t.contains('/')).and_then(|t| t.parse::<ipnetwork::IpNetwork>().ok());
        if parsed.is_none() {
            self.invalid(path, value, "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)");
        }
    }

    /// A resource amount: a quantity, not negative, whole for resources that have no fractions.
    pub(crate) fn resource_amount(&mut self, path: &str, resource: &str, value: &Value) {
        let Some(amount) = quantity(value) else {
            self.invalid(path, value, "must be a quantity");
            return;
        };
        if amount.milli() < 0 {
            self.invalid(path, value, NOT_NEGATIVE);
        }
        let fractional = matches!(resource, "cpu" | "requests.cpu" | "limits.cpu" | "memory");
        let extended = resource.contains('/') && !is_native(resource);
        if !fractional && (extended || is_whole(resource)) && amount.milli() % 1000 != 0 {
            self.invalid(path, value, "must be an integer");
        }
    }

    /// A count, or a percentage such as `25%`.
    pub(crate) fn int_or_percent(&mut self, path: &str, value: &Value) {
        match value {
            Value::String(text) => self.all_invalid(path, value, names::percent(text)),
            Value::Number(_) => self.not_negative(path, value),
            _ => {}
        }
    }

    pub(crate) fn not_more_than_100_percent(&mut self, path: &str, value: &Value) {
        if percent(value).is_some_and(|percent| percent > 100) {
            self.invalid(path, value, "must not be greater than 100%");
        }
    }
}

/// Whole-number resources of the platform's own.
fn is_whole(resource: &str) -> bool {
    resource == "pods"
        || resource.starts_with("count/")
        || matches!(
            resource,
            "services"
                | "replicationcontrollers"
                | "resourcequotas"
                | "secrets"
                | "configmaps"
                | "persistentvolumeclaims"
                | "services.nodeports"
                | "services.loadbalancers"
        )
}

/// Names without a domain, or inside kubernetes.io.
pub(crate) fn is_native(resource: &str) -> bool {
    !resource.contains('/') || resource.contains("kubernetes.io/")
}

pub(crate) fn percent(value: &Value) -> Option<i64> {
    value.as_str()?.strip_suffix('%')?.parse().ok()
}

/// The number of an int-or-percent value, whichever it is.
pub(crate) fn count_or_percent(value: &Value) -> i64 {
    percent(value).unwrap_or_else(|| int(value, ""))
}

/// Whether a `metav1.LabelSelector` matches a map of labels. A selector that does not parse matches nothing.
pub(crate) fn selects(selector: &Value, labels: &Value) -> bool {
    LabelSelector::from_value(selector).is_ok_and(|selector| selector.matches(labels))
}

/// Whether the selector has no requirement at all.
pub(crate) fn is_empty_selector(selector: &Value) -> bool {
    entries(selector, "/matchLabels").is_empty() && items(selector, "/matchExpressions").is_empty()
}
