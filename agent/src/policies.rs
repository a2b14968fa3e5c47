//! NetworkPolicies as the watches tell them, for the datapath.
//!
//! The NetworkPolicies of the cluster are always followed, all its Pods only while there is a policy. Nothing is written
//! before all is known that policies depend on: until then the maps say what an earlier agent said. While the API server is
//! away, what is known holds. A pod is added once what isolates it is in force; [`Policies::obstacle`] says why it cannot be.
//!
//! Locks are taken in the order network, policies, datapath.

mod pod;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use dataplane::datapath::{Datapath, Error};
use ipam::Allocation;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::runtime::watcher;
use kube::{Api, Client, Resource, ResourceExt};
use policy::{Counts, Policer};
use proxy::ObjectName;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, mpsc, watch as signal};
use tokio::task::AbortHandle;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::allocator;
use crate::journal::note;
use crate::metrics::text::Text;
use crate::network::Network;
use crate::persist;
use crate::watch::{self, Step, Steps};
use crate::wishes::Wishes;
use pod::PodObject;

/// How long after the start what was known last does not count, where it would let a pod be added: the API server has so
/// long to say what it is now, unless it does not answer at all.
const HEARING_TIME: Duration = Duration::from_secs(2);
/// How long an ADD waits for what is not known yet. The kubelet tries again.
const ADD_WAIT: Duration = Duration::from_secs(3);
/// After a failure to write.
const RETRY: Duration = Duration::from_secs(5);
/// Events taken before what they change is applied.
const BURST: usize = 4096;

/// What is known of policies and of all that they depend on.
pub struct Policies {
    state: Mutex<State>,
    file: PathBuf,
    started_at: Instant,
    /// Told whenever there may be an obstacle less.
    changed: signal::Sender<()>,
}

struct State {
    policer: Policer,
    policies: Steps,
    pods: Steps,
    knows_namespaces: bool,
    /// The maps have been given everything once; before that an old agent's content stays.
    is_set: bool,
    /// The maps have not taken what they were told.
    has_failed: bool,
    errors: u64,
    /// What could not be read of a policy, as it was told.
    problems: BTreeMap<ObjectName, Vec<String>>,
    kept: Option<Kept>,
    /// The API server did not answer since the start, once or more.
    is_unheard: bool,
}

/// What is on disk.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
struct Kept {
    /// Those that had policies when they were last heard of.
    namespaces: BTreeSet<String>,
}

impl Policies {
    /// With what is kept in this file.
    pub fn open(file: PathBuf) -> anyhow::Result<Policies> {
        let kept = persist::read(&file)?;
        // Each second has numbers of its own, for longer than an earlier agent's can be in the maps.
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let state = State {
            policer: Policer::new((seconds as u32) << 16),
            policies: Steps::default(),
            pods: Steps::default(),
            knows_namespaces: false,
            is_set: false,
            has_failed: false,
            errors: 0,
            problems: BTreeMap::new(),
            kept,
            is_unheard: false,
        };
        let changed = signal::Sender::new(());
        Ok(Policies { state: Mutex::new(state), file, started_at: Instant::now(), changed })
    }

    /// Whether the maps say what policies say.
    pub fn is_set(&self) -> bool {
        self.lock().is_set
    }

