//! Values: what expressions work on. Parts of JSON documents are seen in place, never copied.

use std::{cmp::Ordering, collections::HashMap, fmt, sync::Arc};

use serde_json::Value as Json;

use crate::{
    authorizer::AuthorizerVal,
    error::EvalError,
    functions::{
        format::Format,
        net::{Cidr, Ip},
        semver::Semver,
        url::Url,
    },
    structural::Node,
    time::Timestamp,
    types::Name,
};

/// Text of a document or of a computation.
#[derive(Clone)]
pub enum Str<'a> {
    Borrowed(&'a str),
    Shared(Arc<str>),
}

impl std::ops::Deref for Str<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            Self::Borrowed(text) => text,
            Self::Shared(text) => text,
        }
    }
}

/// A value; `'a` is the life of the documents that it may be a part of.
#[derive(Clone)]
pub enum Val<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    String(Str<'a>),
    Bytes(Arc<[u8]>),
    Timestamp(Timestamp),
    /// In nanoseconds.
    Duration(i64),
    List(List<'a>),
    Map(Map<'a>),
    Optional(Option<Arc<Val<'a>>>),
    /// A type, by its name.
    Type(Name),
    /// What `Name{...}` makes.
    Object(Arc<Object<'a>>),
    Quantity(api::quantity::Quantity),
    Url(Arc<Url>),
    Ip(Ip),
    Cidr(Cidr),
    Semver(Arc<Semver>),
    Format(&'static Format),
    Authorizer(Arc<AuthorizerVal<'a>>),
}

#[derive(Clone)]
pub enum List<'a> {
    Owned(Arc<Vec<Val<'a>>>),
    Json(&'a [Json], Option<&'a Node>),
}

#[derive(Clone)]
pub enum Map<'a> {
    Owned(Arc<OwnedMap<'a>>),
    Json(&'a serde_json::Map<String, Json>, Option<&'a Node>),
}

/// A map that an expression made, in the order of insertion.
#[derive(Clone, Default)]
pub struct OwnedMap<'a> {
    entries: Vec<(Val<'a>, Val<'a>)>,
    index_by_key: HashMap<Key, usize>,
}

/// A constructed message.
#[derive(Clone)]
pub struct Object<'a> {
    pub name: Name,
    pub fields: Vec<(Name, Val<'a>)>,
}

/// What a map may be keyed by; numbers of one value are one key, whatever their type.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    Bool(bool),
    Number(i128),
    Text(Arc<str>),
}

impl Key {
    fn of(value: &Val<'_>) -> Option<Self> {
        Some(match value {
            Val::Bool(value) => Self::Bool(*value),
            Val::Int(value) => Self::Number(i128::from(*value)),
            Val::Uint(value) => Self::Number(i128::from(*value)),
            Val::Double(value) if value.fract() == 0.0 && value.abs() < 1e19 => Self::Number(*value as i128),
            Val::String(Str::Shared(text)) => Self::Text(text.clone()),
            Val::String(Str::Borrowed(text)) => Self::Text((*text).into()),
            _ => return None,
        })
    }
}

impl<'a> OwnedMap<'a> {
    /// # Errors
    /// A key that is there already, or of a type that keys cannot have.
    pub(crate) fn insert(&mut self, key: Val<'a>, value: Val<'a>) -> Result<(), EvalError> {
        let Some(found) = Key::of(&key) else {
            return Err(EvalError::new(format!("unsupported key type: {}", key.type_name())));
        };
        if self.index_by_key.contains_key(&found) {
            return Err(EvalError::new(format!("Failed with repeated key: {}", key.plain_text())));
        }
        self.index_by_key.insert(found, self.entries.len());
        self.entries.push((key, value));
        Ok(())
    }

    fn get(&self, key: &Val<'_>) -> Option<&Val<'a>> {
        let at = self.index_by_key.get(&Key::of(key)?)?;
        Some(&self.entries[*at].1)
    }
}

impl<'a> Val<'a> {
    pub fn text(text: impl Into<Arc<str>>) -> Self {
        Self::String(Str::Shared(text.into()))
    }

    pub fn list(items: Vec<Val<'a>>) -> Self {
        Self::List(List::Owned(Arc::new(items)))
    }

    /// A view of a document without a schema: whole numbers are int, others double, dates stay strings.
    pub fn json(value: &'a Json) -> Self {
        match value {
            Json::Null => Self::Null,
            Json::Bool(value) => Self::Bool(*value),
            Json::Number(number) => match (number.as_i64(), number.as_f64()) {
                (Some(value), _) => Self::Int(value),
                (None, Some(value)) => Self::Double(value),
                (None, None) => Self::Null,
            },
            Json::String(text) => Self::String(Str::Borrowed(text)),
            Json::Array(items) => Self::List(List::Json(items, None)),
            Json::Object(fields) => Self::Map(Map::Json(fields, None)),
        }
    }

    /// The name of the value's type, as `type(x)` gives it.
    pub fn type_name(&self) -> Name {
        match self {
            Self::Null => "null_type",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Uint(_) => "uint",
            Self::Double(_) => "double",
            Self::String(_) => "string",
            Self::Bytes(_) => "bytes",
            Self::Timestamp(_) => "google.protobuf.Timestamp",
            Self::Duration(_) => "google.protobuf.Duration",
            Self::List(_) => "list",
            Self::Map(_) => "map",
            Self::Optional(_) => "optional_type",
            Self::Type(_) => "type",
            Self::Object(object) => return object.name.clone(),
            Self::Quantity(_) => "kubernetes.Quantity",
            Self::Url(_) => "kubernetes.URL",
            Self::Ip(_) => "net.IP",
            Self::Cidr(_) => "net.CIDR",
            Self::Semver(_) => "kubernetes.Semver",
            Self::Format(_) => "kubernetes.NamedFormat",
            Self::Authorizer(value) => return value.type_name(),
        }
        .into()
    }

    /// The value in an error's text.
    pub(crate) fn plain_text(&self) -> String {
        match self {
            Self::Null => "null".to_owned(),
            Self::Bool(value) => value.to_string(),
            Self::Int(value) => value.to_string(),
            Self::Uint(value) => value.to_string(),
            Self::Double(value) => value.to_string(),
            Self::String(text) => text.to_string(),
            Self::Timestamp(value) => value.to_string(),
            Self::Duration(value) => crate::time::duration_text(*value),
            other => other.type_name().to_string(),
        }
    }

    /// What `size()` gives; one for what has no size. Costs count in it.
    pub(crate) fn size(&self) -> u64 {
        match self {
            Self::String(text) => text.chars().count() as u64,
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::List(list) => list.len() as u64,
            Self::Map(map) => map.len() as u64,
            Self::Optional(Some(inner)) => inner.size(),
            Self::Ip(ip) => ip.size(),
            Self::Cidr(cidr) => cidr.size(),
            _ => 1,
        }
    }

    /// A field of a map or message; `None` where the value has no such field, or no fields at all.
    ///
    /// # Errors
    /// A document that contradicts its schema.
    pub(crate) fn field(&self, name: &str) -> Result<Option<Val<'a>>, EvalError> {
        match self {
            Self::Map(Map::Json(fields, None)) => Ok(fields.get(name).map(Val::json)),
            Self::Map(Map::Json(fields, Some(node))) => node.field(fields, name),
            Self::Map(Map::Owned(map)) => Ok(map.get(&Val::String(Str::Borrowed(name))).cloned()),
            Self::Object(object) => {
                Ok(object.fields.iter().find(|(field, _)| &**field == name).map(|(_, value)| value.clone()))
            }
            _ => Ok(None),
        }
    }

    /// What `a == b` says: numbers compare across types, lists and maps by content.
    pub fn equals(&self, other: &Val<'_>) -> bool {
        match (self, other) {
            (Self::Null, Val::Null) => true,
            (Self::Bool(one), Val::Bool(two)) => one == two,
            (Self::String(one), Val::String(two)) => **one == **two,
            (Self::Bytes(one), Val::Bytes(two)) => one == two,
            (Self::Timestamp(one), Val::Timestamp(two)) => one == two,
            (Self::Duration(one), Val::Duration(two)) => one == two,
            (Self::Type(one), Val::Type(two)) => one == two,
            (Self::List(one), Val::List(two)) => one.equals(two),
            (Self::Map(one), Val::Map(two)) => one.equals(two),
            (Self::Optional(one), Val::Optional(two)) => match (one, two) {
                (None, None) => true,
                (Some(one), Some(two)) => one.equals(two),
                _ => false,
            },
            (Self::Object(one), Val::Object(two)) => {
                one.name == two.name
                    && one.fields.len() == two.fields.len()
                    && one.fields.iter().all(|(name, value)| {
                        two.fields.iter().any(|(other, found)| other == name && value.equals(found))
                    })
            }
            (Self::Quantity(one), Val::Quantity(two)) => one.cmp(two) == Ordering::Equal,
            (Self::Url(one), Val::Url(two)) => one.text() == two.text(),
            (Self::Ip(one), Val::Ip(two)) => one == two,
            (Self::Cidr(one), Val::Cidr(two)) => one == two,
            (Self::Semver(one), Val::Semver(two)) => one.compare(two) == Ordering::Equal,
            (Self::Format(one), Val::Format(two)) => one.name() == two.name(),
            (Self::Authorizer(one), Val::Authorizer(two)) => one.same(two),
            (one, two) => one.compare_numbers(two) == Some(Ordering::Equal),
        }
    }

    /// The order of two numbers of any types; `None` for what is no number, and for NaN.
    pub(crate) fn compare_numbers(&self, other: &Val<'_>) -> Option<Ordering> {
        match (self, other) {
            (Self::Int(one), Val::Int(two)) => Some(one.cmp(two)),
            (Self::Uint(one), Val::Uint(two)) => Some(one.cmp(two)),
            (Self::Double(one), Val::Double(two)) => one.partial_cmp(two),
            (Self::Int(one), Val::Uint(two)) => Some(i128::from(*one).cmp(&i128::from(*two))),
            (Self::Uint(one), Val::Int(two)) => Some(i128::from(*one).cmp(&i128::from(*two))),
            (Self::Double(one), Val::Int(two)) => compare_double(*one, i128::from(*two)),
            (Self::Double(one), Val::Uint(two)) => compare_double(*one, i128::from(*two)),
            (Self::Int(one), Val::Double(two)) => {
                compare_double(*two, i128::from(*one)).map(Ordering::reverse)
            }
            (Self::Uint(one), Val::Double(two)) => {
                compare_double(*two, i128::from(*one)).map(Ordering::reverse)
            }
            _ => None,
        }
    }

    /// The order of two values of one ordered type, or of two numbers.
    pub(crate) fn compare(&self, other: &Val<'_>) -> Result<Ordering, EvalError> {
        match (self, other) {
            (Self::Bool(one), Val::Bool(two)) => Ok(one.cmp(two)),
            (Self::String(one), Val::String(two)) => Ok((**one).cmp(&**two)),
            (Self::Bytes(one), Val::Bytes(two)) => Ok(one.cmp(two)),
            (Self::Timestamp(one), Val::Timestamp(two)) => Ok(one.cmp(two)),
            (Self::Duration(one), Val::Duration(two)) => Ok(one.cmp(two)),
            (Self::Double(one), _) if one.is_nan() => Err(EvalError::new("NaN values cannot be ordered")),
            (_, Val::Double(two)) if two.is_nan() => Err(EvalError::new("NaN values cannot be ordered")),
            (one, two) => one.compare_numbers(two).ok_or_else(EvalError::no_such_overload),
        }
    }

    /// The value as JSON; `None` for what has no JSON form.
    pub fn to_json(&self) -> Option<Json> {
        Some(match self {
            Self::Null => Json::Null,
            Self::Bool(value) => Json::Bool(*value),
            Self::Int(value) => Json::from(*value),
            Self::Uint(value) => Json::from(*value),
            Self::Double(value) => serde_json::Number::from_f64(*value).map(Json::Number)?,
            Self::String(text) => Json::String(text.to_string()),
            Self::Bytes(bytes) => {
                use base64::Engine as _;
                Json::String(base64::engine::general_purpose::STANDARD.encode(bytes))
            }
            Self::Timestamp(value) => Json::String(value.to_string()),
            Self::Duration(value) => Json::String(crate::time::duration_text(*value)),
            Self::List(List::Json(items, _)) => Json::Array(items.to_vec()),
            Self::List(list) => {
                Json::Array(list.iter().map(|item| item.ok()?.to_json()).collect::<Option<Vec<_>>>()?)
            }
            Self::Map(Map::Json(fields, _)) => Json::Object((*fields).clone()),
            Self::Map(Map::Owned(map)) => {
                let mut fields = serde_json::Map::new();
                for (key, value) in &map.entries {
                    let Val::String(key) = key else { return None };
                    fields.insert(key.to_string(), value.to_json()?);
                }
                Json::Object(fields)
            }
            Self::Object(object) => {
                let mut fields = serde_json::Map::new();
                for (name, value) in &object.fields {
                    fields.insert(name.to_string(), value.to_json()?);
                }
                Json::Object(fields)
            }
            Self::Optional(Some(inner)) => inner.to_json()?,
            Self::Quantity(quantity) => Json::String(quantity.to_string()),
            Self::Optional(None) => Json::Null,
            _ => return None,
        })
    }
}

fn compare_double(double: f64, whole: i128) -> Option<Ordering> {
    if double.is_nan() {
        return None;
    }
    if double.abs() >= 1e20 {
        return Some(if double > 0.0 { Ordering::Greater } else { Ordering::Less });
    }
    let floor = double.floor();
    Some((floor as i128).cmp(&whole).then(if double > floor { Ordering::Greater } else { Ordering::Equal }))
}

impl<'a> List<'a> {
    pub fn len(&self) -> usize {
        match self {
            Self::Owned(items) => items.len(),
            Self::Json(items, _) => items.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// # Errors
    /// A document that contradicts its schema.
    pub fn get(&self, index: usize) -> Option<Result<Val<'a>, EvalError>> {
        match self {
            Self::Owned(items) => items.get(index).cloned().map(Ok),
            Self::Json(items, None) => items.get(index).map(|item| Ok(Val::json(item))),
            Self::Json(items, Some(node)) => items.get(index).map(|item| node.item(item)),
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = Result<Val<'a>, EvalError>> + '_ {
        (0..self.len()).filter_map(|index| self.get(index))
    }

    /// # Errors
    /// A document that contradicts its schema.
    pub fn to_vec(&self) -> Result<Vec<Val<'a>>, EvalError> {
        self.iter().collect()
    }

    fn equals(&self, other: &List<'_>) -> bool {
        let node = match self {
            Self::Json(_, node) => *node,
            Self::Owned(_) => None,
        };
        self.len() == other.len()
            && match node.and_then(Node::list_equality) {
                Some(equality) => equality.equal(self, other),
                None => self.iter().zip(other.iter()).all(|pair| match pair {
                    (Ok(one), Ok(two)) => one.equals(&two),
                    _ => false,
                }),
            }
    }
}

impl<'a> Map<'a> {
    pub fn len(&self) -> usize {
        match self {
            Self::Owned(map) => map.entries.len(),
            Self::Json(fields, Some(node)) => node.visible(fields),
            Self::Json(fields, None) => fields.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// # Errors
    /// A document that contradicts its schema.
    pub fn get(&self, key: &Val<'_>) -> Result<Option<Val<'a>>, EvalError> {
        match (self, key) {
            (Self::Owned(map), key) => Ok(map.get(key).cloned()),
            (Self::Json(fields, None), Val::String(name)) => Ok(fields.get(&**name).map(Val::json)),
            (Self::Json(fields, Some(node)), Val::String(name)) => node.field(fields, name),
            _ => Ok(None),
        }
    }

    /// In the order of insertion, for documents in that of the names.
    pub fn keys(&self) -> Vec<Val<'a>> {
        match self {
            Self::Owned(map) => map.entries.iter().map(|(key, _)| key.clone()).collect(),
            Self::Json(fields, None) => fields.keys().map(|name| Val::String(Str::Borrowed(name))).collect(),
            Self::Json(fields, Some(node)) => node.keys(fields),
        }
    }

    pub(crate) fn to_owned_map(&self) -> Result<OwnedMap<'a>, EvalError> {
        if let Self::Owned(map) = self {
            return Ok((**map).clone());
        }
        let mut map = OwnedMap::default();
        for key in self.keys() {
            if let Some(value) = self.get(&key)? {
                map.insert(key, value)?;
            }
        }
        Ok(map)
    }

    fn equals(&self, other: &Map<'_>) -> bool {
        self.len() == other.len()
            && self.keys().iter().all(|key| match (self.get(key), other.get(key)) {
                (Ok(Some(one)), Ok(Some(two))) => one.equals(&two),
                _ => false,
            })
    }
}

impl fmt::Debug for Val<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::String(text) => write!(f, "{:?}", &**text),
            Self::Uint(value) => write!(f, "{value}u"),
            Self::Double(value) => write!(f, "{value:?}"),
            Self::Bytes(bytes) => write!(f, "b{bytes:?}"),
            Self::Type(name) => write!(f, "type({name})"),
            Self::Optional(inner) => write!(f, "optional({inner:?})"),
            Self::List(list) => f.debug_list().entries(list.iter().flatten()).finish(),
            Self::Map(map) => {
                let entries = map.keys().into_iter().filter_map(|key| Some((map.get(&key).ok()??, key)));
                f.debug_map().entries(entries.map(|(value, key)| (key, value))).finish()
            }
            other => f.write_str(&other.plain_text()),
        }
    }
}

impl PartialEq for Val<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.equals(other)
    }
}
