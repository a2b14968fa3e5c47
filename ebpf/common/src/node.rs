//! What the programs know of the node itself.

use crate::Address;

/// The one element of its map, at 0. All zero until an agent has said more.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Node {
    /// Where backends on other machines see clients beyond the node; unspecified where the node has no such family.
    pub source_v4: Address,
    pub source_v6: Address,
    /// The network namespace of the node itself: only its sockets mean the node by a loopback address.
    pub netns_cookie: u64,
}

impl Node {
    pub const UNKNOWN: Self =
        Self { source_v4: Address::UNSPECIFIED, source_v6: Address::UNSPECIFIED, netns_cookie: 0 };

    /// The address of the node in the family of `peer`.
    #[inline(always)]
    pub const fn source_for(&self, peer: &Address) -> Address {
        if peer.is_v4() { self.source_v4 } else { self.source_v6 }
    }
}

const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<Node>() == 40 && align_of::<Node>() == 8);
    assert!(offset_of!(Node, source_v6) == 16 && offset_of!(Node, netns_cookie) == 32);
};

crate::pod!(Node);
