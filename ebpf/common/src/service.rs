//! Services: frontends (address, port, protocol), their slots, backends, and what is remembered of choices.
//!
//! A lookup is frontend -> (service, range) -> slot -> backend id -> backend. Slots of one service are numbered from 0
//! without holes. Clients of this node and clients beyond it may get different backends, as traffic policies and
//! topology hints have it; each kind has a range of slots, and the two overlap where they share backends:
//!
//! ```text
//!   slot      0 1 2 | 3 4 5 6 | 7 8
//!   beyond    ~~~~~~~~~~~~~~~           0..beyond_count
//!   node            ~~~~~~~~~~~~~~~     node_first..node_first + node_count
//! ```
//!
//! Slots behind both ranges hold backends that nobody new is given and that still serve who has them.
//!
//! A frontend may be for some clients only: then their addresses are looked up among the source ranges first. One whose
//! backends are not chosen by chance alone has tables in place of the slots ([`crate::balancing`]); those are there still,
//! for who finds no table.
//!
//! A node port's key has no address ([`FrontendKey::of_any_address`]): it is looked up for every address of the node,
//! so that the number of addresses multiplies nothing. A backend id belongs to one service and is never given to
//! another, so an id that is still present is still right.

use crate::{Address, Balancing, Port, Protocol, balancing::PIECES};

/// One service port of one address family. Stable over agent restarts; 0 is never used.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ServiceId(pub u32);

/// One endpoint of one service. Stable over agent restarts; 0 is never used.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct BackendId(pub u32);

#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FrontendKey {
    pub address: Address,
    pub port: Port,
    pub protocol: Protocol,
    zero: u8,
}

impl FrontendKey {
    #[inline(always)]
    pub const fn new(address: Address, port: Port, protocol: Protocol) -> Self {
        Self { address, port, protocol, zero: 0 }
    }

    /// The same port on any address of the node, of the same family.
    #[inline(always)]
    pub const fn of_any_address(&self) -> Self {
        Self { address: self.address.any(), ..*self }
    }
}

/// Where a client asks from.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// A pod or a process of this node.
    Node,
    /// The uplink: other machines, and pods of other nodes.
    Beyond,
}

/// Layout 2. Layout 1 is [`crate::retired::Frontend1`].
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Frontend {
    pub service_id: ServiceId,
    /// `sessionAffinity: ClientIP` timeout; 0 means none.
    pub affinity_seconds: u32,
    pub beyond_count: u32,
    pub node_first: u32,
    pub node_count: u32,
    flags: u32,
}

impl Frontend {
    /// The Service has endpoints somewhere in the cluster.
    const HAS_ENDPOINTS: u32 = 1;
    /// Only clients in the Service's source ranges are served. Agents that knew none wrote 0, which was right.
    const HAS_SOURCE_RANGES: u32 = 2;
    /// Tables lead to the backends, which are there before the frontend says so.
    const HAS_TABLES: u32 = 4;
    /// A client's place in a table is its own, and not a random one.
    const PLACES_ARE_CLIENTS: u32 = 8;
    /// The connections of the backends are counted, and who has fewer gets the next.
    const COUNTS: u32 = 16;

    pub const fn new(
        service_id: ServiceId,
        affinity_seconds: u32,
        beyond_count: u32,
        node: core::ops::Range<u32>,
        has_endpoints: bool,
    ) -> Self {
        let flags = if has_endpoints { Self::HAS_ENDPOINTS } else { 0 };
        let node_count = node.end - node.start;
        Self { service_id, affinity_seconds, beyond_count, node_first: node.start, node_count, flags }
    }

    /// The same for clients in the Service's source ranges only.
    pub const fn with_source_ranges(self) -> Self {
        Self { flags: self.flags | Self::HAS_SOURCE_RANGES, ..self }
    }

    /// The same with backends that tables lead to.
    pub const fn with_tables(self, balancing: Balancing) -> Self {
        let places = match balancing {
            Balancing::Random | Balancing::LeastConnections => 0,
            Balancing::Maglev => Self::PLACES_ARE_CLIENTS,
        };
        Self { flags: self.flags | Self::HAS_TABLES | places, ..self }
    }

    #[inline(always)]
    pub const fn has_tables(&self) -> bool {
        self.flags & Self::HAS_TABLES != 0
    }

    #[inline(always)]
    pub const fn balancing(&self) -> Balancing {
        if self.counts() {
            Balancing::LeastConnections
        } else if self.flags & Self::PLACES_ARE_CLIENTS != 0 {
            Balancing::Maglev
        } else {
            Balancing::Random
        }
    }

    /// The same with backends whose connections are counted, [`Backend::counted`].
    pub const fn with_counts(self) -> Self {
        Self { flags: self.flags | Self::COUNTS, ..self }
    }

