//! The node's network as one thing: addresses, links, routes and the datapath, kept in step.
//!
//! Every change of an address is written before anybody is told of it. The kernel calls here block for microseconds
//! to milliseconds; callers on the async side use `spawn_blocking`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use bgp::policy::Community;
use bgp::{NextHops, Prefix};
use dataplane::datapath::{Datapath, PodLinks};
use dataplane::links::{self, Link, Links, PodLink, PodLinkConfig};
use dataplane::masquerade::MasqueradeConfig;
use dataplane::node::NodeConfig;
use dataplane::programs::{XdpSetting, XdpState};
use dataplane::reaper::Reaper;
use dataplane::routes::{Routes, RoutesConfig, Target};
use ebpf_common::desired::{Clients, Endpoint, Service, Services};
use ebpf_common::{Address, FrontendKey, Port, Protocol};
use ipam::{AllocateError, Allocation, Allocator, Demand, Demands, Keeper, Request, Want};
use ipnetwork::IpNetwork;
use proxy::Announced;
use thiserror::Error;
use tokio::sync::Notify;

use crate::allocations::Allocations;
use crate::bgp_io;
use crate::config::Config;
use crate::journal::{self, note};
use crate::policies::Policies;
use crate::pools::Supply;
use crate::reach::Reach;

mod announced;
mod blocks;

pub use blocks::BlockStatus;

/// Container id and interface name.
type AttachmentKey = (String, String);

#[derive(Debug, Error)]
pub enum AddError {
    #[error("{message}")]
    NoAddress {
        message: String,
        /// It may be on its way here.
        is_asked_for: bool,
    },
    #[error("{0:#}")]
    Failed(anyhow::Error),
}

/// A pod's attachment as it was made.
#[derive(Clone, Debug)]
pub struct Attached {
    pub link: PodLink,
    pub host_interface: String,
    pub addresses: Vec<IpAddr>,
    pub mtu: u32,
}

/// A pod for display.
#[derive(Clone, Debug)]
pub struct PodStatus {
    pub allocation: Allocation,
    pub host_interface: String,
    pub host_index: Option<u32>,
}

struct State {
    allocator: Allocator,
    /// Changes of the allocator that are not on disk.
    is_unsaved: bool,
    /// The blocks of all nodes.
    keeper: Keeper,
    demands: Demands,
    supply: Supply,
    routes: Routes,
    /// Routes that this node originates: blocks and pods. They go before learned ones.
    own: BTreeMap<IpNetwork, Target>,
    learned: BTreeMap<IpNetwork, Target>,
    /// What is announced of Services.
    services: Announced,
    /// Communities by the range of the prefixes that carry them.
    communities: Vec<(IpNetwork, Vec<Community>)>,
    /// Other nodes are to be preferred to this one, for what they serve as well.
    is_leaving: bool,
    index_by_attachment: BTreeMap<AttachmentKey, u32>,
    /// Attachments that had no link, and links that had no attachment, at the last collection.
    suspects: BTreeSet<String>,
}

pub struct Network {
    allocations: Allocations,
    services_file: PathBuf,
    mtu: u32,
    node_ips: Vec<IpAddr>,
    service_cidrs: Vec<IpNetwork>,
    masquerade: MasqueradeConfig,
    state: Mutex<State>,
    datapath: Option<Mutex<Datapath>>,
    pod_links: Option<PodLinks>,
    policies: Arc<Policies>,
    xdp: OnceLock<XdpState>,
    reaper: Reaper,
    bgp: bgp_io::Handle,
    host_ports_changed: Arc<Notify>,
    addresses_came: Arc<Notify>,
    reach: Arc<Reach>,
    routes_learned: Arc<Notify>,
}

