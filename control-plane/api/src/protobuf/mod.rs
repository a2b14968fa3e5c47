//! Kubernetes' protobuf form of objects, to JSON and back by the tags of the schema table.
//!
//! ```text
//! "k8s\0"  Unknown { 1: TypeMeta { 1: apiVersion, 2: kind }, 2: the object's message, 3: "", 4: "" }
//! ```
//!
//! Go writes every field that is not a pointer, also when it is zero, where JSON leaves it out. So reading drops such
//! zeros and writing puts them back: both forms of an object read the same, and bytes that Go wrote come back as they
//! were. The message and its envelope are apart, so that a list or a watch is made of messages that are encoded already.

mod read;
#[cfg(test)]
mod tests;
mod write;

pub use self::{
    read::{decode, identity, is_encoded},
    write::{
        encode, encode_any, encode_message, encode_partial, list_message, list_metadata, metadata_of,
        watch_frame, watch_frame_of,
    },
};

/// The first bytes of every encoded object.
pub const MAGIC: &[u8; 4] = b"k8s\0";
/// What follows an object's message in its envelope: no encoding, no content type.
pub const ENVELOPE_TAIL: &[u8; 4] = &[0x1a, 0, 0x22, 0];
/// Messages may be nested so deep.
const DEPTH_MAX: usize = 100;

/// Why bytes are no object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtobufError {
    #[error("the body does not begin with the four bytes \"k8s\\0\" of Kubernetes' protobuf form")]
    NoMagic,
    #[error("the message ends in the middle of {0}")]
    Truncated(String),
    #[error("{path}: {detail}")]
    Field { path: String, detail: String },
    #[error("the object has more than {0} values")]
    TooMany(usize),
}

/// What stands before a message of `length` bytes in its envelope; [`ENVELOPE_TAIL`] stands after it.
pub fn envelope_head(api_version: &str, kind: &str, length: usize) -> Vec<u8> {
    let mut head = MAGIC.to_vec();
    let size = |text: &str| 1 + varint_size(text.len()) + text.len();
    push_key(&mut head, 1, size(api_version) + size(kind));
    push_text(&mut head, 1, api_version);
    push_text(&mut head, 2, kind);
    push_key(&mut head, 2, length);
    head
}

/// A whole object: its message in the envelope.
pub fn envelope(api_version: &str, kind: &str, message: &[u8]) -> Vec<u8> {
    let mut bytes = envelope_head(api_version, kind, message.len());
    bytes.extend_from_slice(message);
    bytes.extend_from_slice(ENVELOPE_TAIL);
    bytes
}

/// What stands before a length-delimited field's content.
pub fn field_head(tag: u32, length: usize) -> Vec<u8> {
    let mut head = Vec::with_capacity(6);
    push_key(&mut head, tag, length);
    head
}

fn push_varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn push_key(out: &mut Vec<u8>, tag: u32, length: usize) {
    push_varint(out, u64::from(tag) << 3 | 2);
    push_varint(out, length as u64);
}

fn push_text(out: &mut Vec<u8>, tag: u32, text: &str) {
    push_key(out, tag, text.len());
    out.extend_from_slice(text.as_bytes());
}

fn varint_size(number: usize) -> usize {
    (64 - (number as u64 | 1).leading_zeros() as usize).div_ceil(7)
}
