//! Every feature of Services, from everywhere, in every way, in a cluster with real agents and a real control plane.
//!
//! A cell is a row of [`rows`], a kind of address, who asks (a pod, a process of the node, a host beyond it), how (by sockets
//! that are given a backend, or by packets alone), in which family (IPv4, IPv6, IPv4 by a socket of IPv6) and over what (TCP, UDP
//! by a socket that is connected, and by one that is not). Backends are on the node that is asked, on another one, or on both.
//! Each answer says who gave it and whom it saw; each client looks at its peer's address. Of the rest:
//!
//! | what | where it is tested | where not |
//! |---|---|---|
//! | a process of the node by packets alone | here: it reaches other nodes' ports, and no Service of its own | it is not served |
//! | SCTP | `datapath::sctp`: pods and hosts beyond, both families, here and there | processes of the node: not served |
//! | ExternalName | `dns`, as it has no packets | |
//! | headless, healthCheckNodePort, affinity's timeout | [`beside`], in both families and all ways | |
//! | graceful drain, stale UDP | `datapath::{continuity, stale}`, `failures::open_flows` | |
//! | /healthz, /livez | `routing::agent`, `cluster::health` | |
//! | no netfilter | `cluster::web` | |
//! | delivery past the stack, routes | `datapath::{delivery, routing}` | |
//! | conntrack: states, ends, room | `datapath::{packets, continuity}`, `datapath::xdp::single` | |
//! | masquerade | `datapath::masquerade` | |
//! | ICMP, path MTU, fragments | `datapath::{errors, packets, program_runs}` | sockets: no packet is translated |
//! | Maglev, weights, least connections | `datapath::balancing`, and that both answer here | |
//! | XDP | `datapath::xdp`: beyond to beyond, the one way that it has | a card's own driver |
//! | direct server return | | not there yet |
//! | programming, restarts, upgrades, sizes | `datapath::{verifier, continuity}`, `failures::open_flows` | |
//!
//! Pitfalls that others met:
//!
//! | what went wrong | where it is tested |
//! |---|---|
//! | UDP sockets stay with a dead backend, or too many are ended | `datapath::stale`, `cluster::health` |
//! | each datagram gets another backend, affinity is lost | here (unconnected UDP), `datapath::{sockets, source_ranges}` |
//! | mounts of the kernel see a rewritten address | the peer's address here; no file system is mounted |
//! | sidecars and virtual machines pass no socket program | here: by packets |
//! | a cgroup that is not the one, or made anew | `datapath::{sockets, verifier}`; not with net_cls of cgroup v1 |
//! | mapped addresses pass the IPv4 hook by | here |
//! | a pod that is its own backend | here, `datapath::packets` |
//! | flows are evicted, half a pair is deleted | `datapath::{continuity, packets, masquerade}` |
//! | ports run out, are shared, are used again, come to two Services with one backend | `datapath::{packets, masquerade, frontends}` |
//! | who ends a flow without right to | `datapath::sctp`; not TCP out of its window |
//! | flags of a flow race between processors | nowhere: the window is a few instructions |
//! | what is handed over skips a step | `datapath::delivery` |
//! | a Service that is made anew, ids that change or are shared | `datapath::{packets, sockets, balancing}` |
//! | errors and checksums inside packets, helpers and lengths | `datapath::{errors, program_runs, routing}`; not datagrams that GRO joined |
//! | rp_filter comes back | nowhere: it is written when an agent starts |
//! | more than one uplink, rules by mark | `datapath::routing`; one uplink |
//! | the agent cuts its own way to the API server, or begins too early | `proxy`'s tests, `failures::open_flows` |
//! | an upgrade loses programs or flows | `datapath::{continuity, verifier}` |
//! | kernel and agent read a value differently, compilers, verifiers | `datapath::verifier`, the tier `emulated` |
//! | policies, tunnels, netkit, BIG TCP, nftables | cannot occur: there are none |

mod asking;
mod beside;
mod rows;
mod scene;

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use self::asking::{Answer, Due, Failure, Ports, Protocol, ask};
use self::rows::{Client, Row, Target, Wanted, rows};
use self::scene::{Scene, address_of, family_addresses, outside_address, port_of};
use crate::netns::NetNs;

/// Questions until every one of several servers has answered: that one of two never does is by chance once in 2^63 times.
const TRIES: usize = 64;
/// Questions that the same server is to answer.
const KEPT: usize = 8;
const FAULTS_SHOWN: usize = 80;

/// Who asks, and what becomes of what it sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    PodBySockets,
    PodByPackets,
    HostBySockets,
    /// A process in no cgroup that is served: no program sees it, but on other nodes.
    HostByPackets,
    Outside,
}

const PLACES: [Place; 5] =
    [Place::PodBySockets, Place::PodByPackets, Place::HostBySockets, Place::HostByPackets, Place::Outside];

impl Place {
    fn client(self) -> Client {
        match self {
            Place::PodBySockets | Place::PodByPackets => Client::Pod,
            Place::HostBySockets | Place::HostByPackets => Client::Host,
            Place::Outside => Client::Outside,
        }
    }

