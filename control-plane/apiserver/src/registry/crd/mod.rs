//! CustomResourceDefinitions: defaults, status of the server's own, and all that upstream refuses, with its texts and
//! its paths: what all versions have in common counts as written once, at the top of `spec`.

mod community;
mod defaults;
mod schema;
mod structural;
#[cfg(test)]
mod tests;

use api::{field::FieldError, names, structural::Structural};
use serde_json::{Value, json};

pub use self::community::{APPROVED, bundle_problem, set_approval};
use super::{
    Column, Context, Strategy,
    fields::{
        at, child, copy, existing, flag, int, items, list, present, same, set, set_default, set_if_zero, text,
    },
    rules::Errors,
    table,
};

/// Removed once all objects of the kind are gone.
pub const CLEANUP_FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";
const SELECTABLE_FIELDS_MAX: usize = 8;
const DEPRECATION_WARNING_MAX: usize = 256;
const COLUMN_TYPES: &str = "boolean,date,integer,number,string";
const COLUMN_FORMATS: &str = "binary,bool,byte,date,date-time,double,float,int32,int64,password,string";

pub(super) struct CustomResourceDefinitions;

impl Strategy for CustomResourceDefinitions {
    fn default(&self, object: &mut Value) {
        let spec = child(object, "spec");
        set_default(spec, "conversion", json!({"strategy": "None"}));
        if let Some(service) = existing(child(spec, "conversion"), "webhook")
            .and_then(|webhook| existing(webhook, "clientConfig"))
            .and_then(|config| existing(config, "service"))
        {
            set_default(service, "port", 443);
        }
        let names = child(spec, "names");
        let kind = text(names, "/kind").to_owned();
        if !kind.is_empty() {
            set_if_zero(names, "singular", kind.to_lowercase());
            set_if_zero(names, "listKind", format!("{kind}List"));
        }
    }

    fn prepare_create(&self, _context: &Context<'_>, object: &mut Value) {
        set(object, "status", empty_status());
        store_version(object);
    }

    fn prepare_update(&self, context: &Context<'_>, new: &mut Value, old: &Value) {
        if context.subresource == "status" {
            super::keep_all_but_status(new, old);
        } else {
            copy(new, old, "status");
            store_version(new);
        }
    }

    fn validate(&self, _context: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        let spec = at(object, "/spec");
        let required = format!("{}.{}", text(spec, "/names/plural"), text(spec, "/group"));
        if text(object, "/metadata/name") != required {
            let name = at(object, "/metadata/name");
            errors.invalid("metadata.name", name, "must be spec.names.plural+\".\"+spec.group");
        }
        validate_spec(&mut errors, spec, None);
        validate_names(&mut errors, at(object, "/status/acceptedNames"), "status.acceptedNames");
        stored_versions(&mut errors, object);
        community::validate_approval(&mut errors, object, None);
        errors.into_vec()
    }

    fn validate_update(&self, context: &Context<'_>, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        if context.subresource.is_empty() {
            let (spec, before) = (at(new, "/spec"), at(old, "/spec"));
            validate_spec(&mut errors, spec, Some(before));
            community::validate_bundle(&mut errors, new, old);
            if is_true(old, "Established") {
                errors.immutable("spec.scope", at(spec, "/scope"), at(before, "/scope"));
                errors.immutable("spec.names.kind", at(spec, "/names/kind"), at(before, "/names/kind"));
            }
            errors.immutable("spec.group", at(spec, "/group"), at(before, "/group"));
            errors.immutable("spec.names.plural", at(spec, "/names/plural"), at(before, "/names/plural"));
        }
        validate_names(&mut errors, at(new, "/status/acceptedNames"), "status.acceptedNames");
        if context.subresource.is_empty() {
            stored_versions(&mut errors, new);
            community::validate_approval(&mut errors, new, Some(old));
        }
        errors.into_vec()
    }

    fn warnings(&self, object: &Value) -> Vec<String> {
        let mut warnings = Vec::new();
        for version in items(object, "/spec/versions") {
            schema::unrecognized_formats(at(version, "/schema/openAPIV3Schema"), &mut warnings);
        }
        warnings
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }

    fn columns(&self) -> &'static [Column] {
        table::NAME_AND_CREATED
    }

    fn begin_deletion(&self, object: &mut Value, now: &str) {
        let finalizers = list(child(object, "metadata"), "finalizers");
        if !finalizers.iter().any(|finalizer| finalizer == CLEANUP_FINALIZER) {
            finalizers.push(CLEANUP_FINALIZER.into());
        }
        let pending = Condition {
            kind: "Terminating",
            is_true: true,
            reason: "InstanceDeletionPending",
            message: "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon",
        };
        pending.set(child(object, "status"), now);
    }
}

