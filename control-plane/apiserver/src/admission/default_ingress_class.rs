//! Ingresses without a class get the cluster's default one.

use api::status::Status;
use serde_json::Value;

use super::{Lookup, Plugin, Request, default_storage_class::newest_marked};
use crate::registry::fields::*;

pub(super) struct DefaultIngressClass;

const GROUP: &str = "networking.k8s.io";
const DEFAULT_ANNOTATION: &str = "ingressclass.kubernetes.io/is-default-class";
const OLD_ANNOTATION: &str = "kubernetes.io/ingress.class";

impl Plugin for DefaultIngressClass {
    fn admit(&self, request: &Request<'_>, object: &mut Value, lookup: &dyn Lookup) -> Result<(), Status> {
        let has_class = present(object, "/spec/ingressClassName")
            || entries(object, "/metadata/annotations").contains_key(OLD_ANNOTATION);
        if !request.creates(GROUP, "ingresses") || has_class {
            return Ok(());
        }
        if let Some(class) = newest_marked(lookup.list(GROUP, "ingressclasses", ""), &[DEFAULT_ANNOTATION]) {
            set(child(object, "spec"), "ingressClassName", class);
        }
        Ok(())
    }
}
