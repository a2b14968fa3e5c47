//! Ethernet frames for single runs of programs.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ebpf_common::{Protocol, checksum};

/// Flags of TCP (RFC 9293 3.1).
pub(crate) const FIN: u8 = 0x01;
pub(crate) const SYN: u8 = 0x02;
pub(crate) const ACK: u8 = 0x10;

/// The station that every frame is for. The node's neighbours have it too: a packet that a program addressed to one is
/// for the node again.
pub(crate) const MAC: &str = "02:00:00:00:00:01";
const STATIONS: [u8; 12] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];

/// As many as there can be, so that a program takes one in each run.
const HOPS: u8 = 255;
const ETHERNET_BYTES: usize = 14;
const V4_BYTES: usize = 20;
const V6_BYTES: usize = 40;
const FRAGMENT: u8 = 44;
const PAYLOAD: &[u8] = &[0; 16];
/// Of every fragment, in octets behind the first one's.
const LATER_OFFSET: u16 = 1480;

/// One packet with right checksums; `flags` are TCP's.
pub(crate) fn frame(protocol: Protocol, from: (IpAddr, u16), to: (IpAddr, u16), flags: u8) -> Vec<u8> {
    enclosed(protocol, from.0, to.0, &transport(protocol, from, to, flags))
}

/// An ICMP error from a host to another, which quotes a frame: nobody listens at its port.
pub(crate) fn refusal(from: IpAddr, to: IpAddr, quoted: &[u8]) -> Vec<u8> {
    let (protocol, kind, code, header) = match from {
        IpAddr::V4(_) => (Protocol::ICMP, 3, 3, V4_BYTES),
        IpAddr::V6(_) => (Protocol::ICMP_V6, 1, 4, V6_BYTES),
    };
    let mut message = vec![kind, code, 0, 0, 0, 0, 0, 0];
    message.extend(quoted.iter().skip(ETHERNET_BYTES).take(header + 8));
    let sum = match from {
        IpAddr::V4(_) => checksum::checksum(&message),
        IpAddr::V6(_) => transport_sum(protocol, from, to, &message),
    };
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    enclosed(protocol, from, to, &message)
}

/// The first fragment of a datagram, and one that follows.
pub(crate) fn fragments(from: (IpAddr, u16), to: (IpAddr, u16)) -> [Vec<u8>; 2] {
    let whole = frame(Protocol::UDP, from, to, 0);
    [(0, true), (LATER_OFFSET, false)].map(|(offset, more)| {
        let mut piece = whole.clone();
        if from.0.is_ipv4() {
            let word = (offset / 8) | if more { 0x2000 } else { 0 };
            piece[18..20].copy_from_slice(&[0x12, 0x34]);
            piece[20..22].copy_from_slice(&word.to_be_bytes());
            piece[24..26].fill(0);
            let sum = checksum::checksum(&piece[ETHERNET_BYTES..ETHERNET_BYTES + V4_BYTES]);
            piece[24..26].copy_from_slice(&sum.to_be_bytes());
        } else {
            let [high, low] = (offset | u16::from(more)).to_be_bytes();
            let at = ETHERNET_BYTES + V6_BYTES;
            piece.splice(at..at, [Protocol::UDP.0, 0, high, low, 0, 0, 0x12, 0x34]);
            piece[20] = FRAGMENT;
            let length = (piece.len() - at) as u16;
            piece[18..20].copy_from_slice(&length.to_be_bytes());
        }
        piece
    })
}

fn enclosed(protocol: Protocol, from: IpAddr, to: IpAddr, transport: &[u8]) -> Vec<u8> {
    let mut frame = STATIONS.to_vec();
    match (from, to) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            frame.extend([0x08, 0x00]);
            let mut header = vec![0x45, 0];
            header.extend((V4_BYTES as u16 + transport.len() as u16).to_be_bytes());
            header.extend([0, 0, 0x40, 0, HOPS, protocol.0, 0, 0]);
            header.extend(source.octets());
            header.extend(destination.octets());
            let sum = checksum::checksum(&header);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            frame.extend(header);
        }
        (source, destination) => {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend((transport.len() as u16).to_be_bytes());
            frame.extend([protocol.0, HOPS]);
            frame.extend(octets(source));
            frame.extend(octets(destination));
        }
    }
    frame.extend(transport);
    frame
}

