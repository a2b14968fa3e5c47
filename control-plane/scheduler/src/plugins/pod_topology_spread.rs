//! PodTopologySpread: keeps matching pods evenly spread over the values of a node label.
//!
//! A pod without constraints of its own that belongs to a controller or a Service gets the system's: at most 3 apart over
//! host names and 5 over zones, as a wish only.

use std::collections::{BTreeMap, HashMap};

use kube::ResourceExt;
use kube::core::{Selector, SelectorExt};

use crate::framework::{Filter, Plugin, PreFilter, Rejection, SCORE_MAX, Score};
use crate::pod::{PodInfo, extend_by_keys};
use crate::predicates::{accepts_node, untolerated};
use crate::snapshot::{NodeIndex, Row, Snapshot};

const HOSTNAME: &str = "kubernetes.io/hostname";
const ZONE: &str = "topology.kubernetes.io/zone";

/// The plugin.
pub struct PodTopologySpread;

/// Which pods a constraint counts.
enum Counted<'a> {
    Selected(Selector),
    Controlled(&'a str),
    Served(Vec<&'a Selector>),
}

struct Constraint<'a> {
    key: String,
    skew_max: i64,
    domains_min: usize,
    counted: Counted<'a>,
    heeds_affinity: bool,
    heeds_taints: bool,
}

impl Constraint<'_> {
    fn counts(&self, pod: &PodInfo, namespace: &str) -> bool {
        if pod.namespace != namespace || pod.pod.metadata.deletion_timestamp.is_some() {
            return false;
        }
        match &self.counted {
            Counted::Selected(selector) => selector.matches(pod.pod.labels()),
            Counted::Controlled(controller) => pod.controller.as_deref() == Some(controller),
            Counted::Served(selectors) => selectors.iter().all(|selector| selector.matches(pod.pod.labels())),
        }
    }

    fn heeds(&self, pod: &PodInfo, row: &Row) -> bool {
        let tolerations = pod.spec().tolerations.as_deref().unwrap_or_default();
        (!self.heeds_affinity || accepts_node(pod.spec(), &row.name, &row.labels))
            && (!self.heeds_taints
                || untolerated(&row.taints, tolerations, &["NoSchedule", "NoExecute"]).is_none())
    }

    fn matching(&self, row: &Row, namespace: &str) -> i64 {
        i64::try_from(row.pods.iter().filter(|pod| self.counts(pod, namespace)).count()).unwrap_or(i64::MAX)
    }
}

fn own_constraints<'a>(pod: &'a PodInfo, unsatisfiable: &str) -> Vec<Constraint<'a>> {
    let constraints = pod.spec().topology_spread_constraints.iter().flatten();
    let constraints = constraints.filter(|constraint| constraint.when_unsatisfiable == unsatisfiable);
    constraints
        .filter_map(|constraint| {
            let mut selector = constraint.label_selector.clone()?;
            extend_by_keys(&mut selector, constraint.match_label_keys.as_deref(), "In", &pod.pod);
            Some(Constraint {
                key: constraint.topology_key.clone(),
                skew_max: i64::from(constraint.max_skew),
                domains_min: constraint.min_domains.and_then(|min| usize::try_from(min).ok()).unwrap_or(1),
                counted: Counted::Selected(Selector::try_from(selector).ok()?),
                heeds_affinity: constraint.node_affinity_policy.as_deref() != Some("Ignore"),
                heeds_taints: constraint.node_taints_policy.as_deref() == Some("Honor"),
            })
        })
        .collect()
}

fn system_constraints<'a>(snapshot: &'a Snapshot, pod: &'a PodInfo) -> Vec<Constraint<'a>> {
    if pod.spec().topology_spread_constraints.as_ref().is_some_and(|constraints| !constraints.is_empty()) {
        return Vec::new();
    }
    let services: Vec<&Selector> = snapshot.services_of(pod).collect();
    if pod.controller.is_none() && services.is_empty() {
        return Vec::new();
    }
    let constraint = |key: &str, skew_max| Constraint {
        key: key.to_owned(),
        skew_max,
        domains_min: 1,
        counted: match &pod.controller {
            Some(controller) => Counted::Controlled(controller),
            None => Counted::Served(services.clone()),
        },
        heeds_affinity: true,
        heeds_taints: false,
    };
    vec![constraint(HOSTNAME, 3), constraint(ZONE, 5)]
}

