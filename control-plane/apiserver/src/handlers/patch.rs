//! PATCH: JSON Patch, JSON Merge Patch and strategic merge, applied to the newest object inside the update loop.
//! Server-side apply is [`super::apply`].

use api::{
    meta,
    patch::{PatchError, json_patch, merge_patch, strategic_merge},
    schema::{Schema, TypeId},
    status::Status,
};
use http::{Response, StatusCode, header};
use serde_json::Value;

use super::{Call, Target, update::Update};
use crate::{
    context,
    decode::{self, Document, Expected},
    query::{FieldValidation, WriteOptions},
    server::body::{self, Body},
};

const JSON_PATCH: &str = "application/json-patch+json";
const MERGE_PATCH: &str = "application/merge-patch+json";
const STRATEGIC_MERGE: &str = "application/strategic-merge-patch+json";
const APPLY: &str = "application/apply-patch+yaml";

/// So many operations are looked at for what they should not have.
const STRICT_OPERATIONS_MAX: usize = 100;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PatchKind {
    Json,
    Merge,
    Strategic,
}

/// A patch as the request carries it.
pub struct Patch {
    kind: PatchKind,
    value: Value,
    duplicates: Vec<String>,
}

impl Patch {
    /// Reads the request's body as its Content-Type says.
    pub async fn read(call: &mut Call) -> Result<Self, Status> {
        let kind = match content_type(call) {
            JSON_PATCH => PatchKind::Json,
            MERGE_PATCH => PatchKind::Merge,
            STRATEGIC_MERGE => PatchKind::Strategic,
            _ => {
                return Err(Status::unsupported_media_type(&[
                    JSON_PATCH,
                    MERGE_PATCH,
                    STRATEGIC_MERGE,
                    APPLY,
                ]));
            }
        };
        let bytes = body::read(call.take_body()).await?;
        let Document { value, mut duplicates } = decode::parse_json(&bytes)
            .map_err(|error| Status::bad_request(format!("error decoding the patch: {error}")))?;
        let fits = match kind {
            PatchKind::Json => value.is_array(),
            PatchKind::Merge | PatchKind::Strategic => value.is_object(),
        };
        if !fits {
            let needed = if kind == PatchKind::Json { "an array of operations" } else { "an object" };
            return Err(Status::bad_request(format!("error decoding the patch: it must be {needed}")));
        }
        context::note_body(&value);
        if kind == PatchKind::Json {
            duplicates = strict_operations(&value, &duplicates);
        }
        Ok(Self { kind, value, duplicates })
    }

    /// The patched object, decoded; what the schema does not know is judged by `validation`.
    pub fn apply(
        &self,
        schema: &Schema,
        expected: Expected<'_>,
        old: &Value,
        validation: FieldValidation,
        warnings: &mut Vec<String>,
    ) -> Result<Value, Status> {
        let patched = self.merge(schema, expected.ty, old)?;
        let duplicates = self.duplicates.clone();
        expected.decode_patched(schema, Document { value: patched, duplicates }, validation, warnings)
    }

    fn merge(&self, schema: &Schema, ty: TypeId, old: &Value) -> Result<Value, Status> {
        let patched = match self.kind {
            PatchKind::Json => json_patch(old, &self.value),
            PatchKind::Merge => merge_patch(old, &self.value),
            PatchKind::Strategic => strategic_merge(schema, ty, old, &self.value),
        };
        patched.map_err(|error| match error {
            PatchError::Malformed(text) => Status::bad_request(text),
            PatchError::Unprocessable(text) => {
                let mut status = Status::unprocessable(text.clone());
                status.message = format!("{}: {text}", status.message);
                status
            }
            PatchError::TooLarge(text) => Status::request_entity_too_large(text),
        })
    }
}

/// What is unknown or twice in the operations of a JSON Patch, by operation.
fn strict_operations(operations: &Value, duplicates: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    let operations = operations.as_array().into_iter().flatten().filter_map(Value::as_object);
    for (index, operation) in operations.enumerate().take(STRICT_OPERATIONS_MAX) {
        let unknown =
            operation.keys().filter(|name| !matches!(name.as_str(), "op" | "path" | "from" | "value"));
        found.extend(unknown.map(|name| format!("json patch unknown field \"[{index}].{name}\"")));
        let own = format!("duplicate field \"[{index}].");
        let twice = duplicates.iter().filter(|text| text.starts_with(&own));
        found.extend(twice.map(|text| format!("json patch {text}")));
    }
    found
}

fn content_type(call: &Call) -> &str {
    let text = call.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    text.unwrap_or_default().split(';').next().unwrap_or_default().trim()
}

/// Whether the patch is a configuration to apply.
pub fn is_apply(call: &Call) -> bool {
    content_type(call) == APPLY
}

pub async fn handle(call: &mut Call, target: &Target) -> Result<Response<Body>, Status> {
    let accepted = call.accepted_object()?;
    if is_apply(call) {
        return super::apply::handle(call, target).await;
    }
    let options = WriteOptions::parse(&call.query, "PatchOptions")?;
    let patch = Patch::read(call).await?;
    if target.is_custom() && patch.kind == PatchKind::Strategic {
        return Err(Status::unsupported_media_type(&[JSON_PATCH, MERGE_PATCH, APPLY]));
    }
    let resource = &*target.resource;
    let group_version = resource.group_version();
    let expected = Expected { group_version: &group_version, kind: &resource.kind, ty: resource.ty };
    let (schema, name) = (&*target.schema, call.info.name.clone());
    let mut said = Vec::new();
    let patched = Update::of(call, target, &options)
        .run(&mut call.warnings, &mut |old| {
            said.clear();
            let new = patch.apply(schema, expected, old, options.field_validation, &mut said)?;
            if meta::name(&new) != name || meta::namespace(&new) != meta::namespace(old) {
                return Err(Status::bad_request("a patch cannot change the name or namespace of an object"));
            }
            Ok(new)
        })
        .await?;
    call.warnings.append(&mut said);
    call.answer(target, accepted, StatusCode::OK, patched)
}
