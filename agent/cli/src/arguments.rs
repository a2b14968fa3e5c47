//! What `seaway` takes on its command line.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnetwork::IpNetwork;

/// Asks the Seaway agent of this node, or of another, what it routes, balances and runs.
#[derive(Debug, Parser)]
#[command(name = "seaway", version, propagate_version = true)]
pub struct Arguments {
    /// The agent's socket.
    #[arg(long, global = true, env = "SEAWAY_SOCKET", default_value = "/run/seaway/agent.sock")]
    pub socket: PathBuf,
    /// Asks the agent of this node by way of the API server and its kubelet, from anywhere: that takes the right to get
    /// nodes/proxy.
    #[arg(long, global = true, value_parser = node_name, conflicts_with = "socket")]
    pub node: Option<String>,
    /// The API server for --node and --all-nodes; as kubectl finds it where there is none.
    #[arg(long, global = true, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// How answers are shown.
    #[arg(short, long, global = true, value_enum, default_value = "table")]
    pub output: Output,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// The columns that matter most.
    Table,
    /// All columns.
    Wide,
    /// What the agent answered.
    Json,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// The agent itself: is it ready, and if not, why.
    Status,
    /// BGP peers and the state of their sessions.
    #[command(subcommand)]
    Peer(PeerCommand),
    /// Routes: learned, chosen, in the kernel.
    #[command(subcommand)]
    Route(RouteCommand),
    /// Why a BGP peer is not told of a destination; or that it is, and of which path.
    WhyNot {
        /// The destination, such as 10.244.1.0/26.
        prefix: IpNetwork,
        /// The peer's address, as in `seaway peer list`.
        #[arg(long)]
        peer: IpAddr,
    },
    /// Whether the layers of this node agree: objects of the API, chosen routes (RIB), the agent, the kernel's routes
    /// (FIB) and links, the maps of the datapath (BPF). Ends with 1 where they do not, and with 2 where nothing could be
    /// asked.
    Diff {
        /// Asks all nodes, each of which may differ.
        #[arg(long, conflicts_with_all = ["node", "socket"])]
        all_nodes: bool,
    },
    /// What changed on this node, when and why: sessions, routes, Services, pods, policies, warnings. It goes back to the agent's start,
    /// or 2,048 events.
    Journal {
        /// Only events of this kind.
        #[arg(long, value_enum)]
        kind: Option<JournalKind>,
        /// Only events that name this: an address, a prefix, a pod, a Service.
        #[arg(long, value_parser = word)]
        about: Option<String>,
        /// The newest of them; 0 for all.
        #[arg(long, default_value_t = 100)]
        limit: usize,
    },
    /// Services as the datapath balances them.
    #[command(subcommand)]
    Service(ServiceCommand),
    /// Connections through Services, as packets see them.
    #[command(subcommand)]
    Flow(FlowCommand),
    /// The maps of the datapath: how full they are, and what is in them.
    #[command(subcommand)]
    Map(MapCommand),
    /// Address blocks of this node.
    #[command(subcommand)]
    Block(BlockCommand),
    /// Pods of this node and their links.
    #[command(subcommand)]
    Pod(PodCommand),
    /// NetworkPolicies, as they are in force on this node.
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// What the datapath has counted.
    Counters,
    /// How many packets were dropped, by reason, or the drops as they occur.
    Drop {
        /// Shows each drop when it occurs, until interrupted. JSON is one object per line.
        #[arg(short, long)]
        follow: bool,
    },
}

/// What an event of the journal is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum JournalKind {
    Peer,
    Route,
    Service,
    Pod,
    Policy,
    Node,
    Warning,
}

impl JournalKind {
    pub fn word(self) -> &'static str {
        match self {
            Self::Peer => "peer",
            Self::Route => "route",
            Self::Service => "service",
            Self::Pod => "pod",
            Self::Policy => "policy",
            Self::Node => "node",
            Self::Warning => "warning",
        }
    }
}

/// As a Node may be called (RFC 1123).
fn node_name(text: &str) -> Result<String, String> {
    let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        return Ok(text.to_owned());
    }
    Err("a node's name has lower case letters, digits, - and . only".to_owned())
}

/// What can stand in a page's name.
fn word(text: &str) -> Result<String, String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-._:/".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        return Ok(text.to_owned());
    }
    Err("letters, digits and -._:/ are looked for".to_owned())
}

#[derive(Debug, Subcommand)]
pub enum PeerCommand {
    /// All peers.
    List,
    /// One peer with all that is known of it: its session, the path to it, what happened.
    Show { address: IpAddr },
}

#[derive(Debug, Subcommand)]
pub enum RouteCommand {
    /// All destinations, each with its best path.
    List,
    /// Every path to a destination, and why the best is the best.
    Show {
        /// The destination, such as 10.244.1.0/26.
        prefix: IpNetwork,
    },
}

#[derive(Debug, Subcommand)]
pub enum ServiceCommand {
    /// All Services, one line for each address and port.
    List {
        /// Only those of this namespace.
        #[arg(short, long)]
        namespace: Option<String>,
    },
    /// One Service with its backends.
    Show {
        name: String,
        #[arg(short, long, default_value = "default")]
        namespace: String,
    },
}

#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Those that select pods of this node.
    List {
        /// Only those of this namespace.
        #[arg(short, long)]
        namespace: Option<String>,
    },
    /// How a pod of this node is isolated, by which policies, and what is allowed from and to whom.
    Show {
        #[arg(value_parser = word)]
        pod: String,
        #[arg(short, long, default_value = "default", value_parser = word)]
        namespace: String,
    },
}