    /// These are all addresses of a pod of this node; none once it is detached. In force after [`Self::apply`].
    pub fn attach<'a>(&self, namespace: &str, name: &str, allocations: impl Iterator<Item = &'a Allocation>) {
        let is_of = |it: &&Allocation| it.owner.pod_namespace == namespace && it.owner.pod_name == name;
        let addresses: Vec<_> = allocations.filter(is_of).map(|it| it.address).collect();
        self.lock().policer.attach(namespace, name, &addresses);
    }

    /// Makes the maps say what is known, once it is complete. After an error, calling it again goes on where it stopped.
    pub fn apply<'a>(
        &self,
        datapath: impl FnOnce() -> Option<MutexGuard<'a, Datapath>>,
    ) -> Result<(), Error> {
        let mut state = self.lock();
        if !state.is_complete() {
            return Ok(());
        }
        let changes = state.policer.update();
        if state.is_set && !state.has_failed && changes.is_empty() {
            return Ok(());
        }
        let Some(mut datapath) = datapath() else { return Ok(()) };
        let written = if state.is_set && !state.has_failed {
            datapath.change_policies(&changes)
        } else {
            datapath.set_policies(state.policer.policies())
        };
        state.has_failed = written.is_err();
        state.errors += u64::from(written.is_err());
        state.is_set |= written.is_ok();
        written
    }

    /// Whether one of these addresses is of a pod that is isolated.
    pub fn isolates(&self, addresses: &[IpAddr]) -> bool {
        let state = self.lock();
        let pods = &state.policer.policies().pods;
        addresses.iter().any(|address| pods.contains_key(&(*address).into()))
    }

    /// Why a pod cannot be added now; `uid` may be empty.
    fn obstacle(&self, namespace: &str, name: &str, uid: &str) -> Option<String> {
        let state = self.lock();
        if !state.is_set {
            let was_free = state.kept.as_ref().is_some_and(|kept| !kept.namespaces.contains(namespace));
            let is_silent = state.is_unheard || self.started_at.elapsed() >= HEARING_TIME;
            let is_free = was_free && is_silent;
            return (!is_free).then(|| "NetworkPolicies are not in the datapath yet".to_owned());
        }
        if !state.policer.has_policies(namespace) {
            return None;
        }
        if !state.is_complete() {
            return Some(format!("what NetworkPolicies of namespace {namespace} select is not known yet"));
        }
        let is_known = state.policer.knows_pod(namespace, name, uid);
        (!is_known).then(|| {
            format!(
                "the API server has not told of pod {namespace}/{name} yet: NetworkPolicies of its namespace may isolate it"
            )
        })
    }

    /// Waits until nothing keeps a pod from being added.
    ///
    /// # Errors
    /// What still does after a while.
    pub async fn await_pod(&self, namespace: &str, name: &str, uid: &str) -> Result<(), String> {
        self.await_pod_for(ADD_WAIT, namespace, name, uid).await
    }

    async fn await_pod_for(
        &self,
        time: Duration,
        namespace: &str,
        name: &str,
        uid: &str,
    ) -> Result<(), String> {
        let mut changed = self.changed.subscribe();
        let until = tokio::time::Instant::now() + time;
        let heard = tokio::time::Instant::from_std(self.started_at + HEARING_TIME);
        loop {
            changed.mark_unchanged();
            let Some(obstacle) = self.obstacle(namespace, name, uid) else { return Ok(()) };
            let now = tokio::time::Instant::now();
            if now >= until {
                return Err(obstacle);
            }
            let next = if now < heard { heard.min(until) } else { until };
            // Which of the two it was, the next look tells.
            drop(tokio::time::timeout_at(next, changed.changed()).await);
        }
    }

    fn policy(&self, event: watcher::Event<NetworkPolicy>) {
        let mut state = self.lock();
        match state.policies.step(event) {
            None => {}
            Some(Step::Apply(policy)) => state.insert_policy(&policy),
            Some(Step::Delete(policy)) => {
                let name = ObjectName::of(&policy.metadata);
                state.policer.remove_policy(&name.namespace, &name.name);
                state.problems.remove(&name);
                note!("policy", format!("{}/{}", name.namespace, name.name), "gone");
            }
            Some(Step::Listed(named)) => {
                state.problems.retain(|name, _| named.contains(name));
                state.policer.retain_policies(|namespace, name| {
                    named.contains(&ObjectName { namespace: namespace.to_owned(), name: name.to_owned() })
                });
            }
        }
    }

    fn pod(&self, event: watcher::Event<PodObject>) {
        let mut state = self.lock();
        match state.pods.step(event) {
            None => {}
            Some(Step::Apply(pod)) => {
                let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
                state.policer.insert_pod(&namespace, &name, &pod.facts());
            }
            Some(Step::Delete(pod)) => {
                let name = ObjectName::of(pod.meta());
                state.policer.remove_pod(&name.namespace, &name.name);
            }
            Some(Step::Listed(named)) => state.policer.retain_pods(|namespace, name| {
                named.contains(&ObjectName { namespace: namespace.to_owned(), name: name.to_owned() })
            }),
        }
    }

    fn namespaces(&self, wishes: &Wishes) {
        let mut state = self.lock();
        let mut known = BTreeSet::new();
        wishes.each_namespace(|name, labels| {
            state.policer.insert_namespace(name, labels);
            known.insert(name.to_owned());
        });
        state.policer.retain_namespaces(|name| known.contains(name));
        state.knows_namespaces = true;
    }

    /// Without policies nothing more need be known.
    fn forget(&self) {
        let mut state = self.lock();
        state.policer.clear();
        state.pods = Steps::default();
        state.knows_namespaces = false;
    }

    fn has_policies(&self) -> bool {
        self.lock().policer.policy_count() > 0
    }

    /// Keeps on disk which namespaces have policies.
    fn keep(&self) -> anyhow::Result<()> {
        let kept = {
            let state = self.lock();
            if !state.policies.complete() {
                return Ok(());
            }
            let namespaces = state.policer.policed_namespaces().map(str::to_owned).collect();
            let kept = Kept { namespaces };
            if state.kept.as_ref() == Some(&kept) {
                return Ok(());
            }
            kept
        };
        persist::write(&self.file, &kept)?;
        self.lock().kept = Some(kept);
        Ok(())
    }

    /// What is in force, as `read` takes it.
    ///
    /// # Errors
    /// Where nothing is yet.
    pub fn read<T>(&self, read: impl FnOnce(&Policer) -> T) -> Result<T, &'static str> {
        let state = self.lock();
        if state.is_set {
            Ok(read(&state.policer))
        } else {
            Err("NetworkPolicies are not in the datapath yet")
        }
    }

    pub fn write(&self, text: &mut Text) {
        let (counts, is_in_force, errors) = {
            let state = self.lock();
            (state.policer.counts(), state.is_set && state.is_complete() && !state.has_failed, state.errors)
        };
        let Counts { policies, isolated_pods, identities, terms, groups, lists, peers, rules } = counts;
        let mut gauge = |name, help, value: usize| {
            text.gauge(name, help).sample(&[], value);
        };
        gauge(
            "seaway_policy_in_force",
            "Whether the maps say what is known of NetworkPolicies.",
            usize::from(is_in_force),
        );
        gauge("seaway_policy_policies", "NetworkPolicies of the cluster.", policies);
        gauge(
            "seaway_policy_isolated_pods",
            "Pods of this node that a NetworkPolicy isolates.",
            isolated_pods,
        );
        gauge(
            "seaway_policy_identities",
            "Pods of the cluster, those alike once; 0 without policies.",
            identities,
        );
        gauge("seaway_policy_terms", "Peers that rules for pods of this node name.", terms);
        gauge("seaway_policy_groups", "Groups of peers that no rule tells apart.", groups);
        gauge("seaway_policy_lists", "Different lists of what pods of this node are allowed.", lists);
        gauge("seaway_policy_peers", "Addresses and ranges that the maps know.", peers);
        gauge("seaway_policy_rules", "Rules that the maps hold.", rules);
        text.counter("seaway_policy_sync_errors_total", "Changes that the maps did not take.")
            .sample(&[], errors);
    }

    /// After a panic of another thread, which has told of it: what is due is done at the next change.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Whether all is known that policies depend on.
    fn is_complete(&self) -> bool {
        let knows_pods = self.policer.policy_count() == 0 || self.pods.complete() && self.knows_namespaces;
        self.policies.complete() && knows_pods
    }

    fn insert_policy(&mut self, policy: &NetworkPolicy) {
        let name = ObjectName::of(&policy.metadata);
        let text = format!("{}/{}", name.namespace, name.name);
        let problems = self.policer.insert_policy(policy).to_vec();
        let is_told = self.problems.get(&name).map_or(problems.is_empty(), |told| *told == problems);
        if !is_told {
            for problem in &problems {
                tracing::warn!(
                    policy = text,
                    problem,
                    "what of a NetworkPolicy cannot be read allows nothing"
                );
            }
        }
        if problems.is_empty() {
            self.problems.remove(&name);
        } else {
            self.problems.insert(name, problems);
        }
        note!("policy", text, "as the API server has it");
    }
}

