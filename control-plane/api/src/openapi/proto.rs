//! The v2 document in protobuf: messages of gnostic's `openapi.v2` (OpenAPIv2.proto), which kubectl asks for. The numbers
//! below are the field numbers there. Only the fields that our document has are written.

use serde_json::Value;

/// A message being written.
#[derive(Default)]
struct Message {
    bytes: Vec<u8>,
}

impl Message {
    fn varint(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.bytes.push((number as u8 & 0x7f) | 0x80);
            number >>= 7;
        }
        self.bytes.push(number as u8);
    }

    fn delimited(&mut self, field: u32, bytes: &[u8]) {
        const LENGTH_DELIMITED: u64 = 2;
        self.varint(u64::from(field) << 3 | LENGTH_DELIMITED);
        self.varint(bytes.len() as u64);
        self.bytes.extend_from_slice(bytes);
    }

    /// An absent or empty text is not written.
    fn text(&mut self, field: u32, value: &Value) -> &mut Self {
        if let Some(text) = value.as_str().filter(|text| !text.is_empty()) {
            self.delimited(field, text.as_bytes());
        }
        self
    }

    fn texts(&mut self, field: u32, value: &Value) -> &mut Self {
        for text in value.as_array().into_iter().flatten().filter_map(Value::as_str) {
            self.delimited(field, text.as_bytes());
        }
        self
    }

    fn boolean(&mut self, field: u32, value: &Value) -> &mut Self {
        if value == &Value::Bool(true) {
            self.varint(u64::from(field) << 3);
            self.varint(1);
        }
        self
    }

    fn message(&mut self, field: u32, message: Message) -> &mut Self {
        self.delimited(field, &message.bytes);
        self
    }

    /// `NamedX { name, value }` for each entry of an object.
    fn named(&mut self, field: u32, entries: &Value, value: impl Fn(&Value) -> Message) -> &mut Self {
        for (name, entry) in entries.as_object().into_iter().flatten() {
            let mut named = Message::default();
            named.delimited(1, name.as_bytes());
            named.message(2, value(entry));
            self.message(field, named);
        }
        self
    }

    /// `x-…` entries as `NamedAny`.
    fn extensions(&mut self, field: u32, object: &Value) -> &mut Self {
        for (name, value) in
            object.as_object().into_iter().flatten().filter(|(name, _)| name.starts_with("x-"))
        {
            let mut named = Message::default();
            named.delimited(1, name.as_bytes());
            named.message(2, any(value));
            self.message(field, named);
        }
        self
    }
}

/// `Any`: the value as YAML, of which JSON is a part.
fn any(value: &Value) -> Message {
    let mut message = Message::default();
    message.delimited(2, value.to_string().as_bytes());
    message
}

/// Wraps a message into one that has it as its only field.
fn only(field: u32, inner: Message) -> Message {
    let mut message = Message::default();
    message.message(field, inner);
    message
}

/// `Document`.
pub(super) fn document(value: &Value) -> Vec<u8> {
    let mut info = Message::default();
    info.text(1, &value["info"]["title"]).text(2, &value["info"]["version"]);
    let mut paths = Message::default();
    paths.named(2, &value["paths"], path_item);
    let mut definitions = Message::default();
    definitions.named(1, &value["definitions"], schema);
    let mut security_definitions = Message::default();
    security_definitions.named(1, &value["securityDefinitions"], |found| only(2, api_key(found)));
    let mut out = Message::default();
    out.text(1, &value["swagger"]).message(2, info).message(8, paths).message(9, definitions);
    for requirement in value["security"].as_array().into_iter().flatten() {
        let mut message = Message::default();
        message.named(1, requirement, |scopes| {
            let mut array = Message::default();
            array.texts(1, scopes);
            array
        });
        out.message(12, message);
    }
    out.message(13, security_definitions);
    out.bytes
}

fn api_key(value: &Value) -> Message {
    let mut out = Message::default();
    out.text(1, &value["type"]).text(2, &value["name"]).text(3, &value["in"]).text(4, &value["description"]);
    out
}

fn path_item(value: &Value) -> Message {
    let mut out = Message::default();
    for (field, method) in [(2, "get"), (3, "put"), (4, "post"), (5, "delete"), (8, "patch")] {
        if let Some(found) = value.get(method) {
            out.message(field, operation(found));
        }
    }
    for found in value["parameters"].as_array().into_iter().flatten() {
        out.message(9, parameters_item(found));
    }
    out.extensions(10, value);
    out
}

fn operation(value: &Value) -> Message {
    let mut out = Message::default();
    out.texts(1, &value["tags"]).text(3, &value["description"]).text(5, &value["operationId"]);
    out.texts(6, &value["produces"]).texts(7, &value["consumes"]);
    for found in value["parameters"].as_array().into_iter().flatten() {
        out.message(8, parameters_item(found));
    }
    let mut responses = Message::default();
    responses.named(1, &value["responses"], |found| only(1, response(found)));
    out.message(9, responses).texts(10, &value["schemes"]).extensions(13, value);
    out
}

fn response(value: &Value) -> Message {
    let mut out = Message::default();
    out.text(1, &value["description"]);
    if let Some(found) = value.get("schema") {
        out.message(2, only(1, schema(found)));
    }
    out
}

/// `ParametersItem { Parameter { BodyParameter | NonBodyParameter } }`.
fn parameters_item(value: &Value) -> Message {
    let mut inner = Message::default();
    let place = value["in"].as_str();
    if place == Some("body") {
        inner.text(1, &value["description"]).text(2, &value["name"]).text(3, &value["in"]);
        inner.boolean(4, &value["required"]).message(5, schema(&value["schema"]));
        return only(1, only(1, inner));
    }
    inner.boolean(1, &value["required"]).text(2, &value["in"]).text(3, &value["description"]);
    inner.text(4, &value["name"]);
    let (kind, unique_items) = if place == Some("path") {
        inner.text(5, &value["type"]);
        (4, 18)
    } else {
        inner.text(6, &value["type"]);
        (3, 20)
    };
    inner.boolean(unique_items, &value["uniqueItems"]);
    only(1, only(2, only(kind, inner)))
}

fn schema(value: &Value) -> Message {
    let mut out = Message::default();
    out.text(1, &value["$ref"]).text(2, &value["format"]).text(4, &value["description"]);
    if let Some(default) = value.get("default") {
        out.message(5, any(default));
    }
    out.texts(19, &value["required"]);
    if let Some(values) = value.get("additionalProperties") {
        out.message(21, only(1, schema(values)));
    }
    if value["type"].is_string() {
        let mut ty = Message::default();
        ty.text(1, &value["type"]);
        out.message(22, ty);
    }
    if let Some(items) = value.get("items") {
        out.message(23, only(1, schema(items)));
    }
    if let Some(properties) = value.get("properties") {
        let mut message = Message::default();
        message.named(1, properties, schema);
        out.message(25, message);
    }
    out.extensions(31, value);
    out
}
