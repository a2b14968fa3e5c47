//! Address translation per packet, at the client's edge: what enters from a client goes to a backend, what leaves
//! towards it comes from the frontend again. The backend's side needs no program.
//!
//! ```text
//!   client pod ==ingress==> DNAT -> FIB -> backend (a pod, this host, another node)
//!   client pod <==egress=== un-DNAT <- FIB <- backend
//!   hairpin: ingress -> full NAT -> out of the same link, both ways
//! ```

use aya_ebpf::programs::TcContext;
use aya_log_ebpf::debug;
use ebpf_common::{Backend, Counter, Direction, Flow, Fragment, FrontendKey};

use crate::{
    conntrack,
    error::Error,
    maps::{self, FRAGMENTS},
    packet::{self, Packet, Part},
    service::{self, Client},
};

/// Which backends a client may get. One beyond the node gets those of this node: the answer of another would not come
/// back this way.
#[derive(Clone, Copy)]
pub enum Scope {
    Cluster,
    Node,
}

pub enum Verdict {
    /// The packet goes on, changed or not.
    Pass,
    /// The action that a helper asked for.
    Return(i32),
}

#[inline(always)]
pub fn towards_backend(ctx: &TcContext, scope: Scope) -> Result<Verdict, Error> {
    let mut packet = Packet::OTHER;
    packet::parse(ctx, &mut packet)?;
    match packet.part {
        Part::Other => return Ok(Verdict::Pass),
        Part::Later => return later_fragment(ctx, &packet).map(|()| Verdict::Pass),
        Part::Whole | Part::First => {}
    }
    if let Some(found) = conntrack::find(&packet.tuple) {
        // SAFETY: an element of the map, alive for this run of the program.
        let flow = unsafe { &*found };
        if flow.is_forward() && conntrack::is_stale(flow, &packet) {
            conntrack::remove(&packet.tuple, flow);
        } else if flow.is_forward() || flow.is_hairpin() {
            conntrack::touch(found, &packet);
            translate(ctx, &packet, flow)?;
            return finish(ctx, flow);
        } else {
            // A backend's answer, translated at its client's edge.
            return Ok(Verdict::Pass);
        }
    }
    let key =
        FrontendKey::new(packet.tuple.destination, packet.tuple.destination_port, packet.tuple.protocol);
    let client = Client::Address(packet.tuple.source);
    let mut selected = None;
    service::select(&key, scope, &client, &mut selected)?;
    let Some(backend) = selected else { return Ok(Verdict::Pass) };
    let mut flow = Flow::new(Direction::Forward, packet.tuple, backend.service_id, backend.id, false, 0);
    conntrack::open(&packet.tuple, &backend, &mut flow)?;
    maps::count(Counter::FlowNew);
    log_new(ctx, &packet, &backend);
    translate(ctx, &packet, &flow)?;
    finish(ctx, &flow)
}

#[inline(always)]
pub fn towards_client(ctx: &TcContext) -> Result<Verdict, Error> {
    let mut packet = Packet::OTHER;
    packet::parse(ctx, &mut packet)?;
    match packet.part {
        Part::Other => return Ok(Verdict::Pass),
        Part::Later => return later_fragment(ctx, &packet).map(|()| Verdict::Pass),
        Part::Whole | Part::First => {}
    }
    let Some(found) = conntrack::find(&packet.tuple) else { return Ok(Verdict::Pass) };
    // SAFETY: an element of the map, alive for this run of the program.
    let flow = unsafe { &*found };
    if flow.is_forward() || flow.is_hairpin() {
        return Ok(Verdict::Pass);
    }
    conntrack::touch(found, &packet);
    translate(ctx, &packet, flow).map(|()| Verdict::Pass)
}

#[inline(never)]
fn translate(ctx: &TcContext, packet: &Packet, flow: &Flow) -> Result<(), Error> {
    let to = flow.translated;
    if matches!(packet.part, Part::First) {
        if flow.is_hairpin() {
            // The pieces would have to turn around together.
            return Err(Error::Fragment);
        }
        let fragment = Fragment { source: to.source, destination: to.destination };
        FRAGMENTS.insert(packet.fragment_key(), fragment, 0).map_err(|_| Error::Fragment)?;
    }
    maps::count(if flow.is_forward() { Counter::FlowForward } else { Counter::FlowReverse });
    packet::rewrite(ctx, packet, &to)
}

#[inline(always)]
fn finish(ctx: &TcContext, flow: &Flow) -> Result<Verdict, Error> {
    if !flow.is_hairpin() {
        return Ok(Verdict::Pass);
    }
    maps::count(Counter::Hairpin);
    packet::turn_around(ctx).map(Verdict::Return)
}

/// A later fragment follows its first one, or passes as it is where that was not translated.
#[inline(never)]
fn later_fragment(ctx: &TcContext, packet: &Packet) -> Result<(), Error> {
    // SAFETY: copied at once.
    let Some(fragment) = unsafe { FRAGMENTS.get(packet.fragment_key()) }.copied() else { return Ok(()) };
    packet::rewrite_fragment(ctx, packet, &fragment)
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
