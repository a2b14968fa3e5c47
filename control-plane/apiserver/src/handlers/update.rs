//! PUT, and the loop that every change of a stored object goes through: read, transform, default, prepare, mutate,
//! validate, compare-and-swap; again from the start where another writer was quicker.
//!
//! A transform whose result carries a resourceVersion is refused once that version is not the stored one, so a change
//! that was made from an older object ends in 409 and one that was not is made again.

use std::sync::Arc;

use api::{apply::keep_times, field::FieldError, meta, status::Status};
use http::{Response, StatusCode};
use serde_json::Value;

use super::{
    Call, Target,
    create::{Create, place},
    escalation, now,
    target::read,
};
use crate::{
    admission::{self, Operation, Options, resource_quota},
    decode::Expected,
    ownership::{self, Writer, versions::Conversions},
    query::WriteOptions,
    registry::{self, Context},
    security::Identity,
    server::body::Body,
    state::State,
    storage::{StorageError, cache::Object},
    subresources::service,
};

/// A change that loses this many races in a row is given up.
const ATTEMPTS_MAX: usize = 50;

pub async fn handle(call: &mut Call, target: &Target) -> Result<Response<Body>, Status> {
    let accepted = call.accepted_object()?;
    let options = WriteOptions::parse(&call.query, "UpdateOptions")?;
    let resource = &*target.resource;
    let group_version = resource.group_version();
    let expected = Expected { group_version: &group_version, kind: &resource.kind, ty: resource.ty };
    let mut object = call.decode_body_as(target, expected, options.field_validation).await?;
    check_name(&call.info.name, &mut object)?;
    place(target, &call.info.namespace, &mut object)?;
    let key = target.key(&call.info.namespace, &call.info.name);
    let creates = target.strategy.allow_create_on_update() && call.info.subresource.is_empty();
    if creates && read(&call.state.cache, &key, false).await?.is_none() {
        let write = Create {
            state: &call.state,
            user: &call.user,
            target,
            namespace: &call.info.namespace,
            options: &options,
            writer: &Writer::of(&options.field_manager, &call.headers),
        };
        meta::set_resource_version(&mut object, "");
        let created = write.run(object, &mut call.warnings).await?;
        return call.answer(target, accepted, StatusCode::CREATED, created);
    }
    let updated =
        Update::of(call, target, &options).run(&mut call.warnings, &mut |_| Ok(object.clone())).await?;
    call.answer(target, accepted, StatusCode::OK, updated)
}

/// Checks an object's name against the path's; an absent one is filled in.
pub fn check_name(name: &str, object: &mut Value) -> Result<(), Status> {
    let said = meta::name(object);
    if said.is_empty() {
        meta::set_name(object, name);
    } else if said != name {
        return Err(Status::bad_request(format!(
            "the name of the object ({said}) does not match the name on the URL ({name})"
        )));
    }
    Ok(())
}

/// One change of one stored object, whoever asks for it.
pub struct Update<'a> {
    pub state: &'a State,
    pub user: &'a Identity,
    pub target: &'a Target,
    /// Empty for the object itself.
    pub subresource: &'a str,
    pub namespace: &'a str,
    pub name: &'a str,
    pub options: &'a WriteOptions,
    /// Whether admission is asked: not where it was asked about what causes this change (a binding, an eviction).
    pub admits: bool,
    /// What admission is shown in the object's place.
    pub face: Option<&'a dyn Face>,
    /// Whom the change is recorded for.
    pub writer: &'a Writer,
    /// Those that the transform makes use of.
    pub conversions: Option<&'a Conversions<'a>>,
}

/// Another kind that an object is read and written as: the Scale of a workload. It is what the transform makes, and what
/// admission changes and judges.
pub trait Face: Send + Sync {
    /// The path below the object.
    fn subresource(&self) -> &str;
    /// The stored object as its other kind, with the owners of its fields.
    fn of(&self, object: &Value) -> Result<Value, Status>;
    /// The stored object with what its other kind wants.
    fn applied_to(&self, face: &Value, object: &Value) -> Result<Value, Status>;
}

/// Makes the new object from the stored one; called again after a lost race.
pub type Transform<'a> = &'a mut (dyn FnMut(&Value) -> Result<Value, Status> + Send);

