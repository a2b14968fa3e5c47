//! Who may approve and sign certificate requests, and attest trust bundles, signer by signer; and that nobody gets a
//! client certificate of `system:masters` from the cluster.

use api::{field::quote, status::Status};
use base64::Engine as _;
use serde_json::Value;
use x509_parser::{certification_request::X509CertificationRequest, prelude::FromDer as _};

use super::{Lookup, Operation, Plugin, Request};
use crate::{
    registry::fields::*,
    security::{Attributes, GROUP_MASTERS},
};

const GROUP: &str = "certificates.k8s.io";
const REQUESTS: &str = "certificatesigningrequests";
const API_CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client";

pub(super) struct CertificateApproval;
pub(super) struct CertificateSigning;
pub(super) struct ClusterTrustBundleAttest;
pub(super) struct CertificateSubjectRestriction;

impl Plugin for CertificateApproval {
    fn validate(&self, request: &Request<'_>, _object: &Value, lookup: &dyn Lookup) -> Result<(), Status> {
        let Some(old) = update_of(request, "approval") else { return Ok(()) };
        // The stored name counts: a changed one is refused later.
        let signer = text(old, "/spec/signerName");
        if may(request, lookup, "approve", signer) {
            return Ok(());
        }
        Err(request
            .forbidden(format!("user not permitted to approve requests with signerName {}", quote(signer))))
    }
}

impl Plugin for CertificateSigning {
    fn validate(&self, request: &Request<'_>, object: &Value, lookup: &dyn Lookup) -> Result<(), Status> {
        let Some(old) = update_of(request, "status") else { return Ok(()) };
        let unchanged = |field| same(at(old, field), at(object, field));
        if unchanged("/status/certificate") && unchanged("/status/conditions") {
            return Ok(());
        }
        let signer = text(old, "/spec/signerName");
        if may(request, lookup, "sign", signer) {
            return Ok(());
        }
        Err(request
            .forbidden(format!("user not permitted to sign requests with signerName {}", quote(signer))))
    }
}

impl Plugin for ClusterTrustBundleAttest {
    fn validate(&self, request: &Request<'_>, object: &Value, lookup: &dyn Lookup) -> Result<(), Status> {
        let writes = matches!(request.operation, Operation::Create | Operation::Update);
        let signer = text(object, "/spec/signerName");
        if !writes || !request.is_any_part_of(GROUP, "clustertrustbundles") || signer.is_empty() {
            return Ok(());
        }
        let unchanged = request.old.is_some_and(|old| same(at(old, "/spec"), at(object, "/spec")));
        if unchanged || may(request, lookup, "attest", signer) {
            return Ok(());
        }
        Err(request.forbidden(format!("user not permitted to attest for signerName {}", quote(signer))))
    }
}

impl Plugin for CertificateSubjectRestriction {
    fn validate(&self, request: &Request<'_>, object: &Value, _lookup: &dyn Lookup) -> Result<(), Status> {
        if !request.creates(GROUP, REQUESTS) || text(object, "/spec/signerName") != API_CLIENT_SIGNER {
            return Ok(());
        }
        let organizations = organizations(text(object, "/spec/request"))
            .map_err(|why| request.forbidden(format!("failed to parse CSR: {why}")))?;
        if organizations.iter().any(|organization| organization == GROUP_MASTERS) {
            return Err(request.forbidden(format!(
                "use of {API_CLIENT_SIGNER} signer with {GROUP_MASTERS} group is not allowed"
            )));
        }
        Ok(())
    }
}

/// The stored request, where this is an update of that subresource of one.
fn update_of<'a>(request: &Request<'a>, subresource: &str) -> Option<&'a Value> {
    let is_update = request.operation == Operation::Update
        && request.is_any_part_of(GROUP, REQUESTS)
        && request.subresource == subresource;
    request.old.filter(|_| is_update)
}

/// Whether the user has a verb on the signer, by its name or by `domain/*`.
fn may(request: &Request<'_>, lookup: &dyn Lookup, verb: &str, signer: &str) -> bool {
    let domain = signer.split('/').next().unwrap_or_default();
    [signer.to_owned(), format!("{domain}/*")].into_iter().any(|name| {
        let attributes = Attributes {
            verb: verb.to_owned(),
            group: GROUP.to_owned(),
            version: "*".to_owned(),
            resource: "signers".to_owned(),
            name,
            is_resource: true,
            ..Attributes::default()
        };
        lookup.allows(request.user, &attributes)
    })
}

/// The organizations of the subject of a request: PEM, in base64.
fn organizations(request: &str) -> Result<Vec<String>, String> {
    with_request(request, |request| {
        let subject = &request.certification_request_info.subject;
        subject.iter_organization().filter_map(|value| value.as_str().ok()).map(str::to_owned).collect()
    })
}

/// The common name of the subject of a request.
pub(super) fn common_name(request: &str) -> Result<String, String> {
    with_request(request, |request| {
        let mut names = request.certification_request_info.subject.iter_common_name();
        names.next().and_then(|name| name.as_str().ok()).unwrap_or_default().to_owned()
    })
}

