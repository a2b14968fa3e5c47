//! Structural schemas as expressions see them: the type of each part of a custom resource, how large it may be, and
//! the view of documents through it (dates are timestamps, bytes are bytes, unknown fields are not there).

mod escape;
mod parse;

use std::{collections::BTreeMap, sync::Arc};

use base64::Engine as _;
use serde_json::Value as Json;

pub use escape::{escape, unescape};

use crate::{
    error::EvalError,
    functions::format::is_date,
    time,
    types::{Name, Type, TypeProvider},
    value::{List, Map, Str, Val},
};

/// One node of a schema.
#[derive(Clone, Debug)]
pub struct Node {
    pub(crate) kind: Kind,
    pub(crate) nullable: bool,
    pub(crate) has_default: bool,
    /// The most elements, entries or bytes that a value may have.
    pub(crate) elements_max: u64,
    /// Whether the schema itself says how many elements or entries there may be.
    pub(crate) bounded: bool,
    /// Bytes of the smallest value, as JSON.
    pub(crate) size_min: i64,
    pub(crate) rules: Vec<RuleText>,
}

/// `x-kubernetes-validations`, as written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuleText {
    pub rule: String,
    pub message: String,
    pub message_expression: String,
    pub reason: String,
    pub field_path: String,
    pub optional_old_self: bool,
}

#[derive(Clone, Debug)]
pub(crate) enum Kind {
    IntOrString,
    Bool,
    Int,
    Double,
    String,
    Bytes,
    Duration,
    Date,
    DateTime,
    List(Box<Node>, ListKind),
    Map(Box<Node>),
    Object {
        name: Name,
        properties: BTreeMap<String, Node>,
    },
    /// What expressions cannot see: no type is stated.
    Hidden,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ListKind {
    Atomic,
    Set,
    /// Keyed by these fields.
    Map(Vec<String>),
}

impl Node {
    /// Reads an OpenAPI v3 schema as it stands in a CustomResourceDefinition. `name` begins the names of its types.
    pub fn parse(schema: &Json, name: &str, root: bool) -> Self {
        parse::node(schema, name, root)
    }

    /// The type that expressions see; `None` where they see nothing.
    pub fn ty(&self) -> Option<Type> {
        Some(match &self.kind {
            Kind::IntOrString => Type::Dyn,
            Kind::Bool => Type::Bool,
            Kind::Int => Type::Int,
            Kind::Double => Type::Double,
            Kind::String => Type::String,
            Kind::Bytes => Type::Bytes,
            Kind::Duration => Type::Duration,
            Kind::Date | Kind::DateTime => Type::Timestamp,
            Kind::List(items, _) => Type::list(items.ty()?),
            Kind::Map(values) => Type::map(Type::String, values.ty()?),
            Kind::Object { name, .. } => Type::Object(name.clone()),
            Kind::Hidden => return None,
        })
    }

    /// The type as schemas name it.
    pub(crate) fn type_text(&self) -> &'static str {
        match &self.kind {
            Kind::Bool => "boolean",
            Kind::Int => "integer",
            Kind::Double => "number",
            Kind::String | Kind::Bytes | Kind::Duration | Kind::Date | Kind::DateTime => "string",
            Kind::List(..) => "array",
            Kind::Map(_) | Kind::Object { .. } => "object",
            Kind::IntOrString | Kind::Hidden => "",
        }
    }

    /// The rules of this node.
    pub fn rules(&self) -> &[RuleText] {
        &self.rules
    }

    /// How often the node may occur at most in one request.
    pub(crate) fn cardinality_max(&self) -> u64 {
        (parse::REQUEST_MAX / (self.size_min + 1)) as u64
    }

