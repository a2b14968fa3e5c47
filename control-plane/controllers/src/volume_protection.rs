//! PV, PVC and VolumeAttributesClass protection: a claim that a pod uses, a volume that a claim has, and a class that
//! either names, stay until that ends.
//!
//! Three controllers of one shape: an object carries a finalizer from its creation; it is taken off an object that is being
//! deleted once nothing uses it. The stores only say where to look: before a claim is let go, the pods are read from the API.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::VolumeAttributesClass;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;

use crate::cluster::Cluster;
use crate::queue::Queue;
use crate::reconcile::{Next, Reconcile, Result, found};
use crate::store::{Key, Store};

const CLAIM_FINALIZER: &str = "kubernetes.io/pvc-protection";
const VOLUME_FINALIZER: &str = "kubernetes.io/pv-protection";
const CLASS_FINALIZER: &str = "kubernetes.io/vac-protection";

/// Protects claims that pods use.
pub struct Claims {
    cluster: Arc<Cluster>,
}

/// Protects volumes that claims have.
pub struct Volumes {
    cluster: Arc<Cluster>,
}

/// Protects VolumeAttributesClasses that claims or volumes name.
pub struct Classes {
    cluster: Arc<Cluster>,
}

/// Makes the controller of claims and the queue that feeds it.
pub fn claims(cluster: &Arc<Cluster>) -> (Arc<Claims>, Arc<Queue>) {
    let queue = Arc::new(Queue::default());
    let dirty = queue.clone();
    cluster.persistent_volume_claims.subscribe(move |_, new| {
        if let Some(claim) = new.filter(|claim| wants(&***claim, CLAIM_FINALIZER)) {
            dirty.add(Key::of(&**claim));
        }
    });
    let dirty = queue.clone();
    cluster.pods.subscribe(move |old, new| {
        // A pod's volumes never change: only the end of a pod can free a claim.
        let Some(pod) = old.filter(|old| new.is_none_or(|new| new.metadata.uid != old.metadata.uid)) else {
            return;
        };
        for claim in claims_of(pod) {
            dirty.add(Key::new(pod.namespace().unwrap_or_default(), claim));
        }
    });
    (Arc::new(Claims { cluster: cluster.clone() }), queue)
}

/// Makes the controller of volumes and the queue that feeds it.
pub fn volumes(cluster: &Arc<Cluster>) -> (Arc<Volumes>, Arc<Queue>) {
    let queue = Arc::new(Queue::default());
    let dirty = queue.clone();
    cluster.persistent_volumes.subscribe(move |_, new| {
        if let Some(volume) = new.filter(|volume| wants(&***volume, VOLUME_FINALIZER)) {
            dirty.add(Key::of(&**volume));
        }
    });
    (Arc::new(Volumes { cluster: cluster.clone() }), queue)
}

/// Makes the controller of VolumeAttributesClasses and the queue that feeds it.
pub fn classes(cluster: &Arc<Cluster>) -> (Arc<Classes>, Arc<Queue>) {
    let queue = Arc::new(Queue::default());
    let dirty = queue.clone();
    cluster.volume_attributes_classes.subscribe(move |_, new| {
        if let Some(class) = new.filter(|class| wants(&***class, CLASS_FINALIZER)) {
            dirty.add(Key::of(&**class));
        }
    });
    // A class can only be freed by what no longer names it.
    let dirty = queue.clone();
    cluster.persistent_volume_claims.subscribe(move |old, new| {
        let (old, new) = (old.map(|claim| classes_of_claim(claim)), new.map(|claim| classes_of_claim(claim)));
        for class in old.unwrap_or_default().difference(&new.unwrap_or_default()) {
            dirty.add(Key::cluster(class.as_str()));
        }
    });
    let dirty = queue.clone();
    cluster.persistent_volumes.subscribe(move |old, new| {
        let (old, new) =
            (old.and_then(|volume| class_of_volume(volume)), new.and_then(|volume| class_of_volume(volume)));
        if let Some(class) = old.filter(|old| new != Some(old)) {
            dirty.add(Key::cluster(class));
        }
    });
    (Arc::new(Classes { cluster: cluster.clone() }), queue)
}

/// The VolumeAttributesClasses that a claim wants, has, or is on its way to.
fn classes_of_claim(claim: &PersistentVolumeClaim) -> BTreeSet<String> {
    let status = claim.status.as_ref();
    let modified = status.and_then(|status| status.modify_volume_status.as_ref());
    let names = [
        claim.spec.as_ref().and_then(|spec| spec.volume_attributes_class_name.as_ref()),
        status.and_then(|status| status.current_volume_attributes_class_name.as_ref()),
        modified.and_then(|modified| modified.target_volume_attributes_class_name.as_ref()),
    ];
    names.into_iter().flatten().filter(|name| !name.is_empty()).cloned().collect()
}

