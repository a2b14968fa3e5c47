//! Defaults in a schema must themselves be valid: pruned, of the right form, with valid metadata.

use api::{field::FieldError, structural::Structural};
use serde_json::Value;

use super::structural;
use crate::registry::fields::entries;

/// What is wrong with the defaults of a structural schema.
pub(super) fn errors(schema: &Value, path: &str) -> Vec<FieldError> {
    debug_assert!(structural::errors(schema, path).is_empty(), "only structural schemas come here");
    let mut errors = Vec::new();
    below(schema, path, &mut errors);
    errors
}

fn below(schema: &Value, path: &str, errors: &mut Vec<FieldError>) {
    if !schema["default"].is_null()
        && let Ok(structural) = Structural::parse(schema)
    {
        check(&structural, &schema["default"], &format!("{path}.default"), errors);
    }
    if schema["items"].is_object() {
        below(&schema["items"], &format!("{path}.items"), errors);
    }
    for (name, property) in entries(schema, "/properties") {
        below(property, &format!("{path}.properties[{name}]"), errors);
    }
}

fn check(structural: &Structural, default: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let mut pruned = default.clone();
    structural.prune_value(&mut pruned);
    if pruned != *default {
        errors.push(FieldError::invalid(path, default.clone(), "must not have unknown fields"));
    }
    let embedded = structural.validate_embedded(default).into_iter().map(|mut error| {
        error.path = format!("{path}.{}", error.path);
        error
    });
    let before = errors.len();
    errors.extend(embedded);
    if errors.len() == before {
        errors.extend(structural.validate(path, default, None));
    }
}
