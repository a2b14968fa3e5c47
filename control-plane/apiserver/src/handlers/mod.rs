//! One file per verb. A handler reads the request's options and body, asks the resource's strategy and admission, talks
//! to the cache, and answers; it never knows a kind. What is special about a kind is in `registry` (rules) or in
//! `subresources` (paths below an object).
//!
//! ```text
//! pipeline -> dispatch -> create | get | list | watch | update | patch | delete | delete_collection
//!                      -> subresources
//! ```

use std::sync::{Arc, Mutex, PoisonError};

use api::{schema::Schema, status::Status};
use futures::FutureExt as _;
use http::{HeaderMap, Response};
use hyper::upgrade::OnUpgrade;
use serde_json::Value;

use crate::{
    context,
    decode::{self, Document, Expected},
    negotiate::{self, Accepted, BodyEncoding, Encoding, Offer, Shape},
    protobuf,
    query::{FieldValidation, Query},
    request::RequestInfo,
    respond,
    security::Identity,
    server::body::{self, Body},
    state::State,
    subresources,
    table::{IncludeObject, Tabler, partial},
};

pub mod apply;
pub mod create;
pub mod delete;
pub mod delete_collection;
pub mod escalation;
pub mod get;
pub mod list;
pub mod own;
pub mod patch;
pub mod target;
pub mod update;
pub mod watch;

pub use self::target::Target;

/// One request on its way through the handlers.
pub struct Call {
    pub state: Arc<State>,
    pub info: RequestInfo,
    pub user: Identity,
    pub method: http::Method,
    pub query: Query,
    /// Path and query as sent, for what is passed on.
    pub uri: http::Uri,
    pub headers: HeaderMap,
    /// Behind a lock only so that a call may be shared between threads.
    body: Mutex<Option<Body>>,
    pub upgrade: Option<OnUpgrade>,
    /// Become `Warning` headers.
    pub warnings: Vec<String>,
}

impl Call {
    pub fn new(
        state: Arc<State>,
        info: RequestInfo,
        user: Identity,
        query: Query,
        mut parts: http::request::Parts,
        body: Body,
    ) -> Self {
        Self {
            state,
            info,
            user,
            query,
            uri: parts.uri,
            upgrade: parts.extensions.remove(),
            method: parts.method,
            headers: parts.headers,
            body: Mutex::new(Some(body)),
            warnings: Vec::new(),
        }
    }

    pub fn take_body(&mut self) -> Body {
        self.body.get_mut().unwrap_or_else(PoisonError::into_inner).take().unwrap_or_else(body::empty)
    }

    /// The body as a value; `None` where it is empty.
    pub async fn read_document(
        &mut self,
        schema: &Schema,
        expected: Expected<'_>,
    ) -> Result<Option<Document>, Status> {
        let encoding = negotiate::body_encoding(&self.headers);
        let bytes = body::read(self.take_body()).await?;
        if encoding.as_ref().is_ok_and(|encoding| *encoding == BodyEncoding::Protobuf)
            && !std::ptr::eq(schema, self.state.schema)
        {
            return Err(negotiate::no_protobuf());
        }
        if bytes.is_empty() {
            return Ok(None);
        }
        decode::parse(&bytes, encoding?, schema, expected).map(Some)
    }

    /// The object that the body must be; what the schema does not know is judged by `validation`.
    pub async fn decode_body(
        &mut self,
        expected: Expected<'_>,
        validation: FieldValidation,
    ) -> Result<Value, Status> {
        let schema = self.state.schema;
        self.decode(schema, expected, validation).await
    }

    /// The object of a resource; what its schema does not know is judged by `validation`.
    pub async fn decode_body_as(
        &mut self,
        target: &Target,
        expected: Expected<'_>,
        validation: FieldValidation,
    ) -> Result<Value, Status> {
        self.decode(&target.schema, expected, validation).await
    }

    async fn decode(
        &mut self,
        schema: &Schema,
        expected: Expected<'_>,
        validation: FieldValidation,
    ) -> Result<Value, Status> {
        let document = self.read_document(schema, expected).await?.ok_or_else(|| {
            Status::bad_request(format!("the request body is empty, it must be a {}", expected.kind))
        })?;
        let object = expected.decode(schema, document, validation, &mut self.warnings)?;
        context::note_body(&object);
        Ok(object)
    }

    /// The answer's form where an object is answered with.
    pub fn accepted_object(&self) -> Result<Accepted, Status> {
        self.accepted(&[Shape::Table, Shape::PartialObjectMetadata, Shape::PartialObjectMetadataList], false)
    }

    /// The answer's form where a list is answered with.
    pub fn accepted_list(&self) -> Result<Accepted, Status> {
        self.accepted_object()
    }

    /// The answer's form where it cannot be a Table and the like.
    pub fn accepted_whole(&self) -> Result<Accepted, Status> {
        self.accepted(&[], false)
    }

    /// The form of the objects of a watch.
    pub fn accepted_stream(&self) -> Result<Accepted, Status> {
        self.accepted(&[Shape::Table, Shape::PartialObjectMetadata, Shape::PartialObjectMetadataList], true)
    }

