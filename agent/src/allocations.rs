//! Whose the node's addresses are, in a file.
//!
//! The file outlives the agent and not a boot of the machine, as the pods do: so nothing is flushed while one waits for
//! its address, which on a busy disk takes seconds. After a boot the blocks are still the node's and all their
//! addresses free.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use ipam::Allocator;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::persist;

/// Seconds an address rests after its pod is gone.
const COOLDOWN: u64 = 30;

pub struct Allocations {
    path: PathBuf,
    boot_id: String,
}

#[derive(Serialize)]
struct Saving<'a> {
    /// Of the boot in which it is written.
    boot_id: &'a str,
    allocator: &'a Allocator,
}

#[derive(Deserialize)]
struct Saved {
    /// Earlier versions wrote none, and the allocator alone.
    boot_id: Option<String>,
    allocator: Allocator,
}

impl Allocations {
    /// Reads what an earlier agent wrote. `wired` tells that pods have links: then a damaged file is an error, as their
    /// addresses would be given away again. Otherwise it is set aside. `now` is in seconds since the epoch.
    pub fn open(path: PathBuf, wired: bool, now: u64) -> anyhow::Result<(Allocations, Allocator)> {
        let allocations = Allocations { path, boot_id: persist::boot_id()? };
        let allocator = match read(&allocations.path) {
            Ok(Some(saved)) => allocations.of_this_boot(saved, now),
            Ok(None) => Allocator::new(COOLDOWN),
            Err(error) if wired => return Err(error),
            Err(error) => {
                let aside = allocations.path.with_extension("damaged");
                std::fs::rename(&allocations.path, &aside)
                    .with_context(|| format!("{error:#}; setting it aside"))?;
                tracing::error!("{error:#}; no pod runs, so it is set aside as {}", aside.display());
                Allocator::new(COOLDOWN)
            }
        };
        Ok((allocations, allocator))
    }

    /// After the return, the next agent finds it.
    pub fn save(&self, allocator: &Allocator) -> anyhow::Result<()> {
        persist::write_unflushed(&self.path, &Saving { boot_id: &self.boot_id, allocator })
    }

    fn of_this_boot(&self, mut saved: Saved, now: u64) -> Allocator {
        if saved.boot_id.is_some_and(|boot_id| boot_id != self.boot_id) {
            // Nobody has talked to these pods for as long as the boot took.
            let gone = saved.allocator.restart(now.saturating_sub(COOLDOWN));
            tracing::info!(
                pods = gone.len(),
                "the machine was started anew: addresses of pods before that are free"
            );
        }
        saved.allocator
    }
}

fn read(path: &Path) -> anyhow::Result<Option<Saved>> {
    let Some(saved) = persist::read_unflushed::<Value>(path)? else { return Ok(None) };
    let saved = if saved.get("allocator").is_some() { saved } else { json!({ "allocator": saved }) };
    let saved: Saved =
        serde_json::from_value(saved).with_context(|| format!("{} is damaged", path.display()))?;
    if !saved.allocator.is_consistent() {
        bail!("{} contradicts itself: an address is both free and in use", path.display());
    }
    Ok(Some(saved))
}

#[cfg(test)]
mod tests {
    use ipam::{Pool, Request, Want};
    use tempfile::TempDir;

    use super::*;

    const NOW: u64 = 1_000_000;

    fn file(folder: &TempDir) -> PathBuf {
        folder.path().join("ipam.json")
    }

    /// A file with one pod's address in it.
    fn written(folder: &TempDir) -> (Allocations, Allocator) {
        let (allocations, mut allocator) = Allocations::open(file(folder), false, NOW).unwrap();
        let pools = [Pool::new("10.244.0.0/16".parse().unwrap(), 26).unwrap()];
        allocator.add_block("10.244.0.0/26".parse().unwrap(), &pools[0]);
        let request = Request {
            container_id: "c0".to_owned(),
            interface: "eth0".to_owned(),
            pod_namespace: "default".to_owned(),
            pod_name: "web".to_owned(),
            host_ports: Vec::new(),
        };
        allocator.allocate(&[Want::Of(pools.into())], &[], &request, NOW).unwrap();
        allocations.save(&allocator).unwrap();
        (allocations, allocator)
    }

    #[test]
    fn the_next_agent_finds_the_addresses_of_running_pods() {
        let folder = tempfile::tempdir().unwrap();
        let (_, saved) = written(&folder);
        assert_eq!(Allocations::open(file(&folder), true, NOW).unwrap().1, saved);
    }

    #[test]
    fn after_a_boot_the_blocks_are_kept_and_every_address_is_free() {
        let folder = tempfile::tempdir().unwrap();
        let (mut allocations, saved) = written(&folder);
        allocations.boot_id = "another".to_owned();
        allocations.save(&saved).unwrap();
        let (_, found) = Allocations::open(file(&folder), false, NOW).unwrap();
        assert_eq!(found.allocations().count(), 0);
        let block = "10.244.0.0/26".parse().unwrap();
        assert_eq!(found.usage(block).unwrap().1, saved.usage(block).unwrap().1 + 1);
    }

    #[test]
    fn a_file_of_an_earlier_version_counts_as_of_this_boot() {
        let folder = tempfile::tempdir().unwrap();
        let (_, saved) = written(&folder);
        std::fs::write(file(&folder), serde_json::to_vec(&saved).unwrap()).unwrap();
        assert_eq!(Allocations::open(file(&folder), true, NOW).unwrap().1, saved);
    }

    #[test]
    fn a_damaged_file_stops_an_agent_only_where_pods_run() {
        let folder = tempfile::tempdir().unwrap();
        written(&folder);
        let text = std::fs::read(file(&folder)).unwrap();
        std::fs::write(file(&folder), &text[..text.len() / 2]).unwrap();
        let error = Allocations::open(file(&folder), true, NOW).err().unwrap();
        assert!(format!("{error:#}").contains("ipam.json is damaged"), "{error:#}");
        let (_, found) = Allocations::open(file(&folder), false, NOW).unwrap();
        assert_eq!(found, Allocator::new(COOLDOWN));
        assert_eq!(std::fs::read(folder.path().join("ipam.damaged")).unwrap(), &text[..text.len() / 2]);
    }
}
