//! Images of containers: present, pulled by policy, or the reason why not.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use k8s_cri::v1 as cri;
use serde::Deserialize;

use crate::cri::Runtime;
use crate::objects::Payload;

const BACKOFF_FIRST: Duration = Duration::from_secs(10);
const BACKOFF_MAX: Duration = Duration::from_secs(300);

/// Why a container has no image: reason and message of its waiting state.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {message}")]
pub struct Error {
    pub reason: &'static str,
    pub message: String,
    /// When a new try makes sense.
    pub retry_after: Duration,
}

/// What happened on the way, for events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    Present,
    Pulling,
    Pulled { took: Duration, size_bytes: u64 },
    Failed(String),
    BackOff(String),
    NeverPulled(String),
    Invalid(String),
}

struct Failed {
    delay: Duration,
    at: Instant,
    message: String,
}

/// Pulls images and remembers which pulls failed lately.
#[derive(Clone)]
pub struct Images {
    runtime: Runtime,
    failed: Arc<Mutex<HashMap<String, Failed>>>,
}

/// One wish for an image.
pub struct Request<'a> {
    pub pod_uid: &'a str,
    pub image: &'a str,
    /// `Always`, `IfNotPresent` or `Never`; without one it follows from the tag.
    pub policy: Option<&'a str>,
    pub sandbox: cri::PodSandboxConfig,
    /// Secrets named in `imagePullSecrets`.
    pub secrets: Vec<Arc<Payload>>,
}

impl Images {
    pub fn new(runtime: Runtime) -> Self {
        Self { runtime, failed: Arc::default() }
    }

    /// Makes the image present, as the policy asks.
    pub async fn ensure(
        &self,
        request: Request<'_>,
        progress: impl Fn(Progress),
    ) -> Result<cri::Image, Error> {
        let named = reference(request.image).map_err(|why| {
            let message = format!("Failed to apply default image tag \"{}\": {why}", request.image);
            progress(Progress::Invalid(message.clone()));
            Error { reason: "InvalidImageName", message, retry_after: BACKOFF_MAX }
        })?;
        let spec = cri::ImageSpec {
            image: named.clone(),
            user_specified_image: request.image.to_owned(),
            ..cri::ImageSpec::default()
        };
        let present = self.runtime.image_status(spec.clone()).await.map_err(inspect_failed)?;
        match (present, policy(request.policy, &named)) {
            (Some(image), "IfNotPresent" | "Never") => {
                progress(Progress::Present);
                Ok(image)
            }
            (None, "Never") => {
                let message =
                    format!("Container image \"{}\" is not present with pull policy of Never", request.image);
                progress(Progress::NeverPulled(message.clone()));
                Err(Error { reason: "ErrImageNeverPull", message, retry_after: BACKOFF_FIRST })
            }
            _ => self.pull(request, spec, progress).await,
        }
    }

    async fn pull(
        &self,
        request: Request<'_>,
        spec: cri::ImageSpec,
        progress: impl Fn(Progress),
    ) -> Result<cri::Image, Error> {
        let key = format!("{}_{}", request.pod_uid, spec.image);
        if let Some((left, last)) = self.backing_off(&key) {
            let short = format!("Back-off pulling image \"{}\"", request.image);
            progress(Progress::BackOff(short.clone()));
            let message = format!("{short}: {last}");
            return Err(Error { reason: "ImagePullBackOff", message, retry_after: left });
        }
        progress(Progress::Pulling);
        let started = Instant::now();
        match self.try_pull(&request, &spec).await {
            Ok(image) => {
                self.failed.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
                progress(Progress::Pulled { took: started.elapsed(), size_bytes: image.size });
                Ok(image)
            }
            Err(error) => {
                progress(Progress::Failed(format!("Failed to pull image \"{}\": {error}", request.image)));
                self.note_failure(key, format!("ErrImagePull: {error}"));
                // At once again, so that the wait shows as ImagePullBackOff.
                let retry_after = Duration::from_millis(500);
                Err(Error { reason: "ErrImagePull", message: error, retry_after })
            }
        }
    }