    fn accepted(&self, shapes: &[Shape], stream: bool) -> Result<Accepted, Status> {
        let info = &self.info;
        let protobuf =
            info.subresource == "scale" || self.state.schema.has_resource(&info.group, &info.version);
        let mut accepted = Offer { shapes, protobuf, stream }.accepted(&self.headers)?;
        accepted.pretty |= negotiate::wants_pretty(&self.headers, self.query.get("pretty"));
        Ok(accepted)
    }

    pub fn tabler(&self, target: &Target, accepted: Accepted) -> Result<Tabler, Status> {
        Ok(Tabler {
            strategy: target.strategy.clone(),
            meta_version: accepted.meta_version,
            include: IncludeObject::parse(&self.query)?,
            now: jiff::Timestamp::now().as_second(),
        })
    }

    /// Answers with one object in the shape that was asked for.
    pub fn answer(
        &self,
        target: &Target,
        accepted: Accepted,
        code: http::StatusCode,
        object: Value,
    ) -> Result<Response<Body>, Status> {
        let value = match accepted.shape {
            Shape::Object => object,
            Shape::Table => {
                let metadata = serde_json::json!({"resourceVersion": object["metadata"]["resourceVersion"]});
                let tabler = self.tabler(target, accepted)?;
                let rows = vec![tabler.row(object)];
                tabler.table(metadata, rows, true)
            }
            Shape::PartialObjectMetadata => partial(&object, accepted.meta_version),
            Shape::PartialObjectMetadataList => {
                let kind = target.go_kind();
                return Err(Status::not_acceptable_shape(format!(
                    "you requested PartialObjectMetadataList, but the requested object is not a list ({kind})"
                )));
            }
        };
        Ok(respond::value(code, accepted, &value))
    }

    /// Answers with a cached object, byte for byte where its form allows.
    pub fn answer_cached(
        &self,
        target: &Target,
        accepted: Accepted,
        code: http::StatusCode,
        object: &crate::storage::cache::Object,
    ) -> Result<Response<Body>, Status> {
        if accepted.is_plain(Encoding::Json) && !target.is_converted() {
            return Ok(respond::bytes(code, accepted.content_type(), object.json().clone()));
        }
        let partial = accepted.shape == Shape::PartialObjectMetadata;
        if accepted.encoding == Encoding::Protobuf && (partial || accepted.shape == Shape::Object) {
            return Ok(protobuf::object(code, accepted, target, object));
        }
        self.answer(target, accepted, code, target.value(object))
    }
}

/// The time of a write, to the second.
pub fn now() -> String {
    api::time::format_seconds(jiff::Timestamp::now())
}

/// Answers a request for a resource.
pub async fn dispatch(call: &mut Call) -> Result<Response<Body>, Status> {
    if let Some(answer) = subresources::virtual_resource(call).await {
        return answer;
    }
    let target = call.state.kinds.target(&call.info)?;
    check_scope(call, &target)?;
    call.warnings.extend(target.deprecation.clone());
    if !call.info.subresource.is_empty() {
        return subresources::dispatch(call, &target).boxed().await;
    }
    let verb = call.info.verb.as_str();
    if !target.resource.has_verb(verb) {
        return Err(method_not_allowed(call, &target));
    }
    match (verb, call.info.name.is_empty() || matches!(verb, "list" | "watch" | "deletecollection")) {
        ("create", true) => create::handle(call, &target).boxed().await,
        ("get", false) => get::handle(call, &target).boxed().await,
        ("list", _) => list::handle(call, &target).boxed().await,
        ("watch", _) => watch::handle(call, &target).boxed().await,
        ("update", false) => update::handle(call, &target).boxed().await,
        ("patch", false) => patch::handle(call, &target).boxed().await,
        ("delete", false) => delete::handle(call, &target).boxed().await,
        ("deletecollection", _) => delete_collection::handle(call, &target).boxed().await,
        _ => Err(method_not_allowed(call, &target)),
    }
}

fn method_not_allowed(call: &Call, target: &Target) -> Status {
    let resource = &*target.resource;
    if resource.has_verb(&call.info.verb) {
        return Status::method_not_allowed();
    }
    Status::method_not_supported(&resource.group, &resource.plural, &call.info.verb)
}

/// A namespaced path for a cluster-scoped resource leads nowhere, and so does an object without a namespace.
fn check_scope(call: &Call, target: &Target) -> Result<(), Status> {
    let info = &call.info;
    let is_namespace = info.resource == "namespaces" && info.group.is_empty();
    if !target.resource.namespaced && !info.namespace.is_empty() && !is_namespace {
        return Err(Status::resource_not_found());
    }
    if target.resource.namespaced && info.namespace.is_empty() {
        match info.verb.as_str() {
            "list" | "watch" => {}
            "create" | "deletecollection" => return Err(Status::method_not_allowed()),
            _ => return Err(Status::resource_not_found()),
        }
    }
    Ok(())
}
