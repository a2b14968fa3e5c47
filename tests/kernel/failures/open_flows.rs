//! 500 open flows through a Service of the API server, and what may not disturb them: the agent is a process that is killed,
//! begins again, changes the sizes of its maps, and makes one larger by itself; endpoints change by the API.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use ebpf_common::maps;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};

use super::fabric::{Node, Switch, pass};
use crate::datapath::continuity::load::{Backend, Load, Place, Way};
use crate::netns::{Cgroup, NetNs, attempts_for, eventually};
use crate::routing::plugin::{Call, call_at};
use crate::routing::server::Server;

const CLUSTER_CIDRS: &str = "10.244.0.0/16,fd00:10:244::/64";
const SERVICE_CIDRS: &str = "10.96.0.0/16,fd00:10:96::/112";
const CLUSTER_IPS: [&str; 2] = ["10.96.0.7", "fd00:10:96::7"];
const NODE: [&str; 2] = ["192.0.2.11", "2001:db8:1::11"];
const BEYOND: [&str; 2] = ["192.0.2.200", "2001:db8:1::200"];
const NODE_PORT: u16 = 30080;
/// For each of three ways and two families.
const CONNECTIONS: usize = 56;
const DATAGRAMS: usize = 28;
/// Room for the flows of the test, until others come besides.
const FEW: u64 = 32768;
/// Flows at once that say that there will not be room.
const BURST: usize = 1500;
const BURSTS: usize = 10;
/// Without an agent.
const AWAY: Duration = Duration::from_millis(400);
const CHANGING: Duration = Duration::from_secs(4);
/// 1,000 in a minute, and what a busy machine misses.
const BETWEEN: Duration = Duration::from_millis(55);
/// Backends that come and go besides.
const MANY: usize = 12;
const GROWN: Duration = Duration::from_secs(60);

/// A backend of both families.
struct Pair {
    backends: [Backend; 2],
    local: bool,
}

/// A node, its clients and its backends.
struct Scene {
    load: Load,
    pairs: Vec<Pair>,
    /// In a pod of the node, and on a host beyond it, as on another node.
    places: [Place; 2],
    addresses: [[IpAddr; 2]; 2],
    next: u8,
    client: NetNs,
    _netns: [NetNs; 2],
    node: Node,
    cgroup: Cgroup,
    _switch: Switch,
}

impl Scene {
    fn new() -> (Server, Scene) {
        let switch = Switch::dual_stack("192.0.2", "2001:db8:1");
        let ranges = ["--cluster-cidr", CLUSTER_CIDRS, "--service-cidr", SERVICE_CIDRS];
        let server = Server::with(&switch.host(2), &ranges);
        let cgroup = Cgroup::new();
        let arguments = arguments(&cgroup, &format!("conntrack={FEW}..1048576"));
        let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let mut node =
            Node::begin_on(switch.host(11), &server, &switch, 11, &words, &json!({ "metadata": {} }));
        node.await_joined();
        let beyond = switch.host(200);
        // As a node does that learns the way to pods.
        beyond.ip("route add 10.244.0.0/16 via 192.0.2.11");
        beyond.ip("-6 route add fd00:10:244::/64 via 2001:db8:1::11");
        let (client, pod) = (NetNs::new(), NetNs::new());
        let [_, here] = [("client", &client), ("server", &pod)].map(|(name, netns)| add(&node, name, netns));
        let ways = ways(&node, &cgroup, &client, &beyond);
        let mut scene = Scene {
            load: Load::start(Vec::new()),
            pairs: Vec::new(),
            places: [Place::new(&pod), Place::new(&beyond)],
            addresses: [here, BEYOND.map(|text| text.parse().expect("an address"))],
            next: 1,
            client,
            _netns: [pod, beyond],
            node,
            cgroup,
            _switch: switch,
        };
        server.ask(async |client| {
            let service: Service = serde_json::from_value(service()).expect("a Service");
            let api = Api::namespaced(client.clone(), "default");
            api.create(&PostParams::default(), &service).await.expect("a Service");
            for _ in 0..4 {
                scene.add(&client).await;
            }
        });
        eventually("the node serves the Service", || (scene.endpoints() == 4 * 8).then_some(()));
        scene.load = Load::start(ways);
        scene.load.settle();
        (server, scene)
    }