impl Network {
    /// Reads what an earlier agent left, on disk and in the kernel, and goes on from there.
    pub fn open(
        config: &Config,
        supply: Supply,
        datapath: Option<Datapath>,
        policies: Arc<Policies>,
        bgp: bgp_io::Handle,
    ) -> anyhow::Result<Network> {
        let wired = !Links::open()?.pods()?.is_empty();
        let (allocations, allocator) = Allocations::open(config.state_dir.join("ipam.json"), wired, now())?;
        let address_of = |v4: bool| config.node_ips.iter().find(|a| a.is_ipv4() == v4).copied();
        let routes_config = RoutesConfig { source_v4: address_of(true), source_v6: address_of(false) };
        let routes = Routes::open(routes_config).context("reading the node's routes")?;
        let uplink = Links::open()
            .and_then(|mut links| links.uplink(config.node_ip()))
            .with_context(|| format!("--node-ip {}", config.node_ip()))?;
        let pod_links = datapath.as_ref().map(Datapath::pod_links);
        let reaper = start_reaper(pod_links.clone()).context("starting the thread that deletes links")?;
        let state = State {
            allocator,
            is_unsaved: false,
            keeper: Keeper::new(&config.node_name),
            demands: Demands::default(),
            supply,
            routes,
            own: BTreeMap::new(),
            learned: BTreeMap::new(),
            services: Announced::default(),
            communities: Vec::new(),
            is_leaving: false,
            index_by_attachment: BTreeMap::new(),
            suspects: BTreeSet::new(),
        };
        let network = Network {
            allocations,
            services_file: config.state_dir.join("announced.json"),
            mtu: uplink.mtu,
            node_ips: config.node_ips.clone(),
            service_cidrs: config.service_cidrs.clone(),
            masquerade: config.masquerade(),
            state: Mutex::new(state),
            pod_links,
            policies,
            xdp: OnceLock::new(),
            reaper,
            datapath: datapath.map(Mutex::new),
            bgp,
            host_ports_changed: Arc::default(),
            addresses_came: Arc::default(),
            reach: Arc::default(),
            routes_learned: Arc::default(),
        };
        if !config.router_only {
            links::prepare_host(&uplink.name).context("setting up forwarding")?;
            if let Some(datapath) = &network.datapath {
                lock(datapath).attach_uplink(uplink.index).context("serving Services on the uplink")?;
                network.set_xdp(datapath, &uplink, config.xdp)?;
            }
            network.refresh_node()?;
            network.restore()?;
        }
        Ok(network)
    }

    /// What became of XDP on the uplink; `None` where no Services are balanced.
    pub fn xdp(&self) -> Option<&XdpState> {
        self.xdp.get()
    }

    /// An optimisation: without it the same flows go on.
    fn set_xdp(&self, datapath: &Mutex<Datapath>, uplink: &Link, setting: XdpSetting) -> anyhow::Result<()> {
        let state = lock(datapath).set_xdp(uplink.index, setting).context("XDP on the uplink")?;
        let name = &uplink.name;
        match (&state, setting) {
            (XdpState::In(mode), _) => tracing::info!(link = name, mode = mode.name(), "XDP on the uplink"),
            (XdpState::Off(reason), XdpSetting::In(_)) => {
                tracing::warn!(link = name, reason, "no XDP on the uplink")
            }
            (XdpState::Off(reason), _) => tracing::info!(link = name, reason, "no XDP on the uplink"),
        }
        self.xdp.get_or_init(|| state);
        Ok(())
    }

