//! EndpointSlice mirroring: copies hand-made Endpoints of Services without a selector into slices, which is all that
//! proxies read. At most 1000 addresses of each subset are copied, into one slice of each address family; what is left
//! out is said in an Event.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{EndpointAddress, Endpoints, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions};
use kube::ResourceExt;

use crate::cluster::Cluster;
use crate::endpoint_slice::{Group, MANAGED_BY, Origin, Plan, SERVICE_NAME, apply, plan, slices_of};
use crate::events::Severity;
use crate::pods;
use crate::queue::Queue;
use crate::reconcile::{Next, Reconcile, Result};
use crate::services::{Port, TRIGGER_TIME};
use crate::store::Key;

const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
const ADDRESSES_MAX: usize = 1000;

/// Whether these Endpoints of this Service are to be copied.
pub fn is_mirrored(endpoints: &Endpoints, service: &Service) -> bool {
    let selects = service.spec.as_ref().is_some_and(|spec| spec.selector.is_some());
    let skipped = endpoints.labels().get(SKIP).is_some_and(|value| value == "true");
    !selects
        && !skipped
        && !endpoints.annotations().contains_key(LEADER)
        && endpoints.metadata.deletion_timestamp.is_none()
}

/// Addresses that are not copied.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Skipped {
    /// They are no IP addresses.
    pub invalid: usize,
    /// Their subset has too many.
    pub excess: usize,
}

/// The slices' content, by address family and ports.
pub fn desired(endpoints: &Endpoints) -> (BTreeMap<Group, Vec<Endpoint>>, Skipped) {
    let mut groups: BTreeMap<Group, Vec<Endpoint>> = BTreeMap::new();
    let mut skipped = Skipped::default();
    for subset in endpoints.subsets.iter().flatten() {
        let mut ports: Vec<Port> = subset
            .ports
            .iter()
            .flatten()
            .map(|port| Port {
                name: port.name.clone().unwrap_or_default(),
                protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()),
                port: port.port,
                app_protocol: port.app_protocol.clone(),
            })
            .collect();
        ports.sort();
        let ready = subset.addresses.iter().flatten().map(|address| (address, true));
        let unready = subset.not_ready_addresses.iter().flatten().map(|address| (address, false));
        let mut copied = 0;
        for (address, ready) in ready.chain(unready) {
            if copied == ADDRESSES_MAX {
                skipped.excess += 1;
                continue;
            }
            let Ok(ip) = address.ip.parse::<IpAddr>() else {
                skipped.invalid += 1;
                continue;
            };
            copied += 1;
            let address_type = if ip.is_ipv6() { "IPv6" } else { "IPv4" };
            let group = Group { address_type, ports: ports.clone() };
            groups.entry(group).or_default().push(endpoint(address, ip, ready));
        }
    }
    (groups, skipped)
}

fn endpoint(address: &EndpointAddress, ip: IpAddr, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![ip.to_string()],
        conditions: Some(EndpointConditions { ready: Some(ready), ..EndpointConditions::default() }),
        hostname: address.hostname.clone(),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Endpoint::default()
    }
}

fn origin(endpoints: &Endpoints) -> Origin {
    let mut labels = endpoints.labels().clone();
    labels.insert(SERVICE_NAME.into(), endpoints.name_any());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    let mut annotations = endpoints.annotations().clone();
    annotations.retain(|key, _| key != TRIGGER_TIME && key != LAST_APPLIED);
    Origin {
        name: endpoints.name_any(),
        namespace: endpoints.namespace(),
        labels,
        annotations: Some(annotations),
        endpoints_max: ADDRESSES_MAX,
        owner: pods::controller_reference(endpoints),
    }
}

/// The mirroring controller.
pub struct Controller {
    cluster: Arc<Cluster>,
}

/// Makes the controller and the queue that feeds it.
pub fn new(cluster: &Arc<Cluster>) -> (Arc<Controller>, Arc<Queue>) {
    let queue = Arc::new(Queue::default());
    let dirty = queue.clone();
    cluster.endpoints.subscribe(move |old, new| {
        if let Some(endpoints) = new.or(old) {
            dirty.add(Key::of(&**endpoints));
        }
    });
    let dirty = queue.clone();
    cluster.services.subscribe(move |old, new| {
        if let Some(service) = new.or(old) {
            dirty.add(Key::of(&**service));
        }
    });
    let dirty = queue.clone();
    cluster.endpoint_slices.subscribe(move |old, new| {
        let Some(slice) = new.or(old) else { return };
        if let Some(service) = slice.labels().get(SERVICE_NAME)
            && slice.labels().get(MANAGED_BY).is_some_and(|by| by == MANAGER)
        {
            dirty.add(Key::new(slice.namespace().unwrap_or_default(), service.clone()));
        }
    });
    (Arc::new(Controller { cluster: cluster.clone() }), queue)
}

