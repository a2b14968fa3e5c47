//! DELETE: at once, or gracefully, or once the finalizers are gone; dependents as `propagationPolicy` says.
//!
//! ```text
//! no finalizers, no grace ........ gone; Status Success
//! grace (pods) ................... deletionTimestamp = now + grace; the kubelet deletes again with grace 0
//! finalizers ..................... deletionTimestamp = now; whoever removes the last one deletes the object
//! ```

use std::sync::Arc;

use api::{field::FieldError, meta, status::Status};
use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::{Call, Target, now, target::read, update::has_finalizers};
use crate::{
    admission::{self, Operation, Options},
    decode::Expected,
    negotiate::Accepted,
    query::{DeleteOptions, FieldValidation},
    registry::Propagation,
    respond,
    security::Identity,
    server::body::Body,
    state::State,
    storage::{StorageError, cache::Object},
    subresources::service,
};

const ATTEMPTS_MAX: usize = 50;
const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";

/// What a deletion came to.
pub enum Deleted {
    /// The object is gone; it was this.
    Gone(Value),
    /// The object is marked and waits.
    Waiting(Value),
}

/// The DeleteOptions of a request.
pub async fn options(call: &mut Call) -> Result<DeleteOptions, Status> {
    let schema = call.state.schema;
    let ty =
        schema.type_of("", "v1", "DeleteOptions").ok_or_else(|| Status::internal("no type DeleteOptions"))?;
    let expected = Expected { group_version: "v1", kind: "DeleteOptions", ty };
    let Some(mut document) = call.read_document(schema, expected).await? else {
        return DeleteOptions::parse(None, &call.query);
    };
    // Every group has the same DeleteOptions: clients name the group of the object.
    if let Some(object) = document.value.as_object_mut() {
        object.remove("apiVersion");
    }
    let value = expected.decode(schema, document, FieldValidation::Warn, &mut call.warnings)?;
    DeleteOptions::parse(Some(&value), &call.query)
}

pub async fn handle(call: &mut Call, target: &Target) -> Result<Response<Body>, Status> {
    let options = options(call).await?;
    let accepted = call.accepted_object()?;
    let delete = Delete {
        state: &call.state,
        user: &call.user,
        target,
        namespace: &call.info.namespace,
        name: &call.info.name,
        options: &options,
        admits: true,
        is_collection: false,
    };
    let deleted = delete.run(&mut call.warnings).await?;
    match deleted {
        Deleted::Gone(object) if answers_object(target) => {
            call.answer(target, accepted, StatusCode::OK, object)
        }
        Deleted::Gone(object) => {
            let resource = &*target.resource;
            let status =
                Status::deleted(&resource.group, &resource.plural, &call.info.name, meta::uid(&object));
            let accepted = Accepted { encoding: accepted.encoding, ..Accepted::JSON };
            Ok(respond::value(StatusCode::OK, accepted, &status.to_value()))
        }
        Deleted::Waiting(object) => {
            let code =
                if options.orphan_dependents == Some(false) { StatusCode::ACCEPTED } else { StatusCode::OK };
            call.answer(target, accepted, code, object)
        }
    }
}

/// The kinds whose deletion answers with the last object instead of a Status.
fn answers_object(target: &Target) -> bool {
    target.resource.group.is_empty()
        && matches!(
            target.resource.plural.as_str(),
            "pods"
                | "services"
                | "serviceaccounts"
                | "persistentvolumes"
                | "persistentvolumeclaims"
                | "podtemplates"
                | "resourcequotas"
        )
}

/// One deletion, whoever asks for it.
pub struct Delete<'a> {
    pub state: &'a State,
    pub user: &'a Identity,
    pub target: &'a Target,
    pub namespace: &'a str,
    pub name: &'a str,
    pub options: &'a DeleteOptions,
    /// Whether admission is asked: not for an eviction, about which it was asked.
    pub admits: bool,
    /// Whether the request names no object, but a collection.
    pub is_collection: bool,
}

