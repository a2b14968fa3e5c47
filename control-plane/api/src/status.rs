//! The answer of the API when there is no object to answer with: `kind: Status`, with upstream's texts and reasons, so
//! that clients which look at `reason`, `details` or the message see what they know.

use std::{borrow::Cow, fmt};

use serde_json::{Map, Value, json};

use crate::field::{FieldError, quote};

/// The error (or success) of the API edge.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    /// The HTTP status code.
    pub code: u16,
    /// Machine-readable, such as `NotFound`; empty on success.
    pub reason: Cow<'static, str>,
    pub message: String,
    /// `StatusDetails` as JSON.
    pub details: Option<Value>,
}

/// `pods` or `deployments.apps`.
fn qualified(group: &str, name: &str) -> String {
    if group.is_empty() { name.to_owned() } else { format!("{name}.{group}") }
}

/// `StatusDetails` that name an object; empty parts are left out.
fn named(group: &str, kind: &str, name: &str) -> Map<String, Value> {
    [("name", name), ("group", group), ("kind", kind)]
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(key, value)| (key.to_owned(), Value::from(value)))
        .collect()
}

impl Status {
    fn failure(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason: Cow::Borrowed(reason), message: message.into(), details: None }
    }

    fn about(mut self, details: Map<String, Value>) -> Self {
        self.details = Some(Value::Object(details));
        self
    }

    /// Adds to `details.causes`: why in detail, for clients that look for the reason.
    pub fn with_cause(mut self, reason: &str, message: &str, field: &str) -> Self {
        let cause: Map<String, Value> = [("reason", reason), ("message", message), ("field", field)]
            .into_iter()
            .filter(|(_, value)| !value.is_empty())
            .map(|(key, value)| (key.to_owned(), Value::from(value)))
            .collect();
        let details = self.details.get_or_insert_with(|| json!({}));
        match details.get_mut("causes").and_then(Value::as_array_mut) {
            Some(causes) => causes.push(Value::Object(cause)),
            None => details["causes"] = json!([cause]),
        }
        self
    }

    /// Asks the client to come back; also the value of the `Retry-After` header.
    pub fn with_retry_after(mut self, seconds: u32) -> Self {
        let details = self.details.get_or_insert_with(|| json!({}));
        details["retryAfterSeconds"] = Value::from(seconds);
        self
    }

    /// The seconds for a `Retry-After` header.
    pub fn retry_after_seconds(&self) -> Option<u64> {
        self.details.as_ref()?.get("retryAfterSeconds")?.as_u64().filter(|seconds| *seconds > 0)
    }

    pub fn not_found(group: &str, plural: &str, name: &str) -> Self {
        let message = format!("{} {} not found", qualified(group, plural), quote(name));
        Self::failure(404, "NotFound", message).about(named(group, plural, name))
    }

    /// For a path that leads nowhere.
    pub fn resource_not_found() -> Self {
        Self::failure(404, "NotFound", "the server could not find the requested resource").about(Map::new())
    }

    pub fn already_exists(group: &str, plural: &str, name: &str) -> Self {
        let message = format!("{} {} already exists", qualified(group, plural), quote(name));
        Self::failure(409, "AlreadyExists", message).about(named(group, plural, name))
    }

    /// When every generated name was taken.
    pub fn generate_name_conflict(group: &str, plural: &str, name: &str) -> Self {
        let message = format!(
            "{} {} already exists, the server was not able to generate a unique name for the object",
            qualified(group, plural),
            quote(name)
        );
        Self::failure(409, "AlreadyExists", message).about(named(group, plural, name)).with_retry_after(1)
    }

    pub fn conflict(group: &str, plural: &str, name: &str, why: impl fmt::Display) -> Self {
        let message =
            format!("Operation cannot be fulfilled on {} {}: {why}", qualified(group, plural), quote(name));
        Self::failure(409, "Conflict", message).about(named(group, plural, name))
    }

    /// The conflict of an update that was made from an older version of the object.
    pub fn modified(group: &str, plural: &str, name: &str) -> Self {
        let why =
            "the object has been modified; please apply your changes to the latest version and try again";
        Self::conflict(group, plural, name, why)
    }

    /// The conflicts of an apply patch; one cause for each is to be added.
    pub fn apply_conflict(message: impl Into<String>) -> Self {
        Self::failure(409, "Conflict", message).about(Map::new())
    }

    /// An error of the server in its own words, as upstream sends what it has no reason for.
    pub fn plain_internal(message: impl Into<String>) -> Self {
        Self::failure(500, "", message)
    }

    pub fn invalid(group: &str, kind: &str, name: &str, errors: Vec<FieldError>) -> Self {
        let mut texts: Vec<String> = Vec::with_capacity(errors.len());
        for error in &errors {
            let text = error.to_string();
            if !texts.contains(&text) {
                texts.push(text);
            }
        }
        let mut message = format!("{} {} is invalid", qualified(group, kind), quote(name));
        match texts.as_slice() {
            [] => {}
            [text] => message.push_str(&format!(": {text}")),
            texts => message.push_str(&format!(": [{}]", texts.join(", "))),
        }
        let status = Self::failure(422, "Invalid", message).about(named(group, kind, name));
        errors
            .iter()
            .fold(status, |status, error| status.with_cause(error.kind.cause(), &error.body(), &error.path))
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::failure(400, "BadRequest", message)
    }

    /// A body that cannot be read as the kind: `why` is the decoder's text.
    pub fn undecodable(kind: &str, version: &str, why: impl fmt::Display) -> Self {
        Self::bad_request(format!(
            "{kind} in version {} cannot be handled as a {kind}: {why}",
            quote(version)
        ))
    }

    /// A patch that parsed but cannot be applied.
    pub fn unprocessable(message: impl Into<String>) -> Self {
        let status =
            Self::failure(422, "Invalid", "the server rejected our request due to an error in our request");
        status.about(Map::new()).with_cause("UnexpectedServerResponse", &message.into(), "")
    }

    pub fn forbidden(group: &str, plural: &str, name: &str, why: impl fmt::Display) -> Self {
        let resource = qualified(group, plural);
        let message = match (plural, name) {
            ("", _) => format!("forbidden: {why}"),
            (_, "") => format!("{resource} is forbidden: {why}"),
            (_, name) => format!("{resource} {} is forbidden: {why}", quote(name)),
        };
        Self::failure(403, "Forbidden", message).about(named(group, plural, name))
    }

    pub fn unauthorized() -> Self {
        Self::failure(401, "Unauthorized", "Unauthorized")
    }

    /// `action` is a verb such as `patch`.
    pub fn method_not_supported(group: &str, plural: &str, action: &str) -> Self {
        let message =
            format!("{action} is not supported on resources of kind {}", quote(&qualified(group, plural)));
        Self::failure(405, "MethodNotAllowed", message).about(named(group, plural, ""))
    }

    pub fn method_not_allowed() -> Self {
        let message = "the server does not allow this method on the requested resource";
        Self::failure(405, "MethodNotAllowed", message).about(Map::new())
    }

    /// A resourceVersion or continue token that history no longer holds.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::failure(410, "Expired", message)
    }

    pub fn gone(message: impl Into<String>) -> Self {
        Self::failure(410, "Gone", message)
    }

    /// `requested` lies ahead of what the server has, `current`.
    pub fn too_large_resource_version(requested: u64, current: u64) -> Self {
        Self::timeout(format!("Too large resource version: {requested}, current: {current}"), 1).with_cause(
            "ResourceVersionTooLarge",
            "Too large resource version",
            "",
        )
    }

    pub fn too_many_requests(message: impl Into<String>, retry_after_seconds: u32) -> Self {
        Self::failure(429, "TooManyRequests", message).with_retry_after(retry_after_seconds)
    }

    /// Answers 504; the text gains the word `Timeout`.
    pub fn timeout(message: impl fmt::Display, retry_after_seconds: u32) -> Self {
        let status = Self::failure(504, "Timeout", format!("Timeout: {message}")).about(Map::new());
        if retry_after_seconds == 0 { status } else { status.with_retry_after(retry_after_seconds) }
    }

    pub fn internal(message: impl fmt::Display) -> Self {
        let message = message.to_string();
        Self::failure(500, "InternalError", format!("Internal error occurred: {message}"))
            .with_cause("", &message, "")
    }

    pub fn unsupported_media_type(accepted: &[&str]) -> Self {
        let message = format!(
            "the body of the request was in an unknown format - accepted media types include: {}",
            accepted.join(", ")
        );
        Self::failure(415, "UnsupportedMediaType", message)
    }

    pub fn not_acceptable(accepted: &[&str]) -> Self {
        let message = format!("only the following media types are accepted: {}", accepted.join(", "));
        Self::failure(406, "NotAcceptable", message)
    }

    /// 406 for a shape that the answer cannot take.
    pub fn not_acceptable_shape(message: impl Into<String>) -> Self {
        Self::failure(406, "NotAcceptable", message)
    }

    /// `message` says the limit, such as `limit is 3145728`.
    pub fn request_entity_too_large(message: impl fmt::Display) -> Self {
        Self::failure(413, "RequestEntityTooLarge", format!("Request entity too large: {message}"))
    }

    pub fn service_unavailable(message: impl Into<String>) -> Self {
        Self::failure(503, "ServiceUnavailable", message)
    }

    /// The answer to a deletion that is complete.
    pub fn success(details: Option<Value>) -> Self {
        Self { code: 200, reason: Cow::Borrowed(""), message: String::new(), details }
    }

    /// The details of [`Status::success`] after the deletion of a named object.
    pub fn deleted(group: &str, plural: &str, name: &str, uid: &str) -> Self {
        let mut details = named(group, plural, name);
        if !uid.is_empty() {
            details.insert("uid".to_owned(), Value::from(uid));
        }
        Self::success(Some(Value::Object(details)))
    }

    pub fn is_success(&self) -> bool {
        self.code < 400
    }

    /// The object to send.
    pub fn to_value(&self) -> Value {
        let mut object = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": if self.is_success() { "Success" } else { "Failure" },
            "code": self.code,
        });
        if !self.message.is_empty() {
            object["message"] = Value::from(self.message.as_str());
        }
        if !self.reason.is_empty() {
            object["reason"] = Value::from(self.reason.as_ref());
        }
        if let Some(details) = &self.details {
            object["details"] = details.clone();
        }
        if self.is_success() {
            object.as_object_mut().expect("the literal above is an object").remove("code");
        }
        object
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.message.is_empty() { f.write_str("success") } else { f.write_str(&self.message) }
    }
}

