//! Kubernetes' protobuf form of objects, read into JSON by the tags of the schema table.
//!
//! ```text
//! "k8s\0"  Unknown { 1: TypeMeta { 1: apiVersion, 2: kind }, 2: the object's message }
//! ```
//!
//! Go writes every field that is not a pointer, also when it is zero, where JSON leaves it out; a zero is kept here only
//! in fields that are pointers in Go, so that both forms of an object read the same. Deliberately absent: writing.

use base64::Engine as _;
use jiff::Timestamp;
use serde_json::{Map, Value};

use crate::{
    schema::{Field, Schema, Shape, TypeId},
    time,
};

/// The first bytes of every encoded object.
pub const MAGIC: &[u8; 4] = b"k8s\0";
/// Messages may be nested so deep.
const DEPTH_MAX: usize = 64;

/// Why bytes are no object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtobufError {
    #[error("the body does not begin with the four bytes \"k8s\\0\" of Kubernetes' protobuf form")]
    NoMagic,
    #[error("the message ends in the middle of {0}")]
    Truncated(String),
    #[error("{path}: {detail}")]
    Field { path: String, detail: String },
}

/// Scalars that are pointers in Go: their zero is a value. Sorted.
const POINTERS: [&str; 93] = [
    "activeDeadlineSeconds",
    "adminAccess",
    "allNodes",
    "allocateLoadBalancerNodePorts",
    "allowMultipleAllocations",
    "allowPrivilegeEscalation",
    "allowVolumeExpansion",
    "attachRequired",
    "automountServiceAccountToken",
    "averageUtilization",
    "backoffLimit",
    "backoffLimitPerIndex",
    "bindsToNode",
    "blockOwnerDeletion",
    "bool",
    "borrowingLimitPercent",
    "collisionCount",
    "completions",
    "controller",
    "currentAverageUtilization",
    "currentCPUUtilizationPercentage",
    "defaultMode",
    "deletionGracePeriodSeconds",
    "enableServiceLinks",
    "endPort",
    "errorCode",
    "expirationSeconds",
    "failedJobsHistoryLimit",
    "fsGroup",
    "gracePeriodSeconds",
    "hostProcess",
    "hostUsers",
    "immutable",
    "int",
    "leaseDurationSeconds",
    "leaseTransitions",
    "lendablePercent",
    "limitBytes",
    "lun",
    "manualSelector",
    "maxExpirationSeconds",
    "maxFailedIndexes",
    "minDomains",
    "minReplicas",
    "mode",
    "nodeAllocatableUpdatePeriodSeconds",
    "nominalConcurrencyShares",
    "optional",
    "orphanDependents",
    "parallelism",
    "partition",
    "perDeviceNodeSelection",
    "podInfoOnMount",
    "preventPodSchedulingIfMissing",
    "priority",
    "privileged",
    "progressDeadlineSeconds",
    "readOnlyRootFilesystem",
    "ready",
    "recursiveReadOnlyMounts",
    "remainingItemCount",
    "replicas",
    "requiresRepublish",
    "revisionHistoryLimit",
    "runAsGroup",
    "runAsNonRoot",
    "runAsUser",
    "seLinuxMount",
    "sendInitialEvents",
    "serviceAccountTokenInSecrets",
    "serving",
    "setHostnameAsFQDN",
    "shareProcessNamespace",
    "sinceSeconds",
    "stabilizationWindowSeconds",
    "started",
    "startingDeadlineSeconds",
    "storageCapacity",
    "storageClassName",
    "succeededCount",
    "successfulJobsHistoryLimit",
    "suspend",
    "tailLines",
    "targetAverageUtilization",
    "targetCPUUtilizationPercentage",
    "terminating",
    "terminatingReplicas",
    "terminationGracePeriodSeconds",
    "tolerationSeconds",
    "ttlSecondsAfterFinished",
    "userNamespaces",
    "volumeAttributesClassName",
    "volumeMode",
];