    async fn try_pull(&self, request: &Request<'_>, spec: &cri::ImageSpec) -> Result<cri::Image, String> {
        let mut credentials: Vec<_> =
            request.secrets.iter().flat_map(|secret| credentials(secret, &spec.image)).map(Some).collect();
        if credentials.is_empty() {
            credentials.push(None);
        }
        let mut last = String::new();
        for auth in credentials {
            match self.runtime.pull_image(spec.clone(), auth, Some(request.sandbox.clone())).await {
                Ok(id) => {
                    let pulled = cri::ImageSpec { image: id, ..cri::ImageSpec::default() };
                    let found = self.runtime.image_status(pulled).await.map_err(|error| error.to_string())?;
                    return found.ok_or_else(|| "the image is gone right after its pull".to_owned());
                }
                Err(error) => last = error.to_string(),
            }
        }
        Err(last)
    }

    fn backing_off(&self, key: &str) -> Option<(Duration, String)> {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        let last = failed.get(key)?;
        let left = last.delay.checked_sub(last.at.elapsed()).filter(|left| !left.is_zero())?;
        Some((left, last.message.clone()))
    }

    fn note_failure(&self, key: String, message: String) {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.retain(|_, last| last.at.elapsed() < BACKOFF_MAX * 2);
        let delay = failed.get(&key).map_or(BACKOFF_FIRST, |last| (last.delay * 2).min(BACKOFF_MAX));
        failed.insert(key, Failed { delay, at: Instant::now(), message });
    }
}

fn inspect_failed(error: crate::cri::Error) -> Error {
    Error { reason: "ImageInspectError", message: error.to_string(), retry_after: BACKOFF_FIRST }
}

fn policy<'a>(asked: Option<&'a str>, named: &str) -> &'a str {
    match asked {
        Some(policy) if !policy.is_empty() => policy,
        _ if named.ends_with(":latest") => "Always",
        _ => "IfNotPresent",
    }
}

/// The full name of an image: registry, path and tag filled in where they are missing.
pub fn reference(name: &str) -> Result<String, &'static str> {
    const WRONG: &str = "couldn't parse image name: invalid reference format";
    if name.is_empty() || name.bytes().any(|byte| byte.is_ascii_whitespace() || !byte.is_ascii_graphic()) {
        return Err(WRONG);
    }
    if name.starts_with("sha256:") {
        return Ok(name.to_owned());
    }
    let (rest, digest) = name.split_once('@').map_or((name, None), |(rest, digest)| (rest, Some(digest)));
    let slash = rest.rfind('/').map_or(0, |at| at + 1);
    let (path, tag) = match rest[slash..].rfind(':') {
        Some(at) => (&rest[..slash + at], Some(&rest[slash + at + 1..])),
        None => (rest, None),
    };
    let (registry, repository) = match path.split_once('/') {
        Some((first, after)) if first.contains(['.', ':']) || first == "localhost" => {
            (first, after.to_owned())
        }
        Some(_) => ("docker.io", path.to_owned()),
        None => ("docker.io", format!("library/{path}")),
    };
    let valid_part = |part: &str| {
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b);
        let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        part.bytes().all(inner) && edge(part.bytes().next()) && edge(part.bytes().next_back())
    };
    let valid_tag = |tag: &str| {
        let inner = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
        !tag.is_empty() && tag.len() <= 128 && tag.bytes().all(inner) && !tag.starts_with(['.', '-'])
    };
    let valid_digest = |digest: &str| digest.split_once(':').is_some_and(|(_, hex)| hex.len() >= 32);
    if !repository.split('/').all(valid_part)
        || !tag.is_none_or(valid_tag)
        || !digest.is_none_or(valid_digest)
    {
        return Err(WRONG);
    }
    Ok(match (tag, digest) {
        (_, Some(digest)) => format!("{registry}/{repository}@{digest}"),
        (tag, None) => format!("{registry}/{repository}:{}", tag.unwrap_or("latest")),
    })
}

