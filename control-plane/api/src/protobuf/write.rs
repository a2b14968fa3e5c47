//! Writing: a message is written from its end to its beginning, so that the length of what is nested is known when it is
//! put before it.

use base64::Engine as _;
use serde_json::{Map, Value};

use super::{ENVELOPE_TAIL, envelope, field_head, push_text};
use crate::{
    meta,
    schema::{Alternative, Field, Schema, Shape, Type, TypeId},
    time,
};

const OBJECT_META: &str = "apimachinery.pkg.apis.meta.v1.ObjectMeta";
const LIST_META: &str = "apimachinery.pkg.apis.meta.v1.ListMeta";

/// A whole object of type `ty`, under the `apiVersion` and `kind` that it states.
pub fn encode(schema: &Schema, ty: TypeId, value: &Value) -> Vec<u8> {
    envelope(meta::api_version(value), meta::kind(value), &encode_message(schema, ty, value))
}

/// The message of an object, without the envelope. What does not have the form of its field is written as a zero.
pub fn encode_message(schema: &Schema, ty: TypeId, value: &Value) -> Vec<u8> {
    let mut writer = Writer { schema, buffer: Backward::default() };
    writer.message(ty, value);
    writer.buffer.finish()
}

/// The message of a `PartialObjectMetadata` with this `metadata`.
pub fn encode_partial(schema: &Schema, metadata: &Value) -> Vec<u8> {
    field_one(schema, OBJECT_META, metadata)
}

/// A whole object of any built-in kind, also of the kinds that no type of the table stands for: those of
/// `PartialObjectMetadata`. `None` for other kinds.
pub fn encode_any(schema: &Schema, value: &Value) -> Option<Vec<u8>> {
    let (group, version) = meta::group_and_version(meta::api_version(value));
    let message = match (group, meta::kind(value)) {
        ("meta.k8s.io", "PartialObjectMetadata") => encode_partial(schema, &value["metadata"]),
        ("meta.k8s.io", "PartialObjectMetadataList") => {
            let items = value["items"].as_array().into_iter().flatten();
            let items: Vec<_> = items.map(|item| encode_partial(schema, &item["metadata"])).collect();
            list_message(schema, &value["metadata"], items.iter().map(Vec::as_slice))
        }
        (group, kind) => encode_message(schema, schema.type_of(group, version, kind)?, value),
    };
    Some(envelope(meta::api_version(value), meta::kind(value), &message))
}

/// The message of a list's metadata, as the list's first field.
pub fn list_metadata(schema: &Schema, metadata: &Value) -> Vec<u8> {
    field_one(schema, LIST_META, metadata)
}

/// The message of a list whose items are messages already. The list's own fields come first, as Go writes them.
pub fn list_message<'a>(
    schema: &Schema,
    metadata: &Value,
    items: impl IntoIterator<Item = &'a [u8]>,
) -> Vec<u8> {
    let mut message = field_one(schema, LIST_META, metadata);
    for item in items {
        message.extend(field_head(2, item.len()));
        message.extend_from_slice(item);
    }
    message
}

/// A frame of a watch: four bytes of length, highest first, and a `WatchEvent` (without envelope) that carries an object
/// in its envelope, of which `head` is the part before the message.
pub fn watch_frame(kind: &str, head: &[u8], message: &[u8]) -> Vec<u8> {
    let object = head.len() + message.len() + ENVELOPE_TAIL.len();
    let raw = field_head(1, object);
    let field = field_head(2, raw.len() + object);
    let mut text = Vec::with_capacity(kind.len() + 2);
    push_text(&mut text, 1, kind);
    let length = text.len() + field.len() + raw.len() + object;
    let mut frame = Vec::with_capacity(length + 4);
    frame.extend_from_slice(&(length as u32).to_be_bytes());
    for part in [&text, &field, &raw, head, message, ENVELOPE_TAIL.as_slice()] {
        frame.extend_from_slice(part);
    }
    frame
}

/// A frame of a watch that carries a whole object, envelope and all.
pub fn watch_frame_of(kind: &str, object: &[u8]) -> Vec<u8> {
    let message = object.strip_suffix(ENVELOPE_TAIL).unwrap_or(object);
    watch_frame(kind, &[], message)
}