/// Reads an object of a type. `apiVersion` and `kind` are those of the envelope, where it has them.
///
/// # Errors
/// Where the bytes are no such object, with the field.
pub fn decode(schema: &Schema, ty: TypeId, bytes: &[u8]) -> Result<Value, ProtobufError> {
    let unknown = bytes.strip_prefix(MAGIC).ok_or(ProtobufError::NoMagic)?;
    let mut object = Map::new();
    let mut raw: &[u8] = &[];
    for part in Parts::new(unknown, "the envelope") {
        match part? {
            (1, Wire::Bytes(meta)) => {
                for part in Parts::new(meta, "the envelope's typeMeta") {
                    match part? {
                        (1, Wire::Bytes(text)) => insert_text(&mut object, "apiVersion", text),
                        (2, Wire::Bytes(text)) => insert_text(&mut object, "kind", text),
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(bytes)) => raw = bytes,
            _ => {}
        }
    }
    Reader { schema, depth: 0 }.message(ty, raw, "", &mut object)?;
    Ok(Value::Object(object))
}

fn insert_text(object: &mut Map<String, Value>, name: &str, text: &[u8]) {
    let text = String::from_utf8_lossy(text);
    if !text.is_empty() {
        object.insert(name.to_owned(), Value::from(text));
    }
}

/// The value of one field, as the wire has it.
#[derive(Clone, Copy, Debug)]
enum Wire<'a> {
    Varint(u64),
    Fixed64(u64),
    Bytes(&'a [u8]),
    Fixed32(u32),
}

/// The fields of a message, in order.
struct Parts<'a> {
    rest: &'a [u8],
    what: &'a str,
}

impl<'a> Parts<'a> {
    fn new(rest: &'a [u8], what: &'a str) -> Self {
        Self { rest, what }
    }

    fn truncated(&self) -> ProtobufError {
        ProtobufError::Truncated(if self.what.is_empty() { "the object" } else { self.what }.to_owned())
    }

    fn varint(&mut self) -> Result<u64, ProtobufError> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.rest.split_first().ok_or_else(|| self.truncated())?;
            self.rest = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(self.truncated())
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], ProtobufError> {
        if self.rest.len() < length {
            return Err(self.truncated());
        }
        let (taken, rest) = self.rest.split_at(length);
        self.rest = rest;
        Ok(taken)
    }

    fn part(&mut self) -> Result<(u32, Wire<'a>), ProtobufError> {
        let key = self.varint()?;
        let tag = u32::try_from(key >> 3).map_err(|_| self.truncated())?;
        let wire = match key & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => Wire::Fixed64(u64::from_le_bytes(self.take(8)?.try_into().expect("eight bytes were taken"))),
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| self.truncated())?;
                Wire::Bytes(self.take(length)?)
            }
            5 => Wire::Fixed32(u32::from_le_bytes(self.take(4)?.try_into().expect("four bytes were taken"))),
            _ => return Err(self.truncated()),
        };
        Ok((tag, wire))
    }
}

impl<'a> Iterator for Parts<'a> {
    type Item = Result<(u32, Wire<'a>), ProtobufError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let part = self.part();
        if part.is_err() {
            self.rest = &[];
        }
        Some(part)
    }
}

#[derive(Clone, Copy)]
struct Reader<'a> {
    schema: &'a Schema,
    depth: usize,
}

