//! The service maps: ids that last, and an order of writing that no reader can fall into.
//!
//! Entries point forward: address -> frontend -> slot -> backend. New ones are written from the end (backends, slots,
//! frontends, addresses), old ones deleted from the start, so that what an entry leads to always exists. So it is with the
//! source ranges of a frontend that is for some clients only, and with its tables: they are there before it says so and for as
//! long as it does.
//! Ids are recovered from the maps when the agent starts again, and given out once: element 0 of the backends, which no
//! reader accepts, keeps the highest ones.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io,
    net::IpAddr,
    path::Path,
};

use aya::Pod;
use ebpf_common::{
    Address, Backend, BackendId, Balancing, ConnectedSocket, Frontend, FrontendKey, Origin, Port, Protocol,
    Sender, ServiceId, SlotKey, SocketKey, SocketReverse, SourceRangeKey,
    balancing::PIECES,
    desired::{Clients, Endpoint, Service, Services, SourceRange},
    maps,
    retired::{ConnectedSocket1, Frontend1},
};

use crate::{
    delta::Delta,
    maps::{MapError, PinnedMap},
};

mod names;
mod tables;

pub use names::Names;
use tables::{Member, Tables};

const LAST_IDS: BackendId = BackendId(0);

/// What an apply changed, in map elements.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Applied {
    pub written: usize,
    pub deleted: usize,
    /// Backends of datagram Services went: sockets that were connected to them may be left.
    pub datagram_backends_gone: bool,
    /// Tables that their map has no room for: until there is, the frontends' backends are chosen by chance.
    pub tables_without_room: usize,
}

/// A frontend as the maps hold it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServiceEntry {
    /// Empty where only the maps know it.
    pub name: String,
    /// Unspecified for a node port: every address of the node has it.
    pub address: IpAddr,
    pub port: u16,
    pub protocol: Protocol,
    pub service_id: u32,
    pub affinity_seconds: u32,
    pub balancing: Balancing,
    /// In slot order.
    pub backends: Vec<BackendEntry>,
    /// Address and prefix length of the clients that are served; `None` where all are.
    pub source_ranges: Option<Vec<(IpAddr, u8)>>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BackendEntry {
    pub backend_id: u32,
    pub address: IpAddr,
    pub port: u16,
    /// On this node.
    pub local: bool,
    pub clients: Clients,
    /// Where a table says so, and more than the maps is known.
    pub weight: Option<u16>,
    /// Connections from this node, where they are counted.
    pub open: Option<i64>,
}

#[derive(Debug)]
pub struct ServiceMaps {
    frontends_map: PinnedMap<FrontendKey, Frontend>,
    slots_map: PinnedMap<SlotKey, BackendId>,
    backends_map: PinnedMap<BackendId, Backend>,
    addresses_map: PinnedMap<Address, u32>,
    open_map: PinnedMap<BackendId, i64>,
    ranges_map: PinnedMap<SourceRangeKey, u32>,
    frontends: Delta<FrontendKey, Frontend>,
    slots: Delta<SlotKey, BackendId>,
    backends: Delta<BackendId, Backend>,
    /// How many frontends each address has; node ports, which any address of the node has, are not counted.
    addresses: Delta<Address, u32>,
    source_ranges: Delta<SourceRangeKey, u32>,
    tables: Tables,
    /// Those that are desired.
    ranges_by_service: HashMap<ServiceId, Box<[SourceRange]>>,
    /// For people. Of the maps' contents nothing more is kept than what they hold: at 50,000 Services it would count.
    name_by_frontend: HashMap<FrontendKey, Box<str>>,
    last_service_id: u32,
    last_backend_id: u32,
    /// The last ids as the backends' map has them.
    kept_ids: Option<(u32, u32)>,
    /// Changes with the names that frontends and their ids have.
    generation: u64,
    /// What the next apply says of them; an earlier agent may have gone before it could say so.
    datagram_backends_gone: bool,
}

