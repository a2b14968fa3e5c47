//! ServiceAccount tokens: JWTs (RFC 7519) that are bound to objects which must still be there, and the older ones that are
//! kept in Secrets.
//!
//! Signatures are checked once per token: what a token says is kept by its hash, and only what can change is judged at
//! every request (time, audience, the bound objects).

mod keys;
mod seen;
mod uses;

use std::collections::BTreeMap;

use api::field::quote;
use jsonwebtoken::{Header, Validation};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, json};

pub use self::keys::KeyError;
use self::{
    keys::{SigningKey, VerifyingKey, algorithm_name},
    seen::Seen,
    uses::Uses,
};
use super::Identity;
use crate::storage::{cache::Cache, keys as storage_keys};

/// The path of the key set, below the server's address.
pub const JWKS_PATH: &str = "/openid/v1/jwks";
/// The expiration that clients ask for who may not know that tokens expire: it is extended, and its end only warned of.
pub const WARN_ONLY_EXPIRATION_SECONDS: i64 = 60 * 60 + 7;
/// What such a token lives.
pub const EXTENDED_EXPIRATION_SECONDS: i64 = 365 * 24 * 60 * 60;
/// Of clocks, and of deletions, in seconds.
const LEEWAY_SECONDS: i64 = 60;
const DAY_SECONDS: i64 = 24 * 60 * 60;
/// Who issued the tokens that are kept in Secrets.
const LEGACY_ISSUER: &str = "kubernetes/serviceaccount";
/// On a Secret: the day of its token's last use.
pub const LAST_USED: &str = "kubernetes.io/legacy-token-last-used";
/// On a Secret whose token was not used for long.
const INVALID_SINCE: &str = "kubernetes.io/legacy-token-invalid-since";

const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
const NODE_UID: &str = "authentication.kubernetes.io/node-uid";
const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";

/// Why a token is not good, in upstream's words: TokenReview shows them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not a token that this server knows how to judge; others may.
    #[error("invalid bearer token")]
    Foreign,
    #[error("invalid signature, no keys found")]
    UnknownKey,
    #[error("go-jose/go-jose: error in cryptographic primitive")]
    Signature,
    #[error("service account token has expired")]
    Expired,
    #[error("service account token is not valid yet")]
    NotYet,
    #[error("token audiences {} is invalid for the target audiences {}", list(got), list(wanted))]
    Audience { got: Vec<String>, wanted: Vec<String> },
    /// What the token is bound to is gone, or is another of the same name.
    #[error("{0}")]
    Unbound(String),
    #[error("{0}")]
    Claims(String),
    /// The token could not be made.
    #[error("{0}")]
    Issue(String),
}

/// The day of a time in seconds since the epoch, in UTC, as labels say it: `2026-01-31`.
pub fn date(seconds: i64) -> String {
    let time = jiff::Timestamp::from_second(seconds).unwrap_or_default();
    jiff::tz::Offset::UTC.to_datetime(time).date().to_string()
}

/// As Go prints a list with `%q`.
fn list(items: &[String]) -> String {
    format!("[{}]", items.iter().map(|item| quote(item)).collect::<Vec<_>>().join(" "))
}

/// An object by name and by the one life of that name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Reference {
    pub name: String,
    /// Empty where only the name is known, such as of a pod's node that is gone.
    #[serde(skip_serializing_if = "String::is_empty")]
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
    /// After so many seconds the use of the token is worth a warning; 0 for never.
    pub warn_after_seconds: i64,
}

/// A signed token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issued {
    pub token: String,
    /// Seconds since the epoch.
    pub expires: i64,
    /// Names this token in audit logs.
    pub credential_id: String,
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

    /// A whole Secret.
    fn secret(&self, _namespace: &str, _name: &str) -> Option<Value> {
        None
    }
}

