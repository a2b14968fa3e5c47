//! Where addresses of pods come from: IPPools and IPReservations as the API says them, and the ranges of the command line
//! where it says nothing.
//!
//! ```text
//! watches -> Known (kept on disk) -> Supply (pure) -> Network: which addresses; blocks: which blocks
//! ```
//!
//! A range of the command line is a pool for as long as no IPPool of its family gives addresses to pods by itself. It has
//! the name that Calico gives the one that it makes, so that annotations written for that find it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use calico::{IpPool, IpPoolSpec, IpReservation, IpReservationSpec, Selector};
use ipam::{NodePool, Pool};
use ipnetwork::IpNetwork;
use k8s_openapi::api::core::v1::Node;
use kube::runtime::watcher;
use serde::{Deserialize, Serialize};

use crate::config::{Config, Masquerade};
use crate::persist;
use crate::watch::{Change, Listing};

/// What was heard last.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Known {
    pub pools: BTreeMap<String, IpPoolSpec>,
    pub reservations: BTreeMap<String, IpReservationSpec>,
    /// Of this node.
    pub labels: BTreeMap<String, String>,
    /// Whether the API server ever said which pools there are.
    pub is_heard: bool,
}

/// A pool of pods' addresses, as this node sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodPool {
    pub name: String,
    pub node_pool: NodePool,
    pub is_disabled: bool,
    /// Namespaces whose pods are given an address without asking; `None`: all.
    pub namespaces: Option<Selector>,
    /// Its blocks are told to others.
    pub is_announced: bool,
    /// Its pods are seen under the node's address outside of the cluster.
    pub is_masqueraded: bool,
}

impl PodPool {
    pub fn cidr(&self) -> IpNetwork {
        self.node_pool.pool.cidr()
    }
}

/// All that there is to give.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Supply {
    /// Families that every pod has an address of, `true` for IPv4, in order.
    pub families: Vec<bool>,
    pub pools: Vec<PodPool>,
    pub reserved: Vec<IpNetwork>,
}

impl Supply {
    pub fn node_pools(&self) -> Vec<NodePool> {
        self.pools.iter().map(|pool| pool.node_pool).collect()
    }

    /// Whether a block, or a borrowed address, is told to others. What is of no pool any more is, until it is given back.
    pub fn announces(&self, block: IpNetwork) -> bool {
        let pool = self.pools.iter().find(|pool| pool.cidr().contains(block.network()));
        pool.is_none_or(|pool| pool.is_announced)
    }

    /// Pools of a family that give to who asks for none.
    pub fn automatic(&self, v4: bool) -> impl Iterator<Item = &PodPool> {
        self.pools.iter().filter(move |pool| {
            pool.cidr().is_ipv4() == v4 && pool.node_pool.gives && pool.node_pool.is_automatic
        })
    }
}

/// What of the command line concerns pools.
#[derive(Clone, Debug)]
struct Defaults {
    pools: Vec<Pool>,
    masquerade: Masquerade,
}

/// The objects as they come.
pub struct Pools {
    known: Known,
    defaults: Defaults,
    node: String,
    file: PathBuf,
    pools: Listing<IpPool>,
    reservations: Listing<IpReservation>,
    problems: BTreeSet<String>,
}

impl Pools {
    /// Goes on from what was heard last.
    pub fn open(config: &Config) -> anyhow::Result<Pools> {
        let file = config.state_dir.join("pools.json");
        Ok(Pools {
            known: persist::read_unflushed(&file)?.unwrap_or_default(),
            defaults: Defaults { pools: config.pools()?, masquerade: config.masquerade },
            node: config.node_name.clone(),
            file,
            pools: Listing::default(),
            reservations: Listing::default(),
            problems: BTreeSet::new(),
        })
    }

    /// Whether it is known which pools there are, if not what has become of them since.
    pub fn is_known(&self) -> bool {
        self.known.is_heard
    }

    /// Each says whether it means anything here.
    pub fn pool(&mut self, event: watcher::Event<IpPool>) -> bool {
        let Some(change) = self.pools.change(event) else { return false };
        let is_first = !std::mem::replace(&mut self.known.is_heard, true);
        let of = |object: &IpPool| (name(&object.metadata), object.spec.clone());
        set(&mut self.known.pools, change, of) || is_first
    }

    pub fn reservation(&mut self, event: watcher::Event<IpReservation>) -> bool {
        let Some(change) = self.reservations.change(event) else { return false };
        let of = |object: &IpReservation| (name(&object.metadata), object.spec.clone());
        set(&mut self.known.reservations, change, of)
    }