impl ServiceMaps {
    /// Opens the pinned maps in `directory` and recovers ids and contents from them. Nothing is changed before the
    /// first apply after something was desired.
    pub fn open(directory: &Path) -> Result<Self, MapError> {
        let frontends_map = PinnedMap::open(directory, maps::FRONTENDS)?;
        let slots_map = PinnedMap::open(directory, maps::SLOTS)?;
        let backends_map = PinnedMap::open(directory, maps::BACKENDS)?;
        let addresses_map = PinnedMap::open(directory, maps::ADDRESSES)?;
        let ranges_map: PinnedMap<SourceRangeKey, u32> = PinnedMap::open(directory, maps::SOURCE_RANGES)?;
        let source_ranges = ranges_map.keys(maps::SOURCE_RANGES_MAX)?;
        let frontends: Vec<(FrontendKey, Frontend)> = frontends_map.read_all()?;
        let slots: Vec<(SlotKey, BackendId)> = slots_map.read_all()?;
        let backends: BTreeMap<BackendId, Backend> = backends_map.read_all()?.into_iter().collect();

        let tables = Tables::open(directory)?;
        let last = backends.get(&LAST_IDS);
        let last_service_id = frontends
            .iter()
            .map(|(_, frontend)| frontend.service_id.0)
            .chain(slots.iter().map(|(key, _)| key.service_id.0))
            .chain(backends.values().map(|backend| backend.service_id.0))
            .chain(source_ranges.iter().map(|range| range.source.service_id.0))
            .chain(tables.last_service_id())
            .max()
            .unwrap_or(0);
        let last_backend_id =
            backends.keys().next_back().map_or(0, |id| id.0).max(last.map_or(0, |last| last.id.0));
        Ok(Self {
            frontends: Delta::from_actual(frontends),
            slots: Delta::from_actual(slots),
            backends: Delta::from_actual(backends.into_iter().filter(|(id, _)| *id != LAST_IDS)),
            addresses: Delta::from_actual(addresses_map.read_all()?),
            source_ranges: Delta::from_actual(source_ranges.into_iter().map(|range| (range, 0))),
            tables,
            ranges_by_service: HashMap::new(),
            addresses_map,
            open_map: PinnedMap::open(directory, maps::OPEN)?,
            ranges_map,
            frontends_map,
            slots_map,
            backends_map,
            name_by_frontend: HashMap::new(),
            last_service_id,
            last_backend_id,
            kept_ids: None,
            generation: 0,
            datagram_backends_gone: true,
        })
    }

    /// Goes on with maps of the same contents that have taken the place of these.
    pub(crate) fn reopen(&mut self, directory: &Path) -> Result<(), MapError> {
        self.frontends_map = PinnedMap::open(directory, maps::FRONTENDS)?;
        self.slots_map = PinnedMap::open(directory, maps::SLOTS)?;
        self.backends_map = PinnedMap::open(directory, maps::BACKENDS)?;
        self.addresses_map = PinnedMap::open(directory, maps::ADDRESSES)?;
        Ok(())
    }

    /// How many elements of a map are desired.
    pub(crate) fn desired_count(&self, map: &str) -> usize {
        match map {
            maps::FRONTENDS => self.frontends.desired().len(),
            maps::SLOTS => self.slots.desired().len(),
            maps::BACKENDS => self.backends.desired().len(),
            maps::ADDRESSES => self.addresses.desired().len(),
            _ => 0,
        }
    }

    /// Makes `services` all that is desired.
    pub fn set_desired(&mut self, services: Services) {
        let gone: Vec<FrontendKey> =
            self.frontends.desired().keys().filter(|key| !services.contains_key(*key)).copied().collect();
        for key in gone {
            self.remove(&key);
        }
        for (key, service) in services {
            self.insert(key, &service);
        }
    }