    /// Takes over the pods of an earlier agent.
    fn restore(&self) -> anyhow::Result<()> {
        let links: BTreeMap<String, u32> =
            Links::open()?.pods()?.into_iter().map(|link| (link.name, link.index)).collect();
        let mut state = self.state();
        let allocations: Vec<Allocation> = state.allocator.allocations().cloned().collect();
        for allocation in &allocations {
            let key = key_of(allocation);
            let Some(index) = links.get(&links::host_link_name(&key.0, &key.1)) else { continue };
            state.own.insert(allocation.address.into(), Target::Link(*index));
            state.index_by_attachment.insert(key, *index);
            if let Some(datapath) = &self.datapath {
                lock(datapath).pod_links().attach(*index).context("serving Services to a running pod")?;
            }
        }
        if let Some(datapath) = &self.datapath {
            let pods = local_pods(&allocations, &state.index_by_attachment);
            lock(datapath).set_pods(pods).context("telling the datapath the node's pods")?;
        }
        for Allocation { owner, .. } in &allocations {
            self.policies.attach(&owner.pod_namespace, &owner.pod_name, allocations.iter());
        }
        // An address that leads to no Service must not be sent to a router that sends it back. Where somebody else
        // serves Services, these may need a route.
        if self.datapath.is_some() {
            state.own.extend(self.service_cidrs.iter().map(|range| (*range, Target::Unreachable)));
        }
        if self.datapath.is_some() {
            self.restore_services(&mut state);
        }
        self.announce(&mut state);
        state.set_all();
        state.apply();
        tracing::info!(
            blocks = state.allocator.blocks().count(),
            pods = state.index_by_attachment.len(),
            "network restored"
        );
        Ok(())
    }

    pub fn mtu(&self) -> u32 {
        self.mtu
    }

    /// Wires a pod up. A repeated call for the same attachment makes it anew with the same addresses.
    pub fn add(&self, request: &Request, wants: &[Want], netns: &File) -> Result<Attached, AddError> {
        let addresses = self.allocate(request, wants)?;
        if !request.host_ports.is_empty() {
            self.host_ports_changed.notify_one();
        }
        self.wire(request, netns, &addresses).map_err(|error| {
            // Teardown goes on past errors; the first one is the one to tell.
            if let Err(undo) = self.delete(&request.container_id, &request.interface) {
                tracing::warn!("undoing a failed ADD: {undo:#}");
            }
            AddError::Failed(error)
        })
    }

    fn wire(&self, request: &Request, netns: &File, addresses: &[IpAddr]) -> anyhow::Result<Attached> {
        let host_interface = links::host_link_name(&request.container_id, &request.interface);
        let link = Links::open()?.add_pod(&PodLinkConfig {
            host_name: &host_interface,
            pod_name: &request.interface,
            netns,
            addresses,
            mtu: self.mtu,
        })?;
        if let Some(pod_links) = &self.pod_links {
            pod_links.attach(link.host_index)?;
        }
        let (namespace, name) = (&request.pod_namespace, &request.pod_name);
        self.policies.attach(namespace, name, self.state().allocator.allocations());
        if let Err(error) = self.policies.apply(|| self.datapath()) {
            if self.policies.isolates(addresses) {
                return Err(error).context("writing the pod's NetworkPolicies to the datapath");
            }
            tracing::warn!(error = crate::watch::chain(&error), "NetworkPolicies of other pods");
        }
        let mut state = self.state();
        let key = (request.container_id.clone(), request.interface.clone());
        state.index_by_attachment.insert(key, link.host_index);
        for address in addresses {
            state.set_own((*address).into(), Some(Target::Link(link.host_index)));
        }
        let failed = state.apply();
        if let Some((destination, error)) = failed.iter().find(|(d, _)| addresses.contains(&d.ip())) {
            bail!("route to {destination}: {error}");
        }
        if let Some(datapath) = &self.datapath {
            lock(datapath).add_pod(addresses, &link)?;
        }
        let pod = format!("{}/{}", request.pod_namespace, request.pod_name);
        note!("pod", pod, format!("attached at {addresses:?} by {host_interface}"), "asked by the runtime");
        Ok(Attached { link, host_interface, addresses: addresses.to_vec(), mtu: self.mtu })
    }

    /// Takes an attachment down; one that is unknown is fine.
    pub fn delete(&self, container_id: &str, interface: &str) -> anyhow::Result<()> {
        self.delete_until(container_id, interface, u64::MAX)
    }

