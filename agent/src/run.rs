//! The agent's life: what is opened at the start, and the one loop that reacts to everything after it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use bgp::{NextHops, Prefix, SpeakerConfig};
use calico::{BgpConfiguration, BgpFilter, BgpPeer, IpPool, IpReservation};
use dataplane::datapath::{self, Datapath};
use dataplane::routes::RouteMonitor;
use ebpf_common::{FrontendKey, Port, Protocol};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::core::PartialObjectMeta;
use kube::runtime::watcher;
use kube::{Api, Client};
use proxy::NodeView;
use tokio::sync::{Notify, mpsc, watch as signal};
use tokio_util::sync::CancellationToken;

use crate::allocator;
use crate::config::Config;
use crate::health::{Family, Health};
use crate::journal::{Journal, note};
use crate::metrics::Metrics;
use crate::network::Network;
use crate::policies::{self, Policies};
use crate::pools::{PodPool, Pools};
use crate::routing::{self, Identity, Routing};
use crate::services::{Links, Services};
use crate::watch::{self, Change, Listing};
use crate::wishes::{Listings, Wishes};
use crate::{
    bgp_io, blocks, cni_server, dns_endpoints, growth, health_ports, node_status, reach, stale, status,
};

/// Where the agent answers questions, in its directory of run time.
const SOCKET: &str = "agent.sock";
/// How long peers keep our routes while we restart, and we theirs.
const RESTART_TIME: Duration = Duration::from_secs(120);
/// How long after the start old routes are kept for peers that have not come back.
const DEFERRAL_TIME: Duration = Duration::from_secs(15);
const CONNECT_RETRY: Duration = Duration::from_secs(2);
const RESYNC_INTERVAL: Duration = Duration::from_secs(30);
/// Route events come in bursts: one resync answers all within this time.
const RESYNC_DELAY: Duration = Duration::from_millis(50);
const SWEEP_INTERVAL: Duration = Duration::from_secs(10);
const COLLECT_INTERVAL: Duration = Duration::from_secs(60);
const LEAVE_TIMEOUT: Duration = Duration::from_secs(1);
const KUBELET_RETRY: Duration = Duration::from_secs(2);
/// The label of a node that says which zone it is in.
const ZONE: &str = "topology.kubernetes.io/zone";
/// Events taken before what they change is applied.
const BURST: usize = 4096;

#[expect(clippy::large_enum_variant, reason = "few wait in their channel")]
enum Event {
    Node(watcher::Event<Node>),
    Service(watcher::Event<Service>),
    Slice(watcher::Event<EndpointSlice>),
    Configuration(watcher::Event<BgpConfiguration>),
    Peer(watcher::Event<BgpPeer>),
    Filter(watcher::Event<BgpFilter>),
    Pool(watcher::Event<IpPool>),
    Reservation(watcher::Event<IpReservation>),
    Pod(watcher::Event<PartialObjectMeta<Pod>>),
    Namespace(watcher::Event<PartialObjectMeta<Namespace>>),
}

/// Why the agent ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    Cancelled,
    /// It is to begin again, with another AS or port of the node.
    Anew,
}

