//! UPDATE: decoding under RFC 7606, and encoding packed to the message size.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use super::attributes::{self as attr, Attributes, Fault};
use super::notification::{Notification, UPDATE_MESSAGE_ERROR};
use super::open::AS_TRANS;
use super::{HEADER_LENGTH, Reader, finish};
use crate::link_local::without_link;
use crate::prefix::{Families, Family, Prefix};

/// What was negotiated and changes how an UPDATE reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DecodeContext {
    pub four_octet_as: bool,
    /// The peer is in another AS.
    pub external: bool,
    /// Prefixes of these come with a path identifier (RFC 7911).
    pub add_path: Families,
}

/// What was negotiated and changes how an UPDATE is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EncodeContext {
    pub four_octet_as: bool,
    /// Octets, header included.
    pub message_length_max: usize,
    /// Prefixes of these go with a path identifier (RFC 7911).
    pub add_path: Families,
}

/// A prefix as it travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nlri {
    pub prefix: Prefix,
    /// Tells several paths to one destination apart (RFC 7911); 0 where there are no identifiers.
    pub path_id: u32,
}

impl From<Prefix> for Nlri {
    fn from(prefix: Prefix) -> Nlri {
        Nlri { prefix, path_id: 0 }
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Update {
    pub withdrawn: Vec<Nlri>,
    pub reach: Vec<Reach>,
    pub attributes: Attributes,
    pub end_of_rib: Option<Family>,
    /// Faults that did not end the session; with one that is `withdraw`, `reach` is empty.
    pub errors: Vec<AttributeError>,
}

/// Prefixes that share a next hop.
#[derive(Clone, Debug, PartialEq)]
pub struct Reach {
    pub next_hop: IpAddr,
    /// The other one of a next hop of 32 octets (RFC 2545 section 3), as it is on the wire.
    pub link_local: Option<Ipv6Addr>,
    pub prefixes: Vec<Nlri>,
}

/// An attribute that was discarded, or for which the routes were treated as withdrawn.
#[derive(Clone, Debug, PartialEq)]
pub struct AttributeError {
    pub code: u8,
    pub withdraw: bool,
    pub what: &'static str,
}

impl fmt::Display for AttributeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let effect = if self.withdraw { "routes treated as withdrawn" } else { "attribute discarded" };
        write!(f, "attribute {}: {}; {effect}", self.code, self.what)
    }
}

/// The fields of an UPDATE while it is read.
struct Parse {
    update: Update,
    seen: [u64; 4],
    next_hop: Option<Ipv4Addr>,
    as4_path: Option<Vec<u8>>,
    as4_aggregator: Option<(u32, Ipv4Addr)>,
    mp_reach: Option<Reach>,
    mp_unreach_family: Option<Family>,
}

fn error(subcode: u8) -> Notification {
    Notification::new(UPDATE_MESSAGE_ERROR, subcode)
}

impl Update {
    /// Decodes the message body. `Err` only where RFC 7606 asks for a session reset.
    pub fn decode(body: &[u8], context: &DecodeContext) -> Result<Update, Notification> {
        let mut reader = Reader::new(body);
        let malformed = || error(1);
        let length = usize::from(reader.u16().ok_or_else(malformed)?);
        let withdrawn = reader.take(length).ok_or_else(malformed)?;
        let length = usize::from(reader.u16().ok_or_else(malformed)?);
        let attributes = reader.take(length).ok_or_else(malformed)?;
        let rest = reader.take(reader.remaining()).unwrap_or_default();
        let nlri = decode_prefixes(rest, Family::Ipv4, context).ok_or_else(|| error(10))?;

        let mut parse = Parse {
            update: Update::default(),
            seen: [0; 4],
            next_hop: None,
            as4_path: None,
            as4_aggregator: None,
            mp_reach: None,
            mp_unreach_family: None,
        };
        parse.update.withdrawn =
            decode_prefixes(withdrawn, Family::Ipv4, context).ok_or_else(|| error(10))?;
        parse.attributes(attributes, context)?;
        Ok(parse.finish(nlri, body.len()))
    }

    fn fault(&mut self, code: u8, withdraw: bool, what: &'static str) {
        self.errors.push(AttributeError { code, withdraw, what });
    }
}

