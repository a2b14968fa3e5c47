//! Debian's kernels for machines of clouds: small, and with everything that the datapath needs.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{install, run};

/// What is not in the kernel itself, in the order of loading: sockets by their diagnosis, pods' links, clsact.
const MODULES: [&str; 5] = ["inet_diag", "udp_diag", "veth", "sch_ingress", "cls_bpf"];

/// An unpacked kernel.
pub(super) struct Kernel {
    /// Debian's name of the package.
    pub(super) name: String,
    pub(super) image: PathBuf,
    pub(super) modules: Vec<PathBuf>,
}

impl Kernel {
    /// The newest kernel of a version, such as 6.1, that is under `folder` already, or else that Debian offers.
    pub(super) fn of_debian(version: &str, folder: &Path) -> Result<Self> {
        if !version.split('.').all(|number| number.parse::<u32>().is_ok()) {
            bail!("{version:?} is no version of Linux, such as {}", super::OLDEST);
        }
        let name = match newest(&unpacked_here(folder), version) {
            Some(name) => name,
            None => offered(version)?,
        };
        let root = folder.join(&name);
        install::unpacked_alone(&name, &root)?;
        let image = files(&root.join("boot"))?
            .into_iter()
            .find(|path| file_name(path).starts_with("vmlinuz-"))
            .with_context(|| format!("no kernel in {}", root.display()))?;
        let modules = modules(&root).with_context(|| format!("looking for modules in {name}"))?;
        Ok(Self { name, image, modules })
    }
}

fn unpacked_here(folder: &Path) -> Vec<String> {
    files(folder).unwrap_or_default().iter().map(|path| file_name(path)).collect()
}

fn offered(version: &str) -> Result<String> {
    let offered = || -> Result<Vec<String>> {
        let listed =
            run::output(Command::new("apt-cache").args(["search", "--names-only", "^linux-image-"]))?;
        Ok(listed.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect())
    };
    if let Some(name) = newest(&offered()?, version) {
        return Ok(name);
    }
    install::refresh_lists()?;
    let names = offered()?;
    newest(&names, version).with_context(|| {
        let mut clouds: Vec<_> = names.into_iter().filter(|name| numbers(name).is_some()).collect();
        clouds.sort_by_key(|name| numbers(name));
        format!("Debian offers no kernel {version} here, but {}", clouds.join(", "))
    })
}

/// The newest of those packages that are kernels of the version.
fn newest(names: &[String], version: &str) -> Option<String> {
    let prefix = format!("linux-image-{version}.");
    let of_version = names.iter().filter(|name| name.starts_with(&prefix) && numbers(name).is_some());
    of_version.max_by_key(|name| numbers(name)).cloned()
}

/// The numbers in the name of a package with a signed kernel for clouds, by which one is newer than another.
fn numbers(name: &str) -> Option<Vec<u32>> {
    let version = name.strip_prefix("linux-image-")?.strip_suffix("-cloud-amd64")?;
    let numbers: Vec<u32> = version
        .split(|character: char| !character.is_ascii_digit())
        .filter_map(|digits| digits.parse().ok())
        .collect();
    // One number or two are a package that only depends on the newest.
    (numbers.len() > 2).then_some(numbers)
}

/// The files of [`MODULES`], less those that are built in.
fn modules(root: &Path) -> Result<Vec<PathBuf>> {
    let releases = files(&root.join("lib/modules"))?;
    let [release] = releases.as_slice() else { bail!("{} is not for one kernel", root.display()) };
    let list = |name: &str| {
        let path = release.join(name);
        std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
    };
    let (ordered, built_in) = (list("modules.order")?, list("modules.builtin")?);
    let path_in = |list: &str, module: &str| {
        list.lines().find(|line| line.ends_with(&format!("/{module}.ko"))).map(str::to_owned)
    };
    let mut found = Vec::new();
    for module in MODULES {
        if path_in(&built_in, module).is_some() {
            continue;
        }
        let path = path_in(&ordered, module).with_context(|| format!("no {module}"))?;
        let plain = release.join(&path);
        let packed = release.join(format!("{path}.xz"));
        found.push(if packed.is_file() { packed } else { plain });
    }
    Ok(found)
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))?;
    entries.map(|entry| Ok(entry?.path())).collect()
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::newest;

    #[test]
    fn the_newest_kernel_of_a_version_is_taken() {
        let names = [
            "linux-image-6.1.0-9-cloud-amd64",
            "linux-image-6.1.0-56-cloud-amd64",
            "linux-image-6.1.0-57-amd64",
            "linux-image-6.1.0-58-cloud-amd64-unsigned",
            "linux-image-6.1.0-58-cloud-amd64-dbg",
            "linux-image-6.12-cloud-amd64",
            "linux-image-6.12.100+deb12-cloud-amd64",
            "linux-image-6.12.9+deb12-cloud-amd64",
            "linux-image-cloud-amd64",
        ]
        .map(str::to_owned);
        assert_eq!(newest(&names, "6.1").as_deref(), Some("linux-image-6.1.0-56-cloud-amd64"));
        assert_eq!(newest(&names, "6.12").as_deref(), Some("linux-image-6.12.100+deb12-cloud-amd64"));
        assert_eq!(newest(&names, "6"), newest(&names, "6.12"));
        assert_eq!(newest(&names, "5.10"), None);
    }
}
