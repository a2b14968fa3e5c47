//! What bounds and scales workloads: autoscalers, disruption budgets, quotas, limit ranges.

use api::field::FieldError;
use serde_json::{Value, json};

use super::{
    Column, Context, Strategy,
    fields::*,
    keep_status,
    rules::Errors,
    table::{AGE, NAME, NAME_AND_CREATED, NONE, UNSET, number},
};

pub(super) struct HorizontalPodAutoscalers;
pub(super) struct PodDisruptionBudgets;
pub(super) struct ResourceQuotas;
pub(super) struct LimitRanges;

const DEFAULT_CPU_UTILIZATION: i64 = 80;
const METRICS_SHOWN: usize = 2;
const UNKNOWN: &str = "<unknown>";

const AUTOSCALER_COLUMNS: &[Column] = &[
    NAME,
    Column::new("Reference", "string", |o, _| {
        format!("{}/{}", text(o, "/spec/scaleTargetRef/kind"), text(o, "/spec/scaleTargetRef/name")).into()
    }),
    Column::new("Targets", "string", |o, _| metrics(o).into()),
    Column::new("MinPods", "string", |o, _| match at(o, "/spec/minReplicas").as_i64() {
        Some(count) => count.to_string().into(),
        None => UNSET.into(),
    }),
    Column::new("MaxPods", "string", |o, _| number(o, "/spec/maxReplicas")),
    Column::new("Replicas", "string", |o, _| number(o, "/status/currentReplicas")),
    AGE,
];

impl Strategy for HorizontalPodAutoscalers {
    fn default(&self, object: &mut Value) {
        let is_v1 = text(object, "/apiVersion") == "autoscaling/v1";
        let spec = child(object, "spec");
        set_default(spec, "minReplicas", 1);
        if is_v1 {
            return;
        }
        if items(spec, "/metrics").is_empty() {
            let target = json!({ "type": "Utilization", "averageUtilization": DEFAULT_CPU_UTILIZATION });
            set(
                spec,
                "metrics",
                json!([{ "type": "Resource", "resource": { "name": "cpu", "target": target } }]),
            );
        }
        if let Some(behavior) = existing(spec, "behavior") {
            let up = json!([
                { "type": "Pods", "value": 4, "periodSeconds": 15 },
                { "type": "Percent", "value": 100, "periodSeconds": 15 },
            ]);
            let down = json!([{ "type": "Percent", "value": 100, "periodSeconds": 15 }]);
            let scale_up = child(behavior, "scaleUp");
            set_default(scale_up, "stabilizationWindowSeconds", 0);
            set_default(scale_up, "selectPolicy", "Max");
            set_default(scale_up, "policies", up);
            let scale_down = child(behavior, "scaleDown");
            set_default(scale_down, "selectPolicy", "Max");
            set_default(scale_down, "policies", down);
        }
    }

    fn validate(&self, _context: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        let spec = at(object, "/spec");
        let (min, max) = (at(spec, "/minReplicas"), at(spec, "/maxReplicas"));
        if min.as_i64().is_some_and(|count| count < 1) {
            errors.invalid("spec.minReplicas", min, "must be greater than or equal to 1");
        }
        match max.as_i64() {
            None | Some(0) => errors.required("spec.maxReplicas", "must be set and greater than 0"),
            Some(count) if count < 0 => {
                errors.invalid("spec.maxReplicas", max, "must be greater than or equal to 1");
            }
            Some(count) if min.as_i64().is_some_and(|min| min > count) => {
                errors.invalid("spec.maxReplicas", max, "must be greater than or equal to `minReplicas`");
            }
            Some(_) => {}
        }
        for key in ["kind", "name"] {
            let path = format!("spec.scaleTargetRef.{key}");
            match text(spec, &format!("/scaleTargetRef/{key}")) {
                "" => errors.required(path, ""),
                value => errors.all_invalid(&path, &value.into(), api::names::path_segment(value, false)),
            }
        }
        errors.into_vec()
    }

    fn columns(&self) -> &'static [Column] {
        AUTOSCALER_COLUMNS
    }
}

