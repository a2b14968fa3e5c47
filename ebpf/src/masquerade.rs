//! Pods' traffic to hosts outside of the cluster: it leaves with the node's address, since nobody there need know the way
//! to a pod. Answers are translated where they enter.
//!
//! Only what a pod began is translated. Whoever asks a pod at its own address, as a fabric that knows the way can, gets
//! the answer from there. Who began is told without looking at what enters, but for datagrams:
//!
//! | protocol | a pod begins with | what answers |
//! |---|---|---|
//! | TCP | a SYN without ACK; all that follows is of a known flow, or is not translated | has no such SYN |
//! | SCTP | an INIT; all that follows is of a known flow, or is not translated | has no such chunk |
//! | ICMP | an echo request; errors follow the flow that they are about | is an echo reply |
//! | UDP | a datagram to who did not send one before | datagrams that come from outside are noted (INBOUND) |
//!
//! So a connection from before there was masquerading goes on under the pod's address, and one that was forgotten, after
//! hours of silence, is over. Other protocols, and echo messages in fragments, are not translated.

use aya_ebpf::{helpers::bpf_ktime_get_coarse_ns, programs::TcContext};
use ebpf_common::{Address, Call, Counter, Direction, Flow, LocalPod, Masquerade, Protocol, Tuple};

use crate::{
    conntrack,
    error::Error,
    icmp::{self, Echo},
    maps::{self, INBOUND},
    nat::{self, Verdict},
    packet::{
        self, ETHERNET_BYTES, ETHERTYPE_V4, ETHERTYPE_V6, Head, ICMP, ICMP_V6, Packet, Part, load, peek,
    },
};

/// As long as an answered datagram's flow is remembered.
const INBOUND_NS: u64 = 180_000_000_000;
/// Writing the time of each datagram would move the cache line between CPUs for nothing.
const TOUCH_NS: u64 = 1_000_000_000;

/// Whether a packet that leaves the node is one of a pod to outside of the cluster, or an ICMP message to there. Packets
/// between pods and of the node itself end here.
#[inline(never)]
pub fn may_concern(ctx: &TcContext) -> bool {
    let Some(masquerade) = maps::masquerade() else { return false };
    match ctx.skb.protocol() {
        ETHERTYPE_V4 => {
            let pods = &masquerade.pods.v4;
            if !pods.is_some() {
                return false;
            }
            let Ok(destination) = peek(ctx, ETHERNET_BYTES + 16) else { return false };
            if pods.contains(&Address::from_v4_word(destination)) {
                return false;
            }
            // Hops and protocol, source.
            let Ok([first, source]) = load::<[u32; 2]>(ctx, ETHERNET_BYTES + 8) else { return false };
            pods.contains(&Address::from_v4_word(source)) || first.to_ne_bytes()[1] == ICMP
        }
        ETHERTYPE_V6 => {
            let pods = &masquerade.pods.v6;
            if !pods.is_some() {
                return false;
            }
            let Ok(destination) = peek(ctx, ETHERNET_BYTES + 24) else { return false };
            if pods.contains(&Address::from_words(destination)) {
                return false;
            }
            let Ok(source) = load::<Address>(ctx, ETHERNET_BYTES + 8) else { return false };
            pods.contains(&source) || load::<u8>(ctx, ETHERNET_BYTES + 6).is_ok_and(|next| next == ICMP_V6)
        }
        _ => false,
    }
}

/// A packet of which [`may_concern`] says so.
#[inline(always)]
pub fn leave(ctx: &TcContext) -> Result<Verdict, Error> {
    let packet = packet::read(ctx)?;
    match packet.part {
        Part::Other => return Ok(Verdict::PASS),
        Part::Later => return nat::later_fragment(ctx, packet, false),
        Part::Icmp => {
            if !matches!(icmp::parse_echo(ctx, packet), Echo::Request) {
                return Ok(Verdict::Continue(Call::RelayLeaving));
            }
        }
        Part::Whole | Part::First => {}
    }
    let Some(masquerade) = maps::masquerade() else { return Ok(Verdict::PASS) };
    if let Some(found) = conntrack::find(&packet.tuple) {
        // SAFETY: an element of the map, alive for this run of the program.
        let flow = unsafe { &*found };
        if !flow.is_masqueraded() {
            return nat::of_service(ctx, packet, found);
        }
        if !flow.is_forward() {
            return Ok(Verdict::PASS);
        }
        if !conntrack::is_over(flow, packet) {
            conntrack::touch(ctx, found, packet);
            return translate(ctx, packet, flow, false).map(|()| Verdict::PASS);
        }
        conntrack::remove(&packet.tuple, flow);
    }
    let mut source = Address::UNSPECIFIED;
    if !is_begun_here(packet) || !is_for_outside(&packet.tuple, masquerade, &mut source) {
        return Ok(Verdict::PASS);
    }
    let mut flow = Flow::masqueraded(Direction::Forward, packet.tuple, 0);
    conntrack::open_masqueraded(ctx, &packet.tuple, &source, masquerade, &mut flow)?;
    maps::count(Counter::FlowNew);
    maps::count(Counter::Masqueraded);
    conntrack::note_first(ctx, packet);
    translate(ctx, packet, &flow, false).map(|()| Verdict::PASS)
}

/// Whether a packet of no known flow begins one.
#[inline(always)]
fn is_begun_here(packet: &Packet) -> bool {
    match packet.tuple.protocol {
        Protocol::TCP | Protocol::SCTP => packet.is_initial(),
        Protocol::UDP => !answers(&packet.tuple),
        _ => true,
    }
}

