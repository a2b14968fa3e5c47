//! The kinds of projectcalico.org/v3 as a server installs them: what they accept, what they refuse, and who wins.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::{DEADLINE, TestServer};

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const PAUSE: Duration = Duration::from_millis(10);
const GROUP: &str = "/apis/projectcalico.org/v3";

fn object(kind: &str, name: &str, spec: Value) -> Value {
    json!({ "apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": { "name": name }, "spec": spec })
}

fn path(kind: &str) -> String {
    let plural = match kind {
        "BGPConfiguration" => "bgpconfigurations",
        "BGPPeer" => "bgppeers",
        "BGPFilter" => "bgpfilters",
        "IPPool" => "ippools",
        "IPReservation" => "ipreservations",
        "BlockAffinity" => "blockaffinities",
        "CalicoNodeStatus" => "caliconodestatuses",
        other => panic!("{other}"),
    };
    format!("{GROUP}/{plural}")
}

/// Manifests as people write them for Calico.
fn accepted() -> Vec<(&'static str, &'static str, Value)> {
    vec![
        (
            "BGPConfiguration",
            "default",
            json!({
                "logSeverityScreen": "Info", "nodeToNodeMeshEnabled": true, "asNumber": 63400, "listenPort": 178,
                "serviceClusterIPs": [{ "cidr": "10.96.0.0/12" }], "serviceExternalIPs": [{ "cidr": "104.244.42.129/32" }],
                "serviceLoadBalancerIPs": [{ "cidr": "203.0.113.0/24" }, { "cidr": "2001:db8::/112" }],
                "nodeMeshMaxRestartTime": "2m0s", "bindMode": "NodeIP", "communities": [{ "name": "rack", "value": "63400:300:100" }],
                "prefixAdvertisements": [{ "cidr": "203.0.113.0/24", "communities": ["rack", "63400:120"] }],
                "nodeMeshPassword": { "secretKeyRef": { "name": "bgp", "key": "mesh" } }, "ignoredInterfaces": ["eth9"],
            }),
        ),
        ("BGPConfiguration", "node.node-1", json!({ "listenPort": 1790 })),
        ("BGPPeer", "tor", json!({ "peerIP": "192.20.30.40", "asNumber": 64567 })),
        ("BGPPeer", "asdot", json!({ "peerIP": "192.20.30.40:1790", "asNumber": "64512.1" })),
        (
            "BGPPeer",
            "v6",
            json!({ "peerIP": "[2001:db8::1]:179", "asNumber": "64512", "nodeSelector": "rack == 'r1'" }),
        ),
        (
            "BGPPeer",
            "all",
            json!({
                "node": "node-1", "peerIP": "2001:db8::1", "asNumber": 4_294_967_295_u32, "nextHopMode": "Self",
                "password": { "secretKeyRef": { "name": "bgp", "key": "tor" } }, "sourceAddress": "None",
                "maxRestartTime": "10s", "numAllowedLocalASNumbers": 1, "ttlSecurity": 1, "filters": ["a", "b"],
            }),
        ),
        (
            "BGPPeer",
            "reflectors",
            json!({ "nodeSelector": "all()", "peerSelector": "route-reflector == 'true'" }),
        ),
        (
            "BGPFilter",
            "f",
            json!({
                "exportV4": [{ "action": "Accept", "matchOperator": "In", "cidr": "77.0.0.0/16",
                    "prefixLength": { "min": 24, "max": 32 }, "peerType": "eBGP",
                    "operations": [{ "addCommunity": { "value": "65000:1" } }, { "prependASPath": { "prefix": [65000] } },
                        { "setPriority": { "value": 512 } }] }],
                "importV6": [{ "action": "Reject", "matchOperator": "NotEqual", "cidr": "2001:db8::/32" }],
                "exportV6": [{ "action": "Reject", "source": "RemotePeers" }],
                "importV4": [{ "action": "Reject", "communities": { "values": ["65000:1:2"] }, "asPathPrefix": ["1.1"],
                    "priority": 1024 }],
            }),
        ),
        ("IPReservation", "kept", json!({ "reservedCIDRs": ["203.0.113.1/32", "2001:db8::/64"] })),
        (
            "BlockAffinity",
            "node-1",
            json!({ "cidr": "10.244.0.0/26", "node": "node-1", "state": "confirmed", "deleted": false }),
        ),
        (
            "CalicoNodeStatus",
            "node-1",
            json!({ "node": "node-1", "classes": ["Agent", "BGP"], "updatePeriodSeconds": 10 }),
        ),
    ]
}

