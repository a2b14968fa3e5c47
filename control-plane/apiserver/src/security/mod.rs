//! Who asks, and whether they may: certificates, tokens, RBAC, the Node authorizer and the roles that ship.
//!
//! A request's identity comes from [`authentication`] (a client certificate, a ServiceAccount token, or nobody), may be
//! exchanged by [`impersonation`], and is judged by [`authorizer::Authorizer`]. Every decision reads the watch cache as it
//! is at that moment, so a binding counts for the first request after the write that made it.

pub mod authentication;
pub mod authorizer;
pub mod bootstrap_roles;
pub mod credentials;
pub mod impersonation;
pub mod node;
pub mod pki;
pub mod rbac;
pub mod tls;
pub mod tokens;

use std::collections::BTreeMap;

pub use self::{
    authentication::{Authenticator, Peer, Unauthorized},
    authorizer::Authorizer,
    bootstrap_roles::bootstrap_roles,
};

/// Members of this group may do everything.
pub const GROUP_MASTERS: &str = "system:masters";
pub const GROUP_NODES: &str = "system:nodes";
pub const GROUP_AUTHENTICATED: &str = "system:authenticated";
pub const GROUP_UNAUTHENTICATED: &str = "system:unauthenticated";
pub const USER_ANONYMOUS: &str = "system:anonymous";
/// Before the node's name, the user name of its agent.
pub const USER_NODE_PREFIX: &str = "system:node:";
/// Before `namespace:name`, the user name of a ServiceAccount.
pub const USER_SERVICE_ACCOUNT_PREFIX: &str = "system:serviceaccount:";
pub const GROUP_SERVICE_ACCOUNTS: &str = "system:serviceaccounts";

/// Somebody who was authenticated.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    pub name: String,
    /// Empty where the credential has none.
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

impl Identity {
    pub fn anonymous() -> Self {
        Self {
            name: USER_ANONYMOUS.to_owned(),
            groups: vec![GROUP_UNAUTHENTICATED.to_owned()],
            ..Self::default()
        }
    }

    /// A user of the server itself, such as a controller that runs in its process.
    pub fn internal(name: &str, groups: &[&str]) -> Self {
        let groups = groups.iter().copied().chain([GROUP_AUTHENTICATED]).map(str::to_owned).collect();
        Self { name: name.to_owned(), groups, ..Self::default() }
    }

    /// The identity of a ServiceAccount.
    pub fn service_account(namespace: &str, name: &str, uid: &str) -> Self {
        Self {
            name: format!("{USER_SERVICE_ACCOUNT_PREFIX}{namespace}:{name}"),
            uid: uid.to_owned(),
            groups: vec![
                GROUP_SERVICE_ACCOUNTS.to_owned(),
                format!("{GROUP_SERVICE_ACCOUNTS}:{namespace}"),
                GROUP_AUTHENTICATED.to_owned(),
            ],
            extra: BTreeMap::new(),
        }
    }

    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|member| member == group)
    }

    /// The node whose agent this is.
    pub fn node(&self) -> Option<&str> {
        if self.is_in(GROUP_NODES) { self.name.strip_prefix(USER_NODE_PREFIX) } else { None }
    }
}

/// What a request wants, in the words of SubjectAccessReview.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`, ...; for paths the HTTP method
    /// in lower case.
    pub verb: String,
    pub group: String,
    pub version: String,
    pub resource: String,
    pub subresource: String,
    /// Empty for cluster-scoped requests and for all namespaces.
    pub namespace: String,
    /// Empty where the request names no object; for list and watch the name of a `metadata.name=` selector.
    pub name: String,
    /// The path of a request that is for no resource.
    pub path: String,
    pub is_resource: bool,
    /// Of list, watch and deletecollection, in the form of the query; empty for none.
    pub field_selector: String,
    /// As `field_selector`.
    pub label_selector: String,
}

/// The answer of an authorizer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    pub allowed: bool,
    /// Why; empty where no rule has an opinion.
    pub reason: String,
}

impl Decision {
    pub fn allow(reason: impl Into<String>) -> Self {
        Self { allowed: true, reason: reason.into() }
    }

    pub fn no_opinion(reason: impl Into<String>) -> Self {
        Self { allowed: false, reason: reason.into() }
    }
}

/// Standard base64, as Secrets have it.
fn decode_base64(text: &str) -> Option<Vec<u8>> {
    base64::Engine::decode(&base64::engine::general_purpose::STANDARD, text).ok()
}

/// Takes as long for texts that differ early as for those that differ late.
fn equal_in_constant_time(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |different, (a, b)| different | (a ^ b)) == 0
}
