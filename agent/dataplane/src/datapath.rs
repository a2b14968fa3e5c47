//! The datapath as the agent sees it: opened once, told what is desired, asked what it counted.
//!
//! Dropping it changes nothing in the kernel: programs, links and maps are pinned and go on without the agent.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ebpf_common::{
    Address, Backend, BackendId, Counter, FrontendKey, ServiceId,
    desired::{Policies, PolicyChanges, Service, Services},
    maps,
};

use crate::{
    counts::ServiceCounts,
    flows::{self, FlowEntry, Flows, Swept},
    growth::Growth,
    links::PodLink,
    maps::{MapError, PinnedCounters},
    masquerade::{MasqueradeConfig, MasqueradeMaps},
    node::{NodeConfig, NodeMaps},
    pods::{self, PodMap},
    policies::PolicyMaps,
    programs::{LogLevel, ProgramError, Programs, Role, TcModes, XdpSetting, XdpState},
    services::{Applied, Names, ServiceEntry, ServiceMaps},
    sizes::Sizes,
    stale::StaleSockets,
    swap::{Step, Turn},
};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Program(#[from] ProgramError),
    #[error(transparent)]
    Map(#[from] MapError),
    #[error("reading the datapath's log")]
    Log(#[source] Box<dyn std::error::Error + Send + Sync>),
}

#[derive(Clone, Debug)]
pub struct Config {
    /// A folder of this node's own on a BPF file system, such as /sys/fs/bpf/seaway.
    pub bpf_dir: PathBuf,
    pub tc_modes: TcModes,
    pub log_level: LogLevel,
    /// Of maps. One that is pinned already is exchanged where it is below its least or above its limit.
    pub sizes: Sizes,
    /// Where to leave off while maps are exchanged, as a killed agent would.
    pub halt_at: Option<Step>,
}

impl Config {
    /// The best that the running kernel has, without a log.
    pub fn new(bpf_dir: impl Into<PathBuf>) -> Self {
        Self {
            bpf_dir: bpf_dir.into(),
            tc_modes: TcModes::of_kernel(),
            log_level: LogLevel::Off,
            sizes: Sizes::default(),
            halt_at: None,
        }
    }

    pub(crate) fn maps(&self) -> PathBuf {
        self.bpf_dir.join("maps")
    }
}

#[derive(Debug)]
pub struct Datapath {
    maps_dir: PathBuf,
    config: Config,
    programs: PodLinks,
    /// Of whoever exchanges maps.
    turn: Arc<Turn>,
    services: ServiceMaps,
    node: NodeMaps,
    masquerade: MasqueradeMaps,
    pods: PodMap,
    policies: PolicyMaps,
    flows: Arc<Flows>,
    counters: PinnedCounters,
    service_counts: Arc<ServiceCounts>,
}

/// The programs, to serve links of pods with. The kernel takes tens of milliseconds for one, in which the maps need not
/// wait: hence beside [`Datapath`] and with a lock of its own.
#[derive(Clone, Debug)]
pub struct PodLinks {
    programs: Arc<Mutex<Programs>>,
}

impl PodLinks {
    /// Serves the packets of a pod, on the host's end of its link. Call it in the node's network namespace, before the
    /// pod can send. Twice is no error.
    pub fn attach(&self, interface_index: u32) -> Result<(), Error> {
        Ok(self.programs().attach_link(interface_index, Role::Pod)?)
    }

    /// After a pod's link is gone, or to stop serving it. Twice is no error.
    pub fn detach(&self, interface_index: u32) -> Result<(), Error> {
        Ok(self.programs().detach_link(interface_index, Role::Pod)?)
    }

    /// What exchanges maps for larger ones changes the programs too. What a panicking thread was at is found and done again by the next who attaches.
    pub(crate) fn programs(&self) -> MutexGuard<'_, Programs> {
        self.programs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The pods of the maps in `directory` by address, each with the interface that its packets are handed to: what the
/// kernel acts on, not what anybody believes.
pub fn read_pods(directory: &Path) -> Result<Vec<(IpAddr, u32)>, MapError> {
    pods::dump(directory)
}

impl Datapath {
    /// Loads the programs, takes over the maps of an earlier agent and replaces its programs in place. Services keep
    /// being served as the maps say until [`Self::set_services`].
    pub fn open(config: &Config) -> Result<Self, Error> {
        let programs = Programs::load(config)?;
        let maps = config.maps();
        Ok(Self {
            config: Config { halt_at: None, ..config.clone() },
            turn: Arc::default(),
            programs: PodLinks { programs: Arc::new(Mutex::new(programs)) },
            services: ServiceMaps::open(&maps)?,
            node: NodeMaps::open(&maps)?,
            masquerade: MasqueradeMaps::open(&maps)?,
            pods: PodMap::open(&maps)?,
            policies: PolicyMaps::open(&maps)?,
            flows: Arc::new(Flows::open(&maps)?),
            counters: PinnedCounters::open(&maps, maps::COUNTERS)?,
            service_counts: Arc::new(ServiceCounts::open(&maps)?),
            maps_dir: maps,
        })
    }

    /// What makes maps larger while programs use them.
    pub fn growth(&self) -> Growth {
        Growth::new(self.config.clone(), self.programs.clone(), Arc::clone(&self.turn))
    }

    /// Goes on with maps that were exchanged. To be called after [`Growth::grow`].
    pub fn reopen(&mut self) -> Result<(), Error> {
        self.flows = Arc::new(Flows::open(&self.maps_dir)?);
        Ok(self.services.reopen(&self.maps_dir)?)
    }

    /// Gives a map that is full of what the agent writes more room, if it may grow.
    fn make_room(&mut self, error: MapError) -> Result<(), Error> {
        let MapError::Full { name } = &error else { return Err(error.into()) };
        let growth = self.growth();
        // All that is there may have to stay until what is new is there.
        match growth.due(name, u64::MAX, self.services.desired_count(name) as u64)? {
            Some(entries) => growth.grow(name, entries)?,
            None => return Err(error.into()),
        }
        self.reopen()
    }

    /// Makes `services` all that is balanced. Call it first when Services and EndpointSlices are in sync: what is not
    /// in `services` is deleted. After an error, calling it again goes on where it stopped.
    pub fn set_services(&mut self, services: Services) -> Result<Applied, Error> {
        self.services.set_desired(services);
        self.apply_services()
    }

    /// Desires single changes: what a frontend shall be from now on, `None` where it shall not be. They are in the maps
    /// after [`Self::apply_services`].
    pub fn change_services<'a>(
        &mut self,
        changes: impl IntoIterator<Item = (&'a FrontendKey, &'a Option<Service>)>,
    ) {
        for (key, change) in changes {
            match change {
                Some(service) => self.services.insert(*key, service),
                None => self.services.remove(key),
            }
        }
    }

    /// Writes what is new or changed so far, so that not all of a large number waits in memory.
    pub fn write_services(&mut self) -> Result<usize, Error> {
        loop {
            match self.services.write_new() {
                Ok(written) => return Ok(written),
                Err(error) => self.make_room(error)?,
            }
        }
    }

    /// Writes what is due. At the first time that is also the end of whatever an earlier agent left and nobody desired
    /// since. After an error, calling it again goes on where it stopped.
    pub fn apply_services(&mut self) -> Result<Applied, Error> {
        loop {
            match self.services.apply() {
                Ok(applied) => return Ok(applied),
                Err(error) => self.make_room(error)?,
            }
        }
    }

    /// Says what the node is: without it node ports lead nowhere, and clients beyond the node get only backends on it.
    /// To be called again when addresses change.
    pub fn set_node(&mut self, config: &NodeConfig) -> Result<(), Error> {
        Ok(self.node.set(config)?)
    }

    /// Says which traffic of pods gets the node's address. What an earlier agent said holds until then; flows that are known
    /// keep what they have. To be called again when addresses of nodes change.
    pub fn set_masquerade(&mut self, config: &MasqueradeConfig) -> Result<(), Error> {
        Ok(self.masquerade.set(config)?)
    }

    /// Makes `policies` all that is policed. What an earlier agent said holds until then.
    pub fn set_policies(&mut self, policies: &Policies) -> Result<(), Error> {
        self.policies.set(policies)?;
        Ok(self.pods.police(|address| self.policies.is_policed(address))?)
    }

    /// Changes what is policed. It is in force when this returns, for connections that are there too.
    pub fn change_policies(&mut self, changes: &PolicyChanges) -> Result<(), Error> {
        self.policies.change(changes)?;
        Ok(self.pods.police(|address| self.policies.is_policed(address))?)
    }

    /// Serves the sockets of all processes in `cgroup`, a directory of the cgroup v2 tree, and below.
    pub fn attach_cgroup(&self, cgroup: &Path) -> Result<(), Error> {
        Ok(self.programs.programs().attach_cgroup(cgroup)?)
    }

    /// Serves links of pods, also while somebody else has the datapath.
    pub fn pod_links(&self) -> PodLinks {
        self.programs.clone()
    }

    /// Makes `pods`, by address, all that packets are handed over to past the node's stack. Those of an earlier agent
    /// stay until then.
    pub fn set_pods(&mut self, pods: impl IntoIterator<Item = (IpAddr, PodLink)>) -> Result<(), Error> {
        let pods: Vec<(IpAddr, PodLink)> = pods.into_iter().collect();
        let links = pods.iter().map(|(address, link)| (Address::from(*address), link.host_index));
        self.policies.set_links(links)?;
        self.pods.set(pods, |address| self.policies.is_policed(address))?;
        if self.policies.is_said() {
            self.pods.police(|address| self.policies.is_policed(address))?;
        }
        Ok(())
    }

    /// Hands packets for these addresses over to the pod. To be called once its link is served and routed to.
    pub fn add_pod(&mut self, addresses: &[IpAddr], link: &PodLink) -> Result<(), Error> {
        let known: Vec<Address> = addresses.iter().map(|address| Address::from(*address)).collect();
        self.policies.add_link(&known, link.host_index)?;
        Ok(self.pods.insert(addresses, link, |address| self.policies.is_policed(address))?)
    }

    /// Undoes [`Self::add_pod`]. To be called before the routes go. Nothing there is no error.
    pub fn remove_pod(&mut self, addresses: &[IpAddr]) -> Result<(), Error> {
        self.pods.remove(addresses)?;
        let known: Vec<Address> = addresses.iter().map(|address| Address::from(*address)).collect();
        Ok(self.policies.remove_link(&known)?)
    }

    /// Serves packets that reach Services from beyond this node.
    pub fn attach_uplink(&self, interface_index: u32) -> Result<(), Error> {
        Ok(self.programs.programs().attach_link(interface_index, Role::Uplink)?)
    }

    /// Sends packets between clients and backends beyond this node on before they cost a socket buffer, where `setting`
    /// wants that and the uplink can have it; else the state says why not.
    pub fn set_xdp(&self, interface_index: u32, setting: XdpSetting) -> Result<XdpState, Error> {
        Ok(self.programs.programs().set_xdp(interface_index, setting)?)
    }

    pub fn detach_uplink(&self, interface_index: u32) -> Result<(), Error> {
        Ok(self.programs.programs().detach_link(interface_index, Role::Uplink)?)
    }

    pub fn detach_cgroup(&self) -> Result<(), Error> {
        Ok(self.programs.programs().detach_cgroup()?)
    }

    /// What the maps hold, with the names of the Services.
    pub fn services(&self) -> Vec<ServiceEntry> {
        self.services.entries()
    }

    pub fn flows(&self) -> Result<Vec<FlowEntry>, Error> {
        Ok(self.flows.entries(flows::now_ns())?)
    }

    /// Forgets flows that ended or fell silent. To be called every 10 seconds or so.
    pub fn sweep_flows(&self) -> Result<Swept, Error> {
        Ok(self.flows.sweep(flows::now_ns())?)
    }

    /// What ends the sockets of backends that are gone. It goes its own way, since that takes longer than a change of
    /// the maps; see [`Applied::datagram_backends_gone`].
    pub fn stale_sockets(&self) -> Result<StaleSockets, Error> {
        Ok(StaleSockets::open(&self.maps_dir)?)
    }

    /// Where the maps are pinned, to be looked at without holding up anything else ([`crate::view`]).
    pub fn maps_dir(&self) -> &Path {
        &self.maps_dir
    }

    /// The Services that have these ids and addresses, by name.
    pub fn names(&self, ids: &HashSet<ServiceId>, addresses: &HashSet<Address>) -> Names {
        self.services.names(ids, addresses)
    }

    /// The ids of the frontends of a Service, `namespace/name` or `namespace/name:port`.
    pub fn ids_of(&self, service: &str) -> HashSet<ServiceId> {
        self.services.ids_of(service)
    }

    /// A backend as the maps have it.
    pub fn backend(&self, id: BackendId) -> Option<&Backend> {
        self.services.backend(id)
    }

    /// The Service of a frontend, or of the node port that leads there.
    pub fn service_at(&self, key: &FrontendKey) -> Option<&str> {
        self.services.name_at(key)
    }

    /// The flows that conntrack holds, to be read and swept without holding up anything else.
    pub fn flow_table(&self) -> Arc<Flows> {
        Arc::clone(&self.flows)
    }

    /// Each counter with its sum over all CPUs, since the map was made.
    pub fn counters(&self) -> Result<Vec<(Counter, u64)>, Error> {
        Counter::ALL.iter().map(|counter| Ok((*counter, self.counters.sum(*counter as u32)?))).collect()
    }

    /// How often clients asked for each frontend, to be read without holding up anything else.
    pub fn service_counts(&self) -> Arc<ServiceCounts> {
        Arc::clone(&self.service_counts)
    }

    /// Of these ids those that frontends have, with the names of their Services as far as they are known.
    pub fn named(&self, ids: &HashSet<ServiceId>) -> HashMap<ServiceId, Option<Box<str>>> {
        self.services.named(ids)
    }

    /// A number that changes when what [`Self::named`] says may have changed.
    pub fn names_generation(&self) -> u64 {
        self.services.generation()
    }

    /// The number of elements of each map that only the agent writes ([`crate::pressure::WRITTEN_BY_AGENT`]).
    pub fn map_entries(&self) -> Vec<(&'static str, usize)> {
        let mut entries = self.services.map_entries().to_vec();
        entries.push((maps::NODE_ADDRESSES, self.node.address_count()));
        entries.push((maps::PODS, self.pods.count()));
        entries.extend(self.policies.map_entries());
        entries
    }

    pub fn programs_mut(&mut self) -> MutexGuard<'_, Programs> {
        self.programs.programs()
    }

    /// Passes what the programs log to `logger` until dropped. Needs a tokio runtime, and a log level other than off to
    /// see anything.
    pub fn spawn_log_reader(
        &mut self,
        logger: impl log::Log + 'static,
    ) -> Result<tokio::task::JoinHandle<()>, Error> {
        let logger = aya_log::EbpfLogger::init_with_logger(self.programs.programs().ebpf_mut(), logger)
            .map_err(|source| Error::Log(Box::new(source)))?;
        // SAFETY: the logger owns its ring buffer's descriptor, and gives the same one until it is dropped.
        let registered = unsafe {
            tokio::io::unix::AsyncFd::register_with_interest(logger, tokio::io::Interest::READABLE)
        };
        let mut logger = registered.map_err(|source| Error::Log(Box::new(source.into_parts().1)))?;
        Ok(tokio::spawn(async move {
            while let Ok(mut guard) = logger.readable_mut().await {
                guard.get_inner_mut().flush();
                guard.clear_ready();
            }
        }))
    }
}

/// Passes the programs' log on to tracing. What of it is worth a line was decided by [`Config::log_level`] already, so
/// its details come as INFO: they were asked for.
#[derive(Debug)]
pub struct TracingLogger;

impl log::Log for TracingLogger {
    fn enabled(&self, _metadata: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        match record.level() {
            log::Level::Error => tracing::error!(target: "datapath", "{}", record.args()),
            log::Level::Warn => tracing::warn!(target: "datapath", "{}", record.args()),
            log::Level::Info | log::Level::Debug | log::Level::Trace => {
                tracing::info!(target: "datapath", "{}", record.args());
            }
        }
    }

    fn flush(&self) {}
}