fn empty_status() -> Value {
    json!({"conditions": [], "acceptedNames": {"plural": "", "kind": ""}, "storedVersions": []})
}

/// Notes the version that is stored from now on.
fn store_version(object: &mut Value) {
    let versions = items(object, "/spec/versions");
    let Some(name) = versions.iter().find(|version| flag(version, "/storage")).map(|v| v["name"].clone())
    else {
        return;
    };
    let stored = list(child(object, "status"), "storedVersions");
    if !stored.contains(&name) {
        stored.push(name);
    }
}

/// One condition of a definition's status.
pub struct Condition<'a> {
    pub kind: &'a str,
    pub is_true: bool,
    pub reason: &'a str,
    pub message: &'a str,
}

impl Condition<'_> {
    /// Puts the condition into a status; its time changes with its truth only. Returns whether anything changed.
    pub fn set(&self, status: &mut Value, now: &str) -> bool {
        let word = if self.is_true { "True" } else { "False" };
        let conditions = list(status, "conditions");
        let place = conditions.iter().position(|condition| condition["type"] == self.kind);
        let before = place.map(|place| conditions[place].clone()).unwrap_or_default();
        let time = if before["status"] == word { before["lastTransitionTime"].clone() } else { now.into() };
        let condition = json!({
            "type": self.kind, "status": word, "reason": self.reason, "message": self.message,
            "lastTransitionTime": time,
        });
        match place {
            Some(_) if before == condition => return false,
            Some(place) => conditions[place] = condition,
            None => conditions.push(condition),
        }
        true
    }
}

/// Takes over the conditions of these kinds and leaves all others, which may have other writers.
pub fn copy_conditions(status: &mut Value, from: &Value, kinds: &[&str]) {
    let is_meant = |condition: &Value| kinds.iter().any(|kind| condition["type"] == *kind);
    for condition in items(from, "/conditions").iter().filter(|condition| is_meant(condition)) {
        let conditions = list(status, "conditions");
        match conditions.iter_mut().find(|other| other["type"] == condition["type"]) {
            Some(other) => *other = condition.clone(),
            None => conditions.push(condition.clone()),
        }
    }
}

/// Whether a definition has a condition that is true.
pub fn is_true(object: &Value, kind: &str) -> bool {
    items(object, "/status/conditions")
        .iter()
        .any(|condition| condition["type"] == kind && condition["status"] == "True")
}

/// A field of all versions: where upstream sees it, and its value, once where all versions have the same.
fn hoisted<'a>(spec: &'a Value, pointer: &str, top: &str, below: &str) -> Vec<(String, usize, &'a Value)> {
    let versions = items(spec, "/versions");
    let value = |version: &'a Value| at(version, pointer);
    match versions.split_first() {
        Some((first, rest)) if rest.iter().all(|other| same(value(other), value(first))) => {
            vec![(format!("spec.{top}"), 0, value(first))]
        }
        _ => {
            let entry = |(i, version)| (format!("spec.versions[{i}].{below}"), i, value(version));
            versions.iter().enumerate().map(entry).collect()
        }
    }
}

