//! Services and EndpointSlices, as this node sees them, to what the datapath's maps shall say.
//!
//! [`desired()`] computes everything at once; [`Proxy`] keeps what matters of the objects (`facts`) and computes again only
//! the Services that an event touched. Both go through one function for one Service, so they cannot disagree. Semantics are
//! kube-proxy's: `service` has the addresses, `endpoints` who gets which endpoint.
//!
//! Balanced are cluster IPs, node ports, externalIPs and addresses of load balancers, TCP, UDP and SCTP, both families;
//! ports of the node that lead to a pod (`hostPort`) stand among them.
//! Deliberately absent: IO, clock, and the node's addresses: a node port is desired once, for any of them.

mod advertise;
mod endpoints;
mod facts;
mod health;
mod service;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

pub use advertise::{Advertisement, Announced, EXCLUDE};
use ebpf_common::{
    FrontendKey,
    desired::{self, Services},
};
use facts::Zones;
pub use facts::{BALANCING, WEIGHT, WEIGHTS, invalid_balancing, invalid_source_ranges, invalid_weight};
use hashbrown::HashMap;
pub use health::HealthCheck;
use k8s_openapi::{
    api::{core::v1::Service, discovery::v1::EndpointSlice},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

/// What a decision depends on of the node that it is for.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NodeView {
    /// As in `endpoints[].nodeName`.
    pub name: String,
    /// The node's label `topology.kubernetes.io/zone`; empty without one.
    pub zone: String,
    /// Where this node reaches the API server: an address and port that no other Service may claim, or the node could
    /// not hear of a correction.
    pub api_servers: BTreeSet<FrontendKey>,
}

/// Namespace and name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ObjectName {
    pub namespace: String,
    pub name: String,
}

impl ObjectName {
    pub fn of(metadata: &ObjectMeta) -> Self {
        Self {
            namespace: metadata.namespace.clone().unwrap_or_default(),
            name: metadata.name.clone().unwrap_or_default(),
        }
    }

    /// The Service by which pods reach the API server.
    fn is_api_server(&self) -> bool {
        self.namespace == "default" && self.name == "kubernetes"
    }
}

/// All that the maps shall say, from all objects. The order of the objects does not matter.
pub fn desired<'a>(
    services: impl IntoIterator<Item = &'a Service>,
    slices: impl IntoIterator<Item = &'a EndpointSlice>,
    node: &NodeView,
) -> Services {
    let mut proxy = Proxy::new(node.clone());
    services.into_iter().for_each(|service| proxy.insert_service(service));
    slices.into_iter().for_each(|slice| proxy.insert_slice(slice));
    proxy.update();
    proxy.desired()
}

/// What frontends shall be from now on, some of them perhaps as before: `None` where one shall not be.
pub type Changes = BTreeMap<FrontendKey, Option<desired::Service>>;

/// What is known of the Services of the cluster, kept up to date by events in any order.
#[derive(Debug)]
pub struct Proxy {
    node: NodeView,
    known_by_service: HashMap<Arc<ObjectName>, Known>,
    /// Those of them that are there, and not only slices of them.
    service_count: usize,
    /// By a slice's namespace, which is its Service's too, and its name.
    service_by_slice: HashMap<Box<str>, HashMap<Arc<str>, Arc<ObjectName>>>,
    /// Who claims an address and port, by name. Two Services never should; then the first has it.
    claims_by_frontend: HashMap<FrontendKey, Vec<Arc<ObjectName>>>,
    /// The API server's own frontends as they were, by which it is reached should it have no endpoint.
    api_server: BTreeMap<FrontendKey, desired::Service>,
    /// Ports of the node that lead to its pods, where no Service has them.
    host_ports: Services,
    host_ports_due: BTreeSet<FrontendKey>,
    health_by_service: BTreeMap<ObjectName, HealthCheck>,
    advertisement: Advertisement,
    announced_by_service: BTreeMap<Arc<ObjectName>, advertise::OfService>,
    /// What is announced differs from what was last taken.
    announced_changed: bool,
    zones: Zones,
    due: BTreeSet<Arc<ObjectName>>,
}

/// Of one Service.
#[derive(Debug, Default)]
struct Known {
    service: Option<Box<facts::Service>>,
    /// By name.
    slices: Vec<(Arc<str>, facts::Slice)>,
    /// What it claims, in order.
    frontends: Box<[FrontendKey]>,
}

