//! The features of Services, a row each: what is made, and who answers whom.
//!
//! Who asks is on the first node, `here`, or beyond it; `there` is the second node. A row says it for clients of the cluster
//! IP, for clients on the node that use the other addresses, for clients beyond it that use these, and for who asks the
//! second node, which nobody is on.

use serde_json::{Value, json};

/// What is to come of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Each of these answers some, and nobody else any.
    Each(&'static [&'static str]),
    /// One of these answers, and always the same.
    One(&'static [&'static str]),
    /// One of these answers.
    Any(&'static [&'static str]),
    /// As a host does that has no such port.
    Refused,
    /// As a host does that has no such port, or there is no way to it.
    Closed,
    /// As if there were no such Service: no way to the address, of which not every socket is told, or no such port where it is
    /// a node's.
    Nobody,
    /// Nothing comes.
    Silent,
    /// The socket is told that it may not.
    Denied,
}

use Wanted::{Any, Closed, Denied, Each, Nobody, One, Refused, Silent};

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    Pod,
    /// A process of the node.
    Host,
    Outside,
}

/// Slices made by hand, for a Service without a selector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slices {
    /// By the controller, of this many pods.
    Of(usize),
    /// The endpoint here is hinted to the other zone, and that there to this one.
    Crossed,
    /// The Service is not one of ours to balance, or there is none.
    None,
}

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    ClusterIp,
    Balancer,
    External,
    /// The node port, or a pod's, at the first address of the first node.
    Node,
    /// At its second address.
    Second,
    Loopback,
    /// At the second node.
    There,
}

impl Target {
    pub const ALL: [Target; 7] = [
        Target::ClusterIp,
        Target::Balancer,
        Target::External,
        Target::Node,
        Target::Second,
        Target::Loopback,
        Target::There,
    ];

    /// At an address of the Service's own.
    pub fn is_of_service(self) -> bool {
        matches!(self, Target::ClusterIp | Target::Balancer | Target::External)
    }
}

pub struct Row {
    pub name: &'static str,
    /// What its Service has besides addresses and ports; no spec, no Service.
    pub metadata: Value,
    pub spec: Option<Value>,
    /// The Service's `targetPort`.
    pub target_port: Value,
    pub slices: Slices,
    /// What is asked, at which port where that is neither the Service's nor its node port.
    pub targets: &'static [Target],
    pub port: Option<u16>,
    /// This pod alone asks.
    pub only: Option<&'static str>,
    pub internal: Wanted,
    pub inside: Wanted,
    pub beyond: Wanted,
    pub there: Wanted,
    /// By the address of the load balancer, where that is not as by the others.
    pub balancer: Option<fn(Client) -> Wanted>,
    pub is_dual_stack: bool,
}

const HERE: Wanted = Each(&["here:8080"]);
const THERE: Wanted = Each(&["there:8080"]);
const BOTH: Wanted = Each(&["here:8080", "there:8080"]);
const EXPOSED: Wanted = Each(&["exposed-here:8080"]);
const KEPT: Wanted = One(&["here:8080", "there:8080"]);

impl Row {
    fn new(
        name: &'static str,
        spec: Value,
        pods: usize,
        [internal, inside, beyond, there]: [Wanted; 4],
    ) -> Row {
        Row {
            name,
            metadata: json!({}),
            spec: Some(spec),
            target_port: json!(8080),
            slices: Slices::Of(pods),
            targets: &Target::ALL,
            port: None,
            only: None,
            internal,
            inside,
            beyond,
            there,
            balancer: None,
            is_dual_stack: true,
        }
    }

    fn selecting(name: &'static str, select: Value, pods: usize, wanted: Wanted) -> Row {
        Row::new(name, json!({ "selector": select }), pods, [wanted; 4])
    }

    /// To both plain pods.
    fn both(name: &'static str, mut spec: Value, wanted: [Wanted; 4]) -> Row {
        if spec["selector"].is_null() {
            spec["selector"] = json!({ "app": "plain" });
        }
        Row::new(name, spec, 2, wanted)
    }

