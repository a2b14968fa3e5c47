use std::{fmt::Write, net::IpAddr};

use serde::Deserialize;
use serde_json::Value;

use crate::{agent::read, table::Table};

/// A NetworkPolicy that selects pods of this node.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Policy {
    namespace: String,
    name: String,
    pods: Vec<String>,
    /// Absent where it says nothing of the direction.
    ingress_rules: Option<usize>,
    egress_rules: Option<usize>,
    /// What could not be read, and allows nothing.
    problems: Vec<String>,
}

#[derive(Deserialize)]
struct Pod {
    namespace: String,
    name: String,
    addresses: Vec<IpAddr>,
    /// Its object was seen.
    known: bool,
    ingress: Direction,
    egress: Direction,
}

#[derive(Deserialize)]
struct Direction {
    isolated: bool,
    /// How the maps call what is allowed.
    list: Option<u32>,
    entries: usize,
    policies: Vec<String>,
    allowed: Vec<Rule>,
}

#[derive(Deserialize)]
struct Rule {
    policy: String,
    /// Absent where it is for everybody.
    peers: Option<Vec<Peer>>,
    /// Absent where it is for whatever is sent.
    ports: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Peer {
    peer: String,
    /// The first of them.
    pods: Vec<PeerPod>,
    /// Absent for a range of addresses.
    pod_count: Option<usize>,
}

#[derive(Deserialize)]
struct PeerPod {
    pod: String,
    addresses: Vec<IpAddr>,
}

/// The policies of a namespace, or all.
pub fn of_namespace(answer: Value, namespace: Option<&str>) -> Value {
    match (answer, namespace) {
        (Value::Array(policies), Some(namespace)) => {
            policies.into_iter().filter(|policy| policy["namespace"] == namespace).collect()
        }
        (answer, _) => answer,
    }
}

pub fn list(answer: &Value, wide: bool) -> anyhow::Result<String> {
    let policies: Vec<Policy> = read(answer)?;
    let mut table = Table::new(
        &["NAMESPACE", "NAME", "PODS", "INGRESS", "EGRESS", "PROBLEMS"],
        &["PODS-SELECTED"],
        "No NetworkPolicy selects a pod of this node.",
    );
    let rules = |count: Option<usize>| match count {
        None => String::new(),
        Some(0) => "none".to_owned(),
        Some(1) => "1 rule".to_owned(),
        Some(count) => format!("{count} rules"),
    };
    for policy in policies {
        table.row([
            policy.namespace,
            policy.name,
            policy.pods.len().to_string(),
            rules(policy.ingress_rules),
            rules(policy.egress_rules),
            policy.problems.join("; "),
            policy.pods.join(","),
        ]);
    }
    Ok(table.render(wide))
}

/// How the pod is isolated, and what is allowed nonetheless.
pub fn show(answer: &Value, wide: bool) -> anyhow::Result<String> {
    let pod: Pod = read(answer)?;
    let addresses: Vec<String> = pod.addresses.iter().map(IpAddr::to_string).collect();
    let mut text =
        format!("Pod        {}/{}\nAddresses  {}\n", pod.namespace, pod.name, addresses.join(", "));
    if !pod.known {
        text.push_str("Labels     none: the API server has not told of it\n");
    }
    for (word, ends, direction) in [("Ingress", "From", &pod.ingress), ("Egress", "To", &pod.egress)] {
        write!(text, "\n{word}: ")?;
        if !direction.isolated {
            text.push_str("not isolated\n");
            continue;
        }
        writeln!(text, "isolated by {}", direction.policies.join(", "))?;
        if wide {
            let list = direction.list.unwrap_or_default();
            writeln!(text, "  List {list} of the map of rules, {} entries", direction.entries)?;
        }
        if direction.allowed.is_empty() {
            text.push_str("  Nothing is allowed\n");
        }
        direction.allowed.iter().try_for_each(|rule| rule.write(&mut text, ends, wide))?;
    }
    Ok(text)
}

impl Rule {
    fn write(&self, text: &mut String, ends: &str, wide: bool) -> std::fmt::Result {
        let ports = match &self.ports {
            None => "everything".to_owned(),
            Some(ports) if ports.is_empty() => "nothing".to_owned(),
            Some(ports) => ports.join(", "),
        };
        writeln!(text, "  {ports} ({})", self.policy)?;
        let Some(peers) = &self.peers else { return writeln!(text, "    {ends} everybody") };
        if peers.is_empty() {
            writeln!(text, "    {ends} nobody")?;
        }
        for peer in peers {
            writeln!(text, "    {ends} {}", peer.peer)?;
            let Some(count) = peer.pod_count else { continue };
            for PeerPod { pod, addresses } in &peer.pods {
                let addresses: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
                let addresses = if wide { addresses.join(", ") } else { String::new() };
                writeln!(text, "{}", format!("      {pod} {addresses}").trim_end())?;
            }
            match count.saturating_sub(peer.pods.len()) {
                0 if count == 0 => writeln!(text, "      no pod as yet")?,
                0 => {}
                more => writeln!(text, "      and {more} more")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn policies_are_listed_with_their_directions() {
        let policy = |name: &str, egress: Option<usize>, problems: &[&str]| {
            json!({ "namespace": "default", "name": name, "pods": ["web-1", "web-2"], "ingressRules": 0,
                "egressRules": egress, "problems": problems })
        };
        let answer = json!([policy("deny", None, &[]), policy("web", Some(2), &["spec.x: it is none"])]);
        assert_eq!(
            list(&answer, true).unwrap(),
            "NAMESPACE   NAME   PODS   INGRESS   EGRESS    PROBLEMS             PODS-SELECTED\n\
             default     deny   2      none      -         -                    web-1,web-2\n\
             default     web    2      none      2 rules   spec.x: it is none   web-1,web-2\n"
        );
        assert_eq!(of_namespace(answer, Some("other")), json!([]));
    }

    #[test]
    fn a_pod_is_shown_with_who_may_send_it_what() {
        let peers = json!([
            { "peer": "pods app=client in namespace default", "podCount": 3,
                "pods": [{ "pod": "default/client", "addresses": ["10.1.0.2"] }] },
            { "peer": "10.9.0.0/16", "podCount": null, "pods": [] },
            { "peer": "pods app=x in namespace default", "podCount": 0, "pods": [] },
        ]);
        let answer = json!({ "namespace": "default", "name": "web", "addresses": ["10.1.0.1", "fd00::1"],
            "known": true,
            "ingress": { "isolated": true, "list": 7, "entries": 2, "policies": ["one", "two"], "allowed": [
                { "policy": "one", "peers": peers, "ports": ["TCP 80", "TCP http (8080)"] },
                { "policy": "two", "peers": null, "ports": null }] },
            "egress": { "isolated": false, "list": null, "entries": 0, "policies": [], "allowed": [] } });
        assert_eq!(
            show(&answer, false).unwrap(),
            "Pod        default/web\nAddresses  10.1.0.1, fd00::1\n\n\
             Ingress: isolated by one, two\n  TCP 80, TCP http (8080) (one)\n    \
             From pods app=client in namespace default\n      default/client\n      and 2 more\n    \
             From 10.9.0.0/16\n    From pods app=x in namespace default\n      no pod as yet\n  \
             everything (two)\n    From everybody\n\nEgress: not isolated\n"
        );
        let wide = show(&answer, true).unwrap();
        assert!(wide.contains("List 7 of the map of rules, 2 entries\n"), "{wide}");
        assert!(wide.contains("default/client 10.1.0.2\n"), "{wide}");
        let mut closed = answer;
        closed["ingress"]["allowed"] = json!([]);
        closed["known"] = json!(false);
        let text = show(&closed, false).unwrap();
        assert!(text.contains("Nothing is allowed") && text.contains("has not told of it"), "{text}");
    }
}
