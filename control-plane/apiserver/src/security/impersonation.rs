//! Acting as somebody else: the `Impersonate-*` headers, each judged by the authorizer.

use http::HeaderMap;

use super::{
    Attributes, Authorizer, GROUP_AUTHENTICATED, GROUP_SERVICE_ACCOUNTS, GROUP_UNAUTHENTICATED, Identity,
    USER_ANONYMOUS, USER_SERVICE_ACCOUNT_PREFIX,
};

const USER: &str = "impersonate-user";
const UID: &str = "impersonate-uid";
const GROUP: &str = "impersonate-group";
const EXTRA_PREFIX: &str = "impersonate-extra-";
const AUTHENTICATION_GROUP: &str = "authentication.k8s.io";

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImpersonationError {
    /// Headers that make no sense together: 400.
    #[error("{0}")]
    BadRequest(String),
    /// The right to act as that user, group, uid or extra is missing: 403 on these attributes.
    #[error("{reason}")]
    Forbidden { attributes: Box<Attributes>, reason: String },
}

/// The identity that the headers ask for; `None` when they ask for none.
///
/// # Errors
/// When the headers are malformed, or `identity` may not impersonate each part.
pub fn impersonate(
    identity: &Identity,
    headers: &HeaderMap,
    authorizer: &Authorizer,
) -> Result<Option<Identity>, ImpersonationError> {
    let Some(wanted) = wanted(headers)? else { return Ok(None) };
    for attributes in questions(&wanted) {
        let decision = authorizer.authorize(identity, &attributes);
        if !decision.allowed {
            let attributes = Box::new(attributes);
            return Err(ImpersonationError::Forbidden { attributes, reason: decision.reason });
        }
    }
    Ok(Some(complete(wanted)))
}

/// What the headers say, nothing added.
fn wanted(headers: &HeaderMap) -> Result<Option<Identity>, ImpersonationError> {
    let bad = |text: String| Err(ImpersonationError::BadRequest(text));
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
            let Some(key) = percent_decoded(key) else {
                return bad(format!("header {name}: the key is not percent-encoded UTF-8"));
            };
            wanted.extra.entry(key).or_default().push(text(value));
        } else {
            continue;
        }
        any = true;
    }
    if any && wanted.name.is_empty() {
        return bad("requested impersonation of groups, uid or extra without impersonating a user".to_owned());
    }
    Ok(any.then_some(wanted))
}

/// The rights that an impersonation needs.
fn questions(wanted: &Identity) -> Vec<Attributes> {
    let question = |group: &str, resource: &str, subresource: &str, namespace: &str, name: &str| Attributes {
        verb: "impersonate".to_owned(),
        group: group.to_owned(),
        version: "v1".to_owned(),
        resource: resource.to_owned(),
        subresource: subresource.to_owned(),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        is_resource: true,
        ..Attributes::default()
    };
    let account = wanted.name.strip_prefix(USER_SERVICE_ACCOUNT_PREFIX).and_then(|rest| rest.split_once(':'));
    let mut questions = vec![match account {
        Some((namespace, name)) => question("", "serviceaccounts", "", namespace, name),
        None => question("", "users", "", "", &wanted.name),
    }];
    questions.extend(wanted.groups.iter().map(|group| question("", "groups", "", "", group)));
    if !wanted.uid.is_empty() {
        questions.push(question(AUTHENTICATION_GROUP, "uids", "", "", &wanted.uid));
    }
    for (key, values) in &wanted.extra {
        questions
            .extend(values.iter().map(|value| question(AUTHENTICATION_GROUP, "userextras", key, "", value)));
    }
    questions
}

/// Adds the groups that follow from the name.
fn complete(mut wanted: Identity) -> Identity {
    let account = wanted.name.strip_prefix(USER_SERVICE_ACCOUNT_PREFIX).and_then(|rest| rest.split_once(':'));
    if let Some((namespace, _)) = account
        && wanted.groups.is_empty()
    {
        wanted.groups =
            vec![GROUP_SERVICE_ACCOUNTS.to_owned(), format!("{GROUP_SERVICE_ACCOUNTS}:{namespace}")];
    }
    let own = if wanted.name == USER_ANONYMOUS { GROUP_UNAUTHENTICATED } else { GROUP_AUTHENTICATED };
    if !wanted.is_in(GROUP_AUTHENTICATED) && !wanted.is_in(GROUP_UNAUTHENTICATED) {
        wanted.groups.push(own.to_owned());
    }
    wanted
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
            (GROUP, "a"),
            (GROUP, "b"),
            ("impersonate-extra-acme.com%2fproject", "x"),
        ]));
        let found = found.unwrap().unwrap();
        let asked: Vec<_> =
            questions(&found).into_iter().map(|a| (a.resource, a.subresource, a.name)).collect();
        let part = |r: &str, s: &str, n: &str| (r.to_owned(), s.to_owned(), n.to_owned());
        let expected = [
            part("users", "", "jane"),
            part("groups", "", "a"),
            part("groups", "", "b"),
            part("userextras", "acme.com/project", "x"),
        ];
        assert_eq!(asked, expected);
        assert_eq!(complete(found).groups, ["a", "b", GROUP_AUTHENTICATED]);
    }

    #[test]
    fn a_service_account_is_asked_for_in_its_namespace_and_gets_its_groups() {
        let found = wanted(&headers(&[(USER, "system:serviceaccount:ns:robot")])).unwrap().unwrap();
        let question = questions(&found).remove(0);
        assert_eq!(
            (&*question.resource, &*question.namespace, &*question.name),
            ("serviceaccounts", "ns", "robot")
        );
        let groups = ["system:serviceaccounts", "system:serviceaccounts:ns", GROUP_AUTHENTICATED];
        assert_eq!(complete(found).groups, groups);
    }
}