    /// As [`Self::delete`], but leaves what the attachment was given after the allocation of this number.
    fn delete_until(&self, container_id: &str, interface: &str, sequence: u64) -> anyhow::Result<()> {
        let index = {
            let mut state = self.state();
            let is_of =
                |a: &Allocation| a.owner.container_id == container_id && a.owner.interface == interface;
            if state.allocator.allocations().any(|a| is_of(a) && a.sequence > sequence) {
                return Ok(());
            }
            let released = state.allocator.release_if(now(), is_of);
            if !released.is_empty() {
                self.save(&mut state)?;
            }
            self.forget(&released, &state.allocator);
            for allocation in &released {
                let (owner, address) = (&allocation.owner, allocation.address);
                note!(
                    "pod",
                    format!("{}/{}", owner.pod_namespace, owner.pod_name),
                    format!("detached from {address}")
                );
                state.set_own(address.into(), None);
            }
            if released.iter().any(|allocation| !allocation.owner.host_ports.is_empty()) {
                self.host_ports_changed.notify_one();
            }
            state.apply();
            state.index_by_attachment.remove(&(container_id.to_owned(), interface.to_owned()))
        };
        let name = links::host_link_name(container_id, interface);
        match index {
            Some(index) => self.reaper.remove(index, name),
            None => Links::open()?.remove(&name)?,
        }
        Ok(())
    }

    /// What is wrong with an attachment that should have these addresses.
    pub fn check(&self, container_id: &str, interface: &str, addresses: &[IpAddr]) -> anyhow::Result<()> {
        let mut state = self.state();
        let held = state.allocator.addresses(container_id, interface);
        for address in addresses {
            if !held.contains(address) {
                bail!("address {address} is not allocated to container {container_id}");
            }
        }
        let name = links::host_link_name(container_id, interface);
        let index =
            Links::open()?.index(&name).with_context(|| format!("host interface {name} is missing"))?;
        state.routes.resync()?;
        for address in &held {
            let network = IpNetwork::from(*address);
            if state.routes.actual().get(&network) != Some(&Target::Link(index)) {
                bail!("there is no route to {address} on {name}");
            }
        }
        Ok(())
    }

    /// Releases every attachment that is not listed.
    pub fn collect(&self, valid: &BTreeSet<AttachmentKey>) -> anyhow::Result<()> {
        let gone: BTreeMap<AttachmentKey, u64> =
            self.state().attachments().into_iter().filter(|(key, _)| !valid.contains(key)).collect();
        for ((container_id, interface), sequence) in gone {
            tracing::info!(container_id, interface, "releasing an attachment that is not valid any more");
            self.delete_until(&container_id, &interface, sequence)?;
        }
        Ok(())
    }

    /// Releases attachments whose link is gone and removes links without attachment, if that was so last time too:
    /// the link dies with the pod's namespace, so no runtime has to be asked.
    pub fn collect_dead(&self) -> anyhow::Result<()> {
        let links: BTreeSet<String> = Links::open()?.pods()?.into_iter().map(|link| link.name).collect();
        let (dead, orphans) = {
            let mut state = self.state();
            let by_name: BTreeMap<String, (AttachmentKey, u64)> = state
                .attachments()
                .into_iter()
                .map(|(key, sequence)| (links::host_link_name(&key.0, &key.1), (key, sequence)))
                .collect();
            let odd: BTreeSet<String> = by_name
                .keys()
                .filter(|name| !links.contains(*name))
                .chain(links.iter().filter(|name| !by_name.contains_key(*name)))
                .cloned()
                .collect();
            let confirmed: Vec<String> = odd.intersection(&state.suspects).cloned().collect();
            state.suspects = odd;
            let dead: Vec<(AttachmentKey, u64)> =
                confirmed.iter().filter_map(|n| by_name.get(n).cloned()).collect();
            let orphans: Vec<String> =
                confirmed.into_iter().filter(|name| !by_name.contains_key(name)).collect();
            (dead, orphans)
        };
        for ((container_id, interface), sequence) in dead {
            tracing::info!(container_id, interface, "releasing the address of a pod whose namespace is gone");
            self.delete_until(&container_id, &interface, sequence)?;
        }
        for name in orphans {
            tracing::info!(name, "removing a pod link that belongs to nothing");
            Links::open()?.remove(&name)?;
        }
        Ok(())
    }

