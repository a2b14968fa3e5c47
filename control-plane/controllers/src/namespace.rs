//! Namespace: empties a namespace that is being deleted, then lets it go.
//!
//! Pods go first, so that nothing they depend on (Secrets, NetworkPolicies) vanishes under them. What remains and why is
//! in the conditions; the finalizer `kubernetes` is taken off only after a look that found nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{DeleteParams, DynamicObject, ListParams, PostParams};
use kube::{Api, ResourceExt};

use crate::cluster::Cluster;
use crate::discovery::{Discovered, Served, discover};
use crate::queue::Queue;
use crate::reconcile::{Next, Reconcile, Result, found, now};
use crate::store::Key;

const FINALIZER: &str = "kubernetes";
const RETRY: Duration = Duration::from_secs(1);

/// What one pass over a namespace's content found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Content {
    /// Groups that could not be discovered.
    pub undiscovered: Vec<String>,
    /// Deletions that failed.
    pub failures: Vec<String>,
    /// Objects left, by resource.
    pub remaining: BTreeMap<String, usize>,
    /// Objects left that wait for a finalizer, by finalizer.
    pub finalizers: BTreeMap<String, usize>,
}

impl Content {
    fn is_gone(&self) -> bool {
        self.undiscovered.is_empty() && self.failures.is_empty() && self.remaining.is_empty()
    }
}

/// What a condition says of each outcome.
struct Saying {
    kind: &'static str,
    /// Reason and message where nothing is wrong.
    good: (&'static str, &'static str),
    /// Reason where something is, and the message that names it.
    bad: (&'static str, fn(&Content) -> Option<String>),
}

const SAYINGS: [Saying; 5] = [
    Saying {
        kind: "NamespaceDeletionDiscoveryFailure",
        good: ("ResourcesDiscovered", "All resources successfully discovered"),
        bad: ("DiscoveryFailed", |content| {
            let list = named(&content.undiscovered)?;
            Some(format!("Discovery failed for some groups, {} failing: {list}", content.undiscovered.len()))
        }),
    },
    Saying {
        kind: "NamespaceDeletionGroupVersionParsingFailure",
        good: ("ParsedGroupVersions", "All legacy kube types successfully parsed"),
        bad: ("GroupVersionParsingFailed", |_| None),
    },
    Saying {
        kind: "NamespaceDeletionContentFailure",
        good: ("ContentDeleted", "All content successfully deleted, may be waiting on finalization"),
        bad: ("ContentDeletionFailed", |content| {
            let list = named(&content.failures)?;
            Some(format!("Failed to delete all resource types, {} remaining: {list}", content.failures.len()))
        }),
    },
    Saying {
        kind: "NamespaceContentRemaining",
        good: ("ContentRemoved", "All content successfully removed"),
        bad: ("SomeResourcesRemain", |content| {
            Some(format!("Some resources are remaining: {}", counted(&content.remaining, "has")?))
        }),
    },
    Saying {
        kind: "NamespaceFinalizersRemaining",
        good: ("ContentHasNoFinalizers", "All content-preserving finalizers finished"),
        bad: ("SomeFinalizersRemain", |content| {
            let list = counted(&content.finalizers, "in")?;
            Some(format!("Some content in the namespace has finalizers remaining: {list}"))
        }),
    },
];

fn named(list: &[String]) -> Option<String> {
    (!list.is_empty()).then(|| list.join(", "))
}

fn counted(what: &BTreeMap<String, usize>, verb: &str) -> Option<String> {
    let parts: Vec<String> =
        what.iter().map(|(name, count)| format!("{name} {verb} {count} resource instances")).collect();
    named(&parts)
}

/// The conditions that tell what `content` holds; a condition that says the same keeps its time.
pub fn conditions(content: &Content, old: &[NamespaceCondition], now: &Time) -> Vec<NamespaceCondition> {
    let foreign =
        |condition: &&NamespaceCondition| SAYINGS.iter().all(|saying| condition.type_ != saying.kind);
    let said = SAYINGS.iter().map(|saying| {
        let (status, reason, message) = match saying.bad.1(content) {
            Some(message) => ("True", saying.bad.0, message),
            None => ("False", saying.good.0, saying.good.1.to_owned()),
        };
        let known = old.iter().find(|condition| condition.type_ == saying.kind && condition.status == status);
        NamespaceCondition {
            type_: saying.kind.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message),
            last_transition_time: known
                .and_then(|known| known.last_transition_time.clone())
                .or_else(|| Some(now.clone())),
        }
    });
    old.iter().filter(foreign).cloned().chain(said).collect()
}

