//! Parsed roles and bindings, and the evaluation on them. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use api::selector::LabelSelector;
use serde_json::Value;

use super::{Kind, Rule};
use crate::security::{Attributes, Decision, Identity, USER_SERVICE_ACCOUNT_PREFIX};

/// What a binding points to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RoleRef {
    cluster: bool,
    name: String,
}

impl RoleRef {
    pub(super) fn parse(value: &Value) -> Self {
        Self { cluster: value["kind"] == "ClusterRole", name: text(&value["name"]) }
    }
}

struct Role {
    rules: Vec<Rule>,
    labels: Value,
    /// Selectors of the ClusterRoles whose rules are this one's too.
    aggregates: Vec<LabelSelector>,
}

struct Binding {
    name: String,
    /// Empty: everywhere.
    namespace: String,
    role: RoleRef,
    /// Each with its description for reasons.
    subjects: Vec<(Subject, String)>,
}

/// A subject of a binding; ServiceAccounts are users by their user name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Subject {
    User(String),
    Group(String),
}

/// Roles by namespace and name, bindings by subject.
#[derive(Default)]
pub struct Tables {
    cluster_roles: BTreeMap<String, Role>,
    roles: HashMap<(String, String), Role>,
    /// By kind and key, so that a change replaces exactly its own.
    bindings: BTreeMap<(Kind, String), Binding>,
    bindings_by_subject: HashMap<Subject, BTreeSet<(Kind, String)>>,
}

impl Tables {
    /// Takes in a role or binding; `key` is its storage key.
    pub fn set(&mut self, kind: Kind, key: &str, object: &Value) {
        self.remove(kind, key);
        let metadata = &object["metadata"];
        let (namespace, name) = (text(&metadata["namespace"]), text(&metadata["name"]));
        match kind {
            Kind::ClusterRole => drop(self.cluster_roles.insert(name, Role::parse(object))),
            Kind::Role => drop(self.roles.insert((namespace, name), Role::parse(object))),
            Kind::ClusterRoleBinding | Kind::RoleBinding => {
                let subjects = object["subjects"].as_array().into_iter().flatten();
                let subjects: Vec<_> = subjects
                    .filter_map(|subject| {
                        Some((parse_subject(subject, &namespace)?, describe_subject(subject, &namespace)))
                    })
                    .collect();
                let at = (kind, key.to_owned());
                for (subject, _) in &subjects {
                    self.bindings_by_subject.entry(subject.clone()).or_default().insert(at.clone());
                }
                let role = RoleRef::parse(&object["roleRef"]);
                self.bindings.insert(at, Binding { name, namespace, role, subjects });
            }
        }
    }

    /// Forgets an object by its storage key.
    pub fn remove(&mut self, kind: Kind, key: &str) {
        let mut parts = key.rsplit('/');
        let (name, namespace) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        match kind {
            Kind::ClusterRole => drop(self.cluster_roles.remove(name)),
            Kind::Role => drop(self.roles.remove(&(namespace.to_owned(), name.to_owned()))),
            Kind::ClusterRoleBinding | Kind::RoleBinding => {
                let at = (kind, key.to_owned());
                let Some(binding) = self.bindings.remove(&at) else { return };
                for (subject, _) in binding.subjects {
                    if let Some(bindings) = self.bindings_by_subject.get_mut(&subject) {
                        bindings.remove(&at);
                        if bindings.is_empty() {
                            self.bindings_by_subject.remove(&subject);
                        }
                    }
                }
            }
        }
    }

    /// Forgets every object of a kind.
    pub fn clear(&mut self, kind: Kind) {
        match kind {
            Kind::ClusterRole => self.cluster_roles.clear(),
            Kind::Role => self.roles.clear(),
            Kind::ClusterRoleBinding | Kind::RoleBinding => {
                let keys: Vec<_> = self.bindings.keys().filter(|(of, _)| *of == kind).cloned().collect();
                for (_, key) in keys {
                    self.remove(kind, &key);
                }
            }
        }
    }

    pub fn authorize(&self, identity: &Identity, attributes: &Attributes) -> Decision {
        for binding in self.bindings_of(identity, &attributes.namespace) {
            // A RoleBinding grants nothing outside its namespace, so nothing on paths either.
            let in_scope = binding.namespace.is_empty() || attributes.is_resource;
            if in_scope && self.rules(&binding.namespace, &binding.role).any(|rule| rule.allows(attributes)) {
                return Decision::allow(binding.describe(identity));
            }
        }
        Decision::no_opinion("")
    }

    pub fn rules_for(&self, identity: &Identity, namespace: &str) -> Vec<Rule> {
        let bindings = self.bindings_of(identity, namespace);
        let mut rules: Vec<Rule> = Vec::new();
        for binding in bindings {
            for rule in self.rules(&binding.namespace, &binding.role) {
                if !rules.contains(rule) && (binding.namespace.is_empty() || !rule.is_for_paths()) {
                    rules.push(rule.clone());
                }
            }
        }
        rules
    }

    /// # Errors
    /// The text of upstream's refusal.
    pub fn covers(&self, identity: &Identity, namespace: &str, rules: &[Rule]) -> Result<(), String> {
        let held = self.rules_for(identity, namespace);
        let missing: Vec<Rule> = rules
            .iter()
            .flat_map(Rule::atoms)
            .filter(|atom| !held.iter().any(|rule| rule.covers(atom)))
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        let missing: std::collections::BTreeSet<String> =
            compact(missing).iter().map(Rule::describe).collect();
        Err(format!(
            "user {:?} (groups={}) is attempting to grant RBAC permissions not currently held:\n{}",
            identity.name,
            format!("{:?}", identity.groups).replace(", ", " "),
            missing.into_iter().collect::<Vec<_>>().join("\n")
        ))
    }

