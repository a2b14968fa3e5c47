//! Names inside a pod: its hostname, `/etc/hosts` and `resolv.conf`. Pure.

use k8s_cri::v1::DnsConfig;
use k8s_openapi::api::core::v1::{Pod, PodSpec};

use crate::config::Config;
use crate::pod;

const HOSTNAME_CHARS_MAX: usize = 63;
const SERVERS_MAX: usize = 3;
const SEARCHES_MAX: usize = 32;

/// The hostname of the pod's UTS namespace, and the domain below which it is found, if it has a subdomain.
pub fn hostname(pod: &Pod, cluster_domain: &str) -> (String, Option<String>) {
    let default_spec = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&default_spec);
    if let Some(name) = &spec.hostname_override {
        return (name.clone(), None);
    }
    let name = spec.hostname.as_deref().filter(|n| !n.is_empty()).unwrap_or(pod::name(pod));
    let mut name: String = name.chars().take(HOSTNAME_CHARS_MAX).collect();
    name.truncate(name.trim_end_matches(['-', '.']).len());
    let subdomain = spec.subdomain.as_deref().filter(|subdomain| !subdomain.is_empty());
    let domain = subdomain.map(|sub| format!("{sub}.{}.svc.{cluster_domain}", pod::namespace(pod)));
    if spec.set_hostname_as_fqdn == Some(true)
        && let Some(domain) = &domain
    {
        return (format!("{name}.{domain}"), Some(domain.clone()));
    }
    (name, domain)
}

/// The content of the pod's `/etc/hosts`. `host_file` is the node's, which pods in the host's network build upon.
pub fn hosts_file(pod: &Pod, ips: &[String], cluster_domain: &str, host_file: &str) -> String {
    let mut out = String::new();
    let spec = pod.spec.as_ref();
    if spec.is_some_and(pod::is_host_network) {
        out.push_str("# Kubernetes-managed hosts file (host network).\n");
        out.push_str(host_file);
        if !host_file.ends_with('\n') {
            out.push('\n');
        }
    } else {
        out.push_str("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n");
        out.push_str("::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\n");
        out.push_str("fe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n");
        let (name, domain) = hostname(pod, cluster_domain);
        for ip in ips {
            match &domain {
                Some(domain) if !name.ends_with(domain) => {
                    out.push_str(&format!("{ip}\t{name}.{domain}\t{name}\n"));
                }
                _ => out.push_str(&format!("{ip}\t{name}\n")),
            }
        }
    }
    let aliases: Vec<_> = spec.iter().flat_map(|spec| spec.host_aliases.iter().flatten()).collect();
    if !aliases.is_empty() {
        out.push_str("\n# Entries added by HostAliases.\n");
        for alias in aliases {
            out.push_str(&format!(
                "{}\t{}\n",
                alias.ip,
                alias.hostnames.iter().flatten().cloned().collect::<Vec<_>>().join("\t")
            ));
        }
    }
    out
}

/// Servers, search domains and options of a `resolv.conf`.
pub fn parse_resolv_conf(text: &str) -> DnsConfig {
    let mut config = DnsConfig::default();
    for line in text.lines() {
        let line = line.split(['#', ';']).next().unwrap_or_default();
        let mut words = line.split_whitespace();
        let keyword = words.next();
        let rest = words.map(str::to_owned);
        match keyword {
            Some("nameserver") => config.servers.extend(rest.take(1)),
            // The last line of these wins.
            Some("search" | "domain") => {
                config.searches = rest.map(|d| d.trim_end_matches('.').to_owned()).collect()
            }
            Some("options") => config.options = rest.collect(),
            _ => {}
        }
    }
    config
}

