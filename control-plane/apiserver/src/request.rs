//! What a request asks for, read from its method and path alone: the resource, the name and the verb that authorization
//! and dispatch use. Pure; the words are those of upstream's RequestInfo.
//!
//! ```text
//! /api/v1/namespaces/NS/pods/NAME/log        /apis/GROUP/VERSION/PLURAL/NAME/SUBRESOURCE
//! /api/v1/watch/...  (old form of watch)     everything else: a non-resource path
//! ```

use http::Method;

use crate::query::Query;

/// A parsed request line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestInfo {
    pub is_resource: bool,
    /// As sent, percent-decoded.
    pub path: String,
    /// `get`, `list`, `watch`, `create`, ... or the lower-case method for non-resource paths.
    pub verb: String,
    pub group: String,
    pub version: String,
    pub namespace: String,
    pub resource: String,
    pub name: String,
    pub subresource: String,
    /// What follows the subresource, for the `proxy` subresource, without a leading slash.
    pub rest: String,
}

/// Undoes percent encoding; bytes that are not UTF-8 or not valid escapes stay as they are.
pub fn percent_decode(text: &str, plus_is_space: bool) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = |offset: usize| bytes.get(at + offset).and_then(|digit| (*digit as char).to_digit(16));
        match (bytes[at], hex(1), hex(2)) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                at += 3;
                continue;
            }
            (b'+', ..) if plus_is_space => out.push(b' '),
            (byte, ..) => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8(out).unwrap_or_else(|_| text.to_owned())
}

impl RequestInfo {
    /// Parses; never fails: what is no resource path is a non-resource path. `is_upgrade` tells a request to switch
    /// protocols: on the streaming subresources that counts as `create`.
    pub fn parse(method: &Method, path: &str, query: &Query, is_upgrade: bool) -> Self {
        let mut info = Self {
            path: percent_decode(path, false),
            verb: method.as_str().to_ascii_lowercase(),
            ..Self::default()
        };
        let parts: Vec<String> =
            path.split('/').filter(|part| !part.is_empty()).map(|part| percent_decode(part, false)).collect();
        let mut parts = parts.as_slice();
        let Some((prefix, after)) = parts.split_first() else { return info };
        parts = after;
        match prefix.as_str() {
            "api" if parts.len() >= 2 => {}
            "apis" if parts.len() >= 3 => {
                info.group = parts[0].clone();
                parts = &parts[1..];
            }
            _ => return info,
        }
        info.is_resource = true;
        info.version = parts[0].clone();
        parts = &parts[1..];
        info.verb = verb_of(method).to_owned();
        if parts[0] == "watch" && parts.len() > 1 {
            info.verb = "watch".to_owned();
            parts = &parts[1..];
        }
        info.read_parts(parts);
        info.refine_verb(query, is_upgrade);
        info
    }

    fn read_parts(&mut self, mut parts: &[String]) {
        if parts[0] == "namespaces" && parts.len() > 1 {
            self.namespace = parts[1].clone();
            if parts.len() > 2 && !matches!(parts[2].as_str(), "status" | "finalize") {
                parts = &parts[2..];
            }
        }
        self.resource = parts[0].clone();
        self.name = parts.get(1).cloned().unwrap_or_default();
        self.subresource = parts.get(2).cloned().unwrap_or_default();
        self.rest = parts.get(3..).unwrap_or_default().join("/");
    }

    fn refine_verb(&mut self, query: &Query, is_upgrade: bool) {
        if self.name.is_empty() {
            match self.verb.as_str() {
                "get" => {
                    self.verb = if query.flag("watch") { "watch" } else { "list" }.to_owned();
                }
                "delete" => self.verb = "deletecollection".to_owned(),
                _ => {}
            }
        }
        if self.name.is_empty()
            && matches!(self.verb.as_str(), "list" | "watch" | "deletecollection")
            && let Some(name) = query.get("fieldSelector").and_then(exact_name)
        {
            self.name = name;
        }
        let streams = matches!(self.subresource.as_str(), "exec" | "attach" | "portforward");
        if is_upgrade && streams && self.verb == "get" {
            self.verb = "create".to_owned();
        }
    }

    /// `v1` or `apps/v1`.
    pub fn group_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    /// `pods` or `pods/log`.
    pub fn resource_path(&self) -> String {
        if self.subresource.is_empty() {
            self.resource.clone()
        } else {
            format!("{}/{}", self.resource, self.subresource)
        }
    }