impl Known {
    fn place(&self, slice: &str) -> Result<usize, usize> {
        self.slices.binary_search_by(|(name, _)| (**name).cmp(slice))
    }

    fn slices(&self) -> impl Iterator<Item = &facts::Slice> + Clone {
        self.slices.iter().map(|(_, slice)| slice)
    }
}

impl Proxy {
    pub fn new(node: NodeView) -> Self {
        Self {
            node,
            known_by_service: HashMap::new(),
            service_count: 0,
            service_by_slice: HashMap::new(),
            claims_by_frontend: HashMap::new(),
            api_server: BTreeMap::new(),
            host_ports: Services::new(),
            host_ports_due: BTreeSet::new(),
            health_by_service: BTreeMap::new(),
            advertisement: Advertisement::default(),
            announced_by_service: BTreeMap::new(),
            announced_changed: true,
            zones: Zones::default(),
            due: BTreeSet::new(),
        }
    }

    /// The node is in another zone.
    pub fn set_zone(&mut self, zone: String) {
        if self.node.zone != zone {
            self.node.zone = zone;
            self.due.extend(self.known_by_service.keys().cloned());
        }
    }

    /// How many Services there are, without those that are not balanced.
    pub fn service_count(&self) -> usize {
        self.service_count
    }

    /// A Service was added or changed.
    pub fn insert_service(&mut self, service: &Service) {
        let name = ObjectName::of(&service.metadata);
        match facts::Service::of(service) {
            None => self.remove_service(&name),
            Some(facts) => {
                let name = self.shared(name);
                let known = self.known_by_service.entry(Arc::clone(&name)).or_default();
                if known.service.as_deref() != Some(&facts) {
                    self.service_count += usize::from(known.service.is_none());
                    known.service = Some(Box::new(facts));
                    self.due.insert(name);
                }
            }
        }
    }

    /// A Service is gone. One that was not there is no error.
    pub fn remove_service(&mut self, name: &ObjectName) {
        if let Some(known) = self.known_by_service.get_mut(name)
            && known.service.take().is_some()
        {
            self.service_count -= 1;
            self.due.insert(self.shared(name.clone()));
        }
    }

    /// An EndpointSlice was added or changed.
    pub fn insert_slice(&mut self, slice: &EndpointSlice) {
        let name = ObjectName::of(&slice.metadata);
        let Some((service, facts)) = facts::Slice::of(slice, &self.node.name, &mut self.zones) else {
            self.remove_slice(&name);
            return;
        };
        let owner = self.service_by_slice.get(&*name.namespace).and_then(|slices| slices.get(&*name.name));
        if owner.is_some_and(|before| **before != service) {
            self.remove_slice(&name);
        }
        let service = self.shared(service);
        let known = self.known_by_service.entry(Arc::clone(&service)).or_default();
        match known.place(&name.name) {
            Ok(place) if known.slices[place].1 == facts => return,
            Ok(place) => known.slices[place].1 = facts,
            Err(place) => {
                let slice: Arc<str> = name.name.into();
                known.slices.reserve_exact(1);
                known.slices.insert(place, (Arc::clone(&slice), facts));
                let siblings = self.service_by_slice.entry(name.namespace.into()).or_default();
                siblings.insert(slice, Arc::clone(&service));
            }
        }
        self.due.insert(service);
    }

    /// An EndpointSlice is gone. One that was not there is no error.
    pub fn remove_slice(&mut self, name: &ObjectName) {
        let Some(siblings) = self.service_by_slice.get_mut(&*name.namespace) else { return };
        let Some(service) = siblings.remove(&*name.name) else { return };
        if siblings.is_empty() {
            self.service_by_slice.remove(&*name.namespace);
        }
        if let Some(known) = self.known_by_service.get_mut(&service)
            && let Ok(place) = known.place(&name.name)
        {
            known.slices.remove(place);
        }
        self.due.insert(service);
    }

    /// The name as it is kept already, so that each is there once.
    fn shared(&self, name: ObjectName) -> Arc<ObjectName> {
        self.known_by_service.get_key_value(&name).map_or_else(|| name.into(), |(known, _)| Arc::clone(known))
    }

