//! ServiceAccount tokens: JWTs signed with ES256 (RFC 7519, RFC 7518) and bound to objects that must still be there.

use std::collections::BTreeMap;

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, jwk};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Identity;
use crate::storage::{cache::Cache, keys};

/// The path of the key set, below the server's address.
pub const JWKS_PATH: &str = "/openid/v1/jwks";
/// A token outlives the deletion timestamp of what it is bound to by this many seconds.
const DELETION_LEEWAY_SECONDS: i64 = 60;
/// Clocks of the servers of one cluster may differ by this many seconds.
const CLOCK_LEEWAY_SECONDS: i64 = 10;

const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
const NODE_UID: &str = "authentication.kubernetes.io/node-uid";
const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("not a token of this cluster: {0}")]
    Foreign(String),
    #[error("the token expired {0} s ago")]
    Expired(i64),
    #[error("the token is not valid yet")]
    NotYet,
    #[error("the token is for the audiences {got:?}, not for {wanted:?}")]
    Audience { got: Vec<String>, wanted: Vec<String> },
    #[error("the {what} that the token is bound to is gone")]
    Unbound { what: String },
}

/// An object by name and by the one life of that name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reference {
    pub name: String,
    pub uid: String,
}

/// What a token is to say.
#[derive(Clone, Debug, Default)]
pub struct TokenSpec {
    pub namespace: String,
    pub service_account: Option<Reference>,
    pub pod: Option<Reference>,
    pub secret: Option<Reference>,
    pub node: Option<Reference>,
    /// Empty: the API server itself.
    pub audiences: Vec<String>,
    pub expiration_seconds: i64,
}

/// A signed token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issued {
    pub token: String,
    /// Seconds since the epoch.
    pub expires: i64,
}

/// A token that was found good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    pub identity: Identity,
    /// Those of the audiences asked for that the token is for.
    pub audiences: Vec<String>,
}

/// A live object, as tokens ask for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Live {
    pub uid: String,
    /// Seconds since the epoch.
    pub deletion: Option<i64>,
}

/// Where tokens find what they are bound to.
pub trait BoundObjects: Send + Sync {
    /// An object of the core group; `namespace` is `None` for nodes.
    fn find(&self, plural: &str, namespace: Option<&str>, name: &str) -> Option<Live>;
}

