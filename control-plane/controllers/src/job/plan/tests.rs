use super::*;
use k8s_openapi::api::core::v1::PodStatus;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use proptest::prelude::*;

fn time(seconds: i64) -> Time {
    Time(Timestamp::from_second(1_700_000_000 + seconds).unwrap())
}

fn job(spec: JobSpec) -> Job {
    Job { spec: Some(spec), ..Job::default() }
}

fn pod(uid: &str, phase: &str, tracked: bool) -> Arc<Pod> {
    Arc::new(Pod {
        metadata: ObjectMeta {
            name: Some(uid.into()),
            uid: Some(uid.into()),
            creation_timestamp: Some(time(0)),
            finalizers: tracked.then(|| vec![TRACKING.to_owned()]),
            ..ObjectMeta::default()
        },
        status: Some(PodStatus { phase: Some(phase.into()), ..PodStatus::default() }),
        spec: None,
    })
}

/// Plays the API: writes the status, takes finalizers off, makes and deletes pods; returns the pods left.
fn apply(job: &mut Job, own: Vec<Arc<Pod>>, plan: Plan, made: &mut usize) -> Vec<Arc<Pod>> {
    let has =
        |list: &[Arc<Pod>], pod: &Arc<Pod>| list.iter().any(|other| other.metadata.uid == pod.metadata.uid);
    job.status = Some(plan.status);
    let mut left: Vec<Arc<Pod>> = own
        .into_iter()
        .filter(|pod| !has(&plan.delete, pod))
        .map(|pod| {
            if has(&plan.counted, &pod) { self::pod(&pod.name_any(), pods::phase(&pod), false) } else { pod }
        })
        .collect();
    for index in plan.create {
        *made += 1;
        let mut new = (*pod(&format!("made{made}"), "Running", true)).clone();
        if let Some(index) = index {
            new.annotations_mut().insert(INDEX.into(), index.to_string());
        }
        left.push(Arc::new(new));
    }
    left
}

#[test]
fn an_end_is_counted_once_and_only_after_the_finalizer_is_off() {
    let mut job = job(JobSpec { completions: Some(2), parallelism: Some(1), ..JobSpec::default() });
    let own = vec![pod("a", "Succeeded", true)];
    let first = plan(&job, &own, &time(0));
    assert_eq!(first.status.succeeded, None);
    assert_eq!(
        first.status.uncounted_terminated_pods.as_ref().unwrap().succeeded,
        Some(vec!["a".to_owned()])
    );
    assert_eq!((first.counted.len(), first.create.len()), (1, 1));
    let own = apply(&mut job, own, first, &mut 0);
    let second = plan(&job, &own, &time(1));
    assert_eq!(second.status.succeeded, Some(1));
    assert_eq!(second.status.uncounted_terminated_pods, Some(UncountedTerminatedPods::default()));
    job.status = Some(second.status);
    assert_eq!(plan(&job, &own, &time(2)).status.succeeded, Some(1));
}

#[test]
fn failures_beyond_the_limit_fail_the_job_after_its_pods_are_gone() {
    let mut job = job(JobSpec { completions: Some(1), backoff_limit: Some(0), ..JobSpec::default() });
    let own = vec![pod("a", "Failed", true)];
    let first = plan(&job, &own, &time(0));
    assert!(holds(&first.status, "FailureTarget") && !holds(&first.status, "Failed"));
    let own = apply(&mut job, own, first, &mut 0);
    let second = plan(&job, &own, &time(1));
    assert!(holds(&second.status, "Failed"));
    let failed = second.status.conditions.as_ref().unwrap().iter().find(|c| c.type_ == "Failed").unwrap();
    assert_eq!(failed.reason.as_deref(), Some("BackoffLimitExceeded"));
    assert_eq!(second.status.failed, Some(1));
}

#[test]
fn a_failed_pod_is_replaced_after_its_backoff() {
    let job = job(JobSpec { completions: Some(1), ..JobSpec::default() });
    let own = [pod("a", "Failed", false)];
    let early = plan(&job, &own, &time(4));
    assert_eq!((early.create.len(), early.again), (0, Some(Duration::from_secs(6))));
    assert_eq!(plan(&job, &own, &time(10)).create.len(), 1);
}

#[test]
fn a_suspended_job_has_no_pods_and_no_start() {
    let mut job = job(JobSpec { suspend: Some(true), completions: Some(1), ..JobSpec::default() });
    let plan = plan(&job, &[pod("a", "Running", true)], &time(0));
    assert_eq!(plan.delete.len(), 1);
    assert!(holds(&plan.status, "Suspended") && plan.status.start_time.is_none());
    job.status = Some(plan.status);
    job.spec.as_mut().unwrap().suspend = Some(false);
    let plan = super::plan(&job, &[], &time(1));
    assert!(!holds(&plan.status, "Suspended") && plan.status.start_time.is_some());
    assert_eq!(plan.create.len(), 1);
}

#[test]
fn a_deadline_ends_the_job() {
    let mut job =
        job(JobSpec { active_deadline_seconds: Some(5), completions: Some(1), ..JobSpec::default() });
    let first = plan(&job, &[], &time(0));
    assert_eq!(first.again, Some(Duration::from_secs(5)));
    job.status = Some(first.status);
    assert!(holds(&plan(&job, &[], &time(5)).status, "Failed"));
}

proptest! {
    /// Pods succeed and fail in any order; the Job ends with every end counted exactly once.
    #[test]
    fn every_end_is_counted_exactly_once(
        completions in 1_i32..6, parallelism in 1_i32..4, indexed: bool, luck in prop::collection::vec(any::<bool>(), 80),
    ) {
        let mode = if indexed { "Indexed" } else { "NonIndexed" };
        let mut job = job(JobSpec {
            completions: Some(completions),
            parallelism: Some(parallelism),
            completion_mode: Some(mode.into()),
            backoff_limit: Some(1000),
            ..JobSpec::default()
        });
        let (mut own, mut made, mut failures, mut luck) = (Vec::new(), 0, 0, luck.into_iter());
        for step in 0..200 {
            let next = plan(&job, &own, &time(step * 1000));
            let counted_now: i32 = next.status.succeeded.unwrap_or(0) + next.status.failed.unwrap_or(0);
            prop_assert!(counted_now <= i32::try_from(made).unwrap());
            own = apply(&mut job, own, next, &mut made);
            prop_assert!(own.iter().filter(|pod| pods::phase(pod) == "Running").count() <= usize::try_from(parallelism).unwrap());
            if is_finished(&job) { break; }
            if let Some(at) = own.iter().position(|pod| pods::phase(pod) == "Running") {
                let success = luck.next().unwrap_or(true);
                failures += i32::from(!success);
                let mut ended = (*own[at]).clone();
                ended.status.as_mut().unwrap().phase = Some(if success { "Succeeded" } else { "Failed" }.into());
                own[at] = Arc::new(ended);
            }
        }
        let status = job.status.unwrap();
        prop_assert!(holds(&status, "Complete"));
        prop_assert_eq!(status.succeeded, Some(completions));
        prop_assert_eq!(status.failed.unwrap_or(0), failures);
    }
}
