//! What tests run inside pods: servers that name their pod, and clients that count what came back.
//! One static binary, as the images have no C library.

mod client;
mod load;
mod names;
mod registry;
mod serve;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "Servers and clients for tests inside pods")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Answers HTTP, TCP and UDP, each time naming the pod
    Serve(serve::Arguments),
    /// Sends HTTP requests, a connection each, and prints a JSON summary; fails if one failed
    Load(load::Arguments),
    /// One HTTP GET; prints the body
    Get { url: String },
    /// Connects to HOST:PORT, sends a line and prints what comes back
    Tcp { address: String, line: String },
    /// Sends one datagram to HOST:PORT and prints the answer and who sent it
    Udp {
        address: String,
        text: String,
        /// send to an unconnected socket (sendmsg and recvmsg) instead of a connected one
        #[arg(long)]
        unconnected: bool,
    },
    /// Connects a UDP socket to HOST:PORT, prints the answer to one datagram, and waits until the socket is ended
    Hold { address: String },
    /// Prints the records of a name
    Dns {
        name: String,
        /// A, AAAA, SRV, PTR, CNAME, ...
        #[arg(long = "type", default_value = "A")]
        kind: String,
        /// Over TCP
        #[arg(long)]
        tcp: bool,
    },
    /// Serves images to pull from a folder
    Registry(registry::Arguments),
    /// Sleeps for ever, ending on SIGTERM
    Sleep,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Serve(arguments) => serve::serve(arguments).await,
        Command::Load(arguments) => load::load(arguments).await,
        Command::Get { url } => client::get(&url).await,
        Command::Tcp { address, line } => client::tcp(&address, &line).await,
        Command::Udp { address, text, unconnected } => client::udp(&address, &text, unconnected).await,
        Command::Hold { address } => client::hold(&address).await,
        Command::Dns { name, kind, tcp } => names::print(&name, &kind, tcp).await,
        Command::Registry(arguments) => registry::serve(arguments).await,
        Command::Sleep => serve::until_term().await,
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("multitool: {error:#}");
            ExitCode::FAILURE
        }
    }
}
