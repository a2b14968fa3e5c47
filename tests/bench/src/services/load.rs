//! The load generator: a server that answers in several pods, and a client that asks, a process of one thread each, so
//! that both cores of a small machine are busy and the CPU time of an operation is that of these two.
//!
//! ```text
//!   client pod: load-client  ──request, 1 octet──►  load-server: a TCP and a UDP socket in each server pod
//!                            ◄──the pod's number──
//! ```

mod client;
mod poll;
mod server;

use std::{
    fs::File,
    net::SocketAddr,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};
use nix::sched::{CloneFlags, setns};
use serde::{Deserialize, Serialize};

pub(crate) use client::run as run_client;
pub(crate) use server::run as run_server;

/// Where load-server listens.
#[derive(Clone, Debug)]
pub(crate) struct Listen {
    /// The file of a network namespace.
    pub(crate) namespace: PathBuf,
    pub(crate) address: SocketAddr,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct ServerOptions {
    /// NAMESPACE@ADDRESS:PORT, for TCP and UDP; repeatable
    #[arg(long, required = true, value_parser = listen_of)]
    listen: Vec<Listen>,
}

/// What one operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Mode {
    /// Connect, one request with its answer, close.
    TcpConnect,
    /// One request with its answer on a connection that lasts.
    TcpRequest,
    /// A new socket, one datagram and its answer, close.
    UdpConnect,
    /// One datagram and its answer on a connected socket that lasts.
    UdpRequest,
}

impl Mode {
    pub(crate) const ALL: [Self; 4] =
        [Self::TcpConnect, Self::TcpRequest, Self::UdpConnect, Self::UdpRequest];

    pub(crate) const fn is_tcp(self) -> bool {
        matches!(self, Self::TcpConnect | Self::TcpRequest)
    }

    pub(crate) const fn connects(self) -> bool {
        matches!(self, Self::TcpConnect | Self::UdpConnect)
    }

    /// As an argument of load-client.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::TcpConnect => "tcp-connect",
            Self::TcpRequest => "tcp-request",
            Self::UdpConnect => "udp-connect",
            Self::UdpRequest => "udp-request",
        }
    }

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::TcpConnect => "TCP connect-request-close",
            Self::TcpRequest => "TCP request-response",
            Self::UdpConnect => "UDP socket-request-close",
            Self::UdpRequest => "UDP request-response",
        }
    }
}

#[derive(Clone, Debug, Args)]
pub(crate) struct ClientOptions {
    #[arg(long, value_enum, default_value = "tcp-connect")]
    mode: Mode,
    /// ADDRESS:PORT to ask, in turn; repeatable
    #[arg(long, required = true, value_delimiter = ',')]
    target: Vec<SocketAddr>,
    /// Operations under way at a time
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    connections: u32,
    /// Seconds before counting begins
    #[arg(long, default_value_t = 0.2)]
    warm: f64,
    /// Seconds that are counted
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// The process whose CPU time is counted too
    #[arg(long)]
    server: Option<i32>,
    /// Instead of load: for each number on standard input, asks until the pod of that number answers, and says when
    #[arg(long)]
    watch: bool,
}

/// What load-client prints, as one line of JSON.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Outcome {
    pub(crate) operations: u64,
    /// Operations that ended with an error, or not within seconds.
    pub(crate) failures: u64,
    pub(crate) seconds: f64,
    /// CPU seconds of client, server and the kernel's softirq threads.
    pub(crate) cpu_seconds: f64,
}

fn listen_of(text: &str) -> Result<Listen, String> {
    let (namespace, address) = text.rsplit_once('@').ok_or("wanted is NAMESPACE@ADDRESS:PORT")?;
    let address = address.parse().map_err(|error| format!("{address}: {error}"))?;
    Ok(Listen { namespace: namespace.into(), address })
}

/// Moves the calling thread into a network namespace.
pub(crate) fn enter(namespace: &Path) -> Result<()> {
    let file = File::open(namespace).with_context(|| format!("opening {}", namespace.display()))?;
    setns(file.as_fd(), CloneFlags::CLONE_NEWNET).with_context(|| format!("entering {}", namespace.display()))
}

/// CLOCK_MONOTONIC in nanoseconds, which all processes share.
pub(crate) fn monotonic_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a timespec that the call fills; CLOCK_MONOTONIC exists on every Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
