//! Files that survive a crash at any moment: written aside, flushed where they shall survive the machine, renamed.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
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

/// Replaces `path`; after the return it survives this process and not a crash of the machine. For [`read_unflushed`].
pub fn write_unflushed(path: &Path, value: &impl Serialize) -> anyhow::Result<()> {
    let doing = || format!("writing {}", path.display());
    let mut text = serde_json::to_vec(value).with_context(doing)?;
    text.push(b'\n');
    let aside = path.with_extension("new");
    if exchange(path, &text).with_context(doing)? {
        return Ok(());
    }
    fs::write(&aside, text).with_context(doing)?;
    // A rename over a file makes ext4 write the new one out (auto_da_alloc in its documentation), for milliseconds.
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error).with_context(doing),
        _ => {}
    }
    fs::rename(&aside, path).with_context(doing)
}

/// Writes to a spare file and exchanges the two: none is made or deleted, which is most of what a small write costs. The
/// spare is never read. `false` where there is no file to exchange it with yet, or the file system cannot.
fn exchange(path: &Path, text: &[u8]) -> std::io::Result<bool> {
    use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
    let spare = path.with_extension("spare");
    let mut file = File::options().write(true).create(true).truncate(false).open(&spare)?;
    file.write_all(text)?;
    file.set_len(text.len() as u64)?;
    Ok(renameat2(AT_FDCWD, &spare, AT_FDCWD, path, RenameFlags::RENAME_EXCHANGE).is_ok())
}

/// Reads what [`write_unflushed`] wrote, at whatever point it was ended; `None` where it never came to its end.
pub fn read_unflushed<T: DeserializeOwned>(path: &Path) -> anyhow::Result<Option<T>> {
    if let Some(value) = read(path)? {
        return Ok(Some(value));
    }
    // The old file goes when the new one is whole. One that is not is the first of all.
    Ok(read(&path.with_extension("new")).ok().flatten())
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
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
    };
    serde_json::from_slice(&text).map(Some).with_context(|| format!("{} is damaged", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wherever_an_unflushed_write_is_ended_the_old_or_the_new_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.json");
        let aside = path.with_extension("new");
        let found = || read_unflushed::<Vec<u32>>(&path).unwrap();
        assert_eq!(found(), None);
        fs::write(&aside, "[1, ").unwrap();
        assert_eq!(found(), None, "the first one was ended while it was written");
        write_unflushed(&path, &[1]).unwrap();
        fs::write(&aside, "[2, ").unwrap();
        assert_eq!(found(), Some(vec![1]), "the next one was");
        fs::write(&aside, "[2]").unwrap();
        fs::remove_file(&path).unwrap();
        assert_eq!(found(), Some(vec![2]), "it was ended before the rename");
        write_unflushed(&path, &[3]).unwrap();
        assert_eq!(found(), Some(vec![3]));
        // The spare has a longer text than what is written over it.
        fs::write(path.with_extension("spare"), "[4, 4, 4, 4, 4, 4, 4, 4, ").unwrap();
        assert_eq!(found(), Some(vec![3]), "it was ended while the spare was written");
        write_unflushed(&path, &[5]).unwrap();
        assert_eq!(found(), Some(vec![5]));
        fs::write(&path, "[3, ").unwrap();
        assert!(read_unflushed::<Vec<u32>>(&path).is_err(), "a damaged file is not passed over");
    }
}
