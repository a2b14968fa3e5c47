//! CronJob: makes Jobs when they are due. `schedule` reads the cron text; [`due`] decides what a look at the clock means.
//!
//! A Job's name carries the minute it was due, so two controllers, or one that crashed, cannot make it twice.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::batch::v1::{CronJob, CronJobStatus, Job};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use k8s_openapi::jiff::tz::TimeZone;
use kube::api::{DeleteParams, PostParams};
use kube::{Api, ResourceExt};

use crate::cluster::Cluster;
use crate::events::Severity;
use crate::job::plan::{holds, is_finished};
use crate::pods;
use crate::queue::Queue;
use crate::reconcile::{Error, Next, Reconcile, Result, elapsed, found, now};
use crate::replica_set::in_terminating_namespace;
use crate::store::Key;

pub mod schedule;

use schedule::Schedule;

const SCHEDULED_AT: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";
/// More missed starts than this are worth a warning.
const MISSED_MAX: usize = 100;

/// What the clock says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Due {
    /// The latest time that passed without a start.
    pub at: Option<Timestamp>,
    /// Whether very many were missed.
    pub many_missed: bool,
    /// When it is due next.
    pub next: Option<Timestamp>,
}

/// What is due at `now`, given when a Job was last started (or the CronJob was made) and how late one may be.
pub fn due(
    schedule: &Schedule,
    zone: &TimeZone,
    since: Timestamp,
    deadline: Option<Duration>,
    now: Timestamp,
) -> Due {
    let since = deadline
        .and_then(|deadline| now.checked_sub(deadline).ok())
        .map_or(since, |earliest| since.max(earliest));
    let (mut at, mut missed, mut next) = (None, 0, schedule.next(since, zone));
    while let Some(time) = next.filter(|time| *time <= now) {
        (at, missed) = (Some(time), missed + 1);
        // After years of downtime only the latest matters: skip ahead instead of counting every minute.
        next = match missed > MISSED_MAX {
            true => schedule
                .next(time.max(now.checked_sub(Duration::from_secs(86_400 * 32)).unwrap_or(time)), zone),
            false => schedule.next(time, zone),
        };
    }
    Due { at, many_missed: missed > MISSED_MAX, next }
}

/// The Job for one due time.
pub fn make(cron: &CronJob, at: Timestamp) -> Job {
    let template = cron.spec.job_template.clone();
    let meta = template.metadata.unwrap_or_default();
    let mut annotations = meta.annotations.unwrap_or_default();
    annotations.insert(SCHEDULED_AT.into(), at.to_string());
    Job {
        metadata: ObjectMeta {
            name: Some(format!("{}-{}", cron.name_any(), at.as_second() / 60)),
            namespace: cron.namespace(),
            labels: meta.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![pods::controller_reference(cron)]),
            creation_timestamp: None,
            ..ObjectMeta::default()
        },
        spec: template.spec,
        status: None,
    }
}

/// Finished Jobs beyond the history limits, oldest first.
pub fn beyond_history(cron: &CronJob, jobs: &[Arc<Job>]) -> Vec<Arc<Job>> {
    let spec = &cron.spec;
    let mut beyond = Vec::new();
    for (kind, limit) in [
        ("Complete", spec.successful_jobs_history_limit.unwrap_or(3)),
        ("Failed", spec.failed_jobs_history_limit.unwrap_or(1)),
    ] {
        let mut ended: Vec<_> =
            jobs.iter().filter(|job| job.status.as_ref().is_some_and(|status| holds(status, kind))).collect();
        ended.sort_by_key(|job| (job.metadata.creation_timestamp.clone(), job.name_any()));
        let excess = ended.len().saturating_sub(usize::try_from(limit).unwrap_or(usize::MAX));
        beyond.extend(ended.into_iter().take(excess).cloned());
    }
    beyond
}

fn reference(job: &Job) -> ObjectReference {
    ObjectReference {
        api_version: Some("batch/v1".into()),
        kind: Some("Job".into()),
        namespace: job.namespace(),
        name: job.metadata.name.clone(),
        uid: job.uid(),
        ..ObjectReference::default()
    }
}

