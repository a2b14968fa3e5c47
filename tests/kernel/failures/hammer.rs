//! Real agents in namespaces whose pods come and go by the plugin, while agents are killed, the API server too, and nodes are
//! removed and come back: no address is at two pods, no block leaves a node that lives, and nothing is left behind.
//!
//! What pods have is what their ADD was answered, from then until their DEL begins or their machine is gone. In the tier five
//! nodes do that for some seconds, as the start of more takes longer than the rest; all of it is
//! `SEAWAY_HAMMER_NODES=50 SEAWAY_HAMMER_SECONDS=600`. `SEAWAY_HAMMER_SEED` decides what is left to chance but for the timing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use calico::IpPool;
use ipam::Affinity;
use ipnetwork::IpNetwork;
use k8s_openapi::api::core::v1::{ConfigMap, Node as ApiNode};
use kube::Api;
use kube::api::{DeleteParams, ListParams};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use super::fabric::{Node, Switch, pass, register};
use crate::netns::{NetNs, attempts_for};
use crate::routing::addresses::{add_at, delete_at};
use crate::routing::server::Server;

const NODES: u64 = 5;
const SECONDS: u64 = 8;
const SEED: u64 = 41;
const FIRST: u8 = 11;
const WORKERS: u64 = 4;
/// Addresses of a block, and of the pool for each node: some rest, and in the end nodes borrow from each other.
const BLOCK: u64 = 16;
const ADDRESSES: u64 = 64;
/// Pods of a node, on the average and at most.
const PODS: u64 = 24;
/// Seconds that a Node must be missing before its blocks are given back.
const GRACE: u64 = 3;
/// Until all is as it should be, when nothing fails any more.
const SETTLED: Duration = Duration::from_secs(120);

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is no number")))
}

/// What pods have, as their runtimes were told.
#[derive(Default)]
struct Book {
    /// By address: the number of the node, and the pod.
    live: BTreeMap<String, (usize, String)>,
    /// How often each machine was lost with its pods.
    lost: Vec<u32>,
    wrong: Vec<String>,
    adds: u64,
    refused: u64,
    deletes: u64,
    most: usize,
}

struct World {
    seed: u64,
    sockets: Vec<PathBuf>,
    book: Mutex<Book>,
    is_over: AtomicBool,
    /// Written to while the API server is away.
    server: RwLock<Server>,
    /// Nodes that are missing, or were for so long that their blocks may be given back, and until when that may show.
    missed: Mutex<BTreeMap<String, Option<Instant>>>,
    /// Owners by block, as they were seen.
    owners: Mutex<BTreeMap<IpNetwork, String>>,
}

