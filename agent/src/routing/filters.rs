//! BGPFilters to the speaker's policies. Pure.

use std::sync::Arc;

use bgp::policy::{
    Action, Community, Match, PeerType, Policy, PrefixMatch, PrefixOperator, Rule, SourceMatch, Verdict,
};
use bgp::{Family, Prefix};
use calico::{BgpFilterSpec, FilterOperation, FilterRule};
use ipnetwork::IpNetwork;

/// `aa:nn`, or `aa:nn:mm` for a large community.
pub fn community(text: &str) -> Option<Community> {
    let parts: Vec<u32> = text.split(':').map(|part| part.parse().ok()).collect::<Option<_>>()?;
    match parts[..] {
        [high, low] if high <= 0xffff && low <= 0xffff => Some(Community::Standard(high << 16 | low)),
        [global, first, second] => Some(Community::Large([global, first, second])),
        _ => None,
    }
}

/// What is learned from a peer: all that these filters do not reject.
pub fn import(filters: &[(&str, &BgpFilterSpec)]) -> Result<Policy, String> {
    let rules = rules(filters, "import", |spec| [&spec.import_v4, &spec.import_v6])?;
    Ok(Policy { rules, default: Verdict::Accept })
}

/// What a peer is told: what these filters accept, and of what they do not decide about all that is from here, and what other
/// nodes announce in `ranges`. Nothing else is passed on.
pub fn export(filters: &[(&str, &BgpFilterSpec)], ranges: &[IpNetwork]) -> Result<Policy, String> {
    let mut rules = rules(filters, "export", |spec| [&spec.export_v4, &spec.export_v6])?;
    let accept = |name: String, matches: Match| Rule {
        name: name.into(),
        matches,
        verdict: Some(Verdict::Accept),
        ..Rule::default()
    };
    rules.push(accept("own".to_owned(), Match { sources: vec![SourceMatch::Local], ..Match::default() }));
    rules.extend(ranges.iter().map(|range| {
        let prefix = PrefixMatch::new(PrefixOperator::In, Prefix::from(*range));
        accept(format!("cluster/{range}"), Match { prefix: Some(prefix), ..Match::default() })
    }));
    Ok(Policy::reject_by_default(rules))
}

fn rules(
    filters: &[(&str, &BgpFilterSpec)],
    direction: &str,
    of: fn(&BgpFilterSpec) -> [&Vec<FilterRule>; 2],
) -> Result<Vec<Rule>, String> {
    let mut all = Vec::new();
    for (name, spec) in filters {
        for (family, rules) in [Family::Ipv4, Family::Ipv6].into_iter().zip(of(spec)) {
            let digit = if family == Family::Ipv4 { 4 } else { 6 };
            for (index, written) in rules.iter().enumerate() {
                let name = format!("{name}/{direction}V{digit}/{index}");
                let rule = rule(written, family).map_err(|problem| format!("rule {name}: {problem}"))?;
                all.push(Rule { name: name.into(), ..rule });
            }
        }
    }
    Ok(all)
}

fn rule(written: &FilterRule, family: Family) -> Result<Rule, String> {
    let verdict = match written.action.as_str() {
        "Accept" => Verdict::Accept,
        "Reject" => Verdict::Reject,
        other => return Err(format!("unknown action {other:?}")),
    };
    let sources = match written.source.as_str() {
        "" => Vec::new(),
        "RemotePeers" => vec![SourceMatch::RemotePeers],
        other => return Err(format!("unknown source {other:?}")),
    };
    let peer_type = match written.peer_type.as_str() {
        "" => None,
        "eBGP" => Some(PeerType::External),
        "iBGP" => Some(PeerType::Internal),
        other => return Err(format!("unknown peerType {other:?}")),
    };
    let communities = written.communities.iter().flat_map(|communities| &communities.values);
    let matches = Match {
        family: Some(family),
        prefix: prefix(written)?,
        sources,
        peer_type,
        interface: None,
        communities: communities.map(|text| known_community(text)).collect::<Result<_, _>>()?,
        as_path_prefix: written.as_path_prefix.iter().map(|number| number.0).collect(),
        priority: written.priority,
    };
    let actions = written.operations.iter().map(action).collect::<Result<_, _>>()?;
    Ok(Rule { name: Arc::default(), matches, actions, verdict: Some(verdict) })
}

fn prefix(written: &FilterRule) -> Result<Option<PrefixMatch>, String> {
    let Some(cidr) = written.cidr else { return Ok(None) };
    let operator = match written.match_operator.as_str() {
        "Equal" => PrefixOperator::Equal,
        "NotEqual" => PrefixOperator::NotEqual,
        "In" => PrefixOperator::In,
        "NotIn" => PrefixOperator::NotIn,
        other => return Err(format!("unknown matchOperator {other:?}")),
    };
    let lengths = written.prefix_length.unwrap_or_default();
    Ok(Some(PrefixMatch {
        length_min: lengths.min,
        length_max: lengths.max,
        ..PrefixMatch::new(operator, Prefix::from(cidr))
    }))
}

fn action(operation: &FilterOperation) -> Result<Action, String> {
    Ok(match operation {
        FilterOperation::AddCommunity { value } => Action::AddCommunity(known_community(value)?),
        FilterOperation::PrependAsPath { prefix } => {
            Action::PrependAsPath(prefix.iter().map(|number| number.0).collect())
        }
        FilterOperation::SetPriority { value } => Action::SetPriority(*value),
    })
}

fn known_community(text: &str) -> Result<Community, String> {
    community(text).ok_or_else(|| format!("{text:?} is no community"))
}
