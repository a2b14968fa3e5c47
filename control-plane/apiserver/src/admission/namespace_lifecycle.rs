//! Nothing is created in a namespace that is not there or is going away; some namespaces stay.

use api::status::Status;
use serde_json::Value;

use super::{Lookup, Operation, Plugin, Request};
use crate::registry::fields::text;

pub(super) struct NamespaceLifecycle;

const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];
/// Answers about the caller's rights are not content of a namespace.
const ACCESS_REVIEW: &str = "localsubjectaccessreviews";

impl Plugin for NamespaceLifecycle {
    fn admit(&self, request: &Request<'_>, _object: &mut Value, lookup: &dyn Lookup) -> Result<(), Status> {
        let namespace = request.namespace;
        let about_namespace = request.is_any_part_of("", "namespaces");
        if request.operation == Operation::Connect {
            return Ok(());
        }
        if namespace.is_empty() || about_namespace || request.target.resource.plural == ACCESS_REVIEW {
            return Ok(());
        }
        let Some(stored) = lookup.get("", "namespaces", "", namespace) else {
            return Err(Status::not_found("", "namespaces", namespace));
        };
        if request.operation == Operation::Create && text(&stored, "/status/phase") == "Terminating" {
            let why = format!(
                "unable to create new content in namespace {namespace} because it is being terminated"
            );
            let cause = format!("namespace {namespace} is being terminated");
            return Err(request.forbidden(why).with_cause(
                "NamespaceTerminating",
                &cause,
                "metadata.namespace",
            ));
        }
        Ok(())
    }

    fn validate(&self, request: &Request<'_>, _object: &Value, _lookup: &dyn Lookup) -> Result<(), Status> {
        if request.operation == Operation::Delete
            && request.is("", "namespaces")
            && IMMORTAL.contains(&request.name)
        {
            return Err(request.forbidden("this namespace may not be deleted"));
        }
        Ok(())
    }
}
