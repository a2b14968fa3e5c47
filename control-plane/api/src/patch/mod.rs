//! The three patches: JSON Patch (RFC 6902), JSON Merge Patch (RFC 7386), and strategic merge, which knows the schema.

mod strategic;

use serde_json::Value;
pub use strategic::strategic_merge;

/// How many operations a JSON Patch may have.
const OPERATIONS_MAX: usize = 10_000;
/// How many bytes `copy` operations may add in all.
const COPIED_BYTES_MAX: usize = 3 * 1024 * 1024;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// The patch cannot be read: 400.
    #[error("{0}")]
    Malformed(String),
    /// The patch can be read but does not fit the object: 422.
    #[error("{0}")]
    Unprocessable(String),
    /// More operations or bytes than allowed: 413.
    #[error("{0}")]
    TooLarge(String),
}

/// Applies a JSON Patch; `patch` is the array of operations.
///
/// # Errors
/// Names the operation that failed; `doc` is never half patched, as the result is new.
pub fn json_patch(doc: &Value, patch: &Value) -> Result<Value, PatchError> {
    let operations = patch
        .as_array()
        .ok_or_else(|| PatchError::Malformed("a JSON patch is an array of operations".to_owned()))?;
    if operations.len() > OPERATIONS_MAX {
        return Err(PatchError::TooLarge(format!(
            "The allowed maximum operations in a JSON patch is {OPERATIONS_MAX}, got {}",
            operations.len()
        )));
    }
    let mut result = doc.clone();
    let mut copied_bytes = 0;
    for (i, operation) in operations.iter().enumerate() {
        let parsed: json_patch::PatchOperation = serde_json::from_value(operation.clone())
            .map_err(|error| PatchError::Malformed(format!("operation {i} of the JSON patch: {error}")))?;
        if let json_patch::PatchOperation::Copy(copy) = &parsed {
            copied_bytes += copy.from.resolve(&result).map_or(0, |value| value.to_string().len());
            if copied_bytes > COPIED_BYTES_MAX {
                return Err(PatchError::TooLarge(format!(
                    "the copy operations of the JSON patch add more than {COPIED_BYTES_MAX} bytes"
                )));
            }
        }
        json_patch::patch(&mut result, std::slice::from_ref(&parsed)).map_err(|error| {
            let name = operation["op"].as_str().unwrap_or("");
            let path = operation["path"].as_str().unwrap_or("");
            PatchError::Unprocessable(format!(
                "operation {i} of the JSON patch ({name} {path}): {}",
                error.kind
            ))
        })?;
    }
    Ok(result)
}

/// Applies a JSON Merge Patch.
///
/// # Errors
/// When `patch` is not an object: replacing a whole object by something else is never meant.
pub fn merge_patch(doc: &Value, patch: &Value) -> Result<Value, PatchError> {
    if !patch.is_object() {
        return Err(PatchError::Malformed("a JSON merge patch is an object".to_owned()));
    }
    let mut result = doc.clone();
    json_patch::merge(&mut result, patch);
    Ok(result)
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn json_patch_applies_in_order() {
        let doc = json!({"a": [1, 2], "b": {"c": 1}});
        let patch = json!([
            {"op": "test", "path": "/b/c", "value": 1},
            {"op": "add", "path": "/a/-", "value": 3},
            {"op": "remove", "path": "/b/c"},
            {"op": "copy", "from": "/a", "path": "/d"},
        ]);
        assert_eq!(json_patch(&doc, &patch).unwrap(), json!({"a": [1, 2, 3], "b": {}, "d": [1, 2, 3]}));
    }

    #[test]
    fn json_patch_names_the_operation_that_failed() {
        let error = json_patch(&json!({}), &json!([{"op": "remove", "path": "/x"}])).unwrap_err();
        assert!(
            matches!(&error, PatchError::Unprocessable(text) if text.contains("operation 0") && text.contains("/x"))
        );
        assert!(matches!(json_patch(&json!({}), &json!({})), Err(PatchError::Malformed(_))));
        assert!(matches!(
            json_patch(&json!({}), &json!([{"op": "fly", "path": ""}])),
            Err(PatchError::Malformed(_))
        ));
    }

    #[test]
    fn json_patch_does_not_grow_without_bound() {
        let operations: Vec<Value> =
            (0..40).map(|i| json!({"op": "copy", "from": "", "path": (["/a", "/b"][i % 2])})).collect();
        let error = json_patch(&json!({"x": "0123456789"}), &Value::from(operations)).unwrap_err();
        assert!(matches!(error, PatchError::TooLarge(_)));
    }

    #[test]
    fn merge_patch_removes_nulls_and_replaces_lists() {
        let doc = json!({"a": {"b": 1, "c": [1]}, "d": 1});
        let patch = json!({"a": {"b": null, "c": [2]}, "e": {"f": null, "g": 1}});
        assert_eq!(merge_patch(&doc, &patch).unwrap(), json!({"a": {"c": [2]}, "d": 1, "e": {"g": 1}}));
        assert!(merge_patch(&doc, &json!([])).is_err());
    }

    /// Random JSON without nulls, rooted in an object.
    pub(crate) fn objects() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            "[a-c]{0,3}".prop_map(Value::from)
        ];
        let tree = leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[a-e]", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        });
        prop::collection::btree_map("[a-e]", tree, 0..4)
            .prop_map(|map| Value::Object(map.into_iter().collect()))
    }

    proptest! {
        #[test]
        fn merging_the_empty_patch_changes_nothing(doc in objects()) {
            prop_assert_eq!(merge_patch(&doc, &json!({})).unwrap(), doc);
        }

        #[test]
        fn merging_a_document_with_itself_changes_nothing(doc in objects()) {
            prop_assert_eq!(merge_patch(&doc, &doc).unwrap(), doc);
        }

        #[test]
        fn merging_twice_is_merging_once(doc in objects(), patch in objects()) {
            let once = merge_patch(&doc, &patch).unwrap();
            prop_assert_eq!(merge_patch(&once, &patch).unwrap(), once);
        }
    }
}
