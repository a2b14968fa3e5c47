//! A cluster of two nodes with real agents and a real control plane, and a host beyond it.
//!
//! ```text
//!   client-sockets ─┐                                       ┌─ there, leaving-there, unready-there, exposed-there
//!   client-packets ─┤ node-11 ────── 192.0.2.0/24 ────── node-12
//!   here, ...-here ─┘ .11 and .21    2001:db8:1::/64       .12     outside .200, whose way to Services is node-11
//! ```
//!
//! The pods are namespaces that the CNI plugin was called for, and Pod objects that say so, as there is no kubelet. From
//! them the control plane's controllers make the EndpointSlices.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod as ApiPod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::asking::{Echo, Ports};
use super::beside;
use super::rows::{Row, Slices, Target};
use crate::failures::fabric::{Node, Switch};
use crate::netns::{Cgroup, NetNs, attempts_for, eventually};
use crate::routing::plugin::{Call, call_at};
use crate::routing::server::Server;

const CLUSTER_CIDRS: &str = "10.244.0.0/16,fd00:10:244::/64";
const SERVICE_CIDRS: &str = "10.96.0.0/16,fd00:10:96::/112";
const NODES: [u8; 2] = [11, 12];
const SECOND: u8 = 21;
const OUTSIDE: u8 = 200;
const HOST_PORT: u16 = 18080;
/// Of a Service that is made last, so that nodes that have it have all.
const MARKER: usize = 200;
/// For agents to hear of everything.
const SETTLED: Duration = Duration::from_secs(30);

/// A pod's namespace and its addresses.
pub struct Pod {
    pub name: &'static str,
    pub netns: NetNs,
    pub addresses: Vec<IpAddr>,
    /// Of who asks from here.
    pub ports: Ports,
    node: usize,
    is_of_host: bool,
}

/// What a Pod object says of its pod.
struct State {
    name: &'static str,
    node: usize,
    labels: &'static [(&'static str, &'static str)],
    is_ready: bool,
    is_leaving: bool,
}

const fn state(
    name: &'static str,
    node: usize,
    labels: &'static [(&'static str, &'static str)],
    is_ready: bool,
    is_leaving: bool,
) -> State {
    State { name, node, labels, is_ready, is_leaving }
}

/// All pods that the control plane knows.
const STATES: [State; 12] = [
    state("here", 0, &[("app", "plain"), ("at", "here")], true, false),
    state("there", 1, &[("app", "plain"), ("at", "there"), ("leaves-here", "yes")], true, false),
    state("leaving-here", 0, &[("leaving", "yes"), ("leaves-here", "yes")], true, true),
    state("leaving-there", 1, &[("leaving", "yes")], true, true),
    state("unready-here", 0, &[("unready", "yes")], false, false),
    state("unready-there", 1, &[("unready", "yes")], false, false),
    state("gone-here", 0, &[("gone", "yes")], false, true),
    state("host-here", 0, &[("app", "host")], true, false),
    state("host-there", 1, &[("app", "host")], true, false),
    state("client-sockets", 0, &[("client", "client-sockets")], true, false),
    state("client-packets", 0, &[("client", "client-packets")], true, false),
    state("exposed-here", 0, &[], true, false),
];

pub struct Scene {
    _echoes: Vec<Echo>,
    pub pods: Vec<Pod>,
    pub outside: NetNs,
    pub outside_ports: Ports,
    pub nodes: Vec<Node>,
    pub server: Server,
    pub cgroups: [Cgroup; 2],
    _switch: Switch,
}

impl Scene {
    pub fn new(rows: &[Row]) -> Scene {
        let switch = Switch::dual_stack("192.0.2", "2001:db8:1");
        let ranges = ["--cluster-cidr", CLUSTER_CIDRS, "--service-cidr", SERVICE_CIDRS];
        let server = Server::with(&switch.host(2), &ranges);
        let cgroups = [Cgroup::new(), Cgroup::new()];
        let nodes = nodes(&server, &switch, &cgroups);
        let outside = outside(&switch);
        let pods = pods(&nodes);
        let echoes = pods.iter().map(|pod| Echo::start(&pod.netns, pod.name, ports(pod.name))).collect();
        let scene = Scene {
            _echoes: echoes,
            pods,
            outside,
            outside_ports: Ports::new(),
            nodes,
            server,
            cgroups,
            _switch: switch,
        };
        scene.make(rows);
        scene.settle(rows);
        scene
    }

