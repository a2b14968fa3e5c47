//! Garbage collector: deletes objects whose owners are gone, and carries out foreground and orphaning deletion.
//!
//! It watches the metadata of every resource that can be listed, watched and deleted, as discovery tells, into a [`Graph`]
//! of owner references. The graph only says where to look: before anything is deleted, the object and any owner that the
//! graph does not know are read from the API and compared by uid.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams, Preconditions, PropagationPolicy};
use kube::core::{ApiResource, PartialObjectMeta};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::discovery::{Served, discover};
use crate::events::{Recorder, Severity};
use crate::queue::Queue;
use crate::reconcile::{self, Error, Next, Reconcile, Result, found};
use crate::store::Key;

pub mod graph;

use graph::{Action, Dirty, FOREGROUND, Graph, Identity, ORPHAN, Object, Standing, decide};

const DISCOVERY_PERIOD: Duration = Duration::from_secs(30);
/// A new kind is served a moment after its definition changed, and definitions often come in numbers.
const SETTLING_TIME: Duration = Duration::from_millis(200);
/// Groups whose objects decide which resources are served.
const DEFINING: [&str; 2] = ["apiextensions.k8s.io", "apiregistration.k8s.io"];
/// What expires by itself and owns nothing.
const IGNORED: [(&str, &str); 2] = [("", "events"), ("events.k8s.io", "events")];

/// What the rest of the controllers may know from the collector: how many objects of any resource a namespace has.
pub struct Collector {
    client: Client,
    events: Recorder,
    listeners: RwLock<Vec<Listener>>,
    /// Rung when the set of served resources may have changed.
    refresh: Notify,
    graph: Mutex<Graph>,
    delete: Arc<Queue>,
    orphan: Arc<Queue>,
    /// Resources by apiVersion and kind, and whether they are namespaced.
    resources: Mutex<BTreeMap<(String, String), (ApiResource, bool)>>,
}

type Listener = Box<dyn Fn(&ApiResource, &str) + Send + Sync>;

impl Collector {
    /// A collector that knows nothing yet; see [`run`].
    pub fn new(client: Client, events: Recorder) -> Arc<Self> {
        Arc::new(Self {
            client,
            events,
            listeners: RwLock::default(),
            refresh: Notify::new(),
            graph: Mutex::default(),
            delete: Arc::default(),
            orphan: Arc::default(),
            resources: Mutex::default(),
        })
    }

    /// How many objects of a resource a namespace has; `None` while that is unknown.
    pub fn count(&self, group: &str, plural: &str, namespace: &str) -> Option<usize> {
        self.graph().count(group, plural, namespace)
    }

    /// Calls `listener` with the resource and namespace of which a count changed; the empty namespace is all of them.
    pub fn subscribe(&self, listener: impl Fn(&ApiResource, &str) + Send + Sync + 'static) {
        self.listeners.write().unwrap_or_else(PoisonError::into_inner).push(Box::new(listener));
    }

    fn counted(&self, resource: &ApiResource, namespace: &str) {
        let listeners = self.listeners.read().unwrap_or_else(PoisonError::into_inner);
        listeners.iter().for_each(|listener| listener(resource, namespace));
    }

    fn graph(&self) -> MutexGuard<'_, Graph> {
        self.graph.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enqueue(&self, dirty: Dirty) {
        dirty.delete.into_iter().for_each(|uid| self.delete.add(Key::cluster(uid)));
        dirty.orphan.into_iter().for_each(|uid| self.orphan.add(Key::cluster(uid)));
    }

    fn api(&self, identity: &Identity) -> Api<DynamicObject> {
        match identity.namespace.as_str() {
            "" => Api::all_with(self.client.clone(), &identity.resource),
            namespace => Api::namespaced_with(self.client.clone(), namespace, &identity.resource),
        }
    }

