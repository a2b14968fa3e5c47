//! Services: frontends (address, port, protocol), their slots, backends, and what is remembered of choices.
//!
//! A lookup is frontend -> (service, count) -> slot -> backend id -> backend. Slots of one service are numbered from 0
//! without holes, backends of this node first, so "local only" is the same choice over a smaller count. A backend id
//! belongs to one service and is never given to another, so an id that is still present is still right.

use crate::{Address, Port, Protocol};

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
}

#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Frontend {
    pub service_id: ServiceId,
    /// Slots `0..backend_count` are in use; 0 means that connections are refused.
    pub backend_count: u32,
    /// Slots `0..local_count` are backends of this node.
    pub local_count: u32,
    /// `sessionAffinity: ClientIP` timeout; 0 means none.
    pub affinity_seconds: u32,
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
    zero: u16,
    pub service_id: ServiceId,
    /// The key again: an element that the kernel recycled under a reader shows another id here.
    pub id: BackendId,
}

impl Backend {
    pub const fn new(id: BackendId, service_id: ServiceId, address: Address, port: Port) -> Self {
        Self { address, port, zero: 0, service_id, id }
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

/// Chooses a slot below `count` from 32 random bits, evenly to within `count / 2^32`, without a division.
#[inline(always)]
pub const fn pick_backend(random: u32, count: u32) -> Option<u32> {
    if count == 0 { None } else { Some(((random as u64 * count as u64) >> 32) as u32) }
}

const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<FrontendKey>() == 20 && offset_of!(FrontendKey, port) == 16);
    assert!(offset_of!(FrontendKey, protocol) == 18);
    assert!(size_of::<Frontend>() == 16);
    assert!(size_of::<SlotKey>() == 8 && size_of::<BackendId>() == 4);
    assert!(size_of::<Backend>() == 28 && offset_of!(Backend, port) == 16);
    assert!(offset_of!(Backend, service_id) == 20 && offset_of!(Backend, id) == 24);
    assert!(size_of::<AffinityKey>() == 24 && offset_of!(AffinityKey, service_id) == 16);
    assert!(size_of::<Affinity>() == 16 && offset_of!(Affinity, backend_id) == 8);
    assert!(size_of::<SocketKey>() == 32 && offset_of!(SocketKey, address) == 8);
    assert!(offset_of!(SocketKey, port) == 24 && offset_of!(SocketKey, protocol) == 26);
    assert!(size_of::<SocketForward>() == 8);
    assert!(size_of::<SocketReverse>() == 24 && offset_of!(SocketReverse, service_id) == 20);
};

crate::pod!(
    ServiceId,
    BackendId,
    FrontendKey,
    Frontend,
    SlotKey,
    Backend,
    AffinityKey,
    Affinity,
    SocketKey,
    SocketForward,
    SocketReverse,
);
