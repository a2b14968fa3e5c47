//! Ethernet frames for single runs of programs.

use std::net::IpAddr;

use ebpf_common::{Protocol, checksum};

/// Flags of TCP (RFC 9293 3.1).
pub(crate) const SYN: u8 = 0x02;
pub(crate) const ACK: u8 = 0x10;

const ETHERNET_BYTES: usize = 14;
const PAYLOAD: &[u8] = &[0; 16];

/// One packet with right checksums; `flags` are TCP's.
pub(crate) fn frame(protocol: Protocol, from: (IpAddr, u16), to: (IpAddr, u16), flags: u8) -> Vec<u8> {
    let transport = transport(protocol, from, to, flags);
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    match (from.0, to.0) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            frame.extend([0x08, 0x00]);
            let mut header = vec![0x45, 0];
            header.extend((20 + transport.len() as u16).to_be_bytes());
            header.extend([0, 0, 0x40, 0, 64, protocol.0, 0, 0]);
            header.extend(source.octets());
            header.extend(destination.octets());
            let sum = checksum::checksum(&header);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            frame.extend(header);
        }
        (source, destination) => {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend((transport.len() as u16).to_be_bytes());
            frame.extend([protocol.0, 64]);
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
    // Over the pseudo header too (RFC 9293 3.1, RFC 8200 8.1).
    let mut sum = checksum::sum(&octets(from.0), 0);
    sum = checksum::sum(&octets(to.0), sum);
    sum = checksum::sum(&[0, protocol.0], sum);
    sum = checksum::sum(&(transport.len() as u32).to_be_bytes(), sum);
    let sum = !checksum::fold(checksum::sum(&transport, sum));
    transport[sum_at..sum_at + 2].copy_from_slice(&sum.to_be_bytes());
    transport
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// The destination port of a frame made here, for messages; 0 of what has none.
pub(crate) fn to_port(frame: &[u8]) -> u16 {
    let headers = if frame.get(12..14) == Some(&[0x86, 0xdd]) { 40 } else { 20 };
    let at = ETHERNET_BYTES + headers + 2;
    frame.get(at..at + 2).map_or(0, |octets| u16::from_be_bytes([octets[0], octets[1]]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksums_of_a_frame_are_right() {
        let from = ("10.244.0.2".parse().unwrap(), 40_000);
        let packet = frame(Protocol::TCP, from, ("10.96.0.7".parse().unwrap(), 80), SYN);
        assert_eq!(checksum::checksum(&packet[14..34]), 0, "over a right header the sum is zero");
        assert_eq!(to_port(&packet), 80);
        let mut pseudo = packet[26..34].to_vec();
        pseudo.extend([0, Protocol::TCP.0]);
        pseudo.extend((packet.len() as u16 - 34).to_be_bytes());
        pseudo.extend(&packet[34..]);
        assert_eq!(checksum::checksum(&pseudo), 0);
    }
}
