//! Pruning: drops the fields that the schema does not specify, and says which.

use serde_json::Value;

use super::{Additional, Structural};

/// The fields of a whole object that no schema needs to specify.
const META_FIELDS: [&str; 3] = ["apiVersion", "kind", "metadata"];
/// How many dropped fields are named; a document of nothing else must not answer with itself.
const NAMED_MAX: usize = 100;

/// Collects the paths of what is dropped.
struct Pruner {
    path: String,
    dropped: Vec<String>,
}

impl Structural {
    /// Drops unknown fields of a whole object; returns their paths (`spec.a[0].b`), sorted.
    pub fn prune(&self, object: &mut Value) -> Vec<String> {
        let mut pruner = Pruner { path: String::new(), dropped: Vec::new() };
        if self.preserves_unknown {
            pruner.skip(object, self, true);
        } else {
            pruner.prune(object, Some(self), true);
        }
        pruner.dropped.sort();
        pruner.dropped
    }

    /// Drops unknown fields of a value that is no whole object unless the schema says so.
    pub fn prune_value(&self, value: &mut Value) {
        let mut pruner = Pruner { path: String::new(), dropped: Vec::new() };
        pruner.prune(value, Some(self), self.is_embedded);
    }
}

impl Pruner {
    fn below(&mut self, name: &str, act: impl FnOnce(&mut Self)) {
        let length = self.path.len();
        if length > 0 {
            self.path.push('.');
        }
        self.path.push_str(name);
        act(self);
        self.path.truncate(length);
    }

    fn at(&mut self, index: usize, act: impl FnOnce(&mut Self)) {
        let length = self.path.len();
        self.path.push_str(&format!("[{index}]"));
        act(self);
        self.path.truncate(length);
    }

    fn name(&mut self, field: &str) {
        if self.dropped.len() < NAMED_MAX {
            self.below(field, |this| this.dropped.push(this.path.clone()));
        }
    }

    /// `is_whole`: the value is an object of the API, whose kind, version and metadata stay.
    fn prune(&mut self, value: &mut Value, schema: Option<&Structural>, is_whole: bool) {
        if let Some(schema) = schema
            && schema.preserves_unknown
        {
            self.skip(value, schema, is_whole);
            return;
        }
        match value {
            Value::Object(object) => object.retain(|name, value| {
                if is_whole && META_FIELDS.contains(&name.as_str()) {
                    return true;
                }
                let property = schema.and_then(|schema| schema.property(name));
                let additional = schema.and_then(|schema| schema.additional.as_ref());
                let inner = match (property, additional) {
                    (Some(property), _) => Some(property),
                    (None, Some(Additional::Schema(schema))) => Some(&**schema),
                    (None, Some(Additional::Allowed(_))) => None,
                    (None, None) => {
                        self.name(name);
                        return false;
                    }
                };
                self.below(name, |this| {
                    this.prune(value, inner, inner.is_some_and(|inner| inner.is_embedded));
                });
                true
            }),
            Value::Array(items) => {
                let inner = schema.and_then(|schema| schema.items.as_deref());
                for (index, value) in items.iter_mut().enumerate() {
                    self.at(index, |this| {
                        this.prune(value, inner, inner.is_some_and(|inner| inner.is_embedded));
                    });
                }
            }
            _ => {}
        }
    }

    /// Everything unknown stays here; what is specified below is pruned all the same.
    fn skip(&mut self, value: &mut Value, schema: &Structural, is_whole: bool) {
        match value {
            Value::Object(object) => {
                for (name, value) in object.iter_mut() {
                    if is_whole && META_FIELDS.contains(&name.as_str()) {
                        continue;
                    }
                    let inner = match (schema.property(name), &schema.additional) {
                        (Some(property), _) => Some(property),
                        (None, Some(Additional::Schema(schema))) => Some(&**schema),
                        (None, Some(Additional::Allowed(_))) => None,
                        (None, None) => continue,
                    };
                    self.below(name, |this| {
                        this.prune(value, inner, inner.is_some_and(|inner| inner.is_embedded));
                    });
                }
            }
            Value::Array(items) => {
                let Some(inner) = schema.items.as_deref() else { return };
                for (index, value) in items.iter_mut().enumerate() {
                    self.at(index, |this| this.skip(value, inner, inner.is_embedded));
                }
            }
            _ => {}
        }
    }
}
