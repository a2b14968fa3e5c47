//! The rules of `metadata`, equal for every kind, with upstream's messages.

use api::{field::FieldError, names, schema::Resource};
use serde_json::Value;

use super::{
    Strategy,
    fields::{at, entries, flag, items, present, text},
    rules::Errors,
};

/// All annotations of one object together, in bytes.
const ANNOTATIONS_SIZE_BYTES_MAX: usize = 256 * 1024;

/// What is wrong with the metadata of a new object. The name must be there, generated or given.
pub fn validate(resource: &Resource, strategy: &dyn Strategy, object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let metadata = at(object, "/metadata");
    let generate_name = at(metadata, "/generateName");
    if let Some(prefix) = generate_name.as_str().filter(|p| !p.is_empty()) {
        errors.all_invalid("metadata.generateName", generate_name, strategy.name_errors(prefix, true));
    }
    match text(metadata, "/name") {
        "" => errors.required("metadata.name", "name or generateName is required"),
        name => errors.all_invalid("metadata.name", at(metadata, "/name"), strategy.name_errors(name, false)),
    }
    let namespace = at(metadata, "/namespace");
    match (resource.namespaced, text(metadata, "/namespace")) {
        (true, "") => errors.required("metadata.namespace", ""),
        (true, name) => {
            errors.all_invalid("metadata.namespace", namespace, names::dns1123_label(name, false))
        }
        (false, "") => {}
        (false, _) => errors.forbidden("metadata.namespace", "not allowed on this type"),
    }
    shared(&mut errors, object);
    errors.into_vec()
}

/// What is wrong with the metadata of an update.
pub fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let (metadata, before) = (at(new, "/metadata"), at(old, "/metadata"));
    for key in ["name", "namespace", "uid", "creationTimestamp"] {
        let pointer = format!("/{key}");
        errors.immutable(format!("metadata.{key}"), at(metadata, &pointer), at(before, &pointer));
    }
    if present(before, "/deletionTimestamp") {
        let known = items(before, "/finalizers");
        let added: Vec<_> = items(metadata, "/finalizers").iter().filter(|f| !known.contains(f)).collect();
        if !added.is_empty() {
            let quoted: Vec<_> = added.iter().map(|f| f.to_string()).collect();
            errors.forbidden(
                "metadata.finalizers",
                format!(
                    "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                    quoted.join(", ")
                ),
            );
        }
    }
    shared(&mut errors, new);
    errors.into_vec()
}

/// Whether finalizers of this object may be names without a path: upstream warns of those of custom resources, and of
/// definitions it says nothing.
fn has_free_finalizers(object: &Value) -> bool {
    let (group, version) = api::meta::group_and_version(api::meta::api_version(object));
    let is_custom = || api::schema::builtin().kind(group, version, api::meta::kind(object)).is_none();
    matches!(group, "apiextensions.k8s.io" | "apiregistration.k8s.io") || is_custom()
}

fn shared(errors: &mut Errors, object: &Value) {
    let metadata = at(object, "/metadata");
    errors.not_negative("metadata.generation", at(metadata, "/generation"));
    errors.labels("metadata.labels", at(metadata, "/labels"));
    annotations(errors, "metadata.annotations", at(metadata, "/annotations"));
    owner_references(errors, at(metadata, "/ownerReferences"));
    let finalizers = items(metadata, "/finalizers");
    for finalizer in finalizers {
        let name = finalizer.as_str().unwrap_or("");
        errors.all_invalid("metadata.finalizers", finalizer, names::qualified_name(name));
        let is_qualified =
            name.contains('/') || matches!(name, "kubernetes" | "orphan" | "foregroundDeletion");
        if !is_qualified && !has_free_finalizers(object) {
            errors.invalid(
                "metadata.finalizers",
                finalizer,
                "name is neither a standard finalizer name nor is it fully qualified",
            );
        }
    }
    if finalizers.iter().any(|f| f == "orphan") && finalizers.iter().any(|f| f == "foregroundDeletion") {
        errors.invalid(
            "metadata.finalizers",
            at(metadata, "/finalizers"),
            "finalizer orphan and foregroundDeletion cannot be both set",
        );
    }
}

pub(crate) fn annotations(errors: &mut Errors, path: &str, annotations: &Value) {
    let mut size = 0;
    for (key, value) in entries(annotations, "") {
        errors.all_invalid(path, &key.as_str().into(), names::qualified_name(&key.to_lowercase()));
        size += key.len() + value.as_str().map_or(0, str::len);
    }
    if size > ANNOTATIONS_SIZE_BYTES_MAX {
        errors.extend([FieldError::too_long(path, ANNOTATIONS_SIZE_BYTES_MAX)]);
    }
}

fn owner_references(errors: &mut Errors, references: &Value) {
    let path = "metadata.ownerReferences";
    let mut controller: Option<&str> = None;
    for (i, reference) in items(references, "").iter().enumerate() {
        for (key, detail) in [
            ("apiVersion", "version must not be empty"),
            ("kind", "must not be empty"),
            ("name", "must not be empty"),
            ("uid", "must not be empty"),
        ] {
            let value = at(reference, &format!("/{key}"));
            if value.as_str().unwrap_or("").is_empty() {
                errors.invalid(format!("{path}[{i}].{key}"), &value.as_str().unwrap_or("").into(), detail);
            }
        }
        if flag(reference, "/controller") {
            let name = text(reference, "/name");
            if let Some(first) = controller {
                errors.invalid(
                    path,
                    references,
                    format!(
                        "Only one reference can have Controller set to true. Found \"true\" in references for {first} \
                         and {name}"
                    ),
                );
            }
            controller = Some(name);
        }
    }
}
