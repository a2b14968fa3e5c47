//! What a kube-apiserver needs to be started: certificates of an own CA, a signing key, an administrator.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

/// Files and texts, all PEM.
pub(crate) struct Keys {
    pub(crate) ca: String,
    pub(crate) client_certificate: String,
    pub(crate) client_key: String,
    pub(crate) ca_path: PathBuf,
    pub(crate) serving_path: PathBuf,
    pub(crate) serving_key_path: PathBuf,
    pub(crate) account_key_path: PathBuf,
    pub(crate) account_public_path: PathBuf,
}

impl Keys {
    /// Makes everything new in `folder`.
    pub(crate) fn new(folder: &Path) -> Result<Self> {
        let ca_key = KeyPair::generate()?;
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name.push(DnType::CommonName, "bench");
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let ca = parameters.self_signed(&ca_key)?.pem();
        let issuer = Issuer::new(parameters, ca_key);

        let serving_key = KeyPair::generate()?;
        let mut parameters = CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()])?;
        parameters.distinguished_name.push(DnType::CommonName, "kube-apiserver");
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let serving = parameters.signed_by(&serving_key, &issuer)?.pem();

        let client_key = KeyPair::generate()?;
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name.push(DnType::CommonName, "bench-admin");
        parameters.distinguished_name.push(DnType::OrganizationName, "system:masters");
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let client = parameters.signed_by(&client_key, &issuer)?.pem();

        let account_key = KeyPair::generate()?;
        let write = |name: &str, text: &str| -> Result<PathBuf> {
            let path = folder.join(name);
            std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
            Ok(path)
        };
        Ok(Self {
            ca_path: write("ca.crt", &ca)?,
            serving_path: write("serving.crt", &serving)?,
            serving_key_path: write("serving.key", &serving_key.serialize_pem())?,
            account_key_path: write("account.key", &account_key.serialize_pem())?,
            account_public_path: write("account.pub", &account_key.public_key_pem())?,
            ca,
            client_certificate: client,
            client_key: client_key.serialize_pem(),
        })
    }
}

/// The command line of a kube-apiserver as a small cluster would have it.
pub(crate) fn arguments(keys: &Keys, etcd: &str, port: u16) -> Vec<String> {
    let file = |path: &Path| path.display().to_string();
    [
        ("etcd-servers", etcd.to_owned()),
        ("bind-address", "127.0.0.1".to_owned()),
        ("advertise-address", "127.0.0.1".to_owned()),
        ("secure-port", port.to_string()),
        // It refuses a loopback address otherwise.
        ("endpoint-reconciler-type", "none".to_owned()),
        ("tls-cert-file", file(&keys.serving_path)),
        ("tls-private-key-file", file(&keys.serving_key_path)),
        ("client-ca-file", file(&keys.ca_path)),
        ("service-account-issuer", "https://kubernetes.default.svc".to_owned()),
        ("service-account-key-file", file(&keys.account_public_path)),
        ("service-account-signing-key-file", file(&keys.account_key_path)),
        ("service-cluster-ip-range", "10.96.0.0/16".to_owned()),
        ("authorization-mode", "Node,RBAC".to_owned()),
        ("enable-admission-plugins", "NodeRestriction".to_owned()),
        ("allow-privileged", "true".to_owned()),
    ]
    .into_iter()
    .map(|(name, value)| format!("--{name}={value}"))
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_written_where_the_command_line_says() {
        let folder = tempfile::tempdir().unwrap();
        let keys = Keys::new(folder.path()).unwrap();
        for argument in arguments(&keys, "http://127.0.0.1:1", 2) {
            let (name, value) = argument.split_once('=').unwrap();
            if name.ends_with("-file") {
                assert!(std::fs::read_to_string(value).unwrap().starts_with("-----BEGIN"), "{argument}");
            }
        }
    }
}
