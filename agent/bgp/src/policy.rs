//! Route policy: rules over what a route is, that accept, reject or change it on its way from or to one peer.
//!
//! Rules are tried in order. One whose conditions all hold applies its actions; with a verdict it ends the evaluation,
//! without one the next rule is tried, which sees the changes. The words and the semantics are those of
//! `projectcalico.org/v3` BGPFilter, as far as that goes; kinds of local routes, MED and LOCAL_PREF are beyond it. No
//! regular expressions, no variables.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::best_path::LOCAL_PREF_DEFAULT;
use crate::prefix::{Family, Prefix};
use crate::wire::Attributes;

/// The greatest LOCAL_PREF that a priority is written as: `LOCAL_PREF = 2147483647 - priority`.
const PRIORITY_BASE: u32 = 2_147_483_647;
/// The priority of a route of which nothing else is said.
pub const PRIORITY_NORMAL: u32 = 1024;

/// Ordered rules and what becomes of a route that none of them decides about. The default accepts all, unchanged.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Policy {
    pub rules: Vec<Rule>,
    pub default: Verdict,
}

/// One rule. The default matches every route, changes nothing and decides nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rule {
    /// Shown where a route's way is explained, such as `filter-name/importV4/0`.
    pub name: Arc<str>,
    pub matches: Match,
    pub actions: Vec<Action>,
    /// `None`: the next rule is tried.
    pub verdict: Option<Verdict>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    #[default]
    Accept,
    Reject,
}

/// Conditions, all of which must hold; those that are `None` or empty always do.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Match {
    pub family: Option<Family>,
    pub prefix: Option<PrefixMatch>,
    /// Any of these.
    pub sources: Vec<SourceMatch>,
    /// Of the peer that the route is imported from or exported to.
    pub peer_type: Option<PeerType>,
    /// The route's outgoing link; `*` stands for any characters. Routes without a known link never match.
    pub interface: Option<String>,
    /// All of these are on the route.
    pub communities: Vec<Community>,
    /// The AS_PATH begins with these.
    pub as_path_prefix: Vec<u32>,
    /// As `priority_of` reads it from LOCAL_PREF.
    pub priority: Option<u32>,
}

/// A comparison with a prefix. Prefixes of the other family are neither equal nor in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PrefixMatch {
    pub operator: PrefixOperator,
    pub prefix: Prefix,
    /// Bounds of the route's prefix length, both included; part of what `Not*` negates.
    pub length_min: Option<u8>,
    pub length_max: Option<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PrefixOperator {
    Equal,
    NotEqual,
    /// Equal or more specific.
    In,
    NotIn,
}

/// Where a route comes from, as a rule names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SourceMatch {
    /// Originated here, of whatever kind.
    Local,
    /// Originated here, of this kind.
    Kind(LocalKind),
    /// Learned from any peer.
    RemotePeers,
    /// Learned from a peer of this type.
    Peers(PeerType),
}

/// Where a route comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RouteSource {
    Local(LocalKind),
    Peer(PeerType),
}

/// What a locally originated route stands for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LocalKind {
    /// A confirmed block of pod addresses.
    #[default]
    Block,
    /// One pod, whose block is another node's.
    Pod,
    /// A whole range that Services get addresses from.
    ServiceRange,
    /// One address of a Service.
    Service,
    /// An address of the node itself.
    Node,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PeerType {
    /// The same AS: iBGP.
    Internal,
    /// Another AS: eBGP.
    External,
}

impl PeerType {
    pub fn of(external: bool) -> PeerType {
        if external { PeerType::External } else { PeerType::Internal }
    }
}

/// A community of any of the three sizes (RFC 1997, RFC 4360, RFC 8092).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Community {
    Standard(u32),
    Extended([u8; 8]),
    Large([u32; 3]),
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    AddCommunity(Community),
    RemoveCommunity(Community),
    /// The AS_PATH begins with these afterwards, in this order.
    PrependAsPath(Vec<u32>),
    SetLocalPreference(u32),
    /// Sets LOCAL_PREF so that lower priorities win, as `local_preference_of` says.
    SetPriority(u32),
    /// `None` removes it.
    SetMed(Option<u32>),
}

