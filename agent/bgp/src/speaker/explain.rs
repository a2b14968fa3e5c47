//! Why a peer is told of a destination, or is not: the answer of the code that decides it.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use super::export::GroupKey;
use super::{MULTIPATH_MAX, Speaker};
use crate::best_path::{self, Reason};
use crate::prefix::{Family, Prefix};
use crate::rib::{Path, Rejected, Source};
use crate::session::{Negotiated, State};
use crate::wire::Attributes;

/// Why the paths to a destination reach a peer, or do not.
#[derive(Clone, Debug, PartialEq)]
pub struct Explanation {
    /// What holds for every path, where there is such a thing.
    pub obstacle: Option<Obstacle>,
    /// In order of preference; empty where the session is down.
    pub paths: Vec<(Source, Fate)>,
}

/// Why a peer hears nothing of a destination, whatever the paths.
#[derive(Clone, Debug, PartialEq)]
pub enum Obstacle {
    NoSession {
        state: State,
        /// What ended the last one.
        error: Option<String>,
    },
    FamilyNotNegotiated(Family),
    /// Nobody announced it to us, and it is none of ours.
    NoRoute {
        /// The most specific destination that is known and holds it.
        covering: Option<Prefix>,
    },
}

/// What becomes of one path on its way to a peer.
#[derive(Clone, Debug, PartialEq)]
pub enum Fate {
    /// The peer has been sent this.
    Told {
        attributes: Arc<Attributes>,
        objection: Option<Objection>,
    },
    /// It is to be sent, and waits.
    Waits,
    /// It takes no part in the decision, for this reason.
    Rejected(String),
    /// A better one goes instead.
    NotBest {
        better: Source,
        reason: Reason,
    },
    /// The peer itself sent it.
    FromThePeer,
    Withheld(Withheld),
}

/// Why a path that is the best is not sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Withheld {
    NoAdvertise,
    NoExport,
    /// The peer does not know long stale routes.
    LongStale,
    /// Between internal peers of which neither is a client of ours.
    Internal,
    /// By a rule of the export policy, or by its default.
    Policy {
        rule: Option<Arc<str>>,
    },
    /// There is none that the peer could use.
    NoNextHop(Family),
}

/// Why a peer is likely to drop what it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Objection {
    OwnAs(u32),
    OwnOriginator(Ipv4Addr),
}

impl Explanation {
    pub fn is_told(&self) -> bool {
        self.paths.iter().any(|(_, fate)| matches!(fate, Fate::Told { .. }))
    }
}

impl Speaker {
    /// `None`: there is no such peer.
    pub fn explain(&self, address: IpAddr, prefix: Prefix) -> Option<Explanation> {
        let peer = self.peers.get(&address)?;
        let only = |obstacle| Some(Explanation { obstacle: Some(obstacle), paths: Vec::new() });
        let (Some(negotiated), Some(key)) = (peer.session.negotiated(), &peer.group) else {
            let state = peer.session.state();
            return only(Obstacle::NoSession { state, error: peer.last_error.clone() });
        };
        let obstacle = if !negotiated.families.contains(&prefix.family()) {
            Some(Obstacle::FamilyNotNegotiated(prefix.family()))
        } else if self.rib.paths(prefix).is_empty() {
            return only(Obstacle::NoRoute { covering: self.covering(prefix) });
        } else {
            None
        };
        let mut paths: Vec<&Path> = self.rib.paths(prefix).iter().collect();
        paths
            .sort_by(|a, b| a.rejected.is_some().cmp(&b.rejected.is_some()).then(best_path::compare(a, b).0));
        let fate = |path: &&Path| (path.source, self.fate(address, prefix, path, key, negotiated));
        Some(Explanation { obstacle, paths: paths.iter().map(fate).collect() })
    }

    fn covering(&self, prefix: Prefix) -> Option<Prefix> {
        let known = self.rib.destinations().map(|(known, _)| *known);
        known.filter(|known| known.covers(&prefix)).max_by_key(|known| known.length())
    }

    fn fate(
        &self,
        address: IpAddr,
        prefix: Prefix,
        path: &Path,
        key: &GroupKey,
        negotiated: &Negotiated,
    ) -> Fate {
        if let Some(rejected) = path.rejected {
            return Fate::Rejected(self.rejection(path.source, rejected));
        }
        let several = key.encode.add_path.contains(prefix.family());
        if let Some(better) = self.better(prefix, path, if several { usize::from(key.send_max) } else { 1 }) {
            return Fate::NotBest { better: better.source, reason: best_path::compare(better, path).1 };
        }
        if path.source == Source::Peer(address) {
            return Fate::FromThePeer;
        }
        let wanted = match self.export_attributes(prefix, path, key) {
            Ok(attributes) => attributes,
            Err(withheld) => return Fate::Withheld(withheld),
        };
        let sent = self.advertised_to(address, prefix).into_iter().find(|sent| **sent == wanted);
        sent.map_or(Fate::Waits, |attributes| {
            let objection = objection(&attributes, negotiated);
            Fate::Told { attributes, objection }
        })
    }

