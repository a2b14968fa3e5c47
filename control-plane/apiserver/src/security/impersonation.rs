//! Acting as somebody else: the `Impersonate-*` headers, each judged by the authorizer.
//!
//! Constrained modes come first (KEP 5284): they need a right to impersonate and one to do what the request does while
//! impersonating (`impersonate-on:MODE:VERB`). The old way, where the verb `impersonate` opens everything, comes last.

use http::HeaderMap;

use super::{
    Attributes, Authorizer, GROUP_AUTHENTICATED, GROUP_MASTERS, GROUP_NODES, GROUP_SERVICE_ACCOUNTS,
    GROUP_UNAUTHENTICATED, Identity, USER_ANONYMOUS, USER_NODE_PREFIX, USER_SERVICE_ACCOUNT_PREFIX,
};

const USER: &str = "impersonate-user";
const UID: &str = "impersonate-uid";
const GROUP: &str = "impersonate-group";
const EXTRA_PREFIX: &str = "impersonate-extra-";
const AUTHENTICATION_GROUP: &str = "authentication.k8s.io";
/// Of a ServiceAccount's token, the node that it is used on.
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImpersonationError {
    /// Headers that make no sense together: 400.
    #[error("{0}")]
    BadRequest(String),
    /// A right is missing: 403 on these attributes.
    #[error("{reason}")]
    Forbidden { attributes: Box<Attributes>, reason: String },
}

/// The identity that the headers ask for; `None` when they ask for none. `request` is what is to be done under it.
///
/// # Errors
/// When the headers are malformed, or `identity` may not impersonate in any of the modes; the error is that of the first.
pub fn impersonate(
    identity: &Identity,
    headers: &HeaderMap,
    request: &Attributes,
    authorizer: &Authorizer,
) -> Result<Option<Identity>, ImpersonationError> {
    let Some(wanted) = wanted(headers)? else { return Ok(None) };
    let mut first = None;
    for mode in Mode::ALL.into_iter().filter(|mode| mode.applies(&wanted, identity)) {
        match mode.check(identity, &wanted, request, authorizer) {
            Ok(()) => return Ok(Some(mode.complete(wanted))),
            Err(error) => drop(first.get_or_insert(error)),
        }
    }
    Err(first.expect("the last mode applies to everybody"))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// A ServiceAccount acts as the node that it runs on.
    AssociatedNode,
    ArbitraryNode,
    ServiceAccount,
    /// Anybody who is neither a node nor a ServiceAccount.
    UserInfo,
    Legacy,
}

impl Mode {
    const ALL: [Self; 5] =
        [Self::AssociatedNode, Self::ArbitraryNode, Self::ServiceAccount, Self::UserInfo, Self::Legacy];