/// The Namespace controller.
pub struct Controller {
    cluster: Arc<Cluster>,
}

/// Makes the controller and the queue that feeds it.
pub fn new(cluster: &Arc<Cluster>) -> (Arc<Controller>, Arc<Queue>) {
    let queue = Arc::new(Queue::default());
    let dirty = queue.clone();
    cluster.namespaces.subscribe(move |_, new| {
        if let Some(namespace) = new.filter(|namespace| namespace.metadata.deletion_timestamp.is_some()) {
            dirty.add(Key::cluster(namespace.name_any()));
        }
    });
    let (dirty, namespaces) = (queue.clone(), cluster.namespaces.clone());
    cluster.pods.subscribe(move |old, new| {
        let (Some(gone), None) = (old, new) else { return };
        let key = Key::cluster(gone.namespace().unwrap_or_default());
        if namespaces.get(&key).is_some_and(|namespace| namespace.metadata.deletion_timestamp.is_some()) {
            dirty.add(key);
        }
    });
    (Arc::new(Controller { cluster: cluster.clone() }), queue)
}

impl Reconcile for Controller {
    const NAME: &'static str = "namespace-controller";

    async fn reconcile(&self, key: &Key) -> Result {
        let api = Api::<Namespace>::all(self.cluster.client.clone());
        // Emptying a namespace on the word of a stale store would be beyond repair.
        let Some(namespace) = api.get_opt(&key.name).await? else { return Ok(Next::Change) };
        if namespace.metadata.deletion_timestamp.is_none() {
            return Ok(Next::Change);
        }
        let finalizers = namespace.spec.as_ref().and_then(|spec| spec.finalizers.clone()).unwrap_or_default();
        if !finalizers.iter().any(|finalizer| finalizer == FINALIZER) {
            return Ok(Next::Change);
        }
        let discovered = discover(&self.cluster.client).await?;
        let content = self.empty(&key.name, discovered).await;
        let namespace = self.write_status(&api, namespace, &content).await?;
        let Some(mut namespace) = namespace else { return Ok(Next::Change) };
        if !content.is_gone() {
            return Ok(Next::After(RETRY));
        }
        if let Some(spec) = &mut namespace.spec {
            spec.finalizers.get_or_insert_default().retain(|finalizer| finalizer != FINALIZER);
        }
        found(
            api.replace_subresource::<Namespace>("finalize", &key.name, &PostParams::default(), &namespace)
                .await,
        )?;
        Ok(Next::Change)
    }
}

impl Controller {
    async fn empty(&self, namespace: &str, discovered: Discovered) -> Content {
        let mut content = Content { undiscovered: discovered.failures, ..Content::default() };
        let deletable = |served: &Served| {
            served.namespaced && served.verbs.contains("delete") && served.verbs.contains("list")
        };
        let (pods, others): (Vec<_>, Vec<_>) = discovered
            .served
            .into_iter()
            .filter(deletable)
            .partition(|served| served.resource.group.is_empty() && served.resource.plural == "pods");
        for served in pods {
            self.empty_one(namespace, &served, &mut content).await;
        }
        if !content.remaining.is_empty() || !content.failures.is_empty() {
            return content;
        }
        for served in others {
            self.empty_one(namespace, &served, &mut content).await;
        }
        content
    }

