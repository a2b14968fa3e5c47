//! The routes of this node that are ours: desired against the kernel's table, by difference.
//!
//! Ours is what carries protocol 180; nothing else is ever deleted, and a metric of our own keeps a replace from
//! hitting somebody else's route. Gateways are nexthop objects where the kernel has them, so that the price of a
//! route does not grow with the number of nodes. Nothing is removed before `allow_removal`: after a restart the
//! table stays as it was until the desired routes are complete. The kernel drops routes of a dead link without a
//! word, so `resync` re-reads the table: on link events, on lost events, and periodically.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use hashbrown::{HashMap, HashSet};
use ipnetwork::IpNetwork;

use crate::links;
use crate::netlink::{self, CREATE, DUMP, EXCLUSIVE, Message, REPLACE, Received, Refusal, Socket};

/// The route protocol number of everything installed here.
pub const PROTOCOL: u8 = 180;
/// The metric of everything installed here.
pub const METRIC: u32 = 180;

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWNEXTHOP: u16 = 104;
const RTM_DELNEXTHOP: u16 = 105;
const RTM_GETNEXTHOP: u16 = 106;

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RTA_MULTIPATH: u16 = 9;
const RTA_NH_ID: u16 = 30;
const NHA_ID: u16 = 1;
const NHA_GROUP: u16 = 2;
const NHA_OIF: u16 = 5;
const NHA_GATEWAY: u16 = 6;

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

/// Nexthop objects of ours have ids from here on.
const NEXTHOP_ID_BASE: u32 = 0x0b40_0000;

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
                let gateways: Vec<String> = gateways.iter().map(IpAddr::to_string).collect();
                write!(f, "via {}", gateways.join(", "))
            }
        }
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

