//! EndpointSlice: the addresses behind each Service, at most 100 per slice, one set of slices per address family and set
//! of resolved ports.
//!
//! Slices that are right stay untouched: every write wakes every node. New endpoints go into slices that must be written
//! anyway, then into the fullest slice with room for all of them, then into new slices.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::{
    Endpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice, ForNode, ForZone,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{DeleteParams, PostParams};
use kube::{Api, ResourceExt};

use crate::cluster::Cluster;
use crate::pods;
use crate::queue::Queue;
use crate::reconcile::{Next, Reconcile, Result, found};
use crate::services::{self, Port};
use crate::store::{Key, Store};

/// Names the Service of a slice.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Names who maintains a slice.
pub const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// This controller in [`MANAGED_BY`].
pub const MANAGER: &str = "endpointslice-controller.k8s.io";
/// So many endpoints a slice of this controller holds.
pub const ENDPOINTS_MAX: usize = 100;

/// The endpoints of one address family and port set.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Group {
    /// IPv4 or IPv6.
    pub address_type: &'static str,
    /// The ports that every endpoint of the group serves.
    pub ports: Vec<Port>,
}

/// Whose slices they are.
#[derive(Debug, Clone)]
pub struct Origin {
    /// Name of the Service, from which the names of slices are generated.
    pub name: String,
    /// Its namespace.
    pub namespace: Option<String>,
    /// All labels of each slice.
    pub labels: BTreeMap<String, String>,
    /// All annotations of each slice, but for the time of the last change; `None` leaves them alone.
    pub annotations: Option<BTreeMap<String, String>>,
    /// So many endpoints a slice may hold.
    pub endpoints_max: usize,
    /// What goes takes the slices with it.
    pub owner: OwnerReference,
}

impl Origin {
    /// The Service itself.
    pub fn of(service: &Service) -> Self {
        let mut labels = services::labels(service);
        labels.insert(SERVICE_NAME.into(), service.name_any());
        labels.insert(MANAGED_BY.into(), MANAGER.into());
        Self {
            name: service.name_any(),
            namespace: service.namespace(),
            labels,
            annotations: None,
            endpoints_max: ENDPOINTS_MAX,
            owner: pods::controller_reference(service),
        }
    }
}

/// What to write so that the slices say what they should.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    /// New slices.
    pub create: Vec<EndpointSlice>,
    /// Changed slices.
    pub update: Vec<EndpointSlice>,
    /// Slices that nothing needs.
    pub delete: Vec<Arc<EndpointSlice>>,
}

/// The endpoints that the Service should have.
pub fn desired(
    service: &Service,
    backends: &[Arc<Pod>],
    zone: impl Fn(&str) -> Option<String>,
) -> BTreeMap<Group, Vec<Endpoint>> {
    let mut groups: BTreeMap<Group, Vec<Endpoint>> = BTreeMap::new();
    let spec = service.spec.clone().unwrap_or_default();
    let mut families = spec.ip_families.unwrap_or_default();
    if families.is_empty() {
        families.push("IPv4".into());
    }
    for family in families {
        let address_type = if family == "IPv6" { "IPv6" } else { "IPv4" };
        let mut any = false;
        for pod in backends {
            let of_family = |address: &IpAddr| address.is_ipv6() == (address_type == "IPv6");
            let Some(address) = services::addresses(pod).into_iter().find(of_family) else { continue };
            let group = Group { address_type, ports: services::ports(service, pod) };
            groups.entry(group).or_default().push(endpoint(service, pod, address, &zone));
            any = true;
        }
        if !any {
            // An empty slice tells readers that there is nothing, rather than that nothing is known yet.
            groups.insert(Group { address_type, ports: Vec::new() }, Vec::new());
        }
    }
    groups
}

fn endpoint(
    service: &Service,
    pod: &Pod,
    address: IpAddr,
    zone: impl Fn(&str) -> Option<String>,
) -> Endpoint {
    let serving = pods::is_ready(pod);
    let terminating = pods::is_terminating(pod);
    let publish = service.spec.as_ref().and_then(|spec| spec.publish_not_ready_addresses) == Some(true);
    let node = pods::node_name(pod);
    let ready = publish || (serving && !terminating);
    let zone = node.and_then(zone);
    Endpoint {
        addresses: vec![address.to_string()],
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname: services::hostname(service, pod),
        node_name: node.map(str::to_owned),
        target_ref: Some(services::target_reference(pod)),
        hints: if ready { hints(service, node, zone.as_deref()) } else { None },
        zone,
        ..Endpoint::default()
    }
}

/// For whom an endpoint is that is ready, as `trafficDistribution` asks (KEP-4444, KEP-3015).
fn hints(service: &Service, node: Option<&str>, zone: Option<&str>) -> Option<EndpointHints> {
    let distribution = service.spec.as_ref()?.traffic_distribution.as_deref()?;
    let same_node = match distribution {
        "PreferClose" | "PreferSameZone" => false,
        "PreferSameNode" => true,
        _ => return None,
    };
    let for_zones = zone.map(|zone| vec![ForZone { name: zone.to_owned() }]);
    let for_nodes = node.filter(|_| same_node).map(|node| vec![ForNode { name: node.to_owned() }]);
    let any = for_zones.is_some() || for_nodes.is_some();
    any.then_some(EndpointHints { for_nodes, for_zones })
}

