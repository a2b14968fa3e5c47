use std::net::{IpAddr, Ipv4Addr};

use anyhow::Context;
use serde::Deserialize;
use serde_json::Value;

use crate::{
    agent::read,
    table::{Table, known, span, yes},
};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Peer {
    address: IpAddr,
    asn: Option<u32>,
    router_id: Option<Ipv4Addr>,
    state: String,
    dynamic: bool,
    established_seconds: Option<u64>,
    hold_time_seconds: Option<u64>,
    graceful_restart: bool,
    routes: u64,
    routes_stale: u64,
    messages_received: u64,
    messages_sent: u64,
    last_error: Option<String>,
    bfd: Option<BfdState>,
}

#[derive(Deserialize)]
struct BfdState {
    state: String,
}

pub fn list(answer: &Value, wide: bool) -> anyhow::Result<String> {
    let mut peers: Vec<Peer> = read(answer)?;
    peers.sort_by_key(|peer| peer.address);
    let mut table = Table::new(
        &["ADDRESS", "ASN", "STATE", "BFD", "UPTIME", "ROUTES", "STALE", "LAST-ERROR"],
        &["ROUTER-ID", "DYNAMIC", "HOLD", "RESTART", "RECEIVED", "SENT"],
        "No peers: this node is told of none, and none has connected.",
    );
    for peer in peers {
        table.row([
            peer.address.to_string(),
            known(peer.asn),
            peer.state,
            peer.bfd.map_or_else(String::new, |bfd| bfd.state),
            known(peer.established_seconds.map(span)),
            peer.routes.to_string(),
            peer.routes_stale.to_string(),
            peer.last_error.unwrap_or_default(),
            known(peer.router_id),
            yes(peer.dynamic),
            known(peer.hold_time_seconds.map(span)),
            yes(peer.graceful_restart),
            peer.messages_received.to_string(),
            peer.messages_sent.to_string(),
        ]);
    }
    Ok(table.render(wide))
}

/// The peer with an address.
pub fn find(answer: &Value, address: IpAddr) -> anyhow::Result<Value> {
    let peers = answer.as_array().context("the agent's answer is no list of peers")?;
    let found = peers.iter().find(|peer| peer["address"] == address.to_string());
    found.cloned().with_context(|| format!("there is no peer {address}; `seaway peer list` has all"))
}

/// A line for each thing that is known, as the agent names it.
pub fn show(peer: &Value) -> anyhow::Result<String> {
    let mut lines = Vec::new();
    let fields = peer.as_object().context("the agent's answer is no peer")?;
    let (plain, history): (Vec<_>, Vec<_>) = fields.iter().partition(|(name, _)| *name != "history");
    plain.into_iter().for_each(|(name, value)| line(&mut lines, name, value));
    let width = lines.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let mut text: String = lines.iter().map(|(name, value)| format!("{name:width$}   {value}\n")).collect();
    for change in history.into_iter().flat_map(|(_, changes)| changes.as_array().into_iter().flatten()) {
        let ago = span(change["secondsAgo"].as_u64().unwrap_or(0));
        let (state, detail) = (plain_text(&change["state"]), plain_text(&change["detail"]));
        text.push_str(format!("{ago} ago: {state} {detail}").trim_end());
        text.push('\n');
    }
    Ok(text)
}

fn line(lines: &mut Vec<(String, String)>, name: &str, value: &Value) {
    match value {
        Value::Object(fields) => {
            fields.iter().for_each(|(field, value)| line(lines, &format!("{name}.{field}"), value));
        }
        value => lines.push((name.to_owned(), plain_text(value))),
    }
}

fn plain_text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn peers_are_listed_by_address_with_their_last_error() {
        let peer = |address: &str, state: &str, up: Option<u64>, error: Option<&str>| {
            json!({ "address": address, "asn": 64512, "routerId": "10.89.0.12", "state": state, "dynamic": true,
                "establishedSeconds": up, "holdTimeSeconds": 90, "gracefulRestart": true, "routes": 2,
                "routesStale": 0, "messagesReceived": 7, "messagesSent": 8, "lastError": error,
                "bfd": { "state": if error.is_none() { "Up" } else { "Down" } } })
        };
        let answer = json!([
            peer("10.89.0.13", "Active", None, Some("Hold Timer Expired (4)")),
            peer("10.89.0.12", "Established", Some(312), None),
        ]);
        assert_eq!(
            list(&answer, false).unwrap(),
            "ADDRESS      ASN     STATE         BFD    UPTIME   ROUTES   STALE   LAST-ERROR\n\
             10.89.0.12   64512   Established   Up     5m12s    2        0       -\n\
             10.89.0.13   64512   Active        Down   -        2        0       Hold Timer Expired (4)\n"
        );
        let wide = list(&answer, true).unwrap();
        assert!(
            wide.lines().next().unwrap().ends_with("ROUTER-ID    DYNAMIC   HOLD   RESTART   RECEIVED   SENT"),
            "{wide}"
        );
    }

    #[test]
    fn a_peer_is_shown_with_its_path_and_its_history() {
        let answer = json!([{ "address": "10.89.0.12", "state": "Established", "lastError": null,
            "bfd": { "state": "Up", "detectionMilliseconds": 270.0, "packetsRefused": { "hop_limit": 2 } },
            "history": [{ "secondsAgo": 75, "state": "Active", "detail": "connection closed" },
                { "secondsAgo": 3, "state": "Established", "detail": "" }] }]);
        let found = find(&answer, "10.89.0.12".parse().unwrap()).unwrap();
        let text = show(&found).unwrap();
        for line in [
            "state                          Established",
            "lastError                      -",
            "bfd.state                      Up",
            "bfd.detectionMilliseconds      270.0",
            "bfd.packetsRefused.hop_limit   2",
            "75s ago: Active connection closed",
            "3s ago: Established",
        ] {
            assert!(text.lines().any(|found| found == line), "{line:?} is not in\n{text}");
        }
        let error = find(&answer, "10.89.0.13".parse().unwrap()).unwrap_err();
        assert!(error.to_string().contains("there is no peer 10.89.0.13"), "{error}");
    }

    #[test]
    fn an_answer_of_another_form_is_an_error_that_names_the_field() {
        let error = list(&json!([{ "address": "10.89.0.12" }]), false).unwrap_err();
        assert!(format!("{error:#}").contains("missing field `state`"), "{error:#}");
    }
}
