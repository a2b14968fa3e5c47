//! Drops as they are told to somebody who follows them.

use crate::{Address, Bucket, Port, Protocol};

/// A packet that was dropped.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Dropped {
    /// CLOCK_MONOTONIC.
    pub time_ns: u64,
    /// Both unspecified where the packet is too short to have any.
    pub source: Address,
    pub destination: Address,
    /// 0 in a later fragment, and where the protocol has none.
    pub source_port: Port,
    pub destination_port: Port,
    pub protocol: Protocol,
    zero: [u8; 3],
    /// A [`crate::Counter`].
    pub reason: u32,
    pub interface_index: u32,
    /// In bytes, the link's header included.
    pub length: u32,
    zero_end: u32,
}

impl Dropped {
    #[inline(always)]
    pub const fn new(time_ns: u64, reason: u32, interface_index: u32, length: u32) -> Self {
        Self {
            time_ns,
            source: Address::UNSPECIFIED,
            destination: Address::UNSPECIFIED,
            source_port: Port::new(0),
            destination_port: Port::new(0),
            protocol: Protocol(0),
            zero: [0; 3],
            reason,
            interface_index,
            length,
            zero_end: 0,
        }
    }
}

/// How many drops a CPU may tell: what is more is only counted.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DropGate {
    pub bucket: Bucket,
    /// Drops that were not told while somebody followed.
    pub missed: u64,
}

const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<Dropped>() == 64 && offset_of!(Dropped, source_port) == 40);
    assert!(offset_of!(Dropped, protocol) == 44 && offset_of!(Dropped, reason) == 48);
    assert!(size_of::<DropGate>() == 24 && offset_of!(DropGate, missed) == 16);
};

crate::pod!(Dropped, DropGate);