    pub fn pod(&self, name: &str) -> &Pod {
        self.pods.iter().find(|pod| pod.name == name).expect("a pod of this name")
    }

    /// Every object, by one connection.
    fn make(&self, rows: &[Row]) {
        let pods: Vec<(&State, &Pod)> = STATES.iter().map(|state| (state, self.pod(state.name))).collect();
        let crossed = self.crossed(rows);
        self.server.ask(async |client| {
            for (state, pod) in pods {
                make_pod(&client, state, pod).await;
            }
            for (number, row) in rows.iter().enumerate() {
                if let Some(service) = service(number, row) {
                    create::<Service>(&client, &service).await;
                    set_balancer(&client, number).await;
                }
            }
            for service in &beside::services() {
                create::<Service>(&client, service).await;
            }
            for slice in &crossed {
                create::<EndpointSlice>(&client, slice).await;
            }
        });
    }

    /// Slices by hand: each endpoint is for the zone of the other.
    fn crossed(&self, rows: &[Row]) -> Vec<Value> {
        let of_row = |(number, _): (usize, &Row)| {
            [true, false].map(|is_v4| {
                let endpoint = |name: &str, node: usize| {
                    let address = address_of(self.pod(name), is_v4).to_string();
                    let zones = [json!({ "name": zone(1 - node) })];
                    json!({
                        "addresses": [address], "nodeName": node_name(node), "zone": zone(node),
                        "conditions": { "ready": true }, "hints": { "forZones": zones },
                    })
                };
                slice(number, is_v4, &[endpoint("here", 0), endpoint("there", 1)])
            })
        };
        rows.iter().enumerate().filter(|(_, row)| row.slices == Slices::Crossed).flat_map(of_row).collect()
    }

    /// Waits until both nodes serve all rows, and know the way to each other's pods.
    fn settle(&self, rows: &[Row]) {
        eventually("the slices are made", || {
            let known = self.server.ask(async |client| known_endpoints(client).await);
            let is_known = |(number, row): (usize, &Row)| match row.slices {
                Slices::Of(pods) => {
                    let families = if row.is_dual_stack { 2 } else { 1 };
                    known
                        .get(&name(number))
                        .is_some_and(|(slices, count)| *slices >= families && *count == families * pods)
                }
                Slices::Crossed | Slices::None => true,
            };
            rows.iter().enumerate().all(is_known).then_some(())
        });
        let here = address_of(self.pod("here"), true).to_string();
        self.server.ask(async |client| {
            create::<Service>(&client, &marker()).await;
            let endpoint = json!({ "addresses": [here], "conditions": { "ready": true } });
            create::<EndpointSlice>(&client, &slice(MARKER, true, &[endpoint])).await;
        });
        for node in &self.nodes {
            let is_last = |service: &Value| {
                service["name"].as_str().is_some_and(|it| it.contains(&name(MARKER)))
                    && !service["backends"][0].is_null()
            };
            let known = attempts_for(SETTLED, || {
                node.agent.json("/v1/services").as_array()?.iter().any(is_last).then_some(())
            });
            assert!(known.is_some(), "{} does not know all Services", node.name);
        }
        self.await_ways();
    }

    fn await_ways(&self) {
        for (from, to) in [("client-packets", "there"), ("there", "client-packets")] {
            for address in &self.pod(to).addresses {
                eventually(&format!("{from} reaches {to} at {address}"), || {
                    let target = address.to_string();
                    let mut ping = std::process::Command::new("ping");
                    ping.args(["-c", "1", "-W", "1", &target]);
                    let output = self.pod(from).netns.run(|| ping.output());
                    output.expect("running ping").status.success().then_some(())
                });
            }
        }
    }
}

