//! Whom a node peers with, and how: nodes, BGPPeers, BGPFilters and BGPConfiguration to the speaker's words. Pure.
//!
//! Of two that name one address, a BGPPeer goes before the command line and that before the mesh, and of BGPPeers the first
//! by name. What cannot be carried out as it is written is not carried out: a peer whose password is missing is not connected
//! to, and one whose filter is missing is told and believed nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use bgp::policy::Policy;
use bgp::{NextHopMode, PeerConfig};
use calico::{BgpPassword, BgpPeerSpec, PeerAddress, Selector, duration_seconds};
use ipnetwork::IpNetwork;

use super::LAST_KNOWN_TIME;
use super::filters;
use super::known::{Known, NodeFacts};
use super::passwords::{PasswordKey, Passwords};
use crate::bfd_config;
use crate::bgp_io::{Neighbour, Origin, Secret, Transport};
use crate::config::StaticPeer;

/// The node itself.
#[derive(Clone, Debug)]
pub struct Own {
    pub name: String,
    pub addresses: Vec<IpAddr>,
    /// The AS that the speaker is in.
    pub asn: u32,
    /// The AS of nodes of which nothing is said.
    pub default_asn: u32,
    /// The port that the speaker listens on.
    pub port: u16,
    /// The port of nodes of which nothing is said.
    pub default_port: u16,
    /// Peers of the command line.
    pub static_peers: Vec<StaticPeer>,
    /// Peers of a file of the host's, which say more.
    pub file_peers: Vec<(IpAddr, Neighbour)>,
    /// Addresses of pods.
    pub cluster_ranges: Vec<IpNetwork>,
}

/// What the speaker shall be told.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Desired {
    pub neighbours: BTreeMap<IpAddr, Neighbour>,
    pub problems: BTreeSet<Problem>,
    /// The passwords that peers need.
    pub passwords: BTreeSet<PasswordKey>,
}

/// Why an object is not carried out as it is written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    pub kind: &'static str,
    pub name: String,
    pub message: String,
}

/// All peers of the node.
pub fn desired(known: &Known, own: &Own, passwords: &Passwords) -> Desired {
    let mut plan = Planner { known, own, passwords, desired: Desired::default() };
    for (name, spec) in &known.peers {
        if let Err(message) = plan.peer(name, spec) {
            plan.problem("BGPPeer", name, message);
        }
    }
    for (address, neighbour) in &own.file_peers {
        plan.add(*address, neighbour.clone());
    }
    for peer in &own.static_peers {
        let asn = peer.asn.unwrap_or(own.asn);
        let long_lived_stale_time = (asn == own.asn).then_some(LAST_KNOWN_TIME);
        let config = PeerConfig { asn: Some(asn), long_lived_stale_time, ..PeerConfig::default() };
        plan.add(peer.address, Neighbour { config, ..Neighbour::default() });
    }
    if known.is_mesh()
        && let Err(message) = plan.mesh()
    {
        plan.problem("BGPConfiguration", "default", message);
    }
    plan.desired
}

struct Planner<'a> {
    known: &'a Known,
    own: &'a Own,
    passwords: &'a Passwords,
    desired: Desired,
}