struct Pod {
    node: usize,
    name: String,
    address: String,
    _netns: NetNs,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl World {
    fn server(&self) -> RwLockReadGuard<'_, Server> {
        self.server.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// `Err`: whether it has an address is not known.
    fn add(&self, node: usize, name: String) -> Result<Pod, Pod> {
        let lost = lock(&self.book).lost[node];
        let netns = NetNs::new();
        let added = add_at(&self.sockets[node], &name, &netns);
        let mut pod = Pod { node, name, address: String::new(), _netns: netns };
        let mut book = lock(&self.book);
        let Ok(address) = added else {
            book.refused += 1;
            return Err(pod);
        };
        if book.lost[node] != lost {
            return Err(pod);
        }
        book.adds += 1;
        if let Some(other) = book.live.insert(address.clone(), (node, pod.name.clone())) {
            book.wrong.push(format!("{address} is at {other:?} and is given to {} of {node}", pod.name));
        }
        book.most = book.most.max(book.live.len());
        pod.address = address;
        Ok(pod)
    }

    fn lives(&self, pod: &Pod) -> bool {
        lock(&self.book).live.get(&pod.address).is_some_and(|(_, name)| *name == pod.name)
    }

    /// From now on the pod's address is not its own; returns whether the agent has said so.
    fn delete(&self, pod: &Pod) -> bool {
        if self.lives(pod) {
            lock(&self.book).live.remove(&pod.address);
        }
        let is_deleted = delete_at(&self.sockets[pod.node], &pod.name);
        lock(&self.book).deletes += u64::from(is_deleted);
        is_deleted
    }

    /// A machine is gone with its pods.
    fn lose(&self, node: usize) {
        let mut book = lock(&self.book);
        book.lost[node] += 1;
        book.live.retain(|_, (at, _)| *at != node);
    }

    /// Adds and deletes pods; returns those that are left.
    fn work(&self, worker: u64) -> Vec<Pod> {
        let mut random = StdRng::seed_from_u64(self.seed.wrapping_mul(1009).wrapping_add(worker));
        let nodes = self.sockets.len();
        let (mut pods, mut to_delete): (Vec<Pod>, Vec<Pod>) = (Vec::new(), Vec::new());
        let most = PODS as usize * nodes / WORKERS as usize;
        for number in 0.. {
            if self.is_over.load(Ordering::Relaxed) {
                break;
            }
            if pods.is_empty() || (pods.len() < most && random.random_bool(0.6)) {
                match self.add(random.random_range(0..nodes), format!("p{worker}-{number}")) {
                    Ok(pod) => pods.push(pod),
                    Err(pod) => to_delete.push(pod),
                }
            } else {
                to_delete.push(pods.swap_remove(random.random_range(0..pods.len())));
            }
            to_delete.retain(|pod| !self.delete(pod));
        }
        let all = attempts_for(SETTLED, || {
            to_delete.retain(|pod| !self.delete(pod));
            to_delete.is_empty().then_some(())
        });
        assert!(all.is_some(), "{} pods cannot be deleted", to_delete.len());
        pods
    }

    /// The blocks of all nodes, unless the API server does not answer now.
    fn blocks(&self) -> Option<Vec<Affinity>> {
        let label = ListParams::default().labels("seaway.dev/ipam-block");
        let listed = self.server().ask(async |client| {
            Api::<ConfigMap>::namespaced(client, "kube-system").list(&label).await.ok()
        })?;
        let of = |object: &ConfigMap| {
            Affinity::from_fields(object.data.as_ref().expect("a block has data")).expect("a block")
        };
        Some(listed.iter().map(of).collect())
    }

    /// Whoever was seen to have a block has it still, unless its node was missing.
    fn watch_owners(&self) {
        while !self.is_over.load(Ordering::Relaxed) {
            if let Some(blocks) = self.blocks() {
                self.see(&blocks);
            }
            pass(Duration::from_millis(200));
        }
    }

    fn see(&self, blocks: &[Affinity]) {
        let now: BTreeMap<IpNetwork, String> =
            blocks.iter().map(|affinity| (affinity.block, affinity.node.clone())).collect();
        let mut missed = lock(&self.missed);
        missed.retain(|_, until| until.is_none_or(|until| until > Instant::now()));
        let before = std::mem::replace(&mut *lock(&self.owners), now.clone());
        let lost = before.into_iter().filter(|(block, owner)| now.get(block) != Some(owner));
        for (block, owner) in lost.filter(|(_, owner)| !missed.contains_key(owner)) {
            let now = now.get(&block);
            lock(&self.book).wrong.push(format!("{block} was {owner}'s and is {now:?}'s"));
        }
    }
}

/// What happens to nodes and the API server.
struct Fate<'a> {
    world: &'a World,
    nodes: &'a mut [Node],
    random: StdRng,
    /// Nodes that are away with their machine, and until when.
    away: Vec<(usize, Instant)>,
    kills: u32,
    restarts: u32,
    removals: u32,
    losses: u32,
}

