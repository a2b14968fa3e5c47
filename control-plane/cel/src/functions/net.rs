//! `ip`, `cidr` and what they answer.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use super::{Entry, no_overload};
use crate::{error::EvalError, value::Val};

type Result<'a> = std::result::Result<Val<'a>, EvalError>;

/// An address; never IPv4 mapped to IPv6, never with a zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ip(pub IpAddr);

/// An address and the length of its network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    address: IpAddr,
    length: u8,
}

pub(super) const TABLE: &[Entry] = &[
    ("ip", to_ip, &[("string_to_ip", "(string) -> ip"), ("cidr_ip", "cidr.() -> ip")]),
    ("isIP", is_ip, &[("is_ip", "(string) -> bool")]),
    ("ip.isCanonical", is_canonical, &[("ip_is_canonical", "(string) -> bool")]),
    ("family", family, &[("ip_family", "ip.() -> int")]),
    ("isUnspecified", property, &[("ip_is_unspecified", "ip.() -> bool")]),
    ("isLoopback", property, &[("ip_is_loopback", "ip.() -> bool")]),
    ("isLinkLocalMulticast", property, &[("ip_is_link_local_multicast", "ip.() -> bool")]),
    ("isLinkLocalUnicast", property, &[("ip_is_link_local_unicast", "ip.() -> bool")]),
    ("isGlobalUnicast", property, &[("ip_is_global_unicast", "ip.() -> bool")]),
    ("cidr", to_cidr, &[("string_to_cidr", "(string) -> cidr")]),
    ("isCIDR", is_cidr, &[("is_cidr", "(string) -> bool")]),
    (
        "containsIP",
        contains_ip,
        &[("cidr_contains_ip_string", "cidr.(string) -> bool"), ("cidr_contains_ip_ip", "cidr.(ip) -> bool")],
    ),
    (
        "containsCIDR",
        contains_cidr,
        &[
            ("cidr_contains_cidr_string", "cidr.(string) -> bool"),
            ("cidr_contains_cidr", "cidr.(cidr) -> bool"),
        ],
    ),
    ("prefixLength", prefix_length, &[("cidr_prefix_length", "cidr.() -> int")]),
    ("masked", masked, &[("cidr_masked", "cidr.() -> cidr")]),
];

impl Ip {
    /// # Errors
    /// Upstream's words for what is no address.
    pub fn parse(text: &str) -> std::result::Result<Self, EvalError> {
        if let Some((address, _)) = text.split_once('%')
            && address.parse::<Ipv6Addr>().is_ok()
        {
            return Err(EvalError::new(format!("IP address {text:?} with zone value is not allowed")));
        }
        let address: IpAddr = text.parse().map_err(|_| {
            EvalError::new(format!(
                "IP Address {text:?} parse error during conversion from string: ParseAddr({text:?}): unable to parse IP"
            ))
        })?;
        if is_mapped(address) {
            return Err(EvalError::new(format!("IPv4-mapped IPv6 address {text:?} is not allowed")));
        }
        Ok(Self(address))
    }

    /// In bytes; costs count in it.
    pub(crate) fn size(self) -> u64 {
        if self.0.is_ipv4() { 4 } else { 16 }
    }
}

fn is_mapped(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.to_ipv4_mapped().is_some())
}

impl fmt::Display for Ip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Cidr {
    /// # Errors
    /// Upstream's words for what is no network.
    pub fn parse(text: &str) -> std::result::Result<Self, EvalError> {
        let wrong = |why: &str| {
            EvalError::new(format!(
                "network address parse error during conversion from string: \
                 network address parse error during conversion from string: netip.ParsePrefix({text:?}): {why}"
            ))
        };
        let Some((address_text, length_text)) = text.rsplit_once('/') else { return Err(wrong("no '/'")) };
        let address: IpAddr = address_text
            .parse()
            .map_err(|_| wrong(&format!("ParseAddr({address_text:?}): unable to parse IP")))?;
        let digits = !length_text.is_empty() && length_text.bytes().all(|byte| byte.is_ascii_digit());
        let plain = digits && (length_text.len() == 1 || !length_text.starts_with('0'));
        let length: u8 = length_text
            .parse()
            .ok()
            .filter(|_| plain)
            .ok_or_else(|| wrong(&format!("bad bits after slash: {length_text:?}")))?;
        if length > if address.is_ipv4() { 32 } else { 128 } {
            return Err(wrong("prefix length out of range"));
        }
        if is_mapped(address) {
            return Err(EvalError::new(format!(
                "network address parse error during conversion from string: \
                 IPv4-mapped IPv6 address {text:?} is not allowed"
            )));
        }
        Ok(Self { address, length })
    }