fn accepted_pools() -> Vec<(&'static str, &'static str, Value)> {
    vec![
        ("IPPool", "balancers", pool("203.0.113.0/24", json!({ "blockSize": 26 }))),
        (
            "IPPool",
            "default-ipv4-ippool",
            json!({
                "cidr": "192.168.0.0/16", "blockSize": 26, "ipipMode": "Never", "vxlanMode": "Never", "natOutgoing": true,
                "nodeSelector": "rack == 'r1'", "allowedUses": ["Workload", "Tunnel"], "assignmentMode": "Automatic",
                "disableBGPExport": true,
            }),
        ),
        ("IPPool", "default-ipv6-ippool", json!({ "cidr": "fd00:192:168::/48", "blockSize": 122 })),
    ]
}

fn pool(cidr: &str, more: Value) -> Value {
    let mut spec = json!({ "cidr": cidr, "allowedUses": ["LoadBalancer"] });
    for (key, value) in more.as_object().unwrap() {
        spec[key] = value.clone();
    }
    spec
}

fn peer(more: Value) -> Value {
    let mut spec = json!({ "peerIP": "192.0.2.1", "asNumber": 64567 });
    for (key, value) in more.as_object().unwrap() {
        spec[key] = value.clone();
    }
    spec
}

fn rule(rule: Value) -> Value {
    json!({ "exportV4": [rule] })
}

/// What is refused, and what the message must say.
fn refused_of_addresses() -> Vec<(&'static str, Value, &'static str)> {
    let of_pods = |more: Value| pool("10.0.0.0/16", more);
    vec![
        ("IPPool", of_pods(json!({ "allowedUses": ["Tunnel"] })), "allowedUses [Tunnel] is not supported"),
        (
            "IPPool",
            of_pods(json!({ "allowedUses": ["Workload"], "ipipMode": "CrossSubnet" })),
            "ipipMode is not supported: pods are routed",
        ),
        ("IPPool", json!({ "cidr": "10.0.0.0/24", "blockSize": 22 }), "blockSize must not be shorter"),
        (
            "IPPool",
            pool("10.0.0.0/16", json!({ "ipipMode": "Always" })),
            "ipipMode is not supported: pods are routed",
        ),
        ("IPPool", pool("10.0.0.0/16", json!({ "vxlanMode": "CrossSubnet" })), "vxlanMode is not supported"),
        (
            "IPPool",
            pool("10.0.0.0/16", json!({ "allowedUses": ["LoadBalancer", "Tunnel"] })),
            "LoadBalancer cannot be together with other uses",
        ),
        ("IPPool", pool("10.0.0.0/16", json!({ "disableBGPExport": true })), "disableBGPExport"),
        ("IPPool", pool("10.0.0.0/16", json!({ "nodeSelector": "has(a)" })), "nodeSelector must be all()"),
        ("IPPool", pool("10.0.0.1/16", json!({})), "host bits"),
        ("IPPool", pool("10.0.0.0", json!({})), "cidr"),
        ("IPPool", pool("169.254.0.0/24", json!({})), "link-local"),
        ("IPPool", pool("10.0.0.0/16", json!({ "blockSize": 12 })), "blockSize must be between"),
        ("IPPool", pool("10.0.0.0/16", json!({ "assignmentMode": "Sometimes" })), "assignmentMode"),
        ("IPReservation", json!({ "reservedCIDRs": ["10.0.0.1"] }), "reservedCIDRs"),
    ]
}