    fn is_by_sockets(self) -> bool {
        matches!(self, Place::PodBySockets | Place::HostBySockets)
    }

    fn pod(self) -> Option<&'static str> {
        match self {
            Place::PodBySockets => Some("client-sockets"),
            Place::PodByPackets => Some("client-packets"),
            _ => None,
        }
    }

    fn netns(self, scene: &Scene) -> NetNs {
        let node = &scene.nodes[0].host;
        match self {
            Place::PodBySockets => scene.pod("client-sockets").netns.within(&scene.cgroups[0]),
            Place::PodByPackets => scene.pod("client-packets").netns.without_cgroup(),
            Place::HostBySockets => node.within(&scene.cgroups[0]),
            Place::HostByPackets => node.without_cgroup(),
            Place::Outside => scene.outside.without_cgroup(),
        }
    }

    fn ports(self, scene: &Scene) -> &Ports {
        match self {
            Place::Outside => &scene.outside_ports,
            _ => &scene.pod(self.pod().unwrap_or("host-here")).ports,
        }
    }

    fn address(self, scene: &Scene, is_v4: bool) -> IpAddr {
        match self.pod() {
            Some(pod) => address_of(scene.pod(pod), is_v4),
            None if self == Place::Outside => outside_address(is_v4),
            None => of_family(&family_addresses(Target::Node, 0), is_v4),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    V4,
    V6,
    /// IPv4 by a socket of IPv6.
    Mapped,
}

const FAMILIES: [Family; 3] = [Family::V4, Family::V6, Family::Mapped];

impl Family {
    fn is_v4(self) -> bool {
        self != Family::V6
    }

    fn shown(self, address: IpAddr) -> IpAddr {
        match (self, address) {
            (Family::Mapped, IpAddr::V4(v4)) => v4.to_ipv6_mapped().into(),
            _ => address,
        }
    }
}

fn of_family(addresses: &[IpAddr], is_v4: bool) -> IpAddr {
    *addresses.iter().find(|address| address.is_ipv4() == is_v4).expect("an address of each family")
}

/// One question to one row.
#[derive(Clone, Copy)]
struct Cell<'a> {
    number: usize,
    row: &'a Row,
    target: Target,
    place: Place,
    family: Family,
    protocol: Protocol,
}

impl fmt::Display for Cell<'_> {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Cell { row, target, place, family, protocol, .. } = self;
        write!(to, "{}: {target:?} from {place:?}, {family:?}, {protocol:?}", row.name)
    }
}

