//! An IP prefix in canonical form: the bits after its length are zero.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};

/// The address families spoken: unicast IPv4 and IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    Ipv4,
    Ipv6,
}

impl Family {
    pub const ALL: [Family; 2] = [Family::Ipv4, Family::Ipv6];
    /// SAFI 1, unicast: the only one spoken.
    pub const SAFI: u8 = 1;

    /// The AFI number of IANA.
    pub fn afi(self) -> u16 {
        match self {
            Family::Ipv4 => 1,
            Family::Ipv6 => 2,
        }
    }

    /// The family of an AFI and SAFI pair; `None` for those not spoken.
    pub fn from_afi_safi(afi: u16, safi: u8) -> Option<Family> {
        match (afi, safi) {
            (1, 1) => Some(Family::Ipv4),
            (2, 1) => Some(Family::Ipv6),
            _ => None,
        }
    }

    pub fn of(address: IpAddr) -> Family {
        if address.is_ipv4() { Family::Ipv4 } else { Family::Ipv6 }
    }

    /// The longest prefix of the family, in bits.
    pub fn bits(self) -> u8 {
        match self {
            Family::Ipv4 => 32,
            Family::Ipv6 => 128,
        }
    }
}

/// A set of families.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Families {
    pub ipv4: bool,
    pub ipv6: bool,
}

impl Families {
    pub fn contains(self, family: Family) -> bool {
        match family {
            Family::Ipv4 => self.ipv4,
            Family::Ipv6 => self.ipv6,
        }
    }

    pub fn insert(&mut self, family: Family) {
        match family {
            Family::Ipv4 => self.ipv4 = true,
            Family::Ipv6 => self.ipv6 = true,
        }
    }

    pub fn is_empty(self) -> bool {
        !self.ipv4 && !self.ipv6
    }
}

impl FromIterator<Family> for Families {
    fn from_iter<T: IntoIterator<Item = Family>>(families: T) -> Families {
        let mut set = Families::default();
        families.into_iter().for_each(|family| set.insert(family));
        set
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Prefix {
    V4 { address: Ipv4Addr, length: u8 },
    V6 { address: Ipv6Addr, length: u8 },
}

impl Prefix {
    /// Masks `address` to `length` bits; `None` when the length is over the family's.
    pub fn new(address: IpAddr, length: u8) -> Option<Prefix> {
        match address {
            IpAddr::V4(v4) if length <= 32 => {
                let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
                Some(Prefix::V4 { address: Ipv4Addr::from(u32::from(v4) & mask), length })
            }
            IpAddr::V6(v6) if length <= 128 => {
                let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
                Some(Prefix::V6 { address: Ipv6Addr::from(u128::from(v6) & mask), length })
            }
            IpAddr::V4(_) | IpAddr::V6(_) => None,
        }
    }

    pub fn family(&self) -> Family {
        match self {
            Prefix::V4 { .. } => Family::Ipv4,
            Prefix::V6 { .. } => Family::Ipv6,
        }
    }

    pub fn address(&self) -> IpAddr {
        match *self {
            Prefix::V4 { address, .. } => address.into(),
            Prefix::V6 { address, .. } => address.into(),
        }
    }

    /// Length in bits.
    pub fn length(&self) -> u8 {
        match *self {
            Prefix::V4 { length, .. } | Prefix::V6 { length, .. } => length,
        }
    }

    /// Whether `other` is this prefix or one inside it.
    pub fn covers(&self, other: &Prefix) -> bool {
        other.length() >= self.length() && self.contains(other.address())
    }

    pub fn contains(&self, address: IpAddr) -> bool {
        Prefix::new(address, self.length()).is_some_and(|other| other == *self)
    }
}

/// As few and as wide writes as there can be: every prefix of an UPDATE is hashed.
impl Hash for Prefix {
    fn hash<H: Hasher>(&self, state: &mut H) {
        match *self {
            Prefix::V4 { address, length } => {
                state.write_u64(u64::from(u32::from(address)) << 8 | u64::from(length));
            }
            Prefix::V6 { address, length } => {
                state.write_u128(u128::from(address));
                state.write_u8(length);
            }
        }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address(), self.length())
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<IpNetwork> for Prefix {
    fn from(network: IpNetwork) -> Prefix {
        Prefix::new(network.ip(), network.prefix()).expect("an IpNetwork's prefix is in range")
    }
}

impl From<Prefix> for IpNetwork {
    fn from(prefix: Prefix) -> IpNetwork {
        match prefix {
            Prefix::V4 { address, length } => {
                IpNetwork::V4(Ipv4Network::new(address, length).expect("a Prefix's length is in range"))
            }
            Prefix::V6 { address, length } => {
                IpNetwork::V6(Ipv6Network::new(address, length).expect("a Prefix's length is in range"))
            }
        }
    }
}

impl FromStr for Prefix {
    type Err = ipnetwork::IpNetworkError;

    fn from_str(text: &str) -> Result<Prefix, Self::Err> {
        text.parse::<IpNetwork>().map(Prefix::from)
    }
}
