//! Which ReplicaSet is which revision of a Deployment: finding, naming, making, annotating and forgetting them. No IO.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;

use super::rolling::{Bounds, Size, Step, desired, size, step};
use crate::pods;

/// The label that tells the pods of one template from those of another.
pub const POD_TEMPLATE_HASH: &str = "pod-template-hash";
/// The revision's number, on ReplicaSet and Deployment.
pub const REVISION: &str = "deployment.kubernetes.io/revision";
/// Numbers that a ReplicaSet had before a rollback made it the newest again.
pub const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
/// The Deployment's size when the ReplicaSet was last sized.
pub const DESIRED_REPLICAS: &str = "deployment.kubernetes.io/desired-replicas";
/// The same with the surge added.
pub const MAX_REPLICAS: &str = "deployment.kubernetes.io/max-replicas";

const NOT_COPIED: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    DESIRED_REPLICAS,
    MAX_REPLICAS,
    "deprecated.deployment.rollback.to",
];

/// The ReplicaSet of the current template and all others, oldest first.
///
/// Where several sets have the current template, the oldest is the one, so that a second look chooses the same.
pub fn split(
    deployment: &Deployment,
    mut sets: Vec<Arc<ReplicaSet>>,
) -> (Option<Arc<ReplicaSet>>, Vec<Arc<ReplicaSet>>) {
    sets.sort_by(|a, b| {
        (&a.metadata.creation_timestamp, &a.metadata.name)
            .cmp(&(&b.metadata.creation_timestamp, &b.metadata.name))
    });
    let new = sets.iter().position(|set| same_template(deployment, set)).map(|at| sets.remove(at));
    (new, sets)
}

/// Whether `set` runs the Deployment's current template, the hash label left aside.
pub fn same_template(deployment: &Deployment, set: &ReplicaSet) -> bool {
    let Some(spec) = &deployment.spec else { return false };
    let Some(template) = set.spec.as_ref().and_then(|spec| spec.template.as_ref()) else { return false };
    plain(&spec.template) == plain(template)
}

fn plain(template: &PodTemplateSpec) -> PodTemplateSpec {
    let mut template = template.clone();
    let meta = template.metadata.get_or_insert_default();
    if let Some(labels) = &mut meta.labels {
        labels.remove(POD_TEMPLATE_HASH);
    }
    meta.labels = meta.labels.take().filter(|labels| !labels.is_empty());
    meta.annotations = meta.annotations.take().filter(|annotations| !annotations.is_empty());
    meta.creation_timestamp = None;
    template
}

/// The hash of a template, in the letters that cannot spell words.
pub fn template_hash(template: &PodTemplateSpec, collision_count: Option<i32>) -> String {
    const LETTERS: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut bytes = serde_json::to_vec(&plain(template)).expect("a pod template has only string keys");
    if let Some(count) = collision_count {
        bytes.extend_from_slice(&count.to_le_bytes());
    }
    let hash = fnv32a(&bytes);
    hash.to_string().bytes().map(|digit| char::from(LETTERS[usize::from(digit) % LETTERS.len()])).collect()
}