impl Fate<'_> {
    fn pass(&mut self, most: u64) {
        pass(Duration::from_millis(self.random.random_range(0..most)));
    }

    fn run(&mut self, until: Instant) {
        while Instant::now() < until {
            match self.random.random_range(0..12) {
                0 => self.restart_server(),
                1 => self.remove_node(),
                2 => self.lose_machine(),
                _ => self.kill_agents(),
            }
            let (due, away) = self.away.drain(..).partition(|(_, until)| *until <= Instant::now());
            self.away = away;
            self.bring_back(due);
            self.pass(400);
        }
        let all = std::mem::take(&mut self.away);
        self.bring_back(all);
    }

    /// One of those that are there.
    fn any(&mut self) -> usize {
        loop {
            let node = self.random.random_range(0..self.nodes.len());
            if self.away.iter().all(|(away, _)| *away != node) {
                return node;
            }
        }
    }

    fn restart_server(&mut self) {
        self.restarts += 1;
        let mut server = self.world.server.write().unwrap_or_else(PoisonError::into_inner);
        server.kill();
        pass(Duration::from_millis(self.random.random_range(0..1000)));
        server.run();
    }

    /// Some die at once, and come back after a while; some of them die before they have started. Half of all work at any time.
    fn kill_agents(&mut self) {
        let works = |node: &&Node| UnixStream::connect(node.agent.socket()).is_ok();
        if self.nodes.iter().filter(works).count() * 2 < self.nodes.len() {
            return;
        }
        let mut some: Vec<usize> = (0..self.random.random_range(1..4)).map(|_| self.any()).collect();
        some.sort_unstable();
        some.dedup();
        for node in &some {
            self.kills += 1;
            self.nodes[*node].agent.kill();
        }
        self.pass(300);
        some.iter().for_each(|node| self.nodes[*node].spawn());
    }

    fn delete_object(&self, node: usize) {
        let name = &self.nodes[node].name;
        let deleted = attempts_for(SETTLED, || {
            self.world.server().ask(async |client| {
                let deleted = Api::<ApiNode>::all(client).delete(name, &DeleteParams::default()).await;
                match deleted {
                    Err(kube::Error::Api(status)) if status.code == 404 => Some(()),
                    deleted => deleted.ok().map(drop),
                }
            })
        });
        assert!(deleted.is_some(), "{name} is deleted");
    }

    fn create_object(&self, node: usize) {
        let Node { name, address, .. } = &self.nodes[node];
        register(&self.world.server(), name, address, &json!({ "metadata": {} }));
    }

    /// Its object is deleted and made anew, and the machine goes on.
    fn remove_node(&mut self) {
        self.removals += 1;
        let (node, began) = (self.any(), Instant::now());
        let name = self.nodes[node].name.clone();
        let before = lock(&self.world.missed).insert(name.clone(), None);
        self.delete_object(node);
        self.create_object(node);
        let mut missed = lock(&self.world.missed);
        missed.remove(&name);
        if began.elapsed() >= Duration::from_secs(GRACE) {
            missed.insert(name, Some(shown()));
        } else if let Some(before) = before {
            missed.insert(name, before);
        }
    }

    /// It dies with its pods, and is removed for long enough that its blocks are given to others.
    fn lose_machine(&mut self) {
        if self.away.len() * 4 >= self.nodes.len() {
            return;
        }
        self.losses += 1;
        let node = self.any();
        self.nodes[node].agent.kill();
        self.world.lose(node);
        lock(&self.world.missed).insert(self.nodes[node].name.clone(), None);
        self.delete_object(node);
        let time = Duration::from_millis(self.random.random_range(0..GRACE * 4000));
        self.away.push((node, Instant::now() + time));
    }

    fn bring_back(&mut self, nodes: Vec<(usize, Instant)>) {
        for (node, _) in nodes {
            self.create_object(node);
            lock(&self.world.missed).insert(self.nodes[node].name.clone(), Some(shown()));
            reboot(&self.nodes[node]);
            self.nodes[node].spawn();
        }
    }
}

/// What a new start of the machine changes: no pod has a link, and what was saved is of an earlier boot.
fn reboot(node: &Node) {
    // Whichever of the two is whole, counts.
    for name in ["state/ipam.json", "state/ipam.new"] {
        let path = node.agent.folder.path().join(name);
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        if let Ok(mut saved) = serde_json::from_str::<Value>(&text) {
            saved["boot_id"] = json!("an earlier one");
            std::fs::write(&path, saved.to_string()).expect("writing what is saved");
        }
    }
    let shown = node.host.output("ip", &["-j", "link"]);
    let links: Vec<Value> = serde_json::from_str(&shown).expect("JSON");
    let names = links.iter().filter_map(|link| link["ifname"].as_str());
    for name in names.filter(|name| name.starts_with("swp")) {
        let delete = || Command::new("ip").args(["link", "del", name]).output();
        // It may go by itself just now.
        let _ = node.host.run(delete).expect("running ip");
    }
}

/// Until what was given back before a Node came back is seen.
fn shown() -> Instant {
    Instant::now() + Duration::from_secs(GRACE)
}

/// Tells the workers to end, also where something panics.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What a node's kernel has: links by destination, and gateways by destination.
fn routes(node: &Node) -> (BTreeSet<String>, BTreeMap<IpNetwork, IpAddr>) {
    let shown = node.host.output("ip", &["-j", "route", "show", "proto", "180"]);
    let all: Vec<Value> = serde_json::from_str(&shown).expect("JSON");
    let text = |route: &Value, field: &str| route[field].as_str().unwrap_or_default().to_owned();
    let (mut links, mut gateways) = (BTreeSet::new(), BTreeMap::new());
    for route in &all {
        if let Ok(gateway) = text(route, "gateway").parse() {
            gateways.insert(text(route, "dst").parse().expect("a destination"), gateway);
        } else if text(route, "dev").starts_with("swp") {
            links.insert(text(route, "dst"));
        }
    }
    (links, gateways)
}