impl Cell<'_> {
    /// What shall come of it; `None` where nobody can tell.
    fn wanted(&self) -> Option<Wanted> {
        let Cell { row, target, place, family, .. } = *self;
        if row.only.is_some_and(|only| place.pod() != Some(only)) {
            return None;
        }
        let is_of_family = row.is_dual_stack || family.is_v4();
        let wanted = match target {
            _ if !is_of_family => Wanted::Nobody,
            Target::There => row.there,
            // Everybody's loopback is its own, and a process that no program sees is alone with its host's.
            Target::Loopback if place != Place::HostBySockets => Wanted::Nobody,
            _ if place == Place::HostByPackets => Wanted::Nobody,
            // A socket is told at once what packets would not be.
            Target::ClusterIp if row.internal == Wanted::Silent && place.is_by_sockets() => Wanted::Refused,
            Target::ClusterIp => row.internal,
            Target::Balancer if row.balancer.is_some() => row.balancer?(place.client()),
            _ if place == Place::Outside => row.beyond,
            _ => row.inside,
        };
        // To a socket that is not connected nobody says that its datagram was refused.
        let is_told = self.protocol != Protocol::Datagram
            || !matches!(wanted, Wanted::Refused | Wanted::Closed | Wanted::Nobody);
        is_told.then_some(wanted)
    }

    fn address(&self) -> SocketAddr {
        let number = if self.target == Target::Node { 0 } else { self.number };
        let address = of_family(&family_addresses(self.target, number), self.family.is_v4());
        SocketAddr::new(self.family.shown(address), port_of(self.target, self.number, self.row))
    }

    /// Under which address the server is to see the client: its own, unless its packets came to a node from beyond it and
    /// went on to another.
    fn seen(&self, scene: &Scene, server: &str) -> IpAddr {
        let is_v4 = self.family.is_v4();
        let entry = usize::from(self.target == Target::There);
        let is_there = server.contains("there");
        let is_beyond = entry == 1 || self.place == Place::Outside;
        if is_beyond && is_there != (entry == 1) {
            return of_family(&family_addresses(Target::Node, entry), is_v4);
        }
        if self.row.only.is_some() && self.place == Place::PodByPackets {
            return self.address().ip().to_canonical();
        }
        self.place.address(scene, is_v4)
    }

    /// What is wrong.
    fn judge(&self, scene: &Scene) -> Option<String> {
        let wanted = self.wanted()?;
        let fault = |got: &dyn fmt::Debug| Some(format!("{self}: wanted {wanted:?}, got {got:?}"));
        let due = match wanted {
            Wanted::Each(_) | Wanted::One(_) | Wanted::Any(_) => Due::Answer,
            Wanted::Nobody if self.target.is_of_service() => Due::Silence,
            Wanted::Silent => Due::Silence,
            Wanted::Refused | Wanted::Closed | Wanted::Nobody | Wanted::Denied => Due::Refusal,
        };
        let ask = || ask(self.place.ports(scene), self.protocol, self.address(), due);
        let failure = match wanted {
            Wanted::Each(servers) => return self.judge_all(scene, servers, ask).and_then(|got| fault(&got)),
            Wanted::One(servers) => return self.judge_kept(scene, servers, ask).and_then(|got| fault(&got)),
            Wanted::Any(servers) => {
                return self.check(scene, servers, ask()).err().and_then(|got| fault(&got));
            }
            _ => match ask() {
                Ok(answer) => return fault(&answer),
                Err(failure) => failure,
            },
        };
        let is_right = match wanted {
            Wanted::Refused => failure.is_refusal(),
            Wanted::Closed => failure.is_refusal() || failure.is_unreachable(),
            Wanted::Nobody => match self.target.is_of_service() {
                true => failure.is_unreachable() || failure.is_silence(),
                false => failure.is_refusal(),
            },
            Wanted::Denied => failure.is_denial(),
            _ => failure.is_silence(),
        };
        if is_right { None } else { fault(&failure) }
    }

    fn judge_all(
        &self,
        scene: &Scene,
        servers: &[&str],
        ask: impl Fn() -> Result<Answer, Failure>,
    ) -> Option<String> {
        let mut answered = BTreeSet::new();
        for _ in 0..TRIES {
            match self.check(scene, servers, ask()) {
                Ok(server) => answered.insert(server),
                Err(got) => return Some(got),
            };
            if answered.len() == servers.len() {
                return None;
            }
        }
        Some(format!("{answered:?} alone"))
    }

    fn judge_kept(
        &self,
        scene: &Scene,
        servers: &[&str],
        ask: impl Fn() -> Result<Answer, Failure>,
    ) -> Option<String> {
        let mut kept = None;
        for _ in 0..KEPT {
            match self.check(scene, servers, ask()) {
                Ok(server) if *kept.get_or_insert(server.clone()) == server => {}
                Ok(server) => return Some(format!("{server} after {kept:?}")),
                Err(got) => return Some(got),
            }
        }
        None
    }

    fn check(
        &self,
        scene: &Scene,
        servers: &[&str],
        answered: Result<Answer, Failure>,
    ) -> Result<String, String> {
        let answer = answered.map_err(|failure| format!("{failure:?}"))?;
        let is_known = servers.contains(&&*answer.server);
        let seen = self.seen(scene, &answer.server);
        if is_known && answer.seen == seen {
            return Ok(answer.server);
        }
        Err(format!("{answer:?}, to be seen as {seen}"))
    }
}

#[test]
fn every_feature_of_services_works_from_everywhere_in_every_way() {
    let rows = rows();
    let began = Instant::now();
    let scene = Scene::new(&rows);
    println!("the scene: {:.1} s", began.elapsed().as_secs_f64());
    let began = Instant::now();
    let (cells, faults) = all_cells(&scene, &rows);
    println!("{cells} cells: {:.1} s", began.elapsed().as_secs_f64());
    let shown: Vec<&String> = faults.iter().take(FAULTS_SHOWN).collect();
    assert!(faults.is_empty(), "{} of {cells} cells: {shown:#?}", faults.len());
    for node in &scene.nodes {
        let agrees = node.agent.seaway("diff");
        assert!(agrees.is_ok(), "{}: {agrees:?}", node.name);
    }
    beside::headless_services_are_names_alone(&scene);
    beside::balancers_find_the_nodes_with_endpoints(&scene, &rows);
    beside::clients_are_forgotten_in_time(&scene);
}

/// Goes through all of them, those of each place, family and protocol one after the other.
fn all_cells(scene: &Scene, rows: &[Row]) -> (usize, Vec<String>) {
    std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for place in PLACES {
            for family in FAMILIES {
                for protocol in Protocol::ALL {
                    threads.push(scope.spawn(move || {
                        place.netns(scene).run(|| cells_of(scene, rows, place, family, protocol))
                    }));
                }
            }
        }
        let mut all = (0, Vec::new());
        for thread in threads {
            let (cells, faults) = thread.join().expect("a thread of cells");
            all.0 += cells;
            all.1.extend(faults);
        }
        all
    })
}

fn cells_of<'a>(
    scene: &Scene,
    rows: &'a [Row],
    place: Place,
    family: Family,
    protocol: Protocol,
) -> (usize, Vec<String>) {
    let of_row = |(number, row): (usize, &'a Row)| {
        row.targets.iter().map(move |target| Cell { number, row, target: *target, place, family, protocol })
    };
    let cells = rows.iter().enumerate().flat_map(of_row).filter(|cell| cell.wanted().is_some());
    let judged: Vec<Option<String>> = cells.map(|cell| cell.judge(scene)).collect();
    (judged.len(), judged.into_iter().flatten().collect())
}
