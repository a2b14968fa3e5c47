//! The resource that a request is about: its row of the schema, its strategy, and where its objects are.

use std::{borrow::Cow, sync::Arc};

use api::{
    protobuf::{encode_message, encode_partial},
    schema::{Resource, Schema, builtin},
    selector::{FieldSelector, LabelSelector, Operator},
    shared::Shared,
    status::Status,
};
use bytes::Bytes;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::{
    conversion::Form,
    decode::{Document, Expected},
    kinds::Custom,
    query::{FieldValidation, ListOptions},
    registry::{self, Strategy},
    storage::{
        Revision, StorageError,
        cache::{Cache, IndexKey, Object, Snapshot, ValueOf},
        keys,
    },
};

#[derive(Clone)]
pub struct Target {
    /// Where the resource's type is.
    pub schema: Shared<Schema>,
    pub resource: Shared<Resource>,
    pub strategy: Shared<dyn Strategy>,
    form: Form,
    is_custom: bool,
    /// What clients of a deprecated version are warned with.
    pub deprecation: Option<String>,
    /// Cancelled when the resource is served no more as it is here; `None` for what is built in.
    pub ended: Option<CancellationToken>,
}

impl Target {
    /// A built-in resource.
    pub fn new(resource: &'static Resource) -> Self {
        Self {
            schema: builtin().into(),
            resource: resource.into(),
            strategy: registry::strategy(&resource.group, &resource.plural).into(),
            form: Form::of(resource),
            is_custom: false,
            deprecation: None,
            ended: None,
        }
    }

    pub fn custom(kind: &Custom) -> Self {
        Self {
            schema: kind.schema.clone(),
            resource: Arc::clone(&kind.resource).into(),
            strategy: Arc::clone(&kind.strategy).into(),
            form: kind.form.clone(),
            is_custom: true,
            deprecation: kind.deprecation.clone(),
            ended: Some(kind.ended.clone()),
        }
    }

    /// How what is served relates to what is stored.
    pub fn form(&self) -> &Form {
        &self.form
    }

    /// Whether the kind is that of a CustomResourceDefinition.
    pub fn is_custom(&self) -> bool {
        self.is_custom
    }

    /// Whether both are versions of one resource: stored under the same keys.
    pub fn is_equivalent(&self, other: &Self) -> bool {
        self.stored_group() == other.stored_group() && self.resource.plural == other.resource.plural
    }

    /// An object of this version in the form of another one.
    ///
    /// # Errors
    /// Where the conversion fails.
    pub async fn convert(&self, to: &Self, object: Value) -> Result<Value, Status> {
        let version = api::meta::resource_version(&object).to_owned();
        let mut stored = self.to_stored(object).await?;
        let mut converted = match &to.form {
            Form::Stored => stored,
            Form::Builtin(conversion) => (conversion.from_stored)(stored),
            Form::Custom(_) => {
                api::meta::set_resource_version(&mut stored, "");
                let object = Object::new("".into(), Revision(0), stored.to_string().as_bytes())
                    .map_err(Status::internal)?;
                to.shown(&Arc::new(object)).await?
            }
        };
        converted["apiVersion"] = to.resource.group_version().into();
        api::meta::set_resource_version(&mut converted, &version);
        Ok(converted)
    }

    /// The defaults of the schema and of the kind.
    pub fn default(&self, object: &mut Value) {
        self.schema.default(self.resource.ty, object);
        self.strategy.default(object);
    }

    /// Brings an object that somebody changed back into the form of its kind: unknown fields go, defaults come.
    ///
    /// # Errors
    /// 500 where it is no object of this kind any more.
    pub fn normalise(&self, object: &mut Value) -> Result<(), Status> {
        let group_version = self.resource.group_version();
        let expected =
            Expected { group_version: &group_version, kind: &self.resource.kind, ty: self.resource.ty };
        let document = Document { value: object.take(), duplicates: Vec::new() };
        *object = expected
            .decode(&self.schema, document, FieldValidation::Ignore, &mut Vec::new())
            .map_err(|status| Status::internal(status.message))?;
        self.default(object);
        Ok(())
    }

    fn stored_group(&self) -> &str {
        match &self.form {
            Form::Builtin(conversion) => conversion.group,
            Form::Stored | Form::Custom(_) => &self.resource.group,
        }
    }