/// The watch of all Pods, as long as it is held.
struct PodWatch {
    events: mpsc::Receiver<watcher::Event<PodObject>>,
    task: AbortHandle,
}

impl PodWatch {
    fn start(client: &Client) -> PodWatch {
        let (sender, events) = watch::channel();
        let all = watcher::Config::default().any_semantic();
        let task = watch::spawn(Api::<PodObject>::all(client.clone()), all, sender, |event| event);
        PodWatch { events, task }
    }
}

impl Drop for PodWatch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Follows the API and keeps the maps in step until cancelled; `wake` is told when they have all for the first time.
pub struct Follower {
    client: Client,
    policies: Arc<Policies>,
    events: mpsc::Receiver<watcher::Event<NetworkPolicy>>,
    pods: Option<PodWatch>,
}

impl Follower {
    /// Begins to listen, and takes nothing yet.
    pub fn new(client: Client, policies: Arc<Policies>) -> Follower {
        let (sender, events) = watch::channel();
        let all = watcher::Config::default().any_semantic();
        let unheard = policies.clone();
        let failed = move || {
            unheard.lock().is_unheard = true;
            unheard.changed.send_replace(());
        };
        let all_policies = Api::<NetworkPolicy>::all(client.clone());
        watch::spawn_telling(all_policies, all, sender, |event| event, failed);
        Follower { client, policies, events, pods: None }
    }

