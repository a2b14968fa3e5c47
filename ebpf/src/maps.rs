//! Every map of the datapath. Names carry the layout's version (`ebpf_common::maps`), and all are pinned, so that a
//! new agent or a new program goes on with the old contents.

use aya_ebpf::{
    bindings::{BPF_F_NO_PREALLOC, BPF_NOEXIST},
    helpers::bpf_ktime_get_coarse_ns,
    macros::map,
    maps::{
        Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, PerCpuHashMap, ProgramArray, RingBuf, lpm_trie::Key,
    },
    programs::TcContext,
};
use ebpf_common::{
    Address, Affinity, AffinityKey, Backend, BackendId, Bucket, Call, ConnectedSocket, ConnectedStream,
    Counter, DropGate, Flow, Fragment, FragmentKey, Frontend, FrontendKey, GroupId, LocalPod, Masquerade,
    Node, Policed, Policing, PolicyFlow, PolicyFlowKey, Port, Prefix, Protocol, Ranges, Rule, RuleKey,
    RulesId, Sender, ServiceCount, ServiceId, Shortcut, SlotKey, SocketForward, SocketKey, SocketReverse,
    SourceAddress, Tuple,
    balancing::{Piece, PieceKey},
    maps::*,
    sctp::Tags,
};

use crate::{bridge, packet::Packet};

/// Written by the agent, read at each new connection. Without preallocation: 50,000 services fit, ten cost nothing.
#[map(name = "FRONTENDS_2")]
pub static FRONTENDS: HashMap<FrontendKey, Frontend> = HashMap::pinned(FRONTENDS_MAX, BPF_F_NO_PREALLOC);

/// Written by the agent, read after those of FRONTENDS that say so: a trie is slower than a hash. The value says nothing.
#[map(name = "SRC_RANGES_1")]
pub static SOURCE_RANGES: LpmTrie<SourceAddress, u32> = LpmTrie::pinned(SOURCE_RANGES_MAX, 0);

/// Written by the agent, read after FRONTENDS.
#[map(name = "SLOTS_1")]
pub static SLOTS: HashMap<SlotKey, BackendId> = HashMap::pinned(SLOTS_MAX, BPF_F_NO_PREALLOC);

/// Written by the agent, read in the place of SLOTS after those of FRONTENDS that say so. Without preallocation: who asks for
/// no table has none.
#[map(name = "TABLES_1")]
pub static TABLES: HashMap<PieceKey, Piece> = HashMap::pinned(TABLES_MAX, BPF_F_NO_PREALLOC);

/// Connections of this node's clients to backends that are counted. Written and read here; the agent counts anew what it
/// finds in SOCKETS_COUNTED and CONNTRACK, so that nothing that was missed stays wrong.
#[map(name = "OPEN_1")]
static OPEN: HashMap<BackendId, i64> = HashMap::pinned(OPEN_MAX, BPF_F_NO_PREALLOC);

/// Sockets, by cookie, that are connected to a counted backend. Written at connect, deleted at release. LRU: one that died
/// without is forgotten.
#[map(name = "SOCK_COUNT_1")]
static SOCKETS_COUNTED: LruHashMap<u64, BackendId> = LruHashMap::pinned(SOCKETS_COUNTED_MAX, 0);

/// Not 0 once a socket was counted. Written here.
#[map(name = "COUNTING_1")]
static COUNTING: Array<u32> = Array::pinned(1, 0);

/// Written by the agent, read after SLOTS; an id's absence says that a remembered backend is gone.
#[map(name = "BACKENDS_1")]
pub static BACKENDS: HashMap<BackendId, Backend> = HashMap::pinned(BACKENDS_MAX, BPF_F_NO_PREALLOC);

/// Written and read here. LRU: an evicted client gets a fresh choice.
#[map(name = "AFFINITY_1")]
pub static AFFINITY_MAP: LruHashMap<AffinityKey, Affinity> = LruHashMap::pinned(AFFINITY_MAX, 0);
pub const AFFINITY: bridge::Affinities = bridge::Affinities;

