//! Path attributes: values, decoding with the error classes of RFC 7606, encoding.

use std::net::{IpAddr, Ipv4Addr};

use super::Reader;
use super::open::AS_TRANS;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    Igp,
    Egp,
    Incomplete,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum AsSegment {
    Set(Vec<u32>),
    Sequence(Vec<u32>),
}

impl AsSegment {
    pub fn asns(&self) -> &[u32] {
        match self {
            AsSegment::Set(list) | AsSegment::Sequence(list) => list,
        }
    }
}

/// The attributes of a path. Interned in the RIB: equal values share one allocation.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Attributes {
    pub origin: Origin,
    pub as_path: Vec<AsSegment>,
    /// From NEXT_HOP or MP_REACH_NLRI, set per group of prefixes.
    pub next_hop: IpAddr,
    pub med: Option<u32>,
    pub local_pref: Option<u32>,
    pub atomic_aggregate: bool,
    pub aggregator: Option<(u32, Ipv4Addr)>,
    pub communities: Vec<u32>,
    pub extended_communities: Vec<[u8; 8]>,
    pub large_communities: Vec<[u32; 3]>,
    pub originator_id: Option<Ipv4Addr>,
    pub cluster_list: Vec<Ipv4Addr>,
    /// Optional transitive attributes that are not understood, passed on with the partial bit.
    pub unknown: Vec<UnknownAttribute>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UnknownAttribute {
    pub flags: u8,
    pub code: u8,
    pub value: Vec<u8>,
}

pub(super) const OPTIONAL: u8 = 0x80;
pub(super) const TRANSITIVE: u8 = 0x40;
const PARTIAL: u8 = 0x20;
pub(super) const EXTENDED_LENGTH: u8 = 0x10;

pub(super) const ORIGIN: u8 = 1;
pub(super) const AS_PATH: u8 = 2;
pub(super) const NEXT_HOP: u8 = 3;
pub(super) const MULTI_EXIT_DISC: u8 = 4;
pub(super) const LOCAL_PREF: u8 = 5;
pub(super) const ATOMIC_AGGREGATE: u8 = 6;
pub(super) const AGGREGATOR: u8 = 7;
pub(super) const COMMUNITIES: u8 = 8;
pub(super) const ORIGINATOR_ID: u8 = 9;
pub(super) const CLUSTER_LIST: u8 = 10;
pub(super) const MP_REACH_NLRI: u8 = 14;
pub(super) const MP_UNREACH_NLRI: u8 = 15;
pub(super) const EXTENDED_COMMUNITIES: u8 = 16;
pub(super) const AS4_PATH: u8 = 17;
pub(super) const AS4_AGGREGATOR: u8 = 18;
pub(super) const LARGE_COMMUNITIES: u8 = 32;

/// Well-known communities (RFC 1997, RFC 8326, RFC 9494).
pub mod community {
    pub const GRACEFUL_SHUTDOWN: u32 = 0xffff_0000;
    pub const LLGR_STALE: u32 = 0xffff_0006;
    pub const NO_LLGR: u32 = 0xffff_0007;
    pub const NO_EXPORT: u32 = 0xffff_ff01;
    pub const NO_ADVERTISE: u32 = 0xffff_ff02;
    pub const NO_EXPORT_SUBCONFED: u32 = 0xffff_ff03;
}

/// What an erroneous attribute costs (RFC 7606 section 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    TreatAsWithdraw,
    AttributeDiscard,
}

impl Default for Attributes {
    fn default() -> Attributes {
        Attributes {
            origin: Origin::Igp,
            as_path: Vec::new(),
            next_hop: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            med: None,
            local_pref: None,
            atomic_aggregate: false,
            aggregator: None,
            communities: Vec::new(),
            extended_communities: Vec::new(),
            large_communities: Vec::new(),
            originator_id: None,
            cluster_list: Vec::new(),
            unknown: Vec::new(),
        }
    }
}

