//! Nexthop objects of ours: one for each gateway, and groups of them for routes that share the load.
//!
//! A group is resilient where the kernel has that (5.12): a flow stays at its gateway while that is there, whatever
//! becomes of the others. So a group is changed in place where all its routes change alike, and one gateway may remain of it.
//! While it is one, the kernel does not note which flows use it, and shares all of them out with the next that comes.
//! An IPv4 route may lead to an IPv6 gateway (RFC 8950), and the gateways of a group may be of both families.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv6Addr};

use hashbrown::{HashMap, HashSet};
use ipnetwork::IpNetwork;

use super::{PROTOCOL, RTA_DST, RTA_GATEWAY, RTA_OIF, RTM_GETROUTE, TYPE_UNICAST, family_of};
use crate::netlink::{self, CREATE, DUMP, EXCLUSIVE, Message, NESTED, REPLACE, Received, Socket};

const RTM_NEWNEXTHOP: u16 = 104;
const RTM_DELNEXTHOP: u16 = 105;
const RTM_GETNEXTHOP: u16 = 106;

const RTA_VIA: u16 = 18;
const NHA_ID: u16 = 1;
const NHA_GROUP: u16 = 2;
const NHA_GROUP_TYPE: u16 = 3;
const NHA_OIF: u16 = 5;
const NHA_GATEWAY: u16 = 6;
const NHA_RES_GROUP: u16 = 12;
const NHA_RES_GROUP_BUCKETS: u16 = 1;
const NHA_RES_GROUP_IDLE_TIMER: u16 = 2;
const NHA_RES_GROUP_UNBALANCED_TIMER: u16 = 3;
const GROUP_TYPE_MULTIPATH: u16 = 0;
const GROUP_TYPE_RESILIENT: u16 = 1;

/// Objects of ours have ids from here on.
const ID_BASE: u32 = 0x0b40_0000;
/// Shares of a resilient group: eight for each of sixteen gateways.
const BUCKETS: u16 = 128;
/// Hundredths of a second of silence, after which what a share carried may go to a gateway that is new.
const IDLE_TIME: u32 = 30 * 100;
/// Hundredths of a second, after which a gateway that is new gets its share from what is never silent.
const UNBALANCED_TIME: u32 = 600 * 100;

/// A gateway resolved to a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Resolved {
    pub(super) gateway: IpAddr,
    pub(super) interface: u32,
}

/// A link-local address together with its link: the interface index in octets 4 to 7, which are zero on the wire.
pub(super) fn with_link(address: IpAddr, interface: u32) -> IpAddr {
    let IpAddr::V6(v6) = address else { return address };
    if !v6.is_unicast_link_local() {
        return address;
    }
    let mut octets = v6.octets();
    octets[4..8].copy_from_slice(&interface.to_be_bytes());
    Ipv6Addr::from(octets).into()
}

/// The address as it is on the wire, and the link of a link-local one that has one.
pub(super) fn without_link(address: IpAddr) -> (IpAddr, Option<u32>) {
    let IpAddr::V6(v6) = address else { return (address, None) };
    let mut octets = v6.octets();
    let interface = u32::from_be_bytes([octets[4], octets[5], octets[6], octets[7]]);
    if interface == 0 || !v6.is_unicast_link_local() {
        return (address, None);
    }
    octets[4..8].fill(0);
    (Ipv6Addr::from(octets).into(), Some(interface))
}

/// The gateway that a route of either family has by one of these attributes.
pub(super) fn gateway_of(kind: u16, value: &[u8]) -> Option<IpAddr> {
    match kind {
        RTA_GATEWAY => netlink::read_address(value),
        // struct rtvia: family, address.
        RTA_VIA => netlink::read_address(value.get(2..)?),
        _ => None,
    }
}

