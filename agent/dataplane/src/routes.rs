//! The routes of this node that are ours: desired against the kernel's table, by difference.
//!
//! Ours is what carries protocol 180; nothing else is ever deleted, and a metric of our own keeps a replace from
//! hitting somebody else's route. Gateways are nexthop objects where the kernel has them, so that the price of a
//! route does not grow with the number of nodes. They may be of the other family: IPv4 over IPv6 next hops (RFC 8950). A
//! link-local gateway carries the index of its link in octets 4 to 7, as `bgp::link_local` has it. Nothing is removed before `allow_removal`: after a restart the
//! table stays as it was until the desired routes are complete. The kernel drops routes of a dead link without a
//! word, so `resync` re-reads the table: on link events, on lost events, and periodically.

mod nexthops;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use hashbrown::{HashMap, HashSet};
use ipnetwork::IpNetwork;

use crate::links;
use crate::netlink::{self, CREATE, DUMP, Message, REPLACE, Received, Refusal, Socket};
use nexthops::{Found, Nexthops, resolve, with_link, without_link};

/// The route protocol number of everything installed here.
pub const PROTOCOL: u8 = 180;
/// The metric of everything installed here.
pub const METRIC: u32 = 180;

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;
const RTM_DELNEXTHOP: u16 = 105;

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RTA_MULTIPATH: u16 = 9;
const RTA_NH_ID: u16 = 30;

const RTNLGRP_LINK: u32 = 1;
const RTNLGRP_IPV4_ROUTE: u32 = 7;
const RTNLGRP_IPV6_ROUTE: u32 = 11;
const RTNLGRP_NEXTHOP: u32 = 32;

const TABLE_MAIN: u8 = 254;
const SCOPE_UNIVERSE: u8 = 0;
const SCOPE_LINK: u8 = 253;
const TYPE_UNICAST: u8 = 1;
const TYPE_BLACKHOLE: u8 = 6;
const TYPE_UNREACHABLE: u8 = 7;
const NUD_FAILED_FLAGS: u32 = 0x1 | 0x10; // RTNH_F_DEAD | RTNH_F_LINKDOWN

/// Addresses of gateways; routes that have the same may share them.
pub type Gateways = Arc<Vec<IpAddr>>;

/// Where a destination goes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// Packets are dropped: for an own block, under the routes of its pods.
    Blackhole,
    /// Senders are told that there is nobody: for addresses of Services, which lead to a backend before any route.
    Unreachable,
    /// On the link of this interface index.
    Link(u32),
    /// Through these gateways, sorted; several share the load.
    Via(Gateways),
}

#[derive(Clone, Debug, Default)]
pub struct RoutesConfig {
    /// Source address preferred for packets of the node itself, per family.
    pub source_v4: Option<IpAddr>,
    pub source_v6: Option<IpAddr>,
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Target::Blackhole => f.write_str("blackhole"),
            Target::Unreachable => f.write_str("unreachable"),
            Target::Link(index) => write!(f, "interface {index}"),
            Target::Via(gateways) => {
                let gateways: Vec<String> = gateways.iter().map(|gateway| gateway_text(*gateway)).collect();
                write!(f, "via {}", gateways.join(", "))
            }
        }
    }
}

/// A link-local one with the index of its link.
fn gateway_text(gateway: IpAddr) -> String {
    match without_link(gateway) {
        (address, Some(link)) => format!("{address}%{link}"),
        (address, None) => address.to_string(),
    }
}

/// What one `apply` did.
#[derive(Clone, Debug, Default)]
pub struct Applied {
    pub installed: usize,
    pub removed: usize,
    /// Destinations the kernel refused, with its words; they are tried again at the next `resync`.
    pub failed: Vec<(IpNetwork, String)>,
}

#[derive(Debug)]
pub struct Routes {
    socket: Socket,
    config: RoutesConfig,
    desired: HashMap<IpNetwork, Target>,
    actual: HashMap<IpNetwork, Target>,
    /// In no order, some of them perhaps twice.
    dirty: Vec<IpNetwork>,
    /// A gateway may have lost its last route.
    may_have_unused: bool,
    withdrawn: BTreeSet<IpNetwork>,
    nexthops: Nexthops,
    removal_allowed: bool,
}

