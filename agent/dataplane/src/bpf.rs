//! The bpf(2) calls that aya does not make: links that are looked at and updated in place, and batched map access.
//!
//! Layouts are those of `union bpf_attr` and `struct bpf_link_info` in linux/bpf.h, which only ever grow at the end.

use std::{
    ffi::CString,
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    os::unix::ffi::OsStrExt,
    path::Path,
};

const BPF_MAP_LOOKUP_ELEM: u32 = 1;
const BPF_MAP_UPDATE_ELEM: u32 = 2;
const BPF_MAP_DELETE_ELEM: u32 = 3;
const BPF_MAP_GET_NEXT_KEY: u32 = 4;
const BPF_OBJ_PIN: u32 = 6;
const BPF_OBJ_GET: u32 = 7;
const BPF_OBJ_GET_INFO_BY_FD: u32 = 15;
const BPF_PROG_QUERY: u32 = 16;
const BPF_MAP_LOOKUP_BATCH: u32 = 24;
const BPF_MAP_UPDATE_BATCH: u32 = 26;
const BPF_MAP_DELETE_BATCH: u32 = 27;
const BPF_LINK_CREATE: u32 = 28;
const BPF_LINK_UPDATE: u32 = 29;
const BPF_LINK_DETACH: u32 = 34;

/// Where a program hooks in: values of `enum bpf_attach_type`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub(crate) enum AttachType {
    Connect4 = 10,
    Connect6 = 11,
    Sendmsg4 = 14,
    Sendmsg6 = 15,
    Recvmsg4 = 19,
    Recvmsg6 = 20,
    Getpeername4 = 29,
    Getpeername6 = 30,
    SockRelease = 34,
    Xdp = 37,
    TcxIngress = 46,
    TcxEgress = 47,
}

/// What a link hangs on. Zero where that is gone, and the link with it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Target {
    Cgroup(u64),
    Interface(u32),
    Other,
}

#[repr(C)]
#[derive(Default)]
struct ObjectAttr {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct InfoAttr {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

#[repr(C)]
#[derive(Default)]
struct LinkCreateAttr {
    prog_fd: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    relative_fd: u32,
    zero: u32,
    expected_revision: u64,
}

#[repr(C)]
#[derive(Default)]
struct LinkUpdateAttr {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    kind: u32,
    id: u32,
    prog_id: u32,
    zero: u32,
    target: u64,
    rest: [u64; 6],
}

#[repr(C)]
#[derive(Default)]
struct QueryAttr {
    target: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_count: u32,
    zero: u32,
    prog_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    /// Written by the kernel from 6.6 on, however short the caller says that the structure is.
    revision: u64,
}

/// What the kernel says of a map: the beginning of `struct bpf_map_info`.
#[repr(C)]
#[derive(Clone, Debug, Default)]
pub(crate) struct MapInfo {
    /// Of `enum bpf_map_type`.
    pub(crate) kind: u32,
    id: u32,
    pub(crate) key_size: u32,
    pub(crate) value_size: u32,
    pub(crate) max_entries: u32,
    flags: u32,
    rest: [u64; 10],
}

#[repr(C)]
#[derive(Default)]
struct ElementAttr {
    map_fd: u32,
    zero: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Default)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Calls bpf(2) with an attribute structure.
///
/// # Safety
/// Every address in `attr` must be valid for what the command reads and writes there.
unsafe fn bpf<T>(command: u32, attr: &mut T) -> io::Result<i64> {
    // SAFETY: `attr` is valid for its size; what it points to is the caller's promise.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, core::ptr::from_mut(attr), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd() as u32
}

fn path_bytes(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::from(io::ErrorKind::InvalidFilename))
}

pub(crate) fn get_pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = path_bytes(path)?;
    let mut attr = ObjectAttr { pathname: path.as_ptr() as u64, ..ObjectAttr::default() };
    // SAFETY: the path lives until the call returns; a successful call gives a new descriptor that is ours.
    unsafe { bpf(BPF_OBJ_GET, &mut attr).map(|fd| OwnedFd::from_raw_fd(fd as i32)) }
}

