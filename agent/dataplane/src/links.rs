//! Links of pods: a veth pair whose ends are made in their final namespaces, addresses, routes and neighbours.
//!
//! ```text
//!  pod namespace                             node namespace
//!  eth0  10.244.0.66/32  ------- veth ------ swp<hash>   (ee:ee:ee:ee:ee:ee, no address)
//!  default via 169.254.1.1, fe80::1          route to 10.244.0.66 on it, protocol 180
//! ```
//!
//! The gateway addresses exist on no interface: a permanent neighbour entry stands for them, so no ARP or ND is
//! ever waited for. A namespace move would cost an RCU grace period; naming the peer's namespace at creation does not.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ebpf_common::FORWARD_PORTS;

use crate::netlink::{self, CREATE, DUMP, EXCLUSIVE, Message, REPLACE, Refusal, Socket};

const IFF_UP: u32 = 1;
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_SETLINK: u16 = 19;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_NEWNEIGH: u16 = 28;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_LINKINFO: u16 = 18;
const IFLA_GROUP: u16 = 27;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_FLAGS: u16 = 8;
const IFA_F_NODAD: u32 = 0x02;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NUD_PERMANENT: u16 = 0x80;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTNH_F_ONLINK: u32 = 4;
const SCOPE_LINK: u8 = 253;
const PROTOCOL_BOOT: u8 = 3;

/// Names of host ends start with this.
pub const HOST_LINK_PREFIX: &str = "swp";
/// The pods' IPv4 gateway; no interface has it.
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The pods' IPv6 gateway; no interface has it.
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// The hardware address of every host end: locally administered, and the same for all, so pods may be told before.
pub const HOST_MAC: [u8; 6] = [0xee; 6];

/// The group of links that are about to be deleted; a number that nobody else would choose.
const DOOMED_GROUP: u32 = u32::from_be_bytes(*b"swrp");

/// Added to an interface's index: more than the metric of routes that have none, which IPv6 takes for 1024.
const METRIC_BEHIND: u32 = 1024;

/// Times, a millisecond apart, that a new link is asked for its carrier.
const OPERATIONAL_TRIES: u32 = 2000;

#[derive(Clone, Debug)]
pub struct PodLinkConfig<'a> {
    /// Name of the host end, at most 15 octets.
    pub host_name: &'a str,
    /// Name of the pod's end.
    pub pod_name: &'a str,
    /// The pod's network namespace.
    pub netns: &'a File,
    /// One per family.
    pub addresses: &'a [IpAddr],
    /// Octets.
    pub mtu: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodLink {
    /// Interface index of the host end.
    pub host_index: u32,
    pub pod_mac: [u8; 6],
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    pub mtu: u32,
}

/// The name of the host end for a container's interface.
pub fn host_link_name(container_id: &str, interface: &str) -> String {
    // FNV-1a, 64 bits, of which 48 fit the name.
    let hash = container_id
        .bytes()
        .chain([b'/'])
        .chain(interface.bytes())
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, octet| {
            (hash ^ u64::from(octet)).wrapping_mul(0x100_0000_01b3)
        });
    format!("{HOST_LINK_PREFIX}{:012x}", hash >> 16)
}

#[derive(Debug)]
pub struct Links {
    socket: Socket,
}

impl Links {
    /// Works in the calling thread's network namespace.
    pub fn open() -> io::Result<Links> {
        Ok(Links { socket: Socket::open()? })
    }

    /// Makes the pair and all that the pod's end needs. A host end of the same name is replaced.
    pub fn add_pod(&mut self, config: &PodLinkConfig<'_>) -> io::Result<PodLink> {
        let pod_mac = pod_mac(config.addresses);
        let create = veth_message(config, pod_mac);
        match self.socket.request(create.clone()) {
            Err(error)
                if error.kind() == io::ErrorKind::AlreadyExists && self.exists(config.host_name)? =>
            {
                self.remove(config.host_name)?;
                self.socket.request(create)
            }
            result => result,
        }
        .map_err(|error| annotate(error, format!("creating veth {}", config.host_name)))?;
        let configured = self.configure(config, pod_mac);
        if configured.is_err() {
            // Best effort: the error of the setup is the one to report.
            let _ = self.remove(config.host_name);
        }
        configured
    }

