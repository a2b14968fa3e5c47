//! Nobody grants what they do not hold: writes of roles and bindings are checked against the writer's own rights. Nor does
//! anybody let admission read for them, as parameters of a policy, what they may not read themselves.

use api::{field::FieldError, meta, status::Status};
use serde_json::Value;

use super::Target;
use crate::{
    registry::fields::{at, same, text},
    security::{Attributes, GROUP_MASTERS, Identity, rbac},
    state::State,
    storage::keys,
};

/// The group of policies and their bindings.
const ADMISSION: &str = "admissionregistration.k8s.io";

/// 403 where a write of an RBAC object would grant more than its writer has; 422 where a policy or a binding names
/// parameters that its writer may not read. Other kinds pass.
pub fn check(
    state: &State,
    user: &Identity,
    target: &Target,
    namespace: &str,
    new: &Value,
    old: Option<&Value>,
) -> Result<(), Status> {
    let resource = &*target.resource;
    if resource.group == ADMISSION && !user.is_in(GROUP_MASTERS) {
        return may_read_params(state, user, target, new, old);
    }
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

fn may_read_params(
    state: &State,
    user: &Identity,
    target: &Target,
    new: &Value,
    old: Option<&Value>,
) -> Result<(), Status> {
    let has_changed = |path: &str| old.is_none_or(|old| !same(at(old, path), at(new, path)));
    let (path, refused) = match target.resource.plural.as_str() {
        "validatingadmissionpolicies" | "mutatingadmissionpolicies" => {
            let asks = at(new, "/spec/paramKind").is_object() && has_changed("/spec/paramKind");
            ("spec.paramKind", asks.then(|| check_param_kind(state, user, new)))
        }
        "validatingadmissionpolicybindings" | "mutatingadmissionpolicybindings" => {
            let asks = at(new, "/spec/paramRef").is_object()
                && (has_changed("/spec/paramRef") || has_changed("/spec/policyName"));
            ("spec.paramRef", asks.then(|| check_param_ref(state, user, &target.resource.plural, new)))
        }
        _ => return Ok(()),
    };
    match refused {
        Some(Err(why)) => Err(target.invalid(meta::name(new), vec![FieldError::forbidden(path, why)])),
        Some(Ok(())) | None => Ok(()),
    }
}

/// Group, version and resource of a `paramKind`; the resource is `*` where the kind is not known, and all three where
/// there is none.
fn resource_of(state: &State, kind: &Value) -> (bool, Attributes) {
    if !kind.is_object() {
        return (true, resource_attributes("*", "*", "*"));
    }
    let (group, version) = meta::group_and_version(text(kind, "/apiVersion"));
    match state.kinds.of_kind(group, version, text(kind, "/kind")) {
        Some(found) => (true, resource_attributes(group, version, &found.resource.plural)),
        None => (false, resource_attributes(group, version, "*")),
    }
}

fn resource_attributes(group: &str, version: &str, resource: &str) -> Attributes {
    Attributes {
        group: group.to_owned(),
        version: version.to_owned(),
        resource: resource.to_owned(),
        is_resource: true,
        ..Attributes::default()
    }
}

/// Who writes a policy must be able to read all objects of its `paramKind`.
fn check_param_kind(state: &State, user: &Identity, policy: &Value) -> Result<(), String> {
    let kind = at(policy, "/spec/paramKind");
    let (_, resource) = resource_of(state, kind);
    let all = "*".to_owned();
    let asked = Attributes { verb: "get".to_owned(), name: all.clone(), namespace: all, ..resource };
    if state.authorizer.authorize(user, &asked).allowed {
        return Ok(());
    }
    Err(format!(
        "user {} must have \"get\" permission on all objects of the referenced paramKind (kind={}, apiVersion={})",
        shown(user),
        text(kind, "/kind"),
        text(kind, "/apiVersion")
    ))
}

/// Who writes a binding must be able to read what its `paramRef` names.
fn check_param_ref(state: &State, user: &Identity, bindings: &str, binding: &Value) -> Result<(), String> {
    let (name, reference) = (text(binding, "/spec/policyName"), at(binding, "/spec/paramRef"));
    let policies = if bindings.starts_with("mutating") {
        "mutatingadmissionpolicies"
    } else {
        "validatingadmissionpolicies"
    };
    let policy =
        state.cache.get(&keys::object_key(ADMISSION, policies, None, name)).map(|policy| policy.value());
    let kind = policy.as_ref().map(|policy| at(policy, "/spec/paramKind").clone()).unwrap_or_default();
    let (is_known, resource) = resource_of(state, &kind);
    let named = text(reference, "/name");
    let verb = if named.is_empty() { "list" } else { "get" };
    let asked = Attributes {
        verb: verb.to_owned(),
        name: named.to_owned(),
        namespace: text(reference, "/namespace").to_owned(),
        ..resource
    };
    if state.authorizer.authorize(user, &asked).allowed {
        return Ok(());
    }
    let user = shown(user);
    let unclear = match &policy {
        None => format!("get policy {name}"),
        Some(_) if !is_known => {
            format!("resolve paramKind &{{{} {}}}", text(&kind, "/apiVersion"), text(&kind, "/kind"))
        }
        Some(_) => {
            return Err(format!(
                "user {user} does not have \"{verb}\" permission on the object referenced by paramRef"
            ));
        }
    };
    Err(format!(
        "unable to {unclear} to determine minimum required permissions and user {user} does not have \"{verb}\" \
         permission for all groups, versions and resources"
    ))
}

/// A user as upstream's messages show one.
fn shown(user: &Identity) -> String {
    let extra: Vec<String> =
        user.extra.iter().map(|(key, values)| format!("{key}:[{}]", values.join(" "))).collect();
    format!("&{{{} {} [{}] map[{}]}}", user.name, user.uid, user.groups.join(" "), extra.join(" "))
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
