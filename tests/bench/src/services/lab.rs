//! Two nodes with pods, one subject on them: namespaces joined by veth, routed by the kernel as the agent would have it.
//!
//! ```text
//!   client ─────────┐
//!   4 servers ──────┤ bench-a 10.89.0.11 ──uplink── 10.89.0.12 bench-b ├── 4 servers
//!   10.244.0.0/24   ┘                                                   10.244.1.0/24
//! ```

use std::{
    io::BufReader,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use dataplane::{
    datapath::{Config, Datapath},
    links::{Links, PodLink, PodLinkConfig, prepare_host},
    node::NodeConfig,
    routes::{Routes, RoutesConfig, Target},
};
use ebpf_common::{Address, GroupId, Policed, Port, Prefix, Protocol, RuleKey, RulesId, desired::Policies};
use nix::mount::{MntFlags, umount2};
use proxy::{NodeView, Proxy};

use super::{
    ground::{Ground, NetNs, make_cgroup},
    load::{Mode, Outcome},
    objects::{self, ENDPOINTS, NODES, POD_PORT, Place, pod_address},
};
use crate::process::Process;

const MTU: u32 = 1500;
/// Load is given this much longer than it was told to run.
const LOAD_TIME_MORE: Duration = Duration::from_secs(60);
const ANSWER_TIME_MAX: Duration = Duration::from_millis(500);

/// Who sees to the routes and links of a node.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owner {
    /// The laboratory, as the agent would.
    Laboratory,
    /// An agent will run there, which takes what looks like its own.
    Agent,
}

pub(crate) struct Lab {
    pub(crate) name: String,
    pub(crate) nodes: [Node; 2],
    pub(crate) client: NetNs,
    servers: Vec<Process>,
}

pub(crate) struct Node {
    pub(crate) name: &'static str,
    pub(crate) address: Ipv4Addr,
    pub(crate) namespace: NetNs,
    pub(crate) cgroup: PathBuf,
    servers: Vec<NetNs>,
    /// Of the pods, by address.
    links: Vec<(IpAddr, PodLink)>,
    uplink: u32,
    owner: Owner,
    datapath: Option<(Datapath, PathBuf)>,
}

/// How long it took from objects to programs that serve them.
#[derive(Clone, Copy)]
pub(crate) struct Served {
    /// Services and EndpointSlices to the desired contents of the maps.
    pub(crate) computed: Duration,
    /// The contents to the maps.
    pub(crate) written: Duration,
}

impl Lab {
    pub(crate) fn new(ground: &Ground, name: &str, owner: Owner) -> Result<Self> {
        let [mut first, mut second] = [
            Node::new(ground, name, 0, owner).context("making the first node")?,
            Node::new(ground, name, 1, owner).context("making the second node")?,
        ];
        first.namespace.ip(&format!(
            "link add uplink type veth peer name uplink netns {}",
            second.namespace.path().display()
        ))?;
        // Routes are refused while the other end is down.
        first.namespace.ip("link set uplink up")?;
        second.namespace.ip("link set uplink up")?;
        first.join(second.address, 1)?;
        second.join(first.address, 0)?;
        for (index, node) in [&mut first, &mut second].into_iter().enumerate() {
            for pod in 0..ENDPOINTS {
                let namespace = node.add_pod(pod_address(index, pod))?;
                node.servers.push(namespace);
            }
        }
        let client = first.add_pod(pod_address(0, ENDPOINTS))?;
        // Ports of connections that are over are used again after a second, so that load does not run out of them.
        client.sysctl("ipv4/ip_local_port_range", "1024 65535")?;
        client.sysctl("ipv4/tcp_tw_reuse", "1")?;
        let mut lab = Self { name: name.to_owned(), nodes: [first, second], client, servers: Vec::new() };
        for index in 0..lab.nodes.len() {
            let server = lab.nodes[index].start_server(index).context("starting the load server")?;
            lab.servers.push(server);
        }
        Ok(lab)
    }

    /// Serves the first `services` Services with our programs, on both nodes.
    pub(crate) fn serve(&mut self, ground: &Ground, services: u32) -> Result<Served> {
        let mut first = None;
        for node in &mut self.nodes {
            let directory = ground.folder().join(format!("bpf-{}-{}", self.name, node.name));
            let served = node.serve(&directory, services)?;
            first.get_or_insert(served);
        }
        first.context("there is a node")
    }

