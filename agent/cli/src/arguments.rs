//! What `seaway` takes on its command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};
use ipnetwork::IpNetwork;

/// Asks the Seaway agent of this node what it routes, balances and runs.
#[derive(Debug, Parser)]
#[command(name = "seaway", version, propagate_version = true)]
pub struct Arguments {
    /// The agent's socket.
    #[arg(long, global = true, env = "SEAWAY_SOCKET", default_value = "/run/seaway/agent.sock")]
    pub socket: PathBuf,
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
    /// Services as the datapath balances them.
    #[command(subcommand)]
    Service(ServiceCommand),
    /// Connections through Services, as packets see them.
    #[command(subcommand)]
    Flow(FlowCommand),
    /// Address blocks of this node.
    #[command(subcommand)]
    Block(BlockCommand),
    /// Pods of this node and their links.
    #[command(subcommand)]
    Pod(PodCommand),
    /// What the datapath has counted.
    Counters,
}

#[derive(Debug, Subcommand)]
pub enum PeerCommand {
    /// All peers.
    List,
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
pub enum FlowCommand {
    /// All flows that conntrack holds.
    List,
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
    fn a_destination_that_is_none_is_refused_at_once() {
        let refused = Arguments::try_parse_from(["seaway", "route", "show", "10.244.1.0/99"]).unwrap_err();
        assert!(refused.to_string().contains("10.244.1.0/99"), "{refused}");
    }
}