    fn name(self) -> &'static str {
        match self {
            Self::AssociatedNode => "associated-node",
            Self::ArbitraryNode => "arbitrary-node",
            Self::ServiceAccount => "serviceaccount",
            Self::UserInfo => "user-info",
            Self::Legacy => "",
        }
    }

    fn verb(self) -> String {
        if self == Self::Legacy { "impersonate".to_owned() } else { format!("impersonate:{}", self.name()) }
    }

    fn applies(self, wanted: &Identity, requestor: &Identity) -> bool {
        let only_name = wanted.uid.is_empty() && wanted.groups.is_empty() && wanted.extra.is_empty();
        let (node, account) = (node_of(wanted), account_of(wanted));
        match self {
            Self::AssociatedNode => {
                let own = requestor.extra.get(NODE_NAME).and_then(|names| names.first());
                only_name
                    && account_of(requestor).is_some()
                    && node.is_some_and(|node| own.is_some_and(|own| own == node))
            }
            Self::ArbitraryNode => only_name && node.is_some(),
            Self::ServiceAccount => only_name && account.is_some(),
            Self::UserInfo => node.is_none() && account.is_none(),
            Self::Legacy => true,
        }
    }

    fn check(
        self,
        requestor: &Identity,
        wanted: &Identity,
        request: &Attributes,
        authorizer: &Authorizer,
    ) -> Result<(), ImpersonationError> {
        let mut questions = Vec::new();
        if self != Self::Legacy {
            let verb = format!("impersonate-on:{}:{}", self.name(), request.verb);
            questions.push(Attributes { verb, ..request.clone() });
        }
        questions.extend(self.questions(wanted));
        for attributes in questions {
            let decision = authorizer.authorize(requestor, &attributes);
            if !decision.allowed {
                return Err(forbidden(attributes, decision.reason));
            }
        }
        if self != Self::Legacy { self.check_sense(wanted) } else { Ok(()) }
    }

    /// What no constrained mode lets through, whatever the rights.
    fn check_sense(self, wanted: &Identity) -> Result<(), ImpersonationError> {
        let refuse = |resource: &str, name: &str, why: &str| {
            Err(forbidden(self.question(resource, "", "", name), why.to_owned()))
        };
        if wanted.is_in("") {
            return refuse("groups", "", "impersonating the empty string group is not allowed");
        }
        if wanted.is_in(GROUP_MASTERS) {
            return refuse("groups", GROUP_MASTERS, "impersonating the system:masters group is not allowed");
        }
        for (key, values) in &wanted.extra {
            if key.is_empty() {
                return refuse(
                    "userextras",
                    "",
                    "impersonating the empty string key in extra is not allowed",
                );
            }
            if values.iter().any(String::is_empty) {
                return refuse(
                    "userextras",
                    "",
                    "impersonating the empty string value in extra is not allowed",
                );
            }
        }
        Ok(())
    }

    fn question(self, resource: &str, subresource: &str, namespace: &str, name: &str) -> Attributes {
        let is_old_kind = matches!(resource, "users" | "groups" | "serviceaccounts");
        let group = if self == Self::Legacy && is_old_kind { "" } else { AUTHENTICATION_GROUP };
        Attributes {
            verb: self.verb(),
            group: group.to_owned(),
            version: "v1".to_owned(),
            resource: resource.to_owned(),
            subresource: subresource.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            is_resource: true,
            ..Attributes::default()
        }
    }

    /// The rights that an impersonation needs.
    fn questions(self, wanted: &Identity) -> Vec<Attributes> {
        let node = node_of(wanted).filter(|_| self != Self::Legacy);
        let mut questions = vec![match (node, account_of(wanted)) {
            (Some(_), _) if self == Self::AssociatedNode => self.question("nodes", "", "", "*"),
            (Some(node), _) => self.question("nodes", "", "", node),
            (None, Some((namespace, name))) => self.question("serviceaccounts", "", namespace, name),
            (None, None) => self.question("users", "", "", &wanted.name),
        }];
        if !wanted.uid.is_empty() {
            questions.push(self.question("uids", "", "", &wanted.uid));
        }
        questions.extend(wanted.groups.iter().map(|group| self.question("groups", "", "", group)));
        for (key, values) in &wanted.extra {
            questions.extend(values.iter().map(|value| self.question("userextras", key, "", value)));
        }
        questions
    }

    /// Adds the groups that follow from the name.
    fn complete(self, mut wanted: Identity) -> Identity {
        if self != Self::Legacy && node_of(&wanted).is_some() {
            wanted.groups = vec![GROUP_NODES.to_owned()];
        }
        let account = account_of(&wanted).map(|(namespace, _)| namespace.to_owned());
        if let Some(namespace) = account
            && wanted.groups.is_empty()
        {
            wanted.groups =
                vec![GROUP_SERVICE_ACCOUNTS.to_owned(), format!("{GROUP_SERVICE_ACCOUNTS}:{namespace}")];
        }
        let own = if wanted.name == USER_ANONYMOUS { GROUP_UNAUTHENTICATED } else { GROUP_AUTHENTICATED };
        if !wanted.is_in(own) && !wanted.is_in(GROUP_UNAUTHENTICATED) {
            wanted.groups.push(own.to_owned());
        }
        wanted
    }
}

fn forbidden(attributes: Attributes, reason: String) -> ImpersonationError {
    ImpersonationError::Forbidden { attributes: Box::new(attributes), reason }
}

fn node_of(identity: &Identity) -> Option<&str> {
    identity.name.strip_prefix(USER_NODE_PREFIX).filter(|node| !node.is_empty())
}

/// Namespace and name of a ServiceAccount.
fn account_of(identity: &Identity) -> Option<(&str, &str)> {
    let (namespace, name) = identity.name.strip_prefix(USER_SERVICE_ACCOUNT_PREFIX)?.split_once(':')?;
    (!namespace.is_empty() && !name.is_empty() && !name.contains(':')).then_some((namespace, name))
}

/// What the headers say, nothing added.
fn wanted(headers: &HeaderMap) -> Result<Option<Identity>, ImpersonationError> {
    let text = |value: &http::HeaderValue| value.to_str().unwrap_or_default().to_owned();
    let mut wanted = Identity::default();
    let mut any = false;
    for (name, value) in headers {
        let name = name.as_str();
        if name == USER {
            wanted.name = text(value);
        } else if name == UID {
            wanted.uid = text(value);
        } else if name == GROUP {
            wanted.groups.push(text(value));
        } else if let Some(key) = name.strip_prefix(EXTRA_PREFIX) {
            // A key that is not encoded well is taken as it is.
            let key = percent_decoded(key).unwrap_or_else(|| key.to_owned());
            wanted.extra.entry(key).or_default().push(text(value));
        } else {
            continue;
        }
        any = true;
    }
    if any && wanted.name.is_empty() {
        let why = "requested impersonation of groups, uid or extra without impersonating a user name";
        return Err(ImpersonationError::BadRequest(why.to_owned()));
    }
    Ok(any.then_some(wanted))
}

