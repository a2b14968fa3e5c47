//! The cluster's own CA and what it signs: P-256 keys, X.509 certificates, kubeconfig files.
//!
//! Everything lives in DATA_DIR/pki. Files are made when they are missing and never replaced silently, but for
//! certificates of the server itself: those are issued again when their names change or they come close to expiry.

mod files;
mod kubeconfig;

use std::{
    collections::BTreeSet,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use ipnetwork::IpNetwork;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use x509_parser::{extensions::GeneralName, pem::parse_x509_pem};

pub use self::kubeconfig::{Kubeconfig, write_kubeconfig};
use super::GROUP_MASTERS;

const CA_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
const CERTIFICATE_LIFE: Duration = Duration::from_secs(365 * 24 * 3600);
/// A certificate is issued again when less than this is left of it.
const RENEW_BEFORE: Duration = Duration::from_secs(30 * 24 * 3600);
/// Certificates begin this long ago, for clocks that are behind.
const BACKDATE: Duration = Duration::from_secs(300);

#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    #[error("cannot {action} {path}")]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{what} cannot be used: {detail}")]
    Content { what: String, detail: String },
}

impl PkiError {
    pub(super) fn content(what: impl Into<String>, error: &dyn std::error::Error) -> Self {
        Self::Content { what: what.into(), detail: error.to_string() }
    }
}

/// The name of those who may act for others by headers.
pub const FRONT_PROXY_CLIENT: &str = "front-proxy-client";

/// A certificate with its private key, both PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyedCertificate {
    pub certificate_pem: String,
    pub key_pem: String,
}

/// What a certificate is to say.
#[derive(Clone, Debug, Default)]
pub struct CertificateSpec {
    /// The user name.
    pub common_name: String,
    /// The group; empty for none.
    pub organization: String,
    /// DNS names and IP addresses.
    pub sans: BTreeSet<String>,
    pub client: bool,
    pub server: bool,
}

/// Names and addresses that the server answers to.
#[derive(Clone, Debug)]
pub struct ServerNames {
    pub advertise_address: IpAddr,
    pub service_cidrs: Vec<IpNetwork>,
    pub cluster_domain: String,
    /// More names and addresses, from the command line.
    pub extra: Vec<String>,
}

impl ServerNames {
    /// The subject alternative names of the serving certificate.
    pub fn sans(&self) -> BTreeSet<String> {
        let service = format!("kubernetes.default.svc.{}", self.cluster_domain);
        let names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", &service, "localhost"];
        let addresses = ["127.0.0.1".to_owned(), "::1".to_owned(), self.advertise_address.to_string()];
        let names = names.into_iter().map(str::to_owned).chain(addresses);
        names
            .chain(self.service_cidrs.iter().filter_map(first_address).map(|ip| ip.to_string()))
            .chain(self.extra.iter().cloned())
            .collect()
    }
}

/// The address of the `kubernetes` Service: the first of the range after the network's own.
fn first_address(range: &IpNetwork) -> Option<IpAddr> {
    match range {
        IpNetwork::V4(range) => range.nth(1).map(IpAddr::V4),
        IpNetwork::V6(range) => {
            let first = u128::from(range.network()).checked_add(1)?;
            Some(IpAddr::V6(first.into()))
        }
    }
}

/// A certificate authority that can sign.
pub struct Ca {
    certificate_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    /// Loads `ca.crt` and `ca.key` from a folder, or makes both when neither is there.
    ///
    /// # Errors
    /// When only one is there, or they cannot be read, written or used.
    pub fn load_or_create(folder: &Path) -> Result<Self, PkiError> {
        let (certificate, key) = (folder.join("ca.crt"), folder.join("ca.key"));
        match (files::read(&certificate)?, files::read(&key)?) {
            (Some(certificate_pem), Some(key_pem)) => {
                Self::from_pem(&certificate_pem, &key_pem).map_err(|error| PkiError::Content {
                    what: folder.display().to_string(),
                    detail: error.to_string(),
                })
            }
            (None, None) => {
                let made = Self::generate("kubernetes")?;
                files::write_private(&key, &made.key_pem)?;
                files::write(&certificate, &made.certificate_pem)?;
                Self::from_pem(&made.certificate_pem, &made.key_pem)
            }
            (certificate_there, _) => {
                let missing = if certificate_there.is_some() { &key } else { &certificate };
                let detail = "it is missing while its counterpart is there: restore it, or move the whole folder away \
                              to begin with a new CA";
                Err(PkiError::Content { what: missing.display().to_string(), detail: detail.to_owned() })
            }
        }
    }

