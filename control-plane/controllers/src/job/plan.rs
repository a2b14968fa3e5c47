//! What a Job needs next, from the Job and its pods. No IO; `now` is an argument.
//!
//! Each pod carries a finalizer until its end is counted in the Job's status. Counting takes two writes, so that a crash
//! between them counts nothing twice and loses nothing: first the uid goes into `uncountedTerminatedPods`, then the
//! finalizer goes off the pod, then the uid becomes a number.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::batch::v1::{Job, JobCondition, JobSpec, JobStatus, UncountedTerminatedPods};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use super::indexes;
use crate::pods;
use crate::reconcile::elapsed;

/// The finalizer of pods whose end is not counted yet.
pub const TRACKING: &str = "batch.kubernetes.io/job-tracking";
/// The completion index of a pod.
pub const INDEX: &str = "batch.kubernetes.io/job-completion-index";
const BACKOFF_MIN: Duration = Duration::from_secs(10);
const BACKOFF_MAX: Duration = Duration::from_secs(600);

/// What to do about one Job.
#[derive(Debug, Default)]
pub struct Plan {
    /// The status to write.
    pub status: JobStatus,
    /// Pods whose end is in that status: their finalizer may go once it is written.
    pub counted: Vec<Arc<Pod>>,
    /// Pods to delete.
    pub delete: Vec<Arc<Pod>>,
    /// Pods to make, each with its index for Indexed Jobs.
    pub create: Vec<Option<i32>>,
    /// When to look again.
    pub again: Option<Duration>,
}

fn is_tracked(pod: &Pod) -> bool {
    pod.finalizers().iter().any(|finalizer| finalizer == TRACKING)
}

fn index(pod: &Pod) -> Option<i32> {
    pod.annotations().get(INDEX)?.parse().ok()
}

fn has_failed(pod: &Pod, only_failed_count: bool) -> bool {
    let phase = pods::phase(pod);
    phase == "Failed" || !only_failed_count && pods::is_terminating(pod) && phase != "Succeeded"
}

/// A condition of the Job that is True.
pub fn holds(status: &JobStatus, kind: &str) -> bool {
    status.conditions.iter().flatten().any(|condition| condition.type_ == kind && condition.status == "True")
}

/// Whether the Job has ended for good.
pub fn is_finished(job: &Job) -> bool {
    job.status.as_ref().is_some_and(|status| holds(status, "Complete") || holds(status, "Failed"))
}

fn set(status: &mut JobStatus, kind: &str, value: &str, reason: &str, message: &str, now: &Time) {
    let conditions = status.conditions.get_or_insert_default();
    if let Some(known) = conditions.iter().position(|condition| condition.type_ == kind) {
        if conditions[known].status == value {
            return;
        }
        conditions.remove(known);
    }
    conditions.push(JobCondition {
        type_: kind.into(),
        status: value.into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_probe_time: Some(now.clone()),
        last_transition_time: Some(now.clone()),
    });
}

struct Numbers {
    succeeded: i32,
    failed: i32,
    active: Vec<Arc<Pod>>,
}

/// Plans for a Job that is not finished and not being deleted.
pub fn plan(job: &Job, own: &[Arc<Pod>], now: &Time) -> Plan {
    let spec = job.spec.clone().unwrap_or_default();
    let mut plan = Plan { status: job.status.clone().unwrap_or_default(), ..Plan::default() };
    let suspended = spec.suspend == Some(true);
    if plan.status.start_time.is_none() && !suspended {
        plan.status.start_time = Some(now.clone());
    }
    let numbers = count(&mut plan, &spec, own);
    judge(&mut plan, &spec, &numbers, own, now);
    let ending = holds(&plan.status, "FailureTarget") || holds(&plan.status, "SuccessCriteriaMet");
    if ending || suspended {
        plan.delete.extend(numbers.active.iter().cloned());
    }
    if ending {
        end(&mut plan, own, now);
    } else if suspended {
        set(&mut plan.status, "Suspended", "True", "JobSuspended", "Job suspended", now);
        plan.status.start_time = None;
    } else {
        if holds(&plan.status, "Suspended") {
            set(&mut plan.status, "Suspended", "False", "JobResumed", "Job resumed", now);
        }
        staff(&mut plan, &spec, &numbers, own, now);
    }
    plan
}

