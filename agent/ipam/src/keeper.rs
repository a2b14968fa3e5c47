//! What one node does about blocks: a state machine between the store, which all nodes share, and the node's allocator.
//!
//! ```text
//! learn, forget, list ──► Keeper::step(allocator) ──► changes of the allocator, which are written down first
//!        ▲                                       └──► one request to the store, with the version it was decided from
//!        └──────────────── its answer, or what the store has instead ◄──┘
//! ```
//!
//! Answers may be lost and views may be old, so nothing is concluded from the absence of an answer: what this node has is
//! taken into use when the store says so in a state that is newer than every state from which it was given up, and what it
//! lends comes back when a state says so that its own write came before.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::affinity::{Affinity, State};
use crate::allocator::{Allocation, Allocator, Demand, Lent};
use crate::claim;
use crate::pool::{Pool, bits};

/// A node asks for one more block when fewer addresses than this are free, or than an eighth of a block.
const FREE_MIN: usize = 8;
/// How many addresses of each block are offered to nodes that find no block any more.
const OFFERED: usize = 4;
/// Free addresses from which on borrowed ones that nobody uses are given back.
const FREE_ENOUGH: usize = 3;
/// Seconds for which what a pod asked for is kept for it.
const DEMAND_KEPT: u64 = 120;

/// A pool as it concerns this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodePool {
    pub pool: Pool,
    /// Gives addresses to this node: it is not disabled, and its selector selects the node.
    pub gives: bool,
    /// Blocks are taken before somebody asks for the pool by name.
    pub is_automatic: bool,
}

/// What pods wait for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Demands(BTreeMap<Demand, Waiting>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Waiting {
    until: u64,
    /// The owner of the address was asked for it.
    has_asked: bool,
}

impl Demands {
    /// `now` in seconds.
    pub fn add(&mut self, demand: Demand, now: u64) {
        self.0.insert(demand, Waiting { until: now + DEMAND_KEPT, has_asked: false });
    }

    /// It has been given.
    pub fn meet(&mut self, demand: Demand) {
        self.0.remove(&demand);
    }

    fn expire(&mut self, now: u64) {
        self.0.retain(|_, waiting| waiting.until > now && waiting.until <= now + DEMAND_KEPT);
    }

    fn has(&self, demand: Demand) -> bool {
        self.0.contains_key(&demand)
    }

    fn asked(&mut self, demand: Demand) {
        if let Some(waiting) = self.0.get_mut(&demand) {
            waiting.has_asked = true;
        }
    }
}

/// What a step depends on besides the store and the allocator.
#[derive(Debug)]
pub struct Situation<'a> {
    pub pools: &'a [NodePool],
    /// What is given to nobody who does not ask for exactly it.
    pub reserved: &'a [IpNetwork],
    pub demands: &'a mut Demands,
    /// Seconds since the epoch.
    pub now: u64,
}

/// What has become of the allocator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A block, or a borrowed address, is in use from now on.
    Adopted(IpNetwork),
    /// Nothing is given of it until the store confirms it again.
    Suspended(IpNetwork),
    /// It is given back; nobody used it.
    GaveUp(IpNetwork),
    /// It is another node's; these pods have lost their addresses.
    Surrendered { block: IpNetwork, owner: String, pods: Vec<Allocation> },
    /// Something that concerns nobody but the next run.
    Noted,
}

/// A write to the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Fails where there is such a block.
    Create(Affinity),
    /// Fails where the version is another.
    Replace(Affinity, Version),
    /// Fails where the version is another.
    Delete(IpNetwork, Version),
}

impl Write {
    pub fn block(&self) -> IpNetwork {
        match self {
            Write::Create(affinity) | Write::Replace(affinity, _) => affinity.block,
            Write::Delete(block, _) => *block,
        }
    }
}

/// What a store calls a state of one object: grows with every write of any.
pub type Version = u64;

/// What follows from a look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// To be written down before anything is sent.
    pub changes: Vec<Change>,
    pub write: Option<Write>,
    /// Pools in which no block is left, and no address is offered, for what this node needs.
    pub exhausted: Vec<IpNetwork>,
}