    /// Nothing is handed over to these pods any more. What fails stays due, and keeps no route from being withdrawn.
    fn forget(&self, pods: &[Allocation], allocator: &Allocator) {
        let Some(datapath) = &self.datapath else { return };
        let addresses: Vec<IpAddr> = pods.iter().map(|pod| pod.address).collect();
        if let Err(error) = lock(datapath).remove_pod(&addresses) {
            tracing::warn!(error = crate::watch::chain(&error), "telling the datapath that pods are gone");
        }
        for Allocation { owner, .. } in pods {
            self.policies.attach(&owner.pod_namespace, &owner.pod_name, allocator.allocations());
        }
        if let Err(error) = self.policies.apply(|| Some(lock(datapath))) {
            tracing::warn!(error = crate::watch::chain(&error), "NetworkPolicies of pods that are gone");
        }
    }

    /// What isolates the node's pods.
    pub fn policies(&self) -> &Arc<Policies> {
        &self.policies
    }

    /// Takes what the speaker selected. No next hop: the destinations are gone.
    pub fn learn(&self, routes: impl IntoIterator<Item = (NextHops, Vec<Prefix>)>) {
        let mut state = self.state();
        for (next_hops, prefixes) in routes {
            note_learned(&next_hops, &prefixes);
            for destination in prefixes.into_iter().map(IpNetwork::from) {
                if next_hops.is_empty() {
                    state.learned.remove(&destination);
                } else {
                    state.learned.insert(destination, Target::Via(next_hops.clone()));
                }
                state.refresh(destination);
            }
        }
        state.apply();
        self.routes_learned.notify_one();
    }

    /// The routes are complete: those of an earlier agent that are not desired any more go.
    pub fn allow_removal(&self) {
        let mut state = self.state();
        state.routes.allow_removal();
        state.apply();
    }

    /// Compares the kernel's routes with the desired ones and repairs.
    pub fn resync_routes(&self) -> anyhow::Result<()> {
        let mut state = self.state();
        let differing = state.routes.resync().context("reading the node's routes")?;
        for destination in differing.iter().take(journal::SINGLE_MAX) {
            let text = |target: Option<&Target>| target.map_or("nothing".to_owned(), Target::to_string);
            let wanted = text(state.routes.desired().get(destination));
            let found = text(state.routes.actual().get(destination));
            note!("route", destination, wanted, format!("somebody else had made it {found}"));
        }
        state.apply();
        Ok(())
    }

    /// Tells the datapath the node's addresses, as they are now.
    pub fn refresh_node(&self) -> anyhow::Result<()> {
        let pod_ranges = self.state().supply.pools.iter().map(|pool| pool.cidr()).collect();
        let Some(mut datapath) = self.datapath() else { return Ok(()) };
        let node = NodeConfig {
            service_ranges: self.service_cidrs.clone(),
            pod_ranges,
            ..NodeConfig::of_namespace(&self.node_ips).context("reading the node's addresses")?
        };
        datapath.set_node(&node).context("telling the datapath the node's addresses")
    }

    /// Tells the datapath what leaves with the node's address: nothing that is for one of these nodes, or for a pod.
    pub fn set_masquerade(&self, nodes: impl Iterator<Item = IpAddr>) -> anyhow::Result<()> {
        let mut masquerade = self.masquerade.clone();
        {
            let pools = &self.state().supply.pools;
            masquerade.pods =
                pools.iter().filter(|pool| pool.is_masqueraded).map(|pool| pool.cidr()).collect();
            masquerade.except.extend(pools.iter().map(|pool| pool.cidr()));
        }
        masquerade.except.extend(nodes.map(IpNetwork::from));
        let Some(mut datapath) = self.datapath() else { return Ok(()) };
        datapath.set_masquerade(&masquerade).context("telling the datapath whose address is exchanged")
    }

