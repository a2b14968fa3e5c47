//! What is policed on the node, in the maps that the programs judge by.
//!
//! Rules are there before the peers that they name, and both before a pod is isolated by them; what is gone goes in the
//! opposite order. So a connection that is judged meanwhile is judged by the old rules, the new ones, or both together, and
//! never by none. Then the generation is raised, and all connections are judged anew at their next packet. Those that a pod
//! has when a policy selects it for the first time are read from its sockets ([`present`]).

mod present;

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
};

use ebpf_common::{
    Address, GroupId, Policed, Policing, Prefix, RuleKey,
    desired::{Policies, PolicyChanges},
    maps,
};

use crate::{
    delta::Delta,
    maps::{MapError, PinnedMap},
};

/// The only element of its map.
const INDEX: u32 = 0;

#[derive(Debug)]
pub(crate) struct PolicyMaps {
    directory: PathBuf,
    policing: PinnedMap<u32, Policing>,
    policed_map: PinnedMap<u32, Policed>,
    peers_map: PinnedMap<Prefix, GroupId>,
    rules_map: PinnedMap<RuleKey, u32>,
    policed: Delta<u32, Policed>,
    peers: Delta<Prefix, GroupId>,
    rules: Delta<RuleKey, u32>,
    /// By the pods' addresses, as said.
    pods: HashMap<Address, Policed>,
    /// The links of this node's pods.
    links: HashMap<Address, u32>,
    generation: u32,
    /// Nothing of an earlier agent holds any more.
    is_said: bool,
}

impl PolicyMaps {
    /// What an earlier agent wrote holds until [`Self::set`].
    pub(crate) fn open(directory: &Path) -> Result<Self, MapError> {
        let policing: PinnedMap<u32, Policing> = PinnedMap::open(directory, maps::POLICING)?;
        let policed_map: PinnedMap<u32, Policed> = PinnedMap::open(directory, maps::POLICED)?;
        let peers_map: PinnedMap<Prefix, GroupId> = PinnedMap::open(directory, maps::PEERS)?;
        let rules_map: PinnedMap<RuleKey, u32> = PinnedMap::open(directory, maps::RULES)?;
        let mut peers = Vec::new();
        for prefix in peers_map.keys(maps::PEERS_MAX)? {
            peers.extend(peers_map.get(&prefix)?.map(|group| (prefix, group)));
        }
        let rules = rules_map.keys(maps::RULES_MAX)?.into_iter().map(|key| (key, 0));
        Ok(Self {
            directory: directory.to_owned(),
            generation: policing.get(&INDEX)?.unwrap_or_default().generation,
            policed: Delta::from_actual(policed_map.read_all()?),
            peers: Delta::from_actual(peers),
            rules: Delta::from_actual(rules),
            pods: HashMap::new(),
            links: HashMap::new(),
            is_said: false,
            policing,
            policed_map,
            peers_map,
            rules_map,
        })
    }

    /// Makes `policies` all that is policed.
    pub(crate) fn set(&mut self, policies: &Policies) -> Result<(), MapError> {
        self.peers.set_desired(policies.peers.iter().map(|(prefix, group)| (*prefix, *group)));
        self.rules.set_desired(policies.rules.iter().map(|key| (*key, 0)));
        self.pods = policies.pods.iter().map(|(address, policed)| (*address, *policed)).collect();
        self.is_said = true;
        self.apply_with_present()
    }

    pub(crate) fn change(&mut self, changes: &PolicyChanges) -> Result<(), MapError> {
        for (prefix, group) in &changes.peers {
            match group {
                Some(group) => self.peers.insert_desired(*prefix, *group),
                None => self.peers.remove_desired(prefix),
            }
        }
        for (key, is_allowed) in &changes.rules {
            if *is_allowed {
                self.rules.insert_desired(*key, 0);
            } else {
                self.rules.remove_desired(key);
            }
        }
        for (address, policed) in &changes.pods {
            match policed {
                Some(policed) => self.pods.insert(*address, *policed),
                None => self.pods.remove(address),
            };
        }
        self.apply_with_present()
    }

