//! Pinned maps as they are, whatever is in them: what the kernel says of each, and a walk over its elements.
//!
//! A walk holds one piece of the map at a time, however large that is, and needs no lock of anybody: elements that come
//! and go meanwhile may be missed or, rarely, seen twice. What is in an element is told by the map's name, without the
//! layout's version; a map or a layout that this agent does not know is shown as bytes.

use std::{
    fs, io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use aya::Pod;
use ebpf_common::{
    Address, Affinity, AffinityKey, Backend, BackendId, Bucket, ConnectedSocket, ConnectedStream, DropGate,
    Flow, Fragment, FragmentKey, Frontend, FrontendKey, GroupId, LocalPod, Masquerade, Node, Policed,
    Policing, PolicyFlow, Prefix, Ranges, RuleKey, Sender, ServiceCount, ServiceId, Shortcut, SlotKey,
    SocketForward, SocketKey, SocketReverse, SourceRangeKey, Tuple,
    balancing::{Piece, PieceKey},
    maps, sctp,
};

use crate::{
    bpf::{self, MapInfo},
    maps::{MapError, is_unsupported},
};

/// Elements per system call of a walk, and held at once.
const PIECE: usize = 1024;

/// Values of `enum bpf_map_type`.
const HASH: u32 = 1;
const ARRAY: u32 = 2;
const PROG_ARRAY: u32 = 3;
const PERCPU_HASH: u32 = 5;
const PERCPU_ARRAY: u32 = 6;
const LRU_HASH: u32 = 9;
const LRU_PERCPU_HASH: u32 = 10;
const LPM_TRIE: u32 = 11;
const ARRAY_OF_MAPS: u32 = 12;
const HASH_OF_MAPS: u32 = 13;
const RINGBUF: u32 = 27;

/// A pinned map.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MapStatus {
    pub name: String,
    /// As bpftool calls it.
    pub kind: String,
    pub key_bytes: u32,
    /// Of one CPU's value in maps that have one for each.
    pub value_bytes: u32,
    /// `None` for a ring buffer.
    pub entries: Option<u64>,
    /// In elements; of a ring buffer, in bytes.
    pub capacity: u32,
    /// What the kernel accounts for it.
    pub memory_bytes: Option<u64>,
    /// The layout's version, from the name.
    pub layout: Option<u32>,
    pub path: PathBuf,
}

/// One element, with the types of its map.
#[derive(Clone, PartialEq, Debug)]
pub enum Element {
    Frontend(FrontendKey, Frontend),
    Slot(SlotKey, BackendId),
    Backend(BackendId, Backend),
    TablePiece(PieceKey, Box<Piece>),
    /// Its connections from this node.
    Open(BackendId, i64),
    /// A socket, by cookie, and the backend that it is counted with.
    SocketCounted(u64, BackendId),
    /// Not 0 once a socket was counted.
    Counting(u32),
    Affinity(AffinityKey, Affinity),
    SocketForward(SocketKey, SocketForward),
    SocketReverse(SocketKey, SocketReverse),
    Socket(u64, ConnectedSocket),
    /// A place, which may be empty.
    Stream(u32, ConnectedStream),
    /// As above.
    Sender(u32, Sender),
    Flow(Tuple, Flow),
    Fragment(FragmentKey, Fragment),
    /// Index, and the sum over all CPUs.
    Counter(u32, u64),
    Node(Node),
    NodeAddress(Address),
    Pod(Address, LocalPod),
    /// Not 0 where clients beyond the node may have flows.
    Beyond(u32),
    /// Place, and the id of the program in it.
    Call(u32, u32),
    /// How many frontends it has.
    Address(Address, u32),
    Ranges(Ranges),
    /// Whom a Service serves.
    SourceRange(SourceRangeKey),
    /// For each CPU.
    Buckets(Vec<Bucket>),
    /// For each CPU.
    DropGates(Vec<DropGate>),
    /// Until when drops are told, by CLOCK_MONOTONIC in nanoseconds.
    DropsFollowed(u64),
    /// The sum over all CPUs.
    ServiceCount(ServiceId, ServiceCount),
    Masquerade(Masquerade),
    /// Where pods are seen under their own addresses.
    Unmasqueraded(Prefix),
    /// A datagram from outside of the cluster to a pod, and when the last of either direction was seen.
    Inbound(Tuple, u64),
    Shortcut(Tuple, Shortcut),
    /// A next hop, and when the kernel was last made to ask after it.
    Neighbour(Address, u64),
    /// What a client sends, and the verification tags of its association.
    SctpTags(Tuple, sctp::Tags),
    Policing(Policing),
    /// The link of a pod, and what isolates that.
    Policed(u32, Policed),
    Peer(Prefix, GroupId),
    Rule(RuleKey),
    /// What a policed pod sends of a connection that was allowed.
    PolicyFlow(Tuple, PolicyFlow),
    Bytes(Vec<u8>, Vec<u8>),
}

