//! Names of what the maps hold: asked for a piece of a map at a time, from what is kept for the maps anyway.

use std::collections::{HashMap, HashSet};

use ebpf_common::{Address, Backend, BackendId, FrontendKey, ServiceId, maps};

use super::ServiceMaps;

/// The names that were asked for, as far as they are known.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Names {
    /// `namespace/name`, or `namespace/name:port`.
    pub by_id: HashMap<ServiceId, String>,
    /// `namespace/name`; where several Services share an address, the first by name.
    pub by_address: HashMap<Address, String>,
}

impl ServiceMaps {
    /// Goes over all frontends once.
    pub(crate) fn names(&self, ids: &HashSet<ServiceId>, addresses: &HashSet<Address>) -> Names {
        let mut names = Names::default();
        if ids.is_empty() && addresses.is_empty() {
            return names;
        }
        for (key, frontend) in self.frontends.actuals() {
            let of_id = ids.contains(&frontend.service_id);
            let of_address = addresses.contains(&key.address) && *key != key.of_any_address();
            if !of_id && !of_address {
                continue;
            }
            let Some(name) = self.name_by_frontend.get(key) else { continue };
            if of_id {
                names.by_id.insert(frontend.service_id, name.to_string());
            }
            if of_address {
                let service = without_port(name);
                let known = names.by_address.entry(key.address).or_insert_with(|| service.to_owned());
                if service < known.as_str() {
                    service.clone_into(known);
                }
            }
        }
        names
    }

    /// Of these ids those that frontends have, with their names as far as they are known. Goes over all frontends once.
    pub(crate) fn named(&self, ids: &HashSet<ServiceId>) -> HashMap<ServiceId, Option<Box<str>>> {
        let actual = self.frontends.actuals();
        let known = actual.chain(self.frontends.desired()).filter(|(_, f)| ids.contains(&f.service_id));
        known.map(|(key, f)| (f.service_id, self.name_by_frontend.get(key).cloned())).collect()
    }

    /// Changes when what [`Self::named`] says may have changed.
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// Elements of the maps, by the maps' names.
    pub(crate) fn map_entries(&self) -> [(&'static str, usize); 6] {
        [
            (maps::FRONTENDS, self.frontends.actual_count()),
            (maps::SLOTS, self.slots.actual_count()),
            // The last ids stand among them.
            (
                maps::BACKENDS,
                self.backends.actual_count()
                    + usize::from(self.last_service_id != 0 || self.last_backend_id != 0),
            ),
            (maps::ADDRESSES, self.addresses.actual_count()),
            (maps::SOURCE_RANGES, self.source_ranges.actual_count()),
            (maps::TABLES, self.tables.piece_count()),
        ]
    }

    pub(crate) fn ids_of(&self, service: &str) -> HashSet<ServiceId> {
        let named = self.name_by_frontend.iter();
        let keys = named.filter(|(_, name)| &***name == service || without_port(name) == service);
        keys.filter_map(|(key, _)| Some(self.frontends.known(key)?.service_id)).collect()
    }

    pub(crate) fn backend(&self, id: BackendId) -> Option<&Backend> {
        self.backends.actual(&id)
    }

    pub(crate) fn name_at(&self, key: &FrontendKey) -> Option<&str> {
        let name = |key: &FrontendKey| self.name_by_frontend.get(key);
        name(key).or_else(|| name(&key.of_any_address())).map(|name| &**name)
    }
}

fn without_port(name: &str) -> &str {
    name.split_once(':').map_or(name, |(service, _)| service)
}