/// Whether a datagram goes to who sent one to the pod's own address.
#[inline(never)]
fn answers(tuple: &Tuple) -> bool {
    let Some(last_seen) = INBOUND.get_ptr_mut(tuple.reversed()) else { return false };
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    // SAFETY: an element of the map, alive for this run of the program; a torn time only ends it early.
    let idle = now.wrapping_sub(unsafe { *last_seen });
    if idle > INBOUND_NS {
        return false;
    }
    if idle > TOUCH_NS {
        // SAFETY: as above.
        unsafe { *last_seen = now };
    }
    true
}

/// Whether a flow gets the node's address, which `source` becomes. An echo request of the node itself has its identifier
/// for itself: a pod's flow that has the same gets another.
#[inline(never)]
fn is_for_outside(tuple: &Tuple, masquerade: &Masquerade, source: &mut Address) -> bool {
    if !masquerade.pods.contains(&tuple.source) {
        let answer = tuple.reversed();
        if let Some(found) = conntrack::find(&answer) {
            // SAFETY: an element of the map, alive for this run of the program.
            let flow = unsafe { &*found };
            if flow.is_masqueraded() && !flow.is_forward() {
                conntrack::remove(&answer, flow);
            }
        }
        return false;
    }
    let Some(node) = maps::node() else { return false };
    *source = node.source_for(&tuple.destination);
    *source != Address::UNSPECIFIED
        && tuple.destination.is_host()
        && !maps::is_unmasqueraded(&tuple.destination)
        && !maps::is_node_address(&tuple.source)
}

/// A packet for the node that may be an answer to a pod, or an ICMP message from beyond.
#[inline(always)]
pub fn come_back(ctx: &TcContext) -> Result<Verdict, Error> {
    let packet = packet::read(ctx)?;
    match packet.part {
        Part::Other | Part::Later => return Ok(Verdict::PASS),
        Part::Icmp => {
            if !matches!(icmp::parse_echo(ctx, packet), Echo::Reply) {
                return Ok(Verdict::Continue(Call::RelayEntering));
            }
        }
        Part::Whole | Part::First => {}
    }
    let Some(found) = conntrack::find(&packet.tuple) else { return Ok(Verdict::PASS) };
    // SAFETY: an element of the map, alive for this run of the program.
    let flow = unsafe { &*found };
    if !flow.is_masqueraded() || flow.is_forward() {
        return Ok(Verdict::PASS);
    }
    conntrack::touch(ctx, found, packet);
    translate(ctx, packet, flow, true)?;
    match nat::local_pod(packet, &flow.translated.destination) {
        // The pod may know its peer as a Service: then its edge translates once more.
        Some(pod) if pod.has_flows & LocalPod::POLICED != 0 => Ok(Verdict::Continue(Call::PoliceFinal)),
        Some(pod) if pod.has_flows == 0 || conntrack::find(&flow.translated).is_none() => {
            Ok(Verdict::Return(nat::hand_over(ctx, packet.is_v4, pod)))
        }
        _ => Ok(Verdict::PASS),
    }
}

#[inline(never)]
fn translate(ctx: &TcContext, packet: &Packet, flow: &Flow, entering: bool) -> Result<(), Error> {
    if packet.tuple.protocol.has_ports() {
        return nat::translate(ctx, packet, flow, entering);
    }
    maps::count(if flow.is_forward() { Counter::FlowForward } else { Counter::FlowReverse });
    icmp::rewrite_echo(ctx, packet, &flow.translated)
}

/// Whether it is no pod's, where there is masquerading.
#[inline(always)]
pub fn is_foreign(source: &Address) -> bool {
    let Some(masquerade) = maps::masquerade() else { return false };
    let pods = if source.is_v4() { &masquerade.pods.v4 } else { &masquerade.pods.v6 };
    pods.is_some() && !pods.contains(source)
}

/// Whether a packet, which begins with `head`, is a datagram from outside of the cluster.
#[inline(always)]
pub fn is_foreign_datagram(ctx: &TcContext, head: &Head) -> bool {
    const UDP: u8 = Protocol::UDP.0;
    let is_v4 = ctx.skb.protocol() == ETHERTYPE_V4;
    if head[ETHERNET_BYTES + if is_v4 { 9 } else { 6 }] != UDP {
        return false;
    }
    if is_v4 {
        is_foreign(&Address::from_v4_word(u32::from_ne_bytes([head[26], head[27], head[28], head[29]])))
    } else {
        load(ctx, ETHERNET_BYTES + 8).is_ok_and(|source| is_foreign(&source))
    }
}

/// Notes a datagram to a pod's own address, and forgets a flow that the pod is thought to have begun to its sender.
#[inline(never)]
pub fn note_inbound(ctx: &TcContext) -> bool {
    let Ok(packet) = packet::read(ctx) else { return false };
    if !matches!(packet.part, Part::Whole | Part::First) {
        return false;
    }
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    if let Some(last_seen) = INBOUND.get_ptr_mut(&packet.tuple) {
        // SAFETY: an element of the map, alive for this run of the program.
        let idle = now.wrapping_sub(unsafe { *last_seen });
        if idle > TOUCH_NS {
            // SAFETY: as above.
            unsafe { *last_seen = now };
        }
        if idle <= INBOUND_NS {
            return true;
        }
    } else if INBOUND.insert(&packet.tuple, now, 0).is_err() {
        return false;
    }
    let answer = packet.tuple.reversed();
    if let Some(found) = conntrack::find(&answer) {
        // SAFETY: an element of the map, alive for this run of the program.
        let flow = unsafe { &*found };
        if flow.is_masqueraded() && flow.is_forward() {
            conntrack::remove(&answer, flow);
        }
    }
    true
}
