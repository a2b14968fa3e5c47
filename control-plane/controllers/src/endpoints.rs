//! Endpoints: the older, single-object form of what EndpointSlice says, kept for clients that still read it.
//!
//! One family only (the Service's first), at most 1000 addresses; the annotation says where some were left out.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Pod, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, PostParams};
use kube::{Api, ResourceExt};

use crate::cluster::Cluster;
use crate::pods;
use crate::queue::Queue;
use crate::reconcile::{Next, Reconcile, Result, found};
use crate::services::{self, Port};
use crate::store::Key;

const ADDRESSES_MAX: usize = 1000;
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const MANAGER: &str = "endpoint-controller";

/// The subsets that the Service should have, and whether addresses were left out.
pub fn desired(service: &Service, backends: &[Arc<Pod>]) -> (Vec<EndpointSubset>, bool) {
    let spec = service.spec.clone().unwrap_or_default();
    let v6 = spec
        .ip_families
        .as_ref()
        .and_then(|families| families.first())
        .is_some_and(|family| family == "IPv6");
    let publish = spec.publish_not_ready_addresses == Some(true);
    let mut subsets: BTreeMap<Vec<Port>, EndpointSubset> = BTreeMap::new();
    let mut candidates: Vec<(bool, IpAddr, &Arc<Pod>)> = Vec::new();
    for pod in backends.iter().filter(|pod| publish || !pods::is_terminating(pod)) {
        if let Some(address) = services::addresses(pod).into_iter().find(|address| address.is_ipv6() == v6) {
            candidates.push((!(publish || pods::is_ready(pod)), address, pod));
        }
    }
    // Ready ones first, so that the limit cuts off the others.
    candidates.sort_by_key(|(unready, address, pod)| (*unready, *address, pod.name_any()));
    let truncated = candidates.len() > ADDRESSES_MAX;
    candidates.truncate(ADDRESSES_MAX);
    for (unready, address, pod) in candidates {
        let ports = services::ports(service, pod);
        if ports.is_empty() && !services::is_headless(service) {
            continue;
        }
        let subset = subsets
            .entry(ports.clone())
            .or_insert_with(|| EndpointSubset { ports: api_ports(&ports), ..EndpointSubset::default() });
        let list = if unready { &mut subset.not_ready_addresses } else { &mut subset.addresses };
        list.get_or_insert_default().push(EndpointAddress {
            ip: address.to_string(),
            hostname: services::hostname(service, pod),
            node_name: pods::node_name(pod).map(str::to_owned),
            target_ref: Some(services::target_reference(pod)),
        });
    }
    (subsets.into_values().collect(), truncated)
}

fn api_ports(ports: &[Port]) -> Option<Vec<EndpointPort>> {
    let ports = ports.iter().map(|port| EndpointPort {
        name: Some(port.name.clone()).filter(|name| !name.is_empty()),
        protocol: Some(port.protocol.clone()),
        port: port.port,
        app_protocol: port.app_protocol.clone(),
    });
    Some(ports.collect::<Vec<_>>()).filter(|ports| !ports.is_empty())
}

/// The object to write, or `None` where `actual` is right already.
pub fn plan(service: &Service, backends: &[Arc<Pod>], actual: Option<&Endpoints>) -> Option<Endpoints> {
    let (subsets, truncated) = desired(service, backends);
    let mut labels = services::labels(service);
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    let settled = actual.is_some_and(|actual| {
        actual.subsets.clone().unwrap_or_default() == subsets
            && *actual.labels() == labels
            && actual.annotations().contains_key(OVER_CAPACITY) == truncated
    });
    if settled {
        return None;
    }
    let mut endpoints = actual.cloned().unwrap_or_else(|| Endpoints {
        metadata: ObjectMeta {
            name: Some(service.name_any()),
            namespace: service.namespace(),
            ..ObjectMeta::default()
        },
        subsets: None,
    });
    endpoints.metadata.labels = Some(labels);
    let annotations = endpoints.annotations_mut();
    annotations.remove(OVER_CAPACITY);
    if truncated {
        annotations.insert(OVER_CAPACITY.into(), "truncated".into());
    }
    if let Some(at) = services::triggered_at(service, backends) {
        annotations.insert(services::TRIGGER_TIME.into(), at.to_string());
    }
    endpoints.subsets = Some(subsets);
    Some(endpoints)
}