impl std::error::Error for Status {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn not_found_names_resource_group_and_object() {
        let status = Status::not_found("apps", "deployments", "web");
        assert_eq!(
            status.to_value(),
            json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": 404,
                "reason": "NotFound", "message": "deployments.apps \"web\" not found",
                "details": {"name": "web", "group": "apps", "kind": "deployments"},
            })
        );
    }

    #[test]
    fn invalid_lists_each_error_once_in_the_message_and_all_as_causes() {
        let error = FieldError::required("spec.x", "");
        let one = Status::invalid("", "Pod", "p", vec![error.clone()]);
        assert_eq!(one.message, "Pod \"p\" is invalid: spec.x: Required value");
        let status = Status::invalid(
            "",
            "Pod",
            "p",
            vec![error.clone(), error, FieldError::invalid("spec.y", 1, "bad")],
        );
        assert_eq!(
            status.message,
            "Pod \"p\" is invalid: [spec.x: Required value, spec.y: Invalid value: 1: bad]"
        );
        let causes = status.details.unwrap()["causes"].clone();
        assert_eq!(causes.as_array().unwrap().len(), 3);
        assert_eq!(
            causes[2],
            json!({"reason": "FieldValueInvalid", "message": "Invalid value: 1: bad", "field": "spec.y"})
        );
    }

    #[test]
    fn a_resource_version_of_the_future_says_so_in_its_cause() {
        let status = Status::too_large_resource_version(9, 3);
        assert_eq!(status.message, "Timeout: Too large resource version: 9, current: 3");
        assert_eq!(status.code, 504);
        assert_eq!(status.retry_after_seconds(), Some(1));
        assert_eq!(status.details.unwrap()["causes"][0]["reason"], "ResourceVersionTooLarge");
    }

    #[test]
    fn forbidden_has_three_forms() {
        assert_eq!(Status::forbidden("", "", "", "no").message, "forbidden: no");
        assert_eq!(Status::forbidden("", "pods", "", "no").message, "pods is forbidden: no");
        assert_eq!(Status::forbidden("a.b", "pods", "x", "no").message, "pods.a.b \"x\" is forbidden: no");
    }

    #[test]
    fn success_carries_details_only() {
        let value = Status::deleted("", "pods", "p", "u").to_value();
        assert_eq!(
            value,
            json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
                   "details": {"name": "p", "kind": "pods", "uid": "u"}})
        );
    }
}