/// Runs until cancelled, or until something fails that a restart may cure.
pub async fn run(config: Config, journal: Journal, cancel: CancellationToken) -> anyhow::Result<Ended> {
    for folder in [&config.state_dir, &config.run_dir] {
        std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    }
    let (client, api_servers) = client(&config).await?;
    if config.no_network {
        let (_sender, ready) = signal::channel(true);
        let services = follow_services(&client, &config);
        run_kubelet(client, config, services, ready, cancel).await;
        return Ok(Ended::Cancelled);
    }
    let (bgp_sender, bgp_events) = mpsc::unbounded_channel();
    let identity = routing::identity(&config)?;
    let bgp = start_bgp(&config, identity, bgp_sender)?;
    let routing = Routing::new(&config, identity, client.clone())?;
    let node = NodeView { name: config.node_name.clone(), zone: String::new(), api_servers };
    let family = |ip: &IpAddr| if ip.is_ipv4() { Family::V4 } else { Family::V6 };
    let health = Arc::new(Health::new(config.node_ips.iter().map(family).collect()));
    let metrics = Arc::new(Metrics::new(config.metrics_services));
    let mut services = Services::new(node, &config.cluster_domain, health.clone(), metrics.clone());
    let mut events = follow(&client, &config);
    let policies = Arc::new(Policies::open(config.state_dir.join("policies.json"))?);
    let follower = (!config.router_only).then(|| policies::Follower::new(client.clone(), policies.clone()));
    let (datapath, for_later) = if config.router_only {
        (None, Vec::new())
    } else {
        let (datapath, for_later) = open_meanwhile(&config, &mut services, &mut events).await?;
        (Some(datapath), for_later)
    };
    let mut pools = Pools::open(&config)?;
    let network = Arc::new(Network::open(&config, pools.tell(), datapath, policies, bgp.clone())?);
    let addresses = Addresses::open(&config, pools, client.clone())?;
    let of_services = (services, health, metrics);
    let mut agent = Agent::new(config, (routing, identity), network, bgp, client, of_services, addresses);
    if let Some(follower) = follower {
        let (network, wishes) = (agent.network.clone(), agent.addresses.wishes.clone());
        follower.start(network, wishes, agent.blocks_changed.clone(), cancel.clone());
    }
    agent.start(journal, &cancel).await?;
    for_later.into_iter().for_each(|event| agent.event(event));
    let bgp = agent.bgp.clone();
    let ended = agent.run(events, bgp_events, cancel).await;
    // Else peers would take the end of BFD for one of the path, and not wait for our restart.
    bgp.bfd().stop();
    ended
}

/// The events of all that the agent reacts to.
fn follow(client: &Client, config: &Config) -> mpsc::Receiver<Event> {
    let (sender, events) = watch::channel();
    let client = || client.clone();
    let all = || watcher::Config::default().any_semantic();
    watch::spawn(Api::all(client()), all(), sender.clone(), Event::Node);
    watch::spawn(Api::all(client()), all(), sender.clone(), Event::Configuration);
    watch::spawn(Api::all(client()), all(), sender.clone(), Event::Peer);
    watch::spawn(Api::all(client()), all(), sender.clone(), Event::Filter);
    if !config.router_only {
        watch::spawn(Api::all(client()), all(), sender.clone(), Event::Service);
        watch::spawn(Api::all(client()), all(), sender.clone(), Event::Slice);
        watch::spawn(Api::all(client()), all(), sender.clone(), Event::Pool);
        watch::spawn(Api::all(client()), all(), sender.clone(), Event::Reservation);
        watch::spawn(Api::all(client()), all(), sender.clone(), Event::Namespace);
        let here = all().fields(&format!("spec.nodeName={}", config.node_name));
        watch::spawn(Api::all(client()), here, sender, Event::Pod);
    }
    events
}

/// Opens the datapath on a thread of its own and takes what the API server lists meanwhile: the kernel checks the
/// programs for as long as it takes to list tens of thousands of Services. Returns the other events, which are for
/// later.
async fn open_meanwhile(
    config: &Config,
    services: &mut Services,
    events: &mut mpsc::Receiver<Event>,
) -> anyhow::Result<(Datapath, Vec<Event>)> {
    let config = config.clone();
    let mut opening = tokio::task::spawn_blocking(move || {
        let opened = open_datapath(&config);
        allocator::give_back();
        opened
    });
    let mut for_later = Vec::new();
    loop {
        tokio::select! {
            opened = &mut opening => return Ok((opened.context("opening the datapath")??, for_later)),
            Some(event) = events.recv() => match event {
                Event::Service(event) => services.service(event),
                Event::Slice(event) => services.slice(event),
                event => for_later.push(event),
            },
        }
    }
}

