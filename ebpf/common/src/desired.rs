//! What the maps shall say, in plain data: Kubernetes knowledge ends here, kernel knowledge begins.

use alloc::{
    boxed::Box,
    collections::{BTreeMap, BTreeSet},
    string::String,
    vec::Vec,
};
use core::net::{IpAddr, Ipv6Addr};

use crate::{Address, Balancing, FrontendKey, GroupId, Origin, Policed, Port, Prefix, RuleKey};

/// All that is balanced: each frontend and where it leads. A node port stands there once for each family, without
/// address (`FrontendKey::of_any_address`).
pub type Services = BTreeMap<FrontendKey, Service>;

/// One port of one Service at one address.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Service {
    /// `namespace/name` or `namespace/name:port`, for people; no decision rests on it.
    pub name: String,
    /// In any order, without duplicates.
    pub endpoints: Vec<Endpoint>,
    pub balancing: Balancing,
    /// `sessionAffinity: ClientIP` timeout; 0 means none.
    pub affinity_seconds: u32,
    /// Somewhere in the cluster is an endpoint, be it one that no client here gets. A client that gets none is refused
    /// where there is none at all, and hears nothing where there is one elsewhere.
    pub has_endpoints: bool,
    /// Clients in one of these are served and no others; without any, all are. In any order, without duplicates.
    pub source_ranges: Box<[SourceRange]>,
}

/// The addresses of a family that share their first bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SourceRange {
    /// All bits behind the first are 0.
    address: Address,
    /// Of 128 in both families.
    bits: u8,
}

impl SourceRange {
    /// The addresses that share the first `prefix` bits with `ip`; `None` where its family has not so many.
    pub fn new(ip: IpAddr, prefix: u8) -> Option<Self> {
        let (held_before, family_bits) = if ip.is_ipv4() { (96, 32) } else { (0, 128) };
        if prefix > family_bits {
            return None;
        }
        let bits = held_before + prefix;
        let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
        let masked = u128::from_be_bytes(Address::from(ip).octets()) & mask;
        Some(Self { address: Address::from(IpAddr::V6(Ipv6Addr::from(masked))), bits })
    }

    pub const fn address(&self) -> Address {
        self.address
    }

    /// Of 128 in both families.
    pub const fn bits(&self) -> u8 {
        self.bits
    }

    pub const fn is_v4(&self) -> bool {
        self.bits >= 96 && self.address.is_v4()
    }

    /// Whether these are all addresses of the family.
    pub const fn is_everything(&self) -> bool {
        self.bits == if self.is_v4() { 96 } else { 0 }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Endpoint {
    pub address: Address,
    pub port: Port,
    /// On this node.
    pub local: bool,
    pub clients: Clients,
    /// Its share of new clients, beside the other endpoints': twice as many for twice the weight, none for 0.
    pub weight: u16,
}

impl Endpoint {
    /// Of one for which nothing is said.
    pub const WEIGHT: u16 = 1;
}

/// Who may get an endpoint. The order is that of the slots.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Clients {
    /// Those beyond the node only.
    Beyond,
    All,
    /// Pods and processes of the node only.
    Node,
    /// Nobody new: flows and sockets that have it keep it, since it still serves.
    Present,
}

impl Clients {
    pub const fn include(self, origin: Origin) -> bool {
        match origin {
            Origin::Node => matches!(self, Self::All | Self::Node),
            Origin::Beyond => matches!(self, Self::All | Self::Beyond),
        }
    }
}

/// All that is policed on a node. Whoever computes it says what changed, and everything at first.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Policies {
    /// Who is who, by the longest prefix. `::/0` has IPv4 in it: where it stands, IPv4 stands beside it.
    pub peers: BTreeMap<Prefix, GroupId>,
    /// What is allowed.
    pub rules: BTreeSet<RuleKey>,
    /// Pods of this node by address. Those that are isolated in no direction are not in it.
    pub pods: BTreeMap<Address, Policed>,
}

/// What is to be different; `None` and `false` for what is to be gone.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PolicyChanges {
    pub peers: Vec<(Prefix, Option<GroupId>)>,
    pub rules: Vec<(RuleKey, bool)>,
    pub pods: Vec<(Address, Option<Policed>)>,
}

impl PolicyChanges {
    pub const fn is_empty(&self) -> bool {
        self.peers.is_empty() && self.rules.is_empty() && self.pods.is_empty()
    }
}
