use std::collections::BTreeSet;

use http::HeaderValue;
use rustls_pki_types::pem::PemObject;

use super::*;
use crate::security::{
    pki::{Ca, CertificateSpec, KeyedCertificate, client_spec},
    tls,
    tokens::{Live, Reference, TokenSpec},
};

const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// Every object is there, with the uid `u`.
struct All;

impl BoundObjects for All {
    fn find(&self, _plural: &str, _namespace: Option<&str>, _name: &str) -> Option<Live> {
        Some(Live { uid: "u".to_owned(), deletion: None })
    }
}

fn ca(name: &str) -> Ca {
    let made = Ca::generate(name).unwrap();
    Ca::from_pem(&made.certificate_pem, &made.key_pem).unwrap()
}

fn authenticator(ca: &Ca) -> (Authenticator, Arc<Tokens>) {
    let key = rcgen::KeyPair::generate().unwrap().serialize_pem();
    let tokens = Arc::new(Tokens::new(ISSUER, &key).unwrap());
    let verifier = tls::client_verifier(ca.certificate_pem()).unwrap();
    (Authenticator::new(verifier, tokens.clone(), Arc::new(All)), tokens)
}

fn chain(issued: &KeyedCertificate) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(issued.certificate_pem.as_bytes()).collect::<Result<_, _>>().unwrap()
}

fn bearer(token: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(header::AUTHORIZATION, HeaderValue::from_str(&format!("Bearer {token}")).unwrap());
    headers
}

fn token(tokens: &Tokens, seconds: i64) -> String {
    let account = Reference { name: "robot".to_owned(), uid: "u".to_owned() };
    let spec = TokenSpec {
        namespace: "ns".to_owned(),
        service_account: Some(account),
        expiration_seconds: seconds,
        ..TokenSpec::default()
    };
    tokens.issue(&spec, jiff::Timestamp::now().as_second()).unwrap().token
}

#[test]
fn a_certificate_of_our_ca_gives_its_subject() {
    let ca = ca("kubernetes");
    let (authenticator, _) = authenticator(&ca);
    let issued = ca.issue(&client_spec("system:node:n1", "system:nodes")).unwrap();
    let peer = authenticator.peer(Some(&chain(&issued)));
    let identity =
        authenticator.authenticate(&peer, &HeaderMap::new(), "/api", &mut Notes::default()).unwrap();
    assert_eq!(identity.name, "system:node:n1");
    assert_eq!(identity.groups, ["system:nodes", GROUP_AUTHENTICATED]);
    assert!(identity.extra[CREDENTIAL_ID][0].starts_with("X509SHA256="));
    assert_eq!(identity.node(), Some("n1"));
}

#[test]
fn certificates_that_are_not_for_us_are_refused() {
    let ours = ca("kubernetes");
    let (authenticator, _) = authenticator(&ours);
    let masters = client_spec("root", "system:masters");
    let foreign = ca("kubernetes").issue(&masters).unwrap();
    let server = CertificateSpec { client: false, server: true, ..masters.clone() };
    let server = ours.issue(&server).unwrap();
    for (case, issued) in [("another CA", foreign), ("not for clients", server)] {
        let peer = authenticator.peer(Some(&chain(&issued)));
        let Peer::Refused { subject, .. } = &peer else { panic!("{case}: {peer:?}") };
        assert!(subject.contains("CN=root"), "{case}: {subject}");
        let error =
            authenticator.authenticate(&peer, &HeaderMap::new(), "/api", &mut Notes::default()).unwrap_err();
        assert!(error.to_string().contains("CN=root"), "{case}: {error}");
    }
    let nameless = ours.issue(&client_spec("", "system:masters")).unwrap();
    let peer = authenticator.peer(Some(&chain(&nameless)));
    assert!(matches!(peer, Peer::Refused { .. }), "{peer:?}");
    let garbage = [CertificateDer::from(vec![1, 2, 3])];
    assert!(
        authenticator
            .authenticate(
                &authenticator.peer(Some(&garbage)),
                &HeaderMap::new(),
                "/api",
                &mut Notes::default()
            )
            .is_err()
    );
}

#[test]
fn a_certificate_that_expires_during_a_connection_is_refused_from_then_on() {
    let (authenticator, _) = authenticator(&ca("kubernetes"));
    let identity = Identity::internal("jane", &[]);
    let expired = Peer::Certificate { identity, not_after: 1 };
    assert!(authenticator.authenticate(&expired, &HeaderMap::new(), "/api", &mut Notes::default()).is_err());
}

