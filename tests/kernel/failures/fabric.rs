//! A cluster of namespaces: a switch, a control plane at 192.0.2.2, and nodes whose agents and pods are real. There is no
//! kubelet: the test says what it would.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Node as ApiNode;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind};
use kube::{Api, Client};
use serde_json::{Value, json};

use super::flows::End;
use crate::netns::{NetNs, eventually};
use crate::routing::addresses::{add_at, delete_at};
use crate::routing::agent::Agent;
use crate::routing::server::Server;

/// An object of the routing API.
pub fn routing(server: &Server, kind: &'static str, name: &str, spec: Value, annotations: Value) {
    let api: fn(Client) -> Api<DynamicObject> = match kind {
        "BGPPeer" => |client| Api::all_with(client, &resource("BGPPeer")),
        _ => |client| Api::all_with(client, &resource("BGPConfiguration")),
    };
    let metadata = json!({ "name": name, "annotations": annotations });
    server.create(
        api,
        json!({ "apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": metadata, "spec": spec }),
    );
}

fn resource(kind: &str) -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk("projectcalico.org", "v3", kind))
}

/// Hosts on one wire, each by a cable that can be cut.
pub struct Switch {
    netns: NetNs,
    range: &'static str,
    range_v6: Option<&'static str>,
}

impl Switch {
    /// `range`: the first three numbers of its hosts' addresses.
    pub fn new(range: &'static str) -> Switch {
        Switch::of(range, None)
    }

    /// Of both families; `range_v6`: the first half of its hosts' IPv6 addresses.
    pub fn dual_stack(range: &'static str, range_v6: &'static str) -> Switch {
        Switch::of(range, Some(range_v6))
    }

    fn of(range: &'static str, range_v6: Option<&'static str>) -> Switch {
        let netns = NetNs::new();
        netns.ip("link add sw0 type bridge");
        netns.ip("link set sw0 up");
        Switch { netns, range, range_v6 }
    }

    /// Another host, at this number.
    pub fn host(&self, number: u8) -> NetNs {
        let host = NetNs::new();
        self.attach(&host, number, "up0");
        host
    }

    pub fn attach(&self, host: &NetNs, number: u8, link: &str) {
        self.netns.ip(&format!("link add p{number} type veth peer name {link} netns {}", host.path()));
        self.netns.ip(&format!("link set p{number} master sw0 up"));
        self.add_address(host, number, link);
        host.ip(&format!("link set {link} up"));
    }

    /// Another address of each family for a host.
    pub fn add_address(&self, host: &NetNs, number: u8, link: &str) {
        host.ip(&format!("address add {}/24 dev {link}", self.address(number)));
        if let Some(address) = self.address_v6(number) {
            host.ip(&format!("address add {address}/64 dev {link} nodad"));
        }
    }

    pub fn address(&self, number: u8) -> String {
        format!("{}.{number}", self.range)
    }

    pub fn address_v6(&self, number: u8) -> Option<String> {
        self.range_v6.map(|range| format!("{range}::{number}"))
    }

    /// Of all families, as a flag takes them.
    fn addresses(&self, number: u8) -> String {
        let all = [Some(self.address(number)), self.address_v6(number)];
        all.into_iter().flatten().collect::<Vec<_>>().join(",")
    }

    /// Nothing passes any more, and no link goes down by that: as where a switch between fails.
    pub fn cut(&self, number: u8) {
        self.netns.ip(&format!("link set p{number} nomaster"));
    }

    pub fn mend(&self, number: u8) {
        self.netns.ip(&format!("link set p{number} master sw0"));
    }
}

/// Makes a Node of this name and these addresses, with commas between them, which is this object otherwise.
pub fn register(server: &Server, name: &str, addresses: &str, object: &Value) {
    let mut object = object.clone();
    object["metadata"]["name"] = json!(name);
    server.create(Api::<ApiNode>::all, object);
    let addresses = addresses.split(',').map(|address| json!({ "type": "InternalIP", "address": address }));
    let addresses: Vec<Value> = addresses.collect();
    server.patch(Api::<ApiNode>::all, name, json!({ "status": { "addresses": addresses } }));
}

/// A host with an agent.
pub struct Node {
    pub name: String,
    pub address: String,
    pub host: NetNs,
    pub agent: Agent,
    arguments: Vec<String>,
}

impl Node {
    /// A node of the control plane, once its agent has a block.
    pub fn join(server: &Server, switch: &Switch, number: u8, arguments: &[&str], object: &Value) -> Node {
        let mut node = Node::begin(server, switch, number, arguments, object);
        node.await_joined();
        node
    }

