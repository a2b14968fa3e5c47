//! OPEN and its capabilities (RFC 4271 4.2, RFC 5492, RFC 9072 extended optional parameters).

use std::net::Ipv4Addr;

use super::Reader;
use super::notification::{Notification, OPEN_MESSAGE_ERROR};
use crate::prefix::{Families, Family};

/// AS_TRANS of RFC 6793: stands for an AS number that does not fit two octets.
pub const AS_TRANS: u16 = 23456;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Open {
    /// The AS number, from the four-octet capability where present.
    pub asn: u32,
    /// Proposed hold time in seconds; 0 disables keepalives.
    pub hold_time: u16,
    pub router_id: Ipv4Addr,
    pub capabilities: Vec<Capability>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Capability {
    MultiProtocol(Family),
    RouteRefresh,
    ExtendedMessage,
    FourOctetAs(u32),
    GracefulRestart(GracefulRestart),
    /// RFC 7313: BoRR and EoRR around what was asked for.
    EnhancedRouteRefresh,
    /// RFC 7911, by family.
    AddPath(Vec<(Family, AddPathMode)>),
    /// RFC 8950: families whose next hop may be an IPv6 address.
    ExtendedNextHop(Families),
    /// RFC 9494, by family.
    LongLivedGracefulRestart(Vec<LongLived>),
    /// Kept for display; ignored otherwise. Also multiprotocol families that are not spoken.
    Unknown {
        code: u8,
        value: Vec<u8>,
    },
}

/// What the sender of the capability can do with path identifiers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct AddPathMode {
    pub receive: bool,
    pub send: bool,
}

/// RFC 9494 section 3.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LongLived {
    pub family: Family,
    /// F bit: forwarding state was preserved.
    pub forwarding: bool,
    /// Seconds, 24 bits.
    pub stale_time: u32,
}

/// RFC 4724 section 3, with the N bit of RFC 8538.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct GracefulRestart {
    /// R bit: the sender has restarted.
    pub restarted: bool,
    /// N bit: NOTIFICATION and hold timer expiry are survived too.
    pub notification: bool,
    /// Seconds, 0 to 4095.
    pub restart_time: u16,
    /// Families with the F bit: forwarding state was preserved.
    pub families: Vec<(Family, bool)>,
}

