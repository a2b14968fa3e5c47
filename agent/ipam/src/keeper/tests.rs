//! Nodes on one store, whose answers are lost, whose writes collide and whose views are old.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::allocator::{AllocateError, Request, Want};

/// Every write has a version of its own, whatever it is about.
#[derive(Default)]
struct Store {
    objects: BTreeMap<IpNetwork, (Affinity, Version)>,
    version: Version,
}

impl Store {
    /// Whether it was written.
    fn write(&mut self, write: &Write) -> bool {
        let current = self.objects.get(&write.block()).map(|(_, version)| *version);
        let is_due = match write {
            Write::Create(_) => current.is_none(),
            Write::Replace(_, version) | Write::Delete(_, version) => current == Some(*version),
        };
        if is_due {
            self.version += 1;
            match write {
                Write::Create(affinity) | Write::Replace(affinity, _) => {
                    self.objects.insert(affinity.block, (affinity.clone(), self.version));
                }
                Write::Delete(block, _) => drop(self.objects.remove(block)),
            }
        }
        is_due
    }

    fn show(&self, node: &mut Node) {
        node.keeper.list(self.objects.values().cloned());
    }
}

struct Node {
    keeper: Keeper,
    allocator: Allocator,
    demands: Demands,
    /// Sent, and perhaps not there yet.
    under_way: Vec<Write>,
}

