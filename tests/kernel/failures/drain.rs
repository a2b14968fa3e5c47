//! A node that is cordoned, comes back, and goes: what a top of rack does about the addresses of Services, and what clients
//! notice.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node as ApiNode, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::{Api, Client};
use serde_json::{Value, json};

use super::fabric::{Node, Switch, pass, routing};
use super::flows::{End, Flows};
use crate::netns::{NetNs, eventually};
use crate::routing::daemons::{Daemon, Kind, Side};
use crate::routing::peers::Process;
use crate::routing::server::Server;

/// Served by every node, wherever its backend is.
const ANYWHERE: &str = "203.0.113.7";
/// Served by the node of its backend alone.
const BOUND: &str = "203.0.113.8";
const FLOWS: u32 = 4;
const MOMENT: Duration = Duration::from_millis(500);

/// BIRD at 192.0.2.1, with a client behind it, told nothing of what communities mean.
struct Top {
    host: NetNs,
    client: End,
    folder: PathBuf,
    _process: Process,
}

impl Top {
    fn start(switch: &Switch, folder: &Path) -> Top {
        let host = switch.host(1);
        let netns = NetNs::new();
        host.ip(&format!("link add down0 type veth peer name up0 netns {}", netns.path()));
        host.ip("address add 198.51.100.1/24 dev down0");
        host.ip("link set down0 up");
        netns.ip("address add 198.51.100.9/24 dev up0");
        netns.ip("link set up0 up");
        netns.ip("route add default via 198.51.100.1");
        host.sysctl("net/ipv4/ip_forward", "1");
        host.sysctl("net/ipv4/fib_multipath_hash_policy", "1");
        let session = |number: u8| {
            format!(
                "protocol bgp {{ local 192.0.2.1 as 64999; neighbor 192.0.2.{number} as 64512; direct; graceful restart on;\n\
                 connect retry time 1; connect delay time 1; error wait time 1, 2;\n\
                 ipv4 {{ import all; export none; }}; }}\n"
            )
        };
        let configuration = [
            "router id 192.0.2.1;\nprotocol device {}\nprotocol direct { ipv4; }\n",
            "protocol kernel { merge paths on; ipv4 { export where source = RTS_BGP; }; }\n",
            &session(11),
            &session(12),
        ];
        let folder = folder.join("top");
        std::fs::create_dir(&folder).expect("a folder");
        std::fs::write(folder.join("conf"), configuration.concat()).expect("the configuration");
        let mut command = Command::new("/usr/sbin/bird");
        command.arg("-f").arg("-c").arg(folder.join("conf")).arg("-s").arg(folder.join("ctl"));
        let process = Process::start(&host, &mut command, &folder.join("log"));
        let client = End { name: "client".to_owned(), netns, address: "198.51.100.9".to_owned() };
        Top { host, client, folder, _process: process }
    }

    /// The nodes that it sends packets for a destination to.
    fn ways(&self, destination: &str) -> Vec<u8> {
        let shown = self.host.output("ip", &["route", "show", destination]);
        [11, 12].into_iter().filter(|number| shown.contains(&format!("via 192.0.2.{number} "))).collect()
    }

    fn await_ways(&self, destination: &str, numbers: &[u8]) {
        eventually(&format!("{destination} leads to {numbers:?}"), || {
            (self.ways(destination) == numbers).then_some(())
        });
    }
}

impl Drop for Top {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("BIRD said:\n{}", std::fs::read_to_string(self.folder.join("log")).unwrap_or_default());
        }
    }
}

fn services(client: Client) -> Api<Service> {
    Api::namespaced(client, "default")
}

fn slices(client: Client) -> Api<EndpointSlice> {
    Api::namespaced(client, "default")
}

fn announcements(server: &Server) {
    let ranges = [ANYWHERE, BOUND].map(|address| json!({ "cidr": format!("{address}/32") }));
    let announced = json!({ "serviceExternalIPs": ranges });
    routing(server, "BGPConfiguration", "default", announced, json!({}));
    for (name, address, asn) in [("top", "192.0.2.1", 64999), ("frr", "192.0.2.3", 64998)] {
        routing(server, "BGPPeer", name, json!({ "peerIP": address, "asNumber": asn }), json!({}));
    }
}

/// A Service with an external address and this pod as its only backend.
fn service(server: &Server, name: &str, address: &str, policy: &str, node: &Node, pod: &End) {
    let port = json!({ "port": 7, "protocol": "UDP" });
    let spec = json!({ "type": "NodePort", "externalIPs": [address], "externalTrafficPolicy": policy, "ports": [port] });
    server.create(services, json!({ "metadata": { "name": name }, "spec": spec }));
    let endpoint =
        json!({ "addresses": [pod.address], "nodeName": node.name, "conditions": { "ready": true } });
    let labels = json!({ "kubernetes.io/service-name": name });
    server.create(
        slices,
        json!({ "metadata": { "name": name, "labels": labels }, "addressType": "IPv4", "endpoints": [endpoint], "ports": [port] }),
    );
}