fn nodes(server: &Server, switch: &Switch, cgroups: &[Cgroup; 2]) -> Vec<Node> {
    let mut nodes: Vec<Node> = Vec::new();
    for (index, number) in NODES.into_iter().enumerate() {
        let host = switch.host(number);
        if index == 0 {
            switch.add_address(&host, SECOND, "up0");
            // Nobody's choice to send from.
            host.ip(&format!("address change 2001:db8:1::{SECOND}/64 dev up0 preferred_lft 0"));
        }
        let cgroup = cgroups[index].as_parent_of_pods();
        let arguments = [
            ["--cluster-cidr", CLUSTER_CIDRS],
            ["--service-cidr", SERVICE_CIDRS],
            ["--cluster-dns", "10.96.0.10"],
            ["--resolv-conf", "/dev/null"],
            ["--cgroup-parent", &cgroup],
        ];
        let labels = json!({ "metadata": { "labels": { "topology.kubernetes.io/zone": zone(index) } } });
        nodes.push(Node::begin_on(host, server, switch, number, &arguments.concat(), &labels));
    }
    for node in &mut nodes {
        node.await_joined();
        answer_everybody(&node.host);
    }
    nodes
}

/// The kernel limits how often it says that something cannot be reached, which many ask here at once.
fn answer_everybody(host: &NetNs) {
    for (path, value) in [
        ("net/ipv4/icmp_ratelimit", "0"),
        ("net/ipv6/icmp/ratelimit", "0"),
        ("net/ipv4/icmp_msgs_per_sec", "100000"),
        ("net/ipv4/icmp_msgs_burst", "10000"),
    ] {
        host.sysctl(path, value);
    }
}

fn outside(switch: &Switch) -> NetNs {
    let outside = switch.host(OUTSIDE);
    for range in ["10.96.0.0/16", "203.0.113.0/24", "198.51.100.0/24"] {
        outside.ip(&format!("route add {range} via 192.0.2.11"));
    }
    for range in ["fd00:10:96::/112", "2001:db8:2::/64", "2001:db8:3::/64"] {
        outside.ip(&format!("-6 route add {range} via 2001:db8:1::11"));
    }
    outside
}

fn pods(nodes: &[Node]) -> Vec<Pod> {
    let also = state("exposed-there", 1, &[], true, false);
    let all = STATES.iter().chain([&also]);
    all.map(|state| {
        let node = &nodes[state.node];
        if state.name.starts_with("host-") {
            let addresses = family_addresses(Target::Node, state.node);
            let netns = node.host.without_cgroup();
            return Pod {
                name: state.name,
                netns,
                addresses,
                ports: Ports::new(),
                node: state.node,
                is_of_host: true,
            };
        }
        let netns = NetNs::new();
        let mappings = ["tcp", "udp"]
            .map(|protocol| json!({ "hostPort": HOST_PORT, "containerPort": 8080, "protocol": protocol }));
        let is_exposed = state.name.starts_with("exposed-");
        let config =
            if is_exposed { json!({ "runtimeConfig": { "portMappings": mappings } }) } else { json!({}) };
        let add =
            Call { command: "ADD", container: state.name, pod: state.name, netns: Some(&netns), config };
        // A new node may wait for its block of one family.
        let result = eventually("the pod has addresses", || {
            let (success, result) = call_at(&node.agent.socket(), &add);
            success.then_some(result)
        });
        let address = |ip: &Value| {
            let text = ip["address"].as_str().expect("an address");
            text.split_once('/').expect("a length").0.parse().expect("an address")
        };
        let addresses: Vec<IpAddr> =
            result["ips"].as_array().expect("addresses").iter().map(address).collect();
        assert_eq!(addresses.len(), 2, "{}: {addresses:?}", state.name);
        Pod { name: state.name, netns, addresses, ports: Ports::new(), node: state.node, is_of_host: false }
    })
    .collect()
}

