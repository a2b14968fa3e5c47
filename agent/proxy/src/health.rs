//! What a load balancer asks each node of a Service with `externalTrafficPolicy: Local`: whether it has endpoints here
//! (`healthCheckNodePort`), so that it sends to no node that would drop.

use std::collections::BTreeSet;

use crate::facts::{Service, Slice};

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
    slices: impl Iterator<Item = &'a Slice> + Clone,
) -> Option<HealthCheck> {
    let port = service.health_port?;
    let count = |v4: bool| {
        service.cluster_ips.iter().any(|ip| ip.is_ipv4() == v4).then(|| {
            let family = slices.clone().filter(|slice| slice.is_v4 == v4 && !slice.ports.is_empty());
            let ready = family.flat_map(Slice::endpoints).map(|(of, _)| of).filter(|of| of.here && of.ready);
            ready.map(|endpoint| endpoint.address).collect::<BTreeSet<_>>().len()
        })
    };
    Some(HealthCheck { port, v4: count(true), v6: count(false) })
}
