//! Namespaces: the finalizer in their spec that only `/finalize` removes, and the label with their name.

use api::{field::FieldError, names};
use serde_json::{Value, json};

use super::{
    Column, Context, Strategy,
    fields::*,
    keep_all_but_status, keep_status,
    rules::Errors,
    table::{AGE, NAME},
};

pub(super) struct Namespaces;

const NAME_LABEL: &str = "kubernetes.io/metadata.name";

fn label_with_name(object: &mut Value) {
    let name = text(object, "/metadata/name").to_owned();
    if !name.is_empty() {
        set(child(child(object, "metadata"), "labels"), NAME_LABEL, name);
    }
}

impl Strategy for Namespaces {
    fn default(&self, object: &mut Value) {
        label_with_name(object);
        set_if_zero(child(object, "status"), "phase", "Active");
    }

    fn prepare_create(&self, _context: &Context<'_>, object: &mut Value) {
        label_with_name(object);
        set(object, "status", json!({ "phase": "Active" }));
        let finalizers = list(child(object, "spec"), "finalizers");
        if !finalizers.iter().any(|finalizer| finalizer == "kubernetes") {
            finalizers.push(json!("kubernetes"));
        }
    }

    fn prepare_update(&self, context: &Context<'_>, new: &mut Value, old: &Value) {
        match context.subresource {
            "status" => keep_all_but_status(new, old),
            "finalize" => keep_status(new, old),
            _ => {
                keep_status(new, old);
                copy(child(new, "spec"), at(old, "/spec"), "finalizers");
            }
        }
    }

    fn validate_update(&self, context: &Context<'_>, new: &Value, _old: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        match context.subresource {
            "status" => {
                let phase = at(new, "/status/phase");
                if present(new, "/metadata/deletionTimestamp") {
                    if phase != "Terminating" {
                        let detail = "may only be 'Terminating' if `deletionTimestamp` is not empty";
                        errors.invalid("status.Phase", phase, detail);
                    }
                } else if phase != "Active" {
                    errors.invalid(
                        "status.Phase",
                        phase,
                        "may only be 'Active' if `deletionTimestamp` is empty",
                    );
                }
            }
            "finalize" => {
                for (i, finalizer) in items(new, "/spec/finalizers").iter().enumerate() {
                    errors.label_name(&format!("spec.finalizers[{i}]"), finalizer.as_str().unwrap_or(""));
                }
            }
            _ => {}
        }
        errors.into_vec()
    }

    fn name_errors(&self, name: &str, is_prefix: bool) -> Vec<String> {
        names::dns1123_label(name, is_prefix)
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        vec![("status.phase", text(object, "/status/phase").to_owned())]
    }

    fn selectable_field_names(&self) -> &'static [&'static str] {
        &["status.phase"]
    }

    fn columns(&self) -> &'static [Column] {
        const COLUMNS: &[Column] =
            &[NAME, Column::new("Status", "string", |o, _| text(o, "/status/phase").into()), AGE];
        COLUMNS
    }
}
