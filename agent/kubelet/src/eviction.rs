//! Evictions: pods that use more local storage than they may, and pods of a node that is short of memory, disk or process ids.
//!
//! ```text
//!   every 10 s: look at the node --signals--> conditions --> Node status, admission
//!                 pods over their limits   --> evicted, all
//!                 a threshold is met       --> dead containers and unused images removed
//!                                               still met --> the first pod by rank evicted
//! ```
//!
//! Decisions are in [`signals`] and [`pods`], which are pure; pods' workers carry them out. After an eviction the next look
//! waits until the pod's containers and volumes are gone. Pods are measured only where something depends on it.

pub mod measure;
pub mod pods;
pub mod signals;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::context::Context;
use crate::image_gc::{Image, Images, Wanted};
use crate::images::reference;
use crate::pod;
use crate::recorder::Type;
use crate::run::PodTable;
use crate::status::Failure;
use crate::worker::{Eviction, Message};
use measure::Meter;
use pods::{Candidate, Order, PodUsage};
use signals::{Condition, Observations, Pressure, Signal, Threshold, Verdict};

pub const REASON: &str = "Evicted";
const INTERVAL: Duration = Duration::from_secs(10);
/// How long a pod may take to leave before others are looked at.
const CLEANUP_MAX: Duration = Duration::from_secs(30);
/// A pod that is still there after this long is told again.
const TOLD_AGE_MAX: Duration = Duration::from_secs(60);
const IMAGES_INTERVAL: Duration = Duration::from_secs(300);

/// What goes to a pod's worker, by the pod's UID.
pub type Orders = mpsc::UnboundedSender<(String, Message)>;

/// The eviction of pods of one node.
pub struct Evictor {
    context: Arc<Context>,
    pods: PodTable,
    orders: Orders,
    pressure: Pressure,
    meter: Meter,
    images: Images,
    images_collected: Option<Instant>,
    /// Pods told to go whose status may not show it yet.
    told: HashMap<String, Instant>,
}

impl Evictor {
    pub fn new(context: Arc<Context>, pods: PodTable, orders: Orders) -> Self {
        Self {
            context,
            pods,
            orders,
            pressure: Pressure::default(),
            meter: Meter::default(),
            images: Images::default(),
            images_collected: None,
            told: HashMap::new(),
        }
    }

    /// Looks at the node and tells its conditions.
    pub async fn look(&mut self) -> (Observations, Verdict) {
        let seen = self.meter.node(&self.context).await;
        let settings = &self.context.configuration.eviction;
        let verdict = self.pressure.observe(settings, &seen, Instant::now());
        let conditions = &verdict.conditions;
        self.context.pressure.send_if_modified(|current| {
            let changed = current != conditions;
            if changed {
                tracing::info!(conditions = list(conditions), "pressure on the node");
                current.clone_from(conditions);
            }
            changed
        });
        (seen, verdict)
    }

    /// Runs until dropped.
    pub async fn run(mut self) {
        let mut evicted = false;
        loop {
            // The pods of the node become known only after the start.
            if !evicted {
                tokio::time::sleep(INTERVAL).await;
            }
            evicted = self.turn().await;
        }
    }

    /// One look and what follows; `true` if pods were evicted.
    async fn turn(&mut self) -> bool {
        let (seen, verdict) = self.look().await;
        self.collect_images(&seen).await;
        let active = self.active();
        let starved = !verdict.starved.is_empty();
        let measured: Vec<Arc<Pod>> =
            active.iter().filter(|pod| starved || pods::has_storage_limits(pod)).cloned().collect();
        if measured.is_empty() && !starved {
            return false;
        }
        let usages = match self.meter.pods(&self.context, &measured).await {
            Ok(usages) => usages,
            Err(error) => {
                tracing::warn!(%error, "the use of pods is not known, nobody is evicted");
                return false;
            }
        };
        let candidates = candidates(&measured, &usages);
        let mut orders = pods::over_their_limits(&candidates, self.meter.has_dedicated_imagefs());
        if orders.is_empty() && starved {
            orders.extend(self.relieve(&verdict.starved, &candidates, seen).await);
        }
        if orders.is_empty() {
            return false;
        }
        self.evict(orders).await;
        true
    }

    /// Pods that run here or will, and have not been told to go.
    fn active(&mut self) -> Vec<Arc<Pod>> {
        let all = self.pods.all();
        self.told.retain(|_, at| at.elapsed() < TOLD_AGE_MAX);
        all.into_iter().filter(|pod| !has_ended(pod) && !self.told.contains_key(pod::uid(pod))).collect()
    }

