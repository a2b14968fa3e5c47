//! Services and EndpointSlices as the watches tell them, for the datapath and for DNS at once.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard};

use dns::Zone;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use proxy::{NodeView, ObjectName, Proxy};

use crate::network::Network;
use crate::watch::{self, Change};

pub struct Services {
    proxy: Proxy,
    zone: Arc<RwLock<Zone>>,
    services: BTreeSet<ObjectName>,
    slices: BTreeSet<ObjectName>,
    services_listed: bool,
    slices_listed: bool,
    /// The maps have been given everything once; before that an old agent's content stays.
    applied: bool,
    dirty: bool,
}

impl Services {
    pub fn new(node: NodeView, cluster_domain: &str) -> Services {
        Services {
            proxy: Proxy::new(node),
            zone: Arc::new(RwLock::new(Zone::new(cluster_domain))),
            services: BTreeSet::new(),
            slices: BTreeSet::new(),
            services_listed: false,
            slices_listed: false,
            applied: false,
            dirty: false,
        }
    }

    /// The zone that this node is in, by its label.
    pub fn set_zone(&mut self, zone: String) {
        let node = NodeView { zone, ..self.proxy.node().clone() };
        self.proxy.set_node(node);
    }

    /// What DNS answers from.
    pub fn zone(&self) -> Arc<RwLock<Zone>> {
        self.zone.clone()
    }

    /// Whether the datapath has had all Services.
    pub fn applied(&self) -> bool {
        self.applied
    }

    pub fn service(&mut self, change: Change<Service>) {
        match change {
            Change::All(services) => {
                let listed: BTreeSet<ObjectName> =
                    services.iter().map(|service| ObjectName::of(&service.metadata)).collect();
                let mut zone = write(&self.zone);
                for gone in self.services.difference(&listed) {
                    zone.remove_service(&gone.namespace, &gone.name);
                }
                services.iter().for_each(|service| zone.set_service(service));
                drop(zone);
                self.proxy.set_services(services);
                self.services = listed;
                self.services_listed = true;
            }
            Change::Apply(service) => {
                self.services.insert(ObjectName::of(&service.metadata));
                write(&self.zone).set_service(&service);
                self.proxy.insert_service(service);
            }
            Change::Delete(service) => {
                let name = ObjectName::of(&service.metadata);
                write(&self.zone).remove_service(&name.namespace, &name.name);
                self.proxy.remove_service(&name);
                self.services.remove(&name);
            }
        }
    }

    pub fn slice(&mut self, change: Change<EndpointSlice>) {
        match change {
            Change::All(slices) => {
                let listed: BTreeSet<ObjectName> =
                    slices.iter().map(|slice| ObjectName::of(&slice.metadata)).collect();
                let mut zone = write(&self.zone);
                for gone in self.slices.difference(&listed) {
                    zone.remove_slice(&gone.namespace, &gone.name);
                }
                slices.iter().for_each(|slice| zone.set_slice(slice));
                drop(zone);
                self.proxy.set_slices(slices);
                self.slices = listed;
                self.slices_listed = true;
            }
            Change::Apply(slice) => {
                self.slices.insert(ObjectName::of(&slice.metadata));
                write(&self.zone).set_slice(&slice);
                self.proxy.insert_slice(slice);
            }
            Change::Delete(slice) => {
                let name = ObjectName::of(&slice.metadata);
                write(&self.zone).remove_slice(&name.namespace, &name.name);
                self.proxy.remove_slice(&name);
                self.slices.remove(&name);
            }
        }
    }

    /// Makes the maps equal what Services and slices say, once both are complete.
    pub fn apply(&mut self, network: &Network) {
        if !self.services_listed || !self.slices_listed {
            return;
        }
        self.dirty |= !self.proxy.update().is_empty() || !self.applied;
        if !self.dirty {
            return;
        }
        let Some(mut datapath) = network.datapath() else { return };
        match datapath.set_services(self.proxy.desired().clone()) {
            Ok(_) => {
                self.dirty = false;
                self.applied = true;
            }
            Err(error) => tracing::warn!(error = watch::chain(&error), "writing Services to the datapath"),
        }
    }
}

fn write(zone: &RwLock<Zone>) -> RwLockWriteGuard<'_, Zone> {
    zone.write().unwrap_or_else(PoisonError::into_inner)
}
