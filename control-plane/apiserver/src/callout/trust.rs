//! Which certificates of others are believed: those of a `caBundle`, of the machine's roots, or any.
//!
//! As with upstream, a server may also show a certificate that is itself in the bundle: many webhooks sign their own, as a
//! CA that is its own leaf.

use std::sync::Arc;

use rustls::{
    CertificateError, ClientConfig, Error, RootCertStore,
    client::{
        WebPkiServerVerifier,
        danger::{ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::CryptoProvider,
    server::ParsedCertificate,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::security::tls::{Live, signatures_by_provider};

/// `identity` is shown to the server.
///
/// # Errors
/// A text, where the bundle holds nothing that can be a root.
pub(super) fn client_config(
    ca_bundle: &[u8],
    skip_verify: bool,
    identity: Option<&Arc<Live>>,
) -> Result<Arc<ClientConfig>, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Bundle::new(ca_bundle, skip_verify, Arc::clone(&provider))?;
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let config = match identity {
        None => builder.with_no_client_auth(),
        Some(identity) => builder.with_client_cert_resolver(Arc::clone(identity) as _),
    };
    Ok(Arc::new(config))
}

#[derive(Debug)]
struct Bundle {
    certificates: Vec<CertificateDer<'static>>,
    /// `None` where any certificate will do.
    chains: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
}

impl Bundle {
    fn new(pem: &[u8], skip_verify: bool, provider: Arc<CryptoProvider>) -> Result<Self, String> {
        if skip_verify {
            return Ok(Self { certificates: Vec::new(), chains: None, provider });
        }
        let mut roots = RootCertStore::empty();
        let certificates = if pem.is_empty() {
            rustls_native_certs::load_native_certs().certs
        } else {
            CertificateDer::pem_slice_iter(pem)
                .collect::<Result<Vec<_>, _>>()
                .map_err(|error| format!("unable to load root certificates: {error}"))?
        };
        roots.add_parsable_certificates(certificates.iter().cloned());
        if roots.is_empty() {
            return Err("unable to load root certificates: unable to parse bytes as PEM block".to_owned());
        }
        let chains = WebPkiServerVerifier::builder_with_provider(roots.into(), Arc::clone(&provider))
            .build()
            .map_err(|error| error.to_string())?;
        // Only a bundle may hold its own leaf: the machine's roots are no servers.
        let certificates = if pem.is_empty() { Vec::new() } else { certificates };
        Ok(Self { certificates, chains: Some(chains), provider })
    }

    fn is_own_leaf(
        &self,
        leaf: &CertificateDer<'_>,
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), Error> {
        if !self.certificates.iter().any(|certificate| certificate.as_ref() == leaf.as_ref()) {
            return Err(CertificateError::UnknownIssuer.into());
        }
        verify_server_name(&ParsedCertificate::try_from(leaf)?, name)?;
        let (_, parsed) =
            X509Certificate::from_der(leaf).map_err(|_| Error::from(CertificateError::BadEncoding))?;
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        if now < parsed.validity().not_before.timestamp() {
            return Err(CertificateError::NotValidYet.into());
        }
        if now > parsed.validity().not_after.timestamp() {
            return Err(CertificateError::Expired.into());
        }
        Ok(())
    }
}

impl ServerCertVerifier for Bundle {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(chains) = &self.chains else { return Ok(ServerCertVerified::assertion()) };
        let verdict = chains.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        verdict.or_else(|error| match self.is_own_leaf(end_entity, server_name, now) {
            Ok(()) => Ok(ServerCertVerified::assertion()),
            Err(_) => Err(error),
        })
    }

    signatures_by_provider!();
}
