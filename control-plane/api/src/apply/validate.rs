//! Whether a value fits its type as far as ownership needs: scalars of the right kind, no unknown fields, list items
//! that can be told apart.

use serde_json::Value;

use super::{
    element::PathElement,
    typed::{Atom, Scalar, Typed},
};

/// How many errors are reported.
const ERRORS_MAX: usize = 50;

/// The errors of a value, empty where it fits.
#[derive(Debug, Default)]
pub(super) struct Errors(Vec<(String, String)>);

impl Errors {
    fn add(&mut self, path: &[PathElement], text: String) {
        if self.0.len() < ERRORS_MAX {
            self.0.push((super::path_text(path), text));
        }
    }

    /// One text for all, as upstream joins them.
    pub fn into_result(self) -> Result<(), String> {
        let mut texts = self
            .0
            .into_iter()
            .map(|(path, text)| if path.is_empty() { text } else { format!("{path}: {text}") });
        match (texts.next(), texts.next()) {
            (None, _) => Ok(()),
            (Some(text), None) => Err(text),
            (Some(first), Some(second)) => {
                let all: Vec<String> = [first, second].into_iter().chain(texts).collect();
                Err(format!("errors:\n  {}", all.join("\n  ")))
            }
        }
    }
}

/// Checks a value.
///
/// # Errors
/// With the text of everything that does not fit.
pub(super) fn validate(typed: Typed<'_>, value: &Value, allow_duplicates: bool) -> Result<(), String> {
    let mut walk = Walk { allow_duplicates, path: Vec::new(), errors: Errors::default() };
    walk.value(typed, value);
    walk.errors.into_result()
}

struct Walk {
    allow_duplicates: bool,
    path: Vec<PathElement>,
    errors: Errors,
}

impl Walk {
    fn error(&mut self, text: String) {
        self.errors.add(&self.path, text);
    }

    fn below(&mut self, element: PathElement, typed: Typed<'_>, value: &Value) {
        self.path.push(element);
        self.value(typed, value);
        self.path.pop();
    }

    fn value(&mut self, typed: Typed<'_>, value: &Value) {
        if value.is_null() {
            return;
        }
        let atom = typed.atom(value);
        match atom {
            Atom::Leaf(scalar) => self.scalar(scalar, value),
            Atom::Struct(_) | Atom::Map(_) | Atom::Deduced => self.object(typed, atom, value),
            Atom::AtomicObject => {
                if !value.is_object() {
                    self.error(format!("expected map, got &{{{}}}", shown(value)));
                }
            }
            Atom::AtomicList => {
                if !value.is_array() {
                    self.error(format!("expected list, got &{{{}}}", shown(value)));
                }
            }
            Atom::Set(_) | Atom::Keyed(..) | Atom::KeyedBy(..) => self.list(typed, atom, value),
        }
    }

    fn scalar(&mut self, scalar: Scalar, value: &Value) {
        let text = match scalar {
            Scalar::Numeric if !value.is_number() => {
                format!("expected numeric (int or float), got {}", go_type(value))
            }
            Scalar::String if !value.is_string() => {
                format!("expected string, got &value.valueUnstructured{{Value:{}}}", shown(value))
            }
            Scalar::Boolean if !value.is_boolean() => format!("expected boolean, got &{{{}}}", shown(value)),
            Scalar::Untyped if value.is_array() || value.is_object() => {
                format!("expected any scalar, got &{{{}}}", shown(value))
            }
            _ => return,
        };
        self.error(text);
    }

    fn object(&mut self, typed: Typed<'_>, atom: Atom<'_>, value: &Value) {
        let Some(object) = value.as_object() else {
            self.error(format!("expected map, got &{{{}}}", shown(value)));
            return;
        };
        for (name, value) in object {
            let element = PathElement::field(name);
            match atom {
                Atom::Struct(ty) if ty.field(name).is_none() && !ty.open => {
                    self.path.push(element);
                    self.error("field not declared in schema".to_owned());
                    self.path.pop();
                }
                _ => self.below(element, typed.of_entry(atom, name), value),
            }
        }
    }

    fn list(&mut self, typed: Typed<'_>, atom: Atom<'_>, value: &Value) {
        let Some(items) = value.as_array() else {
            self.error(format!("expected list, got &{{{}}}", shown(value)));
            return;
        };
        let mut seen = std::collections::BTreeSet::new();
        for (i, item) in items.iter().enumerate() {
            let element = match typed.element(atom, item) {
                Ok(element) => element,
                Err(text) => {
                    self.error(format!("element {i}: {text}"));
                    return;
                }
            };
            if !seen.insert(element.clone()) && !self.allow_duplicates {
                self.error(format!("duplicate entries for key {element}"));
            }
            self.below(element, typed.of_item(atom), item);
        }
    }
}

fn go_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::Number(number) if number.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

/// A value in an error: short, whatever it holds.
fn shown(value: &Value) -> String {
    match value {
        Value::Array(_) => "[...]".to_owned(),
        Value::Object(_) => "map[...]".to_owned(),
        Value::String(text) => text.chars().take(100).collect(),
        value => value.to_string(),
    }
}
