//! Admission: what the cluster adds to an object, and what it refuses whatever the object's own rules say. Stages run in
//! upstream's order:
//!
//! ```text
//! mutate    built-in plugins -> mutating policies -> mutating webhooks   (all again where one changed what others had seen)
//! [the strategy validates]
//! validate  built-in plugins -> validating policies -> validating webhooks
//! [quota     is charged with the write: resource_quota]
//! ```
//!
//! A built-in plugin is a pure function of the request, the object and what a [`Lookup`] finds; none of them writes. An
//! [`Extension`] is what users of the cluster configure: policies in CEL, webhooks.

mod certificates;
mod default_ingress_class;
mod default_storage_class;
mod default_toleration_seconds;
mod limit_ranger;
mod namespace_lifecycle;
mod node_restriction;
mod persistent_volume_claim_resize;
mod pod_resize;
mod pod_security;
mod pod_topology_labels;
pub mod policy;
mod priority;
mod reinvocation;
pub mod resource_quota;
pub mod review;
pub mod rules;
mod runtime_class;
mod service_account;
mod storage_object_in_use_protection;
mod taint_nodes_by_condition;
#[cfg(test)]
mod tests;
mod view;
pub mod webhook;

use std::{fmt, sync::Arc};

use api::status::Status;
use async_trait::async_trait;
use futures::future::BoxFuture;
use serde_json::Value;

pub use self::{
    reinvocation::{Pass, Reinvocation},
    review::GroupVersionKind,
    view::View,
};
use crate::{
    context,
    handlers::Target,
    kinds::Kinds,
    query::{DeleteOptions, WriteOptions},
    registry::fields::text,
    security::{Attributes, Identity},
    storage::{cache::Cache, keys},
};

/// The group of webhook configurations and policies.
const GROUP: &str = "admissionregistration.k8s.io";

/// What a request does, in admission's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
    Delete,
    Connect,
}

impl Operation {
    /// `CREATE`, as reviews and rules write it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Create => "CREATE",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
            Self::Connect => "CONNECT",
        }
    }
}

/// The options of the request as the client gave them.
#[derive(Clone, Copy)]
pub enum Options<'a> {
    /// CONNECT has none.
    None,
    Write(&'a WriteOptions),
    Delete(&'a DeleteOptions),
}

/// One request. The object that goes with it is null for a deletion, the options of the stream (`PodExecOptions`, ...) for
/// CONNECT, and the body's own kind (`Binding`, `Eviction`, `Scale`, ...) for a subresource.
pub struct Request<'a> {
    pub operation: Operation,
    pub kinds: &'a Kinds,
    /// The resource of the path, in its version.
    pub target: &'a Target,
    /// Empty for the object itself.
    pub subresource: &'a str,
    /// Empty for cluster-scoped resources.
    pub namespace: &'a str,
    /// Empty for a deletion of a collection, and while a name is not generated yet.
    pub name: &'a str,
    pub user: &'a Identity,
    /// The stored object on update and delete.
    pub old: Option<&'a Value>,
    pub dry_run: bool,
    pub options: Options<'a>,
}

impl Request<'_> {
    /// Whether the request is about this resource itself, and not one of its subresources.
    fn is(&self, group: &str, plural: &str) -> bool {
        self.is_any_part_of(group, plural) && self.subresource.is_empty()
    }

    fn is_any_part_of(&self, group: &str, plural: &str) -> bool {
        self.target.resource.group == group && self.target.resource.plural == plural
    }

    fn creates(&self, group: &str, plural: &str) -> bool {
        self.operation == Operation::Create && self.is(group, plural)
    }

    /// What configures admission is not subject to what users configure: a bad configuration could never be taken back.
    fn configures_admission(&self) -> bool {
        let resource = &self.target.resource;
        let suffixes = ["webhookconfigurations", "admissionpolicies", "admissionpolicybindings"];
        resource.group == GROUP && suffixes.iter().any(|suffix| resource.plural.ends_with(suffix))
    }

    /// Brings an object that admission changed back into the form of its kind: unknown fields go, defaults come. `kind`
    /// is the group, version and kind that it had before.
    ///
    /// # Errors
    /// 500 where the object is no longer one of its kind.
    pub fn normalise(&self, kind: &GroupVersionKind, object: &mut Value) -> Result<(), Status> {
        let resource = &self.target.resource;
        let is_own =
            kind.kind == resource.kind && kind.group == resource.group && kind.version == resource.version;
        if is_own { self.target.normalise(object) } else { kind.normalise(object) }
    }

    /// 403 with upstream's text: `pods "web" is forbidden: why`.
    fn forbidden(&self, why: impl fmt::Display) -> Status {
        Status::forbidden(&self.target.resource.group, &self.target.resource.plural, self.name, why)
    }
}

