//! What a load balancer asks each node of a Service with `externalTrafficPolicy: Local`: whether it has endpoints here
//! (`healthCheckNodePort`), so that it sends to no node that would drop.

use std::{collections::BTreeSet, net::IpAddr};

use k8s_openapi::api::{
    core::v1::{Service, ServiceSpec},
    discovery::v1::EndpointSlice,
};

use crate::{NodeView, endpoints, service};

/// One Service's port for such questions, and the answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HealthCheck {
    pub port: u16,
    /// Ready endpoints on this node, counted by address; `None` where the Service is not of the family. Those that end
    /// do not count, even while they serve.
    pub v4: Option<usize>,
    pub v6: Option<usize>,
}

pub(crate) fn of_service<'a>(
    service: &Service,
    slices: impl Iterator<Item = &'a EndpointSlice> + Clone,
    node: &NodeView,
) -> Option<HealthCheck> {
    let spec = service.spec.as_ref()?;
    let port = port(spec)?;
    let families: BTreeSet<bool> = service::cluster_ips(spec).iter().map(IpAddr::is_ipv4).collect();
    let count = |v4: bool| {
        families.contains(&v4).then(|| {
            let family = slices.clone().filter(|slice| service::is_family(slice, v4));
            endpoints::ready_here(family, node).len()
        })
    };
    Some(HealthCheck { port, v4: count(true), v6: count(false) })
}

fn port(spec: &ServiceSpec) -> Option<u16> {
    let is_asked = spec.type_.as_deref() == Some("LoadBalancer")
        && spec.external_traffic_policy.as_deref() == Some("Local");
    let port = spec.health_check_node_port.filter(|_| is_asked)?;
    u16::try_from(port).ok().filter(|port| *port != 0)
}
