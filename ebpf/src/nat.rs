//! Address translation per packet, at the client's edge: what enters from a client goes to a backend, what leaves
//! towards it comes from the frontend again. The backend's side needs no program.
//!
//! ```text
//!   client pod ==ingress==> DNAT -> FIB -> backend (a pod, this host, another node)
//!   client pod <==egress=== un-DNAT <- FIB <- backend
//!   hairpin: ingress -> full NAT -> out of the same link, both ways
//!   forwarded: client beyond ==ingress==> full NAT -> out of the same link -> backend beyond, and the same way back
//! ```
//!
//! A forwarded packet has an address of this node as its source, in one direction at least. The kernel takes that for a
//! forgery where packets are forwarded, so they go past its forwarding.

use aya_ebpf::programs::TcContext;
use aya_log_ebpf::debug;
use ebpf_common::{Backend, Call, Counter, Direction, Flow, Fragment, FrontendKey, Origin};

use crate::{
    conntrack,
    error::Error,
    maps::{self, FRAGMENTS},
    packet::{self, Packet, Part},
    service::{self, Client},
};

pub enum Verdict {
    /// The packet goes on, changed or not.
    Pass,
    /// The action that a helper asked for.
    Return(i32),
    /// Another program goes on with the packet, as it came.
    Continue(Call),
}

#[inline(always)]
pub fn towards_backend(ctx: &TcContext, origin: Origin) -> Result<Verdict, Error> {
    let mut packet = Packet::OTHER;
    packet::parse(ctx, &mut packet)?;
    match packet.part {
        Part::Other => return Ok(Verdict::Pass),
        Part::Icmp => return Ok(Verdict::Continue(Call::RelayEntering)),
        Part::Later => return later_fragment(ctx, &packet, true),
        Part::Whole | Part::First => {}
    }
    if let Some(found) = conntrack::find(&packet.tuple) {
        // SAFETY: an element of the map, alive for this run of the program.
        let flow = unsafe { &*found };
        if flow.is_forward() && conntrack::is_stale(flow, &packet) {
            conntrack::remove(&packet.tuple, flow);
        } else if flow.is_forward() || flow.turns_around() {
            conntrack::touch(found, &packet);
            translate(ctx, &packet, flow, true)?;
            return finish(ctx, flow);
        } else {
            // A backend's answer, translated at its client's edge.
            return Ok(Verdict::Pass);
        }
    }
    let mut key =
        FrontendKey::new(packet.tuple.destination, packet.tuple.destination_port, packet.tuple.protocol);
    let client = Client::Address(packet.tuple.source);
    let mut selected = None;
    service::select(&mut key, origin, &client, &mut selected)?;
    let Some(backend) = selected else {
        return service::stray(&packet.tuple.destination).map(|()| Verdict::Pass);
    };
    let mut flow = Flow::new(Direction::Forward, packet.tuple, backend.service_id, backend.id, false, 0);
    if is_beyond(origin, &backend) {
        conntrack::open_forwarded(ctx, &packet.tuple, &backend, &mut flow)?;
    } else {
        conntrack::open(&packet.tuple, &backend, &mut flow)?;
    }
    maps::count(Counter::FlowNew);
    log_new(ctx, &packet, &backend);
    translate(ctx, &packet, &flow, true)?;
    finish(ctx, &flow)
}

/// Whether client and backend are both beyond the node, so that answers come back only to an address of the node.
/// An endpoint may be this node without saying so, where somebody wrote it by hand.
#[inline(always)]
fn is_beyond(origin: Origin, backend: &Backend) -> bool {
    matches!(origin, Origin::Beyond) && backend.is_remote() && !maps::is_node_address(&backend.address)
}

#[inline(always)]
pub fn towards_client(ctx: &TcContext) -> Result<Verdict, Error> {
    let mut packet = Packet::OTHER;
    packet::parse(ctx, &mut packet)?;
    match packet.part {
        Part::Other => return Ok(Verdict::Pass),
        Part::Icmp => return Ok(Verdict::Continue(Call::RelayLeaving)),
        Part::Later => return later_fragment(ctx, &packet, false),
        Part::Whole | Part::First => {}
    }
    let Some(found) = conntrack::find(&packet.tuple) else { return Ok(Verdict::Pass) };
    // SAFETY: an element of the map, alive for this run of the program.
    let flow = unsafe { &*found };
    if flow.is_forward() || flow.turns_around() {
        return Ok(Verdict::Pass);
    }
    conntrack::touch(found, &packet);
    translate(ctx, &packet, flow, false).map(|()| Verdict::Pass)
}

#[inline(never)]
fn translate(ctx: &TcContext, packet: &Packet, flow: &Flow, entering: bool) -> Result<(), Error> {
    if flow.is_forwarded() {
        // First: what its sender is told quotes the packet as it came.
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
fn finish(ctx: &TcContext, flow: &Flow) -> Result<Verdict, Error> {
    if flow.is_forwarded() {
        return Ok(Verdict::Return(packet::send_on(ctx)));
    }
    if !flow.is_hairpin() {
        return Ok(Verdict::Pass);
    }
    maps::count(Counter::Hairpin);
    packet::turn_around(ctx).map(Verdict::Return)
}

/// A later fragment follows its first one, or passes as it is where that was not translated.
#[inline(always)]
fn later_fragment(ctx: &TcContext, packet: &Packet, entering: bool) -> Result<Verdict, Error> {
    // SAFETY: copied at once.
    let Some(fragment) = unsafe { FRAGMENTS.get(packet.fragment_key(entering)) }.copied() else {
        return Ok(Verdict::Pass);
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
        Ok(Verdict::Pass)
    }
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
