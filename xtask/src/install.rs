//! Debian packages that a command needs: found, or installed and named; or unpacked under a folder of ours, where what
//! is in them needs no place in the system and shall displace nothing there.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::run;

/// A program and the Debian package that brings it.
pub(crate) struct Need {
    pub(crate) program: &'static str,
    pub(crate) package: &'static str,
}

/// What a cluster needs on the machine.
pub(crate) const CLUSTER: &[Need] = &[
    Need { program: "ip", package: "iproute2" },
    Need { program: "nsenter", package: "util-linux" },
    Need { program: "mount", package: "mount" },
    Need { program: "containerd", package: "containerd" },
    Need { program: "runc", package: "runc" },
    Need { program: "/usr/lib/cni/loopback", package: "containernetworking-plugins" },
];

/// What a laboratory of network namespaces needs.
pub(crate) const IP: &[Need] = &[Need { program: "ip", package: "iproute2" }];

/// Plugins that ours is measured beside.
pub(crate) const CNI_PLUGINS: &[Need] =
    &[Need { program: "/usr/lib/cni/ptp", package: "containernetworking-plugins" }];

/// What the speaker is measured beside.
pub(crate) const SPEAKERS: &[Need] = &[
    Need { program: "bird", package: "bird2" },
    Need { program: "/usr/lib/frr/bgpd", package: "frr" },
    Need { program: "gobgpd", package: "gobgpd" },
];

/// What a kube-proxy calls.
pub(crate) const FILTERS: &[Need] = &[
    Need { program: "nft", package: "nftables" },
    Need { program: "iptables-restore", package: "iptables" },
];

pub(crate) const KUBECTL: &[Need] = &[Need { program: "kubectl", package: "kubernetes-client" }];

/// What the test images are made of.
pub(crate) const IMAGES: &[Need] = &[
    Need { program: "busybox", package: "busybox-static" },
    Need { program: "nginx", package: "nginx-light" },
];

pub(crate) const ETCD: &[Need] = &[Need { program: "etcd", package: "etcd-server" }];

/// What makes maps of other layouts and looks at ours.
pub(crate) const BPFTOOL: &[Need] = &[Need { program: "bpftool", package: "bpftool" }];

/// What the kernel and cluster tiers judge us with.
pub(crate) const PEERS: &[Need] = &[
    Need { program: "bird", package: "bird2" },
    Need { program: "/usr/lib/frr/bgpd", package: "frr" },
    Need { program: "gobgpd", package: "gobgpd" },
    Need { program: "tshark", package: "tshark" },
    Need { program: "python3", package: "python3-venv" },
    Need { program: "openssl", package: "openssl" },
    Need { program: "bash", package: "bash" },
    Need { program: "ping", package: "iputils-ping" },
    Need { program: "tc", package: "iproute2" },
    Need { program: "curl", package: "curl" },
    Need { program: "diff", package: "diffutils" },
    Need { program: "script", package: "bsdutils" },
    Need { program: "nft", package: "nftables" },
    Need { program: "iptables-save", package: "iptables" },
    Need { program: "bpftool", package: "bpftool" },
];

/// Installs what is missing; as another user than root it says what to install.
pub(crate) fn ensure(needs: &[&[Need]]) -> Result<()> {
    let mut packages: Vec<&str> = needs
        .iter()
        .flat_map(|group| group.iter())
        .filter(|need| run::which(need.program).is_none())
        .map(|need| need.package)
        .collect();
    packages.sort_unstable();
    packages.dedup();
    packages_installed(&packages)
}

/// Installs Debian packages by name.
pub(crate) fn packages_installed(packages: &[&str]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    let list = packages.join(" ");
    if run::which("apt-get").is_none() {
        bail!("missing on this machine: {list} (Debian's package names); install them and run again");
    }
    if !nix::unistd::geteuid().is_root() {
        bail!("missing on this machine: {list}; as root: apt-get install {list}");
    }
    run::step(&format!("installing Debian packages: {list}"), || {
        refresh_lists()?;
        // Services of the packages must not start: the tests run their own.
        let policy = Path::new("/usr/sbin/policy-rc.d");
        let ours = !policy.exists();
        if ours {
            std::fs::write(policy, "#!/bin/sh\nexit 101\n").context("writing policy-rc.d")?;
            run::run(Command::new("chmod").args(["755", "/usr/sbin/policy-rc.d"]))?;
        }
        let installed = run::output(
            Command::new("apt-get")
                .env("DEBIAN_FRONTEND", "noninteractive")
                .args(["install", "-y", "-q", "--no-install-recommends"])
                .args(packages),
        );
        if ours {
            std::fs::remove_file(policy).context("removing policy-rc.d")?;
        }
        installed.map(|_| ())
    })
}

/// Learns what Debian offers now, which root can; others go on with what was known.
pub(crate) fn refresh_lists() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    run::output(Command::new("apt-get").args(["update", "-q"]))
        .context("refreshing the package lists")
        .map(drop)
}

/// Unpacks a package into a folder that is not there yet.
pub(crate) fn unpacked_alone(package: &str, folder: &Path) -> Result<()> {
    unpacked(package, folder, |packages| {
        let mut fetch = Command::new("apt-get");
        fetch.current_dir(packages).args(["download", "-q", package]);
        fetch
    })
}

/// The same, with whatever it depends on and the machine has not.
pub(crate) fn unpacked_with_dependencies(package: &str, folder: &Path) -> Result<()> {
    unpacked(package, folder, |packages| {
        let mut fetch = Command::new("apt-get");
        fetch.args(["install", "--download-only", "-y", "-q", "--no-install-recommends"]);
        fetch.arg("-o").arg(format!("Dir::Cache::archives={}", packages.display())).arg(package);
        fetch
    })
}

/// `fetch` says how packages come into a folder. What was unpacked before is left as it is: a folder is whole or not
/// there.
fn unpacked(package: &str, folder: &Path, fetch: impl Fn(&Path) -> Command) -> Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    if run::which("apt-get").is_none() {
        bail!("this needs what is in Debian's package {package}, and there is no apt-get to fetch it with");
    }
    run::step(&format!("unpacking the Debian package {package} into {}", folder.display()), || {
        let parent = folder.parent().context("a folder is in another")?;
        std::fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
        let work = tempfile::tempdir_in(parent).context("making a folder")?;
        let (packages, fresh) = (work.path().join("packages"), work.path().join("root"));
        for path in [&packages.join("partial"), &fresh] {
            std::fs::create_dir_all(path).with_context(|| format!("making {}", path.display()))?;
        }
        // Lists that are some days old may name what is gone.
        if run::output(fetch(&packages).env("DEBIAN_FRONTEND", "noninteractive")).is_err() {
            refresh_lists()?;
            run::output(fetch(&packages).env("DEBIAN_FRONTEND", "noninteractive"))?;
        }
        for entry in std::fs::read_dir(&packages).context("listing the packages")? {
            let path = entry?.path();
            if path.extension().is_some_and(|ending| ending == "deb") {
                run::output(Command::new("dpkg-deb").arg("--extract").arg(path).arg(&fresh))?;
            }
        }
        std::fs::rename(&fresh, folder).with_context(|| format!("renaming to {}", folder.display()))
    })
}