/// A route on its way, beside its attributes.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    pub prefix: Prefix,
    pub source: RouteSource,
    /// Of the peer that it is imported from or exported to.
    pub peer_type: PeerType,
    pub interface: Option<&'a str>,
}

/// What a policy makes of a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome<'a> {
    pub verdict: Verdict,
    pub attributes: Cow<'a, Attributes>,
    /// Index of the rule that decided; `None` where the policy's default did.
    pub rule: Option<usize>,
}

impl Policy {
    /// Rejects what no rule accepts.
    pub fn reject_by_default(rules: Vec<Rule>) -> Policy {
        Policy { rules, default: Verdict::Reject }
    }

    /// Whether every route passes unchanged, whatever it is.
    pub fn is_transparent(&self) -> bool {
        self.rules.is_empty() && self.default == Verdict::Accept
    }

    pub fn evaluate<'a>(&self, subject: &Subject<'_>, attributes: &'a Attributes) -> Outcome<'a> {
        let mut attributes = Cow::Borrowed(attributes);
        for (index, rule) in self.rules.iter().enumerate() {
            if !rule.matches.holds(subject, &attributes) {
                continue;
            }
            for action in &rule.actions {
                action.apply(attributes.to_mut());
            }
            if let Some(verdict) = rule.verdict {
                return Outcome { verdict, attributes, rule: Some(index) };
            }
        }
        Outcome { verdict: self.default, attributes, rule: None }
    }
}

impl Match {
    fn holds(&self, subject: &Subject<'_>, attributes: &Attributes) -> bool {
        self.family.is_none_or(|family| family == subject.prefix.family())
            && self.prefix.is_none_or(|prefix| prefix.holds(subject.prefix))
            && (self.sources.is_empty() || self.sources.iter().any(|source| source.holds(subject.source)))
            && self.peer_type.is_none_or(|peer_type| peer_type == subject.peer_type)
            && self
                .interface
                .as_ref()
                .is_none_or(|pattern| subject.interface.is_some_and(|name| wildcard(pattern, name)))
            && self.communities.iter().all(|community| community.is_on(attributes))
            && attributes.as_path_starts_with(&self.as_path_prefix)
            && self.priority.is_none_or(|priority| priority == priority_of(attributes.local_pref))
    }
}

impl PrefixMatch {
    pub fn new(operator: PrefixOperator, prefix: Prefix) -> PrefixMatch {
        PrefixMatch { operator, prefix, length_min: None, length_max: None }
    }

    fn holds(&self, prefix: Prefix) -> bool {
        let bounds = self.length_min.unwrap_or(0)..=self.length_max.unwrap_or(u8::MAX);
        let within = bounds.contains(&prefix.length());
        match self.operator {
            PrefixOperator::Equal => within && prefix == self.prefix,
            PrefixOperator::NotEqual => !(within && prefix == self.prefix),
            PrefixOperator::In => within && self.prefix.covers(&prefix),
            PrefixOperator::NotIn => !(within && self.prefix.covers(&prefix)),
        }
    }
}

impl SourceMatch {
    fn holds(self, source: RouteSource) -> bool {
        match (self, source) {
            (SourceMatch::Local, RouteSource::Local(_))
            | (SourceMatch::RemotePeers, RouteSource::Peer(_)) => true,
            (SourceMatch::Kind(wanted), RouteSource::Local(kind)) => wanted == kind,
            (SourceMatch::Peers(wanted), RouteSource::Peer(peer_type)) => wanted == peer_type,
            _ => false,
        }
    }
}

impl Action {
    fn apply(&self, attributes: &mut Attributes) {
        match self {
            Action::AddCommunity(community) => community.add_to(attributes),
            Action::RemoveCommunity(community) => community.remove_from(attributes),
            Action::PrependAsPath(asns) => {
                for asn in asns.iter().rev() {
                    attributes.prepend(*asn);
                }
            }
            Action::SetLocalPreference(value) => attributes.local_pref = Some(*value),
            Action::SetPriority(priority) => attributes.local_pref = Some(local_preference_of(*priority)),
            Action::SetMed(med) => attributes.med = *med,
        }
    }
}

