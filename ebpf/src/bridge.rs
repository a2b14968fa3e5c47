//! Maps that programs write, and what they do while the contents of one move to another: to a larger one, or to one of a
//! newer layout.
//!
//! ```text
//!   programs before   programs in between              programs after
//!   old               new, else old; write both        new
//! ```
//!
//! In between, what either neighbour writes is found, so hooks may change from one to the next one by one. Which maps move is a
//! constant of the loaded program ([`BRIDGED`]), so that the verifier leaves nothing of this in those before and after.

use core::borrow::Borrow;

use aya_ebpf::{
    Global,
    bindings::{BPF_F_NO_PREALLOC, BPF_NOEXIST},
    macros::map,
    maps::{HashMap, LruHashMap},
};
use ebpf_common::{
    Affinity, AffinityKey, ConnectedSocket, Flow, SocketForward, SocketKey, SocketReverse, Tuple,
    maps::bridged, retired::Flow0,
};

use crate::maps::{
    AFFINITY_MAP, CONNTRACK_MAP, SOCKET_FORWARD_MAP, SOCKET_REVERSE_MAP, SOCKETS_CONNECTED_MAP,
};

/// Bits of `ebpf_common::maps::bridged`; set by the loader.
#[unsafe(no_mangle)]
static BRIDGED: Global<u32> = Global::new(0);

// Where the loader says nothing, these are empty and nobody looks at them.
#[map(name = "CONNTRACK_OLD")]
static CONNTRACK_OLD: HashMap<Tuple, Flow> = HashMap::with_max_entries(1, BPF_F_NO_PREALLOC);
#[map(name = "CONNTRACK_0")]
static CONNTRACK_0: HashMap<Tuple, Flow0> = HashMap::with_max_entries(1, BPF_F_NO_PREALLOC);
#[map(name = "AFFINITY_OLD")]
static AFFINITY_OLD: HashMap<AffinityKey, Affinity> = HashMap::with_max_entries(1, BPF_F_NO_PREALLOC);
#[map(name = "SOCK_FWD_OLD")]
static SOCKET_FORWARD_OLD: HashMap<SocketKey, SocketForward> =
    HashMap::with_max_entries(1, BPF_F_NO_PREALLOC);
#[map(name = "SOCK_REV_OLD")]
static SOCKET_REVERSE_OLD: HashMap<SocketKey, SocketReverse> =
    HashMap::with_max_entries(1, BPF_F_NO_PREALLOC);
#[map(name = "SOCK_CONN_OLD")]
static SOCKETS_CONNECTED_OLD: HashMap<u64, ConnectedSocket> = HashMap::with_max_entries(1, BPF_F_NO_PREALLOC);

#[inline(always)]
fn is_bridged(bit: u32) -> bool {
    BRIDGED.load() & bit != 0
}

/// The map that contents come from. Frames of the stack are small and few here: where a flow is opened there is room for 96 bytes.
trait Old<K, V> {
    /// Whether the key was there; then it is in `new`.
    fn move_to<M: New<K, V>>(&self, new: &M, key: &K) -> bool;
    /// Where there is no room, only programs before miss it, for as long as a hook still has one.
    fn store(&self, key: &K, value: &V);
    fn forget(&self, key: &K);
}

/// The map that they go to. What is there already is newer than what comes.
trait New<K, V> {
    fn add(&self, key: &K, value: &V);
}

impl<K, V> New<K, V> for HashMap<K, V> {
    #[inline(always)]
    fn add(&self, key: &K, value: &V) {
        let _ = self.insert(key, value, BPF_NOEXIST as u64);
    }
}

impl<K, V> New<K, V> for LruHashMap<K, V> {
    #[inline(always)]
    fn add(&self, key: &K, value: &V) {
        let _ = self.insert(key, value, BPF_NOEXIST as u64);
    }
}

impl<K, V> Old<K, V> for HashMap<K, V> {
    #[inline(always)]
    fn move_to<M: New<K, V>>(&self, new: &M, key: &K) -> bool {
        let Some(value) = self.get_ptr(key) else { return false };
        // SAFETY: an element, alive for this run of the program. It is not copied to the stack on the way.
        new.add(key, unsafe { &*value });
        true
    }

    #[inline(always)]
    fn store(&self, key: &K, value: &V) {
        let _ = self.insert(key, value, 0);
    }

    #[inline(always)]
    fn forget(&self, key: &K) {
        let _ = self.remove(key);
    }
}

/// Flows of this layout, or of the one before.
struct OldFlows;

