//! Owners and their dependents on the wire: adopting, releasing, and finding whom a change concerns.

use std::fmt::Debug;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{Patch, PatchParams};
use kube::core::{NamespaceResourceScope, Selector};
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;

use crate::cluster::Cluster;
use crate::pods::{self, Claim};
use crate::queue::Queue;
use crate::reconcile::{Result, found};
use crate::store::{Key, Store, owner_uid};

/// Marks as dirty whom a change of `old` into `new` concerns: both controllers, or for an orphan everyone who selects it.
pub fn enqueue_owners<K, O>(
    queue: &Queue,
    owners: &Store<O>,
    old: Option<&Arc<K>>,
    new: Option<&Arc<K>>,
    selector: impl Fn(&O) -> Option<Selector>,
) where
    K: Resource,
    O: Resource<DynamicType = ()>,
{
    let reference = |object: &Arc<K>| {
        let owners = object.meta().owner_references.as_deref().unwrap_or_default();
        let owner =
            owners.iter().find(|owner| owner.controller == Some(true) && owner.kind == O::kind(&()))?;
        Some(Key::new(object.namespace().unwrap_or_default(), owner.name.clone()))
    };
    for key in [old, new].into_iter().flatten().filter_map(reference) {
        queue.add(key);
    }
    let Some(orphan) = new.filter(|object| owner_uid(&***object).is_none()) else { return };
    let unchanged = old.is_some_and(|old| old.labels() == orphan.labels() && owner_uid(&**old).is_none());
    if unchanged {
        return;
    }
    for owner in owners.in_namespace(&orphan.namespace().unwrap_or_default()) {
        if selector(&owner)
            .is_some_and(|selector| !selector.selects_all() && pods::selects(&selector, &**orphan))
        {
            queue.add(Key::of(&*owner));
        }
    }
}

/// Adopts and releases pods as the owner's selector says, and returns the pods that are its own now.
pub async fn claim_pods<O>(
    cluster: &Cluster,
    owners: &Api<O>,
    owner: &O,
    selector: &Selector,
) -> Result<Vec<Arc<Pod>>>
where
    O: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
{
    let api = Api::<Pod>::namespaced(cluster.client.clone(), &owner.namespace().unwrap_or_default());
    claim(&cluster.pods, &api, owners, owner, selector).await
}

/// Adopts and releases objects of `store` as the owner's selector says, and returns those that are its own now.
pub async fn claim<K, O>(
    store: &Store<K>,
    api: &Api<K>,
    owners: &Api<O>,
    owner: &O,
    selector: &Selector,
) -> Result<Vec<Arc<K>>>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
    O: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    let uid = owner.uid().unwrap_or_default();
    let terminating = owner.meta().deletion_timestamp.is_some();
    let candidates = store.in_namespace(&owner.namespace().unwrap_or_default());
    let Claim { mut owned, adopt, release } = pods::claim(&uid, terminating, selector, candidates);
    for object in release {
        let mut references = object.owner_references().to_vec();
        references.retain(|reference| reference.uid != uid);
        if let Some(object) = write_references(api, &*object, references).await? {
            store.observe(&object);
        }
    }
    if adopt.is_empty() || !is_alive(owners, owner).await? {
        return Ok(owned);
    }
    for object in adopt {
        let mut references = object.owner_references().to_vec();
        references.push(pods::controller_reference(owner));
        if let Some(object) = write_references(api, &*object, references).await? {
            store.observe(&object);
            owned.push(Arc::new(object));
        }
    }
    Ok(owned)
}

/// The store may lag: an owner deleted and made anew under the same name must not adopt in its predecessor's name.
async fn is_alive<O>(owners: &Api<O>, owner: &O) -> Result<bool>
where
    O: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    let live = owners.get_opt(&owner.name_any()).await?;
    Ok(live.is_some_and(|live| live.uid() == owner.uid() && live.meta().deletion_timestamp.is_none()))
}

async fn write_references<K>(api: &Api<K>, object: &K, references: Vec<OwnerReference>) -> Result<Option<K>>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    let patch = serde_json::json!({ "metadata": {
        "uid": object.uid(),
        "resourceVersion": object.resource_version(),
        "ownerReferences": references,
    }});
    found(api.patch(&object.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await)
}