/// `cpu: 12%/80%`, one for each metric, two at most.
fn metrics(autoscaler: &Value) -> String {
    if text(autoscaler, "/apiVersion") == "autoscaling/v1" {
        let shown =
            |pointer| at(autoscaler, pointer).as_i64().map_or(UNKNOWN.to_owned(), |v| format!("{v}%"));
        let (current, target) =
            (shown("/status/currentCPUUtilizationPercentage"), shown("/spec/targetCPUUtilizationPercentage"));
        return if target == UNKNOWN { NONE.to_owned() } else { format!("cpu: {current}/{target}") };
    }
    let (specs, statuses) = (items(autoscaler, "/spec/metrics"), items(autoscaler, "/status/currentMetrics"));
    if specs.is_empty() {
        return NONE.to_owned();
    }
    let none = Value::Null;
    let all: Vec<_> =
        specs.iter().enumerate().map(|(i, spec)| metric(spec, statuses.get(i).unwrap_or(&none))).collect();
    match all.len() {
        0..=METRICS_SHOWN => all.join(", "),
        count => format!("{} + {} more...", all[..METRICS_SHOWN].join(", "), count - METRICS_SHOWN),
    }
}

fn metric(spec: &Value, status: &Value) -> String {
    let kind = match text(spec, "/type") {
        "External" => "external",
        "Pods" => "pods",
        "Object" => "object",
        "Resource" => "resource",
        "ContainerResource" => "containerResource",
        _ => return "<unknown type>".to_owned(),
    };
    let (target, current) = (at(spec, &format!("/{kind}/target")), at(status, &format!("/{kind}/current")));
    let shown =
        |value: &Value| quantity(value).map_or_else(|| UNKNOWN.to_owned(), |quantity| quantity.to_string());
    let average = at(target, "/averageValue");
    let resource = matches!(kind, "resource" | "containerResource");
    let (now, wanted) = match (average.is_null(), resource) {
        (false, _) => (shown(at(current, "/averageValue")), shown(average)),
        (true, true) => {
            let percent =
                |value: &Value, none: &str| value.as_i64().map_or(none.to_owned(), |v| format!("{v}%"));
            let pointer = "/averageUtilization";
            (percent(at(current, pointer), UNKNOWN), percent(at(target, pointer), "<auto>"))
        }
        (true, false) => (shown(at(current, "/value")), shown(at(target, "/value"))),
    };
    match (resource, kind, average.is_null()) {
        (true, ..) => format!("{}: {now}/{wanted}", text(spec, &format!("/{kind}/name"))),
        (false, "external" | "object", false) => format!("{now}/{wanted} (avg)"),
        _ => format!("{now}/{wanted}"),
    }
}

impl Strategy for PodDisruptionBudgets {
    fn prepare_create(&self, _context: &Context<'_>, object: &mut Value) {
        let status =
            json!({ "currentHealthy": 0, "desiredHealthy": 0, "disruptionsAllowed": 0, "expectedPods": 0 });
        set(object, "status", status);
    }

    fn validate(&self, _context: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        let spec = at(object, "/spec");
        if present(spec, "/minAvailable") && present(spec, "/maxUnavailable") {
            errors.invalid("spec", spec, "minAvailable and maxUnavailable cannot be both set");
        }
        for key in ["minAvailable", "maxUnavailable"] {
            let (path, value) = (format!("spec.{key}"), at(spec, &format!("/{key}")));
            errors.int_or_percent(&path, value);
            errors.not_more_than_100_percent(&path, value);
        }
        errors.label_selector("spec.selector", at(spec, "/selector"));
        let policies = ["AlwaysAllow", "IfHealthyBudget"];
        errors.optional_one_of(
            "spec.unhealthyPodEvictionPolicy",
            at(spec, "/unhealthyPodEvictionPolicy"),
            &policies,
        );
        errors.into_vec()
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }

    fn columns(&self) -> &'static [Column] {
        const COLUMNS: &[Column] = &[
            NAME,
            Column::new("Min Available", "string", |o, _| int_or_text(at(o, "/spec/minAvailable")).into()),
            Column::new("Max Unavailable", "string", |o, _| {
                int_or_text(at(o, "/spec/maxUnavailable")).into()
            }),
            Column::new("Allowed Disruptions", "integer", |o, _| number(o, "/status/disruptionsAllowed")),
            AGE,
        ];
        COLUMNS
    }
}