/// Unconnected UDP sockets: where their datagrams to a frontend go. LRU: a socket that sends is recent.
#[map(name = "SOCK_FWD_1")]
pub static SOCKET_FORWARD_MAP: LruHashMap<SocketKey, SocketForward> =
    LruHashMap::pinned(SOCKET_FORWARD_MAX, 0);
pub const SOCKET_FORWARD: bridge::SocketsForward = bridge::SocketsForward;

/// What an unconnected UDP socket believes to talk to, and any socket of the time before the maps below. LRU: eviction makes
/// recvmsg show the backend.
#[map(name = "SOCK_REV_1")]
pub static SOCKET_REVERSE_MAP: LruHashMap<SocketKey, SocketReverse> =
    LruHashMap::pinned(SOCKET_REVERSE_MAX, 0);
pub const SOCKET_REVERSE: bridge::SocketsReverse = bridge::SocketsReverse;

/// Which sockets may be in the two maps above. Written where an unconnected UDP socket sends, and by an agent that finds the
/// maps and not this one; read where one receives, as most are servers'. Two sockets that take one free place at the very
/// same time are told apart when they send again.
#[map(name = "SENDERS_1")]
static SENDERS: Array<Sender> = Array::pinned(Sender::PLACES, 0);

/// UDP sockets that were connected to a backend by way of a Service, by cookie. Written at connect, deleted at release;
/// read by the agent, which destroys those whose backend is gone. Never LRU: a forgotten one would talk to nobody.
#[map(name = "SOCK_CONN_2")]
pub static SOCKETS_CONNECTED_MAP: HashMap<u64, ConnectedSocket> =
    HashMap::pinned(SOCKETS_CONNECTED_MAX, BPF_F_NO_PREALLOC);
pub const SOCKETS_CONNECTED: bridge::SocketsConnected = bridge::SocketsConnected;

/// TCP sockets that were, by a place that follows from the cookie. Written at connect and never deleted: nothing here costs a
/// connection more than the cache line that it writes. One that a later socket took the place of shows its backend to
/// getpeername.
#[map(name = "STREAM_CONN_1")]
static STREAMS_CONNECTED: Array<ConnectedStream> = Array::pinned(ConnectedStream::PLACES, 0);

/// Written here, swept by the agent. Never LRU: only the agent, knowing both directions, forgets a flow.
#[map(name = "CONNTRACK_1")]
pub static CONNTRACK_MAP: HashMap<Tuple, Flow> = HashMap::pinned(CONNTRACK_MAX, BPF_F_NO_PREALLOC);
pub const CONNTRACK: bridge::Conntrack = bridge::Conntrack;

/// Written at a translated first fragment, read at those that follow within seconds.
#[map(name = "FRAGMENTS_2")]
pub static FRAGMENTS: LruHashMap<FragmentKey, Fragment> = LruHashMap::pinned(FRAGMENTS_MAX, 0);

/// Indexed by `Counter`; read by the agent.
#[map(name = "COUNTERS_2")]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::pinned(COUNTERS_MAX, 0);

const _: () = assert!(Counter::COUNT <= COUNTERS_MAX);

/// Written by the agent: what the node is. Zeros before.
#[map(name = "NODE_1")]
static NODE: Array<Node> = Array::pinned(1, 0);

/// Written by the agent: the addresses of the node's own interfaces, where node ports are reached. The value says
/// nothing.
#[map(name = "NODE_ADDRS_1")]
static NODE_ADDRESSES: HashMap<Address, u32> = HashMap::pinned(NODE_ADDRESSES_MAX, BPF_F_NO_PREALLOC);

/// Written by the agent after FRONTENDS: how many each address has, of which only whether there are any matters here.
#[map(name = "ADDRESSES_1")]
static ADDRESSES: HashMap<Address, u32> = HashMap::pinned(ADDRESSES_MAX, BPF_F_NO_PREALLOC);

/// Written by the agent: where addresses of Services are. Zeros, which are nowhere, before.
#[map(name = "RANGES_1")]
static RANGES: Array<Ranges> = Array::pinned(1, 0);

/// Written by the agent: where addresses of the cluster's pods are. Zeros, which are nowhere, before.
#[map(name = "POD_RANGES_1")]
static POD_RANGES: Array<Ranges> = Array::pinned(1, 0);

