//! Cluster IPs and node ports of Services: taken inside the write that needs them, given back when it fails.
//!
//! Between writes the allocator learns from the cache what other servers and deletions did.

use std::sync::Arc;

use api::status::Status;
use ipnetwork::IpNetwork;
use serde_json::Value;
use tokio::sync::MutexGuard;

use crate::{
    handlers::Target,
    registry::service_ip::{Allocator, Reservation},
    state::State,
    storage::{
        cache::{Cache, Follower, Step},
        keys,
    },
};

/// The allocator with its source of news.
pub struct ServiceIps {
    allocator: Allocator,
    follower: Follower,
}

impl ServiceIps {
    pub fn new(cache: &Arc<Cache>, networks: Vec<IpNetwork>) -> Self {
        let follower = Follower::new(Arc::clone(cache), keys::resource_prefix("", "services"));
        Self { allocator: Allocator::new(networks), follower }
    }

    fn catch_up(&mut self) {
        let Self { allocator, follower } = self;
        follower.catch_up(|step| match step {
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
                let previous = event.previous.as_ref().map(|previous| previous.value());
                // What is stored is taken, whatever the allocator would have said to it.
                let _ = allocator.allocate(&mut object.clone(), previous.as_ref(), false);
                if let Some(previous) = previous {
                    allocator.updated(&object, &previous);
                }
            }
        });
    }
}

/// Addresses and ports that a write under way has taken. They are given back when this is dropped before
/// [`Claim::keep`]; other Services wait until then.
pub struct Claim<'a> {
    ips: MutexGuard<'a, ServiceIps>,
    reservations: Vec<Reservation>,
}

impl Claim<'_> {
    /// The write succeeded.
    pub fn keep(mut self) {
        self.reservations.clear();
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.ips.allocator.release(&self.reservations);
    }
}

/// Fills a Service that is about to be stored; `None` for other kinds.
pub async fn claim<'a>(
    state: &'a State,
    target: &Target,
    object: &mut Value,
    old: Option<&Value>,
    dry_run: bool,
) -> Result<Option<Claim<'a>>, Status> {
    if target.resource.plural != "services" || !target.resource.group.is_empty() {
        return Ok(None);
    }
    let mut ips = state.service_ips.lock().await;
    ips.catch_up();
    let reservations = ips.allocator.allocate(object, old, dry_run).map_err(|error| {
        let name = api::meta::name(object).to_owned();
        target.invalid(&name, vec![error])
    })?;
    Ok(Some(Claim { ips, reservations }))
}
