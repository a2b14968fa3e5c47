use proptest::prelude::*;

use super::*;

fn pool(name: &str, cidr: &str) -> Pool {
    Pool {
        name: name.to_owned(),
        cidr: cidr.parse().expect("a range"),
        is_automatic: true,
        is_disabled: false,
        namespaces: None,
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn wanted(families: &[bool]) -> Wanted {
    Wanted { families: families.to_vec(), ..Wanted::default() }
}

fn supply<'a>(
    pools: &'a [Pool],
    held: &'a BTreeMap<IpAddr, String>,
    labels: &'a BTreeMap<String, String>,
) -> Supply<'a> {
    Supply { pools, reserved: &[], holder_by_address: held, namespace_labels: labels }
}

#[test]
fn families_reservations_and_the_edges_of_a_pool_are_heeded() {
    let pools = [pool("a", "192.0.2.0/29"), pool("b", "2001:db8::/120")];
    let (held, labels) = (BTreeMap::new(), BTreeMap::new());
    let reserved = ["192.0.2.1/32".parse().expect("a range"), "192.0.2.2/31".parse().expect("a range")];
    let supply = Supply { reserved: &reserved, ..supply(&pools, &held, &labels) };
    let plan = plan(&wanted(&[false, true]), supply, &BTreeSet::new());
    assert_eq!(plan.addresses, [ip("2001:db8::1"), ip("192.0.2.4")]);
    assert!(plan.problems.is_empty());
}

#[test]
fn what_is_missing_is_said_and_the_other_family_is_given() {
    let pools = [pool("a", "192.0.2.0/32")];
    let labels = BTreeMap::new();
    let none = BTreeMap::new();
    let both = wanted(&[true, false]);
    let first = plan(&both, supply(&pools, &none, &labels), &BTreeSet::new());
    assert_eq!(first.addresses, [ip("192.0.2.0")]);
    assert_eq!(
        first.problems,
        ["no IPPool gives addresses of IPv6 to this namespace without being asked for"]
    );
    let held = BTreeMap::from([(ip("192.0.2.0"), "Service a/b".to_owned())]);
    let full = plan(&wanted(&[true]), supply(&pools, &held, &labels), &BTreeSet::new());
    assert_eq!(full.problems, ["no address of IPv4 is free in IPPool a"]);
    let none = plan(&both, supply(&[], &held, &labels), &BTreeSet::new());
    assert_eq!(none.problems, ["no IPPool has allowedUses [LoadBalancer]"]);
}

#[test]
fn a_manual_pool_gives_to_those_who_name_it_or_an_address_of_it() {
    let manual = Pool { is_automatic: false, ..pool("m", "192.0.2.0/28") };
    let pools = [manual, pool("a", "198.51.100.0/28")];
    let (held, labels) = (BTreeMap::new(), BTreeMap::new());
    let given = |wanted: &Wanted, own: &[&str]| {
        plan(wanted, supply(&pools, &held, &labels), &own.iter().map(|text| ip(text)).collect()).addresses
    };
    let plain = wanted(&[true]);
    assert_eq!(given(&plain, &[]), [ip("198.51.100.1")]);
    for name in ["m", "192.0.2.0/28"] {
        let named = Wanted { pools: BTreeMap::from([(true, vec![name.to_owned()])]), ..plain.clone() };
        assert_eq!(given(&named, &["198.51.100.1"]), [ip("192.0.2.1")], "{name}");
    }
    let exact = Wanted { addresses: Some(vec![ip("192.0.2.0")]), ..plain.clone() };
    assert_eq!(given(&exact, &[]), [ip("192.0.2.0")]);
    // Who no longer asks for it gives it back.
    assert_eq!(given(&plain, &["192.0.2.1"]), [ip("198.51.100.1")]);
}

#[test]
fn a_disabled_pool_gives_nothing_new_and_takes_nothing_away() {
    let pools = [Pool { is_disabled: true, ..pool("a", "192.0.2.0/28") }];
    let (held, labels) = (BTreeMap::new(), BTreeMap::new());
    let supply = supply(&pools, &held, &labels);
    let own = BTreeSet::from([ip("192.0.2.7")]);
    assert_eq!(plan(&wanted(&[true]), supply, &own).addresses, [ip("192.0.2.7")]);
    assert!(plan(&wanted(&[true]), supply, &BTreeSet::new()).addresses.is_empty());
    let exact = Wanted { addresses: Some(vec![ip("192.0.2.7")]), ..wanted(&[true]) };
    assert_eq!(plan(&exact, supply, &own).addresses, [ip("192.0.2.7")]);
    assert_eq!(
        plan(&exact, supply, &BTreeSet::new()).problems,
        ["192.0.2.7 is asked for, but its IPPool a is disabled"]
    );
}

#[test]
fn namespaces_are_chosen_by_a_pool_unless_it_is_named() {
    let team = "team == 'a'".parse().expect("a selector");
    let pools = [Pool { namespaces: Some(team), ..pool("a", "192.0.2.0/28") }];
    let held = BTreeMap::new();
    let of = |team: &str| BTreeMap::from([("team".to_owned(), team.to_owned())]);
    let (a, b) = (of("a"), of("b"));
    assert_eq!(
        plan(&wanted(&[true]), supply(&pools, &held, &a), &BTreeSet::new()).addresses,
        [ip("192.0.2.1")]
    );
    assert!(plan(&wanted(&[true]), supply(&pools, &held, &b), &BTreeSet::new()).addresses.is_empty());
    let named = Wanted { pools: BTreeMap::from([(true, vec!["a".to_owned()])]), ..wanted(&[true]) };
    assert_eq!(plan(&named, supply(&pools, &held, &b), &BTreeSet::new()).addresses, [ip("192.0.2.1")]);
}

