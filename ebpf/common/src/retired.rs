//! Layouts that earlier agents wrote, so that a new agent can take over what is in their maps before it replaces their
//! programs. Nothing here is written but flows, for as long as a hook still has one of those programs.

use crate::{Address, Backend, BackendId, ConnectedSocket, Flow, Frontend, Port, ServiceId, Tuple};

/// `FRONTENDS_1`: clients of the node had slots `0..backend_count`, those beyond it `0..local_count`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Frontend1 {
    pub service_id: ServiceId,
    pub backend_count: u32,
    pub local_count: u32,
    pub affinity_seconds: u32,
}

impl From<Frontend1> for Frontend {
    fn from(old: Frontend1) -> Self {
        let node = 0..old.backend_count;
        Self::new(old.service_id, old.affinity_seconds, old.local_count, node, old.backend_count != 0)
    }
}

/// `SOCK_CONN_1`: without the frontend, which `SOCK_REV_1` has.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ConnectedSocket1 {
    pub netns_cookie: u64,
    pub address: Address,
    pub port: Port,
    zero: u16,
    pub backend_id: BackendId,
}

impl ConnectedSocket1 {
    pub const fn new(netns_cookie: u64, backend: &Backend) -> Self {
        let Backend { address, port, id, .. } = *backend;
        Self { netns_cookie, address, port, zero: 0, backend_id: id }
    }
}

impl From<ConnectedSocket1> for ConnectedSocket {
    fn from(old: ConnectedSocket1) -> Self {
        let backend = Backend::new(old.backend_id, ServiceId(0), old.address, old.port);
        Self::new(old.netns_cookie, &backend, Address::UNSPECIFIED, Port::new(0))
    }
}

/// `CONNTRACK_0`: a flow without its Service's id, and what was seen of it in one byte. No agent that anybody had wrote it: the
/// tests do, so that the way of flows into a new layout is known to hold before a layout needs it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Flow0 {
    pub last_seen_ns: u64,
    pub translated: Tuple,
    pub backend_id: BackendId,
    pub direction: u8,
    pub hairpin: u8,
    /// 1 where the client is beyond the node and the backend too, 2 where the flow is masqueraded.
    pub way: u8,
    /// A packet was seen: 1; FIN: 2; RST: 4.
    pub seen: u8,
}

impl Flow0 {
    #[inline(always)]
    pub const fn of(flow: &Flow) -> Self {
        Self {
            last_seen_ns: flow.last_seen_ns,
            translated: flow.translated,
            backend_id: flow.backend_id,
            direction: 2 - flow.is_forward() as u8,
            hairpin: flow.hairpin,
            way: flow.is_forwarded() as u8 | (flow.is_masqueraded() as u8) << 1,
            seen: flow.seen | flow.fin << 1 | flow.rst << 2,
        }
    }
}

const _: () = {
    assert!(size_of::<Frontend1>() == 16 && size_of::<Flow0>() == 56);
    assert!(size_of::<ConnectedSocket1>() == 32);
};

crate::pod!(Frontend1, ConnectedSocket1, Flow0);
