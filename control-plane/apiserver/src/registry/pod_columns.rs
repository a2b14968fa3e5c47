//! What `kubectl get pods` shows: readiness, the one word for the pod's state, restarts.

use serde_json::Value;

use super::{
    Column,
    fields::*,
    pod_spec::is_restartable_init,
    table::{AGE, NAME, NONE, human_duration, or},
};

pub(super) const COLUMNS: &[Column] = &[
    NAME,
    Column::new("Ready", "string", |pod, _| {
        let summary = summarize(pod);
        format!("{}/{}", summary.ready, summary.total).into()
    }),
    Column::new("Status", "string", |pod, _| summarize(pod).reason.into()),
    Column::new("Restarts", "string", |pod, now| restarts(&summarize(pod), now).into()),
    AGE,
    Column::new("IP", "string", |pod, _| or(text(pod, "/status/podIPs/0/ip"), NONE).into()).wide(),
    Column::new("Node", "string", |pod, _| or(text(pod, "/spec/nodeName"), NONE).into()).wide(),
    Column::new("Nominated Node", "string", |pod, _| or(text(pod, "/status/nominatedNodeName"), NONE).into())
        .wide(),
    Column::new("Readiness Gates", "string", |pod, _| readiness_gates(pod).into()).wide(),
];

#[derive(Default)]
struct Summary {
    ready: usize,
    total: usize,
    reason: String,
    restarts: i64,
    last_restart: Option<i64>,
}

impl Summary {
    fn count_restarts(&mut self, status: &Value) {
        self.restarts += int(status, "/restartCount");
        let finished = seconds(at(status, "/lastState/terminated/finishedAt"));
        self.last_restart = self.last_restart.max(finished);
    }
}

fn summarize(pod: &Value) -> Summary {
    let phase = text(pod, "/status/phase");
    let sidecars = items(pod, "/spec/initContainers").iter().filter(|c| is_restartable_init(c)).count();
    let mut summary = Summary {
        total: items(pod, "/spec/containers").len() + sidecars,
        reason: or(text(pod, "/status/reason"), phase).to_owned(),
        ..Summary::default()
    };
    if conditions(pod).any(|c| text(c, "/type") == "PodScheduled" && text(c, "/reason") == "SchedulingGated")
    {
        summary.reason = "SchedulingGated".to_owned();
    }
    let (initializing, of_sidecars) = init_containers(pod, &mut summary);
    if !initializing || is_true(pod, "Initialized") {
        summary.restarts = of_sidecars.restarts;
        summary.last_restart = of_sidecars.last_restart;
        app_containers(pod, &mut summary);
    }
    if present(pod, "/metadata/deletionTimestamp") {
        if text(pod, "/status/reason") == "NodeLost" {
            summary.reason = "Unknown".to_owned();
        } else if !matches!(phase, "Failed" | "Succeeded") {
            summary.reason = "Terminating".to_owned();
        }
    }
    summary
}

/// Walks the init containers up to the first that is not done. Returns whether there is one, and what sidecars restarted.
fn init_containers(pod: &Value, summary: &mut Summary) -> (bool, Summary) {
    let containers = items(pod, "/spec/initContainers");
    let mut of_sidecars = Summary::default();
    for (i, status) in items(pod, "/status/initContainerStatuses").iter().enumerate() {
        summary.count_restarts(status);
        let name = text(status, "/name");
        let sidecar = containers.iter().any(|c| text(c, "/name") == name && is_restartable_init(c));
        if sidecar {
            of_sidecars.count_restarts(status);
        }
        let ended = at(status, "/state/terminated");
        let waiting = text(status, "/state/waiting/reason");
        if !ended.is_null() && int(ended, "/exitCode") == 0 {
            continue;
        }
        if sidecar && flag(status, "/started") {
            summary.ready += usize::from(flag(status, "/ready"));
            continue;
        }
        summary.reason = if !ended.is_null() {
            format!("Init:{}", ended_reason(ended))
        } else if !waiting.is_empty() && waiting != "PodInitializing" {
            format!("Init:{waiting}")
        } else {
            format!("Init:{i}/{}", containers.len())
        };
        return (true, of_sidecars);
    }
    (false, of_sidecars)
}

fn app_containers(pod: &Value, summary: &mut Summary) {
    let (mut running, mut error_reason) = (false, String::new());
    for status in items(pod, "/status/containerStatuses").iter().rev() {
        summary.count_restarts(status);
        let waiting = text(status, "/state/waiting/reason");
        let ended = at(status, "/state/terminated");
        if !waiting.is_empty() {
            summary.reason = waiting.to_owned();
        } else if !ended.is_null() {
            summary.reason = ended_reason(ended);
            if int(ended, "/exitCode") != 0 {
                error_reason.clone_from(&summary.reason);
            }
        } else if flag(status, "/ready") && present(status, "/state/running") {
            running = true;
            summary.ready += 1;
        }
    }
    if summary.reason == "Completed" {
        if running && is_true(pod, "Ready") {
            summary.reason = "Running".to_owned();
        } else if !error_reason.is_empty() {
            summary.reason = error_reason;
        } else if running {
            summary.reason = "NotReady".to_owned();
        }
    }
}

fn ended_reason(ended: &Value) -> String {
    match (text(ended, "/reason"), int(ended, "/signal")) {
        ("", 0) => format!("ExitCode:{}", int(ended, "/exitCode")),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

fn restarts(summary: &Summary, now: i64) -> String {
    match summary.last_restart {
        Some(last) if summary.restarts != 0 => {
            format!("{} ({} ago)", summary.restarts, human_duration(now - last))
        }
        _ => summary.restarts.to_string(),
    }
}

fn readiness_gates(pod: &Value) -> String {
    let gates = items(pod, "/spec/readinessGates");
    if gates.is_empty() {
        return NONE.to_owned();
    }
    let open = gates.iter().filter(|gate| is_true(pod, text(gate, "/conditionType"))).count();
    format!("{open}/{}", gates.len())
}

fn conditions(pod: &Value) -> impl Iterator<Item = &Value> {
    items(pod, "/status/conditions").iter()
}

fn is_true(pod: &Value, condition: &str) -> bool {
    conditions(pod).any(|c| text(c, "/type") == condition && text(c, "/status") == "True")
}
