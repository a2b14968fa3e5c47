//! BGP as the API configures it: what is known of the objects, and what the speaker is told.
//!
//! ```text
//! watches -> Known (kept on disk) -> desired (pure) -> Neighbours; Advertisement; communities
//! ```
//!
//! A change reaches the speaker as peers that differ: no other session notices. What only a new speaker can take, the AS of
//! the node and the port that it listens on, is taken by a new start.

pub mod filters;
mod known;
mod passwords;
mod peers;
mod standing;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use bgp::policy::Community;
use calico::{BgpConfiguration, BgpFilter, BgpPeer};
use ipnetwork::IpNetwork;
use k8s_openapi::api::core::v1::{Node, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use proxy::Advertisement;
use tokio::sync::watch as signal;

use crate::bfd_config;
use crate::bgp_io::Neighbour;
use crate::config::Config;
use crate::persist;
use crate::watch::{Change, Listing};
use known::{Known, NodeFacts};
use passwords::{PasswordKey, Passwords, Reader};
use peers::{Own, Problem};

/// How long what nodes and reflectors told last is gone by when they are silent (RFC 9494), after their restart time: longer
/// than anybody takes to bring reflectors back.
pub const LAST_KNOWN_TIME: Duration = Duration::from_secs(7 * 24 * 3600);

/// The objects as they come.
pub struct Routing {
    known: Known,
    own: Own,
    file: PathBuf,
    configurations: Listing<BgpConfiguration>,
    peers: Listing<BgpPeer>,
    filters: Listing<BgpFilter>,
    wanted: signal::Sender<BTreeSet<PasswordKey>>,
    found: signal::Receiver<Passwords>,
    /// Kinds whose list was complete once.
    listed: BTreeSet<&'static str>,
    problems: BTreeSet<Problem>,
    recorder: Recorder,
}

/// What a change means for others.
#[derive(Debug)]
pub struct Told {
    pub neighbours: BTreeMap<IpAddr, Neighbour>,
    pub advertisement: Advertisement,
    /// Communities by the range of the prefixes that carry them.
    pub communities: Vec<(IpNetwork, Vec<Community>)>,
    pub is_leaving: bool,
    /// Other nodes are there to serve Services when this one is gone.
    pub has_successor: bool,
}

/// What of a speaker cannot be changed while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    pub asn: u32,
    pub port: u16,
}

/// Who the speaker of this node is to be, by what was heard last; the command line says what nobody said.
pub fn identity(config: &Config) -> anyhow::Result<Identity> {
    let known: Known = persist::read(&file(config))?.unwrap_or_default();
    Ok(identity_of(&known, config))
}

fn identity_of(known: &Known, config: &Config) -> Identity {
    Identity {
        asn: known.as_number(&config.node_name).unwrap_or(config.asn),
        port: known.listen_port(&config.node_name).unwrap_or(config.bgp_port),
    }
}

fn file(config: &Config) -> PathBuf {
    config.state_dir.join("routing.json")
}

impl Routing {
    /// Goes on from what was heard last. Panics outside a tokio runtime.
    pub fn new(config: &Config, speaker: Identity, client: Client) -> anyhow::Result<Routing> {
        let passwords_file = config.state_dir.join("bgp-passwords.json");
        let found = signal::Sender::new(passwords::load(&passwords_file)?);
        // What was needed is needed until somebody says otherwise.
        let (wanted, asked) = signal::channel(found.borrow().keys());
        let receiver = found.subscribe();
        let reporter =
            Reporter { controller: "seaway-agent".to_owned(), instance: Some(config.node_name.clone()) };
        let recorder = Recorder::new(client.clone(), reporter);
        tokio::spawn(Reader { client, file: passwords_file, wanted: asked, found }.run());
        Ok(Routing {
            known: persist::read(&file(config))?.unwrap_or_default(),
            own: own(config, speaker),
            file: file(config),
            configurations: Listing::default(),
            peers: Listing::default(),
            filters: Listing::default(),
            wanted,
            found: receiver,
            listed: BTreeSet::new(),
            problems: BTreeSet::new(),
            recorder,
        })
    }

    /// Told when a password has become known, or is known no more.
    pub fn passwords(&self) -> signal::Receiver<Passwords> {
        self.found.clone()
    }

    /// The nodes, with their addresses.
    pub fn addresses(&self) -> BTreeMap<String, Vec<IpAddr>> {
        self.known.nodes.iter().map(|(name, facts)| (name.clone(), facts.addresses.clone())).collect()
    }

    /// Whether a change of nodes means anything here.
    pub fn node(&mut self, change: &Change<Node>) -> bool {
        let nodes = &mut self.known.nodes;
        match change {
            Change::All(all) => set(nodes, all.iter().map(NodeFacts::of).collect()),
            Change::Apply(node) => {
                let (name, facts) = NodeFacts::of(node);
                let is_new = nodes.get(&name) != Some(&facts);
                nodes.insert(name, facts);
                is_new
            }
            Change::Delete(node) => nodes.remove(node.metadata.name.as_deref().unwrap_or_default()).is_some(),
        }
    }

    pub fn configuration(&mut self, event: kube::runtime::watcher::Event<BgpConfiguration>) -> bool {
        let Some(change) = self.configurations.change(event) else { return false };
        let is_first = self.listed.insert("BGPConfiguration");
        let of = |object: &BgpConfiguration| (name(&object.metadata), Some(object.spec.clone()));
        let all = changed(&self.known.configurations, &change, of);
        let bfd = changed(&self.known.bfd_by_configuration, &change, |object| bfd_of(&object.metadata));
        set(&mut self.known.configurations, all) | set(&mut self.known.bfd_by_configuration, bfd) | is_first
    }