pub(crate) fn pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = path_bytes(path)?;
    let mut attr = ObjectAttr { pathname: path.as_ptr() as u64, bpf_fd: raw(fd), ..ObjectAttr::default() };
    // SAFETY: the path lives until the call returns.
    unsafe { bpf(BPF_OBJ_PIN, &mut attr).map(drop) }
}

/// Attaches a program by a link. `target` is a cgroup's descriptor or an interface's index.
pub(crate) fn link_create(
    program: BorrowedFd<'_>,
    target: u32,
    attach_type: AttachType,
) -> io::Result<OwnedFd> {
    link_create_with(program, target, attach_type, 0)
}

/// The same with flags that the attach type has.
pub(crate) fn link_create_with(
    program: BorrowedFd<'_>,
    target: u32,
    attach_type: AttachType,
    flags: u32,
) -> io::Result<OwnedFd> {
    let mut attr = LinkCreateAttr {
        prog_fd: raw(program),
        target,
        attach_type: attach_type as u32,
        flags,
        ..LinkCreateAttr::default()
    };
    // SAFETY: no addresses in it; a successful call gives a new descriptor that is ours.
    unsafe { bpf(BPF_LINK_CREATE, &mut attr).map(|fd| OwnedFd::from_raw_fd(fd as i32)) }
}

/// Whether the kernel has such hooks on interfaces, asked of loopback, which has index 1 in every namespace.
pub(crate) fn has_interface_hook(attach_type: AttachType) -> bool {
    let mut attr = QueryAttr { target: 1, attach_type: attach_type as u32, ..QueryAttr::default() };
    // SAFETY: no addresses in it, as there is room for no program.
    let answer = unsafe { bpf(BPF_PROG_QUERY, &mut attr) };
    !answer.is_err_and(|error| error.raw_os_error() == Some(libc::EINVAL))
}

/// Replaces a link's program atomically.
pub(crate) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr =
        LinkUpdateAttr { link_fd: raw(link), new_prog_fd: raw(program), ..LinkUpdateAttr::default() };
    // SAFETY: no addresses in it.
    unsafe { bpf(BPF_LINK_UPDATE, &mut attr).map(drop) }
}

/// Detaches a link's program at once; unpinning and closing would do it some time later.
pub(crate) fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkUpdateAttr { link_fd: raw(link), ..LinkUpdateAttr::default() };
    // SAFETY: no addresses in it; the link's descriptor comes first in both commands' attributes.
    unsafe { bpf(BPF_LINK_DETACH, &mut attr).map(drop) }
}

pub(crate) fn link_target(link: BorrowedFd<'_>) -> io::Result<Target> {
    const BPF_LINK_TYPE_CGROUP: u32 = 3;
    const BPF_LINK_TYPE_XDP: u32 = 6;
    const BPF_LINK_TYPE_TCX: u32 = 11;
    let mut info = LinkInfo::default();
    object_info(link, &mut info)?;
    Ok(match info.kind {
        BPF_LINK_TYPE_CGROUP => Target::Cgroup(info.target),
        BPF_LINK_TYPE_XDP | BPF_LINK_TYPE_TCX => Target::Interface(info.target as u32),
        _ => Target::Other,
    })
}

/// Key and value size of a map, in bytes.
pub(crate) fn map_sizes(map: BorrowedFd<'_>) -> io::Result<(usize, usize)> {
    map_info(map).map(|info| (info.key_size as usize, info.value_size as usize))
}

pub(crate) fn map_info(map: BorrowedFd<'_>) -> io::Result<MapInfo> {
    let mut info = MapInfo::default();
    object_info(map, &mut info)?;
    Ok(info)
}

