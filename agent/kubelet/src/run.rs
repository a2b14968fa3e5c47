//! Starts the tasks of the kubelet and gives every pod of the node its worker.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::Context as _;
use futures::StreamExt;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::Api;
use kube::runtime::{WatchStreamExt, watcher};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::admission;
use crate::cgroups::Cgroups;
use crate::config::Config;
use crate::configuration::Configuration;
use crate::context::{Context, Owners};
use crate::cri::{self, Runtime};
use crate::env::ServiceLinks;
use crate::eviction::Evictor;
use crate::images::Images;
use crate::node;
use crate::objects::Objects;
use crate::orphans;
use crate::pod;
use crate::recorder::{Recorder, Type};
use crate::runtime_events::{self, Event};
use crate::server;
use crate::volumes::Volumes;
use crate::worker::{Message, Worker};

const HOUSEKEEPING: Duration = Duration::from_secs(60);
const RUNTIME_WAIT: Duration = Duration::from_secs(1);

/// The pods of the node as the kubelet knows them, by UID: what its server answers from.
#[derive(Clone, Default)]
pub struct PodTable(Arc<RwLock<HashMap<String, Arc<Pod>>>>);

impl PodTable {
    pub fn all(&self) -> Vec<Arc<Pod>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// The pod of that name, the one not being deleted first.
    pub fn find(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        let pods = self.all();
        let mut found = pods.into_iter().filter(|p| pod::namespace(p) == namespace && pod::name(p) == name);
        let first = found.next()?;
        Some(found.find(|p| p.metadata.deletion_timestamp.is_none()).unwrap_or(first))
    }

    fn insert(&self, pod: Arc<Pod>) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(pod::uid(&pod).to_owned(), pod);
    }

    fn remove(&self, uid: &str) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }
}

/// Runs the kubelet until `cancel`. Running pods are left alone at the end, so that a restart finds them.
///
/// # Errors
/// The server's certificate or port cannot be used, or a directory cannot be made. A runtime or an apiserver that does
/// not answer is waited for.
pub async fn run(
    client: kube::Client,
    config: Config,
    services: Arc<dyn ServiceLinks>,
    cancel: CancellationToken,
) -> anyhow::Result<()> {
    anyhow::ensure!(!config.node_ips.is_empty(), "the kubelet needs at least one address of the node");
    for directory in [&config.state_dir, &config.run_dir, &config.log_dir] {
        std::fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    }
    let channel = cri::channel(&config.containerd_socket);
    let runtime = Runtime::new(channel.clone());
    if !wait_for_runtime(&runtime, &config, &cancel).await {
        return Ok(());
    }
    let (changed_objects, objects_receiver) = mpsc::unbounded_channel();
    let (events_sender, events) = mpsc::unbounded_channel();
    let configuration = Configuration::load(&config.state_dir)?;
    let context =
        Arc::new(make_context(&client, config, configuration, runtime.clone(), changed_objects, services));
    context.cgroups.prepare_node();
    let (node_sender, node) = watch::channel(None);
    let pods = PodTable::default();
    let (orders, orders_receiver) = mpsc::unbounded_channel();
    let mut evictor = Evictor::new(context.clone(), pods.clone(), orders);
    // The conditions are known before the first pod is admitted.
    evictor.look().await;
    let mut tasks = JoinSet::new();
    if let Some(tls) = context.config.server_tls.clone() {
        let server = server::Server::bind(context.clone(), pods.clone(), &tls).await?;
        tasks.spawn(server.run(cancel.clone()));
    }
    tasks.spawn(runtime_events::watch(runtime, channel, events_sender));
    tasks.spawn(node::run(context.clone(), node_sender, cancel.clone()));
    tasks.spawn(evictor.run());
    let runner = Runner {
        context,
        node,
        pods,
        workers: HashMap::new(),
        ended: HashSet::new(),
        tasks: JoinSet::new(),
        listed: None,
        synced: false,
        cancel: cancel.clone(),
    };
    runner.run(events, objects_receiver, orders_receiver).await;
    tasks.shutdown().await;
    Ok(())
}

