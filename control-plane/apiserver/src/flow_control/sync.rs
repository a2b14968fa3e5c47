//! Follows the objects: puts them in force, restores what is mandatory, and says of each FlowSchema whether the level that
//! it names is there.

use std::{sync::Arc, time::Duration};

use api::meta;
use futures::StreamExt as _;
use serde_json::{Value, json};
use tokio::time::{Instant, interval_at};
use tracing::warn;

use super::objects::GROUP;
use crate::{
    handlers::{Target, now, own::OwnUpdate},
    registry::fields::*,
    security::{GROUP_MASTERS, Identity},
    server::bootstrap,
    state::State,
    storage::keys,
};

const SCHEMAS: &str = "flowschemas";
const LEVELS: &str = "prioritylevelconfigurations";
const DANGLING: &str = "Dangling";
/// Between two distributions of the seats.
const LEND_INTERVAL: Duration = Duration::from_secs(10);
/// Between two attempts after a failure.
const RETRY: Duration = Duration::from_secs(1);

fn list(state: &State, plural: &str) -> Vec<Value> {
    let prefix = keys::list_prefix(GROUP, plural, None);
    state.cache.list(&prefix).iter().map(|object| object.value()).collect()
}

/// Puts what is stored in force.
pub(crate) fn load(state: &State) {
    state.flow_control.apply(&list(state, SCHEMAS), &list(state, LEVELS));
}

/// Follows until the server stops.
pub(crate) async fn run(state: Arc<State>) {
    let user = Identity::internal("system:apiserver", &[GROUP_MASTERS]);
    let mut lend = interval_at(Instant::now() + LEND_INTERVAL, LEND_INTERVAL);
    lend.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while !state.stop.is_cancelled() {
        let watch = |plural| state.cache.watch(&keys::list_prefix(GROUP, plural, None), None);
        let (Ok(schemas), Ok(levels)) = (watch(SCHEMAS), watch(LEVELS)) else {
            tokio::time::sleep(RETRY).await;
            continue;
        };
        let mut changes = futures::stream::select(schemas, levels);
        loop {
            load(&state);
            if let Err(error) = settle(&state, &user).await {
                warn!(%error, "the objects of priority and fairness are not as they should be; trying again");
                tokio::time::sleep(RETRY).await;
                break;
            }
            let changed = loop {
                tokio::select! {
                    () = state.stop.cancelled() => return,
                    change = changes.next() => break matches!(change, Some(Ok(_))),
                    _ = lend.tick() => state.flow_control.lend(),
                }
            };
            if !changed {
                break;
            }
        }
    }
}

/// Restores mandatory objects and the conditions of schemas.
async fn settle(state: &State, user: &Identity) -> anyhow::Result<()> {
    for object in super::objects::bootstrap() {
        bootstrap::ensure(state, user, object).await?;
    }
    let levels = list(state, LEVELS);
    for schema in list(state, SCHEMAS) {
        let level = text(&schema, "/spec/priorityLevelConfiguration/name");
        let exists = levels.iter().any(|object| meta::name(object) == level);
        if let Some(condition) = dangling(&schema, exists, &now()) {
            write_condition(state, user, meta::name(&schema), &condition).await?;
        }
    }
    Ok(())
}

/// The condition where it is not what it should be.
fn dangling(schema: &Value, level_exists: bool, now: &str) -> Option<Value> {
    let level = text(schema, "/spec/priorityLevelConfiguration/name");
    let (status, reason, end) = if level_exists {
        ("False", "Found", "it exists")
    } else {
        ("True", "NotFound", "there is no such object")
    };
    let mut condition = json!({
        "type": DANGLING,
        "status": status,
        "reason": reason,
        "message": format!(
            "This FlowSchema references the PriorityLevelConfiguration object named {} {} {end}",
            api::field::quote(level),
            if level_exists { "and" } else { "but" },
        ),
        "lastTransitionTime": now,
    });
    let old = items(schema, "/status/conditions").iter().find(|old| text(old, "/type") == DANGLING);
    if let Some(old) = old {
        if text(old, "/status") == status {
            condition["lastTransitionTime"] = old["lastTransitionTime"].clone();
        }
        if same(old, &condition) {
            return None;
        }
    }
    Some(condition)
}

async fn write_condition(
    state: &State,
    user: &Identity,
    name: &str,
    condition: &Value,
) -> anyhow::Result<()> {
    let Some(resource) = state.schema.resource(GROUP, "v1", SCHEMAS) else { return Ok(()) };
    let target = Target::new(resource);
    let update =
        OwnUpdate { state, user, target: &target, subresource: "status", namespace: "", name, admits: true };
    let written = update
        .run(&mut |schema| {
            let conditions = list_of_conditions(schema);
            conditions.retain(|old| text(old, "/type") != DANGLING);
            conditions.push(condition.clone());
        })
        .await;
    match written {
        Err(status) if status.reason != "NotFound" => Err(status.into()),
        _ => Ok(()),
    }
}

fn list_of_conditions(schema: &mut Value) -> &mut Vec<Value> {
    crate::registry::fields::list(child(schema, "status"), "conditions")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schema_says_whether_its_level_is_there() {
        let schema = json!({"spec": {"priorityLevelConfiguration": {"name": "l"}}});
        let found = dangling(&schema, true, "t1").unwrap();
        assert_eq!(
            (found["status"].as_str(), found["reason"].as_str(), found["message"].as_str()),
            (
                Some("False"),
                Some("Found"),
                Some(
                    "This FlowSchema references the PriorityLevelConfiguration object named \"l\" and it exists"
                )
            )
        );
        let mut said = schema.clone();
        said["status"]["conditions"] = json!([found]);
        assert_eq!(dangling(&said, true, "t2"), None);
        let gone = dangling(&said, false, "t2").unwrap();
        assert_eq!(
            (gone["status"].as_str(), gone["lastTransitionTime"].as_str()),
            (Some("True"), Some("t2"))
        );
        assert!(gone["message"].as_str().unwrap().ends_with("named \"l\" but there is no such object"));
    }
}
