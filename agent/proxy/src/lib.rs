//! Services and EndpointSlices, as this node sees them, to what the datapath's maps shall say.
//!
//! [`desired()`] computes everything at once; [`Proxy`] keeps the objects and computes again only the Services that an
//! event touched. Both go through one function for one Service, so they cannot disagree. Semantics are kube-proxy's:
//! `service` has the addresses, `endpoints` who gets which endpoint.
//!
//! Balanced are cluster IPs, node ports, externalIPs and addresses of load balancers, TCP and UDP, both families; ports
//! of the node that lead to a pod (`hostPort`) stand among them.
//! Deliberately absent: IO, clock, SCTP, loadBalancerSourceRanges, and the node's addresses: a node port is desired
//! once, for any of them.

mod endpoints;
mod health;
mod service;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ebpf_common::{
    FrontendKey,
    desired::{self, Services},
};
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
    services.into_iter().for_each(|service| proxy.insert_service(service.clone()));
    slices.into_iter().for_each(|slice| proxy.insert_slice(slice.clone()));
    proxy.update();
    proxy.desired()
}

/// What a frontend shall be from now on: `None` where it shall not be.
pub type Changes = BTreeMap<FrontendKey, Option<desired::Service>>;

/// The objects of the cluster and what follows from them, kept up to date by events in any order.
#[derive(Debug)]
pub struct Proxy {
    node: NodeView,
    service_by_name: BTreeMap<ObjectName, Service>,
    slices_by_service: BTreeMap<ObjectName, BTreeMap<ObjectName, EndpointSlice>>,
    service_by_slice: BTreeMap<ObjectName, ObjectName>,
    frontends_by_service: BTreeMap<Arc<ObjectName>, BTreeMap<FrontendKey, desired::Service>>,
    /// Who claims an address and port, by name. Two Services never should; then the first has it.
    claims_by_frontend: BTreeMap<FrontendKey, Vec<Arc<ObjectName>>>,
    /// Ports of the node that lead to its pods, where no Service has them.
    host_ports: Services,
    /// What frontends were at the last update, of those that may have changed since.
    before: Changes,
    health_by_service: BTreeMap<ObjectName, HealthCheck>,
    due: BTreeSet<ObjectName>,
}

impl Proxy {
    pub fn new(node: NodeView) -> Self {
        Self {
            node,
            service_by_name: BTreeMap::new(),
            slices_by_service: BTreeMap::new(),
            service_by_slice: BTreeMap::new(),
            frontends_by_service: BTreeMap::new(),
            claims_by_frontend: BTreeMap::new(),
            host_ports: Services::new(),
            before: Changes::new(),
            health_by_service: BTreeMap::new(),
            due: BTreeSet::new(),
        }
    }

    /// What is known of this node has changed.
    pub fn set_node(&mut self, node: NodeView) {
        if self.node != node {
            self.node = node;
            self.due.extend(self.service_by_name.keys().cloned());
        }
    }

    pub fn node(&self) -> &NodeView {
        &self.node
    }

    /// A Service was added or changed.
    pub fn insert_service(&mut self, service: Service) {
        let name = ObjectName::of(&service.metadata);
        if !service::is_ours(&service) {
            self.remove_service(&name);
            return;
        }
        if self.service_by_name.get(&name) != Some(&service) {
            self.service_by_name.insert(name.clone(), service);
            self.due.insert(name);
        }
    }

    /// A Service is gone. One that was not there is no error.
    pub fn remove_service(&mut self, name: &ObjectName) {
        if self.service_by_name.remove(name).is_some() {
            self.due.insert(name.clone());
        }
    }

    /// An EndpointSlice was added or changed.
    pub fn insert_slice(&mut self, slice: EndpointSlice) {
        let name = ObjectName::of(&slice.metadata);
        let Some(service) = service::service_of_slice(&slice) else {
            self.remove_slice(&name);
            return;
        };
        if self.service_by_slice.get(&name) != Some(&service) {
            self.remove_slice(&name);
        }
        let slices = self.slices_by_service.entry(service.clone()).or_default();
        if slices.get(&name) != Some(&slice) {
            slices.insert(name.clone(), slice);
            self.service_by_slice.insert(name, service.clone());
            self.due.insert(service);
        }
    }

    /// An EndpointSlice is gone. One that was not there is no error.
    pub fn remove_slice(&mut self, name: &ObjectName) {
        let Some(service) = self.service_by_slice.remove(name) else { return };
        if let Some(slices) = self.slices_by_service.get_mut(&service) {
            slices.remove(name);
            if slices.is_empty() {
                self.slices_by_service.remove(&service);
            }
        }
        self.due.insert(service);
    }

    /// After a fresh list: forgets the Services that were not in it.
    pub fn retain_services(&mut self, listed: impl Fn(&ObjectName) -> bool) {
        let gone: Vec<ObjectName> =
            self.service_by_name.keys().filter(|name| !listed(name)).cloned().collect();
        gone.iter().for_each(|name| self.remove_service(name));
    }

    /// After a fresh list: forgets the EndpointSlices that were not in it.
    pub fn retain_slices(&mut self, listed: impl Fn(&ObjectName) -> bool) {
        let gone: Vec<ObjectName> =
            self.service_by_slice.keys().filter(|name| !listed(name)).cloned().collect();
        gone.iter().for_each(|name| self.remove_slice(name));
    }

