//! Defaults: for fields that are absent, and for nulls where null is not allowed. Twice is as once.

use serde_json::Value;

use super::Structural;

impl Structural {
    /// Fills in the defaults, also inside lists and maps.
    pub fn default(&self, value: &mut Value) {
        match value {
            Value::Object(object) => {
                for (name, property) in &self.properties {
                    let Some(default) = &property.default else { continue };
                    match object.get(&**name) {
                        None => {}
                        Some(Value::Null) if !property.nullable => {}
                        Some(_) => continue,
                    }
                    object.insert(name.to_string(), (**default).clone());
                }
                for (name, value) in object.iter_mut() {
                    if let Some(property) = self.properties.get(name.as_str()) {
                        property.default(value);
                    } else if let Some(additional) = self.additional_schema() {
                        additional.default_element(value);
                    }
                }
            }
            Value::Array(items) => {
                if let Some(item) = &self.items {
                    items.iter_mut().for_each(|value| item.default_element(value));
                }
            }
            _ => {}
        }
    }

    fn default_element(&self, value: &mut Value) {
        if value.is_null()
            && !self.nullable
            && let Some(default) = &self.default
        {
            *value = (**default).clone();
        }
        self.default(value);
    }

    /// Removes nulls where null is not allowed and no default would replace it.
    pub fn drop_nulls(&self, value: &mut Value) {
        match value {
            Value::Object(object) => {
                object.retain(|name, value| match self.field(name) {
                    Some(field) if value.is_null() => field.nullable || field.default.is_some(),
                    Some(field) => {
                        field.drop_nulls(value);
                        true
                    }
                    None => true,
                });
            }
            Value::Array(items) => {
                if let Some(item) = &self.items {
                    items.iter_mut().for_each(|value| item.drop_nulls(value));
                }
            }
            _ => {}
        }
    }
}
