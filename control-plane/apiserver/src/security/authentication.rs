//! From a connection and its headers to an [`Identity`].
//!
//! TLS accepts any client certificate whose key the client holds ([`super::tls`]); whether our CA signed it is judged here,
//! so that a stranger gets a 401 that says so instead of a broken handshake. As upstream, one good credential is
//! enough; with bad ones only, the answer is 401; with none at all the request is anonymous.

use std::{fmt, sync::Arc};

use base64::Engine;
use http::{HeaderMap, header};
use rustls::server::danger::ClientCertVerifier;
use rustls_pki_types::{CertificateDer, UnixTime};
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{
    GROUP_AUTHENTICATED, Identity,
    tokens::{BoundObjects, Tokens},
};

/// A token within `Sec-WebSocket-Protocol`, for clients that cannot set headers.
const WEBSOCKET_TOKEN_PREFIX: &str = "base64url.bearer.authorization.k8s.io.";
const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";

/// The request's credentials are not good; the text is for the log, not for the client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unauthorized(pub String);

/// What a connection's client certificate says; made once per connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// No certificate was shown.
    None,
    /// Our CA signed it.
    Certificate {
        identity: Identity,
        /// Seconds since the epoch.
        not_after: i64,
    },
    /// Somebody else signed it, or it is expired or not for clients.
    Refused { subject: String, reason: String },
}

/// Judges credentials.
pub struct Authenticator {
    certificates: Arc<dyn ClientCertVerifier>,
    tokens: Arc<Tokens>,
    objects: Arc<dyn BoundObjects>,
}

impl fmt::Debug for Authenticator {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Authenticator")
    }
}

impl Authenticator {
    /// `certificates` checks chains against the client CA: [`super::tls::client_verifier`].
    pub fn new(
        certificates: Arc<dyn ClientCertVerifier>,
        tokens: Arc<Tokens>,
        objects: Arc<dyn BoundObjects>,
    ) -> Self {
        Self { certificates, tokens, objects }
    }

    /// Judges the certificates that a connection showed, its own first. A refused one is logged with its subject.
    pub fn peer(&self, chain: Option<&[CertificateDer<'_>]>) -> Peer {
        let Some([leaf, intermediates @ ..]) = chain else { return Peer::None };
        let refused = |subject: String, reason: String| {
            tracing::warn!(subject, reason, "client certificate refused");
            Peer::Refused { subject, reason }
        };
        let certificate = match X509Certificate::from_der(leaf) {
            Ok((_, certificate)) => certificate,
            Err(error) => return refused("unreadable".to_owned(), error.to_string()),
        };
        let subject = certificate.subject().to_string();
        if let Err(error) = self.certificates.verify_client_cert(leaf, intermediates, UnixTime::now()) {
            return refused(subject, error.to_string());
        }
        let text = |value: &x509_parser::x509::AttributeTypeAndValue<'_>| value.as_str().map(str::to_owned);
        let Some(Ok(name)) = certificate.subject().iter_common_name().next().map(text) else {
            return refused(subject, "the subject has no common name".to_owned());
        };
        if name.is_empty() {
            return refused(subject, "the common name is empty".to_owned());
        }
        let mut groups: Vec<String> =
            certificate.subject().iter_organization().filter_map(|value| text(value).ok()).collect();
        groups.push(GROUP_AUTHENTICATED.to_owned());
        let fingerprint = Sha256::digest(leaf).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let extra = [(CREDENTIAL_ID.to_owned(), vec![format!("X509SHA256={fingerprint}")])].into();
        let identity = Identity { name, uid: String::new(), groups, extra };
        Peer::Certificate { identity, not_after: certificate.validity().not_after.timestamp() }
    }

    /// Who sends a request.
    ///
    /// # Errors
    /// When there are credentials and none of them is good.
    pub fn authenticate(&self, peer: &Peer, headers: &HeaderMap) -> Result<Identity, Unauthorized> {
        let now = jiff::Timestamp::now().as_second();
        let mut refused = match peer {
            Peer::None => None,
            Peer::Certificate { identity, not_after } if now <= *not_after => return Ok(identity.clone()),
            Peer::Certificate { identity, .. } => {
                Some(Unauthorized(format!("the client certificate of {} expired", identity.name)))
            }
            Peer::Refused { subject, reason } => {
                Some(Unauthorized(format!("client certificate of {subject}: {reason}")))
            }
        };
        if let Some(token) = bearer_token(headers) {
            match self.authenticate_token(&token, &[]) {
                Ok(verified) => return Ok(verified.identity),
                Err(error) => refused = Some(error),
            }
        }
        refused.map_or_else(|| Ok(Identity::anonymous()), Err)
    }

    /// Who a token stands for, and the audiences of `audiences` that it is for; none asked is the API server's own.
    ///
    /// # Errors
    /// When the token is not one of ours, expired, for another audience, or what it is bound to is gone.
    pub fn authenticate_token(
        &self,
        token: &str,
        audiences: &[String],
    ) -> Result<super::tokens::Verified, Unauthorized> {
        let now = jiff::Timestamp::now().as_second();
        self.tokens
            .verify(token, audiences, &*self.objects, now)
            .map_err(|error| Unauthorized(format!("bearer token: {error}")))
    }
}

/// The token of `Authorization: Bearer`, or of the WebSocket subprotocol that stands for it.
fn bearer_token(headers: &HeaderMap) -> Option<String> {
    if let Some(value) = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()) {
        let (scheme, token) = value.trim().split_once(' ')?;
        let token = token.trim();
        return (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then(|| token.to_owned());
    }
    let protocols =
        headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|value| value.to_str().ok());
    let encoded = protocols
        .flat_map(|value| value.split(','))
        .find_map(|protocol| protocol.trim().strip_prefix(WEBSOCKET_TOKEN_PREFIX))?;
    let token =
        base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(encoded.trim_end_matches('=')).ok()?;
    String::from_utf8(token).ok()
}

#[cfg(test)]
mod tests;