async fn wait_for_runtime(runtime: &Runtime, config: &Config, cancel: &CancellationToken) -> bool {
    let mut told = false;
    loop {
        match runtime.version().await {
            Ok(version) => {
                let (name, version) = (version.runtime_name, version.runtime_version);
                tracing::info!(runtime = name, version, "container runtime found");
                return true;
            }
            Err(error) if !told => {
                told = true;
                let socket = config.containerd_socket.display();
                tracing::warn!(%socket, %error, "the container runtime does not answer yet");
            }
            Err(_) => {}
        }
        tokio::select! {
            () = cancel.cancelled() => return false,
            () = tokio::time::sleep(RUNTIME_WAIT) => {}
        }
    }
}

fn make_context(
    client: &kube::Client,
    config: Config,
    configuration: Configuration,
    runtime: Runtime,
    changed_objects: mpsc::UnboundedSender<String>,
    services: Arc<dyn ServiceLinks>,
) -> Context {
    let objects = Objects::new(client.clone(), changed_objects);
    Context {
        client: client.clone(),
        images: Images::new(runtime.clone()),
        runtime,
        volumes: Volumes {
            client: client.clone(),
            objects,
            state_dir: config.state_dir.clone(),
            run_dir: config.run_dir.clone(),
        },
        cgroups: Cgroups::new(&config.cgroup_parent),
        recorder: Recorder::start(client.clone(), config.node_name.clone()),
        services,
        owners: Owners::default(),
        capacity: node::capacity(&config, &configuration.eviction),
        pressure: watch::Sender::default(),
        host_ips: config.node_ips.iter().map(ToString::to_string).collect(),
        config,
        configuration,
    }
}

struct Runner {
    context: Arc<Context>,
    node: watch::Receiver<Option<Arc<Node>>>,
    pods: PodTable,
    workers: HashMap<String, mpsc::UnboundedSender<Message>>,
    /// UIDs whose pod has left the node but may still be seen in the watch.
    ended: HashSet<String>,
    /// Workers; each gives back the UID of its pod.
    tasks: JoinSet<String>,
    /// UIDs seen in the list that is coming in.
    listed: Option<HashSet<String>>,
    /// The list of pods is complete: what is not in it does not belong here.
    synced: bool,
    cancel: CancellationToken,
}

impl Runner {
    async fn run(
        mut self,
        mut events: mpsc::UnboundedReceiver<Event>,
        mut objects: mpsc::UnboundedReceiver<String>,
        mut orders: mpsc::UnboundedReceiver<(String, Message)>,
    ) {
        let selector = format!("spec.nodeName={}", self.context.config.node_name);
        let api = Api::<Pod>::all(self.context.client.clone());
        let watch = watcher(api, watcher::Config::default().fields(&selector)).default_backoff();
        let mut watch = std::pin::pin!(watch);
        let mut network = self.context.config.network_ready.clone();
        let mut housekeeping = tokio::time::interval(HOUSEKEEPING);
        let cancel = self.cancel.clone();
        loop {
            tokio::select! {
                () = cancel.cancelled() => break,
                event = watch.next() => match event {
                    Some(Ok(event)) => self.pod_event(event),
                    Some(Err(error)) => tracing::warn!(%error, "watch of pods broke, will be retried"),
                    None => break,
                },
                Some(event) = events.recv() => self.runtime_event(event),
                Some(uid) = objects.recv() => self.tell(&uid, Message::Objects),
                Some((uid, message)) = orders.recv() => self.tell(&uid, message),
                Ok(()) = network.changed() => {
                    let ready = *network.borrow_and_update();
                    self.tell_all(&Message::Network(ready));
                }
                Some(ended) = self.tasks.join_next() => self.worker_ended(ended),
                _ = housekeeping.tick() => self.remove_orphans(),
            }
        }
        while self.tasks.join_next().await.is_some() {}
    }

    fn tell(&self, uid: &str, message: Message) {
        if let Some(worker) = self.workers.get(uid) {
            // A worker that has just ended needs no more messages.
            let _ = worker.send(message);
        }
    }

    fn tell_all(&self, message: &Message) {
        for worker in self.workers.values() {
            let _ = worker.send(message.clone());
        }
    }

    fn runtime_event(&mut self, event: Event) {
        let (id, exited) = match event {
            Event::Gap => return self.tell_all(&Message::Runtime { exited: None }),
            Event::Changed(id) => (id, false),
            Event::Exited(id) => (id, true),
        };
        if let Some(uid) = self.context.owners.get(&id) {
            self.tell(&uid, Message::Runtime { exited: exited.then_some(id) });
        }
    }