/// A client of the API server, and where that is.
async fn client(config: &Config) -> anyhow::Result<(Client, BTreeSet<FrontendKey>)> {
    let doing = || format!("--kubeconfig {}", config.kubeconfig.display());
    let kubeconfig = kube::config::Kubeconfig::read_from(&config.kubeconfig).with_context(doing)?;
    let options = kube::config::KubeConfigOptions::default();
    let mut settings =
        kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.with_context(doing)?;
    // Also the name under which the API records what this node's status writes own.
    settings.headers.push((http::header::USER_AGENT, http::HeaderValue::from_static("kubelet/v1.36")));
    let api_servers = addresses_of(&settings.cluster_url).await;
    Ok((Client::try_from(settings).with_context(doing)?, api_servers))
}

/// No Service may take these away from the node. A name is asked for once: one that cannot be resolved yet leaves the
/// node without this guard, not without the cluster.
async fn addresses_of(url: &http::Uri) -> BTreeSet<FrontendKey> {
    let Some(host) = url.host() else { return BTreeSet::new() };
    let port =
        url.port_u16().unwrap_or(if url.scheme() == Some(&http::uri::Scheme::HTTP) { 80 } else { 443 });
    match tokio::net::lookup_host(format!("{host}:{port}")).await {
        Ok(found) => {
            found.map(|at| FrontendKey::new(at.ip().into(), Port::new(at.port()), Protocol::TCP)).collect()
        }
        Err(error) => {
            tracing::warn!(host, %error, "the API server's address is not kept from being claimed by a Service");
            BTreeSet::new()
        }
    }
}

fn start_bgp(
    config: &Config,
    identity: Identity,
    events: mpsc::UnboundedSender<bgp_io::Event>,
) -> anyhow::Result<bgp_io::Handle> {
    let next_hop_v6 = config.node_ips.iter().find_map(|address| match address {
        IpAddr::V6(v6) => Some(*v6),
        IpAddr::V4(_) => None,
    });
    let speaker = SpeakerConfig {
        asn: identity.asn,
        router_id: router_id(config),
        next_hop_v4: config.node_ip_v4(),
        next_hop_v6,
        hold_time: Duration::from_secs(u64::from(config.bgp_hold_time)),
        connect_retry: CONNECT_RETRY,
        restart_time: RESTART_TIME,
        deferral_time: DEFERRAL_TIME,
        listen_ranges: config.bgp_listen_ranges.iter().map(|range| (*range).into()).collect(),
        long_lived_stale_time: Some(routing::LAST_KNOWN_TIME),
    };
    bgp_io::start(speaker, &config.node_ips, identity.port, events, !config.no_kernel_routes)
}

fn router_id(config: &Config) -> Ipv4Addr {
    config.node_ip_v4().unwrap_or_else(|| router_id_of(config.node_ip()))
}

/// A node without IPv4 takes the low 32 bits of its address, which differ inside a network.
fn router_id_of(address: IpAddr) -> Ipv4Addr {
    match address {
        IpAddr::V4(v4) => v4,
        IpAddr::V6(v6) => Ipv4Addr::from((u128::from(v6) as u32).max(1)),
    }
}

fn open_datapath(config: &Config) -> anyhow::Result<Datapath> {
    let log_level = config.datapath_log;
    let sizes = config.map_sizes.iter().copied().collect();
    let opened = datapath::Config { log_level, sizes, ..datapath::Config::new(&config.bpf_dir) };
    let mut datapath = Datapath::open(&opened).context("opening the datapath")?;
    if log_level != dataplane::programs::LogLevel::Off {
        datapath.spawn_log_reader(datapath::TracingLogger).context("reading the datapath's log")?;
    }
    let cgroup = socket_cgroup(&config.cgroup_parent)?;
    std::fs::create_dir_all(&cgroup).with_context(|| format!("making cgroup {}", cgroup.display()))?;
    datapath.attach_cgroup(&cgroup).context("serving Services to sockets")?;
    Ok(datapath)
}

