//! Custom kinds in the documents: the schema of their definition with the fields that every object has. What OpenAPI v2
//! cannot say is left out there, so that clients that validate by it refuse nothing that is valid.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::{Map, Value, json};

use super::{Dialect, descriptions::Descriptions, operations};
use crate::schema::{Resource, Schema};

const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
const LIST_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta";
const METADATA_TEXT: &str = "Standard object's metadata. More info: \
                             https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata";
const LIST_METADATA_TEXT: &str = "Standard list metadata. More info: \
                                  https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds";
const CONVENTIONS: &str =
    "https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md";

/// One version of a custom kind, as it is published.
pub struct Published {
    pub resource: Arc<Resource>,
    /// `openAPIV3Schema`; null for none.
    pub schema: Value,
    /// Paths of `selectableFields`, without the leading dot.
    pub selectable: Vec<String>,
}

impl Published {
    pub(super) fn is_of(&self, group: &str, version: &str) -> bool {
        self.resource.group == group && self.resource.version == version
    }

    /// `com.example.v1.Widget`.
    fn definition(&self, kind: &str) -> String {
        let mut group: Vec<&str> = self.resource.group.split('.').collect();
        group.reverse();
        format!("{}.{}.{kind}", group.join("."), self.resource.version)
    }

    /// Adds paths and definitions to a document.
    pub(super) fn add(
        &self,
        builtin: &Schema,
        dialect: Dialect,
        descriptions: &Descriptions,
        paths: &mut Value,
        schemas: &mut BTreeMap<String, Value>,
    ) {
        let (ty, list) = (self.definition(&self.resource.kind), self.definition(&self.resource.list_kind));
        operations::add_custom(builtin, &self.resource, dialect, (ty.clone(), list.clone()), paths);
        let texts = Texts::of(builtin, descriptions);
        schemas.insert(list, self.list(&ty, dialect, &texts));
        schemas.insert(ty, self.object(dialect, &texts));
    }

    fn extensions(&self, definition: &mut Map<String, Value>, kind: &str) {
        let (group, version) = (&self.resource.group, &self.resource.version);
        definition.insert(
            "x-kubernetes-group-version-kind".to_owned(),
            json!([{"group": group, "version": version, "kind": kind}]),
        );
        if !self.selectable.is_empty() {
            let fields: Vec<Value> = self.selectable.iter().map(|path| json!({"fieldPath": path})).collect();
            definition.insert("x-kubernetes-selectable-fields".to_owned(), Value::from(fields));
        }
    }

    fn object(&self, dialect: Dialect, texts: &Texts) -> Value {
        let preserves = self.schema["x-kubernetes-preserve-unknown-fields"] == true;
        let is_plain = self.schema.is_null() || (dialect == Dialect::V2 && preserves);
        let mut definition = if is_plain { json!({"type": "object"}) } else { self.schema.clone() };
        if !is_plain {
            if dialect == Dialect::V2 {
                without_v3(&mut definition);
            }
            add_embedded(&mut definition, dialect, texts);
            add_whole(&mut definition, dialect, texts);
        }
        if let Value::Object(definition) = &mut definition {
            self.extensions(definition, &self.resource.kind);
        }
        definition
    }

    fn list(&self, ty: &str, dialect: Dialect, texts: &Texts) -> Value {
        let (kind, list_kind) = (&self.resource.kind, &self.resource.list_kind);
        let items = format!("List of {}. More info: {CONVENTIONS}", self.resource.plural);
        let mut definition = json!({
            "type": "object",
            "description": format!("{list_kind} is a list of {kind}"),
            "required": ["items"],
            "properties": {
                "apiVersion": texts.api_version(),
                "kind": texts.kind(),
                "items": {"type": "array", "description": items, "items": dialect.reference(ty)},
                "metadata": described(dialect, LIST_META, LIST_METADATA_TEXT),
            },
        });
        if let Value::Object(definition) = &mut definition {
            self.extensions(definition, list_kind);
        }
        definition
    }
}

/// The texts of `apiVersion` and `kind`, which all objects share.
struct Texts {
    api_version: String,
    kind: String,
}