    /// Desires one frontend, new or changed.
    pub fn insert(&mut self, key: FrontendKey, service: &Service) {
        let service_id = self.service_id(&key);
        let known = self.known_backends(service_id);
        // What nobody was ever given need not be there to be kept.
        let is_kept = |endpoint: &Endpoint| known.contains_key(&(endpoint.address, endpoint.port));
        let mut endpoints: Vec<&Endpoint> = service.endpoints.iter().collect();
        endpoints.retain(|endpoint| endpoint.clients != Clients::Present || is_kept(endpoint));
        endpoints.sort_unstable_by_key(|endpoint| (endpoint.clients, endpoint.address, endpoint.port));
        let ids: Vec<BackendId> =
            endpoints.iter().map(|e| self.desire_backend(service_id, e, service.balancing, &known)).collect();
        let before = self.desired_backends(service_id);
        for (slot, id) in (0..).zip(&ids) {
            self.slots.insert_desired(SlotKey { service_id, slot }, *id);
        }
        for slot in ids.len() as u32..before.len() as u32 {
            self.slots.remove_desired(&SlotKey { service_id, slot });
        }
        let staying: HashSet<&BackendId> = ids.iter().collect();
        self.remove_backends(&key, before.iter().filter(|id| !staying.contains(id)));
        let count = |clients| endpoints.iter().filter(|endpoint| endpoint.clients == clients).count() as u32;
        self.desire_ranges(service_id, &service.source_ranges);
        let mut frontend = Frontend::new(
            service_id,
            service.affinity_seconds,
            count(Clients::Beyond) + count(Clients::All),
            count(Clients::Beyond)..ids.len() as u32 - count(Clients::Present),
            service.has_endpoints,
        );
        if !service.source_ranges.is_empty() {
            frontend = frontend.with_source_ranges();
        }
        if self.desire_tables(&frontend, service.balancing, &endpoints, &ids) {
            frontend = frontend.with_tables(service.balancing);
        }
        if service.balancing == Balancing::LeastConnections {
            frontend = frontend.with_counts();
        }
        self.claim_address(&key);
        self.frontends.insert_desired(key, frontend);
        if self.name_by_frontend.get(&key).is_none_or(|name| **name != *service.name) {
            self.name_by_frontend.insert(key, service.name.as_str().into());
            self.generation += 1;
        }
    }

    /// No longer desires a frontend.
    pub fn remove(&mut self, key: &FrontendKey) {
        let Some(service_id) = self.frontends.desired().get(key).map(|frontend| frontend.service_id) else {
            return;
        };
        self.generation += 1;
        self.frontends.remove_desired(key);
        self.release_address(key);
        self.name_by_frontend.remove(key);
        let ids = self.desired_backends(service_id);
        for slot in 0..ids.len() as u32 {
            self.slots.remove_desired(&SlotKey { service_id, slot });
        }
        self.remove_backends(key, ids.iter());
        self.desire_ranges(service_id, &[]);
        self.remove_tables(service_id);
    }

    /// Desires the tables of a frontend, where chance alone does not do: whether it has any.
    fn desire_tables(
        &mut self,
        frontend: &Frontend,
        balancing: Balancing,
        endpoints: &[&Endpoint],
        ids: &[BackendId],
    ) -> bool {
        let mut weights = endpoints.iter().filter(|e| e.clients != Clients::Present).map(|e| e.weight);
        let first = weights.next();
        let are_equal = weights.all(|weight| Some(weight) == first);
        let by_chance = balancing == Balancing::Random && are_equal;
        if first.is_none() || by_chance || balancing == Balancing::LeastConnections {
            self.remove_tables(frontend.service_id);
            return false;
        }
        let is_one = frontend.first_piece(Origin::Beyond) == frontend.first_piece(Origin::Node);
        for (origin, first_piece) in [(Origin::Node, 0), (Origin::Beyond, PIECES)] {
            let is_used = origin == Origin::Node || !is_one;
            let given = endpoints.iter().zip(ids).filter(|(e, _)| is_used && e.clients.include(origin));
            let member = |(e, id): (&&Endpoint, &BackendId)| {
                let Endpoint { address, port, weight, .. } = **e;
                Member { id: *id, address, port, weight }
            };
            self.tables.desire(frontend.service_id, first_piece, given.map(member).collect());
        }
        true
    }

