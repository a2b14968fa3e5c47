//! What one resource does differently from the others: a [`Strategy`] of pure functions, in the fixed order of a write:
//! decode, `default`, metadata of the server's own (name, uid, creationTimestamp), [`prepare_create`] or
//! [`prepare_update`], mutating admission, [`validate_create`] or [`validate_update`], validating admission, store.
//!
//! Handlers never know kinds; they ask [`strategy`]. A kind without rules of its own gets the generic strategy.
//! Deliberately absent: IO, clocks (`now` is in the [`Context`]), storage.

mod admission_policy;
mod api_service;
pub mod bootstrap;
mod certificates;
pub mod crd;
mod cronjob;
mod daemonset;
mod deployment;
mod discovery;
mod event;
pub(crate) mod fields;
mod flow_control;
mod job;
pub mod metadata;
mod namespace;
mod networking;
mod node;
pub(crate) mod plain;
mod pod;
mod pod_columns;
pub(crate) mod pod_spec;
mod rbac;
mod replicaset;
mod rules;
mod scaling;
mod secret;
pub(crate) mod service;
mod service_cidr;
mod service_families;
pub mod service_ip;
mod statefulset;
pub(crate) mod storage;
mod table;
#[cfg(test)]
mod tests;
pub(crate) mod webhooks;
mod workload;

use api::{apply::Reset, field::FieldError, schema::Resource};
use serde_json::{Value, json};

use crate::{ownership, security::Identity};
use fields::{at, child, copy, entries, int, remove, same, set};
pub use table::{NAME_AND_AGE, human_duration};

/// What a write knows about itself.
pub struct Context<'a> {
    pub resource: &'a Resource,
    /// Empty for the object itself, else `status`, `scale`, `ephemeralcontainers`, ...
    pub subresource: &'a str,
    /// RFC 3339, to the second, UTC.
    pub now: &'a str,
    pub user: &'a str,
}

/// Where the replica counts and the selector of a kind are, as simple paths: `.spec.replicas`.
#[derive(Clone, Debug)]
pub struct Scale {
    pub replicas: String,
    pub status_replicas: String,
    /// A text in query syntax.
    pub selector: Option<String>,
}

/// How a resource is deleted when the caller does not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    Background,
    Foreground,
    Orphan,
}

/// A column of the server-side Table (`kubectl get`).
pub struct Column {
    pub name: &'static str,
    /// `string`, `integer`, `date`, ... as in Table.columnDefinitions.
    pub kind: &'static str,
    pub format: &'static str,
    pub description: &'static str,
    /// 0 is always shown, 1 only with `-o wide`.
    pub priority: i32,
    /// The cell; `now` in seconds since the epoch, for ages.
    pub cell: fn(object: &Value, now: i64) -> Value,
}

impl Column {
    fn definition(&self) -> Value {
        json!({
            "name": self.name,
            "type": self.kind,
            "format": self.format,
            "description": self.description,
            "priority": self.priority,
        })
    }
}

