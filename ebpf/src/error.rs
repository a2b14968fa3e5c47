//! Why a packet was dropped or a socket call refused.

use ebpf_common::Counter;

use crate::maps;

/// Each reason is its own counter.
#[repr(u32)]
#[derive(Clone, Copy)]
pub enum Error {
    Refused = Counter::SocketRefused as u32,
    NoBackend = Counter::DropNoBackend as u32,
    NoLocalBackend = Counter::DropNoLocalBackend as u32,
    ConntrackFull = Counter::DropConntrackFull as u32,
    PortsExhausted = Counter::DropPortsExhausted as u32,
    Fragment = Counter::DropFragment as u32,
    Malformed = Counter::DropMalformed as u32,
    Rewrite = Counter::DropRewrite as u32,
}

impl Error {
    #[inline(always)]
    pub fn count(self) {
        maps::add(self as u32);
    }
}