impl Reader<'_> {
    fn message(
        self,
        ty: TypeId,
        bytes: &[u8],
        path: &str,
        object: &mut Map<String, Value>,
    ) -> Result<(), ProtobufError> {
        self.embedded(ty, &mut Vec::new(), bytes, path, object)
    }

    /// The fields below `prefix`: those of a struct that Go embeds, which JSON shows among their owner's.
    fn embedded(
        self,
        ty: TypeId,
        prefix: &mut Vec<u32>,
        bytes: &[u8],
        path: &str,
        object: &mut Map<String, Value>,
    ) -> Result<(), ProtobufError> {
        if self.depth > DEPTH_MAX {
            return Err(wrong(path, "nested too deep"));
        }
        let deeper = Self { depth: self.depth + 1, ..self };
        for part in Parts::new(bytes, path) {
            let (tag, wire) = part?;
            prefix.push(tag);
            let fields = &self.schema.get(ty).fields;
            if let Some(field) = fields.iter().find(|field| *field.tags == **prefix) {
                let path = crate::field::child(path, &field.name);
                deeper.field(field, wire, &path, object)?;
            } else if let Wire::Bytes(bytes) = wire
                && fields.iter().any(|field| field.tags.starts_with(prefix))
            {
                deeper.embedded(ty, prefix, bytes, path, object)?;
            }
            prefix.pop();
        }
        Ok(())
    }

    fn field(
        self,
        field: &Field,
        wire: Wire<'_>,
        path: &str,
        object: &mut Map<String, Value>,
    ) -> Result<(), ProtobufError> {
        let name = field.name.as_ref();
        match &field.shape {
            Shape::List(items) => {
                let list = object.entry(name).or_insert_with(|| Value::Array(Vec::new()));
                if let Value::Array(list) = list {
                    self.items(items, wire, path, list)?;
                }
            }
            Shape::Map(values) => {
                let map = object.entry(name).or_insert_with(|| Value::Object(Map::new()));
                let Wire::Bytes(bytes) = wire else {
                    return Err(wrong(path, "a map entry must be a message"));
                };
                let (key, value) = self.entry(values, bytes, path)?;
                map[key] = value;
            }
            shape => {
                let Some(value) = self.value(shape, wire, path)? else { return Ok(()) };
                if field.required || !is_zero(&value) || POINTERS.binary_search(&name).is_ok() {
                    object.insert(name.to_owned(), value);
                }
            }
        }
        Ok(())
    }

    fn items(
        self,
        shape: &Shape,
        wire: Wire<'_>,
        path: &str,
        list: &mut Vec<Value>,
    ) -> Result<(), ProtobufError> {
        if let (Shape::Int32 | Shape::Int64, Wire::Bytes(packed)) = (shape, wire) {
            let mut parts = Parts::new(packed, path);
            while !parts.rest.is_empty() {
                list.push(Value::from(parts.varint()?.cast_signed()));
            }
            return Ok(());
        }
        list.extend(self.value(shape, wire, path)?);
        Ok(())
    }

    fn entry(self, shape: &Shape, bytes: &[u8], path: &str) -> Result<(String, Value), ProtobufError> {
        let mut key = String::new();
        let mut value = None;
        for part in Parts::new(bytes, path) {
            match part? {
                (1, Wire::Bytes(text)) => key = utf8(text, path)?,
                (2, wire) => value = self.value(shape, wire, &crate::field::key(path, &key))?,
                _ => {}
            }
        }
        Ok((key, value.unwrap_or_else(|| zero(shape))))
    }

    /// `None` for a time that is not set.
    fn value(self, shape: &Shape, wire: Wire<'_>, path: &str) -> Result<Option<Value>, ProtobufError> {
        Ok(Some(match (shape, wire) {
            (Shape::String, Wire::Bytes(bytes)) => Value::from(utf8(bytes, path)?),
            (Shape::Bytes, Wire::Bytes(bytes)) => {
                Value::from(base64::engine::general_purpose::STANDARD.encode(bytes))
            }
            (Shape::Boolean, Wire::Varint(number)) => Value::from(number != 0),
            (Shape::Int32 | Shape::Int64, Wire::Varint(number)) => Value::from(number.cast_signed()),
            (Shape::Double, Wire::Fixed64(bits)) => Value::from(f64::from_bits(bits)),
            (Shape::Double, Wire::Fixed32(bits)) => Value::from(f64::from(f32::from_bits(bits))),
            (Shape::IntOrString, Wire::Bytes(bytes)) => int_or_string(bytes, path)?,
            (Shape::Quantity, Wire::Bytes(bytes)) => {
                let text = first_text(bytes, path)?;
                Value::from(if text.is_empty() { "0".to_owned() } else { text })
            }
            (Shape::Time, Wire::Bytes(bytes)) => {
                return Ok(timestamp(bytes, path)?.map(|at| Value::from(time::format_seconds(at))));
            }
            (Shape::MicroTime, Wire::Bytes(bytes)) => {
                return Ok(timestamp(bytes, path)?.map(|at| Value::from(time::format_micros(at))));
            }
            (Shape::Object | Shape::Any, Wire::Bytes(bytes)) => return raw_json(bytes, path),
            (Shape::Ref(ty), wire) => match (&self.schema.get(*ty).leaf, wire) {
                (Some(leaf), wire) => return self.value(leaf, wire, path),
                (None, Wire::Bytes(bytes)) => {
                    let mut object = Map::new();
                    self.message(*ty, bytes, path, &mut object)?;
                    Value::Object(object)
                }
                (None, _) => return Err(wrong(path, "a message was expected")),
            },
            // A list as the value of a map is a message whose first field repeats.
            (Shape::List(items), Wire::Bytes(bytes)) => {
                let mut list = Vec::new();
                for part in Parts::new(bytes, path) {
                    let (tag, wire) = part?;
                    if tag == 1 {
                        self.items(items, wire, path, &mut list)?;
                    }
                }
                Value::Array(list)
            }
            (shape, _) => return Err(wrong(path, &format!("cannot be read as {shape:?}"))),
        }))
    }
}

