use std::net::IpAddr;

use serde::Deserialize;
use serde_json::Value;

use crate::{
    agent::read,
    table::{Table, known},
};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pod {
    pub namespace: String,
    pub name: String,
    pub address: IpAddr,
    interface: String,
    host_interface: String,
    /// Absent where the link is gone.
    host_index: Option<u32>,
    container_id: String,
}

/// The pods of a namespace, or all.
pub fn of_namespace(answer: Value, namespace: Option<&str>) -> Value {
    match (answer, namespace) {
        (Value::Array(pods), Some(namespace)) => {
            pods.into_iter().filter(|pod| pod["namespace"] == namespace).collect()
        }
        (answer, _) => answer,
    }
}

pub fn list(answer: &Value, wide: bool) -> anyhow::Result<String> {
    let mut pods: Vec<Pod> = read(answer)?;
    pods.sort_by(|a, b| (&a.namespace, &a.name, a.address).cmp(&(&b.namespace, &b.name, b.address)));
    let mut table = Table::new(
        &["NAMESPACE", "NAME", "ADDRESS", "LINK"],
        &["INDEX", "INTERFACE", "SANDBOX"],
        "No pods with an address on this node.",
    );
    for pod in pods {
        table.row([
            pod.namespace,
            pod.name,
            pod.address.to_string(),
            pod.host_interface,
            known(pod.host_index),
            pod.interface,
            pod.container_id,
        ]);
    }
    Ok(table.render(wide))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pods_are_listed_with_their_links() {
        let pod = |name: &str, index: Option<u32>| {
            json!({ "namespace": "default", "name": name, "address": "10.244.0.3", "containerId": "c1",
                "interface": "eth0", "hostInterface": "sw12", "hostIndex": index, "allocatedAt": 1 })
        };
        let answer = json!([pod("web-2", None), pod("web-1", Some(7))]);
        assert_eq!(
            list(&answer, true).unwrap(),
            "NAMESPACE   NAME    ADDRESS      LINK   INDEX   INTERFACE   SANDBOX\n\
             default     web-1   10.244.0.3   sw12   7       eth0        c1\n\
             default     web-2   10.244.0.3   sw12   -       eth0        c1\n"
        );
        assert_eq!(of_namespace(answer, Some("other")), json!([]));
    }
}
