//! Writes a set of files so that a reader sees all of the old or all of the new.
//!
//! ```text
//!   key -> ..data/key          what containers open
//!   ..data -> ..2026_11_21_10_00_00.123456789
//!   ..2026_11_21_10_00_00.123456789/key
//! ```
//! A new directory is filled, then `..data` is replaced by rename(2).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown, symlink};
use std::path::{Component, Path};

use jiff::Timestamp;

const DATA: &str = "..data";
const DATA_NEXT: &str = "..data_tmp";
const PATH_BYTES_MAX: usize = 4096;
const NAME_BYTES_MAX: usize = 255;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    pub content: Vec<u8>,
    pub mode: u32,
    /// Owner of the file, where it is not root.
    pub uid: Option<u32>,
}

/// Files by relative path, parts separated by `/`.
pub type Files = BTreeMap<String, File>;

/// Makes `directory` show exactly `files`. `group` (fsGroup) owns them and may read them. Returns whether anything
/// changed.
///
/// # Errors
/// A path that leaves the directory or that the writer needs for itself is `InvalidInput`; otherwise what the file
/// system says, the old content still in place.
pub fn write(directory: &Path, files: &Files, group: Option<u32>, now: Timestamp) -> io::Result<bool> {
    for path in files.keys() {
        validate(path)?;
    }
    let current = fs::read_link(directory.join(DATA)).ok();
    if let Some(current) = &current
        && matches(&directory.join(current), files, group)?
    {
        link_names(directory, files)?;
        return Ok(false);
    }
    let name = fresh_name(directory, now);
    let next = directory.join(&name);
    fill(&next, files, group)?;
    let link = directory.join(DATA_NEXT);
    remove_if_present(&link)?;
    symlink(&name, &link)?;
    fs::rename(&link, directory.join(DATA))?;
    link_names(directory, files)?;
    if let Some(old) = current.filter(|old| old.as_os_str() != name.as_str()) {
        let _ = fs::remove_dir_all(directory.join(old));
    }
    Ok(true)
}

fn invalid(path: &str, why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("path \"{path}\" in a volume {why}"))
}

fn validate(path: &str) -> io::Result<()> {
    if path.is_empty() || path.len() > PATH_BYTES_MAX {
        return Err(invalid(path, "is empty or too long"));
    }
    for component in Path::new(path).components() {
        match component {
            Component::Normal(name) if name.len() <= NAME_BYTES_MAX => {}
            Component::Normal(_) => return Err(invalid(path, "has a part longer than 255 bytes")),
            Component::RootDir | Component::Prefix(_) => return Err(invalid(path, "must be relative")),
            Component::ParentDir | Component::CurDir => return Err(invalid(path, "must not contain '..'")),
        }
    }
    if path.starts_with("..") {
        return Err(invalid(path, "must not start with '..'"));
    }
    Ok(())
}

fn fresh_name(directory: &Path, now: Timestamp) -> String {
    let stamp = now.strftime("..%Y_%m_%d_%H_%M_%S").to_string();
    let mut fraction = now.subsec_nanosecond();
    loop {
        let name = format!("{stamp}.{fraction:09}");
        if !directory.join(&name).exists() {
            return name;
        }
        fraction += 1;
    }
}

fn remove_if_present(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn effective_mode(mode: u32, group: Option<u32>) -> u32 {
    // The group reads what the owner reads: upstream ors 0440 into files of volumes with an fsGroup.
    if group.is_some() { mode | 0o440 } else { mode }
}

fn matches(directory: &Path, files: &Files, group: Option<u32>) -> io::Result<bool> {
    let mut present = BTreeSet::new();
    collect(directory, directory, &mut present)?;
    if present.len() != files.len() || !files.keys().all(|path| present.contains(path)) {
        return Ok(false);
    }
    for (path, file) in files {
        let at = directory.join(path);
        let mode = fs::metadata(&at)?.permissions().mode() & 0o7777;
        if mode != effective_mode(file.mode, group) || fs::read(&at)? != file.content {
            return Ok(false);
        }
    }
    Ok(true)
}

fn collect(root: &Path, directory: &Path, present: &mut BTreeSet<String>) -> io::Result<()> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            collect(root, &entry.path(), present)?;
        } else if let Ok(relative) = entry.path().strip_prefix(root) {
            present.insert(relative.to_string_lossy().into_owned());
        }
    }
    Ok(())
}