fn validate_spec(errors: &mut Errors, spec: &Value, old: Option<&Value>) {
    group(errors, spec);
    match text(spec, "/scope") {
        "" => errors.required("spec.scope", ""),
        "Cluster" | "Namespaced" => {}
        _ => errors.not_supported("spec.scope", at(spec, "/scope"), &["Cluster", "Namespaced"]),
    }
    if flag(spec, "/preserveUnknownFields") && !old.is_some_and(|old| flag(old, "/preserveUnknownFields")) {
        errors.invalid(
            "spec.preserveUnknownFields",
            &true.into(),
            "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead",
        );
    }
    let versions = items(spec, "/versions");
    for (i, version) in versions.iter().enumerate() {
        if !at(version, "/schema/openAPIV3Schema").is_object() {
            errors.required(format!("spec.versions[{i}].schema.openAPIV3Schema"), "");
        }
        let name = at(version, "/name");
        let wrong = names::dns1035_label(name.as_str().unwrap_or(""), false);
        if !wrong.is_empty() {
            errors.invalid(format!("spec.versions[{i}].name"), name, wrong.join(","));
        }
        deprecation(errors, version, &format!("spec.versions[{i}].deprecationWarning"));
    }
    for (path, i, schema) in hoisted(spec, "/schema", "validation", "schema") {
        let has_status = at(&versions[i], "/subresources/status").is_object();
        let unchanged = old.is_some_and(|old| {
            items(old, "/versions")
                .iter()
                .any(|before| before["name"] == versions[i]["name"] && before["schema"] == *schema)
        });
        schema::validate(errors, at(schema, "/openAPIV3Schema"), has_status, unchanged, &path);
    }
    for (path, _, subresources) in hoisted(spec, "/subresources", "subresources", "subresources") {
        scale(errors, at(subresources, "/scale"), &path);
    }
    let columns = "additionalPrinterColumns";
    for (path, _, columns) in hoisted(spec, "/additionalPrinterColumns", columns, columns) {
        for (i, column) in items(columns, "").iter().enumerate() {
            validate_column(errors, column, &format!("{path}[{i}]"));
        }
    }
    for (path, i, fields) in hoisted(spec, "/selectableFields", "selectableFields", "selectableFields") {
        selectable_fields(errors, items(fields, ""), at(&versions[i], "/schema/openAPIV3Schema"), &path);
    }
    storage(errors, spec);
    required_names(errors, spec);
    validate_names(errors, at(spec, "/names"), "spec.names");
    conversion(errors, at(spec, "/conversion"));
}

fn group(errors: &mut Errors, spec: &Value) {
    let group = at(spec, "/group");
    let name = group.as_str().unwrap_or("");
    let wrong = names::dns1123_subdomain(name, false);
    if name.is_empty() {
        errors.required("spec.group", "");
    } else if !wrong.is_empty() {
        errors.invalid("spec.group", group, wrong.join(","));
    } else if !name.contains('.') {
        errors.invalid("spec.group", group, "should be a domain with at least one dot");
    }
}

fn storage(errors: &mut Errors, spec: &Value) {
    let versions = items(spec, "/versions");
    let mut seen: Vec<&str> = versions.iter().map(|version| text(version, "/name")).collect();
    seen.sort_unstable();
    seen.dedup();
    let outline: Value = versions.iter().map(|version| version["name"].clone()).collect();
    if seen.len() != versions.len() {
        errors.invalid("spec.versions", &outline, "must contain unique version names");
    }
    if versions.iter().filter(|version| flag(version, "/storage")).count() != 1 {
        errors.invalid("spec.versions", &outline, "must have exactly one version marked as storage version");
    }
}

fn required_names(errors: &mut Errors, spec: &Value) {
    for field in ["plural", "singular", "kind", "listKind"] {
        if text(spec, &format!("/names/{field}")).is_empty() {
            errors.required(format!("spec.names.{field}"), "");
        }
    }
}

fn validate_names(errors: &mut Errors, written: &Value, path: &str) {
    for (field, folds) in [("plural", false), ("singular", false), ("kind", true), ("listKind", true)] {
        let name = text(written, &format!("/{field}"));
        if name.is_empty() {
            continue;
        }
        let wrong = names::dns1035_label(&if folds { name.to_lowercase() } else { name.to_owned() }, false);
        if !wrong.is_empty() {
            let prefix = if folds { "may have mixed case, but should otherwise match: " } else { "" };
            let text = format!("{prefix}{}", wrong.join(","));
            errors.invalid(format!("{path}.{field}"), &name.into(), text);
        }
    }
    let kind = text(written, "/kind");
    if !kind.is_empty() && kind == text(written, "/listKind") {
        errors.invalid(format!("{path}.listKind"), &kind.into(), "kind and listKind may not be the same");
    }
    for field in ["shortNames", "categories"] {
        for (i, name) in items(written, &format!("/{field}")).iter().enumerate() {
            let wrong = names::dns1035_label(name.as_str().unwrap_or(""), false);
            if !wrong.is_empty() {
                errors.invalid(format!("{path}.{field}[{i}]"), name, wrong.join(","));
            }
        }
    }
}

fn deprecation(errors: &mut Errors, version: &Value, path: &str) {
    let warning = at(version, "/deprecationWarning");
    let Some(text) = warning.as_str() else { return };
    if !flag(version, "/deprecated") {
        errors.invalid(path, warning, "can only be set for deprecated versions");
        return;
    }
    if text.len() > DEPRECATION_WARNING_MAX {
        errors.invalid(path, warning, "must be <= 256 characters long");
    }
    if text.is_empty() {
        errors.invalid(path, warning, "must not be an empty string");
    }
    if let Some((at, _)) =
        text.char_indices().find(|(_, c)| c.is_control() || (c.is_whitespace() && *c != ' '))
    {
        let why = "must only contain printable UTF-8 characters; non-printable character found at index";
        errors.invalid(path, warning, format!("{why} {at}"));
    }
}

