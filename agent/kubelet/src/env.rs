//! The environment of a container: `$(VAR)` expansion, sources, Service variables. Pure: the objects that it refers
//! to are given.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, EnvVarSource, Pod};

use crate::downward::{self, Facts};
use crate::objects::{Kind, Payload};
use crate::pod;

/// Objects by kind and name, of the pod's namespace; `None` where the apiserver has none.
pub type Sources = BTreeMap<(Kind, String), Option<Arc<Payload>>>;

/// Names of the objects that the environment of `container` needs.
pub fn references(container: &Container) -> Vec<(Kind, String)> {
    let mut names = Vec::new();
    for from in container.env_from.iter().flatten() {
        names.extend(from.config_map_ref.as_ref().map(|r| (Kind::ConfigMap, r.name.clone())));
        names.extend(from.secret_ref.as_ref().map(|r| (Kind::Secret, r.name.clone())));
    }
    for source in container.env.iter().flatten().filter_map(|env| env.value_from.as_ref()) {
        names.extend(source.config_map_key_ref.as_ref().map(|r| (Kind::ConfigMap, r.name.clone())));
        names.extend(source.secret_key_ref.as_ref().map(|r| (Kind::Secret, r.name.clone())));
    }
    names
}

/// Replaces `$(NAME)` by what `lookup` knows. `$$` is a literal `$`; an unknown name stays as written.
pub fn expand(text: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some(inner) = rest.strip_prefix('(')
            && let Some(end) = inner.find(')')
        {
            let name = &inner[..end];
            match lookup(name) {
                Some(value) => out.push_str(&value),
                None => {
                    out.push_str("$(");
                    out.push_str(name);
                    out.push(')');
                }
            }
            rest = &inner[end + 1..];
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}

/// Name and value pairs in the order they are set; later pairs of a name replace earlier ones.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    pairs: Vec<(String, String)>,
    index: HashMap<String, usize>,
}

impl Environment {
    pub fn get(&self, name: &str) -> Option<&str> {
        self.index.get(name).map(|at| self.pairs[*at].1.as_str())
    }

    fn set(&mut self, name: String, value: String) {
        match self.index.get(&name) {
            Some(at) => self.pairs[*at].1 = value,
            None => {
                self.index.insert(name.clone(), self.pairs.len());
                self.pairs.push((name, value));
            }
        }
    }

    pub fn into_pairs(self) -> Vec<(String, String)> {
        self.pairs
    }

    pub fn expand(&self, text: &str) -> String {
        expand(text, |name| self.get(name).map(str::to_owned))
    }
}

/// Builds the environment of `container`. The error is a sentence for `CreateContainerConfigError`.
pub fn build(
    pod: &Pod,
    container: &Container,
    facts: &Facts,
    sources: &Sources,
    services: &BTreeMap<String, String>,
) -> Result<Environment, String> {
    let mut environment = Environment::default();
    env_from(pod, container, sources, &mut environment)?;
    for env in container.env.iter().flatten() {
        let value = match &env.value_from {
            None => {
                let lookup = |name: &str| {
                    environment.get(name).map(str::to_owned).or_else(|| services.get(name).cloned())
                };
                expand(env.value.as_deref().unwrap_or_default(), lookup)
            }
            Some(source) => match from_source(pod, container, facts, sources, source)? {
                Some(value) => value,
                None => continue,
            },
        };
        environment.set(env.name.clone(), value);
    }
    for (name, value) in services {
        if environment.get(name).is_none() {
            environment.set(name.clone(), value.clone());
        }
    }
    Ok(environment)
}

