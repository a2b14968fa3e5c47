//! Startup, readiness and liveness probes of running containers: one task per container, which reports to the pod's
//! worker.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Probe;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::cri::Runtime;
use crate::dial;
use crate::plan::since;
use crate::pod::Entry;

/// How upstream's probes introduce themselves.
const AGENT: &str = "kube-probe/1.36";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Startup,
    Readiness,
    Liveness,
}

impl Kind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Readiness => "Readiness",
            Self::Liveness => "Liveness",
        }
    }
}

/// What a probe has to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// One attempt failed: for an event.
    Attempt(String),
    /// The thresholds give a new verdict.
    Verdict(bool),
}

#[derive(Clone, Debug)]
pub struct Message {
    pub container_id: String,
    pub kind: Kind,
    pub report: Report,
}

/// A container to be probed.
pub struct Target {
    pub runtime: Runtime,
    pub entry: Entry,
    pub container_id: String,
    pub started_at: Timestamp,
    pub pod_ip: String,
    /// The container was running before this kubelet was: its verdicts are known, its probes start spread out.
    pub adopted: bool,
    pub already_started: bool,
    pub reports: mpsc::UnboundedSender<Message>,
    /// The pod is ending: liveness no longer counts.
    pub ending: CancellationToken,
    pub cancel: CancellationToken,
}

/// Counts results in a row until a threshold makes them a verdict. Pure.
#[derive(Clone, Debug)]
pub struct Counter {
    success_threshold: i32,
    failure_threshold: i32,
    last: Option<bool>,
    run: i32,
}

impl Counter {
    pub fn new(probe: &Probe) -> Self {
        Self {
            success_threshold: probe.success_threshold.unwrap_or(1).max(1),
            failure_threshold: probe.failure_threshold.unwrap_or(3).max(1),
            last: None,
            run: 0,
        }
    }

    /// Takes one result; `Some` once enough of the same came in a row.
    pub fn count(&mut self, success: bool) -> Option<bool> {
        if self.last == Some(success) {
            self.run = self.run.saturating_add(1);
        } else {
            self.last = Some(success);
            self.run = 1;
        }
        let threshold = if success { self.success_threshold } else { self.failure_threshold };
        (self.run >= threshold).then_some(success)
    }
}

/// Probes until the container is gone or condemned.
pub async fn watch(target: Target) {
    let target = Arc::new(target);
    let work = async {
        let container = &target.entry.container;
        if let Some(probe) = &container.startup_probe
            && !target.already_started
            && !startup(&target, probe).await
        {
            return;
        }
        let readiness = async {
            if let Some(probe) = &container.readiness_probe {
                repeat(&target, probe, Kind::Readiness).await;
            }
        };
        let liveness = async {
            if let Some(probe) = &container.liveness_probe {
                tokio::select! {
                    () = repeat(&target, probe, Kind::Liveness) => {}
                    () = target.ending.cancelled() => {}
                }
            }
        };
        tokio::join!(readiness, liveness);
    };
    tokio::select! {
        () = work => {}
        () = target.cancel.cancelled() => {}
    }
}

fn seconds(value: Option<i32>, default: u64) -> Duration {
    Duration::from_secs(value.and_then(|v| u64::try_from(v).ok()).filter(|v| *v > 0).unwrap_or(default))
}

impl Target {
    fn send(&self, kind: Kind, report: Report) {
        let message = Message { container_id: self.container_id.clone(), kind, report };
        // The worker is gone only when the pod is.
        let _ = self.reports.send(message);
    }

    async fn wait_initial(&self, probe: &Probe) {
        if self.adopted {
            let period = seconds(probe.period_seconds, 10);
            tokio::time::sleep(period.mul_f64(rand::random::<f64>())).await;
        }
        let delay = seconds(probe.initial_delay_seconds, 0);
        if let Some(left) = delay.checked_sub(since(self.started_at, Timestamp::now())) {
            tokio::time::sleep(left).await;
        }
    }

