//! Custom kinds: what CustomResourceDefinitions make the server serve.
//!
//! ```text
//! definition changes ─> names (pure) ─> kinds, discovery, OpenAPI are published ─> status is written
//! definition deleted ─> all objects of the kind are deleted ─> finalizer is removed
//! ```
//!
//! Level-triggered: each round looks at all definitions; what did not change is kept as it was made.

mod cleanup;
mod columns;
pub mod definition;
mod form;
pub mod jsonpath;
mod naming;
mod strategy;

use std::{
    collections::{BTreeMap, HashSet},
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Arc, Mutex, PoisonError, Weak},
};

use api::{meta, openapi::Published, schema::Resource, status::Status};
use futures::StreamExt as _;
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    handlers::{Target, now, own::OwnUpdate},
    kinds::Custom,
    registry::crd::{CLEANUP_FINALIZER, copy_conditions, is_true},
    security::{GROUP_MASTERS, Identity},
    state::State,
    storage::{
        Revision,
        cache::{Delivery, Object},
        keys,
    },
};

const GROUP: &str = "apiextensions.k8s.io";
const PLURAL: &str = "customresourcedefinitions";
/// The conditions that a round decides.
const OWN_CONDITIONS: [&str; 3] = ["NamesAccepted", "Established", "KubernetesAPIApprovalPolicyConformant"];

fn identity() -> Identity {
    Identity::internal("system:apiserver", &[GROUP_MASTERS])
}

fn definitions_target(state: &State) -> Option<Target> {
    state.kinds.find(GROUP, "v1", PLURAL)
}

/// What was made of one definition.
struct Known {
    /// What the kinds depend on: identity, generation, accepted names, whether it is being deleted.
    outline: Value,
    revision: Revision,
    /// Without schemas.
    value: Arc<Value>,
    kinds: Vec<Arc<Custom>>,
    /// What watches of these kinds depend on: identity, spec, accepted names.
    serving: Value,
    ended: CancellationToken,
}

/// Follows the definitions.
pub struct Registrar {
    /// Held only while a round lasts: the store is closed when the server ends.
    state: Weak<State>,
    known: BTreeMap<String, Known>,
    /// UIDs of definitions whose objects are being deleted.
    cleaning: Arc<Mutex<HashSet<String>>>,
    seen: Option<Revision>,
    /// Of kinds that are no more what they were; cancelled once the kinds that are now are published.
    ended: Vec<CancellationToken>,
}

impl Registrar {
    /// Publishes the kinds that the store has.
    pub async fn start(state: &Arc<State>) -> Self {
        let weak = Arc::downgrade(state);
        let mut registrar = Self {
            state: weak,
            known: BTreeMap::new(),
            cleaning: Arc::default(),
            seen: None,
            ended: Vec::new(),
        };
        registrar.round(state).await;
        registrar
    }

    /// Follows changes until the server stops.
    pub async fn run(mut self) {
        let prefix = keys::resource_prefix(GROUP, PLURAL);
        let Some(stop) = self.state.upgrade().map(|state| state.stop.clone()) else { return };
        while !stop.is_cancelled() {
            let Some(state) = self.state.upgrade() else { return };
            let Ok(mut watch) = state.cache.watch(&prefix, None) else { return };
            self.round(&state).await;
            drop(state);
            loop {
                let delivery = tokio::select! {
                    () = stop.cancelled() => return,
                    delivery = watch.next() => delivery,
                };
                match delivery {
                    Some(Ok(Delivery::Event(_))) => {
                        let Some(state) = self.state.upgrade() else { return };
                        self.round(&state).await;
                    }
                    Some(Ok(Delivery::Bookmark(_))) => {}
                    Some(Err(_)) | None => break,
                }
            }
        }
    }

