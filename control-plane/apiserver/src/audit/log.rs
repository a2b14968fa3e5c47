//! Events as JSON lines in a file of its own, written by a thread of its own. A file that is full is renamed with its time and
//! a new one is begun; old ones go by number and age.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    thread,
};

use jiff::Timestamp;
use tracing::{error, warn};

use super::Config;

/// Events that may wait; a request that comes when the disk is this far behind is not audited, and that is logged.
const WAITING_MAX: usize = 10_000;
const MEGABYTE: u64 = 1024 * 1024;
const SIZE_DEFAULT_MEGABYTES: u64 = 100;
/// In the names of rotated files.
const TIME_FORMAT: &str = "%Y-%m-%dT%H-%M-%S%.3f";

/// The end that events are put into.
pub(super) struct Log {
    lines: SyncSender<String>,
}

impl Log {
    pub(super) fn open(path: &Path, config: &Config) -> io::Result<Self> {
        let (lines, waiting) = sync_channel(WAITING_MAX);
        if path == Path::new("-") {
            thread::Builder::new().name("audit".to_owned()).spawn(move || print(&waiting))?;
            return Ok(Self { lines });
        }
        let file = RotatedFile::open(path, config)?;
        thread::Builder::new().name("audit".to_owned()).spawn(move || write(file, &waiting))?;
        Ok(Self { lines })
    }

    pub(super) fn append(&self, line: String) {
        if let Err(TrySendError::Full(_)) = self.lines.try_send(line) {
            warn!("the audit log is behind: an event is lost");
        }
    }
}

fn print(waiting: &Receiver<String>) {
    for line in waiting {
        // Whoever closed standard output wants no log.
        let _ = writeln!(io::stdout(), "{line}");
    }
}

fn write(mut file: RotatedFile, waiting: &Receiver<String>) {
    for line in waiting {
        if let Err(error) = file.append(&line) {
            error!(path = %file.path.display(), %error, "the audit log cannot be written");
        }
    }
}

struct RotatedFile {
    path: PathBuf,
    file: File,
    size: u64,
    size_max: u64,
    backups_max: usize,
    age_max_days: u32,
}

impl RotatedFile {
    fn open(path: &Path, config: &Config) -> io::Result<Self> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let megabytes = if config.max_size == 0 { SIZE_DEFAULT_MEGABYTES } else { config.max_size.into() };
        Ok(Self {
            path: path.to_owned(),
            size: file.metadata()?.len(),
            file,
            size_max: megabytes * MEGABYTE,
            backups_max: config.max_backups as usize,
            age_max_days: config.max_age,
        })
    }

    fn append(&mut self, line: &str) -> io::Result<()> {
        let length = line.len() as u64 + 1;
        if self.size > 0 && self.size + length > self.size_max {
            self.rotate()?;
        }
        self.file.write_all(format!("{line}\n").as_bytes())?;
        self.size += length;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        let time = Timestamp::now().strftime(TIME_FORMAT).to_string();
        fs::rename(&self.path, self.backup(&time))?;
        self.file = OpenOptions::new().create(true).append(true).open(&self.path)?;
        self.size = 0;
        self.prune()
    }

    /// `audit-TIME.log` for `audit.log`.
    fn backup(&self, time: &str) -> PathBuf {
        let text = |part: Option<&std::ffi::OsStr>| part.unwrap_or_default().to_string_lossy().into_owned();
        let (stem, extension) = (text(self.path.file_stem()), text(self.path.extension()));
        let dot = if extension.is_empty() { "" } else { "." };
        self.path.with_file_name(format!("{stem}-{time}{dot}{extension}"))
    }

    fn prune(&self) -> io::Result<()> {
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let (pattern, folder) = (self.backup("*"), folder.unwrap_or(Path::new(".")));
        let pattern = pattern.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let Some((begin, end)) = pattern.split_once('*') else { return Ok(()) };
        let mut backups: Vec<(PathBuf, String)> = fs::read_dir(folder)?
            .filter_map(|entry| entry.ok())
            .filter_map(|entry| {
                let name = entry.file_name().to_string_lossy().into_owned();
                let time = name.strip_prefix(begin)?.strip_suffix(end)?.to_owned();
                Some((entry.path(), time))
            })
            .collect();
        backups.sort_by(|left, right| right.1.cmp(&left.1));
        let oldest = Timestamp::now() - jiff::SignedDuration::from_hours(24 * i64::from(self.age_max_days));
        let oldest = oldest.strftime(TIME_FORMAT).to_string();
        for (index, (path, time)) in backups.into_iter().enumerate() {
            let too_many = self.backups_max > 0 && index >= self.backups_max;
            let too_old = self.age_max_days > 0 && time < oldest;
            if too_many || too_old {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_file_is_rotated_and_old_ones_go() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.log");
        let config = Config { max_backups: 2, max_size: 1, max_age: 1, ..Config::default() };
        fs::write(folder.path().join("audit-2020-01-01T00-00-00.000.log"), "old").unwrap();
        fs::write(folder.path().join("other.log"), "not ours").unwrap();
        let mut file = RotatedFile::open(&path, &config).unwrap();
        file.size_max = 10;
        for line in ["12345678", "abcdefgh", "ABCDEFGH"] {
            file.append(line).unwrap();
            // Names hold milliseconds: the next one must be another.
            let now = Timestamp::now();
            while Timestamp::now().as_millisecond() == now.as_millisecond() {}
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), "ABCDEFGH\n");
        let mut names: Vec<String> = fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        assert_eq!(names.len(), 4, "{names:?}");
        assert!(names[0].starts_with("audit-2") && !names[0].starts_with("audit-2020"), "{names:?}");
        assert_eq!(&names[2..], ["audit.log", "other.log"]);
    }
}