    /// Whether of two backends the one with fewer connections is given.
    #[inline(always)]
    pub const fn counts(&self) -> bool {
        self.flags & Self::COUNTS != 0
    }

    /// Whether anybody who asks gets any backend, by chance, and nothing is remembered: as nearly always.
    #[inline(always)]
    pub const fn is_plain(&self) -> bool {
        // A shift is one instruction, and a mask is two.
        self.affinity_seconds | (self.flags >> Self::HAS_ENDPOINTS) == 0
    }

    /// The first piece of the table for clients that ask from `origin`.
    #[inline(always)]
    pub const fn first_piece(&self, origin: Origin) -> u32 {
        let is_one = self.node_first == 0 && self.node_count == self.beyond_count;
        match origin {
            Origin::Beyond if !is_one => PIECES,
            Origin::Node | Origin::Beyond => 0,
        }
    }

    #[inline(always)]
    pub const fn has_source_ranges(&self) -> bool {
        self.flags & Self::HAS_SOURCE_RANGES != 0
    }

    /// The first slot and the number of slots for clients that ask from `origin`.
    #[inline(always)]
    pub const fn slots(&self, origin: Origin) -> (u32, u32) {
        match origin {
            Origin::Node => (self.node_first, self.node_count),
            Origin::Beyond => (0, self.beyond_count),
        }
    }

    /// The slots in use, from 0.
    pub const fn slot_count(&self) -> u32 {
        let node_end = self.node_first + self.node_count;
        if node_end > self.beyond_count { node_end } else { self.beyond_count }
    }

    /// Without any endpoint a client is refused; where only this client has none, its packets are dropped.
    #[inline(always)]
    pub const fn has_endpoints(&self) -> bool {
        self.flags & Self::HAS_ENDPOINTS != 0
    }
}

/// Clients whose addresses share their first bits, in a trie that finds the longest such prefix. The id stands first, so
/// that a Service finds its own ranges only.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SourceRangeKey {
    /// How many bits of `source` count, from its first.
    pub prefix_bits: u32,
    pub source: SourceAddress,
}

/// What a [`SourceRangeKey`] is a prefix of.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SourceAddress {
    pub service_id: ServiceId,
    pub address: Address,
}

impl SourceRangeKey {
    const ID_BITS: u32 = 32;
    /// The prefix of a key that is one address.
    pub const ADDRESS_BITS: u32 = Self::ID_BITS + 128;

    /// The first `bits` of `address`, of 128 in both families; those behind them must be 0.
    pub const fn new(service_id: ServiceId, address: Address, bits: u8) -> Self {
        let source = SourceAddress { service_id, address };
        Self { prefix_bits: Self::ID_BITS + bits as u32, source }
    }

    /// The range as people write it: an address of its family, and how many of its bits count.
    pub fn to_prefix(&self) -> (core::net::IpAddr, u8) {
        let address = self.source.address;
        let held_before = Self::ID_BITS + if address.is_v4() { 96 } else { 0 };
        (address.to_ip(), self.prefix_bits.saturating_sub(held_before) as u8)
    }
}

#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SlotKey {
    pub service_id: ServiceId,
    pub slot: u32,
}

#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Backend {
    pub address: Address,
    pub port: Port,
    flags: u16,
    pub service_id: ServiceId,
    /// The key again: an element that the kernel recycled under a reader shows another id here.
    pub id: BackendId,
}

/// Every flag is of a kind that 0 was right before it was there: the layout is still the first.
impl Backend {
    const REMOTE: u16 = 1;
    const NOT_FOR_NODE: u16 = 2;
    const NOT_FOR_BEYOND: u16 = 4;
    const COUNTED: u16 = 8;

    /// A backend on this node, for all clients.
    pub const fn new(id: BackendId, service_id: ServiceId, address: Address, port: Port) -> Self {
        Self { address, port, flags: 0, service_id, id }
    }

    /// The same on another machine.
    pub const fn remote(self) -> Self {
        Self { flags: self.flags | Self::REMOTE, ..self }
    }

    /// The same for clients of one origin only.
    pub const fn only_for(self, origin: Origin) -> Self {
        let flag = match origin {
            Origin::Node => Self::NOT_FOR_BEYOND,
            Origin::Beyond => Self::NOT_FOR_NODE,
        };
        Self { flags: self.flags | flag, ..self }
    }

    /// The same for those only that have it already.
    pub const fn for_nobody_new(self) -> Self {
        Self { flags: self.flags | Self::NOT_FOR_NODE | Self::NOT_FOR_BEYOND, ..self }
    }

    /// The same with connections that are counted.
    pub const fn counted(self) -> Self {
        Self { flags: self.flags | Self::COUNTED, ..self }
    }

