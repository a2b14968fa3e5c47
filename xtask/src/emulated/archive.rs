//! The contents of an initramfs: a cpio archive in the "newc" format of the kernel's
//! Documentation/driver-api/early-userspace/buffer-format.rst.

use std::collections::BTreeMap;

const FOLDER: u32 = 0o040_755;
const FILE: u32 = 0o100_644;
const PROGRAM: u32 = 0o100_755;
const CHARACTER_DEVICE: u32 = 0o020_600;
const LAST: &str = "TRAILER!!!";

struct Entry {
    mode: u32,
    /// Major and minor number.
    device: (u32, u32),
    bytes: Vec<u8>,
}

/// Entries by path without a slash in front. A folder sorts before what is in it, as the format demands.
#[derive(Default)]
pub(super) struct Archive(BTreeMap<String, Entry>);

impl Archive {
    pub(super) fn folder(&mut self, path: &str) {
        self.add(path, FOLDER, (0, 0), &[]);
    }

    pub(super) fn file(&mut self, path: &str, bytes: &[u8]) {
        self.add(path, FILE, (0, 0), bytes);
    }

    pub(super) fn program(&mut self, path: &str, bytes: &[u8]) {
        self.add(path, PROGRAM, (0, 0), bytes);
    }

    pub(super) fn character_device(&mut self, path: &str, major: u32, minor: u32) {
        self.add(path, CHARACTER_DEVICE, (major, minor), &[]);
    }

    /// Adds the folders above too.
    fn add(&mut self, path: &str, mode: u32, device: (u32, u32), bytes: &[u8]) {
        let path = path.trim_start_matches('/');
        for (at, _) in path.match_indices('/') {
            self.0.entry(path[..at].to_owned()).or_insert_with(|| Entry {
                mode: FOLDER,
                device: (0, 0),
                bytes: Vec::new(),
            });
        }
        self.0.insert(path.to_owned(), Entry { mode, device, bytes: bytes.to_vec() });
    }

    pub(super) fn finish(self) -> Vec<u8> {
        let mut archive = Vec::new();
        for (number, (path, entry)) in (1..).zip(&self.0) {
            append(&mut archive, number, path, entry);
        }
        append(&mut archive, 0, LAST, &Entry { mode: 0, device: (0, 0), bytes: Vec::new() });
        archive
    }
}

fn append(archive: &mut Vec<u8>, number: u32, path: &str, entry: &Entry) {
    let size = u32::try_from(entry.bytes.len()).expect("files of an initramfs are small");
    let name_size = u32::try_from(path.len() + 1).expect("paths are short");
    let (major, minor) = entry.device;
    // Inode, mode, user, group, links, time, size, device of the file system, device, size of the name, checksum.
    let fields = [number, entry.mode, 0, 0, 1, 0, size, 0, 0, major, minor, name_size, 0];
    archive.extend(b"070701");
    for field in fields {
        archive.extend(format!("{field:08x}").bytes());
    }
    archive.extend(path.bytes());
    archive.push(0);
    pad(archive);
    archive.extend(&entry.bytes);
    pad(archive);
}

/// Headers and contents begin at multiples of four.
fn pad(archive: &mut Vec<u8>) {
    archive.resize(archive.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(field: &[u8]) -> usize {
        usize::from_str_radix(std::str::from_utf8(field).expect("digits"), 16).expect("a hexadecimal number")
    }

    /// Path, mode and contents of each entry, as the kernel's unpacker finds them.
    fn unpack(archive: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut entries = Vec::new();
        let mut at = 0;
        loop {
            assert_eq!(&archive[at..at + 6], b"070701");
            let field = |index: usize| number(&archive[at + 6 + index * 8..at + 14 + index * 8]);
            let (mode, size, name_size) = (field(1) as u32, field(6), field(11));
            let name =
                String::from_utf8(archive[at + 110..at + 110 + name_size - 1].to_vec()).expect("a name");
            let bytes_at = (at + 110 + name_size).next_multiple_of(4);
            if name == LAST {
                return entries;
            }
            entries.push((name, mode, archive[bytes_at..bytes_at + size].to_vec()));
            at = (bytes_at + size).next_multiple_of(4);
        }
    }

    #[test]
    fn files_come_after_the_folders_that_they_are_in() {
        let mut archive = Archive::default();
        archive.program("/usr/bin/ip", b"program");
        archive.file("lib/a", b"");
        archive.folder("lib");
        let entry = |path: &str, mode, bytes: &[u8]| (path.to_owned(), mode, bytes.to_vec());
        assert_eq!(
            unpack(&archive.finish()),
            [
                entry("lib", FOLDER, b""),
                entry("lib/a", FILE, b""),
                entry("usr", FOLDER, b""),
                entry("usr/bin", FOLDER, b""),
                entry("usr/bin/ip", PROGRAM, b"program"),
            ]
        );
    }

    #[test]
    fn a_device_has_its_numbers() {
        let mut archive = Archive::default();
        archive.character_device("dev/console", 5, 1);
        let bytes = archive.finish();
        let console = &bytes[116..];
        assert_eq!(&console[..6], b"070701");
        assert_eq!((number(&console[6 + 9 * 8..][..8]), number(&console[6 + 10 * 8..][..8])), (5, 1));
    }
}
