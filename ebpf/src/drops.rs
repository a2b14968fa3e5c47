//! Drops, told to somebody who follows them. While nobody does, a drop costs one look at a map more.
//!
//! The agent says until when it follows, and says so again and again: of an agent that is gone, nobody need know.

use aya_ebpf::{helpers::bpf_ktime_get_coarse_ns, programs::TcContext};
use ebpf_common::{Address, Dropped, Port, Protocol};

use crate::{
    error::Error,
    maps::{self, DROPS},
    packet::{ETHERNET_BYTES, ETHERTYPE_V4, ETHERTYPE_V6},
};

/// The agent looks by itself.
const BPF_RB_NO_WAKEUP: u64 = 1;

#[inline(always)]
pub fn tell(ctx: &TcContext, error: Error) {
    let until = maps::drops_followed_until();
    if until != 0 {
        tell_follower(ctx, error as u32, until);
    }
}

#[inline(never)]
fn tell_follower(ctx: &TcContext, reason: u32, until: u64) {
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    if now > until || !maps::take_drop(now) {
        return;
    }
    // SAFETY: fields of the context.
    let (interface_index, length) = unsafe { ((*ctx.skb.skb).ifindex, (*ctx.skb.skb).len) };
    let mut dropped = Dropped::new(now, reason, interface_index, length);
    describe(ctx, &mut dropped);
    match DROPS.reserve::<Dropped>(0) {
        Some(mut place) => {
            place.write(dropped);
            place.submit(BPF_RB_NO_WAKEUP);
        }
        None => maps::miss_drop(),
    }
}

/// Says as much of the packet as can be read. Behind extension headers and in later fragments the ports are not looked
/// for: a program that drops has little of its stack left.
#[inline(always)]
fn describe(ctx: &TcContext, dropped: &mut Dropped) {
    let mut transport = 0;
    match ctx.skb.protocol() {
        ETHERTYPE_V4 => {
            let Ok(header) = ctx.load::<[u32; 5]>(ETHERNET_BYTES) else { return };
            let second = header[1].to_ne_bytes();
            dropped.protocol.0 = header[2].to_ne_bytes()[1];
            dropped.source = Address::from_v4_word(header[3]);
            dropped.destination = Address::from_v4_word(header[4]);
            let header_bytes = (header[0].to_ne_bytes()[0] & 0x0f) as usize * 4;
            if header_bytes >= 20 && second[2] & 0x1f == 0 && second[3] == 0 {
                transport = ETHERNET_BYTES + header_bytes;
            }
        }
        ETHERTYPE_V6 => {
            let Ok(header) = ctx.load::<[u32; 10]>(ETHERNET_BYTES) else { return };
            dropped.protocol.0 = header[1].to_ne_bytes()[2];
            dropped.source = Address::from_words([header[2], header[3], header[4], header[5]]);
            dropped.destination = Address::from_words([header[6], header[7], header[8], header[9]]);
            transport = ETHERNET_BYTES + 40;
        }
        _ => return,
    }
    if transport != 0 && dropped.protocol.has_ports() {
        if let Ok(ports) = ctx.load::<[u8; 4]>(transport) {
            dropped.source_port = Port::from_network([ports[0], ports[1]]);
            dropped.destination_port = Port::from_network([ports[2], ports[3]]);
        }
    }
}