    /// The namespace that an object has: none where the resource is cluster-scoped.
    pub fn scope<'a>(&self, namespace: &'a str) -> &'a str {
        if self.resource.namespaced { namespace } else { "" }
    }

    /// The key of an object; the namespace is ignored for cluster-scoped resources.
    pub fn key(&self, namespace: &str, name: &str) -> String {
        let namespace = self.resource.namespaced.then_some(namespace);
        keys::object_key(self.stored_group(), &self.resource.plural, namespace, name)
    }

    /// The prefix of a list; the empty namespace is all.
    pub fn list_prefix(&self, namespace: &str) -> String {
        let namespace = (self.resource.namespaced && !namespace.is_empty()).then_some(namespace);
        keys::list_prefix(self.stored_group(), &self.resource.plural, namespace)
    }

    /// Whether the object's cached JSON is not what this version of the resource shows.
    pub fn is_converted(&self) -> bool {
        !matches!(self.form, Form::Stored)
    }

    /// Whether [`Target::prepare`] has nothing to do.
    pub fn is_ready(&self) -> bool {
        !matches!(self.form, Form::Custom(_))
    }

    /// Comes before [`Target::value`], [`Target::json`] and [`Target::matches`]: converts what a webhook must convert.
    /// Nothing happens for kinds that are built in.
    pub async fn prepare(&self, objects: impl IntoIterator<Item = &Arc<Object>>) -> Result<(), Status> {
        match &self.form {
            Form::Stored | Form::Builtin(_) => Ok(()),
            Form::Custom(form) => form.prepare(&objects.into_iter().collect::<Vec<_>>()).await,
        }
    }

    /// [`Target::prepare`] and [`Target::value`].
    pub async fn shown(&self, object: &Arc<Object>) -> Result<Value, Status> {
        self.prepare([object]).await?;
        Ok(self.value(object))
    }

    /// The object as this version of the resource shows it.
    pub fn value(&self, object: &Object) -> Value {
        match &self.form {
            Form::Stored => object.value(),
            Form::Builtin(conversion) => (conversion.from_stored)(object.value()),
            Form::Custom(form) => serde_json::from_slice(&form.json(object))
                .expect("the bytes are those of a value, or were parsed when the object was made"),
        }
    }

    /// The object in the form that is stored.
    pub async fn to_stored(&self, value: Value) -> Result<Value, Status> {
        match &self.form {
            Form::Stored => Ok(value),
            Form::Builtin(conversion) => Ok((conversion.to_stored)(value)),
            Form::Custom(form) => form.to_stored(value).await,
        }
    }

    /// The object's JSON; cached, unless it must be converted.
    pub fn json(&self, object: &Object) -> Bytes {
        match &self.form {
            Form::Stored => object.json().clone(),
            Form::Builtin(_) => self.value(object).to_string().into(),
            Form::Custom(form) => form.json(object),
        }
    }

    /// The object's protobuf message, without envelope; cached, unless it must be converted. Of a custom resource it is
    /// the metadata alone.
    pub fn protobuf(&self, object: &Object) -> Bytes {
        match &self.form {
            Form::Stored if !self.is_custom => object.protobuf(|value| self.protobuf_of(value)),
            Form::Stored => object.protobuf(|value| encode_partial(builtin(), &value["metadata"])),
            Form::Builtin(_) | Form::Custom(_) => self.protobuf_of(&self.value(object)).into(),
        }
    }

    /// The length of [`Target::protobuf`], which is made where nobody did.
    pub fn protobuf_length(&self, object: &Object) -> usize {
        match &self.form {
            Form::Stored => object.protobuf_length().unwrap_or_else(|| self.protobuf(object).len()),
            Form::Builtin(_) | Form::Custom(_) => self.protobuf(object).len(),
        }
    }

    /// As [`Target::protobuf`], under another revision.
    pub fn protobuf_at(&self, object: &Object, revision: Revision) -> Bytes {
        let mut value = self.value(object);
        api::meta::set_resource_version(&mut value, &revision.0.to_string());
        self.protobuf_of(&value).into()
    }

    fn protobuf_of(&self, value: &Value) -> Vec<u8> {
        if self.is_custom {
            return encode_partial(builtin(), &value["metadata"]);
        }
        encode_message(&self.schema, self.resource.ty, value)
    }

    /// As [`Target::json`], under another revision.
    pub fn json_at(&self, object: &Object, revision: Revision) -> Bytes {
        if matches!(self.form, Form::Stored) {
            return object.json_at(revision);
        }
        let mut value = self.value(object);
        api::meta::set_resource_version(&mut value, &revision.0.to_string());
        value.to_string().into()
    }

    /// 400 for a field selector on a field that cannot be selected by.
    pub fn check_fields(&self, selector: &FieldSelector) -> Result<(), Status> {
        for (name, ..) in selector.requirements() {
            let known = matches!(name.as_str(), "metadata.name" | "metadata.namespace")
                || self.strategy.selects_by(name);
            if !known {
                return Err(Status::bad_request(format!("field label not supported: {name}")));
            }
        }
        Ok(())
    }

    /// Whether an object is in the selection.
    pub fn matches(&self, options: &ListOptions, object: &Object) -> bool {
        let meta = object.meta();
        if options.labels.as_ref().is_some_and(|selector| !selector.matches_with(|key| meta.label(key))) {
            return false;
        }
        let Some(selector) = &options.fields else { return true };
        if self.is_custom {
            let value = self.value(object);
            return selector.matches(|name| match name {
                "metadata.name" => Some(meta.name.clone()),
                "metadata.namespace" => Some(meta.namespace.clone()),
                name => self.strategy.selectable_field(&value, name),
            });
        }
        let fields = || -> Cow<'_, [(&'static str, String)]> {
            if self.is_converted() {
                Cow::Owned(self.strategy.selectable_fields(&self.value(object)))
            } else {
                Cow::Borrowed(object.fields(|value| self.strategy.selectable_fields(value)))
            }
        };
        selector.matches(|name| match name {
            "metadata.name" => Some(meta.name.clone()),
            "metadata.namespace" => Some(meta.namespace.clone()),
            name => fields().iter().find(|(field, _)| *field == name).map(|(_, value)| value.clone()),
        })
    }

    /// Gives an object the form in which it is stored, the same from every encoding.
    pub fn canonicalize(&self, value: &mut Value) {
        if !self.is_custom {
            self.schema.canonicalize(self.resource.ty, value);
        }
    }

    /// The kind as Go names its type in errors: `*core.Pod`.
    pub fn go_kind(&self) -> String {
        let group = self.resource.group.split('.').next().filter(|group| !group.is_empty());
        format!("*{}.{}", group.unwrap_or("core"), self.resource.kind)
    }

    /// A list of at least what [`Target::matches`] finds under a prefix, by an index where one serves the selection.
    pub fn narrowed(&self, cache: &Cache, prefix: &str, options: &ListOptions) -> Snapshot {
        if let Some(fields) = &options.fields {
            // Under the prefix of one namespace, a name is a key.
            let is_whole = !self.resource.namespaced || prefix != self.list_prefix("");
            if let Some(name) = fields.required_value("metadata.name")
                && is_whole
            {
                return cache.list(prefix).only(&format!("{prefix}{name}"));
            }
            let demanded = fields
                .requirements()
                .iter()
                .find(|(field, equal, value)| *equal && !value.is_empty() && !field.starts_with("metadata."));
            if let Some((field, _, value)) = demanded
                && !self.is_custom
                && !self.is_converted()
            {
                return cache.list_by(
                    prefix,
                    &IndexKey::Field(field.clone()),
                    value,
                    &self.value_of_field(field),
                );
            }
        }
        let requirements = options.labels.iter().flat_map(LabelSelector::requirements);
        let demanded = requirements
            .filter(|requirement| requirement.operator == Operator::In)
            .find_map(|requirement| {
                Some((&requirement.key, requirement.values.first()?, requirement.values.len()))
            })
            .filter(|(.., count)| *count == 1);
        match demanded {
            Some((label, value, _)) => {
                let key = label.clone();
                let value_of: ValueOf =
                    Arc::new(move |object: &Object| object.meta().label(&key).map(Box::from));
                cache.list_by(prefix, &IndexKey::Label(label.clone()), value, &value_of)
            }
            None => cache.list(prefix),
        }
    }

    fn value_of_field(&self, field: &str) -> ValueOf {
        let (strategy, field) = (self.strategy.clone(), field.to_owned());
        Arc::new(move |object: &Object| {
            let fields = object.fields(|value| strategy.selectable_fields(value));
            fields.iter().find(|(name, _)| *name == field).map(|(_, value)| value.as_str().into())
        })
    }

    pub fn not_found(&self, name: &str) -> Status {
        Status::not_found(&self.resource.group, &self.resource.plural, name)
    }

    pub fn invalid(&self, name: &str, errors: Vec<api::field::FieldError>) -> Status {
        Status::invalid(&self.resource.group, &self.resource.kind, name, errors)
    }

    pub fn conflict(&self, name: &str, why: &str) -> Status {
        Status::conflict(&self.resource.group, &self.resource.plural, name, why)
    }

    /// What a storage error means to a client.
    pub fn storage_error(&self, name: &str, error: StorageError) -> Status {
        let resource = &*self.resource;
        match error {
            StorageError::Exists { .. } => Status::already_exists(&resource.group, &resource.plural, name),
            StorageError::NotFound { .. } => self.not_found(name),
            StorageError::Conflict { current: None, .. } => self.not_found(name),
            StorageError::Conflict { .. } => Status::modified(&resource.group, &resource.plural, name),
            StorageError::TooLarge { size, limit, .. } => Status::request_entity_too_large(format_args!(
                "the object has {size} bytes, limit is {limit}"
            )),
            other => storage_status(&other),
        }
    }
}

/// What a storage error means where no object is named.
pub fn storage_status(error: &StorageError) -> Status {
    match error {
        StorageError::Compacted { requested, oldest } => Status::expired(format!(
            "The resourceVersion for the provided watch is too old: too old resource version: {} ({})",
            requested.0, oldest.0
        )),
        StorageError::Future { requested, current } => {
            Status::too_large_resource_version(requested.0, current.0)
        }
        // Not 503, after which clients repeat a request by themselves: the write may stand.
        other => Status::internal(other),
    }
}

/// The newest version of an object; a miss is looked at again once the cache is known to be current, and so is every
/// read where `fresh` is asked for.
pub async fn read(cache: &Cache, key: &str, fresh: bool) -> Result<Option<Arc<Object>>, Status> {
    if !fresh && let Some(object) = cache.get(key) {
        return Ok(Some(object));
    }
    cache.fresh().await.map_err(|error| storage_status(&error))?;
    Ok(cache.get(key))
}
