use std::{
    collections::BTreeMap,
    fmt::Write,
    net::{IpAddr, SocketAddr},
};

use anyhow::bail;
use serde::Deserialize;
use serde_json::Value;

use super::pod::Pod;
use crate::{
    agent::read,
    names::near,
    table::{Table, span, yes},
};

/// One address and port of a Service.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Frontend {
    /// `namespace/name` or `namespace/name:port`; empty where only the maps know it.
    name: String,
    id: u32,
    address: IpAddr,
    port: u16,
    protocol: String,
    affinity_seconds: u64,
    /// `random`, `maglev` or `least-connections`.
    balancing: String,
    /// Whom it serves; `None` where all.
    source_ranges: Option<Vec<String>>,
    /// Clients that were given a backend on this node.
    connections: u64,
    /// Clients for whom there was none, each time that they tried.
    refused: u64,
    backends: Vec<Backend>,
}

#[derive(Deserialize)]
struct Backend {
    id: u32,
    address: IpAddr,
    port: u16,
    local: bool,
    /// `all`, or only those of the `node` or `beyond` it.
    clients: String,
    /// `None` where backends have none.
    weight: Option<u16>,
    /// Connections from this node; `None` where they are not counted.
    open: Option<u64>,
}

impl Frontend {
    fn namespace(&self) -> &str {
        self.name.split_once('/').map_or("", |(namespace, _)| namespace)
    }

    fn service(&self) -> &str {
        let name = self.name.split_once('/').map_or("", |(_, name)| name);
        name.split_once(':').map_or(name, |(name, _)| name)
    }

    fn port_name(&self) -> &str {
        self.name.split_once(':').map_or("", |(_, port)| port)
    }

    fn affinity(&self) -> String {
        if self.affinity_seconds == 0 { String::new() } else { span(self.affinity_seconds) }
    }
}

/// The frontends of a namespace, or all.
pub fn of_namespace(answer: Value, namespace: Option<&str>) -> anyhow::Result<Value> {
    let Some(namespace) = namespace else { return Ok(answer) };
    pick(&answer, |frontend| frontend.namespace() == namespace)
}

fn pick(answer: &Value, wanted: impl Fn(&Frontend) -> bool) -> anyhow::Result<Value> {
    let frontends: Vec<Frontend> = read(answer)?;
    let found = frontends.iter().enumerate().filter(|(_, frontend)| wanted(frontend));
    Ok(found.map(|(at, _)| answer[at].clone()).collect())
}

/// The frontends of one Service.
///
/// # Errors
/// Where there is none, names the namespaces that have such a Service, or names like it.
pub fn find(answer: Value, namespace: &str, name: &str) -> anyhow::Result<Value> {
    let found = pick(&answer, |frontend| frontend.namespace() == namespace && frontend.service() == name)?;
    if found.as_array().is_some_and(|found| !found.is_empty()) {
        return Ok(found);
    }
    let frontends: Vec<Frontend> = read(&answer)?;
    let elsewhere = frontends.iter().find(|frontend| frontend.service() == name);
    if let Some(elsewhere) = elsewhere {
        bail!(
            "no Service \"{name}\" in namespace \"{namespace}\", but there is one in \"{0}\" (-n {0})",
            elsewhere.namespace()
        );
    }
    let here = frontends.iter().filter(|frontend| frontend.namespace() == namespace).map(Frontend::service);
    match near(name, here).as_slice() {
        [] => bail!(
            "no Service \"{name}\" in namespace \"{namespace}\"; `seaway service list` has all that have a cluster IP"
        ),
        like => bail!("no Service \"{name}\" in namespace \"{namespace}\"; there is {}", like.join(", ")),
    }
}

pub fn list(answer: &Value, wide: bool) -> anyhow::Result<String> {
    let mut frontends: Vec<Frontend> = read(answer)?;
    frontends.sort_by(|a, b| (&a.name, a.address, a.port).cmp(&(&b.name, b.address, b.port)));
    let mut table = Table::new(
        &["NAMESPACE", "NAME", "ADDRESS", "PORT", "BACKENDS", "LOCAL"],
        &["PORT-NAME", "ID", "AFFINITY", "BALANCING"],
        "No services.",
    );
    for frontend in frontends {
        let local = frontend.backends.iter().filter(|backend| backend.local).count();
        table.row([
            frontend.namespace().to_owned(),
            frontend.service().to_owned(),
            frontend.address.to_string(),
            format!("{}/{}", frontend.port, frontend.protocol),
            frontend.backends.len().to_string(),
            local.to_string(),
            frontend.port_name().to_owned(),
            frontend.id.to_string(),
            frontend.affinity(),
            frontend.balancing.clone(),
        ]);
    }
    Ok(table.render(wide))
}