impl BoundObjects for Cache {
    fn find(&self, plural: &str, namespace: Option<&str>, name: &str) -> Option<Live> {
        let object = self.get(&storage_keys::object_key("", plural, namespace, name))?;
        let meta = object.meta();
        let deletion =
            meta.deletion_timestamp.as_deref().and_then(|time| time.parse::<jiff::Timestamp>().ok());
        Some(Live { uid: meta.uid.clone(), deletion: deletion.map(jiff::Timestamp::as_second) })
    }

    fn secret(&self, namespace: &str, name: &str) -> Option<Value> {
        let object = self.get(&storage_keys::object_key("", "secrets", Some(namespace), name))?;
        Some(object.value())
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    #[serde(default, deserialize_with = "one_or_many", skip_serializing_if = "Vec::is_empty")]
    aud: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    exp: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    iat: Option<i64>,
    #[serde(default)]
    iss: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    jti: String,
    #[serde(rename = "kubernetes.io", default, skip_serializing_if = "Option::is_none")]
    kubernetes: Option<Private>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    nbf: Option<i64>,
    #[serde(default)]
    sub: String,
    #[serde(flatten)]
    legacy: Legacy,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Private {
    namespace: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<Reference>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<Reference>,
    #[serde(skip_serializing_if = "Option::is_none")]
    secret: Option<Reference>,
    serviceaccount: Reference,
    #[serde(skip_serializing_if = "Option::is_none")]
    warnafter: Option<i64>,
}

/// What a token says that is kept in a Secret.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Legacy {
    #[serde(rename = "kubernetes.io/serviceaccount/namespace", skip_serializing_if = "String::is_empty")]
    namespace: String,
    #[serde(rename = "kubernetes.io/serviceaccount/secret.name", skip_serializing_if = "String::is_empty")]
    secret_name: String,
    #[serde(
        rename = "kubernetes.io/serviceaccount/service-account.name",
        skip_serializing_if = "String::is_empty"
    )]
    account_name: String,
    #[serde(
        rename = "kubernetes.io/serviceaccount/service-account.uid",
        skip_serializing_if = "String::is_empty"
    )]
    account_uid: String,
}

fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Audience {
        One(String),
        Many(Vec<String>),
    }
    Ok(match Audience::deserialize(deserializer)? {
        Audience::One(one) => vec![one],
        Audience::Many(many) => many,
    })
}

/// Issues and verifies the tokens of one cluster.
pub struct Tokens {
    /// The first is who new tokens are from.
    issuers: Vec<String>,
    /// Whom a token is for that is for the API server.
    audiences: Vec<String>,
    signing: SigningKey,
    verifying: Vec<VerifyingKey>,
    seen: Seen<Claims>,
    uses: Uses,
}

impl Tokens {
    /// `key_pem` is a private key, P-256, P-384 or RSA; `issuer` the URL that tokens name.
    ///
    /// # Errors
    /// When the key is not one of that kind.
    pub fn new(issuer: &str, key_pem: &str) -> Result<Self, KeyError> {
        let signing = SigningKey::parse(key_pem)?;
        let issuers = vec![issuer.to_owned()];
        let audiences = issuers.clone();
        let verifying = VerifyingKey::parse_all(key_pem)?;
        Ok(Self { issuers, audiences, signing, verifying, seen: Seen::default(), uses: Uses::default() })
    }

    /// Verifies tokens of other keys too: PEM texts of public keys, private keys or certificates.
    ///
    /// # Errors
    /// When a text holds no key, or one of another kind.
    pub fn with_keys(mut self, pems: &[String]) -> Result<Self, KeyError> {
        for pem in pems {
            for key in VerifyingKey::parse_all(pem)? {
                if self.verifying.iter().all(|known| known.id != key.id) {
                    self.verifying.push(key);
                }
            }
        }
        Ok(self)
    }

    /// Verifies tokens of other issuers too.
    pub fn with_issuers(mut self, others: &[String]) -> Self {
        self.issuers.extend(others.iter().cloned());
        self
    }