/// Written and read here.
#[map(name = "ANSWERS_1")]
static ANSWERS: PerCpuArray<Bucket> = PerCpuArray::pinned(1, 0);

/// Written by the agent once a pod's link is ready, and deleted before its route is: pods that packets reach past the
/// node's stack. One that is missing here is reached through it. One field is written here too.
#[map(name = "PODS_1")]
static PODS: HashMap<Address, LocalPod> = HashMap::pinned(PODS_MAX, BPF_F_NO_PREALLOC);

/// Not 0 once a packet of a client beyond the node was translated. Written here, and by an agent that finds flows and
/// does not know whose.
#[map(name = "BEYOND_1")]
static BEYOND: Array<u32> = Array::pinned(1, 0);

/// Written at a drop while somebody follows, read by the agent.
#[map(name = "DROPS_1")]
pub static DROPS: RingBuf = RingBuf::pinned(DROPS_BYTES, 0);

/// Written and read here; what was missed is read by the agent.
#[map(name = "DROP_GATES_1")]
static DROP_GATES: PerCpuArray<DropGate> = PerCpuArray::pinned(1, 0);

/// Written by the agent: until when drops are told, by CLOCK_MONOTONIC in nanoseconds; 0 while nobody follows.
#[map(name = "DROP_FOLLOW_1")]
static DROPS_FOLLOWED: Array<u64> = Array::pinned(1, 0);

/// Written here at the first who asks for a Service, read by the agent, and deleted by it with the Service. Each CPU has its
/// own numbers: those who connect at once share no cache line.
#[map(name = "SVC_COUNTS_1")]
static SERVICE_COUNTS: PerCpuHashMap<ServiceId, ServiceCount> =
    PerCpuHashMap::pinned(SERVICE_COUNTS_MAX, BPF_F_NO_PREALLOC);

/// Written by the agent: whose traffic gets the node's address. Zeros, which are nobody's, before.
#[map(name = "MASQ_1")]
static MASQUERADE: Array<Masquerade> = Array::pinned(1, 0);

/// Written by the agent before MASQUERADE, read at each new flow to a host outside of the cluster: where a pod is seen
/// under its own address. The value says nothing.
#[map(name = "UNMASQ_1")]
static UNMASQUERADED: LpmTrie<Address, u32> = LpmTrie::pinned(UNMASQUERADED_MAX, 0);

/// Datagrams from outside of the cluster to a pod's own address, and when the last one of either direction was seen.
/// Written where they enter, read where a datagram leaves that belongs to no flow. LRU: who asks again is recent, and a
/// flood costs nobody anything else.
#[map(name = "INBOUND_1")]
pub static INBOUND: LruHashMap<Tuple, u64> = LruHashMap::pinned(INBOUND_MAX, 0);

/// What is known of the packet that a program has to do with. Of no use to anybody after it, so it is not pinned.
#[map(name = "PACKET")]
static PACKET: PerCpuArray<Packet> = PerCpuArray::with_max_entries(1, 0);

/// Written and read by XDP. LRU: a flow that is evicted is looked up again.
#[map(name = "SHORTCUTS_1")]
pub static SHORTCUTS: LruHashMap<Tuple, Shortcut> = LruHashMap::pinned(SHORTCUTS_MAX, 0);

/// When XDP last left a packet to tc, so that the kernel asks after this neighbour. Written and read by XDP. LRU: one that is
/// evicted is asked after sooner.
#[map(name = "NEIGHBOURS_1")]
pub static NEIGHBOURS: LruHashMap<Address, u64> = LruHashMap::pinned(NEIGHBOURS_MAX, 0);

/// The verification tags of associations, by what their clients send. Written at INIT and INIT ACK, read where a packet would
/// end one. LRU: of one that is forgotten, anybody's word is taken.
#[map(name = "SCTP_TAGS_1")]
pub static SCTP_TAGS: LruHashMap<Tuple, Tags> = LruHashMap::pinned(SCTP_TAGS_MAX, 0);

/// Written by the agent after the maps below: whether anything is policed at all, and since when what was judged counts.
#[map(name = "POLICING_1")]
static POLICING: Array<Policing> = Array::pinned(1, 0);