/// The blocks as a node last saw them.
#[derive(Clone, Debug)]
pub struct Keeper {
    node: String,
    known: BTreeMap<IpNetwork, (Affinity, Version)>,
    is_listed: bool,
}

impl Keeper {
    pub fn new(node: &str) -> Keeper {
        Keeper { node: node.to_owned(), known: BTreeMap::new(), is_listed: false }
    }

    /// These are all blocks that there are.
    pub fn list(&mut self, all: impl IntoIterator<Item = (Affinity, Version)>) {
        let mut before = std::mem::take(&mut self.known);
        self.is_listed = true;
        for (affinity, version) in all {
            if let Some(known) = before.remove(&affinity.block) {
                self.known.insert(known.0.block, known);
            }
            self.learn(affinity, version);
        }
    }

    /// A block is like this, unless something newer is known.
    pub fn learn(&mut self, affinity: Affinity, version: Version) {
        let is_old = self.known.get(&affinity.block).is_some_and(|(_, known)| *known > version);
        if !is_old {
            self.known.insert(affinity.block, (affinity, version));
        }
    }

    /// There is no such block any more, unless something newer is known.
    pub fn forget(&mut self, block: IpNetwork, version: Version) {
        if self.known.get(&block).is_some_and(|(_, known)| *known <= version) {
            self.known.remove(&block);
        }
    }

    /// Whether all blocks were seen once.
    pub fn is_listed(&self) -> bool {
        self.is_listed
    }

    pub fn version(&self, block: IpNetwork) -> Option<Version> {
        self.known.get(&block).map(|(_, version)| *version)
    }

    /// Whose block an address is of.
    pub fn covering(&self, address: IpAddr) -> Option<&Affinity> {
        // Blocks do not overlap: only the last that begins before the address may have it.
        let single = IpNetwork::from(address);
        let (block, (affinity, _)) = self.known.range(..=single).next_back()?;
        block.contains(address).then_some(affinity)
    }

    /// Brings the allocator up to what the store says, and says what is to be written next. Call it again after the answer.
    pub fn step(&mut self, allocator: &mut Allocator, mut situation: Situation<'_>) -> Step {
        let mut step = Step::default();
        if !self.is_listed {
            return step;
        }
        situation.demands.expire(situation.now);
        self.follow_own(allocator, &situation, &mut step.changes);
        self.follow_borrowed(allocator, &situation, &mut step.changes);
        self.adopt(allocator, &situation, &mut step.changes);
        step.write = self
            .write_own(allocator, &situation)
            .or_else(|| self.write_back(allocator))
            .or_else(|| self.claim_lost(allocator))
            .or_else(|| self.claim_address(allocator, &mut situation))
            .or_else(|| self.claim_more(allocator, &situation, &mut step.exhausted));
        step
    }

