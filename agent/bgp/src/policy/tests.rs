use std::net::IpAddr;

use proptest::prelude::*;

use super::*;
use crate::wire::AsSegment;

fn prefix(text: &str) -> Prefix {
    text.parse().unwrap()
}

fn subject(text: &str) -> Subject<'static> {
    Subject {
        prefix: prefix(text),
        source: RouteSource::Peer(PeerType::External),
        peer_type: PeerType::External,
        interface: Some("eth0"),
    }
}

fn attributes() -> Attributes {
    Attributes {
        as_path: vec![AsSegment::Sequence(vec![65001, 65002]), AsSegment::Set(vec![65003])],
        communities: vec![0xfde8_0001],
        ..Attributes::default()
    }
}

fn accepts(matches: Match, subject: &Subject<'_>) -> bool {
    let rule = Rule { matches, verdict: Some(Verdict::Accept), ..Rule::default() };
    Policy::reject_by_default(vec![rule]).evaluate(subject, &attributes()).verdict == Verdict::Accept
}

#[test]
fn prefixes_match_as_a_bgpfilter_says() {
    use PrefixOperator::{Equal, In, NotEqual, NotIn};
    let cases = [
        (Equal, "10.0.0.0/8", None, None, "10.0.0.0/8", true),
        (Equal, "10.0.0.0/8", None, None, "10.0.0.0/9", false),
        (NotEqual, "10.0.0.0/8", None, None, "10.0.0.0/9", true),
        (In, "10.0.0.0/8", None, None, "10.0.0.0/8", true),
        (In, "10.0.0.0/8", None, None, "10.1.0.0/16", true),
        (In, "10.0.0.0/8", None, None, "8.0.0.0/5", false),
        (In, "10.0.0.0/8", Some(16), Some(24), "10.1.0.0/16", true),
        (In, "10.0.0.0/8", Some(16), Some(24), "10.1.2.0/24", true),
        (In, "10.0.0.0/8", Some(16), Some(24), "10.1.2.0/25", false),
        (In, "10.0.0.0/8", Some(16), None, "10.0.0.0/8", false),
        (NotIn, "10.0.0.0/8", None, None, "11.0.0.0/8", true),
        (NotIn, "10.0.0.0/8", None, None, "10.0.0.0/32", false),
        (NotIn, "10.0.0.0/8", Some(16), Some(24), "10.1.2.0/25", true),
        (In, "::/0", None, None, "10.0.0.0/8", false),
        (In, "0.0.0.0/0", None, None, "2001:db8::/32", false),
        (In, "0.0.0.0/0", None, None, "0.0.0.0/0", true),
    ];
    for (operator, wanted, length_min, length_max, route, expected) in cases {
        let condition = PrefixMatch { operator, prefix: prefix(wanted), length_min, length_max };
        let matches = Match { prefix: Some(condition), ..Match::default() };
        assert_eq!(accepts(matches, &subject(route)), expected, "{operator:?} {wanted} on {route}");
    }
}

#[test]
fn every_condition_must_hold() {
    let route = subject("10.0.0.0/8");
    let with = |change: fn(&mut Match)| {
        let mut matches = Match::default();
        change(&mut matches);
        accepts(matches, &route)
    };
    assert!(with(|m| m.sources = vec![SourceMatch::Local, SourceMatch::RemotePeers]));
    assert!(!with(|m| m.sources = vec![SourceMatch::Kind(LocalKind::Service)]));
    assert!(!with(|m| m.sources = vec![SourceMatch::Peers(PeerType::Internal)]));
    assert!(!with(|m| m.peer_type = Some(PeerType::Internal)));
    assert!(with(|m| m.communities = vec!["65000:1".parse().unwrap()]));
    assert!(!with(|m| m.communities = vec!["65000:1".parse().unwrap(), "65000:1:1".parse().unwrap()]));
    assert!(with(|m| m.as_path_prefix = vec![65001]));
    assert!(with(|m| m.as_path_prefix = vec![65001, 65002]));
    assert!(!with(|m| m.as_path_prefix = vec![65002]));
    assert!(!with(|m| m.as_path_prefix = vec![65001, 65002, 65003]), "a set is no sequence");
    assert!(with(|m| m.interface = Some("eth*".to_owned())));
    assert!(!with(|m| m.interface = Some("eth".to_owned())));
    assert!(with(|m| m.priority = Some(1024)));
    assert!(!with(|m| m.priority = Some(512)));
    assert!(!with(|m| m.family = Some(Family::Ipv6)));
}

