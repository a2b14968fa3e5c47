//! `pods/NAME/{log,exec,attach,portforward}`: passed to the kubelet of the pod's node, with our client certificate.

use std::{net::IpAddr, sync::Arc};

use api::{meta, status::Status};
use futures::{FutureExt as _, StreamExt as _};
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use serde_json::Value;

use super::upstream::{Backend, is_upgrade};
use crate::{
    handlers::{Call, Target, target::read},
    query::Query,
    server::body::{self, Body},
    state::State,
    storage::keys,
};

/// Where a kubelet listens, unless its Node says otherwise.
const KUBELET_PORT: u16 = 10250;
/// Bytes of a kubelet's error text that are passed on.
const ERROR_BYTES_MAX: usize = 16 * 1024;

/// The kubelet of a node.
pub fn kubelet(state: &State, node: &str) -> Result<Backend, Status> {
    let object = state
        .cache
        .get(&keys::object_key("", "nodes", None, node))
        .ok_or_else(|| Status::not_found("", "nodes", node))?
        .value();
    let addresses = object["status"]["addresses"].as_array().map(Vec::as_slice).unwrap_or_default();
    let address: IpAddr = ["InternalIP", "ExternalIP"]
        .iter()
        .flat_map(|kind| addresses.iter().filter(move |address| address["type"] == *kind))
        .find_map(|address| address["address"].as_str()?.parse().ok())
        .ok_or_else(|| {
            Status::internal(format_args!(
                "node {node} reports no InternalIP, so its kubelet cannot be reached"
            ))
        })?;
    let port = object["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"]
        .as_u64()
        .and_then(|port| u16::try_from(port).ok())
        .filter(|port| *port != 0)
        .unwrap_or(KUBELET_PORT);
    Ok(Backend { address, port, tls: Some(Arc::clone(&state.kubelet_tls)) })
}

async fn pod(call: &Call, target: &Target) -> Result<Value, Status> {
    let key = target.key(&call.info.namespace, &call.info.name);
    let object = read(&call.state.cache, &key, true).await?;
    Ok(object.ok_or_else(|| target.not_found(&call.info.name))?.value())
}

fn node_of(pod: &Value) -> Result<&str, Status> {
    let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
    if node.is_empty() {
        return Err(Status::bad_request(format!("pod {} does not have a host assigned", meta::name(pod))));
    }
    Ok(node)
}

/// The container that a request means: the one it names, or the only one.
fn container(pod: &Value, asked: &str) -> Result<String, Status> {
    let names = |list: &str| -> Vec<&str> {
        pod["spec"][list].as_array().into_iter().flatten().filter_map(|c| c["name"].as_str()).collect()
    };
    let (main, init, ephemeral) =
        (names("containers"), names("initContainers"), names("ephemeralContainers"));
    let pod_name = meta::name(pod);
    if asked.is_empty() {
        if let [only] = main.as_slice() {
            return Ok((*only).to_owned());
        }
        let mut text = format!(
            "a container name must be specified for pod {pod_name}, choose one of: [{}]",
            main.join(" ")
        );
        if !init.is_empty() {
            text.push_str(&format!(" or one of the init containers: [{}]", init.join(" ")));
        }
        if !ephemeral.is_empty() {
            text.push_str(&format!(" or one of the ephemeral containers: [{}]", ephemeral.join(" ")));
        }
        return Err(Status::bad_request(text));
    }
    if [main, init, ephemeral].iter().any(|list| list.contains(&asked)) {
        return Ok(asked.to_owned());
    }
    Err(Status::bad_request(format!("container {asked} is not valid for pod {pod_name}")))
}

/// Encodes what is not unreserved (RFC 3986, section 2.3).
pub fn percent_encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(byte as char),
            byte => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// The query of a kubelet's exec and attach: its words for the streams differ from ours.
fn stream_query(query: &Query) -> String {
    let mut pairs: Vec<String> =
        query.all("command").iter().map(|part| format!("command={}", percent_encode(part))).collect();
    for (ours, theirs) in [("stdin", "input"), ("stdout", "output"), ("stderr", "error"), ("tty", "tty")] {
        if query.flag(ours) {
            pairs.push(format!("{theirs}=1"));
        }
    }
    pairs.join("&")
}

fn copied_query(query: &Query, names: &[&str]) -> String {
    let pairs: Vec<String> = names
        .iter()
        .flat_map(|name| {
            query.all(name).into_iter().map(move |value| format!("{name}={}", percent_encode(value)))
        })
        .collect();
    pairs.join("&")
}