    fn pod_event(&mut self, event: watcher::Event<Pod>) {
        match event {
            watcher::Event::Init => self.listed = Some(HashSet::new()),
            watcher::Event::InitApply(pod) => {
                if let Some(listed) = &mut self.listed {
                    listed.insert(pod::uid(&pod).to_owned());
                }
                self.apply(Arc::new(pod));
            }
            watcher::Event::InitDone => {
                let listed = self.listed.take().unwrap_or_default();
                let gone = self.pods.all().into_iter().filter(|pod| !listed.contains(pod::uid(pod)));
                for pod in gone.collect::<Vec<_>>() {
                    self.removed(pod);
                }
                self.synced = true;
                self.remove_orphans();
            }
            watcher::Event::Apply(pod) => self.apply(Arc::new(pod)),
            watcher::Event::Delete(pod) => self.removed(Arc::new(pod)),
        }
    }

    fn apply(&mut self, pod: Arc<Pod>) {
        let uid = pod::uid(&pod).to_owned();
        if uid.is_empty() || self.ended.contains(&uid) {
            return;
        }
        self.pods.insert(pod.clone());
        if self.workers.contains_key(&uid) {
            self.tell(&uid, Message::Pod(pod));
            return;
        }
        self.start_worker(uid, pod);
    }

    fn start_worker(&mut self, uid: String, pod: Arc<Pod>) {
        let status = pod.status.as_ref();
        // Only a pod that has never been here is checked.
        let new = status.is_none_or(|status| status.start_time.is_none());
        let failure = if new { self.admit(&pod) } else { None };
        if let Some(failure) = &failure {
            self.context.recorder.pod(&pod, Type::Warning, &failure.reason, failure.message.clone());
        }
        let (sender, messages) = mpsc::unbounded_channel();
        let (worker, inbox) = Worker::new(self.context.clone(), pod, failure, messages);
        self.workers.insert(uid.clone(), sender);
        let cancel = self.cancel.clone();
        self.tasks.spawn(async move {
            worker.run(inbox, cancel).await;
            uid
        });
    }

    fn admit(&self, pod: &Pod) -> Option<crate::status::Failure> {
        if let Err(failure) = admission::under_pressure(pod, &self.context.pressure.borrow()) {
            return Some(failure);
        }
        let node = self.node.borrow().clone();
        let labels = node.and_then(|node| node.metadata.labels.clone());
        let labels = match labels {
            Some(labels) => labels,
            // Before the Node is known its labels cannot speak against a pod.
            None => pod.spec.as_ref().and_then(|spec| spec.node_selector.clone()).unwrap_or_default(),
        };
        let others = self.pods.all();
        let others = others.iter().map(AsRef::as_ref);
        admission::check(pod, others, &labels, &self.context.capacity.allocatable_milli).err()
    }

    fn removed(&mut self, pod: Arc<Pod>) {
        let uid = pod::uid(&pod).to_owned();
        self.ended.remove(&uid);
        if self.workers.contains_key(&uid) {
            self.tell(&uid, Message::Removed(pod));
        } else {
            self.pods.remove(&uid);
        }
    }

    fn worker_ended(&mut self, ended: Result<String, tokio::task::JoinError>) {
        match ended {
            Ok(uid) => {
                self.workers.remove(&uid);
                self.pods.remove(&uid);
                self.ended.insert(uid);
            }
            Err(error) => {
                tracing::error!(%error, "a pod's worker broke down, it is started again");
                self.restart_broken();
            }
        }
    }

    fn restart_broken(&mut self) {
        self.workers.retain(|_, worker| !worker.is_closed());
        let lost = self.pods.all().into_iter().filter(|pod| !self.workers.contains_key(pod::uid(pod)));
        for pod in lost.collect::<Vec<_>>() {
            self.start_worker(pod::uid(&pod).to_owned(), pod);
        }
    }

    fn remove_orphans(&mut self) {
        if !self.synced || self.cancel.is_cancelled() {
            return;
        }
        tokio::spawn(orphans::remove(self.context.clone(), self.pods.clone()));
    }
}
