//! RBAC: roles, bindings and the question whether a rule covers a request.
//!
//! [`Tables`] is the pure evaluator: it holds parsed roles and an index of bindings by subject. [`Rbac`] keeps one
//! current from the cache, object by object, at the moment of a question. An aggregated ClusterRole has its own rules and
//! those of every ClusterRole that its selectors match.

mod rule;
mod tables;

use std::sync::{Arc, Mutex, MutexGuard};

use serde_json::Value;

pub use self::{rule::Rule, tables::Tables};
use super::{Attributes, Decision, Identity};
use crate::storage::{
    cache::{Cache, Follower, Step},
    keys,
};

pub const GROUP: &str = "rbac.authorization.k8s.io";

/// The four kinds, in the order in which they are followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    ClusterRole,
    Role,
    ClusterRoleBinding,
    RoleBinding,
}

impl Kind {
    pub const ALL: [Self; 4] = [Self::ClusterRole, Self::Role, Self::ClusterRoleBinding, Self::RoleBinding];

    pub fn plural(self) -> &'static str {
        match self {
            Self::ClusterRole => "clusterroles",
            Self::Role => "roles",
            Self::ClusterRoleBinding => "clusterrolebindings",
            Self::RoleBinding => "rolebindings",
        }
    }
}

/// RBAC on the roles and bindings of a cache, as they are when it is asked.
pub struct Rbac {
    state: Mutex<State>,
}

struct State {
    followers: Vec<(Kind, Follower)>,
    tables: Tables,
}

impl Rbac {
    pub fn new(cache: &Arc<Cache>) -> Self {
        let follower = |kind: Kind| Follower::new(cache.clone(), keys::resource_prefix(GROUP, kind.plural()));
        let followers = Kind::ALL.map(|kind| (kind, follower(kind))).into();
        Self { state: Mutex::new(State { followers, tables: Tables::default() }) }
    }

    pub fn authorize(&self, identity: &Identity, attributes: &Attributes) -> Decision {
        self.current().tables.authorize(identity, attributes)
    }

    /// Every rule that holds for an identity in a namespace; empty is no namespace.
    pub fn rules_for(&self, identity: &Identity, namespace: &str) -> Vec<Rule> {
        self.current().tables.rules_for(identity, namespace)
    }

    /// Whether an identity holds all that the rules of a role would grant.
    ///
    /// # Errors
    /// The text of upstream's refusal, with the rules that are missing.
    pub fn covers(&self, identity: &Identity, namespace: &str, rules: &[Rule]) -> Result<(), String> {
        self.current().tables.covers(identity, namespace, rules)
    }

    /// The rules behind a `roleRef`; `None` when the role is not there.
    pub fn rules_of(&self, namespace: &str, role_ref: &Value) -> Option<Vec<Rule>> {
        let role_ref = tables::RoleRef::parse(role_ref);
        self.current().tables.rules_of(namespace, &role_ref)
    }

    fn current(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().expect("no code panics while it holds this lock");
        let State { followers, tables } = &mut *state;
        for (kind, follower) in followers {
            follower.catch_up(|step| match step {
                Step::Reset(snapshot) => {
                    tables.clear(*kind);
                    for object in snapshot.iter() {
                        tables.set(*kind, object.key(), &object.value());
                    }
                }
                Step::Event(event) if event.is_deletion() => tables.remove(*kind, event.object.key()),
                Step::Event(event) => tables.set(*kind, event.object.key(), &event.object.value()),
            });
        }
        state
    }
}

#[cfg(test)]
mod tests;
