//! Services and EndpointSlices as the watches tell them, for the datapath and for DNS at once.
//!
//! An event costs what it changes: `proxy` computes the Services that it touched, and the maps get the elements that
//! differ. A list is taken object by object; what it leaves out is forgotten when it ends.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard};
use std::time::Instant;

use dataplane::datapath::Datapath;
use dns::Zone;
use ebpf_common::{Balancing, desired};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::watcher;
use kubelet::{LinkPort, ServiceLink, ServiceLinks};
use proxy::{Advertisement, HealthCheck, NodeView, ObjectName, Proxy};
use tokio::sync::{Notify, watch as signal};

use crate::allocator;
use crate::diff;
use crate::health::Health;
use crate::journal::{self, note};
use crate::metrics::Metrics;
use crate::network::Network;
use crate::watch::{self, Named, Step, Steps};

/// Services that are computed and written at a time.
const PART: usize = 1024;

pub struct Services {
    proxy: Proxy,
    zone: Arc<RwLock<Zone>>,
    services: Steps,
    slices: Steps,
    links: Arc<Links>,
    /// The maps have been given everything once; before that an old agent's content stays.
    applied: bool,
    /// The maps have not taken all that they were told.
    dirty: bool,
    /// Told when backends of datagram Services have gone.
    datagram_backends_gone: Arc<Notify>,
    /// Since when the maps have not been told all.
    changed_at: Option<Instant>,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    checks: signal::Sender<Arc<BTreeMap<ObjectName, HealthCheck>>>,
    node: signal::Sender<NodeView>,
}

impl Services {
    pub fn new(node: NodeView, cluster_domain: &str, health: Arc<Health>, metrics: Arc<Metrics>) -> Services {
        let zone = Arc::new(RwLock::new(Zone::new(cluster_domain)));
        Services {
            proxy: Proxy::new(node.clone()),
            links: Arc::new(Links { zone: zone.clone(), complete: AtomicBool::new(false) }),
            zone,
            services: Steps::default(),
            slices: Steps::default(),
            applied: false,
            dirty: false,
            datagram_backends_gone: Arc::new(Notify::new()),
            changed_at: None,
            health,
            metrics,
            checks: signal::Sender::default(),
            node: signal::Sender::new(node),
        }
    }

    /// The Services whose endpoints here load balancers ask for, as they change.
    pub fn checks(&self) -> signal::Receiver<Arc<BTreeMap<ObjectName, HealthCheck>>> {
        self.checks.subscribe()
    }

    /// Whom to tell when backends of datagram Services have gone.
    pub fn tell_gone(&mut self, due: Arc<Notify>) {
        self.datagram_backends_gone = due;
    }

    /// The zone that this node is in, by its label.
    pub fn set_zone(&mut self, zone: String) {
        self.node.send_modify(|node| node.zone.clone_from(&zone));
        self.proxy.set_zone(zone);
    }

    /// The node as decisions see it.
    pub fn node(&self) -> signal::Receiver<NodeView> {
        self.node.subscribe()
    }

    /// What DNS answers from.
    pub fn zone(&self) -> Arc<RwLock<Zone>> {
        self.zone.clone()
    }

    /// What containers are told of.
    pub fn links(&self) -> Arc<Links> {
        self.links.clone()
    }

    /// Whether the datapath has had all Services.
    pub fn applied(&self) -> bool {
        self.applied
    }

    pub fn service(&mut self, event: watcher::Event<Service>) {
        self.changed_at.get_or_insert_with(Instant::now);
        match self.services.step(event) {
            None => {}
            Some(Step::Apply(service)) => {
                write(&self.zone).set_service(&service);
                warn_of_ranges(&service);
                warn_of_balancing(&service);
                self.proxy.insert_service(&service);
            }
            Some(Step::Delete(service)) => {
                let name = ObjectName::of(&service.metadata);
                write(&self.zone).remove_service(&name.namespace, &name.name);
                self.proxy.remove_service(&name);
            }
            Some(Step::Listed(named)) => {
                write(&self.zone).retain_services(|namespace, name| is_named(&named, namespace, name));
                self.proxy.retain_services(|name| named.contains(name));
                self.links.complete.store(true, Ordering::Release);
            }
        }
    }

    pub fn slice(&mut self, event: watcher::Event<EndpointSlice>) {
        self.changed_at.get_or_insert_with(Instant::now);
        match self.slices.step(event) {
            None => {}
            Some(Step::Apply(slice)) => {
                write(&self.zone).set_slice(&slice);
                warn_of_weight(&slice);
                self.proxy.insert_slice(&slice);
            }
            Some(Step::Delete(slice)) => {
                let name = ObjectName::of(&slice.metadata);
                write(&self.zone).remove_slice(&name.namespace, &name.name);
                self.proxy.remove_slice(&name);
            }
            Some(Step::Listed(named)) => {
                write(&self.zone).retain_slices(|namespace, name| is_named(&named, namespace, name));
                self.proxy.retain_slices(|name| named.contains(name));
            }
        }
    }

    /// The ports of the node that lead to its pods, all of them.
    pub fn set_host_ports(&mut self, host_ports: desired::Services) {
        self.proxy.set_host_ports(host_ports);
    }

    /// Announces Services like this from now on.
    pub fn set_advertisement(&mut self, advertisement: Advertisement) {
        self.proxy.set_advertisement(advertisement);
    }

