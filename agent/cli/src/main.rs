//! `seaway`: what an engineer asks of a node.
//!
//! It asks the agent of this node over its unix socket, or that of another by way of the API server, and prints tables, or the
//! agent's JSON as it is. It knows neither the kernel nor the objects of the API: what it shows is what the agent acts upon.

mod agent;
mod arguments;
mod cluster;
mod commands;
mod names;
mod table;

use std::io::Write;

use clap::Parser;

use crate::{
    agent::Agent,
    arguments::{Arguments, Command},
};

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::process::ExitCode {
    let arguments = Arguments::parse();
    match answer(arguments).await {
        Ok(answer) => {
            // A reader that has seen enough, such as head, is no error.
            let _ = std::io::stdout().write_all(answer.text.as_bytes());
            if answer.is_good { std::process::ExitCode::SUCCESS } else { std::process::ExitCode::from(1) }
        }
        Err(error) => {
            eprintln!("seaway: {error:#}");
            std::process::ExitCode::from(2)
        }
    }
}

async fn answer(arguments: Arguments) -> anyhow::Result<commands::Answer> {
    let Arguments { socket, node, kubeconfig, output, command } = arguments;
    if let Command::Diff { all_nodes: true } = command {
        let client = cluster::client(kubeconfig.as_deref()).await?;
        return commands::diff_of_all(&client, output).await;
    }
    let agent = match node {
        None => Agent::Here { socket },
        Some(node) => Agent::Of { node, client: cluster::client(kubeconfig.as_deref()).await? },
    };
    commands::run(&agent, command, output).await
}