fn ports(name: &str) -> &'static [u16] {
    match name {
        "here" => &[8080, 8081],
        "there" => &[8080, 8082],
        "host-here" | "host-there" => &[8088],
        _ => &[8080],
    }
}

pub fn address_of(pod: &Pod, is_v4: bool) -> IpAddr {
    *pod.addresses.iter().find(|address| address.is_ipv4() == is_v4).expect("an address of each family")
}

fn node_name(index: usize) -> String {
    format!("node-{}", NODES[index])
}

fn zone(node: usize) -> &'static str {
    ["zone-here", "zone-there"][node]
}

/// Of the Service of a row.
pub fn name(number: usize) -> String {
    format!("row-{number}")
}

pub fn health_port(number: usize) -> u16 {
    32000 + number as u16
}

/// The addresses of the Service of a row, or of a node, in both families.
pub fn family_addresses(target: Target, number: usize) -> Vec<IpAddr> {
    let last = number + 1;
    let texts = match target {
        Target::ClusterIp => [format!("10.96.1.{last}"), format!("fd00:10:96::1{last:02x}")],
        Target::Balancer => [format!("203.0.113.{last}"), format!("2001:db8:2::{last:x}")],
        Target::External => [format!("198.51.100.{last}"), format!("2001:db8:3::{last:x}")],
        Target::Node => [format!("192.0.2.{}", NODES[number]), format!("2001:db8:1::{}", NODES[number])],
        Target::Second => [format!("192.0.2.{SECOND}"), format!("2001:db8:1::{SECOND}")],
        Target::Loopback => ["127.0.0.1".to_owned(), "::1".to_owned()],
        Target::There => return family_addresses(Target::Node, 1),
    };
    texts.map(|text| text.parse().expect("an address")).to_vec()
}

/// At which port a row is asked.
pub fn port_of(target: Target, number: usize, row: &Row) -> u16 {
    row.port.unwrap_or(if target.is_of_service() { 80 } else { 30000 + number as u16 })
}

pub fn outside_address(is_v4: bool) -> IpAddr {
    let text = if is_v4 { format!("192.0.2.{OUTSIDE}") } else { format!("2001:db8:1::{OUTSIDE}") };
    text.parse().expect("an address")
}

/// The Service of a row: reachable in every way there is.
fn service(number: usize, row: &Row) -> Option<Value> {
    let mut spec = row.spec.clone()?;
    let families = if row.is_dual_stack { 2 } else { 1 };
    let addresses = |target| -> Vec<String> {
        family_addresses(target, number).iter().take(families).map(IpAddr::to_string).collect()
    };
    let port = |protocol: &str| {
        let mut port = json!({
            "name": protocol.to_lowercase(), "protocol": protocol, "port": 80, "nodePort": 30000 + number,
            "targetPort": row.target_port,
        });
        if row.target_port == "web" {
            port["targetPort"] = json!(format!("web-{}", protocol.to_lowercase()));
        }
        port
    };
    spec["type"] = json!("LoadBalancer");
    // The test says its addresses.
    spec["loadBalancerClass"] = json!("test.seaway.dev/by-hand");
    spec["clusterIPs"] = json!(addresses(Target::ClusterIp));
    spec["clusterIP"] = spec["clusterIPs"][0].clone();
    spec["ipFamilyPolicy"] = json!(if row.is_dual_stack { "RequireDualStack" } else { "SingleStack" });
    spec["externalIPs"] = json!(addresses(Target::External));
    spec["ports"] = json!([port("TCP"), port("UDP")]);
    if spec["externalTrafficPolicy"] == "Local" {
        spec["healthCheckNodePort"] = json!(health_port(number));
    }
    let mut metadata = row.metadata.clone();
    metadata["name"] = json!(name(number));
    Some(json!({ "metadata": metadata, "spec": spec }))
}

fn marker() -> Value {
    let port = json!({ "name": "tcp", "protocol": "TCP", "port": 80 });
    json!({ "metadata": { "name": name(MARKER) }, "spec": { "ports": [port] } })
}

