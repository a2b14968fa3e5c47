//! What a NetworkPolicy says, read once.
//!
//! What cannot be read allows nothing: a port or a peer that is none is left out, and a policy whose `podSelector` is none
//! isolates all pods of its namespace and allows them nothing.

use std::{fmt, sync::Arc};

use ebpf_common::Protocol;
use k8s_openapi::{
    api::networking::v1::{IPBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort},
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};

use crate::{blocks::Range, selector::Selector};

#[derive(Debug)]
pub(crate) struct Policy {
    pub(crate) pods: Selector,
    /// `None` where it says nothing of what enters pods.
    pub(crate) ingress: Option<Box<[Rule]>>,
    pub(crate) egress: Option<Box<[Rule]>>,
    /// What could not be read, and where.
    pub(crate) problems: Vec<String>,
}

#[derive(Debug)]
pub(crate) struct Rule {
    /// `None` where it is for everybody.
    pub(crate) peers: Option<Box<[Peer]>>,
    /// `None` where it is for whatever is sent.
    pub(crate) ports: Option<Box<[Ports]>>,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) enum Ports {
    Protocol(Protocol),
    /// The first and the last.
    Numbers(Protocol, u16, u16),
    Named(Protocol, Box<str>),
}

/// Who is at the other end.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) enum Peer {
    Pods { namespaces: Scope, pods: Selector },
    Block(Block),
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) enum Scope {
    /// The policy's own.
    One(Arc<str>),
    Selected(Selector),
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Block {
    pub(crate) range: Range,
    pub(crate) except: Box<[Range]>,
}

impl Peer {
    /// Every pod of the cluster.
    pub(crate) fn all_pods() -> Self {
        Self::Pods { namespaces: Scope::Selected(Selector::default()), pods: Selector::default() }
    }
}

impl Policy {
    pub(crate) fn read(namespace: &Arc<str>, policy: &NetworkPolicy) -> Self {
        let mut reader = Reader { namespace, problems: Vec::new() };
        let Some(spec) = &policy.spec else {
            let problems = vec!["spec: it is missing".to_owned()];
            return Self { pods: Selector::default(), ingress: None, egress: None, problems };
        };
        let pods = reader.selector(spec.pod_selector.as_ref(), "spec.podSelector");
        let mut ingress = Vec::new();
        for (n, rule) in spec.ingress.iter().flatten().enumerate() {
            let at = format!("spec.ingress[{n}]");
            ingress.push(reader.rule(&at, ".from", rule.from.as_deref(), rule.ports.as_deref()));
        }
        let mut egress = Vec::new();
        for (n, rule) in spec.egress.iter().flatten().enumerate() {
            let at = format!("spec.egress[{n}]");
            egress.push(reader.rule(&at, ".to", rule.to.as_deref(), rule.ports.as_deref()));
        }
        let types = spec.policy_types.as_deref().unwrap_or_default();
        for (n, kind) in types.iter().enumerate() {
            if !matches!(kind.as_str(), "Ingress" | "Egress") {
                reader.problems.push(format!("spec.policyTypes[{n}]: there is no {kind:?}"));
            }
        }
        let has = |kind: &str| types.iter().any(|it| it == kind);
        let is_of_ingress = types.is_empty() || has("Ingress");
        let is_of_egress = if types.is_empty() { !egress.is_empty() } else { has("Egress") };
        if pods.is_none() {
            ingress.clear();
            egress.clear();
        }
        Self {
            pods: pods.unwrap_or_default(),
            ingress: is_of_ingress.then(|| ingress.into()),
            egress: is_of_egress.then(|| egress.into()),
            problems: reader.problems,
        }
    }
}

struct Reader<'a> {
    namespace: &'a Arc<str>,
    problems: Vec<String>,
}