    /// Tells peers what the maps lead somewhere, and no sooner.
    fn announce(&mut self, network: &Network) {
        if self.applied
            && let Some(announced) = self.proxy.take_announced()
        {
            network.announce_services(announced);
        }
    }

    /// Makes the maps equal what Services and slices say, once both are complete.
    pub fn apply(&mut self, network: &Network) {
        if !self.services.complete() || !self.slices.complete() {
            return;
        }
        let Some(mut datapath) = network.datapath() else { return };
        self.dirty |= self.proxy.is_due() || !self.applied;
        self.change(&mut datapath);
        // An endpoint may move without a change of what is balanced here.
        self.checks.send_if_modified(|checks| {
            let changed = **checks != *self.proxy.health_checks();
            if changed {
                *checks = Arc::new(self.proxy.health_checks().clone());
            }
            changed
        });
        if !self.dirty {
            // What came was nothing to the maps.
            self.changed_at = None;
            drop(datapath);
            self.announce(network);
            return;
        }
        self.health.queued(Instant::now());
        match datapath.apply_services() {
            Ok(applied) => {
                self.dirty = false;
                let changed_at = self.changed_at.take().filter(|_| self.applied);
                self.metrics.synced(self.proxy.service_count(), changed_at.map(|at| at.elapsed()));
                if !std::mem::replace(&mut self.applied, true) {
                    allocator::give_back();
                }
                self.health.updated(Timestamp::now());
                if applied.tables_without_room > 0 {
                    let tables = applied.tables_without_room;
                    tracing::warn!(
                        tables,
                        "no room for tables of backends, which are chosen by chance instead"
                    );
                }
                if applied.datagram_backends_gone {
                    self.datagram_backends_gone.notify_one();
                }
                drop(datapath);
                self.announce(network);
            }
            Err(error) => {
                self.metrics.sync_failed();
                tracing::warn!(error = watch::chain(&error), "writing Services to the datapath");
            }
        }
    }

    /// Tells the datapath what is due. Where that is much, as at a start, it is written in parts.
    fn change(&mut self, datapath: &mut Datapath) {
        while self.proxy.is_due() {
            let changes = self.proxy.update_part(PART);
            note_changes(&changes);
            datapath.change_services(&changes);
            // What fails stays due, and fails again where it is told.
            if self.proxy.is_due() && datapath.write_services().is_err() {
                datapath.change_services(&self.proxy.update());
            }
        }
    }
}

fn note_changes(changes: &proxy::Changes) {
    if changes.len() > journal::SINGLE_MAX {
        note!("service", format!("{} frontends", changes.len()), "changed at once");
        return;
    }
    for (key, change) in changes {
        let frontend = diff::Frontend::of(key);
        match change {
            Some(service) => {
                let serving = service.endpoints.iter().filter(|e| e.clients != desired::Clients::Present);
                note!("service", service.name, format!("{} endpoints at {frontend}", serving.count()));
            }
            None => note!("service", frontend, "gone"),
        }
    }
}

fn warn_of_ranges(service: &Service) {
    for range in proxy::invalid_source_ranges(service) {
        let name = ObjectName::of(&service.metadata);
        let service = format!("{}/{}", name.namespace, name.name);
        tracing::warn!(service, range, "ignoring an invalid range of spec.loadBalancerSourceRanges");
    }
}

fn warn_of_balancing(service: &Service) {
    if let Some(value) = proxy::invalid_balancing(service) {
        let name = ObjectName::of(&service.metadata);
        let known = Balancing::ALL.map(Balancing::name).join(", ");
        tracing::warn!(
            service = format!("{}/{}", name.namespace, name.name),
            value,
            known,
            "ignoring an unknown value of the annotation {}: backends are chosen at random",
            proxy::BALANCING
        );
    }
}

fn warn_of_weight(slice: &EndpointSlice) {
    if let Some(value) = proxy::invalid_weight(slice) {
        let name = ObjectName::of(&slice.metadata);
        tracing::warn!(
            slice = format!("{}/{}", name.namespace, name.name),
            value,
            "ignoring the annotation {}: a weight is a number from {} to {}",
            proxy::WEIGHT,
            proxy::WEIGHTS.start(),
            proxy::WEIGHTS.end()
        );
    }
}

/// The Services of the zone, for the variables of containers.
pub struct Links {
    zone: Arc<RwLock<Zone>>,
    complete: AtomicBool,
}

impl ServiceLinks for Links {
    fn of_namespace(&self, namespace: &str) -> Option<Vec<ServiceLink>> {
        if !self.complete.load(Ordering::Acquire) {
            return None;
        }
        let zone = self.zone.read().unwrap_or_else(PoisonError::into_inner);
        let link = |(name, addresses, ports): (&str, &[IpAddr], &[dns::Port])| {
            let port = |port: &dns::Port| LinkPort {
                name: port.name.to_string(),
                protocol: port.protocol(),
                number: port.number,
            };
            let cluster_ip = *addresses.first()?;
            Some(ServiceLink { name: name.to_owned(), cluster_ip, ports: ports.iter().map(port).collect() })
        };
        Some(zone.services_of(namespace).filter_map(link).collect())
    }
}

fn is_named(named: &Named, namespace: &str, name: &str) -> bool {
    named.contains(&ObjectName { namespace: namespace.to_owned(), name: name.to_owned() })
}

fn write(zone: &RwLock<Zone>) -> RwLockWriteGuard<'_, Zone> {
    zone.write().unwrap_or_else(PoisonError::into_inner)
}