/// FNV-1a in 32 bits.
pub fn fnv32a(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash: u32, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

/// The number of a ReplicaSet's revision; 0 where it has none.
pub fn revision(set: &ReplicaSet) -> i64 {
    set.annotations().get(REVISION).and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// The highest revision among `sets`.
pub fn highest(sets: &[Arc<ReplicaSet>]) -> i64 {
    sets.iter().map(|set| revision(set)).max().unwrap_or(0)
}

/// The ReplicaSet for the current template, as large as the bounds allow at once.
pub fn make(deployment: &Deployment, old: &[Arc<ReplicaSet>], revision: i64) -> ReplicaSet {
    let spec = deployment.spec.clone().unwrap_or_default();
    let collisions = deployment.status.as_ref().and_then(|status| status.collision_count);
    let hash = template_hash(&spec.template, collisions);
    let mut template = spec.template;
    template
        .metadata
        .get_or_insert_default()
        .labels
        .get_or_insert_default()
        .insert(POD_TEMPLATE_HASH.into(), hash.clone());
    let mut selector = spec.selector;
    selector.match_labels.get_or_insert_default().insert(POD_TEMPLATE_HASH.into(), hash.clone());
    let sizes: Vec<Size> = old.iter().map(|set| Size::of(set)).collect();
    let replicas = match step(&Bounds::of(deployment), Size { replicas: 0, available: 0 }, &sizes) {
        Step::New(replicas) => replicas,
        Step::Old(_) | Step::Wait => 0,
    };
    let mut set = ReplicaSet {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", deployment.name_any())),
            namespace: deployment.namespace(),
            labels: template.metadata.as_ref().and_then(|meta| meta.labels.clone()),
            owner_references: Some(vec![pods::controller_reference(deployment)]),
            ..ObjectMeta::default()
        },
        spec: Some(ReplicaSetSpec {
            replicas: Some(replicas),
            min_ready_seconds: spec.min_ready_seconds,
            selector,
            template: Some(template),
        }),
        status: None,
    };
    annotate(deployment, &mut set, revision);
    annotate_sizes(deployment, &mut set);
    set
}

/// Brings the annotations of the newest set up to date; returns whether anything changed.
pub fn annotate(deployment: &Deployment, set: &mut ReplicaSet, revision: i64) -> bool {
    let before =
        (set.metadata.annotations.clone(), set.spec.as_ref().and_then(|spec| spec.min_ready_seconds));
    let copied = deployment.annotations().iter().filter(|(key, _)| !NOT_COPIED.contains(&key.as_str()));
    let copied: BTreeMap<String, String> = copied.map(|(key, value)| (key.clone(), value.clone())).collect();
    let annotations = set.annotations_mut();
    annotations.extend(copied);
    let carried = annotations.get(REVISION).and_then(|text| text.parse::<i64>().ok());
    if carried.is_none_or(|carried| carried < revision)
        && let Some(carried) = annotations.insert(REVISION.into(), revision.to_string())
    {
        let history = annotations.entry(REVISION_HISTORY.into()).or_default();
        if !history.is_empty() {
            history.push(',');
        }
        history.push_str(&carried);
    }
    if let Some(spec) = &mut set.spec {
        spec.min_ready_seconds = deployment.spec.as_ref().and_then(|spec| spec.min_ready_seconds);
    }
    before != (set.metadata.annotations.clone(), set.spec.as_ref().and_then(|spec| spec.min_ready_seconds))
}

/// Notes the Deployment's size on a set; returns whether anything changed.
pub fn annotate_sizes(deployment: &Deployment, set: &mut ReplicaSet) -> bool {
    let replicas = desired(deployment);
    let max = replicas + Bounds::of(deployment).surge;
    let before = set.metadata.annotations.clone();
    let annotations = set.annotations_mut();
    annotations.insert(DESIRED_REPLICAS.into(), replicas.to_string());
    annotations.insert(MAX_REPLICAS.into(), max.to_string());
    before != set.metadata.annotations
}

/// The empty sets that the history limit no longer keeps, oldest revision first.
pub fn beyond_history(deployment: &Deployment, old: &[Arc<ReplicaSet>]) -> Vec<Arc<ReplicaSet>> {
    let Some(limit) = deployment.spec.as_ref().and_then(|spec| spec.revision_history_limit) else {
        return Vec::new();
    };
    let mut sets: Vec<_> =
        old.iter().filter(|set| set.metadata.deletion_timestamp.is_none()).cloned().collect();
    sets.sort_by_key(|set| (revision(set), set.metadata.creation_timestamp.clone()));
    let excess = sets.len().saturating_sub(usize::try_from(limit).unwrap_or(usize::MAX));
    sets.truncate(excess);
    sets.retain(|set| {
        let status = set.status.clone().unwrap_or_default();
        status.replicas == 0 && size(set) == 0 && set.metadata.generation <= status.observed_generation
    });
    sets
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::apps::v1::{DeploymentSpec, ReplicaSetStatus};
    use k8s_openapi::api::core::v1::{Container, PodSpec};

    fn deployment(image: &str) -> Deployment {
        let container = Container { name: "c".into(), image: Some(image.into()), ..Container::default() };
        let template = PodTemplateSpec {
            metadata: Some(ObjectMeta {
                labels: Some([("app".into(), "web".into())].into()),
                ..ObjectMeta::default()
            }),
            spec: Some(PodSpec { containers: vec![container], ..PodSpec::default() }),
        };
        let spec = DeploymentSpec {
            replicas: Some(4),
            template,
            revision_history_limit: Some(1),
            ..DeploymentSpec::default()
        };
        let metadata =
            ObjectMeta { name: Some("web".into()), namespace: Some("ns".into()), ..ObjectMeta::default() };
        Deployment { metadata, spec: Some(spec), status: None }
    }

    #[test]
    fn a_made_set_is_found_again_and_another_template_is_not() {
        let web = deployment("nginx:1");
        let set = Arc::new(make(&web, &[], 1));
        assert_eq!(set.spec.as_ref().unwrap().replicas, Some(4));
        assert!(split(&web, vec![set.clone()]).0.is_some());
        assert!(split(&deployment("nginx:2"), vec![set]).0.is_none());
    }

    #[test]
    fn the_hash_ignores_its_own_label_and_heeds_the_collision_count() {
        let web = deployment("nginx:1");
        let set = make(&web, &[], 1);
        let template = web.spec.unwrap().template;
        let labelled = set.spec.unwrap().template.unwrap();
        assert_eq!(template_hash(&template, None), template_hash(&labelled, None));
        assert_ne!(template_hash(&template, None), template_hash(&template, Some(1)));
    }

    #[test]
    fn a_rollback_moves_the_number_into_the_history() {
        let web = deployment("nginx:1");
        let mut set = make(&web, &[], 1);
        assert!(annotate(&web, &mut set, 3));
        assert_eq!(revision(&set), 3);
        assert_eq!(set.annotations()[REVISION_HISTORY], "1");
        assert!(!annotate(&web, &mut set, 3));
    }

    #[test]
    fn history_keeps_the_newest_and_whatever_still_has_pods() {
        let web = deployment("nginx:9");
        let set = |n: i64, replicas: i32| {
            let mut set = make(&deployment(&format!("nginx:{n}")), &[], n);
            set.spec.as_mut().unwrap().replicas = Some(0);
            set.status = Some(ReplicaSetStatus { replicas, ..ReplicaSetStatus::default() });
            Arc::new(set)
        };
        let old = [set(3, 0), set(1, 1), set(2, 0), set(4, 0)];
        let gone: Vec<i64> = beyond_history(&web, &old).iter().map(|set| revision(set)).collect();
        assert_eq!(gone, [2, 3]);
    }
}
