//! POST: decode, default, prepare, mutate, validate, store; up to eight times where the name is generated.

use api::{meta, status::Status};
use http::{Response, StatusCode};
use rand::Rng as _;
use serde_json::Value;

use super::{Call, Target, escalation, now};
use crate::{
    admission::{self, Operation, Options, resource_quota},
    decode::Expected,
    ownership::{Writer, versions::Conversions},
    query::WriteOptions,
    registry::{self, Context},
    security::Identity,
    server::body::Body,
    state::State,
    storage::StorageError,
    subresources::service,
};

/// What generated suffixes are made of: no vowels, so no words; nothing that looks alike.
const SUFFIX_ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
const SUFFIX_LENGTH: usize = 5;
/// The longest part of `generateName` that is kept.
const GENERATE_BASE_MAX: usize = 58;
const GENERATE_ATTEMPTS: usize = 8;
/// An object of so many bytes of text is never too large because its owners come on top.
const OWNED_BYTES_MAX: usize = 256 * 1024;

pub async fn handle(call: &mut Call, target: &Target) -> Result<Response<Body>, Status> {
    let accepted = call.accepted_object()?;
    let options = WriteOptions::parse(&call.query, "CreateOptions")?;
    let resource = &*target.resource;
    let group_version = resource.group_version();
    let expected = Expected { group_version: &group_version, kind: &resource.kind, ty: resource.ty };
    let mut object = call.decode_body_as(target, expected, options.field_validation).await?;
    place(target, &call.info.namespace, &mut object)?;
    let write = Create {
        state: &call.state,
        user: &call.user,
        target,
        namespace: &call.info.namespace,
        options: &options,
        writer: &Writer::of(&options.field_manager, &call.headers),
    };
    let created = write.run(object, &mut call.warnings).await?;
    call.answer(target, accepted, StatusCode::CREATED, created)
}

/// Checks an object's namespace against the path's and fills it in.
pub fn place(target: &Target, namespace: &str, object: &mut Value) -> Result<(), Status> {
    let said = meta::namespace(object);
    if !target.resource.namespaced {
        meta::set_namespace(object, "");
        return Ok(());
    }
    if !said.is_empty() && said != namespace {
        return Err(Status::bad_request(format!(
            "the namespace of the provided object does not match the namespace sent on the request ({said} is not \
             {namespace})"
        )));
    }
    meta::set_namespace(object, namespace);
    Ok(())
}

fn generate_name(base: &str) -> String {
    let mut end = base.len().min(GENERATE_BASE_MAX);
    while !base.is_char_boundary(end) {
        end -= 1;
    }
    let mut rng = rand::rng();
    let suffix =
        (0..SUFFIX_LENGTH).map(|_| SUFFIX_ALPHABET[rng.random_range(0..SUFFIX_ALPHABET.len())] as char);
    base[..end].chars().chain(suffix).collect()
}

/// One creation, whoever asks for it.
pub struct Create<'a> {
    pub state: &'a State,
    pub user: &'a Identity,
    pub target: &'a Target,
    pub namespace: &'a str,
    pub options: &'a WriteOptions,
    /// Whom the object is recorded for.
    pub writer: &'a Writer,
}

