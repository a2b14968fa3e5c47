//! `/v1/diff`: asks all layers what they have, and says where they differ.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bgp::RouteStatus;
use bgp::rib::Source;
use dataplane::datapath;
use dataplane::links::Links;
use dataplane::routes::{self, Target};
use dataplane::services::ServiceMaps;
use ebpf_common::desired;
use ipnetwork::IpNetwork;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::ListParams;
use kube::{Api, Client};
use proxy::{NodeView, Proxy};
use serde_json::{Value, json};
use tokio::sync::watch as signal;

use super::Status;
use crate::diff::{self, Difference, Pod};
use crate::network::Network;
use crate::watch::chain;

/// How long the API server is waited for.
const API_TIME_MAX: Duration = Duration::from_secs(5);
/// A difference is one that is there after this time as well.
const SETTLE_TIME: Duration = Duration::from_millis(300);

/// Where the objects come from that Services are made of.
pub struct Objects {
    pub client: Client,
    /// For whom they are seen.
    pub node: signal::Receiver<NodeView>,
}

/// What was looked at once.
struct Look {
    /// Of each kind of thing, how many were compared.
    compared: Vec<(&'static str, usize)>,
    differences: Vec<Difference>,
    /// Layers that could not be asked, and why.
    unasked: Vec<String>,
}

impl Status {
    pub(super) async fn diff(&self) -> Value {
        let mut look = self.look().await;
        if !look.differences.is_empty() {
            tokio::time::sleep(SETTLE_TIME).await;
            let again = self.look().await;
            look = Look { differences: diff::lasting(look.differences, again.differences), ..again };
        }
        json!({
            "compared": look.compared.into_iter().collect::<HashMap<_, _>>(),
            "differences": look.differences,
            "unasked": look.unasked,
        })
    }

    async fn look(&self) -> Look {
        let mut unasked = Vec::new();
        let objects = match &self.objects {
            None => None,
            Some(objects) => {
                match tokio::time::timeout(API_TIME_MAX, objects.services(&self.network)).await {
                    Ok(Ok(services)) => Some(services),
                    Ok(Err(error)) => {
                        unasked.push(format!("API: {}", chain(&*error)));
                        None
                    }
                    Err(_) => {
                        unasked.push(format!("API: no answer within {} s", API_TIME_MAX.as_secs()));
                        None
                    }
                }
            }
        };
        let chosen = if self.kernel_routes { self.bgp.snapshot().await } else { None };
        let chosen = chosen.map(|snapshot| chosen_of(&snapshot.routes));
        let network = self.network.clone();
        let rest = tokio::task::spawn_blocking(move || look_here(&network, objects, chosen));
        match rest.await.context("comparing").flatten() {
            Ok((compared, differences)) => Look { compared, differences, unasked },
            Err(error) => {
                unasked.push(format!("the node: {}", chain(&*error)));
                Look { compared: Vec::new(), differences: Vec::new(), unasked }
            }
        }
    }
}

impl Objects {
    /// What the API's objects, as they are now, say that the datapath should balance.
    async fn services(&self, network: &Network) -> anyhow::Result<desired::Services> {
        let all = ListParams::default();
        let services: Api<Service> = Api::all(self.client.clone());
        let slices: Api<EndpointSlice> = Api::all(self.client.clone());
        let services = services.list(&all).await.context("listing Services")?;
        let slices = slices.list(&all).await.context("listing EndpointSlices")?;
        let mut proxy = Proxy::new(self.node.borrow().clone());
        services.iter().for_each(|service| proxy.insert_service(service));
        slices.iter().for_each(|slice| proxy.insert_slice(slice));
        proxy.set_host_ports(network.host_ports());
        proxy.update();
        Ok(proxy.desired())
    }
}

/// What the speaker leads to peers, which is all that it gives the agent.
fn chosen_of(routes: &[RouteStatus]) -> HashMap<IpNetwork, Target> {
    let learned = routes.iter().filter(|route| matches!(route.best, Some(Source::Peer(_))));
    let target = |route: &RouteStatus| {
        let mut gateways = route.next_hops.clone();
        gateways.sort_unstable();
        (!gateways.is_empty()).then(|| (route.prefix.into(), Target::Via(Arc::new(gateways))))
    };
    learned.filter_map(target).collect()
}

type Found = (Vec<(&'static str, usize)>, Vec<Difference>);

/// Reads kernel and maps, and compares everything.
fn look_here(
    network: &Network,
    objects: Option<desired::Services>,
    chosen: Option<HashMap<IpNetwork, Target>>,
) -> anyhow::Result<Found> {
    let kernel = routes::read_kernel().context("reading the kernel's routes")?.into_iter().collect();
    let wished: HashMap<IpNetwork, Target> =
        network.routes().into_iter().map(|(destination, target, _)| (destination, target)).collect();
    let mut compared = vec![("routes", wished.len())];
    let mut differences = diff::of_routes(&wished, &kernel);
    if let Some(chosen) = chosen {
        compared.push(("learned", chosen.len()));
        differences.extend(diff::of_rib(chosen, &wished));
    }
    let Some(told) = network.datapath().map(|datapath| (datapath.services(), datapath.maps_dir().to_owned()))
    else {
        return Ok((compared, differences));
    };
    let (told, maps) = told;
    compared.push(("services", told.len()));
    if let Some(objects) = objects {
        compared.push(("objects", objects.len()));
        differences.extend(diff::of_api(&objects, &told));
    }
    differences.extend(diff::of_services(told, ServiceMaps::dump(&maps)?));
    let pods = pods_of(network);
    compared.push(("pods", pods.len()));
    let links = Links::open().and_then(|mut links| links.pods()).context("reading the kernel's links")?;
    let links = links.into_iter().map(|link| (link.name, link.index)).collect();
    let handed: HashMap<IpAddr, u32> = datapath::read_pods(&maps)?.into_iter().collect();
    differences.extend(diff::of_pods(&pods, &links, Some(&handed)));
    Ok((compared, differences))
}

fn pods_of(network: &Network) -> HashMap<IpAddr, Pod> {
    let pod = |pod: crate::network::PodStatus| {
        let owner = &pod.allocation.owner;
        let name = format!("{}/{}", owner.pod_namespace, owner.pod_name);
        (pod.allocation.address, Pod { name, interface: pod.host_interface, index: pod.host_index })
    };
    network.pods().into_iter().map(pod).collect()
}
