//! Which traffic of pods gets the node's address.

use std::{collections::BTreeSet, path::Path};

use ebpf_common::{Address, FORWARD_PORTS, Masquerade, Prefix, Range, Ranges, maps};
use ipnetwork::IpNetwork;

use crate::{
    delta::Delta,
    maps::{MapError, PinnedMap},
};

/// The only element of its map.
const INDEX: u32 = 0;

/// What pods send to hosts outside of the cluster leaves with the node's address, where this says so.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MasqueradeConfig {
    /// Where the pods of the whole cluster are, of which one per family is minded: in a family that has none, every
    /// packet leaves with the address that it has.
    pub pods: Vec<IpNetwork>,
    /// Where pods are seen under their own addresses, besides those ranges.
    pub except: BTreeSet<IpNetwork>,
    /// Source ports and ICMP identifiers, first and last, which no socket of the node may choose by itself.
    pub ports: (u16, u16),
}

impl Default for MasqueradeConfig {
    /// Nothing gets another address.
    fn default() -> Self {
        Self { pods: Vec::new(), except: BTreeSet::new(), ports: FORWARD_PORTS }
    }
}

#[derive(Debug)]
pub(crate) struct MasqueradeMaps {
    map: PinnedMap<u32, Masquerade>,
    except_map: PinnedMap<Prefix, u32>,
    except: Delta<Prefix, u32>,
}

impl MasqueradeMaps {
    pub(crate) fn open(directory: &Path) -> Result<Self, MapError> {
        let except_map: PinnedMap<Prefix, u32> = PinnedMap::open(directory, maps::UNMASQUERADED)?;
        let actual = except_map.keys(maps::UNMASQUERADED_MAX)?;
        let except = Delta::from_actual(actual.into_iter().map(|prefix| (prefix, 0)));
        Ok(Self { map: PinnedMap::open(directory, maps::MASQUERADE)?, except_map, except })
    }

    /// An exception is there before what it is one of.
    pub(crate) fn set(&mut self, config: &MasqueradeConfig) -> Result<(), MapError> {
        let prefix = |range: &IpNetwork| Prefix::new(Address::from(range.network()), range.prefix());
        self.except.set_desired(config.except.iter().map(|range| (prefix(range), 0)));
        let new = self.except.upserts();
        self.except_map.insert_all(&new, |prefix, value| self.except.upserted(prefix, *value))?;
        let range = |v4: bool| {
            let found = config.pods.iter().find(|range| range.is_ipv4() == v4);
            found.map_or(Range::NONE, |range| Range::new(Address::from(range.network()), range.prefix()))
        };
        let masquerade = Masquerade::new(Ranges { v4: range(true), v6: range(false) }, config.ports);
        if self.map.get(&INDEX)? != Some(masquerade) {
            self.map.insert(&INDEX, &masquerade)?;
        }
        let gone = self.except.deletes();
        self.except_map.remove_all(&gone, |prefix| self.except.deleted(prefix))
    }
}
