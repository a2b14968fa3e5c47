//! From a connection and its headers to an [`Identity`].
//!
//! TLS accepts any client certificate whose key the client holds ([`super::tls`]); whether our CA signed it is judged here,
//! so that a stranger gets a 401 that says so instead of a broken handshake. As upstream, one good credential is
//! enough; with bad ones only, the answer is 401; with none at all the request is anonymous.

use std::{collections::BTreeMap, fmt, sync::Arc};

use arc_swap::ArcSwap;
use base64::Engine;
use http::{HeaderMap, header};
use rustls::server::danger::ClientCertVerifier;
use rustls_pki_types::{CertificateDer, UnixTime};
use sha2::{Digest, Sha256};
use x509_parser::{
    der_parser::{Oid, oid},
    prelude::{FromDer, X509Certificate},
};

use super::{
    GROUP_AUTHENTICATED, Identity,
    credentials::{StaticTokens, bootstrap_identity},
    pki::FRONT_PROXY_CLIENT,
    tokens::{BoundObjects, Notes, Tokens, Verified},
};
use crate::request::percent_decode;

/// A token within `Sec-WebSocket-Protocol`, for clients that cannot set headers.
const WEBSOCKET_TOKEN_PREFIX: &str = "base64url.bearer.authorization.k8s.io.";
/// The attribute of a subject that is the user's uid.
const UID_ATTRIBUTE: Oid<'static> = oid!(1.3.6.1.4.1.57683.2);
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
    /// The CA of front proxies signed it: it may say in headers whom it acts for.
    FrontProxy {
        /// Seconds since the epoch.
        not_after: i64,
    },
    /// Somebody else signed it, or it is expired or not for clients.
    Refused { subject: String, reason: String },
}

/// Which requests without credentials are let in, as `system:anonymous`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Anonymous {
    /// Authorization decides alone.
    #[default]
    Everywhere,
    Nowhere,
    /// On these paths only, such as `/livez`.
    Paths(Vec<String>),
}

impl Anonymous {
    fn admits(&self, path: &str) -> bool {
        match self {
            Self::Everywhere => true,
            Self::Nowhere => false,
            Self::Paths(paths) => paths.iter().any(|allowed| allowed == path),
        }
    }
}

/// What is good besides certificates and ServiceAccount tokens.
#[derive(Default)]
pub struct Options {
    pub anonymous: Anonymous,
    pub static_tokens: StaticTokens,
    /// Whether Secrets of type `bootstrap.kubernetes.io/token` are credentials.
    pub bootstrap_tokens: bool,
    /// The CA of front proxies, which say in `X-Remote-*` headers whom they act for.
    pub front_proxy: Option<Arc<dyn ClientCertVerifier>>,
}