    fn resource_of(&self, api_version: &str, kind: &str) -> Option<(ApiResource, bool)> {
        let resources = self.resources.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(exact) = resources.get(&(api_version.to_owned(), kind.to_owned())) {
            return Some(exact.clone());
        }
        // A reference may name another version of the group than the preferred one.
        let group = api_version.rsplit_once('/').map_or("", |(group, _)| group);
        resources.values().find(|(resource, _)| resource.group == group && resource.kind == kind).cloned()
    }
}

/// Runs the collector until `cancel` is cancelled.
pub async fn run(shared: Arc<Collector>, cancel: CancellationToken) {
    let mut monitors = Monitors { shared: shared.clone(), running: BTreeMap::new(), cancel: cancel.clone() };
    let mut started = false;
    let mut workers = tokio::task::JoinSet::new();
    let mut pause = Duration::ZERO;
    loop {
        tokio::select! {
            () = cancel.cancelled() => break,
            () = tokio::time::sleep(pause) => {}
            () = shared.refresh.notified() => tokio::time::sleep(SETTLING_TIME).await,
        }
        pause = DISCOVERY_PERIOD;
        match discover(&shared.client).await {
            Ok(discovered) => monitors.update(discovered.served, discovered.failures.is_empty()),
            Err(error) => {
                tracing::debug!(%error, "cannot discover resources");
                pause = Duration::from_secs(1);
                continue;
            }
        }
        if !started && monitors.wait_synced().await {
            started = true;
            let (deleter, orphaner) = (Arc::new(Deleter(shared.clone())), Arc::new(Orphaner(shared.clone())));
            workers.spawn(reconcile::work(deleter, shared.delete.clone(), 8, cancel.clone()));
            workers.spawn(reconcile::work(orphaner, shared.orphan.clone(), 2, cancel.clone()));
        }
    }
    workers.join_all().await;
}

struct Monitors {
    shared: Arc<Collector>,
    running: BTreeMap<String, (CancellationToken, tokio::sync::watch::Receiver<bool>)>,
    cancel: CancellationToken,
}

impl Monitors {
    /// Starts watching new resources; stops watching those that are served no longer, if discovery was `complete`.
    fn update(&mut self, served: Vec<Served>, complete: bool) {
        // The version is part of it: a kind may come to be served at another version only.
        let name = |served: &Served| format!("{}/{}", served.resource.api_version, served.resource.plural);
        let collectable = |served: &&Served| {
            let watched = ["list", "watch", "delete"].iter().all(|verb| served.verbs.contains(*verb));
            watched && !IGNORED.contains(&(served.resource.group.as_str(), served.resource.plural.as_str()))
        };
        *self.shared.resources.lock().unwrap_or_else(PoisonError::into_inner) = served
            .iter()
            .map(|served| {
                let resource = &served.resource;
                ((resource.api_version.clone(), resource.kind.clone()), (resource.clone(), served.namespaced))
            })
            .collect();
        let names: HashSet<String> = served.iter().map(name).collect();
        if complete {
            self.running.retain(|name, (stop, _)| {
                let keep = names.contains(name);
                if !keep {
                    stop.cancel();
                }
                keep
            });
        }
        for served in served.iter().filter(collectable) {
            self.running.entry(name(served)).or_insert_with(|| {
                let stop = self.cancel.child_token();
                let (synced, receiver) = tokio::sync::watch::channel(false);
                tokio::spawn(monitor(self.shared.clone(), served.resource.clone(), synced, stop.clone()));
                (stop, receiver)
            });
        }
    }

    /// Whether all monitors have their first list; gives up after a while, to be asked again.
    async fn wait_synced(&mut self) -> bool {
        let all = async {
            for (_, receiver) in self.running.values_mut() {
                let _ = receiver.wait_for(|synced| *synced).await;
            }
        };
        tokio::select! {
            () = self.cancel.cancelled() => false,
            result = tokio::time::timeout(DISCOVERY_PERIOD, all) => result.is_ok(),
        }
    }
}