    /// Whether packets for the pod with this address are judged.
    pub(crate) fn is_policed(&self, address: &Address) -> bool {
        self.pods.contains_key(address)
    }

    /// Makes these all the links. Until something is said of policies, an earlier agent's word holds for them.
    pub(crate) fn set_links(
        &mut self,
        links: impl IntoIterator<Item = (Address, u32)>,
    ) -> Result<(), MapError> {
        self.links = links.into_iter().collect();
        if self.is_said { self.apply_with_present() } else { Ok(()) }
    }

    /// To be called before the pod is reached. A link that the kernel reuses has nothing of the one before.
    pub(crate) fn add_link(&mut self, addresses: &[Address], interface_index: u32) -> Result<(), MapError> {
        self.links.extend(addresses.iter().map(|address| (*address, interface_index)));
        if !self.is_said {
            // A link of before had this index, if any.
            return self.policed_map.remove(&interface_index);
        }
        self.apply()
    }

    /// To be called once the pod is no longer reached.
    pub(crate) fn remove_link(&mut self, addresses: &[Address]) -> Result<(), MapError> {
        for address in addresses {
            self.links.remove(address);
        }
        if self.is_said { self.apply() } else { Ok(()) }
    }

    /// Whether anything was said of policies since an earlier agent.
    pub(crate) const fn is_said(&self) -> bool {
        self.is_said
    }

    /// The elements of each map.
    pub(crate) fn map_entries(&self) -> [(&'static str, usize); 3] {
        [
            (maps::POLICED, self.policed.actual_count()),
            (maps::PEERS, self.peers.actual_count()),
            (maps::RULES, self.rules.actual_count()),
        ]
    }

    /// Pods that nothing isolated so far, and that may have connections. They are looked for once more behind the change: what
    /// began in between is there then.
    fn apply_with_present(&mut self) -> Result<(), MapError> {
        let is_new = |address: &&Address| {
            self.links.get(*address).is_some_and(|link| self.policed.actual(link).is_none())
        };
        let pods: HashSet<Address> = self.pods.keys().filter(is_new).copied().collect();
        if pods.is_empty() {
            return self.apply();
        }
        present::note(&self.directory, &pods)?;
        self.apply()?;
        present::note(&self.directory, &pods)
    }

    /// A pod's addresses have one link, and are isolated alike.
    fn policed_links(&self) -> HashMap<u32, Policed> {
        let link = |(address, policed): (&Address, &Policed)| Some((*self.links.get(address)?, *policed));
        self.pods.iter().filter_map(link).collect()
    }

    fn apply(&mut self) -> Result<(), MapError> {
        self.policed.set_desired(self.policed_links());
        let rules = self.rules.upserts();
        self.rules_map.insert_all(&rules, |key, value| self.rules.upserted(key, *value))?;
        let peers = self.peers.upserts();
        self.peers_map.insert_all(&peers, |prefix, group| self.peers.upserted(prefix, *group))?;
        let policed = self.policed.upserts();
        self.policed_map.insert_all(&policed, |index, value| self.policed.upserted(index, *value))?;
        let links_gone = self.policed.deletes();
        self.policed_map.remove_all(&links_gone, |index| self.policed.deleted(index))?;
        let peers_gone = self.peers.deletes();
        self.peers_map.remove_all(&peers_gone, |prefix| self.peers.deleted(prefix))?;
        let rules_gone = self.rules.deletes();
        self.rules_map.remove_all(&rules_gone, |key| self.rules.deleted(key))?;
        let lengths =
            [rules.len(), peers.len(), policed.len(), links_gone.len(), peers_gone.len(), rules_gone.len()];
        if lengths != [0; 6] {
            // 0 is that of connections that were never judged.
            self.generation = self.generation.wrapping_add(1).max(1);
            let links = self.policed.actual_count() as u32;
            self.policing.insert(&INDEX, &Policing { generation: self.generation, links })?;
        }
        Ok(())
    }
}