    /// A new backend, each third beyond the node.
    async fn add(&mut self, client: &Client) {
        let number = self.next;
        self.next += 1;
        let place = usize::from(number.is_multiple_of(3));
        let port = 8000 + u16::from(number);
        let backends = self.addresses[place]
            .map(|address| self.places[place].start(number, SocketAddr::new(address, port)));
        for slice in slices(&backends, place == 0) {
            let slice: EndpointSlice = serde_json::from_value(slice).expect("a slice");
            api(client).create(&PostParams::default(), &slice).await.expect("a slice");
        }
        self.pairs.push(Pair { backends, local: place == 0 });
    }

    /// One serves on and gets nobody new, as a pod that is terminating.
    async fn begin_leaving(&self, client: &Client, pair: usize) {
        let pair = &self.pairs[pair];
        for mut slice in slices(&pair.backends, pair.local) {
            slice["endpoints"][0]["conditions"] =
                json!({ "ready": false, "serving": true, "terminating": true });
            let name = slice["metadata"]["name"].as_str().expect("a name").to_owned();
            let patch = Patch::Merge(json!({ "endpoints": slice["endpoints"] }));
            api(client).patch(&name, &PatchParams::default(), &patch).await.expect("a change");
        }
        pair.backends.iter().for_each(Backend::leave);
    }

    /// It ends, and then is no endpoint any more.
    async fn remove(&mut self, client: &Client, pair: usize) {
        let pair = self.pairs.remove(pair);
        pair.backends.iter().for_each(Backend::end);
        for slice in slices(&pair.backends, pair.local) {
            let name = slice["metadata"]["name"].as_str().expect("a name").to_owned();
            api(client).delete(&name, &DeleteParams::default()).await.expect("it is deleted");
        }
    }

    /// Nobody has it any more, and the node gives it to nobody new.
    fn is_left(&self, pair: usize) -> bool {
        let port = self.pairs[pair].backends[0].address.port();
        let known = self.node.agent.json("/v1/services");
        let is_for_new = |backend: &Value| backend["port"] == port && backend["clients"] != "present";
        let of =
            |service: &Value| service["backends"].as_array().is_some_and(|all| all.iter().any(is_for_new));
        !known.as_array().expect("a list").iter().any(of)
            && self.pairs[pair].backends.iter().all(Backend::is_left)
    }

    /// Of all addresses and ports of the Service, as the node serves them.
    fn endpoints(&self) -> usize {
        let known = self.node.agent.json("/v1/services");
        let of_web =
            |service: &&Value| service["name"].as_str().is_some_and(|name| name.contains("default/web"));
        let count = |service: &Value| service["backends"].as_array().map_or(0, Vec::len);
        known.as_array().into_iter().flatten().filter(of_web).map(count).sum()
    }

    /// For how many elements a map has room.
    fn capacity(&self, map: &str) -> u64 {
        let maps = self.node.agent.json("/v1/maps");
        let found = maps.as_array().and_then(|maps| maps.iter().find(|it| it["name"] == map));
        found.and_then(|map| map["capacity"].as_u64()).unwrap_or_else(|| panic!("no {map}: {maps}"))
    }

    /// The agent's process with these sizes of maps.
    fn spawn(&mut self, sizes: &str) {
        let arguments = arguments(&self.cgroup, sizes);
        let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
        self.node.agent.spawn(&self.node.host, &words);
    }

    fn run(&mut self, sizes: &str) {
        self.spawn(sizes);
        self.node.await_joined();
    }
}

fn arguments(cgroup: &Cgroup, sizes: &str) -> Vec<String> {
    let cgroup = cgroup.as_parent_of_pods();
    let flags = [
        ["--cluster-cidr", CLUSTER_CIDRS],
        ["--service-cidr", SERVICE_CIDRS],
        ["--cgroup-parent", &cgroup],
        ["--masquerade", "off"],
        ["--map-size", sizes],
    ];
    flags.concat().into_iter().map(str::to_owned).collect()
}

