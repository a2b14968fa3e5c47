//! The developer's cluster as a test sees it.

use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

use crate::{Run, eventually, run};

/// A running cluster.
pub struct Cluster {
    folder: PathBuf,
    xtask: PathBuf,
}

/// A namespace that is deleted when its test ends.
pub struct Namespace<'a> {
    cluster: &'a Cluster,
    pub name: String,
}

/// A pod as `kubectl get -o json` shows it.
#[derive(Clone, Debug)]
pub struct Pod {
    pub name: String,
    pub node: String,
    pub address: String,
    pub ready: bool,
    pub restarts: u64,
}

impl Cluster {
    /// The cluster that `cargo xtask test cluster` made.
    #[must_use]
    pub fn running() -> Self {
        let variable = |name: &str| {
            let value = std::env::var_os(name);
            PathBuf::from(
                value
                    .unwrap_or_else(|| panic!("{name} is not set: run this with `cargo xtask test cluster`")),
            )
        };
        Self { folder: variable("SEAWAY_CLUSTER"), xtask: variable("SEAWAY_XTASK") }
    }

    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.join("kubeconfig")
    }

    /// The folder of a host.
    #[must_use]
    pub fn host(&self, host: &str) -> PathBuf {
        self.folder.join(host)
    }

    /// `kubectl ARGUMENTS`, split at spaces.
    #[track_caller]
    pub fn kubectl(&self, arguments: &str) -> Run {
        self.kubectl_with(&arguments.split_whitespace().collect::<Vec<_>>(), "")
    }

    /// `kubectl` with arguments as they are and a standard input.
    #[track_caller]
    pub fn kubectl_with(&self, arguments: &[&str], input: &str) -> Run {
        run(self.kubectl_command().args(arguments), input)
    }

    /// `kubectl` with the cluster's kubeconfig, for the caller to complete.
    #[must_use]
    pub fn kubectl_command(&self) -> Command {
        let mut command = Command::new("kubectl");
        command.arg("--kubeconfig").arg(self.kubeconfig());
        command
    }

    /// `seaway ARGUMENTS`, split at spaces, on no node: what is asked goes by way of the API server.
    #[track_caller]
    pub fn seaway(&self, arguments: &str) -> Run {
        let mut command = Command::new(self.xtask.with_file_name("seaway"));
        run(command.arg("--kubeconfig").arg(self.kubeconfig()).args(arguments.split_whitespace()), "")
    }

    /// `kubectl apply -f -` in a namespace.
    #[track_caller]
    pub fn apply(&self, namespace: &str, manifest: &str) -> String {
        self.kubectl_with(&["apply", "-n", namespace, "-f", "-"], manifest).ok()
    }

    /// Runs a command on a host.
    #[track_caller]
    pub fn on(&self, host: &str, command: &[&str]) -> Run {
        run(Command::new(&self.xtask).args(["enter", host]).args(command), "")
    }

    /// A command on a host, for the caller to start.
    #[must_use]
    pub fn command_on(&self, host: &str) -> Command {
        let mut command = Command::new(&self.xtask);
        command.args(["enter", host]);
        command
    }

    /// The process id of a host's process (`agent`, `server`, `containerd`), once it runs.
    #[track_caller]
    #[must_use]
    pub fn pid(&self, host: &str, process: &str) -> u32 {
        let path = self.folder.join(host).join(format!("{process}.pid"));
        let text =
            std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        text.trim().parse().unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    /// kill -9, and waits until another process took its place.
    #[track_caller]
    pub fn kill(&self, host: &str, process: &str) {
        let pid = self.pid(host, process);
        run(Command::new("kill").args(["-9", &pid.to_string()]), "").ok();
        eventually(20, &format!("{process} of {host} to start again"), || {
            let now = self.pid(host, process);
            if now == pid { Err(format!("still {pid}")) } else { Ok(()) }
        });
    }

    /// Names of the nodes, sorted.
    #[track_caller]
    #[must_use]
    pub fn nodes(&self) -> Vec<String> {
        let text = self.kubectl("get nodes -o jsonpath={.items[*].metadata.name}").ok();
        let mut names: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        names.sort();
        names
    }

    /// A new namespace, with its default ServiceAccount in place.
    #[track_caller]
    #[must_use]
    pub fn namespace(&self, name: &str) -> Namespace<'_> {
        self.kubectl(&format!("create namespace {name}")).ok();
        eventually(20, "the default ServiceAccount", || {
            let run = self.kubectl(&format!("get serviceaccount default -n {name}"));
            if run.code == 0 { Ok(()) } else { Err(run.stderr) }
        });
        Namespace { cluster: self, name: name.to_owned() }
    }

    /// An object as JSON.
    #[track_caller]
    #[must_use]
    pub fn json(&self, arguments: &str) -> Value {
        let text = self.kubectl(&format!("{arguments} -o json")).ok();
        serde_json::from_str(&text)
            .unwrap_or_else(|error| panic!("kubectl {arguments} printed no JSON: {error}\n{text}"))
    }
}

