//! The objects that a new cluster starts with, beside the roles: namespaces, the system's priority classes, the API's
//! own Service with its endpoints, and the Service of the cluster DNS.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde_json::{Value, json};

use super::discovery::slice;

/// What the objects depend on.
#[derive(Clone, Debug)]
pub struct BootstrapConfig {
    /// Where clients inside the cluster reach the API server.
    pub advertise_address: IpAddr,
    pub secure_port: u16,
    /// The first address of it is that of the `kubernetes` Service.
    pub service_cidr: IpNetwork,
    pub cluster_dns: IpAddr,
}

/// Values of the two priority classes of the system: above every value that users may choose.
const NODE_CRITICAL: i64 = 2_000_001_000;
const CLUSTER_CRITICAL: i64 = 2_000_000_000;

/// All bootstrap objects, complete but for what the write adds (uid, defaults). The server creates those that are
/// missing at every start, and keeps `kubernetes`' endpoints as they are here.
pub fn objects(config: &BootstrapConfig) -> Vec<Value> {
    let mut objects: Vec<_> =
        ["default", "kube-system", "kube-public", "kube-node-lease"].into_iter().map(namespace).collect();
    objects.push(priority_class(
        "system-node-critical",
        NODE_CRITICAL,
        "Used for system critical pods that must not be moved from their current node.",
    ));
    objects.push(priority_class(
        "system-cluster-critical",
        CLUSTER_CRITICAL,
        "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
    ));
    objects.extend([api_service(config), api_endpoints(config), api_slice(config), dns_service(config)]);
    objects
}

fn namespace(name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } })
}

fn priority_class(name: &str, value: i64, description: &str) -> Value {
    json!({
        "apiVersion": "scheduling.k8s.io/v1",
        "kind": "PriorityClass",
        "metadata": { "name": name },
        "value": value,
        "description": description,
    })
}

fn api_service(config: &BootstrapConfig) -> Value {
    let ip = config.service_cidr.iter().nth(1).unwrap_or(config.service_cidr.network()).to_string();
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": "kubernetes",
            "namespace": "default",
            "labels": { "component": "apiserver", "provider": "kubernetes" },
        },
        "spec": {
            "type": "ClusterIP",
            "clusterIP": ip,
            "clusterIPs": [ip],
            "sessionAffinity": "None",
            "ports": [{ "name": "https", "port": 443, "protocol": "TCP", "targetPort": config.secure_port }],
        },
    })
}

fn api_endpoints(config: &BootstrapConfig) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Endpoints",
        "metadata": {
            "name": "kubernetes",
            "namespace": "default",
            "labels": { "endpointslice.kubernetes.io/skip-mirror": "true" },
        },
        "subsets": [{
            "addresses": [{ "ip": config.advertise_address.to_string() }],
            "ports": [{ "name": "https", "port": config.secure_port, "protocol": "TCP" }],
        }],
    })
}

fn api_slice(config: &BootstrapConfig) -> Value {
    slice("default", "kubernetes", "kubernetes", &[config.advertise_address], ("https", config.secure_port))
}

/// Each node answers DNS itself: no selector, and traffic never leaves the node.
fn dns_service(config: &BootstrapConfig) -> Value {
    let ip = config.cluster_dns.to_string();
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": "kube-dns",
            "namespace": "kube-system",
            "labels": {
                "k8s-app": "kube-dns",
                "kubernetes.io/cluster-service": "true",
                "kubernetes.io/name": "CoreDNS",
            },
        },
        "spec": {
            "type": "ClusterIP",
            "clusterIP": ip,
            "clusterIPs": [ip],
            "internalTrafficPolicy": "Local",
            "ports": [
                { "name": "dns", "port": 53, "protocol": "UDP", "targetPort": 53 },
                { "name": "dns-tcp", "port": 53, "protocol": "TCP", "targetPort": 53 },
            ],
        },
    })
}
