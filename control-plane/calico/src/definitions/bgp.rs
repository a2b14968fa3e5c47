//! BGPConfiguration, BGPPeer and BGPFilter.

use serde_json::{Value, json};

use super::{
    Names, definition,
    schema::{
        SELECTOR_MAX, as_number, atomic, choice, cidr, community, default, duration, flag, integer, list,
        object, password, restart_time, rule, rules, set, text,
    },
};

/// Rules of a filter in each direction and family. Calico sets no limit; an object of more would be too large anyway.
const FILTER_RULES_MAX: usize = 1000;

pub(super) fn configuration() -> Value {
    let names =
        Names { kind: "BGPConfiguration", plural: "bgpconfigurations", short: &["bgpconfig", "bgpconfigs"] };
    let columns = [("ASN", "string", ".spec.asNumber"), ("Mesh", "boolean", ".spec.nodeToNodeMeshEnabled")];
    let spec = rules(
        object("How nodes speak BGP, and what they announce.", configuration_fields()),
        &[
            (
                "!has(self.nodeMeshPassword) || !has(self.nodeToNodeMeshEnabled) || self.nodeToNodeMeshEnabled",
                "nodeMeshPassword cannot be set where nodeToNodeMeshEnabled is false",
            ),
            (
                "!has(self.nodeMeshMaxRestartTime) || !has(self.nodeToNodeMeshEnabled) || self.nodeToNodeMeshEnabled",
                "nodeMeshMaxRestartTime cannot be set where nodeToNodeMeshEnabled is false",
            ),
            (
                "!has(self.communities) || self.communities.size() == 0 || \
                 has(self.prefixAdvertisements) && self.prefixAdvertisements.size() > 0",
                "communities are defined, but prefixAdvertisements uses none",
            ),
        ],
    );
    let root = [
        (
            "self.metadata.name == 'default' || self.metadata.name.startsWith('node.')",
            "the name must be default, or node.NAME for one node",
        ),
        (
            "self.metadata.name == 'default' || \
             !has(self.spec.nodeToNodeMeshEnabled) && !has(self.spec.asNumber) && !has(self.spec.serviceLoadBalancerIPs) && \
             !has(self.spec.serviceExternalIPs) && !has(self.spec.serviceClusterIPs) && !has(self.spec.nodeMeshPassword) && \
             !has(self.spec.nodeMeshMaxRestartTime)",
            "of one node only listenPort and prefixAdvertisements with communities can be set; the rest belongs into \
             default, and a node's AS number into its annotation projectcalico.org/ASNumber",
        ),
    ];
    let root = root.iter().map(|(rule, message)| json!({ "rule": rule, "message": message })).collect();
    definition(&names, &columns, spec, None, root)
}

fn configuration_fields() -> Value {
    let blocks = |of: &str, description: &str| {
        let block = atomic(object("A range.", json!({ "cidr": cidr(&format!("Range of {of}.")) })));
        list(block, 500, description)
    };
    let unsupported = |schema: Value, accepted: &str, message: &str| rule(schema, accepted, message);
    let names = atomic(object(
        "A name for a value.",
        json!({ "name": text(253, "The name."), "value": community("aa:nn, or aa:nn:mm for a large community.") }),
    ));
    let advertisement = atomic(object(
        "What is said of announced prefixes within a range.",
        json!({
            "cidr": cidr("The range."),
            "communities": list(text(253, "aa:nn, aa:nn:mm, or a name of communities."), 50, "What they carry."),
        }),
    ));
    let priority = |family: &str| {
        let of = integer(1, 2_147_483_646, &format!("Metric of routes of {family}. Only 1024 is supported."));
        unsupported(of, "self == 1024", "metrics of routes are not supported: leave it out")
    };
    let local = |family: &str| {
        let of = text(64, &format!("Not supported ({family})."));
        unsupported(of, "self == ''", "peering with workloads is not supported: leave it out")
    };
    json!({
        "logSeverityScreen": default(
            unsupported(
                text(16, "Only Info is supported; what an agent logs is said by its environment."),
                "self.lowerAscii() in ['', 'info']",
                "logSeverityScreen is not supported: set SEAWAY_LOG of seaway-agent instead",
            ),
            "Info",
        ),
        "nodeToNodeMeshEnabled": flag("Whether every node peers with every other. Default: true."),
        "asNumber": as_number("AS of the nodes. Default: what the agents were started with, 64512 where nothing was said."),
        "serviceLoadBalancerIPs": blocks("load balancers", "Addresses of load balancers are announced within these ranges."),
        "serviceExternalIPs": blocks("external IPs", "External IPs of Services are announced within these ranges."),
        "serviceClusterIPs": blocks("cluster IPs", "Announced themselves, and cluster IPs within them."),
        "serviceLoadBalancerAggregation": default(
            choice(&["Enabled", "Disabled"], "Enabled: the range is announced. Disabled: each address."),
            "Enabled",
        ),
        "communities": list(names, 500, "Names for values, for use in prefixAdvertisements."),
        "prefixAdvertisements": list(advertisement, 500, "Communities of announced prefixes."),
        "listenPort": integer(1, 65535, "TCP port of BGP. Default: 179."),
        "nodeMeshPassword": password("Password between nodes (RFC 2385)."),
        "nodeMeshMaxRestartTime": restart_time("How long nodes keep routes of one that restarts. Default: 120s."),
        "bindMode": unsupported(
            choice(&["None", "NodeIP"], "NodeIP: BGP is answered at the node's addresses. None is not supported."),
            "self == 'NodeIP'",
            "bindMode None is not supported: BGP is answered at the node's addresses; use NodeIP or leave it out",
        ),
        "ignoredInterfaces": set(text(64, "A link."), 100, "Of no effect: routes of links are not announced."),
        "localWorkloadPeeringIPV4": local("IPv4"),
        "localWorkloadPeeringIPV6": local("IPv6"),
        "programClusterRoutes": unsupported(
            choice(
                &["Enabled", "Disabled", "EnabledIPIPOnly", "EnabledNoEncapOnly"],
                "Routes to pods of other nodes are always in the kernel.",
            ),
            "self in ['Enabled', 'EnabledNoEncapOnly']",
            "programClusterRoutes must be Enabled or EnabledNoEncapOnly: nodes always have routes to each other's pods",
        ),
        "ipv4NormalRoutePriority": priority("IPv4"),
        "ipv6NormalRoutePriority": priority("IPv6"),
    })
}

