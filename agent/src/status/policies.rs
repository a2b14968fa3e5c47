//! NetworkPolicies in force here, and how they isolate a pod.

use http::StatusCode;
use policy::{DirectionReport, PeerReport, PodReport, PolicyReport, RuleReport};
use serde_json::{Value, json};

use super::{NO_DATAPATH, Status};

type Refused = (StatusCode, String);

impl Status {
    /// Those that select pods of this node.
    pub(super) fn policies(&self) -> Result<Value, Refused> {
        let told = self.policer(|policer| policer.list())?;
        Ok(told.iter().map(policy_json).collect())
    }

    /// One pod, `NAMESPACE/NAME`.
    pub(super) fn policies_of(&self, pod: &str) -> Result<Value, Refused> {
        let Some((namespace, name)) = pod.split_once('/') else {
            return Err((StatusCode::BAD_REQUEST, format!("{pod:?} is not NAMESPACE/NAME")));
        };
        let told = self.policer(|policer| policer.show(namespace, name))?;
        let unknown =
            || (StatusCode::NOT_FOUND, format!("no pod {pod} is attached here; `seaway pod list` has all"));
        told.as_ref().map(pod_json).ok_or_else(unknown)
    }

    fn policer<T>(&self, read: impl FnOnce(&policy::Policer) -> T) -> Result<T, Refused> {
        if self.network.datapath().is_none() {
            return Err((StatusCode::NOT_FOUND, NO_DATAPATH.to_owned()));
        }
        let read = self.network.policies().read(read);
        read.map_err(|reason| (StatusCode::SERVICE_UNAVAILABLE, reason.to_owned()))
    }
}

fn policy_json(policy: &PolicyReport) -> Value {
    json!({
        "namespace": policy.namespace,
        "name": policy.name,
        "pods": policy.pods,
        "ingressRules": policy.ingress,
        "egressRules": policy.egress,
        "problems": policy.problems,
    })
}

fn pod_json(pod: &PodReport) -> Value {
    json!({
        "namespace": pod.namespace,
        "name": pod.name,
        "addresses": pod.addresses,
        "known": pod.is_known,
        "ingress": direction_json(&pod.ingress),
        "egress": direction_json(&pod.egress),
    })
}

fn direction_json(direction: &DirectionReport) -> Value {
    json!({
        "isolated": direction.list.is_some(),
        "list": direction.list,
        "entries": direction.entries,
        "policies": direction.policies,
        "allowed": direction.allowed.iter().map(rule_json).collect::<Vec<_>>(),
    })
}

fn rule_json(rule: &RuleReport) -> Value {
    json!({
        "policy": rule.policy,
        "peers": rule.peers.as_ref().map(|peers| peers.iter().map(peer_json).collect::<Vec<_>>()),
        "ports": rule.ports,
    })
}

fn peer_json(peer: &PeerReport) -> Value {
    let pod =
        |(pod, addresses): &(String, Vec<std::net::IpAddr>)| json!({ "pod": pod, "addresses": addresses });
    json!({
        "peer": peer.peer,
        "pods": peer.pods.iter().map(pod).collect::<Vec<_>>(),
        "podCount": peer.pod_count,
    })
}
