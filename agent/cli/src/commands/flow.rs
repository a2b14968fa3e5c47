use std::fmt::Write;

use anyhow::{Context, bail};
use serde::Deserialize;

use super::limited;
use crate::{
    agent::Agent,
    arguments::{FlowFilter, Output},
    table::{Table, span, yes},
};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Flow {
    protocol: String,
    client: String,
    client_name: Option<String>,
    frontend: String,
    service: Option<String>,
    service_id: u32,
    backend: String,
    backend_name: Option<String>,
    backend_id: u32,
    /// Where the backend sees the client.
    seen_as: String,
    state: String,
    way: String,
    idle_seconds: u64,
    timeout_seconds: u64,
    from_client: Half,
    from_backend: Option<Half>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Half {
    packet: Ends,
    becomes: Ends,
    seen: bool,
    fin: bool,
    rst: bool,
    /// Those of SCTP that say something of the association; of an agent that knew none, none.
    #[serde(default)]
    chunks: Vec<String>,
    idle_seconds: u64,
}

#[derive(Deserialize)]
struct Ends {
    source: String,
    destination: String,
}

impl Ends {
    fn text(&self) -> String {
        format!("{} > {}", self.source, self.destination)
    }
}

/// Where the flows that fit are asked for.
fn path(filter: &FlowFilter) -> String {
    let mut path = "/v1/flows?".to_owned();
    let mut add = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            // Writing to a String does not fail.
            let _ = write!(path, "{name}={value}&");
        }
    };
    add("pod", filter.pod.clone());
    add("service", filter.service.clone());
    add("address", filter.address.map(|address| address.to_string()));
    add("client", filter.client.map(|end| end.to_string()));
    add("frontend", filter.frontend.map(|end| end.to_string()));
    add("backend", filter.backend.map(|end| end.to_string()));
    add("protocol", filter.protocol.clone());
    path
}

async fn flows(agent: &Agent, filter: &FlowFilter, output: Output) -> anyhow::Result<Vec<Flow>> {
    let mut flows = Vec::new();
    let each = |line: &str| {
        flows.push(parsed(line)?);
        Ok(())
    };
    limited(agent, &path(filter), filter.limit, output, each).await?;
    flows.sort_by(|a: &Flow, b| (&a.client, &a.frontend).cmp(&(&b.client, &b.frontend)));
    Ok(flows)
}

fn parsed(line: &str) -> anyhow::Result<Flow> {
    serde_json::from_str(line)
        .context("the agent's flows have not the form that this version of seaway knows")
}

pub async fn list(agent: &Agent, filter: &FlowFilter, output: Output) -> anyhow::Result<String> {
    let flows = flows(agent, filter, output).await?;
    Ok(if output == Output::Json { String::new() } else { table(&flows, output == Output::Wide) })
}

/// # Errors
/// Where there is no such flow.
pub async fn show(agent: &Agent, filter: &FlowFilter, output: Output) -> anyhow::Result<String> {
    let flows = flows(agent, filter, output).await?;
    if output == Output::Json {
        return Ok(String::new());
    }
    if flows.is_empty() {
        bail!("there is no such flow; what the socket load balancer serves passes without NAT and has none");
    }
    Ok(flows.iter().map(details).collect::<Vec<_>>().join("\n"))
}

fn table(flows: &[Flow], wide: bool) -> String {
    let mut table = Table::new(
        &["PROTOCOL", "CLIENT", "FRONTEND", "SERVICE", "BACKEND", "STATE", "IDLE"],
        &["CLIENT-NAME", "BACKEND-NAME", "SEEN-AS", "WAY", "TIMEOUT", "SERVICE-ID", "BACKEND-ID"],
        "No flows: what the socket load balancer serves passes without NAT and is not among them.",
    );
    for flow in flows {
        table.row([
            flow.protocol.clone(),
            flow.client.clone(),
            flow.frontend.clone(),
            flow.service.clone().unwrap_or_default(),
            flow.backend.clone(),
            flow.state.clone(),
            span(flow.idle_seconds),
            flow.client_name.clone().unwrap_or_default(),
            flow.backend_name.clone().unwrap_or_default(),
            flow.seen_as.clone(),
            flow.way.clone(),
            span(flow.timeout_seconds),
            flow.service_id.to_string(),
            flow.backend_id.to_string(),
        ]);
    }
    table.render(wide)
}

