//! What a ResourceQuota counts: which of its resources an object uses, how much of each, and which scopes it is in.
//!
//! Admission charges a request with these numbers and a controller recounts what is stored with the same, so the two
//! cannot disagree. Pure: `now` is an argument, since a pod that should be gone is not charged any more.

mod pod;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use serde_json::Value;

use crate::{
    meta,
    quantity::{Format, Quantity},
};

/// Quantities by resource name.
pub type Amounts = BTreeMap<String, Quantity>;

const STORAGE_CLASS: &str = ".storageclass.storage.k8s.io/";
/// Core kinds that are counted under their own name besides `count/NAME`.
const COUNTED: [&str; 4] = ["configmaps", "secrets", "replicationcontrollers", "resourcequotas"];
const SERVICES: [&str; 3] = ["services", "services.nodeports", "services.loadbalancers"];
const CLAIMS: [&str; 2] = ["persistentvolumeclaims", "requests.storage"];

/// The name under which the objects of any kind are counted: `count/deployments.apps`, `count/pods`.
pub fn count_name(group: &str, plural: &str) -> String {
    if group.is_empty() { format!("count/{plural}") } else { format!("count/{plural}.{group}") }
}

/// The kind, as group and plural, whose objects use a resource of a quota; `None` where no kind does.
pub fn source(resource: &str) -> Option<(&str, &str)> {
    if let Some(counted) = resource.strip_prefix("count/") {
        let (plural, group) = counted.split_once('.').unwrap_or((counted, ""));
        return Some((group, plural));
    }
    let core = |plural| Some(("", plural));
    match resource {
        "configmaps" => core("configmaps"),
        "secrets" => core("secrets"),
        "replicationcontrollers" => core("replicationcontrollers"),
        "resourcequotas" => core("resourcequotas"),
        _ if SERVICES.contains(&resource) => core("services"),
        _ if is_claims(resource) => core("persistentvolumeclaims"),
        _ if pod::uses(resource) => core("pods"),
        _ => None,
    }
}

fn is_claims(resource: &str) -> bool {
    let of_class = resource.split_once(STORAGE_CLASS).map(|(_, resource)| resource);
    CLAIMS.contains(&of_class.unwrap_or(resource))
}

/// The names in `hard` that objects of this kind use.
pub fn tracked<'a>(hard: &'a Amounts, group: &str, plural: &str) -> Vec<&'a str> {
    hard.keys().map(String::as_str).filter(|name| source(name) == Some((group, plural))).collect()
}

/// What one object uses, by quota resource; `now` in seconds since the epoch.
pub fn usage(group: &str, plural: &str, object: &Value, now: i64) -> Amounts {
    let mut usage = Amounts::new();
    usage.insert(count_name(group, plural), one());
    match (group, plural) {
        ("", "pods") => pod::add_usage(&mut usage, object, now),
        ("", "services") => add_service(&mut usage, object),
        ("", "persistentvolumeclaims") => add_claim(&mut usage, object),
        ("", plural) if COUNTED.contains(&plural) => {
            usage.insert(plural.to_owned(), one());
        }
        _ => {}
    }
    usage
}

fn one() -> Quantity {
    number(1)
}

fn number(count: usize) -> Quantity {
    Quantity::from_value(i64::try_from(count).unwrap_or(i64::MAX), Format::DecimalSi)
}

fn add_service(usage: &mut Amounts, service: &Value) {
    let ports = items(service, "/spec/ports");
    let kind = text(service, "/spec/type");
    let explicit = service.pointer("/spec/allocateLoadBalancerNodePorts") == Some(&Value::Bool(false));
    let node_ports = match kind {
        "LoadBalancer" if explicit => {
            let chosen = |port: &&Value| port["nodePort"].as_i64().is_some_and(|port| port != 0);
            ports.iter().filter(chosen).count()
        }
        "NodePort" | "LoadBalancer" => ports.len(),
        _ => 0,
    };
    usage.insert("services".to_owned(), one());
    usage.insert("services.nodeports".to_owned(), number(node_ports));
    usage.insert("services.loadbalancers".to_owned(), number(usize::from(kind == "LoadBalancer")));
}

