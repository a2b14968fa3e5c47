//! `/healthz`, `/livez` and `/readyz`: `ok`, or each check on a line with `?verbose` or when one fails.

use http::{HeaderName, HeaderValue, Response, StatusCode};

use super::body::Body;
use crate::{query::Query, respond};

/// The checks of an endpoint by name, and whether each is good.
fn checks(endpoint: &str, is_ready: bool, is_stopping: bool) -> Vec<(&'static str, bool)> {
    let mut checks = vec![("ping", true), ("log", true), ("etcd", true)];
    if endpoint == "readyz" {
        checks.push(("poststarthook/bootstrap", is_ready));
        checks.push(("shutdown", !is_stopping));
    }
    checks
}

/// Answers `endpoint`, or the one check that `rest` names.
pub(super) fn answer(
    endpoint: &str,
    rest: &[&str],
    query: &Query,
    is_ready: bool,
    is_stopping: bool,
) -> Response<Body> {
    let checks = checks(endpoint, is_ready, is_stopping);
    let wanted = rest.join("/");
    if !wanted.is_empty() {
        return match checks.iter().find(|(name, _)| *name == wanted) {
            None => respond::text(StatusCode::NOT_FOUND, "404 page not found\n"),
            Some((_, true)) => plain(StatusCode::OK, "ok"),
            Some((name, false)) => {
                let text = format!("internal server error: {name} failed: reason withheld\n");
                plain(StatusCode::INTERNAL_SERVER_ERROR, text)
            }
        };
    }
    let excluded: Vec<&str> = query.get("exclude").into_iter().flat_map(|names| names.split(',')).collect();
    let mut text = String::new();
    let mut is_good = true;
    for (name, good) in checks {
        if excluded.contains(&name) {
            text.push_str(&format!("[+]{name} excluded: ok\n"));
        } else if good {
            text.push_str(&format!("[+]{name} ok\n"));
        } else {
            is_good = false;
            text.push_str(&format!("[-]{name} failed: reason withheld\n"));
        }
    }
    match (is_good, query.flag("verbose")) {
        (true, false) => plain(StatusCode::OK, "ok"),
        (true, true) => plain(StatusCode::OK, format!("{text}{endpoint} check passed\n")),
        (false, _) => plain(StatusCode::INTERNAL_SERVER_ERROR, format!("{text}{endpoint} check failed\n")),
    }
}

fn plain(code: StatusCode, text: impl Into<bytes::Bytes>) -> Response<Body> {
    let mut response = respond::text(code, text);
    let options = (HeaderName::from_static("x-content-type-options"), HeaderValue::from_static("nosniff"));
    response.headers_mut().insert(options.0, options.1);
    response
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    async fn ask(endpoint: &str, rest: &[&str], query: &str, ready: bool, stopping: bool) -> (u16, String) {
        let response = answer(endpoint, rest, &Query::parse(query), ready, stopping);
        let code = response.status().as_u16();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (code, String::from_utf8(bytes.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn a_server_is_ready_from_the_bootstrap_objects_to_the_stop() {
        assert_eq!(ask("readyz", &[], "", true, false).await, (200, "ok".to_owned()));
        let (code, text) = ask("readyz", &[], "", false, false).await;
        assert_eq!(code, 500);
        assert!(text.contains("[-]poststarthook/bootstrap failed: reason withheld\n"), "{text}");
        assert!(text.ends_with("readyz check failed\n"), "{text}");
        let (code, text) = ask("readyz", &[], "", true, true).await;
        assert!(code == 500 && text.contains("[-]shutdown failed"), "{text}");
        assert_eq!(ask("livez", &[], "", false, true).await.0, 200, "it lives while it stops");
    }

    #[tokio::test]
    async fn checks_can_be_asked_for_one_by_one_and_left_out() {
        assert_eq!(ask("readyz", &["poststarthook", "bootstrap"], "", true, false).await.0, 200);
        assert_eq!(ask("readyz", &["shutdown"], "", true, true).await.0, 500);
        assert_eq!(ask("livez", &["nothing"], "", true, false).await.0, 404);
        assert_eq!(ask("readyz", &[], "exclude=shutdown", true, true).await.0, 200);
        let (_, text) = ask("livez", &[], "verbose", true, false).await;
        assert_eq!(text, "[+]ping ok\n[+]log ok\n[+]etcd ok\nlivez check passed\n");
    }
}