fn class_of_volume(volume: &PersistentVolume) -> Option<&str> {
    let name = volume.spec.as_ref()?.volume_attributes_class_name.as_deref()?;
    (!name.is_empty()).then_some(name)
}

/// Whether an object's finalizer is to be put on, or may have to be taken off.
fn wants<K: Resource>(object: &K, finalizer: &str) -> bool {
    let has = object.finalizers().iter().any(|held| held == finalizer);
    object.meta().deletion_timestamp.is_some() == has
}

/// The claims that a pod names, those made for its ephemeral volumes included.
fn claims_of(pod: &Pod) -> BTreeSet<String> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let claims = volumes.filter_map(|volume| match (&volume.persistent_volume_claim, &volume.ephemeral) {
        (Some(source), _) => Some(source.claim_name.clone()),
        (None, Some(_)) => Some(format!("{}-{}", pod.name_any(), volume.name)),
        (None, None) => None,
    });
    claims.collect()
}

/// A node may hold the claim of a pod that is bound to it; a pod without a node cannot start with a claim that ends.
fn uses(pod: &Pod, claim: &str) -> bool {
    crate::pods::node_name(pod).is_some() && claims_of(pod).contains(claim)
}

/// The object's finalizers with this one among them, or without it.
fn finalizers_with<K: Resource>(object: &K, finalizer: &str, on: bool) -> Vec<String> {
    let mut finalizers = object.finalizers().to_vec();
    finalizers.retain(|held| held != finalizer);
    if on {
        finalizers.push(finalizer.to_owned());
    }
    finalizers
}

/// Writes `finalizers` of exactly this version of the object.
async fn set_finalizer<K>(api: &Api<K>, store: &Store<K>, object: &K, finalizer: &str, on: bool) -> Result<()>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    let finalizers = finalizers_with(object, finalizer, on);
    let metadata = serde_json::json!({
        "uid": object.uid(),
        "resourceVersion": object.resource_version(),
        "finalizers": finalizers,
    });
    let patch = Patch::Merge(serde_json::json!({ "metadata": metadata }));
    let written = found(api.patch(&object.name_any(), &PatchParams::default(), &patch).await)?;
    // The last finalizer takes the object with it.
    let Some(written) = written.filter(|_| on || !finalizers.is_empty()) else { return Ok(()) };
    store.observe(&written);
    Ok(())
}

impl Reconcile for Claims {
    const NAME: &'static str = "pvc-protection-controller";

    async fn reconcile(&self, key: &Key) -> Result {
        let Some(claim) = self.cluster.persistent_volume_claims.get(key) else { return Ok(Next::Change) };
        if !wants(&*claim, CLAIM_FINALIZER) {
            return Ok(Next::Change);
        }
        let api = Api::<PersistentVolumeClaim>::namespaced(self.cluster.client.clone(), &key.namespace);
        let ends = claim.metadata.deletion_timestamp.is_some();
        if ends {
            let known = self.cluster.pods.in_namespace(&key.namespace);
            if known.iter().any(|pod| uses(pod, &key.name)) {
                return Ok(Next::Change);
            }
            let pods = Api::<Pod>::namespaced(self.cluster.client.clone(), &key.namespace);
            if pods.list(&ListParams::default()).await?.items.iter().any(|pod| uses(pod, &key.name)) {
                return Ok(Next::Change);
            }
        }
        set_finalizer(&api, &self.cluster.persistent_volume_claims, &claim, CLAIM_FINALIZER, !ends).await?;
        Ok(Next::Change)
    }
}

impl Reconcile for Volumes {
    const NAME: &'static str = "pv-protection-controller";

    async fn reconcile(&self, key: &Key) -> Result {
        let Some(volume) = self.cluster.persistent_volumes.get(key) else { return Ok(Next::Change) };
        if !wants(&*volume, VOLUME_FINALIZER) {
            return Ok(Next::Change);
        }
        let ends = volume.metadata.deletion_timestamp.is_some();
        let bound = volume.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound");
        if ends && bound {
            return Ok(Next::Change);
        }
        let api = Api::<PersistentVolume>::all(self.cluster.client.clone());
        set_finalizer(&api, &self.cluster.persistent_volumes, &volume, VOLUME_FINALIZER, !ends).await?;
        Ok(Next::Change)
    }
}