    /// # Errors
    /// When the texts are not a CA certificate and its key.
    pub fn from_pem(certificate_pem: &str, key_pem: &str) -> Result<Self, PkiError> {
        let key = KeyPair::from_pem(key_pem).map_err(|error| PkiError::content("CA key", &error))?;
        let (_, pem) = parse_x509_pem(certificate_pem.as_bytes())
            .map_err(|error| PkiError::content("CA certificate", &error))?;
        let certificate = pem.parse_x509().map_err(|error| PkiError::content("CA certificate", &error))?;
        if certificate.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
            let detail = "the key is not the certificate's".to_owned();
            return Err(PkiError::Content { what: "CA".to_owned(), detail });
        }
        let issuer = Issuer::from_ca_cert_pem(certificate_pem, key)
            .map_err(|error| PkiError::content("CA certificate", &error))?;
        Ok(Self { certificate_pem: certificate_pem.to_owned(), issuer })
    }

    /// A new self-signed CA.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn generate(common_name: &str) -> Result<KeyedCertificate, PkiError> {
        let failed = |error: rcgen::Error| PkiError::content("a new CA", &error);
        let key = KeyPair::generate().map_err(failed)?;
        let mut params = params(CA_LIFE);
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        let certificate = params.self_signed(&key).map_err(failed)?;
        Ok(KeyedCertificate { certificate_pem: certificate.pem(), key_pem: key.serialize_pem() })
    }

    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// Signs a certificate for a new key.
    ///
    /// # Errors
    /// When a name cannot be in a certificate.
    pub fn issue(&self, spec: &CertificateSpec) -> Result<KeyedCertificate, PkiError> {
        let failed = |error: rcgen::Error| {
            PkiError::content(format!("a certificate for {}", spec.common_name), &error)
        };
        let key = KeyPair::generate().map_err(failed)?;
        let mut params = params(CERTIFICATE_LIFE);
        params.distinguished_name.push(DnType::CommonName, spec.common_name.as_str());
        if !spec.organization.is_empty() {
            params.distinguished_name.push(DnType::OrganizationName, spec.organization.as_str());
        }
        for name in &spec.sans {
            let san = match name.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(name.as_str().try_into().map_err(failed)?),
            };
            params.subject_alt_names.push(san);
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        if spec.client {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
        }
        if spec.server {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer).map_err(failed)?;
        Ok(KeyedCertificate { certificate_pem: certificate.pem(), key_pem: key.serialize_pem() })
    }

    /// Loads a certificate and its key, and issues both anew when they are missing, do not say what `spec` says, were
    /// signed by another CA or come close to expiry.
    fn load_or_issue(
        &self,
        folder: &Path,
        name: &str,
        spec: &CertificateSpec,
    ) -> Result<KeyedCertificate, PkiError> {
        let (certificate, key) = (folder.join(format!("{name}.crt")), folder.join(format!("{name}.key")));
        if let (Some(certificate_pem), Some(key_pem)) = (files::read(&certificate)?, files::read(&key)?) {
            let now = jiff::Timestamp::now().as_second();
            if self.still_good(&certificate_pem, &key_pem, spec, now) {
                return Ok(KeyedCertificate { certificate_pem, key_pem });
            }
            tracing::info!(path = %certificate.display(), "certificate is issued anew");
        }
        let issued = self.issue(spec)?;
        files::write_private(&key, &issued.key_pem)?;
        files::write(&certificate, &issued.certificate_pem)?;
        Ok(issued)
    }

    /// `now` in seconds since the epoch.
    fn still_good(&self, certificate_pem: &str, key_pem: &str, spec: &CertificateSpec, now: i64) -> bool {
        let Ok((_, pem)) = parse_x509_pem(certificate_pem.as_bytes()) else { return false };
        let Ok(certificate) = pem.parse_x509() else { return false };
        let Ok((_, ca)) = parse_x509_pem(self.certificate_pem.as_bytes()) else { return false };
        let Ok(ca) = ca.parse_x509() else { return false };
        let Ok(key) = KeyPair::from_pem(key_pem) else { return false };
        let left = certificate.validity().not_after.timestamp() - now;
        let sans = certificate.subject_alternative_name().ok().flatten();
        let names = sans.iter().flat_map(|extension| &extension.value.general_names).filter_map(san_text);
        left > RENEW_BEFORE.as_secs().cast_signed()
            && names.collect::<BTreeSet<_>>() == spec.sans
            && certificate.public_key().subject_public_key.data.as_ref() == key.public_key_raw()
            && certificate.verify_signature(Some(ca.public_key())).is_ok()
    }
}

