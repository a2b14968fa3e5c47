//! Files that survive a crash at any moment: written aside, flushed where they shall survive the machine, renamed.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use anyhow::Context;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Names the running boot of the machine: what was true of its kernel in another is not any more.
pub fn boot_id() -> anyhow::Result<String> {
    const PATH: &str = "/proc/sys/kernel/random/boot_id";
    let text = fs::read_to_string(PATH).with_context(|| format!("reading {PATH}"))?;
    Ok(text.trim().to_owned())
}

/// Replaces `path`; after the return it is on disk.
pub fn write(path: &Path, value: &impl Serialize) -> anyhow::Result<()> {
    let doing = || format!("writing {}", path.display());
    let mut text = serde_json::to_vec(value).with_context(doing)?;
    text.push(b'\n');
    write_text(path, &text)
}

/// Replaces `path`; after the return it survives this process and not a crash of the machine.
pub fn write_unflushed(path: &Path, value: &impl Serialize) -> anyhow::Result<()> {
    let doing = || format!("writing {}", path.display());
    let mut text = serde_json::to_vec(value).with_context(doing)?;
    text.push(b'\n');
    let aside = path.with_extension("new");
    fs::write(&aside, text).with_context(doing)?;
    fs::rename(&aside, path).with_context(doing)
}

/// As [`write()`], for the file's owner alone.
pub fn write_private(path: &Path, value: &impl Serialize) -> anyhow::Result<()> {
    let doing = || format!("writing {}", path.display());
    let mut text = serde_json::to_vec(value).with_context(doing)?;
    text.push(b'\n');
    write_mode(path, &text, 0o600)
}

pub fn write_text(path: &Path, text: &[u8]) -> anyhow::Result<()> {
    write_mode(path, text, 0o666)
}

fn write_mode(path: &Path, text: &[u8], mode: u32) -> anyhow::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let doing = || format!("writing {}", path.display());
    let aside = path.with_extension("new");
    let mut options = File::options();
    let mut file =
        options.write(true).create(true).truncate(true).mode(mode).open(&aside).with_context(doing)?;
    file.write_all(text).with_context(doing)?;
    file.sync_all().with_context(doing)?;
    fs::rename(&aside, path).with_context(doing)?;
    let folder = path.parent().unwrap_or(Path::new("/"));
    File::open(folder).and_then(|folder| folder.sync_all()).with_context(doing)
}

/// Reads what `write` wrote; `None` where there is no file.
pub fn read<T: DeserializeOwned>(path: &Path) -> anyhow::Result<Option<T>> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
    };
    serde_json::from_slice(&text).map(Some).with_context(|| format!("{} is damaged", path.display()))
}