    /// No Service.
    fn none(name: &'static str, wanted: [Wanted; 4]) -> Row {
        Row { spec: None, slices: Slices::None, ..Row::new(name, Value::Null, 0, wanted) }
    }

    fn annotated(name: &'static str, value: &str, wanted: Wanted) -> Row {
        let mut row = Row::both(name, json!({}), [wanted; 4]);
        row.metadata = json!({ "annotations": { "seaway.dev/load-balancing": value } });
        row
    }

    fn balancer(mut self, wanted: fn(Client) -> Wanted) -> Row {
        self.balancer = Some(wanted);
        self
    }
}

/// All rows; the place of each is its number.
pub fn rows() -> Vec<Row> {
    let mut rows = places();
    rows.extend(policies());
    rows.extend(conditions());
    rows.extend(choices());
    rows.extend(nobody());
    rows
}

/// Where the backend is.
fn places() -> Vec<Row> {
    let plain = |at: &str| json!({ "app": "plain", "at": at });
    let mut named = Row::selecting(
        "a named target port, another number at each pod",
        json!({ "app": "plain" }),
        2,
        Each(&["here:8081", "there:8082"]),
    );
    named.target_port = json!("web");
    let mut single = Row::selecting("a Service of IPv4 alone", plain("here"), 1, HERE);
    single.is_dual_stack = false;
    let mut hosts = Row::selecting(
        "backends in their hosts' network",
        json!({ "app": "host" }),
        2,
        Each(&["host-here:8088", "host-there:8088"]),
    );
    hosts.target_port = json!(8088);
    let mut exposed = Row::none("hostPort", [EXPOSED, EXPOSED, EXPOSED, Each(&["exposed-there:8080"])]);
    exposed.targets = &[Target::Node, Target::Second, Target::Loopback, Target::There];
    exposed.port = Some(18080);
    vec![
        Row::selecting("a backend here", plain("here"), 1, HERE),
        Row::selecting("a backend there", plain("there"), 1, THERE),
        Row::selecting("a backend on each node", json!({ "app": "plain" }), 2, BOTH),
        hosts,
        named,
        single,
        exposed,
        itself("client-sockets", "itself by sockets", Each(&["client-sockets:8080"])),
        itself("client-packets", "itself by packets", Each(&["client-packets:8080"])),
    ]
}

/// A pod that is its Service's only backend.
fn itself(pod: &'static str, name: &'static str, wanted: Wanted) -> Row {
    Row { only: Some(pod), ..Row::selecting(name, json!({ "client": pod }), 1, wanted) }
}

fn policies() -> Vec<Row> {
    let local = |at: Option<&str>, field: &str| {
        let mut spec = json!({ field: "Local" });
        if let Some(at) = at {
            spec["selector"] = json!({ "app": "plain", "at": at });
        }
        spec
    };
    let internal = |at| local(at, "internalTrafficPolicy");
    let external = |at| local(at, "externalTrafficPolicy");
    let pods = |mut row: Row, pods| {
        row.slices = Slices::Of(pods);
        row
    };
    let near = |way: &str| json!({ "trafficDistribution": way });
    let mut crossed = Row::new("hints of a slice made by hand", json!({}), 0, [THERE, THERE, THERE, HERE]);
    crossed.slices = Slices::Crossed;
    vec![
        Row::both("internal policy Local", internal(None), [HERE, BOTH, BOTH, BOTH]),
        pods(
            Row::both(
                "internal policy Local, nothing here",
                internal(Some("there")),
                [Silent, THERE, THERE, THERE],
            ),
            1,
        ),
        Row::both("external policy Local", external(None), [BOTH, BOTH, HERE, THERE]),
        pods(
            Row::both(
                "external policy Local, nothing there",
                external(Some("here")),
                [HERE, HERE, HERE, Silent],
            ),
            1,
        ),
        pods(
            Row::both(
                "external policy Local, nothing here",
                external(Some("there")),
                [THERE, THERE, Silent, THERE],
            ),
            1,
        ),
        Row::both("the same zone preferred", near("PreferSameZone"), [HERE, HERE, HERE, THERE]),
        Row::both("the same node preferred", near("PreferSameNode"), [HERE, HERE, HERE, THERE]),
        crossed,
    ]
}

