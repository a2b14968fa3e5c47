//! ServiceCIDR: says when a range of cluster IPs is ready, and lets one go only when no address depends on it.
//!
//! An address does not depend on a range that another one covers too. A range that may go waits for a moment: servers that
//! have not heard of its end could still be giving out an address from it.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnetwork::IpNetwork;
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};

use crate::cluster::Cluster;
use crate::queue::Queue;
use crate::reconcile::{Next, Reconcile, Result, elapsed, found, now};
use crate::store::Key;

const FINALIZER: &str = "networking.k8s.io/service-cidr-finalizer";
const DELETION_GRACE_PERIOD: Duration = Duration::from_secs(10);
/// Who made an IPAddress.
pub const MANAGED_BY: &str = "ipaddress.kubernetes.io/managed-by";
/// The allocator of cluster IPs in [`MANAGED_BY`].
pub const ALLOCATOR: &str = "ipallocator.k8s.io";

/// The controller.
pub struct Controller {
    cluster: Arc<Cluster>,
}

/// Makes the controller and the queue that feeds it.
pub fn new(cluster: &Arc<Cluster>) -> (Arc<Controller>, Arc<Queue>) {
    let queue = Arc::new(Queue::default());
    let (dirty, ranges) = (queue.clone(), cluster.service_cidrs.clone());
    cluster.service_cidrs.subscribe(move |old, new| {
        // A range that comes or goes decides whether others may go.
        for range in ranges.all().iter().chain(new.or(old)) {
            dirty.add(Key::of(&**range));
        }
    });
    let (dirty, ranges) = (queue.clone(), cluster.service_cidrs.clone());
    cluster.ip_addresses.subscribe(move |old, new| {
        let (Some(gone), None) = (old, new) else { return };
        let Ok(ip) = gone.name_any().parse::<IpAddr>() else { return };
        for range in ranges.all().iter().filter(|range| is_deleting(range)) {
            if networks(range).iter().any(|network| network.contains(ip)) {
                dirty.add(Key::of(&**range));
            }
        }
    });
    (Arc::new(Controller { cluster: cluster.clone() }), queue)
}

fn is_deleting(range: &ServiceCIDR) -> bool {
    range.metadata.deletion_timestamp.is_some()
}

/// The networks of a range; what cannot be parsed was refused by the API.
pub fn networks(range: &ServiceCIDR) -> Vec<IpNetwork> {
    let cidrs = range.spec.as_ref().and_then(|spec| spec.cidrs.as_ref());
    cidrs.into_iter().flatten().filter_map(|cidr| cidr.parse().ok()).collect()
}

/// Whether an address may be given from a network: neither its own nor, for IPv4, its broadcast address.
pub fn covers(network: &IpNetwork, ip: IpAddr) -> bool {
    network.contains(ip)
        && ip != network.network()
        && !matches!(network, IpNetwork::V4(network) if ip == IpAddr::V4(network.broadcast()))
}

/// Whether no address would be left without a range when this one goes.
pub fn may_go(range: &ServiceCIDR, all: &[Arc<ServiceCIDR>], addresses: &[Arc<IPAddress>]) -> bool {
    let others: Vec<IpNetwork> = all
        .iter()
        .filter(|other| other.name_any() != range.name_any())
        .flat_map(|other| networks(other))
        .collect();
    let mine = networks(range);
    let within = |inner: &IpNetwork, outer: &IpNetwork| {
        outer.is_ipv4() == inner.is_ipv4()
            && outer.contains(inner.network())
            && outer.prefix() <= inner.prefix()
    };
    if mine.iter().all(|network| others.iter().any(|other| within(network, other))) {
        return true;
    }
    let allocated =
        addresses.iter().filter(|address| address.labels().get(MANAGED_BY).is_some_and(|by| by == ALLOCATOR));
    let mut ips = allocated.filter_map(|address| address.name_any().parse::<IpAddr>().ok());
    !ips.any(|ip| {
        mine.iter().any(|network| covers(network, ip)) && !others.iter().any(|other| covers(other, ip))
    })
}

fn condition(status: &str, reason: &str, message: &str, now: Time) -> Condition {
    Condition {
        type_: "Ready".to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        last_transition_time: now,
        observed_generation: None,
    }
}

impl Reconcile for Controller {
    const NAME: &'static str = "service-cidrs-controller";