impl<'a> Update<'a> {
    /// The change that a request asks for. The borrow is of the call's parts that a handler does not change.
    pub fn of(call: &Call, target: &'a Target, options: &WriteOptions) -> UpdateOwned<'a> {
        UpdateOwned {
            state: Arc::clone(&call.state),
            user: call.user.clone(),
            target,
            subresource: call.info.subresource.clone(),
            namespace: call.info.namespace.clone(),
            name: call.info.name.clone(),
            options: options.clone(),
            admits: true,
            face: None,
            writer: Writer::of(&options.field_manager, &call.headers),
            conversions: None,
        }
    }

    /// Makes the change; returns the object as stored, or as it would be.
    pub async fn run(&self, warnings: &mut Vec<String>, transform: Transform<'_>) -> Result<Value, Status> {
        let key = self.target.key(self.namespace, self.name);
        for _ in 0..ATTEMPTS_MAX {
            let object = read(&self.state.cache, &key, false)
                .await?
                .ok_or_else(|| self.target.not_found(self.name))?;
            let mut said = Vec::new();
            let mut attempt = self.attempt(&key, &object, self.writer, &mut said, transform).await;
            if attempt.as_ref().is_err_and(|status| status.code == 413)
                && matches!(self.writer, Writer::Manager(_))
            {
                // Owners can take much room, and nobody asked for them.
                said.clear();
                attempt = self.attempt(&key, &object, &Writer::Forgotten, &mut said, transform).await;
            }
            if let Some(ended) = attempt.transpose() {
                warnings.append(&mut said);
                return ended;
            }
        }
        Err(self.modified())
    }

    fn modified(&self) -> Status {
        let resource = &*self.target.resource;
        Status::modified(&resource.group, &resource.plural, self.name)
    }

    /// `None` where the object changed in between.
    async fn attempt(
        &self,
        key: &str,
        object: &Arc<Object>,
        writer: &Writer,
        warnings: &mut Vec<String>,
        transform: Transform<'_>,
    ) -> Result<Option<Value>, Status> {
        let Self { state, target, .. } = *self;
        let old = target.shown(object).await?;
        let own = Conversions::of(target);
        let conversions = self.conversions.unwrap_or(&own);
        let mut new = match self.face {
            None => conversions.settle(|| transform(&old)).await?,
            Some(face) => self.transform_face(face, &old, warnings, transform).await?,
        };
        self.check_preconditions(&old, &new)?;
        keep_server_fields(&mut new, &old);
        let now = now();
        let context = Context {
            resource: &target.resource,
            subresource: self.subresource,
            now: &now,
            user: &self.user.name,
        };
        target.default(&mut new);
        writer.record(conversions, self.subresource, Some(&old), &mut new, &now).await;
        // A binding writes what no client may: it is checked by who makes it.
        let follows_rules = self.subresource != "binding";
        if follows_rules {
            // Rules that keep metadata as it was must not keep its owners.
            let owners = meta::metadata_mut(&mut new).remove("managedFields");
            registry::prepare_update(&*target.strategy, &context, &mut new, &old);
            ownership::put(&mut new, owners);
        }
        let request = self.request(self.subresource, &old);
        if self.admits && self.face.is_none() {
            state.admission.mutate(&request, &mut new, warnings).await?;
            target.default(&mut new);
        }
        keep_times(&mut new, &old);
        let errors = if follows_rules {
            registry::validate_update(&*target.strategy, &context, &new, &old)
        } else {
            registry::metadata::validate_update(&new, &old)
        };
        if !errors.is_empty() {
            return Err(target.invalid(self.name, errors));
        }
        self.judge(&request, &new, &old, warnings).await?;
        escalation::check(state, self.user, target, self.namespace, &new, Some(&old))?;
        warnings.extend(target.strategy.warnings(&new));
        let charge = resource_quota::charge(&state.cache, &request, &new).await?;
        let stored = self.store(key, object, new, &old).await?;
        if stored.is_some() {
            charge.keep();
        }
        Ok(stored)
    }

    fn request<'r>(&'r self, subresource: &'r str, old: &'r Value) -> admission::Request<'r> {
        admission::Request {
            operation: Operation::Update,
            kinds: &self.state.kinds,
            target: self.target,
            subresource,
            namespace: self.target.scope(self.namespace),
            name: self.name,
            user: self.user,
            old: Some(old),
            dry_run: self.options.dry_run,
            options: Options::Write(self.options),
        }
    }

    /// The object that follows from its other kind, which admission may change before.
    async fn transform_face(
        &self,
        face: &dyn Face,
        old: &Value,
        warnings: &mut Vec<String>,
        transform: Transform<'_>,
    ) -> Result<Value, Status> {
        let before = face.of(old)?;
        let mut shown = transform(&before)?;
        if self.admits {
            let request = self.request(face.subresource(), &before);
            self.state.admission.mutate(&request, &mut shown, warnings).await?;
        }
        face.applied_to(&shown, old)
    }

    /// Asks admission whether the finished object may be stored.
    async fn judge(
        &self,
        request: &admission::Request<'_>,
        new: &Value,
        old: &Value,
        warnings: &mut Vec<String>,
    ) -> Result<(), Status> {
        let admission = &self.state.admission;
        match self.face {
            _ if !self.admits => Ok(()),
            None => admission.validate(request, new, warnings).await,
            Some(face) => {
                let (new, old) = (face.of(new)?, face.of(old)?);
                admission.validate(&self.request(face.subresource(), &old), &new, warnings).await
            }
        }
    }

    async fn store(
        &self,
        key: &str,
        object: &Arc<Object>,
        mut new: Value,
        old: &Value,
    ) -> Result<Option<Value>, Status> {
        let Self { state, target, .. } = *self;
        target.canonicalize(&mut new);
        let claim = service::claim(state, target, &mut new, Some(old), self.options.dry_run).await?;
        if self.options.dry_run {
            return Ok(Some(new));
        }
        if is_finished(target, &new) {
            return match state.cache.delete(key, object.revision()).await {
                Ok(_) => {
                    service::released(state, target, old).await;
                    Ok(Some(new))
                }
                Err(StorageError::Conflict { current: Some(_), .. }) => Ok(None),
                Err(error) => Err(target.storage_error(self.name, error)),
            };
        }
        match state.cache.update(key, object.revision(), target.to_stored(new).await?).await {
            Ok(stored) => {
                if let Some(claim) = claim {
                    claim.keep().await;
                }
                target.shown(&stored).await.map(Some)
            }
            Err(StorageError::Conflict { current: Some(_), .. }) => Ok(None),
            Err(error) => Err(target.storage_error(self.name, error)),
        }
    }

    fn check_preconditions(&self, old: &Value, new: &Value) -> Result<(), Status> {
        let version = meta::resource_version(new);
        if !matches!(version, "" | "0") && version != meta::resource_version(old) {
            return Err(self.modified());
        }
        if version.is_empty() && !self.target.strategy.allow_unconditional_update() {
            // Upstream shows the number, also where the text is empty.
            let error =
                FieldError::invalid("metadata.resourceVersion", "", "0: must be specified for an update");
            let error = error.without_value();
            return Err(self.target.invalid(self.name, vec![error]));
        }
        let (uid, stored) = (meta::uid(new), meta::uid(old));
        if !uid.is_empty() && uid != stored {
            let why =
                format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {stored}");
            return Err(self.target.conflict(self.name, &why));
        }
        Ok(())
    }
}

