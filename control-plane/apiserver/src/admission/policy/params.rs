//! Parameters: the objects that a binding names for its policy.

use api::{meta, selector::LabelSelector};
use serde_json::Value;

use super::source::Common;
use crate::{handlers::Target, kinds::Kinds, registry::fields::*, storage::cache::Cache};

/// The resource of a policy's parameters, `None` where it has none.
///
/// # Errors
/// A kind that the server does not know.
pub(super) fn kind_of(policy: &Common, kinds: &Kinds) -> Result<Option<Target>, String> {
    let Some((api_version, kind)) = &policy.param_kind else { return Ok(None) };
    let (group, version) = meta::group_and_version(api_version);
    let target = kinds.of_kind(group, version, kind).ok_or_else(|| {
        format!("failed to find resource referenced by paramKind: '{group}/{version}, Kind={kind}'")
    })?;
    Ok(Some(target))
}

/// The parameters of a binding: one null where the policy or the binding has none.
///
/// # Errors
/// Why the binding cannot be applied.
pub(super) async fn collect(
    cache: &Cache,
    kind: Option<&Target>,
    reference: &Value,
    namespace: &str,
) -> Result<Vec<Value>, String> {
    let Some(kind) = kind else { return Ok(vec![Value::Null]) };
    if reference.is_null() {
        return Ok(vec![Value::Null]);
    }
    let (name, own_namespace) = (text(reference, "/name"), text(reference, "/namespace"));
    let namespace = match (kind.resource.namespaced, own_namespace, namespace) {
        (false, "", _) => "",
        (false, ..) => {
            return Err("paramRef.namespace must not be provided for a cluster-scoped `paramKind`".to_owned());
        }
        (true, "", "") => {
            let why =
                "cannot use namespaced paramRef in policy binding that matches cluster-scoped resources";
            return Err(why.to_owned());
        }
        (true, "", request) => request,
        (true, own, _) => own,
    };
    let selector = at(reference, "/selector");
    let params = match (name, selector) {
        ("", Value::Null) => return Err("one of name or selector must be provided".to_owned()),
        ("", selector) => {
            let selector = LabelSelector::from_value(selector)?;
            let prefix = kind.list_prefix(namespace);
            let mut params = Vec::new();
            for object in cache.list(&prefix).iter() {
                if selector.matches_with(|key| object.meta().label(key)) {
                    params.push(kind.shown(object).await.map_err(|status| status.message)?);
                }
            }
            params
        }
        (_, selector) if !selector.is_null() => {
            return Err("paramRef.name and paramRef.selector are mutually exclusive".to_owned());
        }
        (name, _) => match cache.get(&kind.key(namespace, name)) {
            Some(object) => vec![kind.shown(&object).await.map_err(|status| status.message)?],
            None => Vec::new(),
        },
    };
    if params.is_empty() && text(reference, "/parameterNotFoundAction") == "Deny" {
        return Err("no params found for policy binding with `Deny` parameterNotFoundAction".to_owned());
    }
    Ok(params)
}
