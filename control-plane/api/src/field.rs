//! Errors of one field of an object, with the words that `kubectl` users know.
//!
//! A [`FieldError`] is data: what is wrong ([`FieldErrorKind`]), where (a path such as `spec.ports[0].port`), the value
//! and a detail. [`crate::status::Status::invalid`] turns a list of them into the answer of the API.

use std::fmt;

use serde_json::Value;

/// What is wrong with a field. [`FieldErrorKind::cause`] gives the reason in `Status.details.causes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FieldErrorKind {
    Required,
    Invalid,
    NotSupported,
    Duplicate,
    Forbidden,
    TooLong,
    TooShort,
    TooMany,
    TooFew,
    NotFound,
    TypeInvalid,
    Internal,
}

impl FieldErrorKind {
    /// The words that begin the message.
    pub fn text(self) -> &'static str {
        match self {
            Self::Required => "Required value",
            Self::Invalid | Self::TypeInvalid => "Invalid value",
            Self::NotSupported => "Unsupported value",
            Self::Duplicate => "Duplicate value",
            Self::Forbidden => "Forbidden",
            Self::TooLong => "Too long",
            Self::TooShort => "Too short",
            Self::TooMany => "Too many",
            Self::TooFew => "Too few",
            Self::NotFound => "Not found",
            Self::Internal => "Internal error",
        }
    }

    /// The machine-readable reason.
    pub fn cause(self) -> &'static str {
        match self {
            Self::Required => "FieldValueRequired",
            Self::Invalid => "FieldValueInvalid",
            Self::NotSupported => "FieldValueNotSupported",
            Self::Duplicate => "FieldValueDuplicate",
            Self::Forbidden => "FieldValueForbidden",
            Self::TooLong => "FieldValueTooLong",
            Self::TooShort => "FieldValueTooShort",
            Self::TooMany => "FieldValueTooMany",
            Self::TooFew => "FieldValueTooFew",
            Self::NotFound => "FieldValueNotFound",
            Self::TypeInvalid => "FieldValueTypeInvalid",
            Self::Internal => "InternalError",
        }
    }

    /// Whether the message names the offending value.
    fn shows_value(self) -> bool {
        !matches!(self, Self::Required | Self::Forbidden | Self::TooLong | Self::TooShort | Self::Internal)
    }
}

/// One thing that is wrong with one field.
#[derive(Clone, Debug, PartialEq)]
pub struct FieldError {
    pub kind: FieldErrorKind,
    /// For example `spec.template.spec.containers[0].name`, with map keys as `[key]`.
    pub path: String,
    pub value: Value,
    /// May be empty.
    pub detail: String,
    /// The message does not name the value even if those of its kind do.
    pub omits_value: bool,
}

impl FieldError {
    pub fn new(
        kind: FieldErrorKind,
        path: impl Into<String>,
        value: impl Into<Value>,
        detail: impl Into<String>,
    ) -> Self {
        Self { kind, path: path.into(), value: value.into(), detail: detail.into(), omits_value: false }
    }

    pub fn required(path: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(FieldErrorKind::Required, path, "", detail)
    }

    pub fn invalid(path: impl Into<String>, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Self::new(FieldErrorKind::Invalid, path, value, detail)
    }

    /// `valid` is listed in the order given.
    pub fn not_supported(path: impl Into<String>, value: impl Into<Value>, valid: &[&str]) -> Self {
        let detail = if valid.is_empty() {
            String::new()
        } else {
            let quoted: Vec<String> = valid.iter().map(|value| quote(value)).collect();
            format!("supported values: {}", quoted.join(", "))
        };
        Self::new(FieldErrorKind::NotSupported, path, value, detail)
    }

    pub fn forbidden(path: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(FieldErrorKind::Forbidden, path, "", detail)
    }

    pub fn duplicate(path: impl Into<String>, value: impl Into<Value>) -> Self {
        Self::new(FieldErrorKind::Duplicate, path, value, "")
    }

