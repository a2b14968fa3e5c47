//! One PolicyRule and what it matches.

use serde_json::{Value, json};

use crate::security::Attributes;

const ALL: &str = "*";

/// `rbac.authorization.k8s.io/v1` PolicyRule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    pub verbs: Vec<String>,
    pub api_groups: Vec<String>,
    pub resources: Vec<String>,
    pub resource_names: Vec<String>,
    pub non_resource_urls: Vec<String>,
}

impl Rule {
    pub fn parse(value: &Value) -> Self {
        let list = |field: &str| {
            let items = value[field].as_array().into_iter().flatten();
            items.filter_map(Value::as_str).map(str::to_owned).collect()
        };
        Self {
            verbs: list("verbs"),
            api_groups: list("apiGroups"),
            resources: list("resources"),
            resource_names: list("resourceNames"),
            non_resource_urls: list("nonResourceURLs"),
        }
    }

    /// The `rules` of a role.
    pub fn parse_all(role: &Value) -> Vec<Self> {
        role["rules"].as_array().into_iter().flatten().map(Self::parse).collect()
    }

    /// As in a role, without the fields that are empty.
    pub fn to_value(&self) -> Value {
        let mut value = json!({ "verbs": self.verbs });
        let fields = [
            ("apiGroups", &self.api_groups),
            ("resources", &self.resources),
            ("resourceNames", &self.resource_names),
            ("nonResourceURLs", &self.non_resource_urls),
        ];
        for (name, list) in fields {
            if !list.is_empty() {
                value[name] = json!(list);
            }
        }
        value
    }

    pub fn is_for_paths(&self) -> bool {
        !self.non_resource_urls.is_empty()
    }

    pub fn allows(&self, attributes: &Attributes) -> bool {
        if !has(&self.verbs, &attributes.verb) {
            return false;
        }
        if !attributes.is_resource {
            return self.non_resource_urls.iter().any(|url| path_matches(url, &attributes.path));
        }
        has(&self.api_groups, &attributes.group)
            && resource_matches(&self.resources, &attributes.resource, &attributes.subresource)
            && (self.resource_names.is_empty() || self.resource_names.contains(&attributes.name))
    }

    /// Whether this rule grants all that `wanted`, an atom of [`Rule::atoms`], grants.
    pub(crate) fn covers(&self, wanted: &Self) -> bool {
        let every = |have: &[String], want: &[String]| want.iter().all(|item| has(have, item));
        if !every(&self.verbs, &wanted.verbs) {
            return false;
        }
        if wanted.is_for_paths() {
            return wanted
                .non_resource_urls
                .iter()
                .all(|url| self.non_resource_urls.iter().any(|have| have == url || path_matches(have, url)));
        }
        let resource = |item: &String| {
            let (resource, subresource) = item.split_once('/').unwrap_or((item, ""));
            self.resources.contains(item) || resource_matches(&self.resources, resource, subresource)
        };
        every(&self.api_groups, &wanted.api_groups)
            && wanted.resources.iter().all(resource)
            && (self.resource_names.is_empty()
                || (!wanted.resource_names.is_empty()
                    && wanted.resource_names.iter().all(|name| self.resource_names.contains(name))))
    }

    /// The rule as rules of one verb, one group, one resource, one name each.
    pub(crate) fn atoms(&self) -> Vec<Self> {
        let mut atoms = Vec::new();
        let names: Vec<Vec<String>> = match &self.resource_names[..] {
            [] => vec![Vec::new()],
            names => names.iter().map(|name| vec![name.clone()]).collect(),
        };
        for verb in &self.verbs {
            for url in &self.non_resource_urls {
                let (verbs, non_resource_urls) = (vec![verb.clone()], vec![url.clone()]);
                atoms.push(Self { verbs, non_resource_urls, ..Self::default() });
            }
            for group in &self.api_groups {
                for resource in &self.resources {
                    atoms.extend(names.iter().map(|names| Self {
                        verbs: vec![verb.clone()],
                        api_groups: vec![group.clone()],
                        resources: vec![resource.clone()],
                        resource_names: names.clone(),
                        non_resource_urls: Vec::new(),
                    }));
                }
            }
        }
        atoms
    }

    /// As upstream prints a rule that is missing.
    pub(super) fn describe(&self) -> String {
        let quoted = |list: &[String]| format!("{list:?}").replace(", ", " ");
        let mut parts = Vec::new();
        let fields = [
            ("APIGroups", &self.api_groups),
            ("Resources", &self.resources),
            ("NonResourceURLs", &self.non_resource_urls),
            ("ResourceNames", &self.resource_names),
            ("Verbs", &self.verbs),
        ];
        for (name, list) in fields {
            if !list.is_empty() {
                parts.push(format!("{name}:{}", quoted(list)));
            }
        }
        format!("{{{}}}", parts.join(", "))
    }
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|item| item == ALL || item == wanted)
}

/// `pods`, `pods/log`, `*/scale`, `*`; a subresource needs to be named.
fn resource_matches(list: &[String], resource: &str, subresource: &str) -> bool {
    list.iter().any(|item| {
        if item == ALL {
            return true;
        }
        match item.split_once('/') {
            None => subresource.is_empty() && item == resource,
            Some((ALL, sub)) => !subresource.is_empty() && sub == subresource,
            Some((name, sub)) => !subresource.is_empty() && name == resource && sub == subresource,
        }
    })
}

/// A path, or a prefix that ends with `*`.
fn path_matches(pattern: &str, path: &str) -> bool {
    match pattern.strip_suffix(ALL) {
        Some(prefix) => path.starts_with(prefix.trim_end_matches('*')),
        None => pattern == path,
    }
}
