//! Programs on an interface by filters of the qdisc clsact: one batch of netlink for both directions.
//!
//! A filter has a fixed priority and handle, so that a later agent replaces its program in place. Filters go with their
//! interface.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

use crate::netlink::{self, CREATE, EXCLUSIVE, Message, Socket};

const RTM_NEWQDISC: u16 = 36;
const RTM_NEWTFILTER: u16 = 44;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_FD: u16 = 6;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_FLAGS: u16 = 8;
const TCA_BPF_FLAG_ACT_DIRECT: u32 = 1;
const TC_H_CLSACT: u32 = 0xffff_fff1;
const CLSACT_QDISC: u32 = 0xffff_0000;

/// By these a later agent finds the filters again.
const PRIORITY: u32 = 180;
const HANDLE: u32 = 1;

/// Where a filter sees packets: values of the kernel's `tcm_parent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Parent {
    Ingress = 0xffff_fff2,
    Egress = 0xffff_fff3,
}

#[derive(Debug)]
pub(crate) struct Filter<'a> {
    pub(crate) parent: Parent,
    pub(crate) name: &'a str,
    pub(crate) program: BorrowedFd<'a>,
}

/// Attaches these programs, in place of what an earlier agent attached by us.
///
/// # Errors
/// The first refusal, with the kernel's words.
pub(crate) fn attach(interface_index: u32, filters: &[Filter<'_>]) -> io::Result<()> {
    let qdisc = Message::new(
        RTM_NEWQDISC,
        CREATE | EXCLUSIVE,
        &tc_header(interface_index, CLSACT_QDISC, TC_H_CLSACT, 0),
    );
    let mut messages = vec![qdisc.string(TCA_KIND, "clsact")];
    messages.extend(filters.iter().map(|filter| filter_message(interface_index, filter)));
    let mut refusals = Socket::open()?.execute(&mut messages)?;
    // One that is there already is as good.
    refusals[0] = refusals[0].take().filter(|refusal| refusal.errno != libc::EEXIST);
    match refusals.into_iter().flatten().next() {
        Some(refusal) => Err(refusal.into()),
        None => Ok(()),
    }
}

fn filter_message(interface_index: u32, filter: &Filter<'_>) -> Message {
    let protocol = (libc::ETH_P_ALL as u16).to_be();
    let info = PRIORITY << 16 | u32::from(protocol);
    let mut options = Vec::new();
    netlink::put_attribute(&mut options, TCA_BPF_FD, &filter.program.as_raw_fd().to_ne_bytes());
    netlink::put_attribute(&mut options, TCA_BPF_NAME, &[filter.name.as_bytes(), &[0]].concat());
    netlink::put_attribute(&mut options, TCA_BPF_FLAGS, &TCA_BPF_FLAG_ACT_DIRECT.to_ne_bytes());
    // Without EXCLUSIVE, the program of a filter that is there is exchanged.
    let header = tc_header(interface_index, HANDLE, filter.parent as u32, info);
    Message::new(RTM_NEWTFILTER, CREATE, &header).string(TCA_KIND, "bpf").attribute(TCA_OPTIONS, &options)
}

/// struct tcmsg.
fn tc_header(interface_index: u32, handle: u32, parent: u32, info: u32) -> [u8; 20] {
    let mut header = [0; 20];
    for (at, value) in [(4, interface_index), (8, handle), (12, parent), (16, info)] {
        header[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }
    header
}