fn pool() -> NodePool {
    let pool = Pool::new("10.9.0.0/27".parse().unwrap(), 29).unwrap();
    NodePool { pool, gives: true, is_automatic: true }
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

impl Node {
    fn new(name: &str) -> Node {
        Node {
            keeper: Keeper::new(name),
            allocator: Allocator::new(0),
            demands: Demands::default(),
            under_way: Vec::new(),
        }
    }

    fn step(&mut self, pools: &[NodePool], now: u64) -> Step {
        let situation = Situation { pools, reserved: &[], demands: &mut self.demands, now };
        self.keeper.step(&mut self.allocator, situation)
    }

    /// Does all that can be done, with all answers.
    fn settle(&mut self, store: &mut Store, pools: &[NodePool], now: u64) {
        for _ in 0..100 {
            store.show(self);
            match self.step(pools, now).write {
                Some(write) => assert!(store.write(&write), "{write:?}"),
                None => return,
            }
        }
        panic!("there is no end to it: {:?}", self.keeper.known);
    }

    fn add(&mut self, want: &Want, id: &str, now: u64) -> Result<IpAddr, AllocateError> {
        let result = self.allocator.allocate(std::slice::from_ref(want), &[], &request(id), now);
        match &result {
            Ok(addresses) => self.demands.meet(Demand::Address(addresses[0])),
            Err(error) => error.demands().into_iter().for_each(|demand| self.demands.add(demand, now)),
        }
        result.map(|addresses| addresses[0])
    }
}

fn any() -> Want {
    Want::Of(vec![pool().pool])
}

fn addresses(nodes: &[Node]) -> Vec<IpAddr> {
    nodes.iter().flat_map(|node| node.allocator.allocations().map(|a| a.address)).collect()
}

#[test]
fn a_node_claims_confirms_and_then_uses_a_block() {
    let (mut store, mut node) = (Store::default(), Node::new("a"));
    assert_eq!(node.step(&[pool()], 1), Step::default(), "nothing is known yet");
    store.show(&mut node);
    let Some(write) = node.step(&[pool()], 1).write else { panic!("it claims") };
    assert!(matches!(&write, Write::Create(block) if block.state == State::Pending), "{write:?}");
    assert!(store.write(&write));
    store.show(&mut node);
    let step = node.step(&[pool()], 1);
    assert_eq!(step.changes, [], "it is not confirmed");
    let Some(write @ Write::Replace(..)) = step.write else { panic!("it confirms") };
    assert!(store.write(&write));
    store.show(&mut node);
    let step = node.step(&[pool()], 1);
    assert_eq!(step.changes, [Change::Adopted(write.block())]);
    assert!(node.add(&any(), "c", 1).is_ok());
}

#[test]
fn a_node_that_finds_no_block_borrows_and_gives_back() {
    let (mut store, pools) = (Store::default(), [pool()]);
    let mut owners: Vec<Node> = ["a", "b", "c", "d"].map(Node::new).into();
    for owner in &mut owners {
        owner.settle(&mut store, &pools, 1);
        // Each is content with what it has.
        assert_eq!(owner.allocator.blocks().count(), 1);
    }
    for owner in &mut owners {
        owner.settle(&mut store, &pools, 2);
    }
    let mut late = Node::new("late");
    late.settle(&mut store, &pools, 3);
    assert_eq!((late.allocator.blocks().count(), late.allocator.borrowed().count()), (0, 1));
    let first = late.add(&any(), "1", 3).unwrap();
    late.settle(&mut store, &pools, 3);
    let second = late.add(&any(), "2", 3).unwrap();
    late.settle(&mut store, &pools, 3);
    let owner_of = |store: &Store, ip| {
        store.objects.values().find(|(affinity, _)| affinity.block.contains(ip)).unwrap().0.clone()
    };
    assert_eq!(owner_of(&store, second).borrowed.get(&second), Some(&"late".to_owned()));
    // No owner gives it to a pod of its own.
    for (n, owner) in owners.iter_mut().enumerate() {
        (0..8).for_each(|pod| drop(owner.add(&any(), &format!("{n}-{pod}"), 4)));
        owner.settle(&mut store, &pools, 4);
        assert!(owner.allocator.allocations().all(|a| a.address != first && a.address != second));
    }
    late.allocator.release_if(5, |_| true);
    owners.iter_mut().for_each(|owner| drop(owner.allocator.release_if(5, |_| true)));
    let unused = [NodePool { gives: false, ..pool() }];
    late.settle(&mut store, &unused, 6);
    assert!(store.objects.values().all(|(affinity, _)| affinity.borrowed.is_empty()));
    for owner in &mut owners {
        owner.settle(&mut store, &unused, 6);
        assert_eq!(owner.allocator.blocks().count(), 0);
    }
    assert_eq!(store.objects.len(), 0);
}

#[test]
fn an_address_by_name_comes_from_the_block_of_another_node() {
    let (mut store, pools) = (Store::default(), [pool()]);
    let (mut owner, mut other) = (Node::new("a"), Node::new("b"));
    owner.settle(&mut store, &pools, 1);
    other.settle(&mut store, &pools, 1);
    let block = owner.allocator.blocks().next().unwrap();
    let wanted = owner.add(&any(), "x", 1).unwrap();
    let exactly = Want::Exactly(wanted);
    assert!(other.add(&exactly, "y", 1).is_err());
    other.settle(&mut store, &pools, 1);
    owner.settle(&mut store, &pools, 1);
    let (affinity, _) = &store.objects[&block];
    assert!(affinity.requested.is_empty() && affinity.borrowed.is_empty(), "it is in use: {affinity:?}");
    owner.allocator.release("x", None, 2);
    assert!(other.add(&exactly, "y", 2).is_err());
    other.settle(&mut store, &pools, 2);
    owner.settle(&mut store, &pools, 2);
    other.settle(&mut store, &pools, 2);
    assert_eq!(other.add(&exactly, "y", 3), Ok(wanted));
    other.settle(&mut store, &pools, 3);
    assert!(owner.add(&exactly, "x", 3).is_err());
    other.allocator.release("y", None, 4);
    other.settle(&mut store, &pools, 4);
    owner.settle(&mut store, &pools, 4);
    assert_eq!(owner.add(&exactly, "x", 5), Ok(wanted));
    assert_eq!(owner.allocator.usage(block).unwrap().0, 1);
}

#[test]
fn an_address_by_name_in_an_unclaimed_block_is_claimed_with_it() {
    let manual = [NodePool { is_automatic: false, ..pool() }];
    let (mut store, mut node) = (Store::default(), Node::new("a"));
    node.settle(&mut store, &manual, 1);
    assert_eq!(store.objects.len(), 0, "nobody asked for the pool");
    let wanted = "10.9.0.13".parse().unwrap();
    assert!(node.add(&Want::Exactly(wanted), "x", 1).is_err());
    node.settle(&mut store, &manual, 1);
    assert_eq!(node.allocator.blocks().collect::<Vec<_>>(), ["10.9.0.8/29".parse().unwrap()]);
    assert_eq!(node.add(&Want::Exactly(wanted), "x", 1), Ok(wanted));
}

#[test]
fn a_block_lost_in_the_store_is_claimed_again_and_a_foreign_one_given_up() {
    let (mut store, pools) = (Store::default(), [pool()]);
    let mut node = Node::new("a");
    node.settle(&mut store, &pools, 1);
    let block = node.allocator.blocks().next().unwrap();
    node.add(&any(), "x", 1).unwrap();
    let lost = store.objects.remove(&block).unwrap();
    store.show(&mut node);
    let claim = node.step(&pools, 1).write;
    assert!(matches!(&claim, Some(Write::Create(again)) if again.sequence > lost.0.sequence), "{claim:?}");
    assert!(node.add(&any(), "y", 1).is_err(), "somebody else may have it");
    node.settle(&mut store, &pools, 1);
    assert!(node.add(&any(), "y", 1).is_ok());
    let foreign = Affinity::new(block, "b", State::Confirmed, 2);
    store.objects.insert(block, (foreign, 99));
    store.show(&mut node);
    let changes = node.step(&pools, 1).changes;
    assert!(
        matches!(&changes[..], [Change::Surrendered { owner, pods, .. }] if owner == "b" && pods.len() == 2),
        "{changes:?}"
    );
}

#[test]
fn blocks_of_a_pool_that_is_gone_are_given_back_when_the_last_pod_is() {
    let mut store = Store::default();
    let mut node = Node::new("a");
    node.settle(&mut store, &[pool()], 1);
    node.add(&any(), "x", 1).unwrap();
    node.settle(&mut store, &[], 2);
    assert_eq!(store.objects.len(), 1, "a pod has an address of it");
    node.allocator.release("x", None, 3);
    store.show(&mut node);
    let step = node.step(&[], 3);
    assert!(matches!(step.changes[..], [Change::GaveUp(_)]));
    let Some(Write::Replace(marked, _)) = &step.write else { panic!("it is marked first: {step:?}") };
    assert_eq!(marked.state, State::PendingDeletion);
    node.settle(&mut store, &[], 3);
    assert_eq!(store.objects.len(), 0);
}

#[test]
fn what_a_gone_node_had_is_marked_then_deleted_and_kept_while_others_borrow_of_it() {
    let block: IpNetwork = "10.9.0.0/29".parse().unwrap();
    let ip = |host| IpAddr::from([10, 9, 0, host]);
    let mut affinity = Affinity::new(block, "gone", State::Confirmed, 4);
    affinity.offered = [ip(1)].into();
    affinity.borrowed = [(ip(2), "alive".to_owned()), (ip(3), "gone-too".to_owned())].into();
    let is_gone = |node: &str| node.starts_with("gone");
    let Collected::Replace(marked) = collect(&affinity, is_gone) else { panic!("it is marked") };
    assert_eq!((marked.state, marked.sequence), (State::PendingDeletion, 5));
    assert_eq!((marked.offered.len(), marked.borrowed.len()), (0, 2));
    assert_eq!(marked.reclaimed, [ip(3)].into(), "its borrower may object");
    let Collected::Replace(marked) = collect(&marked, is_gone) else { panic!("nobody objected") };
    assert_eq!((marked.borrowed.len(), marked.reclaimed.len()), (1, 0));
    assert_eq!(collect(&marked, is_gone), Collected::Nothing, "it is borrowed");
    let free = Affinity { borrowed: BTreeMap::new(), ..marked.clone() };
    assert_eq!(collect(&free, is_gone), Collected::Delete);
    assert_eq!(collect(&free, |_| false), Collected::Nothing, "its node is back and confirms it again");
    let mut back = Node::new("gone");
    let mut store = Store { version: 7, ..Store::default() };
    store.objects.insert(block, (free, 7));
    back.allocator.add_block(block, &pool().pool);
    back.settle(&mut store, &[pool()], 1);
    assert_eq!(store.objects[&block].0.state, State::Confirmed);
}

#[test]
fn a_borrower_that_is_not_gone_says_so_before_it_goes_on() {
    let (block, ip) = ("10.9.0.0/29".parse().unwrap(), IpAddr::from([10, 9, 0, 2]));
    let mut affinity = Affinity::new(block, "owner", State::Confirmed, 4);
    affinity.borrowed = [(ip, "b".to_owned())].into();
    affinity.reclaimed = [ip].into();
    let mut store = Store { version: 7, ..Store::default() };
    store.objects.insert(block, (affinity, 7));
    let mut borrower = Node::new("b");
    borrower.allocator.add(ip.into(), &pool().pool, true, 4);
    borrower.add(&Want::Exactly(ip), "x", 1).unwrap();
    let mut wiped = Node::new("b");
    store.show(&mut borrower);
    let step = borrower.step(&[pool()], 1);
    assert_eq!(step.changes, [Change::Suspended(ip.into())]);
    assert!(store.write(&step.write.unwrap()));
    assert_eq!(store.objects[&block].0.reclaimed.len(), 0);
    store.show(&mut borrower);
    assert_eq!(borrower.step(&[pool()], 1).changes, [Change::Adopted(ip.into())]);
    // One that remembers nothing gives it back.
    store.objects.get_mut(&block).unwrap().0.reclaimed = [ip].into();
    wiped.settle(&mut store, &[], 1);
    assert_eq!(store.objects[&block].0.borrowed.len(), 0);
}

#[test]
fn a_claim_that_arrives_once_more_after_its_block_was_given_up_leaves_nothing_behind() {
    for gives in [false, true] {
        let (mut node, mut store) = (Node::new("b"), Store::default());
        store.show(&mut node);
        let claim = node.step(&[pool()], 1).write.expect("a claim");
        assert!(store.write(&claim));
        node.settle(&mut store, &[pool()], 2);
        // Much has happened to the block before it is given up.
        let (mut affinity, version) = store.objects[&claim.block()].clone();
        affinity.sequence += 5;
        assert!(store.write(&Write::Replace(affinity, version)));
        node.settle(&mut store, &[], 3);
        assert_eq!(store.objects.len(), 0);
        assert!(store.write(&claim));
        // It is confirmed before it is known to be an old one.
        let pools = [pool()];
        node.settle(&mut store, &pools, 4);
        node.settle(&mut store, if gives { &pools } else { &[] }, 5);
        let held: Vec<IpNetwork> = node.allocator.blocks().collect();
        assert_eq!(store.objects.keys().copied().collect::<Vec<_>>(), held, "{gives}");
        assert_eq!(held.is_empty(), !gives);
    }
}

#[test]
fn blocks_never_overlap_those_of_an_earlier_pool_with_another_block_size() {
    for (before, length) in [("10.9.0.0/28", 30), ("10.9.0.0/31", 28), ("10.9.0.12/30", 29)] {
        let mut node = Node::new("n");
        let affinity = Affinity::new(before.parse().unwrap(), "other", State::Confirmed, 1);
        node.keeper.list([(affinity.clone(), 1)]);
        let pool = Pool::new("10.9.0.0/27".parse().unwrap(), length).unwrap();
        let pools = [NodePool { pool, gives: true, is_automatic: true }];
        let write = node.step(&pools, 1).write;
        let Some(Write::Create(claim)) = write else { panic!("{before}: {write:?}") };
        let (a, b) = (claim.block, affinity.block);
        assert!(!a.contains(b.network()) && !b.contains(a.network()), "{a} overlaps {b}");
    }
}

#[test]
fn pools_with_more_blocks_than_a_word_counts_are_claimed_from_as_others_are() {
    for cidr in ["fd00:10:244::/64", "fd00:10:244::/58", "fd00::/8", "::/0"] {
        let pool = Pool::with_default_blocks(cidr.parse().unwrap()).unwrap();
        let pools = [NodePool { pool, gives: true, is_automatic: true }];
        let mut store = Store::default();
        for name in ["a", "b", "c", "a2"] {
            let mut node = Node::new(name);
            node.settle(&mut store, &pools, 1);
            let block = node.allocator.blocks().next();
            assert!(block.is_some_and(|block| pool.owns(block)), "{name} has nothing of {cidr}");
        }
        assert_eq!(store.objects.len(), 4);
    }
}

#[derive(Clone, Debug)]
enum Event {
    /// A node looks, decides, sends and is answered.
    Turn(usize),
    /// It sees the store as it is.
    Look(usize),
    /// It decides and sends.
    Step(usize),
    /// A request of it arrives, and the answer does or does not.
    Arrive(usize, usize, bool),
    Add(usize, u8),
    AddExactly(usize, u8, u8),
    Delete(usize, u8),
    /// It loses all that is not on disk, and its requests may arrive still.
    Restart(usize),
    /// It loses its disk too; its pods are gone.
    Wipe(usize),
    PoolGives(bool),
}

fn event() -> impl Strategy<Value = Event> {
    let node = || 0..NAMES.len();
    prop_oneof![
        30 => node().prop_map(Event::Turn),
        8 => node().prop_map(Event::Look),
        8 => node().prop_map(Event::Step),
        10 => (node(), 0usize..3, proptest::bool::ANY).prop_map(|(n, i, answer)| Event::Arrive(n, i, answer)),
        14 => (node(), 0u8..5).prop_map(|(n, pod)| Event::Add(n, pod)),
        4 => (node(), 0u8..5, 0u8..16).prop_map(|(n, pod, ip)| Event::AddExactly(n, pod, ip)),
        14 => (node(), 0u8..5).prop_map(|(n, pod)| Event::Delete(n, pod)),
        2 => node().prop_map(Event::Restart),
        1 => node().prop_map(Event::Wipe),
        1 => proptest::bool::ANY.prop_map(Event::PoolGives),
        1 => Just(Event::PoolGives(true)),
    ]
}

/// More than there are blocks.
const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];