fn fill(directory: &Path, files: &Files, group: Option<u32>) -> io::Result<()> {
    fs::DirBuilder::new().mode(0o755).create(directory)?;
    set_directory(directory, group)?;
    for (path, file) in files {
        let at = directory.join(path);
        let mut parent = directory.to_path_buf();
        for component in Path::new(path).parent().into_iter().flat_map(Path::components) {
            parent.push(component);
            if !parent.is_dir() {
                fs::DirBuilder::new().mode(0o755).create(&parent)?;
                set_directory(&parent, group)?;
            }
        }
        let mut handle = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&at)?;
        io::Write::write_all(&mut handle, &file.content)?;
        if group.is_some() || file.uid.is_some() {
            chown(&at, file.uid, group)?;
        }
        // After chown, which clears set-id bits; and beyond the umask.
        handle.set_permissions(fs::Permissions::from_mode(effective_mode(file.mode, group)))?;
    }
    Ok(())
}

fn set_directory(directory: &Path, group: Option<u32>) -> io::Result<()> {
    let mode = if group.is_some() { 0o2775 } else { 0o755 };
    if group.is_some() {
        chown(directory, None, group)?;
    }
    fs::set_permissions(directory, fs::Permissions::from_mode(mode))
}

/// Gives every first path part its link through `..data`, and takes away links of parts that are gone.
fn link_names(directory: &Path, files: &Files) -> io::Result<()> {
    let wanted: BTreeSet<&str> = files.keys().filter_map(|path| path.split('/').next()).collect();
    for name in &wanted {
        let link = directory.join(name);
        let target = Path::new(DATA).join(name);
        match fs::read_link(&link) {
            Ok(found) if found == target => {}
            Ok(_) => {
                fs::remove_file(&link)?;
                symlink(&target, &link)?;
            }
            Err(_) => symlink(&target, &link)?,
        }
    }
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with("..") && !wanted.contains(name.as_str()) && entry.file_type()?.is_symlink() {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(content: &str) -> File {
        File { content: content.into(), mode: 0o644, uid: None }
    }

    fn files(list: &[(&str, &str)]) -> Files {
        list.iter().map(|(path, content)| ((*path).to_owned(), file(content))).collect()
    }

    fn shown(directory: &Path) -> BTreeMap<String, String> {
        let mut present = BTreeSet::new();
        collect(&directory.join(DATA), &directory.join(DATA), &mut present).unwrap();
        present
            .into_iter()
            .map(|path| {
                let content = fs::read_to_string(directory.join(&path)).unwrap();
                (path, content)
            })
            .collect()
    }

    fn now(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_second_write_replaces_all_and_leaves_one_directory() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        assert!(write(root, &files(&[("a", "1"), ("d/b", "2")]), None, now(1)).unwrap());
        assert_eq!(fs::read_link(root.join("d")).unwrap(), Path::new("..data/d"));
        assert!(write(root, &files(&[("a", "3"), ("c", "4")]), None, now(2)).unwrap());
        assert_eq!(shown(root), BTreeMap::from([("a".into(), "3".into()), ("c".into(), "4".into())]));
        assert!(fs::symlink_metadata(root.join("d")).is_err());
        let directories = fs::read_dir(root).unwrap().filter(|e| e.as_ref().unwrap().path().is_dir());
        let names: Vec<_> = directories.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        assert_eq!(names.iter().filter(|name| name.starts_with("..1970")).count(), 1, "{names:?}");
    }

    #[test]
    fn the_same_content_is_not_written_again() {
        let directory = tempfile::tempdir().unwrap();
        let wanted = files(&[("a", "1")]);
        assert!(write(directory.path(), &wanted, None, now(1)).unwrap());
        let before = fs::read_link(directory.path().join(DATA)).unwrap();
        assert!(!write(directory.path(), &wanted, None, now(2)).unwrap());
        assert_eq!(fs::read_link(directory.path().join(DATA)).unwrap(), before);
        let mut other_mode = wanted;
        other_mode.get_mut("a").unwrap().mode = 0o400;
        assert!(write(directory.path(), &other_mode, None, now(3)).unwrap());
    }

    #[test]
    fn paths_that_leave_the_volume_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        for path in ["../a", "a/../../b", "/etc/passwd", "", "..data", "..x/y"] {
            let error = write(directory.path(), &files(&[(path, "1")]), None, now(1)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{path}");
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    proptest! {
        #[test]
        fn what_is_shown_is_always_what_was_written_last(
            rounds in prop::collection::vec(prop::collection::btree_map("[a-c]{1,2}", "[x-z]{0,3}", 0..5), 1..6)
        ) {
            let directory = tempfile::tempdir().unwrap();
            for (round, wanted) in rounds.iter().enumerate() {
                let list: Vec<(&str, &str)> = wanted.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
                write(directory.path(), &files(&list), None, now(round as i64)).unwrap();
                prop_assert_eq!(&shown(directory.path()), wanted);
            }
        }
    }
}