/// The routes of ours that the kernel has now, in the calling thread's network namespace.
pub fn read_kernel() -> io::Result<HashMap<IpNetwork, Target>> {
    Ok(Routes::open(RoutesConfig::default())?.actual)
}

impl Routes {
    /// Opens the table of the calling thread's network namespace and reads what is ours in it.
    pub fn open(config: RoutesConfig) -> io::Result<Routes> {
        let mut routes = Routes {
            socket: Socket::open()?,
            config,
            desired: HashMap::new(),
            actual: HashMap::new(),
            dirty: Vec::new(),
            may_have_unused: true,
            withdrawn: BTreeSet::new(),
            nexthops: Nexthops::default(),
            removal_allowed: false,
        };
        routes.resync()?;
        Ok(routes)
    }

    /// Sets or clears the wish for one destination; takes effect with `apply`. What was wished for by this process
    /// and is not any more is removed even before `allow_removal`.
    pub fn set(&mut self, destination: IpNetwork, target: Option<Target>) {
        match target {
            Some(target) => {
                self.desired.insert(destination, target);
                self.withdrawn.remove(&destination);
            }
            None => {
                if self.desired.remove(&destination).is_some() {
                    self.withdrawn.insert(destination);
                }
            }
        }
        self.dirty.push(destination);
    }

    pub fn desired(&self) -> &HashMap<IpNetwork, Target> {
        &self.desired
    }

    /// What the kernel had at the last `resync`, and what was applied since.
    pub fn actual(&self) -> &HashMap<IpNetwork, Target> {
        &self.actual
    }

    /// The desired routes are complete: from now on routes of ours that are not desired are removed.
    pub fn allow_removal(&mut self) {
        if !self.removal_allowed {
            self.removal_allowed = true;
            self.may_have_unused = true;
            self.dirty.extend(self.actual.keys().copied());
        }
    }

    /// Re-reads the kernel's table and marks every difference for `apply`; returns what was changed behind our back.
    pub fn resync(&mut self) -> io::Result<Vec<IpNetwork>> {
        let before = std::mem::take(&mut self.actual);
        self.nexthops.read(&mut self.socket)?;
        let found = self.nexthops.found();
        let mut actual = HashMap::new();
        let mut groups = Vec::new();
        for family in [libc::AF_INET as u8, libc::AF_INET6 as u8] {
            let header = [family, 0, 0, 0, 0, PROTOCOL, 0, 0, 0, 0, 0, 0];
            for message in self.socket.query(Message::new(RTM_GETROUTE, DUMP, &header))? {
                if let Some(Route { destination, target, group }) = parse_route(&message, &found) {
                    groups.extend(group.map(|group| (destination, group)));
                    actual.insert(destination, target);
                }
            }
        }
        drop(found);
        for (destination, group) in groups {
            self.nexthops.set_group(destination, Some(group));
        }
        self.actual = actual;
        self.may_have_unused = true;
        let differs =
            |destination: &&IpNetwork| self.actual.get(*destination) != self.desired.get(*destination);
        let changed: Vec<IpNetwork> =
            self.desired.keys().chain(self.actual.keys()).filter(differs).copied().collect();
        let foreign = |destination: &&IpNetwork| before.get(*destination) == self.desired.get(*destination);
        let foreign = changed.iter().filter(foreign).copied().collect();
        self.dirty.extend(changed);
        Ok(foreign)
    }