fn add(node: &Node, name: &str, netns: &NetNs) -> [IpAddr; 2] {
    let config = json!({});
    let call = Call { command: "ADD", container: name, pod: name, netns: Some(netns), config };
    eventually("the pod has an address of each family", || {
        let (_, result) = call_at(&node.agent.socket(), &call);
        let address = |at: usize| {
            let text = result["ips"][at]["address"].as_str()?;
            text.split_once('/')?.0.parse::<IpAddr>().ok()
        };
        let mut both = [address(0)?, address(1)?];
        both.sort();
        Some(both)
    })
}

fn ways(node: &Node, cgroup: &Cgroup, client: &NetNs, beyond: &NetNs) -> Vec<Way> {
    let ways = [
        ("a process of the node by its socket", node.host.within(cgroup), CLUSTER_IPS, 80),
        ("a pod by packets", client.without_cgroup(), CLUSTER_IPS, 80),
        ("a client beyond the node", beyond.without_cgroup(), NODE, NODE_PORT),
    ];
    let of = |(name, netns, frontends, port): &(&'static str, NetNs, [&str; 2], u16)| {
        frontends.map(|frontend| Way {
            name,
            netns: netns.again(),
            frontend: SocketAddr::new(frontend.parse().expect("an address"), *port),
            connections: CONNECTIONS,
            datagrams: DATAGRAMS,
        })
    };
    ways.iter().flat_map(of).collect()
}

fn service() -> Value {
    let port = |protocol: &str| json!({ "name": protocol.to_lowercase(), "protocol": protocol, "port": 80, "nodePort": NODE_PORT });
    json!({
        "metadata": { "name": "web" },
        "spec": {
            "type": "NodePort", "ports": [port("TCP"), port("UDP")], "ipFamilyPolicy": "RequireDualStack",
            "clusterIP": CLUSTER_IPS[0], "clusterIPs": CLUSTER_IPS,
        },
    })
}

/// A slice of each family with this backend alone.
fn slices(backends: &[Backend; 2], local: bool) -> Vec<Value> {
    let slice = |backend: &Backend| {
        let port = |protocol: &str| json!({ "name": protocol.to_lowercase(), "protocol": protocol, "port": backend.address.port() });
        let family = if backend.address.is_ipv4() { "IPv4" } else { "IPv6" };
        let endpoint = json!({
            "addresses": [backend.address.ip().to_string()], "nodeName": if local { "node-11" } else { "node-12" },
            "conditions": { "ready": true, "serving": true, "terminating": false },
        });
        let name = format!("web-{}-{}", backend.number, family.to_lowercase());
        json!({
            "metadata": { "name": name, "labels": { "kubernetes.io/service-name": "web" } },
            "addressType": family, "endpoints": [endpoint], "ports": [port("TCP"), port("UDP")],
        })
    };
    backends.iter().map(slice).collect()
}

fn api(client: &Client) -> Api<EndpointSlice> {
    Api::namespaced(client.clone(), "default")
}

fn disturb(scene: &mut Scene, what: &str, disturbance: impl FnOnce(&mut Scene)) {
    // The load is beside the scene while that changes.
    let load = std::mem::replace(&mut scene.load, Load::start(Vec::new()));
    load.must_not_notice(what, || disturbance(scene));
    scene.load = load;
}

#[test]
fn five_hundred_open_flows_lose_no_request_to_what_happens_to_the_agents_process() {
    let (server, mut scene) = Scene::new();
    assert!(scene.load.flows() >= 500, "{}", scene.load.flows());
    grows_by_itself(&mut scene);
    is_killed_twice(&mut scene);
    is_resized(&mut scene);
    changes_endpoints(&server, &mut scene);
    updates_backends(&server, &mut scene);
    let counted = scene.node.agent.json("/v1/counters");
    for counter in ["drop_conntrack_full", "drop_ports_exhausted", "socket_not_noted"] {
        let found = counted.as_array().and_then(|all| all.iter().find(|it| it["name"] == counter));
        assert_eq!(found.expect("every counter is listed")["count"], json!(0), "{counter}: {counted}");
    }
}