impl Reader<'_> {
    fn rule(
        &mut self,
        at: &str,
        of_peers: &str,
        peers: Option<&[NetworkPolicyPeer]>,
        ports: Option<&[NetworkPolicyPort]>,
    ) -> Rule {
        let peers = peers.filter(|peers| !peers.is_empty()).map(|peers| {
            let read = |(n, peer)| self.peer(peer, &format!("{at}{of_peers}[{n}]"));
            peers.iter().enumerate().filter_map(read).collect()
        });
        let ports = ports.filter(|ports| !ports.is_empty()).map(|ports| {
            let read = |(n, port)| self.port(port, &format!("{at}.ports[{n}]"));
            ports.iter().enumerate().filter_map(read).collect()
        });
        Rule { peers, ports }
    }

    /// What is missing selects everything; `None` for what is none.
    fn selector(&mut self, selector: Option<&LabelSelector>, at: &str) -> Option<Selector> {
        let Some(selector) = selector else { return Some(Selector::default()) };
        self.noted(Selector::read(selector).map_err(|problem| format!("{at}.{problem}")))
    }

    fn peer(&mut self, peer: &NetworkPolicyPeer, at: &str) -> Option<Peer> {
        match (&peer.ip_block, &peer.namespace_selector, &peer.pod_selector) {
            (Some(block), None, None) => self.noted(read_block(block, at)).map(Peer::Block),
            (None, None, None) => self.noted(Err(format!("{at}: nobody is named"))),
            (Some(_), _, _) => self.noted(Err(format!("{at}: ipBlock stands beside a selector"))),
            (None, namespaces, pods) => {
                let pods = self.selector(pods.as_ref(), &format!("{at}.podSelector"));
                let namespaces = match namespaces {
                    None => Some(Scope::One(self.namespace.clone())),
                    selector => self
                        .selector(selector.as_ref(), &format!("{at}.namespaceSelector"))
                        .map(Scope::Selected),
                };
                Some(Peer::Pods { namespaces: namespaces?, pods: pods? })
            }
        }
    }

    fn port(&mut self, port: &NetworkPolicyPort, at: &str) -> Option<Ports> {
        self.noted(read_port(port, at))
    }

    fn noted<T>(&mut self, read: Result<T, String>) -> Option<T> {
        read.map_err(|problem| self.problems.push(problem)).ok()
    }
}

fn read_block(block: &IPBlock, at: &str) -> Result<Block, String> {
    let range = |text: &str, at: &str| {
        Range::read(text).ok_or_else(|| format!("{at}: {text:?} is no range of addresses"))
    };
    let whole = range(&block.cidr, &format!("{at}.ipBlock.cidr"))?;
    let mut except = Vec::new();
    for (n, text) in block.except.iter().flatten().enumerate() {
        let at = format!("{at}.ipBlock.except[{n}]");
        let part = range(text, &at)?;
        if !whole.has_inside(&part) {
            return Err(format!("{at}: {part} is no part of {whole}"));
        }
        except.push(part);
    }
    except.sort();
    except.dedup();
    Ok(Block { range: whole, except: except.into() })
}

/// The number of a protocol by its name in the API.
pub fn protocol(name: &str) -> Option<Protocol> {
    match name {
        "TCP" => Some(Protocol::TCP),
        "UDP" => Some(Protocol::UDP),
        "SCTP" => Some(Protocol::SCTP),
        _ => None,
    }
}

fn read_port(port: &NetworkPolicyPort, at: &str) -> Result<Ports, String> {
    let name = port.protocol.as_deref().unwrap_or("TCP");
    let protocol = protocol(name).ok_or_else(|| format!("{at}.protocol: there is no {name:?}"))?;
    let number = |number: i32, field: &str| {
        let is_port = u16::try_from(number).ok().filter(|port| *port > 0);
        is_port.ok_or_else(|| format!("{at}.{field}: {number} is no port"))
    };
    match (&port.port, port.end_port) {
        (None, None) => Ok(Ports::Protocol(protocol)),
        (Some(IntOrString::Int(first)), None) => {
            let first = number(*first, "port")?;
            Ok(Ports::Numbers(protocol, first, first))
        }
        (Some(IntOrString::Int(first)), Some(last)) => {
            let (first, last) = (number(*first, "port")?, number(last, "endPort")?);
            if last < first {
                return Err(format!("{at}.endPort: {last} is below the port, {first}"));
            }
            Ok(Ports::Numbers(protocol, first, last))
        }
        (Some(IntOrString::String(name)), None) => Ok(Ports::Named(protocol, name.as_str().into())),
        (_, Some(_)) => Err(format!("{at}.endPort: it needs a port that is a number")),
    }
}

pub(crate) fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::UDP => "UDP",
        Protocol::SCTP => "SCTP",
        _ => "TCP",
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Protocol(protocol) => f.write_str(protocol_name(*protocol)),
            Self::Numbers(protocol, first, last) if first == last => {
                write!(f, "{} {first}", protocol_name(*protocol))
            }
            Self::Numbers(protocol, first, last) => write!(f, "{} {first}-{last}", protocol_name(*protocol)),
            Self::Named(protocol, name) => write!(f, "{} {name}", protocol_name(*protocol)),
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (namespaces, pods) = match self {
            Self::Pods { namespaces, pods } => (namespaces, pods),
            Self::Block(Block { range, except }) => {
                write!(f, "{range}")?;
                for (n, range) in except.iter().enumerate() {
                    write!(f, "{}{range}", if n == 0 { " except " } else { ", " })?;
                }
                return Ok(());
            }
        };
        if pods.selects_everything() {
            f.write_str("all pods")?
        } else {
            write!(f, "pods {pods}")?
        }
        match namespaces {
            Scope::One(namespace) => write!(f, " in namespace {namespace}"),
            Scope::Selected(selector) if selector.selects_everything() => f.write_str(" in all namespaces"),
            Scope::Selected(selector) => write!(f, " in namespaces {selector}"),
        }
    }
}