/// Written by the agent before a pod is reached, by the index of the host's end of its link.
#[map(name = "POLICED_1")]
static POLICED: HashMap<u32, Policed> = HashMap::pinned(POLICED_MAX, BPF_F_NO_PREALLOC);

/// Written by the agent after RULES: who is who.
#[map(name = "PEERS_1")]
static PEERS: LpmTrie<Address, GroupId> = LpmTrie::pinned(PEERS_MAX, 0);

/// Written by the agent: what is allowed. The value says nothing.
#[map(name = "RULES_1")]
static RULES: LpmTrie<Rule, u32> = LpmTrie::pinned(RULES_MAX, 0);

/// Written here, swept by the agent. Never LRU: a connection that is forgotten would be judged by whoever speaks next.
#[map(name = "POLICY_FLOWS_1")]
pub static POLICY_FLOWS: HashMap<PolicyFlowKey, PolicyFlow> =
    HashMap::pinned(POLICY_FLOWS_MAX, BPF_F_NO_PREALLOC);

/// Filled by the agent before a program that calls is attached. While it is pinned, the kernel keeps what is in it.
#[map(name = "CALLS_1")]
static CALLS: ProgramArray = ProgramArray::pinned(CALLS_MAX, 0);

/// Continues in another program. Returns only where there is none.
#[inline(always)]
pub fn call(ctx: &TcContext, call: Call) {
    // SAFETY: nothing here needs to be dropped.
    unsafe { CALLS.tail_call(ctx, call as u32) }
}

#[inline(always)]
pub fn packet() -> Option<*mut Packet> {
    PACKET.get_ptr_mut(0)
}

#[inline(always)]
pub fn node() -> Option<&'static Node> {
    NODE.get(0)
}

#[inline(always)]
pub fn is_node_address(address: &Address) -> bool {
    NODE_ADDRESSES.get_ptr(address).is_some()
}

/// Notes that flows of this client are translated, if it is a pod of this node: before a packet can come back.
#[inline(always)]
pub fn note_client(address: &Address) {
    let Some(pod) = PODS.get_ptr_mut(address) else { return };
    // SAFETY: alive for this run of the program; a word, of which programs set this bit only.
    unsafe {
        if (*pod).has_flows & LocalPod::FLOWS == 0 {
            (*pod).has_flows |= LocalPod::FLOWS;
        }
    }
}

/// As [`note_client`], for clients beyond the node.
#[inline(always)]
pub fn note_beyond() {
    let Some(has_flows) = BEYOND.get_ptr_mut(0) else { return };
    // SAFETY: as above.
    unsafe {
        if *has_flows == 0 {
            *has_flows = 1;
        }
    }
}

/// Whether a client beyond the node ever had a flow that was translated.
#[inline(always)]
pub fn has_beyond() -> bool {
    BEYOND.get(0).is_none_or(|has_flows| *has_flows != 0)
}

/// One connection to a counted backend more, or less.
#[inline(never)]
pub fn add_open(id: BackendId, change: i64) {
    if OPEN.get_ptr(id).is_none() {
        // It may be there by now: then that stays. Where there is no room, nothing is counted.
        let _ = OPEN.insert(id, 0, BPF_NOEXIST as u64);
    }
    if let Some(open) = OPEN.get_ptr_mut(id) {
        // SAFETY: alive for this run of the program. Of two additions at the very same time one is lost, until the
        // agent counts anew.
        unsafe { *open += change };
    }
}

/// How many connections a backend has, of those that are counted. After a recount meanwhile it may be below 0.
#[inline(always)]
pub fn open_count(id: BackendId) -> i64 {
    // SAFETY: copied at once.
    unsafe { OPEN.get(id) }.copied().unwrap_or(0)
}

/// Notes that a socket is connected to a counted backend, and no longer to another one.
#[inline(never)]
pub fn note_counted(cookie: u64, id: BackendId) {
    forget_counted(cookie);
    if SOCKETS_COUNTED.insert(cookie, id, 0).is_err() {
        return;
    }
    add_open(id, 1);
    let Some(counting) = COUNTING.get_ptr_mut(0) else { return };
    // SAFETY: as at `note_client`.
    unsafe {
        if *counting == 0 {
            *counting = 1;
        }
    }
}

