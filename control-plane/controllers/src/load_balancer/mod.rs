//! LoadBalancer: gives Services of this type addresses from the IPPools with `allowedUses: [LoadBalancer]`.
//!
//! ```text
//! Service, IPPools, IPReservations, IPAddresses -> plan (pure) -> claim -> status -> release
//! ```
//!
//! An address is claimed by making the IPAddress that is named like it and names the Service: of two that try, one makes it,
//! whatever server, process or run they belong to. It is written to the status only then, and given back only when the
//! status no longer has it. Only Services without `loadBalancerClass`, or of a class of ours, are served; the status of one
//! that has and gets nothing from here is left to whoever else writes it.

mod allocate;
mod request;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use calico::{IpPool, IpReservation};
use ipnetwork::IpNetwork;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::networking::v1::{IPAddress, IPAddressSpec, ParentReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, ResourceExt};

use crate::cluster::Cluster;
use crate::events::Severity;
use crate::queue::Queue;
use crate::reconcile::{Error, Next, Reconcile, Result, found};
use crate::service_cidr::MANAGED_BY;
use crate::store::Key;
use allocate::{Pool, Supply};
use request::is_load_balancer;

/// Who makes the IPAddresses of load balancers, in [`MANAGED_BY`].
pub const ALLOCATOR: &str = "load-balancer.seaway.dev";
const FAMILY: &str = "ipaddress.kubernetes.io/ip-family";
const COMPONENT: &str = "load-balancer-controller";
/// How soon to look again for kinds that the server does not serve yet.
const UNSERVED: Duration = Duration::from_secs(1);

/// The controller.
pub struct Controller {
    cluster: Arc<Cluster>,
}

/// Makes the controller and the queue that feeds it.
pub fn new(cluster: &Arc<Cluster>) -> (Arc<Controller>, Arc<Queue>) {
    let queue = Arc::new(Queue::default());
    let dirty = queue.clone();
    cluster.services.subscribe(move |old, new| {
        let touched = [old, new].into_iter().flatten().find(|service| is_load_balancer(service));
        if let Some(service) = touched {
            dirty.add(Key::of(&**service));
        }
    });
    let (dirty, services) = (queue.clone(), cluster.services.clone());
    let all = move || {
        services
            .all()
            .iter()
            .filter(|service| is_load_balancer(service))
            .for_each(|service| dirty.add(Key::of(&**service)));
    };
    let changed = all.clone();
    cluster.ip_pools.subscribe(move |_, _| changed());
    let changed = all.clone();
    cluster.ip_reservations.subscribe(move |_, _| changed());
    let dirty = queue.clone();
    cluster.ip_addresses.subscribe(move |old, new| {
        for holder in [old, new].into_iter().flatten().filter(|address| is_ours(address)).map(|it| holder(it))
        {
            dirty.add(holder);
        }
        // Somebody may wait for what has come free.
        if new.is_none() {
            all();
        }
    });
    (Arc::new(Controller { cluster: cluster.clone() }), queue)
}

fn is_ours(address: &IPAddress) -> bool {
    address.labels().get(MANAGED_BY).is_some_and(|by| by == ALLOCATOR)
}

/// The Service that an IPAddress is for.
fn holder(address: &IPAddress) -> Key {
    let parent = &address.spec.parent_ref;
    Key::new(parent.namespace.clone().unwrap_or_default(), parent.name.clone())
}

fn holder_text(address: &IPAddress) -> String {
    match address.spec.parent_ref.resource.as_str() {
        "services" => format!("Service {}", holder(address)),
        other => format!("{other} {}", holder(address)),
    }
}

