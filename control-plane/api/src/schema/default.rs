//! Defaults and requirements that the table itself states. Rules of single kinds are the registry's.

use serde_json::Value;

use super::{Schema, Shape, Type, TypeId, is_zero};
use crate::field::{FieldError, child, index, key};

impl Schema {
    /// Fills fields that have a `+default` and are absent or null, also inside lists and maps.
    pub fn default(&self, ty: TypeId, value: &mut Value) {
        match &self.get(ty).structural {
            Some(structural) => structural.default(value),
            None => self.default_object(self.get(ty), value),
        }
    }

    /// Takes out and adds what decoding would: zeros in optional fields that are no pointers in Go, and structs that are
    /// none. An object that rules changed is stored in the form that it will be read in, whatever the client's encoding.
    /// Scalars that must be there and that no rule missed, such as those of a node without a kubelet, become zero, as Go
    /// writes them: typed clients refuse an object without them.
    pub fn canonicalize(&self, ty: TypeId, value: &mut Value) {
        let (ty, Value::Object(object)) = (self.get(ty), value) else { return };
        object.retain(|name, value| {
            let Some(field) = ty.field(name) else { return true };
            let shape = self.resolve(&field.shape);
            match (shape, &mut *value) {
                (Shape::Ref(id), value) => self.canonicalize(*id, value),
                (Shape::List(item), Value::Array(items)) => {
                    if let Shape::Ref(id) = self.resolve(item) {
                        items.iter_mut().for_each(|item| self.canonicalize(*id, item));
                    }
                }
                (Shape::Map(item), Value::Object(entries)) => {
                    if let Shape::Ref(id) = self.resolve(item) {
                        entries.values_mut().for_each(|item| self.canonicalize(*id, item));
                    }
                }
                _ => {}
            }
            !field.omits_zero() || !is_zero(shape, value)
        });
        self.state(ty, object);
        for field in ty.fields.iter().filter(|field| field.required && !field.pointer) {
            if is_scalar(self.resolve(&field.shape)) && !object.contains_key(field.name.as_ref()) {
                object.insert(field.name.as_ref().to_owned(), self.zero(&field.shape));
            }
        }
    }

    /// Names required fields that are absent or null, also inside lists and maps; an empty value counts as present.
    pub fn required(&self, ty: TypeId, value: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        if self.get(ty).structural.is_none() {
            self.required_object(self.get(ty), value, "", &mut errors);
        }
        errors
    }

    fn default_object(&self, ty: &Type, value: &mut Value) {
        let Value::Object(object) = value else {
            return;
        };
        for field in &ty.fields {
            match (object.get_mut(field.name.as_ref()), &field.default) {
                (None | Some(Value::Null), Some(default)) => {
                    let default =
                        serde_json::from_str(default).expect("xtask checked that defaults are JSON");
                    object.insert(field.name.as_ref().to_owned(), default);
                }
                (Some(value), _) => self.default_value(&field.shape, value),
                _ => {}
            }
        }
    }

    fn default_value(&self, shape: &Shape, value: &mut Value) {
        match (self.resolve(shape), value) {
            (Shape::Ref(id), value) => self.default_object(self.get(*id), value),
            (Shape::List(item), Value::Array(items)) => {
                items.iter_mut().for_each(|value| self.default_value(item, value));
            }
            (Shape::Map(item), Value::Object(entries)) => {
                entries.values_mut().for_each(|value| self.default_value(item, value));
            }
            _ => {}
        }
    }

    fn required_object(&self, ty: &Type, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
        let Value::Object(object) = value else {
            return;
        };
        for field in &ty.fields {
            match object.get(field.name.as_ref()) {
                None | Some(Value::Null) if field.required => {
                    errors.push(FieldError::required(child(path, &field.name), ""));
                }
                None | Some(Value::Null) => {}
                Some(value) => self.required_value(&field.shape, value, &child(path, &field.name), errors),
            }
        }
    }

    fn required_value(&self, shape: &Shape, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
        match (self.resolve(shape), value) {
            (Shape::Ref(id), value) => self.required_object(self.get(*id), value, path, errors),
            (Shape::List(item), Value::Array(items)) => {
                for (i, value) in items.iter().enumerate() {
                    self.required_value(item, value, &index(path, i), errors);
                }
            }
            (Shape::Map(item), Value::Object(entries)) => {
                for (name, value) in entries {
                    self.required_value(item, value, &key(path, name), errors);
                }
            }
            _ => {}
        }
    }
}

fn is_scalar(shape: &Shape) -> bool {
    matches!(
        shape,
        Shape::String | Shape::Bytes | Shape::Boolean | Shape::Int32 | Shape::Int64 | Shape::Double
    )
}
