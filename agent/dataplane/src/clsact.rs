//! Programs on an interface by filters of the qdisc clsact: one batch of netlink for both directions.
//!
//! A filter has a fixed priority and handle, so that a later agent replaces its program in place. Filters go with their
//! interface.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

use crate::netlink::{self, CREATE, DUMP, EXCLUSIVE, Message, Socket};

const RTM_NEWQDISC: u16 = 36;
const RTM_NEWTFILTER: u16 = 44;
const RTM_GETTFILTER: u16 = 46;
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

/// The filters that [`attach`] made in the network namespace of the calling thread: interface, place, name of the program.
pub(crate) fn all_attached() -> io::Result<Vec<(u32, Parent, String)>> {
    let interfaces = nix::net::if_::if_nameindex()?;
    let mut socket = Socket::open()?;
    let mut found = Vec::new();
    for interface in &interfaces {
        for parent in [Parent::Ingress, Parent::Egress] {
            let header = tc_header(interface.index(), 0, parent as u32, 0);
            let dumped = match socket.query(Message::new(RTM_GETTFILTER, DUMP, &header)) {
                // It went since.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                dumped => dumped?,
            };
            let names = dumped.iter().filter_map(|received| own_name(&received.body));
            found.extend(names.map(|name| (interface.index(), parent, name)));
        }
    }
    Ok(found)
}

/// The program's name where a filter is one of ours.
fn own_name(octets: &[u8]) -> Option<String> {
    const HEADER: usize = 20;
    let word = |at: usize| octets.get(at..at + 4).and_then(netlink::read_u32);
    if word(8)? != HANDLE || word(12 + 4)? >> 16 != PRIORITY {
        return None;
    }
    let of = |kind: u16, octets: &[u8]| {
        netlink::attributes(octets).find(|(found, _)| *found == kind).map(|(_, value)| value.to_vec())
    };
    let name = of(TCA_BPF_NAME, &of(TCA_OPTIONS, octets.get(HEADER..)?)?)?;
    String::from_utf8(name).ok().map(|name| name.trim_end_matches('\0').to_owned())
}

/// struct tcmsg.
fn tc_header(interface_index: u32, handle: u32, parent: u32, info: u32) -> [u8; 20] {
    let mut header = [0; 20];
    for (at, value) in [(4, interface_index), (8, handle), (12, parent), (16, info)] {
        header[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }
    header
}
