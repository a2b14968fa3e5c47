//! Block affinities in the API server: one ConfigMap per block in kube-system, its name the claim.
//!
//! Creating is the compare-and-swap that decides who owns a block; the update to `confirmed` carries the resource
//! version that was read. The decisions are `ipam::affinity::plan`; this loop carries them out, one at a time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ipam::{Action, Affinity};
use ipnetwork::IpNetwork;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{ObjectMeta, PostParams};
use kube::runtime::watcher;
use kube::{Api, Client};
use tokio::sync::Notify;

use crate::network::Network;
use crate::watch::{self, Change, Listing};

const NAMESPACE: &str = "kube-system";
/// Label whose presence marks a ConfigMap as a block's; its value is the block, for people.
const LABEL: &str = "seaway.dev/ipam-block";
const RETRY: Duration = Duration::from_secs(2);

struct Known {
    affinity: Affinity,
    object: ConfigMap,
}

struct Blocks {
    api: Api<ConfigMap>,
    node: String,
    network: Arc<Network>,
    known: BTreeMap<String, Known>,
    listed: bool,
    reported_exhausted: bool,
    changed: Arc<Notify>,
}

/// Follows the affinities for ever. `wake` is notified when addresses have been taken, `changed` is told when the
/// node's blocks have.
pub async fn run(
    client: Client,
    node: String,
    network: Arc<Network>,
    wake: Arc<Notify>,
    changed: Arc<Notify>,
) {
    let api: Api<ConfigMap> = Api::namespaced(client, NAMESPACE);
    let (sender, mut events) = watch::channel();
    watch::spawn(api.clone(), watcher::Config::default().labels(LABEL), sender, |event| event);
    let mut blocks = Blocks {
        api,
        node,
        network,
        known: BTreeMap::new(),
        listed: false,
        reported_exhausted: false,
        changed,
    };
    let mut listing = Listing::default();
    let mut retry = false;
    loop {
        let timer =
            async { if retry { tokio::time::sleep(RETRY).await } else { std::future::pending().await } };
        tokio::select! {
            event = events.recv() => match event {
                Some(event) => {
                    if let Some(change) = listing.change(event) {
                        blocks.change(change);
                    }
                }
                None => return,
            },
            () = wake.notified() => {}
            () = timer => {}
        }
        if blocks.listed {
            retry = !blocks.reconcile().await;
        }
    }
}

impl Blocks {
    fn change(&mut self, change: Change<ConfigMap>) {
        match change {
            Change::All(objects) => {
                self.known.clear();
                objects.into_iter().for_each(|object| self.learn(object));
                self.listed = true;
            }
            Change::Apply(object) => self.learn(object),
            Change::Delete(object) => {
                self.known.remove(&object.metadata.name.unwrap_or_default());
            }
        }
    }

    fn learn(&mut self, object: ConfigMap) {
        let name = object.metadata.name.clone().unwrap_or_default();
        match affinity_of(&object) {
            Ok(affinity) => {
                self.known.insert(name, Known { affinity, object });
            }
            Err(error) => tracing::warn!("ConfigMap {NAMESPACE}/{name} is labelled as a block, but {error}"),
        }
    }

    /// Acts until there is nothing to do; returns whether that was reached.
    async fn reconcile(&mut self) -> bool {
        loop {
            let affinities: Vec<Affinity> = self.known.values().map(|known| known.affinity.clone()).collect();
            let allocator = self.network.allocator();
            let actions = ipam::affinity::plan(self.network.pools(), &self.node, &affinities, &allocator);
            if actions.is_empty() {
                return true;
            }
            for action in actions {
                if let Action::Exhausted(pool) = action {
                    if !std::mem::replace(&mut self.reported_exhausted, true) {
                        tracing::warn!(%pool, "no block is left in the pool");
                    }
                    return true;
                }
                if let Err(error) = self.act(action).await {
                    tracing::warn!("address blocks: {error:#}");
                    return false;
                }
            }
        }
    }