struct World {
    store: Store,
    nodes: Vec<Node>,
    pools: [NodePool; 1],
    now: u64,
}

impl World {
    fn new() -> World {
        let pool = Pool::new("10.9.0.0/28".parse().unwrap(), 30).unwrap();
        let pools = [NodePool { pool, gives: true, is_automatic: true }];
        let nodes = NAMES.map(Node::new).into();
        World { store: Store::default(), nodes, pools, now: 0 }
    }

    fn apply(&mut self, event: Event) {
        self.now += 1;
        let (now, pool) = (self.now, self.pools[0].pool);
        match event {
            Event::Turn(n) => {
                self.store.show(&mut self.nodes[n]);
                if let Some(write) = self.nodes[n].step(&self.pools, now).write {
                    self.store.write(&write);
                }
            }
            Event::Look(n) => self.store.show(&mut self.nodes[n]),
            Event::Step(n) => {
                let step = self.nodes[n].step(&self.pools, now);
                self.nodes[n].under_way.extend(step.write);
            }
            Event::Arrive(n, index, is_answered) => {
                let node = &mut self.nodes[n];
                if index >= node.under_way.len() {
                    return;
                }
                // What is not answered may arrive once more.
                let write =
                    if is_answered { node.under_way.remove(index) } else { node.under_way[index].clone() };
                self.store.write(&write);
                if is_answered {
                    match self.store.objects.get(&write.block()) {
                        Some((affinity, version)) => node.keeper.learn(affinity.clone(), *version),
                        None => node.keeper.forget(write.block(), self.store.version),
                    }
                }
            }
            Event::Add(n, pod) => {
                let _ = self.nodes[n].add(&Want::Of(vec![pool]), &format!("{n}-{pod}"), now);
            }
            Event::AddExactly(n, pod, ip) => {
                let want = Want::Exactly(IpAddr::from([10, 9, 0, ip]));
                let _ = self.nodes[n].add(&want, &format!("{n}-{pod}"), now);
            }
            Event::Delete(n, pod) => drop(self.nodes[n].allocator.release(&format!("{n}-{pod}"), None, now)),
            Event::Restart(n) | Event::Wipe(n) => {
                let node = &mut self.nodes[n];
                let text = serde_json::to_string(&node.allocator).unwrap();
                node.allocator = serde_json::from_str(&text).unwrap();
                (node.keeper, node.demands) = (Keeper::new(NAMES[n]), Demands::default());
                if matches!(event, Event::Wipe(_)) {
                    // Nor does anything of it arrive any more.
                    node.allocator = Allocator::new(0);
                    node.under_way.clear();
                }
            }
            Event::PoolGives(gives) => self.pools[0].gives = gives,
        }
    }

