//! 500 open flows, and what may not disturb them: TCP and UDP, IPv4 and IPv6, through a cluster IP by sockets, through a
//! cluster IP packet by packet, and through a node port from beyond the node.
//!
//! `SEAWAY_CONTINUITY_SECONDS` says how long each disturbance lasts.

pub mod load;

use std::{
    env, fs,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use dataplane::{
    datapath::Error,
    programs::ProgramError,
    sizes::{Setting, Sizes},
    swap::Step,
};
use ebpf_common::{
    Counter, FrontendKey, Protocol,
    desired::{Clients, Endpoint, Service},
    maps,
};

use self::load::{Backend, Load, Place, Way};
use super::{chain, count, endpoint, key, leading_to, node::Node, node_port, verifier::bpftool};
use crate::netns::{Cgroup, eventually};

const CLUSTER_IPS: [&str; 2] = ["10.96.0.7:80", "[fd00:96::7]:80"];
const NODE_PORTS: [&str; 2] = ["10.89.0.11:30080", "[fd00:89::11]:30080"];
/// For each of three ways and two families.
const CONNECTIONS: usize = 56;
const DATAGRAMS: usize = 28;
/// Room for new connections for minutes: where all tests of a machine load programs at once, the kernel takes one for ours.
const FEW: u32 = 16384;

fn time_of_each() -> Duration {
    let seconds = env::var("SEAWAY_CONTINUITY_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(2))
}

/// A backend of both families, and who gets it.
struct Pair {
    backends: [Backend; 2],
    local: bool,
    clients: Clients,
}

impl Pair {
    fn is_left(&self) -> bool {
        self.backends.iter().all(Backend::is_left)
    }
}

/// A node, its clients and its backends.
struct Scene {
    load: Load,
    node: Node,
    pairs: Vec<Pair>,
    /// Of a pod of the node, and of another node.
    places: [Place; 2],
    sizes: Sizes,
    next: u8,
    _cgroup: Cgroup,
}

impl Scene {
    /// `before` the first client begins.
    fn new(before: impl FnOnce(&mut Node, &Sizes)) -> Scene {
        let sizes = sizes(&["conntrack=16384..1048576", "sockets-connected=1024"]);
        let mut node = Node::with_sizes(&sizes);
        let cgroup = Cgroup::new();
        node.datapath.attach_cgroup(&cgroup.path).expect("attaching to the cgroup");
        let places = [Place::new(&node.pods[1]), Place::new(&node.beyond)];
        // As on a node: its sockets leave these to flows that are sent on. A pod has either way and not both, as a flow of one
        // could be another of the other at their backend.
        node.namespace.sysctl("net/ipv4/ip_local_reserved_ports", "49152-65535");
        let netns = [node.namespace.within(&cgroup), node.pods[0].again(), node.beyond.again()];
        let names = ["a process of the node by its socket", "a pod by packets", "a client beyond the node"];
        let frontends = [CLUSTER_IPS, CLUSTER_IPS, NODE_PORTS];
        let way = |way: usize, family: usize| Way {
            name: names[way],
            netns: netns[way].again(),
            frontend: at(frontends[way][family]),
            connections: CONNECTIONS,
            datagrams: DATAGRAMS,
        };
        let ways = (0..3).flat_map(|of| [way(of, 0), way(of, 1)]).collect();
        before(&mut node, &sizes);
        // Clients begin when there are backends.
        let mut scene = Scene {
            load: Load::start(Vec::new()),
            node,
            pairs: Vec::new(),
            places,
            sizes,
            next: 1,
            _cgroup: cgroup,
        };
        for _ in 0..4 {
            scene.add();
        }
        scene.apply();
        scene.load = Load::start(ways);
        scene.load.settle();
        scene
    }

    /// A new backend, each third of another node. It is nobody's yet.
    fn add(&mut self) {
        let number = self.next;
        self.next += 1;
        let place = usize::from(number.is_multiple_of(3));
        let port = 8000 + u16::from(number);
        let addresses = [["10.244.0.3", "fd00:244::3"], ["10.244.1.2", "fd00:244:1::2"]][place];
        let backends = addresses.map(|address| {
            let address: IpAddr = address.parse().expect("an address");
            self.places[place].start(number, SocketAddr::new(address, port))
        });
        self.pairs.push(Pair { backends, local: place == 0, clients: Clients::All });
    }

    /// The Services as they are to be.
    fn wanted(&self) -> Vec<(FrontendKey, Service)> {
        let service = |family: usize| {
            let endpoint = |pair: &Pair| {
                let address = pair.backends[family].address;
                Endpoint { clients: pair.clients, ..endpoint(address.ip(), address.port(), pair.local) }
            };
            leading_to(self.pairs.iter().map(endpoint).collect())
        };
        let protocols = [Protocol::TCP, Protocol::UDP];
        let of = |family: usize| {
            protocols.into_iter().flat_map(move |protocol| {
                [key(CLUSTER_IPS[family], protocol), node_port(NODE_PORTS[family], protocol)]
                    .map(|key| (key, service(family)))
            })
        };
        of(0).chain(of(1)).collect()
    }

    fn apply(&mut self) {
        let changes: Vec<_> = self.wanted().into_iter().map(|(key, service)| (key, Some(service))).collect();
        self.node.datapath.change_services(changes.iter().map(|(key, change)| (key, change)));
        self.node.datapath.apply_services().expect("changing the endpoints");
    }

    /// The first one serves on and gets nobody new, as a pod that is terminating.
    fn begin_leaving(&mut self, pair: usize) {
        self.pairs[pair].clients = Clients::Present;
        self.apply();
        self.pairs[pair].backends.iter().for_each(Backend::leave);
    }

    /// It ends, and then is no endpoint any more.
    fn remove(&mut self, pair: usize) {
        let pair = self.pairs.remove(pair);
        pair.backends.iter().for_each(Backend::end);
        self.apply();
    }

    /// An agent finds what one that was killed left.
    fn take_over(&mut self, sizes: &Sizes, halt_at: Option<Step>) -> Result<(), Error> {
        self.node.take_over(sizes, halt_at)?;
        let wanted = self.wanted();
        self.node.serve(wanted);
        Ok(())
    }

    fn capacity(&self, map: &str) -> u32 {
        let rooms = dataplane::pressure::rooms(&self.node.directory.path.join("maps")).expect("the maps");
        rooms.iter().find(|room| room.map == map).expect("the map").max_entries
    }

    fn grow(&mut self, map: &str, entries: u32) {
        let growth = self.node.datapath.growth();
        let grown = self.node.namespace.run(|| growth.grow(map, entries));
        grown.unwrap_or_else(|error| panic!("{map}: {}", chain(&error)));
        self.node.datapath.reopen().expect("going on with the larger map");
        assert_eq!(self.capacity(map), entries);
    }
}

fn at(address: &str) -> SocketAddr {
    address.parse().expect("an address and a port")
}

fn sizes(settings: &[&str]) -> Sizes {
    settings.iter().map(|text| text.parse::<Setting>().expect("a size")).collect()
}

#[test]
fn five_hundred_open_flows_lose_no_request_to_what_an_operator_does() {
    let mut scene = Scene::new(|_, _| {});
    assert!(scene.load.flows() >= 500, "{}", scene.load.flows());
    grows_by_itself(&mut scene);
    is_killed(&mut scene);
    is_resized(&mut scene);
    changes_endpoints(&mut scene);
    updates_backends(&mut scene);
    for counter in [Counter::DropConntrackFull, Counter::DropPortsExhausted, Counter::SocketNotNoted] {
        assert_eq!(count(&scene.node.datapath, counter), 0, "{counter:?}");
    }
}

fn disturb(scene: &mut Scene, what: &str, disturbance: impl FnOnce(&mut Scene)) {
    // The load is beside the scene while that changes.
    let load = std::mem::replace(&mut scene.load, Load::start(Vec::new()));
    load.must_not_notice(what, || disturbance(scene));
    scene.load = load;
}

fn grows_by_itself(scene: &mut Scene) {
    let mut growth = scene.node.datapath.growth();
    disturb(scene, "the map of flows grows", |scene| {
        let counters = scene.node.datapath.counters().expect("the counters");
        assert_eq!(growth.look(&counters).expect("a look at the maps"), None, "there is room");
        let many = u64::from(FEW / 2);
        let due = growth.due(maps::CONNTRACK, many, 0).expect("a look at the map").expect("it is half full");
        scene.grow(maps::CONNTRACK, due);
        // As many new flows in a second as there is room for.
        let soon = |(counter, count)| (counter, count + if counter == Counter::FlowNew { many } else { 0 });
        let counters = scene.node.datapath.counters().expect("the counters").into_iter().map(soon);
        let due = growth.look(&counters.collect::<Vec<_>>()).expect("a look at the maps");
        assert!(matches!(due, Some((maps::CONNTRACK, entries)) if entries > 2 * FEW), "{due:?}");
    });
}

fn is_killed(scene: &mut Scene) {
    let sizes = scene.sizes.clone();
    disturb(scene, "the agent is killed and begins again", |scene| {
        let end = Instant::now() + time_of_each();
        loop {
            scene.take_over(&sizes, None).unwrap_or_else(|error| panic!("{}", chain(&error)));
            if Instant::now() > end {
                break;
            }
        }
    });
}

fn is_resized(scene: &mut Scene) {
    let others = [
        "sockets-connected=4096",
        "affinity=65536",
        "socket-forward=65536",
        "socket-reverse=131072",
        "frontends=262144",
        "addresses=262144",
        "slots=524288",
        "backends=524288",
    ];
    let larger = sizes(&[["conntrack=65536"].as_slice(), &others].concat());
    let largest = sizes(&[["conntrack=131072"].as_slice(), &others].concat());
    // Killed on the way, and the next one goes on with what it finds.
    for (step, wanted) in steps().zip([&larger, &larger, &largest].into_iter().cycle()) {
        disturb(scene, &format!("maps are resized, and the agent is killed: {step:?}"), |scene| {
            let error = scene.take_over(wanted, Some(step)).expect_err("it is left off");
            let is_halted = matches!(error, Error::Program(ProgramError::Halted(at)) if at == step);
            assert!(is_halted, "{}", chain(&error));
        });
        assert_eq!(scene.capacity(maps::SLOTS) == 524_288, step >= Step::Moved, "{step:?}");
    }
    let wanted = sizes(&["conntrack=4096..16384", "slots=4096..262144", "affinity=32768"]);
    disturb(scene, "maps become smaller", |scene| {
        scene.take_over(&wanted, None).unwrap_or_else(|error| panic!("{}", chain(&error)));
    });
    assert_eq!([maps::CONNTRACK, maps::SLOTS].map(|map| scene.capacity(map)), [16384, 262_144]);
    scene.sizes = wanted;
}

/// Those where the most is under way; all where there is time.
fn steps() -> impl Iterator<Item = Step> {
    let few = [Step::HalfBridged, Step::HalfCopied, Step::HalfSwitched];
    let all = env::var_os("SEAWAY_CONTINUITY_SECONDS").is_some();
    Step::ALL.into_iter().filter(move |step| all || few.contains(step))
}

fn changes_endpoints(scene: &mut Scene) {
    /// 1,000 in a minute, and what a busy machine misses.
    const BETWEEN: Duration = Duration::from_millis(55);
    const MANY: usize = 12;
    let stay = scene.pairs.len();
    disturb(scene, "1,000 changes of endpoints in a minute", |scene| {
        let (began, mut changes) = (Instant::now(), 0);
        let time = time_of_each() * 2;
        while began.elapsed() < time {
            let left = (stay..scene.pairs.len())
                .find(|pair| scene.pairs[*pair].clients == Clients::Present && scene.pairs[*pair].is_left());
            let ready = (stay..scene.pairs.len()).find(|pair| scene.pairs[*pair].clients == Clients::All);
            match (left, ready) {
                (Some(left), _) => scene.remove(left),
                (None, Some(ready)) if changes % 2 == 1 => scene.begin_leaving(ready),
                _ if scene.pairs.len() < stay + MANY => {
                    scene.add();
                    scene.apply();
                }
                _ => {
                    pass(Duration::from_millis(2));
                    continue;
                }
            }
            changes += 1;
            let due = began + BETWEEN * changes;
            pass(due.saturating_duration_since(Instant::now()));
        }
        let per_minute = f64::from(changes) * 60.0 / began.elapsed().as_secs_f64();
        println!("{changes} changes, {per_minute:.0} in a minute");
        assert!(per_minute > 900.0, "{per_minute} changes a minute");
        for pair in stay..scene.pairs.len() {
            scene.begin_leaving(pair);
        }
        while scene.pairs.len() > stay {
            eventually("it is left", || scene.pairs[stay].is_left().then_some(()));
            scene.remove(stay);
        }
    });
}

fn updates_backends(scene: &mut Scene) {
    disturb(scene, "a rolling update of the backends", |scene| {
        for _ in 0..scene.pairs.len() {
            scene.add();
            scene.apply();
            scene.begin_leaving(0);
            eventually("it is left", || scene.pairs[0].is_left().then_some(()));
            scene.remove(0);
        }
    });
}

/// Leaves programs in all hooks that write flows in the layout before, as an older agent's would: those in between, without
/// the newer map, which nobody finds any more.
fn become_older(node: &mut Node, sizes: &Sizes) {
    let maps_dir = node.directory.path.join("maps");
    fs::remove_file(maps_dir.join(maps::CONNTRACK)).expect("unpinning");
    let old = maps_dir.join(maps::CONNTRACK_0);
    let path = old.to_str().expect("a path");
    bpftool(&[
        "map", "create", path, "type", "hash", "key", "40", "value", "56", "entries", "65536", "name", "OLD",
        "flags", "1",
    ]);
    let error = node.take_over(sizes, Some(Step::Copied)).expect_err("it is left off");
    assert!(matches!(error, Error::Program(ProgramError::Halted(Step::Copied))), "{}", chain(&error));
    fs::remove_file(node.directory.path.join("next").join(maps::CONNTRACK)).expect("unpinning");
}

#[test]
fn five_hundred_open_flows_lose_no_request_to_an_agent_of_a_newer_layout() {
    let mut scene = Scene::new(become_older);
    let sizes = scene.sizes.clone();
    let maps_dir = scene.node.directory.path.join("maps");
    let [old, new] = [maps::CONNTRACK_0, maps::CONNTRACK].map(|map| maps_dir.join(map));
    assert!(old.exists() && !new.exists());
    let before = dataplane::pressure::count(&maps_dir, maps::CONNTRACK_0).expect("the old map");
    assert!(before >= 600, "flows are in the old layout: {before}");
    disturb(&mut scene, "a newer layout, and the agent is killed", |scene| {
        scene.take_over(&sizes, Some(Step::HalfBridged)).expect_err("it is left off");
    });
    assert!(old.exists() && !new.exists());
    disturb(&mut scene, "a newer layout", |scene| {
        scene.take_over(&sizes, None).unwrap_or_else(|error| panic!("{}", chain(&error)));
    });
    assert!(!old.exists() && new.exists());
    let flows = scene.node.datapath.flows().expect("the flows");
    assert!(flows.len() >= 300, "they are listed: {}", flows.len());
}

#[test]
fn an_agent_leaves_maps_of_a_layout_newer_than_its_own_alone_and_says_so() {
    let mut node = Node::new();
    let maps_dir = node.directory.path.join("maps");
    // As after an upgrade: the flows are in a map that this agent does not know.
    let newer = maps_dir.join("CONNTRACK_2");
    fs::rename(maps_dir.join(maps::CONNTRACK), &newer).expect("a map of another name");
    let began = Instant::now();
    let error = node.take_over(&Sizes::default(), None).expect_err("what it cannot read");
    assert!(began.elapsed() < Duration::from_secs(1), "no program is loaded");
    let words = chain(&error);
    assert!(words.contains("CONNTRACK_2 is of layout 2, and this agent knows none newer than 1"), "{words}");
    assert!(newer.exists() && !maps_dir.join(maps::CONNTRACK).exists(), "nothing is made in its place");
}

/// Time in which flows go on.
fn pass(time: Duration) {
    let end = Instant::now() + time;
    while let Some(left) = end.checked_duration_since(Instant::now()) {
        std::thread::sleep(left);
    }
}