    fn configure(&mut self, config: &PodLinkConfig<'_>, pod_mac: [u8; 6]) -> io::Result<PodLink> {
        let name = config.host_name;
        let host_index = self.index(name)?;
        // Routers are never listened to here, and packets are forwarded also where new links are told otherwise.
        write_sysctl_if_present(&format!("ipv6/conf/{name}/accept_ra"), "0")?;
        write_sysctl_if_present(&format!("ipv6/conf/{name}/forwarding"), "1")?;
        // Before the link is up, so that it gets no address of its own.
        let mut host = vec![without_address(host_index), forwarding(host_index), set_up(host_index)];
        host.extend(config.addresses.iter().map(|address| neighbour(*address, host_index, pod_mac)));
        let mut refusals = self.socket.execute(&mut host)?;
        // Where IPv6 is off there is none to get.
        refusals[0] = refusals[0].take().filter(|refusal| refusal.errno != libc::EAFNOSUPPORT);
        if let Some(refusal) = refusals.into_iter().flatten().next() {
            return Err(annotate(refusal.into(), format!("setting up {name}")));
        }
        let mut pod = Socket::open_in(config.netns)
            .map_err(|error| annotate(error, "entering the pod's network namespace".to_owned()))?;
        let pod_index = index_of(&mut pod, config.pod_name)?;
        let doing = || format!("setting up {} in the pod", config.pod_name);
        let mut messages = vec![set_up(1), set_up(pod_index)];
        messages.extend(config.addresses.iter().flat_map(|address| pod_messages(*address, pod_index)));
        let first_route = messages.len();
        messages.extend(pod_routes(config.addresses, pod_index, None));
        let refusals = pod.execute(&mut messages)?;
        let is_second = |at: usize, refusal: &Refusal| at >= first_route && refusal.errno == libc::EEXIST;
        let refused = |(at, refusal): (usize, Option<Refusal>)| Some((at, refusal?));
        let refused: Vec<_> = refusals.into_iter().enumerate().filter_map(refused).collect();
        if let Some((_, refusal)) = refused.iter().find(|(at, refusal)| !is_second(*at, refusal)) {
            return Err(annotate(refusal.clone().into(), doing()));
        }
        if !refused.is_empty() {
            // Another interface of the pod leads out already: this one stands behind it.
            let metric = Some(METRIC_BEHIND + pod_index);
            run(&mut pod, pod_routes(config.addresses, pod_index, metric), &doing())?;
        }
        await_operational(&mut pod, config.pod_name)?;
        await_operational(&mut self.socket, name)?;
        Ok(PodLink { host_index, pod_mac })
    }

    /// Deletes a link; one that is not there is fine. Takes an RCU grace period, some 20 ms.
    pub fn remove(&mut self, name: &str) -> io::Result<()> {
        self.delete(Message::new(RTM_DELLINK, 0, &link_header(0, 0, 0)).string(IFLA_IFNAME, name))
    }

    /// Deletes all of these in the time of one. A link that is not there, or has another name, is left out.
    pub fn remove_all(&mut self, links: &[(u32, &str)]) -> io::Result<()> {
        let present = self.list()?;
        let is_present =
            |index: u32, name: &str| present.iter().any(|link| link.index == index && link.name == name);
        let doomed = links.iter().filter(|(index, name)| is_present(*index, name)).map(|(index, _)| *index);
        let doomed: Vec<u32> = doomed.collect();
        let mut grouped: Vec<Message> = match doomed.as_slice() {
            [] => return Ok(()),
            [index] => return self.delete(Message::new(RTM_DELLINK, 0, &link_header(*index, 0, 0))),
            indexes => indexes.iter().map(|index| doom(*index)).collect(),
        };
        for refusal in self.socket.execute(&mut grouped)?.into_iter().flatten() {
            let error = io::Error::from(refusal);
            if !is_absent(&error) {
                return Err(error);
            }
        }
        self.delete(Message::new(RTM_DELLINK, 0, &link_header(0, 0, 0)).u32(IFLA_GROUP, DOOMED_GROUP))
    }

