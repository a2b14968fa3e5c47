use std::time::Duration;

use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestStatus};
use k8s_openapi::jiff::Timestamp;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::pem::parse_x509_pem;

use super::request::{API_CLIENT, KUBELET_SERVING, is_for};
use super::*;

fn usages(usages: &[&str]) -> Vec<String> {
    usages.iter().map(|usage| (*usage).to_owned()).collect()
}

fn asked(name: &str, organization: &str, names: Vec<SanType>) -> Request {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.distinguished_name.push(DnType::OrganizationName, organization);
    params.subject_alt_names = names;
    let key = KeyPair::generate().expect("a key");
    let pem = params.serialize_request(&key).and_then(|request| request.pem()).expect("a request");
    Request::parse(pem.as_bytes()).expect("a valid request")
}

fn ca() -> (String, Signer) {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "kubernetes");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let key = KeyPair::generate().expect("a key");
    let certificate = params.self_signed(&key).expect("a certificate").pem();
    let _: Issuer<'_, &KeyPair> = Issuer::new(params, &key);
    let signer = Signer::new(&certificate, &key.serialize_pem()).expect("a signer");
    (certificate, signer)
}

#[test]
fn a_signed_certificate_is_the_cas_and_says_what_was_asked() {
    let (ca_pem, signer) = ca();
    let names =
        vec![SanType::DnsName("n1".try_into().expect("a name")), SanType::IpAddress([10, 0, 0, 1].into())];
    let request = asked("system:node:n1", "system:nodes", names);
    let usages = usages(&["digital signature", "key encipherment", "server auth"]);
    let now = Timestamp::from_second(1_800_000_000).expect("a time");
    let life = Duration::from_secs(3600);
    let pem = signer.sign(&request, &usages, life, [7; 16], now).expect("it is signed");

    let (_, ca) = parse_x509_pem(ca_pem.as_bytes()).expect("PEM");
    let ca = ca.parse_x509().expect("a certificate");
    let (_, signed) = parse_x509_pem(pem.as_bytes()).expect("PEM");
    let signed = signed.parse_x509().expect("a certificate");
    signed.verify_signature(Some(ca.public_key())).expect("the CA signed it");
    assert_eq!(signed.issuer(), ca.subject());
    assert_eq!(signed.subject().to_string(), "CN=system:node:n1, O=system:nodes");
    assert_eq!(signed.validity().not_before.timestamp(), now.as_second() - 300);
    assert_eq!(signed.validity().not_after.timestamp(), now.as_second() + 3600);
    let usage = signed.key_usage().expect("readable").expect("there").value;
    assert!(usage.digital_signature() && usage.key_encipherment() && !usage.key_cert_sign());
    let extended = signed.extended_key_usage().expect("readable").expect("there").value;
    assert!(extended.server_auth && !extended.client_auth);
    assert!(!signed.basic_constraints().expect("readable").expect("there").value.ca);
    let names = &signed.subject_alternative_name().expect("readable").expect("there").value.general_names;
    assert_eq!(names[..], [GeneralName::DNSName("n1"), GeneralName::IPAddress(&[10, 0, 0, 1])]);
    let authority = signed.extensions().iter().any(|extension| {
        matches!(extension.parsed_extension(), ParsedExtension::AuthorityKeyIdentifier(id) if id.key_identifier.is_some())
    });
    assert!(authority);
    assert!(signer.sign(&request, &[String::from("x")], life, [0; 16], now).is_err());
}

#[test]
fn lives_stay_within_ten_minutes_and_a_year() {
    assert_eq!(Signer::life(None), Duration::from_secs(365 * 24 * 3600));
    assert_eq!(Signer::life(Some(1)), Duration::from_secs(600));
    assert_eq!(Signer::life(Some(7200)), Duration::from_secs(7200));
    assert_eq!(Signer::life(Some(i32::MAX)), Duration::from_secs(365 * 24 * 3600));
}

#[test]
fn each_signer_takes_what_upstreams_takes() {
    let client = usages(&["client auth", "digital signature", "key encipherment"]);
    let serving = usages(&["digital signature", "server auth"]);
    let dns = || vec![SanType::DnsName("n1".try_into().expect("a name"))];
    let node = asked("system:node:n1", "system:nodes", Vec::new());
    let with = |signer: &str, request: &Request, usages: &[String]| is_for(signer, request, usages);
    let refused = |why: &str| Some(Err(why.to_owned()));
    assert_eq!(with(KUBELET_CLIENT, &node, &client), Some(Ok(())));
    assert_eq!(
        with(KUBELET_CLIENT, &node, &serving),
        refused("usages did not match [client auth digital signature key encipherment]")
    );
    let named = asked("system:node:n1", "system:nodes", dns());
    assert_eq!(with(KUBELET_CLIENT, &named, &client), refused("DNS subjectAltNames are not allowed"));
    assert_eq!(with(KUBELET_SERVING, &named, &serving), Some(Ok(())));
    assert_eq!(with(KUBELET_SERVING, &node, &serving), refused("DNS or IP subjectAltName is required"));
    let stranger = asked("alice", "system:nodes", Vec::new());
    assert_eq!(
        with(KUBELET_CLIENT, &stranger, &client),
        refused("subject common name does not begin with system:node: ")
    );
    let other = asked("system:node:n1", "devs", Vec::new());
    assert_eq!(with(KUBELET_CLIENT, &other, &client), refused("subject organization is not system:nodes"));
    assert_eq!(with(API_CLIENT, &other, &client), Some(Ok(())));
    assert_eq!(
        with(API_CLIENT, &other, &serving),
        refused("invalid usage for client certificate: server auth")
    );
    assert_eq!(with("example.com/own", &other, &client), None);
}

#[test]
fn what_is_no_request_or_not_signed_by_its_key_is_refused() {
    assert!(Request::parse(b"nonsense").is_err());
    let (ca_pem, _) = ca();
    assert_eq!(
        Request::parse(ca_pem.as_bytes()).err().as_deref(),
        Some("PEM block type must be CERTIFICATE REQUEST")
    );
}

#[test]
fn requests_are_cleaned_up_an_hour_after_the_decision_or_a_day_after_the_question() {
    let at = |second: i64| Timestamp::from_second(second).expect("a time");
    let time = |second: i64| Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(second)));
    let mut request = CertificateSigningRequest::default();
    request.metadata.creation_timestamp = time(0);
    assert_eq!(left(&request, at(3600)), Duration::from_secs(23 * 3600));
    assert_eq!(left(&request, at(90_000)), Duration::ZERO);
    let mut approved = with_condition(&request, "Approved", "r", "m");
    let conditions = approved.status.as_mut().and_then(|status| status.conditions.as_mut()).expect("one");
    conditions[0].last_update_time = time(100);
    assert_eq!(left(&approved, at(90_000)), Duration::MAX, "approved and not yet issued");
    let status: &mut CertificateSigningRequestStatus = approved.status.as_mut().expect("there");
    status.certificate = Some(ByteString(b"unreadable".to_vec()));
    assert_eq!(left(&approved, at(1900)), Duration::from_secs(1800));
    assert_eq!(left(&approved, at(3700)), Duration::ZERO);
}