fn refused_of_bgp() -> Vec<(&'static str, Value, &'static str)> {
    vec![
        ("BGPPeer", json!({ "nodeSelector": "all()" }), "one of peerIP and peerSelector must be set"),
        ("BGPPeer", peer(json!({ "peerSelector": "has(a)" })), "peerIP and peerSelector cannot both be set"),
        (
            "BGPPeer",
            peer(json!({ "node": "a", "nodeSelector": "has(a)" })),
            "node and nodeSelector cannot both be set",
        ),
        ("BGPPeer", json!({ "peerSelector": "has(a)", "asNumber": 1 }), "asNumber must be left out"),
        ("BGPPeer", peer(json!({ "peerIP": "tor1" })), "peerIP must be ADDRESS"),
        ("BGPPeer", peer(json!({ "peerIP": "192.0.2.1:99999" })), "peerIP must be ADDRESS"),
        ("BGPPeer", peer(json!({ "asNumber": "65536.1" })), "asNumber"),
        ("BGPPeer", peer(json!({ "asNumber": 4_294_967_296_u64 })), "asNumber"),
        ("BGPPeer", peer(json!({ "maxRestartTime": "2h" })), "4095s"),
        ("BGPPeer", peer(json!({ "ttlSecurity": 256 })), "ttlSecurity"),
        ("BGPPeer", peer(json!({ "reachableBy": "192.0.2.9" })), "reachableBy is not supported"),
        (
            "BGPPeer",
            json!({ "localWorkloadSelector": "all()", "asNumber": 1 }),
            "localWorkloadSelector is not supported",
        ),
        (
            "BGPPeer",
            peer(json!({ "keepOriginalNextHop": true, "nextHopMode": "Self" })),
            "cannot both be set",
        ),
        (
            "BGPPeer",
            peer(json!({ "password": { "secretKeyRef": { "name": "a", "key": "b", "optional": true } } })),
            "optional",
        ),
        ("BGPFilter", rule(json!({ "action": "Accept", "cidr": "10.0.0.0/8" })), "cidr and matchOperator"),
        (
            "BGPFilter",
            rule(json!({ "action": "Accept", "cidr": "2001:db8::/32", "matchOperator": "In" })),
            "must be of IPv4",
        ),
        ("BGPFilter", rule(json!({ "action": "Accept", "interface": "eth0" })), "interface is not supported"),
        ("BGPFilter", rule(json!({ "action": "Accept", "priority": 0 })), "priority"),
        ("BGPPeer", peer(json!({ "keepaliveTime": "often" })), "keepaliveTime"),
        (
            "BGPFilter",
            rule(json!({ "action": "Reject", "operations": [{ "addCommunity": { "value": "1:1" } }] })),
            "Accept only",
        ),
        (
            "BGPFilter",
            rule(json!({ "action": "Accept", "operations": [{ "addCommunity": { "value": "70000:1" } }] })),
            "value",
        ),
        ("BGPFilter", rule(json!({ "matchOperator": "In", "cidr": "10.0.0.0/8" })), "action"),
        (
            "CalicoNodeStatus",
            json!({ "node": "a", "classes": ["BIRD"], "updatePeriodSeconds": 1 }),
            "classes",
        ),
    ]
}