/// The rules of one resource. Every function is pure; the defaults are right for kinds without rules of their own.
pub trait Strategy: Send + Sync {
    /// Fills what the caller left out (on create, update and on reading old objects). Twice is as once.
    fn default(&self, _object: &mut Value) {}
    /// Clears what a creator may not set (status), sets what the server owns. Name and uid are there already.
    fn prepare_create(&self, context: &Context<'_>, object: &mut Value) {
        if has_status(context) {
            set(object, "status", json!({}));
        }
    }
    /// Keeps what this request may not change: status for the object, all but status for `/status`, and allocated
    /// fields that the caller left out.
    fn prepare_update(&self, context: &Context<'_>, new: &mut Value, old: &Value) {
        match context.subresource {
            "status" => keep_all_but_status(new, old),
            "" if has_status(context) => keep_status(new, old),
            _ => {}
        }
    }
    /// Writes down who creates the object, for kinds that remember it.
    fn set_requester(&self, _object: &mut Value, _user: &Identity) {}
    fn validate(&self, _context: &Context<'_>, _object: &Value) -> Vec<FieldError> {
        Vec::new()
    }
    fn validate_update(&self, context: &Context<'_>, new: &Value, _old: &Value) -> Vec<FieldError> {
        if context.subresource.is_empty() { self.validate(context, new) } else { Vec::new() }
    }
    /// Whether the schema's list of required fields is the rule. Kinds with a validation of their own know better: the
    /// list has fields that upstream never asks for, such as the numbers in a status.
    fn required_by_schema(&self) -> bool {
        false
    }
    /// Warnings for the client's `Warning:` headers.
    fn warnings(&self, _object: &Value) -> Vec<String> {
        Vec::new()
    }
    /// Whether the kind counts `metadata.generation`.
    fn has_generation(&self) -> bool {
        false
    }
    /// Whether an update counts as a new generation: by default, when anything but metadata and status differs.
    fn generation_changed(&self, new: &Value, old: &Value) -> bool {
        let content = |object: &Value| {
            let mut object = object.clone();
            for key in ["apiVersion", "kind", "metadata", "status"] {
                remove(&mut object, key);
            }
            object
        };
        !same(&content(new), &content(old))
    }
    /// Whether PUT without a resourceVersion is allowed.
    fn allow_unconditional_update(&self) -> bool {
        true
    }
    /// Whether PUT may create the object (Lease: yes; most: no).
    fn allow_create_on_update(&self) -> bool {
        false
    }
    /// Fields besides metadata.name and metadata.namespace that field selectors may name, with their values.
    fn selectable_fields(&self, _object: &Value) -> Vec<(&'static str, String)> {
        Vec::new()
    }
    /// The names that [`Strategy::selectable_fields`] returns, to refuse others.
    fn selectable_field_names(&self) -> &'static [&'static str] {
        &[]
    }
    /// Whether field selectors may name this field.
    fn selects_by(&self, field: &str) -> bool {
        self.selectable_field_names().contains(&field)
    }
    /// The value of one field that selectors may name, of a kind whose fields are not known when compiling.
    fn selectable_field(&self, _object: &Value, _field: &str) -> Option<String> {
        None
    }
    /// Seconds of grace for a deletion, where the kind deletes gracefully (pods): `requested` is what the caller asked
    /// for. `None`: at once.
    fn grace_period_seconds(&self, _object: &Value, _requested: Option<i64>) -> Option<i64> {
        None
    }
    /// The fields that a write to the object (or with a name, to that subresource) cannot set and so does not own.
    fn reset_fields(&self, resource: &Resource, subresource: &str) -> Reset {
        ownership::reset_fields(resource, subresource)
    }
    fn default_propagation(&self) -> Propagation {
        Propagation::Background
    }
    /// The columns of `kubectl get`, wide ones included.
    fn columns(&self) -> &'static [Column] {
        table::NAME_AND_AGE
    }
    /// Marks an object whose deletion begins, where more than a timestamp is to be set.
    fn begin_deletion(&self, _object: &mut Value, _now: &str) {}
    /// Where `/scale` finds its figures, where that is not as in Deployments.
    fn scale(&self) -> Option<&Scale> {
        None
    }
    /// `columnDefinitions` of a Table.
    fn column_definitions(&self) -> Vec<Value> {
        self.columns().iter().map(Column::definition).collect()
    }
    /// The cells of an object's row; `now` in seconds since the epoch, for ages.
    fn cells(&self, object: &Value, now: i64) -> Vec<Value> {
        self.columns().iter().map(|column| (column.cell)(object, now)).collect()
    }
    /// How a name is checked: the rule of upstream for `metadata.name`. Returns what is wrong.
    fn name_errors(&self, name: &str, is_prefix: bool) -> Vec<String> {
        api::names::dns1123_subdomain(name, is_prefix)
    }
}

