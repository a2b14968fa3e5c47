//! What the maps shall say, in plain data: Kubernetes knowledge ends here, kernel knowledge begins.

use alloc::{collections::BTreeMap, string::String, vec::Vec};

use crate::{Address, FrontendKey, Origin, Port};

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
    /// `sessionAffinity: ClientIP` timeout; 0 means none.
    pub affinity_seconds: u32,
    /// Somewhere in the cluster is an endpoint, be it one that no client here gets. A client that gets none is refused
    /// where there is none at all, and hears nothing where there is one elsewhere.
    pub has_endpoints: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Endpoint {
    pub address: Address,
    pub port: Port,
    /// On this node.
    pub local: bool,
    pub clients: Clients,
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
