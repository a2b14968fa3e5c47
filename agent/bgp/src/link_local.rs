//! Link-local addresses as they are known inside: together with their link, as peers and as next hops.
//!
//! The interface index stands in octets 4 to 7, which are zero on the wire (RFC 4291 section 2.5.6):
//! `fe80::a8bb:1` of link 7 is `fe80:0:0:7::a8bb:1` here. So one address on two links is two peers.

use std::net::{IpAddr, Ipv6Addr};

/// Adds the link to a link-local address; others stay as they are.
pub fn with_link(address: IpAddr, interface: u32) -> IpAddr {
    match address {
        IpAddr::V6(v6) if v6.is_unicast_link_local() => {
            let mut octets = v6.octets();
            octets[4..8].copy_from_slice(&interface.to_be_bytes());
            Ipv6Addr::from(octets).into()
        }
        IpAddr::V4(_) | IpAddr::V6(_) => address,
    }
}

/// The address as it is on the wire, and the link of a link-local one that has one.
pub fn without_link(address: IpAddr) -> (IpAddr, Option<u32>) {
    let IpAddr::V6(v6) = address else { return (address, None) };
    let mut octets = v6.octets();
    let interface = u32::from_be_bytes([octets[4], octets[5], octets[6], octets[7]]);
    if interface == 0 || !v6.is_unicast_link_local() {
        return (address, None);
    }
    octets[4..8].fill(0);
    (Ipv6Addr::from(octets).into(), Some(interface))
}

/// Whether a link-local address says of no link.
pub(crate) fn lacks_link(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local()) && without_link(address).1.is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_link_is_added_and_taken_away_again() {
        let address = |text: &str| text.parse::<IpAddr>().expect("an address");
        let whole = with_link(address("fe80::a8bb:1"), 7);
        assert_eq!(whole, address("fe80:0:0:7::a8bb:1"));
        assert_eq!(without_link(whole), (address("fe80::a8bb:1"), Some(7)));
        assert!(lacks_link(address("fe80::a8bb:1")) && !lacks_link(whole) && !lacks_link(address("fd00::1")));
        for other in ["192.0.2.1", "2001:db8:0:7::1"] {
            assert_eq!(with_link(address(other), 7), address(other));
            assert_eq!(without_link(address(other)), (address(other), None));
        }
    }
}