/// The cgroup v2 directory whose processes are served: the parent of the pods' cgroup, so the node's own too.
fn socket_cgroup(cgroup_parent: &str) -> anyhow::Result<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").context("reading /proc/self/mounts")?;
    let root = mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ');
            let (_, place, kind) = (fields.next()?, fields.next()?, fields.next()?);
            (kind == "cgroup2").then(|| PathBuf::from(place))
        })
        .next()
        .context("no cgroup v2 tree is mounted: Services are served to its processes")?;
    let parent = PathBuf::from(cgroup_parent);
    let parent = parent.parent().unwrap_or(&parent);
    Ok(root.join(parent.strip_prefix("/").unwrap_or(parent)))
}

/// Where addresses of pods come from, and who wants which.
struct Addresses {
    pools: Pools,
    pools_known: signal::Sender<bool>,
    wishes: Arc<Wishes>,
    listings: Listings,
}

impl Addresses {
    fn open(config: &Config, pools: Pools, client: Client) -> anyhow::Result<Addresses> {
        let wishes = Wishes::open(client, config.state_dir.join("wishes.json"))?;
        let pools_known = signal::Sender::new(pools.is_known());
        Ok(Addresses { pools, pools_known, wishes: Arc::new(wishes), listings: Listings::default() })
    }
}

struct Agent {
    config: Config,
    network: Arc<Network>,
    bgp: bgp_io::Handle,
    client: Client,
    services: Services,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    routing: Routing,
    identity: Identity,
    /// The speaker cannot become what it is to be.
    is_outdated: bool,
    /// Where the agent ends, somebody else is to serve Services.
    withdraws_at_end: bool,
    /// The nodes' addresses, for who shows names.
    nodes: signal::Sender<BTreeMap<String, Vec<IpAddr>>>,
    node_listing: Listing<Node>,
    /// The flows are swept at most once at a time.
    sweeping: Option<tokio::task::JoinHandle<()>>,
    not_ready: signal::Sender<String>,
    network_ready: signal::Sender<bool>,
    addresses_taken: Arc<Notify>,
    blocks_changed: Arc<Notify>,
    addresses: Addresses,
}

impl Agent {
    fn new(
        config: Config,
        (routing, identity): (Routing, Identity),
        network: Arc<Network>,
        bgp: bgp_io::Handle,
        client: Client,
        (services, health, metrics): (Services, Arc<Health>, Arc<Metrics>),
        addresses: Addresses,
    ) -> Agent {
        Agent {
            addresses,
            services,
            health,
            metrics,
            config,
            network,
            bgp,
            client,
            routing,
            identity,
            is_outdated: false,
            withdraws_at_end: false,
            nodes: signal::Sender::default(),
            node_listing: Listing::default(),
            sweeping: None,
            not_ready: signal::Sender::new("the agent is starting".to_owned()),
            network_ready: signal::Sender::new(false),
            addresses_taken: Arc::new(Notify::new()),
            blocks_changed: Arc::new(Notify::new()),
        }
    }