/// An [`Update`] that owns what it needs of its call, so that the call stays free for warnings.
pub struct UpdateOwned<'a> {
    pub state: Arc<State>,
    pub user: Identity,
    pub target: &'a Target,
    pub subresource: String,
    pub namespace: String,
    pub name: String,
    pub options: WriteOptions,
    pub admits: bool,
    pub face: Option<&'a dyn Face>,
    pub writer: Writer,
    pub conversions: Option<&'a Conversions<'a>>,
}

impl UpdateOwned<'_> {
    pub async fn run(&self, warnings: &mut Vec<String>, transform: Transform<'_>) -> Result<Value, Status> {
        let update = Update {
            state: &self.state,
            user: &self.user,
            target: self.target,
            subresource: &self.subresource,
            namespace: &self.namespace,
            name: &self.name,
            options: &self.options,
            admits: self.admits,
            face: self.face,
            writer: &self.writer,
            conversions: self.conversions,
        };
        update.run(warnings, transform).await
    }
}

/// What no client can change: the server's part of `metadata`.
fn keep_server_fields(new: &mut Value, old: &Value) {
    let metadata = meta::metadata_mut(new);
    for field in [
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "selfLink",
        "generateName",
    ] {
        match old["metadata"].get(field) {
            Some(value) => metadata.insert(field.to_owned(), value.clone()),
            None => metadata.remove(field),
        };
    }
    meta::set_resource_version(new, meta::resource_version(old));
}

/// Whether something still has to happen before an object that is being deleted may go.
pub fn has_finalizers(target: &Target, object: &Value) -> bool {
    let is_namespace = target.resource.plural == "namespaces" && target.resource.group.is_empty();
    !meta::finalizers(object).is_empty()
        || (is_namespace && object["spec"]["finalizers"].as_array().is_some_and(|list| !list.is_empty()))
}

/// Whether the object was deleted and nothing holds it any more.
fn is_finished(target: &Target, object: &Value) -> bool {
    meta::deletion_timestamp(object).is_some()
        && object["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) == 0
        && !has_finalizers(target, object)
}
