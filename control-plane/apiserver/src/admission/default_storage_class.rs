//! Claims without a class get the cluster's default one; claims grow only where their class can.

use api::status::Status;
use serde_json::Value;

use super::{Lookup, Operation, Plugin, Request};
use crate::registry::{fields::*, storage::DEFAULT_CLASS_ANNOTATIONS};

pub(super) struct DefaultStorageClass;

const GROUP: &str = "storage.k8s.io";
const CLASSES: &str = "storageclasses";
const OLD_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";

impl Plugin for DefaultStorageClass {
    fn admit(&self, request: &Request<'_>, object: &mut Value, lookup: &dyn Lookup) -> Result<(), Status> {
        let has_class = present(object, "/spec/storageClassName")
            || entries(object, "/metadata/annotations").contains_key(OLD_ANNOTATION);
        if !request.creates("", "persistentvolumeclaims") || has_class {
            return Ok(());
        }
        if let Some(class) = newest_marked(lookup.list(GROUP, CLASSES, ""), &DEFAULT_CLASS_ANNOTATIONS) {
            set(child(object, "spec"), "storageClassName", class);
        }
        Ok(())
    }

    fn validate(&self, request: &Request<'_>, object: &Value, lookup: &dyn Lookup) -> Result<(), Status> {
        let Some(old) = request.old else { return Ok(()) };
        if request.operation != Operation::Update || !request.is("", "persistentvolumeclaims") {
            return Ok(());
        }
        let size = |claim: &Value| quantity(at(claim, "/spec/resources/requests/storage")).map(|q| q.milli());
        if size(object) <= size(old) {
            return Ok(());
        }
        let class = lookup.get(GROUP, CLASSES, "", text(old, "/spec/storageClassName"));
        if class.is_some_and(|class| flag(&class, "/allowVolumeExpansion")) {
            return Ok(());
        }
        Err(request.forbidden(
            "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support \
             resize",
        ))
    }
}

/// The name of the newest object that one of the annotations marks as the default.
pub(super) fn newest_marked(objects: Vec<Value>, annotations: &[&str]) -> Option<String> {
    let is_marked = |object: &&Value| {
        let own = entries(object, "/metadata/annotations");
        annotations.iter().any(|key| own.get(*key).is_some_and(|value| value == "true"))
    };
    let created = |object: &&Value| text(object, "/metadata/creationTimestamp").to_owned();
    let newest = objects.iter().filter(is_marked).max_by_key(created);
    newest.map(|object| text(object, "/metadata/name").to_owned())
}
