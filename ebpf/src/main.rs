//! Entry points of the datapath, and nothing else: each maps an error to the verdict of its hook.
//!
//! | programs | hook | what |
//! |---|---|---|
//! | connect4/6, sendmsg4/6 | cgroup | a Service's address becomes a backend's before a packet exists |
//! | recvmsg4/6, getpeername4/6 | cgroup | the application sees the address it asked for |
//! | sock_release | cgroup | what was remembered of a socket goes with it |
//! | pod_ingress, pod_egress | tc on the host's end of a pod's link | what did not pass the socket programs |
//! | uplink_ingress, uplink_egress | tc on the node's uplink | clients beyond the node, to backends on it and beyond |
//! | uplink_xdp | XDP on the node's uplink | known flows between clients and backends that are both beyond the node |
//! | masquerade, unmasquerade | called by those of the uplink | pods' traffic to hosts outside of the cluster, and back |
//! | relay_entering, relay_leaving | called by those of tc | ICMP errors about packets that were translated |
//! | judged, towards_client | called by those of policy | as pod_ingress and pod_egress, for pods that a policy selects |
//! | police, police_final, police_rest, police_entering | called by those of tc | what such pods send and get is allowed, or dropped |
//! | answer | called by those of tc that packets enter by | resets and ICMP errors, for packets that nobody takes |
//!
//! The socket programs are an optimisation, and so is XDP: with them off, tc serves the same flows.
#![cfg_attr(target_arch = "bpf", no_std)]
#![cfg_attr(target_arch = "bpf", no_main)]

mod answer;
mod bridge;
mod connect;
mod conntrack;
mod deliver;
mod drops;
mod error;
mod icmp;
mod maps;
mod masquerade;
mod nat;
mod packet;
mod policy;
mod sctp;
mod service;
mod xdp;

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action},
    helpers::bpf_set_retval,
    macros::{cgroup_sock, cgroup_sock_addr, classifier, xdp},
    programs::{SockAddrContext, SockContext, TcContext, XdpContext},
};

use ebpf_common::{Call, LocalPod, Origin};

use crate::{connect::Family, error::Error, nat::Verdict};

const ALLOW: i32 = 1;
const REFUSE: i32 = 0;
const EPERM: i32 = 1;
const ECONNREFUSED: i32 = 111;
const EHOSTUNREACH: i32 = 113;

#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    socket_verdict(connect::connect(&ctx, Family::V4))
}

#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    socket_verdict(connect::connect(&ctx, Family::V6))
}

#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    socket_verdict(connect::sendmsg(&ctx, Family::V4))
}

#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(ctx: SockAddrContext) -> i32 {
    socket_verdict(connect::sendmsg(&ctx, Family::V6))
}

#[cgroup_sock_addr(recvmsg4)]
pub fn recvmsg4(ctx: SockAddrContext) -> i32 {
    connect::show_frontend(&ctx, Family::V4);
    ALLOW
}

#[cgroup_sock_addr(recvmsg6)]
pub fn recvmsg6(ctx: SockAddrContext) -> i32 {
    connect::show_frontend(&ctx, Family::V6);
    ALLOW
}

#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    connect::show_frontend(&ctx, Family::V4);
    ALLOW
}

#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    connect::show_frontend(&ctx, Family::V6);
    ALLOW
}

#[cgroup_sock(sock_release)]
pub fn sock_release(ctx: SockContext) -> i32 {
    connect::release(&ctx);
    ALLOW
}

#[classifier]
pub fn pod_ingress(ctx: TcContext) -> i32 {
    if policy::is_at_policed(&ctx) {
        return go_on(&ctx, Call::Police);
    }
    if let Some(action) = nat::untranslated(&ctx, Origin::Node) {
        return action;
    }
    ingress_verdict(&ctx, nat::towards_backend::<false>(&ctx, Origin::Node))
}

#[classifier]
pub fn pod_egress(ctx: TcContext) -> i32 {
    let flows = nat::flows_of_receiver(&ctx);
    if flows & LocalPod::POLICED != 0 && policy::is_at_policed(&ctx) {
        return go_on(&ctx, Call::PoliceEntering);
    }
    if flows & LocalPod::FLOWS == 0 {
        return TC_ACT_UNSPEC;
    }
    tc_verdict(&ctx, nat::towards_client(&ctx))
}