/// What is not as the book and the API say, if anything.
fn differences(world: &World, nodes: &[Node]) -> Vec<String> {
    let Some(blocks) = world.blocks() else { return vec!["the API server does not answer".to_owned()] };
    let live = lock(&world.book).live.clone();
    let mut found = Vec::new();
    let mut expect = |what: String, is_so: bool| {
        if !is_so {
            found.push(what)
        }
    };
    // Where each block and each borrowed address leads.
    let mut owner: BTreeMap<IpNetwork, &str> = BTreeMap::new();
    for affinity in &blocks {
        expect(format!("{affinity:?} is confirmed"), affinity.state == ipam::State::Confirmed);
        owner.insert(affinity.block, &affinity.node);
        owner.extend(affinity.borrowed.iter().map(|(ip, node)| (IpNetwork::from(*ip), node.as_str())));
    }
    for (number, node) in nodes.iter().enumerate() {
        let own: BTreeMap<String, String> = live
            .iter()
            .filter(|(_, (at, _))| *at == number)
            .map(|(address, (_, pod))| (address.clone(), pod.clone()))
            .collect();
        let page =
            |page: &str| node.agent.get(page).and_then(|text| serde_json::from_str::<Value>(&text).ok());
        let (Some(pods), Some(told)) = (page("/v1/pods"), page("/v1/blocks")) else {
            expect(format!("{} answers", node.name), false);
            continue;
        };
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let rows = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let known: BTreeMap<String, String> =
            rows(&pods).iter().map(|pod| (text(&pod["address"]), text(&pod["containerId"]))).collect();
        expect(format!("pods of {}: {known:?}, not {own:?}", node.name), known == own);
        let told: BTreeSet<IpNetwork> =
            rows(&told).iter().map(|block| text(&block["block"]).parse().expect("a block")).collect();
        let given: BTreeSet<IpNetwork> =
            owner.iter().filter(|(_, name)| **name == node.name).map(|(block, _)| *block).collect();
        expect(format!("blocks of {}: {told:?}, not {given:?}", node.name), told == given);
        let (links, gateways) = routes(node);
        let addresses: BTreeSet<String> = own.into_keys().collect();
        expect(format!("links of {}: {links:?}, not {addresses:?}", node.name), links == addresses);
        let of_others = nodes.iter().map(|other| (&*other.name, other.address.parse().expect("an address")));
        let of_others: BTreeMap<&str, IpAddr> = of_others.collect();
        let ways: BTreeMap<IpNetwork, IpAddr> = owner
            .iter()
            .filter(|(_, name)| **name != node.name)
            .filter_map(|(block, name)| Some((*block, *of_others.get(name)?)))
            .collect();
        expect(format!("routes of {}: {gateways:?}, not {ways:?}", node.name), gateways == ways);
    }
    found
}

fn await_no_differences(world: &World, nodes: &[Node], when: &str) {
    let mut last = Vec::new();
    let same = attempts_for(SETTLED, || {
        last = differences(world, nodes);
        last.is_empty().then_some(())
    });
    assert!(same.is_some(), "{when}, seed {}:\n{}", world.seed, last.join("\n"));
}

/// Room for the link addresses that nodes of a mesh have of each other, while it lasts: the kernel's 1,024 are for all
/// namespaces together, and an agent raises them only where it is in the first one.
struct Neighbours(Vec<(String, String)>);

impl Neighbours {
    fn of(nodes: u64) -> Neighbours {
        let wanted = 4 * nodes * nodes;
        let mut before = Vec::new();
        for key in ["gc_thresh3", "gc_thresh2", "gc_thresh1"] {
            let path = format!("/proc/sys/net/ipv4/neigh/default/{key}");
            let now = std::fs::read_to_string(&path).expect("the kernel's limit");
            if now.trim().parse::<u64>().expect("a number") < wanted {
                std::fs::write(&path, wanted.to_string()).expect("raising the kernel's limit");
                before.push((path, now));
            }
        }
        Neighbours(before)
    }
}

impl Drop for Neighbours {
    fn drop(&mut self) {
        for (path, value) in self.0.iter().rev() {
            let _ = std::fs::write(path, value);
        }
    }
}