/// Compares what should be with the slices that are.
pub fn plan(
    origin: &Origin,
    desired: BTreeMap<Group, Vec<Endpoint>>,
    actual: &[Arc<EndpointSlice>],
    triggered: Option<String>,
) -> Plan {
    let mut plan = Plan::default();
    let mut unused: Vec<Arc<EndpointSlice>> = actual.to_vec();
    for (group, endpoints) in desired {
        let (mine, rest): (Vec<_>, Vec<_>) = unused.into_iter().partition(|slice| is_of_group(slice, &group));
        unused = rest;
        plan_group(&mut plan, origin, &group, endpoints, mine, triggered.as_deref());
    }
    plan.delete.extend(unused);
    plan
}

fn plan_group(
    plan: &mut Plan,
    origin: &Origin,
    group: &Group,
    endpoints: Vec<Endpoint>,
    slices: Vec<Arc<EndpointSlice>>,
    triggered: Option<&str>,
) {
    let mut missing: BTreeMap<String, Endpoint> =
        endpoints.into_iter().map(|endpoint| (identity(&endpoint), endpoint)).collect();
    let is_empty = missing.is_empty();
    let mut kept: Vec<(Arc<EndpointSlice>, Vec<Endpoint>, bool)> = Vec::new();
    for slice in slices {
        let old = slice.endpoints.clone().unwrap_or_default();
        let new: Vec<Endpoint> =
            old.iter().filter_map(|endpoint| missing.remove(&identity(endpoint))).collect();
        let changed = new != old || !has_metadata(&slice, origin);
        kept.push((slice, new, changed));
    }
    let mut missing: Vec<Endpoint> = missing.into_values().collect();
    for (_, endpoints, _) in kept.iter_mut().filter(|(_, _, changed)| *changed) {
        let room = origin.endpoints_max.saturating_sub(endpoints.len()).min(missing.len());
        endpoints.extend(missing.drain(..room));
    }
    let fits = |(_, endpoints, _): &&mut (Arc<EndpointSlice>, Vec<Endpoint>, bool)| {
        endpoints.len() + missing.len() <= origin.endpoints_max
    };
    if !missing.is_empty()
        && let Some((_, endpoints, changed)) =
            kept.iter_mut().filter(fits).max_by_key(|(_, endpoints, _)| endpoints.len())
    {
        endpoints.append(&mut missing);
        *changed = true;
    }
    for chunk in missing.chunks(origin.endpoints_max) {
        plan.create.push(make(origin, group, chunk.to_vec(), triggered));
    }
    let mut has_placeholder = !is_empty;
    if is_empty && kept.is_empty() {
        plan.create.push(make(origin, group, Vec::new(), triggered));
    }
    for (slice, endpoints, changed) in kept {
        if endpoints.is_empty() && has_placeholder {
            plan.delete.push(slice);
            continue;
        }
        has_placeholder = true;
        if changed {
            plan.update.push(rewrite(origin, &slice, endpoints, triggered));
        }
    }
}

/// Endpoints are the same over time if they are the same pod at the same address.
fn identity(endpoint: &Endpoint) -> String {
    let uid = endpoint.target_ref.as_ref().and_then(|target| target.uid.as_deref()).unwrap_or_default();
    format!("{}/{uid}", endpoint.addresses.join(","))
}

fn is_of_group(slice: &EndpointSlice, group: &Group) -> bool {
    slice.address_type == group.address_type && ports_of(slice) == group.ports
}

fn ports_of(slice: &EndpointSlice) -> Vec<Port> {
    let ports = slice.ports.iter().flatten().map(|port| Port {
        name: port.name.clone().unwrap_or_default(),
        protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()),
        port: port.port.unwrap_or(0),
        app_protocol: port.app_protocol.clone(),
    });
    let mut ports: Vec<Port> = ports.collect();
    ports.sort();
    ports
}

fn has_metadata(slice: &EndpointSlice, origin: &Origin) -> bool {
    let annotated = origin.annotations.as_ref().is_none_or(|annotations| {
        let others = slice.annotations().iter().filter(|(key, _)| *key != services::TRIGGER_TIME);
        others.eq(annotations)
    });
    annotated && *slice.labels() == origin.labels && crate::store::owner_uid(slice) == Some(&origin.owner.uid)
}

/// The annotations to write over `old`.
fn annotations(
    origin: &Origin,
    old: &BTreeMap<String, String>,
    triggered: Option<&str>,
) -> BTreeMap<String, String> {
    let mut annotations = origin.annotations.clone().unwrap_or_else(|| old.clone());
    if let Some(at) = triggered {
        annotations.insert(services::TRIGGER_TIME.to_owned(), at.to_owned());
    }
    annotations
}

