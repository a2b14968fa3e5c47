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
    negotiate::{self, media_ranges},
    server::body::Body,
};

/// As clients ask for it.
const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
/// As it is answered: `@` has no place in a media type.
const V2_PROTOBUF_WRITTEN: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

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

    pub fn v2(&self, headers: &HeaderMap) -> Result<Response<Body>, Status> {
        let asks = |kind: &str| media_ranges(headers).iter().any(|range| range.kind == kind);
        let document = if asks(V2_PROTOBUF) || asks(V2_PROTOBUF_WRITTEN) {
            let make = || Document::new(openapi::v2_protobuf().into(), V2_PROTOBUF_WRITTEN);
            self.document("v2 protobuf", || Some(make()))?
        } else {
            negotiate::accepted_document(headers)?;
            self.document("v2", || Some(Document::json(&openapi::v2())))?
        };
        Ok(document.respond(headers))
    }

    /// `path` is what follows `/openapi/v3`: nothing for the index, else `api/v1` or `apis/GROUP/VERSION`.
    pub fn v3(&self, path: &[&str], headers: &HeaderMap) -> Result<Response<Body>, Status> {
        negotiate::accepted_document(headers)?;
        let json = |value: Option<serde_json::Value>| value.as_ref().map(Document::json);
        let document = match path {
            [] | [""] => self.document("v3", || json(Some(openapi::v3_index())))?,
            ["api", version] => self.document(&path.join("/"), || json(openapi::v3("", version)))?,
            ["apis", group, version] => {
                self.document(&path.join("/"), || json(openapi::v3(group, version)))?
            }
            _ => return Err(Status::resource_not_found()),
        };
        Ok(document.respond(headers))
    }
}