    /// The view of a value.
    ///
    /// # Errors
    /// A value that contradicts the schema.
    pub fn value<'a>(&'a self, json: &'a Json) -> Result<Val<'a>, EvalError> {
        let invalid = |expected: &str| {
            Err(EvalError::new(format!("invalid data, expected {expected}, got {}", go_type(json))))
        };
        Ok(match (&self.kind, json) {
            (_, Json::Null) if self.nullable => Val::Null,
            (_, Json::Null) => {
                return Err(EvalError::new("invalid data, got null for schema with nullable=false"));
            }
            (Kind::Bool, Json::Bool(value)) => Val::Bool(*value),
            (Kind::Bool, _) => return invalid("bool"),
            (Kind::Int, Json::Number(number)) => match integer(number) {
                Some(value) => Val::Int(value),
                None => return invalid("int"),
            },
            (Kind::Int, _) => return invalid("int"),
            (Kind::Double, Json::Number(number)) => Val::Double(number.as_f64().unwrap_or(f64::NAN)),
            (Kind::Double, _) => return invalid("float"),
            (Kind::IntOrString, Json::String(text)) => Val::String(Str::Borrowed(text)),
            (Kind::IntOrString, Json::Number(number)) if integer(number).is_some() => {
                Val::Int(integer(number).unwrap_or_default())
            }
            (Kind::IntOrString, _) => {
                let why = "invalid data, expected XIntOrString value to be either a string or integer";
                return Err(EvalError::new(why));
            }
            (Kind::List(..), Json::Array(items)) => Val::List(List::Json(items, Some(self))),
            (Kind::List(..), _) => {
                let why = "invalid data, expected an array for the provided schema with type=array";
                return Err(EvalError::new(why));
            }
            (Kind::Map(_) | Kind::Object { .. }, Json::Object(fields)) => {
                Val::Map(Map::Json(fields, Some(self)))
            }
            (Kind::Map(_) | Kind::Object { .. }, _) => {
                let why = "invalid data, expected a map for the provided schema with type=object";
                return Err(EvalError::new(why));
            }
            (Kind::Hidden, _) => Val::json(json),
            (_, Json::String(text)) => return self.text(text),
            _ => return invalid("string"),
        })
    }

    fn text<'a>(&'a self, text: &'a str) -> Result<Val<'a>, EvalError> {
        let invalid = |what: &str, why: String| Err(EvalError::new(format!("Invalid {what} {text}: {why}")));
        match self.kind {
            Kind::Duration => match time::parse_duration(text) {
                Ok(duration) => Ok(Val::Duration(duration)),
                Err(error) => invalid("duration", error.to_string()),
            },
            Kind::Date if is_date(text) => {
                time::parse_timestamp(&format!("{text}T00:00:00Z")).map(Val::Timestamp)
            }
            Kind::Date => invalid("date formatted string", "cannot parse".to_owned()),
            Kind::DateTime => match time::parse_timestamp(text) {
                Ok(at) => Ok(Val::Timestamp(at)),
                Err(error) => invalid("date-time formatted string", error.to_string()),
            },
            Kind::Bytes => match base64::engine::general_purpose::STANDARD.decode(text) {
                Ok(bytes) => Ok(Val::Bytes(bytes.into())),
                Err(error) => invalid("byte formatted string", error.to_string()),
            },
            _ => Ok(Val::String(Str::Borrowed(text))),
        }
    }

    /// The view of an element of a list.
    pub(crate) fn item<'a>(&'a self, json: &'a Json) -> Result<Val<'a>, EvalError> {
        match &self.kind {
            Kind::List(items, _) => items.value(json),
            _ => Ok(Val::json(json)),
        }
    }

