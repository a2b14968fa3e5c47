//! The shapes that `as=` asks for: Table (`kubectl get`), PartialObjectMetadata and its list. Pure.

use api::{shared::Shared, status::Status};
use serde_json::{Map, Value, json};

use crate::{query::Query, registry::Strategy};

/// What a Table row carries beside its cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IncludeObject {
    None,
    Metadata,
    Object,
}

impl IncludeObject {
    pub fn parse(query: &Query) -> Result<Self, Status> {
        match query.get("includeObject").unwrap_or_default() {
            "" | "Metadata" => Ok(Self::Metadata),
            "None" => Ok(Self::None),
            "Object" => Ok(Self::Object),
            other => Err(Status::bad_request(format!(
                "unrecognized includeObject value: {other:?}, must be None, Metadata or Object"
            ))),
        }
    }
}

/// Renders objects as rows of a Table.
pub struct Tabler {
    pub strategy: Shared<dyn Strategy>,
    pub meta_version: &'static str,
    pub include: IncludeObject,
    /// Seconds since the epoch, for ages.
    pub now: i64,
}

impl Tabler {
    pub fn row(&self, object: Value) -> Value {
        let cells = self.strategy.cells(&object, self.now);
        let mut row = Map::from_iter([("cells".to_owned(), Value::from(cells))]);
        match self.include {
            IncludeObject::None => {}
            IncludeObject::Metadata => {
                row.insert("object".to_owned(), partial(&object, self.meta_version));
            }
            IncludeObject::Object => {
                row.insert("object".to_owned(), object);
            }
        }
        Value::Object(row)
    }

    /// The whole Table; `metadata` is that of a list (resourceVersion, continue, remainingItemCount).
    pub fn table(&self, metadata: Value, rows: Vec<Value>, with_columns: bool) -> Value {
        let definitions = if with_columns { self.strategy.column_definitions() } else { Vec::new() };
        json!({
            "kind": "Table",
            "apiVersion": format!("meta.k8s.io/{}", self.meta_version),
            "metadata": metadata,
            "columnDefinitions": definitions,
            "rows": rows,
        })
    }
}

/// The object's metadata alone.
pub fn partial(object: &Value, meta_version: &str) -> Value {
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": format!("meta.k8s.io/{meta_version}"),
        "metadata": object["metadata"],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Plain;
    impl Strategy for Plain {}

    #[test]
    fn a_kind_without_columns_of_its_own_shows_name_and_age() {
        let created = "2026-01-01T00:00:00Z";
        let object =
            json!({"kind": "X", "metadata": {"name": "a", "creationTimestamp": created}, "spec": {}});
        let now = api::time::parse(created).unwrap().as_second() + 5 * 86_400;
        let tabler = Tabler {
            strategy: Shared::Static(&Plain),
            meta_version: "v1",
            include: IncludeObject::Metadata,
            now,
        };
        let row = tabler.row(object);
        assert_eq!(row["cells"], json!(["a", "5d"]));
        assert_eq!(row["object"]["kind"], "PartialObjectMetadata");
        assert_eq!(row["object"].get("spec"), None);
        let table = tabler.table(json!({}), vec![row], true);
        assert_eq!(table["columnDefinitions"][1]["name"], "Age");
    }
}
