//! `/openapi/v2` and `/openapi/v3`: made from the schema when first asked for, then answered from memory.
//!
//! v2 is written as JSON and as protobuf, v3 as JSON.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use api::{openapi, status::Status};
use http::{HeaderMap, Response};

use super::Document;
use crate::{
    custom,
    negotiate::{self, media_ranges},
    server::body::Body,
    state::State,
};

/// As clients ask for it.
const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
/// As it is answered: `@` has no place in a media type.
const V2_PROTOBUF_WRITTEN: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// The names of the v2 document here.
const WHOLE: &str = "v2";
const WHOLE_PROTOBUF: &str = "v2 protobuf";

/// The v2 document: of all that is served here, and of what aggregated servers say of theirs.
fn whole(state: &State) -> serde_json::Value {
    let mut document = openapi::v2(&custom::published(state));
    state.aggregation.add_documents(&mut document);
    document
}

/// The documents that were asked for so far.
#[derive(Default)]
pub struct OpenApi {
    documents: Mutex<BTreeMap<String, Document>>,
}

impl OpenApi {
    fn document(&self, name: &str, make: impl FnOnce() -> Option<Document>) -> Result<Document, Status> {
        let mut documents = self.documents.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(document) = documents.get(name) {
            return Ok(document.clone());
        }
        let document = make().ok_or_else(Status::resource_not_found)?;
        documents.insert(name.to_owned(), document.clone());
        Ok(document)
    }

    /// Forgets the documents that show custom kinds.
    pub fn forget_custom(&self) {
        let schema = api::schema::builtin();
        let is_builtin = |name: &str| match name.split('/').collect::<Vec<_>>().as_slice() {
            ["api", _] => true,
            ["apis", group, version] => {
                schema.resources().iter().any(|found| found.group == *group && found.version == *version)
            }
            _ => false,
        };
        let mut documents = self.documents.lock().unwrap_or_else(PoisonError::into_inner);
        documents.retain(|name, _| is_builtin(name));
    }

    /// Forgets the documents that show aggregated APIs.
    pub fn forget_whole(&self) {
        let mut documents = self.documents.lock().unwrap_or_else(PoisonError::into_inner);
        documents.retain(|name, _| name != WHOLE && name != WHOLE_PROTOBUF);
    }

    pub fn v2(&self, state: &State, headers: &HeaderMap) -> Result<Response<Body>, Status> {
        let asks = |kind: &str| media_ranges(headers).iter().any(|range| range.kind == kind);
        let document = if asks(V2_PROTOBUF) || asks(V2_PROTOBUF_WRITTEN) {
            let make = || Document::new(openapi::v2_protobuf(&whole(state)).into(), V2_PROTOBUF_WRITTEN);
            self.document(WHOLE_PROTOBUF, || Some(make()))?
        } else {
            negotiate::accepted_document(headers)?;
            self.document(WHOLE, || Some(Document::json(&whole(state))))?
        };
        Ok(document.respond(headers))
    }

    /// `path` is what follows `/openapi/v3`: nothing for the index, else `api/v1` or `apis/GROUP/VERSION`.
    pub fn v3(&self, state: &State, path: &[&str], headers: &HeaderMap) -> Result<Response<Body>, Status> {
        negotiate::accepted_document(headers)?;
        let json = |value: Option<serde_json::Value>| value.as_ref().map(Document::json);
        let document = match path {
            [] | [""] => self.document("v3", || json(Some(openapi::v3_index(&custom::revisions(state)))))?,
            ["api", version] => self.document(&path.join("/"), || json(openapi::v3("", version, &[])))?,
            ["apis", group, version] => self
                .document(&path.join("/"), || json(openapi::v3(group, version, &custom::published(state))))?,
            _ => return Err(Status::resource_not_found()),
        };
        Ok(document.respond(headers))
    }
}
