//! The status of a Deployment: counts, and the conditions Available, Progressing and ReplicaFailure. No IO; `now` is an
//! argument.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use super::rolling::{Bounds, desired};
use super::status_of;
use crate::reconcile::elapsed;

/// The reason of a rollout that made no progress within its deadline.
pub const TIMED_OUT: &str = "ProgressDeadlineExceeded";
/// The reason of a finished rollout.
pub const FINISHED: &str = "NewReplicaSetAvailable";

/// The Progressing condition.
pub fn progress(deployment: &Deployment) -> Option<&DeploymentCondition> {
    condition(deployment.status.as_ref()?, "Progressing")
}

fn condition<'a>(status: &'a DeploymentStatus, kind: &str) -> Option<&'a DeploymentCondition> {
    status.conditions.as_ref()?.iter().find(|condition| condition.type_ == kind)
}

/// Sets the Progressing condition on the object in hand.
pub fn set_progress(deployment: &mut Deployment, value: &str, reason: &str, message: String, now: Time) {
    set(deployment.status.get_or_insert_default(), "Progressing", value, reason, message, &now);
}

/// A condition with the same value and reason stays as it is; with the same value it keeps its transition time.
fn set(status: &mut DeploymentStatus, kind: &str, value: &str, reason: &str, message: String, now: &Time) {
    let conditions = status.conditions.get_or_insert_default();
    let old = conditions.iter().position(|condition| condition.type_ == kind);
    let mut since = now.clone();
    if let Some(old) = old {
        if conditions[old].status == value && conditions[old].reason.as_deref() == Some(reason) {
            return;
        }
        let old = conditions.remove(old);
        if old.status == value {
            since = old.last_transition_time.unwrap_or(since);
        }
    }
    conditions.push(DeploymentCondition {
        type_: kind.into(),
        status: value.into(),
        reason: Some(reason.into()),
        message: Some(message),
        last_update_time: Some(now.clone()),
        last_transition_time: Some(since),
    });
}

fn remove(status: &mut DeploymentStatus, kind: &str) {
    status.conditions.get_or_insert_default().retain(|condition| condition.type_ != kind);
}

/// Whether `status` says that every replica is of the newest revision and available.
pub fn is_complete(deployment: &Deployment, status: Option<&DeploymentStatus>) -> bool {
    let Some(status) = status else { return false };
    let replicas = desired(deployment);
    status.updated_replicas.unwrap_or(0) == replicas
        && status.replicas.unwrap_or(0) == replicas
        && status.available_replicas.unwrap_or(0) == replicas
        && status.observed_generation >= deployment.metadata.generation
}

/// Whether two statuses say the same; an absent number is zero.
pub fn same(a: &DeploymentStatus, b: &DeploymentStatus) -> bool {
    let numbers = |status: &DeploymentStatus| {
        [
            status.replicas,
            status.updated_replicas,
            status.ready_replicas,
            status.available_replicas,
            status.unavailable_replicas,
            status.terminating_replicas,
            status.collision_count,
        ]
        .map(Option::unwrap_or_default)
    };
    let conditions = |status: &DeploymentStatus| status.conditions.clone().unwrap_or_default();
    numbers(a) == numbers(b)
        && a.observed_generation == b.observed_generation
        && conditions(a) == conditions(b)
}

/// The status after this look; `old` is what the API holds, `deployment.status` what this reconciliation added to it.
pub fn compute(
    deployment: &Deployment,
    old: &DeploymentStatus,
    new: Option<&ReplicaSet>,
    sets: &[Arc<ReplicaSet>],
    now: &Time,
) -> DeploymentStatus {
    let mut status = counted(deployment, new, sets);
    let bounds = Bounds::of(deployment);
    let available = status.available_replicas.unwrap_or(0);
    if available >= bounds.replicas - bounds.unavailable {
        let message = "Deployment has minimum availability.".into();
        set(&mut status, "Available", "True", "MinimumReplicasAvailable", message, now);
    } else {
        let message = "Deployment does not have minimum availability.".into();
        set(&mut status, "Available", "False", "MinimumReplicasUnavailable", message, now);
    }
    set_progressing(deployment, old, new, &mut status, now);
    let failures = sets.iter().filter_map(|set| set.status.as_ref()?.conditions.as_ref());
    let failure = failures.flatten().find(|condition| condition.type_ == "ReplicaFailure");
    match failure {
        Some(failure) => {
            let reason = failure.reason.clone().unwrap_or_default();
            set(
                &mut status,
                "ReplicaFailure",
                &failure.status,
                &reason,
                failure.message.clone().unwrap_or_default(),
                now,
            );
        }
        None => remove(&mut status, "ReplicaFailure"),
    }
    status
}