impl Parse {
    fn attributes(&mut self, octets: &[u8], context: &DecodeContext) -> Result<(), Notification> {
        let mut reader = Reader::new(octets);
        while reader.remaining() > 0 {
            let Some((flags, code, value)) = split_attribute(&mut reader) else {
                self.update.fault(0, true, "attribute length overruns the attribute list");
                return Ok(());
            };
            let (word, bit) = (usize::from(code / 64), 1u64 << (code % 64));
            if self.seen[word] & bit != 0 {
                if matches!(code, attr::MP_REACH_NLRI | attr::MP_UNREACH_NLRI) {
                    return Err(error(1));
                }
                self.update.fault(code, false, "attribute appears twice");
                continue;
            }
            self.seen[word] |= bit;
            let expected = attr::expected_flags(code);
            if expected.is_some_and(|e| flags & (attr::OPTIONAL | attr::TRANSITIVE) != e) {
                let fatal = matches!(code, attr::MP_REACH_NLRI | attr::MP_UNREACH_NLRI);
                if fatal {
                    return Err(error(4));
                }
                self.update.fault(code, true, "attribute flags error");
                continue;
            }
            self.attribute(code, flags, value, context)?;
        }
        Ok(())
    }

    fn attribute(
        &mut self,
        code: u8,
        flags: u8,
        value: &[u8],
        context: &DecodeContext,
    ) -> Result<(), Notification> {
        match code {
            attr::NEXT_HOP => match <[u8; 4]>::try_from(value) {
                Ok(octets) => self.next_hop = Some(octets.into()),
                Err(_) => self.update.fault(code, true, "NEXT_HOP is not four octets"),
            },
            attr::MP_REACH_NLRI => {
                self.mp_reach = decode_mp_reach(value, context).ok_or_else(|| error(9))?;
            }
            attr::MP_UNREACH_NLRI => {
                let mut reader = Reader::new(value);
                let (Some(afi), Some(safi)) = (reader.u16(), reader.u8()) else { return Err(error(9)) };
                if let Some(family) = Family::from_afi_safi(afi, safi) {
                    let rest = reader.take(reader.remaining()).unwrap_or_default();
                    let prefixes = decode_prefixes(rest, family, context).ok_or_else(|| error(9))?;
                    self.update.withdrawn.extend(prefixes);
                    self.mp_unreach_family = Some(family);
                }
            }
            attr::AS4_PATH if !context.four_octet_as => self.as4_path = Some(value.to_vec()),
            attr::AS4_AGGREGATOR if !context.four_octet_as => match value.as_chunks::<4>() {
                ([asn, address], []) => {
                    self.as4_aggregator = Some((u32::from_be_bytes(*asn), Ipv4Addr::from(*address)));
                }
                _ => self.update.fault(code, false, "AS4_AGGREGATOR is not eight octets"),
            },
            // RFC 6793 section 6: from a speaker of four octets they are discarded.
            attr::AS4_PATH | attr::AS4_AGGREGATOR => {}
            _ => {
                let taken =
                    self.update.attributes.take(code, flags, value, context.four_octet_as, context.external);
                match taken {
                    Ok(()) => {}
                    Err(Fault::TreatAsWithdraw) => self.update.fault(code, true, "malformed value"),
                    Err(Fault::AttributeDiscard) => {
                        self.update.fault(code, false, "malformed or not allowed")
                    }
                }
            }
        }
        Ok(())
    }

    fn finish(mut self, nlri: Vec<Nlri>, body_length: usize) -> Update {
        let has = |seen: &[u64; 4], code: u8| seen[usize::from(code / 64)] & (1 << (code % 64)) != 0;
        // RFC 6793 4.2.3: an AGGREGATOR that is not AS_TRANS was made after the AS4 attributes, which are then outdated.
        let trans = u32::from(AS_TRANS);
        let outdated = self.update.attributes.aggregator.is_some_and(|(asn, _)| asn != trans);
        if let (Some(wide), false) = (self.as4_aggregator.take(), outdated)
            && self.update.attributes.aggregator.is_some()
        {
            self.update.attributes.aggregator = Some(wide);
        }
        if let Some(value) = self.as4_path.take().filter(|_| !outdated)
            && self.update.attributes.merge_as4_path(&value).is_err()
        {
            self.update.fault(attr::AS4_PATH, false, "malformed value");
        }
        if !nlri.is_empty() {
            match self.next_hop {
                Some(next_hop) => {
                    self.update.reach.push(Reach {
                        next_hop: next_hop.into(),
                        link_local: None,
                        prefixes: nlri,
                    });
                }
                None => {
                    self.update.fault(attr::NEXT_HOP, true, "missing well-known attribute");
                    self.update.withdrawn.extend(nlri);
                }
            }
        }
        if let Some(reach) = self.mp_reach.take() {
            self.update.reach.push(reach);
        }
        if !self.update.reach.is_empty() {
            for code in [attr::ORIGIN, attr::AS_PATH] {
                if !has(&self.seen, code) {
                    self.update.fault(code, true, "missing well-known attribute");
                }
            }
        }
        if self.update.errors.iter().any(|e| e.withdraw) {
            for reach in std::mem::take(&mut self.update.reach) {
                self.update.withdrawn.extend(reach.prefixes);
            }
        }
        let empty = self.update.reach.is_empty() && self.update.withdrawn.is_empty();
        if empty && body_length == 4 {
            self.update.end_of_rib = Some(Family::Ipv4);
        } else if empty && self.update.errors.is_empty() {
            self.update.end_of_rib = self.mp_unreach_family;
        }
        self.update
    }
}