    /// Makes the kernel's table equal the desired one where it is known to differ.
    pub fn apply(&mut self) -> io::Result<Applied> {
        let mut applied = Applied::default();
        let mut messages = Vec::new();
        let mut changes = Vec::new();
        // Neighbours in the kernel's table one after the other.
        let mut dirty = std::mem::take(&mut self.dirty);
        dirty.sort_unstable();
        dirty.dedup();
        self.change_groups(&dirty, &mut applied);
        for destination in dirty {
            let desired = self.desired.get(&destination).cloned();
            if self.actual.get(&destination) == desired.as_ref() {
                continue;
            }
            let (message, group) = match &desired {
                Some(target) => match self.new_route(destination, target) {
                    Ok(made) => made,
                    Err(error) => {
                        applied.failed.push((destination, error.to_string()));
                        continue;
                    }
                },
                None if self.is_to_go(&destination) => (self.delete_route(destination), None),
                None => continue,
            };
            messages.push(message);
            changes.push((destination, desired, group));
        }
        let results = self.socket.execute(&mut messages)?;
        for ((destination, target, group), refusal) in changes.into_iter().zip(results) {
            match (target, refusal) {
                (Some(target), None) => {
                    applied.installed += 1;
                    self.nexthops.set_group(destination, group);
                    self.may_have_unused |= self.actual.insert(destination, target).is_some();
                }
                (None, refusal) if refusal.as_ref().is_none_or(|r| r.errno == libc::ESRCH) => {
                    applied.removed += 1;
                    self.withdrawn.remove(&destination);
                    self.nexthops.set_group(destination, None);
                    self.may_have_unused |= self.actual.remove(&destination).is_some();
                }
                (_, refusal) => {
                    let text = refusal.as_ref().map(Refusal::to_string).unwrap_or_default();
                    applied.failed.push((destination, text));
                }
            }
        }
        if self.removal_allowed && std::mem::take(&mut self.may_have_unused) {
            self.remove_unused_nexthops()?;
        }
        Ok(applied)
    }

    fn is_to_go(&self, destination: &IpNetwork) -> bool {
        self.removal_allowed || self.withdrawn.contains(destination)
    }

    /// A group whose routes all change to the same gateways, or go, becomes a group of these: the flows over gateways that
    /// stay keep their way. Where that cannot be done the routes change one by one, as all others do.
    fn change_groups(&mut self, dirty: &[IpNetwork], applied: &mut Applied) {
        #[derive(Default)]
        struct Wish {
            routes: Vec<IpNetwork>,
            leaving: usize,
            gateways: Option<Gateways>,
            differs: bool,
        }
        let mut wishes: BTreeMap<u32, Wish> = BTreeMap::new();
        for destination in dirty {
            let Some(group) = self.nexthops.group_of(destination) else { continue };
            let desired = self.desired.get(destination);
            if self.actual.get(destination) == desired {
                continue;
            }
            let wish = wishes.entry(group).or_default();
            match desired {
                Some(Target::Via(gateways)) => {
                    wish.differs |= wish.gateways.as_ref().is_some_and(|others| others != gateways);
                    wish.gateways.get_or_insert_with(|| gateways.clone());
                    wish.routes.push(*destination);
                }
                None if !self.is_to_go(destination) => {}
                Some(_) | None => wish.leaving += 1,
            }
        }
        for (group, Wish { routes, leaving, gateways, differs }) in wishes {
            let Some(gateways) = gateways.filter(|_| !differs) else { continue };
            if routes.len() + leaving < self.nexthops.routes_of(group)
                || self.nexthops.change(&mut self.socket, group, &gateways).is_err()
            {
                continue;
            }
            self.may_have_unused = true;
            applied.installed += routes.len();
            for destination in routes {
                self.actual.insert(destination, Target::Via(gateways.clone()));
            }
        }
    }

    /// The message, and the group that the route leads to, if it is one.
    fn new_route(&mut self, destination: IpNetwork, target: &Target) -> io::Result<(Message, Option<u32>)> {
        let (scope, kind) = match target {
            Target::Blackhole => (SCOPE_UNIVERSE, TYPE_BLACKHOLE),
            Target::Unreachable => (SCOPE_UNIVERSE, TYPE_UNREACHABLE),
            Target::Link(_) => (SCOPE_LINK, TYPE_UNICAST),
            Target::Via(_) => (SCOPE_UNIVERSE, TYPE_UNICAST),
        };
        let header = route_header(destination, scope, kind);
        let message = Message::new(RTM_NEWROUTE, CREATE | REPLACE, &header)
            .address(RTA_DST, destination.network())
            .u32(RTA_PRIORITY, METRIC);
        let (message, group) = match target {
            Target::Blackhole | Target::Unreachable => return Ok((message, None)),
            Target::Link(interface) => (message.u32(RTA_OIF, *interface), None),
            Target::Via(gateways) if self.nexthops.are_supported() => {
                let (id, is_group) = self.nexthops.id(&mut self.socket, gateways)?;
                (message.u32(RTA_NH_ID, id), is_group.then_some(id))
            }
            Target::Via(gateways) => (self.via(message, destination, gateways)?, None),
        };
        let source = if destination.is_ipv4() { self.config.source_v4 } else { self.config.source_v6 };
        let message = match source {
            Some(source) => message.address(RTA_PREFSRC, source),
            None => message,
        };
        Ok((message, group))
    }