fn simple_path(errors: &mut Errors, path: &Value, field: &str) -> bool {
    let is_good = path.as_str().is_some_and(|path| path.starts_with('.'));
    if !is_good {
        errors.invalid(field, path, "must be a simple json path starting with .");
    }
    is_good
}

fn scale(errors: &mut Errors, scale: &Value, path: &str) {
    if !scale.is_object() {
        return;
    }
    for (name, root) in [("specReplicasPath", "spec"), ("statusReplicasPath", "status")] {
        let field = format!("{path}.scale.{name}");
        let value = at(scale, &format!("/{name}"));
        let written = value.as_str().unwrap_or("");
        if written.is_empty() {
            errors.required(field, "");
        } else if simple_path(errors, value, &field) && !written.starts_with(&format!(".{root}.")) {
            errors.invalid(field, value, format!("should be a json path under .{root}"));
        }
    }
    let selector = at(scale, "/labelSelectorPath");
    let written = selector.as_str().unwrap_or("");
    let field = format!("{path}.scale.labelSelectorPath");
    let is_below = written.starts_with(".spec.") || written.starts_with(".status.");
    if !written.is_empty() && simple_path(errors, selector, &field) && !is_below {
        errors.invalid(field, selector, "should be a json path under either .spec or .status");
    }
}

fn validate_column(errors: &mut Errors, column: &Value, path: &str) {
    if text(column, "/name").is_empty() {
        errors.required(format!("{path}.name"), "");
    }
    let must_be_type = format!("must be one of {COLUMN_TYPES}");
    match text(column, "/type") {
        "" => errors.required(format!("{path}.type"), &must_be_type),
        kind if COLUMN_TYPES.split(',').any(|known| known == kind) => {}
        _ => errors.invalid(format!("{path}.type"), at(column, "/type"), must_be_type),
    }
    let format = text(column, "/format");
    if !format.is_empty() && !COLUMN_FORMATS.split(',').any(|known| known == format) {
        let must_be = format!("must be one of {COLUMN_FORMATS}");
        errors.invalid(format!("{path}.format"), at(column, "/format"), must_be);
    }
    let field = format!("{path}.JSONPath");
    if text(column, "/jsonPath").is_empty() {
        errors.required(field, "");
    } else {
        simple_path(errors, at(column, "/jsonPath"), &field);
    }
}

fn selectable_fields(errors: &mut Errors, fields: &[Value], schema: &Value, path: &str) {
    let mut seen: Vec<&str> = Vec::new();
    for (i, field) in fields.iter().enumerate() {
        let at_path = format!("{path}[{i}].jsonPath");
        let written = at(field, "/jsonPath");
        let json_path = written.as_str().unwrap_or("");
        if json_path.is_empty() {
            errors.required(at_path, "");
            continue;
        }
        let found = match schema_at(schema, json_path) {
            Ok(found) => found,
            Err(why) => {
                errors.invalid(at_path, written, format!("is an invalid path: {why}"));
                continue;
            }
        };
        if json_path.starts_with(".metadata") {
            errors.invalid(at_path.clone(), written, "must not point to fields in metadata");
        }
        if !matches!(text(found, "/type"), "string" | "boolean" | "integer") {
            errors.invalid(
                at_path.clone(),
                written,
                "must point to a field of type string, boolean or integer. Enum string fields and strings with \
                 formats are allowed.",
            );
        }
        if seen.contains(&json_path) {
            errors.duplicate(at_path, written);
        } else {
            seen.push(json_path);
        }
    }
    if seen.len() > SELECTABLE_FIELDS_MAX {
        errors.extend([FieldError::too_many(path, seen.len(), SELECTABLE_FIELDS_MAX)]);
    }
}

/// The schema of the field that a simple path (`.spec.a`) names.
fn schema_at<'a>(schema: &'a Value, path: &str) -> Result<&'a Value, String> {
    let Some(fields) = path.strip_prefix('.') else {
        return Err(format!("expected [ or . but got: {path}"));
    };
    let mut found = schema;
    for field in fields.split('.') {
        if field.contains('[') {
            return Err("array notation is not allowed".to_owned());
        }
        let next = match found["properties"].get(field) {
            Some(property) => property,
            None if found["additionalProperties"].is_object() => &found["additionalProperties"],
            None => return Err(format!("does not refer to a valid field: {field}")),
        };
        found = next;
    }
    Ok(found)
}