pub(super) fn peer() -> Value {
    let names = Names { kind: "BGPPeer", plural: "bgppeers", short: &[] };
    let columns = [
        ("Peer IP", "string", ".spec.peerIP"),
        ("Peer ASN", "string", ".spec.asNumber"),
        ("Peer Selector", "string", ".spec.peerSelector"),
        ("Node", "string", ".spec.node"),
        ("Node Selector", "string", ".spec.nodeSelector"),
    ];
    let spec = rules(
        object("Whom which nodes peer with.", peer_fields()),
        &[
            (
                "!has(self.node) || self.node == '' || !has(self.nodeSelector) || self.nodeSelector == ''",
                "node and nodeSelector cannot both be set",
            ),
            (
                "!has(self.peerIP) || self.peerIP == '' || !has(self.peerSelector) || self.peerSelector == ''",
                "peerIP and peerSelector cannot both be set",
            ),
            (
                "has(self.peerIP) && self.peerIP != '' || has(self.peerSelector) && self.peerSelector != ''",
                "one of peerIP and peerSelector must be set",
            ),
            (
                "!has(self.peerSelector) || self.peerSelector == '' || !has(self.asNumber) || self.asNumber == 0",
                "asNumber must be left out where peerSelector is set: nodes have their own",
            ),
            (
                "!has(self.keepOriginalNextHop) || !self.keepOriginalNextHop || !has(self.nextHopMode)",
                "keepOriginalNextHop and nextHopMode cannot both be set; keepOriginalNextHop is the older word",
            ),
        ],
    );
    definition(&names, &columns, spec, None, Vec::new())
}

fn peer_fields() -> Value {
    let selector = |description: &str| text(SELECTOR_MAX, description);
    let refused = |schema: Value, accepted: &str, message: &str| rule(schema, accepted, message);
    json!({
        "node": text(253, "The node that has this peer. Empty, and without nodeSelector: all nodes."),
        "nodeSelector": selector("The nodes that have this peer, by their labels: rack == 'r1'."),
        "peerIP": rule(
            text(64, "Address of the peer: ADDRESS, IPV4:PORT or [IPV6]:PORT."),
            "self == '' || isIP(self) || self.matches('^[0-9.]+:[0-9]{1,5}$') && isIP(self.split(':')[0]) && \
             int(self.split(':')[1]) >= 1 && int(self.split(':')[1]) <= 65535 || \
             self.matches('^\\\\[[0-9a-fA-F:.]+\\\\]:[0-9]{1,5}$') && isIP(self.split(']:')[0].substring(1)) && \
             int(self.split(']:')[1]) >= 1 && int(self.split(']:')[1]) <= 65535",
            "peerIP must be ADDRESS, IPV4:PORT or [IPV6]:PORT",
        ),
        "asNumber": as_number("AS of the peer. Left out: that of the node."),
        "localASNumber": as_number("AS that this peer sees the node in."),
        "peerSelector": selector("The nodes that are peers, by their labels, in place of peerIP."),
        "keepOriginalNextHop": flag("The older word for nextHopMode: Keep."),
        "nextHopMode": choice(&["Auto", "Self", "Keep"], "Next hop of what is sent to the peer. Auto: as BGP has it."),
        "password": password("Password of the session (RFC 2385)."),
        "sourceAddress": choice(&["UseNodeIP", "None"], "UseNodeIP: the node's address. None: as routing has it."),
        "maxRestartTime": restart_time("How long the peer is asked to keep routes while the node restarts. Default: 120s."),
        "keepaliveTime": duration("How often keepalives are sent, a third of the hold time at most."),
        "numAllowedLocalASNumbers": integer(0, 10, "How often the node's own AS may be in the path of what it learns."),
        "ttlSecurity": integer(0, 254, "Hops to the peer: packets from further away are not heard (RFC 5082)."),
        "reachableBy": refused(
            text(64, "Not supported."),
            "self == ''",
            "reachableBy is not supported: give the node a static route to the peer instead",
        ),
        "filters": list(text(253, "Name of a BGPFilter."), 100, "What is learned and announced; the first that decides."),
        "localWorkloadSelector": refused(
            selector("Not supported."),
            "self == ''",
            "localWorkloadSelector is not supported: peering with workloads is not possible",
        ),
        "reversePeering": choice(&["Auto", "Manual"], "Auto: nodes of peerSelector get this peer's nodes as peers, too."),
    })
}