    fn pool_of<'a>(&self, block: IpNetwork, situation: &Situation<'a>) -> Option<&'a NodePool> {
        situation.pools.iter().find(|pool| pool.pool.owns(block))
    }

    fn gives(&self, block: IpNetwork, situation: &Situation<'_>) -> Option<Pool> {
        self.pool_of(block, situation).filter(|pool| pool.gives).map(|pool| pool.pool)
    }

    fn is_exhausted(&self, pool: &Pool) -> bool {
        let taken = self.known.keys().filter(|block| pool.owns(**block)).count();
        taken as u64 >= pool.block_count()
    }

    /// Follows what the store says of blocks that this node has.
    fn follow_own(&self, allocator: &mut Allocator, situation: &Situation<'_>, changes: &mut Vec<Change>) {
        for block in allocator.blocks().collect::<Vec<_>>() {
            let affinity = self.known.get(&block).map(|(affinity, _)| affinity);
            if let Some(foreign) = affinity.filter(|affinity| affinity.node != self.node) {
                let pods = allocator.remove_block(block);
                changes.push(Change::Surrendered { block, owner: foreign.node.clone(), pods });
                continue;
            }
            let confirmed = affinity.filter(|affinity| affinity.state == State::Confirmed);
            if allocator.is_suspended(block) == confirmed.is_some() {
                changes.push(suspend(allocator, block, confirmed.is_none()));
            }
            let Some(affinity) = confirmed.filter(|affinity| affinity.sequence >= allocator.seen(block))
            else {
                continue;
            };
            self.follow_lent(affinity, allocator, situation, changes);
            if self.gives(block, situation).is_none()
                && !affinity.is_lent()
                && allocator.is_idle(block, situation.now)
            {
                allocator.give_up(block, affinity.sequence, situation.now);
                changes.push(Change::GaveUp(block));
            }
        }
    }

    /// Sets aside what others have or are to have, and takes back what they gave back.
    fn follow_lent(
        &self,
        affinity: &Affinity,
        allocator: &mut Allocator,
        situation: &Situation<'_>,
        changes: &mut Vec<Change>,
    ) {
        let (block, sequence) = (affinity.block, affinity.sequence);
        let is_out = |ip: &IpAddr| affinity.offered.contains(ip) || affinity.borrowed.contains_key(ip);
        for (ip, lent) in allocator.lent(block) {
            if !is_out(&ip) && sequence >= lent.sequence {
                allocator.take_back(block, ip, sequence, situation.now);
                changes.push(Change::Noted);
            }
        }
        let mut lend = |allocator: &mut Allocator, ip: IpAddr, lent: Lent| {
            if allocator.is_free(block, ip) {
                allocator.lend(block, ip, lent);
                changes.push(Change::Noted);
            }
        };
        for ip in affinity.offered.iter().chain(affinity.borrowed.keys()) {
            lend(allocator, *ip, Lent { sequence, to: None });
        }
        for (ip, node) in affinity.requested.iter().filter(|(ip, _)| !is_out(ip)) {
            lend(allocator, *ip, Lent { sequence: sequence + 1, to: Some(node.clone()) });
        }
        if let Some(pool) = self.gives(block, situation).filter(|pool| self.is_exhausted(pool)) {
            let out = allocator.lent(block).keys().filter(|ip| !affinity.borrowed.contains_key(ip)).count();
            let spare = allocator.free(&pool, situation.reserved).saturating_sub(2 * reserve(&pool));
            let count = OFFERED.saturating_sub(out).min(spare);
            for ip in allocator.lendable(block, situation.reserved, count, situation.now) {
                lend(allocator, ip, Lent { sequence: sequence + 1, to: None });
            }
        }
    }

    /// Follows what the store says of addresses that this node borrows.
    fn follow_borrowed(
        &self,
        allocator: &mut Allocator,
        situation: &Situation<'_>,
        changes: &mut Vec<Change>,
    ) {
        for single in allocator.borrowed().collect::<Vec<_>>() {
            let ip = single.ip();
            let affinity = self.covering(ip);
            let has_it = affinity.filter(|it| it.borrowed.get(&ip) == Some(&self.node));
            if let Some(lost) = affinity.filter(|_| has_it.is_none())
                && lost.sequence >= allocator.seen(single)
            {
                let pods = allocator.remove_block(single);
                changes.push(Change::Surrendered { block: single, owner: lost.node.clone(), pods });
                continue;
            }
            if let Some(affinity) = has_it
                && allocator.is_idle(single, situation.now)
                && !self.is_wanted(ip, allocator, situation, FREE_ENOUGH)
            {
                allocator.give_up(single, affinity.sequence, situation.now);
                changes.push(Change::GaveUp(single));
                continue;
            }
            let is_ours = has_it.is_some_and(|it| it.lends(ip, &self.node));
            if allocator.is_suspended(single) == is_ours {
                changes.push(suspend(allocator, single, !is_ours));
            }
        }
    }

    /// Whether a borrowed address is of use here, while fewer than `enough` are free.
    fn is_wanted(&self, ip: IpAddr, allocator: &Allocator, situation: &Situation<'_>, enough: usize) -> bool {
        situation.demands.has(Demand::Address(ip))
            || situation.pools.iter().filter(|pool| pool.pool.cidr().contains(ip)).any(|pool| {
                wants_more(pool, situation) && allocator.free(&pool.pool, situation.reserved) < enough
            })
    }

    /// Takes in what the store says is this node's, and notes what is not to be taken in.
    fn adopt(&self, allocator: &mut Allocator, situation: &Situation<'_>, changes: &mut Vec<Change>) {
        for (affinity, _) in self.known.values() {
            let (block, sequence) = (affinity.block, affinity.sequence);
            if affinity.node == self.node {
                if affinity.state != State::Confirmed
                    || allocator.has_block(block)
                    || sequence <= allocator.given_up_at(block)
                {
                    continue;
                }
                match self.gives(block, situation) {
                    Some(pool) => {
                        allocator.add(block, &pool, false, sequence);
                        self.follow_lent(affinity, allocator, situation, changes);
                        changes.push(Change::Adopted(block));
                    }
                    None => {
                        allocator.give_up(block, sequence, situation.now);
                        changes.push(Change::Noted);
                    }
                }
                continue;
            }
            for ip in affinity.borrowed.iter().filter(|(_, node)| **node == self.node).map(|(ip, _)| *ip) {
                let single = IpNetwork::from(ip);
                if allocator.has_block(single) || sequence <= allocator.given_up_at(single) {
                    continue;
                }
                let pool = situation.pools.iter().find(|pool| pool.pool.owns(block));
                let is_ours = affinity.lends(ip, &self.node);
                match pool.filter(|_| is_ours && self.is_wanted(ip, allocator, situation, 1)) {
                    Some(pool) => {
                        allocator.add(single, &pool.pool, true, sequence);
                        changes.push(Change::Adopted(single));
                    }
                    None => {
                        allocator.give_up(single, sequence, situation.now);
                        changes.push(Change::Noted);
                    }
                }
            }
        }
    }

    /// The next write to a block of this node.
    fn write_own(&self, allocator: &Allocator, situation: &Situation<'_>) -> Option<Write> {
        let own = self.known.values().filter(|(affinity, _)| affinity.node == self.node);
        own.into_iter().find_map(|(affinity, version)| {
            let held = allocator.has_block(affinity.block);
            let mut next = affinity.next();
            match affinity.state {
                State::Pending if held || self.gives(affinity.block, situation).is_some() => {
                    next.state = State::Confirmed;
                }
                State::Pending => return Some(Write::Delete(affinity.block, *version)),
                State::PendingDeletion if held => next.state = State::Confirmed,
                State::PendingDeletion if affinity.borrowed.is_empty() => {
                    return Some(Write::Delete(affinity.block, *version));
                }
                State::PendingDeletion => return None,
                State::Confirmed if held => {
                    if affinity.sequence < allocator.seen(affinity.block) {
                        return None;
                    }
                    self.lend(&mut next, allocator, situation);
                    if (&next.offered, &next.borrowed, &next.requested)
                        == (&affinity.offered, &affinity.borrowed, &affinity.requested)
                    {
                        return None;
                    }
                }
                // Or older: a claim of before it was given up has arrived once more.
                State::Confirmed if affinity.sequence <= allocator.given_up_at(affinity.block) => {
                    next.state = State::PendingDeletion;
                    next.offered.clear();
                    next.requested.clear();
                }
                State::Confirmed => return None,
            }
            Some(Write::Replace(next, *version))
        })
    }

    /// Says in a block of this node what is set aside for whom.
    fn lend(&self, next: &mut Affinity, allocator: &Allocator, situation: &Situation<'_>) {
        let block = next.block;
        let lent = allocator.lent(block);
        let pool = self.gives(block, situation);
        let offers = pool.is_some_and(|pool| {
            self.is_exhausted(&pool) && allocator.free(&pool, situation.reserved) >= reserve(&pool)
        });
        let is_wanted_here = |ip: &IpAddr| situation.demands.has(Demand::Address(*ip));
        next.offered.retain(|ip| offers && lent.contains_key(ip) && !is_wanted_here(ip));
        let requested = std::mem::take(&mut next.requested);
        for (ip, of) in lent {
            let asking = of.to.as_ref().or_else(|| requested.get(&ip));
            match asking {
                _ if next.borrowed.contains_key(&ip) => {}
                Some(node) => {
                    next.offered.remove(&ip);
                    next.borrowed.insert(ip, node.clone());
                }
                // Even where it is withdrawn at once: an earlier try may be under way still.
                None if of.sequence >= next.sequence => {
                    next.offered.insert(ip);
                }
                None => {}
            }
        }
    }

    /// Gives back addresses of another node's block, and says of those in use here that they are.
    fn write_back(&self, allocator: &Allocator) -> Option<Write> {
        let others = self.known.values().filter(|(affinity, _)| affinity.node != self.node);
        others.into_iter().find_map(|(affinity, version)| {
            let given_up: Vec<IpAddr> = affinity
                .borrowed
                .iter()
                .filter(|(_, node)| **node == self.node)
                .map(|(ip, _)| *ip)
                .filter(|ip| {
                    let single = IpNetwork::from(*ip);
                    !allocator.has_block(single) && affinity.sequence <= allocator.given_up_at(single)
                })
                .collect();
            let mut next = affinity.next();
            next.borrowed.retain(|ip, _| !given_up.contains(ip));
            let is_here = |ip: &IpAddr| {
                affinity.borrowed.get(ip) == Some(&self.node) && allocator.has_block(IpNetwork::from(*ip))
            };
            next.reclaimed.retain(|ip| next.borrowed.contains_key(ip) && !is_here(ip));
            let is_new = next.borrowed != affinity.borrowed || next.reclaimed != affinity.reclaimed;
            is_new.then_some(Write::Replace(next, *version))
        })
    }

    /// Claims again what is in use here and was lost in the store.
    fn claim_lost(&self, allocator: &Allocator) -> Option<Write> {
        let lost = allocator.blocks().find(|block| !self.known.contains_key(block))?;
        (!claim::overlaps(lost, &self.known)).then(|| self.claim(lost, allocator))
    }

    fn claim(&self, block: IpNetwork, allocator: &Allocator) -> Write {
        let sequence = allocator.seen(block) + 1;
        Write::Create(Affinity::new(block, &self.node, State::Pending, sequence))
    }

    /// Gets hold of an address that a pod asked for.
    fn claim_address(&self, allocator: &Allocator, situation: &mut Situation<'_>) -> Option<Write> {
        let open = situation.demands.0.iter().filter(|(_, waiting)| !waiting.has_asked);
        let wanted: Vec<IpAddr> = open
            .filter_map(|(demand, _)| if let Demand::Address(ip) = demand { Some(*ip) } else { None })
            .collect();
        for ip in wanted {
            let write = match self.covering(ip) {
                None => {
                    let pools = situation.pools.iter().filter(|pool| pool.gives);
                    let block = pools.filter_map(|pool| pool.pool.block_of(ip)).next();
                    let block = block.filter(|block| !claim::overlaps(*block, &self.known));
                    block.map(|block| self.claim(block, allocator))
                }
                Some(affinity) if affinity.node == self.node => None,
                Some(affinity) if affinity.state != State::Confirmed => None,
                Some(affinity) if affinity.borrowed.contains_key(&ip) => None,
                Some(affinity) if affinity.sequence < allocator.given_up_at(ip.into()) => None,
                Some(affinity) => {
                    let mut next = affinity.next();
                    if next.offered.remove(&ip) {
                        next.borrowed.insert(ip, self.node.clone());
                    } else {
                        next.requested.entry(ip).or_insert_with(|| self.node.clone());
                    }
                    let version = self.known[&affinity.block].1;
                    (next.offered != affinity.offered || next.requested != affinity.requested)
                        .then_some(Write::Replace(next, version))
                }
            };
            // What was sent may fail: the pod's next try asks again.
            situation.demands.asked(Demand::Address(ip));
            if write.is_some() {
                return write;
            }
        }
        None
    }

    /// One more block where free addresses run out, or else one address of another node's.
    fn claim_more(
        &self,
        allocator: &Allocator,
        situation: &Situation<'_>,
        exhausted: &mut Vec<IpNetwork>,
    ) -> Option<Write> {
        for pool in situation.pools.iter().filter(|pool| wants_more(pool, situation)) {
            let free = allocator.free(&pool.pool, situation.reserved);
            let runs_out = pool.is_automatic && free < reserve(&pool.pool);
            let is_awaited = situation.demands.has(Demand::Pool(pool.pool.cidr()))
                && allocator.rested(&pool.pool, situation.reserved, situation.now) == 0;
            if !runs_out && !is_awaited {
                continue;
            }
            if let Some(block) = claim::next(&pool.pool, &self.node, &self.known) {
                return Some(self.claim(block, allocator));
            }
            if free > 0 && !is_awaited {
                continue;
            }
            if let Some(write) = self.borrow(&pool.pool, allocator) {
                return Some(write);
            }
            exhausted.push(pool.pool.cidr());
        }
        None
    }

    /// Takes an address that another node offers. Nodes begin at different ones, so that they seldom collide.
    fn borrow(&self, pool: &Pool, allocator: &Allocator) -> Option<Write> {
        let can = |ip: IpAddr, affinity: &Affinity| affinity.sequence >= allocator.given_up_at(ip.into());
        let offers: Vec<(IpAddr, &Affinity, Version)> = self
            .known
            .values()
            .filter(|(affinity, _)| {
                affinity.node != self.node && affinity.state == State::Confirmed && pool.owns(affinity.block)
            })
            .flat_map(|(affinity, version)| affinity.offered.iter().map(move |ip| (*ip, affinity, *version)))
            .filter(|(ip, affinity, _)| can(*ip, affinity))
            .collect();
        let index = claim::hash(&self.node).checked_rem(offers.len() as u64)?;
        let (ip, affinity, version) = offers[index as usize];
        let mut next = affinity.next();
        next.offered.remove(&ip);
        next.borrowed.insert(ip, self.node.clone());
        Some(Write::Replace(next, version))
    }
}