    /// What 100 policies say that select every pod that answers: each allows other peers and ports to it, one the client.
    pub(crate) fn police(&mut self) -> Result<()> {
        const RULES: RulesId = RulesId(1);
        const POLICIES: u8 = 100;
        const PEERS: u8 = 20;
        let mut policies = Policies::default();
        for policy in 0..POLICIES {
            let group = GroupId(u32::from(policy) + 1);
            for peer in 0..PEERS {
                policies.peers.insert(Prefix::new(Address::from_v4([10, 245, policy, peer]), 32), group);
            }
            for protocol in [Protocol::TCP, Protocol::UDP] {
                let port = Port::new(9000 + u16::from(policy));
                policies.rules.insert(RuleKey::ports(RULES, group, protocol, port, 16));
                policies.rules.insert(RuleKey::ports(RULES, GroupId(1), protocol, Port::new(POD_PORT), 16));
            }
        }
        let client = Address::from(IpAddr::V4(pod_address(0, ENDPOINTS)));
        policies.peers.insert(Prefix::new(client, 32), GroupId(1));
        for (index, node) in self.nodes.iter_mut().enumerate() {
            let policed = Policed { ingress: RULES, egress: RulesId::NONE };
            let pods = (0..ENDPOINTS).map(|pod| Address::from(IpAddr::V4(pod_address(index, pod))));
            let policies = Policies { pods: pods.map(|pod| (pod, policed)).collect(), ..policies.clone() };
            let (datapath, _) = node.datapath.as_mut().context("the node serves")?;
            datapath.set_policies(&policies)?;
        }
        Ok(())
    }

    /// Where the client asks: the pods themselves, or the Services that lead to them.
    pub(crate) fn check(&self, targets: &[SocketAddr], in_cgroup: bool) -> Result<()> {
        for mode in [Mode::TcpConnect, Mode::UdpConnect] {
            let outcome = self.load(mode, Place::SameNode, targets, in_cgroup, 0.0, 0.05)?;
            ensure!(
                outcome.operations > 0 && outcome.failures == 0,
                "{} of {} operations failed",
                outcome.failures,
                outcome.operations + outcome.failures
            );
        }
        Ok(())
    }

    /// One measurement.
    pub(crate) fn load(
        &self,
        mode: Mode,
        place: Place,
        targets: &[SocketAddr],
        in_cgroup: bool,
        warm: f64,
        seconds: f64,
    ) -> Result<Outcome> {
        let targets: Vec<String> = targets.iter().map(SocketAddr::to_string).collect();
        let mut command = own_program()?;
        command.args(["load-client", "--mode", mode.word(), "--target", &targets.join(",")]);
        command.args(["--warm", &warm.to_string(), "--seconds", &seconds.to_string()]);
        command.args(["--server", &self.servers[place.node()].id().to_string()]);
        let mut client = self.spawn_client(command, in_cgroup)?;
        let (_, output) = client.pipes().context("the client's output is a pipe")?;
        let limit = Duration::from_secs_f64(warm + seconds) + LOAD_TIME_MORE;
        let line = line_within(BufReader::new(output), limit).context("load-client")?;
        serde_json::from_str(&line).with_context(|| format!("load-client said {:?}", line.trim()))
    }

    /// Starts a program in the client's pod; its standard input and output are pipes.
    pub(crate) fn spawn_client(&self, mut command: Command, in_cgroup: bool) -> Result<Process> {
        let cgroup = &self.nodes[0].cgroup;
        // Beside the cgroup that is served, and as deep.
        let beside = cgroup.with_extension("unserved");
        make_cgroup(&beside)?;
        self.client.place(&mut command, if in_cgroup { cgroup } else { &beside })?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        Process::spawn(command)
    }

    /// Whether a TCP request from a namespace is answered.
    pub(crate) fn answers(namespace: &NetNs, target: SocketAddr) -> bool {
        use std::io::{Read as _, Write as _};
        let asked = namespace.run(|| {
            let mut stream = TcpStream::connect_timeout(&target, ANSWER_TIME_MAX)?;
            stream.set_read_timeout(Some(ANSWER_TIME_MAX))?;
            stream.write_all(&[0])?;
            stream.read_exact(&mut [0])?;
            Ok(())
        });
        asked.is_ok()
    }
}

impl Node {
    fn new(ground: &Ground, lab: &str, index: usize, owner: Owner) -> Result<Self> {
        let name = NODES[index];
        Ok(Self {
            name,
            address: Ipv4Addr::new(10, 89, 0, index as u8 + 11),
            namespace: NetNs::new()?,
            cgroup: ground.cgroup(&format!("{lab}-{name}"))?,
            servers: Vec::new(),
            links: Vec::new(),
            uplink: 0,
            owner,
            datapath: None,
        })
    }

    /// One of its server pods.
    pub(crate) fn pod(&self) -> &NetNs {
        &self.servers[0]
    }

    /// The uplink, and the route to the other node's pods.
    fn join(&mut self, other: Ipv4Addr, other_index: usize) -> Result<()> {
        self.namespace.ip(&format!("addr add {}/24 dev uplink", self.address))?;
        self.uplink = self.namespace.run(|| {
            prepare_host("uplink").context("setting up forwarding")?;
            Ok(Links::open()?.index("uplink")?)
        })?;
        let pods = IpAddr::V4(Ipv4Addr::new(10, 244, other_index as u8, 0));
        self.route(pods, 24, Target::Via(vec![IpAddr::V4(other)].into()))
    }

