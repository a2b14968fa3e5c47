//! Calls of a CNI plugin as a runtime makes them.

use std::{
    io::Write as _,
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::services::ground::NetNs;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    Add,
    Del,
}

impl Call {
    const fn command(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
        }
    }
}

pub(super) struct Plugin {
    pub(super) name: &'static str,
    pub(super) program: PathBuf,
    /// Where it finds plugins that it calls itself.
    pub(super) folder: PathBuf,
    pub(super) config: Value,
}

/// A namespace that becomes a pod.
pub(super) struct Pod {
    container: String,
    netns: NetNs,
}

impl Pod {
    pub(super) fn new(container: String) -> Result<Self> {
        Ok(Self { container, netns: NetNs::new()? })
    }
}

impl Plugin {
    /// How long the call took, from the start of the process to its end.
    pub(super) fn call(&self, call: Call, pod: &Pod) -> Result<Duration> {
        let mut command = Command::new(&self.program);
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("CNI_COMMAND", call.command())
            .env("CNI_CONTAINERID", &pod.container)
            .env("CNI_NETNS", pod.netns.path())
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", &self.folder)
            .env("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=pod")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let config = self.config.to_string();
        let doing = || format!("{} of {}", call.command(), self.name);
        let started = Instant::now();
        let mut child = command.spawn().with_context(doing)?;
        let mut input = child.stdin.take().context("standard input is a pipe")?;
        input.write_all(config.as_bytes()).with_context(doing)?;
        drop(input);
        let output = child.wait_with_output().with_context(doing)?;
        let took = started.elapsed();
        if !output.status.success() {
            bail!(
                "{} for {}: {}{}",
                doing(),
                pod.container,
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(took)
    }
}

/// CPU time of all children that have ended, in seconds, with what they started and waited for.
pub(super) fn cpu_of_children() -> Result<f64> {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the call writes to a valid place of the right size.
    let failed = unsafe { libc::getrusage(libc::RUSAGE_CHILDREN, usage.as_mut_ptr()) };
    ensure!(failed == 0, "the CPU time of children: {}", std::io::Error::last_os_error());
    // SAFETY: all zeroes are a valid value, and the call has written over them.
    let usage = unsafe { usage.assume_init() };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    Ok(seconds(usage.ru_utime) + seconds(usage.ru_stime))
}