    /// The view of a field, by its escaped name, or of the value of a map.
    pub(crate) fn field<'a>(
        &'a self,
        fields: &'a serde_json::Map<String, Json>,
        name: &str,
    ) -> Result<Option<Val<'a>>, EvalError> {
        match &self.kind {
            Kind::Map(values) => fields.get(name).map(|value| values.value(value)).transpose(),
            Kind::Object { properties, .. } => {
                let Some(plain) = unescape(name) else { return Ok(None) };
                let Some(property) = properties.get(&*plain) else { return Ok(None) };
                match fields.get(&*plain) {
                    None | Some(Json::Null) => Ok(None),
                    Some(value) => property.value(value).map(Some),
                }
            }
            _ => Ok(None),
        }
    }

    pub(crate) fn keys<'a>(&'a self, fields: &'a serde_json::Map<String, Json>) -> Vec<Val<'a>> {
        match &self.kind {
            Kind::Object { properties, .. } => {
                let known = fields.keys().filter(|name| properties.contains_key(*name));
                known.map(|name| escape(name).map_or(Val::String(Str::Borrowed(name)), Val::text)).collect()
            }
            Kind::Map(_) => fields.keys().map(|name| Val::String(Str::Borrowed(name))).collect(),
            _ => Vec::new(),
        }
    }

    pub(crate) fn visible(&self, fields: &serde_json::Map<String, Json>) -> usize {
        fields.len()
    }

    /// How lists of this node compare and merge, where not by position.
    pub(crate) fn list_equality(&self) -> Option<ListEquality<'_>> {
        match &self.kind {
            Kind::List(_, ListKind::Set) => Some(ListEquality { keys: None }),
            Kind::List(_, ListKind::Map(keys)) => Some(ListEquality { keys: Some(keys) }),
            _ => None,
        }
    }
}

fn integer(number: &serde_json::Number) -> Option<i64> {
    number.as_i64().or_else(|| {
        let double = number.as_f64()?;
        (double.fract() == 0.0 && double.abs() < 9e15).then_some(double as i64)
    })
}

fn go_type(json: &Json) -> &'static str {
    match json {
        Json::Null => "<nil>",
        Json::Bool(_) => "bool",
        Json::Number(number) if number.is_f64() => "float64",
        Json::Number(_) => "int64",
        Json::String(_) => "string",
        Json::Array(_) => "[]interface {}",
        Json::Object(_) => "map[string]interface {}",
    }
}

/// Sets, and lists that are maps: order does not count.
#[derive(Clone, Copy)]
pub(crate) struct ListEquality<'n> {
    keys: Option<&'n Vec<String>>,
}

impl ListEquality<'_> {
    fn same(&self, one: &Val<'_>, two: &Val<'_>) -> bool {
        let Some(keys) = self.keys else { return one.equals(two) };
        keys.iter().all(|key| {
            let key = escape(key).unwrap_or_else(|| key.clone());
            match (one.field(&key), two.field(&key)) {
                (Ok(Some(one)), Ok(Some(two))) => one.equals(&two),
                (Ok(None), Ok(None)) => true,
                _ => false,
            }
        })
    }

    pub fn equal(&self, one: &List<'_>, two: &List<'_>) -> bool {
        let (Ok(one), Ok(two)) = (one.to_vec(), two.to_vec()) else { return false };
        one.iter().all(|item| two.iter().any(|other| self.same(item, other) && item.equals(other)))
    }

    /// Adds what is new; of a map's elements with a key that is there, the later value wins.
    pub fn merge<'a>(&self, items: &mut Vec<Val<'a>>, more: Vec<Val<'a>>) {
        for item in more {
            match items.iter_mut().find(|known| self.same(known, &item)) {
                Some(known) => *known = item,
                None => items.push(item),
            }
        }
    }
}

/// The types of one schema, by name.
pub struct SchemaTypes {
    objects: BTreeMap<Name, BTreeMap<String, Type>>,
}

impl SchemaTypes {
    pub fn new(root: &Node) -> Arc<Self> {
        let mut objects = BTreeMap::new();
        collect(root, &mut objects);
        Arc::new(Self { objects })
    }
}

fn collect(node: &Node, objects: &mut BTreeMap<Name, BTreeMap<String, Type>>) {
    match &node.kind {
        Kind::List(inner, _) | Kind::Map(inner) => collect(inner, objects),
        Kind::Object { name, properties } => {
            let fields =
                properties.iter().filter_map(|(name, node)| Some((escape(name)?, node.ty()?))).collect();
            objects.insert(name.clone(), fields);
            properties.values().for_each(|property| collect(property, objects));
        }
        _ => {}
    }
}

impl TypeProvider for SchemaTypes {
    fn has_type(&self, object: &str) -> bool {
        self.objects.contains_key(object)
    }

    fn field(&self, object: &str, field: &str) -> Option<Type> {
        self.objects.get(object)?.get(field).cloned()
    }
}