    /// Without objects.
    fn via(&mut self, message: Message, destination: IpNetwork, gateways: &[IpAddr]) -> io::Result<Message> {
        if let [gateway] = gateways {
            let resolved = resolve(&mut self.socket, *gateway)?;
            let mut attributes = Vec::new();
            nexthops::put_gateway(&mut attributes, destination, resolved.gateway);
            return Ok(message.attributes(&attributes).u32(RTA_OIF, resolved.interface));
        }
        let mut list = Vec::new();
        for gateway in gateways {
            let resolved = resolve(&mut self.socket, *gateway)?;
            // struct rtnexthop: length, flags, hops, interface.
            let mut hop = vec![0, 0, 0, 0];
            hop.extend_from_slice(&resolved.interface.to_ne_bytes());
            nexthops::put_gateway(&mut hop, destination, resolved.gateway);
            let length = hop.len() as u16;
            hop[..2].copy_from_slice(&length.to_ne_bytes());
            list.extend(hop);
        }
        Ok(message.attribute(RTA_MULTIPATH, &list))
    }

    fn delete_route(&self, destination: IpNetwork) -> Message {
        // Type and scope 0 match any; protocol and metric keep it to what is ours.
        let header = route_header(destination, 255, 0);
        Message::new(RTM_DELROUTE, 0, &header)
            .address(RTA_DST, destination.network())
            .u32(RTA_PRIORITY, METRIC)
    }

    fn remove_unused_nexthops(&mut self) -> io::Result<()> {
        let mut used: HashSet<IpAddr> = HashSet::new();
        let mut last = None;
        for target in self.actual.values().chain(self.desired.values()) {
            if let Target::Via(gateways) = target
                && !last.replace(gateways).is_some_and(|last| Arc::ptr_eq(last, gateways))
            {
                used.extend(gateways.iter().copied());
            }
        }
        self.nexthops.remove_unused(&mut self.socket, used)
    }
}

/// Tells when the table may have changed behind our back.
#[derive(Debug)]
pub struct RouteMonitor {
    socket: tokio::io::unix::AsyncFd<Socket>,
    down: Mutex<links::DownLinks>,
}

impl RouteMonitor {
    /// Listens in the calling thread's network namespace; needs a tokio runtime.
    pub fn open() -> io::Result<RouteMonitor> {
        let socket = Socket::open()?;
        socket.set_nonblocking()?;
        for group in [RTNLGRP_LINK, RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV6_ROUTE] {
            socket.join(group)?;
        }
        // Absent on kernels without nexthop objects.
        let _ = socket.join(RTNLGRP_NEXTHOP);
        // SAFETY: the socket owns its descriptor for as long as it lives, and `AsyncFd` never gives it out.
        let socket = unsafe { tokio::io::unix::AsyncFd::register(socket)? };
        Ok(RouteMonitor { socket, down: Mutex::default() })
    }

    /// Waits for a link change that is not a pod's own, the deletion of a route or nexthop of ours, or lost events.
    pub async fn changed(&self) -> io::Result<()> {
        loop {
            let mut ready = self.socket.readable().await?;
            match ready.try_io(|socket| socket.get_ref().events()) {
                Ok(Ok(events)) => {
                    let mut down = self.down.lock().unwrap_or_else(PoisonError::into_inner);
                    // All of them are looked at: each may say of a link that it is down.
                    if events.iter().filter(|event| relevant(event, &mut down)).count() > 0 {
                        return Ok(());
                    }
                }
                Ok(Err(error)) if error.raw_os_error() == Some(libc::ENOBUFS) => return Ok(()),
                Ok(Err(error)) => return Err(error),
                Err(_would_block) => {}
            }
        }
    }
}