    /// Makes these all ports of the node that lead to its pods. A Service goes before them, and nothing takes the API
    /// server's address.
    pub fn set_host_ports(&mut self, mut host_ports: Services) {
        host_ports.retain(|key, _| !self.node.api_servers.contains(key));
        let differing = self.host_ports.iter().chain(&host_ports).map(|(key, _)| *key);
        let differing: BTreeSet<FrontendKey> =
            differing.filter(|key| self.host_ports.get(key) != host_ports.get(key)).collect();
        for key in differing {
            let before = self.owned(&key).cloned();
            self.before.entry(key).or_insert(before);
        }
        self.host_ports = host_ports;
    }

    /// Computes what the events since the last call touched: the frontends that changed, appeared or went.
    pub fn update(&mut self) -> Changes {
        let mut before = std::mem::take(&mut self.before);
        for name in std::mem::take(&mut self.due) {
            self.health_by_service.remove(&name);
            if let Some(health) = self.health_of(&name) {
                self.health_by_service.insert(name.clone(), health);
            }
            let mut frontends = self.frontends_of(&name);
            if name.is_api_server() {
                self.keep_last_endpoints(&name, &mut frontends);
            } else {
                frontends.retain(|key, _| !self.node.api_servers.contains(key));
            }
            for key in self.differing(&name, &frontends) {
                before.entry(key).or_insert_with(|| self.owned(&key).cloned());
            }
            self.replace(name, frontends);
        }
        let mut changes: Changes = before.keys().map(|key| (*key, self.owned(key).cloned())).collect();
        changes.retain(|key, now| before[key] != *now);
        changes
    }

    /// The frontends of a Service that are not what they were.
    fn differing(
        &self,
        name: &ObjectName,
        frontends: &BTreeMap<FrontendKey, desired::Service>,
    ) -> Vec<FrontendKey> {
        let before = self.frontends_by_service.get(name);
        let was = |key: &FrontendKey| before.and_then(|before| before.get(key));
        let new = frontends.iter().filter(|(key, frontend)| was(key) != Some(*frontend)).map(|(key, _)| *key);
        let gone = before.into_iter().flat_map(BTreeMap::keys).filter(|key| !frontends.contains_key(*key));
        new.chain(gone.copied()).collect()
    }

    fn replace(&mut self, name: ObjectName, frontends: BTreeMap<FrontendKey, desired::Service>) {
        let known = self.frontends_by_service.remove_entry(&name);
        let (name, before) = known.unwrap_or_else(|| (name.into(), BTreeMap::new()));
        for key in before.keys().filter(|key| !frontends.contains_key(*key)) {
            self.release(key, &name);
        }
        for key in frontends.keys().filter(|key| !before.contains_key(*key)) {
            self.claim(*key, &name);
        }
        if !frontends.is_empty() {
            self.frontends_by_service.insert(name, frontends);
        }
    }

    /// All that the maps shall say, as of the last update.
    pub fn desired(&self) -> Services {
        let keys = self.claims_by_frontend.keys().chain(self.host_ports.keys());
        keys.filter_map(|key| Some((*key, self.owned(key)?.clone()))).collect()
    }

    /// The Services whose endpoints on this node somebody may ask for, as of the last update.
    pub fn health_checks(&self) -> &BTreeMap<ObjectName, HealthCheck> {
        &self.health_by_service
    }

    fn health_of(&self, name: &ObjectName) -> Option<HealthCheck> {
        let slices = self.slices_by_service.get(name);
        let slices = slices.into_iter().flat_map(BTreeMap::values);
        health::of_service(self.service_by_name.get(name)?, slices, &self.node)
    }

    fn frontends_of(&self, name: &ObjectName) -> BTreeMap<FrontendKey, desired::Service> {
        let Some(service) = self.service_by_name.get(name) else { return BTreeMap::new() };
        let slices = self.slices_by_service.get(name);
        service::frontends(name, service, slices.into_iter().flat_map(BTreeMap::values), &self.node)
    }

    /// An API server that leads nowhere would be the last that its nodes hear, where they reach it by this Service.
    fn keep_last_endpoints(
        &self,
        name: &ObjectName,
        frontends: &mut BTreeMap<FrontendKey, desired::Service>,
    ) {
        let Some(before) = self.frontends_by_service.get(name) else { return };
        for (key, frontend) in frontends {
            if let Some(before) = before.get(key).filter(|_| frontend.endpoints.is_empty()) {
                frontend.endpoints.clone_from(&before.endpoints);
                frontend.has_endpoints = before.has_endpoints;
            }
        }
    }

    fn claim(&mut self, key: FrontendKey, name: &Arc<ObjectName>) {
        let claims = self.claims_by_frontend.entry(key).or_default();
        if let Err(place) = claims.binary_search(name) {
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

    /// What the first claim makes of a frontend.
    fn owned(&self, key: &FrontendKey) -> Option<&desired::Service> {
        match self.claims_by_frontend.get(key).and_then(|claims| claims.first()) {
            Some(owner) => self.frontends_by_service.get(owner)?.get(key),
            None => self.host_ports.get(key),
        }
    }
}
