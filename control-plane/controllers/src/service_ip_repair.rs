//! Service IP repair: every cluster IP has an IPAddress that names its Service, and every IPAddress of the allocator is
//! the cluster IP of a Service. What cannot be mended (two Services with one address or node port, an address outside of all
//! ranges) is said in an Event.
//!
//! The allocator makes the IPAddress before the Service, so one without the other is let be for a while.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::networking::v1::{IPAddress, IPAddressSpec, ParentReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::{Api, ResourceExt};

use crate::cluster::Cluster;
use crate::events::Severity;
use crate::queue::Queue;
use crate::reconcile::{Next, Reconcile, Result, elapsed, found, now};
use crate::service_cidr::{ALLOCATOR, MANAGED_BY, covers, networks};
use crate::services;
use crate::store::Key;

const FAMILY: &str = "ipaddress.kubernetes.io/ip-family";
const COMPONENT: &str = "ipallocator-repair-controller";
/// How long an IPAddress may wait for its Service: the longest time of a request.
const ORPHAN_GRACE_PERIOD: Duration = Duration::from_secs(60);
/// How long an IPAddress newer than its Service may wait for the end of a write that fails.
const WRITE_GRACE_PERIOD: Duration = Duration::from_secs(5);

/// Looks after the addresses of Services.
pub struct Services {
    cluster: Arc<Cluster>,
}

/// Looks after the IPAddresses of the allocator.
pub struct Addresses {
    cluster: Arc<Cluster>,
}

/// Makes the controller of Services and the queue that feeds it.
pub fn of_services(cluster: &Arc<Cluster>) -> (Arc<Services>, Arc<Queue>) {
    let queue = Arc::new(Queue::default());
    let dirty = queue.clone();
    cluster.services.subscribe(move |_, new| {
        if let Some(service) = new {
            dirty.add(Key::of(&**service));
        }
    });
    let dirty = queue.clone();
    cluster.ip_addresses.subscribe(move |old, new| {
        for parent in [old, new].into_iter().flatten().filter_map(|address| parent(address)) {
            dirty.add(parent);
        }
    });
    let (dirty, services) = (queue.clone(), cluster.services.clone());
    cluster.service_cidrs.subscribe(move |old, new| {
        if old.is_none() || new.is_none() {
            services.all().iter().for_each(|service| dirty.add(Key::of(&**service)));
        }
    });
    (Arc::new(Services { cluster: cluster.clone() }), queue)
}

/// Makes the controller of IPAddresses and the queue that feeds it.
pub fn of_addresses(cluster: &Arc<Cluster>) -> (Arc<Addresses>, Arc<Queue>) {
    let queue = Arc::new(Queue::default());
    let dirty = queue.clone();
    cluster.ip_addresses.subscribe(move |_, new| {
        if let Some(address) = new.filter(|address| is_ours(address)) {
            dirty.add(Key::of(&**address));
        }
    });
    let dirty = queue.clone();
    cluster.services.subscribe(move |old, _| {
        for ip in old.iter().flat_map(|service| cluster_ips(service)) {
            dirty.add(Key::cluster(ip.to_string()));
        }
    });
    (Arc::new(Addresses { cluster: cluster.clone() }), queue)
}

fn is_ours(address: &IPAddress) -> bool {
    address.labels().get(MANAGED_BY).is_some_and(|by| by == ALLOCATOR)
}

/// The Service that an IPAddress names.
fn parent(address: &IPAddress) -> Option<Key> {
    let parent = address.spec.parent_ref.clone();
    let is_service = parent.group.as_deref().unwrap_or_default().is_empty() && parent.resource == "services";
    is_service.then(|| Key::new(parent.namespace.unwrap_or_default(), parent.name))
}

