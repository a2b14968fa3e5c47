//! The scheduling cycle: one pod, one snapshot, one node, or the reasons why none. Pure.

use std::collections::BTreeMap;
use std::fmt;

use crate::framework::{Filter, Plugin, PreFilter, Rejection};
use crate::pod::PodInfo;
use crate::snapshot::{NodeIndex, Snapshot};

/// A profile of plugins and where the next search starts.
pub struct Scheduler {
    plugins: Vec<Box<dyn Plugin>>,
    next_start: usize,
}

/// Why no node suits a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FitError {
    /// All nodes.
    pub nodes: usize,
    /// How many nodes gave each reason.
    pub nodes_by_reason: BTreeMap<String, usize>,
    /// What a plugin said of all nodes at once.
    pub verdict: Option<String>,
    /// Nodes where removing pods might help, by name.
    pub resolvable: Vec<String>,
    /// What the search for pods to preempt found.
    pub preemption: Option<String>,
    /// The plugins that said no.
    pub plugins: Vec<&'static str>,
}

impl std::error::Error for FitError {}

impl fmt::Display for FitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nodes == 0 {
            return f.write_str("no nodes available to schedule pods");
        }
        write!(f, "0/{} nodes are available:", self.nodes)?;
        match &self.verdict {
            Some(verdict) => write!(f, " {verdict}.")?,
            None => {
                let mut reasons: Vec<String> =
                    self.nodes_by_reason.iter().map(|(reason, nodes)| format!("{nodes} {reason}")).collect();
                reasons.sort();
                write!(f, " {}.", reasons.join(", "))?;
            }
        }
        if let Some(preemption) = &self.preemption {
            write!(f, " {preemption}")?;
        }
        Ok(())
    }
}

/// Below this number of suitable nodes the search never stops early.
const CANDIDATES_MIN: usize = 100;

impl Scheduler {
    /// A scheduler with these plugins; their order is the order of filters.
    pub fn new(plugins: Vec<Box<dyn Plugin>>) -> Self {
        Self { plugins, next_start: 0 }
    }

    /// The best node for `pod`.
    pub fn schedule(&mut self, snapshot: &Snapshot, pod: &PodInfo) -> Result<NodeIndex, Box<FitError>> {
        let (feasible, examined) = self.feasible(snapshot, pod)?;
        self.next_start = (self.next_start + examined) % snapshot.len().max(1);
        match feasible.as_slice() {
            [only] => Ok(*only),
            _ => Ok(self.best(snapshot, pod, &feasible)),
        }
    }

    /// Whether `pod` suits one node.
    pub fn fits(&self, snapshot: &Snapshot, pod: &PodInfo, node: NodeIndex) -> bool {
        self.plugins.iter().all(|plugin| match plugin.pre_filter(snapshot, pod) {
            PreFilter::Skip => true,
            PreFilter::Unschedulable(_) => false,
            PreFilter::Filter(filter) => filter.filter(node).is_ok(),
        })
    }

    fn feasible(&self, snapshot: &Snapshot, pod: &PodInfo) -> Result<(Vec<NodeIndex>, usize), Box<FitError>> {
        let mut error = Box::new(FitError {
            nodes: snapshot.len(),
            nodes_by_reason: BTreeMap::new(),
            verdict: None,
            resolvable: Vec::new(),
            preemption: None,
            plugins: Vec::new(),
        });
        let mut filters: Vec<(&'static str, Box<dyn Filter + '_>)> = Vec::new();
        for plugin in &self.plugins {
            match plugin.pre_filter(snapshot, pod) {
                PreFilter::Skip => {}
                PreFilter::Filter(filter) => filters.push((plugin.name(), filter)),
                PreFilter::Unschedulable(verdict) => {
                    error.verdict = Some(verdict);
                    error.plugins.push(plugin.name());
                    return Err(error);
                }
            }
        }
        let enough = enough_candidates(snapshot.len());
        let (mut feasible, mut examined) = (Vec::new(), 0);
        for offset in 0..snapshot.len() {
            let node = NodeIndex((self.next_start + offset) % snapshot.len());
            examined += 1;
            match filters
                .iter()
                .find_map(|(plugin, filter)| filter.filter(node).err().map(|rejection| (*plugin, rejection)))
            {
                None => feasible.push(node),
                Some((plugin, rejection)) => error.count(snapshot, node, plugin, rejection),
            }
            if feasible.len() >= enough {
                break;
            }
        }
        error.resolvable.sort();
        if feasible.is_empty() { Err(error) } else { Ok((feasible, examined)) }
    }

    /// The node with the highest sum of weighted scores; the first in the rotating order among equals.
    fn best(&self, snapshot: &Snapshot, pod: &PodInfo, nodes: &[NodeIndex]) -> NodeIndex {
        let mut totals = vec![0_i64; nodes.len()];
        for plugin in &self.plugins {
            let Some(scorer) = plugin.pre_score(snapshot, pod, nodes) else { continue };
            let mut scores: Vec<i64> = nodes.iter().map(|node| scorer.score(*node)).collect();
            scorer.normalize(&mut scores);
            for (total, score) in totals.iter_mut().zip(scores) {
                *total += score * plugin.weight();
            }
        }
        let best = totals.iter().enumerate().max_by_key(|(at, total)| (**total, std::cmp::Reverse(*at)));
        nodes[best.map_or(0, |(at, _)| at)]
    }
}

impl FitError {
    fn count(&mut self, snapshot: &Snapshot, node: NodeIndex, plugin: &'static str, rejection: Rejection) {
        for reason in rejection.reasons {
            *self.nodes_by_reason.entry(reason).or_default() += 1;
        }
        if rejection.resolvable {
            self.resolvable.push(snapshot.node(node).name.clone());
        }
        if !self.plugins.contains(&plugin) {
            self.plugins.push(plugin);
        }
    }
}

/// How many suitable nodes are compared in a cluster of this size: all up to 100, then half, falling to a twentieth.
fn enough_candidates(nodes: usize) -> usize {
    if nodes < CANDIDATES_MIN {
        return nodes.max(1);
    }
    let percent = 50_usize.saturating_sub(nodes / 125).max(5);
    (nodes * percent / 100).max(CANDIDATES_MIN)
}

#[cfg(test)]
mod tests;
