//! InterPodAffinity: pods that must, or should, be near or apart from others.
//!
//! Anti-affinity works both ways: pods already placed can keep the new one away.

use std::collections::HashMap;

use crate::framework::{Filter, Plugin, PreFilter, Rejection, SCORE_MAX, Score};
use crate::pod::{PodInfo, Term};
use crate::snapshot::{NodeIndex, Row, Snapshot};

/// What a required term of a placed pod weighs towards the new one, besides its preferred terms.
const HARD_AFFINITY_WEIGHT: i64 = 1;

/// The plugin.
pub struct InterPodAffinity;

type Domain = (String, String);

struct Required<'a> {
    snapshot: &'a Snapshot,
    pod: &'a PodInfo,
    /// Domains that placed pods keep the new one out of.
    forbidden: HashMap<Domain, usize>,
    /// Per required affinity term: domains with matching pods.
    near: Vec<HashMap<String, usize>>,
    /// Per required anti-affinity term: domains with matching pods.
    apart: Vec<HashMap<String, usize>>,
}

fn matches(snapshot: &Snapshot, term: &Term, pod: &PodInfo) -> bool {
    term.matches(pod, |namespace| snapshot.namespace_labels(namespace))
}

impl Plugin for InterPodAffinity {
    fn name(&self) -> &'static str {
        "InterPodAffinity"
    }

    fn weight(&self) -> i64 {
        2
    }

    fn pre_filter<'a>(&'a self, snapshot: &'a Snapshot, pod: &'a PodInfo) -> PreFilter<'a> {
        let mut forbidden: HashMap<Domain, usize> = HashMap::new();
        let mut near = vec![HashMap::new(); pod.affinity.required.len()];
        let mut apart = vec![HashMap::new(); pod.anti_affinity.required.len()];
        for row in snapshot.nodes().map(|node| snapshot.node(node)) {
            for placed in &row.pods {
                for term in placed.anti_affinity.required.iter().filter(|term| matches(snapshot, term, pod)) {
                    if let Some(value) = row.labels.get(&term.topology_key) {
                        *forbidden.entry((term.topology_key.clone(), value.clone())).or_default() += 1;
                    }
                }
                // All required affinity terms speak of the same pods: one that misses a term counts for none.
                if !near.is_empty()
                    && pod.affinity.required.iter().all(|term| matches(snapshot, term, placed))
                {
                    count(&pod.affinity.required, &mut near, row);
                }
                for (term, counts) in pod.anti_affinity.required.iter().zip(&mut apart) {
                    if matches(snapshot, term, placed) {
                        count(std::slice::from_ref(term), std::slice::from_mut(counts), row);
                    }
                }
            }
        }
        if forbidden.is_empty() && near.is_empty() && apart.is_empty() {
            return PreFilter::Skip;
        }
        PreFilter::Filter(Box::new(Required { snapshot, pod, forbidden, near, apart }))
    }

    fn pre_score<'a>(
        &'a self,
        snapshot: &'a Snapshot,
        pod: &'a PodInfo,
        _: &[NodeIndex],
    ) -> Option<Box<dyn Score + 'a>> {
        let mut weights: HashMap<Domain, i64> = HashMap::new();
        for row in snapshot.nodes().map(|node| snapshot.node(node)) {
            let mut weigh = |term: &Term, weight: i64| {
                if let Some(value) = row.labels.get(&term.topology_key) {
                    *weights.entry((term.topology_key.clone(), value.clone())).or_default() += weight;
                }
            };
            for placed in &row.pods {
                for (sign, own, theirs) in
                    [(1, &pod.affinity, &placed.affinity), (-1, &pod.anti_affinity, &placed.anti_affinity)]
                {
                    let wanted = own.preferred.iter().filter(|(_, term)| matches(snapshot, term, placed));
                    wanted.for_each(|(weight, term)| weigh(term, sign * i64::from(*weight)));
                    let wanted = theirs.preferred.iter().filter(|(_, term)| matches(snapshot, term, pod));
                    wanted.for_each(|(weight, term)| weigh(term, sign * i64::from(*weight)));
                }
                let required = placed.affinity.required.iter().filter(|term| matches(snapshot, term, pod));
                required.for_each(|term| weigh(term, HARD_AFFINITY_WEIGHT));
            }
        }
        (!weights.is_empty()).then(|| Box::new(Preferred { snapshot, weights }) as Box<dyn Score>)
    }
}

fn count(terms: &[Term], counts: &mut [HashMap<String, usize>], row: &Row) {
    for (term, counts) in terms.iter().zip(counts) {
        if let Some(value) = row.labels.get(&term.topology_key) {
            *counts.entry(value.clone()).or_default() += 1;
        }
    }
}

impl Required<'_> {
    fn is_near(&self, row: &Row) -> bool {
        let terms = &self.pod.affinity.required;
        if terms.iter().any(|term| !row.labels.contains_key(&term.topology_key)) {
            return false;
        }
        let mut pairs = terms.iter().zip(&self.near);
        if pairs.all(|(term, counts)| counts.contains_key(&row.labels[&term.topology_key])) {
            return true;
        }
        // The first of a group that wants to be together has nobody to join yet.
        self.near.iter().all(HashMap::is_empty)
            && terms.iter().all(|term| matches(self.snapshot, term, self.pod))
    }
}

impl Filter for Required<'_> {
    fn filter(&self, node: NodeIndex) -> Result<(), Rejection> {
        let row = self.snapshot.node(node);
        if !self.is_near(row) {
            return Err(Rejection::unresolvable("node(s) didn't match pod affinity rules"));
        }
        let mut apart = self.pod.anti_affinity.required.iter().zip(&self.apart);
        if apart.any(|(term, counts)| {
            row.labels.get(&term.topology_key).is_some_and(|value| counts.contains_key(value))
        }) {
            return Err(Rejection::resolvable("node(s) didn't match pod anti-affinity rules"));
        }
        if self.forbidden.keys().any(|(key, value)| row.labels.get(key) == Some(value)) {
            return Err(Rejection::resolvable("node(s) didn't satisfy existing pods anti-affinity rules"));
        }
        Ok(())
    }
}

struct Preferred<'a> {
    snapshot: &'a Snapshot,
    weights: HashMap<Domain, i64>,
}

impl Score for Preferred<'_> {
    fn score(&self, node: NodeIndex) -> i64 {
        let labels = &self.snapshot.node(node).labels;
        let reached = self.weights.iter().filter(|((key, value), _)| labels.get(key) == Some(value));
        reached.map(|(_, weight)| *weight).sum()
    }

    fn normalize(&self, scores: &mut [i64]) {
        let (min, max) =
            (scores.iter().copied().min().unwrap_or(0), scores.iter().copied().max().unwrap_or(0));
        for score in scores {
            *score = if max == min { 0 } else { SCORE_MAX * (*score - min) / (max - min) };
        }
    }
}
