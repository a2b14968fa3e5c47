//! Volumes that are places in the host's file system: emptyDir and hostPath; and the removal of a pod's directories.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, HostPathVolumeSource};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::quantity;

pub fn make_dir(path: &Path, mode: u32) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(mode).create(path)
}

/// A directory that all users may write; in memory it is a tmpfs of the asked size.
pub fn empty_dir(path: &Path, source: &EmptyDirVolumeSource, group: Option<u32>) -> io::Result<()> {
    make_dir(path, 0o777)?;
    match source.medium.as_deref() {
        Some("Memory") if !is_mount_point(path)? => {
            let size = source.size_limit.as_ref().map(quantity::units).filter(|bytes| *bytes > 0);
            let options =
                size.map_or_else(|| "mode=0777".to_owned(), |bytes| format!("mode=0777,size={bytes}"));
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
            mount(Some("tmpfs"), path, Some("tmpfs"), flags, Some(options.as_str()))?;
        }
        None | Some("" | "Memory") => {}
        Some(other) => {
            let text = format!("medium \"{other}\" of an emptyDir is not supported");
            return Err(io::Error::new(io::ErrorKind::Unsupported, text));
        }
    }
    let mut mode = 0o777;
    if let Some(group) = group {
        chown(path, None, Some(group))?;
        mode = 0o2777;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

/// Checks the path of a hostPath volume against its type, making it where the type says so.
pub fn host_path(source: &HostPathVolumeSource) -> io::Result<()> {
    let path = Path::new(&source.path);
    let kind = source.type_.as_deref().unwrap_or_default();
    let metadata = fs::metadata(path);
    if matches!(&metadata, Err(error) if error.kind() == io::ErrorKind::NotFound) {
        match kind {
            "DirectoryOrCreate" => return make_dir(path, 0o755),
            "FileOrCreate" => {
                let open = fs::OpenOptions::new().create(true).append(true).mode(0o644).open(path);
                return open.map(drop);
            }
            // The runtime makes a directory of a path that is not there, when no type is asked for.
            "" => return Ok(()),
            _ => {}
        }
    }
    let file_type = metadata.map(|metadata| metadata.file_type());
    let found = match (&file_type, kind) {
        (_, "") => true,
        (Err(_), _) => false,
        (Ok(found), "Directory" | "DirectoryOrCreate") => found.is_dir(),
        (Ok(found), "File" | "FileOrCreate") => found.is_file(),
        (Ok(found), "Socket") => found.is_socket(),
        (Ok(found), "CharDevice") => found.is_char_device(),
        (Ok(found), "BlockDevice") => found.is_block_device(),
        (Ok(_), _) => false,
    };
    if found {
        return Ok(());
    }
    let words = match kind {
        "Directory" | "DirectoryOrCreate" => "a directory",
        "File" | "FileOrCreate" => "a file",
        "Socket" => "a socket file",
        "CharDevice" => "a character device",
        "BlockDevice" => "a block device",
        other => other,
    };
    let text = format!("hostPath type check failed: {} is not {words}", path.display());
    Err(io::Error::new(io::ErrorKind::InvalidInput, text))
}

/// Mount points at or below `root`, the deepest first.
fn mounts_below(root: &Path) -> io::Result<Vec<PathBuf>> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let points =
        table.lines().filter_map(|line| line.split(' ').nth(4)).map(|point| PathBuf::from(unescape(point)));
    let mut below: Vec<PathBuf> = points.filter(|point| point.starts_with(root)).collect();
    below.sort_by_key(|point| std::cmp::Reverse(point.components().count()));
    Ok(below)
}

fn is_mount_point(path: &Path) -> io::Result<bool> {
    let path = path.canonicalize()?;
    Ok(mounts_below(&path)?.contains(&path))
}

/// The kernel writes space, tab, newline and backslash of a path as `\` and three octal digits.
fn unescape(text: &str) -> String {
    let mut out = Vec::new();
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let octal = bytes.get(at + 1..at + 4).and_then(|digits| std::str::from_utf8(digits).ok());
        let octal = octal.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match octal.filter(|_| bytes[at] == b'\\') {
            Some(byte) => {
                out.push(byte);
                at += 4;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Unmounts what is mounted below `root`, then removes it. Nothing there counts as done.
pub fn remove(root: &Path) -> io::Result<()> {
    let Ok(root) = root.canonicalize() else { return Ok(()) };
    for point in mounts_below(&root)? {
        umount2(&point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)?;
    }
    match fs::remove_dir_all(&root) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(path: &Path, kind: &str) -> HostPathVolumeSource {
        HostPathVolumeSource { path: path.display().to_string(), type_: Some(kind.to_owned()) }
    }

    #[test]
    fn host_paths_are_checked_and_made_by_type() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        assert!(host_path(&source(&at("none"), "")).is_ok());
        let error = host_path(&source(&at("none"), "Directory")).unwrap_err().to_string();
        assert!(error.contains("is not a directory"), "{error}");
        host_path(&source(&at("made/deep"), "DirectoryOrCreate")).unwrap();
        host_path(&source(&at("made/deep"), "Directory")).unwrap();
        host_path(&source(&at("file"), "FileOrCreate")).unwrap();
        assert!(host_path(&source(&at("file"), "Directory")).is_err());
        assert!(host_path(&source(&at("file"), "Socket")).is_err());
        host_path(&source(Path::new("/dev/null"), "CharDevice")).unwrap();
    }

    #[test]
    fn an_empty_dir_is_open_to_all_and_takes_the_group() {
        let root = tempfile::tempdir().unwrap();
        let at = root.path().join("e");
        empty_dir(&at, &EmptyDirVolumeSource::default(), None).unwrap();
        assert_eq!(fs::metadata(&at).unwrap().permissions().mode() & 0o7777, 0o777);
        let huge = EmptyDirVolumeSource { medium: Some("HugePages".into()), ..Default::default() };
        assert!(empty_dir(&at, &huge, None).is_err());
        remove(&at).unwrap();
        assert!(!at.exists());
        remove(&at).unwrap();
    }

    #[test]
    fn octal_escapes_of_the_mount_table_are_undone() {
        assert_eq!(unescape("/a\\040b\\134c"), "/a b\\c");
        assert_eq!(unescape("/plain"), "/plain");
        assert_eq!(unescape("/x\\9"), "/x\\9");
    }
}