    fn remove_tables(&mut self, service_id: ServiceId) {
        [0, PIECES].into_iter().for_each(|piece| self.tables.desire(service_id, piece, Vec::new()));
    }

    fn desire_ranges(&mut self, service_id: ServiceId, ranges: &[SourceRange]) {
        let before = self.ranges_by_service.remove(&service_id).unwrap_or_default();
        for gone in before.iter().filter(|range| !ranges.contains(range)) {
            self.source_ranges.remove_desired(&range_key(service_id, gone));
        }
        for range in ranges {
            self.source_ranges.insert_desired(range_key(service_id, range), 0);
        }
        if !ranges.is_empty() {
            self.ranges_by_service.insert(service_id, ranges.into());
        }
    }

    fn remove_backends<'a>(&mut self, key: &FrontendKey, ids: impl Iterator<Item = &'a BackendId>) {
        for id in ids {
            self.datagram_backends_gone |= key.protocol == Protocol::UDP;
            self.backends.remove_desired(id);
        }
    }

    /// Makes the maps say what is desired. What fails stays due for the next apply.
    ///
    /// # Errors
    /// Where the kernel refuses, as when a map is full; the maps are consistent then too.
    pub fn apply(&mut self) -> Result<Applied, MapError> {
        let mut applied = Applied::default();
        if self.is_settled() {
            applied.datagram_backends_gone = std::mem::take(&mut self.datagram_backends_gone);
            return Ok(applied);
        }
        match write(&self.ranges_map, &mut self.source_ranges) {
            Ok(written) => applied.written += written,
            // There is no room for old and new ones at once: until the new ones are there, clients may be denied.
            Err(MapError::Full { .. }) => {
                applied.deleted += delete(&self.ranges_map, &mut self.source_ranges)?
            }
            Err(error) => return Err(error),
        }
        let (written, without_room) = self.write_all()?;
        applied.written += written;
        applied.tables_without_room = without_room;
        applied.deleted += delete(&self.addresses_map, &mut self.addresses)?;
        let frontends_deleted = delete(&self.frontends_map, &mut self.frontends)?;
        self.generation += frontends_deleted as u64;
        applied.deleted += frontends_deleted;
        applied.deleted += delete(&self.ranges_map, &mut self.source_ranges)?;
        let tables_deleted = self.tables.delete()?;
        applied.deleted += tables_deleted;
        if tables_deleted > 0 && applied.tables_without_room > 0 {
            let tables = self.tables.write()?;
            applied.written += tables.pieces;
            applied.tables_without_room = tables.without_room;
        }
        applied.deleted += delete(&self.slots_map, &mut self.slots)?;
        applied.deleted += delete(&self.backends_map, &mut self.backends)?;
        applied.datagram_backends_gone = std::mem::take(&mut self.datagram_backends_gone);
        Ok(applied)
    }

    /// Writes what is new or changed, and deletes nothing: for parts of a whole that is still to be desired. Returns how
    /// many elements.
    pub fn write_new(&mut self) -> Result<usize, MapError> {
        self.write_all().map(|(written, _)| written)
    }

    /// The same; tells as well how many tables there is no room for.
    fn write_all(&mut self) -> Result<(usize, usize), MapError> {
        self.keep_last_ids()?;
        let mut written = write(&self.backends_map, &mut self.backends)?;
        let tables = self.tables.write()?;
        written += tables.pieces;
        written += write(&self.slots_map, &mut self.slots)?;
        written += write(&self.ranges_map, &mut self.source_ranges)?;
        written += write(&self.frontends_map, &mut self.frontends)?;
        // Last, and first to be deleted: ports of a known address are refused, and one that is about to be there must
        // not be.
        written += write(&self.addresses_map, &mut self.addresses)?;
        Ok((written, tables.without_room))
    }

    /// Whether the maps say what is desired, as far as this process knows.
    pub fn is_settled(&self) -> bool {
        self.frontends.is_settled()
            && self.slots.is_settled()
            && self.backends.is_settled()
            && self.addresses.is_settled()
            && self.source_ranges.is_settled()
            && self.tables.is_settled()
    }

    /// What the maps hold, by address and port.
    pub fn entries(&self) -> Vec<ServiceEntry> {
        let backend = |slot: &SlotKey| self.backends.actual(self.slots.actual(slot)?).copied();
        let name = |key: &FrontendKey| self.name_by_frontend.get(key).map(|name| name.to_string());
        let frontends = self.frontends.actuals();
        let mut entries: Vec<ServiceEntry> =
            frontends.map(|(key, frontend)| entry(key, frontend, name(key), backend)).collect();
        for entry in &mut entries {
            let id = ServiceId(entry.service_id);
            for backend in &mut entry.backends {
                let backend_id = BackendId(backend.backend_id);
                backend.weight = self.tables.weight(id, backend_id);
                if entry.balancing == Balancing::LeastConnections {
                    backend.open = Some(self.open_map.get(&backend_id).ok().flatten().unwrap_or(0).max(0));
                }
            }
        }
        sorted(with_ranges(entries, self.source_ranges.actuals().map(|(key, _)| *key)))
    }

    /// Reads the pinned maps of a running agent, without names: what the kernel acts on, not what anybody believes.
    pub fn dump(directory: &Path) -> Result<Vec<ServiceEntry>, MapError> {
        let frontends = PinnedMap::<FrontendKey, Frontend>::open(directory, maps::FRONTENDS)?.read_all()?;
        let slots = PinnedMap::<SlotKey, BackendId>::open(directory, maps::SLOTS)?.read_all()?;
        let backends = PinnedMap::<BackendId, Backend>::open(directory, maps::BACKENDS)?.read_all()?;
        let slots: HashMap<SlotKey, BackendId> = slots.into_iter().collect();
        let backends: HashMap<BackendId, Backend> = backends.into_iter().collect();
        let backend = |slot: &SlotKey| backends.get(slots.get(slot)?).copied();
        let ranges = PinnedMap::<SourceRangeKey, u32>::open(directory, maps::SOURCE_RANGES)?;
        let ranges = ranges.keys(maps::SOURCE_RANGES_MAX)?;
        let entries = frontends.iter().map(|(key, frontend)| entry(key, frontend, None, backend)).collect();
        Ok(sorted(with_ranges(entries, ranges.into_iter())))
    }

    /// To be called before the frontend is desired.
    fn claim_address(&mut self, key: &FrontendKey) {
        if *key != key.of_any_address() && !self.frontends.desired().contains_key(key) {
            let count = self.addresses.desired().get(&key.address).copied().unwrap_or(0);
            self.addresses.insert_desired(key.address, count + 1);
        }
    }

    /// To be called for a frontend that was desired.
    fn release_address(&mut self, key: &FrontendKey) {
        match self.addresses.desired().get(&key.address).copied() {
            Some(count @ 2..) => self.addresses.insert_desired(key.address, count - 1),
            Some(_) => self.addresses.remove_desired(&key.address),
            None => {}
        }
    }

    /// The id that the frontend has or had; one that is neither desired nor there any more gets a new one.
    fn service_id(&mut self, key: &FrontendKey) -> ServiceId {
        if let Some(frontend) = self.frontends.known(key) {
            return frontend.service_id;
        }
        self.last_service_id += 1;
        ServiceId(self.last_service_id)
    }

    fn desire_backend(
        &mut self,
        service_id: ServiceId,
        endpoint: &Endpoint,
        balancing: Balancing,
        known: &HashMap<(Address, Port), BackendId>,
    ) -> BackendId {
        let id = known.get(&(endpoint.address, endpoint.port)).copied().unwrap_or_else(|| {
            self.last_backend_id += 1;
            BackendId(self.last_backend_id)
        });
        let mut backend = Backend::new(id, service_id, endpoint.address, endpoint.port);
        if !endpoint.local {
            backend = backend.remote();
        }
        if balancing == Balancing::LeastConnections {
            backend = backend.counted();
        }
        backend = match endpoint.clients {
            Clients::All => backend,
            Clients::Beyond => backend.only_for(Origin::Beyond),
            Clients::Node => backend.only_for(Origin::Node),
            Clients::Present => backend.for_nobody_new(),
        };
        self.backends.insert_desired(id, backend);
        id
    }

    /// The backends that the service is desired to have, in slot order.
    fn desired_backends(&self, service_id: ServiceId) -> Vec<BackendId> {
        (0..).map_while(|slot| self.slots.desired().get(&SlotKey { service_id, slot }).copied()).collect()
    }

    /// Backends of the service that are desired or still there: an endpoint that comes back before it was deleted is the
    /// same one.
    fn known_backends(&self, service_id: ServiceId) -> HashMap<(Address, Port), BackendId> {
        let at = |slot| {
            let key = SlotKey { service_id, slot };
            let (desired, actual) = (self.slots.desired().get(&key), self.slots.actual(&key));
            (desired.is_some() || actual.is_some()).then_some([actual, desired])
        };
        let ids = (0..).map_while(at).flatten().flatten();
        ids.filter_map(|id| {
            let backend = self.backends.known(id)?;
            Some(((backend.address, backend.port), *id))
        })
        .collect()
    }

    fn keep_last_ids(&mut self) -> Result<(), MapError> {
        let ids = (self.last_service_id, self.last_backend_id);
        if self.kept_ids != Some(ids) {
            let (service, backend) = (ServiceId(ids.0), BackendId(ids.1));
            let last = Backend::new(backend, service, Address::UNSPECIFIED, Port::new(0));
            self.backends_map.insert(&LAST_IDS, &last)?;
            self.kept_ids = Some(ids);
        }
        Ok(())
    }
}