impl Create<'_> {
    /// Stores a decoded object and returns it as stored.
    pub async fn run(&self, mut object: Value, warnings: &mut Vec<String>) -> Result<Value, Status> {
        if !meta::resource_version(&object).is_empty() {
            return Err(Status::bad_request("resourceVersion should not be set on objects to be created"));
        }
        let base = meta::generate_name(&object).to_owned();
        let generates = meta::name(&object).is_empty() && !base.is_empty();
        let attempts = if generates { GENERATE_ATTEMPTS } else { 1 };
        self.begin(&mut object);
        for attempt in 1..=attempts {
            if generates {
                meta::set_name(&mut object, &generate_name(&base));
            }
            let name = meta::name(&object).to_owned();
            let spare = self.spare(&object);
            let next = if attempt == attempts { std::mem::take(&mut object) } else { object.clone() };
            let mut result = self.attempt(next, self.writer, warnings).await;
            if let (Err(Status { code: 413, .. }), Some(spare)) = (&result, spare) {
                warnings.clear();
                result = self.attempt(spare, &Writer::Forgotten, warnings).await;
            }
            match result {
                Err(status) if status.reason == "AlreadyExists" && generates => {
                    if attempt == attempts {
                        let resource = &*self.target.resource;
                        return Err(Status::generate_name_conflict(&resource.group, &resource.plural, &name));
                    }
                    warnings.clear();
                }
                result => return result,
            }
        }
        unreachable!("the last attempt returns")
    }

    /// What the server says about a new object, whatever the client said.
    fn begin(&self, object: &mut Value) {
        let metadata = meta::metadata_mut(object);
        for field in ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "generation"] {
            metadata.remove(field);
        }
        meta::set_uid(object, &uuid::Uuid::new_v4().to_string());
        meta::set_creation_timestamp(object, &now());
    }

    /// The object once more, where with its owners it may be too large to be stored: they can take as much room as the
    /// object, and nobody asked for them.
    fn spare(&self, object: &Value) -> Option<Value> {
        let mut left = OWNED_BYTES_MAX;
        let records = matches!(self.writer, Writer::Manager(_));
        (records && exceeds(object, &mut left)).then(|| object.clone())
    }

    async fn attempt(
        &self,
        mut object: Value,
        writer: &Writer,
        warnings: &mut Vec<String>,
    ) -> Result<Value, Status> {
        let Self { state, target, .. } = *self;
        let now = now();
        let context =
            Context { resource: &target.resource, subresource: "", now: &now, user: &self.user.name };
        target.default(&mut object);
        writer.record(&Conversions::of(target), "", None, &mut object, &now).await;
        registry::prepare_create(&*target.strategy, &context, &mut object);
        target.strategy.set_requester(&mut object, self.user);
        let name = meta::name(&object).to_owned();
        let mut request = admission::Request {
            operation: Operation::Create,
            kinds: &state.kinds,
            target,
            subresource: "",
            namespace: target.scope(self.namespace),
            name: &name,
            user: self.user,
            old: None,
            dry_run: self.options.dry_run,
            options: Options::Write(self.options),
        };
        state.admission.mutate(&request, &mut object, warnings).await?;
        target.default(&mut object);
        let name_after = meta::name(&object).to_owned();
        request.name = &name_after;
        let errors = registry::validate_create(&*target.strategy, &context, &object);
        if !errors.is_empty() {
            return Err(target.invalid(&name_after, errors));
        }
        state.admission.validate(&request, &object, warnings).await?;
        escalation::check(state, self.user, target, self.namespace, &object, None)?;
        warnings.extend(target.strategy.warnings(&object));
        let charge = resource_quota::charge(&state.cache, &request, &object).await?;
        let stored = self.store(&name_after, object).await?;
        charge.keep();
        Ok(stored)
    }

    async fn store(&self, name: &str, mut object: Value) -> Result<Value, Status> {
        let Self { state, target, .. } = *self;
        let key = target.key(self.namespace, name);
        let exists = || target.storage_error(name, StorageError::Exists { key: key.clone() });
        if state.cache.get(&key).is_some() {
            return Err(exists());
        }
        target.canonicalize(&mut object);
        let claim = service::claim(state, target, &mut object, None, self.options.dry_run).await?;
        if self.options.dry_run {
            return Ok(object);
        }
        let stored = state.cache.create(&key, target.to_stored(object).await?).await;
        let stored = stored.map_err(|error| target.storage_error(name, error))?;
        if let Some(claim) = claim {
            claim.keep().await;
        }
        target.shown(&stored).await
    }
}

/// Whether a value has more bytes of text than are `left`.
fn exceeds(value: &Value, left: &mut usize) -> bool {
    fn spend(left: &mut usize, bytes: usize) -> bool {
        let rest = left.checked_sub(bytes);
        *left = rest.unwrap_or(0);
        rest.is_none()
    }
    match value {
        Value::String(text) => spend(left, text.len()),
        Value::Array(items) => items.iter().any(|item| spend(left, 1) || exceeds(item, left)),
        Value::Object(entries) => {
            entries.iter().any(|(name, value)| spend(left, name.len() + 1) || exceeds(value, left))
        }
        _ => spend(left, 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_large_objects_exceed() {
        let value = serde_json::json!({"ab": ["cd", 1, {"e": "f"}]});
        let size = 3 + (1 + 2) + (1 + 1) + (1 + 2 + 1);
        assert!(!exceeds(&value, &mut size.clone()));
        assert!(exceeds(&value, &mut (size - 1)));
    }

    #[test]
    fn generated_names_keep_58_characters_and_add_five() {
        assert_eq!(generate_name(&"a".repeat(100)).len(), 63);
        let name = generate_name("web-");
        assert!(name.starts_with("web-") && name.len() == 9, "{name}");
        assert_ne!(generate_name("x"), generate_name("x"));
    }
}
