//! Layouts that earlier agents wrote, so that a new agent can take over what is in their maps before it replaces their
//! programs. Nothing here is ever written.

use crate::{Frontend, ServiceId};

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

const _: () = assert!(size_of::<Frontend1>() == 16);

crate::pod!(Frontend1);
