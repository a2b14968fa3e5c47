//! Credentials of all kinds, good ones and bad ones, over TLS.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use apiserver::{
    config::Security,
    security::{
        authentication::Anonymous,
        pki::{Ca, CertificateSpec, KeyedCertificate, client_spec},
        tokens::{Reference, TokenSpec, Tokens},
    },
};
use base64::{Engine as _, engine::general_purpose::STANDARD, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use support::{Client, PODS, TestServer, make_default_account, pod};
use tempfile::TempDir;

const ACCOUNT: &str = "/api/v1/namespaces/default/serviceaccounts/default";
const TOKEN_REVIEWS: &str = "/apis/authentication.k8s.io/v1/tokenreviews";
const WHO_AM_I: &str = "/apis/authentication.k8s.io/v1/selfsubjectreviews";

async fn token(admin: &Client, spec: Value) -> String {
    let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec});
    let answer = admin.post(&format!("{ACCOUNT}/token"), &request).await.expect(201);
    answer["status"]["token"].as_str().unwrap().to_owned()
}

fn with_token(server: &TestServer, token: &str) -> Client {
    let mut client = server.client_with(None);
    client.token = Some(token.to_owned());
    client
}

/// The status of a TokenReview.
async fn review(admin: &Client, token: &str, audiences: Value) -> Value {
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
        "spec": {"token": token, "audiences": audiences}});
    admin.post(TOKEN_REVIEWS, &review).await.expect(201)["status"].clone()
}

fn claims(token: &str) -> Value {
    let middle = token.split('.').nth(1).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(middle).unwrap()).unwrap()
}

/// The token with other claims or another header, under the old signature.
fn tampered(token: &str, part: usize, change: impl FnOnce(&mut Value)) -> String {
    let mut parts: Vec<String> = token.split('.').map(str::to_owned).collect();
    let mut value: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(&parts[part]).unwrap()).unwrap();
    change(&mut value);
    parts[part] = URL_SAFE_NO_PAD.encode(value.to_string());
    parts.join(".")
}

/// Signs a certificate for a user in system:masters that begins and ends at these days from now.
fn dated(server: &TestServer, from_days: i64, to_days: i64) -> KeyedCertificate {
    let read = |name: &str| std::fs::read_to_string(server.folder.path().join("pki").join(name)).unwrap();
    let key = rcgen::KeyPair::from_pem(&read("ca.key")).unwrap();
    let issuer = rcgen::Issuer::from_ca_cert_pem(&read("ca.crt"), key).unwrap();
    let leaf = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::CommonName, "root");
    params.distinguished_name.push(rcgen::DnType::OrganizationName, "system:masters");
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    let now = rcgen::date_time_ymd(1970, 1, 1)
        + std::time::Duration::from_secs(jiff::Timestamp::now().as_second().unsigned_abs());
    let day = std::time::Duration::from_secs(24 * 3600);
    let shifted = |days: i64| {
        let length = day * u32::try_from(days.abs()).unwrap();
        if days < 0 { now - length } else { now + length }
    };
    (params.not_before, params.not_after) = (shifted(from_days), shifted(to_days));
    let certificate = params.signed_by(&leaf, &issuer).unwrap();
    KeyedCertificate { certificate_pem: certificate.pem(), key_pem: leaf.serialize_pem() }
}

