//! Validation of values against the schema, with the texts that clients know.
//!
//! On update, what fails but equals the old value in the same place is let pass (ratcheting, KEP-4008). Items of a list
//! have an old value only where `x-kubernetes-list-type: map` says which one it is.

use std::fmt;

use serde_json::Value;

use super::{Additional, Checks, Kind, ListKind, Structural, formats};
use crate::field::{FieldError, FieldErrorKind, index};

/// How many errors one object is answered with.
const ERRORS_MAX: usize = 500;
/// From here on, integers are not exact as JSON numbers of Go's `float64`.
const FLOAT_INTEGER_MAX: f64 = 9_007_199_254_740_992.0;

/// Where a value is; written out only when something is wrong there.
pub(super) enum Path<'a> {
    Root(&'a str),
    Field(&'a Path<'a>, &'a str),
    Index(&'a Path<'a>, usize),
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Path::Root(base) => f.write_str(base),
            Path::Field(parent, name) => {
                let parent = parent.to_string();
                if parent.is_empty() { f.write_str(name) } else { write!(f, "{parent}.{name}") }
            }
            Path::Index(parent, at) => f.write_str(&index(&parent.to_string(), *at)),
        }
    }
}

/// What came of one check.
#[derive(Default)]
struct Outcome {
    errors: Vec<FieldError>,
    /// How much was looked at: of several alternatives that fail, the one that got furthest is told about.
    checked: usize,
}

impl Outcome {
    fn merge(&mut self, other: Self) {
        self.checked += other.checked;
        if self.errors.len() < ERRORS_MAX {
            self.errors.extend(other.errors);
        }
    }

    fn push(&mut self, error: FieldError) {
        if self.errors.len() < ERRORS_MAX {
            self.errors.push(error);
        }
    }

    fn is_valid(&self) -> bool {
        self.errors.is_empty()
    }
}

impl Structural {
    /// All that is wrong with `value`, which stands at `base` (empty for a whole object). `old` is the value that is
    /// replaced.
    pub fn validate(&self, base: &str, value: &Value, old: Option<&Value>) -> Vec<FieldError> {
        self.check(value, old, &Path::Root(base)).errors
    }

    fn check(&self, value: &Value, old: Option<&Value>, path: &Path<'_>) -> Outcome {
        let outcome = self.check_now(value, old, path);
        if !outcome.is_valid() && old.is_some_and(|old| old == value) {
            return Outcome { errors: Vec::new(), checked: outcome.checked };
        }
        outcome
    }

    fn check_now(&self, value: &Value, old: Option<&Value>, path: &Path<'_>) -> Outcome {
        let mut outcome = Outcome { checked: 1, ..Outcome::default() };
        if let Some(error) = self.type_error(value, path) {
            outcome.push(error);
        }
        if let Some(checks) = &self.checks {
            if value.is_null() {
                checks.enumeration(value, path, &mut outcome);
                return outcome;
            }
            checks.alternatives(value, old, path, &mut outcome);
            checks.scalar(self.kind, value, path, &mut outcome);
        }
        match value {
            Value::Array(items) => self.check_items(items, old, path, &mut outcome),
            Value::Object(object) => {
                if let Some(checks) = &self.checks {
                    checks.object(object, path, &mut outcome);
                }
                for (name, value) in object {
                    let field = match (self.property(name), &self.additional) {
                        (Some(property), _) => property,
                        (None, Some(Additional::Schema(schema))) => schema,
                        (None, Some(Additional::Allowed(false))) => {
                            let text = format!("{path}.{name} in body is a forbidden property");
                            outcome.push(FieldError::invalid(shown(path), name.as_str(), text));
                            continue;
                        }
                        (None, _) => continue,
                    };
                    let old = old.and_then(|old| old.get(name));
                    outcome.merge(field.check(value, old, &Path::Field(path, name)));
                }
            }
            _ => {}
        }
        outcome
    }

