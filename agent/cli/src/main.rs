//! `seaway`: what an engineer asks of a node.
//!
//! It asks the agent of this node over its unix socket and prints tables, or the agent's JSON as it is. It knows neither
//! the kernel nor the API server: what it shows is what the agent acts upon.

mod agent;
mod arguments;
mod commands;
mod names;
mod table;

use std::io::Write;

use clap::Parser;

use crate::{agent::Agent, arguments::Arguments};

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::process::ExitCode {
    let arguments = Arguments::parse();
    let agent = Agent::new(arguments.socket);
    match commands::run(&agent, arguments.command, arguments.output).await {
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
