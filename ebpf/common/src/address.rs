//! Addresses, ports and protocols as the programs read them from sockets and packets.

use core::{
    cmp::Ordering,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// An IP address in network order; IPv4 is held as `::ffff:a.b.c.d`.
///
/// Held in words, so that the programs copy and compare it in words.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Address {
    /// Each in network order, that is, as they lie in a socket address or a packet.
    words: [u32; 4],
}

const V4_PREFIX: u32 = 0x0000_ffff_u32.to_be();

impl Address {
    pub const UNSPECIFIED: Self = Self { words: [0; 4] };

    /// From an IPv4 address as it lies in a socket address or a packet.
    #[inline(always)]
    pub const fn from_v4_word(word: u32) -> Self {
        Self { words: [0, 0, V4_PREFIX, word] }
    }

    #[inline(always)]
    pub const fn from_v4(v4: [u8; 4]) -> Self {
        Self::from_v4_word(u32::from_ne_bytes(v4))
    }

    /// From the four words of an IPv6 address as they lie in a socket address or a packet.
    #[inline(always)]
    pub const fn from_words(words: [u32; 4]) -> Self {
        Self { words }
    }

    /// The inverse of [`Self::from_words`]; the last word is the IPv4 address, where this is one.
    #[inline(always)]
    pub const fn to_words(&self) -> [u32; 4] {
        self.words
    }

    /// The 16 bytes in network order.
    #[inline(always)]
    pub const fn octets(&self) -> [u8; 16] {
        let [a, b, c, d] = self.words;
        let (a, b, c, d) = (a.to_ne_bytes(), b.to_ne_bytes(), c.to_ne_bytes(), d.to_ne_bytes());
        [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1], d[2], d[3]]
    }

    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.words[0] == 0 && self.words[1] == 0 && self.words[2] == V4_PREFIX
    }

    /// The unspecified address of the same family.
    #[inline(always)]
    pub const fn any(&self) -> Self {
        if self.is_v4() { Self::from_v4_word(0) } else { Self::UNSPECIFIED }
    }

    /// Of the host that speaks: 127.0.0.0/8 and ::1, and the unspecified addresses, which connect there too.
    #[inline(always)]
    pub const fn is_own(&self) -> bool {
        let [a, b, c, d] = self.words;
        if self.is_v4() {
            d == 0 || d.to_ne_bytes()[0] == 127
        } else {
            a | b | c == 0 && (d == 0 || d == 1_u32.to_be())
        }
    }

    /// Whether one host may have it, so that an answer may go there (RFC 1122 3.2.1.3, RFC 4291 2.4): neither
    /// unspecified nor loopback nor multicast nor broadcast.
    #[inline(always)]
    pub const fn is_host(&self) -> bool {
        let [a, _, _, d] = self.words;
        if self.is_v4() {
            !matches!(d.to_ne_bytes()[0], 0 | 127 | 224..)
        } else {
            a.to_ne_bytes()[0] != 0xff && !self.is_own()
        }
    }

    /// The address with IPv4 as itself.
    pub fn to_ip(&self) -> IpAddr {
        if self.is_v4() {
            IpAddr::V4(Ipv4Addr::from(self.words[3].to_ne_bytes()))
        } else {
            IpAddr::V6(Ipv6Addr::from(self.octets()))
        }
    }
}

impl PartialOrd for Address {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// As people order addresses.
impl Ord for Address {
    fn cmp(&self, other: &Self) -> Ordering {
        self.octets().cmp(&other.octets())
    }
}

impl From<IpAddr> for Address {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => Self::from_v4(v4.octets()),
            IpAddr::V6(v6) => {
                let bytes = v6.octets();
                let word =
                    |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
                Self { words: [word(0), word(4), word(8), word(12)] }
            }
        }
    }
}

/// A port of TCP, UDP or SCTP, held in network order.
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

/// An IANA protocol number; those that are looked into have names.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Protocol(pub u8);

impl Protocol {
    pub const ICMP: Self = Self(1);
    pub const TCP: Self = Self(6);
    pub const UDP: Self = Self(17);
    pub const ICMP_V6: Self = Self(58);
    pub const SCTP: Self = Self(132);

    /// Whether packets begin with the ports of who sends and of who gets them.
    #[inline(always)]
    pub const fn has_ports(self) -> bool {
        matches!(self, Self::TCP | Self::UDP | Self::SCTP)
    }
}

const _: () = assert!(size_of::<Address>() == 16 && align_of::<Address>() == 4);
const _: () = assert!(size_of::<Port>() == 2 && align_of::<Port>() == 1);

crate::pod!(Address, Port, Protocol);