    fn check_items(&self, items: &[Value], old: Option<&Value>, path: &Path<'_>, outcome: &mut Outcome) {
        if let Some(item) = &self.items {
            let old_items = old.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
            for (at, value) in items.iter().enumerate() {
                let old = self.correlated(value, old_items);
                outcome.merge(item.check(value, old, &Path::Index(path, at)));
            }
        }
        if let Some(checks) = &self.checks {
            checks.list(items, path, outcome);
        }
    }

    /// The old item that has the same keys.
    pub fn correlated<'a>(&self, item: &Value, old_items: &'a [Value]) -> Option<&'a Value> {
        let ListKind::Map(keys) = &self.list else { return None };
        let key_default = |key: &String| {
            self.items
                .as_ref()
                .and_then(|item| item.property(key))
                .and_then(|property| property.default.as_deref())
        };
        old_items.iter().find(|old| {
            keys.iter().all(|key| {
                let of = |value: &Value| value.get(key).or_else(|| key_default(key)).cloned();
                of(old) == of(item)
            })
        })
    }

    fn type_error(&self, value: &Value, path: &Path<'_>) -> Option<FieldError> {
        let (expected, fits) = match self.kind {
            Kind::Any => return None,
            Kind::Object => ("object", value.is_object()),
            Kind::Array => ("array", value.is_array()),
            Kind::String => ("string", value.is_string()),
            Kind::Integer => ("integer", is_integer(value)),
            Kind::Number => ("number", value.is_number()),
            Kind::Boolean => ("boolean", value.is_boolean()),
            Kind::IntOrString => ("integer,string", is_integer(value) || value.is_string()),
        };
        if fits || (value.is_null() && self.nullable) {
            return None;
        }
        let found = match value {
            Value::Null => "null",
            Value::Bool(_) => "boolean",
            Value::Number(number) if number.is_f64() => "number",
            Value::Number(_) => "integer",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        };
        let text = format!("{path} in body must be of type {expected}: \"{found}\"");
        Some(FieldError::type_invalid(shown(path), found, text))
    }
}

fn is_integer(value: &Value) -> bool {
    value.is_i64()
        || value.is_u64()
        || value.as_f64().is_some_and(|number| number.fract() == 0.0 && number.abs() <= FLOAT_INTEGER_MAX)
}

/// A path as Go shows it where an error is about the whole object.
fn shown(path: &Path<'_>) -> String {
    let text = path.to_string();
    if text.is_empty() { "<nil>".to_owned() } else { text }
}

/// An error of all of an object, whose text says where.
fn composite(text: String) -> FieldError {
    FieldError::invalid("<nil>", "", text)
}

impl Checks {
    fn alternatives(&self, value: &Value, old: Option<&Value>, path: &Path<'_>, outcome: &mut Outcome) {
        if !self.any_of.is_empty() {
            let mut best: Option<Outcome> = None;
            let mut is_valid = false;
            for schema in &self.any_of {
                let result = schema.check(value, old, path);
                is_valid |= result.is_valid();
                if is_valid || best.as_ref().is_none_or(|best| result.checked > best.checked) {
                    best = Some(result);
                }
                if is_valid {
                    break;
                }
            }
            if !is_valid {
                outcome.push(composite(format!("\"{path}\" must validate at least one schema (anyOf)")));
            }
            outcome.merge(best.unwrap_or_default());
        }
        self.exactly_one(value, old, path, outcome);
        let mut valid = 0;
        for schema in &self.all_of {
            let result = schema.check(value, old, path);
            valid += usize::from(result.is_valid());
            outcome.merge(result);
        }
        if valid != self.all_of.len() {
            let none = if valid == 0 { ". None validated" } else { "" };
            outcome.push(composite(format!("\"{path}\" must validate all the schemas (allOf){none}")));
        }
        if self.not.as_ref().is_some_and(|schema| schema.check(value, old, path).is_valid()) {
            outcome.push(composite(format!("\"{path}\" must not validate the schema (not)")));
        }
    }