impl Open {
    /// Encodes the message body (without the header).
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(4);
        let short = u16::try_from(self.asn).unwrap_or(AS_TRANS);
        out.extend_from_slice(&short.to_be_bytes());
        out.extend_from_slice(&self.hold_time.to_be_bytes());
        out.extend_from_slice(&self.router_id.octets());
        let mut capabilities = Vec::new();
        for capability in &self.capabilities {
            capability.encode(&mut capabilities);
        }
        let length = u8::try_from(capabilities.len()).expect("our own capabilities take under 253 octets");
        if length == 0 {
            out.push(0);
        } else {
            out.extend_from_slice(&[length + 2, 2, length]);
            out.extend_from_slice(&capabilities);
        }
    }

    pub fn decode(body: &[u8]) -> Result<Open, Notification> {
        let malformed = || Notification::new(OPEN_MESSAGE_ERROR, 0);
        let mut reader = Reader::new(body);
        let version = reader.u8().ok_or_else(malformed)?;
        if version != 4 {
            return Err(Notification::with_data(OPEN_MESSAGE_ERROR, 1, &4u16.to_be_bytes()));
        }
        let mut asn = u32::from(reader.u16().ok_or_else(malformed)?);
        let hold_time = reader.u16().ok_or_else(malformed)?;
        let router_id = Ipv4Addr::from(reader.u32().ok_or_else(malformed)?);
        let mut length = usize::from(reader.u8().ok_or_else(malformed)?);
        let extended = length == 255 && reader.peek() == Some(255);
        if extended {
            reader.u8().ok_or_else(malformed)?;
            length = usize::from(reader.u16().ok_or_else(malformed)?);
        }
        if length != reader.remaining() {
            return Err(malformed());
        }
        let mut capabilities = Vec::new();
        while reader.remaining() > 0 {
            let kind = reader.u8().ok_or_else(malformed)?;
            let size = if extended {
                usize::from(reader.u16().ok_or_else(malformed)?)
            } else {
                usize::from(reader.u8().ok_or_else(malformed)?)
            };
            let value = reader.take(size).ok_or_else(malformed)?;
            if kind != 2 {
                return Err(Notification::new(OPEN_MESSAGE_ERROR, 4));
            }
            let mut inner = Reader::new(value);
            while inner.remaining() > 0 {
                let code = inner.u8().ok_or_else(malformed)?;
                let size = usize::from(inner.u8().ok_or_else(malformed)?);
                let value = inner.take(size).ok_or_else(malformed)?;
                capabilities.push(Capability::decode(code, value).ok_or_else(malformed)?);
            }
        }
        for capability in &capabilities {
            if let Capability::FourOctetAs(wide) = capability {
                asn = *wide;
            }
        }
        if asn == 0 {
            return Err(Notification::new(OPEN_MESSAGE_ERROR, 2));
        }
        if router_id.is_unspecified() {
            return Err(Notification::new(OPEN_MESSAGE_ERROR, 3));
        }
        if matches!(hold_time, 1 | 2) {
            return Err(Notification::new(OPEN_MESSAGE_ERROR, 6));
        }
        Ok(Open { asn, hold_time, router_id, capabilities })
    }

    pub fn graceful_restart(&self) -> Option<&GracefulRestart> {
        self.capabilities.iter().find_map(|capability| match capability {
            Capability::GracefulRestart(graceful) => Some(graceful),
            _ => None,
        })
    }

    /// What the sender can do with path identifiers in a family.
    pub fn add_path(&self, family: Family) -> AddPathMode {
        let modes = self.capabilities.iter().filter_map(|capability| match capability {
            Capability::AddPath(modes) => Some(modes),
            _ => None,
        });
        modes.flatten().find(|(of, _)| *of == family).map(|(_, mode)| *mode).unwrap_or_default()
    }

    /// The families whose next hop may be an IPv6 address.
    pub fn extended_next_hop(&self) -> Families {
        let found = self.capabilities.iter().find_map(|capability| match capability {
            Capability::ExtendedNextHop(families) => Some(*families),
            _ => None,
        });
        found.unwrap_or_default()
    }

    pub fn long_lived(&self) -> &[LongLived] {
        let found = self.capabilities.iter().find_map(|capability| match capability {
            Capability::LongLivedGracefulRestart(families) => Some(families.as_slice()),
            _ => None,
        });
        found.unwrap_or_default()
    }

    /// The families of the multiprotocol capabilities; IPv4 alone where there is none (RFC 4760 section 8).
    pub fn families(&self) -> Vec<Family> {
        let mut any = false;
        let mut families = Vec::new();
        for capability in &self.capabilities {
            match capability {
                Capability::MultiProtocol(family) => families.push(*family),
                Capability::Unknown { code: 1, .. } => any = true,
                _ => {}
            }
        }
        if families.is_empty() && !any { vec![Family::Ipv4] } else { families }
    }
}

