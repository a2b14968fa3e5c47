//! What `seaway-server` takes on its command line.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnetwork::IpNetwork;

use crate::security::SecurityArguments;

/// The control plane of a Seaway cluster: apiserver, scheduler and controllers, in one process.
#[derive(Debug, Parser)]
#[command(name = "seaway-server", version)]
pub struct Arguments {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub server: ServerArguments,
    /// What is logged, as in RUST_LOG.
    #[arg(long, global = true, env = "SEAWAY_LOG", default_value = "info")]
    pub log: String,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// The whole control plane in one process (the default).
    All,
    /// The API server alone.
    Apiserver,
    /// The scheduler alone, against an API server.
    Scheduler(ClientArguments),
    /// The controllers alone, against an API server.
    Controllers(ClientArguments),
    /// Sign a kubeconfig with the CA of a data folder.
    Kubeconfig(KubeconfigArguments),
    /// Sign a certificate for client and server use with the CA of a data folder.
    Cert(CertArguments),
    /// Move the objects of a cluster that is stopped to a file and back, between the engines.
    Store(StoreArguments),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StoreKind {
    /// A file in the data folder, of this process alone.
    Embedded,
    /// An etcd v3 cluster, shared with other servers.
    Etcd,
}

#[derive(Debug, Args)]
pub struct ServerArguments {
    /// Keys, the administrator's kubeconfig and the embedded store.
    #[arg(long, global = true, env = "SEAWAY_DATA_DIR", default_value = "/var/lib/seaway/server")]
    pub data_dir: PathBuf,
    #[arg(long, global = true, env = "SEAWAY_STORE", value_enum, default_value = "embedded")]
    pub store: StoreKind,
    /// URL of an etcd server; may be given more than once.
    #[arg(long, global = true, env = "SEAWAY_ETCD_ENDPOINT", value_delimiter = ',')]
    pub etcd_endpoint: Vec<String>,
    /// ADDRESS:PORT to listen on; may be given more than once. Sockets passed as LISTEN_FDS are served too; without
    /// any, 0.0.0.0:6443.
    #[arg(long, global = true, env = "SEAWAY_BIND", value_delimiter = ',')]
    pub bind: Vec<SocketAddr>,
    /// Where nodes and pods reach this server; by default the first address that is bound.
    #[arg(long, global = true, env = "SEAWAY_ADVERTISE_ADDRESS")]
    pub advertise_address: Option<IpAddr>,
    /// Where Services get their addresses: one range, or one of each IP family, the preferred family first.
    #[arg(
        long = "service-cidr",
        global = true,
        env = "SEAWAY_SERVICE_CIDR",
        default_value = "10.96.0.0/16",
        value_delimiter = ','
    )]
    pub service_cidrs: Vec<IpNetwork>,
    /// Where pods get their addresses: one range, or one of each IP family.
    #[arg(
        long = "cluster-cidr",
        global = true,
        env = "SEAWAY_CLUSTER_CIDR",
        default_value = "10.244.0.0/16",
        value_delimiter = ','
    )]
    pub cluster_cidrs: Vec<IpNetwork>,
    #[arg(long, global = true, env = "SEAWAY_CLUSTER_DOMAIN", default_value = "cluster.local")]
    pub cluster_domain: String,
    /// Seconds that a node may be silent before it counts as unreachable.
    #[arg(long, global = true, env = "SEAWAY_NODE_MONITOR_GRACE_PERIOD", default_value_t = 50)]
    pub node_monitor_grace_period: u64,
    /// Seconds that a Node object must be missing before the blocks of addresses of its node are given back.
    #[arg(long, global = true, env = "SEAWAY_BLOCK_GRACE_PERIOD", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..))]
    pub block_grace_period: u64,
    /// Seconds between compactions of the store; history is kept for one to two of them.
    #[arg(long, global = true, env = "SEAWAY_COMPACTION_INTERVAL", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..))]
    pub compaction_interval: u64,
    /// Another name or address for the serving certificate; may be given more than once.
    #[arg(long, global = true)]
    pub san: Vec<String>,
    #[command(flatten)]
    pub security: SecurityArguments,
}

#[derive(Debug, Args)]
pub struct ClientArguments {
    /// How to reach the API server.
    #[arg(long, env = "KUBECONFIG")]
    pub kubeconfig: PathBuf,
}

#[derive(Debug, Args)]
pub struct KubeconfigArguments {
    /// The user: the certificate's common name.
    #[arg(long)]
    pub cn: String,
    /// The group: the certificate's organization.
    #[arg(long, default_value = "")]
    pub org: String,
    /// The https:// URL of the API server.
    #[arg(long)]
    pub server: String,
    /// An address the certificate is for too; may be given more than once.
    #[arg(long)]
    pub ip: Vec<IpAddr>,
    /// The file to write.
    #[arg(long)]
    pub out: PathBuf,
}

#[derive(Debug, Args)]
pub struct CertArguments {
    /// The certificate's common name, such as system:node:NAME.
    #[arg(long)]
    pub cn: String,
    /// The certificate's organization, such as system:nodes.
    #[arg(long, default_value = "")]
    pub org: String,
    /// The folder for ca.crt, tls.crt and tls.key.
    #[arg(long)]
    pub out_dir: PathBuf,
}

#[derive(Debug, Args)]
pub struct StoreArguments {
    #[command(subcommand)]
    pub command: StoreCommand,
}

#[derive(Debug, Subcommand)]
pub enum StoreCommand {
    /// Write every object of the store in --data-dir, or behind --etcd-endpoint, to a new file.
    Export {
        /// The file to write: lines of JSON that end with a checksum. It holds Secrets.
        #[arg(long)]
        out: PathBuf,
    },
    /// Fill an empty store from such a file.
    Import {
        /// The file to read.
        #[arg(long)]
        from: PathBuf,
    },
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn flags_stand_before_or_after_the_command() {
        for line in ["seaway-server all --data-dir /d --san a", "seaway-server --data-dir /d --san a"] {
            let arguments = Arguments::try_parse_from(line.split(' ')).unwrap();
            assert_eq!(arguments.server.data_dir, PathBuf::from("/d"));
            assert_eq!(arguments.server.san, ["a"]);
        }
        let line = "seaway-server cert --data-dir /d --cn c --org o --san x --san 10.0.0.1 --out-dir /o";
        let arguments = Arguments::try_parse_from(line.split(' ')).unwrap();
        assert_eq!(arguments.server.san, ["x", "10.0.0.1"]);
        assert!(matches!(arguments.command, Some(Command::Cert(_))));
    }
}
