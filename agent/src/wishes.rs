//! What pods and their namespaces say of the addresses that they want, in Calico's annotations.
//!
//! A pod's own go before those of its namespace, and these before all pools that give by themselves. Kept on disk as far as
//! anybody wants anything, so that a pod that is known gets what it asks for while the API server is away.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ipam::{Pool, Want};
use ipnetwork::IpNetwork;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::core::PartialObjectMeta;
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt};
use serde::{Deserialize, Serialize};
use tokio::sync::watch as signal;

use crate::persist;
use crate::pools::{PodPool, Supply, family};
use crate::watch::{Change, Listing};

const PREFIX: &str = "cni.projectcalico.org/";
const POOLS: [(bool, &str); 2] =
    [(true, "cni.projectcalico.org/ipv4pools"), (false, "cni.projectcalico.org/ipv6pools")];
const ADDRESSES: &str = "cni.projectcalico.org/ipAddrs";
/// What Calico's plugin does and this one does not.
const UNSUPPORTED: [&str; 4] = ["ipAddrsNoIpam", "floatingIPs", "hwAddr", "ipFamilies"];
/// For asking of a pod that was not heard of.
const ASK_TIMEOUT: Duration = Duration::from_millis(500);

/// What a pod or namespace says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Facts {
    pub uid: String,
    pub labels: BTreeMap<String, String>,
    /// Those with [`PREFIX`].
    pub annotations: BTreeMap<String, String>,
}

