//! One request passed on to an aggregated server: the caller's identity in `X-Remote-*` headers, bodies as streams, protocol
//! switches passed through.

use api::status::Status;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Uri};

use super::{Aggregation, Remote};
use crate::{
    respond,
    security::Identity,
    server::body::{self, Body},
    subresources::{
        pod_streams::percent_encode,
        upstream::{self, is_upgrade, strip_hop_headers},
    },
};

const REMOTE_PREFIX: &str = "x-remote-";

/// Says in headers who asks; what a client said there itself is gone.
pub(super) fn set_identity(headers: &mut HeaderMap, user: &Identity) {
    let forged: Vec<HeaderName> =
        headers.keys().filter(|name| name.as_str().starts_with(REMOTE_PREFIX)).cloned().collect();
    for name in forged {
        headers.remove(name);
    }
    let mut append = |name: &str, value: &str| {
        // What cannot be in a header cannot be said; authentication lets no such names in.
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            headers.append(name, value);
        }
    };
    append("x-remote-user", &user.name);
    if !user.uid.is_empty() {
        append("x-remote-uid", &user.uid);
    }
    for group in &user.groups {
        append("x-remote-group", group);
    }
    for (key, values) in &user.extra {
        let name = format!("x-remote-extra-{}", percent_encode(key));
        values.iter().for_each(|value| append(&name, value));
    }
}

impl Aggregation {
    /// Passes a request on and returns the answer.
    ///
    /// # Errors
    /// 500 where the request cannot be made.
    pub async fn forward(
        &self,
        remote: &Remote,
        user: &Identity,
        mut parts: http::request::Parts,
        body: Body,
    ) -> Result<Response<Body>, Status> {
        let unavailable = |text: String| Ok(respond::text(StatusCode::SERVICE_UNAVAILABLE, text + "\n"));
        if !remote.available {
            return unavailable("service unavailable".to_owned());
        }
        let destination = remote.destination.as_ref().map_err(Status::internal)?;
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        let uri: Uri =
            format!("https://{}{path}", destination.authority).parse().map_err(Status::internal)?;
        let upgrade = is_upgrade(&parts.headers).then(|| parts.extensions.remove()).flatten();
        set_identity(&mut parts.headers, user);
        parts.headers.remove(http::header::HOST);
        if let Some(upgrade) = upgrade {
            let stream = match self.callout.connect(destination).await {
                Ok(stream) => stream,
                Err(error) => return unavailable(format!("error trying to reach service: {error}")),
            };
            let mut request = Request::new(body);
            *request.method_mut() = parts.method;
            *request.uri_mut() = path.parse().map_err(Status::internal)?;
            *request.headers_mut() = parts.headers;
            return upstream::exchange_on(stream, &destination.authority, request, Some(upgrade)).await;
        }
        strip_hop_headers(&mut parts.headers);
        let mut request = Request::new(body);
        *request.method_mut() = parts.method;
        *request.uri_mut() = uri;
        *request.headers_mut() = parts.headers;
        match self.callout.send(destination, request).await {
            Ok(mut response) => {
                strip_hop_headers(response.headers_mut());
                Ok(response.map(body::of))
            }
            Err(error) => unavailable(format!("error trying to reach service: {error}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_cannot_forge_who_it_is() {
        let mut headers = HeaderMap::new();
        headers.insert("x-remote-user", "admin".parse().unwrap());
        headers.insert("x-remote-group", "system:masters".parse().unwrap());
        headers.insert("x-remote-extra-scopes", "all".parse().unwrap());
        let user = Identity {
            name: "alice".to_owned(),
            groups: vec!["a".to_owned(), "b".to_owned()],
            extra: [("example.com/x".to_owned(), vec!["1".to_owned()])].into(),
            ..Identity::default()
        };
        set_identity(&mut headers, &user);
        assert_eq!(headers["x-remote-user"], "alice");
        let groups: Vec<_> = headers.get_all("x-remote-group").iter().collect();
        assert_eq!(groups, ["a", "b"]);
        assert_eq!(headers["x-remote-extra-example.com%2fx"], "1");
        assert!(!headers.contains_key("x-remote-extra-scopes"));
    }
}
