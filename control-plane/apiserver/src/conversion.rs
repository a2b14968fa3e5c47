//! Resources that are served in more than one form and stored in one: what is stored, and the pure functions between.
//!
//! `events.k8s.io/v1` Events are core Events under other names; `autoscaling/v1` HorizontalPodAutoscalers are those of v2
//! with a single CPU figure.

use std::sync::Arc;

use api::{
    schema::{Resource, Schema, TypeId},
    shared::Shared,
    status::Status,
};
use async_trait::async_trait;
use bytes::Bytes;
use serde_json::{Map, Value, json};

use crate::storage::cache::Object;

/// How what a resource serves relates to what is stored.
#[derive(Clone)]
pub enum Form {
    /// Served as stored.
    Stored,
    /// Between two forms of a built-in kind.
    Builtin(&'static Conversion),
    /// A kind of a CustomResourceDefinition.
    Custom(Arc<dyn Convert>),
}

impl Form {
    pub fn of(resource: &Resource) -> Self {
        of(resource).map_or(Self::Stored, Self::Builtin)
    }
}

/// How one version of a custom kind shows what is stored: converted, without what the schema does not know, defaulted.
#[async_trait]
pub trait Convert: Send + Sync {
    /// Makes what [`Convert::json`] needs of these objects; the only step that may ask a webhook.
    async fn prepare(&self, objects: &[&Arc<Object>]) -> Result<(), Status>;
    /// The object as this version shows it; [`Convert::prepare`] came before.
    fn json(&self, object: &Object) -> Bytes;
    /// The object in the version that is stored.
    async fn to_stored(&self, value: Value) -> Result<Value, Status>;
    /// The type of a version of the kind (`GROUP/VERSION`), served or not; `None` where there is no such version.
    fn type_in(&self, api_version: &str) -> Option<(Shared<Schema>, TypeId)>;
    /// Whether a webhook converts.
    fn has_webhook(&self) -> bool;
    /// Where a version of the kind has its replica count; `None` where it has none.
    fn replicas_path(&self, api_version: &str) -> Option<&str>;
    /// An object in a version of the kind, where that needs no webhook.
    fn rename(&self, value: &Value, api_version: &str) -> Option<Value>;
    /// Objects in a version of the kind, which a webhook makes.
    async fn convert(&self, values: Vec<Value>, api_version: &str) -> Result<Vec<Value>, Status>;
}

/// Asks the conversion webhook of a CustomResourceDefinition.
#[async_trait]
pub trait Webhook: Send + Sync {
    /// Converts objects to `version` (`GROUP/VERSION`); `definition` is the whole CustomResourceDefinition. Answers with
    /// as many objects, in the same order, as the webhook sent them; the caller checks what it may not change.
    async fn convert(
        &self,
        definition: &Value,
        version: &str,
        objects: Vec<Value>,
    ) -> Result<Vec<Value>, Status>;
}

/// How a served form relates to what is stored.
pub struct Conversion {
    /// The group whose keys hold the objects.
    pub group: &'static str,
    pub to_stored: fn(Value) -> Value,
    pub from_stored: fn(Value) -> Value,
}

static EVENTS: Conversion = Conversion { group: "", to_stored: event_to_core, from_stored: event_from_core };
static AUTOSCALERS: Conversion =
    Conversion { group: "autoscaling", to_stored: autoscaler_to_v2, from_stored: autoscaler_from_v2 };

/// The conversion of a resource; most are stored as they are served.
pub fn of(resource: &Resource) -> Option<&'static Conversion> {
    match (resource.group.as_str(), resource.version.as_str(), resource.plural.as_str()) {
        ("events.k8s.io", _, "events") => Some(&EVENTS),
        ("autoscaling", "v1", "horizontalpodautoscalers") => Some(&AUTOSCALERS),
        _ => None,
    }
}

/// The names of an Event's fields: core, events.k8s.io.
const EVENT_FIELDS: [(&str, &str); 8] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
    ("reportingInstance", "reportingInstance"),
];

