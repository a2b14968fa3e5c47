//! The first process of a host: enters the host's network namespace, makes its mounts, host name and cgroup, then
//! starts the host's processes and restarts those that die, with a growing pause, as systemd would.
//!
//! Listening sockets of the root namespace are opened before that and handed over as LISTEN_FDS from 3 on, so that a
//! client's connection waits in the backlog while the process behind it restarts.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{SigHandler, Signal, signal};
use serde::{Deserialize, Serialize};

use super::layout;

const PAUSE_FIRST: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// A process that ran this long starts again with the first pause.
const STEADY: Duration = Duration::from_secs(10);

/// One process of a host.
#[derive(Serialize, Deserialize, Clone)]
pub(super) struct Process {
    pub(super) name: String,
    pub(super) program: PathBuf,
    pub(super) arguments: Vec<String>,
    pub(super) environment: BTreeMap<String, String>,
    /// Ports of 127.0.0.1 in the root namespace to listen on and hand over.
    pub(super) listen: Vec<u16>,
    /// The process starts once this file exists, as its certificates come from another host.
    pub(super) wants: Option<PathBuf>,
}

/// What a host consists of.
#[derive(Serialize, Deserialize)]
pub(super) struct Spec {
    pub(super) name: String,
    /// The host's folder; inside the host it is `/run/node`.
    pub(super) folder: PathBuf,
    pub(super) logs: PathBuf,
    pub(super) processes: Vec<Process>,
}

struct Running {
    process: Process,
    child: Option<Child>,
    started: Instant,
    pause: Duration,
    not_before: Instant,
    sockets: Vec<OwnedFd>,
}

static STOP: AtomicBool = AtomicBool::new(false);

extern "C" fn stop(_signal: libc::c_int) {
    STOP.store(true, Ordering::SeqCst);
}

/// Runs until SIGTERM.
pub(crate) fn host(spec: &Path) -> Result<()> {
    let text = std::fs::read_to_string(spec).with_context(|| format!("reading {}", spec.display()))?;
    let spec: Spec = serde_json::from_str(&text).with_context(|| format!("parsing {}", spec.display()))?;
    // SAFETY: the handler only stores to an atomic.
    unsafe { signal(Signal::SIGTERM, SigHandler::Handler(stop)) }.context("handling SIGTERM")?;
    let mut running = Vec::new();
    for process in spec.processes.clone() {
        let sockets = process.listen.iter().map(|port| listener(*port)).collect::<Result<Vec<_>>>()?;
        let now = Instant::now();
        running.push(Running {
            process,
            child: None,
            started: now,
            pause: PAUSE_FIRST,
            not_before: now,
            sockets,
        });
    }
    enter_namespaces(&spec)?;
    join_cgroup(&spec.name)?;
    write_pid(&spec.folder, "host", std::process::id())?;
    while !STOP.load(Ordering::SeqCst) {
        for entry in &mut running {
            entry.turn(&spec)?;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    for entry in running.iter_mut().rev() {
        entry.stop();
    }
    Ok(())
}

fn listener(port: u16) -> Result<OwnedFd> {
    let listener =
        TcpListener::bind(("127.0.0.1", port)).with_context(|| format!("listening on 127.0.0.1:{port}"))?;
    listener.set_nonblocking(true).context("setting the socket non-blocking")?;
    Ok(listener.into())
}

fn enter_namespaces(spec: &Spec) -> Result<()> {
    let path = layout::netns_path(&spec.name);
    let namespace = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
    setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET).context("entering the network namespace")?;
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS).context("making mount and UTS namespaces")?;
    nix::unistd::sethostname(&spec.name).context("setting the host name")?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .context("making the mounts private")?;
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), Some("mode=755"))
        .context("mounting /run")?;
    for folder in ["/run/node", "/run/netns", "/run/lock"] {
        std::fs::create_dir_all(folder).with_context(|| format!("making {folder}"))?;
    }
    mount(Some(&spec.folder), "/run/node", none, MsFlags::MS_BIND, none).context("mounting /run/node")?;
    // Volumes that the kubelet mounts must be seen in containers with mount propagation.
    mount(none, "/run/node", none, MsFlags::MS_REC | MsFlags::MS_SHARED, none)
        .context("sharing /run/node")?;
    std::fs::create_dir_all("/sys/fs/bpf").ok();
    mount(Some("bpffs"), "/sys/fs/bpf", Some("bpf"), MsFlags::empty(), none)
        .context("mounting a BPF file system")
}