/// The part of an object's message that holds its `metadata`: the message of a `PartialObjectMetadata`, where the type
/// has `metadata` first, as all do.
pub fn metadata_of(message: &[u8]) -> Option<&[u8]> {
    let rest = message.strip_prefix(&[0x0a])?;
    let mut length = 0usize;
    for (i, byte) in rest.iter().take(5).enumerate() {
        length |= usize::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            return message.get(..i + 2 + length);
        }
    }
    None
}

fn field_one(schema: &Schema, type_name: &str, value: &Value) -> Vec<u8> {
    let ty = schema.type_named(type_name).expect("the table has the types of metadata");
    let message = encode_message(schema, ty, value);
    let mut out = field_head(1, message.len());
    out.extend(message);
    out
}

/// Bytes that grow at their beginning.
#[derive(Default)]
struct Backward {
    bytes: Vec<u8>,
    /// Where the content begins; what is before is free.
    start: usize,
}

impl Backward {
    fn len(&self) -> usize {
        self.bytes.len() - self.start
    }

    fn put(&mut self, content: &[u8]) {
        if self.start < content.len() {
            let more = (self.bytes.len()).max(content.len()).max(512);
            let mut grown = vec![0; more + self.bytes.len()];
            grown[more..].copy_from_slice(&self.bytes);
            self.bytes = grown;
            self.start += more;
        }
        self.start -= content.len();
        self.bytes[self.start..self.start + content.len()].copy_from_slice(content);
    }

    fn varint(&mut self, mut number: u64) {
        let mut encoded = [0; 10];
        let mut length = 0;
        loop {
            encoded[length] = number as u8 & 0x7f | if number >= 0x80 { 0x80 } else { 0 };
            length += 1;
            number >>= 7;
            if number == 0 {
                break;
            }
        }
        self.put(&encoded[..length]);
    }

    fn key(&mut self, tag: u32, wire: u64) {
        self.varint(u64::from(tag) << 3 | wire);
    }

    /// Puts tag and length before what was written since the content had `before` bytes.
    fn close(&mut self, tag: u32, before: usize) {
        self.varint((self.len() - before) as u64);
        self.key(tag, 2);
    }

    fn finish(mut self) -> Vec<u8> {
        self.bytes.drain(..self.start);
        self.bytes
    }
}

struct Writer<'a> {
    schema: &'a Schema,
    buffer: Backward,
}