fn with_request<T>(
    request: &str,
    read: impl FnOnce(&X509CertificationRequest<'_>) -> T,
) -> Result<T, String> {
    const WRONG_TYPE: &str = "PEM block type must be CERTIFICATE REQUEST";
    let pem = base64::engine::general_purpose::STANDARD.decode(request).map_err(|error| error.to_string())?;
    let (_, pem) = x509_parser::pem::parse_x509_pem(&pem).map_err(|_| WRONG_TYPE.to_owned())?;
    if pem.label != "CERTIFICATE REQUEST" {
        return Err(WRONG_TYPE.to_owned());
    }
    let (_, parsed) = X509CertificationRequest::from_der(&pem.contents).map_err(|error| error.to_string())?;
    Ok(read(&parsed))
}

#[cfg(test)]
mod tests {
    use api::schema::builtin;
    use serde_json::json;

    use super::*;
    use crate::{
        admission::{Options, tests::Objects},
        handlers::Target,
        kinds::Kinds,
        security::Identity,
    };

    /// Lets everybody have a verb on a signer.
    struct Allowing(&'static str, &'static str);

    impl Lookup for Allowing {
        fn get(&self, _group: &str, _plural: &str, _namespace: &str, _name: &str) -> Option<Value> {
            None
        }

        fn list(&self, _group: &str, _plural: &str, _namespace: &str) -> Vec<Value> {
            Vec::new()
        }

        fn allows(&self, _user: &Identity, attributes: &Attributes) -> bool {
            attributes.resource == "signers"
                && (attributes.verb.as_str(), attributes.name.as_str()) == (self.0, self.1)
        }
    }

    fn judge(
        plugin: &dyn Plugin,
        lookup: &dyn Lookup,
        subresource: &str,
        object: &Value,
        old: Option<&Value>,
    ) -> Result<(), String> {
        let resource = builtin().resources().iter().find(|r| r.plural == REQUESTS).unwrap();
        let (kinds, target) = (Kinds::new(builtin()), Target::new(resource));
        let request = Request {
            operation: if old.is_some() { Operation::Update } else { Operation::Create },
            kinds: &kinds,
            target: &target,
            subresource,
            namespace: "",
            name: "c",
            user: &Identity::default(),
            old,
            dry_run: false,
            options: Options::None,
        };
        plugin.validate(&request, object, lookup).map_err(|status| status.message)
    }

    #[test]
    fn approving_and_signing_need_rights_on_the_signer() {
        let old = json!({"spec": {"signerName": "example.com/a"}});
        let nobody = Objects::default();
        let refused = judge(&CertificateApproval, &nobody, "approval", &old, Some(&old)).unwrap_err();
        assert_eq!(
            refused,
            "certificatesigningrequests.certificates.k8s.io \"c\" is forbidden: user not permitted to approve requests \
             with signerName \"example.com/a\""
        );
        for lookup in [Allowing("approve", "example.com/a"), Allowing("approve", "example.com/*")] {
            assert_eq!(judge(&CertificateApproval, &lookup, "approval", &old, Some(&old)), Ok(()));
        }
        assert!(
            judge(&CertificateApproval, &Allowing("sign", "example.com/a"), "approval", &old, Some(&old))
                .is_err()
        );
        assert_eq!(
            judge(&CertificateSigning, &nobody, "status", &old, Some(&old)),
            Ok(()),
            "nothing is signed"
        );
        let mut signed = old.clone();
        signed["status"] = json!({"certificate": "eA=="});
        assert!(judge(&CertificateSigning, &nobody, "status", &signed, Some(&old)).is_err());
        assert_eq!(
            judge(&CertificateSigning, &Allowing("sign", "example.com/*"), "status", &signed, Some(&old)),
            Ok(())
        );
    }

    #[test]
    fn nobody_asks_for_a_certificate_of_the_masters() {
        let request = |organization: &str, signer: &str| {
            let mut params = rcgen::CertificateParams::default();
            params.distinguished_name.push(rcgen::DnType::CommonName, "jane");
            params.distinguished_name.push(rcgen::DnType::OrganizationName, organization);
            let key = rcgen::KeyPair::generate().unwrap();
            let pem = params.serialize_request(&key).unwrap().pem().unwrap();
            let pem = base64::engine::general_purpose::STANDARD.encode(pem);
            json!({"spec": {"signerName": signer, "request": pem}})
        };
        let judge =
            |object: &Value| judge(&CertificateSubjectRestriction, &Objects::default(), "", object, None);
        let refused = judge(&request("system:masters", API_CLIENT_SIGNER)).unwrap_err();
        assert!(
            refused.ends_with(
                "use of kubernetes.io/kube-apiserver-client signer with system:masters group is not allowed"
            ),
            "{refused}"
        );
        assert_eq!(judge(&request("people", API_CLIENT_SIGNER)), Ok(()));
        assert_eq!(judge(&request("system:masters", "example.com/a")), Ok(()));
        assert!(judge(&json!({"spec": {"signerName": API_CLIENT_SIGNER, "request": "eA=="}})).is_err());
        let asked = request("people", API_CLIENT_SIGNER);
        assert_eq!(common_name(text(&asked, "/spec/request")).as_deref(), Ok("jane"));
    }
}
