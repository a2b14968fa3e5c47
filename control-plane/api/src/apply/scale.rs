//! The owners of `/scale`: of the parent's fields only the replica count is seen there, as `spec.replicas` of a Scale.

use serde_json::Value;

use super::{
    element::PathElement,
    managed::{Entry, Fields, Managed},
    set::FieldSet,
};

const SCALE_VERSION: &str = "autoscaling/v1";

/// The owners of one object, seen from its scale.
pub struct ScaleFields<'a> {
    /// `metadata.managedFields` of the parent, or null.
    pub parent: &'a Value,
    /// The version in which the parent was asked for.
    pub api_version: &'a str,
    /// Where the replica count is in a version of the parent; `None` for a version that is not served.
    pub replicas: &'a (dyn Fn(&str) -> Option<Vec<String>> + Sync),
}

fn path_of(names: &[String]) -> Vec<PathElement> {
    names.iter().map(|name| PathElement::field(name)).collect()
}

fn scale_path() -> Vec<PathElement> {
    vec![PathElement::field("spec"), PathElement::field("replicas")]
}

impl ScaleFields<'_> {
    /// `metadata.managedFields` of the Scale: `None` where nobody owns the count.
    ///
    /// # Errors
    /// When the parent's entries cannot be read.
    pub fn to_scale(&self) -> Result<Option<Value>, String> {
        let mut scale = Managed::default();
        for (id, mut entry) in Managed::decode_stored(self.parent)?.0 {
            let Some(path) = (self.replicas)(&entry.api_version) else { continue };
            if !entry.fields.set()?.contains(&path_of(&path)) {
                continue;
            }
            let mut id = id;
            if id.updates {
                id.api_version = SCALE_VERSION.to_owned();
            }
            let fields = Fields::Set(FieldSet::of([scale_path()]));
            scale.0.insert(id, Entry { api_version: SCALE_VERSION.to_owned(), fields, ..entry });
        }
        Ok(scale.encode())
    }

    /// `metadata.managedFields` of the parent after its Scale was written.
    ///
    /// # Errors
    /// When either's entries cannot be read.
    pub fn to_parent(&self, scale: &Value) -> Result<Option<Value>, String> {
        let mut scale = Managed::decode_stored(scale)?;
        let mut parent = Managed::default();
        for (id, mut entry) in Managed::decode_stored(self.parent)?.0 {
            let Some(path) = (self.replicas)(&entry.api_version) else { continue };
            let path = path_of(&path);
            let set = entry.fields.set()?;
            if set.contains(&path) {
                let mut in_scale = id.clone();
                if in_scale.updates {
                    in_scale.api_version = SCALE_VERSION.to_owned();
                }
                match scale.0.remove(&in_scale) {
                    Some(written) => entry.time = written.time,
                    None => *set = set.difference(&FieldSet::of([path])),
                }
            }
            parent.0.insert(id, entry);
        }
        parent.drop_empty();
        for (mut id, mut entry) in scale.0 {
            let Some(path) = (self.replicas)(self.api_version) else { continue };
            if !entry.fields.set()?.contains(&scale_path()) {
                continue;
            }
            if id.updates {
                id.api_version = self.api_version.to_owned();
            }
            let gained = FieldSet::of([path_of(&path)]);
            let entry =
                Entry { api_version: self.api_version.to_owned(), fields: Fields::Set(gained), ..entry };
            parent.0.insert(id, entry);
        }
        Ok(parent.encode())
    }
}