/// How plugins see the rest of the cluster: stored objects, as fresh as the watch cache.
pub trait Lookup: Send + Sync {
    /// One object; the namespace is empty for cluster-scoped resources.
    fn get(&self, group: &str, plural: &str, namespace: &str, name: &str) -> Option<Value>;
    /// All objects of a namespace, or of all namespaces where it is empty.
    fn list(&self, group: &str, plural: &str, namespace: &str) -> Vec<Value>;
    /// The labels of a namespace; `None` where there is no such namespace.
    fn namespace_labels(&self, name: &str) -> Option<Value> {
        self.get("", "namespaces", "", name).map(|namespace| api::meta::labels(&namespace).clone())
    }
    /// Resolves once reads show all that was written before; by default at once.
    fn fresh(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
    /// Whether a user may do something; by default nobody may anything.
    fn allows(&self, _user: &Identity, _attributes: &Attributes) -> bool {
        false
    }
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

    fn namespace_labels(&self, name: &str) -> Option<Value> {
        let key = keys::object_key("", "namespaces", None, name);
        Self::get(self, &key).map(|object| object.meta().labels.to_value())
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

    /// As `validate`, for a plugin that has more to say than yes or no.
    fn judge(
        &self,
        request: &Request<'_>,
        object: &Value,
        lookup: &dyn Lookup,
        _remarks: &mut Remarks,
    ) -> Result<(), Status> {
        self.validate(request, object, lookup)
    }
}

/// What a plugin has to say besides its verdict.
#[derive(Default)]
struct Remarks {
    warnings: Vec<String>,
    /// For the audit log, by full key.
    annotations: Vec<(String, String)>,
}

/// Admission that users of the cluster configure. Costs next to nothing while they have configured nothing.
#[async_trait]
pub trait Extension: Send + Sync {
    /// May change the object; what is changed is brought back into the kind's form ([`Request::normalise`]) here. For a
    /// deletion the object is null and cannot be changed.
    async fn mutate(
        &self,
        request: &Request<'_>,
        object: &mut Value,
        pass: &mut Pass<'_>,
    ) -> Result<(), Status>;

    /// Judges the finished object.
    async fn validate(
        &self,
        request: &Request<'_>,
        object: &Value,
        warnings: &mut Vec<String>,
    ) -> Result<(), Status>;
}

/// Upstream's order. Quota ([`resource_quota::charge`]) comes after all of them, so that only what everything else lets
/// pass is counted.
static PLUGINS: [&dyn Plugin; 19] = [
    &namespace_lifecycle::NamespaceLifecycle,
    &limit_ranger::LimitRanger,
    &service_account::ServiceAccount,
    &node_restriction::NodeRestriction,
    &taint_nodes_by_condition::TaintNodesByCondition,
    &pod_security::PodSecurity,
    &priority::Priority,
    &default_toleration_seconds::DefaultTolerationSeconds,
    &default_storage_class::DefaultStorageClass,
    &storage_object_in_use_protection::StorageObjectInUseProtection,
    &persistent_volume_claim_resize::PersistentVolumeClaimResize,
    &runtime_class::RuntimeClass,
    &certificates::CertificateApproval,
    &certificates::CertificateSigning,
    &certificates::ClusterTrustBundleAttest,
    &certificates::CertificateSubjectRestriction,
    &default_ingress_class::DefaultIngressClass,
    &pod_topology_labels::PodTopologyLabels,
    &pod_resize::PodResizeValidator,
];

/// The stages over one view of the cluster.
pub struct Admission {
    lookup: Arc<dyn Lookup>,
    extensions: Vec<Arc<dyn Extension>>,
}

impl Admission {
    /// With the built-in plugins alone.
    pub fn new<L: Lookup + 'static>(lookup: Arc<L>) -> Self {
        Self { lookup, extensions: Vec::new() }
    }

    /// Adds a stage after those that are there: policies first, then webhooks.
    pub fn with(mut self, extension: Arc<dyn Extension>) -> Self {
        self.extensions.push(extension);
        self
    }

    /// Lets every stage change the object.
    ///
    /// # Errors
    /// The first refusal.
    pub async fn mutate(
        &self,
        request: &Request<'_>,
        object: &mut Value,
        warnings: &mut Vec<String>,
    ) -> Result<(), Status> {
        if request.operation == Operation::Create
            && !request.namespace.is_empty()
            && self.lookup.namespace_labels(request.namespace).is_none()
        {
            // Another server may have made the namespace just now.
            self.lookup.fresh().await;
        }
        if request.creates("", "pods") && text(object, "/spec/serviceAccountName").is_empty() {
            service_account::wait_for_default(request.namespace, &*self.lookup).await;
        }
        let mut memories: Vec<Reinvocation> = Vec::new();
        memories.resize_with(self.extensions.len(), Reinvocation::default);
        for round in 0..2 {
            self.admit_builtin(request, object)?;
            let mut again = false;
            for (extension, reinvocation) in self.extensions.iter().zip(&mut memories) {
                let mut pass = Pass::new(round, reinvocation, warnings);
                extension.mutate(request, object, &mut pass).await?;
                again |= pass.wants_another();
            }
            if !again {
                break;
            }
        }
        Ok(())
    }

    fn admit_builtin(&self, request: &Request<'_>, object: &mut Value) -> Result<(), Status> {
        if request.operation == Operation::Delete {
            return Ok(());
        }
        PLUGINS.iter().try_for_each(|plugin| plugin.admit(request, object, &*self.lookup))
    }

    /// Asks every stage whether the finished object may be stored, or the stored one deleted.
    ///
    /// # Errors
    /// The first refusal.
    pub async fn validate(
        &self,
        request: &Request<'_>,
        object: &Value,
        warnings: &mut Vec<String>,
    ) -> Result<(), Status> {
        let mut remarks = Remarks::default();
        let verdict =
            PLUGINS.iter().try_for_each(|plugin| plugin.judge(request, object, &*self.lookup, &mut remarks));
        warnings.append(&mut remarks.warnings);
        for (key, value) in remarks.annotations {
            context::annotate(&key, || value);
        }
        verdict?;
        for extension in &self.extensions {
            extension.validate(request, object, warnings).await?;
        }
        Ok(())
    }

    /// Both halves, for bodies that are answered and never stored (reviews, bindings, evictions, streams).
    ///
    /// # Errors
    /// The first refusal.
    pub async fn admit(
        &self,
        request: &Request<'_>,
        object: &mut Value,
        warnings: &mut Vec<String>,
    ) -> Result<(), Status> {
        self.mutate(request, object, warnings).await?;
        self.validate(request, object, warnings).await
    }
}
