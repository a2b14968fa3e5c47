//! Removes every trace of the cluster, whatever state it is in, and shows that it looked.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::layout;
use crate::run;

const GONE_WITHIN: Duration = Duration::from_secs(20);

pub(crate) fn down() -> Result<()> {
    run::say("taking the cluster down");
    let killed = kill_all()?;
    unmount_all()?;
    let namespaces = layout::namespaces();
    for name in &namespaces {
        run::run(Command::new("ip").args(["netns", "delete", name]))?;
    }
    remove_cgroups()?;
    let state = layout::state();
    if state.exists() {
        std::fs::remove_dir_all(&state).with_context(|| format!("removing {}", state.display()))?;
    }
    run::say(&format!("    ended {killed} processes, deleted {} network namespaces", namespaces.len()));
    let left = traces()?;
    if !left.is_empty() {
        bail!("left behind:\n    {}", left.join("\n    "));
    }
    run::say(
        "    looked for processes, namespaces, links, mounts, cgroups and pinned BPF objects of ours: none left",
    );
    Ok(())
}

/// Processes of the cluster: those in its cgroups, and those in its network namespaces.
fn processes() -> BTreeSet<i32> {
    let mut found = BTreeSet::new();
    for tree in layout::cgroup_trees() {
        for folder in top_cgroups(&tree) {
            collect_processes(&folder, &mut found);
        }
    }
    let namespaces: BTreeSet<u64> =
        layout::namespaces().iter().filter_map(|name| inode(&layout::netns_path(name))).collect();
    if let Ok(entries) = std::fs::read_dir("/proc") {
        for pid in entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok()) {
            if inode(&PathBuf::from(format!("/proc/{pid}/ns/net")))
                .is_some_and(|inode| namespaces.contains(&inode))
            {
                found.insert(pid);
            }
        }
    }
    found.remove(&std::process::id().cast_signed());
    found
}

fn inode(path: &Path) -> Option<u64> {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).ok().map(|metadata| metadata.ino())
}

fn top_cgroups(tree: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(tree) else { return Vec::new() };
    entries
        .flatten()
        .filter(|entry| layout::is_ours(&entry.file_name().to_string_lossy()))
        .map(|entry| entry.path())
        .collect()
}

fn collect_processes(folder: &Path, found: &mut BTreeSet<i32>) {
    let text = std::fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    found.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 0));
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten().filter(|entry| entry.path().is_dir()) {
        collect_processes(&entry.path(), found);
    }
}

fn kill_all() -> Result<usize> {
    let deadline = Instant::now() + GONE_WITHIN;
    let mut killed = BTreeSet::new();
    loop {
        let processes = processes();
        if processes.is_empty() {
            return Ok(killed.len());
        }
        if Instant::now() > deadline {
            bail!("processes that do not end: {processes:?}");
        }
        for pid in processes {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            killed.insert(pid);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Mounts below our folder that are seen from here, the deepest first.
fn mounts() -> Result<Vec<String>> {
    let state = layout::state().display().to_string();
    let table = std::fs::read_to_string("/proc/self/mounts").context("reading the mount table")?;
    let mut mounts: Vec<String> = table
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .filter(|path| path.starts_with(&state))
        .map(str::to_owned)
        .collect();
    mounts.sort();
    mounts.reverse();
    Ok(mounts)
}

fn unmount_all() -> Result<()> {
    for path in mounts()? {
        nix::mount::umount2(path.as_str(), nix::mount::MntFlags::MNT_DETACH)
            .with_context(|| format!("unmounting {path}"))?;
    }
    Ok(())
}

fn remove_cgroups() -> Result<()> {
    for tree in layout::cgroup_trees() {
        for folder in top_cgroups(&tree) {
            let deadline = Instant::now() + GONE_WITHIN;
            // The kernel frees a cgroup a moment after its last process.
            while let Err(error) = remove_cgroup(&folder) {
                if Instant::now() > deadline {
                    return Err(error).with_context(|| format!("removing {}", folder.display()));
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
    Ok(())
}

fn remove_cgroup(folder: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)?.flatten().filter(|entry| entry.path().is_dir()) {
        remove_cgroup(&entry.path())?;
    }
    std::fs::remove_dir(folder)
}

/// Everything of ours that is still there, each with what it is.
fn traces() -> Result<Vec<String>> {
    let mut left: Vec<String> = processes().iter().map(|pid| format!("process {pid}")).collect();
    left.extend(layout::namespaces().into_iter().map(|name| format!("network namespace {name}")));
    let links = run::output(Command::new("ip").args(["-o", "link", "show"]))?;
    left.extend(
        links
            .lines()
            .filter_map(|line| line.split(": ").nth(1))
            .filter(|name| name.starts_with("sw-") || name.starts_with("sway"))
            .map(|name| format!("link {name}")),
    );
    left.extend(mounts()?.into_iter().map(|path| format!("mount {path}")));
    for tree in layout::cgroup_trees() {
        left.extend(top_cgroups(&tree).iter().map(|path| format!("cgroup {}", path.display())));
    }
    if Path::new("/sys/fs/bpf/seaway").exists() {
        left.push("pinned BPF objects in /sys/fs/bpf/seaway".to_owned());
    }
    let state = layout::state();
    if state.exists() {
        left.push(format!("folder {}", state.display()));
    }
    Ok(left)
}
