//! The object types that expressions of policies know: the request, the namespace, and what patches are made of.

use super::typing::Objects;
use crate::types::{Name, Type, TypeProvider};

pub(super) const VARIABLES: &str = "kubernetes.variables";

pub(super) struct PolicyTypes {
    pub variables: Vec<(Name, Type)>,
    pub patches: bool,
    pub schema: Option<Objects>,
}

fn is_patch(object: &str) -> bool {
    object == "Object" || object == "JSONPatch" || object.starts_with("Object.")
}

impl TypeProvider for PolicyTypes {
    fn has_type(&self, object: &str) -> bool {
        let known = matches!(
            object,
            VARIABLES
                | "kubernetes.AdmissionRequest"
                | "kubernetes.GroupVersionKind"
                | "kubernetes.GroupVersionResource"
                | "kubernetes.UserInfo"
                | "kubernetes.Namespace"
                | "kubernetes.NamespaceSpec"
                | "kubernetes.NamespaceStatus"
                | "kubernetes.NamespaceCondition"
                | "kubernetes.NamespaceMetadata"
        );
        known
            || (self.patches && is_patch(object))
            || self.schema.as_ref().is_some_and(|schema| schema.has(object))
    }

    fn field(&self, object: &str, field: &str) -> Option<Type> {
        if object == VARIABLES {
            return self.variables.iter().find(|(name, _)| &**name == field).map(|(_, ty)| ty.clone());
        }
        if self.patches && is_patch(object) {
            return if object == "JSONPatch" { json_patch(field) } else { Some(Type::Dyn) };
        }
        let known = match object {
            "kubernetes.AdmissionRequest" => request(field),
            "kubernetes.GroupVersionKind" => {
                matches!(field, "group" | "version" | "kind").then_some(Type::String)
            }
            "kubernetes.GroupVersionResource" => {
                matches!(field, "group" | "version" | "resource").then_some(Type::String)
            }
            "kubernetes.UserInfo" => user(field),
            _ => namespace(object, field),
        };
        known.or_else(|| self.schema.as_ref()?.field(object, field))
    }
}

fn json_patch(field: &str) -> Option<Type> {
    Some(match field {
        "op" | "path" | "from" => Type::String,
        "value" => Type::Dyn,
        _ => return None,
    })
}

fn request(field: &str) -> Option<Type> {
    Some(match field {
        "kind" | "requestKind" => Type::object("kubernetes.GroupVersionKind"),
        "resource" | "requestResource" => Type::object("kubernetes.GroupVersionResource"),
        "subResource" | "requestSubResource" | "name" | "namespace" | "operation" => Type::String,
        "userInfo" => Type::object("kubernetes.UserInfo"),
        "dryRun" => Type::Bool,
        "options" => Type::Dyn,
        _ => return None,
    })
}

fn user(field: &str) -> Option<Type> {
    Some(match field {
        "username" | "uid" => Type::String,
        "groups" => Type::list(Type::String),
        "extra" => Type::map(Type::String, Type::list(Type::String)),
        _ => return None,
    })
}

fn namespace(object: &str, field: &str) -> Option<Type> {
    Some(match (object, field) {
        ("kubernetes.Namespace", "metadata") => Type::object("kubernetes.NamespaceMetadata"),
        ("kubernetes.Namespace", "spec") => Type::object("kubernetes.NamespaceSpec"),
        ("kubernetes.Namespace", "status") => Type::object("kubernetes.NamespaceStatus"),
        ("kubernetes.NamespaceSpec", "finalizers") => Type::list(Type::String),
        ("kubernetes.NamespaceStatus", "phase") => Type::String,
        ("kubernetes.NamespaceStatus", "conditions") => {
            Type::list(Type::object("kubernetes.NamespaceCondition"))
        }
        ("kubernetes.NamespaceCondition", "lastTransitionTime") => Type::Timestamp,
        ("kubernetes.NamespaceCondition", "status" | "type" | "message" | "reason") => Type::String,
        ("kubernetes.NamespaceMetadata", field) => match field {
            "name" | "generateName" | "namespace" | "UID" | "resourceVersion" => Type::String,
            "labels" | "annotations" => Type::map(Type::String, Type::String),
            "creationTimestamp" | "deletionTimestamp" => Type::Timestamp,
            "deletionGracePeriodSeconds" | "generation" => Type::Int,
            "finalizers" => Type::list(Type::String),
            _ => return None,
        },
        _ => return None,
    })
}
