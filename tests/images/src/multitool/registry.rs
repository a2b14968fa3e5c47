//! A registry to pull from: the read side of the OCI distribution specification 1.1, out of a folder.
//!
//! ```text
//! FOLDER/blobs/sha256/HEX       manifests, configurations and layers
//! FOLDER/tags/REPOSITORY/TAG    the digest of a manifest
//! ```

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::Args;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response, StatusCode};
use tokio::net::TcpListener;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

#[derive(Args)]
pub(crate) struct Arguments {
    folder: PathBuf,
    #[arg(long, default_value = "0.0.0.0:5000")]
    listen: SocketAddr,
}

pub(crate) async fn serve(arguments: Arguments) -> Result<()> {
    let listener = TcpListener::bind(arguments.listen)
        .await
        .with_context(|| format!("listening on {}", arguments.listen))?;
    let folder = Arc::new(arguments.folder);
    loop {
        let (stream, _) = listener.accept().await.context("accepting")?;
        let folder = Arc::clone(&folder);
        tokio::spawn(async move {
            let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                let folder = Arc::clone(&folder);
                async move { Ok::<_, Infallible>(answer(&folder, request.method(), request.uri().path()).await) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .serve_connection(hyper_util::rt::TokioIo::new(stream), service);
            // A client that goes away is no error of the server's.
            let _ = connection.await;
        });
    }
}

async fn answer(folder: &Path, method: &Method, path: &str) -> Response<Full<Bytes>> {
    if method != Method::GET && method != Method::HEAD {
        return failure(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", "this registry is read only");
    }
    if path == "/v2/" || path == "/v2" {
        return Response::new(Full::new(Bytes::from_static(b"{}")));
    }
    let found = match parse(path) {
        Some((repository, "manifests", reference)) => match digest(folder, repository, reference).await {
            Some(digest) => blob(folder, &digest).await.map(|bytes| (bytes, MANIFEST, digest)),
            None => return failure(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN", "no such image here"),
        },
        Some((_, "blobs", digest)) => {
            blob(folder, digest).await.map(|bytes| (bytes, "application/octet-stream", digest.to_owned()))
        }
        _ => None,
    };
    let Some((bytes, kind, digest)) = found else {
        return failure(StatusCode::NOT_FOUND, "BLOB_UNKNOWN", "no such content here");
    };
    let length = bytes.len();
    let body = if method == Method::HEAD { Bytes::new() } else { bytes };
    let response = Response::builder()
        .header("content-type", kind)
        .header("content-length", length)
        .header("docker-content-digest", digest);
    response.body(Full::new(body)).unwrap_or_else(|_| {
        failure(StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN", "a header that cannot be sent")
    })
}

/// `/v2/REPOSITORY/(manifests|blobs)/REFERENCE`, where a repository has slashes.
fn parse(path: &str) -> Option<(&str, &str, &str)> {
    let rest = path.strip_prefix("/v2/")?;
    let (rest, reference) = rest.rsplit_once('/')?;
    let (repository, what) = rest.rsplit_once('/')?;
    Some((repository, what, reference))
}

async fn digest(folder: &Path, repository: &str, reference: &str) -> Option<String> {
    if reference.starts_with("sha256:") {
        return Some(reference.to_owned());
    }
    let path = inside(&folder.join("tags"), &format!("{repository}/{reference}"))?;
    Some(tokio::fs::read_to_string(path).await.ok()?.trim().to_owned())
}

async fn blob(folder: &Path, digest: &str) -> Option<Bytes> {
    let hex = digest.strip_prefix("sha256:")?;
    let path = inside(&folder.join("blobs/sha256"), hex)?;
    tokio::fs::read(path).await.ok().map(Bytes::from)
}

/// A path below `folder`; none for one that leads out.
fn inside(folder: &Path, path: &str) -> Option<PathBuf> {
    let path = Path::new(path);
    path.components().all(|part| matches!(part, Component::Normal(_))).then(|| folder.join(path))
}

fn failure(status: StatusCode, code: &str, message: &str) -> Response<Full<Bytes>> {
    let body = serde_json::json!({"errors": [{"code": code, "message": message}]}).to_string();
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::{inside, parse};
    use std::path::Path;

    #[test]
    fn paths_name_a_repository_and_a_reference() {
        assert_eq!(parse("/v2/library/nginx/manifests/1.22"), Some(("library/nginx", "manifests", "1.22")));
        assert_eq!(parse("/v2/a/b/c/blobs/sha256:00"), Some(("a/b/c", "blobs", "sha256:00")));
        assert_eq!(parse("/v2/nothing"), None);
    }

    #[test]
    fn no_path_leads_out_of_the_folder() {
        assert!(inside(Path::new("/data"), "../etc/passwd").is_none());
        assert!(inside(Path::new("/data"), "/etc/passwd").is_none());
        assert!(inside(Path::new("/data"), "a/b").is_some());
    }
}
