//! A pod's runtime class must be there; it brings overhead and scheduling constraints with it.

use api::status::Status;
use serde_json::Value;

use super::{Lookup, Plugin, Request};
use crate::registry::fields::*;

pub(super) struct RuntimeClass;

impl Plugin for RuntimeClass {
    fn admit(&self, request: &Request<'_>, object: &mut Value, lookup: &dyn Lookup) -> Result<(), Status> {
        let Some(class) = class_of(request, object, lookup)? else { return Ok(()) };
        let spec = child(object, "spec");
        let overhead = at(&class, "/overhead/podFixed");
        if !is_zero(overhead) {
            if !is_zero(at(spec, "/overhead")) && !same(at(spec, "/overhead"), overhead) {
                return Err(mismatch(request));
            }
            set(spec, "overhead", overhead.clone());
        }
        for (key, value) in entries(&class, "/scheduling/nodeSelector") {
            match entries(spec, "/nodeSelector").get(key) {
                Some(own) if own != value => {
                    let (value, own) = (value.as_str().unwrap_or(""), own.as_str().unwrap_or(""));
                    return Err(request.forbidden(format!(
                        "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {value}; \
                         pod.spec.nodeSelector[{key}] = {own}"
                    )));
                }
                Some(_) => {}
                None => set(child(spec, "nodeSelector"), key, value.clone()),
            }
        }
        for toleration in items(&class, "/scheduling/tolerations") {
            if !items(spec, "/tolerations").iter().any(|own| same(own, toleration)) {
                list(spec, "tolerations").push(toleration.clone());
            }
        }
        Ok(())
    }

    fn validate(&self, request: &Request<'_>, object: &Value, lookup: &dyn Lookup) -> Result<(), Status> {
        if !request.creates("", "pods") {
            return Ok(());
        }
        let class = class_of(request, object, lookup)?.unwrap_or(Value::Null);
        let (expected, own) = (at(&class, "/overhead/podFixed"), at(object, "/spec/overhead"));
        if expected.is_null() && !own.is_null() {
            let why = "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead";
            return Err(request.forbidden(why));
        }
        if same(expected, own) { Ok(()) } else { Err(mismatch(request)) }
    }
}

fn mismatch(request: &Request<'_>) -> Status {
    request.forbidden("pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead")
}

fn class_of(request: &Request<'_>, pod: &Value, lookup: &dyn Lookup) -> Result<Option<Value>, Status> {
    let name = text(pod, "/spec/runtimeClassName");
    if !request.creates("", "pods") || name.is_empty() {
        return Ok(None);
    }
    let class = lookup.get("node.k8s.io", "runtimeclasses", "", name);
    let missing = || request.forbidden(format!("pod rejected: RuntimeClass \"{name}\" not found"));
    class.map(Some).ok_or_else(missing)
}