    pub fn not_found(path: impl Into<String>, value: impl Into<Value>) -> Self {
        Self::new(FieldErrorKind::NotFound, path, value, "")
    }

    pub fn type_invalid(path: impl Into<String>, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Self::new(FieldErrorKind::TypeInvalid, path, value, detail)
    }

    /// `max_bytes` is the longest that is allowed.
    pub fn too_long(path: impl Into<String>, max_bytes: usize) -> Self {
        let unit = if max_bytes == 1 { "byte" } else { "bytes" };
        Self::new(FieldErrorKind::TooLong, path, "", format!("may not be more than {max_bytes} {unit}"))
    }

    /// `actual` items were given where `max` are allowed.
    pub fn too_many(path: impl Into<String>, actual: usize, max: usize) -> Self {
        let unit = if max == 1 { "item" } else { "items" };
        Self::new(FieldErrorKind::TooMany, path, actual, format!("must have at most {max} {unit}"))
    }

    pub fn internal(path: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(FieldErrorKind::Internal, path, Value::Null, detail)
    }

    /// The same error with a message that does not name the value, for values too large to show.
    #[must_use]
    pub fn without_value(self) -> Self {
        Self { value: Value::Null, omits_value: true, ..self }
    }

    /// The message without the path: `Required value: must not be empty`.
    pub fn body(&self) -> String {
        let mut text = self.kind.text().to_owned();
        if self.kind.shows_value() && !self.omits_value {
            text.push_str(": ");
            text.push_str(&show(&self.value));
        }
        if !self.detail.is_empty() {
            text.push_str(": ");
            text.push_str(&self.detail);
        }
        text
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.body())
    }
}

impl std::error::Error for FieldError {}

/// Joins a path and a field name.
pub fn child(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// The path of an item of a list.
pub fn index(path: &str, index: usize) -> String {
    format!("{path}[{index}]")
}

/// The path of an entry of a map.
pub fn key(path: &str, key: &str) -> String {
    format!("{path}[{key}]")
}

fn show(value: &Value) -> String {
    match value {
        Value::String(text) => quote(text),
        other => other.to_string(),
    }
}

/// Quotes as Go's `%q` does.
pub fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\u{b}' => out.push_str("\\v"),
            c if (c as u32) < 0x20 || c as u32 == 0x7f => out.push_str(&format!("\\x{:02x}", c as u32)),
            c if c.is_control() => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn errors_read_as_upstream_writes_them() {
        let cases = [
            (FieldError::required("spec.x", ""), "spec.x: Required value"),
            (FieldError::required("spec.x", "why"), "spec.x: Required value: why"),
            (FieldError::invalid("a[0].b", "v\n", "bad"), r#"a[0].b: Invalid value: "v\n": bad"#),
            (FieldError::invalid("a", 7, "bad"), "a: Invalid value: 7: bad"),
            (FieldError::invalid("a", json!({"k": [1]}), "bad"), r#"a: Invalid value: {"k":[1]}: bad"#),
            (
                FieldError::not_supported("p", "Foo", &["A", "B"]),
                r#"p: Unsupported value: "Foo": supported values: "A", "B""#,
            ),
            (FieldError::forbidden("p", "field is immutable"), "p: Forbidden: field is immutable"),
            (FieldError::duplicate("p", "x"), r#"p: Duplicate value: "x""#),
            (FieldError::too_long("p", 63), "p: Too long: may not be more than 63 bytes"),
            (FieldError::too_many("p", 5, 3), "p: Too many: 5: must have at most 3 items"),
            (FieldError::not_found("p", "x"), r#"p: Not found: "x""#),
        ];
        for (error, text) in cases {
            assert_eq!(error.to_string(), text);
        }
    }

    #[test]
    fn paths_join_fields_indices_and_keys() {
        assert_eq!(child("", "spec"), "spec");
        assert_eq!(child(&index(&child("spec", "ports"), 2), "name"), "spec.ports[2].name");
        assert_eq!(key("metadata.labels", "a/b"), "metadata.labels[a/b]");
    }
}
