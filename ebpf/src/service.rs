//! From a frontend to a backend: a random slot, unless the frontend asks for affinity, has tables or counts connections.

use core::ptr;

use aya_ebpf::{
    helpers::{bpf_get_prandom_u32, bpf_ktime_get_coarse_ns},
    maps::lpm_trie::Key,
};
use ebpf_common::{
    Address, Affinity, AffinityKey, Backend, BackendId, Balancing, Counter, Frontend, FrontendKey, Origin,
    ServiceId, SlotKey, SourceAddress, SourceRangeKey,
    balancing::{self, PIECE_PLACES, PieceKey},
    pick_backend,
};

use crate::{
    error::Error,
    maps::{self, AFFINITY, BACKENDS, FRONTENDS, SLOTS, SOURCE_RANGES, TABLES},
};

/// The agent changes one map after the other. A reader that looked at one before and at the next after a change may
/// miss; then it looks again, and sees the new state.
const ATTEMPTS: u32 = 4;

/// Who asks, as far as affinity and source ranges care.
#[derive(Clone, Copy)]
pub struct Client {
    /// The namespace of a socket; 0, which none has, for a packet.
    netns_cookie: u64,
    /// Unspecified where a socket is bound to none.
    source: Address,
}

impl Client {
    #[inline(always)]
    pub fn of_packet(source: Address) -> Self {
        Self { netns_cookie: 0, source }
    }

    #[inline(always)]
    pub fn of_socket(netns_cookie: u64, source: Address) -> Self {
        Self { netns_cookie, source }
    }

    #[inline(always)]
    fn is_packet(&self) -> bool {
        self.netns_cookie == 0
    }
}

/// The frontend of `key`; where the address is the node's and has none itself, its node port's, whose key `key` becomes.
#[inline(always)]
pub fn frontend(key: &mut FrontendKey) -> Option<Frontend> {
    if let Some(frontend) = exact(key) {
        return Some(frontend);
    }
    if !maps::is_node_address(&key.address) {
        return None;
    }
    *key = key.of_any_address();
    exact(key)
}

/// Whether the very key has a frontend.
#[inline(always)]
pub fn exists(key: &FrontendKey) -> bool {
    FRONTENDS.get_ptr(key).is_some()
}

#[inline(always)]
fn exact(key: &FrontendKey) -> Option<Frontend> {
    // SAFETY: copied at once; the map's values are replaced as a whole, never written in place.
    unsafe { FRONTENDS.get(key) }.copied()
}

/// The backend `id`, unless it is gone.
#[inline(always)]
pub fn backend(id: BackendId) -> Option<Backend> {
    // SAFETY: copied at once, and the copy says whose it is.
    let backend = unsafe { BACKENDS.get(id) }.copied()?;
    if backend.id == id { Some(backend) } else { None }
}

