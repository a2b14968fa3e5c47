//! `metadata.managedFields`: who owns which fields of an object, one entry for each manager, operation, version and
//! subresource.
//!
//! Sets stay in the encoded form until somebody has to change them: most writes touch the fields of one manager.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::set::FieldSet;

/// How many managers that update, and never apply, an object keeps apart.
const UPDATERS_MAX: usize = 10;
/// Who owns what the oldest of them owned.
const OLD_UPDATES: &str = "ancient-changes";

/// What tells one entry from another. An applier has one entry whatever version it applies in, so its version is empty
/// here.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Id {
    pub manager: String,
    pub updates: bool,
    pub api_version: String,
    pub subresource: String,
}

impl Id {
    pub fn new(manager: &str, updates: bool, api_version: &str, subresource: &str) -> Self {
        let manager = if manager.is_empty() { "unknown" } else { manager };
        let api_version = if updates { api_version } else { "" };
        Self {
            manager: manager.to_owned(),
            updates,
            api_version: api_version.to_owned(),
            subresource: subresource.to_owned(),
        }
    }
}

/// The fields of an entry.
#[derive(Clone, Debug)]
pub(super) enum Fields {
    /// As this code wrote them.
    Encoded(Map<String, Value>),
    Set(FieldSet),
}

impl Fields {
    pub fn set(&mut self) -> Result<&mut FieldSet, String> {
        if let Self::Encoded(fields) = self {
            let set = FieldSet::decode(&Value::Object(std::mem::take(fields)))?;
            *self = Self::Set(set);
        }
        match self {
            Self::Set(set) => Ok(set),
            Self::Encoded(_) => unreachable!("decoded just above"),
        }
    }

    fn is_empty(&self) -> bool {
        match self {
            Self::Encoded(fields) => fields.is_empty(),
            Self::Set(set) => set.is_empty(),
        }
    }

    /// Takes the members of `other` out; does nothing where none is in.
    pub fn subtract(&mut self, other: &FieldSet) -> Result<(), String> {
        if other.is_empty() || matches!(self, Self::Encoded(fields) if !other.touches_encoded(fields)) {
            return Ok(());
        }
        let set = self.set()?;
        *set = set.difference(other);
        Ok(())
    }

    pub fn has_all(&self, other: &FieldSet) -> bool {
        match self {
            Self::Encoded(fields) => other.is_subset_encoded(fields),
            Self::Set(set) => other.is_subset(set),
        }
    }

