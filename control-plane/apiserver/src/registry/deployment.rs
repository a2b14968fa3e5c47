//! Deployments.

use api::field::FieldError;
use serde_json::Value;

use super::{
    Column, Context, Strategy,
    fields::*,
    pod_spec::default_template,
    rules::{Errors, count_or_percent},
    table::{AGE, CONTAINERS, IMAGES, NAME, number, selector_text},
    workload::{always_restarted, not_negative, selector_and_template},
};

pub(super) struct Deployments;

const COLUMNS: &[Column] = &[
    NAME,
    Column::new("Ready", "string", |o, _| {
        format!("{}/{}", int(o, "/status/readyReplicas"), int(o, "/spec/replicas")).into()
    }),
    Column::new("Up-to-date", "string", |o, _| number(o, "/status/updatedReplicas")),
    Column::new("Available", "string", |o, _| number(o, "/status/availableReplicas")),
    AGE,
    CONTAINERS,
    IMAGES,
    Column::new("Selector", "string", |o, _| selector_text(at(o, "/spec/selector")).into()).wide(),
];

impl Strategy for Deployments {
    fn default(&self, object: &mut Value) {
        let spec = child(object, "spec");
        set_default(spec, "replicas", 1);
        let strategy = child(spec, "strategy");
        set_if_zero(strategy, "type", "RollingUpdate");
        if text(strategy, "/type") == "RollingUpdate" {
            let rolling_update = child(strategy, "rollingUpdate");
            set_default(rolling_update, "maxUnavailable", "25%");
            set_default(rolling_update, "maxSurge", "25%");
        }
        set_default(spec, "revisionHistoryLimit", 10);
        set_default(spec, "progressDeadlineSeconds", 600);
        default_template(spec);
    }

    fn validate(&self, _context: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        not_negative(&mut errors, object, &["replicas"]);
        selector_and_template(&mut errors, object, "deployment");
        always_restarted(&mut errors, object, "ReplicaSet");
        strategy(&mut errors, at(object, "/spec/strategy"));
        not_negative(
            &mut errors,
            object,
            &["minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds"],
        );
        let deadline = at(object, "/spec/progressDeadlineSeconds");
        if deadline.as_i64().is_some_and(|seconds| seconds <= int(object, "/spec/minReadySeconds")) {
            errors.invalid("spec.progressDeadlineSeconds", deadline, "must be greater than minReadySeconds");
        }
        errors.into_vec()
    }

    fn validate_update(&self, context: &Context<'_>, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        if context.subresource == "status" {
            for key in
                ["replicas", "updatedReplicas", "readyReplicas", "availableReplicas", "unavailableReplicas"]
            {
                errors.not_negative(format!("status.{key}"), at(new, &format!("/status/{key}")));
            }
            return errors.into_vec();
        }
        errors.extend(self.validate(context, new));
        errors.immutable("spec.selector", at(new, "/spec/selector"), at(old, "/spec/selector"));
        errors.into_vec()
    }

    fn has_generation(&self) -> bool {
        true
    }

    /// Upstream counts changed annotations too: revisions are kept there.
    fn generation_changed(&self, new: &Value, old: &Value) -> bool {
        let changed = |pointer: &str| !same(at(new, pointer), at(old, pointer));
        changed("/spec") || changed("/metadata/annotations")
    }

    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }
}

fn strategy(errors: &mut Errors, strategy: &Value) {
    let rolling_update = at(strategy, "/rollingUpdate");
    match text(strategy, "/type") {
        "Recreate" if !rolling_update.is_null() => errors.forbidden(
            "spec.strategy.rollingUpdate",
            "may not be specified when strategy `type` is 'Recreate'",
        ),
        "Recreate" => {}
        "RollingUpdate" => rolling(errors, rolling_update),
        _ => errors.not_supported("spec.strategy", strategy, &["Recreate", "RollingUpdate"]),
    }
}

fn rolling(errors: &mut Errors, rolling_update: &Value) {
    let path = "spec.strategy.rollingUpdate";
    let (unavailable, surge) = (at(rolling_update, "/maxUnavailable"), at(rolling_update, "/maxSurge"));
    errors.int_or_percent(&format!("{path}.maxUnavailable"), unavailable);
    errors.int_or_percent(&format!("{path}.maxSurge"), surge);
    if count_or_percent(unavailable) == 0 && count_or_percent(surge) == 0 {
        errors.invalid(format!("{path}.maxUnavailable"), unavailable, "may not be 0 when `maxSurge` is 0");
    }
    errors.not_more_than_100_percent(&format!("{path}.maxUnavailable"), unavailable);
}