fn object_info<T>(fd: BorrowedFd<'_>, info: &mut T) -> io::Result<()> {
    let mut attr =
        InfoAttr { bpf_fd: raw(fd), info_len: size_of::<T>() as u32, info: core::ptr::from_mut(info) as u64 };
    // SAFETY: the kernel writes at most `info_len` bytes, the size of `info`.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr).map(drop) }
}

/// Reads one element into `value`, which the caller sized (for per-CPU maps, for all CPUs).
///
/// # Safety
/// `K` must have the map's key size, and `value` room for what the map gives.
pub(crate) unsafe fn lookup<K>(map: BorrowedFd<'_>, key: &K, value: *mut u8) -> io::Result<()> {
    // SAFETY: as the caller promises.
    unsafe { lookup_at(map, core::ptr::from_ref(key).cast(), value) }
}

/// The same where the sizes are known only when running.
///
/// # Safety
/// There must be a key of the map's size at `key`, and room for what the map gives at `value`.
pub(crate) unsafe fn lookup_at(map: BorrowedFd<'_>, key: *const u8, value: *mut u8) -> io::Result<()> {
    let mut attr =
        ElementAttr { map_fd: raw(map), key: key as u64, value: value as u64, ..ElementAttr::default() };
    // SAFETY: as the caller promises.
    unsafe { bpf(BPF_MAP_LOOKUP_ELEM, &mut attr).map(drop) }
}

/// Writes one element.
///
/// # Safety
/// `K` and `V` must have the map's sizes.
pub(crate) unsafe fn update<K, V>(map: BorrowedFd<'_>, key: &K, value: &V) -> io::Result<()> {
    // SAFETY: as the caller promises.
    unsafe { update_at(map, key, core::ptr::from_ref(value).cast()) }
}

/// The same with a value of which the caller knows the size (for per-CPU maps, that of all CPUs').
///
/// # Safety
/// `K` must have the map's key size, and there must be as much at `value` as the map takes.
pub(crate) unsafe fn update_at<K>(map: BorrowedFd<'_>, key: &K, value: *const u8) -> io::Result<()> {
    let mut attr = ElementAttr {
        map_fd: raw(map),
        key: core::ptr::from_ref(key) as u64,
        value: value as u64,
        ..ElementAttr::default()
    };
    // SAFETY: as the caller promises.
    unsafe { bpf(BPF_MAP_UPDATE_ELEM, &mut attr).map(drop) }
}

/// Writes one element where the sizes are known only when running, with flags of `BPF_MAP_UPDATE_ELEM`.
///
/// # Safety
/// There must be a key and a value of the map's sizes.
pub(crate) unsafe fn update_bytes(
    map: BorrowedFd<'_>,
    key: *const u8,
    value: *const u8,
    flags: u64,
) -> io::Result<()> {
    let mut attr = ElementAttr {
        map_fd: raw(map),
        key: key as u64,
        value: value as u64,
        flags,
        ..ElementAttr::default()
    };
    // SAFETY: as the caller promises.
    unsafe { bpf(BPF_MAP_UPDATE_ELEM, &mut attr).map(drop) }
}