    /// Its agent answers, and has a block where it is to have any.
    pub fn await_joined(&mut self) {
        let node = self;
        eventually("the agent's socket answers", || {
            assert!(node.agent.is_running(), "the agent has ended:\n{}", node.agent.log());
            node.agent.get("/healthz").map(|_| ())
        });
        if !node.arguments.iter().any(|argument| argument == "--router-only") {
            eventually("the node has a block", || node.has_block().then_some(()));
        }
    }

    /// A node of the control plane whose agent starts.
    pub fn begin(server: &Server, switch: &Switch, number: u8, arguments: &[&str], object: &Value) -> Node {
        Node::begin_on(switch.host(number), server, switch, number, arguments, object)
    }

    /// The same on this host.
    pub fn begin_on(
        host: NetNs,
        server: &Server,
        switch: &Switch,
        number: u8,
        arguments: &[&str],
        object: &Value,
    ) -> Node {
        let (name, address) = (format!("node-{number}"), switch.address(number));
        let addresses = switch.addresses(number);
        register(server, &name, &addresses, object);
        let folder = Agent::folder();
        server.kubeconfig(&name, &folder.path().join("kubeconfig"));
        let mut agent = Agent::prepared((&name, &addresses), folder, &[]);
        agent.spawn(&host, arguments);
        let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        Node { name, address, host, agent, arguments }
    }

    pub fn has_block(&self) -> bool {
        let told = self.agent.get("/v1/blocks").and_then(|text| serde_json::from_str::<Value>(&text).ok());
        told.is_some_and(|blocks| blocks.as_array().is_some_and(|all| !all.is_empty()))
    }

    /// A node without a control plane, which owns this block and has the peers of this file's text.
    pub fn alone(switch: &Switch, number: u8, block: &str, peers: &Value) -> Node {
        let (name, address) = (format!("node-{number}"), switch.address(number));
        let folder = Agent::folder();
        let file = folder.path().join("peers.json");
        std::fs::write(&file, peers.to_string()).expect("the file of peers");
        let arguments = ["--bgp-peer-file", file.to_str().expect("a path of characters")].map(str::to_owned);
        let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let host = switch.host(number);
        let saved = Agent::blocks(&[("10.244.0.0/16", block)]);
        let agent = Agent::named((&name, &address), &host, folder, &[("ipam.json", saved)], &words);
        Node { name, address, host, agent, arguments: arguments.to_vec() }
    }

    /// The agent's process again, which is not waited for.
    pub fn spawn(&mut self) {
        let arguments: Vec<&str> = self.arguments.iter().map(String::as_str).collect();
        self.agent.spawn(&self.host, &arguments);
    }

    /// The agent's process again.
    pub fn run(&mut self) {
        let arguments: Vec<&str> = self.arguments.iter().map(String::as_str).collect();
        self.agent.run(&self.host, &arguments);
    }

    /// A pod of this node.
    pub fn pod(&self, name: &str) -> End {
        let netns = NetNs::new();
        let address =
            eventually("the pod has an address", || add_at(&self.agent.socket(), name, &netns).ok());
        End { name: name.to_owned(), netns, address }
    }

    /// Takes a pod down.
    pub fn delete(&self, pod: &End) {
        assert!(delete_at(&self.agent.socket(), &pod.name), "{} is deleted", pod.name);
    }

    /// The state of the session with a peer, if there is such a peer.
    pub fn session(&self, peer: &str) -> Option<String> {
        let peers = self.agent.json("/v1/peers");
        let peer = peers.as_array()?.iter().find(|it| it["address"] == peer)?;
        peer["state"].as_str().map(str::to_owned)
    }
}

/// Waits until packets pass from each to each other, so that no flow begins before its way does.
pub fn await_ways<'a>(ends: impl IntoIterator<Item = &'a End> + Clone) {
    for from in ends.clone() {
        for to in ends.clone() {
            eventually(&format!("{} reaches {}", from.name, to.name), || {
                let ping =
                    || std::process::Command::new("ping").args(["-c", "1", "-W", "1", &to.address]).output();
                from.netns.run(ping).expect("running ping").status.success().then_some(())
            });
        }
    }
}

/// Time in which flows go on.
pub fn pass(time: Duration) {
    let end = Instant::now() + time;
    while let Some(left) = end.checked_duration_since(Instant::now()) {
        std::thread::sleep(left);
    }
}