impl Element {
    /// The addresses in it.
    pub fn addresses(&self) -> Vec<Address> {
        match self {
            Self::Frontend(key, _) => vec![key.address],
            Self::Backend(_, backend) => vec![backend.address],
            Self::Affinity(key, _) => key.client().into_iter().collect(),
            Self::SocketForward(key, _) => vec![key.address],
            Self::SocketReverse(key, value) => vec![key.address, value.address],
            Self::Socket(_, socket) => vec![socket.address, socket.frontend],
            Self::Stream(_, stream) => vec![stream.address, stream.frontend],
            Self::Flow(tuple, flow) => {
                vec![tuple.source, tuple.destination, flow.translated.source, flow.translated.destination]
            }
            Self::Fragment(key, value) => vec![key.source, key.destination, value.source, value.destination],
            Self::Inbound(tuple, _) | Self::SctpTags(tuple, _) | Self::PolicyFlow(tuple, _) => {
                vec![tuple.source, tuple.destination]
            }
            Self::Shortcut(tuple, to) => vec![tuple.source, tuple.destination, to.source, to.destination],
            Self::Node(node) => vec![node.source_v4, node.source_v6],
            Self::NodeAddress(address)
            | Self::Pod(address, _)
            | Self::Address(address, _)
            | Self::Neighbour(address, _) => vec![*address],
            Self::Slot(..)
            | Self::TablePiece(..)
            | Self::Open(..)
            | Self::Sender(..)
            | Self::SocketCounted(..)
            | Self::Counting(_)
            | Self::Counter(..)
            | Self::Call(..)
            | Self::Beyond(_)
            | Self::Ranges(_)
            | Self::SourceRange(_)
            | Self::Buckets(_)
            | Self::DropGates(_)
            | Self::DropsFollowed(_)
            | Self::ServiceCount(..)
            | Self::Masquerade(_)
            | Self::Unmasqueraded(_)
            | Self::Policing(_)
            | Self::Policed(..)
            | Self::Peer(..)
            | Self::Rule(_)
            | Self::Bytes(..) => Vec::new(),
        }
    }

    /// Whether it is the place of an array that nobody has taken.
    fn is_vacant(&self) -> bool {
        match self {
            Self::Stream(_, stream) => stream.cookie == 0,
            Self::Sender(_, sender) => *sender == Sender(0),
            _ => false,
        }
    }