/// Returns when no program runs any more that ran when it was called.
pub(crate) fn wait_for_programs() {
    /// As `synchronize_rcu` in the kernel (kernel/sched/membarrier.c), under which programs run.
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    // SAFETY: no addresses in it.
    let done = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if done != 0 {
        // A kernel with nohz_full has none; no program runs for so long.
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

/// Deletes one element.
///
/// # Safety
/// `K` must have the map's key size.
pub(crate) unsafe fn delete<K>(map: BorrowedFd<'_>, key: &K) -> io::Result<()> {
    let mut attr =
        ElementAttr { map_fd: raw(map), key: core::ptr::from_ref(key) as u64, ..ElementAttr::default() };
    // SAFETY: as the caller promises.
    unsafe { bpf(BPF_MAP_DELETE_ELEM, &mut attr).map(drop) }
}

/// Writes the key that follows `key`, or the first one, to `next`.
///
/// # Safety
/// Both must be of the map's key size.
pub(crate) unsafe fn next_key(map: BorrowedFd<'_>, key: Option<*const u8>, next: *mut u8) -> io::Result<()> {
    let mut attr = ElementAttr {
        map_fd: raw(map),
        key: key.map_or(0, |key| key as u64),
        value: next as u64,
        ..ElementAttr::default()
    };
    // SAFETY: as the caller promises; the value's place is the next key's for this command.
    unsafe { bpf(BPF_MAP_GET_NEXT_KEY, &mut attr).map(drop) }
}

/// The outcome of a batch: how many elements, counted from the first, were done before it stopped.
pub(crate) struct Batch {
    pub(crate) done: usize,
    pub(crate) result: io::Result<()>,
}

/// Writes elements in one call.
///
/// # Safety
/// `K` and `V` must have the map's sizes, and the slices the same length.
pub(crate) unsafe fn update_batch<K, V>(map: BorrowedFd<'_>, keys: &[K], values: &[V]) -> Batch {
    let mut attr = BatchAttr {
        keys: keys.as_ptr() as u64,
        values: values.as_ptr() as u64,
        count: keys.len() as u32,
        map_fd: raw(map),
        ..BatchAttr::default()
    };
    // SAFETY: as the caller promises; `count` elements are read from each.
    let result = unsafe { bpf(BPF_MAP_UPDATE_BATCH, &mut attr).map(drop) };
    Batch { done: attr.count as usize, result }
}

/// Deletes elements in one call; stops at the first that is not there.
///
/// # Safety
/// `K` must have the map's key size.
pub(crate) unsafe fn delete_batch<K>(map: BorrowedFd<'_>, keys: &[K]) -> Batch {
    let mut attr = BatchAttr {
        keys: keys.as_ptr() as u64,
        count: keys.len() as u32,
        map_fd: raw(map),
        ..BatchAttr::default()
    };
    // SAFETY: as the caller promises; `count` keys are read.
    let result = unsafe { bpf(BPF_MAP_DELETE_BATCH, &mut attr).map(drop) };
    Batch { done: attr.count as usize, result }
}

/// Reads up to `keys.len()` elements of a hash from `position`, and moves that. `Ok(None)` for the count says that the
/// call found the end; the elements before it are in the slices.
///
/// # Safety
/// `K` and `V` must have the map's sizes, and the slices the same length.
pub(crate) unsafe fn lookup_batch<K, V>(
    map: BorrowedFd<'_>,
    position: &mut Option<u32>,
    keys: &mut [K],
    values: &mut [V],
) -> Batch {
    let count = keys.len();
    // SAFETY: as the caller promises.
    unsafe { lookup_bytes(map, position, keys.as_mut_ptr().cast(), values.as_mut_ptr().cast(), count) }
}

/// The same where the sizes are known only when running.
///
/// # Safety
/// There must be room for `count` keys and values of the map's sizes.
pub(crate) unsafe fn lookup_bytes(
    map: BorrowedFd<'_>,
    position: &mut Option<u32>,
    keys: *mut u8,
    values: *mut u8,
    count: usize,
) -> Batch {
    let mut next = 0u32;
    let mut attr = BatchAttr {
        in_batch: position.as_ref().map_or(0, |at| core::ptr::from_ref(at) as u64),
        out_batch: core::ptr::from_mut(&mut next) as u64,
        keys: keys as u64,
        values: values as u64,
        count: count as u32,
        map_fd: raw(map),
        ..BatchAttr::default()
    };
    // SAFETY: as the caller promises; at most `count` elements are written to each, and a hash's position is 32 bits.
    let result = unsafe { bpf(BPF_MAP_LOOKUP_BATCH, &mut attr).map(drop) };
    *position = Some(next);
    Batch { done: attr.count as usize, result }
}
