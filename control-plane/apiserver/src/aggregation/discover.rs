//! What an aggregated server serves: asked in the aggregated form of discovery, else in the old one.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use serde_json::{Value, json};

use super::{Aggregation, Remote, proxy::set_identity};
use crate::{
    callout::ANSWER_BYTES_MAX,
    discovery::Document,
    registry::fields::*,
    security::{GROUP_MASTERS, Identity},
    server::body::{self, Body},
};

const TIME_MAX: Duration = Duration::from_secs(5);
const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,\
                          application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json";

/// What one group and version of it serves: items of `resources` in APIVersionDiscovery.
pub(super) struct Served {
    pub(super) resources: Vec<Value>,
}

/// A question to an aggregated server.
pub(super) struct Asked<'a> {
    pub(super) path: &'a str,
    pub(super) accept: &'a str,
    /// What is known already, empty for nothing.
    pub(super) etag: &'a str,
    /// The largest answer, in bytes.
    pub(super) bytes_max: usize,
}

pub(super) struct Answer {
    pub(super) code: StatusCode,
    pub(super) etag: String,
    pub(super) body: Bytes,
}

impl Aggregation {
    /// Asks a server for one group and version.
    ///
    /// # Errors
    /// Upstream's text about what did not answer.
    pub(super) async fn discover(&self, remote: &Remote) -> Result<Served, String> {
        let path = format!("/apis/{}/{}", remote.group, remote.version);
        let url = format!("https://{}{path}", remote.service.authority());
        let list = self
            .get(remote, &path, "application/json")
            .await
            .map_err(|why| format!("failing or missing response from {url}: {why}"))?;
        // The old form lacks nothing but the kinds of answers: the new one is preferred, where there is one.
        if let Ok(groups) = self.get(remote, "/apis", AGGREGATED).await
            && let Some(resources) = find_version(&groups, &remote.group, &remote.version)
        {
            return Ok(Served { resources });
        }
        Ok(Served { resources: from_list(&list, &remote.group, &remote.version) })
    }

    async fn get(&self, remote: &Remote, path: &str, accept: &str) -> Result<Value, String> {
        let asked = Asked { path, accept, etag: "", bytes_max: ANSWER_BYTES_MAX };
        let answer = self.ask(remote, &asked).await?;
        if !answer.code.is_success() {
            let authority = remote.service.authority();
            return Err(format!("bad status from https://{authority}{path}: {}", answer.code.as_u16()));
        }
        // An answer that is no JSON still is an answer.
        Ok(serde_json::from_slice(&answer.body).unwrap_or_default())
    }

    /// Asks a server as the aggregator, for a bounded time.
    pub(super) async fn ask(&self, remote: &Remote, asked: &Asked<'_>) -> Result<Answer, String> {
        let destination = remote.destination.as_ref().map_err(Clone::clone)?;
        let mut headers = HeaderMap::new();
        set_identity(&mut headers, &Identity::internal("system:kube-aggregator", &[GROUP_MASTERS]));
        let uri = format!("https://{}{}", destination.authority, asked.path);
        let mut request = Request::get(&uri).header(header::ACCEPT, asked.accept);
        if !asked.etag.is_empty() {
            request = request.header(header::IF_NONE_MATCH, asked.etag);
        }
        let mut request: Request<Body> = request.body(body::empty()).map_err(|error| error.to_string())?;
        request.headers_mut().extend(headers);
        let exchange = async {
            let response =
                self.callout.send(destination, request).await.map_err(|error| error.to_string())?;
            let (parts, body) = response.into_parts();
            let etag = parts.headers.get(header::ETAG).and_then(|tag| tag.to_str().ok());
            let etag = etag.unwrap_or_default().to_owned();
            let body = Limited::new(body, asked.bytes_max).collect().await;
            let body = body.map_err(|error| error.to_string())?.to_bytes();
            Ok(Answer { code: parts.status, etag, body })
        };
        match tokio::time::timeout(TIME_MAX, exchange).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("timed out waiting for {uri}")),
        }
    }
}

