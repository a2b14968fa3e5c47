//! The policy file: the first rule that matches a request says how much of it is kept.

use serde_json::Value;

use super::event::{Level, Stage};
use crate::{registry::fields::*, request::RequestInfo, security::Identity};

/// What rules ask of a request. Nobody is known where authentication failed.
pub struct Subject<'a> {
    pub user: Option<&'a Identity>,
    pub info: &'a RequestInfo,
}

#[derive(Debug)]
struct Resources {
    group: String,
    resources: Vec<String>,
    names: Vec<String>,
}

#[derive(Debug)]
struct Rule {
    level: Level,
    users: Vec<String>,
    groups: Vec<String>,
    verbs: Vec<String>,
    resources: Vec<Resources>,
    namespaces: Vec<String>,
    paths: Vec<String>,
    omit_stages: Vec<Stage>,
    omit_managed_fields: Option<bool>,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Policy {
    rules: Vec<Rule>,
    omit_stages: Vec<Stage>,
    omit_managed_fields: bool,
}

/// How much is kept of one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Decision {
    pub(super) level: Level,
    pub(super) omit_stages: Vec<Stage>,
    pub(super) omit_managed_fields: bool,
}

fn strings(value: &Value, path: &str) -> Vec<String> {
    items(value, path).iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn stages(value: &Value, path: &str) -> Result<Vec<Stage>, String> {
    let named = strings(value, path).into_iter();
    named.map(|name| Stage::parse(&name).ok_or_else(|| format!("{name:?} is no stage"))).collect()
}

impl Rule {
    fn parse(value: &Value) -> Result<Self, String> {
        let level = text(value, "/level");
        let resources = items(value, "/resources").iter().map(|entry| Resources {
            group: text(entry, "/group").to_owned(),
            resources: strings(entry, "/resources"),
            names: strings(entry, "/resourceNames"),
        });
        let rule = Self {
            level: Level::parse(level).ok_or_else(|| format!("level: {level:?} is no level"))?,
            users: strings(value, "/users"),
            groups: strings(value, "/userGroups"),
            verbs: strings(value, "/verbs"),
            resources: resources.collect(),
            namespaces: strings(value, "/namespaces"),
            paths: strings(value, "/nonResourceURLs"),
            omit_stages: stages(value, "/omitStages")?,
            omit_managed_fields: at(value, "/omitManagedFields").as_bool(),
        };
        let names_objects = !rule.resources.is_empty() || !rule.namespaces.is_empty();
        if names_objects && !rule.paths.is_empty() {
            return Err(
                "nonResourceURLs: rules cannot apply to both regular resources and non-resource URLs"
                    .to_owned(),
            );
        }
        Ok(rule)
    }

    fn matches(&self, subject: &Subject<'_>) -> bool {
        let among = |list: &[String], wanted: &str| list.is_empty() || list.iter().any(|item| item == wanted);
        let info = subject.info;
        let by_user = self.users.is_empty() && self.groups.is_empty()
            || subject.user.is_some_and(|user| {
                among(&self.users, &user.name)
                    && (self.groups.is_empty() || self.groups.iter().any(|group| user.is_in(group)))
            });
        if !by_user || !among(&self.verbs, &info.verb) {
            return false;
        }
        if !self.namespaces.is_empty() || !self.resources.is_empty() {
            return info.is_resource && among(&self.namespaces, &info.namespace) && self.names_resource(info);
        }
        if self.paths.is_empty() {
            return true;
        }
        let path = |spec: &String| {
            spec == "*"
                || *spec == info.path
                || spec.strip_suffix('*').is_some_and(|begin| info.path.starts_with(begin))
        };
        !info.is_resource && self.paths.iter().any(path)
    }

    fn names_resource(&self, info: &RequestInfo) -> bool {
        let combined = info.resource_path();
        let matches = |entry: &Resources| {
            if entry.group != "*" && entry.group != info.group {
                return false;
            }
            if entry.resources.is_empty() {
                return true;
            }
            let named = entry.names.is_empty() || entry.names.contains(&info.name);
            named
                && entry.resources.iter().any(|resource| {
                    *resource == combined
                        || resource == "*"
                        || resource
                            .strip_prefix("*/")
                            .is_some_and(|sub| !sub.is_empty() && sub == info.subresource)
                        || resource.strip_suffix("/*").is_some_and(|plural| plural == info.resource)
                })
        };
        self.resources.is_empty() || self.resources.iter().any(matches)
    }
}

impl Policy {
    /// Reads `audit.k8s.io/v1` Policy.
    ///
    /// # Errors
    /// A text, where it is none or a rule makes no sense.
    pub fn parse(text: &str) -> Result<Self, String> {
        let value: Value = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
        let field = |pointer: &str| self::text(&value, pointer);
        if (field("/apiVersion"), field("/kind")) != ("audit.k8s.io/v1", "Policy") {
            return Err(format!(
                "it must be audit.k8s.io/v1 Policy, not {} {}",
                field("/apiVersion"),
                field("/kind")
            ));
        }
        let rules = items(&value, "/rules");
        if rules.is_empty() {
            return Err("it has no rules".to_owned());
        }
        let rules = rules.iter().enumerate();
        Ok(Self {
            rules: rules
                .map(|(index, rule)| Rule::parse(rule).map_err(|why| format!("rules[{index}]: {why}")))
                .collect::<Result<_, _>>()?,
            omit_stages: stages(&value, "/omitStages")?,
            omit_managed_fields: flag(&value, "/omitManagedFields"),
        })
    }

    pub(super) fn decide(&self, subject: &Subject<'_>) -> Decision {
        let rule = self.rules.iter().find(|rule| rule.matches(subject));
        let mut omit_stages = self.omit_stages.clone();
        omit_stages.extend(rule.iter().flat_map(|rule| &rule.omit_stages));
        Decision {
            level: rule.map_or(Level::None, |rule| rule.level),
            omit_stages,
            omit_managed_fields: rule
                .and_then(|rule| rule.omit_managed_fields)
                .unwrap_or(self.omit_managed_fields),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: &str = "
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
omitManagedFields: true
rules:
- level: None
  users: ['system:kube-proxy']
  verbs: [watch]
- level: None
  nonResourceURLs: ['/healthz*', /version]
- level: RequestResponse
  resources:
  - {group: '', resources: [pods]}
  - {group: apps, resources: ['deployments/*'], resourceNames: [web]}
- level: Request
  userGroups: [ops]
  namespaces: [kube-system]
  omitManagedFields: false
  omitStages: [ResponseStarted]
- level: Metadata
  resources:
  - {group: '*', resources: ['*/status']}
";

    fn decide(user: &str, groups: &[&str], path: &str, verb: &str) -> Decision {
        let user = Identity {
            name: user.to_owned(),
            groups: groups.iter().map(|group| (*group).to_owned()).collect(),
            ..Identity::default()
        };
        let mut info = RequestInfo::parse(&http::Method::GET, path, &crate::query::Query::default(), false);
        info.verb = verb.to_owned();
        Policy::parse(POLICY).unwrap().decide(&Subject { user: Some(&user), info: &info })
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let level = |user, groups: &[&str], path, verb| decide(user, groups, path, verb).level;
        let pods = "/api/v1/namespaces/a/pods/x";
        assert_eq!(level("system:kube-proxy", &[], pods, "watch"), Level::None);
        assert_eq!(level("system:kube-proxy", &[], pods, "get"), Level::RequestResponse);
        assert_eq!(level("a", &[], "/healthz/etcd", "get"), Level::None);
        assert_eq!(level("a", &[], "/api/v1/namespaces/a/pods/x/log", "get"), Level::None);
        assert_eq!(
            level("a", &[], "/apis/apps/v1/namespaces/a/deployments/web/scale", "get"),
            Level::RequestResponse
        );
        assert_eq!(level("a", &[], "/apis/apps/v1/namespaces/a/deployments/api/scale", "get"), Level::None);
        assert_eq!(
            level("a", &[], "/apis/apps/v1/namespaces/a/deployments/api/status", "get"),
            Level::Metadata
        );
        let ops = decide("a", &["ops"], "/api/v1/namespaces/kube-system/secrets/x", "get");
        assert_eq!((ops.level, ops.omit_managed_fields), (Level::Request, false));
        assert_eq!(ops.omit_stages, [Stage::RequestReceived, Stage::ResponseStarted]);
        assert_eq!(level("a", &[], "/api/v1/namespaces/kube-system/secrets/x", "get"), Level::None);
    }

    #[test]
    fn a_policy_that_makes_no_sense_names_the_rule() {
        let error = |rules: &str| {
            Policy::parse(&format!("{{apiVersion: audit.k8s.io/v1, kind: Policy, rules: {rules}}}"))
                .unwrap_err()
        };
        assert_eq!(error("[{level: Metadata}, {level: All}]"), "rules[1]: level: \"All\" is no level");
        assert_eq!(error("[{level: None, omitStages: [x]}]"), "rules[0]: \"x\" is no stage");
        assert_eq!(error("[]"), "it has no rules");
        assert!(Policy::parse("kind: Policy").is_err());
    }
}