impl Attributes {
    /// AS_PATH length as the decision process counts it: an AS_SET counts one (RFC 4271 9.1.2.2).
    pub fn as_path_length(&self) -> usize {
        self.as_path
            .iter()
            .map(|segment| match segment {
                AsSegment::Set(_) => 1,
                AsSegment::Sequence(list) => list.len(),
            })
            .sum()
    }

    /// How often an AS occurs in AS_PATH.
    pub fn as_path_count(&self, asn: u32) -> usize {
        self.as_path.iter().flat_map(AsSegment::asns).filter(|known| **known == asn).count()
    }

    /// Whether the AS_PATH begins with these AS numbers, none of them in an AS_SET.
    pub fn as_path_starts_with(&self, asns: &[u32]) -> bool {
        let mut wanted = asns;
        for segment in &self.as_path {
            if wanted.is_empty() {
                break;
            }
            let AsSegment::Sequence(list) = segment else { return false };
            let count = list.len().min(wanted.len());
            if list[..count] != wanted[..count] {
                return false;
            }
            wanted = &wanted[count..];
        }
        wanted.is_empty()
    }

    /// The AS the path was learned from: the leftmost of the first sequence.
    pub fn neighbour_asn(&self) -> Option<u32> {
        match self.as_path.first() {
            Some(AsSegment::Sequence(list)) => list.first().copied(),
            Some(AsSegment::Set(_)) | None => None,
        }
    }

    pub fn prepend(&mut self, asn: u32) {
        match self.as_path.first_mut() {
            Some(AsSegment::Sequence(list)) if list.len() < 255 => list.insert(0, asn),
            _ => self.as_path.insert(0, AsSegment::Sequence(vec![asn])),
        }
    }

    /// Leaves out the extended communities that stay inside an AS (RFC 4360 section 3).
    pub(crate) fn retain_transitive_communities(&mut self) {
        self.extended_communities.retain(|community| community[0] & 0x40 == 0);
    }

    /// Takes in one attribute other than NEXT_HOP and MP_*; `four` is the width of AS numbers.
    pub(super) fn take(
        &mut self,
        code: u8,
        flags: u8,
        value: &[u8],
        four: bool,
        external: bool,
    ) -> Result<(), Fault> {
        let mut reader = Reader::new(value);
        let withdraw = Fault::TreatAsWithdraw;
        let discard = Fault::AttributeDiscard;
        match code {
            ORIGIN => {
                self.origin = match value {
                    [0] => Origin::Igp,
                    [1] => Origin::Egp,
                    [2] => Origin::Incomplete,
                    _ => return Err(withdraw),
                }
            }
            AS_PATH => self.as_path = decode_as_path(value, four).ok_or(withdraw)?,
            MULTI_EXIT_DISC => self.med = Some(exact_u32(value).ok_or(withdraw)?),
            LOCAL_PREF | ORIGINATOR_ID | CLUSTER_LIST if external => return Err(discard),
            LOCAL_PREF => self.local_pref = Some(exact_u32(value).ok_or(withdraw)?),
            ATOMIC_AGGREGATE if value.is_empty() => self.atomic_aggregate = true,
            ATOMIC_AGGREGATE => return Err(discard),
            AGGREGATOR => {
                if value.len() != if four { 8 } else { 6 } {
                    return Err(discard);
                }
                let asn = if four { reader.u32() } else { reader.u16().map(u32::from) }.ok_or(discard)?;
                if asn == 0 {
                    return Err(discard);
                }
                self.aggregator = Some((asn, Ipv4Addr::from(reader.u32().ok_or(discard)?)));
            }
            COMMUNITIES => {
                self.communities = chunks::<4>(value).ok_or(withdraw)?.map(u32::from_be_bytes).collect();
            }
            ORIGINATOR_ID => {
                self.originator_id = Some(Ipv4Addr::from(exact_u32(value).ok_or(withdraw)?));
            }
            CLUSTER_LIST => {
                self.cluster_list = chunks::<4>(value).ok_or(withdraw)?.map(Ipv4Addr::from).collect();
            }
            EXTENDED_COMMUNITIES => {
                self.extended_communities = chunks::<8>(value).ok_or(withdraw)?.collect();
            }
            LARGE_COMMUNITIES => {
                self.large_communities = chunks::<12>(value)
                    .ok_or(withdraw)?
                    .map(|c| [word(&c, 0), word(&c, 4), word(&c, 8)])
                    .collect();
            }
            _ if flags & OPTIONAL == 0 => return Err(withdraw),
            _ if flags & TRANSITIVE != 0 => self.unknown.push(UnknownAttribute {
                flags: (flags | PARTIAL) & !EXTENDED_LENGTH,
                code,
                value: value.to_vec(),
            }),
            _ => {}
        }
        Ok(())
    }

