//! Server-side apply: `application/apply-patch+yaml`. The configuration is merged into the newest object inside the
//! update loop; an object that is not there yet is created, where the caller may.

use api::{
    apply::{ApplyError, Ownership},
    meta,
    schema::Schema,
    status::Status,
};
use http::{Response, StatusCode};
use serde_json::Value;

use super::{
    Call, Target,
    create::{Create, place},
    now,
    target::read,
    update::Update,
};
use crate::{
    decode::{self, Document, Expected},
    ownership::{self, Writer, versions::Conversions},
    query::{FieldValidation, WriteOptions},
    security::Attributes,
    server::body::{self, Body},
};

/// An object that is created and deleted by others this often in a row is given up.
const ATTEMPTS_MAX: usize = 10;

/// A configuration as the request carries it.
pub struct Configuration {
    pub value: Value,
    /// What is said about keys that occur twice.
    pub warnings: Vec<String>,
}

impl Configuration {
    /// Reads the request's body, YAML or JSON. Keys that occur twice are judged by `validation` after the apply.
    pub async fn read(call: &mut Call) -> Result<Self, Status> {
        let bytes = body::read(call.take_body()).await?;
        let malformed = |why: String| Status::bad_request(format!("error decoding YAML: {why}"));
        let text = std::str::from_utf8(&bytes).map_err(|error| malformed(error.to_string()))?;
        // What kubectl and client-go send is JSON, by whatever name.
        let (value, warnings) = match decode::parse_json(&bytes) {
            Ok(Document { value, duplicates }) if duplicates.is_empty() => (value, duplicates),
            _ => api::yaml::parse_strict(text).map_err(malformed)?,
        };
        Self::checked(value, warnings)
    }

    fn checked(value: Value, warnings: Vec<String>) -> Result<Self, Status> {
        if !value.is_object() {
            return Err(Status::bad_request(
                "error decoding YAML: the body must be an object with apiVersion and kind",
            ));
        }
        Ok(Self { value, warnings })
    }

    /// Keys that occur twice: an error, warnings, or nothing.
    pub fn judge(&self, validation: FieldValidation, warnings: &mut Vec<String>) -> Result<(), Status> {
        if self.warnings.is_empty() {
            return Ok(());
        }
        match validation {
            FieldValidation::Ignore => Ok(()),
            FieldValidation::Warn => {
                warnings.extend(self.warnings.iter().cloned());
                Ok(())
            }
            FieldValidation::Strict => Err(Status::bad_request(format!(
                "error strict decoding YAML: error converting YAML to JSON: yaml: unmarshal errors:\n  {}",
                self.warnings.join("\n  ")
            ))),
        }
    }
}

/// What an apply that fails means to a client.
pub fn refused(error: ApplyError) -> Status {
    match error {
        ApplyError::BadRequest(text) => Status::bad_request(text),
        ApplyError::Conflict(conflicts) => {
            let status = Status::apply_conflict(conflicts.to_string());
            conflicts.0.iter().fold(status, |status, conflict| {
                let message = format!("conflict with {}", conflict.manager);
                status.with_cause("FieldManagerConflict", &message, &conflict.field)
            })
        }
        ApplyError::Untyped(text) => Status::plain_internal(text),
    }
}

/// The object that results, decoded; its owners are in it.
pub fn applied(
    write: &Ownership<'_>,
    schema: &Schema,
    expected: Expected<'_>,
    live: Option<&Value>,
    config: &Value,
    force: bool,
) -> Result<Value, Status> {
    let value = write.apply(live, config, force).map_err(refused)?;
    let document = Document { value, duplicates: Vec::new() };
    expected.decode(schema, document, FieldValidation::Ignore, &mut Vec::new())
}

pub async fn handle(call: &mut Call, target: &Target) -> Result<Response<Body>, Status> {
    let accepted = call.accepted_object()?;
    let options = WriteOptions::parse_apply(&call.query)?;
    let config = Configuration::read(call).await?;
    let (object, created) = run(call, target, &options, &config).await?;
    config.judge(options.field_validation, &mut call.warnings)?;
    call.answer(target, accepted, if created { StatusCode::CREATED } else { StatusCode::OK }, object)
}