fn conversion(errors: &mut Errors, conversion: &Value) {
    let strategy = at(conversion, "/strategy");
    let webhook = at(conversion, "/webhook");
    let versions = items(webhook, "/conversionReviewVersions");
    let config = at(webhook, "/clientConfig");
    let config_path = "spec.conversion.webhookClientConfig";
    let versions_path = "spec.conversion.conversionReviewVersions";
    match strategy.as_str().unwrap_or("") {
        "" => errors.required("spec.conversion.strategy", ""),
        "None" => {
            if config.is_object() {
                errors.forbidden(config_path, "should not be set when strategy is not set to Webhook");
            }
            if !versions.is_empty() {
                errors.forbidden(versions_path, "should not be set when strategy is not set to Webhook");
            }
        }
        "Webhook" => {
            if !config.is_object() {
                errors.required(config_path, "required when strategy is set to Webhook");
            } else if present(config, "/url") == present(config, "/service") {
                errors.required(config_path, "exactly one of url or service is required");
            } else {
                client_config(errors, config, config_path);
            }
            review_versions(errors, versions, versions_path);
        }
        _ => errors.not_supported("spec.conversion.strategy", strategy, &["None", "Webhook"]),
    }
}

fn client_config(errors: &mut Errors, config: &Value, path: &str) {
    if let Some(url) = at(config, "/url").as_str()
        && !url.starts_with("https://")
    {
        let text = "'https' is the only allowed URL scheme; desired format: https://host[/path]";
        errors.invalid(format!("{path}.url"), &url.into(), text);
    }
    let service = at(config, "/service");
    if service.is_object() {
        for field in ["name", "namespace"] {
            if text(service, &format!("/{field}")).is_empty() {
                errors.required(format!("{path}.service.{field}"), &format!("service {field} is required"));
            }
        }
        if !(1..=65_535).contains(&int(service, "/port")) {
            let text = "port is not valid: must be between 1 and 65535, inclusive";
            errors.invalid(format!("{path}.service.port"), at(service, "/port"), text);
        }
        let called = text(service, "/path");
        if !called.is_empty() && !called.starts_with('/') {
            errors.invalid(format!("{path}.service.path"), &called.into(), "must start with a '/'");
        }
    }
}

fn review_versions(errors: &mut Errors, versions: &[Value], path: &str) {
    if versions.is_empty() {
        errors.required(path, "");
        return;
    }
    for (i, version) in versions.iter().enumerate() {
        if versions[..i].contains(version) {
            errors.invalid(format!("{path}[{i}]"), version, "duplicate version");
            continue;
        }
        let wrong = names::dns1035_label(version.as_str().unwrap_or(""), false);
        errors.all_invalid(&format!("{path}[{i}]"), version, wrong);
    }
    if !versions.iter().any(|version| version == "v1" || version == "v1beta1") {
        let shown: Value = versions.iter().cloned().collect();
        errors.invalid(path, &shown, "must include at least one of v1, v1beta1");
    }
}

fn stored_versions(errors: &mut Errors, object: &Value) {
    let path = "status.storedVersions";
    let stored = at(object, "/status/storedVersions");
    let names = items(stored, "");
    if names.is_empty() {
        errors.invalid(path, stored, "must have at least one stored version");
        return;
    }
    let versions = items(object, "/spec/versions");
    for version in versions.iter().filter(|version| flag(version, "/storage")) {
        if !names.contains(&version["name"]) {
            let name = text(version, "/name");
            errors.invalid(path, stored, format!("must have the storage version {name}"));
        }
    }
    for (i, name) in names.iter().enumerate() {
        if versions.iter().all(|version| version["name"] != *name) {
            let text = name.as_str().unwrap_or("");
            errors.invalid(
                format!("{path}[{i}]"),
                name,
                format!(
                    "missing from spec.versions; {text} was previously a storage version, and must remain in \
                     spec.versions until a storage migration ensures no data remains persisted in {text} and removes \
                     {text} from status.storedVersions"
                ),
            );
        }
    }
}

/// The structural form of a schema, for checks of the values in it.
fn parsed(schema: &Value) -> Option<Structural> {
    Structural::parse(schema).ok()
}
