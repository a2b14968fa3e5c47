//! DaemonSets.

use api::field::FieldError;
use serde_json::{Value, json};

use super::{
    Column, Context, Strategy,
    fields::*,
    pod_spec::default_template,
    rules::{Errors, count_or_percent},
    table::{AGE, CONTAINERS, IMAGES, NAME, SELECTOR, labels, number},
    workload::{always_restarted, not_negative, selector_and_template},
};

pub(super) struct DaemonSets;

const COLUMNS: &[Column] = &[
    NAME,
    Column::new("Desired", "integer", |o, _| number(o, "/status/desiredNumberScheduled")),
    Column::new("Current", "integer", |o, _| number(o, "/status/currentNumberScheduled")),
    Column::new("Ready", "integer", |o, _| number(o, "/status/numberReady")),
    Column::new("Up-to-date", "integer", |o, _| number(o, "/status/updatedNumberScheduled")),
    Column::new("Available", "integer", |o, _| number(o, "/status/numberAvailable")),
    Column::new("Node Selector", "string", |o, _| {
        labels(entries(o, "/spec/template/spec/nodeSelector")).into()
    }),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

impl Strategy for DaemonSets {
    fn default(&self, object: &mut Value) {
        let spec = child(object, "spec");
        let strategy = child(spec, "updateStrategy");
        set_if_zero(strategy, "type", "RollingUpdate");
        if text(strategy, "/type") == "RollingUpdate" {
            let rolling_update = child(strategy, "rollingUpdate");
            set_default(rolling_update, "maxUnavailable", 1);
            set_default(rolling_update, "maxSurge", 0);
        }
        set_default(spec, "revisionHistoryLimit", 10);
        default_template(spec);
    }

    fn prepare_create(&self, _context: &Context<'_>, object: &mut Value) {
        let status = json!({
            "currentNumberScheduled": 0, "desiredNumberScheduled": 0, "numberMisscheduled": 0, "numberReady": 0,
        });
        set(object, "status", status);
    }

    fn validate(&self, _context: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        selector_and_template(&mut errors, object, "daemonset");
        always_restarted(&mut errors, object, "DaemonSet");
        not_negative(&mut errors, object, &["minReadySeconds", "revisionHistoryLimit"]);
        let strategy = at(object, "/spec/updateStrategy");
        match text(strategy, "/type") {
            "OnDelete" => {}
            "RollingUpdate" => rolling(&mut errors, at(strategy, "/rollingUpdate")),
            _ => errors.not_supported("spec.updateStrategy", strategy, &["RollingUpdate", "OnDelete"]),
        }
        errors.into_vec()
    }

    fn validate_update(&self, context: &Context<'_>, new: &Value, old: &Value) -> Vec<FieldError> {
        if context.subresource == "status" {
            return Vec::new();
        }
        let mut errors = Errors::default();
        errors.extend(self.validate(context, new));
        errors.immutable("spec.selector", at(new, "/spec/selector"), at(old, "/spec/selector"));
        errors.into_vec()
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }
}

fn rolling(errors: &mut Errors, rolling_update: &Value) {
    let path = "spec.updateStrategy.rollingUpdate";
    let (unavailable, surge) = (at(rolling_update, "/maxUnavailable"), at(rolling_update, "/maxSurge"));
    for (key, value) in [("maxUnavailable", unavailable), ("maxSurge", surge)] {
        errors.int_or_percent(&format!("{path}.{key}"), value);
        errors.not_more_than_100_percent(&format!("{path}.{key}"), value);
    }
    let (has_unavailable, has_surge) = (count_or_percent(unavailable) != 0, count_or_percent(surge) != 0);
    match (has_unavailable, has_surge) {
        (true, true) => {
            errors.invalid(
                format!("{path}.maxSurge"),
                surge,
                "may not be set when maxUnavailable is non-zero",
            );
        }
        (false, false) => errors.required(format!("{path}.maxUnavailable"), "cannot be 0 when maxSurge is 0"),
        _ => {}
    }
}