fn cluster_ips(service: &Service) -> Vec<IpAddr> {
    let spec = service.spec.as_ref();
    if spec.and_then(|spec| spec.type_.as_deref()) == Some("ExternalName") || services::is_headless(service) {
        return Vec::new();
    }
    let ips = spec.and_then(|spec| spec.cluster_ips.as_ref());
    ips.into_iter().flatten().filter_map(|ip| ip.parse().ok()).collect()
}

fn family(ip: IpAddr) -> &'static str {
    if ip.is_ipv4() { "IPv4" } else { "IPv6" }
}

/// What is wrong with the IPAddress of a cluster IP.
#[derive(Debug, PartialEq, Eq)]
enum Fault {
    /// There is none.
    Missing,
    /// It names something else, which does not have the address.
    WrongReference,
    /// It names another Service, which has the address too.
    Duplicate,
    /// It lacks the allocator's labels.
    Labels,
}

fn fault(
    ip: IpAddr,
    service: &Key,
    address: Option<&IPAddress>,
    holds: impl Fn(&Key) -> Option<bool>,
) -> Option<Fault> {
    let Some(address) = address else { return Some(Fault::Missing) };
    match parent(address) {
        None => return Some(Fault::WrongReference),
        Some(other) if other != *service => {
            return match holds(&other) {
                None => Some(Fault::WrongReference),
                Some(true) => Some(Fault::Duplicate),
                // The IPAddress's own look decides.
                Some(false) => None,
            };
        }
        Some(_) => {}
    }
    let labelled = is_ours(address) && address.labels().get(FAMILY).is_some_and(|it| it == family(ip));
    (!labelled).then_some(Fault::Labels)
}

impl Services {
    fn warn(&self, service: &Service, reason: &'static str, message: String) {
        self.cluster.events.report(COMPONENT, service, Severity::Warning, reason, message);
    }

    async fn repair(&self, service: &Service, key: &Key, ip: IpAddr) -> Result<()> {
        let ranges = self.cluster.service_cidrs.all();
        let family = family(ip);
        if !ranges.iter().any(|range| networks(range).iter().any(|network| covers(network, ip))) {
            let message = format!(
                "Cluster IP [{family}]: {ip} is not within any configured Service CIDR; please recreate service"
            );
            self.warn(service, "ClusterIPOutOfRange", message);
            return Ok(());
        }
        let api = Api::<IPAddress>::all(self.cluster.client.clone());
        // Both are read live: one store may lag behind the other, and a needless repair would be reported.
        let address = api.get_opt(&ip.to_string()).await?;
        let holds =
            |other: &Key| self.cluster.services.get(other).map(|other| cluster_ips(&other).contains(&ip));
        let Some(fault) = fault(ip, key, address.as_ref(), holds) else { return Ok(()) };
        let live = Api::<Service>::namespaced(self.cluster.client.clone(), &key.namespace);
        let live = live.get_opt(&key.name).await?.filter(|live| live.uid() == service.uid());
        if !live.is_some_and(|live| cluster_ips(&live).contains(&ip)) {
            return Ok(());
        }
        match fault {
            Fault::Missing => {
                let message = format!("Cluster IP [{family}]: {ip} is not allocated; repairing");
                self.warn(service, "ClusterIPNotAllocated", message);
            }
            Fault::WrongReference => {
                let message = format!(
                    "the ClusterIP [{family}]: {ip} for Service {key} has a wrong reference; repairing"
                );
                self.warn(service, "ClusterIPNotAllocated", message);
            }
            Fault::Duplicate => {
                let message = format!(
                    "Cluster IP [{family}]:{ip} was assigned to multiple services; please recreate service"
                );
                self.warn(service, "ClusterIPAlreadyAllocated", message);
                return Ok(());
            }
            Fault::Labels => {}
        }
        if let Some(address) = address {
            delete(&api, &address).await?;
        }
        api.create(&PostParams::default(), &make(ip, key)).await?;
        Ok(())
    }