    /// Replaces the audiences of the API server, by default its issuers.
    pub fn with_audiences(mut self, audiences: &[String]) -> Self {
        if audiences.is_empty() {
            self.audiences.clone_from(&self.issuers);
        } else {
            self.audiences = audiences.to_vec();
        }
        self
    }

    /// Secrets whose tokens were used and whose label does not say so yet.
    pub fn uses(&self) -> &Uses {
        &self.uses
    }

    /// Whom a token is for that is for the API server.
    pub fn audiences(&self) -> &[String] {
        &self.audiences
    }

    /// Signs a token; `now` in seconds since the epoch.
    ///
    /// # Errors
    /// When signing fails, or the spec names no ServiceAccount.
    pub fn issue(&self, spec: &TokenSpec, now: i64) -> Result<Issued, TokenError> {
        let account = spec
            .service_account
            .clone()
            .ok_or_else(|| TokenError::Issue("a token needs a ServiceAccount".to_owned()))?;
        let expires = now + spec.expiration_seconds;
        let audiences =
            if spec.audiences.is_empty() { self.audiences.clone() } else { spec.audiences.clone() };
        let jti = uuid::Uuid::new_v4().to_string();
        let claims = Claims {
            aud: audiences,
            exp: Some(expires),
            iat: Some(now),
            iss: self.issuers[0].clone(),
            jti: jti.clone(),
            nbf: Some(now),
            sub: format!("{}{}:{}", super::USER_SERVICE_ACCOUNT_PREFIX, spec.namespace, account.name),
            kubernetes: Some(Private {
                namespace: spec.namespace.clone(),
                serviceaccount: account,
                pod: spec.pod.clone(),
                secret: spec.secret.clone(),
                node: spec.node.clone(),
                warnafter: (spec.warn_after_seconds > 0).then(|| now + spec.warn_after_seconds),
            }),
            legacy: Legacy::default(),
        };
        Ok(Issued { token: self.sign(&claims)?, expires, credential_id: format!("JTI={jti}") })
    }

    /// Signs a token that is kept in a Secret and never expires.
    ///
    /// # Errors
    /// When signing fails.
    pub fn issue_legacy(
        &self,
        namespace: &str,
        account: &Reference,
        secret_name: &str,
    ) -> Result<String, TokenError> {
        self.sign(&Claims {
            aud: Vec::new(),
            exp: None,
            iat: None,
            iss: LEGACY_ISSUER.to_owned(),
            jti: String::new(),
            nbf: None,
            sub: format!("{}{namespace}:{}", super::USER_SERVICE_ACCOUNT_PREFIX, account.name),
            kubernetes: None,
            legacy: Legacy {
                namespace: namespace.to_owned(),
                secret_name: secret_name.to_owned(),
                account_name: account.name.clone(),
                account_uid: account.uid.clone(),
            },
        })
    }

    fn sign(&self, claims: &Claims) -> Result<String, TokenError> {
        let kid = Some(self.signing.id.clone());
        let header = Header { kid, typ: None, ..Header::new(self.signing.algorithm) };
        jsonwebtoken::encode(&header, claims, &self.signing.key)
            .map_err(|error| TokenError::Issue(error.to_string()))
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
        let claims = self.seen.get_or_read(token, || self.read(token))?;
        let said = if claims.aud.is_empty() { &self.audiences } else { &claims.aud };
        let wanted = if audiences.is_empty() { &self.audiences } else { audiences };
        let matched: Vec<String> = wanted.iter().filter(|name| said.contains(name)).cloned().collect();
        if matched.is_empty() {
            return Err(TokenError::Audience { got: said.clone(), wanted: wanted.to_vec() });
        }
        if claims.exp.is_some_and(|expires| now > expires + LEEWAY_SECONDS) {
            return Err(TokenError::Expired);
        }
        if claims.nbf.is_some_and(|begins| now < begins - LEEWAY_SECONDS) {
            return Err(TokenError::NotYet);
        }
        if claims.iat.is_some_and(|issued| now < issued - LEEWAY_SECONDS) {
            return Err(TokenError::Claims("service account token is issued in the future".to_owned()));
        }
        let identity = match &claims.kubernetes {
            Some(private) if claims.iss != LEGACY_ISSUER => {
                check_bound(private, objects, now)?;
                identity(&claims.jti, private)
            }
            _ => self.legacy_identity(token, &claims, objects, now)?,
        };
        Ok(Verified { identity, audiences: matched })
    }