async fn monitor(
    shared: Arc<Collector>,
    resource: ApiResource,
    synced: tokio::sync::watch::Sender<bool>,
    stop: CancellationToken,
) {
    let api = Api::<PartialObjectMeta<DynamicObject>>::all_with(shared.client.clone(), &resource);
    let mut events = std::pin::pin!(watcher::watcher(api, watcher::Config::default()).default_backoff());
    let mut listed = HashSet::new();
    loop {
        let event = tokio::select! {
            () = stop.cancelled() => return,
            event = events.next() => event,
        };
        match event {
            Some(Ok(event)) => take_in(&shared, &resource, event, &mut listed, &synced),
            Some(Err(error)) => tracing::debug!(resource = resource.plural, %error, "watch interrupted"),
            None => return,
        }
    }
}

fn take_in(
    shared: &Collector,
    resource: &ApiResource,
    event: watcher::Event<PartialObjectMeta<DynamicObject>>,
    listed: &mut HashSet<String>,
    synced: &tokio::sync::watch::Sender<bool>,
) {
    let set = |object: &PartialObjectMeta<DynamicObject>| {
        let uid = object.uid().unwrap_or_default();
        let (dirty, is_new) = {
            let mut graph = shared.graph();
            let is_new = graph.get(&uid).is_none();
            (graph.set(&uid, Object::new(resource, &object.metadata)), is_new)
        };
        shared.enqueue(dirty);
        if is_new && *synced.borrow() {
            shared.counted(resource, &object.namespace().unwrap_or_default());
        }
        uid
    };
    if DEFINING.contains(&resource.group.as_str()) && *synced.borrow() {
        shared.refresh.notify_one();
    }
    match event {
        watcher::Event::Init => listed.clear(),
        watcher::Event::InitApply(object) => _ = listed.insert(set(&object)),
        watcher::Event::InitDone => {
            let dirty = shared.graph().retain(resource, listed);
            shared.enqueue(dirty);
            listed.clear();
            synced.send_replace(true);
            shared.counted(resource, "");
        }
        watcher::Event::Apply(object) => _ = set(&object),
        watcher::Event::Delete(object) => {
            let dirty = shared.graph().remove(&object.uid().unwrap_or_default());
            shared.enqueue(dirty);
            shared.counted(resource, &object.namespace().unwrap_or_default());
        }
    }
}

/// Looks at objects that may have lost their owners.
struct Deleter(Arc<Collector>);

impl Reconcile for Deleter {
    const NAME: &'static str = "generic-garbage-collector";

    async fn reconcile(&self, key: &Key) -> Result {
        let uid = &key.name;
        let Some(object) = self.0.graph().get(uid).cloned() else { return Ok(Next::Change) };
        if object.deleting && !object.foreground {
            return Ok(Next::Change);
        }
        let api = self.0.api(&object.identity);
        let live = found(api.get_metadata(&object.identity.name).await)?;
        let Some(live) = live.filter(|live| live.uid().as_deref() == Some(uid)) else {
            let dirty = self.0.graph().remove(uid);
            self.0.enqueue(dirty);
            return Ok(Next::Change);
        };
        if object.foreground {
            return self.finish_foreground(uid, &api, &live.metadata).await;
        }
        let mut owners = Vec::new();
        for owner in live.owner_references() {
            owners.push((owner.uid.clone(), self.standing(owner, uid, &object.identity).await?));
        }
        let (has_dependents, in_cycle) = {
            let dependents = self.0.graph().dependents(uid);
            (!dependents.is_empty(), dependents.iter().any(|(_, dependent)| dependent.foreground))
        };
        match decide(&owners, has_dependents, in_cycle) {
            Action::Keep => {}
            Action::Unlink(gone) => unlink(&api, &live.metadata, &gone).await?,
            Action::Foreground { unblock } => {
                let meta =
                    if unblock { unblock_owners(&api, &live.metadata).await? } else { Some(live.metadata) };
                if let Some(meta) = meta {
                    delete(&api, &meta, PropagationPolicy::Foreground).await?;
                }
            }
            Action::Delete => {
                let has = |finalizer: &str| live.finalizers().iter().any(|held| held == finalizer);
                let policy = match () {
                    () if has(ORPHAN) => PropagationPolicy::Orphan,
                    () if has(FOREGROUND) => PropagationPolicy::Foreground,
                    () => PropagationPolicy::Background,
                };
                tracing::debug!(
                    kind = object.identity.resource.kind,
                    name = object.identity.name,
                    "collecting an object"
                );
                delete(&api, &live.metadata, policy).await?;
            }
        }
        Ok(Next::Change)
    }
}