pub(super) fn join_cgroup(name: &str) -> Result<()> {
    let folder = layout::cgroup2()?.join(name).join("host");
    std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    std::fs::write(folder.join("cgroup.procs"), std::process::id().to_string())
        .context("joining the host's cgroup")
}

impl Running {
    fn turn(&mut self, spec: &Spec) -> Result<()> {
        let now = Instant::now();
        if let Some(child) = &mut self.child {
            let Some(status) = child.try_wait().context("waiting for a process")? else { return Ok(()) };
            self.pause =
                if now - self.started > STEADY { PAUSE_FIRST } else { (self.pause * 2).min(PAUSE_MAX) };
            self.not_before = now + self.pause;
            self.child = None;
            let text = format!(
                "-- {} ended with {status}; again in {} ms\n",
                self.process.name,
                self.pause.as_millis()
            );
            append(spec, &self.process.name, &text)?;
        }
        let wanted = self.process.wants.as_ref().is_none_or(|path| path.exists());
        if wanted && now >= self.not_before {
            self.started = now;
            let child = self.start(spec)?;
            write_pid(&spec.folder, &self.process.name, child.id())?;
            self.child = Some(child);
        }
        Ok(())
    }

    fn start(&self, spec: &Spec) -> Result<Child> {
        let log = log(spec, &self.process.name)?;
        let mut command = if self.sockets.is_empty() {
            Command::new(&self.process.program)
        } else {
            // LISTEN_PID is the pid after exec: the shell knows it, and exec keeps it.
            let mut shell = Command::new("/bin/sh");
            shell.args(["-c", "LISTEN_PID=$$ exec \"$@\"", "sh"]).arg(&self.process.program);
            shell.env("LISTEN_FDS", self.sockets.len().to_string());
            shell
        };
        command.args(&self.process.arguments).envs(&self.process.environment).current_dir("/");
        command.stdin(Stdio::null()).stdout(log.try_clone().context("opening the log")?).stderr(log);
        let sockets: Vec<i32> = self.sockets.iter().map(AsRawFd::as_raw_fd).collect();
        // SAFETY: only async-signal-safe calls (fcntl, dup2, prctl) run between fork and exec.
        unsafe {
            command.pre_exec(move || hand_over(&sockets));
        }
        command.spawn().with_context(|| format!("starting {}", self.process.program.display()))
    }

    fn stop(&mut self) {
        let Some(child) = &mut self.child else { return };
        let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
        let _ = nix::sys::signal::kill(pid, Signal::SIGTERM);
        let deadline = Instant::now() + Duration::from_secs(5);
        while Instant::now() < deadline {
            if !matches!(child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// Puts the sockets at file descriptors 3, 4, ... of the new process.
fn hand_over(sockets: &[i32]) -> std::io::Result<()> {
    // SAFETY: plain system calls on descriptors that this process owns.
    unsafe {
        // Out of the way first: a source may stand where a target goes.
        let mut high = [0i32; 8];
        for (index, socket) in sockets.iter().enumerate().take(high.len()) {
            high[index] = libc::fcntl(*socket, libc::F_DUPFD, 64);
        }
        for (index, socket) in high.iter().enumerate().take(sockets.len()) {
            let target = 3 + i32::try_from(index).unwrap_or_default();
            if libc::dup2(*socket, target) < 0 {
                return Err(std::io::Error::last_os_error());
            }
            libc::close(*socket);
        }
    }
    Ok(())
}

fn log(spec: &Spec, name: &str) -> Result<File> {
    let path = spec.logs.join(format!("{}.{name}.log", spec.name));
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        .with_context(|| format!("opening {}", path.display()))
}

fn append(spec: &Spec, name: &str, text: &str) -> Result<()> {
    use std::io::Write;
    log(spec, name)?.write_all(text.as_bytes()).context("writing a log")
}

/// Writes `NAME.pid` beside the others; whoever reads it finds the old number or the new one, never a part.
fn write_pid(folder: &Path, name: &str, pid: u32) -> Result<()> {
    let new = folder.join(format!("{name}.pid.new"));
    std::fs::write(&new, pid.to_string())
        .and_then(|()| std::fs::rename(&new, folder.join(format!("{name}.pid"))))
        .with_context(|| format!("writing {name}.pid"))
}
