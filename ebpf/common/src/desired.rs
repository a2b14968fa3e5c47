//! What the maps shall say, in plain data: Kubernetes knowledge ends here, kernel knowledge begins.

use alloc::{collections::BTreeMap, string::String, vec::Vec};

use crate::{Address, FrontendKey, Port};

/// All that is balanced: each frontend and where it leads.
pub type Services = BTreeMap<FrontendKey, Service>;

/// One port of one Service in one address family.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Service {
    /// `namespace/name` or `namespace/name:port`, for people; no decision rests on it.
    pub name: String,
    /// In any order, without duplicates. None at all means that connections are refused.
    pub endpoints: Vec<Endpoint>,
    /// `sessionAffinity: ClientIP` timeout; 0 means none.
    pub affinity_seconds: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Endpoint {
    pub address: Address,
    pub port: Port,
    /// On this node.
    pub local: bool,
}