/// Finds the backend for a new connection of `client`; `selected` stays as it is where `key` is no frontend, or the
/// packets shall ask. `key` may change as [`frontend`] says. `port` is the client's in a packet, as it lies there.
///
/// Like every function here that is not inlined, it returns what fits one register: a BPF function has no other way,
/// and the stack of 512 bytes does not hold everything inlined.
#[inline(never)]
pub fn select(
    key: &mut FrontendKey,
    origin: Origin,
    client: &Client,
    port: u32,
    selected: &mut Option<Backend>,
) -> Result<(), Error> {
    let Some(mut frontend) = frontend(key) else { return Ok(()) };
    if !frontend.is_plain() {
        if frontend.has_source_ranges() {
            match admission(frontend.service_id, key, client) {
                Admission::Granted => {}
                Admission::Denied => return Err(Error::SourceRange),
                Admission::LeftToPackets => return Ok(()),
            }
        }
        let mut found = None;
        if frontend.affinity_seconds != 0 {
            found = remembered(&frontend, origin, client);
        }
        if found.is_none() && (frontend.has_tables() || frontend.counts()) {
            found = if frontend.counts() {
                let (first, count) = frontend.slots(origin);
                backend(less_open(frontend.service_id, first, count))
            } else {
                in_table(&frontend, origin, client, port)
            };
            if let Some(backend) = &found
                && frontend.affinity_seconds != 0
            {
                remember(frontend.service_id, backend.id, client);
            }
        }
        if let Some(backend) = found {
            maps::count_asked(frontend.service_id, false);
            *selected = Some(backend);
            return Ok(());
        }
    }
    for _ in 0..ATTEMPTS {
        let (first, count) = frontend.slots(origin);
        // SAFETY: a helper without arguments.
        let random = unsafe { bpf_get_prandom_u32() };
        let Some(slot) = pick_backend(random, count) else {
            maps::count_asked(frontend.service_id, true);
            return Err(if frontend.has_endpoints() { Error::NoLocalBackend } else { Error::NoBackend });
        };
        if let Some(backend) = in_slot(frontend.service_id, first + slot) {
            if frontend.affinity_seconds != 0 {
                remember(frontend.service_id, backend.id, client);
            }
            maps::count_asked(frontend.service_id, false);
            *selected = Some(backend);
            return Ok(());
        }
        frontend = match exact(key) {
            Some(frontend) => frontend,
            None => return Ok(()),
        };
    }
    // A client that hears nothing asks again, and finds what is there then.
    Err(Error::Outrun)
}

/// What the source ranges of a Service say of a client.
#[repr(u32)]
#[derive(Clone, Copy)]
pub enum Admission {
    Granted,
    Denied,
    /// A pod's socket need not know yet which address it will send from; its packets do, and they are asked.
    LeftToPackets,
}

/// A socket of the node is asked here, as no program sees what it sends. One that is not bound counts as the node's own
/// address, and so does one that is bound to the frontend's: some load balancers give that to the node.
#[inline(never)]
pub fn admission(service_id: ServiceId, key: &FrontendKey, client: &Client) -> Admission {
    let mut address = client.source;
    if !client.is_packet() {
        match maps::node() {
            Some(node) if node.netns_cookie == client.netns_cookie => {
                if address == address.any() || address == key.address {
                    address = node.source_for(&key.address);
                }
            }
            _ => return Admission::LeftToPackets,
        }
    }
    let sought = Key::new(SourceRangeKey::ADDRESS_BITS, SourceAddress { service_id, address });
    if SOURCE_RANGES.get(sought).is_some() { Admission::Granted } else { Admission::Denied }
}

/// What becomes of something that is for no frontend: nothing, but where the address is known for other ports. One that
/// no Service has yet may get one at any time, so it is not refused here.
#[inline(always)]
pub fn stray(address: &Address) -> Result<(), Error> {
    if !maps::is_in_ranges(address) {
        return Ok(());
    }
    if maps::has_frontend(address) {
        return Err(Error::NoPort);
    }
    maps::count(Counter::Unallocated);
    Ok(())
}

#[inline(always)]
fn in_slot(service_id: ServiceId, slot: u32) -> Option<Backend> {
    // SAFETY: copied at once.
    let id = unsafe { SLOTS.get(SlotKey { service_id, slot }) }.copied()?;
    let backend = backend(id)?;
    if backend.service_id == service_id { Some(backend) } else { None }
}

/// Of two backends in random slots the one with fewer connections: nearly as even as of all, without looking at all, and
/// clients that come at once do not all take the same.
#[inline(never)]
fn less_open(service_id: ServiceId, first: u32, count: u32) -> BackendId {
    // SAFETY: helpers without arguments.
    let random = unsafe { [bpf_get_prandom_u32(), bpf_get_prandom_u32()] };
    let Some(one) = pick_backend(random[0], count) else { return BackendId(0) };
    let one_id = id_in_slot(service_id, first + one);
    let Some(other) = pick_backend(random[1], count - 1) else { return one_id };
    let other = if other < one { other } else { other + 1 };
    let other_id = id_in_slot(service_id, first + other);
    if maps::open_count(other_id) < maps::open_count(one_id) { other_id } else { one_id }
}