fn counted(deployment: &Deployment, new: Option<&ReplicaSet>, sets: &[Arc<ReplicaSet>]) -> DeploymentStatus {
    let total = |f: fn(&ReplicaSet) -> i32| sets.iter().map(|set| f(set)).sum::<i32>();
    let replicas = total(|set| set.status.as_ref().map_or(0, |status| status.replicas));
    let available =
        total(|set| set.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0));
    let wanted = total(super::rolling::size);
    DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: Some(replicas),
        updated_replicas: Some(new.and_then(|set| set.status.as_ref()).map_or(0, |status| status.replicas)),
        ready_replicas: Some(total(|set| {
            set.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or(0)
        })),
        available_replicas: Some(available),
        unavailable_replicas: Some((wanted - available).max(0)),
        terminating_replicas: Some(total(|set| {
            set.status.as_ref().and_then(|s| s.terminating_replicas).unwrap_or(0)
        })),
        ..status_of(deployment)
    }
}

fn set_progressing(
    deployment: &Deployment,
    old: &DeploymentStatus,
    new: Option<&ReplicaSet>,
    status: &mut DeploymentStatus,
    now: &Time,
) {
    let Some(spec) = &deployment.spec else { return };
    let Some(deadline) = spec.progress_deadline_seconds.filter(|seconds| *seconds != i32::MAX) else {
        return remove(status, "Progressing");
    };
    if spec.paused == Some(true) {
        return;
    }
    let current = condition(status, "Progressing").cloned();
    let finished = current.as_ref().is_some_and(|condition| condition.reason.as_deref() == Some(FINISHED));
    if finished && status.replicas == status.updated_replicas {
        return;
    }
    let subject = new.map_or_else(
        || format!("Deployment \"{}\"", deployment.name_any()),
        |set| format!("ReplicaSet \"{}\"", set.name_any()),
    );
    if is_complete(deployment, Some(status)) {
        set(status, "Progressing", "True", FINISHED, format!("{subject} has successfully progressed."), now);
    } else if has_progressed(old, status) {
        // The update time is the proof of progress, so the condition is written anew even if nothing else in it changes.
        let since = current
            .filter(|condition| condition.status == "True")
            .and_then(|condition| condition.last_transition_time);
        remove(status, "Progressing");
        set(status, "Progressing", "True", "ReplicaSetUpdated", format!("{subject} is progressing."), now);
        if let Some(condition) = status.conditions.iter_mut().flatten().last() {
            condition.last_transition_time = since.or_else(|| condition.last_transition_time.take());
        }
    } else if current.is_some_and(|condition| timed_out(&condition, deadline, now.0)) {
        set(status, "Progressing", "False", TIMED_OUT, format!("{subject} has timed out progressing."), now);
    }
}

fn has_progressed(old: &DeploymentStatus, new: &DeploymentStatus) -> bool {
    let stale =
        |status: &DeploymentStatus| status.replicas.unwrap_or(0) - status.updated_replicas.unwrap_or(0);
    new.updated_replicas.unwrap_or(0) > old.updated_replicas.unwrap_or(0)
        || stale(new) < stale(old)
        || new.ready_replicas.unwrap_or(0) > old.ready_replicas.unwrap_or(0)
        || new.available_replicas.unwrap_or(0) > old.available_replicas.unwrap_or(0)
}

fn timed_out(condition: &DeploymentCondition, deadline_seconds: i32, now: Timestamp) -> bool {
    match condition.reason.as_deref() {
        Some(FINISHED) => false,
        Some(TIMED_OUT) => true,
        _ => remaining(condition, deadline_seconds, now).is_zero(),
    }
}

