//! Volumes and claims carry a finalizer that their controllers remove once nothing uses them.

use api::status::Status;
use serde_json::{Value, json};

use super::{Lookup, Plugin, Request};
use crate::registry::fields::*;

pub(super) struct StorageObjectInUseProtection;

impl Plugin for StorageObjectInUseProtection {
    fn admit(&self, request: &Request<'_>, object: &mut Value, _lookup: &dyn Lookup) -> Result<(), Status> {
        let finalizer = if request.creates("", "persistentvolumeclaims") {
            "kubernetes.io/pvc-protection"
        } else if request.creates("", "persistentvolumes") {
            "kubernetes.io/pv-protection"
        } else if request.creates("storage.k8s.io", "volumeattributesclasses") {
            "kubernetes.io/vac-protection"
        } else {
            return Ok(());
        };
        let finalizers = list(child(object, "metadata"), "finalizers");
        if !finalizers.iter().any(|own| own == finalizer) {
            finalizers.push(json!(finalizer));
        }
        Ok(())
    }
}