fn rename(object: &mut Map<String, Value>, from: &str, to: &str) {
    if from != to
        && let Some(value) = object.remove(from)
    {
        object.insert(to.to_owned(), value);
    }
}

fn event_to_core(mut event: Value) -> Value {
    if let Some(object) = event.as_object_mut() {
        for (core, new) in EVENT_FIELDS {
            rename(object, new, core);
        }
        object.entry("involvedObject").or_insert_with(|| json!({}));
    }
    event["apiVersion"] = json!("v1");
    event
}

fn event_from_core(mut event: Value) -> Value {
    if let Some(object) = event.as_object_mut() {
        for (core, new) in EVENT_FIELDS {
            rename(object, core, new);
        }
        object.entry("eventTime").or_insert(Value::Null);
    }
    event["apiVersion"] = json!("events.k8s.io/v1");
    event
}

fn is_cpu_utilization(metric: &Value) -> bool {
    metric["type"] == "Resource"
        && metric["resource"]["name"] == "cpu"
        && metric["resource"]["target"]["type"] == "Utilization"
}

fn autoscaler_to_v2(mut scaler: Value) -> Value {
    scaler["apiVersion"] = json!("autoscaling/v2");
    if let Some(spec) = scaler["spec"].as_object_mut()
        && let Some(percent) = spec.remove("targetCPUUtilizationPercentage")
    {
        spec.insert(
            "metrics".to_owned(),
            json!([{
                "type": "Resource",
                "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": percent}},
            }]),
        );
    }
    if let Some(status) = scaler["status"].as_object_mut()
        && let Some(percent) = status.remove("currentCPUUtilizationPercentage")
    {
        status.insert(
            "currentMetrics".to_owned(),
            json!([{
                "type": "Resource",
                "resource": {"name": "cpu", "current": {"averageUtilization": percent}},
            }]),
        );
    }
    scaler
}

fn autoscaler_from_v2(mut scaler: Value) -> Value {
    scaler["apiVersion"] = json!("autoscaling/v1");
    if let Some(spec) = scaler["spec"].as_object_mut() {
        let metrics = spec.remove("metrics").unwrap_or_default();
        spec.remove("behavior");
        let cpu =
            metrics.as_array().and_then(|metrics| metrics.iter().find(|metric| is_cpu_utilization(metric)));
        if let Some(metric) = cpu {
            let percent = metric["resource"]["target"]["averageUtilization"].clone();
            spec.insert("targetCPUUtilizationPercentage".to_owned(), percent);
        }
    }
    if let Some(status) = scaler["status"].as_object_mut() {
        let metrics = status.remove("currentMetrics").unwrap_or_default();
        status.remove("conditions");
        let cpu = metrics
            .as_array()
            .and_then(|metrics| metrics.iter().find(|metric| metric["resource"]["name"] == "cpu"));
        if let Some(metric) = cpu {
            let percent = metric["resource"]["current"]["averageUtilization"].clone();
            status.insert("currentCPUUtilizationPercentage".to_owned(), percent);
        }
    }
    scaler
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_survive_the_way_to_core_and_back() {
        let event = json!({
            "apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "e"},
            "regarding": {"kind": "Pod", "name": "p"}, "note": "n", "reportingController": "c", "reason": "R",
            "eventTime": "2026-01-01T00:00:00.000000Z", "deprecatedCount": 2,
        });
        let core = event_to_core(event.clone());
        assert_eq!(core["involvedObject"]["name"], "p");
        assert_eq!(core["message"], "n");
        assert_eq!(core["reportingComponent"], "c");
        assert_eq!(core["count"], 2);
        assert_eq!(event_from_core(core), event);
    }

    #[test]
    fn the_cpu_figure_of_v1_is_a_metric_of_v2() {
        let scaler = json!({"apiVersion": "autoscaling/v1", "spec": {"targetCPUUtilizationPercentage": 80}});
        let v2 = autoscaler_to_v2(scaler.clone());
        assert_eq!(v2["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 80);
        assert_eq!(autoscaler_from_v2(v2)["spec"], scaler["spec"]);
    }
}