    async fn reconcile(&self, key: &Key) -> Result {
        let Some(range) = self.cluster.service_cidrs.get(key) else { return Ok(Next::Change) };
        let Some(since) = &range.metadata.deletion_timestamp else {
            self.protect(&range).await?;
            let ready = condition("True", "", "Kubernetes Service CIDR is ready", now());
            self.write_condition(&range, ready).await?;
            return Ok(Next::Change);
        };
        if !may_go(&range, &self.cluster.service_cidrs.all(), &self.cluster.ip_addresses.all()) {
            let message = "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR";
            self.write_condition(&range, condition("False", "Terminating", message, now())).await?;
            return Ok(Next::Change);
        }
        let left = DELETION_GRACE_PERIOD.saturating_sub(elapsed(since.0, now().0));
        if !left.is_zero() {
            return Ok(Next::After(left));
        }
        self.set_finalizers(&range, |finalizers| finalizers.retain(|finalizer| finalizer != FINALIZER))
            .await?;
        Ok(Next::Change)
    }
}

impl Controller {
    fn api(&self) -> Api<ServiceCIDR> {
        Api::all(self.cluster.client.clone())
    }

    async fn protect(&self, range: &ServiceCIDR) -> Result<()> {
        self.set_finalizers(range, |finalizers| {
            if !finalizers.iter().any(|finalizer| finalizer == FINALIZER) {
                finalizers.push(FINALIZER.to_owned());
            }
        })
        .await
    }

    async fn set_finalizers(&self, range: &ServiceCIDR, change: impl Fn(&mut Vec<String>)) -> Result<()> {
        let mut finalizers = range.finalizers().to_vec();
        change(&mut finalizers);
        if finalizers == range.finalizers() {
            return Ok(());
        }
        let metadata = serde_json::json!({
            "uid": range.uid(),
            "resourceVersion": range.resource_version(),
            "finalizers": finalizers,
        });
        let patch = Patch::Merge(serde_json::json!({ "metadata": metadata }));
        let written = found(self.api().patch(&range.name_any(), &PatchParams::default(), &patch).await)?;
        if let Some(written) =
            written.filter(|written| !is_deleting(written) || !written.finalizers().is_empty())
        {
            self.cluster.service_cidrs.observe(&written);
        }
        Ok(())
    }

    async fn write_condition(&self, range: &ServiceCIDR, new: Condition) -> Result<()> {
        // The finalizer may have been written a moment ago.
        let Some(range) = self.cluster.service_cidrs.get(&Key::of(range)) else { return Ok(()) };
        let mut status = range.status.clone().unwrap_or_default();
        let conditions = status.conditions.get_or_insert_default();
        let says_so = |old: &Condition| (&old.status, &old.reason) == (&new.status, &new.reason);
        // The server's own words about its default range are as good.
        if conditions.iter().any(|old| old.type_ == new.type_ && says_so(old)) {
            return Ok(());
        }
        conditions.retain(|old| old.type_ != new.type_);
        conditions.push(new);
        let updated = ServiceCIDR { status: Some(status), ..(*range).clone() };
        let written = self.api().replace_status(&range.name_any(), &PostParams::default(), &updated).await;
        if let Some(written) = found(written)? {
            self.cluster.service_cidrs.observe(&written);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::networking::v1::ServiceCIDRSpec;

    fn range(name: &str, cidr: &str) -> Arc<ServiceCIDR> {
        let mut range = ServiceCIDR::default();
        range.metadata.name = Some(name.into());
        range.spec = Some(ServiceCIDRSpec { cidrs: Some(vec![cidr.into()]) });
        Arc::new(range)
    }

    fn address(ip: &str) -> Arc<IPAddress> {
        let mut address = IPAddress::default();
        address.metadata.name = Some(ip.into());
        address.labels_mut().insert(MANAGED_BY.into(), ALLOCATOR.into());
        Arc::new(address)
    }

    #[test]
    fn a_range_goes_when_every_address_in_it_has_another() {
        let (small, other) = (range("small", "10.0.0.0/28"), range("other", "10.1.0.0/24"));
        let all = [small.clone(), other.clone()];
        assert!(may_go(&small, &all, &[address("10.1.0.7"), address("10.0.0.15")]));
        assert!(!may_go(&small, &all, &[address("10.0.0.7")]));
        let covering = range("covering", "10.0.0.0/24");
        assert!(may_go(&small, &[small.clone(), covering], &[address("10.0.0.7")]));
        let half = range("half", "10.0.0.0/29");
        assert!(may_go(&small, &[small.clone(), half.clone()], &[address("10.0.0.3")]));
        assert!(!may_go(&small, &[small.clone(), half], &[address("10.0.0.9")]));
    }
}
