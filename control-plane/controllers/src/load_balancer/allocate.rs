//! Which addresses a Service shall have. Pure.
//!
//! An address that a Service has stays with it for as long as it could be given to it. Of those that nobody asked for by
//! name, the lowest free one is given; the first and the last address of an IPv4 pool, and the first of an IPv6 one, are
//! given only on request, since clients take them for the network's and for broadcast.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use calico::Selector;
use ipnetwork::IpNetwork;

/// An IPPool for load balancers.
#[derive(Debug, Clone)]
pub struct Pool {
    pub name: String,
    pub cidr: IpNetwork,
    /// Gives addresses to Services that do not ask for it.
    pub is_automatic: bool,
    /// Gives no more addresses.
    pub is_disabled: bool,
    /// Namespaces that it gives to without being asked for; `None`: all.
    pub namespaces: Option<Selector>,
}

/// What a Service asks for.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// `true` for IPv4; in the Service's order.
    pub families: Vec<bool>,
    /// Exactly these.
    pub addresses: Option<Vec<IpAddr>>,
    /// Names or ranges of pools, by family: `true` for IPv4.
    pub pools: BTreeMap<bool, Vec<String>>,
}

/// What there is to give.
#[derive(Debug, Clone, Copy)]
pub struct Supply<'a> {
    pub pools: &'a [Pool],
    pub reserved: &'a [IpNetwork],
    /// Who has an address, other than the Service in question.
    pub holder_by_address: &'a BTreeMap<IpAddr, String>,
    pub namespace_labels: &'a BTreeMap<String, String>,
}

/// What a Service gets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// All addresses that it shall have, in the order of its families.
    pub addresses: Vec<IpAddr>,
    /// Why it lacks others, for people.
    pub problems: Vec<String>,
}

/// Plans for a Service that has `own` addresses, or had them.
pub fn plan(wanted: &Wanted, supply: Supply<'_>, own: &BTreeSet<IpAddr>) -> Plan {
    let mut plan = Plan::default();
    if supply.pools.is_empty() {
        plan.problems.push("no IPPool has allowedUses [LoadBalancer]".to_owned());
        return plan;
    }
    let found: Vec<Result<IpAddr, String>> = match &wanted.addresses {
        Some(addresses) => {
            addresses.iter().map(|ip| requested(*ip, addresses, wanted, supply, own)).collect()
        }
        None => wanted.families.iter().map(|v4| automatic(*v4, wanted, supply, own)).collect(),
    };
    for result in found {
        match result {
            Ok(address) => plan.addresses.push(address),
            Err(problem) => plan.problems.push(problem),
        }
    }
    plan
}

fn requested(
    ip: IpAddr,
    all: &[IpAddr],
    wanted: &Wanted,
    supply: Supply<'_>,
    own: &BTreeSet<IpAddr>,
) -> Result<IpAddr, String> {
    if !wanted.families.contains(&ip.is_ipv4()) {
        return Err(format!("{ip} is asked for, but the Service is not of {}", family(ip.is_ipv4())));
    }
    if all.iter().any(|other| other.is_ipv4() == ip.is_ipv4() && *other != ip) {
        return Err(format!(
            "{ip} is asked for, and another address of {}: one of each is possible",
            family(ip.is_ipv4())
        ));
    }
    let Some(pool) = supply.pools.iter().find(|pool| pool.cidr.contains(ip)) else {
        return Err(format!("{ip} is asked for, but is in no IPPool with allowedUses [LoadBalancer]"));
    };
    if let Some(holder) = supply.holder_by_address.get(&ip) {
        return Err(format!("{ip} is asked for, but {holder} has it"));
    }
    if pool.is_disabled && !own.contains(&ip) {
        return Err(format!("{ip} is asked for, but its IPPool {} is disabled", pool.name));
    }
    Ok(ip)
}