impl Planner<'_> {
    fn problem(&mut self, kind: &'static str, name: &str, message: String) {
        self.desired.problems.insert(Problem { kind, name: name.to_owned(), message });
    }

    /// Where nobody else has the address.
    fn add(&mut self, address: IpAddr, neighbour: Neighbour) {
        if !self.own.addresses.contains(&address) {
            self.desired.neighbours.entry(address).or_insert(neighbour);
        }
    }

    fn own_facts(&self) -> NodeFacts {
        self.known.nodes.get(&self.own.name).cloned().unwrap_or_default()
    }

    fn asn_of(&self, node: &str) -> u32 {
        self.known.as_number(node).unwrap_or(self.own.default_asn)
    }

    /// `None` where it is our own, which the speaker takes anyway.
    fn port_of(&self, node: &str) -> Option<u16> {
        let port = self.known.listen_port(node).unwrap_or(self.own.default_port);
        (port != self.own.port).then_some(port)
    }

    fn others(&self) -> Vec<(String, NodeFacts, IpAddr)> {
        let v4 = self.own.addresses.first().is_none_or(IpAddr::is_ipv4);
        let others = self.known.nodes.iter().filter(|(name, _)| **name != self.own.name);
        others.filter_map(|(name, facts)| Some((name.clone(), facts.clone(), facts.address(v4)?))).collect()
    }

    /// All other nodes but reflectors, unless this is one.
    fn mesh(&mut self) -> Result<(), String> {
        if self.own_facts().cluster_id.is_some() {
            return Ok(());
        }
        let password = self.password("nodeMeshPassword", self.known.mesh_password())?;
        let restart_time = restart_time("nodeMeshMaxRestartTime", self.known.mesh_restart_time())?;
        let bfd = self.bfd("BGPConfiguration", "default", self.known.mesh_bfd());
        for (name, _, address) in self.others().into_iter().filter(|(_, facts, _)| facts.cluster_id.is_none())
        {
            let config = PeerConfig {
                asn: Some(self.asn_of(&name)),
                restart_time,
                long_lived_stale_time: Some(LAST_KNOWN_TIME),
                ..PeerConfig::default()
            };
            let transport =
                Transport { port: self.port_of(&name), password: password.clone(), ..Transport::default() };
            self.add(address, Neighbour { config, transport, bfd, origin: Origin::Mesh });
        }
        Ok(())
    }

    /// What one BGPPeer makes of this node, if anything.
    fn peer(&mut self, name: &str, spec: &BgpPeerSpec) -> Result<(), String> {
        let peers_of = selector("peerSelector", &spec.peer_selector)?;
        let node_selector = selector("nodeSelector", &spec.node_selector)?;
        let selects = |node: &str, facts: &NodeFacts| selects(spec, node_selector.as_ref(), node, facts);
        let own = self.own_facts();
        let is_selected = selects(&self.own.name, &own);
        let mut found: Vec<(IpAddr, Option<u16>, Option<String>)> = Vec::new();
        match peers_of {
            Some(peers_of) => {
                // The nodes of peerSelector need this peering at their end, too.
                let is_reverse =
                    peers_of.matches(&own.labels) && spec.reverse_peering.as_deref() != Some("Manual");
                for (other, facts, address) in self.others() {
                    let forth = is_selected && peers_of.matches(&facts.labels);
                    if forth || is_reverse && selects(&other, &facts) {
                        found.push((address, self.port_of(&other), Some(other)));
                    }
                }
            }
            None if is_selected => {
                let at: PeerAddress = spec.peer_ip.parse().map_err(|problem| format!("peerIP: {problem}"))?;
                let has_address = |facts: &NodeFacts| facts.addresses.contains(&at.address);
                let node = self
                    .known
                    .nodes
                    .iter()
                    .find(|(_, facts)| has_address(facts))
                    .map(|(name, _)| name.clone());
                let port = at.port.or_else(|| node.as_ref().and_then(|node| self.port_of(node)));
                // A peer that is no node speaks BGP where everybody does, whatever port we listen on.
                let port = port.or_else(|| (node.is_none() && self.own.port != 179).then_some(179));
                found.push((at.address, port, node));
            }
            None => {}
        }
        for (address, port, node) in found {
            if self.own.addresses.contains(&address) {
                continue;
            }
            let neighbour = self.neighbour(name, spec, port, node.as_deref())?;
            if self.desired.neighbours.contains_key(&address) {
                self.problem("BGPPeer", name, format!("{address} is the peer of another BGPPeer already"));
            }
            self.add(address, neighbour);
        }
        Ok(())
    }

    fn neighbour(
        &mut self,
        name: &str,
        spec: &BgpPeerSpec,
        port: Option<u16>,
        node: Option<&str>,
    ) -> Result<Neighbour, String> {
        let asn = spec.as_number.map(|number| number.0).filter(|number| *number != 0);
        let asn = asn.unwrap_or_else(|| node.map_or(self.own.asn, |node| self.asn_of(node)));
        let local_asn = spec.local_as_number.map(|number| number.0);
        let local_asn = local_asn.filter(|number| *number != 0 && *number != self.own.asn);
        let cluster_id = self.own_facts().cluster_id;
        let of_peer = node.and_then(|node| self.known.nodes.get(node)).and_then(|facts| facts.cluster_id);
        let is_internal = asn == local_asn.unwrap_or(self.own.asn);
        let next_hop = match spec.next_hop_mode.as_deref() {
            Some("Self") => NextHopMode::SelfAddress,
            Some("Keep") => NextHopMode::Keep,
            _ if spec.keep_original_next_hop => NextHopMode::Keep,
            _ => NextHopMode::Auto,
        };
        let (import, export) = self.policies(name, spec, next_hop);
        let keepalive =
            spec.keepalive_time.as_deref().map(|text| duration("keepaliveTime", text)).transpose()?;
        let config = PeerConfig {
            asn: Some(asn),
            local_asn,
            route_reflector_client: is_internal && cluster_id.is_some() && cluster_id != of_peer,
            cluster_id,
            import,
            export,
            next_hop,
            keepalive_time: keepalive,
            restart_time: restart_time("maxRestartTime", spec.max_restart_time.as_deref())?,
            // A router of another network has its own ways to a node that is gone.
            long_lived_stale_time: (is_internal || node.is_some()).then_some(LAST_KNOWN_TIME),
            allow_own_as: spec.num_allowed_local_as_numbers.unwrap_or(0).clamp(0, i32::from(u8::MAX)) as u8,
            ..PeerConfig::default()
        };
        let bfd = self.bfd("BGPPeer", name, self.known.bfd_by_peer.get(name).map(String::as_str));
        let of_all = spec.node.is_empty() && spec.node_selector.is_empty();
        let origin = if of_all { Origin::Global } else { Origin::Node };
        Ok(Neighbour { config, transport: self.transport(spec, port)?, bfd, origin })
    }

    fn transport(&mut self, spec: &BgpPeerSpec, port: Option<u16>) -> Result<Transport, String> {
        let v4 = spec.peer_ip.parse().map_or_else(
            |_| self.own.addresses.first().is_none_or(IpAddr::is_ipv4),
            |at: PeerAddress| at.address.is_ipv4(),
        );
        let any = if v4 { IpAddr::from([0; 4]) } else { IpAddr::from([0_u16; 8]) };
        Ok(Transport {
            port,
            source: (spec.source_address == "None").then_some(any),
            password: self.password("password", spec.password.as_ref())?,
            ttl_security: spec.ttl_security.filter(|hops| *hops != 0),
            ttl: None,
        })
    }

    /// What cannot be understood is no BFD: a path that nobody watches leads where it led.
    fn bfd(&mut self, kind: &'static str, name: &str, annotation: Option<&str>) -> Option<bfd::Config> {
        match bfd_config::of_text(annotation?) {
            Ok(config) => config,
            Err(message) => {
                self.problem(
                    kind,
                    name,
                    format!("annotation {}: {message}; there is no BFD", bfd_config::ANNOTATION),
                );
                None
            }
        }
    }

    /// Where a filter cannot be carried out, nothing passes.
    fn policies(&mut self, name: &str, spec: &BgpPeerSpec, next_hop: NextHopMode) -> (Policy, Policy) {
        match self.whole_policies(spec, next_hop) {
            Ok(policies) => policies,
            Err(message) => {
                self.problem(
                    "BGPPeer",
                    name,
                    format!("{message}; nothing is learned from the peer or told to it"),
                );
                (Policy::reject_by_default(Vec::new()), Policy::reject_by_default(Vec::new()))
            }
        }
    }

    fn whole_policies(&self, spec: &BgpPeerSpec, next_hop: NextHopMode) -> Result<(Policy, Policy), String> {
        let mut named = Vec::new();
        for name in &spec.filters {
            let filter = self
                .known
                .filters
                .get(name)
                .ok_or_else(|| format!("filters: there is no BGPFilter {name}"))?;
            named.push((name.as_str(), filter));
        }
        Ok((filters::import(&named)?, filters::export(&named, &self.passed_on(spec, next_hop)?)?))
    }

    /// What other nodes announce and this one passes on. Where every node has this peer, each speaks for itself: a second way to
    /// its pods would be a detour. A Service's address leads to the node that announces it and to no other, which may have
    /// no endpoint: so it goes only where the next hop stays.
    fn passed_on(&self, spec: &BgpPeerSpec, next_hop: NextHopMode) -> Result<Vec<IpNetwork>, String> {
        let node_selector = selector("nodeSelector", &spec.node_selector)?;
        let is_for_others = self.own_facts().cluster_id.is_some()
            || self
                .known
                .nodes
                .iter()
                .any(|(name, facts)| !selects(spec, node_selector.as_ref(), name, facts));
        let mut ranges = Vec::new();
        if is_for_others || next_hop == NextHopMode::Keep {
            ranges.extend(&self.own.cluster_ranges);
        }
        if next_hop == NextHopMode::Keep {
            let services = self.known.advertisement(&self.own.name);
            ranges
                .extend(services.load_balancer.into_iter().chain(services.external).chain(services.cluster));
        }
        Ok(ranges)
    }

    /// # Errors
    /// Where there is to be a password and there is none.
    fn password(&mut self, field: &str, password: Option<&BgpPassword>) -> Result<Option<Secret>, String> {
        let Some(reference) = password.and_then(|password| password.secret_key_ref.as_ref()) else {
            return Ok(None);
        };
        let key = PasswordKey { secret: reference.name.clone(), key: reference.key.clone() };
        self.desired.passwords.insert(key.clone());
        match self.passwords.get(&key) {
            Ok(octets) => Ok(Some(Secret::new(octets))),
            Err(why) => Err(format!("{field}: {why}; the peer is not connected to")),
        }
    }
}

/// Whether a BGPPeer is for a node.
fn selects(spec: &BgpPeerSpec, node_selector: Option<&Selector>, node: &str, facts: &NodeFacts) -> bool {
    match node_selector {
        Some(selector) => selector.matches(&facts.labels),
        None => spec.node.is_empty() || spec.node == node,
    }
}

/// Empty text is none.
fn selector(field: &str, text: &str) -> Result<Option<Selector>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|error| format!("{field}: {error}"))
}

fn duration(field: &str, text: &str) -> Result<Duration, String> {
    let seconds = duration_seconds(text).ok_or_else(|| format!("{field}: {text:?} is no duration"))?;
    Ok(Duration::from_secs(seconds))
}

fn restart_time(field: &str, text: Option<&str>) -> Result<Option<Duration>, String> {
    text.map(|text| duration(field, text)).transpose()
}