#[inline(always)]
fn id_in_slot(service_id: ServiceId, slot: u32) -> BackendId {
    // SAFETY: copied at once.
    unsafe { SLOTS.get(SlotKey { service_id, slot }) }.copied().unwrap_or(BackendId(0))
}

/// The backend in the client's place, or in any place. Where the table has none any more, there are the slots.
#[inline(always)]
fn in_table(frontend: &Frontend, origin: Origin, client: &Client, port: u32) -> Option<Backend> {
    let port = if frontend.affinity_seconds != 0 { 0 } else { port };
    let bits = match frontend.balancing() {
        Balancing::Maglev => client_bits(client, port, frontend.affinity_seconds != 0),
        // SAFETY: a helper without arguments.
        Balancing::Random | Balancing::LeastConnections => unsafe { bpf_get_prandom_u32() },
    };
    let backend = backend(at_place(frontend.service_id, frontend.first_piece(origin), bits))?;
    if backend.service_id == frontend.service_id { Some(backend) } else { None }
}

/// A socket that connects has no port yet, and comes to no other node: it gets any place, but for one namespace the same
/// where it is to be remembered.
#[inline(never)]
fn client_bits(client: &Client, port: u32, is_remembered: bool) -> u32 {
    if client.is_packet() {
        balancing::client_bits(&client.source, port)
    } else if is_remembered {
        balancing::namespace_bits(client.netns_cookie)
    } else {
        // SAFETY: a helper without arguments.
        unsafe { bpf_get_prandom_u32() }
    }
}

#[inline(never)]
fn at_place(service_id: ServiceId, first_piece: u32, bits: u32) -> BackendId {
    let place = balancing::place(bits);
    let key = PieceKey { service_id, piece: first_piece + place / PIECE_PLACES };
    let at = place % PIECE_PLACES;
    // SAFETY: a value of its own. The compiler knows that it is below the bound, and the verifier does not.
    let at = unsafe { ptr::read_volatile(&raw const at) };
    if at >= PIECE_PLACES {
        return BackendId(0);
    }
    // SAFETY: copied at once; pieces are replaced as a whole.
    unsafe { TABLES.get(key) }.map_or(BackendId(0), |piece| piece.backends[at as usize])
}

#[inline(always)]
fn affinity_key(service_id: ServiceId, client: &Client) -> AffinityKey {
    if client.is_packet() {
        AffinityKey::of_address(service_id, client.source)
    } else {
        AffinityKey::of_namespace(service_id, client.netns_cookie)
    }
}

#[inline(never)]
fn remembered_id(key: &AffinityKey, seconds: u32) -> u32 {
    // SAFETY: the element is this client's own; a torn time only ends affinity early.
    let Some(affinity) = AFFINITY.get_ptr_mut(key) else { return 0 };
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    // SAFETY: as above.
    unsafe {
        if now.wrapping_sub((*affinity).last_used_ns) > seconds as u64 * 1_000_000_000 {
            return 0;
        }
        (*affinity).last_used_ns = now;
        (*affinity).backend_id.0
    }
}

#[inline(always)]
fn remembered(frontend: &Frontend, origin: Origin, client: &Client) -> Option<Backend> {
    let id = remembered_id(&affinity_key(frontend.service_id, client), frontend.affinity_seconds);
    let backend = backend(BackendId(id))?;
    if backend.service_id == frontend.service_id && backend.is_for(origin) { Some(backend) } else { None }
}

#[inline(never)]
fn remember(service_id: ServiceId, backend_id: BackendId, client: &Client) {
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    // A failed insert costs this client its affinity, not its connection.
    let _ = AFFINITY.insert(affinity_key(service_id, client), Affinity::new(backend_id, now), 0);
}