    fn decode(name: &str, key: &[u8], value: &[u8]) -> Self {
        let known = match name {
            maps::FRONTENDS => both(key, value, Self::Frontend),
            maps::SLOTS => both(key, value, Self::Slot),
            maps::BACKENDS => both(key, value, Self::Backend),
            maps::OPEN => both(key, value, Self::Open),
            maps::SOCKETS_COUNTED => both(key, value, Self::SocketCounted),
            maps::COUNTING => read(value).map(Self::Counting),
            maps::TABLES => both(key, value, |key, piece| Self::TablePiece(key, Box::new(piece))),
            maps::AFFINITY => both(key, value, Self::Affinity),
            maps::SOCKET_FORWARD => both(key, value, Self::SocketForward),
            maps::SOCKET_REVERSE => both(key, value, Self::SocketReverse),
            maps::SOCKETS_CONNECTED => both(key, value, Self::Socket),
            maps::STREAMS_CONNECTED => both(key, value, Self::Stream),
            maps::SENDERS => both(key, value, Self::Sender),
            maps::CONNTRACK => both(key, value, Self::Flow),
            maps::FRAGMENTS => both(key, value, Self::Fragment),
            maps::COUNTERS => {
                let sum = value.chunks(8).filter_map(read::<u64>).sum();
                read(key).map(|index| Self::Counter(index, sum))
            }
            maps::NODE => read(value).map(Self::Node),
            maps::NODE_ADDRESSES => read(key).map(Self::NodeAddress),
            maps::PODS => both(key, value, Self::Pod),
            maps::BEYOND => read(value).map(Self::Beyond),
            maps::CALLS => both(key, value, Self::Call),
            maps::ADDRESSES => both(key, value, Self::Address),
            maps::RANGES | maps::POD_RANGES => read(value).map(Self::Ranges),
            maps::SOURCE_RANGES => read(key).map(Self::SourceRange),
            maps::ANSWERS => Some(Self::Buckets(value.chunks(16).filter_map(read).collect())),
            maps::DROP_GATES => Some(Self::DropGates(value.chunks(24).filter_map(read).collect())),
            maps::DROPS_FOLLOWED => read(value).map(Self::DropsFollowed),
            maps::SERVICE_COUNTS => {
                let sum = value.chunks(size_of::<ServiceCount>()).filter_map(read).sum();
                read(key).map(|id| Self::ServiceCount(id, sum))
            }
            maps::MASQUERADE => read(value).map(Self::Masquerade),
            maps::UNMASQUERADED => read(key).map(Self::Unmasqueraded),
            maps::SCTP_TAGS => both(key, value, Self::SctpTags),
            maps::INBOUND => both(key, value, Self::Inbound),
            maps::SHORTCUTS => both(key, value, Self::Shortcut),
            maps::NEIGHBOURS => both(key, value, Self::Neighbour),
            maps::POLICING => read(value).map(Self::Policing),
            maps::POLICED => both(key, value, Self::Policed),
            maps::PEERS => both(key, value, Self::Peer),
            maps::RULES => read(key).map(Self::Rule),
            maps::POLICY_FLOWS => both(key, value, Self::PolicyFlow),
            _ => None,
        };
        known.unwrap_or_else(|| Self::Bytes(key.to_vec(), value.to_vec()))
    }
}

fn both<K: Pod, V: Pod>(key: &[u8], value: &[u8], element: impl FnOnce(K, V) -> Element) -> Option<Element> {
    Some(element(read(key)?, read(value)?))
}

pub(crate) fn read<T: Pod>(bytes: &[u8]) -> Option<T> {
    // SAFETY: as many bytes as a T has, of which any are valid.
    (bytes.len() == size_of::<T>()).then(|| unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

pub(crate) fn as_bytes<T: Pod>(value: &T) -> &[u8] {
    // SAFETY: a Pod has no padding.
    unsafe { std::slice::from_raw_parts(core::ptr::from_ref(value).cast(), size_of::<T>()) }
}

/// The map that `wanted` names: the whole name, or the name without the version, in either case.
pub fn find<'a>(names: &'a [String], wanted: &str) -> Option<&'a str> {
    let is_wanted = |name: &&String| {
        name.eq_ignore_ascii_case(wanted) || split_version(name).0.eq_ignore_ascii_case(wanted)
    };
    names.iter().filter(is_wanted).max_by_key(|name| split_version(name).1).map(String::as_str)
}