impl Writer<'_> {
    fn message(&mut self, ty: TypeId, value: &Value) {
        let ty = self.schema.get(ty);
        match value {
            Value::Object(object) => self.fields(ty, &ty.by_tag, 0, object),
            _ => self.fields(ty, &ty.by_tag, 0, &Map::new()),
        }
    }

    /// Fields whose tags agree up to `depth`; those that go on are of a struct that Go embeds.
    fn fields(&mut self, ty: &Type, mut order: &[u16], depth: usize, object: &Map<String, Value>) {
        let field = |index: &u16| &ty.fields[usize::from(*index)];
        while let Some(last) = order.last() {
            let last = field(last);
            let tag = last.tags[depth];
            if last.tags.len() == depth + 1 {
                order = &order[..order.len() - 1];
                self.field(last, tag, object.get(last.name.as_ref()));
                continue;
            }
            let begin = order.partition_point(|index| field(index).tags[depth] < tag);
            let before = self.buffer.len();
            self.fields(ty, &order[begin..], depth + 1, object);
            self.buffer.close(tag, before);
            order = &order[..begin];
        }
    }

    fn field(&mut self, field: &Field, tag: u32, value: Option<&Value>) {
        match (self.schema.resolve(&field.shape), value) {
            (Shape::List(items), Some(Value::Array(list))) if field.wrapped => {
                let before = self.buffer.len();
                list.iter().rev().for_each(|item| self.value(items, 1, item));
                self.buffer.close(tag, before);
            }
            (Shape::List(items), Some(Value::Array(list))) => {
                list.iter().rev().for_each(|item| self.value(items, tag, item));
            }
            (Shape::Map(values), Some(Value::Object(map))) => self.map(values, tag, map),
            (Shape::List(_) | Shape::Map(_), _) => {}
            (_, None | Some(Value::Null)) if field.pointer => {}
            (Shape::Bytes, None | Some(Value::Null)) => {}
            (shape, value) => self.value(shape, tag, value.unwrap_or(&Value::Null)),
        }
    }

    fn map(&mut self, shape: &Shape, tag: u32, map: &Map<String, Value>) {
        // Go sorts the keys; so does the map, unless it keeps the order of insertion.
        let mut entries: Vec<(&String, &Value)> = map.iter().collect();
        if !entries.is_sorted_by_key(|(key, _)| *key) {
            entries.sort_by_key(|(key, _)| *key);
        }
        for (key, value) in entries.into_iter().rev() {
            let before = self.buffer.len();
            self.value(shape, 2, value);
            self.text(1, key);
            self.buffer.close(tag, before);
        }
    }

    fn text(&mut self, tag: u32, text: &str) {
        self.bytes(tag, text.as_bytes());
    }

    fn bytes(&mut self, tag: u32, bytes: &[u8]) {
        let before = self.buffer.len();
        self.buffer.put(bytes);
        self.buffer.close(tag, before);
    }

    fn number(&mut self, tag: u32, number: i64) {
        self.buffer.varint(number.cast_unsigned());
        self.buffer.key(tag, 0);
    }

    /// One value under a tag; the zero of its form where it is null.
    fn value(&mut self, shape: &Shape, tag: u32, value: &Value) {
        match self.schema.resolve(shape) {
            Shape::String => self.text(tag, value.as_str().unwrap_or_default()),
            Shape::Bytes => self.bytes(tag, &base64(value.as_str().unwrap_or_default())),
            Shape::Boolean => self.number(tag, value.as_bool().unwrap_or_default().into()),
            Shape::Int32 | Shape::Int64 => self.number(tag, value.as_i64().unwrap_or_default()),
            Shape::Double => {
                self.buffer.put(&value.as_f64().unwrap_or_default().to_le_bytes());
                self.buffer.key(tag, 1);
            }
            shape => {
                let before = self.buffer.len();
                self.nested(shape, value);
                self.buffer.close(tag, before);
            }
        }
    }

    /// The content of a form that protobuf has as a message.
    fn nested(&mut self, shape: &Shape, value: &Value) {
        match shape {
            Shape::Ref(ty) => self.message(*ty, value),
            Shape::IntOrString => {
                self.text(3, value.as_str().unwrap_or_default());
                self.number(2, value.as_i64().unwrap_or_default());
                self.number(1, value.is_string().into());
            }
            Shape::Quantity => match value {
                Value::String(text) => self.text(1, text),
                Value::Number(number) => self.text(1, &number.to_string()),
                _ => self.text(1, "0"),
            },
            Shape::Time | Shape::MicroTime => {
                if let Some(at) = value.as_str().and_then(|text| time::parse(text).ok()) {
                    self.number(2, at.subsec_nanosecond().rem_euclid(1_000_000_000).into());
                    self.number(1, at.as_nanosecond().div_euclid(1_000_000_000) as i64);
                }
            }
            Shape::Object | Shape::Any if !value.is_null() => self.text(1, &value.to_string()),
            Shape::SchemaOr(alternative) => self.schema_or(*alternative, value),
            // The value of a map of lists: a message whose first field repeats.
            Shape::List(items) => {
                value.as_array().into_iter().flatten().rev().for_each(|item| self.value(items, 1, item));
            }
            _ => {}
        }
    }

    fn schema_or(&mut self, alternative: Alternative, value: &Value) {
        let ty = self.schema.json_schema_props();
        match (alternative, value) {
            (Alternative::Boolean, Value::Object(_)) => {
                self.value(&Shape::Ref(ty), 2, value);
                self.number(1, 1);
            }
            (Alternative::Boolean, value) => self.number(1, value.as_bool().unwrap_or_default().into()),
            (Alternative::Schemas, Value::Array(items)) => {
                items.iter().rev().for_each(|item| self.value(&Shape::Ref(ty), 2, item));
            }
            (Alternative::Strings, Value::Array(items)) => {
                items.iter().rev().for_each(|item| self.text(2, item.as_str().unwrap_or_default()));
            }
            (_, Value::Object(_)) => self.value(&Shape::Ref(ty), 1, value),
            _ => {}
        }
    }
}

fn base64(text: &str) -> Vec<u8> {
    let engine = base64::engine::general_purpose::STANDARD;
    engine.decode(text).or_else(|_| engine.decode(text.replace(['\r', '\n'], ""))).unwrap_or_default()
}