    async fn start(&mut self, journal: Journal, cancel: &CancellationToken) -> anyhow::Result<()> {
        // What was known last, so that routes come back while the API server is away.
        self.set_peers();
        let stale = stale::start(&self.network, cancel.clone())?;
        growth::start(&self.network, cancel.clone());
        self.services.tell_gone(stale.due.clone());
        let status = status::Status {
            node_name: self.config.node_name.clone(),
            network: self.network.clone(),
            bgp: self.bgp.clone(),
            not_ready: self.not_ready.subscribe(),
            stale,
            metrics: self.metrics.clone(),
            drops: status::Drops::new(self.network.clone(), self.nodes.subscribe()),
            nodes: self.nodes.subscribe(),
            started_at: Instant::now(),
            journal,
            kernel_routes: !self.config.no_kernel_routes,
            objects: (!self.config.router_only)
                .then(|| status::Objects { client: self.client.clone(), node: self.services.node() }),
        };
        let (socket, metrics) = (self.config.run_dir.join(SOCKET), self.config.metrics_bind_address);
        status::start(status, &socket, metrics, cancel.clone())?;
        self.start_node_status(cancel);
        if self.config.router_only {
            return Ok(());
        }
        self.start_health(cancel);
        self.start_reach(cancel).await;
        let server = cni_server::Server::new(
            self.network.clone(),
            self.addresses.wishes.clone(),
            self.not_ready.subscribe(),
            self.addresses_taken.clone(),
        );
        server.start(&self.config.cni_socket(), cancel.clone())?;
        let client = self.client.clone();
        let signals = blocks::Signals {
            wake: self.addresses_taken.clone(),
            changed: self.blocks_changed.clone(),
            pools_known: self.addresses.pools_known.subscribe(),
        };
        tokio::spawn(blocks::run(client.clone(), self.network.clone(), signals));
        if !self.config.no_dns {
            self.start_dns(cancel).await?;
        }
        if !self.config.no_kubelet {
            let (config, ready) = (self.config.clone(), self.network_ready.subscribe());
            tokio::spawn(run_kubelet(client, config, self.services.links(), ready, cancel.clone()));
        }
        Ok(())
    }

    fn start_health(&self, cancel: &CancellationToken) {
        let (node, port) = (self.config.node_name.clone(), self.config.healthz_port);
        let config = health_ports::Config::new(node.clone(), port, &self.config.node_ips);
        let events = health_ports::Events::new(self.client.clone(), node);
        health_ports::start(config, self.health.clone(), events, self.services.checks(), cancel.clone());
    }

    fn start_node_status(&self, cancel: &CancellationToken) {
        let node = node_status::Node {
            name: self.config.node_name.clone(),
            addresses: self.config.node_ips.clone(),
            router_id: router_id(&self.config),
            network: self.network.clone(),
            bgp: self.bgp.clone(),
            started_at: SystemTime::now(),
        };
        let answers = node_status::run(self.client.clone(), node);
        tokio::spawn(cancel.clone().run_until_cancelled_owned(answers));
    }

    async fn start_reach(&self, cancel: &CancellationToken) {
        let (port, own) = (self.config.healthz_port, self.config.node_name.clone());
        if port == 0 {
            return;
        }
        let nodes = self.nodes.subscribe();
        if let Err(error) = reach::start(self.network.clone(), port, own, nodes, cancel.clone()).await {
            tracing::warn!(port, %error, "how far routes to pods have got is neither asked nor answered over UDP");
        }
    }

    async fn start_dns(&self, cancel: &CancellationToken) -> anyhow::Result<()> {
        let listen = self.config.dns_listen();
        let upstreams = dns::server::upstreams(&self.config.resolv_conf).unwrap_or_else(|error| {
            tracing::warn!("names outside the cluster are not resolved: {error:#}");
            Vec::new()
        });
        // A resolver that is this server would be asked for ever.
        let upstreams = upstreams
            .into_iter()
            .filter(|upstream| *upstream != listen && !self.config.cluster_dns.contains(&upstream.ip()))
            .collect();
        let server =
            dns::server::Server::bind(dns::server::Config { listen, upstreams }, self.services.zone())
                .await?;
        tokio::spawn(server.run(cancel.clone()));
        let node = self.config.node_name.clone();
        tokio::spawn(dns_endpoints::run(self.client.clone(), node, self.config.node_ip()));
        Ok(())
    }

