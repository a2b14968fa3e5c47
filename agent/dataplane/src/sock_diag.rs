//! Socket diagnosis (sock_diag(7)): which sockets of a namespace are connected, and ending one of UDP.
//!
//! Layouts are those of `struct inet_diag_req_v2` and `struct inet_diag_msg` in linux/inet_diag.h.

use std::io;

use ebpf_common::{Address, Port, Protocol};

use crate::netlink::{DUMP, Message, Received, Socket};

pub(crate) const NETLINK_SOCK_DIAG: libc::c_int = 4;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
/// TCP_ESTABLISHED, which for UDP means connected.
const CONNECTED: u32 = 1 << 1;
/// Octets of `struct inet_diag_sockid`.
const ID_BYTES: usize = 48;

/// Address family of sockets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Family {
    V4 = libc::AF_INET as u8,
    /// Also those that talk IPv4 by mapped addresses.
    V6 = libc::AF_INET6 as u8,
}

impl Family {
    pub(crate) const BOTH: [Self; 2] = [Self::V4, Self::V6];
}

/// A connected socket, as the kernel names it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Found {
    pub(crate) cookie: u64,
    pub(crate) peer: (Address, Port),
    family: Family,
    id: [u8; ID_BYTES],
}

/// The connected UDP sockets of one family in the namespace of `socket`.
///
/// # Errors
/// ENOENT where the kernel has no diagnosis of UDP.
pub(crate) fn connected(socket: &mut Socket, family: Family) -> io::Result<Vec<Found>> {
    let answers = socket.query(Message::new(SOCK_DIAG_BY_FAMILY, DUMP, &request(family, &[0; ID_BYTES])))?;
    Ok(answers.iter().filter_map(|answer| found(answer, family)).collect())
}

/// A socket of TCP or UDP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct End {
    pub(crate) own: (Address, Port),
    /// `None` where it listens.
    pub(crate) peer: Option<(Address, Port)>,
}

/// The sockets of one family in the namespace of `socket` that talk to somebody, and those of TCP that listen.
///
/// # Errors
/// ENOENT where the kernel has no diagnosis of the protocol.
pub(crate) fn ends(socket: &mut Socket, family: Family, protocol: Protocol) -> io::Result<Vec<End>> {
    const LISTENING: u8 = 10;
    // From TCP_ESTABLISHED to TCP_CLOSING, but for TCP_TIME_WAIT and TCP_CLOSE.
    const TALKING: u32 = CONNECTED | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;
    let states = if protocol == Protocol::TCP { TALKING | 1 << LISTENING } else { CONNECTED };
    let mut octets = vec![family as u8, protocol.0, 0, 0];
    octets.extend(states.to_ne_bytes());
    octets.extend([0; ID_BYTES]);
    let answers = socket.query(Message::new(SOCK_DIAG_BY_FAMILY, DUMP, &octets))?;
    let end = |answer: &Received| {
        let found = found(answer, family)?;
        let is_listening = answer.body.get(1) == Some(&LISTENING);
        let own = (address(&found.id, OWN_AT, family), Port::from_network([found.id[0], found.id[1]]));
        Some(End { own, peer: (!is_listening).then_some(found.peer) })
    };
    Ok(answers.iter().filter_map(end).collect())
}

/// Where addresses are in a `struct inet_diag_sockid`.
const OWN_AT: usize = 4;
const PEER_AT: usize = 20;

fn address(id: &[u8; ID_BYTES], at: usize, family: Family) -> Address {
    let word = |at: usize| u32::from_ne_bytes([id[at], id[at + 1], id[at + 2], id[at + 3]]);
    match family {
        Family::V4 => Address::from_v4_word(word(at)),
        Family::V6 => Address::from_words([word(at), word(at + 4), word(at + 8), word(at + 12)]),
    }
}

/// Ends the socket: its owner's calls fail with ECONNABORTED. Not where it is another socket by now.
///
/// # Errors
/// ENOENT where there is no such socket any more, EOPNOTSUPP where the kernel cannot do that.
pub(crate) fn destroy(socket: &mut Socket, found: &Found) -> io::Result<()> {
    let message = Message::new(SOCK_DESTROY, 0, &request(found.family, &found.id));
    match socket.execute(&mut [message])?.pop().flatten() {
        Some(refusal) => Err(io::Error::from_raw_os_error(refusal.errno)),
        None => Ok(()),
    }
}

fn request(family: Family, id: &[u8; ID_BYTES]) -> Vec<u8> {
    let mut octets = vec![family as u8, libc::IPPROTO_UDP as u8, 0, 0];
    octets.extend(CONNECTED.to_ne_bytes());
    octets.extend(id);
    octets
}

/// Ports, addresses of 16 octets each, interface, cookie.
fn found(answer: &Received, family: Family) -> Option<Found> {
    if answer.kind != SOCK_DIAG_BY_FAMILY {
        return None;
    }
    let id: [u8; ID_BYTES] = answer.body.get(4..4 + ID_BYTES)?.try_into().ok()?;
    let word = |at: usize| u32::from_ne_bytes([id[at], id[at + 1], id[at + 2], id[at + 3]]);
    Some(Found {
        cookie: u64::from(word(40)) | u64::from(word(44)) << 32,
        peer: (address(&id, PEER_AT, family), Port::from_network([id[2], id[3]])),
        family,
        id,
    })
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    fn answer(family: u8, peer: [u8; 16]) -> Received {
        let mut body = vec![family, 1, 0, 0];
        body.extend(4000u16.to_be_bytes());
        body.extend(53u16.to_be_bytes());
        body.extend([9; 16]);
        body.extend(peer);
        body.extend(7u32.to_ne_bytes());
        body.extend(0x0506_0708u32.to_ne_bytes());
        body.extend(0x0102_0304u32.to_ne_bytes());
        body.resize(72, 0);
        Received { kind: SOCK_DIAG_BY_FAMILY, body }
    }

    fn address(text: &str) -> Address {
        Address::from(text.parse::<IpAddr>().expect("an address"))
    }

    #[test]
    fn a_sockets_peer_and_cookie_are_read() {
        let mut v4 = [0; 16];
        v4[..4].copy_from_slice(&[10, 244, 0, 3]);
        let read = found(&answer(2, v4), Family::V4).expect("a socket");
        assert_eq!((read.cookie, read.peer), (0x0102_0304_0506_0708, (address("10.244.0.3"), Port::new(53))));
        let mapped = address("10.244.0.3").octets();
        assert_eq!(found(&answer(10, mapped), Family::V6).expect("a socket").peer.0, address("10.244.0.3"));
        let v6 = address("fd00:244::3").octets();
        assert_eq!(found(&answer(10, v6), Family::V6).expect("a socket").peer.0, address("fd00:244::3"));
    }

    #[test]
    fn a_request_names_the_very_socket_that_was_found() {
        let read = found(&answer(10, [3; 16]), Family::V6).expect("a socket");
        let request = request(read.family, &read.id);
        assert_eq!(request.len(), 56);
        assert_eq!(request[..8], [10, 17, 0, 0, 2, 0, 0, 0]);
        assert_eq!(request[8..], answer(10, [3; 16]).body[4..52]);
    }

    #[test]
    fn a_short_answer_is_no_socket() {
        let mut short = answer(2, [0; 16]);
        short.body.truncate(50);
        assert_eq!(found(&short, Family::V4), None);
    }
}