    /// A copy of the allocations, for planning and display.
    pub fn allocator(&self) -> Allocator {
        self.state().allocator.clone()
    }

    pub fn pods(&self) -> Vec<PodStatus> {
        let state = self.state();
        let status = |allocation: &Allocation| {
            let key = key_of(allocation);
            PodStatus {
                host_interface: links::host_link_name(&key.0, &key.1),
                host_index: state.index_by_attachment.get(&key).copied(),
                allocation: allocation.clone(),
            }
        };
        state.allocator.allocations().map(status).collect()
    }

    /// Destinations with what is desired and whether the kernel has it.
    pub fn routes(&self) -> Vec<(IpNetwork, Target, bool)> {
        let state = self.state();
        let actual = state.routes.actual();
        let desired = state.routes.desired().iter();
        let mut routes: Vec<(IpNetwork, Target, bool)> =
            desired.map(|(d, target)| (*d, target.clone(), actual.get(d) == Some(target))).collect();
        routes.sort_unstable_by_key(|(destination, ..)| *destination);
        routes
    }

    /// Told when ports of the node lead elsewhere.
    pub fn host_ports_changed(&self) -> Arc<Notify> {
        self.host_ports_changed.clone()
    }

    /// The ports of the node that lead to its pods. Of two pods that claim one, the newer has it.
    pub fn host_ports(&self) -> Services {
        let state = self.state();
        let mut allocations: Vec<&Allocation> = state.allocator.allocations().collect();
        allocations.sort_by_key(|allocation| allocation.allocated_at);
        allocations.into_iter().flat_map(host_ports_of).collect()
    }

