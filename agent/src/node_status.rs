//! Answers to CalicoNodeStatus objects that name this node: its speaker, its peers and its routes, at once and then at each
//! period, for as long as the object is there.
//!
//! What a class says that is not asked for any more goes with the next answer. Gateways and links are Calico's words: one
//! entry for each gateway, and `N/A` where there is none.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bgp::rib::Source;
use bgp::{RouteStatus, State};
use calico::{CalicoNodeStatus, CalicoNodeStatusSpec};
use dataplane::links::Links;
use dataplane::routes::Target;
use ipnetwork::IpNetwork;
use jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};

use crate::bgp_io::{self, Origin, Snapshot};
use crate::network::Network;
use crate::watch::{self, Change, Listing};

/// Routes of a family that an answer holds at most: an object has limits.
const ROUTES_MAX: usize = 5000;
/// Until an answer that the API server did not take is given again.
const RETRY: Duration = Duration::from_secs(5);

/// Who answers.
pub struct Node {
    pub name: String,
    pub addresses: Vec<IpAddr>,
    pub router_id: Ipv4Addr,
    pub network: Arc<Network>,
    pub bgp: bgp_io::Handle,
    pub started_at: SystemTime,
}

struct Asked {
    spec: CalicoNodeStatusSpec,
    due: Option<Instant>,
}