#[derive(Debug, Subcommand)]
pub enum FlowCommand {
    /// All flows that conntrack holds, or those that are asked for.
    List(FlowFilter),
    /// Flows with all that is known of them: state, ages, timeout, what packets of either side become.
    Show(FlowFilter),
}

/// Flows that fit all of these.
#[derive(Clone, Debug, Default, Args)]
pub struct FlowFilter {
    /// To or from this pod of the node: [NAMESPACE/]NAME.
    #[arg(long, value_parser = object_name)]
    pub pod: Option<String>,
    /// Through this Service: [NAMESPACE/]NAME[:PORT-NAME].
    #[arg(long, value_parser = object_name)]
    pub service: Option<String>,
    /// With this address at any end.
    #[arg(long)]
    pub address: Option<IpAddr>,
    /// From this address and port.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub client: Option<SocketAddr>,
    /// To this address and port of a Service.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub frontend: Option<SocketAddr>,
    /// To this address and port of a backend.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub backend: Option<SocketAddr>,
    #[arg(long, ignore_case = true, value_parser = ["TCP", "UDP", "SCTP"])]
    pub protocol: Option<String>,
    /// So many at most; 0 for all.
    #[arg(long, default_value_t = LIMIT)]
    pub limit: usize,
}

#[derive(Debug, Subcommand)]
pub enum MapCommand {
    /// All maps: entries, capacity, memory.
    List,
    /// The elements of a map, with the names of what they stand for. JSON is one object per line.
    Dump {
        /// Such as FRONTENDS_2, or FRONTENDS for the newest layout.
        #[arg(value_parser = map_name)]
        name: String,
        /// Only elements with this address, or with a backend that has it.
        #[arg(long)]
        address: Option<IpAddr>,
        /// So many at most; 0 for all.
        #[arg(long, default_value_t = LIMIT)]
        limit: usize,
    },
}

/// What fits a screen or two many times over, and no memory's end.
const LIMIT: usize = 1000;

/// With its namespace, `default` where none is named.
fn object_name(text: &str) -> Result<String, String> {
    let is_plain = |name: &str| {
        !name.is_empty()
            && name.chars().all(|letter| letter.is_ascii_alphanumeric() || "-.:".contains(letter))
    };
    let (namespace, name) = text.split_once('/').unwrap_or(("default", text));
    if is_plain(namespace) && is_plain(name) {
        Ok(format!("{namespace}/{name}"))
    } else {
        Err("want NAME or NAMESPACE/NAME".to_owned())
    }
}

fn map_name(text: &str) -> Result<String, String> {
    if !text.is_empty() && text.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '_') {
        Ok(text.to_owned())
    } else {
        Err("the name of a map has letters, digits and underscores only; `seaway map list` has all"
            .to_owned())
    }
}

#[derive(Debug, Subcommand)]
pub enum BlockCommand {
    /// All blocks, with how full they are.
    List,
}

#[derive(Debug, Subcommand)]
pub enum PodCommand {
    /// All pods that have an address.
    List {
        /// Only those of this namespace.
        #[arg(short, long)]
        namespace: Option<String>,
    },
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn options_stand_before_or_after_the_command() {
        for line in ["seaway -o wide --socket /s peer list", "seaway peer list -o wide --socket /s"] {
            let arguments = Arguments::try_parse_from(line.split(' ')).unwrap();
            assert_eq!(arguments.output, Output::Wide);
            assert_eq!(arguments.socket, PathBuf::from("/s"));
        }
    }

    #[test]
    fn names_get_their_namespace_and_what_is_none_is_refused_with_a_reason() {
        let flow = |line: &str| Arguments::try_parse_from(format!("seaway flow show {line}").split(' '));
        let Ok(Arguments { command: Command::Flow(FlowCommand::Show(filter)), .. }) =
            flow("--pod web-1 --service kube-system/kube-dns:dns --protocol udp --limit 0")
        else {
            panic!("flow show")
        };
        assert_eq!(filter.pod.as_deref(), Some("default/web-1"));
        assert_eq!(filter.service.as_deref(), Some("kube-system/kube-dns:dns"));
        assert_eq!((filter.protocol.as_deref(), filter.limit), (Some("udp"), 0));
        let refusal = |line: &str| flow(line).unwrap_err().to_string();
        assert!(refusal("--pod a/b/c").contains("want NAME or NAMESPACE/NAME"), "{}", refusal("--pod a/b/c"));
        assert!(
            refusal("--client 10.0.0.1").contains("invalid socket address"),
            "{}",
            refusal("--client 10.0.0.1")
        );
        assert!(refusal("--address 10.0.0.256").contains("10.0.0.256"));
        assert!(refusal("--protocol icmp").contains("[possible values: TCP, UDP, SCTP]"));
        let refused = Arguments::try_parse_from(["seaway", "map", "dump", "../x"]).unwrap_err().to_string();
        assert!(refused.contains("letters, digits and underscores"), "{refused}");
    }

    #[test]
    fn a_destination_that_is_none_is_refused_at_once() {
        let refused = Arguments::try_parse_from(["seaway", "route", "show", "10.244.1.0/99"]).unwrap_err();
        assert!(refused.to_string().contains("10.244.1.0/99"), "{refused}");
    }
}