    pub fn start(
        self,
        network: Arc<Network>,
        wishes: Arc<Wishes>,
        wake: Arc<Notify>,
        cancel: CancellationToken,
    ) {
        tokio::spawn(cancel.run_until_cancelled_owned(self.run(network, wishes, wake)));
    }

    async fn run(mut self, network: Arc<Network>, wishes: Arc<Wishes>, wake: Arc<Notify>) {
        let mut namespaces = wishes.namespaces_told();
        let mut retry = tokio::time::interval(RETRY);
        retry.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut was_set = false;
        loop {
            let policies = self.policies.clone();
            tokio::select! {
                Some(event) = self.events.recv() => {
                    policies.policy(event);
                    let mut burst = BURST;
                    while burst > 0 && let Ok(event) = self.events.try_recv() {
                        policies.policy(event);
                        burst -= 1;
                    }
                }
                Some(event) = next(&mut self.pods) => {
                    policies.pod(event);
                    let mut burst = BURST;
                    while burst > 0
                        && let Some(Ok(event)) = self.pods.as_mut().map(|pods| pods.events.try_recv())
                    {
                        policies.pod(event);
                        burst -= 1;
                    }
                }
                Ok(()) = namespaces.changed() => {
                    if self.pods.is_some() && *namespaces.borrow_and_update() > 0 {
                        policies.namespaces(&wishes);
                    }
                }
                _ = retry.tick() => {
                    if !policies.lock().has_failed {
                        continue;
                    }
                }
            }
            self.look(&wishes, &mut namespaces);
            self.apply(&network).await;
            if !was_set && self.policies.is_set() {
                was_set = true;
                wake.notify_one();
            }
        }
    }

    /// Begins to follow what policies depend on where there are some, and ends it where there are none.
    fn look(&mut self, wishes: &Wishes, namespaces: &mut signal::Receiver<u64>) {
        match (self.policies.has_policies(), self.pods.is_some()) {
            (true, false) => {
                tracing::info!("there are NetworkPolicies: following all pods");
                self.pods = Some(PodWatch::start(&self.client));
                if *namespaces.borrow_and_update() > 0 {
                    self.policies.namespaces(wishes);
                }
            }
            (false, true) => {
                tracing::info!("there are no NetworkPolicies any more");
                self.pods = None;
                self.policies.forget();
                allocator::give_back();
            }
            _ => {}
        }
    }

    /// On a thread of its own, as the kernel takes its time for many elements.
    async fn apply(&self, network: &Arc<Network>) {
        let (policies, network) = (self.policies.clone(), network.clone());
        let applying = tokio::task::spawn_blocking(move || {
            if let Err(error) = policies.keep() {
                tracing::warn!("{error:#}");
            }
            policies.apply(|| network.datapath())
        });
        match applying.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(error = watch::chain(&error), "writing NetworkPolicies to the datapath");
            }
            Err(error) => tracing::error!(%error, "writing NetworkPolicies to the datapath"),
        }
        self.policies.changed.send_replace(());
    }
}

/// Never, where no pods are followed.
async fn next(pods: &mut Option<PodWatch>) -> Option<watcher::Event<PodObject>> {
    match pods {
        Some(pods) => pods.events.recv().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
