//! ServiceAccount tokens bound to a pod, through the TokenRequest API.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::Pod;

use crate::pod;

/// A token is renewed at the latest after a day.
const AGE_MAX: Duration = Duration::from_secs(24 * 3600);

#[derive(Clone, Debug)]
pub struct Token {
    pub value: String,
    /// 80 % of its life, and at most a day from now.
    pub refresh_at: Timestamp,
    pub expires_at: Timestamp,
}

/// Asks for a token of the pod's ServiceAccount.
pub async fn request(
    client: &kube::Client,
    pod: &Pod,
    (audience, seconds): &(Option<String>, i64),
    now: Timestamp,
) -> Result<Token, String> {
    let spec = pod.spec.as_ref();
    let account = spec.and_then(|s| s.service_account_name.clone()).filter(|name| !name.is_empty());
    let account = account.unwrap_or_else(|| "default".to_owned());
    let body = TokenRequest {
        spec: Some(TokenRequestSpec {
            audiences: Some(audience.iter().filter(|a| !a.is_empty()).cloned().collect()),
            expiration_seconds: Some(*seconds),
            bound_object_ref: Some(BoundObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                name: Some(pod::name(pod).to_owned()),
                uid: Some(pod::uid(pod).to_owned()),
            }),
        }),
        ..TokenRequest::default()
    };
    let namespace = pod::namespace(pod);
    let request =
        http::Request::post(format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"))
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(serde_json::to_vec(&body).map_err(|error| error.to_string())?)
            .map_err(|error| error.to_string())?;
    let answer: TokenRequest = client.request(request).await.map_err(|error| error.to_string())?;
    let status = answer.status.ok_or("the apiserver answered without a token")?;
    let (Some(value), Some(expires_at)) = (status.token, status.expiration_timestamp) else {
        return Err("the apiserver answered without a token".to_owned());
    };
    let expires_at = expires_at.0;
    let life = Duration::try_from(expires_at.duration_since(now)).unwrap_or_default();
    let refresh_at = now + (life * 4 / 5).min(AGE_MAX);
    Ok(Token { value, refresh_at, expires_at })
}