impl Facts {
    fn of(object: &impl ResourceExt) -> Facts {
        let annotations = object.annotations().iter().filter(|(name, _)| name.starts_with(PREFIX));
        Facts {
            uid: object.uid().unwrap_or_default(),
            labels: object.labels().clone(),
            annotations: annotations.map(|(name, value)| (name.clone(), value.clone())).collect(),
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Heard {
    /// By namespace and name; on disk, those that want something.
    pods: BTreeMap<String, Facts>,
    namespaces: BTreeMap<String, Facts>,
}

/// What was heard of the node's pods and of all namespaces.
pub struct Wishes {
    client: Client,
    file: PathBuf,
    heard: Mutex<Heard>,
    /// How often namespaces were told of; 0 until they all were.
    namespaces_told: signal::Sender<u64>,
}

/// Lists under way.
#[derive(Default)]
pub struct Listings {
    pods: Listing<PartialObjectMeta<Pod>>,
    namespaces: Listing<PartialObjectMeta<Namespace>>,
}

impl Wishes {
    pub fn open(client: Client, file: PathBuf) -> anyhow::Result<Wishes> {
        let heard = persist::read_unflushed(&file)?.unwrap_or_default();
        Ok(Wishes { client, file, heard: Mutex::new(heard), namespaces_told: signal::Sender::new(0) })
    }

    pub fn pod(&self, listings: &mut Listings, event: watcher::Event<PartialObjectMeta<Pod>>) {
        let Some(change) = listings.pods.change(event) else { return };
        self.change(
            |heard| &mut heard.pods,
            change,
            |pod| {
                let facts = Facts { labels: BTreeMap::new(), ..Facts::of(pod) };
                (format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any()), facts)
            },
        );
    }

    pub fn namespace(&self, listings: &mut Listings, event: watcher::Event<PartialObjectMeta<Namespace>>) {
        let Some(change) = listings.namespaces.change(event) else { return };
        self.change(|heard| &mut heard.namespaces, change, |it| (it.name_any(), Facts::of(it)));
        self.namespaces_told.send_modify(|times| *times += 1);
    }

    /// Changes with the namespaces; 0 until all are known.
    pub fn namespaces_told(&self) -> signal::Receiver<u64> {
        self.namespaces_told.subscribe()
    }

    /// The labels of all namespaces, by their names.
    pub fn each_namespace(&self, mut each: impl FnMut(&str, &BTreeMap<String, String>)) {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.namespaces.iter().for_each(|(name, facts)| each(name, &facts.labels));
    }

    fn change<K>(
        &self,
        part: impl Fn(&mut Heard) -> &mut BTreeMap<String, Facts>,
        change: Change<K>,
        of: impl Fn(&K) -> (String, Facts),
    ) {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let before = lasting(&heard);
        let facts = part(&mut heard);
        match change {
            Change::All(all) => *facts = all.iter().map(&of).collect(),
            Change::Apply(object) => facts.extend([of(&object)]),
            Change::Delete(object) => drop(facts.remove(&of(&object).0)),
        }
        let after = lasting(&heard);
        drop(heard);
        if before != after
            && let Err(error) = persist::write_unflushed(&self.file, &after)
        {
            tracing::warn!("{error:#}");
        }
    }

    /// What a pod says, and its namespace. One that was not heard of is asked for; while the API server does not answer, it
    /// wants nothing. `uid` may be empty.
    pub async fn of(&self, namespace: &str, name: &str, uid: &str) -> (Facts, Facts) {
        let (pod, of_namespace) = {
            let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
            let pod = heard.pods.get(&format!("{namespace}/{name}")).cloned();
            (pod.filter(|pod| uid.is_empty() || pod.uid == uid), heard.namespaces.get(namespace).cloned())
        };
        if namespace.is_empty() || name.is_empty() {
            return Default::default();
        }
        let pod = match pod {
            Some(pod) => Some(pod),
            None => ask(Api::<Pod>::namespaced(self.client.clone(), namespace), name).await,
        };
        // Who did not answer just now is not asked again.
        let of_namespace = match (of_namespace, pod.is_some()) {
            (None, true) => ask(Api::<Namespace>::all(self.client.clone()), namespace).await,
            (heard, _) => heard,
        };
        (pod.unwrap_or_default(), of_namespace.unwrap_or_default())
    }
}

/// What is worth keeping.
fn lasting(heard: &Heard) -> Heard {
    let mut lasting = heard.clone();
    lasting.pods.retain(|_, facts| !facts.annotations.is_empty());
    lasting
}

/// `None` where there is no answer. What is not there says nothing.
async fn ask<K>(api: Api<K>, name: &str) -> Option<Facts>
where
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned + kube::Resource,
{
    match tokio::time::timeout(ASK_TIMEOUT, api.get_metadata_opt(name)).await {
        Ok(Ok(found)) => Some(found.map(|found| Facts::of(&found)).unwrap_or_default()),
        Ok(Err(error)) => {
            tracing::debug!(name, error = crate::watch::chain(&error), "nothing is known of its annotations");
            None
        }
        Err(_) => None,
    }
}

/// What a pod is to be given.
///
/// # Errors
/// What it wants and cannot get, and where that is said.
pub fn wants(supply: &Supply, pod: &Facts, namespace: &Facts) -> Result<Vec<Want>, String> {
    for name in UNSUPPORTED {
        if pod.annotations.contains_key(&format!("{PREFIX}{name}")) {
            return Err(format!("annotation {PREFIX}{name} of the pod: it is not supported"));
        }
    }
    if let Some(text) = pod.annotations.get(ADDRESSES) {
        return addresses(supply, text)
            .map_err(|problem| format!("annotation {ADDRESSES} of the pod: {problem}"));
    }
    supply.families.iter().map(|v4| of_family(*v4, supply, pod, namespace)).collect()
}

fn addresses(supply: &Supply, text: &str) -> Result<Vec<Want>, String> {
    let addresses: Vec<IpAddr> = list(text, "addresses")?;
    for (n, ip) in addresses.iter().enumerate() {
        if addresses[..n].iter().any(|other| other.is_ipv4() == ip.is_ipv4()) {
            let family = family(ip.is_ipv4());
            return Err(format!("{ip} is a second address of {family}: one of each is possible"));
        }
        let pool = supply.pools.iter().find(|pool| pool.cidr().contains(*ip));
        let pool = pool.ok_or_else(|| format!("{ip} is in no IPPool for pods"))?;
        usable(pool).map_err(|problem| format!("{ip} is in IPPool {}, which {problem}", pool.name))?;
        if !pool.node_pool.pool.usable(*ip) {
            return Err(format!("{ip} is the first or the last address of IPPool {}", pool.name));
        }
    }
    Ok(addresses.into_iter().map(Want::Exactly).collect())
}

fn of_family(v4: bool, supply: &Supply, pod: &Facts, namespace: &Facts) -> Result<Want, String> {
    let annotation = POOLS.iter().find(|(of, _)| *of == v4).map_or("", |(_, name)| name);
    for (facts, whose) in [(pod, "pod"), (namespace, "namespace")] {
        if let Some(text) = facts.annotations.get(annotation) {
            let pools = named(v4, supply, text);
            return pools
                .map(Want::Of)
                .map_err(|problem| format!("annotation {annotation} of the {whose}: {problem}"));
        }
    }
    let selected = supply
        .automatic(v4)
        .filter(|pool| pool.namespaces.as_ref().is_none_or(|selector| selector.matches(&namespace.labels)));
    let pools: Vec<Pool> = selected.map(|pool| pool.node_pool.pool).collect();
    if pools.is_empty() {
        return Err(format!(
            "no IPPool gives addresses of {} to pods of this node and namespace without being asked for",
            family(v4)
        ));
    }
    Ok(Want::Of(pools))
}

fn named(v4: bool, supply: &Supply, text: &str) -> Result<Vec<Pool>, String> {
    let mut pools = Vec::new();
    for name in list::<String>(text, "names or ranges of IPPools")? {
        let range = name.parse::<IpNetwork>().ok();
        let is_meant = |pool: &&PodPool| pool.name == name || Some(pool.cidr()) == range;
        let pool = supply.pools.iter().find(is_meant);
        let pool = pool.ok_or_else(|| format!("there is no IPPool {name} for pods"))?;
        if pool.cidr().is_ipv4() != v4 {
            return Err(format!("IPPool {name} is not of {}", family(v4)));
        }
        usable(pool).map_err(|problem| format!("IPPool {name} {problem}"))?;
        pools.push(pool.node_pool.pool);
    }
    Ok(pools)
}

fn usable(pool: &PodPool) -> Result<(), &'static str> {
    match pool.node_pool.gives {
        true => Ok(()),
        false if pool.is_disabled => Err("is disabled"),
        false => Err("does not select this node"),
    }
}

fn list<T: serde::de::DeserializeOwned>(text: &str, of: &str) -> Result<Vec<T>, String> {
    let list: Vec<T> =
        serde_json::from_str(text).map_err(|error| format!("{text:?} is no JSON list of {of}: {error}"))?;
    if list.is_empty() { Err("the list is empty".to_owned()) } else { Ok(list) }
}

#[cfg(test)]
mod tests {
    use ipam::NodePool;