fn split_attribute<'a>(reader: &mut Reader<'a>) -> Option<(u8, u8, &'a [u8])> {
    let (flags, code) = (reader.u8()?, reader.u8()?);
    let length = if flags & attr::EXTENDED_LENGTH != 0 {
        usize::from(reader.u16()?)
    } else {
        usize::from(reader.u8()?)
    };
    Some((flags, code, reader.take(length)?))
}

/// `None`: malformed. `Some(None)`: a family that is not spoken.
fn decode_mp_reach(value: &[u8], context: &DecodeContext) -> Option<Option<Reach>> {
    let mut reader = Reader::new(value);
    let (afi, safi, length) = (reader.u16()?, reader.u8()?, reader.u8()?);
    let next_hop = reader.take(usize::from(length))?;
    reader.u8()?;
    let Some(family) = Family::from_afi_safi(afi, safi) else { return Some(None) };
    let link_local = next_hop.get(16..32).and_then(|octets| <[u8; 16]>::try_from(octets).ok());
    let link_local = link_local.map(Ipv6Addr::from).filter(Ipv6Addr::is_unicast_link_local);
    let next_hop = match next_hop.len() {
        4 if family == Family::Ipv4 => IpAddr::from([next_hop[0], next_hop[1], next_hop[2], next_hop[3]]),
        16 | 32 => IpAddr::from(<[u8; 16]>::try_from(&next_hop[..16]).ok()?),
        _ => return None,
    };
    let prefixes = decode_prefixes(reader.take(reader.remaining())?, family, context)?;
    Some(Some(Reach { next_hop, link_local, prefixes }))
}

fn decode_prefixes(octets: &[u8], family: Family, context: &DecodeContext) -> Option<Vec<Nlri>> {
    let mut reader = Reader::new(octets);
    let mut prefixes = Vec::new();
    let identified = context.add_path.contains(family);
    while reader.remaining() > 0 {
        let path_id = if identified { reader.u32()? } else { 0 };
        let length = reader.u8()?;
        if length > family.bits() {
            return None;
        }
        let significant = reader.take(usize::from(length.div_ceil(8)))?;
        let mut full = [0u8; 16];
        full[..significant.len()].copy_from_slice(significant);
        let address = match family {
            Family::Ipv4 => IpAddr::V4(Ipv4Addr::new(full[0], full[1], full[2], full[3])),
            Family::Ipv6 => IpAddr::V6(Ipv6Addr::from(full)),
        };
        prefixes.push(Nlri { prefix: Prefix::new(address, length)?, path_id });
    }
    Some(prefixes)
}

/// Octets of one prefix on the wire: identifier, length, address.
fn encoded_length(bits: u8, identified: bool) -> usize {
    usize::from(identified) * 4 + 1 + usize::from(bits.div_ceil(8))
}

fn encode_prefix(nlri: &Nlri, identified: bool, out: &mut Vec<u8>) {
    let count = usize::from(nlri.prefix.length().div_ceil(8));
    if identified {
        out.extend_from_slice(&nlri.path_id.to_be_bytes());
    }
    out.push(nlri.prefix.length());
    match nlri.prefix {
        Prefix::V4 { address, .. } => out.extend_from_slice(&address.octets()[..count]),
        Prefix::V6 { address, .. } => out.extend_from_slice(&address.octets()[..count]),
    }
}