fn write<K, V>(map: &PinnedMap<K, V>, delta: &mut Delta<K, V>) -> Result<usize, MapError>
where
    K: aya::Pod + Eq + std::hash::Hash,
    V: aya::Pod + PartialEq,
{
    let upserts = delta.upserts();
    map.insert_all(&upserts, |key, value| delta.upserted(key, *value))?;
    Ok(upserts.len())
}

fn delete<K, V>(map: &PinnedMap<K, V>, delta: &mut Delta<K, V>) -> Result<usize, MapError>
where
    K: aya::Pod + Eq + std::hash::Hash,
    V: aya::Pod + PartialEq,
{
    let deletes = delta.deletes();
    map.remove_all(&deletes, |key| delta.deleted(key))?;
    Ok(deletes.len())
}

fn clients(frontend: &Frontend, slot: u32) -> Clients {
    let serves = |origin| {
        let (first, count) = frontend.slots(origin);
        (first..first + count).contains(&slot)
    };
    match (serves(Origin::Beyond), serves(Origin::Node)) {
        (true, false) => Clients::Beyond,
        (false, true) => Clients::Node,
        (true, true) | (false, false) => Clients::All,
    }
}

fn entry(
    key: &FrontendKey,
    frontend: &Frontend,
    name: Option<String>,
    backend: impl Fn(&SlotKey) -> Option<Backend>,
) -> ServiceEntry {
    let service_id = frontend.service_id;
    let backends = (0..frontend.slot_count()).filter_map(|slot| {
        let backend = backend(&SlotKey { service_id, slot })?;
        Some(BackendEntry {
            backend_id: backend.id.0,
            address: backend.address.to_ip(),
            port: backend.port.get(),
            local: !backend.is_remote(),
            clients: clients(frontend, slot),
            weight: None,
            open: None,
        })
    });
    ServiceEntry {
        name: name.unwrap_or_default(),
        address: key.address.to_ip(),
        port: key.port.get(),
        protocol: key.protocol,
        service_id: service_id.0,
        affinity_seconds: frontend.affinity_seconds,
        balancing: frontend.balancing(),
        backends: backends.collect(),
        source_ranges: frontend.has_source_ranges().then(Vec::new),
    }
}