    async fn run(
        mut self,
        mut events: mpsc::Receiver<Event>,
        mut bgp_events: mpsc::UnboundedReceiver<bgp_io::Event>,
        cancel: CancellationToken,
    ) -> anyhow::Result<Ended> {
        let mut passwords = self.routing.passwords();
        let monitor = RouteMonitor::open().context("watching the node's routes")?;
        let host_ports_changed = self.network.host_ports_changed();
        self.services.set_host_ports(self.network.host_ports());
        let mut resync = tokio::time::interval(RESYNC_INTERVAL);
        let mut resync_is_near = false;
        let mut sweep = tokio::time::interval(SWEEP_INTERVAL);
        let mut collect = tokio::time::interval(COLLECT_INTERVAL);
        for interval in [&mut resync, &mut sweep, &mut collect] {
            interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        }
        loop {
            tokio::select! {
                () = cancel.cancelled() => {
                    self.leave().await;
                    return Ok(Ended::Cancelled);
                }
                event = bgp_events.recv() => {
                    let event = event.context("the BGP speaker has stopped")?;
                    self.bgp_events(event, &mut bgp_events);
                }
                Some(event) = events.recv() => {
                    self.event(event);
                    let mut burst = BURST;
                    while burst > 0 && let Ok(event) = events.try_recv() {
                        self.event(event);
                        burst -= 1;
                    }
                }
                Ok(()) = passwords.changed() => self.set_peers(),
                // Only what follows the select is due.
                () = self.blocks_changed.notified() => {}
                () = host_ports_changed.notified() => self.services.set_host_ports(self.network.host_ports()),
                changed = monitor.changed() => {
                    changed.context("watching the node's routes")?;
                    if !std::mem::replace(&mut resync_is_near, true) {
                        resync.reset_after(RESYNC_DELAY);
                    }
                }
                _ = resync.tick() => {
                    resync_is_near = false;
                    self.resync();
                }
                _ = sweep.tick() => self.sweep_flows(),
                _ = collect.tick() => self.collect_dead(),
            }
            if self.is_outdated {
                return Ok(Ended::Anew);
            }
            self.services.apply(&self.network);
            self.update_readiness()?;
        }
    }