/// A gateway resolved to a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Resolved {
    gateway: IpAddr,
    interface: u32,
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
    /// Ids of objects, by gateway.
    nexthops: BTreeMap<IpAddr, u32>,
    groups: BTreeMap<Vec<IpAddr>, u32>,
    /// Objects of ours that no map entry stands for, left by an earlier run.
    orphans: BTreeSet<u32>,
    objects_supported: bool,
    next_id: u32,
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
            nexthops: BTreeMap::new(),
            groups: BTreeMap::new(),
            orphans: BTreeSet::new(),
            objects_supported: true,
            next_id: NEXTHOP_ID_BASE,
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
        self.read_nexthops()?;
        let gateways: BTreeMap<u32, IpAddr> =
            self.nexthops.iter().map(|(gateway, id)| (*id, *gateway)).collect();
        let groups: BTreeMap<u32, &Vec<IpAddr>> = self.groups.iter().map(|(list, id)| (*id, list)).collect();
        let mut actual = HashMap::new();
        for family in [libc::AF_INET as u8, libc::AF_INET6 as u8] {
            let header = [family, 0, 0, 0, 0, PROTOCOL, 0, 0, 0, 0, 0, 0];
            for message in self.socket.query(Message::new(RTM_GETROUTE, DUMP, &header))? {
                if let Some((destination, target)) = parse_route(&message, &gateways, &groups) {
                    actual.insert(destination, target);
                }
            }
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
        for destination in dirty {
            let desired = self.desired.get(&destination).cloned();
            if self.actual.get(&destination) == desired.as_ref() {
                continue;
            }
            let message = match &desired {
                Some(target) => match self.new_route(destination, target) {
                    Ok(message) => message,
                    Err(error) => {
                        applied.failed.push((destination, error.to_string()));
                        continue;
                    }
                },
                None if self.removal_allowed || self.withdrawn.contains(&destination) => {
                    self.delete_route(destination)
                }
                None => continue,
            };
            messages.push(message);
            changes.push((destination, desired));
        }
        let results = self.socket.execute(&mut messages)?;
        for ((destination, target), refusal) in changes.into_iter().zip(results) {
            match (target, refusal) {
                (Some(target), None) => {
                    applied.installed += 1;
                    self.may_have_unused |= self.actual.insert(destination, target).is_some();
                }
                (None, refusal) if refusal.as_ref().is_none_or(|r| r.errno == libc::ESRCH) => {
                    applied.removed += 1;
                    self.withdrawn.remove(&destination);
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

    fn new_route(&mut self, destination: IpNetwork, target: &Target) -> io::Result<Message> {
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
        let message = match target {
            Target::Blackhole | Target::Unreachable => return Ok(message),
            Target::Link(interface) => message.u32(RTA_OIF, *interface),
            Target::Via(gateways) => self.via(message, gateways)?,
        };
        let source = if destination.is_ipv4() { self.config.source_v4 } else { self.config.source_v6 };
        Ok(match source {
            Some(source) => message.address(RTA_PREFSRC, source),
            None => message,
        })
    }

    fn via(&mut self, message: Message, gateways: &[IpAddr]) -> io::Result<Message> {
        if self.objects_supported {
            return Ok(message.u32(RTA_NH_ID, self.nexthop_id(gateways)?));
        }
        if let [gateway] = gateways {
            let resolved = self.resolve(*gateway)?;
            return Ok(message.address(RTA_GATEWAY, resolved.gateway).u32(RTA_OIF, resolved.interface));
        }
        let mut list = Vec::new();
        for gateway in gateways {
            let resolved = self.resolve(*gateway)?;
            let mut hop = vec![0, 0, 0, 0];
            hop.extend_from_slice(&resolved.interface.to_ne_bytes());
            match resolved.gateway {
                IpAddr::V4(v4) => netlink::put_attribute(&mut hop, RTA_GATEWAY, &v4.octets()),
                IpAddr::V6(v6) => netlink::put_attribute(&mut hop, RTA_GATEWAY, &v6.octets()),
            }
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

    fn nexthop_id(&mut self, gateways: &[IpAddr]) -> io::Result<u32> {
        let mut ids = Vec::new();
        for gateway in gateways {
            ids.push(match self.nexthops.get(gateway) {
                Some(id) => *id,
                None => {
                    let resolved = self.resolve(*gateway)?;
                    let id = self.allocate_id();
                    self.socket.request(nexthop_message(id, &resolved))?;
                    self.nexthops.insert(*gateway, id);
                    id
                }
            });
        }
        if let [id] = ids[..] {
            return Ok(id);
        }
        if let Some(id) = self.groups.get(gateways) {
            return Ok(*id);
        }
        let id = self.allocate_id();
        // struct nexthop_grp: id, weight - 1, three octets reserved.
        let members: Vec<u8> = ids.iter().flat_map(|id| [id.to_ne_bytes(), [0; 4]].concat()).collect();
        let header = [libc::AF_UNSPEC as u8, 0, PROTOCOL, 0, 0, 0, 0, 0];
        let message = Message::new(RTM_NEWNEXTHOP, CREATE | EXCLUSIVE, &header)
            .u32(NHA_ID, id)
            .attribute(NHA_GROUP, &members);
        self.socket.request(message)?;
        self.groups.insert(gateways.to_vec(), id);
        Ok(id)
    }

    fn allocate_id(&mut self) -> u32 {
        self.next_id += 1;
        self.next_id
    }

    /// The link a gateway is reached on; through another gateway where it is not a neighbour.
    fn resolve(&mut self, gateway: IpAddr) -> io::Result<Resolved> {
        let network = IpNetwork::from(gateway);
        let header = [family_of(gateway), network.prefix(), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let message = Message::new(RTM_GETROUTE, 0, &header).address(RTA_DST, gateway);
        let answers = self.socket.query(message)?;
        let body = answers.first().map_or(&[][..], |answer| &answer.body);
        let mut resolved = Resolved { gateway, interface: 0 };
        for (kind, value) in netlink::attributes(body.get(12..).unwrap_or_default()) {
            match kind {
                RTA_OIF => resolved.interface = netlink::read_u32(value).unwrap_or(0),
                RTA_GATEWAY => resolved.gateway = netlink::read_address(value).unwrap_or(gateway),
                _ => {}
            }
        }
        let unicast = body.get(7) == Some(&TYPE_UNICAST);
        if resolved.interface == 0 || !unicast {
            return Err(io::Error::other(format!("next hop {gateway} is not reachable")));
        }
        Ok(resolved)
    }

    /// Reads nexthop objects of ours; those that stand for a gateway as it resolves now are used again.
    fn read_nexthops(&mut self) -> io::Result<()> {
        let header = [0; 8];
        let answers = match self.socket.query(Message::new(RTM_GETNEXTHOP, DUMP, &header)) {
            Ok(answers) => answers,
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                self.objects_supported = false;
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let mut nexthops = BTreeMap::new();
        let mut members_by_group = BTreeMap::new();
        self.orphans.clear();
        for answer in &answers {
            let Some(object) = parse_nexthop(answer) else { continue };
            self.next_id = self.next_id.max(object.id);
            if !object.members.is_empty() {
                members_by_group.insert(object.id, object.members);
                continue;
            }
            let Some(resolved) = object.resolved else { continue };
            let known = self.nexthops.iter().find(|(_, id)| **id == object.id);
            let gateway = known.map_or(resolved.gateway, |(gateway, _)| *gateway);
            if self.resolve(gateway).is_ok_and(|now| now == resolved) {
                nexthops.insert(gateway, object.id);
            } else {
                self.orphans.insert(object.id);
            }
        }
        self.nexthops = nexthops;
        self.groups.clear();
        let gateways: BTreeMap<u32, IpAddr> =
            self.nexthops.iter().map(|(gateway, id)| (*id, *gateway)).collect();
        for (id, members) in members_by_group {
            let known: Option<Vec<IpAddr>> = members.iter().map(|m| gateways.get(m).copied()).collect();
            match known {
                Some(list) if list.len() > 1 => {
                    self.groups.insert(list, id);
                }
                Some(_) | None => {
                    self.orphans.insert(id);
                }
            }
        }
        Ok(())
    }

    fn remove_unused_nexthops(&mut self) -> io::Result<()> {
        let mut used: HashSet<&Vec<IpAddr>> = HashSet::new();
        let mut last = None;
        for target in self.actual.values().chain(self.desired.values()) {
            if let Target::Via(gateways) = target
                && !last.replace(gateways).is_some_and(|last| Arc::ptr_eq(last, gateways))
            {
                used.insert(gateways);
            }
        }
        let gateways: BTreeSet<IpAddr> = used.iter().flat_map(|list| list.iter().copied()).collect();
        let mut ids: Vec<u32> = Vec::new();
        self.groups.retain(|list, id| {
            used.contains(list) || {
                ids.push(*id);
                false
            }
        });
        self.nexthops.retain(|gateway, id| {
            gateways.contains(gateway) || {
                ids.push(*id);
                false
            }
        });
        ids.extend(std::mem::take(&mut self.orphans));
        let header = [0; 8];
        let mut messages: Vec<Message> =
            ids.iter().map(|id| Message::new(RTM_DELNEXTHOP, 0, &header).u32(NHA_ID, *id)).collect();
        // A refusal means that it is gone already, with its link or its last member.
        self.socket.execute(&mut messages).map(|_| ())
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

fn nexthop_message(id: u32, resolved: &Resolved) -> Message {
    let header = [family_of(resolved.gateway), 0, PROTOCOL, 0, 0, 0, 0, 0];
    Message::new(RTM_NEWNEXTHOP, CREATE | EXCLUSIVE, &header)
        .u32(NHA_ID, id)
        .u32(NHA_OIF, resolved.interface)
        .address(NHA_GATEWAY, resolved.gateway)
}

fn parse_route(
    message: &Received,
    gateways: &BTreeMap<u32, IpAddr>,
    groups: &BTreeMap<u32, &Vec<IpAddr>>,
) -> Option<(IpNetwork, Target)> {
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
            RTA_GATEWAY => gateway = netlink::read_address(value),
            RTA_NH_ID => id = netlink::read_u32(value),
            RTA_PRIORITY => metric = netlink::read_u32(value)?,
            RTA_MULTIPATH => multipath = parse_multipath(value),
            _ => {}
        }
    }
    if metric != METRIC {
        return None;
    }
    let unspecified: IpAddr = if family == libc::AF_INET as u8 { [0; 4].into() } else { [0u8; 16].into() };
    let network = IpNetwork::new(destination.unwrap_or(unspecified), length).ok()?;
    let dead = read_flags(header) & NUD_FAILED_FLAGS != 0;
    let target = match (kind, id, gateway) {
        (TYPE_BLACKHOLE, _, _) => Target::Blackhole,
        (TYPE_UNREACHABLE, _, _) => Target::Unreachable,
        // An object that is not known any more, or a dead one: it differs from whatever is desired.
        _ if dead => Target::Via(Gateways::default()),
        (_, Some(id), _) => match (gateways.get(&id), groups.get(&id)) {
            (Some(gateway), _) => Target::Via(vec![*gateway].into()),
            (None, Some(list)) => Target::Via((*list).clone().into()),
            (None, None) => Target::Via(Gateways::default()),
        },
        (_, None, Some(gateway)) => Target::Via(vec![gateway].into()),
        (_, None, None) if !multipath.is_empty() => Target::Via(multipath.into()),
        (_, None, None) => Target::Link(interface),
    };
    Some((network, target))
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
        let gateway = netlink::attributes(hop).find(|(kind, _)| *kind == RTA_GATEWAY);
        gateways.extend(gateway.and_then(|(_, value)| netlink::read_address(value)));
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    gateways.sort_unstable();
    gateways
}

struct NexthopObject {
    id: u32,
    resolved: Option<Resolved>,
    members: Vec<u32>,
}

fn parse_nexthop(message: &Received) -> Option<NexthopObject> {
    let header = message.body.get(..8)?;
    if message.kind != RTM_NEWNEXTHOP || header[2] != PROTOCOL {
        return None;
    }
    let (mut id, mut interface, mut gateway, mut members) = (None, None, None, Vec::new());
    for (kind, value) in netlink::attributes(&message.body[8..]) {
        match kind {
            NHA_ID => id = netlink::read_u32(value),
            NHA_OIF => interface = netlink::read_u32(value),
            NHA_GATEWAY => gateway = netlink::read_address(value),
            NHA_GROUP => members = value.chunks_exact(8).filter_map(netlink::read_u32).collect(),
            _ => {}
        }
    }
    let resolved = gateway.zip(interface).map(|(gateway, interface)| Resolved { gateway, interface });
    Some(NexthopObject { id: id?, resolved, members })
}