fn make(ip: IpAddr, service: &Key) -> IPAddress {
    let family = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
    let labels = [(FAMILY, family), (MANAGED_BY, ALLOCATOR)];
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

fn status_ips(service: &Service) -> Vec<IpAddr> {
    let ingress = service.status.as_ref().and_then(|status| status.load_balancer.as_ref()?.ingress.as_ref());
    ingress.into_iter().flatten().filter_map(|ingress| ingress.ip.as_ref()?.parse().ok()).collect()
}

fn has_status(service: &Service) -> bool {
    let ingress = service.status.as_ref().and_then(|status| status.load_balancer.as_ref()?.ingress.as_ref());
    ingress.is_some_and(|ingress| !ingress.is_empty())
}

/// The pools for load balancers, by name; one that cannot be used gives nothing and is told to its readers.
fn pools(objects: &[Arc<IpPool>]) -> Vec<Pool> {
    let mut pools = Vec::new();
    for object in objects {
        let spec = &object.spec;
        let Some(cidr) = spec.cidr.filter(|_| spec.is_for("LoadBalancer")) else { continue };
        let namespaces = match spec.namespaces() {
            Ok(selector) => selector,
            Err(error) => {
                tracing::warn!(pool = object.name_any(), %error, "namespaceSelector: the IPPool is not used");
                continue;
            }
        };
        pools.push(Pool {
            name: object.name_any(),
            cidr,
            is_automatic: spec.is_automatic(),
            is_disabled: spec.disabled || object.metadata.deletion_timestamp.is_some(),
            namespaces,
        });
    }
    pools
}

impl Controller {
    /// The IPAddresses that are this Service's through us.
    fn held(&self, key: &Key) -> Vec<Arc<IPAddress>> {
        let mut all = self.cluster.ip_addresses.all();
        all.retain(|address| is_ours(address) && holder(address) == *key);
        all
    }

    /// Who has which address, but for this Service: IPAddresses of anybody, and what other load balancers were given by
    /// others.
    fn others(&self, key: &Key) -> BTreeMap<IpAddr, String> {
        let mut holders = BTreeMap::new();
        for service in self.cluster.services.all().iter().filter(|service| is_load_balancer(service)) {
            let of = Key::of(&**service);
            if of != *key {
                holders.extend(status_ips(service).into_iter().map(|ip| (ip, format!("Service {of}"))));
            }
        }
        for address in self.cluster.ip_addresses.all() {
            let Ok(ip) = address.name_any().parse() else { continue };
            if is_ours(&address) && holder(&address) == *key {
                holders.remove(&ip);
            } else {
                holders.insert(ip, holder_text(&address));
            }
        }
        holders
    }

    fn plan(&self, service: &Service, key: &Key, held: &[Arc<IPAddress>]) -> Result<allocate::Plan> {
        let wanted = request::wanted(service).map_err(Error::Invalid)?;
        let pools = pools(&self.cluster.ip_pools.all());
        let reservations: Vec<Arc<IpReservation>> = self.cluster.ip_reservations.all();
        let reserved: Vec<IpNetwork> = reservations
            .iter()
            .flat_map(|reservation| reservation.spec.reserved_cidrs.iter().copied())
            .collect();
        let labels = self.cluster.namespaces.get(&Key::cluster(key.namespace.clone()));
        let labels = labels.map(|namespace| namespace.labels().clone()).unwrap_or_default();
        let own: BTreeSet<IpAddr> = match held {
            // What another balancer gave before is taken over where it can be.
            [] => status_ips(service).into_iter().collect(),
            held => held.iter().filter_map(|address| address.name_any().parse().ok()).collect(),
        };
        let supply = Supply {
            pools: &pools,
            reserved: &reserved,
            holder_by_address: &self.others(key),
            namespace_labels: &labels,
        };
        Ok(allocate::plan(&wanted, supply, &own))
    }

    fn warn(&self, service: &Service, problem: String) {
        self.cluster.events.report(COMPONENT, service, Severity::Warning, "AddressPending", problem);
    }

    /// Makes an address the Service's; `false` where another was quicker.
    async fn claim(&self, service: &Service, key: &Key, ip: IpAddr) -> Result<bool> {
        let api = Api::<IPAddress>::all(self.cluster.client.clone());
        match api.create(&PostParams::default(), &make(ip, key)).await {
            Ok(address) => {
                self.cluster.ip_addresses.observe(&address);
                let message = format!("Assigned {ip}");
                self.cluster.events.report(COMPONENT, service, Severity::Normal, "AddressAssigned", message);
                Ok(true)
            }
            Err(kube::Error::Api(status)) if status.is_already_exists() => {
                let Some(address) = api.get_opt(&ip.to_string()).await? else { return Ok(false) };
                self.cluster.ip_addresses.observe(&address);
                Ok(is_ours(&address) && holder(&address) == *key)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Another server may have taken back what this store still shows as the Service's.
    async fn still_holds(&self, key: &Key, ip: IpAddr) -> Result<()> {
        let api = Api::<IPAddress>::all(self.cluster.client.clone());
        let address = api.get_opt(&ip.to_string()).await?;
        match address {
            Some(address) if is_ours(&address) && holder(&address) == *key => Ok(()),
            _ => Err(Error::Waiting(format!("{ip} was taken back meanwhile"))),
        }
    }

    async fn release(&self, address: &IPAddress) -> Result<()> {
        let api = Api::<IPAddress>::all(self.cluster.client.clone());
        let preconditions = Preconditions { uid: address.uid(), resource_version: None };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        found(api.delete(&address.name_any(), &params).await)?;
        self.cluster.ip_addresses.forget(&Key::of(address), &address.uid().unwrap_or_default());
        Ok(())
    }

    async fn write(&self, service: &Service, key: &Key, ips: &[IpAddr]) -> Result<()> {
        let ingress: Vec<_> = ips.iter().map(|ip| serde_json::json!({ "ip": ip, "ipMode": "VIP" })).collect();
        let ingress = if ingress.is_empty() { serde_json::Value::Null } else { ingress.into() };
        let patch = serde_json::json!({
            "metadata": { "resourceVersion": service.resource_version(), "uid": service.uid() },
            "status": { "loadBalancer": { "ingress": ingress } },
        });
        let api = Api::<Service>::namespaced(self.cluster.client.clone(), &key.namespace);
        let written = api.patch_status(&key.name, &PatchParams::default(), &Patch::Merge(patch)).await?;
        self.cluster.services.observe(&written);
        Ok(())
    }

    /// Takes back all that a Service got from us.
    async fn withdraw(&self, service: Option<&Service>, key: &Key, held: &[Arc<IPAddress>]) -> Result {
        if let Some(service) = service {
            let is_given = |ip: &IpAddr| held.iter().any(|address| address.name_any() == ip.to_string());
            let before = status_ips(service);
            let after: Vec<IpAddr> = before.iter().copied().filter(|ip| !is_given(ip)).collect();
            if after.len() < before.len() {
                self.write(service, key, &after).await?;
            }
        }
        for address in held {
            self.release(address).await?;
        }
        Ok(Next::Change)
    }

    async fn serve(&self, service: &Service, key: &Key, held: &[Arc<IPAddress>]) -> Result {
        let plan = match self.plan(service, key, held) {
            Ok(plan) => plan,
            // What it has stays until it says something that can be understood.
            Err(Error::Invalid(problem)) => {
                self.cluster.events.report(
                    COMPONENT,
                    service,
                    Severity::Warning,
                    "InvalidAddressRequest",
                    problem,
                );
                return Ok(Next::Change);
            }
            Err(error) => return Err(error),
        };
        if held.is_empty() && plan.addresses.is_empty() {
            // What stands in the status then is somebody else's.
            if !has_status(service) {
                plan.problems.into_iter().for_each(|problem| self.warn(service, problem));
            }
            return Ok(Next::Change);
        }
        let is_held = |ip: &IpAddr| held.iter().any(|address| address.name_any() == ip.to_string());
        for ip in plan.addresses.iter().filter(|ip| !is_held(ip)) {
            if !self.claim(service, key, *ip).await? {
                return Err(Error::Waiting(format!("{ip} was taken by another meanwhile")));
            }
        }
        if status_ips(service) != plan.addresses {
            for ip in plan.addresses.iter().filter(|ip| is_held(ip)) {
                self.still_holds(key, *ip).await?;
            }
            self.write(service, key, &plan.addresses).await?;
        }
        for address in
            held.iter().filter(|it| !plan.addresses.iter().any(|ip| ip.to_string() == it.name_any()))
        {
            self.release(address).await?;
        }
        plan.problems.into_iter().for_each(|problem| self.warn(service, problem));
        Ok(Next::Change)
    }
}

impl Reconcile for Controller {
    const NAME: &'static str = "load-balancer-controller";

    async fn reconcile(&self, key: &Key) -> Result {
        if !self.cluster.ip_pools.is_synced() || !self.cluster.ip_reservations.is_synced() {
            return Ok(Next::After(UNSERVED));
        }
        let held = self.held(key);
        let service = self.cluster.services.get(key);
        match service {
            Some(service) if request::is_served(&service) => {
                if service.metadata.deletion_timestamp.is_some() {
                    // It is announced until it is gone.
                    return Ok(Next::Change);
                }
                self.serve(&service, key, &held).await
            }
            service => {
                // An orphan may be the claim of a Service that this store has not heard of yet.
                let api = Api::<Service>::namespaced(self.cluster.client.clone(), &key.namespace);
                if !held.is_empty() && service.is_none() && api.get_opt(&key.name).await?.is_some() {
                    return Err(Error::Waiting("the Service is there and not seen yet".to_owned()));
                }
                self.withdraw(service.as_deref(), key, &held).await
            }
        }
    }
}
