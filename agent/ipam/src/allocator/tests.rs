use proptest::prelude::*;

use super::*;
use crate::affinity::{Action, Affinity, State, plan};

fn pool() -> Pool {
    Pool::with_default_blocks("10.244.0.0/16".parse().unwrap()).unwrap()
}

fn request(id: &str) -> Request {
    Request {
        container_id: id.to_owned(),
        interface: "eth0".to_owned(),
        pod_namespace: "default".to_owned(),
        pod_name: format!("pod-{id}"),
        host_ports: Vec::new(),
    }
}

fn allocator_with(blocks: &[u64], cooldown: u64) -> Allocator {
    let mut allocator = Allocator::new(cooldown);
    for block in blocks {
        allocator.add_block(pool().block(*block).unwrap(), &pool());
    }
    allocator
}

#[test]
fn the_same_request_gets_the_same_address() {
    let mut allocator = allocator_with(&[1], 30);
    let first = allocator.allocate(&[pool()], &request("a"), 100).unwrap();
    assert_eq!(first, [IpAddr::from([10, 244, 0, 64])]);
    assert_eq!(allocator.allocate(&[pool()], &request("a"), 101).unwrap(), first);
    assert_eq!(allocator.allocations().count(), 1);
}

#[test]
fn a_released_address_rests_and_the_longest_free_comes_first() {
    let mut allocator = allocator_with(&[1], 30);
    for n in 0..64 {
        allocator.allocate(&[pool()], &request(&n.to_string()), 1000).unwrap();
    }
    let exhausted = AllocateError::Exhausted(pool().cidr());
    assert_eq!(allocator.allocate(&[pool()], &request("x"), 1000), Err(exhausted.clone()));
    allocator.release("9", None, 1001);
    allocator.release("3", None, 1002);
    assert_eq!(allocator.allocate(&[pool()], &request("x"), 1030), Err(exhausted));
    let next = allocator.allocate(&[pool()], &request("x"), 1040).unwrap();
    assert_eq!(next, [IpAddr::from([10, 244, 0, 73])]);
}

#[test]
fn without_a_block_the_error_says_so() {
    let mut allocator = Allocator::new(30);
    let error = allocator.allocate(&[pool()], &request("a"), 1).unwrap_err();
    assert_eq!(error.to_string(), "no block of pool 10.244.0.0/16 is confirmed for this node yet");
}

#[test]
fn half_of_a_dual_stack_request_is_none_at_all() {
    let v6 = Pool::with_default_blocks("fd00:10:244::/48".parse().unwrap()).unwrap();
    let mut allocator = allocator_with(&[1], 30);
    assert!(allocator.allocate(&[pool(), v6], &request("a"), 1).is_err());
    assert_eq!(allocator.allocations().count(), 0);
    allocator.add_block(v6.block(2).unwrap(), &v6);
    let both = allocator.allocate(&[pool(), v6], &request("a"), 1).unwrap();
    assert_eq!((both[0].is_ipv4(), both[1].is_ipv6()), (true, true));
}

#[test]
fn the_ends_of_the_pool_are_not_given_out() {
    let mut allocator = allocator_with(&[0, 1023], 0);
    let mut given = Vec::new();
    for n in 0..126 {
        given.extend(allocator.allocate(&[pool()], &request(&n.to_string()), 1).unwrap());
    }
    assert!(!given.contains(&IpAddr::from([10, 244, 0, 0])));
    assert!(!given.contains(&IpAddr::from([10, 244, 255, 255])));
    assert!(allocator.allocate(&[pool()], &request("more"), 1).is_err());
}

#[test]
fn a_pool_with_impossible_blocks_is_refused() {
    let cidr = "10.244.0.0/16".parse().unwrap();
    assert!(Pool::new(cidr, 15).is_err());
    assert!(Pool::new(cidr, 33).is_err());
    assert!(Pool::new("10.0.0.0/8".parse().unwrap(), 12).is_err());
}

#[derive(Clone, Debug)]
enum Event {
    Allocate(u8),
    Release(u8),
    Reload,
    Collect(u8),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        5 => (0u8..100).prop_map(Event::Allocate),
        3 => (0u8..100).prop_map(Event::Release),
        1 => Just(Event::Reload),
        1 => (0u8..100).prop_map(Event::Collect),
    ]
}