    /// Who ends the agent of a node that is leaving is about to stop the node: peers are told, so that they do not wait for its
    /// return with packets for Services that others serve.
    async fn leave(&self) {
        if self.withdraws_at_end {
            tracing::info!("the node is cordoned: peers are told to go to other nodes for Services");
            self.network.withdraw_services();
            // What it was told before, the speaker has told its peers when it answers.
            drop(tokio::time::timeout(LEAVE_TIMEOUT, self.bgp.snapshot()).await);
        }
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Node(event) => {
                if let Some(change) = self.node_listing.change(event) {
                    self.node(change);
                }
            }
            Event::Service(event) => self.services.service(event),
            Event::Slice(event) => self.services.slice(event),
            Event::Configuration(event) => {
                if self.routing.configuration(event) {
                    self.set_peers();
                }
            }
            Event::Peer(event) => {
                if self.routing.peer(event) {
                    self.set_peers();
                }
            }
            Event::Filter(event) => {
                if self.routing.filter(event) {
                    self.set_peers();
                }
            }
            Event::Pool(event) => {
                if self.addresses.pools.pool(event) {
                    self.set_pools();
                }
            }
            Event::Reservation(event) => {
                if self.addresses.pools.reservation(event) {
                    self.set_pools();
                }
            }
            Event::Pod(event) => self.addresses.wishes.pod(&mut self.addresses.listings, event),
            Event::Namespace(event) => self.addresses.wishes.namespace(&mut self.addresses.listings, event),
        }
    }

    /// Carries out what is known of pools.
    fn set_pools(&mut self) {
        let supply = self.addresses.pools.tell();
        let ranges = supply.pools.iter().map(PodPool::cidr).chain(self.config.cluster_cidrs.iter().copied());
        if self.routing.set_cluster_ranges(ranges.collect()) {
            self.set_peers();
        }
        self.network.set_supply(supply);
        self.addresses.pools_known.send_replace(self.addresses.pools.is_known());
        if let Err(error) = self.network.refresh_node() {
            tracing::warn!("{error:#}");
        }
        self.set_masquerade();
        self.addresses_taken.notify_one();
    }

    fn node(&mut self, change: Change<Node>) {
        let changed: &[Node] = match &change {
            Change::All(nodes) => nodes,
            Change::Apply(node) => std::slice::from_ref(node),
            Change::Delete(_) => &[],
        };
        let own = changed.iter().find(|node| node.metadata.name.as_ref() == Some(&self.config.node_name));
        if let Some(own) = own {
            let labels = own.metadata.labels.as_ref();
            self.services.set_zone(labels.and_then(|labels| labels.get(ZONE).cloned()).unwrap_or_default());
        }
        let is_own = |node: &Node| node.metadata.name.as_ref() == Some(&self.config.node_name);
        if own.is_some()
            || matches!(&change, Change::All(_))
            || matches!(&change, Change::Delete(node) if is_own(node))
        {
            self.health.set_node(own);
        }
        if self.addresses.pools.node(&change) {
            self.set_pools();
        }
        if self.routing.node(&change) {
            self.set_peers();
        }
    }

    /// Carries out what is known of nodes, peers and the configuration.
    fn set_peers(&mut self) {
        self.nodes.send_replace(self.routing.addresses());
        self.set_masquerade();
        let (told, identity) = self.routing.tell(&self.config);
        // Before there are sessions, so that nothing is told otherwise first.
        self.network.set_attributes(told.communities, told.is_leaving);
        self.bgp.set_peers(told.neighbours);
        self.services.set_advertisement(told.advertisement);
        self.withdraws_at_end = told.is_leaving && told.has_successor;
        if identity != self.identity {
            tracing::info!(before = ?self.identity, now = ?identity, "the node's AS or BGP port changes: starting anew");
            self.is_outdated = true;
        }
    }

    fn set_masquerade(&self) {
        let nodes = self.routing.addresses();
        let nodes = nodes.values().flatten().copied();
        if let Err(error) = self.network.set_masquerade(nodes) {
            tracing::warn!("{error:#}");
        }
    }

    fn bgp_events(&self, first: bgp_io::Event, more: &mut mpsc::UnboundedReceiver<bgp_io::Event>) {
        let mut routes: Vec<(NextHops, Vec<Prefix>)> = Vec::new();
        let mut converged = false;
        let mut next = Some(first);
        while let Some(event) = next {
            match event {
                bgp_io::Event::Routes(more) => routes.extend(more),
                bgp_io::Event::Converged => converged = true,
            }
            next = more.try_recv().ok();
        }
        self.network.learn(routes);
        if converged {
            tracing::info!("BGP has converged; routes of an earlier run that nobody announces are removed");
            self.network.allow_removal();
        }
    }

    fn resync(&self) {
        if let Err(error) = self.network.resync_routes() {
            tracing::warn!("{error:#}");
        }
        if let Err(error) = self.network.refresh_node() {
            tracing::warn!("{error:#}");
        }
        self.set_masquerade();
    }

    /// On a thread of its own: a change of a Service does not wait for half a million flows.
    fn sweep_flows(&mut self) {
        if self.sweeping.as_ref().is_some_and(|sweeping| !sweeping.is_finished()) {
            return;
        }
        let Some(flows) = self.network.datapath().map(|datapath| datapath.flow_table()) else { return };
        let (network, metrics) = (self.network.clone(), self.metrics.clone());
        self.sweeping = Some(tokio::task::spawn_blocking(move || {
            match flows.sweep(dataplane::flows::now_ns()) {
                Ok(swept) => metrics.swept(swept),
                Err(error) => tracing::warn!(error = watch::chain(&error), "sweeping flows"),
            }
            metrics.collect(&network, Instant::now());
        }));
    }

    fn collect_dead(&self) {
        if self.config.router_only {
            return;
        }
        if let Err(error) = self.network.collect_dead() {
            tracing::warn!("collecting what dead pods left: {error:#}");
        }
        // Addresses may have come free, or a claim may be overdue.
        self.addresses_taken.notify_one();
    }

    /// Says whether pods can be served, to the kubelet and to the runtime.
    fn update_readiness(&self) -> anyhow::Result<()> {
        if self.config.router_only {
            return Ok(());
        }
        let reason = if !self.services.applied() {
            "Services are not in the datapath yet"
        } else if !self.network.policies().is_set() {
            "NetworkPolicies are not in the datapath yet"
        } else if self.network.awaits_block() {
            "no address block is confirmed for this node yet"
        } else {
            ""
        };
        let changed = self.not_ready.send_if_modified(|current| {
            let changed = current != reason;
            if changed {
                reason.clone_into(current);
            }
            changed
        });
        if !changed {
            return Ok(());
        }
        note!(
            "node",
            self.config.node_name,
            if reason.is_empty() { "ready for pods" } else { "not ready" },
            reason
        );
        if reason.is_empty() {
            cni_server::write_conflist(&self.config.cni_conf_dir, &self.config.cni_socket())?;
            tracing::info!("ready for pods");
        } else {
            tracing::info!(reason, "not ready for pods");
        }
        self.network_ready.send_replace(reason.is_empty());
        Ok(())
    }
}