impl Deleter {
    async fn finish_foreground(&self, uid: &str, api: &Api<DynamicObject>, meta: &ObjectMeta) -> Result {
        let blocking = self.0.graph().blocking(uid);
        if blocking.is_empty() {
            remove_finalizer(api, meta, FOREGROUND).await?;
            return Ok(Next::Change);
        }
        for (dependent, object) in blocking {
            if !object.deleting {
                self.0.delete.add(Key::cluster(dependent));
            }
        }
        Ok(Next::Change)
    }

    /// An owner that the graph does not know is looked up live: its watch may be behind, or its kind not watched.
    async fn standing(&self, owner: &OwnerReference, uid: &str, dependent: &Identity) -> Result<Standing> {
        let namespace = dependent.namespace.as_str();
        if self.0.graph().is_gone(&owner.uid) {
            return Ok(Standing::Dangling);
        }
        let Some((resource, namespaced)) = self.0.resource_of(&owner.api_version, &owner.kind) else {
            return Err(Error::Waiting(format!("the API serves no {} of {}", owner.kind, owner.api_version)));
        };
        let known = self.0.graph().get(&owner.uid).cloned();
        if namespaced && known.as_ref().is_some_and(|known| known.identity.namespace != namespace) {
            self.report_elsewhere(owner, uid, dependent);
        }
        if namespaced && namespace.is_empty() {
            return Ok(Standing::Unresolvable);
        }
        if let Some(known) = known.filter(|known| !namespaced || known.identity.namespace == namespace) {
            return Ok(if known.foreground { Standing::Waiting } else { Standing::Solid });
        }
        let namespace = if namespaced { namespace } else { "" };
        let identity = Identity { resource, namespace: namespace.to_owned(), name: owner.name.clone() };
        let live = found(self.0.api(&identity).get_metadata(&owner.name).await)?;
        match live.filter(|live| live.uid().as_ref() == Some(&owner.uid)) {
            None => {
                // Only this namespace was asked; the same uid may well live in another one.
                if self.0.graph().get(&owner.uid).is_none() {
                    self.0.graph().set_gone(&owner.uid);
                }
                Ok(Standing::Dangling)
            }
            Some(live) if Object::new(&identity.resource, &live.metadata).foreground => Ok(Standing::Waiting),
            Some(_) => Ok(Standing::Solid),
        }
    }
}

impl Deleter {
    fn report_elsewhere(&self, owner: &OwnerReference, uid: &str, dependent: &Identity) {
        let involved = ObjectReference {
            api_version: Some(dependent.resource.api_version.clone()),
            kind: Some(dependent.resource.kind.clone()),
            namespace: Some(dependent.namespace.clone()).filter(|namespace| !namespace.is_empty()),
            name: Some(dependent.name.clone()),
            uid: Some(uid.to_owned()),
            ..ObjectReference::default()
        };
        let OwnerReference { api_version, kind, name, uid, .. } = owner;
        let namespace = &dependent.namespace;
        let message = format!(
            "ownerRef [{api_version}/{kind}, namespace: {namespace}, name: {name}, uid: {uid}] does not exist in namespace \
             {namespace:?}"
        );
        self.0.events.report_about(
            "garbage-collector-controller",
            involved,
            Severity::Warning,
            "OwnerRefInvalidNamespace",
            message,
        );
    }
}

