//! Fifty nodes that take and give back addresses through one API server, die at any line and come back.
//!
//! Each runs what an agent runs, `ipam::Keeper` and its allocator, over a watch and a client with a node's rights. Requests get
//! lost before or after they are carried out, views are as old as they happen to be, machines lose their disks, and nodes are
//! deleted while they are down. What must hold: no address is at two pods, what a node has stays its own over restarts, and in
//! the end all is free.
//!
//! `SEAWAY_HAMMER_SECONDS` sets how long it goes on, `SEAWAY_HAMMER_SEED` what is left to chance but for the timing.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use calico::BlockAffinity;
use futures::{FutureExt, StreamExt};
use ipam::{
    Affinity, Allocator, Change, Demand, Demands, Keeper, NodePool, Pool, Request, Situation, Want, Write,
    keeper::Version,
};
use ipnetwork::IpNetwork;
use k8s_openapi::api::core::v1::{ConfigMap, Node};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams, ObjectMeta, PostParams, Preconditions},
    runtime::watcher,
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::json;
use tokio::time::Instant;

use crate::{cluster::Cluster, hollow::object, observe::eventually};

const NODES: usize = 50;
const SECONDS: u64 = 4;
const SEED: u64 = 77;
/// How often everything must have happened, and for how much longer that is waited for.
const ENOUGH: u64 = 20;
const PATIENCE: Duration = Duration::from_secs(60);
const LABEL: &str = "seaway.dev/ipam-block";
/// Pods of a node at most.
const PODS: u32 = 6;

/// Fewer blocks than nodes in the first, so that some must borrow; more than enough in the second.
fn pools() -> [Pool; 2] {
    let pool = |cidr: &str, length| Pool::new(cidr.parse().expect("a range"), length).expect("a pool");
    [pool("10.77.0.0/24", 29), pool("fd00:77::/108", 122)]
}

/// What outlives a process of a node.
#[derive(Default)]
struct Disk {
    allocator: Option<String>,
}

impl Disk {
    fn read(&self) -> Allocator {
        let text = self.allocator.as_ref();
        text.map_or_else(|| Allocator::new(0), |text| serde_json::from_str(text).expect("it is JSON"))
    }
}

struct World {
    seed: u64,
    disks: Vec<Mutex<Disk>>,
    /// Who uses an address: node and pod.
    users: Mutex<BTreeMap<IpAddr, (usize, String)>>,
    is_draining: AtomicBool,
    adds: AtomicU64,
    borrowed: AtomicU64,
    conflicts: AtomicU64,
    returns: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no code panics while it holds this lock")
}

impl World {
    /// A pod begins to use addresses.
    fn uses(&self, node: usize, pod: &str, addresses: &[IpAddr]) {
        let mut users = lock(&self.users);
        for address in addresses {
            let before = users.insert(*address, (node, pod.to_owned()));
            let is_same = before.as_ref().is_none_or(|before| *before == (node, pod.to_owned()));
            assert!(
                is_same,
                "{address} is at {before:?} and is given to {pod} of node {node}: seed {}",
                self.seed
            );
        }
    }

    fn is_no_more_used(&self, mut gone: impl FnMut(&(usize, String)) -> bool) {
        lock(&self.users).retain(|_, user| !gone(user));
    }
}

/// A process on a node.
struct Agent {
    world: Arc<World>,
    index: usize,
    name: String,
    api: Api<ConfigMap>,
    keeper: Keeper,
    allocator: Allocator,
    demands: Demands,
    random: StdRng,
    clock: u64,
    /// What it had when it ended last, until it has seen the store again.
    had: Option<BTreeSet<IpNetwork>>,
}

fn request(pod: &str) -> Request {
    Request {
        container_id: pod.to_owned(),
        interface: "eth0".to_owned(),
        pod_namespace: "default".to_owned(),
        pod_name: pod.to_owned(),
        host_ports: Vec::new(),
    }
}

impl Agent {
    async fn run(mut self) {
        let blocks = watcher::Config::default().labels(LABEL);
        let mut events = pin!(watcher::watcher(self.api.clone(), blocks));
        let mut listed = Vec::new();
        let mut next = Instant::now();
        loop {
            tokio::select! {
                Some(event) = events.next() => {
                    self.hear(event, &mut listed);
                    while let Some(Some(event)) = events.next().now_or_never() {
                        self.hear(event, &mut listed);
                    }
                }
                () = tokio::time::sleep_until(next) => {
                    self.live();
                    next = Instant::now() + Duration::from_millis(self.random.random_range(5..40));
                }
            }
            self.act().await;
        }
    }

