//! `seaway-agent`, one per node: the network and the kubelet.
//!
//! ```text
//!  apiserver --watches--> run (one event loop) --> proxy --> datapath (BPF maps)
//!  peers <----bgp_io----> speaker, own thread  --> network --> routes, links, allocations
//!        <----bfd_io----> BFD, own thread -------> speaker
//!  runtime --> plugin --> cni_server           -->    '
//! ```
//!
//! Nothing in the kernel depends on this process staying alive: it ends without undoing anything, and finds what is
//! its own when it starts again.

mod allocations;
mod allocator;
mod bfd_config;
mod bfd_io;
mod bgp_io;
mod bgp_peers;
mod blocks;
mod cni_server;
mod config;
mod diff;
mod dns_endpoints;
mod growth;
mod health;
mod health_ports;
mod journal;
mod metrics;
mod network;
mod node_status;
mod persist;
mod policies;
mod pools;
mod reach;
mod routing;
mod run;
mod services;
mod stale;
mod status;
mod watch;
mod wishes;

use std::os::unix::process::CommandExt;
use std::process::ExitCode;

use clap::Parser;
use journal::Journal;
use run::Ended;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

fn main() -> ExitCode {
    let config = config::Config::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_env("SEAWAY_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info,kube_client=off,kube_runtime=off"));
    let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
    // A log that cannot be written, on a full disk, must not take a thread with it.
    let log = tracing_subscriber::fmt::layer()
        .with_ansi(terminal)
        .with_writer(std::io::stderr)
        .log_internal_errors(false)
        .with_filter(filter);
    let journal = Journal::default();
    let kept = journal.clone().with_filter(filter_fn(journal::is_told));
    tracing_subscriber::registry().with(log).with(kept).init();
    match start(config, journal) {
        Ok(Ended::Cancelled) => ExitCode::SUCCESS,
        Ok(Ended::Anew) => {
            // The same process, so that whoever watches it notices nothing. Sockets are closed by it, pods go on.
            let error = std::env::current_exe()
                .map(|program| std::process::Command::new(program).args(std::env::args_os().skip(1)).exec());
            tracing::error!("starting anew: {error:?}");
            ExitCode::FAILURE
        }
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(config: config::Config, journal: Journal) -> anyhow::Result<Ended> {
    // Fails only where a provider is installed already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    config.validate()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .on_thread_park(allocator::give_back_if_asked)
        .enable_all()
        .build()?;
    let result = runtime.block_on(async {
        let cancel = CancellationToken::new();
        tokio::spawn(cancel_on_signal(cancel.clone()));
        run::run(config, journal, cancel).await
    });
    runtime.shutdown_background();
    result
}

async fn cancel_on_signal(cancel: CancellationToken) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping; pods, routes and Services stay as they are");
    cancel.cancel();
}