    async fn act(&mut self, action: Action) -> anyhow::Result<()> {
        match action {
            Action::Claim(block) => self.claim(block).await,
            Action::Confirm { block, sequence } => self.confirm(block, sequence).await,
            Action::Adopt(block) => {
                self.reported_exhausted = false;
                let adopted = self.network.adopt_block(block);
                self.changed.notify_one();
                adopted
            }
            Action::Surrender { block, owner } => {
                tracing::error!(%block, owner, "the API server has another owner for a block of this node");
                let surrendered = self.network.surrender_block(block);
                self.changed.notify_one();
                surrendered
            }
            Action::Exhausted(_) => Ok(()),
        }
    }

    async fn claim(&mut self, block: IpNetwork) -> anyhow::Result<()> {
        let object =
            object_of(&Affinity { block, node: self.node.clone(), state: ipam::State::Pending, sequence: 1 });
        let name = object_name(block);
        match self.api.create(&PostParams::default(), &object).await {
            Ok(created) => self.learn(created),
            // Another node was first, or an earlier try of ours got through.
            Err(kube::Error::Api(status)) if status.code == 409 => {
                let present = self.api.get(&name).await?;
                self.learn(present);
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    async fn confirm(&mut self, block: IpNetwork, sequence: u64) -> anyhow::Result<()> {
        let name = object_name(block);
        let Some(known) = self.known.get(&name) else { return Ok(()) };
        let mut object = object_of(&Affinity {
            block,
            node: self.node.clone(),
            state: ipam::State::Confirmed,
            sequence: sequence + 1,
        });
        object.metadata.resource_version = known.object.metadata.resource_version.clone();
        match self.api.replace(&name, &PostParams::default(), &object).await {
            Ok(replaced) => self.learn(replaced),
            Err(kube::Error::Api(status)) if status.code == 409 => {
                let present = self.api.get(&name).await?;
                self.learn(present);
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}

fn object_name(block: IpNetwork) -> String {
    format!("ipam-block-{}-{}", block.network().to_string().replace(['.', ':'], "-"), block.prefix())
}

fn object_of(affinity: &Affinity) -> ConfigMap {
    let block = affinity.block;
    let label = format!("{}-{}", block.network().to_string().replace(':', "."), block.prefix());
    let data = [
        ("block", block.to_string()),
        ("node", affinity.node.clone()),
        ("state", affinity.state.to_string()),
        ("sequence", affinity.sequence.to_string()),
    ];
    ConfigMap {
        metadata: ObjectMeta {
            name: Some(object_name(block)),
            namespace: Some(NAMESPACE.to_owned()),
            labels: Some(BTreeMap::from([(LABEL.to_owned(), label)])),
            ..ObjectMeta::default()
        },
        data: Some(data.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()),
        ..ConfigMap::default()
    }
}

fn affinity_of(object: &ConfigMap) -> Result<Affinity, String> {
    let data = object.data.as_ref().ok_or("it has no data")?;
    let field = |name: &str| data.get(name).ok_or_else(|| format!("its data has no {name}"));
    Ok(Affinity {
        block: field("block")?.parse().map_err(|error| format!("its block is no CIDR: {error}"))?,
        node: field("node")?.clone(),
        state: field("state")?.parse()?,
        sequence: field("sequence")?
            .parse()
            .map_err(|error| format!("its sequence is no number: {error}"))?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_affinity_survives_its_configmap() {
        for block in ["10.244.0.64/26", "fd00:10:244::40/122"] {
            let affinity = Affinity {
                block: block.parse().unwrap(),
                node: "sw-node1".to_owned(),
                state: ipam::State::Pending,
                sequence: 7,
            };
            assert_eq!(affinity_of(&object_of(&affinity)), Ok(affinity));
        }
        assert_eq!(object_name("10.244.0.64/26".parse().unwrap()), "ipam-block-10-244-0-64-26");
    }

    #[test]
    fn a_damaged_configmap_is_named_by_its_field() {
        let mut object = object_of(&Affinity {
            block: "10.244.0.64/26".parse().unwrap(),
            node: "a".to_owned(),
            state: ipam::State::Confirmed,
            sequence: 1,
        });
        object.data.as_mut().unwrap().insert("state".to_owned(), "maybe".to_owned());
        assert!(affinity_of(&object).unwrap_err().contains("state"));
        object.data.as_mut().unwrap().remove("block");
        assert!(affinity_of(&object).unwrap_err().contains("block"));
    }
}
