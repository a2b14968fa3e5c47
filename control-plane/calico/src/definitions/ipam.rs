//! IPPool, IPReservation and BlockAffinity.

use serde_json::{Value, json};

use super::{
    Names, definition,
    schema::{SELECTOR_MAX, choice, cidr, default, flag, integer, list, object, rule, rules, set, text},
};

const NO_TUNNEL: &str = "is not supported: pods are routed, without encapsulation; use Never or leave it out";
const MODES: [&str; 3] = ["Never", "Always", "CrossSubnet"];

pub(super) fn pool() -> Value {
    let names = Names { kind: "IPPool", plural: "ippools", short: &["ipp", "ipps", "pool", "pools"] };
    let columns = [
        ("CIDR", "string", ".spec.cidr"),
        ("Uses", "string", ".spec.allowedUses"),
        ("Assignment", "string", ".spec.assignmentMode"),
        ("Disabled", "boolean", ".spec.disabled"),
    ];
    let mut spec = object("What the pool is for.", pool_fields());
    spec["required"] = json!(["cidr"]);
    definition(&names, &columns, pool_rules(spec), Some(pool_status()), Vec::new())
}

fn pool_fields() -> Value {
    let mode = |name: &str, how: &str| {
        let of = choice(&MODES, &format!("{how} between nodes. Only Never is supported."));
        rule(of, "self == 'Never'", &format!("{name} {NO_TUNNEL}"))
    };
    let immutable = |schema: Value, message: &str| rule(schema, "self == oldSelf", message);
    json!({
        "cidr": immutable(
            cidr("The addresses of the pool. Cannot be changed."),
            "cidr cannot be changed; make another pool, and disable this one",
        ),
        "vxlanMode": mode("vxlanMode", "VXLAN tunnels"),
        "ipipMode": mode("ipipMode", "IPIP tunnels"),
        "natOutgoing": flag("What pods send to hosts outside of the cluster leaves with their node's address. Of no effect \
                             on addresses of Services."),
        "disabled": flag("Gives no more addresses; those that are given stay with their pods and Services."),
        "disableBGPExport": flag("No block of the pool is announced to anybody, other nodes included. Must be false for \
                                  LoadBalancer: addresses of Services are announced as BGPConfiguration says."),
        "blockSize": immutable(
            integer(0, 128, "Length of the prefixes that nodes get; 0 or none is 26 for IPv4 and 122 for IPv6, or the \
                             pool's own length where that is longer. Of no effect on addresses of Services, which are \
                             given one by one. Cannot be changed."),
            "blockSize cannot be changed; make another pool, and disable this one",
        ),
        "nodeSelector": default(
            text(SELECTOR_MAX, "Nodes that get blocks of it. Must be all() for LoadBalancer: every node serves the address."),
            "all()",
        ),
        "namespaceSelector": text(SELECTOR_MAX, "Namespaces whose pods, or Services, are given an address without asking \
                                                 for the pool by name. Empty: all."),
        "allowedUses": default(
            set(
                choice(&["Workload", "Tunnel", "LoadBalancer"], "A use of the addresses."),
                10,
                "What the addresses are for: Workload for pods, or LoadBalancer alone. Tunnel asks for nothing, as there \
                 are no tunnels.",
            ),
            json!(["Workload", "Tunnel"]),
        ),
        "assignmentMode": default(
            choice(&["Automatic", "Manual"], "Automatic: for every pod, or every Service of type LoadBalancer. Manual: for \
                                              those that name the pool or an address of it."),
            "Automatic",
        ),
    })
}

