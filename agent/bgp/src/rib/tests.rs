use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::best_path::Reason;

fn path(peer: u8, local_pref: u32, as_path_length: usize, med: u32) -> Path {
    let as_path = if as_path_length == 0 {
        Vec::new()
    } else {
        vec![crate::wire::AsSegment::Sequence(vec![65000; as_path_length])]
    };
    let next_hop = IpAddr::from([10, 0, 0, peer]);
    let attributes = Attributes {
        next_hop,
        as_path,
        local_pref: Some(local_pref),
        med: Some(med),
        ..Attributes::default()
    };
    let router_id = Ipv4Addr::new(1, 1, 1, peer);
    Path::new(Source::Peer(next_hop), Arc::new(attributes), router_id, false)
}

fn prefix(n: u8) -> Prefix {
    Prefix::new(IpAddr::from([10, 244, n, 0]), 26).unwrap()
}

#[test]
fn higher_local_pref_beats_shorter_as_path_and_says_so() {
    let paths = [path(1, 100, 1, 0), path(2, 200, 5, 0)];
    let selection = best_path::select(&paths, 16).unwrap();
    assert_eq!(selection.best.source, paths[1].source);
    assert_eq!(selection.reason, Reason::LocalPref);
    assert_eq!(selection.next_hops, [IpAddr::from([10, 0, 0, 2])]);
}

#[test]
fn paths_of_equal_cost_share_the_load_up_to_the_limit() {
    let paths = [path(3, 100, 1, 0), path(1, 100, 1, 0), path(2, 100, 1, 0)];
    let selection = best_path::select(&paths, 2).unwrap();
    assert_eq!(selection.reason, Reason::RouterId);
    assert_eq!(selection.best.source, paths[1].source);
    assert_eq!(selection.next_hops, [IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2])]);
}

#[test]
fn equal_attributes_share_one_allocation_and_unused_ones_are_dropped() {
    let mut rib = Rib::default();
    let a = rib.intern(Attributes { med: Some(7), ..Attributes::default() });
    let b = rib.intern(Attributes { med: Some(7), ..Attributes::default() });
    assert!(Arc::ptr_eq(&a, &b));
    for med in 0..5000 {
        rib.intern(Attributes { med: Some(med), ..Attributes::default() });
    }
    assert!(rib.interned.len() < 2100, "{} kept", rib.interned.len());
}

#[derive(Clone, Debug)]
enum Event {
    Insert(u8, u8, u32),
    Remove(u8, u8),
    Stale(u8),
    Sweep(u8),
    Down(u8),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (0u8..6, 0u8..4, 100u32..103).prop_map(|(p, s, l)| Event::Insert(p, s, l)),
        2 => (0u8..6, 0u8..4).prop_map(|(p, s)| Event::Remove(p, s)),
        1 => (0u8..4).prop_map(Event::Stale),
        1 => (0u8..4).prop_map(Event::Sweep),
        1 => (0u8..4).prop_map(Event::Down),
    ]
}

proptest! {
    #[test]
    fn any_event_order_keeps_rib_equal_to_rebuild(events in proptest::collection::vec(event(), 0..120)) {
        let source = |s: u8| Source::Peer(IpAddr::from([10, 0, 0, s]));
        let mut rib = Rib::default();
        let mut model: BTreeMap<(u8, u8), (u32, bool)> = BTreeMap::new();
        let mut best: BTreeMap<Prefix, Vec<IpAddr>> = BTreeMap::new();
        for event in events {
            match event {
                Event::Insert(p, s, l) => {
                    rib.insert(prefix(p), path(s, l, 0, 0));
                    model.insert((p, s), (l, false));
                }
                Event::Remove(p, s) => {
                    rib.remove(prefix(p), source(s), 0);
                    model.remove(&(p, s));
                }
                Event::Stale(s) => {
                    rib.mark_stale(source(s), Family::Ipv4);
                    model.iter_mut().filter(|(k, _)| k.1 == s).for_each(|(_, v)| v.1 = true);
                }
                Event::Sweep(s) => {
                    rib.sweep_stale(source(s), Some(Family::Ipv4));
                    model.retain(|k, v| k.1 != s || !v.1);
                }
                Event::Down(s) => {
                    rib.remove_source(source(s), None);
                    model.retain(|k, _| k.1 != s);
                }
            }
            for changed in rib.take_dirty().into_iter().map(|id| rib.prefix_at(id)).collect::<Vec<_>>() {
                match rib.select(changed, 16) {
                    Some(selection) => { best.insert(changed, selection.next_hops); }
                    None => { best.remove(&changed); }
                }
            }
            rib.forget_vanished();
            for s in 0..4 {
                let total = model.keys().filter(|k| k.1 == s).count();
                let stale = model.iter().filter(|(k, v)| k.1 == s && v.1).count();
                prop_assert_eq!(rib.count(source(s)), Count { total, stale, rejected: 0 });
            }
        }
        let mut rebuilt = Rib::default();
        for ((p, s), (l, _)) in &model {
            rebuilt.insert(prefix(*p), path(*s, *l, 0, 0));
        }
        let expected: BTreeMap<Prefix, Vec<IpAddr>> = rebuilt
            .destinations()
            .map(|(prefix, _)| (*prefix, rebuilt.select(*prefix, 16).unwrap().next_hops))
            .collect();
        prop_assert_eq!(best, expected);
    }

    #[test]
    fn selection_does_not_depend_on_the_order_of_arrival(
        mut specs in proptest::collection::vec((0u8..8, 100u32..102, 0usize..3, 0u32..3), 1..8),
        rotation in 0usize..8,
    ) {
        specs.sort_unstable();
        specs.dedup_by_key(|spec| spec.0);
        let paths: Vec<Path> = specs.iter().map(|(p, l, a, m)| path(*p, *l, *a, *m)).collect();
        let mut rotated = paths.clone();
        rotated.rotate_left(rotation % paths.len());
        let (a, b) = (best_path::select(&paths, 16).unwrap(), best_path::select(&rotated, 16).unwrap());
        prop_assert_eq!(a, b);
    }
}