    fn check(&self) -> Result<(), TestCaseError> {
        let all = addresses(&self.nodes);
        let distinct: BTreeSet<IpAddr> = all.iter().copied().collect();
        prop_assert_eq!(all.len(), distinct.len(), "an address is in use twice: {:?}", all);
        prop_assert!(self.nodes.iter().all(|node| node.allocator.is_consistent()));
        Ok(())
    }

    /// Everything stops, and all that is under way arrives or is lost; then all is free.
    fn drain(&mut self) -> Result<(), TestCaseError> {
        for node in &mut self.nodes {
            node.allocator.release_if(self.now, |_| true);
            node.under_way.clear();
        }
        self.now += 1000;
        self.pools[0].gives = false;
        for _ in 0..4 {
            for node in &mut self.nodes {
                node.settle(&mut self.store, &self.pools, self.now);
            }
        }
        prop_assert!(self.store.objects.is_empty(), "it leaks: {:?}", self.store.objects);
        prop_assert!(self.nodes.iter().all(|node| node.allocator.blocks().count() == 0));
        prop_assert!(self.nodes.iter().all(|node| node.allocator.borrowed().count() == 0));
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn no_address_is_ever_at_two_nodes_and_all_come_back(
        events in proptest::collection::vec(event(), 0..1000),
    ) {
        let mut world = World::new();
        for event in events {
            world.apply(event);
            world.check()?;
        }
        world.drain()?;
    }
}