proptest! {
    #[test]
    fn no_address_is_given_twice_and_none_leaks(events in proptest::collection::vec(event(), 0..300)) {
        let mut allocator = allocator_with(&[1, 7], 5);
        let mut held: BTreeMap<u8, IpAddr> = BTreeMap::new();
        for (now, event) in events.into_iter().enumerate() {
            let now = now as u64 + 1;
            match event {
                Event::Allocate(n) => {
                    if let Ok(addresses) = allocator.allocate(&[pool()], &request(&n.to_string()), now) {
                        let before = held.insert(n, addresses[0]);
                        prop_assert!(before.is_none_or(|address| address == addresses[0]));
                    }
                }
                Event::Release(n) => {
                    let released = allocator.release(&n.to_string(), Some("eth0"), now);
                    prop_assert_eq!(released.first().map(|a| a.address), held.remove(&n));
                }
                Event::Reload => {
                    let text = serde_json::to_string(&allocator).unwrap();
                    allocator = serde_json::from_str(&text).unwrap();
                }
                Event::Collect(keep) => {
                    allocator.release_if(now, |a| a.owner.container_id != keep.to_string());
                    held.retain(|n, _| *n == keep);
                }
            }
            let distinct: BTreeSet<IpAddr> = held.values().copied().collect();
            prop_assert_eq!(distinct.len(), held.len());
            prop_assert!(allocator.is_consistent());
            prop_assert_eq!(allocator.allocations().count(), held.len());
            prop_assert_eq!(allocator.free(&pool()) + held.len(), 128);
        }
    }

    /// A store with create-if-absent and compare-and-swap on the sequence; each node acts on an old view.
    #[test]
    fn racing_nodes_never_hold_the_same_block_and_all_get_one(
        schedule in proptest::collection::vec((0usize..4, any::<bool>()), 40..120),
    ) {
        let small = Pool::new("10.9.0.0/28".parse().unwrap(), 30).unwrap();
        let nodes = ["a", "b", "c", "d"];
        let mut store: BTreeMap<IpNetwork, Affinity> = BTreeMap::new();
        let mut views: Vec<Vec<Affinity>> = vec![Vec::new(); 4];
        let mut allocators = vec![Allocator::new(0); 4];
        let tail = (0..40).flat_map(|_| (0..4).map(|n| (n, true)));
        for (n, refresh) in schedule.into_iter().chain(tail) {
            if refresh {
                views[n] = store.values().cloned().collect();
            }
            if allocators[n].blocks().count() > 0 {
                continue;
            }
            for action in plan(&[small], nodes[n], &views[n], &allocators[n]) {
                match action {
                    Action::Claim(block) => {
                        let node = nodes[n].to_owned();
                        let claim = Affinity { block, node, state: State::Pending, sequence: 1 };
                        store.entry(block).or_insert(claim);
                    }
                    Action::Confirm { block, sequence } => {
                        let affinity = store.get_mut(&block).unwrap();
                        if affinity.sequence == sequence {
                            affinity.state = State::Confirmed;
                            affinity.sequence += 1;
                        }
                    }
                    Action::Adopt(block) => allocators[n].add_block(block, &small),
                    Action::Surrender { block, .. } => { allocators[n].remove_block(block); }
                    Action::Exhausted(_) => {}
                }
            }
            let held: Vec<IpNetwork> = allocators.iter().flat_map(Allocator::blocks).collect();
            let distinct: BTreeSet<IpNetwork> = held.iter().copied().collect();
            prop_assert_eq!(held.len(), distinct.len());
        }
        prop_assert!(allocators.iter().all(|allocator| allocator.blocks().count() == 1));
    }
}

#[test]
fn a_block_lost_in_the_store_is_claimed_again_and_a_foreign_one_given_up() {
    let allocator = allocator_with(&[1], 0);
    let block = pool().block(1).unwrap();
    assert_eq!(plan(&[pool()], "a", &[], &allocator), [Action::Claim(block)]);
    let foreign = Affinity { block, node: "b".to_owned(), state: State::Confirmed, sequence: 2 };
    let owner = "b".to_owned();
    assert_eq!(plan(&[pool()], "a", &[foreign], &allocator), [Action::Surrender { block, owner }]);
}

#[test]
fn one_more_block_is_claimed_before_the_last_address_is_gone() {
    let mut allocator = allocator_with(&[1], 0);
    let block = pool().block(1).unwrap();
    let own = Affinity { block, node: "a".to_owned(), state: State::Confirmed, sequence: 2 };
    assert_eq!(plan(&[pool()], "a", std::slice::from_ref(&own), &allocator), []);
    for n in 0..57 {
        allocator.allocate(&[pool()], &request(&n.to_string()), 1).unwrap();
    }
    let actions = plan(&[pool()], "a", &[own], &allocator);
    assert!(matches!(actions[..], [Action::Claim(other)] if other != block), "{actions:?}");
}

#[test]
fn pools_with_more_blocks_than_a_word_counts_are_claimed_from_as_others_are() {
    for cidr in ["fd00:10:244::/64", "fd00:10:244::/58", "fd00::/8", "::/0"] {
        let pool = Pool::with_default_blocks(cidr.parse().unwrap()).unwrap();
        let mut taken: Vec<Affinity> = Vec::new();
        for node in ["a", "b", "c", "a"] {
            let actions = plan(&[pool], node, &taken, &Allocator::default());
            let claim = actions.iter().find_map(|action| match action {
                Action::Claim(block) => Some(*block),
                _ => None,
            });
            let block = claim.unwrap_or_else(|| panic!("{node} claims nothing of {cidr}: {actions:?}"));
            assert!(pool.owns(block) && taken.iter().all(|other| other.block != block), "{block}");
            taken.push(Affinity { block, node: "other".to_owned(), state: State::Confirmed, sequence: 1 });
        }
    }
}