    /// Rebuilds the wide AS_PATH from AS_PATH and AS4_PATH of a two-octet speaker (RFC 6793 4.2.3).
    pub(super) fn merge_as4_path(&mut self, value: &[u8]) -> Result<(), Fault> {
        let wide = decode_as_path(value, true).ok_or(Fault::AttributeDiscard)?;
        let flat = |path: &[AsSegment]| path.iter().flat_map(AsSegment::asns).copied().collect::<Vec<u32>>();
        let (short, long) = (flat(&self.as_path), flat(&wide));
        if long.len() <= short.len() && !self.as_path.iter().any(|s| matches!(s, AsSegment::Set(_))) {
            let mut merged = short[..short.len() - long.len()].to_vec();
            merged.extend(long);
            self.as_path = merged.chunks(255).map(|chunk| AsSegment::Sequence(chunk.to_vec())).collect();
        }
        Ok(())
    }

    /// Appends all attributes but NEXT_HOP and MP_REACH_NLRI, in order of their codes.
    pub(super) fn encode(&self, four: bool, next_hop: Option<Ipv4Addr>, out: &mut Vec<u8>) {
        put(out, TRANSITIVE, ORIGIN, &[self.origin as u8]);
        put(out, TRANSITIVE, AS_PATH, &encode_as_path(&self.as_path, four));
        if let Some(next_hop) = next_hop {
            put(out, TRANSITIVE, NEXT_HOP, &next_hop.octets());
        }
        if let Some(med) = self.med {
            put(out, OPTIONAL, MULTI_EXIT_DISC, &med.to_be_bytes());
        }
        if let Some(local_pref) = self.local_pref {
            put(out, TRANSITIVE, LOCAL_PREF, &local_pref.to_be_bytes());
        }
        if self.atomic_aggregate {
            put(out, TRANSITIVE, ATOMIC_AGGREGATE, &[]);
        }
        if let Some((asn, address)) = self.aggregator {
            let mut value = Vec::new();
            put_asn(&mut value, asn, four);
            value.extend_from_slice(&address.octets());
            put(out, OPTIONAL | TRANSITIVE, AGGREGATOR, &value);
        }
        let flat = |items: &[u32]| items.iter().flat_map(|item| item.to_be_bytes()).collect::<Vec<u8>>();
        if !self.communities.is_empty() {
            put(out, OPTIONAL | TRANSITIVE, COMMUNITIES, &flat(&self.communities));
        }
        if let Some(id) = self.originator_id {
            put(out, OPTIONAL, ORIGINATOR_ID, &id.octets());
        }
        if !self.cluster_list.is_empty() {
            let value: Vec<u8> = self.cluster_list.iter().flat_map(Ipv4Addr::octets).collect();
            put(out, OPTIONAL, CLUSTER_LIST, &value);
        }
        if !self.extended_communities.is_empty() {
            put(out, OPTIONAL | TRANSITIVE, EXTENDED_COMMUNITIES, self.extended_communities.as_flattened());
        }
        if !four && wide(&self.as_path) {
            put(out, OPTIONAL | TRANSITIVE, AS4_PATH, &encode_as_path(&self.as_path, true));
        }
        if let Some((asn, address)) = self.aggregator.filter(|(asn, _)| !four && *asn > 0xffff) {
            let value = [asn.to_be_bytes(), address.octets()];
            put(out, OPTIONAL | TRANSITIVE, AS4_AGGREGATOR, value.as_flattened());
        }
        if !self.large_communities.is_empty() {
            let value = flat(self.large_communities.as_flattened());
            put(out, OPTIONAL | TRANSITIVE, LARGE_COMMUNITIES, &value);
        }
        for attribute in &self.unknown {
            put(out, attribute.flags, attribute.code, &attribute.value);
        }
    }
}