    #[inline(always)]
    pub const fn is_counted(&self) -> bool {
        self.flags & Self::COUNTED != 0
    }

    #[inline(always)]
    pub const fn is_remote(&self) -> bool {
        self.flags & Self::REMOTE != 0
    }

    #[inline(always)]
    pub const fn is_for(&self, origin: Origin) -> bool {
        let excluding = match origin {
            Origin::Node => Self::NOT_FOR_NODE,
            Origin::Beyond => Self::NOT_FOR_BEYOND,
        };
        self.flags & excluding == 0
    }
}

/// The client of a service with affinity: its address in packets, its network namespace's cookie in the socket path
/// (all sockets of a pod share it, and the source address is not chosen yet at connect).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct AffinityKey {
    client: Address,
    service_id: ServiceId,
    kind: u32,
}

impl AffinityKey {
    #[inline(always)]
    pub const fn of_address(service_id: ServiceId, client: Address) -> Self {
        Self { client, service_id, kind: 0 }
    }

    #[inline(always)]
    pub const fn of_namespace(service_id: ServiceId, cookie: u64) -> Self {
        let client = Address::from_words([(cookie >> 32) as u32, cookie as u32, 0, 0]);
        Self { client, service_id, kind: 1 }
    }

    pub const fn service_id(&self) -> ServiceId {
        self.service_id
    }

    /// The client's address, or else the cookie of its network namespace.
    pub const fn client(&self) -> Result<Address, u64> {
        let [high, low, ..] = self.client.to_words();
        if self.kind == 0 { Ok(self.client) } else { Err((high as u64) << 32 | low as u64) }
    }
}

#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Affinity {
    /// CLOCK_MONOTONIC.
    pub last_used_ns: u64,
    pub backend_id: BackendId,
    zero: u32,
}

impl Affinity {
    #[inline(always)]
    pub const fn new(backend_id: BackendId, now_ns: u64) -> Self {
        Self { last_used_ns: now_ns, backend_id, zero: 0 }
    }
}

/// A socket and one address it talks to: the frontend in the forward map, the backend in the reverse map.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SocketKey {
    pub cookie: u64,
    pub address: Address,
    pub port: Port,
    pub protocol: Protocol,
    zero: [u8; 5],
}

impl SocketKey {
    #[inline(always)]
    pub const fn new(cookie: u64, address: Address, port: Port, protocol: Protocol) -> Self {
        Self { cookie, address, port, protocol, zero: [0; 5] }
    }
}

/// The backend that an unconnected UDP socket's datagrams to a frontend go to.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SocketForward {
    pub service_id: ServiceId,
    pub backend_id: BackendId,
}

/// The frontend that a socket believes to talk to.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SocketReverse {
    pub address: Address,
    pub port: Port,
    zero: u16,
    pub service_id: ServiceId,
}

impl SocketReverse {
    #[inline(always)]
    pub const fn new(service_id: ServiceId, address: Address, port: Port) -> Self {
        Self { address, port, zero: 0, service_id }
    }
}

/// What a datagram socket was connected to by way of a Service; found by the socket's cookie. Layout 2. Layout 1 is
/// [`crate::retired::ConnectedSocket1`].
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ConnectedSocket {
    /// Of the socket's network namespace.
    pub netns_cookie: u64,
    /// The backend's.
    pub address: Address,
    pub port: Port,
    /// That the socket believes to talk to; 0 where an agent that did not write it here noted the socket.
    pub frontend_port: Port,
    pub backend_id: BackendId,
    pub frontend: Address,
    pub service_id: ServiceId,
    zero: u32,
}

impl ConnectedSocket {
    #[inline(always)]
    pub const fn new(netns_cookie: u64, backend: &Backend, frontend: Address, frontend_port: Port) -> Self {
        let Backend { address, port, id, service_id, .. } = *backend;
        Self { netns_cookie, address, port, frontend_port, backend_id: id, frontend, service_id, zero: 0 }
    }
}

/// What a stream socket was connected to by way of a Service, in the place that [`Self::place`] says. The socket of that
/// many connections later gets the same place; then this one is forgotten.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ConnectedStream {
    /// The socket's; 0 where the place is empty.
    pub cookie: u64,
    /// The backend's.
    pub address: Address,
    pub port: Port,
    pub frontend_port: Port,
    pub service_id: ServiceId,
    /// That the socket believes to talk to.
    pub frontend: Address,
}

impl ConnectedStream {
    pub const PLACES: u32 = 1 << 15;

    /// Cookies are numbers in the order of the sockets, nearly.
    #[inline(always)]
    pub const fn place(cookie: u64) -> u32 {
        cookie as u32 % Self::PLACES
    }