#[classifier]
pub fn uplink_ingress(ctx: TcContext) -> i32 {
    if let Some(action) = nat::untranslated(&ctx, Origin::Beyond) {
        return action;
    }
    ingress_verdict(&ctx, nat::towards_backend::<false>(&ctx, Origin::Beyond))
}

#[classifier]
pub fn uplink_egress(ctx: TcContext) -> i32 {
    if masquerade::may_concern(&ctx) {
        maps::call(&ctx, Call::Masquerade);
    }
    if !maps::has_beyond() {
        return TC_ACT_UNSPEC;
    }
    tc_verdict(&ctx, nat::towards_client(&ctx))
}

#[classifier]
pub fn masquerade(ctx: TcContext) -> i32 {
    tc_verdict(&ctx, masquerade::leave(&ctx))
}

#[classifier]
pub fn unmasquerade(ctx: TcContext) -> i32 {
    tc_verdict(&ctx, masquerade::come_back(&ctx))
}

#[classifier]
pub fn relay_entering(ctx: TcContext) -> i32 {
    tc_verdict(&ctx, icmp::relay(&ctx, true))
}

#[classifier]
pub fn relay_leaving(ctx: TcContext) -> i32 {
    tc_verdict(&ctx, icmp::relay(&ctx, false))
}

#[classifier]
pub fn police(ctx: TcContext) -> i32 {
    tc_verdict(&ctx, policy::police(&ctx))
}

#[classifier]
pub fn police_final(ctx: TcContext) -> i32 {
    tc_verdict(&ctx, policy::police_final(&ctx))
}

#[classifier]
pub fn police_rest(ctx: TcContext) -> i32 {
    tc_verdict(&ctx, policy::police_rest(&ctx))
}

#[classifier]
pub fn police_entering(ctx: TcContext) -> i32 {
    tc_verdict(&ctx, policy::police_entering(&ctx))
}

#[classifier]
pub fn judged(ctx: TcContext) -> i32 {
    ingress_verdict(&ctx, nat::towards_backend::<true>(&ctx, Origin::Node))
}

#[classifier]
pub fn towards_client(ctx: TcContext) -> i32 {
    tc_verdict(&ctx, nat::towards_client(&ctx))
}

#[classifier]
pub fn answer(ctx: TcContext) -> i32 {
    tc_verdict(&ctx, answer::answer(&ctx))
}

#[xdp]
pub fn uplink_xdp(ctx: XdpContext) -> u32 {
    // What is not sent on is tc's, dropping included.
    if xdp::send_on(&ctx) { xdp_action::XDP_TX } else { xdp_action::XDP_PASS }
}

#[inline(always)]
fn socket_verdict(result: Result<(), Error>) -> i32 {
    match result {
        Ok(()) => ALLOW,
        Err(error) => {
            let errno = match error {
                Error::Outrun => EHOSTUNREACH,
                Error::SourceRange => EPERM,
                _ => ECONNREFUSED,
            };
            // SAFETY: a helper without pointers; all are valid errors of connect and sendmsg.
            unsafe { bpf_set_retval(-errno) };
            REFUSE
        }
    }
}

#[inline(always)]
fn tc_verdict(ctx: &TcContext, result: Result<Verdict, Error>) -> i32 {
    match result {
        Ok(Verdict::Return(action)) => action,
        Ok(Verdict::Continue(call)) => go_on(ctx, call),
        Err(error) => drop_for(ctx, error),
    }
}

/// Another program goes on with the packet. Where there is none, it passes unless it was to be judged.
#[inline(always)]
fn go_on(ctx: &TcContext, call: Call) -> i32 {
    maps::call(ctx, call);
    if call.is_needed() { TC_ACT_SHOT as i32 } else { TC_ACT_UNSPEC }
}

/// Where packets enter, their senders may be told why one goes no further.
#[inline(always)]
fn ingress_verdict(ctx: &TcContext, result: Result<Verdict, Error>) -> i32 {
    let Err(error) = result else { return tc_verdict(ctx, result) };
    let verdict = drop_for(ctx, error);
    if let Some(reason) = error.answer() {
        answer::call(ctx, reason);
    }
    verdict
}

#[inline(always)]
fn drop_for(ctx: &TcContext, error: Error) -> i32 {
    error.count();
    drops::tell(ctx, error);
    aya_log_ebpf::warn!(ctx, "{}", error.name());
    TC_ACT_SHOT as i32
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    // The verifier rejects a reachable one.
    loop {}
}

/// The kernel lends its routes to programs under the GPL only; whoever takes these sources may choose.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(target_arch = "bpf"))]
fn main() {}