    pub fn node(&mut self, change: &Change<Node>) -> bool {
        let changed: &[Node] = match change {
            Change::All(nodes) => nodes,
            Change::Apply(node) => std::slice::from_ref(node),
            // Its pools stay until it is there again.
            Change::Delete(_) => &[],
        };
        let own = changed.iter().find(|node| node.metadata.name.as_ref() == Some(&self.node));
        let Some(labels) = own.map(|own| own.metadata.labels.clone().unwrap_or_default()) else {
            return false;
        };
        let is_new = labels != self.known.labels;
        self.known.labels = labels;
        is_new
    }

    /// What all that is known means now; it is written down.
    pub fn tell(&mut self) -> Supply {
        if let Err(error) = persist::write_unflushed(&self.file, &self.known) {
            tracing::warn!("{error:#}");
        }
        let (supply, problems) = supply(&self.known, &self.defaults);
        for problem in problems.difference(&self.problems) {
            tracing::warn!("{problem}");
        }
        self.problems = problems;
        supply
    }
}

fn name(metadata: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> String {
    metadata.name.clone().unwrap_or_default()
}

fn set<K, V: PartialEq + Clone>(
    known: &mut BTreeMap<String, V>,
    change: Change<K>,
    of: impl Fn(&K) -> (String, V),
) -> bool {
    let before = known.clone();
    match change {
        Change::All(all) => *known = all.iter().map(of).collect(),
        Change::Apply(object) => known.extend([of(&object)]),
        Change::Delete(object) => drop(known.remove(&of(&object).0)),
    }
    *known != before
}

/// The second are problems, for people.
fn supply(known: &Known, defaults: &Defaults) -> (Supply, BTreeSet<String>) {
    let mut problems = BTreeSet::new();
    let families: Vec<bool> = defaults.pools.iter().map(|pool| pool.cidr().is_ipv4()).collect();
    let mut pools = Vec::new();
    for (name, spec) in known.pools.iter().filter(|(_, spec)| spec.is_for("Workload")) {
        match pod_pool(name, spec, &known.labels) {
            Ok(pool) if !families.contains(&pool.cidr().is_ipv4()) => {
                let family = family(pool.cidr().is_ipv4());
                problems.insert(format!(
                    "IPPool {name}: pods have no {family} here: there is no such --cluster-cidr"
                ));
            }
            Ok(pool) => pools.push(pool),
            Err(problem) => drop(problems.insert(format!("IPPool {name}: {problem}; it is not used"))),
        }
    }
    for pool in &defaults.pools {
        let v4 = pool.cidr().is_ipv4();
        let replaces = |other: &PodPool| other.cidr().is_ipv4() == v4 && other.node_pool.is_automatic;
        if !pools.iter().any(replaces) {
            pools.push(PodPool {
                name: format!("default-ip{}-ippool", if v4 { "v4" } else { "v6" }),
                node_pool: NodePool { pool: *pool, gives: true, is_automatic: true },
                is_disabled: false,
                namespaces: None,
                is_announced: true,
                is_masqueraded: defaults.masquerade.covers(&pool.cidr()),
            });
        }
    }
    overlapping(&mut pools, &mut problems);
    // The programs know one range of each family.
    for v4 in [true, false] {
        let masqueraded = pools.iter_mut().filter(|pool| pool.is_masqueraded && pool.cidr().is_ipv4() == v4);
        for pool in masqueraded.skip(1) {
            pool.is_masqueraded = false;
            problems.insert(format!(
                "IPPool {}: natOutgoing is carried out for one pool of a family, and another has it",
                pool.name
            ));
        }
    }
    let reserved = known.reservations.values().flat_map(|spec| spec.reserved_cidrs.iter().copied()).collect();
    (Supply { families, pools, reserved }, problems)
}

/// Of two pools that have an address, the first by name has it.
fn overlapping(pools: &mut Vec<PodPool>, problems: &mut BTreeSet<String>) {
    let mut kept: Vec<PodPool> = Vec::new();
    for pool in std::mem::take(pools) {
        let (a, problem) = (pool.cidr(), &mut *problems);
        let overlaps = |b: IpNetwork| a.contains(b.network()) || b.contains(a.network());
        match kept.iter().find(|other| overlaps(other.cidr())) {
            Some(other) => {
                problem.insert(format!("IPPool {}: {a} overlaps {}; it is not used", pool.name, other.name));
            }
            None => kept.push(pool),
        }
    }
    *pools = kept;
}

fn pod_pool(name: &str, spec: &IpPoolSpec, labels: &BTreeMap<String, String>) -> Result<PodPool, String> {
    let cidr = spec.cidr.ok_or("it has no cidr")?;
    let pool = match spec.block_size.filter(|length| *length != 0) {
        Some(length) => Pool::new(cidr, length),
        None => Pool::with_default_blocks(cidr),
    };
    let pool = pool.map_err(|error| error.to_string())?;
    let nodes = spec.nodes().map_err(|error| format!("nodeSelector: {error}"))?;
    let namespaces = spec.namespaces().map_err(|error| format!("namespaceSelector: {error}"))?;
    let selects = nodes.is_none_or(|nodes| nodes.matches(labels));
    Ok(PodPool {
        name: name.to_owned(),
        node_pool: NodePool { pool, gives: selects && !spec.disabled, is_automatic: spec.is_automatic() },
        is_disabled: spec.disabled,
        namespaces,
        is_announced: !spec.disable_bgp_export,
        is_masqueraded: spec.nat_outgoing,
    })
}

pub fn family(v4: bool) -> &'static str {
    if v4 { "IPv4" } else { "IPv6" }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn told(pools: serde_json::Value) -> (Supply, BTreeSet<String>) {
        let known: Known = serde_json::from_value(json!({
            "pools": pools, "labels": { "rack": "r1" },
            "reservations": { "kept": { "reservedCIDRs": ["10.50.0.0/31"] } },
        }))
        .expect("it is known");
        let ranges = ["10.244.0.0/16", "fd00:10:244::/48"];
        let ranges =
            ranges.map(|range| Pool::with_default_blocks(range.parse().expect("a range")).expect("a pool"));
        supply(&known, &Defaults { pools: ranges.into(), masquerade: Masquerade::Ipv4 })
    }

    fn names(supply: &Supply) -> Vec<(&str, bool)> {
        supply.pools.iter().map(|pool| (pool.name.as_str(), pool.node_pool.gives)).collect()
    }

    #[test]
    fn the_ranges_of_the_command_line_are_pools_until_an_ip_pool_of_the_family_is() {
        let (supply, problems) =
            told(json!({ "lb": { "cidr": "10.9.0.0/16", "allowedUses": ["LoadBalancer"] } }));
        assert_eq!(names(&supply), [("default-ipv4-ippool", true), ("default-ipv6-ippool", true)]);
        assert_eq!(supply.pools.iter().map(|pool| pool.is_masqueraded).collect::<Vec<_>>(), [true, false]);
        assert!(problems.is_empty() && supply.reserved.len() == 1);
        // A pool for those who ask for it replaces nothing.
        let (supply, _) = told(json!({ "some": { "cidr": "10.9.0.0/16", "assignmentMode": "Manual" } }));
        assert_eq!(names(&supply)[1].0, "default-ipv4-ippool");
        let (supply, _) =
            told(json!({ "all": { "cidr": "10.9.0.0/16", "blockSize": 28, "disabled": true } }));
        assert_eq!(names(&supply), [("all", false), ("default-ipv6-ippool", true)]);
        assert_eq!(supply.pools[0].node_pool.pool.block_length(), 28);
    }

    #[test]
    fn a_pool_gives_to_the_nodes_that_it_selects() {
        let (supply, _) = told(json!({
            "r1": { "cidr": "10.1.0.0/16", "nodeSelector": "rack == 'r1'", "disableBGPExport": true },
            "r2": { "cidr": "10.2.0.0/16", "nodeSelector": "rack == 'r2'", "natOutgoing": true },
        }));
        assert_eq!(names(&supply), [("r1", true), ("r2", false), ("default-ipv6-ippool", true)]);
        assert!(!supply.announces("10.1.0.64/26".parse().unwrap()));
        assert!(supply.announces("10.2.0.64/26".parse().unwrap()));
        assert_eq!(supply.automatic(true).count(), 1);
    }

    #[test]
    fn what_cannot_be_used_is_named_with_its_reason() {
        let (supply, problems) = told(json!({
            "a": { "cidr": "10.1.0.0/16", "natOutgoing": true },
            "b": { "cidr": "10.1.7.0/24" },
            "c": { "cidr": "10.2.0.0/16", "nodeSelector": "rack = r2" },
            "d": { "cidr": "10.3.0.0/16", "natOutgoing": true },
        }));
        assert_eq!(supply.pools.iter().filter(|pool| pool.cidr().is_ipv4()).count(), 2);
        let problems: Vec<&String> = problems.iter().collect();
        for (problem, words) in problems.iter().zip([
            "IPPool b: 10.1.7.0/24 overlaps a",
            "IPPool c: nodeSelector",
            "IPPool d: natOutgoing",
        ]) {
            assert!(problem.contains(words), "{problem} says nothing of {words}");
        }
        assert_eq!(problems.len(), 3);
    }
}