fn find_version(groups: &Value, group: &str, version: &str) -> Option<Vec<Value>> {
    if text(groups, "/kind") != "APIGroupDiscoveryList" {
        return None;
    }
    let found = items(groups, "/items").iter().find(|found| text(found, "/metadata/name") == group)?;
    let found = items(found, "/versions").iter().find(|found| text(found, "/version") == version)?;
    Some(items(found, "/resources").to_vec())
}

/// From an APIResourceList.
fn from_list(list: &Value, group: &str, version: &str) -> Vec<Value> {
    let kind_of = |entry: &Value| {
        let or = |given: &str, own: &str| if given.is_empty() { own.to_owned() } else { given.to_owned() };
        json!({
            "group": or(text(entry, "/group"), group), "version": or(text(entry, "/version"), version),
            "kind": text(entry, "/kind"),
        })
    };
    let mut resources: Vec<Value> = Vec::new();
    for entry in items(list, "/resources") {
        let name = text(entry, "/name");
        let Some((parent, subresource)) = name.split_once('/') else {
            let mut resource = json!({
                "resource": name, "responseKind": kind_of(entry), "singularResource": text(entry, "/singularName"),
                "scope": if flag(entry, "/namespaced") { "Namespaced" } else { "Cluster" },
                "verbs": at(entry, "/verbs"),
            });
            for field in ["shortNames", "categories"] {
                if !items(entry, &format!("/{field}")).is_empty() {
                    resource[field] = entry[field].clone();
                }
            }
            resources.push(resource);
            continue;
        };
        if let Some(resource) = resources.iter_mut().find(|resource| resource["resource"] == parent) {
            let entry = json!({"subresource": subresource, "responseKind": kind_of(entry), "verbs": at(entry, "/verbs")});
            match resource.get_mut("subresources").and_then(Value::as_array_mut) {
                Some(known) => known.push(entry),
                None => resource["subresources"] = json!([entry]),
            }
        }
    }
    resources
}

/// Adds the documents of remote groups to the index of OpenAPI v3.
pub(crate) async fn merge_openapi_index(
    response: Response<Body>,
    aggregation: &Aggregation,
) -> Response<Body> {
    let (parts, body) = response.into_parts();
    let bytes = match body.collect().await {
        Ok(body) => body.to_bytes(),
        Err(_) => Bytes::new(),
    };
    let Ok(mut index) = serde_json::from_slice::<Value>(&bytes) else {
        return Response::from_parts(parts, body::full(bytes));
    };
    if let Some(paths) = index.get_mut("paths").and_then(Value::as_object_mut) {
        let remote = aggregation.v3_paths().into_iter();
        paths.extend(remote.map(|(path, url)| (path, json!({"serverRelativeURL": url}))));
    }
    Document::json(&index).respond(&HeaderMap::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_old_form_of_discovery_becomes_the_new_one() {
        let list = json!({"resources": [
            {"name": "flunders", "singularName": "flunder", "namespaced": true, "kind": "Flunder", "verbs": ["get"], "shortNames": ["fl"]},
            {"name": "flunders/status", "namespaced": true, "kind": "Flunder", "verbs": ["update"]},
        ]});
        let resources = from_list(&list, "wardle.example.com", "v1alpha1");
        let kind = json!({"group": "wardle.example.com", "version": "v1alpha1", "kind": "Flunder"});
        assert_eq!(
            resources,
            [json!({
                "resource": "flunders", "responseKind": kind, "singularResource": "flunder", "scope": "Namespaced",
                "verbs": ["get"], "shortNames": ["fl"],
                "subresources": [{"subresource": "status", "responseKind": kind, "verbs": ["update"]}],
            })]
        );
        let groups = json!({"kind": "APIGroupDiscoveryList", "items": [{
            "metadata": {"name": "g"}, "versions": [{"version": "v1", "resources": resources}],
        }]});
        assert_eq!(find_version(&groups, "g", "v1").unwrap(), resources);
        assert!(find_version(&groups, "g", "v2").is_none());
    }
}