impl Reconcile for Classes {
    const NAME: &'static str = "volumeattributesclass-protection-controller";

    async fn reconcile(&self, key: &Key) -> Result {
        let store = &self.cluster.volume_attributes_classes;
        let Some(class) = store.get(key) else { return Ok(Next::Change) };
        if !wants(&*class, CLASS_FINALIZER) {
            return Ok(Next::Change);
        }
        let ends = class.metadata.deletion_timestamp.is_some();
        if ends && self.is_used(&key.name).await? {
            return Ok(Next::Change);
        }
        // This controller's account may update classes, not patch them.
        let mut changed = VolumeAttributesClass::clone(&class);
        let finalizers = finalizers_with(&changed, CLASS_FINALIZER, !ends);
        let goes = ends && finalizers.is_empty();
        changed.metadata.finalizers = Some(finalizers);
        let api = Api::<VolumeAttributesClass>::all(self.cluster.client.clone());
        let written = found(api.replace(&key.name, &PostParams::default(), &changed).await)?;
        if let Some(written) = written.filter(|_| !goes) {
            store.observe(&written);
        }
        Ok(Next::Change)
    }
}

impl Classes {
    /// Whether a volume or a claim names the class: of those that are known here, else of those that the API server has, as
    /// news of one may be on its way.
    async fn is_used(&self, name: &str) -> Result<bool> {
        let of_volume = |volume: &PersistentVolume| class_of_volume(volume) == Some(name);
        let of_claim = |claim: &PersistentVolumeClaim| classes_of_claim(claim).contains(name);
        if self.cluster.persistent_volumes.all().iter().any(|volume| of_volume(volume))
            || self.cluster.persistent_volume_claims.all().iter().any(|claim| of_claim(claim))
        {
            return Ok(true);
        }
        let volumes = Api::<PersistentVolume>::all(self.cluster.client.clone());
        let claims = Api::<PersistentVolumeClaim>::all(self.cluster.client.clone());
        Ok(claims.list(&ListParams::default()).await?.items.iter().any(of_claim)
            || volumes.list(&ListParams::default()).await?.items.iter().any(of_volume))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_claim_is_used_by_bound_pods_that_name_it_in_either_way() {
        let pod = |node: Option<&str>| -> Pod {
            serde_json::from_value(json!({
                "metadata": { "name": "web" },
                "spec": { "nodeName": node, "containers": [], "volumes": [
                    { "name": "a", "persistentVolumeClaim": { "claimName": "data" } },
                    { "name": "b", "ephemeral": { "volumeClaimTemplate": { "spec": {} } } },
                    { "name": "c", "emptyDir": {} },
                ] },
            }))
            .expect("a pod")
        };
        let bound = pod(Some("n1"));
        assert!(uses(&bound, "data") && uses(&bound, "web-b"));
        assert!(!uses(&bound, "web-a") && !uses(&bound, "web-c"));
        assert!(!uses(&pod(None), "data"));
    }

    #[test]
    fn a_claim_names_the_classes_that_it_wants_has_and_goes_to() {
        let claim: PersistentVolumeClaim = serde_json::from_value(json!({
            "spec": { "volumeAttributesClassName": "gold" },
            "status": {
                "currentVolumeAttributesClassName": "silver",
                "modifyVolumeStatus": { "targetVolumeAttributesClassName": "bronze", "status": "InProgress" },
            },
        }))
        .expect("a claim");
        assert_eq!(Vec::from_iter(classes_of_claim(&claim)), ["bronze", "gold", "silver"]);
        let claim = json!({ "spec": { "volumeAttributesClassName": "" }, "status": {} });
        let claim: PersistentVolumeClaim = serde_json::from_value(claim).expect("a claim");
        assert!(classes_of_claim(&claim).is_empty());
    }

    #[test]
    fn a_finalizer_is_wanted_on_the_living_and_off_the_dying() {
        let object = |finalizers: &[&str], deleting: bool| -> PersistentVolume {
            let at = deleting.then_some("2026-01-01T00:00:00Z");
            serde_json::from_value(
                json!({ "metadata": { "finalizers": finalizers, "deletionTimestamp": at } }),
            )
            .expect("a volume")
        };
        assert!(wants(&object(&[], false), VOLUME_FINALIZER));
        assert!(wants(&object(&[VOLUME_FINALIZER], true), VOLUME_FINALIZER));
        assert!(!wants(&object(&[VOLUME_FINALIZER], false), VOLUME_FINALIZER));
        assert!(!wants(&object(&["other"], true), VOLUME_FINALIZER));
    }
}