/// The Endpoints controller.
pub struct Controller {
    cluster: Arc<Cluster>,
}

/// Makes the controller and the queue that feeds it.
pub fn new(cluster: &Arc<Cluster>) -> (Arc<Controller>, Arc<Queue>) {
    let queue = Arc::new(Queue::default());
    services::enqueue_services(cluster, &queue);
    let dirty = queue.clone();
    cluster.endpoints.subscribe(move |old, new| {
        if let Some(endpoints) =
            new.or(old).filter(|endpoints| endpoints.labels().get(MANAGED_BY).is_some_and(|m| m == MANAGER))
        {
            dirty.add(Key::of(&**endpoints));
        }
    });
    (Arc::new(Controller { cluster: cluster.clone() }), queue)
}

impl Reconcile for Controller {
    const NAME: &'static str = "endpoint-controller";

    async fn reconcile(&self, key: &Key) -> Result {
        let api = Api::<Endpoints>::namespaced(self.cluster.client.clone(), &key.namespace);
        let actual = self.cluster.endpoints.get(key);
        let Some(service) = self.cluster.services.get(key) else {
            if let Some(actual) = actual {
                found(api.delete(&key.name, &DeleteParams::default()).await)?;
                self.cluster.endpoints.forget(key, &actual.uid().unwrap_or_default());
            }
            return Ok(Next::Change);
        };
        if !services::is_selecting(&service) || service.metadata.deletion_timestamp.is_some() {
            return Ok(Next::Change);
        }
        let backends = services::backends(&service, &self.cluster.pods);
        let Some(endpoints) = plan(&service, &backends, actual.as_deref()) else { return Ok(Next::Change) };
        let written = match actual {
            Some(_) => api.replace(&key.name, &PostParams::default(), &endpoints).await,
            None => api.create(&PostParams::default(), &endpoints).await,
        };
        match written {
            Ok(written) => self.cluster.endpoints.observe(&written),
            Err(error) if crate::replica_set::in_terminating_namespace(&error) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(Next::Change)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{PodCondition, PodIP, PodStatus, ServicePort, ServiceSpec};

    fn service() -> Service {
        let mut service = Service::default();
        service.metadata.name = Some("web".into());
        let port = ServicePort { port: 80, ..ServicePort::default() };
        service.spec = Some(ServiceSpec { ports: Some(vec![port]), ..ServiceSpec::default() });
        service
    }

    fn pod(number: usize, ready: bool) -> Arc<Pod> {
        let mut pod = Pod::default();
        pod.metadata.name = Some(format!("p{number}"));
        let condition = PodCondition {
            type_: "Ready".into(),
            status: if ready { "True" } else { "False" }.into(),
            ..PodCondition::default()
        };
        pod.spec = Some(Default::default());
        pod.status = Some(PodStatus {
            pod_ips: Some(vec![PodIP { ip: format!("10.244.{}.{}", number / 250, number % 250) }]),
            conditions: Some(vec![condition]),
            ..PodStatus::default()
        });
        Arc::new(pod)
    }

    #[test]
    fn ready_and_unready_pods_share_a_subset_in_two_lists() {
        let (subsets, truncated) = desired(&service(), &[pod(1, true), pod(2, false)]);
        assert!(!truncated);
        assert_eq!(subsets.len(), 1);
        assert_eq!(subsets[0].addresses.as_ref().unwrap()[0].ip, "10.244.0.1");
        assert_eq!(subsets[0].not_ready_addresses.as_ref().unwrap()[0].ip, "10.244.0.2");
    }

    #[test]
    fn more_than_a_thousand_addresses_are_cut_and_marked() {
        let backends: Vec<_> = (0..1001).map(|number| pod(number, true)).collect();
        let endpoints = plan(&service(), &backends, None).unwrap();
        assert_eq!(endpoints.annotations()[OVER_CAPACITY], "truncated");
        assert_eq!(endpoints.subsets.unwrap()[0].addresses.as_ref().unwrap().len(), 1000);
    }

    #[test]
    fn what_was_written_is_settled_in_any_order_of_pods() {
        let backends = [pod(1, true), pod(2, false), pod(3, true)];
        let written = plan(&service(), &backends, None).unwrap();
        let reversed: Vec<_> = backends.iter().rev().cloned().collect();
        assert!(plan(&service(), &reversed, Some(&written)).is_none());
    }
}
