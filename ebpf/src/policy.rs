//! Which traffic of pods is allowed (`ebpf_common::policy` says by what), judged once at the edge of each pod that a packet
//! passes.
//!
//! ```text
//!   policed pod ==ingress==> police: what it sends -> (judged: its Service) -> what enters another -> into that, or on
//!   node's stack ==egress==> police_entering: what enters the pod -> un-DNAT -> policed pod
//!   uplink ==ingress==> DNAT -> police_final: what enters the pod -> into the pod
//! ```
//!
//! Addresses are those behind Services: what goes to a Service is judged after its translation, an answer before. A
//! connection is judged when it begins and after rules changed, by the rules of the direction that it began in; its other
//! direction needs none. Where no pod is policed, none of this runs.

use aya_ebpf::{helpers::bpf_ktime_get_coarse_ns, programs::TcContext};
use ebpf_common::{
    Call, Flow, Fragment, FragmentKey, LocalPod, Policed, PolicyFlow, PolicyFlowKey, Port, Protocol, Tuple,
    sctp,
};

use crate::{
    conntrack,
    error::Error,
    icmp::{self, Message},
    maps::{self, FRAGMENTS, POLICY_FLOWS},
    nat::{self, Verdict},
    packet::{self, ETHERTYPE_V4, ETHERTYPE_V6, Packet, Part, TCP_ACK, TCP_FIN, TCP_RST, load},
};

/// Writing the time of each packet would move the cache line between CPUs for nothing.
const TOUCH_NS: u64 = 1_000_000_000;

/// What the rules say of a connection.
mod verdict {
    /// No policy selects the pod.
    pub const UNPOLICED: u32 = 0;
    /// None isolates it in this direction.
    pub const FREE: u32 = 1;
    /// The pod's own node, which always reaches it and is reached.
    pub const OWN: u32 = 2;
    pub const ALLOWED: u32 = 3;
    pub const DENIED: u32 = 4;
}

/// Whether the packet is at a policed pod's link.
#[inline(always)]
pub fn is_at_policed(ctx: &TcContext) -> bool {
    maps::policing().is_some_and(|policing| policing.links != 0) && maps::policed(link(ctx)).is_some()
}

#[inline(always)]
fn link(ctx: &TcContext) -> u32 {
    // SAFETY: a field of the context.
    unsafe { (*ctx.skb.skb).ifindex }
}

/// A packet that enters the node and is of a policed pod, or for one.
#[inline(always)]
pub fn police(ctx: &TcContext) -> Result<Verdict, Error> {
    let packet = packet::read(ctx)?;
    if !matches!(packet.part, Part::Whole) {
        return Ok(Verdict::Continue(Call::Judged));
    }
    // Not an option, whose lack leaves undefined what the verifier then finds copied.
    let mut answer: *mut Flow = core::ptr::null_mut();
    let pod = maps::local_pod(&packet.tuple.destination);
    match pod {
        Some(pod) if pod.has_flows & LocalPod::FLOWS != 0 => {
            if let Some(found) = conntrack::find(&packet.tuple) {
                // SAFETY: an element of the map, alive for this run of the program.
                let flow = unsafe { &*found };
                if flow.is_forward() || flow.turns_around() {
                    return Ok(Verdict::Continue(Call::Judged));
                }
                answer = found;
            }
        }
        None if !maps::is_in_pod_ranges(&packet.tuple.destination) => {
            return Ok(Verdict::Continue(Call::Judged));
        }
        Some(_) | None => {}
    }
    both_edges(ctx, packet, pod)?;
    let Some(pod) = pod else { return Ok(Verdict::Return(packet::route(ctx))) };
    if !answer.is_null() {
        conntrack::touch(ctx, answer, packet);
        // SAFETY: an element of the map, alive for this run of the program.
        nat::translate(ctx, packet, unsafe { &*answer }, false)?;
    }
    Ok(Verdict::Return(nat::hand_over(ctx, packet.is_v4, pod)))
}