fn transport(protocol: Protocol, from: (IpAddr, u16), to: (IpAddr, u16), flags: u8) -> Vec<u8> {
    let mut transport = Vec::new();
    transport.extend(from.1.to_be_bytes());
    transport.extend(to.1.to_be_bytes());
    let sum_at = if protocol == Protocol::TCP {
        transport.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
        16
    } else {
        transport.extend((8 + PAYLOAD.len() as u16).to_be_bytes());
        transport.extend([0, 0]);
        6
    };
    transport.extend(PAYLOAD);
    let sum = transport_sum(protocol, from.0, to.0, &transport);
    transport[sum_at..sum_at + 2].copy_from_slice(&sum.to_be_bytes());
    transport
}

/// Over the pseudo header too (RFC 9293 3.1, RFC 8200 8.1).
fn transport_sum(protocol: Protocol, from: IpAddr, to: IpAddr, transport: &[u8]) -> u16 {
    let mut sum = checksum::sum(&octets(from), 0);
    sum = checksum::sum(&octets(to), sum);
    sum = checksum::sum(&[0, protocol.0], sum);
    sum = checksum::sum(&(transport.len() as u32).to_be_bytes(), sum);
    !checksum::fold(checksum::sum(transport, sum))
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// Source and destination of an IP packet in a frame.
pub(crate) fn addresses(frame: &[u8]) -> Option<(IpAddr, IpAddr)> {
    let at = |start: usize, length: usize| frame.get(start..start + length);
    if at(12, 2)? == [0x86, 0xdd] {
        let v6 = |start| Some(IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(at(start, 16)?).ok()?)));
        Some((v6(22)?, v6(38)?))
    } else {
        let v4 = |start| Some(IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(at(start, 4)?).ok()?)));
        Some((v4(26)?, v4(30)?))
    }
}

/// The source port of a frame made here, whose packet is whole; 0 of what has none.
pub(crate) fn from_port(frame: &[u8]) -> u16 {
    let headers = if frame.get(12..14) == Some(&[0x86, 0xdd]) { V6_BYTES } else { V4_BYTES };
    let at = ETHERNET_BYTES + headers;
    frame.get(at..at + 2).map_or(0, |octets| u16::from_be_bytes([octets[0], octets[1]]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str, port: u16) -> (IpAddr, u16) {
        (text.parse().unwrap(), port)
    }

    #[test]
    fn the_checksums_of_a_frame_are_right() {
        let packet = frame(Protocol::TCP, at("10.244.0.2", 40_000), at("10.96.0.7", 80), SYN);
        assert_eq!(checksum::checksum(&packet[14..34]), 0, "over a right header the sum is zero");
        assert_eq!(from_port(&packet), 40_000);
        let mut pseudo = packet[26..34].to_vec();
        pseudo.extend([0, Protocol::TCP.0]);
        pseudo.extend((packet.len() as u16 - 34).to_be_bytes());
        pseudo.extend(&packet[34..]);
        assert_eq!(checksum::checksum(&pseudo), 0);
    }

    #[test]
    fn the_addresses_of_a_frame_are_found_in_it() {
        for (from, to) in [("10.244.0.2", "10.96.0.7"), ("fd00:244::2", "fd00:96::7")] {
            let ends = Some((from.parse().unwrap(), to.parse().unwrap()));
            let packet = frame(Protocol::UDP, at(from, 1), at(to, 2), 0);
            assert_eq!(addresses(&packet), ends);
            assert_eq!(fragments(at(from, 1), at(to, 2)).map(|piece| addresses(&piece)), [ends, ends]);
            let about = refusal(to.parse().unwrap(), from.parse().unwrap(), &packet);
            assert_eq!(addresses(&about), ends.map(|(from, to)| (to, from)));
        }
    }
}