/// `SLOTS_1` is `SLOTS` in layout 1.
pub(crate) fn split_version(name: &str) -> (&str, Option<u32>) {
    match name.rsplit_once('_').map(|(base, version)| (base, version.parse().ok())) {
        Some((base, Some(version))) => (base, Some(version)),
        _ => (name, None),
    }
}

/// The names of the maps that are pinned in `directory`, in order.
pub fn names(directory: &Path) -> Result<Vec<String>, MapError> {
    let failed = |source| MapError::Open { path: directory.to_owned(), source };
    let entries =
        fs::read_dir(directory).and_then(Iterator::collect::<io::Result<Vec<_>>>).map_err(failed)?;
    let mut names: Vec<String> =
        entries.iter().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    Ok(names)
}

/// Every map that is pinned in `directory`. Elements are counted by walking over them.
pub fn list(directory: &Path) -> Result<Vec<MapStatus>, MapError> {
    names(directory)?.iter().map(|name| Walk::open(directory, name)?.status()).collect()
}

/// A way through a pinned map.
#[derive(Debug)]
pub struct Walk {
    name: String,
    path: PathBuf,
    fd: OwnedFd,
    info: MapInfo,
    /// Bytes that the kernel gives for one value.
    value_size: usize,
    next: Next,
    keys: Vec<u8>,
    values: Vec<u8>,
    /// Elements in `keys` and `values`.
    filled: usize,
}

#[derive(Clone, Debug)]
enum Next {
    /// In batches; `None` at the start.
    Batch(Option<u32>),
    /// After this key, and at most so many more: a key that was deleted begins the walk anew.
    Key(Option<Vec<u8>>, u64),
    End,
}

impl Walk {
    /// # Errors
    /// Where there is no map at `directory/name`.
    pub fn open(directory: &Path, name: &str) -> Result<Self, MapError> {
        let path = directory.join(name);
        let failed = |source| MapError::Open { path: path.clone(), source };
        let fd = bpf::get_pinned(&path).map_err(failed)?;
        let info = bpf::map_info(fd.as_fd()).map_err(failed)?;
        let cpus = match info.kind {
            PERCPU_ARRAY | PERCPU_HASH | LRU_PERCPU_HASH => {
                aya::util::nr_cpus().map_err(|(path, source)| MapError::Open { path: path.into(), source })?
            }
            _ => 0,
        };
        let value_size = match cpus {
            0 => info.value_size as usize,
            cpus => (info.value_size as usize).next_multiple_of(8) * cpus,
        };
        let next = match info.kind {
            RINGBUF => Next::End,
            HASH | LRU_HASH | PERCPU_HASH | ARRAY => Next::Batch(None),
            _ => Next::Key(None, 2 * u64::from(info.max_entries)),
        };
        Ok(Self {
            name: name.to_owned(),
            fd,
            value_size,
            next,
            info,
            keys: Vec::new(),
            values: Vec::new(),
            filled: 0,
            path,
        })
    }

    /// Whether the map is one that has elements.
    pub fn has_elements(&self) -> bool {
        self.info.kind != RINGBUF
    }

    /// How many elements it may hold, where they come and go: an array always has all of them.
    pub fn room(&self) -> Option<u32> {
        let may_fill = matches!(
            self.info.kind,
            HASH | PERCPU_HASH | LRU_HASH | LRU_PERCPU_HASH | LPM_TRIE | HASH_OF_MAPS
        );
        may_fill.then_some(self.info.max_entries)
    }

    /// The map's type, as bpftool calls it.
    pub fn kind(&self) -> String {
        kind_name(self.info.kind)
    }

