//! A claim grows only where its storage class says that volumes can.

use api::status::Status;
use serde_json::Value;

use super::{Lookup, Operation, Plugin, Request};
use crate::registry::fields::*;

pub(super) struct PersistentVolumeClaimResize;

impl Plugin for PersistentVolumeClaimResize {
    fn validate(&self, request: &Request<'_>, object: &Value, lookup: &dyn Lookup) -> Result<(), Status> {
        let is_update = request.operation == Operation::Update && request.is("", "persistentvolumeclaims");
        let Some(old) = request.old.filter(|_| is_update) else { return Ok(()) };
        let size =
            |claim| quantity(at(claim, "/spec/resources/requests/storage")).map_or(0, |size| size.milli());
        if size(object) <= size(old) {
            return Ok(());
        }
        if text(old, "/status/phase") != "Bound" {
            return Err(request.forbidden("Only bound persistent volume claims can be expanded"));
        }
        let (class, old_class) = (class_of(object), class_of(old));
        let expands = |class: &str| {
            let class = lookup.get("storage.k8s.io", "storageclasses", "", class);
            class.is_some_and(|class| flag(&class, "/allowVolumeExpansion"))
        };
        if class.is_empty() || class != old_class || !expands(class) {
            return Err(request.forbidden(
                "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must \
                 support resize",
            ));
        }
        Ok(())
    }
}

fn class_of(claim: &Value) -> &str {
    let annotation = entries(claim, "/metadata/annotations").get("volume.beta.kubernetes.io/storage-class");
    annotation.and_then(Value::as_str).unwrap_or_else(|| text(claim, "/spec/storageClassName"))
}
