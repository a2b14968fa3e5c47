//! `peerIP` of a BGPPeer: an address, and a port where one is named.

use std::{net::IpAddr, str::FromStr};

/// `ADDRESS`, `IPV4:PORT` or `[IPV6]:PORT`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PeerAddress {
    pub address: IpAddr,
    /// TCP; `None` leaves it to whoever knows the peer.
    pub port: Option<u16>,
}

impl FromStr for PeerAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse() {
            return Ok(Self { address, port: None });
        }
        let parsed = match text.strip_prefix('[') {
            Some(rest) => rest.rsplit_once("]:").map(|(address, port)| (address, port, false)),
            None => text.rsplit_once(':').map(|(address, port)| (address, port, true)),
        };
        let parsed = parsed.and_then(|(address, port, is_v4)| {
            let address: IpAddr = address.parse().ok()?;
            let port = port.parse().ok().filter(|port| *port != 0)?;
            (address.is_ipv4() == is_v4).then_some(Self { address, port: Some(port) })
        });
        parsed.ok_or_else(|| format!("{text:?} is not ADDRESS, IPV4:PORT or [IPV6]:PORT"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_told_from_the_last_part_of_an_ipv6_address() {
        let read =
            |text: &str| text.parse::<PeerAddress>().map(|peer| (peer.address.to_string(), peer.port)).ok();
        assert_eq!(read("192.0.2.1"), Some(("192.0.2.1".into(), None)));
        assert_eq!(read("192.0.2.1:1790"), Some(("192.0.2.1".into(), Some(1790))));
        assert_eq!(read("2001:db8::1:179"), Some(("2001:db8::1:179".into(), None)));
        assert_eq!(read("[2001:db8::1]:179"), Some(("2001:db8::1".into(), Some(179))));
        for text in ["", "192.0.2.1:0", "192.0.2.1:65536", "[192.0.2.1]:179", "2001:db8::1]:179", "tor1:179"]
        {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
