//! ControllerRevisions: the history of templates of StatefulSets and DaemonSets.
//!
//! A revision holds the template as the strategic-merge patch that brings it back, which is what `kubectl rollout undo`
//! sends. Two revisions are the same if their templates are, whatever their names.

use std::fmt::Debug;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use kube::api::{DeleteParams, PostParams};
use kube::core::{NamespaceResourceScope, Selector};
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;

use crate::cluster::Cluster;
use crate::deployment::revisions::template_hash;
use crate::ownership;
use crate::pods;
use crate::reconcile::{Error, Result, found};
use crate::store::Key;

/// On a pod: the name (StatefulSet) or hash (DaemonSet) of the revision it was made from.
pub const REVISION_LABEL: &str = "controller-revision-hash";

/// The revisions of `owner`, oldest first.
pub async fn history<O>(
    cluster: &Cluster,
    owners: &Api<O>,
    owner: &O,
    selector: &Selector,
) -> Result<Vec<Arc<ControllerRevision>>>
where
    O: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
{
    let api =
        Api::<ControllerRevision>::namespaced(cluster.client.clone(), &owner.namespace().unwrap_or_default());
    let mut history = ownership::claim(&cluster.controller_revisions, &api, owners, owner, selector).await?;
    history.sort_by(|a, b| (a.revision, &a.metadata.name).cmp(&(b.revision, &b.metadata.name)));
    Ok(history)
}

/// The revision of the current template, made or renumbered so that it is the newest.
pub async fn ensure<O>(
    cluster: &Cluster,
    owner: &O,
    template: &PodTemplateSpec,
    selector: &Selector,
    history: &[Arc<ControllerRevision>],
) -> Result<ControllerRevision>
where
    O: Resource<DynamicType = ()>,
{
    let namespace = owner.namespace().unwrap_or_default();
    let api = Api::<ControllerRevision>::namespaced(cluster.client.clone(), &namespace);
    let data = patch_of(template);
    let newest = history.last().map_or(0, |last| last.revision);
    if let Some(same) =
        history.iter().rev().find(|known| known.data.as_ref().map(|data| &data.0) == Some(&data))
    {
        if same.revision == newest {
            return Ok((**same).clone());
        }
        let renumbered = ControllerRevision { revision: newest + 1, ..(**same).clone() };
        let written = api.replace(&same.name_any(), &PostParams::default(), &renumbered).await?;
        cluster.controller_revisions.observe(&written);
        return Ok(written);
    }
    for collisions in 0..10 {
        let hash = template_hash(template, (collisions > 0).then_some(collisions));
        let mut labels = template.metadata.as_ref().and_then(|meta| meta.labels.clone()).unwrap_or_default();
        labels.insert(REVISION_LABEL.into(), hash.clone());
        debug_assert!(selector.selects_all() || !labels.is_empty());
        let revision = ControllerRevision {
            metadata: ObjectMeta {
                name: Some(format!("{}-{hash}", owner.name_any())),
                namespace: Some(namespace.clone()),
                labels: Some(labels),
                owner_references: Some(vec![pods::controller_reference(owner)]),
                ..ObjectMeta::default()
            },
            data: Some(RawExtension(data.clone())),
            revision: newest + 1,
        };
        match api.create(&PostParams::default(), &revision).await {
            Ok(created) => {
                cluster.controller_revisions.observe(&created);
                return Ok(created);
            }
            Err(kube::Error::Api(status)) if status.is_already_exists() => {
                let live = api.get(&revision.name_any()).await?;
                if live.data.as_ref().map(|data| &data.0) == Some(&data)
                    && crate::store::owner_uid(&live) == owner.uid().as_deref()
                {
                    cluster.controller_revisions.observe(&live);
                    return Ok(live);
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
    Err(Error::Waiting(format!("no free name for a revision of {}", owner.name_any())))
}

/// The hash part of a revision's name.
pub fn hash(revision: &ControllerRevision) -> String {
    revision.labels().get(REVISION_LABEL).cloned().unwrap_or_default()
}

/// The template that a revision holds.
pub fn template(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    let mut template = revision.data.as_ref()?.0.pointer("/spec/template")?.clone();
    template.as_object_mut()?.remove("$patch");
    serde_json::from_value(template).ok()
}

/// Deletes the oldest revisions beyond `limit` that are not in use.
pub async fn prune(
    cluster: &Cluster,
    history: &[Arc<ControllerRevision>],
    limit: i32,
    in_use: impl Fn(&str) -> bool,
) -> Result<()> {
    let unused: Vec<_> = history.iter().filter(|revision| !in_use(&revision.name_any())).collect();
    let excess = unused.len().saturating_sub(usize::try_from(limit).unwrap_or(usize::MAX));
    for revision in unused.into_iter().take(excess) {
        let namespace = revision.namespace().unwrap_or_default();
        let api = Api::<ControllerRevision>::namespaced(cluster.client.clone(), &namespace);
        found(api.delete(&revision.name_any(), &DeleteParams::default()).await)?;
        cluster.controller_revisions.forget(&Key::of(&**revision), &revision.uid().unwrap_or_default());
    }
    Ok(())
}

fn patch_of(template: &PodTemplateSpec) -> serde_json::Value {
    let mut template = serde_json::to_value(template).expect("a pod template has only string keys");
    template["$patch"] = "replace".into();
    serde_json::json!({ "spec": { "template": template } })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revision_gives_back_its_template() {
        let mut template = PodTemplateSpec::default();
        template.metadata.get_or_insert_default().labels = Some([("app".into(), "db".into())].into());
        template.spec = Some(k8s_openapi::api::core::v1::PodSpec::default());
        let revision = ControllerRevision {
            data: Some(RawExtension(patch_of(&template))),
            ..ControllerRevision::default()
        };
        assert_eq!(super::template(&revision), Some(template));
    }
}
