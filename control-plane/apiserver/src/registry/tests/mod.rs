mod columns;
mod network;
mod pods;
mod robustness;
mod storage_and_policy;
mod workloads;

use api::schema::{Resource, builtin};
use serde_json::{Value, json};

use super::{Context, Strategy, prepare_create, prepare_update, strategy, validate_create, validate_update};

pub(super) const NOW: &str = "2026-03-01T12:00:00Z";
pub(super) const NOW_SECONDS: i64 = 1_772_366_400;

pub(super) fn resource(group: &str, plural: &str) -> &'static Resource {
    let found = builtin().resources().iter().find(|r| r.group == group && r.plural == plural);
    found.unwrap_or_else(|| panic!("the schema has no {plural} in {group:?}"))
}

pub(super) fn context(resource: &'static Resource, subresource: &'static str) -> Context<'static> {
    Context { resource, subresource, now: NOW, user: "alice" }
}

/// One kind, driven as a handler drives it.
pub(super) struct Kind {
    pub(super) resource: &'static Resource,
    pub(super) strategy: &'static dyn Strategy,
}

impl Kind {
    pub(super) fn new(group: &str, plural: &str) -> Self {
        Self { resource: resource(group, plural), strategy: strategy(group, plural) }
    }

    /// Decoded, defaulted and prepared: what would be validated and stored.
    pub(super) fn created(&self, mut object: Value) -> Value {
        let decoded = builtin().decode(self.resource.ty, &mut object);
        assert!(decoded.unknown.is_empty() && decoded.errors.is_empty(), "{decoded:?}");
        builtin().default(self.resource.ty, &mut object);
        self.strategy.default(&mut object);
        prepare_create(self.strategy, &context(self.resource, ""), &mut object);
        object
    }

    /// The texts of what is wrong with a new object.
    pub(super) fn create_errors(&self, object: Value) -> Vec<String> {
        let object = self.created(object);
        let errors = validate_create(self.strategy, &context(self.resource, ""), &object);
        errors.iter().map(ToString::to_string).collect()
    }

    pub(super) fn accepted(&self, object: Value) -> Value {
        let object = self.created(object);
        let errors = validate_create(self.strategy, &context(self.resource, ""), &object);
        assert!(errors.is_empty(), "{errors:?}");
        object
    }

    pub(super) fn updated(&self, subresource: &'static str, mut new: Value, old: &Value) -> Value {
        builtin().default(self.resource.ty, &mut new);
        self.strategy.default(&mut new);
        prepare_update(self.strategy, &context(self.resource, subresource), &mut new, old);
        new
    }

    pub(super) fn update_errors(&self, subresource: &'static str, new: Value, old: &Value) -> Vec<String> {
        let new = self.updated(subresource, new, old);
        let errors = validate_update(self.strategy, &context(self.resource, subresource), &new, old);
        errors.iter().map(ToString::to_string).collect()
    }

    /// The row of a table as `kubectl get` shows it: NAME first; the wide columns after `|`.
    pub(super) fn row(&self, object: &Value) -> String {
        let cell = |value: Value| match value {
            Value::String(text) => text,
            other => other.to_string(),
        };
        let columns = self.strategy.columns().iter();
        let (narrow, wide): (Vec<_>, Vec<_>) = columns.partition(|column| column.priority == 0);
        let cells = |columns: Vec<&super::Column>| -> String {
            columns.iter().map(|c| cell((c.cell)(object, NOW_SECONDS))).collect::<Vec<_>>().join("  ")
        };
        let (narrow, wide) = (cells(narrow), cells(wide));
        if wide.is_empty() { narrow } else { format!("{narrow} | {wide}") }
    }
}

pub(super) fn metadata(name: &str) -> Value {
    json!({
        "name": name,
        "namespace": "default",
        "uid": "6f6e1d0e-0000-4000-8000-000000000001",
        "creationTimestamp": "2026-03-01T11:55:00Z",
    })
}

pub(super) fn template() -> Value {
    json!({
        "metadata": { "labels": { "app": "web" } },
        "spec": { "containers": [{ "name": "web", "image": "nginx:1.25" }] },
    })
}

/// `base` with `changes` merged in; null removes.
pub(super) fn with(base: &Value, changes: Value) -> Value {
    api::patch::merge_patch(base, &changes).expect("a merge patch always applies")
}
