//! The kinds of `projectcalico.org/v3` by which bare-metal clusters configure BGP and addresses.
//!
//! `definitions` are the CustomResourceDefinitions that the control plane installs: Calico's fields, ranges and defaults,
//! and a refusal by name of what Seaway does not do. The types hold what Seaway reads of the objects; a field that is
//! accepted and has no meaning here is not in them. Deliberately absent: IO, and Calico's own storage (`crd.projectcalico.org`).

mod as_number;
pub mod definitions;
mod kinds;
mod peer_address;
mod selector;

pub use as_number::AsNumber;
pub use kinds::{
    BgpConfiguration, BgpConfigurationSpec, BgpFilter, BgpFilterSpec, BgpPassword, BgpPeer, BgpPeerSpec,
    BlockAffinity, BlockAffinitySpec, CalicoNodeStatus, CalicoNodeStatusSpec, CidrBlock, CommunitiesMatch,
    Community, FilterOperation, FilterRule, IpPool, IpPoolSpec, IpReservation, IpReservationSpec,
    PrefixAdvertisement, PrefixLengths, duration, duration_seconds,
};
pub use peer_address::PeerAddress;
pub use selector::{Selector, SelectorError};

/// The group of the kinds.
pub const GROUP: &str = "projectcalico.org";