fn env_from(
    pod: &Pod,
    container: &Container,
    sources: &Sources,
    environment: &mut Environment,
) -> Result<(), String> {
    for from in container.env_from.iter().flatten() {
        let (kind, name, optional) = match (&from.config_map_ref, &from.secret_ref) {
            (Some(r), _) => (Kind::ConfigMap, &r.name, r.optional.unwrap_or(false)),
            (None, Some(r)) => (Kind::Secret, &r.name, r.optional.unwrap_or(false)),
            (None, None) => continue,
        };
        let Some(payload) = find(sources, kind, name) else {
            if optional {
                continue;
            }
            return Err(kind.not_found(name));
        };
        let prefix = from.prefix.as_deref().unwrap_or_default();
        for (key, value) in &payload.data {
            // Any printable ASCII but '=' makes a name (KEP-4369).
            let printable = key.bytes().all(|b| (0x20..0x7f).contains(&b) && b != b'=');
            if printable && let Ok(text) = std::str::from_utf8(value) {
                environment.set(format!("{prefix}{key}"), text.to_owned());
            } else {
                tracing::warn!(
                    pod = pod::display(pod),
                    key,
                    "not a name for an environment variable: skipped"
                );
            }
        }
    }
    Ok(())
}

fn find<'a>(sources: &'a Sources, kind: Kind, name: &str) -> Option<&'a Arc<Payload>> {
    sources.get(&(kind, name.to_owned())).and_then(Option::as_ref)
}

fn from_source(
    pod: &Pod,
    container: &Container,
    facts: &Facts,
    sources: &Sources,
    source: &EnvVarSource,
) -> Result<Option<String>, String> {
    if let Some(selector) = &source.field_ref {
        return downward::field(pod, facts, selector).map(Some);
    }
    if let Some(selector) = &source.resource_field_ref {
        let named = selector.container_name.as_deref();
        let other = named.and_then(|name| {
            let spec = pod.spec.as_ref()?;
            spec.init_containers.iter().flatten().chain(&spec.containers).find(|c| c.name == name)
        });
        return downward::resource(other.unwrap_or(container), facts, selector).map(Some);
    }
    let (kind, name, key, optional) = match (&source.config_map_key_ref, &source.secret_key_ref) {
        (Some(r), _) => (Kind::ConfigMap, &r.name, &r.key, r.optional.unwrap_or(false)),
        (None, Some(r)) => (Kind::Secret, &r.name, &r.key, r.optional.unwrap_or(false)),
        (None, None) => return Err("the source of an environment variable is not supported".to_owned()),
    };
    match find(sources, kind, name) {
        None if optional => Ok(None),
        None => Err(kind.not_found(name)),
        Some(payload) => match payload.data.get(key) {
            Some(value) => Ok(Some(String::from_utf8_lossy(value).into_owned())),
            None if optional => Ok(None),
            None => {
                let (kind, namespace) = (kind.as_str(), pod::namespace(pod));
                Err(format!("couldn't find key {key} in {kind} {namespace}/{name}"))
            }
        },
    }
}

/// A Service as the variables of a container name it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServiceLink {
    pub name: String,
    pub cluster_ip: IpAddr,
    /// As the Service lists them.
    pub ports: Vec<LinkPort>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LinkPort {
    /// Empty for an unnamed one.
    pub name: String,
    /// In lower case.
    pub protocol: &'static str,
    pub number: u16,
}

/// The Services of the cluster, from whoever follows them on this node.
pub trait ServiceLinks: Send + Sync + 'static {
    /// Those of a namespace that have a cluster IP; `None` as long as not all are known.
    fn of_namespace(&self, namespace: &str) -> Option<Vec<ServiceLink>>;
}

/// The variables by which a container finds Services: `kubernetes` always, those of its namespace if it wants them.
/// `None` as long as not all Services are known.
pub fn service_variables(
    namespace: &str,
    enable_service_links: bool,
    services: &dyn ServiceLinks,
) -> Option<BTreeMap<String, String>> {
    let mut variables = BTreeMap::new();
    let master = services.of_namespace("default")?.into_iter().filter(|service| service.name == "kubernetes");
    let own = if enable_service_links { services.of_namespace(namespace)? } else { Vec::new() };
    for service in master.chain(own) {
        service_links(&service, &mut variables);
    }
    Some(variables)
}

