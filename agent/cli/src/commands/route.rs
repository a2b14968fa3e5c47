use std::{fmt::Write, net::IpAddr};

use anyhow::bail;
use ipnetwork::IpNetwork;
use serde::Deserialize;
use serde_json::Value;

use crate::{
    agent::read,
    table::{Table, joined, known, yes},
};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Route {
    prefix: IpNetwork,
    /// Where the best path came from; absent where BGP does not know the destination.
    best: Option<String>,
    reason: Option<String>,
    #[serde(default)]
    next_hops: Vec<IpAddr>,
    kernel: Option<Kernel>,
    paths: Vec<Path>,
}

#[derive(Deserialize)]
struct Kernel {
    #[serde(flatten)]
    target: Target,
    installed: bool,
}

#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase")]
enum Target {
    Blackhole,
    Unreachable,
    Link { interface: u32 },
    Via { gateways: Vec<IpAddr> },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Path {
    source: String,
    next_hop: IpAddr,
    origin: String,
    as_path: Vec<u32>,
    local_pref: Option<u32>,
    med: Option<u32>,
    communities: Vec<String>,
    external: bool,
    stale: bool,
}

impl Route {
    fn next_hop(&self) -> String {
        match self.kernel.as_ref().map(|kernel| &kernel.target) {
            Some(Target::Blackhole) => "blackhole".to_owned(),
            Some(Target::Unreachable) => "unreachable".to_owned(),
            Some(Target::Link { interface }) => format!("link {interface}"),
            Some(Target::Via { gateways }) => joined(gateways),
            None => joined(&self.next_hops),
        }
    }

    /// Whether the kernel has what we want there.
    fn kernel(&self) -> &'static str {
        match &self.kernel {
            Some(kernel) if kernel.installed => "installed",
            Some(_) => "missing",
            None => "-",
        }
    }
}

pub fn list(answer: &Value, wide: bool) -> anyhow::Result<String> {
    let mut routes: Vec<Route> = read(answer)?;
    routes.sort_by_key(|route| route.prefix);
    let mut table = Table::new(
        &["PREFIX", "NEXT-HOP", "SOURCE", "KERNEL"],
        &["PATHS", "BEST-BECAUSE", "AS-PATH", "COMMUNITIES"],
        "No routes.",
    );
    for route in routes {
        let best = route.paths.iter().find(|path| Some(&path.source) == route.best.as_ref());
        let own = if route.kernel.is_some() { "pod" } else { "" };
        table.row([
            route.prefix.to_string(),
            route.next_hop(),
            route.best.clone().unwrap_or_else(|| own.to_owned()),
            route.kernel().to_owned(),
            route.paths.len().to_string(),
            route.reason.clone().unwrap_or_default(),
            best.map(as_path).unwrap_or_default(),
            best.map(|path| path.communities.join(",")).unwrap_or_default(),
        ]);
    }
    Ok(table.render(wide))
}

/// The route to exactly this destination.
///
/// # Errors
/// Where there is none, names the most specific route that covers it.
pub fn find(answer: Value, prefix: IpNetwork) -> anyhow::Result<Value> {
    let routes: Vec<Route> = read(&answer)?;
    let wanted = IpNetwork::new(prefix.network(), prefix.prefix())?;
    if let Some(at) = routes.iter().position(|route| route.prefix == wanted) {
        return Ok(answer[at].clone());
    }
    let covers = |known: &&Route| {
        known.prefix.is_ipv4() == wanted.is_ipv4()
            && known.prefix.prefix() <= wanted.prefix()
            && known.prefix.contains(wanted.network())
    };
    match routes.iter().filter(covers).max_by_key(|route| route.prefix.prefix()) {
        Some(covering) => bail!("no route to {wanted} itself; packets there follow {}", covering.prefix),
        None => bail!("no route to {wanted}, and none that covers it; `seaway route list` has all"),
    }
}