/// A running container's output; an empty answer while the pod has no node.
pub async fn log(call: &mut Call, target: &Target) -> Result<Response<Body>, Status> {
    let pod = pod(call, target).await?;
    check_log_options(&call.query)?;
    let container = container(&pod, call.query.get("container").unwrap_or_default())?;
    let Ok(node) = node_of(&pod) else {
        return Ok(crate::respond::text(StatusCode::OK, ""));
    };
    let backend = kubelet(&call.state, node)?;
    let query = copied_query(
        &call.query,
        &[
            "follow",
            "previous",
            "sinceSeconds",
            "sinceTime",
            "timestamps",
            "tailLines",
            "limitBytes",
            "stream",
        ],
    );
    let path = format!("/containerLogs/{}/{}/{container}?{query}", call.info.namespace, call.info.name);
    let request = Request::get(path).body(body::empty()).map_err(Status::internal)?;
    let response = backend.exchange(request, None).await?;
    if !response.status().is_success() {
        return Err(kubelet_error(response).await);
    }
    let mut answer = crate::respond::text(StatusCode::OK, "");
    let stop = call.state.stop.clone();
    let frames = response.into_body().into_data_stream().take_until(async move { stop.cancelled().await });
    *answer.body_mut() = body::stream(frames);
    Ok(answer)
}

fn check_log_options(query: &Query) -> Result<(), Status> {
    let mut errors = Vec::new();
    for (field, least) in [("tailLines", 0), ("sinceSeconds", 1), ("limitBytes", 1)] {
        let Some(text) = query.get(field).filter(|text| !text.is_empty()) else { continue };
        match text.parse::<i64>() {
            Ok(number) if number >= least => {}
            Ok(number) => {
                let why =
                    if least == 0 { "must be greater than or equal to 0" } else { "must be greater than 0" };
                errors.push(api::field::FieldError::invalid(field, number, why));
            }
            Err(_) => return Err(Status::bad_request(format!("{field}={text:?} is not a number"))),
        }
    }
    if query.get("sinceSeconds").is_some() && query.get("sinceTime").is_some() {
        errors.push(api::field::FieldError::forbidden(
            "",
            "at most one of `sinceTime` or `sinceSeconds` may be specified",
        ));
    }
    if errors.is_empty() { Ok(()) } else { Err(Status::invalid("", "PodLogOptions", "", errors)) }
}

/// The kubelet's refusal, in a Status.
async fn kubelet_error(response: Response<Body>) -> Status {
    let code = response.status();
    let body = http_body_util::Limited::new(response.into_body(), ERROR_BYTES_MAX).collect().boxed();
    let text = match body.await {
        Ok(body) => String::from_utf8_lossy(&body.to_bytes()).trim().to_owned(),
        Err(error) => error.to_string(),
    };
    match code {
        StatusCode::BAD_REQUEST => Status::bad_request(text),
        StatusCode::NOT_FOUND => {
            let mut status = Status::resource_not_found();
            status.message = format!("the server could not find the requested resource ( {text})");
            status
        }
        StatusCode::SERVICE_UNAVAILABLE => Status::service_unavailable(text),
        _ => Status::internal(text),
    }
}

/// exec, attach and port-forward: an upgrade, passed through.
pub async fn stream(call: &mut Call, target: &Target) -> Result<Response<Body>, Status> {
    let pod = pod(call, target).await?;
    let (namespace, name) = (&call.info.namespace, &call.info.name);
    let path = match call.info.subresource.as_str() {
        "portforward" => {
            let query = copied_query(&call.query, &["port", "ports"]);
            format!("/portForward/{namespace}/{name}?{query}")
        }
        kind => {
            let container = container(&pod, call.query.get("container").unwrap_or_default())?;
            if kind == "exec" && call.query.all("command").is_empty() {
                return Err(Status::bad_request("you must specify at least 1 command for the container"));
            }
            format!("/{kind}/{namespace}/{name}/{container}?{}", stream_query(&call.query))
        }
    };
    let backend = kubelet(&call.state, node_of(&pod)?)?;
    if !is_upgrade(&call.headers) {
        return Err(Status::bad_request("Upgrade request required"));
    }
    let mut request = Request::builder()
        .method(call.method.clone())
        .uri(path)
        .body(body::empty())
        .map_err(Status::internal)?;
    *request.headers_mut() = call.headers.clone();
    for header in [http::header::AUTHORIZATION, http::header::CONTENT_LENGTH] {
        request.headers_mut().remove(header);
    }
    let response = backend.exchange(request, call.upgrade.take()).await?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return Ok(response);
    }
    Err(kubelet_error(response).await)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_container_is_the_named_one_or_the_only_one() {
        let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}]}});
        assert_eq!(container(&pod, "i").unwrap(), "i");
        assert_eq!(
            container(&pod, "").unwrap_err().message,
            "a container name must be specified for pod p, choose one of: [a b] or one of the init containers: [i]"
        );
        assert_eq!(container(&pod, "x").unwrap_err().message, "container x is not valid for pod p");
        assert_eq!(container(&json!({"spec": {"containers": [{"name": "a"}]}}), "").unwrap(), "a");
    }

    #[test]
    fn streams_are_named_as_the_kubelet_names_them() {
        let query = Query::parse(
            "command=sh&command=-c&command=echo%20a&stdin=true&stdout=true&tty=false&container=x",
        );
        assert_eq!(stream_query(&query), "command=sh&command=-c&command=echo%20a&input=1&output=1");
    }
}