    /// The rules behind a reference; `None` when the role is not there.
    pub(super) fn rules_of(&self, namespace: &str, role: &RoleRef) -> Option<Vec<Rule>> {
        self.role(namespace, role)?;
        Some(self.rules(namespace, role).cloned().collect())
    }

    /// The bindings that name an identity and hold in a namespace; those that hold everywhere come first.
    fn bindings_of(&self, identity: &Identity, namespace: &str) -> Vec<&Binding> {
        let groups = identity.groups.iter().cloned().map(Subject::Group);
        let keys: BTreeSet<_> = groups
            .chain([Subject::User(identity.name.clone())])
            .filter_map(|subject| self.bindings_by_subject.get(&subject))
            .flatten()
            .collect();
        keys.into_iter()
            .filter_map(|key| self.bindings.get(key))
            .filter(|binding| binding.namespace.is_empty() || binding.namespace == namespace)
            .collect()
    }

    fn role(&self, namespace: &str, role: &RoleRef) -> Option<&Role> {
        if role.cluster {
            self.cluster_roles.get(&role.name)
        } else {
            self.roles.get(&(namespace.to_owned(), role.name.clone()))
        }
    }

    fn rules<'a>(&'a self, namespace: &str, role: &RoleRef) -> impl Iterator<Item = &'a Rule> + use<'a> {
        let role = self.role(namespace, role);
        let mut pending: Vec<&Role> = role.into_iter().collect();
        let mut seen: Vec<&Role> = Vec::new();
        while let Some(role) = pending.pop() {
            if seen.iter().any(|other| std::ptr::eq(*other, role)) {
                continue;
            }
            seen.push(role);
            if !role.aggregates.is_empty() {
                let matches =
                    |other: &&Role| role.aggregates.iter().any(|selector| selector.matches(&other.labels));
                pending.extend(self.cluster_roles.values().filter(matches));
            }
        }
        seen.into_iter().flat_map(|role| role.rules.iter())
    }
}

impl Role {
    fn parse(object: &Value) -> Self {
        let selectors = object["aggregationRule"]["clusterRoleSelectors"].as_array().into_iter().flatten();
        Self {
            rules: Rule::parse_all(object),
            labels: object["metadata"]["labels"].clone(),
            // A selector that cannot be read grants nothing, and an empty one would grant everything.
            aggregates: selectors
                .filter_map(|value| LabelSelector::from_value(value).ok())
                .filter(|selector| !selector.is_empty())
                .collect(),
        }
    }
}

impl Binding {
    fn describe(&self, identity: &Identity) -> String {
        let kind = if self.role.cluster { "ClusterRole" } else { "Role" };
        let applies = |subject: &Subject| match subject {
            Subject::User(name) => *name == identity.name,
            Subject::Group(name) => identity.is_in(name),
        };
        let subject = self.subjects.iter().find(|(subject, _)| applies(subject));
        let subject = subject.map_or("", |(_, description)| description);
        if self.namespace.is_empty() {
            let (name, role) = (&self.name, &self.role.name);
            format!("RBAC: allowed by ClusterRoleBinding {name:?} of {kind} {role:?} to {subject}")
        } else {
            let name = format!("{}/{}", self.name, self.namespace);
            format!("RBAC: allowed by RoleBinding {name:?} of {kind} {:?} to {subject}", self.role.name)
        }
    }
}

fn describe_subject(subject: &Value, binding_namespace: &str) -> String {
    let (kind, name) = (text(&subject["kind"]), text(&subject["name"]));
    if kind != "ServiceAccount" {
        return format!("{kind} {name:?}");
    }
    let namespace = text(&subject["namespace"]);
    let namespace = if namespace.is_empty() { binding_namespace } else { &namespace };
    format!("{kind} {:?}", format!("{name}/{namespace}"))
}

fn parse_subject(subject: &Value, namespace: &str) -> Option<Subject> {
    let name = text(&subject["name"]);
    match subject["kind"].as_str()? {
        "User" => Some(Subject::User(name)),
        "Group" => Some(Subject::Group(name)),
        "ServiceAccount" => {
            let namespace =
                subject["namespace"].as_str().filter(|value| !value.is_empty()).unwrap_or(namespace);
            (!namespace.is_empty())
                .then(|| Subject::User(format!("{USER_SERVICE_ACCOUNT_PREFIX}{namespace}:{name}")))
        }
        _ => None,
    }
}

/// Joins atoms that differ only in their verb.
fn compact(atoms: Vec<Rule>) -> Vec<Rule> {
    let mut rules: Vec<Rule> = Vec::new();
    for atom in atoms {
        let same = |rule: &&mut Rule| {
            rule.api_groups == atom.api_groups
                && rule.resources == atom.resources
                && rule.resource_names == atom.resource_names
                && rule.non_resource_urls == atom.non_resource_urls
        };
        match rules.iter_mut().find(same) {
            Some(rule) => rule.verbs.extend(atom.verbs),
            None => rules.push(atom),
        }
    }
    rules
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
