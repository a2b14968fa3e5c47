//! The objects that every cluster has from its first second: namespaces, priority classes, the roles of RBAC, the
//! Services `kubernetes` and `kube-dns`. Made where missing; roles get back what was taken from them.

use anyhow::Context as _;
use api::{meta, status::Status};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde_json::Value;
use tracing::{info, warn};

use super::roles;
use crate::{
    flow_control,
    handlers::{
        Target,
        own::{self, OwnUpdate},
    },
    registry::{self, fields::same},
    security::{GROUP_MASTERS, Identity, bootstrap_roles},
    state::State,
};

/// So many objects are written at a time: they share their syncs to disk.
const AT_ONCE: usize = 256;

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
    // Nothing else waits for another: each batch would be another sync to disk.
    let others = bootstrap_roles().into_iter().chain(others).chain(flow_control::objects::bootstrap());
    for batch in [namespaces, others.collect()] {
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
pub(crate) async fn ensure(state: &State, user: &Identity, object: Value) -> anyhow::Result<bool> {
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
    own::create(state, user, &target, &namespace, object).await.with_context(named)
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
    if let Some(stored) = state.cache.get(&target.key(namespace, name)) {
        let stored = target.value(&stored);
        if roles::points_elsewhere(&stored, wanted) {
            return recreate(state, user, target, namespace, name, wanted.clone()).await;
        }
        if same(&merged(&stored, wanted), &stored) {
            return Ok(());
        }
    }
    let update = OwnUpdate { state, user, target, subresource: "", namespace, name, admits: true };
    update.run(&mut |object| *object = merged(object, wanted)).await.map(drop)
}

/// A binding's role cannot be changed: a binding that points to another role goes and comes back.
async fn recreate(
    state: &State,
    user: &Identity,
    target: &Target,
    namespace: &str,
    name: &str,
    wanted: Value,
) -> Result<(), Status> {
    let key = target.key(namespace, name);
    if let Some(stored) = state.cache.get(&key) {
        let deleted = state.cache.delete(&key, stored.revision()).await;
        deleted.map_err(|error| target.storage_error(name, error))?;
    }
    own::create(state, user, target, namespace, wanted).await.map(drop)
}

/// What is brought up to date at every start; the rest is made once and then belongs to the administrator.
fn is_kept_current(target: &Target, namespace: &str, name: &str) -> bool {
    let is_own_address = (namespace, name) == ("default", "kubernetes");
    match target.resource.plural.as_str() {
        "clusterroles" | "roles" | "clusterrolebindings" | "rolebindings" => true,
        "flowschemas" | "prioritylevelconfigurations" => true,
        "endpoints" | "endpointslices" => is_own_address,
        _ => false,
    }
}

fn merged(old: &Value, wanted: &Value) -> Value {
    match meta::kind(wanted) {
        "Endpoints" => with_fields(old, wanted, &["subsets"]),
        "EndpointSlice" => with_fields(old, wanted, &["endpoints", "ports"]),
        "FlowSchema" | "PriorityLevelConfiguration" => flow_control::objects::reconciled(old, wanted),
        "ClusterRole" | "Role" | "ClusterRoleBinding" | "RoleBinding" => roles::reconciled(old, wanted),
        _ => old.clone(),
    }
}

fn with_fields(old: &Value, wanted: &Value, fields: &[&str]) -> Value {
    let mut new = old.clone();
    for field in fields {
        new[*field] = wanted[*field].clone();
    }
    new
}