impl Delete<'_> {
    pub async fn run(&self, warnings: &mut Vec<String>) -> Result<Deleted, Status> {
        let key = self.target.key(self.namespace, self.name);
        for _ in 0..ATTEMPTS_MAX {
            let object = read(&self.state.cache, &key, false)
                .await?
                .ok_or_else(|| self.target.not_found(self.name))?;
            if let Some(deleted) = self.attempt(&key, &object, warnings).await? {
                return Ok(deleted);
            }
        }
        let resource = &*self.target.resource;
        Err(Status::modified(&resource.group, &resource.plural, self.name))
    }

    /// `None` where the object changed in between.
    async fn attempt(
        &self,
        key: &str,
        object: &Arc<Object>,
        warnings: &mut Vec<String>,
    ) -> Result<Option<Deleted>, Status> {
        let Self { state, target, .. } = *self;
        let old = target.shown(object).await?;
        self.check_preconditions(&old)?;
        if self.admits {
            self.admit(&old, warnings).await?;
        }
        let grace = target.strategy.grace_period_seconds(&old, self.options.grace_period_seconds);
        let mut new = old.clone();
        self.set_propagation(&mut new);
        if meta::deletion_timestamp(&old).is_none() {
            target.strategy.begin_deletion(&mut new, &now());
        }
        let grace = grace.unwrap_or(0);
        if grace == 0 && !has_finalizers(target, &new) {
            if self.options.dry_run {
                return Ok(Some(Deleted::Gone(old)));
            }
            return match state.cache.delete(key, object.revision()).await {
                Ok(revision) => {
                    service::released(state, target, &old).await;
                    meta::set_resource_version(&mut new, &revision.0.to_string());
                    Ok(Some(Deleted::Gone(new)))
                }
                Err(StorageError::Conflict { current: Some(_), .. }) => Ok(None),
                Err(error) => Err(target.storage_error(self.name, error)),
            };
        }
        self.mark(&mut new, &old, grace);
        if self.options.dry_run || new == old {
            return Ok(Some(Deleted::Waiting(new)));
        }
        match state.cache.update(key, object.revision(), target.to_stored(new).await?).await {
            Ok(stored) => Ok(Some(Deleted::Waiting(target.shown(&stored).await?))),
            Err(StorageError::Conflict { current: Some(_), .. }) => Ok(None),
            Err(error) => Err(target.storage_error(self.name, error)),
        }
    }

    async fn admit(&self, old: &Value, warnings: &mut Vec<String>) -> Result<(), Status> {
        let request = admission::Request {
            operation: Operation::Delete,
            kinds: &self.state.kinds,
            target: self.target,
            subresource: "",
            namespace: self.target.scope(self.namespace),
            name: if self.is_collection { "" } else { self.name },
            user: self.user,
            old: Some(old),
            dry_run: self.options.dry_run,
            options: Options::Delete(self.options),
        };
        self.state.admission.admit(&request, &mut Value::Null, warnings).await
    }

    fn check_preconditions(&self, old: &Value) -> Result<(), Status> {
        let differs = |what: &str, wanted: &Option<String>, stored: &str| match wanted {
            Some(wanted) if wanted != stored => Err(self.target.conflict(
                self.name,
                &format!(
                    "Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {stored}"
                ),
            )),
            _ => Ok(()),
        };
        differs("UID", &self.options.uid, meta::uid(old))?;
        differs("ResourceVersion", &self.options.resource_version, meta::resource_version(old))?;
        if self.options.grace_period_seconds.is_some_and(|seconds| seconds < 0)
            && self.target.strategy.grace_period_seconds(old, None).is_none()
        {
            let error = FieldError::invalid(
                "gracePeriodSeconds",
                json!(self.options.grace_period_seconds),
                "must not be negative",
            );
            return Err(Status::invalid("meta.k8s.io", "DeleteOptions", "", vec![error]));
        }
        Ok(())
    }

    /// Puts the finalizer in place that the garbage collector acts on, and takes the other away.
    fn set_propagation(&self, object: &mut Value) {
        let mut finalizers: Vec<String> = meta::finalizers(object).into_iter().map(str::to_owned).collect();
        let has = |name: &str| finalizers.iter().any(|finalizer| finalizer == name);
        let asked = match (self.options.propagation.as_deref(), self.options.orphan_dependents) {
            (Some("Orphan"), _) | (None, Some(true)) => Propagation::Orphan,
            (Some("Foreground"), _) => Propagation::Foreground,
            (Some(_), _) | (None, Some(false)) => Propagation::Background,
            (None, None) if has(ORPHAN) => Propagation::Orphan,
            (None, None) if has(FOREGROUND) => Propagation::Foreground,
            (None, None) => self.target.strategy.default_propagation(),
        };
        finalizers.retain(|finalizer| finalizer != ORPHAN && finalizer != FOREGROUND);
        match asked {
            Propagation::Orphan => finalizers.push(ORPHAN.to_owned()),
            Propagation::Foreground => finalizers.push(FOREGROUND.to_owned()),
            Propagation::Background => {}
        }
        if !finalizers.is_empty() || !meta::finalizers(object).is_empty() {
            let finalizers: Vec<&str> = finalizers.iter().map(String::as_str).collect();
            meta::set_finalizers(object, &finalizers);
        }
    }

    /// Sets when the object is to be gone; a second deletion can only bring that forward.
    fn mark(&self, new: &mut Value, old: &Value, grace: i64) {
        let before = old["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0);
        if let Some(deletion) = meta::deletion_timestamp(old) {
            if before <= grace {
                return;
            }
            if let Ok(deletion) = api::time::parse(deletion) {
                let earlier = deletion - jiff::SignedDuration::from_secs(before - grace);
                meta::set_deletion_timestamp(new, &api::time::format_seconds(earlier));
            }
        } else {
            let at = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(grace);
            meta::set_deletion_timestamp(new, &api::time::format_seconds(at));
            if meta::generation(old) > 0 {
                meta::set_generation(new, meta::generation(old) + 1);
            }
        }
        meta::set_deletion_grace_period_seconds(new, grace);
        if self.target.resource.plural == "namespaces" && self.target.resource.group.is_empty() {
            new["status"]["phase"] = json!("Terminating");
        }
    }
}
