//! One version of one object: the bytes that every reader gets, and the little that selectors ask.
//!
//! The store holds JSON without `metadata.resourceVersion`; the version is spliced in once, here, and all watchers and
//! readers share those bytes.

use std::{
    ops::Range,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;

use super::encodings::{self, Slot};
use crate::storage::{Revision, Stored};

/// What selectors, garbage collection and routing ask without parsing the object.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Meta {
    pub name: String,
    /// Empty for cluster-scoped objects.
    pub namespace: String,
    pub uid: String,
    pub labels: Labels,
    pub deletion_timestamp: Option<String>,
    owner_references: Option<Vec<Owner>>,
}

/// An object's labels in one piece: each key and each value, with [`END`] after it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Labels(Box<str>);

/// In no label that a selector could name.
const END: char = '\0';

impl Labels {
    pub fn get(&self, key: &str) -> Option<&str> {
        self.iter().find(|(label, _)| *label == key).map(|(_, value)| value)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        let mut texts = self.0.split_terminator(END);
        std::iter::from_fn(move || Some((texts.next()?, texts.next()?)))
    }

    /// As a JSON object.
    pub fn to_value(&self) -> Value {
        self.iter().map(|(key, value)| (key.to_owned(), Value::from(value))).collect()
    }
}

impl<'de> Deserialize<'de> for Labels {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // A value that is no string labels nothing; the object is shown all the same.
        let labels = Option::<serde_json::Map<String, Value>>::deserialize(deserializer)?;
        let mut texts = String::new();
        for (key, value) in labels.into_iter().flatten() {
            let Value::String(value) = value else { continue };
            if !key.contains(END) && !value.contains(END) {
                for text in [&*key, &*value] {
                    texts.push_str(text);
                    texts.push(END);
                }
            }
        }
        Ok(Self(texts.into_boxed_str()))
    }
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct Owner {
    uid: String,
}

impl Meta {
    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels.get(key)
    }

    pub fn owner_uids(&self) -> impl Iterator<Item = &str> {
        self.owner_references.iter().flatten().map(|owner| owner.uid.as_str())
    }
}

#[derive(Deserialize)]
struct Partial {
    #[serde(default)]
    metadata: Meta,
}

/// An immutable version of an object, shared by all its readers.
#[derive(Debug)]
pub struct Object {
    key: Arc<str>,
    revision: Revision,
    json: Bytes,
    /// Where `"resourceVersion":"N"` and the comma after it are in `json`.
    version_at: Range<usize>,
    meta: Meta,
    fields: OnceLock<Vec<(&'static str, String)>>,
    protobuf: Slot,
    views: Mutex<Vec<(u64, View)>>,
}

/// Views of one object that are kept at a time.
const VIEWS_MAX: usize = 16;

/// What a version of a custom kind shows of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum View {
    /// What is stored.
    Same,
    Json(Bytes),
}

impl Object {
    /// Reads stored bytes.
    ///
    /// # Errors
    /// When the bytes are not a JSON object with a `metadata` object: the store holds something foreign.
    pub fn new(key: Arc<str>, revision: Revision, stored: &[u8]) -> Result<Self, serde_json::Error> {
        let partial: Partial = serde_json::from_slice(stored)?;
        let at = metadata_start(stored)
            .ok_or_else(|| serde::de::Error::custom(format!("{key} has no metadata object")))?;
        let (json, version_at) = with_version(stored, at..at, revision);
        Ok(Self {
            key,
            revision,
            json,
            version_at,
            meta: partial.metadata,
            fields: OnceLock::new(),
            protobuf: Slot::default(),
            views: Mutex::default(),
        })
    }

    /// # Errors
    /// As [`Object::new`].
    pub fn from_stored(stored: &Stored) -> Result<Self, serde_json::Error> {
        Self::new(stored.key.clone(), stored.revision, &stored.value)
    }

    pub fn key(&self) -> &Arc<str> {
        &self.key
    }

    /// The write that made this version; for a deleted object, the deletion.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The object as clients see it, `metadata.resourceVersion` included.
    pub fn json(&self) -> &Bytes {
        &self.json
    }

    /// The same object under another revision: what a watcher gets when an object leaves its selector.
    pub fn json_at(&self, revision: Revision) -> Bytes {
        with_version(&self.json, self.version_at.clone(), revision).0
    }

    /// The bytes as stored, without `metadata.resourceVersion`.
    pub fn stored(&self) -> Bytes {
        let mut bytes = Vec::with_capacity(self.json.len());
        bytes.extend_from_slice(&self.json[..self.version_at.start]);
        bytes.extend_from_slice(&self.json[self.version_at.end..]);
        bytes.into()
    }

    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// The parsed object, made anew on each call: keep what you need, not the tree.
    pub fn value(&self) -> Value {
        serde_json::from_slice(&self.json).expect("the bytes were parsed when the object was made")
    }