impl BoundObjects for Cache {
    fn find(&self, plural: &str, namespace: Option<&str>, name: &str) -> Option<Live> {
        let object = self.get(&keys::object_key("", plural, namespace, name))?;
        let meta = object.meta();
        let deletion =
            meta.deletion_timestamp.as_deref().and_then(|time| time.parse::<jiff::Timestamp>().ok());
        Some(Live { uid: meta.uid.clone(), deletion: deletion.map(jiff::Timestamp::as_second) })
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    aud: Vec<String>,
    exp: i64,
    iat: i64,
    iss: String,
    jti: String,
    #[serde(rename = "kubernetes.io")]
    kubernetes: Private,
    nbf: i64,
    sub: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Private {
    namespace: String,
    serviceaccount: Reference,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pod: Option<Reference>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    secret: Option<Reference>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    node: Option<Reference>,
}

/// Issues and verifies the tokens of one cluster.
pub struct Tokens {
    issuer: String,
    signing: EncodingKey,
    verifying: DecodingKey,
    key: jwk::Jwk,
}

impl Tokens {
    /// `key_pem` is a P-256 private key in PKCS #8; `issuer` the URL that tokens name.
    ///
    /// # Errors
    /// When the key is not one of that kind.
    pub fn new(issuer: &str, key_pem: &str) -> Result<Self, jsonwebtoken::errors::Error> {
        let signing = EncodingKey::from_ec_pem(key_pem.as_bytes())?;
        let mut key = jwk::Jwk::from_encoding_key(&signing, Algorithm::ES256)?;
        key.common.public_key_use = Some(jwk::PublicKeyUse::Signature);
        key.common.key_id = Some(key.thumbprint(jwk::ThumbprintHash::SHA256)?);
        let verifying = DecodingKey::from_jwk(&key)?;
        Ok(Self { issuer: issuer.to_owned(), signing, verifying, key })
    }

    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// Signs a token; `now` in seconds since the epoch.
    ///
    /// # Errors
    /// When signing fails, or the spec names no ServiceAccount.
    pub fn issue(&self, spec: &TokenSpec, now: i64) -> Result<Issued, TokenError> {
        let foreign = |error: jsonwebtoken::errors::Error| TokenError::Foreign(error.to_string());
        let account = spec
            .service_account
            .clone()
            .ok_or_else(|| TokenError::Foreign("a token needs a ServiceAccount".to_owned()))?;
        let expires = now + spec.expiration_seconds;
        let audiences =
            if spec.audiences.is_empty() { vec![self.issuer.clone()] } else { spec.audiences.clone() };
        let claims = Claims {
            aud: audiences,
            exp: expires,
            iat: now,
            iss: self.issuer.clone(),
            jti: uuid::Uuid::new_v4().to_string(),
            nbf: now,
            sub: format!("{}{}:{}", super::USER_SERVICE_ACCOUNT_PREFIX, spec.namespace, account.name),
            kubernetes: Private {
                namespace: spec.namespace.clone(),
                serviceaccount: account,
                pod: spec.pod.clone(),
                secret: spec.secret.clone(),
                node: spec.node.clone(),
            },
        };
        let header =
            Header { kid: self.key.common.key_id.clone(), typ: None, ..Header::new(Algorithm::ES256) };
        let token = jsonwebtoken::encode(&header, &claims, &self.signing).map_err(foreign)?;
        Ok(Issued { token, expires })
    }

    /// Judges a token; `audiences` empty asks for the API server's own. `now` in seconds since the epoch.
    ///
    /// # Errors
    /// The first thing found wrong.
    pub fn verify(
        &self,
        token: &str,
        audiences: &[String],
        objects: &dyn BoundObjects,
        now: i64,
    ) -> Result<Verified, TokenError> {
        let mut validation = Validation::new(Algorithm::ES256);
        validation.set_issuer(&[&self.issuer]);
        // Times and audiences are judged below: against `now`, with errors that say what is wrong.
        validation.set_required_spec_claims(&["iss"]);
        validation.validate_exp = false;
        validation.validate_aud = false;
        let claims = jsonwebtoken::decode::<Claims>(token, &self.verifying, &validation)
            .map_err(|error| TokenError::Foreign(error.to_string()))?
            .claims;
        if now > claims.exp + CLOCK_LEEWAY_SECONDS {
            return Err(TokenError::Expired(now - claims.exp));
        }
        if now < claims.nbf - CLOCK_LEEWAY_SECONDS {
            return Err(TokenError::NotYet);
        }
        let own = [self.issuer.clone()];
        let wanted = if audiences.is_empty() { &own[..] } else { audiences };
        let matched: Vec<String> = wanted.iter().filter(|name| claims.aud.contains(name)).cloned().collect();
        if matched.is_empty() {
            return Err(TokenError::Audience { got: claims.aud, wanted: wanted.to_vec() });
        }
        check_bound(&claims.kubernetes, objects, now)?;
        Ok(Verified { identity: identity(&claims), audiences: matched })
    }

    /// The key set that others verify tokens with (RFC 7517).
    pub fn jwks(&self) -> Value {
        json!({ "keys": [self.key] })
    }

    /// The OpenID Connect discovery document; `address` is the server's `https://` URL without a final slash.
    pub fn discovery(&self, address: &str) -> Value {
        json!({
            "issuer": self.issuer,
            "jwks_uri": format!("{address}{JWKS_PATH}"),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
        })
    }
}

fn check_bound(claims: &Private, objects: &dyn BoundObjects, now: i64) -> Result<(), TokenError> {
    let namespace = Some(claims.namespace.as_str());
    // A node that is only noted beside a pod may be gone: the pod is what counts.
    let node = claims.node.as_ref().filter(|_| claims.pod.is_none());
    let bound = [
        ("serviceaccounts", namespace, Some(&claims.serviceaccount)),
        ("pods", namespace, claims.pod.as_ref()),
        ("secrets", namespace, claims.secret.as_ref()),
        ("nodes", None, node),
    ];
    for (plural, namespace, reference) in bound {
        let Some(reference) = reference else { continue };
        let live = objects.find(plural, namespace, &reference.name).filter(|live| live.uid == reference.uid);
        let gone = live.is_none_or(|live| live.deletion.is_some_and(|at| now > at + DELETION_LEEWAY_SECONDS));
        if gone {
            let what = format!("{} {}", plural.trim_end_matches('s'), reference.name);
            return Err(TokenError::Unbound { what });
        }
    }
    Ok(())
}

fn identity(claims: &Claims) -> Identity {
    let private = &claims.kubernetes;
    let account = &private.serviceaccount;
    let mut identity = Identity::service_account(&private.namespace, &account.name, &account.uid);
    let mut extra = BTreeMap::from([(CREDENTIAL_ID.to_owned(), vec![format!("JTI={}", claims.jti)])]);
    let references = [(&private.pod, POD_NAME, POD_UID), (&private.node, NODE_NAME, NODE_UID)];
    for (reference, name, uid) in references {
        if let Some(reference) = reference {
            extra.insert(name.to_owned(), vec![reference.name.clone()]);
            extra.insert(uid.to_owned(), vec![reference.uid.clone()]);
        }
    }
    identity.extra = extra;
    identity
}

#[cfg(test)]
mod tests;
