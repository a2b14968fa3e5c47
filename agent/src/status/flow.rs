//! A flow as a row, with both of its directions.

use std::net::SocketAddr;

use dataplane::flows::{FlowEntry, Half, Way};
use serde_json::{Value, json};

use super::hosts::Hosts;
use super::protocol_name;
use super::rows::{Row, end};

pub fn flow_row(flow: &FlowEntry, service: Option<&String>, hosts: &Hosts) -> Row {
    let at = |(address, port)| json!(SocketAddr::new(address, port).to_string());
    let way = match flow.way {
        Way::Direct => "direct",
        Way::Hairpin => "hairpin",
        Way::Forwarded => "forwarded",
        Way::Masqueraded => "masqueraded",
    };
    vec![
        ("protocol", json!(protocol_name(flow.protocol))),
        ("client", at(flow.client)),
        ("clientName", json!(hosts.name(flow.client.0))),
        ("frontend", at(flow.frontend)),
        ("service", json!(service)),
        ("serviceId", json!(flow.service_id)),
        ("backend", at(flow.backend)),
        ("backendName", json!(hosts.name(flow.backend.0))),
        ("backendId", json!(flow.backend_id)),
        ("seenAs", at(flow.seen_as)),
        ("state", json!(flow.state)),
        ("way", json!(way)),
        ("answered", json!(flow.answered)),
        ("closing", json!(flow.closing)),
        ("idleSeconds", json!(flow.idle_seconds)),
        ("timeoutSeconds", json!(flow.timeout_seconds)),
        ("fromClient", half(&flow.from_client)),
        ("fromBackend", flow.from_backend.as_ref().map_or(Value::Null, half)),
    ]
}

fn half(half: &Half) -> Value {
    let tuple = |tuple: &ebpf_common::Tuple| {
        let (source, destination) =
            (end(&tuple.source, tuple.source_port), end(&tuple.destination, tuple.destination_port));
        json!({ "source": source, "destination": destination })
    };
    json!({
        "packet": tuple(&half.tuple),
        "becomes": tuple(&half.translated),
        "seen": half.seen,
        "fin": half.fin,
        "rst": half.rst,
        "chunks": ebpf_common::sctp::names(half.said).collect::<Vec<_>>(),
        "idleSeconds": half.idle_seconds,
    })
}
