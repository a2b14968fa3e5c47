//! How much of a disk a directory tree takes, counted file by file as `du` does.
//!
//! A tree belongs to a pod, which may do with it what it likes meanwhile: no symbolic link is followed, no other file
//! system entered, and nothing outside of the tree opened (openat2).

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io;
use std::ops::AddAssign;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags};

/// A tree that takes longer is counted in part: what was found is the least that it takes.
const TIME_MAX: Duration = Duration::from_secs(20);
/// The kernel takes paths up to 4,096 octets; a pod may make longer ones, one directory at a time.
const PATH_OCTETS_MAX: usize = 3000;
const OPEN: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::NONBLOCK)
    .union(OFlags::CLOEXEC);

/// What is taken of a file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Allocated blocks, so that holes cost nothing.
    pub bytes: u64,
    pub inodes: u64,
}

impl AddAssign for Usage {
    fn add_assign(&mut self, other: Self) {
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.inodes = self.inodes.saturating_add(other.inodes);
    }
}

/// Counts the tree at `root`, itself included; a file with several names once. What is removed meanwhile is left out.
///
/// # Errors
/// `root` is not there, is no directory or cannot be read.
pub fn tree(root: &Path) -> io::Result<Usage> {
    let until = Instant::now() + TIME_MAX;
    let root = rustix::fs::open(root, OPEN, Mode::empty())?;
    let stat = rustix::fs::fstat(&root)?;
    let device = stat.st_dev;
    let mut total = Usage { bytes: blocks(stat.st_blocks), inodes: 1 };
    let mut linked = HashSet::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(path) = pending.pop() {
        if Instant::now() > until {
            tracing::debug!(?total, "a volume has too many files to be counted in time");
            break;
        }
        let Ok(directory) = open_below(&root, &path) else { continue };
        let Ok(entries) = Dir::read_from(&directory) else { continue };
        for entry in entries.flatten() {
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let Ok(stat) = rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
            let is_directory = FileType::from_raw_mode(stat.st_mode).is_dir();
            if stat.st_dev != device || (!is_directory && stat.st_nlink > 1 && !linked.insert(stat.st_ino)) {
                continue;
            }
            total += Usage { bytes: blocks(stat.st_blocks), inodes: 1 };
            if is_directory {
                pending.push(path.join(OsStr::from_bytes(name.to_bytes())));
            }
        }
    }
    Ok(total)
}

fn blocks(count: i64) -> u64 {
    u64::try_from(count).unwrap_or(0).saturating_mul(512)
}

fn open_below(root: &OwnedFd, path: &Path) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let open = |at: &OwnedFd, path: &Path| rustix::fs::openat2(at, path, OPEN, Mode::empty(), resolve);
    let mut at = open(root, Path::new("."))?;
    let mut piece = PathBuf::new();
    for part in path.components() {
        if piece.as_os_str().len() + part.as_os_str().len() > PATH_OCTETS_MAX {
            at = open(&at, &piece)?;
            piece.clear();
        }
        piece.push(part);
    }
    if piece.as_os_str().is_empty() { Ok(at) } else { open(&at, &piece) }
}

/// What is taken of the whole file system at `path`: exact and cheap where the tree has one of its own.
///
/// # Errors
/// `path` is not there.
pub fn file_system(path: &Path) -> io::Result<Usage> {
    let directory = rustix::fs::open(path, OPEN, Mode::empty())?;
    let stat = rustix::fs::fstatvfs(directory.as_fd())?;
    Ok(Usage {
        bytes: stat.f_blocks.saturating_sub(stat.f_bfree).saturating_mul(stat.f_frsize),
        inodes: stat.f_files.saturating_sub(stat.f_ffree),
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn write(path: &Path, bytes: usize) {
        fs::write(path, vec![1u8; bytes]).unwrap();
        // Blocks are allocated when they are written out.
        fs::File::open(path).unwrap().sync_all().unwrap();
    }

    #[test]
    fn files_are_counted_once_and_links_out_of_the_tree_are_not_followed() {
        let outside = tempfile::tempdir().unwrap();
        write(&outside.path().join("large"), 1 << 20);
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        let empty = tree(root.path()).unwrap();
        assert_eq!(empty.inodes, 1);
        fs::create_dir_all(at("a/b")).unwrap();
        write(&at("a/b/file"), 256 << 10);
        fs::hard_link(at("a/b/file"), at("second-name")).unwrap();
        symlink(outside.path(), at("out")).unwrap();
        symlink(outside.path().join("large"), at("large")).unwrap();
        let usage = tree(root.path()).unwrap();
        assert_eq!(usage.inodes, 6);
        let grown = usage.bytes - empty.bytes;
        assert!((256 << 10..300 << 10).contains(&grown), "{grown}");
        assert!(tree(&at("a/b/file")).is_err() && tree(&at("none")).is_err() && tree(&at("out")).is_err());
    }

    #[test]
    fn a_tree_deeper_than_any_path_is_counted_to_its_end() {
        const DEPTH: u64 = 40;
        let root = tempfile::tempdir().unwrap();
        let name = "d".repeat(200);
        let mut at = rustix::fs::open(root.path(), OPEN, Mode::empty()).unwrap();
        for _ in 0..DEPTH {
            rustix::fs::mkdirat(&at, name.as_str(), Mode::from_raw_mode(0o755)).unwrap();
            at = rustix::fs::openat(&at, name.as_str(), OPEN, Mode::empty()).unwrap();
        }
        assert_eq!(tree(root.path()).unwrap().inodes, DEPTH + 1);
    }

    #[test]
    fn a_file_system_is_asked_as_a_whole() {
        let root = tempfile::tempdir().unwrap();
        assert!(file_system(root.path()).unwrap().bytes > 0);
        assert!(file_system(&root.path().join("none")).is_err());
    }
}