fn san_text(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match <[u8; 4]>::try_from(*bytes) {
            Ok(octets) => Some(IpAddr::from(octets).to_string()),
            Err(_) => <[u8; 16]>::try_from(*bytes).ok().map(|octets| IpAddr::from(octets).to_string()),
        },
        _ => None,
    }
}

fn params(life: Duration) -> CertificateParams {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let now = Duration::from_secs(jiff::Timestamp::now().as_second().unsigned_abs());
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.not_before = epoch + (now - BACKDATE);
    params.not_after = epoch + (now + life);
    params
}

/// All key material of a server.
pub struct Pki {
    pub ca: Ca,
    pub serving: KeyedCertificate,
    /// What the server shows to kubelets.
    pub kubelet_client: KeyedCertificate,
    /// Signs what this server shows to aggregated ones, and what front proxies show to it.
    pub front_proxy_ca_pem: String,
    pub front_proxy_client: KeyedCertificate,
    /// Signs ServiceAccount tokens: a P-256 key in PKCS #8.
    pub service_account_key_pem: String,
    folder: PathBuf,
}

impl Pki {
    /// Loads DATA_DIR/pki, making what is missing, and DATA_DIR/admin.kubeconfig for `server`.
    ///
    /// # Errors
    /// When a file cannot be read, written or used; the error names it.
    pub fn load_or_create(data_dir: &Path, names: &ServerNames, server: &str) -> Result<Self, PkiError> {
        let folder = data_dir.join("pki");
        files::create_folder(&folder)?;
        let ca = Ca::load_or_create(&folder)?;
        let serving = ca.load_or_issue(&folder, "apiserver", &serving_spec(names))?;
        let kubelet_client = ca.load_or_issue(&folder, "kubelet-client", &kubelet_client_spec())?;
        let service_account_key_pem = service_account_key(&folder)?;
        let (front_proxy_ca_pem, front_proxy_client) = front_proxy(&folder)?;
        let pki = Self {
            ca,
            serving,
            kubelet_client,
            front_proxy_ca_pem,
            front_proxy_client,
            service_account_key_pem,
            folder,
        };
        let admin =
            pki.ca.load_or_issue(&pki.folder, "admin", &client_spec("kubernetes-admin", GROUP_MASTERS))?;
        write_kubeconfig(
            &data_dir.join("admin.kubeconfig"),
            &Kubeconfig {
                server,
                ca_pem: pki.ca.certificate_pem(),
                user: "kubernetes-admin",
                client: &admin,
            },
        )?;
        Ok(pki)
    }

    /// Reads the CA and the server's own certificates again, and issues anew those that come close to expiry.
    ///
    /// # Errors
    /// As [`Pki::load_or_create`].
    pub fn reload(&self, names: &ServerNames) -> Result<Self, PkiError> {
        let ca = Ca::load_or_create(&self.folder)?;
        let serving = ca.load_or_issue(&self.folder, "apiserver", &serving_spec(names))?;
        let kubelet_client = ca.load_or_issue(&self.folder, "kubelet-client", &kubelet_client_spec())?;
        let service_account_key_pem = self.service_account_key_pem.clone();
        let (front_proxy_ca_pem, front_proxy_client) = front_proxy(&self.folder)?;
        Ok(Self {
            ca,
            serving,
            kubelet_client,
            front_proxy_ca_pem,
            front_proxy_client,
            service_account_key_pem,
            folder: self.folder.clone(),
        })
    }