/// Each frontend with its backends; backends on this node are named by `pods`.
pub fn show(answer: &Value, pods: &Value, wide: bool) -> anyhow::Result<String> {
    let frontends: Vec<Frontend> = read(answer)?;
    let pods: Vec<Pod> = read(pods)?;
    let pod_by_address: BTreeMap<IpAddr, String> =
        pods.iter().map(|pod| (pod.address, format!("{}/{}", pod.namespace, pod.name))).collect();
    let mut text = String::new();
    for frontend in &frontends {
        if !text.is_empty() {
            text.push('\n');
        }
        let at = SocketAddr::new(frontend.address, frontend.port);
        let affinity = match frontend.affinity_seconds {
            0 => "none".to_owned(),
            seconds => format!("ClientIP, {}", span(seconds)),
        };
        // Writing to a String does not fail.
        let _ = writeln!(
            text,
            "Service:   {}\nFrontend:  {at}/{}\nAffinity:  {affinity}\nBalancing: {}\nId:        {}\nClients:   \
             {} given a backend here, {} refused",
            frontend.name,
            frontend.protocol,
            frontend.balancing,
            frontend.id,
            frontend.connections,
            frontend.refused
        );
        if let Some(ranges) = &frontend.source_ranges {
            let _ = writeln!(text, "Sources:   {}", ranges.join(", "));
        }
        text.push('\n');
        let empty = "No backends: connections are refused.";
        let mut table = Table::new(&["BACKEND", "LOCAL", "POD"], &["ID", "CLIENTS", "WEIGHT", "OPEN"], empty);
        for backend in &frontend.backends {
            table.row([
                SocketAddr::new(backend.address, backend.port).to_string(),
                yes(backend.local),
                pod_by_address.get(&backend.address).cloned().unwrap_or_default(),
                backend.id.to_string(),
                backend.clients.clone(),
                backend.weight.map(|weight| weight.to_string()).unwrap_or_default(),
                backend.open.map(|open| open.to_string()).unwrap_or_default(),
            ]);
        }
        text.push_str(&table.render(wide));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn answer() -> Value {
        let backend = |id: u32, address: &str, local: bool| json!({ "id": id, "address": address, "port": 8080, "local": local, "clients": "all", "weight": 3 });
        json!([
            { "name": "kube-system/kube-dns:dns", "id": 2, "address": "10.96.0.10", "port": 53, "protocol": "UDP",
              "affinitySeconds": 0, "balancing": "random", "connections": 0, "refused": 3, "backends": [] },
            { "name": "default/web", "id": 9, "address": "10.96.7.1", "port": 80, "protocol": "TCP",
              "affinitySeconds": 10800, "balancing": "maglev", "connections": 12, "refused": 0, "backends": [backend(4, "10.244.0.3", true), backend(5, "10.244.1.3", false)] },
        ])
    }

    #[test]
    fn services_are_listed_by_name() {
        assert_eq!(
            list(&answer(), false).unwrap(),
            "NAMESPACE     NAME       ADDRESS      PORT     BACKENDS   LOCAL\n\
             default       web        10.96.7.1    80/TCP   2          1\n\
             kube-system   kube-dns   10.96.0.10   53/UDP   0          0\n"
        );
        let wide = list(&answer(), true).unwrap();
        assert!(wide.ends_with("53/UDP   0          0       dns         2    -          random\n"), "{wide}");
        let of_one = of_namespace(answer(), Some("default")).unwrap();
        assert_eq!(of_one.as_array().map(Vec::len), Some(1));
    }

    #[test]
    fn a_service_shows_its_backends_and_the_pods_behind_them() {
        let pods = json!([{ "namespace": "default", "name": "web-1", "address": "10.244.0.3", "interface": "eth0",
            "hostInterface": "sw1", "hostIndex": 7, "containerId": "c" }]);
        let found = find(answer(), "default", "web").unwrap();
        assert_eq!(
            show(&found, &pods, false).unwrap(),
            "Service:   default/web\nFrontend:  10.96.7.1:80/TCP\nAffinity:  ClientIP, 3h\nBalancing: maglev\nId:        9\n\
             Clients:   12 given a backend here, 0 refused\n\n\
             BACKEND           LOCAL   POD\n\
             10.244.0.3:8080   yes     default/web-1\n\
             10.244.1.3:8080   no      -\n"
        );
        let wide = show(&found, &pods, true).unwrap();
        assert!(wide.ends_with("5    all       3        -\n"), "{wide}");
        let mut restricted = found.clone();
        restricted[0]["sourceRanges"] = json!(["10.0.0.0/8", "192.0.2.0/24"]);
        let shown = show(&restricted, &pods, false).unwrap();
        assert!(shown.contains(" refused\nSources:   10.0.0.0/8, 192.0.2.0/24\n\nBACKEND"), "{shown}");
        let dns = find(answer(), "kube-system", "kube-dns").unwrap();
        assert!(show(&dns, &json!([]), false).unwrap().ends_with("No backends: connections are refused.\n"));
    }

    #[test]
    fn an_unknown_service_leads_to_names_near_it() {
        let refusal = |namespace, name| find(answer(), namespace, name).unwrap_err().to_string();
        assert_eq!(refusal("default", "wbe"), "no Service \"wbe\" in namespace \"default\"; there is web");
        assert!(refusal("default", "kube-dns").ends_with("there is one in \"kube-system\" (-n kube-system)"));
        assert!(
            refusal("default", "postgres").ends_with("`seaway service list` has all that have a cluster IP")
        );
    }
}