/// Tokens for the account of these claims that the server's own key signed: expired, not valid yet, of another issuer.
fn signed_by_the_server(server: &TestServer, claims: &Value) -> (String, String, String) {
    let key = std::fs::read_to_string(server.folder.path().join("pki/sa.key")).unwrap();
    let issuer = claims["iss"].as_str().unwrap();
    let account = &claims["kubernetes.io"]["serviceaccount"];
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let spec = TokenSpec {
        namespace: "default".to_owned(),
        service_account: Some(Reference { name: text(&account["name"]), uid: text(&account["uid"]) }),
        audiences: vec![issuer.to_owned()],
        expiration_seconds: 3600,
        ..TokenSpec::default()
    };
    let now = jiff::Timestamp::now().as_second();
    let issue = |issuer: &str, now: i64| Tokens::new(issuer, &key).unwrap().issue(&spec, now).unwrap().token;
    (issue(issuer, now - 7200), issue(issuer, now + 3600), issue("https://elsewhere", now))
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_that_are_not_good_are_refused_whatever_they_claim() {
    let server = TestServer::start().await;
    let admin = server.admin();
    make_default_account(&admin).await;
    let folder = TempDir::new().unwrap();
    let foreign = Ca::load_or_create(folder.path()).unwrap();
    let masters = client_spec("root", "system:masters");
    let for_servers = CertificateSpec { client: false, server: true, ..masters.clone() };
    let good = dated(&server, -1, 1);
    server.client_with(Some(&good)).get(PODS).await.expect(200);
    let certificates = [
        ("of another CA", foreign.issue(&masters).unwrap()),
        ("expired", dated(&server, -2, -1)),
        ("not valid yet", dated(&server, 1, 2)),
        ("for servers", server.ca.issue(&for_servers).unwrap()),
        ("without a name", server.ca.issue(&client_spec("", "system:masters")).unwrap()),
    ];
    for (what, certificate) in certificates {
        let answer = server.client_with(Some(&certificate)).get(PODS).await;
        assert_eq!((answer.code, answer.body["message"].as_str()), (401, Some("Unauthorized")), "{what}");
    }
    let genuine = token(&admin, json!({})).await;
    with_token(&server, &genuine).post(WHO_AM_I, &json!({})).await.expect(201);
    let header = json!({"alg": "none"}).to_string();
    let parts: Vec<&str> = genuine.split('.').collect();
    let (expired, early, foreign_issuer) = signed_by_the_server(&server, &claims(&genuine));
    let tokens = [
        ("expired", expired),
        ("not valid yet", early),
        ("of another issuer, with our key", foreign_issuer),
        (
            "claims of another",
            tampered(&genuine, 1, |claims| {
                claims["sub"] = json!("system:serviceaccount:kube-system:admin");
            }),
        ),
        ("a later end", tampered(&genuine, 1, |claims| claims["exp"] = json!(4_000_000_000_u64))),
        ("another issuer", tampered(&genuine, 1, |claims| claims["iss"] = json!("https://elsewhere"))),
        ("an unknown key", tampered(&genuine, 0, |header| header["kid"] = json!("other"))),
        ("another algorithm", tampered(&genuine, 0, |header| header["alg"] = json!("HS256"))),
        ("no algorithm", format!("{}.{}.", URL_SAFE_NO_PAD.encode(header), parts[1])),
        ("no signature", format!("{}.{}.", parts[0], parts[1])),
        ("another audience", token(&admin, json!({"audiences": ["vault"]})).await),
        ("nothing", "x".to_owned()),
    ];
    for (what, token) in &tokens {
        let client = with_token(&server, token);
        for path in [PODS, "/api", "/healthz"] {
            let answer = client.get(path).await;
            let said = (answer.code, answer.body["reason"].as_str().map(str::to_owned));
            assert_eq!(said, (401, Some("Unauthorized".to_owned())), "{what} on {path}");
        }
        assert_eq!(review(&admin, token, json!([])).await.get("authenticated"), None, "{what}");
    }
    server.stop().await;
}

/// Every verb, in a namespace where the subject has a right and in one where it has none.
#[tokio::test(flavor = "multi_thread")]
async fn every_verb_is_denied_to_whom_it_is_not_granted() {
    let server = TestServer::start().await;
    let admin = server.admin();
    admin.post("/api/v1/namespaces", &json!({"metadata": {"name": "other"}})).await.expect(201);
    let verbs = ["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"];
    let rbac = "/apis/rbac.authorization.k8s.io/v1/namespaces/default";
    for verb in verbs {
        let role = json!({"metadata": {"name": verb},
            "rules": [{"apiGroups": [""], "resources": ["configmaps"], "verbs": [verb]}]});
        admin.post(&format!("{rbac}/roles"), &role).await.expect(201);
        let binding = json!({"metadata": {"name": verb},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": verb},
            "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": verb}]});
        admin.post(&format!("{rbac}/rolebindings"), &binding).await.expect(201);
    }
    let body = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}}).to_string();
    for subject in verbs {
        let client = server.client(subject, "people");
        for verb in verbs {
            for namespace in ["default", "other"] {
                let collection = format!("/api/v1/namespaces/{namespace}/configmaps");
                let (method, path, kind) = match verb {
                    "get" => ("GET", format!("{collection}/c"), ""),
                    "list" => ("GET", collection, ""),
                    "watch" => ("GET", format!("{collection}?watch=1&timeoutSeconds=1"), ""),
                    "create" => ("POST", collection, "application/json"),
                    "update" => ("PUT", format!("{collection}/c"), "application/json"),
                    "patch" => ("PATCH", format!("{collection}/c"), "application/merge-patch+json"),
                    "delete" => ("DELETE", format!("{collection}/c"), ""),
                    _ => ("DELETE", collection, ""),
                };
                let has_body = !kind.is_empty();
                let headers = [("content-type", kind)];
                let headers: &[(&str, &str)] = if has_body { &headers } else { &[] };
                let body = if has_body { body.clone().into_bytes() } else { Vec::new() };
                let answer = client.send(method, &path, headers, body).await;
                let granted = subject == verb && namespace == "default";
                if granted {
                    assert_ne!(answer.code, 403, "{subject} {verb} {namespace}: {}", answer.text);
                    continue;
                }
                let message = answer.refuse(403, "Forbidden");
                let wanted = format!(
                    "User \"{subject}\" cannot {verb} resource \"configmaps\" in API group \"\" in the namespace \
                     \"{namespace}\""
                );
                assert!(message.ends_with(&wanted), "{message}");
            }
        }
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_right_on_one_name_is_one_to_list_and_watch_that_name() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let rbac = "/apis/rbac.authorization.k8s.io/v1/namespaces/default";
    let role = json!({"metadata": {"name": "one"}, "rules": [{"apiGroups": [""], "resources": ["configmaps"],
        "resourceNames": ["mine"], "verbs": ["get", "list", "watch", "deletecollection"]}]});
    admin.post(&format!("{rbac}/roles"), &role).await.expect(201);
    let binding = json!({"metadata": {"name": "one"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "one"},
        "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "alice"}]});
    admin.post(&format!("{rbac}/rolebindings"), &binding).await.expect(201);
    let alice = server.client("alice", "people");
    let path = "/api/v1/namespaces/default/configmaps";
    alice.get(&format!("{path}?fieldSelector=metadata.name%3Dmine")).await.expect(200);
    let watch = format!("{path}?fieldSelector=metadata.name%3Dmine&watch=1&timeoutSeconds=1");
    assert_eq!(alice.get(&watch).await.code, 200);
    for refused in [
        path.to_owned(),
        format!("{path}?fieldSelector=metadata.name%3Dyours"),
        format!("{path}?fieldSelector=metadata.name!%3Dmine"),
        format!("{path}?labelSelector=a%3Db"),
        format!("{path}/yours"),
    ] {
        alice.get(&refused).await.refuse(403, "Forbidden");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_ends_with_the_pod_that_it_is_bound_to() {
    let server = TestServer::start().await;
    let admin = server.admin();
    make_default_account(&admin).await;
    let node = admin.post("/api/v1/nodes", &json!({"metadata": {"name": "n1"}})).await.expect(201);
    let mut object = pod("web");
    object["spec"]["nodeName"] = json!("n1");
    let made = admin.post(PODS, &object).await.expect(201);
    let uid = made["metadata"]["uid"].as_str().unwrap();
    let bound = |kind: &str, name: &str, uid: &str| json!({"boundObjectRef": {"apiVersion": "v1", "kind": kind, "name": name, "uid": uid}});
    let of_pod = token(&admin, bound("Pod", "web", uid)).await;
    let said = claims(&of_pod);
    assert_eq!(said["kubernetes.io"]["pod"], json!({"name": "web", "uid": uid}));
    assert_eq!(said["kubernetes.io"]["node"], json!({"name": "n1", "uid": node["metadata"]["uid"]}));
    let status = review(&admin, &of_pod, json!([])).await;
    assert_eq!(status["user"]["extra"]["authentication.kubernetes.io/node-name"], json!(["n1"]));
    assert_eq!(status["user"]["extra"]["authentication.kubernetes.io/pod-uid"], json!([uid]));
    assert_eq!(status["audiences"], said["aud"]);

    let mut spec = bound("Pod", "web", uid);
    spec["expirationSeconds"] = json!(3607);
    let extended = claims(&token(&admin, spec).await);
    let life = extended["exp"].as_i64().unwrap() - extended["iat"].as_i64().unwrap();
    assert_eq!(life, 365 * 24 * 3600, "asked for the length of projected volumes");
    assert!(extended["kubernetes.io"]["warnafter"].as_i64().unwrap() > extended["iat"].as_i64().unwrap());

    let wrong = json!({"spec": bound("Pod", "web", "other")});
    let path = format!("{ACCOUNT}/token");
    let message = admin.post(&path, &wrong).await.refuse(409, "Conflict");
    assert!(message.contains("does not match the UID in record"), "{message}");
    let odd = json!({"spec": bound("ConfigMap", "web", uid)});
    let message = admin.post(&path, &odd).await.refuse(400, "BadRequest");
    assert_eq!(message, "cannot bind token to object of type /v1, Kind=ConfigMap");

    let secrets = "/api/v1/namespaces/default/secrets";
    let secret = admin.post(secrets, &json!({"metadata": {"name": "s"}})).await.expect(201);
    let of_secret = token(&admin, bound("Secret", "s", secret["metadata"]["uid"].as_str().unwrap())).await;
    let of_node = token(&admin, bound("Node", "n1", "")).await;
    for token in [&of_pod, &of_secret, &of_node] {
        with_token(&server, token).post(WHO_AM_I, &json!({})).await.expect(201);
    }
    admin.delete(&format!("{PODS}/web?gracePeriodSeconds=0"), &Value::Null).await.expect(200);
    admin.delete(&format!("{secrets}/s"), &Value::Null).await.expect(200);
    admin.delete("/api/v1/nodes/n1", &Value::Null).await.expect(200);
    for token in [&of_pod, &of_secret, &of_node] {
        with_token(&server, token).post(WHO_AM_I, &json!({})).await.refuse(401, "Unauthorized");
        let status = review(&admin, token, json!([])).await;
        assert_eq!(status.get("authenticated"), None);
        assert_eq!(status["error"], "service account token has been invalidated");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn audiences_are_matched_and_keys_published() {
    let server = TestServer::start().await;
    let admin = server.admin();
    make_default_account(&admin).await;
    let vault = token(&admin, json!({"audiences": ["vault", "web"]})).await;
    let status = review(&admin, &vault, json!(["other", "vault"])).await;
    assert_eq!((&status["authenticated"], &status["audiences"]), (&json!(true), &json!(["vault"])));
    let status = review(&admin, &vault, json!(["other"])).await;
    assert_eq!(
        status["error"],
        "token audiences [\"vault\" \"web\"] is invalid for the target audiences [\"other\"]"
    );
    let robot = with_token(&server, &token(&admin, json!({})).await);
    let configuration = robot.get("/.well-known/openid-configuration").await;
    assert_eq!(configuration.headers["cache-control"], "public, max-age=3600");
    let configuration = configuration.expect(200);
    assert_eq!(configuration["issuer"], claims(&vault)["iss"]);
    assert!(configuration["jwks_uri"].as_str().unwrap().ends_with("/openid/v1/jwks"));
    let keys = robot.get("/openid/v1/jwks").await;
    assert_eq!(keys.headers["content-type"], "application/jwk-set+json");
    let keys = keys.expect(200);
    let header: Value =
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(vault.split('.').next().unwrap()).unwrap()).unwrap();
    assert_eq!(keys["keys"][0]["kid"], header["kid"]);
    server.client_with(None).get("/openid/v1/jwks").await.refuse(403, "Forbidden");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_of_files_and_bootstrap_secrets_are_identities() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("tokens.csv");
    std::fs::write(&file, "s3cret,alice,42,\"system:masters\"\n").unwrap();
    let security = Security {
        token_auth_file: Some(file),
        bootstrap_tokens: true,
        anonymous: Anonymous::Paths(vec!["/livez".to_owned()]),
        ..Security::default()
    };
    let server = TestServer::start_with(TempDir::new().unwrap(), security).await;
    let alice = with_token(&server, "s3cret");
    let shown = alice.post(WHO_AM_I, &json!({})).await.expect(201);
    assert_eq!(shown["status"]["userInfo"]["uid"], "42");
    assert_eq!(shown["status"]["userInfo"]["groups"], json!(["system:masters", "system:authenticated"]));
    let encode = |text: &str| STANDARD.encode(text);
    let secret = json!({"metadata": {"name": "bootstrap-token-abcdef"}, "type": "bootstrap.kubernetes.io/token",
        "data": {"token-id": encode("abcdef"), "token-secret": encode("0123456789abcdef"),
            "usage-bootstrap-authentication": encode("true")}});
    alice.post("/api/v1/namespaces/kube-system/secrets", &secret).await.expect(201);
    let joiner = with_token(&server, "abcdef.0123456789abcdef");
    let shown = joiner.post(WHO_AM_I, &json!({})).await.expect(201);
    assert_eq!(shown["status"]["userInfo"]["username"], "system:bootstrap:abcdef");
    assert_eq!(
        shown["status"]["userInfo"]["groups"],
        json!(["system:bootstrappers", "system:authenticated"])
    );
    let status = review(&alice, "abcdef.0123456789abcdef", json!(["vault"])).await;
    assert_eq!(status["error"], "invalid bearer token", "it is for this server alone");
    with_token(&server, "abcdef.0123456789abcdee").get("/api").await.refuse(401, "Unauthorized");
    let nobody = server.client_with(None);
    assert_eq!(nobody.get("/livez").await.text, "ok");
    nobody.get("/readyz").await.refuse(401, "Unauthorized");
    nobody.get("/version").await.refuse(401, "Unauthorized");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_replaced_while_the_server_runs() {
    let folder = TempDir::new().unwrap();
    let more_cas = folder.path().join("more.crt");
    std::fs::write(&more_cas, "").unwrap();
    let security = Security { client_ca_file: Some(more_cas.clone()), ..Security::default() };
    let server = TestServer::start_with(TempDir::new().unwrap(), security).await;
    let admin = server.admin();
    // Each with a client of its own: one that was here before would resume its session, in which no certificate is shown.
    let before = server.admin().server_certificate().await;
    admin.get("/api").await.expect(200);

    // Somebody else issued another serving certificate of the same CA.
    let pki = server.folder.path().join("pki");
    std::fs::remove_file(pki.join("apiserver.crt")).unwrap();
    server.server.reload_certificates().unwrap();
    let after = server.admin().server_certificate().await;
    assert_ne!(before, after, "a new connection sees the new certificate");
    admin.get("/api").await.expect(200);
    server.server.reload_certificates().unwrap();
    assert_eq!(server.admin().server_certificate().await, after, "nothing changed since");

    let partner_folder = TempDir::new().unwrap();
    let partner = Ca::load_or_create(partner_folder.path()).unwrap();
    let carol = server.client_with(Some(&partner.issue(&client_spec("carol", "")).unwrap()));
    carol.get("/api").await.refuse(401, "Unauthorized");
    std::fs::write(&more_cas, partner.certificate_pem()).unwrap();
    server.server.reload_certificates().unwrap();
    carol.get("/api").await.expect(200);
    std::fs::write(&more_cas, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
    assert!(server.server.reload_certificates().is_err());
    carol.get("/api").await.expect(200);
    server.stop().await;
}