    #[inline(always)]
    pub const fn new(cookie: u64, backend: &Backend, frontend: Address, frontend_port: Port) -> Self {
        let Backend { address, port, service_id, .. } = *backend;
        Self { cookie, address, port, frontend_port, service_id, frontend }
    }
}

/// Which unconnected UDP sockets have sent by way of a Service, so that the others, as those of servers, need not be looked
/// for. A place, which follows from the cookie, holds one socket, or says that there were more.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sender(pub u64);

impl Sender {
    pub const PLACES: u32 = 1 << 16;
    const SEVERAL: u64 = 1 << 63;

    #[inline(always)]
    pub const fn place(cookie: u64) -> u32 {
        cookie as u32 % Self::PLACES
    }

    /// The place when the socket has sent, too.
    #[inline(always)]
    pub const fn with(self, cookie: u64) -> Self {
        if self.0 == 0 || self.0 == cookie { Self(cookie) } else { Self(self.0 | Self::SEVERAL) }
    }

    /// The place when the socket is gone. Who had it with others is not known to be the last.
    #[inline(always)]
    pub const fn without(self, cookie: u64) -> Self {
        if self.0 == cookie { Self(0) } else { self }
    }

    /// Of the first socket in the place; 0 where there was none.
    pub const fn cookie(self) -> u64 {
        self.0 & !Self::SEVERAL
    }

    #[inline(always)]
    pub const fn is_several(self) -> bool {
        self.0 & Self::SEVERAL != 0
    }

    /// Whether the socket may have sent; always where it has.
    #[inline(always)]
    pub const fn may_be(self, cookie: u64) -> bool {
        self.0 == cookie || self.0 & Self::SEVERAL != 0
    }
}

/// Chooses a slot below `count` from 32 random bits, evenly to within `count / 2^32`, without a division.
#[inline(always)]
pub const fn pick_backend(random: u32, count: u32) -> Option<u32> {
    if count == 0 { None } else { Some(((random as u64 * count as u64) >> 32) as u32) }
}

const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<FrontendKey>() == 20 && offset_of!(FrontendKey, port) == 16);
    assert!(offset_of!(FrontendKey, protocol) == 18);
    assert!(size_of::<Frontend>() == 24 && offset_of!(Frontend, affinity_seconds) == 4);
    assert!(offset_of!(Frontend, node_first) == 12 && offset_of!(Frontend, flags) == 20);
    assert!(size_of::<SourceRangeKey>() == 24 && offset_of!(SourceRangeKey, source) == 4);
    assert!(size_of::<SourceAddress>() == 20 && offset_of!(SourceAddress, address) == 4);
    assert!(size_of::<SlotKey>() == 8 && size_of::<BackendId>() == 4);
    assert!(size_of::<Backend>() == 28 && offset_of!(Backend, port) == 16);
    assert!(offset_of!(Backend, flags) == 18);
    assert!(offset_of!(Backend, service_id) == 20 && offset_of!(Backend, id) == 24);
    assert!(size_of::<AffinityKey>() == 24 && offset_of!(AffinityKey, service_id) == 16);
    assert!(size_of::<Affinity>() == 16 && offset_of!(Affinity, backend_id) == 8);
    assert!(size_of::<SocketKey>() == 32 && offset_of!(SocketKey, address) == 8);
    assert!(offset_of!(SocketKey, port) == 24 && offset_of!(SocketKey, protocol) == 26);
    assert!(size_of::<SocketForward>() == 8);
    assert!(size_of::<SocketReverse>() == 24 && offset_of!(SocketReverse, service_id) == 20);
    assert!(size_of::<ConnectedSocket>() == 56 && offset_of!(ConnectedSocket, address) == 8);
    assert!(offset_of!(ConnectedSocket, port) == 24 && offset_of!(ConnectedSocket, backend_id) == 28);
    assert!(offset_of!(ConnectedSocket, frontend) == 32 && offset_of!(ConnectedSocket, service_id) == 48);
    assert!(size_of::<ConnectedStream>() == 48 && offset_of!(ConnectedStream, address) == 8);
    assert!(offset_of!(ConnectedStream, port) == 24 && offset_of!(ConnectedStream, service_id) == 28);
    assert!(offset_of!(ConnectedStream, frontend) == 32);
    assert!(size_of::<Sender>() == 8);
};

crate::pod!(
    ServiceId,
    BackendId,
    FrontendKey,
    Frontend,
    SourceRangeKey,
    SourceAddress,
    SlotKey,
    Backend,
    AffinityKey,
    Affinity,
    SocketKey,
    SocketForward,
    SocketReverse,
    ConnectedSocket,
    ConnectedStream,
    Sender,
);