    /// With the name of the rule, where the source's import policy decided.
    fn rejection(&self, source: Source, rejected: Rejected) -> String {
        let Source::Peer(peer) = source else { return rejected.to_string() };
        let rules = self.peers.get(&peer).map_or(&[][..], |peer| &peer.config.import.rules);
        match rejected {
            Rejected::Policy(Some(index)) => match rules.get(usize::from(index)) {
                Some(rule) => format!("rule {} of the import policy rejects it", rule.name),
                None => rejected.to_string(),
            },
            _ => rejected.to_string(),
        }
    }

    /// The path that goes in place of this one, where at most `count` go.
    fn better(&self, prefix: Prefix, path: &Path, count: usize) -> Option<&Path> {
        let paths = self.rib.paths(prefix);
        if count == 1 {
            let best = best_path::select(paths, MULTIPATH_MAX)?.best;
            return (best.local_id != path.local_id).then_some(best);
        }
        let ranked = best_path::ranked(paths);
        let is_sent = ranked.iter().take(count).any(|sent| sent.local_id == path.local_id);
        if is_sent { None } else { ranked.get(count.saturating_sub(1)).copied() }
    }
}

fn objection(attributes: &Attributes, negotiated: &Negotiated) -> Option<Objection> {
    let asn = negotiated.remote_asn;
    if negotiated.external {
        return (attributes.as_path_count(asn) > 0).then_some(Objection::OwnAs(asn));
    }
    let originator = attributes.originator_id.filter(|id| *id == negotiated.remote_router_id);
    originator.map(Objection::OwnOriginator)
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Obstacle::NoSession { state, error } => {
                write!(f, "the session is {state:?}")?;
                error.as_ref().map_or(Ok(()), |error| write!(f, "; the last one ended: {error}"))
            }
            Obstacle::FamilyNotNegotiated(family) => {
                write!(f, "the session does not carry {}", family_name(*family))
            }
            Obstacle::NoRoute { covering: None } => {
                f.write_str("nobody announced it to this node, and it is none of the node's own")
            }
            Obstacle::NoRoute { covering: Some(covering) } => {
                write!(f, "nobody announced exactly this to this node; {covering} holds it")
            }
        }
    }
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fate::Told { attributes, objection } => {
                write!(f, "told, with next hop {}", attributes.next_hop)?;
                match objection {
                    Some(Objection::OwnAs(asn)) => {
                        write!(f, "; the peer drops it unless it allows its own AS {asn} in the AS_PATH")
                    }
                    Some(Objection::OwnOriginator(id)) => {
                        write!(f, "; the peer drops it, as ORIGINATOR_ID {id} is its own (RFC 4456)")
                    }
                    None => Ok(()),
                }
            }
            Fate::Waits => f.write_str("it is about to be told"),
            Fate::Rejected(rejected) => write!(f, "not considered here: {rejected}"),
            Fate::NotBest { better, reason } => {
                write!(f, "the path from {better} goes instead: {reason}")
            }
            Fate::FromThePeer => f.write_str("the peer itself announced it"),
            Fate::Withheld(withheld) => withheld.fmt(f),
        }
    }
}

impl fmt::Display for Withheld {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Withheld::NoAdvertise => f.write_str("it has the community NO_ADVERTISE (RFC 1997)"),
            Withheld::NoExport => {
                f.write_str("it has the community NO_EXPORT (RFC 1997), and the peer is of another AS")
            }
            Withheld::LongStale => {
                f.write_str("it is long stale, which the peer has not said that it understands (RFC 9494)")
            }
            Withheld::Internal => f.write_str(
                "it comes from an internal peer, and so does not go to another of which neither is a client (RFC 4456)",
            ),
            Withheld::Policy { rule: Some(rule) } => write!(f, "rule {rule} of the export policy rejects it"),
            Withheld::Policy { rule: None } => {
                f.write_str("no rule of the export policy accepts it, and its default is to reject")
            }
            Withheld::NoNextHop(family) => {
                write!(f, "there is no next hop of {} that the peer could use", family_name(*family))
            }
        }
    }
}

fn family_name(family: Family) -> &'static str {
    match family {
        Family::Ipv4 => "IPv4",
        Family::Ipv6 => "IPv6",
    }
}
