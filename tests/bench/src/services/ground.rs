//! What the laboratory stands on, all of it this process's own: namespaces of network and mounts, a folder, a
//! cgroup.
//!
//! Network namespaces have no name and mounts no other reader, so both go when the process goes, however it ends. The
//! folder and the cgroup are removed also when the process is interrupted.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::fd::{AsFd as _, AsRawFd as _},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
    sys::signal::{SigSet, Signal},
};
use tempfile::TempDir;

use crate::say;

const REMOVAL_TIME_MAX: Duration = Duration::from_secs(10);
/// Attempts to remove a folder that others still write to.
const REMOVALS: u32 = 20;
const PAUSE: Duration = Duration::from_millis(2);
const NO_PATH: Option<&str> = None;

/// The process's own place, until dropped.
pub(crate) struct Ground {
    folder: TempDir,
    cgroup: Cgroup,
}

impl Ground {
    /// Moves the calling thread, the only one yet, into new namespaces.
    pub(crate) fn enter() -> Result<Self> {
        ensure!(
            nix::unistd::geteuid().is_root(),
            "namespaces are made and BPF programs loaded: this needs root"
        );
        let folder = tempfile::Builder::new().prefix("seaway-bench-").tempdir()?;
        let cgroup = Cgroup::new()?;
        remove_when_interrupted(&cgroup.path, folder.path())?;
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
            .context("making namespaces of network and mounts")?;
        mount(NO_PATH, "/", NO_PATH, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NO_PATH)
            .context("making the mounts private")?;
        ip("link set lo up")?;
        Ok(Self { folder, cgroup })
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A new cgroup below this process's own in the v2 tree.
    pub(crate) fn cgroup(&self, name: &str) -> Result<PathBuf> {
        let path = self.cgroup.path.join(name);
        make_cgroup(&path)?;
        Ok(path)
    }

    /// A cgroup as processes name it: from the root of the tree on.
    pub(crate) fn cgroup_from_root(&self, path: &Path) -> Result<String> {
        let below = path.strip_prefix(&self.cgroup.tree).context("a cgroup is below its tree")?;
        Ok(format!("/{}", below.display()))
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        // What is mounted in the folder would keep it.
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let places = mounts.lines().filter_map(|line| line.split(' ').nth(1));
        for place in places.filter(|place| Path::new(place).starts_with(self.folder.path())) {
            if let Err(error) = umount2(place, MntFlags::MNT_DETACH) {
                say(&format!("{place} stays mounted until the end: {error}"));
            }
        }
    }
}

struct Cgroup {
    tree: PathBuf,
    path: PathBuf,
}

impl Cgroup {
    fn new() -> Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts").context("reading the mounts")?;
        let tree = mounts
            .lines()
            .map(|line| line.split(' ').collect::<Vec<_>>())
            .find(|fields| fields.get(2) == Some(&"cgroup2"))
            .and_then(|fields| fields.get(1).map(PathBuf::from))
            .context("no cgroup v2 tree is mounted: Services are served to its processes")?;
        let own = fs::read_to_string("/proc/self/cgroup").context("reading this process's cgroups")?;
        let own = own.lines().find_map(|line| line.strip_prefix("0::")).context("no v2 cgroup")?;
        let name = format!("seaway-bench-{}", std::process::id());
        let path = tree.join(own.trim_start_matches('/')).join(name);
        fs::create_dir(&path).with_context(|| format!("making {}", path.display()))?;
        Ok(Self { tree, path })
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.path) {
            say(&format!("{} stays behind: {error}", self.path.display()));
        }
    }
}

/// Makes a cgroup where there is none yet; never its parent, which may just have been removed for good.
pub(crate) fn make_cgroup(path: &Path) -> Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(error).with_context(|| format!("making {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Ends what is in a cgroup and below, and removes it.
fn remove(path: &Path) -> io::Result<()> {
    // Linux 5.14 and newer; before that, only what ends by itself leaves it.
    let _ = fs::write(path.join("cgroup.kill"), "1");
    let deadline = Instant::now() + REMOVAL_TIME_MAX;
    loop {
        match remove_tree(path) {
            Err(error)
                if matches!(error.raw_os_error(), Some(libc::EBUSY | libc::ENOTEMPTY))
                    && Instant::now() < deadline =>
            {
                std::thread::sleep(PAUSE);
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => return Ok(()),
        }
    }
}

fn remove_tree(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(path)
}

/// SIGINT, SIGTERM and SIGHUP end this process, and its children with it; the cgroup goes before.
fn remove_when_interrupted(cgroup: &Path, folder: &Path) -> Result<()> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signals.add(signal);
    }
    // Later threads have them blocked too; the standard library undoes it for children.
    signals.thread_block().context("blocking signals")?;
    let (path, folder) = (cgroup.to_owned(), folder.to_owned());
    let wait = move || {
        let signal = signals.wait();
        say("\nstopping: everything is removed");
        if let Err(error) = remove(&path) {
            say(&format!("{} stays behind: {error}", path.display()));
        }
        // What is mounted in it is so in the other threads' namespace only. They may still write.
        for _ in 0..REMOVALS {
            if fs::remove_dir_all(&folder).is_ok() {
                break;
            }
        }
        let number = signal.map_or(1, |signal| signal as i32);
        std::process::exit(128 + number);
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(wait).context("starting a thread")?;
    Ok(())
}

/// A network namespace that lives as long as this.
pub(crate) struct NetNs {
    file: File,
}

impl NetNs {
    /// With its loopback up.
    pub(crate) fn new() -> Result<Self> {
        let made = std::thread::spawn(|| -> Result<File> {
            unshare(CloneFlags::CLONE_NEWNET).context("making a network namespace")?;
            ip("link set lo up")?;
            File::open("/proc/thread-self/ns/net").context("opening the namespace")
        });
        let file = made.join().expect("the thread does not panic")?;
        Ok(Self { file })
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// A path by which other programs find it while this process runs.
    pub(crate) fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd()).into()
    }

    /// Runs `work` inside, on a thread of its own.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET).context("entering a namespace")?;
                work()
            });
            inside.join().unwrap_or_else(|cause| std::panic::resume_unwind(cause))
        })
    }

    /// Runs `ip` inside.
    pub(crate) fn ip(&self, arguments: &str) -> Result<()> {
        self.run(|| ip(arguments))
    }

    /// Writes a key of /proc/sys/net inside.
    pub(crate) fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/net/{key}");
        self.run(|| fs::write(&path, value).with_context(|| format!("writing {value} to {path}")))
    }

    /// Makes a command's process start inside, and in a cgroup.
    pub(crate) fn place(&self, command: &mut Command, cgroup: &Path) -> Result<()> {
        let namespace = self.file.try_clone().context("a second descriptor")?;
        let path = cgroup.join("cgroup.procs");
        let joining = OpenOptions::new()
            .write(true)
            .open(&path)
            .with_context(|| format!("opening {}", path.display()))?;
        let enter = move || -> io::Result<()> {
            setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)?;
            nix::unistd::write(&joining, b"0")?;
            Ok(())
        };
        // SAFETY: only system calls between fork and exec, on descriptors that were opened before.
        unsafe { command.pre_exec(enter) };
        Ok(())
    }
}

/// Runs `ip` in the calling thread's network namespace.
pub(crate) fn ip(arguments: &str) -> Result<()> {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().context("running ip")?;
    if !output.status.success() {
        bail!("ip {arguments}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
