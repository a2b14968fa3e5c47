//! The structural schema of a CustomResourceDefinition, and what it does to objects: pruning and decoding (`prune`),
//! defaults (`default`), validation (`validate`, `lists`, `embedded`). Pure functions of schema and object.
//!
//! ```text
//! decode: metadata by its type, prune, nulls  ->  default  ->  validate (with the old object: ratcheting, KEP-4008)
//! ```
//!
//! Whether a schema is structural at all is judged when the definition is written, not here: [`Structural::parse`] reads
//! what was accepted. Rules (`x-kubernetes-validations`) are kept as they are written; who evaluates them compiles them.

mod default;
mod embedded;
mod formats;
mod lists;
mod pattern;
mod prune;
#[cfg(test)]
mod tests;
mod types;
mod validate;

use std::collections::BTreeMap;

use regex::Regex;
use serde_json::Value;

pub use self::{
    formats::is_known_format, pattern::compile as compile_pattern, types::Definition, validate::blocks_rules,
};

/// What a value must be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    #[default]
    Any,
    Object,
    Array,
    String,
    Integer,
    Number,
    Boolean,
    IntOrString,
}

/// `x-kubernetes-list-type`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ListKind {
    #[default]
    Unset,
    Atomic,
    Set,
    Map(Box<[String]>),
}

/// `additionalProperties`.
#[derive(Clone, Debug)]
pub enum Additional {
    /// `true` (or `false`, which no definition that is served has): allowed, their content unknown.
    Allowed(bool),
    Schema(Box<Structural>),
}

/// A node of the schema.
#[derive(Clone, Debug, Default)]
pub struct Structural {
    pub kind: Kind,
    pub nullable: bool,
    /// `x-kubernetes-preserve-unknown-fields`.
    pub preserves_unknown: bool,
    /// `x-kubernetes-embedded-resource`.
    pub is_embedded: bool,
    /// `x-kubernetes-map-type: atomic`.
    pub is_atomic_map: bool,
    pub list: ListKind,
    pub items: Option<Box<Structural>>,
    pub properties: BTreeMap<Box<str>, Structural>,
    pub additional: Option<Additional>,
    pub default: Option<Box<Value>>,
    pub checks: Option<Box<Checks>>,
    /// `x-kubernetes-validations`, as written.
    pub rules: Box<[Value]>,
}

/// What a value must fulfil beside its type.
#[derive(Clone, Debug, Default)]
pub struct Checks {
    format: Option<Box<str>>,
    maximum: Option<f64>,
    exclusive_maximum: bool,
    minimum: Option<f64>,
    exclusive_minimum: bool,
    multiple_of: Option<f64>,
    max_length: Option<u64>,
    min_length: Option<u64>,
    pattern: Option<(Box<str>, Regex)>,
    max_items: Option<u64>,
    min_items: Option<u64>,
    unique_items: bool,
    max_properties: Option<u64>,
    min_properties: Option<u64>,
    required: Box<[String]>,
    enumeration: Box<[Value]>,
    all_of: Box<[Structural]>,
    any_of: Box<[Structural]>,
    one_of: Box<[Structural]>,
    not: Option<Structural>,
}

