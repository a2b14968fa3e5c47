//! Built-in admission: what the cluster adds to an object, and what it refuses whatever the object's own rules say.
//! Plugins run in upstream's order, first all that change the object, then, after validation, all that judge it.
//!
//! A plugin is a pure function of the request, the object and what a [`Lookup`] finds; none of them writes.

mod default_ingress_class;
mod default_storage_class;
mod default_toleration_seconds;
mod limit_ranger;
mod namespace_lifecycle;
mod node_restriction;
mod pod_topology_labels;
mod priority;
mod resource_quota;
mod runtime_class;
mod service_account;
mod storage_object_in_use_protection;
mod taint_nodes_by_condition;
#[cfg(test)]
mod tests;

use std::{fmt, sync::Arc};

use api::{schema::Resource, status::Status};
use serde_json::Value;

use crate::{
    registry::fields::text,
    security::Identity,
    storage::{cache::Cache, keys},
};

/// What a request does, in admission's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
    Delete,
    Connect,
}

/// One request. `old` is the stored object on update and delete.
pub struct Request<'a> {
    pub operation: Operation,
    pub resource: &'a Resource,
    /// Empty for the object itself.
    pub subresource: &'a str,
    /// Empty for cluster-scoped resources.
    pub namespace: &'a str,
    pub name: &'a str,
    pub user: &'a Identity,
    pub old: Option<&'a Value>,
    pub dry_run: bool,
}

impl Request<'_> {
    /// Whether the request is about this resource itself, and not one of its subresources.
    fn is(&self, group: &str, plural: &str) -> bool {
        self.is_any_part_of(group, plural) && self.subresource.is_empty()
    }

    fn is_any_part_of(&self, group: &str, plural: &str) -> bool {
        self.resource.group == group && self.resource.plural == plural
    }

    fn creates(&self, group: &str, plural: &str) -> bool {
        self.operation == Operation::Create && self.is(group, plural)
    }

    /// 403 with upstream's text: `pods "web" is forbidden: why`.
    fn forbidden(&self, why: impl fmt::Display) -> Status {
        Status::forbidden(&self.resource.group, &self.resource.plural, self.name, why)
    }
}

/// How plugins see the rest of the cluster: stored objects, as fresh as the watch cache.
pub trait Lookup: Send + Sync {
    /// One object; the namespace is empty for cluster-scoped resources.
    fn get(&self, group: &str, plural: &str, namespace: &str, name: &str) -> Option<Value>;
    /// All objects of a namespace, or of all namespaces where it is empty.
    fn list(&self, group: &str, plural: &str, namespace: &str) -> Vec<Value>;
}

impl Lookup for Cache {
    fn get(&self, group: &str, plural: &str, namespace: &str, name: &str) -> Option<Value> {
        let namespace = Some(namespace).filter(|namespace| !namespace.is_empty());
        let key = keys::object_key(group, plural, namespace, name);
        Self::get(self, &key).map(|object| object.value())
    }

    fn list(&self, group: &str, plural: &str, namespace: &str) -> Vec<Value> {
        let namespace = Some(namespace).filter(|namespace| !namespace.is_empty());
        let prefix = keys::list_prefix(group, plural, namespace);
        Self::list(self, &prefix).iter().map(|object| object.value()).collect()
    }
}

/// One plugin. `admit` may change the object, `validate` only judges; most do one of the two.
trait Plugin: Send + Sync {
    fn admit(&self, _request: &Request<'_>, _object: &mut Value, _lookup: &dyn Lookup) -> Result<(), Status> {
        Ok(())
    }

    fn validate(&self, _request: &Request<'_>, _object: &Value, _lookup: &dyn Lookup) -> Result<(), Status> {
        Ok(())
    }
}

/// Upstream's order; quota comes last, so that only what everything else lets pass is counted.
static PLUGINS: [&dyn Plugin; 13] = [
    &namespace_lifecycle::NamespaceLifecycle,
    &node_restriction::NodeRestriction,
    &limit_ranger::LimitRanger,
    &service_account::ServiceAccount,
    &taint_nodes_by_condition::TaintNodesByCondition,
    &priority::Priority,
    &default_toleration_seconds::DefaultTolerationSeconds,
    &default_storage_class::DefaultStorageClass,
    &storage_object_in_use_protection::StorageObjectInUseProtection,
    &runtime_class::RuntimeClass,
    &default_ingress_class::DefaultIngressClass,
    &pod_topology_labels::PodTopologyLabels,
    &resource_quota::ResourceQuota,
];

/// The chain of plugins over one view of the cluster.
pub struct Admission {
    lookup: Arc<dyn Lookup>,
}

impl Admission {
    pub fn new<L: Lookup + 'static>(lookup: Arc<L>) -> Self {
        Self { lookup }
    }

    /// Lets every plugin change the object.
    ///
    /// # Errors
    /// The first refusal.
    pub async fn mutate(&self, request: &Request<'_>, object: &mut Value) -> Result<(), Status> {
        if request.creates("", "pods") && text(object, "/spec/serviceAccountName").is_empty() {
            service_account::wait_for_default(request.namespace, &*self.lookup).await;
        }
        PLUGINS.iter().try_for_each(|plugin| plugin.admit(request, object, &*self.lookup))
    }

    /// Asks every plugin whether the finished object may be stored, or the stored one deleted.
    ///
    /// # Errors
    /// The first refusal.
    pub async fn validate(&self, request: &Request<'_>, object: &Value) -> Result<(), Status> {
        PLUGINS.iter().try_for_each(|plugin| plugin.validate(request, object, &*self.lookup))
    }
}