fn range_key(service_id: ServiceId, range: &SourceRange) -> SourceRangeKey {
    SourceRangeKey::new(service_id, range.address(), range.bits())
}

/// Tells each entry that is for some clients only which these are.
fn with_ranges(
    mut entries: Vec<ServiceEntry>,
    keys: impl Iterator<Item = SourceRangeKey>,
) -> Vec<ServiceEntry> {
    let mut ranges_by_service: HashMap<u32, Vec<(IpAddr, u8)>> = HashMap::new();
    for key in keys {
        ranges_by_service.entry(key.source.service_id.0).or_default().push(key.to_prefix());
    }
    for entry in &mut entries {
        if let Some(ranges) = &mut entry.source_ranges {
            *ranges = ranges_by_service.remove(&entry.service_id).unwrap_or_default();
            ranges.sort_unstable();
        }
    }
    entries
}

fn sorted(mut entries: Vec<ServiceEntry>) -> Vec<ServiceEntry> {
    entries.sort_unstable_by_key(|entry| (entry.address, entry.port, entry.protocol));
    entries
}

/// Fills the map of frontends with what an earlier agent wrote in its layout. To be called before its programs are
/// replaced: ids and backends have kept their layout, so new programs find all that the old ones found.
pub(crate) fn take_over_frontends(directory: &Path) -> Result<(), MapError> {
    let Some(old) = of_old_layout::<FrontendKey, Frontend1>(directory, maps::FRONTENDS_1)? else {
        return Ok(());
    };
    let frontends: Vec<(FrontendKey, Frontend)> =
        old.read_all()?.into_iter().map(|(key, frontend)| (key, frontend.into())).collect();
    PinnedMap::open(directory, maps::FRONTENDS)?.insert_all(&frontends, |_, _| {})
}

