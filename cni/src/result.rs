//! Success results, in the shape of each version of the specification.

use cni::call::Added;
use serde_json::{Value, json};

use cni::config::VERSIONS;

/// The answer to VERSION.
pub fn versions(version: &str) -> Value {
    json!({ "cniVersion": version, "supportedVersions": VERSIONS })
}

/// The answer to ADD: the pod's interface second, its addresses point there.
pub fn added(version: &str, interface: &str, netns: &str, response: &Added) -> Value {
    let with_family = matches!(version, "0.3.1" | "0.4.0");
    let with_mtu = version == "1.1.0";
    let interfaces: Vec<Value> = [
        json!({ "name": response.host_interface, "mac": response.host_mac }),
        json!({ "name": interface, "mac": response.pod_mac, "sandbox": netns }),
    ]
    .into_iter()
    .map(|mut entry| {
        if with_mtu {
            entry["mtu"] = json!(response.mtu);
        }
        entry
    })
    .collect();
    let mut ips = Vec::new();
    let mut routes = Vec::new();
    for address in &response.addresses {
        let v6 = address.address.contains(':');
        let mut entry = json!({ "address": address.address, "gateway": address.gateway, "interface": 1 });
        if with_family {
            entry["version"] = json!(if v6 { "6" } else { "4" });
        }
        ips.push(entry);
        routes.push(json!({ "dst": if v6 { "::/0" } else { "0.0.0.0/0" }, "gw": address.gateway }));
    }
    json!({ "cniVersion": version, "interfaces": interfaces, "ips": ips, "routes": routes, "dns": {} })
}
