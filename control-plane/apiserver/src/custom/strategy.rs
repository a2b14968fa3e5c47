//! The rules of custom kinds: what every object of a CustomResourceDefinition's version obeys.

use std::sync::Arc;

use api::{
    apply::Reset,
    field::FieldError,
    names,
    schema::Resource,
    structural::{Structural, blocks_rules},
};
use cel::{Budget, REQUEST_COST_MAX, rules::Rules};
use serde_json::Value;

use super::{
    columns::Columns,
    definition::{Definition, Version},
    jsonpath::{JsonPath, at_fields},
};
use crate::registry::{Context, Scale, Strategy};

pub(super) struct CustomStrategy {
    structural: Arc<Structural>,
    api_version: String,
    kind: String,
    has_status: bool,
    scale: Option<Scale>,
    columns: Columns,
    /// Fields of selectors: their names and paths.
    selectable: Vec<(String, JsonPath)>,
    /// `x-kubernetes-validations`; `None` where the schema has none.
    rules: Option<Rules>,
}

impl CustomStrategy {
    pub(super) fn new(definition: &Definition, version: &Version, written: &Value) -> Self {
        let selectable = written["selectableFields"].as_array().into_iter().flatten().filter_map(|field| {
            let path = field["jsonPath"].as_str()?;
            Some((path.trim_start_matches('.').to_owned(), JsonPath::parse(path).ok()?))
        });
        let scale = &written["subresources"]["scale"];
        let path = |name: &str| scale[name].as_str().filter(|path| !path.is_empty()).map(str::to_owned);
        Self {
            structural: Arc::clone(&version.structural),
            api_version: version.api_version.clone(),
            kind: definition.kind.clone(),
            has_status: written["subresources"]["status"].is_object(),
            scale: scale.is_object().then(|| Scale {
                replicas: path("specReplicasPath").unwrap_or_default(),
                status_replicas: path("statusReplicasPath").unwrap_or_default(),
                selector: path("labelSelectorPath"),
            }),
            columns: Columns::of(written),
            selectable: selectable.collect(),
            rules: version
                .structural
                .has_rules()
                .then(|| Rules::compile(&written["schema"]["openAPIV3Schema"])),
        }
    }

    fn type_errors(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        for (field, expected) in [("kind", &self.kind), ("apiVersion", &self.api_version)] {
            if object[field] != **expected {
                errors.push(FieldError::invalid(field, object[field].clone(), format!("must be {expected}")));
            }
        }
        errors
    }

    fn check(&self, new: &Value, old: Option<&Value>, is_status: bool) -> Vec<FieldError> {
        let mut errors = self.type_errors(new);
        if !errors.is_empty() {
            return errors;
        }
        if is_status {
            let status = new.get("status").zip(self.structural.property("status"));
            if let Some((status, schema)) = status {
                let old = old.and_then(|old| old.get("status"));
                errors.extend(schema.validate("status", status, old));
            }
        } else {
            errors.extend(self.structural.validate("", new, old));
            errors.extend(self.scale.iter().flat_map(|scale| scale.check_spec(new)));
        }
        errors.extend(self.scale.iter().flat_map(|scale| scale.check_status(new)));
        if !is_status {
            errors.extend(self.structural.validate_embedded(new));
        }
        if old.is_none_or(|old| self.structural.duplicates(old).is_empty()) {
            errors.extend(self.structural.duplicates(new));
        }
        if let Some(rules) = &self.rules {
            if errors.iter().any(blocks_rules) {
                let text = "some validation rules were not checked because the object was invalid; correct the \
                            existing errors to complete validation";
                errors.push(FieldError::invalid("<nil>", Value::Null, text));
            } else {
                errors.extend(rules.validate(new, old, &mut Budget::new(REQUEST_COST_MAX)).errors);
            }
        }
        errors
    }
}

fn without_metadata(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(object) = object.as_object_mut() {
        object.remove("metadata");
    }
    object
}

fn copy_or_remove(new: &mut Value, old: &Value, field: &str) {
    if let Some(object) = new.as_object_mut() {
        match old.get(field) {
            Some(value) => object.insert(field.to_owned(), value.clone()),
            None => object.remove(field),
        };
    }
}

