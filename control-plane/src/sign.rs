//! Signing with the CA of a data folder, offline.

use apiserver::security::pki::{CertificateSpec, issue_certificate, issue_kubeconfig};

use crate::arguments::{CertArguments, KubeconfigArguments, ServerArguments};

pub fn kubeconfig(server: &ServerArguments, request: KubeconfigArguments) -> anyhow::Result<()> {
    let mut sans: std::collections::BTreeSet<String> = server.san.iter().cloned().collect();
    sans.extend(request.ip.iter().map(ToString::to_string));
    let spec = CertificateSpec {
        common_name: request.cn,
        organization: request.org,
        sans,
        client: true,
        server: false,
    };
    Ok(issue_kubeconfig(&server.data_dir, &spec, &request.server, &request.out)?)
}

pub fn certificate(server: &ServerArguments, request: CertArguments) -> anyhow::Result<()> {
    let spec = CertificateSpec {
        common_name: request.cn,
        organization: request.org,
        sans: server.san.iter().cloned().collect(),
        client: true,
        server: true,
    };
    Ok(issue_certificate(&server.data_dir, &spec, &request.out_dir)?)
}