    /// Looks at every definition once.
    async fn round(&mut self, state: &Arc<State>) {
        let prefix = keys::resource_prefix(GROUP, PLURAL);
        let newest = state.cache.newest(&prefix);
        if self.seen == Some(newest) {
            return;
        }
        self.seen = Some(newest);
        let snapshot = state.cache.list(&prefix);
        let objects: Vec<Arc<Object>> = snapshot.iter().cloned().collect();
        let names: HashSet<&str> = objects.iter().map(|object| object.meta().name.as_str()).collect();
        self.ended.extend(
            self.known.extract_if(.., |name, _| !names.contains(name.as_str())).map(|(_, known)| known.ended),
        );
        let mut has_changed = !self.ended.is_empty();
        let values: Vec<Arc<Value>> = objects.iter().map(|object| self.value(object)).collect();
        let mut accepted: BTreeMap<String, Value> = values
            .iter()
            .map(|value| (meta::name(value).to_owned(), value["status"]["acceptedNames"].clone()))
            .collect();
        let mut writes = Vec::new();
        for (object, value) in objects.iter().zip(values) {
            has_changed |= self.look_at(state, object, value, &mut accepted, &mut writes);
        }
        if has_changed {
            self.publish(state);
        }
        for ended in self.ended.drain(..) {
            ended.cancel();
        }
        for (name, status) in writes {
            write_status(state, &name, status).await;
        }
        for (name, known) in &self.known {
            self.clean(state, name, &known.value);
        }
    }

    fn value(&self, object: &Object) -> Arc<Value> {
        match self.known.get(&object.meta().name) {
            Some(known) if known.revision == object.revision() => Arc::clone(&known.value),
            _ => Arc::new(definition::outline(object.value())),
        }
    }

    /// Whether the kinds of this definition changed. `accepted` are the names of all definitions.
    fn look_at(
        &mut self,
        state: &State,
        object: &Object,
        value: Arc<Value>,
        accepted: &mut BTreeMap<String, Value>,
        writes: &mut Vec<(String, Value)>,
    ) -> bool {
        let name = object.meta().name.clone();
        let group = value["spec"]["group"].as_str().unwrap_or_default();
        let others = accepted.iter().filter(|(other, _)| **other != name);
        let others = others.filter(|(other, _)| other.split_once('.').is_some_and(|(_, of)| of == group));
        let others: Vec<&Value> = others.map(|(_, names)| names).collect();
        let decided = naming::decide(&value, &others, &now());
        let value = match decided {
            None => value,
            Some(status) => {
                accepted.insert(name.clone(), status["acceptedNames"].clone());
                writes.push((name.clone(), status.clone()));
                let mut value = (*value).clone();
                value["status"] = status;
                Arc::new(value)
            }
        };
        let outline = serde_json::json!([
            meta::uid(&value),
            meta::generation(&value),
            value["status"]["acceptedNames"],
            is_true(&value, "Established"),
            meta::deletion_timestamp(&value).is_some(),
        ]);
        let revision = object.revision();
        if let Some(known) = self.known.get_mut(&name)
            && known.outline == outline
        {
            (known.revision, known.value) = (revision, value);
            return false;
        }
        let mut whole = object.value();
        let mut spec = DefaultHasher::new();
        whole["spec"].to_string().hash(&mut spec);
        let serving = serde_json::json!([outline[0], spec.finish(), outline[2]]);
        let before = self.known.remove(&name);
        let ended = match before {
            Some(known) if known.serving == serving => known.ended,
            before => {
                self.ended.extend(before.map(|known| known.ended));
                state.stop.child_token()
            }
        };
        let mut kinds = Vec::new();
        if is_true(&value, "Established") {
            whole["status"] = value["status"].clone();
            kinds = kinds_of(state, &name, &whole, &ended);
        }
        self.known.insert(name, Known { outline, revision, value, kinds, serving, ended });
        true
    }

    fn publish(&self, state: &State) {
        let kinds: Vec<Arc<Custom>> = self.known.values().flat_map(|known| known.kinds.clone()).collect();
        let count = kinds.len();
        state.kinds.publish(kinds);
        let resources = state.kinds.resources();
        let resources: Vec<&Resource> = resources.iter().map(|resource| &**resource).collect();
        state.discovery.publish(&resources);
        state.openapi.forget_custom();
        info!(kinds = count, definitions = self.known.len(), "custom kinds are published");
    }

