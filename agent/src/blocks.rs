//! Blocks of addresses in the API server: one ConfigMap per block in kube-system, its name the claim.
//!
//! Creating is the compare-and-swap that decides who owns a block; each later write carries the resource version that it was
//! decided from. The decisions are `ipam::Keeper`'s; this loop sends them, one at a time, after what they change here is on
//! disk.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use ipam::keeper::Version;
use ipam::{Affinity, Write};
use ipnetwork::IpNetwork;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{DeleteParams, ObjectMeta, PostParams, Preconditions};
use kube::runtime::watcher;
use kube::{Api, Client};
use tokio::sync::{Notify, watch as signal};

use crate::network::Network;
use crate::watch::{self, Change, Listing};

const NAMESPACE: &str = "kube-system";
/// Label whose presence marks a ConfigMap as a block's; its value is the block, for people.
const LABEL: &str = "seaway.dev/ipam-block";
const RETRY: Duration = Duration::from_secs(2);
/// Blocks are claimed and given back when the pools are known, or cannot be known: a server may not have the kinds.
const POOLS_AWAITED: Duration = Duration::from_secs(5);

struct Blocks {
    api: Api<ConfigMap>,
    network: Arc<Network>,
    reported_exhausted: bool,
    changed: Arc<Notify>,
}

/// What the loop is told.
pub struct Signals {
    /// Addresses have been taken or have come free.
    pub wake: Arc<Notify>,
    /// Told when the node's blocks have changed.
    pub changed: Arc<Notify>,
    /// Whether the pools are known.
    pub pools_known: signal::Receiver<bool>,
}

/// Follows the blocks for ever.
pub async fn run(client: Client, network: Arc<Network>, signals: Signals) {
    let api: Api<ConfigMap> = Api::namespaced(client, NAMESPACE);
    let (sender, mut events) = watch::channel();
    watch::spawn(api.clone(), watcher::Config::default().labels(LABEL), sender, |event| event);
    let Signals { wake, changed, mut pools_known } = signals;
    let mut blocks = Blocks { api, network, reported_exhausted: false, changed };
    let mut listing = Listing::default();
    let _ = tokio::time::timeout(POOLS_AWAITED, pools_known.wait_for(|known| *known)).await;
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
        retry = !blocks.reconcile().await;
    }
}

impl Blocks {
    fn change(&mut self, change: Change<ConfigMap>) {
        match change {
            Change::All(objects) => {
                let all: Vec<_> = objects.iter().filter_map(read).collect();
                self.network.with_keeper(|keeper| keeper.list(all));
            }
            Change::Apply(object) => self.learn(&object),
            Change::Delete(object) => {
                if let Some((affinity, version)) = read(&object) {
                    self.network.with_keeper(|keeper| keeper.forget(affinity.block, version));
                }
            }
        }
    }

    fn learn(&self, object: &ConfigMap) {
        if let Some((affinity, version)) = read(object) {
            self.network.with_keeper(|keeper| keeper.learn(affinity, version));
        }
    }

    /// Acts until there is nothing to do; returns whether that was reached.
    async fn reconcile(&mut self) -> bool {
        loop {
            let step = match self.network.step_blocks() {
                Ok(step) => step,
                Err(error) => {
                    tracing::warn!("address blocks: {error:#}");
                    return false;
                }
            };
            if step.changes.iter().any(|change| *change != ipam::Change::Noted) {
                self.changed.notify_one();
            }
            let is_exhausted = !step.exhausted.is_empty();
            if is_exhausted && !std::mem::replace(&mut self.reported_exhausted, is_exhausted) {
                tracing::warn!(pools = ?step.exhausted, "no block is left in the pool, and no node offers an address");
            }
            self.reported_exhausted = is_exhausted;
            let Some(write) = step.write else {
                return true;
            };
            if let Err(error) = self.write(&write).await {
                tracing::warn!(block = %write.block(), "address blocks: {error:#}");
                return false;
            }
        }
    }

    /// Sends a write; where the store has something else, learns that.
    async fn write(&self, write: &Write) -> anyhow::Result<()> {
        let name = object_name(write.block());
        let written = match write {
            Write::Create(affinity) => {
                self.api.create(&PostParams::default(), &object_of(affinity, None)).await.map(Some)
            }
            Write::Replace(affinity, version) => {
                let object = object_of(affinity, Some(*version));
                self.api.replace(&name, &PostParams::default(), &object).await.map(Some)
            }
            Write::Delete(_, version) => {
                let preconditions = Preconditions { uid: None, resource_version: Some(version.to_string()) };
                let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
                self.api.delete(&name, &params).await.map(|_| None)
            }
        };
        match written {
            Ok(Some(object)) => self.learn(&object),
            Ok(None) => self.forget(write.block()),
            // Another node was first, or an earlier try of ours got through.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {
                match self.api.get_opt(&name).await.context("reading it anew")? {
                    Some(present) => self.learn(&present),
                    None => self.forget(write.block()),
                }
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    fn forget(&self, block: IpNetwork) {
        self.network.with_keeper(|keeper| keeper.forget(block, Version::MAX));
    }
}

fn read(object: &ConfigMap) -> Option<(Affinity, Version)> {
    let name = object.metadata.name.as_deref().unwrap_or_default();
    match affinity_of(object) {
        Ok(found) => Some(found),
        Err(error) => {
            tracing::warn!("ConfigMap {NAMESPACE}/{name} is labelled as a block, but {error}");
            None
        }
    }
}

fn object_name(block: IpNetwork) -> String {
    format!("ipam-block-{}-{}", block.network().to_string().replace(['.', ':'], "-"), block.prefix())
}

fn object_of(affinity: &Affinity, version: Option<Version>) -> ConfigMap {
    let block = affinity.block;
    let label = format!("{}-{}", block.network().to_string().replace(':', "."), block.prefix());
    ConfigMap {
        metadata: ObjectMeta {
            name: Some(object_name(block)),
            namespace: Some(NAMESPACE.to_owned()),
            labels: Some(BTreeMap::from([(LABEL.to_owned(), label)])),
            resource_version: version.map(|version| version.to_string()),
            ..ObjectMeta::default()
        },
        data: Some(affinity.to_fields()),
        ..ConfigMap::default()
    }
}

fn affinity_of(object: &ConfigMap) -> Result<(Affinity, Version), String> {
    let affinity = Affinity::from_fields(object.data.as_ref().ok_or("it has no data")?)?;
    let version = object.metadata.resource_version.as_deref().unwrap_or_default();
    let version = version.parse().map_err(|_| format!("its resourceVersion {version:?} is no number"))?;
    Ok((affinity, version))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn affinity(block: &str) -> Affinity {
        Affinity::new(block.parse().unwrap(), "sw-node1", ipam::State::Pending, 7)
    }

    #[test]
    fn a_block_survives_its_configmap() {
        for block in ["10.244.0.64/26", "fd00:10:244::40/122"] {
            let object = object_of(&affinity(block), Some(42));
            assert_eq!(affinity_of(&object), Ok((affinity(block), 42)));
        }
        assert_eq!(object_name("10.244.0.64/26".parse().unwrap()), "ipam-block-10-244-0-64-26");
        assert!(
            affinity_of(&object_of(&affinity("10.0.0.0/26"), None)).unwrap_err().contains("resourceVersion")
        );
    }
}
