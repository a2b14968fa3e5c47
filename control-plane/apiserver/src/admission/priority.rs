//! Turns the name of a priority class into the number that the scheduler compares.

use api::status::Status;
use serde_json::Value;

use super::{Lookup, Operation, Plugin, Request};
use crate::registry::fields::*;

pub(super) struct Priority;

const GROUP: &str = "scheduling.k8s.io";
const CLASSES: &str = "priorityclasses";
const DEFAULT_PREEMPTION: &str = "PreemptLowerPriority";

impl Plugin for Priority {
    fn admit(&self, request: &Request<'_>, object: &mut Value, lookup: &dyn Lookup) -> Result<(), Status> {
        if !request.is("", "pods") {
            return Ok(());
        }
        match (request.operation, request.old) {
            (Operation::Create, _) => resolve(request, child(object, "spec"), lookup),
            (Operation::Update, Some(old)) => {
                for key in ["priority", "preemptionPolicy"] {
                    if !present(object, &format!("/spec/{key}")) {
                        copy(child(object, "spec"), at(old, "/spec"), key);
                    }
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn validate(&self, request: &Request<'_>, object: &Value, lookup: &dyn Lookup) -> Result<(), Status> {
        let writes = matches!(request.operation, Operation::Create | Operation::Update);
        if !writes || !request.is(GROUP, CLASSES) || !flag(object, "/globalDefault") {
            return Ok(());
        }
        match default_class(lookup) {
            Some(class) if text(&class, "/metadata/name") != request.name => Err(request.forbidden(format!(
                "PriorityClass {} is already marked as default. Only one default can exist",
                text(&class, "/metadata/name")
            ))),
            _ => Ok(()),
        }
    }
}

fn default_class(lookup: &dyn Lookup) -> Option<Value> {
    let classes = lookup.list(GROUP, CLASSES, "").into_iter();
    classes.filter(|class| flag(class, "/globalDefault")).min_by_key(|class| int(class, "/value"))
}

fn resolve(request: &Request<'_>, spec: &mut Value, lookup: &dyn Lookup) -> Result<(), Status> {
    let name = text(spec, "/priorityClassName").to_owned();
    let class = if name.is_empty() {
        default_class(lookup)
    } else {
        let found = lookup.get(GROUP, CLASSES, "", &name);
        let missing = || request.forbidden(format!("no PriorityClass with name {name} was found"));
        Some(found.ok_or_else(missing)?)
    };
    let class = class.unwrap_or(Value::Null);
    let value = int(&class, "/value");
    if let Some(given) = at(spec, "/priority").as_i64().filter(|given| *given != value) {
        return Err(request.forbidden(format!(
            "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller \
             computed {value} from the given PriorityClass name"
        )));
    }
    let policy = match text(&class, "/preemptionPolicy") {
        "" => DEFAULT_PREEMPTION,
        policy => policy,
    };
    let given = text(spec, "/preemptionPolicy");
    if !given.is_empty() && given != policy {
        return Err(request.forbidden(format!(
            "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority admission \
             controller computed {policy} from the given PriorityClass name"
        )));
    }
    if !class.is_null() {
        copy_name(spec, &class);
    }
    set(spec, "priority", value);
    set(spec, "preemptionPolicy", policy);
    Ok(())
}

fn copy_name(spec: &mut Value, class: &Value) {
    set(spec, "priorityClassName", text(class, "/metadata/name"));
}
