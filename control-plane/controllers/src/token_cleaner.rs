//! Deletes bootstrap tokens that have expired: Secrets of `kube-system` that new nodes join with. A look every minute is
//! enough: the server refuses an expired token by itself.

use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, ListParams, Preconditions},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

const NAMESPACE: &str = "kube-system";
const SECRET_TYPE: &str = "bootstrap.kubernetes.io/token";
const INTERVAL: Duration = Duration::from_secs(60);

/// Looks every minute until `cancel` is cancelled.
pub async fn run(client: Client, cancel: CancellationToken) {
    let secrets = Api::<Secret>::namespaced(client, NAMESPACE);
    let mut timer = tokio::time::interval(INTERVAL);
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            _ = timer.tick() => {}
        }
        if let Err(error) = clean(&secrets, jiff::Timestamp::now()).await {
            warn!(%error, "bootstrap tokens cannot be looked at; trying again");
        }
    }
}

async fn clean(secrets: &Api<Secret>, now: jiff::Timestamp) -> kube::Result<()> {
    let tokens = secrets.list(&ListParams::default().fields(&format!("type={SECRET_TYPE}"))).await?;
    for secret in tokens.items.iter().filter(|secret| has_expired(secret, now)) {
        let name = secret.name_any();
        let only_this = Preconditions { uid: secret.uid(), resource_version: None };
        let delete = DeleteParams { preconditions: Some(only_this), ..DeleteParams::default() };
        match secrets.delete(&name, &delete).await {
            Ok(_) => info!(secret = name, "an expired bootstrap token is deleted"),
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {
                debug!(secret = name, "the token changed meanwhile");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// A time that cannot be read has passed; a token without one does not expire.
fn has_expired(secret: &Secret, now: jiff::Timestamp) -> bool {
    let data = secret.data.as_ref().and_then(|data| data.get("expiration"));
    data.is_some_and(|time| {
        let time = str::from_utf8(&time.0).ok().and_then(|text| text.parse::<jiff::Timestamp>().ok());
        time.is_none_or(|time| time < now)
    })
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;

    use super::*;

    #[test]
    fn a_token_expires_when_it_says_so() {
        let now: jiff::Timestamp = "2026-06-01T00:00:00Z".parse().unwrap();
        let expired = |expiration: Option<&str>| {
            let data = expiration.map(|text| [("expiration".to_owned(), ByteString(text.into()))].into());
            has_expired(&Secret { data, ..Secret::default() }, now)
        };
        assert!(!expired(None));
        assert!(!expired(Some("2026-06-01T00:00:01Z")));
        assert!(expired(Some("2026-05-31T23:59:59Z")));
        assert!(expired(Some("soon")));
    }
}
