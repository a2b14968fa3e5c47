//! Address translation per packet, at the client's edge: what enters from a client goes to a backend, what leaves
//! towards it comes from the frontend again. The backend's side needs no program.
//!
//! ```text
//!   client pod ==ingress==> DNAT -> FIB -> backend (this host, another node)
//!   client pod <==egress=== un-DNAT <- FIB <- backend
//!   to a pod of this node: ingress -> DNAT or un-DNAT -> into the pod, past the node's stack and the pod's egress
//!   from a pod to one of another node: ingress -> DNAT -> kernel's route -> out of that link, past the node's stack
//!   hairpin: ingress -> full NAT -> out of the same link, both ways
//!   forwarded: client beyond ==ingress==> full NAT -> out of the same link -> backend beyond, and the same way back
//!   masqueraded (`masquerade`): pod -> FIB -> uplink ==egress==> SNAT -> host outside of the cluster, and back there
//! ```
//!
//! A forwarded packet has an address of this node as its source, in one direction at least. The kernel takes that for a
//! forgery where packets are forwarded, so they go past its forwarding.

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC},
    programs::TcContext,
};
use aya_log_ebpf::debug;
use ebpf_common::{
    Address, Backend, Call, Counter, Direction, Flow, Fragment, FrontendKey, LocalPod, Origin,
};

use crate::{
    answer, conntrack,
    deliver::{self, FOREIGN, ON_ANOTHER_NODE, OTHERS, POLICED},
    error::Error,
    maps::{self, FRAGMENTS},
    masquerade,
    packet::{self, Packet, Part},
    service::{self, Client},
};

pub enum Verdict {
    /// An action, such as a helper asked for.
    Return(i32),
    /// Another program goes on with the packet, as it came.
    Continue(Call),
}

impl Verdict {
    /// The packet goes on, changed or not; others on the same hook go on with it. Not a case of its own, as what that leaves
    /// undefined may be a pointer, with which the verifier lets nobody calculate.
    pub const PASS: Self = Self::Return(TC_ACT_UNSPEC);
}

/// A packet for a pod of this node none of whose flows is translated: it is handed over as it is, and nothing is looked
/// up but the pod. So is what a pod sends to one of another node, nothing but the route. So nobody takes a pod's
/// address away from it, as an externalIP.
#[inline(always)]
pub fn untranslated(ctx: &TcContext, origin: Origin) -> Option<i32> {
    let mut action = hand_over_untranslated(ctx, matches!(origin, Origin::Beyond));
    if matches!(origin, Origin::Beyond) && action == FOREIGN {
        masquerade::note_inbound(ctx);
        action = hand_over_untranslated(ctx, false);
    }
    match (action, origin) {
        // From here, as the stack has no room for one more call there.
        (ON_ANOTHER_NODE, Origin::Node) => Some(packet::route(ctx)),
        (POLICED, _) => {
            maps::call(ctx, Call::Police);
            Some(TC_ACT_SHOT as i32)
        }
        (OTHERS | ON_ANOTHER_NODE, _) => None,
        (action, _) => Some(action),
    }
}

#[inline(never)]
fn hand_over_untranslated(ctx: &TcContext, is_beyond: bool) -> i32 {
    if let Some(action) = deliver::in_place(ctx, is_beyond) {
        return action;
    }
    let Ok(mut head) = packet::load(ctx, 0) else { return OTHERS };
    let Some(destination) = packet::destination(ctx, &head) else { return OTHERS };
    match maps::local_pod(&destination) {
        Some(_) if is_beyond && masquerade::is_foreign_datagram(ctx, &head) => FOREIGN,
        Some(pod) if pod.has_flows == 0 => packet::hand_over(ctx, &mut head, destination.is_v4(), pod),
        Some(pod) if pod.has_flows & LocalPod::POLICED != 0 => POLICED,
        None if maps::is_in_pod_ranges(&destination) => ON_ANOTHER_NODE,
        _ => OTHERS,
    }
}

/// What may have to be done with a packet that leaves for a pod, as `has_flows` says it.
#[inline(never)]
pub fn flows_of_receiver(ctx: &TcContext) -> u32 {
    let Ok(head) = packet::load(ctx, 0) else { return u32::MAX };
    let Some(destination) = packet::destination(ctx, &head) else { return u32::MAX };
    maps::local_pod(&destination).map_or(u32::MAX, |pod| pod.has_flows)
}