/// The same, once its addresses are those behind Services.
#[inline(always)]
pub fn police_final(ctx: &TcContext) -> Result<Verdict, Error> {
    let packet = packet::read(ctx)?;
    if !matches!(packet.part, Part::Whole) {
        return Ok(Verdict::Continue(Call::PoliceRest));
    }
    // An answer to a pod that knows it as a Service's goes by the stack, and is judged behind it.
    let pod = match maps::local_pod(&packet.tuple.destination) {
        Some(pod) if pod.has_flows & LocalPod::FLOWS != 0 && conntrack::find(&packet.tuple).is_some() => None,
        pod => pod,
    };
    both_edges(ctx, packet, pod)?;
    if let Some(pod) = pod {
        Ok(Verdict::Return(nat::hand_over(ctx, packet.is_v4, pod)))
    } else if maps::is_in_pod_ranges(&packet.tuple.destination)
        && maps::local_pod(&packet.tuple.destination).is_none()
    {
        Ok(Verdict::Return(packet::route(ctx)))
    } else {
        Ok(Verdict::PASS)
    }
}

/// Of a pod of this node, and into the one that it is handed over to.
#[inline(always)]
fn both_edges(ctx: &TcContext, packet: &Packet, pod: Option<&LocalPod>) -> Result<(), Error> {
    let link = link(ctx);
    if maps::policed(link).is_some() {
        judge(ctx, packet, link, false)?;
    }
    match pod {
        Some(pod) if pod.has_flows & LocalPod::POLICED != 0 => judge(ctx, packet, pod.interface_index, true),
        _ => Ok(()),
    }
}

/// What is no whole packet with ports, at its sender's edge. It goes by the node's stack.
#[inline(always)]
pub fn police_rest(ctx: &TcContext) -> Result<Verdict, Error> {
    let packet = packet::read(ctx)?;
    let is_icmp = matches!(packet.part, Part::Icmp);
    if maps::policed(link(ctx)).is_some() {
        any(ctx, packet, false)?;
    }
    Ok(if is_icmp { Verdict::Continue(Call::RelayEntering) } else { Verdict::PASS })
}

/// What leaves the node's stack for a pod.
#[inline(always)]
pub fn police_entering(ctx: &TcContext) -> Result<Verdict, Error> {
    let packet = packet::read(ctx)?;
    let is_icmp = matches!(packet.part, Part::Icmp);
    any(ctx, packet, true)?;
    Ok(Verdict::Continue(if is_icmp { Call::RelayLeaving } else { Call::TowardsClient }))
}

#[inline(always)]
fn any(ctx: &TcContext, packet: &mut Packet, entering: bool) -> Result<(), Error> {
    let link = link(ctx);
    match packet.part {
        Part::Whole => judge(ctx, packet, link, entering),
        Part::First => {
            judge(ctx, packet, link, entering)?;
            note_fragment(packet, entering)
        }
        Part::Later => later_fragment(packet, link, entering),
        Part::Icmp => judge_icmp(ctx, packet, link, entering),
        Part::Other if ctx.skb.protocol() == ETHERTYPE_V4 || ctx.skb.protocol() == ETHERTYPE_V6 => {
            judge(ctx, packet, link, entering)
        }
        Part::Other => Ok(()),
    }
}

/// Judges a packet at the edge of the pod with this link, whose addresses and ports are known.
#[inline(never)]
fn judge(ctx: &TcContext, packet: &Packet, link: u32, entering: bool) -> Result<(), Error> {
    let key = if entering { packet.tuple.reversed() } else { packet.tuple };
    let begins = packet.is_initial();
    let generation = maps::policing().map_or(0, |policing| policing.generation);
    if !begins && let Some(found) = POLICY_FLOWS.get_ptr_mut(&key) {
        // SAFETY: an element of the map, alive for this run of the program.
        let flow = unsafe { &mut *found };
        if flow.generation != generation {
            if rules_say(link, &key, flow.inbound != 0) == verdict::DENIED {
                let _ = POLICY_FLOWS.remove(&key);
                return denied(entering);
            }
            flow.generation = generation;
        }
        touch(ctx, flow, packet, entering, &key);
        return Ok(());
    }
    match rules_say(link, &key, entering) {
        verdict::ALLOWED => {
            // Where answers need no leave, they find their way without.
            if note(&key, generation, entering) || is_free(link, !entering) {
                Ok(())
            } else {
                Err(Error::PolicyFull)
            }
        }
        // What goes on in the middle of a connection says nothing about who began it.
        verdict::FREE if begins || !has_beginning(key.protocol) => {
            // Allowed it is in any case; only its answers may find no leave where there is no room.
            if !maps::is_node_address(&key.destination) {
                note(&key, generation, entering);
            }
            Ok(())
        }
        verdict::DENIED if !(entering && is_of_own_making(packet, &key)) => denied(entering),
        _ => Ok(()),
    }
}