    /// Deletes; what is not there is fine.
    fn delete(&mut self, message: Message) -> io::Result<()> {
        match self.socket.request(message) {
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) || is_absent(&error) => Ok(()),
            result => result,
        }
    }

    /// The interface index of a link.
    pub fn index(&mut self, name: &str) -> io::Result<u32> {
        index_of(&mut self.socket, name)
    }

    pub fn exists(&mut self, name: &str) -> io::Result<bool> {
        Ok(self.list()?.iter().any(|link| link.name == name))
    }

    /// All links of the namespace.
    pub fn list(&mut self) -> io::Result<Vec<Link>> {
        let header = [0; 16];
        let answers = self.socket.query(Message::new(RTM_GETLINK, DUMP, &header))?;
        Ok(answers.iter().filter_map(|answer| parse_link(&answer.body)).collect())
    }

    /// Names of links of this namespace that stand on another one, as a VLAN does.
    pub fn above(&mut self, index: u32) -> io::Result<Vec<String>> {
        const IFLA_LINK_NETNSID: u16 = 37;
        let answers = self.socket.query(Message::new(RTM_GETLINK, DUMP, &[0; 16]))?;
        let stands_on = |body: &[u8]| {
            let (mut lower, mut elsewhere) = (None, false);
            for (kind, value) in netlink::attributes(body.get(16..).unwrap_or_default()) {
                match kind {
                    IFLA_LINK => lower = netlink::read_u32(value),
                    IFLA_LINK_NETNSID => elsewhere = true,
                    _ => {}
                }
            }
            lower == Some(index) && !elsewhere
        };
        let above = answers.iter().filter(|answer| stands_on(&answer.body));
        let above = above.filter_map(|answer| parse_link(&answer.body));
        // Some say that they stand on themselves.
        Ok(above.filter(|link| link.index != index).map(|link| link.name).collect())
    }

    /// The host ends of pods.
    pub fn pods(&mut self) -> io::Result<Vec<Link>> {
        let mut links = self.list()?;
        links.retain(|link| link.name.starts_with(HOST_LINK_PREFIX));
        Ok(links)
    }

    /// Where others reach this host: all its addresses but those that mean something on one link or in it only.
    pub fn node_addresses(&mut self) -> io::Result<BTreeSet<IpAddr>> {
        let header = [0; 8];
        let answers = self.socket.query(Message::new(RTM_GETADDR, DUMP, &header))?;
        Ok(answers.iter().filter_map(|answer| own_address(&answer.body)).filter(is_reachable).collect())
    }

    /// The link that carries an address of this node; its MTU is the pods'.
    pub fn uplink(&mut self, address: IpAddr) -> io::Result<Link> {
        let header = [0; 8];
        let answers = self.socket.query(Message::new(RTM_GETADDR, DUMP, &header))?;
        let carries = |body: &[u8]| {
            netlink::attributes(body.get(8..).unwrap_or_default()).any(|(kind, value)| {
                matches!(kind, IFA_ADDRESS | IFA_LOCAL) && netlink::read_address(value) == Some(address)
            })
        };
        let index = answers
            .iter()
            .find(|answer| carries(&answer.body))
            .and_then(|answer| netlink::read_u32(answer.body.get(4..)?))
            .ok_or_else(|| io::Error::other(format!("no interface of this node has address {address}")))?;
        let link = self.list()?.into_iter().find(|link| link.index == index);
        link.ok_or_else(|| io::Error::other(format!("the interface of {address} vanished")))
    }
}

/// Sets what a node that forwards for pods needs: forwarding on, reverse path filter off, and ports set aside for
/// clients beyond the node whose backends are beyond it too, and for pods that ask hosts outside of the cluster.
///
/// The effective filter is the maximum of `all` and the interface's own: `all` must be 0 too.
pub fn prepare_host(uplink: &str) -> io::Result<()> {
    for scope in ["all", "default", uplink] {
        write_sysctl(&format!("ipv4/conf/{scope}/rp_filter"), "0")?;
        write_sysctl(&format!("ipv4/conf/{scope}/send_redirects"), "0")?;
    }
    // With forwarding on, router advertisements are only taken at 2; else the default route would go.
    write_sysctl_if_present(&format!("ipv6/conf/{uplink}/accept_ra"), "2")?;
    write_sysctl("ipv4/ip_forward", "1")?;
    write_sysctl_if_present("ipv6/conf/all/forwarding", "1")?;
    for family in ["ipv4", "ipv6"] {
        if let Err(error) = raise_neighbours(family) {
            tracing::warn!(%error, family, "the kernel may have no room for the link addresses of all nodes and pods");
        }
    }
    // Without that a flow still takes no port that a socket has.
    if let Err(error) = reserve_ports(FORWARD_PORTS) {
        tracing::warn!(%error, "sockets of the node may choose ports that flows through it have");
    }
    Ok(())
}

