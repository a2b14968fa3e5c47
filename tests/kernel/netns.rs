//! Hosts for tests: a network namespace each, and a cgroup where sockets are to be balanced. Everything is gone when
//! the value is dropped; nothing reaches beyond the namespaces.

use std::{
    fs::{self, File},
    os::fd::{AsFd, AsRawFd},
    panic,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use nix::sched::{CloneFlags, setns, unshare};

const DEADLINE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(2);

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A number that no other test of this process has.
pub fn unique() -> u32 {
    NUMBER.fetch_add(1, Ordering::Relaxed)
}

/// These tests load programs and make namespaces: without root there is nothing to test.
pub fn require_root() {
    assert!(
        nix::unistd::geteuid().is_root(),
        "the kernel tier needs root: it loads BPF programs and makes namespaces"
    );
}

pub struct NetNs {
    file: File,
    cgroup: Option<PathBuf>,
}

impl NetNs {
    /// A namespace with its loopback up.
    pub fn new() -> Self {
        require_root();
        let file = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a new network namespace");
            ip("link set lo up");
            File::open("/proc/thread-self/ns/net").expect("the namespace's file")
        })
        .join()
        .expect("the thread that makes the namespace");
        Self { file, cgroup: None }
    }

    /// The same, with what runs in it also in a cgroup of its own.
    pub fn in_cgroup(cgroup: &Cgroup) -> Self {
        Self { cgroup: Some(cgroup.path.clone()), ..Self::new() }
    }

    /// Another view of this namespace, within a test cgroup.
    pub fn within(&self, cgroup: &Cgroup) -> Self {
        Self { cgroup: Some(cgroup.path.clone()), ..self.without_cgroup() }
    }

    /// Another view of this namespace, outside any test cgroup.
    pub fn without_cgroup(&self) -> Self {
        Self { file: self.file.try_clone().expect("a second descriptor"), cgroup: None }
    }

    /// Another view of this namespace, within the same test cgroup if in any.
    pub fn again(&self) -> Self {
        Self { cgroup: self.cgroup.clone(), ..self.without_cgroup() }
    }

    /// Runs `work` inside, on a thread of its own; its panic becomes the caller's.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET).expect("entering the namespace");
                if let Some(cgroup) = &self.cgroup {
                    let thread = nix::unistd::gettid().to_string();
                    fs::write(cgroup.join("cgroup.threads"), thread).expect("entering the cgroup");
                }
                work()
            });
            inside.join().unwrap_or_else(|cause| panic::resume_unwind(cause))
        })
    }

    /// Runs `ip` inside.
    pub fn ip(&self, arguments: &str) {
        self.run(|| ip(arguments));
    }

    /// Runs a program inside and returns its output.
    pub fn output(&self, program: &str, arguments: &[&str]) -> String {
        self.run(|| {
            let output =
                Command::new(program).args(arguments).output().unwrap_or_else(|e| panic!("{program}: {e}"));
            assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8_lossy(&output.stdout).into_owned()
        })
    }

    pub fn sysctl(&self, path: &str, value: &str) {
        self.run(|| fs::write(format!("/proc/sys/{path}"), value).unwrap_or_else(|e| panic!("{path}: {e}")));
    }

    /// A path by which `ip` finds this namespace.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }

    pub fn interface_index(&self, name: &str) -> u32 {
        self.run(|| nix::net::if_::if_nametoindex(name).unwrap_or_else(|e| panic!("{name}: {e}")))
    }
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().expect("running ip");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A threaded cgroup below this process's own in the v2 tree, so that single threads can be in it.
pub struct Cgroup {
    pub path: PathBuf,
}

impl Cgroup {
    pub fn new() -> Self {
        require_root();
        Self::at(&own_cgroup().join(format!("seaway-test-{}-{}", std::process::id(), unique())))
    }

    pub fn at(path: &Path) -> Self {
        let path = path.to_owned();
        fs::create_dir(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        fs::write(path.join("cgroup.type"), "threaded").expect("a threaded cgroup");
        Self { path }
    }

    /// Below the tree's root, as an agent is told its pods' cgroup whose parent this one is.
    pub fn as_parent_of_pods(&self) -> String {
        let path = self.path.strip_prefix(tree()).expect("it is in the tree");
        format!("/{}/pods", path.display())
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Threads that ended leave it a moment later. No panic here: the test may be in one already.
        let deadline = Instant::now() + DEADLINE;
        while let Err(error) = fs::remove_dir(&self.path) {
            if error.raw_os_error() == Some(libc::ENOENT) {
                return;
            }
            if error.raw_os_error() != Some(libc::EBUSY) || Instant::now() > deadline {
                eprintln!("{} stays behind: {error}", self.path.display());
                return;
            }
            thread::sleep(PAUSE);
        }
    }
}

fn own_cgroup() -> PathBuf {
    let own = fs::read_to_string("/proc/self/cgroup").expect("the process's cgroups");
    let own = own.lines().find_map(|line| line.strip_prefix("0::")).expect("the process's v2 cgroup");
    tree().join(own.trim_start_matches('/'))
}

fn tree() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("the mounts");
    let tree = mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .find(|fields| fields[2] == "cgroup2")
        .map(|fields| fields[1].to_owned())
        .expect("the kernel tier needs a cgroup v2 tree, also where v1 controllers are in use");
    tree.into()
}

/// A folder for pinned objects, on the BPF file system.
pub struct BpfDir {
    pub path: PathBuf,
}

impl BpfDir {
    pub fn new() -> Self {
        require_root();
        let path = PathBuf::from(format!("/sys/fs/bpf/seaway-test-{}-{}", std::process::id(), unique()));
        Self { path }
    }
}

impl Drop for BpfDir {
    fn drop(&mut self) {
        if let Err(error) = dataplane::programs::remove_pinned(&self.path) {
            eprintln!("{error}");
        }
    }
}

/// Asks until the answer is there; after 10 seconds the test has failed.
pub fn eventually<T>(what: &str, ask: impl FnMut() -> Option<T>) -> T {
    attempts(ask).unwrap_or_else(|| panic!("not within {DEADLINE:?}: {what}"))
}

/// Asks until the answer is there, for 10 seconds.
pub fn attempts<T>(ask: impl FnMut() -> Option<T>) -> Option<T> {
    attempts_for(DEADLINE, ask)
}

/// Asks until the answer is there, for so long.
pub fn attempts_for<T>(time: Duration, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + time;
    loop {
        let answer = ask();
        if answer.is_some() || Instant::now() > deadline {
            return answer;
        }
        thread::sleep(PAUSE);
    }
}
