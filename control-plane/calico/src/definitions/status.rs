//! CalicoNodeStatus: what a node says of its peers and routes, where somebody asks.

use serde_json::{Value, json};

use super::{
    Names, definition,
    schema::{choice, integer, list, object, set, text},
};

pub(super) fn node_status() -> Value {
    let names = Names { kind: "CalicoNodeStatus", plural: "caliconodestatuses", short: &[] };
    let columns = [
        ("Node", "string", ".spec.node"),
        ("Classes", "string", ".spec.classes"),
        ("Updated", "date", ".status.lastUpdated"),
    ];
    let classes =
        choice(&["Agent", "BGP", "Routes"], "Agent: the speaker. BGP: its peers. Routes: what it knows.");
    let mut spec = object(
        "What is asked of which node.",
        json!({
            "node": text(253, "The node."),
            "classes": set(classes, 3, "What is asked."),
            "updatePeriodSeconds": integer(0, 86400, "Seconds between two answers; 0 stops them."),
        }),
    );
    spec["required"] = json!(["node", "classes", "updatePeriodSeconds"]);
    definition(&names, &columns, spec, Some(answer()), Vec::new())
}

fn answer() -> Value {
    let plain = |description: &str| json!({ "type": "string", "description": description });
    let count = |description: &str| integer(0, i64::from(u32::MAX), description);
    let daemon = object(
        "The speaker, for one family.",
        json!({
            "state": choice(&["Ready", "NotReady"], "Whether it works."),
            "version": plain("Version of the agent."),
            "routerID": plain("BGP identifier (RFC 4271)."),
            "lastBootTime": plain("Since when it runs."),
            "lastReconfigurationTime": plain("When its configuration changed last."),
        }),
    );
    let peer = object(
        "One peer.",
        json!({
            "peerIP": plain("Its address."),
            "type": choice(&["NodeMesh", "NodePeer", "GlobalPeer"], "Why it is a peer."),
            "state": choice(
                &["Idle", "Connect", "Active", "OpenSent", "OpenConfirm", "Established", "Close"],
                "State of the session (RFC 4271).",
            ),
            "since": plain("Since when."),
        }),
    );
    let source = object(
        "Where a route was learned.",
        json!({
            "sourceType": choice(&["Kernel", "Static", "Direct", "NodeMesh", "BGPPeer"], "From what."),
            "peerIP": plain("From which peer."),
        }),
    );
    let route = object(
        "One route.",
        json!({
            "type": choice(&["FIB", "RIB"], "FIB: packets follow it."),
            "destination": plain("Where to."),
            "gateway": plain("By which router."),
            "interface": plain("By which link."),
            "learnedFrom": source,
        }),
    );
    let peers = |family: &str| list(peer.clone(), 10_000, &format!("Peers over {family}."));
    let routes =
        |family: &str| list(route.clone(), 100_000, &format!("Routes of {family}; the first 5,000."));
    object(
        "The answer.",
        json!({
            "lastUpdated": { "type": "string", "format": "date-time", "nullable": true },
            "agent": object("Class Agent.", json!({ "birdV4": daemon.clone(), "birdV6": daemon })),
            "bgp": object("Class BGP.", json!({
                "numberEstablishedV4": count("Sessions over IPv4 that are up."),
                "numberNotEstablishedV4": count("Sessions over IPv4 that are not."),
                "numberEstablishedV6": count("Sessions over IPv6 that are up."),
                "numberNotEstablishedV6": count("Sessions over IPv6 that are not."),
                "peersV4": peers("IPv4"),
                "peersV6": peers("IPv6"),
            })),
            "routes": object("Class Routes.", json!({ "routesV4": routes("IPv4"), "routesV6": routes("IPv6") })),
        }),
    )
}