/// The status for these Jobs.
pub fn status(cron: &CronJob, jobs: &[Arc<Job>], started: Option<Timestamp>) -> CronJobStatus {
    let old = cron.status.clone().unwrap_or_default();
    let active: Vec<_> = jobs.iter().filter(|job| !is_finished(job)).map(|job| reference(job)).collect();
    let completed = jobs.iter().filter_map(|job| job.status.as_ref()?.completion_time.clone()).max();
    CronJobStatus {
        active: Some(active).filter(|active| !active.is_empty()),
        last_schedule_time: started.map(Time).or(old.last_schedule_time),
        last_successful_time: completed.max(old.last_successful_time),
    }
}

/// The CronJob controller.
pub struct Controller {
    cluster: Arc<Cluster>,
}

/// Makes the controller and the queue that feeds it.
pub fn new(cluster: &Arc<Cluster>) -> (Arc<Controller>, Arc<Queue>) {
    let queue = Arc::new(Queue::default());
    let dirty = queue.clone();
    cluster.cron_jobs.subscribe(move |_, new| {
        if let Some(cron) = new {
            dirty.add(Key::of(&**cron));
        }
    });
    let dirty = queue.clone();
    cluster.jobs.subscribe(move |old, new| {
        let Some(job) = new.or(old) else { return };
        let mut owners = job.owner_references().iter();
        if let Some(owner) = owners.find(|owner| owner.controller == Some(true) && owner.kind == "CronJob") {
            dirty.add(Key::new(job.namespace().unwrap_or_default(), owner.name.clone()));
        }
    });
    (Arc::new(Controller { cluster: cluster.clone() }), queue)
}

impl Reconcile for Controller {
    const NAME: &'static str = "cronjob-controller";

    async fn reconcile(&self, key: &Key) -> Result {
        let Some(cron) =
            self.cluster.cron_jobs.get(key).filter(|cron| cron.metadata.deletion_timestamp.is_none())
        else {
            return Ok(Next::Change);
        };
        let spec = &cron.spec;
        let mut jobs = self.cluster.jobs.owned_by(&cron.uid().unwrap_or_default());
        for job in beyond_history(&cron, &jobs) {
            self.delete(&job).await?;
            jobs.retain(|other| other.metadata.uid != job.metadata.uid);
        }
        let zone = match spec.time_zone.as_deref() {
            None => TimeZone::UTC,
            Some(name) => {
                TimeZone::get(name).map_err(|error| Error::Invalid(format!("spec.timeZone: {error}")))?
            }
        };
        let schedule = Schedule::parse(&spec.schedule)
            .map_err(|error| Error::Invalid(format!("spec.schedule: {error}")))?;
        let now = now().0;
        let last = cron.status.as_ref().and_then(|status| status.last_schedule_time.as_ref());
        let since = last.or(cron.metadata.creation_timestamp.as_ref()).map_or(now, |time| time.0);
        let deadline = spec
            .starting_deadline_seconds
            .and_then(|seconds| u64::try_from(seconds).ok())
            .map(Duration::from_secs);
        let due = due(&schedule, &zone, since, deadline, now);
        let suspended = spec.suspend == Some(true);
        let started = match due.at.filter(|_| !suspended) {
            Some(at) => self.start(&cron, &mut jobs, at, due.many_missed).await?,
            None => None,
        };
        self.write_status(&cron, &jobs, started).await?;
        Ok(due
            .next
            .filter(|_| !suspended)
            .map_or(Next::Change, |next| Next::After(elapsed(now, next) + Duration::from_millis(100))))
    }
}