fn refused_configurations() -> Vec<(&'static str, Value, &'static str)> {
    vec![
        ("other", json!({}), "the name must be default"),
        ("node.a", json!({ "asNumber": 1 }), "annotation projectcalico.org/ASNumber"),
        ("default", json!({ "bindMode": "None" }), "bindMode None is not supported"),
        ("default", json!({ "programClusterRoutes": "Disabled" }), "programClusterRoutes"),
        ("default", json!({ "logSeverityScreen": "Debug" }), "SEAWAY_LOG"),
        ("default", json!({ "localWorkloadPeeringIPV4": "169.254.9.9" }), "peering with workloads"),
        ("default", json!({ "listenPort": 65536 }), "listenPort"),
        ("default", json!({ "serviceClusterIPs": [{ "cidr": "10.96.0.0" }] }), "cidr"),
        (
            "default",
            json!({ "communities": [{ "name": "a", "value": "1:1" }] }),
            "prefixAdvertisements uses none",
        ),
        (
            "default",
            json!({ "nodeToNodeMeshEnabled": false, "nodeMeshMaxRestartTime": "1s" }),
            "where nodeToNodeMeshEnabled is false",
        ),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calicos_manifests_apply_and_what_is_not_supported_is_refused_by_name() {
    let server = TestServer::start().await;
    let admin = server.admin();
    for (kind, name, spec) in accepted().into_iter().chain(accepted_pools()) {
        admin.post(&path(kind), &object(kind, name, spec)).await.expect(201);
    }
    let configurations = refused_configurations()
        .into_iter()
        .map(|(name, spec, message)| ("BGPConfiguration", name, spec, message));
    let others = refused_of_addresses()
        .into_iter()
        .chain(refused_of_bgp())
        .map(|(kind, spec, message)| (kind, "refused", spec, message));
    for (kind, name, spec, message) in others.chain(configurations) {
        // The name may be taken: what is invalid is said first.
        let answer = admin.post(&path(kind), &object(kind, name, spec.clone())).await;
        let text = answer.refuse(422, "Invalid");
        assert!(text.contains(message), "{kind} {spec}: {text}");
    }
    let stored = admin.get(&format!("{GROUP}/ippools/balancers")).await.expect(200);
    assert_eq!(stored["spec"]["assignmentMode"], "Automatic");
    assert_eq!(stored["spec"]["nodeSelector"], "all()");
    let mut moved = stored.clone();
    moved["spec"]["cidr"] = json!("198.51.100.0/24");
    let text = admin.put(&format!("{GROUP}/ippools/balancers"), &moved).await.refuse(422, "Invalid");
    assert!(text.contains("cidr cannot be changed"), "{text}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_definition_that_somebody_changed_or_brought_along_is_left_as_it_is() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let named = |plural: &str| format!("{DEFINITIONS}/{plural}.projectcalico.org");
    let first =
        |definition: &Value| definition["spec"]["versions"][0]["additionalPrinterColumns"][0]["name"].clone();
    // Changed by a person.
    let mut changed = admin.get(&named("ippools")).await.expect(200);
    changed["spec"]["versions"][0]["additionalPrinterColumns"][0]["name"] = json!("Range");
    admin.put(&named("ippools"), &changed).await.expect(200);
    // Not ours.
    let mut foreign = admin.get(&named("bgppeers")).await.expect(200);
    foreign["metadata"]["annotations"] = json!({});
    foreign["spec"]["versions"][0]["additionalPrinterColumns"][0]["name"] = json!("Whom");
    admin.put(&named("bgppeers"), &foreign).await.expect(200);
    // Ours, of another version of the server.
    let mut old = admin.get(&named("bgpfilters")).await.expect(200);
    let generation = old["metadata"]["generation"].as_i64().unwrap() + 1;
    old["metadata"]["annotations"]["seaway.dev/written"] = json!(format!("{generation} 0123456789abcdef"));
    old["spec"]["names"]["shortNames"] = json!(["oldfilter"]);
    admin.put(&named("bgpfilters"), &old).await.expect(200);
    admin.delete(&named("ipreservations"), &json!({})).await.expect(200);
    let began = Instant::now();
    while admin.get(&named("ipreservations")).await.code != 404 {
        assert!(began.elapsed() < DEADLINE, "the definition is not gone");
        tokio::time::sleep(PAUSE).await;
    }

    let server = TestServer::start_in(server.stop().await).await;
    let admin = server.admin();
    assert_eq!(first(&admin.get(&named("ippools")).await.expect(200)), "Range");
    assert_eq!(first(&admin.get(&named("bgppeers")).await.expect(200)), "Whom");
    let updated = admin.get(&named("bgpfilters")).await.expect(200);
    assert_eq!(updated["spec"]["names"]["shortNames"], json!([]));
    let mark = updated["metadata"]["annotations"]["seaway.dev/written"].as_str().unwrap();
    assert_eq!(mark.split_once(' ').unwrap().0, updated["metadata"]["generation"].to_string());
    admin.get(&named("ipreservations")).await.expect(200);
    server.stop().await;
}