    fn exactly_one(&self, value: &Value, old: Option<&Value>, path: &Path<'_>, outcome: &mut Outcome) {
        if self.one_of.is_empty() {
            return;
        }
        let mut valid = 0;
        let mut best: Option<Outcome> = None;
        for schema in &self.one_of {
            let result = schema.check(value, old, path);
            if result.is_valid() {
                valid += 1;
                best = None;
            } else if valid == 0 && best.as_ref().is_none_or(|best| result.checked > best.checked) {
                best = Some(result);
            }
        }
        if valid == 1 {
            return;
        }
        let found = match valid {
            0 => "Found none valid".to_owned(),
            count => format!("Found {count} valid alternatives"),
        };
        outcome.push(composite(format!("\"{path}\" must validate one and only one schema (oneOf). {found}")));
        outcome.merge(best.unwrap_or_default());
    }

    fn scalar(&self, kind: Kind, value: &Value, path: &Path<'_>, outcome: &mut Outcome) {
        match value {
            Value::String(text) => self.string(text, path, outcome),
            Value::Number(number) => self.number(kind, number, path, outcome),
            _ => {}
        }
        self.enumeration(value, path, outcome);
    }

    fn string(&self, text: &str, path: &Path<'_>, outcome: &mut Outcome) {
        let length = || text.chars().count() as u64;
        if let Some(max) = self.max_length.filter(|max| text.len() as u64 > *max && length() > *max) {
            outcome.push(FieldError::too_long(shown(path), usize::try_from(max).unwrap_or(usize::MAX)));
        } else if let Some(min) = self.min_length.filter(|min| length() < *min) {
            let text_is = format!("{path} in body should be at least {min} chars long");
            outcome.push(FieldError::invalid(shown(path), text, text_is));
        } else if let Some((pattern, _)) = self.pattern.as_ref().filter(|(_, regex)| !regex.is_match(text)) {
            let text_is = format!("{path} in body should match '{pattern}'");
            outcome.push(FieldError::invalid(shown(path), text, text_is));
        }
        if let Some(format) = &self.format
            && !formats::fits(format, text)
        {
            let text_is = format!("{path} in body must be of type {format}: {}", crate::field::quote(text));
            outcome.push(FieldError::type_invalid(shown(path), text, text_is));
        }
    }

    fn number(&self, kind: Kind, number: &serde_json::Number, path: &Path<'_>, outcome: &mut Outcome) {
        let mut refuse = |text: String| {
            outcome.push(FieldError::invalid(
                shown(path),
                number.clone(),
                format!("{path} in body should be {text}"),
            ));
        };
        let as_float = number.as_f64().unwrap_or_default();
        if let Some(factor) = self.multiple_of {
            let is_multiple = match number.as_i64() {
                Some(value) if factor.fract() == 0.0 => factor as i64 != 0 && value % (factor as i64) == 0,
                _ => (if factor < 1.0 { 1.0 / factor * as_float } else { as_float / factor }).fract() == 0.0,
            };
            if !is_multiple {
                refuse(format!("a multiple of {factor}"));
            }
        }
        // Integers are compared as such: the bound's fraction does not count then.
        let compare = |bound: f64| match number.as_i64() {
            Some(value) => value.partial_cmp(&(bound as i64)),
            None => as_float.partial_cmp(&bound),
        };
        let shown_bound =
            |bound: f64| if number.is_f64() { bound.to_string() } else { (bound as i64).to_string() };
        if let Some(min) = self.minimum {
            let ordering = compare(min);
            if self.exclusive_minimum && ordering.is_some_and(std::cmp::Ordering::is_le) {
                refuse(format!("greater than {}", shown_bound(min)));
            } else if ordering.is_some_and(std::cmp::Ordering::is_lt) {
                refuse(format!("greater than or equal to {}", shown_bound(min)));
            }
        }
        if let Some(max) = self.maximum {
            let ordering = compare(max);
            if self.exclusive_maximum && ordering.is_some_and(std::cmp::Ordering::is_ge) {
                refuse(format!("less than {}", shown_bound(max)));
            } else if ordering.is_some_and(std::cmp::Ordering::is_gt) {
                refuse(format!("less than or equal to {}", shown_bound(max)));
            }
        }
        self.range(kind, number, path, outcome);
    }