    async fn attempt(&self, probe: &Probe) -> Result<(), String> {
        let limit = seconds(probe.timeout_seconds, 1);
        if let Some(action) = &probe.exec {
            let command = action.command.clone().unwrap_or_default();
            return exec(&self.runtime, &self.container_id, command, limit).await;
        }
        if let Some(action) = &probe.http_get {
            let answer = dial::http_get(&self.entry.container, action, &self.pod_ip, AGENT, limit).await?;
            return match answer.status {
                200..400 => Ok(()),
                status => Err(format!("HTTP probe failed with statuscode: {status}")),
            };
        }
        if let Some(action) = &probe.tcp_socket {
            let host = action.host.as_deref().filter(|host| !host.is_empty()).unwrap_or(&self.pod_ip);
            let port = dial::port(&self.entry.container, &action.port)?;
            return dial::tcp(host, port, limit).await;
        }
        if let Some(action) = &probe.grpc {
            let port = u16::try_from(action.port).map_err(|_| format!("invalid port {}", action.port))?;
            let service = action.service.as_deref().unwrap_or_default();
            return dial::grpc_health(&self.pod_ip, port, service, limit).await;
        }
        Err("missing probe handler".to_owned())
    }
}

/// Runs a command in the container; a non-zero exit or the end of its time is an error with what it printed.
pub async fn exec(runtime: &Runtime, id: &str, command: Vec<String>, limit: Duration) -> Result<(), String> {
    let text = format!("{command:?}");
    let call = runtime.exec_sync(id, command, limit);
    let answer = match tokio::time::timeout(limit + Duration::from_secs(1), call).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) if error.code == tonic::Code::DeadlineExceeded => {
            return Err(format!("command timed out: {text} timed out after {limit:?}"));
        }
        Ok(Err(error)) => return Err(error.to_string()),
        Err(_) => return Err(format!("command timed out: {text} timed out after {limit:?}")),
    };
    if answer.exit_code == 0 {
        return Ok(());
    }
    let mut printed = answer.stdout;
    printed.extend_from_slice(&answer.stderr);
    printed.truncate(10 << 10);
    Err(String::from_utf8_lossy(&printed).into_owned())
}

async fn startup(target: &Target, probe: &Probe) -> bool {
    target.wait_initial(probe).await;
    let mut counter = Counter::new(probe);
    let mut ticks = ticks(probe);
    loop {
        ticks.tick().await;
        match step(target, probe, Kind::Startup, &mut counter).await {
            Some(true) => {
                target.send(Kind::Startup, Report::Verdict(true));
                return true;
            }
            Some(false) => {
                target.send(Kind::Startup, Report::Verdict(false));
                return false;
            }
            None => {}
        }
    }
}

fn ticks(probe: &Probe) -> tokio::time::Interval {
    let mut ticks = tokio::time::interval(seconds(probe.period_seconds, 10));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    ticks
}

async fn step(target: &Target, probe: &Probe, kind: Kind, counter: &mut Counter) -> Option<bool> {
    let outcome = target.attempt(probe).await;
    let success = outcome.is_ok();
    if let Err(why) = outcome {
        target.send(kind, Report::Attempt(why));
    }
    counter.count(success)
}

async fn repeat(target: &Target, probe: &Probe, kind: Kind) {
    target.wait_initial(probe).await;
    let mut counter = Counter::new(probe);
    let mut ticks = ticks(probe);
    let mut told = None;
    loop {
        ticks.tick().await;
        let verdict = step(target, probe, kind, &mut counter).await;
        if verdict.is_some() && verdict != told {
            told = verdict;
            target.send(kind, Report::Verdict(verdict == Some(true)));
        }
        if kind == Kind::Liveness && verdict == Some(false) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_needs_its_threshold_in_a_row() {
        let probe = Probe { success_threshold: Some(2), failure_threshold: Some(3), ..Probe::default() };
        let mut counter = Counter::new(&probe);
        let verdicts: Vec<_> = [true, true, false, false, true, false, false, false, true, true]
            .into_iter()
            .map(|success| counter.count(success))
            .collect();
        let expected = [None, Some(true), None, None, None, None, None, Some(false), None, Some(true)];
        assert_eq!(verdicts, expected);
    }
}