    /// Upstream's words for a request that authorization refused.
    pub fn forbidden_text(&self, user: &str) -> String {
        if !self.is_resource {
            return format!("User {user:?} cannot {} path {:?}", self.verb, self.path);
        }
        let mut text = format!(
            "User {user:?} cannot {} resource {:?} in API group {:?}",
            self.verb,
            self.resource_path(),
            self.group
        );
        if self.namespace.is_empty() || self.resource == "namespaces" {
            text.push_str(" at the cluster scope");
        } else {
            text.push_str(&format!(" in the namespace {:?}", self.namespace));
        }
        text
    }
}

fn verb_of(method: &Method) -> &'static str {
    match method.as_str() {
        "POST" => "create",
        "GET" | "HEAD" => "get",
        "PUT" => "update",
        "PATCH" => "patch",
        "DELETE" => "delete",
        "OPTIONS" => "options",
        _ => "",
    }
}

/// The name that a field selector pins, where it pins one.
fn exact_name(selector: &str) -> Option<String> {
    selector.split(',').find_map(|term| {
        let value = term.trim().strip_prefix("metadata.name=")?;
        let value = value.strip_prefix('=').unwrap_or(value);
        (!value.is_empty() && !value.contains(['/', '%'])).then(|| value.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(method: &str, target: &str) -> RequestInfo {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        RequestInfo::parse(&method, path, &Query::parse(query), false)
    }

    #[test]
    fn paths_give_resource_name_and_verb() {
        for (method, target, verb, group, namespace, resource, name, subresource) in [
            ("GET", "/api/v1/namespaces", "list", "", "", "namespaces", "", ""),
            ("GET", "/api/v1/namespaces/a", "get", "", "a", "namespaces", "a", ""),
            ("PUT", "/api/v1/namespaces/a/finalize", "update", "", "a", "namespaces", "a", "finalize"),
            ("GET", "/api/v1/namespaces/a/pods", "list", "", "a", "pods", "", ""),
            ("GET", "/api/v1/namespaces/a/pods?watch=1", "watch", "", "a", "pods", "", ""),
            ("GET", "/api/v1/watch/pods", "watch", "", "", "pods", "", ""),
            ("DELETE", "/api/v1/namespaces/a/pods", "deletecollection", "", "a", "pods", "", ""),
            ("DELETE", "/api/v1/namespaces/a/pods/p", "delete", "", "a", "pods", "p", ""),
            ("GET", "/api/v1/namespaces/a/pods/p/log", "get", "", "a", "pods", "p", "log"),
            (
                "PATCH",
                "/apis/apps/v1/namespaces/a/deployments/d",
                "patch",
                "apps",
                "a",
                "deployments",
                "d",
                "",
            ),
            ("GET", "/apis/apps/v1/deployments", "list", "apps", "", "deployments", "", ""),
            ("GET", "/api/v1/nodes?fieldSelector=metadata.name%3Dn", "list", "", "", "nodes", "n", ""),
        ] {
            let info = parse(method, target);
            assert!(info.is_resource, "{target}");
            assert_eq!(
                (
                    info.verb.as_str(),
                    info.group.as_str(),
                    info.namespace.as_str(),
                    info.resource.as_str(),
                    info.name.as_str(),
                    info.subresource.as_str()
                ),
                (verb, group, namespace, resource, name, subresource),
                "{target}"
            );
        }
    }

    #[test]
    fn discovery_paths_are_no_resources() {
        for target in ["/api", "/api/v1", "/apis", "/apis/apps", "/apis/apps/v1", "/healthz", "/"] {
            let info = parse("GET", target);
            assert!(!info.is_resource, "{target}");
            assert_eq!(info.verb, "get");
        }
    }

    #[test]
    fn an_upgrade_on_a_streaming_subresource_is_a_create() {
        let info =
            RequestInfo::parse(&Method::GET, "/api/v1/namespaces/a/pods/p/exec", &Query::default(), true);
        assert_eq!(info.verb, "create");
    }

    #[test]
    fn forbidden_texts_are_those_of_upstream() {
        assert_eq!(
            parse("GET", "/api/v1/namespaces/default/pods").forbidden_text("x"),
            r#"User "x" cannot list resource "pods" in API group "" in the namespace "default""#
        );
        assert_eq!(
            parse("GET", "/api/v1/nodes").forbidden_text("x"),
            r#"User "x" cannot list resource "nodes" in API group "" at the cluster scope"#
        );
        assert_eq!(parse("GET", "/metrics").forbidden_text("x"), r#"User "x" cannot get path "/metrics""#);
    }
}