    /// `int32`, `int64` and `float` bound the value too.
    fn range(&self, kind: Kind, number: &serde_json::Number, path: &Path<'_>, outcome: &mut Outcome) {
        let format = self.format.as_deref();
        let is_outside = match (kind, format) {
            (Kind::Integer, Some("int32")) => {
                number.as_i64().is_none_or(|value| i32::try_from(value).is_err()) && !number.is_f64()
            }
            (Kind::Number, Some("float")) => {
                number.as_f64().is_some_and(|value| value.abs() > f64::from(f32::MAX))
            }
            _ => false,
        };
        if is_outside {
            let name = if kind == Kind::Integer { "integer" } else { "number" };
            let format = format.unwrap_or_default();
            outcome.push(composite(format!(
                "Checked value must be of type {name} with format {format} in {path}"
            )));
        }
    }

    fn enumeration(&self, value: &Value, path: &Path<'_>, outcome: &mut Outcome) {
        if self.enumeration.is_empty() || self.enumeration.iter().any(|allowed| same(allowed, value)) {
            return;
        }
        let shown_values: Vec<String> = self
            .enumeration
            .iter()
            .map(|allowed| allowed.as_str().map_or_else(|| allowed.to_string(), str::to_owned))
            .collect();
        let names: Vec<&str> = shown_values.iter().map(String::as_str).collect();
        outcome.push(FieldError::not_supported(shown(path), value.clone(), &names));
    }

    fn list(&self, items: &[Value], path: &Path<'_>, outcome: &mut Outcome) {
        let size = items.len() as u64;
        if let Some(min) = self.min_items.filter(|min| size < *min) {
            let text = format!("{path} in body should have at least {min} items");
            outcome.push(FieldError::invalid(shown(path), size, text));
        }
        if let Some(max) = self.max_items.filter(|max| size > *max) {
            let max = usize::try_from(max).unwrap_or(usize::MAX);
            outcome.push(FieldError::too_many(shown(path), items.len(), max));
        }
        if self.unique_items && super::lists::has_duplicates(items) {
            let text = format!("{path} in body shouldn't contain duplicates");
            outcome.push(FieldError::invalid(shown(path), "", text));
        }
    }

    fn object(&self, object: &serde_json::Map<String, Value>, path: &Path<'_>, outcome: &mut Outcome) {
        let size = object.len() as u64;
        if let Some(min) = self.min_properties.filter(|min| size < *min) {
            let text = format!("{path} in body should have at least {min} properties");
            outcome.push(FieldError::invalid(shown(path), size, text));
        }
        if let Some(max) = self.max_properties.filter(|max| size > *max) {
            let max = usize::try_from(max).unwrap_or(usize::MAX);
            outcome.push(FieldError::too_many(shown(path), object.len(), max));
        }
        for name in self.required.iter().filter(|name| !object.contains_key(name.as_str())) {
            outcome.push(FieldError::required(Path::Field(path, name).to_string(), ""));
        }
    }
}

/// Equal as JSON Schema has it: 1 is 1.0.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(x), Value::Number(y)) => x == y || x.as_f64() == y.as_f64(),
        _ => a == b,
    }
}

/// Errors after which rules are not evaluated: what they would look at may not have the form that they expect.
pub fn blocks_rules(error: &FieldError) -> bool {
    matches!(
        error.kind,
        FieldErrorKind::NotSupported
            | FieldErrorKind::Required
            | FieldErrorKind::TooLong
            | FieldErrorKind::TooMany
            | FieldErrorKind::TypeInvalid
    )
}