/// The flags a known attribute must carry (RFC 4271 section 4.3 and the attribute's own RFC).
pub(super) fn expected_flags(code: u8) -> Option<u8> {
    Some(match code {
        ORIGIN | AS_PATH | NEXT_HOP | LOCAL_PREF | ATOMIC_AGGREGATE => TRANSITIVE,
        MULTI_EXIT_DISC | ORIGINATOR_ID | CLUSTER_LIST | MP_REACH_NLRI | MP_UNREACH_NLRI => OPTIONAL,
        AGGREGATOR | COMMUNITIES | EXTENDED_COMMUNITIES | LARGE_COMMUNITIES | AS4_PATH | AS4_AGGREGATOR => {
            OPTIONAL | TRANSITIVE
        }
        _ => return None,
    })
}

pub(super) fn put(out: &mut Vec<u8>, flags: u8, code: u8, value: &[u8]) {
    match u8::try_from(value.len()) {
        Ok(length) => out.extend_from_slice(&[flags, code, length]),
        Err(_) => {
            out.extend_from_slice(&[flags | EXTENDED_LENGTH, code]);
            out.extend_from_slice(&(value.len() as u16).to_be_bytes());
        }
    }
    out.extend_from_slice(value);
}

fn put_asn(out: &mut Vec<u8>, asn: u32, four: bool) {
    if four {
        out.extend_from_slice(&asn.to_be_bytes());
    } else {
        out.extend_from_slice(&u16::try_from(asn).unwrap_or(AS_TRANS).to_be_bytes());
    }
}

fn wide(path: &[AsSegment]) -> bool {
    path.iter().flat_map(AsSegment::asns).any(|asn| *asn > 0xffff)
}

fn encode_as_path(path: &[AsSegment], four: bool) -> Vec<u8> {
    let mut out = Vec::new();
    for segment in path {
        let (kind, list) = match segment {
            AsSegment::Set(list) => (1, list),
            AsSegment::Sequence(list) => (2, list),
        };
        out.extend_from_slice(&[kind, list.len().min(255) as u8]);
        for asn in list.iter().take(255) {
            put_asn(&mut out, *asn, four);
        }
    }
    out
}

fn decode_as_path(value: &[u8], four: bool) -> Option<Vec<AsSegment>> {
    let mut reader = Reader::new(value);
    let mut path = Vec::new();
    while reader.remaining() > 0 {
        let kind = reader.u8()?;
        let count = reader.u8()?;
        if count == 0 {
            return None;
        }
        let mut list = Vec::with_capacity(usize::from(count));
        for _ in 0..count {
            let asn = if four { reader.u32()? } else { u32::from(reader.u16()?) };
            // RFC 7607: AS 0 is malformed.
            list.push(Some(asn).filter(|asn| *asn != 0)?);
        }
        path.push(match kind {
            1 => AsSegment::Set(list),
            2 => AsSegment::Sequence(list),
            _ => return None,
        });
    }
    Some(path)
}

fn exact_u32(value: &[u8]) -> Option<u32> {
    value.try_into().ok().map(u32::from_be_bytes)
}

fn word(octets: &[u8; 12], at: usize) -> u32 {
    u32::from_be_bytes([octets[at], octets[at + 1], octets[at + 2], octets[at + 3]])
}

/// Splits a non-empty value whose length is a multiple of `N`.
fn chunks<const N: usize>(value: &[u8]) -> Option<impl Iterator<Item = [u8; N]> + '_> {
    let (chunks, rest) = value.as_chunks::<N>();
    (rest.is_empty() && !chunks.is_empty()).then(|| chunks.iter().copied())
}