    use super::*;

    fn pool(name: &str, cidr: &str, gives: bool, is_automatic: bool) -> PodPool {
        let pool = Pool::with_default_blocks(cidr.parse().unwrap()).unwrap();
        PodPool {
            name: name.to_owned(),
            node_pool: NodePool { pool, gives, is_automatic },
            is_disabled: name == "off",
            namespaces: (name == "team").then(|| "team == 'a'".parse().unwrap()),
            is_announced: true,
            is_masqueraded: false,
        }
    }

    fn supply() -> Supply {
        let pools = vec![
            pool("all", "10.1.0.0/16", true, true),
            pool("manual", "10.2.0.0/16", true, false),
            pool("off", "10.3.0.0/16", false, true),
            pool("rack", "10.4.0.0/16", false, true),
            pool("six", "fd00::/48", true, true),
            pool("team", "10.5.0.0/16", true, true),
        ];
        Supply { families: vec![true, false], pools, reserved: Vec::new() }
    }

    fn facts(annotations: &[(&str, &str)]) -> Facts {
        let annotations =
            annotations.iter().map(|(name, value)| (format!("{PREFIX}{name}"), (*value).to_owned()));
        Facts { annotations: annotations.collect(), ..Facts::default() }
    }

    fn ranges(want: &Want) -> Vec<String> {
        match want {
            Want::Of(pools) => pools.iter().map(|pool| pool.cidr().to_string()).collect(),
            Want::Exactly(address) => vec![address.to_string()],
        }
    }