    /// Node ports that two Services have can only be said.
    fn report_node_ports(&self, service: &Service, key: &Key) {
        let mine = node_ports(service);
        if mine.is_empty() {
            return;
        }
        for other in self.cluster.services.all() {
            // Of two Services the later one is told.
            if Key::of(&*other) == *key || created(&other) > created(service) {
                continue;
            }
            for port in node_ports(&other).into_iter().filter(|port| mine.contains(port)) {
                let message =
                    format!("Port {} was assigned to multiple services; please recreate service", port.1);
                self.warn(service, "PortAlreadyAllocated", message);
            }
        }
    }
}

fn created(service: &Service) -> Option<&Time> {
    service.metadata.creation_timestamp.as_ref()
}

fn node_ports(service: &Service) -> Vec<(String, i32)> {
    let ports = service.spec.as_ref().and_then(|spec| spec.ports.as_ref());
    let ports = ports.into_iter().flatten();
    let held = ports.filter_map(|port| {
        Some((port.protocol.clone().unwrap_or_default(), port.node_port.filter(|port| *port != 0)?))
    });
    held.collect()
}

fn make(ip: IpAddr, service: &Key) -> IPAddress {
    let labels = [(FAMILY, family(ip)), (MANAGED_BY, ALLOCATOR)];
    IPAddress {
        metadata: ObjectMeta {
            name: Some(ip.to_string()),
            labels: Some(labels.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()),
            ..ObjectMeta::default()
        },
        spec: IPAddressSpec {
            parent_ref: ParentReference {
                group: Some(String::new()),
                resource: "services".to_owned(),
                namespace: Some(service.namespace.clone()),
                name: service.name.clone(),
            },
        },
    }
}

async fn delete(api: &Api<IPAddress>, address: &IPAddress) -> Result<()> {
    let preconditions = Preconditions { uid: address.uid(), resource_version: address.resource_version() };
    let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
    found(api.delete(&address.name_any(), &params).await)?;
    Ok(())
}

impl Reconcile for Services {
    const NAME: &'static str = "service-ip-repair";

    async fn reconcile(&self, key: &Key) -> Result {
        let Some(service) = self.cluster.services.get(key) else { return Ok(Next::Change) };
        if service.metadata.deletion_timestamp.is_some() {
            return Ok(Next::Change);
        }
        for ip in cluster_ips(&service) {
            if let Some(address) = self.cluster.ip_addresses.get(&Key::cluster(ip.to_string()))
                && fault(ip, key, Some(&address), |_| Some(false)).is_none()
                && parent(&address).as_ref() == Some(key)
            {
                continue;
            }
            self.repair(&service, key, ip).await?;
        }
        self.report_node_ports(&service, key);
        Ok(Next::Change)
    }
}

/// What to do with an IPAddress of the allocator.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Keep,
    LookAgain(Duration),
    Delete(&'static str, String),
}

fn judge(address: &IPAddress, service: impl Fn(&Key) -> Option<Arc<Service>>, now: &Time) -> Verdict {
    let name = address.name_any();
    let Some(key) = parent(address) else {
        let parent = &address.spec.parent_ref;
        let message = format!(
            "IPAddress {name} appears to have been modified, not referencing a Service {parent:?}: cleaning up"
        );
        return Verdict::Delete("IPAddressNotAllocated", message);
    };
    let age = address.metadata.creation_timestamp.as_ref().map(|at| elapsed(at.0, now.0)).unwrap_or_default();
    let left = |grace: Duration| Some(grace.saturating_sub(age)).filter(|left| !left.is_zero());
    let Some(service) = service(&key) else {
        return match left(ORPHAN_GRACE_PERIOD) {
            Some(left) => Verdict::LookAgain(left),
            None => {
                let message =
                    format!("IPAddress: {name} for Service {key} appears to have leaked: cleaning up");
                Verdict::Delete("IPAddressNotAllocated", message)
            }
        };
    };
    if cluster_ips(&service).iter().any(|ip| ip.to_string() == name) {
        return Verdict::Keep;
    }
    let external = service.spec.as_ref().and_then(|spec| spec.type_.as_deref()) == Some("ExternalName");
    let is_newer = address.metadata.creation_timestamp.as_ref() > created(&service);
    let grace = match (external, is_newer) {
        (true, _) => left(ORPHAN_GRACE_PERIOD),
        (false, true) => left(WRITE_GRACE_PERIOD),
        (false, false) => None,
    };
    match grace {
        Some(left) => Verdict::LookAgain(left),
        None => {
            let message = format!("IPAddress: {name} for Service {key} has a wrong reference; cleaning up");
            Verdict::Delete("IPAddressWrongReference", message)
        }
    }
}

