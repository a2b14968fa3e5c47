//! `/stats/summary` and `/metrics/resource`: what `kubectl top` and autoscalers are made from.

use std::collections::BTreeMap;
use std::fmt::Write;

use http::StatusCode;
use k8s_cri::v1 as cri;
use serde_json::{Value, json};

use super::{Answer, Refusal, State, text};
use crate::actual::timestamp;
use crate::cri::{LABEL_CONTAINER_NAME, LABEL_POD_NAME, LABEL_POD_NAMESPACE, LABEL_POD_UID};

fn value(number: &Option<cri::UInt64Value>) -> u64 {
    number.as_ref().map_or(0, |number| number.value)
}

fn label<'a>(stats: &'a cri::ContainerStats, name: &str) -> &'a str {
    let labels = stats.attributes.as_ref().map(|attributes| &attributes.labels);
    labels.and_then(|labels| labels.get(name)).map(String::as_str).unwrap_or_default()
}

/// Prometheus text: CPU seconds and working set of every container.
pub async fn metrics(state: &State) -> Answer {
    let stats = state.context.runtime.list_container_stats().await.map_err(Refusal::internal)?;
    let mut cpu = String::from(
        "# HELP container_cpu_usage_seconds_total Cumulative cpu time consumed by the container in core-seconds\n\
         # TYPE container_cpu_usage_seconds_total counter\n",
    );
    let mut memory = String::from(
        "# HELP container_memory_working_set_bytes Current working set of the container in bytes\n\
         # TYPE container_memory_working_set_bytes gauge\n",
    );
    for stats in stats.iter().filter(|stats| !label(stats, LABEL_CONTAINER_NAME).is_empty()) {
        let labels = format!(
            "{{container=\"{}\",namespace=\"{}\",pod=\"{}\"}}",
            label(stats, LABEL_CONTAINER_NAME),
            label(stats, LABEL_POD_NAMESPACE),
            label(stats, LABEL_POD_NAME)
        );
        if let Some(usage) = &stats.cpu {
            let nanoseconds = value(&usage.usage_core_nano_seconds);
            let (whole, rest) = (nanoseconds / 1_000_000_000, nanoseconds % 1_000_000_000);
            let at = usage.timestamp / 1_000_000;
            let _ = writeln!(cpu, "container_cpu_usage_seconds_total{labels} {whole}.{rest:09} {at}");
        }
        if let Some(usage) = &stats.memory {
            let at = usage.timestamp / 1_000_000;
            let bytes = value(&usage.working_set_bytes);
            let _ = writeln!(memory, "container_memory_working_set_bytes{labels} {bytes} {at}");
        }
    }
    Ok(text(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", cpu + &memory))
}

/// The summary API: pods with their containers.
pub async fn summary(state: &State) -> Answer {
    let stats = state.context.runtime.list_container_stats().await.map_err(Refusal::internal)?;
    let mut pods: BTreeMap<&str, (Value, Vec<Value>)> = BTreeMap::new();
    for stats in stats.iter().filter(|stats| !label(stats, LABEL_CONTAINER_NAME).is_empty()) {
        let reference = json!({
            "name": label(stats, LABEL_POD_NAME),
            "namespace": label(stats, LABEL_POD_NAMESPACE),
            "uid": label(stats, LABEL_POD_UID),
        });
        let mut container = json!({"name": label(stats, LABEL_CONTAINER_NAME)});
        if let Some(usage) = &stats.cpu {
            container["cpu"] = json!({
                "time": timestamp(usage.timestamp).to_string(),
                "usageCoreNanoSeconds": value(&usage.usage_core_nano_seconds),
                "usageNanoCores": value(&usage.usage_nano_cores),
            });
        }
        if let Some(usage) = &stats.memory {
            container["memory"] = json!({
                "time": timestamp(usage.timestamp).to_string(),
                "workingSetBytes": value(&usage.working_set_bytes),
            });
        }
        let pod = pods.entry(label(stats, LABEL_POD_UID)).or_insert_with(|| (reference, Vec::new()));
        pod.1.push(container);
    }
    let pods: Vec<Value> = pods
        .into_values()
        .map(|(reference, containers)| json!({"podRef": reference, "containers": containers}))
        .collect();
    let node = json!({"nodeName": state.context.config.node_name});
    Ok(text(StatusCode::OK, "application/json", json!({"node": node, "pods": pods}).to_string()))
}