#[test]
fn a_request_that_cannot_be_met_says_why() {
    let pools = [pool("a", "192.0.2.0/28"), pool("b", "2001:db8::/64")];
    let labels = BTreeMap::new();
    let held = BTreeMap::from([(ip("192.0.2.9"), "Service team/web".to_owned())]);
    let problem = |addresses: &[&str]| {
        let addresses = Some(addresses.iter().map(|text| ip(text)).collect());
        plan(&Wanted { addresses, ..wanted(&[true]) }, supply(&pools, &held, &labels), &BTreeSet::new())
            .problems
    };
    assert_eq!(problem(&["192.0.2.9"]), ["192.0.2.9 is asked for, but Service team/web has it"]);
    assert_eq!(
        problem(&["10.0.0.1"]),
        ["10.0.0.1 is asked for, but is in no IPPool with allowedUses [LoadBalancer]"]
    );
    assert_eq!(problem(&["2001:db8::1"]), ["2001:db8::1 is asked for, but the Service is not of IPv6"]);
    assert_eq!(problem(&["192.0.2.1", "192.0.2.2"]).len(), 2);
    let named = Wanted { pools: BTreeMap::from([(true, vec!["b".to_owned()])]), ..wanted(&[true]) };
    let plan = plan(&named, supply(&pools, &held, &labels), &BTreeSet::new());
    assert_eq!(plan.problems, ["IPPool b is asked for, but is not of IPv4"]);
}

#[derive(Debug, Clone)]
enum Step {
    Add(usize, Vec<bool>, Option<u8>),
    Remove(usize),
    Reserve(u8),
}

fn step() -> impl Strategy<Value = Step> {
    let families = prop_oneof![Just(vec![true]), Just(vec![false]), Just(vec![true, false])];
    prop_oneof![
        4 => (0..12_usize, families, proptest::option::weighted(0.2, 0..16_u8))
            .prop_map(|(service, families, exact)| Step::Add(service, families, exact)),
        2 => (0..12_usize).prop_map(Step::Remove),
        1 => (0..16_u8).prop_map(Step::Reserve),
    ]
}

proptest! {
    #[test]
    fn no_address_is_given_twice_and_none_is_withheld(steps in proptest::collection::vec(step(), 1..60)) {
        let pools = [pool("a", "192.0.2.0/29"), pool("b", "192.0.2.8/30"), pool("c", "2001:db8::/125")];
        let labels = BTreeMap::new();
        let mut reserved: Vec<IpNetwork> = Vec::new();
        let mut addresses_by_service: BTreeMap<usize, Vec<IpAddr>> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Remove(service) => drop(addresses_by_service.remove(&service)),
                Step::Reserve(last) => reserved.push(ip(&format!("192.0.2.{last}")).into()),
                Step::Add(service, families, exact) => {
                    let own: BTreeSet<IpAddr> = addresses_by_service.remove(&service).unwrap_or_default().into_iter().collect();
                    let held: BTreeMap<IpAddr, String> = addresses_by_service
                        .iter()
                        .flat_map(|(other, ips)| ips.iter().map(move |ip| (*ip, format!("Service {other}"))))
                        .collect();
                    let exact = exact.filter(|_| families == [true]).map(|last| vec![ip(&format!("192.0.2.{last}"))]);
                    let wanted = Wanted { families: families.clone(), addresses: exact.clone(), pools: BTreeMap::new() };
                    let supply = Supply { pools: &pools, reserved: &reserved, holder_by_address: &held, namespace_labels: &labels };
                    let plan = plan(&wanted, supply, &own);
                    prop_assert_eq!(plan.addresses.len() + plan.problems.len(), families.len());
                    for ip in &plan.addresses {
                        prop_assert!(!held.contains_key(ip), "{} is held", ip);
                        prop_assert!(pools.iter().any(|pool| pool.cidr.contains(*ip)));
                        let is_new = !own.contains(ip) && exact.is_none();
                        prop_assert!(!is_new || !reserved.iter().any(|range| range.contains(*ip)), "{} is reserved", ip);
                        let had = own.iter().find(|had| had.is_ipv4() == ip.is_ipv4());
                        prop_assert!(exact.is_some() || had.is_none_or(|had| had == ip), "{:?} was taken away", had);
                    }
                    if exact.is_none() && !plan.problems.is_empty() {
                        let v4 = families.iter().find(|v4| !plan.addresses.iter().any(|ip| ip.is_ipv4() == **v4));
                        let of_family = pools.iter().filter(|pool| Some(&pool.cidr.is_ipv4()) == v4);
                        for pool in of_family {
                            let (first, last) = given_without_asking(pool.cidr);
                            for ip in (first..=last).map(|number| address(number, pool.cidr.is_ipv4())) {
                                prop_assert!(held.contains_key(&ip) || reserved.iter().any(|r| r.contains(ip)), "{} is free", ip);
                            }
                        }
                    }
                    addresses_by_service.insert(service, plan.addresses);
                }
            }
        }
    }
}