pub fn show(answer: &Value, wide: bool) -> anyhow::Result<String> {
    let route: Route = read(answer)?;
    let mut text = format!(
        "Prefix:    {}\nNext hop:  {}\nKernel:    {}\n",
        route.prefix,
        route.next_hop(),
        route.kernel()
    );
    if let (Some(best), Some(reason)) = (&route.best, &route.reason) {
        // Writing to a String does not fail.
        let _ = writeln!(text, "Best:      from {best}: {reason}");
    }
    let mut table = Table::new(
        &["SOURCE", "NEXT-HOP", "LOCAL-PREF", "AS-PATH", "MED", "BEST"],
        &["ORIGIN", "COMMUNITIES", "EXTERNAL", "STALE"],
        "No paths: the route is this node's own.",
    );
    for path in &route.paths {
        table.row([
            path.source.clone(),
            path.next_hop.to_string(),
            known(path.local_pref),
            as_path(path),
            known(path.med),
            yes(Some(&path.source) == route.best.as_ref()),
            path.origin.clone(),
            path.communities.join(","),
            yes(path.external),
            yes(path.stale),
        ]);
    }
    text.push('\n');
    text.push_str(&table.render(wide));
    Ok(text)
}

fn as_path(path: &Path) -> String {
    path.as_path.iter().map(u32::to_string).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn path(source: &str, next_hop: &str, local_pref: u32) -> Value {
        json!({ "source": source, "nextHop": next_hop, "origin": "Igp", "asPath": [64513, 64514],
            "localPref": local_pref, "med": null, "communities": ["64512:7"], "external": false, "stale": false })
    }

    fn answer() -> Value {
        json!([
            { "prefix": "10.244.1.0/26", "best": "10.89.0.12", "reason": "higher LOCAL_PREF", "nextHops": ["10.89.0.12"],
              "kernel": { "kind": "via", "gateways": ["10.89.0.12"], "installed": true },
              "paths": [path("10.89.0.12", "10.89.0.12", 200), path("10.89.0.13", "10.89.0.12", 100)] },
            { "prefix": "10.244.0.0/26", "best": "local", "reason": "originated here", "nextHops": ["10.89.0.11"],
              "kernel": { "kind": "blackhole", "installed": true }, "paths": [path("local", "10.89.0.11", 100)] },
            { "prefix": "10.244.0.3/32", "kernel": { "kind": "link", "interface": 7, "installed": false }, "paths": [] },
        ])
    }

    #[test]
    fn routes_say_where_they_lead_and_whether_the_kernel_has_them() {
        assert_eq!(
            list(&answer(), false).unwrap(),
            "PREFIX          NEXT-HOP     SOURCE       KERNEL\n\
             10.244.0.0/26   blackhole    local        installed\n\
             10.244.0.3/32   link 7       pod          missing\n\
             10.244.1.0/26   10.89.0.12   10.89.0.12   installed\n"
        );
        let wide = list(&answer(), true).unwrap();
        assert!(wide.contains("installed   2       higher LOCAL_PREF   64513 64514   64512:7\n"), "{wide}");
    }

    #[test]
    fn one_route_shows_every_path_and_why_the_best_is_the_best() {
        let found = find(answer(), "10.244.1.9/26".parse().unwrap()).unwrap();
        assert_eq!(
            show(&found, false).unwrap(),
            "Prefix:    10.244.1.0/26\nNext hop:  10.89.0.12\nKernel:    installed\n\
             Best:      from 10.89.0.12: higher LOCAL_PREF\n\n\
             SOURCE       NEXT-HOP     LOCAL-PREF   AS-PATH       MED   BEST\n\
             10.89.0.12   10.89.0.12   200          64513 64514   -     yes\n\
             10.89.0.13   10.89.0.12   100          64513 64514   -     no\n"
        );
    }

    #[test]
    fn a_destination_without_a_route_names_the_one_that_packets_follow() {
        let refusal = |prefix: &str| find(answer(), prefix.parse().unwrap()).unwrap_err().to_string();
        assert_eq!(
            refusal("10.244.0.4/32"),
            "no route to 10.244.0.4/32 itself; packets there follow 10.244.0.0/26"
        );
        assert!(refusal("fd00::/64").contains("none that covers it"));
    }
}
