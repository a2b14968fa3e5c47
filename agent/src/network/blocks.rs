//! Which blocks and addresses the node has: what the store of all blocks says is carried out here.

use super::*;
use ipam::{Affinity, Change, Situation, Step};

/// A block or a borrowed address, for display.
#[derive(Clone, Debug)]
pub struct BlockStatus {
    pub block: IpNetwork,
    /// Of the pool; `None` where it is of none any more.
    pub pool: Option<String>,
    /// The node whose block it is.
    pub owner: String,
    pub used: usize,
    /// Free or cooling down.
    pub free: usize,
    /// Set aside for other nodes.
    pub lent: usize,
    pub is_borrowed: bool,
}

impl Network {
    /// Addresses for a pod, which are on disk then.
    pub(super) fn allocate(&self, request: &Request, wants: &[Want]) -> Result<Vec<IpAddr>, AddError> {
        let mut state = self.state();
        let State { allocator, supply, demands, keeper, .. } = &mut *state;
        match allocator.allocate(wants, &supply.reserved, request, now()) {
            Ok(addresses) => {
                addresses.iter().for_each(|address| demands.meet(Demand::Address(*address)));
                for pool in &supply.pools {
                    if addresses.iter().any(|address| pool.cidr().contains(*address)) {
                        demands.meet(Demand::Pool(pool.cidr()));
                    }
                }
                self.save(&mut state).map_err(AddError::Failed)?;
                Ok(addresses)
            }
            Err(error) => {
                let demanded = error.demands();
                demanded.iter().for_each(|demand| demands.add(*demand, now()));
                Err(AddError::NoAddress {
                    message: explain(&error, keeper),
                    is_asked_for: !demanded.is_empty() && keeper.is_listed(),
                })
            }
        }
    }

    /// Gives addresses from this from now on, and takes blocks of it.
    pub fn set_supply(&self, supply: Supply) {
        let mut state = self.state();
        if state.supply == supply {
            return;
        }
        for pool in &supply.pools {
            let gives = pool.node_pool.gives;
            tracing::info!(pool = pool.name, cidr = %pool.cidr(), gives, "pool of pods' addresses");
        }
        state.supply = supply;
        self.announce(&mut state);
        state.set_all();
        state.apply();
    }

    pub fn supply(&self) -> Supply {
        self.state().supply.clone()
    }

    /// What the blocks of all nodes are told to.
    pub fn with_keeper<T>(&self, tell: impl FnOnce(&mut Keeper) -> T) -> T {
        tell(&mut self.state().keeper)
    }

    /// Told whenever a block or an address has come to this node.
    pub fn addresses_came(&self) -> Arc<Notify> {
        self.addresses_came.clone()
    }

    /// Carries out what the store says, writes it down, and returns what is to be sent to the store.
    pub fn step_blocks(&self) -> anyhow::Result<Step> {
        let mut state = self.state();
        let State { allocator, keeper, demands, supply, .. } = &mut *state;
        let pools = supply.node_pools();
        let situation = Situation { pools: &pools, reserved: &supply.reserved, demands, now: now() };
        let step = keeper.step(allocator, situation);
        if step.changes.iter().any(|change| *change != Change::Noted) {
            for change in &step.changes {
                self.carry_out(&mut state, change);
            }
            self.announce(&mut state);
            state.set_all();
            state.apply();
        }
        // Before what follows from it is sent; what is not on disk is tried again.
        if !step.changes.is_empty() || state.is_unsaved {
            self.save(&mut state)?;
        }
        drop(state);
        if step.changes.iter().any(|change| matches!(change, Change::Adopted(_))) {
            self.addresses_came.notify_waiters();
        }
        Ok(step)
    }

    fn carry_out(&self, state: &mut State, change: &Change) {
        match change {
            Change::Adopted(block) => tracing::info!(%block, "addresses confirmed and announced"),
            Change::Suspended(block) => tracing::warn!(%block, "addresses are not confirmed any more"),
            Change::GaveUp(block) => {
                tracing::info!(%block, "addresses given back");
                state.set_own(*block, None);
            }
            Change::Surrendered { block, owner, pods } => {
                tracing::error!(
                    %block, owner, pods = pods.len(),
                    "the API server has another owner for addresses of this node; their pods are cut off"
                );
                state.set_own(*block, None);
                self.forget(pods, &state.allocator);
                for allocation in pods {
                    state.set_own(allocation.address.into(), None);
                }
            }
            Change::Noted => {}
        }
    }

    /// How far the routes to this node's pods have got.
    pub fn reach(&self) -> Arc<Reach> {
        self.reach.clone()
    }

    /// Told whenever the kernel has taken routes of other nodes.
    pub fn routes_learned(&self) -> Arc<Notify> {
        self.routes_learned.clone()
    }

    /// Whether the kernel has the route that another node announced.
    pub fn has_learned(&self, prefix: IpNetwork) -> bool {
        matches!(self.state().routes.actual().get(&prefix), Some(Target::Via(_)))
    }

    /// Whether a pod could be given an address now, of those who ask for none in particular.
    pub fn has_addresses(&self) -> bool {
        let state = self.state();
        let supply = &state.supply;
        supply.families.iter().all(|v4| {
            let mut pools = supply.pools.iter().filter(|pool| pool.cidr().is_ipv4() == *v4);
            pools.any(|pool| state.allocator.free(&pool.node_pool.pool, &supply.reserved) > 0)
        })
    }

    /// Whether the node waits for its first block: there are pools to give it one.
    pub fn awaits_block(&self) -> bool {
        let state = self.state();
        let mut all = state.allocator.blocks().chain(state.allocator.borrowed());
        let has_any = all.any(|block| state.is_in_use(block));
        !has_any && state.supply.pools.iter().any(|pool| pool.node_pool.gives && pool.node_pool.is_automatic)
    }

    pub fn blocks(&self) -> Vec<BlockStatus> {
        let state = self.state();
        let owner = |block: IpNetwork| {
            let known = state.keeper.covering(block.network());
            known.map(|affinity| affinity.node.clone()).unwrap_or_default()
        };
        let pools = &state.supply.pools;
        let status = |block: IpNetwork, is_borrowed: bool| {
            let pool = pools.iter().find(|pool| pool.cidr().contains(block.network()));
            let (used, free) = state.allocator.usage(block).unwrap_or_default();
            BlockStatus {
                block,
                pool: pool.map(|pool| pool.name.clone()),
                owner: owner(block),
                used,
                free,
                lent: state.allocator.lent_count(block),
                is_borrowed,
            }
        };
        let own = state.allocator.blocks().map(|block| status(block, false));
        own.chain(state.allocator.borrowed().map(|address| status(address, true))).collect()
    }
}

/// An error with what the store says of the address.
fn explain(error: &AllocateError, keeper: &Keeper) -> String {
    let AllocateError::Elsewhere(address) = error else { return error.to_string() };
    match keeper.covering(*address) {
        None => format!("{address}: its block is claimed for this node"),
        Some(Affinity { node, block, borrowed, .. }) => match borrowed.get(address) {
            Some(holder) => format!("{address} is in use at node {holder}"),
            None => format!("{address} is of block {block}, whose node {node} is asked for it"),
        },
    }
}
