use proptest::prelude::*;

use super::*;

fn pool() -> Pool {
    Pool::with_default_blocks("10.244.0.0/16".parse().unwrap()).unwrap()
}

fn any() -> Want {
    Want::Of(vec![pool()])
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
    let first = allocator.allocate(&[any()], &[], &request("a"), 100).unwrap();
    assert_eq!(first, [IpAddr::from([10, 244, 0, 64])]);
    assert_eq!(allocator.allocate(&[any()], &[], &request("a"), 101).unwrap(), first);
    assert_eq!(allocator.allocations().count(), 1);
}

#[test]
fn a_released_address_rests_and_the_longest_free_comes_first() {
    let mut allocator = allocator_with(&[1], 30);
    for n in 0..64 {
        allocator.allocate(&[any()], &[], &request(&n.to_string()), 1000).unwrap();
    }
    let exhausted = AllocateError::Exhausted(vec![pool().cidr()]);
    assert_eq!(allocator.allocate(&[any()], &[], &request("x"), 1000), Err(exhausted.clone()));
    allocator.release("9", None, 1001);
    allocator.release("3", None, 1002);
    assert_eq!(allocator.allocate(&[any()], &[], &request("x"), 1030), Err(exhausted));
    let next = allocator.allocate(&[any()], &[], &request("x"), 1040).unwrap();
    assert_eq!(next, [IpAddr::from([10, 244, 0, 73])]);
}

#[test]
fn without_a_block_the_error_says_so() {
    let mut allocator = Allocator::new(30);
    let error = allocator.allocate(&[any()], &[], &request("a"), 1).unwrap_err();
    assert_eq!(error.to_string(), "no block of pool 10.244.0.0/16 is confirmed for this node yet");
}

#[test]
fn half_of_a_dual_stack_request_is_none_at_all() {
    let v6 = Pool::with_default_blocks("fd00:10:244::/48".parse().unwrap()).unwrap();
    let mut allocator = allocator_with(&[1], 30);
    assert!(allocator.allocate(&[any(), Want::Of(vec![v6])], &[], &request("a"), 1).is_err());
    assert_eq!(allocator.allocations().count(), 0);
    allocator.add_block(v6.block(2).unwrap(), &v6);
    let both = allocator.allocate(&[any(), Want::Of(vec![v6])], &[], &request("a"), 1).unwrap();
    assert_eq!((both[0].is_ipv4(), both[1].is_ipv6()), (true, true));
}

#[test]
fn the_ends_of_the_pool_are_not_given_out() {
    let mut allocator = allocator_with(&[0, 1023], 0);
    let mut given = Vec::new();
    for n in 0..126 {
        given.extend(allocator.allocate(&[any()], &[], &request(&n.to_string()), 1).unwrap());
    }
    assert!(!given.contains(&IpAddr::from([10, 244, 0, 0])));
    assert!(!given.contains(&IpAddr::from([10, 244, 255, 255])));
    assert!(allocator.allocate(&[any()], &[], &request("more"), 1).is_err());
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
                    if let Ok(addresses) = allocator.allocate(&[any()], &[], &request(&n.to_string()), now) {
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
            prop_assert_eq!(allocator.free(&pool(), &[]) + held.len(), 128);
        }
    }
}

#[test]
fn reserved_addresses_are_passed_over_and_given_to_who_asks_for_them() {
    let mut allocator = allocator_with(&[1], 30);
    let reserved = ["10.244.0.64/31".parse().unwrap(), "10.244.0.67/32".parse().unwrap()];
    assert_eq!(allocator.free(&pool(), &reserved), 61);
    let mut next =
        |id: &str| allocator.allocate(&[any()], &reserved, &request(id), 1).unwrap()[0].to_string();
    assert_eq!([next("a"), next("b")], ["10.244.0.66", "10.244.0.68"]);
    let wanted = "10.244.0.67".parse().unwrap();
    let exactly = [Want::Exactly(wanted)];
    assert_eq!(allocator.allocate(&exactly, &reserved, &request("c"), 1), Ok(vec![wanted]));
    let error = allocator.allocate(&exactly, &reserved, &request("d"), 1).unwrap_err();
    assert_eq!(error.to_string(), "10.244.0.67 is in use by pod default/pod-c");
    // The pod that takes its place does not wait.
    allocator.release("c", None, 2);
    assert_eq!(allocator.allocate(&exactly, &reserved, &request("d"), 2), Ok(vec![wanted]));
    let other = [Want::Exactly("10.244.7.7".parse().unwrap())];
    let error = allocator.allocate(&other, &[], &request("e"), 2).unwrap_err();
    assert_eq!(error.demands(), [Demand::Address("10.244.7.7".parse().unwrap())]);
}

#[test]
fn who_decided_to_release_an_address_before_it_was_given_anew_releases_nothing() {
    let mut allocator = allocator_with(&[1], 0);
    allocator.allocate(&[any()], &[], &request("a"), 1).unwrap();
    let decided = allocator.allocations().next().unwrap().sequence;
    allocator.release("a", None, 2);
    // The runtime makes the same container's interface anew.
    allocator.allocate(&[any()], &[], &request("a"), 3).unwrap();
    assert_eq!(allocator.release_if(4, |a| a.owner.container_id == "a" && a.sequence == decided), []);
    assert_eq!(allocator.allocations().count(), 1);
}

#[test]
fn a_clock_that_is_set_back_makes_no_address_rest_for_ever() {
    let mut allocator = allocator_with(&[1], 30);
    for n in 0..64 {
        allocator.allocate(&[any()], &[], &request(&n.to_string()), 1_000_000).unwrap();
    }
    allocator.release("9", None, 1_000_000);
    assert!(allocator.allocate(&[any()], &[], &request("x"), 999_990).is_err());
    assert!(allocator.allocate(&[any()], &[], &request("x"), 500_000).is_ok());
}

#[test]
fn pools_are_tried_in_order() {
    let first = Pool::new("10.9.0.0/31".parse().unwrap(), 32).unwrap();
    let mut allocator = allocator_with(&[1], 0);
    allocator
        .add_block("10.9.0.1/32".parse().unwrap(), &Pool::new("10.9.0.1/32".parse().unwrap(), 32).unwrap());
    let wants = [Want::Of(vec![first, pool()])];
    let mut next = |id: &str| allocator.allocate(&wants, &[], &request(id), 1).unwrap()[0].to_string();
    assert_eq!([next("a"), next("b")], ["10.9.0.1", "10.244.0.64"]);
}

#[test]
fn a_file_from_before_there_was_lending_is_read() {
    let text = r#"{"blocks":[{"cidr":"10.244.0.64/30","free":[{"ordinal":1,"freed_at":0}],"used":{}}],"cooldown":30}"#;
    let allocator: Allocator = serde_json::from_str(text).unwrap();
    assert!(allocator.is_consistent());
    assert_eq!(allocator.blocks().count(), 1);
}