impl Plugin for PodTopologySpread {
    fn name(&self) -> &'static str {
        "PodTopologySpread"
    }

    fn weight(&self) -> i64 {
        2
    }

    fn pre_filter<'a>(&'a self, snapshot: &'a Snapshot, pod: &'a PodInfo) -> PreFilter<'a> {
        let constraints = own_constraints(pod, "DoNotSchedule");
        if constraints.is_empty() {
            return PreFilter::Skip;
        }
        let has_keys =
            |row: &Row| constraints.iter().all(|constraint| row.labels.contains_key(&constraint.key));
        let mut counts: Vec<BTreeMap<String, i64>> = constraints.iter().map(|_| BTreeMap::new()).collect();
        for row in snapshot.nodes().map(|node| snapshot.node(node)).filter(|row| has_keys(row)) {
            for (constraint, counts) in constraints.iter().zip(&mut counts) {
                if constraint.heeds(pod, row) {
                    *counts.entry(row.labels[&constraint.key].clone()).or_default() +=
                        constraint.matching(row, &pod.namespace);
                }
            }
        }
        let minimum = |(constraint, counts): (&Constraint<'_>, &BTreeMap<String, i64>)| {
            // Too few domains count as if an empty one were missing.
            if counts.len() < constraint.domains_min {
                0
            } else {
                counts.values().copied().min().unwrap_or(0)
            }
        };
        let minima = constraints.iter().zip(&counts).map(minimum).collect();
        PreFilter::Filter(Box::new(Required { snapshot, pod, constraints, counts, minima }))
    }

    fn pre_score<'a>(
        &'a self,
        snapshot: &'a Snapshot,
        pod: &'a PodInfo,
        nodes: &[NodeIndex],
    ) -> Option<Box<dyn Score + 'a>> {
        let own = own_constraints(pod, "ScheduleAnyway");
        let by_system = own.is_empty();
        let constraints = if by_system { system_constraints(snapshot, pod) } else { own };
        if constraints.is_empty() {
            return None;
        }
        let has_keys = |row: &Row| {
            by_system || constraints.iter().all(|constraint| row.labels.contains_key(&constraint.key))
        };
        let candidates: Vec<&Row> =
            nodes.iter().map(|node| snapshot.node(*node)).filter(|row| has_keys(row)).collect();
        let mut counts: Vec<HashMap<String, i64>> = constraints.iter().map(|_| HashMap::new()).collect();
        for (constraint, counts) in constraints.iter().zip(&mut counts) {
            counts.extend(
                candidates.iter().filter_map(|row| Some((row.labels.get(&constraint.key)?.clone(), 0))),
            );
        }
        for row in snapshot.nodes().map(|node| snapshot.node(node)) {
            for (constraint, counts) in constraints.iter().zip(&mut counts) {
                if let Some(count) = row.labels.get(&constraint.key).and_then(|value| counts.get_mut(value))
                    && constraint.heeds(pod, row)
                {
                    *count += constraint.matching(row, &pod.namespace);
                }
            }
        }
        Some(Box::new(Preferred { snapshot, constraints, counts, by_system }))
    }
}

struct Required<'a> {
    snapshot: &'a Snapshot,
    pod: &'a PodInfo,
    constraints: Vec<Constraint<'a>>,
    counts: Vec<BTreeMap<String, i64>>,
    minima: Vec<i64>,
}

impl Filter for Required<'_> {
    fn filter(&self, node: NodeIndex) -> Result<(), Rejection> {
        let row = self.snapshot.node(node);
        for ((constraint, counts), minimum) in self.constraints.iter().zip(&self.counts).zip(&self.minima) {
            let Some(value) = row.labels.get(&constraint.key) else {
                let reason = "node(s) didn't match pod topology spread constraints (missing required label)";
                return Err(Rejection::unresolvable(reason));
            };
            let itself = i64::from(constraint.counts(self.pod, &self.pod.namespace));
            let count = counts.get(value).copied().unwrap_or(0);
            if count + itself - minimum > constraint.skew_max {
                return Err(Rejection::resolvable("node(s) didn't match pod topology spread constraints"));
            }
        }
        Ok(())
    }
}

struct Preferred<'a> {
    snapshot: &'a Snapshot,
    constraints: Vec<Constraint<'a>>,
    counts: Vec<HashMap<String, i64>>,
    by_system: bool,
}

/// Marks a node that lacks a label: it gets no point at all.
const IGNORED: i64 = i64::MAX;

impl Score for Preferred<'_> {
    fn score(&self, node: NodeIndex) -> i64 {
        let row = self.snapshot.node(node);
        let mut score = 0.0;
        for (constraint, counts) in self.constraints.iter().zip(&self.counts) {
            let Some(value) = row.labels.get(&constraint.key) else {
                if self.by_system {
                    continue;
                }
                return IGNORED;
            };
            let count = counts.get(value).copied().unwrap_or(0);
            // The more domains there are, the less a single pod more in one of them means for the spread as a whole.
            #[expect(clippy::cast_precision_loss, reason = "counts of pods and of nodes")]
            let weighted = count as f64 * (counts.len() as f64 + 2.0).ln() + (constraint.skew_max - 1) as f64;
            score += weighted;
        }
        #[expect(clippy::cast_possible_truncation, reason = "counts of pods")]
        let rounded = score.round() as i64;
        rounded
    }

    fn normalize(&self, scores: &mut [i64]) {
        let counted = || scores.iter().copied().filter(|score| *score != IGNORED);
        let (min, max) = (counted().min().unwrap_or(0), counted().max().unwrap_or(0));
        for score in scores {
            *score = match *score {
                IGNORED => 0,
                _ if max == 0 => SCORE_MAX,
                score => SCORE_MAX * (max + min - score) / max,
            };
        }
    }
}