fn wrong(path: &str, detail: &str) -> ProtobufError {
    ProtobufError::Field { path: path.to_owned(), detail: detail.to_owned() }
}

fn utf8(bytes: &[u8], path: &str) -> Result<String, ProtobufError> {
    String::from_utf8(bytes.to_vec()).map_err(|_| wrong(path, "the text is not UTF-8"))
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(flag) => !flag,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(_) | Value::Object(_) => false,
    }
}

/// What a map entry without a value holds.
fn zero(shape: &Shape) -> Value {
    match shape {
        Shape::Boolean => Value::from(false),
        Shape::Int32 | Shape::Int64 | Shape::Double => Value::from(0),
        Shape::List(_) => Value::Array(Vec::new()),
        Shape::Map(_) | Shape::Object | Shape::Ref(_) => Value::Object(Map::new()),
        _ => Value::from(""),
    }
}

/// The text of a message's first field.
fn first_text(bytes: &[u8], path: &str) -> Result<String, ProtobufError> {
    for part in Parts::new(bytes, path) {
        if let (1, Wire::Bytes(text)) = part? {
            return utf8(text, path);
        }
    }
    Ok(String::new())
}

fn int_or_string(bytes: &[u8], path: &str) -> Result<Value, ProtobufError> {
    let (mut is_text, mut number, mut text) = (false, 0, String::new());
    for part in Parts::new(bytes, path) {
        match part? {
            (1, Wire::Varint(kind)) => is_text = kind == 1,
            (2, Wire::Varint(value)) => number = value.cast_signed(),
            (3, Wire::Bytes(value)) => text = utf8(value, path)?,
            _ => {}
        }
    }
    Ok(if is_text { Value::from(text) } else { Value::from(number) })
}

fn timestamp(bytes: &[u8], path: &str) -> Result<Option<Timestamp>, ProtobufError> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let (mut seconds, mut nanos) = (0, 0);
    for part in Parts::new(bytes, path) {
        match part? {
            (1, Wire::Varint(value)) => seconds = value.cast_signed(),
            (2, Wire::Varint(value)) => nanos = i32::try_from(value).unwrap_or(0),
            _ => {}
        }
    }
    Timestamp::new(seconds, nanos).map(Some).map_err(|error| wrong(path, &error.to_string()))
}