/// Whether any socket was ever counted.
#[inline(always)]
pub fn is_counting() -> bool {
    COUNTING.get(0).is_some_and(|counting| *counting != 0)
}

/// A socket is no longer connected to a counted backend, if it was.
#[inline(never)]
pub fn forget_counted(cookie: u64) -> bool {
    // SAFETY: copied at once.
    let Some(id) = unsafe { SOCKETS_COUNTED.get(cookie) }.copied() else { return false };
    let _ = SOCKETS_COUNTED.remove(cookie);
    add_open(id, -1);
    true
}

/// Notes a UDP socket that is connected, where there is room.
#[inline(always)]
pub fn note_socket(cookie: u64, socket: &ConnectedSocket) -> bool {
    let noted = SOCKETS_CONNECTED.insert(cookie, socket, 0).is_ok();
    if !noted {
        count(Counter::SocketNotNoted);
    }
    noted
}

#[inline(always)]
pub fn forget_socket(cookie: u64) {
    // Most were never noted.
    let _ = SOCKETS_CONNECTED.remove(cookie);
}

#[inline(always)]
pub fn connected_socket(cookie: u64) -> Option<ConnectedSocket> {
    // SAFETY: copied at once; values are replaced as a whole, by the one who connects the socket.
    unsafe { SOCKETS_CONNECTED.get(cookie) }.copied()
}

/// Notes that an unconnected UDP socket sends by way of a Service.
#[inline(always)]
pub fn note_sender(cookie: u64) {
    let Some(place) = SENDERS.get_ptr_mut(Sender::place(cookie)) else { return };
    // SAFETY: alive for this run of the program; a word.
    unsafe {
        let noted = (*place).with(cookie);
        if *place != noted {
            *place = noted;
        }
    }
}

#[inline(always)]
pub fn forget_sender(cookie: u64) {
    let Some(place) = SENDERS.get_ptr_mut(Sender::place(cookie)) else { return };
    // SAFETY: as above.
    unsafe {
        let left = (*place).without(cookie);
        if *place != left {
            *place = left;
        }
    }
}

/// Whether an unconnected UDP socket may have sent by way of a Service.
#[inline(always)]
pub fn may_be_sender(cookie: u64) -> bool {
    SENDERS.get(Sender::place(cookie)).is_none_or(|sender| sender.may_be(cookie))
}

/// Notes a TCP socket that is being connected.
#[inline(always)]
pub fn note_stream(stream: &ConnectedStream) {
    let Some(place) = STREAMS_CONNECTED.get_ptr_mut(ConnectedStream::place(stream.cookie)) else { return };
    // SAFETY: alive for this run of the program. Another socket writes here at the same time only if it is 32,768 newer:
    // who reads meanwhile, and its own address was mixed, sees at worst a frontend that is not its own.
    unsafe { place.write(*stream) };
}

#[inline(always)]
pub fn connected_stream(cookie: u64) -> Option<&'static ConnectedStream> {
    STREAMS_CONNECTED.get(ConnectedStream::place(cookie)).filter(|stream| stream.cookie == cookie)
}

#[inline(always)]
pub fn local_pod(address: &Address) -> Option<&'static LocalPod> {
    // SAFETY: alive for this run of the program; values are replaced as a whole, never written in place.
    unsafe { PODS.get(address) }
}

#[inline(always)]
pub fn policing() -> Option<&'static Policing> {
    POLICING.get(0)
}

/// What isolates the pod with this link; `None` where nothing does.
#[inline(always)]
pub fn policed(interface_index: u32) -> Option<&'static Policed> {
    // SAFETY: alive for this run of the program; values are replaced as a whole.
    unsafe { POLICED.get(interface_index) }
}

#[inline(always)]
pub fn group_of(peer: &Address) -> GroupId {
    PEERS.get(Key::new(Prefix::ADDRESS_BITS, *peer)).copied().unwrap_or(GroupId::UNKNOWN)
}