fn make(origin: &Origin, group: &Group, endpoints: Vec<Endpoint>, triggered: Option<&str>) -> EndpointSlice {
    let ports = group.ports.iter().map(|port| EndpointPort {
        name: Some(port.name.clone()),
        protocol: Some(port.protocol.clone()),
        port: Some(port.port),
        app_protocol: port.app_protocol.clone(),
    });
    EndpointSlice {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", origin.name)),
            namespace: origin.namespace.clone(),
            labels: Some(origin.labels.clone()),
            annotations: Some(annotations(origin, &BTreeMap::new(), triggered)).filter(|it| !it.is_empty()),
            owner_references: Some(vec![origin.owner.clone()]),
            ..ObjectMeta::default()
        },
        address_type: group.address_type.to_owned(),
        endpoints: Some(endpoints),
        ports: Some(ports.collect()),
    }
}

fn rewrite(
    origin: &Origin,
    slice: &EndpointSlice,
    endpoints: Vec<Endpoint>,
    triggered: Option<&str>,
) -> EndpointSlice {
    let mut slice = slice.clone();
    slice.metadata.labels = Some(origin.labels.clone());
    slice.metadata.owner_references = Some(vec![origin.owner.clone()]);
    slice.metadata.annotations = Some(annotations(origin, slice.annotations(), triggered));
    slice.endpoints = Some(endpoints);
    slice
}

/// The EndpointSlice controller.
pub struct Controller {
    cluster: Arc<Cluster>,
}

/// Makes the controller and the queue that feeds it.
pub fn new(cluster: &Arc<Cluster>) -> (Arc<Controller>, Arc<Queue>) {
    let queue = Arc::new(Queue::default());
    services::enqueue_services(cluster, &queue);
    let dirty = queue.clone();
    cluster.endpoint_slices.subscribe(move |old, new| {
        for slice in [old, new].into_iter().flatten().filter(|slice| is_ours(slice)) {
            if let Some(service) = slice.labels().get(SERVICE_NAME) {
                dirty.add(Key::new(slice.namespace().unwrap_or_default(), service.clone()));
            }
        }
    });
    let (dirty, services) = (queue.clone(), cluster.services.clone());
    cluster.nodes.subscribe(move |old, new| {
        // A new node's zone is not known to any endpoint yet, since its pods follow it.
        if old.zip(new).is_some_and(|(old, new)| zone_of(old) != zone_of(new)) {
            services.all().iter().for_each(|service| dirty.add(Key::of(&**service)));
        }
    });
    (Arc::new(Controller { cluster: cluster.clone() }), queue)
}

fn is_ours(slice: &EndpointSlice) -> bool {
    slice.labels().get(MANAGED_BY).is_some_and(|manager| manager == MANAGER)
}

fn zone_of(node: &Node) -> Option<String> {
    node.labels().get("topology.kubernetes.io/zone").cloned()
}

impl Reconcile for Controller {
    const NAME: &'static str = "endpointslice-controller";

    async fn reconcile(&self, key: &Key) -> Result {
        let Some(service) = self.cluster.services.get(key) else { return Ok(Next::Change) };
        if !services::is_selecting(&service) || service.metadata.deletion_timestamp.is_some() {
            return Ok(Next::Change);
        }
        let backends = services::backends(&service, &self.cluster.pods);
        let zone = |node: &str| zone_of(&*self.cluster.nodes.get(&Key::cluster(node))?);
        let triggered = services::triggered_at(&service, &backends).map(|at| at.to_string());
        let plan = plan(
            &Origin::of(&service),
            desired(&service, &backends, zone),
            &slices_of(&self.cluster.endpoint_slices, key, MANAGER),
            triggered,
        );
        apply(&self.cluster, &key.namespace, plan).await?;
        Ok(Next::Change)
    }
}

/// The slices of a Service that `manager` maintains.
pub fn slices_of(slices: &Store<EndpointSlice>, service: &Key, manager: &str) -> Vec<Arc<EndpointSlice>> {
    let mut slices = slices.in_namespace(&service.namespace);
    slices.retain(|slice| {
        slice.labels().get(MANAGED_BY).is_some_and(|by| by == manager)
            && slice.labels().get(SERVICE_NAME) == Some(&service.name)
            && slice.metadata.deletion_timestamp.is_none()
    });
    slices
}

/// Writes what is planned.
pub async fn apply(cluster: &Cluster, namespace: &str, plan: Plan) -> Result<()> {
    let api = Api::<EndpointSlice>::namespaced(cluster.client.clone(), namespace);
    for slice in plan.create {
        match api.create(&PostParams::default(), &slice).await {
            Ok(created) => cluster.endpoint_slices.observe(&created),
            Err(error) if crate::replica_set::in_terminating_namespace(&error) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
    for slice in plan.update {
        let written = api.replace(&slice.name_any(), &PostParams::default(), &slice).await?;
        cluster.endpoint_slices.observe(&written);
    }
    for slice in plan.delete {
        found(api.delete(&slice.name_any(), &DeleteParams::default()).await)?;
        cluster.endpoint_slices.forget(&Key::of(&*slice), &slice.uid().unwrap_or_default());
    }
    Ok(())
}

#[cfg(test)]
mod tests;