fn details(flow: &Flow) -> String {
    let named = |end: &str, name: &Option<String>| match name {
        Some(name) => format!("{end} ({name})"),
        None => end.to_owned(),
    };
    let forgotten = flow.timeout_seconds.saturating_sub(flow.idle_seconds);
    let mut text = format!(
        "Flow:       {} {} > {}\nService:    {} (id {})\nClient:     {}\nBackend:    {} (id {})\nSeen as:    {}\n\
         State:      {}, {}\nIdle:       {} of {}; forgotten in {}\n\n",
        flow.protocol,
        flow.client,
        flow.frontend,
        flow.service.as_deref().unwrap_or("not known any more"),
        flow.service_id,
        named(&flow.client, &flow.client_name),
        named(&flow.backend, &flow.backend_name),
        flow.backend_id,
        flow.seen_as,
        flow.state,
        flow.way,
        span(flow.idle_seconds),
        span(flow.timeout_seconds),
        span(forgotten),
    );
    let said: &[&str] = if flow.protocol == "SCTP" { &["SAID"] } else { &["FIN", "RST"] };
    let columns = [&["FROM", "PACKET", "BECOMES", "SEEN"], said, &["IDLE"]].concat();
    let mut table = Table::new(&columns, &[], "");
    let halves = [("client", Some(&flow.from_client)), ("backend", flow.from_backend.as_ref())];
    for (from, half) in halves {
        let Some(half) = half else { continue };
        let mut row = vec![from.to_owned(), half.packet.text(), half.becomes.text(), yes(half.seen)];
        if flow.protocol == "SCTP" {
            row.push(half.chunks.join(", "));
        } else {
            row.extend([yes(half.fin), yes(half.rst)]);
        }
        row.push(span(half.idle_seconds));
        table.row(row);
    }
    text.push_str(&table.render(true));
    if flow.from_backend.is_none() {
        text.push_str("There is no entry for answers: the flow is being made right now, or is left over.\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn flow(from_backend: bool) -> Value {
        let half = |packet: (&str, &str), becomes: (&str, &str), idle: u64| {
            json!({ "packet": { "source": packet.0, "destination": packet.1 },
                "becomes": { "source": becomes.0, "destination": becomes.1 },
                "seen": true, "fin": false, "rst": false, "idleSeconds": idle })
        };
        let (client, frontend, backend) = ("10.244.0.3:40000", "10.96.7.1:80", "10.244.1.3:8080");
        let answers = from_backend.then(|| half((backend, client), (frontend, client), 4));
        json!({ "protocol": "TCP", "client": client, "clientName": "pod default/client", "frontend": frontend,
            "service": "default/web", "serviceId": 9, "backend": backend, "backendName": "pod on n2",
            "backendId": 5, "seenAs": client, "state": "established", "way": "direct", "answered": true,
            "closing": false, "idleSeconds": 4, "timeoutSeconds": 8000,
            "fromClient": half((client, frontend), (client, backend), 5), "fromBackend": answers })
    }

    #[test]
    fn flows_show_both_ends_and_what_they_were_made_into() {
        let flows = [parsed(&flow(true).to_string()).unwrap()];
        assert_eq!(
            table(&flows, false),
            "PROTOCOL   CLIENT             FRONTEND       SERVICE       BACKEND           STATE         IDLE\n\
             TCP        10.244.0.3:40000   10.96.7.1:80   default/web   10.244.1.3:8080   established   4s\n"
        );
        assert!(
            table(&flows, true).contains("pod on n2      10.244.0.3:40000   direct   133m"),
            "{}",
            table(&flows, true)
        );
        assert!(table(&[], false).starts_with("No flows:"));
        let error = parsed("{}").map(drop).unwrap_err().to_string();
        assert!(error.contains("the form that this version of seaway knows"), "{error}");
    }

    #[test]
    fn one_flow_shows_what_packets_of_either_side_become() {
        let text = details(&parsed(&flow(true).to_string()).unwrap());
        assert_eq!(
            text,
            "Flow:       TCP 10.244.0.3:40000 > 10.96.7.1:80\nService:    default/web (id 9)\n\
             Client:     10.244.0.3:40000 (pod default/client)\nBackend:    10.244.1.3:8080 (pod on n2) (id 5)\n\
             Seen as:    10.244.0.3:40000\nState:      established, direct\n\
             Idle:       4s of 133m; forgotten in 133m\n\n\
             FROM      PACKET                               BECOMES                              SEEN   FIN   RST   IDLE\n\
             client    10.244.0.3:40000 > 10.96.7.1:80      10.244.0.3:40000 > 10.244.1.3:8080   yes    no    no    5s\n\
             backend   10.244.1.3:8080 > 10.244.0.3:40000   10.96.7.1:80 > 10.244.0.3:40000      yes    no    no    4s\n"
        );
        let text = details(&parsed(&flow(false).to_string()).unwrap());
        assert!(text.ends_with("is left over.\n"), "{text}");
    }

    #[test]
    fn an_association_shows_what_its_sides_have_said() {
        let mut sctp = flow(true);
        (sctp["protocol"], sctp["state"]) = (json!("SCTP"), json!("cookie-echoed"));
        sctp["fromClient"]["chunks"] = json!(["INIT", "COOKIE ECHO"]);
        sctp["fromBackend"]["chunks"] = json!(["INIT ACK"]);
        let text = details(&parsed(&sctp.to_string()).unwrap());
        assert!(text.contains("State:      cookie-echoed, direct\n"), "{text}");
        assert!(text.contains("   SEEN   SAID                IDLE\nclient"), "{text}");
        assert!(text.contains("   yes    INIT, COOKIE ECHO   5s\n"), "{text}");
        assert!(text.contains("   yes    INIT ACK            4s\n"), "{text}");
    }

    #[test]
    fn filters_become_the_question() {
        let filter = FlowFilter {
            pod: Some("default/web-1".to_owned()),
            client: Some("[fd00::1]:40000".parse().unwrap()),
            protocol: Some("TCP".to_owned()),
            ..FlowFilter::default()
        };
        let path = path(&filter);
        assert_eq!(path, "/v1/flows?pod=default/web-1&client=[fd00::1]:40000&protocol=TCP&");
        assert!(path.parse::<http::Uri>().is_ok());
    }
}
