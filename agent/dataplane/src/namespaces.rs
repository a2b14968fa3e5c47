//! Network namespaces of this machine, found by the cookies that the programs know them by.
//!
//! A namespace has no name: what leads to it is a process in it, or a mount. A place that was right once is tried first
//! and checked; only where it is wrong, all places are looked at. No descriptor of a namespace is kept: it would keep
//! a dead pod's links alive.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, AsRawFd, RawFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
};

use nix::sched::{CloneFlags, setns};

use crate::netlink::Socket;

#[derive(Debug, Default)]
pub(crate) struct Namespaces {
    place_by_cookie: HashMap<u64, PathBuf>,
}

impl Namespaces {
    /// Opens a netlink socket in each of the namespaces that can be found.
    ///
    /// # Errors
    /// Where not even the caller's own namespace can be asked.
    pub(crate) fn sockets(
        &mut self,
        family: libc::c_int,
        wanted: &BTreeSet<u64>,
    ) -> io::Result<BTreeMap<u64, Socket>> {
        let mut found = BTreeMap::new();
        let own = Socket::of_family(family)?;
        let own_cookie = cookie_of(own.as_raw_fd())?;
        if wanted.contains(&own_cookie) {
            found.insert(own_cookie, own);
        }
        if found.len() == wanted.len() {
            return Ok(found);
        }
        std::thread::scope(|scope| {
            // The thread ends with the scope, so the namespaces that it enters are seen by nothing else.
            let searching = scope.spawn(|| self.search(family, wanted, &mut found));
            searching.join().map_err(|_| io::Error::other("the thread that enters namespaces panicked"))
        })?;
        Ok(found)
    }

    /// Opens a netlink socket in each network namespace that something leads to, one after the other.
    ///
    /// # Errors
    /// Where the thread that enters them panicked.
    pub(crate) fn visit(family: libc::c_int, mut visitor: impl FnMut(Socket) + Send) -> io::Result<()> {
        std::thread::scope(|scope| {
            let visiting = scope.spawn(move || {
                let mut seen = HashSet::new();
                for place in mounts().into_iter().chain(processes()) {
                    let Ok(metadata) = fs::metadata(&place) else { continue };
                    if seen.insert((metadata.dev(), metadata.ino()))
                        && let Ok((_, socket)) = enter(&place, family)
                    {
                        visitor(socket);
                    }
                }
            });
            visiting.join().map_err(|_| io::Error::other("the thread that enters namespaces panicked"))
        })
    }

    /// To be called on a thread of its own: it changes the thread's namespace.
    fn search(&mut self, family: libc::c_int, wanted: &BTreeSet<u64>, found: &mut BTreeMap<u64, Socket>) {
        for cookie in wanted {
            let Some(place) = self.place_by_cookie.get(cookie) else { continue };
            match enter(place, family) {
                Ok((actual, socket)) if actual == *cookie => drop(found.insert(*cookie, socket)),
                Ok(_) | Err(_) => drop(self.place_by_cookie.remove(cookie)),
            }
        }
        if found.len() == wanted.len() {
            return;
        }
        self.place_by_cookie.clear();
        let mut seen = HashSet::new();
        for place in mounts().into_iter().chain(processes()) {
            // A process may end, and a mount may go, while they are listed.
            let Ok(metadata) = fs::metadata(&place) else { continue };
            if !seen.insert((metadata.dev(), metadata.ino())) {
                continue;
            }
            let Ok((cookie, socket)) = enter(&place, family) else { continue };
            self.place_by_cookie.insert(cookie, place);
            if wanted.contains(&cookie) {
                found.entry(cookie).or_insert(socket);
            }
        }
    }
}

fn enter(place: &Path, family: libc::c_int) -> io::Result<(u64, Socket)> {
    let namespace = File::open(place)?;
    setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)?;
    let socket = Socket::of_family(family)?;
    Ok((cookie_of(socket.as_raw_fd())?, socket))
}

/// The cookie of the network namespace that a socket was opened in.
///
/// # Errors
/// Before Linux 5.14, or where it is no socket.
pub(crate) fn cookie_of(socket: RawFd) -> io::Result<u64> {
    const SO_NETNS_COOKIE: libc::c_int = 71;
    option(socket, SO_NETNS_COOKIE)
}

/// A socket's option whose value is 8 octets.
pub(crate) fn option(socket: RawFd, name: libc::c_int) -> io::Result<u64> {
    let mut value = 0u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` octets, for which there is room.
    let result =
        unsafe { libc::getsockopt(socket, libc::SOL_SOCKET, name, (&raw mut value).cast(), &raw mut length) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
}

/// Where runtimes keep namespaces by mounts, as under /run/netns.
fn mounts() -> Vec<PathBuf> {
    fs::read_to_string("/proc/self/mountinfo").map_or_else(|_| Vec::new(), |text| mounted(&text))
}

/// The places of network namespaces in the text of mountinfo (proc(5)): root, the fourth field, is `net:[NUMBER]`.
fn mounted(mountinfo: &str) -> Vec<PathBuf> {
    let place = |line: &str| {
        let mut fields = line.split(' ').skip(3);
        let (root, place) = (fields.next()?, fields.next()?);
        root.starts_with("net:[").then(|| PathBuf::from(place))
    };
    mountinfo.lines().filter_map(place).collect()
}

fn processes() -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_name().to_string_lossy().bytes().all(|byte| byte.is_ascii_digit()))
        .map(|entry| entry.path().join("ns/net"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounted_network_namespaces_are_told_from_other_mounts() {
        let text = "\
            36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw\n\
            40 35 0:4 net:[4026532281] /run/netns/cni-1 rw shared:22 - nsfs nsfs rw\n\
            41 35 0:4 mnt:[4026532282] /run/other rw - nsfs nsfs rw\n\
            42 35 0:4\n";
        assert_eq!(mounted(text), [PathBuf::from("/run/netns/cni-1")]);
    }

    #[test]
    fn the_own_process_is_among_the_places() {
        let own = PathBuf::from(format!("/proc/{}/ns/net", std::process::id()));
        assert!(processes().any(|place| place == own));
    }
}
