//! Cluster IPs and node ports of Services: taken inside the write that needs them, given back when it fails.
//!
//! Each cluster IP is an IPAddress object too, made before the Service is stored: of several servers that choose the same
//! address one makes it. So it is with node ports and their records ([`super::node_ports`]). Between writes the allocator learns from the cache what other servers and deletions did.

use std::sync::{Arc, Mutex, PoisonError};

use api::{field::FieldError, meta, status::Status};
use ipnetwork::IpNetwork;
use serde_json::{Value, json};

use super::node_ports;
use crate::{
    handlers::{self, Target},
    registry::{
        fields::text,
        service::needs_cluster_ip,
        service_ip::{Allocator, Reservation, held_ips, held_ports, owner, parent},
    },
    state::State,
    storage::{
        Revision, StorageError,
        cache::{Cache, Follower, Step},
        keys,
    },
};

const GROUP: &str = "networking.k8s.io";
/// An address that others were quicker to take is chosen anew.
const ATTEMPTS_MAX: usize = 50;

/// The allocator with its sources of news.
pub struct ServiceIps {
    state: Mutex<Inner>,
}

struct Inner {
    allocator: Allocator,
    cache: Arc<Cache>,
    services: Follower,
    addresses: Follower,
    /// The newest change of a ServiceCIDR that the allocator knows.
    ranges: Option<Revision>,
}

impl ServiceIps {
    pub fn new(cache: &Arc<Cache>, networks: Vec<IpNetwork>) -> Self {
        let follow = |group, plural| Follower::new(Arc::clone(cache), keys::resource_prefix(group, plural));
        let inner = Inner {
            allocator: Allocator::new(networks),
            cache: Arc::clone(cache),
            services: follow("", "services"),
            addresses: follow(GROUP, "ipaddresses"),
            ranges: None,
        };
        Self { state: Mutex::new(inner) }
    }

    fn with<T>(&self, f: impl FnOnce(&mut Allocator) -> T) -> T {
        f(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner).allocator)
    }

    fn allocate(
        &self,
        object: &mut Value,
        old: Option<&Value>,
        dry_run: bool,
    ) -> Result<Vec<Reservation>, FieldError> {
        let mut inner = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        inner.catch_up();
        inner.allocator.allocate(object, old, dry_run)
    }
}

impl Inner {
    fn catch_up(&mut self) {
        let Self { allocator, cache, services, addresses, ranges } = self;
        let prefix = keys::resource_prefix(GROUP, "servicecidrs");
        let newest = cache.newest(&prefix);
        if *ranges != Some(newest) {
            let stored: Vec<Value> = cache.list(&prefix).iter().map(|object| object.value()).collect();
            allocator.set_ranges(&stored);
            *ranges = Some(newest);
        }
        services.catch_up(|step| match step {
            Step::Reset(snapshot) => {
                let services: Vec<Value> = snapshot.iter().map(|object| object.value()).collect();
                allocator.rebuild(&services);
            }
            Step::Event(event) => {
                let object = event.object.value();
                if event.is_deletion() {
                    allocator.deleted(&object);
                    return;
                }
                allocator.stored(&object);
                if let Some(previous) = &event.previous {
                    allocator.updated(&object, &previous.value());
                }
            }
        });
        addresses.catch_up(|step| match step {
            Step::Reset(snapshot) => {
                let addresses: Vec<Value> = snapshot.iter().map(|object| object.value()).collect();
                allocator.rebuild_addresses(&addresses);
            }
            Step::Event(event) if event.is_deletion() => allocator.address_deleted(&event.object.value()),
            Step::Event(event) => allocator.address_stored(&event.object.value()),
        });
    }
}

/// Addresses and ports that a write under way has taken. They are given back when this is dropped before
/// [`Claim::keep`].
pub struct Claim<'a> {
    ips: &'a ServiceIps,
    cache: &'a Arc<Cache>,
    reservations: Vec<Reservation>,
    /// Keys and revisions of the IPAddresses and of the records of ports that were made.
    made: Vec<(String, Revision)>,
    /// Keys of those that the write frees, and whose they are.
    freed: Vec<String>,
    owner: String,
    uid: String,
}

impl Claim<'_> {
    /// The write succeeded, and the cache shows it: the allocator learns of it there before it gives out anything else.
    pub async fn keep(mut self) {
        self.made.clear();
        free(self.cache, &self.owner, &self.uid, &self.freed).await;
    }

    /// Makes the IPAddresses of the addresses that are new to the Service; the first that somebody else has is the error.
    async fn make_addresses(&mut self, new: &[std::net::IpAddr]) -> Result<(), Refusal> {
        for ip in new {
            let key = address_key(ip);
            if let Some(known) = self.cache.get(&key) {
                if parent(&known.value()) != self.owner {
                    return Err(Refusal::Taken);
                }
                continue;
            }
            match self.cache.create(&key, address(ip, &self.owner)).await {
                Ok(stored) => self.made.push((key, stored.revision())),
                Err(StorageError::Exists { .. }) => {
                    self.cache.fresh().await.map_err(Refusal::Storage)?;
                    if self.cache.get(&key).is_none_or(|known| parent(&known.value()) != self.owner) {
                        return Err(Refusal::Taken);
                    }
                }
                Err(error) => return Err(Refusal::Storage(error)),
            }
        }
        Ok(())
    }

    /// Makes the records of the ports that are new to the Service; the first that somebody else has is the error.
    async fn make_ports(&mut self, service: &Value, new: &[u16]) -> Result<(), (u16, Refusal)> {
        for port in new {
            let made = node_ports::take(self.cache, *port, service, jiff::Timestamp::now()).await;
            self.made.extend(made.map_err(|refusal| (*port, refusal))?);
        }
        Ok(())
    }
}