/// What the pod's `resolv.conf` says, by its `dnsPolicy` and `dnsConfig`.
pub fn resolv_conf(pod: &Pod, config: &Config, host: &DnsConfig) -> DnsConfig {
    let default_spec = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&default_spec);
    let policy = match spec.dns_policy.as_deref().unwrap_or("ClusterFirst") {
        "ClusterFirst" if pod::is_host_network(spec) => "Default",
        policy => policy,
    };
    let mut out = match policy {
        "None" => DnsConfig::default(),
        "ClusterFirst" | "ClusterFirstWithHostNet" if !config.cluster_dns.is_empty() => {
            let domain = &config.cluster_domain;
            let own =
                [format!("{}.svc.{domain}", pod::namespace(pod)), format!("svc.{domain}"), domain.clone()];
            DnsConfig {
                servers: config.cluster_dns.iter().map(ToString::to_string).collect(),
                searches: own.into_iter().chain(host.searches.iter().cloned()).collect(),
                options: vec!["ndots:5".to_owned()],
            }
        }
        _ => host.clone(),
    };
    if let Some(extra) = &spec.dns_config {
        out.servers.extend(extra.nameservers.iter().flatten().cloned());
        out.searches.extend(extra.searches.iter().flatten().cloned());
        for option in extra.options.iter().flatten() {
            let name = option.name.clone().unwrap_or_default();
            let text = option.value.as_ref().map_or_else(|| name.clone(), |value| format!("{name}:{value}"));
            out.options.retain(|old| old.split(':').next() != Some(name.as_str()));
            out.options.push(text);
        }
    }
    unique(&mut out.servers, SERVERS_MAX);
    unique(&mut out.searches, SEARCHES_MAX);
    out
}

fn unique(list: &mut Vec<String>, max: usize) {
    let mut seen = std::collections::HashSet::new();
    list.retain(|item| seen.insert(item.clone()));
    list.truncate(max);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "web-0", "namespace": "n"}, "spec": spec}))
            .unwrap()
    }

    fn config() -> Config {
        let (_, ready) = tokio::sync::watch::channel(true);
        let mut config = Config::new("node", vec![], ready);
        config.cluster_dns = vec!["10.96.0.10".parse().unwrap()];
        config
    }

    #[test]
    fn a_pod_with_a_subdomain_has_a_full_name_in_its_hosts_file() {
        let pod = pod(json!({"containers": [], "hostname": "db", "subdomain": "svc",
            "hostAliases": [{"ip": "10.1.1.1", "hostnames": ["a", "b"]}]}));
        let text = hosts_file(&pod, &["10.244.0.2".into()], "cluster.local", "");
        assert!(text.contains("10.244.0.2\tdb.svc.n.svc.cluster.local\tdb\n"), "{text}");
        assert!(text.contains("# Entries added by HostAliases.\n10.1.1.1\ta\tb\n"), "{text}");
    }

    #[test]
    fn long_names_are_cut_to_a_valid_hostname() {
        let mut pod = pod(json!({"containers": []}));
        pod.metadata.name = Some(format!("{}-{}", "a".repeat(62), "b".repeat(30)));
        assert_eq!(hostname(&pod, "cluster.local").0, "a".repeat(62));
    }

    #[test]
    fn each_dns_policy_gives_its_resolv_conf() {
        let host =
            parse_resolv_conf("# c\nnameserver 192.0.2.1\nsearch old\nsearch lan. corp\noptions edns0\n");
        assert_eq!(host.searches, ["lan", "corp"]);
        let of = |spec| resolv_conf(&pod(spec), &config(), &host);
        let first = of(json!({"containers": []}));
        assert_eq!(first.servers, ["10.96.0.10"]);
        assert_eq!(
            first.searches,
            ["n.svc.cluster.local", "svc.cluster.local", "cluster.local", "lan", "corp"]
        );
        assert_eq!(first.options, ["ndots:5"]);
        assert_eq!(of(json!({"containers": [], "dnsPolicy": "Default"})), host);
        assert_eq!(of(json!({"containers": [], "hostNetwork": true})), host);
        let with_host =
            json!({"containers": [], "hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"});
        assert_eq!(of(with_host), first);
        let none = of(json!({"containers": [], "dnsPolicy": "None",
            "dnsConfig": {"nameservers": ["1.1.1.1"], "searches": ["x"], "options": [{"name": "ndots", "value": "2"}]}}));
        assert_eq!((none.servers, none.options), (vec!["1.1.1.1".to_owned()], vec!["ndots:2".to_owned()]));
    }

    #[test]
    fn options_of_the_pod_replace_those_of_the_policy() {
        let spec = json!({"containers": [], "dnsConfig": {"options": [{"name": "ndots", "value": "1"}]}});
        assert_eq!(resolv_conf(&pod(spec), &config(), &DnsConfig::default()).options, ["ndots:1"]);
    }
}