impl Namespace<'_> {
    /// `kubectl -n NAMESPACE ARGUMENTS`.
    #[track_caller]
    #[must_use]
    pub fn kubectl(&self, arguments: &str) -> Run {
        self.cluster.kubectl(&format!("-n {} {arguments}", self.name))
    }

    #[track_caller]
    pub fn apply(&self, manifest: &str) -> String {
        self.cluster.apply(&self.name, manifest)
    }

    /// Pods that a selector matches, by name.
    #[track_caller]
    #[must_use]
    pub fn pods(&self, selector: &str) -> Vec<Pod> {
        let list = self.cluster.json(&format!("-n {} get pods -l {selector}", self.name));
        let mut pods: Vec<Pod> = list["items"].as_array().into_iter().flatten().map(pod).collect();
        pods.sort_by(|one, other| one.name.cmp(&other.name));
        pods
    }

    /// Waits until exactly `count` pods match and all are ready.
    #[track_caller]
    pub fn wait_ready(&self, selector: &str, count: usize, seconds: u64) -> Vec<Pod> {
        let mut pods = Vec::new();
        eventually(seconds, &format!("{count} ready pods of {selector}"), || {
            pods = self.pods(selector);
            if pods.len() == count && pods.iter().all(|pod| pod.ready) {
                Ok(())
            } else {
                Err(format!("{pods:?}"))
            }
        });
        pods
    }

    /// Runs a command in a pod.
    #[track_caller]
    #[must_use]
    pub fn exec(&self, pod: &str, command: &[&str]) -> Run {
        let mut arguments = vec!["-n", &self.name, "exec", pod, "--"];
        arguments.extend(command);
        self.cluster.kubectl_with(&arguments, "")
    }
}

fn pod(value: &Value) -> Pod {
    let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    let conditions = value.pointer("/status/conditions").and_then(Value::as_array);
    let deleted = value.pointer("/metadata/deletionTimestamp").is_some();
    Pod {
        name: text("/metadata/name"),
        node: text("/spec/nodeName"),
        address: text("/status/podIP"),
        ready: !deleted
            && conditions.into_iter().flatten().any(|one| one["type"] == "Ready" && one["status"] == "True"),
        restarts: value
            .pointer("/status/containerStatuses/0/restartCount")
            .and_then(Value::as_u64)
            .unwrap_or_default(),
    }
}

impl Drop for Namespace<'_> {
    fn drop(&mut self) {
        let arguments = ["delete", "namespace", &self.name, "--wait=false"];
        let deleted = self.cluster.kubectl_command().args(arguments).output();
        if !deleted.is_ok_and(|output| output.status.success()) {
            eprintln!("deleting the namespace {} failed", self.name);
        }
    }
}