impl Capability {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Capability::MultiProtocol(family) => {
                out.extend_from_slice(&[1, 4]);
                out.extend_from_slice(&family.afi().to_be_bytes());
                out.extend_from_slice(&[0, Family::SAFI]);
            }
            Capability::RouteRefresh => out.extend_from_slice(&[2, 0]),
            Capability::ExtendedMessage => out.extend_from_slice(&[6, 0]),
            Capability::FourOctetAs(asn) => {
                out.extend_from_slice(&[65, 4]);
                out.extend_from_slice(&asn.to_be_bytes());
            }
            Capability::GracefulRestart(graceful) => {
                out.extend_from_slice(&[64, 2 + 4 * graceful.families.len() as u8]);
                let mut head = graceful.restart_time & 0x0fff;
                if graceful.restarted {
                    head |= 0x8000;
                }
                if graceful.notification {
                    head |= 0x4000;
                }
                out.extend_from_slice(&head.to_be_bytes());
                for (family, forwarding) in &graceful.families {
                    out.extend_from_slice(&family.afi().to_be_bytes());
                    out.extend_from_slice(&[Family::SAFI, if *forwarding { 0x80 } else { 0 }]);
                }
            }
            Capability::EnhancedRouteRefresh => out.extend_from_slice(&[70, 0]),
            Capability::AddPath(families) => {
                out.extend_from_slice(&[69, 4 * families.len() as u8]);
                for (family, mode) in families {
                    out.extend_from_slice(&family.afi().to_be_bytes());
                    let mode = u8::from(mode.receive) | u8::from(mode.send) << 1;
                    out.extend_from_slice(&[Family::SAFI, mode]);
                }
            }
            Capability::ExtendedNextHop(families) => {
                let families: Vec<Family> =
                    Family::ALL.into_iter().filter(|family| families.contains(*family)).collect();
                out.extend_from_slice(&[5, 6 * families.len() as u8]);
                for family in families {
                    out.extend_from_slice(&family.afi().to_be_bytes());
                    out.extend_from_slice(&[0, Family::SAFI]);
                    out.extend_from_slice(&Family::Ipv6.afi().to_be_bytes());
                }
            }
            Capability::LongLivedGracefulRestart(families) => {
                out.extend_from_slice(&[71, 7 * families.len() as u8]);
                for long in families {
                    out.extend_from_slice(&long.family.afi().to_be_bytes());
                    out.extend_from_slice(&[Family::SAFI, if long.forwarding { 0x80 } else { 0 }]);
                    out.extend_from_slice(&long.stale_time.min(0x00ff_ffff).to_be_bytes()[1..]);
                }
            }
            Capability::Unknown { code, value } => {
                out.extend_from_slice(&[*code, value.len() as u8]);
                out.extend_from_slice(value);
            }
        }
    }

    fn decode(code: u8, value: &[u8]) -> Option<Capability> {
        let mut reader = Reader::new(value);
        let unknown = || Capability::Unknown { code, value: value.to_vec() };
        Some(match code {
            1 => {
                let afi = reader.u16()?;
                reader.u8()?;
                let safi = reader.u8()?;
                Family::from_afi_safi(afi, safi).map_or_else(unknown, Capability::MultiProtocol)
            }
            2 => Capability::RouteRefresh,
            6 => Capability::ExtendedMessage,
            65 => Capability::FourOctetAs(reader.u32()?),
            64 => {
                let head = reader.u16()?;
                let mut families = Vec::new();
                while reader.remaining() >= 4 {
                    let (afi, safi, flags) = (reader.u16()?, reader.u8()?, reader.u8()?);
                    if let Some(family) = Family::from_afi_safi(afi, safi) {
                        families.push((family, flags & 0x80 != 0));
                    }
                }
                Capability::GracefulRestart(GracefulRestart {
                    restarted: head & 0x8000 != 0,
                    notification: head & 0x4000 != 0,
                    restart_time: head & 0x0fff,
                    families,
                })
            }
            70 => Capability::EnhancedRouteRefresh,
            69 => {
                let mut families = Vec::new();
                while reader.remaining() >= 4 {
                    let (afi, safi, mode) = (reader.u16()?, reader.u8()?, reader.u8()?);
                    // RFC 7911 section 4: a tuple with another value is ignored.
                    if let (Some(family), 1..=3) = (Family::from_afi_safi(afi, safi), mode) {
                        let mode = AddPathMode { receive: mode & 1 != 0, send: mode & 2 != 0 };
                        families.push((family, mode));
                    }
                }
                Capability::AddPath(families)
            }
            5 => {
                let mut families = Families::default();
                while reader.remaining() >= 6 {
                    let (afi, safi, next_hop) = (reader.u16()?, reader.u16()?, reader.u16()?);
                    let safi = u8::try_from(safi).unwrap_or(0);
                    if let (Some(family), 2) = (Family::from_afi_safi(afi, safi), next_hop) {
                        families.insert(family);
                    }
                }
                Capability::ExtendedNextHop(families)
            }
            71 => Capability::LongLivedGracefulRestart(decode_long_lived(&mut reader)?),
            _ => unknown(),
        })
    }
}

fn decode_long_lived(reader: &mut Reader<'_>) -> Option<Vec<LongLived>> {
    let mut families = Vec::new();
    while reader.remaining() >= 7 {
        let (afi, safi, flags) = (reader.u16()?, reader.u8()?, reader.u8()?);
        let stale_time = u32::from(reader.u8()?) << 16 | u32::from(reader.u16()?);
        if let Some(family) = Family::from_afi_safi(afi, safi) {
            families.push(LongLived { family, forwarding: flags & 0x80 != 0, stale_time });
        }
    }
    Some(families)
}
