use anyhow::bail;
use serde::Deserialize;
use serde_json::Value;

use crate::{
    agent::read,
    table::{Table, span},
};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Flow {
    protocol: String,
    client: String,
    frontend: String,
    backend: String,
    /// Where the backend sees the client.
    seen_as: String,
    service_id: u32,
    backend_id: u32,
    answered: bool,
    closing: bool,
    idle_seconds: u64,
}

pub fn list(answer: &Value, wide: bool) -> anyhow::Result<String> {
    if let Some(error) = answer["error"].as_str() {
        bail!("the agent cannot read its flows: {error}");
    }
    let mut flows: Vec<Flow> = read(answer)?;
    flows.sort_by(|a, b| (&a.client, &a.frontend).cmp(&(&b.client, &b.frontend)));
    let mut table = Table::new(
        &["PROTOCOL", "CLIENT", "FRONTEND", "BACKEND", "STATE", "IDLE"],
        &["SEEN-AS", "SERVICE-ID", "BACKEND-ID"],
        "No flows: what the socket load balancer serves passes without NAT and is not among them.",
    );
    for flow in flows {
        let state = match (flow.answered, flow.closing) {
            (_, true) => "closing",
            (true, false) => "answered",
            (false, false) => "new",
        };
        table.row([
            flow.protocol,
            flow.client,
            flow.frontend,
            flow.backend,
            state.to_owned(),
            span(flow.idle_seconds),
            flow.seen_as,
            flow.service_id.to_string(),
            flow.backend_id.to_string(),
        ]);
    }
    Ok(table.render(wide))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn flows_show_both_ends_and_what_they_were_made_into() {
        let answer = json!([{ "protocol": "TCP", "client": "10.244.0.3:40000", "frontend": "10.96.7.1:80",
            "backend": "10.244.1.3:8080", "seenAs": "10.244.0.3:40000", "serviceId": 9, "backendId": 5,
            "answered": true, "closing": false, "idleSeconds": 4 }]);
        assert_eq!(
            list(&answer, false).unwrap(),
            "PROTOCOL   CLIENT             FRONTEND       BACKEND           STATE      IDLE\n\
             TCP        10.244.0.3:40000   10.96.7.1:80   10.244.1.3:8080   answered   4s\n"
        );
        let error = list(&json!({ "error": "the map is gone" }), false).unwrap_err();
        assert_eq!(error.to_string(), "the agent cannot read its flows: the map is gone");
    }
}
