//! What the speaker is told: about itself, its peers and the routes it originates.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use crate::policy::{LocalKind, Policy};
use crate::prefix::{Family, Prefix};

#[derive(Clone, Debug)]
pub struct SpeakerConfig {
    pub asn: u32,
    pub router_id: Ipv4Addr,
    /// Next hop announced for IPv4 destinations.
    pub next_hop_v4: Option<Ipv4Addr>,
    /// Next hop announced for IPv6 destinations.
    pub next_hop_v6: Option<Ipv6Addr>,
    /// Proposed hold time, whole seconds.
    pub hold_time: Duration,
    pub connect_retry: Duration,
    /// How long peers are asked to keep our routes while we restart, and the longest we keep theirs.
    pub restart_time: Duration,
    /// After start, how long to wait for peers' End-of-RIB before the FIB may be swept.
    pub deferral_time: Duration,
    /// Remote addresses accepted as iBGP neighbours without being configured.
    pub listen_ranges: Vec<Prefix>,
    /// `PeerConfig::long_lived_stale_time` of these.
    pub long_lived_stale_time: Option<Duration>,
}

/// One peer. The default accepts any AS, connects, and exchanges everything unchanged.
///
/// A change of `asn`, `local_asn`, `families`, `add_path` or `extended_next_hop` needs a new session, and begins one. A change
/// of `hold_time`, or of what the peer is told of `restart_time` and `long_lived_stale_time`, is for the next one; a change
/// of anything else takes effect on the one there is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerConfig {
    /// `None` takes any AS number.
    pub asn: Option<u32>,
    /// Never connects, only accepts.
    pub passive: bool,
    /// Routes from internal peers are reflected to it and its routes to them (RFC 4456).
    pub route_reflector_client: bool,
    /// The cluster of the reflector that we are to it; our BGP identifier where `None`.
    pub cluster_id: Option<Ipv4Addr>,
    /// The AS that we are to this peer, in place of the speaker's, in OPEN and AS_PATH.
    pub local_asn: Option<u32>,
    /// Proposed hold time: 0 (never expires) or 3 to 65535 s; the speaker's where `None`.
    pub hold_time: Option<Duration>,
    /// Between keepalives: 1 s at least, a third of the negotiated hold time at most; that third where `None`.
    pub keepalive_time: Option<Duration>,
    /// The families offered; those that the speaker has a next hop for where `None`.
    pub families: Option<Vec<Family>>,
    /// Applied to what the peer sends; what it rejects is kept for display and for a changed policy.
    pub import: Policy,
    /// Applied to what the peer is sent.
    pub export: Policy,
    pub next_hop: NextHopMode,
    /// Our address on the way to it, announced as next hop in its family; the speaker's where `None`. A link-local one
    /// comes with its link (`link_local`).
    pub local_address: Option<IpAddr>,
    /// How often our own AS may occur in an AS_PATH that the peer sends.
    pub allow_own_as: u8,
    /// More prefixes than this, per family, end the session with Cease 1 (RFC 4486).
    pub max_prefixes: Option<u32>,
    /// How long to stay away after `max_prefixes` was passed; until the peer is configured anew where `None`.
    pub max_prefixes_restart: Option<Duration>,
    /// Asks the peer to prefer other ways, before maintenance (RFC 8326): GRACEFUL_SHUTDOWN on all that it is sent,
    /// with LOCAL_PREF 0 inside the AS.
    pub graceful_shutdown: bool,
    /// How long the peer is asked to keep our routes while we restart, to 4095 s; the speaker's where `None`, off at 0.
    pub restart_time: Option<Duration>,
    /// How long stale routes are kept beyond the restart time, to 16777215 s (RFC 9494); off where `None`.
    pub long_lived_stale_time: Option<Duration>,
    pub add_path: AddPath,
    /// IPv4 destinations over IPv6 next hops (RFC 8950).
    pub extended_next_hop: bool,
    /// The link that the peer is reached by, for rules of policies that name one.
    pub interface: Option<String>,
}

/// Several paths per destination (RFC 7911); the default has neither direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AddPath {
    /// Offers to take several.
    pub receive: bool,
    /// Paths sent per destination at most; 0 and 1 send the best one without an identifier.
    pub send_max: u8,
}

/// The next hop of what a peer is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NextHopMode {
    /// Ours to another AS and for what comes from one; kept for what is reflected inside the AS.
    #[default]
    Auto,
    /// Ours, also for what is reflected.
    SelfAddress,
    /// Kept as it was learned. Routes originated here have ours.
    Keep,
}

/// A route originated here. The default is a block of pod addresses, with nothing added.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalRoute {
    pub kind: LocalKind,
    pub communities: Vec<u32>,
    pub large_communities: Vec<[u32; 3]>,
    /// LOCAL_PREF; the default of 100 where `None`. `policy::local_preference_of` gives the one of a priority.
    pub local_preference: Option<u32>,
    /// MULTI_EXIT_DISC: of routes from one AS, peers prefer the one with the least; none where `None`.
    pub med: Option<u32>,
    /// The link that it leads to, for rules of policies that name one.
    pub interface: Option<String>,
}