fn suspend(allocator: &mut Allocator, block: IpNetwork, is_suspended: bool) -> Change {
    allocator.suspend(block, is_suspended);
    if is_suspended { Change::Suspended(block) } else { Change::Adopted(block) }
}

fn wants_more(pool: &NodePool, situation: &Situation<'_>) -> bool {
    pool.gives && (pool.is_automatic || situation.demands.has(Demand::Pool(pool.pool.cidr())))
}

/// Free addresses below which a node looks for more of the pool.
fn reserve(pool: &Pool) -> usize {
    let of_block = 1usize.checked_shl(u32::from(bits(pool.cidr()) - pool.block_length()));
    (of_block.unwrap_or(usize::MAX) / 8).clamp(1, FREE_MIN)
}

/// What is to become of a block whose nodes may be gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Collected {
    Nothing,
    Replace(Affinity),
    Delete,
}

/// What nodes that are gone held is given back: first it is marked, so that whoever is not gone after all can object.
/// Addresses that others borrow keep their block until they are given back.
pub fn collect(affinity: &Affinity, is_gone: impl Fn(&str) -> bool) -> Collected {
    let mut next = affinity.clone();
    next.borrowed.retain(|ip, node| !(is_gone(node) && affinity.reclaimed.contains(ip)));
    let gone = next.borrowed.iter().filter(|(_, node)| is_gone(node)).map(|(ip, _)| *ip);
    next.reclaimed.extend(gone.collect::<Vec<_>>());
    next.reclaimed.retain(|ip| next.borrowed.contains_key(ip));
    next.requested.retain(|_, node| !is_gone(node));
    if is_gone(&affinity.node) {
        if affinity.state == State::PendingDeletion && next.borrowed.is_empty() {
            return Collected::Delete;
        }
        next.state = State::PendingDeletion;
        next.offered.clear();
        next.requested.clear();
    }
    if next == *affinity { Collected::Nothing } else { Collected::Replace(next.next()) }
}

#[cfg(test)]
mod tests;