    /// The datapath, absent on a host without pods.
    pub fn datapath(&self) -> Option<MutexGuard<'_, Datapath>> {
        self.datapath.as_ref().map(lock)
    }

    fn save(&self, state: &mut State) -> anyhow::Result<()> {
        state.is_unsaved = true;
        self.allocations.save(&state.allocator)?;
        state.is_unsaved = false;
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl State {
    fn set_own(&mut self, destination: IpNetwork, target: Option<Target>) {
        if self.own.get(&destination) != target.as_ref() {
            let change = target.as_ref().map_or("gone".to_owned(), Target::to_string);
            note!("route", destination, change, "this node's own");
        }
        match target {
            Some(target) => self.own.insert(destination, target),
            None => self.own.remove(&destination),
        };
        self.refresh(destination);
    }

    fn refresh(&mut self, destination: IpNetwork) {
        let own = self.own.get(&destination).cloned();
        // What no pod here has must not go round between this node and the block's owner.
        let unused = || {
            let is_ours = is_single(destination) && self.allocator.has_block(destination);
            is_ours.then_some(Target::Blackhole)
        };
        let target = own.or_else(unused).or_else(|| self.learned.get(&destination).cloned());
        self.routes.set(destination, target);
    }

    /// Whether a block is told to others: what is not confirmed now is for only as long as pods depend on it.
    fn is_in_use(&self, block: IpNetwork) -> bool {
        let used = self.allocator.usage(block).is_some_and(|(used, _)| used > 0);
        used || !self.allocator.is_suspended(block)
    }

    /// Attachments, with the number of the newest allocation of each.
    fn attachments(&self) -> BTreeMap<AttachmentKey, u64> {
        let mut attachments = BTreeMap::new();
        for allocation in self.allocator.allocations() {
            let newest = attachments.entry(key_of(allocation)).or_insert(0);
            *newest = allocation.sequence.max(*newest);
        }
        attachments
    }

    fn set_all(&mut self) {
        let single = self.allocator.blocks().chain(self.allocator.borrowed()).filter(|it| is_single(*it));
        let destinations: BTreeSet<IpNetwork> = self.own.keys().copied().chain(single).collect();
        destinations.into_iter().for_each(|destination| self.refresh(destination));
    }

    /// Applies and logs; what failed stays different and is tried again at the next resync.
    fn apply(&mut self) -> Vec<(IpNetwork, String)> {
        match self.routes.apply() {
            Ok(applied) => {
                for (destination, error) in &applied.failed {
                    tracing::warn!(%destination, error, "route refused by the kernel");
                }
                applied.failed
            }
            Err(error) => {
                tracing::warn!(%error, "applying routes");
                Vec::new()
            }
        }
    }
}

/// A link takes its programs along; detaching them before would cost more RCU grace periods.
fn start_reaper(pod_links: Option<PodLinks>) -> std::io::Result<Reaper> {
    Reaper::start(move |index| {
        if let Some(Err(error)) = pod_links.as_ref().map(|pod_links| pod_links.detach(index)) {
            tracing::warn!(error = crate::watch::chain(&error), "forgetting a pod's link");
        }
    })
}

fn note_learned(next_hops: &NextHops, prefixes: &[Prefix]) {
    let change = || {
        if next_hops.is_empty() {
            return "gone".to_owned();
        }
        Target::Via(next_hops.clone()).to_string()
    };
    match prefixes {
        [] => {}
        [first, _, ..] if prefixes.len() > journal::SINGLE_MAX => {
            let what = format!("{} destinations, {first} among them", prefixes.len());
            note!("route", what, change(), "chosen of what peers announce");
        }
        few => {
            few.iter().for_each(|prefix| note!("route", prefix, change(), "chosen of what peers announce"))
        }
    }
}

fn is_single(block: IpNetwork) -> bool {
    block.prefix() == if block.is_ipv4() { 32 } else { 128 }
}

fn host_ports_of(allocation: &Allocation) -> impl Iterator<Item = (FrontendKey, Service)> {
    let (owner, pod) = (&allocation.owner, allocation.address);
    let of_family = owner
        .host_ports
        .iter()
        .filter(move |port| port.host_ip.is_none_or(|host_ip| host_ip.is_ipv4() == pod.is_ipv4()));
    of_family.map(move |port| {
        let address = Address::from(port.host_ip.unwrap_or(pod));
        let key = FrontendKey::new(address, Port::new(port.host_port), Protocol(port.protocol));
        let endpoint = Endpoint {
            address: pod.into(),
            port: Port::new(port.container_port),
            local: true,
            clients: Clients::All,
            weight: Endpoint::WEIGHT,
        };
        let service = Service {
            name: format!("{}/{}:{}", owner.pod_namespace, owner.pod_name, port.container_port),
            endpoints: vec![endpoint],
            has_endpoints: true,
            ..Service::default()
        };
        (if port.host_ip.is_some() { key } else { key.of_any_address() }, service)
    })
}

/// Where the pods that have a link are reached.
fn local_pods(
    allocations: &[Allocation],
    index_by_attachment: &BTreeMap<AttachmentKey, u32>,
) -> Vec<(IpAddr, PodLink)> {
    let mut addresses: BTreeMap<AttachmentKey, Vec<IpAddr>> = BTreeMap::new();
    for allocation in allocations {
        addresses.entry(key_of(allocation)).or_default().push(allocation.address);
    }
    let linked = addresses.into_iter().filter_map(|(key, addresses)| {
        let host_index = *index_by_attachment.get(&key)?;
        let link = PodLink { host_index, pod_mac: links::pod_mac(&addresses) };
        Some((addresses, link))
    });
    linked
        .flat_map(|(addresses, link)| addresses.into_iter().map(move |address| (address, link.clone())))
        .collect()
}

fn key_of(allocation: &Allocation) -> AttachmentKey {
    (allocation.owner.container_id.clone(), allocation.owner.interface.clone())
}

/// A panic in another thread has been reported there; the state itself is level-triggered.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}