/// Runs the kubelet until cancelled; when it fails, it is started again: the network does not depend on it.
/// Without a network of ours the Services are followed for the variables of containers only.
fn follow_services(client: &Client, config: &Config) -> Arc<Links> {
    let metrics = Arc::new(Metrics::new(config.metrics_services));
    let mut services = Services::new(NodeView::default(), &config.cluster_domain, Arc::default(), metrics);
    let links = services.links();
    let (sender, mut events) = watch::channel();
    watch::spawn(Api::all(client.clone()), watcher::Config::default().any_semantic(), sender, |event| event);
    tokio::spawn(async move {
        while let Some(event) = events.recv().await {
            services.service(event);
        }
    });
    links
}

async fn run_kubelet(
    client: Client,
    config: Config,
    services: Arc<Links>,
    network_ready: signal::Receiver<bool>,
    cancel: CancellationToken,
) {
    loop {
        let settings = kubelet_config(&config, network_ready.clone());
        match kubelet::run(client.clone(), settings, services.clone(), cancel.clone()).await {
            Ok(()) if cancel.is_cancelled() => return,
            Ok(()) => tracing::error!("the kubelet ended; starting it again"),
            Err(error) => tracing::error!("the kubelet failed; starting it again: {error:#}"),
        }
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(KUBELET_RETRY) => {}
        }
    }
}

fn kubelet_config(config: &Config, network_ready: signal::Receiver<bool>) -> kubelet::Config {
    let mut settings = kubelet::Config::new(config.node_name.clone(), config.node_ips.clone(), network_ready);
    settings.state_dir = config.state_dir.clone();
    settings.run_dir = config.run_dir.clone();
    settings.log_dir = config.log_dir.clone();
    settings.containerd_socket = config.containerd_socket.clone();
    settings.cgroup_parent = config.cgroup_parent.clone();
    settings.cluster_dns = config.cluster_dns.clone();
    settings.cluster_domain = config.cluster_domain.clone();
    settings.port = config.kubelet_port;
    settings.max_pods = config.max_pods;
    settings.static_pod_dir = config.static_pod_dir.clone();
    settings.agent_socket = Some(config.run_dir.join(SOCKET));
    settings.host_resolv_conf = config.resolv_conf.clone();
    settings.server_tls = match (&config.tls_cert, &config.tls_key, &config.client_ca) {
        (Some(cert), Some(key), Some(client_ca)) => {
            Some(kubelet::ServerTls { cert: cert.clone(), key: key.clone(), client_ca: client_ca.clone() })
        }
        _ => None,
    };
    settings
}