/// RFC 3986, section 2.1; header names are in lower case.
fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        rest = tail;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let digits = std::str::from_utf8(rest.get(..2)?).ok()?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = &rest[2..];
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    fn asked(mode: Mode, wanted: &Identity) -> Vec<String> {
        mode.questions(wanted)
            .into_iter()
            .map(|a| {
                format!("{} {}/{}/{} {} {}", a.verb, a.group, a.resource, a.subresource, a.namespace, a.name)
            })
            .collect()
    }

    #[test]
    fn without_headers_nobody_is_impersonated() {
        assert_eq!(wanted(&headers(&[("accept", "*/*")])), Ok(None));
    }

    #[test]
    fn groups_without_a_user_are_a_bad_request() {
        assert!(matches!(wanted(&headers(&[(GROUP, "admins")])), Err(ImpersonationError::BadRequest(_))));
    }

    #[test]
    fn each_part_is_asked_for() {
        let found = wanted(&headers(&[
            (USER, "jane"),
            (UID, "7"),
            (GROUP, "a"),
            (GROUP, "b"),
            ("impersonate-extra-acme.com%2fproject", "x"),
        ]));
        let found = found.unwrap().unwrap();
        assert_eq!(
            asked(Mode::Legacy, &found),
            [
                "impersonate /users/  jane",
                "impersonate authentication.k8s.io/uids/  7",
                "impersonate /groups/  a",
                "impersonate /groups/  b",
                "impersonate authentication.k8s.io/userextras/acme.com/project  x",
            ]
        );
        assert_eq!(
            asked(Mode::UserInfo, &found)[0],
            "impersonate:user-info authentication.k8s.io/users/  jane"
        );
        assert_eq!(Mode::Legacy.complete(found).groups, ["a", "b", GROUP_AUTHENTICATED]);
    }

    #[test]
    fn a_service_account_is_asked_for_in_its_namespace_and_gets_its_groups() {
        let found = wanted(&headers(&[(USER, "system:serviceaccount:ns:robot")])).unwrap().unwrap();
        assert_eq!(asked(Mode::Legacy, &found), ["impersonate /serviceaccounts/ ns robot"]);
        let groups = ["system:serviceaccounts", "system:serviceaccounts:ns", GROUP_AUTHENTICATED];
        assert_eq!(Mode::Legacy.complete(found).groups, groups);
    }

    #[test]
    fn modes_apply_to_whom_they_are_for() {
        let named = |name: &str| Identity { name: name.to_owned(), ..Identity::default() };
        let modes = |wanted: &Identity, requestor: &Identity| -> Vec<Mode> {
            Mode::ALL.into_iter().filter(|mode| mode.applies(wanted, requestor)).collect()
        };
        let alice = named("alice");
        assert_eq!(modes(&named("bob"), &alice), [Mode::UserInfo, Mode::Legacy]);
        assert_eq!(modes(&named("system:node:n1"), &alice), [Mode::ArbitraryNode, Mode::Legacy]);
        let account = named("system:serviceaccount:ns:agent");
        assert_eq!(modes(&account, &alice), [Mode::ServiceAccount, Mode::Legacy]);
        let mut agent = account.clone();
        agent.extra.insert(NODE_NAME.to_owned(), vec!["n1".to_owned()]);
        assert_eq!(
            modes(&named("system:node:n1"), &agent),
            [Mode::AssociatedNode, Mode::ArbitraryNode, Mode::Legacy]
        );
        let mut with_group = named("system:node:n1");
        with_group.groups.push("x".to_owned());
        assert_eq!(modes(&with_group, &agent), [Mode::Legacy]);
        assert_eq!(
            asked(Mode::AssociatedNode, &named("system:node:n1")),
            ["impersonate:associated-node authentication.k8s.io/nodes/  *"]
        );
        let node = Mode::ArbitraryNode.complete(named("system:node:n1"));
        assert_eq!(node.groups, [GROUP_NODES, GROUP_AUTHENTICATED]);
    }

    #[test]
    fn masters_are_impersonated_the_old_way_only() {
        let root = Identity {
            name: "root".to_owned(),
            groups: vec![GROUP_MASTERS.to_owned()],
            ..Identity::default()
        };
        let error = Mode::UserInfo.check_sense(&root).unwrap_err();
        assert_eq!(error.to_string(), "impersonating the system:masters group is not allowed");
    }
}
