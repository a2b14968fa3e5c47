//! What Seaway reads of the objects. Fields and units are Calico's.

use std::time::Duration;

use ipnetwork::IpNetwork;
use k8s_openapi::api::core::v1::SecretKeySelector;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};

use crate::{AsNumber, Selector, SelectorError};

/// Gives a kind its names, so that clients can read and watch it.
macro_rules! kind {
    ($name:ident, $spec:ident, $kind:literal, $plural:literal) => {
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
        pub struct $name {
            #[serde(default)]
            pub metadata: ObjectMeta,
            #[serde(default)]
            pub spec: $spec,
        }

        impl k8s_openapi::Resource for $name {
            const API_VERSION: &'static str = "projectcalico.org/v3";
            const GROUP: &'static str = crate::GROUP;
            const KIND: &'static str = $kind;
            const VERSION: &'static str = "v3";
            const URL_PATH_SEGMENT: &'static str = $plural;
            type Scope = k8s_openapi::ClusterResourceScope;
        }

        impl k8s_openapi::Metadata for $name {
            type Ty = ObjectMeta;

            fn metadata(&self) -> &ObjectMeta {
                &self.metadata
            }

            fn metadata_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        }
    };
}

kind!(BgpConfiguration, BgpConfigurationSpec, "BGPConfiguration", "bgpconfigurations");
kind!(BgpPeer, BgpPeerSpec, "BGPPeer", "bgppeers");
kind!(BgpFilter, BgpFilterSpec, "BGPFilter", "bgpfilters");
kind!(IpPool, IpPoolSpec, "IPPool", "ippools");
kind!(IpReservation, IpReservationSpec, "IPReservation", "ipreservations");
kind!(BlockAffinity, BlockAffinitySpec, "BlockAffinity", "blockaffinities");
kind!(CalicoNodeStatus, CalicoNodeStatusSpec, "CalicoNodeStatus", "caliconodestatuses");

/// The object `default` is for all nodes; of one named `node.NAME`, a node reads what may differ per node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BgpConfigurationSpec {
    /// `None` is true.
    pub node_to_node_mesh_enabled: Option<bool>,
    pub as_number: Option<AsNumber>,
    #[serde(rename = "serviceLoadBalancerIPs")]
    pub service_load_balancer_ips: Vec<CidrBlock>,
    #[serde(rename = "serviceExternalIPs")]
    pub service_external_ips: Vec<CidrBlock>,
    #[serde(rename = "serviceClusterIPs")]
    pub service_cluster_ips: Vec<CidrBlock>,
    /// `Enabled` or `Disabled`; `None` is `Enabled`.
    pub service_load_balancer_aggregation: Option<String>,
    pub communities: Vec<Community>,
    pub prefix_advertisements: Vec<PrefixAdvertisement>,
    pub listen_port: Option<u16>,
    pub node_mesh_password: Option<BgpPassword>,
    /// A duration as Go writes it.
    pub node_mesh_max_restart_time: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CidrBlock {
    pub cidr: Option<IpNetwork>,
}

/// A name for a community value.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Community {
    pub name: String,
    /// `aa:nn`, or `aa:nn:mm` for a large one.
    pub value: String,
}

/// What is said of announced prefixes within `cidr`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PrefixAdvertisement {
    pub cidr: Option<IpNetwork>,
    /// Values, or names of the configuration's `communities`.
    pub communities: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BgpPassword {
    pub secret_key_ref: Option<SecretKeySelector>,
}

/// Empty text is as good as none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BgpPeerSpec {
    pub node: String,
    pub node_selector: String,
    #[serde(rename = "peerIP")]
    pub peer_ip: String,
    pub as_number: Option<AsNumber>,
    #[serde(rename = "localASNumber")]
    pub local_as_number: Option<AsNumber>,
    pub peer_selector: String,
    pub keep_original_next_hop: bool,
    /// `Auto`, `Self` or `Keep`.
    pub next_hop_mode: Option<String>,
    pub password: Option<BgpPassword>,
    /// `UseNodeIP` or `None`; empty is `UseNodeIP`.
    pub source_address: String,
    /// A duration as Go writes it.
    pub max_restart_time: Option<String>,
    /// A duration as Go writes it.
    pub keepalive_time: Option<String>,
    #[serde(rename = "numAllowedLocalASNumbers")]
    pub num_allowed_local_as_numbers: Option<i32>,
    /// Hops between the peers.
    pub ttl_security: Option<u8>,
    pub filters: Vec<String>,
    /// `Auto` or `Manual`; `None` is `Auto`.
    pub reverse_peering: Option<String>,
}