/// Notes the sockets that have sent by way of a Service, where programs ran that did not. To be called before those are
/// replaced.
pub(crate) fn take_over_senders(directory: &Path) -> Result<(), MapError> {
    if of_old_layout::<u64, ConnectedSocket1>(directory, maps::SOCKETS_CONNECTED_1)?.is_none() {
        return Ok(());
    }
    let remembered: PinnedMap<SocketKey, SocketReverse> = PinnedMap::open(directory, maps::SOCKET_REVERSE)?;
    let senders: PinnedMap<u32, Sender> = PinnedMap::open(directory, maps::SENDERS)?;
    for (SocketKey { cookie, .. }, _) in remembered.read_all()? {
        let place = Sender::place(cookie);
        let sender = senders.get(&place)?.unwrap_or(Sender(0));
        senders.insert(&place, &sender.with(cookie))?;
    }
    Ok(())
}

/// The same of UDP sockets that are connected. To be called once no program of an earlier layout runs any more: whom these
/// noted in the old map is in none else, and whom the new ones noted meanwhile is right already. One that was closed in
/// between is found to have no socket when its backend goes.
pub(crate) fn take_over_sockets(directory: &Path) -> Result<(), MapError> {
    let Some(old) = of_old_layout::<u64, ConnectedSocket1>(directory, maps::SOCKETS_CONNECTED_1)? else {
        return Ok(());
    };
    let new: PinnedMap<u64, ConnectedSocket> = PinnedMap::open(directory, maps::SOCKETS_CONNECTED)?;
    for (cookie, socket) in old.read_all()? {
        if new.get(&cookie)?.is_none() {
            new.insert(&cookie, &socket.into())?;
        }
    }
    Ok(())
}

fn of_old_layout<K: Pod, V: Pod>(directory: &Path, name: &str) -> Result<Option<PinnedMap<K, V>>, MapError> {
    match PinnedMap::open(directory, name) {
        Err(MapError::Open { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        opened => opened.map(Some),
    }
}