/// Link addresses that a family's table may hold before the kernel tidies up, before it does so at once, and at most. Its
/// own 1,024 are for the whole machine, pods' namespaces included: a mesh of 1,000 nodes leaves nothing to pods.
const NEIGHBOURS: [(&str, u32); 3] = [("gc_thresh3", 65536), ("gc_thresh2", 32768), ("gc_thresh1", 16384)];

/// Only the first namespace has these keys, as there is one table for all.
fn raise_neighbours(family: &str) -> io::Result<()> {
    for (key, least) in NEIGHBOURS {
        let key = format!("{family}/neigh/default/{key}");
        match fs::read_to_string(format!("/proc/sys/net/{key}")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Ok(now) if now.trim().parse().is_ok_and(|now: u32| now >= least) => {}
            Ok(_) | Err(_) => write_sysctl(&key, &least.to_string())?,
        }
    }
    Ok(())
}

/// Keeps the host's sockets from choosing the ports by themselves; what was reserved before stays.
fn reserve_ports((first, last): (u16, u16)) -> io::Result<()> {
    const KEY: &str = "ipv4/ip_local_reserved_ports";
    let path = format!("/proc/sys/net/{KEY}");
    let now = fs::read_to_string(&path).map_err(|error| annotate(error, format!("reading {path}")))?;
    let now = now.trim();
    if covers(now, first, last) {
        return Ok(());
    }
    let comma = if now.is_empty() { "" } else { "," };
    write_sysctl(KEY, &format!("{now}{comma}{first}-{last}"))
}

/// Whether one range of a list such as `8080,49152-65535` holds all these ports. The kernel merges ranges.
fn covers(list: &str, first: u16, last: u16) -> bool {
    list.split(',').any(|range| {
        let (from, to) = range.split_once('-').unwrap_or((range, range));
        from.trim().parse().is_ok_and(|from: u16| from <= first)
            && to.trim().parse().is_ok_and(|to: u16| to >= last)
    })
}

/// The address of an RTM_NEWADDR: of a point-to-point link, this end's.
fn own_address(body: &[u8]) -> Option<IpAddr> {
    let find = |wanted: u16| {
        netlink::attributes(body.get(8..).unwrap_or_default())
            .find(|(kind, _)| *kind == wanted)
            .and_then(|(_, value)| netlink::read_address(value))
    };
    find(IFA_LOCAL).or_else(|| find(IFA_ADDRESS))
}

fn is_reachable(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local(),
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local(),
    }
}

fn write_sysctl(key: &str, value: &str) -> io::Result<()> {
    let path = format!("/proc/sys/net/{key}");
    let now = fs::read_to_string(&path).map_err(|error| annotate(error, format!("reading {path}")))?;
    if now.trim() == value {
        return Ok(());
    }
    fs::write(&path, value).map_err(|error| annotate(error, format!("writing {value} to {path}")))
}