fn service_links(service: &ServiceLink, variables: &mut BTreeMap<String, String>) {
    let Some(first) = service.ports.first() else { return };
    let ip = service.cluster_ip.to_string();
    let upper = |text: &str| text.replace('-', "_").to_uppercase();
    let prefix = upper(&service.name);
    variables.insert(format!("{prefix}_SERVICE_HOST"), ip.clone());
    variables.insert(format!("{prefix}_SERVICE_PORT"), first.number.to_string());
    let host = if service.cluster_ip.is_ipv6() { format!("[{ip}]") } else { ip.clone() };
    for (index, port) in service.ports.iter().enumerate() {
        let LinkPort { name, protocol, number } = port;
        if !name.is_empty() {
            variables.insert(format!("{prefix}_SERVICE_PORT_{}", upper(name)), number.to_string());
        }
        let url = format!("{protocol}://{host}:{number}");
        if index == 0 {
            variables.insert(format!("{prefix}_PORT"), url.clone());
        }
        let link = format!("{prefix}_PORT_{number}_{}", protocol.to_uppercase());
        variables.insert(format!("{link}_PROTO"), (*protocol).to_owned());
        variables.insert(format!("{link}_PORT"), number.to_string());
        variables.insert(format!("{link}_ADDR"), ip.clone());
        variables.insert(link, url);
    }
}

