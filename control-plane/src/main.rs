//! `seaway-server`: the control plane. `all` runs apiserver, scheduler and controllers in one process, where the last
//! two reach the first without a socket, each under its own identity.

mod arguments;
mod memory;
mod run;
mod security;
mod sign;
mod store;

use clap::Parser as _;

use crate::arguments::{Arguments, Command};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    let arguments = Arguments::parse();
    let filter = tracing_subscriber::EnvFilter::try_new(&arguments.log)
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    // A log that cannot be written, on a full disk, must not take a thread with it.
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .log_internal_errors(false)
        .init();
    match dispatch(arguments) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("seaway-server: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}

fn dispatch(arguments: Arguments) -> anyhow::Result<()> {
    let server = arguments.server;
    match arguments.command.unwrap_or(Command::All) {
        Command::All => run::block_on(run::server(server, true)),
        Command::Apiserver => run::block_on(run::server(server, false)),
        Command::Scheduler(client) => run::block_on(run::scheduler(client)),
        Command::Controllers(client) => run::block_on(run::controllers(server, client)),
        Command::Kubeconfig(request) => sign::kubeconfig(&server, request),
        Command::Store(request) => run::block_on(store::run(&server, request.command)),
        Command::Cert(request) => sign::certificate(&server, request),
    }
}