    /// Gives up what no pod needs; if that is not enough, names the pod that has to go.
    async fn relieve(
        &mut self,
        starved: &[Threshold],
        candidates: &[Candidate<'_>],
        mut seen: Observations,
    ) -> Option<Order> {
        let first = starved.first()?;
        let resource = first.signal.resource();
        let context = self.context.clone();
        let text = format!("Attempting to reclaim {resource}");
        context.recorder.node(&context.config.node_name, Type::Warning, "EvictionThresholdMet", text);
        if self.can_reclaim(first.signal) {
            self.reclaim_dead().await;
            self.remove_images(Wanted::Everything).await;
            seen = self.meter.node(&context).await;
            if context.configuration.eviction.is_relieved(&seen) {
                return None;
            }
        }
        let dedicated = self.meter.has_dedicated_imagefs();
        let order = pods::relief(starved, candidates, &seen, &context.configuration.eviction, dedicated);
        if order.is_none() {
            tracing::warn!(resource, "the node is short of it, and there is no pod that may be evicted");
        }
        order
    }

    /// Whether images and dead containers are on the file system that is short.
    fn can_reclaim(&self, signal: Signal) -> bool {
        match signal {
            Signal::ImagefsAvailable | Signal::ImagefsInodesFree => true,
            Signal::NodefsAvailable | Signal::NodefsInodesFree => !self.meter.has_dedicated_imagefs(),
            Signal::MemoryAvailable | Signal::PidAvailable => false,
        }
    }

    async fn evict(&mut self, orders: Vec<Order>) {
        let mut tokens = Vec::new();
        for order in orders {
            tracing::info!(uid = order.uid, why = order.message, "evicting a pod");
            let done = CancellationToken::new();
            let failure =
                Failure { reason: REASON.to_owned(), message: order.message, disrupts: order.disrupts };
            let eviction = Eviction { failure, grace: order.grace, done: done.clone() };
            self.told.insert(order.uid.clone(), Instant::now());
            // Without a receiver the kubelet is ending.
            let _ = self.orders.send((order.uid, Message::Evict(eviction)));
            tokens.push(done);
        }
        wait(tokens, CLEANUP_MAX).await;
    }

    /// Removes containers and sandboxes of pods that have ended, with their logs.
    async fn reclaim_dead(&self) {
        let mut tokens = Vec::new();
        for pod in self.pods.all().iter().filter(|pod| has_ended(pod)) {
            let done = CancellationToken::new();
            let _ = self.orders.send((pod::uid(pod).to_owned(), Message::Reclaim(done.clone())));
            tokens.push(done);
        }
        wait(tokens, INTERVAL).await;
    }

    /// Removes images every five minutes where there are too many; the first time it only looks what is used.
    async fn collect_images(&mut self, seen: &Observations) {
        if self.images_collected.is_some_and(|at| at.elapsed() < IMAGES_INTERVAL) {
            return;
        }
        let Some(observed) = seen.get(&Signal::ImagefsAvailable) else { return };
        let settings = &self.context.configuration.images;
        let excess = settings.excess(observed.available, observed.capacity);
        let wanted = excess.filter(|_| self.images_collected.is_some()).unwrap_or(0);
        let freed = self.remove_images(Wanted::Bytes(wanted)).await;
        self.images_collected = Some(Instant::now());
        if freed < wanted {
            let text = format!(
                "Failed to garbage collect required amount of images. Attempted to free {wanted} bytes, \
                 but only found {freed} bytes eligible to free."
            );
            self.context.recorder.node(
                &self.context.config.node_name,
                Type::Warning,
                "FreeDiskSpaceFailed",
                text,
            );
        }
    }

    /// Removes images that nothing uses; gives their size in bytes.
    async fn remove_images(&mut self, wanted: Wanted) -> u64 {
        let runtime = self.context.runtime.clone();
        let (images, used) = match tokio::try_join!(self.present(), self.used_images()) {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(%error, "unused images not looked for");
                return 0;
            }
        };
        let now = Instant::now();
        self.images.observe(&images, &used, now);
        let mut freed = 0;
        let settings = &self.context.configuration.images;
        for image in self.images.choose(&images, &used, wanted, settings, now) {
            match runtime.remove_image(&image.id).await {
                Ok(()) => {
                    freed += image.bytes;
                    tracing::info!(image = image.id, names = image.names.join(" "), "unused image removed");
                }
                Err(error) => tracing::warn!(image = image.id, %error, "unused image not removed"),
            }
        }
        freed
    }

    async fn present(&self) -> crate::cri::Result<Vec<Image>> {
        let images = self.context.runtime.list_images().await?;
        let plain = images.into_iter().map(|image| Image {
            id: image.id,
            names: image.repo_tags.into_iter().chain(image.repo_digests).collect(),
            bytes: image.size,
            pinned: image.pinned,
        });
        Ok(plain.collect())
    }

    /// Ids and names of images that containers have, that pods name, and that sandboxes are made of.
    async fn used_images(&self) -> crate::cri::Result<HashSet<String>> {
        let runtime = &self.context.runtime;
        let (containers, sandbox) = tokio::try_join!(runtime.list_containers(None), runtime.sandbox_image())?;
        let mut used: HashSet<String> = sandbox.into_iter().collect();
        for container in containers {
            used.insert(container.image_ref);
            used.extend(container.image.map(|image| image.image));
        }
        for pod in self.pods.all().into_iter().filter(|pod| !has_ended(pod)) {
            let entries = pod.spec.as_ref().map(pod::entries).unwrap_or_default();
            let named = entries.iter().filter_map(|entry| entry.container.image.as_deref());
            used.extend(named.filter_map(|name| reference(name).ok()));
        }
        used.remove("");
        Ok(used)
    }
}

fn has_ended(pod: &Pod) -> bool {
    pod::is_terminal_phase(pod.status.as_ref().and_then(|status| status.phase.as_deref()))
}

fn candidates<'a>(pods: &'a [Arc<Pod>], usages: &'a HashMap<String, PodUsage>) -> Vec<Candidate<'a>> {
    pods.iter().map(|pod| Candidate { pod, usage: usages.get(pod::uid(pod)) }).collect()
}

async fn wait(tokens: Vec<CancellationToken>, limit: Duration) {
    let all = futures::future::join_all(tokens.iter().map(CancellationToken::cancelled));
    if tokio::time::timeout(limit, all).await.is_err() {
        tracing::warn!("pods that have to go are still there after {limit:?}");
    }
}

/// Conditions as Go prints them: `[DiskPressure MemoryPressure]`.
pub fn list(conditions: &BTreeSet<Condition>) -> String {
    let names: Vec<&str> = conditions.iter().map(|condition| condition.as_str()).collect();
    format!("[{}]", names.join(" "))
}