async fn run(
    call: &mut Call,
    target: &Target,
    options: &WriteOptions,
    config: &Configuration,
) -> Result<(Value, bool), Status> {
    if options.field_validation == FieldValidation::Strict {
        config.judge(options.field_validation, &mut Vec::new())?;
    }
    let key = target.key(&call.info.namespace, &call.info.name);
    let creates = call.info.subresource.is_empty();
    for _ in 0..ATTEMPTS_MAX {
        let is_there = !creates || read(&call.state.cache, &key, false).await?.is_some();
        let outcome = if is_there {
            change(call, target, options, &config.value).await.map(|object| (object, false))
        } else {
            create(call, target, options, &config.value).await.map(|object| (object, true))
        };
        match outcome {
            // Another writer was quicker; what it did decides between creating and changing.
            Err(status) if creates && is_there && status.reason == "NotFound" => {}
            Err(status) if !is_there && status.reason == "AlreadyExists" => {}
            outcome => return outcome,
        }
    }
    Err(Status::modified(&target.resource.group, &target.resource.plural, &call.info.name))
}

async fn change(
    call: &mut Call,
    target: &Target,
    options: &WriteOptions,
    config: &Value,
) -> Result<Value, Status> {
    let resource = &*target.resource;
    let group_version = resource.group_version();
    let expected = Expected { group_version: &group_version, kind: &resource.kind, ty: resource.ty };
    let (name, subresource) = (call.info.name.clone(), call.info.subresource.clone());
    let namespace = target.scope(&call.info.namespace).to_owned();
    let conversions = Conversions::of(target);
    let mut update = Update::of(call, target, options);
    update.writer = Writer::Recorded;
    update.conversions = Some(&conversions);
    update
        .run(&mut call.warnings, &mut |live| {
            let now = now();
            let manager = &options.field_manager;
            let write = ownership::of_write(&conversions, &group_version, &subresource, manager, &now);
            let new = applied(&write, &target.schema, expected, Some(live), config, options.force)?;
            check_place(&new, &namespace, &name)?;
            Ok(new)
        })
        .await
}

async fn create(
    call: &mut Call,
    target: &Target,
    options: &WriteOptions,
    config: &Value,
) -> Result<Value, Status> {
    let resource = &*target.resource;
    let info = &call.info;
    let group_version = resource.group_version();
    let expected = Expected { group_version: &group_version, kind: &resource.kind, ty: resource.ty };
    let now = now();
    let conversions = Conversions::of(target);
    let write = ownership::of_write(&conversions, &group_version, "", &options.field_manager, &now);
    let mut object = applied(&write, &target.schema, expected, None, config, options.force)?;
    if !meta::uid(&object).is_empty() {
        let why = format!(
            "uid mismatch: the provided object specified uid {}, and no existing object was found",
            meta::uid(&object)
        );
        return Err(target.conflict(&info.name, &why));
    }
    check_place(&object, target.scope(&info.namespace), &info.name)?;
    place(target, &info.namespace, &mut object)?;
    may_create(call, target)?;
    let create = Create {
        state: &call.state,
        user: &call.user,
        target,
        namespace: &call.info.namespace,
        options,
        writer: &Writer::Recorded,
    };
    create.run(object, &mut call.warnings).await
}

/// The object must be the one that the path names.
fn check_place(object: &Value, namespace: &str, name: &str) -> Result<(), Status> {
    let (said_namespace, said_name) = (meta::namespace(object), meta::name(object));
    if !said_namespace.is_empty() && said_namespace != namespace {
        return Err(Status::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    if said_name.is_empty() {
        return Err(Status::bad_request(format!(
            "the name of the object ({name} based on URL) was undeterminable: name must be provided"
        )));
    }
    if said_name != name {
        return Err(Status::bad_request(format!(
            "the name of the object ({said_name}) does not match the name on the URL ({name})"
        )));
    }
    Ok(())
}

/// To apply what is not there is to create it: that is another verb.
fn may_create(call: &Call, target: &Target) -> Result<(), Status> {
    let info = &call.info;
    let attributes = Attributes {
        verb: "create".to_owned(),
        group: info.group.clone(),
        version: info.version.clone(),
        resource: info.resource.clone(),
        namespace: info.namespace.clone(),
        name: info.name.clone(),
        is_resource: true,
        ..Attributes::default()
    };
    let decision = call.state.authorizer.authorize(&call.user, &attributes);
    if decision.allowed {
        return Ok(());
    }
    let mut asked = info.clone();
    asked.verb = "create".to_owned();
    let mut why = asked.forbidden_text(&call.user.name);
    if !decision.reason.is_empty() {
        why.push_str(": ");
        why.push_str(&decision.reason);
    }
    Err(Status::forbidden(&target.resource.group, &target.resource.plural, &info.name, why))
}