/// Whether the rules allow this to peers of the group, or to everybody.
#[inline(always)]
pub fn allows(rules: RulesId, group: GroupId, protocol: Protocol, port: Port) -> bool {
    let mut sought = Key::new(RuleKey::ALL_BITS, Rule::new(rules, group, protocol, port));
    if group != GroupId::UNKNOWN && RULES.get(&sought).is_some() {
        return true;
    }
    sought.data.group = GroupId::EVERYBODY;
    RULES.get(&sought).is_some()
}

#[inline(always)]
pub fn masquerade() -> Option<&'static Masquerade> {
    MASQUERADE.get(0)
}

/// Whether pods are seen there under their own addresses.
#[inline(always)]
pub fn is_unmasqueraded(address: &Address) -> bool {
    UNMASQUERADED.get(Key::new(Prefix::ADDRESS_BITS, *address)).is_some()
}

/// Whether the address is where those of Services are.
#[inline(always)]
pub fn is_in_ranges(address: &Address) -> bool {
    RANGES.get(0).is_some_and(|ranges| ranges.contains(address))
}

/// Whether the address is where those of the cluster's pods are.
#[inline(always)]
pub fn is_in_pod_ranges(address: &Address) -> bool {
    POD_RANGES.get(0).is_some_and(|ranges| ranges.contains(address))
}

#[inline(always)]
pub fn has_frontend(address: &Address) -> bool {
    ADDRESSES.get_ptr(address).is_some()
}

/// Whether one more answer may be given. What is denied is counted.
#[inline(always)]
pub fn take_answer() -> bool {
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    let Some(bucket) = ANSWERS.get_ptr_mut(0) else { return false };
    // SAFETY: the kernel gave this CPU's element, which no other CPU writes.
    let granted = unsafe { (*bucket).take(now) };
    if !granted {
        count(Counter::AnswerLimited);
    }
    granted
}

/// Until when drops are told; 0 for not at all.
#[inline(always)]
pub fn drops_followed_until() -> u64 {
    DROPS_FOLLOWED.get(0).copied().unwrap_or(0)
}

/// Whether one more drop may be told. What is denied is counted.
#[inline(always)]
pub fn take_drop(now_ns: u64) -> bool {
    let Some(gate) = DROP_GATES.get_ptr_mut(0) else { return false };
    // SAFETY: the kernel gave this CPU's element, which no other CPU writes.
    let granted = unsafe { (*gate).bucket.take(now_ns) };
    if !granted {
        miss_drop();
    }
    granted
}

/// Counts a drop that is not told.
#[inline(always)]
pub fn miss_drop() {
    if let Some(gate) = DROP_GATES.get_ptr_mut(0) {
        // SAFETY: the kernel gave this CPU's element, which no other CPU writes.
        unsafe { (*gate).missed += 1 };
    }
}

#[inline(always)]
pub fn count(counter: Counter) {
    add(counter as u32);
}

#[inline(always)]
pub fn add(index: u32) {
    if let Some(value) = COUNTERS.get_ptr_mut(index) {
        // SAFETY: the kernel gave this CPU's element, which no other CPU writes.
        unsafe { *value += 1 };
    }
}

/// Counts one who asked for a Service, and was given a backend or found none.
#[inline(never)]
pub fn count_asked(service_id: ServiceId, refused: bool) {
    let count = match SERVICE_COUNTS.get_ptr_mut(service_id) {
        Some(count) => count,
        None => match first_count(service_id) {
            Some(count) => count,
            None => return,
        },
    };
    // SAFETY: the kernel gave this CPU's value, which no other CPU writes.
    unsafe {
        if refused {
            (*count).refused += 1;
        } else {
            (*count).chosen += 1;
        }
    }
}

/// Where the map is full, all that it has no room for has one place.
#[inline(always)]
fn first_count(service_id: ServiceId) -> Option<*mut ServiceCount> {
    // It may be there by now: then that stays.
    let _ = SERVICE_COUNTS.insert(service_id, ServiceCount::ZERO, BPF_NOEXIST as u64);
    match SERVICE_COUNTS.get_ptr_mut(service_id) {
        Some(count) => Some(count),
        None => SERVICE_COUNTS.get_ptr_mut(ServiceCount::REST),
    }
}