/// `JUDGED` is of what a policed pod sends: then nothing goes on before it was judged.
#[inline(always)]
pub fn towards_backend<const JUDGED: bool>(ctx: &TcContext, origin: Origin) -> Result<Verdict, Error> {
    let packet = packet::read(ctx)?;
    match packet.part {
        Part::Other | Part::Icmp if JUDGED => return Ok(Verdict::Continue(Call::PoliceRest)),
        Part::Other => return Ok(Verdict::PASS),
        Part::Icmp => {
            return Ok(Verdict::Continue(match origin {
                Origin::Node => Call::RelayEntering,
                Origin::Beyond => Call::Unmasquerade,
            }));
        }
        Part::Later => {
            return match later_fragment(ctx, packet, true)? {
                Verdict::Return(TC_ACT_UNSPEC) if JUDGED => Ok(Verdict::Continue(Call::PoliceRest)),
                verdict => Ok(verdict),
            };
        }
        Part::Whole | Part::First => {}
    }
    if let Some(found) = conntrack::find(&packet.tuple) {
        // SAFETY: an element of the map, alive for this run of the program.
        let flow = unsafe { &*found };
        if flow.is_masqueraded() {
            // What a pod sends goes by its Services first; what comes for one comes from beyond.
            if matches!(origin, Origin::Beyond) {
                return Ok(Verdict::Continue(Call::Unmasquerade));
            }
        } else if flow.is_forward() && conntrack::is_stale(flow, packet) {
            conntrack::remove(&packet.tuple, flow);
        } else if flow.is_forward() || flow.turns_around() {
            conntrack::touch(ctx, found, packet);
            translate(ctx, packet, flow, true)?;
            return finish::<JUDGED>(ctx, packet, flow, origin);
        } else {
            return if JUDGED { Ok(to_judge(packet)) } else { answered(ctx, packet, found) };
        }
    }
    let mut key =
        FrontendKey::new(packet.tuple.destination, packet.tuple.destination_port, packet.tuple.protocol);
    let client = Client::of_packet(packet.tuple.source);
    let mut selected = None;
    let port = u16::from_ne_bytes(packet.tuple.source_port.to_network());
    service::select(&mut key, origin, &client, port as u32, &mut selected)?;
    let Some(backend) = &selected else {
        service::stray(&packet.tuple.destination)?;
        return Ok(deliver::<JUDGED>(ctx, packet, &packet.tuple.destination, origin));
    };
    match origin {
        Origin::Node => maps::note_client(&packet.tuple.source),
        Origin::Beyond => maps::note_beyond(),
    }
    let mut flow = Flow::new(Direction::Forward, packet.tuple, backend.service_id, backend.id, false, 0);
    if is_beyond(origin, backend) {
        conntrack::open_forwarded(ctx, &packet.tuple, backend, &mut flow)?;
    } else {
        conntrack::open(&packet.tuple, backend, &mut flow)?;
    }
    if backend.is_counted() {
        maps::add_open(backend.id, 1);
    }
    maps::count(Counter::FlowNew);
    conntrack::note_first(ctx, packet);
    log_new(ctx, packet, backend);
    translate(ctx, packet, &flow, true)?;
    finish::<JUDGED>(ctx, packet, &flow, origin)
}

/// A backend's answer is translated at its client's edge: here, where it is handed over to the client from here.
#[inline(always)]
fn answered(ctx: &TcContext, packet: &Packet, found: *mut Flow) -> Result<Verdict, Error> {
    let Some(pod) = local_pod(packet, &packet.tuple.destination) else { return Ok(Verdict::PASS) };
    conntrack::touch(ctx, found, packet);
    // SAFETY: an element of the map, alive for this run of the program.
    translate(ctx, packet, unsafe { &*found }, false)?;
    Ok(Verdict::Return(hand_over(ctx, packet.is_v4, pod)))
}

/// What leads to a pod of this node needs the node's stack for nothing. Fragments go through it, one after the other.
#[inline(always)]
pub fn local_pod(packet: &Packet, destination: &Address) -> Option<&'static LocalPod> {
    if matches!(packet.part, Part::Whole) { maps::local_pod(destination) } else { None }
}

/// Its addresses are those behind Services.
#[inline(always)]
fn to_judge(packet: &Packet) -> Verdict {
    Verdict::Continue(if matches!(packet.part, Part::Whole) { Call::PoliceFinal } else { Call::PoliceRest })
}

#[inline(always)]
fn deliver<const JUDGED: bool>(
    ctx: &TcContext,
    packet: &Packet,
    destination: &Address,
    origin: Origin,
) -> Verdict {
    if JUDGED {
        return to_judge(packet);
    }
    if let Some(pod) = local_pod(packet, destination) {
        if pod.has_flows & LocalPod::POLICED != 0 {
            return Verdict::Continue(Call::PoliceFinal);
        }
        return Verdict::Return(hand_over(ctx, packet.is_v4, pod));
    }
    if matches!(origin, Origin::Node)
        && matches!(packet.part, Part::Whole)
        && maps::is_in_pod_ranges(destination)
    {
        return Verdict::Return(packet::route(ctx));
    }
    Verdict::PASS
}

#[inline(never)]
pub fn hand_over(ctx: &TcContext, is_v4: bool, pod: &LocalPod) -> i32 {
    let Ok(mut head) = packet::load(ctx, 0) else { return TC_ACT_UNSPEC };
    packet::hand_over(ctx, &mut head, is_v4, pod)
}

