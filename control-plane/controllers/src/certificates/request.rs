//! What a certificate request asks for, and which requests the signers of Kubernetes take. No IO.

use std::collections::BTreeSet;

use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::pem::parse_x509_pem;
use x509_parser::prelude::FromDer;

pub const API_CLIENT: &str = "kubernetes.io/kube-apiserver-client";
pub const KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
pub const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";
pub const LEGACY: &str = "kubernetes.io/legacy-unknown";

const NODE_PREFIX: &str = "system:node:";
const NODES: &str = "system:nodes";

/// A name that a certificate is for, besides its subject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Name {
    Dns(String),
    Email(String),
    Uri(String),
    /// 4 or 16 octets.
    Ip(Vec<u8>),
}

/// A certificate request whose signature is right.
#[derive(Debug, Clone)]
pub struct Request {
    /// The subject, DER.
    pub subject: Vec<u8>,
    /// The subject's public key info, DER.
    pub public_key: Vec<u8>,
    pub common_name: String,
    pub organizations: Vec<String>,
    pub names: Vec<Name>,
}

impl Request {
    /// Reads PEM.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(pem: &[u8]) -> Result<Self, String> {
        let (_, pem) =
            parse_x509_pem(pem).map_err(|_| "PEM block type must be CERTIFICATE REQUEST".to_owned())?;
        if pem.label != "CERTIFICATE REQUEST" {
            return Err("PEM block type must be CERTIFICATE REQUEST".to_owned());
        }
        let (_, request) =
            X509CertificationRequest::from_der(&pem.contents).map_err(|error| error.to_string())?;
        request.verify_signature().map_err(|error| format!("the request's signature is wrong: {error}"))?;
        let info = &request.certification_request_info;
        let texts = |values: Vec<Result<&str, _>>| -> Vec<String> {
            values
                .into_iter()
                .filter_map(|value: Result<&str, x509_parser::error::X509Error>| {
                    value.ok().map(str::to_owned)
                })
                .collect()
        };
        let common_names = texts(info.subject.iter_common_name().map(|name| name.as_str()).collect());
        let organizations = texts(info.subject.iter_organization().map(|name| name.as_str()).collect());
        let mut names = Vec::new();
        for extension in request.requested_extensions().into_iter().flatten() {
            if let ParsedExtension::SubjectAlternativeName(list) = extension {
                names.extend(list.general_names.iter().filter_map(name));
            }
        }
        Ok(Self {
            subject: info.subject.as_raw().to_vec(),
            public_key: info.subject_pki.raw.to_vec(),
            common_name: common_names.last().cloned().unwrap_or_default(),
            organizations,
            names,
        })
    }

    fn has(&self, kind: impl Fn(&Name) -> bool) -> bool {
        self.names.iter().any(kind)
    }

    /// The node that a kubelet's request is for: the rules that both its certificates share.
    fn of_kubelet(&self) -> Result<(), String> {
        if self.organizations != [NODES] {
            return Err("subject organization is not system:nodes".to_owned());
        }
        Ok(())
    }

    fn of_node(&self) -> Result<(), String> {
        if !self.common_name.starts_with(NODE_PREFIX) {
            return Err("subject common name does not begin with system:node: ".to_owned());
        }
        Ok(())
    }

    /// Whether a kubelet may ask for this to talk to the API server.
    ///
    /// # Errors
    /// The first rule that it breaks.
    pub fn is_kubelet_client(&self, usages: &[String]) -> Result<(), String> {
        self.of_kubelet()?;
        self.without(&[DNS, EMAIL, IP, URI])?;
        self.of_node()?;
        exactly(usages, ["client auth", "digital signature", "key encipherment"])
    }

    /// Whether a kubelet may ask for this to serve.
    ///
    /// # Errors
    /// The first rule that it breaks.
    pub fn is_kubelet_serving(&self, usages: &[String]) -> Result<(), String> {
        self.of_kubelet()?;
        if !self.has(|name| matches!(name, Name::Dns(_) | Name::Ip(_))) {
            return Err("DNS or IP subjectAltName is required".to_owned());
        }
        self.without(&[EMAIL, URI])?;
        exactly(usages, ["digital signature", "key encipherment", "server auth"])?;
        self.of_node()
    }

    fn without(&self, kinds: &[NameKind]) -> Result<(), String> {
        match kinds.iter().find(|(_, kind)| self.has(kind)) {
            Some((what, _)) => Err(format!("{what} subjectAltNames are not allowed")),
            None => Ok(()),
        }
    }
}

/// Kinds of names, as upstream calls them in a refusal.
type NameKind = (&'static str, fn(&Name) -> bool);

const DNS: NameKind = ("DNS", |name| matches!(name, Name::Dns(_)));
const EMAIL: NameKind = ("Email", |name| matches!(name, Name::Email(_)));
const IP: NameKind = ("IP", |name| matches!(name, Name::Ip(_)));
const URI: NameKind = ("URI", |name| matches!(name, Name::Uri(_)));

fn name(name: &GeneralName<'_>) -> Option<Name> {
    match name {
        GeneralName::DNSName(name) => Some(Name::Dns((*name).to_owned())),
        GeneralName::RFC822Name(name) => Some(Name::Email((*name).to_owned())),
        GeneralName::URI(name) => Some(Name::Uri((*name).to_owned())),
        GeneralName::IPAddress(octets) => Some(Name::Ip(octets.to_vec())),
        _ => None,
    }
}

/// These usages, where a key that is not RSA may do without encipherment.
fn exactly(usages: &[String], required: [&str; 3]) -> Result<(), String> {
    let given: BTreeSet<&str> = usages.iter().map(String::as_str).collect();
    let all: BTreeSet<&str> = required.into();
    let without: BTreeSet<&str> = all.iter().copied().filter(|usage| *usage != "key encipherment").collect();
    if given == all || given == without {
        return Ok(());
    }
    Err(format!("usages did not match [{}]", required.join(" ")))
}

/// Whether a signer of Kubernetes signs the request: `None` for the signers of others.
pub fn is_for(signer: &str, request: &Request, usages: &[String]) -> Option<Result<(), String>> {
    match signer {
        KUBELET_CLIENT => Some(request.is_kubelet_client(usages)),
        KUBELET_SERVING => Some(request.is_kubelet_serving(usages)),
        API_CLIENT => Some(is_api_client(usages)),
        LEGACY => Some(Ok(())),
        _ => None,
    }
}

fn is_api_client(usages: &[String]) -> Result<(), String> {
    let optional = ["digital signature", "key encipherment"];
    let other = usages.iter().find(|usage| *usage != "client auth" && !optional.contains(&usage.as_str()));
    match other {
        Some(usage) => Err(format!("invalid usage for client certificate: {usage}")),
        None if usages.iter().any(|usage| usage == "client auth") => Ok(()),
        None => Err("missing required usage for client certificate: client auth".to_owned()),
    }
}
