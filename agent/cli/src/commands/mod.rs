//! One file for each thing that can be asked about: the form of the agent's answer, and its table.

mod block;
mod counters;
mod flow;
mod peer;
mod pod;
mod route;
mod service;
mod status;

use serde_json::Value;

use crate::{
    agent::Agent,
    arguments::{
        BlockCommand, Command, FlowCommand, Output, PeerCommand, PodCommand, RouteCommand, ServiceCommand,
    },
};

/// Asks, and says the answer as text.
pub async fn run(agent: &Agent, command: Command, output: Output) -> anyhow::Result<String> {
    match command {
        Command::Status => listed(agent, "/v1/status", output, status::text).await,
        Command::Peer(PeerCommand::List) => listed(agent, "/v1/peers", output, peer::list).await,
        Command::Route(RouteCommand::List) => listed(agent, "/v1/routes", output, route::list).await,
        Command::Route(RouteCommand::Show { prefix }) => {
            let found = route::find(agent.ask("/v1/routes").await?, prefix)?;
            shown(found, output, route::show)
        }
        Command::Service(ServiceCommand::List { namespace }) => {
            let found = service::of_namespace(agent.ask("/v1/services").await?, namespace.as_deref())?;
            shown(found, output, service::list)
        }
        Command::Service(ServiceCommand::Show { name, namespace }) => {
            let found = service::find(agent.ask("/v1/services").await?, &namespace, &name)?;
            let pods = agent.ask("/v1/pods").await?;
            shown(found, output, |found, wide| service::show(found, &pods, wide))
        }
        Command::Flow(FlowCommand::List) => listed(agent, "/v1/flows", output, flow::list).await,
        Command::Block(BlockCommand::List) => listed(agent, "/v1/blocks", output, block::list).await,
        Command::Pod(PodCommand::List { namespace }) => {
            let found = pod::of_namespace(agent.ask("/v1/pods").await?, namespace.as_deref());
            shown(found, output, pod::list)
        }
        Command::Counters => listed(agent, "/v1/counters", output, counters::list).await,
    }
}

async fn listed(
    agent: &Agent,
    path: &str,
    output: Output,
    text: impl FnOnce(&Value, bool) -> anyhow::Result<String>,
) -> anyhow::Result<String> {
    shown(agent.ask(path).await?, output, text)
}

fn shown(
    answer: Value,
    output: Output,
    text: impl FnOnce(&Value, bool) -> anyhow::Result<String>,
) -> anyhow::Result<String> {
    match output {
        Output::Json => Ok(format!("{answer:#}\n")),
        Output::Table | Output::Wide => text(&answer, output == Output::Wide),
    }
}
