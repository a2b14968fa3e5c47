//! The objects that every cluster has from its first second: namespaces, priority classes, the roles of RBAC, the
//! Services `kubernetes` and `kube-dns`. Made where missing; roles get back what was taken from them.

use anyhow::Context as _;
use api::{meta, status::Status};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde_json::Value;
use tracing::{info, warn};

use crate::{
    handlers::{
        Target,
        create::{Create, place},
        update::Update,
    },
    query::WriteOptions,
    registry,
    security::{GROUP_MASTERS, Identity, bootstrap_roles},
    state::State,
};

/// Roles with this annotation set to `false` are left as they are.
const AUTOUPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";
/// So many objects are written at a time: they share their syncs to disk.
const AT_ONCE: usize = 32;

/// Makes what is missing; returns when all of it is there.
pub(super) async fn reconcile(state: &State) -> anyhow::Result<()> {
    let user = Identity::internal("system:apiserver", &[GROUP_MASTERS]);
    let config = registry::bootstrap::BootstrapConfig {
        advertise_address: state.config.advertise_address,
        secure_port: state.config.advertise_port,
        service_cidr: state.config.service_cidr(),
        cluster_dns: state.config.cluster_dns(),
    };
    let mut objects = registry::bootstrap::objects(&config);
    if state.config.advertise_address.is_loopback() {
        warn!("the advertised address is a loopback address: Service default/kubernetes gets no endpoints");
        objects.retain(|object| !matches!(meta::kind(object), "Endpoints" | "EndpointSlice"));
    }
    let (namespaces, others): (Vec<Value>, Vec<Value>) =
        objects.into_iter().partition(|object| meta::kind(object) == "Namespace");
    let mut made = 0;
    for batch in [namespaces, bootstrap_roles(), others] {
        made += stream::iter(batch)
            .map(|object| ensure(state, &user, object))
            .buffer_unordered(AT_ONCE)
            .try_fold(0, async |sum, made| Ok(sum + usize::from(made)))
            .await?;
    }
    info!(made, "bootstrap objects are there");
    Ok(())
}

/// Whether the object had to be made.
async fn ensure(state: &State, user: &Identity, mut object: Value) -> anyhow::Result<bool> {
    let (group, version) = meta::group_and_version(meta::api_version(&object));
    let target = state
        .kinds
        .of_kind(group, version, meta::kind(&object))
        .with_context(|| format!("no resource for {} {}", meta::api_version(&object), meta::kind(&object)))?;
    let (namespace, name) = (meta::namespace(&object).to_owned(), meta::name(&object).to_owned());
    let named = || format!("{} {namespace}/{name}", target.resource.plural);
    if state.cache.get(&target.key(&namespace, &name)).is_some() {
        merge(state, user, &target, &namespace, &name, &object).await.with_context(named)?;
        return Ok(false);
    }
    place(&target, &namespace, &mut object).with_context(named)?;
    let create =
        Create { state, user, target: &target, namespace: &namespace, options: &WriteOptions::default() };
    match create.run(object, &mut Vec::new()).await {
        Ok(_) => Ok(true),
        // Another server of the cluster starts at the same time.
        Err(status) if status.reason == "AlreadyExists" => Ok(false),
        Err(status) => Err(status).with_context(named),
    }
}

async fn merge(
    state: &State,
    user: &Identity,
    target: &Target,
    namespace: &str,
    name: &str,
    wanted: &Value,
) -> Result<(), Status> {
    if !is_kept_current(target, namespace, name) {
        return Ok(());
    }
    let options = WriteOptions::default();
    let update =
        Update { state, user, target, subresource: "", namespace, name, options: &options, admits: true };
    update.run(&mut Vec::new(), &mut |old| Ok(merged(old, wanted))).await?;
    Ok(())
}

/// What is brought up to date at every start; the rest is made once and then belongs to the administrator.
fn is_kept_current(target: &Target, namespace: &str, name: &str) -> bool {
    let is_own_address = (namespace, name) == ("default", "kubernetes");
    match target.resource.plural.as_str() {
        "clusterroles" | "roles" | "clusterrolebindings" | "rolebindings" => true,
        "endpoints" | "endpointslices" => is_own_address,
        _ => false,
    }
}

fn merged(old: &Value, wanted: &Value) -> Value {
    let mut new = old.clone();
    match meta::kind(wanted) {
        "Endpoints" => new["subsets"] = wanted["subsets"].clone(),
        "EndpointSlice" => {
            for field in ["endpoints", "ports"] {
                new[field] = wanted[field].clone();
            }
        }
        _ if meta::annotation(old, AUTOUPDATE) == Some("false") => {}
        "ClusterRole" if wanted["aggregationRule"].is_object() => {}
        "ClusterRole" | "Role" => add_missing(&mut new, wanted, "rules"),
        "ClusterRoleBinding" | "RoleBinding" => add_missing(&mut new, wanted, "subjects"),
        _ => {}
    }
    new
}

fn add_missing(object: &mut Value, wanted: &Value, field: &str) {
    for item in wanted[field].as_array().into_iter().flatten() {
        if !object[field].is_array() {
            object[field] = Value::Array(Vec::new());
        }
        if let Some(items) = object[field].as_array_mut()
            && !items.contains(item)
        {
            items.push(item.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_role_gets_back_the_rules_that_were_taken_from_it() {
        let wanted = json!({"kind": "ClusterRole", "rules": [{"verbs": ["get"]}, {"verbs": ["list"]}]});
        let old = json!({"kind": "ClusterRole", "metadata": {}, "rules": [{"verbs": ["list"]}, {"verbs": ["own"]}]});
        let new = merged(&old, &wanted);
        assert_eq!(new["rules"], json!([{"verbs": ["list"]}, {"verbs": ["own"]}, {"verbs": ["get"]}]));
        let left_alone =
            json!({"kind": "ClusterRole", "metadata": {"annotations": {AUTOUPDATE: "false"}}, "rules": []});
        assert_eq!(merged(&left_alone, &wanted), left_alone);
    }
}