    fn hear(
        &mut self,
        event: watcher::Result<watcher::Event<ConfigMap>>,
        listed: &mut Vec<(Affinity, Version)>,
    ) {
        match event {
            Ok(watcher::Event::Init) => listed.clear(),
            Ok(watcher::Event::InitApply(object)) => listed.push(read(&object)),
            Ok(watcher::Event::InitDone) => self.keeper.list(listed.drain(..)),
            Ok(watcher::Event::Apply(object)) => self.learn(&object),
            Ok(watcher::Event::Delete(object)) => {
                let (affinity, version) = read(&object);
                self.keeper.forget(affinity.block, version);
            }
            Err(error) => tracing::debug!(%error, "watch interrupted"),
        }
    }

    fn learn(&mut self, object: &ConfigMap) {
        let (affinity, version) = read(object);
        self.keeper.learn(affinity, version);
    }

    /// Pods come and go.
    fn live(&mut self) {
        self.clock += 1;
        if self.world.is_draining.load(Ordering::Relaxed) {
            self.end_pods(|_| true);
            return;
        }
        let pod = format!("{}-{}", self.name, self.random.random_range(0..PODS));
        if self.random.random_bool(0.45) {
            self.end_pods(|of| of == pod);
            return;
        }
        let mut wants = pools().map(|pool| Want::Of(vec![pool])).to_vec();
        if self.random.random_bool(0.1) {
            let host: u8 = self.random.random_range(1..255);
            wants[0] = Want::Exactly(Ipv4Addr::new(10, 77, 0, host).into());
        }
        let allocated = self.allocator.allocate(&wants, &[], &request(&pod), self.clock);
        self.write_down();
        match allocated {
            Ok(addresses) => {
                self.world.uses(self.index, &pod, &addresses);
                addresses.iter().for_each(|address| self.demands.meet(Demand::Address(*address)));
                self.world.adds.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => {
                error.demands().into_iter().for_each(|demand| self.demands.add(demand, self.clock));
            }
        }
    }

    fn end_pods(&mut self, which: impl Fn(&str) -> bool) {
        let index = self.index;
        self.world.is_no_more_used(|(node, pod)| *node == index && which(pod));
        self.allocator.release_if(self.clock, |allocation| which(&allocation.owner.container_id));
        self.write_down();
    }

    fn write_down(&self) {
        let text = serde_json::to_string(&self.allocator).expect("it is JSON");
        lock(&self.world.disks[self.index]).allocator = Some(text);
    }

    async fn act(&mut self) {
        let is_draining = self.world.is_draining.load(Ordering::Relaxed);
        let pools = pools().map(|pool| NodePool { pool, gives: !is_draining, is_automatic: true });
        let demands = &mut self.demands;
        let situation = Situation { pools: &pools, reserved: &[], demands, now: self.clock };
        let step = self.keeper.step(&mut self.allocator, situation);
        self.write_down();
        assert!(self.allocator.is_consistent());
        for change in &step.changes {
            match change {
                Change::Surrendered { block, owner, pods } => {
                    assert!(
                        pods.is_empty(),
                        "{block} of {} is {owner}'s: seed {}",
                        self.name,
                        self.world.seed
                    );
                }
                Change::Adopted(block) if self.allocator.borrowed().any(|single| single == *block) => {
                    self.world.borrowed.fetch_add(1, Ordering::Relaxed);
                }
                _ => {}
            }
        }
        if self.keeper.is_listed()
            && let Some(had) = self.had.take()
        {
            let has: BTreeSet<IpNetwork> = self.allocator.blocks().collect();
            let lost: Vec<_> = had.difference(&has).collect();
            assert!(is_draining || lost.is_empty(), "{} lost {lost:?}: seed {}", self.name, self.world.seed);
        }
        if let Some(write) = step.write {
            self.send(&write, if is_draining { 0.0 } else { 0.05 }).await;
        }
    }

    /// Requests and answers are lost with this likelihood each.
    async fn send(&mut self, write: &Write, loss: f64) {
        if self.random.random_bool(loss) {
            return;
        }
        let name = name_of(write.block());
        let written = match write {
            Write::Create(affinity) => {
                self.api.create(&PostParams::default(), &config_map(affinity, None)).await.map(Some)
            }
            Write::Replace(affinity, version) => {
                let object = config_map(affinity, Some(*version));
                self.api.replace(&name, &PostParams::default(), &object).await.map(Some)
            }
            Write::Delete(_, version) => {
                let preconditions = Preconditions { uid: None, resource_version: Some(version.to_string()) };
                let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
                self.api.delete(&name, &params).await.map(|_| None)
            }
        };
        if self.random.random_bool(loss) {
            return;
        }
        match written {
            Ok(Some(object)) => self.learn(&object),
            Ok(None) => self.keeper.forget(write.block(), Version::MAX),
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {
                self.world.conflicts.fetch_add(1, Ordering::Relaxed);
                match self.api.get_opt(&name).await {
                    Ok(Some(object)) => self.learn(&object),
                    Ok(None) => self.keeper.forget(write.block(), Version::MAX),
                    Err(error) => tracing::debug!(%error, "cannot read a block"),
                }
            }
            Err(error) => panic!("{write:?}: {error}"),
        }
    }
}

fn name_of(block: IpNetwork) -> String {
    format!("ipam-block-{}-{}", block.network().to_string().replace(['.', ':'], "-"), block.prefix())
}

fn config_map(affinity: &Affinity, version: Option<Version>) -> ConfigMap {
    ConfigMap {
        metadata: ObjectMeta {
            name: Some(name_of(affinity.block)),
            labels: Some([(LABEL.to_owned(), "x".to_owned())].into()),
            resource_version: version.map(|version| version.to_string()),
            ..ObjectMeta::default()
        },
        data: Some(affinity.to_fields()),
        ..ConfigMap::default()
    }
}

fn read(object: &ConfigMap) -> (Affinity, Version) {
    let affinity = Affinity::from_fields(object.data.as_ref().expect("it has data")).expect("it is a block");
    (affinity, object.resource_version().expect("it is stored").parse().expect("it is a number"))
}

/// A machine: processes one after the other, each ended wherever it is; in the end one that stays.
async fn machine(world: Arc<World>, index: usize, client: Client, admin: Client) {
    let mut random = StdRng::seed_from_u64(world.seed.wrapping_mul(1009).wrapping_add(index as u64));
    let name = format!("h{index}");
    let nodes = Api::<Node>::all(admin);
    let node: Node = object(json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": name } }));
    nodes.create(&PostParams::default(), &node).await.expect("the node is made");
    let mut clock = 1;
    let mut had = None;
    loop {
        let allocator = lock(&world.disks[index]).read();
        let agent = Agent {
            world: world.clone(),
            index,
            name: name.clone(),
            api: Api::namespaced(client.clone(), "kube-system"),
            keeper: Keeper::new(&name),
            allocator,
            demands: Demands::default(),
            random: StdRng::seed_from_u64(random.random()),
            clock,
            had: had.take(),
        };
        if world.is_draining.load(Ordering::Relaxed) {
            return agent.run().await;
        }
        let life = Duration::from_millis(random.random_range(300..2500));
        // What it panics of, it takes along.
        let _ = tokio::time::timeout(life, agent.run()).await;
        world.returns.fetch_add(1, Ordering::Relaxed);
        clock += 100_000;
        had = crash(&world, index, clock, &mut random);
        // Of machines that go down some are deleted, and come back before or after their blocks were given back.
        if had.is_none() && random.random_bool(0.5) {
            nodes.delete(&name, &DeleteParams::default()).await.expect("the node is deleted");
            tokio::time::sleep(Duration::from_millis(random.random_range(0..1500))).await;
            nodes.create(&PostParams::default(), &node).await.expect("the node is made again");
        }
    }
}

/// What is left after a process: its pods and blocks, where it ended alone, as which blocks are returned; or the disk; or
/// nothing.
fn crash(world: &World, index: usize, clock: u64, random: &mut StdRng) -> Option<BTreeSet<IpNetwork>> {
    let mut disk = lock(&world.disks[index]);
    let mut allocator = disk.read();
    let kind = random.random_range(0..10);
    if kind < 6 {
        return Some(allocator.blocks().filter(|block| !allocator.is_suspended(*block)).collect());
    }
    world.is_no_more_used(|(node, _)| *node == index);
    allocator.restart(clock);
    let text = serde_json::to_string(&allocator).expect("it is JSON");
    disk.allocator = (kind < 8).then_some(text);
    None
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is no number")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_nodes_that_die_and_come_back_never_share_an_address_and_leave_none_behind() {
    let cluster = Cluster::start(0, SEED).await;
    let world = Arc::new(World {
        seed: setting("SEAWAY_HAMMER_SEED", SEED),
        disks: (0..NODES).map(|_| Mutex::default()).collect(),
        users: Mutex::default(),
        is_draining: AtomicBool::new(false),
        adds: AtomicU64::new(0),
        borrowed: AtomicU64::new(0),
        conflicts: AtomicU64::new(0),
        returns: AtomicU64::new(0),
    });
    let seconds = setting("SEAWAY_HAMMER_SECONDS", SECONDS);
    let started = Instant::now();
    let mut machines = tokio::task::JoinSet::new();
    for index in 0..NODES {
        let client = cluster.client_as(&format!("system:node:h{index}"), &["system:nodes"]);
        machines.spawn(machine(world.clone(), index, client, cluster.client()));
    }
    let counts = || {
        [&world.adds, &world.borrowed, &world.conflicts, &world.returns].map(|it| it.load(Ordering::Relaxed))
    };
    // It is no test where nothing happens, on a machine that has other things to do.
    while started.elapsed() < Duration::from_secs(seconds) || counts().iter().any(|count| *count < ENOUGH) {
        assert!(
            started.elapsed() < Duration::from_secs(seconds) + PATIENCE,
            "little happens: {:?}",
            counts()
        );
        let pause = Duration::from_millis(100);
        if let Ok(Some(ended)) = tokio::time::timeout(pause, machines.join_next()).await {
            ended.expect("nothing is wrong on a machine");
        }
    }
    world.is_draining.store(true, Ordering::Relaxed);
    let blocks = Api::<ConfigMap>::namespaced(cluster.client(), "kube-system");
    let shown = Api::<BlockAffinity>::all(cluster.client());
    eventually("all addresses to be free", async || {
        if let Some(Err(error)) = machines.try_join_next() {
            panic!("something is wrong on a machine: {error}");
        }
        let labelled = ListParams::default().labels(LABEL);
        let left = blocks.list(&labelled).await.map_err(|error| error.to_string())?;
        let left: Vec<_> = left.iter().map(|object| format!("{:?}", object.data)).collect();
        let shown = shown.list(&ListParams::default()).await.map_err(|error| error.to_string())?.items.len();
        if left.is_empty() && shown == 0 { Ok(()) } else { Err(format!("{shown} are shown; {left:#?}")) }
    })
    .await;
    println!("{seconds} s: pods, borrowed, conflicts, restarts: {:?}", counts());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocks_are_shown_and_those_of_a_deleted_node_are_given_back() {
    let cluster = Cluster::start(0, SEED).await;
    let nodes = Api::<Node>::all(cluster.client());
    let blocks = Api::<ConfigMap>::namespaced(cluster.client(), "kube-system");
    let shown = Api::<BlockAffinity>::all(cluster.client());
    for (name, block) in [("silent", "10.77.0.0/26"), ("deleted", "10.77.0.64/26")] {
        let node = object(json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": name } }));
        nodes.create(&PostParams::default(), &node).await.expect("the node is made");
        let affinity = Affinity::new(block.parse().expect("a block"), name, ipam::State::Confirmed, 2);
        blocks.create(&PostParams::default(), &config_map(&affinity, None)).await.expect("it is claimed");
    }
    let names = async || {
        let shown = shown.list(&ListParams::default()).await.expect("they are listed");
        shown.iter().map(|it| format!("{} {}", it.name_any(), it.spec.state)).collect::<Vec<_>>()
    };
    let both = ["deleted-10-77-0-64-26 confirmed", "silent-10-77-0-0-26 confirmed"].map(str::to_owned);
    eventually("both to be shown", async || {
        let names = names().await;
        if names == both { Ok(()) } else { Err(format!("{names:?}")) }
    })
    .await;
    // Somebody's hand is undone.
    shown.delete("silent-10-77-0-0-26", &DeleteParams::default()).await.expect("it is deleted");
    nodes.delete("deleted", &DeleteParams::default()).await.expect("the node is deleted");
    eventually("the deleted node's block to be free", async || {
        let left =
            blocks.list(&ListParams::default().labels(LABEL)).await.map_err(|error| error.to_string())?;
        let left: Vec<_> = left.iter().map(ResourceExt::name_any).collect();
        let names = names().await;
        match left == ["ipam-block-10-77-0-0-26"] && names == both[1..] {
            true => Ok(()),
            false => Err(format!("{left:?}, {names:?}")),
        }
    })
    .await;
}
