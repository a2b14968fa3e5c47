//! UDP sockets that a Service connected to a backend which is gone.
//!
//! Such a socket asks no program again: by itself it would send to nobody until its owner gives up. The programs keep
//! each by its cookie for as long as it lives, so that exactly these are found: their owners' calls fail with
//! ECONNABORTED, and they connect again. A socket that was connected to the backend's own address is not among them,
//! nor is one by way of another Service that still has the backend. Unconnected sockets choose again at their next
//! datagram and are left alone.
//!
//! One run serves any number of changes. It reads one map, and enters only namespaces that have such a socket.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket},
    os::fd::AsRawFd,
    path::{Path, PathBuf},
};

use ebpf_common::{Backend, BackendId, ConnectedSocket, maps};

use crate::{
    maps::{MapError, PinnedMap},
    namespaces::{self, Namespaces},
    netlink::Socket,
    sock_diag::{self, Family, NETLINK_SOCK_DIAG},
};

#[derive(Debug, thiserror::Error)]
pub enum StaleError {
    #[error(transparent)]
    Map(#[from] MapError),
    #[error("opening a socket for the diagnosis of sockets")]
    Open(#[source] io::Error),
    #[error("listing the connected UDP sockets of a network namespace")]
    List(#[source] io::Error),
    #[error("destroying a UDP socket whose backend is gone")]
    Destroy(#[source] io::Error),
}

/// Why sockets of removed backends cannot be ended on this machine.
#[derive(Debug, thiserror::Error)]
pub enum Missing {
    #[error("the kernel does not list UDP sockets (CONFIG_INET_UDP_DIAG)")]
    Listing,
    #[error("the kernel does not destroy sockets (CONFIG_INET_DIAG_DESTROY)")]
    Destroying,
    #[error("whether the kernel destroys sockets could not be tried: {0}")]
    Untried(io::Error),
}

/// What a run saw and did, in sockets.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Destroyed {
    /// Connected by way of any Service.
    pub connected: usize,
    /// Those whose backend is gone.
    pub stale: usize,
    pub destroyed: usize,
    /// In namespaces that nothing leads to.
    pub unreachable: usize,
    /// Namespaces whose sockets were listed.
    pub namespaces: usize,
}

type ByCookie = HashMap<u64, ConnectedSocket>;

#[derive(Debug)]
pub struct StaleSockets {
    directory: PathBuf,
    sockets_map: PinnedMap<u64, ConnectedSocket>,
    backends_map: PinnedMap<BackendId, Backend>,
    namespaces: Namespaces,
}

impl StaleSockets {
    /// # Errors
    /// Where no agent has pinned the maps in `directory`.
    pub fn open(directory: &Path) -> Result<Self, MapError> {
        Ok(Self {
            directory: directory.to_owned(),
            sockets_map: PinnedMap::open(directory, maps::SOCKETS_CONNECTED)?,
            backends_map: PinnedMap::open(directory, maps::BACKENDS)?,
            namespaces: Namespaces::default(),
        })
    }

    /// Ends every socket whose backend is not in the map of backends any more. To be called in the node's network
    /// namespace, some milliseconds after backends went: a call that found one before may be about to say so.
    ///
    /// # Errors
    /// What was not reached before the error is found again by the next run.
    pub fn destroy(&mut self) -> Result<Destroyed, StaleError> {
        // Others may have taken their place.
        self.sockets_map = PinnedMap::open(&self.directory, maps::SOCKETS_CONNECTED)?;
        self.backends_map = PinnedMap::open(&self.directory, maps::BACKENDS)?;
        let connected = self.sockets_map.read_all()?;
        let mut done = Destroyed { connected: connected.len(), ..Destroyed::default() };
        let stale = self.stale_by_namespace(connected)?;
        let wanted: BTreeSet<u64> = stale.keys().copied().collect();
        if wanted.is_empty() {
            return Ok(done);
        }
        let mut diagnosis = self.namespaces.sockets(NETLINK_SOCK_DIAG, &wanted).map_err(StaleError::Open)?;
        done.namespaces = diagnosis.len();
        for (namespace, sockets) in &stale {
            done.stale += sockets.len();
            match diagnosis.get_mut(namespace) {
                Some(socket) => done.destroyed += self.destroy_in(socket, sockets)?,
                None => done.unreachable += sockets.len(),
            }
            self.forget(sockets)?;
        }
        Ok(done)
    }

    fn stale_by_namespace(
        &self,
        connected: Vec<(u64, ConnectedSocket)>,
    ) -> Result<BTreeMap<u64, ByCookie>, MapError> {
        let mut is_present: HashMap<BackendId, bool> = HashMap::new();
        let mut stale: BTreeMap<u64, ByCookie> = BTreeMap::new();
        for (cookie, socket) in connected {
            let id = socket.backend_id;
            let present = match is_present.get(&id) {
                Some(present) => *present,
                None => {
                    let present = self.backends_map.get(&id)?.is_some();
                    is_present.insert(id, present);
                    present
                }
            };
            if !present {
                stale.entry(socket.netns_cookie).or_default().insert(cookie, socket);
            }
        }
        Ok(stale)
    }

    fn destroy_in(&self, diagnosis: &mut Socket, sockets: &ByCookie) -> Result<usize, StaleError> {
        let mut destroyed = 0;
        for family in Family::BOTH {
            // IPv6 sockets reach IPv4 backends too, and not the other way round.
            if family == Family::V4 && !sockets.values().any(|socket| socket.address.is_v4()) {
                continue;
            }
            for found in sock_diag::connected(diagnosis, family).map_err(StaleError::List)? {
                let Some(socket) = sockets.get(&found.cookie) else { continue };
                // Meanwhile its owner may have connected it elsewhere, or to the same address without a Service.
                if found.peer != (socket.address, socket.port)
                    || self.sockets_map.get(&found.cookie)?.as_ref() != Some(socket)
                {
                    continue;
                }
                match sock_diag::destroy(diagnosis, &found) {
                    Ok(()) => destroyed += 1,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(StaleError::Destroy(error)),
                }
            }
        }
        Ok(destroyed)
    }

    /// What was ended, and what was no longer connected, need not be found again.
    fn forget(&self, sockets: &ByCookie) -> Result<(), MapError> {
        for (cookie, socket) in sockets {
            if self.sockets_map.get(cookie)?.as_ref() == Some(socket) {
                self.sockets_map.remove(cookie)?;
            }
        }
        Ok(())
    }
}

/// Tries on a socket of its own whether the kernel can do what [`StaleSockets::destroy`] needs.
///
/// # Errors
/// What is missing.
pub fn probe() -> Result<(), Missing> {
    let loopback = |ip: IpAddr| -> io::Result<(UdpSocket, Family)> {
        let socket = UdpSocket::bind((ip, 0))?;
        socket.connect(socket.local_addr()?)?;
        Ok((socket, if ip.is_ipv4() { Family::V4 } else { Family::V6 }))
    };
    let (socket, family) = loopback(Ipv4Addr::LOCALHOST.into())
        .or_else(|_| loopback(Ipv6Addr::LOCALHOST.into()))
        .map_err(Missing::Untried)?;
    let cookie = namespaces::option(socket.as_raw_fd(), libc::SO_COOKIE).map_err(Missing::Untried)?;
    let listed = Socket::of_family(NETLINK_SOCK_DIAG).and_then(|mut diagnosis| {
        let sockets = sock_diag::connected(&mut diagnosis, family)?;
        Ok((diagnosis, sockets))
    });
    let (mut diagnosis, sockets) = listed.map_err(|error| missing(error, Missing::Listing))?;
    let found = sockets.iter().find(|found| found.cookie == cookie).ok_or(Missing::Listing)?;
    sock_diag::destroy(&mut diagnosis, found).map_err(|error| missing(error, Missing::Destroying))
}

/// The kernel's ways to say that it has no such thing; anything else says nothing about that.
fn missing(error: io::Error, what: Missing) -> Missing {
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::EOPNOTSUPP | libc::EPROTONOSUPPORT) => what,
        Some(_) => Missing::Untried(error),
        // An answer that the netlink socket turned into a text.
        None if error.kind() == io::ErrorKind::NotFound => what,
        None => Missing::Untried(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_has_not_is_told_from_what_it_refused() {
        let of = |errno| missing(io::Error::from_raw_os_error(errno), Missing::Destroying).to_string();
        let unsupported = "the kernel does not destroy sockets (CONFIG_INET_DIAG_DESTROY)";
        assert_eq!(of(libc::EOPNOTSUPP), unsupported);
        assert_eq!(of(libc::EPROTONOSUPPORT), unsupported);
        assert!(of(libc::EPERM).starts_with("whether the kernel destroys sockets could not be tried: "));
    }
}
