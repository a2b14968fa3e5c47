//! `pods/NAME/eviction`: a deletion that asks the pod's PodDisruptionBudget first; 429 while it says no.

use api::{meta, selector::LabelSelector, status::Status};
use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::{admit, binding::set_condition};
use crate::{
    decode::Expected,
    handlers::{
        Call, Target,
        delete::Delete,
        now,
        target::read,
        update::{Update, check_name},
    },
    negotiate,
    ownership::Writer,
    query::{DeleteOptions, WriteOptions},
    respond,
    server::body::Body,
};

const VIOLATES: &str = "Cannot evict pod as it would violate the pod's disruption budget.";

pub async fn handle(call: &mut Call, target: &Target) -> Result<Response<Body>, Status> {
    let write = WriteOptions::parse(&call.query, "CreateOptions")?;
    let schema = call.state.schema;
    let ty =
        schema.type_of("policy", "v1", "Eviction").ok_or_else(|| Status::internal("no type Eviction"))?;
    let expected = Expected { group_version: "policy/v1", kind: "Eviction", ty };
    let mut eviction = call.decode_body(expected, write.field_validation).await?;
    check_name(&call.info.name, &mut eviction)?;
    admit(call, target, &write, &mut eviction).await?;
    let body = Some(&eviction["deleteOptions"]).filter(|options| options.is_object());
    let mut options = DeleteOptions::parse(Some(body.unwrap_or(&json!({}))), &call.query)?;
    options.dry_run |= write.dry_run;
    let key = target.key(&call.info.namespace, &call.info.name);
    let pod =
        read(&call.state.cache, &key, true).await?.ok_or_else(|| target.not_found(&call.info.name))?.value();
    if !ignores_budget(&pod) {
        spend_budget(call, &pod, options.dry_run).await?;
        if !options.dry_run {
            mark(call, target).await?;
        }
    }
    let delete = Delete {
        state: &call.state,
        user: &call.user,
        target,
        namespace: &call.info.namespace,
        name: &call.info.name,
        options: &options,
        admits: false,
        is_collection: false,
    };
    delete.run(&mut call.warnings).await?;
    let mut status = Status::success(None).to_value();
    status["code"] = json!(201);
    Ok(respond::value(StatusCode::CREATED, negotiate::for_error(&call.headers), &status))
}

/// Whether losing the pod takes nothing away from its application.
fn ignores_budget(pod: &Value) -> bool {
    matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed" | "Pending"))
        || meta::deletion_timestamp(pod).is_some()
}

fn is_ready(pod: &Value) -> bool {
    pod["status"]["conditions"]
        .as_array()
        .is_some_and(|conditions| conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"))
}

/// What a budget says to one eviction.
enum Verdict {
    /// Allowed, and counted.
    Spend,
    /// Allowed, since the pod is not among the healthy ones.
    Free,
}

async fn spend_budget(call: &mut Call, pod: &Value, dry_run: bool) -> Result<(), Status> {
    let schema = call.state.schema;
    let Some(resource) = schema.resource("policy", "v1", "poddisruptionbudgets") else { return Ok(()) };
    let budgets = Target::new(resource);
    let snapshot = call.state.cache.list(&budgets.list_prefix(&call.info.namespace));
    let matching: Vec<Value> = snapshot
        .iter()
        .map(|object| object.value())
        .filter(|budget| {
            LabelSelector::from_value(&budget["spec"]["selector"])
                .is_ok_and(|selector| selector.matches(meta::labels(pod)))
        })
        .collect();
    let budget = match matching.as_slice() {
        [] => return Ok(()),
        [budget] => budget,
        _ => {
            return Err(Status::internal(
                "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
            ));
        }
    };
    let mut update = Update::of(call, &budgets, &WriteOptions { dry_run, ..WriteOptions::default() });
    update.admits = false;
    update.subresource = "status".to_owned();
    update.name = meta::name(budget).to_owned();
    update.writer = Writer::Nobody;
    let name = meta::name(pod).to_owned();
    update
        .run(&mut call.warnings, &mut |budget| {
            let mut new = budget.clone();
            if let Verdict::Spend = judge(budget, pod)? {
                let allowed = budget["status"]["disruptionsAllowed"].as_i64().unwrap_or(0);
                new["status"]["disruptionsAllowed"] = json!(allowed - 1);
                new["status"]["disruptedPods"][&name] = json!(now());
            }
            Ok(new)
        })
        .await?;
    Ok(())
}

fn judge(budget: &Value, pod: &Value) -> Result<Verdict, Status> {
    let status = &budget["status"];
    let number = |field: &str| status[field].as_i64().unwrap_or(0);
    let name = meta::name(budget);
    if !is_ready(pod) {
        let healthy = number("currentHealthy") >= number("desiredHealthy") && number("desiredHealthy") > 0;
        if healthy || budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow" {
            return Ok(Verdict::Free);
        }
    }
    let refuse =
        |why: String| Err(Status::too_many_requests(VIOLATES, 10).with_cause("DisruptionBudget", &why, ""));
    if number("observedGeneration") < meta::generation(budget) {
        return refuse(format!("The disruption budget {name} is still being processed by the server."));
    }
    if number("disruptionsAllowed") <= 0 {
        return refuse(format!(
            "The disruption budget {name} needs {} healthy pods and has {} currently",
            number("desiredHealthy"),
            number("currentHealthy")
        ));
    }
    Ok(Verdict::Spend)
}

/// Says in the pod's status why it goes.
async fn mark(call: &mut Call, target: &Target) -> Result<(), Status> {
    let mut update = Update::of(call, target, &WriteOptions::default());
    update.admits = false;
    update.writer = Writer::Nobody;
    update.subresource = "status".to_owned();
    let condition = json!({
        "type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI",
        "message": "Eviction API: evicting",
    });
    update
        .run(&mut call.warnings, &mut |pod| {
            let mut new = pod.clone();
            set_condition(&mut new, condition.clone(), &now());
            Ok(new)
        })
        .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spent_budget_is_429_and_says_how_many_it_needs() {
        let pod = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
        let mut budget = json!({
            "metadata": {"name": "b", "generation": 1},
            "status": {"observedGeneration": 1, "disruptionsAllowed": 0, "desiredHealthy": 2, "currentHealthy": 2},
        });
        let error = judge(&budget, &pod).err().unwrap();
        assert_eq!((error.code, error.retry_after_seconds()), (429, Some(10)));
        assert_eq!(
            error.details.unwrap()["causes"][0]["message"],
            "The disruption budget b needs 2 healthy pods and has 2 currently"
        );
        budget["status"]["disruptionsAllowed"] = json!(1);
        assert!(matches!(judge(&budget, &pod), Ok(Verdict::Spend)));
    }

    #[test]
    fn a_pod_that_is_not_ready_costs_nothing_while_enough_others_are() {
        let budget = json!({"metadata": {"name": "b"}, "status": {"desiredHealthy": 1, "currentHealthy": 1}});
        assert!(matches!(judge(&budget, &json!({})), Ok(Verdict::Free)));
    }
}