/// What state the endpoints are in.
fn conditions() -> Vec<Row> {
    let leaving: Wanted = Each(&["leaving-here:8080", "leaving-there:8080"]);
    let unready: Wanted = Each(&["unready-here:8080", "unready-there:8080"]);
    let here = Each(&["leaving-here:8080"]);
    let select = |label: &str| json!({ "selector": { label: "yes" } });
    let mut published = select("unready");
    published["publishNotReadyAddresses"] = json!(true);
    let mut local = select("leaves-here");
    local["externalTrafficPolicy"] = json!("Local");
    vec![
        Row::selecting("terminating here, ready there", json!({ "leaves-here": "yes" }), 2, THERE),
        Row::selecting("all terminating and serving", json!({ "leaving": "yes" }), 2, leaving),
        Row::new(
            "external policy Local, terminating here, ready there",
            local,
            2,
            [THERE, THERE, here, THERE],
        ),
        Row::selecting("terminating and not serving", json!({ "gone": "yes" }), 1, Refused),
        Row::selecting("none ready", json!({ "unready": "yes" }), 2, Refused),
        Row::new("publishNotReadyAddresses", published, 2, [unready; 4]),
    ]
}

/// Which backend, and for whom.
fn choices() -> Vec<Row> {
    let affinity = json!({ "sessionAffinity": "ClientIP" });
    let ranges = |ranges: [&str; 2]| json!({ "loadBalancerSourceRanges": ranges });
    vec![
        Row::both("session affinity", affinity, [KEPT; 4]),
        Row::annotated("by Maglev", "maglev", BOTH),
        // Flows of other rows count too.
        Row::annotated("by least connections", "least-connections", Any(&["here:8080", "there:8080"])),
        Row::both("source ranges of pods", ranges(["10.244.0.0/16", "fd00:10:244::/64"]), [BOTH; 4])
            .balancer(|client| match client {
                Client::Pod => BOTH,
                Client::Host => Denied,
                Client::Outside => Silent,
            }),
        Row::both("source ranges of nodes", ranges(["192.0.2.11/32", "2001:db8:1::11/128"]), [BOTH; 4])
            .balancer(|client| match client {
                Client::Host => BOTH,
                Client::Pod | Client::Outside => Silent,
            }),
        Row::both("source ranges beyond", ranges(["192.0.2.200/32", "2001:db8:1::200/128"]), [BOTH; 4])
            .balancer(|client| match client {
                Client::Outside => BOTH,
                Client::Host => Denied,
                Client::Pod => Silent,
            }),
    ]
}

fn nobody() -> Vec<Row> {
    let nothing = json!({ "app": "nothing" });
    let local =
        json!({ "selector": nothing, "externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local" });
    let mut others = Row::both("service-proxy-name", json!({}), [Nobody; 4]);
    others.slices = Slices::None;
    others.metadata = json!({ "labels": { "service.kubernetes.io/service-proxy-name": "another" } });
    let mut closed = Row::both("a port that it has not", json!({}), [Closed, Nobody, Nobody, Nobody]);
    closed.targets = &[Target::ClusterIp, Target::Balancer, Target::External];
    closed.port = Some(81);
    vec![
        Row::selecting("no endpoints", nothing.clone(), 0, Refused),
        Row::new("no endpoints, both policies Local", local, 0, [Refused; 4]),
        closed,
        others,
        Row::none("no Service", [Nobody; 4]),
    ]
}