#[test]
fn a_wildcard_stands_for_any_characters() {
    for (pattern, name, expected) in [
        ("*", "", true),
        ("*.calico", "vxlan.calico", true),
        ("a*b*c", "aXbYc", true),
        ("a*b*c", "abc", true),
        ("a*b*c", "acb", false),
        ("a*a", "a", false),
        ("*ab", "aab", true),
    ] {
        assert_eq!(wildcard(pattern, name), expected, "{pattern} on {name}");
    }
}

#[test]
fn the_first_rule_with_a_verdict_decides_and_sees_what_earlier_ones_changed() {
    let mark: Community = "65000:2:3".parse().unwrap();
    let policy = Policy::reject_by_default(vec![
        Rule { actions: vec![Action::AddCommunity(mark)], ..Rule::default() },
        Rule {
            matches: Match { communities: vec![mark], ..Match::default() },
            actions: vec![
                Action::PrependAsPath(vec![1, 2]),
                Action::SetMed(Some(7)),
                Action::SetPriority(512),
                Action::RemoveCommunity("65000:1".parse().unwrap()),
            ],
            verdict: Some(Verdict::Accept),
            ..Rule::default()
        },
        Rule { verdict: Some(Verdict::Reject), ..Rule::default() },
    ]);
    let before = attributes();
    let outcome = policy.evaluate(&subject("10.0.0.0/8"), &before);
    assert_eq!((outcome.verdict, outcome.rule), (Verdict::Accept, Some(1)));
    let after = outcome.attributes;
    assert!(after.as_path_starts_with(&[1, 2, 65001, 65002]));
    assert_eq!((after.med, after.local_pref), (Some(7), Some(2_147_483_135)));
    assert_eq!((after.communities.len(), &after.large_communities[..]), (0, &[[65000, 2, 3]][..]));
}

#[test]
fn what_changes_nothing_copies_nothing() {
    let before = attributes();
    let outcome = Policy::default().evaluate(&subject("10.0.0.0/8"), &before);
    assert!(matches!(outcome.attributes, Cow::Borrowed(_)));
    assert!(Policy::default().is_transparent());
}

#[test]
fn communities_out_of_range_are_refused_by_name() {
    for text in ["", "1", "65536:1", "1:65536", "1:2:4294967296", "1:2:3:4", "+1:2", "a:b"] {
        let error = text.parse::<Community>().unwrap_err().to_string();
        assert!(error.starts_with(&format!("{text:?} is no BGP community")), "{error}");
    }
}

proptest! {
    #[test]
    fn lower_priorities_never_get_lower_local_preferences(a in 1u32..3000, b in 1u32..3000) {
        let (low, high) = (a.min(b), a.max(b));
        prop_assert!(local_preference_of(low) >= local_preference_of(high));
        if low <= 1124 {
            prop_assert_eq!(priority_of(Some(local_preference_of(low))), low);
        }
    }

    #[test]
    fn a_community_reads_back_as_it_is_shown(standard in any::<u32>(), large in any::<[u32; 3]>()) {
        for community in [Community::Standard(standard), Community::Large(large)] {
            prop_assert_eq!(community.to_string().parse(), Ok(community));
        }
    }

    #[test]
    fn in_and_not_in_are_opposites(address in any::<u32>(), length in 0u8..=32, net in any::<u32>(), bits in 0u8..=32) {
        let route = Prefix::new(IpAddr::from(address.to_be_bytes()), length).unwrap();
        let wanted = Prefix::new(IpAddr::from((net & address).to_be_bytes()), bits).unwrap();
        let holds = |operator| PrefixMatch::new(operator, wanted).holds(route);
        prop_assert_ne!(holds(PrefixOperator::In), holds(PrefixOperator::NotIn));
        prop_assert_ne!(holds(PrefixOperator::Equal), holds(PrefixOperator::NotEqual));
    }
}