/// Releases the dependents of objects that are deleted with propagation Orphan.
struct Orphaner(Arc<Collector>);

impl Reconcile for Orphaner {
    const NAME: &'static str = "generic-garbage-collector-orphan";

    async fn reconcile(&self, key: &Key) -> Result {
        let uid = &key.name;
        let Some(object) = self.0.graph().get(uid).cloned().filter(|object| object.orphaning) else {
            return Ok(Next::Change);
        };
        let dependents = self.0.graph().dependents(uid);
        for (_, dependent) in dependents {
            let api = self.0.api(&dependent.identity);
            if let Some(live) = found(api.get_metadata(&dependent.identity.name).await)? {
                unlink(&api, &live.metadata, std::slice::from_ref(uid)).await?;
            }
        }
        let api = self.0.api(&object.identity);
        let live = found(api.get_metadata(&object.identity.name).await)?;
        if let Some(live) = live.filter(|live| live.uid().as_deref() == Some(uid)) {
            remove_finalizer(&api, &live.metadata, ORPHAN).await?;
        }
        Ok(Next::Change)
    }
}

async fn delete(api: &Api<DynamicObject>, meta: &ObjectMeta, policy: PropagationPolicy) -> Result<()> {
    let preconditions =
        Preconditions { uid: meta.uid.clone(), resource_version: meta.resource_version.clone() };
    let params = DeleteParams {
        propagation_policy: Some(policy),
        preconditions: Some(preconditions),
        ..DeleteParams::default()
    };
    found(api.delete(meta.name.as_deref().unwrap_or_default(), &params).await)?;
    Ok(())
}

async fn unlink(api: &Api<DynamicObject>, meta: &ObjectMeta, gone: &[String]) -> Result<()> {
    let owners: Vec<_> =
        meta.owner_references.iter().flatten().filter(|owner| !gone.contains(&owner.uid)).collect();
    if owners.len() == meta.owner_references.iter().flatten().count() {
        return Ok(());
    }
    patch(api, meta, serde_json::json!({ "ownerReferences": owners })).await.map(|_| ())
}

async fn unblock_owners(api: &Api<DynamicObject>, meta: &ObjectMeta) -> Result<Option<ObjectMeta>> {
    let mut owners = meta.owner_references.clone().unwrap_or_default();
    owners.iter_mut().for_each(|owner| owner.block_owner_deletion = Some(false));
    patch(api, meta, serde_json::json!({ "ownerReferences": owners })).await
}

async fn remove_finalizer(api: &Api<DynamicObject>, meta: &ObjectMeta, finalizer: &str) -> Result<()> {
    let finalizers: Vec<_> = meta.finalizers.iter().flatten().filter(|held| *held != finalizer).collect();
    if finalizers.len() == meta.finalizers.iter().flatten().count() {
        return Ok(());
    }
    patch(api, meta, serde_json::json!({ "finalizers": finalizers })).await.map(|_| ())
}

/// Merges `fields` into the metadata of exactly this version of the object.
async fn patch(
    api: &Api<DynamicObject>,
    meta: &ObjectMeta,
    mut fields: serde_json::Value,
) -> Result<Option<ObjectMeta>> {
    fields["uid"] = serde_json::json!(meta.uid);
    fields["resourceVersion"] = serde_json::json!(meta.resource_version);
    let patch = Patch::Merge(serde_json::json!({ "metadata": fields }));
    let name = meta.name.as_deref().unwrap_or_default();
    let written = found(api.patch_metadata(name, &PatchParams::default(), &patch).await)?;
    Ok(written.map(|written| written.metadata))
}