fn add_claim(usage: &mut Amounts, claim: &Value) {
    let asked = quantity(claim.pointer("/spec/resources/requests/storage"));
    let allocated = quantity(claim.pointer("/status/allocatedResources/storage"));
    let storage = asked.map(|asked| match allocated {
        Some(allocated) if allocated > asked => whole(&allocated),
        _ => whole(&asked),
    });
    let class = meta::annotation(claim, "volume.beta.kubernetes.io/storage-class")
        .unwrap_or_else(|| text(claim, "/spec/storageClassName"));
    let mut prefixes = vec![String::new()];
    if !class.is_empty() {
        prefixes.push(format!("{class}{STORAGE_CLASS}"));
    }
    for prefix in prefixes {
        usage.insert(format!("{prefix}persistentvolumeclaims"), one());
        if let Some(storage) = storage {
            usage.insert(format!("{prefix}requests.storage"), storage);
        }
    }
}

/// Storage is counted in whole bytes.
fn whole(amount: &Quantity) -> Quantity {
    let bytes = i64::try_from(amount.value()).unwrap_or(i64::MAX);
    Quantity::from_value(bytes, amount.format())
}

/// Whether a quota's scopes take in an object of this kind; a quota without scopes takes in all.
pub fn in_scope(quota: &Value, group: &str, plural: &str, object: &Value) -> bool {
    let scopes = items(quota, "/spec/scopes").iter().filter_map(Value::as_str);
    let selected = items(quota, "/spec/scopeSelector/matchExpressions").iter().map(|expression| {
        (text(expression, "/scopeName"), text(expression, "/operator"), items(expression, "/values"))
    });
    scopes.map(|scope| (scope, "Exists", &[][..])).chain(selected).all(|(scope, operator, values)| {
        match (group, plural) {
            ("", "pods") => pod::in_scope(scope, operator, values, object),
            ("", "persistentvolumeclaims") if scope == "VolumeAttributesClass" => {
                let classes = attributes_classes(object);
                let known = classes.iter().map(|class| Some(*class));
                let mut known: Vec<Option<&str>> = known.collect();
                if known.is_empty() {
                    known.push(None);
                }
                known.iter().any(|class| selects(operator, values, *class))
            }
            _ => false,
        }
    })
}

/// The classes that a claim has, had or is about to have.
fn attributes_classes(claim: &Value) -> Vec<&str> {
    let paths = [
        "/spec/volumeAttributesClassName",
        "/status/currentVolumeAttributesClassName",
        "/status/modifyVolumeStatus/targetVolumeAttributesClassName",
    ];
    paths.iter().map(|path| text(claim, path)).filter(|class| !class.is_empty()).collect()
}

/// A label selector's requirement on one value, which may be absent.
fn selects(operator: &str, values: &[Value], value: Option<&str>) -> bool {
    let listed = value.is_some_and(|value| values.iter().any(|listed| listed == value));
    match operator {
        "In" => listed,
        "NotIn" => !listed,
        "DoesNotExist" => value.is_none(),
        _ => value.is_some(),
    }
}

/// With a quota on CPU or memory every container must say what it needs, unless the pod as a whole does: the text that
/// names those that do not, `None` where all do.
pub fn unspecified<'a>(pod: &Value, tracked: impl IntoIterator<Item = &'a str>) -> Option<String> {
    pod::unspecified(pod, tracked)
}

/// Reads an object's map of quantities; what is none is left out.
pub fn amounts(object: &Value, pointer: &str) -> Amounts {
    let entries = object.pointer(pointer).and_then(Value::as_object);
    let known = entries.into_iter().flatten();
    known.filter_map(|(name, amount)| Some((name.clone(), quantity(Some(amount))?))).collect()
}

/// The JSON form of [`amounts`].
pub fn to_json(amounts: &Amounts) -> Value {
    amounts.iter().map(|(name, amount)| (name.clone(), Value::String(amount.to_string()))).collect()
}

/// Adds each amount of `more` to that of the same name in `sum`.
pub fn add(sum: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        let total = sum.get(name).map_or(*amount, |sum| sum.add(amount));
        sum.insert(name.clone(), total);
    }
}

/// `NAME=AMOUNT` of each of `names`, sorted, as upstream writes it in a refusal.
pub fn listed<'a>(amounts: &Amounts, names: impl IntoIterator<Item = &'a str>) -> String {
    let mut names: Vec<&str> = names.into_iter().collect();
    names.sort_unstable();
    let parts = names.iter().filter_map(|name| Some(format!("{name}={}", amounts.get(*name)?)));
    parts.collect::<Vec<_>>().join(",")
}

fn quantity(value: Option<&Value>) -> Option<Quantity> {
    Quantity::from_json(value?).ok()
}

fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn items<'a>(object: &'a Value, pointer: &str) -> &'a [Value] {
    object.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}
