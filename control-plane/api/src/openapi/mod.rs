//! OpenAPI documents, made from the schema on demand: v3 per group and version (`kubectl explain`, `--validate`, merge
//! keys of `kubectl apply`), and one v2 document, as JSON or as protobuf, for clients that ask for it.
//!
//! Nothing is kept: callers keep the bytes they serve. The watch paths of old and the zero defaults of the published
//! documents are deliberately absent; no client reads them.

mod custom;
mod descriptions;
mod merge;
mod operations;
mod proto;
mod types;

use std::collections::{BTreeMap, BTreeSet};

pub use custom::Published;
use descriptions::Descriptions;
pub use merge::merge_v2;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::schema::{Schema, TypeId, builtin};

/// Raised when the code here writes something else from the same table, so that clients' caches notice.
const FORMAT: u32 = 1;

/// The two forms of the same content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dialect {
    V2,
    V3,
}

impl Dialect {
    fn reference(self, definition: &str) -> Value {
        match self {
            Self::V2 => json!({"$ref": format!("#/definitions/{definition}")}),
            Self::V3 => json!({"$ref": format!("#/components/schemas/{definition}")}),
        }
    }
}

/// A group and version that has a document: `("", "v1")`, `("apps", "v1")`.
fn group_versions(schema: &Schema) -> BTreeSet<(&str, &str)> {
    schema.resources().iter().map(|found| (found.group.as_str(), found.version.as_str())).collect()
}

/// `api/v1` or `apis/apps/v1`.
fn root(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

/// Names the content of the documents: changes when the table, the descriptions or this code changes. Upper case hex.
pub fn hash() -> String {
    let mut digest = Sha256::new();
    digest.update(FORMAT.to_be_bytes());
    digest.update(crate::schema::table_text());
    digest.update(descriptions::PACKED);
    digest.finalize().iter().map(|byte| format!("{byte:02X}")).collect()
}

/// The answer of `/openapi/v3`: where the document of each group and version is. `custom` are the groups and versions of
/// custom kinds, each with a text that changes whenever its document does.
pub fn v3_index(custom: &BTreeMap<(String, String), String>) -> Value {
    let entry = |group: &str, version: &str, hash: &str| {
        let root = root(group, version);
        let url = format!("/openapi/v3/{root}?hash={hash}");
        (root, json!({"serverRelativeURL": url}))
    };
    let hash = hash();
    let builtin = group_versions(builtin()).into_iter();
    let mut paths: Map<String, Value> =
        builtin.map(|(group, version)| entry(group, version, &hash)).collect();
    for ((group, version), content) in custom {
        let digest = Sha256::digest(format!("{hash}{content}"));
        let hash: String = digest.iter().map(|byte| format!("{byte:02X}")).collect();
        paths.extend([entry(group, version, &hash)]);
    }
    json!({"paths": paths})
}

/// The document of one group and version; `None` where nothing is served there.
pub fn v3(group: &str, version: &str, custom: &[Published]) -> Option<Value> {
    let schema = builtin();
    let custom: Vec<&Published> = custom.iter().filter(|kind| kind.is_of(group, version)).collect();
    if custom.is_empty() && !group_versions(schema).contains(&(group, version)) {
        return None;
    }
    let mut paths = operations::paths(schema, Dialect::V3, Some((group, version)));
    let descriptions = Descriptions::unpack();
    let mut schemas = BTreeMap::new();
    for kind in &custom {
        kind.add(schema, Dialect::V3, &descriptions, &mut paths, &mut schemas);
    }
    let mut needed = BTreeSet::new();
    references(&paths, &mut needed);
    schemas.values().for_each(|definition| references(definition, &mut needed));
    let mut open: Vec<TypeId> = needed.iter().filter_map(|name| schema.type_named(name)).collect();
    while let Some(id) = open.pop() {
        let ty = schema.get(id);
        if schemas.contains_key(&ty.definition()) {
            continue;
        }
        let definition = types::definition(schema, ty, Dialect::V3, &descriptions);
        let mut found = BTreeSet::new();
        references(&definition, &mut found);
        open.extend(found.iter().filter_map(|name| schema.type_named(name)));
        schemas.insert(ty.definition(), definition);
    }
    Some(json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": "unversioned"},
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"BearerToken": bearer_token()}},
    }))
}

/// The whole v2 document; about four megabytes as JSON.
pub fn v2(custom: &[Published]) -> Value {
    let schema = builtin();
    let descriptions = Descriptions::unpack();
    let definition = |ty| types::definition(schema, ty, Dialect::V2, &descriptions);
    let mut definitions: BTreeMap<String, Value> =
        schema.types().iter().map(|ty| (ty.definition(), definition(ty))).collect();
    let mut paths = operations::paths(schema, Dialect::V2, None);
    for kind in custom {
        kind.add(schema, Dialect::V2, &descriptions, &mut paths, &mut definitions);
    }
    json!({
        "swagger": "2.0",
        "info": {"title": "Kubernetes", "version": "unversioned"},
        "paths": paths,
        "definitions": definitions,
        "securityDefinitions": {"BearerToken": bearer_token()},
        "security": [{"BearerToken": []}],
    })
}

/// A v2 document as `application/com.github.proto-openapi.spec.v2@v1.0+protobuf`.
pub fn v2_protobuf(document: &Value) -> Vec<u8> {
    proto::document(document)
}

fn bearer_token() -> Value {
    json!({"description": "Bearer Token authentication", "in": "header", "name": "authorization", "type": "apiKey"})
}

/// The names, without `io.k8s.`, of all definitions that a document refers to.
fn references(value: &Value, names: &mut BTreeSet<String>) {
    match value {
        Value::Object(object) => {
            for (key, value) in object {
                match value.as_str() {
                    Some(text) if key == "$ref" => {
                        let name = text.rsplit('/').next().unwrap_or("");
                        names.insert(name.trim_start_matches("io.k8s.").to_owned());
                    }
                    _ => references(value, names),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| references(item, names)),
        _ => {}
    }
}

#[cfg(test)]
mod tests;