    fn wanted(pod: &[(&str, &str)], namespace: &[(&str, &str)]) -> Result<Vec<Vec<String>>, String> {
        let wants = wants(&supply(), &facts(pod), &facts(namespace))?;
        Ok(wants.iter().map(ranges).collect())
    }

    #[test]
    fn a_pod_goes_before_its_namespace_and_that_before_all_pools() {
        assert_eq!(wanted(&[], &[]).unwrap(), [["10.1.0.0/16"], ["fd00::/48"]]);
        let namespace = [("ipv4pools", r#"["manual", "10.1.0.0/16"]"#)];
        assert_eq!(wanted(&[], &namespace).unwrap()[0], ["10.2.0.0/16", "10.1.0.0/16"]);
        let pod = [("ipv4pools", r#"["all"]"#)];
        assert_eq!(wanted(&pod, &namespace).unwrap()[0], ["10.1.0.0/16"]);
        let addresses = [("ipAddrs", r#"["10.2.0.9"]"#)];
        assert_eq!(wanted(&addresses, &namespace).unwrap(), [["10.2.0.9"]]);
        // What Calico's plugin writes to a pod asks for nothing.
        assert!(wanted(&[("podIPs", "10.9.9.9/32"), ("containerID", "x")], &[]).is_ok());
        let team = Facts { labels: [("team".to_owned(), "a".to_owned())].into(), ..Facts::default() };
        let both = wants(&supply(), &Facts::default(), &team).unwrap();
        assert_eq!(ranges(&both[0]), ["10.1.0.0/16", "10.5.0.0/16"]);
    }

    #[test]
    fn what_cannot_be_met_says_what_and_where() {
        for (name, value, words) in [
            ("floatingIPs", "[]", "floatingIPs of the pod: it is not supported"),
            ("ipAddrsNoIpam", "[]", "ipAddrsNoIpam of the pod: it is not supported"),
            ("ipAddrs", "10.1.0.9", "ipAddrs of the pod: \"10.1.0.9\" is no JSON list of addresses"),
            ("ipAddrs", r#"["10.1.0.9", "10.1.0.8"]"#, "10.1.0.8 is a second address of IPv4"),
            ("ipAddrs", r#"["10.9.0.9"]"#, "10.9.0.9 is in no IPPool for pods"),
            ("ipAddrs", r#"["10.3.0.9"]"#, "10.3.0.9 is in IPPool off, which is disabled"),
            ("ipAddrs", r#"["10.1.0.0"]"#, "10.1.0.0 is the first or the last address of IPPool all"),
            ("ipv4pools", r#"["nobody"]"#, "ipv4pools of the pod: there is no IPPool nobody"),
            ("ipv4pools", r#"["six"]"#, "IPPool six is not of IPv4"),
            ("ipv6pools", r#"["all"]"#, "ipv6pools of the pod: IPPool all is not of IPv6"),
            ("ipv4pools", r#"["rack"]"#, "IPPool rack does not select this node"),
            ("ipv4pools", "[]", "the list is empty"),
        ] {
            let error = wanted(&[(name, value)], &[]).unwrap_err();
            assert!(error.contains(words), "{error:?} says nothing of {words:?}");
        }
        let error = wanted(&[], &[("ipv4pools", r#"["off"]"#)]).unwrap_err();
        assert!(error.contains("of the namespace: IPPool off is disabled"), "{error}");
        let mut none = supply();
        none.pools.retain(|pool| !pool.cidr().is_ipv4());
        let error = wants(&none, &Facts::default(), &Facts::default()).unwrap_err();
        assert!(error.contains("no IPPool gives addresses of IPv4"), "{error}");
    }
}
