//! CertificateSigningRequests from the question to the certificate, against a real server.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::rbac::v1::ClusterRoleBinding;
use kube::Api;
use kube::api::PostParams;
use rcgen::{CertificateParams, DnType, KeyPair};
use serde_json::{Value, json};
use support::{Cluster, client_of, create, eventually, refused};

fn request(common_name: &str, organization: &str) -> Value {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.distinguished_name.push(DnType::OrganizationName, organization);
    let pem = params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap();
    serde_json::to_value(k8s_openapi::ByteString(pem.into_bytes())).unwrap()
}

fn question(name: &str, request: Value, signer: &str, usages: &[&str]) -> Value {
    let spec = json!({ "request": request, "signerName": signer, "usages": usages, "username": "mallory" });
    json!({ "metadata": { "name": name }, "spec": spec })
}

const KUBELET: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const CLIENT: [&str; 2] = ["client auth", "digital signature"];

async fn issued(requests: &Api<CertificateSigningRequest>, name: &str) -> CertificateSigningRequest {
    eventually("the certificate", async || {
        let request = requests.get(name).await.unwrap();
        let status = request.status.clone().unwrap_or_default();
        if status.certificate.is_some() { Ok(request) } else { Err(status) }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bootstrapping_kubelet_gets_its_certificate_and_others_wait_for_a_person() {
    let cluster = Cluster::start().await;
    let bindings = Api::<ClusterRoleBinding>::all(cluster.client());
    for (name, role) in [
        ("bootstrap", "system:node-bootstrapper"),
        ("approve", "system:certificates.k8s.io:certificatesigningrequests:nodeclient"),
    ] {
        let subject = json!({ "apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "system:bootstrappers" });
        let role = json!({ "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role });
        create(&bindings, json!({ "metadata": { "name": name }, "roleRef": role, "subjects": [subject] }))
            .await;
    }
    let admin = Api::<CertificateSigningRequest>::all(cluster.client());
    let kubelet = client_of(&cluster.server, "system:bootstrap:abc", "system:bootstrappers");
    let mine = Api::<CertificateSigningRequest>::all(kubelet);

    let asked = question("node", request("system:node:n1", "system:nodes"), KUBELET, &CLIENT);
    let made = create(&mine, asked).await;
    assert_eq!(made.spec.username.as_deref(), Some("system:bootstrap:abc"), "not who the client says it is");
    assert!(made.spec.groups.unwrap().contains(&"system:bootstrappers".to_owned()));
    let signed = issued(&admin, "node").await;
    let conditions = signed.status.as_ref().unwrap().conditions.as_ref().unwrap();
    assert_eq!(
        conditions[0].message.as_deref(),
        Some("Auto approving kubelet client certificate after SubjectAccessReview.")
    );
    let pem = signed.status.unwrap().certificate.unwrap().0;
    let (_, pem) = x509_parser::pem::parse_x509_pem(&pem).unwrap();
    assert_eq!(pem.parse_x509().unwrap().subject().to_string(), "CN=system:node:n1, O=system:nodes");

    let person = question("alice", request("alice", "devs"), "kubernetes.io/kube-apiserver-client", &CLIENT);
    let waiting = create(&admin, person).await;
    let wrong = question("wrong", request("alice", "devs"), KUBELET, &CLIENT);
    let wrong = create(&admin, wrong).await;
    for request in [waiting, wrong] {
        let name = request.metadata.name.clone().unwrap();
        let mut approved = request;
        approved.status =
            serde_json::from_value(json!({ "conditions": [{ "type": "Approved", "status": "True" }] }))
                .unwrap();
        let params = PostParams::default();
        admin
            .replace_subresource::<CertificateSigningRequest>("approval", &name, &params, &approved)
            .await
            .unwrap();
    }
    issued(&admin, "alice").await;
    let failed = eventually("the request to fail", async || {
        let conditions =
            admin.get("wrong").await.unwrap().status.unwrap_or_default().conditions.unwrap_or_default();
        conditions.iter().find(|it| it.type_ == "Failed").cloned().ok_or(conditions)
    })
    .await;
    assert_eq!(failed.reason.as_deref(), Some("SignerValidationFailure"));
    assert_eq!(failed.message.as_deref(), Some("subject organization is not system:nodes"));

    let nonsense = question("nonsense", json!("bm9uc2Vuc2U="), "example.com/x", &["client auth", "flying"]);
    let why = refused(&admin, nonsense).await;
    assert!(
        why.contains("PEM block type must be CERTIFICATE REQUEST") && why.contains("\"flying\""),
        "{why}"
    );
    cluster.stop().await;
}