fn automatic(
    v4: bool,
    wanted: &Wanted,
    supply: Supply<'_>,
    own: &BTreeSet<IpAddr>,
) -> Result<IpAddr, String> {
    let pools = match wanted.pools.get(&v4) {
        Some(named) => named_pools(named, v4, supply)?,
        None => {
            let is_automatic = |pool: &&Pool| pool.cidr.is_ipv4() == v4 && pool.is_automatic;
            supply.pools.iter().filter(is_automatic).collect()
        }
    };
    let is_free = |ip: &IpAddr| !supply.holder_by_address.contains_key(ip);
    let keeps = |ip: &&IpAddr| pools.iter().any(|pool| pool.cidr.contains(**ip)) && is_free(ip);
    if let Some(kept) = own.iter().find(keeps) {
        return Ok(*kept);
    }
    let is_named = wanted.pools.contains_key(&v4);
    let selects = |pool: &&Pool| {
        is_named || pool.namespaces.as_ref().is_none_or(|selector| selector.matches(supply.namespace_labels))
    };
    let usable: Vec<&Pool> = pools.into_iter().filter(|pool| !pool.is_disabled).filter(selects).collect();
    let free =
        usable.iter().find_map(|pool| first_free(pool.cidr, supply.holder_by_address, supply.reserved));
    free.ok_or_else(|| {
        let names: Vec<&str> = usable.iter().map(|pool| pool.name.as_str()).collect();
        match (names.is_empty(), is_named) {
            (true, true) => format!("the IPPools that are asked for are disabled ({})", family(v4)),
            (true, false) => {
                format!(
                    "no IPPool gives addresses of {} to this namespace without being asked for",
                    family(v4)
                )
            }
            (false, _) => format!("no address of {} is free in IPPool {}", family(v4), names.join(", ")),
        }
    })
}

/// Pools by name or range; what is named and not there is an error, so that a slip of the pen is noticed.
fn named_pools<'a>(named: &[String], v4: bool, supply: Supply<'a>) -> Result<Vec<&'a Pool>, String> {
    let mut pools = Vec::new();
    for name in named {
        let range = name.parse::<IpNetwork>().ok();
        let is_meant = |pool: &&Pool| pool.name == *name || Some(pool.cidr) == range;
        let Some(pool) = supply.pools.iter().find(is_meant) else {
            return Err(format!(
                "IPPool {name} is asked for, but there is none with allowedUses [LoadBalancer]"
            ));
        };
        if pool.cidr.is_ipv4() != v4 {
            return Err(format!("IPPool {name} is asked for, but is not of {}", family(v4)));
        }
        pools.push(pool);
    }
    Ok(pools)
}

fn family(v4: bool) -> &'static str {
    if v4 { "IPv4" } else { "IPv6" }
}

/// The lowest address that nobody has and that is not reserved. Costs a step per address or range that is passed.
fn first_free(cidr: IpNetwork, held: &BTreeMap<IpAddr, String>, reserved: &[IpNetwork]) -> Option<IpAddr> {
    let (mut next, last) = given_without_asking(cidr);
    while next <= last {
        let ip = address(next, cidr.is_ipv4());
        if let Some(range) = reserved.iter().find(|range| range.contains(ip)) {
            next = bounds(*range).1.checked_add(1)?;
        } else if held.contains_key(&ip) {
            next = next.checked_add(1)?;
        } else {
            return Some(ip);
        }
    }
    None
}

fn given_without_asking(cidr: IpNetwork) -> (u128, u128) {
    let (first, last) = bounds(cidr);
    match cidr {
        IpNetwork::V4(network) if network.prefix() <= 30 => (first + 1, last - 1),
        IpNetwork::V6(network) if network.prefix() <= 126 => (first + 1, last),
        _ => (first, last),
    }
}

fn bounds(cidr: IpNetwork) -> (u128, u128) {
    (number(cidr.network()), number(cidr.broadcast()))
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

fn address(number: u128, v4: bool) -> IpAddr {
    if v4 { Ipv4Addr::from(number as u32).into() } else { Ipv6Addr::from(number).into() }
}

#[cfg(test)]
mod tests;
