//! Kubeconfig files with everything embedded, so that one file is all a client needs.

use std::path::Path;

use base64::{Engine, engine::general_purpose::STANDARD};

use super::{KeyedCertificate, PkiError, files};

/// What a kubeconfig says.
pub struct Kubeconfig<'a> {
    /// The `https://` URL of the server.
    pub server: &'a str,
    pub ca_pem: &'a str,
    pub user: &'a str,
    pub client: &'a KeyedCertificate,
}

impl Kubeconfig<'_> {
    /// The file's text. JSON strings are YAML strings, so names need no other quoting.
    pub fn to_yaml(&self) -> String {
        let quoted = |text: &str| serde_json::Value::from(text).to_string();
        let (user, context) = (quoted(self.user), quoted(&format!("{}@seaway", self.user)));
        format!(
            "apiVersion: v1\nkind: Config\nclusters:\n- name: seaway\n  cluster:\n    server: {server}\n    \
             certificate-authority-data: {ca}\nusers:\n- name: {user}\n  user:\n    client-certificate-data: \
             {certificate}\n    client-key-data: {key}\ncontexts:\n- name: {context}\n  context:\n    cluster: \
             seaway\n    user: {user}\ncurrent-context: {context}\n",
            server = quoted(self.server),
            ca = STANDARD.encode(self.ca_pem),
            certificate = STANDARD.encode(&self.client.certificate_pem),
            key = STANDARD.encode(&self.client.key_pem),
        )
    }
}

/// Writes a kubeconfig that only its owner may read.
///
/// # Errors
/// When the file cannot be written.
pub fn write_kubeconfig(path: &Path, kubeconfig: &Kubeconfig<'_>) -> Result<(), PkiError> {
    files::write_private(path, &kubeconfig.to_yaml())
}