fn slice(number: usize, is_v4: bool, endpoints: &[Value]) -> Value {
    let (family, suffix) = if is_v4 { ("IPv4", "v4") } else { ("IPv6", "v6") };
    let ports = ["TCP", "UDP"]
        .map(|protocol| json!({ "name": protocol.to_lowercase(), "protocol": protocol, "port": 8080 }));
    json!({
        "metadata": {
            "name": format!("{}-{suffix}", name(number)),
            "labels": { "kubernetes.io/service-name": name(number) },
        },
        "addressType": family, "endpoints": endpoints, "ports": ports,
    })
}

async fn create<K>(client: &Client, object: &Value)
where
    K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    K: Clone + std::fmt::Debug + Serialize + DeserializeOwned,
{
    let typed: K = serde_json::from_value(object.clone()).expect("the object fits its type");
    let api = Api::<K>::namespaced(client.clone(), "default");
    if let Err(error) = api.create(&PostParams::default(), &typed).await {
        panic!("{object}: {error}");
    }
}

async fn make_pod(client: &Client, state: &State, pod: &Pod) {
    let labels: BTreeMap<&str, &str> = state.labels.iter().copied().collect();
    let web = if state.node == 0 { 8081 } else { 8082 };
    let port = |protocol: &str| {
        let name = format!("web-{}", protocol.to_lowercase());
        json!({ "name": name, "protocol": protocol, "containerPort": web })
    };
    let container = json!({ "name": "c", "image": "i", "ports": [port("TCP"), port("UDP")] });
    let metadata = json!({ "name": state.name, "labels": labels });
    let mut spec = json!({ "nodeName": node_name(pod.node), "containers": [container] });
    if pod.is_of_host {
        spec["hostNetwork"] = json!(true);
        spec["containers"][0]["ports"] = json!([]);
    }
    create::<ApiPod>(client, &json!({ "metadata": metadata, "spec": spec })).await;
    let ready = if state.is_ready { "True" } else { "False" };
    let ips: Vec<Value> = pod.addresses.iter().map(|ip| json!({ "ip": ip.to_string() })).collect();
    let status = json!({
        "phase": "Running", "podIP": pod.addresses[0].to_string(), "podIPs": ips,
        "conditions": [{ "type": "Ready", "status": ready }],
    });
    let api = Api::<ApiPod>::namespaced(client.clone(), "default");
    let patch = Patch::Merge(json!({ "status": status }));
    let patched = api.patch_status(state.name, &PatchParams::default(), &patch).await;
    patched.unwrap_or_else(|error| panic!("{}: {error}", state.name));
    if state.is_leaving {
        // Nobody says that it has ended.
        let settings = DeleteParams { grace_period_seconds: Some(600), ..DeleteParams::default() };
        api.delete(state.name, &settings).await.unwrap_or_else(|error| panic!("{}: {error}", state.name));
    }
}

async fn set_balancer(client: &Client, number: usize) {
    let addresses = family_addresses(Target::Balancer, number);
    let ingress: Vec<Value> = addresses.iter().map(|ip| json!({ "ip": ip.to_string() })).collect();
    let patch = Patch::Merge(json!({ "status": { "loadBalancer": { "ingress": ingress } } }));
    let api = Api::<Service>::namespaced(client.clone(), "default");
    let patched = api.patch_status(&name(number), &PatchParams::default(), &patch).await;
    patched.unwrap_or_else(|error| panic!("row {number}: {error}"));
}

/// By Service: how many slices there are, and endpoints in them.
async fn known_endpoints(client: Client) -> BTreeMap<String, (usize, usize)> {
    let api = Api::<EndpointSlice>::namespaced(client, "default");
    let mut known = BTreeMap::new();
    for slice in api.list(&ListParams::default()).await.expect("the slices") {
        let labels = slice.metadata.labels.unwrap_or_default();
        let Some(service) = labels.get("kubernetes.io/service-name") else { continue };
        let (slices, endpoints): &mut (usize, usize) = known.entry(service.clone()).or_default();
        *slices += 1;
        *endpoints += slice.endpoints.map_or(0, |endpoints| endpoints.len());
    }
    known
}