impl Reconcile for Controller {
    const NAME: &'static str = "endpointslicemirroring-controller";

    async fn reconcile(&self, key: &Key) -> Result {
        let actual = slices_of(&self.cluster.endpoint_slices, key, MANAGER);
        let endpoints = self.cluster.endpoints.get(key);
        let service = self.cluster.services.get(key);
        let plan = match endpoints.zip(service).filter(|(endpoints, service)| is_mirrored(endpoints, service))
        {
            None => Plan { delete: actual, ..Plan::default() },
            Some((endpoints, _)) => {
                let triggered = endpoints.annotations().get(TRIGGER_TIME).cloned();
                let (desired, skipped) = desired(&endpoints);
                self.report(&endpoints, skipped);
                plan(&origin(&endpoints), desired, &actual, triggered)
            }
        };
        apply(&self.cluster, &key.namespace, plan).await?;
        Ok(Next::Change)
    }
}

impl Controller {
    fn report(&self, endpoints: &Endpoints, skipped: Skipped) {
        let warn = |reason, message| {
            self.cluster.events.report(Self::NAME, endpoints, Severity::Warning, reason, message);
        };
        if skipped.invalid > 0 {
            let message =
                format!("Skipped {} invalid IP addresses when mirroring to EndpointSlices", skipped.invalid);
            warn("InvalidIPAddress", message);
        }
        if skipped.excess > 0 {
            let message = format!(
                "A max of {ADDRESSES_MAX} addresses can be mirrored to EndpointSlices per Endpoints subset. {} addresses \
                 were skipped",
                skipped.excess + skipped.invalid
            );
            warn("TooManyAddressesToMirror", message);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{EndpointPort, EndpointSubset, ServiceSpec};

    fn address(ip: &str) -> EndpointAddress {
        EndpointAddress { ip: ip.into(), ..EndpointAddress::default() }
    }

    #[test]
    fn families_stand_apart_and_readiness_is_kept() {
        let subset = EndpointSubset {
            addresses: Some(vec![address("10.0.0.1"), address("fd00::1")]),
            not_ready_addresses: Some(vec![address("10.0.0.2")]),
            ports: Some(vec![EndpointPort { port: 80, ..EndpointPort::default() }]),
        };
        let endpoints = Endpoints { subsets: Some(vec![subset]), ..Endpoints::default() };
        let (groups, skipped) = desired(&endpoints);
        assert_eq!(skipped, Skipped::default());
        let ready: Vec<Vec<Option<bool>>> = groups
            .values()
            .map(|endpoints| endpoints.iter().map(|e| e.conditions.as_ref().and_then(|c| c.ready)).collect())
            .collect();
        assert_eq!(ready, [vec![Some(true), Some(false)], vec![Some(true)]]);
        let plan = plan(&origin(&endpoints), groups, &[], None);
        assert_eq!(plan.create.len(), 2);
    }

    #[test]
    fn a_subset_is_one_slice_of_at_most_a_thousand_with_the_annotations_of_its_source() {
        let numbered = |n: usize| address(&format!("10.0.{}.{}", n / 250, n % 250));
        let addresses: Vec<_> = (0..1002).map(numbered).chain([address("nonsense")]).collect();
        let subset = EndpointSubset { addresses: Some(addresses), ..EndpointSubset::default() };
        let mut endpoints = Endpoints { subsets: Some(vec![subset]), ..Endpoints::default() };
        endpoints.annotations_mut().insert("mine".into(), "1".into());
        endpoints.annotations_mut().insert(LAST_APPLIED.into(), "{}".into());
        let (groups, skipped) = desired(&endpoints);
        assert_eq!(skipped, Skipped { invalid: 0, excess: 3 });
        let made = plan(&origin(&endpoints), groups.clone(), &[], None).create;
        assert_eq!(made.len(), 1);
        assert_eq!(made[0].endpoints.as_ref().map(Vec::len), Some(1000));
        assert_eq!(*made[0].annotations(), [("mine".to_owned(), "1".to_owned())].into());
        let actual = [Arc::new(made[0].clone())];
        let settled = plan(&origin(&endpoints), groups.clone(), &actual, None);
        endpoints.annotations_mut().insert("mine".into(), "2".into());
        assert_eq!(plan(&origin(&endpoints), groups, &actual, None).update.len(), 1);
        assert_eq!(settled, Plan::default());
    }

    #[test]
    fn services_that_select_and_marked_endpoints_are_left_alone() {
        let mut endpoints = Endpoints::default();
        let mut service = Service { spec: Some(ServiceSpec::default()), ..Service::default() };
        assert!(is_mirrored(&endpoints, &service));
        endpoints.labels_mut().insert(SKIP.into(), "true".into());
        assert!(!is_mirrored(&endpoints, &service));
        service.spec.as_mut().expect("set above").selector = Some(BTreeMap::new());
        assert!(!is_mirrored(&Endpoints::default(), &service));
    }
}