    /// After a fresh list: forgets the Services that were not in it.
    pub fn retain_services(&mut self, listed: impl Fn(&ObjectName) -> bool) {
        let gone: Vec<Arc<ObjectName>> =
            self.known_by_service.keys().filter(|name| !listed(name)).cloned().collect();
        gone.iter().for_each(|name| self.remove_service(name));
    }

    /// After a fresh list: forgets the EndpointSlices that were not in it.
    pub fn retain_slices(&mut self, listed: impl Fn(&ObjectName) -> bool) {
        let mut gone = Vec::new();
        for (namespace, slices) in &self.service_by_slice {
            let names = slices
                .keys()
                .map(|name| ObjectName { namespace: namespace.to_string(), name: name.to_string() });
            gone.extend(names.filter(|name| !listed(name)));
        }
        gone.iter().for_each(|name| self.remove_slice(name));
    }

    /// Makes these all ports of the node that lead to its pods. A Service goes before them, and nothing takes the API
    /// server's address.
    pub fn set_host_ports(&mut self, mut host_ports: Services) {
        host_ports.retain(|key, _| !self.node.api_servers.contains(key));
        let all = self.host_ports.iter().chain(&host_ports).map(|(key, _)| *key);
        self.host_ports_due.extend(all.filter(|key| self.host_ports.get(key) != host_ports.get(key)));
        self.host_ports = host_ports;
    }

    /// Computes what the events since the last call touched.
    pub fn update(&mut self) -> Changes {
        self.update_part(usize::MAX)
    }

    /// Whether an update would compute something.
    pub fn is_due(&self) -> bool {
        !self.due.is_empty() || !self.host_ports_due.is_empty()
    }

    /// An update of `services_max` Services at most; the others stay due.
    pub fn update_part(&mut self, services_max: usize) -> Changes {
        let mut touched = std::mem::take(&mut self.host_ports_due);
        let claims = &self.claims_by_frontend;
        touched.retain(|key| !claims.contains_key(key));
        let mut computed: BTreeMap<Arc<ObjectName>, BTreeMap<FrontendKey, desired::Service>> =
            BTreeMap::new();
        while computed.len() < services_max
            && let Some(name) = self.due.pop_first()
        {
            self.set_health(&name);
            self.set_announced(&name);
            let mut frontends = self.frontends_of(&name);
            if name.is_api_server() {
                self.keep_last_endpoints(&mut frontends);
            }
            self.set_claims(&name, &frontends, &mut touched);
            computed.insert(name, frontends);
        }
        let mut changes = Changes::new();
        for key in touched {
            let change = match self.owner(&key) {
                None => self.host_ports.get(&key).cloned(),
                Some(owner) => match computed.get_mut(owner).map(|frontends| frontends.remove(&key)) {
                    Some(frontend) => frontend,
                    // Another Service let go of what this one claims too.
                    None => self.known_frontends(owner).remove(&key),
                },
            };
            changes.insert(key, change);
        }
        changes
    }

    /// All that the maps shall say, once nothing is due.
    pub fn desired(&self) -> Services {
        let mut desired = self.host_ports.clone();
        for name in self.known_by_service.keys() {
            let own = self.known_frontends(name).into_iter().filter(|(key, _)| self.owner(key) == Some(name));
            desired.extend(own);
        }
        desired
    }

    /// The Services whose endpoints on this node somebody may ask for, as of the last update.
    pub fn health_checks(&self) -> &BTreeMap<ObjectName, HealthCheck> {
        &self.health_by_service
    }

    /// Announces Services like this from now on.
    pub fn set_advertisement(&mut self, advertisement: Advertisement) {
        if self.advertisement == advertisement {
            return;
        }
        self.advertisement = advertisement;
        self.announced_changed = true;
        let names: Vec<Arc<ObjectName>> = self.known_by_service.keys().cloned().collect();
        names.iter().for_each(|name| self.set_announced(name));
    }

    /// What this node shall announce, where that has changed since the last call. Of Services that are due, it may be ahead
    /// of the last update.
    pub fn take_announced(&mut self) -> Option<Announced> {
        let all = || self.announced_by_service.values();
        let bound = || all().filter(|of_service| of_service.is_bound);
        std::mem::take(&mut self.announced_changed).then(|| Announced {
            ranges: self.advertisement.ranges(),
            addresses: all().flat_map(|of_service| &of_service.addresses).copied().collect(),
            bound: bound().flat_map(|of_service| &of_service.addresses).copied().collect(),
        })
    }

