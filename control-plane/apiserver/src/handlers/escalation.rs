//! Nobody grants what they do not hold: writes of roles and bindings are checked against the writer's own rights.

use api::status::Status;
use serde_json::Value;

use super::Target;
use crate::{
    registry::fields::same,
    security::{Identity, rbac},
    state::State,
};

/// 403 where a write of an RBAC object would grant more than its writer has. Other kinds pass.
pub fn check(
    state: &State,
    user: &Identity,
    target: &Target,
    namespace: &str,
    new: &Value,
    old: Option<&Value>,
) -> Result<(), Status> {
    let resource = &*target.resource;
    if resource.group != rbac::GROUP {
        return Ok(());
    }
    if old.is_some_and(|old| changes_only_for_collection(new, old)) {
        return Ok(());
    }
    if !matches!(resource.plural.as_str(), "roles" | "clusterroles") {
        return state.authorizer.check_binding_write(user, namespace, new);
    }
    let name = if old.is_some() { api::meta::name(new) } else { "" };
    state
        .authorizer
        .check_role_write(user, namespace, name, new, old)
        .map_err(|why| Status::forbidden(&resource.group, &resource.plural, api::meta::name(new), why))
}

/// Whether a write changes nothing but what the garbage collector does: owners and finalizers. A label counts: it can
/// make a role part of another.
fn changes_only_for_collection(new: &Value, old: &Value) -> bool {
    let content = |object: &Value| {
        let mut object = object.clone();
        for field in ["ownerReferences", "finalizers", "selfLink", "managedFields", "resourceVersion"] {
            api::meta::metadata_mut(&mut object).remove(field);
        }
        object
    };
    same(&content(new), &content(old))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_label_is_no_work_of_the_garbage_collector() {
        let old = json!({"metadata": {"name": "r", "finalizers": ["a"]}, "rules": []});
        let without = json!({"metadata": {"name": "r"}});
        assert!(changes_only_for_collection(&without, &old));
        let labelled = json!({"metadata": {"name": "r", "labels": {"a": "b"}}});
        assert!(!changes_only_for_collection(&labelled, &old));
    }
}
