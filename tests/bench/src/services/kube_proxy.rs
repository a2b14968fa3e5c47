//! The peer: an upstream kube-proxy on each node of a laboratory, fed by our API server.
//!
//! The table of connection tracking is the machine's and keeps its size; it forgets connections that are over sooner than
//! it would, as a full one would slow the peer down. Once its rules are complete and what needs the process was
//! measured, it is ended: the rules stay, and it takes no time from others.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::{
    api::{Api, last_lines},
    ground::Ground,
    lab::Lab,
    objects::{self, CLUSTER_CIDR, Place},
};
use crate::process::Process;

const FORGOTTEN_SECONDS: &str = "10";
const PAUSE: Duration = Duration::from_millis(5);

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum ProxyMode {
    Nftables,
    Iptables,
}

impl ProxyMode {
    pub(crate) const ALL: [Self; 2] = [Self::Nftables, Self::Iptables];

    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
        }
    }
}

pub(crate) struct KubeProxy {
    processes: Vec<(Process, PathBuf)>,
    began: Instant,
}

impl KubeProxy {
    pub(crate) fn start(
        ground: &Ground,
        api: &Api,
        lab: &Lab,
        program: &Path,
        mode: ProxyMode,
    ) -> Result<Self> {
        let kubeconfig = api.kubeconfig("system:kube-proxy", "")?;
        let began = Instant::now();
        let mut processes = Vec::new();
        for node in &lab.nodes {
            for timeout in ["tcp_timeout_time_wait", "udp_timeout"] {
                node.namespace.sysctl(&format!("netfilter/nf_conntrack_{timeout}"), FORGOTTEN_SECONDS)?;
            }
            let log = ground.folder().join(format!("{}-{}.log", lab.name, node.name));
            let mut command = Command::new(program);
            command.arg("--kubeconfig").arg(&kubeconfig);
            command.args(["--proxy-mode", mode.word(), "--hostname-override", node.name]);
            command.args(["--cluster-cidr", CLUSTER_CIDR, "--detect-local-mode", "ClusterCIDR"]);
            command.args(["--conntrack-max-per-core", "0", "--conntrack-min", "0"]);
            command.args(["--conntrack-tcp-timeout-established", "0s"]);
            command.args(["--conntrack-tcp-timeout-close-wait", "0s"]);
            node.namespace.place(&mut command, &node.cgroup)?;
            let process = Process::start_logged(command, &log)
                .with_context(|| format!("starting {}", program.display()))?;
            processes.push((process, log));
        }
        Ok(Self { processes, began })
    }

    /// Waits until both nodes reach Services; how long it took from the start.
    pub(crate) fn served(&mut self, lab: &Lab, services: u32, limit: Duration) -> Result<Duration> {
        let targets: Vec<SocketAddr> =
            Place::ALL.iter().filter_map(|place| objects::measured(services, *place).pop()).collect();
        loop {
            for (process, log) in &mut self.processes {
                process.check().with_context(|| last_lines(log))?;
            }
            // From a pod of each node: a node itself has no route to what only rules know.
            let all = targets.iter().all(|target| Lab::answers(&lab.client, *target))
                && targets.first().is_some_and(|target| Lab::answers(lab.nodes[1].pod(), *target));
            if all {
                return Ok(self.began.elapsed());
            }
            if self.began.elapsed() > limit {
                let (_, log) = &self.processes[0];
                bail!("no Service is reached after {} s; {}", limit.as_secs(), last_lines(log));
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Resident memory of the client's node's process, in MB.
    pub(crate) fn memory(&self) -> Result<f64> {
        Ok(self.processes[0].0.memory()?.0)
    }
}
