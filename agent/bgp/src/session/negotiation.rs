//! What is offered in an OPEN, and what two OPENs agree on.

use std::net::Ipv4Addr;
use std::time::Duration;

use super::{Config, ConnectionId, DownReason};
use crate::prefix::{Families, Family};
use crate::wire::notification::{self, cease};
use crate::wire::open::{AddPathMode, LongLived};
use crate::wire::{self, Capability, DecodeContext, EncodeContext, GracefulRestart, Open};

/// What the two OPENs agreed on.
#[derive(Clone, Debug, PartialEq)]
pub struct Negotiated {
    pub connection: ConnectionId,
    pub remote_asn: u32,
    pub remote_router_id: Ipv4Addr,
    pub external: bool,
    pub hold_time: Duration,
    pub keepalive_time: Duration,
    pub families: Vec<Family>,
    pub encode: EncodeContext,
    pub decode: DecodeContext,
    pub route_refresh: bool,
    pub enhanced_route_refresh: bool,
    /// IPv6 next hops may be sent in these (RFC 8950).
    pub extended_next_hop: Families,
    /// The peer's graceful restart capability, where both have it.
    pub graceful_restart: Option<GracefulRestart>,
    /// Both set the N bit.
    pub notification_restart: bool,
    /// The peer's long-lived stale times, where both have the capability.
    pub long_lived: Vec<LongLived>,
}

pub(super) fn local_open(config: &Config, restarted: bool) -> Open {
    let mut capabilities: Vec<Capability> =
        config.families.iter().map(|family| Capability::MultiProtocol(*family)).collect();
    capabilities.extend([
        Capability::RouteRefresh,
        Capability::EnhancedRouteRefresh,
        Capability::ExtendedMessage,
        Capability::FourOctetAs(config.local_asn),
    ]);
    let mode = offered_add_path(config);
    if mode != AddPathMode::default() {
        capabilities
            .push(Capability::AddPath(config.families.iter().map(|family| (*family, mode)).collect()));
    }
    if config.extended_next_hop && config.families.contains(&Family::Ipv4) {
        capabilities.push(Capability::ExtendedNextHop(Families { ipv4: true, ipv6: false }));
    }
    let restart_time = config.restart_time.as_secs().min(4095) as u16;
    let long_lived = config.long_lived_stale_time.filter(|time| !time.is_zero());
    // RFC 9494 section 3: not without the capability of RFC 4724, though its restart time may be 0.
    if restart_time > 0 || long_lived.is_some() {
        capabilities.push(Capability::GracefulRestart(GracefulRestart {
            restarted,
            notification: true,
            restart_time,
            families: config.families.iter().map(|family| (*family, true)).collect(),
        }));
    }
    if let Some(time) = long_lived {
        let stale_time = u32::try_from(time.as_secs()).unwrap_or(u32::MAX).min(0x00ff_ffff);
        let long = |family: &Family| LongLived { family: *family, forwarding: true, stale_time };
        capabilities.push(Capability::LongLivedGracefulRestart(config.families.iter().map(long).collect()));
    }
    let hold_time = config.hold_time.as_secs().min(65535) as u16;
    Open { asn: config.local_asn, hold_time, router_id: config.router_id, capabilities }
}

fn offered_add_path(config: &Config) -> AddPathMode {
    AddPathMode { receive: config.add_path.receive, send: config.add_path.send_max > 1 }
}

pub(super) fn keepalive_time(config: &Config, hold_time: Duration) -> Duration {
    let third = hold_time / 3;
    config.keepalive_time.map_or(third, |time| time.max(Duration::from_secs(1)).min(third))
}

pub(super) fn negotiate(config: &Config, connection: ConnectionId, open: &Open) -> Negotiated {
    let has = |wanted: &Capability| open.capabilities.contains(wanted);
    let theirs = open.families();
    let families: Vec<Family> =
        config.families.iter().copied().filter(|family| theirs.contains(family)).collect();
    let hold_time = config.hold_time.min(Duration::from_secs(u64::from(open.hold_time)));
    let keepalive_time = keepalive_time(config, hold_time);
    let message_length_max = if has(&Capability::ExtendedMessage) {
        wire::EXTENDED_MESSAGE_LENGTH_MAX
    } else {
        wire::MESSAGE_LENGTH_MAX
    };
    let external = open.asn != config.local_asn;
    let four_octet_as = open.capabilities.iter().any(|c| matches!(c, Capability::FourOctetAs(_)));
    let mine = offered_add_path(config);
    let with_paths = |condition: fn(AddPathMode, AddPathMode) -> bool| -> Families {
        families.iter().copied().filter(|family| condition(mine, open.add_path(*family))).collect()
    };
    let long_lived_wanted = config.long_lived_stale_time.is_some_and(|time| !time.is_zero());
    let graceful_wanted = !config.restart_time.is_zero() || long_lived_wanted;
    let graceful_restart = open.graceful_restart().filter(|_| graceful_wanted).cloned();
    let long_lived = if graceful_restart.is_some() && long_lived_wanted { open.long_lived() } else { &[] };
    Negotiated {
        connection,
        remote_asn: open.asn,
        remote_router_id: open.router_id,
        external,
        hold_time,
        keepalive_time,
        encode: EncodeContext {
            four_octet_as,
            message_length_max,
            add_path: with_paths(|mine, theirs| mine.send && theirs.receive),
        },
        decode: DecodeContext {
            four_octet_as,
            external,
            add_path: with_paths(|mine, theirs| mine.receive && theirs.send),
        },
        families,
        route_refresh: has(&Capability::RouteRefresh),
        enhanced_route_refresh: has(&Capability::EnhancedRouteRefresh),
        extended_next_hop: if config.extended_next_hop {
            open.extended_next_hop()
        } else {
            Families::default()
        },
        notification_restart: graceful_restart.as_ref().is_some_and(|g| g.notification),
        graceful_restart,
        long_lived: long_lived.to_vec(),
    }
}

impl Negotiated {
    pub fn extended_message(&self) -> bool {
        self.encode.message_length_max > wire::MESSAGE_LENGTH_MAX
    }

    /// How long the peer's routes in a family may be kept beyond the restart time (RFC 9494).
    pub fn long_lived_stale_time(&self, family: Family) -> Option<Duration> {
        let long = self.long_lived.iter().find(|long| long.family == family && long.stale_time > 0)?;
        Some(Duration::from_secs(u64::from(long.stale_time)))
    }

    /// The families whose routes outlive the session for `reason`.
    pub(super) fn retained(&self, reason: &DownReason) -> Vec<Family> {
        let Some(graceful) = &self.graceful_restart else { return Vec::new() };
        let survives = match reason {
            DownReason::ConnectionClosed | DownReason::Replaced => true,
            DownReason::HoldTimerExpired | DownReason::SendHoldTimerExpired => self.notification_restart,
            DownReason::NotificationSent(n) | DownReason::NotificationReceived(n) => {
                // RFC 8538 section 3.1: these end it for good, also from a speaker that says so without a Hard Reset.
                let for_good = matches!(
                    n.subcode,
                    cease::HARD_RESET
                        | cease::MAXIMUM_PREFIXES
                        | cease::ADMINISTRATIVE_SHUTDOWN
                        | cease::PEER_DE_CONFIGURED
                        | cease::BFD_DOWN
                );
                self.notification_restart && !(n.code == notification::CEASE && for_good)
            }
            DownReason::Stopped => false,
        };
        if survives { graceful.families.iter().map(|(family, _)| *family).collect() } else { Vec::new() }
    }
}
