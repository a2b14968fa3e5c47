//! Nobody grants what they do not hold: writes of roles and bindings are checked against the writer's own rights.

use api::status::Status;
use serde_json::Value;

use super::Target;
use crate::{
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
    let is_role = matches!(resource.plural.as_str(), "roles" | "clusterroles");
    let grants_the_same = old.is_some_and(|old| {
        let fields: &[&str] = if is_role { &["rules", "aggregationRule"] } else { &["subjects", "roleRef"] };
        fields.iter().all(|field| old[*field] == new[*field])
    });
    if grants_the_same {
        return Ok(());
    }
    let checked = if is_role {
        state.authorizer.check_role_write(user, namespace, new)
    } else {
        state.authorizer.check_binding_write(user, namespace, new)
    };
    checked.map_err(|why| Status::forbidden(&resource.group, &resource.plural, api::meta::name(new), why))
}