    /// The claims of a token whose signature is good.
    fn read(&self, token: &str) -> Result<Claims, TokenError> {
        let header = jsonwebtoken::decode_header(token).map_err(|_| TokenError::Foreign)?;
        let unverified: Claims =
            jsonwebtoken::dangerous::insecure_decode_claims(token).map_err(|_| TokenError::Foreign)?;
        if unverified.iss != LEGACY_ISSUER && !self.issuers.contains(&unverified.iss) {
            return Err(TokenError::Foreign);
        }
        let kid = header.kid.as_deref().unwrap_or_default();
        let mut keys = self.verifying.iter().filter(|key| kid.is_empty() || key.id == kid).peekable();
        if keys.peek().is_none() {
            return Err(TokenError::UnknownKey);
        }
        keys.filter(|key| key.algorithm == header.alg)
            .find_map(|key| {
                let mut validation = Validation::new(key.algorithm);
                // Times, audiences and issuers are judged by whoever asks: against its clock, in upstream's words.
                validation.required_spec_claims.clear();
                validation.validate_exp = false;
                validation.validate_aud = false;
                jsonwebtoken::decode::<Claims>(token, &key.key, &validation).ok()
            })
            .map(|data| data.claims)
            .ok_or(TokenError::Signature)
    }

    fn legacy_identity(
        &self,
        token: &str,
        claims: &Claims,
        objects: &dyn BoundObjects,
        now: i64,
    ) -> Result<Identity, TokenError> {
        let said = |text: &str| Err(TokenError::Claims(text.to_owned()));
        let legacy = &claims.legacy;
        let (namespace, name) = (&legacy.namespace, &legacy.account_name);
        let missing = [
            (namespace, "namespace claim is missing"),
            (&legacy.secret_name, "secretName claim is missing"),
            (name, "serviceAccountName claim is missing"),
            (&legacy.account_uid, "serviceAccountUID claim is missing"),
        ];
        if let Some((_, text)) = missing.into_iter().find(|(claim, _)| claim.is_empty()) {
            return said(text);
        }
        if claims.sub != format!("{}{namespace}:{name}", super::USER_SERVICE_ACCOUNT_PREFIX) {
            return said("sub claim is invalid");
        }
        let secret = objects.secret(namespace, &legacy.secret_name);
        let Some(secret) = secret.filter(|secret| api::meta::deletion_timestamp(secret).is_none()) else {
            return said("Token has been invalidated");
        };
        let kept = secret["data"]["token"].as_str().unwrap_or_default();
        if super::decode_base64(kept)
            .is_none_or(|kept| !super::equal_in_constant_time(&kept, token.as_bytes()))
        {
            return said("Token does not match server's copy");
        }
        let account = Reference { name: name.clone(), uid: legacy.account_uid.clone() };
        check_account(namespace, &account, objects, i64::MAX)?;
        let last_used = api::meta::label(&secret, LAST_USED).unwrap_or_default();
        if last_used != date(now) && last_used != date(now + DAY_SECONDS) {
            self.uses.note(namespace, &legacy.secret_name);
        }
        if api::meta::label(&secret, INVALID_SINCE).is_some_and(|since| !since.is_empty()) {
            return said(&format!(
                "the token in secret {namespace}/{} for service account {namespace}/{name} has been marked invalid. Use \
                 tokens from the TokenRequest API or manually created secret-based tokens, or remove the \
                 '{INVALID_SINCE}' label from the secret to temporarily allow use of this token",
                legacy.secret_name
            ));
        }
        Ok(Identity::service_account(namespace, name, &account.uid))
    }