/// Whether client and backend are both beyond the node, so that answers come back only to an address of the node.
/// An endpoint may be this node without saying so, where somebody wrote it by hand.
#[inline(always)]
fn is_beyond(origin: Origin, backend: &Backend) -> bool {
    matches!(origin, Origin::Beyond) && backend.is_remote() && !maps::is_node_address(&backend.address)
}

#[inline(always)]
pub fn towards_client(ctx: &TcContext) -> Result<Verdict, Error> {
    let packet = packet::read(ctx)?;
    match packet.part {
        Part::Other => return Ok(Verdict::PASS),
        Part::Icmp => return Ok(Verdict::Continue(Call::RelayLeaving)),
        Part::Later => return later_fragment(ctx, packet, false),
        Part::Whole | Part::First => {}
    }
    let Some(found) = conntrack::find(&packet.tuple) else { return Ok(Verdict::PASS) };
    of_service(ctx, packet, found)
}

/// A packet on its way out of the node, which may be a backend's answer to its client there.
#[inline(always)]
pub fn of_service(ctx: &TcContext, packet: &Packet, found: *mut Flow) -> Result<Verdict, Error> {
    // SAFETY: an element of the map, alive for this run of the program.
    let flow = unsafe { &*found };
    if flow.is_forward() || flow.turns_around() {
        return Ok(Verdict::PASS);
    }
    conntrack::touch(ctx, found, packet);
    translate(ctx, packet, flow, false).map(|()| Verdict::PASS)
}

#[inline(never)]
pub fn translate(ctx: &TcContext, packet: &Packet, flow: &Flow, entering: bool) -> Result<(), Error> {
    if flow.is_forwarded() {
        // First: what its sender is told quotes the packet as it came.
        let mtu = packet::exceeded_mtu(ctx, packet, &flow.translated);
        if mtu != 0 {
            answer::note_mtu(ctx, mtu);
            return Err(Error::TooBig);
        }
        packet::take_hop(ctx, packet.is_v4)?;
    }
    if matches!(packet.part, Part::First) {
        let fragment = Fragment::of(flow);
        FRAGMENTS.insert(packet.fragment_key(entering), fragment, 0).map_err(|_| Error::Fragment)?;
    }
    maps::count(if flow.is_forward() { Counter::FlowForward } else { Counter::FlowReverse });
    packet::rewrite(ctx, packet, &flow.translated)
}

#[inline(always)]
fn finish<const JUDGED: bool>(
    ctx: &TcContext,
    packet: &Packet,
    flow: &Flow,
    origin: Origin,
) -> Result<Verdict, Error> {
    if flow.is_forwarded() {
        return Ok(Verdict::Return(packet::send_on(ctx)));
    }
    if !flow.is_hairpin() {
        return Ok(deliver::<JUDGED>(ctx, packet, &flow.translated.destination, origin));
    }
    maps::count(Counter::Hairpin);
    packet::turn_around(ctx).map(Verdict::Return)
}

/// A later fragment follows its first one, or passes as it is where that was not translated. One for a Service that came
/// before its first has no ports to choose a backend by, and nothing here can wait for them.
#[inline(never)]
pub fn later_fragment(ctx: &TcContext, packet: &Packet, entering: bool) -> Result<Verdict, Error> {
    // SAFETY: copied at once.
    let Some(fragment) = unsafe { FRAGMENTS.get(packet.fragment_key(entering)) }.copied() else {
        let is_lost = entering && is_of_services_only(&packet.tuple.destination);
        return if is_lost { Err(Error::FragmentEarly) } else { Ok(Verdict::PASS) };
    };
    if fragment.is_forwarded() {
        packet::take_hop(ctx, packet.is_v4)?;
    }
    packet::rewrite_fragment(ctx, packet, &fragment)?;
    if fragment.is_forwarded() {
        Ok(Verdict::Return(packet::send_on(ctx)))
    } else if fragment.is_hairpin() {
        packet::turn_around(ctx).map(Verdict::Return)
    } else {
        Ok(Verdict::PASS)
    }
}

/// What is for an address of the node may be for a socket there.
#[inline(never)]
fn is_of_services_only(address: &Address) -> bool {
    if maps::is_node_address(address) {
        return false;
    }
    maps::has_frontend(address)
}

#[inline(never)]
fn log_new(ctx: &TcContext, packet: &Packet, backend: &Backend) -> bool {
    let tuple = &packet.tuple;
    debug!(
        ctx,
        "flow {:i}:{} -> {:i}:{} goes to {:i}:{}",
        tuple.source.octets(),
        tuple.source_port.get(),
        tuple.destination.octets(),
        tuple.destination_port.get(),
        backend.address.octets(),
        backend.port.get()
    );
    true
}
