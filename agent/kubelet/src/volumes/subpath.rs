//! `subPath` of a volume mount: a path inside a volume, found without ever leaving it.
//!
//! Each part is opened relative to the one before (openat2, no symlink may lead out of the volume), so that a
//! container that shares the volume cannot point the mount at the host.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

/// The host path of `sub_path` in `volume`. A missing directory is made, 0750 as upstream.
pub fn resolve(volume: &Path, sub_path: &str) -> io::Result<PathBuf> {
    let relative = Path::new(sub_path);
    let parts = relative.components().collect::<Vec<_>>();
    if parts.iter().any(|part| !matches!(part, Component::Normal(_) | Component::CurDir)) {
        let text = format!("subPath \"{sub_path}\" must be a relative path and must not contain '..'");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    let root = fs::File::open(volume)?;
    let mut at = PathBuf::new();
    for part in parts {
        at.push(part);
        if let Err(error) = open_beneath(&root, &at) {
            if error.kind() != io::ErrorKind::NotFound {
                return Err(outside(sub_path, error));
            }
            let parent = at.parent().filter(|parent| !parent.as_os_str().is_empty());
            let parent = match parent {
                Some(parent) => open_beneath(&root, parent)?,
                None => root.try_clone()?.into(),
            };
            let name = at.file_name().unwrap_or_default();
            let target = Path::new("/proc/self/fd").join(parent.as_raw_fd().to_string()).join(name);
            fs::DirBuilder::new().create(target)?;
        }
    }
    let found = open_beneath(&root, &at)?;
    fs::read_link(format!("/proc/self/fd/{}", found.as_raw_fd()))
}

fn outside(sub_path: &str, error: io::Error) -> io::Error {
    if error.raw_os_error() == Some(libc::EXDEV) || error.raw_os_error() == Some(libc::ELOOP) {
        let text = format!("subPath \"{sub_path}\" leads out of its volume");
        return io::Error::new(io::ErrorKind::InvalidInput, text);
    }
    error
}

fn open_beneath(root: &fs::File, path: &Path) -> io::Result<OwnedFd> {
    let text = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let text = CString::new(text.as_os_str().as_encoded_bytes())?;
    // SAFETY: open_how is plain numbers, for which zero is a value.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = (libc::O_PATH | libc::O_CLOEXEC) as u64;
    how.resolve = libc::RESOLVE_BENEATH | libc::RESOLVE_NO_MAGICLINKS;
    // SAFETY: the pointers are to live values of the sizes given, and the kernel only reads them.
    let descriptor = unsafe {
        libc::syscall(
            libc::SYS_openat2,
            root.as_raw_fd(),
            text.as_ptr(),
            &raw const how,
            size_of::<libc::open_how>(),
        )
    };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    let descriptor = i32::try_from(descriptor).map_err(io::Error::other)?;
    // SAFETY: the call gave us a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn directories_are_made_and_links_inside_are_followed() {
        let volume = tempfile::tempdir().unwrap();
        let root = volume.path().canonicalize().unwrap();
        assert_eq!(resolve(&root, "a/b").unwrap(), root.join("a/b"));
        assert!(root.join("a/b").is_dir());
        fs::write(root.join("a/file"), "x").unwrap();
        symlink("a/file", root.join("link")).unwrap();
        assert_eq!(resolve(&root, "link").unwrap(), root.join("a/file"));
        assert_eq!(resolve(&root, "./a").unwrap(), root.join("a"));
    }

    #[test]
    fn nothing_leads_out_of_the_volume() {
        let volume = tempfile::tempdir().unwrap();
        symlink("/etc", volume.path().join("absolute")).unwrap();
        symlink("../..", volume.path().join("up")).unwrap();
        for path in ["../x", "a/../../x", "/etc", "absolute/passwd", "absolute", "up"] {
            assert!(resolve(volume.path(), path).is_err(), "{path}");
        }
        assert!(!volume.path().join("a").exists());
    }
}