/// FRR's best way to a destination, and the communities on each one.
fn best_of(frr: &Daemon, destination: &str) -> Option<(String, Vec<Value>)> {
    let shown = frr.ask(&format!("show bgp ipv4 unicast {destination} json"))?;
    let shown: Value = serde_json::from_str(&shown).ok()?;
    let paths = shown["paths"].as_array()?;
    let best = paths.iter().find(|path| path["bestpath"]["overall"] == true)?;
    let hop = best["nexthops"][0]["ip"].as_str()?.to_owned();
    Some((hop, paths.iter().map(|path| path["community"]["string"].clone()).collect()))
}

#[test]
fn a_cordoned_node_is_the_last_choice_and_a_stopped_one_none_and_no_client_notices() {
    let folder = tempfile::tempdir().expect("a folder");
    let switch = Switch::new("192.0.2");
    let server = Server::start(&switch.host(2));
    announcements(&server);
    let top = Top::start(&switch, folder.path());
    let mut side = Side::new(Kind::Frr, 3, 64998, 64512);
    side.peers = ["192.0.2.11", "192.0.2.12"].map(|peer| (peer.to_owned(), 64512)).to_vec();
    let frr = Daemon::start(side, switch.host(3), folder.path());
    let plain = json!({ "metadata": {} });
    let mut nodes = [11, 12].map(|number| Node::join(&server, &switch, number, &[], &plain));
    nodes.iter().for_each(|node| node.host.ip("route add 198.51.100.0/24 via 192.0.2.1"));
    let pods = [nodes[0].pod("bound"), nodes[1].pod("anywhere")];
    service(&server, "bound", BOUND, "Local", &nodes[0], &pods[0]);
    service(&server, "anywhere", ANYWHERE, "Cluster", &nodes[1], &pods[1]);
    top.await_ways(ANYWHERE, &[11, 12]);
    top.await_ways(BOUND, &[11]);
    let flows = || Flows::asking(&top.client, ANYWHERE, FLOWS, &[&pods[1]]);
    let whole = flows();
    pass(MOMENT);
    whole.finish().must_be_whole("a Service behind two nodes, nothing fails");

    let change = |spec: Value| server.patch(Api::<ApiNode>::all, "node-11", json!({ "spec": spec }));
    let moving = flows();
    pass(MOMENT);
    change(json!({ "unschedulable": true }));
    top.await_ways(ANYWHERE, &[12]);
    pass(MOMENT);
    eventually("FRR prefers the other one, by the community", || {
        let (hop, communities) = best_of(&frr, ANYWHERE)?;
        (hop == "192.0.2.12" && communities.contains(&json!("graceful-shutdown"))).then_some(())
    });
    let (hop, communities) = best_of(&frr, BOUND).expect("what only this node serves stays");
    assert_eq!((hop.as_str(), communities), ("192.0.2.11", vec![Value::Null]));
    let block = nodes[0].agent.json("/v1/blocks")[0]["block"].as_str().expect("a block").to_owned();
    assert_eq!((top.ways(BOUND), top.ways(&block)), (vec![11], vec![11]), "its pods run still");
    assert_eq!(best_of(&frr, &block).expect("the block").1, [Value::Null]);
    change(json!({ "unschedulable": false }));
    top.await_ways(ANYWHERE, &[11, 12]);
    pass(MOMENT);
    moving.finish().must_be_whole("a node is cordoned, and uncordoned");
    stop(&server, &mut nodes, &top, flows, &block);
}

/// The agent of the cordoned node ends, begins again, and the node is out of service.
fn stop(server: &Server, nodes: &mut [Node; 2], top: &Top, flows: impl Fn() -> Flows, block: &str) {
    let change = |spec: Value| server.patch(Api::<ApiNode>::all, "node-11", json!({ "spec": spec }));
    let leaving = flows();
    change(json!({ "unschedulable": true }));
    top.await_ways(ANYWHERE, &[12]);
    nodes[0].agent.terminate();
    eventually("the top of rack has no second choice", || {
        let bird = |question: &str| {
            let mut birdc = Command::new("/usr/sbin/birdc");
            birdc.arg("-s").arg(top.folder.join("ctl")).args(question.split(' '));
            String::from_utf8_lossy(&birdc.output().expect("running birdc").stdout).into_owned()
        };
        (!bird(&format!("show route {ANYWHERE}/32 all")).contains("192.0.2.11")).then_some(())
    });
    assert_eq!((top.ways(BOUND), top.ways(block)), (vec![11], vec![11]), "pods and their clients go on");
    nodes[0].run();
    top.await_ways(BOUND, &[11]);
    pass(MOMENT);
    change(json!({ "taints": [{ "key": "node.kubernetes.io/out-of-service", "effect": "NoExecute" }] }));
    top.await_ways(BOUND, &[]);
    assert_eq!((top.ways(ANYWHERE), top.ways(block)), (vec![12], vec![11]));
    leaving.finish().must_be_whole("a cordoned node is stopped, started, and out of service");
}
