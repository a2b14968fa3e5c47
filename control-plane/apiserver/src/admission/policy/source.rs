//! Policies and bindings as the watch cache shows them, compiled once for each version of a policy.

use std::{collections::BTreeMap, sync::Arc};

use arc_swap::ArcSwap;
use cel::policy::{Compiled, Returns, Scope, compile_variables};
use serde_json::Value;

use super::conditions::MatchConditions;
use crate::{
    admission::{GROUP, rules::Rules},
    registry::fields::*,
    storage::{Revision, cache::Cache, keys},
};

/// What both kinds of policy have.
pub(super) struct Common {
    pub name: String,
    pub rules: Rules,
    /// `failurePolicy: Ignore`.
    pub fails_open: bool,
    /// `apiVersion` and `kind`.
    pub param_kind: Option<(String, String)>,
    pub conditions: Option<MatchConditions>,
    pub variables: Vec<(cel::Name, Compiled)>,
    /// Of the policy's own expressions: with the variables.
    pub scope: Scope,
}

impl Common {
    pub fn parse(name: &str, policy: &Value) -> Self {
        let spec = at(policy, "/spec");
        let params = at(spec, "/paramKind");
        let fails_open = text(spec, "/failurePolicy") == "Ignore";
        let mut scope = Scope { params: !params.is_null(), authorizer: true, ..Scope::default() };
        let conditions = MatchConditions::parse(items(spec, "/matchConditions"), fails_open, scope.params);
        let variables = items(spec, "/variables").iter();
        let variables = variables.map(|variable| (text(variable, "/name"), text(variable, "/expression")));
        let variables = compile_variables(&mut scope, variables);
        Self {
            name: name.to_owned(),
            rules: Rules::of_policy(at(spec, "/matchConstraints")),
            fails_open,
            param_kind: (!params.is_null())
                .then(|| (text(params, "/apiVersion").to_owned(), text(params, "/kind").to_owned())),
            conditions,
            variables,
            scope,
        }
    }

    pub fn compile(&self, source: &str, returns: Returns) -> Compiled {
        Compiled::new(&self.scope.environment(), source, returns)
    }
}

/// A compiled policy.
pub(super) trait Policy: Send + Sync + Sized {
    fn parse(common: Common, policy: &Value) -> Self;
    fn common(&self) -> &Common;
}

/// A binding of a policy.
pub(super) struct Binding {
    pub name: String,
    /// `None` for all that the policy matches.
    pub rules: Option<Rules>,
    pub param_ref: Value,
    pub actions: Vec<String>,
}

impl Binding {
    fn parse(name: &str, binding: &Value) -> Self {
        let resources = at(binding, "/spec/matchResources");
        let actions = items(binding, "/spec/validationActions").iter().filter_map(Value::as_str);
        Self {
            name: name.to_owned(),
            rules: (!resources.is_null()).then(|| Rules::of_policy(resources)),
            param_ref: at(binding, "/spec/paramRef").clone(),
            actions: actions.map(str::to_owned).collect(),
        }
    }
}

/// A policy that is bound.
pub(super) struct Hook<P> {
    revision: Revision,
    pub policy: Arc<P>,
    pub bindings: Vec<Binding>,
}

struct Parsed<P> {
    newest: (Revision, Revision),
    hooks: Arc<[Hook<P>]>,
}

/// All policies of one kind that have a binding, by name.
pub(super) struct Source<P> {
    policies: String,
    bindings: String,
    parsed: ArcSwap<Parsed<P>>,
}

impl<P: Policy> Source<P> {
    pub fn new(policies: &str, bindings: &str) -> Self {
        let never = Revision(u64::MAX);
        Self {
            policies: keys::resource_prefix(GROUP, policies),
            bindings: keys::resource_prefix(GROUP, bindings),
            parsed: ArcSwap::from_pointee(Parsed { newest: (never, never), hooks: Arc::from([]) }),
        }
    }

    /// As the cache shows them now.
    pub fn hooks(&self, cache: &Cache) -> Arc<[Hook<P>]> {
        // Read before the lists: a write in between is seen as news by the next call.
        let newest = (cache.newest(&self.policies), cache.newest(&self.bindings));
        let parsed = self.parsed.load();
        if parsed.newest == newest {
            return Arc::clone(&parsed.hooks);
        }
        let mut bindings: BTreeMap<String, Vec<Binding>> = BTreeMap::new();
        for object in cache.list(&self.bindings).iter() {
            let value = object.value();
            let policy = text(&value, "/spec/policyName").to_owned();
            bindings.entry(policy).or_default().push(Binding::parse(&object.meta().name, &value));
        }
        let mut hooks = Vec::new();
        for object in cache.list(&self.policies).iter() {
            let name = &object.meta().name;
            let Some(bindings) = bindings.remove(name.as_str()) else { continue };
            let known = parsed.hooks.iter().find(|hook| {
                hook.revision == object.revision() && hook.policy.common().name == name.as_str()
            });
            let policy = known.map_or_else(
                || {
                    let value = object.value();
                    Arc::new(P::parse(Common::parse(name, &value), &value))
                },
                |hook| Arc::clone(&hook.policy),
            );
            hooks.push(Hook { revision: object.revision(), policy, bindings });
        }
        let hooks: Arc<[Hook<P>]> = hooks.into();
        self.parsed.store(Arc::new(Parsed { newest, hooks: Arc::clone(&hooks) }));
        hooks
    }
}