impl Texts {
    fn of(builtin: &Schema, descriptions: &Descriptions) -> Self {
        let pod = builtin.type_of("", "v1", "Pod").map(|id| builtin.get(id));
        let text = |name: &str| {
            let found = pod.and_then(|ty| {
                let place = ty.fields.iter().position(|field| field.name == name)?;
                Some(descriptions.line(ty.description_line + 1 + u32::try_from(place).ok()?))
            });
            found.unwrap_or_default()
        };
        Self { api_version: text("apiVersion"), kind: text("kind") }
    }

    fn api_version(&self) -> Value {
        json!({"type": "string", "description": self.api_version})
    }

    fn kind(&self) -> Value {
        json!({"type": "string", "description": self.kind})
    }
}

/// A reference with a text.
fn described(dialect: Dialect, definition: &str, text: &str) -> Value {
    let reference = dialect.reference(definition);
    match dialect {
        Dialect::V2 => json!({"$ref": reference["$ref"], "description": text}),
        Dialect::V3 => json!({"allOf": [reference], "description": text}),
    }
}

fn add_whole(definition: &mut Value, dialect: Dialect, texts: &Texts) {
    if !definition["properties"].is_object() {
        definition["properties"] = json!({});
    }
    definition["properties"]["apiVersion"] = texts.api_version();
    definition["properties"]["kind"] = texts.kind();
    definition["properties"]["metadata"] = described(dialect, OBJECT_META, METADATA_TEXT);
}

/// Embedded objects have a kind, a version and metadata, too.
fn add_embedded(schema: &mut Value, dialect: Dialect, texts: &Texts) {
    for property in schema.get_mut("properties").and_then(Value::as_object_mut).into_iter().flatten() {
        add_embedded(property.1, dialect, texts);
    }
    for name in ["items", "additionalProperties"] {
        if let Some(inner) = schema.get_mut(name).filter(|inner| inner.is_object()) {
            add_embedded(inner, dialect, texts);
        }
    }
    let preserves = schema["x-kubernetes-preserve-unknown-fields"] == true;
    if schema["x-kubernetes-embedded-resource"] != true || (dialect == Dialect::V2 && preserves) {
        return;
    }
    add_whole(schema, dialect, texts);
    let mut required = schema["required"].as_array().cloned().unwrap_or_default();
    for name in ["kind", "apiVersion"] {
        if !required.contains(&Value::from(name)) {
            required.push(Value::from(name));
        }
    }
    schema["required"] = Value::from(required);
}

/// Takes out what v2 has no words for.
fn without_v3(schema: &mut Value) {
    let is_set = |schema: &Value, name: &str| schema[name] == true;
    let (nullable, preserves) =
        (is_set(schema, "nullable"), is_set(schema, "x-kubernetes-preserve-unknown-fields"));
    let Value::Object(object) = schema else { return };
    for name in ["allOf", "oneOf", "anyOf", "not"] {
        object.remove(name);
    }
    if nullable {
        for name in ["type", "nullable", "items", "properties"] {
            object.remove(name);
        }
    }
    if preserves {
        object.remove("items");
        object.remove("properties");
        if object.get("type").is_some_and(|kind| kind == "object") {
            object.remove("type");
        }
    }
    if !object.contains_key("items") && object.get("type").is_some_and(|kind| kind == "array") {
        object.remove("type");
    }
    if object.get("additionalProperties").is_some_and(|inner| is_set(inner, "nullable")) {
        object.remove("required");
    }
    let nullables: Vec<String> = object
        .get("properties")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .filter(|(_, property)| is_set(property, "nullable"))
        .map(|(name, _)| name.clone())
        .collect();
    if let Some(required) = object.get_mut("required").and_then(Value::as_array_mut) {
        required.retain(|name| name.as_str().is_none_or(|name| !nullables.iter().any(|other| other == name)));
        if required.is_empty() {
            object.remove("required");
        }
    }
    for property in object.get_mut("properties").and_then(Value::as_object_mut).into_iter().flatten() {
        without_v3(property.1);
    }
    for name in ["items", "additionalProperties"] {
        if let Some(inner) = object.get_mut(name) {
            without_v3(inner);
        }
    }
}