impl Strategy for CustomStrategy {
    fn prepare_create(&self, _context: &Context<'_>, object: &mut Value) {
        if self.has_status {
            copy_or_remove(object, &Value::Null, "status");
        }
    }

    fn prepare_update(&self, context: &Context<'_>, new: &mut Value, old: &Value) {
        if context.subresource == "status" {
            let status = new.get("status").cloned();
            let managed = new["metadata"].get("managedFields").cloned();
            *new = old.clone();
            if let Some(object) = new.as_object_mut() {
                match status {
                    Some(status) => object.insert("status".to_owned(), status),
                    None => object.remove("status"),
                };
            }
            if let Some(managed) = managed {
                new["metadata"]["managedFields"] = managed;
            }
        } else if self.has_status {
            copy_or_remove(new, old, "status");
        }
    }

    fn validate(&self, _context: &Context<'_>, object: &Value) -> Vec<FieldError> {
        self.check(object, None, false)
    }

    fn validate_update(&self, context: &Context<'_>, new: &Value, old: &Value) -> Vec<FieldError> {
        self.check(new, Some(old), context.subresource == "status")
    }

    fn warnings(&self, object: &Value) -> Vec<String> {
        let finalizers = object["metadata"]["finalizers"].as_array().into_iter().flatten();
        finalizers.filter_map(Value::as_str).flat_map(finalizer_warnings).collect()
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn generation_changed(&self, new: &Value, old: &Value) -> bool {
        without_metadata(new) != without_metadata(old)
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }

    fn selects_by(&self, field: &str) -> bool {
        self.selectable.iter().any(|(name, _)| name == field)
    }

    fn selectable_field(&self, object: &Value, field: &str) -> Option<String> {
        let (_, path) = self.selectable.iter().find(|(name, _)| name == field)?;
        Some(match path.first(object) {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
        })
    }

    fn column_definitions(&self) -> Vec<Value> {
        self.columns.definitions()
    }

    fn cells(&self, object: &Value, now: i64) -> Vec<Value> {
        self.columns.cells(object, now)
    }

    fn scale(&self) -> Option<&Scale> {
        self.scale.as_ref()
    }

    fn reset_fields(&self, _resource: &Resource, subresource: &str) -> Reset {
        match subresource {
            "status" => Reset::Fields(&[&["metadata"], &["spec"]]),
            "" if self.has_status => Reset::Fields(&[&["status"]]),
            _ => Reset::NONE,
        }
    }
}

fn finalizer_warnings(finalizer: &str) -> Vec<String> {
    let at = "metadata.finalizers";
    let quoted = api::field::quote(finalizer);
    let mut warnings: Vec<String> = names::qualified_name(finalizer)
        .into_iter()
        .map(|wrong| format!("{at}: {quoted}: {wrong}"))
        .collect();
    let is_standard = matches!(finalizer, "orphan" | "foregroundDeletion" | "kubernetes");
    if !finalizer.contains('/') && !is_standard {
        let including = if finalizer.contains('.') { " including a path (/)" } else { "" };
        warnings.push(format!(
            "{at}: {quoted}: prefer a domain-qualified finalizer name{including} to avoid accidental conflicts with \
             other finalizer writers"
        ));
    }
    warnings
}

impl Scale {
    fn check_spec(&self, object: &Value) -> Vec<FieldError> {
        count_errors(object, &self.replicas)
    }

    fn check_status(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = count_errors(object, &self.status_replicas);
        if let Some(path) = &self.selector
            && let Some(value) = at_fields(object, path)
            && !value.is_string()
        {
            let text = format!("{path} accessor error: {value} is not of the type string");
            errors.push(FieldError::invalid(path.as_str(), "", text));
        }
        errors
    }
}

fn count_errors(object: &Value, path: &str) -> Vec<FieldError> {
    let value = at_fields(object, path);
    let wrong = match value.map(|value| (value, value.as_i64())) {
        None => return Vec::new(),
        Some((value, None)) => format!("{path} accessor error: {value} is not of the type int64"),
        Some((_, Some(count))) if count < 0 => "should be a non-negative integer".to_owned(),
        Some((_, Some(count))) if count > i64::from(i32::MAX) => {
            format!("should be less than or equal to {}", i32::MAX)
        }
        Some(_) => return Vec::new(),
    };
    vec![FieldError::invalid(path, value.cloned().unwrap_or_default(), wrong)]
}