    /// The map as the kernel has it; goes over the rest of the walk to count.
    pub fn status(mut self) -> Result<MapStatus, MapError> {
        let entries = match self.info.kind {
            RINGBUF => None,
            ARRAY if self.may_be_vacant() => Some(self.count_taken()?),
            ARRAY | PERCPU_ARRAY => Some(u64::from(self.info.max_entries)),
            _ => Some(self.count()?),
        };
        Ok(MapStatus {
            kind: kind_name(self.info.kind),
            key_bytes: self.info.key_size,
            value_bytes: self.info.value_size,
            entries,
            capacity: self.info.max_entries,
            memory_bytes: self.memory_bytes(),
            layout: split_version(&self.name).1,
            path: self.path,
            name: self.name,
        })
    }

    /// The elements that are left on the walk.
    pub fn count(&mut self) -> Result<u64, MapError> {
        let mut count = 0;
        while self.advance()? {
            count += self.filled as u64;
        }
        Ok(count)
    }

    /// Whether it is an array whose places are taken one after the other.
    fn may_be_vacant(&self) -> bool {
        [maps::STREAMS_CONNECTED, maps::SENDERS].contains(&self.name.as_str())
    }

    fn count_taken(&mut self) -> Result<u64, MapError> {
        let mut count = 0;
        while let Some(elements) = self.next_piece()? {
            count += elements.len() as u64;
        }
        Ok(count)
    }

    /// The next elements, a thousand or so; `None` at the end.
    pub fn next_piece(&mut self) -> Result<Option<Vec<Element>>, MapError> {
        if !self.advance()? {
            return Ok(None);
        }
        let elements = self.elements().map(|(key, value)| Element::decode(&self.name, key, value));
        Ok(Some(elements.filter(|element| !element.is_vacant()).collect()))
    }

    /// The piece that was read last.
    pub(crate) fn elements(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let keys = self.keys.chunks(self.info.key_size as usize);
        keys.zip(self.values.chunks(self.value_size)).take(self.filled)
    }

    /// Reads the next piece; whether there was one.
    pub(crate) fn advance(&mut self) -> Result<bool, MapError> {
        self.filled = 0;
        while self.filled == 0 {
            match self.next.clone() {
                Next::End => return Ok(false),
                Next::Batch(position) => self.read_batch(position, PIECE)?,
                Next::Key(key, left) => self.read_singly(key, left)?,
            }
        }
        Ok(true)
    }

    fn make_room(&mut self, elements: usize) {
        self.keys.resize(elements * self.info.key_size as usize, 0);
        self.values.resize(elements * self.value_size, 0);
    }

    fn read_batch(&mut self, position: Option<u32>, size: usize) -> Result<(), MapError> {
        self.make_room(size);
        let mut next = position;
        let (keys, values) = (self.keys.as_mut_ptr(), self.values.as_mut_ptr());
        // SAFETY: room was made for `size` elements of the map's sizes.
        let batch = unsafe { bpf::lookup_bytes(self.fd.as_fd(), &mut next, keys, values, size) };
        self.filled = batch.done;
        match batch.result {
            Ok(()) => self.next = Next::Batch(next),
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.next = Next::End,
            // One bucket holds more than there is room for.
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                self.filled = 0;
                return self.read_batch(position, size * 2);
            }
            Err(error) if position.is_none() && is_unsupported(&error) => {
                self.filled = 0;
                self.next = Next::Key(None, 2 * u64::from(self.info.max_entries));
            }
            Err(source) => return Err(self.error(source)),
        }
        Ok(())
    }

    fn read_singly(&mut self, mut key: Option<Vec<u8>>, mut left: u64) -> Result<(), MapError> {
        let size = self.info.key_size as usize;
        self.make_room(PIECE);
        while self.filled < PIECE && left > 0 {
            left -= 1;
            let mut next = vec![0; size];
            let after = key.as_ref().map(|key| key.as_ptr());
            // SAFETY: both are of the map's key size.
            match unsafe { bpf::next_key(self.fd.as_fd(), after, next.as_mut_ptr()) } {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    self.next = Next::End;
                    return Ok(());
                }
                result => result.map_err(|source| self.error(source))?,
            }
            let value = self.values[self.filled * self.value_size..].as_mut_ptr();
            // SAFETY: the key is of the map's size, and there is room for one more value.
            match unsafe { bpf::lookup_at(self.fd.as_fd(), next.as_ptr(), value) } {
                Ok(()) => {
                    self.keys[self.filled * size..][..size].copy_from_slice(&next);
                    self.filled += 1;
                }
                // It went since, or nothing is in this place.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(self.error(source)),
            }
            key = Some(next);
        }
        self.next = if left == 0 { Next::End } else { Next::Key(key, left) };
        Ok(())
    }

    fn memory_bytes(&self) -> Option<u64> {
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", self.fd.as_raw_fd())).ok()?;
        info.lines().find_map(|line| line.strip_prefix("memlock:"))?.trim().parse().ok()
    }

    fn error(&self, source: io::Error) -> MapError {
        MapError::Access { operation: "walk", name: self.name.clone(), source }
    }
}