pub(super) fn filter() -> Value {
    let names = Names { kind: "BGPFilter", plural: "bgpfilters", short: &[] };
    let rules = |v4: bool, description: &str| list(filter_rule(v4), FILTER_RULES_MAX, description);
    let spec = object(
        "What is learned from a peer and announced to it. The first rule that matches decides; without one the next filter.",
        json!({
            "exportV4": rules(true, "For prefixes of IPv4 that are announced."),
            "importV4": rules(true, "For prefixes of IPv4 that are learned."),
            "exportV6": rules(false, "For prefixes of IPv6 that are announced."),
            "importV6": rules(false, "For prefixes of IPv6 that are learned."),
        }),
    );
    definition(&names, &[], spec, None, Vec::new())
}

fn filter_rule(v4: bool) -> Value {
    let bits = if v4 { 32 } else { 128 };
    let family = if v4 { 4 } else { 6 };
    let prefix = rule(
        cidr("The range that the prefix is compared with."),
        &format!("!isCIDR(self) || cidr(self).ip().family() == {family}"),
        &format!("must be of IPv{family}"),
    );
    let lengths = json!({ "min": integer(0, bits, "From this on."), "max": integer(0, bits, "Up to this.") });
    let mut communities = object(
        "A community that the route must carry.",
        json!({ "values": list(community("aa:nn or aa:nn:mm."), 1, "Exactly one.") }),
    );
    communities["required"] = json!(["values"]);
    communities["properties"]["values"]["minItems"] = json!(1);
    let mut of = object(
        "All that it says must hold of a route; then the action is taken.",
        json!({
            "cidr": prefix,
            "matchOperator": choice(&["Equal", "NotEqual", "In", "NotIn"], "How the prefix is compared with cidr."),
            "prefixLength": atomic(object("Lengths of the prefix, in bits.", lengths)),
            "source": choice(&["RemotePeers"], "RemotePeers: not what this node announces of its own."),
            "interface": rule(text(15, "Not supported."), "self == ''", "interface is not supported: match by cidr instead"),
            "peerType": choice(&["eBGP", "iBGP"], "Peers in another AS, or in the node's."),
            "communities": atomic(communities),
            "asPathPrefix": list(as_number("An AS."), 100, "What the AS path begins with."),
            "priority": integer(1, 2_147_483_646, "The route's metric, as LOCAL_PREF carries it inside an AS."),
            "action": choice(&["Accept", "Reject"], "What becomes of the route."),
            "operations": operations(),
        }),
    );
    of["required"] = json!(["action"]);
    rules(
        atomic(of),
        &[
            (
                "has(self.cidr) == has(self.matchOperator)",
                "cidr and matchOperator must be set both or neither",
            ),
            ("!has(self.prefixLength) || has(self.cidr)", "prefixLength is of use with cidr only"),
            (
                "!has(self.operations) || self.action == 'Accept'",
                "operations are of use with action Accept only",
            ),
        ],
    )
}

fn operations() -> Value {
    let mut add = object("Adds a community.", json!({ "value": community("aa:nn or aa:nn:mm.") }));
    add["required"] = json!(["value"]);
    let mut numbers = list(as_number("An AS."), 10, "The path begins with these, in this order.");
    numbers["minItems"] = json!(1);
    let mut prepend = object("Lengthens the AS path.", json!({ "prefix": numbers }));
    prepend["required"] = json!(["prefix"]);
    let mut priority =
        object("Sets the route's metric.", json!({ "value": integer(1, 2_147_483_646, "Lower is better.") }));
    priority["required"] = json!(["value"]);
    let mut operation = object(
        "Exactly one change of the route.",
        json!({ "addCommunity": atomic(add), "prependASPath": atomic(prepend), "setPriority": atomic(priority) }),
    );
    operation["minProperties"] = json!(1);
    operation["maxProperties"] = json!(1);
    let mut operations = list(atomic(operation), 10, "Changes of the route, in this order.");
    operations["minItems"] = json!(1);
    operations
}
