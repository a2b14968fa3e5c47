//! Names and sizes of the maps. The number in a name is the layout's version: it changes only with an incompatible
//! key or value, so that a new agent keeps the maps of the old one, and never misreads them.

pub const FRONTENDS: &str = "FRONTENDS_2";
pub const SLOTS: &str = "SLOTS_1";
pub const BACKENDS: &str = "BACKENDS_1";
pub const AFFINITY: &str = "AFFINITY_1";
pub const SOCKET_FORWARD: &str = "SOCK_FWD_1";
pub const SOCKET_REVERSE: &str = "SOCK_REV_1";
pub const SOCKETS_CONNECTED: &str = "SOCK_CONN_2";
pub const STREAMS_CONNECTED: &str = "STREAM_CONN_1";
pub const SENDERS: &str = "SENDERS_1";
pub const CONNTRACK: &str = "CONNTRACK_1";
pub const FRAGMENTS: &str = "FRAGMENTS_2";
pub const COUNTERS: &str = "COUNTERS_2";
pub const NODE: &str = "NODE_1";
pub const NODE_ADDRESSES: &str = "NODE_ADDRS_1";
pub const CALLS: &str = "CALLS_1";
pub const ADDRESSES: &str = "ADDRESSES_1";
pub const RANGES: &str = "RANGES_1";
pub const POD_RANGES: &str = "POD_RANGES_1";
pub const ANSWERS: &str = "ANSWERS_1";
pub const PODS: &str = "PODS_1";
pub const BEYOND: &str = "BEYOND_1";
pub const SOURCE_RANGES: &str = "SRC_RANGES_1";
pub const DROPS: &str = "DROPS_1";
pub const DROP_GATES: &str = "DROP_GATES_1";
pub const DROPS_FOLLOWED: &str = "DROP_FOLLOW_1";
pub const SERVICE_COUNTS: &str = "SVC_COUNTS_1";
pub const MASQUERADE: &str = "MASQ_1";
pub const UNMASQUERADED: &str = "UNMASQ_1";
pub const INBOUND: &str = "INBOUND_1";
pub const TABLES: &str = "TABLES_1";
pub const OPEN: &str = "OPEN_1";
pub const SOCKETS_COUNTED: &str = "SOCK_COUNT_1";
pub const COUNTING: &str = "COUNTING_1";
pub const SHORTCUTS: &str = "SHORTCUTS_1";
pub const NEIGHBOURS: &str = "NEIGHBOURS_1";
pub const SCTP_TAGS: &str = "SCTP_TAGS_1";
pub const POLICING: &str = "POLICING_1";
pub const POLICED: &str = "POLICED_1";
pub const PEERS: &str = "PEERS_1";
pub const RULES: &str = "RULES_1";
pub const POLICY_FLOWS: &str = "POLICY_FLOWS_1";

/// Every map that is pinned.
pub const ALL: [&str; 41] = [
    FRONTENDS,
    SLOTS,
    BACKENDS,
    AFFINITY,
    SOCKET_FORWARD,
    SOCKET_REVERSE,
    SOCKETS_CONNECTED,
    STREAMS_CONNECTED,
    SENDERS,
    CONNTRACK,
    FRAGMENTS,
    COUNTERS,
    NODE,
    NODE_ADDRESSES,
    CALLS,
    ADDRESSES,
    RANGES,
    POD_RANGES,
    ANSWERS,
    PODS,
    BEYOND,
    SOURCE_RANGES,
    DROPS,
    DROP_GATES,
    DROPS_FOLLOWED,
    SERVICE_COUNTS,
    MASQUERADE,
    UNMASQUERADED,
    INBOUND,
    TABLES,
    OPEN,
    SOCKETS_COUNTED,
    COUNTING,
    SHORTCUTS,
    NEIGHBOURS,
    SCTP_TAGS,
    POLICING,
    POLICED,
    PEERS,
    RULES,
    POLICY_FLOWS,
];

/// Maps whose contents programs write and which may move while they do, as bits of the constant that programs in between
/// are loaded with.
pub mod bridged {
    /// The constant's name in the object.
    pub const NAME: &str = "BRIDGED";
    pub const CONNTRACK: u32 = 1;
    pub const AFFINITY: u32 = 2;
    pub const SOCKET_FORWARD: u32 = 4;
    pub const SOCKET_REVERSE: u32 = 8;
    pub const SOCKETS_CONNECTED: u32 = 16;
    /// With `CONNTRACK`: the flows come from a map of layout 0.
    pub const CONNTRACK_0: u32 = 32;

