//! What controllers of pods share: the selector that must match the template, and the small kinds beside them.

use api::field::FieldError;
use serde_json::Value;

use super::{
    Column, Context, Strategy,
    fields::*,
    metadata,
    pod_spec::{default_pod_spec, validate_pod_spec, validate_template},
    rules::{Errors, is_empty_selector, selects},
    table::{AGE, NAME, NONE, container_images, container_names, labels, or},
};

/// The selector: there, well-formed, not empty, and matching the template's labels. `kind` names the controller in
/// the message about an empty one.
pub(super) fn selector_and_template(errors: &mut Errors, object: &Value, kind: &str) {
    let selector = at(object, "/spec/selector");
    if selector.is_null() {
        errors.required("spec.selector", "");
    } else {
        errors.label_selector("spec.selector", selector);
        if is_empty_selector(selector) {
            errors.invalid("spec.selector", selector, format!("empty selector is invalid for {kind}"));
        }
    }
    matches_template(errors, object);
    errors.extend(validate_template(at(object, "/spec"), "spec"));
}

pub(super) fn matches_template(errors: &mut Errors, object: &Value) {
    let (selector, labels) = (at(object, "/spec/selector"), at(object, "/spec/template/metadata/labels"));
    let never = selector.is_null();
    if never || (!is_empty_selector(selector) && !selects(selector, labels)) {
        let detail = "`selector` does not match template `labels`";
        errors.invalid("spec.template.metadata.labels", labels, detail);
    }
}

/// Pods of these controllers are always restarted, and have no deadline.
pub(super) fn always_restarted(errors: &mut Errors, object: &Value, kind: &str) {
    let policy = at(object, "/spec/template/spec/restartPolicy");
    if policy != "Always" {
        errors.not_supported("spec.template.spec.restartPolicy", policy, &["Always"]);
    }
    if present(object, "/spec/template/spec/activeDeadlineSeconds") {
        let detail = format!("activeDeadlineSeconds in {kind} is not Supported");
        errors.forbidden("spec.template.spec.activeDeadlineSeconds", detail);
    }
}

pub(super) fn not_negative(errors: &mut Errors, object: &Value, keys: &[&str]) {
    for key in keys {
        errors.not_negative(format!("spec.{key}"), at(object, &format!("/spec/{key}")));
    }
}

pub(super) struct PodTemplates;

impl Strategy for PodTemplates {
    fn default(&self, object: &mut Value) {
        if let Some(template) = existing(object, "template") {
            default_pod_spec(child(template, "spec"));
        }
    }

    fn validate(&self, _context: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        errors.labels("template.labels", at(object, "/template/metadata/labels"));
        metadata::annotations(
            &mut errors,
            "template.annotations",
            at(object, "/template/metadata/annotations"),
        );
        errors.extend(validate_pod_spec(at(object, "/template/spec"), "template.spec"));
        errors.into_vec()
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn columns(&self) -> &'static [Column] {
        const COLUMNS: &[Column] = &[
            NAME,
            Column::new("Containers", "string", |o, _| container_names(at(o, "/template/spec")).into()),
            Column::new("Images", "string", |o, _| container_images(at(o, "/template/spec")).into()),
            Column::new("Pod Labels", "string", |o, _| {
                labels(entries(o, "/template/metadata/labels")).into()
            }),
        ];
        COLUMNS
    }
}

pub(super) struct ControllerRevisions;

impl Strategy for ControllerRevisions {
    fn validate(&self, _context: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        if !present(object, "/data") {
            errors.required("data", "data is mandatory");
        }
        errors.not_negative("revision", at(object, "/revision"));
        errors.into_vec()
    }

    fn validate_update(&self, context: &Context<'_>, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        errors.extend(self.validate(context, new));
        errors.immutable("data", at(new, "/data"), at(old, "/data"));
        errors.into_vec()
    }

    fn columns(&self) -> &'static [Column] {
        const COLUMNS: &[Column] = &[
            NAME,
            Column::new("Controller", "string", |o, _| controller(o).into()),
            Column::new("Revision", "string", |o, _| int(o, "/revision").into()),
            AGE,
        ];
        COLUMNS
    }
}

/// `deployment.apps/web`: the controlling owner.
fn controller(object: &Value) -> String {
    let owners = items(object, "/metadata/ownerReferences");
    let Some(owner) = owners.iter().find(|owner| flag(owner, "/controller")) else { return NONE.to_owned() };
    let kind = text(owner, "/kind").to_lowercase();
    let shown = match text(owner, "/apiVersion").split_once('/') {
        Some((group, _)) => format!("{kind}.{group}/{}", text(owner, "/name")),
        None => format!("{kind}/{}", text(owner, "/name")),
    };
    or(&shown, NONE).to_owned()
}
