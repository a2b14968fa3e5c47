//! What appliers and updaters own after each other, over real kinds and over a small schema of every kind of list.

mod apply;
mod record;
mod walks;

use serde_json::{Value, json};

use super::*;
use crate::schema::{self, Schema, TypeId};

pub(super) const NOW: &str = "2026-11-21T10:00:00Z";
pub(super) const LATER: &str = "2026-11-21T11:00:00Z";

/// A kind with one manager's writes to it.
#[derive(Clone, Copy)]
pub(super) struct Kind {
    api_version: &'static str,
    kind: &'static str,
}

pub(super) const DEPLOYMENT: Kind = Kind { api_version: "apps/v1", kind: "Deployment" };
pub(super) const CONFIG_MAP: Kind = Kind { api_version: "v1", kind: "ConfigMap" };
pub(super) const POD: Kind = Kind { api_version: "v1", kind: "Pod" };
pub(super) const SERVICE: Kind = Kind { api_version: "v1", kind: "Service" };

impl Kind {
    pub fn schema(self) -> &'static Schema {
        schema::builtin()
    }

    pub fn ty(self) -> TypeId {
        let (group, version) = crate::meta::group_and_version(self.api_version);
        self.schema().type_of(group, version, self.kind).unwrap()
    }

    pub fn by<'a>(self, manager: &'a str, now: &'a str) -> Ownership<'a> {
        Ownership {
            schema: self.schema(),
            ty: self.ty(),
            api_version: self.api_version,
            kind: self.kind,
            subresource: "",
            manager,
            now,
            reset: Reset::Fields(&[&["status"]]),
            versions: &OneVersion,
        }
    }

    pub fn object(self, rest: Value) -> Value {
        let mut object = json!({
            "apiVersion": self.api_version, "kind": self.kind, "metadata": {"name": "web", "namespace": "default"},
        });
        for (key, value) in rest.as_object().unwrap() {
            object[key] = value.clone();
        }
        object
    }
}

/// The fields of one manager, as text; empty where it owns none.
pub(super) fn owned(object: &Value, manager: &str) -> String {
    let entries = object["metadata"]["managedFields"].as_array();
    let entry = entries.into_iter().flatten().find(|entry| entry["manager"] == manager);
    entry.map(|entry| FieldSet::decode(&entry["fieldsV1"]).unwrap().to_json()).unwrap_or_default()
}

pub(super) fn time(object: &Value, manager: &str) -> Option<String> {
    let entries = object["metadata"]["managedFields"].as_array();
    let entry = entries.into_iter().flatten().find(|entry| entry["manager"] == manager)?;
    entry["time"].as_str().map(str::to_owned)
}

pub(super) fn managers(object: &Value) -> Vec<String> {
    let entries = object["metadata"]["managedFields"].as_array();
    entries
        .into_iter()
        .flatten()
        .map(|entry| {
            format!("{} {}", entry["manager"].as_str().unwrap(), entry["operation"].as_str().unwrap())
        })
        .collect()
}

pub(super) fn deployment(replicas: i64, image: &str) -> Value {
    DEPLOYMENT.object(json!({"spec": {
        "replicas": replicas,
        "selector": {"matchLabels": {"app": "web"}},
        "template": {
            "metadata": {"labels": {"app": "web"}},
            "spec": {"containers": [{"name": "c", "image": image, "ports": [{"containerPort": 80, "protocol": "TCP"}]}]},
        },
    }}))
}