impl Old<Tuple, Flow> for OldFlows {
    #[inline(always)]
    fn move_to<M: New<Tuple, Flow>>(&self, new: &M, tuple: &Tuple) -> bool {
        if is_bridged(bridged::CONNTRACK_0) {
            move_layout_0(tuple)
        } else {
            CONNTRACK_OLD.move_to(new, tuple)
        }
    }

    #[inline(always)]
    fn store(&self, tuple: &Tuple, flow: &Flow) {
        if is_bridged(bridged::CONNTRACK_0) {
            store_layout_0(tuple, flow);
        } else {
            CONNTRACK_OLD.store(tuple, flow);
        }
    }

    #[inline(always)]
    fn forget(&self, tuple: &Tuple) {
        if is_bridged(bridged::CONNTRACK_0) {
            CONNTRACK_0.forget(tuple);
        } else {
            CONNTRACK_OLD.forget(tuple);
        }
    }
}

#[inline(never)]
fn move_layout_0(tuple: &Tuple) -> bool {
    let Some(old) = CONNTRACK_0.get_ptr(tuple) else { return false };
    // SAFETY: an element, alive for this run of the program.
    let flow = Flow::of_layout_0(unsafe { &*old });
    CONNTRACK_MAP.add(tuple, &flow);
    true
}

#[inline(never)]
fn store_layout_0(tuple: &Tuple, flow: &Flow) -> bool {
    CONNTRACK_0.insert(tuple, Flow0::of(flow), 0).is_ok()
}

macro_rules! moving {
    ($type:ident, $map:ident from $old:ident, $key:ty => $value:ty, $bit:expr) => {
        pub struct $type;

        impl $type {
            /// # Safety
            /// As of the map's own `get`.
            #[inline(always)]
            pub unsafe fn get(&self, key: impl Borrow<$key>) -> Option<&'static $value> {
                // SAFETY: an element, alive for this run of the program.
                self.get_ptr_mut(key).map(|found| unsafe { &*found })
            }

            #[inline(always)]
            pub fn get_ptr_mut(&self, key: impl Borrow<$key>) -> Option<*mut $value> {
                let key = key.borrow();
                match $map.get_ptr_mut(key) {
                    None if is_bridged($bit) && Self::fetch(key) => $map.get_ptr_mut(key),
                    found => found,
                }
            }

            #[inline(always)]
            pub fn insert(
                &self,
                key: impl Borrow<$key>,
                value: impl Borrow<$value>,
                flags: u64,
            ) -> Result<(), i32> {
                if !is_bridged($bit) {
                    return $map.insert(key, value, flags);
                }
                if flags == BPF_NOEXIST as u64 && $map.get_ptr(key.borrow()).is_none() {
                    Self::fetch(key.borrow());
                }
                match Self::insert_both(key.borrow(), value.borrow(), flags) {
                    0 => Ok(()),
                    error => Err(error),
                }
            }

            #[inline(always)]
            pub fn remove(&self, key: impl Borrow<$key>) -> Result<(), i32> {
                if !is_bridged($bit) {
                    return $map.remove(key);
                }
                Self::fetch(key.borrow());
                match Self::remove_both(key.borrow()) {
                    0 => Ok(()),
                    error => Err(error),
                }
            }

            /// Whether the old map had it, and the new one has it now.
            #[inline(never)]
            fn fetch(key: &$key) -> bool {
                $old.move_to(&$map, key)
            }

            #[inline(never)]
            fn insert_both(key: &$key, value: &$value, flags: u64) -> i32 {
                if let Err(error) = $map.insert(key, value, flags) {
                    return error;
                }
                $old.store(key, value);
                0
            }

            #[inline(never)]
            fn remove_both(key: &$key) -> i32 {
                $old.forget(key);
                $map.remove(key).err().unwrap_or(0)
            }
        }
    };
}

moving!(Conntrack, CONNTRACK_MAP from OldFlows, Tuple => Flow, bridged::CONNTRACK);
moving!(Affinities, AFFINITY_MAP from AFFINITY_OLD, AffinityKey => Affinity, bridged::AFFINITY);
moving!(
    SocketsForward,
    SOCKET_FORWARD_MAP from SOCKET_FORWARD_OLD,
    SocketKey => SocketForward,
    bridged::SOCKET_FORWARD
);
moving!(
    SocketsReverse,
    SOCKET_REVERSE_MAP from SOCKET_REVERSE_OLD,
    SocketKey => SocketReverse,
    bridged::SOCKET_REVERSE
);
moving!(
    SocketsConnected,
    SOCKETS_CONNECTED_MAP from SOCKETS_CONNECTED_OLD,
    u64 => ConnectedSocket,
    bridged::SOCKETS_CONNECTED
);