/// The strategy of a resource; the generic one for resources without rules of their own, custom resources included.
pub fn strategy(group: &str, plural: &str) -> &'static dyn Strategy {
    match (group, plural) {
        ("", "pods") => &pod::Pods,
        ("", "podtemplates") => &workload::PodTemplates,
        ("", "services") => &service::Services,
        ("", "nodes") => &node::Nodes,
        ("", "namespaces") => &namespace::Namespaces,
        ("", "configmaps") => &secret::ConfigMaps,
        ("", "secrets") => &secret::Secrets,
        ("", "endpoints") => &discovery::Endpoints,
        ("", "replicationcontrollers") => &replicaset::ReplicationControllers,
        ("", "persistentvolumes") => &storage::PersistentVolumes,
        ("", "persistentvolumeclaims") => &storage::PersistentVolumeClaims,
        ("", "resourcequotas") => &scaling::ResourceQuotas,
        ("", "limitranges") => &scaling::LimitRanges,
        ("" | "events.k8s.io", "events") => &event::Events,
        ("apps", "deployments") => &deployment::Deployments,
        ("apps", "replicasets") => &replicaset::ReplicaSets,
        ("apps", "statefulsets") => &statefulset::StatefulSets,
        ("apps", "daemonsets") => &daemonset::DaemonSets,
        ("apps", "controllerrevisions") => &workload::ControllerRevisions,
        ("batch", "jobs") => &job::Jobs,
        ("batch", "cronjobs") => &cronjob::CronJobs,
        ("autoscaling", "horizontalpodautoscalers") => &scaling::HorizontalPodAutoscalers,
        ("policy", "poddisruptionbudgets") => &scaling::PodDisruptionBudgets,
        ("discovery.k8s.io", "endpointslices") => &discovery::EndpointSlices,
        ("networking.k8s.io", "ingresses") => &networking::Ingresses,
        ("certificates.k8s.io", "certificatesigningrequests") => &certificates::CertificateSigningRequests,
        ("networking.k8s.io", "servicecidrs") => &service_cidr::ServiceCidrs,
        ("networking.k8s.io", "ipaddresses") => &service_cidr::IpAddresses,
        ("networking.k8s.io", "networkpolicies") => &networking::NetworkPolicies,
        ("rbac.authorization.k8s.io", "roles" | "clusterroles") => &rbac::Roles,
        ("rbac.authorization.k8s.io", "rolebindings" | "clusterrolebindings") => &rbac::Bindings,
        ("storage.k8s.io", "storageclasses") => &storage::StorageClasses,
        ("storage.k8s.io", "csidrivers") => &storage::CsiDrivers,
        ("apiextensions.k8s.io", "customresourcedefinitions") => &crd::CustomResourceDefinitions,
        _ => plain::strategy(group, plural),
    }
}

/// Runs the strategy's preparation of a new object and starts its generation.
pub fn prepare_create(strategy: &dyn Strategy, context: &Context<'_>, object: &mut Value) {
    strategy.prepare_create(context, object);
    if strategy.has_generation() {
        set(child(object, "metadata"), "generation", 1);
    } else {
        remove(child(object, "metadata"), "generation");
    }
}

/// Runs the strategy's preparation of an update and counts its generation.
pub fn prepare_update(strategy: &dyn Strategy, context: &Context<'_>, new: &mut Value, old: &Value) {
    copy(child(new, "metadata"), at(old, "/metadata"), "generation");
    strategy.prepare_update(context, new, old);
    if strategy.has_generation() && context.subresource != "status" && strategy.generation_changed(new, old) {
        set(child(new, "metadata"), "generation", int(old, "/metadata/generation") + 1);
    }
}

/// All that is wrong with a new object: its metadata, then what the strategy finds.
pub fn validate_create(strategy: &dyn Strategy, context: &Context<'_>, object: &Value) -> Vec<FieldError> {
    let mut errors = metadata::validate(context.resource, strategy, object);
    errors.extend(strategy.validate(context, object));
    add_missing(strategy, context, object, &mut errors);
    errors
}

/// All that is wrong with an update: its metadata, then what the strategy finds.
pub fn validate_update(
    strategy: &dyn Strategy,
    context: &Context<'_>,
    new: &Value,
    old: &Value,
) -> Vec<FieldError> {
    let mut errors = metadata::validate_update(new, old);
    errors.extend(strategy.validate_update(context, new, old));
    add_missing(strategy, context, new, &mut errors);
    errors
}

/// Fields that the schema requires and nobody has missed yet, for kinds that leave this to the schema.
fn add_missing(strategy: &dyn Strategy, context: &Context<'_>, object: &Value, errors: &mut Vec<FieldError>) {
    if !strategy.required_by_schema() || !context.subresource.is_empty() {
        return;
    }
    let mut content = object.clone();
    remove(&mut content, "status");
    for missing in api::schema::builtin().required(context.resource.ty, &content) {
        if errors.iter().all(|error| error.path != missing.path) {
            errors.push(missing);
        }
    }
}

fn has_status(context: &Context<'_>) -> bool {
    context.resource.subresources.iter().any(|subresource| subresource.name == "status")
}

/// For a write of the object itself: the status stays.
fn keep_status(new: &mut Value, old: &Value) {
    copy(new, old, "status");
}

/// For a write of `/status`: everything but status and metadata stays.
fn keep_all_but_status(new: &mut Value, old: &Value) {
    let keep = |key: &str| !matches!(key, "apiVersion" | "kind" | "metadata" | "status");
    fields::fields_mut(new).retain(|key, _| !keep(key));
    for key in entries(old, "").keys().filter(|key| keep(key)) {
        copy(new, old, key);
    }
}