fn pool_rules(spec: Value) -> Value {
    rules(
        spec,
        &[
            (
                "!has(self.allowedUses) || !('LoadBalancer' in self.allowedUses) || self.allowedUses.size() == 1",
                "allowedUses: LoadBalancer cannot be together with other uses; make two pools",
            ),
            (
                "!has(self.allowedUses) || self.allowedUses.size() != 1 || self.allowedUses[0] != 'Tunnel'",
                "allowedUses [Tunnel] is not supported: pods are routed, without encapsulation",
            ),
            (
                "!has(self.allowedUses) || !('LoadBalancer' in self.allowedUses) || !has(self.disableBGPExport) || \
                 !self.disableBGPExport",
                "disableBGPExport is not possible for LoadBalancer",
            ),
            (
                "!has(self.allowedUses) || !('LoadBalancer' in self.allowedUses) || self.nodeSelector == 'all()'",
                "nodeSelector must be all() for LoadBalancer",
            ),
            (
                "!has(self.blockSize) || self.blockSize == 0 || !isCIDR(self.cidr) || \
                 self.blockSize >= cidr(self.cidr).prefixLength()",
                "blockSize must not be shorter than the prefix of cidr: a block is a part of the pool",
            ),
            (
                "!has(self.namespaceSelector) || !self.namespaceSelector.contains('global(')",
                "namespaceSelector cannot be global(): pods and Services are in namespaces",
            ),
            (
                "!isCIDR(self.cidr) || cidr(self.cidr) == cidr(self.cidr).masked()",
                "cidr must not have host bits set",
            ),
            (
                "!isCIDR(self.cidr) || !cidr('169.254.0.0/16').containsIP(cidr(self.cidr).ip()) && \
                 !cidr(self.cidr).containsIP('169.254.0.0')",
                "cidr overlaps with the link-local range 169.254.0.0/16",
            ),
            (
                "!isCIDR(self.cidr) || !cidr('fe80::/10').containsIP(cidr(self.cidr).ip()) && \
                 !cidr(self.cidr).containsIP('fe80::')",
                "cidr overlaps with the link-local range fe80::/10",
            ),
            (
                "!has(self.blockSize) || self.blockSize == 0 || !isCIDR(self.cidr) || (cidr(self.cidr).ip().family() == 4 ? \
                 self.blockSize >= 20 && self.blockSize <= 32 : self.blockSize >= 116 && self.blockSize <= 128)",
                "blockSize must be between 20 and 32 for IPv4, and between 116 and 128 for IPv6",
            ),
        ],
    )
}

fn pool_status() -> Value {
    let condition = json!({
        "type": "object",
        "required": ["type", "status", "lastTransitionTime", "reason", "message"],
        "properties": {
            "type": { "type": "string" },
            "status": { "type": "string", "enum": ["True", "False", "Unknown"] },
            "observedGeneration": { "type": "integer", "format": "int64" },
            "lastTransitionTime": { "type": "string", "format": "date-time" },
            "reason": { "type": "string" },
            "message": { "type": "string" },
        },
    });
    let mut conditions = list(condition, 100, "What holds of the pool.");
    conditions["x-kubernetes-list-type"] = json!("map");
    conditions["x-kubernetes-list-map-keys"] = json!(["type"]);
    object("What was found of the pool.", json!({ "conditions": conditions }))
}

pub(super) fn reservation() -> Value {
    let names = Names { kind: "IPReservation", plural: "ipreservations", short: &[] };
    let reserved = set(
        cidr("A range, or one address as /32 or /128."),
        1000,
        "What is not given without being asked for. \
                                                                             Addresses that are given stay.",
    );
    let spec = object("Addresses that are kept back.", json!({ "reservedCIDRs": reserved }));
    definition(&names, &[("CIDRs", "string", ".spec.reservedCIDRs")], spec, None, Vec::new())
}

pub(super) fn affinity() -> Value {
    let names =
        Names { kind: "BlockAffinity", plural: "blockaffinities", short: &["affinity", "affinities"] };
    let columns = [
        ("CIDR", "string", ".spec.cidr"),
        ("Node", "string", ".spec.node"),
        ("State", "string", ".spec.state"),
    ];
    let mut spec = object(
        "Which node has a block of addresses, as the nodes agreed on it in ConfigMaps of kube-system, to be read: what is \
         written here is of no effect.",
        json!({
            "state": choice(&["", "confirmed", "pending", "pendingDeletion"], "Only a confirmed block is announced."),
            "node": text(253, "The node."),
            "type": text(63, "Of what the block is."),
            "cidr": cidr("The block."),
            "deleted": default(flag("The affinity is about to go and counts as none."), false),
        }),
    );
    spec["required"] = json!(["state", "node", "cidr", "deleted"]);
    definition(&names, &columns, spec, None, Vec::new())
}
