//! StatefulSets.

use api::{field::FieldError, names};
use serde_json::{Value, json};

use super::{
    Column, Context, Strategy,
    fields::*,
    pod_spec::{default_template, validate_template},
    rules::Errors,
    storage::default_claim,
    table::{AGE, CONTAINERS, IMAGES, NAME},
    workload::{always_restarted, matches_template, not_negative},
};

pub(super) struct StatefulSets;

const MUTABLE: [&str; 7] = [
    "replicas",
    "template",
    "updateStrategy",
    "minReadySeconds",
    "ordinals",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
];

const COLUMNS: &[Column] = &[
    NAME,
    Column::new("Ready", "string", |o, _| {
        format!("{}/{}", int(o, "/status/readyReplicas"), int(o, "/spec/replicas")).into()
    }),
    AGE,
    CONTAINERS,
    IMAGES,
];

impl Strategy for StatefulSets {
    fn default(&self, object: &mut Value) {
        let spec = child(object, "spec");
        set_if_zero(spec, "podManagementPolicy", "OrderedReady");
        let strategy = child(spec, "updateStrategy");
        if text(strategy, "/type").is_empty() {
            set(strategy, "type", "RollingUpdate");
            child(strategy, "rollingUpdate");
        }
        if text(strategy, "/type") == "RollingUpdate"
            && let Some(rolling_update) = existing(strategy, "rollingUpdate")
        {
            set_default(rolling_update, "partition", 0);
        }
        let retention = child(spec, "persistentVolumeClaimRetentionPolicy");
        set_if_zero(retention, "whenDeleted", "Retain");
        set_if_zero(retention, "whenScaled", "Retain");
        set_default(spec, "replicas", 1);
        set_default(spec, "revisionHistoryLimit", 10);
        default_template(spec);
        for claim in each(spec, "volumeClaimTemplates") {
            set_if_zero(claim, "apiVersion", "v1");
            set_if_zero(claim, "kind", "PersistentVolumeClaim");
            default_claim(claim);
        }
    }

    fn prepare_create(&self, _context: &Context<'_>, object: &mut Value) {
        set(object, "status", json!({ "replicas": 0, "availableReplicas": 0 }));
    }

    fn validate(&self, _context: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        policies(&mut errors, object);
        not_negative(&mut errors, object, &["replicas", "minReadySeconds", "ordinals"]);
        if !text(object, "/spec/serviceName").is_empty() {
            errors.dns1123_label("spec.serviceName", at(object, "/spec/serviceName"));
        }
        let selector = at(object, "/spec/selector");
        if selector.is_null() {
            errors.required("spec.selector", "");
        } else {
            errors.label_selector("spec.selector", selector);
            if super::rules::is_empty_selector(selector) {
                errors.invalid("spec.selector", selector, "empty selector is invalid for statefulset");
            }
        }
        matches_template(&mut errors, object);
        errors.extend(validate_template(&with_claimed_volumes(at(object, "/spec")), "spec"));
        always_restarted(&mut errors, object, "StatefulSet");
        errors.into_vec()
    }

    fn validate_update(&self, context: &Context<'_>, new: &Value, old: &Value) -> Vec<FieldError> {
        if context.subresource == "status" {
            return Vec::new();
        }
        let mut errors = Errors::default();
        errors.extend(self.validate(context, new));
        let mut spec = at(new, "/spec").clone();
        for key in MUTABLE {
            copy(&mut spec, at(old, "/spec"), key);
        }
        if !same(&spec, at(old, "/spec")) {
            errors.forbidden(
                "spec",
                "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', \
                 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and \
                 'minReadySeconds' are forbidden",
            );
        }
        errors.into_vec()
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn name_errors(&self, name: &str, is_prefix: bool) -> Vec<String> {
        names::dns1123_label(name, is_prefix)
    }

    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }
}

fn policies(errors: &mut Errors, object: &Value) {
    let policy = at(object, "/spec/podManagementPolicy");
    if !matches!(policy.as_str(), Some("OrderedReady" | "Parallel")) {
        errors.invalid("spec.podManagementPolicy", policy, "must be 'OrderedReady' or 'Parallel'");
    }
    let strategy = at(object, "/spec/updateStrategy");
    let rolling_update = at(strategy, "/rollingUpdate");
    match text(strategy, "/type") {
        "OnDelete" if !rolling_update.is_null() => errors.invalid(
            "spec.updateStrategy.rollingUpdate",
            rolling_update,
            "only allowed for updateStrategy 'RollingUpdate'",
        ),
        "OnDelete" => {}
        "RollingUpdate" => {
            errors.not_negative(
                "spec.updateStrategy.rollingUpdate.partition",
                at(rolling_update, "/partition"),
            );
            let unavailable = at(rolling_update, "/maxUnavailable");
            errors.int_or_percent("spec.updateStrategy.rollingUpdate.maxUnavailable", unavailable);
        }
        _ => errors.invalid("spec.updateStrategy", strategy, "must be 'RollingUpdate' or 'OnDelete'"),
    }
    for key in ["whenDeleted", "whenScaled"] {
        let policy = at(object, &format!("/spec/persistentVolumeClaimRetentionPolicy/{key}"));
        if !matches!(policy.as_str(), Some("Retain" | "Delete")) {
            let path = format!("spec.persistentVolumeClaimRetentionPolicy.{key}");
            errors.not_supported(path, policy, &["Retain", "Delete"]);
        }
    }
}

/// The spec as its pods will see it: each claim template is a volume that containers may mount.
fn with_claimed_volumes(spec: &Value) -> Value {
    let mut with_volumes = json!({ "template": at(spec, "/template") });
    let pod_spec = child(child(&mut with_volumes, "template"), "spec");
    remove(pod_spec, "subdomain");
    remove(pod_spec, "hostname");
    let claims: Vec<_> =
        items(spec, "/volumeClaimTemplates").iter().map(|claim| text(claim, "/metadata/name")).collect();
    if !claims.is_empty() {
        let volumes = list(pod_spec, "volumes");
        volumes.retain(|volume| !claims.contains(&text(volume, "/name")));
        volumes.extend(
            claims.iter().map(|name| json!({ "name": name, "persistentVolumeClaim": { "claimName": name } })),
        );
    }
    with_volumes
}