/// Why an address or a port cannot be had.
#[derive(Debug)]
pub(super) enum Refusal {
    Taken,
    Storage(StorageError),
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.ips.with(|allocator| allocator.release(&self.reservations));
        if self.made.is_empty() {
            return;
        }
        let (cache, made) = (Arc::clone(self.cache), std::mem::take(&mut self.made));
        tokio::spawn(async move {
            for (key, revision) in made {
                // Whoever changed it meanwhile sees to it; what leaks is found by the repair.
                let _ = cache.delete(&key, revision).await;
            }
        });
    }
}

fn address_key(ip: &std::net::IpAddr) -> String {
    keys::object_key(GROUP, "ipaddresses", None, &ip.to_string())
}

fn address(ip: &std::net::IpAddr, owner: &str) -> Value {
    let (namespace, name) = owner.split_once('/').unwrap_or(("", owner));
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "IPAddress",
        "metadata": {
            "name": ip.to_string(),
            "uid": uuid::Uuid::new_v4().to_string(),
            "creationTimestamp": handlers::now(),
            "labels": {
                "ipaddress.kubernetes.io/ip-family": if ip.is_ipv4() { "IPv4" } else { "IPv6" },
                "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io",
            },
        },
        "spec": { "parentRef": { "resource": "services", "namespace": namespace, "name": name } },
    })
}

/// Deletes these IPAddresses and records of ports where they belong to the owner.
async fn free(cache: &Cache, owner: &str, uid: &str, keys: &[String]) {
    let is_own = |record: &Value| {
        let of = text(record, "/spec/uid");
        parent(record) == owner && (of.is_empty() || of == uid)
    };
    for key in keys {
        let Some(known) = cache.get(key).filter(|known| is_own(&known.value())) else { continue };
        if let Err(error) = cache.delete(key, known.revision()).await {
            tracing::debug!(key, %error, "what is not freed is left to the repair");
        }
    }
}

fn is_service(target: &Target) -> bool {
    target.resource.plural == "services" && target.resource.group.is_empty()
}

/// Fills a Service that is about to be stored; `None` for other kinds.
///
/// # Errors
/// 422 for what is taken, out of range or used up.
pub async fn claim<'a>(
    state: &'a State,
    target: &Target,
    object: &mut Value,
    old: Option<&Value>,
    dry_run: bool,
) -> Result<Option<Claim<'a>>, Status> {
    if !is_service(target) {
        return Ok(None);
    }
    let before = old.map(held_ips).unwrap_or_default();
    let ports_before = old.map(held_ports).unwrap_or_default();
    let asked = object.clone();
    for _ in 0..ATTEMPTS_MAX {
        let reservations = state.service_ips.allocate(object, old, dry_run).map_err(|error| {
            let name = meta::name(object).to_owned();
            target.invalid(&name, vec![error])
        })?;
        let mut claim = Claim {
            ips: &state.service_ips,
            cache: &state.cache,
            reservations,
            made: Vec::new(),
            freed: Vec::new(),
            owner: owner(object),
            uid: meta::uid(object).to_owned(),
        };
        if dry_run {
            return Ok(Some(claim));
        }
        let held = if needs_cluster_ip(object) { held_ips(object) } else { Vec::new() };
        claim.freed = before.iter().filter(|ip| !held.contains(ip)).map(address_key).collect();
        let ports = held_ports(object);
        let freed = ports_before.iter().filter(|port| !ports.contains(port));
        claim.freed.extend(freed.map(|port| node_ports::key(*port)));
        let new: Vec<_> = held.into_iter().filter(|ip| !before.contains(ip)).collect();
        match claim.make_addresses(&new).await {
            Ok(()) => {}
            Err(Refusal::Storage(error)) => return Err(target.storage_error(&claim.owner, error)),
            // The allocator knows of it now.
            Err(Refusal::Taken) => {
                object.clone_from(&asked);
                continue;
            }
        }
        let new: Vec<u16> = ports.into_iter().filter(|port| !ports_before.contains(port)).collect();
        match claim.make_ports(object, &new).await {
            Ok(()) => return Ok(Some(claim)),
            Err((_, Refusal::Storage(error))) => return Err(target.storage_error(&claim.owner, error)),
            Err((port, Refusal::Taken)) => {
                if let Some(error) = port_is_taken(&asked, port) {
                    return Err(target.invalid(meta::name(object), vec![error]));
                }
                object.clone_from(&asked);
            }
        }
    }
    Err(Status::internal("no cluster IP or node port could be taken: others were quicker each time"))
}

/// The error where a client asked for a port that another server gave away.
fn port_is_taken(asked: &Value, port: u16) -> Option<FieldError> {
    let why = "provided port is already allocated";
    if asked["spec"]["healthCheckNodePort"] == port {
        let why = format!("failed to allocate requested HealthCheck NodePort {port}: {why}");
        return Some(FieldError::internal("spec.healthCheckNodePort", why));
    }
    let at = asked["spec"]["ports"].as_array()?.iter().position(|known| known["nodePort"] == port)?;
    Some(FieldError::invalid(format!("spec.ports[{at}].nodePort"), port, why))
}

/// A Service was deleted: its addresses and ports are free.
pub async fn released(state: &State, target: &Target, object: &Value) {
    if is_service(target) {
        let ports = held_ports(object).into_iter().map(node_ports::key);
        let keys: Vec<String> = held_ips(object).iter().map(address_key).chain(ports).collect();
        free(&state.cache, &owner(object), meta::uid(object), &keys).await;
    }
}