fn relevant(event: &Received, down: &mut links::DownLinks) -> bool {
    match event.kind {
        RTM_NEWLINK | RTM_DELLINK => down.concerns_routes(event.kind, &event.body),
        RTM_DELROUTE => event.body.get(5) == Some(&PROTOCOL),
        RTM_DELNEXTHOP => event.body.get(2) == Some(&PROTOCOL),
        _ => false,
    }
}

fn family_of(address: IpAddr) -> u8 {
    if address.is_ipv4() { libc::AF_INET as u8 } else { libc::AF_INET6 as u8 }
}

/// struct rtmsg.
fn route_header(destination: IpNetwork, scope: u8, kind: u8) -> [u8; 12] {
    let family = family_of(destination.ip());
    [family, destination.prefix(), 0, 0, TABLE_MAIN, PROTOCOL, scope, kind, 0, 0, 0, 0]
}

struct Route {
    destination: IpNetwork,
    target: Target,
    group: Option<u32>,
}

fn parse_route(message: &Received, found: &BTreeMap<u32, Found<'_>>) -> Option<Route> {
    let header = message.body.get(..12)?;
    let (family, length, table, protocol, kind) = (header[0], header[1], header[4], header[5], header[7]);
    if message.kind != RTM_NEWROUTE || protocol != PROTOCOL || table != TABLE_MAIN {
        return None;
    }
    let (mut destination, mut interface, mut gateway, mut id, mut metric) = (None, 0, None, None, 0);
    let mut multipath = Vec::new();
    for (kind, value) in netlink::attributes(&message.body[12..]) {
        match kind {
            RTA_DST => destination = netlink::read_address(value),
            RTA_OIF => interface = netlink::read_u32(value)?,
            RTA_NH_ID => id = netlink::read_u32(value),
            RTA_PRIORITY => metric = netlink::read_u32(value)?,
            RTA_MULTIPATH => multipath = parse_multipath(value),
            _ => gateway = nexthops::gateway_of(kind, value).or(gateway),
        }
    }
    if metric != METRIC {
        return None;
    }
    let unspecified: IpAddr = if family == libc::AF_INET as u8 { [0; 4].into() } else { [0u8; 16].into() };
    let destination = IpNetwork::new(destination.unwrap_or(unspecified), length).ok()?;
    let dead = read_flags(header) & NUD_FAILED_FLAGS != 0;
    let mut group = None;
    let target = match (kind, id, gateway) {
        (TYPE_BLACKHOLE, _, _) => Target::Blackhole,
        (TYPE_UNREACHABLE, _, _) => Target::Unreachable,
        // An object that is not known any more, or a dead one: it differs from whatever is desired.
        _ if dead => Target::Via(Gateways::default()),
        (_, Some(id), _) => match found.get(&id) {
            Some(Found::Gateway(gateway)) => Target::Via(vec![*gateway].into()),
            Some(Found::Group(members)) => {
                group = Some(id);
                Target::Via(members.to_vec().into())
            }
            None => Target::Via(Gateways::default()),
        },
        (_, None, Some(gateway)) => Target::Via(vec![with_link(gateway, interface)].into()),
        (_, None, None) if !multipath.is_empty() => Target::Via(multipath.into()),
        (_, None, None) => Target::Link(interface),
    };
    Some(Route { destination, target, group })
}

fn read_flags(header: &[u8]) -> u32 {
    netlink::read_u32(&header[8..]).unwrap_or(0)
}

fn parse_multipath(octets: &[u8]) -> Vec<IpAddr> {
    let mut gateways = Vec::new();
    let mut rest = octets;
    while let Some(header) = rest.get(..8) {
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let Some(hop) = rest.get(8..length) else { break };
        let interface = netlink::read_u32(&header[4..]).unwrap_or(0);
        let gateway = netlink::attributes(hop).find_map(|(kind, value)| nexthops::gateway_of(kind, value));
        gateways.extend(gateway.map(|gateway| with_link(gateway, interface)));
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    gateways.sort_unstable();
    gateways
}
