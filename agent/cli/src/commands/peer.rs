use std::net::{IpAddr, Ipv4Addr};

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
}

pub fn list(answer: &Value, wide: bool) -> anyhow::Result<String> {
    let mut peers: Vec<Peer> = read(answer)?;
    peers.sort_by_key(|peer| peer.address);
    let mut table = Table::new(
        &["ADDRESS", "ASN", "STATE", "UPTIME", "ROUTES", "STALE", "LAST-ERROR"],
        &["ROUTER-ID", "DYNAMIC", "HOLD", "RESTART", "RECEIVED", "SENT"],
        "No peers: this node is told of none, and none has connected.",
    );
    for peer in peers {
        table.row([
            peer.address.to_string(),
            known(peer.asn),
            peer.state,
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn peers_are_listed_by_address_with_their_last_error() {
        let peer = |address: &str, state: &str, up: Option<u64>, error: Option<&str>| {
            json!({ "address": address, "asn": 64512, "routerId": "10.89.0.12", "state": state, "dynamic": true,
                "establishedSeconds": up, "holdTimeSeconds": 90, "gracefulRestart": true, "routes": 2,
                "routesStale": 0, "messagesReceived": 7, "messagesSent": 8, "lastError": error })
        };
        let answer = json!([
            peer("10.89.0.13", "Active", None, Some("Hold Timer Expired (4)")),
            peer("10.89.0.12", "Established", Some(312), None),
        ]);
        assert_eq!(
            list(&answer, false).unwrap(),
            "ADDRESS      ASN     STATE         UPTIME   ROUTES   STALE   LAST-ERROR\n\
             10.89.0.12   64512   Established   5m12s    2        0       -\n\
             10.89.0.13   64512   Active        -        2        0       Hold Timer Expired (4)\n"
        );
        let wide = list(&answer, true).unwrap();
        assert!(
            wide.lines().next().unwrap().ends_with("ROUTER-ID    DYNAMIC   HOLD   RESTART   RECEIVED   SENT"),
            "{wide}"
        );
    }

    #[test]
    fn an_answer_of_another_form_is_an_error_that_names_the_field() {
        let error = list(&json!([{ "address": "10.89.0.12" }]), false).unwrap_err();
        assert!(format!("{error:#}").contains("missing field `state`"), "{error:#}");
    }
}