    fn add_pod(&mut self, address: Ipv4Addr) -> Result<NetNs> {
        let pod = NetNs::new()?;
        // What begins with the agent's prefix and is no pod of its own, an agent removes.
        let prefix = if self.owner == Owner::Agent { "pod" } else { "swp" };
        let host_name = format!("{prefix}{}", self.links.len());
        let addresses = [IpAddr::V4(address)];
        let config = PodLinkConfig {
            host_name: &host_name,
            pod_name: "eth0",
            netns: pod.file(),
            addresses: &addresses,
            mtu: MTU,
        };
        let link = self.namespace.run(|| Ok(Links::open()?.add_pod(&config)?)).context("joining a pod")?;
        let host_index = link.host_index;
        self.links.push((IpAddr::V4(address), link));
        self.route(IpAddr::V4(address), 32, Target::Link(host_index))?;
        Ok(pod)
    }

    fn route(&self, to: IpAddr, bits: u8, target: Target) -> Result<()> {
        if self.owner == Owner::Agent {
            return match target {
                Target::Via(via) => self.namespace.ip(&format!("route add {to}/{bits} via {}", via[0])),
                Target::Link(_) => {
                    let link = self.links.len() - 1;
                    self.namespace.ip(&format!("route add {to}/{bits} dev pod{link}"))
                }
                Target::Blackhole => self.namespace.ip(&format!("route add blackhole {to}/{bits}")),
                Target::Unreachable => self.namespace.ip(&format!("route add unreachable {to}/{bits}")),
            };
        }
        let destination = ipnetwork::IpNetwork::new(to, bits).context("a prefix")?;
        let source_v4 = Some(IpAddr::V4(self.address));
        self.namespace.run(|| {
            let mut routes = Routes::open(RoutesConfig { source_v4, ..RoutesConfig::default() })?;
            routes.set(destination, Some(target));
            let applied = routes.apply()?;
            match applied.failed.first() {
                Some((destination, error)) => bail!("route to {destination}: {error}"),
                None => Ok(()),
            }
        })
    }

    /// One process that answers in every server pod of the node.
    fn start_server(&self, index: usize) -> Result<Process> {
        let mut command = own_program()?;
        command.arg("load-server");
        for (number, pod) in (0..ENDPOINTS).zip(&self.servers) {
            let at = SocketAddr::from((pod_address(index, number), POD_PORT));
            command.arg("--listen").arg(format!("{}@{at}", pod.path().display()));
        }
        self.namespace.place(&mut command, &self.cgroup)?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut server = Process::spawn(command)?;
        let (_, output) = server.pipes().context("the server's output is a pipe")?;
        let said = line_within(BufReader::new(output), LOAD_TIME_MORE)?;
        ensure!(said.trim() == "ready", "the load server said {:?}", said.trim());
        Ok(server)
    }

    fn serve(&mut self, directory: &Path, services: u32) -> Result<Served> {
        let objects: Vec<_> =
            (0..services).map(|index| (objects::service(index), objects::slice(index))).collect();
        let (services, slices): (Vec<_>, Vec<_>) = objects.into_iter().unzip();
        let mut proxy = Proxy::new(NodeView { name: self.name.to_owned(), ..NodeView::default() });
        let began = Instant::now();
        services.into_iter().for_each(|service| proxy.insert_service(&service));
        slices.into_iter().for_each(|slice| proxy.insert_slice(&slice));
        let changes = proxy.update();
        let computed = began.elapsed();
        let mut datapath = Datapath::open(&Config::new(directory)).context("opening the datapath")?;
        let began = Instant::now();
        datapath.change_services(&changes);
        datapath.apply_services().context("writing the Services")?;
        let written = began.elapsed();
        datapath.attach_cgroup(&self.cgroup).context("serving sockets")?;
        let (links, uplink, address) = (&self.links, self.uplink, IpAddr::V4(self.address));
        self.namespace.run(|| {
            for (address, link) in links {
                datapath.pod_links().attach(link.host_index).context("serving a pod's link")?;
                datapath.add_pod(&[*address], link).context("telling of a pod")?;
            }
            datapath.attach_uplink(uplink).context("serving the uplink")?;
            let node = NodeConfig {
                service_ranges: vec![objects::SERVICE_CIDR.parse()?],
                pod_ranges: vec![objects::CLUSTER_CIDR.parse()?],
                ..NodeConfig::of_namespace(&[address])?
            };
            datapath.set_node(&node).context("telling what the node is")
        })?;
        self.datapath = Some((datapath, directory.to_owned()));
        Ok(Served { computed, written })
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some((datapath, directory)) = self.datapath.take() {
            drop(datapath);
            // With it goes what is pinned. Where that fails, it goes with this process.
            let _ = umount2(&directory, MntFlags::MNT_DETACH);
        }
    }
}

/// This very program.
pub(crate) fn own_program() -> Result<Command> {
    Ok(Command::new(std::env::current_exe().context("finding this program")?))
}

/// A line of a child that may never say one.
pub(crate) fn line_within(
    mut from: impl std::io::BufRead + Send + 'static,
    limit: Duration,
) -> Result<String> {
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut line = String::new();
        let read = from.read_line(&mut line).map(|_| line);
        // Nobody waits any more where the time was over.
        let _ = sender.send(read);
    });
    let line =
        receiver.recv_timeout(limit).ok().with_context(|| format!("silent for {} s", limit.as_secs()))?;
    let line = line.context("reading what it says")?;
    ensure!(!line.is_empty(), "it ended without a word");
    Ok(line)
}
