//! What webhooks and policies are about: rules (operations, groups, versions, resources, scope, names), selectors of
//! namespaces and of objects, and `matchPolicy`. Parsed once for each version of a configuration.
//!
//! With `matchPolicy: Equivalent` a rule for one version of a resource also matches requests for its other versions, and
//! what is asked sees the object in the version that the rule names.

use api::{meta, selector::LabelSelector, status::Status};
use serde_json::Value;

use super::{Lookup, Operation, Request};
use crate::{handlers::Target, registry::fields::*};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    All,
    Cluster,
    Namespaced,
}

/// RuleWithOperations, and NamedRuleWithOperations where `names` says which.
#[derive(Clone, Debug)]
struct Rule {
    operations: Vec<String>,
    groups: Vec<String>,
    versions: Vec<String>,
    /// With the subresource, where there is one after a slash.
    resources: Vec<(String, String)>,
    scope: Scope,
    /// Empty for all.
    names: Vec<String>,
}

/// The resource in the version that a rule names.
#[derive(Clone)]
pub struct Matched {
    pub target: Target,
}

/// All that decides whether a webhook, a policy or a binding is about a request.
#[derive(Clone, Debug)]
pub struct Rules {
    include: Vec<Rule>,
    exclude: Vec<Rule>,
    /// Without a rule in `include` everything matches, for policies' bindings; nothing, for webhooks.
    empty_is_all: bool,
    is_equivalent: bool,
    /// An error where it cannot be read: then every request that the rules match is refused.
    namespaces: Result<LabelSelector, String>,
    objects: Result<LabelSelector, String>,
}

fn strings(value: &Value, path: &str) -> Vec<String> {
    items(value, path).iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn selector(value: &Value) -> Result<LabelSelector, String> {
    // An absent selector takes everything here.
    if value.is_null() { Ok(LabelSelector::everything()) } else { LabelSelector::from_value(value) }
}

impl Rule {
    fn parse(value: &Value) -> Self {
        let split = |resource: String| match resource.split_once('/') {
            Some((resource, subresource)) => (resource.to_owned(), subresource.to_owned()),
            None => (resource, String::new()),
        };
        Self {
            operations: strings(value, "/operations"),
            groups: strings(value, "/apiGroups"),
            versions: strings(value, "/apiVersions"),
            resources: strings(value, "/resources").into_iter().map(split).collect(),
            scope: match text(value, "/scope") {
                "Cluster" => Scope::Cluster,
                "Namespaced" => Scope::Namespaced,
                _ => Scope::All,
            },
            names: strings(value, "/resourceNames"),
        }
    }

    /// Whether the rule is about this request, were it for `target`.
    fn matches(&self, request: &Request<'_>, target: &Target) -> bool {
        let any = |list: &[String], wanted: &str| list.iter().any(|item| item == "*" || item == wanted);
        let resource = &target.resource;
        let is_namespace = resource.plural == "namespaces" && resource.group.is_empty();
        let is_namespaced = !is_namespace && !request.namespace.is_empty();
        let in_scope = match self.scope {
            Scope::All => true,
            Scope::Cluster => !is_namespaced,
            Scope::Namespaced => is_namespaced,
        };
        in_scope
            && any(&self.operations, request.operation.word())
            && any(&self.groups, &resource.group)
            && any(&self.versions, &resource.version)
            && self.resources.iter().any(|(plural, subresource)| {
                (plural == "*" || *plural == resource.plural)
                    && (subresource == "*" || subresource == request.subresource)
            })
            && (self.names.is_empty() || self.names.iter().any(|name| name == request.name))
    }
}

impl Rules {
    /// Those of a webhook: an object with `rules`, `matchPolicy`, `namespaceSelector` and `objectSelector`.
    pub fn of_webhook(webhook: &Value) -> Self {
        Self::parse(webhook, "/rules", false)
    }

    /// Those of a policy's `matchConstraints` or a binding's `matchResources`: with `resourceRules`, which may be empty,
    /// and `excludeResourceRules`.
    pub fn of_policy(match_resources: &Value) -> Self {
        Self::parse(match_resources, "/resourceRules", true)
    }

    fn parse(value: &Value, rules: &str, empty_is_all: bool) -> Self {
        let parse = |path: &str| items(value, path).iter().map(Rule::parse).collect();
        Self {
            include: parse(rules),
            exclude: parse("/excludeResourceRules"),
            empty_is_all,
            is_equivalent: text(value, "/matchPolicy") == "Equivalent",
            namespaces: selector(at(value, "/namespaceSelector")),
            objects: selector(at(value, "/objectSelector")),
        }
    }

    /// Whether these rules are about a request, and in which version of the resource. The object is null for a deletion.
    ///
    /// # Errors
    /// 404 where the namespace is gone whose labels are asked for, 500 for a selector that cannot be read; both only
    /// where the rules match.
    pub fn matches(
        &self,
        request: &Request<'_>,
        object: &Value,
        lookup: &dyn Lookup,
    ) -> Result<Option<Matched>, Status> {
        // The rules are cheapest to ask; an error of the selectors counts only where they match, so the order is free.
        let Some(matched) = self.find(request) else { return Ok(None) };
        if self.is_selected(request, object)? && self.is_in_namespace(request, object, lookup)? {
            return Ok(Some(matched));
        }
        Ok(None)
    }

    fn find(&self, request: &Request<'_>) -> Option<Matched> {
        if !self.exclude.is_empty() && self.find_in(&self.exclude, request).is_some() {
            return None;
        }
        if self.include.is_empty() && self.empty_is_all {
            return Some(Matched { target: request.target.clone() });
        }
        self.find_in(&self.include, request)
    }

    fn find_in(&self, rules: &[Rule], request: &Request<'_>) -> Option<Matched> {
        if rules.iter().any(|rule| rule.matches(request, request.target)) {
            return Some(Matched { target: request.target.clone() });
        }
        if !self.is_equivalent {
            return None;
        }
        let equivalents = request.kinds.equivalents(request.target);
        let matching =
            rules.iter().find_map(|rule| equivalents.iter().find(|target| rule.matches(request, target)));
        matching.map(|target| Matched { target: target.clone() })
    }

    fn is_selected(&self, request: &Request<'_>, object: &Value) -> Result<bool, Status> {
        let selector = self.objects.as_ref().map_err(Status::internal)?;
        if selector.is_empty() {
            return Ok(true);
        }
        let has = |object: &Value| object.is_object() && selector.matches(meta::labels(object));
        Ok(has(object) || request.old.is_some_and(has))
    }

    fn is_in_namespace(
        &self,
        request: &Request<'_>,
        object: &Value,
        lookup: &dyn Lookup,
    ) -> Result<bool, Status> {
        let about_namespaces = request.target.resource.plural == "namespaces";
        if request.namespace.is_empty() && !about_namespaces {
            return Ok(true);
        }
        let selector = self.namespaces.as_ref().map_err(Status::internal)?;
        if selector.is_empty() {
            return Ok(true);
        }
        let writes = matches!(request.operation, Operation::Create | Operation::Update);
        if about_namespaces && request.subresource.is_empty() && writes {
            return Ok(selector.matches(meta::labels(object)));
        }
        let name = request.review_namespace();
        let labels =
            lookup.namespace_labels(name).ok_or_else(|| Status::not_found("", "namespaces", name))?;
        Ok(selector.matches(&labels))
    }
}
