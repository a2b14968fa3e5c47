//! From request bodies to objects: JSON or YAML to a value, duplicate keys found, then the schema's decoding with the
//! field validation that the request asks for.

use api::{
    apply::spell_out_reset,
    field::FieldError,
    json, meta, protobuf,
    schema::{Schema, TypeId, builtin},
    status::Status,
};
use serde_json::Value;

use crate::{negotiate::BodyEncoding, query::FieldValidation};

/// A body as a value, with texts about keys that it says twice (the last one counts).
#[derive(Debug, Default)]
pub struct Document {
    pub value: Value,
    pub duplicates: Vec<String>,
}

/// Reads a body; `expected` is what protobuf needs to be told.
///
/// # Errors
/// 400 with the place of the mistake.
pub fn parse(
    bytes: &[u8],
    encoding: BodyEncoding,
    schema: &Schema,
    expected: Expected<'_>,
) -> Result<Document, Status> {
    match encoding {
        BodyEncoding::Protobuf => protobuf::decode(schema, expected.ty, bytes)
            .map(|value| Document { value, duplicates: Vec::new() })
            .map_err(|error| Status::bad_request(format!("error decoding the body as protobuf: {error}"))),
        BodyEncoding::Json => {
            let mut document = parse_json(bytes)
                .map_err(|error| Status::bad_request(format!("error decoding the body as JSON: {error}")))?;
            // What is unknown and what is there twice is told in the order of the document; of custom resources, which
            // have no Go type, it is not.
            if !document.duplicates.is_empty() && std::ptr::eq(schema, builtin()) {
                document.duplicates = json::strict_errors(schema, expected.ty, bytes);
            }
            Ok(document)
        }
        BodyEncoding::Yaml => {
            let text = std::str::from_utf8(bytes)
                .map_err(|error| Status::bad_request(format!("the body is no UTF-8 text: {error}")))?;
            let (value, duplicates) = api::yaml::parse_strict(text)
                .map_err(|error| Status::bad_request(format!("error decoding the body as YAML: {error}")))?;
            Ok(Document { value, duplicates })
        }
    }
}

pub fn parse_json(bytes: &[u8]) -> Result<Document, serde_json::Error> {
    let (value, duplicates) = json::parse_strict(bytes)?;
    Ok(Document { value, duplicates })
}

/// What a body must be.
#[derive(Clone, Copy)]
pub struct Expected<'a> {
    pub group_version: &'a str,
    pub kind: &'a str,
    pub ty: TypeId,
}

impl Expected<'_> {
    fn version(&self) -> &str {
        meta::group_and_version(self.group_version).1
    }

    /// Checks kind and version, drops what the schema does not know, and reports it as `validation` says: an error
    /// for Strict, a warning for Warn.
    pub fn decode(
        self,
        schema: &Schema,
        document: Document,
        validation: FieldValidation,
        warnings: &mut Vec<String>,
    ) -> Result<Value, Status> {
        let (value, mut strict) = self.read(schema, document)?;
        match validation {
            FieldValidation::Warn => warnings.append(&mut strict),
            FieldValidation::Strict if !strict.is_empty() => {
                return Err(Status::undecodable(self.kind, self.version(), strict_text(strict)));
            }
            FieldValidation::Ignore | FieldValidation::Strict => {}
        }
        Ok(value)
    }

    /// As [`Expected::decode`], of an object that a patch made: errors are those of the patch.
    pub fn decode_patched(
        self,
        schema: &Schema,
        document: Document,
        validation: FieldValidation,
        warnings: &mut Vec<String>,
    ) -> Result<Value, Status> {
        let invalid = |value: &Value, why: String| {
            let error = FieldError::invalid("patch", value.to_string(), why);
            Status::invalid("", "", "", vec![error])
        };
        let patched =
            if validation == FieldValidation::Strict { document.value.clone() } else { Value::Null };
        let (value, mut strict) = self.read(schema, document)?;
        match validation {
            FieldValidation::Warn => warnings.append(&mut strict),
            FieldValidation::Strict if !strict.is_empty() => {
                return Err(invalid(&patched, strict_text(strict)));
            }
            FieldValidation::Ignore | FieldValidation::Strict => {}
        }
        Ok(value)
    }

    /// The object, and what a strict reading does not forgive.
    fn read(&self, schema: &Schema, document: Document) -> Result<(Value, Vec<String>), Status> {
        let Document { mut value, duplicates } = document;
        if !value.is_object() {
            let found = match &value {
                Value::Null => "null",
                Value::Bool(_) => "bool",
                Value::Number(_) => "number",
                Value::String(_) => "string",
                Value::Array(_) => "array",
                Value::Object(_) => "object",
            };
            let why = format!("json: cannot unmarshal {found} into Go value of type {}", self.kind);
            return Err(Status::undecodable(self.kind, self.version(), why));
        }
        self.check_kind(&mut value)?;
        spell_out_reset(&mut value);
        let decoded = schema.decode(self.ty, &mut value);
        if let Some(error) = decoded.errors.first() {
            return Err(Status::undecodable(self.kind, self.version(), error));
        }
        let mut strict = duplicates;
        for unknown in decoded.unknown {
            if !strict.contains(&unknown) {
                strict.push(unknown);
            }
        }
        Ok((value, strict))
    }

    fn check_kind(&self, value: &mut Value) -> Result<(), Status> {
        let (version, kind) = (meta::api_version(value).to_owned(), meta::kind(value).to_owned());
        if !version.is_empty() && version != self.group_version {
            return Err(Status::bad_request(format!(
                "the API version in the data ({version}) does not match the expected API version ({})",
                self.group_version
            )));
        }
        if !kind.is_empty() && kind != self.kind {
            let why = format!("the object provided is a {kind}, the path is that of a {}", self.kind);
            return Err(Status::undecodable(&kind, self.version(), why));
        }
        value["apiVersion"] = Value::from(self.group_version);
        value["kind"] = Value::from(self.kind);
        Ok(())
    }
}