/// Answers for ever.
pub async fn run(client: Client, node: Node) {
    let api: Api<CalicoNodeStatus> = Api::all(client);
    let (sender, mut events) = watch::channel();
    watch::spawn(api.clone(), watcher::Config::default(), sender, |event| event);
    let mut listing = Listing::default();
    let mut asked: BTreeMap<String, Asked> = BTreeMap::new();
    loop {
        let due = asked.values().filter_map(|asked| asked.due).min();
        let timer = async {
            match due {
                Some(due) => tokio::time::sleep_until(due.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            event = events.recv() => match event {
                Some(event) => {
                    if let Some(change) = listing.change(event) {
                        follow(&mut asked, change, &node.name);
                    }
                }
                None => return,
            },
            () = timer => {
                for (name, asked) in asked.iter_mut().filter(|(_, asked)| asked.is_due()) {
                    asked.due = node.answer(&api, name, &asked.spec).await;
                }
            }
        }
    }
}

/// Takes note of who asks; an answer is due where the question is new. Answers come back as changes that change no question.
fn follow(asked: &mut BTreeMap<String, Asked>, change: Change<CalicoNodeStatus>, node: &str) {
    let mut ask = |object: &CalicoNodeStatus| {
        let (name, spec) = (object.name_any(), object.spec.clone());
        if spec.node != node {
            asked.remove(&name);
        } else if asked.get(&name).is_none_or(|asked| asked.spec != spec) {
            // Zero stops the answers; Calico gives none even at first.
            let due = (spec.update_period_seconds != 0).then(Instant::now);
            asked.insert(name, Asked { spec, due });
        }
    };
    match change {
        Change::All(all) => {
            all.iter().for_each(&mut ask);
            let names: BTreeSet<String> = all.iter().map(ResourceExt::name_any).collect();
            asked.retain(|name, _| names.contains(name));
        }
        Change::Apply(object) => ask(&object),
        Change::Delete(object) => drop(asked.remove(&object.name_any())),
    }
}

impl Asked {
    fn is_due(&self) -> bool {
        self.due.is_some_and(|due| due <= Instant::now())
    }
}

impl Node {
    /// Returns when to answer next.
    async fn answer(
        &self,
        api: &Api<CalicoNodeStatus>,
        name: &str,
        spec: &CalicoNodeStatusSpec,
    ) -> Option<Instant> {
        let began = Instant::now();
        let Some(snapshot) = self.bgp.snapshot().await else { return Some(began + RETRY) };
        let network = self.network.clone();
        let kernel = tokio::task::spawn_blocking(move || (network.routes(), link_names())).await;
        let Ok((kernel, links)) = kernel else { return Some(began + RETRY) };
        let has = |class: &str| spec.classes.iter().any(|asked| asked == class);
        let status = json!({
            "lastUpdated": Timestamp::now().to_string(),
            "agent": has("Agent").then(|| self.agent(&snapshot)),
            "bgp": has("BGP").then(|| peers(&snapshot)),
            "routes": has("Routes").then(|| routes(&snapshot, &kernel, &links)),
        });
        let patch = Patch::Merge(json!({ "status": status }));
        match api.patch_status(name, &PatchParams::default(), &patch).await {
            Ok(_) => Some(began + Duration::from_secs(u64::from(spec.update_period_seconds))),
            // Its end is on its way here.
            Err(kube::Error::Api(status)) if status.code == 404 => None,
            Err(error) => {
                tracing::warn!(name, error = watch::chain(&error), "answering a CalicoNodeStatus");
                Some(began + RETRY)
            }
        }
    }

    fn agent(&self, snapshot: &Snapshot) -> Value {
        let of_family = |v4: bool| {
            if !self.addresses.iter().any(|address| address.is_ipv4() == v4) {
                return json!({ "state": "NotReady" });
            }
            json!({
                "state": if snapshot.converged { "Ready" } else { "NotReady" },
                "version": concat!("seaway ", env!("CARGO_PKG_VERSION")),
                "routerID": self.router_id,
                "lastBootTime": time(Timestamp::try_from(self.started_at).ok()),
                "lastReconfigurationTime": time(snapshot.configured_at.and_then(at)),
            })
        };
        json!({ "birdV4": of_family(true), "birdV6": of_family(false) })
    }
}

fn time(at: Option<Timestamp>) -> Option<String> {
    at.map(|at| at.to_string())
}

fn at(instant: Instant) -> Option<Timestamp> {
    Timestamp::try_from(SystemTime::now().checked_sub(instant.elapsed())?).ok()
}

fn link_names() -> BTreeMap<u32, String> {
    let links = Links::open().and_then(|mut links| links.list()).unwrap_or_default();
    links.into_iter().map(|link| (link.index, link.name)).collect()
}

fn word(origin: Origin) -> &'static str {
    match origin {
        Origin::Mesh => "NodeMesh",
        Origin::Node => "NodePeer",
        Origin::Global => "GlobalPeer",
    }
}

fn origin(snapshot: &Snapshot, peer: IpAddr) -> Origin {
    snapshot.origins.get(&peer).copied().unwrap_or_default()
}

fn peers(snapshot: &Snapshot) -> Value {
    let of = |v4: bool| snapshot.peers.iter().filter(move |peer| peer.address.is_ipv4() == v4);
    let established = |v4: bool| of(v4).filter(|peer| peer.state == State::Established).count();
    let list = |v4: bool| -> Vec<Value> {
        let since = |peer: &bgp::PeerStatus| peer.history.last().and_then(|last| at(last.at));
        let row = |peer: &bgp::PeerStatus| {
            json!({
                "peerIP": peer.address,
                "type": word(origin(snapshot, peer.address)),
                "state": peer.state.to_string(),
                "since": time(since(peer)),
            })
        };
        of(v4).map(row).collect()
    };
    json!({
        "numberEstablishedV4": established(true),
        "numberNotEstablishedV4": of(true).count() - established(true),
        "numberEstablishedV6": established(false),
        "numberNotEstablishedV6": of(false).count() - established(false),
        "peersV4": list(true),
        "peersV6": list(false),
    })
}

/// A destination, where it is to lead, and whether the kernel has it.
type Kernel = (IpNetwork, Target, bool);

/// Those that the node wants in its kernel, and those that the speaker knows besides.
fn routes(snapshot: &Snapshot, kernel: &[Kernel], links: &BTreeMap<u32, String>) -> Value {
    let known: BTreeMap<IpNetwork, &RouteStatus> =
        snapshot.routes.iter().map(|route| (route.prefix.into(), route)).collect();
    let in_kernel: BTreeSet<IpNetwork> = kernel.iter().map(|(destination, ..)| *destination).collect();
    let learned_from = |destination: &IpNetwork| match known.get(destination).and_then(|route| route.best) {
        Some(Source::Peer(peer)) if origin(snapshot, peer) == Origin::Mesh => {
            json!({ "sourceType": "NodeMesh", "peerIP": peer })
        }
        Some(Source::Peer(peer)) => json!({ "sourceType": "BGPPeer", "peerIP": peer }),
        _ => json!({ "sourceType": "Static" }),
    };
    let row = |destination: &IpNetwork, kind: &str, gateway: Option<&IpAddr>| {
        json!({
            "type": kind,
            "destination": destination,
            "gateway": gateway.map_or_else(|| "N/A".to_owned(), IpAddr::to_string),
            "learnedFrom": learned_from(destination),
        })
    };
    let mut all: Vec<(IpNetwork, Value)> = Vec::new();
    for (destination, target, is_installed) in kernel {
        let kind = if *is_installed { "FIB" } else { "RIB" };
        match target {
            Target::Via(gateways) => {
                all.extend(gateways.iter().map(|to| (*destination, row(destination, kind, Some(to)))));
            }
            Target::Link(index) => {
                let mut route = row(destination, kind, None);
                route["interface"] = json!(links.get(index));
                route["learnedFrom"] = json!({ "sourceType": "Kernel" });
                all.push((*destination, route));
            }
            Target::Blackhole | Target::Unreachable => {
                let mut route = row(destination, kind, None);
                route["interface"] = json!(target.to_string());
                all.push((*destination, route));
            }
        }
    }
    for (destination, route) in known.iter().filter(|(destination, _)| !in_kernel.contains(destination)) {
        let gateway = route.next_hops.first();
        all.push((*destination, row(destination, "RIB", gateway)));
    }
    let of = |v4: bool| -> Vec<&Value> {
        let family = all.iter().filter(|(destination, _)| destination.is_ipv4() == v4);
        family.map(|(_, route)| route).take(ROUTES_MAX).collect()
    };
    json!({ "routesV4": of(true), "routesV6": of(false) })
}