impl Structural {
    /// Reads `openAPIV3Schema` of a definition that was accepted. What is of a wrong form counts as absent.
    ///
    /// # Errors
    /// A pattern that cannot be compiled.
    pub fn parse(schema: &Value) -> Result<Self, String> {
        let flag = |name: &str| schema[name].as_bool() == Some(true);
        let kind = if flag("x-kubernetes-int-or-string") {
            Kind::IntOrString
        } else {
            match schema["type"].as_str().unwrap_or_default() {
                "object" => Kind::Object,
                "array" => Kind::Array,
                "string" => Kind::String,
                "integer" => Kind::Integer,
                "number" => Kind::Number,
                "boolean" => Kind::Boolean,
                _ => Kind::Any,
            }
        };
        let mut properties = BTreeMap::new();
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            properties.insert(name.as_str().into(), Self::parse(property)?);
        }
        let additional = match &schema["additionalProperties"] {
            Value::Bool(allowed) => Some(Additional::Allowed(*allowed)),
            inner @ Value::Object(_) => Some(Additional::Schema(Box::new(Self::parse(inner)?))),
            _ => None,
        };
        let items = match &schema["items"] {
            inner @ Value::Object(_) => Some(Box::new(Self::parse(inner)?)),
            _ => None,
        };
        Ok(Self {
            kind,
            nullable: flag("nullable"),
            preserves_unknown: flag("x-kubernetes-preserve-unknown-fields"),
            is_embedded: flag("x-kubernetes-embedded-resource"),
            is_atomic_map: schema["x-kubernetes-map-type"] == "atomic",
            list: list_kind(schema),
            items,
            properties,
            additional,
            default: schema.get("default").filter(|value| !value.is_null()).cloned().map(Box::new),
            checks: Checks::parse(schema, kind)?.map(Box::new),
            rules: schema["x-kubernetes-validations"].as_array().cloned().unwrap_or_default().into(),
        })
    }

    pub fn property(&self, name: &str) -> Option<&Self> {
        self.properties.get(name)
    }

    /// The schema of a field, declared or additional.
    pub fn field(&self, name: &str) -> Option<&Self> {
        self.properties.get(name).or_else(|| self.additional_schema())
    }

    pub fn additional_schema(&self) -> Option<&Self> {
        match &self.additional {
            Some(Additional::Schema(schema)) => Some(schema),
            Some(Additional::Allowed(_)) | None => None,
        }
    }

    /// Whether this node or one below it has rules.
    pub fn has_rules(&self) -> bool {
        !self.rules.is_empty()
            || self.items.as_deref().is_some_and(Self::has_rules)
            || self.properties.values().any(Self::has_rules)
            || self.additional_schema().is_some_and(Self::has_rules)
            || self.checks.as_ref().is_some_and(|checks| checks.all_of.iter().any(Self::has_rules))
    }

    /// `maxItems`, `maxProperties` or `maxLength`, by kind: what bounds the size of a value.
    pub fn size_max(&self) -> Option<u64> {
        let checks = self.checks.as_ref()?;
        match self.kind {
            Kind::Array => checks.max_items,
            Kind::Object => checks.max_properties,
            _ => checks.max_length,
        }
    }
}

fn list_kind(schema: &Value) -> ListKind {
    match schema["x-kubernetes-list-type"].as_str() {
        Some("atomic") => ListKind::Atomic,
        Some("set") => ListKind::Set,
        Some("map") => {
            let keys = schema["x-kubernetes-list-map-keys"].as_array().into_iter().flatten();
            ListKind::Map(keys.filter_map(|key| key.as_str().map(str::to_owned)).collect())
        }
        _ => ListKind::Unset,
    }
}

impl Checks {
    /// `None` where the schema has none.
    fn parse(schema: &Value, kind: Kind) -> Result<Option<Self>, String> {
        const NAMES: [&str; 20] = [
            "format",
            "maximum",
            "exclusiveMaximum",
            "minimum",
            "exclusiveMinimum",
            "multipleOf",
            "maxLength",
            "minLength",
            "pattern",
            "maxItems",
            "minItems",
            "uniqueItems",
            "maxProperties",
            "minProperties",
            "required",
            "enum",
            "allOf",
            "anyOf",
            "oneOf",
            "not",
        ];
        if NAMES.iter().all(|name| schema.get(name).is_none()) {
            return Ok(None);
        }
        let flag = |name: &str| schema[name].as_bool() == Some(true);
        let schemas = |name: &str| -> Result<Box<[Structural]>, String> {
            schema[name].as_array().into_iter().flatten().map(Structural::parse).collect()
        };
        let pattern = match schema["pattern"].as_str() {
            None | Some("") => None,
            Some(text) => Some((text.into(), pattern::compile(text)?)),
        };
        let not = match &schema["not"] {
            inner @ Value::Object(_) => Some(Structural::parse(inner)?),
            _ => None,
        };
        let format = schema["format"].as_str().filter(|format| formats::is_known_format(kind, format));
        Ok(Some(Self {
            format: format.map(Into::into),
            maximum: schema["maximum"].as_f64(),
            exclusive_maximum: flag("exclusiveMaximum"),
            minimum: schema["minimum"].as_f64(),
            exclusive_minimum: flag("exclusiveMinimum"),
            multiple_of: schema["multipleOf"].as_f64(),
            max_length: schema["maxLength"].as_u64(),
            min_length: schema["minLength"].as_u64(),
            pattern,
            max_items: schema["maxItems"].as_u64(),
            min_items: schema["minItems"].as_u64(),
            unique_items: flag("uniqueItems"),
            max_properties: schema["maxProperties"].as_u64(),
            min_properties: schema["minProperties"].as_u64(),
            required: schema["required"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|name| name.as_str().map(str::to_owned))
                .collect(),
            enumeration: schema["enum"].as_array().cloned().unwrap_or_default().into(),
            all_of: schemas("allOf")?,
            any_of: schemas("anyOf")?,
            one_of: schemas("oneOf")?,
            not,
        }))
    }
}