/// Judges credentials.
pub struct Authenticator {
    certificates: ArcSwap<Arc<dyn ClientCertVerifier>>,
    tokens: Arc<Tokens>,
    objects: Arc<dyn BoundObjects>,
    options: Options,
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
        let certificates = ArcSwap::from_pointee(certificates);
        Self { certificates, tokens, objects, options: Options::default() }
    }

    pub fn with(self, options: Options) -> Self {
        Self { options, ..self }
    }

    /// Judges the certificates of new connections by another client CA from now on.
    pub fn replace_client_ca(&self, certificates: Arc<dyn ClientCertVerifier>) {
        self.certificates.store(Arc::new(certificates));
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
        if let Err(error) = self.certificates.load().verify_client_cert(leaf, intermediates, UnixTime::now())
        {
            if self.is_front_proxy(&certificate, leaf, intermediates) {
                return Peer::FrontProxy { not_after: certificate.validity().not_after.timestamp() };
            }
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
        let uid = match certificate
            .subject()
            .iter_by_oid(&UID_ATTRIBUTE)
            .map(text)
            .collect::<Vec<_>>()
            .as_slice()
        {
            [] => String::new(),
            [Ok(uid)] if !uid.is_empty() => uid.clone(),
            [_] => return refused(subject, "unable to parse UID into a string".to_owned()),
            _ => return refused(subject, "expected 1 UID, but found multiple".to_owned()),
        };
        let identity = Identity { name, uid, groups, extra };
        Peer::Certificate { identity, not_after: certificate.validity().not_after.timestamp() }
    }

    fn is_front_proxy(
        &self,
        certificate: &X509Certificate<'_>,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
    ) -> bool {
        let mut names = certificate.subject().iter_common_name().filter_map(|name| name.as_str().ok());
        names.any(|name| name == FRONT_PROXY_CLIENT)
            && self.options.front_proxy.as_ref().is_some_and(|certificates| {
                certificates.verify_client_cert(leaf, intermediates, UnixTime::now()).is_ok()
            })
    }

    /// Who sends a request for `path`; `notes` gets what its token is worth telling.
    ///
    /// # Errors
    /// When there are credentials and none of them is good, or there are none and somebody has to be known there.
    pub fn authenticate(
        &self,
        peer: &Peer,
        headers: &HeaderMap,
        path: &str,
        notes: &mut Notes,
    ) -> Result<Identity, Unauthorized> {
        let now = jiff::Timestamp::now().as_second();
        let mut refused = match peer {
            Peer::None => None,
            Peer::Certificate { identity, not_after } if now <= *not_after => return Ok(identity.clone()),
            Peer::Certificate { identity, .. } => {
                Some(Unauthorized(format!("the client certificate of {} expired", identity.name)))
            }
            Peer::FrontProxy { not_after } if now <= *not_after => match remote_identity(headers) {
                Some(identity) => return Ok(identity),
                None => Some(Unauthorized("a front proxy does not say whom it acts for".to_owned())),
            },
            Peer::FrontProxy { .. } => Some(Unauthorized("the front proxy's certificate expired".to_owned())),
            Peer::Refused { subject, reason } => {
                Some(Unauthorized(format!("client certificate of {subject}: {reason}")))
            }
        };
        if let Some(token) = bearer_token(headers) {
            match self.authenticate_token(&token, &[], notes) {
                Ok(verified) => return Ok(verified.identity),
                Err(error) => refused = Some(error),
            }
        }
        match refused {
            Some(refused) => Err(refused),
            None if self.options.anonymous.admits(path) => Ok(Identity::anonymous()),
            None => Err(Unauthorized("no credentials".to_owned())),
        }
    }

    /// Who a token stands for, and the audiences of `audiences` that it is for; none asked is the API server's own.
    /// `notes` gets what is worth telling of it.
    ///
    /// # Errors
    /// When the token is not one of ours, expired, for another audience, or what it is bound to is gone.
    pub fn authenticate_token(
        &self,
        token: &str,
        audiences: &[String],
        notes: &mut Notes,
    ) -> Result<Verified, Unauthorized> {
        let now = jiff::Timestamp::now().as_second();
        if let Some(identity) = self.options.static_tokens.find(token) {
            return self.for_the_server(identity, audiences);
        }
        if self.options.bootstrap_tokens
            && let Some(identity) = bootstrap_identity(token, &*self.objects, now)
        {
            return self.for_the_server(identity, audiences);
        }
        self.tokens
            .verify_with(token, audiences, &*self.objects, now, notes)
            .map_err(|error| Unauthorized(error.to_string()))
    }

    /// Tokens without audiences are for the API server's own alone.
    fn for_the_server(&self, mut identity: Identity, audiences: &[String]) -> Result<Verified, Unauthorized> {
        let own = self.tokens.audiences();
        let wanted = if audiences.is_empty() { own } else { audiences };
        let matched: Vec<String> = wanted.iter().filter(|name| own.contains(name)).cloned().collect();
        if matched.is_empty() {
            return Err(Unauthorized("invalid bearer token".to_owned()));
        }
        if !identity.is_in(GROUP_AUTHENTICATED) {
            identity.groups.push(GROUP_AUTHENTICATED.to_owned());
        }
        Ok(Verified { identity, audiences: matched })
    }
}

/// Whom a front proxy acts for.
fn remote_identity(headers: &HeaderMap) -> Option<Identity> {
    let values = |name: &str| -> Vec<String> {
        headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).map(str::to_owned).collect()
    };
    let name = values("x-remote-user").into_iter().next().filter(|name| !name.is_empty())?;
    let mut groups = values("x-remote-group");
    if !groups.iter().any(|group| group == GROUP_AUTHENTICATED) {
        groups.push(GROUP_AUTHENTICATED.to_owned());
    }
    let mut extra = BTreeMap::<String, Vec<String>>::new();
    for (header, value) in headers {
        if let (Some(key), Ok(value)) = (header.as_str().strip_prefix("x-remote-extra-"), value.to_str()) {
            extra.entry(percent_decode(key, false)).or_default().push(value.to_owned());
        }
    }
    let uid = values("x-remote-uid").into_iter().next().unwrap_or_default();
    Some(Identity { name, uid, groups, extra })
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