    fn set_announced(&mut self, name: &Arc<ObjectName>) {
        let known = self.known_by_service.get(name);
        let announced = known.and_then(|known| {
            Some(advertise::of_service(known.service.as_deref()?, known.slices(), &self.advertisement))
        });
        let announced = announced.filter(|announced| !announced.addresses.is_empty());
        if self.announced_by_service.get(name) == announced.as_ref() {
            return;
        }
        self.announced_changed = true;
        match announced {
            Some(announced) => self.announced_by_service.insert(Arc::clone(name), announced),
            None => self.announced_by_service.remove(name),
        };
    }

    fn set_health(&mut self, name: &ObjectName) {
        let known = self.known_by_service.get(name);
        let health = known.and_then(|known| health::of_service(known.service.as_deref()?, known.slices()));
        match health {
            Some(health) => self.health_by_service.insert(name.clone(), health),
            None => self.health_by_service.remove(name),
        };
    }

    /// The frontends of a Service that is not being computed. Where it is due it is computed again, so what is newer here
    /// than the last update does no harm.
    fn known_frontends(&self, name: &ObjectName) -> BTreeMap<FrontendKey, desired::Service> {
        if name.is_api_server() { self.api_server.clone() } else { self.frontends_of(name) }
    }

    fn frontends_of(&self, name: &ObjectName) -> BTreeMap<FrontendKey, desired::Service> {
        let Some(known) = self.known_by_service.get(name) else { return BTreeMap::new() };
        let Some(service) = &known.service else { return BTreeMap::new() };
        let mut frontends = service::frontends(name, service, known.slices(), &self.node);
        if !name.is_api_server() {
            frontends.retain(|key, _| !self.node.api_servers.contains(key));
        }
        frontends
    }

    /// An API server that leads nowhere would be the last that its nodes hear, where they reach it by this Service.
    fn keep_last_endpoints(&mut self, frontends: &mut BTreeMap<FrontendKey, desired::Service>) {
        for (key, frontend) in &mut *frontends {
            if let Some(before) = self.api_server.get(key).filter(|_| frontend.endpoints.is_empty()) {
                frontend.endpoints.clone_from(&before.endpoints);
                frontend.has_endpoints = before.has_endpoints;
            }
        }
        self.api_server.clone_from(frontends);
    }

    /// What a Service claims from now on; what it claimed or claims is touched.
    fn set_claims(
        &mut self,
        name: &Arc<ObjectName>,
        frontends: &BTreeMap<FrontendKey, desired::Service>,
        touched: &mut BTreeSet<FrontendKey>,
    ) {
        let Some(known) = self.known_by_service.get_mut(name) else { return };
        let now: Box<[FrontendKey]> = frontends.keys().copied().collect();
        let before = std::mem::replace(&mut known.frontends, now);
        if known.service.is_none() && known.slices.is_empty() {
            self.known_by_service.remove(name);
        }
        for key in before.iter().filter(|key| !frontends.contains_key(*key)) {
            self.release(key, name);
        }
        for key in frontends.keys().filter(|key| before.binary_search(key).is_err()) {
            self.claim(*key, name);
        }
        touched.extend(before);
        touched.extend(frontends.keys().copied());
    }

    fn claim(&mut self, key: FrontendKey, name: &Arc<ObjectName>) {
        let claims = self.claims_by_frontend.entry(key).or_default();
        if let Err(place) = claims.binary_search(name) {
            // Nearly always the only one.
            if claims.is_empty() {
                claims.reserve_exact(1);
            }
            claims.insert(place, Arc::clone(name));
        }
    }

    fn release(&mut self, key: &FrontendKey, name: &Arc<ObjectName>) {
        let Some(claims) = self.claims_by_frontend.get_mut(key) else { return };
        claims.retain(|claim| claim != name);
        if claims.is_empty() {
            self.claims_by_frontend.remove(key);
        }
    }

    /// Whose a frontend is.
    fn owner(&self, key: &FrontendKey) -> Option<&Arc<ObjectName>> {
        self.claims_by_frontend.get(key)?.first()
    }
}