    /// Each with its bit, and the name under which programs in between know the map that contents come from.
    pub const ALL: [(&str, u32, &str); 5] = [
        (super::CONNTRACK, CONNTRACK, "CONNTRACK_OLD"),
        (super::AFFINITY, AFFINITY, "AFFINITY_OLD"),
        (super::SOCKET_FORWARD, SOCKET_FORWARD, "SOCK_FWD_OLD"),
        (super::SOCKET_REVERSE, SOCKET_REVERSE, "SOCK_REV_OLD"),
        (super::SOCKETS_CONNECTED, SOCKETS_CONNECTED, "SOCK_CONN_OLD"),
    ];
}

/// Maps of earlier layouts, unpinned once no program reads them. What lasts is taken over from them (`retired`);
/// fragments live for seconds, and counters begin anew.
pub const RETIRED: [&str; 5] = [FRONTENDS_1, SOCKETS_CONNECTED_1, CONNTRACK_0, "FRAGMENTS_1", "COUNTERS_1"];
pub const SOCKETS_CONNECTED_1: &str = "SOCK_CONN_1";
pub const FRONTENDS_1: &str = "FRONTENDS_1";
pub const CONNTRACK_0: &str = "CONNTRACK_0";

// An empty hash without preallocation costs 16 bytes for each entry that it may hold, an LRU all of them at once.
pub const FRONTENDS_MAX: u32 = 1 << 17;
pub const SLOTS_MAX: u32 = 1 << 18;
pub const BACKENDS_MAX: u32 = 1 << 18;
pub const AFFINITY_MAX: u32 = 1 << 15;
pub const SOCKET_FORWARD_MAX: u32 = 1 << 15;
pub const SOCKET_REVERSE_MAX: u32 = 1 << 15;
pub const SOCKETS_CONNECTED_MAX: u32 = 1 << 15;
pub const CONNTRACK_MAX: u32 = 1 << 19;
pub const FRAGMENTS_MAX: u32 = 1 << 12;
pub const NODE_ADDRESSES_MAX: u32 = 1 << 12;
pub const ADDRESSES_MAX: u32 = 1 << 17;
pub const PODS_MAX: u32 = 1 << 12;
pub const SOURCE_RANGES_MAX: u32 = 1 << 16;
/// Frontends that are asked for; the agent makes room, and what finds none is counted together.
pub const SERVICE_COUNTS_MAX: u32 = 1 << 12;
/// An empty trie costs nothing.
pub const UNMASQUERADED_MAX: u32 = 1 << 14;
/// Answers follow within seconds.
pub const INBOUND_MAX: u32 = 1 << 12;
/// Backends whose connections are counted.
pub const OPEN_MAX: u32 = 1 << 14;
pub const SOCKETS_COUNTED_MAX: u32 = 1 << 14;
/// Directions of flows that XDP sends on at one time. One without a shortcut is slower, and that is all.
pub const SHORTCUTS_MAX: u32 = 1 << 13;
/// Routers and backends on the uplink's own network.
pub const NEIGHBOURS_MAX: u32 = 1 << 9;
/// Associations whose verification tags are known.
pub const SCTP_TAGS_MAX: u32 = 1 << 11;
/// Links of pods that a policy selects.
pub const POLICED_MAX: u32 = PODS_MAX;
/// Addresses and ranges that a rule names. An empty trie costs nothing.
pub const PEERS_MAX: u32 = 1 << 18;
/// An empty trie costs nothing.
pub const RULES_MAX: u32 = 1 << 18;
/// Connections of policed pods that are open, or were closed without a word.
pub const POLICY_FLOWS_MAX: u32 = 1 << 15;
/// Pieces of tables, 481 of them and 67 kB for each.
pub const TABLES_MAX: u32 = 1 << 14;
/// A hundred milliseconds of what 16 CPUs may tell.
pub const DROPS_BYTES: u32 = 1 << 17;
/// Room for calls to come.
pub const CALLS_MAX: u32 = 16;
/// Room for counters to come.
pub const COUNTERS_MAX: u32 = 64;