#[inline(always)]
fn denied(entering: bool) -> Result<(), Error> {
    Err(if entering { Error::PolicyIngress } else { Error::PolicyEgress })
}

const fn has_beginning(protocol: Protocol) -> bool {
    matches!(protocol, Protocol::TCP | Protocol::SCTP)
}

/// What a pod's own packet became on its way back to it: its Service led to itself, or refused it.
#[inline(never)]
fn is_of_own_making(packet: &Packet, key: &PolicyFlowKey) -> bool {
    if let Some(found) = conntrack::find(key) {
        // SAFETY: an element of the map, alive for this run of the program.
        return unsafe { (*found).is_hairpin() };
    }
    packet.tcp_flags & TCP_RST != 0 && maps::has_frontend(&key.destination)
}

#[inline(never)]
fn is_free(link: u32, inbound: bool) -> bool {
    maps::policed(link).is_none_or(|policed| !rules_of(policed, inbound).is_some())
}

#[inline(always)]
const fn rules_of(policed: &Policed, inbound: bool) -> ebpf_common::RulesId {
    if inbound { policed.ingress } else { policed.egress }
}

/// What the rules say of a connection of the pod with this link, one of [`verdict`].
#[inline(never)]
fn rules_say(link: u32, key: &PolicyFlowKey, inbound: bool) -> u32 {
    let Some(policed) = maps::policed(link) else { return verdict::UNPOLICED };
    let rules = rules_of(policed, inbound);
    if !rules.is_some() {
        return verdict::FREE;
    }
    let peer = &key.destination;
    if maps::is_node_address(peer) || key.source == *peer {
        return verdict::OWN;
    }
    let port = match key.protocol.has_ports() {
        true if inbound => key.source_port,
        true => key.destination_port,
        false => Port::new(0),
    };
    if maps::allows(rules, maps::group_of(peer), key.protocol, port) {
        verdict::ALLOWED
    } else {
        verdict::DENIED
    }
}

#[inline(never)]
fn note(key: &PolicyFlowKey, generation: u32, inbound: bool) -> bool {
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    POLICY_FLOWS.insert(key, PolicyFlow::new(generation, inbound, now), 0).is_ok()
}

#[inline(always)]
fn touch(ctx: &TcContext, flow: &mut PolicyFlow, packet: &Packet, entering: bool, key: &PolicyFlowKey) {
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    if now.wrapping_sub(flow.last_seen_ns) > TOUCH_NS {
        flow.last_seen_ns = now;
    }
    if flow.answered == 0 && (flow.inbound != 0) != entering {
        flow.answered = 1;
    }
    if packet.tuple.protocol == Protocol::TCP {
        if packet.tcp_flags & (TCP_FIN | TCP_RST) != 0 || (flow.pod_closing | flow.peer_closing) != 0 {
            note_end(ctx, flow, packet, entering, key);
        }
    } else if packet.chunks & sctp::CLOSING != 0 {
        flow.pod_closing = PolicyFlow::FIN;
    }
}