/// For keys of IPv6, which may be disabled.
fn write_sysctl_if_present(key: &str, value: &str) -> io::Result<()> {
    match write_sysctl(key, value) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn annotate(error: io::Error, doing: String) -> io::Error {
    io::Error::new(error.kind(), format!("{doing}: {error}"))
}

fn is_absent(error: &io::Error) -> bool {
    let text = io::Error::from_raw_os_error(libc::ENODEV).to_string();
    error.kind() == io::ErrorKind::NotFound || error.to_string().starts_with(&text)
}

/// The hardware address of a pod's end: 02:fe and the IPv4 address, or the last four octets of the IPv6 one: readable in a capture.
pub fn pod_mac(addresses: &[IpAddr]) -> [u8; 6] {
    let preferred = addresses.iter().find(|address| address.is_ipv4()).or(addresses.first());
    let tail = match preferred {
        Some(IpAddr::V4(v4)) => v4.octets(),
        Some(IpAddr::V6(v6)) => {
            let octets = v6.octets();
            [octets[12], octets[13], octets[14], octets[15]]
        }
        None => [0; 4],
    };
    [0x02, 0xfe, tail[0], tail[1], tail[2], tail[3]]
}

/// Puts a link into the group of those to be deleted.
fn doom(index: u32) -> Message {
    Message::new(RTM_SETLINK, 0, &link_header(index, 0, 0)).u32(IFLA_GROUP, DOOMED_GROUP)
}

/// struct ifinfomsg.
fn link_header(index: u32, flags: u32, change: u32) -> Vec<u8> {
    let mut header = vec![0; 4];
    header.extend_from_slice(&index.to_ne_bytes());
    header.extend_from_slice(&flags.to_ne_bytes());
    header.extend_from_slice(&change.to_ne_bytes());
    header
}

fn veth_message(config: &PodLinkConfig<'_>, pod_mac: [u8; 6]) -> Message {
    use std::os::fd::AsRawFd;
    let mut peer = link_header(0, 0, 0);
    netlink::put_attribute(&mut peer, IFLA_IFNAME, &[config.pod_name.as_bytes(), &[0]].concat());
    netlink::put_attribute(&mut peer, IFLA_ADDRESS, &pod_mac);
    netlink::put_attribute(&mut peer, IFLA_MTU, &config.mtu.to_ne_bytes());
    netlink::put_attribute(&mut peer, IFLA_NET_NS_FD, &config.netns.as_raw_fd().to_ne_bytes());
    let mut data = Vec::new();
    netlink::put_attribute(&mut data, VETH_INFO_PEER, &peer);
    let mut info = Vec::new();
    netlink::put_attribute(&mut info, IFLA_INFO_KIND, b"veth");
    netlink::put_attribute(&mut info, IFLA_INFO_DATA, &data);
    Message::new(RTM_NEWLINK, CREATE | EXCLUSIVE, &link_header(0, 0, 0))
        .string(IFLA_IFNAME, config.host_name)
        .attribute(IFLA_ADDRESS, &HOST_MAC)
        .u32(IFLA_MTU, config.mtu)
        .attribute(IFLA_LINKINFO, &info)
}

fn set_up(index: u32) -> Message {
    Message::new(RTM_NEWLINK, 0, &link_header(index, IFF_UP, IFF_UP))
}

/// Keeps the kernel from giving a link an IPv6 address: nobody asks for one of the host's end, and to make it certain
/// that nobody else has it takes a second.
fn without_address(index: u32) -> Message {
    const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
    const MODE_NONE: u8 = 1;
    let mut of_family = Vec::new();
    netlink::put_attribute(&mut of_family, IFLA_INET6_ADDR_GEN_MODE, &[MODE_NONE]);
    of_link(index, libc::AF_INET6, &of_family)
}

/// Forwarding of IPv4 on and its reverse path filter off, as by /proc/sys/net/ipv4/conf.
fn forwarding(index: u32) -> Message {
    const IFLA_INET_CONF: u16 = 1;
    const FORWARDING: u16 = 1;
    const RP_FILTER: u16 = 8;
    let (mut settings, mut of_family) = (Vec::new(), Vec::new());
    netlink::put_attribute(&mut settings, FORWARDING, &1u32.to_ne_bytes());
    netlink::put_attribute(&mut settings, RP_FILTER, &0u32.to_ne_bytes());
    netlink::put_attribute(&mut of_family, IFLA_INET_CONF, &settings);
    of_link(index, libc::AF_INET, &of_family)
}

/// What one family shall be like on a link.
fn of_link(index: u32, family: i32, settings: &[u8]) -> Message {
    const IFLA_AF_SPEC: u16 = 26;
    let mut families = Vec::new();
    netlink::put_attribute(&mut families, family as u16, settings);
    Message::new(RTM_SETLINK, 0, &link_header(index, 0, 0)).attribute(IFLA_AF_SPEC, &families)
}

fn family_of(address: IpAddr) -> u8 {
    if address.is_ipv4() { libc::AF_INET as u8 } else { libc::AF_INET6 as u8 }
}

fn neighbour(address: IpAddr, index: u32, mac: [u8; 6]) -> Message {
    // struct ndmsg.
    let mut header = vec![family_of(address), 0, 0, 0];
    header.extend_from_slice(&index.to_ne_bytes());
    header.extend_from_slice(&NUD_PERMANENT.to_ne_bytes());
    header.extend_from_slice(&[0, 0]);
    Message::new(RTM_NEWNEIGH, CREATE | REPLACE, &header)
        .address(NDA_DST, address)
        .attribute(NDA_LLADDR, &mac)
}

/// Address and gateway of one family, inside the pod.
fn pod_messages(address: IpAddr, index: u32) -> Vec<Message> {
    let family = family_of(address);
    let (bits, gateway) = match address {
        IpAddr::V4(_) => (32, IpAddr::V4(GATEWAY_V4)),
        IpAddr::V6(_) => (128, IpAddr::V6(GATEWAY_V6)),
    };
    // struct ifaddrmsg.
    let mut header = vec![family, bits, 0, 0];
    header.extend_from_slice(&index.to_ne_bytes());
    let assign = Message::new(RTM_NEWADDR, CREATE | REPLACE, &header)
        .address(IFA_LOCAL, address)
        .address(IFA_ADDRESS, address)
        .u32(IFA_FLAGS, IFA_F_NODAD);
    vec![assign, neighbour(gateway, index, HOST_MAC)]
}

/// The ways out of a pod by one of its interfaces, of this metric.
fn pod_routes(addresses: &[IpAddr], index: u32, metric: Option<u32>) -> Vec<Message> {
    const RTA_PRIORITY: u16 = 6;
    let route = |address: IpAddr, length: u8, scope: u8, flags: u32| {
        let mut header = vec![family_of(address), length, 0, 0, 254, PROTOCOL_BOOT, scope, 1];
        header.extend_from_slice(&flags.to_ne_bytes());
        let kind = if metric.is_some() { CREATE | REPLACE } else { CREATE | EXCLUSIVE };
        let message = Message::new(RTM_NEWROUTE, kind, &header).u32(RTA_OIF, index);
        metric.into_iter().fold(message, |message, metric| message.u32(RTA_PRIORITY, metric))
    };
    let of = |address: &IpAddr| match address {
        IpAddr::V4(_) => {
            let gateway = IpAddr::V4(GATEWAY_V4);
            vec![
                route(gateway, 32, SCOPE_LINK, 0).address(RTA_DST, gateway),
                route(gateway, 0, 0, RTNH_F_ONLINK).address(RTA_GATEWAY, gateway),
            ]
        }
        IpAddr::V6(_) => {
            let gateway = IpAddr::V6(GATEWAY_V6);
            vec![route(gateway, 0, 0, RTNH_F_ONLINK).address(RTA_GATEWAY, gateway)]
        }
    };
    addresses.iter().flat_map(of).collect()
}

fn run(socket: &mut Socket, mut messages: Vec<Message>, doing: &str) -> io::Result<()> {
    let refused = socket.execute(&mut messages)?.into_iter().flatten().next();
    match refused {
        Some(refusal) => Err(annotate(refusal.into(), doing.to_owned())),
        None => Ok(()),
    }
}

/// Waits until the kernel's link watch has seen the carrier: before that a queue drops what is sent. A kernel that
/// synchronizes the two on this query (6.8) answers at the first time.
fn await_operational(socket: &mut Socket, name: &str) -> io::Result<()> {
    const IFLA_OPERSTATE: u16 = 16;
    const IF_OPER_UP: u8 = 6;
    for _ in 0..OPERATIONAL_TRIES {
        let message = Message::new(RTM_GETLINK, 0, &[0; 16]).string(IFLA_IFNAME, name);
        let up = socket.query(message)?.iter().any(|answer| {
            netlink::attributes(answer.body.get(16..).unwrap_or_default())
                .any(|(kind, value)| kind == IFLA_OPERSTATE && value.first() == Some(&IF_OPER_UP))
        });
        if up {
            return Ok(());
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    Err(io::Error::new(io::ErrorKind::TimedOut, format!("link {name} has no carrier")))
}

fn index_of(socket: &mut Socket, name: &str) -> io::Result<u32> {
    let answers = socket
        .query(Message::new(RTM_GETLINK, 0, &[0; 16]).string(IFLA_IFNAME, name))
        .map_err(|error| annotate(error, format!("looking for link {name}")))?;
    answers
        .first()
        .and_then(|answer| parse_link(&answer.body))
        .map(|link| link.index)
        .ok_or_else(|| io::Error::other(format!("no link {name}")))
}

/// Pods' links that somebody set down: until they are up again they have no routes.
#[derive(Debug, Default)]
pub(crate) struct DownLinks(BTreeSet<u32>);

impl DownLinks {
    /// Takes the body of an RTM_NEWLINK or RTM_DELLINK; whether routes of ours may have changed by it. That a pod's link
    /// comes, goes or gets its carrier changes none: whoever makes and deletes it sees to its routes.
    pub(crate) fn concerns_routes(&mut self, kind: u16, body: &[u8]) -> bool {
        let Some(link) = parse_link(body).filter(|link| link.name.starts_with(HOST_LINK_PREFIX)) else {
            return true;
        };
        if kind == RTM_DELLINK {
            self.0.remove(&link.index);
            return false;
        }
        let read = |at| body.get(at..).and_then(netlink::read_u32).unwrap_or_default();
        let (flags, changed) = (read(8), read(12));
        if flags & IFF_UP != 0 {
            return self.0.remove(&link.index);
        }
        // A new link's message says that everything changed.
        changed & IFF_UP != 0 && changed != u32::MAX && self.0.insert(link.index)
    }
}

fn parse_link(body: &[u8]) -> Option<Link> {
    let index = netlink::read_u32(body.get(4..)?)?;
    let (mut name, mut mtu) = (String::new(), 0);
    for (kind, value) in netlink::attributes(body.get(16..)?) {
        match kind {
            IFLA_IFNAME => name = String::from_utf8_lossy(value).trim_end_matches('\0').to_owned(),
            IFLA_MTU => mtu = netlink::read_u32(value)?,
            _ => {}
        }
    }
    Some(Link { index, name, mtu })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_ports_are_found_in_one_range() {
        assert!(covers("8080,49152-65535", 49152, 65535));
        assert!(covers("32768-65535", 49152, 65535));
        for list in ["", "8080", "49152-60000", "49152-60000,60002-65535", "x-y"] {
            assert!(!covers(list, 49152, 65535), "{list}");
        }
    }

    #[test]
    fn of_a_pods_link_only_being_set_down_and_up_again_concerns_routes() {
        let told = |name: &str, flags, changed| {
            let mut body = link_header(7, flags, changed);
            netlink::put_attribute(&mut body, IFLA_IFNAME, &[name.as_bytes(), &[0]].concat());
            body
        };
        let pod = host_link_name("c0", "eth0");
        let mut down = DownLinks::default();
        let mut concern = |kind, body: &[u8]| down.concerns_routes(kind, body);
        assert!(concern(RTM_NEWLINK, &told("eth0", IFF_UP, 0)), "another link's");
        assert!(concern(RTM_DELLINK, &told("eth0", IFF_UP, 0)), "another link's");
        for (flags, changed) in [(0, u32::MAX), (IFF_UP, IFF_UP), (IFF_UP, 0)] {
            assert!(!concern(RTM_NEWLINK, &told(&pod, flags, changed)), "being made: {flags} {changed:x}");
        }
        assert!(concern(RTM_NEWLINK, &told(&pod, 0, IFF_UP)), "set down");
        assert!(!concern(RTM_NEWLINK, &told(&pod, 0, 0)), "still down");
        assert!(concern(RTM_NEWLINK, &told(&pod, IFF_UP, IFF_UP)), "up again");
        assert!(!concern(RTM_NEWLINK, &told(&pod, IFF_UP, 0)), "its carrier");
        assert!(concern(RTM_NEWLINK, &told(&pod, 0, IFF_UP)), "set down before it goes");
        assert!(!concern(RTM_DELLINK, &told(&pod, 0, 0)), "gone");
        assert!(!concern(RTM_NEWLINK, &told(&pod, IFF_UP, IFF_UP)), "another with its index");
        assert!(concern(RTM_NEWLINK, &[0; 4]), "what cannot be read");
    }

    #[test]
    fn addresses_of_one_link_or_of_the_host_itself_are_not_the_nodes() {
        for (address, reachable) in [
            ("127.0.0.1", false),
            ("169.254.1.1", false),
            ("10.0.0.1", true),
            ("fe80::1", false),
            ("fd00::1", true),
        ] {
            let address: IpAddr = address.parse().expect("an address");
            assert_eq!(is_reachable(&address), reachable, "{address}");
        }
    }
}
