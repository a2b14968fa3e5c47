//! Blocks of pods' addresses: those of nodes that are gone are given back, and all are shown as BlockAffinities.
//!
//! The nodes agree on their blocks in ConfigMaps of kube-system (`ipam::Affinity`). A node is gone when its Node object is:
//! one that is only silent keeps its blocks, as its pods may run. It must be missing for a time of grace, at two looks, and
//! when the API is asked once more right before each write. A block is marked first (`pendingDeletion`) and deleted at a later
//! look, so that a node that comes back confirms it again; of two that write, the resource version lets one through.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use calico::{BlockAffinity, BlockAffinitySpec};
use ipam::{Affinity, Collected};
use k8s_openapi::api::core::v1::{ConfigMap, Node};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::{Api, ResourceExt};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::cluster::{BLOCK_LABEL, BLOCKS_NAMESPACE, Cluster};
use crate::queue::Queue;
use crate::reconcile::{Next, Reconcile, Result, found};
use crate::store::Key;

/// How soon to look again for kinds that the server does not serve yet.
const UNSERVED: Duration = Duration::from_secs(1);

/// What a ConfigMap says of a block.
fn affinity_of(object: &ConfigMap) -> Result<Affinity, String> {
    Affinity::from_fields(object.data.as_ref().ok_or("it has no data")?)
}

/// Gives back what gone nodes had, until `cancel` is cancelled. `grace`: how long a node must be missing.
pub async fn run(cluster: Arc<Cluster>, grace: Duration, cancel: CancellationToken) {
    tokio::select! {
        () = cancel.cancelled() => return,
        () = cluster.wait_synced() => {}
    }
    let mut missing_since: HashMap<String, Instant> = HashMap::new();
    let period = grace.div_f64(2.0).clamp(Duration::from_millis(100), Duration::from_secs(60));
    let mut tick = tokio::time::interval(period);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            _ = tick.tick() => {}
        }
        let blocks: Vec<(Arc<ConfigMap>, Affinity)> = cluster
            .blocks
            .all()
            .into_iter()
            .filter_map(|object| affinity_of(&object).ok().map(|affinity| (object, affinity)))
            .collect();
        let is_missing = |name: &str| cluster.nodes.get(&Key::cluster(name)).is_none();
        missing_since.retain(|name, _| is_missing(name));
        let is_gone = |name: &str| missing_since.get(name).is_some_and(|since| since.elapsed() >= grace);
        for (object, affinity) in &blocks {
            if let Err(error) = collect(&cluster, object, affinity, is_gone).await {
                tracing::warn!(block = %affinity.block, %error, "cannot give back a block");
            }
        }
        for name in blocks.iter().flat_map(|(_, affinity)| nodes_of(affinity)).filter(|name| is_missing(name))
        {
            missing_since.entry(name.to_owned()).or_insert_with(Instant::now);
        }
    }
}

fn nodes_of(affinity: &Affinity) -> BTreeSet<&str> {
    let others = affinity.borrowed.values().chain(affinity.requested.values());
    others.chain([&affinity.node]).map(String::as_str).collect()
}

async fn collect(
    cluster: &Cluster,
    object: &ConfigMap,
    affinity: &Affinity,
    is_gone: impl Fn(&str) -> bool,
) -> Result<()> {
    let collected = ipam::collect(affinity, &is_gone);
    if collected == Collected::Nothing {
        return Ok(());
    }
    let nodes = Api::<Node>::all(cluster.client.clone());
    for name in nodes_of(affinity).into_iter().filter(|name| is_gone(name)) {
        if nodes.get_opt(name).await?.is_some() {
            return Ok(());
        }
    }
    let api = Api::<ConfigMap>::namespaced(cluster.client.clone(), BLOCKS_NAMESPACE);
    match collected {
        Collected::Nothing => {}
        Collected::Replace(next) => {
            tracing::info!(block = %next.block, node = next.node, state = %next.state, "a node is gone");
            let next = ConfigMap { data: Some(next.to_fields()), ..object.clone() };
            let written = api.replace(&object.name_any(), &PostParams::default(), &next).await?;
            cluster.blocks.observe(&written);
        }
        Collected::Delete => {
            tracing::info!(block = %affinity.block, node = affinity.node, "a gone node's block is free");
            let preconditions =
                Preconditions { uid: object.uid(), resource_version: object.resource_version() };
            let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
            found(api.delete(&object.name_any(), &params).await)?;
        }
    }
    Ok(())
}