/// Moves ends of pods one step further on the way into the numbers.
fn count(plan: &mut Plan, spec: &JobSpec, own: &[Arc<Pod>]) -> Numbers {
    let status = &mut plan.status;
    let indexed = spec.completion_mode.as_deref() == Some("Indexed");
    let only_failed = spec.pod_replacement_policy.as_deref() == Some("Failed");
    let mut uncounted = status.uncounted_terminated_pods.take().unwrap_or_default();
    let waits = |uid: &String| own.iter().any(|pod| pod.uid().as_ref() == Some(uid) && is_tracked(pod));
    let settle = |uids: &mut Vec<String>, number: &mut Option<i32>| {
        let before = uids.len();
        uids.retain(&waits);
        let settled = i32::try_from(before - uids.len()).unwrap_or(i32::MAX);
        if settled > 0 {
            *number = Some(number.unwrap_or(0) + settled);
        }
    };
    settle(uncounted.succeeded.get_or_insert_default(), &mut status.succeeded);
    settle(uncounted.failed.get_or_insert_default(), &mut status.failed);
    let mut completed = indexes::parse(status.completed_indexes.as_deref().unwrap_or_default());
    let (completions, mut active) = (spec.completions.unwrap_or(i32::MAX), Vec::new());
    for pod in own {
        let uid = pod.uid().unwrap_or_default();
        if pods::phase(pod) == "Succeeded" {
            if is_tracked(pod) {
                plan.counted.push(pod.clone());
                match index(pod).filter(|_| indexed) {
                    Some(index) if index < completions => _ = completed.insert(index),
                    Some(_) => {}
                    None => add(&mut uncounted.succeeded, uid),
                }
            }
        } else if has_failed(pod, only_failed) {
            if is_tracked(pod) {
                plan.counted.push(pod.clone());
                add(&mut uncounted.failed, uid);
            }
        } else if !pods::is_terminating(pod) {
            active.push(pod.clone());
        }
    }
    let waiting =
        |uids: &Option<Vec<String>>| i32::try_from(uids.as_ref().map_or(0, Vec::len)).unwrap_or(i32::MAX);
    if indexed {
        status.completed_indexes = Some(indexes::format(&completed)).filter(|text| !text.is_empty());
        status.succeeded =
            Some(i32::try_from(completed.len()).unwrap_or(i32::MAX)).filter(|number| *number > 0);
    }
    let numbers = Numbers {
        succeeded: status.succeeded.unwrap_or(0) + waiting(&uncounted.succeeded),
        failed: status.failed.unwrap_or(0) + waiting(&uncounted.failed),
        active,
    };
    status.uncounted_terminated_pods = Some(tidy(uncounted));
    let number = |f: &dyn Fn(&Arc<Pod>) -> bool| {
        i32::try_from(own.iter().filter(|pod| f(pod)).count()).unwrap_or(i32::MAX)
    };
    let is_active =
        |pod: &Arc<Pod>| numbers.active.iter().any(|active| active.metadata.uid == pod.metadata.uid);
    status.active = Some(number(&is_active)).filter(|number| *number > 0);
    status.ready = Some(number(&|pod| is_active(pod) && pods::is_ready(pod)));
    status.terminating = Some(number(&|pod| pods::is_terminating(pod) && !pods::is_finished(pod)));
    numbers
}

fn add(uids: &mut Option<Vec<String>>, uid: String) {
    let uids = uids.get_or_insert_default();
    if !uids.contains(&uid) {
        uids.push(uid);
    }
}

fn tidy(uncounted: UncountedTerminatedPods) -> UncountedTerminatedPods {
    let filled = |uids: Option<Vec<String>>| uids.filter(|uids| !uids.is_empty());
    UncountedTerminatedPods { succeeded: filled(uncounted.succeeded), failed: filled(uncounted.failed) }
}

/// Decides whether the Job is about to end.
fn judge(plan: &mut Plan, spec: &JobSpec, numbers: &Numbers, own: &[Arc<Pod>], now: &Time) {
    let status = &mut plan.status;
    if holds(status, "FailureTarget") || holds(status, "SuccessCriteriaMet") {
        return;
    }
    let limit = spec.backoff_limit.unwrap_or(6);
    let restarts = |pod: &Arc<Pod>| -> i32 {
        let status = pod.status.as_ref();
        let containers = status
            .into_iter()
            .flat_map(|s| s.init_container_statuses.iter().chain(&s.container_statuses).flatten());
        containers.map(|container| container.restart_count).sum()
    };
    let in_place =
        spec.template.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref()) == Some("OnFailure");
    let restarted: i32 = if in_place { own.iter().map(restarts).sum() } else { 0 };
    if numbers.failed > limit || in_place && restarted > 0 && restarted >= limit.max(1) {
        return set(
            status,
            "FailureTarget",
            "True",
            "BackoffLimitExceeded",
            "Job has reached the specified backoff limit",
            now,
        );
    }
    let deadline =
        spec.active_deadline_seconds.and_then(|seconds| u64::try_from(seconds).ok()).map(Duration::from_secs);
    if let (Some(deadline), Some(start)) = (deadline, &status.start_time) {
        let active = elapsed(start.0, now.0);
        if active >= deadline {
            return set(
                status,
                "FailureTarget",
                "True",
                "DeadlineExceeded",
                "Job was active longer than specified deadline",
                now,
            );
        }
        plan.again = Some(deadline - active);
    }
    let reached = match spec.completions {
        Some(completions) => numbers.succeeded >= completions,
        None => numbers.succeeded > 0 && numbers.active.is_empty(),
    };
    if reached && spec.suspend != Some(true) {
        set(
            status,
            "SuccessCriteriaMet",
            "True",
            "CompletionsReached",
            "Reached expected number of succeeded pods",
            now,
        );
    }
}