    /// Begins to delete the objects of a definition that is being deleted.
    fn clean(&self, state: &Arc<State>, name: &str, value: &Arc<Value>) {
        let waits =
            meta::deletion_timestamp(value).is_some() && meta::finalizers(value).contains(&CLEANUP_FINALIZER);
        let uid = meta::uid(value).to_owned();
        let mut cleaning = self.cleaning.lock().unwrap_or_else(PoisonError::into_inner);
        if !waits || !cleaning.insert(uid.clone()) {
            return;
        }
        let (state, name, value) = (Arc::clone(state), name.to_owned(), Arc::clone(value));
        let running = Arc::clone(&self.cleaning);
        tokio::spawn(async move {
            cleanup::run(&state, &name, &value).await;
            running.lock().unwrap_or_else(PoisonError::into_inner).remove(&uid);
        });
    }
}

fn kinds_of(state: &State, name: &str, value: &Value, ended: &CancellationToken) -> Vec<Arc<Custom>> {
    match definition::parse(value) {
        Ok(definition) => definition::kinds(value, &Arc::new(definition), &state.kinds, ended),
        Err(error) => {
            warn!(definition = name, error, "a definition cannot be served");
            Vec::new()
        }
    }
}

/// Writes what the server says of a definition; a definition that changed meanwhile is looked at again anyway.
async fn write_status(state: &State, name: &str, status: Value) {
    let written = update_definition(state, name, &mut |new| {
        new["status"]["acceptedNames"] = status["acceptedNames"].clone();
        copy_conditions(&mut new["status"], &status, &OWN_CONDITIONS);
    })
    .await;
    if let Err(error) = written
        && error.code != 404
    {
        warn!(definition = name, error = error.message, "the status of a definition cannot be written");
    }
}

/// Changes status or metadata of a definition, as the server.
async fn update_definition(
    state: &State,
    name: &str,
    change: &mut (dyn FnMut(&mut Value) + Send),
) -> Result<Value, Status> {
    let target = definitions_target(state).ok_or_else(Status::resource_not_found)?;
    let update = OwnUpdate {
        state,
        user: &identity(),
        target: &target,
        subresource: "status",
        namespace: "",
        name,
        admits: true,
    };
    update.run(change).await
}

/// The custom kinds as OpenAPI shows them; their schemas are read from the store.
pub fn published(state: &State) -> Vec<Published> {
    let prefix = keys::resource_prefix(GROUP, PLURAL);
    let mut values: BTreeMap<String, Value> = BTreeMap::new();
    let mut published = Vec::new();
    let mut customs = state.kinds.customs();
    customs.sort_by_cached_key(|kind| (kind.resource.group.clone(), kind.resource.plural.clone()));
    for kind in customs {
        let name = format!("{}.{}", kind.resource.plural, kind.resource.group);
        let value = values.entry(name.clone()).or_insert_with(|| {
            state.cache.get(&format!("{prefix}{name}")).map(|object| object.value()).unwrap_or_default()
        });
        let versions = value["spec"]["versions"].as_array().into_iter().flatten();
        let Some(version) = versions.into_iter().find(|version| version["name"] == *kind.resource.version)
        else {
            continue;
        };
        let fields = version["selectableFields"].as_array().into_iter().flatten();
        published.push(Published {
            resource: Arc::clone(&kind.resource),
            schema: version["schema"]["openAPIV3Schema"].clone(),
            selectable: fields
                .filter_map(|field| Some(field["jsonPath"].as_str()?.trim_start_matches('.').to_owned()))
                .collect(),
        });
    }
    published
}

/// The groups and versions of custom kinds, each with a text that changes with its content.
pub fn revisions(state: &State) -> BTreeMap<(String, String), String> {
    let mut revisions: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
    for kind in state.kinds.customs() {
        let key = (kind.resource.group.clone(), kind.resource.version.clone());
        revisions.entry(key).or_default().push(format!("{}={}", kind.resource.plural, kind.revision));
    }
    let join = |(key, mut texts): ((String, String), Vec<String>)| {
        texts.sort();
        (key, texts.join(","))
    };
    revisions.into_iter().map(join).collect()
}