    /// The values of field selectors, computed from the parsed object at the first call and kept.
    pub fn fields(
        &self,
        compute: impl FnOnce(&Value) -> Vec<(&'static str, String)>,
    ) -> &[(&'static str, String)] {
        self.fields.get_or_init(|| compute(&self.value()))
    }

    /// The object's protobuf message (without envelope), made from the parsed object and kept as long as others are not
    /// asked for more.
    pub fn protobuf(&self, encode: impl FnOnce(&Value) -> Vec<u8>) -> Bytes {
        encodings::PROTOBUF.get_or_make(&self.protobuf, || encode(&self.value()))
    }

    /// The length of the message, once it was made.
    pub fn protobuf_length(&self) -> Option<usize> {
        self.protobuf.length()
    }

    /// The JSON that a view shows; `None` where it was not made yet.
    pub fn view(&self, id: u64) -> Option<Bytes> {
        let views = self.views.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, view) = views.iter().find(|(known, _)| *known == id)?;
        Some(match view {
            View::Same => self.json.clone(),
            View::Json(json) => json.clone(),
        })
    }

    /// Keeps a view; the oldest goes where there are too many.
    pub fn keep_view(&self, id: u64, view: View) {
        let mut views = self.views.lock().unwrap_or_else(PoisonError::into_inner);
        views.retain(|(known, _)| *known != id);
        if views.len() == VIEWS_MAX {
            views.remove(0);
        }
        views.push((id, view));
    }

    /// This object as its deletion at `revision` shows it.
    pub(super) fn deleted_at(&self, revision: Revision) -> Self {
        let (json, version_at) = with_version(&self.json, self.version_at.clone(), revision);
        Self {
            key: self.key.clone(),
            revision,
            json,
            version_at,
            meta: self.meta.clone(),
            fields: self.fields.clone(),
            protobuf: Slot::default(),
            views: Mutex::default(),
        }
    }
}

/// Replaces `at` by the member `"resourceVersion":"N"`; with the bytes, where the member is.
fn with_version(json: &[u8], at: Range<usize>, revision: Revision) -> (Bytes, Range<usize>) {
    let empty = json.get(at.end) == Some(&b'}');
    let member = format!("\"resourceVersion\":\"{}\"{}", revision.0, if empty { "" } else { "," });
    let mut bytes = Vec::with_capacity(json.len() - at.len() + member.len());
    for part in [&json[..at.start], member.as_bytes(), &json[at.end..]] {
        bytes.extend_from_slice(part);
    }
    (bytes.into(), at.start..at.start + member.len())
}

/// Where the members of the top-level `metadata` object begin. The bytes are compact JSON.
fn metadata_start(json: &[u8]) -> Option<usize> {
    const MEMBER: &[u8] = b"\"metadata\":{";
    let mut depth = 0usize;
    let mut at = 0;
    while at < json.len() {
        match json[at] {
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.checked_sub(1)?,
            b'"' => {
                if depth == 1 && json[at..].starts_with(MEMBER) {
                    return Some(at + MEMBER.len());
                }
                at = string_end(json, at)?;
            }
            _ => {}
        }
        at += 1;
    }
    None
}

/// The closing quote of the string that opens at `start`.
fn string_end(json: &[u8], start: usize) -> Option<usize> {
    let mut at = start + 1;
    loop {
        match json.get(at)? {
            b'\\' => at += 2,
            b'"' => return Some(at),
            _ => at += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(json: &str) -> Object {
        Object::new("/registry/core/pods/a/b".into(), Revision(7), json.as_bytes()).unwrap()
    }

    #[test]
    fn the_resource_version_is_in_metadata_and_nowhere_else() {
        let json =
            r#"{"a":{"metadata":{"x":"\"metadata\":{"}},"metadata":{"name":"b","labels":{"k":"v"}},"z":[1]}"#;
        let made = object(json);
        let value = made.value();
        assert_eq!(value["metadata"]["resourceVersion"], "7");
        assert_eq!(value["a"]["metadata"].get("resourceVersion"), None);
        assert_eq!(made.stored(), json.as_bytes());
        assert_eq!(made.meta().name, "b");
        assert_eq!(made.meta().label("k"), Some("v"));
    }

    #[test]
    fn another_revision_changes_only_the_version() {
        let made = object(r#"{"kind":"Pod","metadata":{"name":"b"},"spec":{}}"#);
        let other: Value = serde_json::from_slice(&made.json_at(Revision(123_456))).unwrap();
        assert_eq!(other["metadata"]["resourceVersion"], "123456");
        assert_eq!(other["metadata"]["name"], "b");
        let deleted = made.deleted_at(Revision(9));
        assert_eq!(deleted.stored(), made.stored());
        assert_eq!(deleted.value()["metadata"]["resourceVersion"], "9");
    }

    #[test]
    fn empty_metadata_takes_a_version_too() {
        assert_eq!(object(r#"{"metadata":{}}"#).json(), r#"{"metadata":{"resourceVersion":"7"}}"#);
    }

    #[test]
    fn foreign_bytes_are_refused() {
        for bytes in ["", "{", "[]", "{}", r#"{"metadata":3}"#, r#"{"metadata":null}"#, "\u{0}\u{1}"] {
            assert!(Object::new("k".into(), Revision(1), bytes.as_bytes()).is_err(), "{bytes}");
        }
    }
}