/// Says that the Job has ended once no pod is left that would still have to be counted.
fn end(plan: &mut Plan, own: &[Arc<Pod>], now: &Time) {
    let uncounted = plan.status.uncounted_terminated_pods.clone().unwrap_or_default();
    let open = own.iter().any(|pod| is_tracked(pod) || pods::is_terminating(pod) && !pods::is_finished(pod));
    if open || uncounted.succeeded.is_some() || uncounted.failed.is_some() {
        return;
    }
    plan.again = None;
    let target = if holds(&plan.status, "FailureTarget") { "FailureTarget" } else { "SuccessCriteriaMet" };
    let cause = plan.status.conditions.iter().flatten().find(|condition| condition.type_ == target).cloned();
    let text = |field: fn(&JobCondition) -> &Option<String>| {
        cause.as_ref().and_then(|c| field(c).clone()).unwrap_or_default()
    };
    let (reason, message) = (text(|c| &c.reason), text(|c| &c.message));
    if target == "FailureTarget" {
        set(&mut plan.status, "Failed", "True", &reason, &message, now);
    } else {
        set(&mut plan.status, "Complete", "True", &reason, &message, now);
        plan.status.completion_time = Some(now.clone());
    }
}

/// Makes or deletes pods so that as many are active as should be.
fn staff(plan: &mut Plan, spec: &JobSpec, numbers: &Numbers, own: &[Arc<Pod>], now: &Time) {
    let parallelism = spec.parallelism.unwrap_or(1);
    let active = i32::try_from(numbers.active.len()).unwrap_or(i32::MAX);
    let wanted = match spec.completions {
        Some(completions) => parallelism.min(completions - numbers.succeeded),
        None if numbers.succeeded > 0 => active.min(parallelism),
        None => parallelism,
    };
    if active > wanted {
        let excess = usize::try_from(active - wanted.max(0)).unwrap_or(0);
        plan.delete.extend(pods::choose_for_deletion(&numbers.active, &numbers.active, excess, now.0));
        return;
    }
    let terminating = plan.status.terminating.unwrap_or(0);
    let held_up = if spec.pod_replacement_policy.as_deref() == Some("Failed") { terminating } else { 0 };
    let missing = usize::try_from(wanted - active - held_up).unwrap_or(0);
    if missing == 0 {
        return;
    }
    let wait = backoff(own, now.0);
    if !wait.is_zero() {
        plan.again = Some(plan.again.map_or(wait, |again| again.min(wait)));
        return;
    }
    if spec.completion_mode.as_deref() == Some("Indexed") {
        let completed = indexes::parse(plan.status.completed_indexes.as_deref().unwrap_or_default());
        let taken: BTreeSet<i32> = numbers.active.iter().filter_map(|pod| index(pod)).collect();
        let free = (0..spec.completions.unwrap_or(0))
            .filter(|index| !completed.contains(index) && !taken.contains(index));
        plan.create = free.take(missing).map(Some).collect();
    } else {
        plan.create = vec![None; missing];
    }
}

/// How long to wait before the next pod: 10 s after a failure, doubling with each that follows without a success between.
fn backoff(own: &[Arc<Pod>], now: Timestamp) -> Duration {
    let last_success =
        own.iter().filter(|pod| pods::phase(pod) == "Succeeded").filter_map(|pod| ended(pod)).max();
    let failures: Vec<Timestamp> = own
        .iter()
        .filter(|pod| pods::phase(pod) == "Failed")
        .filter_map(|pod| ended(pod))
        .filter(|at| last_success.is_none_or(|success| *at > success))
        .collect();
    let Some(last) = failures.iter().max() else { return Duration::ZERO };
    let doublings = u32::try_from(failures.len() - 1).unwrap_or(u32::MAX).min(8);
    let delay = (BACKOFF_MIN * 2_u32.pow(doublings)).min(BACKOFF_MAX);
    delay.saturating_sub(elapsed(*last, now))
}

/// When a pod's last container ended, or else when its readiness last changed.
fn ended(pod: &Pod) -> Option<Timestamp> {
    let statuses = pod.status.as_ref()?.container_statuses.iter().flatten();
    let ends = statuses.filter_map(|status| {
        status.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref().map(|time| time.0)
    });
    let ready = || {
        pods::condition(pod, "Ready").and_then(|ready| ready.last_transition_time.as_ref().map(|time| time.0))
    };
    ends.max().or_else(ready).or_else(|| pod.metadata.creation_timestamp.as_ref().map(|time| time.0))
}

#[cfg(test)]
mod tests;
