//! Whole objects inside of objects (`x-kubernetes-embedded-resource`): their kind, version and metadata.

use serde_json::Value;

use super::Structural;
use crate::{
    field::{FieldError, child, index, key},
    names,
};

impl Structural {
    /// What is wrong with embedded objects, anywhere below a whole object.
    pub fn validate_embedded(&self, value: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        self.find_embedded(value, "", false, &mut errors);
        errors
    }

    fn find_embedded(&self, value: &Value, path: &str, is_embedded: bool, errors: &mut Vec<FieldError>) {
        match value {
            Value::Object(object) => {
                if is_embedded {
                    validate_type(value, path, errors);
                }
                for (name, value) in object {
                    if let Some(property) = self.property(name) {
                        property.find_embedded(value, &child(path, name), property.is_embedded, errors);
                    } else if let Some(additional) = self.additional_schema() {
                        additional.find_embedded(value, &key(path, name), additional.is_embedded, errors);
                    }
                }
            }
            Value::Array(items) => {
                let Some(item) = &self.items else { return };
                for (at, value) in items.iter().enumerate() {
                    item.find_embedded(value, &index(path, at), item.is_embedded, errors);
                }
            }
            _ => {}
        }
    }

    /// Applies `act` to the metadata of this object and of every embedded one.
    pub fn each_metadata(&self, value: &mut Value, act: &mut dyn FnMut(&str, &mut Value)) {
        self.metadata_below(value, "", true, act);
    }

    fn metadata_below(
        &self,
        value: &mut Value,
        path: &str,
        is_whole: bool,
        act: &mut dyn FnMut(&str, &mut Value),
    ) {
        match value {
            Value::Object(object) => {
                for (name, value) in object.iter_mut() {
                    if is_whole && name == "metadata" {
                        act(&child(path, name), value);
                    } else if let Some(property) = self.property(name) {
                        if property.has_embedded() {
                            property.metadata_below(value, &child(path, name), property.is_embedded, act);
                        }
                    } else if let Some(additional) = self.additional_schema()
                        && additional.has_embedded()
                    {
                        additional.metadata_below(value, &key(path, name), additional.is_embedded, act);
                    }
                }
            }
            Value::Array(items) => {
                let Some(item) = self.items.as_ref().filter(|item| item.has_embedded()) else { return };
                for (at, value) in items.iter_mut().enumerate() {
                    item.metadata_below(value, &index(path, at), item.is_embedded, act);
                }
            }
            _ => {}
        }
    }

    fn has_embedded(&self) -> bool {
        self.is_embedded
            || self.items.as_deref().is_some_and(Self::has_embedded)
            || self.properties.values().any(Self::has_embedded)
            || self.additional_schema().is_some_and(Self::has_embedded)
    }
}

fn validate_type(object: &Value, path: &str, errors: &mut Vec<FieldError>) {
    for name in ["apiVersion", "kind"] {
        let at = child(path, name);
        match object.get(name) {
            None => errors.push(FieldError::required(at, "")),
            Some(Value::String(text)) if text.is_empty() => {
                errors.push(FieldError::invalid(at, "", "must not be empty"));
            }
            Some(Value::String(text)) if name == "kind" => {
                let wrong = names::dns1035_label(&text.to_lowercase(), false);
                if !wrong.is_empty() {
                    let text_is =
                        format!("may have mixed case, but should otherwise match: {}", wrong.join(","));
                    errors.push(FieldError::invalid(at, text.as_str(), text_is));
                }
            }
            Some(Value::String(text)) if text.matches('/').count() > 1 => {
                let text_is = format!("unexpected GroupVersion string: {text}");
                errors.push(FieldError::invalid(at, text.as_str(), text_is));
            }
            Some(Value::String(_)) => {}
            Some(other) => errors.push(FieldError::invalid(at, other.clone(), "must be a string")),
        }
    }
    let metadata = &object["metadata"];
    let at = child(path, "metadata");
    for name in ["name", "generateName"] {
        let text = metadata[name].as_str().unwrap_or_default();
        for wrong in names::path_segment(text, name == "generateName") {
            errors.push(FieldError::invalid(child(&at, name), text, wrong));
        }
    }
    for (label, value) in metadata["labels"].as_object().into_iter().flatten() {
        let text = value.as_str().unwrap_or_default();
        let at = child(&at, "labels");
        let wrong = names::qualified_name(label);
        errors.extend(wrong.into_iter().map(|why| FieldError::invalid(at.clone(), label.as_str(), why)));
        let wrong = names::label_value(text);
        errors.extend(wrong.into_iter().map(|why| FieldError::invalid(at.clone(), text, why)));
    }
    for annotation in metadata["annotations"].as_object().into_iter().flatten().map(|(name, _)| name) {
        let wrong = names::qualified_name(&annotation.to_lowercase());
        let at = child(&at, "annotations");
        errors.extend(wrong.into_iter().map(|why| FieldError::invalid(at.clone(), annotation.as_str(), why)));
    }
}