fn start(nodes: u64) -> (Server, Vec<Node>, Switch) {
    let switch = Switch::new("192.0.2");
    let server = Server::with(&switch.host(2), &["--block-grace-period", &GRACE.to_string()]);
    let length = 32 - (nodes * ADDRESSES).next_power_of_two().trailing_zeros();
    let spec = json!({ "cidr": format!("10.60.0.0/{length}"), "blockSize": 32 - BLOCK.trailing_zeros() });
    let pool = json!({
        "apiVersion": "projectcalico.org/v3", "kind": "IPPool", "metadata": { "name": "hammer" }, "spec": spec,
    });
    server.create(Api::<IpPool>::all, pool);
    let number = |index: u64| FIRST + u8::try_from(index).expect("at most 200 nodes");
    let begin = |index: u64| Node::begin(&server, &switch, number(index), &[], &json!({ "metadata": {} }));
    let nodes: Vec<Node> = (0..nodes).map(begin).collect();
    for node in &nodes {
        let has_block = attempts_for(SETTLED, || node.has_block().then_some(()));
        assert!(has_block.is_some(), "{} has no block:\n{}", node.name, node.agent.log());
    }
    (server, nodes, switch)
}

/// Looks whether all is as it should be, deletes all pods, and looks again; borrowed addresses and pods that there were.
fn settle(world: &World, nodes: &[Node], pods: Vec<Pod>) -> (usize, usize) {
    // What was on a machine that is gone, its runtime deletes when the machine is back.
    let (pods, dead): (Vec<Pod>, Vec<Pod>) = pods.into_iter().partition(|pod| world.lives(pod));
    let is_dead = |pod: &Pod| attempts_for(SETTLED, || world.delete(pod).then_some(())).is_some();
    assert!(dead.iter().all(is_dead), "pods of machines that were away are deleted");
    await_no_differences(world, nodes, "when nothing fails any more");
    let borrowed: usize = world.blocks().expect("blocks").iter().map(|block| block.borrowed.len()).sum();
    let left = pods.len();
    assert!(pods.iter().all(|pod| world.delete(pod)), "all pods are deleted");
    await_no_differences(world, nodes, "when all pods are deleted");
    for node in nodes {
        let blocks = node.agent.json("/v1/blocks");
        let used = |block: &Value| block["used"].as_u64().unwrap_or(u64::MAX);
        assert!(blocks.as_array().expect("a list").iter().all(|block| used(block) == 0), "{blocks}");
    }
    (borrowed, left)
}

#[test]
fn nodes_hammered_with_pods_while_agents_and_the_api_server_die_and_machines_go_share_no_address_and_leak_none()
 {
    let seed = setting("SEAWAY_HAMMER_SEED", SEED);
    let began = Instant::now();
    let _neighbours = Neighbours::of(setting("SEAWAY_HAMMER_NODES", NODES));
    let (server, mut nodes, _switch) = start(setting("SEAWAY_HAMMER_NODES", NODES));
    let started = began.elapsed();
    let world = World {
        seed,
        sockets: nodes.iter().map(|node| node.agent.socket()).collect(),
        book: Mutex::new(Book { lost: vec![0; nodes.len()], ..Book::default() }),
        is_over: AtomicBool::new(false),
        server: RwLock::new(server),
        missed: Mutex::default(),
        owners: Mutex::default(),
    };
    let until = Instant::now() + Duration::from_secs(setting("SEAWAY_HAMMER_SECONDS", SECONDS));
    let (pods, said) = std::thread::scope(|scope| {
        let world = &world;
        let workers: Vec<_> = (0..WORKERS).map(|worker| scope.spawn(move || world.work(worker))).collect();
        scope.spawn(|| world.watch_owners());
        let ending = Ending(&world.is_over);
        let random = StdRng::seed_from_u64(seed);
        let mut fate = Fate {
            world,
            nodes: &mut nodes,
            random,
            away: Vec::new(),
            kills: 0,
            restarts: 0,
            removals: 0,
            losses: 0,
        };
        fate.run(until);
        let said = format!(
            "{} agents killed, API server killed {} times, {} Nodes deleted and made anew, {} machines lost",
            fate.kills, fate.restarts, fate.removals, fate.losses
        );
        drop(ending);
        let pods = workers.into_iter().flat_map(|worker| worker.join().expect("a worker"));
        (pods.collect::<Vec<Pod>>(), said)
    });
    let (borrowed, left) = settle(&world, &nodes, pods);
    let book = lock(&world.book);
    println!(
        "{} nodes, started in {:.0} s, {:.0} s in all, seed {seed}: {} pods added, {} at a time at most, {} ADDs refused, {} DELs; \
         {said}; {} blocks, {borrowed} addresses borrowed and {left} pods at the end",
        nodes.len(),
        started.as_secs_f64(),
        began.elapsed().as_secs_f64(),
        book.adds,
        book.most,
        book.refused,
        book.deletes,
        lock(&world.owners).len(),
    );
    assert!(book.wrong.is_empty(), "seed {seed}:\n{}", book.wrong.join("\n"));
    assert!(book.adds > 0 && book.deletes > 0, "something was done");
}
