//! One file for each thing that can be asked about: the form of the agent's answer, and its table.

mod block;
mod counters;
mod diff;
mod drops;
mod flow;
mod journal;
mod map;
mod peer;
mod pod;
mod policy;
mod route;
mod service;
mod status;
mod why_not;

use std::{io::Write, ops::ControlFlow};

use futures::{StreamExt, stream};
use kube::Client;
use serde_json::{Map, Value, json};

use crate::{
    agent::{ANSWER_TIME_MAX, Agent},
    arguments::{
        BlockCommand, Command, FlowCommand, JournalKind, MapCommand, Output, PeerCommand, PodCommand,
        PolicyCommand, RouteCommand, ServiceCommand,
    },
    cluster,
};

/// What is printed, and whether it is what was hoped for.
pub struct Answer {
    pub text: String,
    pub is_good: bool,
}

/// Asks, and says the answer as text.
pub async fn run(agent: &Agent, command: Command, output: Output) -> anyhow::Result<Answer> {
    let mut is_good = true;
    let text = match command {
        Command::Diff { all_nodes: _ } => {
            let found = agent.ask("/v1/diff").await?;
            is_good = !diff::differs(&found)?;
            shown(found, output, diff::text)
        }
        Command::Status => listed(agent, "/v1/status", output, status::text).await,
        Command::Peer(PeerCommand::List) => listed(agent, "/v1/peers", output, peer::list).await,
        Command::Peer(PeerCommand::Show { address }) => {
            let found = peer::find(&agent.ask("/v1/peers").await?, address)?;
            shown(found, output, |found, _| peer::show(found))
        }
        Command::Route(RouteCommand::List) => listed(agent, "/v1/routes", output, route::list).await,
        Command::Route(RouteCommand::Show { prefix }) => {
            let found = route::find(agent.ask("/v1/routes").await?, prefix)?;
            shown(found, output, route::show)
        }
        Command::WhyNot { prefix, peer } => {
            let path = format!("/v1/why-not?prefix={prefix}&peer={peer}");
            listed(agent, &path, output, why_not::show).await
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
        Command::Flow(FlowCommand::List(filter)) => flow::list(agent, &filter, output).await,
        Command::Flow(FlowCommand::Show(filter)) => flow::show(agent, &filter, output).await,
        Command::Map(MapCommand::List) => listed(agent, "/v1/maps", output, map::list).await,
        Command::Map(MapCommand::Dump { name, address, limit }) => {
            map::dump(agent, &name, address, limit, output).await
        }
        Command::Block(BlockCommand::List) => listed(agent, "/v1/blocks", output, block::list).await,
        Command::Pod(PodCommand::List { namespace }) => {
            let found = pod::of_namespace(agent.ask("/v1/pods").await?, namespace.as_deref());
            shown(found, output, pod::list)
        }
        Command::Policy(PolicyCommand::List { namespace }) => {
            let found = policy::of_namespace(agent.ask("/v1/policies").await?, namespace.as_deref());
            shown(found, output, policy::list)
        }
        Command::Policy(PolicyCommand::Show { pod, namespace }) => {
            listed(agent, &format!("/v1/policies/{namespace}/{pod}"), output, policy::show).await
        }
        Command::Drop { follow: true } => drops::follow(agent, output).await,
        Command::Drop { follow: false } => {
            let found = counters::drops(agent.ask("/v1/counters").await?);
            shown(found, output, counters::list)
        }
        Command::Journal { kind, about, limit } => {
            let page = journal::page(kind.map(JournalKind::word), about.as_deref(), limit);
            listed(agent, &page, output, journal::list).await
        }
        Command::Counters => listed(agent, "/v1/counters", output, counters::list).await,
    }?;
    Ok(Answer { text, is_good })
}

/// Nodes that are asked at one time.
const NODES_AT_ONCE: usize = 16;

/// Asks every node whether its layers agree. One that does not answer is told as such, and is no agreement.
pub async fn diff_of_all(client: &Client, output: Output) -> anyhow::Result<Answer> {
    let asked = cluster::nodes(client).await?.into_iter().map(|node| async {
        let agent = Agent::Of { node: node.clone(), client: client.clone() };
        let unasked = |error| json!({ "compared": {}, "differences": [], "unasked": [format!("{error:#}")] });
        let found = agent.ask("/v1/diff").await;
        (node, found.unwrap_or_else(unasked))
    });
    let found: Map<String, Value> = stream::iter(asked).buffered(NODES_AT_ONCE).collect().await;
    let mut is_good = true;
    for diff in found.values() {
        is_good &= !diff::differs(diff)?;
    }
    Ok(Answer { text: shown(Value::Object(found), output, diff::text_of_all)?, is_good })
}

/// Reads lines into `table`, or prints them as they come where JSON is wanted. Of more than `limit`, which is 0 for no
/// limit, the rest is not read, and a note says so.
async fn limited(
    agent: &Agent,
    path: &str,
    limit: usize,
    output: Output,
    mut line: impl FnMut(&str) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut path = path.to_owned();
    if limit > 0 {
        // One more says whether there are more.
        path.push_str(&format!("limit={}", limit + 1));
    }
    let mut count = 0;
    let mut more = false;
    let each = |text: &str| {
        count += 1;
        more = limit > 0 && count > limit;
        if more {
            return Ok(ControlFlow::Break(()));
        }
        if output != Output::Json {
            line(text)?;
        } else if writeln!(std::io::stdout(), "{text}").is_err() {
            // A reader that has seen enough, such as head, is no error.
            return Ok(ControlFlow::Break(()));
        }
        Ok(ControlFlow::Continue(()))
    };
    agent.lines(&path, ANSWER_TIME_MAX, each).await?;
    if more {
        eprintln!("seaway: these are the first {limit}, there are more; --limit 0 shows all");
    }
    Ok(())
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