    pub fn peer(&mut self, event: kube::runtime::watcher::Event<BgpPeer>) -> bool {
        let Some(change) = self.peers.change(event) else { return false };
        let is_first = self.listed.insert("BGPPeer");
        let of = |object: &BgpPeer| (name(&object.metadata), Some(object.spec.clone()));
        let all = changed(&self.known.peers, &change, of);
        let bfd = changed(&self.known.bfd_by_peer, &change, |object| bfd_of(&object.metadata));
        set(&mut self.known.peers, all) | set(&mut self.known.bfd_by_peer, bfd) | is_first
    }

    pub fn filter(&mut self, event: kube::runtime::watcher::Event<BgpFilter>) -> bool {
        let Some(change) = self.filters.change(event) else { return false };
        let is_first = self.listed.insert("BGPFilter");
        let of = |object: &BgpFilter| (name(&object.metadata), Some(object.spec.clone()));
        let all = changed(&self.known.filters, &change, of);
        set(&mut self.known.filters, all) || is_first
    }

    /// Where addresses of pods are; whether that was a change.
    pub fn set_cluster_ranges(&mut self, mut ranges: Vec<IpNetwork>) -> bool {
        ranges.sort();
        ranges.dedup();
        let is_new = ranges != self.own.cluster_ranges;
        self.own.cluster_ranges = ranges;
        is_new
    }

    /// What all that is known means now; what is new of it is written down. The agent must start anew where the speaker's
    /// identity is not what it should be.
    pub fn tell(&mut self, config: &Config) -> (Told, Identity) {
        if let Err(error) = persist::write(&self.file, &self.known) {
            tracing::warn!("{error:#}");
        }
        let passwords = self.found.borrow().clone();
        let mut desired = peers::desired(&self.known, &self.own, &passwords);
        let (values, problems) = self.known.communities(&self.own.name);
        desired.problems.extend(problems.into_iter().map(|message| Problem {
            kind: "BGPConfiguration",
            name: "default".to_owned(),
            message,
        }));
        self.wanted.send_if_modified(|wanted| {
            let changed = *wanted != desired.passwords;
            wanted.clone_from(&desired.passwords);
            changed
        });
        self.report(desired.problems);
        let resolve =
            |values: Vec<String>| values.iter().filter_map(|text| filters::community(text)).collect();
        let told = Told {
            neighbours: desired.neighbours,
            advertisement: self.known.advertisement(&self.own.name),
            communities: values.into_iter().map(|(range, values)| (range, resolve(values))).collect(),
            is_leaving: self.known.is_leaving(&self.own.name),
            has_successor: self.known.has_successor(&self.own.name),
        };
        (told, identity_of(&self.known, config))
    }

    /// Says what is newly wrong, in the log and as Events.
    fn report(&mut self, problems: BTreeSet<Problem>) {
        // One kind may name what is in the list of another, which is on its way.
        if self.listed.len() < 3 {
            return;
        }
        for Problem { kind, name, message } in problems.difference(&self.problems) {
            tracing::warn!(kind, name, message, "not carried out as it is written");
            let recorder = self.recorder.clone();
            let about = ObjectReference {
                api_version: Some("projectcalico.org/v3".to_owned()),
                kind: Some((*kind).to_owned()),
                name: Some(name.clone()),
                ..ObjectReference::default()
            };
            let event = Event {
                type_: EventType::Warning,
                reason: "NotCarriedOut".to_owned(),
                note: Some(message.clone()),
                action: "Configure".to_owned(),
                secondary: None,
            };
            tokio::spawn(async move {
                if let Err(error) = recorder.publish(&event, &about).await {
                    tracing::debug!(%error, "writing an event about BGP");
                }
            });
        }
        self.problems = problems;
    }
}

fn own(config: &Config, speaker: Identity) -> Own {
    Own {
        name: config.node_name.clone(),
        addresses: config.node_ips.clone(),
        asn: speaker.asn,
        default_asn: config.asn,
        port: speaker.port,
        default_port: config.bgp_port,
        static_peers: config.bgp_peers.clone(),
        file_peers: config.bgp_peer_file.clone().unwrap_or_default().0,
        cluster_ranges: config.cluster_cidrs.clone(),
    }
}

fn name(metadata: &ObjectMeta) -> String {
    metadata.name.clone().unwrap_or_default()
}

fn bfd_of(metadata: &ObjectMeta) -> (String, Option<String>) {
    let annotation = metadata.annotations.as_ref().and_then(|all| all.get(bfd_config::ANNOTATION));
    (name(metadata), annotation.cloned())
}

/// What is known after a change, of objects that have it.
fn changed<K, V: Clone>(
    known: &BTreeMap<String, V>,
    change: &Change<K>,
    of: impl Fn(&K) -> (String, Option<V>),
) -> BTreeMap<String, V> {
    let mut known = known.clone();
    match change {
        Change::All(all) => {
            known = all.iter().filter_map(|object| of(object).1.map(|value| (of(object).0, value))).collect();
        }
        Change::Apply(object) => match of(object) {
            (name, Some(value)) => drop(known.insert(name, value)),
            (name, None) => drop(known.remove(&name)),
        },
        Change::Delete(object) => drop(known.remove(&of(object).0)),
    }
    known
}

/// Whether that was a change.
fn set<V: PartialEq>(known: &mut BTreeMap<String, V>, all: BTreeMap<String, V>) -> bool {
    let is_new = *known != all;
    *known = all;
    is_new
}
