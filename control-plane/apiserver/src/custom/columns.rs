//! `additionalPrinterColumns`: what `kubectl get` shows of a custom resource.

use serde_json::{Value, json};

use super::jsonpath::JsonPath;
use crate::registry::human_duration;

/// One column and the path of its cells.
struct Column {
    definition: Value,
    kind: String,
    /// `None` where the path cannot be read: the cells are empty.
    path: Option<JsonPath>,
}

/// The columns of one version.
pub(super) struct Columns {
    columns: Vec<Column>,
}

impl Columns {
    /// Reads the columns of a version; name and age where it has none.
    pub(super) fn of(version: &Value) -> Self {
        let age = json!({
            "name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp",
            "description": "CreationTimestamp is a timestamp representing the server time when this object was created.",
        });
        let written = version["additionalPrinterColumns"].as_array().filter(|columns| !columns.is_empty());
        let columns =
            written.map_or_else(|| vec![column(&age)], |written| written.iter().map(column).collect());
        Self { columns }
    }

    pub(super) fn definitions(&self) -> Vec<Value> {
        let name =
            json!({"name": "Name", "type": "string", "format": "name", "description": "", "priority": 0});
        std::iter::once(name).chain(self.columns.iter().map(|column| column.definition.clone())).collect()
    }

    pub(super) fn cells(&self, object: &Value, now: i64) -> Vec<Value> {
        let name = object["metadata"]["name"].clone();
        let cell = |column: &Column| {
            let value = column.path.as_ref().and_then(|path| path.first(object));
            value.map_or(Value::Null, |value| cell(&column.kind, value, now))
        };
        std::iter::once(name).chain(self.columns.iter().map(cell)).collect()
    }
}

fn column(written: &Value) -> Column {
    let text = |name: &str| written[name].as_str().unwrap_or_default();
    let path = text("jsonPath");
    let description = match text("description") {
        "" => format!("Custom resource definition column (in JSONPath format): {path}"),
        description => description.to_owned(),
    };
    Column {
        definition: json!({
            "name": text("name"), "type": text("type"), "format": text("format"), "description": description,
            "priority": written["priority"].as_i64().unwrap_or(0),
        }),
        kind: text("type").to_owned(),
        path: JsonPath::parse(path).ok(),
    }
}

fn cell(kind: &str, value: &Value, now: i64) -> Value {
    match (kind, value) {
        (_, Value::Null) => Value::Null,
        ("integer", Value::Number(number)) => {
            number.as_i64().or_else(|| number.as_f64().map(|float| float as i64)).into()
        }
        ("number", Value::Number(number)) => number.clone().into(),
        ("boolean", Value::Bool(_)) => value.clone(),
        ("string", Value::String(_)) => value.clone(),
        ("string", other) => other.to_string().into(),
        ("date", Value::String(text)) => match api::time::parse(text) {
            Ok(then) => human_duration(now - then.as_second()).into(),
            Err(_) => "<invalid>".into(),
        },
        _ => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_follow_their_column_s_type() {
        let version = json!({"additionalPrinterColumns": [
            {"name": "Replicas", "type": "integer", "jsonPath": ".spec.replicas", "priority": 1},
            {"name": "Ready", "type": "string", "jsonPath": ".status.conditions[?(@.type==\"Ready\")].status"},
            {"name": "Tags", "type": "string", "jsonPath": ".spec.tags"},
            {"name": "Since", "type": "date", "jsonPath": ".status.since"},
            {"name": "On", "type": "boolean", "jsonPath": ".spec.on"},
            {"name": "Wrong", "type": "integer", "jsonPath": ".spec.on"},
            {"name": "Missing", "type": "string", "jsonPath": ".spec.missing"},
        ]});
        let columns = Columns::of(&version);
        let object = json!({
            "metadata": {"name": "a"}, "spec": {"replicas": 3, "tags": ["x"], "on": true},
            "status": {"conditions": [{"type": "Ready", "status": "True"}], "since": "2026-01-01T00:00:00Z"},
        });
        let now = api::time::parse("2026-01-01T00:05:00Z").unwrap().as_second();
        let cells = columns.cells(&object, now);
        assert_eq!(Value::from(cells), json!(["a", 3, "True", "[\"x\"]", "5m", true, null, null]));
        assert_eq!(columns.definitions()[1]["priority"], 1);
    }

    #[test]
    fn a_version_without_columns_shows_name_and_age() {
        let columns = Columns::of(&json!({}));
        let names: Vec<Value> = columns.definitions().iter().map(|column| column["name"].clone()).collect();
        assert_eq!(names, ["Name", "Age"]);
    }
}