impl Community {
    pub fn is_on(&self, attributes: &Attributes) -> bool {
        match self {
            Community::Standard(value) => attributes.communities.contains(value),
            Community::Extended(value) => attributes.extended_communities.contains(value),
            Community::Large(value) => attributes.large_communities.contains(value),
        }
    }

    /// Adds it where it is not there yet; lists stay sorted as they came, with additions at the end.
    pub fn add_to(&self, attributes: &mut Attributes) {
        if self.is_on(attributes) {
            return;
        }
        match *self {
            Community::Standard(value) => attributes.communities.push(value),
            Community::Extended(value) => attributes.extended_communities.push(value),
            Community::Large(value) => attributes.large_communities.push(value),
        }
    }

    fn remove_from(&self, attributes: &mut Attributes) {
        match self {
            Community::Standard(value) => attributes.communities.retain(|known| known != value),
            Community::Extended(value) => attributes.extended_communities.retain(|known| known != value),
            Community::Large(value) => attributes.large_communities.retain(|known| known != value),
        }
    }
}

/// Why a community cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no BGP community: it is aa:nn with numbers to 65535, or aa:nn:mm with numbers to 4294967295"
)]
pub struct CommunityError(String);

impl FromStr for Community {
    type Err = CommunityError;

    /// `aa:nn` is a standard community, `aa:nn:mm` a large one.
    fn from_str(text: &str) -> Result<Community, CommunityError> {
        let error = || CommunityError(text.to_owned());
        let parts: Vec<&str> = text.split(':').collect();
        let digits = |part: &&str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        if !parts.iter().all(digits) {
            return Err(error());
        }
        let narrow = |part: &str| part.parse::<u16>().map(u32::from).map_err(|_| error());
        let wide = |part: &str| part.parse::<u32>().map_err(|_| error());
        match parts[..] {
            [high, low] => Ok(Community::Standard(narrow(high)? << 16 | narrow(low)?)),
            [global, one, two] => Ok(Community::Large([wide(global)?, wide(one)?, wide(two)?])),
            _ => Err(error()),
        }
    }
}

impl fmt::Display for Community {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Community::Standard(value) => write!(f, "{}:{}", value >> 16, value & 0xffff),
            Community::Large([global, one, two]) => write!(f, "{global}:{one}:{two}"),
            Community::Extended(octets) => {
                write!(f, "ext:")?;
                octets.iter().try_for_each(|octet| write!(f, "{octet:02x}"))
            }
        }
    }
}

/// The LOCAL_PREF of a priority: lower priorities win, and 1024 is what routes without any have. Above 1124 they are
/// all last.
pub fn local_preference_of(priority: u32) -> u32 {
    if priority < PRIORITY_NORMAL {
        PRIORITY_BASE - priority
    } else {
        LOCAL_PREF_DEFAULT.saturating_sub(priority - PRIORITY_NORMAL)
    }
}

/// The priority that a LOCAL_PREF stands for; the inverse of `local_preference_of` below 1124.
pub fn priority_of(local_preference: Option<u32>) -> u32 {
    match local_preference {
        Some(value) if value > PRIORITY_BASE - PRIORITY_NORMAL => PRIORITY_BASE.saturating_sub(value),
        Some(value) => PRIORITY_NORMAL + LOCAL_PREF_DEFAULT.saturating_sub(value),
        None => PRIORITY_NORMAL,
    }
}

/// Whether `name` is what `pattern` says, where `*` stands for any characters.
fn wildcard(pattern: &str, name: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(mut name) = name.strip_prefix(head) else { return false };
    let mut pieces = rest.split('*').peekable();
    while let Some(piece) = pieces.next() {
        if pieces.peek().is_none() {
            return name.ends_with(piece);
        }
        match name.find(piece) {
            Some(at) => name = &name[at + piece.len()..],
            None => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests;