#[test]
fn without_credentials_a_request_is_anonymous() {
    let (authenticator, _) = authenticator(&ca("kubernetes"));
    let peer = authenticator.peer(None);
    let identity =
        authenticator.authenticate(&peer, &HeaderMap::new(), "/api", &mut Notes::default()).unwrap();
    assert_eq!(identity, Identity::anonymous());
    assert_eq!(
        (identity.name.as_str(), &identity.groups[..]),
        ("system:anonymous", &["system:unauthenticated".to_owned()][..])
    );
}

#[test]
fn one_good_credential_is_enough_and_a_bad_one_alone_is_not_anonymous() {
    let ours = ca("kubernetes");
    let (authenticator, tokens) = authenticator(&ours);
    let good_token = bearer(&token(&tokens, 600));
    let bad_token = bearer("nonsense");
    let expired = bearer(&token(&tokens, -600));
    let good = authenticator.peer(Some(&chain(&ours.issue(&client_spec("jane", "")).unwrap())));
    let bad = authenticator.peer(Some(&chain(&ca("x").issue(&client_spec("jane", "")).unwrap())));
    let robot = "system:serviceaccount:ns:robot";
    let cases = [
        (&Peer::None, &good_token, Some(robot)),
        (&bad, &good_token, Some(robot)),
        (&good, &bad_token, Some("jane")),
        (&good, &good_token, Some("jane")),
        (&Peer::None, &bad_token, None),
        (&Peer::None, &expired, None),
        (&bad, &bad_token, None),
    ];
    for (peer, headers, expected) in cases {
        let name = authenticator
            .authenticate(peer, headers, "/api", &mut Notes::default())
            .ok()
            .map(|identity| identity.name);
        assert_eq!(name.as_deref(), expected, "{peer:?} {headers:?}");
    }
}

#[test]
fn tokens_come_in_a_header_or_a_websocket_subprotocol() {
    let header = |name: http::HeaderName, value: &str| {
        let mut headers = HeaderMap::new();
        headers.insert(name, HeaderValue::from_str(value).unwrap());
        bearer_token(&headers)
    };
    assert_eq!(header(header::AUTHORIZATION, "bearer  abc ").as_deref(), Some("abc"));
    assert_eq!(header(header::AUTHORIZATION, "Basic abc"), None);
    assert_eq!(header(header::AUTHORIZATION, "Bearer "), None);
    let encoded = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode("abc");
    let protocols = format!("v5.channel.k8s.io, {WEBSOCKET_TOKEN_PREFIX}{encoded}");
    assert_eq!(header(header::SEC_WEBSOCKET_PROTOCOL, &protocols).as_deref(), Some("abc"));
}

/// One TLS handshake over memory; the certificates that the server saw.
async fn handshake(ca: &Ca, client: &KeyedCertificate) -> Vec<CertificateDer<'static>> {
    let sans = BTreeSet::from(["localhost".to_owned()]);
    let spec =
        CertificateSpec { common_name: "server".into(), sans, server: true, ..CertificateSpec::default() };
    let serving = ca.issue(&spec).unwrap();
    let server = tls::server_config(tls::Live::new(&serving).unwrap()).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca.certificate_pem().as_bytes()) {
        roots.add(certificate.unwrap()).unwrap();
    }
    let key = rustls_pki_types::PrivateKeyDer::from_pem_slice(client.key_pem.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(chain(client), key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let (near, far) = tokio::io::duplex(1 << 16);
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let accept = tokio_rustls::TlsAcceptor::from(server).accept(far);
    let connect = connector.connect("localhost".try_into().unwrap(), near);
    let (client, server) = tokio::join!(connect, accept);
    let (client, server) = (client.unwrap(), server.unwrap());
    assert_eq!(client.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let seen = server.get_ref().1.peer_certificates().unwrap();
    seen.iter().cloned().map(CertificateDer::into_owned).collect()
}

#[tokio::test]
async fn a_handshake_lets_any_certificate_through_to_be_judged() {
    let ours = ca("kubernetes");
    let (authenticator, _) = authenticator(&ours);
    let good = handshake(&ours, &ours.issue(&client_spec("jane", "")).unwrap()).await;
    assert!(matches!(authenticator.peer(Some(&good)), Peer::Certificate { .. }));
    let bad = handshake(&ours, &ca("other").issue(&client_spec("jane", "")).unwrap()).await;
    assert!(matches!(authenticator.peer(Some(&bad)), Peer::Refused { .. }));
}
