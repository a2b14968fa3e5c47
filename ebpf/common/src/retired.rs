//! Layouts that earlier agents wrote, so that a new agent can take over what is in their maps before it replaces their
//! programs. Nothing here is ever written.

use crate::{Address, Backend, BackendId, ConnectedSocket, Frontend, Port, ServiceId};

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

const _: () = assert!(size_of::<Frontend1>() == 16 && size_of::<ConnectedSocket1>() == 32);

crate::pod!(Frontend1, ConnectedSocket1);