    /// The key set that others verify tokens with (RFC 7517).
    pub fn jwks(&self) -> Value {
        json!({ "keys": self.verifying.iter().map(|key| &key.jwk).collect::<Vec<_>>() })
    }

    /// The OpenID Connect discovery document; `address` is the server's `https://` URL without a final slash.
    pub fn discovery(&self, address: &str) -> Value {
        let mut algorithms: Vec<_> = self.verifying.iter().map(|key| algorithm_name(key.algorithm)).collect();
        algorithms.sort_unstable();
        algorithms.dedup();
        json!({
            "issuer": self.issuers[0],
            "jwks_uri": format!("{address}{JWKS_PATH}"),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": algorithms,
        })
    }
}

fn check_account(
    namespace: &str,
    account: &Reference,
    objects: &dyn BoundObjects,
    now: i64,
) -> Result<(), TokenError> {
    let (name, uid) = (&account.name, &account.uid);
    let unbound = |text: String| Err(TokenError::Unbound(text));
    let Some(live) = objects.find("serviceaccounts", Some(namespace), name) else {
        return unbound(format!("serviceaccounts {} not found", quote(name)));
    };
    if live.uid != *uid {
        return unbound(format!("service account UID ({}) does not match claim ({uid})", live.uid));
    }
    if live.deletion.is_some_and(|at| at < now.saturating_sub(LEEWAY_SECONDS)) {
        return unbound(format!("service account {namespace}/{name} has been deleted"));
    }
    Ok(())
}

fn check_bound(claims: &Private, objects: &dyn BoundObjects, now: i64) -> Result<(), TokenError> {
    let namespace = Some(claims.namespace.as_str());
    check_account(&claims.namespace, &claims.serviceaccount, objects, now)?;
    // A node that is only noted beside a pod may be gone: the pod is what counts.
    let node = claims.node.as_ref().filter(|_| claims.pod.is_none());
    let bound = [
        ("secret", "secrets", namespace, claims.secret.as_ref()),
        ("pod", "pods", namespace, claims.pod.as_ref()),
        ("node", "nodes", None, node),
    ];
    for (word, plural, namespace, reference) in bound {
        let Some(reference) = reference else { continue };
        let gone = || TokenError::Unbound("service account token has been invalidated".to_owned());
        let live = objects.find(plural, namespace, &reference.name).ok_or_else(gone)?;
        if live.uid != reference.uid {
            return Err(TokenError::Unbound(format!(
                "{word} UID ({}) does not match service account {word} ref claim ({})",
                live.uid, reference.uid
            )));
        }
        if live.deletion.is_some_and(|at| at < now - LEEWAY_SECONDS) {
            return Err(gone());
        }
    }
    Ok(())
}

fn identity(jti: &str, private: &Private) -> Identity {
    let account = &private.serviceaccount;
    let mut identity = Identity::service_account(&private.namespace, &account.name, &account.uid);
    let mut extra = BTreeMap::new();
    if !jti.is_empty() {
        extra.insert(CREDENTIAL_ID.to_owned(), vec![format!("JTI={jti}")]);
    }
    let references = [(&private.pod, POD_NAME, POD_UID), (&private.node, NODE_NAME, NODE_UID)];
    for (reference, name, uid) in references {
        if let Some(reference) = reference {
            extra.insert(name.to_owned(), vec![reference.name.clone()]);
            if !reference.uid.is_empty() {
                extra.insert(uid.to_owned(), vec![reference.uid.clone()]);
            }
        }
    }
    identity.extra = extra;
    identity
}

#[cfg(test)]
mod tests;
