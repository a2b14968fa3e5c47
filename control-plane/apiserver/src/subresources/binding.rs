//! Binding a pod to a node: `pods/NAME/binding`, and the older `bindings` collection.

use api::{meta, status::Status};
use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::admit;
use crate::{
    decode::Expected,
    handlers::{
        Call, Target, now,
        update::{Update, check_name},
    },
    ownership::Writer,
    query::WriteOptions,
    respond,
    server::body::Body,
};

pub async fn handle(call: &mut Call) -> Result<Response<Body>, Status> {
    let options = WriteOptions::parse(&call.query, "CreateOptions")?;
    let schema = call.state.schema;
    let ty = schema.type_of("", "v1", "Binding").ok_or_else(|| Status::internal("no type Binding"))?;
    let expected = Expected { group_version: "v1", kind: "Binding", ty };
    let mut binding = call.decode_body(expected, options.field_validation).await?;
    if call.info.subresource.is_empty() {
        call.info.name = meta::name(&binding).to_owned();
    }
    check_name(&call.info.name, &mut binding)?;
    meta::set_namespace(&mut binding, &call.info.namespace);
    let pods = schema.resource("", "v1", "pods").ok_or_else(|| Status::internal("no resource pods"))?;
    let target = Target::new(pods);
    let kind = binding["target"]["kind"].as_str().unwrap_or_default();
    let node = binding["target"]["name"].as_str().unwrap_or_default();
    if !matches!(kind, "" | "Node" | "Minion") || node.is_empty() {
        let error = if node.is_empty() {
            api::field::FieldError::required("target.name", "")
        } else {
            api::field::FieldError::not_supported("target.kind", kind, &["Node", "<empty>"])
        };
        return Err(Status::invalid("", "Binding", &call.info.name, vec![error]));
    }
    let asked = if call.info.subresource.is_empty() { "bindings" } else { "pods" };
    let asked = schema.resource("", "v1", asked).ok_or_else(|| Status::internal("no such resource"))?;
    admit(call, &Target::new(asked), &options, &mut binding).await?;
    let node = binding["target"]["name"].as_str().unwrap_or_default();
    let mut update = Update::of(call, &target, &options);
    update.subresource = "binding".to_owned();
    update.admits = false;
    update.writer = Writer::Nobody;
    update.run(&mut call.warnings, &mut |pod| bind(pod, &binding, node, &now())).await?;
    let mut status = Status::success(None).to_value();
    status["code"] = json!(201);
    Ok(respond::value(StatusCode::CREATED, crate::negotiate::for_error(&call.headers), &status))
}

/// The pod with its node. A pod is bound once.
fn bind(pod: &Value, binding: &Value, node: &str, now: &str) -> Result<Value, Status> {
    let name = meta::name(pod);
    let refuse = |why: String| Err(Status::conflict("", "pods/binding", name, why));
    if meta::deletion_timestamp(pod).is_some() {
        return refuse(format!("pod {name} is being deleted, cannot be assigned to a host"));
    }
    let bound = pod["spec"]["nodeName"].as_str().unwrap_or_default();
    if !bound.is_empty() {
        return refuse(format!("pod {name} is already assigned to node \"{bound}\""));
    }
    if pod["spec"]["schedulingGates"].as_array().is_some_and(|gates| !gates.is_empty()) {
        return refuse(format!("pod {name} has non-empty .spec.schedulingGates"));
    }
    let mut new = pod.clone();
    new["spec"]["nodeName"] = json!(node);
    for (key, value) in meta::annotations(binding).as_object().into_iter().flatten() {
        meta::set_annotation(&mut new, key, value.as_str().unwrap_or_default());
    }
    for (key, value) in meta::labels(binding).as_object().into_iter().flatten() {
        meta::set_label(&mut new, key, value.as_str().unwrap_or_default());
    }
    if !meta::uid(binding).is_empty() {
        meta::set_uid(&mut new, meta::uid(binding));
    }
    set_condition(&mut new, json!({"type": "PodScheduled", "status": "True"}), now);
    Ok(new)
}

/// Puts a condition into `status.conditions`; `lastTransitionTime` moves only when the status does.
pub fn set_condition(object: &mut Value, mut condition: Value, now: &str) {
    if !object["status"]["conditions"].is_array() {
        object["status"]["conditions"] = json!([]);
    }
    let Some(conditions) = object["status"]["conditions"].as_array_mut() else { return };
    let at = conditions.iter().position(|known| known["type"] == condition["type"]);
    let since = at
        .map(|at| &conditions[at])
        .filter(|known| known["status"] == condition["status"])
        .map(|known| known["lastTransitionTime"].clone())
        .unwrap_or_else(|| json!(now));
    condition["lastTransitionTime"] = since;
    match at {
        Some(at) => conditions[at] = condition,
        None => conditions.push(condition),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_bound_once() {
        let pod = json!({"metadata": {"name": "p"}, "spec": {}});
        let binding = json!({"metadata": {"labels": {"zone": "a"}}});
        let bound = bind(&pod, &binding, "n1", "2026-01-01T00:00:00Z").unwrap();
        assert_eq!(bound["spec"]["nodeName"], "n1");
        assert_eq!(bound["metadata"]["labels"]["zone"], "a");
        assert_eq!(bound["status"]["conditions"][0]["type"], "PodScheduled");
        let error = bind(&bound, &binding, "n2", "").unwrap_err();
        assert_eq!(error.code, 409);
        assert!(error.message.contains("already assigned to node \"n1\""), "{}", error.message);
    }

    #[test]
    fn a_condition_keeps_its_time_while_its_status_stays() {
        let mut pod = json!({});
        set_condition(&mut pod, json!({"type": "A", "status": "True"}), "1");
        set_condition(&mut pod, json!({"type": "A", "status": "True", "reason": "R"}), "2");
        assert_eq!(
            pod["status"]["conditions"],
            json!([{"type": "A", "status": "True", "reason": "R", "lastTransitionTime": "1"}])
        );
        set_condition(&mut pod, json!({"type": "A", "status": "False"}), "3");
        assert_eq!(pod["status"]["conditions"][0]["lastTransitionTime"], "3");
    }
}