fn kind_name(kind: u32) -> String {
    match kind {
        HASH => "hash".to_owned(),
        ARRAY => "array".to_owned(),
        PROG_ARRAY => "prog_array".to_owned(),
        PERCPU_HASH => "percpu_hash".to_owned(),
        PERCPU_ARRAY => "percpu_array".to_owned(),
        LRU_HASH => "lru_hash".to_owned(),
        LRU_PERCPU_HASH => "lru_percpu_hash".to_owned(),
        LPM_TRIE => "lpm_trie".to_owned(),
        ARRAY_OF_MAPS => "array_of_maps".to_owned(),
        HASH_OF_MAPS => "hash_of_maps".to_owned(),
        RINGBUF => "ringbuf".to_owned(),
        other => format!("type {other}"),
    }
}

#[cfg(test)]
mod tests {
    use ebpf_common::{Port, Protocol, ServiceId};

    use super::*;

    fn bytes<T: Pod>(value: &T) -> Vec<u8> {
        as_bytes(value).to_vec()
    }

    #[test]
    fn a_map_is_found_with_and_without_its_version_in_either_case() {
        let names: Vec<String> =
            ["FRONTENDS_1", "FRONTENDS_2", "SLOTS_1", "SOCK_FWD_1"].map(str::to_owned).into();
        assert_eq!(find(&names, "frontends"), Some("FRONTENDS_2"));
        assert_eq!(find(&names, "FRONTENDS_1"), Some("FRONTENDS_1"));
        assert_eq!(find(&names, "sock_fwd"), Some("SOCK_FWD_1"));
        assert_eq!(find(&names, "SOCK"), None);
        assert_eq!(find(&names, "../maps/SLOTS_1"), None);
    }

    #[test]
    fn elements_are_decoded_by_the_name_of_their_map_and_are_bytes_where_their_size_is_another() {
        let address = Address::from_v4([10, 96, 0, 7]);
        let key = FrontendKey::new(address, Port::new(80), Protocol::TCP);
        let value = Frontend::new(ServiceId(9), 0, 1, 0..1, true);
        let element = Element::decode(maps::FRONTENDS, &bytes(&key), &bytes(&value));
        assert_eq!(element, Element::Frontend(key, value));
        assert_eq!(element.addresses(), [address]);
        let short = Element::decode(maps::FRONTENDS, &bytes(&key)[1..], &bytes(&value));
        assert_eq!(short, Element::Bytes(bytes(&key)[1..].to_vec(), bytes(&value)));
        assert_eq!(Element::decode("OTHER_1", &[1], &[2]), Element::Bytes(vec![1], vec![2]));
    }

    #[test]
    fn a_counter_is_the_sum_over_all_cpus() {
        let values: Vec<u8> = [3u64, 0, 4].iter().flat_map(|count| count.to_ne_bytes()).collect();
        assert_eq!(Element::decode(maps::COUNTERS, &bytes(&8u32), &values), Element::Counter(8, 7));
    }
}