/// The attribute by which a route of a family names its gateway.
pub(super) fn put_gateway(out: &mut Vec<u8>, destination: IpNetwork, gateway: IpAddr) {
    let octets = match gateway {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    if destination.is_ipv4() == gateway.is_ipv4() {
        return netlink::put_attribute(out, RTA_GATEWAY, &octets);
    }
    let family = u16::from(family_of(gateway)).to_ne_bytes();
    netlink::put_attribute(out, RTA_VIA, &[&family[..], &octets].concat());
}

/// The link a gateway is reached on; through another gateway where it is not a neighbour.
pub(super) fn resolve(socket: &mut Socket, gateway: IpAddr) -> io::Result<Resolved> {
    let (address, link) = without_link(gateway);
    let prefix = IpNetwork::from(address).prefix();
    let header = [family_of(address), prefix, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut message = Message::new(RTM_GETROUTE, 0, &header).address(RTA_DST, address);
    if let Some(link) = link {
        message = message.u32(RTA_OIF, link);
    }
    let unreachable = |why: &dyn std::fmt::Display| {
        io::Error::other(format!("next hop {} is not reachable{why}", super::gateway_text(gateway)))
    };
    let answers = socket.query(message).map_err(|error| unreachable(&format!(": {error}")))?;
    let body = answers.first().map_or(&[][..], |answer| &answer.body);
    let mut resolved = Resolved { gateway: address, interface: 0 };
    for (kind, value) in netlink::attributes(body.get(12..).unwrap_or_default()) {
        match kind {
            RTA_OIF => resolved.interface = netlink::read_u32(value).unwrap_or(0),
            RTA_GATEWAY | RTA_VIA => resolved.gateway = gateway_of(kind, value).unwrap_or(address),
            _ => {}
        }
    }
    let unicast = body.get(7) == Some(&TYPE_UNICAST);
    let elsewhere = link.is_some_and(|link| link != resolved.interface);
    if resolved.interface == 0 || !unicast || elsewhere {
        return Err(unreachable(&""));
    }
    Ok(resolved)
}

#[derive(Debug)]
pub(super) struct Nexthops {
    /// The kernel has such objects.
    supported: bool,
    /// And resilient groups.
    resilient: bool,
    next_id: u32,
    id_by_gateway: BTreeMap<IpAddr, u32>,
    groups: BTreeMap<u32, Group>,
    /// One of the groups of each list.
    id_by_members: BTreeMap<Vec<IpAddr>, u32>,
    /// Which group a route leads to, of those that lead to one.
    group_by_route: HashMap<IpNetwork, u32>,
    routes_by_group: HashMap<u32, usize>,
    /// Objects of ours that no entry stands for, left by an earlier run.
    orphans: BTreeSet<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Group {
    members: Vec<IpAddr>,
    is_resilient: bool,
}

/// What a route's object stands for.
pub(super) enum Found<'a> {
    Gateway(IpAddr),
    Group(&'a [IpAddr]),
}

impl Default for Nexthops {
    fn default() -> Nexthops {
        Nexthops {
            supported: true,
            resilient: true,
            next_id: ID_BASE,
            id_by_gateway: BTreeMap::new(),
            groups: BTreeMap::new(),
            id_by_members: BTreeMap::new(),
            group_by_route: HashMap::new(),
            routes_by_group: HashMap::new(),
            orphans: BTreeSet::new(),
        }
    }
}

impl Nexthops {
    pub(super) fn are_supported(&self) -> bool {
        self.supported
    }

    /// The object for these gateways, made where there is none, and whether it is a group.
    pub(super) fn id(&mut self, socket: &mut Socket, gateways: &[IpAddr]) -> io::Result<(u32, bool)> {
        if let [gateway] = gateways {
            return Ok((self.id_of_gateway(socket, *gateway)?, false));
        }
        if let Some(id) = self.id_by_members.get(gateways) {
            return Ok((*id, true));
        }
        let members = self.ids_of_gateways(socket, gateways)?;
        let id = self.allocate();
        if self.resilient {
            match socket.request(group_message(id, &members, true, CREATE | EXCLUSIVE)) {
                Ok(()) => {
                    self.insert_group(id, gateways.to_vec(), true);
                    return Ok((id, true));
                }
                Err(error) if is_unknown(&error) => self.resilient = false,
                Err(error) => return Err(error),
            }
        }
        socket.request(group_message(id, &members, false, CREATE | EXCLUSIVE))?;
        self.insert_group(id, gateways.to_vec(), false);
        Ok((id, true))
    }

    /// Makes a group one of these gateways, for all routes that lead to it.
    pub(super) fn change(&mut self, socket: &mut Socket, id: u32, gateways: &[IpAddr]) -> io::Result<()> {
        let Some(group) = self.groups.get(&id).cloned() else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let members = self.ids_of_gateways(socket, gateways)?;
        socket.request(group_message(id, &members, group.is_resilient, CREATE | REPLACE))?;
        self.remove_group(id);
        self.insert_group(id, gateways.to_vec(), group.is_resilient);
        Ok(())
    }

    fn id_of_gateway(&mut self, socket: &mut Socket, gateway: IpAddr) -> io::Result<u32> {
        if let Some(id) = self.id_by_gateway.get(&gateway) {
            return Ok(*id);
        }
        let resolved = resolve(socket, gateway)?;
        let id = self.allocate();
        socket.request(gateway_message(id, &resolved))?;
        self.id_by_gateway.insert(gateway, id);
        Ok(id)
    }

    fn ids_of_gateways(&mut self, socket: &mut Socket, gateways: &[IpAddr]) -> io::Result<Vec<u32>> {
        gateways.iter().map(|gateway| self.id_of_gateway(socket, *gateway)).collect()
    }

    fn allocate(&mut self) -> u32 {
        self.next_id += 1;
        self.next_id
    }

    fn insert_group(&mut self, id: u32, members: Vec<IpAddr>, is_resilient: bool) {
        self.id_by_members.entry(members.clone()).or_insert(id);
        self.groups.insert(id, Group { members, is_resilient });
    }

    fn remove_group(&mut self, id: u32) {
        let Some(group) = self.groups.remove(&id) else { return };
        if self.id_by_members.get(&group.members) == Some(&id) {
            self.id_by_members.remove(&group.members);
        }
    }

    pub(super) fn group_of(&self, route: &IpNetwork) -> Option<u32> {
        self.group_by_route.get(route).copied()
    }

    /// How many routes lead to a group.
    pub(super) fn routes_of(&self, group: u32) -> usize {
        self.routes_by_group.get(&group).copied().unwrap_or(0)
    }

    /// Notes which group a route leads to now, if any.
    pub(super) fn set_group(&mut self, route: IpNetwork, group: Option<u32>) {
        let before = match group {
            Some(group) => {
                *self.routes_by_group.entry(group).or_default() += 1;
                self.group_by_route.insert(route, group)
            }
            None if self.group_by_route.is_empty() => None,
            None => self.group_by_route.remove(&route),
        };
        let Some(before) = before else { return };
        if let Some(count) = self.routes_by_group.get_mut(&before) {
            *count -= 1;
            if *count == 0 {
                self.routes_by_group.remove(&before);
            }
        }
    }

    /// What the objects stand for, by id.
    pub(super) fn found(&self) -> BTreeMap<u32, Found<'_>> {
        let gateways = self.id_by_gateway.iter().map(|(gateway, id)| (*id, Found::Gateway(*gateway)));
        let groups = self.groups.iter().map(|(id, group)| (*id, Found::Group(&group.members)));
        gateways.chain(groups).collect()
    }

    /// Reads the objects of ours; those that stand for a gateway as it resolves now are used again. Which route leads to which
    /// group is forgotten.
    pub(super) fn read(&mut self, socket: &mut Socket) -> io::Result<()> {
        self.group_by_route.clear();
        self.routes_by_group.clear();
        let answers = match socket.query(Message::new(RTM_GETNEXTHOP, DUMP, &[0; 8])) {
            Ok(answers) => answers,
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                self.supported = false;
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let gateway_by_id: HashMap<u32, IpAddr> =
            self.id_by_gateway.iter().map(|(gateway, id)| (*id, *gateway)).collect();
        let mut found = BTreeMap::new();
        let mut groups = Vec::new();
        self.orphans.clear();
        for answer in &answers {
            let Some(object) = parse(answer) else { continue };
            self.next_id = self.next_id.max(object.id);
            if !object.members.is_empty() {
                groups.push(object);
                continue;
            }
            let Some(resolved) = object.resolved else { continue };
            let itself = with_link(resolved.gateway, resolved.interface);
            let gateway = gateway_by_id.get(&object.id).copied().unwrap_or(itself);
            if resolve(socket, gateway).is_ok_and(|now| now == resolved) {
                found.insert(gateway, object.id);
            } else {
                self.orphans.insert(object.id);
            }
        }
        self.id_by_gateway = found;
        self.take_groups(groups);
        Ok(())
    }

    fn take_groups(&mut self, groups: Vec<Object>) {
        self.groups.clear();
        self.id_by_members.clear();
        let gateway_by_id: HashMap<u32, IpAddr> =
            self.id_by_gateway.iter().map(|(gateway, id)| (*id, *gateway)).collect();
        for Object { id, members, is_resilient, .. } in groups {
            let known: Option<Vec<IpAddr>> = members.iter().map(|m| gateway_by_id.get(m).copied()).collect();
            match known {
                Some(members) => self.insert_group(id, members, is_resilient),
                None => drop(self.orphans.insert(id)),
            }
        }
    }

    /// Removes what no route leads to; of gateways, all but these and those of groups.
    pub(super) fn remove_unused(&mut self, socket: &mut Socket, mut used: HashSet<IpAddr>) -> io::Result<()> {
        let all: Vec<u32> = self.groups.keys().copied().collect();
        let mut ids: Vec<u32> = all.into_iter().filter(|id| !self.routes_by_group.contains_key(id)).collect();
        ids.iter().for_each(|id| self.remove_group(*id));
        used.extend(self.groups.values().flat_map(|group| group.members.iter().copied()));
        self.id_by_gateway.retain(|gateway, id| {
            used.contains(gateway) || {
                ids.push(*id);
                false
            }
        });
        ids.extend(std::mem::take(&mut self.orphans));
        let mut messages: Vec<Message> =
            ids.iter().map(|id| Message::new(RTM_DELNEXTHOP, 0, &[0; 8]).u32(NHA_ID, *id)).collect();
        // A refusal means that it is gone already, with its link or its last member.
        socket.execute(&mut messages).map(|_| ())
    }
}

/// The kernel does not know such groups.
fn is_unknown(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported)
}

/// struct nhmsg: family, scope, protocol, reserved, flags.
fn header(family: u8) -> [u8; 8] {
    [family, 0, PROTOCOL, 0, 0, 0, 0, 0]
}

fn gateway_message(id: u32, resolved: &Resolved) -> Message {
    Message::new(RTM_NEWNEXTHOP, CREATE | EXCLUSIVE, &header(family_of(resolved.gateway)))
        .u32(NHA_ID, id)
        .u32(NHA_OIF, resolved.interface)
        .address(NHA_GATEWAY, resolved.gateway)
}

fn group_message(id: u32, members: &[u32], is_resilient: bool, flags: u16) -> Message {
    // struct nexthop_grp: id, weight - 1, three octets reserved.
    let members: Vec<u8> = members.iter().flat_map(|id| [id.to_ne_bytes(), [0; 4]].concat()).collect();
    let message = Message::new(RTM_NEWNEXTHOP, flags, &header(libc::AF_UNSPEC as u8))
        .u32(NHA_ID, id)
        .attribute(NHA_GROUP, &members);
    if !is_resilient {
        return message.attribute(NHA_GROUP_TYPE, &GROUP_TYPE_MULTIPATH.to_ne_bytes());
    }
    let mut shares = Vec::new();
    netlink::put_attribute(&mut shares, NHA_RES_GROUP_BUCKETS, &BUCKETS.to_ne_bytes());
    netlink::put_attribute(&mut shares, NHA_RES_GROUP_IDLE_TIMER, &IDLE_TIME.to_ne_bytes());
    netlink::put_attribute(&mut shares, NHA_RES_GROUP_UNBALANCED_TIMER, &UNBALANCED_TIME.to_ne_bytes());
    message
        .attribute(NHA_GROUP_TYPE, &GROUP_TYPE_RESILIENT.to_ne_bytes())
        .attribute(NHA_RES_GROUP | NESTED, &shares)
}

struct Object {
    id: u32,
    resolved: Option<Resolved>,
    members: Vec<u32>,
    is_resilient: bool,
}

fn parse(message: &Received) -> Option<Object> {
    let header = message.body.get(..8)?;
    if message.kind != RTM_NEWNEXTHOP || header[2] != PROTOCOL {
        return None;
    }
    let (mut id, mut interface, mut gateway) = (None, None, None);
    let (mut members, mut is_resilient) = (Vec::new(), false);
    for (kind, value) in netlink::attributes(&message.body[8..]) {
        match kind {
            NHA_ID => id = netlink::read_u32(value),
            NHA_OIF => interface = netlink::read_u32(value),
            NHA_GATEWAY => gateway = netlink::read_address(value),
            NHA_GROUP => members = value.chunks_exact(8).filter_map(netlink::read_u32).collect(),
            NHA_GROUP_TYPE => is_resilient = value.get(..2) == Some(&GROUP_TYPE_RESILIENT.to_ne_bytes()),
            _ => {}
        }
    }
    let resolved = gateway.zip(interface).map(|(gateway, interface)| Resolved { gateway, interface });
    Some(Object { id: id?, resolved, members, is_resilient })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_local_address_carries_its_link_and_others_are_left_alone() {
        let bare: IpAddr = "fe80::a8bb:ccff:fe00:1".parse().expect("an address");
        let whole = with_link(bare, 0x0001_0002);
        assert_eq!(whole.to_string(), "fe80:0:1:2:a8bb:ccff:fe00:1");
        assert_eq!(without_link(whole), (bare, Some(0x0001_0002)));
        assert_eq!(without_link(bare), (bare, None));
        for other in ["192.0.2.1", "2001:db8:1:2::1"] {
            let other: IpAddr = other.parse().expect("an address");
            assert_eq!((with_link(other, 7), without_link(other)), (other, (other, None)));
        }
    }

    #[test]
    fn the_group_of_each_route_is_counted() {
        let mut nexthops = Nexthops::default();
        let route = |text: &str| text.parse::<IpNetwork>().expect("a network");
        nexthops.set_group(route("10.1.0.0/16"), Some(7));
        nexthops.set_group(route("10.2.0.0/16"), Some(7));
        nexthops.set_group(route("10.2.0.0/16"), Some(7));
        assert_eq!(nexthops.routes_of(7), 2);
        nexthops.set_group(route("10.2.0.0/16"), Some(8));
        nexthops.set_group(route("10.1.0.0/16"), None);
        assert_eq!((nexthops.routes_of(7), nexthops.routes_of(8)), (0, 1));
        assert_eq!(nexthops.group_of(&route("10.2.0.0/16")), Some(8));
    }
}