fn remaining(condition: &DeploymentCondition, deadline_seconds: i32, now: Timestamp) -> Duration {
    let deadline = Duration::from_secs(u64::try_from(deadline_seconds).unwrap_or(0));
    let since = condition.last_update_time.as_ref().map_or(now, |time| time.0);
    deadline.saturating_sub(elapsed(since, now))
}

/// When to look again since the progress deadline may have passed by then.
pub fn deadline(deployment: &Deployment, status: &DeploymentStatus, now: Timestamp) -> Option<Duration> {
    let spec = deployment.spec.as_ref()?;
    let seconds = spec.progress_deadline_seconds.filter(|seconds| *seconds != i32::MAX)?;
    let condition = condition(status, "Progressing")?;
    let over = matches!(condition.reason.as_deref(), Some(FINISHED | TIMED_OUT));
    if over || spec.paused == Some(true) || is_complete(deployment, Some(status)) {
        return None;
    }
    Some(remaining(condition, seconds, now) + Duration::from_secs(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::apps::v1::{DeploymentSpec, ReplicaSetSpec, ReplicaSetStatus};

    fn time(seconds: i64) -> Time {
        Time(Timestamp::from_second(1_700_000_000 + seconds).unwrap())
    }

    fn deployment() -> Deployment {
        let spec = DeploymentSpec {
            replicas: Some(3),
            progress_deadline_seconds: Some(10),
            ..DeploymentSpec::default()
        };
        Deployment { spec: Some(spec), ..Deployment::default() }
    }

    fn set(replicas: i32, available: i32) -> Arc<ReplicaSet> {
        let mut set = ReplicaSet {
            spec: Some(ReplicaSetSpec { replicas: Some(replicas), ..ReplicaSetSpec::default() }),
            ..ReplicaSet::default()
        };
        set.metadata.name = Some("web-1".into());
        set.status = Some(ReplicaSetStatus {
            replicas,
            ready_replicas: Some(available),
            available_replicas: Some(available),
            ..ReplicaSetStatus::default()
        });
        Arc::new(set)
    }

    fn reason(status: &DeploymentStatus, kind: &str) -> String {
        condition(status, kind).and_then(|c| c.reason.clone()).unwrap_or_default()
    }

    fn look(deployment: &mut Deployment, sets: &[Arc<ReplicaSet>], at: i64) -> DeploymentStatus {
        let old = status_of(deployment);
        let status = compute(deployment, &old, sets.last().map(|s| &**s), sets, &time(at));
        deployment.status = Some(status.clone());
        status
    }

    #[test]
    fn progress_then_completion_then_rest() {
        let mut web = deployment();
        let status = look(&mut web, &[set(3, 1)], 0);
        assert_eq!(
            (reason(&status, "Progressing"), reason(&status, "Available")),
            ("ReplicaSetUpdated".into(), "MinimumReplicasUnavailable".into())
        );
        let status = look(&mut web, &[set(3, 3)], 5);
        assert_eq!(
            (reason(&status, "Progressing"), reason(&status, "Available")),
            (FINISHED.into(), "MinimumReplicasAvailable".into())
        );
        assert!(same(&status, &look(&mut web, &[set(3, 3)], 500)));
    }

    #[test]
    fn no_progress_within_the_deadline_is_a_timeout_and_progress_cures_it() {
        let mut web = deployment();
        look(&mut web, &[set(3, 1)], 0);
        let status = look(&mut web, &[set(3, 1)], 9);
        assert_eq!(reason(&status, "Progressing"), "ReplicaSetUpdated");
        assert_eq!(deadline(&web, &status, time(9).0), Some(Duration::from_secs(2)));
        let status = look(&mut web, &[set(3, 1)], 11);
        assert_eq!(reason(&status, "Progressing"), TIMED_OUT);
        let status = look(&mut web, &[set(3, 2)], 20);
        assert_eq!(reason(&status, "Progressing"), "ReplicaSetUpdated");
    }

    #[test]
    fn losing_a_pod_of_a_finished_rollout_is_not_lost_progress() {
        let mut web = deployment();
        look(&mut web, &[set(3, 3)], 0);
        let status = look(&mut web, &[set(3, 1)], 100);
        assert_eq!(reason(&status, "Progressing"), FINISHED);
        assert_eq!(reason(&status, "Available"), "MinimumReplicasUnavailable");
    }
}