fn int_or_text(value: &Value) -> String {
    match value {
        Value::Null => "N/A".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

impl Strategy for ResourceQuotas {
    fn prepare_update(&self, context: &Context<'_>, new: &mut Value, old: &Value) {
        if context.subresource == "status" { copy(new, old, "spec") } else { keep_status(new, old) }
    }

    fn validate(&self, _context: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        for (resource, amount) in entries(object, "/spec/hard") {
            let path = format!("spec.hard[{resource}]");
            errors.label_name(&path, resource);
            errors.resource_amount(&path, resource, amount);
        }
        let scopes = [
            "BestEffort",
            "CrossNamespacePodAffinity",
            "NotBestEffort",
            "NotTerminating",
            "PriorityClass",
            "Terminating",
            "VolumeAttributesClass",
        ];
        for scope in items(object, "/spec/scopes") {
            if !scopes.iter().any(|known| scope == known) {
                errors.invalid("spec.scopes", at(object, "/spec/scopes"), "unsupported scope");
            }
        }
        errors.into_vec()
    }

    fn validate_update(&self, context: &Context<'_>, new: &Value, old: &Value) -> Vec<FieldError> {
        if context.subresource == "status" {
            return Vec::new();
        }
        let mut errors = Errors::default();
        errors.extend(self.validate(context, new));
        errors.immutable("spec.scopes", at(new, "/spec/scopes"), at(old, "/spec/scopes"));
        errors.into_vec()
    }

    fn columns(&self) -> &'static [Column] {
        const COLUMNS: &[Column] = &[
            NAME,
            Column::new("Request", "string", |o, _| usage(o, false).into()),
            Column::new("Limit", "string", |o, _| usage(o, true).into()),
            AGE,
        ];
        COLUMNS
    }
}

/// `cpu: 1/2, pods: 3/10`: used of hard, limits apart from the rest.
fn usage(quota: &Value, limits: bool) -> String {
    let shown =
        |value: &Value| quantity(value).map_or_else(|| "0".to_owned(), |quantity| quantity.to_string());
    let hard =
        entries(quota, "/status/hard").iter().filter(|(name, _)| name.starts_with("limits.") == limits);
    let used = at(quota, "/status/used");
    let parts = hard.map(|(name, hard)| {
        format!("{name}: {}/{}", shown(used.get(name).unwrap_or(&Value::Null)), shown(hard))
    });
    parts.collect::<Vec<_>>().join(", ")
}

impl Strategy for LimitRanges {
    fn default(&self, object: &mut Value) {
        for limit in each(child(object, "spec"), "limits").filter(|limit| text(limit, "/type") == "Container")
        {
            let fill = |limit: &mut Value, to: &str, from: &str| {
                let amounts = entries(limit, &format!("/{from}")).clone();
                for (resource, amount) in amounts {
                    set_default(child(limit, to), &resource, amount);
                }
            };
            fill(limit, "default", "max");
            fill(limit, "defaultRequest", "default");
            fill(limit, "defaultRequest", "min");
        }
    }

    fn validate(&self, _context: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        let mut types: Vec<&str> = Vec::new();
        for (i, limit) in items(object, "/spec/limits").iter().enumerate() {
            let path = format!("spec.limits[{i}]");
            let kind = text(limit, "/type");
            errors.label_name(&format!("{path}.type"), kind);
            if types.contains(&kind) {
                errors.duplicate(format!("{path}.type"), &kind.into());
            }
            types.push(kind);
            if kind == "Pod" {
                for key in ["default", "defaultRequest"] {
                    if !entries(limit, &format!("/{key}")).is_empty() {
                        let detail = "may not be specified when `type` is 'Pod'";
                        errors.forbidden(format!("{path}.{key}"), detail);
                    }
                }
            }
            ordered(&mut errors, limit, &path);
        }
        errors.into_vec()
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }

    fn columns(&self) -> &'static [Column] {
        NAME_AND_CREATED
    }
}

/// min ≤ default request ≤ default ≤ max, where given.
fn ordered(errors: &mut Errors, limit: &Value, path: &str) {
    const PAIRS: [(&str, &str, &str, &str, &str); 6] = [
        ("min", "min", "max", "min value", "max value"),
        ("defaultRequest", "min", "defaultRequest", "min value", "default request value"),
        ("defaultRequest", "defaultRequest", "max", "default request value", "max value"),
        ("defaultRequest", "defaultRequest", "default", "default request value", "default limit value"),
        ("default", "min", "default", "min value", "default value"),
        ("default", "default", "max", "default value", "max value"),
    ];
    for (at_key, low, high, low_word, high_word) in PAIRS {
        for (resource, low_value) in entries(limit, &format!("/{low}")) {
            let high_value = limit.get(high).and_then(|amounts| amounts.get(resource)).and_then(quantity);
            let (Some(lower), Some(higher)) = (quantity(low_value), high_value) else { continue };
            if lower.milli() > higher.milli() {
                let detail = format!("{low_word} {lower} is greater than {high_word} {higher}");
                errors.invalid(format!("{path}.{at_key}[{resource}]"), low_value, detail);
            }
        }
    }
}
