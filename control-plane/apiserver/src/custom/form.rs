//! How one version of a custom kind shows what is stored: without what the stored version's schema does not know, with
//! its defaults, then converted. Made once per object version and kept with it; most objects show what is stored.

use std::sync::{Arc, Weak};

use api::{
    meta,
    schema::{Schema, TypeId},
    shared::Shared,
    status::Status,
};
use async_trait::async_trait;
use bytes::Bytes;
use serde_json::Value;

use super::definition::{Definition, Version};
use crate::{
    conversion::Convert,
    kinds::Kinds,
    storage::cache::{Object, View},
};

/// Objects in one question to a webhook.
const BATCH_MAX: usize = 500;

pub(super) struct VersionForm {
    definition: Arc<Definition>,
    version: usize,
    /// Who holds this form, through the kind.
    kinds: Weak<Kinds>,
}

impl VersionForm {
    pub(super) fn new(definition: Arc<Definition>, version: usize, kinds: Weak<Kinds>) -> Self {
        Self { definition, version, kinds }
    }

    fn version(&self) -> &Version {
        &self.definition.versions[self.version]
    }

    fn view_id(&self) -> u64 {
        self.definition.view_id(self.version)
    }

    /// The version that an object says it has.
    fn version_of(&self, value: &Value) -> Option<&Version> {
        self.named(meta::api_version(value))
    }

    /// The version of this name: `GROUP/VERSION`.
    fn named(&self, api_version: &str) -> Option<&Version> {
        self.definition.versions.iter().find(|version| version.api_version == api_version)
    }

    /// What is stored, as its own version reads it.
    fn read(&self, value: &mut Value) {
        if let Some(version) = self.version_of(value) {
            version.schema.decode(version.ty, value);
            version.schema.default(version.ty, value);
        }
    }

    fn needs_webhook(&self, value: &Value, version: &Version) -> bool {
        self.definition.has_webhook && meta::api_version(value) != version.api_version
    }

    /// Keeps what this version shows of an object.
    fn keep(&self, object: &Object, stored: &Value, mut shown: Value) {
        let version = self.version();
        if meta::api_version(&shown) != version.api_version {
            shown["apiVersion"] = Value::from(version.api_version.as_str());
            version.schema.decode(version.ty, &mut shown);
        }
        let view = if shown == *stored { View::Same } else { View::Json(shown.to_string().into()) };
        object.keep_view(self.view_id(), view);
    }

    /// Converts with the webhook; whoever asks it has checked what it may not change.
    async fn ask(&self, version: &Version, objects: Vec<Value>) -> Result<Vec<Value>, Status> {
        let kinds = self.kinds.upgrade();
        let webhook = kinds.as_ref().and_then(|kinds| kinds.webhook()).ok_or_else(|| {
            let definition = &self.definition;
            Status::internal(format!("nobody converts {}/{}", definition.group, definition.kind))
        })?;
        let mut converted = webhook.convert(&self.definition.outline, &version.api_version, objects).await?;
        for object in &mut converted {
            version.schema.decode(version.ty, object);
        }
        Ok(converted)
    }
}

#[async_trait]
impl Convert for VersionForm {
    async fn prepare(&self, objects: &[&Arc<Object>]) -> Result<(), Status> {
        if !self.definition.has_webhook {
            return Ok(());
        }
        let unseen = objects.iter().filter(|object| object.view(self.view_id()).is_none());
        let unseen: Vec<&Arc<Object>> = unseen.copied().collect();
        for batch in unseen.chunks(BATCH_MAX) {
            let mut foreign: Vec<(&Arc<Object>, Value, Value)> = Vec::new();
            for object in batch {
                let stored = object.value();
                let mut value = stored.clone();
                self.read(&mut value);
                if self.needs_webhook(&value, self.version()) {
                    foreign.push((object, stored, value));
                } else {
                    self.keep(object, &stored, value);
                }
            }
            if foreign.is_empty() {
                continue;
            }
            let values = foreign.iter_mut().map(|(_, _, value)| value.take()).collect();
            let converted = self.ask(self.version(), values).await?;
            for ((object, stored, _), value) in foreign.iter().zip(converted) {
                self.keep(object, stored, value);
            }
        }
        Ok(())
    }

    fn json(&self, object: &Object) -> Bytes {
        if let Some(view) = object.view(self.view_id()) {
            return view;
        }
        let stored = object.value();
        let mut value = stored.clone();
        self.read(&mut value);
        self.keep(object, &stored, value);
        object.view(self.view_id()).unwrap_or_else(|| object.json().clone())
    }

    async fn to_stored(&self, mut value: Value) -> Result<Value, Status> {
        let Some(storage) = self.definition.version(&self.definition.storage) else { return Ok(value) };
        if self.needs_webhook(&value, storage) {
            let converted = self.ask(storage, vec![value]).await?;
            return converted.into_iter().next().ok_or_else(|| Status::internal("no object came back"));
        }
        if meta::api_version(&value) != storage.api_version {
            value["apiVersion"] = Value::from(storage.api_version.as_str());
            storage.schema.decode(storage.ty, &mut value);
        }
        Ok(value)
    }

    fn type_in(&self, api_version: &str) -> Option<(Shared<Schema>, TypeId)> {
        let version = self.named(api_version)?;
        Some((Arc::clone(&version.schema).into(), version.ty))
    }

    fn has_webhook(&self) -> bool {
        self.definition.has_webhook
    }

    fn replicas_path(&self, api_version: &str) -> Option<&str> {
        self.named(api_version)?.replicas_path.as_deref()
    }

    fn rename(&self, value: &Value, api_version: &str) -> Option<Value> {
        let version = self.named(api_version)?;
        // What is no object yet has nothing that a webhook could convert.
        let is_empty = value.as_object().is_some_and(|object| !object.contains_key("metadata"));
        if self.needs_webhook(value, version) && !is_empty {
            return None;
        }
        let mut value = value.clone();
        if meta::api_version(&value) != api_version {
            value["apiVersion"] = Value::from(api_version);
            version.schema.decode(version.ty, &mut value);
        }
        Some(value)
    }

    async fn convert(&self, values: Vec<Value>, api_version: &str) -> Result<Vec<Value>, Status> {
        let version = self.named(api_version).ok_or_else(|| {
            Status::internal(format!("request to convert CR to an invalid group/version: {api_version}"))
        })?;
        self.ask(version, values).await
    }
}
