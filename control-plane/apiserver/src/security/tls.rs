//! The server's TLS: our certificate, and client certificates that are asked for but judged later.
//!
//! The handshake proves that a client holds the key of the certificate it shows. Whether the client CA signed it is for
//! [`super::authentication::Authenticator::peer`]: a certificate of another CA then gets a 401 with a reason.

use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::{
    DistinguishedName, Error, RootCertStore, ServerConfig, SignatureScheme,
    client::ResolvesClientCert,
    crypto::CryptoProvider,
    server::{
        ClientHello, ResolvesServerCert, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject};

use super::pki::{KeyedCertificate, PkiError};

/// Checks chains against the CA certificates of a PEM text: for [`super::authentication::Authenticator::new`].
///
/// # Errors
/// When the text holds no certificate that can be a root.
pub fn client_verifier(ca_pem: &str) -> Result<Arc<dyn ClientCertVerifier>, PkiError> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
        let certificate = certificate.map_err(|error| PkiError::content("client CA", &error))?;
        roots.add(certificate).map_err(|error| PkiError::content("client CA", &error))?;
    }
    WebPkiClientVerifier::builder_with_provider(roots.into(), provider())
        .build()
        .map_err(|error| PkiError::content("client CA", &error))
}

/// A certificate that can be replaced while connections are made with it.
#[derive(Debug)]
pub struct Live(ArcSwap<CertifiedKey>);

impl Live {
    /// # Errors
    /// When certificate and key are not a pair or cannot be read.
    pub fn new(pair: &KeyedCertificate) -> Result<Arc<Self>, PkiError> {
        Ok(Arc::new(Self(ArcSwap::from_pointee(certified(pair)?))))
    }

    /// New connections show another certificate from now on.
    ///
    /// # Errors
    /// As [`Live::new`]; the certificate then stays what it was.
    pub fn replace(&self, pair: &KeyedCertificate) -> Result<(), PkiError> {
        self.0.store(Arc::new(certified(pair)?));
        Ok(())
    }
}

impl ResolvesServerCert for Live {
    fn resolve(&self, _client_hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

impl ResolvesClientCert for Live {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

fn certified(pair: &KeyedCertificate) -> Result<CertifiedKey, PkiError> {
    let content = |error: &dyn std::error::Error| PkiError::content("certificate", error);
    let chain = CertificateDer::pem_slice_iter(pair.certificate_pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| content(&error))?;
    let key = PrivateKeyDer::from_pem_slice(pair.key_pem.as_bytes()).map_err(|error| content(&error))?;
    let certified = CertifiedKey::from_der(chain, key, &provider()).map_err(|error| content(&error))?;
    certified.keys_match().map_err(|error| content(&error))?;
    Ok(certified)
}

/// The configuration of a listener: HTTP/2 and HTTP/1.1, client certificates optional.
///
/// # Errors
/// When the TLS library has none of its protocol versions.
pub fn server_config(certificate: Arc<Live>) -> Result<Arc<ServerConfig>, PkiError> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| PkiError::content("TLS", &error))?
        .with_client_cert_verifier(Arc::new(AnyHolder { provider: provider() }))
        .with_cert_resolver(certificate);
    // AES-128 is the cheapest that every client has, and as good: as upstream, the server chooses.
    config.ignore_client_order = true;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn provider() -> Arc<CryptoProvider> {
    let mut provider = rustls::crypto::ring::default_provider();
    provider.cipher_suites.sort_by_key(|suite| {
        use rustls::CipherSuite::*;
        match suite.suite() {
            TLS13_AES_128_GCM_SHA256 => 0,
            TLS13_AES_256_GCM_SHA384 | TLS13_CHACHA20_POLY1305_SHA256 => 1,
            TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256 | TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 => 2,
            _ => 3,
        }
    });
    Arc::new(provider)
}

/// The methods by which a verifier checks the signatures of a handshake with the algorithms of its `provider`.
macro_rules! signatures_by_provider {
    () => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            certificate: &rustls_pki_types::CertificateDer<'_>,
            signature: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            let algorithms = &self.provider.signature_verification_algorithms;
            rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &rustls_pki_types::CertificateDer<'_>,
            signature: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            let algorithms = &self.provider.signature_verification_algorithms;
            rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
            self.provider.signature_verification_algorithms.supported_schemes()
        }
    };
}
pub(crate) use signatures_by_provider;

/// Takes any certificate whose key signed the handshake.
#[derive(Debug)]
struct AnyHolder {
    provider: Arc<CryptoProvider>,
}

impl ClientCertVerifier for AnyHolder {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    signatures_by_provider!();
}
