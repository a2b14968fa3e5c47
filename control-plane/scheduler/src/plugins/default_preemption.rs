//! DefaultPreemption (PostFilter): if no node has room, finds one where removing less important pods makes room.
//!
//! On each candidate all less important pods are taken away; if the pod then fits, as many as possible are put back, the
//! most important first. Among candidates, the one that hurts least wins: fewest violated disruption budgets, then the
//! lowest highest priority among the victims, the smallest sum of priorities, the fewest victims, the first by name.

use std::sync::Arc;

use kube::core::{Selector, SelectorExt};

use kube::ResourceExt;

use crate::cycle::{FitError, Scheduler};
use crate::pod::PodInfo;
use crate::snapshot::{NodeIndex, Snapshot};

/// What a disruption budget allows at this moment.
#[derive(Debug, Clone)]
pub struct Budget {
    /// Its namespace.
    pub namespace: String,
    /// Which pods it protects.
    pub selector: Selector,
    /// How many of them may go.
    pub allowed: i32,
}

/// The node to make room on, and who must go.
#[derive(Debug, Clone)]
pub struct Preemption {
    /// Name of the node.
    pub node: String,
    /// Pods to delete; empty if they are going already.
    pub victims: Vec<Arc<PodInfo>>,
}

/// How much a choice hurts; smaller is better.
type Harm = (usize, i32, i64, usize, String);

const CANDIDATES_MAX: usize = 100;

/// Finds room for `pod`, which fits nowhere for the reasons in `error`, or says why there is none.
pub fn preempt(
    scheduler: &Scheduler,
    snapshot: &Snapshot,
    pod: &PodInfo,
    error: &FitError,
    budgets: &[Budget],
) -> Result<Preemption, String> {
    let total = snapshot.len();
    if pod.spec().preemption_policy.as_deref() == Some("Never") {
        return Err(format!(
            "preemption: 0/{total} nodes are available: {total} Preemption is not helpful for scheduling."
        ));
    }
    let mut best: Option<(Harm, Preemption)> = None;
    let has_lesser = |name: &&String| {
        snapshot
            .find(name)
            .is_some_and(|node| snapshot.node(node).pods.iter().any(|other| other.priority < pod.priority))
    };
    let candidates: Vec<&String> = error.resolvable.iter().filter(has_lesser).take(CANDIDATES_MAX).collect();
    // A copy of the table is worth its price only where somebody could be preempted at all.
    let mut trial = if candidates.is_empty() { Snapshot::default() } else { snapshot.clone() };
    for name in &candidates {
        let Some(node) = trial.find(name) else { continue };
        if let Some((harm, victims)) = try_node(scheduler, &mut trial, node, pod, budgets)
            && best.as_ref().is_none_or(|(least, _)| harm < *least)
        {
            best = Some((harm, Preemption { node: (*name).clone(), victims }));
        }
    }
    best.map(|(_, preemption)| preemption).ok_or_else(|| {
        let hopeless = total - error.resolvable.len();
        let mut reasons = Vec::new();
        if !error.resolvable.is_empty() {
            reasons.push(format!("{} No preemption victims found for incoming pod", error.resolvable.len()));
        }
        if hopeless > 0 {
            reasons.push(format!("{hopeless} Preemption is not helpful for scheduling"));
        }
        format!("preemption: 0/{total} nodes are available: {}.", reasons.join(", "))
    })
}

/// Leaves `trial` as it was.
fn try_node(
    scheduler: &Scheduler,
    trial: &mut Snapshot,
    node: NodeIndex,
    pod: &PodInfo,
    budgets: &[Budget],
) -> Option<(Harm, Vec<Arc<PodInfo>>)> {
    let name = trial.node(node).name.clone();
    let mut lesser: Vec<_> =
        trial.node(node).pods.iter().filter(|other| other.priority < pod.priority).cloned().collect();
    if lesser.is_empty() {
        return None;
    }
    lesser.sort_by(|a, b| {
        let started = |pod: &PodInfo| pod.pod.status.as_ref().and_then(|status| status.start_time.clone());
        b.priority.cmp(&a.priority).then_with(|| started(a).cmp(&started(b))).then_with(|| a.uid.cmp(&b.uid))
    });
    lesser.iter().for_each(|victim| _ = trial.remove_pod(&victim.uid));
    let result = scheduler.fits(trial, pod, node).then(|| {
        let mut left: Vec<i32> = budgets.iter().map(|budget| budget.allowed).collect();
        let (protected, free): (Vec<_>, Vec<_>) =
            lesser.iter().cloned().partition(|victim| violates(victim, budgets, &mut left));
        let mut victims = Vec::new();
        let mut violations = 0;
        for (candidate, is_protected) in
            protected.iter().map(|pod| (pod, true)).chain(free.iter().map(|pod| (pod, false)))
        {
            trial.set_pod(candidate.clone(), &name);
            if !scheduler.fits(trial, pod, node) {
                trial.remove_pod(&candidate.uid);
                violations += usize::from(is_protected);
                victims.push(candidate.clone());
            }
        }
        let highest = victims.iter().map(|victim| victim.priority).max().unwrap_or(i32::MIN);
        let sum = victims.iter().map(|victim| i64::from(victim.priority) - i64::from(i32::MIN)).sum();
        ((violations, highest, sum, victims.len(), name.clone()), victims)
    });
    lesser.into_iter().for_each(|victim| trial.set_pod(victim, &name));
    result
}

/// Whether losing `pod` breaks a budget, given what was lost before it.
fn violates(pod: &PodInfo, budgets: &[Budget], left: &mut [i32]) -> bool {
    let mut violated = false;
    for (budget, left) in budgets.iter().zip(left) {
        if budget.namespace == pod.namespace && budget.selector.matches(pod.pod.labels()) {
            *left -= 1;
            violated |= *left < 0;
        }
    }
    violated
}