/// Notes what a packet of TCP says of its connection's end, and forgets that once both sides know of it.
#[inline(never)]
fn note_end(
    ctx: &TcContext,
    flow: &mut PolicyFlow,
    packet: &Packet,
    entering: bool,
    key: &PolicyFlowKey,
) -> u32 {
    let (mut own, mut other) = (flow.pod_closing, flow.peer_closing);
    let (mut own_end, mut other_end) = (flow.pod_end, flow.peer_end);
    if entering {
        (own, other, own_end, other_end) = (other, own, other_end, own_end);
    }
    if packet.tcp_flags & TCP_RST != 0 {
        own = PolicyFlow::RESET;
    } else if own == PolicyFlow::RESET {
        own = 0;
    }
    if let Ok([sequence, acknowledged]) = load::<[u32; 2]>(ctx, packet.transport + 4) {
        if packet.tcp_flags & TCP_FIN != 0 && own == 0 {
            own = PolicyFlow::FIN;
            own_end = u32::from_be(sequence).wrapping_add(payload_bytes(ctx, packet)).wrapping_add(1);
        }
        if other == PolicyFlow::FIN
            && packet.tcp_flags & TCP_ACK != 0
            && u32::from_be(acknowledged).wrapping_sub(other_end) as i32 >= 0
        {
            other = PolicyFlow::CONFIRMED;
        }
    }
    if own == PolicyFlow::CONFIRMED && other == PolicyFlow::CONFIRMED {
        let _ = POLICY_FLOWS.remove(key);
        return 0;
    }
    if entering {
        (flow.peer_closing, flow.pod_closing) = (own, other);
        flow.peer_end = own_end;
    } else {
        (flow.pod_closing, flow.peer_closing) = (own, other);
        flow.pod_end = own_end;
    }
    0
}

/// What is sent behind a header of TCP. A frame of the least size may be filled up.
#[inline(always)]
fn payload_bytes(ctx: &TcContext, packet: &Packet) -> u32 {
    const LEAST: u32 = 60;
    let words: u8 = load(ctx, packet.transport + 12).unwrap_or(0);
    let length = ctx.len();
    if length <= LEAST { 0 } else { length.saturating_sub(packet.transport as u32 + (words >> 4) as u32 * 4) }
}

/// Later fragments follow a first one that was allowed.
#[inline(never)]
fn note_fragment(packet: &Packet, entering: bool) -> Result<(), Error> {
    let key: FragmentKey = packet.fragment_key(entering).judged(entering);
    FRAGMENTS.insert(key, Fragment::JUDGED, 0).map_err(|_| Error::Fragment)
}

#[inline(never)]
fn later_fragment(packet: &Packet, link: u32, entering: bool) -> Result<(), Error> {
    let key: FragmentKey = packet.fragment_key(entering).judged(entering);
    if FRAGMENTS.get_ptr(key).is_some() || is_free(link, entering) {
        return Ok(());
    }
    let peer = if entering { &packet.tuple.source } else { &packet.tuple.destination };
    if maps::is_node_address(peer) { Ok(()) } else { Err(Error::FragmentEarly) }
}

/// A whole ICMP message: an echo is a connection of its own, an error is one about a connection that is known.
#[inline(never)]
fn judge_icmp(ctx: &TcContext, packet: &mut Packet, link: u32, entering: bool) -> Result<(), Error> {
    match icmp::message(ctx, packet) {
        Message::Echo => judge(ctx, packet, link, entering),
        Message::Neighbours => Ok(()),
        Message::Error if is_about_known(ctx, entering) => Ok(()),
        Message::Error | Message::Other => {
            let key = if entering { packet.tuple.reversed() } else { packet.tuple };
            if rules_say(link, &key, entering) == verdict::DENIED { denied(entering) } else { Ok(()) }
        }
    }
}

/// Whether an error is about a packet of a connection of the pod, or the pod's Service refused it.
#[inline(never)]
fn is_about_known(ctx: &TcContext, entering: bool) -> bool {
    let mut quoted = Packet::OTHER.tuple;
    let mut is_from_peer = false;
    if !icmp::quoted(ctx, &mut quoted, &mut is_from_peer) {
        return false;
    }
    // What the pod sent, or would have to send as an answer.
    let mut key: Tuple = if entering { quoted } else { quoted.reversed() };
    if !entering && let Some(found) = conntrack::find(&key) {
        // SAFETY: an element of the map, alive for this run of the program.
        let flow = unsafe { &*found };
        if flow.is_hairpin() {
            return true;
        }
        if flow.is_forward() && !flow.is_masqueraded() {
            key = flow.translated;
        }
    }
    POLICY_FLOWS.get_ptr(key).is_some() || (entering && is_from_peer && maps::has_frontend(&key.destination))
}