/// Writes `prefixes`, which share `attributes` and its next hop, into as few UPDATEs as fit.
///
/// The prefixes must be of one family. IPv4 with an IPv6 next hop is written as RFC 8950 says, and a next hop that is
/// link-local stands alone, as in draft-ietf-idr-linklocal-capability.
pub fn encode_reach(attributes: &Attributes, prefixes: &[Nlri], context: &EncodeContext) -> Vec<Arc<[u8]>> {
    let Some(family) = prefixes.first().map(|nlri| nlri.prefix.family()) else { return Vec::new() };
    let classic = match attributes.next_hop {
        IpAddr::V4(next_hop) if family == Family::Ipv4 => Some(next_hop),
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    };
    let mut shared = Vec::new();
    attributes.encode(context.four_octet_as, classic, &mut shared);
    // Header and two length fields; for MP_REACH_NLRI: flags, code, length, AFI, SAFI, next hop, reserved.
    let around =
        HEADER_LENGTH + 4 + shared.len() + if classic.is_some() { 0 } else { 4 + 2 + 1 + 1 + 16 + 1 };
    let room = context.message_length_max.saturating_sub(around);
    let identified = context.add_path.contains(family);
    if room < encoded_length(family.bits(), identified) {
        // RFC 8654 section 4: what does not fit the peer's message size is withdrawn from it.
        return encode_withdraw(prefixes, context);
    }
    split(prefixes, room, identified)
        .into_iter()
        .map(|chunk| {
            finish(super::UPDATE, |out| {
                out.extend_from_slice(&[0, 0]);
                if classic.is_some() {
                    out.extend_from_slice(&(shared.len() as u16).to_be_bytes());
                    out.extend_from_slice(&shared);
                    out.extend_from_slice(&chunk);
                    return;
                }
                let mut value = family.afi().to_be_bytes().to_vec();
                value.push(Family::SAFI);
                value.push(16);
                value.extend_from_slice(&match without_link(attributes.next_hop).0 {
                    IpAddr::V4(next_hop) => next_hop.to_ipv6_mapped().octets(),
                    IpAddr::V6(next_hop) => next_hop.octets(),
                });
                value.push(0);
                value.extend_from_slice(&chunk);
                let mut list = Vec::new();
                // RFC 7606 section 5.1: MP_REACH_NLRI comes first.
                attr::put(&mut list, attr::OPTIONAL, attr::MP_REACH_NLRI, &value);
                list.extend_from_slice(&shared);
                out.extend_from_slice(&(list.len() as u16).to_be_bytes());
                out.extend_from_slice(&list);
            })
        })
        .collect()
}

/// Writes withdrawals of one family into as few UPDATEs as fit.
pub fn encode_withdraw(prefixes: &[Nlri], context: &EncodeContext) -> Vec<Arc<[u8]>> {
    let Some(family) = prefixes.first().map(|nlri| nlri.prefix.family()) else { return Vec::new() };
    // MP_UNREACH_NLRI: flags, code, length, AFI, SAFI.
    let around = HEADER_LENGTH + 4 + if family == Family::Ipv4 { 0 } else { 4 + 2 + 1 };
    let room = context.message_length_max - around;
    let identified = context.add_path.contains(family);
    split(prefixes, room, identified).into_iter().map(|chunk| withdraw_message(family, &chunk)).collect()
}

/// The End-of-RIB marker of RFC 4724 section 2.
pub fn encode_end_of_rib(family: Family) -> Arc<[u8]> {
    withdraw_message(family, &[])
}

fn withdraw_message(family: Family, octets: &[u8]) -> Arc<[u8]> {
    finish(super::UPDATE, |out| match family {
        Family::Ipv4 => {
            out.extend_from_slice(&(octets.len() as u16).to_be_bytes());
            out.extend_from_slice(octets);
            out.extend_from_slice(&[0, 0]);
        }
        Family::Ipv6 => {
            let mut value = family.afi().to_be_bytes().to_vec();
            value.push(Family::SAFI);
            value.extend_from_slice(octets);
            let mut list = Vec::new();
            attr::put(&mut list, attr::OPTIONAL, attr::MP_UNREACH_NLRI, &value);
            out.extend_from_slice(&[0, 0]);
            out.extend_from_slice(&(list.len() as u16).to_be_bytes());
            out.extend_from_slice(&list);
        }
    })
}

/// Encodes prefixes into runs of at most `room` octets.
fn split(prefixes: &[Nlri], room: usize, identified: bool) -> Vec<Vec<u8>> {
    let mut chunks = Vec::new();
    let mut chunk = Vec::new();
    for nlri in prefixes {
        let size = encoded_length(nlri.prefix.length(), identified);
        if !chunk.is_empty() && chunk.len() + size > room {
            chunks.push(std::mem::take(&mut chunk));
        }
        encode_prefix(nlri, identified, &mut chunk);
    }
    if !chunk.is_empty() {
        chunks.push(chunk);
    }
    chunks
}