    /// In bytes of the network's part of the address; costs count in it.
    pub(crate) fn size(self) -> u64 {
        u64::from(self.length).div_ceil(8)
    }

    fn network(self, address: IpAddr) -> IpAddr {
        match address {
            IpAddr::V4(address) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.length)).unwrap_or(0);
                Ipv4Addr::from(u32::from(address) & mask).into()
            }
            IpAddr::V6(address) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.length)).unwrap_or(0);
                Ipv6Addr::from(u128::from(address) & mask).into()
            }
        }
    }

    fn contains(self, address: IpAddr) -> bool {
        self.address.is_ipv4() == address.is_ipv4() && self.network(self.address) == self.network(address)
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

fn to_ip<'a>(_: &'static str, args: &[Val<'a>]) -> Result<'a> {
    match args {
        [Val::String(text)] => Ip::parse(text).map(Val::Ip),
        [Val::Cidr(cidr)] => Ok(Val::Ip(Ip(cidr.address))),
        _ => no_overload(),
    }
}

fn is_ip<'a>(_: &'static str, args: &[Val<'a>]) -> Result<'a> {
    let [Val::String(text)] = args else { return no_overload() };
    Ok(Val::Bool(Ip::parse(text).is_ok()))
}

fn is_canonical<'a>(_: &'static str, args: &[Val<'a>]) -> Result<'a> {
    let [Val::String(text)] = args else { return no_overload() };
    Ok(Val::Bool(Ip::parse(text)?.to_string() == **text))
}

fn family<'a>(_: &'static str, args: &[Val<'a>]) -> Result<'a> {
    let [Val::Ip(ip)] = args else { return no_overload() };
    Ok(Val::Int(if ip.0.is_ipv4() { 4 } else { 6 }))
}

fn property<'a>(name: &'static str, args: &[Val<'a>]) -> Result<'a> {
    let [Val::Ip(Ip(address))] = args else { return no_overload() };
    let link_local_multicast = match address {
        IpAddr::V4(address) => address.octets()[..3] == [224, 0, 0],
        IpAddr::V6(address) => address.segments()[0] & 0xff0f == 0xff02,
    };
    let link_local = match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    let broadcast = matches!(address, IpAddr::V4(address) if address.is_broadcast());
    let special = address.is_unspecified()
        || address.is_loopback()
        || address.is_multicast()
        || link_local
        || broadcast;
    Ok(Val::Bool(match name {
        "isUnspecified" => address.is_unspecified(),
        "isLoopback" => address.is_loopback(),
        "isLinkLocalMulticast" => link_local_multicast,
        "isLinkLocalUnicast" => link_local,
        _ => !special,
    }))
}

fn to_cidr<'a>(_: &'static str, args: &[Val<'a>]) -> Result<'a> {
    let [Val::String(text)] = args else { return no_overload() };
    Cidr::parse(text).map(Val::Cidr)
}

fn is_cidr<'a>(_: &'static str, args: &[Val<'a>]) -> Result<'a> {
    let [Val::String(text)] = args else { return no_overload() };
    Ok(Val::Bool(Cidr::parse(text).is_ok()))
}

fn contains_ip<'a>(_: &'static str, args: &[Val<'a>]) -> Result<'a> {
    let [Val::Cidr(cidr), other] = args else { return no_overload() };
    let ip = match other {
        Val::Ip(ip) => *ip,
        Val::String(text) => Ip::parse(text)?,
        _ => return no_overload(),
    };
    Ok(Val::Bool(cidr.contains(ip.0)))
}

fn contains_cidr<'a>(_: &'static str, args: &[Val<'a>]) -> Result<'a> {
    let [Val::Cidr(cidr), other] = args else { return no_overload() };
    let other = match other {
        Val::Cidr(other) => *other,
        Val::String(text) => Cidr::parse(text)?,
        _ => return no_overload(),
    };
    Ok(Val::Bool(cidr.length <= other.length && cidr.contains(other.address)))
}

fn prefix_length<'a>(_: &'static str, args: &[Val<'a>]) -> Result<'a> {
    let [Val::Cidr(cidr)] = args else { return no_overload() };
    Ok(Val::Int(i64::from(cidr.length)))
}

fn masked<'a>(_: &'static str, args: &[Val<'a>]) -> Result<'a> {
    let [Val::Cidr(cidr)] = args else { return no_overload() };
    Ok(Val::Cidr(Cidr { address: cidr.network(cidr.address), length: cidr.length }))
}