    fn encode(self) -> Value {
        match self {
            Self::Encoded(fields) => Value::Object(fields),
            Self::Set(set) => set.encode(),
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub api_version: String,
    /// RFC 3339, to the second, UTC.
    pub time: Option<String>,
    pub fields: Fields,
}

/// The owners of an object's fields.
#[derive(Clone, Debug, Default)]
pub(super) struct Managed(pub BTreeMap<Id, Entry>);

/// Whether a client wants all ownership to be forgotten: no entry, or one that says nothing.
pub(super) fn is_reset(managed: &Value) -> bool {
    managed.as_array().is_some_and(|entries| match entries.as_slice() {
        [] => true,
        [only] => only.as_object().is_some_and(Map::is_empty),
        _ => false,
    })
}

impl Managed {
    /// Reads entries; those whose fields are equal to the ones at the same place in `known` stay encoded.
    ///
    /// # Errors
    /// When an entry is not one: the operation, the version, the type of the fields, or the fields themselves.
    pub fn decode(entries: Value, known: &Value) -> Result<Self, String> {
        let mut managed = Self::default();
        let entries = match entries {
            Value::Array(entries) => entries,
            _ => Vec::new(),
        };
        for (i, entry) in entries.into_iter().enumerate() {
            let text = |name: &str| entry[name].as_str().unwrap_or_default();
            let updates = match text("operation") {
                "Apply" => false,
                "Update" => true,
                _ => return Err("operation must be `Apply` or `Update`".to_owned()),
            };
            let api_version = text("apiVersion").to_owned();
            if api_version.is_empty() {
                return Err("apiVersion must not be empty".to_owned());
            }
            match text("fieldsType") {
                "FieldsV1" => {}
                "" => return Err(format!("missing fieldsType in managed fields entry {i}")),
                other => {
                    return Err(format!("invalid fieldsType {other:?} in managed fields entry {i}"));
                }
            }
            let id = Id {
                manager: text("manager").to_owned(),
                updates,
                api_version: if updates { api_version.clone() } else { String::new() },
                subresource: text("subresource").to_owned(),
            };
            let time = entry["time"].as_str().map(str::to_owned);
            let fields = decode_fields(entry, &known[i]["fieldsV1"])?;
            managed.0.insert(id, Entry { api_version, time, fields });
        }
        Ok(managed)
    }

    /// Reads entries that were stored: their fields stay encoded.
    ///
    /// # Errors
    /// As [`Managed::decode`].
    pub fn decode_stored(entries: &Value) -> Result<Self, String> {
        Self::decode(entries.clone(), entries)
    }

    pub fn drop_empty(&mut self) {
        self.0.retain(|_, entry| !entry.fields.is_empty());
    }

    /// The entries as `metadata.managedFields` has them: appliers first, then by time. `None` where there are none.
    pub fn encode(self) -> Option<Value> {
        let mut entries: Vec<(Id, Entry)> = self.0.into_iter().collect();
        entries.sort_by(|(a_id, a), (b_id, b)| {
            (a_id.updates, &a.time)
                .cmp(&(b_id.updates, &b.time))
                .then_with(|| a_id.manager.cmp(&b_id.manager))
                .then_with(|| a.api_version.cmp(&b.api_version))
                .then_with(|| a_id.subresource.cmp(&b_id.subresource))
        });
        let entries: Vec<Value> = entries.into_iter().map(|(id, entry)| encode_entry(id, entry)).collect();
        (!entries.is_empty()).then_some(Value::Array(entries))
    }

    /// Joins the oldest updaters of each version into one where there are too many.
    pub fn cap_updaters(&mut self) -> Result<(), String> {
        let mut updaters: Vec<Id> = self.0.keys().filter(|id| id.updates).cloned().collect();
        if updaters.len() <= UPDATERS_MAX {
            return Ok(());
        }
        updaters.sort_by_key(|id| (self.0[id].time.clone(), id.clone()));
        let mut first_by_version: BTreeMap<String, Id> = BTreeMap::new();
        let mut left = updaters.len();
        for id in updaters {
            if left <= UPDATERS_MAX {
                break;
            }
            let version = id.api_version.clone();
            let Some(first) = first_by_version.get(&version) else {
                first_by_version.insert(version, id);
                continue;
            };
            let bucket = Id::new(OLD_UPDATES, true, &version, "");
            if !self.0.contains_key(&bucket)
                && let Some(entry) = self.0.remove(first)
            {
                self.0.insert(bucket.clone(), entry);
            }
            let Some(mut entry) = self.0.remove(&id) else { continue };
            left -= 1;
            let Some(joined) = self.0.get_mut(&bucket) else { continue };
            let union = joined.fields.set()?.union(entry.fields.set()?);
            joined.fields = Fields::Set(union);
            joined.time = entry.time;
        }
        Ok(())
    }
}

fn decode_fields(mut entry: Value, known: &Value) -> Result<Fields, String> {
    match entry.get_mut("fieldsV1").map(Value::take) {
        None | Some(Value::Null) => Ok(Fields::Set(FieldSet::default())),
        Some(fields) if fields == *known && fields.is_object() => match fields {
            Value::Object(fields) => Ok(Fields::Encoded(fields)),
            _ => unreachable!("an object, as the guard says"),
        },
        Some(fields) => FieldSet::decode(&fields).map(Fields::Set),
    }
}

fn encode_entry(id: Id, entry: Entry) -> Value {
    let mut object = Map::new();
    let mut set = |name: &str, value: String| {
        if !value.is_empty() {
            object.insert(name.to_owned(), Value::from(value));
        }
    };
    set("manager", id.manager);
    set("operation", if id.updates { "Update" } else { "Apply" }.to_owned());
    set("apiVersion", entry.api_version);
    set("subresource", id.subresource);
    set("time", entry.time.unwrap_or_default());
    set("fieldsType", "FieldsV1".to_owned());
    object.insert("fieldsV1".to_owned(), entry.fields.encode());
    Value::Object(object)
}

/// Checks entries that an admission plugin left.
///
/// # Errors
/// With what is wrong, for a warning.
pub fn validate_managed_fields(entries: &Value) -> Result<(), String> {
    Managed::decode(entries.clone(), &Value::Null).map(|_| ())
}

/// Gives entries of `new` back their old times where nothing but times differs between the two objects, so that a
/// write which changes nothing stays one.
pub fn keep_times(new: &mut Value, old: &Value) {
    let managed = |object: &Value| object["metadata"]["managedFields"].as_array().map_or(0, Vec::len);
    if managed(new) == 0 || managed(new) != managed(old) || !differs_in_times_only(new, old) {
        return;
    }
    new["metadata"]["managedFields"] = old["metadata"]["managedFields"].clone();
}

fn differs_in_times_only(new: &Value, old: &Value) -> bool {
    let same_entry = |(new, old): (&Value, &Value)| match (new.as_object(), old.as_object()) {
        (Some(new), Some(old)) => same_but(new, old, "time", |_, _| true),
        _ => false,
    };
    let same_managed = |new: &Value, old: &Value| match (new.as_array(), old.as_array()) {
        (Some(new), Some(old)) => new != old && new.iter().zip(old).all(same_entry),
        _ => false,
    };
    let same_metadata = |new: &Value, old: &Value| match (new.as_object(), old.as_object()) {
        (Some(new), Some(old)) => same_but(new, old, "managedFields", same_managed),
        _ => false,
    };
    // The entries first: they differ in most writes that change something.
    same_managed(&new["metadata"]["managedFields"], &old["metadata"]["managedFields"])
        && match (new.as_object(), old.as_object()) {
            (Some(new), Some(old)) => same_but(new, old, "metadata", same_metadata),
            _ => false,
        }
}

/// Whether two objects are equal, where `same` judges the values under `name`.
fn same_but(
    a: &Map<String, Value>,
    b: &Map<String, Value>,
    name: &str,
    same: impl Fn(&Value, &Value) -> bool,
) -> bool {
    a.len() == b.len()
        && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| if key == name { same(a, b) } else { a == b }))
}

/// The reset of ownership as an entry that decoding does not drop: an empty list becomes a list of one empty entry.
pub fn spell_out_reset(object: &mut Value) {
    if let Some(managed) = object.get_mut("metadata").and_then(|metadata| metadata.get_mut("managedFields"))
        && managed.as_array().is_some_and(Vec::is_empty)
    {
        *managed = json!([{}]);
    }
}