impl Controller {
    /// Starts the Job that was due at `at`, unless a running one forbids it.
    async fn start(
        &self,
        cron: &CronJob,
        jobs: &mut Vec<Arc<Job>>,
        at: Timestamp,
        many_missed: bool,
    ) -> Result<Option<Timestamp>> {
        if many_missed {
            let message = "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew";
            self.cluster.events.report(Self::NAME, cron, Severity::Warning, "TooManyMissedTimes", message);
        }
        let running: Vec<_> = jobs.iter().filter(|job| !is_finished(job)).cloned().collect();
        match cron.spec.concurrency_policy.as_deref() {
            Some("Forbid") if !running.is_empty() => {
                let message =
                    "Not starting job because prior execution is running and concurrency policy is Forbid";
                self.cluster.events.report(Self::NAME, cron, Severity::Normal, "JobAlreadyActive", message);
                return Ok(None);
            }
            Some("Replace") => {
                for job in &running {
                    self.delete(job).await?;
                    jobs.retain(|other| other.metadata.uid != job.metadata.uid);
                }
            }
            _ => {}
        }
        let api = Api::<Job>::namespaced(self.cluster.client.clone(), &cron.namespace().unwrap_or_default());
        match api.create(&PostParams::default(), &make(cron, at)).await {
            Ok(created) => {
                self.cluster.jobs.observe(&created);
                let message = format!("Created job {}", created.name_any());
                self.cluster.events.report(Self::NAME, cron, Severity::Normal, "SuccessfulCreate", message);
                jobs.push(Arc::new(created));
            }
            // It was made before a crash, or before the status could be written.
            Err(kube::Error::Api(status)) if status.is_already_exists() => {}
            Err(error) if in_terminating_namespace(&error) => return Ok(None),
            Err(error) => {
                let message = format!("Error creating job: {error}");
                self.cluster.events.report(Self::NAME, cron, Severity::Warning, "FailedCreate", message);
                return Err(error.into());
            }
        }
        Ok(Some(at))
    }

    async fn delete(&self, job: &Job) -> Result<()> {
        let api = Api::<Job>::namespaced(self.cluster.client.clone(), &job.namespace().unwrap_or_default());
        found(api.delete(&job.name_any(), &DeleteParams::background()).await)?;
        let owner = job.owner_references().iter().find(|owner| owner.controller == Some(true));
        let cron = owner.and_then(|owner| {
            self.cluster.cron_jobs.get(&Key::new(job.namespace().unwrap_or_default(), owner.name.clone()))
        });
        if let Some(cron) = cron {
            let message = format!("Deleted job {}", job.name_any());
            self.cluster.events.report(Self::NAME, &*cron, Severity::Normal, "SuccessfulDelete", message);
        }
        Ok(())
    }

    async fn write_status(
        &self,
        cron: &CronJob,
        jobs: &[Arc<Job>],
        started: Option<Timestamp>,
    ) -> Result<()> {
        let status = status(cron, jobs, started);
        if cron.status.as_ref() != Some(&status) {
            let api = Api::<CronJob>::namespaced(
                self.cluster.client.clone(),
                &cron.namespace().unwrap_or_default(),
            );
            let cron = CronJob { status: Some(status), ..cron.clone() };
            let written = api.replace_status(&cron.name_any(), &PostParams::default(), &cron).await?;
            self.cluster.cron_jobs.observe(&written);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a valid time")
    }

    #[test]
    fn only_the_latest_missed_time_is_due() {
        let every_minute = Schedule::parse("* * * * *").expect("a valid schedule");
        let due =
            |since, deadline, now| super::due(&every_minute, &TimeZone::UTC, at(since), deadline, at(now));
        let now = due("2026-01-01T00:00:30Z", None, "2026-01-01T00:03:10Z");
        assert_eq!(now.at, Some(at("2026-01-01T00:03:00Z")));
        assert_eq!(now.next, Some(at("2026-01-01T00:04:00Z")));
        assert!(!now.many_missed);
        assert_eq!(due("2026-01-01T00:03:00Z", None, "2026-01-01T00:03:10Z").at, None);
        let late = due("2026-01-01T00:00:00Z", Some(Duration::from_secs(5)), "2026-01-01T00:03:10Z");
        assert_eq!(late.at, None, "older than the starting deadline");
        let long = due("2020-01-01T00:00:00Z", None, "2026-01-01T00:03:10Z");
        assert_eq!((long.at, long.many_missed), (Some(at("2026-01-01T00:03:00Z")), true));
    }

    #[test]
    fn the_name_of_a_job_is_its_minute() {
        let mut cron = CronJob::default();
        cron.metadata.name = Some("tick".into());
        assert_eq!(make(&cron, at("1970-01-01T01:00:00Z")).name_any(), "tick-60");
    }
}
