//! Roles and bindings; one strategy each serves the namespaced and the cluster-wide kind.

use api::{field::FieldError, names};
use serde_json::{Value, json};

use super::{
    Column, Context, Strategy,
    fields::*,
    rules::Errors,
    table::{AGE, NAME, NAME_AND_CREATED},
};

pub(super) struct Roles;
pub(super) struct Bindings;

const GROUP: &str = "rbac.authorization.k8s.io";

impl Strategy for Roles {
    fn validate(&self, context: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        for (i, rule) in items(object, "/rules").iter().enumerate() {
            let path = format!("rules[{i}]");
            if items(rule, "/verbs").is_empty() {
                errors.required(format!("{path}.verbs"), "verbs must contain at least one value");
            }
            let urls = items(rule, "/nonResourceURLs");
            let (groups, resources) = (items(rule, "/apiGroups"), items(rule, "/resources"));
            if !urls.is_empty() {
                let at_urls = format!("{path}.nonResourceURLs");
                if context.resource.namespaced {
                    let detail = "namespaced rules cannot apply to non-resource URLs";
                    errors.invalid(&at_urls, at(rule, "/nonResourceURLs"), detail);
                }
                if !groups.is_empty() || !resources.is_empty() || !items(rule, "/resourceNames").is_empty() {
                    let detail = "rules cannot apply to both regular resources and non-resource URLs";
                    errors.invalid(at_urls, at(rule, "/nonResourceURLs"), detail);
                }
                continue;
            }
            if groups.is_empty() {
                errors.required(
                    format!("{path}.apiGroups"),
                    "resource rules must supply at least one api group",
                );
            }
            if resources.is_empty() {
                errors.required(
                    format!("{path}.resources"),
                    "resource rules must supply at least one resource",
                );
            }
        }
        for (i, selector) in items(object, "/aggregationRule/clusterRoleSelectors").iter().enumerate() {
            errors.label_selector(&format!("aggregationRule.clusterRoleSelectors[{i}]"), selector);
        }
        errors.into_vec()
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }

    fn name_errors(&self, name: &str, is_prefix: bool) -> Vec<String> {
        names::path_segment(name, is_prefix)
    }

    fn columns(&self) -> &'static [Column] {
        NAME_AND_CREATED
    }
}

const BINDING_COLUMNS: &[Column] = &[
    NAME,
    Column::new("Role", "string", |o, _| {
        format!("{}/{}", text(o, "/roleRef/kind"), text(o, "/roleRef/name")).into()
    }),
    AGE,
    Column::new("Users", "string", |o, _| subjects(o, "User").into()).wide(),
    Column::new("Groups", "string", |o, _| subjects(o, "Group").into()).wide(),
    Column::new("ServiceAccounts", "string", |o, _| subjects(o, "ServiceAccount").into()).wide(),
];

impl Strategy for Bindings {
    fn default(&self, object: &mut Value) {
        set_if_zero(child(object, "roleRef"), "apiGroup", GROUP);
        for subject in each(object, "subjects") {
            if matches!(text(subject, "/kind"), "User" | "Group") {
                set_if_zero(subject, "apiGroup", GROUP);
            }
        }
    }

    fn validate(&self, context: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        let role = at(object, "/roleRef");
        if text(role, "/apiGroup") != GROUP {
            errors.not_supported("roleRef.apiGroup", at(role, "/apiGroup"), &[GROUP]);
        }
        let kinds: &[&str] =
            if context.resource.namespaced { &["Role", "ClusterRole"] } else { &["ClusterRole"] };
        if !kinds.contains(&text(role, "/kind")) {
            errors.not_supported("roleRef.kind", at(role, "/kind"), kinds);
        }
        match text(role, "/name") {
            "" => errors.required("roleRef.name", ""),
            name => errors.all_invalid("roleRef.name", &name.into(), names::path_segment(name, false)),
        }
        for (i, subject) in items(object, "/subjects").iter().enumerate() {
            self::subject(&mut errors, subject, &format!("subjects[{i}]"), context.resource.namespaced);
        }
        errors.into_vec()
    }

    fn validate_update(&self, context: &Context<'_>, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        errors.extend(self.validate(context, new));
        if !same(at(new, "/roleRef"), at(old, "/roleRef")) {
            errors.invalid("roleRef", at(new, "/roleRef"), "cannot change roleRef");
        }
        errors.into_vec()
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }

    fn name_errors(&self, name: &str, is_prefix: bool) -> Vec<String> {
        names::path_segment(name, is_prefix)
    }

    fn columns(&self) -> &'static [Column] {
        BINDING_COLUMNS
    }
}

fn subject(errors: &mut Errors, subject: &Value, path: &str, namespaced: bool) {
    let name = text(subject, "/name");
    if name.is_empty() {
        errors.required(format!("{path}.name"), "");
    }
    let group = at(subject, "/apiGroup");
    match text(subject, "/kind") {
        "ServiceAccount" => {
            if !name.is_empty() {
                errors.dns1123_subdomain(&format!("{path}.name"), &name.into());
            }
            if !is_zero(group) {
                errors.not_supported(format!("{path}.apiGroup"), group, &[""]);
            }
            if !namespaced && text(subject, "/namespace").is_empty() {
                errors.required(format!("{path}.namespace"), "");
            }
        }
        "User" | "Group" => {
            if group != GROUP {
                errors.not_supported(format!("{path}.apiGroup"), group, &[GROUP]);
            }
        }
        kind => {
            errors.not_supported(format!("{path}.kind"), &json!(kind), &["ServiceAccount", "User", "Group"])
        }
    }
}

fn subjects(binding: &Value, kind: &str) -> String {
    let of_kind = items(binding, "/subjects").iter().filter(|subject| text(subject, "/kind") == kind);
    let shown = of_kind.map(|subject| match (kind, text(subject, "/namespace")) {
        ("ServiceAccount", namespace) if !namespace.is_empty() => {
            format!("{namespace}/{}", text(subject, "/name"))
        }
        _ => text(subject, "/name").to_owned(),
    });
    shown.collect::<Vec<_>>().join(", ")
}