impl Reconcile for Addresses {
    const NAME: &'static str = "ip-address-repair";

    async fn reconcile(&self, key: &Key) -> Result {
        let Some(address) = self.cluster.ip_addresses.get(key).filter(|address| is_ours(address)) else {
            return Ok(Next::Change);
        };
        match judge(&address, |key| self.cluster.services.get(key), &now()) {
            Verdict::Keep => Ok(Next::Change),
            Verdict::LookAgain(after) => Ok(Next::After(after)),
            Verdict::Delete(reason, message) => {
                self.cluster.events.report(COMPONENT, &*address, Severity::Warning, reason, message);
                delete(&Api::all(self.cluster.client.clone()), &address).await?;
                Ok(Next::Change)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ServiceSpec;

    fn service(ip: &str, created: &str) -> Arc<Service> {
        let mut service = Service::default();
        service.metadata.creation_timestamp = Some(Time(created.parse().expect("a valid time")));
        service.spec = Some(ServiceSpec { cluster_ips: Some(vec![ip.into()]), ..ServiceSpec::default() });
        Arc::new(service)
    }

    fn address(created: &str) -> IPAddress {
        let mut address = make("10.96.0.7".parse().expect("an address"), &Key::new("ns", "web"));
        address.metadata.creation_timestamp = Some(Time(created.parse().expect("a valid time")));
        address
    }

    #[test]
    fn an_address_without_its_service_is_leaked_after_a_minute_only() {
        let at = |second: u32| Time(format!("2026-01-01T00:00:{second:02}Z").parse().expect("a valid time"));
        let address = address("2025-12-31T23:59:30Z");
        assert_eq!(judge(&address, |_| None, &at(0)), Verdict::LookAgain(Duration::from_secs(30)));
        assert!(matches!(judge(&address, |_| None, &at(30)), Verdict::Delete("IPAddressNotAllocated", _)));
        let with = |service: Arc<Service>| judge(&address, move |_| Some(service.clone()), &at(30));
        assert_eq!(with(service("10.96.0.7", "2025-12-31T00:00:00Z")), Verdict::Keep);
        let other = with(service("10.96.0.8", "2025-12-31T00:00:00Z"));
        assert!(matches!(other, Verdict::Delete("IPAddressWrongReference", _)));
    }

    #[test]
    fn an_address_must_name_the_service_that_has_it() {
        let (ip, key) = ("10.96.0.7".parse().expect("an address"), Key::new("ns", "web"));
        let address = address("2026-01-01T00:00:00Z");
        assert_eq!(fault(ip, &key, None, |_| None), Some(Fault::Missing));
        assert_eq!(fault(ip, &key, Some(&address), |_| None), None);
        let other = Key::new("ns", "other");
        assert_eq!(fault(ip, &other, Some(&address), |_| None), Some(Fault::WrongReference));
        assert_eq!(fault(ip, &other, Some(&address), |_| Some(true)), Some(Fault::Duplicate));
        let mut bare = address;
        bare.metadata.labels = None;
        assert_eq!(fault(ip, &key, Some(&bare), |_| None), Some(Fault::Labels));
    }
}