/// The text of an error that holds all that a strict reading found; the lines of YAML are one error.
fn strict_text(errors: Vec<String>) -> String {
    let (lines, mut others): (Vec<_>, Vec<_>) =
        errors.into_iter().partition(|error| error.starts_with("line ") && error.ends_with(" in map"));
    if !lines.is_empty() {
        others.insert(0, format!("yaml: unmarshal errors:\n  {}", lines.join("\n  ")));
    }
    format!("strict decoding error: {}", others.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broken_json_names_the_place() {
        let schema = api::schema::builtin();
        let ty = schema.type_of("", "v1", "ConfigMap").unwrap();
        let expected = Expected { group_version: "v1", kind: "ConfigMap", ty };
        let error = parse(b"{\"a\": }", BodyEncoding::Json, schema, expected).unwrap_err();
        assert_eq!(error.code, 400);
        assert!(error.message.contains("line 1 column"), "{}", error.message);
        for (body, encoding) in
            [("{} x", BodyEncoding::Json), ("a: [b", BodyEncoding::Yaml), ("{}", BodyEncoding::Protobuf)]
        {
            assert_eq!(parse(body.as_bytes(), encoding, schema, expected).unwrap_err().code, 400, "{body}");
        }
    }

    #[test]
    fn a_foreign_kind_or_version_is_refused() {
        let schema = api::schema::builtin();
        let ty = schema.type_of("", "v1", "ConfigMap").unwrap();
        let expected = Expected { group_version: "v1", kind: "ConfigMap", ty };
        for body in [r#"{"apiVersion":"v2"}"#, r#"{"kind":"Pod"}"#, "[]", "3"] {
            let document = parse_json(body.as_bytes()).unwrap();
            let error =
                expected.decode(schema, document, FieldValidation::Warn, &mut Vec::new()).unwrap_err();
            assert_eq!(error.code, 400, "{body}");
        }
    }

    #[test]
    fn strict_refuses_and_warn_tells_unknown_and_duplicate_fields() {
        let schema = api::schema::builtin();
        let ty = schema.type_of("apps", "v1", "Deployment").unwrap();
        let expected = Expected { group_version: "apps/v1", kind: "Deployment", ty };
        let body = br#"{"metadata":{"name":"a"},"spec":{"foo":1,"replicas":1,"replicas":2}}"#;
        let read = |body| parse(body, BodyEncoding::Json, schema, expected).unwrap();
        let strict =
            expected.decode(schema, read(body), FieldValidation::Strict, &mut Vec::new()).unwrap_err();
        assert_eq!(
            strict.message,
            "Deployment in version \"v1\" cannot be handled as a Deployment: strict decoding error: \
             unknown field \"spec.foo\", duplicate field \"spec.replicas\""
        );
        let mut warnings = Vec::new();
        let value = expected.decode(schema, read(body), FieldValidation::Warn, &mut warnings).unwrap();
        assert_eq!(warnings, ["unknown field \"spec.foo\"", "duplicate field \"spec.replicas\""]);
        assert_eq!(value["spec"].get("foo"), None);
    }
}