/// RawExtension, JSON and FieldsV1: JSON text in the first field.
fn raw_json(bytes: &[u8], path: &str) -> Result<Option<Value>, ProtobufError> {
    for part in Parts::new(bytes, path) {
        if let (1, Wire::Bytes(raw)) = part? {
            if raw.is_empty() {
                return Ok(None);
            }
            return serde_json::from_slice(raw)
                .map(Some)
                .map_err(|error| wrong(path, &format!("the raw object is not JSON: {error}")));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::schema::builtin;

    fn varint(mut number: u64, out: &mut Vec<u8>) {
        while number >= 0x80 {
            out.push(number as u8 | 0x80);
            number >>= 7;
        }
        out.push(number as u8);
    }

    fn bytes(tag: u32, content: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        varint(u64::from(tag) << 3 | 2, &mut out);
        varint(content.len() as u64, &mut out);
        out.extend_from_slice(content);
        out
    }

    fn number(tag: u32, value: i64) -> Vec<u8> {
        let mut out = Vec::new();
        varint(u64::from(tag) << 3, &mut out);
        varint(value.cast_unsigned(), &mut out);
        out
    }

    fn envelope(version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
        let meta = [bytes(1, version.as_bytes()), bytes(2, kind.as_bytes())].concat();
        [MAGIC.to_vec(), bytes(1, &meta), bytes(2, raw), bytes(3, b""), bytes(4, b"")].concat()
    }

    fn read(group: &str, version: &str, kind: &str, body: &[u8]) -> Result<Value, ProtobufError> {
        decode(builtin(), builtin().type_of(group, version, kind).unwrap(), body)
    }

    #[test]
    fn the_names_of_pointers_are_sorted() {
        assert!(POINTERS.is_sorted());
    }

    #[test]
    fn a_config_map_is_read_with_its_maps() {
        let metadata = [bytes(1, b"a"), bytes(2, b""), number(7, 0), bytes(8, b"")].concat();
        let entry = |key: &[u8], value: &[u8]| [bytes(1, key), bytes(2, value)].concat();
        let raw = [
            bytes(1, &metadata),
            bytes(2, &entry(b"x", b"y")),
            bytes(2, &entry(b"empty", b"")),
            bytes(3, &entry(b"bin", &[0, 255])),
        ]
        .concat();
        assert_eq!(
            read("", "v1", "ConfigMap", &envelope("v1", "ConfigMap", &raw)).unwrap(),
            json!({
                "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"},
                "data": {"x": "y", "empty": ""}, "binaryData": {"bin": "AP8="},
            })
        );
    }

    #[test]
    fn embedded_structs_zeros_and_leaves_read_as_json_has_them() {
        let host_path = bytes(1, &bytes(1, b"/data"));
        let volume = [bytes(1, b"v"), bytes(2, &host_path)].concat();
        let port = [bytes(1, b"http"), number(2, 0), number(3, 80)].concat();
        let container = [bytes(1, b"c"), bytes(2, b"nginx"), bytes(6, &port), number(16, 0)].concat();
        let spec = [bytes(1, &volume), bytes(2, &container), number(4, 0), number(11, 0)].concat();
        let pod = read("", "v1", "Pod", &envelope("v1", "Pod", &bytes(2, &spec))).unwrap();
        assert_eq!(
            pod["spec"],
            json!({
                "volumes": [{"name": "v", "hostPath": {"path": "/data"}}],
                "containers": [{"name": "c", "image": "nginx", "ports": [{"name": "http", "containerPort": 80}]}],
                "terminationGracePeriodSeconds": 0,
            })
        );
    }

    #[test]
    fn broken_bytes_are_errors_that_say_where() {
        assert_eq!(read("", "v1", "Pod", b"{}"), Err(ProtobufError::NoMagic));
        let body = envelope("v1", "Pod", &bytes(2, &[0x0a, 0x7f]));
        assert_eq!(read("", "v1", "Pod", &body), Err(ProtobufError::Truncated("spec".to_owned())));
        let body = envelope("v1", "ConfigMap", &bytes(1, &bytes(1, &[0xff])));
        let error = read("", "v1", "ConfigMap", &body).unwrap_err();
        assert_eq!(error.to_string(), "metadata.name: the text is not UTF-8");
        for length in 0..body.len() {
            let _ = read("", "v1", "ConfigMap", &body[..length]);
        }
    }
}