    pub fn ca_path(&self) -> PathBuf {
        self.folder.join("ca.crt")
    }
}

/// Signs with the CA of an existing data folder and writes `ca.crt`, `tls.crt` and `tls.key`: `seaway-server cert`.
///
/// # Errors
/// As [`Pki::load_or_create`].
pub fn issue_certificate(data_dir: &Path, spec: &CertificateSpec, out_dir: &Path) -> Result<(), PkiError> {
    let ca = existing_ca(data_dir)?;
    let issued = ca.issue(spec)?;
    files::create_folder(out_dir)?;
    files::write(&out_dir.join("ca.crt"), ca.certificate_pem())?;
    files::write_private(&out_dir.join("tls.key"), &issued.key_pem)?;
    files::write(&out_dir.join("tls.crt"), &issued.certificate_pem)
}

/// Signs with the CA of an existing data folder and writes a kubeconfig: `seaway-server kubeconfig`.
///
/// # Errors
/// As [`Pki::load_or_create`].
pub fn issue_kubeconfig(
    data_dir: &Path,
    spec: &CertificateSpec,
    server: &str,
    out: &Path,
) -> Result<(), PkiError> {
    let ca = existing_ca(data_dir)?;
    let issued = ca.issue(&CertificateSpec { client: true, ..spec.clone() })?;
    let ca_pem = ca.certificate_pem();
    write_kubeconfig(out, &Kubeconfig { server, ca_pem, user: &spec.common_name, client: &issued })
}

fn serving_spec(names: &ServerNames) -> CertificateSpec {
    CertificateSpec {
        common_name: "kube-apiserver".to_owned(),
        sans: names.sans(),
        server: true,
        ..CertificateSpec::default()
    }
}

fn kubelet_client_spec() -> CertificateSpec {
    client_spec("kube-apiserver-kubelet-client", GROUP_MASTERS)
}

/// A certificate for a client: a user and a group.
pub fn client_spec(common_name: &str, organization: &str) -> CertificateSpec {
    CertificateSpec {
        common_name: common_name.to_owned(),
        organization: organization.to_owned(),
        client: true,
        ..CertificateSpec::default()
    }
}

/// The CA of a data folder that a server has started on; commands that sign offline must not make a CA by mistake. They may
/// run beside the server's first start, which makes it.
fn existing_ca(data_dir: &Path) -> Result<Ca, PkiError> {
    let folder = data_dir.join("pki");
    if files::read(&folder.join("ca.crt"))?.is_none() {
        let detail =
            "there is no CA yet: start seaway-server with this --data-dir once, it makes it".to_owned();
        return Err(PkiError::Content { what: folder.join("ca.crt").display().to_string(), detail });
    }
    Ca::load_or_create(&folder)
}

/// A CA of its own in a folder of its own: whoever holds a certificate of it may say who it acts for.
fn front_proxy(folder: &Path) -> Result<(String, KeyedCertificate), PkiError> {
    let folder = folder.join("front-proxy");
    files::create_folder(&folder)?;
    let ca = Ca::load_or_create(&folder)?;
    let client = ca.load_or_issue(&folder, "client", &client_spec(FRONT_PROXY_CLIENT, ""))?;
    Ok((ca.certificate_pem().to_owned(), client))
}

fn service_account_key(folder: &Path) -> Result<String, PkiError> {
    let path = folder.join("sa.key");
    let key = match files::read(&path)? {
        Some(pem) => {
            KeyPair::from_pem(&pem).map_err(|error| PkiError::content(path.display().to_string(), &error))?
        }
        None => {
            let key = KeyPair::generate().map_err(|error| PkiError::content("a new key", &error))?;
            files::write_private(&path, &key.serialize_pem())?;
            key
        }
    };
    files::write(&folder.join("sa.pub"), &key.public_key_pem())?;
    Ok(key.serialize_pem())
}

#[cfg(test)]
mod tests;
