//! ReplicaSets and ReplicationControllers: one idea, two forms of selector.

use api::field::FieldError;
use serde_json::Value;

use super::{
    Column, Context, Propagation, Strategy,
    fields::*,
    pod_spec::{default_template, validate_template},
    rules::Errors,
    table::{AGE, CONTAINERS, IMAGES, NAME, SELECTOR, labels, number},
    workload::{always_restarted, not_negative, selector_and_template},
};

pub(super) struct ReplicaSets;
pub(super) struct ReplicationControllers;

const DESIRED: Column = Column::new("Desired", "integer", |o, _| number(o, "/spec/replicas"));
const CURRENT: Column = Column::new("Current", "integer", |o, _| number(o, "/status/replicas"));
const READY: Column = Column::new("Ready", "integer", |o, _| number(o, "/status/readyReplicas"));

fn default_replicas(object: &mut Value) {
    let spec = child(object, "spec");
    set_default(spec, "replicas", 1);
    default_template(spec);
}

fn status(new: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let replicas = int(new, "/status/replicas");
    for key in ["replicas", "fullyLabeledReplicas", "readyReplicas", "availableReplicas"] {
        let value = at(new, &format!("/status/{key}"));
        errors.not_negative(format!("status.{key}"), value);
        if value.as_i64().is_some_and(|count| count > replicas) {
            errors.invalid(format!("status.{key}"), value, "cannot be greater than status.replicas");
        }
    }
    let (ready, available) = (int(new, "/status/readyReplicas"), at(new, "/status/availableReplicas"));
    if available.as_i64().is_some_and(|count| count > ready) {
        errors.invalid("status.availableReplicas", available, "cannot be greater than readyReplicas");
    }
    errors.into_vec()
}

/// A new object's status already says how many replicas it wants none of.
fn empty_status(object: &mut Value) {
    set(object, "status", serde_json::json!({ "replicas": 0 }));
}

impl Strategy for ReplicaSets {
    fn default(&self, object: &mut Value) {
        default_replicas(object);
    }

    fn prepare_create(&self, _context: &Context<'_>, object: &mut Value) {
        empty_status(object);
    }

    fn validate(&self, _context: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        not_negative(&mut errors, object, &["replicas", "minReadySeconds"]);
        selector_and_template(&mut errors, object, "deployment");
        always_restarted(&mut errors, object, "ReplicaSet");
        errors.into_vec()
    }

    fn validate_update(&self, context: &Context<'_>, new: &Value, old: &Value) -> Vec<FieldError> {
        if context.subresource == "status" {
            return status(new);
        }
        let mut errors = Errors::default();
        errors.extend(self.validate(context, new));
        errors.immutable("spec.selector", at(new, "/spec/selector"), at(old, "/spec/selector"));
        errors.into_vec()
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        vec![("status.replicas", int(object, "/status/replicas").to_string())]
    }

    fn selectable_field_names(&self) -> &'static [&'static str] {
        &["status.replicas"]
    }

    fn columns(&self) -> &'static [Column] {
        const COLUMNS: &[Column] = &[NAME, DESIRED, CURRENT, READY, AGE, CONTAINERS, IMAGES, SELECTOR];
        COLUMNS
    }
}

impl Strategy for ReplicationControllers {
    fn default(&self, object: &mut Value) {
        let labels = at(object, "/spec/template/metadata/labels").clone();
        if !labels.is_null() {
            set_if_zero(child(object, "spec"), "selector", labels.clone());
            set_if_zero(child(object, "metadata"), "labels", labels);
        }
        default_replicas(object);
    }

    fn prepare_create(&self, _context: &Context<'_>, object: &mut Value) {
        empty_status(object);
    }

    fn validate(&self, _context: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        not_negative(&mut errors, object, &["minReadySeconds"]);
        let selector = entries(object, "/spec/selector");
        if selector.is_empty() {
            errors.required("spec.selector", "");
        }
        not_negative(&mut errors, object, &["replicas"]);
        if !present(object, "/spec/template") {
            errors.required("spec.template", "");
            return errors.into_vec();
        }
        let labels = entries(object, "/spec/template/metadata/labels");
        if !selector.iter().all(|(key, value)| labels.get(key) == Some(value)) {
            let detail = "`selector` does not match template `labels`";
            errors.invalid(
                "spec.template.metadata.labels",
                at(object, "/spec/template/metadata/labels"),
                detail,
            );
        }
        errors.extend(validate_template(at(object, "/spec"), "spec"));
        always_restarted(&mut errors, object, "ReplicationController");
        errors.into_vec()
    }

    fn validate_update(&self, context: &Context<'_>, new: &Value, _old: &Value) -> Vec<FieldError> {
        if context.subresource == "status" { status(new) } else { self.validate(context, new) }
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn default_propagation(&self) -> Propagation {
        Propagation::Orphan
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        ReplicaSets.selectable_fields(object)
    }

    fn selectable_field_names(&self) -> &'static [&'static str] {
        ReplicaSets.selectable_field_names()
    }

    fn columns(&self) -> &'static [Column] {
        const COLUMNS: &[Column] = &[
            NAME,
            DESIRED,
            CURRENT,
            READY,
            AGE,
            CONTAINERS,
            IMAGES,
            Column::new("Selector", "string", |o, _| labels(entries(o, "/spec/selector")).into()).wide(),
        ];
        COLUMNS
    }
}