/// Shows the blocks to who asks for `blockaffinities`.
pub struct Controller {
    cluster: Arc<Cluster>,
}

/// Makes the controller and the queue that feeds it with the blocks.
pub fn new(cluster: &Arc<Cluster>) -> (Arc<Controller>, Arc<Queue>) {
    let queue = Arc::new(Queue::default());
    let dirty = queue.clone();
    cluster.blocks.subscribe(move |old, new| {
        for object in [old, new].into_iter().flatten() {
            dirty.add(Key::of(&**object));
        }
    });
    let dirty = queue.clone();
    cluster.block_affinities.subscribe(move |old, new| {
        for of in [old, new].into_iter().flatten().filter_map(|shown| shown.labels().get(BLOCK_LABEL)) {
            dirty.add(Key::new(BLOCKS_NAMESPACE, of.clone()));
        }
    });
    (Arc::new(Controller { cluster: cluster.clone() }), queue)
}

/// Named as Calico names its own, so that who looks for one finds it.
fn shown(affinity: &Affinity, of: &str) -> BlockAffinity {
    let block = affinity.block.to_string();
    BlockAffinity {
        metadata: ObjectMeta {
            name: Some(format!("{}-{}", affinity.node, block.replace(['.', ':', '/'], "-"))),
            labels: Some([(BLOCK_LABEL.to_owned(), of.to_owned())].into()),
            ..ObjectMeta::default()
        },
        spec: BlockAffinitySpec {
            state: affinity.state.to_string(),
            node: affinity.node.clone(),
            kind: "host".to_owned(),
            cidr: block,
            deleted: false,
        },
    }
}

impl Reconcile for Controller {
    const NAME: &'static str = "block-controller";

    async fn reconcile(&self, key: &Key) -> Result {
        if !self.cluster.block_affinities.is_synced() || !self.cluster.blocks.is_synced() {
            return Ok(Next::After(UNSERVED));
        }
        let api = Api::<BlockAffinity>::all(self.cluster.client.clone());
        let affinity = self.cluster.blocks.get(key).and_then(|object| affinity_of(&object).ok());
        let wanted = affinity.map(|affinity| shown(&affinity, &key.name));
        let is_of = |shown: &BlockAffinity| shown.labels().get(BLOCK_LABEL) == Some(&key.name);
        let mut present = self.cluster.block_affinities.all();
        present.retain(|shown| is_of(shown));
        for old in &present {
            if wanted.as_ref().is_none_or(|wanted| wanted.metadata.name != old.metadata.name) {
                found(api.delete(&old.name_any(), &DeleteParams::default()).await)?;
                self.cluster.block_affinities.forget(&Key::of(&**old), &old.uid().unwrap_or_default());
            }
        }
        let Some(mut wanted) = wanted else { return Ok(Next::Change) };
        match present.iter().find(|old| old.metadata.name == wanted.metadata.name) {
            Some(old) if old.spec == wanted.spec => {}
            Some(old) => {
                wanted.metadata.resource_version = old.resource_version();
                let written = api.replace(&wanted.name_any(), &PostParams::default(), &wanted).await?;
                self.cluster.block_affinities.observe(&written);
            }
            // One that somebody else made under the name is left to them.
            None => match api.create(&PostParams::default(), &wanted).await {
                Ok(written) => self.cluster.block_affinities.observe(&written),
                Err(kube::Error::Api(status)) if status.is_already_exists() => {}
                Err(error) => return Err(error.into()),
            },
        }
        Ok(Next::Change)
    }
}

#[cfg(test)]
mod tests {
    use ipam::State;

    use super::*;

    #[test]
    fn a_block_is_shown_under_the_name_that_calico_gives_it() {
        let block = "10.244.0.64/26".parse().expect("a block");
        let object =
            shown(&Affinity::new(block, "n1", State::PendingDeletion, 3), "ipam-block-10-244-0-64-26");
        assert_eq!(object.name_any(), "n1-10-244-0-64-26");
        assert_eq!((object.spec.state.as_str(), object.spec.deleted), ("pendingDeletion", false));
        let block = "fd00:10:244::40/122".parse().expect("a block");
        let object = shown(&Affinity::new(block, "n1", State::Confirmed, 3), "x");
        assert_eq!(object.name_any(), "n1-fd00-10-244--40-122");
    }
}
