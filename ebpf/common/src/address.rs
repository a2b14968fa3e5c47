//! Addresses, ports and protocols as the programs read them from sockets and packets.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An IP address in network order; IPv4 is held as `::ffff:a.b.c.d`.
///
/// Aligned, so that the programs copy it in words.
#[repr(C, align(4))]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Address(pub [u8; 16]);

impl Address {
    pub const UNSPECIFIED: Self = Self([0; 16]);

    #[inline(always)]
    pub const fn from_v4(v4: [u8; 4]) -> Self {
        Self([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, v4[0], v4[1], v4[2], v4[3]])
    }

    /// The last four bytes: the IPv4 address, where this is one.
    #[inline(always)]
    pub const fn to_v4(&self) -> [u8; 4] {
        [self.0[12], self.0[13], self.0[14], self.0[15]]
    }

    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        let b = &self.0;
        (b[0] | b[1] | b[2] | b[3] | b[4] | b[5] | b[6] | b[7] | b[8] | b[9]) == 0 && (b[10] & b[11]) == 0xff
    }

    /// From four words as they lie in a socket address, each in network order.
    #[inline(always)]
    pub const fn from_words(words: [u32; 4]) -> Self {
        let (a, b, c, d) =
            (words[0].to_ne_bytes(), words[1].to_ne_bytes(), words[2].to_ne_bytes(), words[3].to_ne_bytes());
        Self([
            a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1], d[2], d[3],
        ])
    }

    /// The inverse of [`Self::from_words`].
    #[inline(always)]
    pub const fn to_words(&self) -> [u32; 4] {
        let b = &self.0;
        [
            u32::from_ne_bytes([b[0], b[1], b[2], b[3]]),
            u32::from_ne_bytes([b[4], b[5], b[6], b[7]]),
            u32::from_ne_bytes([b[8], b[9], b[10], b[11]]),
            u32::from_ne_bytes([b[12], b[13], b[14], b[15]]),
        ]
    }

    /// The address with IPv4 as itself.
    pub fn to_ip(&self) -> IpAddr {
        if self.is_v4() {
            IpAddr::V4(Ipv4Addr::from(self.to_v4()))
        } else {
            IpAddr::V6(Ipv6Addr::from(self.0))
        }
    }
}

impl From<IpAddr> for Address {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => Self::from_v4(v4.octets()),
            IpAddr::V6(v6) => Self(v6.octets()),
        }
    }
}

/// A TCP or UDP port, held in network order.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Port([u8; 2]);

impl Port {
    #[inline(always)]
    pub const fn new(port: u16) -> Self {
        Self(port.to_be_bytes())
    }

    #[inline(always)]
    pub const fn from_network(bytes: [u8; 2]) -> Self {
        Self(bytes)
    }

    #[inline(always)]
    pub const fn to_network(self) -> [u8; 2] {
        self.0
    }

    #[inline(always)]
    pub const fn get(self) -> u16 {
        u16::from_be_bytes(self.0)
    }
}

/// An IANA protocol number; the two that are balanced have names.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Protocol(pub u8);

impl Protocol {
    pub const TCP: Self = Self(6);
    pub const UDP: Self = Self(17);
}

const _: () = assert!(size_of::<Address>() == 16 && align_of::<Address>() == 4);
const _: () = assert!(size_of::<Port>() == 2 && align_of::<Port>() == 1);

crate::pod!(Address, Port, Protocol);