/// Expands only what the spec itself defines: for `subPathExpr`, which sees no sources but the downward API.
pub fn expand_strict(text: &str, environment: &Environment) -> Result<String, String> {
    let missing = std::cell::RefCell::new(None);
    let expanded = expand(text, |name| match environment.get(name) {
        Some(value) => Some(value.to_owned()),
        None => {
            missing.borrow_mut().get_or_insert_with(|| name.to_owned());
            None
        }
    });
    match missing.into_inner() {
        Some(name) => Err(format!("missing value for \"{name}\"")),
        None => Ok(expanded),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn expansion_follows_the_rules_of_the_api() {
        let lookup = |name: &str| match name {
            "A" => Some("1".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        };
        for (text, expected) in [
            ("$(A)", "1"),
            ("x$(A)y$(A)", "x1y1"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$(B)", "$(B)"),
            ("$(EMPTY)", ""),
            ("$A", "$A"),
            ("$(A", "$(A"),
            ("$", "$"),
            ("$$", "$"),
            ("$()", "$()"),
            ("$($(A))", "$($(A))"),
        ] {
            assert_eq!(expand(text, lookup), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn text_without_dollars_is_never_changed(text in "[^$]*") {
            prop_assert_eq!(expand(&text, |_| Some("x".into())), text);
        }

        #[test]
        fn doubled_dollars_are_an_escape_of_everything(text in ".*") {
            let escaped = text.replace('$', "$$");
            prop_assert_eq!(expand(&escaped, |_| Some("x".into())), text);
        }
    }

    fn container(value: serde_json::Value) -> Container {
        serde_json::from_value(value).unwrap()
    }

    fn payload(pairs: &[(&str, &str)]) -> Option<Arc<Payload>> {
        let data = pairs.iter().map(|(k, v)| ((*k).to_owned(), v.as_bytes().to_vec())).collect();
        Some(Arc::new(Payload { data, ..Payload::default() }))
    }

    #[test]
    fn later_sources_win_and_earlier_variables_are_visible() {
        let container = container(json!({"name": "c",
            "envFrom": [{"prefix": "P_", "configMapRef": {"name": "m"}}],
            "env": [{"name": "X", "value": "$(P_K)-$(SVC)"}, {"name": "X", "value": "$(X)!"},
                    {"name": "S", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
                    {"name": "O", "valueFrom": {"secretKeyRef": {"name": "s", "key": "z", "optional": true}}}]}));
        let sources = Sources::from([
            ((Kind::ConfigMap, "m".into()), payload(&[("K", "v"), ("bad=key", "v")])),
            ((Kind::Secret, "s".into()), payload(&[("k", "secret")])),
        ]);
        let services = BTreeMap::from([("SVC".to_owned(), "10.96.0.1".to_owned())]);
        let environment = build(&Pod::default(), &container, &Facts::default(), &sources, &services).unwrap();
        assert_eq!(environment.get("X"), Some("v-10.96.0.1!"));
        assert_eq!(environment.get("S"), Some("secret"));
        assert_eq!(environment.get("O"), None);
        assert_eq!(environment.get("P_bad=key"), None);
        assert_eq!(environment.get("SVC"), Some("10.96.0.1"));
    }

    #[test]
    fn a_missing_object_or_key_is_named() {
        let of_key = container(
            json!({"name": "c", "env": [{"name": "S", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "k"}}}]}),
        );
        let build =
            |sources: &Sources| build(&Pod::default(), &of_key, &Facts::default(), sources, &BTreeMap::new());
        assert_eq!(build(&Sources::new()).unwrap_err(), "configmap \"m\" not found");
        let sources = Sources::from([((Kind::ConfigMap, "m".into()), payload(&[]))]);
        assert_eq!(build(&sources).unwrap_err(), "couldn't find key k in ConfigMap default/m");
    }

    struct Known(Option<Vec<(&'static str, ServiceLink)>>);

    impl ServiceLinks for Known {
        fn of_namespace(&self, namespace: &str) -> Option<Vec<ServiceLink>> {
            let known = self.0.as_ref()?;
            Some(known.iter().filter(|(of, _)| *of == namespace).map(|(_, link)| link.clone()).collect())
        }
    }

    #[test]
    fn service_variables_have_both_forms_and_respect_links() {
        let service = |namespace: &'static str, name: &str, ip: &str| {
            let ports = vec![LinkPort { name: "web-ui".into(), protocol: "tcp", number: 80 }];
            (namespace, ServiceLink { name: name.into(), cluster_ip: ip.parse().unwrap(), ports })
        };
        let services = Known(Some(vec![
            service("default", "kubernetes", "10.96.0.7"),
            service("default", "near", "10.96.0.7"),
            service("n", "my-db", "10.96.0.7"),
            service("n", "six", "fd00::7"),
            service("other", "far", "10.96.0.7"),
        ]));
        let with = service_variables("n", true, &services).unwrap();
        assert_eq!(with["MY_DB_SERVICE_HOST"], "10.96.0.7");
        assert_eq!(with["MY_DB_SERVICE_PORT_WEB_UI"], "80");
        assert_eq!(with["MY_DB_PORT_80_TCP"], "tcp://10.96.0.7:80");
        assert_eq!(with["MY_DB_PORT_80_TCP_PROTO"], "tcp");
        assert_eq!(with["SIX_PORT"], "tcp://[fd00::7]:80");
        assert_eq!(with["SIX_SERVICE_HOST"], "fd00::7");
        assert_eq!(with["KUBERNETES_SERVICE_HOST"], "10.96.0.7");
        assert!(!with.contains_key("FAR_SERVICE_HOST") && !with.contains_key("NEAR_SERVICE_HOST"));
        let without = service_variables("n", false, &services).unwrap();
        assert!(without.contains_key("KUBERNETES_PORT") && !without.contains_key("MY_DB_PORT"));
        assert_eq!(service_variables("n", true, &Known(None)), None, "not before all are known");
    }

    #[test]
    fn strict_expansion_refuses_unknown_names() {
        let mut environment = Environment::default();
        environment.set("A".into(), "x".into());
        assert_eq!(expand_strict("$(A)/b", &environment).as_deref(), Ok("x/b"));
        assert!(expand_strict("$(B)", &environment).unwrap_err().contains('B'));
    }
}