    async fn empty_one(&self, namespace: &str, served: &Served, content: &mut Content) {
        let api =
            Api::<DynamicObject>::namespaced_with(self.cluster.client.clone(), namespace, &served.resource);
        let name = match served.resource.group.as_str() {
            "" => format!("{}.", served.resource.plural),
            group => format!("{}.{group}", served.resource.plural),
        };
        if let Err(error) = empty_resource(&api, served, &name, content).await {
            // Deleting a CustomResourceDefinition takes its resources from under us: nothing is left then.
            if !matches!(&error, kube::Error::Api(status) if status.is_not_found() || status.code == 405) {
                content.failures.push(format!("{name}: {error}"));
            }
        }
    }

    async fn write_status(
        &self,
        api: &Api<Namespace>,
        namespace: Namespace,
        content: &Content,
    ) -> Result<Option<Namespace>> {
        let mut status = namespace.status.clone().unwrap_or_default();
        let old = status.conditions.clone().unwrap_or_default();
        let terminating = status.phase.as_deref() == Some("Terminating");
        let conditions = conditions(content, &old, &now());
        if terminating && (content.is_gone() || conditions == old) {
            return Ok(Some(namespace));
        }
        status.phase = Some("Terminating".into());
        status.conditions = Some(conditions);
        let name = namespace.name_any();
        let namespace = Namespace { status: Some(status), ..namespace };
        found(api.replace_status(&name, &PostParams::default(), &namespace).await)
    }
}

async fn empty_resource(
    api: &Api<DynamicObject>,
    served: &Served,
    name: &str,
    content: &mut Content,
) -> kube::Result<()> {
    let first = api.list_metadata(&ListParams::default()).await?;
    if first.items.is_empty() {
        return Ok(());
    }
    if served.verbs.contains("deletecollection") {
        // The answer lists what was deleted; the next look counts what that left.
        let _ = api.delete_collection(&DeleteParams::background(), &ListParams::default()).await?;
    } else {
        for object in first.items.iter().filter(|object| object.metadata.deletion_timestamp.is_none()) {
            match api.delete(&object.name_any(), &DeleteParams::background()).await {
                Ok(_) => {}
                Err(kube::Error::Api(status)) if status.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
    }
    let left = api.list_metadata(&ListParams::default()).await?.items;
    if !left.is_empty() {
        content.remaining.insert(name.to_owned(), left.len());
    }
    for finalizer in left.iter().flat_map(|object| object.finalizers()) {
        *content.finalizers.entry(finalizer.clone()).or_default() += 1;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find<'a>(conditions: &'a [NamespaceCondition], kind: &str) -> &'a NamespaceCondition {
        conditions.iter().find(|condition| condition.type_ == kind).expect("all five conditions are said")
    }

    #[test]
    fn what_remains_is_named_and_counted() {
        let content = Content {
            remaining: [("pods.".to_owned(), 2)].into(),
            finalizers: [("example.com/hold".to_owned(), 1)].into(),
            ..Content::default()
        };
        let conditions = conditions(&content, &[], &now());
        let remaining = find(&conditions, "NamespaceContentRemaining");
        assert_eq!(remaining.status, "True");
        assert_eq!(
            remaining.message.as_deref(),
            Some("Some resources are remaining: pods. has 2 resource instances")
        );
        let finalizers = find(&conditions, "NamespaceFinalizersRemaining");
        assert!(
            finalizers
                .message
                .as_deref()
                .is_some_and(|m| m.ends_with("example.com/hold in 1 resource instances"))
        );
        assert!(!content.is_gone());
    }

    #[test]
    fn an_unchanged_condition_keeps_its_time_and_foreign_ones_stay() {
        let foreign = NamespaceCondition {
            type_: "Mine".into(),
            status: "True".into(),
            ..NamespaceCondition::default()
        };
        let early = Time("2026-01-01T00:00:00Z".parse().expect("a valid time"));
        let first = conditions(&Content::default(), &[foreign], &early);
        let second = conditions(&Content::default(), &first, &now());
        assert_eq!(first, second);
        assert_eq!(second.len(), 6);
    }
}