#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: HashMap<String, DockerAuth>,
}

#[derive(Deserialize)]
struct DockerAuth {
    username: Option<String>,
    password: Option<String>,
    auth: Option<String>,
}

/// Credentials of a pull secret that fit the image's registry.
fn credentials(secret: &Payload, image: &str) -> Vec<cri::AuthConfig> {
    let json = secret.data.get(".dockerconfigjson");
    let auths = match (json, secret.data.get(".dockercfg")) {
        (Some(bytes), _) => serde_json::from_slice::<DockerConfig>(bytes).map(|config| config.auths),
        (None, Some(bytes)) => serde_json::from_slice(bytes),
        (None, None) => return vec![],
    };
    let Ok(auths) = auths else { return vec![] };
    let fits = |server: &str| {
        let server = server.trim_start_matches("https://").trim_start_matches("http://");
        let server = server.trim_end_matches('/').trim_end_matches("/v1").trim_end_matches("/v2");
        let server = if server == "index.docker.io" { "docker.io" } else { server };
        image.strip_prefix(server).is_some_and(|rest| rest.starts_with('/'))
    };
    let chosen = auths.into_iter().filter(|(server, _)| fits(server));
    chosen
        .map(|(server_address, auth)| {
            let decoded = auth.auth.and_then(|text| STANDARD.decode(text.trim()).ok());
            let decoded = decoded.and_then(|bytes| String::from_utf8(bytes).ok());
            let pair = decoded.as_deref().and_then(|text| text.split_once(':'));
            cri::AuthConfig {
                username: auth.username.or(pair.map(|p| p.0.to_owned())).unwrap_or_default(),
                password: auth.password.or(pair.map(|p| p.1.to_owned())).unwrap_or_default(),
                server_address,
                ..cri::AuthConfig::default()
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_filled_in_as_the_web_writes_them() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for (name, full) in [
            ("nginx", "docker.io/library/nginx:latest".to_owned()),
            ("nginx:1.27", "docker.io/library/nginx:1.27".to_owned()),
            ("user/app", "docker.io/user/app:latest".to_owned()),
            ("localhost:5000/a/b:1", "localhost:5000/a/b:1".to_owned()),
            ("registry.k8s.io/pause", "registry.k8s.io/pause:latest".to_owned()),
            (&format!("nginx:1@{digest}"), format!("docker.io/library/nginx@{digest}")),
        ] {
            assert_eq!(reference(name), Ok(full));
        }
        for wrong in ["", "Nginx", "a b", "nginx:", "nginx:-x", "-x", "a//b", "nginx@sha256", "x:y:z"] {
            assert!(reference(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_default_policy_follows_the_tag() {
        assert_eq!(policy(None, "docker.io/library/nginx:latest"), "Always");
        assert_eq!(policy(None, "docker.io/library/nginx:1"), "IfNotPresent");
        assert_eq!(policy(Some("Never"), "docker.io/library/nginx:latest"), "Never");
    }

    #[test]
    fn only_credentials_of_the_images_registry_are_used() {
        let json = format!(
            r#"{{"auths":{{"https://index.docker.io/v1/":{{"auth":"{}"}},"other.io":{{"username":"x","password":"y"}}}}}}"#,
            STANDARD.encode("me:secret")
        );
        let secret = Payload {
            data: [(".dockerconfigjson".to_owned(), json.into_bytes())].into(),
            ..Payload::default()
        };
        let found = credentials(&secret, "docker.io/library/nginx:1");
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].username.as_str(), found[0].password.as_str()), ("me", "secret"));
        assert!(credentials(&secret, "other.io.evil/x").is_empty());
    }
}