/// So many flows come in a second that there would soon be no room for more.
fn grows_by_itself(scene: &mut Scene) {
    assert_eq!(scene.capacity(maps::CONNTRACK), FEW, "there is room for the open flows");
    disturb(scene, "others come, and the agent makes the map of flows larger", |scene| {
        let target = SocketAddr::new(CLUSTER_IPS[0].parse().expect("an address"), 80);
        for _ in 0..BURSTS {
            scene.client.run(|| {
                for _ in 0..BURST {
                    let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
                    socket.send_to(b"a while.", target).expect("a datagram");
                }
            });
            if scene.capacity(maps::CONNTRACK) > FEW {
                break;
            }
        }
        let grown = attempts_for(GROWN, || (scene.capacity(maps::CONNTRACK) > FEW).then_some(()));
        assert!(grown.is_some(), "the map is as it was");
    });
    assert!(scene.node.agent.log().contains("the map is larger"), "{}", scene.node.agent.log());
}

fn is_killed_twice(scene: &mut Scene) {
    disturb(scene, "the agent is killed twice and begins again", |scene| {
        for _ in 0..2 {
            scene.node.agent.kill();
            pass(AWAY);
            scene.run(&format!("conntrack={FEW}..1048576"));
        }
    });
}

fn is_resized(scene: &mut Scene) {
    let larger = "conntrack=1048576,slots=524288,backends=524288,sockets-connected=65536,affinity=65536";
    disturb(scene, "the agent begins again with larger maps, and is killed meanwhile", |scene| {
        scene.node.agent.kill();
        scene.spawn(larger);
        pass(AWAY);
        scene.node.agent.kill();
        scene.run(larger);
    });
    assert_eq!([maps::CONNTRACK, maps::SLOTS].map(|map| scene.capacity(map)), [1_048_576, 524_288]);
    disturb(scene, "the agent begins again with smaller maps", |scene| {
        scene.node.agent.kill();
        scene.run("conntrack=4096..65536,slots=4096..262144");
    });
    assert_eq!([maps::CONNTRACK, maps::SLOTS].map(|map| scene.capacity(map)), [65536, 262_144]);
}

fn changes_endpoints(server: &Server, scene: &mut Scene) {
    let stay = scene.pairs.len();
    disturb(scene, "1,000 changes of endpoints in a minute", |scene| {
        server.ask(async |client| {
            let (began, mut changes) = (Instant::now(), 0);
            let mut leaving = None;
            while began.elapsed() < CHANGING {
                match leaving {
                    Some(pair) if scene.is_left(pair) => {
                        scene.remove(&client, pair).await;
                        leaving = None;
                    }
                    None if scene.pairs.len() >= stay + MANY => {
                        scene.begin_leaving(&client, stay).await;
                        leaving = Some(stay);
                    }
                    _ => scene.add(&client).await,
                }
                // A slice of each family.
                changes += 2;
                pass((began + BETWEEN * changes).saturating_duration_since(Instant::now()));
            }
            let per_minute = f64::from(changes) * 60.0 / began.elapsed().as_secs_f64();
            println!("{changes} changes, {per_minute:.0} in a minute");
            assert!(per_minute > 900.0, "{per_minute} changes a minute");
            while scene.pairs.len() > stay {
                scene.begin_leaving(&client, stay).await;
                eventually("it is left", || scene.is_left(stay).then_some(()));
                scene.remove(&client, stay).await;
            }
        });
    });
}

fn updates_backends(server: &Server, scene: &mut Scene) {
    disturb(scene, "a rolling update of the backends", |scene| {
        server.ask(async |client| {
            for _ in 0..scene.pairs.len() {
                scene.add(&client).await;
                scene.begin_leaving(&client, 0).await;
                eventually("it is left", || scene.is_left(0).then_some(()));
                scene.remove(&client, 0).await;
            }
        });
    });
}