/// The first rule that matches a route decides.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BgpFilterSpec {
    pub export_v4: Vec<FilterRule>,
    pub import_v4: Vec<FilterRule>,
    pub export_v6: Vec<FilterRule>,
    pub import_v6: Vec<FilterRule>,
}

/// All that is said must hold.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct FilterRule {
    pub cidr: Option<IpNetwork>,
    pub prefix_length: Option<PrefixLengths>,
    /// `RemotePeers` or empty.
    pub source: String,
    /// `Equal`, `NotEqual`, `In`, `NotIn` or empty.
    pub match_operator: String,
    /// `eBGP`, `iBGP` or empty.
    pub peer_type: String,
    pub communities: Option<CommunitiesMatch>,
    pub as_path_prefix: Vec<AsNumber>,
    /// A metric: lower is better.
    pub priority: Option<u32>,
    /// `Accept` or `Reject`.
    pub action: String,
    pub operations: Vec<FilterOperation>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PrefixLengths {
    pub min: Option<u8>,
    pub max: Option<u8>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CommunitiesMatch {
    pub values: Vec<String>,
}

/// Exactly one of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum FilterOperation {
    #[serde(rename = "addCommunity")]
    AddCommunity { value: String },
    /// The path begins with these then, in this order.
    #[serde(rename = "prependASPath")]
    PrependAsPath { prefix: Vec<AsNumber> },
    #[serde(rename = "setPriority")]
    SetPriority { value: u32 },
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct IpPoolSpec {
    pub cidr: Option<IpNetwork>,
    /// Length of the prefix of blocks; 0 is none.
    pub block_size: Option<u8>,
    /// Gives no more addresses.
    pub disabled: bool,
    #[serde(rename = "disableBGPExport")]
    pub disable_bgp_export: bool,
    pub nat_outgoing: bool,
    pub node_selector: String,
    pub namespace_selector: String,
    /// Empty is `Workload` and `Tunnel`.
    pub allowed_uses: Vec<String>,
    /// `Automatic` or `Manual`; `None` is `Automatic`.
    pub assignment_mode: Option<String>,
}

impl IpPoolSpec {
    /// Whether the addresses are for this: `Workload` or `LoadBalancer`.
    pub fn is_for(&self, usage: &str) -> bool {
        match self.allowed_uses.as_slice() {
            [] => matches!(usage, "Workload" | "Tunnel"),
            uses => uses.iter().any(|of| of == usage),
        }
    }

    /// Gives addresses to who does not ask for the pool.
    pub fn is_automatic(&self) -> bool {
        self.assignment_mode.as_deref() != Some("Manual")
    }

    /// The nodes that it gives to; `None`: all.
    ///
    /// # Errors
    /// Where the text is no selector.
    pub fn nodes(&self) -> Result<Option<Selector>, SelectorError> {
        selector(&self.node_selector)
    }

    /// The namespaces that it gives to without being asked for; `None`: all.
    ///
    /// # Errors
    /// Where the text is no selector.
    pub fn namespaces(&self) -> Result<Option<Selector>, SelectorError> {
        selector(&self.namespace_selector)
    }
}

fn selector(text: &str) -> Result<Option<Selector>, SelectorError> {
    if text.is_empty() { Ok(None) } else { text.parse().map(Some) }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct IpReservationSpec {
    #[serde(rename = "reservedCIDRs")]
    pub reserved_cidrs: Vec<IpNetwork>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct BlockAffinitySpec {
    /// `pending`, `confirmed` or `pendingDeletion`.
    pub state: String,
    pub node: String,
    /// What the block is of: `host`.
    #[serde(rename = "type")]
    pub kind: String,
    pub cidr: String,
    pub deleted: bool,
}

/// What is asked of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CalicoNodeStatusSpec {
    pub node: String,
    /// `Agent`, `BGP` and `Routes`.
    pub classes: Vec<String>,
    /// From one answer to the next; 0 stops them.
    pub update_period_seconds: u32,
}

/// Seconds of a duration as Go writes it (`1m30s`, `90s`), fractions cut off; `None` for what is none.
pub fn duration_seconds(text: &str) -> Option<u64> {
    duration(text).map(|time| time.as_secs())
}

/// The same, whole.
pub fn duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut nanoseconds: u128 = 0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).filter(|digits| (1..=9).contains(digits))?;
        let count: u128 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let letters = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        nanoseconds += count
            * match &rest[..letters] {
                "ns" => 1,
                "us" | "µs" => 1_000,
                "ms" => 1_000_000,
                "s" => 1_000_000_000,
                "m" => 60_000_000_000,
                "h" => 3_600_000_000_000,
                _ => return None,
            };
        rest = &rest[letters..];
    }
    let seconds = u64::try_from(nanoseconds / 1_000_000_000).ok()?;
    (!text.is_empty()).then(|| Duration::new(seconds, (nanoseconds % 1_000_000_000) as u32))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn durations_are_read_as_go_writes_them() {
        for (text, seconds) in
            [("120s", 120), ("2m0s", 120), ("1h1m1s", 3661), ("1500ms", 1), ("0", 0), ("0s", 0)]
        {
            assert_eq!(duration_seconds(text), Some(seconds), "{text}");
        }
        for text in ["", "120", "s", "-1s", "1d", "1.5s", "1m 2s"] {
            assert_eq!(duration_seconds(text), None, "{text}");
        }
    }

    #[test]
    fn a_peer_is_read_with_calicos_spellings() {
        let peer: BgpPeer = serde_json::from_value(json!({
            "apiVersion": "projectcalico.org/v3",
            "kind": "BGPPeer",
            "metadata": { "name": "tor" },
            "spec": { "peerIP": "192.0.2.1:1790", "asNumber": "64512.1", "numAllowedLocalASNumbers": 1,
                "localASNumber": 65000, "ttlSecurity": 1, "filters": ["f"], "reachableBy": "192.0.2.9" },
        }))
        .expect("it is a BGPPeer");
        let expected = BgpPeerSpec {
            peer_ip: "192.0.2.1:1790".to_owned(),
            as_number: Some(AsNumber(64512 << 16 | 1)),
            num_allowed_local_as_numbers: Some(1),
            local_as_number: Some(AsNumber(65000)),
            ttl_security: Some(1),
            filters: vec!["f".to_owned()],
            ..BgpPeerSpec::default()
        };
        assert_eq!(peer.spec, expected);
    }

    #[test]
    fn a_pool_is_for_pods_where_nothing_else_is_said() {
        let of =
            |spec: serde_json::Value| -> IpPoolSpec { serde_json::from_value(spec).expect("it is a pool") };
        let plain = of(json!({ "cidr": "10.0.0.0/16", "disableBGPExport": true, "blockSize": 27 }));
        assert!(plain.is_for("Workload") && !plain.is_for("LoadBalancer") && plain.is_automatic());
        assert_eq!((plain.disable_bgp_export, plain.block_size), (true, Some(27)));
        assert_eq!((plain.nodes(), plain.namespaces()), (Ok(None), Ok(None)));
        let other =
            of(json!({ "allowedUses": ["LoadBalancer"], "assignmentMode": "Manual", "nodeSelector": "=" }));
        assert!(!other.is_for("Workload") && other.is_for("LoadBalancer") && !other.is_automatic());
        assert!(other.nodes().is_err());
    }

    #[test]
    fn a_filter_is_read_with_its_operations() {
        let filter: BgpFilter = serde_json::from_value(json!({
            "metadata": { "name": "f" },
            "spec": { "exportV4": [{ "cidr": "10.0.0.0/8", "matchOperator": "In", "prefixLength": { "min": 16 },
                "asPathPrefix": [65000], "action": "Accept", "operations": [
                    { "addCommunity": { "value": "65000:1" } }, { "prependASPath": { "prefix": ["1.1"] } }] }] },
        }))
        .expect("it is a BGPFilter");
        let rule = &filter.spec.export_v4[0];
        assert_eq!(rule.prefix_length, Some(PrefixLengths { min: Some(16), max: None }));
        assert_eq!(rule.as_path_prefix, [AsNumber(65000)]);
        let operations = [
            FilterOperation::AddCommunity { value: "65000:1".to_owned() },
            FilterOperation::PrependAsPath { prefix: vec![AsNumber(65537)] },
        ];
        assert_eq!(rule.operations, operations);
    }
}
